use super::*;
use crate::sql::{Dialect, classify};

fn user<'a>(oid: u32, name: &'a str, language: &'a str) -> Function<'a> {
    Function {
        oid,
        schema: "public",
        name,
        aggregate: false,
        volatility: Volatility::Stable,
        language,
        extension: None,
        internal: None,
        hidden_by_builtin: false,
        one_argument: true,
        hides_builtins: false,
        sets_custom: &[],
    }
}

fn table(oid: u32, name: &str) -> Relation<'_> {
    Relation { oid, schema: "public", name, kind: b'r', persistence: b'p' }
}

fn class(facts: &Facts, sql: &str) -> Class {
    classify(sql.as_bytes(), facts, Dialect::default()).class
}

#[test]
fn badness_goes_through_functions_views_and_cycles() {
    let mut catalog = Catalog::new();
    catalog.builtin(3810, "pg_catalog", "pg_is_in_recovery");
    catalog.builtin(870, "pg_catalog", "lower");
    for (oid, name) in
        [(20000, "where_am_i"), (20001, "asks"), (20002, "cycle_a"), (20003, "cycle_b"), (20004, "harmless"), (20005, "silent")]
    {
        assert!(catalog.function(user(oid, name, "plpgsql")));
    }
    catalog.relation(table(30000, "t"));
    catalog.relation(Relation { kind: b'v', ..table(30001, "good_view") });
    catalog.relation(Relation { kind: b'v', ..table(30002, "bad_view") });
    catalog.relation(Relation { kind: b'v', ..table(30003, "over_bad_view") });
    catalog.body(20000, Language::PlPgSql, "BEGIN RETURN pg_is_in_recovery(); END");
    catalog.body(20001, Language::PlPgSql, "BEGIN RETURN public.where_am_i(); END");
    catalog.body(20002, Language::PlPgSql, "BEGIN RETURN cycle_b(1); END");
    catalog.body(20003, Language::PlPgSql, "BEGIN RETURN cycle_a(1) + lower('X'); END");
    catalog.body(20004, Language::Sql, "SELECT count(*) FROM good_view");
    catalog.tree(Object::Relation(30001), "{RTE :relid 30000} {FUNCEXPR :funcid 870 :args <>}");
    catalog.tree(Object::Relation(30002), "{RTE :relid 30000} {FUNCEXPR :funcid 20001 :args <>}");
    catalog.tree(Object::Relation(30003), "{RTE :relid 30002}");
    let facts = catalog.finish(1);
    for sql in ["SELECT cycle_a(1)", "SELECT harmless()", "TABLE t", "TABLE good_view"] {
        assert_eq!(class(&facts, sql), Class::Read, "{sql}");
    }
    for sql in [
        "SELECT where_am_i()",
        "SELECT asks()",
        "SELECT silent()",
        "TABLE bad_view",
        "TABLE over_bad_view",
        "SELECT younger()",
        "TABLE younger",
    ] {
        assert_eq!(class(&facts, sql), Class::Write, "{sql}");
    }
    let doubted = facts.in_doubt(2);
    assert_eq!(class(&doubted, "SELECT harmless()"), Class::Write);
    assert_eq!(class(&doubted, "TABLE good_view"), Class::Write);
    assert_eq!(class(&doubted, "TABLE t"), Class::Read);
}

#[test]
fn a_name_in_a_body_is_any_object_of_that_name() {
    let mut catalog = Catalog::new();
    catalog.function(user(20000, "f", "plpgsql"));
    catalog.function(Function { schema: "other", volatility: Volatility::Volatile, ..user(20001, "g", "plpgsql") });
    catalog.function(user(20002, "g", "sql"));
    catalog.function(user(20003, "h", "sql"));
    catalog.relation(Relation { persistence: b'u', ..table(30000, "u") });
    catalog.body(20000, Language::PlPgSql, "BEGIN RETURN g(1); END");
    catalog.body(20002, Language::Sql, "SELECT 1");
    catalog.body(20003, Language::Sql, "SELECT max(id) FROM u");
    let facts = catalog.finish(1);
    for sql in ["SELECT f()", "SELECT g()", "SELECT h()", "TABLE u"] {
        assert_eq!(class(&facts, sql), Class::Write, "{sql}");
    }
    assert_eq!(class(&facts, "SELECT public.g()"), Class::Read);
}

