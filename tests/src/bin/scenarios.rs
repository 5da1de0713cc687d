//! What clients see of the usual mishaps, through Switchyard and through HAProxy, on one loopback cluster: a table.
//!
//! Exit status: 0 if all was measured, whatever the figures; 1 if not.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use switchyard_tests::haproxy::Haproxy;
use switchyard_tests::watch::{Fault, Figures, Plan, Watch, draw};
use switchyard_tests::{Cluster, Member, Options, Router, RouterOptions, Synchronous, eventually};

/// For what takes a moment.
const SOON: Duration = Duration::from_secs(60);

/// Starts a cluster of three with synchronous replication, two routers and two HAProxies, lets things happen under load, and prints what clients
/// saw as a table in Markdown.
#[derive(Debug, Parser)]
#[command(name = "scenarios", version)]
struct Arguments {
    /// Only scenarios with this in their names, more than once for several.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    writers: u16,
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(0..=1000))]
    readers: u16,
    /// Between two statements of one client.
    #[arg(long, value_name = "MS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pace_ms: u64,
    /// Each so often.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    times: u16,
    /// Without synchronous replication: after a kill, acknowledged writes may be lost, and no write waits for a standby to come back.
    #[arg(long)]
    asynchronous: bool,
    /// Where a picture of each goes.
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    OwnSwitchover,
    Switchover,
    LeaderKilled,
    ReplicaKilled,
    RollingRestart,
}

impl Mishap {
    const ALL: [Mishap; 5] =
        [Mishap::OwnSwitchover, Mishap::Switchover, Mishap::LeaderKilled, Mishap::ReplicaKilled, Mishap::RollingRestart];

    fn name(self) -> &'static str {
        match self {
            Mishap::OwnSwitchover => "switchover by `switchyard switchover`",
            Mishap::Switchover => "switchover by Patroni (patronictl)",
            Mishap::LeaderKilled => "kill -9 of the leader",
            Mishap::ReplicaKilled => "kill -9 of a replica",
            Mishap::RollingRestart => "rolling restart of all",
        }
    }
}

/// What stands before the cluster.
struct Stage {
    cluster: Cluster,
    routers: [Router; 2],
    haproxies: [Haproxy; 2],
    synchronous: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    Switchyard,
    Haproxy,
}

impl Front {
    fn name(self) -> &'static str {
        match self {
            Front::Switchyard => "Switchyard",
            Front::Haproxy => "HAProxy",
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scenarios: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let synchronous = if arguments.asynchronous { Synchronous::Off } else { Synchronous::On };
    let cluster = Cluster::start(Options::new().members(3).synchronous(synchronous)).await?;
    let options = || RouterOptions::new().set("log.filter", "info");
    let routers = [Router::start(&cluster, options()).await?, Router::start(&cluster, options()).await?];
    let haproxies = [Haproxy::start(&cluster).await?, Haproxy::start(&cluster).await?];
    let stage = Stage { cluster, routers, haproxies, synchronous: !arguments.asynchronous };
    let mut rows = Vec::new();
    for mishap in Mishap::ALL {
        for front in [Front::Switchyard, Front::Haproxy] {
            let wanted = arguments.only.is_empty() || arguments.only.iter().any(|text| mishap.name().contains(text.as_str()));
            // HAProxy has no switchover of its own.
            if !wanted || (mishap == Mishap::OwnSwitchover && front == Front::Haproxy) {
                continue;
            }
            for _ in 0..arguments.times {
                println!("\n{} through {}", mishap.name(), front.name());
                let figures = stage.measure(mishap, front, &arguments).await.with_context(|| mishap.name().to_owned())?;
                println!("{figures}");
                rows.push(row(mishap, front, &figures));
            }
        }
    }
    println!("\n{HEAD}");
    for row in rows {
        println!("{row}");
    }
    Ok(())
}

impl Stage {
    /// A load through `front` while `mishap` happens; nothing is left of it in the end.
    async fn measure(&self, mishap: Mishap, front: Front, arguments: &Arguments) -> anyhow::Result<Figures> {
        self.whole().await?;
        let (write, read) = self.addresses(front)?;
        let watch = Watch::start(Plan {
            write: write.clone(),
            read: vec![read],
            writers: arguments.writers.into(),
            readers: arguments.readers.into(),
            pace: Duration::from_millis(arguments.pace_ms),
        })
        .await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut marks = vec![(Instant::now(), "it begins".to_owned())];
        let happens = self.happens(mishap, front).await;
        marks.push((Instant::now(), "and is over".to_owned()));
        // Until a client that connects anew can write, and some seconds more.
        let works = eventually(SOON, "writes go on", || async {
            let client = switchyard_tests::cluster::connect(&write).await?;
            client.batch_execute("CREATE TABLE IF NOT EXISTS alive (); DROP TABLE alive").await?;
            Ok(Some(()))
        });
        let works = works.await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let figures = watch.end(false).await?;
        happens?;
        works?;
        if let Some(folder) = &arguments.svg {
            let name: String = format!("{}-{}", mishap.name(), front.name()).to_lowercase();
            let name: String = name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
            write_picture(&folder.join(format!("{name}.svg")), &figures, &format!("{} through {}", mishap.name(), front.name()), &marks)?;
        }
        if mishap == Mishap::LeaderKilled || mishap == Mishap::ReplicaKilled {
            for member in self.dead()? {
                self.cluster.start_member(&member).await?;
            }
        }
        Ok(figures)
    }

