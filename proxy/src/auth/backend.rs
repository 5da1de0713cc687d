//! Logging in to a server as a user: connection, TLS, startup, authentication, up to its first ReadyForQuery.
//!
//! Invariant: a [`Connected`] stream has nothing unread that came before its ReadyForQuery was handled, and nothing unsent.
//! Source: protocol section "Start-up"; libpq's `fe-connect.c` for the modes of TLS.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::{self as pg, SASLInitialResponse, SASLResponse, SecretKey, SslRequest};
use switchyard_config::SslMode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::scram::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError};
use super::secrets::Credential;
use crate::stream::Stream;
use crate::tls::{self, Connector};

/// A message before authentication is short; libpq takes 2,000 bytes for 'R' and 30,000 for errors (`fe-connect.c`).
const MESSAGE_BYTES_MAX: usize = 30_000;
/// Parameter reports that one server may send: PostgreSQL 18 has 16; extensions add a few.
const PARAMETERS_MAX: usize = 256;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// A name or address; a path that begins with `/` is the directory of a Unix socket, as in libpq.
    pub host: Arc<str>,
    pub port: u16,
}

impl Target {
    pub fn new(host: impl Into<Arc<str>>, port: u16) -> Target {
        Target { host: host.into(), port }
    }
}

/// Who logs in, where to, and with which settings.
#[derive(Clone, Copy, Debug)]
pub struct Login<'a> {
    pub user: &'a str,
    /// Empty for physical replication.
    pub database: &'a str,
    pub credential: &'a Credential,
    /// Further startup parameters: settings, `options`, `replication`. Of two with one name the last counts.
    pub parameters: &'a [(String, String)],
}

/// A server connection, ready for its first query.
#[derive(Debug)]
pub struct Connected {
    /// Nothing is unread.
    pub stream: Stream,
    pub pid: i32,
    /// The cancel key.
    pub secret: Vec<u8>,
    /// What the server reported, in its order, each name once.
    pub parameters: Vec<(String, String)>,
    /// NoticeResponse messages of the login, complete with their headers.
    pub notices: Vec<Bytes>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, the name isn't known, or the connection broke: nothing was said about the login.
    #[error("cannot connect: {0}")]
    Unreachable(#[source] io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    /// `server_tls.mode` asks for TLS, and the server has none.
    #[error("the server does not support TLS, but it was required")]
    TlsRefused,
    /// The server's own error; `raw` is the whole ErrorResponse message, to be forwarded as it is.
    #[error("the server said {sqlstate}: {message}")]
    Server { sqlstate: String, message: String, raw: Vec<u8> },
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
}

/// The server asks for what the credential can't answer, or answers wrongly itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("the server asks for {0}, which the router has no answer to")]
    NoAnswer(&'static str),
    #[error(transparent)]
    Scram(#[from] ScramError),
    #[error("the server skipped its own proof in SCRAM")]
    ServerUnproven,
}

/// Connects and logs in. Everything together takes at most `timeout`. Dropping the future closes the connection.
pub async fn connect(target: &Target, login: &Login<'_>, tls: &Connector, timeout: Duration) -> Result<Connected, ConnectError> {
    let work = async {
        let stream = open(target, tls).await?;
        let session = Session { stream, buffer: BytesMut::with_capacity(4096) };
        session.log_in(login).await
    };
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(ConnectError::Timeout(timeout)))
}

/// Sends a cancel request and waits until the server has taken it (it closes the connection).
pub async fn cancel(target: &Target, pid: i32, secret: &[u8], tls: &Connector, timeout: Duration) -> Result<(), ConnectError> {
    let work = async {
        let mut stream = open(target, tls).await?;
        let mut packet = BytesMut::new();
        CancelRequest::new(pid, SecretKey::Bytes(Bytes::copy_from_slice(secret)))
            .encode(&mut packet)
            .map_err(|_| ConnectError::Protocol("a cancel key has 4 to 256 bytes"))?;
        stream.write_all(&packet).await.map_err(ConnectError::Unreachable)?;
        stream.flush().await.map_err(ConnectError::Unreachable)?;
        let mut rest = [0; 64];
        // An end in whatever form means that the postmaster is done with it.
        while matches!(stream.read(&mut rest).await, Ok(count) if count > 0) {}
        Ok(())
    };
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(ConnectError::Timeout(timeout)))
}

/// Connects, and starts TLS as `server_tls.mode` says. Without a deadline of its own.
pub(crate) async fn open(target: &Target, tls: &Connector) -> Result<Stream, ConnectError> {
    if target.host.starts_with('/') {
        let path: PathBuf = format!("{}/.s.PGSQL.{}", target.host, target.port).into();
        return Ok(Stream::unix(UnixStream::connect(path).await.map_err(ConnectError::Unreachable)?));
    }
    let plain = tcp(target).await?;
    match tls.mode() {
        SslMode::Disable => Ok(plain),
        SslMode::Prefer => match start_tls(plain, target, tls).await? {
            Ok(stream) => Ok(stream),
            // libpq's `prefer` tries again without, whatever went wrong in the handshake.
            Err(_) => tcp(target).await,
        },
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => match start_tls(plain, target, tls).await? {
            Ok(stream) if stream.is_tls() => Ok(stream),
            Ok(_) => Err(ConnectError::TlsRefused),
            Err(error) => Err(ConnectError::Tls(error)),
        },
    }
}

