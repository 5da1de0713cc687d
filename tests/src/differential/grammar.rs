//! Random scripts. A script draws a few themes, and most of its statements from those, so that the same few things meet often; transaction
//! control, errors and reads come everywhere. Names come from tiny sets, so that they collide.
//!
//! Left out, because the two sides differ there by nature: process ids and what tells them, LSNs, clocks, OIDs of what is made on the way,
//! `pg_my_temp_schema()`, plans, and random numbers.

use super::Port;
use super::objects::USERS;
use super::script::{End, Message, Script, Step};
use crate::unruly::Dice;

/// Alternatives by name; `{name}` in a text is replaced by one of them. What stands more often is drawn more often.
type Rules = &'static [(&'static str, &'static [&'static str])];

/// In every script.
const CONTROL: &[&str] = &[
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "START TRANSACTION",
    "BEGIN {mode}",
    "START TRANSACTION {mode}",
    "COMMIT",
    "COMMIT",
    "COMMIT",
    "COMMIT",
    "COMMIT",
    "END",
    "ROLLBACK",
    "ROLLBACK",
    "ROLLBACK",
    "ABORT",
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "SAVEPOINT {sp}",
    "SAVEPOINT {sp}",
    "SAVEPOINT {sp}",
    "RELEASE {sp}",
    "ROLLBACK TO {sp}",
    "ROLLBACK TO {sp}",
    "ROLLBACK TO SAVEPOINT {sp}",
    "SET TRANSACTION {mode}",
    "commit work",
    "/* a */ BEGIN -- b\n",
    "PREPARE TRANSACTION 'p'",
    "SET CONSTRAINTS ALL IMMEDIATE",
];
const ERRORS: &[&str] = &[
    "SELECT 1/0",
    "SELECT 1/0",
    "SELECT 1/0",
    "SELEC 1",
    "SELECT * FROM nowhere",
    "SELECT nothing FROM t",
    "INSERT INTO t VALUES (1, 'twice')",
    "SELECT raises()",
    "SELECT 'x'::int",
    "INSERT INTO late VALUES (1), (1)",
    "SELECT i/(i-2) FROM t ORDER BY i",
    "SET work_mem = 'nonsense'",
    "SET nosuch = 1",
    "SET ROLE nosuch",
    "INSERT INTO judge_base VALUES ('no')",
    "",
];
const READS: &[&str] = &[
    "SELECT v FROM t ORDER BY i",
    "SELECT v FROM t ORDER BY i",
    "SELECT i, v FROM plain ORDER BY i",
    "SELECT reads()",
    "SELECT 1",
    "SELECT current_user, session_user",
    "SELECT {current}",
    "SELECT {current}",
    "SHOW {setting}",
    "SELECT '2020-02-01'::date, 'a\\b'",
    "SELECT v FROM tenants ORDER BY v",
    "SELECT notices()",
    "TABLE plain",
    "VALUES (1), (2)",
    "SELECT count(*) FROM ser",
    "SELECT keeps_own()",
    "SELECT i FROM t WHERE i = 1 FOR UPDATE",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "SELECT U&'d\\0061ta'",
    "COPY (SELECT i FROM plain ORDER BY i) TO STDOUT",
];
const WRITES: &[&str] = &[
    "INSERT INTO t VALUES ({n}, 'new')",
    "INSERT INTO t VALUES ({n}, 'new') RETURNING i",
    "UPDATE t SET v = v || '+' WHERE i = {n}",
    "DELETE FROM t WHERE i = {n}",
    "INSERT INTO late VALUES ({n})",
    "INSERT INTO ser (v) VALUES ('s')",
    "INSERT INTO t VALUES ({n}, 'new') ON CONFLICT DO NOTHING",
];

/// Of values whose text a lexer reads in different ways.
const STRINGS: &[&str] = &[
    "SET my.x = {string}",
    "SET my.x = {string}",
    "SET LOCAL app.tenant = {string}",
    "SELECT set_config('my.x', {string}, false)",
    "SELECT {string}",
    "SET standard_conforming_strings = {onoff}",
    "SET standard_conforming_strings = {onoff}",
    "SET backslash_quote = {bsq}",
    "SET client_encoding = {enc}",
    "SELECT current_setting('my.x', true)",
    "SET search_path = {string}",
    "SET application_name = {string}",
    "SELECT v FROM t WHERE v = {string}",
    "SET escape_string_warning = {onoff}",
    "PREPARE {st} AS SELECT {string}",
];

