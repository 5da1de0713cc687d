//! Verdicts under facts that were read from a real leader.

use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_core::sql::{Class, Dialect, Effect, Facts, PinReason, classify};
use switchyard_tests::{Cluster, Options, Result, Router, RouterOptions, Stories, eventually};

const SCHEMA: &str = include_str!("../../proxy/core/corpus/schema.sql");
const ROUTING: &str = include_str!("../../proxy/core/corpus/routing.tsv");
const FORMS: &str = include_str!("../../proxy/core/corpus/forms.tsv");

/// Until facts follow DDL that passed through the router, and DDL that didn't.
const SOON: Duration = Duration::from_secs(10);
const POLLED: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn verdicts() -> Result {
    let cluster = Cluster::start(Options::new().members(2)).await?;
    let leader = cluster.leader().await?;
    leader.connect().await?.batch_execute(SCHEMA).await.context("schema.sql")?;
    let mut stories = Stories::new();
    stories.tell("every row of the corpus holds", corpus(&cluster)).await;
    stories.tell("what reaches something bad is the leader's", reach(&cluster)).await;
    stories.tell("what may leave session state behind isn't proven clean, and what can't is", leaves(&cluster)).await;
    let router = Router::start(&cluster, RouterOptions::new()).await?;
    stories.tell("facts follow DDL through the router", ddl_through(&cluster, &router)).await;
    stories.tell("facts follow DDL made elsewhere", ddl_elsewhere(&cluster, &router)).await;
    stories.tell("what a trigger leaves is known while it is there and on", triggers_elsewhere(&cluster, &router)).await;
    stories.tell("facts are of one database", databases(&cluster, &router)).await;
    stories.tell("a database that nobody asks about costs no connection", asleep(&cluster, &router)).await;
    stories.end(|| cluster.logs())
}

async fn facts(cluster: &Cluster) -> Result<Facts> {
    let client = cluster.leader().await?.connect().await?;
    Ok(switchyard::facts::load(&client, 1).await?)
}

fn judged(facts: &Facts, sql: &str) -> String {
    let verdict = classify(sql.as_bytes(), facts, Dialect::default());
    let class = match verdict.class {
        Class::Local => "local",
        Class::Read => "replica",
        Class::Write => "leader",
    };
    let rules: Vec<String> = verdict.reasons.iter().map(|reason| format!("{} {}", reason.rule, reason.piece)).collect();
    format!("{class} {}", rules.join(", "))
}

/// Lines of `expected statement`; what isn't judged so.
fn wrong<'a>(facts: &Facts, rows: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    rows.filter_map(|(expected, sql)| {
        let judged = judged(facts, &sql.replace("\\n", "\n"));
        (judged.split(' ').next() != Some(expected)).then(|| format!("{sql}: expected {expected}, got {judged}"))
    })
    .collect()
}

