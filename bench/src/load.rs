//! The loads, and pgbench run with one of them.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use switchyard_tests::psql;

/// pgbench's size: a branch for each client of the loads that write, so that they don't only wait for one another.
pub(crate) const SCALE: usize = 16;
/// The part of the transactions whose latency is written down: all of them would cost pgbench more than some of the targets cost.
const SAMPLED: &str = "--sampling-rate=0.1";
/// What a busy machine does of them, to a server that forks for each.
pub(crate) const LOGINS_PER_SECOND: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `pgbench -S` by a query mode of pgbench.
    Select(Protocol),
    /// pgbench's own transaction: three updates, a select, an insert.
    TpcbLike,
    /// `pgbench -S -C`: a connection for each transaction.
    Churn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Simple,
    Extended,
    Prepared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Load {
    pub(crate) kind: Kind,
    pub(crate) clients: usize,
}

const fn load(kind: Kind, clients: usize) -> Load {
    Load { kind, clients }
}

pub(crate) const LOADS: [Load; 11] = [
    load(Kind::Select(Protocol::Simple), 1),
    load(Kind::Select(Protocol::Simple), 16),
    load(Kind::Select(Protocol::Simple), 128),
    load(Kind::Select(Protocol::Extended), 1),
    load(Kind::Select(Protocol::Extended), 16),
    load(Kind::Select(Protocol::Extended), 128),
    load(Kind::Select(Protocol::Prepared), 1),
    load(Kind::Select(Protocol::Prepared), 16),
    load(Kind::Select(Protocol::Prepared), 128),
    load(Kind::TpcbLike, 16),
    load(Kind::Churn, 16),
];

impl Load {
    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        let kind = match self.kind {
            Kind::Select(protocol) => protocol.word(),
            Kind::TpcbLike => "tpcb",
            Kind::Churn => "churn",
        };
        format!("{kind}-{}", self.clients)
    }

    /// Its name in the table.
    pub(crate) fn title(self) -> String {
        match self.kind {
            Kind::Select(protocol) => format!("select-only, {}", protocol.word()),
            Kind::TpcbLike => "tpcb-like, simple".to_owned(),
            Kind::Churn => "a login for each select".to_owned(),
        }
    }

    pub(crate) fn named(name: &str) -> Result<Load, String> {
        let names = || LOADS.iter().map(|load| load.name()).collect::<Vec<_>>().join(", ");
        LOADS.iter().find(|load| load.name() == name).copied().ok_or_else(|| format!("one of: {}", names()))
    }

    /// Whether prepared statements outlive a transaction, which a pool without support for them can only give to a session.
    pub(crate) fn needs_session(self) -> bool {
        self.kind == Kind::Select(Protocol::Prepared)
    }

    pub(crate) fn writes(self) -> bool {
        self.kind == Kind::TpcbLike
    }

    fn arguments(self) -> Vec<String> {
        let protocol = if let Kind::Select(protocol) = self.kind { protocol } else { Protocol::Simple };
        // A thread of pgbench's alone would be the slowest part with many clients.
        let threads = self.clients.min(2);
        let mut arguments =
            vec![format!("--client={}", self.clients), format!("--jobs={threads}"), format!("--protocol={}", protocol.word())];
        arguments.push("--no-vacuum".to_owned());
        match self.kind {
            Kind::Select(_) => arguments.push("--select-only".to_owned()),
            Kind::TpcbLike => arguments.push("--builtin=tpcb-like".to_owned()),
            Kind::Churn => arguments.extend(["--select-only".to_owned(), "--connect".to_owned()]),
        }
        arguments
    }
}

impl Protocol {
    fn word(self) -> &'static str {
        match self {
            Protocol::Simple => "simple",
            Protocol::Extended => "extended",
            Protocol::Prepared => "prepared",
        }
    }
}

/// One run of pgbench.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) transactions: u64,
    /// Without the time for the first connections, but with that for each of a load that connects anew.
    pub(crate) per_second: f64,
    pub(crate) mean_ms: f64,
    /// Of a sample of the transactions, in no order. Empty where each connects anew: pgbench's log leaves the connecting out.
    pub(crate) latencies_us: Vec<u32>,
    /// Of the proxy for these transactions, without that for the first logins; `None` without a proxy.
    pub(crate) cpu_seconds: Option<f64>,
}

impl Run {
    /// CPU milliseconds of the proxy for 1,000 transactions.
    pub(crate) fn cpu_ms(&self) -> Option<f64> {
        Some(self.cpu_seconds? * 1_000_000.0 / self.transactions.max(1) as f64)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} transactions/s, {:.3} ms on average", self.per_second, self.mean_ms)?;
        if let Some(p99_ms) = percentile_ms(&mut self.latencies_us.clone(), 0.99) {
            write!(f, ", {p99_ms:.3} ms at the 99th percentile")?;
        }
        match self.cpu_ms() {
            Some(cpu_ms) => write!(f, ", {cpu_ms:.2} ms CPU per 1,000"),
            None => Ok(()),
        }
    }
}

/// Makes pgbench's tables, through the leader.
pub(crate) async fn initialize(dsn: &str) -> anyhow::Result<()> {
    psql::run("pgbench", &["--initialize", "--quiet", &format!("--scale={SCALE}"), dsn], "").await?.success()?;
    Ok(())
}

