//! The router's view of the cluster: etcd, Patroni and SQL probes, folded into [`Topology`] snapshots.
//!
//! Sources (`etcd`, `patroni`, `probe`) only report what they see. The `judge` alone decides who leads and who may serve
//! reads; the `supervisor` runs it and publishes its snapshots.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use switchyard_config::Config;
use switchyard_core::topology::Topology;
use tokio::sync::watch;

mod etcd;
mod judge;
mod keys;
mod lag;
mod observation;
pub mod patroni;
mod probe;
mod supervisor;
mod tempo;
mod tls;

use supervisor::Supervisor;
use tempo::Tempo;

/// A handle on the health tasks. They end with [`Health::shutdown`], or when the last handle is dropped.
#[derive(Clone)]
pub struct Health {
    /// The newest snapshot. Not ready until etcd has been read.
    pub topology: Arc<ArcSwap<Topology>>,
    shared: Arc<Shared>,
}

struct Shared {
    config: watch::Sender<Arc<Config>>,
    drained: watch::Sender<BTreeSet<Arc<str>>>,
    holding: watch::Sender<Option<Instant>>,
    stop: watch::Sender<bool>,
    changed: watch::Receiver<u64>,
    sampled: watch::Receiver<u64>,
    tempo: Arc<Tempo>,
}

/// Starts watching the cluster. Within a tokio runtime.
pub fn start(config: Arc<Config>) -> Health {
    let topology = Arc::new(ArcSwap::from_pointee(Topology::default()));
    let tempo = Arc::new(Tempo::new());
    let config = watch::Sender::new(config);
    let drained = watch::Sender::new(BTreeSet::new());
    let holding = watch::Sender::new(None);
    let stop = watch::Sender::new(false);
    let (changed_sender, changed) = watch::channel(0);
    let (sampled_sender, sampled) = watch::channel(0);
    let supervisor = Supervisor {
        config: config.subscribe(),
        drained: drained.subscribe(),
        holding: holding.subscribe(),
        stop: stop.subscribe(),
        tempo: tempo.clone(),
        topology: topology.clone(),
        changed: changed_sender,
        sampled: sampled_sender,
    };
    tokio::spawn(supervisor.run());
    Health { topology, shared: Arc::new(Shared { config, drained, holding, stop, changed, sampled, tempo }) }
}

impl Health {
    /// Told when leader, epoch, state, the members, or who may serve change. The value is the snapshot's generation.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.clone()
    }

    /// Told at each new sample of any member. The value is the snapshot's generation.
    pub fn sampled(&self) -> watch::Receiver<u64> {
        self.shared.sampled.clone()
    }

    /// Keeps samples coming every `health.busy_interval` for about a second. Cheap: call it whenever one is waited for.
    pub fn demand(&self) {
        self.shared.tempo.demand();
    }

    /// Probes all members now (but never one more often than every 5 ms).
    pub fn poke(&self) {
        self.shared.tempo.poke();
    }

    /// Takes a member out of rotation for reads, until [`Health::resume`]; also one that isn't there yet. Whether it wasn't
    /// out already.
    pub fn drain(&self, member: &str) -> bool {
        self.shared.drained.send_if_modified(|drained| drained.insert(member.into()))
    }

    /// Whether the member had been taken out.
    pub fn resume(&self, member: &str) -> bool {
        self.shared.drained.send_if_modified(|drained| drained.remove(member))
    }

    /// Holds new writes for a switchover ([`ClusterState::Switching`]) until the value is dropped, at most until `until`. It is over with the
    /// leadership that it began in. One at a time: a second one takes the first one's place.
    ///
    /// [`ClusterState::Switching`]: switchyard_core::topology::ClusterState::Switching
    pub fn hold_writes(&self, until: Instant) -> Holding {
        self.shared.holding.send_replace(Some(until));
        Holding { shared: self.shared.clone() }
    }

    /// Takes what may change: limits, intervals, endpoints, credentials. The cluster's scope stays what it was where
    /// `etcd` didn't change.
    pub fn reload(&self, config: Arc<Config>) {
        self.shared.config.send_replace(config);
    }

    /// Stops all tasks. The last snapshot stays readable; its leader expires by itself.
    pub fn shutdown(&self) {
        self.shared.stop.send_replace(true);
    }
}

/// New writes are held. Dropped, they go on.
#[must_use]
pub struct Holding {
    shared: Arc<Shared>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.shared.holding.send_replace(None);
    }
}
