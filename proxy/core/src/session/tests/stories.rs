//! What a session does, message by message.

use super::super::{Access, CustomNames, Pins, TxStatus};
use super::script::{BEGUN, Story};
use super::text;
use crate::marks::Touched;
use crate::route::ServerRole;
use crate::sql::PinReason;

/// What the router runs by a statement and a portal of its own, so that the client's unnamed ones stay.
fn run_by_our_names(text: &str) -> String {
    let ours = "switchyard_names";
    format!("P {ours} {text} / B {ours} {ours} / E {ours} / C P {ours} / C S {ours} / S")
}

mod start_up {
    use super::*;

    #[test]
    fn the_settings_come_first_and_the_parameters_are_told() {
        Story::fresh(Access::ReadWrite, &[("DateStyle", "ISO, DMY")]).tell(
            "start
             lease l leader
             S> set datestyle = ISO, DMY / S
             S< T / D x / S DateStyle ISO,DMY / C SELECT 1 / Z I
             C< S in_hot_standby off / S DateStyle ISO,DMY / K / Z I
             return",
        );
    }

    #[test]
    fn a_setting_that_fails_is_fatal() {
        Story::fresh(Access::ReadWrite, &[("datestyle", "nonsense")]).tell(
            "start
             lease l leader
             S> set datestyle = nonsense / S
             S< E 22023 nonsense / Z I
             C< FATAL 22023
             close",
        );
    }

