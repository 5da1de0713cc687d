use std::time::Duration;

use super::*;
use crate::lsn::{Lsn, Timeline};
use crate::topology::{ClusterState, Leader, Probed, Role, Sample};

struct Idle;
impl Loads for Idle {
    fn cost(&self, _: &Member) -> f64 {
        1.0
    }

    fn is_busy(&self, _: &Member) -> bool {
        true
    }
}

struct Busy(&'static str);
impl Loads for Busy {
    fn cost(&self, member: &Member) -> f64 {
        if &*member.name == self.0 { 100.0 } else { 1.0 }
    }

    fn is_busy(&self, _: &Member) -> bool {
        true
    }
}

fn member(name: &str, replay: u64, at: Instant) -> Arc<Member> {
    Arc::new(Member {
        name: name.into(),
        host: "127.0.0.1".into(),
        port: 5432,
        api_url: None,
        role: Role::Replica,
        patroni_state: "streaming".into(),
        weight: 100,
        zone: None,
        probed: Some(Probed {
            sent_at: at,
            in_recovery: name != "leader",
            replay_lsn: Lsn(replay),
            timeline: Some(Timeline(1)),
            round_trip: Duration::from_millis(1),
            started_at_unix_seconds: 1.0,
            version_num: 150_000,
            clock_offset_ms: 0.0,
        }),
        probe_error: None,
        since: at,
        lag_bytes: Some(0),
        lag: None,
        out: None,
        fork: None,
    })
}

fn cluster(at: Instant, samples: &[(Instant, u64)], replays: [u64; 2]) -> Topology {
    Topology {
        state: ClusterState::Stable,
        epoch: Epoch(1),
        sampled_in: Epoch(1),
        leader: Some(Leader {
            member: 0,
            epoch: Epoch(1),
            timeline: Timeline(1),
            valid_until: at + Duration::from_secs(100),
            standby_cluster: false,
            failsafe: false,
        }),
        members: vec![member("leader", 0, at), member("r1", replays[0], at), member("r2", replays[1], at)],
        samples: samples
            .iter()
            .map(|(sent_at, lsn)| Sample { sent_at: *sent_at, insert_lsn: Lsn(*lsn), flush_lsn: Lsn(*lsn), settled_at: None })
            .collect(),
        ..Topology::default()
    }
}

fn choose(watermark: &mut Watermark, topology: &Topology, now: Instant, random: u64) -> Result<String, Why> {
    let ask = Ask { watermark: Some(watermark), bound: Bound::Nothing, excluded: &Vec::new(), zone: None, random };
    replica(ask, topology, &Idle, now).map(|member| member.name.to_string())
}

#[test]
fn a_session_that_saw_nothing_reads_anywhere() {
    let t = Instant::now();
    let topology = cluster(t, &[], [0, 0]);
    let mut names: Vec<_> = (0..10).filter_map(|n| choose(&mut Watermark::default(), &topology, t, n).ok()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names, ["r1", "r2"]);
}

#[test]
fn a_write_is_not_missed() {
    let t = Instant::now();
    let ms = Duration::from_millis;
    let mut watermark = Watermark::default();
    watermark.saw(&member("leader", 0, t), t + ms(5));
    // A sample that was sent before the write proves nothing, however far the replicas are.
    assert_eq!(choose(&mut watermark, &cluster(t, &[(t, 100)], [1000, 1000]), t + ms(6), 0), Err(Why::NotCaughtUp));
    // One sent after it bounds the write; only r2 has replayed that far.
    let later = cluster(t, &[(t, 100), (t + ms(10), 200), (t + ms(20), 300)], [199, 200]);
    for random in 0..10 {
        assert_eq!(choose(&mut watermark, &later, t + ms(25), random), Ok("r2".into()));
    }
    // The bound is taken once: newer samples don't raise it.
    assert_eq!(watermark.bound(&cluster(t, &[(t + ms(30), 900)], [0, 0]), t + ms(31)), Bound::At(Lsn(200)));
}

#[test]
fn a_read_on_one_replica_is_not_taken_back_by_another() {
    let t = Instant::now();
    let ms = Duration::from_millis;
    let topology = cluster(t, &[(t, 100)], [100, 50]);
    let mut watermark = Watermark::default();
    watermark.saw(&topology.members[1], t + ms(1));
    for random in 0..10 {
        assert_eq!(choose(&mut watermark, &topology, t + ms(2), random), Ok("r1".into()), "staying needs no check, moving does");
    }
    // r1 restarted: it may have gone back itself.
    let mut restarted = topology.clone();
    let mut r1 = Member::clone(&restarted.members[1]);
    r1.probed.as_mut().expect("probed").started_at_unix_seconds = 2.0;
    restarted.members[1] = Arc::new(r1);
    assert_eq!(choose(&mut watermark, &restarted, t + ms(3), 0), Err(Why::NotCaughtUp));
}

#[test]
fn a_new_epoch_asks_for_a_new_sample() {
    let t = Instant::now();
    let ms = Duration::from_millis;
    let mut watermark = Watermark::default();
    watermark.saw(&member("leader", 0, t), t);
    assert_eq!(watermark.bound(&cluster(t, &[(t + ms(1), 100)], [0, 0]), t + ms(2)), Bound::At(Lsn(100)));
    let mut next = cluster(t, &[(t + ms(3), 50)], [0, 0]);
    (next.epoch, next.sampled_in) = (Epoch(2), Epoch(2));
    assert_eq!(watermark.bound(&next, t + ms(4)), Bound::Unknown);
    next.samples = [Sample { sent_at: t + ms(5), insert_lsn: Lsn(60), flush_lsn: Lsn(60), settled_at: None }].into();
    assert_eq!(watermark.bound(&next, t + ms(6)), Bound::At(Lsn(60)));
}

#[test]
fn of_two_candidates_the_cheaper_serves() {
    let t = Instant::now();
    let topology = cluster(t, &[], [0, 0]);
    for random in [0_u64, 1, 2, 3, 1 << 32, u64::MAX] {
        let ask = Ask { watermark: None, bound: Bound::Nothing, excluded: &Vec::new(), zone: None, random };
        let chosen = replica(ask, &topology, &Busy("r1"), t).map(|member| member.name.to_string());
        assert_eq!(chosen, Ok("r2".into()));
    }
    let excluded = vec![Arc::from("r2")];
    let ask = Ask { watermark: None, bound: Bound::Nothing, excluded: &excluded, zone: None, random: 0 };
    assert_eq!(replica(ask, &topology, &Busy("r1"), t).map(|member| member.name.to_string()), Ok("r1".into()));
}
