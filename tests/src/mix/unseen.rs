//! What triggers, views, defaults and functions leave in the session of whoever writes to a table or reads a view.
//!
//! Each client's values name it, so that a leak tells whose it was. Invariant: a client knows at each moment what it has, and looks at all of it:
//! settings after every act ([`Kept::check`]), the rest where that pins nobody or the act may pin ([`others_left`]).

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use tokio_postgres::Row;

use super::acts::{discard_all, gone};
use super::client::{Client, Session};
use crate::cluster::first_value;

/// The custom settings that only code of the database sets.
pub(super) const SETTINGS: [&str; 4] = ["app.tenant", "app.viewed", "app.stamped", "app.told"];
/// PostgreSQL's own.
const WORK_MEM: &str = "4MB";

/// Done by a superuser, whose functions they are; clients have rights on the tables and views alone.
pub(super) const OBJECTS: &str = "
    DROP VIEW IF EXISTS mix_viewed;
    DROP TABLE IF EXISTS mix_tenant, mix_maker, mix_locker, mix_listener, mix_stamped;
    CREATE TABLE mix_tenant (client int, said text);
    CREATE TABLE mix_maker (LIKE mix_tenant);
    CREATE TABLE mix_locker (LIKE mix_tenant);
    CREATE TABLE mix_listener (LIKE mix_tenant);
    CREATE OR REPLACE FUNCTION mix_sets() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        PERFORM set_config('app.tenant', NEW.said, false);
        PERFORM set_config('work_mem', (20001 + 2 * NEW.client) || 'kB', false);
        RETURN NULL; END$$;
    CREATE OR REPLACE FUNCTION mix_makes() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        CREATE TEMP TABLE mix_left AS SELECT NEW.client, NEW.said;
        RETURN NULL; END$$;
    CREATE OR REPLACE FUNCTION mix_locks() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        PERFORM pg_advisory_lock(NEW.client);
        RETURN NULL; END$$;
    CREATE OR REPLACE FUNCTION mix_listens() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        EXECUTE format('LISTEN %I', 'mix_by_trigger_' || NEW.client);
        RETURN NULL; END$$;
    CREATE OR REPLACE FUNCTION mix_views() RETURNS text LANGUAGE plpgsql AS $$BEGIN
        RETURN set_config('app.viewed', current_setting('app.client'), false); END$$;
    CREATE OR REPLACE FUNCTION mix_stamps() RETURNS text LANGUAGE plpgsql AS $$BEGIN
        RETURN set_config('app.stamped', current_setting('app.client'), false); END$$;
    CREATE TRIGGER sets BEFORE INSERT ON mix_tenant FOR EACH ROW EXECUTE FUNCTION mix_sets();
    CREATE TRIGGER makes BEFORE INSERT ON mix_maker FOR EACH ROW EXECUTE FUNCTION mix_makes();
    CREATE TRIGGER locks BEFORE INSERT ON mix_locker FOR EACH ROW EXECUTE FUNCTION mix_locks();
    CREATE TRIGGER listens BEFORE INSERT ON mix_listener FOR EACH ROW EXECUTE FUNCTION mix_listens();
    CREATE VIEW mix_viewed AS SELECT mix_views() AS client;
    CREATE TABLE mix_stamped (client int, said text DEFAULT mix_stamps());
    GRANT ALL ON mix_tenant, mix_maker, mix_locker, mix_listener, mix_stamped, mix_viewed TO app";

/// The settings that code has left in a client's session, by name.
#[derive(Debug, Default)]
pub(super) struct Kept {
    custom: BTreeMap<&'static str, String>,
    work_mem: Option<String>,
}

impl Kept {
    /// By DISCARD ALL. A custom setting that was ever set is '' from then on, and not NULL.
    pub(super) fn discarded(&mut self) {
        self.custom.values_mut().for_each(String::clear);
        self.work_mem = None;
    }

    fn set(&mut self, name: &'static str, value: &str) {
        self.custom.insert(name, value.to_owned());
    }

    /// All of them, on whatever server the session has at the moment.
    pub(super) async fn check(&self, client: &tokio_postgres::Client) -> anyhow::Result<()> {
        let each = SETTINGS.map(|name| format!("current_setting('{name}', true)")).join(", ");
        let row = client.query_one(&format!("SELECT {each}, current_setting('work_mem')"), &[]).await?;
        for (column, name) in SETTINGS.iter().enumerate() {
            let (found, wanted) = (row.get::<_, Option<&str>>(column), self.custom.get(name).map(String::as_str));
            ensure!(found == wanted, "its {name} is {found:?}, not {wanted:?}");
        }
        let (found, wanted) = (row.get::<_, &str>(SETTINGS.len()), self.work_mem.as_deref().unwrap_or(WORK_MEM));
        ensure!(found == wanted, "its work_mem is {found}, not {wanted}");
        Ok(())
    }
}

/// Temporary tables and channels, as their owner would see them. In a transaction, so that it is the leader that tells.
pub(super) async fn others_made(session: &mut Session) -> anyhow::Result<()> {
    let transaction = session.client.transaction().await?;
    let query = "SELECT (SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = pg_my_temp_schema()), \
        (SELECT string_agg(c, ' ') FROM pg_listening_channels() c)";
    let row = transaction.query_one(query, &[]).await?;
    transaction.rollback().await?;
    let found: [Option<&str>; 2] = std::array::from_fn(|column| row.get(column));
    ensure!(found == [None; 2], "another client's temporary tables and channels: {found:?}");
    Ok(())
}

