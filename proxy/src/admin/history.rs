//! Counters of the last minutes, one point a second: what rates and the page's curves are made of.
//!
//! Invariant: at most [`POINTS_MAX`] points, their times strictly rising.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use switchyard_core::topology::Topology;

use crate::stats::Stats;

/// Five minutes: enough to see what led to an incident when the page is opened because of it.
const POINTS_MAX: usize = 300;

/// Listeners share one history, and each has its own clock: a point that comes too early is left out.
const SPACING: Duration = Duration::from_millis(900);

/// Rates are taken over this long, so that a single slow second doesn't make them jump.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// Quantiles are taken over this long: few statements make poor quantiles.
const QUANTILE_WINDOW: Duration = Duration::from_secs(10);

const BUCKETS: usize = 32;

#[derive(Clone, Copy, Debug, Default)]
struct NodeCounts {
    reads: u64,
    writes: u64,
    errors: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Point {
    at: Instant,
    nodes: BTreeMap<Arc<str>, NodeCounts>,
    queries: u64,
    held: i64,
    latency: [u64; BUCKETS],
    /// Bytes that replicas hadn't replayed.
    lags: BTreeMap<Arc<str>, u64>,
}

impl Point {
    fn read(at: Instant, stats: &Stats, topology: &Topology) -> Point {
        let nodes = stats.nodes();
        let nodes = nodes.into_iter().map(|(name, node)| {
            let counts = NodeCounts {
                reads: node.reads.value(),
                writes: node.writes.value(),
                errors: node.errors.value(),
                bytes: node.bytes_in.value() + node.bytes_out.value(),
            };
            (name, counts)
        });
        let mut latency = [0; BUCKETS];
        for (copy, counter) in latency.iter_mut().zip(&stats.latency_log2_us) {
            *copy = counter.value();
        }
        Point {
            at,
            nodes: nodes.collect(),
            queries: stats.read_write.queries.value() + stats.read_only.queries.value(),
            held: stats.held.value(),
            latency,
            lags: topology.members.iter().filter_map(|member| Some((member.name.clone(), member.lag_bytes?))).collect(),
        }
    }

    fn sum(&self, field: impl Fn(&NodeCounts) -> u64) -> u64 {
        self.nodes.values().map(field).sum()
    }
}

/// Per second, between two points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct NodeRates {
    pub reads: f64,
    pub writes: f64,
    pub errors: f64,
    pub bytes: f64,
}

/// How fast things go now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) nodes: BTreeMap<Arc<str>, NodeRates>,
    pub(crate) all: NodeRates,
    pub(crate) queries: f64,
    pub(crate) quantiles: Option<Quantiles>,
}

/// Client-visible response times of the last seconds. Upper bounds within a factor of two, as the buckets are powers of two; positions
/// within a bucket are interpolated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50_seconds: f64,
    pub p95_seconds: f64,
    pub p99_seconds: f64,
}

/// A second of the past, as the page draws it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Past {
    /// How long ago, seconds.
    pub(crate) ago: f64,
    pub(crate) reads: f64,
    pub(crate) writes: f64,
    pub(crate) held: i64,
    /// Replicas' lags in bytes, as far as they were known.
    pub(crate) lags: BTreeMap<Arc<str>, u64>,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    points: VecDeque<Point>,
}

impl History {
    /// Notes a point, unless the last one is too young.
    pub(crate) fn tick(&mut self, now: Instant, stats: &Stats, topology: &Topology) {
        if self.points.back().is_some_and(|last| now < last.at + SPACING) {
            return;
        }
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(Point::read(now, stats, topology));
    }

    /// Rates from a point about [`RATE_WINDOW`] ago until now. `None` while there is none.
    pub(crate) fn rates(&self, now: Instant, stats: &Stats) -> Option<Rates> {
        let from = self.reference(now, RATE_WINDOW)?;
        let to = Point::read(now, stats, &Topology::default());
        let seconds = to.at.duration_since(from.at).as_secs_f64();
        let nodes = to.nodes.iter().map(|(name, counts)| {
            let before = from.nodes.get(name).copied().unwrap_or_default();
            (name.clone(), between(&before, counts, seconds))
        });
        let nodes: BTreeMap<_, _> = nodes.collect();
        let sum = |field: fn(&NodeRates) -> f64| nodes.values().map(field).sum();
        let quantiles = self.reference(now, QUANTILE_WINDOW).and_then(|from| quantiles(&from.latency, &to.latency));
        Some(Rates {
            all: NodeRates { reads: sum(|n| n.reads), writes: sum(|n| n.writes), errors: sum(|n| n.errors), bytes: sum(|n| n.bytes) },
            nodes,
            queries: to.queries.saturating_sub(from.queries) as f64 / seconds,
            quantiles,
        })
    }

