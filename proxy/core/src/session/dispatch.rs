//! Writing a batch for the server that was granted: settings first, a held BEGIN, replays of prepared statements, then the
//! client's messages with its statements' names replaced.

use std::sync::Arc;

use super::batch::{End, Item, Statement};
use super::replies::{Owed, Prepares, Sync};
use super::server::{StatementId, server_name};
use super::{Access, Attempt, Env, HeldBegin, Lost, Phase, Segment, ServerState, Session, Work, own};
use crate::marks::Touched;
use crate::refusal::Refusal;
use crate::route::ServerRole;
use crate::sql::{Class, Effect, Kind, PinReason, Verdict};
use crate::wire::reply::{self, TxStatus};
use crate::wire::{frame, view};

impl Session {
    /// At the session's start: brings the server to the startup settings, or starts at once where it is there already.
    pub(super) fn bring_or_start(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        if self.bring(work, server) {
            work.after_bring = true;
        } else {
            self.start(env, work, server);
        }
    }

    /// Sends what brings the server to the session's settings. False where it is there.
    pub(super) fn bring(&mut self, work: &mut Work, server: &mut ServerState) -> bool {
        if Arc::ptr_eq(&server.settings, &self.settings) || !server.settings.differs(&self.settings, server.role) {
            return false;
        }
        server.settings.bring(&self.settings, server.role, &mut work.to_server);
        server.ready = false;
        // A simple query destroys it.
        server.unnamed = None;
        work.owed.push_back(Owed::Bring);
        true
    }

    /// Sends the batch to the server that is held.
    pub(super) fn dispatch(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        if work.owed.is_empty()
            && work.segment == Segment::Closed
            && server.tx == TxStatus::Idle
            && self.bring(work, server)
            && !self.settings_proven
        {
            // A value that no server has accepted yet may fail: then the batch must not have been sent.
            work.after_bring = true;
            return;
        }
        self.send_batch(env, work, server);
    }

    /// The settings are accepted, or needn't be waited for.
    pub(super) fn send_batch(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        server.ready = false;
        if !work.sent.is_empty() {
            // A write with something behind it in the pipeline isn't a lone one any more.
            self.deliver(env, work);
        }
        let class = work.batch.class();
        let begins = work.segment == Segment::Closed && work.owed.iter().all(|owed| matches!(owed, Owed::Bring));
        let lone_write = begins && self.begin_segment(env, work, server, class);
        if env.policy.session_mode {
            self.pins.add(PinReason::SessionMode);
        }
        work.writing |= class == Class::Write;
        if class == Class::Write && server.role == ServerRole::Leader {
            self.note_writes(env, work);
        }
        work.shows |= class != Class::Local;
        work.alone |= work.batch.executed().any(|verdict| must_be_answered_first(verdict));
        // Parse and Describe alone don't bind the batch to a node: the server is done with them, whatever the client sends next.
        let syncs_flush = work.batch.end == End::Flush
            && !work.batch.executes()
            && self.status == TxStatus::Idle
            && work.segment == Segment::Closed
            && server.tx == TxStatus::Idle;
        work.alone |= syncs_flush;
        let lone = work.segment == Segment::Closed && work.batch.items.len() == 1;
        let batch = std::mem::take(&mut work.batch);
        for (item, range) in &batch.items {
            match self.refused(env, item, &batch.bytes[range.clone()]) {
                Some(refusal) => send_refused(item, refusal, work, server),
                None => self.send_item(item, &batch.bytes[range.clone()], syncs_flush, lone, work, server),
            }
        }
        if batch.end == End::Ready {
            work.alone |= std::mem::take(&mut work.prepares);
        } else if batch.end == End::Overflow && work.alone {
            // What must be answered before more is taken must be answered now.
            reply::message(&mut work.to_server, b'H', &[]);
        }
        work.segment = if batch.end == End::Ready || syncs_flush { Segment::Closed } else { Segment::Open };
        if work.segment == Segment::Closed && !work.stand_ins.is_empty() {
            // Our Sync may end a skipping that is the client's to end.
            work.alone = true;
            for name in work.stand_ins.drain(..) {
                reply::close_statement(&mut work.to_server, &name);
                work.owed.push_back(Owed::Close { swallow: true, evicted: None, closed: None });
            }
            reply::sync(&mut work.to_server);
            work.owed.push_back(Owed::Sync(Sync::Ours));
        }
        work.batch = batch;
        if lone_write {
            std::mem::swap(&mut work.batch, &mut work.sent);
        }
        if work.attempt.is_none() {
            work.batch.clear();
        }
    }

