//! The harness itself: what the other tests stand on.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use switchyard_tests::home::{Home, base};
use switchyard_tests::machine::Machine;
use switchyard_tests::processes::{Pid, Signal, signal, working_in};
use switchyard_tests::{Cluster, Options, Result, Shared, Stories, Synchronous, eventually, http, psql};

const SOON: Duration = Duration::from_secs(20);

/// A cluster through its whole life. The order matters: each story leaves it whole for the next.
#[tokio::test(flavor = "multi_thread")]
async fn cluster() -> Result {
    let begin = Instant::now();
    let cluster = Cluster::start(Options::new().members(3).tag("node3", "nofailover", true).parameter("work_mem", "5MB")).await?;
    let start = begin.elapsed();
    let folder = cluster.home().path().to_owned();
    let mut stories = Stories::new();

    stories
        .tell("three members start within 15 seconds", async {
            println!("started in {:.1} s", start.as_secs_f64());
            ensure!(start < Duration::from_secs(15), "{start:?}");
            ensure!(cluster.leader().await? == cluster.member(0));
            ensure!(cluster.replicas().await? == cluster.members()[1..]);
            for member in cluster.members() {
                ensure!(member.ask("SHOW work_mem").await? == "5MB");
                ensure!(member.ask("SHOW max_connections").await? == "200");
            }
            Ok(())
        })
        .await;
    stories.tell("every role can log in, and with its own password only", roles(&cluster)).await;
    stories.tell("psql gives rows, errors and a status", programs(&cluster)).await;
    stories.tell("tags reach Patroni", tags(&cluster)).await;
    stories.tell("delay_replay delays", delay(&cluster)).await;
    stories.tell("a paused member doesn't answer", pause(&cluster)).await;
    stories.tell("a stopped member comes back", stop(&cluster)).await;
    stories.tell("a member is added while the cluster runs", add(&cluster)).await;
    stories.tell("switchover", switchover(&cluster)).await;
    stories.tell("the leader is killed", kill(&cluster)).await;
    stories.tell("PostgreSQL outlives its Patroni", orphan(&cluster)).await;
    stories.tell("etcd stops and comes back with what it knew", etcd(&cluster)).await;

    stories.end(|| cluster.logs())?;
    drop(cluster);
    nothing_left(&folder)
}

async fn roles(cluster: &Cluster) -> Result {
    for member in cluster.members() {
        for role in cluster.roles() {
            let answer = psql(&member.dsn_for(&role.name), &["-c", "SELECT current_user"]).await?.success()?;
            ensure!(answer.trim() == role.name, "{answer}");
        }
        let wrong = psql(&member.dsn_for("app").replace("app-secret", "wrong"), &["-c", "SELECT 1"]).await?;
        ensure!(wrong.status == Some(2) && wrong.stderr.contains("password authentication failed"), "{wrong:?}");
    }
    let verifiers = "SELECT string_agg(left(rolpassword, 3), ',' ORDER BY rolname) FROM pg_authid WHERE rolname IN ('app', 'appmd5')";
    ensure!(cluster.member(0).ask(verifiers).await? == "SCR,md5");
    Ok(())
}

async fn programs(cluster: &Cluster) -> Result {
    let dsn = cluster.leader().await?.dsn_for("app");
    let made = psql(&dsn, &["-c", "CREATE TABLE told (id int)", "-c", "INSERT INTO told VALUES (1), (2) RETURNING id"]).await?;
    ensure!(made.ok() && made.stdout == "1\n2\n", "{made:?}");
    let refused = psql(&dsn, &["-c", "SELECT 1/0"]).await?;
    ensure!(refused.status == Some(1) && refused.stderr.contains("ERROR:  22012"), "{refused:?}");
    let input = switchyard_tests::psql::run("psql", &["-X", "-At", &dsn], "SELECT count(*) FROM told;\n").await?;
    ensure!(input.success()? == "2\n");
    Ok(())
}

async fn tags(cluster: &Cluster) -> Result {
    let patroni = http::get(&format!("{}/patroni", cluster.member(2).rest_url())).await?.json()?;
    ensure!(patroni["tags"] == json!({ "nofailover": true }), "{patroni}");
    Ok(())
}