#[test]
fn operators_casts_and_domains_count() {
    let mut catalog = Catalog::new();
    for (oid, name) in [(20000, "impl_bad"), (20001, "impl_good")] {
        catalog.function(Function { extension: Some("unheard_of"), volatility: Volatility::Immutable, ..user(oid, name, "c") });
    }
    catalog.function(Function { volatility: Volatility::Volatile, ..user(20002, "volatile", "sql") });
    catalog.function(user(20003, "uses", "sql"));
    catalog.operator(40000, "@@@@", 20002, None);
    catalog.operator(40001, "@@@", 20001, None);
    catalog.type_name(50000, "checked");
    catalog.type_name(50001, "_checked");
    catalog.type_name(20, "int8");
    catalog.reaches(Object::Type(50001), Object::Type(50000));
    catalog.tree(Object::Type(50000), "{FUNCEXPR :funcid 20002 :args <>}");
    catalog.made_of(Object::Type(20), 20002);
    catalog.body(20003, Language::Sql, "SELECT 'a' @@@@ 'b'");
    let facts = catalog.finish(1);
    for sql in ["SELECT 1 @@@@ 2", "SELECT 'x'::checked", "SELECT 'x'::bigint", "SELECT uses()", "SELECT impl_good()"] {
        assert_eq!(class(&facts, sql), Class::Write, "{sql}");
    }
    for sql in ["SELECT 1 @@@ 2", "SELECT 'x'::text, 1 = 1"] {
        assert_eq!(class(&facts, sql), Class::Read, "{sql}");
    }

    let mut catalog = Catalog::new();
    catalog.function(Function { volatility: Volatility::Volatile, ..user(20002, "volatile", "sql") });
    catalog.made_of(Object::KeyWords, 20002);
    assert_eq!(class(&catalog.finish(2), "SELECT 1"), Class::Write, "an implicit cast may be anywhere");
}

#[test]
fn a_large_catalog_takes_seconds_at_most() {
    let mut catalog = Catalog::new();
    let names: Vec<String> = (0..100_000).map(|at| format!("function_{at}")).collect();
    for (oid, name) in (20_000..).zip(&names) {
        catalog.function(user(oid, name, "plpgsql"));
    }
    for (at, oid) in (0..100_000).zip(20_000..) {
        catalog.body(oid, Language::PlPgSql, &format!("BEGIN RETURN function_{}(a) + function_7(b); END", (at + 1) % 100_000));
    }
    let facts = catalog.finish(1);
    assert_eq!(class(&facts, "SELECT function_5(1)"), Class::Read);
}

/// A type of one's own whose `=` is bad keeps what has such values from the replicas, and nothing else.
#[test]
fn a_bad_operator_of_an_own_type_counts_where_values_of_it_are() {
    let mut catalog = Catalog::new();
    catalog.builtin(65, "pg_catalog", "int4eq");
    catalog.operator(96, "=", 65, None);
    catalog.function(Function { volatility: Volatility::Volatile, ..user(20000, "money_eq", "plpgsql") });
    catalog.function(user(20001, "price", "sql"));
    catalog.body(20001, Language::Sql, "SELECT 1");
    catalog.relation(table(30000, "t"));
    catalog.relation(table(30001, "prices"));
    catalog.relation(table(30002, "lists"));
    catalog.operator(40000, "=", 20000, Some(50000));
    catalog.type_name(50000, "coin");
    catalog.type_name(50001, "_coin");
    catalog.reaches(Object::Value(50001), Object::Value(50000));
    catalog.reaches(Object::Relation(30001), Object::Value(50000));
    catalog.reaches(Object::Relation(30002), Object::Value(50001));
    catalog.reaches(Object::Function(20001), Object::Value(50000));
    let facts = catalog.finish(1);
    for sql in ["SELECT * FROM t WHERE id = 1", "SELECT DISTINCT id IN (1, 2) FROM t"] {
        assert_eq!(class(&facts, sql), Class::Read, "{sql}");
    }
    for sql in ["SELECT * FROM prices WHERE a = b", "SELECT count(*) FROM lists", "SELECT price() IN (NULL)", "SELECT 'x'::coin = 'x'"] {
        assert_eq!(class(&facts, sql), Class::Write, "{sql}");
    }
    assert!(facts.bad_value().is_some());
}

