//! Many clients on few server connections: nobody sees what another one left.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use switchyard_tests::cluster::connect;
use switchyard_tests::{Batch, Raw, Result, Router, RouterOptions, eventually};

use crate::yard::{SOON, Yard, tell};

const CLIENTS: usize = 12;
const ROUNDS: usize = 15;

async fn small(yard: &Yard, size: i64) -> Result<Router> {
    // Pinned sessions wait for one another here, and none for ever.
    yard.other_router(RouterOptions::new().set("pool.max_size", size)).await
}

/// The value of the only column of the only row.
async fn value(client: &tokio_postgres::Client, sql: &str) -> Result<String> {
    let messages = client.simple_query(sql).await.with_context(|| sql.to_owned())?;
    let row = messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    row.with_context(|| format!("{sql}: no row"))
}

#[tokio::test]
async fn settings_stay_with_their_session() -> Result {
    tell(async |yard| {
        let router = small(yard, 2).await?;
        let stories = (0..CLIENTS).map(|me| {
            let router = &router;
            async move {
                let client = router.rw("app").await?;
                let zones = ["UTC", "Asia/Tokyo", "America/New_York"];
                let (memory, zone) = (format!("{}kB", 1000 + me), zones[me % 3]);
                let path = format!("sharing_{me}, public");
                client.batch_execute(&format!("SET work_mem = '{memory}'; SET TIME ZONE '{zone}'")).await?;
                client.batch_execute(&format!("SET search_path = {path}")).await?;
                if me % 2 == 0 {
                    client.batch_execute(&format!("SET my.token = 'token {me}'")).await?;
                }
                for round in 0..ROUNDS {
                    // On a replica and on the leader.
                    for also in ["", ", pg_is_in_recovery()"] {
                        let asked = ["work_mem", "TimeZone", "search_path"].map(|name| format!("current_setting('{name}')")).join(", ");
                        let got = value(&client, &format!("SELECT concat_ws('|', {asked}){also}")).await?;
                        ensure!(got == format!("{memory}|{zone}|{path}"), "client {me}, round {round}: {got}");
                    }
                    let hour = value(&client, "SELECT extract(hour FROM '2020-06-01 12:00+00'::timestamptz)").await?;
                    ensure!(hour == ["12", "21", "8"][me % 3], "client {me} in {zone}: {hour}");
                    let token = value(&client, "SELECT coalesce(nullif(current_setting('my.token', true), ''), 'none')").await?;
                    let mine = if me % 2 == 0 { format!("token {me}") } else { "none".to_owned() };
                    ensure!(token == mine, "client {me}, round {round}: {token}");
                    // A setting of the transaction ends with it.
                    client.batch_execute("BEGIN; SET LOCAL work_mem = '77MB'; COMMIT").await?;
                }
                client.batch_execute("RESET ALL").await?;
                ensure!(value(&client, "SHOW work_mem").await? == "4MB");
                anyhow::Ok(())
            }
        });
        try_join_all(stories).await?;
        Ok(())
    })
    .await
}

/// A server completes half a DateStyle, such as every session of pgJDBC asks for, with the half that it has.
#[tokio::test]
async fn half_a_setting_is_not_completed_by_another_sessions() -> Result {
    tell(async |yard| {
        let router = small(yard, 1).await?;
        for round in 0..3 {
            let mut other = Raw::connect(&router.rw_dsn("app")).await?;
            other.ask(&Batch::new().query("SET DateStyle = 'SQL, DMY'")).await?;
            other.ask(&Batch::new().query("CREATE TEMP TABLE half (i int) ON COMMIT DROP")).await?;
            let mut raw = Raw::connect_with(&router.rw_dsn("app"), &[("DateStyle", "ISO")]).await?;
            let answer = raw.ask(&Batch::new().query("SELECT pg_is_in_recovery(), '01/02/2024'::date::text")).await?;
            ensure!(answer.iter().any(|line| line.contains("2024-01-02")), "round {round}: {answer:?}");
        }
        Ok(())
    })
    .await
}

