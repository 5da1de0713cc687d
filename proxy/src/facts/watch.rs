//! Keeps the facts of every database in use fresh.
//!
//! The task of a database looks at a fingerprint of its catalogs every few seconds, and loads the facts anew when it has changed; soon after DDL has
//! passed through this router it looks several times in quick succession, and the facts are in doubt until they are settled. A database that
//! nobody asks about for [`ASLEEP_AFTER`] costs no connection, so that it can be dropped; its facts are in doubt then until the next look, and
//! forgotten [`FORGOTTEN_AFTER`] later if no client is left.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use switchyard_config::Config;
use switchyard_core::marks::{ClusterMark, Marks};
use switchyard_core::session::StatementId;
use switchyard_core::sql::Facts;
use switchyard_core::sql::reach::CUSTOM_SETTINGS_MAX;
use switchyard_core::topology::{Member, Topology};
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock, Semaphore, watch};
use tokio::time::{timeout, timeout_at};
use tokio_postgres::Client;

use super::load::{CatalogFingerprint, LoadError, fingerprint, load_with_fingerprint};
use super::rights::Rights;
use crate::auth::Target;
use crate::auth::facts::{AskError, Purpose, connect_as_router};
use crate::pool::Pools;

/// Between two looks, unless a look takes long: it shall cost the leader a fiftieth of one core at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
const LOOK_SHARE: u32 = 50;
/// After DDL has passed: it is executed soon, and committed soon, mostly.
const LOOKS_AFTER_DDL: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(60),
    Duration::from_millis(150),
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(1000),
];
/// How long a VACUUM waits for a look at the catalogs to end.
const VACUUM_PATIENCE: Duration = Duration::from_millis(500);
/// How long a look waits for a VACUUM. Only its beginning matters to it.
const FACTS_PATIENCE: Duration = Duration::from_secs(1);
/// Without a verdict, the connection is closed.
const ASLEEP_AFTER: Duration = Duration::from_secs(10);
/// Asleep and without clients, the facts are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// Of one query. Catalogs of a hundred thousand objects take a few seconds.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a whole load.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two attempts after a failure, doubling.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// For a leader's answer, where a replica could give one.
const LEADER_PATIENCE: Duration = Duration::from_millis(500);
/// The longest that the first client of a database waits for its facts.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Prepared statements of a database that are known to be outdated: beyond, all are forgotten, and found out again.
const OUTDATED_MAX: usize = 4_096;
/// Loads under way at once, of all databases.
const LOADS_AT_ONCE: usize = 2;

/// Where facts come from.
pub(crate) struct Source {
    pub(crate) config: Arc<ArcSwap<Config>>,
    pub(crate) topology: Arc<ArcSwap<Topology>>,
    pub(crate) pools: Arc<Pools>,
}

/// The databases in use.
pub(crate) struct Databases {
    source: Source,
    /// One counter for all databases, as their verdicts share a memo. 0 is the empty facts'.
    generation: AtomicU64,
    loads: Semaphore,
    /// What DDL marks in all of them.
    cluster_mark: Arc<ClusterMark>,
    known: Mutex<HashMap<Arc<str>, Arc<Database>>>,
    rights: Rights,
}

impl Databases {
    pub(crate) fn new(source: Source) -> Arc<Databases> {
        let known = Mutex::default();
        Arc::new(Databases {
            source,
            generation: AtomicU64::new(1),
            loads: Semaphore::new(LOADS_AT_ONCE),
            cluster_mark: ClusterMark::new(Instant::now()),
            known,
            rights: Rights::default(),
        })
    }

