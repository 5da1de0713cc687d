//! A server connection, and what other tasks may do to it: cancel what it runs, or have it closed.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use switchyard_core::route::ServerRole;
use switchyard_core::session::{GIVEN, Params, ServerState, Voices};
use switchyard_core::topology::Epoch;
use switchyard_core::wire::reply::{self, TxStatus};
use switchyard_core::wire::{frame, view};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::auth::{self, Connected, Target};
use crate::clients::Slot;
use crate::stream::Stream;
use crate::tls::Connector;

/// How long a cancel request may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to roll an abandoned transaction back, or to discard a session's state.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(5);

/// What an idle connection's server may have said without being asked, in bytes.
const UNASKED_MAX: usize = 8 * 1024;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// An open server connection.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) id: u64,
    pub(crate) stream: Stream,
    pub(crate) state: ServerState,
    pub(crate) handle: Arc<Handle>,
    pub(crate) opened_at: Instant,
    pub(crate) idle_since: Instant,
    /// Bytes that were sent since it last owed nothing.
    unanswered: usize,
    patient: bool,
    /// It is closed when whoever opened it gives it back: its server may not know yet what makes its pool another one
    /// than the pool before.
    pub(crate) once: bool,
    /// The client whose sequences it advanced, or that was told its process id; it gets this one back where it can.
    pub(crate) owner: Option<Weak<Slot>>,
}

/// What others hold of a server connection.
#[derive(Debug)]
pub(crate) struct Handle {
    target: Target,
    pid: i32,
    secret: Vec<u8>,
    /// Its role and epoch, for whoever sees the leader change.
    pub(crate) role: ServerRole,
    pub(crate) epoch: Epoch,
    killed: AtomicBool,
    silent: AtomicBool,
    waker: AtomicWaker,
    /// The process id that its last client was told; 0 before the first.
    voice: AtomicI32,
    cancels: Mutex<usize>,
    cancels_done: Notify,
}

impl Handle {
    /// Whoever holds the connection must drop it.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Its server may have answered no probe for long: whoever waits for it looks whether it need go on waiting. Told anew as long as it is so.
    pub(crate) fn tell_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Release);
        if silent {
            self.waker.wake();
        }
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Acquire)
    }

    /// Ready once the connection is to be dropped.
    pub(crate) fn poll_killed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.is_killed() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Of the server process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// A client that was told this process id uses it from now on.
    pub(crate) fn used_by(&self, told: i32) {
        self.voice.store(told, Ordering::Relaxed);
    }

    /// Announces a cancel: until it is done, nobody else gets this connection.
    pub(crate) fn begin_cancel(self: &Arc<Handle>) -> Canceling {
        *self.cancels.lock() += 1;
        Canceling(self.clone())
    }

    pub(crate) fn is_being_canceled(&self) -> bool {
        *self.cancels.lock() > 0
    }

    /// Waits until no cancel is under way.
    pub(crate) async fn cancels_over(&self) {
        loop {
            let done = self.cancels_done.notified();
            if !self.is_being_canceled() {
                return;
            }
            done.await;
        }
    }
}

/// The leaders' server processes by their ids, for notifications: what they name is a process, and a client knows itself by another number.
/// Whoever uses a connection before the notification of the one before it has arrived is taken for its sender.
#[derive(Debug, Default)]
pub(crate) struct Processes(RwLock<FxHashMap<i32, Weak<Handle>>>);

/// Entries of connections that are gone may be kept up to this number.
const PROCESSES_DEAD_MAX: usize = 64;

impl Processes {
    pub(crate) fn add(&self, handle: &Arc<Handle>) {
        let mut known = self.0.write();
        known.insert(handle.pid, Arc::downgrade(handle));
        if known.len().is_multiple_of(PROCESSES_DEAD_MAX) {
            known.retain(|_, handle| handle.strong_count() > 0);
        }
    }
}

impl Voices for Processes {
    fn told(&self, pid: i32) -> Option<i32> {
        let handle = self.0.read().get(&pid)?.upgrade()?;
        Some(handle.voice.load(Ordering::Relaxed)).filter(|told| *told != 0)
    }
}

