//! One client's task: moves bytes between its sockets and its [`Session`], and gets the session what it wants.
//!
//! Invariant: the only place that waits. The session decides; nothing here looks into a message.
//! An idle client holds neither buffers nor a server connection.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use switchyard_core::refusal::Refusal;
use switchyard_core::route::{Need, ServerRole, Why};
use switchyard_core::session::{CancelKey, Env, Pins, Policy, Session, Settings, TO_CLIENT_MAX, Want, Work};
use switchyard_core::sql::Verdict;
use switchyard_core::sql::shown::without_literals;
use switchyard_core::topology::{Epoch, Topology};
use switchyard_health::Health;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use crate::auth::backend::AuthError;
use crate::auth::{ConnectError, Identity};
use crate::clients::Registered;
use crate::context::Context;
use crate::decisions::{Decided, Decisions, TEXT_MAX};
use crate::facts::{Database, Quiet};
use crate::pool::{Acquired, Key, Lease, LeaseError, Pool, is_silent};
use crate::rules::SessionRules;
use crate::stats::{Pinned, Port};
use crate::stream::Stream;

/// Room for one read of a socket, in bytes.
const READ_BYTES: usize = 16 * 1024;
/// What may have been read from a client and not been taken, in bytes, unless a single message is larger.
const CLIENT_IN_MAX: usize = 256 * 1024;
/// Buffers larger than this aren't kept for the next client.
const SPARE_BYTES_MAX: usize = 64 * 1024;
/// Sets of buffers kept by each worker thread.
const SPARES_MAX: usize = 32;
/// Between two attempts to reach a leader that doesn't accept connections yet.
const LEADER_RETRY: Duration = Duration::from_millis(20);
/// Between two looks at the topology in the hold line, where nothing says that it has changed.
const HOLD_LOOK: Duration = Duration::from_millis(100);

/// Pools that a session remembers: members in both roles, and some that have gone.
const POOLS_KNOWN_MAX: usize = 64;
/// Databases that statements not written yet want for themselves; beyond, the server says itself who is still there.
const ALONE_IN_MAX: usize = 16;
/// What the log shows of a slow statement, in bytes.
const SLOW_TEXT_MAX: usize = 1024;
/// Of answers to a client that has said goodbye and reads no more, in bytes: what it has sent is run all the same,
/// but not without an end.
const UNHEARD_MAX: usize = 1024 * 1024;

thread_local! {
    static SPARES: RefCell<Vec<Box<Work>>> = const { RefCell::new(Vec::new()) };
}

fn spare_work() -> Box<Work> {
    SPARES.with_borrow_mut(Vec::pop).unwrap_or_default()
}

fn keep_work(mut work: Box<Work>) {
    for buffer in [&mut work.client_in, &mut work.server_in, &mut work.to_client, &mut work.to_server] {
        if buffer.capacity() > SPARE_BYTES_MAX {
            *buffer = Vec::new();
        }
    }
    SPARES.with_borrow_mut(|spares| {
        if spares.len() < SPARES_MAX {
            spares.push(work);
        }
    });
}

/// A client that has logged in.
pub(crate) struct Client {
    context: Arc<Context>,
    policy: Arc<Policy>,
    port: Port,
    identity: Arc<Identity>,
    database: Arc<Database>,
    rules: SessionRules,
    slot: Registered,
    stream: Stream,
    session: Session,
    work: Option<Box<Work>>,
    lease: Option<Lease>,
    /// Bytes of `to_client` and of `to_server` that are written already.
    client_written: usize,
    server_written: usize,
    /// Bytes of answers that a client which has left could not be told any more.
    unheard: usize,
    running: Option<Running>,
    refused: Option<Refused>,
    /// The pools that it has used, so that the way of a query takes no lock that all sessions share.
    pools: Vec<(Arc<str>, ServerRole, Arc<Pool>)>,
    random: u64,
    waiting: Option<Pin<Box<dyn Future<Output = Waited> + Send>>>,
    /// The generation of the snapshot that the session decided by last.
    seen: u64,
    held_since: Option<Instant>,
    unreachable: Option<Unreachable>,
    /// Since when a read waits for a replica, or for the leader's position.
    sample_since: Option<Instant>,
    pins_shown: Pins,
    /// While a VACUUM of the client's runs.
    quiet: Option<Quiet>,
    /// While a statement waits to be written that wants databases for itself.
    leaving: Option<Box<Leaving>>,
    closing: bool,
}

/// What is idle in databases is closed, if the client may ask for that.
struct Leaving {
    done: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Others that came up meanwhile.
    next: Vec<Arc<str>>,
}

/// What a lease is being used for.
struct Running {
    why: Why,
    since: Instant,
    /// The beginning of its first statement, where slow ones are logged.
    text: Option<Box<str>>,
    /// Where its first statement is counted.
    decided: Option<Arc<Decided>>,
    /// A server has answered with an error.
    failed: bool,
}

