//! What operators do on purpose, by the router's own commands, under load: nobody may notice.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use switchyard_tests::load::{Load, Report};
use switchyard_tests::{Cluster, Member, Result, Router, eventually};

use super::{SOON, Watched, sync_standby, whole};

/// Statements of each session that count as "it goes on".
const ON: u64 = 30;

pub(crate) async fn switchover(cluster: &Cluster, router: &Router) -> Result {
    Load::prepare(cluster).await?;
    whole(cluster, router).await?;
    let load = Load::start(router, 4, 4).await?;
    load.goes_on(ON, SOON).await?;
    for round in 1..=2 {
        let (old, new) = (cluster.leader().await?, sync_standby(cluster).await?);
        let said = router.order(&["switchover", "--to", new.name()]).await?;
        ensure!(said.done, "round {round}: {}", said.text);
        ensure!(said.text.contains(&format!("{} leads, on timeline", new.name())), "{}", said.text);
        println!("round {round}: {}", said.text.lines().last().unwrap_or_default().trim());
        ensure!(cluster.leader().await? == new);
        load.goes_on(ON, SOON).await?;
        eventually(SOON, "the old leader follows", || async { Ok(old.is_in_recovery().await?.then_some(())) }).await?;
        whole(cluster, router).await?;
    }
    let report = load.stop().await?;
    flawless(&report)?;
    // The read-only port promises no order unless it is asked to.
    let went_back: Vec<_> = report.went_back.iter().filter(|text| !text.contains("read-only")).collect();
    ensure!(went_back.is_empty(), "back in time: {went_back:?}");
    let gap = report.longest_gap().map_or(Duration::ZERO, |(gap, _)| gap);
    println!("{} writes, {} reads; longest time without a write {:.2} s", report.acks.len(), report.reads, gap.as_secs_f64());
    report.nothing_is_lost(cluster).await
}

pub(crate) async fn switchover_refused(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    Load::prepare(cluster).await?;
    let (leader, sync) = (cluster.leader().await?, sync_standby(cluster).await?);
    let other = cluster.replicas().await?.into_iter().find(|member| *member != sync).context("a third member")?;
    let load = Load::start(router, 1, 1).await?;
    load.goes_on(ON, SOON).await?;
    for (to, why) in [
        ("nobody", "no member is called \"nobody\""),
        (leader.name(), "leads already"),
        // Patroni's own words.
        (other.name(), "candidate name does not match with sync_standby"),
    ] {
        let said = router.order(&["switchover", "--to", to]).await?;
        ensure!(!said.done && said.text.contains(why), "{to}: {}", said.text);
    }
    load.goes_on(ON, SOON).await?;
    flawless(&load.stop().await?)?;

    // What doesn't end is waited for, and nothing has happened when that was in vain.
    let open = Watched::open(&router.rw_dsn("app")).await?;
    open.run("BEGIN").await?;
    open.run("INSERT INTO load VALUES (1000, 1)").await?;
    let said = router.order(&["switchover", "--timeout", "300ms"]).await?;
    ensure!(
        !said.done && said.text.contains("given up after 300ms") && said.text.contains("1 connection to it is in use"),
        "{}",
        said.text
    );
    ensure!(said.text.contains("new writes wait"), "{}", said.text);
    open.run("INSERT INTO load VALUES (1000, 2)").await?;
    open.run("COMMIT").await?;
    ensure!(cluster.leader().await? == leader);
    router.rw("app").await?.execute("INSERT INTO load VALUES (1000, 3)", &[]).await?;
    whole(cluster, router).await
}

/// An open transaction and a pinned session end with the leadership; a write that waited doesn't notice.
pub(crate) async fn switchover_forced(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    Load::prepare(cluster).await?;
    let (open, pinned, waits) = (
        Watched::open(&router.rw_dsn("app")).await?,
        Watched::open(&router.rw_dsn("app")).await?,
        Watched::open(&router.rw_dsn("app")).await?,
    );
    open.run("BEGIN").await?;
    open.run("INSERT INTO load VALUES (1000, 1)").await?;
    pinned.run("CREATE TEMP TABLE mine (id int)").await?;
    let new = sync_standby(cluster).await?;
    let order = ["switchover", "--to", new.name(), "--timeout", "1", "--force"];
    let ((), said) = tokio::try_join!(
        async {
            eventually(SOON, "writes are held", || async {
                let state = router.get("/api/v1/cluster").await?.json()?;
                Ok((state["cluster"]["state"] == "switching").then_some(()))
            })
            .await?;
            waits.run("INSERT INTO load VALUES (1000, 2)").await
        },
        router.order(&order)
    )?;
    ensure!(said.done && said.text.contains("temp_table"), "{}", said.text);
    ensure!(pinned.ended_with().await? == "57P01");
    ensure!(open.fails("INSERT INTO load VALUES (1000, 3)").await? == "40001");
    open.run("ROLLBACK").await?;
    ensure!(new.ask("SELECT string_agg(number::text, ',') FROM load").await? == "2");
    whole(cluster, router).await
}

pub(crate) async fn drain(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    Load::prepare(cluster).await?;
    let leader = cluster.leader().await?;
    let said = router.order(&["drain", leader.name()]).await?;
    ensure!(!said.done && said.text.contains("leads; use `switchyard switchover` first"), "{}", said.text);
    let load = Load::start(router, 0, 4).await?;
    load.goes_on(ON, SOON).await?;
    let replica = cluster.replicas().await?.swap_remove(0);
    router.obey(&["drain", replica.name()]).await?;
    ensure!(shown(router, &replica).await?["out"] == "drained");
    let metric = format!("switchyard_member_out{{node=\"{}\",reason=\"drained\"}} 1", replica.name());
    let metrics = router.get("/metrics").await?.body;
    ensure!(metrics.contains(&metric), "no {metric}");
    // The router's own probe stays.
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = 'app'";
    ensure!(replica.ask(sessions).await? == "0");
    let reads = shown(router, &replica).await?["reads"].as_u64();
    load.goes_on(5 * ON, SOON).await?;
    ensure!(shown(router, &replica).await?["reads"].as_u64() == reads, "it got reads");
    // What it is for.
    cluster.stop(&replica).await?;
    cluster.start_member(&replica).await?;
    load.goes_on(ON, SOON).await?;
    ensure!(shown(router, &replica).await?["reads"].as_u64() == reads, "it got reads");
    router.obey(&["resume", replica.name()]).await?;
    eventually(SOON, "it gets reads again", || async { Ok((shown(router, &replica).await?["reads"].as_u64() > reads).then_some(())) })
        .await?;
    flawless(&load.stop().await?)?;
    let said = router.order(&["resume", replica.name()]).await?;
    ensure!(said.done && said.text.contains("was not drained"), "{}", said.text);
    whole(cluster, router).await
}

async fn shown(router: &Router, member: &Member) -> Result<Value> {
    let state = router.get("/api/v1/cluster").await?.json()?;
    let members = state["members"].as_array().context("members")?;
    members.iter().find(|shown| shown["name"] == member.name()).cloned().with_context(|| member.name().to_owned())
}

fn flawless(report: &Report) -> Result {
    ensure!(report.write_failures.is_empty(), "writers' errors: {:?}", report.write_failures);
    ensure!(report.read_failures.is_empty(), "readers' errors: {:?}", report.read_failures);
    ensure!(report.ended.is_empty(), "sessions ended: {:?}", report.ended);
    Ok(())
}