    async fn happens(&self, mishap: Mishap, front: Front) -> anyhow::Result<()> {
        match mishap {
            Mishap::OwnSwitchover => self.own_switchover().await,
            Mishap::Switchover => self.cluster.switchover(&self.standby().await?).await,
            Mishap::LeaderKilled => {
                let old = self.cluster.kill_leader().await?;
                // Its key is left to end by itself.
                self.cluster.new_leader(&old).await.map(drop)
            }
            Mishap::ReplicaKilled => {
                let replica = self.cluster.replicas().await?.swap_remove(0);
                replica.kill().await?;
                // Long enough for health checks of every kind to notice.
                tokio::time::sleep(Duration::from_secs(10)).await;
                Ok(())
            }
            Mishap::RollingRestart => self.rolling_restart(front).await,
        }
    }

    async fn own_switchover(&self) -> anyhow::Result<()> {
        let said = self.routers[0].order(&["switchover", "--to", self.standby().await?.name()]).await?;
        print!("{}", said.text);
        ensure!(said.done, "the switchover failed");
        Ok(())
    }

    /// Replicas, then a switchover, then the old leader, then what stands before them, one after the other.
    async fn rolling_restart(&self, front: Front) -> anyhow::Result<()> {
        let leader = self.cluster.leader().await?;
        for replica in self.cluster.replicas().await? {
            self.restart_replica(front, &replica).await?;
        }
        self.whole().await?;
        match front {
            Front::Switchyard => self.own_switchover().await?,
            Front::Haproxy => self.cluster.switchover(&self.standby().await?).await?,
        }
        eventually(SOON, "the old leader follows", || async { Ok(leader.is_in_recovery().await?.then_some(())) }).await?;
        self.restart_replica(front, &leader).await?;
        match front {
            Front::Switchyard => {
                for router in &self.routers {
                    router.stop().await?;
                    router.start_again().await?;
                }
            }
            Front::Haproxy => {
                for haproxy in &self.haproxies {
                    haproxy.restart(&self.cluster).await?;
                }
            }
        }
        Ok(())
    }

    /// As an operator does it: taken out of rotation first, where that can be done.
    async fn restart_replica(&self, front: Front, replica: &Member) -> anyhow::Result<()> {
        for command in ["drain", "resume"] {
            if front == Front::Switchyard {
                for router in &self.routers {
                    let said = router.order(&[command, replica.name()]).await?;
                    ensure!(said.done, "{}", said.text);
                }
            }
            if command == "drain" {
                self.cluster.stop(replica).await?;
                self.cluster.start_member(replica).await?;
            }
        }
        Ok(())
    }