/// Where built-in values become the type unasked, its operators can be meant anywhere, and the cast with them.
#[test]
fn an_implicit_cast_from_a_built_in_type_is_used_where_something_wants_its_target() {
    let facts = |source: Option<u32>, operator: Option<u32>, cast: u32| {
        let mut catalog = Catalog::new();
        catalog.function(Function { volatility: Volatility::Volatile, ..user(20000, "bad", "plpgsql") });
        catalog.function(user(20001, "good", "sql"));
        catalog.body(20001, Language::Sql, "SELECT 1");
        catalog.relation(table(30000, "t"));
        if let Some(function) = operator {
            catalog.operator(40000, "=", function, Some(50000));
        }
        catalog.type_name(50000, "coin");
        catalog.implicit_cast(source, Some(50000), cast);
        catalog.finish(1)
    };
    for (source, operator, cast, expected) in [
        (Some(50001), Some(20000), 0, Class::Read),
        (None, Some(20000), 0, Class::Write),
        (None, Some(20001), 0, Class::Read),
        (None, Some(20001), 20000, Class::Write),
        (None, None, 20000, Class::Read),
    ] {
        let facts = facts(source, operator, cast);
        assert_eq!(class(&facts, "SELECT * FROM t WHERE id = 1"), expected, "{source:?} {operator:?} {cast}");
    }
}

/// What a name's objects may leave, when they are used and when they are changed.
fn left(facts: &Facts, name: &str) -> (Option<Rule>, Option<Rule>) {
    let known = facts.suspicion(name);
    (known.used.leaves, known.changed.leaves)
}

#[test]
fn what_is_left_behind_goes_through_triggers_bodies_and_cascades() {
    let mut catalog = Catalog::new();
    catalog.builtin(2078, "pg_catalog", "set_config");
    catalog.builtin(1299, "pg_catalog", "now");
    let volatile = |oid, name| Function { volatility: Volatility::Volatile, one_argument: false, ..user(oid, name, "plpgsql") };
    for (oid, name) in [(20000, "touched"), (20001, "audited"), (20002, "leaky"), (20003, "unread"), (20004, "calls"), (20005, "dynamic")] {
        catalog.function(volatile(oid, name));
    }
    catalog.function(Function { language: "plpython3u", ..volatile(20006, "python") });
    for (oid, name) in [(30000, "plain"), (30001, "log"), (30002, "watched"), (30003, "leaked"), (30004, "referred"), (30005, "through")] {
        catalog.relation(table(oid, name));
    }
    for (relation, function) in [(30000, 20000), (30002, 20001), (30003, 20002)] {
        catalog.runs(Object::Change(relation), Object::Function(function));
    }
    catalog.runs(Object::Change(30004), Object::Change(30003));
    catalog.traces_of_tree(Object::Change(30005), "{QUERY :commandType 3 :rtable ({RTE :relid 30003})}");
    catalog.body(20000, Language::PlPgSql, "BEGIN NEW.updated_at = now(); RETURN NEW; END");
    catalog.body(20001, Language::PlPgSql, "BEGIN INSERT INTO log (what) VALUES (TG_OP); RETURN NULL; END");
    catalog.body(20002, Language::PlPgSql, "BEGIN PERFORM set_config('a.b', 'x', false); RETURN NULL; END");
    catalog.body(20004, Language::PlPgSql, "BEGIN UPDATE ONLY leaked SET a = 1; RETURN NULL; END");
    catalog.body(20005, Language::PlPgSql, "BEGIN EXECUTE $1; END");
    let facts = catalog.finish(1);
    for name in ["plain", "log", "watched", "touched", "audited"] {
        assert_eq!(left(&facts, name), (None, None), "{name}");
    }
    for name in ["leaked", "referred", "through"] {
        assert_eq!(left(&facts, name), (None, Some("set_config")), "{name}");
    }
    for (name, rule) in
        [("leaky", "set_config"), ("calls", "set_config"), ("unread", "body_unread"), ("dynamic", "body_runs_text"), ("python", "language")]
    {
        assert_eq!(left(&facts, name), (Some(rule), None), "{name}");
    }
    // What is volatile is still the leader's, whatever it leaves.
    assert_eq!(class(&facts, "SELECT touched()"), Class::Write);
}

