//! The SQL probe of one member.
//!
//! Owns one connection: asks again and again, one round trip each, and tells the judge what it found, or that it can't
//! ask. A connection that merely closed is opened again before anything is said; an unanswered probe counts as failed
//! after `health.timeout`, and takes its connection with it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::ClientConfig;
use switchyard_config::{Config, SslMode};
use switchyard_core::lsn::{Lsn, Timeline};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row, Statement};
use tracing::debug;

use crate::judge::Pace;
use crate::keys::{Forks, forks_from_file};
use crate::observation::{Found, Observation};
use crate::tempo::{Beat, Tempo};
use crate::tls::{self, MakeTls};

/// Between attempts to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Between two full probes of a member that is about to lead; between them it says something only once it has left recovery, as that is what
/// everybody waits for, and the machine is busy enough with the promotion.
const FULL_INTERVAL: Duration = Duration::from_millis(20);
/// Of a history file, at most.
const HISTORY_BYTES_MAX: i64 = 1024 * 1024;
/// `SizeOfXLogShortPHD` and `SizeOfXLogLongPHD` (`src/include/access/xlog_internal.h`), with MAXALIGN of 8.
const SHORT_PAGE_HEADER: u64 = 24;
const LONG_PAGE_HEADER: u64 = 40;

/// Asked once for each connection: none of it changes while the connection lives. A standby of which a backend crashes ends all connections
/// and opens anew at its minimum recovery point, under the same postmaster: its startup process tells since when it replays.
const ONCE: &str = "\
SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()),
       extract(epoch FROM greatest(pg_catalog.pg_postmaster_start_time(),
                                   (SELECT max(backend_start) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup')))::float8,
       pg_catalog.current_setting('server_version_num')::int4,
       pg_catalog.current_setting('wal_block_size')::int8,
       pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))";

/// The probe. The leader's functions raise an error in recovery, hence CASE; `OFFSET 0` keeps one answer of
/// `pg_is_in_recovery()` for all of them. A leader's timeline comes from the WAL file that it writes: the control file
/// stays on the old one until the next checkpoint. A standby's comes from its WAL receiver; without one, the control
/// file's is a lower bound. A commit may be shown by replicas before the leader shows it: while it waits for a synchronous standby, and until
/// its process has run again, which still has its transaction's id by then. `$1`: the transactions that an earlier answer has told to be
/// waiting. Others count from their statement's beginning, for a second: a commit isn't told from a statement that runs for long.
///
/// What a standby has received may end within a record, which is never replayed if its leader dies: see [`Rest`].
const PROBE: &str = "\
SELECT s.r,
       CASE WHEN s.r THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END,
       CASE WHEN s.r THEN greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())
            ELSE pg_catalog.pg_current_wal_insert_lsn() END,
       CASE WHEN s.r THEN coalesce((SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver)::int8,
                                   (SELECT greatest(c.timeline_id, r.min_recovery_end_timeline)
                                      FROM pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() r)::int8)
            ELSE ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int8 END,
       extract(epoch FROM pg_catalog.clock_timestamp())::float8,
       CASE WHEN NOT s.r AND pg_catalog.current_setting('synchronous_standby_names') <> '' THEN coalesce(w.longest, 0) END,
       w.waiting,
       s.r AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver),
       CASE WHEN s.r AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver)
                 AND EXISTS (SELECT FROM pg_catalog.pg_stat_activity
                              WHERE backend_type = 'startup' AND wait_event = 'RecoveryRetrieveRetryInterval')
            THEN extract(epoch FROM pg_catalog.current_setting('wal_retrieve_retry_interval')::interval)::float8 END
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS r OFFSET 0) s
       CROSS JOIN LATERAL
       (SELECT extract(epoch FROM max(pg_catalog.clock_timestamp() - state_change))::float8 AS longest,
               array_agg(backend_xid::text) FILTER (WHERE wait_event = 'SyncRep' OR backend_xid::text = ANY ($1)) AS waiting
          FROM pg_catalog.pg_stat_activity
         WHERE NOT s.r AND pg_catalog.current_setting('synchronous_standby_names') <> ''
           AND (wait_event = 'SyncRep' OR backend_xid::text = ANY ($1)
                OR (state = 'active' AND backend_xid IS NOT NULL
                    AND state_change > pg_catalog.clock_timestamp() - interval '1s'))) w";

/// Behind [`PROBE`]: nothing of a member that is in recovery, neither asked nor told.
const ONCE_OUT: &str = "WHERE NOT s.r";

