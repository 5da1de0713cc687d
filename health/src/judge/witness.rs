//! What standbys tell of the acknowledged writes while no leader is in force: picks whose word counts (`switchyard_core::witness`).

use std::sync::Arc;
use std::time::Instant;

use switchyard_core::lsn::Lsn;
use switchyard_core::witness::{self, Received, Standby, Testimony, Witnessed};

use super::{Judge, Seat, identity};
use crate::keys::SyncKey;
use crate::lag::Marks;
use crate::observation::Found;

/// One run of a standby's server.
#[derive(Debug)]
pub(super) struct Run {
    /// When the first probe of it was sent.
    since: Instant,
    /// It has received as much as the leader had flushed after it was first seen, so all that was confirmed in runs before.
    joined: bool,
}

impl Run {
    /// What is known of a standby's run with its newest probe. `before`: the probe before, and its run.
    pub(super) fn after(before: Option<(&Found, Option<Run>)>, found: &Found) -> Option<Run> {
        let goes_on = before.and_then(|(before, run)| run.filter(|_| found.goes_on_from(before)));
        goes_on.or(Some(Run { since: found.sent_at, joined: false })).filter(|_| found.in_recovery)
    }
}

impl Seat {
    /// Notices that a standby has received all that the leader had flushed when the standby's run was seen first.
    pub(super) fn join(&mut self, marks: &Marks) {
        let (Some(found), Some(run)) = (&self.found, &mut self.run) else { return };
        run.joined = run.joined || marks.flushed_after(run.since).is_some_and(|flushed| received(found) >= flushed);
    }
}

/// Of a standby, the probe's second position is what it has received; of a leader, what it has inserted.
fn received(found: &Found) -> Lsn {
    found.insert_lsn
}

fn testimony(found: &Found) -> Testimony {
    Testimony { sent_at: found.sent_at, received: received(found) }
}

impl Judge {
    /// Call while no leader is in force.
    pub(super) fn witnessed(&self) -> Option<Witnessed> {
        let members = || self.seats.iter().filter_map(|(name, seat)| Some((name, seat, self.of_this_system(seat.reachable()?)?)));
        let led = self.reign.as_ref().map(|reign| &*reign.identity.name);
        if let Some((.., found)) = members().find(|(name, seat, found)| self.led(name, seat, found)) {
            return Some(witness::by_leader(testimony(found)));
        }
        // The key of another leader says nothing of this one's commits.
        let names = |key: &SyncKey| !key.standbys.is_empty() && led == Some(&key.leader);
        if self.sync.as_ref().is_some_and(names) || self.sync_reads.iter().any(|(_, key)| names(key)) {
            return self.sync_reads.iter().filter(|(_, key)| names(key)).find_map(|(read, key)| {
                let named = members().filter(|(name, seat, found)| {
                    let joined = seat.run.as_ref().is_some_and(|run| run.joined);
                    found.in_recovery && joined && key.standbys.iter().any(|standby| **standby == ***name)
                });
                witness::by_synchronous(named.map(|(.., found)| testimony(found)), key.enough, *read)
            });
        }
        let grace = self.rules.global_without_leader?;
        // Whoever is out of recovery, or follows somebody who was promoted, has a leader to tell of: it is about to be named, or goes.
        let led_on = members().any(|(.., found)| !found.in_recovery || found.timeline > self.reference().timeline);
        let fitting = members().filter(|(.., found)| self.reference().fit(Some(found)).1);
        witness::by_any(fitting.map(|(.., found)| testimony(found)), self.heard_leader_at + grace).filter(|_| !led_on)
    }

    /// What bounds all that replicas have shown. Call while no leader is in force.
    pub(super) fn received(&self) -> Option<Received> {
        let led = &self.reign.as_ref()?.identity.name;
        // What the leader has shown is bounded otherwise, until it comes back as a standby.
        let led = |name: &Arc<str>, seat: &Seat| name == led && seat.found.as_ref().is_none_or(|found| !found.in_recovery);
        let standbys = self.seats.iter().filter(|(name, seat)| !led(name, seat)).map(|(_, seat)| Standby {
            testimony: seat.reachable().map(testimony),
            since: seat.run.as_ref().filter(|_| seat.reachable().is_some()).map_or(seat.since, |run| run.since),
        });
        witness::by_replicas(standbys, |since| self.marks.inserted_after(since))
    }

    /// Whether this is the last leader as it was, or demoted: a server that crashed as a leader opens as a standby at the end of its WAL only. One that was
    /// rewound is on the next leader's timeline.
    fn led(&self, name: &Arc<str>, seat: &Seat, found: &Found) -> bool {
        self.reign
            .as_ref()
            .is_some_and(|reign| found.timeline.is_some_and(|timeline| reign.identity == identity(name, seat, found, timeline)))
    }

    fn of_this_system<'a>(&self, found: &'a Found) -> Option<&'a Found> {
        let known = self.reign.as_ref().map(|reign| reign.identity.system_identifier);
        Some(found).filter(|found| known.is_none_or(|known| known == found.system_identifier))
    }
}
