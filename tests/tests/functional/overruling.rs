//! Verdicts that people overrule, explain, and that the router learns.

use anyhow::{Context, ensure};
use serde_json::Value;
use switchyard_tests::cluster::{column, connect};
use switchyard_tests::load::sqlstate;
use switchyard_tests::{Batch, Raw, Result, RouterOptions, eventually, psql};
use tokio_postgres::Client;

use crate::yard::{SOON, metric, tell};

/// Which of the two answers, asked of the leader where nobody overrules it.
const RECOVERING: &str = "SELECT pg_is_in_recovery()";

async fn one(client: &Client, sql: &str) -> Result<String> {
    column(client, sql).await?.into_iter().next().with_context(|| format!("{sql}: no row"))
}

/// Where the session is sent, as soon as a replica shows what it has seen on the leader.
async fn comes_to_a_replica(client: &Client) -> Result {
    eventually(SOON, "a replica answers", || async { Ok((one(client, RECOVERING).await? == "t").then_some(())) }).await
}

async fn fails(client: &Client, sql: &str) -> Result<String> {
    let error = client.batch_execute(sql).await.err().with_context(|| format!("{sql}: no error"))?;
    sqlstate(&error).with_context(|| format!("{sql}: {error:?}"))
}

fn has(lines: &[String], piece: &str) -> Result {
    ensure!(lines.iter().any(|line| line.contains(piece)), "{piece:?} is not in {lines:#?}");
    Ok(())
}

#[tokio::test]
async fn explain_route_tells_the_verdict_and_the_choice() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE told (id int); GRANT ALL ON told TO PUBLIC").await?;
        let client = yard.router.rw("app").await?;
        let read = eventually(SOON, "the table is known", || async {
            let lines = column(&client, "EXPLAIN (ROUTE) SELECT * FROM told").await?;
            Ok(lines.iter().any(|line| line == "Verdict: read").then_some(lines))
        })
        .await?;
        has(&read, "(replica)")?;
        has(&read, &format!("{}: leader, in force", yard.leader.name()))?;
        for replica in &yard.replicas {
            has(&read, &format!("{}: replica, fresh enough, lag ", replica.name()))?;
        }
        let write = column(&client, "explain ( route ) UPDATE told SET id = nextval('nowhere')").await?;
        has(&write, "Verdict: write")?;
        has(&write, "data_change: UPDATE")?;
        has(&write, &format!("Choice: {} (leader)", yard.leader.name()))?;
        ensure!(yard.leader.ask("SELECT count(*) FROM told").await? == "0", "explaining ran it");
        has(&column(&client, "EXPLAIN (ROUTE) /* switchyard: leader */ SELECT 1").await?, "a comment, to leader")?;

        // The extended protocol, with a parameter that the statement has.
        let rows = client.query("EXPLAIN (ROUTE) SELECT * FROM told WHERE id::text = $1", &[&"x"]).await?;
        let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        has(&lines, "Verdict: read")?;
        // In a transaction, and in a failed one.
        client.batch_execute("BEGIN; INSERT INTO told VALUES (1)").await?;
        has(&column(&client, "EXPLAIN (ROUTE) SELECT * FROM told").await?, "the transaction runs there")?;
        ensure!(fails(&client, "SELECT 1/0").await? == "22012");
        ensure!(fails(&client, "EXPLAIN (ROUTE) SELECT 1").await? == "25P02");
        client.batch_execute("ROLLBACK").await?;
        // By psql, as people do; and the plain EXPLAIN is PostgreSQL's.
        // The command line asks a server for its catalogs, and a router for everything.
        for (dsn, pieces) in [
            (yard.leader.dsn(), ["Verdict: read", "Facts: as the database's catalogs say"]),
            (yard.router.rw_dsn("app"), ["Verdict: read", "fresh enough, lag "]),
        ] {
            let program = switchyard_tests::machine::router()?;
            let output =
                tokio::process::Command::new(program).args(["explain", "--schema-from", &dsn, "SELECT * FROM told"]).output().await?;
            let said: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
            for piece in pieces {
                has(&said, piece)?;
            }
        }
        let shown = psql(&yard.router.rw_dsn("app"), &["-c", "EXPLAIN (ROUTE) SELECT * FROM told"]).await?.success()?;
        ensure!(shown.contains("Verdict: read"), "{shown}");
        has(&column(&client, "EXPLAIN SELECT * FROM told").await?, "Seq Scan on told")
    })
    .await
}

