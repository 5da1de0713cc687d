//! What the router believes about the cluster, as an immutable snapshot.
//!
//! The health crate folds observations into these values and publishes each as a whole; a session loads one and never
//! locks one. Instants are the router's own monotonic clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lsn::{Lsn, Timeline};
use crate::witness::{Received, Witnessed};

/// Counts the leaderships this router has believed in. Raised whenever (system identifier, name, address, timeline) of
/// the leader change, or its key was seen absent. 0: none so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// What the cluster is doing, as far as writes are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClusterState {
    /// A leader is in force.
    Stable,
    /// A switchover was announced: the leader is in force for what runs, new writes wait.
    Switching,
    /// No leader can be shown to hold the lead: writes wait.
    #[default]
    Leaderless,
}

/// The leader in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Index into [`Topology::members`].
    pub member: usize,
    pub epoch: Epoch,
    pub timeline: Timeline,
    /// Writes may be sent before this instant only (send time of the last linearizable read, plus the lease's
    /// remaining time to live, minus a margin). A later snapshot extends it.
    pub valid_until: Instant,
    /// A leader of a standby cluster (Patroni's `standby_leader`): refuses writes in its own words.
    pub standby_cluster: bool,
    /// In force by Patroni's word alone, because etcd can't be read (failsafe mode).
    pub failsafe: bool,
}

/// One leader sample: its WAL insert position, and when the question for it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub sent_at: Instant,
    pub insert_lsn: Lsn,
    pub flush_lsn: Lsn,
    /// Of a leader that waits for synchronous standbys: it shows what anybody has shown before this, as no commit has been waiting for
    /// longer. `None`: it doesn't wait for any.
    pub settled_at: Option<Instant>,
}

/// The role that Patroni announces for a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    Leader,
    StandbyLeader,
    SyncStandby,
    Replica,
    #[default]
    Unknown,
}

/// What a SQL probe of one member found last.
#[derive(Clone, Debug, PartialEq)]
pub struct Probed {
    /// When the question was sent. What it says held at that time or later.
    pub sent_at: Instant,
    pub in_recovery: bool,
    /// A standby's `pg_last_wal_replay_lsn()`: a lower bound on what its queries show. A leader's flush position.
    pub replay_lsn: Lsn,
    /// `None` while it can't be told (a standby without WAL receiver).
    pub timeline: Option<Timeline>,
    pub round_trip: Duration,
    /// Since when the server runs, a standby since it last began to replay (also after the crash of a backend, which the postmaster survives).
    pub started_at_unix_seconds: f64,
    /// `server_version_num`, for example 150018.
    pub version_num: u32,
    /// The member's clock minus the router's, bounded by the round trip.
    pub clock_offset_ms: f64,
}

/// Why a replica gets no reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Out {
    /// No probe has succeeded yet, or the last ones failed.
    Unreachable,
    /// Not in recovery, though etcd doesn't name it leader.
    NotInRecovery,
    /// `max_lag_bytes` or `max_lag_ms` exceeded.
    Lagging,
    /// On a timeline that is not the leader's nor in its history, or past its fork.
    WrongTimeline,
    /// Tag `noloadbalance`.
    NoLoadBalance,
    /// Patroni says that it isn't running.
    NotRunning,
    /// Taken out by an operator.
    Drained,
}

impl Out {
    /// A word for pages and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Out::Unreachable => "unreachable",
            Out::NotInRecovery => "not in recovery",
            Out::Lagging => "lagging",
            Out::WrongTimeline => "wrong timeline",
            Out::NoLoadBalance => "noloadbalance",
            Out::NotRunning => "not running",
            Out::Drained => "drained",
        }
    }
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub name: Arc<str>,
    /// Host and port for clients, from Patroni's `conn_url`.
    pub host: Arc<str>,
    pub port: u16,
    /// Patroni's REST API, from `api_url`.
    pub api_url: Option<Arc<str>>,
    pub role: Role,
    /// Patroni's word, such as `running` or `streaming`.
    pub patroni_state: Arc<str>,
    pub weight: u32,
    pub zone: Option<Arc<str>>,
    pub probed: Option<Probed>,
    /// The last probe's error, where the last probe failed.
    pub probe_error: Option<Arc<str>>,
    /// Since when probes succeed without a break, or fail.
    pub since: Instant,
    pub lag_bytes: Option<u64>,
    pub lag: Option<Duration>,
    /// `None`: a replica that may serve reads. The leader's is `None` too.
    pub out: Option<Out>,
    /// Where the leader's timeline forked off this member's, if it is behind on an older one: its positions count as the leader's up to
    /// there.
    pub fork: Option<Lsn>,
}

