//! What was measured, as one table in Markdown.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use switchyard_tests::machine::{Machine, on_path, router};

use crate::idle::Idle;
use crate::load::{LOADS, Load, Run, SCALE, percentile_ms};
use crate::proxies::{version, version_of};
use crate::stage::{POOL, Stage, Target};

/// The aims: parts of PgBouncer's throughput and CPU time, and memory.
const AIM_THROUGHPUT: f64 = 0.95;
const AIM_CPU: f64 = 1.3;
const AIM_IDLE_BYTES: f64 = 4_096.0;
/// The order in which the table's cells name them.
const ORDER: [Target; 4] = [Target::Switchyard, Target::Pgbouncer, Target::Haproxy, Target::Direct];

#[derive(Debug)]
pub(crate) struct Results {
    versions: Vec<(&'static str, String)>,
    cores: usize,
    pub(crate) runs_seconds: u64,
    runs: BTreeMap<(Load, Target), Vec<Run>>,
    failed: BTreeMap<(Load, Target), usize>,
    pub(crate) idle: Vec<(Target, Idle)>,
    /// Resident memory after all loads, at its highest.
    pub(crate) peak: Vec<(Target, u64)>,
}

/// The medians of a load's runs against a target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Summary {
    per_second: f64,
    mean_ms: f64,
    p99_ms: Option<f64>,
    cpu_ms: Option<f64>,
}

impl Results {
    pub(crate) async fn new(stage: &Stage) -> anyhow::Result<Results> {
        let installed =
            |program: &str| on_path(program).with_context(|| format!("{program} isn't installed: scripts/install.sh bench does that"));
        let versions = vec![
            ("Switchyard", version(&router()?, "--version")?),
            ("PgBouncer", version(&installed("pgbouncer")?, "--version")?),
            ("HAProxy", version(&installed("haproxy")?, "-v")?),
            ("PostgreSQL", version_of(&stage.leader().ask("SHOW server_version").await?)),
            ("Patroni", version(&Machine::look()?.patroni, "--version")?),
        ];
        let cores = std::thread::available_parallelism().context("the number of cores")?.get();
        let (runs, failed) = (BTreeMap::new(), BTreeMap::new());
        Ok(Results { versions, cores, runs_seconds: 0, runs, failed, idle: Vec::new(), peak: Vec::new() })
    }

    pub(crate) fn add(&mut self, load: Load, target: Target, run: Run) {
        self.runs.entry((load, target)).or_default().push(run);
    }

    pub(crate) fn failed(&mut self, load: Load, target: Target) {
        *self.failed.entry((load, target)).or_default() += 1;
    }

    pub(crate) fn failures(&self) -> usize {
        self.failed.values().sum()
    }

    fn summary(&self, load: Load, target: Target) -> Option<Summary> {
        self.runs.get(&(load, target)).map(|runs| Summary::of(runs))
    }

    fn row(&self, f: &mut fmt::Formatter<'_>, load: Load) -> fmt::Result {
        let all = ORDER.map(|target| self.summary(load, target));
        let [switchyard, pgbouncer, haproxy, direct] = all;
        let throughput = |summary: Option<Summary>| summary.map(|summary| summary.per_second);
        let cpu = |summary: Option<Summary>| summary.and_then(|summary| summary.cpu_ms);
        writeln!(
            f,
            "| {} | {} | {} | **{}** | {} | {} | {} | {} | {} | {} | **{}** |",
            load.title(),
            load.clients,
            throughput(switchyard).map_or("failed".to_owned(), |value| format!("{value:.0}")),
            ratio(throughput(switchyard), throughput(pgbouncer)),
            ratio(throughput(switchyard), throughput(haproxy)),
            ratio(throughput(switchyard), throughput(direct)),
            ratio(throughput(haproxy), throughput(direct)),
            side_by_side(all.map(|summary| summary.map(|summary| summary.mean_ms)), 2),
            side_by_side(all.map(|summary| summary.and_then(|summary| summary.p99_ms)), 1),
            side_by_side([cpu(switchyard), cpu(pgbouncer), cpu(haproxy)], 1),
            ratio(cpu(switchyard), cpu(pgbouncer)),
        )
    }

    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (target, idle) in &self.idle {
            let peak = self.peak.iter().find(|(other, _)| other == target).map(|(_, bytes)| *bytes as f64 / 1_048_576.0);
            writeln!(
                f,
                "| {} | {:.1} KiB ({} clients) | {} | {:.1} | {:.1} |",
                target.name(),
                idle.client_bytes / 1_024.0,
                idle.clients,
                peak.map_or("–".to_owned(), |mib| format!("{mib:.0} MiB")),
                idle.rest_cpu_ms,
                idle.idle_cpu_ms,
            )?;
        }
        Ok(())
    }

    /// The aims, each with the loads that miss it.
    fn aims(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compare = |measure: fn(Summary) -> Option<f64>, bad: fn(f64) -> bool| {
            let missed = LOADS.iter().filter_map(|&load| {
                let (ours, theirs) = (self.summary(load, Target::Switchyard)?, self.summary(load, Target::Pgbouncer)?);
                let ratio = measure(ours)? / measure(theirs)?;
                bad(ratio).then(|| format!("{} {ratio:.2}", load.name()))
            });
            missed.collect::<Vec<_>>()
        };
        let verdict = |missed: Vec<String>| match missed.len() {
            0 => "met everywhere".to_owned(),
            count => format!("missed by {count} of {}: {}", LOADS.len(), missed.join(", ")),
        };
        let throughput = verdict(compare(|summary| Some(summary.per_second), |ratio| ratio < AIM_THROUGHPUT));
        let cpu = verdict(compare(|summary| summary.cpu_ms, |ratio| ratio > AIM_CPU));
        writeln!(f, "- Throughput, at least {AIM_THROUGHPUT} of PgBouncer's: {throughput}.")?;
        writeln!(f, "- CPU time for a transaction, at most {AIM_CPU} of PgBouncer's: {cpu}.")?;
        if let Some((_, idle)) = self.idle.iter().find(|(target, _)| *target == Target::Switchyard) {
            let word = if idle.client_bytes <= AIM_IDLE_BYTES { "met" } else { "missed" };
            writeln!(f, "- An idle client, at most {:.0} KiB: {word}, {:.1} KiB.", AIM_IDLE_BYTES / 1_024.0, idle.client_bytes / 1_024.0)?;
        }
        Ok(())
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.runs.values().map(Vec::len).max().unwrap_or_default();
        let versions: Vec<String> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        writeln!(
            f,
            "On {}, with the three members, the proxies and pgbench all on them. {}. pgbench at scale {SCALE}, medians of {rounds} runs of {} s, \
             in turns. Pools of {POOL}; PgBouncer in transaction mode, with prepared statements in session mode. \
             S is Switchyard's port 15000, which sends reads to two replicas; P is PgBouncer, H is HAProxy, D is the leader itself.\n",
            machine(self.cores),
            versions.join(", "),
            self.runs_seconds,
        )?;
        writeln!(
            f,
            "| load | clients | S per s | S÷P | S÷H | S÷D | H÷D | mean ms S·P·H·D | p99 ms S·P·H·D | CPU ms per 1,000 S·P·H | CPU S÷P |"
        )?;
        writeln!(f, "|---|--:|--:|--:|--:|--:|--:|---|---|---|--:|")?;
        LOADS.iter().try_for_each(|load| self.row(f, *load))?;
        writeln!(f, "\n| proxy | memory for an idle client | peak | CPU ms in a second at rest | with the idle clients |")?;
        writeln!(f, "|---|---|--:|--:|--:|")?;
        self.memory(f)?;
        writeln!(f, "\nThe aims:\n")?;
        self.aims(f)
    }
}

