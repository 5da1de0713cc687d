//! Writing a batch for the server that was granted: settings first, a held BEGIN, replays of prepared statements, then the
//! client's messages with its statements' names replaced.

use std::sync::Arc;

use super::batch::{Batch, End, Item, Statement};
use super::replies::{Owed, Sync};
use super::server::server_name;
use super::{Attempt, Env, HeldBegin, Lost, Phase, ServerState, Session, Work};
use crate::route::ServerRole;
use crate::sql::{Class, Effect, PinReason};
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
    fn bring(&mut self, work: &mut Work, server: &mut ServerState) -> bool {
        if Arc::ptr_eq(&server.settings, &self.settings) || !server.settings.differs(&self.settings, server.role) {
            return false;
        }
        server.settings.bring(&self.settings, server.role, &mut work.to_server);
        server.ready = false;
        work.owed.push_back(Owed::Bring);
        true
    }

    /// Sends the batch to the server that is held.
    pub(super) fn dispatch(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        if let Some(refusal) = self.fallback_refuses(env, work).or_else(|| self.stand_in_refuses(work)) {
            if server.tx == TxStatus::InTransaction && work.owed.is_empty() {
                // The client's transaction has failed with it, so the server's has to.
                reply::query(&mut work.to_server, b"SELECT pg_catalog.int4div(1, 0)");
                work.owed.push_back(Owed::Prelude);
                server.ready = false;
            }
            return self.refuse_batch(work, &refusal);
        }
        let first = work.owed.is_empty() && !work.segment_failed;
        if first && server.tx == TxStatus::Idle && self.bring(work, server) && !self.settings_proven {
            // A value that no server has accepted yet may fail: then the batch must not have been sent.
            work.after_bring = true;
            return;
        }
        self.send_batch(env, work, server);
    }

    /// The settings are accepted, or needn't be waited for.
    pub(super) fn send_batch(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        server.ready = false;
        // Behind an error the segment goes on up to its Sync.
        if !work.segment_failed && work.owed.iter().all(|owed| matches!(owed, Owed::Bring)) {
            self.begin_segment(work, server);
        }
        if env.policy.session_mode {
            self.pins.add(PinReason::SessionMode);
        }
        let class = work.batch.class();
        work.writing |= class == Class::Write;
        work.shows |= class != Class::Local;
        work.running_text = setting_text(&work.batch);
        let batch = std::mem::take(&mut work.batch);
        let mut cleanup = Vec::new();
        for (item, range) in &batch.items {
            self.send_item(&batch, item, &batch.bytes[range.clone()], work, server, &mut cleanup);
        }
        if !cleanup.is_empty() {
            for name in &cleanup {
                reply::close_statement(&mut work.to_server, name);
                work.owed.push_back(Owed::Close { swallow: true, evicted: None });
            }
            reply::sync(&mut work.to_server);
            work.owed.push_back(Owed::Sync(Sync::Ours));
        }
        work.batch = batch;
        if work.attempt.is_none() {
            work.batch.clear();
        }
    }

    /// What comes before the first batch on this lease.
    fn begin_segment(&mut self, work: &mut Work, server: &mut ServerState) {
        work.segment_failed = false;
        work.shows = false;
        work.writing = false;
        work.rolled_back = false;
        if self.lost == Some(Lost::Told) {
            // Only the end of the transaction is accepted now, and everything is answered in PostgreSQL's own words: by a
            // transaction that has failed.
            reply::query(&mut work.to_server, b"BEGIN");
            reply::query(&mut work.to_server, b"SELECT pg_catalog.int4div(1, 0)");
            work.owed.extend([Owed::Prelude, Owed::Prelude]);
            self.lost = Some(Lost::StoodIn);
            return;
        }
        let outside = server.tx == TxStatus::Idle && self.pins.is_empty();
        let ends_here = work.batch.end == End::Ready || (work.batch.end == End::Flush && !work.batch.executes());
        if let Some(begin) = self.begin.take() {
            reply::query(&mut work.to_server, &begin.text);
            work.owed.push_back(Owed::Begin);
            let on_replica = server.role == ServerRole::Replica;
            // An attempt may put it back; a READ ONLY transaction at READ COMMITTED may move to the leader with it.
            self.movable = (on_replica && begin.modes.repeatable_read != Some(true)).then(|| begin.clone());
            if ends_here && work.batch.repeatable() && on_replica {
                work.attempt = Some(Attempt { begin: Some(begin), ..Attempt::default() });
            }
        } else if outside && ends_here && work.batch.class() == Class::Read && work.batch.repeatable() {
            work.attempt = Some(Attempt::default());
        }
    }

    fn send_item(
        &mut self,
        batch: &Batch,
        item: &Item,
        message: &[u8],
        work: &mut Work,
        server: &mut ServerState,
        cleanup: &mut Vec<Box<[u8]>>,
    ) {
        let out_of_transaction_flush = batch.end == End::Flush && !batch.executes() && self.status == TxStatus::Idle;
        match item {
            Item::Query(verdict) => {
                work.tally.queries += 1;
                server.unnamed = None;
                for effect in &verdict.effects {
                    if let Effect::Deallocate { name } = effect
                        && self.statements.contains_key(name.as_bytes())
                    {
                        // The server knows the statement by another name: an empty one takes its place for DEALLOCATE to find.
                        reply::parse(&mut work.to_server, name.as_bytes(), b"\0\0\0");
                        reply::sync(&mut work.to_server);
                        work.owed.push_back(Owed::Parse { swallow: true, name: None, id: None });
                        work.owed.push_back(Owed::Sync(Sync::Ours));
                        cleanup.push(name.as_bytes().into());
                    }
                }
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Query(verdict.clone()));
            }
            Item::Parse { name, statement } => self.send_parse(name, statement, message, work, server, cleanup),
            Item::Bind { statement, unnamed } => {
                let Some(name) = self.ensure_prepared(statement.as_ref(), *unnamed, work, server) else {
                    work.to_server.extend_from_slice(message);
                    return work.owed.push_back(Owed::Bind);
                };
                if let Ok(bind) = view::bind(&message[frame::HEADER..]) {
                    reply::message(&mut work.to_server, b'B', &[bind.portal, b"\0", &name, b"\0", bind.tail]);
                    work.owed.push_back(Owed::Bind);
                }
            }
            Item::DescribeStatement { statement, unnamed } => {
                match self.ensure_prepared(statement.as_ref(), *unnamed, work, server) {
                    Some(name) => reply::message(&mut work.to_server, b'D', &[b"S", &name, b"\0"]),
                    None => work.to_server.extend_from_slice(message),
                }
                work.owed.push_back(Owed::Describe);
            }
            Item::DescribePortal => {
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Describe);
            }
            Item::Execute(verdict) => {
                work.tally.queries += 1;
                if let Some(verdict) = verdict {
                    for effect in &verdict.effects {
                        if let Effect::Deallocate { name } = effect
                            && self.statements.contains_key(name.as_bytes())
                        {
                            reply::parse(&mut work.to_server, name.as_bytes(), b"\0\0\0");
                            work.owed.push_back(Owed::Parse { swallow: true, name: None, id: None });
                            cleanup.push(name.as_bytes().into());
                        }
                    }
                }
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Execute(verdict.clone()));
            }
            // The server's statement is shared; the client's name means nothing to it, and closing that is no error.
            Item::CloseStatement(_) | Item::ClosePortal => {
                if matches!(item, Item::CloseStatement(name) if name.is_empty()) {
                    server.unnamed = None;
                }
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Close { swallow: false, evicted: None });
            }
            Item::FunctionCall => {
                work.tally.queries += 1;
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::FunctionCall);
            }
            Item::Flush if out_of_transaction_flush => {
                // Parse and Describe alone don't bind the batch to a node: the server is done with it, whatever the client sends next.
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
        message: &[u8],
        work: &mut Work,
        server: &mut ServerState,
        cleanup: &mut Vec<Box<[u8]>>,
    ) {
        let known = |name: &[u8]| Owed::Parse { swallow: false, name: Some((name.into(), statement.clone())), id: None };
        if name.is_empty() {
            server.unnamed = Some(statement.id);
            work.to_server.extend_from_slice(message);
            return work.owed.push_back(known(name));
        }
        if statement.id == 0 {
            // The client has this name already. The server says so, once it knows the name.
            reply::parse(&mut work.to_server, name, b"\0\0\0");
            work.to_server.extend_from_slice(message);
            work.owed.push_back(Owed::Parse { swallow: true, name: None, id: None });
            work.owed.push_back(Owed::Parse { swallow: false, name: None, id: None });
            return cleanup.push(name.into());
        }
        if server.prepared().has(statement.id) {
            // There by another client's Parse: this one is parsed as the unnamed statement.
            server.unnamed = Some(statement.id);
            reply::parse(&mut work.to_server, b"", &statement.tail);
            return work.owed.push_back(known(name));
        }
        self.evict_for(statement, work, server);
        reply::parse(&mut work.to_server, &server_name(statement.id), &statement.tail);
        work.owed.push_back(Owed::Parse { swallow: false, name: Some((name.into(), statement.clone())), id: Some(statement.id) });
    }

    fn evict_for(&mut self, statement: &Statement, work: &mut Work, server: &mut ServerState) {
        if let Some(evicted) = server.prepared().add(statement.id) {
            reply::close_statement(&mut work.to_server, &server_name(evicted));
            work.owed.push_back(Owed::Close { swallow: true, evicted: Some(evicted) });
        }
    }

    /// Replays the statement's Parse where the server doesn't have it. The name to use there; `None` where the client's own name is to be
    /// passed through, because this session has prepared no such statement.
    fn ensure_prepared(
        &mut self,
        statement: Option<&Arc<Statement>>,
        unnamed: bool,
        work: &mut Work,
        server: &mut ServerState,
    ) -> Option<Vec<u8>> {
        let statement = statement?;
        if statement.id == 0 {
            return None;
        }
        if unnamed {
            if server.unnamed != Some(statement.id) {
                server.unnamed = Some(statement.id);
                reply::parse(&mut work.to_server, b"", &statement.tail);
                work.owed.push_back(Owed::Parse { swallow: true, name: None, id: None });
            }
            return Some(Vec::new());
        }
        let name = server_name(statement.id);
        if !server.prepared().has(statement.id) {
            self.evict_for(statement, work, server);
            reply::parse(&mut work.to_server, &name, &statement.tail);
            work.owed.push_back(Owed::Parse { swallow: true, name: None, id: Some(statement.id) });
        }
        Some(name.to_vec())
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

/// The text of a batch's only SET, in case that it has to be replayed on other servers.
fn setting_text(batch: &Batch) -> Option<Box<[u8]>> {
    let mut texts = batch.items.iter().filter_map(|(item, range)| match item {
        Item::Query(verdict) => Some((verdict, &batch.bytes[range.start + frame::HEADER..range.end - 1])),
        Item::Bind { statement: Some(statement), .. } => Some((&statement.verdict, statement.text())),
        _ => None,
    });
    let (verdict, text) = texts.next()?;
    let sets = verdict.effects.iter().any(|effect| matches!(effect, Effect::Set { local: false, .. }));
    (sets && texts.next().is_none()).then(|| text.into())
}
