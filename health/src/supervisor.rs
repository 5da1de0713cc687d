//! The one task that owns the judge: feeds it, publishes what it says, and keeps one prober for each member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustix::time::{ClockId, clock_gettime};
use switchyard_config::Config;
use switchyard_core::topology::Topology;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{self, MissedTickBehavior};
use tracing::debug;

use crate::etcd::Source;
use crate::judge::{Judge, Pace};
use crate::observation::{Moment, Observation};
use crate::patroni;
use crate::probe::{self, Prober};
use crate::tempo::{Beat, Tempo};

/// Observations under way to the judge; a source that is faster waits.
const OBSERVATIONS_MAX: usize = 256;
/// Taken at once, before the next snapshot.
const BATCH_MAX: usize = 64;
/// How soon a belief that expired shows in the snapshot. Sessions check the instant themselves.
const TICK: Duration = Duration::from_millis(50);
/// A suspension of the machine shorter than this is covered by `failover.lease_margin`.
const SLEPT_MIN: Duration = Duration::from_millis(500);
/// Between questions to `/primary` while etcd can't be read, and how long one may take.
const FAILSAFE_INTERVAL: Duration = Duration::from_millis(500);
const FAILSAFE_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Supervisor {
    pub(crate) config: watch::Receiver<Arc<Config>>,
    pub(crate) drained: watch::Receiver<BTreeSet<Arc<str>>>,
    pub(crate) holding: watch::Receiver<Option<Instant>>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) tempo: Arc<Tempo>,
    pub(crate) topology: Arc<ArcSwap<Topology>>,
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) sampled: watch::Sender<u64>,
}

/// A prober at work.
struct Post {
    id: u64,
    pace: watch::Sender<Pace>,
    task: AbortHandle,
}

impl Drop for Post {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn moment() -> Moment {
    Moment { at: Instant::now(), unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() }
}

/// Notices that the machine was suspended: the clock behind `Instant` (CLOCK_MONOTONIC) stands still then, and a lease
/// elsewhere doesn't.
struct SleepWatch(Duration);

impl SleepWatch {
    fn new() -> SleepWatch {
        SleepWatch(SleepWatch::suspended())
    }

    /// For how long since the machine was started.
    fn suspended() -> Duration {
        let now = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        let monotonic = now(ClockId::Monotonic);
        now(ClockId::Boottime).saturating_sub(monotonic)
    }

