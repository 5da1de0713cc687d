//! What clients do. Each act checks all that it is told, and leaves its session as it found it.

use std::pin::Pin;
use std::pin::pin;

use anyhow::ensure;
use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt, future};
use tokio_postgres::{Error, NoTls, Row, SimpleQueryMessage};

use super::client::{Client, Session};
use super::unseen;
use crate::cluster::first_value;
use crate::raw::{Batch, Raw};

type Doing<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>>;
pub(super) type Act = for<'a> fn(&'a mut Client, &'a mut Session) -> Doing<'a>;

/// Name, whether it pins its session, and how.
pub(super) const ACTS: &[(&str, bool, Act)] = &[
    ("read", false, |client, session| Box::pin(read(client, session))),
    ("named", false, |client, session| Box::pin(named(client, session))),
    ("same names", false, |client, _| Box::pin(same_names(client))),
    ("insert", false, |client, session| Box::pin(insert(client, session))),
    ("transaction", false, |client, session| Box::pin(transaction(client, session))),
    ("read only", false, |client, session| Box::pin(read_only(client, session))),
    ("errors", false, |client, session| Box::pin(errors(client, session))),
    ("set local", false, |client, session| Box::pin(set_local(client, session))),
    ("rolled back setting", false, |client, session| Box::pin(rolled_back_setting(client, session))),
    ("discard all", false, |client, session| Box::pin(discard_all(client, session))),
    ("copy", false, |client, session| Box::pin(copy(client, session))),
    ("copy that fails", false, |client, session| Box::pin(copy_that_fails(client, session))),
    ("cursor", false, |client, session| Box::pin(cursor(client, session))),
    ("pipeline", false, |client, session| Box::pin(pipeline(client, session))),
    ("cancel", false, |client, session| Box::pin(cancel(client, session))),
    ("vanish", false, |client, session| Box::pin(vanish(client, session))),
    ("held cursor", true, |client, session| Box::pin(held_cursor(client, session))),
    ("temp table", true, |client, session| Box::pin(temp_table(client, session))),
    ("listen", true, |client, session| Box::pin(listen(client, session))),
    ("advisory lock", true, |client, session| Box::pin(advisory_lock(client, session))),
    ("sequence", true, |client, session| Box::pin(sequence(client, session))),
    ("sql prepare", true, |client, session| Box::pin(sql_prepare(client, session))),
    ("vanish pinned", true, |client, session| Box::pin(vanish_pinned(client, session))),
    ("trigger that sets", false, |client, session| Box::pin(unseen::tenant(client, session))),
    ("view that sets", false, |client, session| Box::pin(unseen::viewed(client, session))),
    ("default that sets", false, |client, session| Box::pin(unseen::stamped(client, session))),
    ("text that sets", true, |client, session| Box::pin(unseen::told(client, session))),
    ("trigger that makes a table", true, |client, session| Box::pin(unseen::maker(client, session))),
    ("trigger that locks", true, |client, session| Box::pin(unseen::locker(client, session))),
    ("trigger that listens", true, |client, session| Box::pin(unseen::listener(client, session))),
    ("look around", true, |client, session| Box::pin(unseen::others_left(client, session))),
];

/// Fails unless the error is the one that must come.
fn refused<T>(result: Result<T, Error>, sqlstate: &str) -> anyhow::Result<()> {
    match result {
        Ok(_) => anyhow::bail!("no error {sqlstate}"),
        Err(error) if error.code().is_some_and(|code| code.code() == sqlstate) => Ok(()),
        Err(error) => Err(anyhow::Error::new(error).context(format!("instead of {sqlstate}"))),
    }
}

/// The first column of the row is the client's number.
fn mine(client: &Client, row: &Row) -> anyhow::Result<()> {
    let found: i32 = row.get(0);
    ensure!(found == client.me, "the answer is that of client {found}");
    Ok(())
}

/// As [`mine`], by the simple protocol.
fn mine_as_text(client: &Client, messages: &[SimpleQueryMessage]) -> anyhow::Result<()> {
    let found = first_value(messages);
    ensure!(found == Some(&client.me.to_string()), "the answer is that of client {found:?}");
    Ok(())
}

