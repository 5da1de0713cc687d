//! One etcd, as Patroni's store. Its data survives a stop.

use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;

use crate::home::Home;
use crate::machine::Machine;
use crate::ports::Ports;
use crate::processes;
use crate::wait::eventually;

const START: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Etcd {
    client_port: u16,
    peer_port: u16,
    folder: std::path::PathBuf,
    log: std::path::PathBuf,
    child: Mutex<Option<Child>>,
}

impl Etcd {
    pub(crate) fn new(home: &Home, ports: &Ports) -> anyhow::Result<Etcd> {
        Ok(Etcd {
            client_port: ports.take()?,
            peer_port: ports.take()?,
            folder: home.folder("etcd")?,
            log: home.path().join("etcd.log"),
            child: Mutex::new(None),
        })
    }

    /// `http://127.0.0.1:port`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    pub async fn start(&self) -> anyhow::Result<()> {
        let machine = Machine::look()?;
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).context("etcd.log")?;
        let child = machine
            .account
            .command(&machine.etcd)
            .env_clear()
            .args(["--name", "etcd", "--logger", "zap", "--log-level", "warn"])
            // The data needn't outlive the machine.
            .arg("--unsafe-no-fsync")
            .args(["--data-dir", "data"])
            .args(["--listen-client-urls", &self.endpoint(), "--advertise-client-urls", &self.endpoint()])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("etcd={peer}")])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("etcd.log")?)
            .stderr(log)
            .spawn()
            .context("start etcd")?;
        *self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(child);
        eventually(START, "etcd answers", || async {
            self.client().await?.get("switchyard", None).await?;
            Ok(Some(()))
        })
        .await
    }

    /// `kill -9`: no goodbye to its clients.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        if let Some(mut child) = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            child.wait().context("wait for etcd")?;
        }
        Ok(())
    }

    /// SIGSTOP, SIGCONT.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        processes::signal(&processes::working_in(&Machine::look()?.account, &self.folder)?, signal)
    }

    pub async fn client(&self) -> anyhow::Result<etcd_client::Client> {
        let limits = etcd_client::ConnectOptions::new().with_connect_timeout(Duration::from_secs(2)).with_timeout(Duration::from_secs(2));
        Ok(etcd_client::Client::connect([self.endpoint()], Some(limits)).await?)
    }

    /// The value of a key as text; `None` if there is no such key.
    pub async fn value(&self, key: &str) -> anyhow::Result<Option<String>> {
        let answer = self.client().await?.get(key, None).await?;
        Ok(answer.kvs().first().map(|pair| String::from_utf8_lossy(pair.value()).into_owned()))
    }
}
