//! Clients that say goodbye behind their last statements: with Terminate, or by closing their sending half.
//! PostgreSQL runs and answers what came before; so does the router, and then ends the session.

use super::super::Access;
use super::script::{BEGUN, Story};

/// A story told twice: with Terminate where it says `GOODBYE`, and with the end of the client's input.
fn both(access: Access, story: &str) {
    Story::on(access).tell(&story.replace(" / GOODBYE", " / X"));
    let mut ended = Vec::new();
    for line in story.lines() {
        ended.push(line.replace(" / GOODBYE", ""));
        if line.contains("/ GOODBYE") {
            // The last of the bytes and the end of them may be seen apart. The session has taken the first by then.
            ended.push("ended".to_owned());
        }
    }
    Story::on(access).tell(&ended.join("\n"));
}

fn run(story: &str) {
    both(Access::ReadWrite, story);
}

#[test]
fn a_write_is_run_and_answered() {
    // The lease is asked for before the end is seen: nothing is wanted twice.
    Story::run(
        "C> Q insert into t values (1) / X
         lease l leader
         S> Q insert into t values (1)
         S< C INSERT 0 1 / Z I
         C< C INSERT 0 1 / Z I
         return
         leave",
    );
    Story::run(
        "C> Q insert into t values (1)
         lease l leader
         ended
         S> Q insert into t values (1)
         S< C INSERT 0 1
         C< C INSERT 0 1
         S< Z I
         C< Z I
         return
         leave",
    );
}

#[test]
fn so_are_two_segments_and_a_pipeline_over_two_nodes() {
    Story::run(
        "C> P - insert into t values (1) / B - - / E - / S / P - insert into t values (2) / B - - / E - / S / X
         lease l leader
         S> P - insert into t values (1) / B - - / E - / S / P - insert into t values (2) / B - - / E - / S
         S< 1 / 2 / C INSERT 0 1 / Z I
         C< 1 / 2 / C INSERT 0 1 / Z I
         S< 1 / 2 / C INSERT 0 1 / Z I
         C< 1 / 2 / C INSERT 0 1 / Z I
         return
         leave",
    );
    // A read by a replica first: what comes behind it waits, and so does the goodbye.
    Story::run(
        "C> Q select 1 / Q insert into t values (1) / X
         lease r replica
         S> Q select 1
         S< T / D 1 / C SELECT 1 / Z I
         C< T / D 1 / C SELECT 1 / Z I
         return
         lease l leader
         S> Q insert into t values (1)
         S< C INSERT 0 1 / Z I
         C< C INSERT 0 1 / Z I
         return
         leave",
    );
}

#[test]
fn a_commit_commits() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(BEGUN);
    story.tell(
        "C> Q commit / X
         S> Q commit
         S< C COMMIT / Z I
         C< C COMMIT / Z I
         return
         leave",
    );
    let mut story = Story::on(Access::ReadWrite);
    story.tell(BEGUN);
    story.tell(
        "C> Q commit
         S> Q commit
         ended
         S< C COMMIT / Z I
         C< C COMMIT / Z I
         return
         leave",
    );
    assert!(story.keeps("l", crate::route::ServerRole::Leader), "a connection that is clean is given back");
}

#[test]
fn a_transaction_that_is_open_is_left_to_its_rollback() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(BEGUN);
    story.tell("C> X\n leave");
    let mut story = Story::on(Access::ReadWrite);
    story.tell(BEGUN);
    story.tell("ended\n leave");
    // One of which no server knows.
    Story::run("C> Q begin / X\n C< C BEGIN / Z T\n leave");
}

#[test]
fn who_has_nothing_under_way_just_leaves() {
    Story::run("C> X\n leave");
    Story::run("ended\n leave");
    Story::run_read_only("C> S / X\n C< Z I\n leave");
    // Half a message, and what is behind a Terminate, is nobody's.
    let mut story = Story::on(Access::ReadWrite);
    story.work.client_in.extend_from_slice(b"Q\0\0\0\x20select");
    story.tell("ended\n leave");
    Story::run("C> X / Q insert into t values (1)\n leave");
}

