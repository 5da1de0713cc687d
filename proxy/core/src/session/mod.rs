//! One client session as a state machine, without sockets, locks or clocks.
//!
//! The driver feeds it bytes of either side and the events of leases; it fills the two output buffers and says with a [`Want`] what
//! it needs. Two axes: *who holds which server* ([`Phase`]) and *what is owed* (the queue of [`replies`]).
//!
//! Invariants:
//! - Every message of a client is answered once and in order, by a server wherever a server would have answered.
//! - A server connection is returned only when nothing is owed on it.
//! - Bytes that show data are forwarded only after the watermark knows of them.

mod batch;
mod decide;
mod dispatch;
mod effects;
mod explain;
mod held;
mod journal;
mod look;
mod loss;
mod names;
mod own;
mod pins;
mod replies;
mod server;
mod settings;
mod statements;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use batch::{Batch, End, Item, Statement};
use explain::Answer;
use held::{Held, SqlPrepared};
use journal::Journal;
use look::Seen;
use own::Own;
use replies::Owed;
use server::SessionId;

pub use explain::describe;
pub use look::{GIVEN, LookResult};
pub use pins::Pins;
pub use server::{CustomNames, ServerState, StatementId};
pub use settings::{Params, Settings, Value};

use crate::causal::{Level, Watermark};
use crate::marks::{Marks, Sending, Touched};
use crate::refusal::{Refusal, Severity};
use crate::route::{Excluded, Loads, Need, ServerRole, Why};
use crate::sql::catalog::Suspicion;
use crate::sql::{Dialect, Effect, Kind, PinReason, SetTo, TransactionModes, Verdict};
use crate::topology::{ClusterState, Epoch, Member, Topology};
use crate::wire::reply::TxStatus;
use crate::wire::{frame, reply, view};

/// Which kind of port a client came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

/// The rules of a listener.
#[derive(Clone, Debug)]
pub struct Policy {
    pub access: Access,
    /// What reads must show, unless the session or a rule says otherwise.
    pub level: Level,
    /// How long a read waits for a replica that shows what it must, before the leader serves it.
    pub consistency_wait: Duration,
    /// How long a read waits for the leader to show what a replica has shown its session, before it is refused.
    pub settle_wait: Duration,
    pub hold_begin: bool,
    pub readonly_on_replica: bool,
    pub fallback_to_leader: bool,
    /// Sessions keep their server connection from the first statement on.
    pub session_mode: bool,
    /// A batch longer than this goes to the leader undecided, in bytes.
    pub look_ahead_bytes: usize,
    /// A message that must be held as a whole, at most, in bytes.
    pub max_message_bytes: usize,
    /// Named prepared statements, at most.
    pub max_statements: usize,
    /// The share of returns of server connections, from 0 to 1, after which the server is asked what is left of the
    /// session.
    pub verify_returns: f64,
    pub zone: Option<Arc<str>>,
}

/// Gives verdicts on statement texts.
pub trait Judge {
    /// `standard_conforming_strings`, and whether the client's encoding never has an ASCII byte within a character.
    fn verdict(&self, sql: &[u8], standard_conforming_strings: bool, ascii_safe: bool) -> Arc<Verdict>;

    /// A leader is about to be sent what this verdict is about, to run it: not DDL that only its own session sees. What
    /// isn't run (Parse, Describe, EXPLAIN (ROUTE)) never comes here; what runs twice comes twice.
    fn about_to_run(&self, _: &Verdict) {}

    /// A client's Execute asks for it. What stands behind that in the batch is judged before any of it is sent.
    fn asked_to_run(&self, _: &Verdict) {}

    /// Of the facts that it judges by now: verdicts of another generation may be wrong about what they touch.
    fn generation(&self) -> u64 {
        0
    }

    /// The highest level that a rule may ask of one of the session's statements.
    fn highest_ruled(&self) -> Level {
        Level::Eventual
    }

    /// See [`Facts::bad_value`](crate::sql::Facts::bad_value).
    fn bad_value(&self) -> Option<&'static str> {
        None
    }

    /// See [`Facts::value_suspicion`](crate::sql::Facts::value_suspicion).
    fn value_suspicion(&self) -> Suspicion {
        Suspicion::NONE
    }

    /// What its verdicts rest on, in lines for EXPLAIN (ROUTE).
    fn grounds(&self) -> Vec<String> {
        Vec::new()
    }

    /// How often DDL has passed that may change what statements give: what is prepared on both sides of it isn't the same.
    fn shape(&self) -> u64 {
        0
    }

    /// A server has said that this statement no longer gives what it gave when it was prepared.
    fn outdate(&self, _: StatementId) {}

    fn is_outdated(&self, _: StatementId) -> bool {
        false
    }

    /// The custom settings (`prefix.name`) that code of the database's own is known to name.
    fn custom_settings(&self) -> Arc<[Arc<str>]> {
        Arc::default()
    }
}

/// Knows sessions by the server connections that they use.
pub trait Voices {
    /// The process id that the session was told which used the leader's process `pid` last; `None` where nobody did.
    fn told(&self, pid: i32) -> Option<i32>;
}

/// The world, as it is while one input is handled.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    pub now: Instant,
    pub topology: &'a Topology,
    pub loads: &'a dyn Loads,
    pub judge: &'a dyn Judge,
    /// What has been acknowledged in the session's database.
    pub marks: &'a Marks,
    pub policy: &'a Policy,
    pub voices: &'a dyn Voices,
    /// Any number, new for each input.
    pub random: u64,
}

/// What the session needs done. Taken by the driver after each input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// A server connection: answer with [`Session::granted`] or [`Session::denied`].
    Lease(Need),
    /// Nothing can serve this now: call [`Session::decide_again`] when the topology changes, [`Session::denied`] when time is up.
    Hold,
    /// A sample of the leader, and of the replicas, whose question is sent from now on: call [`Session::decide_again`] when one has come.
    Sample,
    /// Whether that server is going away, or has only ended one connection: answer with [`Session::departure`].
    Departure(Arc<str>),
    /// Give the server connection back, then call [`Session::returned`].
    Return,
    /// Send what is left, then hang up. A server connection that is held is closed.
    Close,
    /// The client has said goodbye, and all that it has asked for is answered: as [`Want::Close`], but the server
    /// connection is given back. A transaction that is open is rolled back.
    Leave,
}

/// Who holds which server.
#[derive(Debug)]
enum Phase {
    Idle,
    /// A lease was asked for, or the session waits in the hold line.
    Waiting,
    Holding {
        member: Arc<Member>,
        role: ServerRole,
    },
}

/// A BEGIN that was answered and not yet sent, with any SET TRANSACTION behind it.
#[derive(Clone, Debug)]
struct HeldBegin {
    /// The statements' texts, each with its terminator.
    texts: Vec<u8>,
    modes: TransactionModes,
    /// The router's own parameters that the texts set: name, value, and whether for the transaction only.
    own: Vec<(Arc<str>, Option<Arc<str>>, bool)>,
    /// The transaction has shown something already, on a server that it had to leave: the next one must show that, too.
    resumed: bool,
    /// A query has run in it, so that its modes can't be set any more.
    queried: bool,
}

