//! `make differential`: random sessions, played through the router and direct in step.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use switchyard_tests::differential::{Blind, Plan, Port, Script, Stage};

/// Plays random sequences of messages on the router and on a direct connection, and compares answers, the session's
/// state, what is written, and what a second client sees. Exit status 1 if something differs; what does is printed as
/// small as it gets.
#[derive(Debug, Parser)]
#[command(name = "differential", version)]
struct Arguments {
    #[arg(long, value_enum, default_value = "both")]
    port: Which,
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    sequences: u64,
    /// Repeats a run; `--sequences 1` with a finding's seed repeats that one.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Server connections for each (node, database, user).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=20))]
    pool: u16,
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    workers: u16,
    /// End after this many seconds on each port.
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// End after so many different findings on a port.
    #[arg(long, value_name = "N", default_value_t = 20)]
    findings: usize,
    /// A key of the router's configuration, such as `routing.consistency_read_write="session"`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Look away from a kind of difference that is known.
    #[arg(long, value_enum, value_name = "KIND")]
    blind: Vec<Away>,
    /// Play only what has these words in a text, in any case: all that a change can have an effect on.
    #[arg(long, value_name = "WORDS")]
    only: Option<String>,
    /// Judge the judge: both sides are direct connections.
    #[arg(long)]
    twice_direct: bool,
    /// Play this file's sequences, which are in the form that findings are printed in, with an empty line between
    /// them.
    #[arg(long, value_name = "FILE")]
    replay: Option<std::path::PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    #[value(alias = "15000")]
    ReadWrite,
    #[value(alias = "15001")]
    ReadOnly,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Away {
    Placeholders,
    Ends,
    Numbers,
    Names,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("differential: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was the same.
async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let settings = arguments.settings.iter().map(|text| setting(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_nanos() as u64 % 1_000_000_000_000).unwrap_or_default();
    let seed = arguments.seed.unwrap_or_else(now);
    let ports: &[Port] = match arguments.port {
        Which::ReadWrite => &[Port::ReadWrite],
        Which::ReadOnly => &[Port::ReadOnly],
        Which::Both => &[Port::ReadWrite, Port::ReadOnly],
    };
    let stage = Stage::start(arguments.workers.into()).await?;
    let mut same = true;
    for &port in ports {
        let router = stage.router(arguments.pool.into(), &settings).await?;
        if let Some(file) = &arguments.replay {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            for script in Script::parse_all(&text)? {
                let told = match stage.replay(&router, port, &script).await {
                    Ok(None) => "the same\n".to_owned(),
                    Ok(Some(difference)) => difference.to_string(),
                    Err(error) => format!("not played: {error:#}\n"),
                };
                println!("{script}{told}");
                same &= told == "the same\n";
            }
            continue;
        }
        println!("SEED={seed} SEQUENCES={} PORT={port:?} POOL={}", arguments.sequences, arguments.pool);
        let plan = Plan {
            port,
            pool: arguments.pool.into(),
            seed,
            scripts: arguments.sequences,
            time: arguments.seconds.map(Duration::from_secs),
            workers: arguments.workers.into(),
            findings: arguments.findings,
            only: arguments.only.as_ref().map(|words| words.to_ascii_uppercase()),
            twice_direct: arguments.twice_direct,
            blind: Blind {
                placeholders: arguments.blind.contains(&Away::Placeholders),
                ends: arguments.blind.contains(&Away::Ends),
                numbers: arguments.blind.contains(&Away::Numbers),
                names: arguments.blind.contains(&Away::Names),
            },
        };
        let report = stage.play(&router, &plan).await?;
        same &= report.findings.is_empty();
    }
    Ok(same)
}

fn setting(text: &str) -> anyhow::Result<(String, toml::Value)> {
    let (key, value) = text.split_once('=').with_context(|| format!("{text}: no value"))?;
    let table: toml::Table = format!("value = {value}").parse().with_context(|| text.to_owned())?;
    Ok((key.to_owned(), table["value"].clone()))
}
