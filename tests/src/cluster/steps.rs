//! What Patroni does in one change of leader, and when: seen from beside it, by etcd's watch and by direct connections to the members.
//!
//! It is what any router has to wait for; what clients see beyond it is the router's own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use etcd_client::{EventType, WatchOptions};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::Cluster;

/// Between two questions to a member that is about to lead.
const PACE: Duration = Duration::from_millis(2);

/// When each step was seen; `None`: not yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// The `failover` key was put: somebody has asked for a switchover.
    pub asked: Option<Instant>,
    /// The leader key was deleted.
    pub given_up: Option<Instant>,
    /// The leader key named another member.
    pub taken: Option<Instant>,
    /// That member said that it is out of recovery.
    pub out_of_recovery: Option<Instant>,
    /// It committed a transaction, with what it waits for of synchronous replication.
    pub committed: Option<Instant>,
}

/// Looks on, until the first change of leader is complete.
#[derive(Debug)]
pub struct Steps {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Steps {
    pub async fn watch(cluster: &Cluster) -> anyhow::Result<Steps> {
        let mut clients = Vec::new();
        for member in cluster.members() {
            // A dead one won't lead.
            if let Ok(client) = member.connect().await {
                clients.push((member.name().to_owned(), client));
            }
        }
        let (leader_key, failover_key) = (cluster.key("leader"), cluster.key("failover"));
        let old = cluster.leader_key().await?.context("no leader key")?;
        let mut etcd = etcd_client::Client::connect([cluster.etcd_endpoint()], None).await?;
        let prefix = cluster.key("");
        let mut watch = etcd.watch(prefix, Some(WatchOptions::new().with_prefix())).await?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = seen.clone();
        let task = tokio::spawn(async move {
            // The connection of the watch.
            let _etcd = etcd;
            while let Ok(Some(message)) = watch.message().await {
                for event in message.events() {
                    let Some(pair) = event.kv() else { continue };
                    let put = event.event_type() == EventType::Put;
                    let now = Some(Instant::now());
                    if pair.key() == failover_key.as_bytes() && put {
                        note(&noted, |seen| seen.asked = seen.asked.or(now));
                    }
                    if pair.key() != leader_key.as_bytes() {
                        continue;
                    }
                    if !put {
                        note(&noted, |seen| seen.given_up = seen.given_up.or(now));
                    } else if pair.value() != old.as_bytes() {
                        note(&noted, |seen| seen.taken = now);
                        let new = clients.iter().find(|(name, _)| name.as_bytes() == pair.value());
                        if let Some((_, client)) = new {
                            let _ = follow(client, &noted).await;
                        }
                        return;
                    }
                }
            }
        });
        Ok(Steps { seen, task })
    }

    pub fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(seen: &Mutex<Seen>, change: impl FnOnce(&mut Seen)) {
    change(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
}

async fn follow(client: &Client, seen: &Mutex<Seen>) -> Result<(), tokio_postgres::Error> {
    let mut pace = tokio::time::interval(PACE);
    loop {
        pace.tick().await;
        let answer = client.simple_query("SELECT pg_is_in_recovery()").await?;
        if answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("f"))) {
            break;
        }
    }
    note(seen, |seen| seen.out_of_recovery = Some(Instant::now()));
    // It writes WAL, and nothing else.
    client.simple_query("SELECT pg_logical_emit_message(true, 'steps', '')").await?;
    note(seen, |seen| seen.committed = Some(Instant::now()));
    Ok(())
}
