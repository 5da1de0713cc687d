//! What the server owes, and what becomes of each of its messages: forwarded, swallowed, or kept back.

use std::collections::VecDeque;
use std::sync::Arc;

use super::batch::{End, Item, Statement, ends_or_goes_back};
use super::dispatch::text_hash;
use super::effects::{Completion, is_role};
use super::look::Look;
use super::server::{StatementId, Unnamed, server_name};
use super::settings::{Settings, Value};
use super::{Access, Attempt, CopyIn, Env, Garbled, Lost, Phase, Segment, ServerState, Session, Want, Work};
use crate::marks::Touched;
use crate::refusal::Refusal;
use crate::route::ServerRole;
use crate::sql::{Class, Effect, PinReason, Verdict};
use crate::wire::frame::{self, HEADER};
use crate::wire::reply::{self, TxStatus};
use crate::wire::startup::parse_bool;
use crate::wire::view;

/// An expected reply, in the order in which the server will give them.
#[derive(Debug)]
pub(super) enum Owed {
    /// Of our settings replay: swallowed up to ReadyForQuery.
    Bring,
    /// Of a held BEGIN (or a SET TRANSACTION behind it), sent as Parse, Bind and Execute: swallowed up to CommandComplete.
    Begin,
    /// Of a statement of ours in the client's segment, sent as Parse, Bind and Execute, with Closes of what was there: swallowed up to
    /// CommandComplete.
    Own,
    /// Of our DISCARD SEQUENCES: swallowed up to ReadyForQuery.
    Discard,
    /// Of another query of ours.
    Prelude,
    /// Of our look at what is left on the server: rows, up to ReadyForQuery.
    Look(Look),
    /// As [`Owed::Look`], of a query behind which another one of the same look follows.
    LookBegins,
    /// With a hash of its text: see [`text_hash`].
    Query(Arc<Verdict>, u64),
    FunctionCall,
    /// The error that takes the place of the server's: what was sent can't succeed. `query`: a simple one, whose ReadyForQuery follows.
    Refused {
        refusal: Box<Refusal>,
        query: bool,
    },
    /// ParseComplete. `prepares`: what the client prepared; `place`: by which name, there.
    Parse {
        swallow: bool,
        prepares: Option<Prepares>,
        place: Place,
    },
    /// BindComplete. With what the server calls the statement, where that is shared, and the portal and its Bind's number.
    Bind(Option<(StatementId, Arc<Statement>)>, (Box<[u8]>, u32)),
    /// (ParameterDescription and) RowDescription or NoData.
    Describe {
        /// As for Bind.
        id: Option<StatementId>,
        statement: Option<Arc<Statement>>,
        /// The router's own look: is it still what the client was told?
        check: bool,
    },
    /// CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute(Option<Arc<Statement>>),
    /// CloseComplete. `evicted`: what the server no longer has then; `closed`: what the client's name meant; `unnamed`: what the server's unnamed
    /// statement was, if it is that.
    Close {
        swallow: bool,
        evicted: Option<StatementId>,
        closed: Option<(Box<[u8]>, Arc<Statement>)>,
        unnamed: Option<Unnamed>,
    },
    /// ReadyForQuery.
    Sync(Sync),
}

/// Where a server keeps what it prepares.
#[derive(Debug)]
pub(super) enum Place {
    /// The unnamed statement.
    Unnamed(Unnamed),
    /// By a name of ours.
    Shared(StatementId),
    /// By the client's own name.
    Named(Box<[u8]>),
}

/// A client's Parse: what its name means from then on, and what the unnamed statement was before.
#[derive(Debug)]
pub(super) struct Prepares {
    pub(super) name: Box<[u8]>,
    pub(super) statement: Arc<Statement>,
    pub(super) previous: Option<Arc<Statement>>,
    /// The session believes that the name is taken.
    pub(super) duplicate: bool,
}

/// Whose Sync it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    Clients,
    /// Ours, in the place of a Flush: the client will send its own.
    ForFlush,
    /// Ours, behind something of our own.
    Ours,
    /// Ours, behind a look at statements that the batch which waits uses.
    Check,
}

impl Owed {
    /// CloseComplete of what only the router has named.
    pub(super) const OUR_CLOSE: Owed = Owed::Close { swallow: true, evicted: None, closed: None, unnamed: None };

    fn ends_segment(&self) -> bool {
        matches!(
            self,
            Owed::Bring
                | Owed::Discard
                | Owed::Prelude
                | Owed::Look(_)
                | Owed::LookBegins
                | Owed::Query(..)
                | Owed::FunctionCall
                | Owed::Sync(_)
        )
    }

    /// Whether the client waits for it.
    pub(super) fn is_clients(&self) -> bool {
        !matches!(
            self,
            Owed::Bring
                | Owed::Begin
                | Owed::Own
                | Owed::Discard
                | Owed::Prelude
                | Owed::Look(_)
                | Owed::LookBegins
                | Owed::Parse { swallow: true, .. }
                | Owed::Close { swallow: true, .. }
                | Owed::Describe { check: true, .. }
                | Owed::Sync(Sync::ForFlush | Sync::Ours | Sync::Check)
        )
    }
}

/// Whether transactions are read-only by default, as servers report it.
const READ_ONLY: &str = "default_transaction_read_only";

/// What becomes of a message.
enum Fate {
    Forward,
    Swallow,
}

/// Bytes of a write's answer that are kept back at most, so that it can run again: beyond, it is forwarded.
const KEPT_BACK_MAX: usize = 256 * 1024;

/// Bytes of a read's answer that are kept back at most until it is complete: a server that crashes flushes parts of answers. No more than what is
/// read of a server at once, so that a large answer is late by one read.
const READ_KEPT_BACK_MAX: usize = 32 * 1024;

/// Messages up to this size are taken only when they are there as a whole, in bytes. The fields of an error that decide something come first.
const WHOLE_MAX: usize = 32 * 1024;

/// The messages that are always taken as a whole may have this size, in bytes: a command's tag, a parameter's value, a notification.
const MESSAGE_FROM_SERVER_MAX: usize = 1024 * 1024;

/// Where PostgreSQL finds that a prepared statement's result type has changed (plancache.c). Its SQLSTATE, 0A000, says many things.
const RESULT_TYPE_CHANGED: &[u8] = b"RevalidateCachedQuery";

/// SQLSTATE 42602, invalid_name.
const INVALID_NAME: [u8; 5] = *b"42602";

/// SQLSTATE 26000, invalid_sql_statement_name.
const INVALID_STATEMENT_NAME: [u8; 5] = *b"26000";

/// SQLSTATE 25006, read_only_sql_transaction.
const READ_ONLY_TRANSACTION: [u8; 5] = *b"25006";