/// One change of leadership, for the page's timeline.
#[derive(Clone, Debug)]
pub struct LeaderChange {
    pub at: Instant,
    pub at_unix_seconds: f64,
    pub leader: Option<Arc<str>>,
    pub timeline: Option<Timeline>,
    pub epoch: Epoch,
    pub reason: Arc<str>,
}

/// A snapshot of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// Raised with each snapshot.
    pub generation: u64,
    pub state: ClusterState,
    /// The newest epoch, also while there is no leader.
    pub epoch: Epoch,
    pub leader: Option<Leader>,
    /// Sorted by name.
    pub members: Vec<Arc<Member>>,
    /// The epoch that the samples are of: an older one than `epoch` while no leader has been in force in that.
    pub sampled_in: Epoch,
    /// The latest leader samples of that epoch, oldest first.
    pub samples: Arc<[Sample]>,
    /// Of an hour of that epoch about one sample a second, oldest first: for what was seen or written before those.
    pub history: Arc<[Sample]>,
    /// While no leader is in force: what bounds what was acknowledged since the last sample.
    pub witnessed: Option<Witnessed>,
    /// While no leader is in force: what bounds what replicas have shown since the last sample.
    pub received: Option<Received>,
    /// Newest first, bounded.
    pub changes: Arc<[LeaderChange]>,
    /// Whether the last etcd read succeeded, and what went wrong if not.
    pub etcd_error: Option<Arc<str>>,
    /// Whether etcd has been read at all.
    pub ready: bool,
}

impl Topology {
    /// The leader's member, where one is in force at `now`.
    pub fn leader_at(&self, now: Instant) -> Option<(&Leader, &Arc<Member>)> {
        let leader = self.leader.as_ref().filter(|leader| now < leader.valid_until)?;
        Some((leader, self.members.get(leader.member)?))
    }

    /// What it would be if nobody led: for what a leader in force can't be reached for.
    pub fn without_leader(&self) -> Topology {
        let mut topology = Topology { leader: None, state: ClusterState::Leaderless, ..self.clone() };
        let unreachable = |member: &mut Arc<Member>| Arc::make_mut(member).out = Some(Out::Unreachable);
        self.leader.as_ref().and_then(|leader| topology.members.get_mut(leader.member)).into_iter().for_each(unreachable);
        topology
    }

    /// The first leader sample at hand that was sent after `at`: its insert position bounds what was shown or acknowledged until then.
    pub fn sample_after(&self, at: Instant) -> Option<&Sample> {
        let first = |samples: &Arc<[Sample]>| samples.partition_point(|sample| sample.sent_at <= at);
        let recent = first(&self.samples);
        if recent > 0 {
            // Nothing in the history is between two of these.
            return self.samples.get(recent);
        }
        let old =
            self.history.get(first(&self.history)).filter(|old| self.samples.first().is_none_or(|recent| old.sent_at < recent.sent_at));
        old.or_else(|| self.samples.first())
    }

    /// What standbys tell of everything that was acknowledged until `at`.
    pub fn witnessed_after(&self, at: Instant) -> Option<&Witnessed> {
        self.witnessed.as_ref().filter(|witnessed| witnessed.sent_at > at)
    }

    /// What bounds all that replicas have shown until `at`.
    pub fn received_after(&self, at: Instant) -> Option<&Received> {
        self.received.as_ref().filter(|received| received.sent_at > at)
    }

    /// Whether a replica may for a while have shown, before `at`, what the leader doesn't show yet: a commit that waits for its synchronous
    /// standby is visible everywhere but on the leader.
    pub fn is_unsettled(&self, at: Instant) -> bool {
        let waits = self.samples.last().is_some_and(|sample| sample.settled_at.is_some());
        let settled = |sample: &Sample| sample.settled_at.is_none_or(|settled| settled > at);
        waits && !self.samples[self.samples.partition_point(|sample| sample.sent_at <= at)..].iter().any(settled)
    }

    /// Members that may serve reads, without the leader.
    pub fn replicas(&self) -> impl Iterator<Item = (usize, &Arc<Member>)> {
        let leader = self.leader.as_ref().map(|leader| leader.member);
        self.members.iter().enumerate().filter(move |(index, member)| Some(*index) != leader && member.out.is_none())
    }

    pub fn member(&self, name: &str) -> Option<&Arc<Member>> {
        self.members.iter().find(|member| &*member.name == name)
    }
}
