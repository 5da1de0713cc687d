//! What a client sees when its server connection dies, row by row of the design's table (section 4): over the simple and the extended protocol,
//! COPY included; the SQLSTATE, the words, and that the session lives.

use super::super::Access;
use super::script::{BEGUN, Story};
use super::text;

/// A statement as a client sends it.
#[derive(Clone, Copy)]
enum How {
    Simple,
    Extended,
}

impl How {
    const BOTH: [How; 2] = [How::Simple, How::Extended];

    fn sent(self, sql: &str) -> String {
        match self {
            How::Simple => format!("Q {sql}"),
            How::Extended => format!("P - {sql} / B - - / D P - / E - / S"),
        }
    }

    /// What a server answers before the first row, and before the first `d` of a COPY.
    fn head(self, row_description: &str) -> String {
        match (self, row_description) {
            (How::Simple, head) => head.to_owned(),
            (How::Extended, "") => "1 / 2 / n".to_owned(),
            (How::Extended, "H") => "1 / 2 / n / H".to_owned(),
            (How::Extended, "G") => "1 / 2 / n / G".to_owned(),
            (How::Extended, head) => format!("1 / 2 / {head}"),
        }
    }

    fn with(self, head: &str, rest: &str) -> String {
        let head = self.head(head);
        if head.is_empty() { rest.to_owned() } else { format!("{head} / {rest}") }
    }
}

/// After an error, another statement on the same session.
const LIVES: &str = "C> Q insert into t values (9)
    lease l leader
    S> Q insert into t values (9)
    S< C INSERT 0 1 / Z I
    C< C INSERT 0 1 / Z I
    return";

/// What a failed transaction answers to all but its end.
fn is_failed(sql: &str) -> String {
    // A savepoint of before the loss isn't there on this server, which would say that instead.
    let asked = if sql.starts_with("rollback to") { "refused by switchyard" } else { sql };
    format!(
        "C> Q {sql}
         lease l leader
         S> Q BEGIN / Q SELECT pg_catalog.int4div(1, 0) / Q {asked}
         S< C BEGIN / Z T / E 22012 division by zero / Z E / E 25P02 aborted / Z E
         C< E 25P02 / Z E
         C> Q commit
         S> Q commit
         S< C ROLLBACK / Z I
         C< C ROLLBACK / Z I
         return"
    )
}

/// The first error among what the client is told: severity, SQLSTATE, message and hint.
fn told(before: &str) -> [String; 4] {
    let mut story = Story::on(Access::ReadWrite);
    // Everything up to the loss is checked; what it says is looked at here.
    story.tell(before);
    let server = story.lost_one();
    let Story { rig, session, work, .. } = &mut story;
    session.server_lost(&rig.env(), work, &server, false);
    let bytes = std::mem::take(&mut work.to_client);
    let (_, body) = text::cut(&bytes).into_iter().find(|(tag, _)| *tag == b'E').expect("an error");
    let field = |letter: u8| {
        let mut fields = body.split(|byte| *byte == 0);
        let found = fields.find(|field| field.first() == Some(&letter));
        found.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
    };
    [field(b'V'), field(b'C'), field(b'M'), field(b'H')]
}

#[test]
fn nothing_in_flight() {
    for how in How::BOTH {
        let (sent, answer) = (how.sent("insert into t values (1)"), how.with("", "C INSERT 0 1 / Z I"));
        // What the pool's connections do between two statements is nothing to the session.
        Story::run(&format!(
            "C> {sent}
             lease l leader
             S> {sent}
             S< {answer}
             C< {answer}
             return
             cluster none: r1
             cluster r1 2: l
             C> Q insert into t values (9)
             lease r1 leader
             S> Q insert into t values (9)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return"
        ));
    }
}

