//! `/metrics`: the snapshot in the OpenMetrics text format, which Prometheus reads.
//!
//! Names are `switchyard_*`, in base units (seconds, bytes), counters end in `_total`. Invariant: the number of series is bounded,
//! because the snapshot's rows are.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::snapshot::{MemberView, Pool, Port, Snapshot};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// States of `switchyard_cluster_state`: exactly one of them is 1.
const STATES: [&str; 4] = ["starting", "stable", "switching", "leaderless"];

/// Upper bounds of the response time's buckets, as powers of two in microseconds: 32 us to 67 s.
const BUCKETS: std::ops::RangeInclusive<usize> = 5..=26;

/// The whole exposition, with its end mark.
pub fn exposition(snapshot: &Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposed(snapshot.clone())));
    let mut text = String::with_capacity(16 * 1024);
    // Writing to a string can't fail, and this collector returns no other errors.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Exposed(Snapshot);

impl Collector for Exposed {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer { encoder };
        let snapshot = &self.0;
        router(&mut out, snapshot)?;
        cluster(&mut out, snapshot)?;
        ports(&mut out, &snapshot.ports)?;
        statements(&mut out, snapshot)?;
        members(&mut out, &snapshot.members)?;
        traffic(&mut out, &snapshot.members)?;
        pools(&mut out, &snapshot.pools)
    }
}

/// A label set: names and values.
type Labels<'a> = Vec<(&'static str, &'a str)>;

struct Writer<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Writer<'_> {
    fn family<'l>(
        &mut self,
        (name, help, unit): (&str, &str, Option<Unit>),
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels<'l>, impl EncodeMetric)>,
    ) -> fmt::Result {
        let name = format!("switchyard_{name}");
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.encoder.encode_descriptor(&name, help, unit.as_ref(), kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                return value.encode(family);
            }
            let encoder: MetricEncoder<'_> = family.encode_family(&labels)?;
            value.encode(encoder)?;
        }
        Ok(())
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family((name, help, unit), MetricType::Gauge, samples)
    }

    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family((name, help, unit), MetricType::Counter, samples)
    }

    fn seconds_counters<'l>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels<'l>, f64)>) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family((name, help, Some(Unit::Seconds)), MetricType::Counter, samples)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: f64) -> fmt::Result {
        self.gauges(name, help, unit, [(Labels::new(), value)])
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, None, [(Labels::new(), value)])
    }
}

