//! A disk that can be full: a member's data folder as a file system in memory, which only that member's processes see and which ends with them.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::Member;
use crate::machine::Machine;

/// Mounts a file system of `$2` on `$1`, and becomes the rest of the words.
const MOUNT: &str = r#"mount -t tmpfs -o "$2" limited "$1" && shift 2 && exec "$@""#;
const PIECE: usize = 64 * 1024;

/// What fills a member's disk. The space is free again when it is dropped.
#[derive(Debug)]
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        // Gone already where the member has been started anew.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether this machine lets members have such disks: it takes root, and the right to mount.
pub fn limits_disks() -> anyhow::Result<bool> {
    let mut unshare = Command::new("unshare");
    let tried =
        unshare.args(["--mount", "mount", "-t", "tmpfs", "limited", "/mnt"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    Ok(Machine::look()?.account.is_other() && tried.success())
}

/// A command that runs `program` as the servers' account, in a session and a mount namespace of its own. Nothing here forks.
pub(super) fn command(program: &std::path::Path, data: &std::path::Path, mebibytes: u32) -> anyhow::Result<Command> {
    let account = &Machine::look()?.account;
    std::fs::create_dir_all(data).with_context(|| format!("make {}", data.display()))?;
    account.own(data)?;
    let mut command = Command::new("setsid");
    command.args(["unshare", "--mount", "sh", "-c", MOUNT, "sh"]).arg(data);
    command.arg(format!("size={mebibytes}m,mode=0700,{}", account.owner())).args(account.prefix()).arg(program);
    Ok(command)
}

impl Member {
    /// Leaves no room on its disk, which [`Options::disk`](super::Options::disk) has limited.
    pub fn fill_disk(&self) -> anyhow::Result<Filler> {
        let pid = self.patroni_pid().with_context(|| format!("{} doesn't run", self.name()))?;
        let seen = PathBuf::from(format!("/proc/{}/root{}", pid.as_raw_nonzero(), self.data().display()));
        let filler = Filler(seen.join("filler"));
        let mut file = File::create(&filler.0).with_context(|| format!("make {}", filler.0.display()))?;
        for size in [PIECE, 1] {
            loop {
                match file.write(&[0; PIECE][..size]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => bail!("fill {}'s disk: {error}", self.name()),
                }
            }
        }
        Ok(filler)
    }
}
