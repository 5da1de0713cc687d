//! Which of the replicas that are good enough gets a read.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use switchyard_tests::{Result, Router, RouterOptions, eventually};

use crate::yard::{SOON, Yard, metric, tell};

const CLIENTS: usize = 16;
/// After which a replica's average response time has little of the first one left.
const WARM_READS: f64 = 50.0;

/// A router that doesn't look after each return: the looks would be a part of what is measured.
fn unobserved() -> RouterOptions {
    RouterOptions::new().set("pool.verify_returns", 0.0)
}

/// Reads that each replica has been given, in the yard's order.
async fn reads(yard: &Yard, router: &Router) -> Result<Vec<f64>> {
    let mut reads = Vec::new();
    for replica in &yard.replicas {
        reads.push(metric(router, &format!("switchyard_reads_total{{node=\"{}\"}}", replica.name())).await?);
    }
    Ok(reads)
}

/// A router that knows how fast both replicas are: of a first answer alone, which is a cold one, it would think for seconds that the replica is slow.
async fn warm(yard: &Yard, options: RouterOptions) -> Result<Router> {
    let router = yard.other_router(options).await?;
    let clients = try_join_all((0..CLIENTS).map(|_| router.ro("app"))).await?;
    eventually(SOON, "both replicas serve", || async {
        try_join_all(clients.iter().map(|client| client.simple_query("SELECT 1"))).await?;
        Ok(reads(yard, &router).await?.iter().all(|reads| *reads >= WARM_READS).then_some(()))
    })
    .await?;
    Ok(router)
}

#[tokio::test]
async fn a_long_query_moves_the_short_ones_away() -> Result {
    tell(async |yard| {
        let router = warm(yard, unobserved()).await?;
        let (long, short) = (router.ro("app").await?, router.ro("app").await?);
        let begun = reads(yard, &router).await?;
        let running = tokio::spawn(async move { long.simple_query("SELECT 'long', pg_sleep(4)").await });
        let busy = eventually(SOON, "the long one runs", || async {
            for (index, replica) in yard.replicas.iter().enumerate() {
                if replica.ask("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%''long''%' AND pid <> pg_backend_pid()").await?
                    == "1"
                {
                    return Ok(Some(index));
                }
            }
            Ok(None)
        })
        .await?;
        for _ in 0..100 {
            short.simple_query("SELECT 1").await?;
        }
        ensure!(!running.is_finished(), "the long one was too short");
        let after = reads(yard, &router).await?;
        let there = after[busy] - begun[busy];
        // It may be tried again now and then, as its response time is forgotten.
        ensure!(there <= 15.0, "{there} of 100 short reads went to where the long one runs");
        running.await.context("it ended")??;
        Ok(())
    })
    .await
}

/// The share of the reads that the first replica gets, which takes twice as long for each as the other.
async fn share_of_the_slow_one(yard: &Yard, router: &Router, clients: usize) -> Result<f64> {
    let slow = yard.replicas[0].port();
    let query = format!("SELECT pg_sleep(CASE current_setting('port')::int WHEN {slow} THEN 0.02 ELSE 0.01 END)");
    let clients = try_join_all((0..clients).map(|_| router.ro("app"))).await?;
    let load = async |time: Duration| {
        let end = Instant::now() + time;
        let each = clients.iter().map(async |client| {
            while Instant::now() < end {
                client.simple_query(&query).await?;
            }
            anyhow::Ok(())
        });
        try_join_all(each).await
    };
    // Until each is known for what it is.
    load(Duration::from_secs(1)).await?;
    let before = reads(yard, router).await?;
    load(Duration::from_secs(3)).await?;
    let after = reads(yard, router).await?;
    let (slow, fast) = (after[0] - before[0], after[1] - before[1]);
    let share = slow / (slow + fast);
    println!("the slow one got {:.1} % of {} reads", share * 100.0, slow + fast);
    Ok(share)
}

#[tokio::test]
async fn a_replica_that_is_twice_as_slow_gets_about_a_third() -> Result {
    tell(async |yard| {
        let share = share_of_the_slow_one(yard, &warm(yard, unobserved()).await?, CLIENTS).await?;
        ensure!((0.20..=0.40).contains(&share), "the slow one got {share}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn who_waits_for_a_connection_is_there_already() -> Result {
    tell(async |yard| {
        let router = warm(yard, unobserved().set("pool.max_size", 4)).await?;
        let share = share_of_the_slow_one(yard, &router, 4 * CLIENTS).await?;
        // All connections of both are always in use: where lines didn't count, one of the slow one's four was not, and its share 27 %.
        ensure!((0.30..=0.38).contains(&share), "the slow one got {share}");
        Ok(())
    })
    .await
}
