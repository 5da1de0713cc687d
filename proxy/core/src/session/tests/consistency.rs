//! The levels `global` and `strong`: whom a read may go to after others' writes.

use super::script::Story;
use crate::lsn::Lsn;
use crate::marks::{Sending, Touched};
use crate::session::Access;
use crate::witness::Witnessed;

/// A session that has begun, at a level, where the replicas have caught up with all there is.
fn at(access: Access, level: &str) -> Story {
    let mut story = Story::on(access);
    story.rig.know_tables(1, &["a", "b"]);
    story.tell(&format!("level {level}\n caught"));
    story
}

/// A transaction has updated a.
const BEGUN: &str = "C> Q begin
         C< C BEGIN / Z T
         C> Q update a set n = 1
         lease l leader
         S> P - begin / B - - / E - / Q update a set n = 1
         S< 1 / 2 / C BEGIN / C UPDATE 1 / Z T
         C< C UPDATE 1 / Z T";

#[test]
fn a_read_waits_for_nobody_elses_table() {
    at(Access::ReadWrite, "global").tell(
        "C> Q select * from a
         lease r replica
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         # Somebody writes b: a is as it was.
         others b
         asked
         C> Q select * from a
         lease r replica
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         C> Q select * from b
         lease l leader
         S> Q select * from b
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         # Once they have replayed it, it is theirs again.
         caught
         C> Q select * from b
         lease r replica
         S> Q select * from b
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         others *
         C> Q select * from a
         lease l leader
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return",
    );
}

#[test]
fn a_leader_that_lets_nobody_in_is_waited_for_only_by_those_who_need_it() {
    at(Access::ReadWrite, "global").tell(
        "others b
         asked
         C> Q select * from b
         lease l leader unreachable
         sample
         again
         lease l leader unreachable
         sample
         caught
         again
         lease r replica
         S> Q select * from b
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         C> Q set datestyle = 'ISO'
         lease l leader unreachable
         lease r replica
         S> Q set datestyle = 'ISO'
         S< C SET / Z I
         C< C SET / Z I
         return
         C> Q update b set n = 1
         lease l leader unreachable
         hold for a leader
         again
         lease l leader unreachable
         hold for a leader
         deny
         C< E 57P03 / Z I",
    );
}

#[test]
fn a_read_that_a_replica_shows_in_a_moment_takes_no_place_in_the_line_of_a_switchover() {
    at(Access::ReadWrite, "global").tell(
        "others b
         asked
         switching
         C> Q select * from b
         sample
         caught
         again
         lease r replica
         S> Q select * from b
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         # Not for ever.
         others b
         asked
         C> Q select * from b
         sample
         +11s
         again
         hold for anybody
         deny
         C< E 57P03 / Z I",
    );
}

/// What one session writes, as another one at the level global meets it. Whether a read of `a` goes to the leader after what is told.
fn marks_a(told: &str) -> bool {
    let mut story = at(Access::ReadWrite, "global");
    story.tell(told);
    let since = story.rig.marks.since(&Touched::relation("a"));
    since > story.rig.topology.samples[0].sent_at
}

#[test]
fn a_write_counts_once_it_is_acknowledged() {
    let write = "C> Q update a set n = 1
         lease l leader
         S> Q update a set n = 1
         ";
    assert!(!marks_a("C> Q select 1\n lease r replica\n S> Q select 1\n S< T / C SELECT 1 / Z I\n C< T / C SELECT 1 / Z I\n return"));
    // In a transaction, at its COMMIT.
    let begin = "C> Q begin
         C< C BEGIN / Z T
         C> Q update a set n = 1
         lease l leader
         S> P - begin / B - - / E - / Q update a set n = 1
         S< 1 / 2 / C BEGIN / C UPDATE 1 / Z T
         C< C UPDATE 1 / Z T
         ";
    assert!(!marks_a(begin));
    assert!(marks_a(&format!("{begin} C> Q commit\n S> Q commit\n S< C COMMIT\n C< C COMMIT")), "before ReadyForQuery, too");
    assert!(!marks_a(&format!("{begin} C> Q rollback\n S> Q rollback\n S< C ROLLBACK / Z I\n C< C ROLLBACK / Z I\n return")));
    assert!(!marks_a(&format!("{begin} C> Q commit\n S> Q commit\n S< E 23503 no / Z I\n C< E 23503 / Z I\n return")));
    assert!(marks_a(&format!("{begin} C> Q commit\n S> Q commit\n lost\n C< E 08007 / Z I")), "its outcome is unknown");
    // Outside one, with its CommandComplete; not if it fails.
    assert!(marks_a(&format!("{write} S< C UPDATE 1\n C< C UPDATE 1")));
    assert!(!marks_a(&format!("{write} S< E 23503 no / Z I\n C< E 23503 / Z I\n return")));
    assert!(marks_a(&format!("{write} lost\n C< E 08007 / Z I")), "its outcome is unknown");
}

