//! Every error that a client may get from the router itself.
//!
//! A server's errors pass through untouched; these are the only ones that the router authors. Codes are those of
//! PostgreSQL's `src/backend/utils/errcodes.txt`, texts are PostgreSQL's where it has one.

use std::borrow::Cow;
use std::time::Duration;

/// Whether the session outlives the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Fatal,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        }
    }
}

/// An error that the router authors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    // Login
    /// A startup packet or other first bytes that make no sense.
    BadStartup {
        detail: Cow<'static, str>,
    },
    UnsupportedProtocol {
        major: u16,
        minor: u16,
    },
    NoUserName,
    /// The startup parameter `replication` is no boolean and not `database`.
    BadReplication {
        value: String,
    },
    /// The startup parameter `options` can't be read.
    BadOptions {
        message: Cow<'static, str>,
        hint: Option<&'static str>,
    },
    /// Bytes between an SSLRequest and the TLS handshake: a buggy client or a man in the middle.
    UnencryptedData,
    /// PostgreSQL's text for a wrong password, an unknown user and a user without password alike.
    PasswordFailed {
        user: String,
    },
    CertificateFailed {
        user: String,
    },
    EmptyPassword,
    /// The password is right, but its `VALID UNTIL` has passed, and so on: PostgreSQL tells only its log.
    UnknownDatabase {
        database: String,
    },
    DatabaseNotAccepting {
        database: String,
    },
    NoConnectPrivilege {
        database: String,
    },
    /// `role "x" is not permitted to log in`.
    NoLogin {
        user: String,
    },
    /// `role "x" does not exist`, where no password was asked for.
    UnknownRole {
        user: String,
    },
    TooManyForRole {
        user: String,
    },
    TooManyForDatabase {
        database: String,
    },
    /// A rule says reject, or TLS is required.
    RejectedByRule {
        address: String,
        user: String,
        database: String,
        tls: bool,
    },
    SaslMalformed {
        detail: &'static str,
    },
    /// The client's final message answers another exchange.
    SaslInvalid {
        detail: &'static str,
    },
    /// Something in SCRAM that PostgreSQL doesn't support.
    SaslUnsupported {
        message: &'static str,
    },
    /// The client thinks that the server can't do channel binding, though it can: a downgrade.
    SaslBindingDowngrade,
    /// The client saw another certificate than the router's: somebody is in between.
    SaslBindingMismatch,
    /// Another message came where a password or SASL response was due.
    ExpectedAuthMessage {
        expected: &'static str,
        got: u8,
    },
    LoginTimeout,
    /// No key to log in to the servers with.
    NoServerKey {
        user: String,
    },
    /// The password was changed since the session began, and no connection that is open is free.
    KeyOutdated {
        user: String,
    },
    /// Another role, or another database, has the name that the session logged in with.
    LoginOutdated {
        user: String,
        database: String,
    },
    TooManyClients,
    /// The verifiers can't be read right now.
    VerifiersUnreachable,
    ShuttingDown,

    // Protocol
    InvalidMessage {
        detail: Cow<'static, str>,
    },
    MessageTooLarge {
        bytes: usize,
        limit: usize,
    },
    UndefinedStatement {
        name: String,
    },
    DuplicateStatement {
        name: String,
    },
    TooManyStatements {
        limit: usize,
    },
    /// What a prepared statement gives has changed since its Parse.
    ResultTypeChanged,
    /// The client has prepared no statement of this name, though its server may know one.
    NoSuchStatement {
        name: String,
    },

    // Routing
    /// No leader came within `hold_timeout`.
    NoLeader {
        waited: Duration,
    },
    /// The leader doesn't show yet what a replica has shown the session.
    Unsettled {
        waited: Duration,
    },
    /// More clients wait for a leader than `hold_max`.
    HoldLineFull {
        limit: usize,
    },
    /// Port 15001, and no member can serve it.
    NoReplica,
    /// The same for a replication connection, which the leader never serves there.
    NoReplicaToStreamFrom,
    /// Fallback to the leader on the read-only port.
    ReadOnly {
        command: Cow<'static, str>,
    },
    PoolTimeout {
        waited: Duration,
        node: String,
    },
    ServerUnreachable {
        node: String,
        detail: String,
    },

    // Overruling
    /// `SET switchyard.name` of a name that isn't known.
    UnknownParameter {
        name: String,
    },
    /// `SET switchyard.name` to a word that it can't have.
    BadParameter {
        name: &'static str,
        value: String,
        allowed: &'static [&'static str],
    },
    /// A `[[rule]]` of the configuration.
    RejectedByRoutingRule {
        rule: String,
    },

    // Loss of a server connection
    /// A write was sent, and no answer came.
    OutcomeUnknown {
        node: String,
    },
    /// Within a transaction, before anything that can end it: surely rolled back.
    TransactionLost {
        node: String,
    },
    /// Rows had been forwarded.
    ReadCut {
        node: String,
    },
    /// The session's state went with the server connection.
    PinnedLost {
        node: String,
        reasons: String,
    },
    PinnedLostInFlight {
        node: String,
    },
    /// A statement in a transaction that has failed.
    InFailedTransaction,

    // Requests
    QueryCanceled,
    StatementTimeout,
    Administrator,
    IdleSessionTimeout,
    IdleInTransactionTimeout,
    /// A bug of ours.
    Internal {
        detail: Cow<'static, str>,
    },
}