#[test]
fn a_read_of_which_no_row_was_forwarded() {
    for how in How::BOTH {
        for (sql, head, row, end) in [("select 1", "T x", "D 1", "C SELECT 1"), ("copy t to stdout", "H", "d 1", "c / C COPY 1")] {
            let (sent, head, all) = (how.sent(sql), how.head(head), how.with(head, &format!("{row} / {end} / Z I")));
            Story::run(&format!(
                "C> {sent}
                 lease r replica
                 S> {sent}
                 S< {head}
                 lost
                 lease r replica
                 S> {sent}
                 S< {all}
                 C< {all}
                 return"
            ));
        }
    }
}

#[test]
fn a_read_of_which_rows_were_forwarded() {
    for how in How::BOTH {
        // Larger than what is kept back of an answer.
        let row = "x".repeat(33_000);
        for (sql, head, tag) in [("select 1", "T x", "D"), ("copy t to stdout", "H", "d")] {
            let (sent, begun) = (how.sent(sql), how.with(head, &format!("{tag} {row}")));
            let before = format!(
                "C> {sent}
                 lease r replica
                 S> {sent}
                 S< {begun}
                 C< {begun}
                 "
            );
            Story::run(&format!("{before} lost\n C< E 57P01 / Z I\n {LIVES}"));
            let [severity, sqlstate, message, hint] = told(&before);
            assert_eq!((severity.as_str(), sqlstate.as_str()), ("ERROR", "57P01"));
            assert!(message.ends_with("was lost after rows had been sent"), "{message}");
            assert_eq!(hint, "It is safe to run the statement again.");
        }
    }
}

#[test]
fn a_write_that_was_not_sent_waits() {
    for how in How::BOTH {
        for sql in ["insert into t values (1)", "copy t from stdin"] {
            let sent = how.sent(sql);
            let (answer, rest) = if sql.starts_with("copy") {
                (how.head("G"), "C> d 1 / c / S\n S> d 1 / c / S\n S< C COPY 1 / Z I\n C< C COPY 1 / Z I")
            } else {
                (how.with("", "C INSERT 0 1 / Z I"), "")
            };
            // The end of a COPY in the simple protocol has no Sync.
            let rest = if matches!(how, How::Simple) { rest.replace(" / S\n", "\n") } else { rest.to_owned() };
            Story::run(&format!(
                "cluster none: r1
                 C> {sent}
                 hold
                 cluster r1 2: l
                 again
                 lease r1 leader
                 S> {sent}
                 S< {answer}
                 C< {answer}
                 {rest}
                 return"
            ));
        }
    }
}

#[test]
fn a_write_that_was_sent() {
    for how in How::BOTH {
        for sql in ["insert into t values (1)", "create table n (x int)", "with w as (delete from t returning x) select x from w"] {
            let sent = how.sent(sql);
            let before = format!(
                "C> {sent}
                 lease l leader
                 S> {sent}
                 "
            );
            Story::run(&format!("{before} lost\n C< E 08007 / Z I\n {LIVES}"));
            assert_eq!(
                told(&before),
                [
                    "ERROR",
                    "08007",
                    "the connection to \"l\" was lost: it is unknown whether the statement took effect",
                    "Check whether the change is there before you run the statement again."
                ]
            );
        }
        // COPY, before its rows and behind them. What the client still sends of it is nobody's. A server that takes rows ignores the Sync
        // behind Execute, so the client's next one ends it.
        let (sent, head) = (how.sent("copy t from stdin"), how.head("G"));
        let begun = format!(
            "C> {sent}
             lease l leader
             S> {sent}
             S< {head}
             C< {head}
             "
        );
        let (end, cut) = match how {
            How::Simple => ("c", "C< E 08007 / Z I\n C> d 1 / c\n"),
            How::Extended => ("c / S", "C< E 08007\n C> d 1 / c / S\n C< Z I\n"),
        };
        Story::run(&format!("{begun} lost\n {cut} {LIVES}"));
        Story::run(&format!("{begun} C> d 1 / {end}\n S> d 1 / {end}\n lost\n C< E 08007 / Z I\n {LIVES}"));
    }
}