/// A statement, alone in its batch, that a replica has refused.
struct Refused {
    verdict: Arc<Verdict>,
    sqlstate: [u8; 5],
}

/// A leader in force that a moment ago let nobody in. Until it is tried again, its client's session decides as if nobody led: what a replica
/// can serve takes no place in the line of those who need a leader.
#[derive(Clone, Copy)]
struct Unreachable {
    epoch: Epoch,
    until: Instant,
}

impl Unreachable {
    fn is_meant(self, topology: &Topology) -> bool {
        let now = Instant::now();
        now < self.until && topology.leader_at(now).is_some_and(|(leader, _)| leader.epoch == self.epoch)
    }
}

/// What the session waited for.
enum Waited {
    Leased(Need, Result<Lease, LeaseError>),
    Quiet(Need, Quiet),
    /// Whether the server that has ended the connection goes away.
    Departed(bool),
    TopologyChanged,
    HoldTimedOut,
}

enum Event {
    Client(io::Result<usize>),
    Server(io::Result<usize>),
    /// Writing to the client failed: it is gone.
    ClientGone,
    ServerKilled,
    Waited(Waited),
    Canceled,
    Ending,
    /// Everything is written; only told when something waits for it.
    Flushed,
}

impl Client {
    pub(crate) fn new(
        context: Arc<Context>,
        policy: Arc<Policy>,
        port: Port,
        identity: Identity,
        slot: Registered,
        key: CancelKey,
        stream: Stream,
    ) -> Client {
        let startup = Settings::from_startup(identity.settings.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
        let database = context.verdicts.databases.of(&identity.database);
        Client {
            context,
            policy,
            port,
            identity: Arc::new(identity),
            database,
            rules: SessionRules::default(),
            slot,
            stream,
            session: Session::new(startup, key),
            work: None,
            lease: None,
            client_written: 0,
            server_written: 0,
            unheard: 0,
            running: None,
            refused: None,
            pools: Vec::new(),
            random: rand::random(),
            waiting: None,
            seen: 0,
            held_since: None,
            unreachable: None,
            sample_since: None,
            pins_shown: Pins::default(),
            quiet: None,
            leaving: None,
            closing: false,
        }
    }

    /// Serves the client until one side is gone.
    pub(crate) async fn run(&mut self) {
        self.with_session(|session, env, work, _| session.returned(env, work));
        loop {
            self.satisfy();
            if self.closing && self.nothing_to_write() {
                break;
            }
            let event = poll_fn(|cx| self.poll_event(cx)).await;
            if !self.handle(event) {
                break;
            }
        }
    }

    fn nothing_to_write(&self) -> bool {
        self.work.as_ref().is_none_or(|work| work.to_client.is_empty())
    }

    /// Calls into the session with the world as it is now.
    fn with_session(&mut self, call: impl FnOnce(&mut Session, &Env<'_>, &mut Work, Option<&mut switchyard_core::session::ServerState>)) {
        let loaded = self.context.health.topology.load();
        let leaderless;
        let topology = if self.unreachable.is_some_and(|unreachable| unreachable.is_meant(&loaded)) {
            leaderless = loaded.without_leader();
            &leaderless
        } else {
            &**loaded
        };
        self.seen = topology.generation;
        self.rules.refresh(&self.context.verdicts.rules, &self.identity.user, &self.identity.database);
        let application = if self.rules.ask_for_application() { self.session.told("application_name").map(Box::from) } else { None };
        let alone_in = RefCell::default();
        let env = Env {
            now: Instant::now(),
            topology,
            loads: &self.context.loads,
            marks: self.database.marks(),
            judge: &self.context.verdicts.of(&self.database, &self.rules, application, &alone_in),
            policy: &self.policy,
            voices: &self.context.pools.processes,
            random: next_random(&mut self.random),
        };
        let work = self.work.get_or_insert_with(spare_work);
        call(&mut self.session, &env, work, self.lease.as_mut().map(Lease::state));
        if !work.tally.is_empty() {
            self.count();
        }
        drop(loaded);
        self.leave(alone_in.into_inner());
    }

    /// Has the router leave databases, if this client's role may have them for itself. Nothing is written to its
    /// server until that is done.
    fn leave(&mut self, mut databases: Vec<Arc<str>>) {
        if databases.is_empty() {
            return;
        }
        databases.truncate(ALONE_IN_MAX);
        let Some(leaving) = &mut self.leaving else {
            let (context, identity) = (self.context.clone(), self.identity.clone());
            let done = Box::pin(async move {
                let all = &context.verdicts.databases;
                all.leave_for(&identity.user, identity.standing.role, &databases).await;
            });
            self.leaving = Some(Box::new(Leaving { done, next: Vec::new() }));
            return;
        };
        for database in databases {
            if leaving.next.len() < ALONE_IN_MAX && !leaving.next.contains(&database) {
                leaving.next.push(database);
            }
        }
    }

    /// Ready once what is to be written may be.
    fn poll_left(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        while let Some(leaving) = &mut self.leaving {
            ready!(leaving.done.as_mut().poll(cx));
            let next = std::mem::take(&mut leaving.next);
            self.leaving = None;
            self.leave(next);
        }
        Poll::Ready(())
    }

    /// Gets the session what it wants, as far as that can be had at once.
    fn satisfy(&mut self) {
        while let Some(want) = self.session.take_want(self.work.as_deref()) {
            match want {
                Want::Lease(need) => self.ask_for(need),
                Want::Hold => self.hold(),
                Want::Sample => self.await_sample(),
                Want::Departure(node) => {
                    let context = self.context.clone();
                    self.waiting =
                        Some(Box::pin(
                            async move { Waited::Departed(context.departures.leaves(&node, &context.health, &context.pools).await) },
                        ));
                }
                Want::Return => {
                    self.give_back();
                    self.with_session(|session, env, work, _| session.returned(env, work));
                }
                Want::Close => {
                    self.closing = true;
                    self.lease = None;
                    self.waiting = None;
                }
                Want::Leave => {
                    self.closing = true;
                    self.let_go();
                    break;
                }
            }
        }
        if self.pins_shown != self.session.pins() {
            self.show_pins();
        }
        if let Some(lease) = &mut self.lease {
            if self.session.pins().are_its_own() { lease.pin() } else { lease.unpin() }
        }
    }

    fn ask_for(&mut self, need: Need) {
        self.context.health_demand(&need);
        let work = self.work.as_deref();
        if need.role == ServerRole::Leader && self.quiet.is_none() && work.is_some_and(Work::vacuums) {
            self.quiet = self.database.quiet_now();
            if self.quiet.is_none() {
                let quiet = self.database.quiet();
                self.waiting = Some(Box::pin(async move { Waited::Quiet(need, quiet.await) }));
                return;
            }
        }
        let fresh = need.role == ServerRole::Leader && self.work.as_deref().is_some_and(Work::needs_fresh);
        let known = self.work.as_deref().and_then(|work| self.session.known_custom_settings(&self.policy, work));
        let begins = self.work.as_deref().and_then(|work| self.session.beginning(work)).cloned();
        let pool = self.pool(&need.node, need.role);
        match pool.acquire(&self.slot.weak(), need.epoch, fresh, known, begins) {
            Acquired::Now(lease) => self.leased(&need, lease),
            Acquired::Later(waiting) => {
                let health = self.context.health.clone();
                self.waiting = Some(Box::pin(async move {
                    tokio::select! {
                        biased;
                        lease = waiting.lease() => Waited::Leased(need, lease),
                        // A server that hangs keeps nobody from the one in its place.
                        () = outdated(&health, &need) => Waited::TopologyChanged,
                    }
                }));
            }
        }
    }

    fn pool(&mut self, node: &Arc<str>, role: ServerRole) -> Arc<Pool> {
        if let Some((_, _, pool)) = self.pools.iter().find(|(known, used_as, _)| *used_as == role && known == node) {
            return pool.clone();
        }
        if self.pools.len() == POOLS_KNOWN_MAX {
            self.pools.clear();
        }
        let Identity { database, user, standing, edition, .. } = &*self.identity;
        let (database, user, standing, edition) = (database.clone(), user.clone(), *standing, *edition);
        let key = Key { node: node.clone(), role, database, user, standing, edition };
        let pool = self.context.pools.pool(key, &self.identity.credential);
        self.pools.push((node.clone(), role, pool.clone()));
        pool
    }

    fn leased(&mut self, need: &Need, mut lease: Lease) {
        let topology = self.context.health.topology.load();
        let Some(member) = topology.member(&need.node).cloned() else {
            lease.give_back();
            return self.lease_failed(need, &LeaseError::Gone);
        };
        drop(topology);
        if need.role == ServerRole::Leader {
            lease.node_stats().sessions.came(self.slot.id);
        }
        if let Some(since) = self.held_since {
            tracing::debug!(node = %need.node, ms = since.elapsed().as_millis(), "held no longer");
        }
        self.end_hold();
        self.end_sample_wait();
        self.unreachable = None;
        self.server_written = 0;
        let slow = self.context.config.load().log.slow_query.is_some();
        let text = self.work.as_ref().filter(|_| slow).and_then(|work| work.first_text());
        self.running = Some(Running {
            why: need.why,
            since: Instant::now(),
            text: text.map(|text| String::from_utf8_lossy(&text[..text.len().min(SLOW_TEXT_MAX)]).into()),
            decided: self.work.as_deref().and_then(|work| decided(&self.context.stats.decisions, work, need.why)),
            failed: false,
        });
        if need.role == ServerRole::Leader && matches!(need.why, Why::NotCaughtUp | Why::NoReplica | Why::Rerun | Why::Hint | Why::InDoubt)
        {
            self.context.stats.leader_read(need.why.as_str());
        }
        let pid = lease.server().handle.pid();
        if need.role == ServerRole::Leader && self.session.is_starting() && self.slot.adopt(pid) {
            // What `pg_backend_pid()` gives as long as the pool has room for it to keep this connection.
            self.session.tell_pid(pid);
        }
        self.slot.hold(&lease.server().handle);
        self.lease = Some(lease);
        self.with_session(|session, env, work, server| {
            if let Some(server) = server {
                session.granted(env, work, server, member);
            }
        });
    }

    fn lease_failed(&mut self, need: &Need, error: &LeaseError) {
        self.quiet = None;
        let node = need.node.to_string();
        match error {
            LeaseError::Timeout(waited) => {
                let refusal = Refusal::PoolTimeout { waited: *waited, node };
                self.with_session(|session, _, work, _| session.denied(work, &refusal));
            }
            LeaseError::OfOthers => {
                let refusal = Refusal::LoginOutdated { user: self.identity.user.to_string(), database: self.identity.database.to_string() };
                self.with_session(|session, _, work, _| session.denied(work, &refusal));
            }
            LeaseError::Connect(error) if need.role == ServerRole::Replica && refuses_login(error) => {
                // It may not know the newest password yet; the leader has the last word.
                let refusal = Refusal::ServerUnreachable { node, detail: error.to_string() };
                self.with_session(|session, env, work, _| session.unreachable(env, work, &need.node, &refusal));
            }
            LeaseError::Connect(ConnectError::Auth(AuthError::Scram(_))) => {
                let refusal = Refusal::KeyOutdated { user: self.identity.user.to_string() };
                self.with_session(|session, _, work, _| session.denied(work, &refusal));
            }
            LeaseError::Connect(ConnectError::Auth(_)) => {
                let refusal = Refusal::NoServerKey { user: self.identity.user.to_string() };
                self.with_session(|session, _, work, _| session.denied(work, &refusal));
            }
            LeaseError::Connect(ConnectError::Server { sqlstate, raw, .. }) if !leaving(sqlstate) => {
                // What the server says of this user and database is what the client would have been told.
                self.work.get_or_insert_with(spare_work).to_client.extend_from_slice(raw);
                self.context.stats.port(self.port).errors.add(1);
                self.closing = true;
            }
            error if need.role == ServerRole::Leader => {
                // The leader that is believed in doesn't answer: the statement was not sent. What doesn't need it goes to a replica.
                tracing::debug!(%node, %error, "the leader can't be reached");
                self.context.health.poke();
                self.unreachable = Some(Unreachable { epoch: need.epoch, until: Instant::now() + LEADER_RETRY });
                self.with_session(|session, env, work, _| session.decide_again(env, work));
            }
            error => {
                let refusal = Refusal::ServerUnreachable { node, detail: error.to_string() };
                self.with_session(|session, env, work, _| session.unreachable(env, work, &need.node, &refusal));
            }
        }
    }

    /// Waits in line for a leader (or a replica that is fresh enough).
    fn hold(&mut self) {
        self.end_sample_wait();
        let config = self.context.config.load();
        let now = Instant::now();
        if self.held_since.is_none() {
            if self.context.stats.held.value() >= i64::try_from(config.failover.hold_max).unwrap_or(i64::MAX) {
                let refusal = Refusal::HoldLineFull { limit: config.failover.hold_max };
                drop(config);
                return self.with_session(|session, _, work, _| session.denied(work, &refusal));
            }
            self.held_since = Some(now);
            self.context.stats.held.up();
            self.context.stats.held_total.add(1);
        }
        let until = self.held_since.unwrap_or(now) + config.failover.hold_timeout;
        // While nobody leads, members are probed all the time: writes needn't ask for that, nor look at each answer.
        let samples = !self.session.waits_for_leader();
        let retries = self.unreachable.is_some_and(|unreachable| now < unreachable.until);
        let news = self.news(if retries { LEADER_RETRY } else { HOLD_LOOK }, samples);
        if samples {
            self.context.health.demand();
        }
        self.waiting = Some(Box::pin(async move {
            tokio::select! {
                () = news => Waited::TopologyChanged,
                () = tokio::time::sleep_until(until.into()) => Waited::HoldTimedOut,
            }
        }));
    }

    /// Ends with the next change or, with `samples`, sample, that the session hasn't seen when it decided, and after `look_again` in any case.
    fn news(&self, look_again: Duration, samples: bool) -> impl Future<Output = ()> + use<> {
        let mut changed = self.context.health.changed();
        let mut sampled = self.context.health.sampled();
        // A snapshot is there before anybody is told of it, so what the session decides by next is no older than this.
        let newest = (*changed.borrow_and_update()).max(if samples { *sampled.borrow_and_update() } else { 0 });
        let missed = newest > self.seen;
        async move {
            if missed {
                return;
            }
            tokio::select! {
                Ok(()) = changed.changed() => {}
                Ok(()) = sampled.changed(), if samples => {}
                () = tokio::time::sleep(look_again) => {}
            }
        }
    }

    /// Waits for a sample of the leader that is asked for now, together with all others that wait for one.
    fn await_sample(&mut self) {
        self.sample_since.get_or_insert_with(Instant::now);
        let news = self.news(HOLD_LOOK, true);
        self.context.health.poke();
        self.waiting = Some(Box::pin(async move {
            news.await;
            Waited::TopologyChanged
        }));
    }

    fn end_sample_wait(&mut self) {
        if let Some(since) = self.sample_since.take() {
            self.context.stats.read_waited(since.elapsed());
        }
    }

    fn end_hold(&mut self) {
        if self.held_since.take().is_some() {
            self.context.stats.held.down();
        }
    }

    fn give_back(&mut self) {
        self.quiet = None;
        let Some(mut lease) = self.lease.take() else { return };
        self.slot.release();
        if let Some(running) = self.running.take() {
            let took = running.since.elapsed();
            self.context.stats.latency(took);
            if let Some(decided) = &running.decided {
                decided.took(took);
            }
            self.learn(&running);
            if matches!(running.why, Why::FreshReplica | Why::AnyReplica) {
                lease.node_stats().observe(took);
            }
            if self.context.config.load().log.slow_query.is_some_and(|limit| took >= limit) {
                let (user, database, node) = (&*self.identity.user, &*self.identity.database, &*lease.state().node);
                tracing::warn!(?took, user, database, node, why = running.why.as_str(), statement = running.text, "slow");
            }
        }
        self.session.let_go(self.work.as_deref_mut(), lease.state());
        let its_own = self.session.has_affinity() || lease.server().handle.pid() == self.slot.told();
        lease.server().owner = its_own.then(|| self.slot.weak());
        lease.give_back();
    }

    /// The session ends, and nothing of it can be told any more. Nobody may inherit what a pinned one left; a
    /// transaction is rolled back, a running statement canceled.
    fn let_go(&mut self) {
        let Some(mut lease) = self.lease.take() else { return };
        self.slot.release();
        self.session.let_go(self.work.as_deref_mut(), lease.state());
        lease.state().tainted |= !self.session.pins().is_empty();
        lease.give_back();
    }

    /// Ready with the next thing that happened. Cancel-safe: what was read is in the buffers.
    fn poll_event(&mut self, cx: &mut TaskContext<'_>) -> Poll<Event> {
        self.slot.listen(cx);
        if self.slot.is_ending() && !self.closing && self.work.as_ref().is_none_or(|work| self.session.is_quiet(work)) {
            return Poll::Ready(Event::Ending);
        }
        if let Some(lease) = &mut self.lease {
            let server = lease.server();
            if server.handle.poll_killed(cx).is_ready() {
                return Poll::Ready(Event::ServerKilled);
            }
            if server.handle.is_silent() {
                let node = server.state.node.clone();
                let mut gives_up = false;
                self.with_session(|session, env, work, _| {
                    gives_up = is_silent(env.topology, &node, env.now) && session.would_run_again(env, work, &node);
                });
                if gives_up {
                    return Poll::Ready(Event::ServerKilled);
                }
            }
        } else if self.slot.take_cancel() && self.waiting.is_some() {
            return Poll::Ready(Event::Canceled);
        }
        if let Some(waiting) = &mut self.waiting
            && let Poll::Ready(waited) = waiting.as_mut().poll(cx)
        {
            self.waiting = None;
            return Poll::Ready(Event::Waited(waited));
        }
        if self.work.is_some() {
            if let Poll::Ready(event) = self.poll_write_server(cx) {
                return Poll::Ready(event);
            }
            // Before the answer so far is written: whatever else has come belongs to the same write.
            if let Poll::Ready(event) = self.poll_read_server(cx) {
                return Poll::Ready(event);
            }
            if let Poll::Ready(event) = self.poll_write_client(cx) {
                return Poll::Ready(event);
            }
        }
        self.poll_read_client(cx)
    }

    fn poll_write_server(&mut self, cx: &mut TaskContext<'_>) -> Poll<Event> {
        ready!(self.poll_left(cx));
        let (Some(work), Some(lease)) = (&mut self.work, &mut self.lease) else { return Poll::Pending };
        if work.to_server.is_empty() {
            return Poll::Pending;
        }
        let server = lease.server();
        if self.server_written == 0 {
            server.about_to_send(work.to_server.len());
        }
        let Poll::Ready(written) = poll_write_all(&mut server.stream, &work.to_server, &mut self.server_written, cx) else {
            server.is_full();
            return Poll::Pending;
        };
        match written {
            Ok(()) => {
                lease.node_stats().bytes_out.add(work.to_server.len() as u64);
                work.to_server.clear();
                self.server_written = 0;
                // There may be room again for what the client has sent.
                if work.client_in.is_empty() && !self.session.wants() { Poll::Pending } else { Poll::Ready(Event::Flushed) }
            }
            // What the server still has to say comes first; its end is seen by the read.
            Err(_) => {
                work.to_server.clear();
                self.server_written = 0;
                if self.session.wants() { Poll::Ready(Event::Flushed) } else { Poll::Pending }
            }
        }
    }

    fn poll_read_server(&mut self, cx: &mut TaskContext<'_>) -> Poll<Event> {
        let (Some(work), Some(lease)) = (&mut self.work, &mut self.lease) else { return Poll::Pending };
        if work.to_client.len() >= TO_CLIENT_MAX {
            return Poll::Pending;
        }
        make_room(&mut work.server_in);
        let read = ready!(poll_read_buf(Pin::new(&mut lease.server().stream), cx, &mut work.server_in));
        Poll::Ready(Event::Server(read))
    }

    fn poll_write_client(&mut self, cx: &mut TaskContext<'_>) -> Poll<Event> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        if work.to_client.is_empty() {
            return Poll::Pending;
        }
        match ready!(poll_write_all(&mut self.stream, &work.to_client, &mut self.client_written, cx)) {
            Ok(()) => self.context.stats.port(self.port).bytes_out.add(work.to_client.len() as u64),
            // It has closed its connection with its goodbye. What it has asked for is done, as PostgreSQL would,
            // though it hears nothing of it.
            Err(_) if self.session.has_left(Some(work)) && self.unheard < UNHEARD_MAX => self.unheard += work.to_client.len(),
            Err(_) => return Poll::Ready(Event::ClientGone),
        }
        let full = work.to_client.len() >= TO_CLIENT_MAX;
        work.to_client.clear();
        self.client_written = 0;
        if full || self.closing { Poll::Ready(Event::Flushed) } else { Poll::Pending }
    }

    /// Reads the client also while its statement runs, so that its end is seen; up to a limit. Behind its goodbye
    /// there is nothing to read.
    fn poll_read_client(&mut self, cx: &mut TaskContext<'_>) -> Poll<Event> {
        if self.closing || self.session.has_left(None) {
            return Poll::Pending;
        }
        let mut work = match self.work.take() {
            Some(work) if self.lease.is_none() && self.waiting.is_none() && self.session.is_idle(&work) => {
                keep_work(work);
                spare_work()
            }
            Some(work) => work,
            None => spare_work(),
        };
        let accepts = self.lease.is_some() || self.waiting.is_none();
        if work.client_in.len() >= CLIENT_IN_MAX && !(accepts && self.session.needs_more(&work)) {
            self.work = Some(work);
            return Poll::Pending;
        }
        make_room(&mut work.client_in);
        match poll_read_buf(Pin::new(&mut self.stream), cx, &mut work.client_in) {
            Poll::Ready(read) => {
                self.work = Some(work);
                Poll::Ready(Event::Client(read))
            }
            Poll::Pending => {
                if self.lease.is_none() && self.waiting.is_none() && self.session.is_idle(&work) {
                    keep_work(work);
                } else {
                    self.work = Some(work);
                }
                Poll::Pending
            }
        }
    }

    /// False where the client is gone.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Client(Ok(0)) => self.client_ended(),
            // TLS without its closing alert, or a connection that was closed behind a Terminate, with something
            // unread.
            Event::Client(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof || self.session.has_left(self.work.as_deref()) => {
                self.client_ended();
            }
            Event::Client(Err(_)) | Event::ClientGone => return false,
            Event::Client(Ok(count)) => {
                self.context.stats.port(self.port).bytes_in.add(count as u64);
                self.take_client_bytes();
            }
            Event::Server(Ok(count)) if count > 0 => {
                if let Some(lease) = &self.lease {
                    lease.node_stats().bytes_in.add(count as u64);
                }
                let mut garbled = false;
                self.with_session(|session, env, work, server| {
                    if let Some(server) = server {
                        garbled = session.server_bytes(env, work, server).is_err();
                    }
                });
                if garbled {
                    self.server_lost();
                } else if let Some(lease) = &mut self.lease
                    && lease.state().ready
                {
                    lease.server().has_answered();
                }
                self.satisfy();
                self.take_client_bytes();
            }
            Event::Server(_) | Event::ServerKilled => {
                self.server_lost();
                self.satisfy();
                self.take_client_bytes();
            }
            Event::Waited(Waited::Leased(need, Ok(lease))) => {
                self.leased(&need, lease);
                self.satisfy();
                self.take_client_bytes();
            }
            Event::Waited(Waited::Quiet(need, quiet)) => {
                self.quiet = Some(quiet);
                self.ask_for(need);
                self.satisfy();
                self.take_client_bytes();
            }
            Event::Waited(Waited::Departed(leaves)) => {
                self.with_session(|session, env, work, _| session.departure(env, work, leaves));
                self.satisfy();
                self.take_client_bytes();
            }
            Event::Waited(Waited::Leased(need, Err(error))) => {
                self.lease_failed(&need, &error);
                self.satisfy();
                self.take_client_bytes();
            }
            Event::Waited(Waited::TopologyChanged) => {
                self.with_session(|session, env, work, _| session.decide_again(env, work));
                self.satisfy();
                self.take_client_bytes();
            }
            Event::Waited(Waited::HoldTimedOut) => {
                let waited = self.held_since.map_or(Duration::ZERO, |since| since.elapsed());
                self.end_hold();
                self.context.stats.hold_timeouts.add(1);
                let refusal = Refusal::NoLeader { waited };
                self.with_session(|session, _, work, _| session.denied(work, &refusal));
                self.satisfy();
                self.take_client_bytes();
            }
            Event::Canceled => {
                self.quiet = None;
                self.waiting = None;
                self.sample_since = None;
                self.end_hold();
                self.with_session(|session, _, work, _| session.denied(work, &Refusal::QueryCanceled));
                self.satisfy();
                self.take_client_bytes();
            }
            Event::Ending => self.with_session(|session, _, work, _| session.end(work, &Refusal::Administrator)),
            Event::Flushed => self.take_client_bytes(),
        }
        true
    }

