//! `make mix`: two thousand clients on twenty server connections, for five minutes.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use switchyard_tests::mix::Plan;
use switchyard_tests::{Cluster, Options};

/// Lets many clients do everything that could leave something behind, on few server connections, and checks every answer. Exit status 1 if one
/// was wrong, or if something was left.
#[derive(Debug, Parser)]
#[command(name = "mix", version)]
struct Arguments {
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    clients: u16,
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Server connections for each (node, database, user).
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=100))]
    pool_size: i64,
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    members: u8,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mix: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::new().members(arguments.members.into())).await?;
    let plan = Plan { clients: arguments.clients.into(), time: Duration::from_secs(arguments.seconds), pool_size: arguments.pool_size };
    let router = plan.router(&cluster).await?;
    let begin = Instant::now();
    plan.run(&cluster, &router).await?;
    println!("no answer was wrong, and nothing is left, after {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}
