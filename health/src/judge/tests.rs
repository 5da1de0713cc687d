//! Short stories on a virtual clock.

use switchyard_core::lsn::Lsn;

use super::*;

#[path = "../../tests/common/mod.rs"]
mod common;

const SYSTEM: i64 = 7_000_000_000_000_000_001;
const MB: u64 = 1 << 20;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A cluster of a, b and c, told by hand. `etcd` reads happen at the story's time, and take none.
struct Story {
    judge: Judge,
    begin: Instant,
    elapsed: Duration,
    revision: i64,
    /// The leader key: name and create revision.
    leader: Option<(&'static str, i64)>,
    timeline: u32,
    extra: Vec<Fact>,
    members: Vec<(&'static str, Announced)>,
}

/// The members' `Found`, with a story's defaults.
fn probe(in_recovery: bool, timeline: u32, lsn: u64) -> Found {
    Found {
        sync_wait: None,
        sent_at: Instant::now(),
        round_trip: Duration::ZERO,
        in_recovery,
        replay_lsn: Lsn(lsn),
        insert_lsn: Lsn(lsn + 8),
        timeline: Some(Timeline(timeline)),
        system_identifier: SYSTEM,
        started_at_unix_seconds: 1.0,
        version_num: 150_018,
        clock_offset_ms: 0.0,
        forks: None,
    }
}

impl Story {
    fn new() -> Story {
        let begin = Instant::now();
        let config = common::config();
        let judge = Judge::new(&config, Moment { at: begin, unix_seconds: 1_000_000.0 });
        let members = [("a", 1), ("b", 2), ("c", 3)].map(|(name, port)| (name, Announced::of_static("10.0.0.1", port)));
        Story { judge, begin, elapsed: Duration::ZERO, revision: 10, leader: None, timeline: 1, extra: vec![], members: members.into() }
    }

    /// `a` leads, b and c follow at 100 MB, and two samples were taken.
    fn stable() -> Story {
        let mut story = Story::new();
        story.put_leader("a");
        story.read();
        story.after(ms(10)).leader("a", 100 * MB).standby("b", 100 * MB).standby("c", 100 * MB);
        assert_eq!(story.led_by(), Some("a".into()));
        story
    }

    fn now(&self) -> Moment {
        Moment { at: self.begin + self.elapsed, unix_seconds: 1_000_000.0 + self.elapsed.as_secs_f64() }
    }

    fn after(&mut self, pause: Duration) -> &mut Story {
        self.elapsed += pause;
        self
    }

    fn see(&mut self, observation: Observation) -> &mut Story {
        self.judge.observe(self.now(), observation);
        self.judge.settle(self.now());
        self
    }

    fn put_leader(&mut self, name: &'static str) -> &mut Story {
        self.revision += 1;
        self.leader = Some((name, self.revision));
        let fact = Fact::Leader(LeaderKey { name: name.into(), create_revision: self.revision, lease: 1 });
        self.see(Observation::Put { revision: self.revision, fact })
    }

    fn delete_leader(&mut self) -> &mut Story {
        self.revision += 1;
        self.leader = None;
        self.see(Observation::Gone { revision: self.revision, slot: Slot::Leader })
    }

    fn put(&mut self, fact: Fact) -> &mut Story {
        self.revision += 1;
        self.extra.retain(|other| other.slot() != fact.slot());
        self.extra.push(fact.clone());
        self.see(Observation::Put { revision: self.revision, fact })
    }

    fn delete(&mut self, slot: Slot) -> &mut Story {
        self.revision += 1;
        self.extra.retain(|other| other.slot() != slot);
        self.see(Observation::Gone { revision: self.revision, slot })
    }

    fn a_read(&self) -> Read {
        let leader = self.leader.map(|(name, create_revision)| Fact::Leader(LeaderKey { name: name.into(), create_revision, lease: 1 }));
        let members = self.members.iter().map(|(name, announced)| Fact::Member((*name).into(), announced.clone()));
        Read {
            sent_at: self.now().at,
            revision: self.revision,
            first: false,
            facts: members.chain(leader).chain(self.extra.iter().cloned()).collect(),
            lease_left: Some(ms(20_000)),
        }
    }

    fn read(&mut self) -> &mut Story {
        let read = self.a_read();
        self.see(Observation::Read(read))
    }

    fn probed(&mut self, name: &str, found: Found) -> &mut Story {
        let post = self.post(name);
        let found = Found { sent_at: self.now().at, ..found };
        self.see(Observation::Found { member: name.into(), post, found })
    }

    fn post(&self, name: &str) -> u64 {
        self.judge.posts().find(|(other, ..)| ***other == *name).map(|(_, post, ..)| post).expect("a member")
    }

    fn leader(&mut self, name: &str, lsn: u64) -> &mut Story {
        self.probed(name, probe(false, self.timeline, lsn))
    }

    fn standby(&mut self, name: &str, lsn: u64) -> &mut Story {
        self.probed(name, probe(true, self.timeline, lsn))
    }

    fn lost(&mut self, name: &str) -> &mut Story {
        let post = self.post(name);
        self.see(Observation::Lost { member: name.into(), post, error: "connection refused".into() })
    }

    fn etcd_fails(&mut self) -> &mut Story {
        self.see(Observation::EtcdFailing { error: "down".into() })
    }

    fn primary(&mut self, name: &str, yes: bool) -> &mut Story {
        self.see(Observation::Primary { member: name.into(), sent_at: self.now().at, yes })
    }

    fn topology(&mut self) -> Topology {
        self.judge.settle(self.now()).topology
    }

    fn led_by(&mut self) -> Option<String> {
        let now = self.now().at;
        self.topology().leader_at(now).map(|(_, member)| member.name.to_string())
    }

    fn epoch(&mut self) -> u64 {
        self.topology().epoch.0
    }

    fn out(&mut self, name: &str) -> Option<Out> {
        self.topology().member(name).expect("a member").out
    }

    fn doubt(&mut self) -> Option<Doubt> {
        self.topology();
        self.judge.doubt
    }
}

#[test]
fn nothing_is_known_before_the_first_read() {
    let mut story = Story::new();
    assert!(!story.topology().ready);
    assert_eq!(story.doubt(), Some(Doubt::NotRead));
    assert_eq!(story.topology().state, ClusterState::Leaderless);
    assert_eq!(story.epoch(), 0);
}

#[test]
fn a_leader_needs_key_lease_and_probe() {
    let mut story = Story::new();
    story.put_leader("a").read();
    assert_eq!(story.doubt(), Some(Doubt::Unprobed));
    story.after(ms(1)).leader("a", MB);
    let topology = story.topology();
    let leader = topology.leader.expect("in force");
    assert_eq!((leader.epoch, leader.timeline, leader.failsafe), (Epoch(1), Timeline(1), false));
    assert_eq!(leader.valid_until, story.begin + ms(19_000), "sent + 20 s of lease - 1 s of margin");
    assert_eq!(topology.state, ClusterState::Stable);
    assert_eq!(topology.samples.len(), 1);
    assert_eq!(topology.samples[0].insert_lsn, Lsn(MB + 8));
}

#[test]
fn the_key_moves_but_the_probe_still_says_recovery() {
    let mut story = Story::stable();
    story.delete_leader().after(ms(150)).put_leader("b").read();
    story.after(ms(5)).standby("b", 100 * MB);
    assert_eq!(story.led_by(), None);
    assert_eq!(story.doubt(), Some(Doubt::InRecovery));
    assert_eq!(story.topology().state, ClusterState::Leaderless);
    story.timeline = 2;
    story.after(ms(120)).leader("b", 100 * MB);
    assert_eq!(story.led_by(), Some("b".into()));
    assert_eq!(story.epoch(), 2);
}

#[test]
fn a_probe_from_before_the_key_was_seen_does_not_count() {
    let mut story = Story::stable();
    story.delete_leader();
    story.put_leader("a").read();
    // Sent before the key came back, though it answers after.
    let (member, post) = ("a".into(), story.post("a"));
    let found = Found { sent_at: story.now().at - ms(1), ..probe(false, 1, 100 * MB) };
    story.see(Observation::Found { member, post, found });
    assert_eq!(story.doubt(), Some(Doubt::Unprobed));
    story.after(ms(1)).leader("a", 100 * MB);
    assert_eq!(story.led_by(), Some("a".into()));
}

#[test]
fn a_probe_of_an_old_address_does_not_count() {
    let mut story = Story::stable();
    let post = story.post("b");
    story.members[1].1 = Announced::of_static("10.0.0.9", 2);
    story.read();
    assert_eq!(story.out("b"), Some(Out::Unreachable));
    story.see(Observation::Found { member: "b".into(), post, found: probe(true, 1, 100 * MB) });
    assert_eq!(story.out("b"), Some(Out::Unreachable));
    story.standby("b", 100 * MB);
    assert_eq!(story.out("b"), None);
}

#[test]
fn an_expired_belief_has_no_leader() {
    let mut story = Story::stable();
    story.after(ms(18_900)).leader("a", 100 * MB);
    assert_eq!(story.led_by(), Some("a".into()));
    story.after(ms(100)).leader("a", 100 * MB);
    assert_eq!(story.doubt(), Some(Doubt::Expired));
    story.read();
    assert_eq!(story.led_by(), Some("a".into()));
    assert_eq!(story.epoch(), 1, "the same leadership goes on");
}

#[test]
fn a_machine_that_slept_believes_nothing() {
    let mut story = Story::stable();
    story.see(Observation::Slept(ms(60_000)));
    assert_eq!(story.led_by(), None);
    story.after(ms(1)).read().leader("a", 100 * MB);
    assert_eq!((story.led_by(), story.epoch()), (Some("a".into()), 1));
}

#[test]
fn a_lease_that_is_gone_shows_nothing() {
    let mut story = Story::new();
    story.put_leader("a");
    let read = Read { lease_left: Some(Duration::ZERO), ..story.a_read() };
    story.see(Observation::Read(read)).after(ms(1)).leader("a", MB);
    assert_eq!(story.doubt(), Some(Doubt::Expired));
}

#[test]
fn without_a_time_to_live_patronis_settings_count() {
    let mut story = Story::new();
    story.put_leader("a");
    let read = Read { lease_left: None, ..story.a_read() };
    story.see(Observation::Read(read)).after(ms(1)).leader("a", MB);
    // ttl 30 - loop_wait 10 - retry_timeout 10 - margin 1
    assert_eq!(story.topology().leader.expect("in force").valid_until, story.begin + ms(9_000));
}

#[test]
fn an_overtaken_read_does_not_bring_the_leader_back() {
    let mut story = Story::stable();
    let late = story.a_read();
    story.delete_leader();
    story.see(Observation::Read(late)).after(ms(1)).leader("a", 100 * MB);
    assert_eq!(story.doubt(), Some(Doubt::NoKey));
}

#[test]
fn a_read_without_the_key_ends_the_leader_at_once() {
    let mut story = Story::stable();
    story.revision += 1;
    story.leader = None;
    story.primary("a", true).read();
    assert_eq!(story.doubt(), Some(Doubt::NoKey));
    assert_eq!(story.epoch(), 2);
}

#[test]
fn etcd_restored_from_a_backup_counts_from_lower_revisions() {
    let mut story = Story::stable();
    story.revision = 2;
    story.leader = Some(("b", 2));
    let read = Read { first: true, ..story.a_read() };
    story.timeline = 2;
    story.see(Observation::Read(read)).after(ms(1)).leader("b", 101 * MB);
    assert_eq!(story.led_by(), Some("b".into()));
}

#[test]
fn the_epoch_is_raised_when_the_same_name_comes_back() {
    let mut story = Story::stable();
    story.delete_leader();
    let topology = story.topology();
    assert_eq!((topology.epoch, topology.sampled_in, topology.samples.len()), (Epoch(2), Epoch(1), 1));
    story.after(ms(10)).put_leader("a").read().after(ms(1)).leader("a", 100 * MB);
    let topology = story.topology();
    assert_eq!((topology.sampled_in, topology.samples.len()), (Epoch(2), 1));
    assert_eq!((story.led_by(), story.epoch()), (Some("a".into()), 2));
}

#[test]
fn the_epoch_is_raised_when_the_keys_absence_went_unseen() {
    let mut story = Story::stable();
    story.revision += 5;
    story.leader = Some(("a", story.revision));
    story.read();
    assert_eq!(story.doubt(), Some(Doubt::Unprobed));
    story.after(ms(1)).leader("a", 100 * MB);
    assert_eq!((story.led_by(), story.epoch()), (Some("a".into()), 2));
}

#[test]
fn the_epoch_stays_when_patroni_puts_the_key_again() {
    let mut story = Story::stable();
    story.revision += 1;
    let (name, create_revision) = story.leader.expect("a leader");
    let fact = Fact::Leader(LeaderKey { name: name.into(), create_revision, lease: 1 });
    story.see(Observation::Put { revision: story.revision, fact });
    assert_eq!((story.led_by(), story.epoch()), (Some("a".into()), 1));
}

#[test]
fn the_epoch_is_raised_with_the_timeline() {
    let mut story = Story::stable();
    story.timeline = 2;
    story.after(ms(10)).leader("a", 100 * MB);
    assert_eq!((story.led_by(), story.epoch()), (Some("a".into()), 2));
    assert_eq!(story.topology().samples.len(), 1);
}

#[test]
fn a_probe_that_fails_holds_writes_in_the_same_epoch() {
    let mut story = Story::stable();
    story.lost("a");
    assert_eq!(story.doubt(), Some(Doubt::Unreachable));
    story.after(ms(50)).leader("a", 100 * MB);
    assert_eq!((story.led_by(), story.epoch()), (Some("a".into()), 1));
}

#[test]
fn two_members_out_of_recovery_only_the_one_that_etcd_names() {
    let mut story = Story::stable();
    story.after(ms(10)).leader("b", 100 * MB).leader("a", 100 * MB);
    let topology = story.topology();
    assert_eq!(story.led_by(), Some("a".into()));
    assert_eq!(topology.member("b").expect("b").out, Some(Out::NotInRecovery));
}

#[test]
fn a_newer_timeline_elsewhere_makes_the_named_leader_wait() {
    let mut story = Story::stable();
    story.put(Fact::Initialize(SYSTEM.to_string().into()));
    story.after(ms(10)).probed("b", probe(false, 2, 100 * MB));
    assert_eq!(story.doubt(), Some(Doubt::OldTimeline));
    story.lost("b");
    assert_eq!(story.led_by(), Some("a".into()), "b never led, and is gone");
    story.put_leader("b").read().after(ms(1)).probed("b", probe(false, 2, 100 * MB));
    assert_eq!(story.led_by(), Some("b".into()));
    story.put_leader("a").read().lost("b").after(ms(1)).leader("a", 100 * MB);
    assert_eq!(story.doubt(), Some(Doubt::OldTimeline), "timeline 2 has led");
    story.delete(Slot::Initialize).after(ms(1)).leader("a", 100 * MB);
    assert_eq!(story.led_by(), Some("a".into()), "the cluster was made anew");
}

#[test]
fn another_system_does_not_lead() {
    let mut story = Story::stable();
    story.put(Fact::Initialize("1".into()));
    assert_eq!(story.doubt(), Some(Doubt::OtherSystem));
    story.put(Fact::Initialize(SYSTEM.to_string().into()));
    assert_eq!(story.led_by(), Some("a".into()));
    story.probed("b", Found { system_identifier: 1, ..probe(true, 1, 100 * MB) });
    assert_eq!(story.out("b"), Some(Out::WrongTimeline));
}

#[test]
fn the_failsafe_needs_etcd_down_probe_and_patroni() {
    let mut story = Story::stable();
    assert_eq!(story.judge.failsafe(), None);
    story.after(ms(19_000)).primary("a", true).leader("a", 100 * MB);
    assert_eq!(story.doubt(), Some(Doubt::Expired), "etcd answers: its word alone counts");
    story.etcd_fails();
    let topology = story.topology();
    let leader = topology.leader.expect("in force");
    assert!(leader.failsafe && topology.etcd_error.is_some());
    assert_eq!((leader.epoch, leader.valid_until), (Epoch(1), story.now().at + FAILSAFE_HOLD));
    story.after(ms(1000)).primary("a", false);
    assert_eq!(story.doubt(), Some(Doubt::Expired));
    story.primary("a", true).after(FAILSAFE_HOLD).leader("a", 100 * MB);
    assert_eq!(story.doubt(), Some(Doubt::Expired), "Patroni is silent");
    story.primary("a", true).standby("a", 100 * MB);
    assert_eq!(story.doubt(), Some(Doubt::InRecovery));
}

#[test]
fn the_failsafe_invents_no_leader() {
    let mut story = Story::stable();
    story.delete_leader().etcd_fails().after(ms(1)).primary("a", true).leader("a", 100 * MB);
    assert_eq!(story.doubt(), Some(Doubt::NoKey));
    // A new life of the key in which nobody was in force yet, and whose lease ran out unseen.
    let mut story = Story::stable();
    story.delete_leader().put_leader("a").etcd_fails().after(ms(1)).primary("a", true).leader("a", 100 * MB);
    assert_eq!(story.doubt(), Some(Doubt::Expired));
}

#[test]
fn a_switchover_is_announced() {
    let mut story = Story::stable();
    let request = |leader: &str, scheduled_at| Fact::Failover(FailoverKey { leader: leader.into(), candidate: "b".into(), scheduled_at });
    story.put(request("c", None));
    assert_eq!(story.topology().state, ClusterState::Stable, "meant for another leader");
    story.put(request("a", Some(1_000_060.0)));
    assert_eq!(story.topology().state, ClusterState::Stable, "not due");
    story.put(request("a", None));
    assert_eq!(story.topology().state, ClusterState::Switching);
    assert_eq!(story.led_by(), Some("a".into()), "what runs may go on");
    assert_eq!(story.judge.pace("b", story.now().at), Pace::Busy);
    story.delete(Slot::Failover);
    assert_eq!(story.topology().state, ClusterState::Stable, "Patroni rejected it");
    story.put(request("", None));
    assert_eq!(story.topology().state, ClusterState::Switching);
    story.after(ms(11_999)).read();
    assert_eq!(story.topology().state, ClusterState::Switching);
    story.after(ms(1));
    assert_eq!(story.topology().state, ClusterState::Stable, "loop_wait + 2 s");
}

#[test]
fn an_operators_switchover_holds_writes() {
    let mut story = Story::stable();
    let until = story.now().at + ms(5_000);
    story.see(Observation::Holding(Some(until)));
    assert_eq!(story.topology().state, ClusterState::Switching);
    assert_eq!(story.led_by(), Some("a".into()), "for what runs");
    story.see(Observation::Holding(None));
    assert_eq!(story.topology().state, ClusterState::Stable);
    // Forgotten by whoever asked, it ends by itself.
    story.see(Observation::Holding(Some(until)));
    story.after(ms(5_000));
    assert_eq!(story.topology().state, ClusterState::Stable);
}

#[test]
fn an_operators_hold_is_over_with_the_leadership_that_it_began_in() {
    let mut story = Story::stable();
    let until = story.now().at + ms(60_000);
    story.see(Observation::Holding(Some(until)));
    story.delete_leader();
    assert_eq!(story.topology().state, ClusterState::Leaderless);
    story.timeline = 2;
    story.after(ms(10)).put_leader("b").read();
    story.after(ms(10)).leader("b", 100 * MB);
    assert_eq!((story.topology().state, story.led_by()), (ClusterState::Stable, Some("b".into())));
}

#[test]
fn a_scheduled_switchover_begins_when_its_time_has_come() {
    let mut story = Story::stable();
    story.put(Fact::Failover(FailoverKey { leader: "a".into(), candidate: String::new(), scheduled_at: Some(1_000_005.0) }));
    assert_eq!(story.topology().state, ClusterState::Stable);
    story.after(ms(5_000));
    assert_eq!(story.topology().state, ClusterState::Switching);
}

#[test]
fn a_switchover_ends_with_the_new_leader() {
    let mut story = Story::stable();
    story.put(Fact::Failover(FailoverKey { leader: String::new(), candidate: "b".into(), scheduled_at: None }));
    story.after(ms(250)).lost("a");
    assert_eq!(story.topology().state, ClusterState::Leaderless);
    story.after(ms(2_000)).delete_leader().put_leader("b");
    assert_eq!(story.judge.pace("b", story.now().at), Pace::Urgent);
    story.timeline = 2;
    story.read().after(ms(100)).leader("b", 100 * MB);
    assert_eq!(story.topology().state, ClusterState::Stable, "the key is still there, the leader has changed");
}

#[test]
fn an_emptied_request_is_none() {
    let mut story = Story::stable();
    let request = |leader: &str, candidate: &str| {
        Fact::Failover(FailoverKey { leader: leader.into(), candidate: candidate.into(), scheduled_at: None })
    };
    story.put(request("a", "b"));
    assert_eq!(story.topology().state, ClusterState::Switching);
    // Patroni has taken it back, or never meant to.
    story.put(request("", ""));
    assert_eq!(story.topology().state, ClusterState::Stable);
    // A new leader leaves it so, just before it leaves recovery.
    story.put(request("a", "b")).after(ms(250)).lost("a").delete_leader().put_leader("b").put(request("", ""));
    story.timeline = 2;
    story.read().after(ms(100)).leader("b", 100 * MB);
    assert_eq!((story.topology().state, story.led_by()), (ClusterState::Stable, Some("b".into())));
}

#[test]
fn a_lasting_loss_is_not_probed_fast_for_ever() {
    let mut story = Story::stable();
    let pace = |story: &mut Story, name: &str| {
        story.topology();
        story.judge.pace(name, story.now().at)
    };
    assert_eq!(pace(&mut story, "a"), Pace::Idle);
    story.delete_leader();
    assert_eq!(pace(&mut story, "a"), Pace::Busy);
    story.after(URGENT_FOR);
    assert_eq!(pace(&mut story, "a"), Pace::Idle);
    story.put_leader("b");
    assert_eq!((pace(&mut story, "a"), pace(&mut story, "b")), (Pace::Idle, Pace::Urgent));
    story.after(URGENT_FOR);
    assert_eq!(pace(&mut story, "b"), Pace::Idle);
}

#[test]
fn a_standby_clusters_leader_is_in_recovery() {
    let mut story = Story::stable();
    story.after(ms(1)).standby("a", 100 * MB);
    assert_eq!(story.doubt(), Some(Doubt::InRecovery));
    story.put(Fact::Config(ClusterConfig { standby_cluster: true, ..ClusterConfig::default() }));
    let topology = story.topology();
    assert!(topology.leader.expect("in force").standby_cluster);
    assert_eq!(topology.members[0].role, Role::StandbyLeader);
    assert_eq!(story.out("b"), None);
}

#[test]
fn a_replica_past_the_fork_is_out() {
    let mut story = Story::stable();
    story.delete_leader().put_leader("b").read().after(ms(1));
    let forks: Forks = [(Timeline(1), Lsn(100 * MB))].into();
    story.probed("b", probe(false, 2, 100 * MB)).standby("c", 100 * MB).standby("a", 101 * MB);
    assert_eq!(story.out("c"), Some(Out::WrongTimeline), "where the fork is isn't known yet");
    story.after(ms(1)).probed("b", Found { forks: Some(forks), ..probe(false, 2, 100 * MB) });
    let topology = story.topology();
    let c = topology.member("c").expect("c");
    assert_eq!((c.out, c.fork), (None, Some(Lsn(100 * MB))));
    assert_eq!(story.out("a"), Some(Out::WrongTimeline));
    // A later probe without the history, of the same timeline, forgets nothing.
    story.after(ms(1)).probed("b", probe(false, 2, 100 * MB));
    assert_eq!(story.out("c"), None);
}

#[test]
fn a_replica_that_lost_its_wal_receiver_stays_on_its_timeline() {
    let mut story = Story::stable();
    story.delete_leader().put_leader("b").read().after(ms(1)).probed("b", probe(false, 2, 100 * MB)).probed("c", probe(true, 2, 101 * MB));
    assert_eq!(story.out("c"), None);
    // The new leader dies before the replica's control file knows timeline 2.
    story.after(ms(1)).lost("b").probed("c", probe(true, 1, 101 * MB));
    assert_eq!(story.out("c"), None);
    story.after(ms(1)).probed("c", Found { timeline: None, ..probe(true, 1, 101 * MB) });
    assert_eq!(story.out("c"), None);
    // What another start of it has replayed is told by its control file alone.
    story.after(ms(1)).probed("c", Found { started_at_unix_seconds: 2e9, ..probe(true, 1, 101 * MB) });
    assert_eq!(story.out("c"), Some(Out::WrongTimeline));
}

#[test]
fn etcds_history_tells_the_fork_too() {
    let mut story = Story::stable();
    story.delete_leader().put_leader("b").read().after(ms(1)).probed("b", probe(false, 2, 100 * MB)).standby("c", 100 * MB);
    assert_eq!(story.out("c"), Some(Out::WrongTimeline));
    story.put(Fact::History([(Timeline(1), Lsn(100 * MB))].into()));
    assert_eq!(story.out("c"), None);
    story.after(ms(1)).probed("b", probe(false, 3, 100 * MB));
    assert_eq!(story.out("c"), Some(Out::WrongTimeline), "an old history says nothing about timeline 3");
}

#[test]
fn an_unknown_timeline_is_not_eligible() {
    let mut story = Story::stable();
    let restarted = Found { started_at_unix_seconds: 2.0, ..probe(true, 1, 100 * MB) };
    story.after(ms(1)).probed("b", Found { timeline: None, ..restarted });
    assert_eq!(story.out("b"), Some(Out::WrongTimeline));
}

#[test]
fn lag_in_bytes_takes_a_replica_out_and_half_of_it_brings_it_back() {
    let mut story = Story::stable();
    story.after(ms(100)).leader("a", 117 * MB).standby("b", 100 * MB);
    assert_eq!(story.out("b"), Some(Out::Lagging));
    assert_eq!(story.topology().member("b").expect("b").lag_bytes, Some(17 * MB));
    story.after(ms(1)).standby("b", 108 * MB);
    assert_eq!(story.out("b"), Some(Out::Lagging), "9 MB are more than half of 16");
    story.after(ms(1)).standby("b", 110 * MB);
    assert_eq!(story.out("b"), None);
}

#[test]
fn lag_in_time_is_when_the_leader_passed() {
    let mut story = Story::stable();
    // Far more samples than are kept one by one.
    for step in 1..=2_000 {
        story.after(ms(6)).leader("a", 100 * MB + step);
        if step % 100 == 0 {
            story.read();
        }
    }
    story.standby("b", 100 * MB).standby("c", 100 * MB + 2_000);
    let topology = story.topology();
    let b = topology.member("b").expect("b");
    let lag = b.lag.expect("measured");
    assert!((ms(10_900)..=ms(12_000)).contains(&lag), "{lag:?}");
    assert_eq!((b.lag_bytes, b.out), (Some(2_000), Some(Out::Lagging)));
    assert_eq!(topology.member("c").expect("c").lag, Some(Duration::ZERO));
    assert_eq!(topology.samples.len(), 256);
}

#[test]
fn lag_in_time_takes_a_replica_out_and_half_of_it_brings_it_back() {
    let mut story = Story::stable();
    let written_at = story.elapsed;
    // The leader writes once a second, and b is late by so many of these writes.
    let late_by = |story: &mut Story, seconds: u64| {
        story.after(ms(1_000)).read();
        let written = (story.elapsed - written_at).as_secs();
        story.leader("a", 100 * MB + written).standby("b", 100 * MB + written.saturating_sub(seconds));
        story.out("b")
    };
    for second in 1..=20 {
        assert_eq!(late_by(&mut story, second.min(9)), None, "{second} s");
    }
    assert_eq!(late_by(&mut story, 12), Some(Out::Lagging));
    assert_eq!(late_by(&mut story, 8), Some(Out::Lagging), "8 s are more than half of 10");
    assert_eq!(late_by(&mut story, 3), None);
    assert_eq!(late_by(&mut story, 8), None, "and it stays until it is over the limit again");
}

#[test]
fn a_cascaded_replica_is_judged_by_what_it_shows() {
    let mut story = Story::stable();
    // c follows b, which has stopped to replay, or is gone: what counts is where c is.
    story.after(ms(100)).leader("a", 130 * MB).standby("b", 100 * MB).standby("c", 129 * MB);
    assert_eq!((story.out("b"), story.out("c")), (Some(Out::Lagging), None));
    story.after(ms(1)).lost("b").standby("c", 130 * MB);
    assert_eq!((story.out("b"), story.out("c")), (Some(Out::Unreachable), None));
    // It can be behind whom it follows, too.
    story.after(ms(1)).leader("a", 160 * MB).standby("b", 160 * MB).standby("c", 130 * MB);
    assert_eq!((story.out("b"), story.out("c")), (None, Some(Out::Lagging)));
}

#[test]
fn an_idle_cluster_has_no_lag() {
    let mut story = Story::stable();
    story.after(ms(15_000)).leader("a", 100 * MB).standby("b", 100 * MB);
    let topology = story.topology();
    let b = topology.member("b").expect("b");
    assert_eq!((b.lag_bytes, b.lag), (Some(0), Some(Duration::ZERO)));
}

#[test]
fn tags_states_and_operators_take_a_replica_out() {
    let mut story = Story::stable();
    story.members[1].1.no_load_balance = true;
    story.members[2].1.state = "stopping".into();
    story.revision += 1;
    story.read();
    assert_eq!((story.out("b"), story.out("c")), (Some(Out::NoLoadBalance), Some(Out::NotRunning)));
    story.members[1].1.no_load_balance = false;
    story.members[2].1.state = "streaming".into();
    story.revision += 1;
    story.read().see(Observation::Drained(["a".into(), "c".into()].into()));
    assert_eq!((story.out("b"), story.out("c")), (None, Some(Out::Drained)));
    assert_eq!(story.led_by(), Some("a".into()), "draining is about reads");
    story.see(Observation::Drained(BTreeSet::new()));
    assert_eq!(story.out("c"), None);
}

#[test]
fn members_come_and_go_alone() {
    let mut story = Story::stable();
    let before = story.topology();
    story.put(Fact::Member("d".into(), Announced::of_static("10.0.0.1", 4)));
    assert_eq!(story.out("d"), Some(Out::Unreachable));
    story.standby("d", 100 * MB);
    assert_eq!(story.out("d"), None);
    story.delete(Slot::Member("d".into())).delete(Slot::Member("c".into()));
    let after = story.topology();
    assert_eq!(after.members.iter().map(|member| &*member.name).collect::<Vec<_>>(), ["a", "b"]);
    assert!(Arc::ptr_eq(&before.members[1], &after.members[1]), "b is the same snapshot");
    assert_eq!(story.led_by(), Some("a".into()));
}

#[test]
fn changed_is_about_what_matters() {
    let mut story = Story::stable();
    let settle = |story: &mut Story| {
        let settled = story.judge.settle(story.now());
        (settled.changed, settled.sampled)
    };
    assert_eq!(settle(&mut story), (false, false));
    let (member, post) = ("b".into(), story.post("b"));
    let found = Found { sent_at: story.now().at, ..probe(true, 1, 100 * MB) };
    story.judge.observe(story.now(), Observation::Found { member, post, found });
    assert_eq!(settle(&mut story), (false, true));
    story.judge.observe(story.now(), Observation::Drained(["b".into()].into()));
    assert_eq!(settle(&mut story), (true, false));
    story.elapsed += ms(30_000);
    assert_eq!(settle(&mut story), (true, false), "the belief expired");
}

#[test]
fn leadership_changes_are_told() {
    let mut story = Story::stable();
    story.delete_leader().after(ms(10)).put_leader("b").read().after(ms(1));
    story.timeline = 2;
    story.leader("b", 100 * MB);
    let changes = story.topology().changes;
    let told: Vec<_> = changes.iter().map(|change| (change.leader.as_deref(), change.epoch.0, &*change.reason)).collect();
    assert_eq!(
        told,
        [
            (Some("b"), 2, "named by etcd, out of recovery"),
            (None, 2, "the leader key is gone"),
            (Some("a"), 1, "named by etcd, out of recovery")
        ]
    );
}

#[test]
fn without_etcd_the_single_member_out_of_recovery_leads() {
    let mut config = common::config();
    config.etcd.endpoints.clear();
    config.cluster.static_members = ["a", "b"]
        .iter()
        .zip(1..)
        .map(|(name, port)| switchyard_config::StaticMember { name: (*name).into(), host: "10.0.0.1".into(), port })
        .collect();
    let mut story = Story::stable();
    story.judge = Judge::new(&config, story.now());
    assert_eq!(story.doubt(), Some(Doubt::Nobody));
    story.leader("a", MB).standby("b", MB);
    assert_eq!((story.led_by(), story.out("b")), (Some("a".into()), None));
    story.leader("b", MB);
    assert_eq!(story.doubt(), Some(Doubt::Several));
    story.after(ms(1)).probed("b", probe(false, 2, MB));
    assert_eq!((story.led_by(), story.epoch()), (Some("b".into()), 2), "the newest timeline");
    story.lost("b");
    assert_eq!(story.doubt(), Some(Doubt::OldTimeline), "a is a zombie");
    story.after(ms(2)).probed("b", probe(false, 2, MB)).after(ms(2_200));
    assert_eq!(story.doubt(), Some(Doubt::Expired), "no probe for too long");
}

/// Whatever happens, in whatever order: a leader in force is named by the key, unexpired, out of recovery, unique.
#[test]
fn never_two_leaders() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let names = ["a", "b", "c"];
    for _ in 0..200 {
        let mut story = Story::stable();
        let mut epoch = 0;
        let mut last: Option<(u64, String)> = None;
        for _ in 0..200 {
            let name = names[random(3) as usize];
            story.after(ms(random(3_000)));
            match random(10) {
                0 => story.put_leader(name),
                1 => story.delete_leader(),
                2 => story.etcd_fails(),
                3 => story.primary(name, random(2) == 0),
                4 => story.lost(name),
                5 | 6 => story.read(),
                7 => story.standby(name, 100 * MB),
                _ => story.leader(name, 100 * MB),
            };
            let now = story.now().at;
            let topology = story.topology();
            assert!(topology.epoch.0 >= epoch, "epochs only rise");
            epoch = topology.epoch.0;
            let Some((leader, member)) = topology.leader_at(now) else { continue };
            assert_eq!(story.leader.map(|(name, _)| name), Some(&*member.name), "named by the key");
            assert!(member.probed.as_ref().is_some_and(|probed| !probed.in_recovery) && member.probe_error.is_none());
            if let Some((epoch, name)) = &last {
                assert!(*epoch != leader.epoch.0 || **name == *member.name, "one leader for each epoch");
            }
            last = Some((leader.epoch.0, member.name.to_string()));
        }
    }
}

#[path = "witness_tests.rs"]
mod witness_tests;