    /// The client sends no more: what it has sent is run and answered, then the session ends.
    fn client_ended(&mut self) {
        self.session.client_ended();
        self.take_client_bytes();
    }

    fn has_input(&self) -> bool {
        self.session.is_ending() || self.work.as_ref().is_some_and(|work| !work.client_in.is_empty())
    }

    fn take_client_bytes(&mut self) {
        while !self.closing && self.waiting.is_none() && self.has_input() {
            if self.leader_in_doubt() {
                return self.wait_out_doubt();
            }
            let before = self.work.as_ref().map_or(0, |work| work.client_in.len());
            self.with_session(|session, env, work, server| session.client_bytes(env, work, server));
            self.satisfy();
            if self.work.as_ref().map_or(0, |work| work.client_in.len()) == before {
                break;
            }
        }
    }

    /// Whether the session holds a connection of a leader that isn't in force now: this process may have slept, and another may lead.
    fn leader_in_doubt(&mut self) -> bool {
        let Some(lease) = &mut self.lease else { return false };
        let handle = &lease.server().handle;
        if handle.role != ServerRole::Leader {
            return false;
        }
        let topology = self.context.health.topology.load();
        let in_force = topology.leader_at(Instant::now()).is_some_and(|(leader, _)| leader.epoch == handle.epoch);
        if in_force {
            drop(topology);
            self.end_hold();
        }
        !in_force
    }

