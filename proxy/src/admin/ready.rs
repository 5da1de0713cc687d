//! Whether the router can be sent clients.

use std::time::Instant;

use switchyard_core::topology::Topology;

use super::Live;

/// Ready when the topology is known and somebody can serve: a leader in force, or a replica for reads. Otherwise why not.
pub(super) fn check(topology: &Topology, live: Live, now: Instant) -> Result<(), String> {
    if live.draining {
        return Err("shutting down".into());
    }
    if !topology.ready {
        return Err(match &topology.etcd_error {
            Some(error) => format!("the cluster's state is not known yet: {error}"),
            None => "the cluster's state is not known yet".into(),
        });
    }
    if topology.leader_at(now).is_none() && topology.replicas().next().is_none() {
        return Err("no leader is in force and no replica can serve reads".into());
    }
    Ok(())
}
