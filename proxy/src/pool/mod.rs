//! Server connections that are shared: a pool for each (node, role, database, user) and what user and database were at
//! the login, and a cap for each node.
//!
//! A [`Lease`] is the right to use a connection, a [`Permit`] the right to open one. Both give themselves back when dropped; a lease
//! that is dropped instead of returned closes its connection, so that an early `?` can't return a dirty server.
//! Locks are held for bookkeeping only. A pool's lock may be held while a node's is taken, never the other way round.

mod ahead;
mod book;
mod logins;

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use rustc_hash::{FxHashMap, FxHashSet};
use switchyard_config::Config;
use switchyard_core::route::ServerRole;
use switchyard_core::session::{CustomNames, Params, ServerState, Settings};
use switchyard_core::topology::{Epoch, Out, Topology};
use switchyard_core::wire::reply::TxStatus;
use tokio::sync::oneshot;

use self::book::{Book, Offer, Wanted};
use self::logins::NewestLogins;
use crate::auth::facts::Standing;
use crate::auth::{ConnectError, Credential, Login, Target};
use crate::clients::Slot;
use crate::server::{Processes, Server};
use crate::stats::{NodeStats, PoolName, PoolStats, Stats};
use crate::stream::SERVER_USER_TIMEOUT;
use crate::tls::Connector;

/// How long a database is left alone for a statement that wants it for itself: PostgreSQL waits that long for others to go
/// (`CountOtherDBBackends`).
const LEAVING: Duration = Duration::from_secs(5);
/// Between two ends of connections that a promotion has made useless. A server process takes milliseconds to end, in the very tenth of a second in
/// which everybody waits for the promoted server's first commit.
const RETIRING_GAP: Duration = Duration::from_millis(20);
/// Connections that one pool opens at a time. When a new leader has been named, all who have waited for it want one at once; a server that forks for
/// all of them serves the first no sooner than the last, and a connection that is given back after a short statement serves the next as well.
const OPENING_MAX: usize = 4;
/// Longer than that nobody waits for the connections of others, which may hang.
const OPENING_WAIT: Duration = Duration::from_millis(50);

/// Which pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) node: Arc<str>,
    pub(crate) role: ServerRole,
    pub(crate) database: Arc<str>,
    pub(crate) user: Arc<str>,
    /// Of the logins that share it.
    pub(crate) standing: Standing,
    /// Which logins, where a standing comes back: see [`Pools::logged_in`].
    pub(crate) edition: u64,
}

impl Key {
    /// Under which it is counted, and told to people.
    fn name(&self) -> PoolName {
        PoolName { node: self.node.clone(), database: self.database.clone(), user: self.user.clone() }
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("no server connection became free within {0:?}")]
    Timeout(Duration),
    #[error("the node is not a member of the cluster any more")]
    Gone,
    #[error("the server is in recovery")]
    InRecovery,
    #[error("user or database are others by now, of the same names")]
    OfOthers,
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// All pools.
pub(crate) struct Pools {
    pools: RwLock<FxHashMap<Key, Arc<Pool>>>,
    nodes: RwLock<FxHashMap<Arc<str>, Arc<Node>>>,
    pub(crate) processes: Processes,
    pub(crate) config: Arc<ArcSwap<Config>>,
    topology: Arc<ArcSwap<Topology>>,
    pub(crate) tls: ArcSwap<Connector>,
    stats: Arc<Stats>,
    newest: NewestLogins,
    /// Held by whoever is the next to end.
    retiring: tokio::sync::Mutex<()>,
}

/// The cap of one node.
#[derive(Default)]
struct Node {
    book: Mutex<NodeBook>,
}

#[derive(Default)]
struct NodeBook {
    open: usize,
    /// Pools with waiting clients and no right to open a connection.
    starving: VecDeque<Weak<Pool>>,
}

/// The connections of one key.
pub(crate) struct Pool {
    key: Key,
    book: Mutex<Book>,
    node: Arc<Node>,
    /// The newest login's: older ones may no longer open connections.
    credential: ArcSwap<Credential>,
    /// What the last server that was connected to reported: connections that report the same share it.
    reported: Mutex<Params>,
    stats: Arc<PoolStats>,
    node_stats: Arc<NodeStats>,
    pools: Weak<Pools>,
}

impl Pools {
    pub(crate) fn new(config: Arc<ArcSwap<Config>>, topology: Arc<ArcSwap<Topology>>, tls: Connector, stats: Arc<Stats>) -> Arc<Pools> {
        let processes = Processes::default();
        Arc::new(Pools {
            pools: RwLock::default(),
            nodes: RwLock::default(),
            processes,
            config,
            topology,
            tls: ArcSwap::from_pointee(tls),
            stats,
            newest: NewestLogins::default(),
            retiring: tokio::sync::Mutex::default(),
        })
    }

