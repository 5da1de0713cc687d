//! `make bench`: what the router costs beside PgBouncer, HAProxy and a direct connection, on one cluster of this machine, in one table.
//!
//! All targets stand ready at the same time, and every round runs each load against each of them, one after the other; the order within a
//! load turns from round to round. What disturbs the machine for a while then disturbs all of them, and the medians of the rounds are compared.
//! Timings never fail: a target that can't do what it is asked does.

mod balance;
mod consistency;
mod idle;
mod load;
mod looks;
mod proxies;
mod report;
mod stage;
mod usage;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::load::{LOADS, Load};
use crate::report::Results;
use crate::stage::{Stage, Target};

/// What a round of the whole measurement takes from each load and target.
const FULL: Plan = Plan { rounds: 3, run: Duration::from_secs(5), rest: Duration::from_secs(10) };
const QUICK: Plan = Plan { rounds: 2, run: Duration::from_secs(1), rest: Duration::from_secs(3) };
/// The 2,000 idle clients of this program, and as many sockets in the proxies for either side.
const FILES_WANTED: u64 = 8_192;

/// Runs pgbench against Switchyard, PgBouncer, HAProxy and the leader itself, in turns, and prints one table in Markdown.
///
/// With --only, it runs one load against one target: for a profiler.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Arguments {
    /// Runs of one second instead of five: about 5 minutes instead of 20.
    #[arg(long)]
    quick: bool,
    /// Only this load, such as simple-16: see --list.
    #[arg(long, value_name = "LOAD", value_parser = Load::named)]
    only: Option<Load>,
    /// Against this target.
    #[arg(long, value_enum, default_value_t = Target::Switchyard, requires = "only")]
    target: Target,
    /// For so long.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "only", value_parser = clap::value_parser!(u64).range(1..=240))]
    seconds: u64,
    /// Beside the load, run this with the shell until the load ends; $PID is the target's process. Such as: 'perf record -g -p $PID'.
    #[arg(long, value_name = "COMMAND", requires = "only")]
    beside: Option<String>,
    /// A key of the router's configuration, such as workers=1 or health.busy_interval=50ms.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<Setting>,
    /// What the levels of consistency cost, how many reads replicas serve at each, and --balance: tables of their own, in about 9 minutes.
    #[arg(long, conflicts_with_all = ["only", "list"])]
    consistency: bool,
    /// What share of the reads a replica gets that is half as fast as the other, and the slowest answers: a table of its own, in about 5 minutes.
    #[arg(long, conflicts_with_all = ["only", "list"])]
    balance: bool,
    /// What a look at what a statement has left costs: a table of its own, which also follows the big one, in about 6 minutes.
    #[arg(long, conflicts_with_all = ["only", "list", "consistency", "balance"])]
    looks: bool,
    /// Tell the names of the loads.
    #[arg(long)]
    list: bool,
}

/// A key of the router's configuration by its full path, and its value.
type Setting = (String, toml::Value);

/// What isn't a value of TOML's is a text, so that a shell needs no quotes in quotes.
fn setting(text: &str) -> Result<Setting, String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is wanted")?;
    let value = value.parse().unwrap_or_else(|_| toml::Value::String(value.to_owned()));
    Ok((key.to_owned(), value))
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    rounds: usize,
    /// What pgbench is told. Its whole seconds are the reason why this isn't shorter.
    run: Duration,
    /// For which the proxies' CPU time is looked at while nobody asks anything.
    rest: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.list {
        LOADS.iter().for_each(|load| println!("{}", load.name()));
        return Ok(());
    }
    raise_open_files()?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // Whatever was started ends when the future that owns it is dropped.
    tokio::select! {
        result = measure(arguments) => result,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let plan = if arguments.quick { QUICK } else { FULL };
    if arguments.consistency {
        let table = consistency::measure(&arguments.set, plan.run).await?;
        println!("{table}");
    }
    if arguments.consistency || arguments.balance {
        println!("{}", balance::measure(&arguments.set, plan.run).await?);
        return Ok(());
    }
    if arguments.looks {
        println!("{}", looks::measure(&arguments.set, plan.run).await?);
        return Ok(());
    }
    eprintln!("Starting three members, Switchyard, HAProxy and PgBouncer");
    let stage = Stage::set(&arguments.set).await?;
    if let Some(load) = arguments.only {
        return only(&stage, load, &arguments).await;
    }
    let mut results = Results::new(&stage).await?;
    for target in Target::PROXIES {
        eprintln!("Idle clients of {}", target.name());
        results.idle.push((target, idle::measure(&stage, target, plan.rest).await?));
    }
    // The idle clients' traces go with the processes that they left them in.
    stage.restart().await?;
    results.runs_seconds = plan.run.as_secs();
    stage.warm_up().await?;
    for round in 0..plan.rounds {
        for load in LOADS {
            eprintln!("Round {} of {}: {}", round + 1, plan.rounds, load.name());
            for place in 0..Target::ALL.len() {
                let target = Target::ALL[(place + round) % Target::ALL.len()];
                match stage.run(load, target, plan.run, None).await {
                    Ok(run) => results.add(load, target, run),
                    Err(error) => {
                        eprintln!("bench: {} against {}: {error:#}", load.name(), target.name());
                        results.failed(load, target);
                    }
                }
            }
        }
    }
    for target in Target::PROXIES {
        results.peak.push((target, usage::memory(stage.pid(target)?)?.peak_bytes));
    }
    drop(stage);
    println!("{results}");
    println!("{}", looks::measure(&arguments.set, plan.run).await?);
    match results.failures() {
        0 => Ok(()),
        failures => bail!("{failures} runs failed"),
    }
}

async fn only(stage: &Stage, load: Load, arguments: &Arguments) -> anyhow::Result<()> {
    let target = arguments.target;
    if let Ok(pid) = stage.pid(target) {
        eprintln!("{} is process {pid}", target.name());
    }
    stage.warm_up().await?;
    let run = stage.run(load, target, Duration::from_secs(arguments.seconds), arguments.beside.as_deref()).await?;
    println!("{}, {}: {run}", load.name(), target.name());
    Ok(())
}

/// The soft limit is made for programs that use `select`; every process that is started from here inherits what is set here.
fn raise_open_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < FILES_WANTED) {
        bail!("{FILES_WANTED} open files are needed: raise the hard limit (ulimit -Hn)");
    }
    if limit.current.is_some_and(|current| current < FILES_WANTED) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(FILES_WANTED), maximum: limit.maximum })
            .context("raise the limit of open files")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::setting;

    #[test]
    fn settings() {
        assert_eq!(setting("workers=1").unwrap(), ("workers".to_owned(), toml::Value::Integer(1)));
        assert_eq!(setting("health.busy_interval=50ms").unwrap().1, toml::Value::String("50ms".to_owned()));
        assert!(setting("workers").is_err());
    }
}
