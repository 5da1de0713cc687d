//! What the classifier says of a statement.

use std::sync::Arc;

use super::fingerprint::Fingerprint;
use crate::causal::Level;
use crate::marks::Touched;

/// Reasons kept of one verdict; the first ones tell enough.
pub(super) const REASONS_LIMIT: usize = 16;

/// Where a statement may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// No data and no server state: any node (it goes to a server all the same: it may bring a notice, an error or a report).
    Local,
    /// Gives on a fresh enough replica what it gives on the leader.
    Read,
    /// Everything else, and whatever is in doubt.
    Write,
}

/// One reason for a verdict, with the piece of the statement that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// A stable word, such as `insert`, `function`, `locking_clause`, `unparsed`.
    pub rule: &'static str,
    /// The piece: a function's name, a keyword, a relation.
    pub piece: Arc<str>,
}

/// What a transaction-control statement asks of the transaction's access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TransactionModes {
    pub read_only: Option<bool>,
    /// `ISOLATION LEVEL SERIALIZABLE`, or `Some(false)` for another level named.
    pub serializable: Option<bool>,
    /// `REPEATABLE READ` named.
    pub repeatable_read: Option<bool>,
    pub deferrable: Option<bool>,
}

/// What a SET sets its parameter to, as far as the text tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetTo {
    Default,
    /// `SET ROLE NONE`: whoever the session's user is, whatever role the session began with.
    NoRole,
    /// One plain literal or word, of a parameter of the router's own.
    Plain(Arc<str>),
    /// FROM CURRENT: the value that it has.
    Current,
    /// Only the server knows how it reads the value.
    Other,
}

/// What a statement does to session state, if it succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Begin(TransactionModes),
    /// `COMMIT` and `END`; `chain` with AND CHAIN.
    Commit {
        chain: bool,
    },
    /// `ROLLBACK` and `ABORT`.
    Rollback {
        chain: bool,
    },
    Savepoint {
        name: Arc<str>,
    },
    RollbackTo {
        name: Arc<str>,
    },
    Release {
        name: Arc<str>,
    },
    PrepareTransaction,
    /// `SET TRANSACTION`, `SET SESSION CHARACTERISTICS AS TRANSACTION` with `session`.
    SetTransaction {
        modes: TransactionModes,
        session: bool,
    },
    /// `SET TRANSACTION SNAPSHOT`.
    SetSnapshot,
    /// `SET [SESSION|LOCAL] name`; also forms with special syntax under their parameter's name (`TIME ZONE`, `NAMES`, `ROLE`...). Name in lower case.
    Set {
        name: Arc<str>,
        local: bool,
        to: SetTo,
    },
    Reset {
        name: Arc<str>,
    },
    ResetAll,
    /// `set_config(...)` or anything else that changes settings in a way that the text doesn't tell.
    SetUnknown,
    DiscardAll,
    DiscardPlans,
    DiscardTemp,
    DiscardSequences,
    /// SQL `PREPARE name`.
    Prepare {
        name: Arc<str>,
        /// Its text tells nothing that the query would do to its session: no effect, that is.
        plain: bool,
    },
    /// FETCH and MOVE: it runs what the cursor, or the protocol's portal, of that name is for.
    Fetch {
        name: Arc<str>,
    },
    /// SQL `EXECUTE name`.
    Execute {
        name: Arc<str>,
    },
    Deallocate {
        name: Arc<str>,
    },
    DeallocateAll,
    /// Comes with [`PinReason::Listen`].
    Listen {
        channel: Arc<str>,
    },
    UnlistenAll,
    Unlisten {
        channel: Arc<str>,
    },
    /// `DECLARE name CURSOR WITH HOLD`; comes with [`PinReason::WithHoldCursor`].
    HoldCursor {
        name: Arc<str>,
    },
    /// CLOSE; `None` for all of them.
    CloseCursor {
        name: Option<Arc<str>>,
    },
    /// `CREATE TEMP TABLE name`; comes with [`PinReason::TempTable`] where the table outlives its transaction.
    TempTable {
        name: Arc<str>,
        on_commit_drop: bool,
    },
    /// PostgreSQL does it only while nobody else is connected to this database: DROP DATABASE, ALTER DATABASE ... RENAME or SET TABLESPACE,
    /// CREATE DATABASE with it as the template.
    AloneIn {
        database: Arc<str>,
    },
    /// DROP TABLE of a name that may be a temporary table's; `""` for other tables.
    DropTable {
        name: Arc<str>,
    },
    /// DDL passed by: catalog facts may have changed.
    Ddl,
    /// Creates state that lives in the server's session: the reason as a stable word, such as `temp_table`, `advisory_lock`, `with_hold_cursor`.
    Pin(PinReason),
    /// Releases all session-level advisory locks.
    AdvisoryUnlockAll,
    /// May end a transaction by itself (CALL, DO with COMMIT).
    MayCommit,
    /// `COPY ... FROM STDIN`.
    CopyIn,
    /// Uses `now()`, `current_date` or kin: meets the server's clock.
    UsesClock,
}

