//! A Patroni cluster: started, asked, and broken on purpose.

mod disk;
mod faults;
mod member;
mod options;
mod steps;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

pub use disk::{Filler, limits_disks};
pub use member::{Member, column, connect, first_value};
pub use options::{Options, Synchronous};
pub use steps::{Seen, Steps};

use crate::etcd::Etcd;
use crate::home::{self, Home};
use crate::machine::{Machine, checkout};
use crate::ports::{self, Ports};
use crate::wait::eventually;

/// From nothing to a leader that takes writes, and for each replica from nothing to streaming: mostly initdb and pg_basebackup.
const START: Duration = Duration::from_secs(90);
/// Patroni's ttl, and what a promotion takes.
const NEW_LEADER: Duration = Duration::from_secs(60);

/// A role made at the start.
#[derive(Clone, Debug)]
pub struct Role {
    pub name: String,
    pub password: String,
}

/// A running cluster. Dropping it ends every process of it.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    etcd: Etcd,
    members: RwLock<Vec<Member>>,
    roles: Arc<Vec<Role>>,
    ports: Ports,
    // Last, so that nothing above is used any more when the processes are ended.
    home: Home,
}

impl Cluster {
    /// Starts etcd and the members. Done when the leader takes writes, every role is there, and every other member streams and has
    /// replayed all of it.
    pub async fn start(options: Options) -> anyhow::Result<Cluster> {
        let cluster = Cluster::prepare(options)?;
        cluster.begin().await?;
        Ok(cluster)
    }

    /// The first half of [`start`](Cluster::start): the folder, and the end of what worked in it before. Starts nothing.
    pub fn prepare(options: Options) -> anyhow::Result<Cluster> {
        let home = match options.folder.clone() {
            None => Home::temporary()?,
            Some(folder) => Home::at(folder)?,
        };
        let ports = Ports::new(&home::base()?)?;
        let roles = roles(&options);
        Ok(Cluster { etcd: Etcd::new(&home, &ports)?, options, members: RwLock::default(), roles: Arc::new(roles), ports, home })
    }

    /// The second half of [`start`](Cluster::start).
    pub async fn begin(&self) -> anyhow::Result<()> {
        self.launch().await.map_err(|error| error.context(self.logs()))
    }

    async fn launch(&self) -> anyhow::Result<()> {
        self.etcd.start().await?;
        let first = self.make_member(0)?;
        first.launch()?;
        // Whoever comes first makes the cluster: the others may only start when that is decided.
        let initialize = self.key("initialize");
        eventually(START, "the first member begins", || async { Ok(self.etcd.value(&initialize).await?.map(drop)) }).await?;
        let others: Vec<Member> = (1..self.options.members).map(|index| self.make_member(index)).collect::<Result<_, _>>()?;
        others.iter().try_for_each(Member::launch)?;

        eventually(START, "the first member leads", || async { Ok((self.leader_now().await?).filter(|leader| *leader == first)) }).await?;
        self.make_roles(&first).await.context("make the roles")?;
        for member in &others {
            self.joined(member).await?;
        }
        Ok(())
    }

    pub fn scope(&self) -> &str {
        &self.options.scope
    }

    /// Patroni's `namespace`.
    pub fn namespace(&self) -> &str {
        "/service"
    }

    /// `http://127.0.0.1:port`
    pub fn etcd_endpoint(&self) -> String {
        self.etcd.endpoint()
    }

    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    pub fn superuser_password(&self) -> &str {
        &self.options.superuser_password
    }

    /// The roles made at the start, with their passwords.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// The password of a role made at the start.
    pub fn password(&self, user: &str) -> Option<&str> {
        self.roles.iter().find(|role| role.name == user).map(|role| role.password.as_str())
    }

    pub fn members(&self) -> Vec<Member> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The member at that place in the order of their making, from 0. Panics if there is none: a test's mistake.
    pub fn member(&self, index: usize) -> Member {
        self.members().swap_remove(index)
    }

    pub fn named(&self, name: &str) -> Option<Member> {
        self.members().into_iter().find(|member| member.name() == name)
    }

