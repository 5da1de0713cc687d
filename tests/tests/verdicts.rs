//! Verdicts under facts that were read from a real leader.

use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_core::sql::{Class, Dialect, Facts, classify};
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
    let router = Router::start(&cluster, RouterOptions::new()).await?;
    stories.tell("facts follow DDL through the router", ddl_through(&cluster, &router)).await;
    stories.tell("facts follow DDL made elsewhere", ddl_elsewhere(&cluster, &router)).await;
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
