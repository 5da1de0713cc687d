//! tokio-postgres: what an application does with it.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, future, stream};
use switchyard_tests::{Result, eventually};
use tokio_postgres::binary_copy::{BinaryCopyInWriter, BinaryCopyOutStream};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Error, IsolationLevel, NoTls, SimpleQueryMessage};

use crate::Yard;
use crate::twice::{WAYS, same};

const DATABASE: &str = "clients_rust";
const SOON: Duration = Duration::from_secs(20);

/// What it says, line by line.
#[derive(Default)]
struct Paper(String);

impl Paper {
    fn show(&mut self, what: &str, value: impl Debug) {
        self.0 += &format!("{what} {value:?}\n");
    }

    /// The error that must come, with every field of it but file and line.
    fn fails<T>(&mut self, what: &str, result: std::result::Result<T, Error>) {
        let Err(error) = result else { return self.show(what, "didn't fail") };
        match error.as_db_error() {
            Some(about) => {
                let place = about.position().map(|position| format!("{position:?}"));
                self.show(what, (about.severity(), about.code().code(), about.message(), about.detail(), about.hint(), place));
                self.show(what, (about.table(), about.constraint(), about.where_(), about.routine()));
            }
            None => self.show(what, error.to_string()),
        }
    }
}

/// A connection, and the notices and notifications that come.
struct Session {
    client: Client,
    heard: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

impl Session {
    async fn open(dsn: &str) -> Result<Session> {
        let (client, mut connection) = tokio_postgres::connect(dsn, NoTls).await?;
        let heard = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let ear = heard.clone();
        tokio::spawn(async move {
            let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                let text = match message {
                    AsyncMessage::Notice(notice) => format!("{} {} {}", notice.severity(), notice.code().code(), notice.message()),
                    AsyncMessage::Notification(note) => format!("{} {}", note.channel(), note.payload()),
                    _ => continue,
                };
                ear.lock().expect("nobody panics with it").push(text);
            }
        });
        Ok(Session { client, heard })
    }

    async fn heard(&self, count: usize) -> Result<Vec<String>> {
        let enough = eventually(SOON, "what is to be heard", || async {
            let heard = self.heard.lock().expect("nobody panics with it");
            Ok((heard.len() >= count).then(|| heard.clone()))
        });
        let all = enough.await?;
        self.heard.lock().expect("nobody panics with it").clear();
        Ok(all)
    }
}

pub(crate) async fn rust(yard: &Yard) -> Result {
    let mut printed = Vec::new();
    for way in WAYS {
        yard.new_database(DATABASE).await?;
        let dsn = yard.dsn(way, "app", DATABASE).await?;
        let mut paper = Paper::default();
        let mut session = Session::open(&dsn).await?;
        basics(&mut paper, &session.client).await.with_context(|| format!("basics, {way:?}"))?;
        statements(&mut paper, &session.client).await.with_context(|| format!("statements, {way:?}"))?;
        pipelines(&mut paper, &session.client).await.with_context(|| format!("pipelines, {way:?}"))?;
        transactions(&mut paper, &mut session.client).await.with_context(|| format!("transactions, {way:?}"))?;
        copies(&mut paper, &session.client).await.with_context(|| format!("copies, {way:?}"))?;
        messages(&mut paper, &session, &dsn).await.with_context(|| format!("messages, {way:?}"))?;
        printed.push(paper.0);
    }
    same("rust", &printed[0], &printed[1])
}