/// A transaction whose server was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// The client doesn't know yet. `reader`: it ran on a replica, so that its COMMIT has nothing to do.
    Untold { reader: bool },
    /// Only the end of the transaction is accepted now.
    Told,
    /// A failed transaction on another server stands in for it, and answers in PostgreSQL's words until the client ends it.
    StoodIn,
}

/// Whether a client goes on, or has said goodbye: with Terminate, or by closing its sending half. Either way
/// PostgreSQL first runs and answers what came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Farewell {
    #[default]
    None,
    /// The end of its input has been seen; what came before it is still to be taken.
    Heard,
    /// Nothing more is taken: the session ends with the last answer that is outstanding.
    Taken,
}

/// Where the client's messages to the server stand, between one Sync (or simple query) and the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Segment {
    /// Whatever was sent ends in a ReadyForQuery.
    #[default]
    Closed,
    /// Something was sent, and the client's Sync is still to come: an implicit transaction may be open.
    Open,
    /// As `Open`, and the server has failed in it: it skips to the Sync.
    Skipped,
}

/// Where a COPY FROM STDIN stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CopyIn {
    /// None is known to be under way.
    #[default]
    None,
    /// The server takes its data.
    Takes,
    /// The client has sent the end of the one that is owed next: the server keeps its answer to itself up to a Sync or Flush.
    Ended,
}

/// A batch that can still run again elsewhere: nothing of its answer has been forwarded.
#[derive(Debug, Default)]
struct Attempt {
    /// The BEGIN that was sent ahead of it.
    begin: Option<HeldBegin>,
    /// It isn't the first one of its READ ONLY transaction, which can be taken elsewhere (`Session::movable`).
    later: bool,
    /// What the server said instead of an answer: the rest is swallowed, then the batch runs again.
    failed: Option<[u8; 5]>,
}

/// What isn't known of how the server reads texts, before it reports that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct DialectDoubt {
    /// `standard_conforming_strings`.
    strings: bool,
    /// `client_encoding`.
    encoding: bool,
    /// One of both has changed within the transaction that is open, and may go back with it.
    changed: bool,
}

impl DialectDoubt {
    fn any(self) -> bool {
        self.strings || self.encoding
    }
}

/// How a text is read: by these settings, or by what may have become of them.
#[derive(Clone, Copy, Debug)]
struct Read {
    dialect: Dialect,
    doubt: DialectDoubt,
}

/// What a session holds only while it is active. Drivers keep these for the next session that needs one.
#[derive(Debug, Default)]
pub struct Work {
    /// Bytes from the client that have not been taken yet.
    pub client_in: Vec<u8>,
    /// Bytes from the server that have not been taken yet.
    pub server_in: Vec<u8>,
    pub to_client: Vec<u8>,
    pub to_server: Vec<u8>,
    pub tally: Tally,
    batch: Batch,
    owed: VecDeque<Owed>,
    /// The answer of a batch that can still run elsewhere.
    kept_back: Vec<u8>,
    attempt: Option<Attempt>,
    /// A lone write that was sent, as long as nothing of its answer has been forwarded: if the server proves that it was rolled back, it runs
    /// again. Empty: there is none. Its answer is in `kept_back`, too; unlike an attempt it doesn't keep the client from sending on, which ends it.
    sent: Batch,
    /// Rest of a client's CopyData, in bytes, and whether it goes to the server or nowhere.
    client_passing: usize,
    client_passing_on: bool,
    /// Rest of a server message that is passed through (or swallowed), in bytes.
    server_passing: usize,
    server_swallowing: bool,
    copy_in: CopyIn,
    /// The batch waits for the settings to be accepted, or for a look at the statements that it uses.
    after_bring: bool,
    /// The batch waits for another server connection than the one that is held, which goes back with what is owed on it.
    elsewhere: bool,
    /// What the batch that waits uses has been looked at: see [`Session::check_shapes`].
    checked: bool,
    /// What that look has found to give something else than the client was told.
    misshapen: Vec<StatementId>,
    /// A settings replay or a held BEGIN failed.
    prelude_failed: Option<Vec<u8>>,
    /// What a look at the server has shown so far.
    seen: Option<Box<Seen>>,
    /// Looks that have failed, one after the other.
    failed_looks: u8,
    /// How many statements of the simple query that is owed next were completed.
    completed: usize,
    /// An ErrorResponse came for the current segment.
    segment_failed: bool,
    /// What runs shows data, or changes it: the watermark must know.
    shows: bool,
    /// The replica was chosen without regard to what the session has seen.
    unproven: bool,
    segment: Segment,
    /// What was sent of an open segment ends in a Flush: the server keeps no answer to itself.
    flushed: bool,
    /// What was sent last must be answered before more is taken from the client: what comes next depends on it.
    alone: bool,
    /// The current segment prepares statements that later ones may rely on: whether they are there is known at its end.
    prepares: bool,
    /// The held BEGIN failed, and with it the transaction that the client believes in.
    begin_failed: bool,
    /// The transaction that had failed is over, by what the segment has executed. ReadyForQuery will tell.
    recovered: bool,
    /// A statement went back to settings of the server's where the session has its own: the client's ReadyForQuery waits for them.
    ready_after_bring: Option<TxStatus>,
    /// The string that was just answered may have set again, out of sight, what it has gone back to the server's own value of.
    may_have_set_again: bool,
    /// DISCARD ALL was executed last in the segment that is open: nothing is there that a Sync of ours could end, and the session's startup settings are
    /// brought before anything else runs.
    discarded: bool,
    /// Stand-ins for the client's statements on the server, to be closed behind the segment.
    stand_ins: Vec<Box<[u8]>>,
    /// The current segment, or one before it that is still owed, may write.
    writing: bool,
    /// The FATAL that a server sent before it hung up: SQLSTATE, and the whole message.
    last_words: Option<([u8; 5], Box<[u8]>)>,
    /// The last CommandComplete was ROLLBACK: what was written is undone.
    undone: bool,
    excluded: Excluded,
    /// Servers that were lost under the batch that waits.
    losses: u8,
    /// The next lease is the leader's, whatever the class.
    rerun_on_leader: bool,
    /// The next lease must be of a connection that nobody has used.
    fresh: bool,
    /// At the level `strong`: since when a sample of the leader is awaited, and in which epoch.
    asked: Option<(Instant, Epoch)>,
    /// What the read must show of what others have written: up to here. Taken once.
    since: Option<Instant>,
    /// Since when the read waits for a replica.
    waits: Option<Instant>,
    /// Since when the read waits for the leader to show what a replica has shown.
    unsettled: Option<Instant>,
}

