//! Connections to a member that is about to lead: opened while it is still in recovery, handed out when it leads.
//!
//! A new leader's key is in etcd a tenth of a second before it leaves recovery, which is time enough for a few logins. Nobody is served any sooner
//! for it than the judge says: a connection gets into its pool only with its member in force in the epoch in which it was opened, and when the
//! server has said on that connection that it isn't in recovery.

use std::sync::Arc;
use std::time::Duration;

use switchyard_core::route::ServerRole;
use switchyard_core::topology::{Epoch, Member, Role, Topology};
use tokio::sync::watch;

use super::{Key, LeaseError, OPENING_MAX, Permit, Pool, Pools};
use crate::server::Server;

/// Of all pools, at most; those with the most clients come first.
const AHEAD_MAX: usize = 32;
/// Between two questions to all of a pool's together whether they are out of recovery: whichever knows first serves the first write.
const ASKED_EVERY: Duration = Duration::from_millis(5);
/// A member that doesn't lead by then may take long.
const AHEAD_FOR: Duration = Duration::from_secs(30);

/// PostgreSQL 14, the first whose connections say whether they are in recovery (`in_hot_standby`).
const SAYS_RECOVERY: u32 = 140_000;

/// The member that etcd names, while it can't be shown to lead.
fn coming(topology: &Topology) -> Option<&Arc<Member>> {
    let named = topology.members.iter().find(|member| member.role == Role::Leader)?;
    let says = named.probed.as_ref().is_some_and(|probed| probed.version_num >= SAYS_RECOVERY);
    (topology.leader.is_none() && says && named.probe_error.is_none()).then_some(named)
}

/// Whether it leads now; `None` once it won't, in this epoch.
fn leads(topology: &Topology, node: &str, epoch: Epoch) -> Option<bool> {
    if topology.epoch != epoch {
        return None;
    }
    match &topology.leader {
        Some(leader) => (*topology.members.get(leader.member)?.name == *node).then_some(true),
        None => (*coming(topology)?.name == *node).then_some(false),
    }
}

impl Pools {
    /// Opens connections to the member that is about to lead, if one is, for those whose sessions have used a leader. `changed` tells of new
    /// snapshots. Within the runtime.
    pub(crate) fn look_ahead(self: &Arc<Pools>, topology: &Topology, changed: &watch::Receiver<u64>) {
        let Some(member) = coming(topology) else { return };
        // Sessions keep the pools that they have used.
        let mut used: Vec<(usize, Arc<Pool>)> = Vec::new();
        for pool in self.all().into_iter().filter(|pool| pool.key.role == ServerRole::Leader) {
            // The map's and this one aren't sessions.
            let sessions = Arc::strong_count(&pool).saturating_sub(2);
            let of = |key: &Key| (key.database.clone(), key.user.clone(), key.standing, key.edition);
            match used.iter_mut().find(|(_, known)| of(&known.key) == of(&pool.key)) {
                Some((most, _)) => *most = sessions.max(*most),
                None => used.push((sessions, pool)),
            }
        }
        used.sort_by_key(|(sessions, _)| std::cmp::Reverse(*sessions));
        let mut left = AHEAD_MAX;
        for (sessions, known) in used {
            let wanted = sessions.min(OPENING_MAX).min(left);
            if wanted == 0 {
                break;
            }
            left -= wanted;
            let key = Key { node: member.name.clone(), ..known.key.clone() };
            let pool = self.pool(key, &known.credential.load());
            let permits = pool.permits_ahead(self, wanted);
            let asked_every = ASKED_EVERY * u32::try_from(permits.len()).unwrap_or(1);
            for (permit, turn) in permits.into_iter().zip(1..) {
                let (pool, pools, changed, epoch) = (pool.clone(), self.clone(), changed.clone(), topology.epoch);
                tokio::spawn(async move {
                    match tokio::time::timeout(
                        AHEAD_FOR,
                        pool.open_ahead(permit, &pools, epoch, (ASKED_EVERY * turn, asked_every), changed),
                    )
                    .await
                    {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(node = %pool.key.node, %error, "no connection ahead"),
                        Err(_) => tracing::debug!(node = %pool.key.node, "a connection ahead was opened in vain"),
                    }
                });
            }
        }
    }
}

impl Pool {
    /// The right to open so many that `wanted` are there or being opened, as far as there is room.
    fn permits_ahead(self: &Arc<Pool>, pools: &Pools, wanted: usize) -> Vec<Permit> {
        let config = pools.config.load();
        let mut book = self.book.lock();
        let mut permits = Vec::new();
        while book.opening + book.idle.len() < wanted && book.open < config.pool.max_size && self.node.take_slot(config.pool.max_per_node) {
            permits.push(self.permit(&mut book));
        }
        permits
    }

