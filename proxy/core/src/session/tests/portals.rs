//! Portals: what is bound to one is known when the server has said so; whoever runs one by another way runs what is bound to it.

use super::super::Access;
use super::script::{BEGUN, Story};
use crate::route::ServerRole;
use crate::sql::PinReason;

/// In a transaction, a portal has been bound to this.
fn bound(to: &str) -> Story {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(BEGUN);
    story.tell(&format!(
        "C> P - {to} / B p - / S
         S> P - {to} / B p - / S
         S< 1 / 2 / Z T
         C< 1 / 2 / Z T"
    ));
    story
}

#[test]
fn a_bind_that_fails_leaves_it_to_the_server_what_the_portal_is() {
    let mut story = bound("set role grp");
    story.tell(
        "C> Q savepoint s
         S> Q savepoint s
         S< C SAVEPOINT / Z T
         C< C SAVEPOINT / Z T
         C> P - select 1 / B p - / S
         S> P - select 1 / B p - / S
         S< 1 / E 42P03 exists / Z E
         C< 1 / E 42P03 / Z E
         C> Q rollback to s
         S> Q rollback to s
         S< C ROLLBACK / Z T
         C< C ROLLBACK / Z T
         C> E p / S
         S> E p / S
         S< C SET / Z T
         C< C SET / Z T",
    );
    assert!(story.session.pins().has(PinReason::SettingOutOfSight));
}

#[test]
fn a_bind_that_is_skipped_does_too() {
    let mut story = bound("set role grp");
    story.tell(
        "C> B q nosuch / P - select 1 / B p - / S
         S> B q nosuch / P - select 1 / B p - / S
         S< E 26000 no / Z E
         C< E 26000 / Z E",
    );
    assert!(!story.session.portals.contains_key(&b"p"[..]));
}

/// The transaction has failed, and the portal's Bind with it: what ends it isn't what it was taken for.
#[test]
fn an_end_of_a_transaction_that_nobody_saw_coming() {
    let mut story = bound("rollback");
    story.tell(
        "C> P - select 1 / B p - / S / E p / S
         S> P - select 1 / B p - / S / E p / S
         S< 1 / E 42P03 exists / Z E / C ROLLBACK / Z I
         C< 1 / E 42P03 / Z E / C ROLLBACK / Z I",
    );
    assert!(story.session.pins().has(PinReason::SettingOutOfSight));
}

#[test]
fn fetch_of_a_portal_may_do_anything() {
    for fetch in ["fetch p", "move all in p", "fetch 2 from \"p\""] {
        let mut story = bound("select 1");
        story.tell(&format!(
            "C> Q {fetch}
             S> S / Q {fetch}
             S< Z T / T / D 1 / C FETCH 1 / Z T
             C< T / D 1 / C FETCH 1 / Z T"
        ));
        assert!(story.session.pins().has(PinReason::SettingOutOfSight), "{fetch}");
        let mut story = bound("select 1");
        story.tell(
            "C> Q fetch other
             S> Q fetch other
             S< T / D 1 / C FETCH 1 / Z T
             C< T / D 1 / C FETCH 1 / Z T",
        );
        assert!(!story.session.pins().has(PinReason::SettingOutOfSight));
    }
}

#[test]
fn a_close_of_another_cursor_or_portal_forgets_none() {
    let mut story = bound("select 1");
    story.tell(
        "C> Q close k
         S> Q close k
         S< C CLOSE CURSOR / Z T
         C< C CLOSE CURSOR / Z T
         C> E p / C P q / S
         S> E p / C P q / S
         S< D 1 / C SELECT 1 / 3 / Z T
         C< D 1 / C SELECT 1 / 3 / Z T
         C> Q fetch k
         S> Q fetch k
         S< T / D 1 / C FETCH 1 / Z T
         C< T / D 1 / C FETCH 1 / Z T",
    );
    assert!(!story.session.pins().has(PinReason::SettingOutOfSight));
}

#[test]
fn a_close_that_is_skipped_leaves_it_in_doubt() {
    let mut story = bound("select 1");
    story.tell(
        "C> B q nosuch / C P p / S
         S> B q nosuch / C P p / S
         S< E 26000 no / Z E
         C< E 26000 / Z E",
    );
    assert!(story.session.portals_in_doubt);
}

/// Code may, with nothing of it in any text.
#[test]
fn what_is_bound_to_a_named_portal_counts_as_run() {
    let mut story = bound("select setseed(0.5), set_config('app.tenant', '5', false)");
    assert!(story.session.pins().has(PinReason::Setseed));
    let server = story.lost_one();
    assert!(server.role == ServerRole::Leader && server.custom.contains(&"app.tenant".into()));
}

/// The end of a failed transaction, which is bound to a portal, is run by that: nothing else ends it first, nor where a string does, and needs no names
/// behind that.
#[test]
fn a_portal_of_a_failed_transaction_runs_its_end() {
    for (end, done) in
        [("E q / S", "C ROLLBACK / Z I"), ("Q rollback", "C ROLLBACK / Z I"), ("Q commit; rollback", "C ROLLBACK / C ROLLBACK / Z I")]
    {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!(
            "C> Q begin
             C< C BEGIN / Z T
             C> Q prepare w as select 2
             lease l leader
             S> P - begin / B - - / E - / Q prepare w as select 2
             S< 1 / 2 / C BEGIN / C PREPARE / Z T
             C< C PREPARE / Z T
             C> Q select 1/0
             S> Q select 1/0
             S< E 22012 no / Z E
             C< E 22012 / Z E
             C> P a rollback / B q a / S
             S> P sy1 rollback / B q sy1 / S
             S< 1 / 2 / Z E
             C< 1 / 2 / Z E
             C> {end}
             S> {end}
             S< {done}
             C< {done}"
        ));
    }
}

/// Nothing of it runs: its session, which may write later, isn't kept on the replica.
#[test]
fn what_fails_in_a_failed_transaction_leaves_nothing() {
    for text in ["select 1; fetch all from p", "do 'x'"] {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!(
            "C> Q begin read only
             C< C BEGIN / Z T
             C> P - select 2 / B p - / S
             lease r replica
             S> P - begin read only / B - - / E - / C P - / P - select 2 / B p - / S
             S< 1 / 2 / C BEGIN / 3 / 1 / 2 / Z T
             C< 1 / 2 / Z T
             C> Q select 1/0
             S> Q select 1/0
             S< E 22012 no / Z E
             C< E 22012 / Z E
             C> Q {text}
             S> Q {text}
             S< E 25P02 no / Z E
             C< E 25P02 / Z E
             C> Q rollback
             S> Q rollback
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return"
        ));
        assert!(story.session.pins().is_empty());
    }
}

/// What stands behind the end of the transaction isn't taken before that is answered: so the server is asked to.
#[test]
fn the_end_of_a_transaction_behind_a_flush_is_answered() {
    Story::run(
        "C> Q begin read only
         C< C BEGIN / Z T
         C> Q select 1
         lease r replica
         S> P - begin read only / B - - / E - / Q select 1
         S< 1 / 2 / C BEGIN / T / D 1 / C SELECT 1 / Z T
         C< T / D 1 / C SELECT 1 / Z T
         C> H / P - commit / B q - / E q / f / S
         S> H / P - commit / B q - / E q / H
         S< 1 / 2 / C COMMIT
         C< 1 / 2 / C COMMIT
         S> S
         S< Z I
         C< Z I
         return",
    );
}