/// A cancel under way.
#[derive(Debug)]
pub(crate) struct Canceling(Arc<Handle>);

impl Canceling {
    /// Sends the request and waits until the server has taken it.
    pub(crate) async fn send(self, tls: &Connector) {
        let handle = &self.0;
        if let Err(error) = auth::backend::cancel(&handle.target, handle.pid, &handle.secret, tls, CANCEL_TIMEOUT).await {
            tracing::warn!(%error, "a cancel request did not reach its server");
        }
    }
}

impl Drop for Canceling {
    fn drop(&mut self) {
        *self.0.cancels.lock() -= 1;
        self.0.cancels_done.notify_waiters();
    }
}

/// What any server's kernel takes though the server reads nothing, in bytes: its receive window is larger (`net.ipv4.tcp_rmem`, 64 kB at first).
const TAKEN_UNREAD: usize = 16 * 1024;

impl Server {
    /// Before so many bytes are sent: with more under way than its kernel surely takes, the server may be waited for without a limit.
    pub(crate) fn about_to_send(&mut self, bytes: usize) {
        self.unanswered = self.unanswered.saturating_add(bytes);
        if self.unanswered > TAKEN_UNREAD && !self.patient {
            self.patient = true;
            self.stream.be_patient(true);
        }
    }

    /// The socket takes no more for now.
    pub(crate) fn is_full(&mut self) {
        self.about_to_send(TAKEN_UNREAD + 1);
    }

    /// It owes nothing: all that was sent to it has been read.
    pub(crate) fn has_answered(&mut self) {
        self.unanswered = 0;
        if self.patient {
            self.patient = false;
            self.stream.be_patient(false);
        }
    }

    pub(crate) fn new(connected: Connected, target: Target, node: Arc<str>, role: ServerRole, epoch: Epoch, max_prepared: usize) -> Server {
        let mut params = Params::default();
        for (name, value) in &connected.parameters {
            params.set(name.as_bytes(), value.as_bytes());
        }
        let now = Instant::now();
        Server {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            stream: connected.stream,
            state: ServerState::new(node, role, epoch, params, max_prepared),
            handle: Arc::new(Handle {
                target,
                pid: connected.pid,
                secret: connected.secret,
                role,
                epoch,
                killed: AtomicBool::new(false),
                silent: AtomicBool::new(false),
                waker: AtomicWaker::new(),
                voice: AtomicI32::new(0),
                cancels: Mutex::new(0),
                cancels_done: Notify::new(),
            }),
            opened_at: now,
            idle_since: now,
            unanswered: 0,
            patient: false,
            once: false,
            owner: None,
        }
    }

    /// Whether the server says that it is in recovery; `None` before PostgreSQL 14.
    pub(crate) fn in_hot_standby(&self) -> Option<bool> {
        self.state.params.value("in_hot_standby").map(|value| value == b"on")
    }