async fn read(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let row = session.client.query_one("SELECT $1::int, count(*) FROM mix WHERE client = $1", &[&client.me]).await?;
    mine(client, &row)?;
    let (count, rows) = (row.get::<_, i64>(1), client.rows);
    ensure!(count == rows, "it sees {count} of its {rows} rows");
    mine_as_text(client, &session.client.simple_query(&format!("SELECT {}", client.me)).await?)
}

async fn named(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let number = client.draw(5) as i32;
    let text = format!("SELECT $1::int, {number} + $2::int");
    let statement = session.client.prepare(&text).await?;
    for addend in 0..4 {
        let row = session.client.query_one(&statement, &[&client.me, &addend]).await?;
        mine(client, &row)?;
        ensure!(row.get::<_, i32>(1) == number + addend, "another statement's answer");
    }
    Ok(())
}

/// Every client's statements have the same names, and other texts.
async fn same_names(client: &mut Client) -> anyhow::Result<()> {
    let _place = client.shared.logins.acquire().await?;
    let mut raw = Raw::connect(&client.shared.dsn).await?;
    for (name, factor) in [("a", 2), ("b", 3)] {
        raw.ask(&Batch::new().parse(name, &format!("SELECT {} * {factor} + $1::int", client.me)).sync()).await?;
    }
    for round in 0..3 {
        for (name, factor) in [("a", 2), ("b", 3)] {
            let answer = raw.ask(&Batch::new().bind("", name, &[&round.to_string()]).execute("", 0).sync()).await?;
            let wanted = (client.me * factor + round).to_string();
            ensure!(answer.iter().any(|line| line.contains(&wanted)), "no {wanted} in {answer:?}");
        }
    }
    Ok(())
}

async fn insert(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let insert = "INSERT INTO mix VALUES ($1, $2, 'kept') RETURNING client";
    let row = session.client.query_one(insert, &[&client.me, &client.number]).await?;
    client.rows += 1;
    mine(client, &row)?;
    read(client, session).await
}

async fn transaction(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let (me, number) = (client.me, client.number);
    let mut outer = session.client.transaction().await?;
    outer.execute("INSERT INTO mix VALUES ($1, $2, 'kept')", &[&me, &number]).await?;
    let inner = outer.savepoint("one").await?;
    refused(inner.execute("INSERT INTO mix VALUES ($1, $2, 'twice')", &[&me, &number]).await, "23505")?;
    refused(inner.query("SELECT 1", &[]).await, "25P02")?;
    inner.rollback().await?;
    let row = outer.query_one("SELECT client, said FROM mix WHERE client = $1 AND number = $2", &[&me, &number]).await?;
    ensure!(row.get::<_, i32>(0) == me && row.get::<_, &str>(1) == "kept");
    if client.draw(3) == 0 {
        outer.rollback().await?;
    } else {
        outer.commit().await?;
        client.rows += 1;
    }
    read(client, session).await
}

async fn read_only(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let transaction = session.client.build_transaction().read_only(true).isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
    let transaction = transaction.start().await?;
    for _ in 0..2 {
        let row = transaction.query_one("SELECT $1::int, count(*) FROM mix WHERE client = $1", &[&client.me]).await?;
        mine(client, &row)?;
        ensure!(row.get::<_, i64>(1) == client.rows, "another number of rows");
    }
    refused(transaction.execute("DELETE FROM mix", &[]).await, "25006")?;
    Ok(transaction.rollback().await?)
}

async fn errors(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    refused(session.client.query("SELECT 1 / $1::int", &[&0_i32]).await, "22012")?;
    refused(session.client.simple_query("SELEC 1").await, "42601")?;
    refused(session.client.query("SELECT * FROM mix_nowhere", &[]).await, "42P01")?;
    refused(
        session.client.batch_execute(&format!("INSERT INTO mix VALUES ({}, {}, 'no'); SELECT 1/0", client.me, client.number)).await,
        "22012",
    )?;
    read(client, session).await
}

async fn set_local(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let transaction = session.client.transaction().await?;
    transaction.batch_execute("SET LOCAL TimeZone = 'Pacific/Apia'; SET LOCAL app.client = 'nobody'").await?;
    let row = transaction.query_one("SELECT $1::int, current_setting('TimeZone'), current_setting('app.client')", &[&client.me]).await?;
    mine(client, &row)?;
    ensure!(row.get::<_, &str>(1) == "Pacific/Apia" && row.get::<_, &str>(2) == "nobody");
    if client.draw(2) == 0 {
        transaction.commit().await?
    } else {
        transaction.rollback().await?
    }
    Ok(())
}

