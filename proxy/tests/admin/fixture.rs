//! Input values for the HTTP side: a cluster of five and counters, as the health side and the data path would write them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use switchyard::admin::{Admin, Live, Summary};
use switchyard::stats::{Gauge, Pinned, PoolName, Stats};
use switchyard_core::lsn::{Lsn, Timeline};
use switchyard_core::topology::{ClusterState, Epoch, Leader, LeaderChange, Member, Out, Probed, Role, Topology};

pub(crate) fn summary() -> Summary {
    Summary {
        cluster: "demo".into(),
        read_write: vec!["127.0.0.1:15000".parse().expect("an address")],
        read_only: vec!["127.0.0.1:15001".parse().expect("an address")],
        max_clients: 10_000,
        pool_mode: "transaction",
        pool_max_size: 20,
        pool_max_per_node: 90,
        max_lag_bytes: 16 << 20,
        max_lag: Some(Duration::from_secs(10)),
        hold_timeout: Duration::from_secs(30),
        hold_max: 10_000,
        fallback_to_leader: true,
        consistency_read_write: "session",
        consistency_read_only: "session",
    }
}

pub(crate) fn admin(topology: Topology, live: Live) -> Arc<Admin> {
    Arc::new(Admin::new(Arc::new(Stats::default()), Arc::new(ArcSwap::from_pointee(topology)), summary(), move || live))
}

fn ago(seconds: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs(seconds)).unwrap_or(now)
}

fn unix(ago: u64) -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64()) - ago as f64
}

pub(crate) fn member(number: u16, role: Role) -> Member {
    Member {
        name: format!("node{number}").into(),
        host: "127.0.0.1".into(),
        port: 5430 + number,
        api_url: None,
        role,
        patroni_state: if role == Role::Leader { "running".into() } else { "streaming".into() },
        weight: 100,
        zone: None,
        probed: Some(Probed {
            sent_at: ago(0),
            in_recovery: role != Role::Leader,
            replay_lsn: Lsn(0x3_1700_0148),
            timeline: Some(Timeline(3)),
            round_trip: Duration::from_micros(410),
            started_at_unix_seconds: unix(90_000),
            version_num: 150_018,
            clock_offset_ms: 0.2,
        }),
        probe_error: None,
        since: ago(8_040),
        lag_bytes: Some(0),
        lag: Some(Duration::ZERO),
        out: None,
        fork: None,
    }
}

/// node1 leads, node2 (synchronous) and node3 serve reads, node4 lags, node5 is down.
pub(crate) fn five() -> Topology {
    let mut members = vec![
        member(1, Role::Leader),
        member(2, Role::SyncStandby),
        member(3, Role::Replica),
        member(4, Role::Replica),
        member(5, Role::Replica),
    ];
    members[2].lag_bytes = Some(48_200);
    members[2].lag = Some(Duration::from_millis(12));
    members[3].lag_bytes = Some(73_400_320);
    members[3].lag = Some(Duration::from_millis(14_200));
    members[3].out = Some(Out::Lagging);
    members[4].out = Some(Out::Unreachable);
    members[4].probe_error = Some("error connecting to server: Connection refused (os error 111)".into());
    members[4].patroni_state = "stopped".into();
    members[4].since = ago(134);
    members[4].lag_bytes = None;
    members[4].lag = None;
    Topology {
        generation: 7,
        state: ClusterState::Stable,
        epoch: Epoch(3),
        leader: Some(leader(Duration::from_secs(3600))),
        members: members.into_iter().map(Arc::new).collect(),
        sampled_in: Epoch(3),
        witnessed: None,
        received: None,
        history: Arc::default(),
        samples: Arc::new([]),
        changes: Arc::new([
            change(8_040, Some("node1"), 3, "leader key and probe agree"),
            change(8_043, None, 2, "leader key deleted"),
            change(180_000, Some("node2"), 2, "first seen"),
        ]),
        etcd_error: None,
        ready: true,
    }
}

/// As [`five`], with all replicas fine.
pub(crate) fn all_well() -> Topology {
    let mut topology = five();
    for (index, number) in [(3, 4), (4, 5)] {
        topology.members[index] = Arc::new(member(number, Role::Replica));
    }
    topology
}

/// As [`five`], three seconds after the leader was lost.
pub(crate) fn leaderless() -> Topology {
    let mut topology = five();
    topology.state = ClusterState::Leaderless;
    topology.epoch = Epoch(4);
    topology.leader = None;
    let mut old = member(1, Role::Leader);
    old.out = Some(Out::Unreachable);
    old.probe_error = Some("timed out".into());
    topology.members[0] = Arc::new(old);
    let mut changes = vec![change(3, None, 3, "leader key deleted")];
    changes.extend(topology.changes.iter().cloned());
    topology.changes = changes.into();
    topology
}