/// Why a session must keep its server connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PinReason {
    TempTable,
    Listen,
    AdvisoryLock,
    WithHoldCursor,
    SqlPrepare,
    Sequence,
    Load,
    SetRole,
    SettingOutOfSight,
    BackendPid,
    /// Has looked at the counters that statements raise: those of its own statements are in its server process first.
    Statistics,
    Setseed,
    UserCode,
    /// A mode of the configuration: `pool_mode = "session"`.
    SessionMode,
    Other,
}

impl PinReason {
    /// A stable word for pages, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            PinReason::TempTable => "temp_table",
            PinReason::Listen => "listen",
            PinReason::AdvisoryLock => "advisory_lock",
            PinReason::WithHoldCursor => "with_hold_cursor",
            PinReason::SqlPrepare => "sql_prepare",
            PinReason::Sequence => "sequence",
            PinReason::Load => "load",
            PinReason::SetRole => "set_role",
            PinReason::SettingOutOfSight => "setting_out_of_sight",
            PinReason::BackendPid => "backend_pid",
            PinReason::Statistics => "statistics",
            PinReason::Setseed => "setseed",
            PinReason::UserCode => "user_code",
            PinReason::SessionMode => "session_mode",
            PinReason::Other => "other",
        }
    }
}

/// The kind of a statement, as far as running it again and answering for a standby need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Nothing but white space and comments.
    Empty,
    Select,
    Insert,
    Update,
    Delete,
    Merge,
    Copy,
    Transaction,
    Utility,
    /// Not parsed.
    Unknown,
}

/// The verdict on one simple query string (one statement or several) or one Parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub class: Class,
    pub reasons: Vec<Reason>,
    /// Of all statements, in order.
    pub effects: Vec<Effect>,
    /// Where each statement's effects end in `effects`; empty where there are none, or no more than one statement.
    pub effect_ends: Vec<u32>,
    /// What it may do or see that `effects` don't tell.
    pub unseen: Unseen,
    /// Why `unseen.leaves`, by the first thing that isn't proven to leave nothing.
    pub unproven: Option<Reason>,
    /// The relations that it names and that the facts don't have, where code of the database's own may set custom settings of unknown names:
    /// temporary ones, younger ones, or none.
    pub unknown: Vec<Arc<str>>,
    /// Of DDL: whatever in its text looks like the name of a custom setting (`prefix.name`). What it makes may set it, before the facts tell.
    pub mentions: Vec<Arc<str>>,
    /// How many statements (0: empty query).
    pub statements: usize,
    /// The first statement's kind.
    pub kind: Kind,
    /// The first statement's command tag as PostgreSQL names it in "cannot execute %s in a read-only transaction"
    /// (`CreateCommandName`), such as `INSERT`, `CREATE TABLE`, `SELECT FOR UPDATE`.
    pub command: &'static str,
    /// A hint in a leading comment: `/* switchyard: leader */` or `/* switchyard: replica */`.
    pub hint: Option<Hint>,
    /// What a `[[rule]]` of the configuration says of it.
    pub ruling: Option<Ruling>,
    /// One INSERT, UPDATE, DELETE, MERGE or SELECT, of which everything that it does is known to be undone with its transaction: no function, trigger
    /// or table in it acts outside. If it is proven to have been rolled back, running it again is as running it once.
    pub acts_inside: bool,
    /// Of the string, where a memo has judged it.
    pub fingerprint: Fingerprint,
    /// The relations that it reads, or may read.
    pub reads: Touched,
    /// The relations that it writes, or may write.
    pub writes: Touched,
    /// Of the facts under which this was judged.
    pub generation: u64,
}

