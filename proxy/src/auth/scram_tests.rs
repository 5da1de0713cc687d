use sha2::Sha256;

use super::*;
use crate::auth::secrets::Verifier;

const CLIENT_NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";

/// Keys of a password, as RFC 5802 section 3 derives them.
fn keys(password: &str, salt: &[u8], iterations: u32) -> ScramKeys {
    let salted = Key::new(pbkdf2::pbkdf2_hmac_array::<Sha256, KEY_BYTES>(password.as_bytes(), salt, iterations));
    ScramKeys {
        client_key: Key::new(salted.hmac(&[b"Client Key"])),
        server_key: Key::new(salted.hmac(&[b"Server Key"])),
        salt: salt.to_vec(),
        iterations,
    }
}

fn verifier(keys: &ScramKeys) -> ScramVerifier {
    ScramVerifier {
        iterations: keys.iterations,
        salt: keys.salt.clone(),
        stored_key: keys.client_key.hash(),
        server_key: keys.server_key.clone(),
    }
}

fn pencil() -> ScramKeys {
    keys("pencil", &BASE64.decode(SALT).unwrap_or_default(), 4096)
}

fn server(binding: Option<&[u8]>) -> Server {
    Server::with_nonce(verifier(&pencil()), false, binding.map(Arc::from), SERVER_NONCE.to_owned())
}

/// RFC 7677, section 3.
#[test]
fn the_rfcs_exchange_gives_the_client_key() {
    let mut server = server(None);
    let first = server.first(false, format!("n,,n=user,r={CLIENT_NONCE}").as_bytes());
    assert_eq!(first, Ok(format!("r={CLIENT_NONCE}{SERVER_NONCE},s={SALT},i=4096")));
    let last = format!("c=biws,r={CLIENT_NONCE}{SERVER_NONCE},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    assert_eq!(
        server.finish(last.as_bytes()),
        Ok(Verdict::Proven { server_final: "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=".into(), keys: pencil() })
    );
}

fn exchange(server: Server, client: Client<'_>) -> Result<Verdict, Refusal> {
    let (mut server, mut client) = (server, client);
    let plus = client.mechanism() == SCRAM_SHA_256_PLUS;
    let first = server.first(plus, client.first().as_bytes())?;
    let proof = client.proof(first.as_bytes()).map_err(|_| Refusal::Internal { detail: "proof".into() })?;
    let verdict = server.finish(proof.as_bytes())?;
    if let Verdict::Proven { server_final, .. } = &verdict {
        assert_eq!(client.verify(server_final.as_bytes()), Ok(()));
    }
    Ok(verdict)
}

#[test]
fn a_key_that_a_client_proved_logs_in_elsewhere() {
    let keys = pencil();
    for binding in [None, Some(&b"hash of a certificate"[..])] {
        let verdict = exchange(server(binding), Client::new(&keys, binding.map(Arc::from)));
        assert!(matches!(verdict, Ok(Verdict::Proven { keys: proven, .. }) if proven == keys));
    }
}

#[test]
fn another_certificate_is_a_man_in_the_middle() {
    let keys = pencil();
    let verdict = exchange(server(Some(b"ours")), Client::new(&keys, Some(Arc::from(&b"theirs"[..]))));
    assert_eq!(verdict, Err(Refusal::SaslBindingMismatch));
}

#[test]
fn wrong_keys_and_doomed_exchanges_fail_alike() {
    let right = pencil();
    let wrong = ScramKeys { client_key: Key::new([7; 32]), ..right.clone() };
    assert_eq!(exchange(server(None), Client::new(&wrong, None)), Ok(Verdict::Failed));
    let doomed = Server::new(verifier(&right), true, None);
    assert_eq!(exchange(doomed, Client::new(&right, None)), Ok(Verdict::Failed));
}

#[test]
fn a_client_trusts_only_who_knows_the_verifier() {
    let keys = pencil();
    let mut client = Client::with_nonce(&keys, None, CLIENT_NONCE.to_owned());
    assert_eq!(client.proof(b"r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"), Err(ScramError::Nonce));
    assert_eq!(client.proof(format!("r={CLIENT_NONCE},s={SALT},i=4096").as_bytes()), Err(ScramError::Nonce), "no nonce of its own");
    assert_eq!(client.proof(format!("r={CLIENT_NONCE}x,s=AAAA,i=4096").as_bytes()), Err(ScramError::OtherVerifier));
    assert_eq!(client.proof(format!("r={CLIENT_NONCE}x,s={SALT},i=1").as_bytes()), Err(ScramError::OtherVerifier));
    for malformed in ["", "r=", "e=x", "r=a,s=?,i=1", "r=a,s=AAAA,i=x"] {
        assert!(client.proof(malformed.as_bytes()).is_err(), "{malformed}");
    }
    assert!(client.proof(format!("r={CLIENT_NONCE}x,s={SALT},i=4096").as_bytes()).is_ok());
    let forged = format!("v={}", BASE64.encode([0; 32]));
    assert_eq!(client.verify(forged.as_bytes()), Err(ScramError::ServerSignature));
    assert_eq!(Client::new(&keys, None).verify(forged.as_bytes()), Err(ScramError::ServerSignature), "before any proof");
}

