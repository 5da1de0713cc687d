//! What one statement, transaction or session gets when its server dies, by what it was doing (design, section 4).

use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_tests::cluster::connect;
use switchyard_tests::{Cluster, Member, Result, Router, eventually};

use super::{SOON, Watched, whole};

pub(crate) async fn leader_dies(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    let leader = cluster.leader().await?;
    connect(&leader.dsn_for("app")).await?.batch_execute("CREATE TABLE flight (what text)").await?;
    cluster.settled().await?;
    let dsn = router.rw_dsn("app");
    let open = || Watched::open(&dsn);

    let insert = "INSERT INTO flight SELECT 'insert' FROM pg_sleep(600)";
    let simple = open().await?;
    let simple_runs = simple.start(insert);
    let extended = open().await?;
    let extended_runs = {
        let client = extended.client.clone();
        tokio::spawn(async move { client.execute(insert, &[]).await.map(drop) })
    };
    let in_transaction = open().await?;
    in_transaction.run("BEGIN; INSERT INTO flight VALUES ('in a transaction')").await?;
    let transaction_runs = in_transaction.start("SELECT pg_sleep(600)");
    let pinned_busy = open().await?;
    pinned_busy.run("CREATE TEMP TABLE mine (id int)").await?;
    let pinned_runs = pinned_busy.start(insert);

    let idle_in_transaction = open().await?;
    idle_in_transaction.run("BEGIN").await?;
    idle_in_transaction.run("INSERT INTO flight VALUES ('idle in a transaction')").await?;
    let about_to_commit = open().await?;
    about_to_commit.run("BEGIN").await?;
    about_to_commit.run("INSERT INTO flight VALUES ('about to commit')").await?;
    let failed = open().await?;
    failed.run("BEGIN").await?;
    ensure!(failed.fails("SELECT 1/0").await? == "22012");
    let idle = open().await?;
    idle.run("INSERT INTO flight VALUES ('before')").await?;
    let pinned = open().await?;
    pinned.run("CREATE TEMP TABLE mine (id int)").await?;
    running(&leader, "pg_sleep(600)", 4).await?;

    // A COMMIT that waits for a standby which hangs.
    let committing = open().await?;
    committing.run("BEGIN").await?;
    committing.run("INSERT INTO flight VALUES ('committing')").await?;
    let replicas = cluster.replicas().await?;
    for replica in &replicas {
        replica.pause().await?;
    }
    let commit_runs = committing.start("COMMIT");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually(SOON, "the COMMIT waits", || async { Ok((leader.ask(waits).await? == "1").then_some(())) }).await?;

    leader.kill().await?;
    replicas.iter().try_for_each(Member::resume)?;

    ensure!(simple_runs.fails().await? == "08007");
    let error = extended_runs.await?.err().context("no error")?;
    ensure!(error.code().is_some_and(|code| code.code() == "08007"), "{error:?}");
    ensure!(commit_runs.fails().await? == "08007");
    ensure!(transaction_runs.fails().await? == "40001");
    let busy = pinned_runs.outcome().await?;
    let busy = busy.0.context("no error")?;
    let busy_end = pinned_busy.end.await?;
    let fatal = switchyard_tests::load::sqlstate(&busy);
    ensure!(fatal.as_deref() == Some("08007"), "{busy:?}, then {busy_end:?}");
    ensure!(pinned.ended_with().await? == "57P01");

    // While there is no leader yet: what needs none is answered at once.
    ensure!(idle_in_transaction.fails("SELECT 1").await? == "40001");
    for sql in ["SELECT 1", "INSERT INTO flight VALUES ('never')", "SAVEPOINT s", "ROLLBACK TO SAVEPOINT s", "RELEASE SAVEPOINT s"] {
        let sqlstate = idle_in_transaction.fails(sql).await.context("idle in a transaction")?;
        ensure!(sqlstate == "25P02", "{sql}: {sqlstate}");
        let sqlstate = in_transaction.fails(sql).await.context("in a transaction")?;
        ensure!(sqlstate == "25P02", "{sql}: {sqlstate}");
    }
    ensure!(failed.fails("SELECT 1").await? == "25P02");
    ensure!(about_to_commit.fails("COMMIT").await? == "40001");

    cluster.expire_leader().await?;
    let survivors = [
        ("simple", simple),
        ("extended", extended),
        ("in a transaction", in_transaction),
        ("idle in a transaction", idle_in_transaction),
        ("failed", failed),
        ("about to commit", about_to_commit),
        ("committing", committing),
        ("idle", idle),
    ];
    for (what, session) in &survivors {
        // Outside a transaction it is a warning, and no error.
        session.run("ROLLBACK").await.with_context(|| (*what).to_owned())?;
        session.run(&format!("INSERT INTO flight VALUES ('after: {what}')")).await?;
        session.run("BEGIN; INSERT INTO flight VALUES ('again'); COMMIT").await.with_context(|| (*what).to_owned())?;
    }
    let new = cluster.new_leader(&leader).await?;
    let count = "SELECT count(*) FILTER (WHERE what LIKE 'after: %') || ' ' || count(*) FILTER (WHERE what = 'again') || ' ' || \
                 count(*) FILTER (WHERE what IN ('insert', 'never', 'in a transaction', 'idle in a transaction', 'about to commit')) FROM flight";
    let counted = new.ask(count).await?;
    ensure!(counted == format!("{0} {0} 0", survivors.len()), "{counted}");
    cluster.start_member(&leader).await?;
    whole(cluster, router).await
}

pub(crate) async fn replica_dies(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    let read = "SELECT 1 FROM pg_sleep(3)";
    for dsn in [router.ro_dsn("app"), router.rw_dsn("app")] {
        let session = Watched::open(&dsn).await?;
        let runs = session.start(read);
        let replicas = cluster.replicas().await?;
        let victim = eventually(SOON, "a replica runs it", || async {
            for replica in &replicas {
                if running_now(replica, "pg_sleep(3)").await? == 1 {
                    return Ok(Some(replica.clone()));
                }
            }
            Ok(None)
        })
        .await?;
        victim.kill().await?;
        let took = runs.succeeds().await?;
        ensure!(took > Duration::from_secs(3), "it didn't run again: {took:?}");
        session.run("SELECT 1").await?;
        cluster.start_member(&victim).await?;
        whole(cluster, router).await?;
    }
    Ok(())
}

pub(super) async fn running(member: &Member, text: &str, count: i64) -> Result {
    let what = format!("{} runs {text} {count} times", member.name());
    eventually(SOON, &what, || async { Ok((running_now(member, text).await? == count).then_some(())) }).await
}

/// How many sessions run a statement with `text` in it.
async fn running_now(member: &Member, text: &str) -> Result<i64> {
    let query = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() AND strpos(query, $1) > 0";
    Ok(member.connect().await?.query_one(query, &[&text]).await?.get(0))
}