fn flag(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

fn router(out: &mut Writer<'_>, snapshot: &Snapshot) -> fmt::Result {
    out.gauges("build_info", "Always 1; the version is a label", None, [(vec![("version", snapshot.version)], 1.0)])?;
    out.gauge("uptime", "Since the router started", Some(Unit::Seconds), snapshot.uptime_seconds)?;
    out.gauge("ready", "Whether /readyz says yes", None, flag(snapshot.not_ready.is_none()))?;
    out.gauge("draining", "Whether the router is shutting down", None, flag(snapshot.draining))
}

fn cluster(out: &mut Writer<'_>, snapshot: &Snapshot) -> fmt::Result {
    let cluster = &snapshot.cluster;
    out.gauges(
        "cluster_state",
        "1 for the state that the cluster is in",
        None,
        STATES.map(|state| (vec![("state", state)], flag(state == cluster.state))),
    )?;
    out.gauge("epoch", "Leaderships that this router has believed in", None, cluster.epoch as f64)?;
    out.gauges("timeline", "Timeline of the leader in force", None, cluster.timeline.map(|t| (Labels::new(), f64::from(t))))?;
    out.gauges(
        "leader_validity",
        "For how long the leader stays in force if no news comes",
        Some(Unit::Seconds),
        cluster.leader_valid_seconds.map(|seconds| (Labels::new(), seconds)),
    )?;
    out.gauge("etcd_up", "Whether the last read of etcd succeeded", None, flag(cluster.etcd_error.is_none()))?;
    out.gauge("failsafe", "Whether the leader is in force by Patroni's word alone", None, flag(cluster.failsafe))?;
    out.gauge("replicas", "Replicas that should serve reads", None, cluster.replicas as f64)?;
    out.gauge("replicas_serving", "Replicas that serve reads", None, cluster.replicas_serving as f64)
}

fn ports(out: &mut Writer<'_>, ports: &[Port]) -> fmt::Result {
    let gauges = |field: fn(&Port) -> i64| ports.iter().map(move |p| (vec![("port", p.name)], field(p) as f64)).collect::<Vec<_>>();
    let counters = |field: fn(&Port) -> u64| ports.iter().map(move |p| (vec![("port", p.name)], field(p))).collect::<Vec<_>>();
    out.gauges("clients", "Clients connected", None, gauges(|p| p.clients))?;
    out.gauges("clients_highest", "Most clients connected at once", None, gauges(|p| p.clients_highest))?;
    out.counters("clients_accepted", "Clients ever connected", None, counters(|p| p.clients_total))?;
    out.counters("logins_failed", "Logins refused", None, counters(|p| p.logins_failed))?;
    out.counters("queries", "Statement batches from clients", None, counters(|p| p.queries))?;
    out.counters("client_errors", "Errors that clients got, from servers or the router", None, counters(|p| p.errors))?;
    out.counters("client_received", "From clients", Some(Unit::Bytes), counters(|p| p.bytes_in))?;
    out.counters("client_sent", "To clients", Some(Unit::Bytes), counters(|p| p.bytes_out))
}

fn statements(out: &mut Writer<'_>, snapshot: &Snapshot) -> fmt::Result {
    fn by<'a>(label: &'static str, words: &'a std::collections::BTreeMap<String, u64>) -> impl Iterator<Item = (Labels<'a>, u64)> {
        words.iter().map(move |(word, count)| (vec![(label, word.as_str())], *count))
    }
    let held = &snapshot.held;
    out.gauge("held_statements", "Statements that wait for a leader", None, held.now as f64)?;
    out.counter("holds", "Statements that had to wait for a leader", held.total)?;
    out.counter("hold_timeouts", "Statements that waited in vain", held.timeouts)?;
    out.gauge("pinned_sessions", "Sessions that keep their server connection", None, snapshot.pinned_count as f64)?;
    out.counters("leader_reads", "Reads that went to the leader, by reason", None, by("reason", &snapshot.leader_reads))?;
    out.counters("reruns", "Batches run again elsewhere, by what the replica said", None, by("sqlstate", &snapshot.reruns))?;
    out.counters("refusals", "Errors that the router itself authored", None, by("sqlstate", &snapshot.refusals))?;
    out.counter("cancels", "Cancel requests", snapshot.cancels)?;
    out.counters("looks", "Looks at what sessions have left on server connections", None, by("result", &snapshot.looks))?;
    let help = "Returned server connections that weren't as the router's books said";
    out.counter("return_differences", help, snapshot.return_differences)?;
    out.counter("verdict_cache_hits", "Statements whose verdict was cached", snapshot.verdicts.hits)?;
    out.counter("verdict_cache_misses", "Statements that had to be parsed", snapshot.verdicts.misses)?;
    out.counter("unforeseen", "Statements that a replica refused and the leader ran", snapshot.unforeseen_total)?;
    let unforeseen = snapshot.unforeseen.iter();
    let unforeseen = unforeseen.map(|u| (vec![("fingerprint", u.fingerprint.as_str()), ("statement", u.statement.as_str())], u.times));
    out.counters("unforeseen_statements", "The same, by statement; the most frequent only", None, unforeseen)?;
    out.gauge("verdict_cache_entries", "Verdicts in the cache", None, snapshot.verdicts.cached as f64)?;
    let help = "From a statement batch's arrival to its answer's end, as clients see it";
    times(out, "switchyard_response", help, &snapshot.latency_log2_us, snapshot.latency_seconds_total)?;
    let help = "Reads that waited for a replica to show enough, or for the leader's position";
    times(out, "switchyard_read_wait", help, &snapshot.read_wait_log2_us, snapshot.read_wait_seconds_total)
}

/// A histogram of times.
fn times(out: &mut Writer<'_>, name: &str, help: &str, log2_us: &[u64], sum: f64) -> fmt::Result {
    // The encoder sums the counts up, and prints infinity as +Inf.
    let mut buckets: Vec<(f64, u64)> = BUCKETS.map(|bits| ((1u64 << bits) as f64 / 1e6, 0)).collect();
    buckets.push((f64::INFINITY, 0));
    for (bits, count) in log2_us.iter().enumerate() {
        let index = bits.max(*BUCKETS.start()).min(*BUCKETS.end() + 1) - *BUCKETS.start();
        buckets[index].1 += count;
    }
    let count = buckets.iter().map(|(_, count)| count).sum();
    let mut encoder = out.encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

fn node(member: &MemberView) -> Labels<'_> {
    vec![("node", &member.name)]
}

