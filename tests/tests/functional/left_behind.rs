//! State that code out of a statement's sight leaves in its session: its own session keeps it, and nobody else has it.
//! Each conversation is had directly and by a router whose sessions share one connection.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use switchyard_tests::cluster::first_value;
use switchyard_tests::{Batch, Raw, Result, Router, RouterOptions, eventually};

use crate::yard::{SOON, Yard, metric, tell};

/// One object of each kind that sets a custom setting, each one of its own, so that no case stands on another one's.
const OBJECTS: &str = r#"
CREATE SCHEMA hidden; GRANT USAGE ON SCHEMA hidden TO app; SET search_path = hidden, public;
CREATE FUNCTION by_call() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('app.by_call', 'x', false); RETURN NEW; END $$;
CREATE FUNCTION by_set() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET app.by_set = 'x'; RETURN NEW; END $$;
CREATE FUNCTION by_own() RETURNS trigger LANGUAGE plpgsql SET app.by_own = 'x' AS $$ BEGIN RETURN NEW; END $$;
CREATE FUNCTION by_name() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config(TG_ARGV[0], 'x', false); RETURN NEW; END $$;
CREATE FUNCTION by_text() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN EXECUTE 'set ' || 'app.by_' || 'text = ''x'''; RETURN NEW; END $$;
CREATE FUNCTION by_failing() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM set_config('app.by_failing', 'x', false); RAISE EXCEPTION 'no'; END $$;
CREATE FUNCTION by_locking() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(4711); RETURN NEW; END $$;
CREATE FUNCTION joins(text, text) RETURNS text LANGUAGE plpgsql STABLE AS
  $$ BEGIN PERFORM set_config('app.by_operator', $1, false); RETURN $1 || $2; END $$;
CREATE OPERATOR ~~~~ (LEFTARG = text, RIGHTARG = text, FUNCTION = joins);
CREATE VIEW viewed AS SELECT set_config('app.by_view', 'x', false) IS NOT NULL AS is_set;
CREATE DOMAIN checked AS text CHECK (set_config('app.by_domain', VALUE, false) <> '');
CREATE TABLE defaulted (i int, v text DEFAULT set_config('app.by_default', 'x', false));
CREATE TABLE called (i int); CREATE TRIGGER t BEFORE INSERT ON called FOR EACH ROW EXECUTE FUNCTION by_call();
CREATE TABLE setting (i int); CREATE TRIGGER t BEFORE INSERT ON setting FOR EACH ROW EXECUTE FUNCTION by_set();
CREATE TABLE owning (i int); CREATE TRIGGER t BEFORE INSERT ON owning FOR EACH ROW EXECUTE FUNCTION by_own();
CREATE TABLE naming (i int); CREATE TRIGGER t BEFORE INSERT ON naming FOR EACH ROW EXECUTE FUNCTION by_name('app.by_name');
CREATE TABLE running (i int); CREATE TRIGGER t BEFORE INSERT ON running FOR EACH ROW EXECUTE FUNCTION by_text();
CREATE TABLE failing (i int); CREATE TRIGGER t BEFORE INSERT ON failing FOR EACH ROW EXECUTE FUNCTION by_failing();
CREATE TABLE locking (i int); CREATE TRIGGER t BEFORE INSERT ON locking FOR EACH ROW EXECUTE FUNCTION by_locking();
GRANT ALL ON ALL TABLES IN SCHEMA hidden TO app"#;

struct Case {
    /// The setting that it leaves.
    setting: &'static str,
    sql: &'static str,
    /// The facts tell the setting's name, so that a look can ask for it; else the session keeps its connection.
    known: bool,
}

