//! Many clients on few server connections, doing everything that could leave something behind, each of them checking every answer.
//!
//! A client's answers hold its own number: one that went to somebody else is seen. Each has settings of its own from its first statement on,
//! and looks at them all the time: another one's are seen. At the end, [`traces`] looks for what was left on the servers.

mod acts;
mod client;
mod traces;
mod unseen;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::sync::Semaphore;

use crate::cluster::Cluster;
use crate::router::{Router, RouterOptions};
use client::Client;

/// A role of the harness.
const USER: &str = "app";
/// Sessions that are pinned at once. They count against the node's cap, and wait for one another there.
const PINNED_MAX: usize = 24;
/// Clients that log in at once.
const LOGINS: usize = 32;
/// For what is under way when the time is up.
const LAST_ACT: Duration = Duration::from_secs(90);
/// Failures that are told with all they say.
const TOLD: usize = 20;

/// How many, for how long, over how many server connections to each node.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub clients: usize,
    pub time: Duration,
    pub pool_size: i64,
}

/// What all clients share.
#[derive(Debug)]
struct Shared {
    dsn: String,
    until: Instant,
    pinned: Semaphore,
    logins: Semaphore,
    acts: AtomicU64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// How often each act was done.
    pub acts: BTreeMap<&'static str, u64>,
    /// What a client saw that it shouldn't have.
    pub failures: Vec<String>,
    /// The rows that each client has written and had acknowledged.
    rows: BTreeMap<i32, i64>,
}

impl Plan {
    /// A router for it, in front of `cluster`.
    pub async fn router(self, cluster: &Cluster) -> anyhow::Result<Router> {
        let options = RouterOptions::new().set("pool.max_size", self.pool_size).set("log.filter", "info");
        // Two descriptors for each client here, and as many in the router, which inherits the limit.
        let needed = self.clients as u64 * 2 + 1_000;
        crate::processes::raise_open_files(needed)?;
        Router::start(cluster, options.set("limits.max_clients", self.clients as i64 + 200)).await
    }

    /// Does it, and looks for what it left.
    ///
    /// # Errors
    /// If a client saw what it shouldn't have, or something was left.
    pub async fn run(self, cluster: &Cluster, router: &Router) -> anyhow::Result<Report> {
        client::prepare(cluster).await?;
        let before = traces::connections(cluster).await?;
        let shared = Arc::new(Shared {
            dsn: router.rw_dsn(USER),
            until: Instant::now() + self.time,
            pinned: Semaphore::new(PINNED_MAX),
            logins: Semaphore::new(LOGINS),
            acts: AtomicU64::new(0),
        });
        let tasks: Vec<_> = (1..=self.clients as i32).map(|number| tokio::spawn(Client::new(number, shared.clone()).live())).collect();
        let mut report = Report::default();
        let mut resting = Vec::new();
        for task in tasks {
            let (one, session) = tokio::time::timeout_at((shared.until + LAST_ACT).into(), task).await.context("a client hangs")??;
            report.add(one);
            resting.extend(session);
        }
        println!("{} acts of {} clients: {:?}", shared.acts.load(Ordering::Relaxed), self.clients, report.acts);
        let told: Vec<&str> = report.failures.iter().take(TOLD).map(String::as_str).collect();
        ensure!(told.is_empty(), "{} failures, such as\n{}", report.failures.len(), told.join("\n"));
        ensure!(!resting.is_empty(), "no session is left");
        traces::unpinned(router).await?;
        drop(resting);
        traces::rows(cluster, &report.rows).await?;
        traces::none(cluster, router, self.pool_size as usize, before).await?;
        Ok(report)
    }
}

impl Report {
    fn add(&mut self, other: Report) {
        for (act, count) in other.acts {
            *self.acts.entry(act).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.rows.extend(other.rows);
    }
}