/// SQLSTATE 0A000, feature_not_supported: what a standby says of unlogged relations, among others.
const NOT_ON_A_STANDBY: [u8; 5] = *b"0A000";

/// SQLSTATE 57014, query_canceled.
const QUERY_CANCELED: &[u8] = b"57014";

impl Session {
    /// Takes what it can of `work.server_in`, for the server that is held.
    ///
    /// # Errors
    /// [`Garbled`] where what came isn't the protocol, or answers nothing that was asked.
    pub fn server_bytes(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) -> Result<(), Garbled> {
        let mut input = std::mem::take(&mut work.server_in);
        let mut at = 0;
        let taken = self.take_server_bytes(env, work, server, &input, &mut at);
        if taken.is_err() {
            server.tainted = true;
        }
        input.drain(..at);
        work.server_in = input;
        taken
    }

    fn take_server_bytes(
        &mut self,
        env: &Env<'_>,
        work: &mut Work,
        server: &mut ServerState,
        input: &[u8],
        at: &mut usize,
    ) -> Result<(), Garbled> {
        // Start of the run of bytes that go on as they came.
        let mut run = *at;
        while *at < input.len() {
            let rest = &input[*at..];
            if work.server_passing > 0 {
                let part = work.server_passing.min(rest.len());
                *at += part;
                work.server_passing -= part;
                if work.server_swallowing {
                    run = *at;
                }
                continue;
            }
            let header = match frame::header(rest) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(_) => {
                    self.forward(work, &input[run..*at]);
                    return Err(Garbled);
                }
            };
            if !self.answers(work, header.tag) {
                self.forward(work, &input[run..*at]);
                return Err(Garbled);
            }
            // An error can follow a whole row, and never half of one; what is larger goes on as it comes.
            let whole = rest.len() >= header.total;
            let passes = header.total > WHOLE_MAX && rest.len() >= WHOLE_MAX && !must_be_whole(header.tag);
            if !whole && !passes {
                if header.total > MESSAGE_FROM_SERVER_MAX && must_be_whole(header.tag) {
                    self.forward(work, &input[run..*at]);
                    return Err(Garbled);
                }
                break;
            }
            let seen = header.total.min(rest.len());
            let looked_at = matches!(work.owed.front(), Some(Owed::Look(_) | Owed::LookBegins));
            let fate = if header.tag == b'D' && looked_at {
                if let Some(seen) = &mut work.seen {
                    seen.row(whole.then(|| &rest[HEADER..header.total]));
                }
                Fate::Swallow
            } else if matches!(header.tag, b'D' | b'd') {
                self.row(env, work, *at - run + header.total)
            } else {
                // What the message causes comes behind what came before it.
                self.forward(work, &input[run..*at]);
                run = *at;
                self.server_message(env, work, server, header.tag, &rest[HEADER..seen], &rest[..seen])?
            };
            let swallow = matches!(fate, Fate::Swallow);
            if swallow {
                self.forward(work, &input[run..*at]);
            }
            *at += seen;
            if swallow {
                run = *at;
            }
            work.server_passing = header.total - seen;
            work.server_swallowing = swallow;
        }
        self.forward(work, &input[run..*at]);
        Ok(())
    }

    /// Whether a message of this kind can be a part of what is owed next, or may come unasked. Anything else would be
    /// taken for the answer to something that the client asks next.
    fn answers(&self, work: &Work, tag: u8) -> bool {
        match (tag, work.owed.front()) {
            // Reports and notices come at any time, and so does the FATAL with which a server closes the connection:
            // see `error`.
            (b'S' | b'N' | b'E', _) => true,
            // Between statements only to a session that has this connection for itself. LISTEN and NOTIFY may come in
            // one string.
            (b'A', owed) => owed.is_some() || !self.pins.is_empty(),
            (_, None) => false,
            // Swallowed as a whole, whatever they are made of.
            (tag, Some(Owed::Bring | Owed::Discard | Owed::Prelude | Owed::Look(_) | Owed::LookBegins)) => {
                matches!(tag, b'1' | b'2' | b'3' | b't' | b'n' | b'T' | b'D' | b'C' | b'I' | b's' | b'Z')
            }
            (tag, Some(Owed::Begin)) => matches!(tag, b'1' | b'2' | b'C'),
            (tag, Some(Owed::Own)) => matches!(tag, b'1' | b'2' | b'3' | b'D' | b'C'),
            (b'Z', Some(Owed::Query(..))) => work.completed > 0 || work.segment_failed || work.runs_again(),
            (tag, Some(Owed::Query(..))) => matches!(tag, b'T' | b'D' | b'C' | b'I' | b'G' | b'H' | b'W' | b'd' | b'c'),
            (tag, Some(Owed::FunctionCall)) => matches!(tag, b'V' | b'Z'),
            (_, Some(Owed::Refused { .. })) => false,
            (tag, Some(Owed::Parse { .. })) => tag == b'1',
            (tag, Some(Owed::Bind(..))) => tag == b'2',
            (tag, Some(Owed::Describe { .. })) => matches!(tag, b't' | b'T' | b'n'),
            (tag, Some(Owed::Execute(_))) => matches!(tag, b'D' | b'C' | b'I' | b's' | b'G' | b'H' | b'W' | b'd' | b'c'),
            (tag, Some(Owed::Close { .. })) => tag == b'3',
            (tag, Some(Owed::Sync(_))) => tag == b'Z',
        }
    }

    /// Rows are about to be shown, unless they can be kept back: then the batch can't run elsewhere any more. `bytes`: of the row, and of what came
    /// before it and is still to be forwarded.
    fn row(&mut self, env: &Env<'_>, work: &mut Work, bytes: usize) -> Fate {
        if work.runs_again() || !work.owed.front().is_some_and(Owed::is_clients) {
            return Fate::Swallow;
        }
        let kept_back = work.kept_back.len() + bytes;
        if (work.attempt.is_some() && kept_back <= READ_KEPT_BACK_MAX) || (!work.sent.is_empty() && kept_back <= KEPT_BACK_MAX) {
            return Fate::Forward;
        }
        self.deliver(env, work);
        Fate::Forward
    }

    /// From here on the answer is this server's.
    pub(super) fn deliver(&mut self, env: &Env<'_>, work: &mut Work) {
        if work.shows {
            self.showed(env, work);
        }
        if work.attempt.take().is_some() {
            work.batch.clear();
        } else if !work.sent.is_empty() {
            work.sent.clear();
        } else {
            return;
        }
        if work.to_client.is_empty() {
            std::mem::swap(&mut work.to_client, &mut work.kept_back);
        } else {
            work.to_client.append(&mut work.kept_back);
        }
    }

    /// The watermark is set before the bytes go on.
    fn showed(&mut self, env: &Env<'_>, work: &Work) {
        match &self.phase {
            Phase::Holding { role: ServerRole::Replica, .. } if work.unproven => self.watermark.saw_unproven(env.now),
            Phase::Holding { member, .. } => self.watermark.saw(member, env.now),
            Phase::Idle | Phase::Waiting => {}
        }
    }

    fn forward(&mut self, work: &mut Work, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if work.attempt.is_some() || !work.sent.is_empty() {
            work.kept_back.extend_from_slice(bytes);
        } else {
            work.to_client.extend_from_slice(bytes);
        }
    }

    fn server_message(
        &mut self,
        env: &Env<'_>,
        work: &mut Work,
        server: &mut ServerState,
        tag: u8,
        body: &[u8],
        message: &[u8],
    ) -> Result<Fate, Garbled> {
        let fate = match tag {
            b'S' => {
                if let Ok((name, value)) = view::parameter(body) {
                    server.params.set(name, value);
                }
                Fate::Swallow
            }
            b'A' => {
                self.showed(env, work);
                let (pid, rest) = body.split_first_chunk::<4>().ok_or(Garbled)?;
                match env.voices.told(i32::from_be_bytes(*pid)) {
                    // Who notified is told as that client knows itself: some look whether it was them.
                    Some(told) => {
                        let mut message = Vec::with_capacity(message.len());
                        reply::message(&mut message, b'A', &[&told.to_be_bytes(), rest]);
                        self.forward(work, &message);
                        Fate::Swallow
                    }
                    None => Fate::Forward,
                }
            }
            // Nobody's: the connection is on its way back.
            b'N' if self.want == Some(Want::Return) => Fate::Swallow,
            b'N' => match work.owed.front() {
                Some(owed) if !owed.is_clients() => Fate::Swallow,
                _ if work.runs_again() => Fate::Swallow,
                _ => {
                    // A write's notices tell how far it has come.
                    if work.kept_back.len() > KEPT_BACK_MAX || !work.sent.is_empty() {
                        self.deliver(env, work);
                    }
                    Fate::Forward
                }
            },
            // What isn't owed can't fail, but the server may go.
            b'E' if work.owed.is_empty() && !view::fault(body).is_fatal() => return Err(Garbled),
            b'E' => self.error(env, work, server, body, message),
            b'Z' => return self.ready(env, work, server, body),
            b'1' | b'2' | b'3' | b'n' | b'T' | b't' => self.progress(work, server, tag, body),
            b'C' | b'I' | b's' => self.complete(env, work, server, tag, body),
            _ if work.runs_again() => Fate::Swallow,
            // Of something of ours: nothing that is the client's comes before its ReadyForQuery.
            _ if work.owed.front().is_some_and(|owed| !owed.is_clients()) => Fate::Swallow,
            b'G' | b'W' => {
                self.deliver(env, work);
                self.copies_in(work);
                Fate::Forward
            }
            // As a RowDescription: a COPY of which no row was sent may run elsewhere.
            b'H' => Fate::Forward,
            // Its end, CopyDone, is no more than its rows.
            b'c' if work.attempt.is_some() => Fate::Forward,
            // CopyDone ('c') of COPY TO, FunctionCallResponse ('V') and whatever a later PostgreSQL may add.
            _ => {
                self.deliver(env, work);
                self.showed(env, work);
                Fate::Forward
            }
        };
        Ok(fate)
    }

    /// The server waits for COPY data. A Sync that was sent behind the Execute is ignored there: the client sends another.
    fn copies_in(&mut self, work: &mut Work) {
        work.copy_in = CopyIn::Takes;
        // A string of several statements may hold another COPY.
        work.alone = matches!(work.owed.front(), Some(Owed::Query(verdict, _)) if verdict.statements > 1);
        if matches!(work.owed.front(), Some(Owed::Execute(_))) {
            while matches!(work.owed.get(1), Some(Owed::Sync(Sync::Clients))) {
                work.owed.remove(1);
                work.segment = Segment::Open;
                self.unsynced = true;
            }
        }
    }

    /// A message of the extended protocol that pays a part of what is owed.
    fn progress(&mut self, work: &mut Work, server: &mut ServerState, tag: u8, body: &[u8]) -> Fate {
        let pays = match work.owed.front() {
            Some(Owed::Parse { .. }) => tag == b'1',
            Some(Owed::Bind(..)) => tag == b'2',
            Some(Owed::Close { .. }) => tag == b'3',
            Some(Owed::Describe { .. }) => matches!(tag, b'T' | b'n'),
            _ => false,
        };
        let swallow = work.runs_again() || work.owed.front().is_some_and(|owed| !owed.is_clients());
        if pays {
            match work.owed.pop_front() {
                Some(Owed::Describe { id, statement: Some(statement), check }) => {
                    if (check || statement.described.get().is_none())
                        && let Some(described) = view::row_shape(tag, body)
                        && statement.described.get_or_init(|| described) != &described
                        && check
                    {
                        work.misshapen.extend(id);
                    }
                }
                Some(Owed::Parse { prepares, place: Place::Named(name), .. }) => {
                    if let Some(own) = &mut server.own_names {
                        if prepares.is_some() || !work.stand_ins.contains(&name) {
                            own.missing.remove(&name);
                        }
                        // Otherwise the server has it as what SQL prepares there.
                        if let Some(Prepares { name, statement, duplicate: true, .. }) = prepares {
                            self.renamed(name, statement);
                        }
                    }
                }
                _ => {}
            }
            work.alone &= !work.owed.is_empty();
        }
        if swallow { Fate::Swallow } else { Fate::Forward }
    }

    fn complete(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, tag: u8, body: &[u8]) -> Fate {
        if let Some(Owed::Begin | Owed::Own) = work.owed.front() {
            work.owed.pop_front();
            return Fate::Swallow;
        }
        if work.owed.front().is_some_and(|owed| !owed.is_clients()) {
            return Fate::Swallow;
        }
        if work.runs_again() {
            if matches!(work.owed.front(), Some(Owed::Execute(_))) {
                work.owed.pop_front();
            }
            return Fate::Swallow;
        }
        let completes = match work.owed.front() {
            Some(Owed::Query(verdict, _)) => Some(verdict),
            Some(Owed::Execute(Some(statement))) => Some(&statement.verdict),
            _ => None,
        };
        // Nothing is lost by keeping it back up to ReadyForQuery, which a server that crashes may not get to send.
        let only_reads = |verdict: &Arc<Verdict>| verdict.class == Class::Read && verdict.has_no_effects();
        let again = completes.is_some_and(only_reads) && tag != b's';
        if !again || work.attempt.is_none() {
            self.deliver(env, work);
        }
        if tag == b's' {
            // A portal that is open is state on this server.
            self.movable = None;
        }
        let command = if tag == b'C' { view::command_tag(body) } else { b"" };
        if tag == b'C' {
            work.undone = command == b"ROLLBACK";
            // Within a transaction nothing is acknowledged before its COMMIT; outside, a statement may have been committed by itself.
            if self.status == TxStatus::Idle || command == b"COMMIT" {
                env.marks.wrote(&self.written, env.now);
            }
        }
        work.copy_in = CopyIn::None;
        match work.owed.front() {
            Some(Owed::Query(verdict, text_hash)) => {
                let (verdict, text_hash) = (verdict.clone(), *text_hash);
                let nonce = env.random.wrapping_add(work.completed as u64);
                let completion = Completion { verdict: &verdict, statement: work.completed, text_hash, tag: command, nonce };
                self.completed(completion, work, server);
                // Were the string cut otherwise than PostgreSQL does, nobody would know what has run.
                server.unsure |= work.completed >= verdict.statements.max(1);
                work.completed += 1;
            }
            Some(Owed::Execute(_)) => match work.owed.pop_front() {
                Some(Owed::Execute(Some(statement))) => {
                    let text_hash = text_hash(&statement.verdict, statement.text());
                    let completion = Completion { verdict: &statement.verdict, statement: 0, text_hash, tag: command, nonce: env.random };
                    self.completed(completion, work, server);
                    if matches!(command, b"COMMIT" | b"ROLLBACK") && !statement.verdict.effects.iter().any(ends_or_goes_back) {
                        // A portal that had another statement: its Bind has failed, in a pipeline.
                        server.unsure = true;
                        self.pins.add(PinReason::SettingOutOfSight);
                        if command == b"ROLLBACK" { self.roll_back_changes(Some(server)) } else { self.commit_changes() }
                    }
                }
                // Nobody knows what it was: whatever it left stays this session's.
                _ => self.pins.add(PinReason::SettingOutOfSight),
            },
            _ => {}
        }
        work.alone &= !work.owed.is_empty();
        Fate::Forward
    }

    fn error(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, body: &[u8], message: &[u8]) -> Fate {
        let fault = view::fault(body);
        let mut sqlstate = *b"XX000";
        if let Some(code) = fault.sqlstate.first_chunk::<5>() {
            sqlstate = *code;
        }
        if fault.is_fatal() {
            // The end of the connection follows, and says what it means for the session.
            work.last_words = Some((sqlstate, message.into()));
            server.tainted = true;
            return Fate::Swallow;
        }
        work.copy_in = CopyIn::None;
        work.segment_failed = true;
        // Nobody knows what it was.
        server.unsure |= matches!(work.owed.front(), Some(Owed::Execute(None)));
        if let Some(Owed::Query(..)) = work.owed.front()
            && let Some(before) = self.unnamed_before.take()
            && work.completed == 0
            && self.refuses_encoding(&sqlstate, fault.message)
        {
            self.unnamed.get_or_insert(before);
        }
        if let Some(Owed::Bind(Some((id, _)), _) | Owed::Describe { id: Some(id), .. }) = work.owed.front()
            && fault.routine == RESULT_TYPE_CHANGED
        {
            env.judge.outdate(*id);
        }
        match work.owed.front() {
            Some(Owed::Bring) => {
                work.prelude_failed = Some(message.to_vec());
                return Fate::Swallow;
            }
            Some(Owed::Discard) => {
                // What is in it is another session's.
                server.tainted = true;
                return Fate::Swallow;
            }
            Some(Owed::Prelude) => return Fate::Swallow,
            Some(Owed::Look(_) | Owed::LookBegins) => {
                if let Some(seen) = &mut work.seen {
                    seen.fail(&sqlstate);
                }
                return Fate::Swallow;
            }
            Some(Owed::Parse { .. } | Owed::Describe { .. }) if checks(&work.owed) => {
                // What can't be prepared any more fails again where the client's own messages need it.
                self.drop_to_sync(work, server, false);
                return Fate::Swallow;
            }
            Some(Owed::Parse { swallow: true, prepares: None, place: Place::Named(name) })
                if matches!(work.owed.get(1), Some(Owed::Sync(Sync::Ours))) =>
            {
                // A stand-in that the server wouldn't take: the statement that it is for tells. Or one that can't be prepared any more.
                if let Some(own) = &mut server.own_names {
                    own.missing.insert(name.clone(), message.into());
                }
                work.owed.pop_front();
                return Fate::Swallow;
            }
            Some(Owed::Refused { .. }) => {
                self.deliver(env, work);
                if let Some(Owed::Refused { refusal, query }) = work.owed.pop_front() {
                    work.tally.refusals.push(refusal.wording().sqlstate);
                    refusal.encode(&mut work.to_client);
                    if !query {
                        self.drop_to_sync(work, server, false);
                    }
                }
                return Fate::Swallow;
            }
            _ => {}
        }
        let vanished = match work.owed.front() {
            Some(Owed::Bind(Some((id, _)), _) | Owed::Describe { id: Some(id), .. }) if sqlstate == INVALID_STATEMENT_NAME => Some(*id),
            _ => None,
        };
        if let Some(id) = vanished {
            // Code that nobody has read has closed a statement of ours: it is prepared anew where nothing of the batch has run.
            server.forget_statement(id);
            server.unsure = true;
            if work.attempt.is_none() && !work.sent.is_empty() && work.batch.is_empty() {
                std::mem::swap(&mut work.batch, &mut work.sent);
                work.attempt = Some(Attempt::default());
            }
        }
        // After an error in a simple query or a function call its ReadyForQuery follows.
        let extended = !matches!(work.owed.front(), None | Some(Owed::Query(..) | Owed::FunctionCall | Owed::Sync(_)));
        if let Some(attempt) = &mut work.attempt
            && (attempt.failed.is_some()
                || (runs_again(env, &self.phase, &sqlstate) && (!attempt.later || is_conflict(&sqlstate) || sqlstate == NOT_ON_A_STANDBY))
                || vanished.is_some()
                || others_left_it(env, &work.owed, server, &sqlstate))
        {
            if attempt.failed.replace(sqlstate).is_none() {
                work.tally.reruns.push(sqlstate);
            }
            if extended {
                self.drop_to_sync(work, server, true);
            }
            return Fate::Swallow;
        }
        work.tally.errors += 1;
        if matches!(work.owed.front(), Some(Owed::Begin)) {
            work.begin_failed = true;
        }
        // Before what failed is forgotten.
        let why_missing = || Session::why_missing(work, server).filter(|_| sqlstate == INVALID_STATEMENT_NAME);
        let renamed = Session::in_clients_names(work, message).or_else(|| Some(why_missing()?.to_vec()));
        if extended {
            if let Some(Owed::Parse { prepares: Some(prepares), .. }) = work.owed.front_mut()
                && !self.refuses_message(prepares.statement.text(), &sqlstate, fault.message)
            {
                // It leaves no unnamed statement.
                prepares.previous = None;
            }
            self.drop_to_sync(work, server, false);
        }
        self.deliver(env, work);
        if let Some(renamed) = renamed {
            self.forward(work, &renamed);
            return Fate::Swallow;
        }
        Fate::Forward
    }

    /// Whether the message itself wasn't in the client's encoding, which is named then. (A literal that isn't in the server's is told by that one.)
    fn refuses_encoding(&self, sqlstate: &[u8; 5], message: &[u8]) -> bool {
        let Some(encoding) = self.told.value("client_encoding") else { return false };
        let quoted = [b"\"", encoding, b"\""].concat();
        matches!(sqlstate, b"22021" | b"22P05") && message.windows(quoted.len()).any(|part| part == quoted)
    }

    /// Whether a Parse of this text has failed as a message: it has changed nothing then.
    fn refuses_message(&self, text: &[u8], sqlstate: &[u8; 5], message: &[u8]) -> bool {
        self.cannot_be_read(text) || (self.may_not_be_read(text) && self.refuses_encoding(sqlstate, message))
    }

    /// An error in the extended protocol. The server skips to Sync after an error: what it would have answered up to there isn't owed any more.
    fn drop_to_sync(&mut self, work: &mut Work, server: &mut ServerState, runs_again: bool) {
        let begins = matches!(work.owed.front(), Some(Owed::Begin));
        let until = |owed: &Owed| if begins { owed.ends_segment() } else { matches!(owed, Owed::Sync(_)) };
        let skipped = work.owed.iter().position(until);
        // The newest first, so that each finds what it has changed.
        let abandons = match skipped.map(|at| &work.owed[at]) {
            None => true,
            Some(Owed::Sync(Sync::Ours)) => work.batch.end == End::Open,
            Some(_) => false,
        };
        if abandons && !runs_again {
            self.abandon_batch(work);
        }
        for at in (0..skipped.unwrap_or(work.owed.len())).rev() {
            let Some(owed) = work.owed.remove(at) else { continue };
            if let Owed::Close { unnamed: Some(before), .. } = owed {
                server.restore_unnamed(before);
            }
            match owed {
                Owed::Parse { prepares, place, .. } => {
                    match place {
                        Place::Shared(id) => server.prepared().remove(id),
                        // Failed, it leaves none; skipped, the one before.
                        Place::Unnamed(before) if at > 0 => server.restore_unnamed(before),
                        Place::Unnamed(_) => server.forget_unnamed(),
                        Place::Named(_) => {}
                    }
                    if let Some(Prepares { name, statement, previous, .. }) = prepares
                        && !runs_again
                    {
                        amend(work, &statement, previous.as_ref());
                        self.unprepare(&name, &statement, previous);
                    }
                }
                Owed::Close { evicted: Some(evicted), .. } => server.prepared().restore(evicted),
                // A stand-in stays there under a client's name: nobody else gets this server.
                Owed::Close { swallow: true, unnamed: None, .. } => server.tainted = true,
                Owed::Close { closed: Some((name, statement)), .. } if !runs_again => {
                    if !(name.is_empty() && hand_on(work, at, &statement)) {
                        self.reinstate(name, Some(statement));
                    }
                }
                // A portal may be there still.
                Owed::Close { swallow: false, closed: None, unnamed: None, .. } => self.portals_in_doubt = true,
                Owed::Bind(_, (portal, number)) if !runs_again => self.unbind(&portal, number),
                Owed::Bring
                | Owed::Begin
                | Owed::Own
                | Owed::Discard
                | Owed::Prelude
                | Owed::Look(_)
                | Owed::LookBegins
                | Owed::Query(..)
                | Owed::FunctionCall
                | Owed::Refused { .. }
                | Owed::Bind(..)
                | Owed::Describe { .. }
                | Owed::Execute(_)
                | Owed::Close { .. }
                | Owed::Sync(_) => {}
            }
        }
        match work.owed.front() {
            // Skipped as well, up to a Sync that nobody has sent.
            Some(Owed::Query(..) | Owed::FunctionCall) if begins => {
                work.owed.pop_front();
                reply::sync(&mut work.to_server);
                work.owed.push_front(Owed::Sync(Sync::Clients));
            }
            // Our Sync isn't the client's: what it sends is dropped up to there.
            Some(Owed::Sync(Sync::Ours)) if !runs_again => {
                self.skipping = true;
            }
            None if runs_again => {
                reply::sync(&mut work.to_server);
                work.owed.push_back(Owed::Sync(Sync::Ours));
            }
            None => {
                work.segment = Segment::Skipped;
                work.alone = false;
            }
            Some(_) => {}
        }
    }

    fn ready(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, body: &[u8]) -> Result<Fate, Garbled> {
        let status = body.first().copied().and_then(TxStatus::from_byte).ok_or(Garbled)?;
        if !work.owed.front().is_some_and(Owed::ends_segment) {
            return Err(Garbled);
        }
        let completed = std::mem::take(&mut work.completed);
        let ran = completed > 0 || server.tx != TxStatus::Failed || work.recovered;
        server.tx = status;
        work.recovered = false;
        let owed = work.owed.pop_front();
        server.ready = work.owed.is_empty() && work.segment == Segment::Closed;
        match owed {
            Some(Owed::Bring) => self.brought(env, work, server),
            Some(Owed::Look(look)) if self.looks_again(env, look, work, server) => {}
            Some(Owed::Look(look)) => {
                work.failed_looks = 0;
                self.looked(look, work, server);
                self.unproven = false;
                if self.pinned(env) {
                    if work.elsewhere {
                        self.stay(env, work, server);
                    }
                } else if !self.leave_own_names(work, server) {
                    self.want = Some(Want::Return);
                }
            }
            Some(Owed::Query(verdict, _)) => {
                work.may_have_set_again = may_set_again(&verdict);
                if work.segment_failed {
                    server.unsure |= server.own_names.is_some();
                    if ran {
                        self.failed(&verdict, completed, server);
                    }
                }
                return Ok(self.segment_done(env, work, server, status, true));
            }
            Some(Owed::FunctionCall | Owed::Sync(Sync::Clients)) => return Ok(self.segment_done(env, work, server, status, true)),
            Some(Owed::Sync(Sync::ForFlush)) => {
                // The client's own Sync is still to come: after an error everything up to there is dropped.
                if work.segment_failed && !work.runs_again() {
                    self.skipping = true;
                    if work.batch.end == End::Open {
                        self.abandon_batch(work);
                    }
                }
                self.segment_done(env, work, server, status, false);
            }
            Some(Owed::Sync(Sync::Check)) => {
                work.segment_failed = false;
                work.after_bring = false;
                for id in work.misshapen.drain(..) {
                    env.judge.outdate(id);
                    server.prepared().remove(id);
                    reply::close_statement(&mut work.to_server, &server_name(id));
                    work.owed.push_back(Owed::OUR_CLOSE);
                }
                self.send_batch(env, work, server);
            }
            Some(Owed::Sync(Sync::Ours)) => {
                if self.skipping && work.segment_failed && !work.runs_again() {
                    // What the client will be told at its own Sync. What is undone is brought before its next statement.
                    self.end_segment(work, server);
                    self.status = status;
                }
                work.segment_failed = false;
                work.alone &= !work.owed.is_empty();
                if !work.runs_again() {
                    self.return_if_done(env, work, server);
                } else if work.owed.is_empty() {
                    self.run_again(env, work, server);
                }
            }
            // An error there is what it was for.
            Some(Owed::Prelude | Owed::Discard | Owed::LookBegins) => work.segment_failed = false,
            Some(
                Owed::Begin
                | Owed::Own
                | Owed::Refused { .. }
                | Owed::Parse { .. }
                | Owed::Bind(..)
                | Owed::Describe { .. }
                | Owed::Execute(_)
                | Owed::Close { .. },
            )
            | None => {}
        }
        Ok(Fate::Swallow)
    }

    /// The answer to a settings replay is complete.
    fn brought(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        let waited = std::mem::take(&mut work.after_bring);
        let ready = work.ready_after_bring.take();
        if let Some(mut error) = work.prelude_failed.take() {
            server.tainted = true;
            work.segment_failed = false;
            if waited && server.settings.may_not_go_back(&self.settings, server.accepted(), server.role) {
                // That connection is nobody's any more, and nothing was sent to it.
                self.want = Some(Want::Return);
                return;
            }
            let elsewhere = server.role == ServerRole::Replica && env.policy.access == Access::ReadWrite && self.starting.is_none();
            if elsewhere && let Some(attempt) = &mut work.attempt {
                // The batch was sent with it: what it says is swallowed.
                attempt.failed.get_or_insert(*b"XX000");
                return;
            }
            if elsewhere && waited {
                // A replica that has not got what the setting names, yet.
                work.excluded.push(server.node.clone());
                work.rerun_on_leader = true;
                self.want = Some(Want::Return);
                return;
            }
            let is_another = self.settings.iter().any(|(name, _)| is_role(name));
            if waited && self.starting.is_none() && !is_another {
                return self.setting_refused(env, work, server, &error);
            }
            // Without its settings a session can't go on: the next statement could run as somebody else.
            make_fatal(&mut error);
            work.to_client.append(&mut error);
            self.want = Some(Want::Close);
            return;
        }
        work.segment_failed = false;
        server.settings = self.settings.clone();
        for name in self.settings.dotted() {
            server.accepts(name);
        }
        if work.fresh && server.fresh && waited {
            // Another server wouldn't take them.
            self.pins.add(PinReason::SettingOutOfSight);
        }
        self.settings_proven = true;
        if self.starting.is_some() {
            self.start(env, work, server);
        } else if waited {
            self.send_batch(env, work, server);
        } else if let Some(status) = ready {
            self.tell_parameters(env, work, server);
            reply::ready_for_query(&mut work.to_client, status);
            self.return_if_done(env, work, server);
        } else if work.owed.is_empty() {
            self.return_if_done(env, work, server);
        }
    }

    /// A server doesn't take a value that another one has taken: what it names has been dropped since, or a library that another session has loaded owns
    /// the prefix of its name, in which case a server that nobody has used is asked. Nothing of the batch was sent: it gets the server's error, and the
    /// session goes on.
    fn setting_refused(&mut self, env: &Env<'_>, work: &mut Work, server: &ServerState, error: &[u8]) {
        let owned = view::fault(&error[HEADER..]).sqlstate == INVALID_NAME;
        if owned && !server.fresh && server.role == ServerRole::Leader && env.policy.access == Access::ReadWrite {
            work.fresh = true;
            work.rerun_on_leader = true;
            self.want = Some(Want::Return);
            return;
        }
        if self.begin.take().is_some() {
            self.lost = Some(Lost::Told);
            self.status = TxStatus::Failed;
        }
        work.to_client.extend_from_slice(error);
        work.tally.errors += 1;
        self.end_refused_batch(work);
        self.want = Some(Want::Return);
    }

    /// The startup settings are in place: tells the client what the server reports, its key, and that it may begin.
    pub(super) fn start(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        let Some(key) = self.starting.take() else { return };
        self.settings_proven = true;
        server.settings = self.settings.clone();
        self.tell_parameters(env, work, server);
        self.began = self.told.clone();
        reply::message(&mut work.to_client, b'K', &[&key.pid.to_be_bytes(), &key.secret]);
        reply::ready_for_query(&mut work.to_client, TxStatus::Idle);
        work.forget_attempts();
        self.want = Some(Want::Return);
    }

    /// Reports every parameter whose value differs from what the client was last told.
    pub(super) fn tell_parameters(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        if server.tx == TxStatus::Idle {
            self.dialect_doubt.changed = false;
        }
        if work.owed.is_empty() && work.batch.is_empty() && work.segment == Segment::Closed {
            (self.dialect_doubt.strings, self.dialect_doubt.encoding) = (false, false);
        }
        let (settings, there) = match self.journal.gone_back().filter(|_| server.tx == TxStatus::Failed) {
            Some(gone_back) => gone_back,
            None => (&self.settings, &server.settings),
        };
        if server.role == ServerRole::Leader && server.tx == TxStatus::Idle && settings.value(READ_ONLY).is_none() {
            self.reads_only = server.params.value(READ_ONLY) == Some(b"on");
        }
        let read_only = if server.role == ServerRole::Replica { self.told_read_only(env, settings, server) } else { None };
        let is_told = read_only.is_none_or(|value| self.told.value(READ_ONLY) == Some(value));
        let parted = !Arc::ptr_eq(settings, there);
        if self.heard == server.params && is_told && !parted {
            // The next comparison is one of pointers.
            server.params.share(&self.heard);
            return;
        }
        let mut changed = false;
        for reported in server.params.reported() {
            let (name, value) = (&*reported.name, &*reported.value);
            let told: &[u8] = match name {
                // Drivers choose hosts by it: it tells of the port, not of the server behind it.
                b"in_hot_standby" => match env.policy.access {
                    Access::ReadWrite => b"off",
                    Access::ReadOnly => b"on",
                },
                b"default_transaction_read_only" if server.role == ServerRole::Replica => match read_only {
                    Some(value) => value,
                    None => continue,
                },
                _ => value,
            };
            let text = std::str::from_utf8(name).unwrap_or_default();
            if parted && is_lacking(settings, there, text) {
                // The session has it still, and its server gets it back behind what is under way.
                if is_at_startup(settings, &self.startup, text)
                    && let Some(began) = self.began.value(text)
                    && self.told.value(text) != Some(began)
                {
                    reply::parameter_status(&mut work.to_client, name, began);
                    self.told.set(name, began);
                    changed = true;
                }
                continue;
            }
            if self.told.value(text) != Some(told) {
                reply::parameter_status(&mut work.to_client, name, told);
                if told == value {
                    self.told.adopt(reported.clone())
                } else {
                    self.told.set(name, told)
                }
                changed = true;
            }
        }
        if changed {
            let before = self.dialect();
            self.standard_conforming_strings = self.told.value("standard_conforming_strings") != Some(b"off");
            self.ascii_safe = !matches!(
                self.told.value("client_encoding"),
                Some(b"SJIS" | b"BIG5" | b"GBK" | b"UHC" | b"GB18030" | b"JOHAB" | b"SHIFT_JIS_2004")
            );
            self.dialect_doubt.changed |= server.tx != TxStatus::Idle && before != self.dialect();
        }
        self.heard = server.params.clone();
    }

    /// What a session on a replica is told of `default_transaction_read_only`: what it has set itself. On the server it is the connection's own
    /// protection. `None`: what it was told last.
    fn told_read_only(&self, env: &Env<'_>, settings: &Settings, server: &ServerState) -> Option<&'static [u8]> {
        let shown = |value: &[u8]| Some(if parse_bool(std::str::from_utf8(value).ok()?)? { &b"on"[..] } else { &b"off"[..] });
        match (settings.value(READ_ONLY), env.policy.access) {
            (Some(Value::Known(value)), _) => shown(value),
            // It has set it there.
            (Some(Value::Unread(_)), _) => server.params.value(READ_ONLY).and_then(shown),
            (None, Access::ReadOnly) => Some(b"off"),
            // What leaders have told.
            (None, Access::ReadWrite) => Some(if self.reads_only { b"on" } else { b"off" }),
        }
    }

    /// ReadyForQuery behind a segment. `told`: it is the client's, and not that of a Sync in the place of its Flush.
    fn segment_done(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, status: TxStatus, told: bool) -> Fate {
        let may_have_set_again = std::mem::take(&mut work.may_have_set_again);
        if work.runs_again() {
            if work.owed.is_empty() {
                self.run_again(env, work, server);
            }
            return Fate::Swallow;
        }
        self.deliver(env, work);
        self.acknowledge(env, work, status);
        self.end_segment(work, server);
        work.segment_failed = false;
        work.copy_in = CopyIn::None;
        // What was sent behind it is still to be answered, if that is what is waited for.
        work.alone &= !work.owed.is_empty();
        work.prepares &= !work.owed.is_empty();
        self.status = status;
        if std::mem::take(&mut work.begin_failed) && status == TxStatus::Idle {
            // The client was told that its transaction had begun: it has failed.
            self.status = TxStatus::Failed;
            self.lost = Some(Lost::Told);
        }
        if status == TxStatus::Idle {
            debug_assert!(self.begin.is_none(), "a BEGIN was held back from the transaction that it was to begin");
            if work.owed.is_empty() && work.batch.is_empty() {
                // Otherwise some of them may be of a segment that has begun behind this one. One too many does no harm.
                self.close_portals();
            }
            self.movable = None;
        }
        if status != TxStatus::Failed && self.lost == Some(Lost::StoodIn) {
            // Over, or followed by another one (AND CHAIN).
            self.lost = None;
        }
        let local_defaults = status == TxStatus::InTransaction && !self.local_defaults.is_empty();
        if work.owed.is_empty() && status != TxStatus::Failed && (local_defaults || self.differs_from(server)) {
            // It has gone back to values of its own where the session has others.
            if local_defaults {
                self.startup.local_messages(&self.local_defaults, &mut work.to_server);
                self.local_defaults.clear();
                work.owed.push_back(Owed::Prelude);
            }
            if may_have_set_again {
                self.bring_where_reset(work, server);
            } else {
                self.bring(work, server);
            }
            work.ready_after_bring = told.then_some(status);
            return Fate::Swallow;
        }
        self.tell_parameters(env, work, server);
        if status == TxStatus::Failed && self.lost.is_none() {
            self.fail_anew(work, server);
        }
        self.return_if_done(env, work, server);
        if self.status == status {
            return Fate::Forward;
        }
        if told {
            reply::ready_for_query(&mut work.to_client, self.status);
        }
        Fate::Swallow
    }

    /// The client is about to hear that what it wrote is committed, or that it isn't: the marks are set before that.
    fn acknowledge(&mut self, env: &Env<'_>, work: &Work, status: TxStatus) {
        if status != TxStatus::Idle || self.written.is_nothing() {
            return;
        }
        // What fails or is rolled back has written nothing, unless it is something that commits on its own (and may write everything).
        let undone = (work.segment_failed || work.undone) && matches!(self.written, Touched::Relations(_));
        if !undone {
            env.marks.wrote(&self.written, env.now);
        }
        if work.owed.is_empty() && work.segment == Segment::Closed {
            // Otherwise some of it is of a segment behind this one.
            self.written = Touched::Nothing;
        }
    }

    /// Gives the server connection back where nothing is owed and nothing keeps it.
    pub(super) fn return_if_done(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        if !work.owed.is_empty() || work.segment != Segment::Closed || Session::close_stand_ins(work, server) {
            return;
        }
        env.marks.ends(&mut self.sending);
        work.forget_attempts();
        work.writing = false;
        let half_a_message = work.client_passing > 0 && work.client_passing_on;
        let outside = self.status == TxStatus::Idle || self.lost == Some(Lost::Told);
        if work.elsewhere && (!outside || self.pinned(env)) {
            return self.stay(env, work, server);
        }
        if !outside || self.pinned(env) || half_a_message || (work.batch.end != End::Open && !work.elsewhere) {
            return;
        }
        // What code has done to the client's names is seen while they are there; whether they are gone, behind that.
        let sees_names = server.own_names.is_some() && server.unsure;
        if !((sees_names && self.look(env, work, server)) || self.leave_own_names(work, server) || self.look(env, work, server)) {
            self.unproven = false;
            self.want = Some(Want::Return);
        } else if work.owed.is_empty() && work.elsewhere {
            // Nobody could look.
            self.stay(env, work, server);
        }
    }

    /// What came before the batch has begun a transaction, or keeps the connection: it belongs there.
    fn stay(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        work.elsewhere = false;
        self.dispatch(env, work, server);
    }

    /// What the server said shows that it couldn't answer: another one will.
    fn run_again(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        let attempt = work.attempt.take().unwrap_or_default();
        if attempt.failed == Some(READ_ONLY_TRANSACTION) {
            // It writes, though nobody knew.
            self.written.merge(&Touched::Everything);
        }
        work.kept_back.clear();
        work.segment_failed = false;
        work.segment = Segment::Closed;
        work.alone = false;
        work.begin_failed = false;
        self.roll_back_changes(Some(server));
        if attempt.failed == Some(INVALID_NAME) && server.role == ServerRole::Leader {
            work.fresh = true;
        } else if attempt.failed == Some(INVALID_STATEMENT_NAME) && server.role == ServerRole::Leader {
            // Another connection has its statements, or gets them.
            server.tainted = true;
        } else {
            work.excluded.push(server.node.clone());
        }
        work.rerun_on_leader = env.policy.access == Access::ReadWrite;
        self.put_begin_back(attempt);
        self.want = Some(Want::Return);
    }
}

