//! Bad input never kills the process or another session.
//!
//! While each story does its worst, healthy sessions write and read all the time, and none of them may ever get an error. The router's
//! process stays the same, its memory stays bounded, and nothing is left of the bad clients at the end.

mod cancels;
mod greedy;
mod login;
mod session;

use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_tests::load::Load;
use switchyard_tests::{Cluster, Options, Result, Router, RouterOptions, Stories, eventually};

const SOON: Duration = Duration::from_secs(20);
/// The user that bad clients log in as, without a password.
const USER: &str = "mallory";
/// `limits.login_timeout` here.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(3);
/// What any of the stories may cost the router, in bytes. What a client can make it hold is some hundred kilobytes; allocators keep some.
const MEMORY_MAX: u64 = 96 << 20;

/// What a story needs.
struct Yard {
    cluster: Cluster,
    router: Router,
    load: Load,
    pid: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile() -> Result {
    let cluster = Cluster::start(Options::new().members(2).hba(&format!("host all {USER} 127.0.0.1/32 trust"))).await?;
    cluster.leader().await?.ask(&format!("CREATE ROLE {USER} LOGIN; SELECT 1")).await?;
    cluster.settled().await?;
    let router = Router::start(&cluster, options()).await?;
    Load::prepare(&cluster).await?;
    let load = Load::start(&router, 1, 1).await?;
    let pid = router.pid().context("the router's process")?;
    let yard = Yard { cluster, router, load, pid };
    let mut stories = Stories::new();

    stories.tell("garbage on every port", yard.unharmed(login::garbage(&yard))).await;
    stories.tell("startup packets that lie", yard.unharmed(login::lies(&yard))).await;
    stories.tell("silence before the login", yard.unharmed(login::silence(&yard))).await;
    stories.tell("queries before the login", yard.unharmed(login::too_early(&yard))).await;
    stories.tell("thousands that say nothing", yard.unharmed(login::crowd(&yard))).await;
    stories.tell("lengths that lie", yard.unharmed(session::lengths(&yard))).await;
    stories.tell("unknown messages", yard.unharmed(session::unknown(&yard))).await;
    stories.tell("malformed messages", yard.unharmed(session::malformed(&yard))).await;
    stories.tell("what comes behind an error", yard.unharmed(session::skipped(&yard))).await;
    stories.tell("half a message and silence", yard.unharmed(session::halves(&yard))).await;
    stories.tell("anything after a good login", yard.unharmed(session::anything(&yard))).await;
    stories.tell("cancel requests", yard.unharmed(cancels::cancels(&yard))).await;
    stories.tell("clients that stop reading", yard.unharmed(greedy::deaf(&yard))).await;
    stories.tell("pipelines that nobody reads", yard.unharmed(greedy::pipelines(&yard))).await;
    stories.tell("nothing is left", nothing_left(&yard)).await;

    let Yard { cluster, router, load, .. } = yard;
    let report = load.stop().await?;
    println!("meanwhile {} writes and {} reads of healthy sessions", report.acks.len(), report.reads);
    let failed = [&report.write_failures[..], &report.read_failures[..]].concat();
    ensure!(failed.is_empty() && report.ended.is_empty(), "healthy sessions met {failed:?} {:?}", report.ended);
    ensure!(report.went_back.is_empty(), "{:?}", report.went_back);
    report.nothing_is_lost(&cluster).await?;
    stories.end(|| {
        let log = router.log();
        log.get(log.len().saturating_sub(20_000)..).unwrap_or(&log).to_owned()
    })
}

fn options() -> RouterOptions {
    let rule = |text: &str| text.parse::<toml::Table>().expect("a literal of this file");
    let auth = vec![
        toml::Value::Table(rule(&format!("users = ['{USER}']\nmethod = 'trust'"))),
        toml::Value::Table(rule("method = 'scram-sha-256'")),
    ];
    let server_auth = vec![toml::Value::Table(rule(&format!("users = ['{USER}']\nmethod = 'trust'")))];
    RouterOptions::new().set("auth", auth).set("server_auth", server_auth).set("limits.login_timeout", "3s").set("log.filter", "info")
}

impl Yard {
    /// Runs a story, and looks whether anybody else has noticed.
    async fn unharmed(&self, story: impl Future<Output = Result>) -> Result {
        story.await?;
        ensure!(self.router.ended()?.is_none() && self.router.pid() == Some(self.pid), "the router ended");
        self.load.goes_on(10, SOON).await?;
        let memory = self.memory("VmHWM")?;
        println!("the router's memory: {} MB at most so far", memory >> 20);
        ensure!(memory < MEMORY_MAX, "{} MB", memory >> 20);
        ensure!(!self.router.log().contains("panicked"), "something panicked");
        Ok(())
    }

    /// A line of proc(5)'s `status`, in bytes.
    fn memory(&self, line: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).context("the router's status")?;
        let line = status.lines().find_map(|text| text.strip_prefix(line)).context("no such line")?;
        let kilobytes: u64 = line.trim_matches(|letter: char| !letter.is_ascii_digit()).parse().context("kilobytes")?;
        Ok(kilobytes << 10)
    }

    fn ports(&self) -> [u16; 2] {
        [self.router.rw_port(), self.router.ro_port()]
    }
}

/// The bad clients are gone, and what they held is free.
async fn nothing_left(yard: &Yard) -> Result {
    eventually(SOON, "the bad clients are gone", || async {
        let state = yard.router.get("/api/v1/cluster").await?.json()?;
        let pools = state["pools"].as_array().context("pools")?;
        let held = pools.iter().filter(|pool| pool["user"] == USER && (pool["in_use"] != 0 || pool["waiting"] != 0)).count();
        let clients: i64 = state["ports"].as_array().context("ports")?.iter().filter_map(|port| port["clients"].as_i64()).sum();
        // Four writers, and two readers on each port.
        if held > 0 || clients != 8 {
            anyhow::bail!("{held} pools in use, {clients} clients: {}", state["pools"]);
        }
        Ok(Some(()))
    })
    .await?;
    for member in yard.cluster.members() {
        let query = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{USER}' AND state <> 'idle'");
        eventually(SOON, "no statement of theirs runs", || async { Ok((member.ask(&query).await? == "0").then_some(())) }).await?;
    }
    Ok(())
}