    /// The pool of `key`, made where there is none.
    pub(crate) fn pool(self: &Arc<Pools>, key: Key, credential: &Arc<Credential>) -> Arc<Pool> {
        if let Some(pool) = self.pools.read().get(&key) {
            return pool.clone();
        }
        let node = self.nodes.write().entry(key.node.clone()).or_default().clone();
        self.pools
            .write()
            .entry(key.clone())
            .or_insert_with(|| {
                Arc::new(Pool {
                    node_stats: self.stats.node(&key.node),
                    stats: self.stats.pool(&key.name()),
                    key,
                    book: Mutex::default(),
                    node,
                    credential: ArcSwap::new(credential.clone()),
                    reported: Mutex::default(),
                    pools: Arc::downgrade(self),
                })
            })
            .clone()
    }

    /// Closes what is idle in a database, and for a while what comes back from it, on every node.
    pub(crate) fn leave(&self, database: &str) {
        for pool in self.all().into_iter().filter(|pool| *pool.key.database == *database) {
            let idle = {
                let mut book = pool.book.lock();
                book.leaving_until = Some(Instant::now() + LEAVING);
                std::mem::take(&mut book.idle)
            };
            pool.discard_all(idle);
        }
    }

    fn all(&self) -> Vec<Arc<Pool>> {
        self.pools.read().values().cloned().collect()
    }

    /// Closes leader connections of other epochs, leased ones included, and whatever belongs to members that have gone.
    pub(crate) fn topology_changed(&self, topology: &Topology) {
        for pool in self.all() {
            let member = topology.member(&pool.key.node).is_some();
            let handles: Vec<_> = pool.book.lock().handles.values().cloned().collect();
            for handle in handles {
                if !member || (handle.role == ServerRole::Leader && handle.epoch != topology.epoch) {
                    handle.kill();
                }
            }
            pool.sweep(Instant::now());
        }
    }

    /// Connections to a member that sessions use, or that are cleaned up after one.
    pub(crate) fn busy(&self, node: &str) -> usize {
        let busy = |pool: &Arc<Pool>| {
            let book = pool.book.lock();
            book.handles.len().saturating_sub(book.idle.len())
        };
        self.all().iter().filter(|pool| *pool.key.node == *node).map(busy).sum()
    }

    /// Closes what rests in the pools of a member.
    pub(crate) fn close_idle(&self, node: &str) {
        for pool in self.all().iter().filter(|pool| *pool.key.node == *node) {
            let idle = std::mem::take(&mut pool.book.lock().idle);
            pool.discard_all(idle);
        }
    }

    /// Closes what is too old or unused, and forgets pools without connections. Tells connections of replicas that hang.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let topology = self.topology.load();
        for pool in self.all() {
            if pool.key.role == ServerRole::Replica {
                let silent = is_silent(&topology, &pool.key.node, now);
                pool.book.lock().handles.values().for_each(|handle| handle.tell_silent(silent));
            }
            pool.sweep(now);
        }
        self.close_superseded();
        let mut pools = self.pools.write();
        let mut gone = Vec::new();
        pools.retain(|key, pool| {
            // A session that is about to use the pool holds it, too.
            let book = pool.book.lock();
            let unused = book.open == 0 && book.waiting.is_empty() && Arc::strong_count(pool) == 1;
            if unused {
                gone.push(key.name());
            }
            !unused
        });
        if !gone.is_empty() {
            let left: FxHashSet<PoolName> = pools.keys().map(Key::name).collect();
            gone.iter().filter(|name| !left.contains(name)).for_each(|name| self.stats.remove_pool(name));
            self.newest.forget_others(&left);
        }
    }
}

/// Whether a member has answered no probe for as long as TCP takes to find a dead host.
pub(crate) fn is_silent(topology: &Topology, node: &str, now: Instant) -> bool {
    let Some(member) = topology.member(node) else { return false };
    let since = member.probed.as_ref().map(|probed| now.saturating_duration_since(probed.sent_at));
    member.probe_error.is_some() && since.is_some_and(|since| since >= SERVER_USER_TIMEOUT)
}

