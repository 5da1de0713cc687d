//! What comes before a client's goodbye is run and answered, be it Terminate or the end of its input; only a
//! connection that is reset is canceled. Each conversation is had directly and by the router.

use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_tests::{Batch, Raw, Result, Router, RouterOptions, eventually};
use tokio::io::AsyncWriteExt;

use crate::yard::{SOON, Yard, tell};

#[derive(Clone, Copy, Debug)]
enum Goodbye {
    Terminate,
    /// The client closes its sending half, and reads on.
    End,
}

/// Has a conversation whose last messages have a goodbye right behind them, in one write. What is answered to those,
/// up to the connection's end.
async fn part(dsn: &str, before: &[Batch], last: &Batch, how: Goodbye) -> Result<Vec<String>> {
    let mut client = Raw::connect(dsn).await?;
    for batch in before {
        client.ask(batch).await?;
    }
    match how {
        Goodbye::Terminate => client.send(&last.clone().message(b'X', &[]).bytes).await?,
        Goodbye::End => {
            client.send(&last.bytes).await?;
            client.stream.shutdown().await?;
        }
    }
    rest(&mut client).await
}

/// All that comes up to the end of the connection, which must come.
async fn rest(client: &mut Raw) -> Result<Vec<String>> {
    let mut told = Vec::new();
    loop {
        match client.next().await {
            Ok(message) => told.push(message.to_string()),
            Err(error) if error.to_string() == "the connection was closed" => return Ok(told),
            Err(error) => return Err(error.context(format!("after {told:?}"))),
        }
    }
}

/// Puts the number into a statement.
type Numbered<'a> = &'a dyn Fn(&str) -> String;

/// A conversation that ends with a goodbye; in statements, `WHO` is a number of its own for each time that it is had.
struct Case {
    name: &'static str,
    before: &'static [&'static str],
    last: fn(Numbered<'_>) -> Batch,
    /// The rows that it leaves.
    rows: &'static str,
    /// Whether its answers are the direct connection's, word for word. PostgreSQL doesn't send what nobody has asked
    /// for by a Sync or Flush.
    compared: bool,
}

const INSERT: &str = "INSERT INTO goodbyes VALUES (WHO)";
const COPY: &str = "COPY goodbyes FROM STDIN";

