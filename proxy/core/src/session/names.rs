//! By which names the server that is held knows the session's statements.
//!
//! Ordinarily by names of ours, which derive from their content and are shared between clients. Before something runs that can tell names apart
//! (`pg_prepared_statements`, SQL's PREPARE and EXECUTE, code that runs texts), ours are closed and the session's statements are prepared by the
//! client's own names; from then on names go through as they are. Invariant: a connection has names of one kind, but for what stands in for one
//! behind which it is closed, and is given back with ours only.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::batch::{Batch, End, Item, Statement};
use super::decide::is_plain_transaction_control;
use super::dispatch::fail_transaction;
use super::replies::{Owed, Place, Sync};
use super::server::{OwnNames, server_name};
use super::settings::{self, NOT_READ_BY_ANALYSIS, READ_OF_STRINGS, Settings, is_sure};
use super::{CopyIn, Env, Segment, ServerState, Session, Work};
use crate::route::ServerRole;
use crate::sql::{Effect, PinReason, Verdict};
use crate::wire::reply::{self, TxStatus};
use crate::wire::{frame, view};

/// The savepoint behind which statements are prepared in a client's transaction, and the statement and portal that make it.
const SAVEPOINT: &[u8] = b"switchyard_names";

impl Session {
    /// Whether the client's next message is taken only when all before it is answered: what it means, or what the server must be told ahead of it,
    /// depends on that.
    pub(super) fn comes_behind_answers(&self, env: &Env<'_>, work: &Work, server: Option<&ServerState>, tag: u8, message: &[u8]) -> bool {
        if self.skipping || work.copy_in == CopyIn::Takes || work.segment == Segment::Skipped {
            return false;
        }
        if tag == b'Q' && self.unsynced && !(work.batch.is_empty() && work.owed.is_empty()) {
            // Behind an error in its segment it is skipped; else it destroys the unnamed statement.
            return true;
        }
        let long = work.batch.bytes.len() + message.len() > env.policy.look_ahead_bytes;
        let is_complete = long || matches!(tag, b'Q' | b'S' | b'H');
        let by_ours = server.is_some_and(|server| server.own_names.is_none());
        if !is_complete || !by_ours || is_answered(work) {
            return false;
        }
        let query = || view::query(&message[frame::HEADER..]).is_ok_and(|text| self.runs_by_own_names(&self.verdict(env, text)));
        server.is_some_and(|server| self.needs_own_names(&work.batch, server)) || (tag == b'Q' && query())
    }

    /// Whether what was taken needs the client's own names on the server, which can't get them before all is answered.
    pub(super) fn names_wait(&self, work: &Work, server: Option<&ServerState>) -> bool {
        !is_answered(work) && server.is_some_and(|server| server.own_names.is_none() && self.needs_own_names(&work.batch, server))
    }

    /// What was taken is sent, and the server tells what has become of all: only then more is taken.
    pub(super) fn await_answers(&mut self, env: &Env<'_>, work: &mut Work, server: Option<&mut ServerState>, tag: u8) {
        // A batch that must be answered before more is taken is flushed.
        work.alone = true;
        if tag == b'Q' && self.unsynced && !work.batch.is_empty() && !self.names_wait(work, server.as_deref()) {
            work.batch.end = End::Overflow;
            self.submit(env, work, server);
        } else if work.segment == Segment::Open && !std::mem::replace(&mut work.flushed, true) {
            reply::message(&mut work.to_server, b'H', &[]);
        }
    }

    /// Whether something in the batch tells by which names the server knows the session's statements.
    fn needs_own_names(&self, batch: &Batch, server: &ServerState) -> bool {
        // EXECUTE looks at what it is to run when it is prepared itself.
        // SQL's names and the protocol's are the same ones.
        (self.pins.has(PinReason::SqlPrepare) && !self.statements.is_empty())
            || batch.executed().any(|verdict| self.runs_by_own_names(verdict))
            || batch.verdicts().any(|verdict| self.executes_own(verdict) || batch.executes_closed(verdict))
            || batch.items.iter().any(|(item, _)| self.reads_otherwise(item, server))
    }

