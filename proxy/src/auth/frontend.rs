//! Checks that a client is who it says, as PostgreSQL does it, with PostgreSQL's words in PostgreSQL's order.
//!
//! Invariant: an [`Identity`] exists only after AuthenticationOk was sent and role and database let the client in. Nothing is read past
//! the client's last authentication message. Source: PostgreSQL `src/backend/libpq/auth.c` (`ClientAuthentication`,
//! `CheckPWChallengeAuth`, `auth_failed`), then `src/backend/utils/init/postinit.c` (`InitPostgres`: role, then database).
//!
//! What is authored is encoded by pgwire. What a client sends is read here: pgwire 0.42's decoders index into a body that is cut short.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::startup::{Authentication, NegotiateProtocolVersion};
use subtle::ConstantTimeEq;
use switchyard_config::{AuthMethod, AuthRule, ServerAuthMethod, ServerAuthRule};
use switchyard_core::refusal::Refusal;
use switchyard_core::wire::startup::{Replication, Startup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

use super::facts::{Facts, LoginFacts, Reading, RoleFacts, Standing, Unreachable};
use super::rules::{self, Applicant};
use super::scram::{self, SCRAM_SHA_256_PLUS, Verdict};
use super::secrets::{Credential, Key, Md5Hash, Verifier};
use crate::door::{Peer, say_goodbye};
use crate::stream::Stream;
use crate::tls;

/// PostgreSQL's `PG_MAX_SASL_MESSAGE_LENGTH`, which holds for the router's md5 responses too, in bytes.
const RESPONSE_BYTES_MAX: usize = 1024;

/// Who has logged in.
#[derive(Clone, Debug)]
pub struct Identity {
    pub user: Arc<str>,
    /// Empty for physical replication.
    pub database: Arc<str>,
    /// How to log in to servers as this user.
    pub credential: Arc<Credential>,
    /// Which connections to servers are alike for this login, and when that was read.
    pub standing: Standing,
    pub read: Reading,
    /// The first reading that found this standing, of those without another one between; its own, until pools tell
    /// otherwise.
    pub edition: u64,
    /// What the client sets in its startup packet, `options` first, in the order in which PostgreSQL applies it.
    pub settings: Vec<(String, String)>,
}

/// No login.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The client was told, and the connection was shut down.
    #[error("{}", .0.wording().message)]
    Refused(Refusal),
    /// The client closed the connection: often psql, which then asks for a password and comes back.
    #[error("the client left during authentication")]
    Gone,
    /// Closed without a word, as PostgreSQL does.
    #[error("{0}")]
    Closed(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Refusal> for LoginError {
    fn from(refusal: Refusal) -> LoginError {
        LoginError::Refused(refusal)
    }
}

/// Who may come in, and how they show it.
#[derive(Debug)]
pub struct Gate {
    rules: Vec<AuthRule>,
    server_rules: Vec<ServerAuthRule>,
    /// TCP clients must use TLS.
    require_tls: bool,
    facts: LoginFacts,
    /// Makes the salts of users who don't exist; as long-lived as the process.
    mock_secret: Key,
}

impl Gate {
    pub fn new(rules: Vec<AuthRule>, server_rules: Vec<ServerAuthRule>, require_tls: bool, facts: LoginFacts) -> Gate {
        Gate { rules, server_rules, require_tls, facts, mock_secret: Key::new(rand::random()) }
    }

    /// The same gate under new rules; users who don't exist keep their salts.
    pub fn with_rules(&self, rules: Vec<AuthRule>, server_rules: Vec<ServerAuthRule>, require_tls: bool) -> Gate {
        Gate { rules, server_rules, require_tls, facts: self.facts.clone(), mock_secret: self.mock_secret.clone() }
    }

    /// Goes through the login that follows a startup packet. The caller sets the deadline, and sends [`Refusal::LoginTimeout`] past it.
    pub async fn authenticate(&self, stream: &mut Stream, startup: &Startup, peer: &Peer) -> Result<Identity, LoginError> {
        let result = self.log_in(stream, startup, peer).await;
        if let Err(LoginError::Refused(refusal)) = &result {
            say_goodbye(stream, refusal).await;
        }
        result
    }

    async fn log_in(&self, stream: &mut Stream, startup: &Startup, peer: &Peer) -> Result<Identity, LoginError> {
        if startup.must_negotiate() {
            let newest = 3 << 16 | i32::from(startup.minor);
            send(stream, &[&NegotiateProtocolVersion::new(newest, startup.protocol_options.clone())]).await?;
        }
        let user = startup.user.as_str();
        let method = self.method(stream, startup, peer)?;
        if method == AuthMethod::Reject {
            return Err(rejected(stream, startup, peer).into());
        }
        let facts = self.facts.ask(user, &startup.database).await.map_err(|Unreachable| Refusal::VerifiersUnreachable)?;
        let role = facts.role.as_ref();
        let mut dialogue = Dialogue { stream, user };
        let key = match method {
            AuthMethod::ScramSha256 | AuthMethod::Md5 => Some(self.password(&mut dialogue, role).await?),
            AuthMethod::Trust | AuthMethod::Reject => None,
            AuthMethod::Cert => {
                if tls::common_name(dialogue.stream).as_deref() != Some(user) {
                    return Err(Refusal::CertificateFailed { user: user.to_owned() }.into());
                }
                None
            }
        };
        // The password exchange ends with SASLFinal, which is sent together with this.
        dialogue.finish(key.as_ref().and_then(|proven| proven.server_final.as_deref())).await?;
        let role = admit(startup, &facts)?;
        let credential = match key {
            Some(proven) => proven.credential,
            None => self.keyless(startup, role)?,
        };
        Ok(Identity {
            user: user.into(),
            database: startup.database.as_str().into(),
            credential: Arc::new(credential),
            standing: facts.standing,
            read: facts.read,
            edition: facts.read.turn,
            settings: startup.settings()?,
        })
    }

    fn method(&self, stream: &Stream, startup: &Startup, peer: &Peer) -> Result<AuthMethod, Refusal> {
        let applicant = Applicant {
            user: &startup.user,
            database: &startup.database,
            replication: startup.replication,
            address: peer.address.map(|address| address.ip()),
            tls: stream.is_tls(),
        };
        if self.require_tls && !stream.is_tls() && !stream.is_unix() {
            return Err(rejected(stream, startup, peer));
        }
        rules::method(&self.rules, &applicant).ok_or_else(|| rejected(stream, startup, peer))
    }

    /// As `CheckPWChallengeAuth`: the stored verifier decides between md5 and SCRAM, and who has none gets a SCRAM exchange that can't
    /// succeed. An expired password is none.
    async fn password(&self, dialogue: &mut Dialogue<'_>, role: Option<&RoleFacts>) -> Result<Proven, LoginError> {
        let verifier = role.and_then(|role| role.verifier.as_ref().filter(|_| !role.expired));
        match verifier {
            Some(Verifier::Md5(hash)) => dialogue.md5(hash).await,
            Some(Verifier::Scram(verifier)) => dialogue.scram(verifier.clone(), false).await,
            None => {
                let why = match role {
                    None => "the role does not exist",
                    Some(role) if role.expired => "the password has expired",
                    Some(_) => "the role has no password",
                };
                tracing::info!(user = dialogue.user, why, "login will fail");
                dialogue.scram(scram::mock_verifier(&self.mock_secret, dialogue.user), true).await
            }
        }
    }

    /// For clients that came by trust or certificate.
    fn keyless(&self, startup: &Startup, role: &RoleFacts) -> Result<Credential, Refusal> {
        match rules::server_method(&self.server_rules, &startup.user, &startup.database) {
            Some(ServerAuthMethod::Trust) => Ok(Credential::Trust),
            Some(ServerAuthMethod::Cert) => Ok(Credential::Cert),
            None => match &role.verifier {
                // An md5 hash is all that an md5 exchange needs.
                Some(Verifier::Md5(hash)) => Ok(Credential::Md5(hash.clone())),
                Some(Verifier::Scram(_)) | None => Err(Refusal::NoServerKey { user: startup.user.clone() }),
            },
        }
    }
}

/// Role, then database, as `InitPostgres` looks at them after authentication.
fn admit<'f>(startup: &Startup, facts: &'f Facts) -> Result<&'f RoleFacts, Refusal> {
    let role = facts.role.as_ref().ok_or_else(|| Refusal::UnknownRole { user: startup.user.clone() })?;
    if !role.can_login {
        return Err(Refusal::NoLogin { user: startup.user.clone() });
    }
    // Up to how many is the servers' business; none at all is clear from here.
    if role.connection_limit == 0 && !role.is_superuser {
        return Err(Refusal::TooManyForRole { user: startup.user.clone() });
    }
    if startup.replication == Replication::Physical {
        return Ok(role);
    }
    let name = || startup.database.clone();
    match facts.database {
        None => Err(Refusal::UnknownDatabase { database: name() }),
        Some(database) if !database.accepts_connections => Err(Refusal::DatabaseNotAccepting { database: name() }),
        Some(database) if !database.may_connect => Err(Refusal::NoConnectPrivilege { database: name() }),
        Some(database) if database.connection_limit == 0 && !role.is_superuser => Err(Refusal::TooManyForDatabase { database: name() }),
        Some(_) => Ok(role),
    }
}