const CASES: &[Case] = &[
    Case { name: "a query", before: &[], last: |as_who| Batch::new().query(&as_who(INSERT)), rows: "1", compared: true },
    Case {
        name: "two segments",
        before: &[],
        last: |as_who| Batch::new().run(&as_who(INSERT), &[]).run(&as_who(INSERT), &[]),
        rows: "2",
        compared: true,
    },
    Case {
        name: "reads and writes",
        before: &[],
        last: |as_who| Batch::new().query("SELECT 1").query(&as_who(INSERT)).query("SELECT 2").run(&as_who(INSERT), &[]),
        rows: "2",
        compared: true,
    },
    Case {
        name: "an error between",
        before: &[],
        last: |as_who| Batch::new().query(&as_who(INSERT)).query("SELECT 1/0").query(&as_who(INSERT)),
        rows: "2",
        compared: true,
    },
    Case { name: "COMMIT", before: &["BEGIN", INSERT], last: |_| Batch::new().query("COMMIT"), rows: "1", compared: true },
    Case {
        name: "a transaction that nobody commits",
        before: &["BEGIN", INSERT],
        last: |as_who| Batch::new().query(&as_who(INSERT)),
        rows: "0",
        compared: true,
    },
    Case {
        name: "DDL",
        before: &[],
        last: |as_who| Batch::new().query(&as_who("CREATE TABLE goodbye_WHO (i int)")).query(&as_who("DROP TABLE goodbye_WHO")),
        rows: "0",
        compared: true,
    },
    Case {
        name: "COPY",
        before: &[],
        last: |as_who| Batch::new().query(COPY).copy_data(as_who("WHO\nWHO\n").as_bytes()).copy_done(),
        rows: "2",
        compared: true,
    },
    Case {
        name: "COPY by the extended protocol",
        before: &[],
        last: |as_who| {
            let copy = Batch::new().parse("", COPY).bind("", "", &[]).execute("", 0);
            copy.copy_data(as_who("WHO\n").as_bytes()).copy_done().sync()
        },
        rows: "1",
        compared: true,
    },
    Case {
        name: "COPY by the extended protocol, without a Sync",
        before: &[],
        last: |as_who| {
            let copy = Batch::new().parse("", COPY).bind("", "", &[]).execute("", 0);
            copy.copy_data(as_who("WHO\n").as_bytes()).copy_done()
        },
        rows: "0",
        compared: false,
    },
    Case {
        name: "COPY whose data has no end",
        before: &[],
        last: |as_who| Batch::new().query(COPY).copy_data(as_who("WHO\nWHO\n").as_bytes()),
        rows: "0",
        compared: false,
    },
    Case {
        name: "a segment without a Sync",
        before: &[],
        last: |as_who| Batch::new().parse("", &as_who(INSERT)).bind("", "", &[]).execute("", 0),
        rows: "0",
        compared: false,
    },
    Case {
        name: "a segment without a Sync that commits",
        before: &["BEGIN", INSERT],
        last: |_| Batch::new().parse("", "COMMIT").bind("", "", &[]).execute("", 0),
        rows: "1",
        compared: false,
    },
    Case {
        name: "a session with a temporary table",
        before: &["CREATE TEMP TABLE own (i int)", "INSERT INTO own VALUES (WHO)"],
        last: |_| Batch::new().query("INSERT INTO goodbyes SELECT * FROM own"),
        rows: "1",
        compared: true,
    },
    Case {
        name: "settings that go with the session",
        before: &["SET search_path = goodbye_path, public", "SET work_mem = '1MB'"],
        last: |as_who| Batch::new().query("SHOW work_mem").query(&as_who(INSERT)),
        rows: "1",
        compared: true,
    },
    Case { name: "half a message", before: &[], last: |_| half(), rows: "0", compared: true },
];

/// The beginning of an INSERT, which has no end.
fn half() -> Batch {
    let mut whole = Batch::new().query("INSERT INTO goodbyes VALUES (0)");
    whole.bytes.truncate(20);
    whole
}

async fn rows(yard: &Yard, who: usize) -> Result<String> {
    yard.leader.ask(&format!("SELECT count(*) FROM goodbyes WHERE who = {who}")).await
}

async fn all_cases(yard: &Yard, router: &Router, pooled: bool) -> Result {
    yard.prepare("DROP TABLE IF EXISTS goodbyes; CREATE TABLE goodbyes (who int); GRANT ALL ON goodbyes TO app; GRANT CREATE ON SCHEMA public TO app")
        .await?;
    let mut who = 0;
    // A session that keeps its first server connection reads on a replica, and writes nowhere.
    for case in CASES.iter().filter(|case| pooled || case.name != "reads and writes") {
        for how in [Goodbye::Terminate, Goodbye::End] {
            if case.name == "half a message" && matches!(how, Goodbye::Terminate) {
                // The Terminate would be a part of it.
                continue;
            }
            let mut answers = Vec::new();
            for (side, dsn) in [("directly", yard.leader.dsn_for("app")), ("by the router", router.rw_dsn("app"))] {
                who += 1;
                let as_who = |sql: &str| sql.replace("WHO", &who.to_string());
                let before: Vec<Batch> = case.before.iter().map(|sql| Batch::new().query(&as_who(sql))).collect();
                let told = part(&dsn, &before, &(case.last)(&as_who), how).await;
                let told = told.with_context(|| format!("{}, {how:?}, {side}", case.name))?;
                // The server may still be at it where it doesn't answer.
                let left =
                    eventually(SOON, "its rows", || async { Ok(Some(rows(yard, who).await?).filter(|left| left == case.rows)) }).await;
                left.with_context(|| format!("{}, {how:?}, {side}: not {} rows; told {told:?}", case.name, case.rows))?;
                answers.push(told);
            }
            ensure!(!case.compared || answers[0] == answers[1], "{}, {how:?}: {answers:#?}", case.name);
        }
    }
    // What is never to be there hasn't come meanwhile.
    let none = "SELECT count(*) FROM goodbyes WHERE who = 0";
    ensure!(yard.leader.ask(none).await? == "0", "half a message was run");
    yard.prepare("REVOKE CREATE ON SCHEMA public FROM app").await
}

