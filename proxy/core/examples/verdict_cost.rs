//! What a verdict costs: `cargo run --release -p switchyard-core --example verdict_cost`.
//!
//! Times a cached verdict, a first one, and 1 MB statements; prints nanoseconds per verdict, the best of several rounds.

#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use switchyard_core::sql::{Dialect, Facts, Memo, classify, fingerprint};

const ROUNDS: usize = 300;

const HUNDRED_BYTES: &str = "SELECT id, name, balance FROM accounts WHERE owner = 'somebody' AND id = 123456 ORDER BY id LIMIT 20";

fn best(calls: u32, mut call: impl FnMut()) -> Duration {
    let round = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed() / calls
    };
    (0..ROUNDS).map(|_| round(&mut call)).min().unwrap_or_default()
}

fn main() {
    let (facts, dialect) = (Facts::empty(), Dialect::default());
    let memo = Memo::new(8192);
    let report = |what: &str, cost: Duration| println!("{what:<44}{:>12.1} ns", cost.as_nanos() as f64);
    println!("statement of {} bytes", HUNDRED_BYTES.len());
    report(
        "fingerprint",
        best(1_000, || {
            black_box(fingerprint::summarize(black_box(HUNDRED_BYTES.as_bytes()), dialect));
        }),
    );
    report(
        "cached verdict",
        best(1_000, || {
            black_box(memo.verdict(black_box(HUNDRED_BYTES.as_bytes()), &facts, dialect));
        }),
    );
    report(
        "first verdict",
        best(50, || {
            black_box(classify(black_box(HUNDRED_BYTES.as_bytes()), &facts, dialect));
        }),
    );
    for (name, unit) in
        [("1 MB of parentheses", "("), ("1 MB of a sum", "+1"), ("1 MB of calls", "f("), ("1 MB of statements", ";SELECT 1")]
    {
        let text = format!("SELECT 1{}", unit.repeat((1 << 20) / unit.len()));
        report(
            name,
            best(1, || {
                black_box(memo.verdict(text.as_bytes(), &facts, dialect));
            }),
        );
    }
}
