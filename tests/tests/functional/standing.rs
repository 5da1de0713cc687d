//! A login finds what its role and its database are at that moment, whatever connections older logins have left;
//! sessions that are there go on.

use anyhow::{Context, ensure};
use switchyard_tests::cluster::connect;
use switchyard_tests::{Raw, Result, RouterOptions, eventually};

use crate::yard::{SOON, Yard, metric, tell};

fn url(port: u16, user: &str, database: &str) -> String {
    format!("postgresql://{user}:{user}-word@127.0.0.1:{port}/{database}")
}

async fn make_role(yard: &Yard, name: &str, attributes: &str) -> Result {
    yard.prepare(&format!("CREATE ROLE {name} LOGIN {attributes} PASSWORD '{name}-word'")).await
}

/// What a new login is told, answer by answer, or the refusal of it. On the leader and, by the router, on a replica.
async fn told(dsn: &str, questions: &[&str]) -> Result<Vec<String>> {
    let mut client = match Raw::connect(dsn).await {
        Ok(client) => client,
        Err(error) => return Ok(vec![error.to_string()]),
    };
    let mut told = Vec::new();
    for question in questions {
        told.extend(client.query(question).await.with_context(|| (*question).to_owned())?);
    }
    Ok(told)
}

/// Leaves connections of an older login with the leader and the replicas, and changes what the role is. The new login
/// is told what one on a direct connection is. The old login's session, for a look at it.
async fn changed(yard: &Yard, user: &str, database: &str, change: &[&str], questions: &[&str]) -> Result<Raw> {
    // One stays; what the others leave rests in the pools, and is nobody's.
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let mut session = Raw::connect(&url(yard.router.rw_port(), user, database)).await?;
        session.query("BEGIN").await?;
        session.query("SELECT pg_is_in_recovery()").await?;
        sessions.push(session);
    }
    for session in &mut sessions {
        session.query("COMMIT").await?;
        for _ in 0..4 {
            // On a replica.
            let answer = session.query("SELECT 1").await?;
            ensure!(answer.last().is_some_and(|last| last == "Z I") && answer.len() == 4, "{answer:?}");
        }
    }
    let old = sessions.swap_remove(0);
    drop(sessions);
    let admin = yard.leader.connect().await?;
    for statement in change {
        admin.batch_execute(statement).await.with_context(|| (*statement).to_owned())?;
    }
    yard.cluster.settled().await?;
    let direct = told(&url(yard.leader.port(), user, database), questions).await?;
    let routed = told(&url(yard.router.rw_port(), user, database), questions).await?;
    ensure!(routed == direct, "{change:?}: directly {direct:#?}\nby the router {routed:#?}");
    Ok(old)
}

/// What a session is, as a read that a replica may answer, and on the leader.
const WHO: &str = "SELECT session_user, current_user, current_setting('is_superuser')";
const WHO_ON_LEADER: &str = "SELECT session_user, current_user, current_setting('is_superuser'), pg_is_in_recovery()";