    /// The database of that name, for a client that has logged in to it. The first one begins its facts.
    pub(crate) fn of(self: &Arc<Self>, name: &str) -> Arc<Database> {
        let mut known = self.known.lock();
        if let Some(database) = known.get(name) {
            return database.clone();
        }
        let database = Arc::new(Database {
            name: name.into(),
            all: self.clone(),
            facts: ArcSwap::from_pointee(Facts::empty()),
            marks: Marks::new(self.cluster_mark.clone(), Instant::now()),
            used: AtomicBool::new(true),
            tried: watch::Sender::new(false),
            ddl: AtomicU64::new(0),
            shape: AtomicU64::new(0),
            mentioned: ArcSwap::default(),
            outdated: ArcSwap::default(),
            wake: Notify::new(),
            left: AtomicBool::new(false),
            quiet: Arc::default(),
        });
        known.insert(database.name.clone(), database.clone());
        tokio::spawn(Watch::new(database.clone()).run());
        database
    }

    /// A role, of that name and OID (0: not known), is about to drop, move or copy databases, which PostgreSQL does
    /// only while nobody is connected to them: if the leader says that it may, the router's own connections that
    /// nobody uses are closed. PostgreSQL waits for that (`CountOtherDBBackends`). Whoever may not is told so by the
    /// server itself, and has changed nothing here.
    pub(crate) async fn leave_for(&self, user: &str, role: u32, names: &[Arc<str>]) {
        match self.rights.may_empty(&self.source, user, role, names).await {
            Ok(allowed) => allowed.iter().for_each(|name| self.leave(name)),
            Err(error) => tracing::debug!(user, %error, "nobody says whether the role may have a database for itself"),
        }
    }

    fn leave(&self, name: &str) {
        self.source.pools.leave(name);
        if let Some(database) = self.known.lock().get(name) {
            database.left.store(true, Ordering::SeqCst);
            database.wake.notify_one();
        }
    }

    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }

    /// Forgets a database that only this table and its own task know. Whether it did.
    fn forget(&self, database: &Arc<Database>) -> bool {
        let mut known = self.known.lock();
        let unused = Arc::strong_count(database) <= 2;
        if unused {
            known.remove(&database.name);
        }
        unused
    }
}

/// One database's facts.
pub(crate) struct Database {
    name: Arc<str>,
    all: Arc<Databases>,
    facts: ArcSwap<Facts>,
    marks: Marks,
    /// A verdict was asked for since the task looked last.
    used: AtomicBool,
    /// Whether facts have ever been read, or can't be.
    tried: watch::Sender<bool>,
    /// How often DDL passed.
    ddl: AtomicU64,
    /// How often DDL passed that may change what statements give.
    shape: AtomicU64,
    /// The custom settings that DDL has mentioned which passed, the latest: the facts of now may not have them, nor those that follow, if more DDL comes.
    mentioned: ArcSwap<Vec<Arc<str>>>,
    /// The statements of which servers have said so.
    outdated: ArcSwap<HashSet<StatementId>>,
    wake: Notify,
    /// The task is to close its connection.
    left: AtomicBool,
    /// Read while a VACUUM runs, written while the catalogs are read.
    quiet: Arc<RwLock<()>>,
}