async fn delay(cluster: &Cluster) -> Result {
    const DELAY: Duration = Duration::from_secs(3);
    let (leader, slow, fast) = (cluster.leader().await?, cluster.member(2), cluster.member(1));
    leader.ask("CREATE TABLE late (id int); SELECT 1").await?;
    cluster.settled().await?;
    cluster.delay_replay(&slow, DELAY).await?;

    let written = Instant::now();
    leader.ask("INSERT INTO late VALUES (1) RETURNING id").await?;
    let count = "SELECT count(*) FROM late";
    eventually(SOON, "the other replica shows it", || async { Ok((fast.ask(count).await? == "1").then_some(())) }).await?;
    let fast_after = written.elapsed();
    eventually(SOON, "the slow replica shows it", || async { Ok((slow.ask(count).await? == "1").then_some(())) }).await?;
    let slow_after = written.elapsed();
    // The replica measures the delay from the commit on, with the same clock: a few milliseconds are for the way to it.
    ensure!(slow_after > DELAY - Duration::from_millis(100), "the slow one showed it after {slow_after:?}");
    ensure!(fast_after < DELAY, "the other one showed it after {fast_after:?}");

    cluster.delay_replay(&slow, Duration::ZERO).await?;
    leader.ask("INSERT INTO late VALUES (2) RETURNING id").await?;
    cluster.settled().await
}

async fn pause(cluster: &Cluster) -> Result {
    let member = cluster.member(1);
    member.pause().await?;
    let silent = member.connect().await;
    member.resume()?;
    ensure!(silent.is_err(), "it answered");
    eventually(SOON, "it answers again", || async { Ok(Some(member.ask("SELECT 1").await?)) }).await?;
    Ok(())
}

async fn stop(cluster: &Cluster) -> Result {
    let member = cluster.member(1);
    cluster.stop(&member).await?;
    ensure!(member.processes()?.is_empty() && member.connect().await.is_err());
    cluster.leader().await?.ask("INSERT INTO late VALUES (3) RETURNING id").await?;
    cluster.start_member(&member).await?;
    cluster.settled().await?;
    ensure!(member.ask("SELECT max(id) FROM late").await? == "3");
    Ok(())
}

async fn add(cluster: &Cluster) -> Result {
    let member = cluster.add_member(json!({ "nofailover": true, "noloadbalance": true })).await?;
    ensure!(member.name() == "node4" && member.is_in_recovery().await?);
    let announced = cluster.key_value("members/node4").await?.context("no key")?;
    ensure!(announced.contains("noloadbalance"), "{announced}");
    Ok(())
}

async fn switchover(cluster: &Cluster) -> Result {
    let (old, new) = (cluster.leader().await?, cluster.member(1));
    cluster.switchover(&new).await?;
    ensure!(cluster.leader().await? == new && new.ask("SELECT pg_is_in_recovery()").await? == "f");
    eventually(SOON, "the old leader follows", || async { Ok(old.is_in_recovery().await?.then_some(())) }).await
}

async fn kill(cluster: &Cluster) -> Result {
    let old = cluster.kill_leader().await?;
    ensure!(old.processes()?.is_empty() && old.connect().await.is_err());
    ensure!(cluster.leader_key().await?.as_deref() == Some(old.name()), "the key went without a lease's end");
    cluster.expire_leader().await?;
    let new = cluster.new_leader(&old).await?;
    // The two others may not lead.
    ensure!(new == cluster.member(0), "{}", new.name());
    new.ask("INSERT INTO late VALUES (4) RETURNING id").await?;
    cluster.start_member(&old).await?;
    cluster.settled().await?;
    ensure!(old.ask("SELECT max(id) FROM late").await? == "4");
    Ok(())
}

async fn orphan(cluster: &Cluster) -> Result {
    let leader = cluster.leader().await?;
    leader.kill_patroni()?;
    ensure!(http::get(&leader.rest_url()).await.is_err(), "Patroni answers");
    leader.ask("INSERT INTO late VALUES (5) RETURNING id").await?;
    cluster.start_member(&leader).await?;
    eventually(SOON, "Patroni answers", || async { Ok((http::get(&leader.rest_url()).await?.status == 200).then_some(())) }).await?;
    ensure!(cluster.leader().await? == leader, "it was Patroni that was killed, and its key was there all the time");
    Ok(())
}

