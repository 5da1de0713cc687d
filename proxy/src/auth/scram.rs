//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides of it, without sockets.
//!
//! The server side learns the ClientKey from the client's proof; the client side proves itself with such a key instead of a
//! password. Source: RFC 5802, RFC 7677, PostgreSQL `src/backend/libpq/auth-scram.c` for the errors.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use switchyard_core::refusal::Refusal;

use super::secrets::{KEY_BYTES, Key, ScramKeys, ScramVerifier};

pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The only channel binding that PostgreSQL and libpq know.
const BINDING_TYPE: &str = "tls-server-end-point";
/// PostgreSQL's `SCRAM_RAW_NONCE_LEN`: bytes of randomness in a nonce, before base64.
const NONCE_BYTES: usize = 18;
/// PostgreSQL's `SCRAM_SHA_256_DEFAULT_ITERATIONS`, for users who don't exist.
const MOCK_ITERATIONS: u32 = 4096;
/// PostgreSQL's `SCRAM_DEFAULT_SALT_LEN`, in bytes.
const SALT_BYTES: usize = 16;

/// A verifier for somebody who can't log in: nobody's proof fits it, and its salt is always the same for the same name, so that
/// the exchange doesn't tell who exists (`mock_scram_secret`).
pub fn mock_verifier(secret: &Key, user: &str) -> ScramVerifier {
    let mut salt = secret.hmac(&[b"salt", user.as_bytes()]).to_vec();
    salt.truncate(SALT_BYTES);
    ScramVerifier {
        iterations: MOCK_ITERATIONS,
        salt,
        // Preimages of these aren't known to anybody, and `Server::doomed` refuses them all the same.
        stored_key: Key::new(secret.hmac(&[b"stored", user.as_bytes()])),
        server_key: Key::new(secret.hmac(&[b"server", user.as_bytes()])),
    }
}

pub(crate) fn nonce() -> String {
    BASE64.encode(rand::random::<[u8; NONCE_BYTES]>())
}

/// The server's side of one exchange.
#[derive(Debug)]
pub struct Server {
    verifier: ScramVerifier,
    doomed: bool,
    /// `tls-server-end-point` of this connection, if it has one: PLUS was offered.
    binding: Option<Arc<[u8]>>,
    nonce: String,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    plus: bool,
    /// What `c=` must be: the client's GS2 header and, under PLUS, the binding.
    expected_binding: String,
    client_first_bare: String,
    server_first: String,
    full_nonce: String,
}

/// How an exchange ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The proof was right: the message to send, and the keys that it gave.
    Proven {
        server_final: String,
        keys: ScramKeys,
    },
    Failed,
}

impl Server {
    /// `doomed`: goes through the exchange, and fails whatever the proof.
    pub fn new(verifier: ScramVerifier, doomed: bool, binding: Option<Arc<[u8]>>) -> Server {
        Server::with_nonce(verifier, doomed, binding, nonce())
    }

    fn with_nonce(verifier: ScramVerifier, doomed: bool, binding: Option<Arc<[u8]>>, nonce: String) -> Server {
        Server { verifier, doomed, binding, nonce, begun: None }
    }

    /// Offered mechanisms, in the order of preference.
    pub fn mechanisms(&self) -> Vec<String> {
        let plus = self.binding.as_ref().map(|_| SCRAM_SHA_256_PLUS.to_owned());
        plus.into_iter().chain([SCRAM_SHA_256.to_owned()]).collect()
    }

    /// Reads client-first-message, returns server-first-message.
    pub fn first(&mut self, plus: bool, message: &[u8]) -> Result<String, Refusal> {
        let message = text(message)?;
        let (header, bare) = self.gs2_header(plus, message)?;
        let mut attributes = bare.split(',');
        let user = attributes.next().unwrap_or_default();
        if user.starts_with("m=") {
            return Err(Refusal::SaslUnsupported { message: "client requires an unsupported SCRAM extension" });
        }
        // The name in here is ignored, as in PostgreSQL: the startup packet's counts.
        if !user.starts_with("n=") {
            return malformed("Expected attribute \"n\".");
        }
        let Some(client_nonce) = attributes.next().and_then(|attribute| attribute.strip_prefix("r=")) else {
            return malformed("Expected attribute \"r\".");
        };
        if client_nonce.is_empty() || !client_nonce.bytes().all(|byte| matches!(byte, 0x21..=0x7e)) {
            return malformed("Non-printable characters in SCRAM nonce.");
        }
        let expected_binding = match (&self.binding, plus) {
            (Some(data), true) => BASE64.encode([header.as_bytes(), data].concat()),
            _ => BASE64.encode(header),
        };
        let full_nonce = format!("{client_nonce}{}", self.nonce);
        let server_first = format!("r={full_nonce},s={},i={}", BASE64.encode(&self.verifier.salt), self.verifier.iterations);
        self.begun =
            Some(Begun { plus, expected_binding, client_first_bare: bare.to_owned(), server_first: server_first.clone(), full_nonce });
        Ok(server_first)
    }

