//! A model checker for the watermark: the real `causal.rs` and `route.rs` against a simulated cluster, in many random schedules.
//!
//! The cluster is a log with forks. A node shows a prefix of one timeline; every write moves the leader's position, so what a session has
//! seen is a position, too, and a stale or backward read is one that shows less of what has survived. At the levels `global` and `strong` a read
//! must also show what this router, or the leader, had acknowledged to anybody when it came. Delays of questions and answers,
//! lost probes, replicas that replay late, restarts that reopen at an older position, promotions that lose the tail, and replicas left
//! behind with that tail are drawn at random. The judge is modelled by the rules that the argument in `causal.rs` relies on; each
//! [`Broken`] rule must be found out, or the model would prove nothing.
//!
//! What the model takes for granted: a crash closes the probe's connection before the server opens again, an old leader is down before
//! another is promoted, and a statement runs on the server that its connection was opened to.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::causal::{Bound, Level, Watermark};
use crate::route::{self, Ask, Loads};
use crate::topology::{Member, Sample, Topology};

mod cluster;
mod router;

use cluster::{Aim, Names, SyncKey, Synchronous};

const NODES: usize = 4;
const SESSIONS: usize = 3;
/// Turns of one schedule.
const TURNS: usize = 200;
/// Samples that the ring keeps: few, so that they run out.
const SAMPLES_MAX: usize = 8;
/// How long the leader must have been silent before others' writes are held to what standbys have received.
const GRACE: u64 = 30;
/// Schedules of a normal run; `SWITCHYARD_SCHEDULES` sets another number.
const SCHEDULES: u64 = 20_000;
/// Schedules in which a broken rule is looked for.
const SEARCHED: u64 = 5 * SCHEDULES;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A sample counts from when its answer came, not from when its question was sent.
    ReceiveTime,
    /// What is seen counts from when its statement was sent, not from when it is shown.
    SeenAtSending,
    /// What replicas have shown isn't merged into the watermark.
    ReplicasForgotten,
    /// Replicas that are on another timeline, or past a fork, stay in.
    TimelinesIgnored,
    /// The fork doesn't cap the position of a replica on an older timeline; one past it stays in.
    ForksIgnored,
    /// A replica that has restarted looks as if it hadn't.
    RestartsUnnoticed,
    /// A replica's sample says what it has received, not what it has replayed.
    ReceivedForReplayed,
    /// The leader's sample says what is flushed, not what is inserted.
    FlushedForInserted,
    /// No watermark at all: the level `eventual`.
    Eventual,
    /// At the level `global`, what others have written counts from when it was sent, not from when it is acknowledged.
    MarkedAtSending,
    /// At the level `global`, what others have written doesn't count.
    NothingMarked,
    /// At the level `strong`, a sample counts that was asked for before the read came.
    SampledBefore,
    /// At the level `strong`, only this router's own acknowledgements count.
    OthersForgotten,
    /// Without a leader, a standby's word counts for what was acknowledged after it was asked, too.
    WitnessedBefore,
    /// Without a leader, another standby's word is taken for a synchronous one's.
    AnyoneWitnesses,
    /// Without a leader, one of a quorum is asked.
    OneOfAQuorum,
    /// Without a leader, the `sync` key counts as it was read last.
    KeyOutdated,
    /// Without a leader, a standby's word counts that was asked before it was read to be synchronous.
    AskedBeforeNamed,
    /// Without a leader, the word of a synchronous standby that has restarted counts.
    RestartedWitness,
    /// Without a leader, nobody waits for it to answer again.
    NoGrace,
    /// Without a leader, what any standby has received is taken for all that a session can have seen.
    AnyoneIsExact,
    /// Without a leader, what replicas may have shown isn't asked for.
    ReplicasUnasked,
    /// Without a leader, a replica that doesn't answer has shown nothing.
    LostReplicaForgotten,
    /// A read goes from a replica to the leader while a write is under way that the replica may have shown.
    UnderWayForgotten,
}

