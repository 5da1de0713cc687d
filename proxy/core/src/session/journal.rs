//! What a transaction has changed of the session's state, so that it can be undone: all of it, or back to a savepoint.
//!
//! Invariant: whatever PostgreSQL undoes with a transaction is in [`State`], and is changed only behind [`Session::changing`]. A change counts
//! from the answer to the statement that made it, and is final with the next COMMIT's answer, or with the end of the implicit transaction: what comes
//! behind that can't undo it.

use std::sync::Arc;

use super::held::Held;
use super::own::Values;
use super::pins::Pins;
use super::settings::{Settings, Value};
use super::{ServerState, Session};
use crate::route::ServerRole;

/// Savepoints that are remembered in one transaction. Going back to one beyond is told by the server alone.
const SAVEPOINTS_MAX: usize = 1000;

/// The state at one moment.
#[derive(Clone, Debug)]
struct State {
    settings: Arc<Settings>,
    /// The settings that the server has. `None`: no server had been given the transaction then.
    there: Option<Arc<Settings>>,
    own: Values,
    held: Held,
    pins: Pins,
    local_hash: u64,
}

/// Since the first change of a transaction.
#[derive(Debug)]
struct Changed {
    before: State,
    /// Those made since.
    savepoints: Vec<(Arc<str>, State)>,
}

#[derive(Debug, Default)]
pub(super) struct Journal {
    changed: Option<Box<Changed>>,
    /// The transaction may have savepoints, before its first change, too.
    savepoints: bool,
}

impl Journal {
    /// Whether there is something that a rollback would undo.
    pub(super) fn is_open(&self) -> bool {
        self.changed.is_some()
    }

    pub(super) fn may_have_savepoints(&self) -> bool {
        self.savepoints
    }

    /// In a transaction that has failed: what the session has set, and what its server has of that. Both have gone back already, and nothing can be
    /// brought to the server before the transaction's end.
    pub(super) fn gone_back(&self) -> Option<(&Arc<Settings>, &Arc<Settings>)> {
        let changed = self.changed.as_ref()?;
        let state = changed.savepoints.last().map_or(&changed.before, |(_, state)| state);
        Some((&state.settings, state.there.as_ref()?))
    }

    /// Whether the server of a transaction that has failed has gone back to what it lexes texts by otherwise than by the session's settings, and the
    /// transaction can be begun anew, as it has no savepoint.
    pub(super) fn lexes_otherwise(&self, role: ServerRole) -> bool {
        let otherwise =
            |(settings, there): (&Arc<Settings>, &Arc<Settings>)| !there.lexes_as(settings) && !there.may_be_refused(settings, &[], role);
        !self.savepoints && self.gone_back().is_some_and(otherwise)
    }

    /// Whether the session's settings and its server's can come apart by going back: they were brought to it within the transaction.
    pub(super) fn parts(&self, role: ServerRole) -> bool {
        let Some(changed) = &self.changed else { return false };
        let parted = |state: &State| state.there.as_ref().is_some_and(|there| there.differs(&state.settings, role));
        parted(&changed.before) || changed.savepoints.iter().any(|(_, state)| parted(state))
    }
}

impl Session {
    fn state(&self, server: Option<&ServerState>) -> State {
        State {
            settings: self.settings.clone(),
            there: server.map(|server| server.settings.clone()),
            own: self.own.values(),
            held: self.held.clone(),
            pins: self.pins,
            local_hash: self.local_hash,
        }
    }

    /// The transaction is about to change something.
    pub(super) fn changing(&mut self, server: Option<&ServerState>) {
        match &mut self.journal.changed {
            Some(changed) => {
                if changed.before.there.is_none() {
                    changed.before.there = server.map(|server| server.settings.clone());
                }
            }
            None => self.journal.changed = Some(Box::new(Changed { before: self.state(server), savepoints: Vec::new() })),
        }
    }

    fn restore(&mut self, state: State, server: Option<&mut ServerState>) {
        self.settings = state.settings;
        if let (Some(there), Some(server)) = (state.there, server) {
            server.settings = there;
        }
        self.own.restore(state.own);
        self.held = state.held;
        self.pins = state.pins.after_rollback(self.pins);
        self.local_hash = state.local_hash;
    }

