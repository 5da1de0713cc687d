//! What the cluster knows about a user and a database, asked anew at every login.
//!
//! One task keeps one connection, to the leader or, without one, to a replica. Logins that arrive while a question is under way
//! wait for the next one and share it; none shares a question that was sent before it came, so a password that was changed before
//! a login began is the one that counts. Invariant: the cache answers only while no member does. Names that clients send reach
//! SQL as bind parameters only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use switchyard_config::Postgres;
use switchyard_core::lsn::Lsn;
use switchyard_core::topology::Topology;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::types::FromSql;
use tokio_postgres::{Client, NoTls, Row, Statement};
use zeroize::Zeroizing;

use super::backend::{self, Target};
use super::secrets::Verifier;
use crate::tls::Connector;

/// Logins that may share one question.
const BATCH_MAX: usize = 256;
/// Logins that may wait for one; more wait at the door, under their own deadline.
const QUEUE_MAX: usize = 1024;
/// Pairs of user and database that the cache remembers.
const CACHE_MAX: usize = 10_000;

/// How long a member that didn't answer is asked last. A member that hangs would otherwise cost each login a whole timeout.
const AVOID: Duration = Duration::from_secs(5);
/// How long one is waited for while there are others to ask. As long as a probe has.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a login needs to know. Ages as soon as it is read: never keep it.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub role: Option<RoleFacts>,
    pub database: Option<DatabaseFacts>,
    pub standing: Standing,
    pub read: Reading,
}

/// When they were read makes no difference.
impl PartialEq for Facts {
    fn eq(&self, other: &Facts) -> bool {
        (&self.role, &self.database, self.standing) == (&other.role, &other.database, other.standing)
    }
}

impl Eq for Facts {}

/// What a server process takes from the catalogs when it starts, and keeps: connections of logins between which it has
/// changed aren't alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Standing {
    /// `pg_authid.oid` and `pg_database.oid`; 0 where nobody tells (a function of somebody's own), or none is meant.
    pub role: u32,
    pub database: u32,
    /// Whoever logged in as a superuser may SET SESSION AUTHORIZATION (before PostgreSQL 17).
    pub is_superuser: bool,
    /// `rolconnlimit` and `datconnlimit`, as [`RoleFacts`] and [`DatabaseFacts`] have them.
    pub role_limit: i32,
    pub database_limit: i32,
    /// A hash of all that ALTER ROLE and ALTER DATABASE ... SET have set for such a session.
    pub settings: i64,
}

impl Standing {
    /// Whether role or database are others, of the same names.
    pub fn is_of_others(self, other: Standing) -> bool {
        let differ = |one: u32, another: u32| one != 0 && another != 0 && one != another;
        differ(self.role, other.role) || differ(self.database, other.database)
    }
}

/// When facts were read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Later readings have higher numbers.
    pub turn: u64,
    /// A replica that has replayed up to here shows what was read; `None` where the leader wasn't asked.
    pub position: Option<Lsn>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleFacts {
    /// `rolpassword`.
    pub verifier: Option<Verifier>,
    pub can_login: bool,
    /// `rolvaliduntil` has passed, by the server's clock.
    pub expired: bool,
    pub is_superuser: bool,
    /// `rolconnlimit`, -1 for none. How many connections there are is the server's business, which refuses one too many itself.
    pub connection_limit: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// `datallowconn`.
    pub accepts_connections: bool,
    /// The role has CONNECT.
    pub may_connect: bool,
    /// `datconnlimit`, -1 for none.
    pub connection_limit: i32,
}

/// No member answers, and the cache doesn't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no member answers questions about roles")]
pub struct Unreachable;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pair {
    user: String,
    database: String,
}

struct Question {
    pair: Pair,
    answer: oneshot::Sender<Result<Facts, Unreachable>>,
}

/// Asks. Cheap to clone; the task behind it ends with the last clone.
#[derive(Clone, Debug)]
pub struct LoginFacts {
    questions: mpsc::Sender<Question>,
}

impl LoginFacts {
    /// Starts the task that asks. Needs a running tokio runtime.
    pub fn start(postgres: Postgres, topology: Arc<ArcSwap<Topology>>, tls: Connector) -> LoginFacts {
        let (questions, inbox) = mpsc::channel(QUEUE_MAX);
        let asker = Asker {
            query: query(postgres.auth_function.as_deref()),
            postgres,
            topology,
            tls,
            kept: None,
            turn: 0,
            failed: HashMap::new(),
            cache: HashMap::new(),
        };
        tokio::spawn(asker.run(inbox));
        LoginFacts { questions }
    }

