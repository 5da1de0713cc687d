//! Why a session keeps its server connection.

use crate::sql::PinReason;

/// A set of [`PinReason`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pins(u32);

const ALL: [PinReason; 15] = [
    PinReason::TempTable,
    PinReason::Listen,
    PinReason::AdvisoryLock,
    PinReason::WithHoldCursor,
    PinReason::SqlPrepare,
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

    /// These, in the place of `later` ones, after a rollback: what no rollback undoes is still there.
    pub(super) fn after_rollback(self, later: Pins) -> Pins {
        const UNDONE: [PinReason; 4] = [PinReason::TempTable, PinReason::Listen, PinReason::WithHoldCursor, PinReason::SetRole];
        let undone = UNDONE.iter().fold(0, |bits, reason| bits | bit(*reason));
        Pins((self.0 & undone) | (later.0 & !undone))
    }

    /// What DISCARD ALL undoes. Loaded libraries, seeds and what user code left behind stay.
    pub fn discard(&mut self) {
        for reason in [
            PinReason::TempTable,
            PinReason::Listen,
            PinReason::AdvisoryLock,
            PinReason::WithHoldCursor,
            PinReason::SqlPrepare,
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

fn bit(reason: PinReason) -> u32 {
    1 << ALL.iter().position(|known| *known == reason).unwrap_or(ALL.len())
}
