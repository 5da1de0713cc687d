//! Writing a batch for the server that was granted: settings first, a held BEGIN, replays of prepared statements, then the
//! client's messages with its statements' names replaced.

use std::sync::Arc;

use super::batch::{Batch, End, Item, Statement, must_be_answered_first, runs_when_failed};
use super::effects::bounds_transaction;
use super::names::{is_answered, own_executes, prepare, stand_in_for};
use super::replies::{Owed, Place, Prepares, Sync};
use super::server::{StatementId, is_server_name, server_name};
use super::settings::Value;
use super::{Attempt, Env, Lost, Phase, Segment, ServerState, Session, Work};
use crate::marks::Touched;
use crate::refusal::Refusal;
use crate::route::ServerRole;
use crate::sql::{Class, Effect, Kind, PinReason, Unseen, Verdict};
use crate::wire::reply::{self, TxStatus};
use crate::wire::{frame, view};

impl Session {
    /// At the session's start: brings the server to the startup settings, or starts at once where it is there already.
    pub(super) fn bring_or_start(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        if self.differs_from(server) {
            self.bring(work, server);
            work.after_bring = true;
        } else {
            self.start(env, work, server);
        }
    }

    /// Whether the server isn't at the session's settings.
    pub(super) fn differs_from(&self, server: &ServerState) -> bool {
        !Arc::ptr_eq(&server.settings, &self.settings) && server.settings.differs(&self.settings, server.role)
    }

    /// Sends what brings the server to the session's settings.
    pub(super) fn bring(&mut self, work: &mut Work, server: &mut ServerState) {
        self.brings(work, server);
        if server.tx == TxStatus::Idle {
            server.settings.sync_messages(&self.settings, server.role, &mut work.to_server);
            server.forget_unnamed();
        } else {
            server.settings.sync_messages_within(&self.settings, server.role, &mut work.to_server);
        }
    }

    /// As [`Session::bring`], of what a string has gone back to the server's own value of and something out of sight may have set again behind that:
    /// then it stays, for a look to find.
    pub(super) fn bring_where_reset(&mut self, work: &mut Work, server: &mut ServerState) {
        self.brings(work, server);
        server.settings.sync_messages_where_reset(&self.settings, server.role, &mut work.to_server);
    }

    /// The server is about to be sent the session's settings.
    fn brings(&mut self, work: &mut Work, server: &mut ServerState) {
        self.sets_dotted(server);
        if server.tx != TxStatus::Idle {
            // It goes back with the transaction.
            self.changing(Some(server));
        }
        server.ready = false;
        work.owed.push_back(Owed::Bring);
    }

    /// What the session has of custom settings is known to the server from then on.
    fn sets_dotted(&self, server: &mut ServerState) {
        for name in self.settings.dotted() {
            server.sets(name);
        }
    }

    /// Sends the batch to the server that is held.
    pub(super) fn dispatch(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        let between_segments = work.owed.is_empty() && work.segment == Segment::Closed && server.tx == TxStatus::Idle;
        let discarded = std::mem::take(&mut work.discarded) && work.owed.is_empty();
        if (between_segments || discarded) && self.differs_from(server) {
            let may_be_refused = !self.settings_proven || server.settings.may_be_refused(&self.settings, server.accepted(), server.role);
            self.bring(work, server);
            if may_be_refused && !discarded {
                // A value that no server has accepted yet may fail: then the batch must not have been sent.
                work.after_bring = true;
                return;
            }
        } else if work.owed.is_empty() && work.segment == Segment::Open && (server.tx != TxStatus::Failed || work.recovered) {
            self.bring_in_segment(work, server);
        }
        self.send_batch(env, work, server);
    }

    /// Where something in the client's segment has gone back to the server's own settings, sends what brings it to the session's, without a Sync.
    fn bring_in_segment(&mut self, work: &mut Work, server: &mut ServerState) {
        if !self.differs_from(server) || server.settings.may_be_refused(&self.settings, server.accepted(), server.role) {
            return;
        }
        self.sets_dotted(server);
        self.changing(Some(server));
        own_executes(server.settings.messages_in_segment(&self.settings, server.role, &mut work.to_server), work);
        server.settings = self.settings.clone();
    }

