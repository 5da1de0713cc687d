//! The cluster and everything in front of it, all running at the same time.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process_group};
use switchyard_tests::haproxy::Haproxy;
use switchyard_tests::{Cluster, Member, Options, Router, RouterOptions};

use crate::Setting;
use crate::load::{self, Kind, Load, Protocol, Run};
use crate::proxies::{Pgbouncer, SESSION_DATABASE, leads_to_leader};
use crate::usage;

/// An ordinary role with a SCRAM password.
pub(crate) const USER: &str = "app";
/// Server connections in a pool: Switchyard's for each member and PgBouncer's for the leader. Both products' default.
pub(crate) const POOL: usize = 20;
/// Idle clients that a pool is measured with.
const IDLE_CLIENTS: usize = 2_000;
/// HAProxy and the leader give each client a server connection, idle or not: a process of PostgreSQL's.
const IDLE_CLIENTS_UNPOOLED: usize = 500;
/// Those, the session pool of PgBouncer, the largest load, and everybody's own connections.
const MAX_CONNECTIONS: usize = 900;
/// All of pgbench's tables fit in.
const SHARED_BUFFERS: &str = "384MB";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Target {
    Switchyard,
    Pgbouncer,
    Haproxy,
    Direct,
}

/// Options of a router without the checks of tests: what the benchmark sets itself, and over that `settings` of the command line.
pub(crate) fn as_in_production(settings: &[Setting], own: &[(&str, toml::Value)]) -> RouterOptions {
    let options = RouterOptions::new().set("pool.verify_returns", 0.0).set("log.filter", "info");
    let options = own.iter().fold(options, |options, (key, value)| options.set(key, value.clone()));
    settings.iter().fold(options, |options, (key, value)| options.set(key, value.clone()))
}

impl Target {
    pub(crate) const ALL: [Target; 4] = [Target::Direct, Target::Switchyard, Target::Haproxy, Target::Pgbouncer];
    pub(crate) const PROXIES: [Target; 3] = [Target::Switchyard, Target::Pgbouncer, Target::Haproxy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Target::Switchyard => "Switchyard",
            Target::Pgbouncer => "PgBouncer",
            Target::Haproxy => "HAProxy",
            Target::Direct => "the leader",
        }
    }
}

/// Dropping it ends all of it.
#[derive(Debug)]
pub(crate) struct Stage {
    router: Router,
    haproxy: Haproxy,
    pgbouncer: Pgbouncer,
    leader: Member,
    /// For pgbench's logs of a run.
    logs: PathBuf,
    // Last: its home is the others' too.
    cluster: Cluster,
}

impl Stage {
    /// `settings` are of the router's configuration, beside its defaults.
    pub(crate) async fn set(settings: &[Setting]) -> anyhow::Result<Stage> {
        let options = Options::new()
            .members(3)
            // As in production, other than in tests.
            .parameter("fsync", "on")
            .parameter("shared_buffers", SHARED_BUFFERS)
            .parameter("max_connections", MAX_CONNECTIONS);
        let cluster = Cluster::start(options).await?;
        let leader = cluster.leader().await?;
        load::initialize(&leader.dsn_for(USER)).await.context("pgbench --initialize")?;
        leader.connect().await?.batch_execute("CHECKPOINT").await?;
        cluster.settled().await?;
        let options = as_in_production(settings, &[("pool.max_size", (POOL as i64).into())]);
        let stage = Stage {
            router: Router::start(&cluster, options).await?,
            haproxy: Haproxy::launch(&cluster)?,
            pgbouncer: Pgbouncer::launch(&cluster, &leader).await?,
            leader,
            logs: cluster.home().private_folder("pgbench")?,
            cluster,
        };
        stage.ready().await?;
        Ok(stage)
    }

    pub(crate) fn leader(&self) -> &Member {
        &self.leader
    }

    /// New processes of the proxies.
    pub(crate) async fn restart(&self) -> anyhow::Result<()> {
        self.haproxy.process().restart()?;
        self.pgbouncer.process().restart()?;
        self.router.restart().await?;
        self.ready().await
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let members = self.cluster.members().len();
        leads_to_leader(self.haproxy.process(), &self.dsn(Target::Haproxy), members).await?;
        leads_to_leader(self.pgbouncer.process(), &self.dsn(Target::Pgbouncer), members).await
    }

