//! Reads go to replicas, and yet no session goes back in time.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use switchyard_tests::psql::run;
use switchyard_tests::{Result, eventually};

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
    let mut reads = 0.0;
    for replica in &yard.replicas {
        reads += metric(&yard.router, &format!("switchyard_reads_total{{node=\"{}\"}}", replica.name())).await?;
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
                let seen = rows.iter().find_map(|row| match row {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                });
                ensure!(seen == Some(rounds.to_string()), "round {rounds}: {seen:?}");
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
        // A server connection tells its counts within ten seconds, or at its end: so end them, which an idle client never hears of.
        let settled = async || {
            for member in yard.cluster.members() {
                let left = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'causal_pgbench'";
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
