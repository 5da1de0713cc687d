use super::*;

fn told(language: Language, text: &str) -> Vec<String> {
    let mut told = Vec::new();
    read_text(language, text, true, &mut |thing| {
        told.push(match thing {
            Reached::Call { schema: None, name, .. } => format!("{name}()"),
            Reached::Call { schema: Some(schema), name, .. } => format!("{schema}.{name}()"),
            Reached::Name(name) => name.to_owned(),
            Reached::Attribute(name) => format!(".{name}"),
            Reached::Operator(symbol) => symbol.to_owned(),
            Reached::Bad(rule) => format!("!{rule}"),
            Reached::Changes => "?changes".to_owned(),
            Reached::Target(name) => format!("?target {name}"),
            Reached::Traces(suspicion) => format!("?{}", suspicion.leaves.unwrap_or("shows")),
            Reached::Ddl => "+ddl".to_owned(),
            Reached::Sets(name) => format!("+sets {}", name.unwrap_or("?")),
            Reached::Literal(text) => format!("+literal {text}"),
        })
    });
    told
}

fn bad(language: Language, text: &str) -> Option<String> {
    told(language, text).into_iter().find_map(|thing| thing.strip_prefix('!').map(str::to_owned))
}

#[test]
fn calls_names_and_operators_are_told_wherever_they_stand() {
    let body = r#"
        DECLARE r other.t%ROWTYPE; n int := f(1);
        BEGIN
            <<l>> FOR r IN SELECT * FROM a JOIN "B c" ON g(a.x) ~~~~ 'h(1)' LOOP
                IF s.i(r) THEN RETURN CASE WHEN j() THEN (k).l ELSE 0 END; END IF;
            END LOOP;
            PERFORM m(n); -- o()
        END"#;
    let told = told(Language::PlPgSql, body);
    for thing in ["f()", "g()", "s.i()", "j()", "m()", "t", "a", "B c", "~~~~", ".l", "k"] {
        assert!(told.iter().any(|told| told == thing), "{thing}: {told:?}");
    }
    for thing in ["h()", "o()"] {
        assert!(!told.iter().any(|told| told == thing), "{thing}: {told:?}");
    }
    assert!(!told.iter().any(|thing| thing.starts_with('!')), "{told:?}");
}

#[test]
fn what_a_standby_refuses_is_told() {
    use Language::{PlPgSql, Sql};
    for (language, text) in [
        (PlPgSql, "BEGIN INSERT INTO t VALUES (1); END"),
        (PlPgSql, "BEGIN WITH x AS (DELETE FROM t RETURNING 1) SELECT * INTO y FROM x; END"),
        (PlPgSql, "BEGIN RETURN QUERY EXECUTE 'SELECT 1'; END"),
        (PlPgSql, "BEGIN IF a THEN TRUNCATE t; END IF; END"),
        (PlPgSql, "BEGIN CREATE TEMP TABLE x (a int); END"),
        (PlPgSql, "BEGIN SET LOCAL work_mem = '1MB'; END"),
        (PlPgSql, "BEGIN LOOP COMMIT; END LOOP; END"),
        (PlPgSql, "<<a>> LOCK TABLE t"),
        (PlPgSql, "BEGIN PERFORM 1 FROM t FOR NO KEY UPDATE; END"),
        (PlPgSql, "BEGIN x := (SELECT 1 FROM t FOR KEY SHARE); END"),
        (PlPgSql, "BEGIN CALL p(); END"),
        (PlPgSql, "BEGIN RETURN U&\"f\\0061\"(); END"),
        (PlPgSql, "BEGIN RETURN 'unterminated; END"),
        (Sql, "SELECT 1 INTO t"),
        (Sql, "SELECT 1; NOTIFY a"),
        (Sql, "COPY t TO '/tmp/x'"),
    ] {
        assert!(bad(language, text).is_some(), "{text}");
    }
    for (language, text) in [
        (PlPgSql, "BEGIN SELECT a INTO b FROM t; RETURN b; END"),
        (PlPgSql, "DECLARE comment text; BEGIN comment := 'x'; load = 1; copy[1] := 2; RETURN comment; END"),
        (PlPgSql, "DECLARE c CURSOR FOR SELECT 1; BEGIN OPEN c; FETCH c INTO x; CLOSE c; RETURN x; END"),
        (PlPgSql, "BEGIN RAISE NOTICE 'INSERT %', a; RETURN t.comment FROM t; EXCEPTION WHEN OTHERS THEN RETURN NULL; END"),
        (Sql, "SELECT id, comment FROM t WHERE start IS DISTINCT FROM $1 ORDER BY lock"),
    ] {
        assert_eq!(bad(language, text), None, "{text}");
    }
}

