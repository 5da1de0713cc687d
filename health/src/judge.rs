//! The judge: observations in, [`Topology`] out. No etcd, HTTP, SQL or clock in here.
//!
//! Owns what the router believes. Invariant: never two leaders. A leader is in force only while etcd names it, the lease
//! of its key can be shown to hold, a probe sent after that key was seen says that it isn't in recovery, and no member
//! is on a newer timeline. In doubt there is no leader, and the doubt has a name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_config::Config;
use switchyard_core::lsn::Timeline;
use switchyard_core::topology::{ClusterState, Epoch, Leader, LeaderChange, Member, Out, Role, Sample, Topology};
use switchyard_core::witness::KeyRead;
use tracing::{info, warn};

use crate::keys::{Announced, ClusterConfig, Fact, FailoverKey, Forks, LeaderKey, Slot, SyncKey};
use crate::lag::Marks;
use crate::observation::{Found, Moment, Observation, Read};

mod members;
mod rules;
#[cfg(test)]
mod tests;
mod witness;

use rules::{Doubt, Rules};
use witness::Run;

/// Members, at most; more are ignored with a warning.
const MEMBERS_MAX: usize = 256;
/// Leadership changes kept for the page.
const CHANGES_MAX: usize = 32;
/// How long one answer of `/primary`, and one probe, keep a leader in force while etcd can't be read.
const FAILSAFE_HOLD: Duration = Duration::from_secs(3);
/// Beyond Patroni's `loop_wait`, an announced switchover that doesn't come stops holding writes.
const SWITCHING_GRACE: Duration = Duration::from_secs(2);
/// A named leader that doesn't leave recovery is probed every few milliseconds for this long, and a cluster without a leader
/// fast for as long; then as ever.
const URGENT_FOR: Duration = Duration::from_secs(30);

/// How fast a member should be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pace {
    Idle,
    Busy,
    Urgent,
}

/// The newest snapshot, and what is new in it.
pub(crate) struct Settled {
    pub(crate) topology: Topology,
    /// Leader, epoch, state, members or who may serve.
    pub(crate) changed: bool,
    /// A sample of some member came.
    pub(crate) sampled: bool,
}

/// One life of the leader key.
#[derive(Clone, Debug)]
struct Claim {
    key: LeaderKey,
    seen_at: Instant,
    /// Until when its lease can be shown to hold, margin taken off.
    until: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Request {
    key: FailoverKey,
    /// When it began to hold writes, and in which epoch.
    opened: Option<(Instant, Epoch)>,
}

/// A place at the table: a member and what is known about it.
#[derive(Debug)]
struct Seat {
    announced: Announced,
    /// Which prober speaks for it: raised with each address, so that an answer from an old address doesn't count.
    post: u64,
    found: Option<Found>,
    error: Option<Arc<str>>,
    since: Instant,
    lagging: bool,
    /// A standby's, since it was last seen to start.
    run: Option<Run>,
    shown: Option<Arc<Member>>,
}

impl Seat {
    /// The last probe, unless probes fail now.
    fn reachable(&self) -> Option<&Found> {
        self.found.as_ref().filter(|_| self.error.is_none())
    }
}

/// Who leads: a change of any of these is another leadership.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    system_identifier: i64,
    name: Arc<str>,
    host: Arc<str>,
    port: u16,
    timeline: Timeline,
}

/// The last leadership that was in force.
#[derive(Clone, Debug)]
struct Reign {
    identity: Identity,
    /// The leader key's create revision.
    claim: i64,
    forks: Option<Forks>,
}

/// A leader that may be in force.
struct Standing {
    identity: Identity,
    claim: i64,
    forks: Option<Forks>,
    valid_until: Instant,
    standby_cluster: bool,
    failsafe: bool,
}

