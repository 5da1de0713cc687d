//! What statements that succeeded have changed in the session.

use std::sync::Arc;

use super::batch::ends_transaction;
use super::settings::{How, Settings};
use super::{ServerState, Session, Work, own};
use crate::route::ServerRole;
use crate::sql::{Class, Effect, Kind, PinReason, TransactionModes, Verdict};
use crate::wire::reply::TxStatus;

/// A change of settings, in the order in which they were made.
#[derive(Debug)]
pub(super) enum Change {
    /// The statement's text, where it can be replayed alone.
    Set {
        name: Arc<str>,
        text: Option<Box<[u8]>>,
    },
    Reset(Arc<str>),
    ResetAll,
    Characteristics(TransactionModes),
}

/// A statement that sets something is carried to other servers as it is, up to this size in bytes.
const REPLAYED_MAX: usize = 8 * 1024;

impl Session {
    /// A statement, or a query string of several, has succeeded on `server`. `text`: where it sets something.
    pub(super) fn apply(&mut self, verdict: &Verdict, text: Option<&[u8]>, work: &mut Work, server: &mut ServerState) {
        if self.movable.is_some() && (verdict.class != Class::Read || verdict.effects.iter().any(|effect| *effect != Effect::UsesClock)) {
            // A cursor, a savepoint, SET LOCAL: the transaction has state on its replica.
            self.movable = None;
        }
        self.sequence_advanced |= matches!(verdict.kind, Kind::Insert | Kind::Merge | Kind::Copy) && verdict.class == Class::Write;
        if verdict.statements > 1 && verdict.effects.iter().any(changes_settings) && verdict.effects.iter().any(bounds_transaction) {
            // Which of them stayed depends on where each transaction began and how it ended.
            self.pins.add(PinReason::SettingOutOfSight);
        }
        if let Some(text) = text
            && own::concerns(verdict)
        {
            self.own.note(text, self.dialect());
        }
        for effect in &verdict.effects {
            self.hold_names(effect, verdict);
            match effect {
                Effect::Set { name, .. } | Effect::Reset { name } if own::is_own(name) => {}
                Effect::Set { local: true, .. } => {
                    let text = text.unwrap_or_default();
                    self.local_hash = xxhash_rust::xxh3::xxh3_64_with_seed(text, self.local_hash).max(1);
                }
                Effect::SetTransaction { session: false, .. } | Effect::SetSnapshot => {}
                Effect::Set { name, to_default: false, .. } if matches!(&**name, "role" | "session_authorization") => {
                    self.pins.add(PinReason::SetRole);
                }
                Effect::Set { name, .. } if matches!(&**name, "role" | "session_authorization") => {}
                Effect::Reset { name } if matches!(&**name, "role" | "session_authorization") => {}
                // The transaction's own, which end with it.
                Effect::Set { name, .. } | Effect::Reset { name } if name.starts_with("transaction_") => {}
                Effect::Set { name, to_default: true, .. } | Effect::Reset { name } => work.changes.push(Change::Reset(name.clone())),
                Effect::Set { name, .. } => {
                    if work.fresh {
                        // Another server wouldn't take it.
                        self.pins.add(PinReason::SettingOutOfSight);
                    }
                    // A text that does more than this one SET can't be replayed: others, or a SELECT with `set_config` in it.
                    let alone = verdict.statements == 1 && verdict.kind == Kind::Utility;
                    let text = text.filter(|text| alone && text.is_ascii() && text.len() <= REPLAYED_MAX);
                    work.changes.push(Change::Set { name: name.clone(), text: text.map(Box::from) });
                }
                Effect::SetTransaction { modes, session: true } => work.changes.push(Change::Characteristics(*modes)),
                Effect::ResetAll => work.changes.push(Change::ResetAll),
                Effect::SetUnknown => self.pins.add(PinReason::SettingOutOfSight),
                Effect::RollbackTo if self.undo.is_some() || !work.changes.is_empty() => self.pins.add(PinReason::SettingOutOfSight),
                Effect::Commit { chain } | Effect::Rollback { chain } if verdict.statements == 1 => {
                    self.transaction_over(*chain, work, server);
                }
                Effect::DiscardAll => {
                    server.discarded();
                    work.changes.clear();
                    work.changes.push(Change::ResetAll);
                    self.statements.clear();
                    self.sql_prepared.clear();
                    self.held.clear();
                    self.unnamed = None;
                    self.portals.clear();
                    self.pins.discard();
                    self.sequence_advanced = false;
                    self.own.discard();
                }
                Effect::DiscardSequences => self.sequence_advanced = false,
                Effect::Prepare { name } => {
                    self.sql_prepared.add(name);
                    self.pins.add(PinReason::SqlPrepare);
                }
                Effect::Execute { .. } => {}
                Effect::Deallocate { name } => {
                    self.statements.remove(name.as_bytes());
                    if self.statements.is_empty() {
                        self.pins.remove(PinReason::PreparedNames);
                    }
                    if self.sql_prepared.remove(name) {
                        self.pins.remove(PinReason::SqlPrepare);
                    }
                }
                Effect::DeallocateAll => {
                    server.forget_prepared();
                    self.statements.clear();
                    self.sql_prepared.clear();
                    self.pins.remove(PinReason::SqlPrepare);
                    self.pins.remove(PinReason::PreparedNames);
                }
                Effect::Pin(reason) => self.pins.add(*reason),
                Effect::AdvisoryUnlockAll => self.pins.remove(PinReason::AdvisoryLock),
                Effect::Begin(_)
                | Effect::Commit { .. }
                | Effect::Rollback { .. }
                | Effect::Savepoint
                | Effect::RollbackTo
                | Effect::Release
                | Effect::PrepareTransaction
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
                | Effect::MayCommit
                | Effect::CopyIn
                | Effect::UsesClock => {}
            }
        }
    }

