use std::time::Duration;

use super::*;
use crate::sql::SetTo;
use crate::sql::catalog::{FunctionFact, RelationFact};

const ROUTING: &str = include_str!("../../../corpus/routing.tsv");

fn function(schema: &str, class: Class) -> FunctionFact {
    let rule = if class == Class::Read { "stable" } else { "volatile" };
    FunctionFact { schema: schema.into(), class, rule, hidden_by_builtin: false, one_argument: true, reads: Touched::Nothing }
}

fn relation(class: Class, rule: &'static str) -> RelationFact {
    RelationFact { schema: "public".into(), class, rule, reads: Touched::Everything, writes: Touched::Everything }
}

/// What a loader would find in `corpus/schema.sql`.
fn schema() -> Facts {
    let mut facts = Facts::builder(1)
        .function("lower", FunctionFact { hidden_by_builtin: true, ..function("other", Class::Write) })
        .operator("~~~~", Class::Write, "volatile")
        .complete();
    for name in ["f_stable", "f_immutable", "f_default"] {
        facts = facts.function(name, function("public", Class::Read));
    }
    for name in ["f_volatile_reads", "f_writes", "f_stable_lies", "op_impl", "f_where", "f_unlogged"] {
        facts = facts.function(name, function("public", Class::Write));
    }
    for name in ["t", "audit", "v_plain", "mv", "parted", "parted_1"] {
        facts = facts.relation(name, relation(Class::Read, "table"));
    }
    for (name, rule) in [("s", "sequence"), ("u", "unlogged"), ("v_writes", "view"), ("v_over_v_writes", "view")] {
        facts = facts.relation(name, relation(Class::Write, rule));
    }
    facts.build()
}

fn judged(sql: &str) -> Verdict {
    classify(sql.as_bytes(), &schema(), Dialect::default())
}

fn holds(corpus: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for line in corpus.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let cells: Vec<&str> = line.splitn(3, '\t').collect();
        let [expected, _, sql] = cells[..] else { panic!("malformed row {line:?}") };
        let sql = sql.replace("\\n", "\n");
        let verdict = judged(&sql);
        let class = match verdict.class {
            Class::Local => "local",
            Class::Read => "replica",
            Class::Write => "leader",
        };
        if class != expected {
            wrong.push(format!("{sql}\n  expected {expected}, got {class} for {:?}", verdict.reasons));
        }
    }
    wrong
}