    /// The settings are accepted, or needn't be waited for.
    pub(super) fn send_batch(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        if !std::mem::take(&mut work.checked) && self.check_shapes(env, work, server) {
            return;
        }
        server.ready = false;
        if !work.sent.is_empty() {
            // A write with something behind it in the pipeline isn't a lone one any more.
            self.deliver(env, work);
        }
        let class = work.batch.class();
        if work.segment == Segment::Closed {
            self.own_sequences(work, server);
        }
        let begins = work.segment == Segment::Closed && work.owed.iter().all(|owed| matches!(owed, Owed::Bring | Owed::Discard));
        self.use_own_names(work, server);
        let lone_write = begins && self.begin_segment(work, server, class);
        if env.policy.session_mode {
            self.pins.add(PinReason::SessionMode);
        }
        work.writing |= class == Class::Write;
        if class == Class::Write && server.role == ServerRole::Leader {
            self.note_writes(env, work);
        }
        // A COPY commits nothing before its CopyDone.
        let copies = |batch: &Batch| batch.executed().any(|verdict| verdict.effects.contains(&Effect::CopyIn));
        if !self.written.is_nothing() && (self.status == TxStatus::Idle || work.batch.may_end_transaction()) && !copies(&work.batch) {
            env.marks.sends(&mut self.sending, &self.written, env.now);
        }
        work.shows |= class != Class::Local;
        work.alone |= work.batch.executed().any(|verdict| must_be_answered_first(verdict));
        // What goes on behind the end of a transaction waits for that.
        work.alone |= work.segment == Segment::Open && work.batch.end == End::Overflow && work.batch.ends_transaction_last();
        // Behind what goes back, if by failing, its settings must be brought once more.
        work.alone |= self.journal.parts(server.role);
        // Or at last, as it couldn't be done where they went: in a segment, or in a transaction that has failed.
        work.alone |=
            work.batch.end == End::Ready && self.differs_from(server) && !work.owed.iter().any(|owed| matches!(owed, Owed::Bring));
        // Parse and Describe alone don't bind the batch to a node: the server is done with them, whatever the client sends next.
        let syncs_flush = work.batch.end == End::Flush
            && !work.batch.executes()
            && self.status == TxStatus::Idle
            && work.segment == Segment::Closed
            && server.tx == TxStatus::Idle;
        work.alone |= syncs_flush;
        // A Sync of ours behind messages that the client hasn't synced could end a skipping.
        let lone = work.segment == Segment::Closed && work.batch.items.len() == 1 && !self.unsynced;
        let batch = std::mem::take(&mut work.batch);
        for (item, range) in &batch.items {
            let refusal = self.refused(env, item, &batch.bytes[range.clone()]).or_else(|| self.outdated(env, item, server));
            match refusal {
                Some(refusal) => send_refused(item, refusal, work, server),
                None => {
                    let runs = item.runs().filter(|verdict| server.role == ServerRole::Leader && !self.drops_own_temporary(verdict));
                    if let Some(verdict) = runs {
                        env.judge.about_to_run(verdict);
                    }
                    server.sets_unknown |= item
                        .runs()
                        .is_some_and(|verdict| !fails_at_once(verdict, work, server) && self.executes_unknown(verdict, &batch, server));
                    self.send_item(item, &batch.bytes[range.clone()], syncs_flush, lone, work, server);
                }
            }
        }
        if batch.end == End::Ready {
            work.alone |= std::mem::take(&mut work.prepares);
        } else if batch.end == End::Overflow && work.alone {
            // What must be answered before more is taken must be answered now.
            reply::message(&mut work.to_server, b'H', &[]);
        }
        work.flushed = batch.end == End::Flush || (batch.end == End::Overflow && work.alone);
        work.segment = if batch.end == End::Ready || syncs_flush { Segment::Closed } else { Segment::Open };
        if work.segment == Segment::Closed && !work.stand_ins.is_empty() {
            // To a server that takes COPY data, a Close is the end: they are closed when all is answered.
            let unknown = |(item, _): &(Item, _)| matches!(item, Item::Execute(None));
            if copies(&batch) || batch.items.iter().any(unknown) {
                work.alone = true;
            } else {
                Session::close_stand_ins(work, server);
            }
        }
        work.batch = batch;
        if lone_write {
            std::mem::swap(&mut work.batch, &mut work.sent);
        }
        if work.attempt.is_none() {
            work.batch.clear();
        }
    }

