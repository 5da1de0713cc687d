//! What the simulated router believes, as the judge folds it: leaders, samples, whose word counts while nobody leads.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::SyncKey;
use super::{Answer, Broken, GRACE, KeyRead, NODES, Position, Run, SAMPLES_MAX, World};
use crate::lsn::{Lsn, Timeline};
use crate::topology::{ClusterState, Epoch, Leader, Member, Out, Probed, Role, Sample, Topology};
use crate::witness::{self, Received, Standby, Testimony, Witnessed};

impl World {
    /// The leader is no longer in force: the epoch ends with it.
    pub(super) fn disbelieves(&mut self, index: usize) {
        if self.believed == Some(index) {
            self.believed = None;
            self.epoch += 1;
            self.note(|| format!("the router believes in n{index} no more"));
        }
        self.publish();
    }

    /// Notes what standbys can tell when the leader has been silent for long enough.
    pub(super) fn falls_silent(&mut self) {
        let silent_at = self.heard_leader_at + GRACE;
        if self.now >= silent_at && self.at_silence.is_none_or(|(at, _)| at != silent_at) {
            let told = std::array::from_fn(|index| {
                let node = &self.nodes[index];
                let replicates = node.down_until.is_none() && self.leader != Some(index) && node.shows.timeline == self.believed_timeline;
                replicates.then(|| (node.incarnation, node.told()))
            });
            self.at_silence = Some((silent_at, told));
        }
    }

    /// The router reads the `sync` key now and then.
    pub(super) fn reads_key(&mut self) {
        let Some(read) = &mut self.key_read else {
            if self.dice.one_in(6) {
                let taken_at = self.now + self.dice.under(10);
                self.key_read = Some(KeyRead { sent_at: self.now, taken_at, heard_at: taken_at + self.dice.under(10), key: None });
            }
            return;
        };
        if read.key.is_none() && read.taken_at <= self.now {
            read.key = Some(self.key.clone());
        }
        if read.heard_at <= self.now
            && let Some(key) = read.key.take()
        {
            self.key_reads.truncate(1);
            self.key_reads.push_front((read.sent_at, self.now, key));
            self.key_read = None;
            self.publish();
        }
    }

