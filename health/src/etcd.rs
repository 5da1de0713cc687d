//! Patroni's keys, from etcd v3.
//!
//! Owns the connection to etcd: a linearizable read of the cluster's keys with the leader key's lease, a watch from the revision after it, and such
//! a read about once a second, and at once when the leader key moves. Truth comes from reads; the
//! watch only makes it come sooner, so that a watch which hangs without an error costs a second, not correctness.
//! Endpoints are tried in turn; whatever breaks, breaks the connection, and the next one starts with a read.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, ConnectOptions, EventType, GetOptions, Identity, KeyValue, TlsOptions, WatchOptions};
use switchyard_config::{Cluster, Etcd};
use tokio::sync::mpsc;
use tokio::time::{self, MissedTickBehavior};
use tracing::{debug, warn};

use crate::keys::{Fact, Slot};
use crate::observation::{Observation, Read};

/// Between reads. They are of all keys (a few kilobytes), so that whoever is synchronous is known as of then, too.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// Between attempts, once each endpoint has failed.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that broke sooner than this was no good: the back-off goes on growing.
const GOOD_AFTER: Duration = Duration::from_secs(2);
/// gRPC's `PERMISSION_DENIED` (google/rpc/code.proto).
const PERMISSION_DENIED: i32 = 7;
/// HTTP/2 pings find a half-open connection under the watch.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Etcd(#[from] etcd_client::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the watch ended")]
    WatchEnded,
    #[error("the watch was cancelled: {reason} (compacted up to revision {compact_revision})")]
    WatchCancelled { reason: String, compact_revision: i64 },
    #[error("an answer without a header")]
    NoHeader,
    #[error("cannot read {path}: {error}")]
    File { path: String, error: std::io::Error },
    #[error("an https endpoint needs etcd.ca_file")]
    NoCa,
    #[error("the router is stopping")]
    Stopping,
}

/// Where the cluster's keys are.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    etcd: Etcd,
    /// `/<namespace>/<scope>/`
    prefix: String,
}

impl Source {
    pub(crate) fn new(etcd: &Etcd, cluster: &Cluster) -> Source {
        let namespace = cluster.namespace.trim_matches('/');
        let prefix = if namespace.is_empty() { format!("/{}/", cluster.scope) } else { format!("/{namespace}/{}/", cluster.scope) };
        Source { etcd: etcd.clone(), prefix }
    }

    /// Reports what etcd says, for ever; ends when nobody listens.
    pub(crate) async fn run(self, observations: mpsc::Sender<Observation>) {
        let mut backoff = BACKOFF_MIN;
        let mut failures = 0;
        for endpoint in self.etcd.endpoints.iter().cycle() {
            let mut session = Session { source: &self, observations: &observations, completed: false };
            let started_at = Instant::now();
            let error = match session.run(endpoint).await {
                Ok(never) => match never {},
                Err(Error::Stopping) => return,
                Err(error) => error,
            };
            if session.completed {
                debug!(endpoint, %error, "connection to etcd lost");
                failures = 0;
                if started_at.elapsed() >= GOOD_AFTER {
                    backoff = BACKOFF_MIN;
                    continue;
                }
            } else {
                debug!(endpoint, %error, "no connection to etcd");
                failures += 1;
                // One endpoint of several may fail without anything being wrong: the next is tried at once.
                if failures < self.etcd.endpoints.len() {
                    continue;
                }
                failures = 0;
                let error: Arc<str> = format!("{endpoint}: {error}").into();
                if observations.send(Observation::EtcdFailing { error }).await.is_err() {
                    return;
                }
            }
            time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn options(&self, endpoint: &str) -> Result<ConnectOptions, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.etcd.connect_timeout)
            .with_keep_alive(KEEP_ALIVE_INTERVAL, self.etcd.request_timeout)
            // An etcd member that has lost its leader must say so, rather than keep a silent watch.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(user) = &self.etcd.username {
            let password = self.etcd.password.as_ref().map_or("", |password| password.expose());
            options = options.with_user(user, password);
        }
        if endpoint.starts_with("https://") {
            let ca_file = self.etcd.ca_file.as_ref().ok_or(Error::NoCa)?;
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read_file(ca_file).await?));
            if let (Some(cert), Some(key)) = (&self.etcd.cert_file, &self.etcd.key_file) {
                tls = tls.identity(Identity::from_pem(read_file(cert).await?, read_file(key).await?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }
}

async fn read_file(path: &std::path::Path) -> Result<Vec<u8>, Error> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(owned)).await.map_err(std::io::Error::other);
    read.and_then(|bytes| bytes).map_err(|error| Error::File { path: path.display().to_string(), error })
}

enum Never {}

type Reading = Pin<Box<dyn Future<Output = Result<Read, Error>> + Send>>;

/// One connection to one endpoint, until it breaks.
struct Session<'a> {
    source: &'a Source,
    observations: &'a mpsc::Sender<Observation>,
    /// Whether a read was completed on it.
    completed: bool,
}

