//! What clients see of a cluster that is broken on purpose, through the router: nothing that could have been avoided.
//!
//! One cluster of three with synchronous replication lives through all of it; each story leaves it whole for the next.

mod cut_off;
mod disk_full;
mod in_flight;
mod last_words;
mod line;
mod paused;
mod planned;
mod promoted;
mod read_only;
mod requests;
mod rotation;
mod streams;
mod tool;
mod under_load;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use switchyard_tests::load::sqlstate;
use switchyard_tests::{Cluster, Member, Options, Result, Router, RouterOptions, Stories, Synchronous, eventually};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

/// For what takes a moment.
const SOON: Duration = Duration::from_secs(20);
/// Longer than writes may wait in line.
const LONG: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread")]
async fn faults() -> Result {
    let cluster = Cluster::start(Options::new().members(3).synchronous(Synchronous::On)).await?;
    let router = Router::start(&cluster, RouterOptions::new()).await?;
    let mut stories = Stories::new();

    stories.tell("a replica is killed under read load", under_load::replica_killed(&cluster, &router)).await;
    stories.tell("a switchover under load", under_load::switchover(&cluster, &router)).await;
    stories.tell("our own switchover under load", planned::switchover(&cluster, &router)).await;
    stories.tell("our own switchover, refused", planned::switchover_refused(&cluster, &router)).await;
    stories.tell("our own switchover, forced", planned::switchover_forced(&cluster, &router)).await;
    stories.tell("a switchover behind our back under load", last_words::switchover_behind_our_back(&cluster, &router)).await;
    stories.tell("what is in flight in a switchover behind our back", last_words::in_flight(&cluster, &router)).await;
    stories.tell("a switchover that is scheduled", requests::scheduled(&cluster, &router)).await;
    stories.tell("a switchover that comes to nothing", requests::rejected(&cluster, &router)).await;
    stories.tell("a replica is promoted under sessions of the read-only port", promoted::a_replica(&cluster)).await;
    stories.tell("an administrator ends a connection", last_words::terminated(&cluster, &router)).await;
    stories.tell("a replica is drained under read load", planned::drain(&cluster, &router)).await;
    stories.tell("the leader is killed under load", under_load::leader_killed(&cluster, &router)).await;
    stories.tell("the leader is killed under load, replicated asynchronously", under_load::leader_killed_asynchronously()).await;
    stories.tell("what is in flight when the leader dies", in_flight::leader_dies(&cluster, &router)).await;
    stories.tell("a read in flight on a replica that dies", in_flight::replica_dies(&cluster, &router)).await;
    stories.tell("no leader for longer than writes may wait", line::no_leader(&cluster)).await;
    stories.tell("a leader that lets nobody in", line::nobody_gets_in(&cluster, &router)).await;
    stories.tell("the router is stopped over a switchover", paused::over_a_switchover(&cluster)).await;
    stories.tell("the router wakes to a leader that lost its key", paused::over_a_lost_lease(&cluster)).await;
    stories.tell("the leader hangs, and wakes up", paused::the_leader(&cluster)).await;
    stories.tell("a replica hangs with reads under way", paused::a_replica(&cluster, &router)).await;
    stories.tell("the leader is cut off from etcd", cut_off::from_etcd(&cluster, &router)).await;
    stories.tell("a member's disk is full", disk_full::a_member()).await;
    stories.tell("etcd is away under load", under_load::etcd_away(&cluster, &router)).await;
    stories.tell("the tool that watches a failover", tool::figures(&cluster, &router)).await;
    stories.tell("a replica that lags gets nothing", rotation::lagging(&cluster)).await;
    stories.tell("a replica that follows another one", rotation::cascaded()).await;
    stories.tell("a new member comes, and goes again", rotation::new_member(&cluster, &router)).await;
    stories.tell("the read-only port without a replica", read_only::no_replica(&cluster, &router)).await;

    ensure!(router.ended()?.is_none(), "the router ended");
    stories.end(|| format!("{}\n--- router\n{}", cluster.logs(), tail(&router.log())))
}

