//! The router is stopped by SIGSTOP, as a virtual machine may be, and wakes with yesterday's topology; or a member is.

use std::time::Instant;

use anyhow::{Context, bail, ensure};
use switchyard_tests::cluster::connect;
use switchyard_tests::{Cluster, Member, Result, Router, RouterOptions, eventually};

use super::in_flight::running;
use super::{LONG, Running, SOON, Watched, sync_standby, whole};

/// Sessions of every kind, on the old leader.
struct Sessions {
    idle: Watched,
    transaction: Watched,
    pinned: Watched,
}

impl Sessions {
    async fn open(cluster: &Cluster, router: &Router, table: &str) -> Result<Sessions> {
        let leader = cluster.leader().await?;
        let setup = format!("CREATE TABLE {table} (what text, port int DEFAULT inet_server_port())");
        connect(&leader.dsn_for("appmd5")).await?.batch_execute(&setup).await?;
        cluster.settled().await?;
        let dsn = router.rw_dsn("appmd5");
        let sessions =
            Sessions { idle: Watched::open(&dsn).await?, transaction: Watched::open(&dsn).await?, pinned: Watched::open(&dsn).await? };
        sessions.idle.run(&format!("INSERT INTO {table} VALUES ('before')")).await?;
        sessions.transaction.run("BEGIN").await?;
        sessions.transaction.run(&format!("INSERT INTO {table} VALUES ('after: transaction')")).await?;
        sessions.pinned.run("CREATE TEMP TABLE mine (id int)").await?;
        Ok(sessions)
    }

    /// What each sends while the router sleeps.
    fn write(&self, table: &str) -> [Running; 3] {
        [
            self.idle.start(&format!("INSERT INTO {table} VALUES ('after: idle')")),
            self.transaction.start("COMMIT"),
            self.pinned.start(&format!("INSERT INTO {table} VALUES ('after: pinned')")),
        ]
    }

    async fn check(self, [idle, transaction, pinned]: [Running; 3], new: &Member, table: &str) -> Result {
        // The loss of a connection that the pool held may be noticed only after the write was sent on it.
        let written = match idle.outcome().await?.0 {
            None => 1,
            Some(error) if error.code().is_some_and(|code| code.code() == "08007") => 0,
            Some(error) => return Err(error).context("the idle session's write"),
        };
        let lost = transaction.fails().await.context("the open transaction")?;
        ensure!(matches!(lost.as_str(), "40001" | "08007"), "{lost}");
        let (error, _) = pinned.outcome().await?;
        let error = error.context("the pinned session's write went through")?;
        // Told by its FATAL, or, where that came first, by the end of the connection.
        ensure!(error.is_closed() || error.code().is_some_and(|code| matches!(code.code(), "57P01" | "08007")), "{error:?}");
        self.transaction.run("ROLLBACK").await?;
        for session in [&self.idle, &self.transaction] {
            session.run(&format!("INSERT INTO {table} VALUES ('after: again')")).await?;
        }
        let ports = format!("SELECT string_agg(DISTINCT port::text, ' ') || ': ' || count(*) FROM {table} WHERE what LIKE 'after%'");
        let ports = new.ask(&ports).await?;
        ensure!(ports == format!("{}: {}", new.port(), written + 2), "{ports}");
        Ok(())
    }
}

pub(crate) async fn over_a_switchover(cluster: &Cluster) -> Result {
    let router = Router::start(cluster, RouterOptions::new()).await?;
    whole(cluster, &router).await?;
    let (old, new) = (cluster.leader().await?, sync_standby(cluster).await?);
    let sessions = Sessions::open(cluster, &router, "slept").await?;
    router.pause().await?;
    let writes = sessions.write("slept");
    let done = cluster.switchover(&new).await;
    router.resume()?;
    done?;
    sessions.check(writes, &new, "slept").await?;
    eventually(SOON, "the old leader follows", || async { Ok(old.is_in_recovery().await?.then_some(())) }).await?;
    whole(cluster, &router).await
}

/// The old leader's PostgreSQL outlives its Patroni, and takes writes as long as anybody sends them.
pub(crate) async fn over_a_lost_lease(cluster: &Cluster) -> Result {
    let router = Router::start(cluster, RouterOptions::new()).await?;
    whole(cluster, &router).await?;
    let old = cluster.leader().await?;
    // So that the old leader doesn't wait for its standbys, which follow another by then.
    old.ask("ALTER ROLE appmd5 SET synchronous_commit = local; SELECT 1").await?;
    let sessions = Sessions::open(cluster, &router, "overslept").await?;
    router.pause().await?;
    old.kill_patroni()?;
    // Nobody ends the lease early: the router's belief counts on its time to live.
    let new = eventually(LONG, "another member leads", || async {
        let name = cluster.leader_key().await?.filter(|name| name != old.name());
        let member = name.and_then(|name| cluster.named(&name));
        Ok(match member {
            Some(member) if !member.is_in_recovery().await? => Some(member),
            _ => None,
        })
    })
    .await;
    let writes = sessions.write("overslept");
    router.resume()?;
    let new = new?;
    ensure!(!old.is_in_recovery().await?, "the old leader should have outlived its Patroni");
    let checked = sessions.check(writes, &new, "overslept").await;
    let reached = old.ask("SELECT coalesce(string_agg(what, ', '), '') FROM overslept WHERE what LIKE 'after%'").await?;
    // It is a zombie with transactions of its own: away with it before Patroni takes it back.
    old.kill().await?;
    cluster.start_member(&old).await?;
    ensure!(reached.is_empty(), "reached the old leader: {reached}");
    checked?;
    whole(cluster, &router).await
}