pub(crate) struct Judge {
    rules: Rules,
    /// Whether etcd is the source; otherwise the configuration's list.
    etcd: bool,
    ready: bool,
    etcd_error: Option<Arc<str>>,
    /// The revision of what is known of the leader key, and of all other keys.
    leader_revision: i64,
    applied_revision: i64,
    claim: Option<Claim>,
    config: ClusterConfig,
    history: Option<Forks>,
    request: Option<Request>,
    sync: Option<SyncKey>,
    /// Its last reads, the newest first: two, as nobody has answered a probe since the newest at first.
    sync_reads: VecDeque<(KeyRead, SyncKey)>,
    initialize: Option<Arc<str>>,
    seats: BTreeMap<Arc<str>, Seat>,
    posts: u64,
    drained: BTreeSet<Arc<str>>,
    /// An operator's switchover: until when it holds new writes at most, and in which epoch it began.
    holding: Option<(Instant, Epoch)>,
    /// Who last answered `/primary` with 200, and when it was asked.
    primary: Option<(Arc<str>, Instant)>,

    epoch: Epoch,
    /// The epoch was raised because a leader went, and none has been in force in it.
    vacant: bool,
    reign: Option<Reign>,
    in_force: bool,
    /// When a member that isn't in recovery answered last.
    heard_leader_at: Instant,
    /// While there is no leader: until when all members are probed fast.
    alert_until: Instant,
    /// The newest timeline that led, with its system identifier.
    floor: Option<(i64, Timeline)>,
    doubt: Option<Doubt>,
    marks: Marks,
    /// The epoch of the samples.
    sampled_in: Epoch,
    samples: Arc<[Sample]>,
    history_samples: Arc<[Sample]>,
    changes: VecDeque<LeaderChange>,
    published_changes: Arc<[LeaderChange]>,
    generation: u64,
    sampled: bool,
    shown: Option<Shown>,
}

/// What `changed` is about.
#[derive(PartialEq)]
struct Shown {
    state: ClusterState,
    epoch: Epoch,
    leader: Option<(usize, bool, bool)>,
    members: Vec<ShownMember>,
    ready: bool,
}

/// Name, host, port, role and why it gets no reads.
type ShownMember = (Arc<str>, Arc<str>, u16, Role, Option<Out>);

impl Judge {
    pub(crate) fn new(config: &Config, now: Moment) -> Judge {
        let etcd = !config.etcd.endpoints.is_empty() || config.cluster.static_members.is_empty();
        let mut judge = Judge {
            rules: config.into(),
            etcd,
            ready: !etcd,
            etcd_error: None,
            leader_revision: 0,
            applied_revision: 0,
            claim: None,
            config: ClusterConfig::default(),
            history: None,
            request: None,
            sync: None,
            sync_reads: VecDeque::new(),
            initialize: None,
            seats: BTreeMap::new(),
            posts: 0,
            drained: BTreeSet::new(),
            holding: None,
            primary: None,
            epoch: Epoch::default(),
            vacant: false,
            reign: None,
            in_force: false,
            heard_leader_at: now.at,
            alert_until: now.at + URGENT_FOR,
            floor: None,
            doubt: None,
            marks: Marks::default(),
            sampled_in: Epoch::default(),
            samples: Arc::new([]),
            history_samples: Arc::new([]),
            changes: VecDeque::new(),
            published_changes: Arc::new([]),
            generation: 0,
            sampled: false,
            shown: None,
        };
        if !etcd {
            judge.seat_static(config, now);
        }
        judge
    }

    /// Takes what a reload may change.
    pub(crate) fn reload(&mut self, config: &Config, now: Moment) {
        self.rules = config.into();
        if !self.etcd {
            let names: BTreeSet<_> = config.cluster.static_members.iter().map(|member| member.name.as_str()).collect();
            self.seats.retain(|name, _| names.contains(&**name));
            self.seat_static(config, now);
        }
    }

    fn seat_static(&mut self, config: &Config, now: Moment) {
        for member in &config.cluster.static_members {
            self.announce(now, member.name.as_str().into(), Announced::of_static(&member.host, member.port));
        }
    }

    /// Who is to be probed: name, post, host and port.
    pub(crate) fn posts(&self) -> impl Iterator<Item = (&Arc<str>, u64, &Arc<str>, u16)> {
        self.seats.iter().map(|(name, seat)| (name, seat.post, &seat.announced.host, seat.announced.port))
    }

