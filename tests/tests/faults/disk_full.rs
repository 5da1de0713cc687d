//! A member whose disk is full: as the leader, and then as a replica.

use anyhow::ensure;
use switchyard_tests::cluster::limits_disks;
use switchyard_tests::load::Load;
use switchyard_tests::{Cluster, Options, Result, Router, RouterOptions, Synchronous, eventually};

use super::under_load::{ON, reads_went_well, tell_gap, writes_went_well};
use super::{LONG, SOON, whole};

/// Enough for all that the member writes before it is filled.
const DISK: u32 = 512;

pub(crate) async fn a_member() -> Result {
    if !limits_disks()? {
        println!("no member can have a small disk here: that takes root, and the right to mount");
        return Ok(());
    }
    let cluster = Cluster::start(Options::new().members(3).synchronous(Synchronous::On).disk("node1", DISK)).await?;
    let router = Router::start(&cluster, RouterOptions::new()).await?;
    Load::prepare(&cluster).await?;
    whole(&cluster, &router).await?;
    let full = cluster.leader().await?;

    let load = Load::start(&router, 2, 1).await?;
    load.goes_on(ON, SOON).await?;
    let filler = full.fill_disk()?;
    // PostgreSQL ends when there is no room for another segment of WAL, and Patroni can't start it again.
    let moved = || async {
        let _ = full.ask("SELECT pg_switch_wal()").await;
        Ok(cluster.leader_key().await?.filter(|name| name != full.name()))
    };
    eventually(LONG, "another member leads", moved).await?;
    load.goes_on(2 * ON, LONG).await?;
    drop(filler);
    let mut report = load.stop().await?;
    tell_gap("the leader's disk is full", &report);
    // The server's own answer, where a table needed room before the WAL did.
    report.write_failures.retain(|failure| failure.sqlstate.as_deref() != Some("53100"));
    writes_went_well(&report, &cluster).await?;
    reads_went_well(&report)?;
    report.nobody_returned_to(full.port())?;
    // With room again, it comes back as a replica by itself.
    Load::prepare(&cluster).await?;
    whole(&cluster, &router).await?;

    let load = Load::start(&router, 2, 2).await?;
    load.goes_on(ON, SOON).await?;
    let filler = full.fill_disk()?;
    let leader = cluster.leader().await?;
    let stuck = || async {
        leader.ask("SELECT pg_switch_wal()").await?;
        let streams = format!("SELECT count(*) FROM pg_stat_replication WHERE application_name = '{}'", full.name());
        Ok((leader.ask(&streams).await? == "0").then_some(()))
    };
    eventually(SOON, "the replica can't take more", stuck).await?;
    load.goes_on(5 * ON, LONG).await?;
    let report = load.stop().await?;
    tell_gap("a replica's disk is full", &report);
    ensure!(report.write_failures.is_empty(), "{:?}", report.write_failures);
    writes_went_well(&report, &cluster).await?;
    reads_went_well(&report)?;
    drop(filler);
    whole(&cluster, &router).await
}