#[test]
fn a_body_counts_in_either_reading_of_its_backslashes() {
    let mut catalog = Catalog::new();
    catalog.function(user(20000, "either", "plpgsql"));
    catalog.function(user(20001, "regex", "plpgsql"));
    catalog.body(20000, Language::PlPgSql, "BEGIN RETURN 'x\\'', set_config($q$a.b$q$, $q$y$q$, false) --'\n; END");
    catalog.body(20001, Language::PlPgSql, "BEGIN RETURN $1 ~ '^\\d+$'; END");
    let facts = catalog.finish(1);
    assert_eq!(left(&facts, "either"), (Some("set_config"), None));
    assert_eq!(left(&facts, "regex"), (None, None));
}

fn custom_settings(facts: &Facts) -> Vec<String> {
    facts.custom_settings().iter().map(|name| name.to_string()).collect()
}

/// A call of a function whose first argument is a constant of type text.
fn call(oid: u32, argument: &str) -> String {
    let bytes: Vec<String> = argument.bytes().map(|byte| byte.to_string()).collect();
    format!("{{FUNCEXPR :funcid {oid} :args ({{CONST :consttype 25 :constvalue 9 [ 52 0 0 0 {} ]}} {{PARAM}})}}", bytes.join(" "))
}

#[test]
fn custom_settings_are_known_by_name_wherever_code_sets_them() {
    let mut catalog = Catalog::new();
    catalog.builtin(2078, "pg_catalog", "set_config");
    catalog.builtin(870, "pg_catalog", "lower");
    for (oid, name) in [(20000, "in_text"), (20001, "by_set"), (20003, "standard"), (20004, "mentions")] {
        catalog.function(user(oid, name, "plpgsql"));
    }
    catalog.function(Function { sets_custom: &["App.Config"], ..user(20002, "configured", "plpgsql") });
    catalog.relation(table(30000, "t"));
    catalog.body(20000, Language::PlPgSql, "BEGIN PERFORM set_config('App.Call', $1, false); END");
    catalog.body(20001, Language::PlPgSql, "BEGIN SET LOCAL app.set = 1; SET work_mem = 1; END");
    catalog.body(20002, Language::PlPgSql, "BEGIN NULL; END");
    catalog.sql_body(20003, &call(2078, "app.standard"));
    catalog.body(20004, Language::PlPgSql, "BEGIN RETURN 'SET app.mentioned = 1; e.g. 1.5 and x.9'; END");
    catalog.tree(Object::Type(50000), &call(2078, "app.domain"));
    catalog.traces_of_tree(Object::Change(30000), &call(2078, "app.default"));
    catalog.traces_of_tree(Object::Change(30000), &call(870, "app.read"));
    let facts = catalog.finish(1);
    let names = ["app.call", "app.config", "app.default", "app.domain", "app.set", "app.standard", "app.mentioned", "app.read", "e.g"];
    assert_eq!(custom_settings(&facts), names);
    for name in ["in_text", "by_set", "configured", "standard", "t"] {
        let known = facts.suspicion(name);
        assert!(known.used.leaves.or(known.changed.leaves).is_some(), "{name}");
        assert!(!known.used.sets_unknown && !known.changed.sets_unknown, "{name}");
    }
}

