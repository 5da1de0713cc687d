//! One run of a suite, by `pg_regress` (or `pg_isolation_regress`) itself, in its own schedule.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};

use super::suite::{Kind, Suite};
use crate::cluster::Cluster;
use crate::machine::Machine;
use crate::processes;

/// After which a run is given up. A direct one takes a minute or two; one in which every statement is judged, ten.
const LIMIT: Duration = Duration::from_secs(3000);

/// Starts each psql of the suite when the replicas have replayed what the leader has written: a script reads what another one has written
/// before it began, on a connection of its own. Consistency `session` promises nothing about that.
const LAUNCHER: &str = r#"#!/bin/bash
ask() { PGOPTIONS= psql -XAtq -h 127.0.0.1 -p "$1" -U postgres -d postgres -c "$2"; }
read -ra ports <<<"$SWITCHYARD_MEMBERS"
lsn=$(ask "${ports[0]}" 'SELECT pg_current_wal_lsn()')
for port in "${ports[@]:1}"; do
    until [ "$(ask "$port" "SELECT pg_last_wal_replay_lsn() >= '$lsn'")" = t ]; do :; done
done
exec "$@"
"#;

/// Runs the suite on `port`, as superuser. `output`: a folder, emptied first; the path is the same for all runs that are compared, because it
/// appears in their output. `tests`: those only, instead of the parallel schedule. Gives the folder of the output files.
pub async fn run(suite: &Suite, cluster: &Cluster, port: u16, output: &Path, tests: &[String]) -> anyhow::Result<PathBuf> {
    let machine = Machine::look()?;
    let _ = std::fs::remove_dir_all(output);
    std::fs::create_dir_all(output).with_context(|| format!("create {}", output.display()))?;
    machine.account.own(output)?;
    let launcher = output.join("launcher");
    std::fs::write(&launcher, LAUNCHER)?;
    std::fs::set_permissions(&launcher, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;

    let leader = cluster.leader().await?;
    let replicas = cluster.replicas().await?;
    let members: Vec<String> = std::iter::once(&leader).chain(&replicas).map(|member| member.port().to_string()).collect();
    let log = std::fs::File::create(output.join("pg_regress.log"))?;
    let path = std::env::join_paths([machine.postgres_bin.as_path(), Path::new("/usr/bin"), Path::new("/bin")])?;
    let mut command = tokio::process::Command::from(machine.account.command(&suite.pg_regress));
    if tests.is_empty() {
        command.arg(format!("--schedule={}", suite.input.join(suite.schedule).display()));
    }
    if suite.kind == Kind::Regression {
        command.arg(format!("--launcher={}", launcher.display()));
    }
    let mut child = command
        .arg(format!("--inputdir={}", suite.input.display()))
        .arg(format!("--outputdir={}", output.display()))
        .arg(format!("--dlpath={}", suite.libraries.display()))
        .arg(format!("--bindir={}", machine.postgres_bin.display()))
        .args(["--host=127.0.0.1", "--user=postgres", &format!("--port={port}")])
        .args(tests)
        .env_clear()
        .env("PATH", path)
        .env("PGPASSWORD", cluster.superuser_password())
        .env("SWITCHYARD_MEMBERS", members.join(" "))
        .current_dir(output)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("start pg_regress")?;
    let Ok(status) = tokio::time::timeout(LIMIT, child.wait()).await else {
        processes::signal(&processes::working_in(&machine.account, output)?, processes::Signal::KILL)?;
        bail!("not done within {LIMIT:?}:\n{}", tail(output));
    };
    // 1: some outputs aren't the expected ones, which is for the comparison to judge.
    if !matches!(status?.code(), Some(0 | 1)) {
        bail!("pg_regress gave up:\n{}", tail(output));
    }
    Ok(output.join("results"))
}

/// The last lines of what `pg_regress` said.
fn tail(output: &Path) -> String {
    let log = std::fs::read_to_string(output.join("pg_regress.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