/// Counts since the driver last took them.
#[derive(Debug, Default)]
pub struct Tally {
    pub queries: u64,
    pub errors: u64,
    /// SQLSTATEs that made batches run again.
    pub reruns: Vec<[u8; 5]>,
    /// SQLSTATEs of errors that the router authored.
    pub refusals: Vec<&'static str>,
    /// What looks at server connections came to.
    pub looks: Vec<LookResult>,
    /// Of connections of which the ledger was wrong: what it said, and what is there.
    pub differences: Vec<String>,
}

impl Tally {
    pub fn is_empty(&self) -> bool {
        self.queries == 0
            && self.errors == 0
            && self.reruns.is_empty()
            && self.refusals.is_empty()
            && self.looks.is_empty()
            && self.differences.is_empty()
    }
}

impl Work {
    /// The text of the first statement of the batch that waits.
    pub fn first_text(&self) -> Option<&[u8]> {
        self.batch.items.iter().find_map(|(item, range)| match item {
            Item::Query(_) => Some(&self.batch.bytes[range.start + frame::HEADER..range.end - 1]),
            Item::Parse { statement, .. } | Item::Bind { statement: Some(statement), .. } => Some(statement.text()),
            _ => None,
        })
    }

    /// The verdict on the first statement of the batch that waits, and whether the batch has no other.
    pub fn first_verdict(&self) -> Option<(&Arc<Verdict>, bool)> {
        let mut verdicts = self.batch.verdicts();
        let first = verdicts.next()?;
        Some((first, verdicts.all(|other| Arc::ptr_eq(first, other))))
    }

    /// Whether nothing is in it that the next input needs.
    pub fn is_spare(&self) -> bool {
        self.client_in.is_empty()
            && self.server_in.is_empty()
            && self.to_client.is_empty()
            && self.to_server.is_empty()
            && self.batch.is_empty()
            && self.owed.is_empty()
            && self.attempt.is_none()
            && self.sent.is_empty()
            && self.client_passing == 0
            && self.segment == Segment::Closed
            && self.copy_in == CopyIn::None
            && !self.begin_failed
            && self.seen.is_none()
            && !self.discarded
            && self.stand_ins.is_empty()
            && self.excluded.is_empty()
            && self.losses == 0
            && !self.rerun_on_leader
            && !self.fresh
    }
}

impl Work {
    /// What the server says of the batch is swallowed: it will run again elsewhere.
    fn runs_again(&self) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.failed.is_some())
    }

    /// The batch was answered: the next one may go anywhere.
    fn forget_attempts(&mut self) {
        self.excluded.clear();
        self.losses = 0;
        self.rerun_on_leader = false;
        self.fresh = false;
    }

    /// Whether only a server connection will do that nobody has used: a session that watches counters is counted itself, and sees what its own
    /// statements add to them.
    pub fn needs_fresh(&self) -> bool {
        let watches = Effect::Pin(PinReason::Statistics);
        self.fresh || self.batch.executed().any(|verdict| verdict.effects.contains(&watches))
    }

    /// Whether what waits may see which custom settings were ever set on its connection. All of a transaction does, all of a segment that is
    /// still open, and whatever may keep the connection for its session, as later statements aren't known.
    fn sees_custom_settings(&self) -> bool {
        let own = |verdict: &Arc<Verdict>| {
            verdict.unseen.sees_settings || verdict.unseen.leaves || verdict.effects.iter().any(effects::keeps_server)
        };
        let by_item = |(item, _): &(Item, _)| match item {
            Item::FunctionCall { large_object: false } | Item::Execute(None) => true,
            // Code may run it by its portal's name.
            Item::Bind { statement: Some(statement), .. } => own(&statement.verdict),
            // Its constants are read there. (And SHOW looks for its parameter.)
            Item::Parse { statement, .. } | Item::DescribeStatement { statement: Some(statement), .. } => {
                statement.verdict.unseen.leaves || statement.verdict.unseen.sees_settings
            }
            _ => false,
        };
        (self.batch.end != End::Ready && !self.batch.is_empty()) || self.batch.executed().any(own) || self.batch.items.iter().any(by_item)
    }

    /// The custom settings that what waits sets before anything else of it can fail.
    fn sets_custom_settings(&self) -> impl Iterator<Item = &Arc<str>> {
        // A cursor's query runs with its first FETCH.
        let first = self.batch.first_to_run().filter(|verdict| verdict.command != "DECLARE CURSOR");
        let effects = first.map_or(&[][..], |verdict| verdict.effects_of(0));
        effects.iter().filter_map(|effect| match effect {
            Effect::Set { name, to, .. } if name.contains('.') && *to != SetTo::Current => Some(name),
            _ => None,
        })
    }

    /// Whether the batch that waits has a VACUUM: what that can do depends on who else reads.
    pub fn vacuums(&self) -> bool {
        self.batch.executed().any(|verdict| verdict.command == "VACUUM")
    }
}

/// What BackendKeyData tells a client: the router's own key.
#[derive(Clone, Debug)]
pub struct CancelKey {
    pub pid: i32,
    pub secret: Box<[u8]>,
}

/// A session from the end of authentication on.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    want: Option<Want>,
    /// It is held, and no replica will do.
    for_leader: bool,
    /// The key to tell; taken when the first ReadyForQuery is sent.
    starting: Option<CancelKey>,
    /// What the client was last told of its transaction.
    status: TxStatus,
    begin: Option<HeldBegin>,
    /// The BEGIN of a transaction that runs on a replica and may still be taken elsewhere: each statement takes a snapshot of its own, and nothing
    /// of it is kept there.
    movable: Option<HeldBegin>,
    lost: Option<Lost>,
    startup: Arc<Settings>,
    settings: Arc<Settings>,
    own: Own,
    /// What was wrong with the startup settings of our own.
    bad_startup: Option<Box<Refusal>>,
    /// The settings have been accepted by a server.
    settings_proven: bool,
    /// What goes back if the transaction, or the segment outside one, fails.
    journal: Journal,
    /// Parameters of the startup packet that the open transaction has set back for itself (`SET LOCAL ... TO DEFAULT`): its server has gone back to
    /// its own values, and gets the session's.
    local_defaults: Vec<Arc<str>>,
    id: SessionId,
    /// The custom settings (`prefix.name`) that the session has ever set.
    touched: CustomNames,
    /// Of these, the ones that are no placeholders: a library's, or of the servers' configuration.
    plain: CustomNames,
    /// Something has run on the server that is held of which it isn't proven that it leaves settings alone.
    unproven: bool,
    told: Params,
    /// What it was told at its login.
    began: Params,
    /// A leader's last report of `default_transaction_read_only`, where the session hasn't set it.
    reads_only: bool,
    /// What the server reported whose parameters the client was told last.
    heard: Params,
    /// Of the transaction's SET LOCAL: statements that are prepared under it aren't those of other transactions.
    local_hash: u64,
    standard_conforming_strings: bool,
    ascii_safe: bool,
    dialect_doubt: DialectDoubt,
    statements: FxHashMap<Box<[u8]>, Arc<Statement>>,
    unnamed: Option<Arc<Statement>>,
    /// What it was before a Query that the server may refuse as a message, as it isn't in the client's encoding.
    unnamed_before: Option<Arc<Statement>>,
    /// What is bound to each portal, as far as that is known, and by which Bind.
    portals: FxHashMap<Box<[u8]>, (Arc<Statement>, u32)>,
    /// How many Binds have been taken.
    binds: u32,
    /// There may be named portals that aren't among them.
    portals_in_doubt: bool,
    /// What SQL has prepared on the server that the session is pinned to.
    sql_prepared: SqlPrepared,
    held: Held,
    pins: Pins,
    /// Advanced a sequence, or may have: `currval` is worth keeping its server connection near.
    sequence_advanced: bool,
    watermark: Watermark,
    /// What the transaction, or what is under way outside one, has written or may have written, and nobody was told of.
    written: Touched,
    /// That it is under way, while it is.
    sending: Sending,
    /// Messages of the extended protocol have come since the client's last Sync.
    unsynced: bool,
    /// The client's messages are dropped up to its Sync.
    skipping: bool,
    /// The server was lost within a segment whose statements had been answered: the client's next message is told.
    segment_lost: bool,
    farewell: Farewell,
}

