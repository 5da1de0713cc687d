//! The read-only port when no replica is left.

use anyhow::{Context, ensure};
use switchyard_tests::cluster::connect;
use switchyard_tests::{Cluster, Result, Router, RouterOptions, eventually};

use super::{SOON, Watched, whole};

/// What a standby refuses and `default_transaction_read_only` alone doesn't, and what would get round it.
const REFUSED: [&str; 14] = [
    "INSERT INTO fallen VALUES (1)",
    "VACUUM fallen",
    "ANALYZE fallen",
    "NOTIFY fallen",
    "LISTEN fallen",
    "CALL fall()",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CREATE TEMP TABLE mine (id int)",
    "SELECT * FROM fallen FOR UPDATE",
    "SELECT nextval('falling')",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "BEGIN READ WRITE; INSERT INTO fallen VALUES (2); COMMIT",
    "SET default_transaction_read_only = off; INSERT INTO fallen VALUES (3)",
    "SELECT lo_create(0)",
];

pub(crate) async fn no_replica(cluster: &Cluster, router: &Router) -> Result {
    let strict = Router::start(cluster, RouterOptions::new().set("routing.fallback_to_leader", false)).await?;
    whole(cluster, router).await?;
    let leader = cluster.leader().await?;
    let setup =
        "CREATE TABLE fallen (id int); CREATE SEQUENCE falling; CREATE PROCEDURE fall() LANGUAGE sql AS 'INSERT INTO fallen VALUES (9)'";
    connect(&leader.dsn_for("app")).await?.batch_execute(setup).await?;
    cluster.settled().await?;
    // One that was there before, and one that comes when all replicas are gone.
    let before = Watched::open(&router.ro_dsn("app")).await?;
    before.run("SELECT 1").await?;
    let refused_before = Watched::open(&strict.ro_dsn("app")).await?;
    let replicas = cluster.replicas().await?;
    for replica in &replicas {
        cluster.stop(replica).await?;
    }
    for router in [router, &strict] {
        eventually(SOON, "no replica serves", || async {
            let state = router.get("/api/v1/cluster").await?.json()?;
            Ok((state["cluster"]["replicas_serving"] == 0).then_some(()))
        })
        .await?;
    }
    let after = Watched::open(&router.ro_dsn("app")).await?;
    for session in [&before, &after] {
        let count: i64 = session.client.query_one("SELECT count(*) FROM fallen", &[]).await?.get(0);
        ensure!(count == 0, "{count}");
        for sql in ["SELECT inet_server_port()", "SELECT current_setting('port'), now()"] {
            session.run(sql).await?;
        }
        for sql in REFUSED {
            let sqlstate = session.fails(sql).await?;
            ensure!(sqlstate == "25006", "{sql}: {sqlstate}");
            // Whatever it was, the session goes on, outside a transaction.
            session.run("ROLLBACK").await?;
            session.run("SELECT count(*) FROM fallen").await.with_context(|| format!("after {sql}"))?;
        }
        let prepared = session.client.execute("INSERT INTO fallen VALUES (4)", &[]).await;
        ensure!(prepared.is_err_and(|error| error.code().is_some_and(|code| code.code() == "25006")));
        session.run("BEGIN").await?;
        session.run("SELECT count(*) FROM fallen").await?;
        ensure!(session.fails("INSERT INTO fallen VALUES (5)").await? == "25006");
        ensure!(session.fails("SELECT 1").await? == "25P02", "a refusal fails the transaction");
        session.run("ROLLBACK").await?;
        ensure!(session.fails("BEGIN READ WRITE; SELECT 1; COMMIT").await? == "25006");
        session.run("ROLLBACK").await?;
    }
    // A refusal comes behind the answers that are owed before it.
    let client = &after.client;
    let (read, refused) = tokio::join!(client.simple_query("SELECT 'first' FROM pg_sleep(0.3)"), client.simple_query("VACUUM fallen"));
    ensure!(read?.len() > 1, "no row");
    ensure!(refused.is_err_and(|error| error.code().is_some_and(|code| code.code() == "25006")));
    ensure!(leader.ask("SELECT count(*) FROM fallen").await? == "0");
    ensure!(leader.ask("SELECT count(*) FROM pg_largeobject_metadata").await? == "0");

    ensure!(refused_before.fails("SELECT 1").await? == "57P03");
    ensure!(refused_before.fails("SELECT 1").await? == "57P03", "the session lives");
    for replica in &replicas {
        cluster.start_member(replica).await?;
    }
    whole(cluster, &strict).await?;
    refused_before.run("SELECT count(*) FROM fallen").await?;
    whole(cluster, router).await?;
    let served: i32 = before.client.query_one("SELECT inet_server_port()", &[]).await?.get(0);
    ensure!(served != i32::from(leader.port()), "a replica serves again");
    Ok(())
}
