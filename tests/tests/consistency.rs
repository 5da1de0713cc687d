//! `switchyard check-consistency` against a cluster whose replicas are late, while its leader changes: at each level, what it promises.
//!
//! Synchronous replication, so that no acknowledged write is lost and every violation is the router's. `SWITCHYARD_READS` sets how many reads
//! each run makes: 1000000 for what the project promises.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_tests::machine;
use switchyard_tests::{Cluster, Member, Options, Result, Router, RouterOptions, Stories, Synchronous, eventually};
use tokio::process::{Child, Command};

/// Reads of one run.
const READS: u64 = 8_000;
const SOON: Duration = Duration::from_secs(30);

fn reads() -> u64 {
    std::env::var("SWITCHYARD_READS").ok().and_then(|text| text.parse().ok()).unwrap_or(READS)
}

/// A check under way, by the very program that operators run.
struct Check(Child);

impl Check {
    fn start(router: &Router, other: Option<&Router>, level: &str, reads: u64) -> Result<Check> {
        let mut command = Command::new(machine::router()?);
        command.args(["check-consistency", &router.rw_dsn("app"), "--sessions", "8", "--level", level, "--reads", &reads.to_string()]);
        if let Some(other) = other {
            command.args(["--other", &other.rw_dsn("app")]);
        }
        Ok(Check(command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?))
    }

    fn runs(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// Its exit code and its words.
    async fn end(self) -> Result<(Option<i32>, String)> {
        let output = self.0.wait_with_output().await?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("{text}");
        Ok((output.status.code(), text))
    }

    async fn finds_nothing(self) -> Result {
        let (code, text) = self.end().await?;
        ensure!(code == Some(0) && text.contains("violations: 0"), "exit code {code:?}\n{text}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consistency() -> Result {
    let cluster = Cluster::start(Options::new().members(4).synchronous(Synchronous::On)).await?;
    let (router, other) = (Router::start(&cluster, RouterOptions::new()).await?, Router::start(&cluster, RouterOptions::new()).await?);
    // 0, 200 and 2,000 ms.
    let replicas = cluster.replicas().await?;
    for (replica, delay) in replicas.iter().zip([0, 200, 2_000]) {
        cluster.delay_replay(replica, Duration::from_millis(delay)).await?;
    }
    let mut stories = Stories::new();
    stories
        .tell("eventual is found out", async {
            let (code, text) = Check::start(&router, None, "eventual", reads().min(20_000))?.end().await?;
            ensure!(code == Some(1) && text.contains("went back"), "exit code {code:?}\n{text}");
            Ok(())
        })
        .await;
    for level in ["session", "global", "strong"] {
        stories.tell(&format!("{level} with late replicas"), Check::start(&router, None, level, reads())?.finds_nothing()).await;
    }
    stories.tell("strong through two routers", Check::start(&router, Some(&other), "strong", reads())?.finds_nothing()).await;
    stories.tell("every level while the leader changes", changes(&cluster, &router, &other)).await;
    ensure!(router.ended()?.is_none() && other.ended()?.is_none(), "a router ended");
    stories.end(|| format!("{}\n--- router\n{}", cluster.logs(), router.log()))
}

/// All levels at the same time, over a switchover and a `kill -9` of the leader.
async fn changes(cluster: &Cluster, router: &Router, other: &Router) -> Result {
    let mut checks = Vec::new();
    for (level, second) in [("session", None), ("global", None), ("strong", Some(other))] {
        checks.push((level, Check::start(router, second, level, reads())?));
    }
    cluster.switchover(&sync_standby(cluster).await?).await?;
    sync_standby(cluster).await?;
    let old = cluster.kill_leader().await?;
    cluster.expire_leader().await?;
    eventually(SOON, "another one leads", || async { Ok(cluster.leader_now().await?.filter(|leader| *leader != old)) }).await?;
    let met: Vec<_> = checks.iter_mut().map(|(level, check)| Ok((*level, check.runs()?))).collect::<Result<_>>()?;
    println!("still running when the second leader was lost: {met:?}");
    let mut failed = Vec::new();
    for (level, check) in checks {
        if let Err(error) = check.finds_nothing().await {
            failed.push(format!("{level}: {error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(met.iter().all(|(_, runs)| *runs), "a check was over before the leader was lost");
    cluster.start_member(&old).await
}

/// The member that has all that was acknowledged, once there is one.
async fn sync_standby(cluster: &Cluster) -> Result<Member> {
    eventually(SOON, "there is a synchronous standby", || async {
        let Some(leader) = cluster.leader_now().await? else { return Ok(None) };
        let sync: serde_json::Value = serde_json::from_str(&cluster.key_value("sync").await?.context("no sync key")?)?;
        let standby = sync["sync_standby"].as_str().and_then(|name| cluster.named(name)).filter(|standby| *standby != leader);
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        Ok(if leader.ask(streams).await? == "1" { standby } else { None })
    })
    .await
}