/// What a script may be about.
const THEMES: Rules = &[
    (
        "set",
        &[
            "SET {assignment}",
            "SET {assignment}",
            "SET {assignment}",
            "SET LOCAL {assignment}",
            "SET LOCAL {assignment}",
            "SET SESSION {assignment}",
            "RESET {setting}",
            "SET {setting} TO DEFAULT",
            "SET LOCAL {setting} TO DEFAULT",
            "RESET ALL",
            "SET TIME ZONE 'Asia/Tokyo'",
            "SET LOCAL TIME ZONE 'UTC'",
            "SELECT set_config('{setting}', '{plain}', {bool})",
            "SELECT set_config({pair}, {bool})",
            "SELECT set_config({pair}, {bool})",
            "SELECT set_config(n, 'of a row', false) FROM (VALUES ('my.x'), ('app.tenant')) AS v (n)",
            "SELECT {current}",
            "SHOW {setting}",
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "SELECT '02/01/2020'::date, '01.02.2020'::date",
        ],
    ),
    (
        "custom",
        &[
            "SET app.tenant = '{n}'",
            "SET LOCAL app.tenant = '{n}'",
            "SELECT set_config('app.tenant', '{n}', {bool})",
            "SET my.x = '{n}'",
            "SET LOCAL my.x = '{n}'",
            "RESET app.tenant",
            "SELECT current_setting('app.tenant', true), current_setting('my.x', true)",
            "SELECT current_setting('app.tenant')",
            "SELECT v FROM tenants ORDER BY v",
            "RESET ALL",
            "DISCARD ALL",
            "SHOW my.x",
            "SET app.tenant TO DEFAULT",
            "SELECT current_setting('app.tenant', true) IS NULL",
        ],
    ),
    ("strings", STRINGS),
    (
        "role",
        &[
            "SET ROLE grp",
            "SET ROLE own_r",
            "SET ROLE NONE",
            "SET ROLE NONE",
            "RESET ROLE",
            "SET LOCAL ROLE grp",
            "SET role = 'grp'",
            "SET role TO DEFAULT",
            "SET SESSION AUTHORIZATION {user}",
            "SET SESSION AUTHORIZATION DEFAULT",
            "RESET SESSION AUTHORIZATION",
            "SELECT set_config('role', 'grp', {bool})",
            "SELECT set_config('role', 'none', {bool})",
            "SELECT current_user, session_user, current_setting('role')",
            "SET SESSION AUTHORIZATION postgres",
            "DISCARD ALL",
            "RESET ALL",
        ],
    ),
    (
        "temp",
        &[
            "CREATE TEMP TABLE {tt} (w text)",
            "CREATE TEMP TABLE {tt} (w text)",
            "CREATE TEMP TABLE {tt} (w text) ON COMMIT DROP",
            "CREATE TEMP TABLE {tt} (w text) ON COMMIT DELETE ROWS",
            "CREATE TEMP TABLE {tt} AS SELECT 'x'::text AS w",
            "SELECT 'into'::text AS w INTO TEMP {tt}",
            "INSERT INTO {tt} VALUES ('secret')",
            "INSERT INTO pg_temp.{tt} VALUES ('secret')",
            "SELECT * FROM {tt}",
            "DROP TABLE {tt}",
            "DROP TABLE IF EXISTS pg_temp.{tt}",
            "ALTER TABLE {tt} RENAME TO t2",
            "CREATE TEMP VIEW tv AS SELECT 'temp'::text AS w",
            "DROP VIEW tv",
            "CREATE TEMP SEQUENCE ts",
            "SELECT nextval('ts')",
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 42'",
            "SELECT pg_temp.f()",
            "DISCARD TEMP",
            "DISCARD ALL",
            "CREATE TEMP TABLE t (i int, v text)",
            "CREATE TABLE pg_temp.t1 (w text)",
            "DECLARE {cu} CURSOR WITH HOLD FOR SELECT * FROM {tt}",
            "TRUNCATE {tt}",
            "CREATE TYPE pg_temp.ty AS (a int)",
            "SELECT makes_temp()",
            "LOCK TABLE {tt}",
        ],
    ),
    (
        "channel",
        &[
            "LISTEN {ch}",
            "LISTEN {ch}",
            "UNLISTEN {ch}",
            "UNLISTEN *",
            "NOTIFY {ch}",
            "NOTIFY {ch}, 'said'",
            "SELECT pg_notify('{ch}', 'called')",
            "DISCARD ALL",
            "SELECT count(*) FROM pg_listening_channels()",
        ],
    ),
    (
        "advisory",
        &[
            "SELECT pg_advisory_lock({n})",
            "SELECT pg_advisory_lock({n})",
            "SELECT pg_try_advisory_lock({n})",
            "SELECT pg_advisory_xact_lock({n})",
            "SELECT pg_advisory_lock_shared({n})",
            "SELECT pg_advisory_lock({n}, 1)",
            "SELECT pg_advisory_unlock({n})",
            "SELECT pg_advisory_unlock_shared({n})",
            "SELECT pg_advisory_unlock_all()",
            "SELECT pg_try_advisory_xact_lock({n}), i FROM t ORDER BY i",
            "DISCARD ALL",
        ],
    ),
    (
        "cursor",
        &[
            "DECLARE {cu} CURSOR FOR SELECT i FROM t ORDER BY i",
            "DECLARE {cu} CURSOR WITH HOLD FOR SELECT i FROM t ORDER BY i",
            "DECLARE {cu} CURSOR WITH HOLD FOR SELECT i FROM t ORDER BY i",
            "DECLARE {cu} SCROLL CURSOR WITHOUT HOLD FOR SELECT v FROM t ORDER BY i",
            "FETCH {cu}",
            "FETCH 2 FROM {cu}",
            "FETCH ALL IN {cu}",
            "MOVE {cu}",
            "CLOSE {cu}",
            "CLOSE ALL",
            "DISCARD ALL",
            "UPDATE t SET v = 'current' WHERE CURRENT OF {cu}",
        ],
    ),
    (
        "prepare",
        &[
            "PREPARE {st} AS SELECT {n}",
            "PREPARE {st} AS INSERT INTO t VALUES ({n}, 'prepared')",
            "PREPARE {st} (int) AS SELECT $1",
            "EXECUTE {st}",
            "EXECUTE {st}",
            "EXECUTE {st} ({n})",
            "DEALLOCATE {st}",
            "DEALLOCATE {st}",
            "DEALLOCATE PREPARE {st}",
            "DEALLOCATE ALL",
            "DEALLOCATE ALL",
            "DISCARD ALL",
            "DISCARD PLANS",
            "SELECT name, from_sql FROM pg_prepared_statements ORDER BY 1",
            "SELECT 'DEALLOCATE ALL'",
            "CREATE TEMP TABLE t1 AS EXECUTE {st}",
        ],
    ),
    (
        "sequence",
        &[
            "INSERT INTO ser (v) VALUES ('s')",
            "INSERT INTO ser (v) VALUES ('s') RETURNING id",
            "SELECT nextval('seq')",
            "SELECT currval('seq')",
            "SELECT lastval()",
            "SELECT currval('ser_id_seq')",
            "SELECT setval('seq', 1{n})",
            "DISCARD SEQUENCES",
            "DISCARD ALL",
            "INSERT INTO on_sequence VALUES (1)",
        ],
    ),
    (
        "unseen",
        &[
            "INSERT INTO on_{what} VALUES ({n})",
            "INSERT INTO on_{what} VALUES ({n})",
            "INSERT INTO on_{what} VALUES ({n})",
            "INSERT INTO on_{what} VALUES ({n})",
            "INSERT INTO on_commit VALUES (1)",
            "SELECT * FROM sees",
            "SELECT * FROM sees_mem",
            "SELECT * FROM sees_role",
            "SELECT * FROM sees_lock",
            "INSERT INTO defaults (i) VALUES (1)",
            "INSERT INTO checks VALUES (1)",
            "SELECT * FROM guarded",
            "INSERT INTO ruled VALUES (1)",
            "INSERT INTO indexed VALUES (1)",
            "INSERT INTO generated (i) VALUES (1)",
            "SELECT 1::dom",
            "SELECT 1 ### 2",
            "SELECT (ROW(1)::pair)::text",
            "UPDATE pg_settings SET setting = '8MB' WHERE name = 'work_mem'",
            "SELECT U&\"set\\005fconfig\"('work_mem', '6MB', false)",
            "SELECT query_to_xml('select set_config(''app.tenant'', ''xml'', false)', true, false, '')",
            "SELECT table_to_xml('sees', true, false, '')",
            "SELECT * FROM ts_stat('select set_config(''app.tenant'', ''stat'', false)::tsvector')",
            "SELECT sets()",
            "SELECT sets_mem()",
            "SELECT sets_immutably(1)",
            "SELECT query_to_xml('select nextval(''seq'')', true, false, '')",
            "SELECT query_to_xml('select pg_advisory_lock(9)::text', true, false, '')",
            "DO $$ BEGIN PERFORM set_config('app.tenant', 'do', false); END $$",
            "DO 'BEGIN LISTEN c2; END'",
            "CALL commits()",
            "SELECT makes_temp()",
            "EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) SELECT sets()",
            "WITH x AS (INSERT INTO on_{what} VALUES (1) RETURNING i) SELECT * FROM x",
            "SELECT i FROM t WHERE sets() = 'x'",
            "COPY on_{what} FROM STDIN",
            "TABLE sees",
            "SELECT ('{' || 1 || '}')::int[]",
        ],
    ),
    (
        "discard",
        &[
            "DISCARD ALL",
            "DISCARD ALL",
            "DISCARD PLANS",
            "DISCARD TEMP",
            "DISCARD SEQUENCES",
            "DEALLOCATE ALL",
            "RESET ALL",
            "UNLISTEN *",
            "CLOSE ALL",
            "SET app.tenant = '{n}'",
            "LISTEN {ch}",
            "CREATE TEMP TABLE {tt} (w text)",
            "PREPARE {st} AS SELECT {n}",
            "SET work_mem = '{mem}'",
            "SET ROLE grp",
        ],
    ),
    (
        "modes",
        &[
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "SET default_transaction_isolation = 'repeatable read'",
            "SET SESSION CHARACTERISTICS AS TRANSACTION {mode}",
            "SHOW transaction_isolation",
            "SHOW default_transaction_isolation",
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "RESET default_transaction_isolation",
            "SELECT set_config('transaction_read_only', 'on', true)",
            "SET LOCAL transaction_read_only = on",
            "SHOW transaction_read_only",
            "DO 'BEGIN PERFORM 1; END'",
        ],
    ),
];