#[tokio::test]
async fn what_comes_before_is_run_and_answered() -> Result {
    tell(async |yard| all_cases(yard, &yard.router, true).await).await
}

#[tokio::test]
async fn in_session_mode_too() -> Result {
    tell(async |yard| {
        let router = yard.other_router(RouterOptions::new().set("pool.mode", "session")).await?;
        all_cases(yard, &router, false).await
    })
    .await
}

#[tokio::test]
async fn the_read_only_port_answers_before_the_end() -> Result {
    tell(async |yard| {
        let replica = yard.replicas.first().context("a replica")?;
        for how in [Goodbye::Terminate, Goodbye::End] {
            let last = Batch::new().query("SELECT 1").run("SELECT 2", &[]).query("CREATE TABLE goodbye_never (i int)").query("SELECT 3");
            let direct = part(&replica.dsn_for("app"), &[], &last, how).await?;
            let routed = part(&yard.router.ro_dsn("app"), &[], &last, how).await?;
            ensure!(direct == routed, "{how:?}: {direct:#?} {routed:#?}");
        }
        Ok(())
    })
    .await
}

/// As libpq's `PQsendQuery(COMMIT); PQfinish`: nobody waits for the answer, and the whole connection is closed.
#[tokio::test]
async fn a_commit_counts_though_nobody_waits_for_its_answer() -> Result {
    const TIMES: i32 = 30;
    tell(async |yard| {
        yard.prepare("CREATE TABLE goodbye_commits (i int); GRANT ALL ON goodbye_commits TO app").await?;
        for i in 0..TIMES {
            let mut client = Raw::connect(&yard.router.rw_dsn("app")).await?;
            client.query("BEGIN").await?;
            client.query(&format!("INSERT INTO goodbye_commits VALUES ({i})")).await?;
            client.send(&Batch::new().query("COMMIT").message(b'X', &[]).bytes).await?;
        }
        // Two segments of a pipeline, where the first answer meets a connection that is closed.
        for i in 0..TIMES {
            let mut client = Raw::connect(&yard.router.rw_dsn("app")).await?;
            let sql = format!("INSERT INTO goodbye_commits VALUES ({})", TIMES + i);
            client.send(&Batch::new().query("SELECT 1").query("SELECT 2").run(&sql, &[]).message(b'X', &[]).bytes).await?;
        }
        let kept = || async { yard.leader.ask("SELECT count(DISTINCT i) FROM goodbye_commits").await };
        let all = eventually(SOON, "all rows", || async { Ok((kept().await? == (2 * TIMES).to_string()).then_some(())) }).await;
        all.with_context(|| "some are missing".to_owned())?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn who_waits_in_line_says_goodbye_and_is_served() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE goodbye_line (i int); GRANT ALL ON goodbye_line TO app").await?;
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1)).await?;
        for how in [Goodbye::Terminate, Goodbye::End] {
            let mut holder = Raw::connect(&router.rw_dsn("app")).await?;
            holder.query("BEGIN").await?;
            holder.query("INSERT INTO goodbye_line VALUES (0)").await?;
            let dsn = router.rw_dsn("app");
            let waiting = tokio::spawn(async move {
                let last = Batch::new().query("INSERT INTO goodbye_line VALUES (1)");
                part(&dsn, &[], &last, how).await
            });
            let in_line = || async {
                let text = router.get("/metrics").await?.body;
                let waits =
                    |line: &&str| line.starts_with("switchyard_pool_waiting{") && line.contains("\"app\"") && line.ends_with(" 1.0");
                Ok(text.lines().find(waits).map(drop))
            };
            eventually(SOON, "one waits in line", in_line).await?;
            holder.query("COMMIT").await?;
            ensure!(waiting.await?? == ["C INSERT 0 1", "Z I"], "{how:?}");
        }
        ensure!(yard.leader.ask("SELECT sum(i) FROM goodbye_line").await? == "2");
        Ok(())
    })
    .await
}

