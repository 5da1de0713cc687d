//! Defaults and limits of `workers`, `[pool]`, `[routing]`, `[failover]`, `[health]`, `[limits]` and `[log]`, each with its reason.

use std::time::Duration;

use super::{LONGEST, Resolver, or, place_of, show, text, text_or};
use crate::model::{Consistency, Failover, Health, Limits, Log, LogFormat, Pool, PoolMode, Routing};
use crate::raw::{At, RawFailover, RawHealth, RawLimits, RawLog, RawPool, RawRouting};
use crate::value::{ReadonlyTransactions, Share};

/// More threads than any machine has cores; a typing error rather than a wish.
const WORKERS_MAX: usize = 1024;

/// A transaction pool of this size keeps a server with a dozen cores busy; more connections mostly wait for one another.
const POOL_MAX_SIZE: usize = 20;
/// Connections are opened when they are first needed: idle ones cost the server memory.
const POOL_MIN_SIZE: usize = 0;
/// Below PostgreSQL's own `max_connections` of 100, so that Patroni, replication, backups and people still get in.
const POOL_MAX_PER_NODE: usize = 80;
/// As long as `failover.hold_timeout`: after a failover all waiters come to the pools at once, and a pool that gives up sooner would
/// break what the hold line promised.
const POOL_WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Long enough for the pauses of a busy day, short enough to give a night's connections back.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// A backend's caches grow with every table it has seen; renewing it now and then gives that memory back (as in PgBouncer).
const POOL_MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// What an application with an ORM uses, with room; each costs the server some ten kilobytes.
const POOL_MAX_PREPARED: usize = 500;
/// A look costs a round trip, and the books are to be right without it. Builds for tests look after every return.
pub(crate) const POOL_VERIFY_RETURNS: f64 = if cfg!(debug_assertions) { 1.0 } else { 0.0 };
/// PostgreSQL's own limit for `max_connections` (MAX_BACKENDS, 2^18 - 1).
const CONNECTIONS_MAX: usize = (1 << 18) - 1;

/// One WAL segment of PostgreSQL's default size: a replica that is healthy is never that far behind.
const MAX_LAG_BYTES: u64 = 16 << 20;
/// A batch that fits here is held as a whole and can be decided as one; it is also what the session may buffer per client.
const LOOK_AHEAD_BYTES: u64 = 64 << 10;
/// Distinct statements, literals left out, of a large application; some hundred bytes each.
const VERDICT_CACHE_SIZE: usize = 16_384;

/// Patroni's default `ttl`: a leader that dies keeps its key for at most so long.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);
/// As many as `limits.max_clients`: every client may wait.
const HOLD_MAX: usize = 10_000;
/// Covers the drift of two clocks over one lease, and a scheduler's hiccup.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
/// Patroni renews a lease of `ttl` (at least 20 s) every `loop_wait` (10 s): a larger margin would declare healthy leaders void between
/// two renewals.
const LEASE_MARGIN_MAX: Duration = Duration::from_secs(10);

/// Twice a second: a lag of half a second is noticed, and a probe costs a server well under a millisecond.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);
/// Two rounds of probes at their fastest: one that tells how far the leader is, and one that shows a replica there.
const CONSISTENCY_WAIT: Duration = Duration::from_millis(10);
/// A PostgreSQL that has lost a backend to a crash is back in a second; a leader that is promoted takes longer, often Patroni's `ttl` of 30 s.
const GLOBAL_WITHOUT_LEADER: Duration = Duration::from_secs(2);
/// As fast as probes go: until a replica is known to have caught up, the leader serves reads. A new leader's key comes some 120 ms before it takes
/// writes; held writes should not wait longer than it takes to ask.
const HEALTH_BUSY_INTERVAL: Duration = Duration::from_millis(5);
/// Longer than a checkpoint's or a loaded machine's stutter, shorter than a user's patience.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// With some kilobytes for each, well below what a small machine has; file descriptors are the other limit (two for each, at most).
const MAX_CLIENTS: usize = 10_000;
/// PostgreSQL's `authentication_timeout`.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// PostgreSQL's MAX_STARTUP_PACKET_LENGTH (`src/include/libpq/pqcomm.h`).
const MAX_STARTUP_BYTES: u64 = 10_000;
/// PostgreSQL's MaxAllocSize (`src/include/utils/memutils.h`): it can't hold a longer text either.
const MAX_MESSAGE_BYTES: u64 = 0x3fff_ffff;
/// Twenty times what a server connection keeps: drivers that never close theirs meet a limit before the memory does.
const MAX_PREPARED_PER_CLIENT: usize = 10_000;
/// Below the 30 seconds that Kubernetes gives a pod.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

