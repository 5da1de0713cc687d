//! `switchyard check-consistency`: known values, written and read by many sessions, and every read that shows less than it must.
//!
//! Each session owns one row and writes rising numbers to it; all read all rows. What a read must show at least is known before it is
//! sent: what its session was told of its own writes, what it has seen of the row, and, at the levels `global` and `strong`, what the row's
//! owner has told everybody (a side channel: the memory of this process). Invariant: a violation is never reported wrongly. A session
//! whose connection was lost begins anew and has seen nothing. A write whose outcome is unknown may have been shown by a replica and been
//! lost with its leader: its owner asks the leader what became of it, and what was lost needn't be shown again.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use switchyard_core::causal::Level;
use tokio::task::{AbortHandle, JoinSet};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, Statement};

/// One statement of a session in so many is a write.
const WRITE_EVERY: u32 = 10;
/// One statement in so many is preceded by a rest of up to this long, in which replicas catch up: without any, the leader serves nearly all.
const REST_EVERY: u32 = 8;
const REST_MAX_MS: u64 = 20;
/// Violations that are told one by one.
const SHOWN_MAX: usize = 10;
/// Reads that may turn out to be violations, at most: more of them than anybody reads.
const SUSPECTS_MAX: usize = 100_000;
/// Without an answer, a statement's connection counts as lost. Longer than a statement waits for a leader.
const ANSWER: Duration = Duration::from_secs(60);
/// Between attempts to connect, and how long a session tries.
const RETRY: Duration = Duration::from_millis(100);
const RECONNECT: Duration = Duration::from_secs(60);

/// What is to be checked.
#[derive(Clone, Debug)]
pub struct Plan {
    pub dsn: String,
    /// Of every other session.
    pub other: Option<String>,
    pub sessions: u16,
    /// By all sessions together.
    pub reads: u64,
    /// `None`: whatever the port has.
    pub level: Option<Level>,
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("no connection within a minute: {0}")]
    Unreachable(Arc<str>),
    #[error("no answer within a minute")]
    Hangs,
}

/// tokio-postgres prints "db error" and leaves the rest to its source.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}

/// What a read fell short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A write of the session's own, which it was told of.
    OwnWrite,
    /// What the session has seen before.
    Backward,
    /// A write that its owner was told of before the read was sent.
    Told,
}

impl Violation {
    fn as_str(self) -> &'static str {
        match self {
            Violation::OwnWrite => "missed a write of its own",
            Violation::Backward => "went back behind what it had shown",
            Violation::Told => "missed a write that others were told of",
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    level: &'static str,
    sessions: u16,
    reads: u64,
    writes: u64,
    took: Duration,
    violations: BTreeMap<Violation, u64>,
    shown: Vec<String>,
    errors: BTreeMap<String, u64>,
    connections_lost: u64,
}

impl Report {
    fn broken(&mut self, violation: Violation, line: String) {
        *self.violations.entry(violation).or_default() += 1;
        if self.shown.len() < SHOWN_MAX {
            self.shown.push(line);
        }
    }