    /// What the client sends on a leader's connection waits until that leader is known to lead, or the connection is closed because another
    /// one does. After `hold_timeout` it counts as lost.
    fn wait_out_doubt(&mut self) {
        if self.held_since.is_none() {
            self.held_since = Some(Instant::now());
            self.context.stats.held.up();
            self.context.stats.held_total.add(1);
        }
        let timeout = self.context.config.load().failover.hold_timeout;
        if self.held_since.is_some_and(|since| since.elapsed() >= timeout)
            && let Some(lease) = &mut self.lease
        {
            self.context.stats.hold_timeouts.add(1);
            lease.server().handle.kill();
            return;
        }
        let mut changed = self.context.health.changed();
        changed.mark_unchanged();
        self.context.health.demand();
        self.waiting = Some(Box::pin(async move {
            // A leader that is confirmed again is no change.
            let _ = tokio::time::timeout(HOLD_LOOK, changed.changed()).await;
            Waited::TopologyChanged
        }));
    }

    fn server_lost(&mut self) {
        self.quiet = None;
        self.leaving = None;
        let Some(mut lease) = self.lease.take() else { return };
        self.slot.release();
        // All that a session waits for with a lease in its hands is that its leader leads.
        self.waiting = None;
        self.end_hold();
        self.running = None;
        self.server_written = 0;
        lease.node_stats().errors.add(1);
        self.context.health.poke();
        lease.state().tainted = true;
        self.with_session(|session, env, work, _| session.server_lost(env, work, lease.state(), false));
    }