    /// A batch that may advance a sequence, or see what it has come to, begins where no other session's `currval` and `lastval` are.
    fn own_sequences(&mut self, work: &mut Work, server: &mut ServerState) {
        let uses = |verdict: &Verdict| {
            let sees = |effect: &Effect| matches!(effect, Effect::Pin(PinReason::Sequence | PinReason::UserCode));
            may_advance_sequences(verdict) || verdict.statements > 1 || verdict.unseen.leaves || verdict.effects.iter().any(sees)
        };
        let unknown = |(item, _): &(Item, _)| matches!(item, Item::FunctionCall { large_object: false } | Item::Execute(None));
        // What a transaction will do isn't known when it begins.
        let begins = self.begin.is_some() || work.batch.executed().flat_map(|verdict| &verdict.effects).any(bounds_transaction);
        // Nor what else comes in its segment.
        let goes_on = work.batch.end == End::Overflow || (work.batch.end == End::Flush && work.batch.executes());
        if server.role == ServerRole::Replica
            || server.sequences == Some(self.id)
            || !(begins || goes_on || work.batch.executed().any(|verdict| uses(verdict)) || work.batch.items.iter().any(unknown))
        {
            return;
        }
        let before = server.sequences.replace(self.id);
        if before.is_none() || server.tx != TxStatus::Idle {
            return;
        }
        reply::run(&mut work.to_server, b"DISCARD SEQUENCES");
        reply::sync(&mut work.to_server);
        work.owed.push_back(Owed::Discard);
        server.forget_unnamed();
        server.ready = false;
    }

    /// What the batch may write, once it is committed.
    fn note_writes(&mut self, env: &Env<'_>, work: &Work) {
        let generation = env.judge.generation();
        for (item, _) in &work.batch.items {
            let verdict = match item {
                Item::Query(verdict) => verdict,
                Item::Execute(Some(statement)) => &statement.verdict,
                // Nobody knows what it is.
                Item::Execute(None) | Item::FunctionCall { .. } => {
                    self.written.merge(&Touched::Everything);
                    continue;
                }
                Item::Parse { .. }
                | Item::Bind { .. }
                | Item::DescribeStatement { .. }
                | Item::DescribePortal(_)
                | Item::CloseStatement { .. }
                | Item::ClosePortal
                | Item::Refused(_)
                | Item::Flush
                | Item::Sync => continue,
            };
            if verdict.generation != generation && !verdict.writes.is_nothing() {
                // What it reaches through catalogs may be more by now. Its own word still counts: it may be the cluster, which is more than all.
                self.written.merge(&Touched::Everything);
            }
            self.written.merge(&verdict.writes);
        }
    }

