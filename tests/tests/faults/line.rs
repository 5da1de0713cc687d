//! The line that writes wait in while nobody leads.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use switchyard_tests::cluster::{column, connect};
use switchyard_tests::{Cluster, Result, Router, RouterOptions, eventually};

use super::{SOON, Watched, sync_standby, whole};

pub(crate) async fn no_leader(cluster: &Cluster) -> Result {
    const HOLD: Duration = Duration::from_secs(3);
    let options = RouterOptions::new().set("failover.hold_timeout", "3s").set("failover.hold_max", 2);
    let router = Router::start(cluster, options).await?;
    // With a timeline so young that the replicas' control files don't know it: they serve reads all the same when its leader dies.
    cluster.switchover(&sync_standby(cluster).await?).await?;
    whole(cluster, &router).await?;
    let leader = cluster.leader().await?;
    connect(&leader.dsn_for("app")).await?.batch_execute("CREATE TABLE line (id int)").await?;
    cluster.settled().await?;
    let dsn = router.rw_dsn("app");
    let open = || Watched::open(&dsn);
    let (first, second, third, reader) = (open().await?, open().await?, open().await?, open().await?);
    let ro_reader = Watched::open(&router.ro_dsn("app")).await?;
    // A table that the router's facts don't name yet is the leader's, and a read of it would wait in the line, too.
    eventually(SOON, "the table is known", || async {
        let told = column(&reader.client, "EXPLAIN (ROUTE) SELECT count(*) FROM line").await?;
        Ok(told.iter().any(|line| line == "Verdict: read").then_some(()))
    })
    .await?;

    leader.kill().await?;
    let waits = [first.start("INSERT INTO line VALUES (1)"), second.start("BEGIN; INSERT INTO line VALUES (2); COMMIT")];
    eventually(SOON, "two writes wait", || async { Ok((held(&router).await? == 2).then_some(())) }).await?;

    let (full, took) = third.start("INSERT INTO line VALUES (3)").outcome().await?;
    let full = full.context("no error")?;
    ensure!(full.code().is_some_and(|code| code.code() == "57P03") && took < HOLD / 2, "{took:?}: {full:?}");
    ensure!(full.as_db_error().is_some_and(|error| error.message().contains("2 clients wait")), "{full:?}");
    for reads in [&reader, &ro_reader] {
        let took = reads.start("SELECT count(*) FROM line").succeeds().await?;
        println!("a read while two writes wait took {:.2} s", took.as_secs_f64());
    }
    // Those who log in now get in, and may read.
    let late = Watched::open(&router.rw_dsn("app")).await?;
    late.run("SELECT count(*) FROM line").await?;

    for waiting in waits {
        let (error, took) = waiting.outcome().await?;
        let error = error.context("no error")?;
        let hint = error.as_db_error().and_then(|error| error.hint()).unwrap_or_default();
        ensure!(error.code().is_some_and(|code| code.code() == "57P03") && hint.contains("was not sent"), "{error:?}");
        ensure!(took >= HOLD && took < HOLD + Duration::from_secs(2), "{took:?}");
    }
    ensure!(held(&router).await? == 0);
    cluster.expire_leader().await?;
    // In line again or not: each is served as soon as there is a leader, or told to try again.
    eventually(SOON, "writes go on", || async { Ok(third.client.batch_execute("INSERT INTO line VALUES (4)").await.ok()) }).await?;
    for session in [&first, &second, &reader, &late] {
        session.run("INSERT INTO line VALUES (4)").await?;
    }
    let new = cluster.new_leader(&leader).await?;
    let counted = new.ask("SELECT count(*) || ' ' || min(id) FROM line").await?;
    ensure!(counted == "5 4", "{counted}");
    cluster.start_member(&leader).await?;
    whole(cluster, &router).await
}

/// The leader is in force, and lets nobody in. Reads that a replica may serve, now or in a moment, don't need it.
pub(crate) async fn nobody_gets_in(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    let options = RouterOptions::new().set("failover.hold_timeout", "60s").set("failover.hold_max", 1);
    let router = Router::start(cluster, options).await?;
    let leader = cluster.leader().await?;
    let direct = leader.connect().await?;
    direct.batch_execute("CREATE TABLE door (id int); GRANT ALL ON door TO public").await?;
    cluster.settled().await?;
    let dsn = router.rw_dsn("app");
    let open = || Watched::open(&dsn);
    let (first, second, reader, setter) = (open().await?, open().await?, open().await?, open().await?);
    eventually(SOON, "the table is known", || async {
        let told = column(&reader.client, "EXPLAIN (ROUTE) SELECT count(*) FROM door").await?;
        Ok(told.iter().any(|line| line == "Verdict: read").then_some(()))
    })
    .await?;
    let replicas = cluster.replicas().await?;
    for replica in &replicas {
        replica.ask("SELECT pg_wal_replay_pause()").await?;
    }
    first.run("INSERT INTO door VALUES (1)").await?;

    // Patroni would have replicas go on with their replay.
    for member in cluster.members() {
        member.kill_patroni()?;
    }
    leader.let_nobody_in()?;
    eventually(SOON, "its connections are closed", || async {
        let closed = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
        Ok((column(&direct, closed).await? == ["0"]).then_some(()))
    })
    .await?;
    let waits = first.start("INSERT INTO door VALUES (2)");
    eventually(SOON, "a write waits", || async { Ok((held(&router).await? == 1).then_some(())) }).await?;
    // No replica shows the row yet.
    let reads = reader.start("SELECT 1 / count(*) FROM door");
    ensure!(second.fails("INSERT INTO door VALUES (3)").await? == "57P03");
    setter.run("SET work_mem = '1MB'").await?;
    ensure!(held(&router).await? == 1);
    ensure!(!waits.0.is_finished());
    ensure!(!reads.0.is_finished());
    for replica in &replicas {
        replica.ask("SELECT pg_wal_replay_resume()").await?;
    }
    println!("a read waited {:.2} s for a replica", reads.succeeds().await?.as_secs_f64());
    ensure!(router.get("/api/v1/cluster").await?.json()?["cluster"]["leader"] == leader.name() && !waits.0.is_finished());

    leader.kill().await?;
    cluster.expire_leader().await?;
    // The one that may lead is among them.
    try_join_all(replicas.iter().map(|replica| cluster.start_member(replica))).await?;
    waits.succeeds().await?;
    let counted = cluster.new_leader(&leader).await?.ask("SELECT string_agg(id::text, ' ' ORDER BY id) FROM door").await?;
    ensure!(counted == "1 2", "{counted}");
    cluster.start_member(&leader).await?;
    whole(cluster, &router).await
}

async fn held(router: &Router) -> Result<u64> {
    let state = router.get("/api/v1/cluster").await?.json()?;
    state["held"]["now"].as_u64().with_context(|| format!("{}", state["held"]))
}
