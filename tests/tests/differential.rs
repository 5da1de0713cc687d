//! Sessions that share server connections, beside direct ones: what came apart once, and new random sequences in each
//! run. The short form of `make differential`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use switchyard_tests::differential::{Blind, Plan, Port, Script, Stage};
use switchyard_tests::{Result, Shared};

/// On each port, with each pool.
const TIME: Duration = Duration::from_secs(15);
const SCRIPTS: u64 = 1_000;
/// Slower, the machine is too busy to say anything.
const SCRIPTS_MIN: u64 = 20;
const WORKERS: usize = 3;

static STAGE: Shared<Stage> = Shared::new();

#[tokio::test(flavor = "multi_thread")]
async fn what_came_apart_once_does_not_again() -> Result {
    let stage = STAGE.turn(|| Stage::start(WORKERS)).await?;
    let router = stage.router(1, &[]).await?;
    let mut failed = Vec::new();
    let files = [
        (Port::ReadWrite, include_str!("../differential/read_write.txt")),
        (Port::ReadOnly, include_str!("../differential/read_only.txt")),
    ];
    for (port, text) in files {
        for script in Script::parse_all(text)? {
            if let Some(difference) = stage.replay(&router, port, &script).await? {
                failed.push(format!("{port:?}\n{script}{difference}"));
            }
        }
    }
    ensure!(failed.is_empty(), "{} sequences differ\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

/// Nobody gets another's state, and each gets what a direct connection gives. A failure tells the seed; `SWITCHYARD_SEED` repeats it, as does
/// `make differential SEED=...`.
#[tokio::test(flavor = "multi_thread")]
async fn random_sessions_are_as_direct_ones() -> Result {
    let stage = STAGE.turn(|| Stage::start(WORKERS)).await?;
    let given = std::env::var("SWITCHYARD_SEED").ok().map(|seed| seed.parse().context("SWITCHYARD_SEED")).transpose()?;
    let seed = given.unwrap_or(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let mut failed = Vec::new();
    for (port, pool) in [(Port::ReadWrite, 1), (Port::ReadWrite, 3), (Port::ReadOnly, 1)] {
        println!("SEED={seed} SEQUENCES={SCRIPTS} PORT={port:?} POOL={pool}");
        let router = stage.router(pool, &[]).await?;
        let plan = Plan {
            port,
            pool,
            seed,
            scripts: SCRIPTS,
            time: Some(TIME),
            workers: WORKERS,
            findings: 3,
            only: None,
            blind: Blind::default(),
            twice_direct: false,
        };
        let report = stage.play(&router, &plan).await?;
        ensure!(!report.findings.is_empty() || report.played >= SCRIPTS_MIN, "only {} sequences were played", report.played);
        failed.extend(report.findings.iter().map(|finding| format!("{port:?}, a pool of {pool}: {finding}")));
    }
    ensure!(failed.is_empty(), "{} sequences differ\n{}", failed.len(), failed.join("\n"));
    Ok(())
}
