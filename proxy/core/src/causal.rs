//! The watermark: what a session has seen, and which replica may therefore serve it.
//!
//! What a session has seen is one value, [`Seen`]: the node that showed it last, and when. It is set *before* the bytes that show
//! it are forwarded. The argument:
//!
//! - Everything that the leader showed at time `at` was in WAL below its insert position at `at`. A leader sample whose
//!   question was *sent* after `at` reports an insert position at least as high. So the earliest such sample is an upper
//!   bound on all that the session has seen (`needed`), whichever node showed it: replicas only show what the leader wrote.
//! - A replica's sampled replay position is a lower bound on what it shows from then on: commits become visible before the
//!   replay position passes them.
//! - Hence a replica whose sample is at or above `needed`, on the leader's timeline, shows everything that the session has seen.
//! - A replica that showed something goes on showing it, so staying there needs no check, as long as it was proven fresh when the session came
//!   to it (not so at the level `eventual`, which a statement alone may have) and it hasn't restarted (a standby killed and started again opens at its minimum recovery point, which may lie before what it showed; so does one that
//!   lost a backend to a crash, though its postmaster lives on).
//! - From a replica to the leader there is one race, PostgreSQL's own: a commit that waits for its synchronous standby is visible on replicas
//!   and not on the leader. Such a read waits for a sample that shows no commit that has waited since before the replica's answer. Without a
//!   synchronous standby, the commit's process may be without a processor between its WAL's flush and its transaction's end: such a read waits
//!   until what this router had sent before the replica's answer is answered ([`crate::marks::Marks::are_behind`]).
//! - While no leader is in force, the last one's samples go on counting, as positions up to the fork are the next one's, too; and what was
//!   acknowledged after them is bounded by what standbys have received ([`crate::witness`]). Of two bounds the lower one counts.
//!
//! `causal_model.rs` plays this against random schedules of a simulated cluster, and shows that each rule is needed.
//!
//! No question is ever put to a server on behalf of a statement: where no sample proves a replica, the leader serves the read.

use std::sync::Arc;
use std::time::Instant;

use crate::lsn::Lsn;
use crate::topology::{Epoch, Member, Topology};

/// What a read must show. A higher level shows all that a lower one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Whatever a replica within the limits of lag shows.
    Eventual,
    /// What the session has seen and done itself.
    Session,
    /// Also the writes that this router has acknowledged to any session before the read came.
    Global,
    /// Also those that any other router, or the leader directly, has acknowledged before the read came.
    Strong,
}

impl Level {
    /// All of them, from the lowest to the highest.
    pub const ALL: [Level; 4] = [Level::Eventual, Level::Session, Level::Global, Level::Strong];
    /// How each is spelled, in the same order.
    pub const WORDS: [&'static str; 4] = ["eventual", "session", "global", "strong"];

    pub fn as_str(self) -> &'static str {
        Level::WORDS[self as usize]
    }
}

/// The node that showed the session something last, and when.
#[derive(Clone, Debug)]
struct Seen {
    /// `None`: nobody shows for certain all that the session has seen.
    node: Option<Arc<str>>,
    /// Start time of that node's server: 0.0 where it isn't known.
    started_at: f64,
    at: Instant,
}

/// An upper bound on what the session has seen, as a leader's insert position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Needed {
    epoch: Epoch,
    lsn: Lsn,
}

/// The session's watermark. A new session has seen nothing.
#[derive(Clone, Debug, Default)]
pub struct Watermark {
    seen: Option<Seen>,
    /// Taken from the ring once, when a read needs it; void when something new is seen.
    needed: Option<Needed>,
    /// When a replica showed something last.
    on_replica: Option<Instant>,
}

/// What a replica has to show. A greater one asks for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    /// Nothing has been seen or written.
    Nothing,
    /// Everything up to this position of the leader's WAL.
    At(Lsn),
    /// No sample bounds it yet.
    Unknown,
}

impl Bound {
    /// What bounds all that was acknowledged until `at`; without a leader that waits for synchronous standbys, up to what has come to
    /// any standby.
    pub fn since(at: Instant, topology: &Topology) -> Bound {
        let sampled = topology.sample_after(at).map(|sample| sample.insert_lsn);
        Bound::lower(sampled, topology.witnessed_after(at).map(|witnessed| witnessed.lsn))
    }

    /// The lower one of two bounds on the same.
    fn lower(sampled: Option<Lsn>, witnessed: Option<Lsn>) -> Bound {
        sampled.into_iter().chain(witnessed).min().map_or(Bound::Unknown, Bound::At)
    }
}

