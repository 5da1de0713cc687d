//! HAProxy in front of a cluster, configured as Patroni's documentation shows: what Switchyard stands in the place of.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cluster::{Cluster, connect, dsn};
use crate::proxy::Proxy;
use crate::wait::eventually;

const READY: Duration = Duration::from_secs(30);
/// Of clients, and of each server.
const MAX_CLIENTS: usize = 2_500;
const MAX_FOR_SERVER: usize = 1_000;

/// A running HAProxy.
#[derive(Debug)]
pub struct Haproxy {
    /// For writes, and for reads.
    ports: [u16; 2],
    process: Proxy,
}

impl Haproxy {
    /// Every member is a server of both ports, and its REST API says which it may serve.
    pub fn launch(cluster: &Cluster) -> anyhow::Result<Haproxy> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let ports = [cluster.ports().take()?, cluster.ports().take()?];
        let mut servers = String::new();
        for member in cluster.members() {
            let rest_port = member.rest_url().rsplit(':').next().unwrap_or_default().to_owned();
            let (name, port) = (member.name(), member.port());
            servers += &format!("    server {name} 127.0.0.1:{port} maxconn {MAX_FOR_SERVER} check port {rest_port}\n");
        }
        let listen = |name: &str, port: u16| {
            format!(
                "listen {name}\n    bind 127.0.0.1:{port}\n    option httpchk OPTIONS /{name}\n    http-check expect status 200\n    \
                 default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n{servers}\n"
            )
        };
        let settings = format!(
            "global\n    maxconn {MAX_CLIENTS}\n\ndefaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    timeout connect 4s\n    \
             timeout server 30m\n    timeout check 5s\n\n{}{}",
            listen("primary", ports[0]),
            listen("replica", ports[1])
        );
        let name = format!("haproxy{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let process = Proxy::start(cluster, "haproxy", &["-db", "-f", "haproxy.cfg"], &name, &[("haproxy.cfg", settings)])?;
        Ok(Haproxy { ports, process })
    }

    /// As [`Haproxy::launch`]. Done when both ports are served.
    pub async fn start(cluster: &Cluster) -> anyhow::Result<Haproxy> {
        let haproxy = Haproxy::launch(cluster)?;
        haproxy.ready(cluster).await?;
        Ok(haproxy)
    }

    pub fn process(&self) -> &Proxy {
        &self.process
    }

    pub fn write_port(&self) -> u16 {
        self.ports[0]
    }

    pub fn read_port(&self) -> u16 {
        self.ports[1]
    }

    /// A connection string for the port for writes.
    pub fn write_dsn(&self, cluster: &Cluster, user: &str) -> String {
        dsn(cluster.roles(), user, self.ports[0])
    }

    /// Ends it, and starts it. Done when both ports are served.
    pub async fn restart(&self, cluster: &Cluster) -> anyhow::Result<()> {
        self.process.restart()?;
        self.ready(cluster).await
    }

    /// Waits until each port leads to all members of its role, and to them alone: HAProxy takes every server for up until its first check, and one
    /// that was down for down until its second good one.
    pub async fn ready(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let members = cluster.members().len();
        eventually(READY, "HAProxy leads where it should", || async {
            for (port, recovers, servers) in [(self.ports[0], "f", 1), (self.ports[1], "t", members - 1)] {
                let mut seen = BTreeSet::new();
                for _ in 0..2 * members {
                    let client = connect(&dsn(cluster.roles(), "app", port)).await?;
                    let answer = client.simple_query("SELECT pg_is_in_recovery(), inet_server_port()").await?;
                    let row = answer.iter().find_map(|message| match message {
                        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
                        _ => None,
                    });
                    let row = row.context("no row")?;
                    if row.get(0) != Some(recovers) {
                        bail!("a member of the other role answered on port {port}");
                    }
                    seen.extend(row.get(1).map(str::to_owned));
                }
                if seen.len() != servers {
                    bail!("{} servers behind port {port}", seen.len());
                }
            }
            Ok(Some(()))
        })
        .await
        .with_context(|| self.process.log())
    }
}