async fn is_running(yard: &Yard, marker: &str, wanted: bool) -> Result {
    let running =
        format!("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{marker}%' AND state = 'active' AND pid <> pg_backend_pid()");
    eventually(SOON, "the statement", || async { Ok(((yard.leader.ask(&running).await? != "0") == wanted).then_some(())) }).await
}

#[tokio::test]
async fn a_reset_cancels_what_runs_and_an_end_does_not() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE goodbye_resets (i int); GRANT ALL ON goodbye_resets TO app").await?;
        let slow = |i: i32, seconds: i32| {
            format!("INSERT INTO goodbye_resets SELECT {i} FROM (SELECT pg_sleep({seconds}) OFFSET 0) AS goodbye_sleep_{i}")
        };
        let mut reset = Raw::connect(&yard.router.rw_dsn("app")).await?;
        reset.send(&Batch::new().query(&slow(1, 120)).bytes).await?;
        is_running(yard, "goodbye_sleep_1", true).await?;
        reset.stream.set_zero_linger()?;
        drop(reset);
        is_running(yard, "goodbye_sleep_1", false).await?;

        // A client that has gone without a word is one that has closed its sending half.
        let mut gone = Raw::connect(&yard.router.rw_dsn("app")).await?;
        gone.send(&Batch::new().query(&slow(2, 2)).bytes).await?;
        is_running(yard, "goodbye_sleep_2", true).await?;
        drop(gone);
        is_running(yard, "goodbye_sleep_2", false).await?;
        ensure!(yard.leader.ask("SELECT string_agg(i::text, ',') FROM goodbye_resets").await? == "2");

        // It has said goodbye before: what breaks then breaks nothing.
        let mut parted = Raw::connect(&yard.router.rw_dsn("app")).await?;
        parted.send(&Batch::new().query(&slow(3, 2)).message(b'X', &[]).bytes).await?;
        is_running(yard, "goodbye_sleep_3", true).await?;
        parted.stream.set_zero_linger()?;
        drop(parted);
        is_running(yard, "goodbye_sleep_3", false).await?;
        ensure!(yard.leader.ask("SELECT string_agg(i::text, ',' ORDER BY i) FROM goodbye_resets").await? == "2,3");
        Ok(())
    })
    .await
}

/// The server connection of a client that has left is the next one's, unless the client's state is on it.
#[tokio::test]
async fn the_connection_of_who_has_left_is_clean() -> Result {
    tell(async |yard| {
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1)).await?;
        for how in [Goodbye::Terminate, Goodbye::End] {
            for begun in ["BEGIN", "CREATE TEMP TABLE left_behind (i int)"] {
                let before = [Batch::new().query(begun), Batch::new().query("SELECT pg_advisory_xact_lock(13)")];
                part(&router.rw_dsn("app"), &before, &Batch::new().query("SELECT 1"), how).await?;
                let mut next = Raw::connect(&router.rw_dsn("app")).await?;
                let left = next.query("SELECT count(*) FROM pg_class WHERE relname = 'left_behind' AND pg_table_is_visible(oid)").await?;
                ensure!(left.contains(&"D 0".to_owned()), "{begun}, {how:?}: {left:?}");
                let locked = next.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 13").await?;
                ensure!(
                    locked.contains(&"D 0".to_owned()) && locked.last().is_some_and(|last| last == "Z I"),
                    "{begun}, {how:?}: {locked:?}"
                );
            }
        }
        // Nobody is left in line.
        tokio::time::timeout(Duration::from_secs(10), Raw::connect(&router.rw_dsn("app"))).await??;
        Ok(())
    })
    .await
}