    pub(super) fn hears(&mut self, index: usize, sent_at: u64, answer: Answer) {
        self.unreachable[index] = false;
        self.answers[index] = Some((sent_at, answer));
        if answer.leads || self.runs[index].incarnation != answer.incarnation {
            // A leader that becomes a standby has another run as such.
            let incarnation = if answer.leads { 0 } else { answer.incarnation };
            self.runs[index] = Run { incarnation, since: sent_at, joined: false };
        }
        if answer.leads {
            self.heard_leader_at = self.now;
        }
        if answer.leads && self.now >= self.doubts_until {
            if self.believed != Some(index) {
                self.epoch += u64::from(self.believed.is_some());
                self.sampled_in = self.epoch;
                self.samples.clear();
                self.reign = index;
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
                settled_at: answer.waits_since.map(|since| self.at(since.min(sent_at))),
            });
            if self.samples.len() > SAMPLES_MAX {
                self.samples.remove(0);
            }
            for (run, answer) in self.runs.iter_mut().zip(&self.answers) {
                let flushed = self.samples.iter().find(|sample| sample.sent_at > self.epoch_began + Duration::from_micros(run.since));
                let told = answer.filter(|(_, answer)| !answer.leads).map(|(_, answer)| Lsn(answer.told));
                run.joined |= flushed.zip(told).is_some_and(|(flushed, told)| told >= flushed.flush_lsn);
            }
        }
        self.publish();
    }

    /// As the judge does, with `witness.rs`: whose word counts while nobody leads.
    pub(super) fn witnessed(&self) -> Option<Witnessed> {
        let answers = || (0..NODES).filter(|index| !self.unreachable[*index]).filter_map(|index| Some((index, self.answers[index]?)));
        let testimony = |(_, (sent_at, answer)): (usize, (u64, Answer))| Testimony {
            sent_at: self.at(if self.broken == Broken::WitnessedBefore { self.now } else { sent_at }),
            received: Lsn(if answer.leads { answer.shows.lsn } else { answer.told }),
        };
        if let Some(last) = answers().find(|(index, (_, answer))| *index == self.reign && answer.shows.timeline == self.believed_timeline) {
            return Some(witness::by_leader(testimony(last)));
        }
        if self.key_reads.iter().any(|(.., key)| self.is_named(key)) {
            return self.key_reads.iter().filter(|(.., key)| self.is_named(key)).find_map(|(sent_at, heard_at, key)| {
                let joined = |index: usize| self.runs[index].joined || self.broken == Broken::RestartedWitness;
                let named = answers().filter(|(index, (_, answer))| {
                    !answer.leads && joined(*index) && key.standbys.contains(index) != (self.broken == Broken::AnyoneWitnesses)
                });
                let enough = if self.broken == Broken::OneOfAQuorum { 1 } else { key.enough };
                let read = witness::KeyRead {
                    sent_at: self.at(if self.broken == Broken::KeyOutdated { self.now } else { *sent_at }),
                    heard_at: self.at(if self.broken == Broken::AskedBeforeNamed { 0 } else { *heard_at }),
                };
                witness::by_synchronous(named.map(testimony), enough, read)
            });
        }
        let led_on = answers().any(|(_, (_, answer))| answer.leads || answer.shows.timeline > self.believed_timeline);
        let fitting = answers().filter(|(_, (_, answer))| {
            let left_at = self.survives(Position { timeline: answer.shows.timeline, lsn: u64::MAX }, self.believed_timeline);
            answer.shows.timeline == self.believed_timeline || answer.shows.lsn <= left_at
        });
        let silent_until = if self.broken == Broken::NoGrace { 0 } else { self.heard_leader_at + GRACE };
        let witnessed = witness::by_any(fitting.map(testimony), self.at(silent_until)).filter(|_| !led_on);
        witnessed.map(|witnessed| Witnessed { exact: self.broken == Broken::AnyoneIsExact, ..witnessed })
    }

    /// As the judge does: what bounds all that replicas have shown.
    fn received(&self) -> Option<Received> {
        let told = |index: usize| self.answers[index].filter(|_| !self.unreachable[index]);
        let since = |index: usize| if told(index).is_some() { self.runs[index].since } else { self.lost_at[index] };
        let skipped = |index: usize| told(index).is_none() && self.broken == Broken::LostReplicaForgotten;
        let led = |index: usize| index == self.reign && self.answers[index].is_none_or(|(_, answer)| answer.leads);
        let standbys = (0..NODES).filter(|index| !led(*index) && !skipped(*index)).map(|index| Standby {
            testimony: told(index).map(|(sent_at, answer)| Testimony {
                sent_at: self.at(sent_at),
                received: Lsn(match self.broken {
                    Broken::ReplicasUnasked => 0,
                    _ if answer.leads => answer.shows.lsn,
                    _ => answer.told,
                }),
            }),
            since: self.at(since(index)),
        });
        witness::by_replicas(standbys, |since| self.samples.iter().find(|sample| sample.sent_at > since).map(|sample| sample.insert_lsn))
    }

    pub(super) fn is_lost(&mut self, index: usize) {
        if !std::mem::replace(&mut self.unreachable[index], true) {
            self.lost_at[index] = self.now;
        }
    }

    /// Whether the key names standbys of the last leader.
    fn is_named(&self, key: &SyncKey) -> bool {
        key.leader == self.reign && !key.standbys.is_empty()
    }

    /// What a read at the level `global` must show of what this router has acknowledged: all of it, but without a leader and without a synchronous
    /// standby what standbys could tell when the leader had been silent for long enough.
    pub(super) fn must_show(&self) -> Option<Position> {
        let acknowledged = self.acknowledged?;
        let named = self.key_reads.iter().any(|(.., key)| self.is_named(key));
        match self.at_silence {
            Some((at, told)) if self.believed.is_none() && !named && at == self.heard_leader_at + GRACE => {
                let goes_on = |index: usize| !self.unreachable[index] && self.nodes[index].down_until.is_none();
                let told = |index: usize| told[index].filter(|(run, _)| goes_on(index) && self.nodes[index].incarnation == *run);
                let furthest = (0..NODES).filter_map(told).map(|(_, lsn)| lsn).max().unwrap_or(0);
                let survives = self.survives(acknowledged, self.believed_timeline);
                Some(Position { timeline: self.believed_timeline.max(acknowledged.timeline), lsn: survives.min(furthest) })
            }
            _ => Some(acknowledged),
        }
    }

    /// As the judge does: who fits the leader's history, and up to where.
    pub(super) fn publish(&mut self) {
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
            witnessed: if leader.is_none() { self.witnessed() } else { None },
            received: if leader.is_none() { self.received() } else { None },
            leader,
            members,
            sampled_in: Epoch(self.sampled_in),
            samples: self.samples.as_slice().into(),
            ..Topology::default()
        };
    }
}
