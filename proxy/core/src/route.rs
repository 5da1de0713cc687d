//! Choosing a node: pure, from a verdict's class, the session's watermark and a topology snapshot.

use std::sync::Arc;
use std::time::Instant;

use crate::causal::{self, Bound, Watermark};
use crate::topology::{Epoch, Member, Topology};

/// What a server connection was opened for. Replica connections are opened with `default_transaction_read_only=on`,
/// because the same connection would accept writes after a promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServerRole {
    Leader,
    Replica,
}

/// A server connection that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub node: Arc<str>,
    pub role: ServerRole,
    /// The epoch under which this was decided.
    pub epoch: Epoch,
    pub why: Why,
}

/// Why a node was chosen, or why not elsewhere: a stable word for explanations and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// The statement isn't a read.
    Write,
    /// A read, on a replica that shows what the session has seen.
    FreshReplica,
    /// A read on the read-only port, or at the level `eventual`.
    AnyReplica,
    /// No replica is proven to show what the session has seen.
    NotCaughtUp,
    /// No replica is in rotation.
    NoReplica,
    /// A replica's answer was an error, or it was lost: run again on the leader.
    Rerun,
    /// `/* switchyard: leader */` or a setting.
    Hint,
    /// An explicit transaction that isn't READ ONLY.
    Transaction,
    /// The batch was too long to look through.
    LookAhead,
    /// Session or transaction control.
    Local,
    /// The read-only port, served by the leader for want of a replica.
    Fallback,
    /// A read of what DDL may just have changed.
    InDoubt,
}

impl Why {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Why; 12] = [
        Why::Write,
        Why::FreshReplica,
        Why::AnyReplica,
        Why::NotCaughtUp,
        Why::NoReplica,
        Why::Rerun,
        Why::Hint,
        Why::Transaction,
        Why::LookAhead,
        Why::Local,
        Why::Fallback,
        Why::InDoubt,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Why::Write => "write",
            Why::FreshReplica => "fresh_replica",
            Why::AnyReplica => "any_replica",
            Why::NotCaughtUp => "not_caught_up",
            Why::NoReplica => "no_replica",
            Why::Rerun => "rerun",
            Why::Hint => "hint",
            Why::Transaction => "transaction",
            Why::LookAhead => "look_ahead",
            Why::Local => "local",
            Why::Fallback => "fallback",
            Why::InDoubt => "in_doubt",
        }
    }
}

/// What the choice knows of a member's load.
pub trait Loads {
    /// Expected cost of one more statement there; only comparisons matter.
    fn cost(&self, member: &Member) -> f64;

    /// Whether so many sessions use it that a read had better wait a moment for another one.
    fn is_busy(&self, member: &Member) -> bool;
}

/// Nodes that this batch is not to go to again.
pub type Excluded = Vec<Arc<str>>;

/// What a read asks of a replica.
#[derive(Debug)]
pub struct Ask<'a> {
    /// What the session has seen; `None` where that doesn't count.
    pub watermark: Option<&'a mut Watermark>,
    /// What else a replica has to show, the one that served the session last, too.
    pub bound: Bound,
    pub excluded: &'a Excluded,
    pub zone: Option<&'a str>,
    /// Any number; two candidates are drawn by it.
    pub random: u64,
}

/// The replica for a read.
///
/// # Errors
/// [`Why::NoReplica`] or [`Why::NotCaughtUp`].
pub fn replica<'t>(ask: Ask<'_>, topology: &'t Topology, loads: &dyn Loads, now: Instant) -> Result<&'t Arc<Member>, Why> {
    let (bound, stay) = match ask.watermark {
        Some(watermark) => (watermark.bound(topology, now), Some(&*watermark)),
        None => (Bound::Nothing, None),
    };
    let mut in_rotation = false;
    let mut fresh: Vec<&Arc<Member>> = Vec::with_capacity(8);
    for (_, member) in topology.replicas() {
        if ask.excluded.contains(&member.name) {
            continue;
        }
        in_rotation = true;
        let seen = causal::shows(member, bound) || stay.is_some_and(|watermark| watermark.stays_on(member));
        if seen && causal::shows(member, ask.bound) {
            fresh.push(member);
        }
    }
    if let Some(zone) = ask.zone
        && fresh.iter().any(|member| member.zone.as_deref() == Some(zone))
    {
        fresh.retain(|member| member.zone.as_deref() == Some(zone));
    }
    match fresh.as_slice() {
        [] if in_rotation => Err(Why::NotCaughtUp),
        [] => Err(Why::NoReplica),
        [one] => Ok(one),
        many => {
            // The power of two choices: draw two, take the cheaper.
            let count = many.len() as u64;
            let first = ask.random % count;
            let second = (first + 1 + (ask.random >> 32) % (count - 1)) % count;
            let (first, second) = (many[first as usize], many[second as usize]);
            Ok(if loads.cost(second) < loads.cost(first) { second } else { first })
        }
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