/// What asking for a lease gives at once.
pub(crate) enum Acquired {
    Now(Lease),
    /// A connection must be opened, or waited for: see [`Waiting::lease`].
    Later(Waiting),
}

/// A lease that takes time.
pub(crate) struct Waiting {
    pool: Arc<Pool>,
    wanted: Wanted,
    offer: Expected,
    arriving: Arriving,
}

enum Expected {
    Permit(Permit),
    /// There is room, but enough others open connections at this moment.
    Crowd(oneshot::Receiver<Offer>),
    Turn(oneshot::Receiver<Offer>),
}

impl Waiting {
    /// Waits for its turn, opens a connection where that is what it got. Cancel-safe: dropped, it gives back what it had.
    pub(crate) async fn lease(self) -> Result<Lease, LeaseError> {
        // A lease counts from its beginning: until it is there, this does.
        let Waiting { pool, wanted, mut offer, arriving: _arriving } = self;
        if let Expected::Crowd(turn) = &mut offer {
            let mut given = tokio::time::timeout(OPENING_WAIT, &mut *turn).await.ok().and_then(Result::ok);
            if given.is_none() {
                // One that was sent in this very moment counts.
                turn.close();
                given = turn.try_recv().ok();
            }
            match given {
                Some(Offer::Permit(permit)) => offer = Expected::Permit(permit),
                Some(Offer::Lease(lease)) => match fits(lease, &wanted) {
                    Ok(lease) => return Ok(lease),
                    Err(permit) => offer = Expected::Permit(permit),
                },
                None => match pool.acquire_from(wanted.clone(), usize::MAX) {
                    Acquired::Now(lease) => return Ok(lease),
                    Acquired::Later(waiting) => offer = waiting.offer,
                },
            }
        }
        let pools = pool.pools.upgrade().ok_or(LeaseError::Gone)?;
        let permit = match offer {
            Expected::Permit(permit) => permit,
            Expected::Crowd(turn) | Expected::Turn(turn) => {
                let timeout = pools.config.load().pool.wait_timeout;
                let started = Instant::now();
                let waiting = Counted::new(&pool.stats);
                let given = tokio::time::timeout(timeout, turn).await;
                drop(waiting);
                let us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                pool.stats.wait_us_total.add(us);
                match given {
                    Ok(Ok(Offer::Lease(lease))) => match fits(lease, &wanted) {
                        Ok(lease) => return Ok(lease),
                        Err(permit) => permit,
                    },
                    Ok(Ok(Offer::Permit(permit))) => permit,
                    Ok(Err(_)) => return Err(LeaseError::Gone),
                    Err(_) => return Err(LeaseError::Timeout(timeout)),
                }
            }
        };
        // A login's state is large, and most who wait need none.
        Box::pin(pool.open(permit, &pools, wanted.epoch, wanted.begins.as_ref())).await
    }
}

/// The lease, if it is of use to whoever waited; otherwise its place in the pool, for a new connection.
fn fits(mut lease: Lease, wanted: &Wanted) -> Result<Lease, Permit> {
    let server = lease.server();
    let current = server.state.role == ServerRole::Replica || server.state.epoch == wanted.epoch;
    let clean = (!wanted.fresh || server.state.fresh) && wanted.begins.is_none() && wanted.may_see(&server.state);
    if current && clean && server.is_alive() { Ok(lease) } else { Err(lease.into_permit()) }
}

/// A session that was sent to a node and has no connection to it yet: part of the node's load all the same.
struct Arriving(Arc<NodeStats>);

impl Arriving {
    fn new(stats: &Arc<NodeStats>) -> Arriving {
        stats.waiting.up();
        Arriving(stats.clone())
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.waiting.down();
    }
}

/// A waiting client, counted while it waits.
struct Counted(Arc<PoolStats>);

impl Counted {
    fn new(stats: &Arc<PoolStats>) -> Counted {
        stats.waiting.up();
        stats.waits_total.add(1);
        Counted(stats.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.waiting.down();
    }
}

impl Pool {
    /// A connection for `client`: an idle one at once, else the right to open one, else a place in the waiting line. `fresh`: one that nobody has
    /// used, be it in the place of one that is closed for it; `known`: or one on which no other custom settings were set, likewise; `begins`: or
    /// one that is opened with these startup settings, likewise.
    pub(crate) fn acquire(
        self: &Arc<Pool>,
        client: &Weak<Slot>,
        epoch: Epoch,
        fresh: bool,
        known: Option<CustomNames>,
        begins: Option<Arc<Settings>>,
    ) -> Acquired {
        self.acquire_from(Wanted { client: client.clone(), epoch, fresh, known, begins }, OPENING_MAX)
    }