    /// What comes before the first batch on this lease. Whether that is a lone write, which may run again if it is proven to be rolled back.
    fn begin_segment(&mut self, work: &mut Work, server: &mut ServerState, class: Class) -> bool {
        work.segment_failed = false;
        // A COMMIT shows nothing, and yet says that something is done.
        work.shows = self.status != TxStatus::Idle;
        work.writing = false;
        work.undone = false;
        work.begin_failed = false;
        if self.lost == Some(Lost::Told) {
            // Only the end of the transaction is accepted now, and everything is answered in PostgreSQL's own words: by a
            // transaction that has failed.
            reply::query(&mut work.to_server, b"BEGIN");
            work.owed.push_back(Owed::Prelude);
            fail_transaction(work, server);
            self.lost = Some(Lost::StoodIn);
            return false;
        }
        let outside = server.tx == TxStatus::Idle && self.pins.is_empty();
        let ends_here = work.batch.end == End::Ready || (work.batch.end == End::Flush && !work.batch.executes());
        if let Some(begin) = self.begin.take() {
            // As messages of the extended protocol: if one fails, the server skips what comes behind it.
            for text in begin.texts.split_inclusive(|byte| *byte == 0) {
                reply::run(&mut work.to_server, text.strip_suffix(b"\0").unwrap_or(text));
                work.owed.push_back(Owed::Begin);
            }
            if !matches!(work.batch.items.first(), Some((Item::Query(_), _))) {
                // The portal is ours: the client has none of that name.
                reply::message(&mut work.to_server, b'C', &[b"P\0"]);
                work.owed.push_back(Owed::OUR_CLOSE);
            }
            server.forget_unnamed();
            for (name, value, local) in &begin.own {
                server.sets(name);
                if !local && let Some(value) = value {
                    self.set_parameter(server, name, &Value::Known(value.as_bytes().into()));
                }
            }
            work.alone = true;
            let on_replica = server.role == ServerRole::Replica;
            // Behind a held BEGIN a Flush stays one: what it asks for can't be kept back up to a ReadyForQuery.
            if work.batch.end == End::Ready && work.batch.repeatable() && on_replica {
                work.attempt = Some(Attempt { begin: Some(begin.clone()), ..Attempt::default() });
            }
            // A transaction at READ COMMITTED may go elsewhere with it.
            let one_snapshot = begin.modes.repeatable_read.unwrap_or_else(|| self.default_isolation_is("repeatable"));
            self.movable = (on_replica && !one_snapshot).then_some(begin);
        } else if class == Class::Write {
            return outside && server.role == ServerRole::Leader && work.batch.lone_change().is_some();
        } else if outside && ends_here && class <= Class::Read && work.batch.repeatable() && !work.batch.is_trivial() {
            work.attempt = Some(Attempt::default());
        } else if work.batch.end == End::Ready
            && self.can_move(server.role)
            && class <= Class::Read
            && work.batch.executes()
            && work.batch.repeatable()
            && !work.batch.may_end_transaction()
        {
            work.attempt = Some(Attempt { later: true, ..Attempt::default() });
        }
        false
    }

