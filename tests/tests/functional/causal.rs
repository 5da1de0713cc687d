//! Reads go to replicas, and yet no session goes back in time.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use switchyard_tests::cluster::first_value;
use switchyard_tests::psql::run;
use switchyard_tests::{Result, Router, RouterOptions, eventually};
use tokio_postgres::Client;

use crate::yard::{SOON, Yard, in_database, metric, tell};

const DELAY: Duration = Duration::from_millis(500);

/// All replicas replay late while the story is told.
async fn delayed(yard: &Yard, story: impl AsyncFnOnce() -> Result) -> Result {
    for replica in &yard.replicas {
        yard.cluster.delay_replay(replica, DELAY).await?;
    }
    let told = story().await;
    for replica in &yard.replicas {
        yard.cluster.delay_replay(replica, Duration::ZERO).await?;
    }
    yard.cluster.settled().await?;
    told
}

/// Batches that only read, sent to replicas so far.
async fn replica_reads(yard: &Yard) -> Result<f64> {
    reads_by(yard, &yard.router).await
}

async fn reads_by(yard: &Yard, router: &Router) -> Result<f64> {
    let mut reads = 0.0;
    for replica in &yard.replicas {
        reads += metric(router, &format!("switchyard_reads_total{{node=\"{}\"}}", replica.name())).await?;
    }
    Ok(reads)
}

#[tokio::test]
async fn a_session_sees_its_own_writes_at_once() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE causal_own (id int PRIMARY KEY, n int); GRANT ALL ON causal_own TO app").await?;
        yard.prepare("INSERT INTO causal_own VALUES (1, 0), (2, 0)").await?;
        delayed(yard, async || {
            let client = yard.router.rw("app").await?;
            let (write, read) = (
                client.prepare("UPDATE causal_own SET n = $1 WHERE id = 2").await?,
                client.prepare("SELECT n FROM causal_own WHERE id = 2").await?,
            );
            let begin = Instant::now();
            let mut rounds = 0;
            while rounds < 60 || begin.elapsed() < 3 * DELAY {
                rounds += 1;
                client.batch_execute(&format!("UPDATE causal_own SET n = {rounds} WHERE id = 1")).await?;
                let rows = client.simple_query("SELECT n FROM causal_own WHERE id = 1").await?;
                let seen = first_value(&rows);
                ensure!(seen == Some(&rounds.to_string()), "round {rounds}: {seen:?}");
                client.execute(&write, &[&rounds]).await?;
                let seen: i32 = client.query_one(&read, &[]).await?.get(0);
                ensure!(seen == rounds, "round {rounds}, prepared: {seen}");
            }

            // Another session's reads are still the replicas', and late: the delay is real.
            let before = replica_reads(yard).await?;
            let other = yard.router.rw("app").await?;
            client.batch_execute("UPDATE causal_own SET n = -1 WHERE id = 1").await?;
            let late: i32 = other.query_one("SELECT n FROM causal_own WHERE id = 1", &[]).await?.get(0);
            ensure!(late != -1, "the replicas aren't late");
            ensure!(replica_reads(yard).await? >= before + 1.0);

            // It never goes back: what it has once seen, it sees from then on.
            let mut last = 0;
            let mut told = Vec::new();
            let begin = Instant::now();
            while begin.elapsed() < 3 * DELAY {
                let written: i32 = 1_000_000 + i32::try_from(begin.elapsed().as_millis())?;
                client.execute("UPDATE causal_own SET n = $1 WHERE id = 1", &[&written]).await?;
                // Reads by the leader now and then, as a transaction's do.
                if written % 7 == 0 {
                    other.batch_execute("BEGIN; SELECT n FROM causal_own; COMMIT").await?;
                }
                let seen: i32 = other.query_one("SELECT n FROM causal_own WHERE id = 1", &[]).await?.get(0);
                told.push((begin.elapsed().as_millis(), written, seen));
                ensure!(seen >= last, "saw {last}, then {seen}: {told:?}");
                last = seen.max(0);
            }
            ensure!(last > 1_000_000, "it never saw anything new");

            // Once the replicas have caught up, the writer reads there again.
            eventually(SOON, "the writer's reads are on replicas again", || async {
                let before = replica_reads(yard).await?;
                client.query_one("SELECT n FROM causal_own WHERE id = 1", &[]).await?;
                Ok((replica_reads(yard).await? > before).then_some(()))
            })
            .await
        })
        .await
    })
    .await
}