#[test]
fn every_row_of_the_corpus_holds() {
    let wrong = holds(ROUTING);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_further_form_holds() {
    let wrong = holds(include_str!("../../../corpus/forms.tsv"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// SET's own words name parameters as well (`var_name` in gram.y): what follows them tells.
#[test]
fn words_of_set_that_name_parameters() {
    let set = |name: &str| Effect::Set { name: name.into(), local: false, to: SetTo::Other };
    for word in
        ["names", "role", "transaction", "characteristics", "constraints", "session", "local", "seed", "time", "xml", "schema", "catalog"]
    {
        for scope in ["", "SESSION "] {
            let sql = format!("SET {scope}{word}.x = 'y'");
            assert_eq!(judged(&sql).effects, [set(&format!("{word}.x"))], "{sql}");
        }
        let reset = format!("RESET {word}.x");
        assert_eq!(judged(&reset).effects, [Effect::Reset { name: format!("{word}.x").into() }], "{reset}");
    }
    for (sql, name) in [
        ("SET NAMES 'UTF8'", "client_encoding"),
        ("SET SESSION NAMES DEFAULT", "client_encoding"),
        ("SET role TO a", "role"),
        ("SET SESSION ROLE a", "role"),
        ("SET SESSION SESSION AUTHORIZATION a", "session_authorization"),
        ("SET LOCAL SESSION AUTHORIZATION a", "session_authorization"),
        ("SET session FROM CURRENT", "session"),
        ("SET SESSION TIME ZONE 'UTC'", "timezone"),
        ("SET XML OPTION DOCUMENT", "xmloption"),
    ] {
        assert!(matches!(&judged(sql).effects[..], [Effect::Set { name: set, .. }] if **set == *name), "{sql}: {:?}", judged(sql).effects);
    }
    let modes = |session| {
        let modes = crate::sql::TransactionModes { read_only: Some(true), ..Default::default() };
        Effect::SetTransaction { modes, session }
    };
    for (sql, effect) in [
        ("SET TRANSACTION READ ONLY", modes(false)),
        ("SET LOCAL TRANSACTION READ ONLY", modes(false)),
        ("SET SESSION TRANSACTION READ ONLY", modes(false)),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", modes(true)),
        ("SET SESSION SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", modes(true)),
        (
            "SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            Effect::Set { name: "default_transaction_read_only".into(), local: true, to: SetTo::Other },
        ),
    ] {
        assert_eq!(judged(sql).effects, [effect], "{sql}");
    }
    assert_eq!(judged("SET CONSTRAINTS ALL DEFERRED").effects, []);
}

#[test]
fn effects_are_told() {
    use Effect::*;
    let modes = crate::sql::TransactionModes {
        read_only: Some(true),
        serializable: Some(false),
        repeatable_read: Some(true),
        deferrable: Some(false),
    };
    let set = |name: &str, local, to| Set { name: name.into(), local, to };
    let (other, default) = (|| SetTo::Other, || SetTo::Default);
    let temp = |name: &str, on_commit_drop| TempTable { name: name.into(), on_commit_drop };
    let alone = |database: &str| AloneIn { database: database.into() };
    let dropped = |name: &str| DropTable { name: name.into() };
    for (sql, effects) in [
        ("BEGIN", vec![Begin(Default::default())]),
        ("START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY NOT DEFERRABLE", vec![Begin(modes)]),
        ("COMMIT AND CHAIN; END AND NO CHAIN", vec![Commit { chain: true }, Commit { chain: false }]),
        (
            "ABORT; ROLLBACK AND CHAIN; ROLLBACK TO a",
            vec![Rollback { chain: false }, Rollback { chain: true }, RollbackTo { name: "a".into() }],
        ),
        ("SAVEPOINT a; RELEASE a", vec![Savepoint { name: "a".into() }, Release { name: "a".into() }]),
        ("SET Search_Path = a, b", vec![set("search_path", false, other())]),
        ("SET LOCAL switchyard.route TO 'leader'", vec![set("switchyard.route", true, SetTo::Plain("leader".into()))]),
        ("SET SESSION x TO DEFAULT", vec![set("x", false, default())]),
        ("SET TIME ZONE LOCAL", vec![set("timezone", false, default())]),
        ("SET ROLE a; SET role = b", vec![set("role", false, other()), set("role", false, other())]),
        ("SET SESSION AUTHORIZATION DEFAULT", vec![set("session_authorization", false, default())]),
        ("SELECT set_config('A.b', $1, true)", vec![set("a.b", true, other())]),
        ("SELECT set_config($1, 'a', true)", vec![SetUnknown]),
        ("RESET ALL; RESET ROLE", vec![ResetAll, Reset { name: "role".into() }]),
        ("DISCARD ALL; DEALLOCATE PREPARE x; DEALLOCATE ALL", vec![DiscardAll, Deallocate { name: "x".into() }, DeallocateAll]),
        (
            "PREPARE p(int) AS SELECT 1; EXECUTE p(1)",
            vec![Prepare { name: "p".into(), plain: true }, Pin(PinReason::SqlPrepare), Execute { name: "p".into() }],
        ),
        (
            "LISTEN a; UNLISTEN *; UNLISTEN a",
            vec![Listen { channel: "a".into() }, Pin(PinReason::Listen), UnlistenAll, Unlisten { channel: "a".into() }],
        ),
        ("CREATE TEMP TABLE a (b int)", vec![Pin(PinReason::TempTable), temp("a", false), Ddl]),
        ("CREATE LOCAL TEMPORARY TABLE IF NOT EXISTS pg_temp.\"A\" (b int)", vec![Pin(PinReason::TempTable), temp("A", false), Ddl]),
        ("CREATE TEMP TABLE a ON COMMIT DROP AS SELECT 1 AS c", vec![temp("a", true), Ddl]),
        ("CREATE TEMP TABLE a AS SELECT 1 AS on, 2 AS commit, 3 AS drop", vec![Pin(PinReason::TempTable), temp("a", false), Ddl]),
        ("CREATE TEMP VIEW a AS SELECT 1", vec![Pin(PinReason::TempTable), Ddl]),
        ("DROP TABLE IF EXISTS a, b.c, pg_temp.d CASCADE", vec![dropped("a"), dropped(""), dropped("d"), Ddl]),
        ("DROP VIEW a", vec![Ddl]),
        ("DROP DATABASE IF EXISTS a", vec![alone("a"), Ddl]),
        ("ALTER DATABASE a RENAME TO b; ALTER DATABASE \"B\" SET TABLESPACE c", vec![alone("a"), Ddl, alone("B"), Ddl]),
        ("ALTER DATABASE a SET work_mem = '1MB'", vec![Ddl]),
        ("CREATE DATABASE a WITH OWNER b TEMPLATE = c; CREATE DATABASE d TEMPLATE e", vec![alone("c"), Ddl, alone("e"), Ddl]),
        ("CREATE DATABASE a", vec![alone("template1"), Ddl]),
        ("CLOSE a; CLOSE ALL", vec![CloseCursor { name: Some("a".into()) }, CloseCursor { name: None }]),
        ("SET ROLE NONE", vec![set("role", false, SetTo::NoRole)]),
        ("CREATE TABLE a (b) AS SELECT pg_advisory_lock(1)", vec![Ddl, Pin(PinReason::AdvisoryLock)]),
        ("CREATE TABLE a AS SELECT n_tup_ins FROM pg_catalog.pg_stat_user_tables s", vec![Ddl, Pin(PinReason::Statistics)]),
        ("SELECT pg_stat_get_xact_numscans(1), pg_stat_force_next_flush()", vec![Pin(PinReason::Statistics)]),
        ("SELECT sessions FROM pg_stat_database", vec![Pin(PinReason::Statistics)]),
        ("SELECT * FROM pg_stat_activity", vec![]),
        ("SELECT 1 INTO TEMP a", vec![Pin(PinReason::TempTable), Ddl]),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT now()", vec![Pin(PinReason::WithHoldCursor), HoldCursor { name: "c".into() }, UsesClock]),
        ("INSERT INTO t SELECT pg_advisory_lock(1)", vec![Pin(PinReason::AdvisoryLock)]),
        ("SELECT pg_advisory_unlock_all(), setseed(0)", vec![AdvisoryUnlockAll, Pin(PinReason::Setseed)]),
        ("CALL p(); DO 'x'", vec![MayCommit, Pin(PinReason::UserCode), MayCommit, Pin(PinReason::UserCode)]),
        // One character may be two sequences of bytes, in the tag of a dollar quote, too.
        ("SELECT $é$x$é$", vec![SetUnknown]),
        ("SELECT $1, 'é$é$', $a$é$a$, $$é$$", vec![]),
        ("COPY t FROM STDIN", vec![CopyIn]),
        ("COPY t FROM STDIN WHERE setseed(0) IS NULL", vec![CopyIn, Pin(PinReason::Setseed)]),
        ("FETCH a; MOVE ALL IN \"B\"", vec![Fetch { name: "a".into() }, Fetch { name: "B".into() }]),
        ("SET a.b FROM CURRENT", vec![set("a.b", false, SetTo::Current)]),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT begin atomic FROM x; END; BEGIN", vec![Ddl, Begin(Default::default())]),
        ("PREPARE TRANSACTION 'x'", vec![PrepareTransaction]),
        ("SET TRANSACTION SNAPSHOT 'x'", vec![SetSnapshot]),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; COMMIT; END; BEGIN", vec![Ddl, Begin(Default::default())]),
        // Labels that are called as key words are, and a CASE without a body's END.
        (
            "CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 AS case; SELECT x.end, 1 end FROM x; SELECT CASE WHEN a THEN b END; END; \
             SET a.b = 'c'",
            vec![Ddl, set("a.b", false, other())],
        ),
        ("CREATE PROCEDURE p() BEGIN ATOMIC END; BEGIN", vec![Ddl, Begin(Default::default())]),
        ("CREATE FUNCTION pg_temp.f() RETURNS int RETURN 1", vec![Pin(PinReason::TempTable), Pin(PinReason::UserCode), Ddl]),
        ("CREATE FUNCTION f() RETURNS int SET A.b = 'c' SET work_mem = 1 RETURN 1", vec![set("a.b", true, other()), Ddl]),
        ("ALTER ROLE a SET b.c TO DEFAULT", vec![set("b.c", true, other()), Ddl]),
        ("SELECT now(), current_date", vec![UsesClock]),
        ("WITH x AS (INSERT INTO t VALUES (1) RETURNING 1) SELECT * FROM x", vec![]),
    ] {
        assert_eq!(judged(sql).effects, effects, "{sql}");
    }
}

#[test]
fn commands_have_postgres_names() {
    for (sql, command) in [
        ("SELECT 1", "SELECT"),
        ("SELECT * FROM t FOR NO KEY UPDATE", "SELECT FOR NO KEY UPDATE"),
        ("SELECT 1 INTO a", "SELECT INTO"),
        ("SELECT nextval('s')", "nextval()"),
        ("WITH x AS (DELETE FROM t RETURNING 1) SELECT 1", "SELECT"),
        ("WITH x AS (SELECT 1) INSERT INTO t TABLE x", "INSERT"),
        ("CREATE UNIQUE INDEX ON t (v)", "CREATE INDEX"),
        ("CREATE TABLE a AS SELECT 1", "CREATE TABLE AS"),
        ("CREATE TABLE a (b int GENERATED ALWAYS AS IDENTITY)", "CREATE TABLE"),
        ("CREATE OR REPLACE TEMP VIEW a AS SELECT 1", "CREATE VIEW"),
        ("ALTER TABLE t ADD a int", "ALTER TABLE"),
        ("DROP MATERIALIZED VIEW mv", "DROP MATERIALIZED VIEW"),
        ("TRUNCATE t", "TRUNCATE TABLE"),
        ("GRANT SELECT ON t TO a", "GRANT"),
        ("GRANT a TO b", "GRANT ROLE"),
        ("COPY t FROM STDIN", "COPY FROM"),
        ("EXPLAIN ANALYZE INSERT INTO t VALUES (1)", "INSERT"),
        ("COMMIT PREPARED 'x'", "COMMIT PREPARED"),
        ("WITH x AS (INSERT INTO t VALUES (1) RETURNING 1) SELECT * FROM x", "SELECT"),
        ("WITH x AS (SELECT 1) MERGE INTO t USING x ON true WHEN MATCHED THEN DELETE", "MERGE"),
        ("DROP TEXT SEARCH DICTIONARY x", "DROP TEXT SEARCH DICTIONARY"),
        ("SELECT txid_current()", "pg_current_xact_id()"),
    ] {
        assert_eq!(judged(sql).command, command, "{sql}");
    }
}

#[test]
fn statements_are_counted() {
    for (sql, count) in [
        ("", 0),
        (";;", 0),
        ("SELECT 1;", 1),
        ("SELECT ';'; SELECT $$;$$", 2),
        ("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)", 1),
    ] {
        assert_eq!(judged(sql).statements, count, "{sql}");
    }
}

#[test]
fn settings_are_read() {
    let read = |sql: &str| {
        super::setting(sql.as_bytes(), Dialect::default()).map(|setting| (setting.name.to_string(), setting.local, setting.value))
    };
    assert_eq!(read("SET LOCAL switchyard.route = 'leader';"), Some(("switchyard.route".into(), true, "leader".into())));
    assert_eq!(read("set Switchyard.Route to Replica"), Some(("switchyard.route".into(), false, "replica".into())));
    assert_eq!(read("SET a = 'b'; SELECT 1"), None);
    assert_eq!(read("SET a = b, c"), None);
}

#[test]
fn text_in_an_encoding_that_hides_backslashes_is_a_write() {
    let dialect = Dialect { client_encoding_is_ascii_safe: false, ..Dialect::default() };
    assert_eq!(classify(b"SELECT 'a'", &Facts::empty(), dialect).class, Class::Read);
    assert_eq!(classify(b"SELECT '\x95\\'", &Facts::empty(), dialect).class, Class::Write);
}

/// 1 MB of anything is judged in linear time and on a small stack.
#[test]
fn huge_and_nested_statements_are_judged_quickly() {
    let size = 1 << 20;
    let fill = |head: &str, unit: &str, tail: &str| format!("{head}{}{tail}", unit.repeat(size / unit.len()));
    let texts = vec![
        fill("SELECT ", "(", ""),
        fill("SELECT 1", "+1", ""),
        fill("SELECT ", "f(", ""),
        fill("SELECT ", "set_config(", ""),
        fill("SELECT a", ".a", ""),
        fill("SELECT ", "- ", "1"),
        fill("SELECT ", "/*", ""),
        fill("SELECT ", "$a", ""),
        fill("SELECT '", "''", "'"),
        fill("SELECT ", "'a'\n", ""),
        fill("SELECT 1 IN (1", ",1", ")"),
        fill("", "SET a=1;", "SELECT now()"),
        fill("", "BEGIN;DO '';", ""),
        fill("SELECT ", "a,b(c,", ""),
        fill("WITH a AS (SELECT 1)", ",a(b,b) AS (SELECT 1)", " SELECT 1"),
        fill("SELECT ", "operator(a.", ""),
        fill("SELECT ", "U&\"a\"", ""),
        fill("SELECT ", "@-", "1"),
        fill("SELECT '", "'\n", "'"),
        fill("SELECT ", "CASE WHEN ", ""),
        fill("COPY (", "(", ""),
        fill("EXPLAIN ", "(", ""),
    ];
    let judge = std::thread::Builder::new().stack_size(512 * 1024).spawn(move || {
        for text in texts {
            let start = cpu_time();
            let verdict = classify(text.as_bytes(), &Facts::empty(), Dialect::default());
            crate::sql::fingerprint::summarize(text.as_bytes(), Dialect::default());
            drop(verdict);
            let took = cpu_time() - start;
            // Thirty times what a release build takes at most; what is quadratic takes minutes.
            assert!(took < Duration::from_millis(1500), "{} took {took:?}", &text[..20]);
        }
    });
    judge.expect("a thread").join().expect("no overflow");
}

/// This thread's own: tests run side by side on busy machines (`/proc/<pid>/schedstat`, Linux's Documentation/scheduler/sched-stats.rst).
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds"))
}

/// sqlparser tries alternatives on the way down; none of what is given to it may make it try for long, or nest too deep.
#[test]
fn what_sqlparser_sees_is_bounded() {
    let nested = |depth: usize, head: &str, open: &str, middle: &str, close: &str| {
        format!("{head}{}{middle}{}", open.repeat(depth), close.repeat(depth))
    };
    let mut texts = Vec::new();
    for depth in [8, 12, 16, 24, 48, 240] {
        texts.extend([
            nested(depth, "SELECT ", "(", "1", ")"),
            nested(depth, "SELECT * FROM ", "(", "t CROSS JOIN t", ")"),
            nested(depth, "", "(", "SELECT 1", ")"),
            nested(depth, "SELECT * FROM ", "(SELECT * FROM ", "t", ") q"),
            nested(depth, "SELECT ", "upper(", "'a'", ")"),
            nested(depth, "SELECT ", "CASE WHEN true THEN ", "1", " END"),
            nested(depth, "SELECT ", "CAST(", "1", " AS int)"),
            nested(depth, "SELECT ", "NOT ", "true", ""),
            nested(depth, "SELECT ", "ARRAY[", "1", "]"),
            nested(depth, "SELECT 1 IN ", "(", "1", ")"),
            nested(depth, "SELECT ", "(1, ", "1", ")"),
            nested(depth, "SELECT 1", "", "", " + 1"),
            nested(depth, "SELECT 1", "", "", "::int"),
            nested(depth, "SELECT true", "", "", " IS TRUE"),
            nested(depth, "SELECT 1", "", "", " UNION SELECT 1"),
            nested(depth, "SELECT a", "", "", "[1]"),
            nested(depth, "SELECT ", "- ", "1", ""),
            nested(depth, "SELECT * FROM t", "", "", " CROSS JOIN t"),
            nested(depth, "SELECT ", "EXISTS (SELECT ", "1", ")"),
            nested(depth, "SELECT ", "coalesce(", "1", ")"),
            nested(depth, "SELECT ", "extract(epoch FROM ", "now()", ")"),
            nested(depth, "SELECT ", "trim(", "'a'", ")"),
            nested(depth, "SELECT ", "position('a' IN ", "'b'", "::text)"),
            nested(depth, "SELECT ", "interval '1' + (", "1", ")"),
            nested(depth, "", "WITH a AS (", "SELECT 1", ") SELECT 1"),
            nested(depth, "SELECT * FROM ", "(VALUES (", "1", ")) q"),
        ]);
    }
    let judge = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
        for text in texts {
            let start = cpu_time();
            drop(classify(text.as_bytes(), &Facts::empty(), Dialect::default()));
            assert!(cpu_time() - start < Duration::from_millis(200), "{text}");
        }
    });
    judge.expect("a thread").join().expect("no overflow");
}

proptest::proptest! {
    #[test]
    fn any_bytes_get_a_verdict(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), standard: bool) {
        let dialect = Dialect { standard_conforming_strings: standard, ..Dialect::default() };
        classify(&bytes, &schema(), dialect);
        crate::sql::fingerprint::summarize(&bytes, dialect);
    }

    /// Pieces of SQL in any order: no panic; other literals change neither fingerprint nor verdict; what shares a fingerprint shares the verdict.
    #[test]
    fn literals_dont_matter(pieces in proptest::collection::vec(0..PIECES.len(), 1..30), first in 0u32..1000, second in "[a-z']{0,8}") {
        let text = |number: &str, string: &str| {
            let words: Vec<String> = pieces.iter().map(|at| PIECES[*at].replace("%n", number).replace("%s", string)).collect();
            format!("SELECT {}", words.join(" "))
        };
        let left = text("1", "'x'");
        let right = text(&first.to_string(), &format!("'{}'", second.replace('\'', "''")));
        let summary = |sql: &str| crate::sql::fingerprint::summarize(sql.as_bytes(), Dialect::default());
        proptest::prop_assert_eq!(summary(&left).fingerprint, summary(&right).fingerprint);
        if summary(&left).cacheable {
            proptest::prop_assert_eq!(judged(&left), judged(&right));
        }
    }
}