pub(crate) fn leader(valid_for: Duration) -> Leader {
    Leader {
        member: 0,
        epoch: Epoch(3),
        timeline: Timeline(3),
        valid_until: Instant::now() + valid_for,
        standby_cluster: false,
        failsafe: false,
    }
}

pub(crate) fn change(seconds_ago: u64, leader: Option<&str>, timeline: u32, reason: &str) -> LeaderChange {
    LeaderChange {
        at: ago(seconds_ago),
        at_unix_seconds: unix(seconds_ago),
        leader: leader.map(Into::into),
        timeline: Some(Timeline(timeline)),
        epoch: Epoch(u64::from(timeline)),
        reason: reason.into(),
    }
}

pub(crate) fn set(gauge: &Gauge, value: usize) {
    (0..value).for_each(|_| gauge.up());
}

/// Counters as after some hours of work.
pub(crate) fn count(stats: &Stats) {
    let nodes: [(&str, usize, usize, u64, u64, u64, u64); 5] = [
        ("node1", 18, 5, 912_345, 1_204_551, 17, 812),
        ("node2", 20, 9, 9_345_678, 0, 4, 334),
        ("node3", 20, 11, 9_201_334, 0, 2, 351),
        ("node4", 12, 0, 4_120_007, 0, 0, 402),
        ("node5", 0, 0, 3_999_120, 0, 31, 377),
    ];
    for (name, open, in_use, reads, writes, errors, ewma_us) in nodes {
        let node = stats.node(&name.into());
        set(&node.connections, open);
        set(&node.in_use, in_use);
        node.connections_total.add(open as u64 * 31);
        node.reads.add(reads);
        node.writes.add(writes);
        node.errors.add(errors);
        node.bytes_out.add(reads * 90);
        node.bytes_in.add(reads * 1_400);
        node.ewma_us.store(ewma_us, Ordering::Relaxed);
        for (database, user, part) in [("shop", "web", 2), ("shop", "reports", 3), ("postgres", "postgres", 9)] {
            let pool = stats.pool(&PoolName { node: name.into(), database: database.into(), user: user.into() });
            set(&pool.idle, (open - in_use) / part);
            set(&pool.in_use, in_use / part);
            pool.waits_total.add(40 / part as u64);
            pool.wait_us_total.add(91_000);
        }
    }
    stats.node(&"node5".into()).connect_errors.add(61);
    let busy = stats.pool(&PoolName { node: "node3".into(), database: "shop".into(), user: "web".into() });
    set(&busy.waiting, 2);
    set(&stats.read_write.clients, 183);
    stats.read_write.clients_total.add(5_120);
    stats.read_write.queries.add(21_000_123);
    stats.read_write.errors.add(61);
    stats.read_write.bytes_in.add(2_500_000_000);
    stats.read_write.bytes_out.add(31_000_000_000);
    stats.read_write.logins_failed.add(3);
    set(&stats.read_only.clients, 24);
    stats.read_only.clients_total.add(300);
    stats.read_only.queries.add(7_234_567);
    stats.held_total.add(212);
    stats.verdict_hits.add(28_200_000);
    stats.verdict_misses.add(1_204);
    stats.cancels.add(9);
    for (reason, times) in
        [("session wrote recently", 84_211), ("volatile function", 3_310), ("in a transaction", 812_004), ("could not be parsed", 12)]
    {
        stats.leader_read(reason);
        if let Some(counter) = stats.leader_reads.read().get(reason) {
            counter.add(times);
        }
    }
    stats.read_waited(Duration::from_millis(9));
    (0..7).for_each(|_| stats.rerun("40001"));
    (0..2).for_each(|_| stats.rerun("0A000"));
    (0..3).for_each(|_| stats.refusal("57P03"));
    stats.refusal("28P01");
    for (client_id, reasons) in [(4_711, vec!["temporary table"]), (5_002, vec!["LISTEN", "advisory lock"])] {
        let pinned = Pinned {
            client_id,
            user: "reports".into(),
            database: "shop".into(),
            node: "node1".into(),
            reasons,
            since: SystemTime::now() - Duration::from_secs(client_id / 10),
        };
        stats.pinned.lock().insert(client_id, pinned);
    }
    stats.event("configuration reloaded: routing.max_lag_bytes is 16777216");
    stats.event("node5 is unreachable: Connection refused");
}