    #[test]
    fn what_is_sent_early_waits() {
        Story::fresh(Access::ReadWrite, &[]).tell(
            "C> Q select 1
             start
             lease l leader
             C< S in_hot_standby off / S DateStyle ISO / K / Z I
             return
             lease r replica
             S> Q select 1
             S< T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn a_server_that_is_lost_is_replaced_by_another() {
        Story::fresh(Access::ReadWrite, &[("work_mem", "1MB")]).tell(
            "start
             lease l leader
             S> set work_mem = 1MB / S
             lost
             lease r replica
             S> set work_mem = 1MB / S
             S< C SELECT 1 / Z I
             C< S in_hot_standby off / S DateStyle ISO / K / Z I
             return",
        );
    }

    #[test]
    fn the_read_only_port_says_that_it_is() {
        let mut story = Story::fresh(Access::ReadOnly, &[]);
        story.rig.cluster(Some(("l", 1)), &[]);
        story.tell("start\n lease l replica\n C< S in_hot_standby on / S DateStyle ISO / K / Z I\n return");
    }
}

mod transactions {
    use super::*;

    #[test]
    fn an_empty_one_costs_nothing() {
        Story::run(
            "C> Q BEGIN
             C< C BEGIN / Z T
             C> Q COMMIT
             C< C COMMIT / Z I
             C> Q start transaction
             C< C START TRANSACTION / Z T
             C> Q SET TRANSACTION ISOLATION LEVEL REPEATABLE READ
             C< C SET / Z T
             C> Q abort
             C< C ROLLBACK / Z I",
        );
    }

    #[test]
    fn what_a_server_might_refuse_isnt_held() {
        Story::run(
            "C> Q BEGIN nonsense
             lease l leader
             S> Q BEGIN nonsense
             S< E 42601 syntax error / Z I
             C< E 42601 / Z I
             return",
        );
    }

    #[test]
    fn begin_goes_with_the_first_statement() {
        Story::run(
            "C> Q BEGIN
             C< C BEGIN / Z T
             C> Q SET TRANSACTION READ WRITE
             C< C SET / Z T
             C> Q select 1
             lease l leader
             S> P - BEGIN / B - - / E - / P - SET TRANSACTION READ WRITE / B - - / E - / Q select 1
             S< 1 / 2 / C BEGIN / 1 / 2 / C SET / T / D 1 / C SELECT 1 / Z T
             C< T / D 1 / C SELECT 1 / Z T
             C> Q COMMIT
             S> Q COMMIT
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return",
        );
    }

    #[test]
    fn a_begin_that_fails_takes_its_statement_with_it() {
        Story::run(
            "C> Q BEGIN
             C< C BEGIN / Z T
             C> Q insert into t values (1)
             lease l leader
             S> P - BEGIN / B - - / E - / Q insert into t values (1)
             S< E 57014 canceled
             C< E 57014
             S> S
             S< Z I
             C< Z E
             return
             C> Q select 1
             lease l leader
             S> Q BEGIN / Q SELECT pg_catalog.int4div(1, 0) / Q select 1
             S< C BEGIN / Z T / E 22012 division by zero / Z E / E 25P02 aborted / Z E
             C< E 25P02 / Z E
             C> Q ROLLBACK
             S> Q ROLLBACK
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return",
        );
    }

    #[test]
    fn read_only_runs_on_a_replica() {
        Story::run(
            "C> Q BEGIN READ ONLY
             C< C BEGIN / Z T
             C> Q select 1
             lease r replica
             S> P - BEGIN READ ONLY / B - - / E - / Q select 1
             S< 1 / 2 / C BEGIN / T / D 1 / C SELECT 1 / Z T
             C< T / D 1 / C SELECT 1 / Z T
             C> Q select 2
             S> Q select 2
             S< T / D 2 / C SELECT 1 / Z T
             C< T / D 2 / C SELECT 1 / Z T
             C> Q COMMIT
             S> Q COMMIT
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return",
        );
    }

    #[test]
    fn its_first_statement_runs_again_on_the_leader_with_its_begin() {
        Story::run(
            "C> Q BEGIN READ ONLY
             C< C BEGIN / Z T
             C> Q select 1
             lease r replica
             S> P - BEGIN READ ONLY / B - - / E - / Q select 1
             S< 1 / 2 / C BEGIN / T / E 0A000 unlogged / Z E
             return
             lease l leader
             S> P - BEGIN READ ONLY / B - - / E - / Q select 1
             S< 1 / 2 / C BEGIN / T / D 1 / C SELECT 1 / Z T
             C< T / D 1 / C SELECT 1 / Z T
             C> Q rollback
             S> Q rollback
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return",
        );
    }

    #[test]
    fn a_later_statement_that_is_the_leaders_moves_it_there() {
        Story::run(
            "C> Q BEGIN READ ONLY
             C< C BEGIN / Z T
             C> Q select 1
             lease r replica
             S> P - BEGIN READ ONLY / B - - / E - / Q select 1
             S< 1 / 2 / C BEGIN / T / D 1 / C SELECT 1 / Z T
             C< T / D 1 / C SELECT 1 / Z T
             C> Q notify n
             return
             lease l leader
             S> P - BEGIN READ ONLY / B - - / E - / Q notify n
             S< 1 / 2 / C BEGIN / C NOTIFY / Z T
             C< C NOTIFY / Z T
             C> Q commit
             S> Q commit
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return",
        );
    }

    #[test]
    fn one_snapshot_stays_where_it_is() {
        Story::run(
            "C> Q BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ
             C< C BEGIN / Z T
             C> Q select 1
             lease r replica
             S> P - BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ / B - - / E - / Q select 1
             S< 1 / 2 / C BEGIN / T / D 1 / C SELECT 1 / Z T
             C< T / D 1 / C SELECT 1 / Z T
             C> Q notify n
             S> Q notify n
             S< E 25006 read only / Z E
             C< E 25006 / Z E
             C> Q rollback
             S> Q rollback
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return",
        );
    }
}

mod reads {
    use super::*;

    #[test]
    fn nothing_is_told_before_all_is_there_or_it_is_large() {
        Story::run(
            "C> P - select 1 / B - - / E - / S
             lease r replica
             S> P - select 1 / B - - / E - / S
             S< 1 / 2
             S< N 00000 look
             S< D 1
             S< D 2 / C SELECT 2
             S< Z I
             C< 1 / 2 / N 00000 / D 1 / D 2 / C SELECT 2 / Z I
             return",
        );
        let row = "x".repeat(20_000);
        Story::run(&format!(
            "C> P - select 1 / B - - / E - / S
             lease r replica
             S> P - select 1 / B - - / E - / S
             S< 1 / 2 / D {row}
             S< D {row}
             C< 1 / 2 / D {row} / D {row}
             S< D 3 / C SELECT 3
             C< D 3 / C SELECT 3
             S< Z I
             C< Z I
             return"
        ));
    }

    #[test]
    fn any_error_of_a_replica_but_a_cancel_is_asked_again_of_the_leader() {
        Story::run(
            "C> Q select 1
             lease r replica
             S> Q select 1
             S< T / E 42P01 not replayed yet / Z I
             return
             lease l leader
             S> Q select 1
             S< E 42P01 really not there / Z I
             C< E 42P01 / Z I
             return
             caught up
             C> Q select 1
             lease r replica
             S> Q select 1
             S< E 57014 canceled / Z I
             C< E 57014 / Z I
             return",
        );
    }

    #[test]
    fn after_a_row_an_error_is_the_answer() {
        let row = "x".repeat(33_000);
        Story::run(&format!(
            "C> Q select 1
             lease r replica
             S> Q select 1
             S< T / D {row} / E 40001 conflict with recovery / Z I
             C< T / D {row} / E 40001 / Z I
             return"
        ));
        // Of which the client has seen nothing.
        Story::run(
            "C> Q select 1
             lease r replica
             S> Q select 1
             S< T / D 1 / E 40001 conflict with recovery / Z I
             return
             lease l leader
             S> Q select 1
             S< T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn a_replica_that_is_lost_is_replaced_until_rows_were_shown() {
        let row = "x".repeat(33_000);
        for flushed in ["T", "T / D 1", "T / D 1 / C SELECT 1"] {
            Story::run(&format!(
                "C> Q select 1
                 lease r replica
                 S> Q select 1
                 S< {flushed}
                 lost
                 lease r replica
                 S> Q select 1
                 S< T / D {row}
                 C< T / D {row}
                 lost
                 C< E 57P01 / Z I"
            ));
        }
        for flushed in ["1 / 2", "1 / 2 / T / D 1", "1 / 2 / T / D 1 / C SELECT 1"] {
            Story::run(&format!(
                "C> P - select 1 / B - - / D P - / E - / S
                 lease r replica
                 S> P - select 1 / B - - / D P - / E - / S
                 S< {flushed}
                 lost
                 lease r replica
                 S> P - select 1 / B - - / D P - / E - / S
                 S< 1 / 2 / T / D 1 / C SELECT 1 / Z I
                 C< 1 / 2 / T / D 1 / C SELECT 1 / Z I
                 return"
            ));
        }
    }

    #[test]
    fn of_which_only_ready_for_query_is_missing_are_answered() {
        let row = "x".repeat(33_000);
        for sent in ["Q select 1", "P - select 1 / B - - / E - / S"] {
            let begun = if sent.starts_with('Q') { "T" } else { "1 / 2" };
            Story::run(&format!(
                "C> {sent}
                 lease r replica
                 S> {sent}
                 S< {begun} / D {row} / C SELECT 1
                 C< {begun} / D {row} / C SELECT 1
                 lost
                 C< Z I"
            ));
        }
        // A second statement is still to come.
        Story::run(&format!(
            "C> Q select 1; select 2
             lease r replica
             S> Q select 1; select 2
             S< T / D {row} / C SELECT 1
             C< T / D {row} / C SELECT 1
             lost
             C< E 57P01 / Z I"
        ));
    }

    #[test]
    fn within_a_transaction_go_on_elsewhere() {
        let begun = "C> Q begin read only
             C< C BEGIN / Z T
             C> Q select 1
             lease r1 replica
             S> P - begin read only / B - - / E - / Q select 1";
        let first = "S< 1 / 2 / C BEGIN / T x / D 1 / C SELECT 1 / Z T
             C< T x / D 1 / C SELECT 1 / Z T";
        let ends = "C> Q commit
             S> Q commit
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return";
        // The first statement: nothing has been shown.
        for flushed in ["1 / 2", "1 / 2 / C BEGIN / T x / D 1", "1 / 2 / C BEGIN / T x / D 1 / C SELECT 1"] {
            Story::run(&format!(
                "{begun}
                 S< {flushed}
                 lost
                 lease r2 replica
                 S> P - begin read only / B - - / E - / Q select 1
                 {first}
                 {ends}"
            ));
        }
        // A later one: only where all that was shown is shown, too.
        for flushed in ["T y", "T y / D 2 / C SELECT 1"] {
            let lost = format!(
                "{begun}
 {first}
 C> Q select 2
 S> Q select 2
 S< {flushed}"
            );
            let again = "S> P - begin read only / B - - / E - / Q select 2
                 S< 1 / 2 / C BEGIN / T y / D 2 / C SELECT 1 / Z T
                 C< T y / D 2 / C SELECT 1 / Z T";
            Story::run(&format!(
                "{lost}
 lost
 lease l leader
 {again}
 {ends}"
            ));
            Story::run(&format!(
                "{lost}
 caught up
 lost
 lease r2 replica
 {again}
 {ends}"
            ));
        }
        // Between two statements.
        Story::run(&format!(
            "{begun}
             {first}
             caught up
             lost
             C> Q select 2
             lease r replica
             S> P - begin read only / B - - / E - / Q select 2
             S< 1 / 2 / C BEGIN / T y / D 2 / C SELECT 1 / Z T
             C< T y / D 2 / C SELECT 1 / Z T
             {ends}"
        ));
        // By the replica's own doing.
        Story::run(&format!(
            "{begun}
 {first}
 S< FATAL 25P03 idle in transaction
 lost
 C> Q select 2
 C< E 40001 / Z E"
        ));
        // An error of the statement's own stays there.
        Story::run(&format!(
            "{begun}
 {first}
 C> Q select fail
 S> Q select fail
 S< E 22012 zero / Z E
 C< E 22012 / Z E"
        ));
    }

    #[test]
    fn within_a_transaction_with_state_on_its_replica_are_lost_with_it() {
        let begun = |begin: &str| {
            format!(
                "C> Q {begin}
                 C< C BEGIN / Z T
                 C> Q select 1
                 lease r1 replica
                 S> P - {begin} / B - - / E - / Q select 1
                 S< 1 / 2 / C BEGIN / T x / D 1 / C SELECT 1 / Z T
                 C< T x / D 1 / C SELECT 1 / Z T
"
            )
        };
        let later = "C> Q select 2
 S> Q select 2
 lost
 C< E 40001 / Z E";
        Story::run(&[&begun("begin read only isolation level repeatable read"), later].concat());
        let savepoint = "C> Q savepoint a\n S> Q savepoint a\n S< C SAVEPOINT / Z T\n C< C SAVEPOINT / Z T\n";
        Story::run(&[&begun("begin read only"), savepoint, later].concat());
        // A portal that is open.
        let portal = "C> P - select 3 / B p - / E p / S
             S> P - select 3 / B p - / E p / S
             S< 1 / 2 / D 3 / s / Z T
             C< 1 / 2 / D 3 / s / Z T
";
        Story::run(&[&begun("begin read only"), portal, later].concat());
    }

    #[test]
    fn a_read_under_which_servers_die_is_not_tried_on_all() {
        Story::run(
            "C> Q select 1
             lease r replica
             S> Q select 1
             lost
             lease r replica
             S> Q select 1
             lost
             lease l leader
             S> Q select 1
             lost
             C< E 57P01 / Z I",
        );
    }

    #[test]
    fn half_a_row_ends_the_session() {
        let row = "x".repeat(40_000);
        let mut story = Story::on(Access::ReadWrite);
        story.tell("C> Q select 1\n lease r replica\n S> Q select 1\n S< T\n");
        let mut bytes = super::super::text::server(&format!("D {row}"));
        bytes.truncate(35_000);
        story.work.server_in = bytes.clone();
        let mut server =
            crate::session::ServerState::new("r1".into(), ServerRole::Replica, crate::topology::Epoch(1), Default::default(), 1);
        let Story { rig, session, work, .. } = &mut story;
        session.server_bytes(&rig.env(), work, &mut server).expect("a row");
        assert_eq!(work.to_client.split_off(5), bytes, "large rows go on as they come");
        session.server_lost(&rig.env(), work, &server, false);
        assert_eq!(session.take_want(Some(work)), Some(super::super::super::Want::Close));
    }

    #[test]
    fn an_unreachable_replica_is_passed_by() {
        Story::run(
            "C> Q select 1
             lease r replica unreachable
             lease r replica unreachable
             lease l leader
             S> Q select 1
             S< T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn after_a_write_reads_stay_on_the_leader_until_a_replica_is_proven() {
        Story::run(
            "C> Q insert into t values (1)
             lease l leader
             S> Q insert into t values (1)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return
             C> Q select 1
             lease l leader
             S> Q select 1
             S< T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             return
             caught up
             C> Q select 1
             lease r replica
             S> Q select 1
             S< T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn a_server_that_speaks_no_protocol_is_lost() {
        Story::run(
            "C> P - select 1 / B - - / E - / S
             lease r replica
             S> P - select 1 / B - - / E - / S
             S< 1 / Z I
             lease r replica
             S> P - select 1 / B - - / E - / S
             S< 1 / 2 / D 1 / C SELECT 1 / Z I
             C< 1 / 2 / D 1 / C SELECT 1 / Z I
             return",
        );
    }
}

mod losses {
    use super::*;

    #[test]
    fn of_a_write_the_outcome_is_unknown() {
        Story::run(
            "C> Q insert into t values (1)
             lease l leader
             S> Q insert into t values (1)
             S< FATAL 57P01 bye
             lost
             C< E 08007 / Z I
             C> Q insert into t values (2)
             lease l leader
             S> Q insert into t values (2)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return",
        );
    }

    #[test]
    fn of_a_transaction_is_told_at_the_next_statement() {
        Story::run(&format!(
            "{BEGUN}
             lost
             C> Q select 1
             C< E 40001 / Z E
             C> Q select 2
             lease l leader
             S> Q BEGIN / Q SELECT pg_catalog.int4div(1, 0) / Q select 2
             S< C BEGIN / Z T / E 22012 division by zero / Z E / E 25P02 aborted / Z E
             C< E 25P02 / Z E
             C> Q COMMIT
             S> Q COMMIT
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return"
        ));
    }

    #[test]
    fn what_is_chained_to_a_failed_transaction_of_a_replica_is_the_leaders() {
        let failed = |begin: &str, between: &str| {
            format!(
                "C> Q {begin}
                 C< C BEGIN / Z T
                 C> Q select 1
                 lease r1 replica
                 S> P - {begin} / B - - / E - / Q select 1
                 S< 1 / 2 / C BEGIN / T x / D 1 / C SELECT 1 / Z T
                 C< T x / D 1 / C SELECT 1 / Z T
                 {between}
                 C> Q select fail
                 S> Q select fail
                 S< E 22012 zero / Z E
                 C< E 22012 / Z E
                 "
            )
        };
        let goes_on = "C> Q insert into a values (1)
             S> Q insert into a values (1)
             S< C INSERT 0 1 / Z T
             C< C INSERT 0 1 / Z T
             C> Q commit
             S> Q commit
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return";
        for begin in ["begin read only", "begin read only isolation level repeatable read"] {
            let chains = "C> Q rollback and chain
                 return
                 lease l leader
                 S> Q BEGIN / Q SELECT pg_catalog.int4div(1, 0) / Q rollback and chain
                 S< C BEGIN / Z T / E 22012 zero / Z E / C ROLLBACK / Z T
                 C< C ROLLBACK / Z T
                 ";
            Story::run(&[&failed(begin, ""), chains, goes_on].concat());
            let chains = "C> P - commit and chain / B - - / E - / S
                 return
                 lease l leader
                 S> Q BEGIN / Q SELECT pg_catalog.int4div(1, 0) / P - commit and chain / B - - / E - / S
                 S< C BEGIN / Z T / E 22012 zero / Z E / 1 / 2 / C ROLLBACK / Z T
                 C< 1 / 2 / C ROLLBACK / Z T
                 ";
            Story::run(&[&failed(begin, ""), chains, goes_on].concat());
        }
        // It keeps its modes.
        let savepoint = "C> Q savepoint a\n S> Q savepoint a\n S< C SAVEPOINT / Z T\n C< C SAVEPOINT / Z T";
        let stays = "C> Q rollback and chain
             S> Q rollback and chain
             S< C ROLLBACK / Z T
             C< C ROLLBACK / Z T";
        Story::run(&[&failed("begin read only", savepoint), stays].concat());
    }

    #[test]
    fn a_commit_of_what_has_only_read_on_a_replica_doesnt_fail() {
        let begun = "C> Q begin read only
             C< C BEGIN / Z T
             C> Q select 1
             lease r1 replica
             S> P - begin read only / B - - / E - / Q select 1
             S< 1 / 2 / C BEGIN / T x / D 1 / C SELECT 1 / Z T
             C< T x / D 1 / C SELECT 1 / Z T";
        Story::run(&format!(
            "{begun}
             lost
             C> Q commit
             C< C COMMIT / Z I
             C> Q select 1
             lease r replica
             S> Q select 1
             S< T x / D 1 / C SELECT 1 / Z I
             C< T x / D 1 / C SELECT 1 / Z I
             return"
        ));
        Story::run(&format!(
            "{begun}
             C> Q commit
             S> Q commit
             lost
             C< C COMMIT / Z I"
        ));
        let begun = begun.replace("read only", "read only isolation level repeatable read");
        Story::run(&format!(
            "{begun}
             lost
             C> Q select 1
             C< E 40001 / Z E"
        ));
        Story::run(&format!(
            "{begun}
             lost
             C> Q commit and chain
             C< E 40001 / Z I"
        ));
    }

    #[test]
    fn a_commit_of_a_lost_transaction_fails_and_a_rollback_doesnt() {
        let begun = "C> Q begin
             C< C BEGIN / Z T
             C> Q insert into t values (1)
             lease l leader
             S> P - begin / B - - / E - / Q insert into t values (1)
             S< 1 / 2 / C BEGIN / C INSERT 0 1 / Z T
             C< C INSERT 0 1 / Z T
             lost\n";
        Story::run(&format!("{begun} C> Q commit\n C< E 40001 / Z I"));
        Story::run(&format!(
            "{begun} C> Q rollback
             lease l leader
             S> Q BEGIN / Q SELECT pg_catalog.int4div(1, 0) / Q rollback
             S< C BEGIN / Z T / E 22012 division by zero / Z E / C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return"
        ));
    }

    #[test]
    fn in_a_transaction_a_statement_in_flight_is_surely_rolled_back_and_a_commit_is_not() {
        let begun = "C> Q begin
             C< C BEGIN / Z T
             C> Q insert into t values (1)
             lease l leader
             S> P - begin / B - - / E - / Q insert into t values (1)
             S< 1 / 2 / C BEGIN / C INSERT 0 1 / Z T
             C< C INSERT 0 1 / Z T\n";
        Story::run(&format!("{begun} C> Q insert into t values (2)\n S> Q insert into t values (2)\n lost\n C< E 40001 / Z E"));
        Story::run(&format!("{begun} C> Q commit\n S> Q commit\n lost\n C< E 08007 / Z I"));
    }

    #[test]
    fn a_pinned_session_ends() {
        Story::run(
            "C> Q listen x
             lease l leader
             S> Q listen x
             S< C LISTEN / Z I
             C< C LISTEN / Z I
             S< A x
             C< A x
             lost
             C< FATAL 57P01
             close",
        );
        Story::run(
            "C> Q listen x
             lease l leader
             S> Q listen x
             S< C LISTEN / Z I
             C< C LISTEN / Z I
             C> Q insert into t values (1)
             S> Q insert into t values (1)
             lost
             C< FATAL 08007
             close",
        );
    }

    #[test]
    fn a_pipeline_is_answered_to_its_end() {
        Story::run(
            "C> P - insert into t values (1) / B - - / E - / S / P - insert into t values (2) / B - - / E - / S
             lease l leader
             S> P - insert into t values (1) / B - - / E - / S / P - insert into t values (2) / B - - / E - / S
             S< 1 / 2 / C INSERT 0 1 / Z I
             C< 1 / 2 / C INSERT 0 1 / Z I
             lost
             C< E 08007 / Z I",
        );
    }

    #[test]
    fn what_was_answered_and_not_synced_is_rolled_back() {
        Story::run(
            "C> P - insert into t values (1) / B - - / E - / H
             lease l leader
             S> P - insert into t values (1) / B - - / E - / H
             S< 1 / 2 / C INSERT 0 1
             C< 1 / 2 / C INSERT 0 1
             lost
             C> S
             C< E 40001 / Z I",
        );
    }
}

mod prepared {
    use super::*;

    #[test]
    fn names_are_replaced_and_replayed() {
        Story::run(
            "C> P s1 select $1 / S
             lease r replica
             S> P sy1 select $1 / S
             S< 1 / Z I
             C< 1 / Z I
             return
             cluster l 1: r3
             caught up
             C> B - s1 / D P - / E - / S
             lease r3 replica
             S> P sy1 select $1 / B - sy1 / D P - / E - / S
             S< 1 / 2 / T / D 1 / C SELECT 1 / Z I
             C< 2 / T / D 1 / C SELECT 1 / Z I
             return
             C> D S s1 / H
             lease r replica
             S> D S sy1 / S
             S< t / T / Z I
             C< t / T
             return
             C> B - s1 / E - / S
             lease r replica
             S> B - sy1 / E - / S
             S< 2 / D 1 / C SELECT 1 / Z I
             C< 2 / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn a_duplicate_name_is_for_the_server_to_refuse() {
        Story::run(
            "C> P s1 select 1 / S
             lease r replica
             S> P sy1 select 1 / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> P s1 select 2 / S
             lease r replica
             S> P s1 - / P s1 select 2 / S / C S s1 / S
             S< 1 / E 42P05 exists / Z I / 3 / Z I
             return
             lease l leader
             S> P s1 - / P s1 select 2 / S / C S s1 / S
             S< 1 / E 42P05 exists / Z I
             C< E 42P05 / Z I
             S< 3 / Z I
             return
             C> B - s1 / E - / S
             lease l leader
             S> P sy1 select 1 / B - sy1 / E - / S
             S< 1 / 2 / D 1 / C SELECT 1 / Z I
             C< 2 / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn an_unknown_name_passes_through() {
        Story::run(
            "C> B - nosuch / E - / S
             lease l leader
             S> B - nosuch / E - / S
             S< E 26000 unknown / Z I
             C< E 26000 / Z I
             return",
        );
    }

    /// A Close ends the connection of a server that takes COPY data.
    #[test]
    fn a_stand_in_is_closed_behind_a_copy() {
        Story::run(
            "C> P a insert into t values (1) / S
             lease l leader
             S> P sy1 insert into t values (1) / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> Q copy t from stdin; deallocate a; select 1
             lease l leader
             S> P a - / S / Q copy t from stdin; deallocate a; select 1
             S< 1 / Z I / G
             C< G
             C> f x
             S> f x
             S< E 57014 failed / Z I
             C< E 57014 / Z I
             S> C S a / S
             S< 3 / Z I
             return",
        );
    }

    #[test]
    fn deallocate_finds_a_stand_in() {
        Story::run(
            "C> P s1 select 1 / S
             lease r replica
             S> P sy1 select 1 / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> Q deallocate s1
             lease l leader
             S> P s1 - / S / Q deallocate s1 / C S s1 / S
             S< 1 / Z I / C DEALLOCATE / Z I
             C< C DEALLOCATE / Z I
             S< 3 / Z I
             return
             C> B - s1 / S
             lease l leader
             S> B - s1 / S
             S< E 26000 unknown / Z I
             C< E 26000 / Z I
             return",
        );
    }

    #[test]
    fn the_least_recently_used_one_is_closed_unless_an_error_skips_that() {
        let mut story = Story::fresh(Access::ReadWrite, &[]);
        story.max_prepared = 1;
        story.rig.cluster(Some(("l", 1)), &["r1"]);
        story.tell(
            "start
             lease l leader
             C< S in_hot_standby off / S DateStyle ISO / K / Z I
             return
             C> P a select 1 / S
             lease r1 replica
             S> P sy1 select 1 / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> P b select 2 / S
             lease r1 replica
             S> C S sy1 / P sy2 select 2 / S
             S< 3 / 1 / Z I
             C< 1 / Z I
             return
             # The Bind of a statement that isn't there fails, and what follows is skipped.
             C> B - b / B - nosuch / P c select 3 / S
             lease l leader
             S> P sy2 select 2 / B - sy2 / B - nosuch / C S sy2 / P sy3 select 3 / S
             S< 1 / 2 / E 26000 unknown / Z I
             C< 2 / E 26000 / Z I
             return
             C> B - b / E - / S
             lease l leader
             S> B - sy2 / E - / S
             S< 2 / D 1 / C SELECT 1 / Z I
             C< 2 / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn a_close_and_a_parse_that_are_skipped_never_were() {
        Story::run(
            "C> P a insert into t values (1) / S
             lease l leader
             S> P sy1 insert into t values (1) / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> B - nosuch / C S a / P a select 2 / S
             lease l leader
             S> B - nosuch / C S a / P sy2 select 2 / S
             S< E 26000 unknown / Z I
             C< E 26000 / Z I
             return
             C> B - a / E - / S
             lease l leader
             S> B - sy1 / E - / S
             S< 2 / C INSERT 0 1 / Z I
             C< 2 / C INSERT 0 1 / Z I
             return",
        );
    }

    #[test]
    fn too_many_are_refused_in_their_place() {
        let mut story = Story::on(Access::ReadWrite);
        story.rig.policy.max_statements = 1;
        story.tell(
            "C> P a insert into t values (1) / B - a / E - / S / P b select 2 / B - b / E - / S / Q insert into t values (3)
             lease l leader
             S> P sy1 insert into t values (1) / B - sy1 / E - / S
             S< 1 / 2 / C INSERT 0 1 / Z I
             C< 1 / 2 / C INSERT 0 1 / Z I
             return
             lease l leader
             S> P switchyard refused by switchyard / B - b / E - / S / Q insert into t values (3)
             S< E 42601 syntax error / Z I / C INSERT 0 1 / Z I
             C< E 53400 / Z I / C INSERT 0 1 / Z I
             return",
        );
    }

    /// A session that has prepared this, set DateStyle, and run it on the server that has it.
    fn prepared_under_another_date_style(insert: &str) -> Story {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!(
            "C> P a {insert} / S
             lease l leader
             S> P sy1 {insert} / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> Q set datestyle = 'dmy'
             lease l leader
             S> Q set datestyle = 'dmy'
             S< C SET / S DateStyle ISO,DMY / Z I
             C< C SET / S DateStyle ISO,DMY / Z I
             return
             # Where it is analysed already, it means what it meant then.
             C> B - a / E - / S
             lease l leader
             S> B - sy1 / E - / S
             S< 2 / C INSERT 0 1 / Z I
             C< 2 / C INSERT 0 1 / Z I
             return"
        ));
        story
    }

    #[test]
    fn under_other_settings_it_is_another_statement() {
        prepared_under_another_date_style("insert into t values (1)").tell(
            "cluster l 2:
             C> B - a / E - / S
             lease l leader
             S> set datestyle = ISO,DMY / S / P sy2 insert into t values (1) / B - sy2 / E - / S
             S< S DateStyle ISO,DMY / C SELECT 1 / Z I / 1 / 2 / C INSERT 0 1 / Z I
             C< 2 / C INSERT 0 1 / Z I
             return",
        );
    }

    /// What a string says, or is read as, was settled by the client's Parse: where a server doesn't have that, it is repeated under the settings of then.
    #[test]
    fn a_string_means_what_it_meant_at_its_parse() {
        let [begin, mark, back, end] =
            ["BEGIN", "SAVEPOINT switchyard_names", "ROLLBACK TO switchyard_names", "ROLLBACK"].map(run_by_our_names);
        prepared_under_another_date_style("insert into t values ('1/2/2020'::date)").tell(&format!(
            "cluster l 2:
             C> B - a / E - / S
             lease l leader
             S> set datestyle = ISO,DMY / S / {begin} / {mark} / own RESET datestyle / S / \
             P a insert into t values ('1/2/2020'::date) / S / S / {back} / {end} / B - a / E - / S"
        ));
    }
}

mod notifications {
    use super::*;

    #[test]
    fn tell_who_sent_them_as_that_client_was_told() {
        Story::run(
            "C> Q listen a
             lease l leader
             S> Q listen a
             S< C LISTEN / Z I
             C< C LISTEN / Z I
             S< AP 2 a / AP 3 a / N 00000 n / AP 2 a
             C< AP 22 a / AP 3 a / N 00000 / AP 22 a",
        );
    }
}

mod own_names {
    use super::*;

    const PREPARED: &str = "C> P s1 select 1 / S
         lease r replica
         S> P sy1 select 1 / S
         S< 1 / Z I
         C< 1 / Z I
         return
         ";

    #[test]
    fn whoever_looks_at_them_sees_the_clients() {
        Story::run(
            &[
                PREPARED,
                "C> Q select name from pg_prepared_statements
                 lease l leader
                 S> P s1 select 1 / S / Q select name from pg_prepared_statements
                 S< 1 / Z I / T / D s1 / C SELECT 1 / Z I
                 C< T / D s1 / C SELECT 1 / Z I
                 # Nobody else gets them.
                 S> C S s1 / S
                 S< 3 / Z I
                 return
                 caught up
                 C> B - s1 / E - / S
                 lease r replica
                 S> B - sy1 / E - / S
                 S< 2 / D 1 / C SELECT 1 / Z I
                 C< 2 / D 1 / C SELECT 1 / Z I
                 return",
            ]
            .concat(),
        );
    }

    #[test]
    fn ours_are_closed_before_that() {
        Story::run(
            "C> P s1 insert into t values (1) / S
             lease l leader
             S> P sy1 insert into t values (1) / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> Q select name from pg_prepared_statements
             lease l leader
             S> C S sy1 / P s1 insert into t values (1) / S / Q select name from pg_prepared_statements
             S< 3 / 1 / Z I / T / D s1 / C SELECT 1 / Z I
             C< T / D s1 / C SELECT 1 / Z I
             S> C S s1 / S
             S< 3 / Z I
             return
             C> B - s1 / E - / S
             lease l leader
             S> P sy1 insert into t values (1) / B - sy1 / E - / S
             S< 1 / 2 / C INSERT 0 1 / Z I
             C< 2 / C INSERT 0 1 / Z I
             return",
        );
    }

    /// As long as the session holds its server, all names are the client's.
    #[test]
    fn names_stay_the_clients_to_the_end_of_the_transaction() {
        Story::run(
            &[
                PREPARED,
                "C> Q begin
                 C< C BEGIN / Z T
                 C> Q execute s1
                 lease l leader
                 # Outside of the transaction, so that none that can't be prepared any more fails it.
                 S> P s1 select 1 / S / P - begin / B - - / E - / Q execute s1
                 S< 1 / Z I / 1 / 2 / C BEGIN / T / D 1 / C SELECT 1 / Z T
                 C< T / D 1 / C SELECT 1 / Z T
                 C> B - s1 / E - / S
                 S> B - s1 / E - / S
                 S< 2 / D 1 / C SELECT 1 / Z T
                 C< 2 / D 1 / C SELECT 1 / Z T
                 C> P s2 select 2 / C S s1 / S
                 S> P s2 select 2 / C S s1 / S
                 S< 1 / 3 / Z T
                 C< 1 / 3 / Z T
                 C> P s2 select 3 / S
                 S> P s2 select 3 / S
                 S< E 42P05 exists / Z E
                 C< E 42P05 / Z E
                 C> Q rollback
                 S> Q rollback
                 S< C ROLLBACK / Z I
                 C< C ROLLBACK / Z I
                 S> C S s2 / S
                 S< 3 / Z I
                 return",
            ]
            .concat(),
        );
    }

    #[test]
    fn within_a_transaction_a_savepoint_keeps_failures_from_it() {
        Story::run(
            &[
                PREPARED,
                BEGUN,
                "C> Q execute s1
                 S> P switchyard_names SAVEPOINT switchyard_names / B switchyard_names switchyard_names / E switchyard_names / C P switchyard_names / C S switchyard_names / S / P s1 select 1 / S / P switchyard_names ROLLBACK TO switchyard_names / B switchyard_names switchyard_names / E switchyard_names / C P switchyard_names / C S switchyard_names / S / P switchyard_names RELEASE switchyard_names / B switchyard_names switchyard_names / E switchyard_names / C P switchyard_names / C S switchyard_names / S / Q execute s1
                 S< 1 / 2 / C SAVEPOINT / 3 / 3 / Z T / E 42P01 gone / Z E / 1 / 2 / C ROLLBACK / 3 / 3 / Z T / 1 / 2 / C RELEASE / 3 / 3 / Z T / E 26000 s1 / Z E
                 C< E 42P01 / Z E",
            ]
            .concat(),
        );
    }

    /// Its own error says more than that the name is missing, and it may be that it can be prepared by now.
    #[test]
    fn what_could_not_be_prepared_is_tried_again_where_it_is_used() {
        let missing = [
            PREPARED,
            BEGUN,
            "C> Q select name from pg_prepared_statements\n S> ",
            &run_by_our_names("SAVEPOINT switchyard_names"),
            " / P s1 select 1 / S / ",
            &run_by_our_names("ROLLBACK TO switchyard_names"),
            " / ",
            &run_by_our_names("RELEASE switchyard_names"),
            " / Q select name from pg_prepared_statements
             S< 1 / 2 / C SAVEPOINT / 3 / 3 / Z T / E 42P01 gone / Z E / 1 / 2 / C ROLLBACK / 3 / 3 / Z T / 1 / 2 / C RELEASE / 3 / 3 / Z T / T / C SELECT 0 / Z T
             C< T / C SELECT 0 / Z T
             ",
        ]
        .concat();
        for client in ["B - s1 / E - / S", "D S s1 / S"] {
            let used = format!("C> {client}\n S> P s1 select 1 / {client}\n ");
            Story::run(&format!("{missing}{used}S< E 42P01 gone / Z E\n C< E 42P01 / Z E"));
        }
        let bound = "B - s1 / E - / S\n S< 1 / 2 / D 1 / C SELECT 1 / Z T\n C< 2 / D 1 / C SELECT 1 / Z T\n ";
        Story::run(&format!(
            "{missing}C> B - s1 / E - / S\n S> P s1 select 1 / {bound}C> B - s1 / E - / S\n S> {}",
            bound.replace("S< 1 / 2", "S< 2")
        ));
    }

    #[test]
    fn behind_the_end_of_a_failed_transaction_that_is_waited_for() {
        Story::run(
            &[
                PREPARED,
                BEGUN,
                "C> Q select fail
                 S> Q select fail
                 S< E 22012 failed / Z E
                 C< E 22012 / Z E
                 C> Q rollback / Q execute s1
                 S> Q rollback
                 S< C ROLLBACK / Z I
                 C< C ROLLBACK / Z I
                 return
                 lease l leader
                 S> P s1 select 1 / S / Q execute s1
                 S< 1 / Z I / T / D 1 / C SELECT 1 / Z I
                 C< T / D 1 / C SELECT 1 / Z I
                 S> C S s1 / S
                 S< 3 / Z I
                 return",
            ]
            .concat(),
        );
    }

    #[test]
    fn within_a_segment_no_sync_of_ours_ends_it() {
        Story::run(
            &[
                PREPARED,
                "C> P - insert into t values (1) / B - - / E - / H
                 lease l leader
                 S> P - insert into t values (1) / B - - / E - / H
                 S< 1 / 2 / C INSERT 0 1
                 C< 1 / 2 / C INSERT 0 1
                 C> P - execute s1 / B - - / E - / S
                 S> P s1 select 1 / P - execute s1 / B - - / E - / S
                 S< 1 / 1 / 2 / C SELECT 1 / Z I
                 C< 1 / 2 / C SELECT 1 / Z I
                 S> C S s1 / S
                 S< 3 / Z I
                 return",
            ]
            .concat(),
        );
    }

    #[test]
    fn what_the_batch_itself_prepares_and_closes_is_its_own() {
        Story::run(
            &[
                PREPARED,
                "C> P look select from pg_prepared_statements / C S s1 / B - look / E - / S
                 lease l leader
                 S> P s1 select 1 / S / P look select from pg_prepared_statements / C S s1 / B - look / E - / S
                 S< 1 / Z I / 1 / 3 / 2 / C SELECT 1 / Z I
                 C< 1 / 3 / 2 / C SELECT 1 / Z I
                 S> C S look / S
                 S< 3 / Z I
                 return",
            ]
            .concat(),
        );
    }

    #[test]
    fn a_name_that_is_taken_is_refused_by_the_server() {
        Story::run(
            &[
                PREPARED,
                "C> P s1 execute s1 / B - s1 / E - / S
                 lease l leader
                 S> P s1 select 1 / S / P s1 execute s1 / B - s1 / E - / S
                 S< 1 / Z I / E 42P05 exists / Z I
                 C< E 42P05 / Z I
                 S> C S s1 / S
                 S< 3 / Z I
                 return",
            ]
            .concat(),
        );
    }

    #[test]
    fn one_that_cant_be_prepared_any_more_keeps_no_other_away() {
        Story::run(
            &[
                PREPARED,
                "C> Q select name from pg_prepared_statements
                 lease l leader
                 S> P s1 select 1 / S / Q select name from pg_prepared_statements
                 S< E 42P01 gone / Z I / T / C SELECT 0 / Z I
                 C< T / C SELECT 0 / Z I
                 S> C S s1 / S
                 S< 3 / Z I
                 return",
            ]
            .concat(),
        );
    }

    #[test]
    fn sql_executes_what_the_protocol_has_prepared() {
        Story::run(
            &[
                PREPARED,
                "C> Q execute s1
                 lease l leader
                 S> P s1 select 1 / S / Q execute s1
                 S< 1 / Z I / T / D 1 / C SELECT 1 / Z I
                 C< T / D 1 / C SELECT 1 / Z I
                 S> C S s1 / S
                 S< 3 / Z I
                 return
                 # So does a table that is made of its rows.
                 C> Q create table t2 as execute s1
                 lease l leader
                 S> P s1 select 1 / S / Q create table t2 as execute s1
                 S< 1 / Z I / C SELECT 1 / Z I
                 C< C SELECT 1 / Z I
                 S> C S s1 / S
                 S< 3 / Z I
                 return",
            ]
            .concat(),
        );
    }

    #[test]
    fn a_simple_query_takes_the_unnamed_statement_also_within_a_segment() {
        Story::run(
            "C> P - select 1 / Q insert into t values (1) / B - - / S
             lease l leader
             S> P - select 1 / H
             S< 1
             C< 1
             S> Q insert into t values (1) / C S - / B - - / S
             S< C INSERT 0 1 / Z I / 3 / E 26000 unknown / Z I
             C< C INSERT 0 1 / Z I / E 26000 / Z I
             return",
        );
    }

    #[test]
    fn a_statement_whose_close_is_skipped_can_be_deallocated() {
        Story::run(
            "C> P a insert into t select / S
             lease l leader
             S> P sy1 insert into t select / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> B - nosuch / C S a / S / Q deallocate a
             lease l leader
             S> B - nosuch / C S a / S
             S< E 26000 unknown / Z I
             C< E 26000 / Z I
             return
             lease l leader
             S> P a - / S / Q deallocate a / C S a / S
             S< 1 / Z I / C DEALLOCATE / Z I
             C< C DEALLOCATE / Z I
             S< 3 / Z I
             return",
        );
    }

    #[test]
    fn a_parse_that_is_skipped_in_the_transaction_that_it_began_leaves_the_unnamed_statement() {
        Story::run(
            "C> P - begin / B - - / E - / E p / P - commit / S / C S mark / S
             lease l leader
             S> P - begin / B - - / E - / E p / P - commit / S / C S mark / S
             S< 1 / 2 / C BEGIN / E 34000 unknown / Z E / 3 / Z E
             C< 1 / 2 / C BEGIN / E 34000 / Z E / 3 / Z E
             C> D S - / S
             S> D S - / S
             S< t / n / Z E
             C< t / n / Z E",
        );
    }

    #[test]
    fn a_parse_that_is_skipped_leaves_the_unnamed_statement() {
        Story::run(
            &[
                BEGUN,
                "C> P - commit / B - nosuch / P - select 1 / S
                 S> P - commit / B - nosuch / P - select 1 / S
                 S< 1 / E 26000 unknown / Z E
                 C< 1 / E 26000 / Z E
                 # Nothing can be prepared now.
                 C> D S - / S
                 S> D S - / S
                 S< t / n / Z E
                 C< t / n / Z E",
            ]
            .concat(),
        );
    }

    #[test]
    fn the_last_one_that_sql_has_prepared_unpins() {
        Story::run(
            "C> Q prepare a as select 1
             lease l leader
             S> Q prepare a as select 1
             S< C PREPARE / Z I
             C< C PREPARE / Z I
             C> Q prepare b as select 1
             S> Q prepare b as select 1
             S< C PREPARE / Z I
             C< C PREPARE / Z I
             # The protocol's names are the same ones.
             C> P a select 3 / S
             S> P a select 3 / S
             S< E 42P05 exists / Z I
             C< E 42P05 / Z I
             C> Q deallocate a
             S> Q deallocate a
             S< C DEALLOCATE / Z I
             C< C DEALLOCATE / Z I
             C> Q deallocate b
             S> Q deallocate b
             S< C DEALLOCATE / Z I
             C< C DEALLOCATE / Z I
             return",
        );
    }

    #[test]
    fn a_prepare_before_a_statement_that_failed_pins() {
        Story::run(
            "C> Q prepare a as select 1; select 1/0
             lease l leader
             S> Q prepare a as select 1; select 1/0
             S< C PREPARE / E 22012 zero / Z I
             C< C PREPARE / E 22012 / Z I
             C> Q deallocate a
             S> Q deallocate a
             S< C DEALLOCATE / Z I
             C< C DEALLOCATE / Z I
             return",
        );
    }

    #[test]
    fn what_is_executed_by_a_name_that_is_closed_behind_it() {
        Story::run(
            "C> P a select 1 / P - execute a / B q - / D P q / C S a / S
             lease l leader
             S> S / P a select 1 / P - execute a / B q - / D P q / C S a / S",
        );
    }

    #[test]
    fn they_wait_for_what_is_to_be_answered_before_them() {
        Story::run(
            "C> D S a / S / P a prepare a as select 5 / B - a / E - / Q select 1
             lease l leader
             S> D S a / S
             S< E 26000 x / Z I
             C< E 26000 / Z I
             return
             lease l leader
             S> S / P a prepare a as select 5 / B - a / E - / H",
        );
    }

    /// A Sync of ours would commit what the segment has begun: the settings that a statement was read under hold up to its end.
    #[test]
    fn in_a_segment_that_was_begun_they_are_read_as_at_their_parse() {
        Story::run(
            r"C> P w select U&'d!0061t' uescape '!' / S
              lease r replica
              S> P sy1 select U&'d!0061t' uescape '!' / S
              S< 1 / Z I
              C< 1 / Z I
              return
              C> Q set standard_conforming_strings = off
              lease l leader
              S> Q set standard_conforming_strings = off
              S< C SET / S standard_conforming_strings off / Z I
              C< C SET / S standard_conforming_strings off / Z I
              return
              C> P - prepare a as select 1 / B - - / E - / H
              lease l leader
              S> P - prepare a as select 1 / B - - / E - / H
              S< 1 / 2 / C PREPARE
              C< 1 / 2 / C PREPARE
              C> P - insert into t values (1) / B - - / E - / S
              S> set local standard_conforming_strings = null / P w select U&'d!0061t' uescape '!' / set local standard_conforming_strings = off / P - insert into t values (1) / B - - / E - / S
              S< 3 / 1 / 2 / D t / C SELECT 1 / 3 / 3 / 1 / 3 / 1 / 2 / D t / C SELECT 1 / 3 / 3
              S< 1 / 2 / C INSERT 0 1 / Z I
              C< 1 / 2 / C INSERT 0 1 / Z I",
        );
    }

    /// What only the server knows is kept there meanwhile.
    #[test]
    fn in_a_segment_that_was_begun_what_only_the_server_knows_is_set_again() {
        Story::run(
            "C> P a select 1 from t / S
             lease r replica
             S> P sy1 select 1 from t / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> P - set search_path = u / B - - / E - / H
             lease l leader
             S> P - set search_path = u / B - - / E - / H
             S< 1 / 2 / C SET
             C< 1 / 2 / C SET
             C> P - select name from pg_prepared_statements / B - - / E - / S
             S> save search_path / set local search_path = null / P a select 1 from t / restore search_path / \
             P - select name from pg_prepared_statements / B - - / E - / S
             S< 3 / 1 / 2 / D t / C SELECT 1 / 3 / 3 / 1 / 2 / D t / C SELECT 1 / 3 / 3 / 1 / 3 / 1 / 2 / D t / C SELECT 1 / 3 / 3
             S< 1 / 2 / D a / C SELECT 1 / Z I
             C< 1 / 2 / D a / C SELECT 1 / Z I
             S> C S a / S",
        );
    }

    #[test]
    fn behind_the_end_of_a_failed_transaction_in_a_segment_that_was_sent_in_part() {
        Story::run(
            &[
                BEGUN,
                "C> Q insert into t values (1)
                 S> Q insert into t values (1)
                 S< E 23505 x / Z E
                 C< E 23505 / Z E
                 C> P a commit / H
                 S> P sy1 commit / H
                 S< 1
                 C< 1
                 C> P - rollback / B - - / E - / P - prepare a as select 1 / B - - / E - / S
                 S> P - rollback / B - - / E - / H
                 S< 1 / 2 / C ROLLBACK
                 C< 1 / 2 / C ROLLBACK
                 S> C S sy1 / P a commit / P - prepare a as select 1 / B - - / E - / S
                 S< 3 / 1 / 1 / 2 / E 42P05 exists / Z I
                 C< 1 / 2 / E 42P05 / Z I
                 S> C S a / S",
            ]
            .concat(),
        );
    }

    /// A session with a statement of its own has begun a transaction.
    const NAMED_AND_BEGUN: &str = "C> P w select 1 / S
             lease r replica
             S> P sy1 select 1 / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> Q begin
             C< C BEGIN / Z T
             C> Q insert into t values (1)
             lease l leader
             S> P - begin / B - - / E - / Q insert into t values (1)";

    /// A savepoint behind [`NAMED_AND_BEGUN`], and an error.
    const SAVED_AND_FAILED: &str = "S< 1 / 2 / C BEGIN / C INSERT 0 1 / Z T
             C< C INSERT 0 1 / Z T
             C> Q savepoint s1
             S> Q savepoint s1
             S< C SAVEPOINT / Z T
             C< C SAVEPOINT / Z T
             C> Q select 1/0
             S> Q select 1/0
             S< E 22012 x / Z E
             C< E 22012 / Z E";

    /// The transaction is begun anew with the client's own names, and fails again; `then` is what the client has sent for that.
    fn begun_anew(then: &str) -> String {
        let [chain, mark, back, release] =
            ["ROLLBACK AND CHAIN", "SAVEPOINT switchyard_names", "ROLLBACK TO switchyard_names", "RELEASE switchyard_names"]
                .map(run_by_our_names);
        format!("S> {chain} / {mark} / P w select 1 / S / {back} / {release} / Q SELECT pg_catalog.int4div(1, 0) / {then}")
    }

    /// A string ends a failed transaction, in which nothing could be prepared.
    #[test]
    fn behind_the_end_of_a_failed_transaction_in_its_own_string() {
        let anew = begun_anew("Q rollback and chain; prepare w as select 5");
        Story::run(&format!(
            "{NAMED_AND_BEGUN}
             S< 1 / 2 / C BEGIN / E 23505 x / Z E
             C< E 23505 / Z E
             C> Q rollback and chain; prepare w as select 5
             {anew}"
        ));
    }

    /// Nothing can fail before that end, so that no savepoint is missed.
    #[test]
    fn behind_the_end_of_a_failed_transaction_that_is_prepared_by_itself() {
        let segment = "P b commit work / B - b / E - / P - execute b / B - - / E - / S";
        Story::run(&format!("{NAMED_AND_BEGUN}\n {SAVED_AND_FAILED}\n C> {segment}\n {}", begun_anew(segment)));
    }

    /// Savepoints would be gone with that, and its client may go back to one, if the string has an error that fails all of it.
    #[test]
    fn savepoints_of_a_failed_transaction_are_left_alone() {
        Story::run(&format!(
            "{NAMED_AND_BEGUN}
             {SAVED_AND_FAILED}
             C> Q rollback; prepare w as select 5
             S> Q rollback; prepare w as select 5"
        ));
    }
}

mod outdated {
    use super::*;

    #[test]
    fn after_ddl_the_same_text_is_another_statement() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> P a insert into t select / S
             lease l leader
             S> P sy1 insert into t select / S
             S< 1 / Z I
             C< 1 / Z I
             return",
        );
        story.rig.judge.shape.set(1);
        story.tell(
            "C> P b insert into t select / S
             lease l leader
             S> P sy2 insert into t select / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> B - a / S
             lease l leader
             S> B - sy1 / S
             S< 2 / Z I
             C< 2 / Z I
             return",
        );
    }

    #[test]
    fn a_result_type_that_has_changed_is_told_once_and_not_again_after_a_new_parse() {
        Story::run(
            "C> P a insert into t select / S
             lease l leader
             S> P sy1 insert into t select / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> B - a / E - / S
             lease l leader
             S> B - sy1 / E - / S
             S< ER 0A000 RevalidateCachedQuery / Z I
             C< E 0A000 / Z I
             return
             C> P b insert into t select / B - b / E - / S
             lease l leader
             S> P sy2 insert into t select / B - sy2 / E - / S
             S< 1 / 2 / C INSERT 0 1 / Z I
             C< 1 / 2 / C INSERT 0 1 / Z I
             return
             # Another server would give what the client doesn't expect.
             cluster l 2:
             C> D S a / B - a / E - / S
             lease l leader
             S> P switchyard refused by switchyard / P switchyard refused by switchyard / E - / S
             S< E 42601 syntax error / Z I
             C< E 0A000 / Z I
             return",
        );
    }
}

mod run {
    use super::*;

    #[test]
    fn what_a_leader_is_sent_to_run_is_told_once_and_a_question_never() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> P a drop database x / D S a / S
             lease l leader
             S> P sy1 drop database x / D S sy1 / S
             S< 1 / t x / n / Z I
             C< 1 / t x / n / Z I
             return",
        );
        assert!(story.rig.judge.ran.borrow().is_empty() && story.rig.judge.asked.borrow().is_empty());
        story.tell("C> B - a / E -");
        assert!(story.rig.judge.ran.borrow().is_empty(), "nothing was sent yet");
        assert_eq!(*story.rig.judge.asked.borrow(), ["DROP DATABASE"]);
        story.tell(
            "C> S
             lease l leader
             S> B - sy1 / E - / S
             S< 2 / C DROP DATABASE / Z I
             C< 2 / C DROP DATABASE / Z I
             return
             C> Q create table t ()
             lease l leader
             S> Q create table t ()
             S< C CREATE TABLE / Z I
             C< C CREATE TABLE / Z I
             return",
        );
        assert_eq!(*story.rig.judge.ran.borrow(), ["DROP DATABASE", "CREATE TABLE"]);
    }

    #[test]
    fn what_a_replica_is_sent_is_not_told() {
        let mut story = Story::on(Access::ReadOnly);
        story.tell(
            "C> Q drop database x
             lease r replica
             S> Q drop database x
             S< E 25006 no / Z I
             C< E 25006 / Z I
             return",
        );
        assert!(story.rig.judge.ran.borrow().is_empty());
    }
}

mod shapes {
    use super::*;

    /// RowDescriptions are texts here, and a shape is read of them all the same: one column with that name.
    fn row(name: &str) -> String {
        format!("T \0\x01{name}\0{}", "\x01".repeat(18))
    }

    fn told(story: &mut Story) {
        story.tell(&format!(
            "C> P a insert into t select / D S a / S
             lease l leader
             S> P sy1 insert into t select / D S sy1 / S
             S< 1 / t / {one} / Z I
             C< 1 / t / {one} / Z I
             return
             cluster l 2:",
            one = row("one")
        ));
        story.rig.judge.shape.set(1);
    }

    const LOOK: &str = "C> B - a / E - / S
         lease l leader
         S> P sy1 insert into t select / D S sy1 / S
         ";

    #[test]
    fn after_ddl_a_server_that_hasnt_got_a_statement_is_asked_what_it_gives() {
        let mut story = Story::on(Access::ReadWrite);
        told(&mut story);
        story.tell(&format!(
            "{LOOK} S< 1 / t / {} / Z I
             S> B - sy1 / E - / S
             S< 2 / C INSERT 0 1 / Z I
             C< 2 / C INSERT 0 1 / Z I
             return
             C> B - a / E - / S
             lease l leader
             S> B - sy1 / E - / S
             S< 2 / C INSERT 0 1 / Z I
             C< 2 / C INSERT 0 1 / Z I
             return",
            row("one")
        ));
    }

    #[test]
    fn the_look_waits_for_the_settings_and_a_held_begin_for_both() {
        let mut story = Story::on(Access::ReadWrite);
        told(&mut story);
        story.tell(&format!(
            "C> Q set datestyle = 'ISO'
             lease l leader
             S> Q set datestyle = 'ISO'
             S< C SET / Z I
             C< C SET / Z I
             return
             cluster l 3:
             C> Q begin
             C< C BEGIN / Z T
             C> B - a / E - / S
             lease l leader
             S> set datestyle = ISO / S
             S< T / D x / C SELECT 1 / Z I
             S> P sy2 insert into t select / D S sy2 / S
             S< 1 / t / {} / Z I
             S> P - begin / B - - / E - / C P - / B - sy2 / E - / S
             S< 1 / 2 / C BEGIN / 3 / 2 / C INSERT 0 1 / Z T
             C< 2 / C INSERT 0 1 / Z T
             C> Q commit
             S> Q commit
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return",
            row("one")
        ));
    }

    #[test]
    fn a_server_that_is_lost_under_the_look_takes_its_transaction_with_it() {
        let mut story = Story::on(Access::ReadWrite);
        told(&mut story);
        story.tell(&format!(
            "{BEGUN}
             C> B - a / E - / S
             S> P sy1 insert into t select / D S sy1 / S
             lost
             C< E 40001 / Z E"
        ));
    }

    #[test]
    fn a_transaction_that_can_move_begins_anew_behind_another_look() {
        let mut story = Story::on(Access::ReadOnly);
        story.tell(&format!(
            "C> P a select 2 / D S a / S
             lease r1 replica
             S> P sy1 select 2 / D S sy1 / S
             S< 1 / t / {one} / Z I
             C< 1 / t / {one} / Z I
             return",
            one = row("one")
        ));
        story.rig.judge.shape.set(1);
        story.tell(&format!(
            "C> Q begin
             C< C BEGIN / Z T
             C> Q select 1
             lease r2 replica
             S> P - begin / B - - / E - / Q select 1
             S< 1 / 2 / C BEGIN / T x / D 1 / C SELECT 1 / Z T
             C< T x / D 1 / C SELECT 1 / Z T
             C> B - a / E - / S
             S> P sy1 select 2 / D S sy1 / S
             lost
             lease l replica
             S> P sy1 select 2 / D S sy1 / S
             S< 1 / t / {one} / Z I
             S> P - begin / B - - / E - / C P - / B - sy1 / E - / S
             S< 1 / 2 / C BEGIN / 3 / 2 / D 2 / C SELECT 1 / Z T
             C< 2 / D 2 / C SELECT 1 / Z T",
            one = row("one")
        ));
    }

    #[test]
    fn what_it_no_longer_gives_is_refused_as_a_server_would_that_had_it() {
        let mut story = Story::on(Access::ReadWrite);
        told(&mut story);
        story.tell(&format!(
            "{LOOK} S< 1 / t / {} / Z I
             S> C S sy1 / P switchyard refused by switchyard / E - / S
             S< 3 / E 42601 syntax error / Z I
             C< E 0A000 / Z I
             return",
            row("two")
        ));
    }

    #[test]
    fn what_cant_be_prepared_any_more_says_so_itself() {
        let mut story = Story::on(Access::ReadWrite);
        told(&mut story);
        story.tell(&format!(
            "{LOOK} S< E 42P01 gone / Z I
             S> P sy1 insert into t select / B - sy1 / E - / S
             S< E 42P01 gone / Z I
             C< E 42P01 / Z I
             return"
        ));
    }
}

mod flush {
    use super::*;

    #[test]
    fn after_an_error_all_up_to_sync_is_dropped() {
        Story::run(
            "C> P - insert into t values (1) / B - - / E - / H
             lease l leader
             S> P - insert into t values (1) / B - - / E - / H
             S< 1 / 2 / E 23505 duplicate
             C< 1 / 2 / E 23505
             C> P - select 2 / B - - / E - / H / Q ignored
             C> S
             S> S
             S< Z I
             C< Z I
             return",
        );
    }

    #[test]
    fn behind_a_held_begin_it_is_answered_at_once() {
        Story::run(
            "C> Q begin read only
             C< C BEGIN / Z T
             C> P - select 1 / D S - / H
             lease r replica
             S> P - begin read only / B - - / E - / C P - / P - select 1 / D S - / H
             S< 1 / 2 / C BEGIN / 3 / 1 / t / T
             C< 1 / t / T
             C> B - - / E - / S
             S> B - - / E - / S
             S< 2 / D 1 / C SELECT 1 / Z T
             C< 2 / D 1 / C SELECT 1 / Z T
             C> Q commit
             S> Q commit
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return",
        );
    }

    #[test]
    fn a_transaction_goes_on_with_a_portal_where_it_was_opened() {
        Story::run(
            "C> Q begin read only
             C< C BEGIN / Z T
             C> P - select 1 / B - - / E - / S
             lease r replica
             S> P - begin read only / B - - / E - / C P - / P - select 1 / B - - / E - / S
             S< 1 / 2 / C BEGIN / 3 / 1 / 2 / D 1 / C SELECT 1 / Z T
             C< 1 / 2 / D 1 / C SELECT 1 / Z T
             # On the leader there would be no such portal.
             C> E - / P a insert into t / B - a / E - / S
             S> E - / P sy1 insert into t / B - sy1 / E - / S
             S< E 55000 has run / Z E
             C< E 55000 / Z E
             C> Q rollback
             S> Q rollback
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return",
        );
    }

    #[test]
    fn parse_and_describe_alone_bind_nothing() {
        Story::run(
            "C> P - select 1 / D S - / H
             lease r replica
             S> P - select 1 / D S - / S
             S< 1 / t / T / Z I
             C< 1 / t / T
             return
             C> B - - / E - / S
             lease r replica
             S> B - - / E - / S
             S< 2 / D 1 / C SELECT 1 / Z I
             C< 2 / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn a_parameter_of_an_own_type_may_bring_its_operators() {
        let read = |oid: &str, lease: &str| {
            Story::run(&format!(
                "C> P - select $1 = $1 {{{oid}}} / D S - / S
                 lease {lease}
                 S> P - select $1 = $1 / D S - / S
                 S< 1 / t / T / Z I
                 C< 1 / t / T / Z I
                 return"
            ));
        };
        read("23", "r replica");
        read("50000", "l leader");
    }

    #[test]
    fn an_error_in_them_is_the_clients_to_sync() {
        Story::run(
            "C> P - insert into nosuch values (1) / H
             lease l leader
             S> P - insert into nosuch values (1) / S
             S< E 42P01 unknown / Z I
             C< E 42P01
             return
             C> B - - / E - / S
             C< Z I",
        );
    }

    #[test]
    fn later_ones_dont_end_the_implicit_transaction() {
        Story::run(
            "C> P - insert into t values (1) / B - - / E - / H
             lease l leader
             S> P - insert into t values (1) / B - - / E - / H
             S< 1 / 2 / C INSERT 0 1
             C< 1 / 2 / C INSERT 0 1
             C> P - select 1 / D S - / H
             S> P - select 1 / D S - / H
             S< 1 / t / T
             C< 1 / t / T
             C> B - - / E - / S
             S> B - - / E - / S
             # Of this statement alone nothing has been shown, of the transaction there was.
             lost
             C< E 08007 / Z I",
        );
    }
}

mod copy {
    use super::*;

    #[test]
    fn in_goes_straight_through() {
        Story::run(
            "C> Q copy t from stdin / d early
             lease l leader
             S> Q copy t from stdin
             S< G
             C< G
             S> d early
             C> d row / c
             S> d row / c
             S< C COPY 2 / Z I
             C< C COPY 2 / Z I
             return",
        );
    }

    #[test]
    fn in_by_the_extended_protocol_takes_two_syncs() {
        Story::run(
            "C> P - copy t from stdin / B - - / E - / S
             lease l leader
             S> P - copy t from stdin / B - - / E - / S
             S< 1 / 2 / G
             C< 1 / 2 / G
             C> d row / c / S
             S> d row / c / S
             S< C COPY 1 / Z I
             C< C COPY 1 / Z I
             return",
        );
    }

    #[test]
    fn in_that_fails_leaves_nothing_for_the_next_server() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell("C> Q copy t from stdin\n lease l leader\n S> Q copy t from stdin\n S< G\n C< G");
        let row = super::super::text::client(&format!("d {}", "x".repeat(100)));
        story.work.client_in = row[..50].to_vec();
        let Story { rig, session, work, .. } = &mut story;
        session.client_bytes(&rig.env(), work, None);
        assert_eq!(work.to_server, row[..50]);
        work.to_server.clear();
        // The server fails in the middle of the message: it gets the rest of it before anybody else gets the server.
        story.tell("S< E 22P02 bad / Z I\n C< E 22P02 / Z I");
        story.work.client_in = row[50..].to_vec();
        story.go_on();
        let Story { session, work, .. } = &mut story;
        assert_eq!(work.to_server, row[50..]);
        assert_eq!(session.take_want(Some(work)), None, "not before it is written");
        work.to_server.clear();
        story.tell("return\n C> d more / c\n C> Q begin\n C< C BEGIN / Z T");
    }

    #[test]
    fn in_whose_server_is_lost_leaves_nothing_for_the_next() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell("C> Q copy t from stdin\n lease l leader\n S> Q copy t from stdin\n S< G\n C< G");
        let row = super::super::text::client(&format!("d {}", "x".repeat(100)));
        story.work.client_in = row[..50].to_vec();
        let Story { rig, session, work, .. } = &mut story;
        session.client_bytes(&rig.env(), work, None);
        work.to_server.clear();
        story.tell("lost\n C< E 08007 / Z I");
        story.work.client_in = row[50..].to_vec();
        story.tell("C> d more / f no / Q insert into t values (1)\n lease l leader\n S> Q insert into t values (1)\n S< C INSERT 0 1 / Z I\n C< C INSERT 0 1 / Z I\n return");
    }

    #[test]
    fn out_is_a_read() {
        Story::run(
            "C> Q copy t to stdout
             lease r replica
             S> Q copy t to stdout
             S< H / d 1 / c / C COPY 1 / Z I
             C< H / d 1 / c / C COPY 1 / Z I
             return",
        );
    }
}

mod settings {
    use super::*;

    #[test]
    fn a_set_is_carried_on() {
        Story::run(
            "C> Q set work_mem = '1MB'
             lease l leader
             S> Q set work_mem = '1MB'
             S< C SET / Z I
             C< C SET / Z I
             S> look work_mem
             S< T / L v work_mem 1MB / C SELECT 1 / Z I
             return
             caught up
             C> Q select 1
             lease r replica
             S> set work_mem = 1MB / S / Q select 1
             S< 1 / 2 / C SELECT 1 / Z I / T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    /// On a replica's connection it is on from the beginning, for the connection's sake.
    #[test]
    fn a_session_on_a_replica_is_told_when_it_makes_its_transactions_read_only() {
        let set = |story: &mut Story, sql: &str, tag: &str, told: &str| {
            let lease = if story.session.pins().is_empty() && story.session.status() == TxStatus::Idle { "lease r replica" } else { "" };
            story.tell(&format!("C> Q {sql}\n {lease}\n S> Q {sql}\n S< C {tag} / Z I\n C< C {tag}{told} / Z I\n return"));
        };
        let mut story = Story::on(Access::ReadOnly);
        let begun = "S default_transaction_read_only on";
        // What a server reports first.
        story.tell(&format!(
            "C> Q select 1\n lease r replica\n S> Q select 1\n S< {begun} / T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / S default_transaction_read_only off / Z I\n return"
        ));
        set(&mut story, "set session characteristics as transaction read only", "SET", " / S default_transaction_read_only on");
        set(&mut story, "select 1", "SELECT 1", "");
        set(&mut story, "reset all", "RESET", " / S default_transaction_read_only off");
    }

    /// On port 15000, where a leader has told it.
    #[test]
    fn a_session_on_a_replica_is_told_when_its_transactions_may_write_again() {
        Story::on(Access::ReadWrite).tell(
            "C> Q set session characteristics as transaction isolation level repeatable read read only
             lease l leader
             S> Q set session characteristics as transaction isolation level repeatable read read only
             S< C SET / S default_transaction_read_only on / Z I
             C< C SET / S default_transaction_read_only on / Z I
             return
             C> Q begin
             C< C BEGIN / Z T
             C> Q select 1
             lease r replica
             S> set default_transaction_isolation = repeatable read / S / P - begin / B - - / E - / Q select 1
             S< C SELECT 1 / Z I / 1 / 2 / C BEGIN / T / D 1 / C SELECT 1 / S default_transaction_read_only on / Z T
             C< T / D 1 / C SELECT 1 / Z T
             C> Q reset all
             S> Q reset all
             S< C RESET / Z T
             C< C RESET / S default_transaction_read_only off / Z T",
        );
    }

    #[test]
    fn what_the_session_still_has_is_not_reported_otherwise_by_a_server_that_will_get_it_back() {
        let mut story = Story::fresh(Access::ReadWrite, &[("DateStyle", "SQL, DMY")]);
        story.tell(
            "start
             lease l leader
             S> set datestyle = SQL, DMY / S
             S< T / D x / S DateStyle SQL,DMY / C SELECT 1 / Z I
             C< S in_hot_standby off / S DateStyle SQL,DMY / K / Z I
             return",
        );
        // In a transaction that has failed.
        story.tell(
            "C> Q begin; insert into t values (1)
             lease l leader
             S> Q begin; insert into t values (1)
             S< C BEGIN / C INSERT 0 1 / Z T
             C< C BEGIN / C INSERT 0 1 / Z T
             C> Q reset all; commit; begin
             S> Q reset all; commit; begin
             S< C RESET / C COMMIT / C BEGIN / S DateStyle ISO / Z T
             C< C RESET / C COMMIT / C BEGIN
             S> own SET datestyle = 'SQL, DMY' / S
             S< 3 / 1 / 2 / S DateStyle SQL,DMY / C SET / 3 / 3 / Z T
             C< Z T
             C> Q rollback to s1
             S> Q rollback to s1
             S< E 3B001 no / S DateStyle ISO / Z E
             C< E 3B001 / Z E",
        );
    }

    /// What lexes its texts goes back with a transaction that fails, and the session's own can't be brought before that has ended: where nothing is left
    /// of it, it is begun anew.
    #[test]
    fn a_failed_transaction_is_lexed_by_the_sessions_settings() {
        let [chain, commit] = ["ROLLBACK AND CHAIN", "COMMIT AND CHAIN"].map(run_by_our_names);
        let begun = |first: &str, answers: &str, then: &str| {
            let mut story = Story::fresh(Access::ReadWrite, &[("standard_conforming_strings", "off")]);
            story.tell(&format!(
                "start
                 lease l leader
                 S> set standard_conforming_strings = off / S
                 S< T / D x / S standard_conforming_strings off / C SELECT 1 / Z I
                 C< S in_hot_standby off / S DateStyle ISO / S standard_conforming_strings off / K / Z I
                 return
                 C> Q listen x
                 lease l leader
                 S> Q listen x
                 S< C LISTEN / Z I
                 C< C LISTEN / Z I
                 C> Q reset all; commit; begin{first}
                 S> Q reset all; commit; begin{first}
                 S< C RESET / C COMMIT / C BEGIN{answers} / S standard_conforming_strings on / Z T
                 C< C RESET / C COMMIT / C BEGIN{answers}
                 S> own SET standard_conforming_strings = 'off' / S
                 S< 3 / 1 / 2 / S standard_conforming_strings off / C SET / 3 / 3 / Z T
                 C< Z T
                 C> Q bad
                 S> Q bad
                 S< E 42601 no / S standard_conforming_strings on / Z E
                 C< E 42601 / Z E
                 {then}"
            ));
        };
        let anew = format!(
            "S> {chain} / own SET standard_conforming_strings = 'off' / S / {commit} / Q SELECT pg_catalog.int4div(1, 0)
             S< 1 / 2 / C ROLLBACK / 3 / 3 / Z T
             S< 3 / 1 / 2 / S standard_conforming_strings off / C SET / 3 / 3 / Z T
             S< 1 / 2 / C COMMIT / 3 / 3 / Z T
             S< E 22012 no / Z E
             C> Q rollback
             S> Q rollback
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I"
        );
        begun("", "", &anew);
        // It may still be gone back to.
        begun("; savepoint a", " / C SAVEPOINT", "C> Q rollback to a\n S> Q rollback to a");
    }

    #[test]
    fn by_the_extended_protocol_it_is_what_the_server_reports_at_the_end() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> P - set datestyle = 'dmy' / B - - / E - / S
             lease l leader
             S> P - set datestyle = 'dmy' / B - - / E - / S
             S< 1 / 2 / C SET / S DateStyle ISO,DMY / Z I
             C< 1 / 2 / C SET / S DateStyle ISO,DMY / Z I
             return
             C> Q insert into t values (1)
             lease l leader
             S> Q insert into t values (1)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return
             caught up
             C> Q select 1
             lease r replica
             S> set datestyle = ISO,DMY / S / Q select 1
             S< T / D x / S DateStyle ISO,DMY / C SELECT 1 / Z I / T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn it_goes_back_with_its_transaction() {
        let begun = "C> Q begin
             C< C BEGIN / Z T
             C> Q set work_mem = '1MB'
             lease l leader
             S> P - begin / B - - / E - / Q set work_mem = '1MB'
             S< 1 / 2 / C BEGIN / C SET / Z T
             C< C SET / Z T\n";
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!("{begun} C> Q rollback\n S> Q rollback\n S< C ROLLBACK / Z I\n C< C ROLLBACK / Z I\n return"));
        assert!(story.session.settings.is_empty());
        let mut story = Story::on(Access::ReadWrite);
        let look = "S> look work_mem\n S< T / L v work_mem 1MB / C SELECT 1 / Z I";
        story.tell(&format!("{begun} C> Q commit\n S> Q commit\n S< C COMMIT / Z I\n C< C COMMIT / Z I\n {look}\n return"));
        assert!(story.session.settings.value("work_mem").is_some());
        // A transaction that failed says ROLLBACK to COMMIT.
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!(
            "{begun} C> Q insert into t values (1)\n S> Q insert into t values (1)\n S< E 23505 no / Z E\n C< E 23505 / Z E
             C> Q commit\n S> Q commit\n S< C ROLLBACK / Z I\n C< C ROLLBACK / Z I\n return"
        ));
        assert!(story.session.settings.is_empty());
        // With AND CHAIN it is the chained transaction's start that later ones go back to.
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!(
            "{begun} C> Q commit and chain\n S> Q commit and chain\n S< C COMMIT / Z T\n C< C COMMIT / Z T
             C> Q rollback\n S> Q rollback\n S< C ROLLBACK / Z I\n C< C ROLLBACK / Z I\n {look}\n return"
        ));
        assert!(story.session.settings.value("work_mem").is_some());
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!(
            "{begun} C> Q rollback and chain\n S> Q rollback and chain\n S< C ROLLBACK / Z T\n C< C ROLLBACK / Z T
             C> Q commit\n S> Q commit\n S< C COMMIT / Z I\n C< C COMMIT / Z I\n return"
        ));
        assert!(story.session.settings.is_empty());
    }

    #[test]
    fn it_goes_back_to_a_savepoint() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> Q begin
             C< C BEGIN / Z T
             C> Q savepoint a
             lease l leader
             S> P - begin / B - - / E - / Q savepoint a
             S< 1 / 2 / C BEGIN / C SAVEPOINT / Z T
             C< C SAVEPOINT / Z T
             C> Q set work_mem = '1MB'
             S> Q set work_mem = '1MB'
             S< C SET / Z T
             C< C SET / Z T
             C> Q rollback to a
             S> Q rollback to a
             S< C ROLLBACK / Z T
             C< C ROLLBACK / Z T
             C> Q commit
             S> Q commit
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return",
        );
        assert!(story.session.settings.is_empty() && story.session.pins().is_empty());
    }

    /// The savepoint from before the first change goes with all that came behind it: the one of its name is another one then.
    #[test]
    fn a_savepoint_that_is_released_takes_later_ones_with_it() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(BEGUN);
        for (text, tag) in [
            ("savepoint s", "SAVEPOINT"),
            ("savepoint x", "SAVEPOINT"),
            ("set datestyle = 'dmy'", "SET"),
            ("savepoint s", "SAVEPOINT"),
            ("release x", "RELEASE"),
            ("rollback to s", "ROLLBACK"),
        ] {
            story.tell(&format!("C> Q {text}\n S> Q {text}\n S< C {tag} / Z T\n C< C {tag} / Z T"));
        }
        assert!(story.session.settings.is_empty());
    }

    #[test]
    fn an_implicit_transaction_that_fails_takes_it_back() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> Q set datestyle = 'dmy'; insert into t values (1)
             lease l leader
             S> Q set datestyle = 'dmy'; insert into t values (1)
             S< C SET / E 23505 no / Z I
             C< C SET / E 23505 / Z I
             return",
        );
        assert!(story.session.settings.is_empty() && story.session.pins().is_empty());
    }

    #[test]
    fn set_local_leaves_no_trace() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> Q begin
             C< C BEGIN / Z T
             C> Q set local datestyle = 'dmy'
             lease l leader
             S> P - begin / B - - / E - / Q set local datestyle = 'dmy'
             S< 1 / 2 / C BEGIN / C SET / S DateStyle ISO,DMY / Z T
             C< C SET / S DateStyle ISO,DMY / Z T
             C> Q commit
             S> Q commit
             S< C COMMIT / S DateStyle ISO / Z I
             C< C COMMIT / S DateStyle ISO / Z I
             return",
        );
        assert!(story.session.settings.is_empty());
    }

