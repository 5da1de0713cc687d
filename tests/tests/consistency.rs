//! `switchyard check-consistency` against a cluster whose replicas are late, while its leader changes: at each level, what it promises.
//!
//! Synchronous replication, so that no acknowledged write is lost and every violation is the router's. `SWITCHYARD_READS` sets how many reads
//! each run makes: 1000000 for what the project promises; `SWITCHYARD_LEVEL=session` leaves the other levels out where the leader changes.

use std::convert::Infallible;
use std::fmt;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use switchyard_tests::cluster::{connect, first_value};
use switchyard_tests::machine;
use switchyard_tests::{Cluster, Member, Options, Result, Router, RouterOptions, Stories, Synchronous, eventually};
use tokio::process::{Child, Command};
use tokio_postgres::Client;

/// Reads of one run.
const READS: u64 = 8_000;
const SOON: Duration = Duration::from_secs(30);
/// For so long a commit is kept waiting: much longer than one usually waits, and less than Patroni waits for a standby.
const UNSETTLED: Duration = Duration::from_secs(2);

/// The first leads; by how much each replays late.
const MEMBERS: [&str; 5] = ["first", "prompt", "flapping", "late", "very-late"];
const DELAYS: [Duration; 5] =
    [Duration::ZERO, Duration::ZERO, Duration::from_millis(5), Duration::from_millis(200), Duration::from_millis(2_000)];
const FLAPPING: &str = MEMBERS[2];

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
        // What was in flight when its server was lost may end so; anything else isn't a failover's.
        let errors = text.lines().find_map(|line| line.strip_prefix("errors: ")).context("no line of errors")?;
        let (errors, _) = errors.split_once(';').context("nothing on lost connections")?;
        let expected = |error: &str| error == "none" || error.ends_with("of 08007") || error.ends_with("of 40001");
        ensure!(errors.split(", ").all(expected), "errors that no loss explains\n{text}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consistency() -> Result {
    // The flapping one is never waited for by a commit.
    let options = Options::new().members(5).synchronous(Synchronous::On).names(&MEMBERS);
    let cluster = Cluster::start(options.tag(FLAPPING, "nosync", true).tag(FLAPPING, "nofailover", true)).await?;
    let (router, other) = (Router::start(&cluster, RouterOptions::new()).await?, Router::start(&cluster, RouterOptions::new()).await?);
    for (name, delay) in MEMBERS.iter().zip(DELAYS).skip(1) {
        cluster.delay_replay(&cluster.named(name).context("a member is missing")?, delay).await?;
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
        stories.tell(&format!("{level} with late replicas"), late(&cluster, &router, None, level)).await;
    }
    stories.tell("strong through two routers", late(&cluster, &router, Some(&other), "strong")).await;
    stories.tell("a commit that waits for a synchronous standby", waiting_commit(&cluster, &router)).await;
    stories.tell("every level while the leader changes and a replica comes and goes", changes(&cluster, &router, &other)).await;
    ensure!(router.ended()?.is_none() && other.ended()?.is_none(), "a router ended");
    stories.end(|| format!("{}\n--- router\n{}", cluster.logs(), router.log()))
}

/// A check at one level. Nothing is shown by it unless replicas serve.
async fn late(cluster: &Cluster, router: &Router, other: Option<&Router>, level: &str) -> Result {
    let before = Reads::of(cluster, router).await?;
    Check::start(router, other, level, reads())?.finds_nothing().await?;
    let served = Reads::of(cluster, router).await?.since(&before);
    println!("{served}");
    ensure!(served.replicas > 0.0, "no replica has served a read: {served}");
    Ok(())
}

/// A commit waits for its synchronous standby, which is stopped: replicas show it and the leader doesn't. Whoever has seen it isn't shown less.
async fn waiting_commit(cluster: &Cluster, router: &Router) -> Result {
    let (writer, reader) = (connect(&router.rw_dsn("app")).await?, connect(&router.rw_dsn("app")).await?);
    writer.batch_execute("CREATE TABLE waiting_commit (n int); INSERT INTO waiting_commit VALUES (1)").await?;
    reader.batch_execute("SET switchyard.consistency = 'session'").await?;
    let standby = sync_standby(cluster).await?;
    standby.pause().await?;
    // What has been sent there before this waits for it, too.
    let out = async || {
        let state = router.get("/api/v1/cluster").await?.json()?;
        let members = state["members"].as_array().context("members")?;
        Ok(members.iter().any(|member| member["name"] == standby.name() && member["out"] == "unreachable").then_some(()))
    };
    eventually(SOON, "the stopped standby is out", out).await?;
    let write = tokio::spawn(async move { writer.batch_execute("UPDATE waiting_commit SET n = 2").await });
    let outcome = tokio::time::timeout(SOON, async {
        let dirty = async || Ok((read(&reader, "replica").await? == "2").then_some(()));
        eventually(SOON, "a replica shows the commit", dirty).await?;
        ensure!(!write.is_finished(), "the commit waited for nobody");
        let mut on_leader = pin!(read(&reader, "leader"));
        // Nothing ends this wait but the standby's return.
        if let Ok(answer) = tokio::time::timeout(UNSETTLED, &mut on_leader).await {
            bail!("the leader was asked while it couldn't show the commit: {answer:?}");
        }
        standby.resume()?;
        let answer = on_leader.await?;
        ensure!(answer == "2", "the leader's answer: {answer}");
        Ok(())
    })
    .await;
    // Also where that has failed: the stories behind this one need it.
    standby.resume()?;
    outcome.context("the reads took too long")??;
    write.await??;
    Ok(())
}