const PARTS: Rules = &[
    (
        "mode",
        &[
            "READ ONLY",
            "READ ONLY",
            "READ WRITE",
            "ISOLATION LEVEL REPEATABLE READ",
            "ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "DEFERRABLE",
        ],
    ),
    ("sp", &["s1", "s1", "s2"]),
    ("n", &["1", "2", "5", "5", "7"]),
    ("bool", &["true", "false", "false"]),
    ("onoff", &["on", "off"]),
    ("bsq", &["on", "off", "safe_encoding"]),
    ("enc", &["'SJIS'", "'UTF8'", "'LATIN1'", "'SQL_ASCII'"]),
    ("user", &["diff_app", "diff_app2", "grp"]),
    ("mem", &["8MB", "64kB", "9MB"]),
    ("tt", &["t1", "t1", "t2"]),
    ("ch", &["c1", "c1", "c2"]),
    ("cu", &["k1", "k1", "k2"]),
    ("st", &["a", "w"]),
    (
        "what",
        &["role", "tenant", "local", "mem", "temp", "lock", "listen", "prepare", "deallocate", "cursor", "sequence", "path", "commit"],
    ),
    (
        "setting",
        &[
            "DateStyle",
            "TimeZone",
            "application_name",
            "work_mem",
            "search_path",
            "default_text_search_config",
            "statement_timeout",
            "app.tenant",
            "my.x",
            "extra_float_digits",
            "client_min_messages",
            "bytea_output",
            "standard_conforming_strings",
            "role",
            "lock_timeout",
            "IntervalStyle",
        ],
    ),
    ("plain", &["8MB", "German", "public", "UTC", "5", "on", ""]),
    (
        "assignment",
        &[
            "DateStyle = 'German'",
            "DateStyle = 'SQL, DMY'",
            "TimeZone = 'Asia/Tokyo'",
            "TimeZone = 'UTC'",
            "application_name = 'named'",
            "work_mem = '{mem}'",
            "work_mem TO {mem_bare}",
            "search_path = pg_catalog, public",
            "search_path = nowhere",
            "search_path TO 'public', \"Odd\"",
            "default_text_search_config = 'pg_catalog.german'",
            "statement_timeout = '77s'",
            "app.tenant = '{n}'",
            "app.tenant = '{n}'",
            "my.x = '{n}'",
            "my.x = 'a b'",
            "extra_float_digits = 1",
            "client_min_messages = error",
            "bytea_output = escape",
            "IntervalStyle = 'iso_8601'",
            "lock_timeout = 5000",
            "enable_seqscan = off",
        ],
    ),
    ("mem_bare", &["8192", "'1GB'"]),
    (
        "pair",
        &[
            "'work_mem', '{mem}'",
            "'DateStyle', 'German'",
            "'app.tenant', '{n}'",
            "'TimeZone', 'Asia/Tokyo'",
            "'search_path', 'pg_catalog,public'",
            "'my.x', NULL",
        ],
    ),
    (
        "current",
        &[
            "current_setting('app.tenant', true)",
            "current_setting('my.x', true)",
            "current_setting('work_mem')",
            "current_setting('DateStyle')",
            "current_setting('search_path')",
            "current_setting('app.tenant', true) IS NULL",
        ],
    ),
    (
        "string",
        &[
            "'O''Brien'",
            "'O\\'Brien'",
            "'a\\'; set role grp; --'",
            "'a\\\\'",
            "E'a\\'b'",
            "E'a\\\\b'",
            "U&'d\\0061t'",
            "U&'d!0061t' UESCAPE '!'",
            "$$q'q$$",
            "$x$a$$b$x$",
            "'\u{83}\\'",
            "'\u{83}\\'' ; SET ROLE grp; --'",
            "'plain'",
            "'a' \n 'b'",
            "''",
            "'semi;colon'",
            "'\\'; SET work_mem = ''9MB'' --'",
            "'\u{e4}'",
            "'BEGIN; COMMIT'",
        ],
    ),
];

