//! What the mishaps happen to: a cluster with two routers and two HAProxies before it, and the load through either.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use switchyard_tests::cluster::{Seen, Steps, connect};
use switchyard_tests::haproxy::Haproxy;
use switchyard_tests::line::Line;
use switchyard_tests::watch::{Figures, Plan, Watch};
use switchyard_tests::{Cluster, Member, Router, eventually};
use tokio::sync::Mutex;

use crate::mishap::Mishap;

/// For what takes a moment, or a time to live of 20 seconds.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Of load before and after a mishap.
const AROUND: Duration = Duration::from_secs(3);

/// What clients saw, and what Patroni did meanwhile.
pub(crate) struct Measured {
    pub(crate) figures: Figures,
    pub(crate) steps: Seen,
    pub(crate) marks: Vec<(Instant, String)>,
}

/// What stands before the cluster.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) routers: [Router; 2],
    pub(crate) haproxies: [Haproxy; 2],
    pub(crate) synchronous: bool,
    /// How long etcd is down where it is.
    pub(crate) etcd_down: Duration,
    /// Each member's way to etcd, once they go by lines that can be cut.
    pub(crate) lines: Mutex<Vec<(Member, Line)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    Switchyard,
    Haproxy,
}

impl Front {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Front::Switchyard => "Switchyard",
            Front::Haproxy => "HAProxy",
        }
    }
}

impl Stage {
    /// A load through `front` while `mishap` happens; nothing is left of it in the end.
    pub(crate) async fn measure(&self, mishap: Mishap, front: Front, load: (u16, u16, Duration)) -> anyhow::Result<Measured> {
        self.whole().await?;
        self.prepare(mishap).await?;
        self.whole().await?;
        let (write, read) = self.addresses(front)?;
        let (writers, readers, pace) = load;
        let plan = Plan { write: write.clone(), read: vec![read], writers: writers.into(), readers: readers.into(), pace };
        let watch = Watch::start(plan).await?;
        let steps = Steps::watch(&self.cluster).await?;
        tokio::time::sleep(AROUND).await;
        let mut marks = vec![(Instant::now(), "it begins".to_owned())];
        let happens = self.happens(mishap, front).await;
        marks.push((Instant::now(), "and is over".to_owned()));
        // Until a client that connects anew can write, and some seconds more.
        let works = eventually(SOON, "writes go on", || async {
            let client = connect(&write).await?;
            client.batch_execute("CREATE TABLE IF NOT EXISTS alive (); DROP TABLE alive").await?;
            Ok(Some(()))
        });
        let works = works.await;
        tokio::time::sleep(AROUND).await;
        let figures = watch.end(false).await?;
        let mut steps = steps.seen();
        // Its key comes a moment after Patroni was asked for it.
        steps.asked = happens?.or(steps.asked);
        works?;
        self.clean_up(mishap).await?;
        Ok(Measured { figures, steps, marks })
    }

    /// DSNs for writers and readers, each with two hosts, as applications are told of two routers.
    fn addresses(&self, front: Front) -> anyhow::Result<(String, String)> {
        let password = self.cluster.password("app").context("a role without password")?;
        let dsn = |ports: [u16; 2]| {
            let [first, second] = ports;
            format!("host=127.0.0.1,127.0.0.1 port={first},{second} user=app password={password} dbname=postgres connect_timeout=5")
        };
        let pair = |port: fn(&Stage) -> [u16; 2]| dsn(port(self));
        Ok(match front {
            Front::Switchyard => {
                (pair(|stage| [0, 1].map(|at| stage.routers[at].rw_port())), pair(|stage| [0, 1].map(|at| stage.routers[at].ro_port())))
            }
            Front::Haproxy => (
                pair(|stage| [0, 1].map(|at| stage.haproxies[at].write_port())),
                pair(|stage| [0, 1].map(|at| stage.haproxies[at].read_port())),
            ),
        })
    }

    /// The member that may take over without a loss.
    pub(crate) async fn standby(&self) -> anyhow::Result<Member> {
        let leader = self.cluster.leader().await?;
        if !self.synchronous {
            return Ok(self.cluster.replicas().await?.swap_remove(0));
        }
        eventually(SOON, "there is a synchronous standby", || async {
            let sync: serde_json::Value = serde_json::from_str(&self.cluster.key_value("sync").await?.context("no sync key")?)?;
            let standby = sync["sync_standby"].as_str().and_then(|name| self.cluster.named(name));
            let streams = leader.ask("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").await? == "1";
            Ok(standby.filter(|standby| streams && *standby != leader))
        })
        .await
    }

    pub(crate) fn dead(&self) -> anyhow::Result<Vec<Member>> {
        let mut dead = Vec::new();
        for member in self.cluster.members() {
            if member.processes()?.is_empty() {
                dead.push(member);
            }
        }
        Ok(dead)
    }

    /// Every member leads or streams, there is a synchronous standby, and all that stands before them knows.
    pub(crate) async fn whole(&self) -> anyhow::Result<()> {
        if let Some(member) = self.dead()?.first() {
            bail!("{} is dead", member.name());
        }
        self.cluster.settled().await?;
        self.standby().await?;
        for router in &self.routers {
            eventually(SOON, "the routers use every member", || async {
                let state = router.get("/api/v1/cluster").await?.json()?;
                let all = state["cluster"]["replicas_serving"] == 2 && state["cluster"]["state"] == "stable";
                Ok(all.then_some(()))
            })
            .await?;
        }
        for haproxy in &self.haproxies {
            haproxy.ready(&self.cluster).await?;
        }
        Ok(())
    }
}