/// What the table shows, read where `hint` wants it.
async fn read(client: &Client, hint: &str) -> Result<String> {
    let messages = client.simple_query(&format!("/* switchyard: {hint} */ SELECT n FROM waiting_commit")).await?;
    Ok(first_value(&messages).context("no row")?.to_owned())
}

/// All levels at the same time, over a switchover and a `kill -9` of the leader.
async fn changes(cluster: &Cluster, router: &Router, other: &Router) -> Result {
    let flapping = cluster.named(FLAPPING).context("a member is missing")?;
    let mut checks = Vec::new();
    let only = std::env::var("SWITCHYARD_LEVEL").ok();
    let all = [("session", None), ("global", None), ("strong", Some(other))];
    for (level, second) in all.into_iter().filter(|(level, _)| only.as_ref().is_none_or(|only| only == level)) {
        // Enough to last until the second leader is lost, in a long run too.
        let reads = if level == "strong" { 2 } else { 5 } * READS;
        checks.push((level, Check::start(router, second, level, reads.max(self::reads()))?));
    }
    let mut falls = 0;
    let ended = tokio::select! {
        ended = fall_of_leaders(cluster, checks) => ended?,
        never = flap(cluster, &flapping, &mut falls) => match never? {},
    };
    println!("{FLAPPING} was killed {falls} times");
    ensure!(falls >= 2, "{FLAPPING} was killed {falls} times only");
    ensure!(ended.is_empty(), "{}", ended.join("\n"));
    Ok(())
}

/// What the checks found, each in a line.
async fn fall_of_leaders(cluster: &Cluster, mut checks: Vec<(&'static str, Check)>) -> Result<Vec<String>> {
    let mut rounds = 1;
    let mut old = leaders_change(cluster).await?;
    let mut failed = Vec::new();
    for (level, check) in &mut checks {
        if !check.runs()? {
            failed.push(format!("{level}: was over before the leader was lost"));
        }
    }
    // A long run goes through that again and again.
    while reads() > READS && checks.iter_mut().any(|(_, check)| check.runs().unwrap_or(false)) {
        cluster.start_member(&old).await?;
        old = leaders_change(cluster).await?;
        rounds += 1;
    }
    println!("{rounds} switchovers and as many leaders killed");
    for (level, check) in checks {
        if let Err(error) = check.finds_nothing().await {
            failed.push(format!("{level}: {error:#}"));
        }
    }
    Ok(failed)
}

/// A switchover, and a `kill -9` of the new leader, which is given back: nobody has restarted it.
async fn leaders_change(cluster: &Cluster) -> Result<Member> {
    cluster.switchover(&sync_standby(cluster).await?).await?;
    sync_standby(cluster).await?;
    let old = cluster.kill_leader().await?;
    cluster.expire_leader().await?;
    eventually(SOON, "another one leads", || async { Ok(cluster.leader_now().await?.filter(|leader| *leader != old)) }).await?;
    Ok(old)
}

/// `kill -9` of a replica and its return, again and again: each time it opens at an older position than it has shown.
async fn flap(cluster: &Cluster, member: &Member, falls: &mut u32) -> Result<Infallible> {
    loop {
        member.kill().await?;
        *falls += 1;
        // While there is no leader, it can't follow one; the next round tries again.
        if let Err(error) = cluster.start_member(member).await {
            println!("{} isn't back: {error:#}", member.name());
        }
    }
}

/// Batches that only read, by a router's count.
#[derive(Clone, Copy, Default)]
struct Reads {
    replicas: f64,
    all: f64,
}

impl Reads {
    /// Of those that are replicas now.
    async fn of(cluster: &Cluster, router: &Router) -> Result<Reads> {
        let leader = cluster.leader().await?;
        let metrics = router.get("/metrics").await?.body;
        let mut reads = Reads::default();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("switchyard_reads_total{node=\"") else { continue };
            let (node, count) = rest.split_once("\"} ").context("a count without a value")?;
            let count: f64 = count.split(' ').next().unwrap_or_default().parse()?;
            reads.all += count;
            if node != leader.name() {
                reads.replicas += count;
            }
        }
        Ok(reads)
    }

    fn since(self, before: &Reads) -> Reads {
        Reads { replicas: self.replicas - before.replicas, all: self.all - before.all }
    }
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} reads by replicas", self.replicas, self.all)
    }
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