/// While it is there, the router itself reads nothing in a database.
#[derive(Debug)]
pub(crate) struct Quiet(#[expect(dead_code, reason = "its drop is what counts")] Option<OwnedRwLockReadGuard<()>>);

impl Database {
    /// The facts as they are now, for one verdict.
    pub(crate) fn facts(&self) -> Guard<Arc<Facts>> {
        // Written only when it changes: the line stays shared among cores.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            self.wake.notify_one();
        }
        self.facts.load()
    }

    /// What has been acknowledged to the database's sessions.
    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Of the facts as they are now; without them being used.
    pub(crate) fn generation(&self) -> u64 {
        self.facts.load().generation()
    }

    /// Waits until the facts were read for the first time, or can't be, but not for long.
    pub(crate) async fn first_facts(&self, deadline: tokio::time::Instant) {
        if self.facts.load().generation() == 0 {
            let limit = deadline.min(tokio::time::Instant::now() + FIRST_WAIT);
            // Without facts, what they don't tell is the leader's.
            let _ = timeout_at(limit, self.tried.subscribe().wait_for(|tried| *tried)).await;
        }
    }

    /// The router's own snapshot is gone, and none is taken until this is dropped: with one that is older than what was just committed, a
    /// VACUUM would find less to do than without a router. Not for ever: neither waits for the other longer than a moment.
    pub(crate) fn quiet(&self) -> impl Future<Output = Quiet> + Send + use<> {
        let quiet = self.quiet.clone();
        async move { Quiet(timeout(VACUUM_PATIENCE, quiet.read_owned()).await.ok()) }
    }

    /// As [`quiet`](Database::quiet), where nothing is to be waited for.
    pub(crate) fn quiet_now(&self) -> Option<Quiet> {
        self.quiet.clone().try_read_owned().ok().map(|guard| Quiet(Some(guard)))
    }

    /// DDL was sent, or is about to be: the facts are read anew soon. `doubt`: it may make something that was harmless before reach what a
    /// replica can't do, so that until then, what could have changed is the leader's.
    pub(crate) fn ddl_passed(&self, doubt: bool) {
        self.ddl.fetch_add(1, Ordering::SeqCst);
        if doubt {
            self.shape.fetch_add(1, Ordering::SeqCst);
            self.doubt();
        }
        self.wake.notify_one();
    }

    /// DDL that is about to be sent mentions these.
    pub(crate) fn mention(&self, names: &[Arc<str>]) {
        let known = self.mentioned.load();
        if names.iter().all(|name| known.contains(name)) {
            return;
        }
        self.mentioned.rcu(|known| {
            let mut all: Vec<Arc<str>> = known.iter().filter(|name| !names.contains(name)).chain(names).cloned().collect();
            all.drain(..all.len().saturating_sub(CUSTOM_SETTINGS_MAX));
            all
        });
    }

    /// The custom settings that code of the database's own names, or names soon.
    pub(crate) fn custom_settings(&self) -> Arc<[Arc<str>]> {
        let (known, mentioned) = (self.facts().custom_settings(), self.mentioned.load());
        if mentioned.is_empty() { known } else { known.iter().chain(mentioned.iter()).cloned().collect() }
    }

    /// How often DDL passed that may change what statements give.
    pub(crate) fn shape(&self) -> u64 {
        self.shape.load(Ordering::SeqCst)
    }

    /// A server has said that a statement no longer gives what it gave when it was prepared.
    pub(crate) fn outdate(&self, statement: StatementId) {
        self.outdated.rcu(|known| {
            let mut known = if known.len() < OUTDATED_MAX { HashSet::clone(known) } else { HashSet::new() };
            known.insert(statement);
            known
        });
    }

    pub(crate) fn is_outdated(&self, statement: StatementId) -> bool {
        self.outdated.load().contains(&statement)
    }

    /// DDL has passed.
    fn doubt(&self) {
        let facts = self.facts.load();
        // Without any, everything is in doubt already.
        if facts.generation() != 0 && !facts.has_ddl_passed() {
            self.facts.store(Arc::new(facts.in_doubt(self.all.next_generation())));
        }
    }

    /// Nobody looks for a while.
    fn unwatched(&self) {
        let facts = self.facts.load();
        if facts.generation() != 0 && !facts.is_in_doubt() {
            self.facts.store(Arc::new(facts.unwatched(self.all.next_generation())));
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("there is neither a leader nor a replica to ask")]
    Nobody,
    #[error(transparent)]
    Connect(#[from] AskError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// The task of one database.
struct Watch {
    database: Arc<Database>,
    connection: Option<(Target, Client)>,
    /// Whether the connection goes to the leader, or to a replica in its place.
    on_leader: bool,
    /// The facts that were read last, and what the catalogs were then.
    settled: Option<(CatalogFingerprint, Arc<Facts>)>,
    /// DDL that is accounted for, and the next of the looks after it.
    ddl_seen: u64,
    next_look: usize,
    last_used: Instant,
    failures: u32,
}

impl Watch {
    fn new(database: Arc<Database>) -> Watch {
        Watch {
            database,
            connection: None,
            on_leader: false,
            settled: None,
            ddl_seen: 0,
            next_look: LOOKS_AFTER_DDL.len(),
            last_used: Instant::now(),
            failures: 0,
        }
    }

    /// Until the database is forgotten.
    async fn run(mut self) {
        loop {
            let begin = Instant::now();
            let looked = self.look().await;
            self.database.tried.send_if_modified(|tried| !std::mem::replace(tried, true));
            let pause = match looked {
                Ok(()) => {
                    self.failures = 0;
                    // A replica's word counts while there is none of the leader's.
                    if self.on_leader { LOOK_INTERVAL.max(begin.elapsed() * LOOK_SHARE) } else { RETRY_MIN }
                }
                Err(error) => self.failed(&error),
            };
            self.pause(pause).await;
            let left = self.database.left.swap(false, Ordering::SeqCst);
            if self.database.used.swap(false, Ordering::Relaxed) {
                self.last_used = Instant::now();
            }
            if (left || self.last_used.elapsed() >= ASLEEP_AFTER) && !self.asleep().await {
                return;
            }
        }
    }

    fn failed(&mut self, error: &WatchError) -> Duration {
        self.connection = None;
        let database = &*self.database.name;
        match (self.failures, error) {
            (0, WatchError::Nobody) => tracing::debug!(database, %error, "catalog facts wait"),
            (0, _) => tracing::warn!(database, %error, "catalog facts can't be read: what they don't tell runs on the leader"),
            _ => tracing::debug!(database, %error, "catalog facts still can't be read"),
        }
        if matches!(error, WatchError::Nobody) {
            return RETRY_MIN;
        }
        self.failures = self.failures.saturating_add(1);
        (RETRY_MIN * 2u32.saturating_pow(self.failures.min(16))).min(RETRY_MAX)
    }

    /// Waits for the next look: `regular`, or less after DDL.
    async fn pause(&mut self, regular: Duration) {
        let begin = tokio::time::Instant::now();
        loop {
            let ddl = self.database.ddl.load(Ordering::SeqCst);
            if ddl != self.ddl_seen {
                self.ddl_seen = ddl;
                self.next_look = 0;
            }
            // A leader that can't be asked isn't asked more often.
            let after_ddl = LOOKS_AFTER_DDL.get(self.next_look).filter(|_| self.failures == 0);
            let pause = after_ddl.map_or(regular, |after_ddl| regular.min(*after_ddl));
            match timeout_at(begin + pause, self.database.wake.notified()).await {
                // DDL, or only somebody's first verdict for a while.
                Ok(()) if self.database.left.load(Ordering::SeqCst) => return,
                Ok(()) => {}
                Err(_) => {
                    self.next_look += usize::from(after_ddl.is_some());
                    return;
                }
            }
        }
    }

    /// Without a connection until somebody asks for a verdict. `false`: the database is forgotten.
    async fn asleep(&mut self) -> bool {
        self.connection = None;
        self.database.unwatched();
        tracing::debug!(database = &*self.database.name, "catalog facts are asleep");
        while !self.database.used.swap(false, Ordering::Relaxed) {
            let woken = timeout(FORGOTTEN_AFTER, self.database.wake.notified()).await;
            if woken.is_err() && self.database.all.forget(&self.database) {
                return false;
            }
        }
        self.last_used = Instant::now();
        true
    }

    /// Looks whether the catalogs have changed, and loads the facts if so.
    async fn look(&mut self) -> Result<(), WatchError> {
        self.connect().await?;
        // Without a leader, and with nothing to ask a replica.
        let Some((_, client)) = &self.connection else { return Ok(()) };
        let _turn = timeout(FACTS_PATIENCE, self.database.quiet.write()).await;
        if let Some((known, facts)) = &self.settled {
            let now = within(STATEMENT_TIMEOUT, fingerprint(client)).await?;
            if now == *known {
                // DDL that hasn't shown any effect after the last look has failed, or is held in a long transaction: the regular looks see it.
                if self.next_look >= LOOKS_AFTER_DDL.len() {
                    self.publish(facts.clone());
                }
                return Ok(());
            }
        }
        let begin = Instant::now();
        let loaded = {
            let _permit = self.database.all.loads.acquire().await;
            within(LOAD_TIMEOUT, load_with_fingerprint(client, self.database.all.next_generation())).await?
        };
        let (fingerprint, facts) = (loaded.0, Arc::new(loaded.1));
        tracing::debug!(database = &*self.database.name, took = ?begin.elapsed(), "catalog facts are read");
        self.settled = Some((fingerprint, facts.clone()));
        self.publish(facts);
        Ok(())
    }

    /// Makes facts the current ones, and doubts them at once if DDL has passed that no look was meant for yet.
    fn publish(&self, facts: Arc<Facts>) {
        if self.database.facts.load().generation() != facts.generation() {
            self.database.facts.store(facts);
        }
        // The hook counts first and doubts then: either this sees its count, or it sees these facts.
        if self.database.ddl.load(Ordering::SeqCst) != self.ddl_seen {
            self.database.doubt();
        }
    }

    /// A connection to the leader of this moment, or, while there is none that answers, to a replica: its catalogs are what its readers meet.
    /// None where there is no leader and nothing to ask a replica.
    async fn connect(&mut self) -> Result<(), WatchError> {
        let limit = self.database.all.source.config.load().postgres.connect_timeout;
        let (leader, replicas) = self.targets();
        let known = |target: &Target| self.connection.as_ref().is_some_and(|(known, client)| known == target && !client.is_closed());
        if leader.as_ref().is_some_and(known) {
            return Ok(());
        }
        let mut failure = WatchError::Nobody;
        if let Some(leader) = leader {
            let patience = if replicas.is_empty() { limit } else { limit.min(LEADER_PATIENCE) };
            match self.connect_to(&leader, patience).await {
                Ok(client) => {
                    self.connection = Some((leader, client));
                    self.on_leader = true;
                    return Ok(());
                }
                Err(error) => failure = error,
            }
        }
        self.on_leader = false;
        let facts = self.database.facts.load_full();
        // A replica may be behind what the leader said: it is asked only for what nobody knows.
        if !replicas.is_empty() && facts.generation() != 0 && !facts.is_in_doubt() {
            self.connection = None;
            return Ok(());
        }
        if replicas.iter().any(known) {
            return Ok(());
        }
        self.connection = None;
        for replica in replicas {
            match self.connect_to(&replica, limit).await {
                Ok(client) => {
                    self.connection = Some((replica, client));
                    return Ok(());
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// The leader in force, and the replicas in rotation.
    fn targets(&self) -> (Option<Target>, Vec<Target>) {
        let topology = self.database.all.source.topology.load();
        let target = |member: &Member| Target::new(member.host.clone(), member.port);
        let leader = topology.leader_at(Instant::now()).map(|(_, leader)| target(leader));
        (leader, topology.replicas().map(|(_, replica)| target(replica)).collect())
    }

    async fn connect_to(&self, target: &Target, limit: Duration) -> Result<Client, WatchError> {
        let source = &self.database.all.source;
        let config = source.config.load_full();
        let purpose = Purpose { database: &self.database.name, application_name: "switchyard facts", statement_timeout: STATEMENT_TIMEOUT };
        let tls = source.pools.tls.load_full();
        let client = timeout(limit, connect_as_router(&config.postgres, target, &tls, purpose)).await;
        Ok(client.map_err(|_| WatchError::Timeout(limit))??)
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, LoadError>>) -> Result<T, WatchError> {
    Ok(timeout(limit, work).await.map_err(|_| WatchError::Timeout(limit))??)
}
