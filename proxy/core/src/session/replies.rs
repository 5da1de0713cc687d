//! What the server owes, and what becomes of each of its messages: forwarded, swallowed, or kept back.

use std::sync::Arc;

use super::batch::Statement;
use super::server::StatementId;
use super::{Access, Env, Phase, ServerState, Session, Want, Work};
use crate::route::ServerRole;
use crate::sql::Verdict;
use crate::wire::frame::{self, HEADER};
use crate::wire::reply::{self, TxStatus};
use crate::wire::view;

/// An expected reply, in the order in which the server will give them.
#[derive(Debug)]
pub(super) enum Owed {
    /// Of our settings replay: swallowed up to ReadyForQuery.
    Bring,
    /// Of a held BEGIN: swallowed up to ReadyForQuery.
    Begin,
    /// Of another query of ours.
    Prelude,
    Query(Arc<Verdict>),
    FunctionCall,
    /// ParseComplete. `name`: what the client prepared; `id`: what the server has from now on.
    Parse { swallow: bool, name: Option<(Box<[u8]>, Arc<Statement>)>, id: Option<StatementId> },
    Bind,
    /// (ParameterDescription and) RowDescription or NoData.
    Describe,
    /// CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute(Option<Arc<Verdict>>),
    /// CloseComplete. `evicted`: what the server no longer has then.
    Close { swallow: bool, evicted: Option<StatementId> },
    /// ReadyForQuery.
    Sync(Sync),
}

/// Whose Sync it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    Clients,
    /// Ours, in the place of a Flush: the client will send its own.
    ForFlush,
    /// Ours, behind something of our own.
    Ours,
}

impl Owed {
    pub(super) fn ends_segment(&self) -> bool {
        matches!(self, Owed::Bring | Owed::Begin | Owed::Prelude | Owed::Query(_) | Owed::FunctionCall | Owed::Sync(_))
    }

    /// Whether the client waits for it.
    pub(super) fn is_clients(&self) -> bool {
        !matches!(
            self,
            Owed::Bring
                | Owed::Begin
                | Owed::Prelude
                | Owed::Parse { swallow: true, .. }
                | Owed::Close { swallow: true, .. }
                | Owed::Sync(Sync::ForFlush | Sync::Ours)
        )
    }
}

/// What becomes of a message.
enum Fate {
    Forward,
    Swallow,
}

/// Bytes of an answer that are kept back at most, so that a batch can run again: beyond, it is forwarded.
const KEPT_BACK_MAX: usize = 256 * 1024;

/// Rows up to this size are forwarded only when they are there as a whole, in bytes.
const WHOLE_ROW_MAX: usize = 32 * 1024;

/// SQLSTATE 57014, query_canceled.
const QUERY_CANCELED: &[u8] = b"57014";

