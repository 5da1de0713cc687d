//! A message that isn't in its client's encoding is refused as such, before the server does anything with it.

use super::super::Access;
use super::script::Story;

/// A session that speaks SJIS and has prepared an unnamed statement.
fn prepared() -> Story {
    let mut story = Story::fresh(Access::ReadWrite, &[("client_encoding", "SJIS")]);
    story.tell(
        "start
         lease l leader
         S> set client_encoding = SJIS / S
         S< S client_encoding SJIS / C SELECT 1 / Z I
         C< S in_hot_standby off / S DateStyle ISO / S client_encoding SJIS / K / Z I
         return
         C> P - insert into t values (1) / S
         lease l leader
         S> P - insert into t values (1) / S
         S< 1 / Z I
         C< 1 / Z I
         return",
    );
    story
}

#[test]
fn it_leaves_the_unnamed_statement() {
    // A connection on which a text has run that nobody could read stays with its session.
    let (parse, query) = ("P - insert into t values ('é') / S", "Q insert into t values ('é')");
    for (sent, given_back) in [(parse, "return"), (query, "")] {
        let lease = if given_back.is_empty() { "" } else { "lease l leader" };
        // A literal that isn't in the server's encoding is told by that one.
        for (named, prepared_again) in [("SJIS", "P - insert into t values (1)"), ("UTF8", "C S -")] {
            prepared().tell(&format!(
                "C> {sent}
                 lease l leader
                 S> {sent}
                 S< E 22021 invalid byte sequence for encoding \"{named}\": 0xc3 / Z I
                 C< E 22021 / Z I
                 {given_back}
                 C> B - - / E - / S
                 {lease}
                 S> {prepared_again} / B - - / E - / S"
            ));
        }
    }
}
