//! pgbench by its three protocols: what it did to its tables is the same, row for row, as its random numbers are.

use anyhow::ensure;
use switchyard_tests::Result;

use crate::Yard;
use crate::programs::script;
use crate::twice::{WAYS, postgres_program, same};

const DATABASE: &str = "clients_pgbench";
/// What is in the tables, but for the times.
const DIGEST: &str = "SELECT (SELECT md5(string_agg(a::text, '|' ORDER BY aid)) FROM pgbench_accounts a), \
    (SELECT md5(string_agg(t::text, '|' ORDER BY tid)) FROM pgbench_tellers t), (SELECT md5(string_agg(b::text, '|' ORDER BY bid)) FROM pgbench_branches b), \
    (SELECT count(*) || ' ' || md5(string_agg(concat_ws(',', tid, bid, aid, delta), '|' ORDER BY tid, bid, aid, delta)) FROM pgbench_history), \
    (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)";

pub(crate) async fn pgbench(yard: &Yard) -> Result {
    let (mixed, pipeline) = (script("pgbench/mixed.sql")?.display().to_string(), script("pgbench/pipeline.sql")?.display().to_string());
    let runs: &[(&str, &[&str])] = &[
        ("simple", &["-c4", "-j2", "-t40"]),
        ("extended", &["-c4", "-j2", "-t40"]),
        ("prepared", &["-c4", "-j2", "-t40"]),
        ("simple", &["-c2", "-t20", "-C", "-b", "simple-update"]),
        ("prepared", &["-c4", "-j2", "-t100", "-b", "select-only"]),
        ("extended", &["-c4", "-t40", "-f", &pipeline]),
        ("prepared", &["-c4", "-t40", "-f", &pipeline]),
        ("simple", &["-c1", "-t40", "-f", &mixed]),
        ("extended", &["-c1", "-t40", "-f", &mixed]),
        ("prepared", &["-c1", "-t40", "-f", &mixed]),
    ];
    let mut printed = Vec::new();
    for way in WAYS {
        yard.new_database(DATABASE).await?;
        let dsn = yard.dsn(way, "app", DATABASE).await?;
        let scratch = yard.scratch()?;
        let mut text = String::new();
        for steps in ["dtgvp", "dtGvpf"] {
            let done = postgres_program("pgbench", &["-q", "-i", "-I", steps, &dsn], &scratch).await?;
            ensure!(done.ok(), "{way:?}: pgbench -i: {}", done.stderr);
        }
        for (protocol, arguments) in runs {
            let all = [&["-n", "-M", protocol, "--random-seed=7"][..], arguments, &[&dsn]].concat();
            let done = postgres_program("pgbench", &all, &scratch).await?;
            let counted = done.stdout.lines().filter(|line| line.starts_with("number of") || line.starts_with("query mode"));
            text += &counted.map(|line| format!("{line}\n")).collect::<String>();
            ensure!(done.ok() && text.contains("actually processed"), "{way:?}: {all:?}: {}", done.stderr);
            text += &digest(yard).await?;
        }
        printed.push(text);
    }
    same("pgbench", &printed[0], &printed[1])
}

async fn digest(yard: &Yard) -> Result<String> {
    let client = switchyard_tests::cluster::connect(&yard.dsn(crate::twice::Way::Direct, "app", DATABASE).await?).await?;
    let row = client.query_one(DIGEST, &[]).await?;
    let texts: Vec<String> = (0..4).map(|column| row.get(column)).collect();
    // The mixed script adds to accounts alone.
    Ok(format!("{texts:?} {:?}\n", row.get::<_, Option<bool>>(4)))
}
