//! What statements that succeeded have changed in the session.

use std::sync::Arc;

use super::settings::{How, Settings};
use super::{ServerState, Session, Work};
use crate::sql::{Class, Effect, Kind, PinReason, TransactionModes, Verdict};
use crate::wire::reply::TxStatus;

impl Session {
    /// A statement, or a query string of several, has succeeded on `server`.
    pub(super) fn apply(&mut self, verdict: &Verdict, work: &Work, server: &mut ServerState) {
        if self.movable.is_some() && (verdict.class != Class::Read || verdict.effects.iter().any(|effect| *effect != Effect::UsesClock)) {
            // A cursor, a savepoint, SET LOCAL: the transaction has state on its replica.
            self.movable = None;
        }
        self.sequence_advanced |= matches!(verdict.kind, Kind::Insert | Kind::Merge | Kind::Copy) && verdict.class == Class::Write;
        let several = verdict.statements > 1;
        for effect in &verdict.effects {
            match effect {
                Effect::Set { local: true, .. } | Effect::SetTransaction { session: false, .. } | Effect::SetSnapshot => {}
                Effect::Set { name, .. } if matches!(&**name, "role" | "session_authorization") => self.pins.add(PinReason::SetRole),
                Effect::Reset { name } if matches!(&**name, "role" | "session_authorization") => {}
                // The transaction's own, which end with it.
                Effect::Set { name, .. } | Effect::Reset { name } if name.starts_with("transaction_") => {}
                Effect::Set { name, to_default: true, .. } | Effect::Reset { name } => self.reset(name, server),
                Effect::Set { name, .. } => match server.params.value(name).map(Box::from) {
                    Some(value) => self.change(server, |settings| settings.set(name, How::Value(value))),
                    // A text with more than this one statement in it can't be replayed.
                    None if several || !self.replayable(work) => self.pins.add(PinReason::SettingOutOfSight),
                    None => match work_text(work) {
                        Some(text) => self.change(server, |settings| settings.set(name, How::Statement(text.into()))),
                        None => self.pins.add(PinReason::SettingOutOfSight),
                    },
                },
                Effect::SetTransaction { modes, session: true } => self.set_characteristics(*modes, server),
                Effect::ResetAll => self.reset_all(server),
                Effect::SetUnknown => self.pins.add(PinReason::SettingOutOfSight),
                Effect::RollbackTo if self.undo.is_some() => self.pins.add(PinReason::SettingOutOfSight),
                Effect::DiscardAll => {
                    server.discarded();
                    self.settings = self.startup.clone();
                    self.undo = None;
                    self.statements.clear();
                    self.unnamed = None;
                    self.portals.clear();
                    self.pins.discard();
                    self.sequence_advanced = false;
                }
                Effect::DiscardTemp => self.pins.remove(PinReason::TempTable),
                Effect::DiscardSequences => self.sequence_advanced = false,
                Effect::Prepare { .. } => self.pins.add(PinReason::SqlPrepare),
                Effect::Execute { .. } => {}
                Effect::Deallocate { name } => {
                    self.statements.remove(name.as_bytes());
                }
                Effect::DeallocateAll => {
                    server.forget_prepared();
                    self.statements.clear();
                    self.pins.remove(PinReason::SqlPrepare);
                }
                Effect::Listen => self.pins.add(PinReason::Listen),
                Effect::UnlistenAll => self.pins.remove(PinReason::Listen),
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
                | Effect::Unlisten
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
                && matches!(reason, PinReason::AdvisoryLock | PinReason::Setseed | PinReason::Load | PinReason::UserCode | PinReason::Sequence)
            {
                self.pins.add(*reason);
            }
            // Some statements of the string may have been committed by one of its own COMMITs.
            if verdict.statements > 1 && matches!(effect, Effect::Set { local: false, .. } | Effect::Reset { .. } | Effect::Prepare { .. }) {
                self.pins.add(PinReason::SettingOutOfSight);
            }
        }
    }

    /// The transaction is over, or the segment outside one: settings stay or go back with it.
    pub(super) fn settle(&mut self, work: &mut Work, server: &mut ServerState) {
        if server.tx != TxStatus::Idle {
            return;
        }
        let undone = work.segment_failed || work.rolled_back;
        work.rolled_back = false;
        if let Some(undo) = self.undo.take()
            && undone
        {
            self.settings = undo.clone();
            server.settings = undo;
        }
    }

    fn replayable(&self, work: &Work) -> bool {
        work_text(work).is_some_and(|text| text.is_ascii() && text.len() <= 8192)
    }

    fn change(&mut self, server: &mut ServerState, change: impl FnOnce(&mut Settings)) {
        self.undo.get_or_insert_with(|| self.settings.clone());
        let mut settings = Settings::clone(&self.settings);
        change(&mut settings);
        self.settings = Arc::new(settings);
        server.settings = self.settings.clone();
    }

    /// RESET goes back to the session's startup value; the server went back to its own.
    fn reset(&mut self, name: &Arc<str>, server: &mut ServerState) {
        self.undo.get_or_insert_with(|| self.settings.clone());
        let mut settings = Settings::clone(&self.settings);
        settings.remove(name);
        server.settings = Arc::new(settings.clone());
        if let Some(startup) = self.startup.value(name) {
            settings.set(name, startup.clone());
            self.settings = Arc::new(settings);
        } else {
            self.settings = server.settings.clone();
        }
    }

    fn reset_all(&mut self, server: &mut ServerState) {
        self.undo.get_or_insert_with(|| self.settings.clone());
        self.settings = self.startup.clone();
        server.settings = Arc::default();
    }

    fn set_characteristics(&mut self, modes: TransactionModes, server: &mut ServerState) {
        let on_off = |on: bool| How::Value(if on { (*b"on").into() } else { (*b"off").into() });
        let isolation = match (modes.serializable, modes.repeatable_read) {
            (Some(true), _) => Some(&b"serializable"[..]),
            (_, Some(true)) => Some(&b"repeatable read"[..]),
            (Some(false), _) => Some(&b"read committed"[..]),
            (None, _) => None,
        };
        self.change(server, |settings| {
            if let Some(read_only) = modes.read_only {
                settings.set(&Arc::from("default_transaction_read_only"), on_off(read_only));
            }
            if let Some(isolation) = isolation {
                settings.set(&Arc::from("default_transaction_isolation"), How::Value(isolation.into()));
            }
            if let Some(deferrable) = modes.deferrable {
                settings.set(&Arc::from("default_transaction_deferrable"), on_off(deferrable));
            }
        });
    }
}

/// The text of the SET that has just succeeded.
fn work_text(work: &Work) -> Option<&[u8]> {
    work.running_text.as_deref()
}