/// xorshift64*: small, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `below` - 1.
    fn under(&mut self, below: u64) -> u64 {
        (self.next() >> 16) % below.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.under(n) == 0
    }
}

/// A prefix of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    timeline: u32,
    lsn: u64,
}

struct Node {
    /// `Some`: down, until then.
    down_until: Option<u64>,
    incarnation: u32,
    /// A leader's insert position, a replica's replay position: what its queries show.
    shows: Position,
    received: u64,
    flushed: u64,
    /// Whether it has received anything since it was started: until then it can't tell how far it had got.
    streams: bool,
    /// Where it opens after a crash: the minimum recovery point.
    reopens_at: u64,
    probe: Option<Probe>,
    /// When the router hears that its connection is gone.
    loss_heard_at: Option<u64>,
}

/// A probe under way.
struct Probe {
    sent_at: u64,
    answered_at: u64,
    heard_at: u64,
    lost: bool,
    answer: Option<Answer>,
}

#[derive(Clone, Copy)]
struct Answer {
    leads: bool,
    shows: Position,
    received: u64,
    /// What a standby can tell of what it has received.
    told: u64,
    flushed: u64,
    incarnation: u32,
    /// Of a leader that waits for standbys: since when the oldest commit does, or now.
    waits_since: Option<u64>,
}

impl Node {
    fn told(&self) -> u64 {
        if self.streams { self.received.max(self.shows.lsn) } else { self.shows.lsn }
    }
}

struct Statement {
    node: usize,
    incarnation: u32,
    member: Arc<Member>,
    writes: bool,
    sent_at: u64,
    runs_at: u64,
    shown_at: u64,
    shown: Option<Position>,
    /// Of a write: it waits for no standby any more.
    committed: bool,
    /// What a read must show of what others had written when it came.
    must: Option<Position>,
}

/// A read at the level `strong` that waits for the leader's position.
#[derive(Clone, Copy)]
struct Asked {
    at: u64,
    epoch: u64,
    must: Position,
}

struct Session {
    watermark: Watermark,
    /// The truth: what it was shown last.
    seen: Option<Position>,
    asked: Option<Asked>,
    statement: Option<Statement>,
}

/// What happened, so that a run without violations isn't one without events.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    bounded_replica_reads: u64,
    leader_reads: u64,
    writes: u64,
    promotions: u64,
    restarts: u64,
    left_behind: u64,
    /// On replicas, bounded by what was told while no leader was believed in: by the leader or synchronous standbys, or by any.
    exactly_witnessed_reads: u64,
    otherwise_witnessed_reads: u64,
}

/// One run of a standby's server, as the router knows it.
#[derive(Clone, Copy, Default)]
struct Run {
    incarnation: u32,
    since: u64,
    joined: bool,
}

/// Incarnation and position of each standby that could tell one.
type Told = [Option<(u32, u64)>; NODES];

/// A read of the `sync` key under way.
struct KeyRead {
    sent_at: u64,
    taken_at: u64,
    heard_at: u64,
    key: Option<SyncKey>,
}

