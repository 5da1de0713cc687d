//! What it costs to be sure of what a statement leaves behind: looks, settings read back, names of the client's own.
//!
//! Each row stands beside one of the same kind that needs nothing of it, and beside the leader itself. The runs take turns, as in the big
//! table.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use switchyard_tests::cluster::connect;
use switchyard_tests::{Cluster, Options, Router};

use crate::Setting;
use crate::load::{self, Run};
use crate::report::median;
use crate::stage::{USER, as_in_production};
use crate::usage;

const CLIENTS: usize = 16;
const ROUNDS: usize = 3;

/// One function keeps to what the catalog proves, one runs text.
const OBJECTS: &str = "
    CREATE FUNCTION proven() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.n := NEW.n + 1; RETURN NEW; END';
    CREATE FUNCTION runs_text() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN EXECUTE ''SELECT 1''; RETURN NEW; END';
    CREATE FUNCTION sets() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM set_config(''work_mem'', ''8MB'', true); RETURN NEW; END';
    CREATE TABLE look_plain (n int);
    CREATE TABLE look_proven (n int);
    CREATE TABLE look_sets (n int);
    CREATE TABLE look_runs_text (n int);
    CREATE TABLE look_serial (id serial, n int);
    CREATE TRIGGER fires BEFORE INSERT ON look_proven FOR EACH ROW EXECUTE FUNCTION proven();
    CREATE TRIGGER fires BEFORE INSERT ON look_sets FOR EACH ROW EXECUTE FUNCTION sets();
    CREATE TRIGGER fires BEFORE INSERT ON look_runs_text FOR EACH ROW EXECUTE FUNCTION runs_text();
";

struct Case {
    title: &'static str,
    script: &'static str,
    /// `pool.verify_returns`.
    verified: f64,
    /// The row that it is compared with.
    beside: usize,
}

const fn case(title: &'static str, script: &'static str, verified: f64, beside: usize) -> Case {
    Case { title, script, verified, beside }
}

const CASES: [Case; 9] = [
    case("a read", "SELECT 1", 0.0, 0),
    case("the same, `verify_returns = 0.01`", "SELECT 1", 0.01, 0),
    case("the same, `verify_returns = 1`", "SELECT 1", 1.0, 0),
    case("INSERT", "INSERT INTO look_plain VALUES (1)", 0.0, 3),
    case("INSERT, a trigger that is proven", "INSERT INTO look_proven VALUES (1)", 0.0, 3),
    case("INSERT, a trigger that calls `set_config`", "INSERT INTO look_sets VALUES (1)", 0.0, 3),
    case("INSERT, a trigger that runs text", "INSERT INTO look_runs_text VALUES (1)", 0.0, 3),
    case("INSERT into a table with a sequence", "INSERT INTO look_serial (n) VALUES (1)", 0.0, 3),
    case("SET, and a read", "SET work_mem = '5MB';\nSELECT 1", 0.0, 0),
];

/// The table, in Markdown.
pub(crate) async fn measure(settings: &[Setting], time: Duration) -> anyhow::Result<String> {
    eprintln!("Starting three members, and routers that look at none, a hundredth and all of what is returned");
    let options = Options::new().members(3).parameter("fsync", "on").parameter("shared_buffers", "384MB");
    let cluster = Cluster::start(options).await?;
    let leader = cluster.leader().await?;
    connect(&leader.dsn_for(USER)).await?.batch_execute(OBJECTS).await.context("the tables of looks")?;
    cluster.settled().await?;
    let mut routers: Vec<(f64, Router)> = Vec::new();
    for case in &CASES {
        if routers.iter().all(|(verified, _)| *verified != case.verified) {
            let options = as_in_production(settings, &[("pool.verify_returns", case.verified.into())]);
            routers.push((case.verified, Router::start(&cluster, options).await?));
        }
    }
    let folder = cluster.home().private_folder("scripts")?;
    let mut ours: Vec<Vec<Run>> = CASES.iter().map(|_| Vec::new()).collect();
    let mut direct: Vec<Vec<Run>> = CASES.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        eprintln!("What looks cost, round {round} of {ROUNDS}");
        for place in 0..CASES.len() {
            let at = (place + round) % CASES.len();
            let case = &CASES[at];
            let script = folder.join("script.sql");
            std::fs::write(&script, format!("{};\n", case.script)).context("a script")?;
            let (_, router) = routers.iter().find(|(verified, _)| *verified == case.verified).context("its router")?;
            let run = run(router, &script, if round == 0 { Duration::from_secs(1) } else { time }).await;
            let run = run.with_context(|| format!("{}: {}", case.title, case.script))?;
            // The first one fills caches and opens connections.
            if round > 0 {
                ours[at].push(run);
                direct[at].push(load::run_script(&script, CLIENTS, &leader.dsn_for(USER), time).await?);
            }
            cluster.settled().await?;
        }
    }
    table(&ours, &direct, time)
}

async fn run(router: &Router, script: &Path, time: Duration) -> anyhow::Result<Run> {
    let pid = router.pid().context("the router doesn't run")?;
    let before = usage::cpu_seconds(pid)?;
    let mut run = load::run_script(script, CLIENTS, &router.rw_dsn(USER), time).await?;
    run.cpu_seconds = Some(usage::cpu_seconds(pid)? - before);
    Ok(run)
}

fn table(ours: &[Vec<Run>], direct: &[Vec<Run>], time: Duration) -> anyhow::Result<String> {
    let value = |runs: &[Run], of: fn(&Run) -> f64| median(runs.iter().map(of).collect()).unwrap_or_default();
    let mut text = String::new();
    writeln!(
        text,
        "What a look costs: {CLIENTS} clients, the simple protocol, medians of {ROUNDS} runs of {} s, in turns. Ratios are to the first row of \
         each kind (a read, INSERT).\n",
        time.as_secs()
    )?;
    writeln!(text, "| transaction | per s | ÷ without | mean ms | more ms than without | ÷ the leader itself | CPU ms per 1,000 |")?;
    writeln!(text, "|---|--:|--:|--:|--:|--:|--:|")?;
    for (at, case) in CASES.iter().enumerate() {
        let per_second = value(&ours[at], |run| run.per_second);
        let mean = value(&ours[at], |run| run.mean_ms);
        writeln!(
            text,
            "| {} | {per_second:.0} | {:.2} | {mean:.2} | {:.2} | {:.2} | {:.1} |",
            case.title,
            per_second / value(&ours[case.beside], |run| run.per_second),
            mean - value(&ours[case.beside], |run| run.mean_ms),
            per_second / value(&direct[at], |run| run.per_second),
            value(&ours[at], |run| run.cpu_ms().unwrap_or_default()),
        )?;
    }
    Ok(text)
}