async fn etcd(cluster: &Cluster) -> Result {
    cluster.etcd_stop()?;
    ensure!(cluster.leader_key().await.is_err(), "etcd answers");
    cluster.etcd_start().await?;
    let after = eventually(SOON, "the cluster has a leader", || async { cluster.leader_key().await }).await?;
    ensure!(cluster.named(&after).is_some());
    // Patroni may have demoted it in between.
    cluster.leader().await?;
    Ok(())
}

static YARD: Shared<Cluster> = Shared::new();

async fn small() -> Result<Cluster> {
    Cluster::start(Options::new().members(2).synchronous(Synchronous::On).hba("host all nobody 127.0.0.1/32 trust")).await
}

/// These two share a cluster, whichever comes first.
#[tokio::test]
async fn synchronous_mode_is_on() -> Result {
    let yard = YARD.turn(small).await?;
    let leader = yard.leader().await?;
    let query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    eventually(SOON, "a synchronous standby", || async { Ok((leader.ask(query).await? == "1").then_some(())) }).await
}

#[tokio::test]
async fn lines_for_pg_hba_come_first() -> Result {
    let yard = YARD.turn(small).await?;
    let leader = yard.leader().await?;
    leader.ask("CREATE ROLE nobody LOGIN; SELECT 1").await?;
    let answer = psql(&leader.dsn_for("nobody"), &["-w", "-c", "SELECT current_user"]).await?.success()?;
    ensure!(answer == "nobody\n");
    Ok(())
}

/// Starts a cluster and waits to be killed: run by the test below, in a process of its own.
#[tokio::test]
#[ignore = "only for `a_killed_program_leaves_nothing`"]
async fn to_be_killed() -> Result {
    let cluster = Cluster::start(Options::new().members(1)).await?;
    println!("home {}", cluster.home().path().display());
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_program_leaves_nothing() -> Result {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "to_be_killed", "--nocapture"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = child.stdout.take().context("its output")?;
    let lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    let home = lines.map_while(std::io::Result::ok).find_map(|line| Some(PathBuf::from(line.strip_prefix("home ")?))).context("no home")?;
    let account = &Machine::look()?.account;
    ensure!(working_in(account, &home)?.len() > 5, "etcd, Patroni and PostgreSQL should work there");

    child.kill()?;
    child.wait()?;
    eventually(SOON, "all of it is gone", || async { Ok((working_in(account, &home)?.is_empty() && !home.exists()).then_some(())) }).await
}

/// Even if its guard was killed first: the next start finds what is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_owner_is_ended_by_the_next() -> Result {
    let account = &Machine::look()?.account;
    let path = base()?.join(format!("left-by-{}", std::process::id()));
    std::fs::create_dir(&path)?;
    std::fs::write(path.join("lock"), "")?;
    std::fs::create_dir(path.join("node1"))?;
    let mut sleeper = account.command("sleep").arg("1000").current_dir(path.join("node1")).spawn()?;
    eventually(SOON, "it works there", || async { Ok((working_in(account, &path)?.len() == 1).then_some(())) }).await?;

    let home = Home::temporary()?;
    ensure!(!path.exists() && working_in(account, &path)?.is_empty() && home.path().exists());
    let status = sleeper.wait()?;
    ensure!(!status.success(), "{status}");
    Ok(())
}

/// A folder whose owner lives is left alone.
#[test]
fn two_runs_do_not_share_a_folder() -> Result {
    let path = base()?.join(format!("shared-{}", std::process::id()));
    let first = Home::at(path.clone())?;
    let second = Home::at(path.clone());
    ensure!(second.is_err_and(|error| error.to_string().contains("another one is running")));
    drop(first);
    let third = Home::at(path.clone())?;
    drop(third);
    std::fs::remove_dir_all(path)?;
    Ok(())
}

fn nothing_left(folder: &std::path::Path) -> Result {
    let left: Vec<Pid> = working_in(&Machine::look()?.account, folder)?;
    signal(&left, Signal::KILL)?;
    ensure!(left.is_empty() && !folder.exists(), "{left:?} still work in {}", folder.display());
    Ok(())
}
