//! Why a session keeps its server connection.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::sql::PinReason;

/// A set of [`PinReason`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins(u32);

const ALL: [PinReason; 16] = [
    PinReason::TempTable,
    PinReason::Listen,
    PinReason::AdvisoryLock,
    PinReason::WithHoldCursor,
    PinReason::SqlPrepare,
    PinReason::PreparedNames,
    PinReason::Sequence,
    PinReason::Load,
    PinReason::SetRole,
    PinReason::SettingOutOfSight,
    PinReason::BackendPid,
    PinReason::Statistics,
    PinReason::Setseed,
    PinReason::UserCode,
    PinReason::SessionMode,
    PinReason::Other,
];

impl Pins {
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn add(&mut self, reason: PinReason) {
        self.0 |= bit(reason);
    }

    pub fn remove(&mut self, reason: PinReason) {
        self.0 &= !bit(reason);
    }

    pub fn has(self, reason: PinReason) -> bool {
        self.0 & bit(reason) != 0
    }

    /// Whether there is a reason that lies in what the session did, not in the configuration.
    pub fn are_its_own(self) -> bool {
        self.0 & !bit(PinReason::SessionMode) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = PinReason> {
        ALL.into_iter().filter(move |reason| self.has(*reason))
    }

    /// What DISCARD ALL undoes. Loaded libraries, seeds and what user code left behind stay.
    pub fn discard(&mut self) {
        for reason in [
            PinReason::TempTable,
            PinReason::Listen,
            PinReason::AdvisoryLock,
            PinReason::WithHoldCursor,
            PinReason::SqlPrepare,
            PinReason::PreparedNames,
            PinReason::Sequence,
            PinReason::SetRole,
            PinReason::SettingOutOfSight,
            PinReason::BackendPid,
            PinReason::Statistics,
        ] {
            self.remove(reason);
        }
    }
}

/// Names of what pins a session, such as channels: when the last one is gone, so is the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    known: FxHashSet<Arc<str>>,
    /// There were more than are kept: which are left isn't known any more.
    too_many: bool,
}

/// Names of one kind that are kept for one session. The server keeps all, but a session with that many isn't worth more memory.
const NAMES_MAX: usize = 256;

impl Names {
    pub(super) fn add(&mut self, name: &Arc<str>) {
        if self.known.len() < NAMES_MAX || self.known.contains(name) {
            self.known.insert(name.clone());
        } else {
            self.too_many = true;
        }
    }

    /// True if none is left, which isn't known of names that nobody has added.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        self.known.remove(name) && self.known.is_empty() && !self.too_many
    }

    pub(super) fn contains(&self, name: &[u8]) -> bool {
        std::str::from_utf8(name).is_ok_and(|name| self.known.contains(name))
    }

    pub(super) fn clear(&mut self) {
        *self = Names::default();
    }
}

fn bit(reason: PinReason) -> u32 {
    1 << ALL.iter().position(|known| *known == reason).unwrap_or(ALL.len())
}
