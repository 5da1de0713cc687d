//! Real etcd and real PostgreSQL, with Patroni's keys put by hand: what the handle shows, step by step.

mod common;

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use etcd_client::{Certificate, Client, CompactionOptions, ConnectOptions, Permission, PutOptions, TlsOptions};
use rustix::process::{Pid, Signal};
use switchyard_config::{Config, Secret, ServerTls, SslMode, StaticMember};
use switchyard_core::topology::{ClusterState, Out, Role, Topology};
use switchyard_health::Health;
use tempfile::TempDir;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

const LONG: Duration = Duration::from_secs(30);

/// A process that ends with the test, by SIGQUIT: PostgreSQL's immediate shutdown takes its children and shared memory along.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone, maybe.
        let _ = rustix::process::kill_process(Pid::from_child(&self.0), Signal::QUIT);
        let _ = self.0.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn log_file(folder: &Path, name: &str) -> anyhow::Result<Stdio> {
    Ok(OpenOptions::new().create(true).append(true).open(folder.join(name))?.into())
}

/// Until `look` finds something, or `LONG` is over.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Etcd {
    /// `http`, or `https` with the certificate in its folder.
    scheme: &'static str,
    client_port: u16,
    peer_port: u16,
    process: Option<Process>,
    folder: TempDir,
}

impl Etcd {
    async fn start() -> anyhow::Result<Etcd> {
        let mut etcd = Etcd { scheme: "http", folder: TempDir::new()?, client_port: free_port()?, peer_port: free_port()?, process: None };
        etcd.restart().await?;
        Ok(etcd)
    }

    async fn start_with_tls() -> anyhow::Result<Etcd> {
        let mut etcd = Etcd { scheme: "https", folder: TempDir::new()?, client_port: free_port()?, peer_port: free_port()?, process: None };
        make_certificate(etcd.folder.path())?;
        etcd.restart().await?;
        Ok(etcd)
    }

    /// Patroni's keys may be read by `router`, whose password is `secret`.
    async fn enable_authentication(&self) -> anyhow::Result<()> {
        let mut client = self.client().await?;
        client.role_add("reader").await?;
        client.role_grant_permission("reader", Permission::read("/service/main/").with_prefix()).await?;
        client.user_add("router", "secret", None).await?;
        client.user_grant_role("router", "reader").await?;
        client.user_add("root", "root", None).await?;
        client.user_grant_role("root", "root").await?;
        client.auth_enable().await?;
        Ok(())
    }

    fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.client_port)
    }

    fn kill(&mut self) {
        self.process = None;
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let tls: &[&str] = if self.scheme == "https" { &["--cert-file", "cert.pem", "--key-file", "key.pem"] } else { &[] };
        let child = Command::new("etcd")
            .args(tls)
            .args(["--name", "e", "--data-dir", "data", "--logger", "zap"])
            .args(["--listen-client-urls", &self.endpoint(), "--advertise-client-urls", &self.endpoint()])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("e={peer}")])
            .current_dir(self.folder.path())
            .stdout(log_file(self.folder.path(), "log")?)
            .stderr(log_file(self.folder.path(), "log")?)
            .spawn()
            .context("start etcd")?;
        self.process = Some(Process(child));
        eventually("etcd answers", async || self.client().await.ok()?.get("x", None).await.ok()).await?;
        Ok(())
    }

    async fn client(&self) -> anyhow::Result<Client> {
        let mut options = ConnectOptions::new();
        if self.scheme == "https" {
            let ca = std::fs::read(self.folder.path().join("cert.pem"))?;
            options = options.with_tls(TlsOptions::new().ca_certificate(Certificate::from_pem(ca)));
        }
        Ok(Client::connect([self.endpoint()], Some(options)).await?)
    }

    async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> anyhow::Result<()> {
        self.client().await?.put(format!("/service/main/{key}"), value, None).await?;
        Ok(())
    }

    async fn delete(&self, key: &str) -> anyhow::Result<()> {
        self.client().await?.delete(format!("/service/main/{key}"), None).await?;
        Ok(())
    }

    /// Puts the leader key as Patroni does, bound to a lease.
    async fn put_leader(&self, name: &str, ttl_seconds: i64) -> anyhow::Result<()> {
        let mut client = self.client().await?;
        let lease = client.lease_grant(ttl_seconds, None).await?.id();
        client.put("/service/main/leader", name, Some(PutOptions::new().with_lease(lease))).await?;
        Ok(())
    }

    async fn announce(&self, name: &str, port: u16, role: &str) -> anyhow::Result<()> {
        let value = format!(
            r#"{{"conn_url":"postgres://127.0.0.1:{port}/postgres","api_url":"http://127.0.0.1:1/patroni","state":"running","role":"{role}","version":"4.1.0","timeline":1}}"#
        );
        self.put(&format!("members/{name}"), value).await
    }

    fn config(&self) -> anyhow::Result<Config> {
        let mut config = common::config();
        // The first endpoint answers nothing: the second must do.
        config.etcd.endpoints = vec![format!("http://127.0.0.1:{}", free_port()?), self.endpoint()];
        Ok(config)
    }
}