    /// The transaction is committed: from here on nothing undoes what it has changed.
    pub(super) fn commit_changes(&mut self) {
        self.journal = Journal::default();
        self.local_defaults.clear();
        self.local_hash = 0;
        self.own.end_locals();
    }

    /// The transaction is rolled back. `server`: `None` where it is gone.
    pub(super) fn roll_back_changes(&mut self, server: Option<&mut ServerState>) {
        if let Some(changed) = std::mem::take(&mut self.journal).changed {
            self.restore(changed.before, server);
        }
        self.local_defaults.clear();
        self.local_hash = 0;
        self.own.end_locals();
    }

    /// A savepoint from before the first change is no other than the transaction's beginning.
    pub(super) fn mark_savepoint(&mut self, name: &Arc<str>, server: &mut ServerState) {
        self.journal.savepoints = true;
        if self.journal.changed.is_none() {
            return;
        }
        let state = self.state(Some(server));
        let Some(changed) = &mut self.journal.changed else { return };
        if changed.savepoints.len() < SAVEPOINTS_MAX && !name.is_empty() {
            changed.savepoints.push((name.clone(), state));
        } else {
            server.unsure = true;
        }
    }

    pub(super) fn release_savepoint(&mut self, name: &str, server: &mut ServerState) {
        server.unsure |= name.is_empty() && self.journal.changed.is_some();
        let Some(changed) = &mut self.journal.changed else { return };
        // With one from before the first change, all that came behind that are gone.
        let at = changed.savepoints.iter().rposition(|(known, _)| **known == *name).unwrap_or(0);
        changed.savepoints.truncate(at);
    }

    pub(super) fn roll_back_to_savepoint(&mut self, name: &str, server: &mut ServerState) {
        self.local_defaults.clear();
        let Some(changed) = &mut self.journal.changed else { return };
        server.unsure |= name.is_empty();
        let state = match changed.savepoints.iter().rposition(|(known, _)| **known == *name) {
            Some(at) => {
                changed.savepoints.truncate(at + 1);
                changed.savepoints[at].1.clone()
            }
            None => {
                changed.savepoints.clear();
                changed.before.clone()
            }
        };
        self.restore(state, Some(server));
    }

    /// Sets a parameter here and on the server, which has done so.
    pub(super) fn set_parameter(&mut self, server: &mut ServerState, name: &Arc<str>, value: &Value) {
        self.changing(Some(server));
        Arc::make_mut(&mut self.settings).set(name, value.clone());
        Arc::make_mut(&mut server.settings).set(name, value.clone());
        self.share_settings(server);
    }

    /// The server has gone back to its own value, and the session to that of its start.
    pub(super) fn reset_parameter(&mut self, server: &mut ServerState, name: &Arc<str>) {
        self.changing(Some(server));
        match self.startup.value(name).cloned() {
            Some(value) => Arc::make_mut(&mut self.settings).set(name, value),
            None => Arc::make_mut(&mut self.settings).remove(name),
        }
        server.resets(name);
        self.share_settings(server);
    }

    /// All but who the session is.
    pub(super) fn reset_all_parameters(&mut self, server: &mut ServerState) {
        self.changing(Some(server));
        self.settings = with_roles_of(&self.settings, &self.startup);
        server.settings = with_roles_of(&server.settings, &server.began);
        self.share_settings(server);
    }

    /// The next comparison is one of pointers, where both are the same.
    pub(super) fn share_settings(&self, server: &mut ServerState) {
        if !server.settings.differs(&self.settings, server.role) {
            server.settings = self.settings.clone();
        }
    }
}

/// `to`, with the roles of `from`, which RESET ALL leaves alone (`GUC_NO_RESET_ALL`).
fn with_roles_of(from: &Settings, to: &Arc<Settings>) -> Arc<Settings> {
    let mut settings = to.clone();
    for name in ["role", "session_authorization"] {
        match from.value(name) {
            value if value == to.value(name) => {}
            Some(value) => Arc::make_mut(&mut settings).set(&Arc::from(name), value.clone()),
            None => Arc::make_mut(&mut settings).remove(name),
        }
    }
    settings
}