    /// Whether it uses a prepared statement that the server hasn't got, and whose text would be read otherwise under the settings of now than under
    /// those of its Parse: what its strings say, and what their values are. (What its names mean follows `search_path`, in PostgreSQL, too.)
    fn reads_otherwise(&self, item: &Item, server: &ServerState) -> bool {
        let (Item::Bind { statement: Some(statement), unnamed: false, .. }
        | Item::DescribeStatement { statement: Some(statement), unnamed: false }) = item
        else {
            return false;
        };
        if Arc::ptr_eq(&statement.settings, &self.settings) || statement.settings.reads_as(&self.settings) {
            return false;
        }
        let text = statement.text();
        (!text.is_ascii() || text.iter().any(|byte| matches!(byte, b'\'' | b'$' | b'\\'))) && !server.has_prepared(statement.id)
    }

    fn runs_by_own_names(&self, verdict: &Verdict) -> bool {
        let prepares = |effect: &Effect| matches!(effect, Effect::Prepare { name, .. } if self.statements.contains_key(name.as_bytes()));
        // Of the last of a string, no answer tells what it has done if its COMMIT fails. No rollback undoes it.
        let changes = |effect: &Effect| matches!(effect, Effect::Prepare { .. } | Effect::Deallocate { .. } | Effect::DeallocateAll);
        let untold = verdict.statements > 1 && verdict.effects_of(verdict.statements - 1).iter().any(changes);
        untold || verdict.unseen.sees_statements || verdict.effects.iter().any(prepares) || self.executes_own(verdict)
    }

    fn executes_own(&self, verdict: &Verdict) -> bool {
        verdict.effects.iter().any(|effect| matches!(effect, Effect::Execute { name } if self.statements.contains_key(name.as_bytes())))
    }

    /// Whether SQL executes by its name what may do more to the session than a look finds: it isn't known, its text tells that it does, or the facts are
    /// others since it was judged. Whatever else it may set was noted of its server when it was prepared there.
    pub(super) fn executes_unknown(&self, verdict: &Verdict, batch: &Batch, server: &ServerState) -> bool {
        let judged_by = |at: usize, name: &Arc<str>| {
            let in_string = verdict.effects[..at].iter().rev().find_map(|effect| match effect {
                Effect::Prepare { name: prepared, plain } if prepared == name => Some(plain.then_some(verdict.generation)),
                _ => None,
            });
            if let Some(judged_by) = in_string.or_else(|| self.sql_prepared.get(name).copied()) {
                return judged_by;
            }
            if let Some(statement) = self.statements.get(name.as_bytes()) {
                return statement.verdict.has_no_effects().then_some(statement.verdict.generation);
            }
            // There is none, unless code has prepared it since the last look.
            let missing = name.is_ascii() && !name.is_empty() && self.sql_prepared.are_all_known() && !server.unsure;
            missing.then_some(verdict.generation)
        };
        let unknown = |(at, effect): (usize, &Effect)| match effect {
            Effect::Execute { name } => !self.are_names_there(name) || judged_by(at, name) != Some(verdict.generation),
            _ => false,
        };
        batch.executes_closed(verdict) || verdict.effects.iter().enumerate().any(unknown)
    }

