//! One value that holds all that is shown: the page, the API, the CSV and the metrics are views of it.
//!
//! Times are seconds, sizes are bytes. Invariant: its size is bounded, whatever clients do; what was left out is counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use switchyard_core::topology::{ClusterState, Member, Out, Role, Topology};
use switchyard_core::witness::Witnessed;

use super::history::{NodeRates, Quantiles, Rates};
use super::{Live, Summary, ready};
use crate::decisions::{DecidedView, Unforeseen};
use crate::stats::{Counter, NodeStats, PortStats, Stats};

/// Members shown, at most: members that went and came back under new names must not add up.
const MEMBERS_MAX: usize = 64;
/// Pools shown, at most; the others are summed up by member. Users and databases are many in some clusters.
const POOLS_MAX: usize = 200;
/// Pinned sessions shown, at most: those pinned longest.
const PINNED_MAX: usize = 100;
/// Kinds of reasons and SQLSTATEs shown, at most.
const WORDS_MAX: usize = 64;
/// Leader changes shown, at most.
const CHANGES_MAX: usize = 50;
/// Statements shown, at most.
const STATEMENTS_MAX: usize = 30;
const UNFORESEEN_MAX: usize = 20;
const EVENT_CHARACTERS_MAX: usize = 500;
/// The name that stands for whatever was summed up.
pub(super) const OTHERS: &str = "(others)";