/// A Parse was for nothing: what has come behind it may be, too, and goes back to `instead` then, what the unnamed statement was before.
fn amend(work: &mut Work, statement: &Arc<Statement>, instead: Option<&Arc<Statement>>) {
    let meant = |known: &Option<Arc<Statement>>| known.as_ref().is_some_and(|known| known.is(statement));
    for owed in &mut work.owed {
        match owed {
            Owed::Parse { prepares: Some(prepares), .. } if meant(&prepares.previous) => prepares.previous = instead.cloned(),
            Owed::Close { closed, .. } if closed.as_ref().is_some_and(|(_, known)| known.is(statement)) => {
                *closed = closed.take().zip(instead).map(|((name, _), instead)| (name, instead.clone()));
            }
            _ => {}
        }
    }
    for (item, _) in &mut work.batch.items {
        match item {
            Item::Parse { previous, .. } if meant(previous) => *previous = instead.cloned(),
            Item::CloseStatement { closed, .. } if meant(closed) => *closed = instead.cloned(),
            _ => {}
        }
    }
}

/// A Close of the unnamed statement was skipped: it is that still, up to what has been taken behind it that changes that. False where nothing does.
fn hand_on(work: &mut Work, behind: usize, statement: &Arc<Statement>) -> bool {
    for owed in work.owed.iter_mut().skip(behind) {
        match owed {
            Owed::Query(..) => return true,
            Owed::Close { swallow: false, unnamed: Some(_), closed, .. } => {
                closed.get_or_insert_with(|| (Box::default(), statement.clone()));
                return true;
            }
            Owed::Parse { prepares: Some(prepares), .. } if prepares.name.is_empty() => {
                prepares.previous.get_or_insert_with(|| statement.clone());
                return true;
            }
            _ => {}
        }
    }
    // A batch that may run again is what is under way itself.
    let taken = if work.attempt.is_none() { &mut work.batch.items[..] } else { &mut [] };
    for (item, _) in taken {
        match item {
            Item::Query(_) => return true,
            Item::CloseStatement { name, closed: known } | Item::Parse { name, previous: known, .. } if name.is_empty() => {
                known.get_or_insert_with(|| statement.clone());
                return true;
            }
            _ => {}
        }
    }
    false
}

