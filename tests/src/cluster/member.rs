//! One member: its Patroni, its PostgreSQL, and the folder that both work in.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio_postgres::SimpleQueryMessage;

use super::{Role, disk};
use crate::machine::Machine;
use crate::processes;
use crate::psql::{Finished, psql};
use crate::wait::eventually;

/// A connection that isn't there by then counts as refused.
const CONNECT: Duration = Duration::from_secs(5);
/// Patroni's orderly end takes a checkpoint.
const STOP: Duration = Duration::from_secs(60);
const KILL: Duration = Duration::from_secs(10);

/// A handle; clones are the same member.
#[derive(Clone, Debug)]
pub struct Member(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    port: u16,
    rest_port: u16,
    folder: PathBuf,
    log: PathBuf,
    /// What is in the member's own configuration file.
    settings: Mutex<Value>,
    /// Of the disk that its data is on, in MiB, where that is limited.
    disk: Option<u32>,
    patroni: Mutex<Option<Child>>,
    roles: Arc<Vec<Role>>,
}

impl Member {
    #[expect(clippy::too_many_arguments, reason = "each is one of its fields")]
    pub(super) fn new(
        name: String,
        port: u16,
        rest_port: u16,
        folder: PathBuf,
        log: PathBuf,
        settings: Value,
        disk: Option<u32>,
        roles: Arc<Vec<Role>>,
    ) -> Member {
        let (settings, patroni) = (Mutex::new(settings), Mutex::new(None));
        Member(Arc::new(Inner { name, port, rest_port, folder, log, settings, disk, patroni, roles }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// PostgreSQL's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// The address of its Patroni's REST API, without a slash at its end.
    pub fn rest_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.0.rest_port)
    }

    /// Its configuration, data and logs.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// PostgreSQL's data.
    pub(super) fn data(&self) -> PathBuf {
        self.0.folder.join("data")
    }

    /// Where Patroni and PostgreSQL write their messages.
    pub fn log(&self) -> &Path {
        &self.0.log
    }

    /// A connection string for the superuser, to the database `postgres`.
    pub fn dsn(&self) -> String {
        self.dsn_for("postgres")
    }

    /// A connection string for one of the roles made at the start; for another user without a password.
    pub fn dsn_for(&self, user: &str) -> String {
        super::dsn(&self.0.roles, user, self.0.port)
    }

    /// Connects as superuser.
    pub async fn connect(&self) -> anyhow::Result<tokio_postgres::Client> {
        connect(&self.dsn()).await.with_context(|| format!("connect to {}", self.name()))
    }

    /// The first column of the first row, as text, asked by the superuser.
    pub async fn ask(&self, query: &str) -> anyhow::Result<String> {
        let client = self.connect().await?;
        let messages = client.simple_query(query).await.with_context(|| format!("{}: {query}", self.name()))?;
        first_value(&messages).map(str::to_owned).with_context(|| format!("{}: {query}: no row, or NULL", self.name()))
    }

    /// Runs psql as superuser.
    pub async fn psql(&self, arguments: &[&str]) -> anyhow::Result<Finished> {
        psql(&self.dsn(), arguments).await
    }

    pub async fn is_in_recovery(&self) -> anyhow::Result<bool> {
        Ok(self.ask("SELECT pg_is_in_recovery()").await? == "t")
    }

    /// Waits until it has replayed up to `lsn` (PostgreSQL's text form).
    pub async fn replayed(&self, lsn: &str, limit: Duration) -> anyhow::Result<()> {
        let query = format!("SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn");
        eventually(limit, &format!("{} replays {lsn}", self.name()), || async { Ok((self.ask(&query).await? == "t").then_some(())) }).await
    }

    /// The processes of its Patroni and its PostgreSQL.
    pub fn processes(&self) -> anyhow::Result<Vec<Pid>> {
        processes::working_in(&Machine::look()?.account, &self.0.folder)
    }

    /// SIGSTOP to all of it: connections stay open, nothing answers.
    pub async fn pause(&self) -> anyhow::Result<()> {
        processes::stop(&self.processes()?).await
    }

    /// SIGCONT: ends [`pause`](Member::pause).
    pub fn resume(&self) -> anyhow::Result<()> {
        processes::signal(&self.processes()?, Signal::CONT)
    }

    /// `kill -9` of its Patroni and all of its PostgreSQL. Nobody is told; its keys stay in etcd until their lease ends.
    pub async fn kill(&self) -> anyhow::Result<()> {
        eventually(KILL, &format!("{} is dead", self.name()), || async {
            let alive = self.processes()?;
            processes::signal(&alive, Signal::KILL)?;
            Ok(alive.is_empty().then_some(()))
        })
        .await?;
        self.reap()
    }

    /// A smart shutdown of its PostgreSQL: sessions go on, Patroni's among them, and nobody new gets in.
    pub fn let_nobody_in(&self) -> anyhow::Result<()> {
        let file = self.data().join("postmaster.pid");
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let pid = text.lines().next().and_then(|line| line.parse().ok()).and_then(Pid::from_raw);
        processes::signal(&[pid.with_context(|| format!("no process in {}", file.display()))?], Signal::TERM)
    }

    /// `kill -9` of its Patroni alone: PostgreSQL goes on, and nobody renews the leader key.
    pub fn kill_patroni(&self) -> anyhow::Result<()> {
        processes::signal(self.patroni_pid().as_slice(), Signal::KILL)?;
        self.reap()
    }

    /// Starts its Patroni with changed settings.
    /// As [`launch`](Member::launch), with etcd at another address, such as that of a line that can be cut.
    pub(super) fn launch_by(&self, etcd: &str) -> anyhow::Result<()> {
        // Without `use_proxies` Patroni asks etcd for its own address, and goes there.
        self.launch_with(|settings| settings["etcd3"] = json!({ "hosts": etcd, "use_proxies": true }))
    }

    pub(super) fn launch_with(&self, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
        change(&mut self.0.settings.lock().unwrap_or_else(PoisonError::into_inner));
        self.launch()
    }

    pub(super) fn launch(&self) -> anyhow::Result<()> {
        let machine = Machine::look()?;
        let mut patroni = self.patroni();
        if let Some(child) = patroni.as_mut()
            && child.try_wait()?.is_none()
        {
            bail!("{} is running", self.name());
        }
        self.write_settings()?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).context("a member's log")?;
        let path = std::env::join_paths([machine.postgres_bin.as_path(), Path::new("/usr/bin"), Path::new("/bin")])?;
        let mut command = match self.0.disk {
            Some(mebibytes) => disk::command(&machine.patroni, &self.data(), mebibytes)?,
            None => machine.account.command(&machine.patroni),
        };
        let child = command
            .arg("patroni")
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.folder())
            .env("LANG", "C.UTF-8")
            .current_dir(self.folder())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start Patroni")?;
        *patroni = Some(child);
        Ok(())
    }

    /// SIGTERM to its Patroni, which stops PostgreSQL and gives back the leader key; waits for that.
    pub(super) async fn terminate(&self) -> anyhow::Result<()> {
        processes::signal(self.patroni_pid().as_slice(), Signal::TERM)?;
        eventually(STOP, &format!("{} stops", self.name()), || async {
            let ended = self.patroni().as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            Ok((ended && self.processes()?.is_empty()).then_some(()))
        })
        .await?;
        self.reap()
    }

    /// Changes its own configuration file and lets Patroni read it again.
    pub(super) fn reconfigure(&self, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
        change(&mut self.0.settings.lock().unwrap_or_else(PoisonError::into_inner));
        self.write_settings()?;
        processes::signal(self.patroni_pid().as_slice(), Signal::HUP)
    }

    /// JSON is YAML.
    fn write_settings(&self) -> anyhow::Result<()> {
        let settings = self.0.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.folder().join("patroni");
        let (new, path) = (folder.join("member.new"), folder.join("member.yml"));
        std::fs::write(&new, serde_json::to_string_pretty(&*settings)?).with_context(|| format!("write {}", new.display()))?;
        Machine::look()?.account.own(&new)?;
        std::fs::rename(&new, &path).with_context(|| format!("write {}", path.display()))
    }

    fn reap(&self) -> anyhow::Result<()> {
        if let Some(mut child) = self.patroni().take() {
            child.wait().context("wait for Patroni")?;
        }
        Ok(())
    }

    pub(super) fn patroni_pid(&self) -> Option<Pid> {
        self.patroni().as_ref().and_then(|child| Pid::from_raw(child.id() as i32))
    }

    fn patroni(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.0.patroni.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Member {
    fn eq(&self, other: &Member) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Connects and drives the connection in a task of its own, which ends with the client.
pub async fn connect(dsn: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) =
        tokio::time::timeout(CONNECT, tokio_postgres::connect(dsn, tokio_postgres::NoTls)).await.context("no answer")??;
    tokio::spawn(connection);
    Ok(client)
}

/// The first column of the first row that has one, as text, of an answer by the simple protocol.
pub fn first_value(messages: &[SimpleQueryMessage]) -> Option<&str> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}

/// The first column of all rows, as text, by the simple protocol.
pub async fn column(client: &tokio_postgres::Client, sql: &str) -> anyhow::Result<Vec<String>> {
    let messages = client.simple_query(sql).await.with_context(|| sql.to_owned())?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    Ok(rows.collect())
}

/// The member's own part of the configuration.
pub(super) fn settings(name: &str, port: u16, rest_port: u16, folder: &Path, common: Value) -> anyhow::Result<Value> {
    let mut settings = json!({
        "name": name,
        "restapi": { "listen": format!("127.0.0.1:{rest_port}"), "connect_address": format!("127.0.0.1:{rest_port}") },
        "postgresql": {
            "listen": format!("127.0.0.1:{port}"),
            "connect_address": format!("127.0.0.1:{port}"),
            "bin_dir": Machine::look()?.postgres_bin,
            "data_dir": folder.join("data"),
            "pgpass": folder.join("pgpass"),
        },
    });
    merge(&mut settings, common);
    Ok(settings)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value))
        }
        (into, from) => *into = from,
    }
}