    /// For how long since it was last asked; less than what scheduling between the two clocks' readings makes is nothing.
    fn slept(&mut self) -> Option<Duration> {
        let slept = SleepWatch::suspended().saturating_sub(self.0);
        if slept < SLEPT_MIN {
            return None;
        }
        self.0 += slept;
        Some(slept)
    }
}

impl Supervisor {
    /// Until `stop`, or until no handle is left.
    pub(crate) async fn run(mut self) {
        let mut config = self.config.borrow_and_update().clone();
        let mut judge = Judge::new(&config, moment());
        let (sender, mut observations) = mpsc::channel(OBSERVATIONS_MAX);
        // Dropped with this function: every task of ours ends with it.
        let mut tasks = JoinSet::new();
        let mut etcd = start_etcd(&config, &sender, &mut tasks);
        let mut posts: BTreeMap<Arc<str>, Post> = BTreeMap::new();
        let mut asked_primary: Option<Instant> = None;
        let mut sleep_watch = SleepWatch::new();
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = observations.recv_many(&mut batch, BATCH_MAX) => {}
                _ = tick.tick() => {}
                changed = self.config.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let new = self.config.borrow_and_update().clone();
                    judge.reload(&new, moment());
                    if new.etcd != config.etcd {
                        if let Some(task) = etcd.take() {
                            task.abort();
                        }
                        etcd = start_etcd(&new, &sender, &mut tasks);
                    }
                    if new.postgres != config.postgres || new.server_tls != config.server_tls {
                        posts.clear();
                    }
                    config = new;
                }
                changed = self.drained.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    batch.push(Observation::Drained(self.drained.borrow_and_update().clone()));
                }
                changed = self.holding.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    batch.push(Observation::Holding(*self.holding.borrow_and_update()));
                }
                _ = self.stop.wait_for(|stop| *stop) => return,
                Some(_) = tasks.join_next() => {
                    if etcd.as_ref().is_some_and(AbortHandle::is_finished) {
                        etcd = start_etcd(&config, &sender, &mut tasks);
                    }
                }
            }
            batch.extend(sleep_watch.slept().map(Observation::Slept));
            let news = !batch.is_empty();
            for observation in batch.drain(..) {
                judge.observe(moment(), observation);
            }
            self.publish(&mut judge, news);
            self.post(&judge, &mut posts, &sender, &mut tasks);
            let due = asked_primary.is_none_or(|at| at.elapsed() >= FAILSAFE_INTERVAL);
            if let Some((member, api_url)) = judge.failsafe().filter(|_| due) {
                asked_primary = Some(Instant::now());
                tasks.spawn(ask_primary(member, api_url, config.clone(), sender.clone()));
            }
        }
    }

    /// Publishes a snapshot where something was observed, or time alone changed something.
    fn publish(&self, judge: &mut Judge, news: bool) {
        let settled = judge.settle(moment());
        if !news && !settled.changed {
            return;
        }
        let generation = settled.topology.generation;
        self.topology.store(Arc::new(settled.topology));
        if settled.changed {
            self.changed.send_replace(generation);
        }
        if settled.sampled {
            self.sampled.send_replace(generation);
        }
    }

    /// One prober for each member, at the pace that the judge wants.
    fn post(&self, judge: &Judge, posts: &mut BTreeMap<Arc<str>, Post>, observations: &mpsc::Sender<Observation>, tasks: &mut JoinSet<()>) {
        let now = Instant::now();
        let wanted: BTreeMap<_, _> = judge.posts().map(|(name, id, host, port)| (name.clone(), (id, host, port))).collect();
        // A prober that has ended without being told to has met a bug of ours: the member must not go unprobed for that.
        posts.retain(|name, post| wanted.get(name).is_some_and(|(id, _, _)| *id == post.id) && !post.task.is_finished());
        for (name, (id, host, port)) in wanted {
            let pace = judge.pace(&name, now);
            if let Some(post) = posts.get(&name) {
                post.pace.send_if_modified(|before| std::mem::replace(before, pace) != pace);
                continue;
            }
            let (sender, receiver) = watch::channel(pace);
            let prober = Prober {
                member: name.clone(),
                post: id,
                host: host.clone(),
                port,
                config: self.config.clone(),
                tempo: self.tempo.clone(),
                beat: Beat { poked: self.tempo.subscribe(), pace: receiver },
                observations: observations.clone(),
            };
            posts.insert(name, Post { id, pace: sender, task: tasks.spawn(prober.run()) });
        }
    }
}

fn start_etcd(config: &Config, observations: &mpsc::Sender<Observation>, tasks: &mut JoinSet<()>) -> Option<AbortHandle> {
    if config.etcd.endpoints.is_empty() {
        return None;
    }
    Some(tasks.spawn(Source::new(&config.etcd, &config.cluster).run(observations.clone())))
}

async fn ask_primary(member: Arc<str>, api_url: Arc<str>, config: Arc<Config>, observations: mpsc::Sender<Observation>) {
    let sent_at = Instant::now();
    let tls = probe::client_config(&config).await.unwrap_or_default();
    let yes = match patroni::primary(&api_url, tls, FAILSAFE_TIMEOUT).await {
        Ok(yes) => yes,
        Err(error) => {
            debug!(%member, %error, "no answer from Patroni's /primary");
            false
        }
    };
    // Nobody listens any more: the router is stopping.
    let _ = observations.send(Observation::Primary { member, sent_at, yes }).await;
}
