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
mod loss;
mod pins;
mod replies;
mod server;
mod settings;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use batch::{Batch, End, Item, Statement};
use replies::Owed;

pub use pins::Pins;
pub use server::{ServerState, StatementId};
pub use settings::{How, Params, Settings};

use crate::causal::Watermark;
use crate::refusal::{Refusal, Severity};
use crate::route::{Excluded, Loads, Need, ServerRole, Why};
use crate::sql::{TransactionModes, Verdict};
use crate::topology::{Member, Topology};
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
    /// Reads must show what the session has seen; otherwise any replica in rotation will do.
    pub causal: bool,
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
    pub zone: Option<Arc<str>>,
}

/// Gives verdicts on statement texts.
pub trait Judge {
    /// `standard_conforming_strings`, and whether the client's encoding never has an ASCII byte within a character.
    fn verdict(&self, sql: &[u8], standard_conforming_strings: bool, ascii_safe: bool) -> Arc<Verdict>;
}

/// The world, as it is while one input is handled.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    pub now: Instant,
    pub topology: &'a Topology,
    pub loads: &'a dyn Loads,
    pub judge: &'a dyn Judge,
    pub policy: &'a Policy,
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
    /// Give the server connection back, then call [`Session::returned`].
    Return,
    /// Send what is left, then hang up.
    Close,
}

/// Who holds which server.
#[derive(Debug)]
enum Phase {
    Idle,
    /// A lease was asked for, or the session waits in the hold line.
    Waiting,
    Holding { member: Arc<Member>, role: ServerRole },
}

/// A BEGIN that was answered and not yet sent, with any SET TRANSACTION behind it.
#[derive(Clone, Debug)]
struct HeldBegin {
    text: Vec<u8>,
    modes: TransactionModes,
}

/// A transaction whose server was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// The client doesn't know yet.
    Untold,
    /// Only the end of the transaction is accepted now.
    Told,
    /// A failed transaction on another server stands in for it, and answers in PostgreSQL's words until the client ends it.
    StoodIn,
}

/// A batch that can still run again elsewhere: nothing of its answer has been forwarded.
#[derive(Debug, Default)]
struct Attempt {
    /// The BEGIN that was sent ahead of it.
    begin: Option<HeldBegin>,
    /// What the server said instead of an answer: the rest is swallowed, then the batch runs again.
    failed: Option<[u8; 5]>,
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
    /// Rest of a client's CopyData, in bytes, and whether it goes to the server or nowhere.
    client_passing: usize,
    client_passing_on: bool,
    /// Rest of a server message that is passed through (or swallowed), in bytes.
    server_passing: usize,
    server_swallowing: bool,
    /// The server waits for COPY data.
    copy_in: bool,
    /// The batch waits for the settings to be accepted.
    after_bring: bool,
    /// A settings replay or a held BEGIN failed.
    prelude_failed: Option<Vec<u8>>,
    /// An ErrorResponse came for the current segment.
    segment_failed: bool,
    /// What runs shows data, or changes it: the watermark must know.
    shows: bool,
    /// The text of the one statement that runs, where it may have to be replayed as a setting.
    running_text: Option<Box<[u8]>>,
    /// The current segment, or one before it that is still owed, may write.
    writing: bool,
    /// The FATAL that a server sent before it hung up.
    last_words: Option<[u8; 5]>,
    /// The last CommandComplete was ROLLBACK.
    rolled_back: bool,
    excluded: Excluded,
    /// The next lease is the leader's, whatever the class.
    rerun_on_leader: bool,
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
}

impl Tally {
    pub fn is_empty(&self) -> bool {
        self.queries == 0 && self.errors == 0 && self.reruns.is_empty() && self.refusals.is_empty()
    }
}

