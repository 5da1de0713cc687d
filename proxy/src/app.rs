//! The composition root: builds everything from a configuration, and runs until a signal.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use switchyard_config::{Config, Loaded, Problems};
use switchyard_core::sql::Memo;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::admin::{self, Admin, Summary};
use crate::auth::{Gate, LoginFacts};
use crate::clients::Clients;
use crate::context::{Context, NodeLoads, Verdicts};
use crate::control::Control;
use crate::departures::Departures;
use crate::door::Door;
use crate::facts::{Databases, Source};
use crate::listener::{self, Entrance, Listener};
use crate::logging::Logging;
use crate::pool::Pools;
use crate::stats::{Port, Stats};
use crate::tls::{Acceptor, Connector};

/// Where the configuration came from, for reading it again at SIGHUP.
#[derive(Clone, Debug)]
pub struct ConfigSource {
    file: Option<PathBuf>,
}

impl ConfigSource {
    /// `None`: the environment alone.
    pub fn new(file: Option<PathBuf>) -> ConfigSource {
        ConfigSource { file }
    }

    /// Reads file and environment, now.
    ///
    /// # Errors
    /// All problems at once.
    pub fn load(&self) -> Result<Loaded, Problems> {
        // Variables that aren't ours may hold any bytes, and are nobody's business here.
        let env = std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
        switchyard_config::load(self.file.as_deref(), env)
    }
}

/// Runs the router until it is told to stop and has drained.
///
/// # Errors
/// Something that it can't do without can't be had, such as an address to listen on.
pub fn run(config: Config, source: ConfigSource, logging: Logging) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(config.workers).enable_all().build().context("the runtime")?;
    runtime.block_on(async { Router::build(config, source, logging)?.serve().await })
}

/// Between two sweeps of the pools.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at whether everything has drained.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// Everything that runs, put together.
struct Router {
    context: Arc<Context>,
    admin: Arc<Admin>,
    acceptor: Option<Arc<Acceptor>>,
    read_write: Arc<ArcSwap<Entrance>>,
    read_only: Arc<ArcSwap<Entrance>>,
    listeners: Vec<(Listener, Port)>,
    http: Vec<TcpListener>,
    source: ConfigSource,
    logging: Logging,
    draining: Arc<AtomicBool>,
}

impl Router {
    /// Binds everything first: an address that is taken ends the start before anything else happens. Within the runtime.
    fn build(config: Config, source: ConfigSource, logging: Logging) -> anyhow::Result<Router> {
        let (listeners, http) = bind_all(&config)?;
        let acceptor = config.tls.clone().map(Acceptor::new).transpose().context("[tls]")?.map(Arc::new);
        let connector = Connector::new(&config.server_tls).context("[server_tls]")?;
        let stats = Arc::new(Stats::default());
        let health = switchyard_health::start(Arc::new(config.clone()));
        let facts = LoginFacts::start(config.postgres.clone(), health.topology.clone(), connector.clone());
        let require_tls = acceptor.as_ref().is_some_and(|acceptor| acceptor.required());
        let gate = Gate::new(config.auth.clone(), config.server_auth.clone(), require_tls, facts);
        let shared = Arc::new(ArcSwap::from_pointee(config.clone()));
        let pools = Pools::new(shared.clone(), health.topology.clone(), connector, stats.clone());
        let databases = Databases::new(Source { config: shared.clone(), topology: health.topology.clone(), pools: pools.clone() });
        let context = Arc::new(Context {
            config: shared,
            health: health.clone(),
            stats: stats.clone(),
            pools,
            clients: Clients::new(),
            gate: ArcSwap::from_pointee(gate),
            verdicts: Verdicts {
                memo: Memo::new(config.routing.verdict_cache_size),
                databases,
                stats: stats.clone(),
                rules: ArcSwap::from_pointee(config.rules.clone()),
            },
            loads: NodeLoads::new(stats.clone()),
            departures: Departures::default(),
        });
        let draining = Arc::new(AtomicBool::new(false));
        let live = {
            let (context, draining) = (Arc::downgrade(&context), draining.clone());
            move || admin::Live {
                draining: draining.load(Ordering::Relaxed),
                verdicts_cached: context.upgrade().map_or(0, |context| context.verdicts.memo.len() as u64),
            }
        };
        let admin = Admin::new(stats, health.topology.clone(), Summary::of(&config), live).with_control(Control::new(context.clone()));
        let admin = Arc::new(admin);
        let entrance = |port| Arc::new(ArcSwap::from_pointee(Entrance::new(&config, port, door(&config, acceptor.as_ref()))));
        Ok(Router {
            read_write: entrance(Port::ReadWrite),
            read_only: entrance(Port::ReadOnly),
            context,
            admin,
            acceptor,
            listeners,
            http,
            source,
            logging,
            draining,
        })
    }

