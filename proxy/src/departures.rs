//! Whether a server that has ended a connection in order is going away, or an administrator has ended that one connection.
//!
//! A postmaster refuses new connections before it ends the old ones (`pmdie` in `src/backend/postmaster/postmaster.c`): 57P03, or nobody
//! listens any more. So one attempt to connect, begun after the end was seen, tells. It needs no login: the refusal comes first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use switchyard_core::topology::Topology;
use switchyard_core::wire::{frame, reply, view};
use switchyard_health::Health;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::auth::{self, Target};
use crate::pool::Pools;

/// For an answer. A server that gives none isn't there for its administrator either.
const PATIENCE: Duration = Duration::from_secs(1);
/// Attempts at the same time: a shutdown ends all connections at once.
const ATTEMPTS_MAX: usize = 4;
/// A server that goes away goes on doing so for at least this long.
const LASTS: Duration = Duration::from_millis(500);
/// Of an answer, at most, in bytes.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// What was found out of late.
pub(crate) struct Departures {
    leaving: Mutex<FxHashMap<Arc<str>, Instant>>,
    attempts: Semaphore,
}

impl Default for Departures {
    fn default() -> Departures {
        Departures { leaving: Mutex::default(), attempts: Semaphore::new(ATTEMPTS_MAX) }
    }
}

impl Departures {
    /// Whether `node` goes away, or leads no more where it did. Takes a second at most, and a round trip mostly. Cancel-safe.
    pub(crate) async fn leaves(&self, node: &Arc<str>, health: &Health, pools: &Pools) -> bool {
        let mut changed = health.changed();
        let before = health.topology.load_full();
        let led = led_by(&before, node);
        let superseded = async {
            loop {
                let topology = health.topology.load();
                if topology.member(node).is_none() || (led && topology.epoch != before.epoch) {
                    return;
                }
                drop(topology);
                if changed.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            () = superseded => true,
            leaves = self.asked(node, &before, pools) => leaves,
            () = tokio::time::sleep(PATIENCE) => true,
        }
    }

    async fn asked(&self, node: &Arc<str>, topology: &Topology, pools: &Pools) -> bool {
        let known = |book: &Mutex<FxHashMap<Arc<str>, Instant>>| book.lock().get(node).is_some_and(|at| at.elapsed() < LASTS);
        if known(&self.leaving) {
            return true;
        }
        let Some(member) = topology.member(node) else { return true };
        let target = Target::new(member.host.clone(), member.port);
        let Ok(_permit) = self.attempts.acquire().await else { return true };
        // Another's question may have been answered meanwhile.
        let leaves = known(&self.leaving) || refuses(&target, pools).await;
        if leaves {
            let mut book = self.leaving.lock();
            book.retain(|_, at| at.elapsed() < LASTS);
            book.insert(node.clone(), Instant::now());
        }
        leaves
    }
}

fn led_by(topology: &Topology, node: &str) -> bool {
    topology.leader.as_ref().and_then(|leader| topology.members.get(leader.member)).is_some_and(|member| *member.name == *node)
}

/// Whether a server takes no new connections. Any other answer to a startup packet means that it does, a refused login included.
async fn refuses(target: &Target, pools: &Pools) -> bool {
    let (tls, user) = (pools.tls.load_full(), pools.config.load().postgres.user.clone());
    let Ok(mut stream) = auth::backend::open(target, &tls).await else { return true };
    let mut packet = vec![0, 0, 0, 0, 0, 3, 0, 0];
    for text in ["user", &user, "application_name", "switchyard departure"] {
        packet.extend_from_slice(text.as_bytes());
        packet.push(0);
    }
    packet.push(0);
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    packet[..4].copy_from_slice(&length.to_be_bytes());
    if stream.write_all(&packet).await.is_err() || stream.flush().await.is_err() {
        return true;
    }
    let mut answer = Vec::with_capacity(512);
    loop {
        match frame::header(&answer) {
            Ok(Some(header)) if header.tag != b'E' => break,
            Ok(Some(header)) if answer.len() >= header.total => {
                return view::fault(&answer[frame::HEADER..header.total]).sqlstate == b"57P03";
            }
            Ok(_) if answer.len() < ANSWER_BYTES_MAX => {}
            _ => break,
        }
        match stream.read_buf(&mut answer).await {
            Ok(count) if count > 0 => {}
            _ => return true,
        }
    }
    let mut goodbye = Vec::new();
    reply::message(&mut goodbye, b'X', &[]);
    let _ = stream.write_all(&goodbye).await;
    false
}
