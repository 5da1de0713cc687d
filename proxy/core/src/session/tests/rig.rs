//! A cluster of a leader and replicas that exists in a topology snapshot only, and the judge that the router uses.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;

use super::super::{Access, Env, Judge, Policy, StatementId, Voices};
use crate::causal::Level;
use crate::lsn::{Lsn, Timeline};
use crate::marks::{ClusterMark, Marks, Touched};
use crate::route::Loads;
use crate::sql::catalog::RelationFact;
use crate::sql::{Class, Dialect, Facts, Fingerprint, Unseen, Verdict, classify};
use crate::topology::{ClusterState, Epoch, Leader, Member, Probed, Role, Sample, Topology};

pub(super) struct Rig {
    pub(super) now: Instant,
    pub(super) topology: Topology,
    pub(super) policy: Policy,
    pub(super) judge: Real,
    pub(super) random: u64,
    pub(super) marks: Marks,
}

struct Even;
impl Loads for Even {
    fn cost(&self, _: &Member) -> f64 {
        1.0
    }

    fn is_busy(&self, _: &Member) -> bool {
        true
    }
}

struct Two;
impl Voices for Two {
    fn told(&self, pid: i32) -> Option<i32> {
        (pid == 2).then_some(22)
    }
}

/// The router's own judge, by these facts.
pub(super) struct Real {
    facts: Facts,
    pub(super) shape: Cell<u64>,
    /// Whether what isn't proven to leave nothing is looked at; else the facts, which know nothing, would have everything looked at.
    pub(super) looks: bool,
    /// The commands of what leaders were about to be sent to be run, and of what Execute has asked for.
    pub(super) ran: RefCell<Vec<&'static str>>,
    pub(super) asked: RefCell<Vec<&'static str>>,
    outdated: RefCell<FxHashSet<StatementId>>,
}

impl Judge for Real {
    fn verdict(&self, sql: &[u8], standard_conforming_strings: bool, client_encoding_is_ascii_safe: bool) -> Arc<Verdict> {
        let mut verdict = classify(sql, &self.facts, Dialect { standard_conforming_strings, client_encoding_is_ascii_safe });
        // As a memo's, it tells how the text was read.
        verdict.fingerprint = Fingerprint(u128::from(standard_conforming_strings));
        if !self.looks {
            // A row of the model shows a custom setting.
            let sees_statements = ["pg_prepared_statements", "execute"].iter().any(|name| String::from_utf8_lossy(sql).contains(name));
            verdict.unseen = Unseen { sees_settings: true, sees_statements, ..Unseen::default() };
        }
        Arc::new(verdict)
    }

    fn about_to_run(&self, verdict: &Verdict) {
        self.ran.borrow_mut().push(verdict.command);
    }

    fn asked_to_run(&self, verdict: &Verdict) {
        self.asked.borrow_mut().push(verdict.command);
    }

    fn shape(&self) -> u64 {
        self.shape.get()
    }

    fn outdate(&self, statement: StatementId) {
        self.outdated.borrow_mut().insert(statement);
    }

    fn is_outdated(&self, statement: StatementId) -> bool {
        self.outdated.borrow().contains(&statement)
    }

    fn generation(&self) -> u64 {
        self.facts.generation()
    }

    fn bad_value(&self) -> Option<&'static str> {
        Some("volatile")
    }
}

/// The virtual clock's zero: only differences count.
#[expect(clippy::disallowed_methods, reason = "an instant can't be made from nothing")]
fn zero() -> Instant {
    Instant::now()
}

impl Rig {
    pub(super) fn new(access: Access) -> Rig {
        let mut rig = Rig {
            now: zero(),
            topology: Topology::default(),
            policy: Policy {
                access,
                level: if access == Access::ReadWrite { Level::Session } else { Level::Eventual },
                consistency_wait: Duration::ZERO,
                settle_wait: Duration::from_secs(30),
                hold_begin: true,
                readonly_on_replica: true,
                fallback_to_leader: true,
                session_mode: false,
                look_ahead_bytes: 64 * 1024,
                max_message_bytes: 1024 * 1024,
                max_statements: 100,
                verify_returns: 0.0,
                zone: None,
            },
            judge: Real {
                facts: Facts::empty(),
                looks: false,
                shape: Cell::default(),
                ran: RefCell::default(),
                asked: RefCell::default(),
                outdated: RefCell::default(),
            },
            random: 0,
            marks: Marks::new(ClusterMark::new(zero()), zero()),
        };
        rig.cluster(Some(("l", 1)), &["r1", "r2"]);
        rig
    }