    /// A session whose startup packet has half a DateStyle.
    fn begun_with_dmy() -> Story {
        let mut story = Story::fresh(Access::ReadWrite, &[("datestyle", "dmy")]);
        story.tell(
            "start
             lease l leader
             S> set datestyle = dmy / S
             S< S DateStyle ISO,DMY / C SELECT 1 / Z I
             C< S in_hot_standby off / S DateStyle ISO,DMY / K / Z I
             return",
        );
        story
    }

    #[test]
    fn reset_goes_back_to_the_sessions_own_start() {
        let mut story = begun_with_dmy();
        story.tell(
            "C> Q set datestyle = 'ymd'
             lease l leader
             S> Q set datestyle = 'ymd'
             S< C SET / S DateStyle ISO,YMD / Z I
             C< C SET / S DateStyle ISO,YMD / Z I
             return
             C> Q reset all / Q begin
             lease l leader
             S> Q reset all
             S< C RESET / S DateStyle ISO / Z I
             C< C RESET
             S> set datestyle = dmy / S
             S< S DateStyle ISO,DMY / C SELECT 1 / Z I
             C< S DateStyle ISO,DMY / Z I
             return
             C< C BEGIN / Z T",
        );
    }

    #[test]
    fn what_goes_back_to_the_sessions_own_start_and_sees_it_runs_where_that_is_the_servers() {
        let mut story = begun_with_dmy();
        story.tell(
            "C> Q reset all; select 1
             lease l leader
             S> Q reset all; select 1
             S< S DateStyle ISO,DMY / C RESET / T / D 1 / C SELECT 1 / Z I
             C< C RESET / T / D 1 / C SELECT 1 / Z I
             return",
        );
        assert!(!story.keeps("l", ServerRole::Leader));
    }

