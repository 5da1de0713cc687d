//! How texts are read is told with ReadyForQuery only: behind what may have changed that, in the same segment or pipeline, a text that would mean
//! something else is taken for one that may do anything.

use super::super::Access;
use super::script::Story;
use super::text;
use crate::sql::PinReason;

/// A SET hides in it where backslashes are no escapes, or where they are.
const HIDES: &str = r"select 'a\' as x, set_config('app.tenant', 'leaked', false) --'";

/// Whether the session is kept on its connection by what follows `first` in its segment.
fn keeps(first: &str, answer: &str, then: &str) -> bool {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(&format!(
        "C> P - {first} / B - - / E - / P - {then} / B - - / E - / S
         lease l leader
         S> P - {first} / B - - / E - / H
         S< 1 / 2 / C {answer}
         C< 1 / 2 / C {answer}
         S> P - {then} / B - - / E - / S"
    ));
    story.answers(["1", "2", "D 1", "C SELECT 1", "Z I"].into_iter().flat_map(text::server).collect());
    story.session.pins().has(PinReason::SettingOutOfSight)
}

#[test]
fn behind_what_changes_it_a_text_may_do_anything() {
    for (first, answer) in [
        ("set standard_conforming_strings = off", "SET"),
        ("set local standard_conforming_strings = off", "SET"),
        ("reset standard_conforming_strings", "RESET"),
        ("reset all", "RESET"),
        ("discard all", "DISCARD ALL"),
    ] {
        assert!(keeps(first, answer, HIDES), "{first}");
        // What both readings have in common is no secret.
        assert!(!keeps(first, answer, r"select 'a\d'"), "{first}");
        assert!(!keeps(first, answer, "select 'a'"), "{first}");
    }
    assert!(keeps("set client_encoding = 'SJIS'", "SET", "select 'é'"));
    assert!(!keeps("set work_mem = '1MB'", "SET", "select 'é'"));
    assert!(!keeps("set work_mem = '1MB'", "SET", HIDES));
}

/// Facts are read anew: the text is still the one of its Parse.
#[test]
fn a_prepared_statement_is_read_as_at_its_parse() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(&format!(
        "C> Q set standard_conforming_strings = off
         lease l leader
         S> Q set standard_conforming_strings = off
         S< C SET / S standard_conforming_strings off / Z I
         C< C SET / S standard_conforming_strings off / Z I
         return
         C> P w {HIDES} / S
         lease r replica
         S> set standard_conforming_strings = off / S / P sy1 {HIDES} / S
         S< S standard_conforming_strings off / C SELECT 1 / Z I / 1 / Z I
         C< 1 / Z I
         return"
    ));
    let before = story.session.statements[&b"w"[..]].clone();
    story.rig.know(crate::sql::Facts::builder(2).complete().build());
    story.session.standard_conforming_strings = true;
    let after = story.session.statement_now(&story.rig.env(), b"w").expect("known");
    assert!(after.verdict.generation == 2 && after.verdict.effects == before.verdict.effects);
}

/// Nobody will ever know how it was read; what its relations reach by now is known.
#[test]
fn a_statement_that_was_prepared_in_doubt_stays_so() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(&format!(
        "C> P - set standard_conforming_strings = off / B - - / E - / P w {HIDES} / P v table t / S
         lease l leader
         S> P - set standard_conforming_strings = off / B - - / E - / H
         S< 1 / 2 / C SET
         C< 1 / 2 / C SET
         S> P sy1 {HIDES} / P sy2 table t / S
         S< 1 / 1 / S standard_conforming_strings off / Z I
         C< 1 / 1 / S standard_conforming_strings off / Z I"
    ));
    // Whatever it is, its constants have been read.
    assert!(story.session.pins().has(crate::sql::PinReason::UserCode));
    story.rig.know(crate::sql::Facts::builder(2).complete().build());
    let mut effects = |name: &[u8]| story.session.statement_now(&story.rig.env(), name).expect("known").verdict.clone();
    assert_eq!(effects(b"w").effects, [crate::sql::Effect::SetUnknown]);
    assert!(effects(b"v").effects.is_empty() && effects(b"v").generation == 2);
}

/// What ends a COPY is flushed, too, where its answer must be waited for.
#[test]
fn behind_a_copy_of_its_segment() {
    Story::run(
        "C> P - copy t from stdin / B - - / E - / d 1 / c / Q select 1
         lease l leader
         S> P - copy t from stdin / B - - / E - / H
         S< 1 / 2 / G
         C< 1 / 2 / G
         S> d 1 / c / H
         S< C COPY 1
         C< C COPY 1
         S> Q select 1",
    );
}

#[test]
fn what_goes_back_with_its_transaction() {
    let mut story = Story::on(Access::ReadWrite);
    story.tell(&format!(
        "C> Q begin
         C< C BEGIN / Z T
         C> Q set local standard_conforming_strings = off
         lease l leader
         S> P - begin / B - - / E - / Q set local standard_conforming_strings = off
         S< 1 / 2 / C BEGIN / C SET / S standard_conforming_strings off / Z T
         C< C SET / S standard_conforming_strings off / Z T
         C> P - rollback / B - - / E - / P - {HIDES} / B - - / E - / S
         # Whatever it does, it finds the client's statements by their names.
         S> S / P - rollback / B - - / E - / P - {HIDES} / B - - / E - / S
         S< Z T / 1 / 2 / C ROLLBACK / 1 / 2 / D 1 / C SELECT 1 / S standard_conforming_strings on / Z I
         C< 1 / 2 / C ROLLBACK / 1 / 2 / D 1 / C SELECT 1 / S standard_conforming_strings on / Z I"
    ));
    assert!(story.session.pins().has(PinReason::SettingOutOfSight));
}
