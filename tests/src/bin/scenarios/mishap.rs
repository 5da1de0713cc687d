//! The mishaps: what each does to the cluster, or to what stands before it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use switchyard_tests::line::Line;
use switchyard_tests::{Member, Router, eventually, http};
use tokio::time::sleep;

use crate::stage::{Front, SOON, Stage};

/// For health checks of every kind to notice.
const NOTICED: Duration = Duration::from_secs(10);
/// While both an old leader that is back and the new one could be written to.
const BESIDE: Duration = Duration::from_secs(5);
/// As a virtual machine may be stopped.
const STOPPED: Duration = Duration::from_secs(60);
/// etcd away before the leader is killed too, and after.
const HEADLESS: Duration = Duration::from_secs(15);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    OwnSwitchover,
    Switchover,
    LeaderKilled,
    ReplicaKilled,
    RollingRestart,
    LeaderStopped,
    PatroniKilled,
    CutOff,
    EtcdDown,
    EtcdDownFailsafe,
    EtcdDownLeaderKilled,
    RouterStopped,
}

impl Mishap {
    pub(crate) const ALL: [Mishap; 12] = [
        Mishap::OwnSwitchover,
        Mishap::Switchover,
        Mishap::LeaderKilled,
        Mishap::ReplicaKilled,
        Mishap::RollingRestart,
        Mishap::LeaderStopped,
        Mishap::PatroniKilled,
        Mishap::CutOff,
        Mishap::EtcdDown,
        Mishap::EtcdDownFailsafe,
        Mishap::EtcdDownLeaderKilled,
        Mishap::RouterStopped,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Mishap::OwnSwitchover => "switchover by `switchyard switchover`",
            Mishap::Switchover => "switchover by Patroni (patronictl)",
            Mishap::LeaderKilled => "kill -9 of the leader",
            Mishap::ReplicaKilled => "kill -9 of a replica",
            Mishap::RollingRestart => "rolling restart of all",
            Mishap::LeaderStopped => "SIGSTOP of the leader, until 5 s after another leads",
            Mishap::PatroniKilled => "kill -9 of the leader's Patroni alone",
            Mishap::CutOff => "the leader is cut off from etcd",
            Mishap::EtcdDown => "etcd down",
            Mishap::EtcdDownFailsafe => "etcd down, failsafe_mode on",
            Mishap::EtcdDownLeaderKilled => "etcd down, and kill -9 of the leader",
            Mishap::RouterStopped => "SIGSTOP of a router for a minute, over a switchover",
        }
    }

    /// HAProxy has no switchover of its own, and isn't the one to be stopped.
    pub(crate) fn concerns(self, front: Front) -> bool {
        front == Front::Switchyard || !matches!(self, Mishap::OwnSwitchover | Mishap::RouterStopped)
    }
}

impl Stage {
    /// What must be so before the load begins.
    pub(crate) async fn prepare(&self, mishap: Mishap) -> anyhow::Result<()> {
        match mishap {
            Mishap::CutOff => self.by_lines().await,
            Mishap::EtcdDownFailsafe => self.failsafe(true).await,
            _ => Ok(()),
        }
    }

    pub(crate) async fn clean_up(&self, mishap: Mishap) -> anyhow::Result<()> {
        for member in self.dead()? {
            self.cluster.start_member(&member).await?;
        }
        if mishap == Mishap::EtcdDownFailsafe { self.failsafe(false).await } else { Ok(()) }
    }

    /// When Patroni was asked, where the router asked it.
    pub(crate) async fn happens(&self, mishap: Mishap, front: Front) -> anyhow::Result<Option<Instant>> {
        let cluster = &self.cluster;
        let done = match mishap {
            Mishap::OwnSwitchover => return self.own_switchover().await.map(Some),
            Mishap::Switchover => cluster.switchover(&self.standby().await?).await,
            Mishap::LeaderKilled => {
                let old = cluster.kill_leader().await?;
                // Its key is left to end by itself.
                cluster.new_leader(&old).await.map(drop)
            }
            Mishap::ReplicaKilled => {
                let replica = cluster.replicas().await?.swap_remove(0);
                replica.kill().await?;
                sleep(NOTICED).await;
                Ok(())
            }
            Mishap::RollingRestart => self.rolling_restart(front).await,
            Mishap::LeaderStopped => {
                let old = cluster.leader().await?;
                old.pause().await?;
                let new = cluster.new_leader(&old).await;
                sleep(BESIDE).await;
                old.resume()?;
                new?;
                self.follows(&old).await
            }
            Mishap::PatroniKilled => {
                let old = cluster.leader().await?;
                old.kill_patroni()?;
                let new = cluster.new_leader(&old).await;
                sleep(BESIDE).await;
                // Its PostgreSQL has gone on. Patroni would take it back in order, but not with commits that wait for a standby.
                old.kill().await?;
                new.map(drop)
            }
            Mishap::CutOff => {
                let old = cluster.leader().await?;
                let lines = self.lines.lock().await;
                let (_, line) = lines.iter().find(|(member, _)| *member == old).context("the leader's line to etcd")?;
                line.cut();
                let new = cluster.new_leader(&old).await;
                sleep(BESIDE).await;
                line.mend();
                new?;
                self.follows(&old).await
            }
            Mishap::EtcdDown | Mishap::EtcdDownFailsafe => {
                cluster.etcd_stop()?;
                sleep(self.etcd_down).await;
                cluster.etcd_start().await?;
                cluster.leader().await.map(drop)
            }
            Mishap::EtcdDownLeaderKilled => {
                let leader = cluster.leader().await?;
                cluster.etcd_stop()?;
                sleep(HEADLESS / 3).await;
                leader.kill().await?;
                sleep(HEADLESS).await;
                cluster.etcd_start().await?;
                cluster.leader().await.map(drop)
            }
            Mishap::RouterStopped => {
                let [router, _] = &self.routers;
                router.pause().await?;
                let stopped = tokio::time::Instant::now();
                let done = match self.standby().await {
                    Ok(standby) => cluster.switchover(&standby).await,
                    Err(error) => Err(error),
                };
                tokio::time::sleep_until(stopped + STOPPED).await;
                router.resume()?;
                done
            }
        };
        done.map(|()| None)
    }