    /// What is known right now about `user` and `database` (empty: no database is meant). Cancel-safe.
    pub async fn ask(&self, user: &str, database: &str) -> Result<Facts, Unreachable> {
        let (answer, answered) = oneshot::channel();
        let pair = Pair { user: user.to_owned(), database: database.to_owned() };
        self.questions.send(Question { pair, answer }).await.map_err(|_| Unreachable)?;
        answered.await.unwrap_or(Err(Unreachable))
    }
}

/// A kept connection.
struct Kept {
    target: Target,
    client: Client,
    question: Statement,
}

struct Asker {
    query: String,
    postgres: Postgres,
    topology: Arc<ArcSwap<Topology>>,
    tls: Connector,
    kept: Option<Kept>,
    /// Answers so far.
    turn: u64,
    /// Members that didn't answer, and when.
    failed: HashMap<Target, Instant>,
    cache: HashMap<Pair, Facts>,
}

impl Asker {
    async fn run(mut self, mut inbox: mpsc::Receiver<Question>) {
        let mut batch = Vec::new();
        while inbox.recv_many(&mut batch, BATCH_MAX).await > 0 {
            // A client that has left needs no answer.
            batch.retain(|question: &Question| !question.answer.is_closed());
            let pairs: Vec<Pair> = batch.iter().map(|question| question.pair.clone()).collect();
            let answers = self.answers(&pairs).await;
            for (question, answer) in batch.drain(..).zip(answers) {
                let _ = question.answer.send(answer);
            }
        }
    }

    async fn answers(&mut self, pairs: &[Pair]) -> Vec<Result<Facts, Unreachable>> {
        if pairs.is_empty() {
            return Vec::new();
        }
        match self.read(pairs).await {
            Some(mut facts) => {
                self.turn += 1;
                facts.iter_mut().for_each(|facts| facts.read.turn = self.turn);
                self.remember(pairs, &facts);
                facts.into_iter().map(Ok).collect()
            }
            None => pairs.iter().map(|pair| self.cache.get(pair).cloned().ok_or(Unreachable)).collect(),
        }
    }

    fn remember(&mut self, pairs: &[Pair], facts: &[Facts]) {
        for (pair, facts) in pairs.iter().zip(facts) {
            if facts.role.is_none() {
                // Names that don't exist are not worth remembering, and a flood of them must not push out those that do.
                self.cache.remove(pair);
            } else if self.cache.len() < CACHE_MAX || self.cache.contains_key(pair) {
                self.cache.insert(pair.clone(), facts.clone());
            }
        }
    }

    /// Asks one member after the other. `None`: none answers.
    async fn read(&mut self, pairs: &[Pair]) -> Option<Vec<Facts>> {
        let candidates = self.candidates();
        for (index, target) in candidates.iter().cloned().enumerate() {
            let last = index + 1 == candidates.len();
            let limit = self.postgres.connect_timeout.min(if last { Duration::MAX } else { PATIENCE });
            if self.kept.as_ref().is_some_and(|kept| kept.target != target || kept.client.is_closed()) {
                self.kept = None;
            }
            // A kept connection may have died unnoticed: then a fresh one to the same member is tried before the next member.
            let was_kept = self.kept.is_some();
            match self.ask_member(&target, pairs, limit).await {
                Ok(facts) => return Some(facts),
                Err(Failure::Broken) if was_kept => {
                    if let Ok(facts) = self.ask_member(&target, pairs, limit).await {
                        return Some(facts);
                    }
                }
                Err(Failure::Broken | Failure::Silent) => {}
            }
            self.failed.insert(target, Instant::now());
        }
        None
    }