#[test]
fn malformed_first_messages_get_postgresqls_errors() {
    let cases: &[(&str, bool, &str)] = &[
        ("", false, "08P01"),
        ("n", false, "08P01"),
        ("n,", false, "08P01"),
        ("n,,", false, "08P01"),
        ("n,,n=x", false, "08P01"),
        ("n,,n=x,r=", false, "08P01"),
        ("n,,n=x,r=a\u{7f}", false, "08P01"),
        ("n,a=root,n=x,r=abc", false, "0A000"),
        ("n,,m=x,r=abc", false, "0A000"),
        ("n,,n=x,r=abc", true, "08P01"),
        ("y,,n=x,r=abc", false, "28000"),
        ("p=tls-unique,,n=x,r=abc", true, "08P01"),
        ("p=tls-server-end-point,,n=x,r=abc", false, "08P01"),
        ("z,,n=x,r=abc", false, "08P01"),
    ];
    for (message, plus, code) in cases {
        let result = server(Some(b"hash")).first(*plus, message.as_bytes());
        assert_eq!(result.map_err(|refusal| refusal.wording().sqlstate), Err(*code), "{message}");
    }
    assert!(server(None).first(false, b"y,,n=x,r=abc").is_ok(), "without TLS 'y' is no downgrade");
    assert!(server(None).first(false, b"n,,n=x,r=\xff").is_err());
}

#[test]
fn malformed_final_messages_get_postgresqls_errors() {
    let finish = |message: &str| {
        let mut server = server(None);
        assert!(server.first(false, format!("n,,n=user,r={CLIENT_NONCE}").as_bytes()).is_ok());
        server.finish(message.as_bytes())
    };
    let proof = BASE64.encode([0; 32]);
    let nonce = format!("{CLIENT_NONCE}{SERVER_NONCE}");
    assert_eq!(finish(&format!("c=biws,r={nonce},p={proof}")), Ok(Verdict::Failed));
    assert_eq!(finish(&format!("c=biws,r={nonce},x=extension,p={proof}")), Ok(Verdict::Failed));
    assert_eq!(finish(&format!("c=biws,r={nonce}x,p={proof}")), Err(Refusal::SaslInvalid { detail: "Nonce does not match." }));
    for bad in ["", "c=biws", &format!("c=biws,r={nonce}"), &format!("c=biws,r={nonce},p=AAAA"), &format!("c=eSws,r={nonce},p={proof}")] {
        assert!(matches!(finish(bad), Err(Refusal::SaslMalformed { .. })), "{bad}");
    }
    assert!(server(None).finish(b"c=biws,r=x,p=AAAA").is_err(), "final before first");
}

#[test]
fn a_mock_verifier_is_the_same_for_a_name_and_unlike_others() {
    let secret = Key::new([1; 32]);
    assert_eq!(mock_verifier(&secret, "ann"), mock_verifier(&secret, "ann"));
    assert_ne!(mock_verifier(&secret, "ann").salt, mock_verifier(&secret, "bob").salt);
    assert_ne!(mock_verifier(&secret, "ann").salt, mock_verifier(&Key::new([2; 32]), "ann").salt);
    assert_eq!(mock_verifier(&secret, "ann").salt.len(), SALT_BYTES);
}

#[test]
fn verifiers_are_read_as_postgresql_writes_them() {
    let text = format!("SCRAM-SHA-256$4096:{SALT}${}:{}", BASE64.encode([1; 32]), BASE64.encode([2; 32]));
    let Some(Verifier::Scram(scram)) = Verifier::parse(&text) else { panic!("{text}") };
    assert_eq!((scram.iterations, scram.stored_key, scram.server_key), (4096, Key::new([1; 32]), Key::new([2; 32])));
    assert!(matches!(Verifier::parse("md5aabbccddeeff00112233445566778899"), Some(Verifier::Md5(_))));
    for bad in [
        "",
        "md5",
        "md5xabbccddeeff00112233445566778899",
        "secret",
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$1:AA==$AA==:AA==",
        &text.replace("4096", "0"),
        &text.replace("4096", "-1"),
        &text.replace("4096", "99999999999"),
        &text[..text.len() - 4],
    ] {
        assert_eq!(Verifier::parse(bad), None, "{bad}");
    }
    assert!(!format!("{:?}", Verifier::parse(&text)).contains("AQEB"), "keys aren't printed");
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(first in proptest::collection::vec(proptest::num::u8::ANY, 0..80), last in "[cprn=,a-zA-Z0-9+/]{0,80}") {
        let new = |binding: Option<&[u8]>| Server::new(verifier(&pencil_once()), false, binding.map(Arc::from));
        let mut with_binding = new(Some(b"hash"));
        let _ = with_binding.first(true, &first);
        let mut plain = new(None);
        let _ = plain.first(false, b"n,,n=,r=abc");
        let _ = plain.finish(last.as_bytes());
        let keys = pencil_once();
        let mut client = Client::new(&keys, None);
        let _ = client.proof(&first);
        let _ = client.verify(last.as_bytes());
    }
}

/// Without the 4,096 rounds of [`pencil`], for tests that run many times.
fn pencil_once() -> ScramKeys {
    keys("pencil", b"salt", 1)
}
