//! A replica is promoted while sessions of the read-only port hold connections to it, which would take writes from then on.

use anyhow::{Context, ensure};
use switchyard_tests::load::Load;
use switchyard_tests::{Cluster, Member, Result, Router, RouterOptions, eventually};

use super::{SOON, Watched, sync_standby, whole};

pub(crate) async fn a_replica(cluster: &Cluster) -> Result {
    let router = Router::start(cluster, RouterOptions::new()).await?;
    whole(cluster, &router).await?;
    Load::prepare(cluster).await?;
    let (old, new) = (cluster.leader().await?, sync_standby(cluster).await?);
    let other = cluster.replicas().await?.into_iter().find(|member| *member != new).context("a third member")?;
    // So that all of them read on the one that is to lead.
    router.obey(&["drain", other.name()]).await?;
    let transaction = on(&router, &new, "BEGIN").await?;
    // Session locks keep the connection.
    let pinned = on(&router, &new, "SELECT pg_advisory_lock(7)").await?;
    let idle = on(&router, &new, "SELECT 1").await?;
    router.obey(&["resume", other.name()]).await?;
    cluster.switchover(&new).await?;
    eventually(SOON, "the router has followed", || async {
        let state = router.get("/api/v1/cluster").await?.json()?;
        Ok((state["cluster"]["leader"] == new.name() && state["cluster"]["state"] == "stable").then_some(()))
    })
    .await?;

    // However they ask for it, none of them writes.
    let insert = "INSERT INTO load VALUES (1000, 1)";
    for sql in [insert, "BEGIN READ WRITE; INSERT INTO load VALUES (1000, 2); COMMIT"] {
        refused(&idle, sql).await.context("idle")?;
        refused(&pinned, sql).await.context("pinned")?;
    }
    refused(&transaction, insert).await.context("in a transaction")?;
    let _ = idle.client.batch_execute("ROLLBACK").await;
    refused(&idle, "SET default_transaction_read_only = off; INSERT INTO load VALUES (1000, 3)").await.context("idle, after SET")?;
    let written = new.ask("SELECT count(*) FROM load").await?;
    ensure!(written == "0", "{written} rows were written by the read-only port");
    eventually(SOON, "the old leader follows", || async { Ok(old.is_in_recovery().await?.then_some(())) }).await?;
    whole(cluster, &router).await
}

/// A session of the read-only port that has run `sql` on `member`.
async fn on(router: &Router, member: &Member, sql: &str) -> Result<Watched> {
    let session = Watched::open(&router.ro_dsn("app")).await?;
    session.run(sql).await?;
    let port: i32 = session.client.query_one("SELECT inet_server_port()", &[]).await?.get(0);
    ensure!(port == i32::from(member.port()), "it is on port {port}");
    Ok(session)
}

async fn refused(session: &Watched, sql: &str) -> Result {
    match session.client.batch_execute(sql).await {
        Ok(()) => anyhow::bail!("{sql}: no error"),
        Err(_) => Ok(()),
    }
}