async fn tcp(target: &Target) -> Result<Stream, ConnectError> {
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((&*target.host, target.port)).await.map_err(ConnectError::Unreachable)?.collect();
    let stream = TcpStream::connect(addresses.as_slice()).await.map_err(ConnectError::Unreachable)?;
    Stream::tcp_to_server(stream).map_err(ConnectError::Unreachable)
}

/// Asks for TLS. An inner stream without TLS: the server said 'N'. An inner error: the handshake failed.
async fn start_tls(mut stream: Stream, target: &Target, tls: &Connector) -> Result<io::Result<Stream>, ConnectError> {
    let mut request = BytesMut::new();
    SslRequest::new().encode(&mut request).map_err(|_| ConnectError::Protocol("SSLRequest"))?;
    stream.write_all(&request).await.map_err(ConnectError::Unreachable)?;
    // One byte and no more: what a server, or somebody in between, sends before the handshake must not count as encrypted (CVE-2021-23222).
    let mut answer = [0];
    stream.read_exact(&mut answer).await.map_err(ConnectError::Unreachable)?;
    match (answer[0], stream) {
        (b'S', Stream::Tcp(tcp)) => Ok(tls.connect(tcp, &target.host).await),
        (b'N', stream) => Ok(Ok(stream)),
        _ => Err(ConnectError::Protocol("the answer to SSLRequest is neither S nor N")),
    }
}

/// A message of the server, without its header.
struct Received {
    tag: u8,
    body: BytesMut,
}

struct Session {
    stream: Stream,
    buffer: BytesMut,
}

impl Session {
    async fn log_in(mut self, login: &Login<'_>) -> Result<Connected, ConnectError> {
        self.send(&startup_message(login)).await?;
        self.authenticate(login.credential).await?;
        let mut connected = Connected { stream: self.stream, pid: 0, secret: Vec::new(), parameters: Vec::new(), notices: Vec::new() };
        let mut ready = false;
        // A report or notice may follow ReadyForQuery at once (a reload, a shutdown): it is part of what was read, so it is handled here.
        while !ready || !self.buffer.is_empty() {
            let message = receive(&mut connected.stream, &mut self.buffer).await?;
            match message.tag {
                b'S' => report(&mut connected.parameters, &message.body)?,
                b'K' => (connected.pid, connected.secret) = key_data(&message.body)?,
                b'Z' => ready = true,
                b'N' if connected.notices.len() < NOTICES_MAX => connected.notices.push(with_header(&message).into()),
                b'N' | b'A' => {}
                b'E' => return Err(server_error(&message)),
                _ => return Err(ConnectError::Protocol("unexpected message after authentication")),
            }
        }
        Ok(connected)
    }

    async fn send(&mut self, message: &impl Message) -> Result<(), ConnectError> {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes).map_err(|_| ConnectError::Protocol("a message of the login is too large"))?;
        self.stream.write_all(&bytes).await.map_err(ConnectError::Unreachable)?;
        self.stream.flush().await.map_err(ConnectError::Unreachable)
    }

    async fn authenticate(&mut self, credential: &Credential) -> Result<(), ConnectError> {
        loop {
            match self.request().await? {
                Request::Ok => return Ok(()),
                Request::Md5 { salt } => {
                    let Credential::Md5(hash) = credential else {
                        return Err(AuthError::NoAnswer("an md5 password").into());
                    };
                    let response = hash.response(&salt);
                    self.send(&pg::Password::new(response.as_str().to_owned())).await?;
                }
                Request::Sasl { mechanisms } => {
                    let Credential::Scram(keys) = credential else {
                        return Err(AuthError::NoAnswer("SCRAM").into());
                    };
                    self.scram(keys, &mechanisms).await?;
                }
                Request::SaslContinue(_) | Request::SaslFinal(_) => {
                    return Err(ConnectError::Protocol("SASL message outside of an exchange"));
                }
                Request::Other(what) => return Err(AuthError::NoAnswer(what).into()),
            }
        }
    }

    async fn scram(&mut self, keys: &super::secrets::ScramKeys, mechanisms: &[String]) -> Result<(), ConnectError> {
        let offers = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
        let binding = tls::channel_binding(&self.stream).filter(|_| offers(SCRAM_SHA_256_PLUS));
        if binding.is_none() && !offers(SCRAM_SHA_256) {
            return Err(AuthError::NoAnswer("a SASL mechanism other than SCRAM-SHA-256").into());
        }
        let mut exchange = scram::Client::new(keys, binding);
        let first = exchange.first().into_bytes().into();
        self.send(&SASLInitialResponse::new(exchange.mechanism().to_owned(), Some(first))).await?;
        let Request::SaslContinue(server_first) = self.request().await? else {
            return Err(AuthError::ServerUnproven.into());
        };
        let proof = exchange.proof(&server_first).map_err(AuthError::from)?;
        self.send(&SASLResponse::new(proof.into_bytes().into())).await?;
        let Request::SaslFinal(server_final) = self.request().await? else {
            return Err(AuthError::ServerUnproven.into());
        };
        Ok(exchange.verify(&server_final).map_err(AuthError::from)?)
    }

    /// The server's next authentication request.
    async fn request(&mut self) -> Result<Request, ConnectError> {
        loop {
            let message = receive(&mut self.stream, &mut self.buffer).await?;
            match message.tag {
                b'R' => return Request::parse(message.body),
                b'E' => return Err(server_error(&message)),
                // A server older than what we ask for would say so; we ask for 3.0, without options.
                b'N' => {}
                _ => return Err(ConnectError::Protocol("unexpected message before authentication")),
            }
        }
    }
}

