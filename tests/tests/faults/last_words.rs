//! What a server's last words prove: a lone write that a switchover behind our back cuts runs again, an administrator's kill stands.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use switchyard_tests::cluster::{column, connect};
use switchyard_tests::load::{Load, sqlstate};
use switchyard_tests::{Cluster, Member, Result, Router, eventually};

use super::{SOON, Watched, sync_standby, whole};

/// Statements of each session that count as "it goes on".
const ON: u64 = 30;

/// 16 writers and 16 readers, and a switchover that the router is not told of.
pub(crate) async fn switchover_behind_our_back(cluster: &Cluster, router: &Router) -> Result {
    Load::prepare(cluster).await?;
    whole(cluster, router).await?;
    let load = Load::start(router, 4, 4).await?;
    load.goes_on(ON, SOON).await?;
    for _ in 0..2 {
        let (old, new) = (cluster.leader().await?, sync_standby(cluster).await?);
        cluster.switchover(&new).await?;
        load.goes_on(ON, SOON).await?;
        eventually(SOON, "the old leader follows", || async { Ok(old.is_in_recovery().await?.then_some(())) }).await?;
        whole(cluster, router).await?;
    }
    let report = load.stop().await?;
    ensure!(report.ended.is_empty(), "sessions ended: {:?}", report.ended);
    ensure!(report.read_failures.is_empty(), "readers' errors: {:?}", report.read_failures);
    let cut = commits_cut(cluster)?;
    println!("{cut} commits were cut while they waited for a standby");
    let unknown = report.write_failures.iter().filter(|failure| failure.sqlstate.as_deref() == Some("08007")).count();
    ensure!(unknown <= cut, "{unknown} outcomes are unknown, {cut} commits were cut: {:?}", report.write_failures);
    for failure in &report.write_failures {
        let sqlstates: &[_] = if failure.session.contains("Transaction") { &["40001", "08007"] } else { &["08007"] };
        ensure!(failure.sqlstate.as_deref().is_some_and(|sqlstate| sqlstates.contains(&sqlstate)), "{failure:?}");
    }
    println!("{} writes, {} reads; writers' errors {:?}", report.acks.len(), report.reads, report.write_sqlstates());
    // Each write has a key of its own: one that ran twice would have failed the second time.
    report.nothing_is_lost(cluster).await
}

/// Commits that were in their wait for the synchronous standby when their server was told to go: it says nothing of them but a WARNING, and
/// whether the standby has them, nobody knows (`SyncRepWaitForLSN`).
fn commits_cut(cluster: &Cluster) -> anyhow::Result<usize> {
    let count =
        |member: &Member| Ok(std::fs::read_to_string(member.log())?.matches("canceling the wait for synchronous replication").count());
    cluster.members().iter().map(count).sum()
}