/// pgbench, as the issue says it: -S on the replicas, tpcb-like on the leader, by PostgreSQL's own count.
#[tokio::test]
async fn pgbench_shows_where_it_ran() -> Result {
    tell(async |yard| {
        const TRANSACTIONS: i64 = 400;
        yard.prepare("CREATE DATABASE causal_pgbench OWNER app").await?;
        let dsn = in_database(&yard.router.rw_dsn("app"), "causal_pgbench");
        run("pgbench", &["-i", "-q", "-s", "1", &dsn], "").await?.success()?;
        yard.cluster.settled().await?;
        // A server connection tells its counts within ten seconds, or at its end: so end them, which an idle client never hears of. (Not those by which the
        // router reads facts: while it has none, reads run on the leader.)
        let settled = async || {
            for member in yard.cluster.members() {
                let left =
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'causal_pgbench' AND usename = 'app'";
                eventually(SOON, "the server connections end", || async { Ok((member.ask(left).await? == "0").then_some(())) }).await?;
            }
            yard.transactions("causal_pgbench").await
        };
        let on_leader = |counts: &std::collections::HashMap<String, i64>| counts[yard.leader.name()];
        let on_replicas = |counts: &std::collections::HashMap<String, i64>| counts.values().sum::<i64>() - counts[yard.leader.name()];

        let clients = 4;
        let each = (TRANSACTIONS / clients).to_string();
        let clients = clients.to_string();
        for protocol in ["simple", "extended", "prepared"] {
            let before = settled().await?;
            let done = run("pgbench", &["-n", "-S", "-M", protocol, "-c", &clients, "-t", &each, &dsn], "").await?.success()?;
            ensure!(done.contains("number of transactions actually processed: 400/400"), "{done}");
            let after = settled().await?;
            let (leader, replicas) = (on_leader(&after) - on_leader(&before), on_replicas(&after) - on_replicas(&before));
            // Logins, settings and scale probes are a few transactions each.
            ensure!(replicas >= TRANSACTIONS && leader < TRANSACTIONS / 4, "-S -M {protocol}: leader {leader}, replicas {replicas}");
        }
        let before = settled().await?;
        let done = run("pgbench", &["-n", "-c", &clients, "-t", &each, &dsn], "").await?.success()?;
        ensure!(
            done.contains("number of transactions actually processed: 400/400") && done.contains("number of failed transactions: 0"),
            "{done}"
        );
        let after = settled().await?;
        let (leader, replicas) = (on_leader(&after) - on_leader(&before), on_replicas(&after) - on_replicas(&before));
        ensure!(leader >= TRANSACTIONS && replicas < TRANSACTIONS / 4, "tpcb-like: leader {leader}, replicas {replicas}");
        let balances = "SELECT (SELECT sum(delta) FROM pgbench_history) = (SELECT sum(abalance) FROM pgbench_accounts)";
        ensure!(crate::yard::ask(&dsn, balances).await.context("the balances")? == "t");
        Ok(())
    })
    .await
}