    /// What the batch may write, once it is committed.
    fn note_writes(&mut self, env: &Env<'_>, work: &Work) {
        let generation = env.judge.generation();
        for (item, _) in &work.batch.items {
            let verdict = match item {
                Item::Query(verdict) => verdict,
                Item::Execute(Some(statement)) => &statement.verdict,
                // Nobody knows what it is.
                Item::Execute(None) | Item::FunctionCall => {
                    self.written.merge(&Touched::Everything);
                    continue;
                }
                Item::Parse { .. }
                | Item::Bind { .. }
                | Item::DescribeStatement { .. }
                | Item::DescribePortal
                | Item::CloseStatement { .. }
                | Item::ClosePortal
                | Item::Refused(_)
                | Item::Flush
                | Item::Sync => continue,
            };
            let outdated = verdict.generation != generation && !verdict.writes.is_nothing();
            self.written.merge(if outdated { &Touched::Everything } else { &verdict.writes });
            if outdated {
                self.written.merge(&verdict.writes);
            }
        }
    }

    /// What comes before the first batch on this lease. Whether that is a lone write, which may run again if it is proven to be rolled back.
    fn begin_segment(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, class: Class) -> bool {
        work.segment_failed = false;
        // A COMMIT shows nothing, and yet says that something is done.
        work.shows = self.status != TxStatus::Idle;
        work.writing = false;
        work.completed = false;
        work.rolled_back = false;
        work.undone = false;
        work.begin_failed = false;
        if self.lost == Some(Lost::Told) {
            // Only the end of the transaction is accepted now, and everything is answered in PostgreSQL's own words: by a
            // transaction that has failed.
            reply::query(&mut work.to_server, b"BEGIN");
            reply::query(&mut work.to_server, b"SELECT pg_catalog.int4div(1, 0)");
            work.owed.extend([Owed::Prelude, Owed::Prelude]);
            server.unnamed = None;
            self.lost = Some(Lost::StoodIn);
            return false;
        }
        let outside = server.tx == TxStatus::Idle && self.pins.is_empty();
        let ends_here = work.batch.end == End::Ready || (work.batch.end == End::Flush && !work.batch.executes());
        if let Some(begin) = self.begin.take() {
            // As messages of the extended protocol: if one fails, the server skips what comes behind it.
            for text in begin.texts.split_inclusive(|byte| *byte == 0) {
                reply::parse(&mut work.to_server, b"", &[text, b"\0\0"].concat());
                reply::message(&mut work.to_server, b'B', &[&[0; 8]]);
                reply::message(&mut work.to_server, b'E', &[&[0; 5]]);
                work.owed.push_back(Owed::Begin);
            }
            if !matches!(work.batch.items.first(), Some((Item::Query(_), _))) {
                // The portal is ours: the client has none of that name.
                reply::message(&mut work.to_server, b'C', &[b"P\0"]);
                work.owed.push_back(Owed::Close { swallow: true, evicted: None, closed: None });
            }
            server.unnamed = None;
            work.alone = true;
            let on_replica = server.role == ServerRole::Replica;
            if ends_here && work.batch.repeatable() && on_replica {
                work.attempt = Some(Attempt { begin: Some(begin.clone()), ..Attempt::default() });
            }
            // A READ ONLY transaction at READ COMMITTED may move to the leader with it.
            let one_snapshot = begin.modes.repeatable_read.unwrap_or_else(|| self.default_isolation_is("repeatable"));
            self.movable = (on_replica && env.policy.access == Access::ReadWrite && !one_snapshot).then_some(begin);
        } else if class == Class::Write {
            return outside && server.role == ServerRole::Leader && work.batch.lone_change().is_some();
        } else if outside && ends_here && class <= Class::Read && work.batch.repeatable() && !work.batch.is_trivial() {
            work.attempt = Some(Attempt::default());
        }
        false
    }