/// A rule of the configuration, and what it says of what it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    pub rule: Arc<str>,
    /// Where it goes; `None` where the verdict decides that.
    pub route: Option<RuledRoute>,
    /// What it must show.
    pub level: Option<Level>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuledRoute {
    To(Hint),
    Reject,
}

/// What a statement may do to its session, or see of it, through code that its text doesn't show: triggers, views, defaults, operators, functions
/// that run text. In doubt, it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// It may leave session state of which `effects` say nothing: settings, a role, temporary objects, locks, channels, cursors, statements.
    pub leaves: bool,
    /// It may see whether a custom setting (`prefix.name`) was ever set on its connection.
    pub sees_settings: bool,
    /// It may see which statements are prepared on its connection (`pg_prepared_statements`).
    pub sees_statements: bool,
    /// It may set custom settings of which nobody knows the names, so that no look can ask for them. Only with `leaves`.
    pub sets_unknown: bool,
    /// It names something that DDL may just have changed: what it leaves will be known in a moment. Only with `leaves`.
    pub in_doubt: bool,
}

impl Verdict {
    /// Whether both say the same, of texts that are read in different ways.
    pub fn says_as(&self, other: &Verdict) -> bool {
        *self == Verdict { fingerprint: self.fingerprint, ..other.clone() }
    }

    /// As of a text of which nobody knows how the server reads it: anything may happen.
    #[must_use]
    pub fn unreadable(self, why: &str) -> Verdict {
        let reason = Reason { rule: "encoding", piece: why.into() };
        Verdict {
            class: Class::Write,
            reasons: vec![reason.clone()],
            effects: vec![Effect::SetUnknown],
            effect_ends: Vec::new(),
            unseen: Unseen { leaves: true, sees_settings: true, sees_statements: true, sets_unknown: true, in_doubt: false },
            unproven: Some(reason),
            statements: 1,
            kind: Kind::Unknown,
            command: "",
            acts_inside: false,
            reads: Touched::Cluster,
            writes: Touched::Cluster,
            ..self
        }
    }

    /// Whether its text tells nothing that it would do to its session.
    pub fn has_no_effects(&self) -> bool {
        self.effects.iter().all(|effect| *effect == Effect::UsesClock)
    }

    /// Whether it runs by its name what is prepared.
    pub fn executes(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Execute { .. }))
    }

    /// The effects of one statement of the string, counted from 0; none where there is no such statement.
    pub fn effects_of(&self, statement: usize) -> &[Effect] {
        if self.effect_ends.is_empty() {
            return if statement == 0 { &self.effects } else { &[] };
        }
        let start = if statement == 0 { Some(&0) } else { self.effect_ends.get(statement - 1) };
        match (start, self.effect_ends.get(statement)) {
            (Some(start), Some(end)) => &self.effects[*start as usize..*end as usize],
            _ => &[],
        }
    }

    /// Whether it is a read that goes to the leader only because it asks about the server that runs it.
    pub fn only_asks_the_server(&self) -> bool {
        let asks = |reason: &Reason| reason.rule == "server_function";
        // A full list may leave something out.
        let all = (1..REASONS_LIMIT).contains(&self.reasons.len()) && self.reasons.iter().all(asks);
        all && self.kind == Kind::Select && self.statements == 1 && self.has_no_effects()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hint {
    Leader,
    Replica,
}