#[tokio::test]
async fn who_is_no_superuser_any_more_may_not_become_somebody_else() -> Result {
    tell(async |yard| {
        make_role(yard, "standing_super", "SUPERUSER").await?;
        let questions = ["SET SESSION AUTHORIZATION app", WHO, WHO_ON_LEADER];
        changed(yard, "standing_super", "postgres", &["ALTER ROLE standing_super NOSUPERUSER"], &questions).await?;
        let dsn = url(yard.router.rw_port(), "standing_super", "postgres");
        let refused = told(&dsn, &["SET SESSION AUTHORIZATION app"]).await?;
        ensure!(refused[0].starts_with("E ERROR 42501 "), "{refused:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_role_of_another_ones_name_is_itself() -> Result {
    tell(async |yard| {
        make_role(yard, "standing_first", "").await?;
        // The second one's password is the one that is tried.
        make_role(yard, "standing_second", "").await?;
        yard.prepare("ALTER ROLE standing_second PASSWORD 'standing_first-word'").await?;
        let swap = ["ALTER ROLE standing_first RENAME TO standing_gone", "ALTER ROLE standing_second RENAME TO standing_first"];
        let mut old = changed(yard, "standing_first", "postgres", &swap, &[WHO, WHO_ON_LEADER]).await?;
        let now = told(&url(yard.router.rw_port(), "standing_first", "postgres"), &[WHO_ON_LEADER]).await?;
        ensure!(now[1] == "D standing_first standing_first off f", "{now:?}");
        // The old session is who it was, on the connections that its login has opened.
        let before = old.query(WHO_ON_LEADER).await?;
        ensure!(before[1] == "D standing_gone standing_gone off f", "{before:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn who_is_somebody_else_by_now_gets_no_new_connection() -> Result {
    tell(async |yard| {
        make_role(yard, "standing_twin", "").await?;
        let mut old = Raw::connect(&url(yard.router.rw_port(), "standing_twin", "postgres")).await?;
        ensure!(old.query("SELECT pg_is_in_recovery()").await?.len() == 4);
        let sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'standing_twin'";
        yard.leader.connect().await?.batch_execute(sessions).await?;
        yard.prepare("DROP ROLE standing_twin").await?;
        make_role(yard, "standing_twin", "").await?;
        let new = told(&url(yard.router.rw_port(), "standing_twin", "postgres"), &[WHO_ON_LEADER]).await?;
        ensure!(new[1] == "D standing_twin standing_twin off f", "{new:?}");
        let answer = old.query("SELECT pg_is_in_recovery()").await;
        ensure!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(|told| told[0].starts_with("E FATAL 57P01 ")), "{answer:?}");
        ensure!(old.is_closed().await);
        Ok(())
    })
    .await
}

/// Nobody has logged in as the new one, so that only the server can tell.
#[tokio::test]
async fn an_old_session_opens_no_connection_as_whoever_has_its_names_now() -> Result {
    tell(async |yard| {
        for (port, user) in [(yard.router.rw_port(), "standing_heir"), (yard.router.ro_port(), "standing_heiress")] {
            make_role(yard, user, "").await?;
            yard.prepare("CREATE DATABASE standing_house").await?;
            // With the same password in the same form, so that the old session's is good for it.
            let renamed = [
                format!("ALTER ROLE {user} RENAME TO {user}_elder"),
                format!(
                    "DO $$ BEGIN EXECUTE format('CREATE ROLE {user} LOGIN PASSWORD %L', \
                     (SELECT rolpassword FROM pg_authid WHERE rolname = '{user}_elder')); END $$"
                ),
            ];
            let made_again = ["DROP DATABASE standing_house WITH (FORCE)".to_owned(), "CREATE DATABASE standing_house".to_owned()];
            for (database, change) in [("standing_house", made_again), ("postgres", renamed)] {
                yard.cluster.settled().await?;
                let mut old = Raw::connect(&url(port, user, database)).await?;
                ensure!(old.query(WHO).await?.len() == 4);
                let sessions = format!("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{user}'");
                for member in yard.cluster.members() {
                    member.connect().await?.batch_execute(&sessions).await?;
                }
                for sql in &change {
                    yard.prepare(sql).await?;
                }
                yard.cluster.settled().await?;
                let answer = old.query(WHO).await;
                ensure!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(|told| told[0].starts_with("E FATAL 57P01 ")), "{answer:?}");
                ensure!(old.is_closed().await);
            }
            yard.prepare("DROP DATABASE standing_house").await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_role_that_was_dropped_and_made_again_is_there() -> Result {
    tell(async |yard| {
        make_role(yard, "standing_again", "").await?;
        let again = ["DROP ROLE standing_again", "CREATE ROLE standing_again LOGIN PASSWORD 'standing_again-word'"];
        let questions = [WHO, WHO_ON_LEADER, "CREATE TEMP TABLE mine (id int)", "SELECT has_schema_privilege('pg_catalog', 'USAGE')"];
        changed(yard, "standing_again", "postgres", &again, &questions).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn settings_of_roles_and_databases_count_at_the_next_login() -> Result {
    tell(async |yard| {
        make_role(yard, "standing_set", "").await?;
        yard.prepare("CREATE DATABASE standing_set").await?;
        let shown = ["SHOW work_mem", "SELECT current_setting('work_mem'), pg_is_in_recovery()"];
        let mut old = Vec::new();
        for (number, of) in
            ["ALL", "ALL IN DATABASE standing_set", "standing_set", "standing_set IN DATABASE standing_set"].into_iter().enumerate()
        {
            let change = match of.strip_prefix("ALL IN ") {
                Some(database) => format!("ALTER {database} SET work_mem = '{}kB'", 7000 + number),
                None => format!("ALTER ROLE {of} SET work_mem = '{}kB'", 7000 + number),
            };
            old.push(changed(yard, "standing_set", "standing_set", &[&change], &shown).await?);
        }
        yard.prepare("ALTER ROLE ALL RESET work_mem").await?;
        let now = told(&url(yard.router.rw_port(), "standing_set", "standing_set"), &shown).await?;
        ensure!(now[1] == "D 7003kB", "each counts more than the one before: {now:?}");
        // Sessions that were there go on with what they had, as directly.
        for (number, session) in old.iter_mut().enumerate() {
            let shown = session.query(shown[1]).await?;
            let expected = if number == 0 { "4MB".to_owned() } else { format!("{}kB", 6999 + number) };
            ensure!(shown[1] == format!("D {expected} f"), "{number}: {shown:?}");
        }
        // Connections of logins that nobody has any more aren't kept.
        drop(old);
        let older = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'standing_set' AND usename = 'standing_set'";
        eventually(SOON, "what is superseded is closed", || async {
            Ok((yard.leader.ask(older).await?.parse::<usize>()? <= 1).then_some(()))
        })
        .await
    })
    .await
}

#[tokio::test]
async fn limits_count_at_the_next_login() -> Result {
    tell(async |yard| {
        make_role(yard, "standing_limited", "").await?;
        yard.prepare("CREATE DATABASE standing_limited").await?;
        for change in ["ALTER ROLE standing_limited CONNECTION LIMIT 0", "ALTER DATABASE standing_limited CONNECTION LIMIT 0"] {
            let mut old = changed(yard, "standing_limited", "standing_limited", &[change], &["SELECT 1", "SHOW work_mem"]).await?;
            let now = told(&url(yard.router.rw_port(), "standing_limited", "standing_limited"), &["SELECT 1"]).await?;
            ensure!(now[0].starts_with("refused: E FATAL 53300 "), "{now:?}");
            let before = old.query(WHO_ON_LEADER).await?;
            ensure!(before[1] == "D standing_limited standing_limited off f", "{before:?}");
            yard.prepare(&format!("{} -1", change.strip_suffix(" 0").unwrap_or(change))).await?;
        }
        connect(&url(yard.router.rw_port(), "standing_limited", "standing_limited")).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_database_of_another_ones_name_is_itself() -> Result {
    tell(async |yard| {
        make_role(yard, "standing_moving", "").await?;
        yard.prepare("CREATE DATABASE standing_moving").await?;
        yard.prepare("CREATE DATABASE standing_moved").await?;
        let admin = yard.router.rw("postgres").await?;
        drop(changed(yard, "standing_moving", "standing_moving", &[], &["SELECT 1"]).await?);
        // By the router, which leaves the databases for that.
        for rename in ["standing_moving RENAME TO standing_away", "standing_moved RENAME TO standing_moving"] {
            admin.batch_execute(&format!("ALTER DATABASE {rename}")).await.context(rename)?;
        }
        yard.cluster.settled().await?;
        changed(
            yard,
            "standing_moving",
            "standing_moving",
            &[],
            &["SELECT current_database(), oid FROM pg_database WHERE datname = current_database()"],
        )
        .await?;
        Ok(())
    })
    .await
}

/// What a role gives to its sessions may be another value by the time that a connection is given back.
#[tokio::test]
async fn what_a_role_gave_at_the_login_is_nobodys_setting() -> Result {
    tell(async |yard| {
        make_role(yard, "standing_given", "").await?;
        // What no code names isn't asked for.
        let code = "CREATE FUNCTION standing_gives() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.given', 'by code', false) $$";
        yard.prepare(&format!("ALTER ROLE standing_given SET app.given = 'first'; {code}")).await?;
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1).set("pool.verify_returns", 1.0)).await?;
        let mut client = Raw::connect(&url(router.rw_port(), "standing_given", "postgres")).await?;
        eventually(SOON, "facts", || async {
            let told = Raw::connect(&router.rw_dsn("app")).await?.query("EXPLAIN (ROUTE) SELECT standing_gives()").await?;
            Ok(told.iter().any(|line| line.contains("(volatile: standing_gives)")).then_some(()))
        })
        .await?;
        for change in ["SET app.given = 'first'", "SET app.given = 'second'", "RESET app.given"] {
            yard.prepare(&format!("ALTER ROLE standing_given {change}")).await?;
            // The second one comes behind the look at the first one's return.
            for _ in 0..2 {
                let told = client.query("/* switchyard: leader */ SELECT current_setting('app.given')").await?;
                ensure!(told.contains(&"D first".to_owned()), "behind {change}: {told:?}");
            }
            ensure!(metric(&router, "switchyard_return_differences_total").await? == 0.0, "a difference behind {change}");
        }
        Ok(())
    })
    .await
}