    /// A statement has failed. What isn't undone with it: session-level locks, seeds, libraries, what user code did.
    pub(super) fn apply_failed(&mut self, verdict: &Verdict) {
        for effect in &verdict.effects {
            if let Effect::Pin(reason) = effect
                && matches!(
                    reason,
                    PinReason::AdvisoryLock | PinReason::Setseed | PinReason::Load | PinReason::UserCode | PinReason::Sequence
                )
            {
                self.pins.add(*reason);
            }
            if let Effect::Prepare { name } = effect
                && verdict.statements > 1
            {
                // It may have been the one before the statement that failed: no rollback undoes it.
                self.sql_prepared.add(name);
                self.pins.add(PinReason::SqlPrepare);
            }
            // Some statements of the string may have been committed by one of its own COMMITs.
            if verdict.statements > 1 && changes_settings(effect) && verdict.effects.iter().any(bounds_transaction) {
                self.pins.add(PinReason::SettingOutOfSight);
            }
        }
    }

    /// COMMIT or ROLLBACK, perhaps with more behind it in the segment: what comes next begins with what this transaction leaves.
    fn transaction_over(&mut self, chain: bool, work: &mut Work, server: &mut ServerState) {
        self.local_hash = 0;
        self.own.transaction_over(!work.rolled_back);
        self.release_names(!work.rolled_back);
        if !std::mem::take(&mut work.rolled_back) {
            if chain {
                self.make_changes(work, server);
            }
            self.undo = None;
        } else {
            work.changes.clear();
            if let Some(undo) = self.undo.take() {
                self.settings = undo.clone();
                server.settings = undo;
            }
        }
    }