async fn corpus(cluster: &Cluster) -> Result {
    let facts = facts(cluster).await?;
    ensure!(facts.is_complete());
    for corpus in [ROUTING, FORMS] {
        let rows = corpus.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let rows = rows.filter_map(|line| Some((line.split('\t').next()?, line.splitn(3, '\t').nth(2)?)));
        let wrong = wrong(&facts, rows);
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
    Ok(())
}

/// Objects beyond `schema.sql`, one chain each.
const REACH: &str = r#"
CREATE SCHEMA reach; SET search_path = reach, public;
CREATE EXTENSION hstore; CREATE EXTENSION pg_trgm; CREATE EXTENSION citext; CREATE EXTENSION postgres_fdw; CREATE EXTENSION tablefunc;
CREATE FUNCTION atomic_good(int) RETURNS bigint LANGUAGE sql STABLE BEGIN ATOMIC SELECT count(*) FROM t WHERE id > $1; END;
CREATE FUNCTION atomic_bad() RETURNS boolean LANGUAGE sql STABLE BEGIN ATOMIC SELECT pg_is_in_recovery(); END;
CREATE FUNCTION default_bad(a bigint DEFAULT nextval('s')) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT $1';
CREATE FUNCTION chain_1() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1 FROM v_over_v_writes';
CREATE FUNCTION chain_2() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN reach.chain_1(); END';
CREATE FUNCTION dynamic() RETURNS int LANGUAGE plpgsql STABLE AS $$ DECLARE r int; BEGIN EXECUTE 'SELECT 1' INTO r; RETURN r; END $$;
CREATE FUNCTION cycle_a(int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN CASE WHEN $1 > 0 THEN cycle_b($1 - 1) ELSE 0 END; END';
CREATE FUNCTION cycle_b(int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN cycle_a($1); END';
CREATE FUNCTION long_body() RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT 1 -- $$;
DO $$ BEGIN EXECUTE format('CREATE OR REPLACE FUNCTION long_body() RETURNS int LANGUAGE sql IMMUTABLE AS %L', 'SELECT 1 --' || repeat('x', 70000)); END $$;
CREATE AGGREGATE good_sum(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE FUNCTION bad_step(int, int) RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM f_writes(''x''); RETURN $1; END';
CREATE AGGREGATE bad_sum(int) (SFUNC = bad_step, STYPE = int, INITCOND = '0');
CREATE TABLE guarded (id int, tenant text); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON guarded USING (tenant = current_setting('app.tenant', true));
CREATE TABLE guarded_badly (id int); ALTER TABLE guarded_badly ENABLE ROW LEVEL SECURITY;
CREATE POLICY theirs ON guarded_badly USING (NOT pg_is_in_recovery());
CREATE TABLE unguarded (id int); CREATE POLICY off ON unguarded USING (NOT pg_is_in_recovery());
CREATE TABLE parts (k int) PARTITION BY LIST (k);
CREATE UNLOGGED TABLE part_1 PARTITION OF parts FOR VALUES IN (1);
CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw;
CREATE TABLE ancestor (k int); CREATE FOREIGN TABLE heir () INHERITS (ancestor) SERVER elsewhere;
CREATE VIEW over_parts AS SELECT count(*) FROM parts;
CREATE VIEW stats AS SELECT pid FROM pg_stat_activity;
CREATE VIEW columns_of AS SELECT column_name FROM information_schema.columns;
CREATE VIEW locks AS SELECT id FROM t FOR UPDATE;
CREATE VIEW uses_operator AS SELECT v ~~~~ 'x' AS w FROM t;
CREATE FUNCTION check_it(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN f_writes(''c'') = $1; END';
CREATE DOMAIN checked AS int CHECK (check_it(VALUE));
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a checked, b int);
CREATE TYPE celsius AS (degrees float8);
CREATE FUNCTION to_celsius(text) RETURNS celsius LANGUAGE plpgsql AS 'BEGIN PERFORM f_writes($1); RETURN ROW(1); END';
CREATE CAST (text AS celsius) WITH FUNCTION to_celsius(text);
CREATE TYPE span AS RANGE (SUBTYPE = float8);
CREATE FUNCTION volatile_one(t) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
CREATE SEQUENCE numbers;
CREATE TEMP TABLE parted (id int);
CREATE TYPE coin AS ENUM ('a', 'b'); CREATE TABLE coins (c coin); CREATE TABLE purses (id int, cs coin[]);
CREATE FUNCTION coin_eq(coin, coin) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN f_writes(''c'') = 1; END';
CREATE OPERATOR = (LEFTARG = coin, RIGHTARG = coin, FUNCTION = coin_eq);
CREATE VIEW dearest AS SELECT max(c) AS c FROM coins;
CREATE FUNCTION first_coin() RETURNS coin LANGUAGE sql STABLE AS 'SELECT NULL::coin';
"#;

const REACHED: &str = "\
replica SELECT atomic_good(1)
leader SELECT atomic_bad()
leader SELECT default_bad()
leader SELECT chain_1()
leader SELECT chain_2()
leader SELECT dynamic()
replica SELECT cycle_a(3)
leader SELECT long_body()
replica SELECT good_sum(id) FROM t
leader SELECT bad_sum(id) FROM t
replica SELECT * FROM guarded
leader SELECT * FROM guarded_badly
replica SELECT * FROM unguarded
leader SELECT * FROM parts
leader SELECT * FROM part_1
leader SELECT * FROM ancestor
leader SELECT * FROM heir
leader SELECT * FROM over_parts
leader SELECT * FROM stats
replica SELECT * FROM columns_of
leader SELECT * FROM locks
leader SELECT * FROM uses_operator
leader SELECT 1::checked
replica SELECT 1::positive
leader SELECT '(1,2)'::pair
leader SELECT 'x'::celsius
replica SELECT span(1, 2), 'a=>1'::hstore -> 'a', similarity('a', 'b'), 'A'::citext = 'a'
leader SELECT * FROM crosstab('SELECT 1') AS c(a int)
leader SELECT t.volatile_one FROM t
leader SELECT last_value FROM numbers
replica SELECT * FROM parted
replica SELECT DISTINCT id FROM t WHERE id = 1 AND v IN ('a', 'b')
leader SELECT * FROM coins WHERE c IN ('a')
leader SELECT * FROM purses
leader SELECT * FROM dearest
leader SELECT first_coin() = 'a'
leader SELECT 'a'::coin = 'a'
leader SELECT 'a'::coin IN (NULL)
leader SELECT * FROM not_there
leader SELECT not_there(1)";

async fn reach(cluster: &Cluster) -> Result {
    let client = cluster.leader().await?.connect().await?;
    client.batch_execute(REACH).await?;
    let facts = facts(cluster).await?;
    let wrong = wrong(&facts, REACHED.lines().filter_map(|line| line.split_once(' ')));
    client.batch_execute("DROP SCHEMA reach CASCADE").await?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Objects that leave something, one of each kind, and what is met every day and leaves nothing.
const LEAVES: &str = r#"
CREATE SCHEMA leaves; SET search_path = leaves, public;
CREATE FUNCTION leaky(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('app.tenant', $1, false); RETURN $1; END $$;
CREATE FUNCTION leaky_int(int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT length(pg_catalog.set_config('app.tenant', $1::text, false)) $$;
CREATE FUNCTION leaky_bool(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT set_config('app.tenant', $1::text, false) IS NOT NULL $$;
CREATE FUNCTION leaky_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(1); RETURN NEW; END $$;
CREATE FUNCTION temp_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE x (i int); RETURN NEW; END $$;
CREATE FUNCTION listen_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN LISTEN x; RETURN NULL; END $$;
CREATE FUNCTION role_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET ROLE postgres; RETURN NULL; END $$;
CREATE FUNCTION dynamic_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE TG_ARGV[0]; RETURN NEW; END $$;
CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated_at = now(); RETURN NEW; END $$;
CREATE TABLE log (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text NOT NULL, whole jsonb, at timestamptz DEFAULT now());
CREATE FUNCTION audited() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN INSERT INTO log (what, whole) VALUES (TG_OP || '\n', to_jsonb(NEW)) ON CONFLICT DO NOTHING; RETURN NEW; END $$;
CREATE TABLE row_t (i int); CREATE TRIGGER t BEFORE INSERT ON row_t FOR EACH ROW EXECUTE FUNCTION leaky_trigger();
CREATE FUNCTION audited_badly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO row_t (i) VALUES (1); RETURN NULL; END $$;
CREATE TABLE plain (id serial PRIMARY KEY, v text NOT NULL DEFAULT 'x', u uuid DEFAULT gen_random_uuid(), updated_at timestamptz,
  n int CHECK (n > 0), twice int GENERATED ALWAYS AS (n * 2) STORED);
CREATE INDEX ON plain (lower(v)) WHERE n > 1;
CREATE TRIGGER touches BEFORE UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION touched();
CREATE TABLE child (id int PRIMARY KEY, plain_id int REFERENCES plain);
CREATE TABLE cascading (id int PRIMARY KEY, child_id int REFERENCES child ON DELETE CASCADE);
CREATE TABLE watched (id int, v text);
CREATE TRIGGER audits AFTER INSERT OR UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION audited();
CREATE TABLE pgbench_accounts (aid int NOT NULL PRIMARY KEY, bid int, abalance int, filler char(84)) WITH (fillfactor = 100);
CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
CREATE VIEW plain_view AS SELECT id, lower(v) AS v FROM plain WHERE n IN (1, 2);
CREATE TABLE tenants (id int, tenant text); ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON tenants USING (tenant = current_setting('app.tenant', true));
CREATE FUNCTION clean_volatile(int) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM plain WHERE id = $1';
CREATE FUNCTION clean_stable(int) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM plain WHERE id = $1';
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE priced (price positive);
CREATE EXTENSION citext; CREATE EXTENSION pg_trgm; CREATE EXTENSION dblink; CREATE EXTENSION moddatetime;
CREATE TABLE dated (mail citext, at timestamp);
CREATE TRIGGER dates BEFORE UPDATE ON dated FOR EACH ROW EXECUTE FUNCTION moddatetime(at);
CREATE TABLE off_t (i int); CREATE TRIGGER t BEFORE INSERT ON off_t FOR EACH ROW EXECUTE FUNCTION leaky_trigger();
ALTER TABLE off_t DISABLE TRIGGER t;

CREATE TABLE statement_t (i int); CREATE TRIGGER t AFTER DELETE ON statement_t EXECUTE FUNCTION temp_trigger();
CREATE TABLE constraint_t (i int);
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON constraint_t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION listen_trigger();
CREATE TABLE truncated_t (i int); CREATE TRIGGER t AFTER TRUNCATE ON truncated_t EXECUTE FUNCTION role_trigger();
CREATE TABLE dynamic_t (i int); CREATE TRIGGER t BEFORE INSERT ON dynamic_t FOR EACH ROW EXECUTE FUNCTION dynamic_trigger('SET ROLE x');
CREATE TABLE when_t (v text);
CREATE TRIGGER t BEFORE INSERT ON when_t FOR EACH ROW WHEN (set_config('app.a', NEW.v, false) <> 'x') EXECUTE FUNCTION touched();
CREATE TABLE through_t (i int); CREATE TRIGGER t AFTER INSERT ON through_t FOR EACH ROW EXECUTE FUNCTION audited_badly();
CREATE VIEW instead_v AS SELECT 1 AS i; CREATE TRIGGER t INSTEAD OF INSERT ON instead_v FOR EACH ROW EXECUTE FUNCTION leaky_trigger();
CREATE TABLE parent_t (i int) PARTITION BY RANGE (i); CREATE TABLE part_t PARTITION OF parent_t DEFAULT;
CREATE TRIGGER t BEFORE INSERT ON part_t FOR EACH ROW EXECUTE FUNCTION leaky_trigger();
CREATE TABLE keyed_t (i int) PARTITION BY RANGE (leaky_int(i)); CREATE TABLE keyed_part PARTITION OF keyed_t DEFAULT;
CREATE TABLE ancestor_t (i int); CREATE TABLE heir_t () INHERITS (ancestor_t);
CREATE TRIGGER t BEFORE UPDATE ON heir_t FOR EACH ROW EXECUTE FUNCTION leaky_trigger();
CREATE TABLE pk_t (i int PRIMARY KEY); CREATE TABLE fk_t (i int REFERENCES pk_t ON DELETE SET NULL);
CREATE TRIGGER t BEFORE UPDATE ON fk_t FOR EACH ROW EXECUTE FUNCTION leaky_trigger();
CREATE TABLE ruled_t (i int); CREATE RULE r AS ON UPDATE TO ruled_t DO ALSO SELECT set_config('app.a', 'x', false);
CREATE TABLE rule_to_t (i int); CREATE RULE r AS ON INSERT TO rule_to_t DO ALSO INSERT INTO row_t VALUES (NEW.i);
CREATE TABLE notes_t (i int); CREATE RULE r AS ON INSERT TO notes_t DO ALSO NOTIFY x;
CREATE VIEW leaky_v AS SELECT set_config('app.a', 'x', false); CREATE VIEW nested_v AS SELECT * FROM leaky_v;
CREATE VIEW calling_v AS SELECT leaky(v) FROM plain; CREATE VIEW over_row_v AS SELECT i FROM row_t;
CREATE TABLE default_t (i int, v text DEFAULT set_config('app.a', 'x', false)); CREATE TABLE default_f (i int, v text DEFAULT leaky('x'));
CREATE TABLE generated_t (i int, j int GENERATED ALWAYS AS (leaky_int(i)) STORED);
CREATE TABLE checked_t (i int CHECK (set_config('app.a', 'x', false) <> i::text));
CREATE TABLE indexed_t (i int); CREATE INDEX ON indexed_t (leaky_int(i));
CREATE TABLE partial_t (i int); CREATE INDEX ON partial_t (i) WHERE leaky_bool(i);
CREATE DOMAIN leaky_d AS text CHECK (set_config('app.a', VALUE, false) <> ''); CREATE DOMAIN over_d AS leaky_d;
CREATE DOMAIN default_d AS text DEFAULT set_config('app.a', 'x', false); CREATE TABLE domain_default_t (i int, v default_d);
CREATE TYPE pair AS (a leaky_d, b int); CREATE TABLE domain_t (d over_d); CREATE TABLE array_t (d leaky_d[]); CREATE TABLE composite_t (p pair);
CREATE FUNCTION takes_d(over_d) RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
CREATE FUNCTION declares_d() RETURNS int LANGUAGE plpgsql STABLE AS $$ DECLARE d leaky_d := 'x'; BEGIN RETURN 1; END $$;
CREATE VIEW records_v AS SELECT * FROM json_to_record('{}') AS r(a leaky_d);
CREATE FUNCTION op_impl(text, text) RETURNS boolean LANGUAGE sql AS $$ SELECT set_config('app.a', $1, false) = $2 $$;
CREATE OPERATOR @@@@ (LEFTARG = text, RIGHTARG = text, FUNCTION = leaves.op_impl);
CREATE OPERATOR ### (RIGHTARG = bigint, FUNCTION = pg_try_advisory_lock);
CREATE TYPE coin AS ENUM ('a', 'b'); CREATE FUNCTION coin_like(coin, coin) RETURNS boolean LANGUAGE sql AS $$ SELECT leaky('x') = 'x' $$;
CREATE OPERATOR ~~ (LEFTARG = coin, RIGHTARG = coin, FUNCTION = coin_like); CREATE TABLE coins (c coin);
CREATE TYPE celsius AS (degrees int); CREATE FUNCTION to_celsius(int) RETURNS celsius LANGUAGE sql AS $$ SELECT leaky_int($1) $$;
CREATE CAST (int AS celsius) WITH FUNCTION to_celsius(int) AS ASSIGNMENT; CREATE TABLE warm (c celsius);
CREATE TYPE tint AS ENUM ('x'); CREATE FUNCTION tint_json(tint) RETURNS json LANGUAGE sql AS $$ SELECT to_json(leaky('x')) $$;
CREATE CAST (tint AS json) WITH FUNCTION tint_json(tint); CREATE TABLE tints (t tint);
CREATE FUNCTION span_gap(float8, float8) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$ SELECT leaky_int(1)::float8 $$;
CREATE TYPE span AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = span_gap); CREATE TABLE spans (s span);
CREATE FUNCTION order_ints(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT leaky_int(1) $$;
CREATE TYPE rank AS ENUM ('x'); CREATE FUNCTION order_ranks(rank, rank) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT leaky_int(1) $$;
CREATE FUNCTION rank_lt(rank, rank) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT false $$;
CREATE OPERATOR <<<< (LEFTARG = rank, RIGHTARG = rank, FUNCTION = rank_lt);
CREATE OPERATOR CLASS rank_ops FOR TYPE rank USING btree AS OPERATOR 1 <<<<, FUNCTION 1 order_ranks(rank, rank);
CREATE TABLE ranks (r rank);
CREATE TABLE guarded_t (i int); ALTER TABLE guarded_t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON guarded_t FOR SELECT USING (leaky_bool(i));
CREATE TABLE with_check_t (i int); ALTER TABLE with_check_t ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON with_check_t FOR INSERT WITH CHECK (set_config('app.a', 'x', false) = 'x');
CREATE FUNCTION leaky_step(int, int) RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM setseed(0); RETURN $1; END';
CREATE AGGREGATE leaky_sum(int) (SFUNC = leaky_step, STYPE = int, INITCOND = '0');
CREATE FUNCTION runs_text(text) RETURNS xml LANGUAGE sql STABLE AS $$ SELECT query_to_xml($1, true, true, '') $$;
CREATE FUNCTION holds() RETURNS int LANGUAGE sql AS 'DECLARE c CURSOR WITH HOLD FOR SELECT 1; SELECT 1';
CREATE FUNCTION holds_trigger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM holds(); RETURN NULL; END';
CREATE TABLE holds_t (i int); CREATE TRIGGER t AFTER INSERT ON holds_t EXECUTE FUNCTION holds_trigger();
CREATE FUNCTION quoted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 'x\'', set_config($q$app.a$q$, $q$y$q$, false) --'
  ; RETURN NULL; END $$;
CREATE TABLE quoted_t (i int); CREATE TRIGGER t AFTER INSERT ON quoted_t EXECUTE FUNCTION quoted();
CREATE FUNCTION custom() RETURNS trigger LANGUAGE plpgsql SET app.a = 'x' AS $$ BEGIN RETURN NULL; END $$;
CREATE TABLE custom_t (i int); CREATE TRIGGER t AFTER INSERT ON custom_t EXECUTE FUNCTION custom();
CREATE FUNCTION settings_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE pg_settings SET setting = '1' WHERE name = 'x'; RETURN NULL; END $$;
CREATE TABLE settings_t (i int); CREATE TRIGGER t AFTER INSERT ON settings_t EXECUTE FUNCTION settings_trigger();
CREATE FUNCTION atomic(text) RETURNS text LANGUAGE sql STABLE BEGIN ATOMIC SELECT leaky($1); END;
CREATE FUNCTION defaulted(a text DEFAULT set_config('app.a', 'x', false)) RETURNS text LANGUAGE sql STABLE AS 'SELECT $1';
CREATE FUNCTION lower(text) RETURNS text LANGUAGE sql STABLE AS $$ SELECT upper($1) $$;
CREATE FUNCTION upper(text) RETURNS text LANGUAGE sql STABLE AS $$ SELECT leaky($1) $$;
CREATE VIEW settings_v AS SELECT name FROM pg_settings;
CREATE VIEW counted_v AS SELECT relname, n_tup_ins FROM pg_stat_xact_user_tables;
CREATE VIEW counted_by AS SELECT count(*) FROM counted_v;
CREATE FUNCTION counts() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT pg_stat_get_xact_tuples_inserted(1)';
CREATE FUNCTION prepared() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM pg_prepared_statements';
CREATE TABLE by_set_t (v text);
CREATE FUNCTION by_set() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET LOCAL App.By_Set = 'x'; RETURN NEW; END $$;
CREATE TRIGGER t BEFORE INSERT ON by_set_t FOR EACH ROW EXECUTE FUNCTION by_set();
CREATE TABLE own_t (v text); CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql SET app.own = 'x' AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER t BEFORE INSERT ON own_t FOR EACH ROW WHEN (set_config('app.when', NEW.v, false) <> '') EXECUTE FUNCTION own();
CREATE MATERIALIZED VIEW refreshed AS SELECT set_config('app.refreshed', 'x', false);
CREATE MATERIALIZED VIEW refreshed_unknown AS SELECT set_config('app.' || 'x', 'x', false);
CREATE TABLE argument_t (i int); CREATE FUNCTION argument() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM set_config(TG_ARGV[0], 'x', false), 'app.composed'; RETURN NEW; END $$;
CREATE TRIGGER t BEFORE INSERT ON argument_t FOR EACH ROW EXECUTE FUNCTION argument('app.argument');
CREATE VIEW computed_v AS SELECT set_config('app.' || i, 'x', false) FROM row_t;
CREATE AGGREGATE setting_state(text, boolean) (SFUNC = set_config, STYPE = text, INITCOND = 'app.state');
CREATE DOMAIN computed_d AS text CHECK (set_config(VALUE, 'x', false) <> '');
CREATE TABLE cascading_t (i int PRIMARY KEY); CREATE TABLE cascaded_t (i int REFERENCES cascading_t);
CREATE TRIGGER t AFTER TRUNCATE ON cascaded_t EXECUTE FUNCTION argument('app.argument');
"#;

/// Statements that leave something: `unknown` where that may be a custom setting whose name the facts don't tell.
const SETTERS: &str = "\
known INSERT INTO row_t VALUES (1)
known INSERT INTO by_set_t VALUES ('x')
known INSERT INTO own_t VALUES ('x')
known INSERT INTO custom_t VALUES (1)
known DELETE FROM statement_t
known INSERT INTO constraint_t VALUES (1)
known TRUNCATE log, truncated_t
known SELECT * FROM leaky_v
known SELECT count(*) FROM nested_v
known INSERT INTO default_t VALUES (1)
known INSERT INTO guarded_t VALUES (1)
known SELECT 'x'::leaky_d
known SELECT 'a'::text @@@@ 'b'::text
younger SELECT * FROM computed_v_younger
unknown CREATE TEMP TABLE computed_new (LIKE argument_t INCLUDING ALL)
known REFRESH MATERIALIZED VIEW refreshed
known CREATE TABLE new_one (i int)
known SELECT set_config('app.a', 'x', false)
unknown REFRESH MATERIALIZED VIEW refreshed_unknown
unknown INSERT INTO dynamic_t VALUES (1)
unknown INSERT INTO settings_t VALUES (1)
unknown INSERT INTO argument_t VALUES (1)
unknown SELECT * FROM computed_v
unknown SELECT setting_state('x', false)
unknown SELECT 'x'::computed_d
unknown SELECT U&\"set\\005fconfig\"('app.x', 'x', false)
unknown SELECT query_to_xml('select 1', true, true, '')
unknown SELECT runs_text('x')
unknown SELECT * FROM dblink('x', 'y') AS d(a int)
unknown UPDATE pg_settings SET setting = '1' WHERE name = 'x'
known EXECUTE p
unknown EXECUTE p (runs_text('x'))
unknown PREPARE p AS SELECT * FROM computed_v
unknown TRUNCATE cascading_t CASCADE
unknown DO $$ BEGIN END $$";

/// `proven` or `leaves`, and a statement.
const LEFT: &str = "\
proven SELECT * FROM plain WHERE length(v) = $1 ORDER BY id LIMIT 3
proven INSERT INTO plain (v, n) VALUES ($1, $2) RETURNING id
proven INSERT INTO plain (id, v) VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET v = excluded.v
proven UPDATE plain SET v = initcap(v) WHERE id = $1
proven WITH gone AS (DELETE FROM plain WHERE id = 1 RETURNING *) INSERT INTO log (what) SELECT v FROM gone
proven DELETE FROM plain USING child WHERE child.plain_id = plain.id
proven MERGE INTO plain p USING child c ON c.plain_id = p.id WHEN MATCHED THEN UPDATE SET n = 2 WHEN NOT MATCHED THEN INSERT (v) VALUES ('x')
proven INSERT INTO child VALUES (1, 1)
proven DELETE FROM child WHERE id = 1
proven UPDATE watched SET v = 'x' FROM plain WHERE plain.id = watched.id
proven TRUNCATE log, watched RESTART IDENTITY
proven COPY plain (v, n) FROM STDIN
proven COPY plain TO STDOUT
proven COPY (SELECT * FROM plain) TO STDOUT
proven EXPLAIN ANALYZE UPDATE plain SET v = 'x'
proven DECLARE c CURSOR WITH HOLD FOR SELECT * FROM plain
proven UPDATE pgbench_accounts SET abalance = abalance + $1 WHERE aid = $2
proven INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 2, 3, 4, CURRENT_TIMESTAMP)
proven SELECT * FROM plain_view
proven SELECT * FROM tenants FOR UPDATE
proven UPDATE tenants SET id = 1
proven SELECT clean_stable(1), 'A'::citext = 'a', similarity('a', 'b')
proven INSERT INTO priced VALUES (1)
proven UPDATE dated SET mail = 'a'
proven SELECT 1::positive
proven INSERT INTO off_t VALUES (1)
proven SELECT c.relname, n.nspname FROM pg_catalog.pg_class c LEFT JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind ~ 'r'
proven SET search_path = leaves
proven BEGIN; SET LOCAL work_mem = '1MB'; LISTEN x; COMMIT
proven FETCH 10 FROM c
proven SELECT i FROM row_t FOR UPDATE
leaves SELECT set_config('app.a', 'x', true)
leaves SELECT pg_try_advisory_lock(1)
leaves SELECT setseed(0)
leaves SELECT clean_volatile(1), leaky('x')
leaves SELECT U&\"set\\005fconfig\"('app.a', 'x', false)
leaves SELECT query_to_xml('select 1', true, true, '')
leaves SELECT table_to_xml('plain', true, true, '')
leaves SELECT ts_stat('select 1')
leaves SELECT ts_rewrite('a', 'select 1')
leaves SELECT pg_input_is_valid('x', 'leaky_d')
leaves SELECT domain_in('x', 1, -1)
leaves SELECT * FROM dblink('x', 'y') AS d(a int)
leaves SELECT set_limit(0.5)
leaves UPDATE pg_settings SET setting = '1' WHERE name = 'x'
leaves DO $$ BEGIN END $$
leaves CALL p_writes()
leaves EXECUTE p
leaves CREATE TABLE new_one (i int)
leaves SELECT 1 INTO new_one
leaves SELECT * FROM unknown_one
leaves DELETE FROM plain USING unknown_one
leaves INSERT INTO pg_temp.x VALUES (1)
leaves INSERT INTO row_t VALUES (1)
leaves COPY row_t FROM STDIN
leaves COPY plain (v) FROM STDIN WHERE leaky(v) = 'x'
leaves WITH w AS (INSERT INTO row_t VALUES (1) RETURNING 1) SELECT * FROM w
leaves EXPLAIN ANALYZE INSERT INTO row_t VALUES (1)
leaves DELETE FROM statement_t
leaves INSERT INTO constraint_t VALUES (1)
leaves TRUNCATE log, truncated_t
leaves INSERT INTO dynamic_t VALUES (1)
leaves INSERT INTO when_t VALUES ('x')
leaves INSERT INTO through_t VALUES (1)
leaves INSERT INTO instead_v VALUES (1)
leaves INSERT INTO parent_t VALUES (1)
leaves INSERT INTO part_t VALUES (1)
leaves INSERT INTO keyed_t VALUES (1)
leaves INSERT INTO keyed_part VALUES (1)
leaves UPDATE ancestor_t SET i = 1
leaves DELETE FROM pk_t
leaves UPDATE ruled_t SET i = 1
leaves INSERT INTO rule_to_t VALUES (1)
leaves INSERT INTO notes_t VALUES (1)
leaves SELECT * FROM leaky_v
leaves SELECT count(*) FROM nested_v
leaves SELECT * FROM calling_v
leaves INSERT INTO over_row_v VALUES (1)
leaves INSERT INTO default_t VALUES (1)
leaves INSERT INTO default_f VALUES (1)
leaves INSERT INTO generated_t VALUES (1)
leaves INSERT INTO checked_t VALUES (1)
leaves INSERT INTO indexed_t VALUES (1)
leaves INSERT INTO partial_t VALUES (1)
leaves SELECT 'x'::leaky_d
leaves SELECT CAST('x' AS over_d)
leaves INSERT INTO domain_default_t (i) VALUES (1)
leaves INSERT INTO domain_t VALUES ($1)
leaves INSERT INTO array_t VALUES ('{x}')
leaves INSERT INTO composite_t VALUES ('(x,1)')
leaves SELECT jsonb_populate_record(NULL::composite_t, '{}')
leaves SELECT takes_d($1)
leaves SELECT declares_d()
leaves SELECT * FROM records_v
leaves SELECT * FROM json_to_record('{}') AS r(a leaky_d)
leaves SELECT 'a'::text @@@@ 'b'::text
leaves SELECT ### 1::bigint
leaves SELECT * FROM coins WHERE c LIKE 'a'
leaves SELECT 1::celsius
leaves INSERT INTO warm VALUES (1)
leaves SELECT to_json(t) FROM tints
leaves INSERT INTO spans VALUES ('[1,2]')
leaves SELECT span(1, 2)
leaves SELECT * FROM ranks ORDER BY r
leaves SELECT * FROM guarded_t
leaves DELETE FROM guarded_t
leaves INSERT INTO with_check_t VALUES (1)
leaves SELECT leaky_sum(n) FROM plain
leaves SELECT runs_text('x')
leaves INSERT INTO holds_t VALUES (1)
leaves INSERT INTO quoted_t VALUES (1)
leaves INSERT INTO custom_t VALUES (1)
leaves INSERT INTO settings_t VALUES (1)
leaves SELECT atomic('x')
leaves SELECT defaulted()
leaves SELECT lower('x')
leaves SELECT 1; INSERT INTO row_t VALUES (1)";

async fn leaves(cluster: &Cluster) -> Result {
    let client = cluster.leader().await?.connect().await?;
    client.batch_execute(LEAVES).await?;
    let known = facts(cluster).await?;
    let of = |facts: &Facts, sql: &str| classify(sql.as_bytes(), facts, Dialect::default());
    let mut wrong = Vec::new();
    for (expected, sql) in LEFT.lines().filter_map(|line| line.split_once(' ')) {
        let verdict = of(&known, sql);
        let judged = if verdict.unseen.leaves { "leaves" } else { "proven" };
        if judged != expected || verdict.unseen.leaves != verdict.unproven.is_some() {
            wrong.push(format!("{sql}: expected {expected}, got {judged}: {:?}", verdict.unproven));
        }
    }
    for (sql, settings, statements) in [
        ("SELECT * FROM plain", false, false),
        ("SELECT current_setting('app.a', true)", true, false),
        ("SHOW app.a", true, false),
        ("SHOW work_mem", false, false),
        ("SELECT * FROM tenants", true, false),
        ("SELECT * FROM settings_v", true, false),
        ("SELECT prepared()", false, true),
        ("SELECT * FROM pg_prepared_statements", false, true),
        ("SELECT runs_text('x')", true, true),
        ("INSERT INTO dynamic_t VALUES (1)", true, true),
        ("INSERT INTO row_t VALUES (1)", false, false),
    ] {
        let judged = of(&known, sql).unseen;
        if (judged.sees_settings, judged.sees_statements) != (settings, statements) {
            wrong.push(format!("{sql}: {judged:?}"));
        }
    }
    for (counters, sql) in [
        (true, "TABLE counted_by"),
        (true, "SELECT counts()"),
        (true, "TABLE pg_stat_user_tables"),
        (false, "TABLE plain"),
        (false, "TABLE settings_v"),
    ] {
        if of(&known, sql).effects.contains(&Effect::Pin(PinReason::Statistics)) != counters {
            wrong.push(format!("{sql}: whether it sees counters"));
        }
    }
    let names: Vec<String> = known.custom_settings().iter().map(|name| name.to_string()).collect();
    for name in ["app.a", "app.by_set", "app.composed", "app.own", "app.refreshed", "app.tenant", "app.when"] {
        if !names.iter().any(|known| known == name) {
            wrong.push(format!("{name} isn't among {names:?}"));
        }
    }
    for (sets_unknown, sql) in SETTERS.lines().filter_map(|line| line.split_once(' ')) {
        let verdict = of(&known, sql);
        let (judged, younger) = (verdict.unseen, !verdict.unknown.is_empty());
        let wanted = (sets_unknown == "unknown", sets_unknown == "younger");
        if (judged.sets_unknown, younger) != wanted || !judged.leaves {
            wrong.push(format!("{sql}: {judged:?}"));
        }
    }
    let doubted = known.in_doubt(2);
    for (sql, leaves) in
        [("SELECT 1", false), ("SELECT now()", false), ("BEGIN", false), ("SELECT * FROM plain", true), ("SELECT f_x(1)", true)]
    {
        for facts in [&doubted, &Facts::empty()] {
            if of(facts, sql).unseen.leaves != leaves {
                wrong.push(format!("{sql} in doubt, expected {leaves}"));
            }
        }
    }
    ensure!(known.value_suspicion().leaves.is_some());
    client.batch_execute("DROP SCHEMA leaves CASCADE").await?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(facts(cluster).await?.value_suspicion().leaves.is_none());
    Ok(())
}

/// Reads that the router has sent to a member.
async fn reads(router: &Router, node: &str) -> Result<u64> {
    let metrics = router.get("/metrics").await?.body;
    let line = metrics.lines().find(|line| line.starts_with("switchyard_reads_total{") && line.contains(&format!("node=\"{node}\"")));
    let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
    value.parse::<f64>().map(|value| value as u64).with_context(|| value.to_owned())
}

/// A connection string of the harness's, for another database than `postgres`.
fn of_database(dsn: &str, database: &str) -> String {
    format!("{}{database}", dsn.strip_suffix("postgres").unwrap_or(dsn))
}

/// Whether a statement, in a session that has seen nothing yet, is given to the replica.
async fn on_replica(cluster: &Cluster, router: &Router, database: &str, sql: &str) -> Result<bool> {
    let replica = cluster.replicas().await?.first().context("no replica")?.name().to_owned();
    let client = switchyard_tests::cluster::connect(&of_database(&router.rw_dsn("postgres"), database)).await?;
    // Whatever the first connections to a server cost, and whatever the probes do, isn't a statement of a client's.
    let before = reads(router, &replica).await?;
    client.simple_query(sql).await?;
    Ok(reads(router, &replica).await? > before)
}

async fn goes(cluster: &Cluster, router: &Router, database: &str, sql: &str, to_replica: bool, limit: Duration) -> Result {
    let what = format!("{sql} goes to the {}", if to_replica { "replica" } else { "leader" });
    eventually(limit, &what, || async { Ok((on_replica(cluster, router, database, sql).await? == to_replica).then_some(())) }).await
}

async fn ddl_through(cluster: &Cluster, router: &Router) -> Result {
    let client = router.rw("postgres").await?;
    goes(cluster, router, "postgres", "SELECT f_stable(1)", true, SOON).await?;
    goes(cluster, router, "postgres", "SELECT f_where()", false, SOON).await?;
    for sql in ["TABLE v_plain", "TABLE mv", "TABLE parted", "SELECT f_immutable(2)", "SELECT f_default(1)"] {
        goes(cluster, router, "postgres", sql, true, SOON).await?;
    }
    // A function of the leader's becomes a harmless one, and back: what counts is that it is never run by a replica once it has changed.
    client.batch_execute("CREATE FUNCTION f_turns() RETURNS text LANGUAGE sql STABLE AS 'SELECT max(v) FROM t'").await?;
    cluster.settled().await?;
    goes(cluster, router, "postgres", "SELECT f_turns()", true, SOON).await?;
    client
        .batch_execute("CREATE OR REPLACE FUNCTION f_turns() RETURNS text LANGUAGE sql STABLE AS 'SELECT pg_is_in_recovery()::text'")
        .await?;
    ensure!(!on_replica(cluster, router, "postgres", "SELECT f_turns()").await?, "at once");
    for _ in 0..20 {
        ensure!(client.query_one("SELECT f_turns()", &[]).await?.get::<_, &str>(0) == "false");
    }
    client.batch_execute("CREATE VIEW v_turns AS SELECT id FROM t").await?;
    cluster.settled().await?;
    goes(cluster, router, "postgres", "TABLE v_turns", true, SOON).await?;
    client.batch_execute("CREATE OR REPLACE VIEW v_turns AS SELECT id FROM t WHERE f_writes('x') = id").await?;
    ensure!(!on_replica(cluster, router, "postgres", "TABLE v_turns").await?, "at once");
    goes(cluster, router, "postgres", "SELECT f_stable(1)", true, SOON).await
}

async fn ddl_elsewhere(cluster: &Cluster, router: &Router) -> Result {
    let leader = cluster.leader().await?.connect().await?;
    goes(cluster, router, "postgres", "TABLE v_plain", true, SOON).await?;
    leader.batch_execute("CREATE OR REPLACE VIEW v_plain AS SELECT id, v FROM t WHERE NOT pg_is_in_recovery()").await?;
    goes(cluster, router, "postgres", "TABLE v_plain", false, POLLED).await?;
    leader.batch_execute("CREATE OR REPLACE VIEW v_plain AS SELECT id, v FROM t").await?;
    cluster.settled().await?;
    goes(cluster, router, "postgres", "TABLE v_plain", true, POLLED).await?;
    leader.batch_execute("ALTER TABLE t SET UNLOGGED").await?;
    goes(cluster, router, "postgres", "TABLE t", false, POLLED).await?;
    leader.batch_execute("ALTER TABLE t SET LOGGED").await?;
    cluster.settled().await?;
    // Another text: what a replica's refusal has taught of the first one holds until facts change, and both changes may have come between two looks.
    goes(cluster, router, "postgres", "SELECT id, v FROM t", true, POLLED).await?;
    // A table that is emptied is the same table.
    let loads = || router.log().matches("catalog facts are read").count();
    let before = loads();
    leader.batch_execute("TRUNCATE audit; REFRESH MATERIALIZED VIEW mv; CREATE TEMP TABLE passing (id int); ANALYZE t").await?;
    leader.batch_execute("CREATE FUNCTION f_marks() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'").await?;
    cluster.settled().await?;
    goes(cluster, router, "postgres", "SELECT f_marks()", true, POLLED).await?;
    ensure!(loads() == before + 1, "{} loads", loads() - before);
    Ok(())
}

/// A look at the catalogs that takes long lets the next one wait fifty times as long.
const LOOKED: Duration = Duration::from_secs(60);

/// Until EXPLAIN (ROUTE) says this of what a statement leaves.
async fn explained(router: &Router, sql: &str, expected: &str) -> Result {
    let client = router.rw("postgres").await?;
    eventually(LOOKED, &format!("{sql}: {expected}"), || async {
        let lines = client.query(&format!("EXPLAIN (ROUTE) {sql}"), &[]).await?;
        Ok(lines.iter().any(|line| line.get::<_, &str>(0) == expected).then_some(()))
    })
    .await
}

async fn triggers_elsewhere(cluster: &Cluster, router: &Router) -> Result {
    let leader = cluster.leader().await?.connect().await?;
    let (insert, proven, unknown) =
        ("INSERT INTO audit (what) VALUES ('x')", "Leaves: nothing (proven)", "Leaves: unknown (set_config: audit)");
    explained(router, insert, proven).await?;
    leader
        .batch_execute(
            "CREATE FUNCTION leaves_tenant() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN PERFORM set_config('app.tenant', '5', false); RETURN NEW; END $$;
             CREATE TRIGGER leaves BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION leaves_tenant()",
        )
        .await?;
    explained(router, insert, unknown).await?;
    leader.batch_execute("ALTER TABLE audit DISABLE TRIGGER leaves").await?;
    explained(router, insert, proven).await?;
    leader.batch_execute("ALTER TABLE audit ENABLE ALWAYS TRIGGER leaves").await?;
    explained(router, insert, unknown).await?;
    leader.batch_execute("CREATE OR REPLACE FUNCTION leaves_tenant() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'").await?;
    explained(router, insert, proven).await?;
    leader.batch_execute("ALTER TABLE audit ALTER what SET DEFAULT set_config('app.tenant', '5', false)").await?;
    explained(router, insert, unknown).await?;
    leader.batch_execute("ALTER TABLE audit ALTER what DROP DEFAULT; DROP FUNCTION leaves_tenant CASCADE").await?;
    explained(router, insert, proven).await
}

async fn databases(cluster: &Cluster, router: &Router) -> Result {
    let leader = cluster.leader().await?;
    leader.connect().await?.batch_execute("CREATE DATABASE second").await?;
    let second = switchyard_tests::cluster::connect(&of_database(&leader.dsn(), "second")).await?;
    second
        .batch_execute(
            "CREATE FUNCTION f_where() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
             CREATE FUNCTION f_stable(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'",
        )
        .await?;
    drop(second);
    cluster.settled().await?;
    goes(cluster, router, "second", "SELECT f_where()", true, SOON).await?;
    goes(cluster, router, "postgres", "SELECT f_where()", false, SOON).await?;
    goes(cluster, router, "second", "SELECT f_stable(1)", false, SOON).await?;
    goes(cluster, router, "postgres", "SELECT f_stable(1)", true, SOON).await
}

async fn asleep(cluster: &Cluster, router: &Router) -> Result {
    let leader = cluster.leader().await?;
    let mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'second' AND application_name = 'switchyard facts'";
    ensure!(leader.ask(mine).await? == "1");
    let log = || router.log().contains("catalog facts are asleep");
    eventually(Duration::from_secs(30), "its connection is closed", || async {
        Ok((leader.ask(mine).await? == "0" && log()).then_some(()))
    })
    .await?;
    // A client that comes back is served with facts again.
    goes(cluster, router, "second", "SELECT f_where()", true, SOON).await
}