#[test]
fn within_a_transaction() {
    for how in How::BOTH {
        for sql in ["insert into t values (2)", "select 1"] {
            let sent = how.sent(sql);
            let before = format!("{BEGUN} C> {sent}\n S> {sent}\n");
            for sql in ["rollback to s", "release s", "select 2"] {
                Story::run(&format!("{before} lost\n C< E 40001 / Z E\n {}", is_failed(sql)));
            }
            assert_eq!(
                told(&before),
                [
                    "ERROR",
                    "40001",
                    "the connection to \"l\" was lost: the transaction was rolled back",
                    "It is safe to run the whole transaction again."
                ]
            );
        }
        let (sent, head) = (how.sent("copy t from stdin"), how.head("G"));
        let copy = format!("{BEGUN} C> {sent}\n S> {sent}\n S< {head}\n C< {head}\n C> d 1\n S> d 1\n");
        let cut = match how {
            How::Simple => "C< E 40001 / Z E\n C> f stop\n",
            How::Extended => "C< E 40001\n C> f stop / S\n C< Z E\n",
        };
        Story::run(&format!("{copy} lost\n {cut} {}", is_failed("select 2")));
    }
}

#[test]
fn a_commit_that_was_sent() {
    for how in How::BOTH {
        for sql in ["commit", "end", "commit and chain", "prepare transaction 'x'"] {
            let sent = how.sent(sql);
            let before = format!("{BEGUN} C> {sent}\n S> {sent}\n");
            Story::run(&format!("{before} lost\n C< E 08007 / Z I\n {LIVES}"));
            let [_, sqlstate, message, _] = told(&before);
            assert_eq!(sqlstate, "08007");
            assert!(message.contains("it is unknown"), "{message}");
        }
    }
}

#[test]
fn a_pinned_session() {
    let pinned = "C> Q create temp table mine (x int)
        lease l leader
        S> Q create temp table mine (x int)
        S< C CREATE TABLE / Z I
        C< C CREATE TABLE / Z I
        ";
    Story::run(&format!("{pinned} lost\n C< FATAL 57P01\n close"));
    let [severity, sqlstate, message, hint] = told(pinned);
    assert_eq!((severity.as_str(), sqlstate.as_str()), ("FATAL", "57P01"));
    assert_eq!(message, "the connection to \"l\" was lost, and with it this session's state");
    assert_eq!(hint, "Reconnect, and set up the session's state again.");
    for how in How::BOTH {
        let (read, write) = (how.sent("select 1 from mine"), how.sent("insert into mine values (1)"));
        Story::run(&format!("{pinned} C> {read}\n S> {read}\n lost\n C< FATAL 57P01\n close"));
        let before = format!("{pinned} C> {write}\n S> {write}\n");
        Story::run(&format!("{before} lost\n C< FATAL 08007\n close"));
        let [severity, sqlstate, message, hint] = told(&before);
        assert_eq!((severity.as_str(), sqlstate.as_str()), ("FATAL", "08007"));
        assert!(message.contains("it is unknown"), "{message}");
        assert!(hint.ends_with("then reconnect."), "{hint}");
        let (copy, head) = (how.sent("copy mine from stdin"), how.head("G"));
        Story::run(&format!("{pinned} C> {copy}\n S> {copy}\n S< {head}\n C< {head}\n C> d 1\n S> d 1\n lost\n C< FATAL 08007\n close"));
    }
}

#[test]
fn a_conflict_with_recovery() {
    for how in How::BOTH {
        for (sql, head, row, end) in [("select 1", "T x", "D 1", "C SELECT 1"), ("copy t to stdout", "H", "d 1", "c / C COPY 1")] {
            let (sent, head, all) = (how.sent(sql), how.head(head), how.with(head, &format!("{row} / {end} / Z I")));
            Story::run(&format!(
                "C> {sent}
                 lease r replica
                 S> {sent}
                 S< {head} / E 40001 conflict with recovery / Z I
                 return
                 lease l leader
                 S> {sent}
                 S< {all}
                 C< {all}
                 return"
            ));
        }
    }
}
