//! What clients see of the usual mishaps, through Switchyard and through HAProxy, on one loopback cluster: a table.
//!
//! Exit status: 0 if all was measured, whatever the figures; 1 if not.

mod mishap;
mod stage;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use switchyard_tests::haproxy::Haproxy;
use switchyard_tests::watch::draw;
use switchyard_tests::{Cluster, Options, Router, RouterOptions, Synchronous};

use mishap::Mishap;
use stage::{Front, Stage};

/// Starts a cluster of three with synchronous replication, two routers and two HAProxies, lets things happen under load, and prints what clients
/// saw as a table in Markdown.
#[derive(Debug, Parser)]
#[command(name = "scenarios", version, after_help = names())]
struct Arguments {
    /// Only the scenario of this name, or all whose names begin with it where it ends in `*`; more than once for several.
    #[arg(long, value_name = "NAME", value_parser = pattern)]
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
    /// Through Switchyard alone.
    #[arg(long)]
    alone: bool,
    /// How long etcd is down where it is.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    etcd_down: u64,
    /// Where a picture of each goes.
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

fn names() -> String {
    let names: Vec<_> = Mishap::ALL.iter().map(|mishap| format!("  {}", mishap.name())).collect();
    format!("Scenarios:\n{}", names.join("\n"))
}

/// A pattern that matches something: a scenario that is misspelt would be measured as nothing at all, without an error.
fn pattern(text: &str) -> Result<String, String> {
    let some = Mishap::ALL.iter().any(|mishap| matches(text, mishap.name()));
    if some { Ok(text.to_owned()) } else { Err("no scenario is called that; --help lists their names".to_owned()) }
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or_else(|| pattern == name, |beginning| name.starts_with(beginning))
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
    let options = || RouterOptions::new().set("log.filter", "info,switchyard=debug");
    let routers = [Router::start(&cluster, options()).await?, Router::start(&cluster, options()).await?];
    let haproxies = [Haproxy::start(&cluster).await?, Haproxy::start(&cluster).await?];
    let etcd_down = Duration::from_secs(arguments.etcd_down);
    let stage = Stage { cluster, routers, haproxies, synchronous: !arguments.asynchronous, etcd_down, lines: Default::default() };
    let load = (arguments.writers, arguments.readers, Duration::from_millis(arguments.pace_ms));
    let fronts: &[Front] = if arguments.alone { &[Front::Switchyard] } else { &[Front::Switchyard, Front::Haproxy] };
    let mut rows = Vec::new();
    for mishap in Mishap::ALL {
        let wanted = arguments.only.is_empty() || arguments.only.iter().any(|text| matches(text, mishap.name()));
        for front in fronts.iter().copied().filter(|front| wanted && mishap.concerns(*front)) {
            for round in 1..=arguments.times {
                let title = format!("{} through {}", mishap.name(), front.name());
                println!("\n{title}");
                let measured = stage.measure(mishap, front, load).await.with_context(|| mishap.name().to_owned())?;
                println!("{}", table::tell(&measured));
                if let Some(folder) = &arguments.svg {
                    let name: String = title.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
                    let file = folder.join(format!("{}-{round}.svg", name.to_lowercase()));
                    std::fs::write(&file, draw(&measured.figures, &title, &measured.marks)).with_context(|| file.display().to_string())?;
                }
                rows.push(table::row(mishap, front, &measured));
            }
        }
    }
    println!("\n{}", table::HEAD);
    for row in rows {
        println!("{row}");
    }
    Ok(())
}