/// Notices kept of a login: one for each `log_connections`-like extension is plenty.
const NOTICES_MAX: usize = 16;

/// AuthenticationXxx. Read here, because pgwire's decoder panics on a body that is cut short, and fails as a whole on codes that
/// it doesn't know.
enum Request {
    Ok,
    Md5 { salt: [u8; 4] },
    Sasl { mechanisms: Vec<String> },
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    Other(&'static str),
}

impl Request {
    fn parse(body: BytesMut) -> Result<Request, ConnectError> {
        let mut body = body.freeze();
        if body.len() < 4 {
            return Err(ConnectError::Protocol("short authentication request"));
        }
        Ok(match body.get_u32() {
            0 => Request::Ok,
            3 => Request::Other("a password in clear"),
            5 => Request::Md5 { salt: (&*body).try_into().map_err(|_| ConnectError::Protocol("the md5 salt has 4 bytes"))? },
            7 => Request::Other("GSSAPI"),
            9 => Request::Other("SSPI"),
            10 => Request::Sasl {
                mechanisms: body.split(|byte| *byte == 0).filter_map(|name| String::from_utf8(name.to_vec()).ok()).collect(),
            },
            11 => Request::SaslContinue(body),
            12 => Request::SaslFinal(body),
            _ => Request::Other("an unknown authentication method"),
        })
    }
}

fn startup_message(login: &Login<'_>) -> pg::Startup {
    let mut message = pg::Startup::new();
    for (name, value) in login.parameters {
        message.parameters.insert(name.clone(), value.clone());
    }
    message.parameters.insert("user".into(), login.user.to_owned());
    if !login.database.is_empty() {
        message.parameters.insert("database".into(), login.database.to_owned());
    }
    message
}

/// Reads one message, with whatever the socket has beyond it left in `buffer`.
async fn receive(stream: &mut Stream, buffer: &mut BytesMut) -> Result<Received, ConnectError> {
    loop {
        if let [tag, a, b, c, d, ..] = buffer[..] {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
                return Err(ConnectError::Protocol("invalid message length"));
            }
            if buffer.len() > length {
                let mut body = buffer.split_to(length + 1);
                body.advance(5);
                return Ok(Received { tag, body });
            }
        }
        if stream.read_buf(buffer).await.map_err(ConnectError::Unreachable)? == 0 {
            return Err(ConnectError::Unreachable(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

fn report(parameters: &mut Vec<(String, String)>, body: &[u8]) -> Result<(), ConnectError> {
    let mut strings = body.split(|byte| *byte == 0).map(|string| String::from_utf8_lossy(string).into_owned());
    let (Some(name), Some(value)) = (strings.next(), strings.next()) else {
        return Err(ConnectError::Protocol("malformed ParameterStatus"));
    };
    if let Some((_, known)) = parameters.iter_mut().find(|(known, _)| *known == name) {
        *known = value;
    } else if parameters.len() == PARAMETERS_MAX {
        return Err(ConnectError::Protocol("too many parameters reported"));
    } else {
        parameters.push((name, value));
    }
    Ok(())
}

fn key_data(body: &[u8]) -> Result<(i32, Vec<u8>), ConnectError> {
    match body.split_first_chunk::<4>() {
        Some((pid, secret)) if (4..=256).contains(&secret.len()) => Ok((i32::from_be_bytes(*pid), secret.to_vec())),
        _ => Err(ConnectError::Protocol("malformed BackendKeyData")),
    }
}

fn with_header(message: &Received) -> Vec<u8> {
    let length = u32::try_from(message.body.len() + 4).unwrap_or(u32::MAX);
    [&[message.tag][..], &length.to_be_bytes(), &message.body].concat()
}

fn server_error(message: &Received) -> ConnectError {
    let field = |kind: u8| {
        let text = message.body[..].split(|byte| *byte == 0).find_map(|field| field.strip_prefix(&[kind]));
        text.map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
    };
    ConnectError::Server { sqlstate: field(b'C'), message: field(b'M'), raw: with_header(message) }
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