    /// The leader, then the replicas that are in rotation, then the others: any word about a role is better than none. Who has just
    /// failed comes last.
    fn candidates(&mut self) -> Vec<Target> {
        let topology = self.topology.load();
        let leader = topology.leader_at(Instant::now()).map(|(_, member)| member);
        let replicas = topology.replicas().map(|(_, member)| member);
        let others = topology.members.iter();
        let mut targets: Vec<Target> = Vec::new();
        for member in leader.into_iter().chain(replicas).chain(others) {
            let target = Target { host: member.host.clone(), port: member.port };
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        self.failed.retain(|_, failed| failed.elapsed() < AVOID);
        targets.sort_by_key(|target| self.failed.contains_key(target));
        targets
    }

    async fn ask_member(&mut self, target: &Target, pairs: &[Pair], limit: Duration) -> Result<Vec<Facts>, Failure> {
        if self.kept.is_none() {
            let connecting = async {
                let purpose =
                    Purpose { database: &self.postgres.database, application_name: "switchyard logins", statement_timeout: limit };
                let client = connect_as_router(&self.postgres, target, &self.tls, purpose).await?;
                let question = client.prepare(&self.query).await?;
                Ok::<_, AskError>(Kept { target: target.clone(), client, question })
            };
            match tokio::time::timeout(limit, connecting).await {
                Ok(Ok(kept)) => self.kept = Some(kept),
                Ok(Err(error)) => {
                    tracing::warn!(host = %target.host, port = target.port, %error, "cannot ask this member about roles");
                    return Err(Failure::Broken);
                }
                Err(_) => {
                    tracing::warn!(host = %target.host, port = target.port, ?limit, "no answer about roles in time");
                    return Err(Failure::Silent);
                }
            }
        }
        let Some(kept) = &self.kept else { return Err(Failure::Broken) };
        match ask_all(kept, pairs, limit).await {
            Ok(facts) => Ok(facts),
            Err(error) => {
                tracing::warn!(host = %target.host, port = target.port, %error, "a question about roles failed");
                self.kept = None;
                Err(if matches!(error, AskError::Timeout(_)) { Failure::Silent } else { Failure::Broken })
            }
        }
    }
}

/// Why a member gave no answer.
enum Failure {
    /// It refused, or the connection broke: a fresh one may do better.
    Broken,
    /// It hangs.
    Silent,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Connect(#[from] backend::ConnectError),
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// tokio-postgres prints "db error" and leaves the rest to its source.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}

/// What a connection as the router's own role is for.
pub(crate) struct Purpose<'a> {
    pub(crate) database: &'a str,
    pub(crate) application_name: &'a str,
    pub(crate) statement_timeout: Duration,
}

/// Connects as the router's own role. The connection ends with its client. The caller sets the deadline.
pub(crate) async fn connect_as_router(
    postgres: &Postgres,
    target: &Target,
    tls: &Connector,
    purpose: Purpose<'_>,
) -> Result<Client, AskError> {
    let stream = backend::open(target, tls).await?;
    let mut config = tokio_postgres::Config::new();
    config
        .user(&postgres.user)
        .dbname(purpose.database)
        .application_name(purpose.application_name)
        // Over whatever ALTER ROLE may have set: nobody's functions, operators or triggers of a kind get into the way.
        .options(format!("-c search_path=pg_catalog -c statement_timeout={}", purpose.statement_timeout.as_millis()))
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    if let Some(password) = &postgres.password {
        config.password(password.expose());
    }
    // TLS, if any, has been started below.
    let (client, connection) = config.connect_raw(stream, NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %describe(&error), "a connection of the router's own ended");
        }
    });
    Ok(client)
}

async fn ask_all(kept: &Kept, pairs: &[Pair], limit: Duration) -> Result<Vec<Facts>, AskError> {
    match ask_once(kept, pairs, limit).await {
        // A name that the database's encoding doesn't know fails the statement: it must not fail everybody's login.
        Err(AskError::Postgres(error)) if is_bad_data(&error) => {
            let mut facts = Vec::with_capacity(pairs.len());
            for pair in pairs {
                match ask_once(kept, std::slice::from_ref(pair), limit).await {
                    Ok(mut one) => facts.append(&mut one),
                    // Such a role can't exist, as far as this database can tell.
                    Err(AskError::Postgres(error)) if is_bad_data(&error) => facts.push(Facts::default()),
                    Err(error) => return Err(error),
                }
            }
            Ok(facts)
        }
        answer => answer,
    }
}

/// Class 22, data exception.
fn is_bad_data(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("22"))
}

async fn ask_once(kept: &Kept, pairs: &[Pair], limit: Duration) -> Result<Vec<Facts>, AskError> {
    let users: Vec<&str> = pairs.iter().map(|pair| pair.user.as_str()).collect();
    let databases: Vec<&str> = pairs.iter().map(|pair| pair.database.as_str()).collect();
    let rows = tokio::time::timeout(limit, kept.client.query(&kept.question, &[&users, &databases]))
        .await
        .map_err(|_| AskError::Timeout(limit))??;
    let mut facts = vec![Facts::default(); pairs.len()];
    for row in rows {
        let place: i64 = row.try_get(0)?;
        if let Some(place) = usize::try_from(place - 1).ok().and_then(|place| facts.get_mut(place)) {
            *place = read_row(&row)?;
        }
    }
    Ok(facts)
}