#[test]
fn a_read_only_transaction_looks_again_with_each_statement() {
    let mut story = at(Access::ReadWrite, "global");
    story.tell(
        "C> Q begin read only
         C< C BEGIN / Z T
         C> Q select * from a
         lease r replica
         S> P - begin read only / B - - / E - / Q select * from a
         S< 1 / 2 / C BEGIN / T / C SELECT 0 / Z T
         C< T / C SELECT 0 / Z T
         C> Q select * from b
         S> Q select * from b
         S< T / C SELECT 0 / Z T
         C< T / C SELECT 0 / Z T
         others b
         asked
         C> Q select * from a
         S> Q select * from a
         S< T / C SELECT 0 / Z T
         C< T / C SELECT 0 / Z T
         C> Q select * from b
         return
         lease l leader
         S> P - begin read only / B - - / E - / Q select * from b
         S< 1 / 2 / C BEGIN / T / C SELECT 0 / Z T
         C< T / C SELECT 0 / Z T
         C> Q commit
         S> Q commit
         S< C COMMIT / Z I
         C< C COMMIT / Z I
         return",
    );
    // What makes it stay makes it leave.
    let mut story = at(Access::ReadWrite, "global");
    story.tell(
        "C> Q begin read only
         C< C BEGIN / Z T
         C> Q select * from a
         lease r replica
         S> P - begin read only / B - - / E - / Q select * from a
         S< 1 / 2 / C BEGIN / T / C SELECT 0 / Z T
         C< T / C SELECT 0 / Z T
         C> Q savepoint s
         return
         lease l leader
         S> P - begin read only / B - - / E - / Q savepoint s",
    );
}

#[test]
fn it_moves_as_a_whole_after_a_flush() {
    at(Access::ReadWrite, "global").tell(
        "C> Q begin read only
         C< C BEGIN / Z T
         C> P - select * from b / D S - / H
         lease r replica
         S> P - begin read only / B - - / E - / C P - / P - select * from b / D S - / H
         S< 1 / 2 / C BEGIN / 3 / 1 / t / T
         C< 1 / t / T
         others b
         asked
         C> B - - / E - / S
         return
         lease l leader
         S> P - begin read only / B - - / E - / C P - / P - select * from b / B - - / E - / S
         S< 1 / 2 / C BEGIN / 3 / 1 / 2 / D 1 / C SELECT 1 / Z T
         C< 2 / D 1 / C SELECT 1 / Z T
         C> Q commit
         S> Q commit
         S< C COMMIT / Z I
         C< C COMMIT / Z I
         return",
    );
}

#[test]
fn one_snapshot_shows_everything_from_its_beginning() {
    at(Access::ReadWrite, "global").tell(
        "others b
         asked
         C> Q begin isolation level repeatable read read only
         C< C BEGIN / Z T
         C> Q select * from a
         lease l leader
         S> P - begin isolation level repeatable read read only / B - - / E - / Q select * from a",
    );
}

#[test]
fn strong_asks_the_leader_first() {
    at(Access::ReadWrite, "strong").tell(
        "C> Q select * from a
         sample
         # An answer to a question from before the read came says nothing.
         again
         sample
         asked
         again
         lease l leader
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         C> Q select * from a
         sample
         caught
         again
         lease r replica
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         # Each read asks anew; an answer in another epoch isn't one.
         C> Q select * from a
         sample
         cluster r1 2: l r2
         again
         sample
         asked
         again
         lease r1 leader
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         # Without a leader there is nobody to ask.
         C> Q select * from a
         sample
         cluster : r1 r2
         again
         hold",
    );
}

#[test]
fn a_leader_that_says_nothing_serves_the_read() {
    at(Access::ReadWrite, "strong").tell(
        "C> Q select * from a
         sample
         +2s
         again
         lease l leader
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         # With a snapshot for each statement, each would have to ask.
         C> Q begin read only
         C< C BEGIN / Z T
         C> Q select * from a
         lease l leader
         S> P - begin read only / B - - / E - / Q select * from a",
    );
}

#[test]
fn a_session_sets_its_level() {
    at(Access::ReadWrite, "session").tell(
        "others a
         C> Q select * from a
         lease r replica
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         C> Q set switchyard.consistency = 'global'
         lease l leader
         S> Q set switchyard.consistency = 'global'
         S< C SET / Z I
         C< C SET / Z I
         return
         C> Q select * from a
         lease l leader
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         C> Q set switchyard.consistency = 'causal'
         lease l leader
         S> Q refused by switchyard
         S< E 42601 no / Z I
         C< E 22023 / Z I
         return",
    );
}

