//! TLS towards clients and towards servers: certificates, modes, and what binds SCRAM to a channel.
//!
//! Invariant: a reload either replaces everything or changes nothing; connections keep the certificate they began with.
//! Modes are libpq's (PostgreSQL documentation, "SSL Support", `sslmode`); channel binding is RFC 5929's
//! `tls-server-end-point`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use sha2::Digest;
use switchyard_config::{ClientTls, ServerTls, SslMode};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::stream::{Stream, TlsAccepted};

/// PostgreSQL's name for its protocol in TLS (`PG_ALPN_PROTOCOL`).
pub const ALPN: &[u8] = b"postgresql";

/// A file of certificates or keys that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {error}", path.display())]
    Pem { path: PathBuf, error: rustls::pki_types::pem::Error },
    #[error("{}: no certificate in it", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{}: {error}", path.display())]
    Certificate { path: PathBuf, error: rustls::Error },
    #[error("{}: {error}", path.display())]
    Verifier { path: PathBuf, error: rustls::server::VerifierBuilderError },
    #[error("server_tls.mode verifies certificates, and server_tls.ca_file is not set")]
    NoAuthority,
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// TLS towards clients. Reloadable.
#[derive(Debug)]
pub struct Acceptor {
    config: ClientTls,
    loaded: ArcSwap<Loaded>,
}

struct Loaded {
    server: Arc<ServerConfig>,
    end_point: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Loaded")
    }
}

impl Acceptor {
    pub fn new(config: ClientTls) -> Result<Acceptor, TlsError> {
        let loaded = ArcSwap::from_pointee(load(&config)?);
        Ok(Acceptor { config, loaded })
    }

    /// Whether TCP clients without TLS are refused.
    pub fn required(&self) -> bool {
        self.config.require
    }

    /// Reads the files again. On an error everything stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.loaded.store(Arc::new(load(&self.config)?));
        Ok(())
    }

    /// Handshakes with a client. `direct`: TLS began without SSLRequest, so that ALPN must name PostgreSQL.
    pub(crate) async fn accept(&self, tcp: TcpStream, direct: bool) -> io::Result<Stream> {
        let loaded = self.loaded.load_full();
        let stream = TlsAcceptor::from(loaded.server.clone()).accept(tcp).await?;
        if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "direct TLS connection without ALPN protocol negotiation extension"));
        }
        Ok(Stream::Tls(Box::new(TlsAccepted { stream, end_point: loaded.end_point.clone() })))
    }
}

fn load(config: &ClientTls) -> Result<Loaded, TlsError> {
    let chain = certificates(&config.cert_file)?;
    let key = private_key(&config.key_file)?;
    let end_point = chain.first().and_then(|certificate| end_point(certificate));
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &config.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?.0), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| TlsError::Verifier { path: path.clone(), error })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server =
        builder.with_single_cert(chain, key).map_err(|error| TlsError::Certificate { path: config.cert_file.clone(), error })?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Loaded { server: Arc::new(server), end_point })
}

/// TLS towards servers.
#[derive(Clone)]
pub struct Connector {
    mode: SslMode,
    /// `None` with `disable`.
    client: Option<Arc<ClientConfig>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Connector {
    pub fn new(config: &ServerTls) -> Result<Connector, TlsError> {
        if config.mode == SslMode::Disable {
            return Ok(Connector { mode: config.mode, client: None });
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(LibpqVerifier::new(config, provider.clone())?);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut client = match (&config.cert_file, &config.key_file) {
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                .map_err(|error| TlsError::Certificate { path: cert.clone(), error })?,
            _ => builder.with_no_client_auth(),
        };
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Connector { mode: config.mode, client: Some(Arc::new(client)) })
    }

    /// No TLS at all.
    pub fn disabled() -> Connector {
        Connector { mode: SslMode::Disable, client: None }
    }

    pub(crate) fn mode(&self) -> SslMode {
        self.mode
    }

    /// Handshakes with a server that has answered 'S'.
    pub(crate) async fn connect(&self, tcp: TcpStream, host: &str) -> io::Result<Stream> {
        let Some(client) = &self.client else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "TLS is disabled"));
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let stream = TlsConnector::from(client.clone()).connect(name, tcp).await?;
        Ok(Stream::ClientTls(Box::new(stream)))
    }
}