    /// The member that holds the leader key and says itself that it is not in recovery; waits for one.
    pub async fn leader(&self) -> anyhow::Result<Member> {
        eventually(NEW_LEADER, "there is a leader", || self.leader_now()).await
    }

    /// Like [`leader`](Cluster::leader), but another one than `old`.
    pub async fn new_leader(&self, old: &Member) -> anyhow::Result<Member> {
        eventually(NEW_LEADER, "there is another leader", || async { Ok(self.leader_now().await?.filter(|leader| leader != old)) }).await
    }

    /// Every member but the leader.
    pub async fn replicas(&self) -> anyhow::Result<Vec<Member>> {
        let leader = self.leader().await?;
        Ok(self.members().into_iter().filter(|member| *member != leader).collect())
    }

    /// The name in the leader key, whatever that member says.
    pub async fn leader_key(&self) -> anyhow::Result<Option<String>> {
        self.etcd.value(&self.key("leader")).await
    }

    /// The value of one of the cluster's keys, such as `leader` or `members/node1`.
    pub async fn key_value(&self, key: &str) -> anyhow::Result<Option<String>> {
        self.etcd.value(&self.key(key)).await
    }

    /// Waits until every member has replayed what the leader has written so far.
    pub async fn settled(&self) -> anyhow::Result<()> {
        let leader = self.leader().await?;
        let lsn = leader.ask("SELECT pg_current_wal_lsn()").await?;
        for member in self.members() {
            member.replayed(&lsn, START).await?;
        }
        Ok(())
    }

    /// A folder for the files of something that runs beside the cluster and ends with it, and free ports for it.
    pub fn home(&self) -> &Home {
        &self.home
    }

    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The ends of all logs of this run, the routers' among them.
    pub fn logs(&self) -> String {
        self.home.logs()
    }

    /// The full path in etcd of one of the cluster's keys, such as `leader`.
    pub fn key(&self, key: &str) -> String {
        format!("{}/{}/{key}", self.namespace(), self.scope())
    }

    pub async fn leader_now(&self) -> anyhow::Result<Option<Member>> {
        let Some(name) = self.leader_key().await? else { return Ok(None) };
        let member = self.named(&name).with_context(|| format!("{name} isn't one of ours"))?;
        Ok((!member.is_in_recovery().await?).then_some(member))
    }

    /// Waits until a replica streams on the leader's timeline, has replayed what the leader had written before, and is announced as running.
    async fn joined(&self, member: &Member) -> anyhow::Result<()> {
        let key = format!("members/{}", member.name());
        eventually(START, &format!("{} streams", member.name()), || async {
            let streams = member.ask("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'").await?;
            let announced: Value = serde_json::from_str(&self.key_value(&key).await?.unwrap_or_default())?;
            Ok((streams == "1" && announced["state"] == "running").then_some(()))
        })
        .await?;
        let lsn = self.leader().await?.ask("SELECT pg_current_wal_lsn()").await?;
        member.replayed(&lsn, START).await
    }

    fn make_member(&self, index: usize) -> anyhow::Result<Member> {
        let name = self.options.name(index);
        let port = match self.options.ports.get(index) {
            Some(&port) if ports::is_free(port) => port,
            _ => self.ports.take()?,
        };
        let rest_port = self.ports.take()?;
        let folder = self.home.folder(&name)?;
        let account = &Machine::look()?.account;
        let patroni = self.home.folder(&format!("{name}/patroni"))?;
        let template = patroni.join("cluster.yml");
        std::fs::copy(template_path(), &template).with_context(|| format!("copy {}", template_path().display()))?;
        account.own(&template)?;
        let settings = member::settings(&name, port, rest_port, &folder, self.common_settings(&name))?;
        let log = self.home.path().join(format!("{name}.log"));
        let disk = self.options.disks.get(&name).copied();
        let member = Member::new(name, port, rest_port, folder, log, settings, disk, self.roles.clone());
        self.members.write().unwrap_or_else(PoisonError::into_inner).push(member.clone());
        Ok(member)
    }

