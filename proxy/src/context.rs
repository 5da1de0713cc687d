//! What all sessions share: snapshots to load, counters to raise, pools to ask.

use std::cell::RefCell;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;
use switchyard_config::Config;
use switchyard_core::balance::Load;
use switchyard_core::causal::Level;
use switchyard_core::route::Loads;
use switchyard_core::session::{Judge, StatementId};
use switchyard_core::sql::catalog::Suspicion;
use switchyard_core::sql::{Dialect, Effect, Facts, Memo, PinReason, Verdict};
use switchyard_core::topology::Member;
use switchyard_health::Health;

use crate::auth::Gate;
use crate::clients::Clients;
use crate::departures::Departures;
use crate::facts::{Database, Databases};
use crate::pool::Pools;
use crate::rules::{Rules, SessionRules};
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
    pub(crate) departures: Departures,
}

/// Verdicts under the current catalog facts of each database.
pub(crate) struct Verdicts {
    pub(crate) memo: Memo,
    pub(crate) databases: Arc<Databases>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) rules: Rules,
}

impl Verdicts {
    /// Verdicts for a session in `database`. `application`: its `application_name`, where its rules ask for one.
    /// `alone_in` gets the databases that what is about to run wants for itself.
    pub(crate) fn of<'a>(
        &'a self,
        database: &'a Database,
        rules: &'a SessionRules,
        application: Option<Box<[u8]>>,
        alone_in: &'a RefCell<Vec<Arc<str>>>,
    ) -> DatabaseVerdicts<'a> {
        DatabaseVerdicts { verdicts: self, database, rules, application, alone_in }
    }
}

/// The judge of sessions in one database.
pub(crate) struct DatabaseVerdicts<'a> {
    verdicts: &'a Verdicts,
    database: &'a Database,
    rules: &'a SessionRules,
    application: Option<Box<[u8]>>,
    alone_in: &'a RefCell<Vec<Arc<str>>>,
}

impl DatabaseVerdicts<'_> {
    /// What the statement may do to facts is noted before a server gets it, so that no verdict rests on what it has
    /// made void.
    fn note_ddl(&self, verdict: &Verdict) {
        if !verdict.mentions.is_empty() {
            self.database.mention(&verdict.mentions);
        }
        match ddl(verdict) {
            Ddl::None => {}
            Ddl::Adds => self.database.ddl_passed(false),
            Ddl::Changes => self.database.ddl_passed(true),
        }
    }
}

impl Judge for DatabaseVerdicts<'_> {
    fn verdict(&self, sql: &[u8], standard_conforming_strings: bool, ascii_safe: bool) -> Arc<Verdict> {
        let dialect = Dialect { standard_conforming_strings, client_encoding_is_ascii_safe: ascii_safe };
        let (verdict, _, hit) = self.verdicts.memo.verdict(sql, &self.database.facts(), dialect);
        if hit { &self.verdicts.stats.verdict_hits } else { &self.verdicts.stats.verdict_misses }.add(1);
        self.rules.apply(verdict, sql, self.application.as_deref())
    }

    fn about_to_run(&self, verdict: &Verdict) {
        self.note_ddl(verdict);
        for effect in &verdict.effects {
            if let Effect::AloneIn { database } = effect {
                self.alone_in.borrow_mut().push(database.clone());
            }
        }
    }

    fn asked_to_run(&self, verdict: &Verdict) {
        self.note_ddl(verdict);
    }

    fn generation(&self) -> u64 {
        self.database.generation()
    }

    fn highest_ruled(&self) -> Level {
        self.rules.highest_level()
    }

    fn bad_value(&self) -> Option<&'static str> {
        self.database.facts().bad_value()
    }

    fn value_suspicion(&self) -> Suspicion {
        self.database.facts().value_suspicion()
    }

    fn custom_settings(&self) -> Arc<[Arc<str>]> {
        self.database.custom_settings()
    }

    fn grounds(&self) -> Vec<String> {
        let facts = self.database.facts();
        vec![format!("Facts: {}", describe(&facts))]
    }

    fn shape(&self) -> u64 {
        self.database.shape()
    }

    fn outdate(&self, statement: StatementId) {
        self.database.outdate(statement);
    }

    fn is_outdated(&self, statement: StatementId) -> bool {
        self.database.is_outdated(statement)
    }
}

