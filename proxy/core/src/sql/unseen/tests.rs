use super::*;
use crate::sql::catalog::{FunctionFact, NameSuspicion, RelationFact};
use crate::sql::{Dialect, Verdict, classify};

fn facts() -> Facts {
    let reads = crate::marks::Touched::Nothing;
    let table = RelationFact { schema: "public".into(), class: Class::Read, rule: "table", reads: reads.clone(), writes: reads.clone() };
    let function =
        FunctionFact { schema: "public".into(), class: Class::Read, rule: "stable", hidden_by_builtin: false, one_argument: true, reads };
    let used = Suspicion::leaves("set_config");
    Facts::builder(1)
        .relation("plain", table.clone())
        .relation("watched", table.clone())
        .relation("tells", table.clone())
        .relation("leaky_view", table)
        .function("clean", function.clone())
        .function("leaky", function.clone())
        .function("volatile", FunctionFact { class: Class::Write, ..function })
        .operator("@@@@", Class::Read, "operator")
        .suspicion("watched", NameSuspicion { changed: Suspicion::leaves("advisory_lock"), ..NameSuspicion::default() })
        .suspicion("tells", NameSuspicion { changed: Suspicion::sets_unknown("set_config"), ..NameSuspicion::default() })
        .suspicion("leaky_view", NameSuspicion { used, ..NameSuspicion::default() })
        .suspicion("leaky", NameSuspicion { used: Suspicion::anything("language"), ..NameSuspicion::default() })
        .operator_suspicion("@@@@", used)
        .complete()
        .build()
}

fn judged(sql: &str) -> Verdict {
    classify(sql.as_bytes(), &facts(), Dialect::default())
}

fn reason(sql: &str) -> Option<String> {
    let verdict = judged(sql);
    assert_eq!(verdict.unseen.leaves, verdict.unproven.is_some(), "{sql}");
    verdict.unproven.map(|reason| format!("{}: {}", reason.rule, reason.piece))
}

#[test]
fn what_runs_only_what_is_proven_leaves_nothing() {
    for sql in [
        "",
        "SELECT 1",
        "SELECT clean(a), count(*) FROM plain p WHERE b LIKE 'x' GROUP BY 1",
        "SELECT * FROM watched WHERE a = ANY ($1) FOR NO KEY UPDATE",
        "INSERT INTO plain (a, b) VALUES ($1, now()) ON CONFLICT (a) DO UPDATE SET b = excluded.b",
        "WITH w (a) AS (SELECT 1) MERGE INTO plain USING w ON w.a = plain.a WHEN MATCHED THEN DELETE",
        "TRUNCATE TABLE ONLY plain, plain",
        "COPY plain (a) FROM STDIN WHERE clean(a) > 1",
        "BEGIN; SET LOCAL a.b = 'x'; LISTEN c; DISCARD ALL; COMMIT",
        "PREPARE p AS SELECT clean(1)",
        "FETCH ALL FROM c; CLOSE c; LOAD 'x'; LOCK TABLE plain",
    ] {
        assert_eq!(reason(sql), None, "{sql}");
    }
}

#[test]
fn what_isnt_proven_says_why() {
    for (sql, expected) in [
        ("INSERT INTO watched VALUES (1)", "advisory_lock: watched"),
        ("WITH w AS (UPDATE watched SET a = 1 RETURNING *) SELECT * FROM w", "advisory_lock: watched"),
        ("COPY watched FROM STDIN", "advisory_lock: watched"),
        ("TRUNCATE plain, watched", "advisory_lock: watched"),
        ("TRUNCATE plain CASCADE", "cascade: TRUNCATE"),
        ("SELECT * FROM leaky_view", "set_config: leaky_view"),
        ("COPY leaky_view TO STDOUT", "set_config: leaky_view"),
        ("SELECT (p).leaky FROM plain p", "language: leaky"),
        ("SELECT 1 @@@@ 2", "set_config: @@@@"),
        ("SELECT 1 OPERATOR(public.@@@@) 2", "set_config: @@@@"),
        ("SELECT 1 @@@@@ 2", "unknown_operator: @@@@@"),
        ("SELECT volatile(1)", "stable: volatile"),
        ("SELECT younger(1)", "unknown_function: younger"),
        ("SELECT * FROM younger", "unknown_relation: younger"),
        ("SELECT * FROM other.plain", "unknown_relation: plain"),
        ("UPDATE ONLY younger SET a = 1", "unknown_relation: younger"),
        ("DELETE FROM plain USING plain a, younger b WHERE a.x = b.x", "unknown_relation: younger"),
        ("TRUNCATE plain, younger", "unknown_relation: younger"),
        ("COPY younger FROM STDIN", "unknown_relation: younger"),
        ("COPY plain FROM STDIN WHERE younger(a)", "unknown_function: younger"),
        ("UPDATE pg_settings SET setting = 1", "set_config: pg_settings"),
        ("SELECT 1; SELECT pg_try_advisory_lock(1); SELECT set_config('a.b', 'x', true)", "advisory_lock: pg_try_advisory_lock"),
        ("SELECT pg_catalog.\"set_config\"('a', 'b', true)", "set_config: set_config"),
        ("SELECT U&\"f\\0061\"(1)", "unicode_name: U&"),
        ("EXECUTE p", "execute: EXECUTE"),
        ("PREPARE p AS SELECT leaky(1)", "language: leaky"),
        ("EXPLAIN ANALYZE EXECUTE p", "execute: EXECUTE"),
        ("DO 'x'", "code: do"),
        ("VACUUM plain", "maintenance: vacuum"),
        ("CREATE TEMP TABLE a AS SELECT 1", "ddl: DDL"),
        ("EXPLAIN ANALYZE CREATE TABLE a AS SELECT 1", "ddl: DDL"),
        ("SELECT 'unterminated", "unparsed: select"),
        ("FROBNICATE plain", "unparsed: frobnicate"),
    ] {
        assert_eq!(reason(sql).as_deref(), Some(expected), "{sql}");
    }
    let sees = |sql: &str| (judged(sql).unseen.sees_settings, judged(sql).unseen.sees_statements);
    assert_eq!(sees("SELECT leaky(1)"), (true, true));
    assert_eq!(sees("SHOW a.b"), (true, false));
    assert_eq!(sees("SHOW \"a.b\""), (true, false));
    assert_eq!(sees("SHOW ALL"), (true, false));
    assert_eq!(sees("SET a.b FROM CURRENT"), (true, false));
    assert_eq!(sees("SHOW a"), (false, false));
    assert_eq!(sees("SELECT 1 FROM pg_prepared_statements"), (false, true));
}