impl Session<'_> {
    async fn run(&mut self, endpoint: &str) -> Result<Never, Error> {
        let Etcd { connect_timeout, request_timeout, .. } = &self.source.etcd;
        let options = self.source.options(endpoint).await?;
        let client = within(*connect_timeout + *request_timeout, Client::connect([endpoint], Some(options))).await?;
        let reader = Reader { client: client.clone(), prefix: self.source.prefix.clone(), timeout: *request_timeout };

        let read = reader.clone().read(true).await?;
        let revision = read.revision;
        self.completed = true;
        self.report(Observation::Read(read)).await?;

        let watch = WatchOptions::new().with_prefix().with_start_revision(revision + 1).with_progress_notify();
        let mut watch_client = client.watch_client();
        let mut watch = within(*request_timeout, watch_client.watch(self.source.prefix.as_str(), Some(watch))).await?;

        let mut tick = time::interval_at(time::Instant::now() + READ_INTERVAL, READ_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The read under way, and whether another is wanted as soon as it is done.
        let mut reading: Option<Reading> = None;
        let mut again = false;
        loop {
            tokio::select! {
                message = watch.message() => {
                    let message = message?.ok_or(Error::WatchEnded)?;
                    if message.canceled() {
                        let reason = message.cancel_reason().to_owned();
                        return Err(Error::WatchCancelled { reason, compact_revision: message.compact_revision() });
                    }
                    for event in message.events() {
                        again |= self.event(event.event_type(), event.kv()).await?;
                    }
                }
                read = async { reading.as_mut().expect("guarded by the condition").await }, if reading.is_some() => {
                    reading = None;
                    self.report(Observation::Read(read?)).await?;
                }
                _ = tick.tick() => again = true,
            }
            if again && reading.is_none() {
                again = false;
                reading = Some(Box::pin(reader.clone().read(false)));
            }
        }
    }

    /// Reports a watch event; whether it was about the leader key.
    async fn event(&self, kind: EventType, kv: Option<&KeyValue>) -> Result<bool, Error> {
        let Some((slot, kv)) = kv.and_then(|kv| Some((slot_of(&self.source.prefix, kv)?, kv))) else { return Ok(false) };
        let leader = slot == Slot::Leader;
        let revision = kv.mod_revision();
        let observation = match kind {
            EventType::Delete => Observation::Gone { revision, slot },
            EventType::Put => match Fact::parse(&slot, kv.value(), kv.create_revision(), kv.lease()) {
                Some(fact) => Observation::Put { revision, fact },
                // A leader key whose value makes no sense names nobody.
                None if leader => Observation::Gone { revision, slot },
                None => return Ok(false),
            },
        };
        self.report(observation).await?;
        Ok(leader)
    }

    async fn report(&self, observation: Observation) -> Result<(), Error> {
        self.observations.send(observation).await.map_err(|_| Error::Stopping)
    }
}

fn slot_of(prefix: &str, kv: &KeyValue) -> Option<Slot> {
    Slot::parse(std::str::from_utf8(kv.key()).ok()?.strip_prefix(prefix)?)
}

#[derive(Clone)]
struct Reader {
    client: Client,
    prefix: String,
    timeout: Duration,
}

impl Reader {
    /// A linearizable read of the cluster's keys, and of what the leader key's lease has left.
    async fn read(self, first: bool) -> Result<Read, Error> {
        let timeout = self.timeout;
        within(timeout, self.read_both(first)).await
    }

    async fn read_both(self, first: bool) -> Result<Read, Error> {
        let sent_at = Instant::now();
        let mut answer = self.client.kv_client().get(self.prefix.as_str(), Some(GetOptions::new().with_prefix())).await?;
        let revision = answer.header().ok_or(Error::NoHeader)?.revision();
        let mut facts = Vec::new();
        let mut lease = 0;
        for kv in answer.take_kvs() {
            let Some(slot) = slot_of(&self.prefix, &kv) else { continue };
            if slot == Slot::Leader {
                lease = kv.lease();
            }
            facts.extend(Fact::parse(&slot, kv.value(), kv.create_revision(), kv.lease()));
        }
        let lease_left = match lease {
            0 => None,
            lease => self.lease_left(lease, first).await?,
        };
        Ok(Read { sent_at, revision, first, facts, lease_left })
    }

    /// What `lease` has left, rounded down to seconds; zero if it is gone. `None` where this user may not ask.
    async fn lease_left(&self, lease: i64, first: bool) -> Result<Option<Duration>, Error> {
        match self.client.lease_client().time_to_live(lease, None).await {
            Ok(answer) => Ok(Some(Duration::from_secs(u64::try_from(answer.ttl()).unwrap_or(0)))),
            Err(etcd_client::Error::GRpcStatus(status)) if status.code() as i32 == PERMISSION_DENIED => {
                if first {
                    warn!(error = status.message(), "etcd doesn't tell the leader lease's time to live: going by Patroni's ttl");
                }
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

async fn within<T, E>(limit: Duration, future: impl Future<Output = Result<T, E>>) -> Result<T, Error>
where
    Error: From<E>,
{
    Ok(time::timeout(limit, future).await.map_err(|_| Error::Timeout(limit))??)
}
