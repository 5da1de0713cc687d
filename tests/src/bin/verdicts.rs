//! `make verdicts`: the classifier's verdict on every statement of PostgreSQL's regression suite, against the server's own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use switchyard_tests::regress::judge::{Group, Judge, Members, Server, Tally};
use switchyard_tests::regress::run;
use switchyard_tests::regress::suite::{Kind, Suite, cache};
use switchyard_tests::{Cluster, Options};

/// Judges every statement of PostgreSQL's regression suite, and asks a scratch leader the same question: does it run in a READ ONLY transaction?
/// Exit status 1 if a write was judged a read outside of what a replica's own refusal is there for.
#[derive(Debug, Parser)]
#[command(name = "verdicts", version)]
struct Arguments {
    /// Show this many statements of each group, 12 at most.
    #[arg(long, value_name = "N", default_value_t = 3)]
    samples: usize,
    /// Write the table to this file, too.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Only these tests, one after the other. Most need `test_setup` before them.
    tests: Vec<String>,
}

/// What runs in a READ ONLY transaction, and is the leader's all the same: each kind, and the classifier's rules that tell it.
const BY_DESIGN: [(&str, &[&str]); 5] = [
    ("they call a volatile function of the database's own, and volatility is its owner's word that it may write", &["volatile"]),
    (
        "they tell about the server itself, or would tell something else on a standby",
        &["server_function", "server_relation", "show", "sequence", "server_file"],
    ),
    ("they are EXPLAIN of a write or of a lock on rows", &["data_change", "ddl", "locking_clause"]),
    ("they are CALL or DO", &["code"]),
    (
        "they make, use or end what lives in one session, or take locks, or act on the server",
        &[
            "cursor",
            "large_object",
            "advisory_lock",
            "set_constraints",
            "lock",
            "load",
            "notify",
            "set_config",
            "maintenance",
            "checkpoint",
            "function",
        ],
    ),
];

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("verdicts: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let suite = tokio::task::spawn_blocking(|| Suite::get(Kind::Regression)).await??;
    // Without two-phase commit: a subtransaction that is rolled back changes what serializable transactions depend on, and one that should have
    // failed would stay prepared, with its locks.
    let cluster = Cluster::start(Options::new().members(1).parameter("max_prepared_transactions", 0)).await?;
    let judge = Judge::start(cluster.leader().await?).await?;
    let begin = Instant::now();
    run::run(&suite, &cluster, judge.port(), &cache()?.join("verdicts"), &arguments.tests).await?;
    eprintln!("the suite ran in {:.0} s", begin.elapsed().as_secs_f64());
    let report = report(&suite.version, &judge.tally(), arguments.samples);
    print!("{report}");
    if let Some(file) = &arguments.to {
        std::fs::write(file, report)?;
    }
    Ok(())
}

fn share(part: u64, whole: u64) -> String {
    format!("{:.2} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// In Markdown.
fn report(version: &str, tally: &Tally, samples: usize) -> String {
    let all = tally.count(|_| true);
    let ran = tally.count(|group| group.server == Server::Ran);
    let ran_read = tally.count(|group| group.server == Server::Ran && group.read);
    let here = tally.count(|group| group.server == Server::RanOnPrimaryOnly);
    let writes = tally.count(|group| group.server == Server::Writes);
    let missed = tally.count(|group| group.server == Server::Writes && group.read);
    let failed = tally.count(|group| group.server == Server::Failed);
    let mut text = format!(
        "PostgreSQL {version}'s regression suite: {all} statements were judged, and put to a server in a READ ONLY transaction.\n\n\
         | the server said | statements | judged a read | judged the leader's |\n|---|---:|---:|---:|\n"
    );
    for (name, server, count) in [
        ("it ran", Server::Ran, ran),
        ("it ran, but couldn't on a standby", Server::RanOnPrimaryOnly, here),
        ("25006: it writes", Server::Writes, writes),
        ("another error, which tells nothing", Server::Failed, failed),
    ] {
        let read = tally.count(|group| group.server == server && group.read);
        text += &format!("| {name} | {count} | {read} ({}) | {} |\n", share(read, count), count - read);
    }
    let not_asked: u64 = tally.not_asked.values().sum();
    text += &format!("\n{not_asked} more weren't put to it:\n\n");
    for (why, count) in &tally.not_asked {
        text += &format!("- {count}: {why}\n");
    }
    text += &format!("\nOf {ran} that ran, {ran_read} were judged reads: {}. Of {writes} writes, {missed} were.\n", share(ran_read, ran));
    let mut rest = tally.clone();
    rest.groups.retain(|group, _| group.server == Server::Ran && !group.read);
    text += &format!("\nOf the {} that ran and are the leader's, some are so by design:\n\n", ran - ran_read);
    let mut by_design = 0;
    for (why, rules) in BY_DESIGN {
        let is_it = |group: &Group| group.rules.split(", ").any(|rule| rules.contains(&rule));
        let count = rest.count(is_it);
        rest.groups.retain(|group, _| !is_it(group));
        by_design += count;
        text += &format!("- {count}: {why}\n");
    }
    let others = ran - by_design;
    text += &format!("\nOf the {others} others, {ran_read} were judged reads: {}.\n", share(ran_read, others));
    for (title, server, read) in [
        ("Writes that were judged reads", Server::Writes, true),
        ("Judged reads, though no standby could run them", Server::RanOnPrimaryOnly, true),
        ("Reads that were judged the leader's", Server::Ran, false),
    ] {
        let mut groups: Vec<(&Group, &Members)> =
            tally.groups.iter().filter(|(group, _)| group.server == server && group.read == read).collect();
        groups.sort_by_key(|(_, members)| std::cmp::Reverse(members.count));
        text += &format!("\n## {title}\n\n");
        for (group, members) in groups {
            let place = if group.in_transaction { ", in a transaction" } else { "" };
            text += &format!("- {} for `{}`{place}\n", members.count, group.rules);
            for sample in members.samples.iter().take(samples) {
                text += &format!("  - `{}`\n", sample.replace('`', "'"));
            }
        }
    }
    text
}
