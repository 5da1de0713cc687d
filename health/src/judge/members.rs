//! Who may serve reads, and what the snapshot says of each member.

use std::sync::Arc;
use std::time::Duration;

use switchyard_core::lsn::{Lsn, Timeline};
use switchyard_core::topology::{Member, Out, Probed, Role};

use super::{Judge, Seat};
use crate::keys::Forks;
use crate::lag::lag;
use crate::observation::Found;

impl Judge {
    pub(super) fn members(&mut self, leader: Option<&Arc<str>>) -> Vec<Arc<Member>> {
        let named = self.claim.as_ref().map(|claim| claim.key.name.clone());
        let reference = self.reference();
        let standby_cluster = self.config.standby_cluster;
        let Judge { seats, marks, rules, drained, sync, etcd, .. } = self;
        seats
            .iter_mut()
            .map(|(name, seat)| {
                let leads = leader == Some(name);
                let (fork, fits) = reference.fit(seat.reachable());
                let (lag_bytes, lag) = match seat.reachable() {
                    Some(found) if !leads && fits => lag(found, marks),
                    _ => (None, None),
                };
                seat.lagging = rules.lags(seat.lagging, lag_bytes, lag);
                let out = if leads { None } else { judge_replica(seat, drained.contains(name), fits) };
                let role = match named.as_ref().or(leader) {
                    Some(named) if named == name => {
                        if standby_cluster {
                            Role::StandbyLeader
                        } else {
                            Role::Leader
                        }
                    }
                    _ if sync.iter().flat_map(|sync| &sync.standbys).any(|standby| **standby == **name) => Role::SyncStandby,
                    _ if seat.found.is_none() && !*etcd => Role::Unknown,
                    _ => Role::Replica,
                };
                show(name, seat, role, (lag_bytes, lag), out, fork)
            })
            .collect()
    }

    /// What replicas' timelines are held against: the leadership in force, else the last one, else the newest seen.
    pub(super) fn reference(&self) -> Reference {
        let Some(reign) = &self.reign else {
            let newest = self.seats.values().filter_map(|seat| seat.reachable()?.timeline).max();
            return Reference { system_identifier: None, timeline: newest, forks: [].into() };
        };
        let timeline = reign.identity.timeline;
        let told = self.history.as_ref().filter(|forks| forks.last().is_some_and(|(last, _)| last.0.checked_add(1) == Some(timeline.0)));
        Reference {
            system_identifier: Some(reign.identity.system_identifier),
            timeline: Some(timeline),
            forks: reign.forks.as_ref().or(told).cloned().unwrap_or_else(|| [].into()),
        }
    }
}

pub(super) struct Reference {
    system_identifier: Option<i64>,
    pub(super) timeline: Option<Timeline>,
    forks: Forks,
}

impl Reference {
    /// Whether what a member has replayed is part of the leader's history, and where the leader's timeline left it.
    pub(super) fn fit(&self, found: Option<&Found>) -> (Option<Lsn>, bool) {
        let Some(found) = found else { return (None, false) };
        if self.system_identifier.is_some_and(|identifier| identifier != found.system_identifier) {
            return (None, false);
        }
        // Unknown is not eligible.
        let (Some(timeline), Some(reference)) = (found.timeline, self.timeline) else { return (None, false) };
        if timeline == reference {
            return (None, true);
        }
        match self.forks.iter().find(|(left, _)| *left == timeline) {
            Some((_, fork)) if timeline < reference => (Some(*fork), found.replay_lsn <= *fork),
            _ => (None, false),
        }
    }
}

/// Why a member that doesn't lead gets no reads.
fn judge_replica(seat: &Seat, drained: bool, fits: bool) -> Option<Out> {
    let Some(found) = seat.reachable() else { return Some(Out::Unreachable) };
    if drained {
        Some(Out::Drained)
    } else if !found.in_recovery {
        Some(Out::NotInRecovery)
    } else if !seat.announced.runs() {
        Some(Out::NotRunning)
    } else if seat.announced.no_load_balance {
        Some(Out::NoLoadBalance)
    } else if !fits {
        Some(Out::WrongTimeline)
    } else if seat.lagging {
        Some(Out::Lagging)
    } else {
        None
    }
}

/// The member as the snapshot shows it; the same `Arc` as before where nothing changed.
fn show(
    name: &Arc<str>,
    seat: &mut Seat,
    role: Role,
    (lag_bytes, lag): (Option<u64>, Option<Duration>),
    out: Option<Out>,
    fork: Option<Lsn>,
) -> Arc<Member> {
    let member = Member {
        name: name.clone(),
        host: seat.announced.host.clone(),
        port: seat.announced.port,
        api_url: seat.announced.api_url.clone(),
        role,
        patroni_state: seat.announced.state.clone(),
        weight: seat.announced.weight,
        zone: seat.announced.zone.clone(),
        probed: seat.found.as_ref().map(|found| Probed {
            sent_at: found.sent_at,
            in_recovery: found.in_recovery,
            replay_lsn: found.replay_lsn,
            timeline: found.timeline,
            round_trip: found.round_trip,
            started_at_unix_seconds: found.started_at_unix_seconds,
            version_num: found.version_num,
            clock_offset_ms: found.clock_offset_ms,
        }),
        probe_error: seat.error.clone(),
        since: seat.since,
        lag_bytes,
        lag,
        out,
        fork,
    };
    match &seat.shown {
        Some(shown) if **shown == member => shown.clone(),
        _ => {
            let member = Arc::new(member);
            seat.shown = Some(member.clone());
            member
        }
    }
}
