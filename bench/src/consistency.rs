//! `make bench-consistency`: what the levels cost a load that writes, and what share of the reads replicas still serve at each.
//!
//! One cluster with undelayed replicas, and a router for each level in front of it. The runs to compare take turns, and their order turns
//! from round to round, so that what disturbs the machine disturbs all of them; medians are compared.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use switchyard_tests::cluster::connect;
use switchyard_tests::psql::run;
use switchyard_tests::{Cluster, Member, Options, Router};

use crate::Setting;
use crate::load::{self, SCALE};
use crate::report::median;
use crate::stage::{USER, as_in_production};

const CLIENTS: &str = "16";
const TABLES: usize = 10;
const ROWS: usize = 1_000;
const LEVELS: [&str; 4] = ["eventual", "session", "global", "strong"];
/// Of the loads' statements, in percent.
const WRITES: [u32; 3] = [1, 10, 50];
/// Pairs of runs of pgbench's own transaction.
const PAIRS: usize = 5;

/// Statements a second of the loads that don't saturate the machine.
const RATES: [Option<u32>; 2] = [Some(1_000), None];

/// One load on the ten tables: its name, and the weights and scripts of what it is made of.
struct Mix {
    name: String,
    writes: u32,
    /// All writes go to the first table, and only reads of the others are counted.
    one_table: bool,
}

struct Share {
    replicas: f64,
    per_second: f64,
}

/// The table, in Markdown.
pub(crate) async fn measure(settings: &[Setting], time: Duration) -> anyhow::Result<String> {
    eprintln!("Starting three members and four routers");
    let options = Options::new().members(3).parameter("fsync", "on").parameter("shared_buffers", "384MB");
    let cluster = Cluster::start(options).await?;
    let leader = cluster.leader().await?;
    prepare(&leader).await?;
    cluster.settled().await?;
    let mut routers = Vec::new();
    for level in LEVELS {
        let options = as_in_production(settings, &[("routing.consistency_read_write", level.into())]);
        routers.push((level, Router::start(&cluster, options).await?));
    }
    let scripts = cluster.home().private_folder("scripts")?;
    let mut text = String::new();
    tpcb(&cluster, &routers, time, &mut text).await?;
    shares(&cluster, &leader, &routers, &scripts, time, &mut text).await?;
    Ok(text)
}

async fn prepare(leader: &Member) -> anyhow::Result<()> {
    load::initialize(&leader.dsn_for(USER)).await.context("pgbench --initialize")?;
    let client = connect(&leader.dsn_for(USER)).await?;
    for table in 0..TABLES {
        client
            .batch_execute(&format!(
                "CREATE TABLE bench_t{table} (id int PRIMARY KEY, v int NOT NULL);
                 INSERT INTO bench_t{table} SELECT id, 0 FROM generate_series(1, {ROWS}) id"
            ))
            .await?;
    }
    let superuser = leader.connect().await?;
    superuser.batch_execute("VACUUM ANALYZE").await?;
    superuser.batch_execute("CHECKPOINT").await?;
    Ok(())
}

async fn pgbench(dsn: &str, time: Duration, more: &[&str]) -> anyhow::Result<f64> {
    let time = format!("--time={}", time.as_secs().max(1));
    let clients = format!("--client={CLIENTS}");
    let mut arguments = vec!["--no-vacuum", "--jobs=2", &time, &clients];
    arguments.extend(more);
    arguments.push(dsn);
    let told = run("pgbench", &arguments, "").await?.success()?;
    let tps = told.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next());
    tps.and_then(|tps| tps.parse().ok()).with_context(|| format!("pgbench told no tps:\n{told}"))
}

/// pgbench's own transaction, `session` and `global` against `eventual`, in turns.
async fn tpcb(cluster: &Cluster, routers: &[(&str, Router)], time: Duration, text: &mut String) -> anyhow::Result<()> {
    let compared = &routers[..3];
    let mut runs = vec![Vec::new(); compared.len()];
    let mut ratios = vec![Vec::new(); compared.len()];
    for (_, router) in compared {
        pgbench(&router.rw_dsn(USER), Duration::from_secs(1), &["--builtin=tpcb-like"]).await?;
    }
    for round in 0..PAIRS {
        eprintln!("tpcb-like, round {} of {PAIRS}", round + 1);
        let mut of_round = vec![0.0; compared.len()];
        for place in 0..compared.len() {
            let at = (place + round) % compared.len();
            of_round[at] = pgbench(&compared[at].1.rw_dsn(USER), time, &["--builtin=tpcb-like"]).await?;
            cluster.settled().await?;
        }
        for at in 0..compared.len() {
            runs[at].push(of_round[at]);
            ratios[at].push(of_round[at] / of_round[0]);
        }
    }
    writeln!(text, "tpcb-like (scale {SCALE}), {CLIENTS} clients, medians of {PAIRS} runs in turns of {} s:\n", time.as_secs())?;
    writeln!(text, "| level | transactions/s | against eventual, run by run |\n|---|---|---|")?;
    for (at, (level, _)) in compared.iter().enumerate() {
        let [per_second, ratio] = [&runs[at], &ratios[at]].map(|values| median(values.clone()).unwrap_or_default());
        writeln!(text, "| {level} | {per_second:.0} | {ratio:.3} |")?;
    }
    Ok(())
}