    /// Whether every read showed what it had to.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_second = self.reads as f64 / self.took.as_secs_f64().max(0.001);
        writeln!(
            f,
            "level {}: {} sessions, {} reads and {} writes in {:.1} s ({per_second:.0} reads/s)",
            self.level,
            self.sessions,
            self.reads,
            self.writes,
            self.took.as_secs_f64()
        )?;
        let errors: Vec<String> = self.errors.iter().map(|(sqlstate, count)| format!("{count} of {sqlstate}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        writeln!(f, "errors: {errors}; connections lost: {}", self.connections_lost)?;
        for line in &self.shown {
            writeln!(f, "  {line}")?;
        }
        for (violation, count) in &self.violations {
            writeln!(f, "{count} reads {}", violation.as_str())?;
        }
        writeln!(f, "violations: {}", self.violations.values().sum::<u64>())
    }
}

/// What all sessions share.
struct Shared {
    table: String,
    level: Level,
    /// Whether what is acknowledged to one session counts for all.
    told: bool,
    set_level: bool,
    /// By row: the highest number that its owner was told is written.
    acknowledged: Vec<AtomicI64>,
    reads_left: AtomicU64,
    /// Numbers that were never acknowledged and aren't there, by row.
    lost: Mutex<HashSet<(usize, i64)>>,
    /// Reads that went back behind a number that wasn't acknowledged yet: violations, unless the number was lost.
    suspects: Mutex<Vec<(usize, i64, String)>>,
    report: Mutex<Report>,
}

/// A connection that ends with its value.
struct Connected {
    client: Client,
    read: Statement,
    write: Statement,
    driver: AbortHandle,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn connect(dsn: &str) -> Result<(Client, AbortHandle), CheckError> {
    let (client, connection) = tokio::time::timeout(ANSWER, tokio_postgres::connect(dsn, NoTls)).await.map_err(|_| CheckError::Hangs)??;
    let driver = tokio::spawn(async move {
        // Its end is seen by whoever asks something.
        let _ = connection.await;
    });
    Ok((client, driver.abort_handle()))
}

impl Plan {
    /// Checks, and cleans up.
    ///
    /// # Errors
    /// Where no connection or no table could be made, or a session stays without a connection for a minute.
    pub async fn check(&self) -> Result<Report, CheckError> {
        let (client, driver) = connect(&self.dsn).await?;
        let level = match self.level {
            Some(level) => level,
            None => port_level(&client).await?,
        };
        let table = format!("switchyard_consistency_{:08x}", rand::random::<u32>());
        client
            .batch_execute(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, n bigint NOT NULL);
                 INSERT INTO {table} SELECT id, 0 FROM generate_series(0, {}) id",
                self.sessions - 1
            ))
            .await?;
        let checked = self.with_table(&client, &table, level).await;
        // Its first connection may have been lost in what was checked.
        let dropped = client.batch_execute(&format!("DROP TABLE IF EXISTS {table}")).await;
        driver.abort();
        if dropped.is_err() {
            let (client, driver) = connect(&self.dsn).await?;
            client.batch_execute(&format!("DROP TABLE IF EXISTS {table}")).await?;
            driver.abort();
        }
        checked
    }

    async fn with_table(&self, client: &Client, table: &str, level: Level) -> Result<Report, CheckError> {
        let shared = Arc::new(Shared {
            table: table.to_owned(),
            level,
            told: level >= Level::Global,
            set_level: self.level.is_some(),
            acknowledged: (0..self.sessions).map(|_| AtomicI64::new(0)).collect(),
            reads_left: AtomicU64::new(self.reads),
            lost: Mutex::default(),
            suspects: Mutex::default(),
            report: Mutex::new(Report { level: level.as_str(), sessions: self.sessions, ..Report::default() }),
        });
        // Where the table itself hasn't been replayed yet, a read falls back to the leader by an error: no time for that is needed.
        client.simple_query(&format!("SELECT count(*) FROM {table}")).await?;
        let begin = Instant::now();
        let mut sessions = JoinSet::new();
        for id in 0..self.sessions {
            let dsn = self.other.as_ref().filter(|_| id % 2 == 1).unwrap_or(&self.dsn).clone();
            sessions.spawn(Session::new(id, shared.clone(), dsn).run());
        }
        while let Some(ended) = sessions.join_next().await {
            // A panic is a bug of ours, and the panic's text is on stderr.
            ended.unwrap_or(Err(CheckError::Hangs))?;
        }
        let mut report = std::mem::take(&mut *shared.report.lock());
        report.took = begin.elapsed();
        let lost = shared.lost.lock();
        for (row, number, line) in shared.suspects.lock().drain(..) {
            if !lost.contains(&(row, number)) {
                report.broken(Violation::Backward, line);
            }
        }
        Ok(report)
    }
}

/// What `SHOW switchyard.consistency` says; `session` of what isn't a Switchyard.
async fn port_level(client: &Client) -> Result<Level, CheckError> {
    let answer = client.simple_query("SHOW switchyard.consistency").await;
    let word = answer.ok().and_then(|messages| {
        messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    });
    Ok(word.and_then(|word| Level::ALL.into_iter().find(|level| level.as_str() == word)).unwrap_or(Level::Session))
}

/// How a statement is sent.
#[derive(Clone, Copy)]
enum Form {
    Simple,
    Prepared,
    Transaction,
}

/// What a session knows.
struct Session {
    id: u16,
    shared: Arc<Shared>,
    dsn: String,
    /// By row: the highest number that this connection has seen.
    seen: Vec<i64>,
    /// The highest number that this connection was told is written.
    own: i64,
    /// The highest number that was ever sent.
    sent: i64,
    /// Whether nobody knows what became of it.
    unknown: bool,
}

impl Session {
    fn new(id: u16, shared: Arc<Shared>, dsn: String) -> Session {
        let seen = vec![0; shared.acknowledged.len()];
        Session { id, shared, dsn, seen, own: 0, sent: 0, unknown: false }
    }