    /// How fast `member` should be probed, apart from what sessions ask for.
    pub(crate) fn pace(&self, member: &str, now: Instant) -> Pace {
        if self.in_force {
            let announced = self.request.as_ref().is_some_and(|request| request.opened.is_some()) || self.holds(now);
            return if announced { Pace::Busy } else { Pace::Idle };
        }
        match &self.claim {
            Some(claim) if *claim.key.name == *member && now < claim.seen_at + URGENT_FOR => Pace::Urgent,
            _ if now < self.alert_until => Pace::Busy,
            _ => Pace::Idle,
        }
    }

    /// Whose `/primary` to ask, because only its answer can keep the leader in force: name and `api_url`.
    pub(crate) fn failsafe(&self) -> Option<(Arc<str>, Arc<str>)> {
        let claim = self.claim.as_ref().filter(|_| self.etcd_error.is_some())?;
        self.reign_of(claim)?;
        let api_url = self.seats.get(&claim.key.name)?.announced.api_url.clone()?;
        Some((claim.key.name.clone(), api_url))
    }

    pub(crate) fn observe(&mut self, now: Moment, observation: Observation) {
        match observation {
            Observation::Read(read) => self.read(now, read),
            Observation::Put { revision, fact: Fact::Leader(key) } => {
                if revision >= self.leader_revision {
                    self.leader_revision = revision;
                    self.claimed(now, key);
                }
            }
            Observation::Gone { revision, slot: Slot::Leader } => {
                if revision >= self.leader_revision {
                    self.leader_revision = revision;
                    self.unclaimed();
                }
            }
            Observation::Put { revision, fact } => {
                if revision >= self.applied_revision {
                    self.applied_revision = revision;
                    self.learn(now, fact);
                }
            }
            Observation::Gone { revision, slot } => {
                if revision >= self.applied_revision {
                    self.applied_revision = revision;
                    self.forget(&slot);
                }
            }
            Observation::EtcdFailing { error } => {
                if self.etcd_error.is_none() {
                    warn!(%error, "etcd can't be read");
                }
                self.etcd_error = Some(error);
            }
            Observation::Found { member, post, found } => self.found(now, &member, post, found),
            Observation::Lost { member, post, error } => self.lost(now, &member, post, error),
            Observation::Primary { member, sent_at, yes: true } => self.primary = Some((member, sent_at)),
            Observation::Primary { member, yes: false, .. } => {
                self.primary.take_if(|(name, _)| *name == member);
            }
            Observation::Drained(members) => self.drained = members,
            Observation::Holding(until) => self.holding = until.map(|until| (until, self.epoch)),
            Observation::Slept(slept) => self.slept(now, slept),
        }
    }

    fn read(&mut self, now: Moment, read: Read) {
        if self.etcd_error.take().is_some() {
            info!("etcd can be read again");
        }
        if read.first {
            self.leader_revision = 0;
            self.applied_revision = 0;
        }
        let mut leader = None;
        let mut others = Vec::with_capacity(read.facts.len());
        for fact in read.facts {
            match fact {
                Fact::Leader(key) => leader = Some(key),
                other => others.push(other),
            }
        }
        if read.revision >= self.applied_revision {
            self.applied_revision = read.revision;
            self.replace(now, others);
            self.sync_reads.truncate(1);
            self.sync_reads.push_front((KeyRead { sent_at: read.sent_at, heard_at: now.at }, self.sync.clone().unwrap_or_default()));
            self.ready = true;
        }
        // An answer that a watch event has overtaken says nothing about the leader key any more.
        if read.revision < self.leader_revision {
            return;
        }
        self.leader_revision = read.revision;
        match leader {
            None => self.unclaimed(),
            Some(key) => {
                self.claimed(now, key);
                let left = read.lease_left.unwrap_or_else(|| self.config.lease_left());
                let until = read.sent_at + left.saturating_sub(self.rules.lease_margin);
                if let Some(claim) = &mut self.claim {
                    // Whole seconds, rounded down: an earlier answer may reach further.
                    claim.until = claim.until.max(Some(until));
                }
            }
        }
    }