/// What a server sent isn't PostgreSQL's protocol: the connection can't be used any more. Answer with [`Session::server_lost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

/// Bytes for a server that may pile up before the client is read on.
const TO_SERVER_MAX: usize = 256 * 1024;
/// Bytes for a client that may pile up before either side is read on.
pub const TO_CLIENT_MAX: usize = 32 * 1024;
/// Replies that a server may owe before the client is read on. They take far more than the 8 kB that PostgreSQL keeps back until a Flush
/// or a Sync (`PQ_SEND_BUFFER_SIZE` in pqcomm.c), so that some of them are always on their way.
const OWED_MAX: usize = 8 * 1024;

impl Session {
    /// A session whose client has proven who it is. The first thing it wants is a server connection that accepts its startup settings.
    pub fn new(startup: Settings, key: CancelKey) -> Session {
        let (startup, own) = startup.without(own::is_own);
        let startup = Arc::new(startup);
        let (own, bad_startup) = match Own::new(own.iter().map(|(name, value)| (&**name, &**value))) {
            Ok(own) => (own, None),
            Err(refusal) => (Own::default(), Some(Box::new(refusal))),
        };
        Session {
            own,
            bad_startup,
            phase: Phase::Idle,
            want: None,
            for_leader: false,
            starting: Some(key),
            status: TxStatus::Idle,
            begin: None,
            movable: None,
            lost: None,
            settings: startup.clone(),
            startup,
            settings_proven: false,
            journal: Journal::default(),
            local_defaults: Vec::new(),
            id: SessionId::next(),
            touched: CustomNames::default(),
            plain: CustomNames::default(),
            unproven: false,
            told: Params::default(),
            began: Params::default(),
            reads_only: false,
            heard: Params::default(),
            local_hash: 0,
            standard_conforming_strings: true,
            ascii_safe: true,
            dialect_doubt: DialectDoubt::default(),
            statements: FxHashMap::default(),
            unnamed: None,
            unnamed_before: None,
            portals: FxHashMap::default(),
            binds: 0,
            portals_in_doubt: false,
            sql_prepared: SqlPrepared::default(),
            held: Held::default(),
            pins: Pins::default(),
            sequence_advanced: false,
            watermark: Watermark::default(),
            written: Touched::Nothing,
            sending: Sending::default(),
            unsynced: false,
            skipping: false,
            segment_lost: false,
            farewell: Farewell::None,
        }
    }

    /// The custom settings (`prefix.name`) that may have been set on a connection on which what waits in `work` can run as it would on one of the
    /// session's own: those that it has set itself, as it finds '' for them from then on, where there was none before, and those that it is about to set.
    /// `None` where any connection will do.
    pub fn known_custom_settings(&self, policy: &Policy, work: &Work) -> Option<CustomNames> {
        // In session mode the connection is kept for what isn't known yet.
        if self.begin.is_none() && self.status == TxStatus::Idle && !policy.session_mode && !work.sees_custom_settings() {
            return None;
        }
        let mut known = self.touched.clone();
        // What it has from its startup packet is brought to whatever connection it gets.
        for name in self.settings.dotted().chain(work.sets_custom_settings()) {
            known.add(name);
        }
        Some(known)
    }

    /// The startup settings, where what waits in `work` goes back to them and may see them before it is answered as a whole: only a connection
    /// that began with them will do for that. (What goes back by itself is followed by the router's own setting of them.)
    pub fn beginning(&self, work: &Work) -> Option<&Arc<Settings>> {
        if self.startup.is_empty() || self.starting.is_some() || (self.status != TxStatus::Idle && self.begin.is_none()) {
            return None;
        }
        let goes_back = |effect: &Effect| match effect {
            Effect::Reset { name } | Effect::Set { name, to: SetTo::Default, .. } => {
                self.startup.value(name).is_some() || &**name == "session_authorization"
            }
            Effect::ResetAll | Effect::DiscardAll | Effect::SetUnknown => true,
            _ => false,
        };
        // Of what the protocol has prepared, SQL may execute also what isn't a query.
        let goes_back = |effect: &Effect| match effect {
            Effect::Execute { name } => {
                self.statements.get(name.as_bytes()).is_some_and(|statement| statement.verdict.effects.iter().any(goes_back))
            }
            effect => goes_back(effect),
        };
        let mut executed = work.batch.executed();
        let tells = |effect: &Effect| !matches!(effect, Effect::SetUnknown | Effect::Execute { .. });
        let alone = |verdict: &Verdict| verdict.statements == 1 && verdict.kind == Kind::Utility && verdict.effects.iter().all(tells);
        if self.begin.is_none()
            && work.batch.end == End::Ready
            && executed.next().is_none_or(|verdict| alone(verdict))
            && executed.next().is_none()
        {
            return None;
        }
        let needed = work.batch.executed().any(|verdict| verdict.effects.iter().any(goes_back));
        needed.then_some(&self.startup)
    }

    /// Whether what waits may only run on another connection than the one that is held for what came before it in the pipeline.
    fn needs_another(&self, env: &Env<'_>, work: &Work, server: &ServerState) -> bool {
        let shares = !server.custom.is_empty() || !self.startup.is_empty();
        let between = self.status == TxStatus::Idle && work.segment == Segment::Closed && self.begin.is_none() && self.lost.is_none();
        shares
            && between
            && !self.pinned(env)
            && (self.known_custom_settings(env.policy, work).is_some_and(|known| !server.custom.are_among(&known))
                || self.beginning(work).is_some_and(|begins| !Arc::ptr_eq(&server.began, begins)))
    }

