//! What a statement that has succeeded has changed in the session, one statement after the other, in the order in which their answers come.
//!
//! Invariant: nothing is noted of a statement before its own answer. What a failure undoes is the journal's business.

use std::borrow::Cow;
use std::sync::Arc;

use super::batch::ends_transaction;
use super::decide::is_of_modes;
use super::dispatch::may_advance_sequences;
use super::settings::{NOT_READ_BY_ANALYSIS, Value, is_sure};
use super::{Segment, ServerState, Session, Work, own};
use crate::route::ServerRole;
use crate::sql::{Class, Effect, Kind, PinReason, SetTo, TransactionModes, Verdict};
use crate::wire::reply::TxStatus;

/// A statement of a string, or a prepared one, that a server has completed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion<'a> {
    /// On all of the string.
    pub(super) verdict: &'a Verdict,
    /// Which one of the string, counted from 0.
    pub(super) statement: usize,
    /// See [`super::dispatch::text_hash`].
    pub(super) text_hash: u64,
    /// Of its CommandComplete; empty where its portal is only suspended.
    pub(super) tag: &'a [u8],
    /// A number of its own.
    pub(super) nonce: u64,
}

impl Session {
    pub(super) fn completed(&mut self, completion: Completion<'_>, work: &mut Work, server: &mut ServerState) {
        let Completion { verdict, statement, tag, .. } = completion;
        let queried = self.movable.as_ref().is_some_and(|begin| begin.queried);
        let is_of_modes = verdict.effects.iter().all(is_of_modes) && !verdict.effects.is_empty() && queried;
        if let Some(begin) = &mut self.movable {
            begin.queried |= verdict.kind == Kind::Select;
        }
        if self.movable.is_some() && (verdict.class != Class::Read || !verdict.has_no_effects()) && !is_of_modes {
            // A cursor, a savepoint, SET LOCAL: the transaction has state on its replica.
            self.movable = None;
        }
        self.sequence_advanced |= may_advance_sequences(verdict);
        for effect in verdict.effects_of(statement) {
            let effect = &*self.as_named_there(effect);
            self.hold_names(effect, verdict, server);
            match effect {
                Effect::Set { name, local, to } => self.note_set(completion, name, *local, to, work, server),
                Effect::Reset { name } if is_role(name) || is_transactions(name) => {}
                Effect::Reset { name } => {
                    if name.contains('.') {
                        self.touched.add(name);
                    }
                    if own::is_own(name) {
                        self.set_own(name, None, false, server);
                    }
                    self.reset_parameter(server, name);
                }
                Effect::ResetAll => {
                    self.reset_all_parameters(server);
                    self.own.reset_all();
                }
                Effect::SetTransaction { modes, session: true } => {
                    server.tainted |= modes.read_only == Some(false) && server.role == ServerRole::Replica;
                    self.set_characteristics(*modes, server);
                }
                Effect::SetUnknown => {
                    self.pins.add(PinReason::SettingOutOfSight);
                    server.unsure = true;
                }
                Effect::Savepoint { name } => self.mark_savepoint(name, server),
                Effect::Release { name } => self.release_savepoint(name, server),
                Effect::RollbackTo { name } => self.roll_back_to_savepoint(name, server),
                // Outside of a transaction it does nothing, and is answered so, too (`PrepareTransactionBlock`).
                Effect::PrepareTransaction if tag == b"ROLLBACK" && server.tx != TxStatus::Failed => {
                    server.unsure |= self.journal.is_open();
                }
                // The tag tells what became of the transaction: COMMIT of a failed one is a ROLLBACK.
                Effect::Commit { .. } | Effect::Rollback { .. } | Effect::PrepareTransaction if tag == b"ROLLBACK" => {
                    work.recovered |= server.tx == TxStatus::Failed;
                    self.roll_back_changes(Some(server));
                }
                Effect::Commit { .. } | Effect::Rollback { .. } | Effect::PrepareTransaction => self.commit_changes(),
                // It may have committed what came before it in the segment, or not.
                Effect::MayCommit => server.unsure |= self.journal.is_open(),
                Effect::DiscardAll => {
                    work.stand_ins.clear();
                    self.discard_all(server);
                    work.discarded = work.segment == Segment::Open;
                }
                Effect::DiscardSequences => self.sequence_advanced = false,
                Effect::Prepare { name, plain } => {
                    self.sql_prepared.insert(name, plain.then_some(verdict.generation));
                    self.pins.add(PinReason::SqlPrepare);
                }
                Effect::Deallocate { name } => {
                    work.stand_ins.retain(|known| **known != *name.as_bytes());
                    self.statements.remove(name.as_bytes());
                    if self.sql_prepared.remove(name) {
                        self.pins.remove(PinReason::SqlPrepare);
                    }
                }
                Effect::DeallocateAll => {
                    work.stand_ins.clear();
                    server.forget_prepared();
                    self.statements.clear();
                    self.sql_prepared.clear();
                    self.pins.remove(PinReason::SqlPrepare);
                }
                // What the protocol has prepared isn't only queries, as SQL's PREPARE takes. Other state is looked for.
                Effect::Execute { name } => {
                    let known = |effect: &Effect| {
                        matches!(
                            effect,
                            Effect::Set { .. }
                                | Effect::Reset { .. }
                                | Effect::ResetAll
                                | Effect::Savepoint { .. }
                                | Effect::Release { .. }
                                | Effect::RollbackTo { .. }
                        )
                    };
                    if let Some(executed) = self.statements.get(name.as_bytes()).map(|statement| statement.verdict.clone())
                        && executed.effects.iter().all(known)
                    {
                        self.completed(Completion { verdict: &executed, statement: 0, ..completion }, work, server);
                    }
                }
                Effect::Pin(reason) => self.pins.add(*reason),
                Effect::AdvisoryUnlockAll => self.pins.remove(PinReason::AdvisoryLock),
                Effect::Begin(_)
                | Effect::SetTransaction { session: false, .. }
                | Effect::SetSnapshot
                | Effect::Fetch { .. }
                | Effect::DiscardPlans
                | Effect::Listen { .. }
                | Effect::Unlisten { .. }
                | Effect::UnlistenAll
                | Effect::HoldCursor { .. }
                | Effect::CloseCursor { .. }
                | Effect::TempTable { .. }
                | Effect::DropTable { .. }
                | Effect::AloneIn { .. }
                | Effect::DiscardTemp
                | Effect::Ddl
                | Effect::CopyIn
                | Effect::UsesClock => {}
            }
        }
    }