    /// EXECUTE runs what the protocol has prepared by that name.
    #[test]
    fn what_is_reset_by_a_name_goes_back_to_the_sessions_own_start() {
        let [mark, back, release] =
            ["SAVEPOINT switchyard_names", "ROLLBACK TO switchyard_names", "RELEASE switchyard_names"].map(run_by_our_names);
        let mut story = begun_with_dmy();
        story.tell(&format!(
            "C> P w reset all / S
             lease l leader
             S> P sy1 reset all / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> Q listen x
             lease l leader
             S> Q listen x
             S< C LISTEN / Z I
             C< C LISTEN / Z I
             C> Q begin
             S> Q begin
             S< C BEGIN / Z T
             C< C BEGIN / Z T
             C> Q execute w
             S> C S sy1 / {mark} / P w reset all / S / {back} / {release} / Q execute w
             S< 3 / 1 / 2 / C SAVEPOINT / 3 / 3 / Z T / 1 / Z T / 1 / 2 / C ROLLBACK / 3 / 3 / Z T / 1 / 2 / C RELEASE / 3 / 3 / Z T
             S< S DateStyle ISO / C RESET / Z T
             C< C RESET
             S> own SET datestyle = 'dmy' / S
             S< 3 / 1 / 2 / S DateStyle ISO,DMY / C SET / 3 / 3 / Z T
             C< Z T"
        ));
    }