    /// From here on the server knows the session's statements by the client's own names, and no others, where the batch that is about to be sent needs
    /// that. In a failed transaction nothing can be prepared, and nothing runs that would look, but behind its end within a string or segment.
    pub(super) fn use_own_names(&self, work: &mut Work, server: &mut ServerState) {
        let failed = server.tx == TxStatus::Failed && !work.recovered;
        if server.own_names.is_some()
            || (failed && !(work.segment == Segment::Closed && self.goes_on_behind_end(&work.batch)))
            || work.segment == Segment::Skipped
            || self.lost.is_some()
            || !is_answered(work)
            || !self.needs_own_names(&work.batch, server)
        {
            return;
        }
        server.own_names = Some(OwnNames::default());
        work.alone = true;
        for id in server.prepared().take() {
            reply::close_statement(&mut work.to_server, &server_name(id));
            work.owed.push_back(Owed::OUR_CLOSE);
        }
        for name in work.stand_ins.drain(..) {
            reply::close_statement(&mut work.to_server, &name);
            work.owed.push_back(Owed::OUR_CLOSE);
        }
        let statements = self.named_before(&work.batch);
        let brought = work.owed.iter().any(|owed| matches!(owed, Owed::Bring));
        let there = if brought { self.settings.clone() } else { server.settings.clone() };
        let role = server.role;
        if work.segment != Segment::Closed {
            // A Sync of ours would commit what the client has begun there. One that can't be prepared any more fails its segment.
            for (name, statement) in statements {
                let mut analysed = analysed_under(&there, &statement.settings);
                // What only another server knows can't be set there.
                for setting in analysed.unread().cloned().collect::<Vec<_>>() {
                    match there.value(&setting) {
                        Some(value) => analysed.set(&setting, value.clone()),
                        None => analysed.remove(&setting),
                    }
                }
                set_in_segment(&there, &analysed, role, work);
                prepare(name, &statement, work, server);
                set_in_segment(&analysed, &there, role, work);
            }
            return;
        }
        if statements.is_empty() {
            return sync(work);
        }
        let parted = |statement: &Statement| there.differs(&analysed_under(&there, &statement.settings), role);
        let idle = server.tx == TxStatus::Idle;
        if idle && !statements.iter().any(|(_, statement)| parted(statement)) {
            // Each by itself: one that can't be prepared any more keeps no other away.
            for (name, statement) in statements {
                prepare(name, &statement, work, server);
                sync(work);
            }
            return;
        }
        if idle {
            run(b"BEGIN", work);
        } else if failed {
            // It has nothing any more that could be lost, and fails again.
            run(b"ROLLBACK AND CHAIN", work);
        }
        run(b"SAVEPOINT switchyard_names", work);
        for (name, statement) in statements {
            let parted = parted(&statement);
            if parted {
                // What it names may mean something else now, or nothing: that is told when it is used.
                there.sync_messages_within(&analysed_under(&there, &statement.settings), role, &mut work.to_server);
                work.owed.push_back(Owed::Prelude);
            }
            prepare(name, &statement, work, server);
            sync(work);
            if parted {
                // What has set them is still there, if they were refused.
                settings::close_ours(&mut work.to_server);
                work.owed.push_back(Owed::OUR_CLOSE);
                sync(work);
            }
            // Its failure isn't the transaction's, and the settings are the session's again. What is prepared stays.
            run(b"ROLLBACK TO switchyard_names", work);
        }
        run(if idle { b"ROLLBACK" } else { b"RELEASE switchyard_names" }, work);
        if failed {
            fail_transaction(work, server);
        }
    }

    /// Whether the first thing that it runs is the end of a transaction, and it has more than that: behind the end, or by a name. Portals are gone when
    /// anything else ends their transaction: for those that are there, that isn't done without need. Nor is it for savepoints, to which a client may
    /// go back if something fails before that end, such as a string with a syntax error.
    fn goes_on_behind_end(&self, batch: &Batch) -> bool {
        let ends = |verdict: &Arc<Verdict>| {
            matches!(verdict.effects_of(0), [Effect::Commit { .. } | Effect::Rollback { .. } | Effect::PrepareTransaction])
        };
        let alone = matches!(batch.items.as_slice(), [(Item::Query(verdict), _)] if verdict.statements <= 1);
        let needed = !self.portals_in_doubt || batch.executed().any(|verdict| self.runs_by_own_names(verdict));
        let kept = self.journal.may_have_savepoints() && !ends_surely(batch);
        !alone && needed && !kept && !batch.goes_on_with_portal() && batch.executed().next().is_some_and(ends)
    }

    /// A transaction has failed, and its server has gone back to settings by which it lexes texts otherwise than by the session's. Where nothing is left of
    /// the transaction but that it has failed, it is begun anew under those, and fails again.
    pub(super) fn fail_anew(&mut self, work: &mut Work, server: &mut ServerState) {
        let portals = self.portals_in_doubt || !self.portals.is_empty();
        if !work.owed.is_empty() || work.segment != Segment::Closed || portals || !self.journal.lexes_otherwise(server.role) {
            return;
        }
        self.roll_back_changes(Some(server));
        run(b"ROLLBACK AND CHAIN", work);
        server.settings.sync_messages_within(&self.settings, server.role, &mut work.to_server);
        work.owed.push_back(Owed::Prelude);
        server.settings = self.settings.clone();
        run(b"COMMIT AND CHAIN", work);
        fail_transaction(work, server);
        server.ready = false;
    }

