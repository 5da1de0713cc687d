//! `currval` and `lastval` tell each session of its own sequences: a connection on which another session may have advanced some forgets them before
//! anything runs that may see them.

use super::super::Access;
use super::super::server::SessionId;
use super::script::{BEGUN, Story};

const FORGETS: &str = "P - DISCARD SEQUENCES / B - - / E - / S";
const FORGOT: &str = "1 / 2 / C DISCARD SEQUENCES / Z I";

/// Another session than the one that has come so far.
fn next_session(story: &mut Story) {
    story.session.id = SessionId::next();
}

fn others_have_inserted() -> Story {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(
        "C> Q insert into t values (1)
         lease l leader
         S> Q insert into t values (1)
         S< C INSERT 0 1 / Z I
         C< C INSERT 0 1 / Z I
         return",
    );
    next_session(&mut story);
    story
}

#[test]
fn what_may_see_them_begins_with_none() {
    for sees in [
        "Q insert into t values (2)",
        "Q select 1; update t set i = 2",
        "Q copy t from stdin",
        "F 1",
        // What else comes in the segment isn't known.
        "P - update t set i = 2 / B - - / E - / H",
    ] {
        // A function call is shown without its function.
        let sent = sees.trim_end_matches(" 1");
        others_have_inserted().tell(&format!(
            "C> {sees}
             lease l leader
             S> {FORGETS} / {sent}"
        ));
    }
}

#[test]
fn what_a_transaction_will_do_is_not_known_when_it_begins() {
    let begun = BEGUN.replace("S> P - begin", &format!("S> {FORGETS} / P - begin")).replace("S< ", &format!("S< {FORGOT} / "));
    let mut story = others_have_inserted();
    story.tell(&begun);
}

#[test]
fn what_cannot_see_them_asks_for_nothing() {
    let mut story = others_have_inserted();
    story.rig.know_tables(2, &["t"]);
    story.tell(
        "C> Q update t set i = 2
         lease l leader
         S> Q update t set i = 2
         S< C UPDATE 1 / Z I
         C< C UPDATE 1 / Z I
         return",
    );
}

#[test]
fn any_write_may_advance_some() {
    for text in [
        "with w as (insert into t values (1) returning i) select i from w",
        "update t set i = default",
        "update watched set i = 1",
        "explain analyze insert into t values (1)",
        "select * from numbers",
    ] {
        let mut story = others_have_inserted();
        story.rig.know_tables(2, &["t"]);
        story.tell(&format!(
            "C> Q {text}
             lease l leader
             S> P - DISCARD SEQUENCES / B - - / E - / S / Q {text}"
        ));
    }
}

#[test]
fn what_discards_all_may_be_followed_by_what_advances_some() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(
        "C> P - discard all / B - - / E - / P - insert into t values (1) / B - - / E - / S
         lease l leader
         S> P - discard all / B - - / E - / H
         S< 1 / 2 / C DISCARD ALL
         C< 1 / 2 / C DISCARD ALL
         S> P - insert into t values (1) / B - - / E - / S
         S< 1 / 2 / C INSERT 0 1 / Z I
         C< 1 / 2 / C INSERT 0 1 / Z I
         return",
    );
    next_session(&mut story);
    story.tell(&format!(
        "C> Q insert into t values (2)
         lease l leader
         S> {FORGETS} / Q insert into t values (2)"
    ));
}