    /// What was brought within the transaction goes with it.
    #[test]
    fn what_takes_brought_settings_back_is_answered_before_more_is_sent() {
        let mut story = begun_with_dmy();
        story.tell(
            "C> Q listen x
             lease l leader
             S> Q listen x
             S< C LISTEN / Z I
             C< C LISTEN / Z I
             C> Q begin; reset all; commit; begin
             S> Q begin; reset all; commit; begin
             S< C BEGIN / S DateStyle ISO / C RESET / C COMMIT / C BEGIN / Z T
             C< C BEGIN / C RESET / C COMMIT / C BEGIN
             S> own SET datestyle = 'dmy' / S
             S< 3 / 1 / 2 / S DateStyle ISO,DMY / C SET / 3 / 3 / Z T
             C< Z T
             C> Q rollback / Q select 1
             S> Q rollback
             S< S DateStyle ISO / C ROLLBACK / Z I
             C< C ROLLBACK
             S> set datestyle = dmy / S
             S< S DateStyle ISO,DMY / C SELECT 1 / Z I
             C< Z I
             S> Q select 1",
        );
    }

    /// The segment goes on behind it with a transaction that fails: no query of ours could come before its end.
    #[test]
    fn what_a_discarded_session_lacks_is_brought_before_its_segment_goes_on() {
        let mut story = begun_with_dmy();
        story.tell(
            "C> Q listen x
             lease l leader
             S> Q listen x
             S< C LISTEN / Z I
             C< C LISTEN / Z I
             C> P - discard all / B - - / E - / P - begin / B - - / E - / P - bad / S / S
             S> P - discard all / B - - / E - / H
             S< 1 / 2 / S DateStyle ISO / C DISCARD ALL
             C< 1 / 2 / C DISCARD ALL
             S> set datestyle = dmy / S / P - begin / B - - / E - / P - bad / S / S
             S< S DateStyle ISO,DMY / C SELECT 1 / Z I / 1 / 2 / C BEGIN / E 42601 no / Z E / Z E
             C< 1 / 2 / C BEGIN / E 42601 / Z E / Z E
             C> Q rollback
             S> Q rollback
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return",
        );
    }

    /// What comes behind it in its segment is read under the session's settings.
    #[test]
    fn what_goes_back_in_a_segment_is_brought_before_that_goes_on() {
        let pinned = "C> Q listen x
             lease l leader
             S> Q listen x
             S< C LISTEN / Z I
             C< C LISTEN / Z I
             C> P - reset datestyle / B - - / E - / P - select 1 / B - - / E - / S
             S> P - reset datestyle / B - - / E - / H
             S< 1 / 2 / C RESET
             C< 1 / 2 / C RESET
             S> own SET datestyle = 'dmy' / P - select 1 / B - - / E - / S";
        begun_with_dmy().tell(&format!(
            "{pinned}
             S< 3 / 1 / 2 / C SET / 3 / 3 / 1 / 2 / D 1 / C SELECT 1 / Z I
             C< 1 / 2 / D 1 / C SELECT 1 / Z I"
        ));
        // Both are undone.
        begun_with_dmy().tell(&format!(
            "{pinned}
             S< 3 / 1 / 2 / C SET / 3 / 3 / E 22012 no / Z I
             C< E 22012 / Z I
             C> Q select 2
             S> Q select 2"
        ));
    }

    /// Nor is the connection within a transaction any more that a client was told of before the segment.
    #[test]
    fn what_is_discarded_behind_a_commit_is_brought_outside_of_its_transaction() {
        let mut story = begun_with_dmy();
        story.tell(
            "C> Q begin / Q listen x
             C< C BEGIN / Z T
             lease l leader
             S> P - begin / B - - / E - / Q listen x
             S< 1 / 2 / C BEGIN / C LISTEN / Z T
             C< C LISTEN / Z T
             C> P - commit / B - - / E - / P - discard all / B - - / E - / P - select 1 / B - - / E - / S
             S> P - commit / B - - / E - / P - discard all / B - - / E - / H
             S< 1 / 2 / C COMMIT / 1 / 2 / S DateStyle ISO / C DISCARD ALL
             C< 1 / 2 / C COMMIT / 1 / 2 / C DISCARD ALL
             S> set datestyle = dmy / S / P - select 1 / B - - / E - / S
             S< S DateStyle ISO,DMY / C SELECT 1 / Z I / 1 / 2 / D 1 / C SELECT 1 / Z I
             C< 1 / 2 / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn what_must_be_answered_first_is_waited_for_whatever_is_answered_before_it() {
        Story::run(&format!(
            "{BEGUN}
             C> Q select 1 / Q discard all / Q select 2
             S> Q select 1 / Q discard all
             S< T / D 1 / C SELECT 1 / Z T
             C< T / D 1 / C SELECT 1 / Z T
             S< E 25001 no / Z E
             C< E 25001 / Z E
             S> Q select 2
             S< E 25P02 no / Z E
             C< E 25P02 / Z E"
        ));
    }

    #[test]
    fn discard_all_unpins_and_forgets() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> P s select 1 / S
             lease r replica
             S> P sy1 select 1 / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> Q listen x
             lease l leader
             S> Q listen x
             S< C LISTEN / Z I
             C< C LISTEN / Z I
             C> Q discard all
             S> Q discard all
             S< C DISCARD ALL / Z I
             C< C DISCARD ALL / Z I
             return",
        );
        assert!(story.session.pins() == Pins::default() && story.session.statements.is_empty());
    }

    /// With rights that a function or a role had, and the next session hasn't got.
    #[test]
    fn what_the_next_session_may_not_take_back_closes_its_connection() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> Q set session_replication_role = replica
             lease l leader
             S> Q set session_replication_role = replica
             S< C SET / Z I
             C< C SET / Z I
             S> look at all session_replication_role
             S< T / L s session_replication_role replica / C SELECT 1 / Z I
             return",
        );
        // Another one comes.
        story.session.settings = story.session.startup.clone();
        story.tell(
            "C> Q insert into t values (1)
             lease l leader
             S> set session_replication_role = null / S
             S< E 42501 denied / Z I
             return
             lease l leader
             S> Q insert into t values (1)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return",
        );
    }

    #[test]
    fn what_the_session_may_not_set_itself_keeps_its_connection() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> Q set session_replication_role = replica
             lease l leader
             S> Q set session_replication_role = replica
             S< C SET / Z I
             C< C SET / Z I
             S> look at all session_replication_role
             S< T / L x session_replication_role replica / C SELECT 1 / Z I",
        );
        assert!(story.session.pins().has(crate::sql::PinReason::SettingOutOfSight));
    }

    #[test]
    fn a_replica_without_what_a_setting_names_is_passed_by() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> Q set default_tablespace = 'new'
             lease l leader
             S> Q set default_tablespace = 'new'
             S< C SET / Z I
             C< C SET / Z I
             S> look at all default_tablespace
             S< T / L s default_tablespace new / C SELECT 1 / Z I
             return
             caught up
             C> Q select 1
             lease r replica
             S> set default_tablespace = new / S
             S< 1 / E 42704 unknown / Z I
             return
             lease l leader
             S> Q select 1
             S< T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn a_replica_connection_whose_protection_was_changed_is_nobody_elses() {
        let mut story = Story::on(Access::ReadOnly);
        story.rig.cluster(Some(("l", 1)), &["r1"]);
        story.tell(
            "C> Q set default_transaction_read_only = off
             lease r1 replica
             S> Q set default_transaction_read_only = off
             S< C SET / S default_transaction_read_only off / Z I
             C< C SET / S default_transaction_read_only off / Z I
             return",
        );
        assert!(!story.keeps("r1", ServerRole::Replica));
    }
}

mod out_of_sight {
    use super::*;
    use crate::sql::catalog::{NameSuspicion, RelationFact, Suspicion};
    use crate::sql::{Class, Facts, PinReason};

    /// A session whose database has a table of which a change may leave this.
    fn watched(suspicion: Suspicion) -> Story {
        let nothing = crate::marks::Touched::Nothing;
        let fact = RelationFact { schema: "public".into(), class: Class::Read, rule: "table", reads: nothing.clone(), writes: nothing };
        let changed = NameSuspicion { changed: suspicion, ..NameSuspicion::default() };
        let mut story = Story::on(Access::ReadWrite);
        story.rig.know(Facts::builder(1).relation("watched", fact).suspicion("watched", changed).complete().build());
        story.rig.judge.looks = true;
        story
    }

    #[test]
    fn a_connection_on_which_nobody_knows_what_was_set_stays_with_its_session() {
        for ends in ["C INSERT 0 1", "E 23505 no"] {
            let told = ends.trim_end_matches(" no");
            let mut story = watched(Suspicion::sets_unknown("set_config"));
            story.tell(&format!(
                "C> Q insert into watched values (1)
                 lease l leader
                 S> Q insert into watched values (1)
                 S< {ends} / Z I
                 C< {told} / Z I
                 C> Q discard all
                 S> Q discard all
                 S< C DISCARD ALL / Z I
                 C< C DISCARD ALL / Z I"
            ));
            assert!(story.session.pins().has(PinReason::UserCode), "{ends}");
            // One that may run as it is planned.
            let mut story = watched(Suspicion::sets_unknown("set_config"));
            story.tell(
                "C> P - insert into watched values (1) / B - - / S
                 lease l leader
                 S> P - insert into watched values (1) / B - - / S
                 S< 1 / 2 / Z I
                 C< 1 / 2 / Z I",
            );
            assert!(story.session.pins().has(PinReason::UserCode));
        }
    }

    #[test]
    fn a_connection_on_which_names_are_known_is_looked_at_and_given_back() {
        let mut story = watched(Suspicion::leaves("set_config"));
        story.tell(
            "C> Q insert into watched values (1)
             lease l leader
             S> Q insert into watched values (1)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             S> look at all
             S< T / L r none none / C SELECT 1 / Z I
             return",
        );
        assert!(story.session.pins().is_empty());
    }

    /// The pins of a session that has prepared something by SQL, used it (behind a change of the facts, if they are told), and closed it.
    fn prepared(suspicion: Suspicion, prepare: &str, facts: Option<Facts>, uses: &str, then: &str) -> Pins {
        let mut story = watched(suspicion);
        story.tell(&format!(
            "C> Q prepare p as {prepare}
             lease l leader
             S> Q prepare p as {prepare}
             S< C PREPARE / Z I
             C< C PREPARE / Z I"
        ));
        facts.into_iter().for_each(|facts| story.rig.know(facts));
        story.tell(&format!(
            "{uses}
             C> Q deallocate p
             S> Q deallocate p
             S< C DEALLOCATE / Z I
             C< C DEALLOCATE / Z I
             {then}"
        ));
        story.session.pins()
    }

