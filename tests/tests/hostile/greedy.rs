//! Clients that take more than they give.

use std::time::Duration;

use anyhow::ensure;
use switchyard_tests::Result;
use switchyard_tests::unruly::{Raw, message, query, sync};

use super::{SOON, USER, Yard};

/// A write that isn't taken for so long counts as blocked.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a client tries to make the router hold, in bytes.
const PIPELINE: usize = 64 << 20;

/// Two gigabytes for each, and nobody who reads them.
pub(crate) async fn deaf(yard: &Yard) -> Result {
    let rows = "SELECT repeat('x', 1000) FROM generate_series(1, 2000000)";
    let mut deaf = Vec::new();
    for port in yard.ports() {
        for sql in [rows.to_owned(), format!("COPY ({rows}) TO STDOUT"), "SELECT repeat('x', 100000000)".to_owned()] {
            let mut raw = Raw::log_in(port, USER).await?;
            raw.send(&query(&sql)).await?;
            // It has begun.
            ensure!(matches!(raw.message().await?.tag, b'T' | b'H'), "{sql}");
            deaf.push(raw);
        }
    }
    yard.load.goes_on(100, SOON).await
}

pub(crate) async fn pipelines(yard: &Yard) -> Result {
    let extended = [message(b'P', b"\0SELECT 1\0\0\0"), message(b'B', b"\0\0\0\0\0\0\0\0"), message(b'E', b"\0\0\0\0\0"), sync()].concat();
    let endless = message(b'P', b"\0SELECT 1\0\0\0");
    let pieces = [
        ("reads", query("SELECT 1")),
        ("writes", query("SELECT 1 FOR UPDATE")),
        ("transactions that the router answers itself", [query("BEGIN"), query("COMMIT")].concat()),
        ("errors", query("SELECT 1/0")),
        ("the extended protocol", extended),
        ("a batch without an end", endless),
        ("flushes", message(b'H', b"")),
        ("syncs", sync()),
        ("copy data out of place", message(b'd', &[b'x'; 1000])),
    ];
    let mut clients = Vec::new();
    for port in yard.ports() {
        for (what, piece) in &pieces {
            let mut raw = Raw::log_in(port, USER).await?;
            let many = piece.repeat(1 + 100_000 / piece.len());
            let sent = raw.stuff(&many, PIPELINE, PATIENCE).await;
            println!("{what}: {} MB taken, memory {} MB", sent >> 20, yard.memory("VmRSS")? >> 20);
            yard.load.goes_on(3, SOON).await?;
            clients.push(raw);
        }
    }
    Ok(())
}