/// Built-in functions that FunctionCall calls by OID: set_config(text, text, boolean), pg_advisory_lock(bigint), current_setting(text),
/// pg_advisory_unlock_all().
const CALLS: &[(u32, &[&str])] = &[
    (2078, &["app.tenant", "called", "\0"]),
    (2078, &["work_mem", "7MB", "\0"]),
    (2078, &["app.tenant", "called", "\u{1}"]),
    (2880, &["\0\0\0\0\0\0\0\u{5}"]),
    (2077, &["work_mem"]),
    (2892, &[]),
    (1, &[]),
];

const OPTIONS: &[(&str, &str)] = &[
    ("options", "-c standard_conforming_strings=off"),
    ("options", "-c standard_conforming_strings=off"),
    ("options", "-c DateStyle=German"),
    ("options", "-c app.tenant=started"),
    ("options", "-c role=grp"),
    ("options", "-c search_path=pg_catalog,public -c work_mem=3MB"),
    ("DateStyle", "SQL, DMY"),
    ("client_encoding", "SJIS"),
    ("client_encoding", "LATIN1"),
    ("application_name", "started"),
    ("options", "-c backslash_quote=on -c client_encoding=SJIS"),
    ("options", "-c default_transaction_isolation=repeatable\\ read"),
    ("options", "-c nosuch=1"),
    ("options", "-c my.x=5 -c TimeZone=Asia/Tokyo"),
];