    fn executed(suspicion: Suspicion, prepare: &str, facts: Option<Facts>, execute: &str, then: &str) -> Pins {
        let uses = format!(
            "C> Q {execute}
             S> S / Q {execute}
             S< Z I / C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I"
        );
        prepared(suspicion, prepare, facts, &uses, then)
    }

    const LOOK_AND_RETURN: &str = "S> look at all
        S< T / L r none none / C SELECT 1 / Z I
        return";

    #[test]
    fn a_connection_on_which_sql_has_executed_what_its_session_knows_is_looked_at_and_given_back() {
        let leaves = Suspicion::leaves("set_config");
        let insert = "insert into watched values ($1)";
        for execute in ["execute p (1)", "explain analyze execute p (1)", "create table t as execute p (1)"] {
            assert!(executed(leaves, insert, None, execute, LOOK_AND_RETURN).is_empty(), "{execute}");
        }
        // What it would set is known to nobody, or no look would find it.
        let others = || Some(Facts::builder(2).complete().build());
        for (suspicion, prepare, facts, execute) in [
            (Suspicion::sets_unknown("set_config"), insert, None, "execute p (1)"),
            (leaves, insert, others(), "execute p (1)"),
            (leaves, "select setseed($1)", None, "execute p (1)"),
            (leaves, "select set_config($1, '5', false)", None, "execute p ('my.x')"),
        ] {
            assert!(executed(suspicion, prepare, facts, execute, "").has(PinReason::UserCode), "{prepare}: {execute}");
        }
        for (execute, reason) in [
            ("execute p (setseed(0.5)::text::int)", PinReason::Setseed),
            ("execute p (set_config('my.' || 'x', '5', false)::int)", PinReason::SettingOutOfSight),
        ] {
            assert!(executed(leaves, insert, None, execute, "").has(reason), "{execute}");
        }
    }

    #[test]
    fn what_sql_prepares_and_executes_in_one_string_is_known() {
        for (query, pinned) in [("select 1", false), ("select setseed(0.5)", true)] {
            let mut story = watched(Suspicion::leaves("set_config"));
            let string = format!("prepare p as {query}; execute p; deallocate p");
            story.tell(&format!(
                "C> Q {string}
                 lease l leader
                 S> S / Q {string}
                 S< Z I / C PREPARE / T / D 1 / C SELECT 1 / C DEALLOCATE / Z I
                 C< C PREPARE / T / D 1 / C SELECT 1 / C DEALLOCATE / Z I
                 {}",
                if pinned { "" } else { LOOK_AND_RETURN }
            ));
            assert_eq!(story.session.pins().has(PinReason::UserCode), pinned, "{query}");
        }
    }

    /// Code may fetch from it later, when its name means another statement.
    #[test]
    fn a_named_portal_that_executes_by_a_name_keeps_its_connection() {
        let uses = "C> P - execute p / B c - / E c / S
             S> S / P - execute p / B c - / E c / S
             S< Z I / 1 / 2 / D 1 / C SELECT 1 / Z I
             C< 1 / 2 / D 1 / C SELECT 1 / Z I";
        assert!(prepared(Suspicion::leaves("set_config"), "select 1", None, uses, "").has(PinReason::UserCode));
    }

    /// Not what has its name by the time that the rest of its segment is taken in.
    #[test]
    fn what_sql_executes_of_the_protocols_is_what_had_the_name_there() {
        for (prepared, closes, pinned) in [
            ("select 1", "", false),
            ("select setseed(0.5)", "", true),
            ("select setseed(0.5)", "C S w / ", true),
            ("select 1", "C S w / ", true),
        ] {
            let mut story = watched(Suspicion::leaves("set_config"));
            let closed = if closes.is_empty() { "" } else { "3 / " };
            story.tell(&format!(
                "C> Q listen x
                 lease l leader
                 S> Q listen x
                 S< C LISTEN / Z I
                 C< C LISTEN / Z I
                 C> P w {prepared} / S
                 S> P sy1 {prepared} / S
                 S< 1 / Z I
                 C< 1 / Z I
                 C> P - execute w / B - - / E - / {closes}S
                 S> C S sy1 / P w {prepared} / S / P - execute w / B - - / E - / {closes}S
                 S< 3 / 1 / Z I / 1 / 2 / D 1 / C SELECT 1 / {closed}Z I
                 C< 1 / 2 / D 1 / C SELECT 1 / {closed}Z I
                 C> Q unlisten x
                 S> Q unlisten x
                 S< C UNLISTEN / Z I
                 C< C UNLISTEN / Z I
                 {}",
                if pinned { "" } else { LOOK_AND_RETURN }
            ));
            assert_eq!(story.session.pins().has(PinReason::UserCode), pinned, "{prepared}, {closes}");
        }
    }

    #[test]
    fn what_sql_executes_and_is_missing_leaves_nothing() {
        let mut story = watched(Suspicion::leaves("set_config"));
        story.tell(&format!(
            "C> Q execute p
             lease l leader
             S> S / Q execute p
             S< Z I / E 26000 no / Z I
             C< E 26000 / Z I
             {LOOK_AND_RETURN}"
        ));
        assert!(story.session.pins().is_empty());
    }

    /// A session that has used a temporary table, in a database whose code may set what nobody knows.
    fn used_a_temporary_table() -> Story {
        let mut story = watched(Suspicion::sets_unknown("set_config"));
        story.tell(
            "C> Q create temp table t (i int)
             lease l leader
             S> Q create temp table t (i int)
             S< C CREATE TABLE / Z I
             C< C CREATE TABLE / Z I
             C> Q insert into t values (1)
             S> Q insert into t values (1)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I",
        );
        story
    }

    const DROP_IT: &str = "C> Q drop table t
        S> Q drop table t
        S< C DROP TABLE / Z I
        C< C DROP TABLE / Z I";

    #[test]
    fn a_temporary_table_runs_what_was_named_when_it_was_made() {
        let mut story = used_a_temporary_table();
        story.tell(&format!(
            "{DROP_IT}
             S> look at all and what is younger
             S< T / L r none none / C SELECT 1 / Z I
             return"
        ));
        assert!(story.session.pins().is_empty());
        // What it called may be another function by now.
        let mut story = used_a_temporary_table();
        story.rig.know(Facts::builder(2).complete().build());
        story.tell(DROP_IT);
        assert!(story.session.pins().has(PinReason::UserCode));
    }

    #[test]
    fn a_relation_that_is_younger_than_the_facts_may_run_whatever_there_is() {
        for (seen, pinned) in [("", false), (" / L u - -", true)] {
            let mut story = watched(Suspicion::sets_unknown("set_config"));
            let returned = if pinned { "" } else { "return" };
            story.tell(&format!(
                "C> Q select * from younger
                 lease l leader
                 S> Q select * from younger
                 S< E 42P01 no / Z I
                 C< E 42P01 / Z I
                 S> look at all and what is younger
                 S< T / L r none none{seen} / C SELECT 1 / Z I
                 {returned}"
            ));
            assert_eq!(story.session.pins().has(PinReason::UserCode), pinned);
        }
    }

    /// A session that has read, on a replica, what may leave something, and whose connection is looked at.
    fn read_on_a_replica(access: Access) -> Story {
        let nothing = crate::marks::Touched::Nothing;
        let fact = RelationFact { schema: "public".into(), class: Class::Read, rule: "view", reads: nothing.clone(), writes: nothing };
        let used = NameSuspicion { used: Suspicion::leaves("set_config"), ..NameSuspicion::default() };
        let mut story = Story::on(access);
        story.rig.know(Facts::builder(1).relation("sets", fact).suspicion("sets", used).complete().build());
        story.rig.judge.looks = true;
        story.tell(
            "C> Q select * from sets
             lease r replica
             S> Q select * from sets
             S< T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             S> look at all",
        );
        story
    }

    /// A lagging standby cancels whatever is in recovery's way: what is canceled thrice isn't canceled for ever.
    #[test]
    fn a_look_that_recovery_cancels_is_made_again_until_it_succeeds() {
        for (access, sqlstate) in [(Access::ReadWrite, "40001"), (Access::ReadOnly, "40001"), (Access::ReadOnly, "40P01")] {
            let mut story = read_on_a_replica(access);
            for _ in 0..3 {
                story.tell(&format!("S< T / E {sqlstate} conflict with recovery / Z I\n S> look at all"));
            }
            for pause_ms in [10, 20, 40] {
                story.tell(&format!(
                    "S< E {sqlstate} conflict with recovery / Z I
                     S> Q SELECT pg_catalog.pg_sleep({pause_ms}e-3) / look at all
                     S< T / E {sqlstate} conflict with recovery / Z I"
                ));
            }
            // What the client has sent meanwhile waits.
            let then = if access == Access::ReadWrite { "l leader" } else { "r replica" };
            story.tell(&format!(
                "C> Q insert into t values (1)
                 S< T / L r none none / C SELECT 1 / Z I
                 return
                 lease {then}
                 S> Q insert into t values (1)"
            ));
            assert!(story.session.pins().is_empty(), "{access:?}");
        }
    }

    /// What cancels it may be the limit that the session has set, which comes back as it was.
    #[test]
    fn a_look_that_is_canceled_is_made_again_without_a_time_limit() {
        let begin = "Q BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = 0";
        let end = "S> look at all / look the limit";
        let lifted = end.replace("S> ", &format!("S> {begin} / "));
        let done =
            "S< C BEGIN / C SET / Z T / T / L r none none / C SELECT 1 / Z T / C COMMIT / T / L s statement_timeout 1ms / C SELECT 1 / Z I";
        let mut story = read_on_a_replica(Access::ReadWrite);
        story.tell(&format!("S< E 57014 canceling statement due to statement timeout / Z I\n {lifted}\n {done}\n return"));
        assert!(story.session.pins().is_empty());
        let limit = story.session.settings.value("statement_timeout");
        assert!(matches!(limit, Some(crate::session::Value::Known(limit)) if **limit == *b"1ms"), "{limit:?}");
        // The limit may come in the way of lifting it, too: whatever has failed of a look, it is the first error that tells.
        let mut story = read_on_a_replica(Access::ReadWrite);
        story.tell(&format!(
            "S< E 57014 no / Z I
             {lifted}
             S< C BEGIN / E 57014 no / Z E / E 25P02 no / Z E / C ROLLBACK / T / L s statement_timeout 1ms / C SELECT 1 / Z I
             {lifted}
             S< C BEGIN / C SET / Z T / E 40001 no / Z E / C ROLLBACK / T / L s statement_timeout 1ms / C SELECT 1 / Z I
             {lifted}
             S< C BEGIN / C SET / Z T / E 40001 no / Z E / C ROLLBACK / T / L s statement_timeout 1ms / C SELECT 1 / Z I
             S> {begin} / Q SELECT pg_catalog.pg_sleep(10e-3) / Q COMMIT / {}
             S< C BEGIN / C SET / Z T / T / C SELECT 1 / Z T / C COMMIT / Z I
             {done}
             return",
            lifted.trim_start_matches("S> ")
        ));
        assert!(story.session.pins().is_empty());
    }

    #[test]
    fn a_look_is_not_made_again_for_ever() {
        // Each time, for a reason that passes.
        let mut story = read_on_a_replica(Access::ReadOnly);
        let mut pauses_ms = Vec::new();
        while story.session.pins().is_empty() {
            assert!(pauses_ms.len() < 40, "it ends");
            let slept = if pauses_ms.last().is_some_and(|pause| *pause > 0) { "T / C SELECT 1 / Z I / " } else { "" };
            story.answers(format!("{slept}E 40001 no / Z I").split(" / ").flat_map(text::server).collect());
            let sent = text::to_server(&std::mem::take(&mut story.work.to_server));
            let pause = sent.first().and_then(|sent| sent.split_once("pg_sleep(")?.1.strip_suffix("e-3)")?.parse::<u64>().ok());
            pauses_ms.push(pause.unwrap_or(0));
        }
        assert!(story.session.pins().has(PinReason::SettingOutOfSight));
        assert_eq!(pauses_ms[..6], [0, 0, 0, 10, 20, 40]);
        assert!((20_000..30_000).contains(&pauses_ms.iter().sum::<u64>()), "{pauses_ms:?}");
        // For one that doesn't.
        let mut story = read_on_a_replica(Access::ReadOnly);
        for _ in 0..3 {
            story.tell("S< E 42501 no / Z I\n S> look at all");
        }
        story.tell("S< E 42501 no / Z I");
        assert!(story.session.pins().has(PinReason::SettingOutOfSight));
    }

    #[test]
    fn what_ddl_may_just_have_changed_is_read_on_the_leader() {
        let nothing = crate::marks::Touched::Nothing;
        let fact = RelationFact { schema: "public".into(), class: Class::Read, rule: "table", reads: nothing.clone(), writes: nothing };
        let facts = || Facts::builder(1).relation("t", fact.clone()).complete().build();
        let story = |facts: Facts| {
            let mut story = Story::on(Access::ReadWrite);
            story.rig.know(facts);
            story.rig.judge.looks = true;
            story
        };
        let ask = |on: &str, sql: &str| format!("C> Q {sql}\n lease {on}\n S> Q {sql}");
        story(facts().in_doubt(2)).tell(&ask("l leader", "select * from t"));
        story(facts().in_doubt(2)).tell(&ask("l leader", "begin read only; select * from t; commit"));
        // It names nothing that DDL changes.
        story(facts().in_doubt(2)).tell(&ask("r replica", "select 1"));
        // Somebody has promised.
        story(facts().in_doubt(2)).tell(&ask("r replica", "/* switchyard: replica */ select * from t"));
        // Nobody has looked for a while, or knows anything at all: it may last.
        story(facts().unwatched(2)).tell(&ask("r replica", "select * from t"));
        story(Facts::empty()).tell(&ask("r replica", "select * from t"));
        let mut led_by_nobody = story(facts().in_doubt(2));
        led_by_nobody.tell("cluster none: r1 r2");
        led_by_nobody.tell(&ask("r replica", "select * from t"));
    }

    /// Nobody else sees that: facts go on as they are.
    #[test]
    fn what_drops_a_sessions_own_temporary_tables_is_no_ddl_for_others() {
        let told = |drop: &str| {
            let mut story = Story::on(Access::ReadWrite);
            story.tell(&format!(
                "C> Q create temp table a (i int)
                 lease l leader
                 S> Q create temp table a (i int)
                 S< C CREATE TABLE / Z I
                 C< C CREATE TABLE / Z I
                 C> Q {drop}
                 S> Q {drop}"
            ));
            story.rig.judge.ran.borrow().contains(&"DROP TABLE")
        };
        assert!(!told("drop table a") && !told("drop table if exists pg_temp.a cascade"));
        for drop in ["drop table b", "drop table a, b", "drop table public.a", "drop table a, public.b", "drop table a; drop table c"] {
            assert!(told(drop), "{drop}");
        }
    }

    /// On a connection where others have set custom settings a session that keeps it would find '' from then on, where there was nothing.
    #[test]
    fn what_may_keep_its_connection_asks_for_one_without_others_custom_settings() {
        let asks = |sql: &str| {
            let mut story = Story::on(Access::ReadOnly);
            story.rig.judge.looks = true;
            story.work.client_in.extend(text::client(&format!("Q {sql}")));
            story.go_on();
            story.session.known_custom_settings(&story.rig.policy, &story.work).is_some()
        };
        for sql in ["set role grp", "set session authorization grp", "select pg_advisory_lock(1)", "prepare s as select 1"] {
            assert!(asks(sql), "{sql}");
        }
        for sql in ["set work_mem = '1MB'", "reset work_mem", "reset all"] {
            assert!(!asks(sql), "{sql}");
        }
    }

    /// SHOW looks for its parameter when it is analysed, for what it gives.
    #[test]
    fn what_is_analysed_by_a_custom_setting_asks_for_a_connection_without_others() {
        let asks = |messages: &str| {
            let mut story = Story::on(Access::ReadOnly);
            story.rig.judge.looks = true;
            for message in messages.split(" / ") {
                story.work.client_in.extend(text::client(message));
            }
            story.go_on();
            story.session.known_custom_settings(&story.rig.policy, &story.work).is_some()
        };
        assert!(asks("P - show app.x / S"));
        // Code may run its portal, and the session keeps its connection from then on.
        assert!(asks("P - select lastval() / B p - / S"));
        assert!(!asks("P - select 1 / S") && !asks("P - select lastval() / S"));
    }

    /// What else the session will do on its connection isn't known.
    #[test]
    fn a_session_that_keeps_its_connection_asks_for_one_without_others_custom_settings() {
        for session_mode in [true, false] {
            let mut story = Story::on(Access::ReadWrite);
            (story.rig.judge.looks, story.rig.policy.session_mode) = (true, session_mode);
            story.work.client_in.extend(text::client("Q select 1"));
            story.go_on();
            assert_eq!(story.session.known_custom_settings(&story.rig.policy, &story.work).is_some(), session_mode);
        }
    }

    /// PostgreSQL commits a string before it answers the last statement: that has run, and its custom setting's name stays known there.
    #[test]
    fn the_last_statement_of_a_string_may_have_run_though_it_is_not_answered() {
        let fails = |text: &str, answered: &str, then: &str| {
            let mut story = Story::on(Access::ReadWrite);
            story.tell(&format!(
                "C> Q {text}\n lease l leader\n S> Q {text}\n S< {answered}E 23505 twice / Z I\n C< {answered}E 23505 / Z I\n {then}"
            ));
        };
        fails("delete from t; set local app.x = '1'", "C DELETE 1 / ", "S> look at all app.x");
        fails("delete from t; reset app.x", "C DELETE 1 / ", "S> look at all app.x");
        // Nothing of it is left.
        fails("delete from t; set local work_mem = '1MB'", "C DELETE 1 / ", "return");
        // It hasn't been reached, or was alone.
        fails("delete from t; set local app.x = '1'; delete from t", "", "return");
        fails("set local app.x = '1'", "", "return");
        // It wasn't alone: what came before it in its segment may be what can't be committed.
        Story::run(
            "C> P - delete from t / B - - / E - / H
             lease l leader
             S> P - delete from t / B - - / E - / H
             S< 1 / 2 / C DELETE 1
             C< 1 / 2 / C DELETE 1
             C> Q set app.x = '1'
             S> Q set app.x = '1'
             S< E 23505 twice / Z I
             C< E 23505 / Z I
             S> look at all app.x",
        );
    }