/// To a session that keeps its connection, too, a custom setting that others have set was never set.
#[tokio::test]
async fn who_keeps_a_connection_finds_no_custom_settings_there() -> Result {
    tell(async |yard| {
        let router = small(yard, 1).await?;
        let keeping = ["PREPARE kept AS SELECT 1", "CREATE TEMP TABLE kept (i int)", "LISTEN kept", "SELECT pg_advisory_lock(4712)"];
        for keeps in keeping {
            let other = router.rw("app").await?;
            other.batch_execute("SET app.others = 'x'").await?;
            other.batch_execute("CREATE TEMP TABLE once (i int) ON COMMIT DROP").await?;
            drop(other);
            let client = router.rw("app").await?;
            client.batch_execute(keeps).await?;
            let found = value(&client, "SELECT current_setting('app.others', true)").await?;
            ensure!(found == "NULL", "{keeps}: app.others is {found:?}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn prepared_statements_stay_with_their_session() -> Result {
    tell(async |yard| {
        let router = small(yard, 2).await?;
        let stories = (0..CLIENTS).map(|me| {
            let router = &router;
            async move {
                // All use the same names for different statements, and half of them the same text.
                let mut client = Raw::connect(&router.rw_dsn("app")).await?;
                let number = if me % 2 == 0 { 0 } else { me };
                let (read, write) = (format!("SELECT $1::int + {number}"), format!("SELECT $1::int + {number}, pg_is_in_recovery()"));
                client.ask(&Batch::new().parse("read", &read).parse("write", &write).sync()).await?;
                for round in 0..ROUNDS {
                    let text = round.to_string();
                    let expected = format!("D {}", round + number);
                    let answer = client.ask(&Batch::new().bind("", "read", &[&text]).execute("", 0).sync()).await?;
                    ensure!(answer == ["2", &expected, "C SELECT 1", "Z I"], "client {me}: {answer:?}");
                    let answer = client.ask(&Batch::new().bind("", "write", &[&text]).execute("", 0).sync()).await?;
                    ensure!(answer[1] == format!("{expected} f"), "client {me}: {answer:?}");
                    let answer = client.ask(&Batch::new().run(&format!("SELECT {me}, $1::text"), &[&text])).await?;
                    ensure!(answer[2] == format!("D {me} {round}"), "client {me}: {answer:?}");
                }
                client.ask(&Batch::new().close_statement("read").sync()).await?;
                let gone = client.ask(&Batch::new().bind("", "read", &["1"]).execute("", 0).sync()).await?;
                ensure!(gone == ["E ERROR 26000 prepared statement \"read\" does not exist", "Z I"], "{gone:?}");
                anyhow::Ok(())
            }
        });
        try_join_all(stories).await?;
        Ok(())
    })
    .await
}

/// Temporary tables, session locks and roles can't be carried from connection to connection: such a session keeps its own.
#[tokio::test]
async fn what_cannot_be_carried_is_pinned() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE ROLE sharing_other; GRANT sharing_other TO app").await?;
        let router = small(yard, 2).await?;
        let stories = (0..6).map(|me| {
            let router = &router;
            async move {
                let client = router.rw("app").await?;
                client.batch_execute(&format!("CREATE TEMP TABLE sharing_temp AS SELECT {me} AS me")).await?;
                for _ in 0..ROUNDS {
                    ensure!(value(&client, "SELECT me FROM sharing_temp").await? == me.to_string());
                }
                ensure!(value(&client, &format!("SELECT pg_try_advisory_lock({me} + 1000)")).await? == "t");
                client.batch_execute("SET ROLE sharing_other").await?;
                ensure!(value(&client, "SELECT current_user").await? == "sharing_other");
                client.batch_execute("RESET ROLE").await?;
                client.batch_execute("LISTEN sharing_channel").await?;
                anyhow::Ok(())
            }
        });
        try_join_all(stories).await?;
        // They have gone, and nothing of theirs is left for the next.
        let next = (0..4).map(|_| {
            let router = &router;
            async move {
                let client = router.rw("app").await?;
                client.batch_execute("BEGIN").await?;
                let left = "SELECT concat_ws('|', to_regclass('pg_temp.sharing_temp'), current_user, \
                            (SELECT count(*) FROM pg_listening_channels()), \
                            (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()))";
                let left = value(&client, left).await?;
                client.batch_execute("COMMIT").await?;
                ensure!(left == "app|0|0", "{left}");
                anyhow::Ok(())
            }
        });
        try_join_all(next).await?;
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid BETWEEN 1000 AND 1010";
        eventually(SOON, "the locks are free", || async { Ok((yard.leader.ask(locks).await? == "0").then_some(())) }).await
    })
    .await
}

#[tokio::test]
async fn transactions_of_many_clients_keep_apart() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE sharing_sums (client int, n int); GRANT ALL ON sharing_sums TO app").await?;
        let router = small(yard, 1).await?;
        let stories = (0..CLIENTS).map(|me| {
            let router = &router;
            async move {
                let client = router.rw("app").await?;
                for round in 0..ROUNDS {
                    client.batch_execute("BEGIN").await?;
                    client.execute("INSERT INTO sharing_sums VALUES ($1, $2)", &[&(me as i32), &(round as i32)]).await?;
                    let mine: i64 = client.query_one("SELECT count(*) FROM sharing_sums WHERE client = $1", &[&(me as i32)]).await?.get(0);
                    let end = if round % 3 == 2 { "ROLLBACK" } else { "COMMIT" };
                    client.batch_execute(end).await?;
                    ensure!(mine == (round - round / 3 + 1) as i64, "client {me}, round {round}: {mine}");
                }
                anyhow::Ok(())
            }
        });
        try_join_all(stories).await?;
        let count = yard.leader.ask("SELECT count(*) FROM sharing_sums").await?;
        ensure!(count == (CLIENTS * ROUNDS * 2 / 3).to_string(), "{count}");
        Ok(())
    })
    .await
}

