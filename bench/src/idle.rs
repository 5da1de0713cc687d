//! What clients cost that are logged in and ask nothing.

use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use switchyard_tests::cluster::connect;

use crate::stage::{Stage, Target};
use crate::usage;

/// Logins under way at the same time.
const AT_ONCE: usize = 16;
/// Before the first measurement, so that what every process needs once isn't counted for the clients.
const FIRST: usize = 50;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub(crate) clients: usize,
    /// Resident memory of the proxy for each of them.
    pub(crate) client_bytes: f64,
    /// CPU milliseconds in a second, before they came.
    pub(crate) rest_cpu_ms: f64,
    /// And while they are there.
    pub(crate) idle_cpu_ms: f64,
}

/// Each client logs in, asks one query, and stays. The process must be a fresh one: memory that it got for others would be used again.
pub(crate) async fn measure(stage: &Stage, target: Target, rest: Duration) -> anyhow::Result<Idle> {
    let pid = stage.pid(target)?;
    let clients = stage.idle_clients(target);
    drop(log_in(stage, target, FIRST).await?);
    let rest_cpu_ms = rate(pid, rest).await?;
    let before = usage::memory(pid)?.now_bytes;
    let held = log_in(stage, target, clients).await?;
    let idle_cpu_ms = rate(pid, rest).await?;
    let after = usage::memory(pid)?.now_bytes;
    drop(held);
    Ok(Idle { clients, client_bytes: (after as f64 - before as f64) / clients as f64, rest_cpu_ms, idle_cpu_ms })
}

async fn log_in(stage: &Stage, target: Target, clients: usize) -> anyhow::Result<Vec<tokio_postgres::Client>> {
    let dsn = stage.dsn(target);
    stream::iter(0..clients)
        .map(|_| async {
            let client = connect(&dsn).await?;
            client.simple_query("SELECT 1").await?;
            anyhow::Ok(client)
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
        .with_context(|| format!("{clients} clients of {}", target.name()))
}

/// CPU milliseconds that the process uses in a second.
async fn rate(pid: u32, time: Duration) -> anyhow::Result<f64> {
    let before = usage::cpu_seconds(pid)?;
    tokio::time::sleep(time).await;
    Ok((usage::cpu_seconds(pid)? - before) / time.as_secs_f64() * 1_000.0)
}