    /// `opening_max`: with so many being opened, others wait a moment for those.
    fn acquire_from(self: &Arc<Pool>, wanted: Wanted, opening_max: usize) -> Acquired {
        let Some(pools) = self.pools.upgrade() else { return self.never() };
        let config = pools.config.load();
        let mut dead = Vec::new();
        let mut book = self.book.lock();
        let room = book.open < config.pool.max_size;
        let found = book.take(&wanted, !room, &mut dead);
        let later = |offer| {
            Acquired::Later(Waiting { pool: self.clone(), wanted: wanted.clone(), offer, arriving: Arriving::new(&self.node_stats) })
        };
        let taken = |server| {
            self.stats_idle(1);
            let lease = self.lease(server);
            if wanted.is_new() { later(Expected::Permit(lease.into_permit())) } else { Acquired::Now(lease) }
        };
        let acquired = match found {
            Some(server) => {
                drop(book);
                taken(server)
            }
            None => {
                let may_open = book.open - dead.len() < config.pool.max_size;
                if may_open && book.opening >= opening_max {
                    let (sender, receiver) = oneshot::channel();
                    book.waiting.push_back(sender);
                    drop(book);
                    later(Expected::Crowd(receiver))
                } else if may_open && (self.node.take_slot(config.pool.max_per_node) || pools.evict_idle(self, &mut book)) {
                    let permit = self.permit(&mut book);
                    drop(book);
                    later(Expected::Permit(permit))
                } else if let Some(server) = book.take(&wanted, true, &mut dead) {
                    drop(book);
                    taken(server)
                } else if let Some(server) = book.take(&Wanted { known: None, ..wanted.clone() }, true, &mut dead) {
                    // Another one in its place.
                    drop(book);
                    self.stats_idle(1);
                    later(Expected::Permit(self.lease(server).into_permit()))
                } else {
                    let (sender, receiver) = oneshot::channel();
                    book.waiting.push_back(sender);
                    if may_open {
                        self.node.book.lock().starving.push_back(Arc::downgrade(self));
                    }
                    drop(book);
                    later(Expected::Turn(receiver))
                }
            }
        };
        self.stats_idle(dead.len());
        for server in dead {
            self.discard(server);
        }
        acquired
    }

    fn never(self: &Arc<Pool>) -> Acquired {
        let (_, receiver) = oneshot::channel();
        let (offer, arriving) = (Expected::Turn(receiver), Arriving::new(&self.node_stats));
        let wanted = Wanted { client: Weak::new(), epoch: Epoch(0), fresh: false, known: None, begins: None };
        Acquired::Later(Waiting { pool: self.clone(), wanted, offer, arriving })
    }

    /// The right to open one more, counted among those that are being opened.
    fn permit(self: &Arc<Pool>, book: &mut Book) -> Permit {
        book.open += 1;
        book.opening += 1;
        Permit { pool: Some(self.clone()), counted: true }
    }

    fn stats_idle(&self, taken: usize) {
        for _ in 0..taken {
            self.stats.idle.down();
        }
    }

    fn lease(self: &Arc<Pool>, server: Box<Server>) -> Lease {
        self.stats.in_use.up();
        self.node_stats.in_use.up();
        Lease { server: Some(server), pool: self.clone(), pinned: false }
    }

    async fn open(
        self: Arc<Pool>,
        permit: Permit,
        pools: &Pools,
        epoch: Epoch,
        begins: Option<&Arc<Settings>>,
    ) -> Result<Lease, LeaseError> {
        let server = self.connect(pools, epoch, begins).await?;
        if self.key.role == ServerRole::Leader && server.in_hot_standby() == Some(true) {
            return Err(LeaseError::InRecovery);
        }
        Ok(self.admit(pools, permit, server))
    }