    async fn serve(mut self) -> anyhow::Result<()> {
        let (stop, stopped) = watch::channel(false);
        for (listener, port) in std::mem::take(&mut self.listeners) {
            let entrance = match port {
                Port::ReadWrite => self.read_write.clone(),
                Port::ReadOnly => self.read_only.clone(),
            };
            tokio::spawn(listener::serve(listener, entrance, self.context.clone(), stopped.clone()));
        }
        let (stop_http, http_stopped) = watch::channel(false);
        let mut http = Vec::new();
        for listener in std::mem::take(&mut self.http) {
            let mut stopped = http_stopped.clone();
            let until = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            http.push(tokio::spawn(admin::serve(listener, self.admin.clone(), until)));
        }
        tokio::spawn(keep_pools(self.context.clone()));
        let mut hangup = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "switchyard is running");
        loop {
            tokio::select! {
                _ = hangup.recv() => self.reload(),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        tracing::info!("stopping: no new clients, running transactions end");
        self.draining.store(true, Ordering::Relaxed);
        let _ = stop.send(true);
        let drained = async {
            loop {
                // Also those that have logged in since.
                self.context.clients.end_all();
                if self.context.clients.count() == 0 {
                    return;
                }
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        let timeout = self.context.config.load().limits.drain_timeout;
        tokio::select! {
            result = tokio::time::timeout(timeout, drained) => if result.is_err() {
                tracing::warn!(clients = self.context.clients.count(), "clients were still busy after {timeout:?}; their connections are cut");
            },
            _ = terminate.recv() => tracing::warn!("stopping at once"),
            _ = interrupt.recv() => tracing::warn!("stopping at once"),
        }
        let _ = stop_http.send(true);
        self.context.health.shutdown();
        for task in http {
            let _ = tokio::time::timeout(Duration::from_secs(1), task).await;
        }
        Ok(())
    }

    /// SIGHUP: reads the configuration again. With a problem in it, everything stays as it was.
    fn reload(&self) {
        let loaded = match self.source.load() {
            Ok(loaded) => loaded,
            Err(problems) => {
                tracing::error!("the configuration was not reloaded:\n{problems}");
                return self.context.stats.event("reload failed: the configuration has problems (see the log)");
            }
        };
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let (config, kept) = switchyard_config::reload(&self.context.config.load(), loaded.config);
        for unchangeable in &kept {
            tracing::warn!("{} was not reloaded: {}", unchangeable.key, unchangeable.why);
        }
        if let Err(error) = self.apply(&config) {
            tracing::error!("the configuration was reloaded in part: {error:#}");
            return self.context.stats.event(format!("reloaded in part: {error:#}"));
        }
        tracing::info!("the configuration was reloaded");
        self.context.stats.event("configuration reloaded");
    }

    fn apply(&self, config: &Config) -> anyhow::Result<()> {
        self.logging.set_filter(&config.log.filter).context("log.filter")?;
        if let Some(acceptor) = &self.acceptor {
            acceptor.reload().context("[tls]")?;
        }
        self.context.pools.tls.store(Arc::new(Connector::new(&config.server_tls).context("[server_tls]")?));
        let require_tls = self.acceptor.as_ref().is_some_and(|acceptor| acceptor.required());
        let gate = self.context.gate.load().with_rules(config.auth.clone(), config.server_auth.clone(), require_tls);
        self.context.gate.store(Arc::new(gate));
        for (entrance, port) in [(&self.read_write, Port::ReadWrite), (&self.read_only, Port::ReadOnly)] {
            entrance.store(Arc::new(Entrance::new(config, port, door(config, self.acceptor.as_ref()))));
        }
        self.admin.summary.store(Arc::new(Summary::of(config)));
        self.context.verdicts.rules.store(Arc::new(config.rules.clone()));
        self.context.health.reload(Arc::new(config.clone()));
        self.context.config.store(Arc::new(config.clone()));
        Ok(())
    }
}

fn door(config: &Config, acceptor: Option<&Arc<Acceptor>>) -> Door {
    Door { tls: acceptor.cloned(), max_startup_bytes: config.limits.max_startup_bytes, proxy_protocol: config.listen.proxy_protocol }
}

type Bound = (Vec<(Listener, Port)>, Vec<TcpListener>);

fn bind_all(config: &Config) -> anyhow::Result<Bound> {
    let mut listeners = Vec::new();
    for (addresses, port, what) in
        [(&config.listen.read_write, Port::ReadWrite, "read/write"), (&config.listen.read_only, Port::ReadOnly, "read-only")]
    {
        for address in addresses {
            let listener = listener::bind(*address).with_context(|| format!("can't listen on {address} ({what})"))?;
            tracing::info!(address = %listener.local_addr()?, "listening, {what}");
            if let Some(folder) = &config.listen.unix_socket_dir {
                let socket = listener::bind_unix(folder, address.port());
                let socket = socket.with_context(|| format!("can't listen in {} ({what})", folder.display()))?;
                listeners.push((Listener::Unix(socket), port));
            }
            listeners.push((Listener::Tcp(listener), port));
        }
    }
    let mut http = Vec::new();
    for address in &config.listen.http {
        let listener = listener::bind(*address).with_context(|| format!("can't listen on {address} (stats page)"))?;
        tracing::info!(address = %listener.local_addr()?, "listening, stats page");
        http.push(listener);
    }
    Ok((listeners, http))
}

/// Closes what a change of the topology makes unusable, at once, and what has grown old, now and then.
async fn keep_pools(context: Arc<Context>) {
    let mut changed = context.health.changed();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            change = changed.changed() => {
                if change.is_err() {
                    return;
                }
                let topology = context.health.topology.load_full();
                context.pools.topology_changed(&topology);
                context.pools.look_ahead(&topology, &changed);
            }
            _ = sweep.tick() => context.pools.sweep(),
        }
    }
}