    /// Whether a name's bytes are the server's, too.
    pub(super) fn are_names_there(&self, name: &str) -> bool {
        name.is_ascii() || self.told.value("client_encoding") == self.told.value("server_encoding")
    }

    /// An effect whose name's bytes are the server's, too. In another encoding they may be those of another name: it isn't known then.
    fn as_named_there<'a>(&self, effect: &'a Effect) -> Cow<'a, Effect> {
        if self.told.value("client_encoding") == self.told.value("server_encoding") {
            return Cow::Borrowed(effect);
        }
        let mut there = effect.clone();
        match &mut there {
            Effect::Savepoint { name }
            | Effect::Release { name }
            | Effect::RollbackTo { name }
            | Effect::Prepare { name, .. }
            | Effect::Listen { channel: name }
            | Effect::Unlisten { channel: name }
            | Effect::HoldCursor { name }
            | Effect::CloseCursor { name: Some(name) }
            | Effect::TempTable { name, .. }
            | Effect::DropTable { name }
                if !name.is_ascii() =>
            {
                *name = "".into();
            }
            _ => return Cow::Borrowed(effect),
        }
        Cow::Owned(there)
    }

    fn note_set(&mut self, completion: Completion<'_>, name: &Arc<str>, local: bool, to: &SetTo, work: &Work, server: &mut ServerState) {
        let Completion { verdict, text_hash, nonce, .. } = completion;
        if own::is_own(name) {
            let value = if let SetTo::Plain(value) = to { Some(&**value) } else { None };
            self.set_own(name, value, local, server);
        }
        if name.contains('.') {
            self.touched.add(name);
        }
        if &**name == "seed" {
            // No transaction's end takes it back.
            self.pins.add(PinReason::Setseed);
        }
        if local {
            if matches!(to, SetTo::Default) && self.startup.value(name).is_some_and(|value| server.began.value(name) != Some(value)) {
                self.local_defaults.push(name.clone());
            }
            if !name.contains('.') && !NOT_READ_BY_ANALYSIS.contains(&&**name) {
                self.changing(Some(server));
                // What a function was given, or how the server reads an expression, the text doesn't tell.
                let seed = if verdict.kind == Kind::Utility { text_hash } else { nonce };
                self.local_hash = (self.local_hash.rotate_left(5) ^ seed).max(1);
            }
            return;
        }
        // The transaction's own end with it.
        if is_role(name) || is_transactions(name) {
            return;
        }
        // A call may not have been made, or many times. And whether the session could set it elsewhere, only the server knows.
        server.unsure |= verdict.kind != Kind::Utility || !(name.contains('.') || is_sure(name, &[]));
        if matches!(to, SetTo::Default) {
            return self.reset_parameter(server, name);
        }
        if work.fresh {
            // Another server wouldn't take it.
            self.pins.add(PinReason::SettingOutOfSight);
        }
        server.tainted |= protects(server.role, name);
        server.accepts(name);
        let value = match to {
            // To servers the router's own parameters are placeholders, which keep what they are given.
            SetTo::Plain(value) => Value::Known(value.as_bytes().into()),
            SetTo::Default | SetTo::NoRole | SetTo::Current | SetTo::Other => Value::Unread(nonce),
        };
        self.set_parameter(server, name, &value);
    }

    fn set_own(&mut self, name: &str, value: Option<&str>, local: bool, server: &ServerState) {
        self.changing(Some(server));
        self.own.set(name, value, local);
    }

    fn discard_all(&mut self, server: &mut ServerState) {
        server.discarded();
        // It runs outside of transactions only, and is final at once.
        server.tx = TxStatus::Idle;
        // What is behind it in its string or segment may advance some.
        server.sequences = Some(self.id);
        self.settings = self.startup.clone();
        self.share_settings(server);
        self.statements.clear();
        self.sql_prepared.clear();
        self.held.clear();
        // The unnamed statement stays (`DropAllPreparedStatements`).
        self.close_portals();
        self.pins.discard();
        self.sequence_advanced = false;
        self.own.reset_all();
        self.commit_changes();
    }

    /// A statement of a string has failed. What isn't undone with it: session-level locks, seeds, libraries, what user code did.
    pub(super) fn failed(&mut self, verdict: &Verdict, statement: usize, server: &mut ServerState) {
        // The last one of several may have run, and what failed was to commit them: PostgreSQL commits before it answers (`exec_simple_query`).
        let may_have_run = statement > 0 && statement + 1 >= verdict.statements;
        for effect in verdict.effects_of(statement) {
            match effect {
                Effect::Pin(
                    reason @ (PinReason::AdvisoryLock | PinReason::Setseed | PinReason::Load | PinReason::UserCode | PinReason::Sequence),
                ) => self.pins.add(*reason),
                // Its value goes back, and yet the connection knows the name from then on.
                Effect::Set { name, .. } | Effect::Reset { name } => server.unsure |= may_have_run && name.contains('.'),
                _ => {}
            }
        }
    }

    /// The segment is over: outside a transaction, what it changed stays or goes back.
    pub(super) fn end_segment(&mut self, work: &mut Work, server: &mut ServerState) {
        if server.tx != TxStatus::Idle {
            return;
        }
        if work.segment_failed {
            self.roll_back_changes(Some(server));
        } else {
            self.commit_changes();
        }
        self.read_reported(server);
    }

    /// Outside of transactions, what the server reports is what its session has set.
    fn read_reported(&mut self, server: &mut ServerState) {
        let reported: Vec<(Arc<str>, Box<[u8]>)> = self
            .settings
            .unread()
            // A report comes in the client's encoding, a value is kept in the server's.
            .filter_map(|name| Some((name.clone(), server.params.value(name).filter(|value| value.is_ascii())?.into())))
            .collect();
        for (name, value) in reported {
            Arc::make_mut(&mut self.settings).set(&name, Value::Known(value.clone()));
            Arc::make_mut(&mut server.settings).set(&name, Value::Known(value));
            self.share_settings(server);
        }
    }

    /// `SET SESSION CHARACTERISTICS` in terms of the parameters behind it.
    fn set_characteristics(&mut self, modes: TransactionModes, server: &mut ServerState) {
        let mut set = |name: &str, value: &[u8]| self.set_parameter(server, &Arc::from(name), &Value::Known(value.into()));
        let on_off = |on: bool| if on { &b"on"[..] } else { b"off" };
        let isolation = match (modes.serializable, modes.repeatable_read) {
            (Some(true), _) => Some(&b"serializable"[..]),
            (_, Some(true)) => Some(&b"repeatable read"[..]),
            (Some(false), _) => Some(&b"read committed"[..]),
            (None, _) => None,
        };
        if let Some(read_only) = modes.read_only {
            set("default_transaction_read_only", on_off(read_only));
        }
        if let Some(isolation) = isolation {
            set("default_transaction_isolation", isolation);
        }
        if let Some(deferrable) = modes.deferrable {
            set("default_transaction_deferrable", on_off(deferrable));
        }
    }
}