    /// What is wanted now. A server connection is wanted back only when all that is for it has been written.
    pub fn take_want(&mut self, work: Option<&Work>) -> Option<Want> {
        if self.want == Some(Want::Return) && work.is_some_and(|work| !work.to_server.is_empty()) {
            return None;
        }
        if self.want.is_none() && self.farewell == Farewell::Taken && work.is_none_or(|work| !self.is_outstanding(work)) {
            return Some(Want::Leave);
        }
        self.want.take()
    }

    /// Whether something is wanted, if only after all has been written.
    pub fn wants(&self) -> bool {
        self.want.is_some() || self.farewell != Farewell::None
    }

    /// The client has closed its sending half: what it has sent is run and answered, then the session ends.
    /// [`Session::client_bytes`] goes on with it, also where there is nothing left to take.
    pub fn client_ended(&mut self) {
        if self.farewell == Farewell::None {
            self.farewell = Farewell::Heard;
        }
    }

    /// The client has said goodbye, and its last messages are still to be taken.
    pub fn is_ending(&self) -> bool {
        self.farewell == Farewell::Heard
    }

    /// The client has said goodbye, if only with a Terminate that is still to be taken: whatever becomes of its
    /// connection, what came before is run.
    pub fn has_left(&self, work: Option<&Work>) -> bool {
        self.farewell != Farewell::None || work.is_some_and(|work| work.client_passing == 0 && has_terminate(&work.client_in))
    }

    /// Whether the end of the session would take something from the client that it has asked for. A COPY whose data
    /// has ended in the middle never comes to an end, unless something was sent behind it that is no data: an error
    /// then.
    fn is_outstanding(&self, work: &Work) -> bool {
        let copies = work.copy_in == CopyIn::Takes && work.owed.len() <= 1;
        let waits = self.starting.is_some() || matches!(self.phase, Phase::Waiting);
        let sent = !work.owed.is_empty() || !work.to_server.is_empty() || work.ready_after_bring.is_some();
        waits || (!copies && (sent || work.after_bring || work.attempt.is_some() || !work.batch.is_empty()))
    }

    /// The server connection is about to be let go of. What the server has said beyond its last answer is nobody's, and neither is a message that was
    /// sent to it in part, nor what nobody has looked at: such a connection is never given on.
    pub fn let_go(&mut self, work: Option<&mut Work>, server: &mut ServerState) {
        if let Some(work) = work {
            server.tainted |= !work.server_in.is_empty() || work.server_passing > 0 || (work.client_passing > 0 && work.client_passing_on);
            work.server_in.clear();
            work.server_passing = 0;
        }
        if server.tx != TxStatus::Idle {
            // Its owner rolls back what is open.
            self.roll_back_changes(Some(server));
        }
        server.tainted |= server.unsure || server.own_names.is_some() || self.settings.unread().next().is_some();
    }

    pub fn pins(&self) -> Pins {
        self.pins
    }

    /// What the client was last told of a parameter that servers report.
    pub fn told(&self, name: &str) -> Option<&[u8]> {
        self.told.value(name)
    }

    pub fn status(&self) -> TxStatus {
        self.status
    }

    /// Whether its server connection is worth keeping for it, though it isn't pinned.
    pub fn has_affinity(&self) -> bool {
        self.sequence_advanced
    }

    /// The client hasn't been told its key yet.
    pub fn is_starting(&self) -> bool {
        self.starting.is_some()
    }

    /// The process id to tell in BackendKeyData, instead of the one that the session was made with.
    pub fn tell_pid(&mut self, pid: i32) {
        if let Some(key) = &mut self.starting {
            key.pid = pid;
        }
    }

    /// Nothing is under way: a shutdown may end the session here.
    pub fn is_quiet(&self, work: &Work) -> bool {
        self.starting.is_none() && self.status == TxStatus::Idle && work.owed.is_empty() && work.batch.is_empty()
    }

    /// Nothing is under way, and nothing that the session holds is in `work`.
    pub fn is_idle(&self, work: &Work) -> bool {
        self.starting.is_none() && self.want.is_none() && matches!(self.phase, Phase::Idle) && work.is_spare()
    }

    /// Whether a message that is larger than what was read so far has begun.
    pub fn needs_more(&self, work: &Work) -> bool {
        matches!(frame::header(&work.client_in), Ok(Some(header)) if work.client_in.len() < header.total)
    }

    /// Whether more of the client's bytes can be taken now.
    pub fn accepts(&self, env: &Env<'_>, work: &Work) -> bool {
        if self.want == Some(Want::Close)
            || self.farewell == Farewell::Taken
            || self.starting.is_some()
            || work.after_bring
            || work.elsewhere
            || work.ready_after_bring.is_some()
            || work.to_server.len() >= TO_SERVER_MAX
            || work.to_client.len() >= TO_CLIENT_MAX
        {
            return false;
        }
        match &self.phase {
            Phase::Idle => true,
            Phase::Waiting => false,
            Phase::Holding { .. } if work.copy_in == CopyIn::Takes || work.client_passing > 0 => true,
            // What the router may refuse itself comes behind all answers that are owed.
            Phase::Holding { .. } if self.lost.is_some() && !work.owed.is_empty() => false,
            Phase::Holding { role, .. } => {
                work.attempt.is_none()
                    && !work.alone
                    && work.owed.len() < OWED_MAX
                    && (work.owed.is_empty() || *role == ServerRole::Leader || self.pipelines_reads(env))
            }
        }
    }

