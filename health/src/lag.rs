//! The leader's samples, and how far a replica is behind them.
//!
//! Invariant: all samples kept are of one epoch, in the order in which they were sent. Lag in time needs no clock to
//! compare: it is how long ago the leader passed what the replica has replayed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_core::lsn::Lsn;
use switchyard_core::topology::Sample;

use crate::observation::Found;

/// Samples kept one by one: a few seconds at the fastest pace.
const RECENT_MAX: usize = 256;
/// Beyond those, one sample for each span of this length, for the lag of replicas that are far behind.
const COARSE_STEP: Duration = Duration::from_secs(1);
/// An hour.
const COARSE_MAX: usize = 3600;

/// The leader's samples of one epoch.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    recent: VecDeque<Sample>,
    coarse: VecDeque<Sample>,
}

impl Marks {
    pub(crate) fn clear(&mut self) {
        self.recent.clear();
        self.coarse.clear();
    }

    /// Whether `sample` is new, and one for the history too.
    pub(crate) fn push(&mut self, sample: Sample) -> (bool, bool) {
        if self.recent.back().is_some_and(|last| sample.sent_at <= last.sent_at) {
            return (false, false);
        }
        let before = self.coarse.back().copied();
        if self.coarse.back().is_none_or(|last| sample.sent_at >= last.sent_at + COARSE_STEP) {
            if self.coarse.len() == COARSE_MAX {
                self.coarse.pop_front();
            }
            self.coarse.push_back(sample);
        }
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(sample);
        (true, self.coarse.back().copied() != before)
    }

    /// How far the leader had flushed by the first sample at hand that was sent after `at`.
    pub(crate) fn flushed_after(&self, at: Instant) -> Option<Lsn> {
        self.first_after(at).map(|sample| sample.flush_lsn)
    }

    /// How far the leader had inserted by the first sample at hand that was sent after `at`.
    pub(crate) fn inserted_after(&self, at: Instant) -> Option<Lsn> {
        self.first_after(at).map(|sample| sample.insert_lsn)
    }

    fn first_after(&self, at: Instant) -> Option<&Sample> {
        self.recent.get(self.recent.partition_point(|sample| sample.sent_at <= at))
    }

    /// The newest ones, oldest first.
    pub(crate) fn recent(&self) -> Arc<[Sample]> {
        self.recent.iter().copied().collect()
    }

    /// One for each second of the last hour, oldest first.
    pub(crate) fn history(&self) -> Arc<[Sample]> {
        self.coarse.iter().copied().collect()
    }
}

/// How far a replica's probe is behind the leader: bytes, and time since the leader was seen further than the replica is.
/// `None` where no sample of the leader is at hand.
pub(crate) fn lag(found: &Found, marks: &Marks) -> (Option<u64>, Option<Duration>) {
    // The leader's position when the replica was asked: a later one would show the time between two probes as lag.
    let answered_at = found.sent_at + found.round_trip;
    let at = marks.recent.partition_point(|sample| sample.sent_at <= answered_at);
    let Some(leader) = at.checked_sub(1).and_then(|at| marks.recent.get(at)).or(marks.recent.front()) else {
        return (None, None);
    };
    let bytes = leader.flush_lsn.bytes_since(found.replay_lsn);
    if bytes == 0 {
        return (Some(0), Some(Duration::ZERO));
    }
    let passed = |samples: &VecDeque<Sample>| {
        let at = samples.partition_point(|sample| sample.flush_lsn <= found.replay_lsn);
        samples.get(at).map(|sample| sample.sent_at)
    };
    let passed_at = [passed(&marks.coarse), passed(&marks.recent)].into_iter().flatten().min();
    (Some(bytes), passed_at.map(|passed_at| found.sent_at.saturating_duration_since(passed_at)))
}