    fn send_item(&mut self, item: &Item, message: &[u8], syncs_flush: bool, lone: bool, work: &mut Work, server: &mut ServerState) {
        match item {
            Item::Query(verdict) => {
                work.tally.queries += 1;
                server.unnamed = None;
                if self.stand_in(verdict, work) && lone {
                    reply::sync(&mut work.to_server);
                    work.owed.push_back(Owed::Sync(Sync::Ours));
                }
                work.to_server.extend_from_slice(message);
                let text = sets(verdict).then(|| message[frame::HEADER..message.len() - 1].into());
                work.owed.push_back(Owed::Query(verdict.clone(), text));
            }
            Item::Parse { name, statement, previous } => self.send_parse(name, statement, previous.as_ref(), message, work, server),
            Item::Bind { statement, unnamed } => {
                let Some(name) = self.ensure_prepared(statement.as_ref(), *unnamed, work, server) else {
                    work.to_server.extend_from_slice(message);
                    return work.owed.push_back(Owed::Bind);
                };
                if let Ok(bind) = view::bind(&message[frame::HEADER..]) {
                    reply::message(&mut work.to_server, b'B', &[bind.portal, b"\0", name.bytes(), b"\0", bind.tail]);
                    work.owed.push_back(Owed::Bind);
                }
            }
            Item::DescribeStatement { statement, unnamed } => {
                match self.ensure_prepared(statement.as_ref(), *unnamed, work, server) {
                    Some(name) => reply::message(&mut work.to_server, b'D', &[b"S", name.bytes(), b"\0"]),
                    None => work.to_server.extend_from_slice(message),
                }
                work.owed.push_back(Owed::Describe);
            }
            Item::DescribePortal => {
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Describe);
            }
            Item::Execute(statement) => {
                work.tally.queries += 1;
                if let Some(statement) = statement {
                    self.stand_in(&statement.verdict, work);
                }
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Execute(statement.clone()));
            }
            // The server's statement is shared; the client's name means nothing to it, and closing that is no error.
            Item::CloseStatement { name, closed } => {
                if name.is_empty() {
                    server.unnamed = None;
                }
                work.to_server.extend_from_slice(message);
                let closed = closed.as_ref().map(|closed| (name.clone(), closed.clone()));
                work.owed.push_back(Owed::Close { swallow: false, evicted: None, closed });
            }
            Item::ClosePortal => {
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Close { swallow: false, evicted: None, closed: None });
            }
            Item::FunctionCall => {
                work.tally.queries += 1;
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::FunctionCall);
            }
            Item::Refused(refusal) => send_refused(item, Refusal::clone(refusal), work, server),
            Item::Flush if syncs_flush => {
                reply::sync(&mut work.to_server);
                work.owed.push_back(Owed::Sync(Sync::ForFlush));
            }
            Item::Flush => work.to_server.extend_from_slice(message),
            Item::Sync => {
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Sync(Sync::Clients));
            }
        }
    }

    /// A client's own Parse is always parsed by a server, so that its errors come at Parse.
    fn send_parse(
        &mut self,
        name: &[u8],
        statement: &Arc<Statement>,
        previous: Option<&Arc<Statement>>,
        message: &[u8],
        work: &mut Work,
        server: &mut ServerState,
    ) {
        let prepares = Some(Prepares { name: name.into(), statement: statement.clone(), previous: previous.cloned() });
        if name.is_empty() {
            server.unnamed = Some(statement.id);
            work.to_server.extend_from_slice(message);
            return work.owed.push_back(Owed::Parse { swallow: false, prepares, id: None });
        }
        if statement.id == 0 {
            // The client has this name already. The server says so, once it knows the name.
            stand_in_for(name, work);
            work.to_server.extend_from_slice(message);
            return work.owed.push_back(Owed::Parse { swallow: false, prepares: None, id: None });
        }
        work.prepares = true;
        if server.prepared().has(statement.id) {
            // There by another client's Parse: this one is parsed as the unnamed statement.
            server.unnamed = Some(statement.id);
            reply::parse(&mut work.to_server, b"", &statement.tail);
            return work.owed.push_back(Owed::Parse { swallow: false, prepares, id: None });
        }
        evict_for(statement.id, work, server);
        reply::parse(&mut work.to_server, &server_name(statement.id), &statement.tail);
        work.owed.push_back(Owed::Parse { swallow: false, prepares, id: Some(statement.id) });
    }

    /// Replays the statement's Parse where the server doesn't have it. The name to use there; `None` where the client's own name is to be
    /// passed through, because this session has prepared no such statement.
    fn ensure_prepared(
        &mut self,
        statement: Option<&Arc<Statement>>,
        unnamed: bool,
        work: &mut Work,
        server: &mut ServerState,
    ) -> Option<NameThere> {
        let Some(statement) = statement else {
            if unnamed {
                // What another session left there isn't this one's.
                server.unnamed = None;
                reply::close_statement(&mut work.to_server, b"");
                work.owed.push_back(Owed::Close { swallow: true, evicted: None, closed: None });
            }
            return None;
        };
        if statement.id == 0 {
            return None;
        }
        if unnamed {
            let open = unnamed_is_open(work);
            if server.unnamed != Some(statement.id) || open {
                let id = self.id_there(statement);
                if server.unnamed != Some(id) || open {
                    work.prepares = true;
                    server.unnamed = Some(id);
                    reply::parse(&mut work.to_server, b"", &statement.tail);
                    work.owed.push_back(Owed::Parse { swallow: true, prepares: None, id: None });
                }
            }
            return Some(NameThere::Unnamed);
        }
        if server.prepared().has(statement.id) {
            return Some(NameThere::Named(server_name(statement.id)));
        }
        let id = self.id_there(statement);
        if !server.prepared().has(id) {
            work.prepares = true;
            evict_for(id, work, server);
            reply::parse(&mut work.to_server, &server_name(id), &statement.tail);
            work.owed.push_back(Owed::Parse { swallow: true, prepares: None, id: Some(id) });
        }
        Some(NameThere::Named(server_name(id)))
    }

    /// DEALLOCATE of a statement that the server knows by another name: an empty one takes its place for DEALLOCATE to find.
    fn stand_in(&self, verdict: &Verdict, work: &mut Work) -> bool {
        let mut any = false;
        for effect in &verdict.effects {
            if let Effect::Deallocate { name } = effect
                && self.statements.contains_key(name.as_bytes())
            {
                stand_in_for(name.as_bytes(), work);
                any = true;
            }
        }
        any
    }

    /// Whether the session keeps its server connection between transactions.
    pub(super) fn pinned(&self, env: &Env<'_>) -> bool {
        !self.pins.is_empty() || (env.policy.session_mode && matches!(self.phase, Phase::Holding { .. }))
    }

    /// Puts a held BEGIN back for a batch that runs again.
    pub(super) fn put_begin_back(&mut self, begin: Option<HeldBegin>) {
        if begin.is_some() {
            self.begin = begin;
            self.movable = None;
        }
    }
}