    /// DSNs for writers and readers, each with two hosts, as applications are told of two routers.
    fn addresses(&self, front: Front) -> anyhow::Result<(String, String)> {
        let password = self.cluster.password("app").context("a role without password")?;
        let dsn = |ports: [u16; 2]| {
            let [first, second] = ports;
            format!("host=127.0.0.1,127.0.0.1 port={first},{second} user=app password={password} dbname=postgres connect_timeout=5")
        };
        let pair = |port: fn(&Stage) -> [u16; 2]| dsn(port(self));
        Ok(match front {
            Front::Switchyard => {
                (pair(|stage| [0, 1].map(|at| stage.routers[at].rw_port())), pair(|stage| [0, 1].map(|at| stage.routers[at].ro_port())))
            }
            Front::Haproxy => (
                pair(|stage| [0, 1].map(|at| stage.haproxies[at].write_port())),
                pair(|stage| [0, 1].map(|at| stage.haproxies[at].read_port())),
            ),
        })
    }

    /// The member that may take over without a loss.
    async fn standby(&self) -> anyhow::Result<Member> {
        let leader = self.cluster.leader().await?;
        if !self.synchronous {
            return Ok(self.cluster.replicas().await?.swap_remove(0));
        }
        eventually(SOON, "there is a synchronous standby", || async {
            let sync: serde_json::Value = serde_json::from_str(&self.cluster.key_value("sync").await?.context("no sync key")?)?;
            let standby = sync["sync_standby"].as_str().and_then(|name| self.cluster.named(name));
            let streams = leader.ask("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").await? == "1";
            Ok(standby.filter(|standby| streams && *standby != leader))
        })
        .await
    }

    fn dead(&self) -> anyhow::Result<Vec<Member>> {
        let mut dead = Vec::new();
        for member in self.cluster.members() {
            if member.processes()?.is_empty() {
                dead.push(member);
            }
        }
        Ok(dead)
    }

    /// Every member leads or streams, there is a synchronous standby, and all that stands before them knows.
    async fn whole(&self) -> anyhow::Result<()> {
        if let Some(member) = self.dead()?.first() {
            bail!("{} is dead", member.name());
        }
        self.cluster.settled().await?;
        self.standby().await?;
        for router in &self.routers {
            eventually(SOON, "the routers use every member", || async {
                let state = router.get("/api/v1/cluster").await?.json()?;
                let all = state["cluster"]["replicas_serving"] == 2 && state["cluster"]["state"] == "stable";
                Ok(all.then_some(()))
            })
            .await?;
        }
        for haproxy in &self.haproxies {
            haproxy.ready(&self.cluster).await?;
        }
        Ok(())
    }
}

const HEAD: &str = "\
| what happens | through | writers' errors | readers' errors | longest write gap | longest read gap | connections made again | acknowledged writes lost | written twice |
|---|---|---|---|--:|--:|--:|--:|--:|";

fn row(mishap: Mishap, front: Front, figures: &Figures) -> String {
    let ms = |gap: (Duration, Instant)| format!("{:.2} s", gap.0.as_secs_f64());
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        mishap.name(),
        front.name(),
        errors(&figures.write_faults),
        errors(&figures.read_faults),
        ms(figures.write_gap),
        ms(figures.read_gap),
        figures.reconnects,
        figures.lost,
        figures.duplicates
    )
}

/// How many, and of which SQLSTATEs; a connection that ended or couldn't be made has none.
fn errors(faults: &std::collections::BTreeMap<String, Fault>) -> String {
    let all: usize = faults.values().map(|fault| fault.count).sum();
    if all == 0 {
        return "**0**".to_owned();
    }
    let mut text = format!("{all} (");
    for (index, (sqlstate, fault)) in faults.iter().enumerate() {
        let name = if sqlstate == "-" { "connection" } else { sqlstate };
        let _ = write!(text, "{}{} {name}", if index == 0 { "" } else { ", " }, fault.count);
    }
    text + ")"
}

fn write_picture(file: &Path, figures: &Figures, title: &str, marks: &[(Instant, String)]) -> anyhow::Result<()> {
    std::fs::write(file, draw(figures, title, marks)).with_context(|| file.display().to_string())
}
