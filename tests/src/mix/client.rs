//! One client: draws an act, does it, and draws the next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, NoTls};

use super::acts::{ACTS, Act};
use super::unseen::{self, Kept};
use super::{Report, Shared};
use crate::cluster::Cluster;

/// An act that takes longer hangs. Two thousand clients wait for one another.
const ACT: Duration = Duration::from_secs(60);
/// For a notification of one's own.
const NOTIFICATION: Duration = Duration::from_secs(40);
const ZONES: [&str; 7] = ["UTC", "Asia/Tokyo", "America/Lima", "Europe/Zurich", "Africa/Nairobi", "Asia/Kolkata", "Australia/Sydney"];
/// Failures of one client after which it gives up.
const FAILURES_MAX: usize = 3;

/// The tables. Done when the replicas have them.
pub(super) async fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
    let sql = "DROP TABLE IF EXISTS mix, mix_copy, mix_serial;
        CREATE TABLE mix (client int, number bigint, said text, PRIMARY KEY (client, number));
        CREATE TABLE mix_copy (client int, number bigint, said text);
        CREATE INDEX ON mix_copy (client);
        CREATE TABLE mix_serial (id bigserial, client int);
        GRANT ALL ON mix, mix_copy, mix_serial TO app; GRANT ALL ON SEQUENCE mix_serial_id_seq TO app";
    let leader = cluster.leader().await?.connect().await?;
    leader.batch_execute(sql).await?;
    leader.batch_execute(unseen::OBJECTS).await?;
    cluster.settled().await
}

pub(super) struct Client {
    pub(super) me: i32,
    pub(super) shared: Arc<Shared>,
    random: u64,
    session: Option<Session>,
    /// Acts so far, for what must be unique.
    pub(super) number: i64,
    /// Rows in `mix` that were acknowledged.
    pub(super) rows: i64,
    /// What code has left in its session.
    pub(super) kept: Kept,
    report: Report,
}

/// A connection, and the notifications that come.
pub(super) struct Session {
    pub(super) client: tokio_postgres::Client,
    pub(super) heard: mpsc::Receiver<(String, String)>,
    /// Drives it; aborted, the connection is gone without a goodbye.
    pub(super) driver: JoinHandle<()>,
}

impl Session {
    /// Sends a notification and hears it.
    pub(super) async fn notified(&mut self, channel: &str, payload: &str) -> anyhow::Result<()> {
        self.client.execute("SELECT pg_notify($1, $2)", &[&channel, &payload]).await?;
        let heard = tokio::time::timeout(NOTIFICATION, self.heard.recv()).await.context("no notification")?;
        ensure!(heard == Some((channel.to_owned(), payload.to_owned())), "heard {heard:?}");
        Ok(())
    }
}

impl Client {
    pub(super) fn new(me: i32, shared: Arc<Shared>) -> Client {
        let random = (me as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Client { me, shared, random, session: None, number: 0, rows: 0, kept: Kept::default(), report: Report::default() }
    }

    /// What came of it, and its session, which rests.
    pub(super) async fn live(mut self) -> (Report, Option<Session>) {
        while Instant::now() < self.shared.until && self.report.failures.len() < FAILURES_MAX {
            let (name, pins, act) = ACTS[self.draw(ACTS.len() as u64) as usize];
            match self.one(pins, act).await {
                Ok(true) => *self.report.acts.entry(name).or_default() += 1,
                Ok(false) => break,
                Err(error) => self.report.failures.push(format!("client {}, {name}: {error:#}", self.me)),
            }
            self.shared.acts.fetch_add(1, Ordering::Relaxed);
        }
        self.report.rows.insert(self.me, self.rows);
        (self.report, self.session)
    }

    /// Does one act, and looks at its settings. False where the time is up before it has its places: waiting for those isn't part of the act.
    async fn one(&mut self, pins: bool, act: Act) -> anyhow::Result<bool> {
        let shared = self.shared.clone();
        let mut session = match self.session.take() {
            Some(session) => session,
            None => {
                let _place = shared.logins.acquire().await?;
                if Instant::now() >= shared.until {
                    return Ok(false);
                }
                let begun = tokio::time::timeout(ACT, self.begin()).await;
                begun.with_context(|| format!("not within {ACT:?}")).flatten().context("log in")?
            }
        };
        let _place = if pins { Some(shared.pinned.acquire().await?) } else { None };
        if Instant::now() >= shared.until {
            self.session = Some(session);
            return Ok(false);
        }
        self.number += 1;
        let done = tokio::time::timeout(ACT, async {
            act(self, &mut session).await?;
            if !session.driver.is_finished() {
                self.settings(&session).await?;
                self.session = Some(session);
            }
            anyhow::Ok(())
        });
        done.await.with_context(|| format!("not within {ACT:?}")).flatten()?;
        Ok(true)
    }

    /// Logs in, sees nothing of anybody's, and makes the settings that are this client's own.
    async fn begin(&mut self) -> anyhow::Result<Session> {
        self.kept = Kept::default();
        let (client, mut connection) = tokio_postgres::connect(&self.shared.dsn, NoTls).await?;
        let (mouth, heard) = mpsc::channel(64);
        let driver = tokio::spawn(async move {
            let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(note) = message {
                    let _ = mouth.try_send((note.channel().to_owned(), note.payload().to_owned()));
                }
            }
        });
        let mut session = Session { client, heard, driver };
        self.kept.check(&session.client).await.context("what it begins with")?;
        unseen::others_made(&mut session).await.context("what it begins with")?;
        self.make_settings(&session).await?;
        Ok(session)
    }

    pub(super) async fn make_settings(&self, session: &Session) -> anyhow::Result<()> {
        let (me, zone) = (self.me, self.zone());
        let style = if me % 2 == 0 { "ISO, DMY" } else { "SQL, MDY" };
        session.client.batch_execute(&format!("SET TimeZone = '{zone}'; SET DateStyle = '{style}'")).await?;
        session.client.batch_execute(&format!("SET app.client = '{me}'")).await?;
        Ok(session.client.batch_execute(&format!("SET application_name = 'mix {me}'")).await?)
    }

    fn zone(&self) -> &'static str {
        ZONES[self.me as usize % ZONES.len()]
    }

    /// The session's settings are its own, whatever connection it got.
    async fn settings(&mut self, session: &Session) -> anyhow::Result<()> {
        let query = "SELECT current_setting('app.client'), current_setting('TimeZone'), current_setting('application_name'), '2024-12-31'::date::text";
        let row = session.client.query_one(query, &[]).await.context("its settings")?;
        let found: [String; 4] = std::array::from_fn(|column| row.get(column));
        let day = if self.me % 2 == 0 { "2024-12-31" } else { "12/31/2024" };
        let wanted = [self.me.to_string(), self.zone().to_owned(), format!("mix {}", self.me), day.to_owned()];
        ensure!(found == wanted, "its settings are {found:?}, not {wanted:?}");
        self.kept.check(&session.client).await
    }

    /// A number below `end`.
    pub(super) fn draw(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }
}
