//! The processes that work in a folder, found by where they are: PostgreSQL's backends and Patroni's helpers change parents and sessions,
//! but never leave their working directory.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
pub use rustix::process::{Pid, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::machine::Account;
use crate::wait::eventually;

const STOP: Duration = Duration::from_secs(10);

/// The processes with `folder` or a folder below it as working directory, except those with a terminal: somebody's shell is no server.
///
/// The question is asked by a process of the same account, as the kernel answers only those (even root may not ask in a container).
pub fn working_in(account: &Account, folder: &Path) -> anyhow::Result<Vec<Pid>> {
    let mut words = account.prefix();
    words.extend(["find", "/proc", "-mindepth", "2", "-maxdepth", "2", "-name", "cwd"]);
    let output = Command::new(words[0])
        .args(&words[1..])
        .args(["-lname"])
        .arg(glob(folder, ""))
        .args(["-o", "-name", "cwd", "-lname"])
        .arg(glob(folder, "/*"))
        .current_dir("/")
        .output()
        .context("find")?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let pids = listed.lines().filter_map(|line| line.strip_prefix("/proc/")?.strip_suffix("/cwd")?.parse().ok());
    Ok(pids.filter(|pid| !has_terminal(*pid)).filter_map(Pid::from_raw).collect())
}

/// Raises this process's soft limit of open files, which whatever it starts inherits: the limit is made for programs that use `select`.
///
/// # Errors
/// If the hard limit is lower.
pub fn raise_open_files(wanted: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        bail!("{wanted} open files are needed: raise the hard limit (ulimit -Hn)");
    }
    if limit.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).context("raise the limit of open files")?;
    }
    Ok(())
}

/// Sends `signal` to each; one that is gone by now needs it no more.
pub fn signal(pids: &[Pid], signal: Signal) -> anyhow::Result<()> {
    for pid in pids {
        match rustix::process::kill_process(*pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("kill {pid:?}")),
        }
    }
    Ok(())
}

/// SIGSTOP to each. Done when none of their threads runs any more: on a busy machine that takes a while.
pub async fn stop(pids: &[Pid]) -> anyhow::Result<()> {
    signal(pids, Signal::STOP)?;
    eventually(STOP, "they are stopped", || async { Ok(pids.iter().all(|pid| is_stopped(*pid)).then_some(())) }).await
}

/// Whether all its threads are stopped, or gone.
fn is_stopped(pid: Pid) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('T' | 'Z' | 'X')))
    })
}

/// Whether the process lives and has a controlling terminal: field 7 of proc(5)'s `stat`, counted from behind the name in parentheses.
fn has_terminal(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().nth(4).is_some_and(|terminal| terminal != "0")
}

/// A pattern for `find -lname` that matches `folder` literally, and then `rest`.
pub(crate) fn glob(folder: &Path, rest: &str) -> String {
    let mut pattern = String::new();
    for letter in folder.to_string_lossy().chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern + rest
}
