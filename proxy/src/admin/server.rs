//! Connections of the HTTP side: how many, how long, how slow.
//!
//! Invariant: a connection that makes no progress ends by itself: its header must arrive within [`HEADER_TIMEOUT`], its reader must take
//! what is written within [`WRITE_TIMEOUT`], and connections above [`CONNECTIONS_MAX`] are told so and closed.

use std::convert::Infallible;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, Sleep};

use super::{Admin, routes};
use crate::control;

/// Open connections, at most: people and scrapers are few.
const CONNECTIONS_MAX: usize = 256;
/// Of those, streams of events, at most, so that open pages can't keep health checks out.
const STREAMS_MAX: usize = 128;
/// From the end of the last response, or the start, to the end of a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a write may wait for a peer that doesn't read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of a request's header, at most.
const HEADER_MAX: usize = 16 * 1024;
const HEADER_FIELDS_MAX: usize = 64;
/// How long a shutdown waits for responses under way.
const GOODBYE: Duration = Duration::from_secs(1);
/// After accept failed (no file descriptors, say): time for some to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often the topology is compared with what was last sent.
const LOOK: Duration = Duration::from_millis(50);
/// Between snapshots while nothing changes.
const PERIOD: Duration = Duration::from_secs(1);
/// Between snapshots while there is no leader: people watch the clock then.
const PERIOD_UNSETTLED: Duration = Duration::from_millis(250);

/// What requests of one listener share.
pub(super) struct Shared {
    pub(super) admin: Arc<Admin>,
    /// The newest snapshot, as JSON. Empty until somebody asked.
    pub(super) feed: watch::Receiver<Bytes>,
    pub(super) streams: Arc<Semaphore>,
}

/// Serves HTTP/1.1 until `shutdown` completes, then waits a moment for responses under way. Several listeners may share one `admin`.
///
/// Cancel-safe: dropping the future closes all its connections.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, shutdown: impl Future) {
    let (publish, feed) = watch::channel(Bytes::new());
    let shared = Arc::new(Shared { admin: admin.clone(), feed, streams: Arc::new(Semaphore::new(STREAMS_MAX)) });
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let mut feeding = pin!(feed_snapshots(&admin, publish));
    loop {
        tokio::select! {
            _ = &mut shutdown => break,
            () = &mut feeding => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match room.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let (shared, mut stopped) = (shared.clone(), stopped.clone());
                        connections.spawn(async move {
                            connection(stream, peer, shared, &mut stopped).await;
                            drop(permit);
                        });
                    }
                    Err(_) => refuse(&stream),
                },
                Err(error) => {
                    tracing::warn!(%error, "can't accept HTTP connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(stop);
    let all_gone = async { while connections.join_next().await.is_some() {} };
    // Whatever is left is aborted as the set is dropped.
    let _ = tokio::time::timeout(GOODBYE, all_gone).await;
}

/// Answers at once and without a task; whether it arrives is the peer's luck.
fn refuse(stream: &TcpStream) {
    let _ = stream.try_write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 21\r\n\r\ntoo many connections\n");
}

async fn connection(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, stopped: &mut watch::Receiver<()>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move {
            Ok::<_, Infallible>(match &shared.admin.control {
                Some(control) if control::is_control(&request) => control::answer(control, peer, request).await,
                _ => routes::answer(&shared, &request),
            })
        }
    });
    let io = TokioIo::new(Unblocked { stream, deadline: None });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_MAX)
        .max_headers(HEADER_FIELDS_MAX)
        .serve_connection(io, service);
    let mut serving = pin!(serving);
    // Errors are the peer's: a reset, a timeout, garbage (which hyper has answered with 400).
    let outcome = tokio::select! {
        outcome = &mut serving => outcome,
        _ = stopped.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "HTTP connection ended");
    }
}

/// Publishes a snapshot a second while somebody listens, and at once when the cluster's face changes; notes a point of history a second.
/// Never completes.
async fn feed_snapshots(admin: &Admin, publish: watch::Sender<Bytes>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last_sent, mut last_face): (Option<Instant>, u64) = (None, 0);
    loop {
        look.tick().await;
        let now = Instant::now();
        admin.history.lock().tick(now, &admin.stats, &admin.topology.load());
        // One receiver is kept for those to come.
        if publish.receiver_count() <= 1 {
            continue;
        }
        let (face, settled) = face(admin, now);
        let period = if settled { PERIOD } else { PERIOD_UNSETTLED };
        if face == last_face && last_sent.is_some_and(|at| now < at + period) {
            continue;
        }
        (last_sent, last_face) = (Some(now), face);
        publish.send_replace(routes::json(&admin.snapshot_at(now, SystemTime::now())));
    }
}

/// A fingerprint of what people want to see at once, without what changes with each probe; and whether a leader is in force.
fn face(admin: &Admin, now: Instant) -> (u64, bool) {
    let topology = admin.topology.load();
    let leader = topology.leader_at(now).map(|(leader, _)| (leader.member, leader.timeline, leader.failsafe));
    let mut hasher = rustc_hash::FxHasher::default();
    (topology.state, topology.epoch, leader, topology.ready, topology.etcd_error.is_some()).hash(&mut hasher);
    (admin.live)().draining.hash(&mut hasher);
    for member in &topology.members {
        (&member.name, member.role, member.out, member.probe_error.is_some()).hash(&mut hasher);
    }
    (hasher.finish(), leader.is_some() && topology.ready)
}

/// A stream whose writes fail once the peer has taken nothing for [`WRITE_TIMEOUT`].
struct Unblocked {
    stream: TcpStream,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Unblocked {
    fn watch<T>(&mut self, cx: &mut Context<'_>, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.deadline = None;
            return progress;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Unblocked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Unblocked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
