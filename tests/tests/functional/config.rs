//! The configuration while it runs: what a reload changes, what it names, and what it refuses.

use anyhow::{Context, ensure};
use switchyard_tests::machine::router;
use switchyard_tests::{Result, Router, RouterOptions, eventually};

use crate::yard::{SOON, tell};

/// Waits for a line of the log, behind what was there at `from`.
async fn logged(router: &Router, from: usize, words: &[&str]) -> Result {
    eventually(SOON, &format!("the log says {words:?}"), || async {
        let log = router.log();
        Ok(log[from..].lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(()))
    })
    .await
}

/// How many transactions can be open at once.
async fn room(router: &Router, wanted: usize) -> Result<usize> {
    let mut open = Vec::new();
    for _ in 0..wanted {
        // The login itself needs a server connection.
        let begun = match tokio_postgres::connect(&router.rw_dsn("app"), tokio_postgres::NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                client.batch_execute("BEGIN; SELECT pg_is_in_recovery()").await.map(|()| client)
            }
            Err(error) => Err(error),
        };
        match begun {
            Ok(client) => open.push(client),
            Err(error) => {
                ensure!(error.code().is_some_and(|code| code.code().starts_with("53")), "{error}");
                break;
            }
        }
    }
    for client in &open {
        client.batch_execute("ROLLBACK").await?;
    }
    Ok(open.len())
}

#[tokio::test]
async fn a_reload_changes_what_it_can_and_names_what_it_cannot() -> Result {
    tell(async |yard| {
        let options = RouterOptions::new().set("pool.max_size", 1).set("pool.wait_timeout", "200ms");
        let router = yard.other_router(options).await?;
        let session = router.rw("app").await?;
        session.simple_query("SELECT 1").await?;
        ensure!(room(&router, 4).await? == 1);

        let from = router.log().len();
        router.configure("pool.max_size", 3)?;
        router.configure("listen.http", "127.0.0.1:1")?;
        router.configure("cluster.scope", "another")?;
        router.reload()?;
        logged(&router, from, &["the configuration was reloaded"]).await?;
        logged(&router, from, &["WARN", "listen.http", "sockets are bound at the start"]).await?;
        logged(&router, from, &["WARN", "cluster.scope"]).await?;
        ensure!(room(&router, 4).await? == 3, "the pool has its new size");
        session.simple_query("SELECT 1").await.context("sessions live on")?;

        // With a mistake in it, nothing of it counts.
        let from = router.log().len();
        router.configure("pool.max_size", 5)?;
        router.configure("pool.max_sise", 5)?;
        router.reload()?;
        logged(&router, from, &["the configuration was not reloaded"]).await?;
        logged(&router, from, &["pool.max_sise", "max_size"]).await?;
        ensure!(room(&router, 6).await? == 3, "the pool has its old size");
        ensure!(router.get("/readyz").await?.status == 200);
        ensure!(router.ended()?.is_none());

        // And that file would not start.
        let check = tokio::process::Command::new(self::router()?).arg("check").arg(router.config_file()).output().await?;
        ensure!(check.status.code() == Some(64), "{check:?}");
        let run = tokio::process::Command::new(self::router()?).args(["run", "--config"]).arg(router.config_file()).output().await?;
        ensure!(run.status.code() == Some(64) && String::from_utf8_lossy(&run.stderr).contains("did you mean \"max_size\"?"), "{run:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_stop_lets_transactions_end() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE config_stop (id int); GRANT ALL ON config_stop TO app").await?;
        let router = yard.other_router(RouterOptions::new()).await?;
        let (idle, busy) = (router.rw("app").await?, router.rw("app").await?);
        busy.batch_execute("BEGIN; INSERT INTO config_stop VALUES (1)").await?;
        let finish = async {
            eventually(SOON, "the idle one is told to go", || async { Ok(idle.is_closed().then_some(())) }).await?;
            busy.batch_execute("INSERT INTO config_stop VALUES (2)").await?;
            busy.batch_execute("COMMIT").await?;
            anyhow::Ok(())
        };
        let (status, finished) = tokio::join!(router.stop(), finish);
        finished.context("the transaction")?;
        ensure!(status?.success());
        ensure!(yard.leader.ask("SELECT count(*) FROM config_stop").await? == "2");
        Ok(())
    })
    .await
}