#[test]
fn code_that_may_set_any_custom_setting_is_told_from_code_that_sets_none() {
    let mut catalog = Catalog::new();
    catalog.builtin(2078, "pg_catalog", "set_config");
    catalog.builtin(2880, "pg_catalog", "pg_advisory_lock");
    catalog.builtin(2923, "pg_catalog", "query_to_xml");
    let unknown = [
        ("computed", "BEGIN PERFORM set_config($1, 'x', false); END"),
        ("dynamic", "BEGIN EXECUTE $1; END"),
        ("texts", "BEGIN PERFORM query_to_xml($1, true, true, ''); END"),
        ("escaped", "BEGIN PERFORM U&\"set\\005fconfig\"($1, 'x', false); END"),
        ("shows", "BEGIN UPDATE pg_settings SET setting = 1; END"),
        ("calls", "BEGIN CALL p(); END"),
        ("reaches", "BEGIN PERFORM dynamic('x'); END"),
        ("defines", "BEGIN CREATE TABLE x (i int); END"),
    ];
    let known = [
        ("locks", "BEGIN PERFORM pg_advisory_lock(1); END"),
        ("listens", "BEGIN LISTEN x; SET ROLE y; DISCARD TEMP; END"),
        ("names", "BEGIN PERFORM set_config('app.x', $1, false); END"),
        ("plain", "BEGIN PERFORM set_config('work_mem', $1, false); END"),
        ("mistaken", "BEGIN PERFORM nobody_has_this(1); END"),
    ];
    for (oid, (name, _)) in (20000..).zip(unknown.iter().chain(&known)) {
        catalog.function(user(oid, name, "plpgsql"));
    }
    catalog.function(user(21000, "python", "plpython3u"));
    catalog.function(user(21001, "event", "plpython3u"));
    catalog.function(Function { aggregate: true, ..user(21002, "state", "internal") });
    catalog.made_of(Object::Function(21002), 2078);
    catalog.runs(Object::Ddl, Object::Function(21001));
    for (oid, (_, body)) in (20000..).zip(unknown.iter().chain(&known)) {
        catalog.body(oid, Language::PlPgSql, body);
    }
    let facts = catalog.finish(1);
    for name in unknown.iter().map(|(name, _)| *name).chain(["python", "state"]) {
        assert!(facts.suspicion(name).used.sets_unknown, "{name}");
        assert!(facts.suspicion(name).used.leaves.is_some(), "{name}");
    }
    for (name, _) in known {
        assert!(facts.suspicion(name).used.leaves.is_some(), "{name}");
        assert!(!facts.suspicion(name).used.sets_unknown, "{name}");
    }
}

#[test]
fn more_custom_settings_than_fit_are_unknown_ones() {
    let mut catalog = Catalog::new();
    catalog.builtin(2078, "pg_catalog", "set_config");
    let names: Vec<String> = (0..=CUSTOM_SETTINGS_MAX).map(|at| format!("sets_{at}")).collect();
    for (oid, name) in (20000..).zip(&names) {
        catalog.function(user(oid, name, "sql"));
        catalog.body(oid, Language::Sql, &format!("SELECT set_config('app.{name}', 'x', false), 'mentioned.{name}'"));
    }
    catalog.function(user(21000, "again", "sql"));
    catalog.body(21000, Language::Sql, "SELECT set_config('app.sets_1', 'x', false)");
    let facts = catalog.finish(1);
    assert_eq!(custom_settings(&facts).len(), CUSTOM_SETTINGS_MAX);
    assert!(custom_settings(&facts).iter().all(|name| name.starts_with("app.")), "those that are set come first");
    let unknown: Vec<&String> = names.iter().filter(|name| facts.suspicion(name).used.sets_unknown).collect();
    assert_eq!(unknown, [&names[CUSTOM_SETTINGS_MAX]]);
    assert!(!facts.suspicion("again").used.sets_unknown);
}
