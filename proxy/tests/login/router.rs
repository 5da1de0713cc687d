//! The smallest router: door, gate, one server connection per client, and bytes both ways.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pgwire::messages::Message;
use pgwire::messages::response::{ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::{BackendKeyData, ParameterStatus, SecretKey};
use switchyard::auth::{self, ConnectError, Gate, Login, LoginFacts, Target};
use switchyard::door::{self, Door, Opened};
use switchyard::stream::Stream;
use switchyard::tls::{Acceptor, Connector};
use switchyard_config as config;
use switchyard_core::lsn::Timeline;
use switchyard_core::topology::{Epoch, Leader, Member, Role, Topology};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::postgres::{Postgres, ROUTER_PASSWORD};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Router {
    pub(crate) port: u16,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Router {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Default)]
pub(crate) struct Options {
    pub(crate) rules: Vec<config::AuthRule>,
    pub(crate) server_rules: Vec<config::ServerAuthRule>,
    pub(crate) tls: bool,
    pub(crate) require_tls: bool,
    pub(crate) server_tls: Option<config::SslMode>,
}

pub(crate) fn postgres_config(password: &str) -> config::Postgres {
    config::Postgres {
        user: "postgres".into(),
        password: Some(config::Secret::new(password)),
        database: "postgres".into(),
        auth_function: None,
        connect_timeout: Duration::from_secs(10),
    }
}

/// A cluster on loopback; the first port's member leads.
pub(crate) fn topology(ports: &[u16]) -> Arc<ArcSwap<Topology>> {
    let now = Instant::now();
    let member = |port: &u16| {
        Arc::new(Member {
            name: format!("member {port}").into(),
            host: "127.0.0.1".into(),
            port: *port,
            api_url: None,
            role: Role::Unknown,
            patroni_state: "running".into(),
            weight: 1,
            zone: None,
            probed: None,
            probe_error: None,
            since: now,
            lag_bytes: None,
            lag: None,
            out: None,
            fork: None,
        })
    };
    let leader = Leader {
        member: 0,
        epoch: Epoch(1),
        timeline: Timeline(1),
        valid_until: now + Duration::from_secs(3600),
        standby_cluster: false,
        failsafe: false,
    };
    let members = ports.iter().map(member).collect();
    Arc::new(ArcSwap::from_pointee(Topology { leader: Some(leader), members, ready: true, ..Topology::default() }))
}

pub(crate) fn connector(postgres: &Postgres, mode: config::SslMode) -> Connector {
    let files = config::ServerTls { mode, ca_file: Some(postgres.ca.clone()), cert_file: None, key_file: None };
    Connector::new(&files).expect("server TLS")
}

pub(crate) async fn start(postgres: &Postgres, options: Options) -> Router {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let connector = connector(postgres, options.server_tls.unwrap_or(config::SslMode::Disable));
    let facts = LoginFacts::start(postgres_config(ROUTER_PASSWORD), topology(&[postgres.port]), connector.clone());
    let tls = options.tls.then(|| {
        let files = config::ClientTls {
            cert_file: postgres.cert.clone(),
            key_file: postgres.key.clone(),
            client_ca_file: Some(postgres.ca.clone()),
            require: options.require_tls,
        };
        Arc::new(Acceptor::new(files).expect("client TLS"))
    });
    let shared = Arc::new(Shared {
        door: Door { tls, max_startup_bytes: 10_000, proxy_protocol: false },
        gate: Gate::new(options.rules, options.server_rules, options.require_tls, facts),
        target: Target::new("127.0.0.1", postgres.port),
        connector,
    });
    let accepting = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let shared = shared.clone();
            tokio::spawn(async move { shared.serve(Stream::tcp(stream).expect("socket options")).await });
        }
    });
    Router { port, accepting }
}

struct Shared {
    door: Door,
    gate: Gate,
    target: Target,
    connector: Connector,
}

impl Shared {
    async fn serve(&self, stream: Stream) -> Option<()> {
        let (mut client, startup, peer) = match door::open(stream, &self.door).await.ok()? {
            Opened::Startup { stream, startup, peer } => (stream, startup, peer),
            Opened::Cancel { pid, key, .. } => return auth::backend::cancel(&self.target, pid, &key, &self.connector, TIMEOUT).await.ok(),
        };
        let identity = self.gate.authenticate(&mut client, &startup, &peer).await.ok()?;
        let mut parameters = identity.settings.clone();
        parameters.extend(startup.replication.parameter().map(|value| ("replication".to_owned(), value.to_owned())));
        let login = Login { user: &identity.user, database: &identity.database, credential: &identity.credential, parameters: &parameters };
        let mut server = match auth::connect(&self.target, &login, &self.connector, TIMEOUT).await {
            Ok(server) => server,
            Err(ConnectError::Server { raw, .. }) => {
                client.write_all(&raw).await.ok()?;
                return client.shutdown().await.ok();
            }
            Err(error) => {
                eprintln!("server login as {}: {error}", identity.user);
                return None;
            }
        };
        let mut greeting = bytes::BytesMut::new();
        for (name, value) in server.parameters {
            ParameterStatus::new(name, value).encode(&mut greeting).ok()?;
        }
        BackendKeyData::new(server.pid, SecretKey::Bytes(server.secret.into())).encode(&mut greeting).ok()?;
        ReadyForQuery::new(TransactionStatus::Idle).encode(&mut greeting).ok()?;
        client.write_all(&greeting).await.ok()?;
        client.flush().await.ok()?;
        tokio::io::copy_bidirectional(&mut client, &mut server.stream).await.ok().map(|_| ())
    }
}