    /// Whether an idle connection can be used. What its server reports meanwhile is noted, and its notices are
    /// nobody's; anything else would be taken for the answer to the next session's first statement.
    pub(crate) fn is_alive(&mut self) -> bool {
        if self.handle.is_killed() {
            return false;
        }
        let mut said = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        loop {
            let mut buffer = [0; 512];
            let mut buffer = tokio::io::ReadBuf::new(&mut buffer);
            match tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut self.stream), &mut cx, &mut buffer) {
                Poll::Pending => return said.is_empty() || self.hears(&said).is_some(),
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && said.len() < UNASKED_MAX => said.extend_from_slice(buffer.filled()),
                // The end, or more than reports and notices take.
                Poll::Ready(_) => return false,
            }
        }
    }

    /// Notes what a server says without being asked; `None` where it isn't whole reports and notices.
    fn hears(&mut self, mut said: &[u8]) -> Option<()> {
        while !said.is_empty() {
            let header = frame::header(said).ok()??;
            let body = said.get(frame::HEADER..header.total)?;
            match header.tag {
                b'S' => {
                    let (name, value) = view::parameter(body).ok()?;
                    self.state.params.set(name, value);
                }
                b'N' => {}
                _ => return None,
            }
            said = &said[header.total..];
        }
        Some(())
    }

    /// Rolls back what an abandoned transaction left. False where the connection can't be used again.
    pub(crate) async fn clean(&mut self) -> bool {
        if self.state.tx == TxStatus::Idle {
            return true;
        }
        let work = async {
            let mut message = Vec::new();
            reply::query(&mut message, b"ROLLBACK");
            self.stream.write_all(&message).await.ok()?;
            self.stream.flush().await.ok()?;
            self.drain_to_ready(|_| ()).await
        };
        let status = tokio::time::timeout(CLEAN_TIMEOUT, work).await.ok().flatten();
        self.state.cleaned(status.unwrap_or(TxStatus::Failed));
        status == Some(TxStatus::Idle)
    }

    /// Has the server say what has changed of what it reports: it does so before each ReadyForQuery. False where the connection can't be used again.
    pub(crate) async fn sync(&mut self) -> bool {
        let work = async {
            self.stream.write_all(&[b'S', 0, 0, 0, 4]).await.ok()?;
            self.stream.flush().await.ok()?;
            self.drain_to_ready(|_| ()).await
        };
        tokio::time::timeout(CLEAN_TIMEOUT, work).await.ok().flatten() == Some(TxStatus::Idle)
    }

    /// Who has logged in on this connection, and where: the OIDs of role and database, whatever these are called by now. `None` where the server
    /// doesn't say. What role and database have given it of custom settings is noted.
    pub(crate) async fn identity(&mut self) -> Option<(u32, u32)> {
        const WHO: &str = "SELECT pg_catalog.to_regrole(pg_catalog.quote_ident(SESSION_USER::pg_catalog.text))::pg_catalog.oid, \
            (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())";
        let (mut told, mut given) = (None, Vec::new());
        let work = async {
            let mut message = Vec::new();
            reply::query(&mut message, format!("{WHO}; {GIVEN}").as_bytes());
            self.stream.write_all(&message).await.ok()?;
            self.stream.flush().await.ok()?;
            self.drain_to_ready(|row| {
                let oids = two_oids(row);
                told = told.or(oids);
                given.extend(oids.is_none().then(|| row.to_vec()));
            })
            .await
        };
        tokio::time::timeout(CLEAN_TIMEOUT, work).await.ok().flatten()?;
        self.state.was_given(given.iter().map(Vec::as_slice));
        told
    }

    /// Reads up to ReadyForQuery, with all rows, and notes what is reported on the way.
    async fn drain_to_ready(&mut self, mut row: impl FnMut(&[u8])) -> Option<TxStatus> {
        let mut buffer = Vec::with_capacity(512);
        loop {
            while let Some(header) = frame::header(&buffer).ok()? {
                if buffer.len() < header.total {
                    break;
                }
                if header.tag == b'Z' {
                    let status = TxStatus::from_byte(*buffer.get(frame::HEADER)?);
                    buffer.drain(..header.total);
                    return self.hears(&buffer).and(status);
                }
                if header.tag == b'S' {
                    let (name, value) = view::parameter(buffer.get(frame::HEADER..header.total)?).ok()?;
                    self.state.params.set(name, value);
                }
                if header.tag == b'D' {
                    row(buffer.get(frame::HEADER..header.total)?);
                }
                buffer.drain(..header.total);
            }
            // All that is asked so has short answers.
            if buffer.len() > 64 * 1024 || self.stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// Says goodbye as far as the socket takes it at once, and closes.
    pub(crate) fn close(mut self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let _ = tokio::io::AsyncWrite::poll_write(std::pin::Pin::new(&mut self.stream), &mut cx, &[b'X', 0, 0, 0, 4]);
    }
}

/// The columns of a DataRow that has two OIDs, as text.
fn two_oids(row: &[u8]) -> Option<(u32, u32)> {
    let mut rest = row.strip_prefix(&[0, 2])?;
    let mut next = || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let (value, behind) = behind.split_at_checked(usize::try_from(i32::from_be_bytes(*length)).ok()?)?;
        rest = behind;
        std::str::from_utf8(value).ok()?.parse().ok()
    };
    Some((next()?, next()?))
}