/// Whether a replica connection is kept read-only by this parameter: one on which it was changed is nobody else's.
fn protects(role: ServerRole, name: &str) -> bool {
    role == ServerRole::Replica && name == "default_transaction_read_only"
}

/// What says who the session is: not carried, but pinned to.
pub(super) fn is_role(name: &str) -> bool {
    matches!(name, "role" | "session_authorization")
}

/// The transaction's own, which end with it.
pub(super) fn is_transactions(name: &str) -> bool {
    matches!(name, "transaction_isolation" | "transaction_read_only" | "transaction_deferrable")
}

/// Whether the statement may change the state of its session, so that what comes next depends on where it ran.
pub(super) fn changes_session(effect: &Effect) -> bool {
    match effect {
        Effect::Set { local, .. } => !local,
        Effect::SetTransaction { session, .. } => *session,
        Effect::Reset { .. }
        | Effect::ResetAll
        | Effect::SetUnknown
        | Effect::Prepare { .. }
        | Effect::Execute { .. }
        | Effect::Listen { .. }
        | Effect::HoldCursor { .. }
        | Effect::TempTable { .. }
        | Effect::Pin(_)
        | Effect::MayCommit => true,
        Effect::Begin(_)
        | Effect::Commit { .. }
        | Effect::Rollback { .. }
        | Effect::Savepoint { .. }
        | Effect::RollbackTo { .. }
        | Effect::Release { .. }
        | Effect::PrepareTransaction
        | Effect::SetSnapshot
        | Effect::Fetch { .. }
        | Effect::DiscardAll
        | Effect::DiscardPlans
        | Effect::DiscardTemp
        | Effect::DiscardSequences
        | Effect::Deallocate { .. }
        | Effect::DeallocateAll
        | Effect::UnlistenAll
        | Effect::Unlisten { .. }
        | Effect::CloseCursor { .. }
        | Effect::AloneIn { .. }
        | Effect::DropTable { .. }
        | Effect::Ddl
        | Effect::AdvisoryUnlockAll
        | Effect::CopyIn
        | Effect::UsesClock => false,
    }
}

/// Whether the statement may keep its server connection for later ones: a transaction's, or the session's.
pub(super) fn keeps_server(effect: &Effect) -> bool {
    let carried = match effect {
        Effect::Set { name, .. } | Effect::Reset { name } => !is_role(name),
        effect => matches!(effect, Effect::ResetAll | Effect::SetTransaction { .. }),
    };
    bounds_transaction(effect) || (changes_session(effect) && !carried)
}

pub(super) fn bounds_transaction(effect: &Effect) -> bool {
    ends_transaction(effect) || matches!(effect, Effect::Begin(_))
}