async fn basics(paper: &mut Paper, client: &Client) -> Result {
    client.batch_execute("CREATE TABLE thing (id serial PRIMARY KEY, name text UNIQUE, price float8, tags text[])").await?;
    let insert = "INSERT INTO thing (name, price, tags) VALUES ($1, $2, $3)";
    paper.show("inserted", client.execute(insert, &[&"pen", &1.5_f64, &vec!["a", "b,"]]).await?);
    let row = client.query_one("SELECT name, price, tags, NULL::int FROM thing", &[]).await?;
    paper.show("row", (row.get::<_, String>(0), row.get::<_, f64>(1), row.get::<_, Vec<String>>(2), row.get::<_, Option<i32>>(3)));
    paper.show("columns", row.columns().iter().map(|column| (column.name(), column.type_().name())).collect::<Vec<_>>());
    paper.show("optional", client.query_opt("SELECT 1 FROM thing WHERE name = $1", &[&"none"]).await?.is_none());
    for message in client.simple_query("SELECT 1, NULL, 'x'; UPDATE thing SET price = 2; ; SELECT 2").await? {
        match message {
            SimpleQueryMessage::Row(row) => paper.show("simple row", (0..row.len()).map(|column| row.get(column)).collect::<Vec<_>>()),
            SimpleQueryMessage::CommandComplete(rows) => paper.show("complete", rows),
            _ => paper.show("something", ()),
        }
    }
    let typed = client.query_typed("SELECT $1 || 'x', $2 + 1", &[(&"a", Type::TEXT), (&41_i64, Type::INT8)]).await?;
    paper.show("typed", (typed[0].get::<_, String>(0), typed[0].get::<_, i64>(1)));
    paper.fails("missing", client.query("SELECT * FROM nowhere", &[]).await);
    paper.fails("division", client.query("SELECT 1 / $1", &[&0_i32]).await);
    paper.fails("unique", client.execute(insert, &[&"pen", &0.0_f64, &Vec::<String>::new()]).await);
    paper.fails("simple", client.batch_execute("SELECT 1; SELECT nothing; SELECT 2").await);
    paper.show("it lives", client.query_one("SELECT 42", &[]).await?.get::<_, i32>(0));
    Ok(())
}

async fn statements(paper: &mut Paper, client: &Client) -> Result {
    let one = client.prepare("SELECT id, name FROM thing WHERE name = $1").await?;
    let two = client.prepare_typed("SELECT $1 + $2", &[Type::INT8, Type::INT8]).await?;
    paper.show("parameters", (one.params(), one.columns().len(), two.params(), two.columns()[0].type_()));
    for name in ["pen", "none", "pen"] {
        paper.show("found", client.query(&one, &[&name]).await?.len());
        paper.show("sum", client.query_one(&two, &[&1_i64, &2_i64]).await?.get::<_, i64>(0));
    }
    paper.fails("bad text", client.prepare("SELECT $1::nothing").await);
    paper.fails("bad syntax", client.prepare("SELEC 1").await);
    client.batch_execute("CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)").await?;
    let all = client.prepare("SELECT * FROM changing").await?;
    paper.show("before", client.query(&all, &[]).await?[0].len());
    client.batch_execute("ALTER TABLE changing ADD b int").await?;
    paper.fails("cached plan", client.query(&all, &[]).await);
    drop(all);
    let all = client.prepare("SELECT * FROM changing").await?;
    paper.show("after", client.query(&all, &[]).await?[0].len());
    client.batch_execute("DROP TABLE changing").await?;
    paper.fails("dropped", client.query(&all, &[]).await);
    // Many at once, dropped again: each Close goes on its own.
    let many =
        future::try_join_all((0..300).map(|number| client.prepare(Box::leak(format!("SELECT {number} + $1::int").into_boxed_str()))))
            .await?;
    let mut sum = 0;
    for statement in &many {
        sum += client.query_one(statement, &[&1_i32]).await?.get::<_, i32>(0);
    }
    paper.show("many", sum);
    Ok(())
}

