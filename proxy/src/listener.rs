//! Accepting clients on a data port: a permit before accept, a task for each connection, login under a deadline.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use switchyard_config::Consistency;
use switchyard_core::causal::Level;
use switchyard_core::refusal::Refusal;
use switchyard_core::session::{Access, Policy};
use switchyard_core::wire::startup::Replication;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::client::Client;
use crate::context::Context;
use crate::door::{self, Door, DoorError, Opened};
use crate::raw;
use crate::stats::Port;
use crate::stream::Stream;

/// Connections that the kernel keeps for us while we accept others.
const BACKLOG: i32 = 4096;
/// After a failed accept (no file descriptors left), so that the loop doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every client of one data port shares. Replaced as a whole at a reload.
pub(crate) struct Entrance {
    pub(crate) port: Port,
    pub(crate) door: Door,
    pub(crate) policy: Arc<Policy>,
}

impl Entrance {
    pub(crate) fn new(config: &switchyard_config::Config, port: Port, door: Door) -> Entrance {
        use switchyard_config::PoolMode;
        let level = match port {
            Port::ReadWrite => config.routing.consistency_read_write,
            Port::ReadOnly => config.routing.consistency_read_only,
        };
        Entrance {
            port,
            door,
            policy: Arc::new(Policy {
                access: match port {
                    Port::ReadWrite => Access::ReadWrite,
                    Port::ReadOnly => Access::ReadOnly,
                },
                level: level_of(level),
                consistency_wait: config.routing.consistency_wait,
                settle_wait: config.failover.hold_timeout,
                hold_begin: config.routing.hold_begin,
                readonly_on_replica: config.routing.readonly_transactions_on_replica,
                fallback_to_leader: config.routing.fallback_to_leader,
                session_mode: config.pool.mode == PoolMode::Session,
                look_ahead_bytes: config.routing.look_ahead_bytes,
                max_message_bytes: config.limits.max_message_bytes,
                max_statements: config.limits.max_prepared_per_client,
                verify_returns: config.pool.verify_returns,
                zone: config.routing.zone.as_deref().map(Arc::from),
            }),
        }
    }
}

/// The core's word for a level of the configuration.
pub(crate) fn level_of(level: Consistency) -> Level {
    match level {
        Consistency::Eventual => Level::Eventual,
        Consistency::Session => Level::Session,
        Consistency::Global => Level::Global,
        Consistency::Strong => Level::Strong,
    }
}

/// Binds a TCP address; an IPv6 wildcard takes IPv4, too.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A Unix socket that is removed when it is dropped.
pub(crate) struct UnixSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds `.s.PGSQL.<port>` in `folder`, as libpq looks for it. A socket that nobody listens on any more is replaced.
pub(crate) fn bind_unix(folder: &Path, port: u16) -> io::Result<UnixSocket> {
    let path = folder.join(format!(".s.PGSQL.{port}"));
    if std::os::unix::net::UnixStream::connect(&path).is_err() {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(UnixSocket { listener: UnixListener::bind(&path)?, path })
}

/// A listening socket of either kind.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => Stream::tcp(listener.accept().await?.0),
            Listener::Unix(socket) => Ok(Stream::unix(socket.listener.accept().await?.0)),
        }
    }
}

/// Accepts clients until `stop` says so.
pub(crate) async fn serve(listener: Listener, entrance: Arc<ArcSwap<Entrance>>, context: Arc<Context>, mut stop: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok(stream) => {
                tokio::spawn(welcome(stream, entrance.load_full(), context.clone()));
            }
            Err(error) => {
                // Either the client has gone again, or there are no descriptors left: the others are served on.
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, from its first byte to its last.
async fn welcome(stream: Stream, entrance: Arc<Entrance>, context: Arc<Context>) {
    // Logging in needs far more memory than a session: it is a future of its own, freed before the session begins.
    if let Some(mut client) = Box::pin(log_in(stream, entrance, context)).await {
        // By reference: a future that owned the client would hold it twice.
        client.run().await;
    }
}

async fn log_in(stream: Stream, entrance: Arc<Entrance>, context: Arc<Context>) -> Option<Client> {
    let config = context.config.load_full();
    let stats = context.stats.port(entrance.port);
    let deadline = tokio::time::Instant::now() + config.limits.login_timeout;
    let (mut stream, startup, peer) = match tokio::time::timeout_at(deadline, door::open(stream, &entrance.door)).await {
        Ok(Ok(Opened::Startup { stream, startup, peer })) => (stream, startup, peer),
        Ok(Ok(Opened::Cancel { stream, pid, key })) => {
            context.stats.cancels.add(1);
            if let Some(canceling) = context.clients.cancel(pid, &key) {
                canceling.send(&context.pools.tls.load_full()).await;
            }
            drop(stream);
            return None;
        }
        Ok(Err(DoorError::Gone)) | Err(_) => return None,
        Ok(Err(error)) => {
            tracing::debug!(%error, "no session");
            stats.logins_failed.add(1);
            return None;
        }
    };
    if context.clients.count() >= config.limits.max_clients {
        stats.logins_failed.add(1);
        refuse(stream, &Refusal::TooManyClients).await;
        return None;
    }
    let gate = context.gate.load_full();
    let mut identity = match tokio::time::timeout_at(deadline, gate.authenticate(&mut stream, &startup, &peer)).await {
        Ok(Ok(identity)) => identity,
        Ok(Err(error)) => {
            tracing::debug!(%error, user = startup.user, peer = peer.host(), "login failed");
            stats.logins_failed.add(1);
            return None;
        }
        Err(_) => {
            stats.logins_failed.add(1);
            refuse(stream, &Refusal::LoginTimeout).await;
            return None;
        }
    };
    let (slot, key) = context.clients.register(startup.minor >= 2);
    identity.edition = context.pools.logged_in(&identity);
    stats.clients.up();
    stats.clients_total.add(1);
    // So that the first statement is judged as the thousandth will be.
    context.verdicts.databases.of(&identity.database).first_facts(deadline).await;
    if startup.replication != Replication::No {
        raw::relay(&context, entrance.port, &startup, &identity, &slot, key, stream).await;
        stats.clients.down();
        return None;
    }
    Some(Client::new(context, entrance.policy.clone(), entrance.port, identity, slot, key, stream))
}

async fn refuse(mut stream: Stream, refusal: &Refusal) {
    let mut message = Vec::new();
    refusal.encode(&mut message);
    // A client that doesn't take it is told by the end of the connection.
    let goodbye = async {
        let _ = stream.write_all(&message).await;
        let _ = stream.shutdown().await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
}