const CASES: &[Case] = &[
    Case { setting: "app.by_call", sql: "INSERT INTO hidden.called VALUES (1)", known: true },
    Case { setting: "app.by_set", sql: "INSERT INTO hidden.setting VALUES (1)", known: true },
    // What is left of a function's own setting is ''.
    Case { setting: "app.by_own", sql: "INSERT INTO hidden.owning VALUES (1)", known: true },
    Case { setting: "app.by_failing", sql: "INSERT INTO hidden.failing VALUES (1)", known: true },
    Case { setting: "app.by_view", sql: "SELECT is_set FROM hidden.viewed", known: true },
    Case { setting: "app.by_default", sql: "INSERT INTO hidden.defaulted (i) VALUES (1)", known: true },
    Case { setting: "app.by_domain", sql: "SELECT 'x'::hidden.checked", known: true },
    Case { setting: "app.by_operator", sql: "SELECT 'x'::text OPERATOR(hidden.~~~~) 'y'::text", known: true },
    Case { setting: "app.by_name", sql: "INSERT INTO hidden.naming VALUES (1)", known: false },
    Case { setting: "app.by_text", sql: "INSERT INTO hidden.running VALUES (1)", known: false },
    Case { setting: "app.by_escape", sql: r#"SELECT U&"set\005fconfig"('app.by_escape', 'x', false)"#, known: false },
    Case {
        setting: "app.by_query",
        sql: "SELECT length(query_to_xml('select set_config(''app.by_query'', ''x'', false)', true, true, '')::text) > 0",
        known: false,
    },
    Case { setting: "work_mem", sql: "UPDATE pg_settings SET setting = '77777' WHERE name = 'work_mem'", known: false },
];

/// FunctionCall with arguments and result as text.
fn function_call(oid: u32, arguments: &[&str]) -> Batch {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend(0_i16.to_be_bytes());
    body.extend((arguments.len() as i16).to_be_bytes());
    for argument in arguments {
        body.extend((argument.len() as i32).to_be_bytes());
        body.extend(argument.as_bytes());
    }
    body.extend(0_i16.to_be_bytes());
    let mut batch = Batch::new().message(b'F', &[&body]);
    batch.readies = 1;
    batch
}

/// What there is of a setting, asked on whatever server, and on the leader.
fn questions(setting: &str) -> [Batch; 3] {
    let value = format!("SELECT coalesce('set: ' || current_setting('{setting}', true), 'none')");
    [
        Batch::new().query(&value),
        Batch::new().query(&format!("{value}, pg_is_in_recovery()")),
        Batch::new().run(&format!("{value}, pg_is_in_recovery()"), &[]),
    ]
}

async fn answers(client: &mut Raw, setting: &str) -> Result<Vec<String>> {
    let mut told = Vec::new();
    for question in questions(setting) {
        told.extend(client.ask(&question).await.with_context(|| format!("the value of {setting}"))?);
    }
    Ok(told)
}

/// A router on one connection, once it has facts of all objects.
async fn one_connection(yard: &Yard) -> Result<Router> {
    let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1)).await?;
    eventually(SOON, "facts", || async {
        let told = Raw::connect(&router.rw_dsn("app")).await?.query("EXPLAIN (ROUTE) SELECT is_set FROM hidden.viewed").await?;
        Ok(told.iter().any(|line| line.contains("Leaves: unknown (set_config: viewed)")).then_some(()))
    })
    .await?;
    Ok(router)
}

/// Something leaves a setting: its session finds it as a direct one does, statement after statement. Another session
/// between them, and the next ones, find what a new one does.
async fn is_its_own(yard: &Yard, router: &Router, setting: &str, act: &Batch) -> Result {
    let mut direct = Raw::connect(&yard.leader.dsn_for("app")).await?;
    let before = answers(&mut direct, setting).await?;
    let acted = direct.ask(act).await?;
    let kept = answers(&mut direct, setting).await?;
    ensure!(before != kept, "nothing is left: {kept:?}");
    let (mut first, mut second) = (Raw::connect(&router.rw_dsn("app")).await?, Raw::connect(&router.rw_dsn("app")).await?);
    ensure!(first.ask(act).await? == acted, "the answer isn't {acted:?}");
    for round in 0..4 {
        let told = answers(&mut second, setting).await?;
        ensure!(told == before, "round {round}: another session has {told:?}");
        let told = answers(&mut first, setting).await?;
        ensure!(told == kept, "round {round}: its own session has {told:?} instead of {kept:?}");
    }
    drop(first);
    for _ in 0..4 {
        let told = answers(&mut Raw::connect(&router.rw_dsn("app")).await?, setting).await?;
        ensure!(told == before, "behind its end another session has {told:?}");
    }
    ensure!(answers(&mut second, setting).await? == before);
    Ok(())
}