/// Whether the session has set a reported parameter, and its server doesn't have that.
fn is_lacking(settings: &Settings, there: &Settings, reported: &str) -> bool {
    let name = reported.to_ascii_lowercase();
    settings.value(&name).is_some_and(|value| there.value(&name) != Some(value))
}

/// Whether a string goes back to a server's own settings, and has something besides that may set them out of sight.
fn may_set_again(verdict: &Verdict) -> bool {
    let goes_back = |effect: &Effect| matches!(effect, Effect::Reset { .. } | Effect::ResetAll | Effect::DiscardAll);
    verdict.statements > 1 && verdict.unseen.leaves && verdict.effects.iter().any(goes_back)
}

/// Whether a reported parameter has the value that the startup packet gave.
fn is_at_startup(settings: &Settings, startup: &Settings, reported: &str) -> bool {
    let name = reported.to_ascii_lowercase();
    startup.value(&name).is_some_and(|value| settings.value(&name) == Some(value))
}

/// Whether what is owed next is a look of the router's own at statements.
fn checks(owed: &VecDeque<Owed>) -> bool {
    matches!(owed.iter().find(|owed| owed.ends_segment()), Some(Owed::Sync(Sync::Check)))
}

/// Whether an error from the server that is held is answered by running the batch again: on the read/write port any of a replica's but a
/// cancel, on the read-only port a conflict with recovery (a lone read has no other way to get one of its codes).
fn runs_again(env: &Env<'_>, phase: &Phase, sqlstate: &[u8; 5]) -> bool {
    let Phase::Holding { role: ServerRole::Replica, member } = phase else { return false };
    match env.policy.access {
        Access::ReadWrite => sqlstate != QUERY_CANCELED,
        Access::ReadOnly => {
            let elsewhere = env.policy.fallback_to_leader || env.topology.replicas().any(|(_, other)| other.name != member.name);
            is_conflict(sqlstate) && elsewhere
        }
    }
}

