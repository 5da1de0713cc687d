//! Another product's process in front of a cluster: its folder with its configuration, its log, its end.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

use crate::cluster::Cluster;
use crate::machine::{Machine, on_path};

/// A program that stands between clients and a cluster. Dropping it kills it; so does the guard of the cluster's home, in whose folder it works.
#[derive(Debug)]
pub struct Proxy {
    program: &'static str,
    arguments: &'static [&'static str],
    folder: PathBuf,
    log: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Proxy {
    /// Writes `files` to a folder of the cluster's home by the name of `name`, and starts `program` in it.
    pub fn start(
        cluster: &Cluster,
        program: &'static str,
        arguments: &'static [&'static str],
        name: &str,
        files: &[(&str, String)],
    ) -> anyhow::Result<Proxy> {
        let folder = cluster.home().folder(name)?;
        for (name, text) in files {
            let file = folder.join(name);
            std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            Machine::look()?.account.own(&file)?;
        }
        let log = cluster.home().path().join(format!("{name}.log"));
        let proxy = Proxy { program, arguments, folder, log, child: Mutex::new(None) };
        proxy.restart()?;
        Ok(proxy)
    }

    /// Ends it if it runs, and starts it.
    pub fn restart(&self) -> anyhow::Result<()> {
        self.kill()?;
        let path =
            on_path(self.program).with_context(|| format!("{} isn't installed: scripts/install.sh bench does that", self.program))?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).with_context(|| self.program.to_owned())?;
        // HAProxy and PgBouncer don't like to be root.
        let child = Machine::look()?
            .account
            .command(path)
            .args(self.arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program))?;
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    pub fn program(&self) -> &'static str {
        self.program
    }

    pub fn pid(&self) -> anyhow::Result<u32> {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child.as_ref().map(Child::id).with_context(|| format!("{} doesn't run", self.program))
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn kill(&self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            child.kill().with_context(|| format!("kill {}", self.program))?;
            child.wait().with_context(|| format!("wait for {}", self.program))?;
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