#[test]
fn what_may_set_custom_settings_of_unknown_names_says_so() {
    for sql in [
        "SELECT leaky(1)",
        "EXECUTE p(leaky(1))",
        "DO 'x'",
        "CALL p()",
        "UPDATE pg_settings SET setting = 1",
        "SELECT U&\"set\\005fconfig\"('a.b', 'x', false)",
        "SELECT query_to_xml('SELECT 1', true, true, '')",
        "ALTER TABLE plain ADD COLUMN c text DEFAULT set_config('a.b', 'x', false)",
        // What isn't known may reach `leaky`.
        "SELECT younger(1)",
        // What a table takes over of its model.
        "CREATE TEMP TABLE a (LIKE tells INCLUDING DEFAULTS)",
        // An index's expression.
        "VACUUM",
        // Of `tells`, perhaps.
        "TRUNCATE plain CASCADE",
    ] {
        assert!(judged(sql).unseen.sets_unknown, "{sql}");
        assert!(judged(sql).unseen.leaves, "{sql}");
    }
    for sql in [
        "SELECT set_config('a.b', 'x', false)",
        "SELECT set_config(a, 'x', false) FROM plain",
        "COPY plain FROM STDIN WHERE set_config('a.b', v, false) = v",
        "INSERT INTO watched VALUES (1)",
        "TABLE leaky_view",
        "CREATE TABLE a AS SELECT 1",
        "FROBNICATE plain",
        "TABLE nowhere",
        "SELECT * FROM tells",
        // Its session knows.
        "EXECUTE p",
    ] {
        assert!(!judged(sql).unseen.sets_unknown, "{sql}");
    }
    for (sql, names) in [
        ("TABLE nowhere", "nowhere"),
        ("INSERT INTO nowhere SELECT * FROM plain JOIN elsewhere ON true", "elsewhere nowhere"),
        ("UPDATE plain SET a = 1 FROM nowhere", "nowhere"),
        ("DELETE FROM plain USING nowhere", "nowhere"),
        ("TRUNCATE plain, nowhere", "nowhere"),
        ("COPY nowhere FROM STDIN", "nowhere"),
        ("WITH w AS (SELECT 1) SELECT * FROM w; TABLE nowhere; TABLE nowhere", "nowhere"),
        ("TABLE plain", ""),
    ] {
        assert_eq!(judged(sql).unknown.join(" "), names, "{sql}");
    }
    // Those that can't be asked for.
    assert!(judged("TABLE \"nöwhere\"").unseen.sets_unknown);
    let many: Vec<String> = (0..20).map(|number| format!("nowhere_{number}")).collect();
    assert!(judged(&format!("SELECT * FROM {}", many.join(", "))).unseen.sets_unknown);
}

#[test]
fn without_facts_or_in_doubt_only_what_is_built_in_is_proven() {
    for facts in [Facts::empty(), facts().in_doubt(2)] {
        let leaves = |sql: &str| classify(sql.as_bytes(), &facts, Dialect::default()).unseen.leaves;
        for sql in ["SELECT 1", "SELECT now(), $1::int, 'x'::text", "BEGIN", "SET a = 1", "VALUES (1)", "SELECT pg_catalog.lower('x')"] {
            assert!(!leaves(sql), "{sql}");
        }
        for sql in ["TABLE plain", "SELECT clean(1)", "SELECT a", "INSERT INTO plain VALUES (1)", "SELECT 1::own", "TABLE data"] {
            assert!(leaves(sql), "{sql}");
        }
    }
}

#[test]
fn ddl_says_which_custom_settings_it_mentions() {
    for (sql, mentioned) in [
        ("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT set_config('App.x', 'y', false) $$", "app.x"),
        ("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS 'BEGIN SET a.b = 1; RESET c.d.e; END'", "a.b c.d.e"),
        ("BEGIN; CREATE DOMAIN d AS text CHECK (set_config('a.b', VALUE, false) <> ''); SELECT 'c.d'", "a.b"),
        ("ALTER TABLE plain ALTER COLUMN a SET DEFAULT now()", ""),
        ("CREATE TABLE t (a int)", ""),
        ("SELECT set_config('a.b', 'x', false)", ""),
    ] {
        assert_eq!(judged(sql).mentions.join(" "), mentioned, "{sql}");
    }
}