    /// A connection that is nobody's yet, or only for the session whose startup settings it `begins` with.
    async fn connect(&self, pools: &Pools, epoch: Epoch, begins: Option<&Arc<Settings>>) -> Result<Server, LeaseError> {
        let newest = pools.newest.of(&self.key.database, &self.key.user);
        if newest.is_some_and(|newest| newest.standing.is_of_others(self.key.standing)) {
            return Err(LeaseError::OfOthers);
        }
        let (target, config, proven) = {
            let topology = pools.topology.load();
            let member = topology.member(&self.key.node).ok_or(LeaseError::Gone)?;
            let proven = self.key.role == ServerRole::Leader || newest.is_none_or(|newest| newest.is_shown_by(member));
            (Target::new(member.host.clone(), member.port), pools.config.load_full(), proven)
        };
        let begins = begins.and_then(|settings| Some((settings, settings.to_startup()?)));
        let mut parameters = begins.as_ref().map(|(_, parameters)| parameters.clone()).unwrap_or_default();
        if self.key.role == ServerRole::Replica {
            // The same connection would take writes after a promotion.
            parameters.push(("default_transaction_read_only".to_owned(), "on".to_owned()));
        }
        let credential = self.credential.load_full();
        let login = Login { user: &self.key.user, database: &self.key.database, credential: &credential, parameters: &parameters };
        let connected = crate::auth::connect(&target, &login, &pools.tls.load(), config.postgres.connect_timeout).await;
        let connected = connected.inspect_err(|error| {
            self.node_stats.connect_errors.add(1);
            tracing::debug!(node = %self.key.node, %error, "no server connection");
        })?;
        let mut server = Server::new(connected, target, self.key.node.clone(), self.key.role, epoch, config.pool.max_prepared);
        // Others may have the names by now, and nobody has logged in as them yet.
        let who = if self.key.standing.role == 0 { None } else { server.identity().await };
        if who.is_some_and(|(role, database)| self.key.standing.is_of_others(Standing { role, database, ..Standing::default() })) {
            server.close();
            return Err(LeaseError::OfOthers);
        }
        server.once = !proven || begins.is_some();
        if let Some((settings, _)) = begins {
            server.state.begins_with(settings);
        }
        Ok(server)
    }

    /// Takes a connection into the pool, in the place that `permit` has kept.
    fn admit(self: &Arc<Pool>, pools: &Pools, permit: Permit, mut server: Server) -> Lease {
        {
            let mut reported = self.reported.lock();
            server.state.params.share(&reported);
            *reported = server.state.params.clone();
        }
        if self.key.role == ServerRole::Leader {
            pools.processes.add(&server.handle);
        }
        self.book.lock().handles.insert(server.id, server.handle.clone());
        self.node_stats.connections.up();
        self.node_stats.connections_total.add(1);
        permit.used();
        self.lease(Box::new(server))
    }

    /// Closes a connection of this pool, and lets somebody else have its place.
    fn discard(self: &Arc<Pool>, server: Box<Server>) {
        self.forget(&server);
        server.close();
        drop(Permit { pool: Some(self.clone()), counted: false });
    }

    /// Closes a connection that is of no use any more, and does so in its turn where its place isn't needed.
    fn retire(self: &Arc<Pool>, server: Box<Server>) {
        let (Some(pools), Ok(runtime)) = (self.pools.upgrade(), tokio::runtime::Handle::try_current()) else {
            return self.discard(server);
        };
        let wanted = !self.book.lock().waiting.is_empty();
        if wanted || 2 * self.node.book.lock().open > pools.config.load().pool.max_per_node {
            return self.discard(server);
        }
        self.forget(&server);
        let place = Permit { pool: Some(self.clone()), counted: false };
        runtime.spawn(async move {
            let _turn = pools.retiring.lock().await;
            tokio::time::sleep(RETIRING_GAP).await;
            server.close();
            drop(place);
        });
    }

    /// Closes connections that have rested.
    fn discard_all(self: &Arc<Pool>, idle: Vec<Box<Server>>) {
        self.stats_idle(idle.len());
        for server in idle {
            self.discard(server);
        }
    }

    /// Whether an operator has taken the member out: nothing rests there then.
    fn is_drained(&self, pools: &Pools) -> bool {
        self.key.role == ServerRole::Replica
            && pools.topology.load().member(&self.key.node).is_some_and(|member| member.out == Some(Out::Drained))
    }

    fn forget(&self, server: &Server) {
        self.book.lock().handles.remove(&server.id);
        self.node_stats.connections.down();
    }

