//! A load goes on while the cluster changes.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use switchyard_tests::load::{Load, Report};
use switchyard_tests::{Cluster, Options, Result, Router, RouterOptions, eventually};

use super::{SOON, sync_standby, whole};

/// Statements of each session that count as "it goes on".
pub(crate) const ON: u64 = 30;
/// Each session gets at most so many errors from one loss of the leader: the one that was in flight, and one more where the loss is
/// noticed on the way.
const ERRORS_PER_SESSION: usize = 2;
/// No reader waits as long for a new leader as the dead one's key lives: half of Patroni's least `ttl`.
const READ_GAP_MAX: Duration = Duration::from_secs(10);

pub(crate) async fn replica_killed(cluster: &Cluster, router: &Router) -> Result {
    Load::prepare(cluster).await?;
    whole(cluster, router).await?;
    let load = Load::start(router, 0, 4).await?;
    load.goes_on(ON, SOON).await?;
    // Not the synchronous one only: whichever it is, reads don't care.
    let victim = cluster.replicas().await?.swap_remove(0);
    victim.kill().await?;
    load.goes_on(5 * ON, SOON).await?;
    cluster.start_member(&victim).await?;
    load.goes_on(ON, SOON).await?;
    let report = load.stop().await?;
    reads_went_well(&report)?;
    whole(cluster, router).await
}

pub(crate) async fn switchover(cluster: &Cluster, router: &Router) -> Result {
    Load::prepare(cluster).await?;
    whole(cluster, router).await?;
    let load = Load::start(router, 2, 1).await?;
    load.goes_on(ON, SOON).await?;
    let (old, new) = (cluster.leader().await?, sync_standby(cluster).await?);
    let asked = Instant::now();
    cluster.switchover(&new).await?;
    load.goes_on(2 * ON, SOON).await?;
    let report = load.stop().await?;

    tell_gap("switchover", &report);
    let first = report.first_on(new.port(), asked).context("nothing was written on the new leader")?;
    println!("first write on the new leader {:.2} s after the request", (first.at - asked).as_secs_f64());
    writes_went_well(&report, cluster).await?;
    reads_went_well(&report)?;
    report.nobody_returned_to(old.port())?;
    // The read-only port is at `eventual`.
    let went_back: Vec<_> = report.went_back.iter().filter(|text| !text.contains("read-only")).collect();
    ensure!(went_back.is_empty(), "back in time: {went_back:?}");
    eventually(SOON, "the old leader follows", || async { Ok(old.is_in_recovery().await?.then_some(())) }).await?;
    whole(cluster, router).await
}

pub(crate) async fn leader_killed(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    Load::prepare(cluster).await?;
    whole(cluster, router).await?;
    let load = Load::start(router, 2, 1).await?;
    load.goes_on(ON, SOON).await?;
    let old = cluster.kill_leader().await?;
    let killed = Instant::now();
    // While nobody leads, and the dead leader's key is still there: what was just written is read, too.
    load.reads_go_on(ON, SOON).await?;
    cluster.expire_leader().await?;
    eventually(SOON, "the leader key moves", || async { Ok(cluster.leader_key().await?.filter(|name| name != old.name())) }).await?;
    let moved = Instant::now();
    load.goes_on(2 * ON, SOON).await?;
    let report = load.stop().await?;

    tell_gap("kill -9", &report);
    let new = cluster.leader().await?;
    let first = report.first_on(new.port(), killed).context("nothing was written on the new leader")?;
    let after = first.at.saturating_duration_since(moved);
    println!("writes go on {:.2} s after the leader key's move", after.as_secs_f64());
    ensure!(after < Duration::from_secs(5), "{after:?}");
    ensure!(report.longest_read_gap < READ_GAP_MAX, "a reader waited {:?}", report.longest_read_gap);
    // Nothing is lost here, so nobody goes back but on the read-only port, which is at `eventual`.
    let back: Vec<_> = report.went_back.iter().filter(|text| text.contains("read/write")).collect();
    ensure!(back.is_empty(), "{back:?}");
    writes_went_well(&report, cluster).await?;
    reads_went_well(&report)?;
    report.nobody_returned_to(old.port())?;
    cluster.start_member(&old).await?;
    whole(cluster, router).await
}