#[tokio::test]
async fn custom_settings_made_out_of_sight_are_their_sessions_own() -> Result {
    tell(async |yard| {
        yard.prepare(OBJECTS).await?;
        let router = one_connection(yard).await?;
        for Case { setting, sql, known } in CASES {
            let told = Raw::connect(&router.rw_dsn("app")).await?.query(&format!("EXPLAIN (ROUTE) {sql}")).await?;
            let unknown = told.iter().any(|line| line.contains("May set: custom settings"));
            ensure!(unknown != *known, "{sql}: {told:#?}");
            for act in [Batch::new().query(sql), Batch::new().run(sql, &[])] {
                is_its_own(yard, &router, setting, &act).await.with_context(|| (*sql).to_owned())?;
            }
        }
        // Named in no body: whether the names that are known would be enough isn't what tells here.
        is_its_own(yard, &router, "app.by_function", &function_call(2078, &["app.by_function", "x", "f"])).await.context("FunctionCall")?;
        yard.prepare("DROP SCHEMA hidden CASCADE").await
    })
    .await
}

/// Takes a lock out of sight, and keeps it through what others do, until it leaves.
async fn is_locked(yard: &Yard, router: &Router, act: &Batch) -> Result {
    let count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711";
    let acted = {
        let mut direct = Raw::connect(&yard.leader.dsn_for("app")).await?;
        direct.ask(act).await?
    };
    eventually(SOON, "the direct connection's lock is gone", || async { Ok((yard.leader.ask(count).await? == "0").then_some(())) }).await?;
    let (mut first, mut second) = (Raw::connect(&router.rw_dsn("app")).await?, Raw::connect(&router.rw_dsn("app")).await?);
    ensure!(first.ask(act).await? == acted, "the answer isn't {acted:?}");
    for _ in 0..4 {
        // On the connection of the one that has it, it would be given again.
        let told = second.query("SELECT pg_try_advisory_xact_lock(4711)").await?;
        ensure!(told.contains(&"D f".to_owned()), "{told:?}");
        first.query("SELECT pg_is_in_recovery()").await?;
    }
    ensure!(yard.leader.ask(count).await? == "1", "the lock is lost");
    drop(first);
    eventually(SOON, "the lock is gone with its session", || async { Ok((yard.leader.ask(count).await? == "0").then_some(())) }).await
}

#[tokio::test]
async fn locks_taken_out_of_sight_are_their_sessions_own() -> Result {
    tell(async |yard| {
        yard.prepare(OBJECTS).await?;
        let router = one_connection(yard).await?;
        is_locked(yard, &router, &Batch::new().query("INSERT INTO hidden.locking VALUES (1)")).await.context("a trigger")?;
        is_locked(yard, &router, &function_call(2880, &["4711"])).await.context("FunctionCall")?;
        yard.prepare("DROP SCHEMA hidden CASCADE").await
    })
    .await
}

/// Where the settings of a session make every plan dear, PostgreSQL would compile the look's with JIT, for seconds each time.
#[tokio::test]
async fn a_look_is_not_compiled() -> Result {
    tell(async |yard| {
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1).set("pool.verify_returns", 1.0)).await?;
        for port in [router.rw_dsn("app"), router.ro_dsn("app")] {
            let mut client = Raw::connect(&port).await?;
            for name in ["enable_seqscan", "enable_nestloop", "enable_sort"] {
                client.ask(&Batch::new().query(&format!("SET {name} = off"))).await?;
            }
            let begin = Instant::now();
            // Each but the first waits for the look behind the one before.
            for _ in 0..20 {
                client.ask(&Batch::new().query("SELECT 1")).await?;
            }
            let took = begin.elapsed();
            ensure!(took < Duration::from_secs(4), "twenty statements took {took:?}");
            let told = client.ask(&Batch::new().query("SHOW jit")).await?;
            ensure!(told.iter().any(|line| line == "D on"), "{told:?}");
        }
        Ok(())
    })
    .await
}