    fn sweep(self: &Arc<Pool>, now: Instant) {
        let Some(pools) = self.pools.upgrade() else { return };
        if self.is_drained(&pools) {
            let idle = std::mem::take(&mut self.book.lock().idle);
            return self.discard_all(idle);
        }
        let config = pools.config.load();
        let expired = self.book.lock().expired(now, config.pool.idle_timeout, config.pool.max_lifetime, config.pool.min_size);
        self.discard_all(expired);
        let missing = if pools.newest.supersedes(&self.key) {
            0
        } else {
            let book = self.book.lock();
            let leaving = book.leaving_until.is_some_and(|until| now < until);
            if leaving { 0 } else { config.pool.min_size.saturating_sub(book.open) }
        };
        for _ in 0..missing {
            if !self.node.take_slot(config.pool.max_per_node) {
                break;
            }
            self.book.lock().open += 1;
            let (pool, pools, permit) = (self.clone(), pools.clone(), Permit { pool: Some(self.clone()), counted: false });
            tokio::spawn(async move {
                let epoch = pools.topology.load().epoch;
                if let Ok(lease) = pool.open(permit, &pools, epoch, None).await {
                    lease.give_back();
                }
            });
        }
    }

    /// A clean connection comes back: the next client in line gets it, or it rests.
    fn put(self: &Arc<Pool>, mut server: Box<Server>) {
        server.idle_since = Instant::now();
        server.state.fresh = false;
        let max_size = self.pools.upgrade().map_or(0, |pools| pools.config.load().pool.max_size);
        let mut book = self.book.lock();
        let leaving = book.leaving_until.is_some_and(|until| server.idle_since < until);
        if leaving || server.once || book.open > max_size {
            // The database is to be left alone, nobody else may get it, or others took its place while a session kept
            // it for itself.
            drop(book);
            return self.discard(server);
        }
        while let Some(turn) = book.waiting.pop_front() {
            if turn.is_closed() {
                continue;
            }
            drop(book);
            let offer = Offer::Lease(self.lease(server));
            // A client that gave up in this very moment drops the lease, and with it the connection; the next in line opens another.
            let _ = turn.send(offer);
            return;
        }
        if self.node.has_starving() {
            drop(book);
            return self.discard(server);
        }
        book.idle.push(server);
        drop(book);
        self.stats.idle.up();
    }

    /// A place is free: for the next in line here, or for a starving pool of the same node.
    fn place_freed(self: &Arc<Pool>) {
        let Some(pools) = self.pools.upgrade() else { return };
        let config = pools.config.load();
        loop {
            let mut book = self.book.lock();
            if book.open >= config.pool.max_size || (book.opening >= OPENING_MAX && !book.waiting.is_empty()) {
                return;
            }
            let Some(turn) = book.waiting.pop_front() else { break };
            if turn.is_closed() {
                continue;
            }
            if !self.node.take_slot(config.pool.max_per_node) {
                book.waiting.push_front(turn);
                self.node.book.lock().starving.push_back(Arc::downgrade(self));
                return;
            }
            let permit = self.permit(&mut book);
            drop(book);
            let _ = turn.send(Offer::Permit(permit));
            return;
        }
        let starving = self.node.book.lock().starving.pop_front();
        if let Some(pool) = starving.and_then(|pool| pool.upgrade()).filter(|pool| !Arc::ptr_eq(pool, self)) {
            pool.place_freed();
        }
    }
}

impl Pools {
    /// Closes the longest idle connection of another pool of the same node, and takes its place under the cap.
    fn evict_idle(&self, hungry: &Arc<Pool>, _held: &mut Book) -> bool {
        for pool in self.all() {
            if Arc::ptr_eq(&pool, hungry) || pool.key.node != hungry.key.node {
                continue;
            }
            // Another session may hold that lock and wait for ours: never wait here.
            let Some(mut book) = pool.book.try_lock() else { continue };
            if book.idle.is_empty() {
                continue;
            }
            let server = book.idle.remove(0);
            book.open -= 1;
            book.handles.remove(&server.id);
            drop(book);
            pool.stats_idle(1);
            pool.node_stats.connections.down();
            server.close();
            return true;
        }
        false
    }
}

impl Node {
    fn take_slot(&self, max: usize) -> bool {
        let mut book = self.book.lock();
        if book.open >= max {
            return false;
        }
        book.open += 1;
        true
    }

