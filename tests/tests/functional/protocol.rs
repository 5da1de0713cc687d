//! The protocol's corners, each had directly and by the router, and compared word for word.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{SinkExt, TryStreamExt};
use switchyard_tests::{Batch, Raw, Result, RouterOptions, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::error::SqlState;

use crate::yard::{SOON, memory, metric, tell};

const MB: usize = 1024 * 1024;

/// The rows, tags and SQLSTATEs of an answer, in order, without the rest.
fn letters(answer: &[String]) -> String {
    answer.iter().map(|line| line.chars().next().unwrap_or(' ')).collect()
}

#[tokio::test]
async fn named_and_unnamed_statements_and_portals() -> Result {
    tell(async |yard| {
        yard.prepare(
            "CREATE TABLE proto_rows AS SELECT g AS id, 'row ' || g AS v FROM generate_series(1, 20) g; GRANT ALL ON proto_rows TO app",
        )
        .await?;
        let answer = yard
            .same(
                &yard.router,
                &[
                    Batch::new().parse("one", "SELECT v FROM proto_rows WHERE id = $1").describe_statement("one").sync(),
                    Batch::new().bind("", "one", &["3"]).describe_portal("").execute("", 0).sync(),
                    Batch::new().bind("p", "one", &["4"]).execute("p", 0).close_portal("p").sync(),
                    Batch::new().run("SELECT $1::int + 1", &["41"]),
                    // The unnamed statement lives on until the next one.
                    Batch::new().parse("", "SELECT $1::text || '!'").sync(),
                    Batch::new().bind("", "", &["a"]).execute("", 0).sync(),
                    Batch::new().bind("", "", &["b"]).execute("", 0).sync(),
                    // A simple query ends it.
                    Batch::new().query("SELECT 1"),
                    Batch::new().bind("", "", &["c"]).execute("", 0).sync(),
                    // A name twice, one that isn't there, one that was closed.
                    Batch::new().parse("one", "SELECT 2").sync(),
                    Batch::new().bind("", "none", &[]).execute("", 0).sync(),
                    Batch::new().close_statement("one").sync(),
                    Batch::new().bind("", "one", &["3"]).execute("", 0).sync(),
                    Batch::new().close_statement("never_there").close_portal("never_there").sync(),
                    // Part of a batch after an error is skipped.
                    Batch::new().parse("two", "SELEC").bind("", "two", &[]).execute("", 0).parse("three", "SELECT 3").sync(),
                    Batch::new().describe_statement("three").sync(),
                    Batch::new().run("", &[]),
                    Batch::new().query(""),
                    Batch::new().query(";"),
                    // Row limits: a portal is suspended, and goes on within its transaction.
                    Batch::new().query("BEGIN"),
                    Batch::new().parse("", "SELECT id FROM proto_rows ORDER BY id").bind("rows", "", &[]).execute("rows", 3).sync(),
                    Batch::new().execute("rows", 4).sync(),
                    Batch::new().execute("rows", 0).sync(),
                    Batch::new().execute("rows", 0).sync(),
                    Batch::new().query("COMMIT"),
                    // Outside one it ends at Sync.
                    Batch::new()
                        .parse("", "SELECT id FROM proto_rows ORDER BY id")
                        .bind("rows", "", &[])
                        .execute("rows", 2)
                        .execute("rows", 2)
                        .sync(),
                    Batch::new().execute("rows", 1).sync(),
                ],
            )
            .await?;
        let all = letters(&answer);
        ensure!(all.starts_with("1tTZ2TDCZ2DC3Z12DCZ"), "{all}");
        ensure!(all.contains('s') && all.contains('I') && all.matches('E').count() >= 6, "{all}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn errors_in_batches_and_in_query_strings() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE proto_errors (id int PRIMARY KEY); GRANT ALL ON proto_errors TO app").await?;
        let count = Batch::new().query("SELECT count(*) FROM proto_errors");
        let answer = yard
            .same(
                &yard.router,
                &[
                    Batch::new().query("TRUNCATE proto_errors"),
                    // The whole string is one transaction.
                    Batch::new().query("INSERT INTO proto_errors VALUES (1); SELECT 1/0; INSERT INTO proto_errors VALUES (2)"),
                    count.clone(),
                    Batch::new().query("INSERT INTO proto_errors VALUES (1); COMMIT; INSERT INTO proto_errors VALUES (2); SELECT 1/0"),
                    count.clone(),
                    Batch::new().query("SELECT 1; SELECT 2, 'x'; SELECT 1 WHERE false; VALUES (1), (2)"),
                    Batch::new().query("BEGIN; INSERT INTO proto_errors VALUES (3); SELECT 1/0; COMMIT"),
                    Batch::new().query("SELECT 1"),
                    Batch::new().query("ROLLBACK"),
                    Batch::new().query("ROLLBACK"),
                    count.clone(),
                    // A batch up to Sync is one, too; the next one is another.
                    Batch::new()
                        .parse("", "INSERT INTO proto_errors VALUES (4)")
                        .bind("", "", &[])
                        .execute("", 0)
                        .parse("", "SELECT 1/0")
                        .bind("", "", &[])
                        .execute("", 0)
                        .parse("", "INSERT INTO proto_errors VALUES (5)")
                        .sync()
                        .run("INSERT INTO proto_errors VALUES (6)", &[]),
                    count.clone(),
                    Batch::new().run("SELECT $1::int", &["no number"]),
                    Batch::new().run("SELECT 1; SELECT 2", &[]),
                    Batch::new().run("SELECT $1", &["1", "2"]),
                    Batch::new().query("SELECT * FROM proto_no_such_table"),
                    Batch::new().query("SELECT nothing FROM proto_errors"),
                    Batch::new().query("INSERT INTO proto_errors VALUES (6)"),
                    Batch::new().query("DO $$ BEGIN RAISE NOTICE 'told %', 1; RAISE WARNING 'warned'; END $$"),
                    Batch::new().query(
                        "DO $$ BEGIN RAISE EXCEPTION 'raised' USING ERRCODE = 'P0099', HINT = 'a hint', DETAIL = 'a detail'; END $$",
                    ),
                    Batch::new().query("DROP TABLE IF EXISTS proto_never_there"),
                    Batch::new().query("SET LOCAL work_mem = '1MB'"),
                    Batch::new().query("COMMIT"),
                    Batch::new().query("SAVEPOINT a"),
                ],
            )
            .await?;
        ensure!(answer.iter().any(|line| line == "N NOTICE 00000 told 1" || line.starts_with("N NOTICE 00000 told 1")), "{answer:#?}");
        ensure!(letters(&answer).matches('E').count() >= 10, "{answer:#?}");
        Ok(())
    })
    .await
}

/// Drivers ask for a statement's shape first, and wait for it, without ending the batch.
#[tokio::test]
async fn parse_and_describe_with_flush() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE proto_flush (id int); GRANT ALL ON proto_flush TO app").await?;
        for dsn in [yard.leader.dsn_for("app"), yard.router.rw_dsn("app")] {
            let mut client = Raw::connect(&dsn).await?;
            for (sql, tag) in [("SELECT $1::int AS n", "C SELECT 1"), ("INSERT INTO proto_flush VALUES ($1) RETURNING id", "C INSERT 0 1")]
            {
                client.send(&Batch::new().parse("s", sql).describe_statement("s").flush().bytes).await?;
                let mut told = Vec::new();
                while told.len() < 3 {
                    told.push(client.next().await?.to_string());
                }
                ensure!(letters(&told) == "1tT" && told[1] == "t 23", "{told:?}");
                client.send(&Batch::new().bind("", "s", &["7"]).execute("", 0).flush().bytes).await?;
                let answer: Vec<_> = client.until(b'C').await?.iter().map(ToString::to_string).collect();
                ensure!(answer == ["2", "D 7", tag], "{answer:?}");
                let end = client.ask(&Batch::new().close_statement("s").sync()).await?;
                ensure!(end == ["3", "Z I"], "{end:?}");
            }
            // An error at Flush: all up to Sync is skipped.
            client.send(&Batch::new().parse("bad", "SELEC").describe_statement("bad").flush().bytes).await?;
            let error = client.next().await?;
            ensure!(error.field(b'C').as_deref() == Some("42601"), "{error}");
            client.send(&Batch::new().bind("", "bad", &[]).execute("", 0).bytes).await?;
            let end = client.ask(&Batch::new().sync()).await?;
            ensure!(end == ["Z I"], "{end:?}");
            ensure!(letters(&client.query("SELECT 1").await?) == "TDCZ");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_thousand_batches_at_once() -> Result {
    tell(async |yard| {
        const COUNT: usize = 1_000;
        yard.prepare("CREATE TABLE proto_many (id int); GRANT ALL ON proto_many TO app").await?;
        let mut client = Raw::connect(&yard.router.rw_dsn("app")).await?;
        let mut batch =
            Batch::new().parse("read", "SELECT $1::int * 2").parse("write", "INSERT INTO proto_many VALUES ($1) RETURNING id").sync();
        for number in 0..COUNT {
            let (statement, value) = (if number % 10 == 9 { "write" } else { "read" }, number.to_string());
            batch = batch.bind("", statement, &[&value]).execute("", 0).sync();
        }
        let answer = client.ask(&batch).await?;
        let rows: Vec<&str> = answer.iter().filter_map(|line| line.strip_prefix("D ")).collect();
        let expected: Vec<String> = (0..COUNT).map(|n| if n % 10 == 9 { n.to_string() } else { (n * 2).to_string() }).collect();
        ensure!(rows == expected, "{} rows", rows.len());
        ensure!(answer.iter().filter(|line| line.starts_with('Z')).count() == COUNT + 1);
        let count = client.query("SELECT count(*) FROM proto_many").await?;
        ensure!(count[1] == "D 100", "{count:?}");

        // The same by simple queries, many in one write, with an error among them.
        let mut batch = Batch::new();
        for number in 0..COUNT {
            batch = batch.query(if number == 500 { "SELECT 1/0" } else { "SELECT 5" });
        }
        let answer = client.ask(&batch).await?;
        ensure!(answer.iter().filter(|line| *line == "D 5").count() == COUNT - 1);
        ensure!(answer.iter().filter(|line| line.starts_with("E ERROR 22012")).count() == 1);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn tokio_postgres_pipelines() -> Result {
    tell(async |yard| {
        let client = yard.router.rw("app").await?;
        let statement = client.prepare("SELECT $1::int8 + 1").await?;
        let answers = join_all((0..200_i64).map(|n| {
            let (client, statement) = (&client, &statement);
            async move { anyhow::Ok(client.query_one(statement, &[&n]).await?.get::<_, i64>(0)) }
        }))
        .await;
        for (n, answer) in answers.into_iter().enumerate() {
            ensure!(answer? == n as i64 + 1);
        }
        let mixed = futures_util::future::join3(
            client.query_one("SELECT 1", &[]),
            client.query_one("SELECT 1/0", &[]),
            client.simple_query("SELECT 2; SELECT 3"),
        )
        .await;
        ensure!(mixed.0?.get::<_, i32>(0) == 1 && mixed.2?.len() >= 4);
        ensure!(mixed.1.is_err_and(|error| error.code() == Some(&SqlState::DIVISION_BY_ZERO)));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn copy_both_ways() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE proto_copy (id int, v text); GRANT ALL ON proto_copy TO app").await?;
        let mut binary = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\x04\0\0\0\x15\0\0\0\x02ab".to_vec();
        binary.extend(b"\xff\xff");
        let answer = yard
            .same(
                &yard.router,
                &[
                    Batch::new().query("TRUNCATE proto_copy"),
                    Batch::new().query("COPY proto_copy FROM STDIN (FORMAT binary)").copy_data(&binary).copy_done(),
                    Batch::new().query("COPY proto_copy FROM STDIN (FORMAT binary)").copy_data(b"no such signature").copy_done(),
                    Batch::new().query("COPY proto_copy FROM STDIN").copy_data(b"1\tone\n2\ttw").copy_data(b"o\n3\t\\N\n").copy_done(),
                    Batch::new().query("COPY proto_copy FROM STDIN (FORMAT csv)").copy_data(b"4,\"a,b\"\n").copy_done(),
                    Batch::new().query("COPY proto_copy TO STDOUT"),
                    Batch::new().query("COPY (SELECT * FROM proto_copy ORDER BY id) TO STDOUT (FORMAT csv, HEADER)"),
                    Batch::new().query("COPY (SELECT 1) TO STDOUT (FORMAT binary)"),
                    // An error in the middle, and one by the client's wish.
                    Batch::new().query("COPY proto_copy FROM STDIN").copy_data(b"5\tfive\nx\tno number\n7\tseven\n").copy_done(),
                    Batch::new().query("COPY proto_copy FROM STDIN").copy_data(b"8\teight\n").copy_fail("changed my mind"),
                    Batch::new().query("SELECT count(*) FROM proto_copy"),
                    Batch::new().query("COPY proto_no_such FROM STDIN"),
                    Batch::new().query("COPY (SELECT 1/(id - 3) FROM proto_copy ORDER BY id) TO STDOUT"),
                    // In the extended protocol.
                    Batch::new()
                        .parse("", "COPY proto_copy FROM STDIN")
                        .bind("", "", &[])
                        .execute("", 0)
                        .copy_data(b"9\tnine\n")
                        .copy_done()
                        .sync(),
                    Batch::new().run("COPY proto_copy TO STDOUT", &[]),
                    // Several statements around it.
                    Batch::new().query("SELECT 1; COPY proto_copy FROM STDIN; SELECT 2").copy_data(b"10\tten\n").copy_done(),
                    Batch::new().query("BEGIN"),
                    Batch::new().query("COPY proto_copy FROM STDIN").copy_data(b"11\televen\n").copy_done(),
                    Batch::new().query("COPY proto_copy FROM STDIN").copy_data(b"y\n").copy_done(),
                    Batch::new().query("COMMIT"),
                    Batch::new().query("SELECT count(*) FROM proto_copy"),
                ],
            )
            .await?;
        ensure!(answer.iter().filter(|line| *line == "C COPY 3").count() == 1, "{answer:#?}");
        ensure!(answer.iter().any(|line| line.starts_with("E ERROR 22P02")), "{answer:#?}");
        ensure!(answer.iter().any(|line| line.starts_with("E ERROR 57014")), "{answer:#?}");
        ensure!(answer.last().is_some_and(|line| line == "Z I"));
        Ok(())
    })
    .await
}

/// Drivers send Execute and Sync, and the data behind them; PostgreSQL ignores that Sync and waits for another.
#[tokio::test]
async fn copy_by_a_driver_gives_its_connection_back() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE proto_driver (id int, v text); GRANT ALL ON proto_driver TO app").await?;
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1)).await?;
        let (client, other) = (router.rw("app").await?, router.rw("app").await?);
        for round in 0..3_i64 {
            let sink = client.copy_in("COPY proto_driver FROM STDIN").await?;
            let mut sink = Box::pin(sink);
            for line in 0..100 {
                sink.send(Bytes::from(format!("{line}\tline {line}\n"))).await?;
            }
            ensure!(sink.as_mut().finish().await? == 100);
            // One that fails, and one that is given up.
            let mut sink = Box::pin(client.copy_in("COPY proto_driver FROM STDIN").await?);
            sink.send(Bytes::from_static(b"x\ty\n")).await?;
            let error = sink.as_mut().finish().await.err().context("it was accepted")?;
            ensure!(error.code() == Some(&SqlState::INVALID_TEXT_REPRESENTATION), "{error}");
            let mut sink = Box::pin(client.copy_in("COPY proto_driver FROM STDIN").await?);
            sink.send(Bytes::from_static(b"1\ty\n")).await?;
            drop(sink);
            let rows: i64 = client.query_one("SELECT count(*) FROM proto_driver", &[]).await?.get(0);
            ensure!(rows == (round + 1) * 100, "{rows}");
            // The only connection is free for somebody else.
            other.simple_query("SELECT pg_is_in_recovery()").await?;
            let lines: Vec<Bytes> = client.copy_out("COPY proto_driver TO STDOUT").await?.try_collect().await?;
            ensure!(lines.iter().map(|part| part.iter().filter(|byte| **byte == b'\n').count()).sum::<usize>() == (rows as usize));
        }
        Ok(())
    })
    .await
}

