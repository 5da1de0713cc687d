//! Sessions that share server connections, beside direct ones: what came apart once, and new random sequences in each run. The short form of
//! `make differential`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use switchyard_tests::Result;
use switchyard_tests::differential::{Blind, Plan, Port, Script, Stage};

/// On each port.
const TIME: Duration = Duration::from_secs(20);
const SCRIPTS: u64 = 1_000;
const WORKERS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_as_direct_ones() -> Result {
    let stage = Stage::start(WORKERS).await?;
    let router = stage.router(1, &[]).await?;
    let mut failed = Vec::new();
    for (port, texts) in
        [(Port::ReadWrite, include_str!("../differential/read_write.txt")), (Port::ReadOnly, include_str!("../differential/read_only.txt"))]
    {
        for script in Script::parse_all(texts)? {
            if let Some(difference) = stage.replay(&router, port, &script).await? {
                failed.push(format!("{port:?}\n{script}{difference}"));
            }
        }
    }
    // Other sequences in every run: `make differential SEED=...` repeats them.
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for port in [Port::ReadWrite, Port::ReadOnly] {
        println!("SEED={seed} SEQUENCES={SCRIPTS} PORT={port:?} POOL=1");
        let (time, blind) = (Some(TIME), Blind::default());
        let plan = Plan { port, pool: 1, seed, scripts: SCRIPTS, time, workers: WORKERS, findings: 5, blind, twice_direct: false };
        let report = stage.play(&router, &plan).await?;
        ensure!(report.played > 50, "only {} sequences were played", report.played);
        failed.extend(report.findings.iter().map(|finding| format!("{port:?}\n{finding}")));
    }
    ensure!(failed.is_empty(), "{} differ\n{}\n{}", failed.len(), failed.join("\n"), stage.logs());
    Ok(())
}