/// One transaction by each client: what the logins of a load cost, to be taken off.
pub(crate) async fn log_in(load: Load, dsn: &str) -> anyhow::Result<()> {
    let mut arguments = load.arguments();
    arguments.extend(["--transactions=1".to_owned(), dsn.to_owned()]);
    pgbench(&arguments).await?.success()?;
    Ok(())
}

/// Runs pgbench. Its logs are made in `folder`, read, and removed.
pub(crate) async fn run(load: Load, dsn: &str, time: Duration, folder: &Path) -> anyhow::Result<Run> {
    let prefix = folder.join("latency");
    let mut arguments = load.arguments();
    // pgbench's clock runs from before the first login.
    arguments.push(format!("--time={}", time.as_secs() + load.clients as u64 / LOGINS_PER_SECOND));
    arguments.extend(["--log".to_owned(), SAMPLED.to_owned(), format!("--log-prefix={}", prefix.display())]);
    arguments.push(dsn.to_owned());
    let finished = pgbench(&arguments).await?;
    let latencies_us = latencies(folder)?;
    let text = finished.success()?;
    let mut run = parse(&text).with_context(|| text.clone())?;
    if load.kind == Kind::Churn {
        run.mean_ms = load.clients as f64 / run.per_second * 1_000.0;
    } else {
        run.latencies_us = latencies_us;
    }
    Ok(run)
}

/// Runs pgbench with a script of the caller's.
pub(crate) async fn run_script(script: &Path, clients: usize, dsn: &str, time: Duration) -> anyhow::Result<Run> {
    let arguments = [
        "--no-vacuum".to_owned(),
        "--jobs=2".to_owned(),
        format!("--client={clients}"),
        format!("--time={}", time.as_secs().max(1)),
        format!("--file={}", script.display()),
        dsn.to_owned(),
    ];
    let text = pgbench(&arguments).await?.success()?;
    parse(&text).with_context(|| text.clone())
}

async fn pgbench(arguments: &[String]) -> anyhow::Result<psql::Finished> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    psql::run("pgbench", &words, "").await
}

fn parse(text: &str) -> anyhow::Result<Run> {
    let number = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key:?}"))?;
        let word = rest.split([' ', '/']).find(|word| !word.is_empty()).unwrap_or_default();
        word.parse::<f64>().with_context(|| format!("{key:?}: {word:?}"))
    };
    // pgbench's own limit for serialization failures is no try at all, so none is expected; a server's other errors end it.
    let failed = number("number of failed transactions:")?;
    if failed > 0.0 {
        bail!("{failed} transactions failed");
    }
    let transactions = number("number of transactions actually processed:")? as u64;
    if transactions == 0 {
        bail!("the time was over before all clients were logged in");
    }
    Ok(Run {
        transactions,
        per_second: number("tps =")?,
        mean_ms: number("latency average =")?,
        latencies_us: Vec::new(),
        cpu_seconds: None,
    })
}

/// The third word of each line is the latency in microseconds; each of pgbench's threads has a file.
pub(crate) fn latencies(folder: &Path) -> anyhow::Result<Vec<u32>> {
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(folder).context("pgbench's logs")? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u32>().ok()));
        std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    Ok(latencies)
}

/// In milliseconds; `None` of nothing.
pub(crate) fn percentile_ms(latencies_us: &mut [u32], part: f64) -> Option<f64> {
    let place = ((latencies_us.len() as f64 * part).ceil() as usize).checked_sub(1)?;
    let (_, value, _) = latencies_us.select_nth_unstable(place);
    Some(f64::from(*value) / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "pgbench (15.20 (Debian 15.20-0+deb12u1))
transaction type: <builtin: select only>
scaling factor: 16
query mode: simple
number of clients: 16
number of threads: 2
maximum number of tries: 1
duration: 5 s
number of transactions actually processed: 60123
number of failed transactions: 0 (0.000%)
latency average = 1.331 ms
latency stddev = 0.402 ms
initial connection time = 41.207 ms
tps = 12021.512323 (without initial connection time)
";

    #[test]
    fn output_of_pgbench() {
        let run = parse(OUTPUT).unwrap();
        assert_eq!((run.transactions, run.per_second, run.mean_ms), (60_123, 12_021.512_323, 1.331));
        assert!(parse(&OUTPUT.replace("transactions: 0 (", "transactions: 3 (")).is_err());
        assert!(parse(&OUTPUT.replace("tps = 1", "tps = x")).is_err());
        assert!(parse(&OUTPUT.replace("processed: 60123", "processed: 0")).is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn cpu_for_1000_transactions() {
        let run = Run { cpu_seconds: Some(0.6), transactions: 40_000, ..parse(OUTPUT).unwrap() };
        assert_eq!(run.cpu_ms(), Some(15.0));
        assert_eq!(parse(OUTPUT).unwrap().cpu_ms(), None);
    }

    #[test]
    fn percentiles() {
        let mut latencies: Vec<u32> = (1..=100).rev().map(|ms| ms * 1_000).collect();
        assert_eq!(percentile_ms(&mut latencies, 0.99), Some(99.0));
        assert_eq!(percentile_ms(&mut latencies, 1.0), Some(100.0));
        assert_eq!(percentile_ms(&mut [7_000], 0.99), Some(7.0));
        assert_eq!(percentile_ms(&mut [], 0.99), None);
    }

    #[test]
    fn names() {
        for load in LOADS {
            assert_eq!(Load::named(&load.name()), Ok(load));
        }
        assert!(Load::named("simple-2").unwrap_err().contains("simple-16"));
    }
}
