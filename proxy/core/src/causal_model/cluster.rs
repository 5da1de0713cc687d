//! How the simulated cluster moves: replication, crashes, promotions, and what Patroni does about synchronous standbys.

use std::collections::VecDeque;

use super::{NODES, Node, Position, World};

/// How commits wait for standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Synchronous {
    Off,
    /// For one, which changes; in between for none.
    One,
    /// For so many of all the others.
    Quorum(usize),
}

/// Patroni's `sync` key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyncKey {
    pub(super) leader: usize,
    pub(super) standbys: Vec<usize>,
    pub(super) enough: usize,
}

impl SyncKey {
    /// Of a leader that waits for nobody.
    pub(super) fn of(leader: usize) -> SyncKey {
        SyncKey { leader, standbys: Vec::new(), enough: 1 }
    }
}

/// `synchronous_standby_names`: whom commits wait for, and for how many of them.
pub(super) type Names = (Vec<usize>, usize);

/// A change of synchronous standbys under way.
pub(super) struct Aim {
    names: Option<Names>,
    /// Once commits wait for them: how far they have to get before they are named in the key.
    from: Option<u64>,
}

impl World {
    pub(super) fn cluster_moves(&mut self) {
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
                    let lsn = node.shows.lsn + 1 + self.dice.under(5);
                    self.inserts(index, lsn);
                }
                let node = &mut self.nodes[index];
                node.reopens_at = node.flushed;
                self.commits();
                self.patroni_moves(index);
            } else {
                self.replica_moves(index, newest);
            }
        }
        if self.dice.one_in(60) {
            let index = self.dice.under(NODES as u64) as usize;
            self.crashes(index);
        }
        if self.leader.is_none() && self.dice.one_in(self.vacancy) {
            self.promotes(newest);
        }
    }

    fn replica_moves(&mut self, index: usize, newest: u32) {
        let leader = self.leader.map(|leader| (self.nodes[leader].shows, self.nodes[leader].flushed));
        let shows = self.nodes[index].shows;
        if shows.timeline < newest && self.dice.one_in(6) {
            if self.survives(shows, newest) == shows.lsn {
                // It follows to the new timeline; what it received of the old one beyond the fork is dropped.
                let received = self.survives(Position { timeline: shows.timeline, lsn: self.nodes[index].received }, newest);
                let node = &mut self.nodes[index];
                node.shows.timeline = newest;
                node.received = received.max(shows.lsn);
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
            self.nodes[index].streams = true;
            self.commits();
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
        node.streams = false;
        node.loss_heard_at = Some(now + heard);
        node.probe = None;
        if self.leader == Some(index) {
            self.leader = None;
            // What wasn't flushed is gone; as the later replica it comes back with the rest.
            node.shows.lsn = node.flushed;
            node.received = node.flushed;
            self.cuts[node.shows.timeline as usize - 1] = node.flushed;
        } else {
            node.shows.lsn = node.reopens_at;
        }
        self.note(|| format!("n{index} crashes"));
    }

    fn promotes(&mut self, newest: u32) {
        let able = |node: &Node| node.down_until.is_none() && self.survives(node.shows, newest) == node.shows.lsn;
        let mut candidates: Vec<usize> = (0..NODES).filter(|index| able(&self.nodes[*index])).collect();
        if !self.key.standbys.is_empty() {
            // The one that leads its last life's commits, or who has them all.
            let named = candidates.iter().copied().filter(|index| self.key.standbys.contains(index));
            let furthest = named.clone().map(|index| self.nodes[index].received).max();
            let enough = named.count() >= self.key.enough;
            candidates.retain(|index| {
                let has_all = enough && self.key.standbys.contains(index) && Some(self.nodes[*index].received) == furthest;
                has_all || *index == self.key.leader
            });
        }
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
        self.cuts.push(u64::MAX);
        self.leader = Some(index);
        (self.visible, self.waiting, self.stalled) = (fork, VecDeque::new(), None);
        (self.key, self.waits_for, self.aims_at) = (SyncKey::of(index), None, None);
        self.tally.promotions += 1;
        self.note(|| format!("n{index} is promoted to timeline {} at {fork}", newest + 1));
    }

    /// The leader writes up to `lsn`.
    pub(super) fn inserts(&mut self, leader: usize, lsn: u64) {
        self.nodes[leader].shows.lsn = lsn;
        self.waiting.push_back((lsn, self.now));
        self.commits();
    }

    /// What has been confirmed by those that it waits for becomes visible on the leader, and is acknowledged.
    pub(super) fn commits(&mut self) {
        let Some(leader) = self.leader else { return };
        let shows = self.nodes[leader].shows;
        let confirmed = match &self.waits_for {
            None => shows.lsn,
            Some((names, count)) => {
                let confirms = |node: &Node| node.down_until.is_none() && node.streams && node.shows.timeline == shows.timeline;
                let mut all: Vec<u64> =
                    names.iter().map(|index| &self.nodes[*index]).filter(|node| confirms(node)).map(|node| node.received).collect();
                all.sort_unstable_by(|one, other| other.cmp(one));
                all.get(count - 1).copied().unwrap_or(0).min(self.nodes[leader].flushed)
            }
        };
        // The model's leader shows commits in the order of their records only.
        let stalled = self.stalled.filter(|(_, until)| self.now < *until).map_or(u64::MAX, |(lsn, _)| lsn - 1);
        self.visible = self.visible.max(confirmed.min(stalled));
        self.waiting.retain(|(lsn, _)| *lsn > self.visible);
        if self.survives(self.written, shows.timeline) < self.visible {
            self.written = Position { timeline: shows.timeline, lsn: self.visible };
        }
    }

    /// Out of the key before it is out of the names, and into the names before it is in the key.
    fn patroni_moves(&mut self, leader: usize) {
        let at = self.nodes[leader].shows;
        match &mut self.aims_at {
            None => {
                let names: Option<Names> = match self.synchronous {
                    Synchronous::Off => return,
                    Synchronous::Quorum(_) if self.waits_for.is_some() => return,
                    Synchronous::Quorum(count) => Some(((0..NODES).filter(|index| *index != leader).collect(), count)),
                    Synchronous::One if !self.dice.one_in(30) => return,
                    Synchronous::One => Some(self.dice.under(NODES as u64 + 1) as usize)
                        .filter(|index| *index < NODES && *index != leader && self.nodes[*index].down_until.is_none())
                        .map(|index| (vec![index], 1)),
                };
                let stays = |index: &usize| names.as_ref().is_some_and(|(names, _)| names.contains(index));
                self.key.standbys.retain(stays);
                self.aims_at = Some(Aim { names, from: None });
            }
            Some(Aim { names, from }) if from.is_none() => {
                if self.dice.one_in(3) {
                    self.waits_for.clone_from(names);
                    *from = Some(at.lsn);
                    self.commits();
                }
            }
            Some(Aim { names: Some((names, count)), from: Some(from) }) => {
                let there = |index: &usize| {
                    let node = &self.nodes[*index];
                    node.down_until.is_none() && node.streams && node.shows.timeline == at.timeline && node.received >= *from
                };
                if names.iter().all(there) {
                    self.key = SyncKey { leader, standbys: names.clone(), enough: names.len() - *count + 1 };
                    self.aims_at = None;
                } else if self.synchronous == Synchronous::One && self.dice.one_in(20) {
                    self.aims_at = None;
                }
            }
            Some(_) => self.aims_at = None,
        }
    }
}
