//! The router in front of a cluster: the program itself, with a configuration file and a log of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal};

use crate::cluster::{Cluster, Role, connect, dsn};
use crate::http;
use crate::leaks;
use crate::machine;
use crate::wait::eventually;

const READY: Duration = Duration::from_secs(20);
/// Longer than the router's own limit for a shutdown.
const STOP: Duration = Duration::from_secs(60);

/// The router to start. The defaults: the cluster's scope and etcd, role `switchyard`, free ports on 127.0.0.1, its own messages
/// from debug on, and a look at every server connection that a session gives back.
#[derive(Clone, Debug, Default)]
pub struct RouterOptions {
    settings: Vec<(String, toml::Value)>,
    ports: Option<[u16; 3]>,
    both_families: bool,
    skip_ready: bool,
}

impl RouterOptions {
    pub fn new() -> RouterOptions {
        RouterOptions::default()
    }

    /// A key of the configuration file by its full path, such as `.set("routing.max_lag_bytes", 1_000_000)`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> RouterOptions {
        self.settings.push((key.to_owned(), value.into()));
        self
    }

    /// The ports for read/write, read-only and HTTP, instead of any free ones.
    #[must_use]
    pub fn ports(mut self, read_write: u16, read_only: u16, http: u16) -> RouterOptions {
        self.ports = Some([read_write, read_only, http]);
        self
    }

    /// Listen on `::1` too, if this machine has it: clients try that first for `localhost`.
    #[must_use]
    pub fn both_families(mut self) -> RouterOptions {
        self.both_families = true;
        self
    }

    /// Don't wait until it is ready: for clusters that aren't.
    #[must_use]
    pub fn skip_ready(mut self) -> RouterOptions {
        self.skip_ready = true;
        self
    }
}

/// A running router. Dropping it kills it, and panics if it has told of a leak.
#[derive(Debug)]
pub struct Router {
    ports: [u16; 3],
    folder: PathBuf,
    log: PathBuf,
    config: Mutex<toml::Table>,
    child: Mutex<Option<Child>>,
    roles: Arc<Vec<Role>>,
}

impl Router {
    /// Writes its configuration, starts it, and waits until `/readyz` says 200.
    pub async fn start(cluster: &Cluster, options: RouterOptions) -> anyhow::Result<Router> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let name = format!("router{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = cluster.home().private_folder(&name)?;
        let ports = match options.ports {
            Some(ports) => ports,
            None => [cluster.ports().take()?, cluster.ports().take()?, cluster.ports().take()?],
        };
        let mut config = config(cluster, ports, options.both_families)?;
        for (key, value) in options.settings {
            put(&mut config, &key, value)?;
        }
        let log = cluster.home().path().join(format!("{name}.log"));
        let (config, roles) = (Mutex::new(config), Arc::new(cluster.roles().to_vec()));
        let router = Router { ports, folder, log, config, child: Mutex::new(None), roles };
        router.launch()?;
        if !options.skip_ready {
            router.ready().await?;
        }
        Ok(router)
    }

    /// A connection string for the read/write port. Roles made by the harness come with their passwords.
    pub fn rw_dsn(&self, user: &str) -> String {
        dsn(&self.roles, user, self.ports[0])
    }

    /// A connection string for the read-only port.
    pub fn ro_dsn(&self, user: &str) -> String {
        dsn(&self.roles, user, self.ports[1])
    }

    /// Connects to the read/write port.
    pub async fn rw(&self, user: &str) -> anyhow::Result<tokio_postgres::Client> {
        connect(&self.rw_dsn(user)).await.with_context(|| format!("connect to the router's read/write port as {user}"))
    }

    /// Connects to the read-only port.
    pub async fn ro(&self, user: &str) -> anyhow::Result<tokio_postgres::Client> {
        connect(&self.ro_dsn(user)).await.with_context(|| format!("connect to the router's read-only port as {user}"))
    }