#[test]
fn a_segment_without_a_sync_runs_and_ends_there() {
    run("C> P - commit / B - - / E - / GOODBYE
         lease l leader
         S> P - commit / B - - / E - / H
         S< 1 / 2 / C COMMIT
         C< 1 / 2 / C COMMIT
         leave");
    // An error skips to a Sync that never comes.
    run("C> P - selekt / B - - / E - / GOODBYE
         lease l leader
         S> P - selekt / B - - / E - / H
         S< E 42601 text
         C< E 42601
         leave");
    Story::run(
        "C> P - selekt / B - - / E - / H
         lease l leader
         S> P - selekt / B - - / E - / H
         S< E 42601 text
         C< E 42601
         C> P - insert into t values (1) / B - - / E - / X
         leave",
    );
    // A Parse alone is decided like one behind a Flush.
    run("C> P a insert into t values (1) / GOODBYE
         lease l leader
         S> P sy1 insert into t values (1) / S
         S< 1 / Z I
         C< 1
         return
         leave");
}

#[test]
fn copied_rows_are_kept_only_if_their_end_has_come() {
    run("C> Q copy t from stdin / d row / c / GOODBYE
         lease l leader
         S> Q copy t from stdin
         S< G
         C< G
         S> d row / c
         S< C COPY 1 / Z I
         C< C COPY 1 / Z I
         return
         leave");
    run("C> P - copy t from stdin / B - - / E - / d row / c / S / GOODBYE
         lease l leader
         S> P - copy t from stdin / B - - / E - / H
         S< 1 / 2 / G
         C< 1 / 2 / G
         S> d row / c / S
         S< C COPY 1 / Z I
         C< C COPY 1 / Z I
         return
         leave");
    // Without a Sync it isn't committed, and the server says so only if it is asked to.
    run("C> P - copy t from stdin / B - - / E - / d row / c / GOODBYE
         lease l leader
         S> P - copy t from stdin / B - - / E - / H
         S< 1 / 2 / G
         C< 1 / 2 / G
         S> d row / c / H
         S< C COPY 1
         C< C COPY 1
         leave");
    let mut story = Story::on(Access::ReadWrite);
    story.tell(
        "C> Q copy t from stdin / d row / X
         lease l leader
         S> Q copy t from stdin
         S< G
         C< G
         S> d row
         leave",
    );
    assert!(!story.keeps("l", crate::route::ServerRole::Leader), "its server still waits for data");
    let mut story = Story::on(Access::ReadWrite);
    story.tell("C> Q copy t from stdin\n lease l leader\n S> Q copy t from stdin\n S< G\n C< G");
    story.work.client_in.extend_from_slice(b"d\0\0\0\x20half");
    story.session.client_ended();
    story.go_on();
    assert_eq!(std::mem::take(&mut story.work.to_server), b"d\0\0\0\x20half");
    story.tell("leave");
    assert!(!story.keeps("l", crate::route::ServerRole::Leader), "its server waits for the rest of a message");
}

#[test]
fn a_pinned_session_gets_its_answers_and_takes_its_state_with_it() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(
        "C> Q create temp table a (x int)
         lease l leader
         S> Q create temp table a (x int)
         S< C CREATE TABLE / Z I
         C< C CREATE TABLE / Z I
         C> Q insert into t select * from a / X
         S> Q insert into t select * from a
         S< C INSERT 0 1 / Z I
         C< C INSERT 0 1 / Z I
         leave",
    );
}

#[test]
fn the_read_only_port_answers_too() {
    both(
        Access::ReadOnly,
        "C> Q select 1 / Q select 2 / GOODBYE
         lease r replica
         S> Q select 1
         S< T / D 1 / C SELECT 1 / Z I
         C< T / D 1 / C SELECT 1 / Z I
         return
         lease r replica
         S> Q select 2
         S< T / D 2 / C SELECT 1 / Z I
         C< T / D 2 / C SELECT 1 / Z I
         return
         leave",
    );
}

#[test]
fn waiting_in_line_goes_on() {
    Story::run(
        "cluster none: r1
         C> Q insert into t values (1) / X
         hold
         cluster l 2: r1
         again
         lease l leader
         S> Q insert into t values (1)
         S< C INSERT 0 1 / Z I
         C< C INSERT 0 1 / Z I
         return
         leave",
    );
    Story::run(
        "cluster none: r1
         C> Q insert into t values (1)
         hold
         ended
         deny
         C< E 57P03 / Z I
         leave",
    );
}

#[test]
fn a_read_that_runs_again_takes_its_time() {
    Story::run(
        "C> Q select 1 / X
         lease r1 replica
         S> Q select 1
         S< E 40001 conflict / Z I
         return
         lease l leader
         S> Q select 1
         S< T / D 1 / C SELECT 1 / Z I
         C< T / D 1 / C SELECT 1 / Z I
         return
         leave",
    );
}

#[test]
fn a_server_that_is_lost_meanwhile_ends_it_with_the_usual_word() {
    Story::run(
        "C> Q insert into t values (1) / X
         lease l leader
         S> Q insert into t values (1)
         lost
         C< E 08007 / Z I
         leave",
    );
}

#[test]
fn a_terminate_that_is_still_to_be_taken_is_a_goodbye() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell("C> Q select 1 / Q insert into t values (1) / X\n lease r replica\n S> Q select 1");
    assert!(story.session.has_left(Some(&story.work)), "the connection may break now, and the INSERT is run");
    let mut story = Story::on(Access::ReadWrite);
    story.tell("C> Q select 1 / Q insert into t values (1)\n lease r replica\n S> Q select 1");
    assert!(!story.session.has_left(Some(&story.work)));
}