    /// What the client has prepared by name before a batch that is still to be sent; what executes others by name comes behind those.
    fn named_before(&self, batch: &Batch) -> Vec<(Box<[u8]>, Arc<Statement>)> {
        let mut there: FxHashMap<&[u8], &Arc<Statement>> = self.statements.iter().map(|(name, statement)| (&**name, statement)).collect();
        for (item, _) in batch.items.iter().rev() {
            match item {
                Item::Parse { name, duplicate: false, .. } => drop(there.remove(&**name)),
                Item::CloseStatement { name, closed: Some(closed) } => drop(there.insert(name, closed)),
                _ => {}
            }
        }
        there.remove(&b""[..]);
        let mut there: Vec<_> = there.into_iter().map(|(name, statement)| (Box::from(name), statement.clone())).collect();
        there.sort_by_key(|(_, statement): &(_, Arc<Statement>)| statement.verdict.executes());
        there
    }

    /// The connection is about to be given back: the client's names are closed there. True if that is still to be answered.
    pub(super) fn leave_own_names(&self, work: &mut Work, server: &mut ServerState) -> bool {
        if server.own_names.take().is_none() {
            return false;
        }
        // What was taken of the client's next messages hasn't come to that server.
        let there = self.named_before(&work.batch);
        if there.is_empty() {
            return false;
        }
        // What comes next may be prepared by the same names.
        close(there.into_iter().map(|(name, _)| name), work, server);
        true
    }

    /// Whether the server that is held has a statement by the client's own name.
    pub(super) fn server_knows(&self, name: &[u8], server: &ServerState) -> bool {
        server.own_names.as_ref().is_some_and(|own| !own.missing.contains_key(name)) || self.sql_prepared.contains(name)
    }

    /// The server doesn't know the statement that EXECUTE names, as it couldn't be prepared any more: the reason, which PostgreSQL gives then.
    pub(super) fn why_missing<'a>(work: &Work, server: &'a ServerState) -> Option<&'a [u8]> {
        let missing = &server.own_names.as_ref()?.missing;
        let effects = match work.owed.front()? {
            Owed::Query(verdict, _) => verdict.effects_of(work.completed),
            Owed::Execute(Some(statement)) => &statement.verdict.effects,
            _ => return None,
        };
        let executed = effects.iter().find_map(|effect| match effect {
            Effect::Execute { name } => missing.get(name.as_bytes()),
            _ => None,
        })?;
        Some(executed)
    }

    /// Closes the stand-ins behind a segment. True if that is still to be answered.
    pub(super) fn close_stand_ins(work: &mut Work, server: &mut ServerState) -> bool {
        if work.stand_ins.is_empty() {
            return false;
        }
        // Our Sync may end a skipping that is the client's to end.
        close(std::mem::take(&mut work.stand_ins), work, server);
        true
    }

    /// DEALLOCATE of a statement that the server knows by another name: an empty one takes its place for DEALLOCATE to find.
    pub(super) fn stand_in(&self, verdict: &Verdict, work: &mut Work, server: &ServerState) -> bool {
        let mut any = false;
        for effect in &verdict.effects {
            if let Effect::Deallocate { name } = effect
                && self.statements.contains_key(name.as_bytes())
                && !self.server_knows(name.as_bytes(), server)
            {
                stand_in_for(name.as_bytes(), work, server);
                any = true;
            }
        }
        any
    }
}

/// The settings that a server has, but for those under which a statement was analysed, as far as anybody may set them. (A custom one would leave its
/// name behind.)
fn analysed_under(there: &Settings, statements: &Settings) -> Settings {
    let read = |name: &str| !NOT_READ_BY_ANALYSIS.contains(&name) && (is_sure(name, &[]) || READ_OF_STRINGS.contains(&name));
    let mut wanted = there.clone();
    for (name, _) in there.iter().filter(|(name, _)| read(name) && statements.value(name).is_none()) {
        wanted.remove(name);
    }
    for (name, value) in statements.iter().filter(|(name, _)| read(name)) {
        wanted.set(name, value.clone());
    }
    wanted
}