const PIECES: [&str; 60] = [
    "a",
    "b",
    "t",
    "u",
    "v_writes",
    "\"t\"",
    "\"U\"",
    "U&\"t\"",
    "(",
    ")",
    "[",
    "]",
    ",",
    ".",
    ";",
    "*",
    "+",
    "-",
    "~~~~",
    "::",
    "=>",
    "%n",
    "%s",
    "E%s",
    "X'1f'",
    "$1",
    "$2",
    "SELECT",
    "FROM",
    "JOIN",
    "ON",
    "WHERE",
    "AS",
    "WITH",
    "FOR",
    "UPDATE",
    "SHARE",
    "INTO",
    "VALUES",
    "TABLE",
    "ONLY",
    "nextval",
    "upper",
    "f_writes",
    "set_config",
    "now",
    "GROUP",
    "BY",
    "cube",
    "over",
    "DISTINCT",
    "IS",
    "CASE",
    "END",
    "DELETE",
    "BEGIN",
    "SET",
    "COPY",
    "EXPLAIN",
    "/* c */",
];

#[test]
fn columns_are_no_calls_and_calls_in_data_changes_pin() {
    let pins = |sql: &str| {
        classify(sql.as_bytes(), &Facts::empty(), Dialect::default()).effects.iter().any(|effect| matches!(effect, Effect::Pin(_)))
    };
    for sql in [
        "INSERT INTO load (writer, number) VALUES (1, 2) RETURNING port",
        "insert into s.t(a) select lower(b) from u",
        "INSERT INTO \"T\" (a) VALUES ($1) ON CONFLICT (a) DO UPDATE SET (a, b) = (excluded.a, now())",
        "INSERT INTO t AS x (a) VALUES (coalesce($1, 2)) ON CONFLICT ON CONSTRAINT k DO NOTHING",
        "UPDATE t SET (a, b) = (1, 2) WHERE c IN (1, 2)",
        "UPDATE t SET a = numeric(10, 2) '1' WHERE (a) = any (array[1])",
        "DELETE FROM t USING (SELECT 1) s(id) WHERE t.id = s.id",
        "MERGE INTO t USING (VALUES (1, 'x')) s(id, v) ON t.id = s.id WHEN NOT MATCHED THEN INSERT (id, v) VALUES (s.id, s.v)",
        "WITH x(a) AS (SELECT 1) INSERT INTO t (a) SELECT a FROM x",
    ] {
        assert!(!pins(sql), "{sql}");
    }
    for sql in [
        "INSERT INTO t (a) SELECT mine(1)",
        "INSERT INTO t VALUES (mine(1))",
        "UPDATE t SET a = s.mine(1)",
        "DELETE FROM t WHERE mine(a)",
        "INSERT INTO t (a) VALUES (1) RETURNING mine(a)",
        "MERGE INTO t USING mine(1) s ON t.id = s.id WHEN MATCHED THEN UPDATE SET v = theirs(1)",
    ] {
        assert!(pins(sql), "{sql}");
    }
}
