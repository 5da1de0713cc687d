//! What a session holds of its server's by name: when the last one is gone, it needn't be pinned for it any more.
//!
//! Invariant: a session is unpinned only for what a server has confirmed. Where names aren't known (there were too many, or a statement
//! doesn't tell them), it stays pinned. All of it is the transaction's until that commits: see [`super::journal`].

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::effects::is_role;
use super::{ServerState, Session};
use crate::sql::{Effect, PinReason, SetTo, Verdict};

/// Names of one kind that are kept for one session. The server keeps all, but a session with that many isn't worth more memory.
const NAMES_MAX: usize = 256;

/// Names of one kind, and what is kept of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names<T = ()> {
    known: FxHashMap<Arc<str>, T>,
    /// There are others that aren't known.
    others: bool,
}

/// What SQL has prepared. Of a query without effects, the generation of the facts by which it was judged: see `executes_unknown`.
pub(super) type SqlPrepared = Names<Option<u64>>;

impl<T> Default for Names<T> {
    fn default() -> Names<T> {
        Names { known: FxHashMap::default(), others: false }
    }
}

impl Names {
    pub(super) fn add(&mut self, name: &Arc<str>) {
        self.insert(name, ());
    }
}

impl<T> Names<T> {
    pub(super) fn insert(&mut self, name: &Arc<str>, value: T) {
        let has_room = self.known.len() < NAMES_MAX || self.known.contains_key(name);
        if has_room && !name.is_empty() {
            self.known.insert(name.clone(), value);
        } else {
            self.others = true;
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.known.get(name)
    }

    pub(super) fn are_all_known(&self) -> bool {
        !self.others
    }

    /// There are some that aren't known by name.
    pub(super) fn add_unknown(&mut self) {
        self.others = true;
    }

    /// True if none is left, which isn't known of names that nobody has added.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.known.remove(name).is_some() && self.known.is_empty() && !self.others
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        std::str::from_utf8(name).is_ok_and(|name| self.known.contains_key(name))
    }

    pub(super) fn clear(&mut self) {
        *self = Names::default();
    }
}

/// All that a session holds by name, except what SQL has prepared, which no rollback brings back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) channels: Names,
    pub(super) cursors: Names,
    pub(super) temp_tables: Names,
    /// SET ROLE of a role.
    role: bool,
    /// SET SESSION AUTHORIZATION of a user.
    authorization: bool,
}

impl Held {
    pub(super) fn clear(&mut self) {
        *self = Held::default();
    }
}

impl Session {
    /// A statement has succeeded: what it made, and what it released.
    pub(super) fn hold_names(&mut self, effect: &Effect, verdict: &Verdict, server: &mut ServerState) {
        let held = matches!(
            effect,
            Effect::Listen { .. }
                | Effect::Unlisten { .. }
                | Effect::UnlistenAll
                | Effect::HoldCursor { .. }
                | Effect::CloseCursor { .. }
                | Effect::TempTable { .. }
                | Effect::DropTable { .. }
                | Effect::DiscardTemp
                | Effect::Pin(_)
                | Effect::Ddl
                | Effect::Set { local: false, .. }
                | Effect::Reset { .. }
        );
        if !held {
            return;
        }
        self.changing(Some(server));
        // Where the search path names `pg_temp`, another table of that name may come first.
        let temp_first = self.settings.value("search_path").is_none();
        let held = &mut self.held;
        match effect {
            Effect::Listen { channel } => held.channels.add(channel),
            Effect::Unlisten { channel } if held.channels.remove(channel) => self.pins.remove(PinReason::Listen),
            Effect::UnlistenAll => {
                held.channels.clear();
                self.pins.remove(PinReason::Listen);
            }
            Effect::HoldCursor { name } => held.cursors.add(name),
            Effect::CloseCursor { name: Some(name) } if held.cursors.remove(name) => self.pins.remove(PinReason::WithHoldCursor),
            Effect::CloseCursor { name: None } => {
                held.cursors.clear();
                self.pins.remove(PinReason::WithHoldCursor);
            }
            Effect::TempTable { on_commit_drop: true, .. } => {}
            Effect::TempTable { name, .. } => held.temp_tables.add(name),
            Effect::DropTable { name } if temp_first && held.temp_tables.remove(name) => self.pins.remove(PinReason::TempTable),
            Effect::DiscardTemp => {
                held.temp_tables.clear();
                self.pins.remove(PinReason::TempTable);
            }
            Effect::Pin(PinReason::TempTable) => {
                let named = |effect: &Effect| matches!(effect, Effect::TempTable { on_commit_drop: false, .. });
                held.temp_tables.others |= !verdict.effects.iter().any(named);
            }
            Effect::Ddl if verdict.command.starts_with("ALTER") || verdict.statements > 1 => {
                // It may have another name now.
                held.temp_tables.others |= !held.temp_tables.known.is_empty();
            }
            Effect::Set { name, to, .. } if is_role(name) => self.note_role(name, to, server),
            Effect::Reset { name } if is_role(name) => self.note_role(name, &SetTo::Default, server),
            _ => {}
        }
    }

    /// Whether it is DDL that nobody else sees: it drops temporary tables of the session's own. (What makes them says so itself.)
    pub(super) fn drops_own_temporary(&self, verdict: &Verdict) -> bool {
        let own = |effect: &Effect| match effect {
            Effect::DropTable { name } => self.held.temp_tables.contains(name.as_bytes()),
            _ => true,
        };
        // Where the search path names `pg_temp`, another table of that name may come first.
        verdict.command == "DROP TABLE"
            && verdict.statements == 1
            && self.settings.value("search_path").is_none()
            && verdict.effects.iter().any(|effect| matches!(effect, Effect::DropTable { .. }))
            && verdict.effects.iter().all(own)
    }

    /// SET or RESET of who the session is: it is pinned while that isn't who it was at its start.
    fn note_role(&mut self, name: &str, to: &SetTo, server: &mut ServerState) {
        let another = !matches!(to, SetTo::Default | SetTo::NoRole);
        match name {
            "role" => self.held.role = another,
            _ => self.held.authorization = another,
        }
        let packet = self.startup.iter().any(|(name, _)| is_role(name));
        if packet && matches!(to, SetTo::Default) {
            // A server goes back to its own beginning, a session to that of its startup packet. SET SESSION AUTHORIZATION
            // DEFAULT resets the role, too (`set_config_with_handle`).
            self.reset_parameter(server, &Arc::from("role"));
        }
        if self.held.role || self.held.authorization || (packet && matches!(to, SetTo::NoRole)) {
            self.pins.add(PinReason::SetRole);
        } else if !packet {
            self.pins.remove(PinReason::SetRole);
            // SET ROLE NONE isn't where a session begins whose user has `ALTER ROLE ... SET role`: the server is asked.
            server.unsure = true;
        }
    }
}