/// A certificate for 127.0.0.1 that vouches for itself: `cert.pem` and `key.pem` in `folder`.
fn make_certificate(folder: &Path) -> anyhow::Result<()> {
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder);
    run(openssl)
}

/// PostgreSQL's programs, newest version first.
fn bin() -> anyhow::Result<PathBuf> {
    let mut versions: Vec<PathBuf> =
        std::fs::read_dir("/usr/lib/postgresql")?.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    versions.sort();
    versions.pop().context("PostgreSQL is not installed")
}

/// PostgreSQL refuses to run as root.
fn command(program: &str) -> anyhow::Result<Command> {
    let program = if program == "sh" { program.into() } else { bin()?.join(program) };
    let root = Command::new("id").arg("-u").output()?.stdout == b"0\n";
    let mut command = if root { Command::new("setpriv") } else { Command::new(&program) };
    if root {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]).arg(&program);
    }
    command.env_remove("PGDATA").env("LC_ALL", "C").current_dir("/");
    Ok(command)
}

fn run(mut command: Command) -> anyhow::Result<()> {
    let done = command.output()?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Its process ends before its folder goes.
struct Postgres {
    port: u16,
    _process: Process,
    _folder: TempDir,
}

impl Postgres {
    /// Takes TLS connections by TCP only, with `scram-sha-256`; the superuser's password is `secret`.
    async fn primary_with_tls(certificate: &Path) -> anyhow::Result<Postgres> {
        Postgres::made_by(|data| {
            let mut initdb = command("initdb")?;
            initdb.args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"]).arg(data);
            run(initdb)?;
            // Made by the account that PostgreSQL runs as, so that the key is its own.
            let mut shell = command("sh")?;
            shell.arg("-c").arg(format!(
                "umask 077; cd {data}; cat {cert}/cert.pem > server.crt; cat {cert}/key.pem > server.key; echo ssl = on >> postgresql.conf; \
                 echo \"ALTER USER postgres PASSWORD 'secret'\" | {bin}/postgres --single -D . postgres >/dev/null; \
                 echo 'hostssl all all 127.0.0.1/32 scram-sha-256' > pg_hba.conf",
                data = data.display(),
                cert = certificate.display(),
                bin = bin()?.display()
            ));
            run(shell)
        })
        .await
    }

    async fn primary() -> anyhow::Result<Postgres> {
        Postgres::made_by(|data| {
            let mut initdb = command("initdb")?;
            initdb.args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"]).arg(data);
            run(initdb)
        })
        .await
    }

    async fn standby(of: &Postgres) -> anyhow::Result<Postgres> {
        Postgres::made_by(|data| {
            let mut backup = command("pg_basebackup")?;
            backup.args(["-h", "127.0.0.1", "-p", &of.port.to_string(), "-U", "postgres", "-R", "-c", "fast", "--no-sync", "-D"]).arg(data);
            run(backup)
        })
        .await
    }

    async fn made_by(make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<Postgres> {
        let folder = TempDir::new()?;
        // The account that PostgreSQL runs as makes its own folder in here.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777))?;
        let data = folder.path().join("data");
        make(&data)?;
        let port = free_port()?;
        let child = command("postgres")?
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", "", "-c", "fsync=off"])
            .stdout(log_file(folder.path(), "log")?)
            .stderr(log_file(folder.path(), "log")?)
            .spawn()?;
        let postgres = Postgres { _folder: folder, port, _process: Process(child) };
        // A refusal is an answer, too: without TLS some take nobody.
        eventually("PostgreSQL answers", async || match postgres.execute("SELECT 1").await {
            Ok(()) => Some(()),
            Err(error) => {
                let code = error.downcast_ref::<tokio_postgres::Error>()?.code()?;
                (*code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION).then_some(())
            }
        })
        .await?;
        Ok(postgres)
    }

    async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        let (client, connection) =
            tokio_postgres::connect(&format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port), NoTls).await?;
        let driver = tokio::spawn(connection);
        client.batch_execute(sql).await?;
        drop(client);
        driver.await??;
        Ok(())
    }
}