    /// Opens a connection, waits until its member leads, and puts it into the pool, for whoever is first in line. It counts as being opened until then.
    async fn open_ahead(
        self: &Arc<Pool>,
        permit: Permit,
        pools: &Pools,
        epoch: Epoch,
        (mut asked_after, asked_every): (Duration, Duration),
        mut changed: watch::Receiver<u64>,
    ) -> Result<(), LeaseError> {
        let mut server = self.connect(pools, epoch, None).await?;
        tracing::debug!(node = %self.key.node, "opened a connection ahead");
        let mut out = false;
        loop {
            // Seen before the look: a change behind it ends the wait.
            changed.borrow_and_update();
            match leads(&pools.topology.load(), &self.key.node, epoch) {
                Some(true) => break,
                Some(false) => {}
                None => return Err(LeaseError::Gone),
            }
            match tokio::time::timeout(asked_after, changed.changed()).await {
                Ok(seen) => seen.map_err(|_| LeaseError::Gone)?,
                Err(_) => {
                    asked_after = asked_every;
                    // Whoever is out of recovery stays so. Asked beside the probe, so that nobody waits for the one answer and then for the other.
                    out = out || server.ask_recovery().await?;
                }
            }
        }
        if !out && !server.ask_recovery().await? {
            return Err(LeaseError::InRecovery);
        }
        tracing::debug!(node = %self.key.node, "its member leads: a connection ahead is there to be used");
        self.admit(pools, permit, server).give_back();
        Ok(())
    }
}

impl Server {
    /// Has the server say whether it is out of recovery: an idle one reports nothing by itself. Servers before PostgreSQL 14 don't say.
    async fn ask_recovery(&mut self) -> Result<bool, LeaseError> {
        if !self.sync().await {
            return Err(LeaseError::Gone);
        }
        self.in_hot_standby().map(|hot| !hot).ok_or(LeaseError::InRecovery)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use switchyard_core::lsn::{Lsn, Timeline};
    use switchyard_core::topology::{Leader, Probed};

    use super::*;

    fn member(name: &str, role: Role) -> Arc<Member> {
        let now = Instant::now();
        let probed = Probed {
            sent_at: now,
            in_recovery: true,
            replay_lsn: Lsn(1),
            timeline: None,
            round_trip: Duration::ZERO,
            started_at_unix_seconds: 0.0,
            version_num: 150_000,
            clock_offset_ms: 0.0,
        };
        Arc::new(Member {
            name: name.into(),
            host: "127.0.0.1".into(),
            port: 5432,
            api_url: None,
            role,
            patroni_state: "running".into(),
            weight: 1,
            zone: None,
            probed: Some(probed),
            probe_error: None,
            since: now,
            lag_bytes: None,
            lag: None,
            out: None,
            fork: None,
        })
    }

    fn named(name: &str) -> Topology {
        let role = |of| if of == name { Role::Leader } else { Role::Replica };
        Topology { epoch: Epoch(2), members: ["a", "b"].map(|of| member(of, role(of))).into(), ..Topology::default() }
    }

    fn in_force(index: usize, topology: Topology) -> Topology {
        let leader = Leader {
            member: index,
            epoch: topology.epoch,
            timeline: Timeline(2),
            valid_until: Instant::now(),
            standby_cluster: false,
            failsafe: false,
        };
        Topology { leader: Some(leader), ..topology }
    }

    #[test]
    fn a_connection_waits_for_its_member_in_its_epoch_only() {
        assert_eq!(leads(&named("b"), "b", Epoch(2)), Some(false));
        assert_eq!(leads(&in_force(1, named("b")), "b", Epoch(2)), Some(true));
        // The key went to another, nobody has it, another leads, or this one leads anew.
        assert_eq!(leads(&named("a"), "b", Epoch(2)), None);
        assert_eq!(leads(&named("nobody"), "b", Epoch(2)), None);
        assert_eq!(leads(&in_force(0, named("a")), "b", Epoch(2)), None);
        assert_eq!(leads(&in_force(1, named("b")), "b", Epoch(1)), None);
    }

    #[test]
    fn nobody_is_about_to_lead_who_leads_already_or_does_not_answer() {
        assert_eq!(coming(&named("b")).map(|member| &*member.name), Some("b"));
        assert!(coming(&in_force(1, named("b"))).is_none());
        let mut silent = named("b");
        let member = Arc::make_mut(&mut silent.members[1]);
        member.probe_error = Some("no answer".into());
        assert!(coming(&silent).is_none());
    }
}
