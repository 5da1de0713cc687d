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

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::causal::{Bound, Level, Watermark};
use crate::lsn::{Lsn, Timeline};
use crate::route::{self, Ask, Loads};
use crate::topology::{ClusterState, Epoch, Leader, Member, Out, Probed, Role, Sample, Topology};

const NODES: usize = 4;
const SESSIONS: usize = 3;
/// Turns of one schedule.
const TURNS: usize = 200;
/// Samples that the ring keeps: few, so that they run out.
const SAMPLES_MAX: usize = 8;
/// Schedules of a normal run; `SWITCHYARD_SCHEDULES` sets another number.
const SCHEDULES: u64 = 20_000;

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
    flushed: u64,
    incarnation: u32,
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
    nodes: Vec<Node>,
    names: Arc<[Arc<str>]>,
    /// `None`: down, nobody is promoted yet.
    leader: Option<usize>,
    /// Where timeline n + 2 left timeline n + 1.
    forks: Vec<u64>,
    sessions: Vec<Session>,
    // What the router believes.
    epoch: u64,
    believed: Option<usize>,
    believed_timeline: u32,
    answers: [Option<(u64, Answer)>; NODES],
    unreachable: [bool; NODES],
    samples: Vec<Sample>,
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
            reopens_at: 100,
            probe: None,
            loss_heard_at: None,
        };
        let session = |_| Session { watermark: Watermark::default(), seen: None, asked: None, statement: None };
        let mut dice = Dice::new(seed);
        let (calm, pause) = (1 + dice.under(16), 2 + dice.under(6));
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
            nodes: (0..NODES).map(node).collect(),
            names: names.clone(),
            leader: Some(0),
            forks: Vec::new(),
            sessions: (0..SESSIONS).map(session).collect(),
            epoch: 1,
            believed: Some(0),
            believed_timeline: 1,
            answers: [None; NODES],
            unreachable: [false; NODES],
            samples: Vec::new(),
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
        forks.fold(position.lsn, |lsn, fork| lsn.min(*fork))
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
        self.cluster_moves();
        for index in 0..NODES {
            self.probes(index);
        }
        for index in 0..SESSIONS {
            self.speaks(index)?;
        }
        Ok(())
    }

    fn cluster_moves(&mut self) {
        let newest = self.forks.len() as u32 + 1;
        for index in 0..NODES {
            if self.nodes[index].down_until.is_some_and(|until| until <= self.now) {
                self.nodes[index].down_until = None;
                self.nodes[index].incarnation += 1;
                self.tally.restarts += 1;
                let node = &self.nodes[index];
                let (incarnation, shows) = (node.incarnation, node.shows);
                self.note(|| format!("n{index} is up again, incarnation {incarnation}, at {shows:?}"));
            }
            if self.nodes[index].down_until.is_some() {
                continue;
            }
            if self.leader == Some(index) {
                let node = &mut self.nodes[index];
                if self.dice.one_in(3) {
                    node.flushed = node.shows.lsn;
                }
                // Other clients write, too.
                if self.dice.one_in(4 * self.calm) {
                    node.shows.lsn += 1 + self.dice.under(5);
                    self.written = node.shows;
                }
                node.reopens_at = node.flushed;
            } else {
                self.replica_moves(index, newest);
            }
        }
        if self.dice.one_in(60) {
            let index = self.dice.under(NODES as u64) as usize;
            self.crashes(index);
        }
        if self.leader.is_none() && self.dice.one_in(4) {
            self.promotes(newest);
        }
    }

    fn replica_moves(&mut self, index: usize, newest: u32) {
        let leader = self.leader.map(|leader| (self.nodes[leader].shows, self.nodes[leader].flushed));
        let shows = self.nodes[index].shows;
        if shows.timeline < newest && self.dice.one_in(6) {
            if self.survives(shows, newest) == shows.lsn {
                // It follows to the new timeline; what it received of the old one beyond the fork is dropped.
                let node = &mut self.nodes[index];
                node.shows.timeline = newest;
                node.received = shows.lsn;
                self.note(|| format!("n{index} follows to timeline {newest} at {}", shows.lsn));
            } else if self.dice.one_in(4) {
                // pg_rewind: it comes back somewhere before the fork.
                let lsn = self.survives(shows, newest);
                self.crashes(index);
                let node = &mut self.nodes[index];
                (node.shows, node.received, node.reopens_at) = (Position { timeline: newest, lsn }, lsn, lsn);
                self.note(|| format!("n{index} is rewound to {lsn} of timeline {newest}"));
            }
            return;
        }
        if let Some((leader, flushed)) = leader
            && leader.timeline == shows.timeline
            && self.dice.one_in(2)
        {
            self.nodes[index].received = self.nodes[index].received.max(flushed);
        }
        let node = &mut self.nodes[index];
        if self.dice.one_in(3) && node.received > node.shows.lsn {
            node.shows.lsn += 1 + self.dice.under(node.received - node.shows.lsn);
        }
        if self.dice.one_in(12) {
            node.reopens_at = node.shows.lsn;
        }
        node.reopens_at = node.reopens_at.min(node.shows.lsn);
    }

    fn crashes(&mut self, index: usize) {
        if self.nodes[index].down_until.is_some() {
            return;
        }
        let (down, heard) = (20 + self.dice.under(60), self.dice.under(15));
        let now = self.now;
        let node = &mut self.nodes[index];
        node.down_until = Some(now + down);
        node.loss_heard_at = Some(now + heard);
        node.probe = None;
        if self.leader == Some(index) {
            self.leader = None;
            // What wasn't flushed is gone; as the later replica it comes back with the rest.
            node.shows.lsn = node.flushed;
            node.received = node.flushed;
        } else {
            node.shows.lsn = node.reopens_at;
        }
        self.note(|| format!("n{index} crashes"));
    }

    fn promotes(&mut self, newest: u32) {
        let able = |node: &Node| node.down_until.is_none() && self.survives(node.shows, newest) == node.shows.lsn;
        let candidates: Vec<usize> = (0..NODES).filter(|index| able(&self.nodes[*index])).collect();
        if candidates.is_empty() {
            return;
        }
        let index = candidates[self.dice.under(candidates.len() as u64) as usize];
        let node = &mut self.nodes[index];
        // It first replays what it has received, of the newest timeline only.
        let fork = if node.shows.timeline == newest { node.received.max(node.shows.lsn) } else { node.shows.lsn };
        node.shows = Position { timeline: newest + 1, lsn: fork };
        (node.received, node.flushed) = (fork, fork);
        self.forks.push(fork);
        self.leader = Some(index);
        self.tally.promotions += 1;
        self.note(|| format!("n{index} is promoted to timeline {} at {fork}", newest + 1));
    }

    /// A probe of a node is sent, answered and heard; or the loss of its connection is.
    fn probes(&mut self, index: usize) {
        let now = self.now;
        if self.nodes[index].loss_heard_at.is_some_and(|at| at <= now) {
            self.nodes[index].loss_heard_at = None;
            self.unreachable[index] = true;
            self.nodes[index].probe = None;
            if self.believed == Some(index) {
                // Its key goes: the epoch ends with it.
                self.believed = None;
                self.epoch += 1;
                self.samples.clear();
            }
            self.publish();
        }
        if self.nodes[index].down_until.is_some() || self.nodes[index].loss_heard_at.is_some() {
            return;
        }
        let leads = self.leader == Some(index);
        let node = &mut self.nodes[index];
        let Some(probe) = &mut node.probe else {
            if self.dice.one_in(2) {
                let answered_at = now + self.dice.under(12);
                let heard_at = answered_at + self.dice.under(12);
                node.probe = Some(Probe { sent_at: now, answered_at, heard_at, lost: self.dice.one_in(8), answer: None });
            }
            return;
        };
        if probe.answer.is_none() && probe.answered_at <= now {
            let (shows, received, flushed, incarnation) = (node.shows, node.received, node.flushed, node.incarnation);
            probe.answer = Some(Answer { leads, shows, received, flushed, incarnation });
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

    fn hears(&mut self, index: usize, sent_at: u64, answer: Answer) {
        self.unreachable[index] = false;
        self.answers[index] = Some((sent_at, answer));
        if answer.leads {
            if self.believed != Some(index) {
                self.epoch += 1;
                self.samples.clear();
                (self.believed, self.believed_timeline) = (Some(index), answer.shows.timeline);
                let epoch = self.epoch;
                self.note(|| format!("the router believes in n{index}, epoch {epoch}"));
            }
            let counts_from = if self.broken == Broken::ReceiveTime { self.now } else { sent_at };
            let lsn = if self.broken == Broken::FlushedForInserted { answer.flushed } else { answer.shows.lsn };
            self.samples.push(Sample {
                sent_at: self.at(counts_from),
                insert_lsn: Lsn(lsn),
                flush_lsn: Lsn(answer.flushed),
                settled_at: None,
            });
            if self.samples.len() > SAMPLES_MAX {
                self.samples.remove(0);
            }
        }
        self.publish();
    }

    /// As the judge does: who fits the leader's history, and up to where.
    fn publish(&mut self) {
        let timeline = self.believed_timeline;
        let members = (0..NODES).map(|index| {
            let answer = self.answers[index].filter(|_| !self.unreachable[index]);
            let (mut out, mut fork) = (None, None);
            match answer {
                None => out = Some(Out::Unreachable),
                Some((_, answer)) if answer.leads && self.believed != Some(index) => out = Some(Out::NotInRecovery),
                Some((_, answer)) if answer.shows.timeline < timeline => {
                    let left_at = self.survives(Position { timeline: answer.shows.timeline, lsn: u64::MAX }, timeline);
                    fork = Some(Lsn(left_at));
                    if answer.shows.lsn > left_at {
                        self.tally.left_behind += 1;
                        out = Some(Out::WrongTimeline);
                    }
                }
                Some((_, answer)) if answer.shows.timeline > timeline => out = Some(Out::WrongTimeline),
                Some(_) => {}
            }
            match self.broken {
                Broken::TimelinesIgnored if out == Some(Out::WrongTimeline) => (out, fork) = (None, None),
                Broken::ForksIgnored if fork.is_some() => (out, fork) = (None, None),
                _ => {}
            }
            let probed = self.answers[index].map(|(sent_at, answer)| Probed {
                sent_at: self.at(sent_at),
                in_recovery: !answer.leads,
                replay_lsn: Lsn(if self.broken == Broken::ReceivedForReplayed {
                    answer.received.max(answer.shows.lsn)
                } else {
                    answer.shows.lsn
                }),
                timeline: Some(Timeline(answer.shows.timeline)),
                round_trip: Duration::from_micros(1),
                started_at_unix_seconds: if self.broken == Broken::RestartsUnnoticed { 1.0 } else { f64::from(answer.incarnation) },
                version_num: 150_000,
                clock_offset_ms: 0.0,
            });
            let name = self.names[index].clone();
            Arc::new(Member {
                host: name.clone(),
                patroni_state: name.clone(),
                name,
                port: 5432,
                api_url: None,
                role: Role::Replica,
                weight: 100,
                zone: None,
                probed,
                probe_error: None,
                since: self.epoch_began,
                lag_bytes: None,
                lag: None,
                out,
                fork,
            })
        });
        let members = members.collect();
        let leader = self.believed.map(|member| Leader {
            member,
            epoch: Epoch(self.epoch),
            timeline: Timeline(timeline),
            valid_until: self.epoch_began + Duration::from_secs(3600),
            standby_cluster: false,
            failsafe: false,
        });
        self.topology = Topology {
            generation: self.topology.generation + 1,
            state: if leader.is_some() { ClusterState::Stable } else { ClusterState::Leaderless },
            epoch: Epoch(self.epoch),
            leader,
            members,
            samples: self.samples.as_slice().into(),
            ..Topology::default()
        };
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
            if statement.writes {
                node.shows.lsn += 1 + self.dice.under(3);
                self.tally.writes += 1;
            }
            statement.shown = Some(node.shows);
        }
        let Some(shown) = statement.shown.filter(|_| statement.shown_at <= self.now) else {
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
            Level::Global if self.broken == Broken::NothingMarked => (Bound::Nothing, self.acknowledged),
            Level::Global => (Bound::since(self.at(self.marked_at), &self.topology), self.acknowledged),
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
        let statement = Statement { node, incarnation, member, writes, sent_at, runs_at, shown_at, shown: None, must };
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
    }
    println!("{}: {schedules} schedules in {:.1} s: {all:?}", level.as_str(), began.elapsed().as_secs_f64());
    // The model reaches what it is for.
    assert!(all.bounded_replica_reads > schedules && all.leader_reads > schedules && all.writes > schedules, "{all:?}");
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
        (Level::Strong, Broken::SampledBefore),
        (Level::Strong, Broken::OthersForgotten),
        (Level::Strong, Broken::ReceivedForReplayed),
    ] {
        let found = (0..SCHEDULES).find_map(|seed| Some((seed, play(seed, level, broken, began, &names, false).1?.0)));
        let Some((seed, violation)) = found else { panic!("{level:?}, {broken:?}: not found out in {SCHEDULES} schedules") };
        println!("{level:?}, {broken:?}: schedule {seed}: {violation}");
    }
}
