//! What the sources tell the judge.
//!
//! Plain values, with the instants at which questions were sent: whoever reads them must not know where they came from.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_core::lsn::{Lsn, Timeline};

use crate::keys::{Fact, Forks, Slot};

/// One reading of the router's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    /// The wall clock, for scheduled switchovers and the page only.
    pub(crate) unix_seconds: f64,
}

/// Something that was seen.
#[derive(Clone, Debug)]
pub(crate) enum Observation {
    Read(Read),
    /// A watch event: a key was put.
    Put {
        revision: i64,
        fact: Fact,
    },
    /// A watch event: a key is gone.
    Gone {
        revision: i64,
        slot: Slot,
    },
    /// No endpoint of etcd completes a linearizable read.
    EtcdFailing {
        error: Arc<str>,
    },
    Found {
        member: Arc<str>,
        post: u64,
        found: Found,
    },
    /// A member can't be probed.
    Lost {
        member: Arc<str>,
        post: u64,
        error: Arc<str>,
    },
    /// What Patroni's `/primary` answered: whether it was 200.
    Primary {
        member: Arc<str>,
        sent_at: Instant,
        yes: bool,
    },
    /// Whom operators have taken out: all of them.
    Drained(BTreeSet<Arc<str>>),
    /// An operator's switchover holds new writes until then; `None`: no longer.
    Holding(Option<Instant>),
    /// The machine was suspended for so long, which instants don't count.
    Slept(Duration),
}

/// A completed linearizable read of all of the cluster's keys.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    /// Before the request left.
    pub(crate) sent_at: Instant,
    pub(crate) revision: i64,
    /// The first read after a connection was lost: whatever was known is older, also where its revision is higher (etcd
    /// restored from a backup).
    pub(crate) first: bool,
    pub(crate) facts: Vec<Fact>,
    /// What the leader key's lease has left, as of `sent_at`. `None` if etcd doesn't tell.
    pub(crate) lease_left: Option<Duration>,
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) sent_at: Instant,
    pub(crate) round_trip: Duration,
    pub(crate) in_recovery: bool,
    /// Standby: replayed. Leader: flushed.
    pub(crate) replay_lsn: Lsn,
    /// Leader: inserted. Standby: received or replayed, whichever is further.
    pub(crate) insert_lsn: Lsn,
    /// A leader with synchronous standbys: since how long the oldest commit may be waiting for one, or zero.
    pub(crate) sync_wait: Option<Duration>,
    pub(crate) timeline: Option<Timeline>,
    pub(crate) system_identifier: i64,
    pub(crate) started_at_unix_seconds: f64,
    pub(crate) version_num: u32,
    pub(crate) clock_offset_ms: f64,
    /// The timeline's history file, where it could be read.
    pub(crate) forks: Option<Forks>,
}

impl Found {
    /// Whether both answers come from one startup process. Its replay goes on to newer timelines only, so that what `before` told of its timeline
    /// still holds: when its leader dies it has no WAL receiver any more, and its control file may name an old timeline until the next
    /// restartpoint.
    pub(crate) fn goes_on_from(&self, before: &Found) -> bool {
        before.in_recovery
            && self.in_recovery
            && before.system_identifier == self.system_identifier
            && before.started_at_unix_seconds == self.started_at_unix_seconds
    }
}