/// Without synchronous replication nobody can tell what the dead leader had acknowledged last: reads go on with what replicas have received.
pub(crate) async fn leader_killed_asynchronously() -> Result {
    let cluster = Cluster::start(Options::new().members(3)).await?;
    // Asked that seldom, the leader has acknowledged more when it dies than any probe can have bounded.
    let seldom = RouterOptions::new().set("health.interval", "1s").set("health.busy_interval", "1s");
    let router = Router::start(&cluster, seldom).await?;
    Load::prepare(&cluster).await?;
    let load = Load::start(&router, 1, 1).await?;
    // It has seen nothing itself: what the others have seen on the leader since its last probe, they wait for.
    let bystander = router.rw("app").await?;
    load.goes_on(ON, SOON).await?;
    let old = cluster.kill_leader().await?;
    let killed = Instant::now();
    let read = tokio::time::timeout(READ_GAP_MAX, bystander.simple_query("SELECT count(*) FROM load")).await;
    read.context("a read of what others wrote waits for a new leader")??;
    println!("a read of what others wrote, {:.2} s after the leader was killed", killed.elapsed().as_secs_f64());
    cluster.expire_leader().await?;
    eventually(SOON, "the leader key moves", || async { Ok(cluster.leader_key().await?.filter(|name| name != old.name())) }).await?;
    load.goes_on(2 * ON, SOON).await?;
    let report = load.stop().await?;
    tell_gap("kill -9 without synchronous replication", &report);
    reads_went_well(&report)?;
    // On the read/write port nobody goes back, unless with what the cluster has lost.
    let lost = report.nothing_is_lost(&cluster).await.err();
    let back: Vec<_> = report.went_back.iter().filter(|text| text.contains("read/write")).collect();
    println!("lost: {lost:?}; went back on the read/write port: {back:?}");
    ensure!(lost.is_some() || back.is_empty(), "{back:?}");
    Ok(())
}

/// Without failsafe mode Patroni demotes a leader that can't reach etcd: writes wait for the end of it.
pub(crate) async fn etcd_away(cluster: &Cluster, router: &Router) -> Result {
    const AWAY: Duration = Duration::from_secs(10);
    whole(cluster, router).await?;
    Load::prepare(cluster).await?;
    let load = Load::start(router, 1, 1).await?;
    load.goes_on(ON, SOON).await?;
    cluster.etcd_stop()?;
    let stopped = Instant::now();
    while stopped.elapsed() < AWAY {
        load.reads_go_on(10, SOON).await?;
    }
    ensure!(router.get("/livez").await?.status == 200);
    let state = router.get("/api/v1/cluster").await?.json()?;
    ensure!(state["cluster"]["etcd_error"].is_string(), "the page hides that etcd is away: {}", state["cluster"]);
    cluster.etcd_start().await?;
    load.goes_on(2 * ON, super::LONG).await?;
    let report = load.stop().await?;
    tell_gap("etcd away for 10 s", &report);
    writes_went_well(&report, cluster).await?;
    reads_went_well(&report)?;
    whole(cluster, router).await
}

pub(crate) fn tell_gap(what: &str, report: &Report) {
    let gap = report.longest_gap().map_or(0.0, |(gap, _)| gap.as_secs_f64());
    println!(
        "{what}: {} writes, {} reads; longest time without a write {gap:.2} s, of a reader without an answer {:.2} s; writers' errors {:?}; reads that went back {}",
        report.acks.len(),
        report.reads,
        report.longest_read_gap.as_secs_f64(),
        report.write_sqlstates(),
        report.went_back.len()
    );
}

/// Nothing acknowledged is lost, every session lives, and nobody got an error that the design's table doesn't name.
pub(crate) async fn writes_went_well(report: &Report, cluster: &Cluster) -> Result {
    ensure!(report.ended.is_empty(), "sessions ended: {:?}", report.ended);
    for failure in &report.write_failures {
        let named = matches!(failure.sqlstate.as_deref(), Some("40001" | "08007" | "57P01"));
        ensure!(named, "{failure:?}");
        let of_session = report.write_failures.iter().filter(|other| other.session == failure.session).count();
        ensure!(of_session <= ERRORS_PER_SESSION, "{} got {of_session} errors: {:?}", failure.session, report.write_failures);
    }
    report.nothing_is_lost(cluster).await
}

/// The only error a read may have met: it was cut after its row was sent, and before its end.
pub(crate) fn reads_went_well(report: &Report) -> Result {
    let cut = |text: &str| text.contains("after rows had been sent");
    let others: Vec<_> = report.read_failures.iter().filter(|failure| !cut(&failure.text)).collect();
    ensure!(others.is_empty(), "{others:?}");
    ensure!(report.ended.is_empty(), "sessions ended: {:?}", report.ended);
    if !report.read_failures.is_empty() {
        println!("{} of {} reads were cut within their answer", report.read_failures.len(), report.reads);
    }
    ensure!(report.reads > 0);
    Ok(())
}