/// What a level is, asked through two sessions: one writes and is told so, the other one reads then. How many of the reads missed the write.
async fn misses(writer: &Client, reader: &Client, rounds: i32) -> Result<i32> {
    let read = reader.prepare("SELECT n FROM causal_told WHERE id = $1").await?;
    let mut missed = 0;
    for round in 1..=rounds {
        // Alone, in a transaction, and by the extended protocol.
        match round % 3 {
            0 => writer.batch_execute(&format!("UPDATE causal_told SET n = {round} WHERE id = 1")).await?,
            1 => {
                writer.batch_execute("BEGIN").await?;
                writer.batch_execute(&format!("UPDATE causal_told SET n = {round} WHERE id = 1")).await?;
                writer.batch_execute("COMMIT").await?;
            }
            _ => _ = writer.execute("UPDATE causal_told SET n = $1 WHERE id = 1", &[&round]).await?,
        }
        let seen: i32 = match round % 4 {
            0 => reader.query_one("SELECT n FROM causal_view", &[]).await?.get(0),
            1 => {
                reader.batch_execute("BEGIN READ ONLY").await?;
                // A statement that a replica may serve, so that the next one finds the transaction there.
                reader.query("SELECT n FROM causal_calm", &[]).await?;
                writer.batch_execute(&format!("UPDATE causal_told SET n = {round} WHERE id = 1")).await?;
                let row = reader.query_one(&read, &[&1]).await?;
                reader.batch_execute("COMMIT").await?;
                row.get(0)
            }
            _ => reader.query_one(&read, &[&1]).await?.get(0),
        };
        missed += i32::from(seen != round);
    }
    Ok(missed)
}

async fn prepare_told(yard: &Yard) -> Result {
    yard.prepare(
        "DROP VIEW IF EXISTS causal_view; DROP TABLE IF EXISTS causal_told, causal_calm;
         CREATE TABLE causal_told (id int PRIMARY KEY, n int); INSERT INTO causal_told VALUES (1, 0);
         CREATE TABLE causal_calm (n int); INSERT INTO causal_calm VALUES (1);
         CREATE VIEW causal_view AS SELECT n FROM causal_told WHERE id = 1;
         GRANT ALL ON causal_told, causal_calm, causal_view TO app",
    )
    .await
}