    async fn run(mut self) -> Result<(), CheckError> {
        while self.shared.reads_left.load(Ordering::Relaxed) > 0 {
            let connected = self.connected().await?;
            // A new session has seen nothing.
            self.seen.fill(0);
            self.own = 0;
            while self.step(&connected).await? {}
        }
        Ok(())
    }

    /// A connection at the level; whatever fails is tried again for a while.
    async fn connected(&self) -> Result<Connected, CheckError> {
        let begin = Instant::now();
        loop {
            let error = match self.try_connect().await {
                Ok(connected) => return Ok(connected),
                Err(error) if begin.elapsed() >= RECONNECT => return Err(CheckError::Unreachable(error.to_string().into())),
                Err(error) => error,
            };
            if let CheckError::Postgres(error) = &error {
                self.failed(error);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn try_connect(&self) -> Result<Connected, CheckError> {
        let (client, driver) = connect(&self.dsn).await?;
        let table = &self.shared.table;
        if self.shared.set_level {
            client.batch_execute(&format!("SET switchyard.consistency = '{}'", self.shared.level.as_str())).await?;
        }
        let read = client.prepare(&format!("SELECT n FROM {table} WHERE id = $1")).await?;
        let write = client.prepare(&format!("UPDATE {table} SET n = $2 WHERE id = $1")).await?;
        Ok(Connected { client, read, write, driver })
    }

    /// One statement. False where the reads are done, or the connection is lost.
    async fn step(&mut self, connected: &Connected) -> Result<bool, CheckError> {
        if rand::random_ratio(1, REST_EVERY) {
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..=REST_MAX_MS))).await;
        }
        let form = match rand::random_range(0..4) {
            0 => Form::Simple,
            1 => Form::Transaction,
            _ => Form::Prepared,
        };
        let done = if self.unknown {
            tokio::time::timeout(ANSWER, self.resolve(connected)).await
        } else if rand::random_ratio(1, WRITE_EVERY) {
            tokio::time::timeout(ANSWER, self.write(connected, form)).await
        } else {
            let left = self.shared.reads_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if left.is_err() {
                return Ok(false);
            }
            tokio::time::timeout(ANSWER, self.read(connected, form)).await
        };
        match done.map_err(|_| CheckError::Hangs)? {
            Ok(()) => Ok(true),
            Err(error) => {
                self.failed(&error);
                let lost = connected.client.is_closed() || error.is_closed();
                if !lost {
                    // Of a transaction that failed.
                    let _ = connected.client.batch_execute("ROLLBACK").await;
                }
                let lost = lost || connected.client.is_closed();
                self.shared.report.lock().connections_lost += u64::from(lost);
                Ok(!lost)
            }
        }
    }

