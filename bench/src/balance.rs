//! `bench --balance`: two replicas, one half as fast as the other. What share of the reads it gets, and what it does to the slowest answers.
//!
//! Each statement sleeps on its server for a random time, exponentially distributed as that of unlike queries is, and twice as long in the mean on the
//! slow one. Sleeping takes no CPU, so that servers, pgbench and router sharing a machine doesn't blur the difference; the router sees response times only.
//! A pool's connections stand for a server's cores: what they don't carry waits in line. The fast replica alone (the slow one is drained) and both
//! take turns, and the answers of all rounds are taken together.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use switchyard_tests::psql::run;
use switchyard_tests::{Cluster, Member, Options, Router};

use crate::Setting;
use crate::load::{LOGINS_PER_SECOND, latencies, percentile_ms};
use crate::stage::{USER, as_in_production};

const ROUNDS: usize = 3;
/// Of the router's pool at each replica.
const CONNECTIONS: usize = 8;
/// Of a statement on the fast replica; on the slow one, twice that.
const MEAN_MS: usize = 10;
/// A few answers above it are the 99th percentile.
const RUN_MIN: Duration = Duration::from_secs(4);
/// For which the router spares a replica that it hasn't known before.
const SLOW_START: Duration = Duration::from_secs(11);
/// Before each run, for the averages to settle, as the members of the run have just changed.
const SETTLE: Duration = Duration::from_secs(2);

/// A load: by so many clients that ask again at once, or at random, so many a second.
enum Load {
    Clients(usize),
    PerSecond(usize),
}

/// The fast one alone can answer 800 a second.
const LOADS: [Load; 6] =
    [Load::Clients(8), Load::Clients(16), Load::Clients(32), Load::Clients(64), Load::PerSecond(640), Load::PerSecond(720)];
/// Enough for all that wait at once.
const CLIENTS_OF_RATES: usize = 64;

#[derive(Default)]
struct Answers {
    latencies_us: Vec<u32>,
    per_second: Vec<f64>,
    slow: f64,
    all: f64,
}

/// The table, in Markdown.
pub(crate) async fn measure(settings: &[Setting], time: Duration) -> anyhow::Result<String> {
    eprintln!("Starting three members and a router");
    let cluster = Cluster::start(Options::new().members(3)).await?;
    let options = as_in_production(settings, &[("pool.max_size", (CONNECTIONS as i64).into())]);
    let router = Router::start(&cluster, options).await?;
    let replicas = cluster.replicas().await?;
    let [slow, fast] = replicas.as_slice() else { anyhow::bail!("{} replicas instead of two", replicas.len()) };
    let scripts = cluster.home().private_folder("scripts")?;
    let script = scripts.join("sleep.sql");
    let statement = format!(
        "SELECT pg_sleep(-ln(1 - random()) * 0.001 * CASE current_setting('port')::int WHEN {} THEN {} ELSE {MEAN_MS} END);\n",
        slow.port(),
        2 * MEAN_MS
    );
    std::fs::write(&script, statement)?;
    let logs = cluster.home().private_folder("latencies")?;
    let bench = Bench { router: &router, script: &script, logs: &logs, slow, fast };

    bench.pgbench(&Load::Clients(CONNECTIONS), SLOW_START).await?;
    let time = time.max(RUN_MIN);
    let mut answers: Vec<[Answers; 2]> = LOADS.iter().map(|_| Default::default()).collect();
    for round in 0..ROUNDS {
        for (load, of) in LOADS.iter().zip(&mut answers) {
            eprintln!("Two replicas, round {} of {ROUNDS}: {}", round + 1, load.name());
            // The order turns.
            for place in 0..2 {
                let both = (place + round) % 2 == 1;
                bench.serve_by_both(both).await?;
                bench.run(load, both, time, &mut of[usize::from(both)]).await?;
            }
        }
    }
    let mut text = String::new();
    writeln!(
        text,
        "Two replicas with {CONNECTIONS} connections each; statements of {MEAN_MS} ms on average, {} ms at the slow one; {ROUNDS} runs in turns of {} s:\n",
        2 * MEAN_MS,
        time.as_secs()
    )?;
    writeln!(
        text,
        "| load | reads by the slow one | p99 by the fast one alone, ms | p99 by both, ms | ratio | statements/s alone | by both |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|")?;
    for (load, [alone, both]) in LOADS.iter().zip(&mut answers) {
        let p99 = |answers: &mut Answers| percentile_ms(&mut answers.latencies_us, 0.99).context("no answer");
        let (alone_ms, both_ms) = (p99(alone)?, p99(both)?);
        let share = both.slow / both.all * 100.0;
        let ratio = both_ms / alone_ms;
        let (per_second, by_both) = (mean(&alone.per_second), mean(&both.per_second));
        writeln!(text, "| {} | {share:.1} % | {alone_ms:.1} | {both_ms:.1} | {ratio:.2} | {per_second:.0} | {by_both:.0} |", load.name())?;
    }
    Ok(text)
}