/// A refusal as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wording {
    pub severity: Severity,
    pub sqlstate: &'static str,
    pub message: Cow<'static, str>,
    pub detail: Option<Cow<'static, str>>,
    pub hint: Option<Cow<'static, str>>,
}

impl Refusal {
    /// Severity, SQLSTATE, text, detail and hint.
    pub fn wording(&self) -> Wording {
        use Severity::{Error, Fatal};
        let (severity, sqlstate, message): (Severity, &'static str, Cow<'static, str>) = match self {
            Refusal::BadStartup { detail } => (Fatal, "08P01", detail.clone()),
            Refusal::UnsupportedProtocol { major, minor } => (
                Fatal,
                "0A000",
                format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2").into(),
            ),
            Refusal::NoUserName => (Fatal, "28000", "no PostgreSQL user name specified in startup packet".into()),
            Refusal::BadReplication { value } => {
                (Fatal, "22023", format!("invalid value for parameter \"replication\": \"{value}\"").into())
            }
            Refusal::BadOptions { message, .. } => (Fatal, "42601", message.clone()),
            Refusal::UnencryptedData => (Fatal, "08P01", "received unencrypted data after SSL request".into()),
            Refusal::PasswordFailed { user } => {
                (Fatal, "28P01", format!("password authentication failed for user \"{user}\"").into())
            }
            Refusal::CertificateFailed { user } => {
                (Fatal, "28000", format!("certificate authentication failed for user \"{user}\"").into())
            }
            Refusal::EmptyPassword => (Fatal, "28P01", "empty password returned by client".into()),
            Refusal::UnknownDatabase { database } => (Fatal, "3D000", format!("database \"{database}\" does not exist").into()),
            Refusal::DatabaseNotAccepting { database } => {
                (Fatal, "55000", format!("database \"{database}\" is not currently accepting connections").into())
            }
            Refusal::NoConnectPrivilege { database } => (Fatal, "42501", format!("permission denied for database \"{database}\"").into()),
            Refusal::NoLogin { user } => (Fatal, "28000", format!("role \"{user}\" is not permitted to log in").into()),
            Refusal::UnknownRole { user } => (Fatal, "28000", format!("role \"{user}\" does not exist").into()),
            Refusal::TooManyForRole { user } => (Fatal, "53300", format!("too many connections for role \"{user}\"").into()),
            Refusal::TooManyForDatabase { database } => {
                (Fatal, "53300", format!("too many connections for database \"{database}\"").into())
            }
            Refusal::RejectedByRule { address, user, database, tls } => (
                Fatal,
                "28000",
                format!(
                    "no auth rule of the router for host \"{address}\", user \"{user}\", database \"{database}\", {}",
                    if *tls { "SSL encryption" } else { "no encryption" }
                )
                .into(),
            ),
            Refusal::SaslMalformed { .. } => (Fatal, "08P01", "malformed SCRAM message".into()),
            Refusal::SaslInvalid { .. } => (Fatal, "08P01", "invalid SCRAM response".into()),
            Refusal::SaslUnsupported { message } => (Fatal, "0A000", (*message).into()),
            Refusal::SaslBindingDowngrade => (Fatal, "28000", "SCRAM channel binding negotiation error".into()),
            Refusal::SaslBindingMismatch => (Fatal, "28000", "SCRAM channel binding check failed".into()),
            Refusal::ExpectedAuthMessage { expected, got } => {
                (Fatal, "08P01", format!("expected {expected} response, got message type {got}").into())
            }
            Refusal::LoginTimeout => (Fatal, "57014", "canceling authentication due to timeout".into()),
            Refusal::NoServerKey { user } => {
                (Fatal, "28000", format!("the router has no key to log in to the servers as user \"{user}\"").into())
            }
            Refusal::KeyOutdated { user } => (Fatal, "28P01", format!("password authentication failed for user \"{user}\"").into()),
            Refusal::LoginOutdated { user, database } => (
                Fatal,
                "57P01",
                format!("role \"{user}\" or database \"{database}\" is not the one that this session logged in to").into(),
            ),
            Refusal::TooManyClients => (Fatal, "53300", "sorry, too many clients already".into()),
            Refusal::VerifiersUnreachable => (Fatal, "57P03", "no server can check this login right now".into()),
            Refusal::ShuttingDown => (Fatal, "57P01", "terminating connection due to administrator command".into()),
            Refusal::InvalidMessage { detail } => (Fatal, "08P01", detail.clone()),
            Refusal::MessageTooLarge { bytes, limit } => {
                (Fatal, "54000", format!("message of {bytes} bytes exceeds the router's limit of {limit} bytes").into())
            }
            Refusal::UndefinedStatement { name } if name.is_empty() => {
                (Error, "26000", "unnamed prepared statement does not exist".into())
            }
            Refusal::UndefinedStatement { name } => {
                (Error, "26000", format!("prepared statement \"{name}\" does not exist").into())
            }
            Refusal::DuplicateStatement { name } => {
                (Error, "42P05", format!("prepared statement \"{name}\" already exists").into())
            }
            Refusal::TooManyStatements { limit } => {
                (Error, "53400", format!("this session has {limit} prepared statements, the router's limit").into())
            }
            Refusal::ResultTypeChanged => (Error, "0A000", "cached plan must not change result type".into()),
            Refusal::NoSuchStatement { name } => (Error, "26000", format!("prepared statement \"{name}\" does not exist").into()),
            Refusal::NoLeader { waited } => {
                (Error, "57P03", format!("the cluster has had no leader for {:.1} s", waited.as_secs_f64()).into())
            }
            Refusal::Unsettled { waited } => (
                Error,
                "57P03",
                format!("the leader has not shown for {:.1} s what this session has read from a replica", waited.as_secs_f64()).into(),
            ),
            Refusal::HoldLineFull { limit } => {
                (Error, "57P03", format!("the cluster has no leader, and {limit} clients wait for one already").into())
            }
            Refusal::NoReplica => (Error, "57P03", "no replica can serve this read right now".into()),
            Refusal::NoReplicaToStreamFrom => (Fatal, "57P03", "no replica can serve this replication connection right now".into()),
            Refusal::ReadOnly { command } => {
                (Error, "25006", format!("cannot execute {command} in a read-only transaction").into())
            }
            Refusal::PoolTimeout { waited, node } => (
                Error,
                "53300",
                format!("no server connection to \"{node}\" became free within {:.1} s", waited.as_secs_f64()).into(),
            ),
            Refusal::ServerUnreachable { node, .. } => (Error, "57P03", format!("could not connect to \"{node}\"").into()),
            Refusal::UnknownParameter { name } => (Error, "42704", format!("unrecognized configuration parameter \"{name}\"").into()),
            Refusal::BadParameter { name, value, .. } => {
                (Error, "22023", format!("invalid value for parameter \"{name}\": \"{value}\"").into())
            }
            Refusal::RejectedByRoutingRule { rule } => {
                (Error, "42501", format!("the statement was rejected by {rule} of the router's configuration").into())
            }
            Refusal::OutcomeUnknown { node } => {
                (Error, "08007", format!("the connection to \"{node}\" was lost: it is unknown whether the statement took effect").into())
            }
            Refusal::TransactionLost { node } => {
                (Error, "40001", format!("the connection to \"{node}\" was lost: the transaction was rolled back").into())
            }
            Refusal::ReadCut { node } => {
                (Error, "57P01", format!("the connection to \"{node}\" was lost after rows had been sent").into())
            }
            Refusal::PinnedLost { node, .. } => {
                (Fatal, "57P01", format!("the connection to \"{node}\" was lost, and with it this session's state").into())
            }
            Refusal::PinnedLostInFlight { node } => (
                Fatal,
                "08007",
                format!("the connection to \"{node}\" was lost: it is unknown whether the statement took effect, and this session's state is gone").into(),
            ),
            Refusal::InFailedTransaction => {
                (Error, "25P02", "current transaction is aborted, commands ignored until end of transaction block".into())
            }
            Refusal::QueryCanceled => (Error, "57014", "canceling statement due to user request".into()),
            Refusal::StatementTimeout => (Error, "57014", "canceling statement due to statement timeout".into()),
            Refusal::Administrator => (Fatal, "57P01", "terminating connection due to administrator command".into()),
            Refusal::IdleSessionTimeout => (Fatal, "57P05", "terminating connection due to idle-session timeout".into()),
            Refusal::IdleInTransactionTimeout => {
                (Fatal, "25P03", "terminating connection due to idle-in-transaction timeout".into())
            }
            Refusal::Internal { detail } => (Error, "XX000", detail.clone()),
        };
        Wording { severity, sqlstate, message, detail: self.detail(), hint: self.hint() }
    }