const HISTORY: &str = "SELECT pg_catalog.pg_read_file('pg_wal/' || lpad(upper(to_hex($1::int8)), 8, '0') || '.history', 0, $2, true)";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", explain(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("{0}")]
    Tls(#[from] tls::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("an answer without {0}")]
    Missing(&'static str),
}

/// tokio-postgres says only `db error` and such by itself; the cause says what.
fn explain(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(db), _) => format!("{} {}", db.code().code(), db.message()),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

/// Probes one member.
pub(crate) struct Prober {
    pub(crate) member: Arc<str>,
    pub(crate) post: u64,
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) tempo: Arc<Tempo>,
    pub(crate) beat: Beat,
    pub(crate) observations: mpsc::Sender<Observation>,
}

impl Prober {
    /// Probes until its task is ended, or nobody listens.
    pub(crate) async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let tried_at = Instant::now();
            let error = match self.open().await {
                Ok(mut connection) => {
                    let mut answered = false;
                    let error = loop {
                        let asked_at = Instant::now();
                        let config = self.config.borrow().clone();
                        let urgent = *self.beat.pace.borrow() == Pace::Urgent;
                        match within(config.health.timeout, connection.ask(urgent)).await {
                            Ok(None) => {}
                            Ok(Some(found)) => {
                                answered = true;
                                backoff = BACKOFF_MIN;
                                let unread = !found.in_recovery && connection.wants_history(found.timeline);
                                let (member, post) = (self.member.clone(), self.post);
                                if self.observations.send(Observation::Found { member, post, found }).await.is_err() {
                                    return;
                                }
                                if unread {
                                    if let Err(error) = within(config.health.timeout, connection.read_history()).await {
                                        break error;
                                    }
                                    self.rest(asked_at, Duration::ZERO).await;
                                    continue;
                                }
                            }
                            Err(error) => break error,
                        }
                        let tempo = self.tempo.clone();
                        self.beat.rest(asked_at, |pace| tempo.gap(pace, &config.health)).await;
                    };
                    if answered && !matches!(error, Error::Timeout(_)) {
                        debug!(member = %self.member, %error, "probe connection lost");
                        continue;
                    }
                    error
                }
                Err(error) => error,
            };
            let lost = Observation::Lost { member: self.member.clone(), post: self.post, error: error.to_string().into() };
            if self.observations.send(lost).await.is_err() {
                return;
            }
            self.rest(tried_at, backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Waits for `gap`, or less while this member is about to lead.
    async fn rest(&mut self, since: Instant, gap: Duration) {
        self.beat.rest(since, |pace| if pace == Pace::Urgent { gap.min(BACKOFF_MIN) } else { gap }).await;
    }

    async fn open(&self) -> Result<Connection, Error> {
        let config = self.config.borrow().clone();
        let limit = config.postgres.connect_timeout;
        within(limit, Connection::open(&self.host, self.port, &config)).await
    }
}

async fn within<T>(limit: Duration, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    time::timeout(limit, future).await.map_err(|_| Error::Timeout(limit))?
}

struct Connection {
    client: Client,
    probe: Statement,
    /// Ids of transactions that wait for a synchronous standby, as the last answer told.
    waiting: Vec<String>,
    rest: Rest,
    once_out: Statement,
    /// When the last full probe of a standby was sent; of a leader, `None`.
    standby_at: Option<Instant>,
    system_identifier: i64,
    started_at_unix_seconds: f64,
    version_num: u32,
    wal: WalLayout,
    /// Of which timeline the history was asked for, and what it was.
    history: Option<(Timeline, Option<Forks>)>,
    wanted_history: Option<Timeline>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    async fn open(host: &str, port: u16, config: &Config) -> Result<Connection, Error> {
        let postgres = &config.postgres;
        let mut options = tokio_postgres::Config::new();
        options
            .host(host)
            .port(port)
            .user(&postgres.user)
            .dbname(&postgres.database)
            .application_name("switchyard probe")
            .connect_timeout(postgres.connect_timeout)
            .tcp_user_timeout(2 * config.health.timeout)
            .keepalives_idle(Duration::from_secs(10))
            // Whatever a role's or a database's settings say: a standby refuses serializable, and names must be the catalog's.
            .options(format!(
                "-c statement_timeout={} -c default_transaction_isolation=read\\ committed -c search_path=pg_catalog",
                config.health.timeout.as_millis().max(1)
            ));
        if let Some(password) = &postgres.password {
            options.password(password.expose());
        }
        options.ssl_mode(match config.server_tls.mode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
        });
        let tls = client_config(config).await?;
        let (client, connection) = options.connect(MakeTls(tls)).await?;
        let member = format!("{host}:{port}");
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(member, error = explain(&error), "probe connection ended");
            }
        })
        .abort_handle();
        let mut connection = Connection {
            probe: client.prepare(PROBE).await.inspect_err(|_| driver.abort())?,
            waiting: Vec::new(),
            rest: Rest::default(),
            once_out: client.prepare(&format!("{PROBE}\n {ONCE_OUT}")).await.inspect_err(|_| driver.abort())?,
            standby_at: None,
            client,
            system_identifier: 0,
            started_at_unix_seconds: 0.0,
            version_num: 0,
            wal: WalLayout { block: 0, segment: 0 },
            history: None,
            wanted_history: None,
            driver,
        };
        let row = connection.client.query_one(ONCE, &[]).await?;
        connection.system_identifier = row.try_get(0)?;
        connection.started_at_unix_seconds = row.try_get(1)?;
        connection.version_num = u32::try_from(row.try_get::<_, i32>(2)?).unwrap_or(0);
        connection.wal = WalLayout { block: unsigned(&row, 3)?, segment: unsigned(&row, 4)? };
        if connection.version_num >= 140_000 {
            connection.client.batch_execute("SET idle_session_timeout = 0").await?;
        }
        Ok(connection)
    }

    /// A full probe, or nothing where it is `urgent` to know of the end of a recovery that isn't there yet.
    async fn ask(&mut self, urgent: bool) -> Result<Option<Found>, Error> {
        let sent_at = Instant::now();
        let sent_at_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let briefly = urgent && self.standby_at.is_some_and(|at| sent_at - at < FULL_INTERVAL);
        let statement = if briefly { &self.once_out } else { &self.probe };
        let Some(row) = self.client.query_opt(statement, &[&self.waiting]).await? else {
            return if briefly { Ok(None) } else { Err(Error::Missing("a row")) };
        };
        let round_trip = sent_at.elapsed();
        let in_recovery: bool = row.try_get(0)?;
        self.standby_at = in_recovery.then_some(sent_at);
        let lsn = |column| Ok::<_, Error>(row.try_get::<_, Option<PgLsn>>(column)?.map(|lsn| Lsn(lsn.into())));
        // A standby that replays nothing yet shows nothing: position 0 is a lower bound on that.
        let replay_lsn = lsn(1)?.unwrap_or(Lsn::INVALID);
        let received = lsn(2)?.unwrap_or(replay_lsn);
        let cut_off: bool = row.try_get(7)?;
        // A wait of more than a day is as good as one of a day.
        let wait = |column| {
            Ok::<_, Error>(row.try_get::<_, Option<f64>>(column)?.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0))))
        };
        let looks_again_after = wait(8)?;
        let at_rest = self.rest.hears(sent_at, cut_off.then_some((received, replay_lsn)), looks_again_after);
        let insert_lsn = if at_rest { replay_lsn } else { received };
        let timeline = row.try_get::<_, Option<i64>>(3)?.and_then(|timeline| u32::try_from(timeline).ok()).filter(|timeline| *timeline > 0);
        let timeline = timeline.map(Timeline);
        let clock: f64 = row.try_get(4)?;
        let sync_wait = wait(5)?;
        self.waiting = row.try_get::<_, Option<Vec<Option<String>>>>(6)?.unwrap_or_default().into_iter().flatten().collect();
        let middle = (sent_at_unix + round_trip / 2).as_secs_f64();
        let forks = self.history.as_ref().filter(|(of, _)| Some(*of) == timeline).and_then(|(_, forks)| forks.clone());
        Ok(Some(Found {
            sent_at,
            round_trip,
            in_recovery,
            replay_lsn,
            insert_lsn: if in_recovery { insert_lsn } else { self.wal.before_page_header(insert_lsn) },
            sync_wait,
            timeline,
            system_identifier: self.system_identifier,
            started_at_unix_seconds: self.started_at_unix_seconds,
            version_num: self.version_num,
            clock_offset_ms: (clock - middle) * 1000.0,
            forks,
        }))
    }

    /// Whether the history of `timeline` is still to be read.
    fn wants_history(&mut self, timeline: Option<Timeline>) -> bool {
        self.wanted_history = timeline.filter(|timeline| timeline.0 > 1 && self.history.as_ref().is_none_or(|(of, _)| of != timeline));
        self.wanted_history.is_some()
    }

    /// Reads the leader's timeline history file: where the fork was, before Patroni tells it in etcd. A role that may not
    /// read files does without.
    async fn read_history(&mut self) -> Result<(), Error> {
        let Some(timeline) = self.wanted_history.take() else { return Ok(()) };
        let text = match self.client.query_one(HISTORY, &[&i64::from(timeline.0), &HISTORY_BYTES_MAX]).await {
            Ok(row) => row.try_get::<_, Option<String>>(0)?,
            Err(error) if error.as_db_error().is_some() => {
                debug!(error = explain(&error), "the timeline's history can't be read");
                None
            }
            Err(error) => return Err(error.into()),
        };
        self.history = Some((timeline, text.map(|text| forks_from_file(&text))));
        Ok(())
    }
}