    /// '' is what it finds from then on anyway, unless what would set it is skipped.
    #[test]
    fn what_sets_one_itself_takes_a_connection_on_which_others_have() {
        let knows = |messages: &str| {
            let mut story = Story::on(Access::ReadWrite);
            for message in messages.split(" / ") {
                story.work.client_in.extend(text::client(message));
            }
            story.go_on();
            let mut names = CustomNames::default();
            names.add(&"app.x".into());
            story.session.known_custom_settings(&story.rig.policy, &story.work).is_some_and(|known| names.are_among(&known))
        };
        for messages in ["Q begin / Q set app.x = '1'", "Q begin / P a set app.x = '1' / B - a / D S a / E - / S"] {
            assert!(knows(messages), "{messages}");
        }
        let cursor = "Q begin / Q declare q cursor for select set_config('app.x', '1', false)";
        for messages in ["Q begin / Q select 1; set app.x = '1'", "Q begin / B - - / E - / P - set app.x = '1' / B - - / E - / S", cursor] {
            assert!(!knows(messages), "{messages}");
        }
    }

    /// A connection that nobody can look at stays its session's, and what waited for another one runs there.
    #[test]
    fn what_waits_for_another_connection_stays_where_nobody_can_look() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell("C> F 1\n lease l leader\n S> F");
        story.others_have_set("app.x");
        story.tell("C> E p / S\n S< V / Z I\n C< V / Z I\n S> E p / S");
        assert!(story.session.pins().has(PinReason::UserCode));
    }

    /// Nor does what comes behind it in a pipeline: the first of it may have been one that can't see them.
    #[test]
    fn what_may_see_others_custom_settings_waits_for_another_connection() {
        let begun = || {
            let mut story = Story::on(Access::ReadWrite);
            story.tell("C> Q insert into t values (1)\n lease l leader\n S> Q insert into t values (1)");
            story.others_have_set("app.x");
            story
        };
        begun().tell(
            "C> Q select 1
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return
             lease l leader
             S> Q select 1",
        );
        // Behind a transaction's beginning it is a part of that, on whatever connection.
        let mut story = Story::on(Access::ReadWrite);
        story.tell("C> P - begin / B - - / E - / S\n lease l leader\n S> P - begin / B - - / E - / S");
        story.others_have_set("app.x");
        story.tell("C> Q select 1\n S< 1 / 2 / C BEGIN / Z T\n C< 1 / 2 / C BEGIN / Z T\n S> Q select 1");
        // Lost meanwhile, it takes only what was sent there with it.
        begun().tell(
            "C> Q select 1
             lost
             C< E 08007 / Z I
             lease l leader
             S> Q select 1",
        );
    }

    #[test]
    fn nobody_knows_what_a_function_call_calls_but_for_large_objects() {
        for (oid, pinned) in [(2078, true), (2880, true), (0, true), (952, false), (957, false), (3172, false)] {
            let mut story = Story::on(Access::ReadWrite);
            story.tell(&format!(
                "C> F {oid}\n lease l leader\n S> F\n S< V x / Z I\n C< V x / Z I{}",
                if pinned { "" } else { "\n return" }
            ));
            assert_eq!(story.session.pins().has(PinReason::UserCode), pinned, "{oid}");
        }
    }
}

mod limits {
    use super::*;

    #[test]
    fn a_long_batch_goes_to_the_leader_undecided() {
        let mut story = Story::on(Access::ReadWrite);
        story.rig.policy.look_ahead_bytes = 40;
        story.tell(
            "C> P - select 1 / B - - / E -
             C> P - select 2
             lease l leader
             S> P - select 1 / B - - / E - / P - select 2
             C> B - - / E - / S
             S> B - - / E - / S
             S< 1 / 2 / D 1 / C SELECT 1 / 1 / 2 / D 2 / C SELECT 1 / Z I
             C< 1 / 2 / D 1 / C SELECT 1 / 1 / 2 / D 2 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn a_message_that_is_too_large_ends_the_session() {
        let mut story = Story::on(Access::ReadWrite);
        story.rig.policy.max_message_bytes = 20;
        story.tell("C> Q select 'a long message'\n C< FATAL 54000\n close");
    }

    #[test]
    fn a_client_that_reads_nothing_is_not_read_either() {
        let mut story = Story::on(Access::ReadWrite);
        for _ in 0..20_000 {
            story.work.client_in.extend(super::super::text::client("Q begin"));
            story.work.client_in.extend(super::super::text::client("Q commit"));
        }
        let Story { rig, session, work, .. } = &mut story;
        session.client_bytes(&rig.env(), work, None);
        assert!(work.to_client.len() < 80 * 1024 && !work.client_in.is_empty());
    }

    #[test]
    fn no_more_is_owed_than_fits() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell("C> Q insert into t values (0)\n lease l leader\n S> Q insert into t values (0)");
        for _ in 0..100_000 {
            story.work.client_in.extend(super::super::text::client("S"));
            story.work.to_server.clear();
        }
        let mut server = crate::session::ServerState::new("l".into(), ServerRole::Leader, crate::topology::Epoch(1), Default::default(), 1);
        let Story { rig, session, work, .. } = &mut story;
        while !work.to_server.is_empty() || work.owed.len() < 2 {
            work.to_server.clear();
            session.client_bytes(&rig.env(), work, Some(&mut server));
        }
        assert!(work.owed.len() <= 16 * 1024 && !work.client_in.is_empty());
    }
}

/// What a server's FATAL 57P01 proves (DESIGN, section 4).
mod last_words {
    use super::*;
    use crate::sql::catalog::{FunctionFact, RelationFact};
    use crate::sql::{Class, Facts};

    fn table(name: &str) -> RelationFact {
        let touched = Touched::relation(name);
        RelationFact { schema: "public".into(), class: Class::Read, rule: "table", reads: touched.clone(), writes: touched }
    }

    /// A database with a plain table `t`, a table `triggered`, and a volatile function `f`.
    fn facts() -> crate::sql::catalog::FactsBuilder {
        let f = FunctionFact {
            schema: "public".into(),
            class: Class::Write,
            rule: "volatile",
            hidden_by_builtin: false,
            one_argument: true,
            reads: Touched::Nothing,
        };
        Facts::builder(1)
            .relation("t", table("t"))
            .relation("triggered", table("triggered"))
            .acts_outside("triggered")
            .function("f", f)
            .complete()
    }

    fn run(text: &str) {
        let mut story = Story::on(Access::ReadWrite);
        story.rig.know(facts().build());
        story.tell(text);
    }

    /// A lone statement whose server says FATAL 57P01 instead of an answer isn't run again.
    fn is_unknown(facts: Facts, statement: &str) {
        let mut story = Story::on(Access::ReadWrite);
        story.rig.know(facts);
        story.tell(&format!(
            "C> Q {statement}
             lease l leader
             S> Q {statement}
             S< FATAL 57P01 terminating
             lost
             C< E 08007 / Z I"
        ));
    }