#[tokio::test]
async fn a_session_overrules_by_a_setting() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE overruled (id int); GRANT ALL ON overruled TO PUBLIC").await?;
        let client = yard.router.rw("app").await?;
        ensure!(one(&client, RECOVERING).await? == "f");
        ensure!(one(&client, "SHOW switchyard.route").await? == "auto");
        client.batch_execute("SET switchyard.route = 'replica'").await?;
        comes_to_a_replica(&client).await?;
        ensure!(client.query_one(RECOVERING, &[]).await?.get::<_, bool>(0), "the extended protocol obeys, too");
        ensure!(one(&client, "SHOW switchyard.route").await? == "replica");
        // A write isn't made to run where it can't, and gets PostgreSQL's own word.
        ensure!(fails(&client, "INSERT INTO overruled VALUES (1)").await? == "25006");
        ensure!(one(&client, "/* switchyard: leader */ SELECT pg_is_in_recovery()").await? == "f", "a comment comes first");
        client.batch_execute("RESET switchyard.route").await?;
        ensure!(one(&client, RECOVERING).await? == "f");

        client.batch_execute("BEGIN; SET switchyard.route = 'replica'; ROLLBACK").await?;
        ensure!(one(&client, RECOVERING).await? == "f", "the SET was rolled back");
        client.batch_execute("BEGIN").await?;
        client.batch_execute("SET LOCAL switchyard.route = 'replica'").await?;
        ensure!(one(&client, "SHOW switchyard.route").await? == "replica");
        client.batch_execute("COMMIT").await?;
        ensure!(one(&client, "SHOW switchyard.route").await? == "auto", "SET LOCAL ends with its transaction");
        client.batch_execute("BEGIN").await?;
        client.batch_execute("SAVEPOINT s").await?;
        client.batch_execute("SET switchyard.route = 'replica'").await?;
        client.batch_execute("ROLLBACK TO s").await?;
        client.batch_execute("COMMIT").await?;
        ensure!(one(&client, RECOVERING).await? == "f", "the savepoint brought back what was there");

        ensure!(fails(&client, "SET switchyard.route = 'moon'").await? == "22023");
        ensure!(fails(&client, "SET switchyard.nothing = 1").await? == "42704");
        ensure!(one(&client, "SELECT 1").await? == "1");
        // Nobody else is touched by it.
        client.batch_execute("SET switchyard.route = 'replica'").await?;
        let other = yard.router.rw("app").await?;
        ensure!(one(&other, RECOVERING).await? == "f");
        client.batch_execute("DISCARD ALL").await?;
        ensure!(one(&client, RECOVERING).await? == "f");

        let dsn = format!("{}?options=-c%20switchyard.route%3Dreplica", yard.router.rw_dsn("app"));
        let started = connect(&dsn).await?;
        comes_to_a_replica(&started).await?;
        let dsn = format!("{}?options=-c%20switchyard.route%3Dmoon", yard.router.rw_dsn("app"));
        let refused = connect(&dsn).await.err().context("a bad value in the startup packet is taken")?;
        ensure!(format!("{refused:#}").contains("invalid value for parameter"), "{refused:#}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn rules_of_the_configuration_overrule() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE TABLE ruled (id int); GRANT ALL ON ruled TO PUBLIC").await?;
        let rules = [
            [("pattern", "(?i)from ruled where id = 13"), ("route", "reject")],
            [("application_names", "reports"), ("route", "leader")],
            [("users", "appmd5"), ("route", "replica")],
        ];
        let rules = rules.map(|rule| toml::Table::from_iter(rule.map(|(key, value)| (key.to_owned(), toml::Value::from(value)))));
        let rules = toml::Value::Array(rules.into_iter().map(toml::Value::Table).collect());
        let router = yard.other_router(RouterOptions::new().set("rule", rules)).await?;
        let client = router.rw("app").await?;
        let error = client.batch_execute("SELECT * FROM ruled WHERE id = 13").await.err().context("no error")?;
        ensure!(error.code().is_some_and(|code| code.code() == "42501"), "{error:?}");
        let error = client.query("SELECT * FROM ruled WHERE id = 13", &[]).await.err().context("no error, extended")?;
        ensure!(error.code().is_some_and(|code| code.code() == "42501"), "{error:?}");
        client.batch_execute("SELECT * FROM ruled WHERE id = 14").await?;
        has(&column(&client, "EXPLAIN (ROUTE) SELECT * FROM ruled WHERE id = 13").await?, "rejects it")?;

        client.batch_execute("SET application_name = 'reports'").await?;
        has(&column(&client, "EXPLAIN (ROUTE) SELECT 1").await?, "to leader")?;
        let ruled = router.rw("appmd5").await?;
        comes_to_a_replica(&ruled).await?;
        ensure!(one(&ruled, "/* switchyard: leader */ SELECT pg_is_in_recovery()").await? == "f");
        // Batches of several statements behind one another are each judged.
        let mut raw = Raw::connect(&router.rw_dsn("app")).await?;
        let answer = raw.ask(&Batch::new().query("SELECT 1; SELECT * FROM ruled WHERE id = 13")).await?;
        ensure!(answer.iter().any(|line| line.contains("42501")), "{answer:#?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn decisions_are_shown_and_refusals_learnt() -> Result {
    tell(async |yard| {
        let client = yard.router.rw("app").await?;
        for number in 0..5 {
            client.simple_query(&format!("SELECT 'decided {number}', {number} AS decided")).await?;
        }
        let statements = yard.router.get("/api/v1/statements").await?.json()?;
        let text = statements.to_string();
        let row = rows(&statements).into_iter().find(|row| row["statement"].as_str().is_some_and(|text| text.contains("AS decided")));
        let row = row.with_context(|| format!("the statement isn't there: {text}"))?;
        ensure!(!row["statement"].to_string().contains("decided 1"), "a literal is shown: {row}");
        ensure!(row.to_string().contains('5'), "its count: {row}");

        // Behind the router's back, a table becomes one that no replica can read. Facts may be quicker than this: then again.
        let before = metric(&yard.router, "switchyard_unforeseen_total").await?;
        let learnt = eventually(SOON * 3, "a replica's refusal is met", || async {
            let table = format!("unforeseen_{}", std::time::UNIX_EPOCH.elapsed()?.as_nanos());
            let sql = format!("SELECT count(*) FROM {table}");
            yard.prepare(&format!("CREATE TABLE {table} (id int); GRANT ALL ON {table} TO PUBLIC")).await?;
            eventually(SOON, "the table is known", || async {
                Ok(column(&client, &format!("EXPLAIN (ROUTE) {sql}")).await?.iter().any(|line| line == "Verdict: read").then_some(()))
            })
            .await?;
            yard.prepare(&format!("ALTER TABLE {table} SET UNLOGGED")).await?;
            ensure!(one(&client, &sql).await? == "0", "the leader's answer");
            let met = metric(&yard.router, "switchyard_unforeseen_total").await? > before;
            Ok(met.then_some(sql))
        })
        .await?;
        has(&column(&client, &format!("EXPLAIN (ROUTE) {learnt}")).await?, "Verdict: write")
    })
    .await
}

/// Every object with a statement in it, wherever it stands.
fn rows(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(all) => all.iter().flat_map(rows).collect(),
        Value::Object(fields) if fields.contains_key("statement") => vec![value],
        Value::Object(fields) => fields.values().flat_map(rows).collect(),
        _ => Vec::new(),
    }
}
