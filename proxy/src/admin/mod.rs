//! The HTTP side: what people, Prometheus and load balancers ask the router.
//!
//! Owns the listener of port 18080 and nothing of the data path: it reads [`Stats`] and the current [`Topology`], and decides nothing. What
//! operators ask for goes to [`crate::control`].
//! Invariant: whatever a peer sends or doesn't send costs a bounded amount of memory and a bounded number of connections, and never
//! touches a session.

mod csv;
mod history;
mod metrics;
mod page;
mod ready;
mod routes;
mod server;
mod snapshot;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use switchyard_config::{Config, PoolMode};
use switchyard_core::topology::Topology;

use crate::control::Control;
use crate::decisions::{DecidedView, Unforeseen};
use crate::stats::Stats;
use history::History;

pub use metrics::exposition;
pub use server::serve;
pub use snapshot::Snapshot;

/// What the HTTP side reads. One for all its listeners.
pub struct Admin {
    pub stats: Arc<Stats>,
    pub topology: Arc<ArcSwap<Topology>>,
    pub started: Instant,
    pub version: &'static str,
    /// Replaced when the configuration is reloaded.
    pub summary: ArcSwap<Summary>,
    live: Box<dyn Fn() -> Live + Send + Sync>,
    history: Mutex<History>,
    /// What may be told to do something; the page alone does without.
    control: Option<Arc<Control>>,
}

/// Values that only the running router knows, asked for with each snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Live {
    /// The router is shutting down: running transactions end, new clients are refused.
    pub draining: bool,
    /// Verdicts in the cache.
    pub verdicts_cached: u64,
}

/// The part of the configuration that the page shows. Holds no secret, and nothing that may contain one.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Patroni's scope.
    pub cluster: String,
    /// Addresses as bound, where the caller knows them.
    pub read_write: Vec<SocketAddr>,
    pub read_only: Vec<SocketAddr>,
    pub max_clients: usize,
    pub pool_mode: &'static str,
    pub pool_max_size: usize,
    pub pool_max_per_node: usize,
    pub max_lag_bytes: u64,
    pub max_lag: Option<Duration>,
    pub hold_timeout: Duration,
    pub hold_max: usize,
    pub fallback_to_leader: bool,
    pub consistency_read_write: &'static str,
    pub consistency_read_only: &'static str,
}

/// Answers `/api/v1/statements`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Statements {
    /// Those that came most often first.
    pub statements: Vec<DecidedView>,
    pub unforeseen: Vec<Unforeseen>,
    /// All of them, also those that are not listed.
    pub unforeseen_total: u64,
}

impl Summary {
    pub fn of(config: &Config) -> Summary {
        Summary {
            cluster: config.cluster.scope.clone(),
            read_write: config.listen.read_write.clone(),
            read_only: config.listen.read_only.clone(),
            max_clients: config.limits.max_clients,
            pool_mode: match config.pool.mode {
                PoolMode::Transaction => "transaction",
                PoolMode::Session => "session",
            },
            pool_max_size: config.pool.max_size,
            pool_max_per_node: config.pool.max_per_node,
            max_lag_bytes: config.routing.max_lag_bytes,
            max_lag: config.routing.max_lag,
            hold_timeout: config.failover.hold_timeout,
            hold_max: config.failover.hold_max,
            fallback_to_leader: config.routing.fallback_to_leader,
            consistency_read_write: config.routing.consistency_read_write.as_str(),
            consistency_read_only: config.routing.consistency_read_only.as_str(),
        }
    }
}

impl Admin {
    /// `live` is called for each snapshot: it must not block.
    pub fn new(
        stats: Arc<Stats>,
        topology: Arc<ArcSwap<Topology>>,
        summary: Summary,
        live: impl Fn() -> Live + Send + Sync + 'static,
    ) -> Admin {
        Admin {
            stats,
            topology,
            started: Instant::now(),
            version: env!("CARGO_PKG_VERSION"),
            summary: ArcSwap::from_pointee(summary),
            live: Box::new(live),
            history: Mutex::new(History::default()),
            control: None,
        }
    }

    /// Takes jobs for `control` from now on.
    pub(crate) fn with_control(self, control: Control) -> Admin {
        Admin { control: Some(Arc::new(control)), ..self }
    }

    /// What was decided of late, by statement, and what only a replica's refusal told.
    pub fn statements(&self) -> Statements {
        let decisions = &self.stats.decisions;
        Statements {
            statements: decisions.now(),
            unforeseen: decisions.unforeseen_now(),
            unforeseen_total: decisions.unforeseen_total.value(),
        }
    }

    /// Everything that the page, the API, the CSV and the metrics show, as of now.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_at(Instant::now(), SystemTime::now())
    }

    pub(crate) fn snapshot_at(&self, now: Instant, wall: SystemTime) -> Snapshot {
        let rates = self.history.lock().rates(now, &self.stats);
        snapshot::take(&snapshot::Sources {
            stats: &self.stats,
            topology: &self.topology.load(),
            summary: &self.summary.load(),
            live: (self.live)(),
            rates: rates.as_ref(),
            version: self.version,
            started: self.started,
            now,
            wall,
        })
    }
}
