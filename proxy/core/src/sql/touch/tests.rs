use crate::marks::Touched;
use crate::sql::bodies::Language;
use crate::sql::reach::{Catalog, Function, Object, Relation, Volatility};
use crate::sql::{Dialect, Facts, Verdict, classify};

fn function<'a>(oid: u32, name: &'a str, language: &'a str, volatility: Volatility) -> Function<'a> {
    Function {
        oid,
        schema: "public",
        name,
        aggregate: false,
        volatility,
        language,
        extension: (language == "c").then_some("uuid-ossp"),
        internal: None,
        hidden_by_builtin: false,
        one_argument: true,
        hides_builtins: false,
        sets_custom: &[],
    }
}

/// Tables `a`, `b` and `c`; `part` under `root`; `v` over `a`, `w` over `v`; `ruled` with a policy that reads `c`; tables that run code; functions.
fn facts() -> Facts {
    let mut catalog = Catalog::new();
    catalog.builtin(1, "pg_catalog", "lower");
    catalog.function(function(20000, "reads_b", "sql", Volatility::Stable));
    catalog.function(function(20001, "writes", "plpgsql", Volatility::Volatile));
    catalog.function(function(20002, "uuid_generate_v4", "c", Volatility::Volatile));
    catalog.function(function(20003, "unread", "c", Volatility::Stable));
    for (oid, name, kind) in [
        (30000, "a", b'r'),
        (30001, "b", b'r'),
        (30002, "c", b'r'),
        (30003, "root", b'p'),
        (30004, "part", b'r'),
        (30005, "v", b'v'),
        (30006, "w", b'v'),
        (30007, "ruled", b'r'),
        (30008, "triggers", b'r'),
        (30009, "over_triggers", b'v'),
        (30010, "cascades", b'r'),
        (30011, "defaults", b'r'),
        (30012, "uuids", b'r'),
        (30013, "abroad", b'f'),
        (30014, "over_abroad", b'v'),
    ] {
        catalog.relation(Relation { oid, schema: "public", name, kind, persistence: b'p' });
    }
    catalog.body(20000, Language::Sql, "SELECT count(*) FROM b");
    catalog.reaches(Object::Relation(30003), Object::Relation(30004));
    catalog.tree(Object::Relation(30005), "{RTE :relid 30000}");
    catalog.tree(Object::Relation(30006), "{RTE :relid 30005}");
    catalog.tree(Object::Relation(30007), "{RTE :relid 30002}");
    catalog.tree(Object::Relation(30009), "{RTE :relid 30008}");
    catalog.tree(Object::Relation(30014), "{RTE :relid 30013}");
    catalog.bad(Object::Change(30008), "trigger");
    catalog.bad(Object::Change(30010), "cascade");
    catalog.change_calls(30011, 20001);
    catalog.change_calls(30012, 20002);
    catalog.finish(1)
}

fn judged(sql: &str, facts: &Facts) -> Verdict {
    classify(sql.as_bytes(), facts, Dialect::default())
}

fn names(names: &str) -> Touched {
    match names {
        "everything" => return Touched::Everything,
        "cluster" => return Touched::Cluster,
        _ => {}
    }
    let mut touched = Touched::Nothing;
    names.split_whitespace().for_each(|name| _ = touched.merge(&Touched::relation(name)));
    touched
}