#[test]
fn a_sessions_own_setting_can_be_read_anywhere() {
    let calls = |text: &str| told(Language::Sql, text).iter().any(|thing| thing == "current_setting()");
    assert!(!calls("SELECT current_setting('app.tenant')::int"));
    assert!(!calls("SELECT pg_catalog.current_setting('app.tenant', true)"));
    for text in ["current_setting('port')", "current_setting($1)", "current_setting('a.' || b)", "current_setting('data_directory', true)"]
    {
        assert!(calls(&format!("SELECT {text}")), "{text}");
    }
}

fn nodes(tree: &str) -> Vec<Node<'_>> {
    let mut nodes = Vec::new();
    read_tree(tree, &mut |node| nodes.push(node));
    nodes
}

#[test]
fn what_a_body_may_leave_is_told() {
    use Language::{PlPgSql, Sql};
    let traces = |language, text: &str| -> Vec<String> {
        told(language, text).into_iter().filter_map(|thing| thing.strip_prefix('?').map(str::to_owned)).collect()
    };
    for (language, text, expected) in [
        (PlPgSql, "BEGIN NEW.updated_at = now(); RETURN NEW; END", &[][..]),
        (PlPgSql, "BEGIN IF TG_OP = 'UPDATE' THEN RETURN NEW; END IF; PERFORM 1 FROM t FOR NO KEY UPDATE; RETURN NULL; END", &[]),
        (PlPgSql, "BEGIN INSERT INTO s.log (a) VALUES (1) ON CONFLICT DO UPDATE SET a = 2; END", &["changes", "target log", "changes"]),
        (PlPgSql, "BEGIN UPDATE ONLY a SET b = 1; DELETE FROM c; END", &["changes", "target a", "changes", "target c"]),
        (PlPgSql, "BEGIN TRUNCATE a; LOCK b; NOTIFY c; END", &["changes"]),
        (PlPgSql, "BEGIN TRUNCATE a CASCADE; END", &["changes", "cascade"]),
        (PlPgSql, "BEGIN EXECUTE 'x'; END", &["body_runs_text"]),
        (PlPgSql, "BEGIN FOR r IN EXECUTE x LOOP END LOOP; END", &["body_runs_text"]),
        (PlPgSql, "BEGIN IF a THEN SET ROLE b; END IF; END", &["body_statement"]),
        (PlPgSql, "BEGIN LISTEN a; END", &["body_statement"]),
        (PlPgSql, "BEGIN CREATE TEMP TABLE a (b int); END", &["body_statement"]),
        (PlPgSql, "BEGIN NULL; EXCEPTION WHEN OTHERS THEN RESET ALL; END", &["body_statement"]),
        (PlPgSql, "BEGIN SHOW a; END", &["shows"]),
        (Sql, "SELECT 1; WITH a AS (SELECT 2) TABLE a", &[]),
        (Sql, "DECLARE a CURSOR WITH HOLD FOR SELECT 1", &["body_statement"]),
        (Sql, "SELECT 1; DISCARD TEMP", &["body_statement"]),
        (Sql, "SELECT 1 INTO a", &["select_into"]),
    ] {
        assert_eq!(traces(language, text), expected, "{text}");
    }
}