/// What lexers are told at the start.
const LEXERS: &[(&str, &str)] = &[
    ("options", "-c standard_conforming_strings=off"),
    ("options", "-c standard_conforming_strings=off -c backslash_quote=on -c client_encoding=SJIS"),
    ("options", "-c backslash_quote=on -c client_encoding=SJIS"),
    ("client_encoding", "SJIS"),
    ("options", "-c standard_conforming_strings=off -c escape_string_warning=off"),
];

const STATEMENTS: &[&str] = &["", "", "a", "a", "w", "w"];
const PORTALS: &[&str] = &["", "", "", "p", "q"];
/// In ten.
const THEMED: usize = 4;

pub(super) struct Grammar {
    dice: Dice,
    port: Port,
    /// Whether the pool has room for somebody else's transaction.
    holds: bool,
    themes: Vec<&'static [&'static str]>,
}

impl Grammar {
    /// The same script for the same seed.
    pub(super) fn script(seed: u64, port: Port, pool: usize) -> Script {
        let mut grammar = Grammar { dice: Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)), port, holds: pool > 1, themes: Vec::new() };
        let count = 1 + grammar.dice.below(3);
        grammar.themes = (0..count).map(|_| THEMES[grammar.dice.below(THEMES.len())].1).collect();
        grammar.whole()
    }

    fn whole(&mut self) -> Script {
        let mut script = Script { user: USERS[0].to_owned(), ..Script::default() };
        if self.one_in(6) {
            script.user = USERS[1 + self.dice.below(USERS.len() - 1)].to_owned();
        }
        if self.one_in(6) {
            let (name, value) = OPTIONS[self.dice.below(OPTIONS.len())];
            script.options.push((name.to_owned(), value.to_owned()));
        }
        if self.themes.contains(&STRINGS) && self.one_in(2) {
            let (name, value) = LEXERS[self.dice.below(LEXERS.len())];
            script.options = vec![(name.to_owned(), value.to_owned())];
        }
        for _ in 0..2 + self.dice.below(9) {
            if self.one_in(8) {
                let steps =
                    self.transaction().into_iter().map(|text| Step::Write { messages: vec![Message::Query(vec![text])], split: false });
                script.steps.extend(steps.filter(|step| !matches!(step, Step::Write { messages, .. } if copies(&messages[0]))));
            } else {
                let step = self.step();
                script.steps.push(step);
            }
        }
        script.state = self.one_in(2);
        script.end = match self.dice.below(12) {
            0 | 1 => End::Behind(self.last()),
            2 => End::HalfClose(self.last()),
            3 => End::Reset,
            _ => End::Terminate,
        };
        script
    }

    fn step(&mut self) -> Step {
        match self.dice.below(400) {
            0 => return Step::Cancel,
            1..12 => return Step::Look,
            12..24 if self.holds => return Step::Hold,
            _ => {}
        }
        let split = self.one_in(12);
        let mut messages = match self.dice.below(20) {
            0..9 => vec![Message::Query(vec![self.statement()])],
            9..13 => vec![self.batch()],
            13..17 => self.segment(),
            17 => self.pipeline(),
            18 if self.one_in(2) => self.copy(),
            _ => {
                let (function, arguments) = CALLS[self.dice.below(CALLS.len())];
                vec![Message::Call { function, arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect() }]
            }
        };
        // A COPY gets some data, wherever it was drawn.
        if let [Message::Query(texts)] = messages.as_slice() {
            let copies = texts.iter().filter(|text| text.contains("FROM STDIN")).count();
            for _ in 0..copies {
                messages.push(Message::CopyData("7\n".to_owned()));
                messages.push(if self.one_in(6) { Message::CopyFail } else { Message::CopyDone });
            }
        }
        Step::Write { messages, split }
    }

    /// What a transaction makes final or undoes, and what comes behind that.
    fn transaction(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        if !self.one_in(3) {
            texts.push(self.pick(&["BEGIN", "BEGIN", "START TRANSACTION", "BEGIN {mode}"]));
        }
        if self.one_in(4) {
            texts.push("SAVEPOINT s1".to_owned());
        }
        for _ in 0..1 + self.dice.below(2) {
            let themed = self.themes[self.dice.below(self.themes.len())];
            texts.push(self.pick(themed));
        }
        if self.one_in(4) {
            texts.push(self.pick(&["ROLLBACK TO s1", "RELEASE s1", "SELECT 1/0", "INSERT INTO t VALUES ({n}, 'new')"]));
        }
        texts.push(self.pick(&["COMMIT", "COMMIT", "COMMIT", "COMMIT AND CHAIN", "END", "ROLLBACK", "ROLLBACK AND CHAIN"]));
        let behind: &[&str] = match self.dice.below(5) {
            0 => ERRORS,
            1 => &["BEGIN", "ROLLBACK", "COMMIT", "SELECT 1/0"],
            2 => &["BEGIN"],
            3 => self.themes[0],
            _ => return texts,
        };
        texts.push(self.pick(behind));
        if self.one_in(3) {
            texts.push(self.pick(&["ROLLBACK", "COMMIT", "SELECT 1/0", "SELECT 1"]));
        }
        texts
    }

    fn batch(&mut self) -> Message {
        if self.one_in(3) {
            return Message::Query(self.transaction());
        }
        let count = 2 + self.dice.below(3);
        Message::Query((0..count).map(|_| self.statement()).collect())
    }

    /// What stands before a Terminate or the end of input: complete, with its Sync.
    fn last(&mut self) -> Vec<Message> {
        match self.dice.below(4) {
            0 => vec![Message::Query(vec!["COMMIT".to_owned()])],
            1 => self.segment(),
            2 => vec![Message::Query(vec![self.pick(WRITES)])],
            _ => vec![self.batch()].into_iter().filter(|message| !copies(message)).collect(),
        }
    }

    fn segment(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        for _ in 0..1 + self.dice.below(3) {
            self.unit(&mut messages);
            if self.one_in(10) {
                messages.push(Message::Flush);
            }
        }
        if self.one_in(20) {
            messages.push(Message::Query(vec![self.statement()]));
        } else {
            messages.push(Message::Sync);
        }
        messages
    }

    fn unit(&mut self, messages: &mut Vec<Message>) {
        let (statement, portal) = (self.name(STATEMENTS), self.name(PORTALS));
        let rows = [0, 0, 0, 1, 2][self.dice.below(5)];
        match self.dice.below(12) {
            0..5 => {
                let (text, values) = self.parsed();
                messages.push(Message::Parse { name: statement.clone(), text });
                if self.one_in(4) {
                    messages.push(Message::DescribeStatement(statement.clone()));
                }
                messages.push(Message::Bind { portal: portal.clone(), statement, values });
                if self.one_in(4) {
                    messages.push(Message::DescribePortal(portal.clone()));
                }
                messages.push(Message::Execute { portal, rows });
            }
            5 => {
                let (text, _) = self.parsed();
                messages.push(Message::Parse { name: statement, text });
            }
            6 | 7 => {
                messages.push(Message::Bind { portal: portal.clone(), statement, values: Vec::new() });
                messages.push(Message::Execute { portal, rows });
            }
            8 => messages.push(Message::DescribeStatement(statement)),
            9 => messages.push(Message::CloseStatement(statement)),
            10 => messages.push(if self.one_in(2) { Message::ClosePortal(portal) } else { Message::DescribePortal(portal) }),
            // A lone Execute of the unnamed portal can crash PostgreSQL 15 (see `Script::is_harmless`).
            _ => messages.push(Message::Execute { portal: if portal.is_empty() { "p".to_owned() } else { portal }, rows }),
        }
    }

    fn pipeline(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        if self.one_in(2) {
            // A transaction in a pipeline, in one segment or in several, as drivers send it.
            let (each, synced) = (self.one_in(3), self.one_in(3));
            for text in self.transaction() {
                if each {
                    messages.push(Message::Query(vec![text]));
                } else if !text.contains("FROM STDIN") {
                    messages.push(Message::Parse { name: String::new(), text });
                    messages.push(Message::Bind { portal: String::new(), statement: String::new(), values: Vec::new() });
                    messages.push(Message::Execute { portal: String::new(), rows: 0 });
                    if synced {
                        messages.push(Message::Sync);
                    }
                }
            }
            if !each {
                messages.push(Message::Sync);
            }
            messages.retain(|message| !copies(message));
            return messages;
        }
        for _ in 0..2 + self.dice.below(3) {
            if self.one_in(4) {
                messages.push(Message::Query(vec![self.statement()]));
            } else {
                let segment = self.segment();
                messages.extend(segment);
            }
        }
        // Data for COPY stand behind a single Query only.
        messages.retain(|message| !copies(message));
        messages
    }

    fn copy(&mut self) -> Vec<Message> {
        let table = ["t", "on_tenant", "on_temp", "late", "nowhere"][self.dice.below(5)];
        let mut messages = vec![Message::Query(vec![format!("COPY {table} (i) FROM STDIN")])];
        for _ in 0..self.dice.below(3) {
            messages.push(Message::CopyData(["7\n", "8\n9\n", "nonsense\n", "1\n", "1"][self.dice.below(5)].to_owned()));
        }
        messages.push(if self.one_in(4) { Message::CopyFail } else { Message::CopyDone });
        messages
    }

    /// For a Parse: no COPY FROM, as a later Bind of the name would leave the server waiting for data.
    fn parsed(&mut self) -> (String, Vec<String>) {
        if self.one_in(5) {
            let text = [
                "SELECT $1::int",
                "INSERT INTO t VALUES ($1, 'bound')",
                "SELECT set_config('app.tenant', $1, false)",
                "SELECT v FROM t WHERE i = $1",
            ];
            return (text[self.dice.below(text.len())].to_owned(), vec![self.pick(&["5", "6", "1"])]);
        }
        let text = self.statement();
        if text.contains("FROM STDIN") { ("SELECT 1".to_owned(), Vec::new()) } else { (text, Vec::new()) }
    }

    fn statement(&mut self) -> String {
        let drawn = match self.dice.below(10) {
            0..THEMED => self.themes[self.dice.below(self.themes.len())],
            4..7 => CONTROL,
            7 => ERRORS,
            8 => READS,
            _ => WRITES,
        };
        let text = self.pick(drawn);
        // On a replica's connection READ ONLY is the default from the beginning (docs: invariant 7): changes of it are told otherwise.
        let told_otherwise = self.port == Port::ReadOnly && (text.contains("CHARACTERISTICS AS TRANSACTION READ"));
        if told_otherwise { "SELECT 1".to_owned() } else { text }
    }

    fn pick(&mut self, from: &[&str]) -> String {
        let drawn = from[self.dice.below(from.len())];
        self.expand(drawn)
    }

    fn expand(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            out.push_str(before);
            let part = behind.split_once('}').and_then(|(name, after)| Some((PARTS.iter().find(|(part, _)| *part == name)?.1, after)));
            match part {
                Some((alternatives, after)) => {
                    out.push_str(&self.pick(alternatives));
                    rest = after;
                }
                None => {
                    out.push('{');
                    rest = behind;
                }
            }
        }
        out + rest
    }

    fn name(&mut self, from: &[&str]) -> String {
        from[self.dice.below(from.len())].to_owned()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.dice.below(count) == 0
    }
}

fn copies(message: &Message) -> bool {
    matches!(message, Message::Query(texts) if texts.iter().any(|text| text.contains("FROM STDIN")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_reads_back_and_says_no_name_of_a_rule() {
        for seed in 0..5_000 {
            let script = Grammar::script(seed, Port::ReadWrite, 3);
            let text = script.to_string();
            // All but an empty statement at a line's end.
            let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
            assert_eq!(lines(&Script::parse(&text).unwrap().to_string()), lines(&text));
            for (rule, _) in PARTS {
                assert!(!text.contains(&format!("{{{rule}}}")), "{rule} in {text}");
            }
        }
    }
}