    fn has_starving(&self) -> bool {
        let mut book = self.book.lock();
        book.starving.retain(|pool| pool.strong_count() > 0);
        !book.starving.is_empty()
    }
}

/// The right to open a connection: a place in the pool and under the node's cap.
#[must_use]
pub(crate) struct Permit {
    pool: Option<Arc<Pool>>,
    /// Among those that are being opened.
    counted: bool,
}

impl Permit {
    /// The connection is open: from now on it holds the place.
    fn used(mut self) {
        let Some(pool) = self.pool.take() else { return };
        if self.counted {
            pool.book.lock().opening -= 1;
            // Whoever waits for that opens the next.
            pool.place_freed();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(pool) = self.pool.take() else { return };
        let mut book = pool.book.lock();
        book.open -= 1;
        book.opening -= usize::from(self.counted);
        drop(book);
        pool.node.book.lock().open -= 1;
        pool.place_freed();
    }
}

/// The right to use a server connection. Dropped, it closes the connection.
#[must_use]
pub(crate) struct Lease {
    /// `None` only while the lease is being taken apart.
    server: Option<Box<Server>>,
    pool: Arc<Pool>,
    /// Not counted by the pool, only by the node.
    pinned: bool,
}

impl Lease {
    pub(crate) fn server(&mut self) -> &mut Server {
        self.server.as_mut().expect("a lease holds its server until it is consumed")
    }

    pub(crate) fn state(&mut self) -> &mut ServerState {
        &mut self.server().state
    }

    pub(crate) fn node_stats(&self) -> &Arc<NodeStats> {
        &self.pool.node_stats
    }

    /// A session keeps the connection for itself: its place in the pool is free for others, so that pinned sessions can't starve those that they
    /// wait for. The node's cap goes on counting it.
    pub(crate) fn pin(&mut self) {
        if !std::mem::replace(&mut self.pinned, true) {
            self.pool.book.lock().open -= 1;
            self.pool.place_freed();
        }
    }

    /// The pool counts it again, if need be beyond its maximum.
    pub(crate) fn unpin(&mut self) {
        if std::mem::take(&mut self.pinned) {
            self.pool.book.lock().open += 1;
        }
    }

    /// Gives a connection back. One with a transaction still open is rolled back first, one that owes something or is tainted is closed.
    pub(crate) fn give_back(mut self) {
        let Some(mut server) = self.server.take() else { return };
        self.unlease();
        let pool = self.pool.clone();
        let promoted = server.state.role == ServerRole::Replica && server.in_hot_standby() == Some(false) && !pool.serves_fallback();
        if server.handle.is_killed() {
            return pool.discard(server);
        }
        if !server.state.ready {
            // A client left in the middle of a statement: what runs is canceled, or the server would work on for nobody.
            pool.cancel_and_discard(server);
            return;
        }
        if server.state.tainted {
            return pool.discard(server);
        }
        if promoted {
            return pool.retire(server);
        }
        if server.state.tx != TxStatus::Idle || server.handle.is_being_canceled() {
            tokio::spawn(async move {
                server.handle.clone().cancels_over().await;
                if server.clean().await { pool.put(server) } else { pool.discard(server) }
            });
            return;
        }
        pool.put(server);
    }

    fn unlease(&mut self) {
        self.unpin();
        self.pool.stats.in_use.down();
        self.pool.node_stats.in_use.down();
    }

    /// Closes the connection and keeps its place.
    fn into_permit(mut self) -> Permit {
        if let Some(server) = self.server.take() {
            self.unlease();
            self.pool.forget(&server);
            server.close();
        }
        Permit { pool: Some(self.pool.clone()), counted: false }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.unlease();
            if server.state.ready { self.pool.discard(server) } else { self.pool.cancel_and_discard(server) }
        }
    }
}

impl Pool {
    fn cancel_and_discard(self: &Arc<Pool>, server: Box<Server>) {
        let (Some(pools), Ok(runtime)) = (self.pools.upgrade(), tokio::runtime::Handle::try_current()) else {
            return self.discard(server);
        };
        let pool = self.clone();
        runtime.spawn(async move {
            if !server.handle.is_killed() {
                server.handle.begin_cancel().send(&pools.tls.load_full()).await;
            }
            pool.discard(server);
        });
    }

    /// Whether this is the leader's own pool for the read-only port.
    fn serves_fallback(&self) -> bool {
        let Some(pools) = self.pools.upgrade() else { return false };
        let topology = pools.topology.load();
        topology.leader.as_ref().and_then(|leader| topology.members.get(leader.member)).is_some_and(|member| member.name == self.key.node)
    }
}