    /// The newest point at least `window` old, or else the oldest that is old enough to divide by.
    fn reference(&self, now: Instant, window: Duration) -> Option<&Point> {
        let age = |point: &Point| now.saturating_duration_since(point.at);
        let old_enough = self.points.iter().rev().find(|point| age(point) >= window);
        old_enough.or_else(|| self.points.front().filter(|point| age(point) >= SPACING / 2))
    }

    /// The past, oldest first.
    pub(crate) fn past(&self, now: Instant) -> Vec<Past> {
        let pairs = self.points.iter().zip(self.points.iter().skip(1));
        pairs
            .map(|(from, to)| {
                let seconds = to.at.duration_since(from.at).as_secs_f64();
                let rate = |field: fn(&NodeCounts) -> u64| to.sum(field).saturating_sub(from.sum(field)) as f64 / seconds;
                Past {
                    ago: now.saturating_duration_since(to.at).as_secs_f64(),
                    reads: rate(|n| n.reads),
                    writes: rate(|n| n.writes),
                    held: to.held,
                    lags: to.lags.clone(),
                }
            })
            .collect()
    }
}

fn between(from: &NodeCounts, to: &NodeCounts, seconds: f64) -> NodeRates {
    let rate = |field: fn(&NodeCounts) -> u64| field(to).saturating_sub(field(from)) as f64 / seconds;
    NodeRates { reads: rate(|n| n.reads), writes: rate(|n| n.writes), errors: rate(|n| n.errors), bytes: rate(|n| n.bytes) }
}

fn quantiles(from: &[u64; BUCKETS], to: &[u64; BUCKETS]) -> Option<Quantiles> {
    let mut counts = [0; BUCKETS];
    for ((count, from), to) in counts.iter_mut().zip(from).zip(to) {
        *count = to.saturating_sub(*from);
    }
    let total: u64 = counts.iter().sum();
    let quantile = |q: f64| {
        let rank = q * total as f64;
        let mut below = 0.0;
        for (index, count) in counts.iter().enumerate() {
            let count = *count as f64;
            if count > 0.0 && below + count >= rank {
                // Bucket `index` holds [2^(index-1), 2^index) microseconds.
                let upper = (1u64 << index) as f64;
                let lower = if index == 0 { 0.0 } else { upper / 2.0 };
                return (lower + (upper - lower) * (rank - below) / count) / 1e6;
            }
            below += count;
        }
        0.0
    };
    (total > 0).then(|| Quantiles { p50_seconds: quantile(0.5), p95_seconds: quantile(0.95), p99_seconds: quantile(0.99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_over_the_window() {
        let stats = Stats::default();
        let node = stats.node(&"n1".into());
        let (mut history, start) = (History::default(), Instant::now());
        assert!(history.rates(start, &stats).is_none());
        for second in 0..5 {
            history.tick(start + Duration::from_secs(second), &stats, &Topology::default());
            node.reads.add(100);
            node.writes.add(10);
        }
        // At 4.5 s, the reference is the point of 2 s, taken before that second's hundred.
        let rates = history.rates(start + Duration::from_millis(4500), &stats).expect("points exist");
        assert_eq!(rates.nodes["n1"].reads, 300.0 / 2.5);
        assert_eq!(rates.all.writes, 30.0 / 2.5);
        let past = history.past(start + Duration::from_secs(5));
        assert_eq!(past.len(), 4);
        assert_eq!((past[0].reads, past[0].writes, past[0].ago), (100.0, 10.0, 4.0));
    }

    #[test]
    fn a_second_listener_adds_no_points_and_the_ring_is_bounded() {
        let stats = Stats::default();
        let (mut history, start) = (History::default(), Instant::now());
        history.tick(start, &stats, &Topology::default());
        history.tick(start + Duration::from_millis(300), &stats, &Topology::default());
        assert_eq!(history.points.len(), 1);
        for second in 1..1000 {
            history.tick(start + Duration::from_secs(second), &stats, &Topology::default());
        }
        assert_eq!(history.points.len(), POINTS_MAX);
    }

    #[test]
    fn quantiles_fall_into_their_buckets() {
        let stats = Stats::default();
        let (mut history, start) = (History::default(), Instant::now());
        history.tick(start, &stats, &Topology::default());
        assert!(history.rates(start + Duration::from_secs(1), &stats).is_some_and(|r| r.quantiles.is_none()));
        (0..98).for_each(|_| stats.latency(Duration::from_micros(700)));
        (0..2).for_each(|_| stats.latency(Duration::from_millis(40)));
        let rates = history.rates(start + Duration::from_secs(1), &stats).expect("a point exists");
        let quantiles = rates.quantiles.expect("statements ran");
        assert!((0.000512..=0.001024).contains(&quantiles.p50_seconds), "{quantiles:?}");
        assert!((0.000512..=0.001024).contains(&quantiles.p95_seconds), "{quantiles:?}");
        assert!((0.032..=0.066).contains(&quantiles.p99_seconds), "{quantiles:?}");
    }
}
