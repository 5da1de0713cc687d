//! Whoever can log in to PostgreSQL can log in here, with the same password; whoever can't is told the same.

use std::collections::HashSet;

use anyhow::{Context, bail, ensure};
use switchyard_tests::cluster::connect;
use switchyard_tests::{Result, eventually, psql};

use crate::yard::{SOON, in_database, tell};

/// What a refused client gets: severity, SQLSTATE, text, detail, hint.
async fn refusal(dsn: &str) -> Result<String> {
    match tokio_postgres::connect(dsn, tokio_postgres::NoTls).await {
        Ok(_) => bail!("{dsn}: logged in"),
        Err(error) => {
            let told = error.as_db_error().with_context(|| format!("{dsn}: {error}"))?;
            let (severity, code) = (told.severity(), told.code().code());
            Ok(format!("{severity} {code} {} {:?} {:?}", told.message(), told.detail(), told.hint()))
        }
    }
}

fn url(port: u16, user: &str, password: &str, database: &str) -> String {
    format!("postgresql://{user}:{password}@127.0.0.1:{port}/{database}")
}

#[tokio::test]
async fn the_same_refusals_as_postgresqls() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE ROLE login_not NOLOGIN PASSWORD 'right'").await?;
        yard.prepare("CREATE ROLE login_expired LOGIN PASSWORD 'right' VALID UNTIL '2001-01-01'").await?;
        yard.prepare("CREATE ROLE login_valid LOGIN PASSWORD 'right' VALID UNTIL '2999-01-01'").await?;
        yard.prepare("CREATE ROLE login_none LOGIN").await?;
        yard.prepare("CREATE ROLE login_empty LOGIN CONNECTION LIMIT 0 PASSWORD 'right'").await?;
        yard.prepare("CREATE DATABASE login_revoked").await?;
        yard.prepare("REVOKE CONNECT ON DATABASE login_revoked FROM PUBLIC").await?;
        yard.prepare("CREATE DATABASE login_closed ALLOW_CONNECTIONS false").await?;
        // User, password, database, SQLSTATE: only the codes are typed in, so that a case can't fail for another reason unnoticed.
        let cases = [
            ("app", "wrong", "postgres", "28P01"),
            ("appmd5", "wrong", "postgres", "28P01"),
            ("nobody_of_that_name", "any", "postgres", "28P01"),
            ("app", "app-secret", "no_such_database", "3D000"),
            ("app", "wrong", "no_such_database", "28P01"),
            ("login_not", "right", "postgres", "28000"),
            ("login_not", "wrong", "postgres", "28P01"),
            ("login_expired", "right", "postgres", "28P01"),
            ("login_none", "any", "postgres", "28P01"),
            ("login_empty", "right", "postgres", "53300"),
            ("app", "app-secret", "login_revoked", "42501"),
            ("app", "app-secret", "login_closed", "55000"),
            ("postgres", "postgres", "login_closed", "55000"),
            ("replicator", "wrong", "postgres", "28P01"),
        ];
        let mut differing = Vec::new();
        for (user, password, database, code) in cases {
            let ways = [(yard.leader.port(), yard.router.rw_port()), (yard.replicas[0].port(), yard.router.ro_port())];
            for (direct, routed) in ways {
                let expected = refusal(&url(direct, user, password, database)).await?;
                ensure!(expected.starts_with(&format!("FATAL {code} ")), "{user} {database}: {expected}");
                let got = match refusal(&url(routed, user, password, database)).await {
                    Ok(got) => got,
                    Err(error) => format!("{error:#}"),
                };
                if got != expected {
                    differing.push(format!("{user}:{password}@{database}: directly {expected}, by the router {got}"));
                }
            }
        }
        ensure!(differing.is_empty(), "{differing:#?}");
        let fine = psql(&url(yard.router.rw_port(), "login_valid", "right", "postgres"), &["-c", "SELECT current_user"]).await?;
        ensure!(fine.success()? == "login_valid\n");
        // A superuser needs no CONNECT.
        let fine = psql(&url(yard.router.rw_port(), "postgres", "postgres", "login_revoked"), &["-c", "SELECT current_database()"]).await?;
        ensure!(fine.success()? == "login_revoked\n");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_new_password_counts_at_once_and_old_sessions_live_on() -> Result {
    tell(async |yard| {
        const POOL: usize = 4;
        yard.prepare("CREATE ROLE login_changing LOGIN PASSWORD 'first'").await?;
        let at = |password: &str| url(yard.router.rw_port(), "login_changing", password, "postgres");
        let old = connect(&at("first")).await?;
        old.simple_query("SELECT 1").await?;

        yard.prepare("ALTER ROLE login_changing PASSWORD 'second'").await?;
        let refused = refusal(&at("first")).await?;
        ensure!(refused.starts_with("FATAL 28P01 password authentication failed"), "{refused}");
        let read_only = refusal(&url(yard.router.ro_port(), "login_changing", "first", "postgres")).await?;
        ensure!(read_only == refused, "{read_only}");

        // More transactions at once than there were server connections: new ones are opened, with the new key.
        let mut sessions = Vec::new();
        let mut servers = HashSet::new();
        for _ in 0..POOL {
            let client = connect(&at("second")).await?;
            client.batch_execute("BEGIN").await?;
            servers.insert(client.query_one("SELECT pg_backend_pid()", &[]).await?.get::<_, i32>(0));
            sessions.push(client);
        }
        ensure!(servers.len() == POOL, "{servers:?}");
        // Who logged in with the old one goes on, reads and writes.
        ensure!(old.query_one("SELECT 41 + 1", &[]).await?.get::<_, i32>(0) == 42);
        old.batch_execute("CREATE TEMP TABLE login_old (id int); INSERT INTO login_old VALUES (1)").await?;
        for client in sessions {
            client.batch_execute("COMMIT").await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_is_revoked_counts_at_the_next_login() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE ROLE login_leaving LOGIN PASSWORD 'right'; ALTER ROLE login_leaving SET work_mem = '7MB'").await?;
        let dsn = url(yard.router.rw_port(), "login_leaving", "right", "postgres");
        let client = connect(&dsn).await?;
        ensure!(client.query_one("SHOW work_mem", &[]).await?.get::<_, String>(0) == "7MB");
        yard.prepare("ALTER ROLE login_leaving NOLOGIN").await?;
        let refused = refusal(&dsn).await?;
        ensure!(refused.starts_with("FATAL 28000 role \"login_leaving\" is not permitted to log in"), "{refused}");
        yard.prepare("ALTER ROLE login_leaving LOGIN").await?;
        connect(&dsn).await?;
        drop(client);
        // Its server connections go with it, or DROP ROLE's owner would wonder who it is.
        yard.prepare("DROP ROLE login_leaving").await?;
        let refused = refusal(&dsn).await?;
        ensure!(refused.starts_with("FATAL 28P01 "), "{refused}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn startup_parameters_are_obeyed_or_refused() -> Result {
    tell(async |yard| {
        let at = |port, options: &str| format!("{}?options={options}", url(port, "app", "app-secret", "postgres"));
        for options in ["-c%20work_mem%3D9MB", "-c%20work_mem%3Dlots", "-c%20no_such%3D1", "-c%20search_path%3Dpg_catalog"] {
            let show = async |port| match connect(&at(port, options)).await {
                Ok(client) => {
                    let row = client.query_one("SELECT current_setting('work_mem'), current_setting('search_path')", &[]).await?;
                    anyhow::Ok(format!("{} {}", row.get::<_, String>(0), row.get::<_, String>(1)))
                }
                Err(_) => refusal(&at(port, options)).await,
            };
            let (direct, routed) = (show(yard.leader.port()).await?, show(yard.router.rw_port()).await?);
            ensure!(direct == routed, "{options}: directly {direct}, by the router {routed}");
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_new_user_can_come_at_once() -> Result {
    tell(async |yard| {
        // Made by the router's own client, and used before a replica needs to know of it.
        let admin = yard.router.rw("postgres").await?;
        for round in 0..5 {
            let name = format!("login_new{round}");
            admin.batch_execute(&format!("CREATE ROLE {name} LOGIN PASSWORD 'x'")).await?;
            let client = connect(&url(yard.router.rw_port(), &name, "x", "postgres")).await?;
            ensure!(client.query_one("SELECT current_user::text", &[]).await?.get::<_, String>(0) == name);
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_dropped_database_is_gone() -> Result {
    tell(async |yard| {
        yard.prepare("CREATE DATABASE login_shortlived OWNER app").await?;
        let dsn = in_database(&yard.router.rw_dsn("app"), "login_shortlived");
        let client = connect(&dsn).await?;
        client.batch_execute("CREATE TABLE x (id int)").await?;
        client.query("SELECT * FROM x", &[]).await?;
        drop(client);
        // By force, as pools hold connections to it; the router gets over it.
        eventually(SOON, "the database is dropped", || async {
            yard.leader.connect().await?.batch_execute("DROP DATABASE IF EXISTS login_shortlived WITH (FORCE)").await?;
            Ok(Some(()))
        })
        .await?;
        let refused = refusal(&dsn).await?;
        ensure!(refused.starts_with("FATAL 3D000 "), "{refused}");
        Ok(())
    })
    .await
}