async fn pipelines(paper: &mut Paper, client: &Client) -> Result {
    client.batch_execute("CREATE TABLE piped (a int PRIMARY KEY)").await?;
    let insert = client.prepare("INSERT INTO piped VALUES ($1)").await?;
    let count = client.prepare("SELECT count(*) FROM piped").await?;
    let numbers: Vec<i32> = (0..500).chain([7]).chain(500..600).collect();
    let results = future::join_all(numbers.iter().map(|number| client.execute_raw(&insert, [number]))).await;
    paper.show("piped", (results.iter().filter(|result| result.is_ok()).count(), results.iter().position(std::result::Result::is_err)));
    let (first, bad, second) =
        future::join3(client.query_one(&count, &[]), client.query("SELECT 1/0", &[]), client.query_one(&count, &[])).await;
    paper.show("counts", (first?.get::<_, i64>(0), second?.get::<_, i64>(0)));
    paper.fails("between", bad);
    let mixed = future::join_all((0..40_i32).map(|number| async move {
        if number % 2 == 0 {
            client.execute("UPDATE piped SET a = a WHERE a = $1", &[&number]).await.map(|count| count as i64)
        } else {
            client.query_one("SELECT $1::int8", &[&i64::from(number)]).await.map(|row| row.get(0))
        }
    }))
    .await;
    paper.show("mixed", mixed.into_iter().collect::<std::result::Result<Vec<_>, _>>()?);
    let mut rows =
        pin!(client.query_raw("SELECT g, repeat('x', 1000) FROM generate_series(1, 5000) g", Vec::<&(dyn ToSql + Sync)>::new()).await?);
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await? {
        bytes += row.get::<_, &str>(1).len();
    }
    paper.show("streamed", bytes);
    Ok(())
}

async fn transactions(paper: &mut Paper, client: &mut Client) -> Result {
    let mut outer = client.transaction().await?;
    outer.execute("INSERT INTO thing (name) VALUES ('outer')", &[]).await?;
    let inner = outer.savepoint("one").await?;
    paper.fails("unique", inner.execute("INSERT INTO thing (name) VALUES ('outer')", &[]).await);
    paper.fails("failed", inner.query("SELECT 1", &[]).await);
    inner.rollback().await?;
    paper.show("inside", outer.query_one("SELECT count(*) FROM thing", &[]).await?.get::<_, i64>(0));
    let portal = outer.bind("SELECT g FROM generate_series(1, 10) g", &[]).await?;
    let other = outer.bind("SELECT name FROM thing ORDER BY id", &[]).await?;
    for rows in [3, 4, 0] {
        paper.show("portal", outer.query_portal(&portal, rows).await?.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>());
        paper.show("other", outer.query_portal(&other, 1).await?.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>());
    }
    outer.commit().await?;
    for level in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
        let reading = client.build_transaction().isolation_level(level).read_only(true).deferrable(true).start().await?;
        paper.show("level", reading.query_one("SHOW transaction_isolation", &[]).await?.get::<_, String>(0));
        paper.show("counted", reading.query_one("SELECT count(*) FROM thing", &[]).await?.get::<_, i64>(0));
        paper.fails("write", reading.execute("DELETE FROM thing", &[]).await);
        reading.rollback().await?;
    }
    // Dropped without an end.
    {
        let dropped = client.transaction().await?;
        dropped.execute("DELETE FROM thing", &[]).await?;
    }
    paper.show("undone", client.query_one("SELECT count(*) FROM thing", &[]).await?.get::<_, i64>(0));
    Ok(())
}

