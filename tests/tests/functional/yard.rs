//! The cluster and the router that all stories share, and what several of them need.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_tests::{Batch, Cluster, Member, Options, Raw, Result, Router, RouterOptions, Shared, psql, within};

/// A story that takes longer hangs.
const STORY: Duration = Duration::from_secs(180);
/// For what is a matter of milliseconds, on a machine that is busy with other things.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Yard {
    pub(crate) cluster: Cluster,
    pub(crate) router: Router,
    pub(crate) leader: Member,
    pub(crate) replicas: Vec<Member>,
}

static YARD: Shared<Yard> = Shared::new();

async fn make() -> Result<Yard> {
    let cluster = Cluster::start(Options::new().members(3)).await?;
    // What one story reads isn't to depend on what the others have just written.
    let router = Router::start(&cluster, RouterOptions::new().set("routing.consistency_read_write", "session")).await?;
    let (leader, replicas) = (cluster.leader().await?, cluster.replicas().await?);
    Ok(Yard { cluster, router, leader, replicas })
}

/// Tells a story in its turn. If it fails, the logs tell what the router thought.
pub(crate) async fn tell(story: impl AsyncFnOnce(&Yard) -> Result) -> Result {
    let yard = YARD.turn(make).await?;
    let begin = std::time::Instant::now();
    let told = within(STORY, "the story", story(&yard)).await;
    println!("told in {:.1} s", begin.elapsed().as_secs_f64());
    let alive = yard.router.ended();
    told.map_err(|error| error.context(yard.cluster.logs()))?;
    ensure!(alive?.is_none(), "the router ended\n{}", yard.router.log());
    Ok(())
}

impl Yard {
    /// Statements by the superuser on the leader, and until every replica shows what they made.
    pub(crate) async fn prepare(&self, sql: &str) -> Result {
        self.leader.connect().await?.batch_execute(sql).await.with_context(|| sql.to_owned())?;
        self.cluster.settled().await
    }

    /// Another router in front of the same cluster.
    pub(crate) async fn other_router(&self, options: RouterOptions) -> Result<Router> {
        Router::start(&self.cluster, options).await
    }

    /// Has the same conversation directly with the leader and by the router's read/write port, as role `app`, and compares word for word.
    /// The answer, for a look at it.
    pub(crate) async fn same(&self, router: &Router, batches: &[Batch]) -> Result<Vec<String>> {
        let mut direct = Raw::connect(&self.leader.dsn_for("app")).await?;
        let mut routed = Raw::connect(&router.rw_dsn("app")).await?;
        // First all of the one, then all of the other: what a conversation leaves behind, it cleans up at its beginning.
        let mut answers = Vec::new();
        for (index, batch) in batches.iter().enumerate() {
            answers.push(direct.ask(batch).await.with_context(|| format!("batch {index}, directly"))?);
        }
        let mut all = Vec::new();
        for (index, (batch, expected)) in batches.iter().zip(answers).enumerate() {
            let got = routed.ask(batch).await.with_context(|| format!("batch {index}, by the router; expected {expected:#?}"))?;
            ensure!(got == expected, "batch {index}: directly\n{expected:#?}\nby the router\n{got:#?}");
            all.extend(got);
        }
        Ok(all)
    }

    /// The number of transactions of `database` that each member has counted. Statistics are sent when a session ends.
    pub(crate) async fn transactions(&self, database: &str) -> Result<HashMap<String, i64>> {
        let query = format!("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{database}'");
        let mut counts = HashMap::new();
        for member in self.cluster.members() {
            counts.insert(member.name().to_owned(), member.ask(&query).await?.parse()?);
        }
        Ok(counts)
    }
}

/// A URL with another database.
pub(crate) fn in_database(dsn: &str, database: &str) -> String {
    dsn.strip_suffix("/postgres").map_or_else(|| dsn.to_owned(), |start| format!("{start}/{database}"))
}

/// The first column of the first row, by psql.
pub(crate) async fn ask(dsn: &str, sql: &str) -> Result<String> {
    Ok(psql(dsn, &["-c", sql]).await?.success()?.lines().next().unwrap_or_default().to_owned())
}

/// A metric of one sample, by its name with labels, such as `switchyard_clients{port="read_write"}`; 0 where it isn't there yet.
pub(crate) async fn metric(router: &Router, name: &str) -> Result<f64> {
    let text = router.get("/metrics").await?.body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.map(|value| value.split(' ').next().unwrap_or_default().parse()).transpose()?.unwrap_or_default())
}

/// A figure of a process from /proc, in bytes: `VmRSS` or `VmHWM`.
pub(crate) fn memory(pid: u32, figure: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':')).context("no such figure")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