#[test]
fn a_prepared_statement_is_judged_by_the_facts_of_now() {
    let mut story = at(Access::ReadWrite, "global");
    story.tell(
        "C> P s select * from a / S
         lease r replica
         S> P sy1 select * from a / S
         S< 1 / Z I
         C< 1 / Z I
         return",
    );
    // `a` is another table's view now, for all that is known.
    story.rig.know_tables(2, &["b"]);
    story.tell(
        "C> B s / E / S
         lease l leader
         S> ...",
    );
}

#[test]
fn the_read_only_port_looks_at_each_read() {
    let mut story = at(Access::ReadOnly, "global");
    story.tell(
        "C> Q select * from b
         lease r replica
         S> Q select * from b
         C> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         lease r replica
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         others b
         asked
         C> Q select * from b
         lease l replica
         S> Q select * from b",
    );
}

#[test]
fn a_transaction_begins_where_its_parse_does() {
    let parse = "C> Q begin isolation level repeatable read read only
         C< C BEGIN / Z T
         C> P s select * from a / S
         ";
    at(Access::ReadWrite, "global").tell(&format!("others b\n asked\n {parse} lease l leader\n S> ..."));
    at(Access::ReadWrite, "strong").tell(&format!("{parse} sample"));
    at(Access::ReadWrite, "strong").tell(
        "C> Q begin read only
         C< C BEGIN / Z T
         C> P s select * from a / S
         lease l leader
         S> ...",
    );
}

#[test]
fn the_leader_shows_later_what_waits_for_its_standby() {
    let mut story = at(Access::ReadWrite, "session");
    let read = "S> Q select 1
         S< T / C SELECT 1 / Z I
         C< T / C SELECT 1 / Z I
         return";
    story.tell(&format!("C> Q select 1\n lease r replica\n {read}"));
    // A commit has been waiting for its standby since before the replica's answer.
    story.rig.sync_wait(5000);
    story.tell("C> Q /* switchyard: leader */ select 1\n sample\n again\n sample");
    // It isn't any more.
    story.rig.sync_wait(0);
    story.tell(
        "again
         lease l leader
         S> Q /* switchyard: leader */ select 1
         S< T / C SELECT 1 / Z I
         C< T / C SELECT 1 / Z I
         return
         C> Q /* switchyard: leader */ select 1
         lease l leader
         S> Q /* switchyard: leader */ select 1
         S< T / C SELECT 1 / Z I
         C< T / C SELECT 1 / Z I
         return",
    );
    story.rig.catch_up();
    story.tell(&format!("C> Q select 1\n lease r replica\n {read}"));
    story.rig.sync_wait(5000);
    // Not for ever, and never for something older.
    story.tell(
        "C> Q /* switchyard: leader */ select 1
         sample
         +29s
         again
         sample
         +1s
         again
         C< E 57P03 / Z I",
    );
}

/// Between the flush of a commit's record and its end, the leader's process may lose its processor: replicas show it earlier then.
#[test]
fn the_leader_shows_later_what_isnt_answered_yet() {
    let mut story = at(Access::ReadWrite, "session");
    let read = "S> Q select * from a
         S< T / C SELECT 1 / Z I
         C< T / C SELECT 1 / Z I
         return";
    let (mut sending, mut other) = (Sending::default(), Sending::default());
    story.rig.marks.sends(&mut sending, &Touched::relation("a"), story.rig.now);
    story.tell(&format!("C> Q select * from a\n lease r replica\n {read}"));
    let leader = "/* switchyard: leader */ select * from a";
    story.tell(&format!("C> Q {leader}\n sample\n again\n sample"));
    // What is sent only now, no replica has shown.
    story.rig.now += std::time::Duration::from_millis(1);
    story.rig.marks.sends(&mut other, &Touched::relation("a"), story.rig.now);
    story.rig.marks.ends(&mut sending);
    let led = format!("lease l leader\n S> Q {leader}\n S< T / C SELECT 1 / Z I\n C< T / C SELECT 1 / Z I\n return");
    story.tell(&format!("again\n {led}"));
    // Nobody knows of whatever takes longer than a commit.
    story.tell(&format!("caught\n C> Q select * from a\n lease r replica\n {read}"));
    story.tell(&format!("C> Q {leader}\n sample\n +2s\n again\n {led}"));
    // Others' tables are of no concern.
    story.tell(&format!("caught\n C> Q select * from a\n lease r replica\n {read}"));
    story.rig.marks.sends(&mut sending, &Touched::relation("b"), story.rig.now);
    story.tell(&format!("caught\n C> Q select * from a\n lease r replica\n {read}\n C> Q {leader}\n {led}"));
}