/// What is known of a database, in words.
pub(crate) fn describe(facts: &Facts) -> String {
    let state = if !facts.is_complete() {
        "none yet: functions of the database's own count as writes"
    } else if facts.is_in_doubt() {
        "in doubt, as DDL has passed: what is the database's own counts as a write"
    } else {
        "as the leader's catalogs say"
    };
    format!("{state} (generation {})", facts.generation())
}

/// What a statement may do to facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ddl {
    None,
    /// New names, which are the leader's until they are known.
    Adds,
    Changes,
}

fn ddl(verdict: &Verdict) -> Ddl {
    if !verdict.effects.contains(&Effect::Ddl) {
        return Ddl::None;
    }
    // Seen by their own session only, which stays on its server.
    let temporary = |effect: &Effect| matches!(effect, Effect::Pin(PinReason::TempTable) | Effect::TempTable { .. });
    let seen = |effects: &[Effect]| effects.contains(&Effect::Ddl) && !effects.iter().any(temporary);
    if !(0..verdict.statements).any(|statement| seen(verdict.effects_of(statement))) {
        return Ddl::None;
    }
    if verdict.statements > 1 {
        return Ddl::Changes;
    }
    match verdict.command {
        "COMMENT"
        | "GRANT"
        | "GRANT ROLE"
        | "REVOKE"
        | "REVOKE ROLE"
        | "SECURITY LABEL"
        | "REFRESH MATERIALIZED VIEW"
        | "CREATE INDEX"
        | "ALTER INDEX"
        | "DROP INDEX"
        | "CREATE ROLE"
        | "ALTER ROLE"
        | "DROP ROLE"
        | "CREATE DATABASE"
        | "DROP DATABASE"
        | "CREATE STATISTICS"
        | "ALTER STATISTICS"
        | "DROP STATISTICS"
        | "ALTER SYSTEM"
        | "CREATE TABLESPACE"
        | "DROP TABLESPACE" => Ddl::None,
        "CREATE TABLE" | "CREATE TABLE AS" | "SELECT INTO" | "CREATE SEQUENCE" | "CREATE MATERIALIZED VIEW" => Ddl::Adds,
        _ => Ddl::Changes,
    }
}

/// From so many sessions on that use the leader within a twentieth of a second, reads rather wait for replicas than add to its work.
const CROWD: u32 = 8;

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
            let statements = u64::try_from(stats.in_use.value() + stats.waiting.value()).unwrap_or(0);
            Load { expected_us: stats.expected_us(), statements, weight: member.weight, up: member.since.elapsed() }.cost()
        };
        match known.get(&member.name) {
            Some(stats) => cost(stats),
            None => cost(&self.learn(&member.name)),
        }
    }

    fn is_busy(&self, member: &Member) -> bool {
        let crowded = |stats: &NodeStats| stats.sessions.count() >= CROWD;
        match self.known.load().get(&member.name) {
            Some(stats) => crowded(stats),
            None => crowded(&self.learn(&member.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use switchyard_core::sql::classify;

    use super::*;

    #[test]
    fn what_is_temporary_leaves_the_facts_alone() {
        let of = |sql: &str| ddl(&classify(sql.as_bytes(), &Facts::empty(), Dialect::default()));
        for sql in ["CREATE TEMP TABLE a (i int)", "CREATE TEMP TABLE a (i int); LISTEN b; SELECT 1", "SELECT 1; SELECT 2"] {
            assert_eq!(of(sql), Ddl::None, "{sql}");
        }
        assert_eq!(of("CREATE TABLE a (i int)"), Ddl::Adds);
        for sql in ["CREATE TEMP TABLE a (i int); CREATE VIEW b AS SELECT 1", "DROP TABLE a", "SELECT 1; DROP TABLE a"] {
            assert_eq!(of(sql), Ddl::Changes, "{sql}");
        }
    }
}