/// currval is the session's own, whoever uses the connection in between.
#[tokio::test]
async fn sequences_are_the_sessions_own() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE sharing_serial (id serial, client int); GRANT ALL ON sharing_serial, sharing_serial_id_seq TO app")
            .await?;
        let router = small(yard, 4).await?;
        let stories = (0..4_i32).map(|me| {
            let router = &router;
            async move {
                let client = router.rw("app").await?;
                for _ in 0..ROUNDS {
                    let id: i32 = client.query_one("INSERT INTO sharing_serial (client) VALUES ($1) RETURNING id", &[&me]).await?.get(0);
                    let current: i64 = client.query_one("SELECT currval('sharing_serial_id_seq')", &[]).await?.get(0);
                    ensure!(current == i64::from(id), "client {me}: {current} instead of {id}");
                }
                anyhow::Ok(())
            }
        });
        try_join_all(stories).await?;
        Ok(())
    })
    .await
}

/// A pool that is held by others is waited for, and the wait ends with an error that says so.
#[tokio::test]
async fn a_full_pool_is_waited_for_and_not_for_ever() -> Result {
    tell(async |yard| {
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1).set("pool.wait_timeout", "300ms")).await?;
        let (holder, waiter) = (router.rw("app").await?, router.rw("app").await?);
        holder.batch_execute("BEGIN; SELECT pg_is_in_recovery()").await?;
        let begin = std::time::Instant::now();
        let error = waiter.simple_query("SELECT pg_is_in_recovery()").await.err().context("there was a second connection")?;
        ensure!(error.code().is_some_and(|code| code.code().starts_with("53")), "{error}");
        ensure!(begin.elapsed() >= Duration::from_millis(290), "{:?}", begin.elapsed());
        // A login needs one, too, and its failure is the end of it.
        let error = Raw::connect(&router.rw_dsn("app")).await.err().context("there was a second connection")?;
        ensure!(error.to_string().starts_with("refused: E FATAL 53300 "), "{error}");
        holder.batch_execute("COMMIT").await?;
        waiter.simple_query("SELECT pg_is_in_recovery()").await.context("the session is usable")?;
        // Another user has a pool of their own.
        holder.batch_execute("BEGIN; SELECT pg_is_in_recovery()").await?;
        connect(&router.rw_dsn("appmd5")).await?.simple_query("SELECT pg_is_in_recovery()").await?;
        Ok(())
    })
    .await
}

/// A session that keeps its connection leaves its place in the pool to others: it may be the one that they wait for, or that waits for them.
#[tokio::test]
async fn pinned_sessions_starve_nobody() -> Result {
    tell(async |yard| {
        // Other routers' connections of the same user.
        let theirs = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        let before: usize = yard.leader.ask(theirs).await?.parse()?;
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1).set("pool.wait_timeout", "2s")).await?;
        let clients = try_join_all((0..4).map(|_| router.rw("app"))).await?;
        for (me, client) in clients.iter().enumerate() {
            client.batch_execute(&format!("CREATE TEMP TABLE starving AS SELECT {me} AS me")).await.context("a pinned session")?;
        }
        let other = router.rw("app").await?;
        other.simple_query("SELECT pg_is_in_recovery()").await.context("one that isn't pinned")?;
        for (me, client) in clients.iter().enumerate() {
            ensure!(value(client, "SELECT me FROM starving").await? == me.to_string());
        }
        // With its state gone, a session is one of many again.
        clients[0].batch_execute("DISCARD TEMP").await?;
        clients[0].simple_query("SELECT pg_is_in_recovery()").await?;
        drop(clients);
        eventually(SOON, "the pool is at its size again", || async {
            let open: usize = yard.leader.ask(theirs).await?.parse()?;
            Ok((open <= before + 1).then_some(()))
        })
        .await?;
        other.simple_query("SELECT pg_is_in_recovery()").await?;
        Ok(())
    })
    .await
}

/// What a session's own statements add to the counters is there when it looks: they are kept back by the server process that ran them.
#[tokio::test]
async fn counters_are_the_sessions_own() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE sharing_counted (id int); GRANT ALL ON sharing_counted TO app").await?;
        let router = small(yard, 2).await?;
        let stories = (0..4).map(|_| {
            let router = &router;
            async move {
                let client = router.rw("app").await?;
                let mine = "SELECT pg_stat_get_xact_tuples_inserted('sharing_counted'::regclass)";
                value(&client, mine).await?;
                for _ in 0..ROUNDS {
                    client.batch_execute("INSERT INTO sharing_counted VALUES (1)").await?;
                }
                client.batch_execute("SELECT pg_stat_force_next_flush()").await?;
                let inserted: usize =
                    value(&client, "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'sharing_counted'").await?.parse()?;
                ensure!(inserted >= ROUNDS, "{inserted} of its own {ROUNDS}");
                anyhow::Ok(())
            }
        });
        try_join_all(stories).await?;
        Ok(())
    })
    .await
}