    /// Splits off the GS2 header: channel-binding flag, authorization identity, and their commas.
    fn gs2_header<'m>(&self, plus: bool, message: &'m str) -> Result<(&'m str, &'m str), Refusal> {
        let Some((flag, rest)) = message.split_once(',') else {
            return malformed("Expected a comma after the channel-binding flag.");
        };
        match flag {
            "n" | "y" if plus => {
                return malformed("The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.");
            }
            "y" if self.binding.is_some() => return Err(Refusal::SaslBindingDowngrade),
            "n" | "y" => {}
            _ => match flag.strip_prefix("p=") {
                None => return malformed("Unexpected channel-binding flag."),
                Some(_) if !plus => {
                    return malformed(
                        "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.",
                    );
                }
                Some(BINDING_TYPE) => {}
                Some(_) => return malformed("Unsupported SCRAM channel-binding type."),
            },
        }
        let Some((identity, bare)) = rest.split_once(',') else {
            return malformed("Expected a comma after the authorization identity.");
        };
        if identity.starts_with("a=") {
            return Err(Refusal::SaslUnsupported { message: "client uses authorization identity, but it is not supported" });
        }
        if !identity.is_empty() {
            return malformed("Unexpected attribute in client-first-message.");
        }
        Ok((&message[..message.len() - bare.len()], bare))
    }

    /// Reads client-final-message.
    pub fn finish(self, message: &[u8]) -> Result<Verdict, Refusal> {
        let Some(begun) = self.begun else {
            return malformed("Unexpected SCRAM message.");
        };
        let message = text(message)?;
        let Some((without_proof, proof)) = message.rsplit_once(",p=") else {
            return malformed("Expected attribute \"p\".");
        };
        let mut attributes = without_proof.split(',');
        let Some(binding) = attributes.next().and_then(|attribute| attribute.strip_prefix("c=")) else {
            return malformed("Expected attribute \"c\".");
        };
        if binding != begun.expected_binding {
            // PostgreSQL's words for a wrong binding; a wrong header without one is malformed.
            return match &self.binding {
                Some(_) if begun.plus => Err(Refusal::SaslBindingMismatch),
                _ => malformed("Unexpected SCRAM channel-binding attribute in client-final-message."),
            };
        }
        match attributes.next().and_then(|attribute| attribute.strip_prefix("r=")) {
            None => return malformed("Expected attribute \"r\"."),
            Some(nonce) if nonce != begun.full_nonce => {
                return Err(Refusal::SaslInvalid { detail: "Nonce does not match." });
            }
            Some(_) => {}
        }
        let Some(proof) = BASE64.decode(proof).ok().and_then(|bytes| Key::from_slice(&bytes)) else {
            return malformed("Malformed proof in client-final-message.");
        };
        let auth_message = [begun.client_first_bare.as_bytes(), b",", begun.server_first.as_bytes(), b",", without_proof.as_bytes()];
        // ClientKey = ClientProof XOR HMAC(StoredKey, AuthMessage); it is right if its hash is the StoredKey.
        let client_key = proof.xor(&self.verifier.stored_key.hmac(&auth_message));
        let right = client_key.hash() == self.verifier.stored_key;
        if !right || self.doomed {
            return Ok(Verdict::Failed);
        }
        let server_final = format!("v={}", BASE64.encode(self.verifier.server_key.hmac(&auth_message)));
        let ScramVerifier { iterations, salt, server_key, .. } = self.verifier;
        Ok(Verdict::Proven { server_final, keys: ScramKeys { client_key, server_key, salt, iterations } })
    }
}

fn text(message: &[u8]) -> Result<&str, Refusal> {
    match std::str::from_utf8(message) {
        Ok(text) if !text.is_empty() => Ok(text),
        Ok(_) => malformed("The message is empty."),
        Err(_) => malformed("The message is not valid UTF-8."),
    }
}

fn malformed<T>(detail: &'static str) -> Result<T, Refusal> {
    Err(Refusal::SaslMalformed { detail })
}