impl Watermark {
    /// The session is about to be shown what `member` answered. Call before the bytes are forwarded.
    pub fn saw(&mut self, member: &Member, now: Instant) {
        let started_at = started_at(member);
        if member.probed.as_ref().is_none_or(|probed| probed.in_recovery) {
            self.on_replica = Some(now);
        }
        match &mut self.seen {
            Some(seen) if seen.node.as_ref() == Some(&member.name) => {
                seen.at = now;
                // A restart between two answers: what counts is the server that answered last.
                seen.started_at = started_at;
            }
            seen => *seen = Some(Seen { node: Some(member.name.clone()), started_at, at: now }),
        }
        self.needed = None;
    }

    /// Something may have been done by a server that is gone (an unknown outcome).
    pub fn saw_unknown(&mut self, now: Instant) {
        self.seen = Some(Seen { node: None, started_at: 0.0, at: now });
        self.needed = None;
    }

    /// As [`Watermark::saw`], of a replica that was chosen without regard to what the session has seen: staying there proves nothing.
    pub fn saw_unproven(&mut self, now: Instant) {
        self.on_replica = Some(now);
        self.saw_unknown(now);
    }

    /// Whether `member` shows all that the session has seen, as far as can be told without a sample.
    pub fn proves(&self, member: &Member) -> bool {
        self.seen.is_none() || self.stays_on(member)
    }

    /// The bound that a replica has to meet under `topology`, taken from its samples once and kept.
    pub fn bound(&mut self, topology: &Topology, now: Instant) -> Bound {
        let Some(seen) = &mut self.seen else { return Bound::Nothing };
        if self.needed.is_some_and(|needed| needed.epoch != topology.sampled_in) {
            // Positions past a fork are void, and where the fork lies isn't known here: a sample of the new leader, taken from now on, bounds
            // all that has survived.
            self.needed = None;
            seen.at = now;
        }
        // Samples are of one epoch only. One that was sent after `at` bounds what was seen, also across a change of leader: the new
        // leader's WAL continues the old one's, less what is lost.
        if self.needed.is_none() {
            let sample = topology.sample_after(seen.at);
            self.needed = sample.map(|sample| Needed { epoch: topology.sampled_in, lsn: sample.insert_lsn });
        }
        let witnessed = topology.witnessed_after(seen.at).filter(|witnessed| witnessed.exact);
        // Replicas may have shown more than the synchronous ones had received: a sample bounds that, or what all of them have received.
        let witnessed = witnessed.and_then(|witnessed| match self.on_replica {
            Some(at) => {
                let sampled = topology.sample_after(at).map(|sample| sample.insert_lsn);
                let received = topology.received_after(at).map(|received| received.lsn);
                sampled.into_iter().chain(received).min().map(|lsn| lsn.max(witnessed.lsn))
            }
            None => Some(witnessed.lsn),
        });
        Bound::lower(self.needed.map(|needed| needed.lsn), witnessed)
    }

    /// Whether a replica has shown something that the leader may not show yet. Only where it waits for synchronous standbys.
    pub fn is_ahead_of_leader(&self, topology: &Topology) -> bool {
        self.on_replica.is_some_and(|at| topology.is_unsettled(at))
    }

    /// When a replica showed the session something last.
    pub fn on_replica(&self) -> Option<Instant> {
        self.on_replica
    }

    /// Whether `member` answered last, and hasn't restarted since.
    pub fn stays_on(&self, member: &Member) -> bool {
        self.seen
            .as_ref()
            .is_some_and(|seen| seen.node.as_ref() == Some(&member.name) && seen.started_at == started_at(member) && seen.started_at != 0.0)
    }
}

fn started_at(member: &Member) -> f64 {
    member.probed.as_ref().map_or(0.0, |probed| probed.started_at_unix_seconds)
}

/// Whether a replica shows everything up to `bound`.
pub fn shows(member: &Member, bound: Bound) -> bool {
    match bound {
        Bound::Nothing => true,
        Bound::Unknown => false,
        Bound::At(lsn) => member.probed.as_ref().is_some_and(|probed| {
            // Behind a fork the replica's positions count up to the fork only; the judge has put a replica past it out.
            let proven = member.fork.map_or(probed.replay_lsn, |fork| probed.replay_lsn.min(fork));
            proven >= lsn
        }),
    }
}
