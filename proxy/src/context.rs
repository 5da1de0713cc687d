//! What all sessions share: snapshots to load, counters to raise, pools to ask.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;
use switchyard_config::Config;
use switchyard_core::route::Loads;
use switchyard_core::session::Judge;
use switchyard_core::sql::{Dialect, Facts, Memo, Verdict};
use switchyard_core::topology::Member;
use switchyard_health::Health;

use crate::auth::Gate;
use crate::clients::Clients;
use crate::pool::Pools;
use crate::stats::{NodeStats, Stats};

/// The router, as a session sees it.
pub(crate) struct Context {
    pub(crate) config: Arc<ArcSwap<Config>>,
    pub(crate) health: Health,
    pub(crate) stats: Arc<Stats>,
    pub(crate) pools: Arc<Pools>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) gate: ArcSwap<Gate>,
    pub(crate) verdicts: Verdicts,
    pub(crate) loads: NodeLoads,
}

/// Verdicts under the current catalog facts.
pub(crate) struct Verdicts {
    pub(crate) memo: Memo,
    pub(crate) facts: ArcSwap<Facts>,
    pub(crate) stats: Arc<Stats>,
}

impl Judge for Verdicts {
    fn verdict(&self, sql: &[u8], standard_conforming_strings: bool, ascii_safe: bool) -> Arc<Verdict> {
        let dialect = Dialect { standard_conforming_strings, client_encoding_is_ascii_safe: ascii_safe };
        let (verdict, _, hit) = self.memo.verdict(sql, &self.facts.load(), dialect);
        if hit { &self.stats.verdict_hits } else { &self.stats.verdict_misses }.add(1);
        verdict
    }
}

/// What each node is busy with: the counters that leases and answers keep.
pub(crate) struct NodeLoads {
    stats: Arc<Stats>,
    known: ArcSwap<FxHashMap<Arc<str>, Arc<NodeStats>>>,
}

impl NodeLoads {
    pub(crate) fn new(stats: Arc<Stats>) -> NodeLoads {
        NodeLoads { stats, known: ArcSwap::default() }
    }

    fn learn(&self, name: &Arc<str>) -> Arc<NodeStats> {
        let stats = self.stats.node(name);
        self.known.rcu(|known| {
            let mut known = FxHashMap::clone(known);
            known.insert(name.clone(), stats.clone());
            known
        });
        stats
    }
}

impl Loads for NodeLoads {
    fn cost(&self, member: &Member) -> f64 {
        let known = self.known.load();
        let cost = |stats: &NodeStats| {
            let ewma_us = stats.ewma_us.load(std::sync::atomic::Ordering::Relaxed).max(50) as f64;
            // The lowest number is the best: expected time, by the statements already there, by what share this member is to have.
            ewma_us * (stats.in_use.value().max(0) + 1) as f64 / f64::from(member.weight.max(1))
        };
        match known.get(&member.name) {
            Some(stats) => cost(stats),
            None => cost(&self.learn(&member.name)),
        }
    }
}