/// Whether the batch begins with a COMMIT or ROLLBACK that is prepared and run by itself, so that nothing fails before it.
fn ends_surely(batch: &Batch) -> bool {
    let mut items = batch.items.iter().map(|(item, _)| item).skip_while(|item| match item {
        Item::Parse { statement, duplicate: false, .. } => is_plain_transaction_control(statement.text()),
        Item::Bind { statement: Some(_), .. } | Item::DescribeStatement { statement: Some(_), .. } | Item::DescribePortal(Some(_)) => true,
        _ => false,
    });
    matches!(items.next(), Some(Item::Execute(Some(statement))) if is_plain_transaction_control(statement.text()))
}

/// Brings the server from some settings to others in the client's segment, up to the end of its transaction.
fn set_in_segment(there: &Settings, wanted: &Settings, role: ServerRole, work: &mut Work) {
    own_executes(there.local_changes(wanted, role, &mut work.to_server), work);
}

/// Settings of ours were sent in the client's segment, by so many Executes.
pub(super) fn own_executes(executed: usize, work: &mut Work) {
    if executed > 0 {
        work.owed.extend(std::iter::repeat_with(|| Owed::Own).take(executed));
        // Of the portal and the statement.
        work.owed.extend([Owed::OUR_CLOSE, Owed::OUR_CLOSE]);
    }
}

/// Whether all is answered that the client has asked for.
pub(super) fn is_answered(work: &Work) -> bool {
    !work.owed.iter().any(Owed::is_clients)
}

/// Closes statements by these names, with a Sync of ours: nothing more is taken before that is answered.
fn close(names: impl IntoIterator<Item = Box<[u8]>>, work: &mut Work, server: &mut ServerState) {
    for name in names {
        reply::close_statement(&mut work.to_server, &name);
        work.owed.push_back(Owed::OUR_CLOSE);
    }
    sync(work);
    server.ready = false;
    work.alone = true;
}

fn sync(work: &mut Work) {
    reply::sync(&mut work.to_server);
    work.owed.push_back(Owed::Sync(Sync::Ours));
}

pub(super) fn prepare(name: Box<[u8]>, statement: &Statement, work: &mut Work, server: &mut ServerState) {
    server.may_keep(statement.verdict.unseen);
    reply::parse(&mut work.to_server, &name, &statement.tail);
    work.owed.push_back(Owed::Parse { swallow: true, prepares: None, place: Place::Named(name) });
}

/// Runs a statement of ours, by messages that touch neither the client's unnamed statement nor its unnamed portal.
fn run(text: &[u8], work: &mut Work) {
    reply::parse(&mut work.to_server, SAVEPOINT, &[text, b"\0\0\0"].concat());
    reply::message(&mut work.to_server, b'B', &[SAVEPOINT, b"\0", SAVEPOINT, b"\0\0\0\0\0\0\0"]);
    reply::message(&mut work.to_server, b'E', &[SAVEPOINT, b"\0\0\0\0\0"]);
    reply::message(&mut work.to_server, b'C', &[b"P", SAVEPOINT, b"\0"]);
    reply::close_statement(&mut work.to_server, SAVEPOINT);
    reply::sync(&mut work.to_server);
    work.owed.push_back(Owed::Prelude);
}

pub(super) fn stand_in_for(name: &[u8], work: &mut Work, server: &ServerState) {
    if work.stand_ins.iter().any(|known| **known == *name) {
        return;
    }
    if server.tainted {
        // An earlier one may be there still, as its Close was skipped.
        reply::close_statement(&mut work.to_server, name);
        work.owed.push_back(Owed::OUR_CLOSE);
    }
    reply::parse(&mut work.to_server, name, b"\0\0\0");
    work.owed.push_back(Owed::Parse { swallow: true, prepares: None, place: Place::Named(name.into()) });
    work.stand_ins.push(name.into());
}