async fn rolled_back_setting(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let transaction = session.client.transaction().await?;
    transaction.batch_execute("SET TimeZone = 'Pacific/Apia'").await?;
    if client.draw(2) == 0 {
        refused(transaction.query("SELECT 1/0", &[]).await, "22012")?;
    }
    Ok(transaction.rollback().await?)
}

pub(super) async fn discard_all(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    session.client.batch_execute("DISCARD ALL").await?;
    let row = session
        .client
        .query_one("SELECT current_setting('application_name'), coalesce(current_setting('app.client', true), '')", &[])
        .await?;
    ensure!(row.get::<_, &str>(0).is_empty() && row.get::<_, &str>(1).is_empty(), "what DISCARD ALL leaves: {row:?}");
    client.kept.discarded();
    client.make_settings(session).await
}

async fn copy(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let (me, number, lines) = (client.me, client.number, 20 + client.draw(200));
    let mut sink = pin!(session.client.copy_in::<_, Bytes>("COPY mix_copy FROM STDIN").await?);
    for line in 0..lines {
        sink.feed(Bytes::from(format!("{me}\t{number}\tline {line}\n"))).await?;
    }
    ensure!(sink.as_mut().finish().await? == lines);
    let out = session
        .client
        .copy_out(&format!("COPY (SELECT client, number FROM mix_copy WHERE client = {me} AND number = {number}) TO STDOUT"))
        .await?;
    let text = out.try_fold(Vec::new(), |mut all, part| async move {
        all.extend_from_slice(&part);
        Ok(all)
    });
    let (text, wanted) = (text.await?, format!("{me}\t{number}\n").repeat(lines as usize));
    ensure!(text == wanted.as_bytes(), "{} bytes of COPY, not {}", text.len(), wanted.len());
    ensure!(session.client.execute("DELETE FROM mix_copy WHERE client = $1", &[&me]).await? == lines);
    Ok(())
}

async fn copy_that_fails(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let mut sink = pin!(session.client.copy_in::<_, Bytes>("COPY mix_copy FROM STDIN").await?);
    sink.send(Bytes::from(format!("{}\t1\tline\nnonsense\t", client.me))).await?;
    refused(sink.as_mut().finish().await, "22P02")?;
    let count = session.client.query_one("SELECT count(*) FROM mix_copy WHERE client = $1", &[&client.me]).await?;
    ensure!(count.get::<_, i64>(0) == 0, "some of a failed COPY is there");
    Ok(())
}

async fn cursor(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let transaction = session.client.transaction().await?;
    transaction.batch_execute(&format!("DECLARE mine CURSOR FOR SELECT {}, g FROM generate_series(1, 30) g", client.me)).await?;
    let portal = transaction.bind("SELECT $1::int, g FROM generate_series(1, 30) g", &[&client.me]).await?;
    for round in 0..3 {
        for rows in [transaction.query("FETCH 10 FROM mine", &[]).await?, transaction.query_portal(&portal, 10).await?] {
            ensure!(rows.len() == 10);
            for (index, row) in rows.iter().enumerate() {
                mine(client, row)?;
                ensure!(row.get::<_, i32>(1) == round * 10 + index as i32 + 1, "another cursor's row");
            }
        }
    }
    drop(portal);
    transaction.commit().await?;
    refused(session.client.query("FETCH 1 FROM mine", &[]).await, "34000")
}

async fn pipeline(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let me = client.me;
    let answers = (0..12_i32).map(|index| {
        let server = &session.client;
        async move {
            if index == 7 {
                return refused(server.query("SELECT 1 / $1::int", &[&0_i32]).await, "22012");
            }
            let row = server.query_one("SELECT $1::int, $2::int", &[&me, &index]).await?;
            ensure!(row.get::<_, i32>(0) == me && row.get::<_, i32>(1) == index, "another query's answer");
            Ok(())
        }
    });
    future::try_join_all(answers).await.map(drop)
}