    /// A second of each target, which fills the members' caches and opens the pools' connections.
    pub(crate) async fn warm_up(&self) -> anyhow::Result<()> {
        for target in Target::ALL {
            for protocol in [Protocol::Simple, Protocol::Prepared] {
                let load = Load { kind: Kind::Select(protocol), clients: 32 };
                self.run(load, target, Duration::from_secs(1), None).await.with_context(|| format!("warm up {}", target.name()))?;
            }
        }
        Ok(())
    }

    /// A connection string for [`USER`]; with the read/write port of whatever has two.
    pub(crate) fn dsn(&self, target: Target) -> String {
        match target {
            Target::Switchyard => self.router.rw_dsn(USER),
            Target::Direct => self.leader.dsn_for(USER),
            Target::Haproxy => self.dsn_on(self.haproxy.write_port(), "postgres"),
            Target::Pgbouncer => self.dsn_on(self.pgbouncer.port(), "postgres"),
        }
    }

    fn dsn_on(&self, port: u16, database: &str) -> String {
        format!("postgresql://{USER}:{}@127.0.0.1:{port}/{database}", self.cluster.password(USER).unwrap_or_default())
    }

    pub(crate) fn pid(&self, target: Target) -> anyhow::Result<u32> {
        match target {
            Target::Switchyard => self.router.pid().context("the router doesn't run"),
            Target::Haproxy => self.haproxy.process().pid(),
            Target::Pgbouncer => self.pgbouncer.process().pid(),
            Target::Direct => bail!("there is nothing before the leader"),
        }
    }

    pub(crate) fn idle_clients(&self, target: Target) -> usize {
        match target {
            Target::Switchyard | Target::Pgbouncer => IDLE_CLIENTS,
            Target::Haproxy | Target::Direct => IDLE_CLIENTS_UNPOOLED,
        }
    }

    /// Runs a load against a target, with the shell command `beside` it, and waits until the replicas have replayed what it wrote.
    ///
    /// CPU time is told without that for the clients' logins and first transactions, which are done once before and taken off: in runs of
    /// seconds they would count more than in any application's life.
    pub(crate) async fn run(&self, load: Load, target: Target, time: Duration, beside: Option<&str>) -> anyhow::Result<Run> {
        let dsn = match target {
            Target::Pgbouncer if load.needs_session() => self.dsn_on(self.pgbouncer.port(), SESSION_DATABASE),
            _ => self.dsn(target),
        };
        let pid = self.pid(target).ok();
        let cpu_seconds = || pid.map(usage::cpu_seconds).transpose();
        let at_first = cpu_seconds()?;
        let logins = load.kind != Kind::Churn;
        if logins {
            load::log_in(load, &dsn).await?;
        }
        let before = cpu_seconds()?;
        let beside = beside.map(|command| Beside::start(command, pid)).transpose()?;
        let mut run = load::run(load, &dsn, time, &self.logs).await?;
        if let (Some(at_first), Some(before), Some(after)) = (at_first, before, cpu_seconds()?) {
            run.cpu_seconds = Some((after - before) - (before - at_first));
        }
        if logins {
            run.transactions = run.transactions.saturating_sub(load.clients as u64);
        }
        if let Some(beside) = beside {
            beside.end().await?;
        }
        if load.writes() {
            self.cluster.settled().await?;
        }
        Ok(run)
    }
}

/// A command of the user's that runs beside a load, such as a profiler, in a process group of its own.
struct Beside(tokio::process::Child);

impl Beside {
    fn start(command: &str, pid: Option<u32>) -> anyhow::Result<Beside> {
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", command]).env("PID", pid.map(|pid| pid.to_string()).unwrap_or_default()).process_group(0).kill_on_drop(true);
        Ok(Beside(shell.spawn().with_context(|| command.to_owned())?))
    }

    /// SIGINT, as by Ctrl-C: profilers write their results then.
    async fn end(mut self) -> anyhow::Result<()> {
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(id as i32)) {
            match kill_process_group(group, Signal::INT) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context("end the command beside the load"),
            }
        }
        self.0.wait().await.context("the command beside the load")?;
        Ok(())
    }
}
