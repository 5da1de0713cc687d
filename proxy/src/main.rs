//! Arguments in, exit code out; everything else is in the library.

mod cli;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use switchyard::app::{self, ConfigSource};
use switchyard::consistency::Plan;
use switchyard::control::{self, Job, Line};
use switchyard::logging::Logging;
use switchyard_config::{Config, Problem, Problems};
use switchyard_core::causal::Level;
use switchyard_core::sql::{Dialect, Facts, Hint, Memo};
use tokio_postgres::SimpleQueryMessage;

use crate::cli::{Cli, Command, Running};

/// EX_USAGE of sysexits(3): a bad configuration or bad arguments.
const BAD_USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version come as errors too. A closed pipe is the reader's choice.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(BAD_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Run { config } => run(ConfigSource::new(config)),
        Command::Check { file } => check(&file),
        Command::Switchover { to, force, timeout, router } => ask(&router, &Job::Switchover { to, force, timeout_ms: ms(timeout) }),
        Command::Drain { member, timeout, router } => ask(&router, &Job::Drain { member, timeout_ms: ms(timeout) }),
        Command::Resume { member, router } => ask(&router, &Job::Resume { member }),
        Command::Explain { schema_from, statement } => match explain(schema_from.as_deref(), &statement) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Command::CheckConsistency { dsn, other, sessions, reads, level } => {
            let level = level.and_then(|word| Level::ALL.into_iter().find(|level| level.as_str() == word));
            match check_consistency(&Plan { dsn, other, sessions, reads, level }) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => fail(&error),
            }
        }
    }
}

/// Whether every read was right.
fn check_consistency(plan: &Plan) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(plan.check())?;
    write!(std::io::stdout(), "{report}")?;
    Ok(report.is_clean())
}

fn run(source: ConfigSource) -> ExitCode {
    let loaded = match source.load() {
        Ok(loaded) => loaded,
        Err(problems) => return refuse(&problems),
    };
    let logging = match Logging::init(&loaded.config.log) {
        Ok(logging) => logging,
        Err(error) => return fail(&error),
    };
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    match app::run(loaded.config, source, logging) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn ms(time: Option<Duration>) -> Option<u64> {
    time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Has a running router do something, and shows its progress.
fn ask(router: &Running, job: &Job) -> ExitCode {
    let asked = || {
        let token = router.token_file.as_ref().map(std::fs::read_to_string).transpose().context("--token-file")?;
        let token = token.as_deref().map(str::trim_end);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // A closed pipe is the reader's choice, and no reason to leave a switchover half done.
        let show = |line: &Line| drop(writeln!(std::io::stdout(), "{:8.3} s  {}", line.seconds, line.text));
        runtime.block_on(control::ask::ask(&router.url, token, job, show))
    };
    match asked() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

fn explain(schema_from: Option<&str>, statement: &str) -> anyhow::Result<()> {
    let facts = match schema_from {
        Some(dsn) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            match runtime.block_on(look_behind(dsn, statement))? {
                Asked::Server(facts) => facts,
                Asked::Router(lines) => {
                    let mut out = std::io::stdout();
                    return Ok(lines.iter().try_for_each(|line| writeln!(out, "{line}"))?);
                }
            }
        }
        None => Facts::empty(),
    };
    let (verdict, ..) = Memo::new(1).verdict(statement.as_bytes(), &facts, Dialect::default());
    let mut out = std::io::stdout();
    for line in switchyard_core::session::describe(&verdict) {
        writeln!(out, "{line}")?;
    }
    let hint = match verdict.hint {
        None => "nothing",
        Some(Hint::Leader) => "a comment, to leader",
        Some(Hint::Replica) => "a comment, to replica",
    };
    writeln!(
        out,
        "Facts: {}\nOverruled by: {hint}",
        if facts.is_complete() { "as the database's catalogs say" } else { "built-in functions only" }
    )?;
    Ok(())
}

/// What is behind a connection string, and what it says.
enum Asked {
    /// A server: its catalogs.
    Server(Facts),
    /// A router: its own explanation, with candidates and choice.
    Router(Vec<String>),
}

async fn look_behind(dsn: &str, statement: &str) -> anyhow::Result<Asked> {
    let (client, connection) = tokio_postgres::connect(dsn, tokio_postgres::NoTls).await?;
    let connection = tokio::spawn(connection);
    // A parameter that only a router has.
    let asked = if client.simple_query("SHOW switchyard.route").await.is_ok() {
        let answer = client.simple_query(&format!("EXPLAIN (ROUTE) {statement}")).await?;
        let lines = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Asked::Router(lines.collect())
    } else {
        Asked::Server(switchyard::facts::load(&client, 1).await?)
    };
    connection.abort();
    Ok(asked)
}

fn check(file: &Path) -> ExitCode {
    match ConfigSource::new(Some(file.to_owned())).load() {
        Ok(loaded) => {
            let _ = write!(std::io::stdout(), "{}", summary(file, &loaded.config, &loaded.warnings));
            ExitCode::SUCCESS
        }
        Err(problems) => refuse(&problems),
    }
}

/// What `check` says about a good configuration.
fn summary(file: &Path, config: &Config, warnings: &[Problem]) -> String {
    let mut text = String::new();
    for warning in warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let list = |items: Vec<String>| if items.is_empty() { "off".to_owned() } else { items.join(", ") };
    let addresses = |addresses: &[std::net::SocketAddr]| list(addresses.iter().map(ToString::to_string).collect());
    let _ = writeln!(text, "{}: ok", file.display());
    let _ = writeln!(text, "  cluster     {} (namespace {}/)", config.cluster.scope, config.cluster.namespace);
    if config.cluster.static_members.is_empty() {
        let _ = writeln!(text, "  etcd        {}", list(config.etcd.endpoints.clone()));
    } else {
        let members = config.cluster.static_members.iter();
        let _ = writeln!(text, "  members     {}", list(members.map(|m| format!("{} ({}:{})", m.name, m.host, m.port)).collect()));
    }
    let _ = writeln!(text, "  read/write  {}", addresses(&config.listen.read_write));
    let _ = writeln!(text, "  read-only   {}", addresses(&config.listen.read_only));
    let _ = writeln!(text, "  stats       {}", addresses(&config.listen.http));
    if let Some(folder) = &config.listen.unix_socket_dir {
        let _ = writeln!(text, "  sockets in  {}", PathBuf::from(folder).display());
    }
    text
}

fn refuse(problems: &Problems) -> ExitCode {
    let count = problems.count();
    let _ = writeln!(
        std::io::stderr(),
        "{problems}\nswitchyard: {count} {} in the configuration",
        if count == 1 { "problem" } else { "problems" }
    );
    ExitCode::from(BAD_USAGE)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "switchyard: {error:#}");
    ExitCode::FAILURE
}