/// libpq's ideas of verification: none (prefer, require), the chain (verify-ca, and require with a root file), chain and name.
#[derive(Debug)]
struct LibpqVerifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// The authority file's own certificates: one of them may be the server's itself, self-signed, which OpenSSL takes and webpki doesn't.
    trusted: Vec<CertificateDer<'static>>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl LibpqVerifier {
    fn new(config: &ServerTls, provider: Arc<CryptoProvider>) -> Result<LibpqVerifier, TlsError> {
        let needed = matches!(config.mode, SslMode::VerifyCa | SslMode::VerifyFull);
        let (chain, trusted) = match &config.ca_file {
            // As in libpq, `prefer` never verifies, and `require` does if there is something to verify with.
            Some(path) if config.mode != SslMode::Prefer => {
                let (roots, trusted) = roots(path)?;
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(|error| TlsError::Verifier { path: path.clone(), error })?;
                (Some(verifier), trusted)
            }
            _ if needed => return Err(TlsError::NoAuthority),
            _ => (None, Vec::new()),
        };
        Ok(LibpqVerifier { chain, trusted, check_name: config.mode == SslMode::VerifyFull, provider })
    }

    fn verify_trusted_itself(&self, certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < parsed.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > parsed.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        if self.check_name {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        }
        Ok(())
    }
}

impl ServerCertVerifier for LibpqVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        if self.trusted.iter().any(|trusted| trusted == end_entity) {
            return self.verify_trusted_itself(end_entity, server_name, now).map(|()| ServerCertVerified::assertion());
        }
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki checks the name last: everything else was right.
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }))
                if !self.check_name =>
            {
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |error| TlsError::Pem { path: path.to_owned(), error };
    let chain: Vec<_> = CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::Pem { path: path.to_owned(), error })
}

fn roots(path: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let certificates = certificates(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| TlsError::Certificate { path: path.to_owned(), error })?;
    }
    Ok((roots, certificates))
}

/// `tls-server-end-point` of a certificate: its hash by its own signature's hash algorithm, SHA-256 in place of MD5 and SHA-1
/// (RFC 5929, section 4.1). `None` where the signature names none, such as Ed25519.
pub fn end_point(certificate: &[u8]) -> Option<Arc<[u8]>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let mut oid = algorithm.algorithm.to_id_string();
    if oid == RSASSA_PSS {
        let parameters = algorithm.parameters.as_ref()?;
        let pss = x509_parser::signature_algorithm::RsaSsaPssParams::try_from(parameters).ok()?;
        oid = pss.hash_algorithm_oid().to_id_string();
    }
    Some(match oid.as_str() {
        MD5_RSA | SHA1_RSA | SHA1_ECDSA | SHA1 | SHA256_RSA | SHA256_ECDSA | SHA256 => sha2::Sha256::digest(certificate).as_slice().into(),
        SHA384_RSA | SHA384_ECDSA | SHA384 => sha2::Sha384::digest(certificate).as_slice().into(),
        SHA512_RSA | SHA512_ECDSA | SHA512 => sha2::Sha512::digest(certificate).as_slice().into(),
        SHA224_RSA | SHA224_ECDSA | SHA224 => sha2::Sha224::digest(certificate).as_slice().into(),
        _ => return None,
    })
}

// RFC 8017 appendix C, RFC 5758 section 3.2, NIST CSOR.
const RSASSA_PSS: &str = "1.2.840.113549.1.1.10";
const MD5_RSA: &str = "1.2.840.113549.1.1.4";
const SHA1_RSA: &str = "1.2.840.113549.1.1.5";
const SHA256_RSA: &str = "1.2.840.113549.1.1.11";
const SHA384_RSA: &str = "1.2.840.113549.1.1.12";
const SHA512_RSA: &str = "1.2.840.113549.1.1.13";
const SHA224_RSA: &str = "1.2.840.113549.1.1.14";
const SHA1_ECDSA: &str = "1.2.840.10045.4.1";
const SHA224_ECDSA: &str = "1.2.840.10045.4.3.1";
const SHA256_ECDSA: &str = "1.2.840.10045.4.3.2";
const SHA384_ECDSA: &str = "1.2.840.10045.4.3.3";
const SHA512_ECDSA: &str = "1.2.840.10045.4.3.4";
const SHA1: &str = "1.3.14.3.2.26";
const SHA256: &str = "2.16.840.1.101.3.4.2.1";
const SHA384: &str = "2.16.840.1.101.3.4.2.2";
const SHA512: &str = "2.16.840.1.101.3.4.2.3";
const SHA224: &str = "2.16.840.1.101.3.4.2.4";