impl Summary {
    fn of(runs: &[Run]) -> Summary {
        let values = |value: fn(&Run) -> Option<f64>| median(runs.iter().filter_map(value).collect());
        // Of all runs together: the slowest hundredth of a single one may be a handful.
        let mut latencies: Vec<u32> = runs.iter().flat_map(|run| run.latencies_us.iter().copied()).collect();
        Summary {
            per_second: values(|run| Some(run.per_second)).unwrap_or_default(),
            mean_ms: values(|run| Some(run.mean_ms)).unwrap_or_default(),
            p99_ms: percentile_ms(&mut latencies, 0.99),
            cpu_ms: values(Run::cpu_ms),
        }
    }
}

/// `None` of nothing.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

fn ratio(of: Option<f64>, to: Option<f64>) -> String {
    of.zip(to).map_or("–".to_owned(), |(of, to)| format!("{:.2}", of / to))
}

fn side_by_side<const N: usize>(values: [Option<f64>; N], digits: usize) -> String {
    if values.iter().all(Option::is_none) {
        return "–".to_owned();
    }
    values.map(|value| value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))).join(" · ")
}

fn machine(cores: usize) -> String {
    match cores {
        1 => "one core".to_owned(),
        2 => "two shared cores".to_owned(),
        cores => format!("{cores} cores"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(per_second: f64, cpu_seconds: f64) -> Run {
        Run { transactions: 1_000, per_second, mean_ms: 1.0, latencies_us: vec![1_000, 3_000], cpu_seconds: Some(cpu_seconds) }
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![7.0]), Some(7.0));
        assert_eq!(median(vec![]), None);
        let summary = Summary::of(&[run(100.0, 0.010), run(300.0, 0.030), run(200.0, 0.020)]);
        assert_eq!(summary, Summary { per_second: 200.0, mean_ms: 1.0, p99_ms: Some(3.0), cpu_ms: Some(20.0) });
    }

    #[test]
    fn a_table() {
        let load = Load::named("simple-16").unwrap();
        let mut results = Results {
            versions: vec![("Switchyard", "0.1.0".to_owned())],
            cores: 2,
            runs_seconds: 5,
            runs: BTreeMap::new(),
            failed: BTreeMap::new(),
            idle: vec![(Target::Switchyard, Idle { clients: 2_000, client_bytes: 3_072.0, rest_cpu_ms: 2.0, idle_cpu_ms: 2.5 })],
            peak: vec![(Target::Switchyard, 32 << 20)],
        };
        results.add(load, Target::Switchyard, run(9_000.0, 0.020));
        results.add(load, Target::Pgbouncer, run(10_000.0, 0.016));
        results.failed(load, Target::Haproxy);
        let text = results.to_string();
        let row = "| select-only, simple | 16 | 9000 | **0.90** | – | – | – | 1.00 · 1.00 · – · – | 3.0 · 3.0 · – · – | 20.0 · 16.0 · – | **1.25** |";
        assert!(text.lines().any(|line| line == row), "{text}");
        assert!(text.contains("| Switchyard | 3.0 KiB (2000 clients) | 32 MiB | 2.0 | 2.5 |"), "{text}");
        assert!(text.contains("at least 0.95 of PgBouncer's: missed by 1 of 11: simple-16 0.90."), "{text}");
        assert!(text.contains("CPU time for a transaction, at most 1.3 of PgBouncer's: met everywhere."), "{text}");
        assert_eq!(results.failures(), 1);
    }
}