async fn shares(
    cluster: &Cluster,
    leader: &Member,
    routers: &[(&str, Router)],
    scripts: &Path,
    time: Duration,
    text: &mut String,
) -> anyhow::Result<()> {
    let even = WRITES.iter().map(|writes| Mix { name: format!("{writes} % writes"), writes: *writes, one_table: false });
    let one = Mix { name: "10 % writes, all to one table; reads of the others".to_owned(), writes: 10, one_table: true };
    let mixes: Vec<Mix> = even.chain([one]).collect();
    for rate in RATES {
        let load = rate.map_or_else(|| "as fast as it goes".to_owned(), |rate| format!("{rate} statements/s"));
        writeln!(
            text,
            "\nReads served by replicas, {TABLES} tables, {CLIENTS} clients, statements alone, {load} (and all statements/s):\n"
        )?;
        writeln!(text, "| load | {} |\n|---{}|", LEVELS.join(" | "), "|---".repeat(LEVELS.len()))?;
        let rate = rate.map(|rate| format!("--rate={rate}"));
        for mix in &mixes {
            eprintln!("Shares: {}, {load}", mix.name);
            let (read, write) = mix.write_scripts(scripts)?;
            let mut cells = Vec::new();
            for (_, router) in routers {
                let files = [weighted(&read, 100 - mix.writes), weighted(&write, mix.writes)];
                let arguments: Vec<&str> = files.iter().chain(&rate).map(String::as_str).collect();
                let share = share(leader, router, time, &arguments).await?;
                cells.push(format!("{:.1} % ({:.0})", share.replicas * 100.0, share.per_second));
                cluster.settled().await?;
            }
            writeln!(text, "| {} | {} |", mix.name, cells.join(" | "))?;
        }
    }
    Ok(())
}

fn weighted(script: &Path, weight: u32) -> String {
    format!("--file={}@{weight}", script.display())
}

async fn share(leader: &Member, router: &Router, time: Duration, load: &[&str]) -> anyhow::Result<Share> {
    let dsn = router.rw_dsn(USER);
    pgbench(&dsn, Duration::from_secs(1), load).await?;
    let before = reads(leader, router).await?;
    let per_second = pgbench(&dsn, time, load).await?;
    let after = reads(leader, router).await?;
    let (replicas, all) = (after.0 - before.0, after.1 - before.1);
    Ok(Share { replicas: replicas / all.max(1.0), per_second })
}

/// Reads by replicas, and by all members.
async fn reads(leader: &Member, router: &Router) -> anyhow::Result<(f64, f64)> {
    let metrics = router.get("/metrics").await?.body;
    let (mut replicas, mut all) = (0.0, 0.0);
    for line in metrics.lines() {
        let Some((node, count)) = line.strip_prefix("switchyard_reads_total{node=\"").and_then(|rest| rest.split_once("\"} ")) else {
            continue;
        };
        let count: f64 = count.split(' ').next().unwrap_or_default().parse()?;
        all += count;
        if node != leader.name() {
            replicas += count;
        }
    }
    Ok((replicas, all))
}

impl Mix {
    /// The scripts of reads and of writes.
    fn write_scripts(&self, folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
        let id = format!("\\set id random(1, {ROWS})\n");
        let (read, write) = match self.one_table {
            true => (format!("\\set t random(1, {})\n", TABLES - 1), "\\set t 0\n".to_owned()),
            false => (format!("\\set t random(0, {})\n", TABLES - 1), format!("\\set t random(0, {})\n", TABLES - 1)),
        };
        let (read_file, write_file) = (folder.join("read.sql"), folder.join("write.sql"));
        std::fs::write(&read_file, format!("{read}{id}SELECT v FROM bench_t:t WHERE id = :id;\n"))?;
        std::fs::write(&write_file, format!("{write}{id}UPDATE bench_t:t SET v = v + 1 WHERE id = :id;\n"))?;
        Ok((read_file, write_file))
    }
}