/// Whether a standby has replayed all that is whole of what it has received.
///
/// Its startup process looks for WAL in `pg_wal`, then waits for a WAL receiver's, and when that has gone sleeps for
/// `wal_retrieve_retry_interval` at most (`WaitForWALToBecomeAvailable`, `src/backend/access/transam/xlogrecovery.c`). The first such sleep may
/// come with whole records before it. Whoever sleeps longer than that after its receiver was gone has looked, and found none.
#[derive(Debug, Default)]
struct Rest {
    /// Without a WAL receiver since this answer's question was sent: what it had received and replayed, which hasn't changed.
    since: Option<(Instant, (Lsn, Lsn))>,
}

/// What a sleep may last beyond its time.
const OVERSLEEPS: Duration = Duration::from_secs(1);

impl Rest {
    /// `at`: of a standby without a WAL receiver, what it has received and replayed. `sleeps`: for how long at most it sleeps now.
    fn hears(&mut self, sent_at: Instant, at: Option<(Lsn, Lsn)>, sleeps: Option<Duration>) -> bool {
        self.since = at.map(|at| self.since.filter(|(_, before)| *before == at).unwrap_or((sent_at, at)));
        let (Some((since, _)), Some(sleeps)) = (self.since, sleeps) else { return false };
        sent_at - since > sleeps + OVERSLEEPS
    }
}