fn members(out: &mut Writer<'_>, members: &[MemberView]) -> fmt::Result {
    let present = || members.iter().filter(|m| m.status != "gone");
    let flags = |is: fn(&MemberView) -> bool| present().map(move |m| (node(m), flag(is(m))));
    let values = |field: fn(&MemberView) -> Option<f64>| present().filter_map(move |m| Some((node(m), field(m)?)));
    out.gauges("member_up", "Whether the last probe succeeded", None, flags(|m| m.check.ok))?;
    out.gauges("member_leader", "Whether it is the leader in force", None, flags(|m| m.status == "leader"))?;
    out.gauges("member_serving_reads", "Whether it is a replica that gets reads", None, flags(|m| m.status == "serving"))?;
    let out_of_rotation = present().filter_map(|m| Some((vec![("node", &*m.name), ("reason", m.out?)], 1.0)));
    out.gauges("member_out", "1 for a replica that gets no reads; why is a label", None, out_of_rotation)?;
    let bytes = Some(Unit::Bytes);
    out.gauges("member_lag", "WAL not yet replayed", bytes.clone(), values(|m| m.lag_bytes.map(|b| b as f64)))?;
    out.gauges("member_replay_delay", "How far replay is behind the leader", Some(Unit::Seconds), values(|m| m.lag_seconds))?;
    out.gauges("member_timeline", "Timeline", None, values(|m| m.timeline.map(f64::from)))?;
    out.gauges("member_wal_position", "Replay position; the leader's flush position", bytes, values(|m| m.lsn_bytes.map(|b| b as f64)))?;
    out.gauges("member_probe_round_trip", "Of the last probe", Some(Unit::Seconds), values(|m| m.check.round_trip_seconds))?;
    out.gauges("member_clock_offset", "Its clock minus the router's", Some(Unit::Seconds), values(|m| m.check.clock_offset_seconds))?;
    out.gauges("member_response", "Smoothed response time", Some(Unit::Seconds), values(|m| m.response_seconds))?;
    out.gauges("server_waiting_clients", "Clients waiting for a connection to it", None, values(|m| Some(m.waiting as f64)))
}

/// Of members that are gone, too: counters must not vanish while they still count in sums.
fn traffic(out: &mut Writer<'_>, members: &[MemberView]) -> fmt::Result {
    let counters = |field: fn(&MemberView) -> u64| members.iter().map(move |m| (node(m), field(m)));
    let gauges = |field: fn(&MemberView) -> i64| members.iter().map(move |m| (node(m), field(m) as f64));
    out.gauges("server_connections", "Server connections open", None, gauges(|m| m.connections))?;
    out.gauges("server_connections_in_use", "Server connections leased", None, gauges(|m| m.in_use))?;
    out.counters("server_connections_opened", "Server connections ever opened", None, counters(|m| m.connections_total))?;
    out.counters("server_connect_errors", "Server connections that couldn't be opened", None, counters(|m| m.connect_errors))?;
    out.counters("reads", "Batches sent that only read", None, counters(|m| m.reads))?;
    out.counters("writes", "Batches sent that may write", None, counters(|m| m.writes))?;
    out.counters("server_errors", "Errors that servers answered", None, counters(|m| m.errors))?;
    out.counters("server_received", "From servers", Some(Unit::Bytes), counters(|m| m.bytes_in))?;
    out.counters("server_sent", "To servers", Some(Unit::Bytes), counters(|m| m.bytes_out))
}

fn pools(out: &mut Writer<'_>, pools: &[Pool]) -> fmt::Result {
    fn labels(pool: &Pool) -> Labels<'_> {
        vec![("node", &pool.node), ("database", &pool.database), ("user", &pool.user)]
    }
    let gauges = |field: fn(&Pool) -> i64| pools.iter().map(move |p| (labels(p), field(p) as f64));
    out.gauges("pool_idle", "Idle server connections", None, gauges(|p| p.idle))?;
    out.gauges("pool_in_use", "Leased server connections", None, gauges(|p| p.in_use))?;
    out.gauges("pool_waiting", "Clients waiting", None, gauges(|p| p.waiting))?;
    out.counters("pool_waits", "Leases that had to wait", None, pools.iter().map(|p| (labels(p), p.waits)))?;
    out.seconds_counters("pool_wait", "Time spent waiting", pools.iter().map(|p| (labels(p), p.wait_seconds_total)))
}