struct World {
    broken: Broken,
    level: Level,
    /// The truth: what this router has acknowledged last, and what any client has been.
    acknowledged: Option<Position>,
    written: Position,
    /// When, as the router knows it.
    marked_at: u64,
    epoch_began: Instant,
    now: u64,
    dice: Dice,
    /// How rare writes are, and how rarely sessions speak: drawn for each schedule.
    calm: u64,
    pause: u64,
    /// How long nobody is promoted.
    vacancy: u64,
    nodes: Vec<Node>,
    names: Arc<[Arc<str>]>,
    /// `None`: down, nobody is promoted yet.
    leader: Option<usize>,
    /// Where timeline n + 2 left timeline n + 1.
    forks: Vec<u64>,
    /// What was flushed of timeline n + 1 when its leader crashed: the rest is lost there and then.
    cuts: Vec<u64>,
    synchronous: Synchronous,
    waits_for: Option<Names>,
    key: SyncKey,
    aims_at: Option<Aim>,
    /// How far the leader's commits are done and shown, and which wait since when.
    visible: u64,
    waiting: VecDeque<(u64, u64)>,
    /// Where nobody waits for a standby: a commit whose record is flushed, whose process has no processor until then.
    stalled: Option<(u64, u64)>,
    /// The router hears nothing of a node, or doesn't believe in its leader, until then.
    deaf_until: [u64; NODES],
    doubts_until: u64,
    sessions: Vec<Session>,
    // What the router believes.
    epoch: u64,
    believed: Option<usize>,
    believed_timeline: u32,
    answers: [Option<(u64, Answer)>; NODES],
    unreachable: [bool; NODES],
    /// Since when each is unreachable, if it is.
    lost_at: [u64; NODES],
    samples: Vec<Sample>,
    sampled_in: u64,
    /// Whom it has believed in last.
    reign: usize,
    heard_leader_at: u64,
    runs: [Run; NODES],
    key_read: Option<KeyRead>,
    /// The last reads of it, with when they were sent and heard; the newest first.
    key_reads: VecDeque<(u64, u64, SyncKey)>,
    /// The truth when the leader had been silent for long enough: what each standby could tell.
    at_silence: Option<(u64, Told)>,
    topology: Topology,
    tally: Tally,
    trace: Option<String>,
}

struct Free;
impl Loads for Free {
    fn cost(&self, _: &Member) -> f64 {
        1.0
    }

    fn is_busy(&self, _: &Member) -> bool {
        true
    }
}

