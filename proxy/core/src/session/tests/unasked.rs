//! What a server says unasked. Reports and notices are understood; notifications are for a session that has the
//! connection for itself; anything else closes the connection, and is nobody's answer.

use super::super::Access;
use super::script::{BEGUN, Story};
use crate::route::ServerRole;

/// Everything that answers something.
const ANSWERS: &[&str] =
    &["T", "t", "D 1", "C SELECT 1", "I", "s", "1", "2", "3", "n", "G", "H", "c", "d x", "V x", "Z I", "E 42601 text", "A x"];

#[test]
fn behind_the_answer_that_lets_it_go_closes_the_connection() {
    for unasked in ANSWERS {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!(
            "C> Q select 1
             lease r1 replica
             S> Q select 1
             S< T / D 1 / C SELECT 1 / Z I / {unasked}
             C< T / D 1 / C SELECT 1 / Z I
             return"
        ));
        assert!(!story.keeps("r1", ServerRole::Replica), "{unasked}: kept");
        story.tell(
            "C> Q select 2
             lease r1 replica
             S> Q select 2
             S< T / D 2 / C SELECT 1 / Z I
             C< T / D 2 / C SELECT 1 / Z I
             return",
        );
    }
}

#[test]
fn half_a_message_does_too() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell("C> Q select 1\n lease r1 replica\n S> Q select 1");
    let mut answer: Vec<u8> = ["T", "D 1", "C SELECT 1", "Z I"].into_iter().flat_map(super::text::server).collect();
    answer.extend_from_slice(b"S\0\0\0\x20DateStyle");
    story.answers(answer);
    story.tell("C< T / D 1 / C SELECT 1 / Z I\n return");
    assert!(!story.keeps("r1", ServerRole::Replica));
    assert!(story.work.server_in.is_empty(), "the next server's answers begin with it");
}

#[test]
fn reports_and_notices_are_understood() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(
        "C> Q select 1
         lease r1 replica
         S> Q select 1
         S< T / D 1 / C SELECT 1 / Z I / S TimeZone UTC / N 01000 nobodys
         C< T / D 1 / C SELECT 1 / Z I
         return",
    );
    assert!(story.keeps("r1", ServerRole::Replica));
    story.tell(
        "C> Q select 2
         lease r1 replica
         S> Q select 2
         S< T / D 2 / C SELECT 1 / Z I
         C< T / D 2 / C SELECT 1 / S TimeZone UTC / Z I
         return",
    );
}

#[test]
fn within_a_transaction_it_ends_that() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(BEGUN);
    story.tell(
        "S< N 01000 the session's
         C< N 01000
         S< C INSERT 0 1
         C> Q commit
         C< E 40001 / Z I",
    );
    let mut story = Story::on(Access::ReadWrite);
    story.tell(BEGUN);
    story.tell("S< A x\n C> Q commit\n C< E 40001 / Z I");
}

#[test]
fn notifications_are_for_who_listens() {
    Story::run(
        "C> Q listen a; notify a
         lease l leader
         S> Q listen a; notify a
         S< C LISTEN / C NOTIFY / A a / Z I
         C< C LISTEN / C NOTIFY / A a / Z I
         S< A a
         C< A a",
    );
}

/// What is sent, what the server is sent, and what can't be a part of the answer's next message.
#[test]
fn an_answer_of_another_kind_than_what_is_owed_isnt_taken() {
    // Not a write whose answer is kept back.
    let write = "create table x (i int)";
    let extended = format!("P - {write} / B - - / D P - / E - / S");
    let told = |answered: &str, wrong: &str, asked: &str| {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!("C> {asked}\n lease l leader\n S> {asked}"));
        if !answered.is_empty() {
            story.tell(&format!("S< {answered}\n C< {answered}"));
        }
        story.tell(&format!("S< {wrong}\n C< E 08007 / Z I"));
        assert!(!story.keeps("l", ServerRole::Leader), "{answered} / {wrong}: kept");
    };
    let all_but = |legal: &[&str]| ANSWERS.iter().copied().filter(move |tag| !legal.contains(tag)).collect::<Vec<_>>();
    let error = ["E 42601 text", "A x"];
    for wrong in all_but(&[&["1"][..], &error].concat()) {
        told("", wrong, &extended);
    }
    for wrong in all_but(&[&["2"][..], &error].concat()) {
        told("1", wrong, &extended);
    }
    for wrong in all_but(&[&["t", "T", "n"][..], &error].concat()) {
        told("1 / 2", wrong, &extended);
    }
    for wrong in all_but(&[&["D 1", "C SELECT 1", "I", "s", "G", "H", "c", "d x"][..], &error].concat()) {
        told("1 / 2 / n", wrong, &extended);
    }
    for wrong in all_but(&[&["T", "D 1", "C SELECT 1", "I", "G", "H", "c", "d x"][..], &error].concat()) {
        told("", wrong, &format!("Q {write}"));
    }
    for wrong in all_but(&[&["V x", "Z I"][..], &error].concat()) {
        told("", wrong, "F");
    }
}

#[test]
fn a_second_ready_for_query_answers_nothing() {
    // In a pipeline, where a query is owed when it comes.
    Story::run(
        "C> Q insert into t values (1) / Q insert into t values (2)
         lease l leader
         S> Q insert into t values (1) / Q insert into t values (2)
         S< C INSERT 0 1 / Z I / Z I
         C< C INSERT 0 1 / Z I / E 08007 / Z I",
    );
}