/// Nobody may run what another session has prepared, not even by guessing that it left its unnamed statement behind.
#[tokio::test]
async fn an_unnamed_statement_is_its_sessions_own() -> Result {
    tell(async |yard| {
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1)).await?;
        let mut first = Raw::connect(&router.rw_dsn("app")).await?;
        let mut second = Raw::connect(&router.rw_dsn("app")).await?;
        first.ask(&Batch::new().run("SELECT 'secret', pg_is_in_recovery()", &[])).await?;
        let answer = second.ask(&Batch::new().bind("", "", &[]).execute("", 0).sync()).await?;
        ensure!(answer == ["E ERROR 26000 unnamed prepared statement does not exist", "Z I"], "{answer:?}");
        first.ask(&Batch::new().run("SELECT 'secret', pg_is_in_recovery()", &[])).await?;
        // Its own was skipped because of an error, which it doesn't know yet.
        let behind_error = Batch::new().parse("bad", "SELEC").parse("", "SELECT 1").sync().bind("", "", &[]).execute("", 0).sync();
        let answer = second.ask(&behind_error).await?;
        ensure!(!answer.concat().contains("secret"), "{answer:?}");
        let answer = second.ask(&Batch::new().run("SELECT 2", &[])).await?;
        ensure!(answer[2] == "D 2", "{answer:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_client_that_dies_in_a_copy_leaves_nothing() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE proto_dying (id int); GRANT ALL ON proto_dying TO app").await?;
        let mut client = Raw::connect(&yard.router.rw_dsn("app")).await?;
        client.send(&Batch::new().query("COPY proto_dying FROM STDIN").bytes).await?;
        ensure!(client.next().await?.tag == b'G');
        client.send(&Batch::new().copy_data(b"1\n2\n3\n").bytes).await?;
        let copying = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY proto_dying%' AND state = 'active'";
        eventually(SOON, "the COPY runs", || async { Ok((yard.leader.ask(copying).await? == "1").then_some(())) }).await?;
        drop(client);
        eventually(SOON, "the COPY is over", || async { Ok((yard.leader.ask(copying).await? == "0").then_some(())) }).await?;
        ensure!(yard.leader.ask("SELECT count(*) FROM proto_dying").await? == "0", "half a COPY was committed");

        // One that dies while it is being sent rows: its server is free again, and nobody gets the rest.
        let mut client = Raw::connect(&yard.router.rw_dsn("app")).await?;
        client.send(&Batch::new().query("COPY (SELECT generate_series(1, 100000000)) TO STDOUT").bytes).await?;
        client.until(b'd').await?;
        drop(client);
        let sending = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY (SELECT gen%' AND state = 'active'";
        for member in yard.cluster.members() {
            eventually(SOON, "nobody sends any more", || async { Ok((member.ask(sending).await? == "0").then_some(())) }).await?;
        }
        let next = Raw::connect(&yard.router.rw_dsn("app")).await?.query("SELECT 1").await?;
        ensure!(letters(&next) == "TDCZ", "{next:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn listen_and_notify() -> Result {
    tell(async |yard| {
        let mut listener = Raw::connect(&yard.router.rw_dsn("app")).await?;
        ensure!(listener.query("LISTEN proto_channel").await? == ["C LISTEN", "Z I"]);
        let mut other = Raw::connect(&yard.router.rw_dsn("app")).await?;
        ensure!(other.query("NOTIFY proto_channel, 'hello'").await? == ["C NOTIFY", "Z I"]);
        // It comes without being asked for.
        let told = listener.next().await?;
        ensure!(told.to_string() == "A proto_channel=hello", "{told}");
        // Reads of a session that listens go on, and notifications come between them.
        other.query("SELECT pg_notify('proto_channel', 'again')").await?;
        let told = listener.next().await?;
        ensure!(told.to_string() == "A proto_channel=again", "{told}");
        ensure!(letters(&listener.query("SELECT 1").await?) == "TDCZ");
        listener.query("UNLISTEN *").await?;
        other.query("NOTIFY proto_channel, 'nobody hears'").await?;
        let answer = listener.query("SELECT 2").await?;
        ensure!(letters(&answer) == "TDCZ", "{answer:?}");
        // Whoever gets that server connection next hears nothing.
        let mut next = Raw::connect(&yard.router.rw_dsn("app")).await?;
        ensure!(letters(&next.query("SELECT pg_is_in_recovery()").await?) == "TDCZ");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_large_value_in_bounded_memory() -> Result {
    tell(async |yard| {
        const VALUE: usize = 64 * MB;
        let router = yard.other_router(RouterOptions::new()).await?;
        let mut client = Raw::connect(&router.rw_dsn("app")).await?;
        client.query("SELECT 1").await?;
        let pid = router.pid().context("it runs")?;
        let before = memory(pid, "VmRSS")?;
        for sql in ["SELECT repeat('x', 67108864)", "SELECT repeat('x', 67108864) FROM pg_stat_replication LIMIT 1"] {
            client.send(&Batch::new().query(sql).bytes).await?;
            let answer = client.until(b'Z').await?;
            let row = answer.iter().find(|message| message.tag == b'D').context("a row")?;
            ensure!(row.body.len() == VALUE + 6 && row.body[6..].iter().all(|byte| *byte == b'x'), "{}", row.body.len());
        }
        let most = memory(pid, "VmHWM")?;
        ensure!(most < before + 8 * MB as u64, "{} MB for a value of 64 MB", (most - before) / MB as u64);

        // A client that stops reading stops the server, and nothing piles up in between.
        let mut slow = Raw::connect(&router.rw_dsn("app")).await?;
        slow.send(&Batch::new().query("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)").bytes).await?;
        slow.until(b'D').await?;
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT repeat(%1000000)' AND wait_event = 'ClientWrite'";
        eventually(SOON, "the server waits for the client", || async {
            for member in yard.cluster.members() {
                if member.ask(asleep).await? == "1" {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })
        .await?;
        ensure!(letters(&client.query("SELECT 1").await?) == "TDCZ", "others are served");
        let most = memory(pid, "VmHWM")?;
        ensure!(most < before + 12 * MB as u64, "{} MB for a client that doesn't read", (most - before) / MB as u64);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_large_parameter_comes_through() -> Result {
    tell(async |yard| {
        let mut client = Raw::connect(&yard.router.rw_dsn("app")).await?;
        let value = "y".repeat(16 * MB);
        let answer = client.ask(&Batch::new().run("SELECT length($1::text)", &[&value])).await?;
        ensure!(answer.contains(&format!("D {}", value.len())), "{answer:?}");
        let answer = client.query(&format!("SELECT length('{value}')")).await?;
        ensure!(answer.contains(&format!("D {}", value.len())));
        Ok(())
    })
    .await
}

/// A CancelRequest, and the end of its connection, which says that it was taken.
async fn cancel(port: u16, (pid, secret): (i32, i32)) -> Result {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let packet: Vec<u8> = [16, 80_877_102, pid, secret].into_iter().flat_map(i32::to_be_bytes).collect();
    stream.write_all(&packet).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(answer.is_empty(), "a cancel request is never answered");
    Ok(())
}

#[tokio::test]
async fn a_cancel_hits_its_statement_only() -> Result {
    tell(async |yard| {
        let (running, bystander) = (yard.router.rw("app").await?, yard.router.rw("app").await?);
        for sleep in ["SELECT pg_sleep(30)", "SELECT pg_sleep(30), pg_is_in_recovery()"] {
            let begin = Instant::now();
            let token = running.cancel_token();
            let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30)%' AND state = 'active'";
            let cancel = async {
                eventually(SOON, "it sleeps", || async {
                    for member in yard.cluster.members() {
                        if member.ask(sleeping).await? == "1" {
                            return Ok(Some(()));
                        }
                    }
                    Ok(None)
                })
                .await?;
                token.cancel_query(tokio_postgres::NoTls).await?;
                anyhow::Ok(())
            };
            let (slept, aside, canceled) =
                tokio::join!(running.simple_query(sleep), bystander.simple_query("SELECT pg_sleep(0.5)"), cancel);
            canceled?;
            aside.context("somebody else's statement")?;
            let error = slept.err().context("it wasn't canceled")?;
            ensure!(error.code() == Some(&SqlState::QUERY_CANCELED), "{error}");
            ensure!(begin.elapsed() < Duration::from_secs(25));
            running.simple_query("SELECT 1").await.context("the session is usable")?;
        }
        // A cancel for an idle session, and one with a wrong key: both are void, and neither is answered.
        let mut idle = Raw::connect(&yard.router.rw_dsn("app")).await?;
        for key in [idle.key, (idle.key.0, idle.key.1.wrapping_add(1)), (1, 1)] {
            cancel(yard.router.rw_port(), key).await?;
            let answer = idle.query("SELECT pg_sleep(0.1), pg_is_in_recovery()").await?;
            ensure!(letters(&answer) == "TDCZ", "a cancel that came before: {answer:?}");
        }
        // Nor does a wrong one stop what runs.
        idle.send(&Batch::new().query("SELECT pg_sleep(0.3), pg_is_in_recovery()").bytes).await?;
        cancel(yard.router.rw_port(), (idle.key.0, idle.key.1.wrapping_add(1))).await?;
        let answer: Vec<_> = idle.until(b'Z').await?.iter().map(ToString::to_string).collect();
        ensure!(letters(&answer) == "TDCZ", "{answer:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_cancel_reaches_one_that_waits_for_a_connection() -> Result {
    tell(async |yard| {
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1)).await?;
        let (holder, waiter) = (router.rw("app").await?, router.rw("app").await?);
        holder.batch_execute("BEGIN; SELECT pg_is_in_recovery()").await?;
        let waiting = format!("switchyard_pool_waiting{{node=\"{}\",database=\"postgres\",user=\"app\"}}", yard.leader.name());
        let token = waiter.cancel_token();
        let cancel = async {
            eventually(SOON, "it waits", || async { Ok((metric(&router, &waiting).await? >= 1.0).then_some(())) }).await?;
            token.cancel_query(tokio_postgres::NoTls).await?;
            anyhow::Ok(())
        };
        let (waited, canceled) = tokio::join!(waiter.simple_query("SELECT pg_is_in_recovery(), 'waiter'"), cancel);
        canceled?;
        let error = waited.err().context("it wasn't canceled")?;
        ensure!(error.code() == Some(&SqlState::QUERY_CANCELED), "{error}");
        holder.batch_execute("SELECT 1; COMMIT").await.context("the one that held the connection")?;
        waiter.simple_query("SELECT pg_is_in_recovery()").await.context("the session is usable")?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_same_reports_as_the_leaders() -> Result {
    tell(async |yard| {
        let startup = [("application_name", "reports"), ("DateStyle", "German"), ("client_encoding", "LATIN1"), ("TimeZone", "Asia/Tokyo")];
        let direct = Raw::connect_with(&yard.leader.dsn_for("app"), &startup).await?;
        let routed = Raw::connect_with(&yard.router.rw_dsn("app"), &startup).await?;
        let sorted = |client: &Raw| {
            let mut parameters = client.parameters.clone();
            parameters.sort();
            parameters
        };
        ensure!(sorted(&direct) == sorted(&routed), "{:#?}\n{:#?}", sorted(&direct), sorted(&routed));
        ensure!(routed.parameters.contains(&("in_hot_standby".into(), "off".into())), "{:?}", routed.parameters);
        let read_only = Raw::connect(&yard.router.ro_dsn("app")).await?;
        ensure!(read_only.parameters.contains(&("in_hot_standby".into(), "on".into())), "{:?}", read_only.parameters);
        // SET reports what it changed, and only that.
        let answer = yard
            .same(
                &yard.router,
                &[
                    Batch::new().query("SET datestyle = 'SQL, DMY'"),
                    Batch::new().query("SELECT '2020-02-01'::date"),
                    Batch::new().query("SET work_mem = '3MB'"),
                    Batch::new().query("SET TIME ZONE 'Europe/Berlin'"),
                    Batch::new().query("SELECT '2020-02-01 00:00+00'::timestamptz"),
                    Batch::new().query("SHOW work_mem"),
                    Batch::new().query("RESET datestyle"),
                    Batch::new().query("BEGIN"),
                    Batch::new().query("SET application_name = 'inside'"),
                    Batch::new().query("ROLLBACK"),
                    Batch::new().query("SELECT '2020-02-01'::date"),
                    Batch::new().query("SET datestyle = 'nonsense'"),
                    Batch::new().query("SET no_such_parameter = 1"),
                    Batch::new().query("SET my.own = 'x'"),
                    Batch::new().query("SELECT current_setting('my.own'), current_setting('work_mem')"),
                    Batch::new().query("RESET ALL"),
                    Batch::new().query("SHOW work_mem"),
                    Batch::new().query("SELECT set_config('work_mem', '2MB', false)"),
                    Batch::new().query("SHOW work_mem"),
                    Batch::new().query("DISCARD ALL"),
                    Batch::new().query("SHOW work_mem"),
                    Batch::new().query("SELECT '2020-02-01'::date"),
                ],
            )
            .await?;
        ensure!(answer.iter().any(|line| line == "S DateStyle=SQL, DMY"), "{answer:#?}");
        Ok(())
    })
    .await
}