const ONE_MS: Duration = Duration::from_millis(1);

impl Resolver {
    pub(super) fn workers(&mut self, given: Option<At<usize>>) -> usize {
        // Of the cores that the machine, or the container's CPU limit, grants, the other half is for who is at both ends. Where they share
        // two cores, one thread serves a single client twice as fast as two that wake each other, and 16 clients as fast.
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        self.number("workers", &given, threads, 1..=WORKERS_MAX)
    }

    pub(super) fn pool(&mut self, raw: RawPool) -> Pool {
        let pool = Pool {
            mode: or(raw.mode, PoolMode::Transaction),
            max_size: self.number("pool.max_size", &raw.max_size, POOL_MAX_SIZE, 1..=CONNECTIONS_MAX),
            min_size: self.number("pool.min_size", &raw.min_size, POOL_MIN_SIZE, 0..=CONNECTIONS_MAX),
            max_per_node: self.number("pool.max_per_node", &raw.max_per_node, POOL_MAX_PER_NODE, 1..=CONNECTIONS_MAX),
            wait_timeout: self.time("pool.wait_timeout", &raw.wait_timeout, POOL_WAIT_TIMEOUT, ONE_MS..=LONGEST),
            idle_timeout: self.time("pool.idle_timeout", &raw.idle_timeout, POOL_IDLE_TIMEOUT, Duration::from_secs(1)..=LONGEST),
            max_lifetime: self.time("pool.max_lifetime", &raw.max_lifetime, POOL_MAX_LIFETIME, Duration::from_secs(1)..=LONGEST),
            max_prepared: self.number("pool.max_prepared", &raw.max_prepared, POOL_MAX_PREPARED, 0..=100_000),
            verify_returns: self.share("pool.verify_returns", &raw.verify_returns, POOL_VERIFY_RETURNS),
        };
        if pool.min_size > pool.max_size {
            let place = self.first([place_of(&raw.min_size), place_of(&raw.max_size)]);
            let text = format!("{} is larger than pool.max_size ({})", pool.min_size, pool.max_size);
            self.problem(place, "pool.min_size", text);
        }
        if pool.max_size > pool.max_per_node {
            let place = self.first([place_of(&raw.max_size), place_of(&raw.max_per_node)]);
            let text = format!("{} is larger than pool.max_per_node ({})", pool.max_size, pool.max_per_node);
            self.problem(place, "pool.max_size", text);
        }
        pool
    }

    /// A part of all, from none to the whole.
    fn share(&mut self, key: &str, given: &Option<At<Share>>, default: f64) -> f64 {
        let Some(At { value: Share(share), place }) = given else {
            return default;
        };
        // Not a number is in no range.
        if !(0.0..=1.0).contains(share) {
            self.problem(place.clone(), key, format!("must be from 0.0 to 1.0, not {share}"));
            return default;
        }
        *share
    }

    pub(super) fn routing(&mut self, raw: RawRouting) -> Routing {
        let look_ahead = self.size("routing.look_ahead_bytes", &raw.look_ahead_bytes, LOOK_AHEAD_BYTES, 1 << 10..=64 << 20);
        Routing {
            max_lag_bytes: self.size("routing.max_lag_bytes", &raw.max_lag_bytes, MAX_LAG_BYTES, 0..=1 << 50),
            max_lag: self.time_or_none("routing.max_lag", raw.max_lag, ONE_MS..=LONGEST),
            fallback_to_leader: or(raw.fallback_to_leader, true),
            readonly_transactions_on_replica: or(raw.readonly_transactions, ReadonlyTransactions::Replica) == ReadonlyTransactions::Replica,
            hold_begin: or(raw.hold_begin, true),
            consistency_read_write: or(raw.consistency_read_write, Consistency::Global),
            consistency_read_only: or(raw.consistency_read_only, Consistency::Eventual),
            consistency_wait: self.time(
                "routing.consistency_wait",
                &raw.consistency_wait,
                CONSISTENCY_WAIT,
                Duration::ZERO..=Duration::from_secs(10),
            ),
            global_without_leader: self.time_or(
                "routing.global_without_leader",
                raw.global_without_leader,
                Some(GLOBAL_WITHOUT_LEADER),
                ONE_MS..=LONGEST,
            ),
            look_ahead_bytes: usize::try_from(look_ahead).unwrap_or(usize::MAX),
            verdict_cache_size: self.number("routing.verdict_cache_size", &raw.verdict_cache_size, VERDICT_CACHE_SIZE, 16..=1 << 24),
            zone: text(raw.zone),
        }
    }

