//! What clients see of a failover: writers and readers against any DSN, while a command of yours breaks something.
//!
//! Exit status: 0 if no client got an error and nothing was lost or written twice; 1 if so; 2 if it couldn't be measured.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use switchyard_tests::watch::{Figures, Plan, Watch, draw};
use tokio::process::Command;

/// Runs writers and readers, and beside them a command that breaks something; prints what the clients saw, and draws it.
///
/// Example: failover --write 'host=localhost port=15000 user=postgres password=postgres' --svg out.svg -- docker stop patroni1
#[derive(Debug, Parser)]
#[command(name = "failover", version)]
struct Arguments {
    /// Where the writers write. Several hosts are tried in turn: 'host=a,b port=15000,15000 user=...'.
    #[arg(long, value_name = "DSN")]
    write: String,
    /// Where the readers read, more than once for several; the writers' DSN if there is none.
    #[arg(long, value_name = "DSN")]
    read: Vec<String>,
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    writers: u16,
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(0..=1000))]
    readers: u16,
    /// Between two statements of one client.
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pace_ms: u64,
    /// Before the command.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3600))]
    before: u64,
    /// After the command has ended.
    #[arg(long, value_name = "S", default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=3600))]
    after: u64,
    /// Where the picture goes.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Leave the table there.
    #[arg(long)]
    keep: bool,
    /// What breaks something. Without it, the load runs for both times.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(figures) if figures.flawless() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("failover: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<Figures> {
    let plan = Plan {
        read: if arguments.read.is_empty() { vec![arguments.write.clone()] } else { arguments.read },
        write: arguments.write,
        writers: arguments.writers.into(),
        readers: arguments.readers.into(),
        pace: Duration::from_millis(arguments.pace_ms),
    };
    let watch = Watch::start(plan).await?;
    tokio::time::sleep(Duration::from_secs(arguments.before)).await;
    let mut marks = Vec::new();
    let mut title = "without a fault".to_owned();
    if let Some((program, rest)) = arguments.command.split_first() {
        title = arguments.command.join(" ");
        println!("{title}");
        marks.push((Instant::now(), "the command begins".to_owned()));
        let status = Command::new(program).args(rest).kill_on_drop(true).status().await.with_context(|| program.clone())?;
        marks.push((Instant::now(), if status.success() { "and has ended".to_owned() } else { format!("and has failed: {status}") }));
        println!("{status}, after {:.1} s", marks[0].0.elapsed().as_secs_f64());
    }
    tokio::time::sleep(Duration::from_secs(arguments.after)).await;
    let figures = watch.end(arguments.keep).await?;
    println!("{figures}");
    if let Some(file) = arguments.svg {
        std::fs::write(&file, draw(&figures, &title, &marks)).with_context(|| file.display().to_string())?;
        println!("{}", file.display());
    }
    Ok(figures)
}