impl World {
    fn new(seed: u64, level: Level, broken: Broken, epoch_began: Instant, names: &Arc<[Arc<str>]>, traced: bool) -> World {
        let node = |_| Node {
            down_until: None,
            incarnation: 1,
            shows: Position { timeline: 1, lsn: 100 },
            received: 100,
            flushed: 100,
            streams: false,
            reopens_at: 100,
            probe: None,
            loss_heard_at: None,
        };
        let session = |_| Session { watermark: Watermark::default(), seen: None, asked: None, statement: None };
        let mut dice = Dice::new(seed);
        let (calm, pause) = (1 + dice.under(16), 2 + dice.under(6));
        let vacancy = if dice.one_in(2) { 4 } else { 24 };
        let synchronous = match dice.under(4) {
            0 => Synchronous::Off,
            1 => Synchronous::One,
            count => Synchronous::Quorum(count as usize - 1),
        };
        let mut world = World {
            broken,
            level,
            acknowledged: None,
            written: Position { timeline: 1, lsn: 100 },
            marked_at: 0,
            epoch_began,
            now: 0,
            dice,
            calm,
            pause,
            vacancy,
            nodes: (0..NODES).map(node).collect(),
            names: names.clone(),
            leader: Some(0),
            forks: Vec::new(),
            cuts: vec![u64::MAX],
            synchronous,
            waits_for: None,
            key: SyncKey::of(0),
            aims_at: None,
            visible: 100,
            waiting: VecDeque::new(),
            stalled: None,
            deaf_until: [0; NODES],
            doubts_until: 0,
            sessions: (0..SESSIONS).map(session).collect(),
            epoch: 1,
            believed: Some(0),
            believed_timeline: 1,
            answers: [None; NODES],
            unreachable: [false; NODES],
            lost_at: [0; NODES],
            samples: Vec::new(),
            sampled_in: 1,
            reign: 0,
            heard_leader_at: 0,
            runs: [Run::default(); NODES],
            key_read: None,
            key_reads: VecDeque::new(),
            at_silence: None,
            topology: Topology::default(),
            tally: Tally::default(),
            trace: traced.then(String::new),
        };
        world.publish();
        world
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{:>5} {}", self.now, what());
        }
    }

    fn at(&self, ticks: u64) -> Instant {
        self.epoch_began + Duration::from_micros(ticks)
    }

    /// What of `position` is left on `timeline`, a later one.
    fn survives(&self, position: Position, timeline: u32) -> u64 {
        let forks = self.forks.iter().skip(position.timeline as usize - 1).take((timeline.saturating_sub(position.timeline)) as usize);
        // What crashed before it was flushed is gone, without any fork.
        let lsn = position.lsn.min(self.cuts[position.timeline as usize - 1]);
        forks.fold(lsn, |lsn, fork| lsn.min(*fork))
    }

    /// Whether `shown` lacks something that `seen` had and that wasn't lost at a fork that the router knows of. Of what is lost, a
    /// replica that hasn't reached its fork at its last probe may show one part more or less: nobody can tell until the next one.
    fn is_behind(&self, shown: Position, seen: Position) -> bool {
        let newest = shown.timeline.max(seen.timeline).max(self.believed_timeline);
        self.survives(shown, newest) < self.survives(seen, newest)
    }

    /// One turn: time passes, the cluster moves, messages arrive, sessions speak. A violation as text.
    fn turn(&mut self) -> Result<(), String> {
        self.now += 1 + self.dice.under(8);
        self.falls_silent();
        self.cluster_moves();
        self.reads_key();
        for index in 0..NODES {
            self.probes(index);
        }
        for index in 0..SESSIONS {
            self.speaks(index)?;
        }
        Ok(())
    }

    /// A probe of a node is sent, answered and heard; or the loss of its connection is.
    fn probes(&mut self, index: usize) {
        let now = self.now;
        if self.nodes[index].loss_heard_at.is_some_and(|at| at <= now) {
            self.nodes[index].loss_heard_at = None;
            self.is_lost(index);
            self.nodes[index].probe = None;
            self.disbelieves(index);
        }
        if self.believed == Some(index) && self.dice.one_in(250) {
            // It lives, but isn't heard, or its lease can't be shown.
            let until = now + 20 + self.dice.under(80);
            if self.dice.one_in(2) {
                self.deaf_until[index] = until;
                self.is_lost(index);
                self.nodes[index].probe = None;
            } else {
                self.doubts_until = until;
            }
            self.disbelieves(index);
        }
        if self.nodes[index].down_until.is_some() || self.nodes[index].loss_heard_at.is_some() || now < self.deaf_until[index] {
            return;
        }
        let leads = self.leader == Some(index);
        let node = &mut self.nodes[index];
        let told = node.told();
        let Some(probe) = &mut node.probe else {
            if self.dice.one_in(2) {
                let answered_at = now + self.dice.under(12);
                let heard_at = answered_at + self.dice.under(12);
                node.probe = Some(Probe { sent_at: now, answered_at, heard_at, lost: self.dice.one_in(8), answer: None });
            }
            return;
        };
        if probe.answer.is_none() && probe.answered_at <= now {
            let (shows, flushed, incarnation) = (node.shows, node.flushed, node.incarnation);
            let waits_since = self.waits_for.as_ref().map(|_| self.waiting.front().map_or(now, |(_, since)| *since));
            probe.answer = Some(Answer { leads, shows, received: node.received, told, flushed, incarnation, waits_since });
        }
        if probe.heard_at <= now
            && let Some(answer) = probe.answer
        {
            let (sent_at, lost) = (probe.sent_at, probe.lost);
            node.probe = None;
            if !lost {
                self.hears(index, sent_at, answer);
            }
        }
    }

    fn speaks(&mut self, index: usize) -> Result<(), String> {
        let Some(mut statement) = self.sessions[index].statement.take() else {
            if self.dice.one_in(self.pause) {
                self.asks(index);
            }
            return Ok(());
        };
        let node = &mut self.nodes[statement.node];
        if statement.shown.is_none() && statement.runs_at <= self.now {
            let alive = node.down_until.is_none() && node.incarnation == statement.incarnation;
            if !alive || (statement.writes && self.leader != Some(statement.node)) {
                if statement.writes {
                    let now = self.at(self.now);
                    self.sessions[index].watermark.saw_unknown(now);
                    self.marked_at = self.now;
                }
                return Ok(());
            }
            let mut shown = node.shows;
            if statement.writes {
                shown.lsn += 1 + self.dice.under(3);
                if self.waits_for.is_none() && self.dice.one_in(4) {
                    self.stalled = Some((shown.lsn, self.now + self.dice.under(60)));
                }
                self.inserts(statement.node, shown.lsn);
                self.tally.writes += 1;
            } else if self.leader == Some(statement.node) {
                shown.lsn = self.visible;
            }
            statement.shown = Some(shown);
        }
        let node = &self.nodes[statement.node];
        let leads = node.down_until.is_none() && node.incarnation == statement.incarnation && self.leader == Some(statement.node);
        let pending = statement.shown.filter(|_| statement.writes && !statement.committed);
        if pending.is_some_and(|_| !leads) {
            // Cut short in its wait for a standby: the outcome is unknown.
            let now = self.at(self.now);
            self.sessions[index].watermark.saw_unknown(now);
            self.marked_at = self.now;
            return Ok(());
        }
        statement.committed |= pending.is_some_and(|shown| shown.lsn <= self.visible);
        let done = statement.shown_at <= self.now && (statement.committed || !statement.writes);
        let Some(shown) = statement.shown.filter(|_| done) else {
            self.sessions[index].statement = Some(statement);
            return Ok(());
        };
        let on_replica = self.topology.leader.as_ref().is_none_or(|leader| leader.member != statement.node);
        if !(self.broken == Broken::ReplicasForgotten && on_replica && !statement.writes) {
            let at = self.at(if self.broken == Broken::SeenAtSending { statement.sent_at } else { self.now });
            self.sessions[index].watermark.saw(&statement.member, at);
        }
        if statement.writes {
            self.marked_at = if self.broken == Broken::MarkedAtSending { statement.sent_at } else { self.now };
            self.acknowledged = Some(shown);
            // The leader may have written more for others since.
            if self.survives(self.written, shown.timeline) < shown.lsn {
                self.written = shown;
            }
        }
        let seen = self.sessions[index].seen.replace(shown);
        let (node, writes) = (statement.node, statement.writes);
        self.note(|| format!("session {index} {} n{node}: {shown:?}", if writes { "wrote on" } else { "read from" }));
        match seen {
            Some(seen) if self.is_behind(shown, seen) => Err(format!("session {index} saw {seen:?}, then {shown:?} on n{node}")),
            _ => match statement.must {
                Some(must) if self.is_behind(shown, must) => Err(format!("{must:?} was written, session {index} saw {shown:?} on n{node}")),
                _ => Ok(()),
            },
        }
    }

    /// A session sends a write to the leader, or a read to where the router says.
    fn asks(&mut self, index: usize) {
        let asked = self.sessions[index].asked;
        if asked.is_none() && self.dice.one_in(2 + self.calm) {
            return self.sends(index, None, true, None);
        }
        let now = self.at(self.now);
        let (bound, must) = match self.level {
            Level::Eventual | Level::Session => (Bound::Nothing, None),
            Level::Global if self.broken == Broken::NothingMarked => (Bound::Nothing, self.must_show()),
            Level::Global => (Bound::since(self.at(self.marked_at), &self.topology), self.must_show()),
            Level::Strong => match self.strong_bound(index) {
                Some((bound, must)) => (bound, Some(must)),
                None => return,
            },
        };
        let random = self.dice.next();
        let excluded = Vec::new();
        let session = &mut self.sessions[index];
        let bounded = bound != Bound::Nothing || matches!(session.watermark.bound(&self.topology, now), Bound::At(_));
        let causal = self.level < Level::Strong && self.broken != Broken::Eventual;
        let watermark = causal.then_some(&mut session.watermark);
        let chosen = route::replica(Ask { watermark, bound, excluded: &excluded, zone: None, random }, &self.topology, &Free, now);
        self.tally.bounded_replica_reads += u64::from(bounded && chosen.is_ok());
        self.tally.leader_reads += u64::from(chosen.is_err());
        if let Some(witnessed) = self.topology.witnessed.filter(|_| bounded && chosen.is_ok()) {
            self.tally.exactly_witnessed_reads += u64::from(witnessed.exact);
            self.tally.otherwise_witnessed_reads += u64::from(!witnessed.exact);
        }
        let shown_at = self.sessions[index].watermark.on_replica();
        let sent = |statement: &Statement| statement.writes && shown_at.is_some_and(|at| self.at(statement.sent_at) <= at);
        let under_way = self.sessions.iter().filter_map(|session| session.statement.as_ref()).any(sent);
        let ahead = self.sessions[index].watermark.is_ahead_of_leader(&self.topology);
        if chosen.is_err() && (ahead || (under_way && self.broken != Broken::UnderWayForgotten)) {
            return;
        }
        let chosen = chosen.ok().cloned();
        self.sends(index, chosen, false, must);
    }

    /// What the leader says of its position after the read came, as `decide.rs` waits for it. `None`: it hasn't said anything yet.
    fn strong_bound(&mut self, index: usize) -> Option<(Bound, Position)> {
        if self.broken == Broken::OthersForgotten {
            return Some((Bound::since(self.at(self.marked_at), &self.topology), self.written));
        }
        let Some(leader) = self.believed.filter(|leader| self.leader == Some(*leader)) else {
            // Nobody can tell what counts.
            self.sessions[index].asked = None;
            return None;
        };
        // What was lost with the last leader was never this one's.
        let timeline = self.nodes[leader].shows.timeline;
        let must = Position { timeline, lsn: self.survives(self.written, timeline) };
        let asked = *self.sessions[index].asked.get_or_insert(Asked { at: self.now, epoch: self.epoch, must });
        if asked.epoch != self.epoch {
            self.sessions[index].asked = Some(Asked { at: self.now, epoch: self.epoch, must: asked.must });
            return None;
        }
        let since = if self.broken == Broken::SampledBefore { asked.at.saturating_sub(30) } else { asked.at };
        let sample = self.topology.sample_after(self.at(since))?;
        self.sessions[index].asked = None;
        Some((Bound::At(sample.insert_lsn), asked.must))
    }

    /// To `chosen`, or else to the leader.
    fn sends(&mut self, index: usize, chosen: Option<Arc<Member>>, writes: bool, must: Option<Position>) {
        let now = self.at(self.now);
        let Some(member) = chosen.or_else(|| self.topology.leader_at(now).map(|(_, member)| member.clone())) else { return };
        let Some(node) = self.names.iter().position(|name| *name == member.name) else { return };
        if self.nodes[node].down_until.is_some() {
            return;
        }
        let runs_at = self.now + self.dice.under(10);
        let shown_at = runs_at + self.dice.under(10);
        let (incarnation, sent_at) = (self.nodes[node].incarnation, self.now);
        let statement = Statement { node, incarnation, member, writes, sent_at, runs_at, shown_at, shown: None, committed: false, must };
        self.sessions[index].statement = Some(statement);
    }
}