    pub(super) fn failover(&mut self, raw: RawFailover) -> Failover {
        Failover {
            hold_timeout: self.time("failover.hold_timeout", &raw.hold_timeout, HOLD_TIMEOUT, Duration::ZERO..=LONGEST),
            hold_max: self.number("failover.hold_max", &raw.hold_max, HOLD_MAX, 0..=1_000_000),
            lease_margin: self.time("failover.lease_margin", &raw.lease_margin, LEASE_MARGIN, Duration::ZERO..=LEASE_MARGIN_MAX),
        }
    }

    pub(super) fn health(&mut self, raw: RawHealth) -> Health {
        let health = Health {
            interval: self.time("health.interval", &raw.interval, HEALTH_INTERVAL, Duration::from_millis(10)..=Duration::from_secs(60)),
            busy_interval: self.time("health.busy_interval", &raw.busy_interval, HEALTH_BUSY_INTERVAL, ONE_MS..=Duration::from_secs(60)),
            timeout: self.time("health.timeout", &raw.timeout, HEALTH_TIMEOUT, Duration::from_millis(10)..=Duration::from_secs(60)),
        };
        if health.busy_interval > health.interval {
            let place = self.first([place_of(&raw.busy_interval), place_of(&raw.interval)]);
            let text = format!("{} is longer than health.interval ({})", show(health.busy_interval), show(health.interval));
            self.problem(place, "health.busy_interval", text);
        }
        health
    }

    pub(super) fn limits(&mut self, raw: RawLimits) -> Limits {
        // PostgreSQL refuses longer startup packets anyway; below 512 bytes an ordinary one may not fit.
        let startup = self.size("limits.max_startup_bytes", &raw.max_startup_bytes, MAX_STARTUP_BYTES, 512..=MAX_STARTUP_BYTES);
        let message = self.size("limits.max_message_bytes", &raw.max_message_bytes, MAX_MESSAGE_BYTES, 64 << 10..=MAX_MESSAGE_BYTES);
        Limits {
            max_clients: self.number("limits.max_clients", &raw.max_clients, MAX_CLIENTS, 1..=1_000_000),
            login_timeout: self.time(
                "limits.login_timeout",
                &raw.login_timeout,
                LOGIN_TIMEOUT,
                Duration::from_secs(1)..=Duration::from_secs(600),
            ),
            max_startup_bytes: usize::try_from(startup).unwrap_or(usize::MAX),
            max_message_bytes: usize::try_from(message).unwrap_or(usize::MAX),
            max_prepared_per_client: self.number(
                "limits.max_prepared_per_client",
                &raw.max_prepared_per_client,
                MAX_PREPARED_PER_CLIENT,
                1..=1_000_000,
            ),
            drain_timeout: self.time("limits.drain_timeout", &raw.drain_timeout, DRAIN_TIMEOUT, Duration::ZERO..=LONGEST),
        }
    }

    pub(super) fn log(&mut self, raw: RawLog) -> Log {
        if let Some(At { value, place }) = &raw.filter
            && let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&value.0)
        {
            let text = format!("expected a filter such as \"info\" or \"switchyard=debug\", found {:?} ({error})", value.0);
            self.problem(place.clone(), "log.filter", text);
        }
        Log {
            filter: text_or(raw.filter, "info"),
            format: or(raw.format, LogFormat::Text),
            slow_query: self.time_or_none("log.slow_query", raw.slow_query, Duration::ZERO..=LONGEST),
        }
    }
}