    /// A statement that a replica has refused and the leader ran is the leader's from now on (DESIGN: the net).
    fn learn(&mut self, running: &Running) {
        if running.why != Why::Rerun {
            return;
        }
        let Some(Refused { verdict, sqlstate }) = self.refused.take().filter(|_| !running.failed) else { return };
        let Ok(sqlstate) = std::str::from_utf8(&sqlstate) else { return };
        // Codes by which a standby says that a statement isn't for it; others come of what it hasn't replayed yet.
        if !matches!(sqlstate, "25006" | "0A000" | "55000" | "25001" | "XX000") {
            return;
        }
        self.context.verdicts.memo.learn(&verdict, sqlstate);
        if let Some(decided) = &running.decided {
            tracing::debug!(fingerprint = %verdict.fingerprint, sqlstate, "a replica refused what was taken for a read");
            self.context.stats.decisions.unforeseen(decided, sqlstate);
        }
    }

    fn count(&mut self) {
        let Some(work) = &mut self.work else { return };
        let tally = std::mem::take(&mut work.tally);
        if let Some(running) = &mut self.running {
            running.failed |= tally.errors > 0;
        }
        if let Some(sqlstate) = tally.reruns.first() {
            let sole = work.first_verdict().filter(|(_, sole)| *sole);
            self.refused = sole.map(|(verdict, _)| Refused { verdict: verdict.clone(), sqlstate: *sqlstate });
        }
        let stats = &self.context.stats;
        let port = stats.port(self.port);
        port.queries.add(tally.queries);
        port.errors.add(tally.errors + tally.refusals.len() as u64);
        for sqlstate in &tally.reruns {
            stats.rerun(std::str::from_utf8(sqlstate).unwrap_or("XX000"));
        }
        for sqlstate in tally.refusals {
            stats.refusal(sqlstate);
        }
        for result in tally.looks {
            stats.look(result);
        }
        for difference in &tally.differences {
            stats.return_differences.add(1);
            let (user, database) = (&*self.identity.user, &*self.identity.database);
            tracing::error!(user, database, difference, "a returned connection differs from what its session is known to have set");
        }
        if let (Some(lease), Some(running)) = (&self.lease, &self.running) {
            let node = lease.node_stats();
            match running.why {
                Why::Write | Why::Transaction | Why::LookAhead | Why::Local => node.writes.add(tally.queries),
                _ => node.reads.add(tally.queries),
            }
            node.errors.add(tally.errors);
        }
    }