    /// Takes a read's word for everything but the leader key.
    fn replace(&mut self, now: Moment, facts: Vec<Fact>) {
        let slots: Vec<_> = facts.iter().map(Fact::slot).collect();
        let gone: Vec<_> = self
            .seats
            .keys()
            .map(|name| Slot::Member(name.clone()))
            .chain([Slot::Config, Slot::History, Slot::Failover, Slot::Sync, Slot::Initialize])
            .filter(|slot| !slots.contains(slot))
            .collect();
        for slot in &gone {
            self.forget(slot);
        }
        for fact in facts {
            self.learn(now, fact);
        }
    }

    fn learn(&mut self, now: Moment, fact: Fact) {
        match fact {
            Fact::Leader(key) => self.claimed(now, key),
            Fact::Member(name, announced) => self.announce(now, name, announced),
            Fact::Config(config) => self.config = config,
            Fact::History(forks) => self.history = Some(forks),
            Fact::Failover(key) if key.is_empty() => self.forget(&Slot::Failover),
            Fact::Failover(key) => {
                if self.request.as_ref().is_none_or(|request| request.key != key) {
                    info!(leader = key.leader, candidate = key.candidate, scheduled = key.scheduled_at.is_some(), "failover key put");
                    self.request = Some(Request { key, opened: None });
                }
            }
            Fact::Sync(key) => self.sync = Some(key),
            Fact::Initialize(identifier) => self.initialize = Some(identifier).filter(|identifier| !identifier.is_empty()),
        }
    }

    fn forget(&mut self, slot: &Slot) {
        match slot {
            Slot::Leader => self.unclaimed(),
            Slot::Member(name) => {
                if self.seats.remove(name).is_some() {
                    info!(member = %name, "member gone");
                }
            }
            Slot::Config => self.config = ClusterConfig::default(),
            Slot::History => self.history = None,
            Slot::Failover => {
                if self.request.take().is_some() {
                    info!("failover key gone");
                }
            }
            Slot::Sync => self.sync = None,
            Slot::Initialize => {
                // The cluster was removed; one made anew or restored may start on a lower timeline.
                if self.initialize.take().is_some() {
                    self.floor = None;
                }
            }
        }
    }

    fn announce(&mut self, now: Moment, name: Arc<str>, announced: Announced) {
        if let Some(seat) = self.seats.get_mut(&name)
            && (&seat.announced.host, seat.announced.port) == (&announced.host, announced.port)
        {
            seat.announced = announced;
            return;
        }
        if self.seats.len() >= MEMBERS_MAX && !self.seats.contains_key(&name) {
            warn!(member = %name, limit = MEMBERS_MAX, "ignoring a member: there are too many");
            return;
        }
        info!(member = %name, host = %announced.host, port = announced.port, "member announced");
        self.posts += 1;
        let seat = Seat { announced, post: self.posts, found: None, error: None, since: now.at, lagging: false, run: None, shown: None };
        self.seats.insert(name, seat);
    }

    fn claimed(&mut self, now: Moment, key: LeaderKey) {
        if let Some(claim) = &mut self.claim {
            if claim.key.name == key.name && claim.key.create_revision == key.create_revision {
                if claim.key.lease != key.lease {
                    claim.until = None;
                }
                claim.key = key;
                return;
            }
            // Another life of the key: it was gone in between, even if nobody told us.
            self.unclaimed();
        }
        info!(name = %key.name, "leader key put");
        self.claim = Some(Claim { key, seen_at: now.at, until: None });
    }

    fn unclaimed(&mut self) {
        if self.claim.take().is_some() {
            info!("leader key gone");
            self.vacate();
        }
    }

    /// The last leadership is over. Its samples go on bounding what was acknowledged in it, until there is a new one.
    fn vacate(&mut self) {
        if self.reign.is_some() && !self.vacant {
            self.epoch.0 += 1;
            self.vacant = true;
        }
    }

    fn clear_samples(&mut self) {
        self.sampled_in = self.epoch;
        self.marks.clear();
        self.samples = Arc::new([]);
        self.history_samples = Arc::new([]);
    }