/// What a server did wrong, or what doesn't fit it, as seen by [`Client`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("the server's SCRAM message is malformed")]
    Malformed,
    #[error("the server didn't continue the client's nonce")]
    Nonce,
    /// This server has another verifier for the user: the password was changed, here or not yet there. Like a server's own 28P01.
    #[error("the key belongs to another verifier than the server's")]
    OtherVerifier,
    #[error("the server refused the SCRAM proof")]
    Refused,
    /// Somebody who doesn't know the verifier answers in the server's place.
    #[error("the server's signature is wrong")]
    ServerSignature,
}

/// The client's side of one exchange, with a key in place of a password.
#[derive(Debug)]
pub struct Client<'k> {
    keys: &'k ScramKeys,
    gs2_header: &'static str,
    binding: Option<Arc<[u8]>>,
    nonce: String,
    server_signature: Option<[u8; KEY_BYTES]>,
}

impl<'k> Client<'k> {
    /// `binding`: the connection's `tls-server-end-point`, to use SCRAM-SHA-256-PLUS.
    pub fn new(keys: &'k ScramKeys, binding: Option<Arc<[u8]>>) -> Client<'k> {
        Client::with_nonce(keys, binding, nonce())
    }

    fn with_nonce(keys: &'k ScramKeys, binding: Option<Arc<[u8]>>, nonce: String) -> Client<'k> {
        // 'n', not 'y': some certificates have no binding, and then 'y' would look like a downgrade to the server.
        let gs2_header = if binding.is_some() { "p=tls-server-end-point,," } else { "n,," };
        Client { keys, gs2_header, binding, nonce, server_signature: None }
    }

    /// The mechanism that this exchange uses.
    pub fn mechanism(&self) -> &'static str {
        if self.binding.is_some() { SCRAM_SHA_256_PLUS } else { SCRAM_SHA_256 }
    }

    pub fn first(&self) -> String {
        format!("{}{}", self.gs2_header, self.first_bare())
    }

    /// The name is empty, as libpq's: the startup packet has it.
    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Reads server-first-message, returns client-final-message.
    pub fn proof(&mut self, server_first: &[u8]) -> Result<String, ScramError> {
        let server_first = std::str::from_utf8(server_first).map_err(|_| ScramError::Malformed)?;
        let mut attributes = server_first.split(',');
        let mut attribute = |name: &str| attributes.next().and_then(|attribute| attribute.strip_prefix(name)).ok_or(ScramError::Malformed);
        let full_nonce = attribute("r=")?;
        let salt = BASE64.decode(attribute("s=")?).map_err(|_| ScramError::Malformed)?;
        let iterations: u32 = attribute("i=")?.parse().map_err(|_| ScramError::Malformed)?;
        if full_nonce.len() <= self.nonce.len() || !full_nonce.starts_with(&self.nonce) {
            return Err(ScramError::Nonce);
        }
        if salt != self.keys.salt || iterations != self.keys.iterations {
            return Err(ScramError::OtherVerifier);
        }
        let binding = BASE64.encode([self.gs2_header.as_bytes(), self.binding.as_deref().unwrap_or_default()].concat());
        let without_proof = format!("c={binding},r={full_nonce}");
        let first_bare = self.first_bare();
        let auth_message = [first_bare.as_bytes(), b",", server_first.as_bytes(), b",", without_proof.as_bytes()];
        let proof = self.keys.client_key.xor(&self.keys.client_key.hash().hmac(&auth_message));
        self.server_signature = Some(self.keys.server_key.hmac(&auth_message));
        Ok(format!("{without_proof},p={}", BASE64.encode(proof.as_bytes())))
    }

    /// Reads server-final-message: whether the server knows the verifier too.
    pub fn verify(self, server_final: &[u8]) -> Result<(), ScramError> {
        let message = std::str::from_utf8(server_final).map_err(|_| ScramError::Malformed)?;
        if message.starts_with("e=") {
            return Err(ScramError::Refused);
        }
        let signature = message.strip_prefix("v=").and_then(|text| text.split(',').next()).ok_or(ScramError::Malformed)?;
        let signature = BASE64.decode(signature).ok().and_then(|bytes| Key::from_slice(&bytes)).ok_or(ScramError::Malformed)?;
        match self.server_signature {
            Some(expected) if Key::new(expected) == signature => Ok(()),
            _ => Err(ScramError::ServerSignature),
        }
    }
}

#[cfg(test)]
#[path = "scram_tests.rs"]
mod tests;