    fn show_pins(&mut self) {
        self.pins_shown = self.session.pins();
        let mut pinned = self.context.stats.pinned.lock();
        let Some(lease) = self.lease.as_mut().filter(|_| !self.pins_shown.is_empty()) else {
            pinned.remove(&self.slot.id);
            return;
        };
        let reasons = self.pins_shown.iter().map(|reason| reason.as_str()).collect();
        let node = lease.state().node.clone();
        pinned.entry(self.slot.id).and_modify(|entry| entry.reasons = Vec::clone(&reasons)).or_insert(Pinned {
            client_id: self.slot.id,
            user: self.identity.user.clone(),
            database: self.identity.database.clone(),
            node,
            reasons,
            since: SystemTime::now(),
        });
    }
}

/// Waits until the decision for `need` would be another one: its leader leads no more, its replica is out.
async fn outdated(health: &Health, need: &Need) {
    let mut changed = health.changed();
    loop {
        {
            let topology = health.topology.load();
            let stands = match need.role {
                ServerRole::Leader => topology.epoch == need.epoch,
                ServerRole::Replica => topology.member(&need.node).is_some_and(|member| member.out.is_none()),
            };
            if !stands {
                return;
            }
        }
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end_hold();
        self.slot.release();
        if !self.pins_shown.is_empty() {
            self.context.stats.pinned.lock().remove(&self.slot.id);
        }
        self.let_go();
        self.context.stats.port(self.port).clients.down();
    }
}