    #[test]
    fn a_lone_write_runs_again_on_the_next_leader() {
        run("C> Q insert into t values (1)
             lease l leader
             S> Q insert into t values (1)
             S< FATAL 57P01 terminating
             lost
             departure l
             cluster none: r1
             leaves
             hold
             cluster r1 2: l
             again
             lease r1 leader
             S> Q insert into t values (1)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return");
    }

    #[test]
    fn a_prepared_one_too_with_what_it_had_returned() {
        run("C> P s insert into t values (1) returning x / S
             lease l leader
             S> P sy1 insert into t values (1) returning x / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> B - s / D P - / E - / S
             lease l leader
             S> B - sy1 / D P - / E - / S
             S< 2 / T x / D 1
             S< FATAL 57P01 terminating
             lost
             departure l
             cluster none: r1
             leaves
             hold
             cluster r1 2: l
             again
             lease r1 leader
             S> P sy1 insert into t values (1) returning x / B - sy1 / D P - / E - / S
             S< 1 / 2 / T x / D 2 / C INSERT 0 1 / Z I
             C< 2 / T x / D 2 / C INSERT 0 1 / Z I
             return");
    }

    #[test]
    fn an_administrators_kill_is_told_as_it_is() {
        run("C> Q insert into t values (1)
             lease l leader
             S> Q insert into t values (1)
             S< FATAL 57P01 terminating
             lost
             departure l
             stays
             C< FATAL 57P01
             close");
        run("C> Q select 1
             lease r1 replica
             S> Q select 1
             S< FATAL 57P01 terminating
             lost
             departure r1
             stays
             C< FATAL 57P01
             close");
    }

    #[test]
    fn a_read_goes_elsewhere_where_the_server_goes() {
        run("C> Q select 1
             lease r1 replica
             S> Q select 1
             S< FATAL 57P01 terminating
             lost
             departure r1
             leaves
             lease r2 replica
             S> Q select 1
             S< T x / D 1 / C SELECT 1 / Z I
             C< T x / D 1 / C SELECT 1 / Z I
             return");
    }

    #[test]
    fn behind_a_completion_nothing_is_proven() {
        run("C> P - insert into t values (1) / B - - / E - / S
             lease l leader
             S> P - insert into t values (1) / B - - / E - / S
             S< 1 / 2 / C INSERT 0 1 / FATAL 57P01 terminating
             C< 1 / 2 / C INSERT 0 1
             lost
             C< E 08007 / Z I");
    }

    #[test]
    fn nor_by_another_code_a_mere_error_or_silence() {
        let lost = "lost
             C< E 08007 / Z I";
        for last in ["S< FATAL 57P02 crash", "S< FATAL 57P04 dropped", "S< N 57P01 terminating\nC< N 57P01", ""] {
            run(&format!("C> Q insert into t values (1)\nlease l leader\nS> Q insert into t values (1)\n{last}\n{lost}"));
        }
    }

    #[test]
    fn what_may_act_outside_or_commit_inside_is_unknown() {
        for statement in [
            "insert into triggered values (1)",
            "insert into t values (f(1))",
            "insert into younger values (1)",
            "update t set x = (select count(*) from triggered)",
            "with a as (insert into t values (1) returning x) select * from a",
            "call p()",
            "vacuum t",
            "create index concurrently on t (x)",
            "insert into t values (1); insert into t values (2)",
            "insert into t values (1); vacuum t",
            "commit prepared 'x'",
            "truncate t",
        ] {
            is_unknown(facts().build(), statement);
        }
        // Nothing known, or nothing for sure.
        is_unknown(Facts::empty(), "insert into t values (1)");
        is_unknown(facts().build().in_doubt(2), "insert into t values (1)");
        is_unknown(facts().bad_key_word_operator("operator").build(), "insert into t values (1)");
    }

    #[test]
    fn in_a_pipeline_it_is_unknown() {
        run("C> P - insert into t values (1) / B - - / E - / S / P - insert into t values (2) / B - - / E - / S
             lease l leader
             S> P - insert into t values (1) / B - - / E - / S / P - insert into t values (2) / B - - / E - / S
             S< 1 / 2 / FATAL 57P01 terminating
             C< 1 / 2
             lost
             C< E 08007 / Z I / E 08007 / Z I");
    }

    #[test]
    fn in_a_transaction_it_is_surely_rolled_back() {
        run("C> Q begin
             C< C BEGIN / Z T
             C> Q insert into t values (1)
             lease l leader
             S> P - begin / B - - / E - / Q insert into t values (1)
             S< 1 / 2 / C BEGIN / FATAL 57P01 terminating
             lost
             C< E 40001 / Z E");
    }

    #[test]
    fn so_is_a_transaction_whose_commit_wasnt_run() {
        let begun = "C> Q begin
             C< C BEGIN / Z T
             C> Q insert into t values (1)
             lease l leader
             S> P - begin / B - - / E - / Q insert into t values (1)
             S< 1 / 2 / C BEGIN / C INSERT 0 1 / Z T
             C< C INSERT 0 1 / Z T\n";
        let ends = "lost\n C< E 40001 / Z I\n C> Q insert into t values (2)\n lease l leader\n S> Q insert into t values (2)";
        run(&format!("{begun} C> Q commit\n S> Q commit\n S< FATAL 57P01 terminating\n {ends}"));
        run(&format!(
            "{begun} C> P - commit / B - - / E - / S\n S> P - commit / B - - / E - / S\n S< 1 / 2 / FATAL 57P01 terminating\n C< 1 / 2\n {ends}"
        ));
        // What one COMMIT of a string has made final, another one's loss doesn't undo.
        let string = "commit; begin; insert into t values (2); commit";
        run(&format!(
            "{begun} C> Q {string}\n S> Q {string}\n S< C COMMIT / FATAL 57P01 terminating\n C< C COMMIT\n lost\n C< E 08007 / Z I"
        ));
        for last in ["S< FATAL 57P02 crash\n", "S< N 57P01 canceling the wait\n C< N 57P01\n"] {
            run(&format!("{begun} C> Q commit\n S> Q commit\n {last} lost\n C< E 08007 / Z I"));
        }
    }

    #[test]
    fn servers_that_go_one_after_the_other_are_not_all_tried() {
        let once = "S> Q insert into t values (1)
             S< FATAL 57P01 terminating
             lost";
        run(&format!(
            "C> Q insert into t values (1)
             lease l leader
             {once}
             departure l
             leaves
             lease l leader
             {once}
             departure l
             leaves
             lease l leader
             {once}
             C< E 08007 / Z I"
        ));
    }

    #[test]
    fn a_write_that_is_canceled_meanwhile_is_over() {
        run("C> Q insert into t values (1)
             lease l leader
             S> Q insert into t values (1)
             S< FATAL 57P01 terminating
             lost
             departure l
             deny
             C< E 57P03 / Z I
             C> Q insert into t values (2)
             lease l leader
             S> Q insert into t values (2)
             lost
             C< E 08007 / Z I");
    }

    #[test]
    fn an_error_a_large_answer_and_a_notice_are_forwarded_as_they_come() {
        run("C> Q insert into t values (1) returning x
             lease l leader
             S> Q insert into t values (1) returning x
             S< T x / D 1
             S< E 23505 duplicate / Z I
             C< T x / D 1 / E 23505 / Z I
             return
             C> Q insert into t values (1) returning x
             lease l leader
             S> Q insert into t values (1) returning x
             S< T x / D 1
             S< N 00000 hello
             C< T x / D 1 / N 00000
             S< FATAL 57P01 terminating
             lost
             C< E 08007 / Z I");
        let large = "y".repeat(30_000);
        let mut story = Story::on(Access::ReadWrite);
        story.rig.know(facts().build());
        story.tell(
            "C> Q insert into t values (1) returning x
             lease l leader
             S> Q insert into t values (1) returning x
             S< T x",
        );
        for _ in 0..8 {
            story.tell(&format!("S< D {large}"));
        }
        let row = format!("D {large}");
        story.tell(&format!("S< D {large}\nC< T x / {}", [row.as_str(); 9].join(" / ")));
    }
}

mod waiting {
    use super::*;

    #[test]
    fn a_write_waits_for_a_leader() {
        Story::run(
            "cluster none: r1
             C> Q insert into t values (1)
             hold for a leader
             +1s
             again
             hold for a leader
             cluster l 2: r1
             again
             lease l leader
             S> Q insert into t values (1)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return",
        );
    }

    #[test]
    fn a_read_waits_for_whoever_comes_first() {
        Story::run(
            "cluster none:
             C> Q select 1
             hold for anybody
             cluster none: r1
             again
             lease r1 replica
             S> Q select 1
             S< T x / D 1 / C SELECT 1 / Z I
             C< T x / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn once_a_switchover_is_announced_only_what_has_begun_goes_on() {
        Story::run(&format!(
            "{BEGUN}
             switching
             C> Q insert into t values (2)
             S> Q insert into t values (2)
             S< C INSERT 0 1 / Z T
             C< C INSERT 0 1 / Z T
             C> Q commit
             S> Q commit
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return
             C> Q insert into t values (3)
             hold
             cluster r1 2: l
             again
             lease r1 leader
             S> Q insert into t values (3)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return"
        ));
    }

    #[test]
    fn a_lease_that_was_on_its_way_then_is_given_back_unused() {
        Story::run(
            "C> Q insert into t values (1)
             switching
             lease l leader
             return
             hold
             cluster r1 2: l
             again
             lease r1 leader
             S> Q insert into t values (1)
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I
             return",
        );
    }

    #[test]
    fn nor_does_anything_else_begin_on_the_leader_then() {
        Story::run(
            "switching
             C> Q set work_mem to '1MB'
             lease r replica
             S> Q set work_mem to '1MB'
             S< C SET / Z I
             C< C SET / Z I
             S> look work_mem
             S< T / L v work_mem 1MB / C SELECT 1 / Z I
             return",
        );
        Story::run_read_only(
            "cluster l 1:
             switching
             C> Q select 1
             hold
             cluster l 1:
             again
             lease l replica
             S> Q select 1
             S< T x / D 1 / C SELECT 1 / Z I
             C< T x / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn until_time_is_up() {
        Story::run(
            "cluster none: r1
             C> Q insert into t values (1)
             hold
             deny
             C< E 57P03 / Z I
             C> Q begin
             C< C BEGIN / Z T
             C> Q insert into t values (1)
             hold
             deny
             C< E 57P03 / Z E
             C> P - select 1 / B - - / E - / H
             lease r replica
             S> Q BEGIN / Q SELECT pg_catalog.int4div(1, 0) / P - select 1 / B - - / E - / H
             S< C BEGIN / Z T / E 22012 division by zero / Z E / E 25P02 aborted
             C< E 25P02
             C> S
             S> S
             S< Z E
             C< Z E
             C> Q rollback
             S> Q rollback
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return",
        );
    }

    #[test]
    fn or_until_it_is_canceled() {
        Story::run(
            "C> P - select 1 / B - - / E - / H
             lease l leader canceled
             C< E 57014
             C> S
             C< Z I",
        );
    }
}

mod read_only_port {
    use super::*;

    #[test]
    fn a_replica_says_itself_that_it_is_read_only() {
        Story::run_read_only(
            "C> Q insert into t values (1)
             lease r replica
             S> Q insert into t values (1)
             S< E 25006 read only / Z I
             C< E 25006 / Z I
             return",
        );
    }

    #[test]
    fn a_transaction_goes_on_elsewhere_when_its_replica_is_lost() {
        let begun = "C> Q begin
             C< C BEGIN / Z T
             C> Q select 1
             lease r1 replica
             S> P - begin / B - - / E - / Q select 1
             S< 1 / 2 / C BEGIN / T x / D 1 / C SELECT 1 / Z T
             C< T x / D 1 / C SELECT 1 / Z T
             C> Q select 2
             S> Q select 2
             S< T y / D 2";
        let again = "S> P - begin / B - - / E - / Q select 2
             S< 1 / 2 / C BEGIN / T y / D 2 / C SELECT 1 / Z T
             C< T y / D 2 / C SELECT 1 / Z T
             C> Q commit
             S> Q commit
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return";
        // At `eventual`, too, within one transaction nothing goes back in time.
        Story::run_read_only(&format!(
            "{begun}
 lost
 lease l replica
 {again}"
        ));
        Story::run_read_only(&format!(
            "{begun}
 caught up
 lost
 lease r2 replica
 {again}"
        ));
    }

    #[test]
    fn what_a_standby_refuses_of_a_transaction_is_refused_at_once() {
        Story::run_read_only(
            "C> Q begin read write
             lease r replica
             S> Q begin read write
             S< E 0A000 not during recovery / Z I
             C< E 0A000 / Z I
             return",
        );
    }

    #[test]
    fn the_leader_in_its_place_serves_reads_only() {
        Story::run_read_only(
            "cluster l 1:
             C> Q begin
             C< C BEGIN / Z T
             C> Q vacuum
             lease l replica
             S> P - begin / B - - / E - / Q refused by switchyard
             S< 1 / 2 / C BEGIN / E 42601 syntax error / Z E
             C< E 25006 / Z E
             C> Q select 1
             S> Q select 1
             S< E 25P02 aborted / Z E
             C< E 25P02 / Z E
             C> Q rollback
             S> Q rollback
             S< C ROLLBACK / Z I
             C< C ROLLBACK / Z I
             return
             C> P - notify n / B - - / E - / S
             lease l replica
             S> P - notify n / B - - / P switchyard refused by switchyard / S
             S< 1 / 2 / E 42601 syntax error / Z I
             C< 1 / 2 / E 25006 / Z I
             return",
        );
    }

    #[test]
    fn what_was_prepared_before_its_table_was_known_is_judged_anew_there() {
        use crate::sql::catalog::RelationFact;
        use crate::sql::{Class, Facts};
        let mut story = Story::on(Access::ReadOnly);
        story.rig.know(Facts::builder(1).complete().build());
        story.tell(
            "C> P s select x from t / S
             lease r1 replica
             S> P sy1 select x from t / S
             S< 1 / Z I
             C< 1 / Z I
             return
             cluster l 1:
             C> B - s / E - / S
             lease l replica
             S> P sy1 select x from t / B - sy1 / P switchyard refused by switchyard / S
             S< 1 / 2 / E 42601 syntax
             C< 2 / E 25006
             S< Z I
             C< Z I
             return",
        );
        let touched = Touched::relation("t");
        let table = RelationFact { schema: "public".into(), class: Class::Read, rule: "table", reads: touched.clone(), writes: touched };
        story.rig.know(Facts::builder(2).relation("t", table).complete().build());
        story.tell(
            "C> B - s / E - / S
             lease l replica
             S> B - sy1 / E - / S
             S< 2 / D 1 / C SELECT 1 / Z I
             C< 2 / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn a_conflict_with_recovery_is_asked_of_another() {
        Story::run_read_only(
            "C> Q select 1
             lease r replica
             S> Q select 1
             S< T / E 40001 conflict with recovery / Z I
             return
             lease r replica
             S> Q select 1
             S< T / D 1 / C SELECT 1 / Z I
             C< T / D 1 / C SELECT 1 / Z I
             return",
        );
    }

    #[test]
    fn without_fallback_nobody_serves_it() {
        let mut story = Story::on(Access::ReadOnly);
        story.rig.policy.fallback_to_leader = false;
        story.tell("cluster l 1:\n C> Q select 1\n C< E 57P03 / Z I");
        assert_eq!(story.session.status(), TxStatus::Idle);
    }
}

/// A library that another session has loaded owns `plpgsql.`: a SET that a connection of one's own would take.
mod a_name_that_is_somebody_elses {
    use super::*;

    const REFUSED: &str = "C> Q set plpgsql.x = 1
        lease l leader
        S> Q set plpgsql.x = 1
        S< E 42602 invalid configuration parameter name / Z I
        return
        lease l leader
        S> Q set plpgsql.x = 1\n";

    #[test]
    fn is_asked_of_a_connection_that_nobody_has_used() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&[REFUSED, "S< C SET / Z I\n C< C SET / Z I"].concat());
        // No other connection may take it.
        assert!(story.session.pins().has(PinReason::SettingOutOfSight));
        assert!(!story.work.needs_fresh());
        story.tell("C> Q select 1\n S> Q select 1\n S< T / C SELECT 0 / Z I\n C< T / C SELECT 0 / Z I");
    }

    #[test]
    fn is_an_error_there_too_where_it_is_the_servers_own() {
        let mut story = Story::on(Access::ReadWrite);
        let again = "S< E 42602 invalid configuration parameter name / Z I\n C< E 42602 / Z I\n return";
        story.tell(&[REFUSED, again].concat());
        assert!(story.session.pins().is_empty());
    }

    const CARRIED: &str = "C> Q set plpgsql.x = 1
        lease l leader
        S> Q set plpgsql.x = 1
        S< C SET / Z I
        C< C SET / Z I
        S> look plpgsql.x
        S< T / L v plpgsql.x 1 / C SELECT 1 / Z I
        return
        cluster l 2:
        C> Q insert into t select
        lease l leader
        S> set plpgsql.x = 1 / S\n";

    #[test]
    fn that_is_carried_is_waited_for_once_on_each_server() {
        Story::run(
            &[
                CARRIED,
                "S< 1 / 2 / C SELECT 1 / Z I
                 S> Q insert into t select
                 S< C INSERT 0 1 / Z I
                 C< C INSERT 0 1 / Z I
                 return",
            ]
            .concat(),
        );
    }

    #[test]
    fn that_is_carried_and_refused_is_asked_of_a_connection_that_nobody_has_used() {
        let mut story = Story::on(Access::ReadWrite);
        // The new leader's connection has been somebody else's.
        story.tell(CARRIED);
        story.used();
        story.tell(
            "S< E 42602 invalid configuration parameter name / Z I
             return
             lease l leader
             S> set plpgsql.x = 1 / S
             S< 1 / 2 / C SELECT 1 / Z I
             S> Q insert into t select
             S< C INSERT 0 1 / Z I
             C< C INSERT 0 1 / Z I",
        );
        assert!(story.session.pins().has(PinReason::SettingOutOfSight));
    }

    #[test]
    fn that_is_carried_and_refused_everywhere_is_an_error_and_the_session_goes_on() {
        Story::run(
            &[
                CARRIED,
                "S< E 42602 invalid configuration parameter name / Z I
                 C< E 42602 / Z I
                 return
                 C> Q reset plpgsql.x
                 lease l leader
                 S> set plpgsql.x = 1 / S
                 S< E 42602 invalid configuration parameter name / Z I
                 C< E 42602 / Z I
                 return",
            ]
            .concat(),
        );
    }
}

/// Behind an error in its segment a simple Query is skipped; else it destroys the unnamed statement: which of both isn't known before the answer.
#[test]
fn a_query_behind_a_segment_without_a_sync_waits_for_what_that_has_come_to() {
    Story::run(
        "C> Q begin
         C< C BEGIN / Z T
         C> Q select 1
         lease l leader
         S> P - begin / B - - / E - / Q select 1
         S< 1 / 2 / C BEGIN / T / D 1 / C SELECT 1 / Z T
         C< T / D 1 / C SELECT 1 / Z T
         C> P a select 1 / Q begin
         S> P sy1 select 1 / H
         S< 1
         C< 1
         S> Q begin
         S< N 25001 already / C BEGIN / Z T
         C< N 25001 / C BEGIN / Z T",
    );
}

mod unpinning {
    use super::*;

    /// Statements on the connection that is pinned, each answered by its tag.
    fn go(story: &mut Story, lines: &[(&str, &str)]) {
        for (sql, tag) in lines {
            story.tell(&format!("C> Q {sql}\n S> Q {sql}\n S< {tag}\n C< {}", tag.replace(" text", "")));
        }
    }

    fn begin(sql: &str) -> Story {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(&format!("C> Q {sql}\n lease l leader\n S> Q {sql}\n S< C OK / Z I\n C< C OK / Z I"));
        story
    }

    fn stays(first: &str, lines: &[(&str, &str)]) {
        let mut story = begin(first);
        go(&mut story, lines);
        assert!(!story.session.pins().is_empty(), "{first}, {lines:?}: isn't pinned any more");
    }

    const OK: &str = "C OK / Z I\n return";
    const PINNED: &str = "C OK / Z I";
    const OPEN: &str = "C OK / Z T";

    fn last(sql: &str) -> (&str, &str) {
        (sql, PINNED)
    }

    /// As `go`, but the last one gives the connection back.
    fn returns(first: &str, lines: &[(&str, &str)], end: &str) {
        let mut story = begin(first);
        go(&mut story, lines);
        story.tell(&format!("C> Q {end}\n S> Q {end}\n S< C OK / Z I\n C< {OK}"));
    }

    /// As [`returns`], once the server has said which role it has, of which it began with `none`.
    fn returns_as_it_began(first: &str, lines: &[(&str, &str)], end: &str) {
        let look = |role: &str| format!("S> look at all\n S< T / L r none {role} / C SELECT 1 / Z I");
        let mut story = begin(first);
        go(&mut story, lines);
        story.tell(&format!("C> Q {end}\n S> Q {end}\n S< C OK / Z I\n C< C OK / Z I\n {}\n return", look("none")));
        assert!(story.session.pins().is_empty());
        // Where the user has `ALTER ROLE ... SET role`, NONE is somebody else.
        let mut story = begin(first);
        go(&mut story, lines);
        story.tell(&format!("C> Q {end}\n S> Q {end}\n S< C OK / Z I\n C< C OK / Z I\n {}", look("other")));
        assert!(story.session.pins().has(PinReason::SetRole));
    }

    #[test]
    fn by_the_last_channel() {
        returns("listen a", &[last("listen \"B\""), last("unlisten a"), last("unlisten c")], "unlisten \"B\"");
        returns("listen a", &[("begin", OPEN), ("unlisten *", OPEN)], "commit");
        stays("listen a", &[("begin", OPEN), ("unlisten a", OPEN), ("rollback", "C ROLLBACK / Z I")]);
        stays("listen a", &[("begin", OPEN), ("unlisten *", OPEN), ("listen a", OPEN), ("commit", PINNED)]);
        stays("listen a", &[("begin", OPEN), ("savepoint s", OPEN), ("unlisten a", OPEN), ("rollback to s", OPEN), ("commit", PINNED)]);
        stays("listen a", &[("unlisten a", "E 08000 text / Z I")]);
    }

    #[test]
    fn by_the_last_held_cursor() {
        returns("declare a cursor with hold for select 1", &[last("declare b cursor with hold for select 1"), last("close a")], "close b");
        returns("declare a cursor with hold for select 1", &[last("fetch a")], "close all");
        stays("declare a cursor with hold for select 1", &[last("close b")]);
    }

    #[test]
    fn by_the_last_temporary_table() {
        returns(
            "create temp table a (x int)",
            &[last("insert into a values (1)"), last("create temp table if not exists b as select 1"), last("drop table a, c")],
            "drop table if exists pg_temp.b cascade",
        );
        returns("create temp table a (x int)", &[], "discard temp");
        stays("create temp table a (x int)", &[last("drop table public.a")]);
        stays("create temp table a (x int)", &[last("alter table a rename to b"), last("drop table a")]);
        stays("create temp table a (x int)", &[last("create temp view v as select 1"), last("drop table a")]);
        stays("create temp table a (x int)", &[("begin", OPEN), ("drop table a", OPEN), ("rollback", "C ROLLBACK / Z I")]);
        stays("create temp table a (x int)", &[("begin", OPEN), ("discard temp", OPEN), ("rollback", "C ROLLBACK / Z I")]);
    }

    #[test]
    fn a_table_that_goes_with_its_transaction_pins_nothing() {
        Story::run(
            "C> Q begin
             C< C BEGIN / Z T
             C> Q create temp table a (x int) on commit drop
             lease l leader
             S> P - begin / B - - / E - / Q create temp table a (x int) on commit drop
             S< 1 / 2 / C BEGIN / C CREATE TABLE / Z T
             C< C CREATE TABLE / Z T
             C> Q commit
             S> Q commit
             S< C COMMIT / Z I
             C< C COMMIT / Z I
             return",
        );
    }

    #[test]
    fn by_its_own_role() {
        returns_as_it_began("set role a", &[last("select 1")], "reset role");
        returns_as_it_began("set role a", &[], "set role none");
        returns_as_it_began("set session authorization a", &[last("set role b"), last("reset role")], "reset session authorization");
        stays("set role a", &[("begin", OPEN), ("reset role", OPEN), ("rollback", "C ROLLBACK / Z I")]);
        stays("set role a", &[last("reset all")]);
    }
}

mod pipelines_that_fail {
    use super::*;

    #[test]
    fn the_unnamed_statement_is_the_one_before_a_segment_that_was_skipped() {
        Story::run(
            "C> P - insert into t select / S
             lease l leader
             S> P - insert into t select / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> B - nosuch / C S - / P - insert into u select / S / B - - / E - / S
             lease l leader
             S> B - nosuch / C S - / P - insert into u select / S
             # What the unnamed statement is isn't known before this is.
             S< E 26000 no such statement / Z I
             C< E 26000 / Z I
             return
             lease l leader
             # It is there still: its Close was skipped, and in a transaction that has failed it couldn't be prepared again.
             S> B - - / E - / S
             S< 2 / C INSERT 0 1 / Z I
             C< 2 / C INSERT 0 1 / Z I
             return",
        );
    }

    #[test]
    fn two_parses_that_fail_leave_no_unnamed_statement() {
        Story::run(
            "C> P - insert into nowhere select / S / B - nosuch / P - insert into u select / S
             lease l leader
             S> P - insert into nowhere select / S / B - nosuch / P - insert into u select / S
             S< E 42P01 nowhere / Z I / E 26000 no such statement / Z I
             C< E 42P01 / Z I / E 26000 / Z I
             return
             C> B - - / S
             lease l leader
             S> C S - / B - - / S
             S< 3 / E 26000 no such statement / Z I
             C< E 26000 / Z I
             return",
        );
    }

    #[test]
    fn a_query_destroys_the_unnamed_statement_whose_close_was_skipped() {
        Story::run(
            "C> P - insert into t select / S
             lease l leader
             S> P - insert into t select / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> B - nosuch / C S - / S / Q insert into t
             lease l leader
             S> B - nosuch / C S - / S / Q insert into t
             S< E 26000 no such statement / Z I / C INSERT 0 1 / Z I
             C< E 26000 / Z I / C INSERT 0 1 / Z I
             return
             C> B - - / S
             lease l leader
             S> C S - / B - - / S
             S< 3 / E 26000 no such statement / Z I
             C< E 26000 / Z I
             return",
        );
    }

    #[test]
    fn the_status_at_the_clients_sync_is_the_one_behind_ours() {
        Story::run(
            "C> P b insert into t select / S
             lease l leader
             S> P sy1 insert into t select / S
             S< 1 / Z I
             C< 1 / Z I
             return
             C> Q begin
             C< C BEGIN / Z T
             C> Q insert into t
             lease l leader
             S> P - begin / B - - / E - / Q insert into t
             S< 1 / 2 / C BEGIN / C INSERT 0 1 / Z T
             C< C INSERT 0 1 / Z T
             C> P b insert into t select / H / Q insert into t
             S> P b - / P b insert into t select / H
             S< 1 / E 42P05 exists
             C< E 42P05
             C> S
             S> S / C S b / S
             S< Z E / 3 / Z E
             C< Z E",
        );
    }

    #[test]
    fn what_is_set_behind_a_lost_transaction_is_carried() {
        let mut story = Story::on(Access::ReadWrite);
        story.tell(
            "C> Q begin
             C< C BEGIN / Z T
             C> Q insert into t
             lease l leader
             S> P - begin / B - - / E - / Q insert into t
             S< 1 / 2 / C BEGIN / E 23505 twice / Z E
             C< E 23505 / Z E
             lost
             C> P - rollback / B - - / E - / P - set app.x = 1 / B - - / E - / S
             lease l leader
             S> Q BEGIN / Q SELECT pg_catalog.int4div(1, 0) / P - rollback / B - - / E - / P - set app.x = 1 / B - - / E - / S
             S< C BEGIN / Z T / E 22012 by zero / Z E / 1 / 2 / C ROLLBACK / 1 / 2 / C SET / Z I
             C< 1 / 2 / C ROLLBACK / 1 / 2 / C SET / Z I
             S> look app.x
             S< T / L v app.x 1 / C SELECT 1 / Z I
             return",
        );
        assert!(story.session.settings.value("app.x").is_some());
    }

    #[test]
    fn a_transaction_chained_to_a_lost_one_is_a_real_one() {
        Story::run(
            "C> Q begin
             C< C BEGIN / Z T
             C> Q insert into t
             lease l leader
             S> P - begin / B - - / E - / Q insert into t
             S< 1 / 2 / C BEGIN / E 23505 twice / Z E
             C< E 23505 / Z E
             lost
             C> Q commit and chain
             lease l leader
             S> Q BEGIN / Q SELECT pg_catalog.int4div(1, 0) / Q commit and chain
             S< C BEGIN / Z T / E 22012 by zero / Z E / C ROLLBACK / Z T
             C< C ROLLBACK / Z T
             C> Q rollback to a
             S> Q rollback to a
             S< E 3B001 no such savepoint / Z E
             C< E 3B001 / Z E",
        );
    }

    #[test]
    fn what_was_kept_back_of_an_answer_is_told_as_lost_at_last() {
        let lost = "lease r replica
             S> P sy1 select / S
             lost\n";
        let at_last = "lease l leader
             S> P sy1 select / S
             half 5 S< 1 / Z I
             lost
             C< E 57P01 / Z I
             C> P a select / S
             lease l leader
             S> P sy1 select / S
             S< 1 / Z I
             C< 1 / Z I
             return";
        Story::run(&["C> P a select / S\n", lost, lost, at_last].concat());
    }
}
