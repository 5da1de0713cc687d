//! Replication connections: with the leader by the read/write port, with a replica by the read-only port.

use anyhow::{Context, ensure};
use switchyard_tests::{Raw, Result, RouterOptions, eventually, psql};

use crate::yard::{SOON, tell};

#[tokio::test]
async fn by_the_read_only_port_they_are_with_a_replica_and_write_nothing() -> Result {
    tell(async |yard| {
        let dsn = |port| format!("postgresql://postgres:postgres@127.0.0.1:{port}/postgres?replication=database");
        let (rw, ro) = (dsn(yard.router.rw_port()), dsn(yard.router.ro_port()));
        let where_it_is = "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')";
        ensure!(psql(&rw, &["-c", where_it_is]).await?.success()? == "f|off\n");
        for _ in 0..4 {
            ensure!(psql(&ro, &["-c", where_it_is]).await?.success()? == "t|on\n");
        }
        let wrote = psql(&ro, &["-c", "CREATE TABLE streams_x (i int)"]).await?;
        ensure!(!wrote.ok() && wrote.stderr.contains("25006"), "{wrote:?}");
        // What a client sets itself doesn't count.
        let own = format!("{ro}&options=-c%20default_transaction_read_only%3Doff");
        ensure!(psql(&own, &["-c", where_it_is]).await?.success()? == "t|on\n");
        ensure!(yard.leader.ask("SELECT to_regclass('streams_x') IS NULL").await? == "t");
        // Physical ones, too.
        let mut walker = Raw::connect_with(&yard.router.ro_dsn("replicator"), &[("replication", "true")]).await?;
        let identity = walker.query("IDENTIFY_SYSTEM").await?;
        ensure!(identity.iter().any(|line| line.starts_with("D ")), "{identity:?}");
        let slot = walker.query("CREATE_REPLICATION_SLOT streams_slot TEMPORARY PHYSICAL").await?;
        ensure!(slot.iter().any(|line| line.starts_with("D streams_slot ")), "{slot:?}");
        ensure!(yard.leader.ask("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'streams_slot'").await? == "0");
        let walkers =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' AND usename = 'replicator' AND application_name = ''";
        let mut with = Vec::new();
        for member in yard.cluster.members() {
            with.push((member.name().to_owned(), member.ask(walkers).await?));
        }
        let leader = with.iter().find(|(name, _)| name == yard.leader.name()).context("the leader")?;
        ensure!(leader.1 == "0" && with.iter().any(|(_, count)| count == "1"), "{with:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn without_a_replica_they_are_refused() -> Result {
    tell(async |yard| {
        // The leader serves reads there, and no more.
        let router = yard.other_router(RouterOptions::new()).await?;
        for replica in &yard.replicas {
            router.obey(&["drain", replica.name()]).await?;
        }
        eventually(SOON, "the leader serves reads", || async {
            let mut reader = Raw::connect(&router.ro_dsn("app")).await?;
            let answer = reader.query("SELECT pg_is_in_recovery()").await?;
            Ok(answer.contains(&"D f".to_owned()).then_some(()))
        })
        .await?;
        for (user, kind) in [("postgres", "database"), ("replicator", "true")] {
            let refused = Raw::connect_with(&router.ro_dsn(user), &[("replication", kind)]).await.err().context("it was let in")?;
            ensure!(refused.to_string().starts_with("refused: E FATAL 57P03 no replica can serve this replication"), "{refused}");
            Raw::connect_with(&router.rw_dsn(user), &[("replication", kind)]).await.context("the leader streams by the other port")?;
        }
        Ok(())
    })
    .await
}