/// Before it begins, while it runs, or after it has ended: whatever it meets is this client's.
async fn cancel(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let token = session.client.cancel_token();
    let sleep = async { session.client.query("SELECT $1::int, pg_sleep(0.05)", &[&client.me]).await };
    let (slept, _) = future::join(sleep, token.cancel_query(NoTls)).await;
    match slept {
        Ok(rows) => mine(client, &rows[0])?,
        Err(error) => refused(Err::<(), _>(error), "57014")?,
    }
    // A cancel that comes late may still hit the next statement of its session, as it does on a direct connection.
    match session.client.query_one("SELECT $1::int", &[&client.me]).await {
        Ok(row) => mine(client, &row),
        Err(error) => refused(Err::<(), _>(error), "57014"),
    }
}

/// Gone in a transaction: all of it is undone.
async fn vanish(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    session.client.batch_execute("BEGIN").await?;
    session.client.execute("INSERT INTO mix VALUES ($1, $2, 'never')", &[&client.me, &client.number]).await?;
    gone(session).await;
    Ok(())
}

async fn vanish_pinned(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    session.client.query_one("SELECT pg_advisory_lock($1)", &[&i64::from(client.me)]).await?;
    session.client.batch_execute("CREATE TEMP TABLE mix_mine (client int); LISTEN mix_gone").await?;
    gone(session).await;
    Ok(())
}

/// Ends the connection without a goodbye.
pub(super) async fn gone(session: &mut Session) {
    session.driver.abort();
    let _ = (&mut session.driver).await;
}

async fn held_cursor(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    session
        .client
        .batch_execute(&format!("DECLARE held CURSOR WITH HOLD FOR SELECT {}, g FROM generate_series(1, 9) g", client.me))
        .await?;
    for _ in 0..3 {
        let rows = session.client.query("FETCH 3 FROM held", &[]).await?;
        ensure!(rows.len() == 3);
        mine(client, &rows[0])?;
    }
    Ok(session.client.batch_execute("CLOSE held").await?)
}

async fn temp_table(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    session.client.batch_execute("CREATE TEMP TABLE mix_mine (client int)").await?;
    for _ in 0..3 {
        session.client.execute("INSERT INTO mix_mine VALUES ($1)", &[&client.me]).await?;
    }
    let row = session.client.query_one("SELECT max(client), count(*) FROM mix_mine", &[]).await?;
    mine(client, &row)?;
    ensure!(row.get::<_, i64>(1) == 3, "another client's rows");
    session.client.batch_execute("DROP TABLE mix_mine").await?;
    refused(session.client.query("SELECT * FROM mix_mine", &[]).await, "42P01")
}

async fn listen(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let (channel, payload) = (format!("mix_{}", client.me), client.number.to_string());
    session.client.batch_execute(&format!("LISTEN {channel}")).await?;
    session.notified(&channel, &payload).await?;
    session.client.batch_execute(&format!("UNLISTEN {channel}")).await?;
    session.client.execute("SELECT pg_notify($1, 'unheard')", &[&channel]).await?;
    ensure!(session.heard.try_recv().is_err(), "heard behind UNLISTEN");
    Ok(())
}

async fn advisory_lock(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let key = i64::from(client.me);
    session.client.query_one("SELECT pg_advisory_lock($1)", &[&key]).await?;
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    ensure!(session.client.query_one(held, &[]).await?.get::<_, i64>(0) == 1, "other locks than its own");
    ensure!(session.client.query_one("SELECT pg_advisory_unlock($1)", &[&key]).await?.get::<_, bool>(0), "it isn't its own");
    session.client.query_one("SELECT pg_advisory_unlock_all()", &[]).await?;
    discard_all(client, session).await
}

async fn sequence(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let id: i64 = session.client.query_one("INSERT INTO mix_serial (client) VALUES ($1) RETURNING id", &[&client.me]).await?.get(0);
    let next: i64 = session.client.query_one("SELECT nextval('mix_serial_id_seq')", &[]).await?.get(0);
    let last: i64 = session.client.query_one("SELECT currval('mix_serial_id_seq')", &[]).await?.get(0);
    ensure!(id < next && next == last, "currval is {last}, not {next}");
    discard_all(client, session).await
}

async fn sql_prepare(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let server = &session.client;
    server.batch_execute(&format!("PREPARE mine (int) AS SELECT {}, $1", client.me)).await?;
    mine_as_text(client, &server.simple_query("EXECUTE mine(7)").await?)?;
    server.batch_execute("DEALLOCATE mine").await?;
    refused(server.simple_query("EXECUTE mine(7)").await, "26000")
}
