//! `make demo`: a leader, a candidate and three read members on loopback, the router in front, and what to try.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Parser;
use switchyard_tests::{Cluster, Options, Router, RouterOptions, machine, ports};
use tokio::signal::unix::{SignalKind, signal};

/// node1 leads, node2 takes over if it must, and the others only ever serve reads.
const MEMBERS: [&str; 5] = ["node1", "node2", "read1", "read2", "read3"];
/// The members' ports; one that is taken is replaced by a free one.
const MEMBER_PORTS: [u16; 5] = [5432, 5433, 5434, 5435, 5436];
const ROUTER_PORTS: [u16; 3] = [15000, 15001, 18080];
const PASSWORD: &str = "postgres";
/// Root's data: user postgres must be able to enter it.
const ROOT_FOLDER: &str = "/var/lib/switchyard/demo";
/// Between two looks at who leads.
const LOOK: Duration = Duration::from_millis(200);

/// A Patroni cluster of five members on loopback with Switchyard in front of it. Everything is made anew at each start, and ends with it.
#[derive(Debug, Parser)]
#[command(name = "demo", version)]
struct Arguments {
    /// Where the data, the configuration and the logs are. Emptied at the start.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The cluster alone: for a router that you start yourself.
    #[arg(long)]
    without_router: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut end = End::new()?;
    tokio::select! {
        result = demo(arguments) => result,
        name = end.wait() => {
            println!("\n{name}: stopping.");
            Ok(())
        }
    }
}

/// Runs until it is dropped, or something fails. Dropping it ends all processes.
async fn demo(arguments: Arguments) -> anyhow::Result<()> {
    let folder = match arguments.folder {
        Some(folder) => std::path::absolute(folder)?,
        None if machine::Machine::look()?.account.is_other() => PathBuf::from(ROOT_FOLDER),
        None => machine::checkout().join(".run/demo"),
    };
    if !arguments.without_router {
        machine::router()?;
    }
    let begin = Instant::now();
    // The folder comes first: it ends what a former demo has left, which may hold the ports.
    let cluster = Cluster::prepare(options(folder))?;
    if !arguments.without_router {
        free_router_ports()?;
    }
    println!("Starting etcd and five members in {}", cluster.home().path().display());
    cluster.begin().await?;
    let router = if arguments.without_router {
        None
    } else {
        let [read_write, read_only, http] = ROUTER_PORTS;
        let options = RouterOptions::new()
            .ports(read_write, read_only, http)
            .both_families()
            .set("pool.verify_returns", 0.0)
            .set("log.filter", "info");
        Some(Router::start(&cluster, options).await.context("start the router")?)
    };
    println!("Ready after {:.0} s.\n", begin.elapsed().as_secs_f64());
    show(&cluster, router.as_ref());
    follow(&cluster, router.as_ref()).await
}

fn options(folder: PathBuf) -> Options {
    let options = Options::new().scope("demo").folder(folder).superuser_password(PASSWORD).names(&MEMBERS).ports(&MEMBER_PORTS);
    MEMBERS.iter().filter(|name| name.starts_with("read")).fold(options, |options, name| options.tag(name, "nofailover", true))
}

fn free_router_ports() -> anyhow::Result<()> {
    let taken: Vec<String> = ROUTER_PORTS.iter().filter(|port| !ports::is_free(**port)).map(u16::to_string).collect();
    if !taken.is_empty() {
        bail!("the router's port {} is taken by another program: end that first (`ss -ltnp` tells which)", taken.join(" and "));
    }
    Ok(())
}

fn show(cluster: &Cluster, router: Option<&Router>) {
    println!("  member  port   role");
    for (index, member) in cluster.members().iter().enumerate() {
        let role = ["leader", "candidate"].get(index).unwrap_or(&"read only, never leads");
        println!("  {:<6}  {:<5}  {role}", member.name(), member.port());
    }
    println!("  etcd    {}", cluster.etcd_endpoint());
    println!("  logs    {}/*.log\n", cluster.home().path().display());
    if router.is_none() {
        println!(
            "  scope {:?}, namespace {:?}, user switchyard, password {:?}\n",
            cluster.scope(),
            cluster.namespace(),
            cluster.password("switchyard").unwrap_or_default()
        );
        return;
    }
    let [read_write, read_only, http] = ROUTER_PORTS;
    let psql = |port: u16, statement: &str| println!("  psql -h localhost -p {port} -U postgres -c \"{statement}\"");
    println!("Connection strings");
    println!("  read/write  postgresql://postgres:{PASSWORD}@localhost:{read_write}/postgres");
    println!("  read-only   postgresql://postgres:{PASSWORD}@localhost:{read_only}/postgres");
    println!("  an ordinary user: app, password {:?}\n", cluster.password("app").unwrap_or_default());
    println!("Stats page    http://localhost:{http}/stats\n");
    println!("Try, in another terminal");
    println!("  export PGPASSWORD={PASSWORD}");
    psql(read_write, "CREATE TABLE test (id SERIAL, message TEXT); INSERT INTO test (message) VALUES ('Hello CQRS');");
    psql(read_only, "SELECT * FROM test;");
    psql(read_only, "INSERT INTO test (message) VALUES ('Should fail');");
    println!("  # a planned change of leader, which this window will tell");
    println!("  curl -s {}/switchover -d '{{\"leader\":\"node1\",\"candidate\":\"node2\"}}'", cluster.member(0).rest_url());
    println!("\nCtrl-C ends all of it.\n");
}

/// Tells each change of leader in one line. Ends only if the router does.
async fn follow(cluster: &Cluster, router: Option<&Router>) -> anyhow::Result<()> {
    let mut etcd = cluster.etcd().client().await?;
    let mut told: Option<Leader> = None;
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        if let Some(router) = router
            && let Some(status) = router.ended()?
        {
            bail!("the router ended: {status}\n{}", router.log());
        }
        let now = match etcd.get(cluster.key("leader"), None).await {
            Ok(answer) => answer.kvs().first().map_or(Leader::None, |pair| Leader::Is(String::from_utf8_lossy(pair.value()).into_owned())),
            Err(_) => Leader::Unknown,
        };
        if told.as_ref() != Some(&now) {
            println!("{} {now}", clock());
            told = Some(now);
        }
    }
}

#[derive(PartialEq, Eq)]
enum Leader {
    Is(String),
    None,
    Unknown,
}

impl std::fmt::Display for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Leader::Is(name) => write!(f, "{name} leads"),
            Leader::None => write!(f, "no leader: the others are choosing one"),
            Leader::Unknown => write!(f, "etcd doesn't answer"),
        }
    }
}

/// UTC, as in the servers' logs.
fn clock() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// The signals that end the demo in order.
struct End {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl End {
    fn new() -> anyhow::Result<End> {
        Ok(End {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Interrupted",
            _ = self.terminate.recv() => "Terminated",
            _ = self.hangup.recv() => "Hung up",
        }
    }
}