    fn send_item(&mut self, item: &Item, message: &[u8], syncs_flush: bool, lone: bool, work: &mut Work, server: &mut ServerState) {
        match item {
            Item::Query(verdict) => {
                work.tally.queries += 1;
                server.forget_unnamed();
                if !fails_at_once(verdict, work, server) {
                    self.is_about_to_run(verdict, server);
                }
                // It may run and yet fail, as what came before it in its segment can't be committed.
                let names_custom =
                    |effect: &Effect| matches!(effect, Effect::Set { name, .. } | Effect::Reset { name } if name.contains('.'));
                server.unsure |= !lone && verdict.effects.iter().any(names_custom);
                if self.stand_in(verdict, work, server) && lone {
                    reply::sync(&mut work.to_server);
                    work.owed.push_back(Owed::Sync(Sync::Ours));
                }
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Query(verdict.clone(), text_hash(verdict, message)));
            }
            Item::Parse { name, statement, previous, duplicate } => {
                let (name, statement, previous) = (name.clone(), statement.clone(), previous.clone());
                let prepares = Prepares { name, statement, previous, duplicate: *duplicate };
                self.send_parse(prepares, message, work, server);
            }
            Item::Bind { statement, unnamed, number } => {
                let Ok(bind) = view::bind(&message[frame::HEADER..]) else { return };
                let portal: Box<[u8]> = bind.portal.into();
                // Its plan is made there, by which functions may be called that are said to be immutable: see `ensure_prepared`.
                if let Some(statement) = statement.as_ref().filter(|_| !portal.is_empty()) {
                    self.may_be_fetched(&statement.verdict, server);
                }
                let Some(name) = self.ensure_prepared(statement.as_ref(), *unnamed, work, server) else {
                    work.to_server.extend_from_slice(message);
                    return work.owed.push_back(Owed::Bind(None, (portal, *number)));
                };
                reply::message(&mut work.to_server, b'B', &[bind.portal, b"\0", name.bytes(), b"\0", bind.tail]);
                work.owed.push_back(Owed::Bind(name.id().zip(statement.clone()), (portal, *number)));
            }
            Item::DescribeStatement { statement, unnamed } => {
                let name = self.ensure_prepared(statement.as_ref(), *unnamed, work, server);
                match &name {
                    Some(name) => reply::message(&mut work.to_server, b'D', &[b"S", name.bytes(), b"\0"]),
                    None => work.to_server.extend_from_slice(message),
                }
                let id = name.and_then(|name| name.id());
                work.owed.push_back(Owed::Describe { id, statement: statement.clone(), check: false });
            }
            Item::DescribePortal(statement) => {
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Describe { id: None, statement: statement.clone(), check: false });
            }
            Item::Execute(statement) => {
                work.tally.queries += 1;
                if let Some(statement) = statement {
                    if !fails_at_once(&statement.verdict, work, server) {
                        self.is_about_to_run(&statement.verdict, server);
                    }
                    self.stand_in(&statement.verdict, work, server);
                }
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Execute(statement.clone()));
            }
            // The server's statement is shared; the client's name means nothing to it, and closing that is no error.
            Item::CloseStatement { name, closed } => {
                let unnamed = name.is_empty().then(|| server.close_unnamed());
                if is_server_name(name) && server.own_names.is_none() {
                    // What the server knows by that name is another client's.
                    server.forget_unnamed();
                    reply::close_statement(&mut work.to_server, b"");
                } else {
                    work.to_server.extend_from_slice(message);
                }
                // Whether the name is free is known behind it.
                work.prepares |= closed.is_some() && !name.is_empty();
                let closed = closed.as_ref().map(|closed| (name.clone(), closed.clone()));
                work.owed.push_back(Owed::Close { swallow: false, evicted: None, closed, unnamed });
            }
            Item::ClosePortal => {
                work.to_server.extend_from_slice(message);
                work.owed.push_back(Owed::Close { swallow: false, evicted: None, closed: None, unnamed: None });
            }
            Item::FunctionCall { large_object } => {
                work.tally.queries += 1;
                if !large_object {
                    // Nobody knows what it calls.
                    self.may_leave(Unseen { leaves: true, sets_unknown: true, ..Unseen::default() }, server);
                }
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

    fn may_leave(&mut self, unseen: Unseen, server: &mut ServerState) {
        server.may_keep(unseen);
        self.unproven |= unseen.leaves;
    }

    /// Code may run a portal by its name, out of sight: what that leaves.
    fn may_be_fetched(&mut self, verdict: &Verdict, server: &mut ServerState) {
        self.is_about_to_run(verdict, server);
        // By then another one may have its name.
        server.sets_unknown |= verdict.executes();
        if verdict.kind == Kind::Utility {
            return;
        }
        for effect in &verdict.effects {
            match effect {
                Effect::Pin(reason) => self.pins.add(*reason),
                Effect::Set { name, .. } if &**name == "seed" => self.pins.add(PinReason::Setseed),
                _ => {}
            }
        }
    }

    /// Something is about to run there: what may be left behind, whatever becomes of it.
    fn is_about_to_run(&mut self, verdict: &Verdict, server: &mut ServerState) {
        self.may_leave(verdict.unseen, server);
        server.names_unknown(verdict);
        for effect in &verdict.effects {
            match effect {
                Effect::Set { name, .. } | Effect::Reset { name } => {
                    server.sets(name);
                    server.sets_unknown |= !self.are_names_there(name);
                }
                // Nobody knows which one, and no rollback takes back that it is known.
                Effect::SetUnknown => server.sets_unknown = true,
                _ => {}
            }
        }
    }

    /// A client's own Parse is always parsed by a server, so that its errors come at Parse.
    fn send_parse(&mut self, prepares: Prepares, message: &[u8], work: &mut Work, server: &mut ServerState) {
        let statement = prepares.statement.clone();
        let id = statement.id;
        // Its constants are read there, by their types' input functions, which check a domain's constraints within arrays and the like.
        self.may_leave(statement.verdict.unseen, server);
        let place = if prepares.name.is_empty() {
            work.to_server.extend_from_slice(message);
            Place::Unnamed(server.prepare_unnamed(id))
        } else if server.own_names.is_some() || prepares.duplicate {
            // The client has this name already. The server says so, once it knows the name.
            if prepares.duplicate && !self.server_knows(&prepares.name, server) {
                stand_in_for(&prepares.name, work, server);
            }
            work.to_server.extend_from_slice(message);
            Place::Named(prepares.name.clone())
        } else if server.prepared().has(id) {
            // There by another client's Parse: this one is parsed as the unnamed statement.
            work.prepares = true;
            reply::parse(&mut work.to_server, b"", &statement.tail);
            Place::Unnamed(server.prepare_unnamed(id))
        } else {
            work.prepares = true;
            evict_for(id, work, server);
            reply::parse(&mut work.to_server, &server_name(id), &statement.tail);
            Place::Shared(id)
        };
        work.owed.push_back(Owed::Parse { swallow: false, prepares: Some(prepares), place });
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
                let unnamed = Some(server.close_unnamed());
                reply::close_statement(&mut work.to_server, b"");
                work.owed.push_back(Owed::Close { swallow: true, evicted: None, closed: None, unnamed });
            }
            return None;
        };
        // As its Parse, if there is one.
        self.may_leave(statement.verdict.unseen, server);
        if !unnamed && let Some(own) = &server.own_names {
            if own.missing.contains_key(&statement.name) {
                // If nothing has changed since, its error is the answer.
                prepare(statement.name.clone(), statement, work, server);
            }
            return None;
        }
        if unnamed {
            if server.unnamed() != Some(statement.id) {
                let id = self.id_there(statement);
                if server.unnamed() != Some(id) {
                    work.prepares = true;
                    let place = Place::Unnamed(server.prepare_unnamed(id));
                    reply::parse(&mut work.to_server, b"", &statement.tail);
                    work.owed.push_back(Owed::Parse { swallow: true, prepares: None, place });
                }
            }
            return Some(NameThere::Unnamed);
        }
        if server.prepared().has(statement.id) {
            return Some(NameThere::named(statement.id));
        }
        let id = self.id_there(statement);
        if !server.prepared().has(id) {
            work.prepares = true;
            evict_for(id, work, server);
            reply::parse(&mut work.to_server, &server_name(id), &statement.tail);
            work.owed.push_back(Owed::Parse { swallow: true, prepares: None, place: Place::Shared(id) });
        }
        Some(NameThere::named(id))
    }

    /// A statement whose result type is known to have changed since the client's Parse. A server that has it from then says so itself; one
    /// that would get it now would give rows that the client doesn't expect.
    fn outdated(&self, env: &Env<'_>, item: &Item, server: &mut ServerState) -> Option<Refusal> {
        let statement = match item {
            Item::Bind { statement: Some(statement), unnamed: false, .. } => statement,
            Item::DescribeStatement { statement: Some(statement), unnamed: false } => statement,
            _ => return None,
        };
        if server.own_names.is_some() || server.prepared().has(statement.id) {
            return None;
        }
        let there = self.id_there(statement);
        let outdated = env.judge.is_outdated(statement.id) || env.judge.is_outdated(there);
        (outdated && !server.prepared().has(there)).then_some(Refusal::ResultTypeChanged)
    }

    /// Statements that the client prepared before DDL passed, and that this server hasn't got: what they give there may no longer be what the
    /// client was told. They are prepared and looked at first; true if the batch waits for that.
    fn check_shapes(&self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) -> bool {
        let shape = env.judge.shape();
        if shape == 0 || work.segment != Segment::Closed || server.tx == TxStatus::Failed || server.own_names.is_some() {
            return false;
        }
        let mut looked_at: Vec<StatementId> = Vec::new();
        let batch = std::mem::take(&mut work.batch);
        for (item, _) in &batch.items {
            let (Item::Bind { statement: Some(statement), unnamed: false, .. }
            | Item::DescribeStatement { statement: Some(statement), unnamed: false }) = item
            else {
                continue;
            };
            let told = statement.shape != shape && statement.described.get().is_some();
            if !told || server.prepared().has(statement.id) {
                continue;
            }
            let id = self.id_there(statement);
            if looked_at.contains(&id) || server.prepared().has(id) || env.judge.is_outdated(id) || env.judge.is_outdated(statement.id) {
                continue;
            }
            if matches!(work.owed.back(), Some(Owed::Bring)) {
                // Its answer tells that the batch may go on, as the look's does: one after the other.
                work.after_bring = true;
                work.batch = batch;
                return true;
            }
            looked_at.push(id);
            server.may_keep(statement.verdict.unseen);
            evict_for(id, work, server);
            let name = server_name(id);
            reply::parse(&mut work.to_server, &name, &statement.tail);
            work.owed.push_back(Owed::Parse { swallow: true, prepares: None, place: Place::Shared(id) });
            reply::message(&mut work.to_server, b'D', &[b"S", &name, b"\0"]);
            work.owed.push_back(Owed::Describe { id: Some(id), statement: Some(statement.clone()), check: true });
        }
        work.batch = batch;
        if looked_at.is_empty() {
            return false;
        }
        reply::sync(&mut work.to_server);
        work.owed.push_back(Owed::Sync(Sync::Check));
        server.ready = false;
        work.after_bring = true;
        work.checked = true;
        true
    }

    /// Whether the session keeps its server connection between transactions.
    pub(super) fn pinned(&self, env: &Env<'_>) -> bool {
        !self.pins.is_empty() || (env.policy.session_mode && matches!(self.phase, Phase::Holding { .. }))
    }

    /// Puts a held BEGIN back for a batch that runs again.
    pub(super) fn put_begin_back(&mut self, attempt: Attempt) {
        if attempt.later {
            self.resume();
        } else if attempt.begin.is_some() {
            self.begin = attempt.begin;
            self.movable = None;
        }
    }
}

