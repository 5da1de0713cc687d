//! A load that goes on while the cluster is broken: writers that remember what was acknowledged to them, readers that go on reading.
//!
//! No session connects again: one that ends is told of in the [`Report`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use crate::cluster::{Cluster, connect};
use crate::router::Router;
use crate::wait::eventually;

/// Between two statements of one session: a load, not a benchmark. Patroni needs the machine, too.
const PACE: Duration = Duration::from_millis(10);

/// How a session talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Simple,
    Prepared,
    /// BEGIN, a statement and COMMIT, each by itself.
    Transaction,
    PreparedTransaction,
}

impl Style {
    pub fn in_transaction(self) -> bool {
        matches!(self, Style::Transaction | Style::PreparedTransaction)
    }

    pub fn prepared(self) -> bool {
        matches!(self, Style::Prepared | Style::PreparedTransaction)
    }
}

pub const STYLES: [Style; 4] = [Style::Simple, Style::Prepared, Style::Transaction, Style::PreparedTransaction];

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    pub at: Instant,
    pub writer: i32,
    pub number: i64,
    /// The port of the PostgreSQL server that wrote it.
    pub port: i32,
}

/// An error that a session got.
#[derive(Clone, Debug)]
pub struct Failure {
    pub at: Instant,
    pub session: String,
    /// `None`: the connection ended without a word.
    pub sqlstate: Option<String>,
    pub text: String,
}

/// What became of a load.
#[derive(Debug, Default)]
pub struct Report {
    pub acks: Vec<Ack>,
    pub reads: u64,
    pub write_failures: Vec<Failure>,
    pub read_failures: Vec<Failure>,
    /// Sessions that ended before they were told to.
    pub ended: Vec<String>,
    /// The longest time in which a reader got no answer.
    pub longest_read_gap: Duration,
    /// Reads that showed less than one before on the same session.
    pub went_back: Vec<String>,
}

/// A load under way. Dropped, it ends.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    sessions: Vec<(Arc<AtomicU64>, bool, JoinHandle<Report>)>,
}