/// A statement's name on a server.
enum NameThere {
    Unnamed,
    Named([u8; 35]),
}

impl NameThere {
    fn bytes(&self) -> &[u8] {
        match self {
            NameThere::Unnamed => b"",
            NameThere::Named(name) => name,
        }
    }
}

fn evict_for(id: StatementId, work: &mut Work, server: &mut ServerState) {
    if let Some(evicted) = server.prepared().add(id) {
        reply::close_statement(&mut work.to_server, &server_name(evicted));
        work.owed.push_back(Owed::Close { swallow: true, evicted: Some(evicted), closed: None });
    }
}

fn stand_in_for(name: &[u8], work: &mut Work) {
    if work.stand_ins.iter().any(|known| **known == *name) {
        return;
    }
    reply::parse(&mut work.to_server, name, b"\0\0\0");
    work.owed.push_back(Owed::Parse { swallow: true, prepares: None, id: None });
    work.stand_ins.push(name.into());
}

/// Text that no server accepts: the error behind which a refusal of ours stands, so that the server itself skips to Sync and fails
/// the transaction.
const REFUSED: &[u8] = b"refused by switchyard\0";

/// Whether a Parse of the unnamed statement is still owed, in a segment before this one: it may be skipped after an error, and then
/// the server has another session's.
fn unnamed_is_open(work: &Work) -> bool {
    let mut behind_sync = false;
    for owed in work.owed.iter().rev() {
        match owed {
            Owed::Sync(_) => behind_sync = true,
            Owed::Parse { id: None, .. } => return behind_sync,
            _ => {}
        }
    }
    false
}

fn send_refused(item: &Item, refusal: Refusal, work: &mut Work, server: &mut ServerState) {
    work.tally.queries += 1;
    let query = matches!(item, Item::Query(_) | Item::FunctionCall);
    work.owed.push_back(Owed::Refused { refusal: Box::new(refusal), query });
    match item {
        Item::Query(_) | Item::FunctionCall => {
            server.unnamed = None;
            reply::message(&mut work.to_server, b'Q', &[REFUSED]);
            // What follows its error is a ReadyForQuery, as it is for a function call.
            work.owed.push_back(Owed::FunctionCall);
        }
        _ => reply::parse(&mut work.to_server, b"switchyard", &[REFUSED, b"\0\0"].concat()),
    }
}

/// Whether what follows depends on the outcome of what this verdict is about: a COPY takes the messages that follow it, and settings
/// decide how what follows is read, and what it is shared with.
fn must_be_answered_first(verdict: &Verdict) -> bool {
    verdict.effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::CopyIn
                | Effect::Set { .. }
                | Effect::SetUnknown
                | Effect::Reset { .. }
                | Effect::ResetAll
                | Effect::DiscardAll
                | Effect::Deallocate { .. }
                | Effect::DeallocateAll
                | Effect::SetTransaction { session: true, .. }
        )
    }) || matches!(verdict.kind, Kind::Unknown)
}

/// Whether the statement's text is looked at once it has succeeded: it may have to be replayed on other servers, or sets what is ours.
pub(super) fn sets(verdict: &Verdict) -> bool {
    verdict.effects.iter().any(|effect| matches!(effect, Effect::Set { .. })) || own::concerns(verdict)
}
