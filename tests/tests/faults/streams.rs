//! A replication connection by the read-only port, when its replica becomes the leader.

use anyhow::{Context, ensure};
use switchyard_tests::{Cluster, Options, Raw, Result, Router, RouterOptions, eventually};

use super::SOON;

/// It ends, and has written nothing: nobody looks into its bytes.
#[tokio::test]
async fn a_stream_ends_when_its_replica_leads() -> Result {
    let cluster = Cluster::start(Options::new().members(2)).await?;
    let router = Router::start(&cluster, RouterOptions::new()).await?;
    let (old, new) = (cluster.leader().await?, cluster.replicas().await?.into_iter().next().context("a replica")?);
    let mut stream = Raw::connect_with(&router.ro_dsn("postgres"), &[("replication", "database")]).await?;
    let there = stream.query("SELECT current_setting('port'), pg_is_in_recovery()").await?;
    ensure!(there[1] == format!("D {} t", new.port()), "{there:?}");
    // It does all that it can to write.
    let allowed = stream.query("SET default_transaction_read_only = off").await?;
    ensure!(allowed[0] == "C SET", "{allowed:?}");
    let writer = tokio::spawn(async move {
        let mut refused = 0;
        while let Ok(answer) = stream.query("CREATE TABLE streams_written (id int)").await {
            ensure!(answer[0].starts_with("E ") && !answer[0].contains("already exists"), "it wrote: {answer:?}");
            refused += 1;
        }
        anyhow::Ok(refused)
    });
    cluster.switchover(&new).await?;
    let refused = tokio::time::timeout(SOON, writer).await.context("the stream goes on")???;
    println!("{refused} refused");
    ensure!(refused > 0 && new.ask("SELECT to_regclass('streams_written') IS NULL").await? == "t");
    // The next one is with the member that follows now.
    eventually(SOON, "the old leader streams", || async {
        let mut stream = Raw::connect_with(&router.ro_dsn("postgres"), &[("replication", "database")]).await?;
        let there = stream.query("SELECT current_setting('port'), pg_is_in_recovery()").await?;
        Ok((there[1] == format!("D {} t", old.port())).then_some(()))
    })
    .await
}