/// Everything that is shown, as of one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    pub version: &'static str,
    pub at_unix_seconds: f64,
    pub uptime_seconds: f64,
    pub draining: bool,
    /// Why `/readyz` says no, if it does.
    pub not_ready: Option<String>,
    pub cluster: Cluster,
    pub settings: Settings,
    pub ports: Vec<Port>,
    pub traffic: Traffic,
    pub members: Vec<MemberView>,
    pub members_omitted: usize,
    pub pools: Vec<Pool>,
    /// How many pools the rows named "(others)" stand for.
    pub pools_omitted: usize,
    pub held: Held,
    /// Pinned longest first.
    pub pinned: Vec<PinnedView>,
    /// All of them, also those that are not listed.
    pub pinned_count: usize,
    /// Reads that went to the leader, by reason.
    pub leader_reads: BTreeMap<String, u64>,
    /// Batches run again elsewhere, by the SQLSTATE that the replica said.
    pub reruns: BTreeMap<String, u64>,
    /// Errors that the router authored, by SQLSTATE.
    pub refusals: BTreeMap<String, u64>,
    pub verdicts: Verdicts,
    /// Statements that came most often; all that are remembered are at `/api/v1/statements`.
    pub statements: Vec<DecidedView>,
    /// Statements that a replica refused and the leader ran.
    pub unforeseen: Vec<Unforeseen>,
    pub unforeseen_total: u64,
    pub cancels: u64,
    /// Looks at what sessions have left on server connections, by what they came to.
    pub looks: BTreeMap<String, u64>,
    /// Returned server connections that weren't as the router's books said.
    pub return_differences: u64,
    /// Newest first.
    pub changes: Vec<Change>,
    /// Newest first.
    pub events: Vec<Event>,
    /// Statement batches by response time: entry i counts those below 2^i microseconds and not below half of it.
    pub latency_log2_us: Vec<u64>,
    pub latency_seconds_total: f64,
    /// Times that reads have waited for a replica or for the leader's position, in the same way.
    pub read_wait_log2_us: Vec<u64>,
    pub read_wait_seconds_total: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Cluster {
    pub name: String,
    /// `starting`, `stable`, `switching` or `leaderless`.
    pub state: &'static str,
    /// How long it has been so, where that is known.
    pub state_seconds: Option<f64>,
    /// In a sentence.
    pub summary: String,
    /// `ok`, `warn` or `bad`.
    pub level: &'static str,
    pub epoch: u64,
    pub generation: u64,
    /// The leader in force.
    pub leader: Option<Arc<str>>,
    pub timeline: Option<u32>,
    /// For how long it is in force if no news comes.
    pub leader_valid_seconds: Option<f64>,
    pub standby_cluster: bool,
    pub failsafe: bool,
    pub etcd_error: Option<Arc<str>>,
    /// Replicas that serve reads, and that should.
    pub replicas_serving: usize,
    pub replicas: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    pub max_clients: usize,
    pub pool_mode: &'static str,
    pub pool_max_size: usize,
    pub pool_max_per_node: usize,
    pub max_lag_bytes: u64,
    pub max_lag_seconds: Option<f64>,
    pub hold_timeout_seconds: f64,
    pub hold_max: usize,
    pub fallback_to_leader: bool,
    pub consistency_read_write: &'static str,
    pub consistency_read_only: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// `read_write` or `read_only`.
    pub name: &'static str,
    pub addresses: Vec<String>,
    pub clients: i64,
    pub clients_highest: i64,
    pub clients_total: u64,
    pub logins_failed: u64,
    pub queries: u64,
    pub errors: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// All members together.
#[derive(Clone, Debug, Serialize)]
pub struct Traffic {
    pub reads: u64,
    pub writes: u64,
    pub errors: u64,
    /// `None` in the router's first second.
    pub reads_per_second: Option<f64>,
    pub writes_per_second: Option<f64>,
    pub queries_per_second: Option<f64>,
    /// Of the last ten seconds.
    pub latency: Option<Quantiles>,
}

#[derive(Clone, Debug, Serialize)]
pub struct MemberView {
    pub name: Arc<str>,
    pub host: Arc<str>,
    pub port: u16,
    /// `leader`, `standby_leader`, `sync_standby`, `replica` or `unknown`: Patroni's word.
    pub role: &'static str,
    /// What the router does with it: `leader` (in force), `unconfirmed` (named leader, not in force), `serving`, `out`, `down` or `gone`.
    pub status: &'static str,
    /// Why it gets no reads.
    pub out: Option<&'static str>,
    pub patroni_state: Arc<str>,
    /// How long probes have succeeded without a break, or failed.
    pub since_seconds: Option<f64>,
    pub postgres_started_unix_seconds: Option<f64>,
    pub server_version_num: Option<u32>,
    pub weight: u32,
    pub zone: Option<Arc<str>>,
    pub timeline: Option<u32>,
    pub lsn: Option<String>,
    /// `lsn` as a number.
    pub lsn_bytes: Option<u64>,
    pub lag_bytes: Option<u64>,
    pub lag_seconds: Option<f64>,
    pub check: Check,
    pub connections: i64,
    pub connections_highest: i64,
    pub connections_total: u64,
    pub connect_errors: u64,
    pub in_use: i64,
    /// Clients waiting for a connection to it, all its pools together.
    pub waiting: i64,
    pub reads: u64,
    pub writes: u64,
    pub errors: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub response_seconds: Option<f64>,
    /// Per second.
    pub rates: Option<NodeRates>,
}

/// The last probe.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub ok: bool,
    /// How long ago the last answered probe was sent.
    pub age_seconds: Option<f64>,
    pub round_trip_seconds: Option<f64>,
    pub clock_offset_seconds: Option<f64>,
    pub error: Option<Arc<str>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Pool {
    pub node: Arc<str>,
    pub database: Arc<str>,
    pub user: Arc<str>,
    pub idle: i64,
    pub in_use: i64,
    pub waiting: i64,
    pub waiting_highest: i64,
    pub waits: u64,
    pub wait_seconds_total: f64,
}

/// Statements that wait for a leader.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    pub now: i64,
    pub highest: i64,
    pub total: u64,
    pub timeouts: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct PinnedView {
    pub client: u64,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub node: Arc<str>,
    pub reasons: Vec<&'static str>,
    pub seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdicts {
    pub hits: u64,
    pub misses: u64,
    pub cached: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Change {
    pub at_unix_seconds: f64,
    pub leader: Option<Arc<str>>,
    pub timeline: Option<u32>,
    pub epoch: u64,
    pub reason: Arc<str>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Event {
    pub at_unix_seconds: f64,
    pub text: String,
}

/// What a snapshot is taken from.
pub(super) struct Sources<'a> {
    pub(super) stats: &'a Stats,
    pub(super) topology: &'a Topology,
    pub(super) summary: &'a Summary,
    pub(super) live: Live,
    pub(super) rates: Option<&'a Rates>,
    pub(super) version: &'static str,
    pub(super) started: Instant,
    pub(super) now: Instant,
    pub(super) wall: SystemTime,
}

pub(super) fn take(from: &Sources<'_>) -> Snapshot {
    let Sources { stats, topology, now, .. } = *from;
    let (pools, pools_omitted) = pools(stats);
    let (members, members_omitted) = members(from, &pools);
    let sum = |field: fn(&MemberView) -> u64| members.iter().map(field).sum();
    let traffic = Traffic {
        reads: sum(|m| m.reads),
        writes: sum(|m| m.writes),
        errors: sum(|m| m.errors),
        reads_per_second: from.rates.map(|r| r.all.reads),
        writes_per_second: from.rates.map(|r| r.all.writes),
        queries_per_second: from.rates.map(|r| r.queries),
        latency: from.rates.and_then(|r| r.quantiles),
    };
    let held = Held {
        now: stats.held.value(),
        highest: stats.held.highest(),
        total: stats.held_total.value(),
        timeouts: stats.hold_timeouts.value(),
    };
    let (pinned, pinned_count) = pinned(from);
    Snapshot {
        version: from.version,
        at_unix_seconds: unix_seconds(from.wall),
        uptime_seconds: now.saturating_duration_since(from.started).as_secs_f64(),
        draining: from.live.draining,
        not_ready: ready::check(topology, from.live, now).err(),
        cluster: cluster(from, &members, held.now),
        settings: settings(from.summary),
        ports: vec![
            port("read_write", &from.summary.read_write, &stats.read_write),
            port("read_only", &from.summary.read_only, &stats.read_only),
        ],
        traffic,
        members,
        members_omitted,
        pools,
        pools_omitted,
        held,
        pinned,
        pinned_count,
        leader_reads: words(stats.leader_reads.read().iter()),
        reruns: words(stats.reruns.read().iter()),
        refusals: words(stats.refusals.read().iter()),
        verdicts: Verdicts { hits: stats.verdict_hits.value(), misses: stats.verdict_misses.value(), cached: from.live.verdicts_cached },
        statements: stats.decisions.now().into_iter().take(STATEMENTS_MAX).collect(),
        unforeseen: stats.decisions.unforeseen_now().into_iter().take(UNFORESEEN_MAX).collect(),
        unforeseen_total: stats.decisions.unforeseen_total.value(),
        cancels: stats.cancels.value(),
        looks: stats.looks().map(|(result, count)| (result.as_str().to_owned(), count)).collect(),
        return_differences: stats.return_differences.value(),
        changes: changes(topology),
        events: events(stats),
        latency_log2_us: stats.latency_log2_us.iter().map(Counter::value).collect(),
        latency_seconds_total: stats.latency_us_total.value() as f64 / 1e6,
        read_wait_log2_us: stats.read_wait_log2_us.iter().map(Counter::value).collect(),
        read_wait_seconds_total: stats.read_wait_us_total.value() as f64 / 1e6,
    }
}

fn unix_seconds(wall: SystemTime) -> f64 {
    wall.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn seconds_since(now: Instant, then: Instant) -> f64 {
    now.saturating_duration_since(then).as_secs_f64()
}

fn settings(summary: &Summary) -> Settings {
    Settings {
        max_clients: summary.max_clients,
        pool_mode: summary.pool_mode,
        pool_max_size: summary.pool_max_size,
        pool_max_per_node: summary.pool_max_per_node,
        max_lag_bytes: summary.max_lag_bytes,
        max_lag_seconds: summary.max_lag.map(|lag| lag.as_secs_f64()),
        hold_timeout_seconds: summary.hold_timeout.as_secs_f64(),
        hold_max: summary.hold_max,
        fallback_to_leader: summary.fallback_to_leader,
        consistency_read_write: summary.consistency_read_write,
        consistency_read_only: summary.consistency_read_only,
    }
}

fn port(name: &'static str, addresses: &[std::net::SocketAddr], stats: &PortStats) -> Port {
    Port {
        name,
        addresses: addresses.iter().map(ToString::to_string).collect(),
        clients: stats.clients.value(),
        clients_highest: stats.clients.highest(),
        clients_total: stats.clients_total.value(),
        logins_failed: stats.logins_failed.value(),
        queries: stats.queries.value(),
        errors: stats.errors.value(),
        bytes_in: stats.bytes_in.value(),
        bytes_out: stats.bytes_out.value(),
    }
}

fn cluster(from: &Sources<'_>, members: &[MemberView], held: i64) -> Cluster {
    let Sources { topology, now, .. } = *from;
    let leader = topology.leader_at(now);
    let state = match (topology.ready, leader, topology.state) {
        (false, _, _) => "starting",
        // Belief expires by itself, without a new snapshot.
        (true, None, _) | (true, _, ClusterState::Leaderless) => "leaderless",
        (true, Some(_), ClusterState::Switching) => "switching",
        (true, Some(_), ClusterState::Stable) => "stable",
    };
    let expired = topology.leader.as_ref().filter(|leader| now >= leader.valid_until);
    let newest = topology.changes.first();
    let state_since = match (state, expired) {
        ("starting", _) => Some(from.started),
        ("leaderless", Some(expired)) => Some(expired.valid_until),
        ("leaderless", None) => newest.filter(|change| change.leader.is_none()).map(|change| change.at),
        ("stable", _) => newest.filter(|change| change.leader.is_some()).map(|change| change.at),
        _ => None,
    };
    let in_force = (state != "leaderless").then_some(leader).flatten();
    // A leader that was lost is still announced as one for a while; it is no replica that fails to serve.
    let is_replica = |m: &&MemberView| m.status == "serving" || matches!(m.status, "out" | "down") && !m.role.ends_with("leader");
    // Members that were taken out on purpose are nobody's worry.
    let should_serve =
        |m: &&MemberView| is_replica(m) && m.out != Some(Out::NoLoadBalance.as_str()) && m.out != Some(Out::Drained.as_str());
    let mut cluster = Cluster {
        name: from.summary.cluster.clone(),
        state,
        state_seconds: state_since.map(|since| seconds_since(now, since)),
        summary: String::new(),
        level: "ok",
        epoch: topology.epoch.0,
        generation: topology.generation,
        leader: in_force.map(|(_, member)| member.name.clone()),
        timeline: in_force.map(|(leader, _)| leader.timeline.0),
        leader_valid_seconds: in_force.map(|(leader, _)| leader.valid_until.saturating_duration_since(now).as_secs_f64()),
        standby_cluster: in_force.is_some_and(|(leader, _)| leader.standby_cluster),
        failsafe: in_force.is_some_and(|(leader, _)| leader.failsafe),
        etcd_error: topology.etcd_error.clone(),
        replicas_serving: members.iter().filter(|m| m.status == "serving").count(),
        replicas: members.iter().filter(should_serve).count(),
    };
    (cluster.level, cluster.summary) = describe(&cluster, held, topology.witnessed.as_ref());
    if from.live.draining {
        (cluster.level, cluster.summary) = ("warn", format!("The router is shutting down. {}", cluster.summary));
    }
    cluster
}

/// What the cluster is doing, in words. `witnessed`: what reads without a leader are held to.
fn describe(cluster: &Cluster, held: i64, witnessed: Option<&Witnessed>) -> (&'static str, String) {
    let waits = match held {
        ..=0 => "no write waits".to_owned(),
        1 => "1 write waits".to_owned(),
        n => format!("{n} writes wait"),
    };
    let replicas = match (cluster.replicas_serving, cluster.replicas) {
        (0, 0) => "there are no replicas".to_owned(),
        (0, _) => "no replica serves reads".to_owned(),
        (serving, all) => format!("{serving} of {all} replicas serve reads"),
    };
    let leader = cluster.leader.as_deref().unwrap_or_default();
    let timeline = cluster.timeline.unwrap_or_default();
    let (level, text) = match cluster.state {
        "starting" => ("bad", "Starting: the cluster's state is not known yet".to_owned()),
        "leaderless" => {
            let known = match (cluster.replicas_serving, witnessed) {
                (0, _) => "",
                (_, None) => "; those of what was written last wait",
                (_, Some(witnessed)) if witnessed.exact => "; it is known what was written last",
                (_, Some(_)) => "; at global they show what replicas have received, and what none has may be lost",
            };
            let since = cluster.state_seconds.map(|seconds| format!(" for {}", spoken(seconds))).unwrap_or_default();
            ("bad", format!("No leader{since}: {waits}, {replicas}{known}"))
        }
        "switching" => ("warn", format!("Switchover: {leader} is handing over, {waits}, {replicas}")),
        _ if cluster.standby_cluster => {
            ("ok", format!("Standby cluster: {leader} leads (timeline {timeline}) and takes no writes, {replicas}"))
        }
        _ => {
            let level = if cluster.replicas_serving < cluster.replicas { "warn" } else { "ok" };
            (level, format!("Stable: {leader} leads (timeline {timeline}), {replicas}"))
        }
    };
    match &cluster.etcd_error {
        Some(error) if cluster.failsafe => (worse(level, "warn"), format!("{text}. Patroni's failsafe mode: etcd can't be read ({error})")),
        Some(error) => (worse(level, "warn"), format!("{text}. etcd can't be read: {error}")),
        None => (level, text),
    }
}

fn worse(level: &'static str, other: &'static str) -> &'static str {
    if level == "bad" { level } else { other }
}

/// A duration as people say it: `3.2 s`, `4 min 5 s`, `2 h 3 min`.
fn spoken(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

fn members(from: &Sources<'_>, pools: &[Pool]) -> (Vec<MemberView>, usize) {
    let Sources { stats, topology, .. } = *from;
    let mut known = stats.nodes();
    let mut views: Vec<MemberView> = Vec::new();
    for (index, member) in topology.members.iter().enumerate() {
        let node = known.remove(&member.name).unwrap_or_default();
        views.push(member_view(from, index, member, &node));
    }
    // Members that went: their counters stay, so that sums don't fall.
    views.extend(known.into_iter().map(|(name, node)| gone(from, name, &node)));
    for view in &mut views {
        view.waiting = pools.iter().filter(|pool| pool.node == view.name).map(|pool| pool.waiting).sum();
    }
    let omitted = views.len().saturating_sub(MEMBERS_MAX);
    views.truncate(MEMBERS_MAX);
    (views, omitted)
}

fn member_view(from: &Sources<'_>, index: usize, member: &Member, node: &NodeStats) -> MemberView {
    let Sources { topology, now, .. } = *from;
    let named_leader = topology.leader.as_ref().is_some_and(|leader| leader.member == index);
    let in_force = topology.state != ClusterState::Leaderless && topology.leader_at(now).is_some_and(|(leader, _)| leader.member == index);
    let status = match (in_force, named_leader, member.out) {
        (true, _, _) => "leader",
        (false, true, _) => "unconfirmed",
        (false, false, None) => "serving",
        (false, false, Some(Out::Unreachable | Out::NotRunning)) => "down",
        (false, false, Some(_)) => "out",
    };
    let probed = member.probed.as_ref();
    let lsn = probed.map(|p| p.replay_lsn);
    MemberView {
        host: member.host.clone(),
        port: member.port,
        role: role_word(member.role),
        status,
        out: member.out.map(Out::as_str),
        patroni_state: member.patroni_state.clone(),
        since_seconds: Some(seconds_since(now, member.since)),
        postgres_started_unix_seconds: probed.map(|p| p.started_at_unix_seconds),
        server_version_num: probed.map(|p| p.version_num),
        weight: member.weight,
        zone: member.zone.clone(),
        timeline: probed.and_then(|p| p.timeline).map(|t| t.0),
        lsn: lsn.map(|lsn| lsn.to_string()),
        lsn_bytes: lsn.map(|lsn| lsn.0),
        lag_bytes: member.lag_bytes,
        lag_seconds: member.lag.map(|lag: Duration| lag.as_secs_f64()),
        check: Check {
            ok: probed.is_some() && member.probe_error.is_none(),
            age_seconds: probed.map(|p| seconds_since(now, p.sent_at)),
            round_trip_seconds: probed.map(|p| p.round_trip.as_secs_f64()),
            clock_offset_seconds: probed.map(|p| p.clock_offset_ms / 1e3),
            error: member.probe_error.clone(),
        },
        ..counts(from, member.name.clone(), node)
    }
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::StandbyLeader => "standby_leader",
        Role::SyncStandby => "sync_standby",
        Role::Replica => "replica",
        Role::Unknown => "unknown",
    }
}

fn gone(from: &Sources<'_>, name: Arc<str>, node: &NodeStats) -> MemberView {
    MemberView { status: "gone", out: Some("not in the cluster"), ..counts(from, name, node) }
}

/// What was counted, without what the topology knows.
fn counts(from: &Sources<'_>, name: Arc<str>, node: &NodeStats) -> MemberView {
    let ewma_us = node.ewma_us.load(Ordering::Relaxed);
    MemberView {
        host: "".into(),
        port: 0,
        role: "unknown",
        status: "gone",
        out: None,
        patroni_state: "".into(),
        since_seconds: None,
        postgres_started_unix_seconds: None,
        server_version_num: None,
        weight: 0,
        zone: None,
        timeline: None,
        lsn: None,
        lsn_bytes: None,
        lag_bytes: None,
        lag_seconds: None,
        check: Check { ok: false, age_seconds: None, round_trip_seconds: None, clock_offset_seconds: None, error: None },
        connections: node.connections.value(),
        connections_highest: node.connections.highest(),
        connections_total: node.connections_total.value(),
        connect_errors: node.connect_errors.value(),
        in_use: node.in_use.value(),
        waiting: 0,
        reads: node.reads.value(),
        writes: node.writes.value(),
        errors: node.errors.value(),
        bytes_in: node.bytes_in.value(),
        bytes_out: node.bytes_out.value(),
        response_seconds: (ewma_us > 0).then_some(ewma_us as f64 / 1e6),
        rates: from.rates.map(|rates| rates.nodes.get(&name).copied().unwrap_or_default()),
        name,
    }
}

/// Rows for the first pools in the order of their names, then one row a member for all others.
fn pools(stats: &Stats) -> (Vec<Pool>, usize) {
    let all = stats.pools();
    let omitted = all.len().saturating_sub(POOLS_MAX);
    let mut rows = Vec::with_capacity(all.len().min(POOLS_MAX));
    let mut others: BTreeMap<Arc<str>, Pool> = BTreeMap::new();
    for (index, (name, pool)) in all.iter().enumerate() {
        let row = Pool {
            node: name.node.clone(),
            database: name.database.clone(),
            user: name.user.clone(),
            idle: pool.idle.value(),
            in_use: pool.in_use.value(),
            waiting: pool.waiting.value(),
            waiting_highest: pool.waiting.highest(),
            waits: pool.waits_total.value(),
            wait_seconds_total: pool.wait_us_total.value() as f64 / 1e6,
        };
        if index < POOLS_MAX {
            rows.push(row);
            continue;
        }
        match others.get_mut(&name.node) {
            Some(sum) => {
                sum.idle += row.idle;
                sum.in_use += row.in_use;
                sum.waiting += row.waiting;
                sum.waiting_highest = sum.waiting_highest.max(row.waiting_highest);
                sum.waits += row.waits;
                sum.wait_seconds_total += row.wait_seconds_total;
            }
            None => {
                others.insert(name.node.clone(), Pool { database: OTHERS.into(), user: OTHERS.into(), ..row });
            }
        }
    }
    rows.extend(others.into_values().take(MEMBERS_MAX));
    (rows, omitted)
}

fn pinned(from: &Sources<'_>) -> (Vec<PinnedView>, usize) {
    let mut all: Vec<_> = from.stats.pinned.lock().values().cloned().collect();
    let count = all.len();
    all.sort_by_key(|pinned| (pinned.since, pinned.client_id));
    all.truncate(PINNED_MAX);
    let view = |pinned: crate::stats::Pinned| PinnedView {
        client: pinned.client_id,
        user: pinned.user,
        database: pinned.database,
        node: pinned.node,
        reasons: pinned.reasons,
        seconds: from.wall.duration_since(pinned.since).map_or(0.0, |since| since.as_secs_f64()),
    };
    (all.into_iter().map(view).collect(), count)
}

/// A copy, with what exceeds the limit summed up.
fn words<'a, K: AsRef<str> + 'a>(counters: impl Iterator<Item = (K, &'a Arc<Counter>)>) -> BTreeMap<String, u64> {
    let mut copy = BTreeMap::new();
    for (index, (word, counter)) in counters.enumerate() {
        let word = if index < WORDS_MAX { word.as_ref() } else { OTHERS };
        *copy.entry(word.to_owned()).or_default() += counter.value();
    }
    copy
}

fn changes(topology: &Topology) -> Vec<Change> {
    let view = |change: &switchyard_core::topology::LeaderChange| Change {
        at_unix_seconds: change.at_unix_seconds,
        leader: change.leader.clone(),
        timeline: change.timeline.map(|t| t.0),
        epoch: change.epoch.0,
        reason: change.reason.clone(),
    };
    topology.changes.iter().take(CHANGES_MAX).map(view).collect()
}

fn events(stats: &Stats) -> Vec<Event> {
    let view = |(at, text): &(SystemTime, String)| Event {
        at_unix_seconds: unix_seconds(*at),
        text: text.chars().take(EVENT_CHARACTERS_MAX).collect(),
    };
    stats.events.lock().iter().rev().map(view).collect()
}
