//! Free loopback ports that stay ours: a block of them is locked by a file, so that clusters side by side never take the same one.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, bail};

/// Below Linux's ephemeral range (from 32768), where outgoing connections take ports at any time.
const FIRST: u16 = 20_000;
const BLOCK: u16 = 10;
const BLOCKS: u16 = 1_200;

/// Ports on 127.0.0.1 that were free when they were taken, and that no other [`Ports`] gives out while this one lives.
#[derive(Debug)]
pub struct Ports {
    folder: std::path::PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Held for their locks.
    blocks: Vec<File>,
    left: Vec<u16>,
}

impl Ports {
    /// `base` holds the lock files; clusters that share it share the ports.
    pub fn new(base: &Path) -> anyhow::Result<Ports> {
        let folder = base.join("ports");
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Ports { folder, inner: Mutex::default() })
    }

    pub fn take(&self) -> anyhow::Result<u16> {
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loop {
            while let Some(port) = inner.left.pop() {
                if is_free(port) {
                    return Ok(port);
                }
            }
            let (file, first) = self.lock_block()?;
            inner.blocks.push(file);
            inner.left.extend((first..first + BLOCK).rev());
        }
    }

    fn lock_block(&self) -> anyhow::Result<(File, u16)> {
        // Processes start their search at different places; the locks are what keeps them apart.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = std::process::id() as u16;
        for _ in 0..BLOCKS {
            let block = start.wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % BLOCKS;
            let path = self.folder.join(block.to_string());
            let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            if file.try_lock().is_ok() {
                return Ok((file, FIRST + block * BLOCK));
            }
        }
        bail!("all ports from {FIRST} on are taken")
    }
}

/// Whether a server could listen there now, on IPv4's loopback and, where there is one, on IPv6's.
pub fn is_free(port: u16) -> bool {
    let v6 = || match TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, port)) {
        Ok(_) => true,
        Err(error) => error.kind() != std::io::ErrorKind::AddrInUse,
    };
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && v6()
}