struct Bench<'a> {
    router: &'a Router,
    script: &'a Path,
    logs: &'a Path,
    slow: &'a Member,
    fast: &'a Member,
}

impl Bench<'_> {
    async fn serve_by_both(&self, both: bool) -> anyhow::Result<()> {
        let said = self.router.order(&[if both { "resume" } else { "drain" }, self.slow.name()]).await?;
        ensure!(said.done, "{}", said.text);
        Ok(())
    }

    async fn run(&self, load: &Load, both: bool, time: Duration, into: &mut Answers) -> anyhow::Result<()> {
        self.pgbench(load, SETTLE).await?;
        latencies(self.logs)?;
        let before = self.reads().await?;
        into.per_second.push(self.pgbench(load, time).await?);
        let after = self.reads().await?;
        into.latencies_us.extend(latencies(self.logs)?);
        let (slow, fast, leader) = (after[0] - before[0], after[1] - before[1], after[2] - before[2]);
        ensure!(leader == 0.0, "the leader served {leader} reads");
        ensure!(both || slow == 0.0, "the drained replica served {slow} reads");
        into.slow += slow;
        into.all += slow + fast;
        Ok(())
    }

    /// Statements a second. Their latencies are in the logs.
    async fn pgbench(&self, load: &Load, time: Duration) -> anyhow::Result<f64> {
        let (clients, rate) = match load {
            Load::Clients(clients) => (*clients, None),
            Load::PerSecond(rate) => (CLIENTS_OF_RATES, Some(format!("--rate={rate}"))),
        };
        let arguments = [
            "--no-vacuum".to_owned(),
            "--jobs=2".to_owned(),
            // pgbench's clock runs from before the first login.
            format!("--time={}", time.as_secs() + clients as u64 / LOGINS_PER_SECOND),
            format!("--client={clients}"),
            format!("--file={}", self.script.display()),
            "--log".to_owned(),
            format!("--log-prefix={}", self.logs.join("latency").display()),
        ];
        let dsn = self.router.ro_dsn(USER);
        let arguments: Vec<&str> = arguments.iter().chain(&rate).map(String::as_str).chain([&*dsn]).collect();
        let told = run("pgbench", &arguments, "").await?.success()?;
        let tps = told.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next());
        tps.and_then(|tps| tps.parse().ok()).with_context(|| format!("pgbench told no tps:\n{told}"))
    }

    /// By the slow one, the fast one, and whoever else.
    async fn reads(&self) -> anyhow::Result<[f64; 3]> {
        let metrics = self.router.get("/metrics").await?.body;
        let mut reads = [0.0; 3];
        for line in metrics.lines() {
            let Some((node, count)) = line.strip_prefix("switchyard_reads_total{node=\"").and_then(|rest| rest.split_once("\"} ")) else {
                continue;
            };
            let member = [self.slow, self.fast].iter().position(|member| member.name() == node).unwrap_or(2);
            reads[member] += count.split(' ').next().unwrap_or_default().parse::<f64>()?;
        }
        Ok(reads)
    }
}

impl Load {
    fn name(&self) -> String {
        match self {
            Load::Clients(clients) => format!("{clients} clients, as fast as it goes"),
            Load::PerSecond(rate) => format!("{rate} statements/s at random"),
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