    /// The segment is over: settings stay or go back with it, or with its transaction. True where the server may have gone back to values
    /// of its own where the session has others.
    pub(super) fn settle(&mut self, work: &mut Work, server: &mut ServerState) -> bool {
        let mut went_back = false;
        if !work.changes.is_empty() {
            if work.segment_failed {
                work.changes.clear();
                if server.tx == TxStatus::Failed {
                    // A savepoint among what failed may bring them back.
                    self.undo.get_or_insert_with(|| self.settings.clone());
                }
            } else {
                went_back = self.make_changes(work, server);
            }
        }
        if server.tx != TxStatus::Idle {
            return went_back;
        }
        self.local_hash = 0;
        let undone = work.segment_failed || std::mem::take(&mut work.rolled_back);
        self.own.transaction_over(!undone);
        self.release_names(!undone);
        if let Some(undo) = self.undo.take()
            && undone
        {
            self.settings = undo.clone();
            server.settings = undo;
        }
        went_back
    }

    /// Takes the changes of settings over, now that the server has reported what it reports. True where something was reset.
    fn make_changes(&mut self, work: &mut Work, server: &mut ServerState) -> bool {
        if work.changes.is_empty() {
            return false;
        }
        self.undo.get_or_insert_with(|| self.settings.clone());
        let mut wanted = Settings::clone(&self.settings);
        let mut there = Settings::clone(&server.settings);
        let mut went_back = false;
        for change in work.changes.drain(..) {
            match change {
                Change::Set { name, text } => {
                    server.tainted |= protects(server.role, &name);
                    let how = match (server.params.value(&name), text) {
                        (Some(value), _) => How::Value(value.into()),
                        (None, Some(text)) => How::Statement(text),
                        (None, None) => {
                            self.pins.add(PinReason::SettingOutOfSight);
                            continue;
                        }
                    };
                    server.accepts(&name);
                    wanted.set(&name, how.clone());
                    there.set(&name, how);
                }
                Change::Reset(name) => {
                    there.remove(&name);
                    match self.startup.value(&name) {
                        Some(startup) => {
                            wanted.set(&name, startup.clone());
                            went_back = true;
                        }
                        None => wanted.remove(&name),
                    }
                }
                Change::ResetAll => {
                    wanted = Settings::clone(&self.startup);
                    there = Settings::default();
                    went_back |= !self.startup.is_empty();
                }
                Change::Characteristics(modes) => {
                    server.tainted |= modes.read_only == Some(false) && server.role == ServerRole::Replica;
                    set_characteristics(&mut wanted, modes);
                    set_characteristics(&mut there, modes);
                }
            }
        }
        self.settings = Arc::new(wanted);
        server.settings = if there.differs(&self.settings, server.role) { Arc::new(there) } else { self.settings.clone() };
        went_back
    }
}

/// `SET SESSION CHARACTERISTICS` in terms of the parameters behind it.
fn set_characteristics(settings: &mut Settings, modes: TransactionModes) {
    let on_off = |on: bool| How::Value(if on { (*b"on").into() } else { (*b"off").into() });
    let isolation = match (modes.serializable, modes.repeatable_read) {
        (Some(true), _) => Some(&b"serializable"[..]),
        (_, Some(true)) => Some(&b"repeatable read"[..]),
        (Some(false), _) => Some(&b"read committed"[..]),
        (None, _) => None,
    };
    if let Some(read_only) = modes.read_only {
        settings.set(&Arc::from("default_transaction_read_only"), on_off(read_only));
    }
    if let Some(isolation) = isolation {
        settings.set(&Arc::from("default_transaction_isolation"), How::Value(isolation.into()));
    }
    if let Some(deferrable) = modes.deferrable {
        settings.set(&Arc::from("default_transaction_deferrable"), on_off(deferrable));
    }
}

/// Whether a replica connection is kept read-only by this parameter: one on which it was changed is nobody else's.
fn protects(role: ServerRole, name: &str) -> bool {
    role == ServerRole::Replica && name == "default_transaction_read_only"
}

fn changes_settings(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Set { local: false, .. } | Effect::Reset { .. } | Effect::ResetAll | Effect::SetTransaction { session: true, .. }
    )
}

fn bounds_transaction(effect: &Effect) -> bool {
    ends_transaction(effect) || matches!(effect, Effect::Begin(_))
}
