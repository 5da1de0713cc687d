//! Stories of whose word counts while no leader is in force.

use switchyard_core::lsn::Lsn;
use switchyard_core::witness::{Received, Witnessed};

use super::*;

/// The grace time of these tests' configuration.
const GRACE: Duration = Duration::from_millis(2000);

fn sync(leader: &str, standbys: &[&str], quorum: usize) -> Fact {
    let value = format!(r#"{{"leader":"{leader}","sync_standby":"{}","quorum":{quorum}}}"#, standbys.join(","));
    Fact::parse(&Slot::Sync, value.as_bytes(), 1, 0).expect("a sync key")
}

impl Story {
    fn witnessed(&mut self) -> Option<Witnessed> {
        self.topology().witnessed
    }

    /// Of a standby that has replayed 100 MB.
    fn received(&mut self, name: &str, lsn: u64) -> &mut Story {
        self.probed(name, Found { insert_lsn: Lsn(lsn), ..probe(true, self.timeline, 100 * MB) })
    }

    /// Both standbys have received what the leader had flushed when they were seen first; then the leader dies.
    fn orphaned(sync_key: Option<Fact>) -> Story {
        let mut story = Story::stable();
        story.extra.extend(sync_key);
        story.after(ms(10)).leader("a", 100 * MB).received("b", 101 * MB).received("c", 101 * MB).after(ms(1)).leader("a", 101 * MB);
        story.read();
        assert_eq!(story.witnessed(), None, "the leader is in force");
        story.after(ms(10)).lost("a");
        story
    }

    fn at(&self, pause: Duration) -> Instant {
        self.begin + self.elapsed - pause
    }
}

#[test]
fn a_synchronous_standby_tells_what_was_acknowledged() {
    let mut story = Story::orphaned(Some(sync("a", &["b"], 0)));
    story.after(ms(5)).received("b", 102 * MB).received("c", 103 * MB);
    // That b was synchronous is known as of when the key was read last before b was asked.
    assert_eq!(story.witnessed(), Some(Witnessed { sent_at: story.at(ms(15)), lsn: Lsn(102 * MB), exact: true }));
    story.after(ms(1)).read();
    assert_eq!(story.witnessed().expect("b's word").sent_at, story.at(ms(16)), "nobody was asked since");
    story.after(ms(1)).received("c", 103 * MB);
    assert_eq!(story.witnessed().expect("b's word").sent_at, story.at(ms(17)), "c's word doesn't count");
    story.received("b", 102 * MB);
    assert_eq!(story.witnessed().expect("b's word").sent_at, story.at(ms(1)));
    // No word of b, no bound: neither at once nor later.
    story.lost("b").after(GRACE).received("c", 103 * MB).read();
    assert_eq!(story.witnessed(), None);
}

#[test]
fn replicas_tell_what_they_can_have_shown() {
    let mut story = Story::orphaned(Some(sync("a", &["b"], 0)));
    story.after(ms(5)).received("b", 102 * MB).received("c", 103 * MB);
    assert_eq!(story.topology().received, Some(Received { sent_at: story.at(ms(0)), lsn: Lsn(103 * MB) }));
    // Nobody tells what it has shown since the leader's last word.
    story.after(ms(5)).lost("c");
    assert_eq!(story.topology().received, None);
    story.after(ms(5)).probed("c", Found { started_at_unix_seconds: 2.0, ..probe(true, 1, 100 * MB) });
    assert_eq!(story.topology().received, None);
    // The next leader was asked after that.
    story.after(ms(5)).leader("a", 104 * MB).after(ms(5)).lost("a");
    assert_eq!(story.topology().received.map(|received| received.lsn), Some(Lsn(104 * MB + 8)));
}

#[test]
fn of_a_quorum_enough_are_asked() {
    let mut story = Story::orphaned(Some(sync("a", &["b", "c"], 1)));
    story.after(ms(5)).read().received("b", 102 * MB).lost("c");
    assert_eq!(story.witnessed(), None);
    story.after(ms(5)).received("c", 103 * MB).read();
    assert_eq!(story.witnessed(), Some(Witnessed { sent_at: story.at(ms(5)), lsn: Lsn(103 * MB), exact: true }));
}

#[test]
fn a_synchronous_standby_that_restarted_has_forgotten() {
    let mut story = Story::orphaned(Some(sync("a", &["b"], 0)));
    let restarted = Found { started_at_unix_seconds: 2.0, ..probe(true, 1, 100 * MB) };
    story.after(ms(5)).lost("b").after(ms(5)).read().probed("b", restarted.clone());
    assert_eq!(story.witnessed(), None);
    // With the leader back, b has to receive what that had flushed after b was seen to run again.
    story.after(ms(5)).read().leader("a", 102 * MB).probed("b", restarted.clone()).lost("a");
    assert_eq!(story.witnessed(), None);
    story
        .after(ms(5))
        .leader("a", 102 * MB)
        .probed("b", Found { insert_lsn: Lsn(102 * MB), ..restarted })
        .after(ms(1))
        .leader("a", 102 * MB);
    story.lost("a");
    assert!(story.witnessed().is_some());
}

#[test]
fn another_leaders_standbys_tell_nothing() {
    let mut story = Story::orphaned(Some(sync("x", &["b"], 0)));
    story.after(ms(5)).received("b", 102 * MB).received("c", 101 * MB).read();
    assert_eq!(story.witnessed(), None);
}

#[test]
fn without_synchronous_replication_a_silence_has_to_pass() {
    let mut story = Story::orphaned(None);
    // The leader answered 10 ms before it was lost.
    story.after(GRACE - ms(10)).received("b", 102 * MB).received("c", 103 * MB);
    assert_eq!(story.witnessed(), None);
    story.after(ms(2)).received("b", 102 * MB);
    assert_eq!(story.witnessed(), None, "c was asked too early");
    story.received("c", 103 * MB);
    assert_eq!(story.witnessed(), Some(Witnessed { sent_at: story.at(ms(0)), lsn: Lsn(103 * MB), exact: false }));
    // Also when the key has gone; not once somebody is promoted.
    story.delete_leader();
    assert!(story.witnessed().is_some());
    story.probed("c", probe(false, 2, 103 * MB));
    assert_eq!(story.witnessed(), None);
}

#[test]
fn nobody_is_taken_for_the_leader_if_so_configured() {
    let mut story = Story::orphaned(None);
    let mut config = common::config();
    config.routing.global_without_leader = None;
    story.judge.reload(&config, story.now());
    story.after(3 * GRACE).received("b", 102 * MB).received("c", 103 * MB);
    assert_eq!(story.witnessed(), None);
}

#[test]
fn a_leader_that_was_demoted_tells_all() {
    let mut story = Story::orphaned(None);
    story.after(ms(5)).standby("a", 101 * MB).received("b", 90 * MB);
    assert_eq!(story.witnessed(), Some(Witnessed { sent_at: story.at(ms(0)), lsn: Lsn(101 * MB + 8), exact: true }));
    // Rewound, it is somebody else.
    story.timeline = 2;
    story.after(ms(5)).standby("a", 99 * MB);
    assert_eq!(story.witnessed(), None);
}

#[test]
fn a_leader_whose_lease_cannot_be_shown_tells_all() {
    let mut story = Story::stable();
    story.etcd_fails().after(ms(30_000)).leader("a", 102 * MB);
    assert_eq!((story.led_by(), story.witnessed().map(|witnessed| witnessed.lsn)), (None, Some(Lsn(102 * MB + 8))));
}
