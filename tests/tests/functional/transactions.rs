//! Transactions: on one server from beginning to end, in PostgreSQL's own states, and rolled back when nobody is left to end them.

use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_tests::{Batch, Raw, Result, eventually};
use tokio_postgres::IsolationLevel;

use crate::yard::{SOON, tell};

#[tokio::test]
async fn states_and_tags_are_postgresqls() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE tx_states (id int PRIMARY KEY); GRANT ALL ON tx_states TO app").await?;
        let queries = [
            "TRUNCATE tx_states",
            // Held back until something runs in it.
            "BEGIN",
            "COMMIT",
            "BEGIN",
            "ROLLBACK",
            "START TRANSACTION",
            "SELECT 1",
            "END",
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "SHOW transaction_isolation",
            "SELECT count(*) FROM tx_states",
            "COMMIT",
            "BEGIN",
            "SET TRANSACTION READ ONLY",
            "SHOW transaction_read_only",
            "INSERT INTO tx_states VALUES (1)",
            "SELECT 1",
            "COMMIT",
            "BEGIN",
            "BEGIN",
            "INSERT INTO tx_states VALUES (1)",
            "SAVEPOINT a",
            "INSERT INTO tx_states VALUES (1)",
            "SELECT 1",
            "ROLLBACK TO a",
            "INSERT INTO tx_states VALUES (2)",
            "RELEASE a",
            "COMMIT AND CHAIN",
            "INSERT INTO tx_states VALUES (3)",
            "ROLLBACK AND CHAIN",
            "SELECT count(*) FROM tx_states",
            "COMMIT",
            "COMMIT",
            "ROLLBACK",
            "BEGIN; INSERT INTO tx_states VALUES (4); COMMIT; SELECT count(*) FROM tx_states",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "SHOW transaction_isolation",
            "COMMIT",
            "BEGIN READ ONLY",
            "SELECT count(*) FROM tx_states",
            "SET TRANSACTION READ WRITE",
            "ROLLBACK",
            "BEGIN READ ONLY",
            "SELECT 1/0",
            "SELECT 1",
            "COMMIT",
            "BEGIN READ ONLY",
            "SELECT 1",
            "DECLARE c CURSOR FOR SELECT generate_series(1, 5)",
            "FETCH 2 FROM c",
            "FETCH ALL FROM c",
            "COMMIT",
            "FETCH 1 FROM c",
            "BEGIN ISOLATION LEVEL NONSENSE",
            "PREPARE TRANSACTION 'tx'",
            "BEGIN",
            "SET LOCAL work_mem = '9MB'",
            "SHOW work_mem",
            "COMMIT",
            "SHOW work_mem",
        ];
        let simple: Vec<Batch> = queries.iter().map(|sql| Batch::new().query(sql)).collect();
        let answer = yard.same(&yard.router, &simple).await?;
        ensure!(answer.iter().filter(|line| *line == "Z E").count() >= 5 && answer.iter().filter(|line| *line == "Z T").count() >= 15);
        let extended: Vec<Batch> = queries.iter().filter(|sql| !sql.contains("; ")).map(|sql| Batch::new().run(sql, &[])).collect();
        yard.same(&yard.router, &extended).await?;
        // All of it in one write: answers come in order, and states are told between them.
        let together = queries.iter().fold(Batch::new(), |batch, sql| batch.query(sql));
        yard.same(&yard.router, &[together]).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn read_only_ones_run_on_a_replica_and_others_on_the_leader() -> Result {
    tell(async |yard| {
        let server = "SELECT application_name || ' ' || pg_backend_pid() FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        // A fresh session has seen nothing that a replica must catch up with.
        for (begin, read_only, on_replica) in [
            ("BEGIN READ ONLY", "on", true),
            ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "on", true),
            ("START TRANSACTION READ ONLY", "on", true),
            ("BEGIN", "off", false),
            ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", "on", false),
        ] {
            let name = format!("tx {begin}");
            let mut client = Raw::connect_with(&yard.router.rw_dsn("app"), &[("application_name", &name)]).await?;
            client.query(begin).await?;
            let answer = client.query("SELECT 1").await?;
            ensure!(answer[1..] == ["D 1", "C SELECT 1", "Z T"], "{begin}: {answer:?}");
            let open = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}' AND state = 'idle in transaction'");
            let leader = yard.leader.ask(&open).await? == "1";
            let mut replicas = 0;
            for replica in &yard.replicas {
                replicas += replica.ask(&open).await?.parse::<i32>()?;
            }
            ensure!(leader != on_replica && replicas == i32::from(on_replica), "{begin}: leader {leader}, replicas {replicas}");
            let answer = client.query("SELECT current_setting('transaction_read_only')").await?;
            ensure!(answer[1] == format!("D {read_only}"), "{begin}: {answer:?}");
            ensure!(client.query("COMMIT").await? == ["C COMMIT", "Z I"]);
        }
        // What is the leader's own moves there, as nothing was done yet that would be lost.
        let mut client = Raw::connect(&yard.router.rw_dsn("postgres")).await?;
        client.query("BEGIN READ ONLY").await?;
        client.query("SELECT 1").await?;
        let answer = client.query(server).await?;
        ensure!(answer.last().is_some_and(|line| line == "Z T"), "{answer:?}");
        let answer = client.query("SELECT pg_is_in_recovery()").await?;
        ensure!(answer[1] == "D f", "{answer:?}");
        client.query("COMMIT").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn isolation_holds() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE tx_isolation AS SELECT 1 AS n; GRANT ALL ON tx_isolation TO app").await?;
        let (mut first, second) = (yard.router.rw("app").await?, yard.router.rw("app").await?);
        let committed = first.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
        ensure!(committed.query_one("SELECT n FROM tx_isolation", &[]).await?.get::<_, i32>(0) == 1);
        second.execute("UPDATE tx_isolation SET n = 2", &[]).await?;
        ensure!(committed.query_one("SELECT n FROM tx_isolation", &[]).await?.get::<_, i32>(0) == 2);
        committed.commit().await?;

        for read_only in [false, true] {
            yard.cluster.settled().await?;
            let before: i32 = second.query_one("SELECT n FROM tx_isolation", &[]).await?.get(0);
            let level = IsolationLevel::RepeatableRead;
            let repeatable = first.build_transaction().isolation_level(level).read_only(read_only).start().await?;
            ensure!(repeatable.query_one("SELECT n FROM tx_isolation", &[]).await?.get::<_, i32>(0) == before);
            second.execute("UPDATE tx_isolation SET n = n + 1", &[]).await?;
            yard.cluster.settled().await?;
            for _ in 0..5 {
                ensure!(repeatable.query_one("SELECT n FROM tx_isolation", &[]).await?.get::<_, i32>(0) == before);
            }
            repeatable.commit().await?;
            ensure!(first.query_one("SELECT n FROM tx_isolation", &[]).await?.get::<_, i32>(0) == before + 1, "read only {read_only}");
        }

        // Two that can't be put in an order.
        let (mut other, level) = (yard.router.rw("app").await?, IsolationLevel::Serializable);
        let (one, two) = (
            first.build_transaction().isolation_level(level).start().await?,
            other.build_transaction().isolation_level(level).start().await?,
        );
        for transaction in [&one, &two] {
            transaction.query_one("SELECT sum(n) FROM tx_isolation", &[]).await?;
        }
        let writes = async {
            for transaction in [&one, &two] {
                transaction.execute("INSERT INTO tx_isolation VALUES (10)", &[]).await?;
            }
            one.commit().await?;
            two.commit().await
        };
        let error = writes.await.err().context("both were committed")?;
        ensure!(error.code().is_some_and(|code| code.code() == "40001"), "{error}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_vanished_clients_transaction_is_rolled_back_at_once() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE tx_vanished (id int); GRANT ALL ON tx_vanished TO app").await?;
        let mut vanishing = Raw::connect(&yard.router.rw_dsn("app")).await?;
        vanishing.query("BEGIN").await?;
        vanishing.query("LOCK TABLE tx_vanished").await?;
        vanishing.query("INSERT INTO tx_vanished VALUES (1)").await?;
        let waiter = yard.router.rw("app").await?;
        let blocked =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO tx_vanished VALUES (2)%' AND wait_event_type = 'Lock'";
        let vanish = async {
            eventually(SOON, "the other one waits for the lock", || async { Ok((yard.leader.ask(blocked).await? == "1").then_some(())) })
                .await?;
            drop(vanishing);
            anyhow::Ok(())
        };
        let (inserted, vanished) = tokio::join!(waiter.execute("INSERT INTO tx_vanished VALUES (2)", &[]), vanish);
        vanished?;
        ensure!(inserted? == 1);
        ensure!(yard.leader.ask("SELECT string_agg(id::text, ',') FROM tx_vanished").await? == "2");

        // One whose connection breaks while its statement runs: it is stopped, and rolled back.
        let mut vanishing = Raw::connect(&yard.router.rw_dsn("app")).await?;
        vanishing.query("BEGIN").await?;
        vanishing.query("INSERT INTO tx_vanished VALUES (3)").await?;
        vanishing.send(&Batch::new().query("SELECT pg_sleep(100), 'vanished'").bytes).await?;
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(100)%' AND state = 'active'";
        eventually(SOON, "it sleeps", || async { Ok((yard.leader.ask(sleeping).await? == "1").then_some(())) }).await?;
        vanishing.stream.set_zero_linger()?;
        drop(vanishing);
        eventually(Duration::from_secs(5), "it was stopped", || async { Ok((yard.leader.ask(sleeping).await? == "0").then_some(())) })
            .await?;
        ensure!(yard.leader.ask("SELECT string_agg(id::text, ',') FROM tx_vanished").await? == "2");
        Ok(())
    })
    .await
}