    pub(super) fn know(&mut self, facts: Facts) {
        self.judge.facts = facts;
    }

    /// Tables that are known, so that verdicts tell them apart.
    pub(super) fn know_tables(&mut self, generation: u64, tables: &[&str]) {
        let fact = |name: &&str| RelationFact {
            schema: "public".into(),
            class: Class::Read,
            rule: "table",
            reads: Touched::relation(name),
            writes: Touched::relation(name),
        };
        let builder = tables.iter().fold(Facts::builder(generation), |facts, table| facts.relation(table, fact(table)));
        self.judge.facts = builder.complete().build();
    }

    /// The members in force: a leader with its epoch, and replicas that have replayed nothing yet.
    pub(super) fn cluster(&mut self, leader: Option<(&str, u64)>, replicas: &[&str]) {
        let mut names: Vec<&str> = replicas.to_vec();
        names.extend(leader.map(|(name, _)| name));
        names.sort_unstable();
        self.topology.members =
            names.iter().map(|name| Arc::new(self.member(name, leader.is_none_or(|(leader, _)| leader != *name)))).collect();
        let epoch = leader.map_or(self.topology.epoch, |(_, epoch)| Epoch(epoch));
        if epoch != self.topology.epoch {
            self.topology.samples = Arc::default();
        }
        (self.topology.epoch, self.topology.sampled_in) = (epoch, epoch);
        self.topology.state = if leader.is_some() { ClusterState::Stable } else { ClusterState::Leaderless };
        self.topology.leader = leader.map(|(leader, _)| Leader {
            member: names.iter().position(|name| *name == leader).expect("among them"),
            epoch,
            timeline: Timeline(1),
            valid_until: self.now + Duration::from_secs(1_000_000),
            standby_cluster: false,
            failsafe: false,
        });
    }

    fn member(&self, name: &str, in_recovery: bool) -> Member {
        Member {
            name: name.into(),
            host: "127.0.0.1".into(),
            port: 5432,
            api_url: None,
            role: if in_recovery { Role::Replica } else { Role::Leader },
            patroni_state: "running".into(),
            weight: 100,
            zone: None,
            probed: Some(Probed {
                sent_at: self.now,
                in_recovery,
                replay_lsn: Lsn(0),
                timeline: Some(Timeline(1)),
                round_trip: Duration::from_millis(1),
                started_at_unix_seconds: 1.0,
                version_num: 150_000,
                clock_offset_ms: 0.0,
            }),
            probe_error: None,
            since: self.now,
            lag_bytes: Some(0),
            lag: None,
            out: None,
            fork: None,
        }
    }

    /// A millisecond later, the leader is asked and all replicas have replayed what it says.
    pub(super) fn catch_up(&mut self) {
        self.now += Duration::from_millis(1);
        let lsn = Lsn(self.topology.samples.last().map_or(1, |sample| sample.insert_lsn.0 + 1));
        self.topology.samples = [Sample { sent_at: self.now, insert_lsn: lsn, flush_lsn: lsn, settled_at: None }].into();
        for member in &mut self.topology.members {
            if let Some(probed) = &mut Arc::make_mut(member).probed {
                probed.replay_lsn = lsn;
            }
        }
        self.now += Duration::from_millis(1);
    }

    /// A millisecond later, the leader is asked: it has written more, and no replica has replayed that.
    pub(super) fn ask_leader(&mut self) {
        self.now += Duration::from_millis(1);
        let lsn = Lsn(self.topology.samples.last().map_or(1, |sample| sample.insert_lsn.0 + 1));
        let sample = Sample { sent_at: self.now, insert_lsn: lsn, flush_lsn: lsn, settled_at: None };
        self.topology.samples = self.topology.samples.iter().copied().chain([sample]).collect();
        self.now += Duration::from_millis(1);
    }

    /// A millisecond later, the leader is asked, and a commit has been waiting for its synchronous standby for so many milliseconds.
    pub(super) fn sync_wait(&mut self, ms: u64) {
        self.ask_leader();
        let mut samples = self.topology.samples.to_vec();
        let settled = |sample: &Sample| sample.sent_at - Duration::from_millis(ms);
        samples.iter_mut().for_each(|sample| sample.settled_at = Some(settled(sample)));
        self.topology.samples = samples.into();
    }

    pub(super) fn env(&mut self) -> Env<'_> {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (now, random) = (self.now, self.random >> 33);
        Env {
            now,
            topology: &self.topology,
            loads: &Even,
            judge: &self.judge,
            marks: &self.marks,
            policy: &self.policy,
            voices: &Two,
            random,
        }
    }
}
