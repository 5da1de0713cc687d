//! PgBouncer in front of the same cluster as people run it there, and what it has in common with HAProxy.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use switchyard_tests::cluster::{connect, first_value};
use switchyard_tests::proxy::Proxy;
use switchyard_tests::{Cluster, Member, eventually};

use crate::stage::{POOL, USER};

const READY: Duration = Duration::from_secs(30);
/// PgBouncer's name for the database in which a server connection is a client's for its whole session.
pub(crate) const SESSION_DATABASE: &str = "session";
/// More than any load has clients: in session mode, a client without a server connection of its own waits for another's end.
const SESSION_POOL: usize = 160;
const MAX_CLIENTS: usize = 2_500;

#[derive(Debug)]
pub(crate) struct Pgbouncer {
    port: u16,
    process: Proxy,
}

impl Pgbouncer {
    /// In transaction mode, with one more database in session mode: 1.18 has no prepared statements in transaction mode.
    pub(crate) async fn launch(cluster: &Cluster, leader: &Member) -> anyhow::Result<Pgbouncer> {
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
        let process = Proxy::start(cluster, "pgbouncer", &["-q", "pgbouncer.ini"], "pgbouncer", &files)?;
        Ok(Pgbouncer { port, process })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn process(&self) -> &Proxy {
        &self.process
    }
}

/// Waits until connections reach the leader, and it alone: HAProxy takes every server for up until its first check.
pub(crate) async fn leads_to_leader(proxy: &Proxy, dsn: &str, members: usize) -> anyhow::Result<()> {
    eventually(READY, &format!("{} leads to the leader", proxy.program()), || async {
        for _ in 0..2 * members {
            let client = connect(dsn).await?;
            // By the simple protocol: the server connection may change between a Parse and its Execute.
            let answer = client.simple_query("SELECT pg_is_in_recovery()").await?;
            if first_value(&answer) != Some("f") {
                bail!("a replica answered");
            }
        }
        Ok(Some(()))
    })
    .await
    .with_context(|| proxy.log())
}

/// What a program says of itself, asked with `flag`.
pub(crate) fn version(program: &Path, flag: &str) -> anyhow::Result<String> {
    let output = Command::new(program).arg(flag).output().with_context(|| program.display().to_string())?;
    Ok(version_of(&String::from_utf8_lossy(&output.stdout)))
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