fn read_row(row: &Row) -> Result<Facts, tokio_postgres::Error> {
    let flag = |column: usize| row.try_get::<_, Option<bool>>(column).map(|flag| flag.unwrap_or(false));
    let position = row.try_get::<_, Option<String>>(1)?.and_then(|text| text.parse().ok());
    let role = if flag(2)? {
        let text = row.try_get::<_, Option<String>>(3)?.map(Zeroizing::new);
        Some(RoleFacts {
            verifier: text.and_then(|text| Verifier::parse(&text)),
            can_login: flag(4)?,
            expired: flag(5)?,
            is_superuser: flag(6)?,
            connection_limit: row.try_get::<_, Option<i32>>(7)?.unwrap_or(-1),
        })
    } else {
        None
    };
    let database_limit = added(row, "database_connection_limit")?.unwrap_or(-1);
    let database =
        flag(8)?.then_some(DatabaseFacts { accepts_connections: flag(9)?, may_connect: flag(10)?, connection_limit: database_limit });
    let standing = Standing {
        role: added(row, "role_oid")?.unwrap_or_default(),
        database: added(row, "database_oid")?.unwrap_or_default(),
        is_superuser: role.as_ref().is_some_and(|role| role.is_superuser),
        role_limit: role.as_ref().map_or(-1, |role| role.connection_limit),
        database_limit,
        settings: added(row, "settings")?.unwrap_or_default(),
    };
    Ok(Facts { role, database, standing, read: Reading { turn: 0, position } })
}

/// A column that functions of an earlier version don't have.
fn added<'r, T: FromSql<'r>>(row: &'r Row, name: &str) -> Result<Option<T>, tokio_postgres::Error> {
    match row.columns().iter().position(|column| column.name() == name) {
        Some(column) => row.try_get(column),
        None => Ok(None),
    }
}

/// The one query: the place of what was asked, the leader's position, and the columns of the facts, over `pg_authid`
/// or over the function of `sql/auth_function.sql`, with the same columns.
fn query(function: Option<&str>) -> String {
    let source = match function {
        Some(name) => format!("{}(asked.role_name, asked.database_name)", quote_name(name)),
        None => format!("({LOGIN_FACTS})"),
    };
    format!(
        "SELECT asked.place, \
                CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text END, \
                facts.* \
         FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) \
              WITH ORDINALITY AS asked(role_name, database_name, place) \
         LEFT JOIN LATERAL {source} AS facts ON true"
    )
}

/// Also the body of the function in `sql/auth_function.sql`.
const LOGIN_FACTS: &str = "\
    SELECT r.oid IS NOT NULL AS role_exists, r.rolpassword AS verifier, r.rolcanlogin AS can_login, \
           r.rolvaliduntil < pg_catalog.now() AS expired, r.rolsuper AS is_superuser, r.rolconnlimit AS connection_limit, \
           d.oid IS NOT NULL AS database_exists, d.datallowconn AS accepts_connections, \
           pg_catalog.has_database_privilege(r.oid, d.oid, 'CONNECT') AS may_connect, \
           r.oid AS role_oid, d.oid AS database_oid, d.datconnlimit AS database_connection_limit, \
           (SELECT pg_catalog.hashtextextended(pg_catalog.string_agg(s::pg_catalog.text, '' ORDER BY s.setdatabase, s.setrole) \
                                               COLLATE pg_catalog.\"C\", 0) \
            FROM pg_catalog.pg_db_role_setting AS s \
            WHERE s.setdatabase IN (0, d.oid) AND s.setrole IN (0, r.oid)) AS settings \
    FROM (SELECT 1) AS one \
    LEFT JOIN pg_catalog.pg_authid AS r ON r.rolname = asked.role_name::pg_catalog.name \
    LEFT JOIN pg_catalog.pg_database AS d ON d.datname = asked.database_name::pg_catalog.name";

/// `schema.function`, each part quoted.
fn quote_name(name: &str) -> String {
    name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect::<Vec<_>>().join(".")
}