    fn found(&mut self, now: Moment, member: &str, post: u64, found: Found) {
        let named = self.claim.as_ref().is_some_and(|claim| *claim.key.name == *member);
        let Some(seat) = self.seats.get_mut(member).filter(|seat| seat.post == post) else { return };
        if seat.error.take().is_some() || seat.found.is_none() {
            info!(member, in_recovery = found.in_recovery, "probe answers");
            seat.since = now.at;
        }
        if named && !found.in_recovery && seat.found.as_ref().is_some_and(|before| before.in_recovery) {
            info!(member, timeline = found.timeline.map(|timeline| timeline.0), "probe says: out of recovery");
        }
        let before = seat.found.take();
        let timeline = match &before {
            Some(before) if found.goes_on_from(before) => before.timeline.max(found.timeline),
            _ => found.timeline,
        };
        seat.run = Run::after(before.as_ref().map(|before| (before, seat.run.take())), &found);
        if !found.in_recovery {
            self.heard_leader_at = self.heard_leader_at.max(found.sent_at + found.round_trip);
        }
        let forks = found.forks.clone().or_else(|| before.filter(|before| before.timeline == timeline)?.forks);
        seat.found = Some(Found { timeline, forks, ..found });
        self.sampled = true;
    }

    /// The machine was suspended, and the clock that instants come from stood still: what was believed has to be shown anew.
    fn slept(&mut self, now: Moment, slept: Duration) {
        warn!(ms = slept.as_millis(), "the machine was suspended");
        self.primary = None;
        if let Some(claim) = &mut self.claim {
            claim.until = None;
            claim.seen_at = now.at;
        }
        if !self.etcd {
            for seat in self.seats.values_mut() {
                seat.found = None;
            }
        }
    }

    fn lost(&mut self, now: Moment, member: &str, post: u64, error: Arc<str>) {
        let Some(seat) = self.seats.get_mut(member).filter(|seat| seat.post == post) else { return };
        if seat.error.is_none() {
            warn!(member, %error, "probe fails");
            seat.since = now.at;
        }
        seat.error = Some(error);
    }

    /// The snapshot as of `now`.
    pub(crate) fn settle(&mut self, now: Moment) -> Settled {
        let standing = self.standing(now.at);
        self.enthrone(now, &standing);
        let leader_name = standing.as_ref().ok().map(|standing| standing.identity.name.clone());
        if let Some(name) = &leader_name {
            self.sample(name);
        }
        let state = self.state(now, leader_name.as_ref());
        let members = self.members(leader_name.as_ref());
        let leader = standing.ok().and_then(|standing| {
            Some(Leader {
                member: members.iter().position(|member| member.name == standing.identity.name)?,
                epoch: self.epoch,
                timeline: standing.identity.timeline,
                valid_until: standing.valid_until,
                standby_cluster: standing.standby_cluster,
                failsafe: standing.failsafe,
            })
        });
        let (witnessed, received) = if leader.is_none() { (self.witnessed(), self.received()) } else { (None, None) };
        let shown = Shown {
            state,
            epoch: self.epoch,
            leader: leader.as_ref().map(|leader| (leader.member, leader.standby_cluster, leader.failsafe)),
            members: members
                .iter()
                .map(|member| (member.name.clone(), member.host.clone(), member.port, member.role, member.out))
                .collect(),
            ready: self.ready,
        };
        let changed = self.shown.as_ref() != Some(&shown);
        self.shown = Some(shown);
        self.generation += 1;
        Settled {
            topology: Topology {
                generation: self.generation,
                state,
                epoch: self.epoch,
                leader,
                members,
                sampled_in: self.sampled_in,
                samples: self.samples.clone(),
                history: self.history_samples.clone(),
                witnessed,
                received,
                changes: self.published_changes.clone(),
                etcd_error: self.etcd_error.clone(),
                ready: self.ready,
            },
            changed,
            sampled: std::mem::take(&mut self.sampled),
        }
    }

    /// Who leads, beyond doubt.
    fn standing(&self, now: Instant) -> Result<Standing, Doubt> {
        if self.etcd { self.standing_by_etcd(now) } else { self.standing_by_probes(now) }
    }