#[test]
fn a_write_is_under_way_until_it_is_answered() {
    let mut story = at(Access::ReadWrite, "session");
    let (a, b) = (Touched::relation("a"), Touched::relation("b"));
    let behind = |story: &Story, reads: &Touched| story.rig.marks.are_behind(reads, story.rig.now, story.rig.now);
    story.tell("C> Q update a set n = 1\n lease l leader\n S> Q update a set n = 1");
    assert!(behind(&story, &a) && !behind(&story, &b));
    story.tell("S< C UPDATE 1 / Z I\n C< C UPDATE 1 / Z I\n return");
    assert!(!behind(&story, &a));
    // Within a transaction, it is the COMMIT that can be seen before it is answered.
    story.tell(&format!(
        "{BEGUN}
         C> Q update b set n = 1
         S> Q update b set n = 1",
    ));
    assert!(!behind(&story, &a) && !behind(&story, &b));
    story.tell("S< C UPDATE 1 / Z T\n C< C UPDATE 1 / Z T\n C> Q commit\n S> Q commit");
    assert!(behind(&story, &a) && behind(&story, &b));
    story.tell("S< C COMMIT / Z I\n C< C COMMIT / Z I\n return");
    assert!(!behind(&story, &Touched::Everything));
    story.tell("C> Q update a set n = 1\n lease l leader\n S> Q update a set n = 1");
    assert!(behind(&story, &a));
    story.tell("lost\n C< E 08007 / Z I");
    assert!(!behind(&story, &a));
}

#[test]
fn a_read_may_wait_for_a_replica() {
    let mut story = at(Access::ReadWrite, "global");
    story.rig.policy.consistency_wait = std::time::Duration::from_secs(5);
    story.tell(
        "others a
         asked
         C> Q select * from a
         sample
         again
         sample
         # What is written while it waits isn't its business.
         caught
         others a
         again
         lease r replica
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         C> Q select * from a
         sample
         +6s
         again
         lease l leader
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return",
    );
}

#[test]
fn a_commit_is_seen_too() {
    at(Access::ReadWrite, "session").tell(&format!(
        "{BEGUN}
         # What replicas have replayed now is not what comes with the COMMIT.
         caught
         C> Q commit
         S> Q commit
         S< C COMMIT / Z I
         C< C COMMIT / Z I
         return
         C> Q select * from a
         lease l leader
         S> Q select * from a",
    ));
}

#[test]
fn a_replica_that_was_good_enough_for_one_read_is_not_for_the_next() {
    at(Access::ReadWrite, "session").tell(
        "C> Q update a set n = 1
         lease l leader
         S> Q update a set n = 1
         S< C UPDATE 1 / Z I
         C< C UPDATE 1 / Z I
         return
         level eventual
         C> Q select * from a
         lease r replica
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         level session
         C> Q select * from a
         lease l leader
         S> Q select * from a
         S< T / C SELECT 0 / Z I
         C< T / C SELECT 0 / Z I
         return
         caught
         C> Q select * from a
         lease r replica
         S> Q select * from a",
    );
}

/// The lines of EXPLAIN (ROUTE) of a read of `b`, which others have written, as text.
fn explained(story: &mut Story) -> String {
    let env = story.rig.env();
    story.session.explain(&env, b"select * from b").join("\n")
}

#[test]
fn a_read_without_a_leader_is_told_what_it_is_held_to() {
    let mut story = at(Access::ReadWrite, "global");
    story.tell("others b\n cluster : r1 r2");
    let nothing = explained(&mut story);
    assert!(nothing.contains("Without a leader: held to the last one's last word"), "{nothing}");
    assert!(nothing.contains("Choice: none: it waits in line until a replica is known to show what it must"), "{nothing}");
    assert!(nothing.contains("not known to show what others have written"), "{nothing}");

    let sent_at = story.rig.now;
    for (exact, text) in [(false, "held to what any replica has received"), (true, "that is all that was acknowledged")] {
        story.rig.topology.witnessed = Some(Witnessed { sent_at, lsn: Lsn(0), exact });
        let held = explained(&mut story);
        assert!(held.contains(text) && held.contains("Choice: r"), "{held}");
    }
    story.tell("level strong");
    let strong = explained(&mut story);
    assert!(strong.contains("reads at this level wait") && strong.contains("it waits in line until a leader is in force"), "{strong}");
}