fn unsigned(row: &Row, column: usize) -> Result<u64, Error> {
    u64::try_from(row.try_get::<_, i64>(column)?).ok().filter(|n| *n > 0).ok_or(Error::Missing("a WAL size"))
}

/// TLS towards a member; certificates are read anew for each connection, so that a renewed one is taken.
pub(crate) async fn client_config(config: &Config) -> Result<Option<Arc<ClientConfig>>, tls::Error> {
    if config.server_tls.mode == SslMode::Disable {
        return Ok(None);
    }
    let server_tls = config.server_tls.clone();
    tokio::task::spawn_blocking(move || tls::client_config(&server_tls)).await.unwrap_or(Ok(None))
}

/// Sizes of WAL pages and segments, in bytes.
#[derive(Clone, Copy, Debug)]
struct WalLayout {
    block: u64,
    segment: u64,
}

impl WalLayout {
    /// The insert position at the start of a page is told as behind the page's header, where no record ends and no
    /// standby's replay position ever stands until the next record: the page's start is the same position.
    fn before_page_header(self, lsn: Lsn) -> Lsn {
        let header = if lsn.0 % self.segment < self.block { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER };
        let within = lsn.0 % self.block;
        if within <= header { Lsn(lsn.0 - within) } else { lsn }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_in_a_page_header_is_the_pages_start() {
        let wal = WalLayout { block: 8192, segment: 16 << 20 };
        for (lsn, expected) in [
            ("0/5000000", "0/5000000"),
            ("0/5000028", "0/5000000"),
            ("0/5000029", "0/5000029"),
            ("0/5002018", "0/5002000"),
            ("0/5002019", "0/5002019"),
            ("0/5002028", "0/5002028"),
            ("1/5003FF8", "1/5003FF8"),
        ] {
            let lsn: Lsn = lsn.parse().expect("a position");
            assert_eq!(wal.before_page_header(lsn).to_string(), expected);
        }
    }

    #[test]
    fn a_standby_is_at_rest_when_it_has_looked_in_vain_without_a_receiver() {
        let zero = Instant::now();
        let mut rest = Rest::default();
        let five = Some(Duration::from_secs(5));
        let mut hears = |seconds, at: Option<(u64, u64)>, sleeps| {
            rest.hears(zero + Duration::from_secs(seconds), at.map(|(received, replayed)| (Lsn(received), Lsn(replayed))), sleeps)
        };
        // With its receiver it waits for that, and not for long enough since.
        assert!(!hears(0, None, None));
        assert!(!hears(10, Some((90, 80)), five));
        // It has looked, and gone on.
        assert!(!hears(15, Some((90, 85)), five));
        assert!(!hears(20, Some((90, 85)), five));
        // It does something else just now: it may be about to replay.
        assert!(!hears(22, Some((90, 85)), None));
        assert!(hears(23, Some((90, 85)), five));
        // Its receiver was back.
        assert!(!hears(24, None, None));
        assert!(!hears(25, Some((90, 85)), five));
        assert!(!hears(31, Some((90, 85)), five));
        assert!(hears(32, Some((90, 85)), five));
    }
}
