//! `make regress`: PostgreSQL's regression and isolation suites direct and through the router, and what differs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use switchyard_tests::regress::compare::{Comparison, compare};
use switchyard_tests::regress::run;
use switchyard_tests::regress::suite::{Kind, Suite, cache};
use switchyard_tests::{Cluster, Options, Router, RouterOptions, Synchronous, eventually, leaks, machine};

/// Lines of a diff that are shown; all of it is in a file.
const DIFF_LINES: usize = 60;
/// `max_pool_size` of the run through the router; the suite's groups have up to 20 clients.
const POOL_SIZE: i64 = 5;
/// Files that differ for a reason that docs/compatibility.md names.
const KNOWN: [&str; 2] = ["guc", "temp-schema-cleanup"];
/// Of the isolation suite's: larger than the number of its sessions, which are to keep the processes that they were told of.
const ISOLATION_POOL_SIZE: i64 = 40;
/// Until Patroni has made both replicas synchronous.
const SYNCHRONOUS: Duration = Duration::from_secs(60);

/// Runs PostgreSQL's regression suite and its isolation suite against the leader of a real cluster with two replicas, once direct and once
/// through the router with splitting and transaction pooling on, and compares the output files. Exit status 1 if any differs.
#[derive(Debug, Parser)]
#[command(name = "regress", version)]
struct Arguments {
    /// Compare with the last direct run instead of making a new one.
    #[arg(long)]
    keep_direct: bool,
    /// Make both runs direct: what differs then is no finding.
    #[arg(long)]
    twice_direct: bool,
    /// Let every commit wait until both replicas show it, and every read go to a replica. So more of the suite's statements are split than
    /// with a session's own writes to be waited for.
    #[arg(long)]
    everywhere: bool,
    /// Server connections for each (node, database, user).
    #[arg(long, value_name = "N", default_value_t = POOL_SIZE)]
    pool_size: i64,
    /// Show all of each diff.
    #[arg(long)]
    whole: bool,
    /// The router's log filter.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// Only the isolation suite.
    #[arg(long)]
    isolation: bool,
    /// Only the regression suite.
    #[arg(long, conflicts_with = "isolation")]
    regression: bool,
    /// Only these tests, one after the other, instead of the schedule: of the regression suite (where most need `test_setup` before them), or
    /// with --isolation of that one.
    tests: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("regress: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True where all files are identical that can be.
async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    machine::router()?;
    let kinds: &[Kind] = match (arguments.isolation, arguments.regression || !arguments.tests.is_empty()) {
        (true, _) => &[Kind::Isolation],
        (false, true) => &[Kind::Regression],
        (false, false) => &[Kind::Regression, Kind::Isolation],
    };
    let mut identical = true;
    for kind in kinds {
        identical &= judge(&arguments, *kind).await?;
    }
    Ok(identical)
}

async fn judge(arguments: &Arguments, kind: Kind) -> anyhow::Result<bool> {
    let suite = tokio::task::spawn_blocking(move || Suite::get(kind)).await??;
    println!("PostgreSQL {}'s {} suite, in {}", suite.version, kind.word(), suite.input.display());
    let base = cache()?.join(match kind {
        Kind::Regression => "regress",
        Kind::Isolation => "isolation",
    });
    let direct = base.join(if arguments.tests.is_empty() { "direct" } else { "direct-some" });
    if !(arguments.keep_direct && direct.is_dir()) {
        one("direct", arguments, &suite, &base, &direct, false).await?;
    }
    let routed = base.join("routed");
    let name = if arguments.twice_direct { "direct again" } else { "routed" };
    let clean = one(name, arguments, &suite, &base, &routed, !arguments.twice_direct).await?;
    let comparison = compare(&direct, &routed)?;
    show(&comparison, &base, arguments.whole)?;
    let known = comparison.differences.iter().filter(|difference| KNOWN.contains(&&*difference.name)).count();
    if known > 0 {
        println!("{known} of those that differ: for a reason that docs/compatibility.md names");
    }
    Ok(clean && known == comparison.differences.len())
}

/// One run on a cluster of its own. The output files are moved to `results`. False where the router tells that one session has left something for
/// another one.
async fn one(name: &str, arguments: &Arguments, suite: &Suite, base: &Path, results: &Path, routed: bool) -> anyhow::Result<bool> {
    let begin = Instant::now();
    let options = Options::new()
        .members(3)
        // With it on, what vacuum removes depends on when replicas tell the leader, and plans on what vacuum removes.
        .parameter("hot_standby_feedback", "off")
        // As pg_regress sets them for a server of its own.
        .parameter("max_prepared_transactions", 2)
        // Conflicting reads on a replica are canceled, and run again: the router's case.
        .parameter("max_standby_streaming_delay", "1s");
    let options = match arguments.everywhere {
        true => options.synchronous(Synchronous::All).parameter("synchronous_commit", "remote_apply"),
        false => options,
    };
    let cluster = Cluster::start(options).await?;
    if arguments.everywhere {
        let both = "SELECT count(*) = 2 FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')";
        let leader = cluster.leader().await?;
        eventually(SYNCHRONOUS, "both replicas are synchronous", || async { Ok((leader.ask(both).await? == "t").then_some(())) }).await?;
    }
    let router = if routed {
        let options = RouterOptions::new().set("pool.max_size", arguments.pool_size).set("log.filter", arguments.log.as_str());
        let options = match suite.kind {
            Kind::Regression => options,
            // It asks the leader's lock table whether a session waits, as soon as that may have sent its statement.
            Kind::Isolation => options.set("pool.max_size", ISOLATION_POOL_SIZE).set("rule", leaders_own()),
        };
        // The suite's sessions read what others have written.
        let consistency = if arguments.everywhere { "eventual" } else { "global" };
        let options = options.set("routing.consistency_read_write", consistency);
        Some(Router::start(&cluster, options).await?)
    } else {
        None
    };
    let port = match &router {
        Some(router) => router.rw_port(),
        None => cluster.leader().await?.port(),
    };
    println!("{name}: the cluster is up after {:.0} s", begin.elapsed().as_secs_f64());
    let begin = Instant::now();
    let ran = run::run(suite, &cluster, port, &base.join("work"), &arguments.tests).await;
    if let Some(router) = &router {
        std::fs::write(base.join("router.log"), router.log())?;
        match router.get("/metrics").await {
            Ok(metrics) => std::fs::write(base.join("metrics.txt"), metrics.body)?,
            Err(error) => println!("{name}: the router doesn't answer: {error:#}"),
        }
    }
    let found = ran?;
    let left = leaks::none();
    let _ = std::fs::remove_dir_all(results);
    std::fs::rename(&found, results).with_context(|| format!("move {}", found.display()))?;
    println!("{name}: ran in {:.0} s", begin.elapsed().as_secs_f64());
    if let Err(told) = &left {
        println!("{told}");
    }
    Ok(left.is_ok())
}

/// A rule that sends all of the isolation suite to the leader.
fn leaders_own() -> toml::Value {
    let rule = [("application_names", toml::Value::from(vec!["isolation/*"])), ("route", toml::Value::from("leader"))];
    vec![rule.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<toml::Table>()].into()
}

fn show(comparison: &Comparison, base: &Path, whole: bool) -> anyhow::Result<()> {
    let all: String = comparison.differences.iter().map(|difference| difference.diff.as_str()).collect();
    let file: PathBuf = base.join("differences.diff");
    std::fs::write(&file, &all)?;
    for difference in &comparison.differences {
        let count = difference.diff.lines().count();
        let shown = if whole { count } else { DIFF_LINES };
        for line in difference.diff.lines().take(shown) {
            println!("{line}");
        }
        if count > shown {
            println!("... and {} lines more, in {}", count - shown, file.display());
        }
        println!();
    }
    println!("{:<28} {:>8}", "file", "lines");
    for difference in &comparison.differences {
        println!("{:<28} {:>8}", difference.name, difference.lines);
    }
    let identical = comparison.files - comparison.differences.len();
    println!("{identical} of {} output files are identical", comparison.files);
    Ok(())
}
