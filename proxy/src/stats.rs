//! Counters and gauges that the data path writes and the admin side reads.
//!
//! All of them are atomics or short plain locks; nothing here decides anything. Rates are the reader's business.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, RwLock};
use switchyard_core::balance;
use switchyard_core::session::LookResult;

use crate::decisions::Decisions;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down, and remembers its highest value.
#[derive(Debug, Default)]
pub struct Gauge {
    now: AtomicI64,
    highest: AtomicI64,
}

impl Gauge {
    pub fn up(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        if now > self.highest.load(Ordering::Relaxed) {
            self.highest.fetch_max(now, Ordering::Relaxed);
        }
    }

    pub fn down(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn value(&self) -> i64 {
        self.now.load(Ordering::Relaxed)
    }

    pub fn highest(&self) -> i64 {
        self.highest.load(Ordering::Relaxed)
    }
}

/// Which of the data ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    ReadWrite,
    ReadOnly,
}

/// Of one data port.
#[derive(Debug, Default)]
pub struct PortStats {
    pub clients: Gauge,
    pub clients_total: Counter,
    pub logins_failed: Counter,
    /// From clients, and to them.
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    pub queries: Counter,
    pub errors: Counter,
}

/// Of one member, by name; kept when the member goes.
#[derive(Debug, Default)]
pub struct NodeStats {
    /// Server connections open.
    pub connections: Gauge,
    pub connections_total: Counter,
    pub connect_errors: Counter,
    /// Leased right now.
    pub in_use: Gauge,
    /// Sessions that wait for a connection to it, or open one.
    pub waiting: Gauge,
    /// Statement batches sent, by what they were.
    pub reads: Counter,
    pub writes: Counter,
    pub errors: Counter,
    /// From the server, and to it.
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    /// Exponentially weighted response time, microseconds.
    pub ewma_us: AtomicU64,
    /// When that was observed last, in milliseconds since [`BEGAN`].
    observed_ms: AtomicU64,
    /// Who has leased a connection as the leader's of late.
    pub sessions: Sessions,
}

/// About how many sessions have been here within the last moments: 64 at most.
#[derive(Debug, Default)]
pub struct Sessions {
    /// The number of the current span of time.
    span: AtomicU64,
    /// Who was here within it, and within the one before: a bit for each of 64 kinds of session ids, which count up.
    now: AtomicU64,
    before: AtomicU64,
}

/// A span of time in which sessions count as being here together.
const SPAN_MS: u64 = 50;