    /// What the options say about a member, in Patroni's words.
    fn common_settings(&self, name: &str) -> Value {
        let options = &self.options;
        let password = |user: &str| json!({ "username": user, "password": self.password(user) });
        let mut parameters = options.parameters.clone();
        // Data that is thrown away at the end needn't survive a power cut; kill -9 loses nothing that was written.
        parameters.entry("fsync").or_insert_with(|| json!("off"));
        // In files of the data folder, so that kill -9 leaves nothing behind in /dev/shm.
        parameters.entry("dynamic_shared_memory_type").or_insert_with(|| json!("mmap"));
        let mut settings = json!({
            "scope": options.scope,
            "namespace": self.namespace(),
            "etcd3": { "hosts": self.etcd.address() },
            "tags": options.tags.get(name).cloned().unwrap_or_else(|| json!({})),
            "bootstrap": {
                "dcs": {
                    "synchronous_mode": options.synchronous != Synchronous::Off,
                    "synchronous_mode_strict": options.synchronous == Synchronous::Strict,
                    "synchronous_node_count": if options.synchronous == Synchronous::All { options.members.max(2) - 1 } else { 1 },
                    "postgresql": { "parameters": parameters },
                },
                "initdb": [{ "encoding": "UTF8" }, { "locale": "C.UTF-8" }, "data-checksums", "no-sync"],
            },
            "postgresql": {
                "authentication": { "superuser": password("postgres"), "replication": password("replicator"), "rewind": password("rewind") },
                "basebackup": [{ "checkpoint": "fast" }, "no-sync"],
            },
        });
        if !options.hba.is_empty() {
            settings["postgresql"]["pg_hba"] = options.hba.iter().map(String::as_str).chain(HBA).collect();
        }
        settings
    }

    async fn make_roles(&self, leader: &Member) -> anyhow::Result<()> {
        let client = leader.connect().await?;
        for role in self.roles.iter() {
            let (name, password) = (&role.name, role.password.replace('\'', "''"));
            let (attributes, encryption) = match name.as_str() {
                // Patroni made these.
                "postgres" | "replicator" | "rewind" => continue,
                "switchyard" => ("SUPERUSER", "scram-sha-256"),
                "appmd5" => ("", "md5"),
                _ => ("", "scram-sha-256"),
            };
            let statement =
                format!("SET password_encryption = '{encryption}'; CREATE ROLE {name} LOGIN {attributes} PASSWORD '{password}'; RESET ALL");
            client.batch_execute(&statement).await.with_context(|| name.clone())?;
        }
        // As before PostgreSQL 15: ordinary users make their tables here.
        client.batch_execute("GRANT CREATE ON SCHEMA public TO PUBLIC").await?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// The lines of `patroni/patroni.yml`: lists are replaced, not joined, when Patroni merges its files.
const HBA: [&str; 3] = [
    "host replication replicator 127.0.0.1/32 scram-sha-256",
    "host all appmd5 127.0.0.1/32 md5",
    "host all all 127.0.0.1/32 scram-sha-256",
];

/// The superuser; Patroni's two; the router's; an ordinary user; and one with an md5 password.
fn roles(options: &Options) -> Vec<Role> {
    let role = |name: &str, password: &str| Role { name: name.to_owned(), password: password.to_owned() };
    vec![
        role("postgres", &options.superuser_password),
        role("replicator", "replicator-secret"),
        role("rewind", "rewind-secret"),
        role("switchyard", "switchyard-secret"),
        role("app", "app-secret"),
        role("appmd5", "appmd5-secret"),
    ]
}

/// A connection string to the database `postgres` on loopback.
pub(crate) fn dsn(roles: &[Role], user: &str, port: u16) -> String {
    let password = roles.iter().find(|role| role.name == user).map(|role| format!(":{}", percent_encoded(&role.password)));
    format!("postgresql://{user}{}@127.0.0.1:{port}/postgres", password.unwrap_or_default())
}

fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn template_path() -> PathBuf {
    checkout().join("patroni/patroni.yml")
}