    /// Takes what it can of `work.client_in`. `server`: the server connection that it holds, if any.
    pub fn client_bytes(&mut self, env: &Env<'_>, work: &mut Work, mut server: Option<&mut ServerState>) {
        let mut input = std::mem::take(&mut work.client_in);
        let mut at = 0;
        // What is left is no whole message: only more bytes can make one of it.
        let mut incomplete = false;
        while at < input.len() && self.want.is_none() && self.accepts(env, work) {
            let rest = &input[at..];
            if work.client_passing > 0 {
                let part = work.client_passing.min(rest.len());
                if work.client_passing_on {
                    work.to_server.extend_from_slice(&rest[..part]);
                }
                work.client_passing -= part;
                at += part;
                if work.client_passing == 0
                    && work.client_passing_on
                    && work.copy_in != CopyIn::Takes
                    && matches!(self.phase, Phase::Holding { .. })
                {
                    // The COPY is over: the server connection was only kept for the rest of this message.
                    if let Some(server) = server.as_deref_mut() {
                        self.return_if_done(env, work, server);
                    }
                }
                continue;
            }
            let header = match frame::header(rest) {
                Ok(Some(header)) => header,
                Ok(None) => {
                    incomplete = true;
                    break;
                }
                Err(_) => {
                    self.refuse_fatal(work, &Refusal::InvalidMessage { detail: "invalid message length".into() });
                    break;
                }
            };
            if matches!(header.tag, b'd' | b'c' | b'f')
                && work.copy_in != CopyIn::Takes
                && self.awaits_copy(env, work, server.as_deref_mut())
            {
                break;
            }
            if header.tag == b'd' {
                // COPY data: never looked into, never held.
                work.client_passing = header.total;
                work.client_passing_on = work.copy_in == CopyIn::Takes;
                continue;
            }
            if header.total > env.policy.max_message_bytes {
                self.refuse_fatal(work, &Refusal::MessageTooLarge { bytes: header.total, limit: env.policy.max_message_bytes });
                break;
            }
            if rest.len() < header.total {
                incomplete = true;
                break;
            }
            let message = &rest[..header.total];
            // What a segment that has been sent in part goes on with behind the end of a failed transaction is judged when that is known.
            let ends_within = work.segment == Segment::Open && work.batch.end == End::Open && work.batch.ends_transaction_last();
            if !matches!(header.tag, b'S' | b'H' | b'X') && !self.skipping && (work.batch.needs_answer() || ends_within) {
                // What it means depends on what is about to change: names, settings, where strings end.
                if self.names_wait(work, server.as_deref()) {
                    self.await_answers(env, work, server.as_deref_mut(), header.tag);
                } else {
                    work.batch.end = End::Overflow;
                    self.submit(env, work, server.as_deref_mut());
                }
                break;
            }
            if self.comes_behind_answers(env, work, server.as_deref(), header.tag, message) {
                self.await_answers(env, work, server.as_deref_mut(), header.tag);
                break;
            }
            if matches!(header.tag, b'B' | b'D')
                && !self.skipping
                && work.copy_in != CopyIn::Takes
                && means_unnamed(message)
                && unnamed_is_open(work)
            {
                break;
            }
            at += header.total;
            if header.tag == b'X' {
                // Nobody reads what comes behind it.
                at = input.len();
                self.client_ended();
                break;
            }
            if let Err(view::Malformed(what)) = self.client_message(env, work, server.as_deref_mut(), header.tag, message) {
                self.refuse_fatal(work, &Refusal::InvalidMessage { detail: format!("invalid {what} message").into() });
            }
        }
        incomplete |= at == input.len();
        input.drain(..at);
        work.client_in = input;
        if self.farewell == Farewell::Heard && incomplete && self.want.is_none() {
            self.part(env, work, server);
        }
    }

    /// All that the client has sent before its goodbye has been taken, but for half a message, which PostgreSQL
    /// doesn't run either. What is left of a segment without a Sync runs there, and its end isn't committed;
    /// something in it may commit by itself.
    fn part(&mut self, env: &Env<'_>, work: &mut Work, server: Option<&mut ServerState>) {
        if !self.accepts(env, work) && self.is_outstanding(work) {
            // Its turn comes behind what is under way.
            return;
        }
        let unsent = work.batch.end == End::Open && !work.batch.is_empty();
        if unsent {
            let mut flush = Vec::new();
            reply::message(&mut flush, b'H', &[]);
            work.batch.push(Item::Flush, &flush);
            work.batch.end = End::Flush;
        } else if work.segment == Segment::Open && !work.owed.is_empty() {
            // The server would keep the last answers to itself.
            reply::message(&mut work.to_server, b'H', &[]);
        }
        self.farewell = Farewell::Taken;
        if unsent {
            self.submit(env, work, server);
        }
    }

    /// Whether COPY data has come before the server has said that it takes some: whoever is sure of that needn't wait (asyncpg doesn't).
    /// Data that no COPY asks for is dropped, as PostgreSQL does.
    fn awaits_copy(&mut self, env: &Env<'_>, work: &mut Work, server: Option<&mut ServerState>) -> bool {
        if work.batch.executed().any(|verdict| verdict.effects.contains(&Effect::CopyIn)) && !self.skipping {
            work.batch.end = End::Overflow;
            self.submit(env, work, server);
            return true;
        }
        work.owed.iter().skip(usize::from(work.copy_in == CopyIn::Ended)).any(|owed| match owed {
            Owed::Query(verdict, _) => verdict.effects.contains(&Effect::CopyIn),
            Owed::Execute(Some(statement)) => statement.verdict.effects.contains(&Effect::CopyIn),
            _ => false,
        })
    }

    fn client_message(
        &mut self,
        env: &Env<'_>,
        work: &mut Work,
        server: Option<&mut ServerState>,
        tag: u8,
        message: &[u8],
    ) -> Result<(), view::Malformed> {
        let body = &message[frame::HEADER..];
        if std::mem::take(&mut self.segment_lost) {
            let refusal = Refusal::TransactionLost { node: "the server".into() };
            work.tally.refusals.push(refusal.wording().sqlstate);
            refusal.encode(&mut work.to_client);
            self.skipping = true;
        }
        if work.copy_in == CopyIn::Takes {
            // The server judges whatever comes; CopyDone and CopyFail end it, Flush and Sync are ignored there.
            work.to_server.extend_from_slice(message);
            if tag == b'c' && self.status == TxStatus::Idle {
                env.marks.sends(&mut self.sending, &self.written, env.now);
            }
            if !matches!(tag, b'H' | b'S') {
                work.copy_in = if matches!(work.owed.front(), Some(Owed::Execute(_))) { CopyIn::Ended } else { CopyIn::None };
                // The Flush that had it begin came before that.
                work.flushed = false;
                // Anything but CopyDone and CopyFail is an error there, and takes no answer of its own.
                work.alone |= !matches!(tag, b'c' | b'f');
            }
            return Ok(());
        }
        if self.skipping {
            if tag == b'S' {
                self.unsynced = false;
                self.skipping = false;
                reply::ready_for_query(&mut work.to_client, self.status);
            }
            return Ok(());
        }
        if work.segment == Segment::Skipped && tag != b'S' {
            // The server would skip it, too.
            return Ok(());
        }
        self.unsynced = (self.unsynced || !matches!(tag, b'Q' | b'F' | b'c' | b'f')) && tag != b'S';
        let substitute;
        let (body, message) = match self.own_answer(env, work, tag, body) {
            Answer::Servers => (body, message),
            Answer::Given => return Ok(()),
            Answer::Instead(text) => {
                substitute = text;
                (&substitute[frame::HEADER..], &substitute[..])
            }
        };
        let item = match tag {
            b'Q' => {
                let text = view::query(body)?;
                self.unnamed_before = None;
                if self.may_not_be_read(text) {
                    self.unnamed_before.clone_from(&self.unnamed);
                }
                if !self.cannot_be_read(text) {
                    // "A simple Query message also destroys the unnamed statement" (protocol, Extended Query). It isn't skipped: see
                    // `comes_behind_answers`.
                    self.unnamed = None;
                    for owed in &mut work.owed {
                        // A Close of it that turns out to have been skipped brings nothing back.
                        if let Owed::Close { closed, .. } = owed {
                            closed.take_if(|(name, _)| name.is_empty());
                        }
                    }
                }
                Item::Query(self.verdict_of_portals(work, self.verdict(env, text)))
            }
            b'P' => self.prepare(env, work, body)?,
            b'B' => {
                let bind = view::bind(body)?;
                let statement = self.statement_now(env, bind.statement);
                let number = self.note_portal(env, bind.portal, statement.as_ref());
                Item::Bind { unnamed: bind.statement.is_empty(), statement, number }
            }
            b'D' => match view::target(body)? {
                (b'S', name) => Item::DescribeStatement { statement: self.statement(name), unnamed: name.is_empty() },
                (_, name) => Item::DescribePortal(self.portals.get(name).map(|(statement, _)| statement.clone())),
            },
            b'E' => {
                let statement = self.portals.get(view::execute(body)?).map(|(statement, _)| self.running_portals(work, statement));
                if let Some(statement) = statement.as_ref().filter(|statement| !self.drops_own_temporary(&statement.verdict)) {
                    env.judge.asked_to_run(&statement.verdict);
                }
                Item::Execute(statement)
            }
            b'C' => match view::target(body)? {
                (b'S', name) => Item::CloseStatement { name: name.into(), closed: self.forget_statement(name) },
                (_, name) => {
                    self.portals.remove(name);
                    Item::ClosePortal
                }
            },
            b'F' => Item::FunctionCall { large_object: is_for_large_objects(body) },
            b'H' => Item::Flush,
            b'S' => Item::Sync,
            // Left over from a COPY that failed: ignored, as PostgreSQL does.
            b'c' | b'f' => return Ok(()),
            other => {
                self.refuse_fatal(work, &Refusal::InvalidMessage { detail: format!("invalid frontend message type {other}").into() });
                return Ok(());
            }
        };
        let end = match &item {
            Item::Query(_) | Item::FunctionCall { .. } | Item::Sync => End::Ready,
            Item::Flush => End::Flush,
            _ if work.batch.bytes.len() + message.len() > env.policy.look_ahead_bytes => End::Overflow,
            _ => End::Open,
        };
        self.note_dialect(&item);
        self.note_portals(&item);
        work.batch.push(item, message);
        if end != End::Open {
            work.batch.end = end;
            self.submit(env, work, server);
        }
        Ok(())
    }

