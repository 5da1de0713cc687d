//! `make bench-verdicts`: what a verdict costs, in one table in Markdown.
//!
//! A cached verdict, a first one, statements of 1 MB that try to be slow, and the memory that any number of distinct statements takes. The best of
//! several rounds counts: what disturbs the machine only adds.

#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use switchyard_core::sql::{Dialect, Facts, Memo, classify, fingerprint};

const ROUNDS: usize = 200;
/// Of the statements of 1 MB.
const LONG_ROUNDS: usize = 5;
const LONG_BYTES: usize = 1 << 20;
const LITERALS: u64 = 1_000_000;
const FINGERPRINTS: u64 = 10_000_000;
/// The router's own cache.
const CAPACITY: usize = 8192;

const HUNDRED_BYTES: &str = "SELECT id, name, balance FROM accounts WHERE owner = 'somebody' AND id = 123456 ORDER BY id LIMIT 20";
const PGBENCH: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;";
const REPORT: &str = "WITH top AS (SELECT customer_id, sum(total) AS spent FROM orders WHERE created_at > '2026-01-01' AND state IN ('paid', 'sent') \
                      GROUP BY customer_id HAVING sum(total) > 1000 ORDER BY spent DESC LIMIT 100) SELECT c.id, c.name, lower(c.email), top.spent, \
                      rank() OVER (PARTITION BY c.country ORDER BY top.spent DESC), CASE WHEN top.spent > 5000 THEN 'gold' ELSE 'silver' END FROM \
                      customers AS c JOIN top ON top.customer_id = c.id LEFT JOIN LATERAL (SELECT max(o.created_at) AS last FROM orders AS o WHERE \
                      o.customer_id = c.id) AS l ON true WHERE NOT EXISTS (SELECT 1 FROM blocked AS b WHERE b.customer_id = c.id) ORDER BY 5, 2";

/// The beginning of a statement, what is repeated up to 1 MB, and the end.
const LONG: [(&str, &str, &str, &str); 10] = [
    ("open parentheses", "SELECT 1", "(", ""),
    ("a sum", "SELECT 1", "+1", ""),
    ("calls in calls", "SELECT ", "f(", ""),
    ("statements", "SELECT 1", ";SELECT 1", ""),
    ("a list", "SELECT * FROM t WHERE id IN (1", ",1", ")"),
    ("rows of VALUES", "INSERT INTO t VALUES (1, 'x')", ",(1,'x')", ""),
    ("comments in comments", "SELECT 1 ", "/*", ""),
    ("joins", "SELECT * FROM t", " JOIN t USING (id)", ""),
    ("CASE in CASE", "SELECT ", "CASE WHEN a THEN ", ""),
    ("one string", "SELECT '", "x", "'"),
];

/// Per call, of the fastest round.
fn best(rounds: usize, calls: u32, mut call: impl FnMut()) -> Duration {
    let round = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed() / calls
    };
    (0..rounds).map(|_| round(&mut call)).min().unwrap_or_default()
}

/// This process's memory, in KiB (`VmRSS` of proc(5)).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

fn main() {
    let (facts, dialect) = (Facts::empty(), Dialect::default());
    let memo = Memo::new(CAPACITY);
    println!("| statement | bytes | fingerprint | cached verdict | first verdict |\n|---|---:|---:|---:|---:|");
    for (name, sql) in [("of pgbench -S", PGBENCH), ("of 100 bytes", HUNDRED_BYTES), ("a report", REPORT)] {
        let sql = sql.as_bytes();
        let print = best(ROUNDS, 1_000, || _ = black_box(fingerprint::summarize(black_box(sql), dialect)));
        let cached = best(ROUNDS, 1_000, || drop(black_box(memo.verdict(black_box(sql), &facts, dialect))));
        let first = best(ROUNDS, 50, || drop(black_box(classify(black_box(sql), &facts, dialect))));
        let (print, cached, first) = (print.as_nanos(), cached.as_nanos(), first.as_nanos() as f64 / 1e3);
        println!("| {name} | {} | {print} ns | {cached} ns | {first:.1} µs |", sql.len());
    }

    println!("\n| a cache of {CAPACITY}, and | verdicts in it | memory |\n|---|---:|---:|");
    let memo = Memo::new(CAPACITY);
    let before = resident();
    let told = |what: &str| println!("| {what} | {} | {} KiB |", memo.len(), resident().saturating_sub(before));
    for id in 0..LITERALS {
        memo.verdict(format!("SELECT name FROM accounts WHERE id = {id} AND note = 'n{id}'").as_bytes(), &facts, dialect);
    }
    told("a million distinct literals");
    let mut quarter = 0;
    for id in 0..FINGERPRINTS {
        memo.verdict(format!("SELECT c{id} FROM accounts").as_bytes(), &facts, dialect);
        if id + 1 == FINGERPRINTS / 4 {
            quarter = resident().saturating_sub(before);
        }
    }
    println!("| {} distinct fingerprints | | {quarter} KiB |", FINGERPRINTS / 4);
    told("10,000,000 distinct fingerprints");

    println!("\n| statement of 1 MB | first verdict |\n|---|---:|");
    for (name, begin, unit, end) in LONG {
        let sql = format!("{begin}{}{end}", unit.repeat(LONG_BYTES / unit.len()));
        let first = best(LONG_ROUNDS, 1, || drop(black_box(classify(black_box(sql.as_bytes()), &facts, dialect))));
        println!("| {name} | {:.1} ms |", first.as_secs_f64() * 1e3);
    }
}
