//! psql and PostgreSQL's other client programs, run to their end.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::AsyncWriteExt;

use crate::machine::Machine;

/// After which a client program is killed and the test fails.
const LIMIT: Duration = Duration::from_secs(300);

/// What a program gave.
#[derive(Clone, Debug)]
pub struct Finished {
    pub stdout: String,
    pub stderr: String,
    /// The exit status; `None` if a signal ended it.
    pub status: Option<i32>,
}

impl Finished {
    pub fn ok(&self) -> bool {
        self.status == Some(0)
    }

    /// The output, or an error that shows all of it.
    pub fn success(self) -> anyhow::Result<String> {
        if !self.ok() {
            bail!("exit status {:?}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

/// Runs psql on a connection string, without the user's own settings: unaligned rows only, with the SQLSTATE in errors.
pub async fn psql(dsn: &str, arguments: &[&str]) -> anyhow::Result<Finished> {
    let mut all = vec!["-X", "-A", "-t", "-q", "-v", "VERBOSITY=verbose", "-d", dsn];
    all.extend(arguments);
    run("psql", &all, "").await
}

/// Runs one of PostgreSQL's programs (`pgbench`, `pg_dump`...) with a text as its standard input. No `PG*` variable of the user's reaches it.
pub async fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<Finished> {
    let mut child = tokio::process::Command::new(Machine::look()?.postgres_program(program))
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().context("standard input")?;
    let input = input.to_owned();
    // A program that ends without reading all of it is no error of ours.
    let feed = tokio::spawn(async move {
        let _ = stdin.write_all(input.as_bytes()).await;
    });
    let output =
        tokio::time::timeout(LIMIT, child.wait_with_output()).await.with_context(|| format!("{program}: not within {LIMIT:?}"))??;
    feed.abort();
    Ok(Finished {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: output.status.code(),
    })
}
