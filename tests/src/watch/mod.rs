//! What clients see of a cluster over some time, from outside: writers and readers that note every answer, and what became of it.
//!
//! Works against any DSN (the router, HAProxy, a server), so that the same figures can be had of each. Unlike [`crate::load`], a client whose
//! connection ends connects again, as an application would, and that is counted. Invariant: each write has a number of its own and is tried
//! once, so that what is in the table in the end tells what was lost and what ran twice.

mod client;
mod report;
mod svg;

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::connect;

pub use report::{Fault, Figures};
pub use svg::draw;

/// What is watched.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where writers write.
    pub write: String,
    /// Where readers read: they take turns.
    pub read: Vec<String>,
    pub writers: usize,
    pub readers: usize,
    /// Between two statements of one client.
    pub pace: Duration,
}

/// What one client was answered.
#[derive(Clone, Debug)]
pub struct Event {
    pub at: Instant,
    /// From the statement's first byte to the end of its answer.
    pub took: Duration,
    pub client: usize,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    /// A write was acknowledged; by which server, on which timeline.
    Wrote {
        number: i64,
        server: String,
        timeline: u32,
    },
    Read {
        server: String,
    },
    Failed {
        number: Option<i64>,
        sqlstate: Option<String>,
        text: String,
    },
    /// The connection had ended, and there is a new one.
    Reconnected,
}

/// Clients at work.
#[derive(Debug)]
pub struct Watch {
    plan: Plan,
    table: String,
    began: Instant,
    stop: watch::Sender<bool>,
    clients: JoinSet<Vec<Event>>,
}

impl Watch {
    /// Makes a table of its own and starts the clients.
    pub async fn start(plan: Plan) -> anyhow::Result<Watch> {
        let table = format!("switchyard_watch_{}_{}", std::process::id(), std::time::UNIX_EPOCH.elapsed()?.as_millis());
        let setup = connect(&plan.write).await.context("the writers' DSN")?;
        let create = format!(
            "CREATE TABLE {table} (writer int NOT NULL, number bigint NOT NULL, \
             server text DEFAULT coalesce(host(inet_server_addr()), 'socket') || ':' || current_setting('port'), \
             timeline text DEFAULT left(pg_walfile_name(pg_current_wal_lsn()), 8)); \
             CREATE INDEX ON {table} (writer, number)"
        );
        setup.batch_execute(&create).await.context("the table")?;
        // Readers on replicas need it there.
        for dsn in &plan.read {
            crate::eventually(Duration::from_secs(30), "the table is on the readers' side", || async {
                let reader = connect(dsn).await?;
                Ok(reader.batch_execute(&format!("SELECT FROM {table} LIMIT 1")).await.ok())
            })
            .await?;
        }
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        for id in 0..plan.writers {
            let task = client::Task::new(id, plan.write.clone(), table.clone(), plan.pace, stopped.clone());
            clients.spawn(task.write(client::style_of(id)));
        }
        for id in 0..plan.readers {
            let Some(dsn) = plan.read.get(id % plan.read.len().max(1)) else { break };
            let task = client::Task::new(plan.writers + id, dsn.clone(), table.clone(), plan.pace, stopped.clone());
            clients.spawn(task.read(client::style_of(id)));
        }
        Ok(Watch { plan, table, began: Instant::now(), stop, clients })
    }

    pub fn began(&self) -> Instant {
        self.began
    }

    /// Ends the clients after their statements under way, and looks into the table. `keep`: leaves it there.
    pub async fn end(mut self, keep: bool) -> anyhow::Result<Figures> {
        let ended = Instant::now();
        self.stop.send_replace(true);
        let mut events = Vec::new();
        while let Some(client) = self.clients.join_next().await {
            events.extend(client?);
        }
        events.sort_by_key(|event| event.at);
        let check = connect(&self.plan.write).await.context("the writers' DSN, to look at what was written")?;
        let rows = check.query(&format!("SELECT writer, number, count(*) FROM {} GROUP BY 1, 2", self.table), &[]).await?;
        let there = rows.iter().map(|row| ((row.get::<_, i32>(0), row.get::<_, i64>(1)), row.get::<_, i64>(2))).collect();
        let rows = check.query(&format!("SELECT DISTINCT timeline, server FROM {}", self.table), &[]).await?;
        let leaders = rows.iter().filter_map(|row| Some((timeline_of(row.try_get(0).ok()?), row.get(1)))).collect();
        if !keep {
            check.batch_execute(&format!("DROP TABLE {}", self.table)).await.context("the table's end")?;
        }
        Ok(Figures::new(self.plan.writers, self.began, ended, events, &there, leaders))
    }
}

/// From the first eight digits of the name of a WAL file; 0 where they aren't known.
fn timeline_of(digits: &str) -> u32 {
    u32::from_str_radix(digits, 16).unwrap_or(0)
}