/// The session's own time limit is for its statements: it doesn't cancel what the router asks behind them.
#[tokio::test]
async fn a_look_is_not_bound_by_the_sessions_time_limit() -> Result {
    tell(async |yard| {
        yard.prepare(OBJECTS).await?;
        let router = one_connection(yard).await?;
        let (mut locks, mut monitor) = (Raw::connect(&yard.leader.dsn()).await?, Raw::connect(&yard.leader.dsn()).await?);
        for limit in ["SET statement_timeout = '100ms'", "SELECT set_config('statement_timeout', '100', false)"] {
            let mut client = Raw::connect(&router.rw_dsn("app")).await?;
            client.query(limit).await?;
            for sql in ["BEGIN", "INSERT INTO hidden.called VALUES (1)"] {
                client.query(sql).await?;
            }
            // What a look reads and a login doesn't.
            locks.query("BEGIN; LOCK TABLE pg_catalog.pg_depend").await?;
            client.query("COMMIT").await?;
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'app' \
                           AND clock_timestamp() - query_start > '400 ms'";
            let deadline = Instant::now() + SOON;
            while !monitor.query(waiting).await?.contains(&"D 1".to_owned()) {
                ensure!(Instant::now() < deadline, "{limit}: no look waits for longer than the session's limit");
            }
            locks.query("ROLLBACK").await?;
            let told = client.query("SHOW statement_timeout").await?;
            ensure!(told.contains(&"D 100ms".to_owned()), "{told:?}");
            ensure!(metric(&router, "switchyard_pinned_sessions").await? == 0.0);
            let other = Raw::connect(&router.rw_dsn("app")).await?.query("SHOW statement_timeout").await?;
            ensure!(other.contains(&"D 0".to_owned()), "{other:?}");
        }
        yard.prepare("DROP SCHEMA hidden CASCADE").await
    })
    .await
}

/// What libpq calls for large objects leaves nothing: it isn't looked at, and its session doesn't keep its connection.
#[tokio::test]
async fn large_objects_keep_no_connection() -> Result {
    tell(async |yard| {
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1).set("pool.verify_returns", 0.0)).await?;
        let looks = async || -> Result<f64> {
            let mut all = 0.0;
            for result in ["clean", "settings", "pinned", "closed"] {
                all += metric(&router, &format!("switchyard_looks_total{{result=\"{result}\"}}")).await?;
            }
            Ok(all)
        };
        let mut client = Raw::connect(&router.rw_dsn("app")).await?;
        let before = looks().await?;
        // lo_create and lo_unlink.
        for (oid, argument) in [(715, "471147"), (964, "471147")] {
            let told = client.ask(&function_call(oid, &[argument])).await?;
            ensure!(told.iter().any(|line| line == "V"), "{told:?}");
        }
        ensure!(metric(&router, "switchyard_pinned_sessions").await? == 0.0);
        ensure!(looks().await? == before, "it was looked at");
        client.ask(&function_call(2078, &["app.by_function", "x", "f"])).await?;
        eventually(SOON, "another function's call keeps the connection", || async {
            Ok((metric(&router, "switchyard_pinned_sessions").await? == 1.0).then_some(()))
        })
        .await
    })
    .await
}

/// A view of the database calls a function that nothing is wrong with.
const YOUNG: &str = "
CREATE SCHEMA young AUTHORIZATION app; SET ROLE app;
CREATE FUNCTION young.f() RETURNS text STABLE LANGUAGE sql AS $$ SELECT 'plain' $$;
CREATE VIEW young.v AS SELECT pg_catalog.concat(young.f()) AS value;
CREATE TABLE young.t (i int)";