    fn standing_by_etcd(&self, now: Instant) -> Result<Standing, Doubt> {
        if !self.ready {
            return Err(Doubt::NotRead);
        }
        let claim = self.claim.as_ref().ok_or(Doubt::NoKey)?;
        let seat = self.seats.get(&claim.key.name).ok_or(Doubt::NotAnnounced)?;
        // Evidence from before this life of the key doesn't count.
        let found = seat.found.as_ref().filter(|found| found.sent_at > claim.seen_at);
        if seat.error.is_some() {
            return Err(Doubt::Unreachable);
        }
        let found = found.ok_or(Doubt::Unprobed)?;
        if found.in_recovery && !self.config.standby_cluster {
            return Err(Doubt::InRecovery);
        }
        if self.initialize.as_ref().is_some_and(|identifier| **identifier != *found.system_identifier.to_string()) {
            return Err(Doubt::OtherSystem);
        }
        let timeline = found.timeline.ok_or(Doubt::UnknownTimeline)?;
        if timeline < self.newest_timeline(found.system_identifier) {
            return Err(Doubt::OldTimeline);
        }
        let (valid_until, failsafe) = self.valid_until(claim, found, now).ok_or(Doubt::Expired)?;
        Ok(Standing {
            identity: identity(&claim.key.name, seat, found, timeline),
            claim: claim.key.create_revision,
            forks: found.forks.clone(),
            valid_until,
            standby_cluster: found.in_recovery,
            failsafe,
        })
    }

    /// Until when `claim` is in force, and whether by Patroni's word alone. `None`: not now.
    fn valid_until(&self, claim: &Claim, found: &Found, now: Instant) -> Option<(Instant, bool)> {
        if let Some(until) = claim.until.filter(|until| now < *until) {
            return Some((until, false));
        }
        // Failsafe: only while etcd can't be read, only the leader that was in force already, and only as long as its
        // probe and its Patroni both say so.
        self.etcd_error.as_ref()?;
        self.reign_of(claim).filter(|reign| Some(reign.identity.timeline) == found.timeline)?;
        let (_, asked_at) = self.primary.as_ref().filter(|(name, _)| *name == claim.key.name)?;
        let until = found.sent_at.min(*asked_at) + FAILSAFE_HOLD;
        (now < until).then_some((until, true))
    }

    /// The last leadership, if it is of this life of the leader key.
    fn reign_of(&self, claim: &Claim) -> Option<&Reign> {
        self.reign
            .as_ref()
            .filter(|reign| !self.vacant && reign.claim == claim.key.create_revision && reign.identity.name == claim.key.name)
    }

    fn standing_by_probes(&self, now: Instant) -> Result<Standing, Doubt> {
        let newest = self.seats.values().filter_map(|seat| seat.reachable()?.timeline).max();
        let mut free = self
            .seats
            .iter()
            .filter_map(|(name, seat)| Some((name, seat, seat.reachable()?)))
            .filter(|(_, _, found)| !found.in_recovery && found.timeline == newest);
        let (name, seat, found) = free.next().ok_or(Doubt::Nobody)?;
        if free.next().is_some() {
            return Err(Doubt::Several);
        }
        let timeline = found.timeline.ok_or(Doubt::UnknownTimeline)?;
        if timeline < self.newest_timeline(found.system_identifier) {
            return Err(Doubt::OldTimeline);
        }
        let valid_until = found.sent_at + self.rules.probe_hold;
        if now >= valid_until {
            return Err(Doubt::Expired);
        }
        Ok(Standing {
            identity: identity(name, seat, found, timeline),
            claim: 0,
            forks: found.forks.clone(),
            valid_until,
            standby_cluster: false,
            failsafe: false,
        })
    }

    fn newest_timeline(&self, system_identifier: i64) -> Timeline {
        self.seats
            .values()
            .filter_map(Seat::reachable)
            .filter(|found| found.system_identifier == system_identifier)
            .filter_map(|found| found.timeline)
            .chain(self.floor.filter(|(identifier, _)| *identifier == system_identifier).map(|(_, timeline)| timeline))
            .max()
            .unwrap_or_default()
    }