impl Context {
    /// Reads that found no proven replica want samples soon. Those that are served by one can wait for the next.
    fn health_demand(&self, need: &Need) {
        if need.why == Why::NotCaughtUp {
            self.health.demand();
        }
    }
}

/// Counts a decision by its batch's first statement.
fn decided(decisions: &Decisions, work: &Work, why: Why) -> Option<Arc<Decided>> {
    let (verdict, _) = work.first_verdict()?;
    if verdict.statements == 0 {
        return None;
    }
    let text = || without_literals(work.first_text().unwrap_or_default(), true, TEXT_MAX);
    let decided = decisions.of(verdict.fingerprint, text);
    decided.decided(why);
    Some(decided)
}

fn refuses_login(error: &ConnectError) -> bool {
    match error {
        ConnectError::Auth(_) => true,
        ConnectError::Server { sqlstate, .. } => sqlstate.starts_with("28"),
        _ => false,
    }
}

/// SQLSTATEs of a server that is going away or not there yet.
fn leaving(sqlstate: &str) -> bool {
    matches!(sqlstate, "57P01" | "57P02" | "57P03")
}

fn make_room(buffer: &mut Vec<u8>) {
    if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
        buffer.reserve(READ_BYTES);
    }
}

/// Writes what is left of `bytes`; `written` remembers how far it came.
fn poll_write_all(stream: &mut Stream, bytes: &[u8], written: &mut usize, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
    while *written < bytes.len() {
        match ready!(Pin::new(&mut *stream).poll_write(cx, &bytes[*written..])) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => *written += count,
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    if stream.is_tls() { Pin::new(stream).poll_flush(cx) } else { Poll::Ready(Ok(())) }
}

/// The next of a session's random numbers (Vigna's SplitMix64): for drawing candidates, not for secrets.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