/// A statement's name on a server.
enum NameThere {
    Unnamed,
    Named(StatementId, [u8; 35]),
}

impl NameThere {
    fn named(id: StatementId) -> NameThere {
        NameThere::Named(id, server_name(id))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            NameThere::Unnamed => b"",
            NameThere::Named(_, name) => name,
        }
    }

    fn id(&self) -> Option<StatementId> {
        match self {
            NameThere::Unnamed => None,
            NameThere::Named(id, _) => Some(*id),
        }
    }
}

/// Has the transaction that is open fail.
pub(super) fn fail_transaction(work: &mut Work, server: &mut ServerState) {
    // A simple query: what follows an error in a segment is skipped.
    reply::query(&mut work.to_server, b"SELECT pg_catalog.int4div(1, 0)");
    work.owed.push_back(Owed::Prelude);
    server.forget_unnamed();
}

fn evict_for(id: StatementId, work: &mut Work, server: &mut ServerState) {
    if let Some(evicted) = server.prepared().add(id) {
        reply::close_statement(&mut work.to_server, &server_name(evicted));
        work.owed.push_back(Owed::Close { swallow: true, evicted: Some(evicted), closed: None, unnamed: None });
    }
}

/// Text that no server accepts: the error behind which a refusal of ours stands, so that the server itself skips to Sync and fails
/// the transaction.
const REFUSED: &[u8] = b"refused by switchyard\0";