    /// Whether a text isn't in the client's encoding, so that a server refuses the message itself (22021) before it does anything. Asked only where
    /// that makes a difference, and of UTF-8, which is what nearly all clients speak.
    fn cannot_be_read(&self, text: &[u8]) -> bool {
        self.unnamed.is_some() && self.told.value("client_encoding") == Some(b"UTF8") && std::str::from_utf8(text).is_err()
    }

    /// As [`Session::cannot_be_read`], of encodings that only the server knows.
    fn may_not_be_read(&self, text: &[u8]) -> bool {
        self.unnamed.is_some() && !text.is_ascii() && self.told.value("client_encoding") != Some(b"UTF8")
    }

    /// The batch is complete: it goes to the server that is held, or a server is chosen.
    fn submit(&mut self, env: &Env<'_>, work: &mut Work, server: Option<&mut ServerState>) {
        (work.asked, work.unsettled, work.since, work.waits) = (None, None, None, None);
        if matches!(self.phase, Phase::Holding { .. })
            && let Some(server) = server
        {
            if self.needs_another(env, work, server) {
                work.elsewhere = true;
                return self.return_if_done(env, work, server);
            }
            if self.chains_on_leader(env, work, server) {
                // There a failed one stands in for it.
                self.lost = Some(Lost::Told);
                self.movable = None;
                self.want = Some(Want::Return);
                return;
            }
            if let Some(leader) = self.must_move(env, work) {
                // A READ ONLY transaction leaves its replica: what it has done there is undone with the return.
                self.begin = self.movable.take();
                // Nobody will send the Sync that a Flush before this has left open there.
                server.tainted |= std::mem::take(&mut work.segment) != Segment::Closed;
                work.rerun_on_leader = leader;
                self.want = Some(Want::Return);
                return;
            }
            return self.dispatch(env, work, server);
        }
        if work.batch.is_trivial() && self.lost.is_none() {
            // No server holds anything of this session, and none would say more.
            if work.batch.end == End::Ready {
                reply::ready_for_query(&mut work.to_client, self.status);
            }
            return work.batch.clear();
        }
        self.decide(env, work);
    }

    /// The server connection that was asked for. `member`: as it was when the lease was given.
    pub fn granted(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, member: Arc<Member>) {
        work.last_words = None;
        server.custom_before.clone_from(&server.custom);
        self.phase = Phase::Holding { member, role: server.role };
        if server.role == ServerRole::Leader {
            let in_force = env.topology.leader_at(env.now).is_some_and(|(leader, _)| leader.epoch == server.epoch);
            if !in_force && self.starting.is_none() {
                // The leader changed while the lease was on its way: never sent, so it may be decided again.
                self.want = Some(Want::Return);
                return;
            }
        }
        if env.topology.state == ClusterState::Switching && leads(env.topology, &server.node) {
            // A switchover began while the lease was on its way. Whoever drains the leader counts leases, and after its hold has been
            // published no new one may come to be used.
            self.want = Some(Want::Return);
            return;
        }
        if self.starting.is_some() {
            return self.bring_or_start(env, work, server);
        }
        self.dispatch(env, work, server);
    }

    /// The server connection was given back, or thrown away. Decides again where a batch still waits for its answer.
    pub fn returned(&mut self, env: &Env<'_>, work: &mut Work) {
        self.phase = Phase::Idle;
        work.elsewhere = false;
        if let Some(refusal) = self.bad_startup.take() {
            return self.refuse_fatal(work, &refusal);
        }
        if self.starting.is_some() || work.batch.end != End::Open {
            self.decide(env, work);
        }
    }

    /// The topology is another one than when the session decided what to wait for.
    pub fn decide_again(&mut self, env: &Env<'_>, work: &mut Work) {
        if matches!(self.phase, Phase::Waiting) {
            self.decide(env, work);
        }
    }

    /// What the session waits for can't be had.
    pub fn denied(&mut self, work: &mut Work, refusal: &Refusal) {
        self.phase = Phase::Idle;
        if self.starting.is_some() {
            return self.refuse_fatal(work, refusal);
        }
        if self.begin.take().is_some() {
            self.lost = Some(Lost::Told);
            self.status = TxStatus::Failed;
        }
        self.refuse_batch(work, refusal);
    }

    /// Could not connect to the node that was chosen: another one, where the batch may go elsewhere.
    pub fn unreachable(&mut self, env: &Env<'_>, work: &mut Work, node: &Arc<str>, refusal: &Refusal) {
        self.phase = Phase::Idle;
        if work.excluded.iter().any(|excluded| excluded == node) {
            return self.denied(work, refusal);
        }
        work.excluded.push(node.clone());
        self.decide(env, work);
    }