    /// Without a slash at its end.
    pub fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[2])
    }

    pub fn rw_port(&self) -> u16 {
        self.ports[0]
    }

    pub fn ro_port(&self) -> u16 {
        self.ports[1]
    }

    /// GET of a path such as `/metrics`.
    pub async fn get(&self, path: &str) -> anyhow::Result<http::Response> {
        http::get(&format!("{}{path}", self.http_url())).await
    }

    /// Runs one of the program's commands that tell a running router to do something, such as `["drain", "node2"]`.
    pub async fn order(&self, command: &[&str]) -> anyhow::Result<Said> {
        let output = tokio::process::Command::new(machine::router()?)
            .args(command)
            .args(["--router", &self.http_url()])
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| command.join(" "))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok(Said { done: output.status.success(), text })
    }

    /// An order that must be followed; what the program says otherwise is the error.
    pub async fn obey(&self, command: &[&str]) -> anyhow::Result<()> {
        let said = self.order(command).await?;
        ensure!(said.done, "{}", said.text);
        Ok(())
    }

    /// Its process id; `None` if it was stopped.
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.join("switchyard.toml")
    }

    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// All of its log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until `/readyz` says 200. Fails at once if the process ends.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.http_url());
        let ready = eventually(READY, "the router is ready", || async {
            if let Some(status) = self.ended()? {
                return Ok(Some(Err(status)));
            }
            let response = http::get(&url).await?;
            if response.status != 200 {
                bail!("/readyz: {} {}", response.status, response.body);
            }
            Ok(Some(Ok(())))
        });
        match ready.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("the router ended: {status}\n{}", self.log()),
            Err(error) => Err(error.context(self.log())),
        }
    }

    /// Changes a key of its file. It takes effect with [`reload`](Router::reload).
    pub fn configure(&self, key: &str, value: impl Into<toml::Value>) -> anyhow::Result<()> {
        put(&mut self.config.lock().unwrap_or_else(PoisonError::into_inner), key, value.into())?;
        self.write_config()
    }

    /// SIGHUP.
    pub fn reload(&self) -> anyhow::Result<()> {
        self.signal(Signal::HUP)
    }

    /// SIGSTOP. Done when nothing of it runs any more.
    pub async fn pause(&self) -> anyhow::Result<()> {
        crate::processes::stop(&[self.process()?]).await
    }

    /// SIGCONT.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM, and its exit status. Fails if it has told of a leak.
    pub async fn stop(&self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let status = eventually(STOP, "the router stops", || async { self.ended() }).await?;
        self.child().take();
        leaks::none_in(&self.log)?;
        Ok(status)
    }

    /// `kill -9`.
    pub fn kill(&self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child().take() {
            child.kill().context("kill the router")?;
            child.wait().context("wait for the router")?;
        }
        Ok(())
    }

    /// Starts it after a [`stop`](Router::stop), on the same ports and with the same file, and waits until it is ready.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        self.launch()?;
        self.ready().await
    }

    /// Starts it again, on the same ports and with the same file, and waits until it is ready.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.kill()?;
        self.launch()?;
        self.ready().await
    }

    /// The exit status if it ended by itself.
    pub fn ended(&self) -> anyhow::Result<Option<ExitStatus>> {
        match self.child().as_mut() {
            None => bail!("the router was stopped"),
            Some(child) => child.try_wait().context("look at the router"),
        }
    }

    fn launch(&self) -> anyhow::Result<()> {
        self.write_config()?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).context("the router's log")?;
        leaks::watch(&self.log);
        // Like the servers' programs in a session of its own; the guard of the cluster's home ends it with them.
        let child = std::process::Command::new("setsid")
            .arg(machine::router()?)
            .args(["run", "--config"])
            .arg(self.config_file())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("RUST_BACKTRACE", "1")
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the router")?;
        *self.child() = Some(child);
        Ok(())
    }

    fn write_config(&self) -> anyhow::Result<()> {
        let text = toml::to_string(&*self.config.lock().unwrap_or_else(PoisonError::into_inner))?;
        // In one step, so that a reload never reads half of it.
        let new = self.folder.join("switchyard.new");
        std::fs::write(&new, text).context("write the router's configuration")?;
        std::fs::rename(new, self.config_file()).context("write the router's configuration")
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        crate::processes::signal(&[self.process()?], signal)
    }

    fn process(&self) -> anyhow::Result<Pid> {
        self.pid().and_then(|pid| Pid::from_raw(pid as i32)).context("the router was stopped")
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a command said, and whether it was done.
#[derive(Clone, Debug)]
pub struct Said {
    pub done: bool,
    pub text: String,
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::thread::panicking() {
            eprintln!("--- the router's log\n{}", self.log());
        }
        leaks::assert(leaks::none_in(&self.log));
    }
}

/// What the router must be told; everything else is its own default.
fn config(cluster: &Cluster, ports: [u16; 3], both_families: bool) -> anyhow::Result<toml::Table> {
    let mut config = toml::Table::new();
    let addresses = |port: u16| {
        let v6 = both_families && std::net::TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0)).is_ok();
        let v6 = v6.then(|| format!("[::1]:{port}"));
        [format!("127.0.0.1:{port}")].into_iter().chain(v6).collect::<Vec<_>>()
    };
    put(&mut config, "cluster.scope", cluster.scope().into())?;
    put(&mut config, "cluster.namespace", cluster.namespace().into())?;
    put(&mut config, "etcd.endpoints", vec![cluster.etcd_endpoint()].into())?;
    for (key, port) in ["read_write", "read_only", "http"].iter().zip(ports) {
        put(&mut config, &format!("listen.{key}"), addresses(port).into())?;
    }
    put(&mut config, "postgres.user", "switchyard".into())?;
    put(&mut config, "postgres.password", cluster.password("switchyard").unwrap_or_default().into())?;
    put(&mut config, "log.filter", "info,switchyard=debug".into())?;
    put(&mut config, "pool.verify_returns", 1.0.into())?;
    Ok(config)
}

/// Sets a key by its full path, making the tables on its way.
fn put(table: &mut toml::Table, key: &str, value: toml::Value) -> anyhow::Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            put(inner.as_table_mut().with_context(|| format!("{first} isn't a table"))?, rest, value)
        }
    }
}