fn rejected(stream: &Stream, startup: &Startup, peer: &Peer) -> Refusal {
    Refusal::RejectedByRule { address: peer.host(), user: startup.user.clone(), database: startup.database.clone(), tls: stream.is_tls() }
}

/// What a password exchange gave.
struct Proven {
    credential: Credential,
    /// SASLFinal's data, still to be sent.
    server_final: Option<String>,
}

/// Authentication messages, back and forth.
struct Dialogue<'a> {
    stream: &'a mut Stream,
    user: &'a str,
}

impl Dialogue<'_> {
    async fn md5(&mut self, hash: &Md5Hash) -> Result<Proven, LoginError> {
        let salt: [u8; 4] = rand::random();
        send(self.stream, &[&Authentication::MD5Password(salt.to_vec())]).await?;
        let response = self.response("password").await?;
        let Some((0, given)) = response.split_last() else {
            return Err(Refusal::BadStartup { detail: "invalid password packet size".into() }.into());
        };
        if given.is_empty() {
            return Err(Refusal::EmptyPassword.into());
        }
        if !bool::from(given.ct_eq(hash.response(&salt).as_bytes())) {
            return Err(self.failed());
        }
        Ok(Proven { credential: Credential::Md5(hash.clone()), server_final: None })
    }

    async fn scram(&mut self, verifier: super::secrets::ScramVerifier, doomed: bool) -> Result<Proven, LoginError> {
        let mut exchange = scram::Server::new(verifier, doomed, tls::channel_binding(self.stream));
        let mechanisms = exchange.mechanisms();
        send(self.stream, &[&Authentication::SASL(mechanisms.clone())]).await?;
        let initial = self.response("SASL").await?;
        let (mechanism, first) = initial_response(&initial)?;
        if !mechanisms.iter().any(|offered| offered.as_bytes() == mechanism) {
            return Err(Refusal::BadStartup { detail: "client selected an invalid SASL authentication mechanism".into() }.into());
        }
        let plus = mechanism == SCRAM_SHA_256_PLUS.as_bytes();
        let first = match first {
            Some(first) => first.to_vec(),
            // A client may select the mechanism alone; it is then asked with an empty challenge.
            None => {
                send(self.stream, &[&Authentication::SASLContinue(Default::default())]).await?;
                self.response("SASL").await?.to_vec()
            }
        };
        let server_first = exchange.first(plus, &first)?;
        send(self.stream, &[&Authentication::SASLContinue(server_first.into())]).await?;
        let last = self.response("SASL").await?;
        match exchange.finish(&last)? {
            Verdict::Proven { server_final, keys } => Ok(Proven { credential: Credential::Scram(keys), server_final: Some(server_final) }),
            Verdict::Failed => Err(self.failed()),
        }
    }

    async fn finish(&mut self, server_final: Option<&str>) -> io::Result<()> {
        match server_final {
            Some(text) => send(self.stream, &[&Authentication::SASLFinal(text.to_owned().into()), &Authentication::Ok]).await,
            None => send(self.stream, &[&Authentication::Ok]).await,
        }
    }

    fn failed(&self) -> LoginError {
        Refusal::PasswordFailed { user: self.user.to_owned() }.into()
    }

    /// The body of the client's next message, which must be of type 'p'. Reads that message and no more.
    async fn response(&mut self, expected: &'static str) -> Result<Zeroizing<Vec<u8>>, LoginError> {
        let mut header = [0; 5];
        if self.stream.read(&mut header[..1]).await? == 0 {
            return Err(LoginError::Gone);
        }
        if header[0] != b'p' {
            return Err(Refusal::ExpectedAuthMessage { expected, got: header[0] }.into());
        }
        self.exactly(&mut header[1..]).await?;
        let [_, length @ ..] = header;
        let length = (u32::from_be_bytes(length) as usize).checked_sub(4).filter(|length| *length <= RESPONSE_BYTES_MAX);
        let length = length.ok_or(LoginError::Closed("invalid length of authentication message"))?;
        let mut body = Zeroizing::new(vec![0; length]);
        self.exactly(&mut body).await?;
        Ok(body)
    }

    async fn exactly(&mut self, buffer: &mut [u8]) -> Result<(), LoginError> {
        match self.stream.read_exact(buffer).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(LoginError::Closed("incomplete authentication message")),
            Err(error) => Err(error.into()),
        }
    }
}