    /// Moves from one leadership to the next: epochs, the log, the page's timeline.
    fn enthrone(&mut self, now: Moment, standing: &Result<Standing, Doubt>) {
        match standing {
            Ok(standing) => {
                let same = self.reign.as_ref().is_some_and(|reign| reign.identity == standing.identity);
                let raised = !same && !self.vacant;
                if raised {
                    self.epoch.0 += 1;
                }
                if raised || self.vacant {
                    self.clear_samples();
                }
                if raised || self.vacant || !self.in_force {
                    let reason = if standing.failsafe { "failsafe: named by its Patroni" } else { "named by etcd, out of recovery" };
                    let Identity { name, timeline, .. } = &standing.identity;
                    info!(leader = %name, timeline = timeline.0, epoch = self.epoch.0, standby_cluster = standing.standby_cluster, "leader in force");
                    self.note(now, Some((name.clone(), *timeline)), if self.etcd { reason } else { "the only member out of recovery" });
                }
                self.vacant = false;
                self.in_force = true;
                self.doubt = None;
                self.floor = Some((standing.identity.system_identifier, standing.identity.timeline));
                self.reign = Some(Reign { identity: standing.identity.clone(), claim: standing.claim, forks: standing.forks.clone() });
            }
            Err(doubt) => {
                if self.in_force {
                    self.note(now, None, doubt.as_str());
                    self.alert_until = now.at + URGENT_FOR;
                }
                if self.doubt != Some(*doubt) {
                    info!(why = doubt.as_str(), epoch = self.epoch.0, "no leader in force");
                }
                self.doubt = Some(*doubt);
                self.in_force = false;
            }
        }
    }

    fn note(&mut self, now: Moment, leader: Option<(Arc<str>, Timeline)>, reason: &str) {
        let (leader, timeline) = leader.unzip();
        self.changes.truncate(CHANGES_MAX - 1);
        self.changes.push_front(LeaderChange {
            at: now.at,
            at_unix_seconds: now.unix_seconds,
            leader,
            timeline,
            epoch: self.epoch,
            reason: reason.into(),
        });
        self.published_changes = self.changes.iter().cloned().collect();
    }

    /// Keeps the leader's newest probe as a sample.
    fn sample(&mut self, leader: &str) {
        let Some(found) = self.seats.get(leader).and_then(Seat::reachable) else { return };
        let sample = Sample {
            sent_at: found.sent_at,
            insert_lsn: found.insert_lsn,
            flush_lsn: found.replay_lsn,
            settled_at: found.sync_wait.map(|waits| found.sent_at.checked_sub(waits).unwrap_or(found.sent_at)),
        };
        let (recent, coarse) = self.marks.push(sample);
        self.seats.values_mut().for_each(|seat| seat.join(&self.marks));
        if recent {
            self.samples = self.marks.recent();
        }
        if coarse {
            self.history_samples = self.marks.history();
        }
    }

    /// Whether an operator's switchover holds new writes. It is over with the leadership that it began in.
    fn holds(&self, now: Instant) -> bool {
        self.holding.is_some_and(|(until, epoch)| epoch == self.epoch && now < until)
    }

    fn state(&mut self, now: Moment, leader: Option<&Arc<str>>) -> ClusterState {
        let Some(leader) = leader else { return ClusterState::Leaderless };
        if self.holds(now.at) {
            return ClusterState::Switching;
        }
        let (epoch, hold) = (self.epoch, self.config.loop_wait + SWITCHING_GRACE);
        let Some(request) = &mut self.request else { return ClusterState::Stable };
        let due = request.key.scheduled_at.is_none_or(|at| at <= now.unix_seconds);
        let meant = request.key.leader.is_empty() || *request.key.leader == **leader;
        if request.opened.is_none() && due && meant {
            request.opened = Some((now.at, epoch));
        }
        match request.opened {
            Some((opened_at, opened_in)) if opened_in == epoch && now.at < opened_at + hold => ClusterState::Switching,
            _ => ClusterState::Stable,
        }
    }
}

fn identity(name: &Arc<str>, seat: &Seat, found: &Found, timeline: Timeline) -> Identity {
    Identity {
        system_identifier: found.system_identifier,
        name: name.clone(),
        host: seat.announced.host.clone(),
        port: seat.announced.port,
        timeline,
    }
}