impl Load {
    /// The table that writers write to. `port` tells which server ran the statement.
    pub async fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
        let leader = cluster.leader().await?;
        let client = connect(&leader.dsn_for("app")).await?;
        let table = "CREATE TABLE IF NOT EXISTS load \
                     (writer int, number bigint, port int DEFAULT inet_server_port(), PRIMARY KEY (writer, number)); TRUNCATE load";
        client.batch_execute(table).await.context("the load's table")?;
        cluster.settled().await
    }

    /// `writers` of each style on the read/write port, and `readers` simple and prepared ones on each port.
    pub async fn start(router: &Router, writers: usize, readers: usize) -> anyhow::Result<Load> {
        let mut load = Load { stop: Arc::default(), sessions: Vec::new() };
        for style in STYLES.into_iter().cycle().take(writers * STYLES.len()) {
            let id = i32::try_from(load.sessions.len())?;
            let session = Session::open(&router.rw_dsn("app"), format!("writer {id} ({style:?})"), &load.stop).await?;
            let done = session.done.clone();
            load.sessions.push((done, true, tokio::spawn(session.write(style, id))));
        }
        for (port, dsn) in [("read/write", router.rw_dsn("app")), ("read-only", router.ro_dsn("app"))] {
            for style in [Style::Simple, Style::Prepared].into_iter().cycle().take(readers * 2) {
                let session = Session::open(&dsn, format!("reader on the {port} port ({style:?})"), &load.stop).await?;
                let done = session.done.clone();
                load.sessions.push((done, false, tokio::spawn(session.read(style))));
            }
        }
        Ok(load)
    }

    /// Waits until every session has done that many more statements.
    pub async fn goes_on(&self, statements: u64, limit: Duration) -> anyhow::Result<()> {
        let wanted: Vec<u64> = self.sessions.iter().map(|(done, ..)| done.load(Ordering::Relaxed) + statements).collect();
        eventually(limit, "every session of the load goes on", || async {
            let behind = self
                .sessions
                .iter()
                .zip(&wanted)
                .filter(|((done, _, task), wanted)| done.load(Ordering::Relaxed) < **wanted && !task.is_finished());
            Ok((behind.count() == 0).then_some(()))
        })
        .await
    }

    /// Like [`goes_on`](Load::goes_on), for the readers alone.
    pub async fn reads_go_on(&self, statements: u64, limit: Duration) -> anyhow::Result<()> {
        let readers: Vec<_> = self.sessions.iter().filter(|(_, writes, _)| !writes).collect();
        let wanted: Vec<u64> = readers.iter().map(|(done, ..)| done.load(Ordering::Relaxed) + statements).collect();
        eventually(limit, "every reader goes on", || async {
            let behind = readers.iter().zip(&wanted).filter(|((done, ..), wanted)| done.load(Ordering::Relaxed) < **wanted);
            Ok((behind.count() == 0).then_some(()))
        })
        .await
    }

    /// Ends it, after the statements under way.
    pub async fn stop(mut self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Report::default();
        for (_, _, task) in self.sessions.drain(..) {
            let one = tokio::time::timeout(Duration::from_secs(40), task).await.context("a session hangs")??;
            all.acks.extend(one.acks);
            all.reads += one.reads;
            all.longest_read_gap = all.longest_read_gap.max(one.longest_read_gap);
            all.write_failures.extend(one.write_failures);
            all.read_failures.extend(one.read_failures);
            all.ended.extend(one.ended);
            all.went_back.extend(one.went_back);
        }
        all.acks.sort_by_key(|ack| ack.at);
        Ok(all)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Report {
    /// The longest time in which no write was acknowledged, and when it began.
    pub fn longest_gap(&self) -> Option<(Duration, Instant)> {
        self.acks.windows(2).map(|pair| (pair[1].at - pair[0].at, pair[0].at)).max_by_key(|(gap, _)| *gap)
    }

    /// The first acknowledged write at or after `since` by the server on `port`.
    pub fn first_on(&self, port: u16, since: Instant) -> Option<&Ack> {
        self.acks.iter().find(|ack| ack.port == i32::from(port) && ack.at >= since)
    }

    /// Every acknowledged write is there, and was written once.
    pub async fn nothing_is_lost(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let client = cluster.leader().await?.connect().await?;
        let rows = client.query("SELECT writer, number, port FROM load", &[]).await?;
        let there: std::collections::HashMap<(i32, i64), i32> = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        let lost: Vec<_> = self.acks.iter().filter(|ack| there.get(&(ack.writer, ack.number)) != Some(&ack.port)).collect();
        ensure!(lost.is_empty(), "{} of {} acknowledged writes are lost, such as {:?}", lost.len(), self.acks.len(), lost[0]);
        Ok(())
    }

    /// No session wrote on the server on `old` once it had written elsewhere.
    pub fn nobody_returned_to(&self, old: u16) -> anyhow::Result<()> {
        let mut left = std::collections::HashSet::new();
        for ack in &self.acks {
            if ack.port != i32::from(old) {
                left.insert(ack.writer);
            } else {
                ensure!(!left.contains(&ack.writer), "writer {} wrote on the old leader again: {ack:?}", ack.writer);
            }
        }
        Ok(())
    }

    /// SQLSTATEs of the writers' errors, with their numbers.
    pub fn write_sqlstates(&self) -> std::collections::BTreeMap<String, usize> {
        let mut counts = std::collections::BTreeMap::new();
        for failure in &self.write_failures {
            *counts.entry(failure.sqlstate.clone().unwrap_or_else(|| "the end of the connection".to_owned())).or_default() += 1;
        }
        counts
    }
}

struct Session {
    client: Client,
    name: String,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    report: Report,
}

impl Session {
    async fn open(dsn: &str, name: String, stop: &Arc<AtomicBool>) -> anyhow::Result<Session> {
        let client = connect(dsn).await.with_context(|| name.clone())?;
        Ok(Session { client, name, stop: stop.clone(), done: Arc::default(), report: Report::default() })
    }

    async fn write(mut self, style: Style, id: i32) -> Report {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let insert = "INSERT INTO load (writer, number) VALUES ($1, $2) RETURNING port";
        let statement = match self.client.prepare(insert).await {
            Ok(statement) => statement,
            Err(error) => {
                self.report.write_failures.push(self.failure(&error));
                return self.report;
            }
        };
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            number += 1;
            match self.write_one(style, &statement, id, number).await {
                Ok(port) => {
                    self.report.acks.push(Ack { at: Instant::now(), writer: id, number, port });
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    self.report.write_failures.push(self.failure(&error));
                    let end = if style.in_transaction() { self.client.batch_execute("ROLLBACK").await } else { Ok(()) };
                    if end.is_err() || self.client.is_closed() {
                        self.report.ended.push(format!("{}: {error:?}; then {end:?}", self.name));
                        break;
                    }
                }
            }
        }
        self.report
    }

    async fn write_one(&self, style: Style, statement: &Statement, id: i32, number: i64) -> Result<i32, tokio_postgres::Error> {
        let text = format!("INSERT INTO load (writer, number) VALUES ({id}, {number}) RETURNING port");
        match style {
            Style::Simple => Ok(first_number(&self.client.simple_query(&text).await?)),
            Style::Prepared => Ok(self.client.query_one(statement, &[&id, &number]).await?.get(0)),
            Style::Transaction => {
                self.client.batch_execute("BEGIN").await?;
                let port = first_number(&self.client.simple_query(&text).await?);
                self.client.batch_execute("COMMIT").await?;
                Ok(port)
            }
            Style::PreparedTransaction => {
                self.client.batch_execute("BEGIN").await?;
                let port = self.client.query_one(statement, &[&id, &number]).await?.get(0);
                self.client.batch_execute("COMMIT").await?;
                Ok(port)
            }
        }
    }

    async fn read(mut self, style: Style) -> Report {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = 0;
        let text = "SELECT count(*) FROM load WHERE writer = 0";
        let statement = match self.client.prepare(text).await {
            Ok(statement) => statement,
            Err(error) => {
                self.report.read_failures.push(self.failure(&error));
                return self.report;
            }
        };
        let mut answered = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let count = if style == Style::Prepared {
                self.client.query_one(&statement, &[]).await.map(|row| row.get(0))
            } else {
                self.client.simple_query(text).await.map(|messages| i64::from(first_number(&messages)))
            };
            match count {
                Ok(count) => {
                    if count < seen {
                        self.report.went_back.push(format!("{}: {count} after {seen}", self.name));
                    }
                    seen = count;
                    self.report.longest_read_gap = self.report.longest_read_gap.max(answered.elapsed());
                    answered = Instant::now();
                    self.report.reads += 1;
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    self.report.read_failures.push(self.failure(&error));
                    if self.client.is_closed() {
                        self.report.ended.push(format!("{}: {error:?}", self.name));
                        break;
                    }
                }
            }
        }
        self.report
    }

    fn failure(&self, error: &tokio_postgres::Error) -> Failure {
        Failure { at: Instant::now(), session: self.name.clone(), sqlstate: sqlstate(error), text: format!("{error:?}") }
    }
}

/// The SQLSTATE of an error; `None` where the connection ended without one.
pub fn sqlstate(error: &tokio_postgres::Error) -> Option<String> {
    error.code().map(|code| code.code().to_owned())
}

/// The first column of the first row; -1 where there is none.
fn first_number(messages: &[SimpleQueryMessage]) -> i32 {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    row.unwrap_or(-1)
}
