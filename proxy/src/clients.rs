//! Who is connected: what a cancel request, a shutdown or an administrator needs to reach a session.

use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Context;

use atomic_waker::AtomicWaker;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use subtle::ConstantTimeEq;
use switchyard_core::session::CancelKey;

use crate::server::{Canceling, Handle};

/// Separate locks, so that logins on many cores don't meet.
const SHARDS: usize = 16;

/// A cancel request came while the session waited for a server.
const CANCELED: u8 = 1;
/// The session is to end as soon as nothing is under way.
const ENDING: u8 = 2;

/// What others hold of a session.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: u64,
    /// The process id that the client is told.
    told: AtomicI32,
    secret: Box<[u8]>,
    flags: AtomicU8,
    waker: AtomicWaker,
    /// The server connection that it holds.
    running: Mutex<Option<Arc<Handle>>>,
}

impl Slot {
    pub(crate) fn listen(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    pub(crate) fn hold(&self, handle: &Arc<Handle>) {
        handle.used_by(self.told());
        *self.running.lock() = Some(handle.clone());
        // A cancel that came before there was anything to cancel is void.
        self.flags.fetch_and(!CANCELED, Ordering::Relaxed);
    }

    pub(crate) fn told(&self) -> i32 {
        self.told.load(Ordering::Relaxed)
    }

    pub(crate) fn release(&self) {
        *self.running.lock() = None;
    }

    /// Whether a cancel came; asking takes it.
    pub(crate) fn take_cancel(&self) -> bool {
        self.flags.load(Ordering::Acquire) & CANCELED != 0 && self.flags.fetch_and(!CANCELED, Ordering::AcqRel) & CANCELED != 0
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.flags.load(Ordering::Acquire) & ENDING != 0
    }

    fn flag(&self, flag: u8) {
        self.flags.fetch_or(flag, Ordering::AcqRel);
        self.waker.wake();
    }
}

/// All sessions, by the process id that they were told.
#[derive(Debug)]
pub(crate) struct Clients {
    shards: [RwLock<FxHashMap<i32, Arc<Slot>>>; SHARDS],
    next_id: AtomicU64,
}

/// A session's entry. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Registered {
    slot: Arc<Slot>,
    clients: Arc<Clients>,
}

impl std::ops::Deref for Registered {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.clients.shard(self.slot.told()).write().remove(&self.slot.told());
    }
}

impl Registered {
    /// Tells the client the id of a process of the leader's instead, unless another client was told it. False then.
    pub(crate) fn adopt(&self, pid: i32) -> bool {
        let before = self.slot.told();
        {
            let mut shard = self.clients.shard(pid).write();
            if shard.contains_key(&pid) {
                return before == pid;
            }
            shard.insert(pid, self.slot.clone());
        }
        self.slot.told.store(pid, Ordering::Relaxed);
        self.clients.shard(before).write().remove(&before);
        true
    }

    /// For whoever keeps something for this client as long as it is there.
    pub(crate) fn weak(&self) -> Weak<Slot> {
        Arc::downgrade(&self.slot)
    }
}

/// Process ids on Linux are no larger (`PID_MAX_LIMIT` of 64-bit kernels): those that the router makes up lie beyond.
const PID_MAX: i64 = 4 * 1024 * 1024;

impl Clients {
    pub(crate) fn new() -> Arc<Clients> {
        Arc::new(Clients { shards: Default::default(), next_id: AtomicU64::new(1) })
    }

    fn shard(&self, pid: i32) -> &RwLock<FxHashMap<i32, Arc<Slot>>> {
        &self.shards[pid.unsigned_abs() as usize % SHARDS]
    }

    /// Enters a session under a key that nobody else has. `long`: protocol 3.2's keys of 32 bytes instead of 4.
    pub(crate) fn register(self: &Arc<Clients>, long: bool) -> (Registered, CancelKey) {
        loop {
            let pid = i32::try_from(rand::random_range(PID_MAX + 1..i64::from(i32::MAX))).unwrap_or(i32::MAX);
            let secret: [u8; 32] = rand::random();
            let secret = if long { secret[..].into() } else { secret[..4].into() };
            let key = CancelKey { pid, secret };
            let mut shard = self.shard(pid).write();
            if shard.contains_key(&pid) {
                continue;
            }
            let slot = Arc::new(Slot {
                id: self.next_id.fetch_add(1, Ordering::Relaxed),
                told: AtomicI32::new(pid),
                secret: key.secret.clone(),
                flags: AtomicU8::new(0),
                waker: AtomicWaker::new(),
                running: Mutex::new(None),
            });
            shard.insert(pid, slot.clone());
            return (Registered { slot, clients: self.clone() }, key);
        }
    }

    /// A cancel request. `Some`: a server is running the session's statement, and the cancel is to be sent there. A session that waits
    /// for a server is told itself. A wrong key hits nobody, and nobody is told.
    pub(crate) fn cancel(&self, pid: i32, secret: &[u8]) -> Option<Canceling> {
        let slot = self.shard(pid).read().get(&pid).cloned()?;
        if !bool::from(slot.secret.ct_eq(secret)) {
            return None;
        }
        let running = slot.running.lock();
        match &*running {
            // Announced under the lock: the connection can't have gone to another client in between.
            Some(handle) => Some(handle.begin_cancel()),
            None => {
                slot.flag(CANCELED);
                None
            }
        }
    }

    /// Asks every session to end once nothing is under way.
    pub(crate) fn end_all(&self) {
        for shard in &self.shards {
            for slot in shard.read().values() {
                slot.flag(ENDING);
            }
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}
