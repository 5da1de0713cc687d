//! The leak detector: what routers log where a server connection that a session has given back isn't as the router's
//! books say.
//!
//! Every router of the harness looks after every return (`pool.verify_returns`). Invariant: no test has to ask. A
//! router that is stopped or dropped asks for itself, and whoever tells stories about a router that lives on asks for
//! all routers of the program.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The words of the router's log.
const DIFFERS: &str = "a returned connection differs";

/// The logs of all routers that this program has started.
static LOGS: Mutex<Vec<Log>> = Mutex::new(Vec::new());

/// A router's log, looked at from some place on.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    /// Bytes that have been looked at.
    seen: u64,
}

impl Log {
    /// From its end on, for whoever looks beside all others.
    pub(crate) fn from_now_on(path: &Path) -> Log {
        Log { path: path.to_owned(), seen: std::fs::metadata(path).map_or(0, |file| file.len()) }
    }

    /// Lines since the last look that tell of a leak. A log that is gone by now tells of none.
    pub(crate) fn news(&mut self) -> Vec<String> {
        let mut text = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.seen))?;
            file.read_to_end(&mut text)
        });
        if read.is_err() {
            return Vec::new();
        }
        // The last line may still be being written.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.seen += whole as u64;
        let lines = String::from_utf8_lossy(&text[..whole]).into_owned();
        lines.lines().filter(|line| line.contains(DIFFERS)).map(str::to_owned).collect()
    }
}

/// From now on this log is looked at, too.
pub(crate) fn watch(path: &Path) {
    let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
    if !logs.iter().any(|log| log.path == path) {
        logs.push(Log { path: path.to_owned(), seen: 0 });
    }
}

/// Fails if a router of this program has told of a leak since the last look.
///
/// # Errors
///
/// All that they have told.
pub fn none() -> anyhow::Result<()> {
    of(|_| true)
}

/// As [`none`], for the router with this log.
pub(crate) fn none_in(path: &Path) -> anyhow::Result<()> {
    of(|log| log.path == path)
}

fn of(which: impl Fn(&Log) -> bool) -> anyhow::Result<()> {
    let mut logs = LOGS.lock().unwrap_or_else(PoisonError::into_inner);
    let told: Vec<String> = logs.iter_mut().filter(|log| which(log)).flat_map(Log::news).collect();
    anyhow::ensure!(told.is_empty(), "what one session left would have been another one's:\n{}", told.join("\n"));
    Ok(())
}

/// For what can't return an error: it panics, unless somebody does already.
pub(crate) fn assert(looked: anyhow::Result<()>) {
    match looked {
        Err(error) if std::thread::panicking() => eprintln!("{error}"),
        Err(error) => panic!("{error}"),
        Ok(()) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn each_line_is_told_once_and_as_a_whole() {
        let path = std::env::temp_dir().join(format!("switchyard-leaks-{}.log", std::process::id()));
        let mut file = File::create(&path).expect("the temporary directory can be written");
        watch(&path);
        let mut log = |text: &str| {
            file.write_all(text.as_bytes()).expect("written");
            none_in(&path).err().map(|error| error.to_string())
        };
        assert_eq!(log("INFO listening\n"), None);
        assert_eq!(log("ERROR a returned connection diff"), None);
        let told = log("ers expected={} found={role}\nINFO more\n").expect("a leak");
        assert!(told.ends_with("ERROR a returned connection differs expected={} found={role}"), "{told}");
        assert_eq!(log("INFO more\n"), None);
        std::fs::remove_file(&path).expect("removed");
        assert!(none_in(&path).is_ok());
    }
}
