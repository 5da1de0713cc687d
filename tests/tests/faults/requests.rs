//! Switchovers that Patroni is asked for behind the router's back: one for later, and one that comes to nothing.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;
use switchyard_tests::load::Load;
use switchyard_tests::{Cluster, Result, Router, eventually, http};

use super::{SOON, sync_standby, whole};

/// Statements of each session that count as "it goes on".
const ON: u64 = 30;
/// From the request to the time that it names.
const LATER: &str = "4s";
/// Patroni looks at a request once a `loop_wait` (1 s), and the key of one that it doesn't follow is gone then.
const REJECTED: Duration = Duration::from_secs(3);

/// Writes go on until the time has come, and wait then.
pub(crate) async fn scheduled(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    Load::prepare(cluster).await?;
    let (old, new) = (cluster.leader().await?, sync_standby(cluster).await?);
    let load = Load::start(router, 2, 2).await?;
    load.goes_on(ON, SOON).await?;
    let at = old.ask(&format!("SELECT to_char(now() + interval '{LATER}', 'YYYY-MM-DD\"T\"HH24:MI:SS.MSOF')")).await?;
    let request = json!({ "leader": old.name(), "candidate": new.name(), "scheduled_at": at });
    let answer = http::post(&format!("{}/switchover", old.rest_url()), &request).await?;
    ensure!(answer.status == 202, "{} {}", answer.status, answer.body);
    // The router has seen the key, and holds nothing.
    eventually(SOON, "the router knows of the request", || async {
        Ok(router.log().contains("failover key put").then_some(()).filter(|()| router.log().contains("scheduled=true")))
    })
    .await?;
    load.goes_on(ON, SOON).await?;
    ensure!(cluster.leader().await? == old, "Patroni was too early for this story");
    eventually(SOON, "the time has come", || async { Ok((cluster.leader_key().await?.as_deref() == Some(new.name())).then_some(())) })
        .await?;
    load.goes_on(ON, SOON).await?;
    let report = load.stop().await?;
    ensure!(report.ended.is_empty() && report.read_failures.is_empty(), "{:?} {:?}", report.ended, report.read_failures);
    for failure in &report.write_failures {
        // Of lone writes none.
        ensure!(failure.sqlstate.as_deref() == Some("40001"), "{failure:?}");
    }
    report.nothing_is_lost(cluster).await?;
    eventually(SOON, "the old leader follows", || async { Ok(old.is_in_recovery().await?.then_some(())) }).await?;
    whole(cluster, router).await
}

/// Patroni takes back what it can't do: writes wait for a moment, and go on where they were.
pub(crate) async fn rejected(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    Load::prepare(cluster).await?;
    let leader = cluster.leader().await?;
    let epoch = epoch(router).await?;
    let load = Load::start(router, 2, 2).await?;
    load.goes_on(ON, SOON).await?;
    let key = cluster.key("failover");
    let request = json!({ "leader": leader.name(), "member": "nobody" }).to_string();
    cluster.etcd().client().await?.put(key, request, None).await?;
    eventually(SOON, "writes are held", || async {
        Ok((router.get("/api/v1/cluster").await?.json()?["cluster"]["state"] == "switching").then_some(()))
    })
    .await?;
    eventually(REJECTED, "writes go on", || async {
        Ok((router.get("/api/v1/cluster").await?.json()?["cluster"]["state"] == "stable").then_some(()))
    })
    .await?;
    load.goes_on(ON, SOON).await?;
    let report = load.stop().await?;
    ensure!(report.write_failures.is_empty() && report.read_failures.is_empty(), "{:?} {:?}", report.write_failures, report.read_failures);
    ensure!(cluster.leader().await? == leader && self::epoch(router).await? == epoch);
    report.nothing_is_lost(cluster).await
}

async fn epoch(router: &Router) -> Result<u64> {
    router.get("/api/v1/cluster").await?.json()?["cluster"]["epoch"].as_u64().context("no epoch")
}