async fn copies(paper: &mut Paper, client: &Client) -> Result {
    client.batch_execute("CREATE TABLE copied (a int, b text)").await?;
    let mut sink = pin!(client.copy_in::<_, Bytes>("COPY copied FROM STDIN").await?);
    for number in 0..3000 {
        sink.feed(Bytes::from(format!("{number}\tline {number}\n"))).await?;
    }
    paper.show("copied", sink.as_mut().finish().await?);
    let binary = client.copy_in("COPY copied FROM STDIN BINARY").await?;
    let mut writer = pin!(BinaryCopyInWriter::new(binary, &[Type::INT4, Type::TEXT]));
    for number in 0..10_i32 {
        writer.as_mut().write(&[&-number, &None::<&str>]).await?;
    }
    paper.show("binary", writer.finish().await?);
    let out = client.copy_out("COPY (SELECT * FROM copied WHERE a % 500 = 1 ORDER BY a) TO STDOUT (FORMAT csv)").await?;
    paper.show("csv", out.try_fold(String::new(), |all, part| future::ok(all + &String::from_utf8_lossy(&part))).await?);
    let out = client.copy_out("COPY (SELECT * FROM copied ORDER BY a, b LIMIT 12) TO STDOUT BINARY").await?;
    let rows: Vec<_> = BinaryCopyOutStream::new(out, &[Type::INT4, Type::TEXT]).try_collect().await?;
    paper.show("rows", rows.iter().map(|row| (row.get::<i32>(0), row.get::<Option<String>>(1))).collect::<Vec<_>>());
    let mut sink = pin!(client.copy_in::<_, Bytes>("COPY copied FROM STDIN").await?);
    sink.send(Bytes::from_static(b"1\tone\nx\ttwo\n")).await?;
    paper.fails("bad line", sink.as_mut().finish().await);
    {
        let mut given_up = pin!(client.copy_in::<_, Bytes>("COPY copied FROM STDIN").await?);
        given_up.send(Bytes::from_static(b"1\tone\n")).await?;
    }
    paper.fails("no table", client.copy_out("COPY nowhere TO STDOUT").await.map(drop));
    paper.show("counted", client.query_one("SELECT count(*), sum(a) FROM copied", &[]).await?.get::<_, i64>(0));
    Ok(())
}

async fn messages(paper: &mut Paper, session: &Session, dsn: &str) -> Result {
    let client = &session.client;
    session.heard.lock().expect("nobody panics with it").clear();
    client.batch_execute("DO $$BEGIN RAISE NOTICE 'hello'; RAISE WARNING 'careful'; END$$; DROP TABLE IF EXISTS nowhere; COMMIT").await?;
    paper.show("notices", session.heard(4).await?);
    client.batch_execute("LISTEN news; NOTIFY news, 'mine'").await?;
    paper.show("heard", session.heard(1).await?);
    let other = Session::open(dsn).await?;
    other.client.execute("SELECT pg_notify('news', $1)", &[&"theirs"]).await?;
    paper.show("heard", session.heard(1).await?);
    client.batch_execute("UNLISTEN news").await?;

    for in_transaction in [false, true] {
        if in_transaction {
            client.batch_execute("BEGIN").await?;
        }
        let token = client.cancel_token();
        let (sleep, canceled) = future::join(client.simple_query("SELECT pg_sleep(30)"), cancel_when_asleep(dsn, token)).await;
        canceled?;
        paper.fails("canceled", sleep);
    }
    paper.fails("failed", client.simple_query("SELECT 1").await);
    client.batch_execute("ROLLBACK").await?;
    paper.show("it lives", client.query_one("SELECT 1", &[]).await?.get::<_, i32>(0));
    let settings = Session::open(&format!("{dsn}?options=-c%20statement_timeout%3D100ms&application_name=a%20script")).await?;
    paper.fails("timeout", settings.client.simple_query("SELECT pg_sleep(30)").await);
    ensure!(settings.client.query_one("SHOW application_name", &[]).await?.get::<_, String>(0) == "a script");
    Ok(())
}

/// Cancels as soon as the server runs it.
async fn cancel_when_asleep(dsn: &str, token: tokio_postgres::CancelToken) -> Result {
    let watcher = Session::open(dsn).await?;
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
    eventually(SOON, "it sleeps", || async { Ok((watcher.client.query_one(asleep, &[]).await?.get::<_, i64>(0) == 1).then_some(())) })
        .await?;
    Ok(token.cancel_query(NoTls).await?)
}