    /// Authors an error as the answer to the batch that waits.
    fn refuse_batch(&mut self, work: &mut Work, refusal: &Refusal) {
        if refusal.wording().severity == Severity::Fatal {
            return self.refuse_fatal(work, refusal);
        }
        work.tally.refusals.push(refusal.wording().sqlstate);
        refusal.encode(&mut work.to_client);
        if self.status == TxStatus::InTransaction {
            self.status = TxStatus::Failed;
        }
        self.end_refused_batch(work);
    }

    /// Behind the error that answers the batch: its end, or skipping up to the Sync that ends it.
    fn end_refused_batch(&mut self, work: &mut Work) {
        let ends = work.batch.end == End::Ready;
        self.abandon_batch(work);
        if ends {
            reply::ready_for_query(&mut work.to_client, self.status);
        } else {
            self.skipping = true;
        }
        work.forget_attempts();
    }

    /// Drops a batch that no server will answer: what it would have prepared isn't, what it would have closed is still there.
    fn abandon_batch(&mut self, work: &mut Work) {
        let mut batch = std::mem::take(&mut work.batch);
        for (item, range) in std::mem::take(&mut batch.items).into_iter().rev() {
            match item {
                Item::Parse { name, statement, previous, .. } => self.unprepare(&name, &statement, previous),
                Item::CloseStatement { name, closed } => self.reinstate(name, closed),
                Item::Bind { number, .. } => {
                    if let Ok(bind) = view::bind(&batch.bytes[range][frame::HEADER..]) {
                        self.unbind(bind.portal, number);
                    }
                }
                // It may be there still.
                Item::ClosePortal => self.portals_in_doubt = true,
                Item::Query(_)
                | Item::DescribeStatement { .. }
                | Item::DescribePortal(_)
                | Item::Execute(_)
                | Item::FunctionCall { .. }
                | Item::Refused(_)
                | Item::Flush
                | Item::Sync => {}
            }
        }
        batch.clear();
        work.batch = batch;
        work.kept_back.clear();
        work.attempt = None;
    }

    fn refuse_fatal(&mut self, work: &mut Work, refusal: &Refusal) {
        let wording = refusal.wording();
        work.tally.refusals.push(wording.sqlstate);
        let mut message = Vec::new();
        refusal.encode(&mut message);
        // What is an ERROR to a session that goes on ends one that has not begun.
        if wording.severity != Severity::Fatal {
            replies::make_fatal(&mut message);
        }
        work.to_client.append(&mut message);
        self.want = Some(Want::Close);
    }

    /// Ends the session with a FATAL of the router (shutdown, administrator, timeouts).
    pub fn end(&mut self, work: &mut Work, refusal: &Refusal) {
        self.refuse_fatal(work, refusal);
    }

    /// A standby refuses SERIALIZABLE.
    fn reading_allowed_on_leader_only(&self) -> bool {
        self.default_isolation_is("serializable")
    }

    fn default_isolation_is(&self, level: &str) -> bool {
        match self.settings.value("default_transaction_isolation") {
            Some(Value::Known(text)) => text.to_ascii_lowercase().windows(level.len()).any(|part| part == level.as_bytes()),
            // It may be any.
            Some(Value::Unread(_)) => true,
            None => false,
        }
    }

    fn default_read_only(&self) -> bool {
        self.told.value("default_transaction_read_only") == Some(b"on")
    }

    fn dialect(&self) -> Dialect {
        Dialect { standard_conforming_strings: self.standard_conforming_strings, client_encoding_is_ascii_safe: self.ascii_safe }
    }

    /// Whether what waits in line ([`Want::Hold`]) needs a leader in force, and nothing that is learnt of a replica can end its wait.
    pub fn waits_for_leader(&self) -> bool {
        self.for_leader
    }

    fn hold(&mut self) {
        self.phase = Phase::Waiting;
        self.for_leader = false;
        self.want = Some(Want::Hold);
    }

    fn lease(&mut self, need: Need) {
        self.phase = Phase::Waiting;
        self.want = Some(Want::Lease(need));
    }

    fn lease_leader(&mut self, env: &Env<'_>, why: Why) {
        match env.topology.leader_at(env.now) {
            Some((leader, member)) if env.topology.state == ClusterState::Stable => {
                self.lease(Need { node: member.name.clone(), role: ServerRole::Leader, epoch: leader.epoch, why });
            }
            _ => {
                self.hold();
                self.for_leader = matches!(why, Why::Write | Why::Transaction | Why::LookAhead);
            }
        }
    }
}

fn leads(topology: &Topology, node: &Arc<str>) -> bool {
    topology.leader.as_ref().and_then(|leader| topology.members.get(leader.member)).is_some_and(|member| member.name == *node)
}

#[cfg(test)]
mod tests;

/// Whether a FunctionCall is of one of the functions for which libpq has it (`fe-lobj.c`). Their OIDs never change.
fn is_for_large_objects(body: &[u8]) -> bool {
    let Some(oid) = body.first_chunk::<4>() else { return false };
    matches!(
        u32::from_be_bytes(*oid),
        // lo_create, lo_import, lo_export, lo_open, lo_close, loread, lowrite, lo_lseek, lo_creat, lo_tell, lo_unlink
        715 | 764 | 765 | 952 | 953 | 954 | 955 | 956 | 957 | 958 | 964
        // lo_truncate, lo_lseek64, lo_tell64, lo_truncate64
        | 1004 | 3170 | 3171 | 3172
    )
}

/// Whether there is a Terminate among the messages.
fn has_terminate(mut messages: &[u8]) -> bool {
    while let Ok(Some(header)) = frame::header(messages) {
        if header.tag == b'X' {
            return true;
        }
        messages = messages.get(header.total..).unwrap_or_default();
    }
    false
}

/// Whether a Bind or a Describe names the unnamed statement.
fn means_unnamed(message: &[u8]) -> bool {
    let body = &message[frame::HEADER..];
    match message[0] {
        b'B' => view::bind(body).is_ok_and(|bind| bind.statement.is_empty()),
        _ => matches!(view::target(body), Ok((b'S', name)) if name.is_empty()),
    }
}

/// Whether it isn't known what the unnamed statement is: a Parse or a Close of it is still owed, in a segment before this one. If that segment
/// fails, it's the one before, or none.
fn unnamed_is_open(work: &Work) -> bool {
    if work.batch.items.iter().any(|(item, _)| matches!(item, Item::Parse { name, .. } if name.is_empty())) {
        // Of the same segment: both run, or both are skipped.
        return false;
    }
    let mut behind_sync = false;
    for owed in work.owed.iter().rev() {
        match owed {
            Owed::Sync(_) => behind_sync = true,
            Owed::Parse { prepares: Some(prepares), .. } if prepares.name.is_empty() => return behind_sync,
            Owed::Close { closed: Some((name, _)), .. } if name.is_empty() => return behind_sync,
            _ => {}
        }
    }
    false
}