    fn detail(&self) -> Option<Cow<'static, str>> {
        match self {
            Refusal::SaslMalformed { detail } | Refusal::SaslInvalid { detail } => Some((*detail).into()),
            Refusal::SaslBindingDowngrade => Some(
                "The client supports SCRAM channel binding but thinks the server does not.  \
                 However, this server does support channel binding."
                    .into(),
            ),
            Refusal::UnencryptedData => {
                Some("This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.".into())
            }
            Refusal::NoConnectPrivilege { .. } => Some("User does not have CONNECT privilege.".into()),
            Refusal::ServerUnreachable { detail, .. } => Some(detail.clone().into()),
            Refusal::PinnedLost { reasons, .. } => Some(format!("The session was pinned by: {reasons}.").into()),
            _ => None,
        }
    }

    fn hint(&self) -> Option<Cow<'static, str>> {
        if let Refusal::BadParameter { allowed, .. } = self {
            // As PostgreSQL words it for its own (`config_enum_get_options`).
            return Some(format!("Available values: {}.", allowed.join(", ")).into());
        }
        Some(
            match self {
                Refusal::BadReplication { .. } => "Valid values are: \"false\", 0, \"true\", 1, \"database\".",
                Refusal::BadOptions { hint, .. } => (*hint)?,
                Refusal::NoServerKey { .. } => {
                    "Log in with a password (SCRAM-SHA-256), or add a [[server_auth]] rule to the router's configuration."
                }
                Refusal::KeyOutdated { .. } => "The password was changed since this session began. Connect again with the new one.",
                Refusal::LoginOutdated { .. } => "It was renamed or dropped, and another one has its name by now. Connect again.",
                Refusal::VerifiersUnreachable => "Try again in a moment; the router needs one reachable member to check a password.",
                Refusal::NoLeader { .. } | Refusal::HoldLineFull { .. } => {
                    "The statement was not sent. Try again; the router's page shows the cluster's state."
                }
                Refusal::Unsettled { .. } => {
                    "A commit waits for its synchronous standby: see wait_event SyncRep in pg_stat_activity. The statement was not sent."
                }
                Refusal::NoReplica => "Use the read/write port, or set fallback_to_leader = true in the router's configuration.",
                Refusal::NoReplicaToStreamFrom => {
                    "Use the read/write port: the leader serves no replication connections on the read-only port."
                }
                Refusal::PoolTimeout { .. } => "Raise pool.max_size, or look for sessions that keep transactions open or are pinned.",
                Refusal::OutcomeUnknown { .. } => "Check whether the change is there before you run the statement again.",
                Refusal::PinnedLostInFlight { .. } => {
                    "Check whether the change is there before you run the statement again; then reconnect."
                }
                Refusal::TransactionLost { .. } => "It is safe to run the whole transaction again.",
                Refusal::ReadCut { .. } => "It is safe to run the statement again.",
                Refusal::PinnedLost { .. } => "Reconnect, and set up the session's state again.",
                Refusal::TooManyStatements { .. } => "DEALLOCATE statements, or raise limits.max_prepared_per_client.",
                Refusal::Internal { .. } => "This is a bug of the router. Please report it with its log.",
                _ => return None,
            }
            .into(),
        )
    }

    /// Appends this refusal as an ErrorResponse message (protocol section "Message Formats", "Error and Notice Message Fields").
    pub fn encode(&self, out: &mut Vec<u8>) {
        let wording = self.wording();
        let start = out.len();
        out.extend_from_slice(&[b'E', 0, 0, 0, 0]);
        let mut field = |kind: u8, text: &str| {
            out.push(kind);
            out.extend(text.bytes().filter(|byte| *byte != 0));
            out.push(0);
        };
        field(b'S', wording.severity.as_str());
        field(b'V', wording.severity.as_str());
        field(b'C', wording.sqlstate);
        field(b'M', &wording.message);
        if let Some(detail) = &wording.detail {
            field(b'D', detail);
        }
        if let Some(hint) = &wording.hint {
            field(b'H', hint);
        }
        out.push(0);
        let length = u32::try_from(out.len() - start - 1).unwrap_or(u32::MAX);
        out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    }
}