fn tail(log: &str) -> &str {
    let start = log.len().saturating_sub(20_000);
    log.get(start..).unwrap_or(log)
}

/// The member that may take over without a loss.
async fn sync_standby(cluster: &Cluster) -> Result<Member> {
    let leader = cluster.leader().await?;
    eventually(SOON, "there is a synchronous standby", || async {
        let sync: Value = serde_json::from_str(&cluster.key_value("sync").await?.context("no sync key")?)?;
        let standby = sync["sync_standby"].as_str().and_then(|name| cluster.named(name));
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        let standby = standby.filter(|standby| *standby != leader);
        Ok(if leader.ask(streams).await? == "1" { standby } else { None })
    })
    .await
}

/// Waits until nothing is left of the last fault: every member streams or leads, there is a synchronous standby, and the router uses all.
async fn whole(cluster: &Cluster, router: &Router) -> Result {
    for member in cluster.members() {
        // Left dead by a story that failed.
        if member.processes()?.is_empty() {
            cluster.start_member(&member).await?;
        }
    }
    cluster.settled().await?;
    sync_standby(cluster).await?;
    let replicas = cluster.members().len() - 1;
    eventually(SOON, "the router uses every member", || async {
        let state = router.get("/api/v1/cluster").await?.json()?;
        let serving = state["cluster"]["replicas_serving"].as_u64();
        Ok((serving == Some(replicas as u64) && state["cluster"]["state"] == "stable").then_some(()))
    })
    .await
}

/// A session whose end can be looked at.
struct Watched {
    client: Arc<Client>,
    end: JoinHandle<std::result::Result<(), tokio_postgres::Error>>,
}

impl Watched {
    async fn open(dsn: &str) -> Result<Watched> {
        let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
        Ok(Watched { client: Arc::new(client), end: tokio::spawn(connection) })
    }

    async fn run(&self, sql: &str) -> Result {
        self.client.batch_execute(sql).await.with_context(|| sql.to_owned())
    }

    /// The SQLSTATE that the statement fails with.
    async fn fails(&self, sql: &str) -> Result<String> {
        match self.client.batch_execute(sql).await {
            Ok(()) => bail!("{sql}: no error"),
            Err(error) => sqlstate(&error).with_context(|| format!("{sql}: {error:?}")),
        }
    }

    /// Leaves a statement running.
    fn start(&self, sql: &str) -> Running {
        let (client, sql) = (self.client.clone(), sql.to_owned());
        let began = Instant::now();
        Running(tokio::spawn(async move {
            let result = client.batch_execute(&sql).await;
            (result, began.elapsed())
        }))
    }

    /// The SQLSTATE that the session was ended with.
    async fn ended_with(self) -> Result<String> {
        let end = tokio::time::timeout(SOON, self.end).await.context("the session lives on")??;
        let error = end.err().context("the session ended without a word")?;
        sqlstate(&error).with_context(|| format!("{error:?}"))
    }
}

/// A statement under way.
struct Running(JoinHandle<(std::result::Result<(), tokio_postgres::Error>, Duration)>);

impl Running {
    /// Its error, if any, and how long it took.
    async fn outcome(self) -> Result<(Option<tokio_postgres::Error>, Duration)> {
        let (result, took) = tokio::time::timeout(LONG, self.0).await.context("a statement hangs")??;
        Ok((result.err(), took))
    }

    async fn fails(self) -> Result<String> {
        let (error, took) = self.outcome().await?;
        let error = error.with_context(|| format!("no error, after {took:?}"))?;
        sqlstate(&error).with_context(|| format!("{error:?}"))
    }

    async fn succeeds(self) -> Result<Duration> {
        match self.outcome().await? {
            (None, took) => Ok(took),
            (Some(error), took) => Err(error).with_context(|| format!("after {took:?}")),
        }
    }
}
