//! One program, run directly and by the router, and what it printed compared.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail, ensure};
use switchyard_tests::Result;
use switchyard_tests::machine::Machine;
use switchyard_tests::psql::Finished;

use crate::Yard;
use crate::programs::script;

/// The different lines of a comparison that are shown.
const SHOWN: usize = 40;

/// To which of the two a program connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Routed,
}

pub(crate) const WAYS: [Way; 2] = [Way::Direct, Way::Routed];

impl Yard {
    /// A connection string for a role made by the harness.
    pub(crate) async fn dsn(&self, way: Way, user: &str, database: &str) -> Result<String> {
        let dsn = match way {
            Way::Direct => self.cluster.leader().await?.dsn_for(user),
            Way::Routed => self.router.rw_dsn(user),
        };
        Ok(format!("{}/{database}", dsn.strip_suffix("/postgres").context("a URL that ends in /postgres")?))
    }

    /// An empty database of `app`'s, instead of the one of that name. Done when the replicas have it.
    pub(crate) async fn new_database(&self, name: &str) -> Result {
        let leader = self.cluster.leader().await?.connect().await?;
        for sql in [format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"), format!("CREATE DATABASE {name} OWNER app")] {
            leader.simple_query(&sql).await.with_context(|| sql.clone())?;
        }
        self.cluster.settled().await
    }

    /// A new folder that goes with the cluster.
    pub(crate) fn scratch(&self) -> Result<PathBuf> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        self.cluster.home().private_folder(&format!("client{}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// What is different for no other reason than that a router is there: ports.
    async fn without_ports(&self, text: &str) -> Result<String> {
        let leader = self.cluster.leader().await?.port();
        let text = text.replace(&leader.to_string(), "PORT").replace(&self.router.rw_port().to_string(), "PORT");
        Ok(text.lines().map(|line| stable(line) + "\n").collect())
    }

    /// Runs a client's script both ways, each in a new database, and compares what it printed. It must say `done` at its end.
    async fn twice(&self, name: &str, command: impl Fn(&str) -> Result<(PathBuf, Vec<String>, Vec<(String, String)>)>) -> Result {
        let mut printed = Vec::new();
        for way in WAYS {
            let database = format!("clients_{name}");
            self.new_database(&database).await?;
            let (program, arguments, variables) = command(&self.dsn(way, "app", &database).await?)?;
            let finished = run(&program, &arguments, &variables, &self.scratch()?).await?;
            let all = format!("{}--- standard error\n{}", finished.stdout, finished.stderr);
            ensure!(finished.ok() && finished.stdout.contains("done"), "{way:?}: exit status {:?}\n{all}", finished.status);
            printed.push(self.without_ports(&all).await?);
        }
        same(name, &printed[0], &printed[1])
    }
}

/// A line without what differs from run to run: the pid in psql's notifications, and when `\watch` looked.
fn stable(line: &str) -> String {
    if let Some((before, pid)) = line.split_once("server process with PID ") {
        let digits = pid.chars().take_while(char::is_ascii_digit).count();
        return format!("{before}server process with PID ...{}", &pid[digits..]);
    }
    if line.contains("(every ") { "(every ...)".to_owned() } else { line.to_owned() }
}

/// Fails with the first lines that differ. Leaves both texts beside the test program.
pub(crate) fn same(name: &str, direct: &str, routed: &str) -> Result {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(format!("{name}.direct")), direct)?;
    std::fs::write(folder.join(format!("{name}.routed")), routed)?;
    if direct == routed {
        return Ok(());
    }
    let diff = std::process::Command::new("diff")
        .args(["-U2", "--label", "directly", "--label", "by the router"])
        .args([folder.join(format!("{name}.direct")), folder.join(format!("{name}.routed"))])
        .output()
        .context("diff")?;
    let diff = String::from_utf8_lossy(&diff.stdout).into_owned();
    let shown: Vec<&str> = diff.lines().take(SHOWN).collect();
    bail!("the outputs differ ({} of {} lines of diff shown)\n{}", shown.len(), diff.lines().count(), shown.join("\n"))
}

/// Runs a program to its end, in a folder of its own and without this user's variables.
pub(crate) async fn run(program: &Path, arguments: &[String], variables: &[(String, String)], folder: &Path) -> Result<Finished> {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("start {}", program.display()))?;
    Ok(Finished {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: output.status.code(),
    })
}

/// One of PostgreSQL's programs.
pub(crate) async fn postgres_program(name: &str, arguments: &[&str], folder: &Path) -> Result<Finished> {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    run(&Machine::look()?.postgres_program(name), &arguments, &[], folder).await
}

pub(crate) async fn psql(yard: &Yard) -> Result {
    let text = script("psql/script.sql")?;
    let command = |dsn: &str| {
        // By a name without a path: psql says it in each error.
        let line = format!("cp '{}' script.sql && exec '{}' -X -d '{dsn}' -f script.sql", text.display(), psql_program()?);
        Ok((PathBuf::from("/bin/sh"), vec!["-c".to_owned(), line], Vec::new()))
    };
    yard.twice("psql", command).await
}

fn psql_program() -> Result<String> {
    Ok(Machine::look()?.postgres_program("psql").display().to_string())
}

pub(crate) async fn python(yard: &Yard, name: &str) -> Result {
    let text = script(&format!("{name}/script.py"))?;
    let command =
        |dsn: &str| Ok((yard.programs.python.clone(), vec!["-I".to_owned(), text.display().to_string(), dsn.to_owned()], Vec::new()));
    yard.twice(name, command).await
}

pub(crate) async fn node(yard: &Yard) -> Result {
    let text = script("node/script.js")?;
    let command = |dsn: &str| {
        let modules = ("NODE_PATH".to_owned(), yard.programs.node_modules.display().to_string());
        // They begin with a process id.
        let no_warnings = ("NODE_NO_WARNINGS".to_owned(), "1".to_owned());
        Ok((yard.programs.node.clone(), vec![text.display().to_string(), dsn.to_owned()], vec![modules, no_warnings]))
    };
    yard.twice("node", command).await
}

pub(crate) async fn java(yard: &Yard) -> Result {
    let text = script("jdbc/Script.java")?;
    let password = yard.cluster.password("app").context("app has a password")?;
    let command = |dsn: &str| {
        let place = dsn.split_once('@').context("a URL with a password")?.1;
        let jdbc = yard.programs.jdbc.display().to_string();
        // Short runs: no time for its best compiler.
        let words = ["-XX:TieredStopAtLevel=1", "-Duser.language=en", "-cp", &jdbc, &text.display().to_string()];
        let words = words.into_iter().map(str::to_owned);
        let arguments = words.chain([format!("jdbc:postgresql://{place}"), "app".to_owned(), password.to_owned()]).collect();
        Ok((yard.programs.java.clone(), arguments, Vec::new()))
    };
    yard.twice("jdbc", command).await
}