/// Whether a standby says so of a statement that is in the way of its recovery.
fn is_conflict(sqlstate: &[u8; 5]) -> bool {
    matches!(sqlstate, b"40001" | b"40P01")
}

/// Whether an error may be of somebody else's making: a library that another session has loaded owns the prefix of a parameter's name
/// (`MarkGUCPrefixReserved`), which a connection of the client's own would take. A server that nobody has used tells.
fn others_left_it(env: &Env<'_>, owed: &VecDeque<Owed>, server: &ServerState, sqlstate: &[u8; 5]) -> bool {
    let verdict = match owed.front() {
        Some(Owed::Query(verdict, _)) => verdict,
        Some(Owed::Execute(Some(statement))) => &statement.verdict,
        _ => return false,
    };
    let dotted = |effect: &Effect| matches!(effect, Effect::Set { name, local: false, .. } if name.contains('.'));
    *sqlstate == INVALID_NAME
        && !server.fresh
        && server.role == ServerRole::Leader
        && env.policy.access == Access::ReadWrite
        && verdict.effects.iter().any(dotted)
}

/// Messages that can't go on in parts, because what they say changes something.
fn must_be_whole(tag: u8) -> bool {
    matches!(tag, b'S' | b'Z' | b'C' | b'I' | b's' | b'G' | b'W' | b'H' | b'A' | b'1' | b'2' | b'3' | b'n')
}

/// Turns an ErrorResponse of severity ERROR into one of severity FATAL: an error in startup settings ends the login.
pub(super) fn make_fatal(message: &mut Vec<u8>) {
    let mut fatal = Vec::with_capacity(message.len() + 4);
    for field in message[HEADER..].split(|byte| *byte == 0).filter(|field| !field.is_empty()) {
        match field[0] {
            kind @ (b'S' | b'V') => {
                fatal.push(kind);
                fatal.extend_from_slice(b"FATAL");
            }
            _ => fatal.extend_from_slice(field),
        }
        fatal.push(0);
    }
    fatal.push(0);
    message.clear();
    reply::message(message, b'E', &[&fatal]);
}