/// As [`others_made`], and the keys of advisory locks that its process holds, and held cursors and statements.
pub(super) async fn others_left(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    others_made(session).await?;
    let query = "SELECT (SELECT string_agg(objid::text, ' ') FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
        (SELECT string_agg(name, ' ') FROM pg_cursors WHERE is_holdable), (SELECT string_agg(name, ' ') FROM pg_prepared_statements WHERE from_sql)";
    let row = session.client.query_one(query, &[]).await?;
    let found: [Option<&str>; 3] = std::array::from_fn(|column| row.get(column));
    ensure!(found == [None; 3], "another client's locks, cursors and statements: {found:?}");
    discard_all(client, session).await
}

/// A value that no other client has, and not this one earlier.
fn value(client: &Client) -> String {
    format!("{}.{}", client.me, client.number)
}

/// Inserts the client's number and its value, by either protocol.
async fn insert(client: &mut Client, session: &Session, table: &str) -> anyhow::Result<String> {
    let value = value(client);
    if client.draw(2) == 0 {
        session.client.execute(&format!("INSERT INTO {table} VALUES ($1, $2)"), &[&client.me, &value]).await?;
    } else {
        session.client.batch_execute(&format!("INSERT INTO {table} VALUES ({}, '{value}')", client.me)).await?;
    }
    Ok(value)
}

/// The session ends with what it has, cleans up, or goes on with it.
async fn leave(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    match client.draw(3) {
        0 => gone(session).await,
        _ => discard_all(client, session).await?,
    }
    Ok(())
}

pub(super) async fn tenant(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let undone = client.draw(3) == 0;
    if undone {
        session.client.batch_execute("BEGIN").await?;
    }
    let value = insert(client, session, "mix_tenant").await?;
    let found = session.client.query_one("SELECT current_setting('app.tenant')", &[]).await?;
    ensure!(found.get::<_, &str>(0) == value, "its trigger has set {:?}, not {value}", found.get::<_, &str>(0));
    if undone {
        session.client.batch_execute("ROLLBACK").await?;
        // It was never set before: '' from then on.
        client.kept.custom.entry("app.tenant").or_default();
        return Ok(());
    }
    client.kept.set("app.tenant", &value);
    client.kept.work_mem = Some(format!("{}kB", 20_001 + 2 * client.me));
    Ok(())
}

pub(super) async fn viewed(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let row = session.client.query_one("SELECT client FROM mix_viewed", &[]).await?;
    mine(client, &row)?;
    client.kept.set("app.viewed", &client.me.to_string());
    Ok(())
}

pub(super) async fn stamped(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let row = session.client.query_one("INSERT INTO mix_stamped (client) VALUES ($1) RETURNING said", &[&client.me]).await?;
    mine(client, &row)?;
    client.kept.set("app.stamped", &client.me.to_string());
    Ok(())
}

/// Text that a function runs.
pub(super) async fn told(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let value = value(client);
    let text = format!("SELECT set_config('app.told', '{value}', false)");
    let row = session.client.query_one("SELECT query_to_xml($1, true, false, '')::text", &[&text]).await?;
    ensure!(row.get::<_, &str>(0).contains(&value), "the answer is another one's: {row:?}");
    client.kept.set("app.told", &value);
    client.kept.check(&session.client).await?;
    // Whatever the text has set: its session is pinned to its end.
    gone(session).await;
    Ok(())
}

pub(super) async fn maker(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    let value = insert(client, session, "mix_maker").await?;
    for _ in 0..2 {
        let row = session.client.query_one("SELECT said FROM mix_left", &[]).await.context("what its trigger has made")?;
        ensure!(row.get::<_, &str>(0) == value, "the table is that of client {}", row.get::<_, &str>(0));
    }
    leave(client, session).await
}

pub(super) async fn locker(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    insert(client, session, "mix_locker").await?;
    let query = "SELECT string_agg(objid::text, ' ') FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    let found = session.client.simple_query(query).await?;
    ensure!(first_value(&found) == Some(&client.me.to_string()), "it holds the locks {:?}", first_value(&found));
    leave(client, session).await
}

pub(super) async fn listener(client: &mut Client, session: &mut Session) -> anyhow::Result<()> {
    insert(client, session, "mix_listener").await?;
    let channel = format!("mix_by_trigger_{}", client.me);
    let found = session.client.simple_query("SELECT string_agg(c, ' ') FROM pg_listening_channels() c").await?;
    ensure!(first_value(&found) == Some(&channel), "it listens to {:?}", first_value(&found));
    session.notified(&channel, &client.number.to_string()).await?;
    // Its trigger runs text.
    gone(session).await;
    Ok(())
}

/// The first column of the row is the client's number.
fn mine(client: &Client, row: &Row) -> anyhow::Result<()> {
    let found: &str = row.get(0);
    ensure!(found == client.me.to_string(), "the answer is that of client {found}");
    Ok(())
}