/// Waits for a snapshot that `holds`.
async fn until(health: &Health, what: &str, holds: impl Fn(&Topology) -> bool) -> anyhow::Result<Arc<Topology>> {
    let mut sampled = health.sampled();
    let mut changed = health.changed();
    let wait = async {
        loop {
            let topology = health.topology.load_full();
            if holds(&topology) {
                return Ok(topology);
            }
            tokio::select! {
                ended = sampled.changed() => ended?,
                ended = changed.changed() => ended?,
                // Some changes are nobody's business but the page's.
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    };
    tokio::time::timeout(LONG, wait)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("waited too long")))
        .with_context(|| format!("{what}: {:#?}", health.topology.load()))
}

fn led_by(topology: &Topology) -> Option<&str> {
    topology.leader_at(Instant::now()).map(|(_, member)| &*member.name)
}

fn serves(topology: &Topology, name: &str) -> bool {
    topology.member(name).is_some_and(|member| member.out.is_none())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_follows_etcd_and_postgresql() -> anyhow::Result<()> {
    let etcd = Etcd::start().await?;
    let a = Postgres::primary().await?;
    let b = Postgres::standby(&a).await?;
    let c = Postgres::standby(&a).await?;
    etcd.announce("a", a.port, "primary").await?;
    etcd.announce("b", b.port, "replica").await?;
    etcd.put("config", r#"{"ttl":30,"loop_wait":10,"maximum_lag_on_failover":1048576,"postgresql":{"use_slots":true}}"#).await?;
    etcd.put_leader("a", 300).await?;

    let config = Arc::new(etcd.config()?);
    let health = switchyard_health::start(config);
    let topology = until(&health, "a leads, b serves", |t| led_by(t) == Some("a") && serves(t, "b")).await?;
    let leader = topology.leader.clone().context("a leader")?;
    assert_eq!((leader.epoch.0, leader.timeline.0, leader.failsafe, leader.standby_cluster), (1, 1, false, false));
    assert!(leader.valid_until > Instant::now() + Duration::from_secs(250), "the lease's time, not Patroni's ttl");
    let probed = topology.member("a").and_then(|member| member.probed.clone()).context("probed")?;
    assert!(probed.version_num >= 100_000 && probed.clock_offset_ms.abs() < 1_000.0 && !probed.in_recovery, "{probed:?}");
    assert_eq!(topology.member("a").map(|member| member.role), Some(Role::Leader));

    // A sample sent after a write is an upper bound on it, and b gets there.
    a.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n").await?;
    let written_at = Instant::now();
    health.demand();
    let topology = until(&health, "a sample after the write", |t| t.samples.last().is_some_and(|s| s.sent_at > written_at)).await?;
    let needed = topology.samples.iter().find(|sample| sample.sent_at > written_at).context("a sample")?.insert_lsn;
    until(&health, "b replays it", |t| {
        t.member("b").and_then(|member| member.probed.as_ref()).is_some_and(|probed| probed.replay_lsn >= needed)
    })
    .await?;
    until(&health, "b has no lag", |t| t.member("b").is_some_and(|b| b.lag_bytes == Some(0) && b.lag == Some(Duration::ZERO))).await?;

    // Asked for, samples come faster than the 200 ms between idle ones.
    until(&health, "samples come fast", |t| {
        health.demand();
        t.samples.len() >= 5
            && t.samples.windows(2).rev().take(3).all(|pair| pair[1].sent_at - pair[0].sent_at < Duration::from_millis(100))
    })
    .await?;

    // A member that is announced is in rotation within two seconds.
    let announced_at = Instant::now();
    etcd.announce("c", c.port, "replica").await?;
    until(&health, "c serves", |t| serves(t, "c")).await?;
    assert!(announced_at.elapsed() < Duration::from_secs(2), "{:?}", announced_at.elapsed());
    assert!(health.drain("c") && !health.drain("c"));
    until(&health, "c is drained", |t| t.member("c").is_some_and(|c| c.out == Some(Out::Drained))).await?;
    assert!(health.resume("c"));
    until(&health, "c serves again", |t| serves(t, "c")).await?;

    // A probe connection that is cut is opened again, and nobody notices.
    let mut changed = health.changed();
    changed.mark_unchanged();
    let cut_at = Instant::now();
    b.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard probe'").await?;
    until(&health, "b is probed again", |t| {
        t.member("b").and_then(|member| member.probed.as_ref()).is_some_and(|probed| probed.sent_at > cut_at + Duration::from_millis(100))
    })
    .await?;
    assert!(!changed.has_changed()?, "{:#?}", health.topology.load());

    // A switchover: announced, the key goes, comes with another name; the probe decides when it counts.
    etcd.put("failover", r#"{"leader":"a","member":"b"}"#).await?;
    until(&health, "the switchover is seen", |t| t.state == ClusterState::Switching).await?;
    etcd.delete("leader").await?;
    until(&health, "nobody leads", |t| t.leader.is_none() && t.state == ClusterState::Leaderless && t.epoch.0 == 2).await?;
    etcd.put_leader("b", 300).await?;
    etcd.delete("failover").await?;
    let named_at = Instant::now();
    until(&health, "b was probed since", |t| {
        t.member("b").and_then(|member| member.probed.as_ref()).is_some_and(|probed| probed.sent_at > named_at)
    })
    .await?;
    assert_eq!(led_by(&health.topology.load()), None, "b is in recovery");
    b.execute("SELECT pg_promote(false)").await?;
    let topology = until(&health, "b leads", |t| led_by(t) == Some("b")).await?;
    let leader = topology.leader.clone().context("a leader")?;
    assert_eq!((leader.epoch.0, leader.timeline.0), (2, 2));
    assert_eq!(topology.member("a").map(|a| a.out), Some(Some(Out::NotInRecovery)), "the old leader, not fenced yet");

    // c still follows a on timeline 1: it serves up to the fork, which b's own history file tells before etcd does.
    let topology = until(&health, "c's fork is known", |t| t.member("c").is_some_and(|c| c.fork.is_some())).await?;
    assert_eq!(topology.member("c").and_then(|c| c.out), None);
    a.execute("INSERT INTO t VALUES (0)").await?;
    until(&health, "c is past the fork", |t| t.member("c").is_some_and(|c| c.out == Some(Out::WrongTimeline))).await?;

    health.shutdown();
    until_gone(&a).await
}

/// Until no probe is connected any more.
async fn until_gone(postgres: &Postgres) -> anyhow::Result<()> {
    let (client, connection) =
        tokio_postgres::connect(&format!("host=127.0.0.1 port={} user=postgres dbname=postgres", postgres.port), NoTls).await?;
    let driver = tokio::spawn(connection);
    let probes = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'switchyard probe'";
    eventually("the probes are gone", async || client.query(probes, &[]).await.ok().filter(Vec::is_empty)).await?;
    drop(client);
    Ok(driver.await??)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_compacts_and_restarts() -> anyhow::Result<()> {
    let mut etcd = Etcd::start().await?;
    let a = Postgres::primary().await?;
    etcd.announce("a", a.port, "primary").await?;
    etcd.put_leader("a", 300).await?;
    let health = switchyard_health::start(Arc::new(etcd.config()?));
    until(&health, "a leads", |t| led_by(t) == Some("a")).await?;

    // Many changes, all compacted away; and values that make no sense.
    for n in 0..50 {
        etcd.announce("b", 10_000 + n, "replica").await?;
    }
    etcd.put("members/huge", vec![b' '; 65 * 1024]).await?;
    etcd.put("members/odd", "not JSON").await?;
    etcd.put("config", "[]").await?;
    let revision = etcd.client().await?.get("x", None).await?.header().context("header")?.revision();
    etcd.client().await?.compact(revision, Some(CompactionOptions::new().with_physical())).await?;
    etcd.announce("c", 1, "replica").await?;
    let topology = until(&health, "c is there", |t| t.member("c").is_some()).await?;
    let members: Vec<_> = topology.members.iter().map(|member| (&*member.name, member.port)).collect();
    assert_eq!(members, [("a", a.port), ("b", 10_049), ("c", 1)]);
    until(&health, "c can't be reached", |t| t.member("c").is_some_and(|c| c.out == Some(Out::Unreachable) && c.probe_error.is_some()))
        .await?;

    // etcd goes: the lease is known to hold, so the leader stays.
    etcd.kill();
    let topology = until(&health, "etcd is gone", |t| t.etcd_error.is_some()).await?;
    assert_eq!(led_by(&topology), Some("a"));
    assert!(topology.leader.as_ref().is_some_and(|leader| !leader.failsafe));

    // What happened while the router was away is read anew, though the watch's revision is compacted.
    etcd.restart().await?;
    etcd.delete("members/b").await?;
    etcd.announce("d", 2, "replica").await?;
    let revision = etcd.client().await?.get("x", None).await?.header().context("header")?.revision();
    etcd.client().await?.compact(revision, None).await?;
    let topology = until(&health, "d is there", |t| t.member("d").is_some() && t.etcd_error.is_none()).await?;
    assert!(topology.member("b").is_none());
    assert_eq!((led_by(&topology), topology.epoch.0), (Some("a"), 1), "the same leadership");

    // The key was deleted and put again while nobody watched: another epoch.
    etcd.delete("leader").await?;
    etcd.put_leader("a", 300).await?;
    until(&health, "a leads again", |t| led_by(t) == Some("a") && t.epoch.0 == 2).await?;

    // A lease that isn't renewed ends the leader before etcd deletes the key.
    etcd.delete("leader").await?;
    etcd.put_leader("a", 5).await?;
    until(&health, "a leads for a while", |t| led_by(t) == Some("a") && t.epoch.0 == 3).await?;
    until(&health, "a's lease runs out", |t| t.leader.is_none()).await?;
    assert!(etcd.client().await?.get("/service/main/leader", None).await?.count() > 0, "the key is still there");
    health.shutdown();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_the_probes_decide() -> anyhow::Result<()> {
    let a = Postgres::primary().await?;
    let b = Postgres::standby(&a).await?;
    let mut config = common::config();
    config.etcd.endpoints.clear();
    config.cluster.static_members =
        [("a", a.port), ("b", b.port)].map(|(name, port)| StaticMember { name: name.into(), host: "127.0.0.1".into(), port }).into();
    let health = switchyard_health::start(Arc::new(config.clone()));
    until(&health, "a leads, b serves", |t| led_by(t) == Some("a") && serves(t, "b")).await?;
    config.cluster.static_members.pop();
    health.reload(Arc::new(config));
    until(&health, "b is gone", |t| t.members.len() == 1 && led_by(t) == Some("a")).await?;
    health.shutdown();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_asks_for_a_password() -> anyhow::Result<()> {
    let etcd = Etcd::start().await?;
    let a = Postgres::primary().await?;
    etcd.announce("a", a.port, "primary").await?;
    etcd.put_leader("a", 300).await?;
    etcd.enable_authentication().await?;
    let mut config = etcd.config()?;
    let health = switchyard_health::start(Arc::new(config.clone()));
    let topology = until(&health, "the lack of a password is told", |t| t.etcd_error.is_some()).await?;
    assert!(!topology.ready && topology.leader.is_none());

    config.etcd.username = Some("router".into());
    config.etcd.password = Some(Secret::new("secret"));
    health.reload(Arc::new(config));
    let topology = until(&health, "a leads", |t| led_by(t) == Some("a")).await?;
    assert_eq!(topology.etcd_error, None);
    health.shutdown();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_by_tls() -> anyhow::Result<()> {
    let etcd = Etcd::start_with_tls().await?;
    let certificates = TempDir::new()?;
    make_certificate(certificates.path())?;
    std::fs::set_permissions(certificates.path(), PermissionsExt::from_mode(0o755))?;
    std::fs::set_permissions(certificates.path().join("key.pem"), PermissionsExt::from_mode(0o644))?;
    let a = Postgres::primary_with_tls(certificates.path()).await?;
    etcd.announce("a", a.port, "primary").await?;
    etcd.put_leader("a", 300).await?;

    let mut config = etcd.config()?;
    config.etcd.endpoints.remove(0);
    config.etcd.ca_file = Some(etcd.folder.path().join("cert.pem"));
    config.postgres.password = Some(Secret::new("secret"));
    let ca_file = Some(certificates.path().join("cert.pem"));
    let tls = |mode, ca_file| ServerTls { mode, ca_file, cert_file: None, key_file: None };
    for good in [
        tls(SslMode::VerifyFull, ca_file.clone()),
        tls(SslMode::VerifyCa, ca_file.clone()),
        tls(SslMode::Require, None),
        tls(SslMode::Prefer, None),
    ] {
        config.server_tls = good.clone();
        let health = switchyard_health::start(Arc::new(config.clone()));
        until(&health, &format!("a leads by {good:?}"), |t| led_by(t) == Some("a")).await?;
        health.shutdown();
    }
    for bad in [tls(SslMode::Disable, None), tls(SslMode::VerifyFull, config.etcd.ca_file.clone())] {
        config.server_tls = bad.clone();
        let health = switchyard_health::start(Arc::new(config.clone()));
        let topology =
            until(&health, &format!("a can't be probed by {bad:?}"), |t| t.member("a").is_some_and(|member| member.probe_error.is_some()))
                .await?;
        assert_eq!(topology.leader, None);
        health.shutdown();
    }
    Ok(())
}