/// The first common name in a client certificate's subject, which PostgreSQL's `cert` method compares with the user's name.
/// The chain was verified in the handshake. Names with a zero byte are no names (CVE-2009-4034).
pub(crate) fn common_name(stream: &Stream) -> Option<String> {
    let Stream::Tls(tls) = stream else { return None };
    let certificate = tls.stream.get_ref().1.peer_certificates()?.first()?;
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    (!name.contains('\0')).then(|| name.to_owned())
}

/// `tls-server-end-point` of a stream, on either side of it.
pub(crate) fn channel_binding(stream: &Stream) -> Option<Arc<[u8]>> {
    match stream {
        Stream::Tls(tls) => tls.end_point.clone(),
        Stream::ClientTls(tls) => end_point(tls.get_ref().1.peer_certificates()?.first()?),
        Stream::Tcp(_) | Stream::Unix(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    #[test]
    fn a_certificate_is_hashed_as_its_signature_says() {
        let hash = |algorithm| {
            let key = KeyPair::generate_for(algorithm).expect("a key");
            let certificate = CertificateParams::new(vec![]).expect("parameters").self_signed(&key).expect("a certificate");
            let der = certificate.der().to_vec();
            (end_point(&der).map(|hash| hash.to_vec()), der)
        };
        let (sha256, der) = hash(&PKCS_ECDSA_P256_SHA256);
        assert_eq!(sha256, Some(sha2::Sha256::digest(der).to_vec()));
        let (sha384, der) = hash(&PKCS_ECDSA_P384_SHA384);
        assert_eq!(sha384, Some(sha2::Sha384::digest(der).to_vec()));
        assert_eq!(hash(&PKCS_ED25519).0, None, "no hash of its own: no channel binding");
        assert_eq!(end_point(b"nonsense"), None);
    }

    fn verifier(mode: SslMode, ca_file: Option<PathBuf>) -> Result<LibpqVerifier, TlsError> {
        let config = ServerTls { mode, ca_file, cert_file: None, key_file: None };
        LibpqVerifier::new(&config, Arc::new(ring::default_provider()))
    }

    #[test]
    fn modes_verify_what_libpqs_do() {
        let self_signed = || {
            let key = KeyPair::generate().expect("a key");
            CertificateParams::new(vec!["db.example".to_owned()]).expect("parameters").self_signed(&key).expect("a certificate")
        };
        let (ours, theirs) = (self_signed(), self_signed());
        let file = std::env::temp_dir().join(format!("switchyard-ca-{}.pem", std::process::id()));
        std::fs::write(&file, ours.pem()).expect("a file");
        let check = |mode, certificate: &rcgen::Certificate, name: &str| {
            let name = ServerName::try_from(name.to_owned()).expect("a name");
            let verifier = verifier(mode, Some(file.clone())).expect("a verifier");
            verifier.verify_server_cert(certificate.der(), &[], &name, &[], UnixTime::now()).is_ok()
        };
        use SslMode::{Prefer, Require, VerifyCa, VerifyFull};
        for (mode, stranger, other_name) in
            [(Prefer, true, true), (Require, false, true), (VerifyCa, false, true), (VerifyFull, false, false)]
        {
            assert!(check(mode, &ours, "db.example"), "{mode:?}");
            assert_eq!(check(mode, &theirs, "db.example"), stranger, "{mode:?}");
            assert_eq!(check(mode, &ours, "other.example"), other_name, "{mode:?}");
        }
        std::fs::remove_file(&file).expect("removed");
        assert!(matches!(verifier(VerifyCa, None), Err(TlsError::NoAuthority)));
        assert!(verifier(Require, None).is_ok(), "nothing to verify with");
    }
}