/// The violation that a schedule leads to.
fn play(
    seed: u64,
    level: Level,
    broken: Broken,
    began: Instant,
    names: &Arc<[Arc<str>]>,
    traced: bool,
) -> (Tally, Option<(String, String)>) {
    let mut world = World::new(seed, level, broken, began, names, traced);
    for _ in 0..TURNS {
        if let Err(violation) = world.turn() {
            return (world.tally, Some((violation, world.trace.unwrap_or_default())));
        }
    }
    (world.tally, None)
}

fn names() -> Arc<[Arc<str>]> {
    (0..NODES).map(|index| Arc::from(format!("n{index}"))).collect()
}

/// Plays them all.
fn check(level: Level) {
    let schedules = std::env::var("SWITCHYARD_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(SCHEDULES);
    let (began, names) = (Instant::now(), names());
    let mut all = Tally::default();
    for seed in 0..schedules {
        let (tally, violation) = play(seed, level, Broken::Nothing, began, &names, false);
        if violation.is_some() {
            let (violation, trace) = play(seed, level, Broken::Nothing, began, &names, true).1.unwrap_or_default();
            panic!("schedule {seed}: {violation}\n{trace}");
        }
        all.bounded_replica_reads += tally.bounded_replica_reads;
        all.leader_reads += tally.leader_reads;
        all.writes += tally.writes;
        all.promotions += tally.promotions;
        all.restarts += tally.restarts;
        all.left_behind += tally.left_behind;
        all.exactly_witnessed_reads += tally.exactly_witnessed_reads;
        all.otherwise_witnessed_reads += tally.otherwise_witnessed_reads;
    }
    println!("{}: {schedules} schedules in {:.1} s: {all:?}", level.as_str(), began.elapsed().as_secs_f64());
    // The model reaches what it is for.
    assert!(all.bounded_replica_reads > schedules && all.leader_reads > schedules && all.writes > schedules, "{all:?}");
    // A strong read waits for a leader.
    assert!(level == Level::Strong || all.exactly_witnessed_reads > schedules / 4, "{all:?}");
    assert!(level != Level::Global || all.otherwise_witnessed_reads > schedules / 10, "{all:?}");
    assert!(all.promotions > schedules / 4 && all.restarts > schedules / 4 && all.left_behind > schedules / 20, "{all:?}");
}

#[test]
fn no_schedule_leads_to_a_stale_read() {
    check(Level::Session);
}

#[test]
fn no_schedule_leads_to_a_stale_read_of_what_others_wrote() {
    check(Level::Global);
}

#[test]
fn no_schedule_leads_to_a_stale_read_of_what_anybody_wrote() {
    check(Level::Strong);
}

#[test]
fn every_broken_rule_is_found_out() {
    let (began, names) = (Instant::now(), names());
    for (level, broken) in [
        (Level::Session, Broken::ReceiveTime),
        (Level::Session, Broken::SeenAtSending),
        (Level::Session, Broken::ReplicasForgotten),
        (Level::Session, Broken::TimelinesIgnored),
        (Level::Session, Broken::ForksIgnored),
        (Level::Session, Broken::RestartsUnnoticed),
        (Level::Session, Broken::ReceivedForReplayed),
        (Level::Session, Broken::FlushedForInserted),
        (Level::Session, Broken::Eventual),
        (Level::Global, Broken::MarkedAtSending),
        (Level::Global, Broken::NothingMarked),
        (Level::Global, Broken::ReceiveTime),
        (Level::Global, Broken::ReceivedForReplayed),
        (Level::Global, Broken::WitnessedBefore),
        (Level::Global, Broken::AnyoneWitnesses),
        (Level::Global, Broken::OneOfAQuorum),
        (Level::Global, Broken::KeyOutdated),
        (Level::Global, Broken::AskedBeforeNamed),
        (Level::Global, Broken::RestartedWitness),
        (Level::Global, Broken::NoGrace),
        (Level::Session, Broken::WitnessedBefore),
        (Level::Session, Broken::AnyoneIsExact),
        (Level::Session, Broken::ReplicasUnasked),
        (Level::Session, Broken::LostReplicaForgotten),
        (Level::Session, Broken::UnderWayForgotten),
        (Level::Strong, Broken::SampledBefore),
        (Level::Strong, Broken::OthersForgotten),
        (Level::Strong, Broken::ReceivedForReplayed),
    ] {
        let found = (0..SEARCHED).find_map(|seed| Some((seed, play(seed, level, broken, began, &names, false).1?.0)));
        let Some((seed, violation)) = found else { panic!("{level:?}, {broken:?}: not found out in {SEARCHED} schedules") };
        println!("{level:?}, {broken:?}: schedule {seed}: {violation}");
    }
}
