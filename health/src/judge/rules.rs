//! What the judge goes by, and the names of its doubts.

use std::time::Duration;

use switchyard_config::Config;

/// What the judge takes from the configuration.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) max_lag_bytes: u64,
    pub(super) max_lag: Option<Duration>,
    pub(super) lease_margin: Duration,
    /// After so long a silence of the leader, reads are held to what standbys have received of others' writes.
    pub(super) global_without_leader: Option<Duration>,
    /// How long a probe's word holds where there is no etcd.
    pub(super) probe_hold: Duration,
}

impl From<&Config> for Rules {
    fn from(config: &Config) -> Rules {
        Rules {
            max_lag_bytes: config.routing.max_lag_bytes,
            max_lag: config.routing.max_lag,
            lease_margin: config.failover.lease_margin,
            global_without_leader: config.routing.global_without_leader,
            probe_hold: config.health.interval + 2 * config.health.timeout,
        }
    }
}

/// Why no leader is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    NotRead,
    NoKey,
    NotAnnounced,
    Unprobed,
    Unreachable,
    InRecovery,
    OtherSystem,
    UnknownTimeline,
    OldTimeline,
    Expired,
    Several,
    Nobody,
}

impl Doubt {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Doubt::NotRead => "etcd has not been read yet",
            Doubt::NoKey => "the leader key is gone",
            Doubt::NotAnnounced => "the leader key names a member that isn't announced",
            Doubt::Unprobed => "the leader key is new: waiting for a probe",
            Doubt::Unreachable => "the leader can't be probed",
            Doubt::InRecovery => "the named leader is still in recovery",
            Doubt::OtherSystem => "the named leader has another system identifier than the cluster",
            Doubt::UnknownTimeline => "the leader's timeline can't be told",
            Doubt::OldTimeline => "another member is on a newer timeline",
            Doubt::Expired => "the leader's lease can't be shown to hold",
            Doubt::Several => "several members are out of recovery",
            Doubt::Nobody => "no member is out of recovery",
        }
    }
}

impl Rules {
    /// Whether a replica is too far behind; one that was comes back at half of the limit. Unknown changes nothing.
    pub(super) fn lags(&self, before: bool, lag_bytes: Option<u64>, lag: Option<Duration>) -> bool {
        let Some(bytes) = lag_bytes else { return before };
        let share = if before { 2 } else { 1 };
        bytes > self.max_lag_bytes / share || self.max_lag.is_some_and(|limit| lag.is_some_and(|lag| lag > limit / share as u32))
    }
}
