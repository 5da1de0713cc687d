//! A folder for one run, and the promise that nothing outlives it.
//!
//! Every process of a run works in a folder below [`Home`]. A guard, a process in a session of its own, holds the reading end of a pipe
//! whose writing end only this program has: when the program drops the home, panics, exits or is killed, the pipe closes, and the guard
//! ends whatever works there. What is left when even the guard was killed is found by the next run, because its lock is free.

use std::fs::{File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};

use crate::machine::{Account, Machine};
use crate::processes::glob;

/// Set to anything, it keeps the folders (configuration, logs, data) of runs that ended.
const KEEP: &str = "SWITCHYARD_KEEP";

const GUARD: &str = include_str!("guard.sh");
/// The last bytes of a log that are shown.
const LOG_TAIL_BYTES: usize = 6_000;

#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    account: Account,
    guard: Option<Child>,
    /// Locked as long as this program lives; a run whose lock is free has no owner.
    _lock: File,
}

/// What goes at the end of a run.
#[derive(Clone, Copy, Debug)]
enum Remove {
    All,
    /// All but the logs.
    Data,
    Nothing,
}

impl Remove {
    fn word(self) -> &'static str {
        match self {
            Remove::All => "all",
            Remove::Data => "data",
            Remove::Nothing => "nothing",
        }
    }
}

impl Home {
    /// A new folder for a run of tests. Runs whose owner is gone are ended and removed first.
    pub fn temporary() -> anyhow::Result<Home> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let base = base()?;
        let _turn = lock(&base.join("turn"))?;
        sweep(&base)?;
        let path = base.join(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        Home::make(path, Remove::All)
    }

    /// A folder whose logs outlive the run. It is emptied at the start: what works in it then is ended. Fails if its owner lives.
    pub fn at(path: PathBuf) -> anyhow::Result<Home> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        end(&path)?.with_context(|| format!("another one is running in {}", path.display()))?;
        Home::make(path, Remove::Data)
    }

    fn make(path: PathBuf, remove: Remove) -> anyhow::Result<Home> {
        let account = Machine::look()?.account.clone();
        std::fs::DirBuilder::new().mode(0o755).create(&path).with_context(|| format!("create {}", path.display()))?;
        let lock = lock(&path.join("lock"))?;
        let remove = if std::env::var_os(KEEP).is_some() { Remove::Nothing } else { remove };
        let guard = guard(&path, remove, &account, Stdio::piped())?;
        Ok(Home { path, account, guard: Some(guard), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder in it that belongs to the account that the servers run as, and to nobody else.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("create {}", path.display()))?;
        self.account.own(&path)?;
        Ok(path)
    }

    /// Makes a folder in it that belongs to whoever runs this program, for what needn't run as the servers' account.
    pub fn private_folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// The ends of all log files of this run.
    pub fn logs(&self) -> String {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut logs: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
        logs.sort();
        let tail = |path: &PathBuf| {
            let bytes = std::fs::read(path).unwrap_or_default();
            let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]);
            format!("--- {}\n{tail}\n", path.file_name().unwrap_or_default().to_string_lossy())
        };
        logs.iter().map(tail).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

/// Where the runs of tests are: a folder that only this user writes to, which the servers' account may pass through.
pub fn base() -> anyhow::Result<PathBuf> {
    let user = rustix::process::geteuid();
    let path = if user.is_root() { PathBuf::from("/tmp") } else { std::env::temp_dir() };
    let path = path.join(format!("switchyard-tests-{}", user.as_raw()));
    match std::fs::DirBuilder::new().mode(0o755).create(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("create {}", path.display()));
        }
        _ => {}
    }
    // In a folder that everybody may write to, somebody else may have been first.
    let about = std::fs::symlink_metadata(&path).with_context(|| format!("look at {}", path.display()))?;
    if !about.is_dir() || about.uid() != user.as_raw() || about.mode() & 0o022 != 0 {
        bail!("{} isn't a folder of this user alone", path.display());
    }
    Ok(path)
}

/// Ends and removes the runs below `base` that have no owner any more.
fn sweep(base: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(base).with_context(|| format!("list {}", base.display()))? {
        let path = entry?.path();
        if path.join("lock").is_file() && std::env::var_os(KEEP).is_none() {
            let _owner_lives = end(&path)?;
        }
    }
    Ok(())
}

/// Ends what works in the folder of a run and removes it. `None`: its owner lives, nothing was done.
fn end(path: &Path) -> anyhow::Result<Option<()>> {
    if !path.exists() {
        return Ok(Some(()));
    }
    let file = File::open(path.join("lock")).with_context(|| format!("{} isn't the folder of a run", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error).context("lock a run's folder"),
    }
    guard(path, Remove::All, &Machine::look()?.account, Stdio::null())?.wait().context("the guard")?;
    Ok(Some(()))
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

fn guard(path: &Path, remove: Remove, account: &Account, stdin: Stdio) -> anyhow::Result<Child> {
    Command::new("setsid")
        .args(["bash", "-c", GUARD, "switchyard-guard", remove.word()])
        .args([path.as_os_str(), glob(path, "").as_ref(), glob(path, "/*").as_ref()])
        .args(account.prefix())
        .current_dir("/")
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the guard")
}