fn send_refused(item: &Item, refusal: Refusal, work: &mut Work, server: &mut ServerState) {
    work.tally.queries += 1;
    let query = matches!(item, Item::Query(_) | Item::FunctionCall { .. });
    work.owed.push_back(Owed::Refused { refusal: Box::new(refusal), query });
    match item {
        Item::Query(_) | Item::FunctionCall { .. } => {
            server.forget_unnamed();
            reply::message(&mut work.to_server, b'Q', &[REFUSED]);
            // What follows its error is a ReadyForQuery, as it is for a function call.
            work.owed.push_back(Owed::FunctionCall);
        }
        _ => reply::parse(&mut work.to_server, b"switchyard", &[REFUSED, b"\0\0"].concat()),
    }
}

/// A hash of a statement's text, where what it sets for its transaction must be told from what others set.
pub(super) fn text_hash(verdict: &Verdict, text: &[u8]) -> u64 {
    let local = |effect: &Effect| matches!(effect, Effect::Set { local: true, .. });
    if verdict.effects.iter().any(local) { xxhash_rust::xxh3::xxh3_64(text) } else { 0 }
}

/// Whether a sequence may give a value in it: by a default, a trigger or a view, too.
pub(super) fn may_advance_sequences(verdict: &Verdict) -> bool {
    let inside = verdict.acts_inside && matches!(verdict.kind, Kind::Update | Kind::Delete);
    verdict.class == Class::Write && verdict.kind != Kind::Transaction && !inside
}

/// Whether the transaction there has failed, and nothing in the statement ends it or goes back in it: nothing of it runs.
fn fails_at_once(verdict: &Verdict, work: &Work, server: &ServerState) -> bool {
    server.tx == TxStatus::Failed
        && !work.recovered
        && is_answered(work)
        && !verdict.effects.iter().any(|effect| runs_when_failed(effect) || *effect == Effect::SetUnknown)
}
