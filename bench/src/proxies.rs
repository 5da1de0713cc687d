//! HAProxy and PgBouncer in front of the same cluster, configured as people run them there.

use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use switchyard_tests::cluster::connect;
use switchyard_tests::machine::{Machine, on_path};
use switchyard_tests::{Cluster, Member, eventually};

use crate::stage::{POOL, USER};

const READY: Duration = Duration::from_secs(30);
/// PgBouncer's name for the database in which a server connection is a client's for its whole session.
pub(crate) const SESSION_DATABASE: &str = "session";
/// More than any load has clients: in session mode, a client without a server connection of its own waits for another's end.
const SESSION_POOL: usize = 160;
const MAX_CLIENTS: usize = 2_500;

/// A running program. Dropping it kills it; so does the guard of the cluster's home, in whose folder it works.
#[derive(Debug)]
pub(crate) struct Proxy {
    program: &'static str,
    arguments: &'static [&'static str],
    version: String,
    port: u16,
    folder: std::path::PathBuf,
    log: std::path::PathBuf,
    child: Mutex<Option<Child>>,
}

impl Proxy {
    /// The configuration that Patroni's documentation shows: every member is a server of both ports, and its REST API says which it may serve.
    pub(crate) fn haproxy(cluster: &Cluster) -> anyhow::Result<Proxy> {
        let (write, read) = (cluster.ports().take()?, cluster.ports().take()?);
        let mut servers = String::new();
        for member in cluster.members() {
            let rest_port = member.rest_url().rsplit(':').next().unwrap_or_default().to_owned();
            servers += &format!("    server {} 127.0.0.1:{} maxconn 1000 check port {rest_port}\n", member.name(), member.port());
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
            listen("primary", write),
            listen("replica", read)
        );
        Proxy::start(cluster, "haproxy", &["-db", "-f", "haproxy.cfg"], "-v", write, &[("haproxy.cfg", settings)])
    }

    /// In transaction mode, with one more database in session mode: 1.18 has no prepared statements in transaction mode.
    pub(crate) async fn pgbouncer(cluster: &Cluster, leader: &Member) -> anyhow::Result<Proxy> {
        let port = cluster.ports().take()?;
        let server = format!("host=127.0.0.1 port={} dbname=postgres", leader.port());
        let settings = format!(
            "[databases]\npostgres = {server} pool_mode=transaction\n{SESSION_DATABASE} = {server} pool_mode=session pool_size={SESSION_POOL}\n\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = users.txt\n\
             max_client_conn = {MAX_CLIENTS}\ndefault_pool_size = {POOL}\nlog_connections = 0\nlog_disconnections = 0\n"
        );
        // With the verifier alone, it logs in to the server with what the client has proven, as Switchyard does.
        let verifier = leader.ask(&format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{USER}'")).await?;
        let users = format!("\"{USER}\" \"{verifier}\"\n");
        let files = [("pgbouncer.ini", settings), ("users.txt", users)];
        Proxy::start(cluster, "pgbouncer", &["-q", "pgbouncer.ini"], "--version", port, &files)
    }

    fn start(
        cluster: &Cluster,
        program: &'static str,
        arguments: &'static [&'static str],
        version_flag: &str,
        port: u16,
        files: &[(&str, String)],
    ) -> anyhow::Result<Proxy> {
        let path = on_path(program).with_context(|| format!("{program} isn't installed: scripts/install.sh bench does that"))?;
        let output = Command::new(path).arg(version_flag).output().with_context(|| program.to_owned())?;
        let version = version_of(&String::from_utf8_lossy(&output.stdout));
        let folder = cluster.home().folder(program)?;
        for (name, text) in files {
            let file = folder.join(name);
            std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            Machine::look()?.account.own(&file)?;
        }
        let log = cluster.home().path().join(format!("{program}.log"));
        let proxy = Proxy { program, arguments, version, port, folder, log, child: Mutex::new(None) };
        proxy.restart()?;
        Ok(proxy)
    }

    /// Ends it if it runs, and starts it.
    pub(crate) fn restart(&self) -> anyhow::Result<()> {
        self.kill()?;
        let path = on_path(self.program).with_context(|| self.program.to_owned())?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).with_context(|| self.program.to_owned())?;
        // Neither likes to be root.
        let child = Machine::look()?
            .account
            .command(path)
            .args(self.arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program))?;
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// Waits until connections reach the leader, and it alone: HAProxy takes every server for up until its first check.
    pub(crate) async fn ready(&self, dsn: &str, members: usize) -> anyhow::Result<()> {
        eventually(READY, &format!("{} leads to the leader", self.program), || async {
            for _ in 0..2 * members {
                let client = connect(dsn).await?;
                // By the simple protocol: the server connection may change between a Parse and its Execute.
                let answer = client.simple_query("SELECT pg_is_in_recovery()").await?;
                let row = answer.iter().find_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                });
                if row != Some("f") {
                    bail!("a replica answered");
                }
            }
            Ok(Some(()))
        })
        .await
        .with_context(|| String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned())
    }

    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.as_ref().map(Child::id).with_context(|| format!("{} doesn't run", self.program))
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    fn kill(&self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            child.kill().with_context(|| format!("kill {}", self.program))?;
            child.wait().with_context(|| format!("wait for {}", self.program))?;
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The first word of a program's first line that begins with a digit, up to Debian's own part.
pub(crate) fn version_of(text: &str) -> String {
    let words = text.lines().next().unwrap_or_default().split_whitespace();
    let number = words.map(|word| word.trim_start_matches('(')).find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()));
    number.unwrap_or("?").split(['-', ')']).next().unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn versions() {
        assert_eq!(version_of("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\nStatus: ..."), "2.6.12");
        assert_eq!(version_of("PgBouncer 1.18.0\nlibevent 2.1.12-stable"), "1.18.0");
        assert_eq!(version_of("pgbench (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"), "15.20");
        assert_eq!(version_of(""), "?");
    }
}