#[tokio::test]
async fn at_the_level_global_a_side_channel_is_never_ahead() -> Result {
    tell(async |yard| {
        prepare_told(yard).await?;
        let options = || RouterOptions::new().set("routing.consistency_read_write", "global");
        let router = yard.other_router(options()).await?;
        delayed(yard, async || {
            let (writer, reader, bystander) = (router.rw("app").await?, router.rw("app").await?, router.rw("app").await?);
            // What isn't written is the replicas', as soon as they show all that was there when the router began.
            let calm = async || -> Result<bool> {
                let before = reads_by(yard, &router).await?;
                bystander.query_one("SELECT n FROM causal_calm", &[]).await?;
                Ok(reads_by(yard, &router).await? > before)
            };
            eventually(SOON, "a replica serves the calm table", || async { Ok(calm().await?.then_some(())) }).await?;
            let missed = misses(&writer, &reader, 60).await?;
            ensure!(missed == 0, "{missed} reads missed an acknowledged write");
            for _ in 0..10 {
                writer.execute("UPDATE causal_told SET n = n + 1", &[]).await?;
                ensure!(calm().await?, "the calm table's read went to the leader");
            }
            // What is rolled back was never written.
            let settled = || async {
                let before = reads_by(yard, &router).await?;
                reader.query_one("SELECT n FROM causal_told", &[]).await?;
                Ok((reads_by(yard, &router).await? > before).then_some(()))
            };
            eventually(SOON, "the replicas have caught up", settled).await?;
            for sql in ["BEGIN", "UPDATE causal_told SET n = -1", "ROLLBACK"] {
                writer.batch_execute(sql).await?;
            }
            ensure!(settled().await?.is_some(), "a write that was rolled back counts");
            Ok(())
        })
        .await?;
        // The same without a promise about others: it does miss.
        let router = yard.other_router(RouterOptions::new().set("routing.consistency_read_write", "eventual")).await?;
        delayed(yard, async || {
            let missed = misses(&router.rw("app").await?, &router.rw("app").await?, 30).await?;
            ensure!(missed > 0, "eventual missed nothing: this story can't fail");
            // And a session that wants more gets it.
            let (writer, reader) = (router.rw("app").await?, router.rw("app").await?);
            reader.batch_execute("SET switchyard.consistency = 'global'").await?;
            let missed = misses(&writer, &reader, 30).await?;
            ensure!(missed == 0, "{missed} reads missed, though the session wanted global");
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn what_a_write_runs_counts_as_written() -> Result {
    tell(async |yard| {
        prepare_told(yard).await?;
        yard.prepare(
            "CREATE TABLE causal_source (n int); GRANT ALL ON causal_source TO app;
             CREATE FUNCTION causal_fill() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE causal_told SET n = NEW.n; RETURN NEW; END';
             CREATE TRIGGER fill AFTER INSERT ON causal_source FOR EACH ROW EXECUTE FUNCTION causal_fill();
             CREATE TABLE causal_parent (id int PRIMARY KEY); CREATE TABLE causal_child (id int REFERENCES causal_parent ON DELETE CASCADE);
             CREATE TABLE causal_root (n int) PARTITION BY LIST (n); CREATE TABLE causal_part PARTITION OF causal_root DEFAULT;
             GRANT ALL ON causal_parent, causal_child, causal_root, causal_part TO app",
        )
        .await?;
        let router = yard.other_router(RouterOptions::new().set("routing.consistency_read_write", "global")).await?;
        delayed(yard, async || {
            let (writer, reader) = (router.rw("app").await?, router.rw("app").await?);
            let count = async |sql: &str| -> Result<i64> { Ok(reader.query_one(sql, &[]).await?.get(0)) };
            for round in 1..=10i32 {
                writer.execute("INSERT INTO causal_source VALUES ($1)", &[&round]).await?;
                let seen: i32 = reader.query_one("SELECT n FROM causal_view", &[]).await?.get(0);
                ensure!(seen == round, "the trigger's write was missed");
                writer.batch_execute("INSERT INTO causal_parent VALUES (1); INSERT INTO causal_child VALUES (1)").await?;
                ensure!(count("SELECT count(*) FROM causal_child").await? == 1, "an insert was missed");
                writer.batch_execute("DELETE FROM causal_parent").await?;
                ensure!(count("SELECT count(*) FROM causal_child").await? == 0, "the cascade's delete was missed");
                writer.execute("INSERT INTO causal_part VALUES ($1)", &[&round]).await?;
                ensure!(count("SELECT count(*) FROM causal_root").await? == i64::from(round), "the partition's row was missed");
            }
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
async fn at_the_level_strong_any_router_will_do() -> Result {
    tell(async |yard| {
        prepare_told(yard).await?;
        let options = || RouterOptions::new().set("routing.consistency_read_write", "strong");
        let (first, second) = (yard.other_router(options()).await?, yard.other_router(options()).await?);
        delayed(yard, async || {
            let missed = misses(&first.rw("app").await?, &second.rw("app").await?, 40).await?;
            ensure!(missed == 0, "{missed} reads missed what another router had acknowledged");
            let missed = misses(&yard.leader.connect().await?, &second.rw("app").await?, 20).await?;
            ensure!(missed == 0, "{missed} reads missed what the leader itself had acknowledged");
            Ok(())
        })
        .await?;
        // A replica that shows all of it serves the read.
        let reader = second.rw("app").await?;
        let before = reads_by(yard, &second).await?;
        eventually(SOON, "a replica serves a strong read", || async {
            reader.query_one("SELECT n FROM causal_told", &[]).await?;
            Ok((reads_by(yard, &second).await? > before).then_some(()))
        })
        .await?;
        // Global knows nothing of another router: the difference is real.
        let third = yard.other_router(RouterOptions::new().set("routing.consistency_read_write", "global")).await?;
        delayed(yard, async || {
            let reader = third.rw("app").await?;
            eventually(SOON, "a replica serves the other router", || async {
                let before = reads_by(yard, &third).await?;
                reader.query_one("SELECT n FROM causal_told", &[]).await?;
                Ok((reads_by(yard, &third).await? > before).then_some(()))
            })
            .await?;
            ensure!(misses(&first.rw("app").await?, &reader, 30).await? > 0, "this story can't fail");
            Ok(())
        })
        .await
    })
    .await
}