#[test]
fn a_tree_tells_oids() {
    let tree = "({QUERY :commandType 1 :utilityStmt <> :rtable ({RTE :relid 1259 :relkind r}) :targetList ({TARGETENTRY :expr {FUNCEXPR \
                :funcid 3810 :funcresulttype 16 :args <> :location 7} :resname a\\ :funcid\\ 9}) :rowMarks <> {ROWCOMPAREEXPR :opnos (o 97 98) \
                :rctype 1} {COERCETODOMAIN :arg {OPEXPR :opno 96 :opfuncid 65} :resulttype 16500})";
    let expected = [
        Node::Relation(1259),
        Node::Function { oid: 3810, first: None },
        Node::Value(16),
        Node::Operator(97),
        Node::Operator(98),
        Node::Operator(96),
        Node::Type(16500),
    ];
    assert_eq!(nodes(tree), expected);
    let writes = [Node::Changes, Node::Bad("body_writes"), Node::Bad("locking_clause")];
    assert_eq!(nodes("{QUERY :commandType 3 :rowMarks ({ROWMARKCLAUSE :rti 1})}"), writes);
}

#[test]
fn the_parameters_that_a_body_sets_are_told() {
    use Language::{PlPgSql, Sql};
    let sets = |language, text: &str| -> Vec<String> {
        told(language, text).into_iter().filter_map(|thing| thing.strip_prefix("+sets ").map(str::to_owned)).collect()
    };
    for (language, text, expected) in [
        (Sql, "SELECT set_config('a.b', $1, false)", &["a.b"][..]),
        (Sql, "SELECT pg_catalog.set_config('a.b'::text, $1, false)", &["a.b"]),
        (Sql, "SELECT set_config($$a.b$$, 'x', true), set_config($q$c.d$q$, 'x', true)", &["a.b", "c.d"]),
        (Sql, "SELECT set_config(E'a.b', 'x', true), set_config('a.''b', 'x', true)", &["a.b", "a.'b"]),
        (Sql, "SELECT set_config(E'a\\x2eb', 'x', true)", &["?"]),
        (Sql, "SELECT set_config('a' || '.b', 'x', true)", &["?"]),
        (Sql, "SELECT set_config('a'\n'.b', 'x', true)", &["?"]),
        (Sql, "SELECT set_config($1, 'x', true)", &["?"]),
        (Sql, "SELECT set_config(setting_name => 'a.b', new_value => 'x', is_local => true)", &["?"]),
        (Sql, "SELECT other.set_config($1)", &[]),
        (Sql, "SET LOCAL \"A\".b TO 1; RESET c.D", &["A.b", "c.d"]),
        (PlPgSql, "BEGIN SET SESSION a.b.c = 1; IF x THEN RESET d.e; END IF; END", &["a.b.c", "d.e"]),
        (PlPgSql, "BEGIN UPDATE t SET a.b = 1; END", &[]),
    ] {
        assert_eq!(sets(language, text), expected, "{text}");
    }
}

#[test]
fn a_constant_argument_with_a_dot_is_seen() {
    fn calls(tree: &str) -> Vec<Node<'_>> {
        nodes(tree).into_iter().filter(|node| matches!(node, Node::Function { .. })).collect()
    }
    let setting = |bytes: &str| {
        let tree = format!(
            "{{FUNCEXPR :funcid 2077 :funcresulttype 25 :args ({{CONST :consttype 25 :constlen -1 :constisnull false :location 23 \
             :constvalue 7 [ {bytes} ]}}) :location 7}}"
        );
        match calls(&tree)[..] {
            [Node::Function { oid: 2077, first: Some(bytes) }] => constant_text(bytes),
            _ => None,
        }
    };
    assert_eq!(setting("28 0 0 0 97 46 98").as_deref(), Some("a.b"));
    assert_eq!(setting("46 0 0 0 97 98 99").as_deref(), Some("abc"));
    assert_eq!(setting("46 0 0 0 -61 -92").as_deref(), Some("\u{e4}"), "bytes above 127 have a sign");
    assert_eq!(setting("46 0 0 0 -1"), None, "not UTF-8");
    let computed = "{FUNCEXPR :funcid 2077 :args ({FUNCEXPR :funcid 1258 :args ({CONST :constvalue 7 [ 28 0 0 0 97 46 98 ]})})}";
    assert_eq!(calls(computed)[0], Node::Function { oid: 2077, first: None });
    let behind = "{FUNCEXPR :funcid 1299 :args <>} {FUNCEXPR :funcid 2077 :args ({CONST :constvalue <>})}";
    assert!(calls(behind).iter().all(|node| matches!(node, Node::Function { first: None, .. })));
}
