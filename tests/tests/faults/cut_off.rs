//! A leader that can't reach etcd any more, while its clients and the router still reach it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use switchyard_tests::line::Line;
use switchyard_tests::load::Load;
use switchyard_tests::{Cluster, Result, Router, eventually};

use super::{LONG, SOON, sync_standby, whole};

/// Statements of each session that count as "it goes on".
const ON: u64 = 30;

pub(crate) async fn from_etcd(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    Load::prepare(cluster).await?;
    // Whichever of them becomes the synchronous standby may lead.
    let mut lines = Vec::new();
    for replica in cluster.replicas().await? {
        let line = Line::to(cluster.etcd_endpoint().trim_start_matches("http://")).await?;
        cluster.stop(&replica).await?;
        cluster.start_member_by(&replica, line.address()).await?;
        lines.push((replica, line));
    }
    whole(cluster, router).await?;
    let old = sync_standby(cluster).await?;
    cluster.switchover(&old).await?;
    whole(cluster, router).await?;
    let (_, line) = lines.iter().find(|(member, _)| *member == old).context("its line")?;

    let load = Load::start(router, 2, 1).await?;
    load.goes_on(ON, SOON).await?;
    line.cut();
    let cut = Instant::now();
    let new = cluster.new_leader(&old).await?;
    println!("another leader {:.1} s after the cut", cut.elapsed().as_secs_f64());
    load.goes_on(ON, LONG).await?;
    let report = load.stop().await?;
    let first = report.first_on(new.port(), cut).context("nothing was written on the new leader")?;
    println!("first write on it {:.1} s after the cut; writers' errors {:?}", (first.at - cut).as_secs_f64(), report.write_sqlstates());
    ensure!(report.ended.is_empty(), "sessions ended: {:?}", report.ended);
    ensure!(report.read_failures.is_empty(), "readers' errors: {:?}", report.read_failures);
    for failure in &report.write_failures {
        ensure!(matches!(failure.sqlstate.as_deref(), Some("40001" | "08007")), "{failure:?}");
    }
    // Never two at the same time: whoever wrote on the new one doesn't on the old one, and what the old one acknowledged is there.
    report.nobody_returned_to(old.port())?;
    report.nothing_is_lost(cluster).await?;
    line.mend();
    eventually(Duration::from_secs(60), "the old leader follows", || async { Ok(old.is_in_recovery().await?.then_some(())) }).await?;
    for (member, _) in &lines {
        // Whichever of them leads now hands over to the standby that may take over.
        whole(cluster, router).await?;
        cluster.stop(member).await?;
        cluster.leader().await?;
        cluster.start_member_by(member, &cluster.etcd().address()).await?;
    }
    whole(cluster, router).await
}