    /// When Patroni was asked.
    async fn own_switchover(&self) -> anyhow::Result<Instant> {
        let [router, _] = &self.routers;
        let said = router.order(&["switchover", "--to", self.standby().await?.name()]).await?;
        let ended = Instant::now();
        print!("{}", said.text);
        ensure!(said.done, "the switchover failed");
        let seconds = |line: &str| line.trim().split(' ').next().and_then(|seconds| seconds.parse::<f64>().ok());
        let asked = said.text.lines().find(|line| line.contains("asking Patroni")).and_then(seconds);
        let last = said.text.lines().last().and_then(seconds);
        let since = asked.zip(last).map(|(asked, last)| last - asked).context("lines with times")?;
        Ok(ended - Duration::from_secs_f64(since.max(0.0)))
    }

    /// Replicas, then a switchover, then the old leader, then what stands before them, one after the other.
    async fn rolling_restart(&self, front: Front) -> anyhow::Result<()> {
        let leader = self.cluster.leader().await?;
        for replica in self.cluster.replicas().await? {
            self.restart_replica(front, &replica).await?;
        }
        self.whole().await?;
        match front {
            Front::Switchyard => self.own_switchover().await.map(drop)?,
            Front::Haproxy => self.cluster.switchover(&self.standby().await?).await?,
        }
        self.follows(&leader).await?;
        self.restart_replica(front, &leader).await?;
        match front {
            Front::Switchyard => {
                for router in &self.routers {
                    router.stop().await?;
                    router.start_again().await?;
                }
            }
            Front::Haproxy => {
                for haproxy in &self.haproxies {
                    haproxy.restart(&self.cluster).await?;
                }
            }
        }
        Ok(())
    }

    /// As an operator does it: taken out of rotation first, where that can be done.
    async fn restart_replica(&self, front: Front, replica: &Member) -> anyhow::Result<()> {
        let routers: &[Router] = if front == Front::Switchyard { &self.routers } else { &[] };
        order(routers, "drain", replica).await?;
        self.cluster.stop(replica).await?;
        self.cluster.start_member(replica).await?;
        order(routers, "resume", replica).await
    }

    async fn follows(&self, old: &Member) -> anyhow::Result<()> {
        eventually(SOON, "the old leader follows", || async { Ok(old.is_in_recovery().await?.then_some(())) }).await
    }

    /// Every member reaches etcd by a line of its own.
    async fn by_lines(&self) -> anyhow::Result<()> {
        let mut lines = self.lines.lock().await;
        if !lines.is_empty() {
            return Ok(());
        }
        let first = self.cluster.leader().await?;
        let mut members = self.cluster.replicas().await?;
        members.push(first.clone());
        for member in members {
            if member == first {
                self.whole().await?;
                self.cluster.switchover(&self.standby().await?).await?;
                self.follows(&member).await?;
            }
            let line = Line::to(self.cluster.etcd().address().as_str()).await?;
            self.cluster.stop(&member).await?;
            self.cluster.start_member_by(&member, line.address()).await?;
            lines.push((member, line));
        }
        Ok(())
    }

    async fn failsafe(&self, on: bool) -> anyhow::Result<()> {
        let url = format!("{}/config", self.cluster.leader().await?.rest_url());
        let answer = http::patch(&url, &json!({ "failsafe_mode": on })).await?;
        ensure!(answer.status == 200, "{}", answer.body);
        if !on {
            return Ok(());
        }
        // The leader announces whom it would ask; it never takes that back.
        eventually(SOON, "failsafe mode is on", || async { Ok(self.cluster.key_value("failsafe").await?.map(drop)) }).await
    }
}

async fn order(routers: &[Router], command: &str, member: &Member) -> anyhow::Result<()> {
    for router in routers {
        router.obey(&[command, member.name()]).await?;
    }
    Ok(())
}