    fn failed(&self, error: &tokio_postgres::Error) {
        let what = error.code().map_or_else(|| "no SQLSTATE".to_owned(), |code| code.code().to_owned());
        *self.shared.report.lock().errors.entry(what).or_default() += 1;
    }

    async fn write(&mut self, connected: &Connected, form: Form) -> Result<(), tokio_postgres::Error> {
        self.sent += 1;
        self.unknown = true;
        let (id, number) = (i32::from(self.id), self.sent);
        let sql = format!("UPDATE {} SET n = {number} WHERE id = {id}", self.shared.table);
        match form {
            Form::Simple => connected.client.batch_execute(&sql).await?,
            Form::Prepared => _ = connected.client.execute(&connected.write, &[&id, &number]).await?,
            Form::Transaction => {
                connected.client.batch_execute("BEGIN").await?;
                connected.client.batch_execute(&sql).await?;
                connected.client.batch_execute("COMMIT").await?;
            }
        }
        self.unknown = false;
        self.own = number;
        self.shared.acknowledged[usize::from(self.id)].fetch_max(number, Ordering::SeqCst);
        self.shared.report.lock().writes += 1;
        Ok(())
    }

    /// Asks the leader what became of the last write.
    async fn resolve(&mut self, connected: &Connected) -> Result<(), tokio_postgres::Error> {
        let sql = format!("/* switchyard: leader */ SELECT n FROM {} WHERE id = {}", self.shared.table, self.id);
        let messages = connected.client.simple_query(&sql).await?;
        let there: i64 = messages.iter().find_map(number).unwrap_or(0);
        let row = usize::from(self.id);
        if there < self.sent {
            self.shared.lost.lock().insert((row, self.sent));
        }
        self.unknown = false;
        self.own = self.own.max(there);
        self.shared.acknowledged[row].fetch_max(there, Ordering::SeqCst);
        Ok(())
    }

    async fn read(&mut self, connected: &Connected, form: Form) -> Result<(), tokio_postgres::Error> {
        let rows = self.seen.len();
        let row = if rand::random_ratio(1, 3) { usize::from(self.id) } else { rand::random_range(0..rows) };
        let id = row as i32;
        let own = if row == usize::from(self.id) { self.own } else { 0 };
        let acknowledged = self.shared.acknowledged[row].load(Ordering::SeqCst);
        let told = if self.shared.told { acknowledged } else { 0 };
        let shown: i64 = match form {
            Form::Simple => {
                let messages = connected.client.simple_query(&format!("SELECT n FROM {} WHERE id = {id}", self.shared.table)).await?;
                // No row is as old as it gets, and what every row began with.
                messages.iter().find_map(number).unwrap_or(0)
            }
            Form::Prepared => connected.client.query_opt(&connected.read, &[&id]).await?.map_or(0, |row| row.get(0)),
            Form::Transaction => {
                connected.client.batch_execute("BEGIN READ ONLY").await?;
                let row = connected.client.query_opt(&connected.read, &[&id]).await?;
                connected.client.batch_execute("COMMIT").await?;
                row.map_or(0, |row| row.get(0))
            }
        };
        let seen = self.seen[row];
        self.seen[row] = seen.max(shown);
        self.shared.report.lock().reads += 1;
        let broken = [(Violation::OwnWrite, own), (Violation::Told, told), (Violation::Backward, seen)];
        if let Some((violation, least)) = broken.into_iter().find(|(_, least)| shown < *least) {
            let line = format!("session {} read {shown} of row {row} and {}: at least {least}", self.id, violation.as_str());
            if violation == Violation::Backward && acknowledged < least {
                let mut suspects = self.shared.suspects.lock();
                if suspects.len() < SUSPECTS_MAX {
                    suspects.push((row, least, line));
                }
            } else {
                self.shared.report.lock().broken(violation, line);
            }
        }
        Ok(())
    }
}

/// The number in the first column of a row.
fn number(message: &SimpleQueryMessage) -> Option<i64> {
    match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    }
}
