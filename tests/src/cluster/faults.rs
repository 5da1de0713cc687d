//! What can be done to a running cluster.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Cluster, Member, START};
use crate::http;
use crate::wait::eventually;

/// For Patroni to notice a change of its configuration, and for PostgreSQL to be restarted if it must.
const RECONFIGURE: Duration = Duration::from_secs(30);

impl Cluster {
    /// `kill -9` of the leader's Patroni and PostgreSQL. Its key stays until the ttl of 20 seconds is over: see
    /// [`expire_leader`](Cluster::expire_leader) for the impatient.
    pub async fn kill_leader(&self) -> anyhow::Result<Member> {
        let leader = self.leader().await?;
        leader.kill().await?;
        Ok(leader)
    }

    /// Ends the lease of the leader key now, as etcd does when a leader hasn't renewed it for the ttl: the key is deleted, and the others
    /// race for it.
    pub async fn expire_leader(&self) -> anyhow::Result<()> {
        let mut etcd = self.etcd.client().await?;
        let answer = etcd.get(self.key("leader"), None).await?;
        let lease = answer.kvs().first().context("there is no leader key")?.lease();
        etcd.lease_revoke(lease).await?;
        Ok(())
    }

    /// A planned change of leader, by Patroni's REST API. Done when `to` takes writes.
    pub async fn switchover(&self, to: &Member) -> anyhow::Result<()> {
        let leader = self.leader().await?;
        let request = json!({ "leader": leader.name(), "candidate": to.name() });
        let response = http::post(&format!("{}/switchover", leader.rest_url()), &request).await?;
        if response.status != 200 {
            bail!("switchover to {}: {} {}", to.name(), response.status, response.body);
        }
        eventually(START, &format!("{} leads", to.name()), || async { Ok(self.leader_now().await?.filter(|leader| leader == to)) }).await?;
        Ok(())
    }

    /// Ends a member in order: Patroni stops PostgreSQL, and gives back the leader key if it has it.
    pub async fn stop(&self, member: &Member) -> anyhow::Result<()> {
        member.terminate().await
    }

    /// Starts a member that was stopped or killed. Done when it leads or streams.
    pub async fn start_member(&self, member: &Member) -> anyhow::Result<()> {
        member.launch()?;
        self.up(member).await
    }

    /// Starts a member that was stopped, with etcd at `address`. Done when it leads or streams.
    pub async fn start_member_by(&self, member: &Member, address: &str) -> anyhow::Result<()> {
        member.launch_by(address)?;
        self.up(member).await
    }

    /// One more member, with tags such as `json!({ "nofailover": true })`. Done when it streams.
    pub async fn add_member(&self, tags: Value) -> anyhow::Result<Member> {
        let index = self.members().len();
        let member = self.make_member(index)?;
        member.launch_with(|settings| settings["tags"] = tags)?;
        self.up(&member).await?;
        Ok(member)
    }

    /// Lets a replica replay each commit only when it is this old; zero ends the delay. Done when PostgreSQL says so.
    ///
    /// By Patroni's `recovery_conf`: an ALTER SYSTEM would be undone within seconds.
    pub async fn delay_replay(&self, member: &Member, delay: Duration) -> anyhow::Result<()> {
        let wanted = delay.as_millis().to_string();
        member.reconfigure(|settings| {
            settings["postgresql"]["recovery_conf"] = json!({ "recovery_min_apply_delay": format!("{wanted}ms") })
        })?;
        let query = "SELECT setting FROM pg_settings WHERE name = 'recovery_min_apply_delay'";
        eventually(RECONFIGURE, &format!("{} delays its replay by {delay:?}", member.name()), || async {
            Ok((member.ask(query).await? == wanted).then_some(()))
        })
        .await
    }

    /// `kill -9` of etcd. Its data stay.
    pub fn etcd_stop(&self) -> anyhow::Result<()> {
        self.etcd.stop()
    }

    pub async fn etcd_start(&self) -> anyhow::Result<()> {
        self.etcd.start().await
    }

    async fn up(&self, member: &Member) -> anyhow::Result<()> {
        let leader = self.leader().await?;
        if leader == *member { Ok(()) } else { self.joined(member).await }
    }
}