impl Work {
    /// Whether the client has to wait until one of the sides has taken what is there.
    fn is_full(&self) -> bool {
        self.to_server.len() >= TO_SERVER_MAX || self.to_client.len() >= TO_CLIENT_MAX || self.owed.len() >= OWED_MAX
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
            && self.client_passing == 0
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
    /// The key to tell; taken when the first ReadyForQuery is sent.
    starting: Option<CancelKey>,
    /// What the client was last told of its transaction.
    status: TxStatus,
    begin: Option<HeldBegin>,
    /// The BEGIN of a READ ONLY transaction that runs on a replica and may still move to the leader.
    movable: Option<HeldBegin>,
    lost: Option<Lost>,
    startup: Arc<Settings>,
    settings: Arc<Settings>,
    /// The settings have been accepted by a server.
    settings_proven: bool,
    /// The settings to go back to if the transaction, or the segment outside one, fails.
    undo: Option<Arc<Settings>>,
    told: Params,
    standard_conforming_strings: bool,
    ascii_safe: bool,
    statements: FxHashMap<Box<[u8]>, Arc<Statement>>,
    unnamed: Option<Arc<Statement>>,
    portals: FxHashMap<Box<[u8]>, Arc<Verdict>>,
    pins: Pins,
    /// Advanced a sequence, or may have: `currval` is worth keeping its server connection near.
    sequence_advanced: bool,
    watermark: Watermark,
    /// The client's messages are dropped up to its Sync.
    skipping: bool,
}

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
        let startup = Arc::new(startup);
        Session {
            phase: Phase::Idle,
            want: None,
            starting: Some(key),
            status: TxStatus::Idle,
            begin: None,
            movable: None,
            lost: None,
            settings: startup.clone(),
            startup,
            settings_proven: false,
            undo: None,
            told: Params::default(),
            standard_conforming_strings: true,
            ascii_safe: true,
            statements: FxHashMap::default(),
            unnamed: None,
            portals: FxHashMap::default(),
            pins: Pins::default(),
            sequence_advanced: false,
            watermark: Watermark::default(),
            skipping: false,
        }
    }

    pub fn take_want(&mut self) -> Option<Want> {
        self.want.take()
    }

    pub fn pins(&self) -> Pins {
        self.pins
    }

    pub fn status(&self) -> TxStatus {
        self.status
    }

    /// Whether its server connection is worth keeping for it, though it isn't pinned.
    pub fn has_affinity(&self) -> bool {
        self.sequence_advanced
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
        if self.want == Some(Want::Close) || self.starting.is_some() || work.after_bring || work.is_full() {
            return false;
        }
        match &self.phase {
            Phase::Idle => true,
            Phase::Waiting => false,
            Phase::Holding { .. } if work.owed.is_empty() => work.attempt.is_none(),
            // What the router may refuse itself comes behind all answers that are owed.
            Phase::Holding { .. } if self.lost.is_some() || self.serves_fallback(env) => false,
            Phase::Holding { role, .. } => work.attempt.is_none() && (*role == ServerRole::Leader || env.policy.access == Access::ReadOnly),
        }
    }

    /// Takes what it can of `work.client_in`. `server`: the server connection that it holds, if any.
    pub fn client_bytes(&mut self, env: &Env<'_>, work: &mut Work, mut server: Option<&mut ServerState>) {
        let mut input = std::mem::take(&mut work.client_in);
        let mut at = 0;
        while at < input.len() && self.want.is_none() && self.accepts(env, work) {
            let rest = &input[at..];
            if work.client_passing > 0 {
                let part = work.client_passing.min(rest.len());
                if work.client_passing_on {
                    work.to_server.extend_from_slice(&rest[..part]);
                }
                work.client_passing -= part;
                at += part;
                continue;
            }
            let header = match frame::header(rest) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(_) => {
                    self.refuse_fatal(work, &Refusal::InvalidMessage { detail: "invalid message length".into() });
                    break;
                }
            };
            if header.tag == b'd' {
                // COPY data: never looked into, never held.
                work.client_passing = header.total;
                work.client_passing_on = work.copy_in;
                continue;
            }
            if header.total > env.policy.max_message_bytes {
                self.refuse_fatal(work, &Refusal::MessageTooLarge { bytes: header.total, limit: env.policy.max_message_bytes });
                break;
            }
            if rest.len() < header.total {
                break;
            }
            let message = &rest[..header.total];
            at += header.total;
            if let Err(view::Malformed(what)) = self.client_message(env, work, server.as_deref_mut(), header.tag, message) {
                self.refuse_fatal(work, &Refusal::InvalidMessage { detail: format!("invalid {what} message").into() });
            }
        }
        input.drain(..at);
        work.client_in = input;
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
        if tag == b'X' {
            self.want = Some(Want::Close);
            return Ok(());
        }
        if work.copy_in {
            // The server judges whatever comes; CopyDone and CopyFail end it, Flush and Sync are ignored there.
            work.to_server.extend_from_slice(message);
            work.copy_in = !matches!(tag, b'c' | b'f');
            return Ok(());
        }
        if self.skipping {
            if tag == b'S' {
                self.skipping = false;
                reply::ready_for_query(&mut work.to_client, self.status);
            }
            return Ok(());
        }
        if work.segment_failed && tag != b'S' && !work.owed.iter().any(Owed::ends_segment) {
            // The server skips to Sync, too, and without an answer: sent, it would be owed one for ever.
            return Ok(());
        }
        let item = match tag {
            b'Q' => Item::Query(self.verdict(env, view::query(body)?)),
            b'P' => match self.prepare(env, work, body)? {
                Some(item) => item,
                None => return Ok(()),
            },
            b'B' => {
                let bind = view::bind(body)?;
                let statement = self.statement(bind.statement);
                let portal = (bind.portal, statement.as_ref().map(|statement| statement.verdict.clone()));
                self.note_portal(env, portal.0, portal.1);
                Item::Bind { unnamed: bind.statement.is_empty(), statement }
            }
            b'D' => match view::target(body)? {
                (b'S', name) => Item::DescribeStatement { statement: self.statement(name), unnamed: name.is_empty() },
                _ => Item::DescribePortal,
            },
            b'E' => Item::Execute(self.portals.get(view::execute(body)?).cloned()),
            b'C' => match view::target(body)? {
                (b'S', name) => {
                    self.forget_statement(name);
                    Item::CloseStatement(name.into())
                }
                (_, name) => {
                    self.portals.remove(name);
                    Item::ClosePortal
                }
            },
            b'F' => Item::FunctionCall,
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
            Item::Query(_) | Item::FunctionCall | Item::Sync => End::Ready,
            Item::Flush => End::Flush,
            _ if work.batch.bytes.len() + message.len() > env.policy.look_ahead_bytes => End::Overflow,
            _ => End::Open,
        };
        work.batch.push(item, message);
        if end != End::Open {
            work.batch.end = end;
            self.submit(env, work, server);
        }
        Ok(())
    }

    fn verdict(&self, env: &Env<'_>, sql: &[u8]) -> Arc<Verdict> {
        env.judge.verdict(sql, self.standard_conforming_strings, self.ascii_safe)
    }

    fn statement(&self, name: &[u8]) -> Option<Arc<Statement>> {
        if name.is_empty() { self.unnamed.clone() } else { self.statements.get(name).cloned() }
    }

    fn forget_statement(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.unnamed = None;
        } else {
            self.statements.remove(name);
        }
    }

    fn note_portal(&mut self, env: &Env<'_>, portal: &[u8], verdict: Option<Arc<Verdict>>) {
        match verdict {
            // Beyond the limit a portal's verdict is unknown, which means the leader.
            Some(verdict) if self.portals.len() < env.policy.max_statements => {
                self.portals.insert(portal.into(), verdict);
            }
            _ => {
                self.portals.remove(portal);
            }
        }
    }

    /// A client's Parse. `None`: it was refused.
    fn prepare(&mut self, env: &Env<'_>, work: &mut Work, body: &[u8]) -> Result<Option<Item>, view::Malformed> {
        let parse = view::parse(body)?;
        let settings = self.settings.analysis_hash();
        if parse.name.is_empty() {
            // Drivers prepare the same unnamed statement over and over.
            let statement = match &self.unnamed {
                Some(last) if *last.tail == *parse.tail && last.id == statement_id(parse.tail, settings) => last.clone(),
                _ => Arc::new(Statement {
                    id: statement_id(parse.tail, settings),
                    tail: parse.tail.into(),
                    verdict: self.verdict(env, parse.text),
                }),
            };
            self.unnamed = Some(statement.clone());
            return Ok(Some(Item::Parse { name: Box::default(), statement }));
        }
        if self.statements.len() >= env.policy.max_statements && !self.statements.contains_key(parse.name) {
            self.refuse_batch(work, &Refusal::TooManyStatements { limit: env.policy.max_statements });
            return Ok(None);
        }
        if self.statements.contains_key(parse.name) {
            // The server that gets it says so; see `dispatch`.
            let statement = Arc::new(Statement { id: 0, tail: parse.tail.into(), verdict: self.verdict(env, parse.text) });
            return Ok(Some(Item::Parse { name: parse.name.into(), statement }));
        }
        let statement = Arc::new(Statement {
            id: statement_id(parse.tail, settings),
            tail: parse.tail.into(),
            verdict: self.verdict(env, parse.text),
        });
        self.statements.insert(parse.name.into(), statement.clone());
        Ok(Some(Item::Parse { name: parse.name.into(), statement }))
    }

    /// The batch is complete: it goes to the server that is held, or a server is chosen.
    fn submit(&mut self, env: &Env<'_>, work: &mut Work, server: Option<&mut ServerState>) {
        if matches!(self.phase, Phase::Holding { .. })
            && let Some(server) = server
        {
            if self.must_move(work) {
                // A READ ONLY transaction leaves its replica: what it has done there is undone with the return.
                self.begin = self.movable.take();
                work.rerun_on_leader = true;
                self.want = Some(Want::Return);
                return;
            }
            return self.dispatch(env, work, server);
        }
        self.decide(env, work);
    }

    /// The server connection that was asked for. `member`: as it was when the lease was given.
    pub fn granted(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, member: Arc<Member>) {
        self.phase = Phase::Holding { member, role: server.role };
        if server.role == ServerRole::Leader {
            let in_force = env.topology.leader_at(env.now).is_some_and(|(leader, _)| leader.epoch == server.epoch);
            if !in_force && self.starting.is_none() {
                // The leader changed while the lease was on its way: never sent, so it may be decided again.
                self.want = Some(Want::Return);
                return;
            }
        }
        if self.starting.is_some() {
            return self.bring_or_start(env, work, server);
        }
        self.dispatch(env, work, server);
    }

    /// The server connection was given back, or thrown away. Decides again where a batch still waits for its answer.
    pub fn returned(&mut self, env: &Env<'_>, work: &mut Work) {
        self.phase = Phase::Idle;
        if self.starting.is_some() || work.batch.end != End::Open {
            self.decide(env, work);
        }
    }

    /// The topology changed while the session waits in the hold line.
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
        let ends = work.batch.end == End::Ready;
        self.abandon_batch(work);
        if ends {
            reply::ready_for_query(&mut work.to_client, self.status);
        } else {
            self.skipping = true;
        }
        work.excluded.clear();
        work.rerun_on_leader = false;
    }

    /// Drops a batch that no server will answer: what it would have prepared isn't.
    fn abandon_batch(&mut self, work: &mut Work) {
        for (item, _) in work.batch.items.drain(..) {
            if let Item::Parse { name, statement } = item
                && self.statement(&name).is_some_and(|known| Arc::ptr_eq(&known, &statement))
            {
                self.forget_statement(&name);
            }
        }
        work.batch.clear();
        work.kept_back.clear();
        work.attempt = None;
    }

    fn refuse_fatal(&mut self, work: &mut Work, refusal: &Refusal) {
        let wording = refusal.wording();
        work.tally.refusals.push(wording.sqlstate);
        refusal.encode(&mut work.to_client);
        self.want = Some(Want::Close);
    }

    /// Ends the session with a FATAL of the router (shutdown, administrator, timeouts).
    pub fn end(&mut self, work: &mut Work, refusal: &Refusal) {
        self.refuse_fatal(work, refusal);
    }

    fn reading_allowed_on_leader_only(&self) -> bool {
        // A standby refuses SERIALIZABLE.
        match self.settings.value("default_transaction_isolation") {
            Some(How::Value(text) | How::Statement(text)) => text.to_ascii_lowercase().windows(12).any(|part| part == b"serializable"),
            None => false,
        }
    }

    fn default_read_only(&self) -> bool {
        self.told.value("default_transaction_read_only") == Some(b"on")
    }

    fn hold(&mut self) {
        self.phase = Phase::Waiting;
        self.want = Some(Want::Hold);
    }

    fn lease(&mut self, need: Need) {
        self.phase = Phase::Waiting;
        self.want = Some(Want::Lease(need));
    }

    fn lease_leader(&mut self, env: &Env<'_>, why: Why) {
        use crate::topology::ClusterState;
        match env.topology.leader_at(env.now) {
            Some((leader, member)) if env.topology.state == ClusterState::Stable => {
                self.lease(Need { node: member.name.clone(), role: ServerRole::Leader, epoch: leader.epoch, why });
            }
            _ => self.hold(),
        }
    }
}

/// Statements of one content and meaning are one on a server.
fn statement_id(tail: &[u8], settings: u64) -> StatementId {
    // 0 is kept for statements that are never shared.
    xxhash_rust::xxh3::xxh3_128_with_seed(tail, settings).max(1)
}

#[cfg(test)]
mod tests;