/// SASLInitialResponse: the mechanism, and the client's first message if it came along.
fn initial_response(body: &[u8]) -> Result<(&[u8], Option<&[u8]>), Refusal> {
    let malformed = || Refusal::BadStartup { detail: "invalid message format".into() };
    let end = body.iter().position(|byte| *byte == 0).ok_or_else(malformed)?;
    let (mechanism, rest) = (&body[..end], &body[end + 1..]);
    let (length, data) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    match i32::from_be_bytes(*length) {
        -1 if data.is_empty() => Ok((mechanism, None)),
        length if usize::try_from(length).is_ok_and(|length| length == data.len()) => Ok((mechanism, Some(data))),
        _ => Err(malformed()),
    }
}

/// Writes messages as one, and flushes.
async fn send(stream: &mut Stream, messages: &[&dyn Encode]) -> io::Result<()> {
    let mut bytes = BytesMut::new();
    for message in messages {
        message.encode_to(&mut bytes)?;
    }
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// pgwire's `Message`, as an object.
trait Encode: Sync {
    fn encode_to(&self, bytes: &mut BytesMut) -> io::Result<()>;
}

impl<M: Message + Sync> Encode for M {
    fn encode_to(&self, bytes: &mut BytesMut) -> io::Result<()> {
        self.encode(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}
