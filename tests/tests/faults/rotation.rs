//! Who gets reads.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use switchyard_tests::cluster::{connect, first_value};
use switchyard_tests::load::Load;
use switchyard_tests::{Cluster, Member, Options, Result, Router, RouterOptions, eventually};

use super::{SOON, whole};

/// From Patroni's announcement on.
const IN_ROTATION: Duration = Duration::from_secs(2);

pub(crate) async fn new_member(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    Load::prepare(cluster).await?;
    let load = Load::start(router, 0, 2).await?;
    load.goes_on(10, SOON).await?;
    let name = format!("node{}", cluster.members().len() + 1);
    let key = format!("members/{name}");
    let announced = async {
        eventually(Duration::from_secs(90), "the new member is announced", || async {
            let Some(text) = cluster.key_value(&key).await? else { return Ok(None) };
            let announced: Value = serde_json::from_str(&text)?;
            Ok(matches!(announced["state"].as_str(), Some("running" | "streaming")).then(Instant::now))
        })
        .await
    };
    let in_rotation = async {
        eventually(Duration::from_secs(90), "the new member is in rotation", || async {
            Ok(member(router, &name).await?.is_some_and(|member| is_up(&member)).then(Instant::now))
        })
        .await
    };
    let (added, announced, in_rotation) = tokio::join!(cluster.add_member(json!({})), announced, in_rotation);
    let (added, took) = (added?, in_rotation?.saturating_duration_since(announced?));
    println!("in rotation {:.2} s after its announcement", took.as_secs_f64());
    ensure!(took < IN_ROTATION, "{took:?}");
    let reads = reads(router, &name).await?;
    eventually(SOON, "the new member gets reads", || async { Ok((self::reads(router, &name).await? > reads).then_some(())) }).await?;

    cluster.stop(&added).await?;
    eventually(IN_ROTATION, "the stopped member is out", || async {
        Ok(member(router, &name).await?.is_none_or(|member| !is_up(&member)).then_some(()))
    })
    .await?;
    load.goes_on(10, SOON).await?;
    let report = load.stop().await?;
    ensure!(report.read_failures.is_empty() && report.ended.is_empty(), "{:?} {:?}", report.read_failures, report.ended);
    cluster.start_member(&added).await?;
    whole(cluster, router).await
}

/// A replica that follows another one counts as what it shows: it serves reads, and goes on when the one that it follows is late.
pub(crate) async fn cascaded() -> Result {
    let cluster = Cluster::start(Options::new().members(3).tag("node3", "replicatefrom", "node2")).await?;
    let router = Router::start(&cluster, RouterOptions::new().set("routing.max_lag_bytes", "1MB")).await?;
    cluster.settled().await?;
    for name in ["node2", "node3"] {
        eventually(SOON, "both replicas serve", || async { Ok(member(&router, name).await?.filter(is_up).map(drop)) }).await?;
    }
    let (leader, followed) = (cluster.leader().await?, cluster.named("node2").context("no node2")?);
    let streams = "SELECT coalesce(string_agg(application_name, ' '), '') FROM pg_stat_replication";
    ensure!(leader.ask(streams).await? == "node2" && followed.ask(streams).await? == "node3", "node3 doesn't follow node2");

    cluster.delay_replay(&followed, Duration::from_secs(600)).await?;
    lags(&router, &followed).await?;
    let session = router.rw("app").await?;
    session.batch_execute("SET switchyard.consistency = 'session'; INSERT INTO blocker VALUES (7)").await?;
    let served = reads(&router, "node3").await?;
    let serves = || async {
        let messages = session.simple_query("SELECT count(*) FROM blocker WHERE id = 7").await?;
        let shown = first_value(&messages);
        ensure!(shown == Some("1"), "the session misses its own write: {shown:?}");
        Ok((reads(&router, "node3").await? > served).then_some(()))
    };
    eventually(SOON, "the cascaded replica serves a session that has written", serves).await
}

pub(crate) async fn lagging(cluster: &Cluster) -> Result {
    let router = Router::start(cluster, RouterOptions::new().set("routing.max_lag_bytes", "1MB")).await?;
    whole(cluster, &router).await?;
    let slow = cluster.replicas().await?.swap_remove(0);
    cluster.delay_replay(&slow, Duration::from_secs(600)).await?;
    let result = lags(&router, &slow).await;
    cluster.delay_replay(&slow, Duration::ZERO).await?;
    result?;
    whole(cluster, &router).await
}

async fn lags(router: &Router, slow: &Member) -> Result {
    let writer = router.rw("app").await?;
    // It stops at the first commit that is younger than the delay; what comes behind that is its lag.
    writer.batch_execute("CREATE TABLE blocker (id int)").await?;
    writer.batch_execute("CREATE TABLE bulk AS SELECT repeat('x', 1000) AS text FROM generate_series(1, 5000)").await?;
    eventually(SOON, "the slow replica is out", || async {
        Ok(member(router, slow.name()).await?.is_some_and(|member| member["out"] == "lagging").then_some(()))
    })
    .await?;
    let before = reads(router, slow.name()).await?;
    let port = i32::from(slow.port());
    for dsn in [router.ro_dsn("app"), router.rw_dsn("app")] {
        let client = connect(&dsn).await?;
        for _ in 0..100 {
            client.simple_query("SELECT 1").await?;
        }
    }
    let reader = router.ro("app").await?;
    for _ in 0..50 {
        let served: i32 = reader.query_one("SELECT inet_server_port()", &[]).await?.get(0);
        ensure!(served != port, "the replica that lags was asked");
    }
    ensure!(reads(router, slow.name()).await? == before, "the replica that lags was asked");
    Ok(())
}

/// What the router says of a member; `None` if it doesn't know it.
async fn member(router: &Router, name: &str) -> Result<Option<Value>> {
    let state = router.get("/api/v1/cluster").await?.json()?;
    let members = state["members"].as_array().context("members")?;
    Ok(members.iter().find(|member| member["name"] == name).cloned())
}

fn is_up(member: &Value) -> bool {
    member["out"].is_null() && member["check"]["ok"] == true
}

async fn reads(router: &Router, name: &str) -> Result<u64> {
    member(router, name).await?.and_then(|member| member["reads"].as_u64()).context("its reads")
}