/// The leader hangs, as on a disk that doesn't answer, and wakes up when another leads.
pub(crate) async fn the_leader(cluster: &Cluster) -> Result {
    // Who waits for a connection to it would wait longer than this story may take.
    let options = RouterOptions::new().set("postgres.connect_timeout", "1min").set("failover.hold_timeout", "1min");
    let router = Router::start(cluster, options).await?;
    whole(cluster, &router).await?;
    let old = cluster.leader().await?;
    connect(&old.dsn_for("app")).await?.batch_execute("CREATE TABLE hung (what text)").await?;
    cluster.settled().await?;
    let dsn = router.rw_dsn("app");
    let sessions = [Watched::open(&dsn).await?, Watched::open(&dsn).await?, Watched::open(&dsn).await?];
    sessions[0].run("INSERT INTO hung VALUES ('before')").await?;
    // Each session has the process that it was told of; all but the first one's end.
    old.ask(
        "SELECT count(pg_terminate_backend(pid)) FROM
           (SELECT pid FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend' ORDER BY backend_start OFFSET 1) AS others",
    )
    .await?;
    eventually(SOON, "one connection to it is left", || async {
        let state = router.get("/api/v1/cluster").await?.json()?;
        let members = state["members"].as_array().context("members")?;
        let member = members.iter().find(|member| member["name"] == old.name()).context("the leader")?;
        Ok((member["connections"] == 1).then_some(()))
    })
    .await?;
    old.pause().await?;
    // One is sent on the connection that is there, the others wait for connections of their own.
    let writes = sessions.each_ref().map(|session| session.start("INSERT INTO hung VALUES ('after')"));
    let reader = Watched::open(&router.ro_dsn("app")).await?;
    reader.run("SELECT count(*) FROM hung").await?;
    cluster.expire_leader().await?;
    let mut written = 0;
    for write in writes {
        match write.outcome().await?.0 {
            None => written += 1,
            Some(error) => ensure!(error.code().is_some_and(|code| code.code() == "08007"), "{error:?}"),
        }
    }
    ensure!(written == 2, "{written} were written");
    let new = cluster.new_leader(&old).await?;
    old.resume()?;
    for session in &sessions {
        session.run("INSERT INTO hung VALUES ('again')").await?;
    }
    whole(cluster, &router).await?;
    let counted = new
        .ask("SELECT string_agg(what || ' ' || count, ', ' ORDER BY what) FROM (SELECT what, count(*) FROM hung GROUP BY 1) AS all_of_it")
        .await?;
    ensure!(counted == "after 2, again 3, before 1", "{counted}");
    Ok(())
}

/// A replica hangs, and its host answers TCP all the while: what was under way there runs elsewhere, but for what has been answered in part.
pub(crate) async fn a_replica(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    let replicas = cluster.replicas().await?;
    let [victim, other] = replicas.as_slice() else { bail!("two replicas") };
    router.obey(&["drain", other.name()]).await?;
    let dsn = router.ro_dsn("app");
    let [lone, reader, partly] = [Watched::open(&dsn).await?, Watched::open(&dsn).await?, Watched::open(&dsn).await?];
    reader.run("BEGIN READ ONLY").await?;
    reader.run("SELECT 1").await?;
    let read = "SELECT 1 FROM pg_sleep(2)";
    let again = [lone.start(read), reader.start(read)];
    let rest = partly.start("SELECT repeat('x', 65536) UNION ALL SELECT 'end' FROM pg_sleep(2)");
    running(victim, "pg_sleep(2)", 3).await?;
    victim.pause().await?;
    let paused = Instant::now();
    let elsewhere = async {
        router.obey(&["resume", other.name()]).await?;
        for read in again {
            read.succeeds().await.with_context(|| format!("{:?} after the replica was stopped", paused.elapsed()))?;
        }
        reader.run("COMMIT").await?;
        ensure!(!rest.0.is_finished(), "what was answered in part has an end, and nobody to tell it");
        Ok(())
    };
    let elsewhere = elsewhere.await;
    println!("reads under way on a replica that hangs: {:.1} s", paused.elapsed().as_secs_f64());
    victim.resume()?;
    elsewhere?;
    rest.succeeds().await?;
    whole(cluster, router).await
}