/// Statements that run while the leader is asked to go, by what they are.
pub(crate) async fn in_flight(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    let leader = cluster.leader().await?;
    let tables = "CREATE TABLE words (token text PRIMARY KEY, port int DEFAULT inet_server_port()); CREATE TABLE triggered (token text); \
                  CREATE FUNCTION outside() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
                  CREATE TRIGGER outside BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION outside()";
    connect(&leader.dsn_for("app")).await?.batch_execute(tables).await?;
    let asking = router.rw("app").await?;
    known(&asking, "INSERT INTO words VALUES ('x')", true).await?;
    known(&asking, "INSERT INTO triggered VALUES ('x')", false).await?;
    cluster.settled().await?;

    let slow = |table: &str, token: &str| format!("INSERT INTO {table} (token) SELECT '{token}' FROM pg_sleep(600) RETURNING token");
    // Long enough to be cut, and not too long to be waited for again.
    let again = |token: &str| format!("INSERT INTO words (token) SELECT '{token}' FROM pg_sleep(5)");
    let dsn = router.rw_dsn("app");
    let open = || Watched::open(&dsn);
    let simple = open().await?.start(&again("simple"));
    let extended_session = open().await?;
    let extended = {
        let (client, sql) = (extended_session.client.clone(), again("extended"));
        tokio::spawn(async move { client.execute(&sql, &[]).await })
    };
    let update_session = open().await?;
    let triggered = open().await?.start(&slow("triggered", "triggered"));
    let two = open().await?.start(&format!("{}; {}", slow("words", "two"), slow("words", "three")));
    let in_transaction = open().await?;
    in_transaction.run("BEGIN").await?;
    let transaction = in_transaction.start(&slow("words", "transaction"));
    let code = open().await?.start("DO $$ BEGIN PERFORM pg_sleep(600); END $$");
    let running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'PgSleep'";
    eventually(SOON, "all of them run", || async { Ok((leader.ask(running).await? == "6").then_some(())) }).await?;

    let new = sync_standby(cluster).await?;
    let asked = Instant::now();
    cluster.switchover(&new).await?;
    println!("the new leader takes writes {:.2} s after the request", asked.elapsed().as_secs_f64());
    let took = simple.succeeds().await.context("simple")?;
    ensure!(took > Duration::from_secs(5), "it didn't run again: {took:?}");
    ensure!(extended.await?.context("extended")? == 1);
    println!("both lone writes were done {:.2} s after the request", asked.elapsed().as_secs_f64());
    ensure!(triggered.fails().await? == "08007");
    ensure!(two.fails().await? == "08007");
    ensure!(transaction.fails().await? == "40001");
    ensure!(code.fails().await? == "08007");
    update_session.run("INSERT INTO words VALUES ('after')").await?;
    let there = new.ask("SELECT string_agg(token, ' ' ORDER BY token) FROM words").await?;
    ensure!(there == "after extended simple", "{there}");
    ensure!(new.ask(&format!("SELECT count(*) FROM words WHERE port = {}", new.port())).await? == "3");
    whole(cluster, router).await
}

pub(crate) async fn terminated(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    let leader = cluster.leader().await?;
    connect(&leader.dsn_for("app")).await?.batch_execute("CREATE TABLE killed (token text)").await?;
    cluster.settled().await?;
    known(&router.rw("app").await?, "INSERT INTO killed VALUES ('x')", true).await?;
    let sleeping = "SELECT coalesce(min(pid), 0) FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'PgSleep'";
    for sql in ["INSERT INTO killed SELECT 'killed' FROM pg_sleep(30)", "SELECT 1 FROM pg_sleep(30)"] {
        let session = Watched::open(&router.rw_dsn("app")).await?;
        let runs = session.start(sql);
        let members = cluster.members();
        let (member, pid) = eventually(SOON, "it runs", || async {
            for member in &members {
                let pid = member.ask(sleeping).await?;
                if pid != "0" {
                    return Ok(Some((member.clone(), pid)));
                }
            }
            Ok(None)
        })
        .await?;
        let killed = Instant::now();
        member.ask(&format!("SELECT pg_terminate_backend({pid})")).await?;
        let (error, _) = runs.outcome().await?;
        let error = error.with_context(|| format!("{sql}: no error"))?;
        ensure!(sqlstate(&error).as_deref() == Some("57P01"), "{sql}: {error:?}");
        ensure!(killed.elapsed() < Duration::from_secs(2), "told after {:?}", killed.elapsed());
        // Nowhere is it run again.
        let mut still = BTreeMap::new();
        for member in &members {
            still.insert(member.name().to_owned(), member.ask(sleeping).await?);
        }
        ensure!(still.values().all(|pid| pid == "0"), "{sql} runs again: {still:?}");
        ensure!(session.end.await?.is_err(), "{sql}: the session goes on");
    }
    ensure!(leader.ask("SELECT count(*) FROM killed").await? == "0");
    whole(cluster, router).await
}

/// Waits until the router knows whether a write may run again.
async fn known(client: &tokio_postgres::Client, sql: &str, runs_again: bool) -> Result {
    let ask = format!("EXPLAIN (ROUTE) {sql}");
    eventually(SOON, "the router knows the table", || async {
        let lines = column(client, &ask).await?;
        let known = lines.iter().any(|line| line.starts_with("Facts: as the leader's"));
        Ok((known && lines.iter().any(|line| line.contains("once its rollback is proven")) == runs_again).then_some(()))
    })
    .await
}