/// What DDL makes runs before the facts tell of it; some of it is gone by then.
#[tokio::test]
async fn what_ddl_has_just_made_leaves_its_sessions_own() -> Result {
    tell(async |yard| {
        yard.prepare(YOUNG).await?;
        let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1)).await?;
        eventually(SOON, "facts", || async {
            let told = Raw::connect(&router.rw_dsn("app")).await?.query("EXPLAIN (ROUTE) TABLE young.v").await?;
            Ok(told.iter().any(|line| line.contains("Leaves: nothing (proven)")).then_some(()))
        })
        .await?;
        let sets = |name: &str| format!("$$ SELECT set_config('young.{name}', 'secret', false) $$");
        let trigger = "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET young.by_trigger = 'secret'; RETURN NEW; END $$";
        let (function, default) = (sets("by_function"), sets("by_default"));
        let plain = "CREATE OR REPLACE FUNCTION young.f() RETURNS text STABLE LANGUAGE sql AS $$ SELECT 'plain' $$";
        for (setting, sql) in [
            (
                "young.by_function",
                format!("CREATE OR REPLACE FUNCTION young.f() RETURNS text STABLE LANGUAGE sql AS {function}; TABLE young.v; {plain}"),
            ),
            (
                "young.by_trigger",
                format!(
                    "CREATE FUNCTION young.g() {trigger}; CREATE TRIGGER g BEFORE INSERT ON young.t FOR EACH ROW EXECUTE FUNCTION young.g(); \
                     INSERT INTO young.t VALUES (1); DROP TRIGGER g ON young.t; DROP FUNCTION young.g()"
                ),
            ),
            (
                "young.by_default",
                format!(
                    "CREATE FUNCTION young.h() RETURNS text LANGUAGE sql AS {default}; ALTER TABLE young.t ADD COLUMN h text DEFAULT young.h(); \
                     INSERT INTO young.t VALUES (1); ALTER TABLE young.t DROP COLUMN h; DROP FUNCTION young.h()"
                ),
            ),
        ] {
            is_its_own(yard, &router, setting, &Batch::new().query(&sql)).await.with_context(|| setting.to_owned())?;
        }
        yard.prepare("DROP SCHEMA young CASCADE").await
    })
    .await
}

/// A parameter that one server takes as anybody's, and another one refuses that has loaded the library in between: nothing runs with less than its
/// session has set, and what has failed hasn't run.
#[tokio::test]
async fn a_parameter_of_a_library_is_refused_before_anything_runs() -> Result {
    tell(async |yard| {
        yard.prepare(
            "CREATE TABLE loads (i int); CREATE TABLE plainly (i int);
             CREATE FUNCTION loads() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
             CREATE TRIGGER t BEFORE INSERT ON loads FOR EACH ROW EXECUTE FUNCTION loads();
             GRANT ALL ON loads, plainly TO app",
        )
        .await?;
        for act in [Batch::new().query("INSERT INTO plainly VALUES (1)"), Batch::new().run("INSERT INTO plainly VALUES (1)", &[])] {
            let router = yard.other_router(RouterOptions::new().set("pool.max_size", 1)).await?;
            eventually(SOON, "facts", || async {
                let told = Raw::connect(&router.rw_dsn("app")).await?.query("EXPLAIN (ROUTE) INSERT INTO loads VALUES (1)").await?;
                Ok(told.iter().any(|line| line.contains("Leaves: nothing (proven)")).then_some(()))
            })
            .await?;
            let (mut first, mut second) = (Raw::connect(&router.rw_dsn("app")).await?, Raw::connect(&router.rw_dsn("app")).await?);
            first.query("SET plpgsql.variable_conflict = 'bogus'").await?;
            second.query("INSERT INTO loads VALUES (1)").await?;
            let told = first.ask(&act).await?;
            let count = yard.leader.connect().await?.simple_query("SELECT count(*) FROM plainly").await?;
            let done = first_value(&count) == Some("1");
            let refused = told.iter().any(|line| line.starts_with("E "));
            ensure!(refused != done, "{told:?}, and it was done: {done}");
            ensure!(told.last().is_some_and(|line| line == "Z I"), "{told:?}");
            ensure!(second.query("SELECT 1").await?.iter().any(|line| line == "D 1"));
            yard.prepare("TRUNCATE plainly").await?;
        }
        yard.prepare("DROP TABLE loads, plainly; DROP FUNCTION loads()").await
    })
    .await
}