#[test]
fn a_read_touches_what_it_names_and_what_that_reaches() {
    let facts = facts();
    for (sql, expected) in [
        ("SELECT 1", ""),
        ("SELECT lower('a')", ""),
        ("SELECT * FROM a", "a"),
        ("SELECT * FROM public.a JOIN \"b\" USING (id)", "a b"),
        ("SELECT (SELECT max(x) FROM b) FROM a WHERE EXISTS (TABLE c)", "a b c"),
        ("WITH a AS (SELECT 1) SELECT * FROM a, b", "a b"),
        ("SELECT * FROM w", "w v a"),
        ("SELECT * FROM root", "root part"),
        ("SELECT * FROM part", "part"),
        ("SELECT * FROM ruled", "ruled c"),
        ("SELECT reads_b(), * FROM a", "a b"),
        ("COPY a TO STDOUT", "a"),
        ("SELECT * FROM a; SELECT * FROM b", "a b"),
        ("SELECT unread() FROM a", "everything"),
    ] {
        assert_eq!(judged(sql, &facts).reads, names(expected), "{sql}");
    }
    assert_eq!(judged("SELECT * FROM a", &facts.in_doubt(2)).reads, Touched::Everything);
    assert_eq!(judged("SELECT * FROM a", &Facts::empty()).reads, Touched::Everything);
}

#[test]
fn a_write_touches_its_target_or_everything() {
    let facts = facts();
    for (sql, expected) in [
        ("SELECT * FROM a", ""),
        ("INSERT INTO a (b) SELECT x FROM c", "a"),
        ("INSERT INTO public.a VALUES (1) ON CONFLICT DO UPDATE SET b = 1", "a"),
        ("UPDATE ONLY a SET b = 1 FROM c", "a"),
        ("DELETE FROM a USING b", "a"),
        ("MERGE INTO a USING b ON true WHEN MATCHED THEN UPDATE SET x = 1", "a"),
        ("COPY a FROM STDIN", "a"),
        ("WITH x AS (UPDATE a SET n = 1 RETURNING *) INSERT INTO b SELECT * FROM x", "a b"),
        ("WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x", "a"),
        ("WITH x AS (INSERT INTO younger VALUES (1) RETURNING *) SELECT * FROM x", "everything"),
        ("INSERT INTO younger VALUES (1)", "everything"),
        ("INSERT INTO pg_temp.own VALUES (1)", ""),
        ("UPDATE root SET n = 1", "root part"),
        ("UPDATE part SET n = 1", "part"),
        ("DELETE FROM w", "w v a"),
        ("TRUNCATE a, b", "a b"),
        ("TRUNCATE a CASCADE", "everything"),
        ("UPDATE triggers SET n = 1", "everything"),
        ("UPDATE over_triggers SET n = 1", "everything"),
        ("DELETE FROM cascades", "everything"),
        // It may stand for any table, also of this database.
        ("UPDATE abroad SET n = 1", "everything"),
        ("UPDATE over_abroad SET n = 1", "everything"),
        ("INSERT INTO defaults DEFAULT VALUES", "everything"),
        ("INSERT INTO uuids DEFAULT VALUES", "uuids"),
        ("INSERT INTO a VALUES (writes())", "everything"),
        ("INSERT INTO a VALUES (reads_b(), nextval('s'), lower('x'))", "a"),
        ("SELECT writes()", "everything"),
        ("SELECT nextval('s')", ""),
        ("SELECT pg_notify('a', 'b')", ""),
        ("SELECT pg_is_in_recovery()", ""),
        ("SELECT * FROM a FOR UPDATE", ""),
        ("BEGIN; UPDATE a SET n = 1; COMMIT", "a"),
        ("SHOW server_version", ""),
        ("DECLARE k CURSOR FOR SELECT * FROM a", ""),
        ("DECLARE k CURSOR FOR SELECT writes()", "everything"),
        ("FETCH k", ""),
        ("CALL p()", "everything"),
        ("DO 'x'", "everything"),
        ("EXECUTE p", "everything"),
        ("COMMIT PREPARED 'x'", "everything"),
        ("CREATE TABLE d (n int)", "cluster"),
        ("GRANT a TO b", "cluster"),
        ("SELECT 1 INTO d", "cluster"),
        ("nonsense", "everything"),
    ] {
        assert_eq!(judged(sql, &facts).writes, names(expected), "{sql}");
    }
    assert_eq!(judged("UPDATE a SET n = 1", &facts.in_doubt(2)).writes, Touched::Everything);
}