impl Sessions {
    pub fn came(&self, id: u64) {
        let (span, bit) = (since_beginning_ms() / SPAN_MS, 1 << (id % 64));
        let last = self.span.load(Ordering::Relaxed);
        if last != span && self.span.compare_exchange(last, span, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let left = self.now.swap(0, Ordering::Relaxed);
            self.before.store(if last + 1 == span { left } else { 0 }, Ordering::Relaxed);
        }
        // Most are here already: a cache line that all cores write is dear.
        if self.now.load(Ordering::Relaxed) & bit == 0 {
            self.now.fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub fn count(&self) -> u32 {
        let (now, before) = (self.now.load(Ordering::Relaxed), self.before.load(Ordering::Relaxed));
        match (since_beginning_ms() / SPAN_MS).saturating_sub(self.span.load(Ordering::Relaxed)) {
            0 => now.count_ones().max(before.count_ones()),
            1 => now.count_ones(),
            _ => 0,
        }
    }
}

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn since_beginning_ms() -> u64 {
    u64::try_from(BEGAN.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl NodeStats {
    /// Takes one response time into the average, with a weight of an eighth.
    pub fn observe(&self, took: Duration) {
        self.ewma_us.store(balance::averaged(self.ewma_us.load(Ordering::Relaxed), took), Ordering::Relaxed);
        self.observed_ms.store(since_beginning_ms(), Ordering::Relaxed);
    }

    /// What a statement is expected to take, in microseconds.
    pub fn expected_us(&self) -> f64 {
        let age_ms = since_beginning_ms().saturating_sub(self.observed_ms.load(Ordering::Relaxed));
        balance::expected_us(self.ewma_us.load(Ordering::Relaxed), Duration::from_millis(age_ms))
    }
}

/// Of one pool.
#[derive(Debug, Default)]
pub struct PoolStats {
    pub idle: Gauge,
    pub in_use: Gauge,
    pub waiting: Gauge,
    pub waits_total: Counter,
    pub wait_us_total: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName {
    pub node: Arc<str>,
    pub database: Arc<str>,
    pub user: Arc<str>,
}

/// A session that keeps its server connection, and why.
#[derive(Clone, Debug)]
pub struct Pinned {
    pub client_id: u64,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub node: Arc<str>,
    pub reasons: Vec<&'static str>,
    pub since: SystemTime,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Stats {
    pub read_write: PortStats,
    pub read_only: PortStats,
    nodes: RwLock<BTreeMap<Arc<str>, Arc<NodeStats>>>,
    pools: RwLock<BTreeMap<PoolName, Arc<PoolStats>>>,
    pub pinned: Mutex<HashMap<u64, Pinned>>,
    /// Statements waiting for a leader now, and ever.
    pub held: Gauge,
    pub held_total: Counter,
    pub hold_timeouts: Counter,
    /// Reads that had to go to the leader, by reason word.
    pub leader_reads: RwLock<BTreeMap<&'static str, Arc<Counter>>>,
    /// Batches that a replica couldn't answer and that ran again elsewhere, by SQLSTATE of what it said.
    pub reruns: RwLock<BTreeMap<String, Arc<Counter>>>,
    /// Errors that the router itself authored, by SQLSTATE.
    pub refusals: RwLock<BTreeMap<&'static str, Arc<Counter>>>,
    pub decisions: Decisions,
    pub cancels: Counter,
    /// Looks at what sessions have left on server connections, by what they came to: in the order of
    /// [`LookResult::ALL`].
    looks: [Counter; LookResult::ALL.len()],
    /// Returned server connections that weren't as the router's books said.
    pub return_differences: Counter,
    pub verdict_hits: Counter,
    pub verdict_misses: Counter,
    /// Client-visible time of a statement batch, microseconds: a coarse log2 histogram, index = bit length.
    pub latency_log2_us: [Counter; 32],
    /// The sum of those times, microseconds.
    pub latency_us_total: Counter,
    /// Time that reads have waited for a replica or for the leader's position, as above; those that didn't wait don't count.
    pub read_wait_log2_us: [Counter; 32],
    pub read_wait_us_total: Counter,
    /// Router events worth a line on the page, newest last, bounded.
    pub events: Mutex<VecDeque<(SystemTime, String)>>,
}

/// Events kept for the page.
const EVENTS_MAX: usize = 100;

impl Stats {
    pub fn port(&self, port: Port) -> &PortStats {
        match port {
            Port::ReadWrite => &self.read_write,
            Port::ReadOnly => &self.read_only,
        }
    }

    pub fn node(&self, name: &Arc<str>) -> Arc<NodeStats> {
        if let Some(stats) = self.nodes.read().get(name) {
            return stats.clone();
        }
        self.nodes.write().entry(name.clone()).or_default().clone()
    }

    pub fn nodes(&self) -> BTreeMap<Arc<str>, Arc<NodeStats>> {
        self.nodes.read().clone()
    }

    pub fn pool(&self, name: &PoolName) -> Arc<PoolStats> {
        if let Some(stats) = self.pools.read().get(name) {
            return stats.clone();
        }
        self.pools.write().entry(name.clone()).or_default().clone()
    }

    pub fn pools(&self) -> BTreeMap<PoolName, Arc<PoolStats>> {
        self.pools.read().clone()
    }

    /// Forgets a pool that was closed.
    pub fn remove_pool(&self, name: &PoolName) {
        self.pools.write().remove(name);
    }

    pub fn leader_read(&self, reason: &'static str) {
        count(&self.leader_reads, reason);
    }

    pub fn refusal(&self, sqlstate: &'static str) {
        count(&self.refusals, sqlstate);
    }

    pub fn rerun(&self, sqlstate: &str) {
        if let Some(counter) = self.reruns.read().get(sqlstate) {
            return counter.add(1);
        }
        self.reruns.write().entry(sqlstate.to_owned()).or_default().add(1);
    }

    pub fn look(&self, result: LookResult) {
        self.looks[result as usize].add(1);
    }

    pub fn looks(&self) -> impl Iterator<Item = (LookResult, u64)> {
        LookResult::ALL.into_iter().map(|result| (result, self.looks[result as usize].value()))
    }

    pub fn latency(&self, took: Duration) {
        add_time(&self.latency_log2_us, &self.latency_us_total, took);
    }

    /// A read has waited for a replica or for the leader's position.
    pub fn read_waited(&self, took: Duration) {
        add_time(&self.read_wait_log2_us, &self.read_wait_us_total, took);
    }

    pub fn event(&self, text: impl Into<String>) {
        let mut events = self.events.lock();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back((SystemTime::now(), text.into()));
    }
}

fn count(map: &RwLock<BTreeMap<&'static str, Arc<Counter>>>, key: &'static str) {
    if let Some(counter) = map.read().get(key) {
        return counter.add(1);
    }
    map.write().entry(key).or_default().add(1);
}

/// Into a coarse log2 histogram of microseconds, and its sum.
fn add_time(log2_us: &[Counter; 32], us_total: &Counter, took: Duration) {
    let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    log2_us[(64 - us.leading_zeros() as usize).min(log2_us.len() - 1)].add(1);
    us_total.add(us);
}
