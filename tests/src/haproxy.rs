//! HAProxy in front of a cluster, configured as Patroni's documentation shows: what Switchyard stands in the place of.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cluster::{Cluster, connect, dsn};
use crate::machine::{Machine, on_path};
use crate::wait::eventually;

const READY: Duration = Duration::from_secs(30);

/// A running HAProxy. Dropping it kills it; so does the guard of the cluster's home, in whose folder it works.
#[derive(Debug)]
pub struct Haproxy {
    /// For writes, and for reads.
    ports: [u16; 2],
    folder: PathBuf,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Haproxy {
    /// Every member is a server of both ports, and its REST API says which it may serve. Done when both are served.
    pub async fn start(cluster: &Cluster) -> anyhow::Result<Haproxy> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let ports = [cluster.ports().take()?, cluster.ports().take()?];
        let mut servers = String::new();
        for member in cluster.members() {
            let rest_port = member.rest_url().rsplit(':').next().unwrap_or_default().to_owned();
            servers += &format!("    server {} 127.0.0.1:{} maxconn 500 check port {rest_port}\n", member.name(), member.port());
        }
        let listen = |name: &str, port: u16| {
            format!(
                "listen {name}\n    bind 127.0.0.1:{port}\n    option httpchk OPTIONS /{name}\n    http-check expect status 200\n    \
                 default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n{servers}\n"
            )
        };
        let settings = format!(
            "global\n    maxconn 2000\n\ndefaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    timeout connect 4s\n    \
             timeout server 30m\n    timeout check 5s\n\n{}{}",
            listen("primary", ports[0]),
            listen("replica", ports[1])
        );
        let name = format!("haproxy{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = cluster.home().folder(&name)?;
        let file = folder.join("haproxy.cfg");
        std::fs::write(&file, settings).with_context(|| format!("write {}", file.display()))?;
        Machine::look()?.account.own(&file)?;
        let log = cluster.home().path().join(format!("{name}.log"));
        let haproxy = Haproxy { ports, folder, log, child: Mutex::new(None) };
        haproxy.launch()?;
        haproxy.ready(cluster).await?;
        Ok(haproxy)
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
        self.kill()?;
        self.launch()?;
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
        .with_context(|| String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned())
    }

    fn launch(&self) -> anyhow::Result<()> {
        let path = on_path("haproxy").context("haproxy isn't installed: scripts/install.sh bench does that")?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).context("HAProxy's log")?;
        // It doesn't like to be root.
        let child = Machine::look()?
            .account
            .command(path)
            .args(["-db", "-f", "haproxy.cfg"])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start HAProxy")?;
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    fn kill(&self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            child.kill().context("kill HAProxy")?;
            child.wait().context("wait for HAProxy")?;
        }
        Ok(())
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
