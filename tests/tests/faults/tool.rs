//! The operators' tool that shows what clients see of a failover, and whether its figures are right.

use std::process::Output;

use anyhow::ensure;
use switchyard_tests::{Cluster, Result, Router};

use super::whole;

pub(crate) async fn figures(cluster: &Cluster, router: &Router) -> Result {
    whole(cluster, router).await?;
    let picture = cluster.home().path().join("failover.svg");
    let svg = picture.to_string_lossy().into_owned();
    let said = run(&router.rw_dsn("app"), Some(&router.ro_dsn("app")), &["--svg", &svg], &["true"]).await?;
    ensure!(said.status.code() == Some(0), "{}", text(&said));
    for line in ["writers' errors   0", "readers' errors   0", "acknowledged writes lost   0", "connections made again   0"] {
        ensure!(text(&said).contains(line), "no {line:?} in {}", text(&said));
    }
    ensure!(std::fs::read_to_string(&picture)?.contains("<svg"));

    // Clients of a server itself, whose connections are ended twice.
    let leader = cluster.leader().await?;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'";
    let superuser = leader.dsn();
    let command = format!("for i in 1 2; do psql -XAtc \"{end}\" '{superuser}'; sleep 1; done");
    let said = run(&leader.dsn_for("app"), None, &[], &["sh", "-c", &command]).await?;
    ensure!(said.status.code() == Some(1), "{}", text(&said));
    let again = figure(&text(&said), "connections made again");
    // The one that looks into the table may be among them.
    ensure!(again.is_some_and(|again| (12..=18).contains(&again)), "{again:?} in {}", text(&said));
    ensure!(figure(&text(&said), "acknowledged writes lost") == Some(0), "{}", text(&said));
    // Whoever had nothing under way at that moment finds its connection closed.
    ensure!(["57P01", "connection closed"].iter().any(|told| text(&said).contains(told)), "{}", text(&said));

    let said = run("host=127.0.0.1 port=1 user=nobody", None, &[], &["true"]).await?;
    ensure!(said.status.code() == Some(2), "{}", text(&said));
    Ok(())
}

async fn run(write: &str, read: Option<&str>, options: &[&str], command: &[&str]) -> Result<Output> {
    let mut tool = tokio::process::Command::new(env!("CARGO_BIN_EXE_failover"));
    tool.args(["--write", write, "--writers", "4", "--readers", "4", "--before", "1", "--after", "1"]);
    tool.args(read.iter().flat_map(|read| ["--read", read])).args(options).arg("--").args(command);
    Ok(tool.kill_on_drop(true).output().await?)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The number behind these words.
fn figure(text: &str, words: &str) -> Option<u64> {
    text.lines().find_map(|line| line.trim().strip_prefix(words)?.trim().parse().ok())
}
