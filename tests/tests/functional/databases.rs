//! A statement that wants a database for itself makes the router leave that database, if it is really run by somebody
//! who may; else nothing changes.

use anyhow::{Context, ensure};
use switchyard_tests::cluster::connect;
use switchyard_tests::{Batch, Raw, Result, Router, RouterOptions, eventually};

use crate::yard::{SOON, Yard, tell};

fn url(router: &Router, user: &str, database: &str) -> String {
    format!("postgresql://{user}:word@127.0.0.1:{}/{database}", router.rw_port())
}

async fn prepare(yard: &Yard, name: &str) -> Result {
    for sql in [
        format!("CREATE ROLE {name}_owner LOGIN CREATEDB PASSWORD 'word'"),
        format!("CREATE ROLE {name}_member LOGIN CREATEDB PASSWORD 'word' IN ROLE {name}_owner"),
        format!("CREATE ROLE {name}_plain LOGIN PASSWORD 'word'"),
        format!("CREATE DATABASE {name} OWNER {name}_owner"),
    ] {
        yard.prepare(&sql).await?;
    }
    Ok(())
}

/// Server connections that rest in a database's pools.
async fn idle(router: &Router, database: &str) -> Result<f64> {
    let text = router.get("/metrics").await?.body;
    let of = |line: &&str| line.starts_with("switchyard_pool_idle{") && line.contains(&format!("database=\"{database}\""));
    text.lines().filter(of).map(|line| Ok(line.rsplit(' ').next().unwrap_or_default().parse::<f64>()?)).sum()
}

/// Uses the database with several connections at a time, which rest afterwards.
async fn fill(router: &Router, user: &str, database: &str) -> Result {
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let client = connect(&url(router, user, database)).await?;
        client.batch_execute("BEGIN; SELECT pg_is_in_recovery()").await?;
        sessions.push(client);
    }
    for session in &sessions {
        session.batch_execute("COMMIT").await?;
    }
    Ok(())
}

#[tokio::test]
async fn whoever_may_not_empties_nobodys_pools() -> Result {
    tell(async |yard| {
        let name = "databases_kept";
        prepare(yard, name).await?;
        fill(&yard.router, "databases_kept_owner", name).await?;
        // A session that has ended is looked at before its connection rests.
        let rest = async || Ok(Some(idle(&yard.router, name).await?).filter(|idle| *idle >= 3.0));
        let before = eventually(SOON, "its connections rest", rest).await?;
        let mut plain = Raw::connect(&url(&yard.router, "databases_kept_plain", "postgres")).await?;
        let mut refused = Vec::new();
        for sql in [
            "DROP DATABASE databases_kept",
            "ALTER DATABASE databases_kept RENAME TO databases_lost",
            "ALTER DATABASE databases_kept SET TABLESPACE pg_default",
            "CREATE DATABASE databases_copy TEMPLATE databases_kept",
            "CREATE TEMP TABLE pinned (id int)",
            // The same by a session that keeps its connection.
            "DROP DATABASE databases_kept",
        ] {
            refused.extend(plain.query(sql).await?);
        }
        ensure!(refused.iter().filter(|line| line.starts_with("E ERROR 42501 ")).count() == 5, "{refused:#?}");
        let mut owner = Raw::connect(&url(&yard.router, "databases_kept_owner", "postgres")).await?;
        for sql in ["EXPLAIN (ROUTE) DROP DATABASE databases_kept", "EXPLAIN (ROUTE) CREATE DATABASE a TEMPLATE databases_kept"] {
            let explained = owner.query(sql).await?;
            ensure!(
                explained.iter().any(|line| line.contains("DATABASE")) && !explained.iter().any(|line| line.starts_with('E')),
                "{explained:#?}"
            );
        }
        // Parsed, described and bound, and never run; on a server of its own as well.
        let parsed = Batch::new().parse("a", "DROP DATABASE databases_kept").describe_statement("a").bind("", "a", &[]).sync();
        for _ in 0..2 {
            let answer = owner.ask(&parsed).await?;
            ensure!(answer.iter().all(|line| !line.starts_with('E')), "{answer:?}");
            owner.query("CREATE TEMP TABLE IF NOT EXISTS pinned (id int)").await?;
            owner.ask(&Batch::new().close_statement("a").sync()).await?;
        }
        let after = idle(&yard.router, name).await?;
        ensure!(after == before, "{after} rest of {before}");
        // And what comes back still rests.
        fill(&yard.router, "databases_kept_owner", name).await?;
        let rest = async || Ok(Some(idle(&yard.router, name).await?).filter(|idle| *idle >= before));
        eventually(SOON, "what comes back rests", rest).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_database_that_was_just_used_can_be_dropped_moved_and_copied() -> Result {
    tell(async |yard| {
        let sessions = yard.other_router(RouterOptions::new().set("pool.mode", "session")).await?;
        for (round, router) in [&yard.router, &sessions].into_iter().enumerate() {
            let name = format!("databases_used{round}");
            prepare(yard, &name).await?;
            for user in ["owner", "member"] {
                let owner = format!("{name}_owner");
                let client = connect(&url(router, &format!("{name}_{user}"), "postgres")).await?;
                if user == "member" {
                    client.batch_execute(&format!("SET ROLE {owner}")).await?;
                } else {
                    client.batch_execute("CREATE TEMP TABLE keeps_its_connection (id int)").await?;
                }
                for sql in [
                    format!("CREATE DATABASE {name}_copy TEMPLATE {name}"),
                    format!("ALTER DATABASE {name} RENAME TO {name}_other"),
                    format!("ALTER DATABASE {name}_other RENAME TO {name}"),
                    format!("DROP DATABASE {name}_copy"),
                    format!("DROP DATABASE {name}"),
                    format!("CREATE DATABASE {name}"),
                ] {
                    for database in [name.clone(), format!("{name}_other"), format!("{name}_copy")] {
                        if let Ok(there) = connect(&url(router, &owner, &database)).await {
                            there.batch_execute("SELECT pg_is_in_recovery()").await?;
                        }
                    }
                    client.execute(&sql, &[]).await.with_context(|| format!("{user}, round {round}: {sql}"))?;
                }
            }
        }
        Ok(())
    })
    .await
}