impl Session {
    /// Takes what it can of `work.server_in`, for the server that is held.
    pub fn server_bytes(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        let mut input = std::mem::take(&mut work.server_in);
        let mut at = 0;
        // Start of the run of bytes that go on as they came.
        let mut run = 0;
        while at < input.len() {
            if work.server_passing > 0 {
                let part = work.server_passing.min(input.len() - at);
                at += part;
                work.server_passing -= part;
                if work.server_swallowing {
                    run = at;
                }
                continue;
            }
            let header = match frame::header(&input[at..]) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(_) => {
                    // Not PostgreSQL's protocol: nothing of this connection can be trusted any more.
                    server.tainted = true;
                    self.forward(work, &input[run..at]);
                    input.clear();
                    self.server_lost(env, work, server, false);
                    work.server_in = input;
                    return;
                }
            };
            if matches!(header.tag, b'D' | b'd') {
                if input.len() - at < header.total && header.total <= WHOLE_ROW_MAX {
                    // An error can follow a whole row, and never half of one.
                    break;
                }
                let swallow = self.row(env, work);
                if swallow {
                    self.forward(work, &input[run..at]);
                    run = at;
                }
                work.server_swallowing = swallow;
                work.server_passing = header.total;
                continue;
            }
            if input.len() - at < header.total {
                break;
            }
            let end = at + header.total;
            // What the message causes comes behind what came before it.
            self.forward(work, &input[run..at]);
            run = at;
            let fate = self.server_message(env, work, server, header.tag, &input[at + HEADER..end], &input[at..end]);
            at = end;
            if matches!(fate, Fate::Swallow) {
                run = at;
            }
        }
        self.forward(work, &input[run..at]);
        input.drain(..at);
        work.server_in = input;
    }

    /// Rows are about to be shown: the batch can't run elsewhere any more. True where they are to be swallowed.
    fn row(&mut self, env: &Env<'_>, work: &mut Work) -> bool {
        if work.attempt.as_ref().is_some_and(|attempt| attempt.failed.is_some()) || !work.owed.front().is_some_and(Owed::is_clients) {
            return true;
        }
        self.deliver(env, work);
        false
    }

    /// From here on the answer is this server's.
    fn deliver(&mut self, env: &Env<'_>, work: &mut Work) {
        if work.shows {
            self.showed(env);
        }
        if work.attempt.take().is_some() {
            work.to_client.append(&mut work.kept_back);
            work.batch.clear();
        }
    }

    /// The watermark is set before the bytes go on.
    fn showed(&mut self, env: &Env<'_>) {
        if let Phase::Holding { member, .. } = &self.phase {
            self.watermark.saw(member, env.now);
        }
    }

    fn forward(&mut self, work: &mut Work, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if work.attempt.is_some() {
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
    ) -> Fate {
        match tag {
            b'S' => {
                if let Ok((name, value)) = view::parameter(body) {
                    server.params.set(name, value);
                }
                Fate::Swallow
            }
            b'A' => {
                self.showed(env);
                Fate::Forward
            }
            b'N' => match work.owed.front() {
                Some(owed) if !owed.is_clients() => Fate::Swallow,
                _ => {
                    if work.kept_back.len() > KEPT_BACK_MAX {
                        self.deliver(env, work);
                    }
                    Fate::Forward
                }
            },
            b'E' => self.error(env, work, server, body, message),
            b'Z' => self.ready(env, work, server, body),
            _ if work.attempt.as_ref().is_some_and(|attempt| attempt.failed.is_some()) => Fate::Swallow,
            b'1' | b'2' | b'3' | b'n' | b'T' | b't' => self.progress(work, tag),
            b'C' | b'I' | b's' => self.complete(env, work, server, tag, body),
            b'G' | b'W' => {
                self.deliver(env, work);
                work.copy_in = true;
                Fate::Forward
            }
            b'H' => {
                self.deliver(env, work);
                Fate::Forward
            }
            // CopyDone ('c') of COPY TO, FunctionCallResponse ('V') and whatever a later PostgreSQL may add.
            _ => {
                self.showed(env);
                Fate::Forward
            }
        }
    }

    /// A message of the extended protocol that pays a part of what is owed.
    fn progress(&mut self, work: &mut Work, tag: u8) -> Fate {
        let pays = match work.owed.front() {
            Some(Owed::Parse { .. }) => tag == b'1',
            Some(Owed::Bind) => tag == b'2',
            Some(Owed::Close { .. }) => tag == b'3',
            Some(Owed::Describe) => matches!(tag, b'T' | b'n'),
            _ => false,
        };
        let swallow = work.owed.front().is_some_and(|owed| !owed.is_clients());
        if pays {
            work.owed.pop_front();
        }
        if swallow { Fate::Swallow } else { Fate::Forward }
    }

    fn complete(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, tag: u8, body: &[u8]) -> Fate {
        if work.owed.front().is_some_and(|owed| !owed.is_clients()) {
            return Fate::Swallow;
        }
        self.deliver(env, work);
        if tag == b'C' {
            work.rolled_back = view::command_tag(body) == b"ROLLBACK";
        }
        work.copy_in = false;
        if let Some(Owed::Execute(verdict)) = work.owed.front() {
            if tag != b's'
                && let Some(verdict) = verdict.clone()
            {
                self.apply(&verdict, work, server);
            }
            work.owed.pop_front();
        }
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
            work.last_words = Some(sqlstate);
            server.tainted = true;
            return Fate::Swallow;
        }
        work.copy_in = false;
        work.segment_failed = true;
        match work.owed.front() {
            Some(Owed::Bring | Owed::Begin) => {
                work.prelude_failed = Some(message.to_vec());
                return Fate::Swallow;
            }
            Some(Owed::Prelude) => return Fate::Swallow,
            _ => {}
        }
        if let Some(attempt) = &mut work.attempt
            && (attempt.failed.is_some() || runs_again(env.policy.access, &self.phase, &sqlstate))
        {
            if attempt.failed.replace(sqlstate).is_none() {
                work.tally.reruns.push(sqlstate);
            }
            self.drop_to_sync(work, server, true);
            return Fate::Swallow;
        }
        work.tally.errors += 1;
        self.drop_to_sync(work, server, false);
        self.deliver(env, work);
        Fate::Forward
    }

    /// The server skips to Sync after an error: what it would have answered up to there isn't owed any more.
    fn drop_to_sync(&mut self, work: &mut Work, server: &mut ServerState, runs_again: bool) {
        while work.owed.front().is_some_and(|owed| !owed.ends_segment()) {
            match work.owed.pop_front() {
                Some(Owed::Parse { name, id, .. }) => {
                    if let Some(id) = id {
                        server.prepared().remove(id);
                    } else {
                        server.unnamed = None;
                    }
                    if let Some((name, statement)) = name
                        && !runs_again
                        && self.statement(&name).is_some_and(|known| Arc::ptr_eq(&known, &statement))
                    {
                        self.forget_statement(&name);
                    }
                }
                Some(Owed::Close { evicted: Some(evicted), .. }) => {
                    server.prepared().add(evicted);
                }
                _ => {}
            }
        }
    }

    fn ready(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, body: &[u8]) -> Fate {
        let status = body.first().copied().and_then(TxStatus::from_byte).unwrap_or_default();
        server.tx = status;
        if work.segment_failed {
            // Sent after the error, or before it was known: the server has skipped it.
            self.drop_to_sync(work, server, false);
        }
        let owed = work.owed.pop_front();
        server.ready = work.owed.is_empty();
        match owed {
            Some(Owed::Bring) => self.brought(env, work, server),
            Some(Owed::Query(verdict)) => {
                if !work.segment_failed && !work.attempt.as_ref().is_some_and(|attempt| attempt.failed.is_some()) {
                    self.apply(&verdict, work, server);
                } else {
                    self.apply_failed(&verdict);
                }
                return self.segment_done(env, work, server, status);
            }
            Some(Owed::FunctionCall | Owed::Sync(Sync::Clients)) => return self.segment_done(env, work, server, status),
            Some(Owed::Sync(Sync::ForFlush)) => {
                // The client's own Sync is still to come: after an error everything up to there is dropped.
                self.skipping = work.segment_failed && work.attempt.as_ref().is_none_or(|attempt| attempt.failed.is_none());
                self.segment_done(env, work, server, status);
            }
            Some(Owed::Sync(Sync::Ours)) => {
                work.segment_failed = false;
                self.return_if_done(env, work);
            }
            // It was ours that failed, as it should.
            Some(Owed::Prelude) => work.segment_failed = false,
            _ => {}
        }
        Fate::Swallow
    }

    /// The answer to a settings replay is complete.
    fn brought(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        let waited = std::mem::take(&mut work.after_bring);
        if let Some(mut error) = work.prelude_failed.take() {
            server.tainted = true;
            if self.starting.is_some() {
                make_fatal(&mut error);
            }
            work.to_client.append(&mut error);
            self.want = Some(Want::Close);
            return;
        }
        work.segment_failed = false;
        server.settings = self.settings.clone();
        self.settings_proven = true;
        if self.starting.is_some() {
            self.start(env, work, server);
        } else if waited {
            self.send_batch(env, work, server);
        }
    }

    /// The startup settings are in place: tells the client what the server reports, its key, and that it may begin.
    pub(super) fn start(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) {
        let Some(key) = self.starting.take() else { return };
        self.settings_proven = true;
        server.settings = self.settings.clone();
        self.tell_parameters(env, work, server);
        reply::message(&mut work.to_client, b'K', &[&key.pid.to_be_bytes(), &key.secret]);
        reply::ready_for_query(&mut work.to_client, TxStatus::Idle);
        self.want = Some(Want::Return);
    }

    /// Reports every parameter whose value differs from what the client was last told.
    pub(super) fn tell_parameters(&mut self, env: &Env<'_>, work: &mut Work, server: &ServerState) {
        if self.told.same(&server.params) {
            return;
        }
        let mut changed = false;
        for (name, value) in server.params.iter() {
            let value: &[u8] = match name {
                // Drivers choose hosts by it: it tells of the port, not of the server behind it.
                b"in_hot_standby" => match env.policy.access {
                    Access::ReadWrite => b"off",
                    Access::ReadOnly => b"on",
                },
                // The connection's own protection: what the session was told stays.
                b"default_transaction_read_only" if server.role == ServerRole::Replica => {
                    match self.told.value("default_transaction_read_only") {
                        Some(_) => continue,
                        None => b"off",
                    }
                }
                _ => value,
            };
            let text = std::str::from_utf8(name).unwrap_or_default();
            if self.told.value(text) != Some(value) {
                reply::parameter_status(&mut work.to_client, name, value);
                self.told.set(name, value);
                changed = true;
            }
        }
        if changed {
            self.standard_conforming_strings = self.told.value("standard_conforming_strings") != Some(b"off");
            self.ascii_safe = !matches!(
                self.told.value("client_encoding"),
                Some(b"SJIS" | b"BIG5" | b"GBK" | b"UHC" | b"GB18030" | b"JOHAB" | b"SHIFT_JIS_2004")
            );
        }
        self.told.share(&server.params);
    }

    /// The client's ReadyForQuery.
    fn segment_done(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState, status: TxStatus) -> Fate {
        if let Some(mut error) = work.prelude_failed.take() {
            // A held BEGIN that failed: rare (a parameter of the server's own), and said in the server's words.
            work.attempt = None;
            work.kept_back.clear();
            work.to_client.append(&mut error);
        }
        if work.attempt.as_ref().is_some_and(|attempt| attempt.failed.is_some()) {
            if work.owed.is_empty() {
                self.run_again(env, work, server);
            }
            return Fate::Swallow;
        }
        self.deliver(env, work);
        self.settle(work, server);
        work.segment_failed = false;
        work.copy_in = false;
        self.status = status;
        if status == TxStatus::Idle {
            self.portals.clear();
            self.movable = None;
            self.lost = None;
        }
        self.tell_parameters(env, work, server);
        self.return_if_done(env, work);
        Fate::Forward
    }

    /// Gives the server connection back where nothing is owed and nothing keeps it.
    fn return_if_done(&mut self, env: &Env<'_>, work: &mut Work) {
        if !work.owed.is_empty() {
            return;
        }
        work.excluded.clear();
        work.rerun_on_leader = false;
        work.writing = false;
        if self.status == TxStatus::Idle && !self.pinned(env) && work.batch.is_empty() {
            self.want = Some(Want::Return);
        }
    }

    /// What the server said shows that it couldn't answer: another one will.
    fn run_again(&mut self, env: &Env<'_>, work: &mut Work, server: &ServerState) {
        let attempt = work.attempt.take().unwrap_or_default();
        work.kept_back.clear();
        work.segment_failed = false;
        self.undo = None;
        work.excluded.push(server.node.clone());
        work.rerun_on_leader = env.policy.access == Access::ReadWrite;
        self.put_begin_back(attempt.begin);
        self.want = Some(Want::Return);
    }
}

/// Whether an error from the server that is held is answered by running the batch again: on the read/write port any of a replica's but a
/// cancel, on the read-only port a conflict with recovery (a lone read has no other way to get one of its codes).
fn runs_again(access: Access, phase: &Phase, sqlstate: &[u8; 5]) -> bool {
    let Phase::Holding { role: ServerRole::Replica, .. } = phase else { return false };
    match access {
        Access::ReadWrite => sqlstate != QUERY_CANCELED,
        Access::ReadOnly => matches!(sqlstate, b"40001" | b"40P01"),
    }
}

/// Turns an ErrorResponse of severity ERROR into one of severity FATAL: an error in startup settings ends the login.
fn make_fatal(message: &mut Vec<u8>) {
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
