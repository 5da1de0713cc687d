//! The validated configuration. Every value here is usable as it is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub cluster: Cluster,
    pub etcd: Etcd,
    pub listen: Listen,
    pub postgres: Postgres,
    pub auth: Vec<AuthRule>,
    pub server_auth: Vec<ServerAuthRule>,
    pub tls: Option<ClientTls>,
    pub server_tls: ServerTls,
    pub pool: Pool,
    pub routing: Routing,
    /// In order: the first that matches decides.
    pub rules: Vec<RoutingRule>,
    pub failover: Failover,
    pub patroni: Patroni,
    pub control: Control,
    pub health: Health,
    pub limits: Limits,
    pub log: Log,
    /// Worker threads. Default: the machine's cores.
    pub workers: usize,
}

/// Which Patroni cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub scope: String,
    /// Patroni's `namespace`, with its leading slash and none at the end; empty for the root. Default `/service`.
    pub namespace: String,
    /// Members given by hand, for clusters without etcd: the first that isn't in recovery leads. Empty: etcd is the source.
    pub static_members: Vec<StaticMember>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticMember {
    pub name: String,
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// `http://host:port` or `https://host:port`.
    pub endpoints: Vec<String>,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub connect_timeout: Duration,
    pub request_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Default `[::]:15000` and so on, IPv4 included.
    pub read_write: Vec<SocketAddr>,
    pub read_only: Vec<SocketAddr>,
    pub http: Vec<SocketAddr>,
    /// A directory for Unix sockets `.s.PGSQL.<port>` of both data ports.
    pub unix_socket_dir: Option<PathBuf>,
    /// Expect a PROXY protocol header (v1 or v2) on each connection to the data ports.
    pub proxy_protocol: bool,
}

/// The one credential that the router has: probes, verifiers and catalog facts are read with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postgres {
    pub user: String,
    pub password: Option<Secret>,
    pub database: String,
    /// The query that returns a role's login facts, where `user` may not read `pg_authid`: a function name such as
    /// `switchyard.login_facts`, called with the role's and the database's name. `None`: `pg_authid` itself.
    pub auth_function: Option<String>,
    pub connect_timeout: Duration,
}

/// Like a line of pg_hba.conf: the first that matches decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthRule {
    /// `address/bits` in CIDR notation, `all`, or `local` for Unix sockets.
    pub address: AddressMatch,
    /// `all` if empty.
    pub databases: Vec<String>,
    pub users: Vec<String>,
    /// Whether the connection must, mustn't or may use TLS.
    pub tls: Option<bool>,
    pub method: AuthMethod,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressMatch {
    All,
    Local,
    Cidr { address: std::net::IpAddr, bits: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// SCRAM-SHA-256, or md5 for a role whose stored verifier is an md5 hash.
    ScramSha256,
    /// md5 for md5 verifiers; roles with a SCRAM verifier still use SCRAM, as in PostgreSQL.
    Md5,
    Trust,
    /// A client certificate whose CN is the user's name.
    Cert,
    Reject,
}

/// How to log in to the servers as a user who gave no key (trust, cert): the first that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAuthRule {
    pub databases: Vec<String>,
    pub users: Vec<String>,
    pub method: ServerAuthMethod,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerAuthMethod {
    Trust,
    Cert,
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// CA for client certificates.
    pub client_ca_file: Option<PathBuf>,
    pub require: bool,
}

/// TLS towards servers, with libpq's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    pub mode: SslMode,
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub mode: PoolMode,
    /// Server connections for each (node, database, user).
    pub max_size: usize,
    pub min_size: usize,
    /// Server connections for each node, all pools together.
    pub max_per_node: usize,
    /// How long a client waits for a server connection.
    pub wait_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_lifetime: Duration,
    /// Statements kept prepared on each server connection; the least recently used are closed.
    pub max_prepared: usize,
    /// The share of returns of server connections, from 0 to 1, after which the router asks the server what session
    /// state is left and compares it with its books.
    pub verify_returns: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    Transaction,
    Session,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    pub max_lag_bytes: u64,
    /// `None`: no limit.
    pub max_lag: Option<Duration>,
    /// Let the leader serve the read-only port, enforced read-only, when no replica is left.
    pub fallback_to_leader: bool,
    /// READ ONLY transactions on the read/write port: on a replica if the first statement is a read, or on the leader.
    pub readonly_transactions_on_replica: bool,
    /// Hold BEGIN back until the transaction's first statement.
    pub hold_begin: bool,
    /// Levels of the two ports.
    pub consistency_read_write: Consistency,
    pub consistency_read_only: Consistency,
    /// How long a read waits for a replica that shows what it must, before it goes to the leader.
    pub consistency_wait: Duration,
    /// After so long a silence of the leader, the level `global` holds reads to what standbys have received of others' writes. `None`: it waits
    /// for a leader.
    pub global_without_leader: Option<Duration>,
    /// A batch longer than this goes to the leader undecided, in bytes.
    pub look_ahead_bytes: usize,
    /// Cached verdicts, at most.
    pub verdict_cache_size: usize,
    /// Prefer replicas whose tag `zone` is this.
    pub zone: Option<String>,
}

/// A `[[rule]]`: statements that match all that it names are overruled.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingRule {
    /// Its place among the rules, from 1.
    pub number: usize,
    /// `all` if empty, here and below.
    pub users: Vec<String>,
    pub databases: Vec<String>,
    /// A `*` at a name's end stands for any end.
    pub application_names: Vec<String>,
    pub fingerprints: Vec<u128>,
    pub pattern: Option<Pattern>,
    /// At least one of the two.
    pub route: Option<RuleRoute>,
    pub consistency: Option<Consistency>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleRoute {
    Leader,
    Replica,
    Reject,
}

/// A regular expression over a statement's bytes. Two are equal if they are written alike.
#[derive(Clone, Debug)]
pub struct Pattern(pub regex::bytes::Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Consistency {
    Eventual,
    Session,
    Global,
    Strong,
}

impl Consistency {
    /// As the configuration, `switchyard.consistency` and the page spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Consistency::Eventual => "eventual",
            Consistency::Session => "session",
            Consistency::Global => "global",
            Consistency::Strong => "strong",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// How long a write waits while there is no leader.
    pub hold_timeout: Duration,
    /// How many clients may wait, at most.
    pub hold_max: usize,
    /// What is kept off the end of the leader lease, for clocks and scheduling.
    pub lease_margin: Duration,
}

/// Patroni's REST API, as far as the router asks it for something: where it wants credentials (`restapi.authentication`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patroni {
    pub username: Option<String>,
    pub password: Option<Secret>,
}

/// Who may tell the router to do something over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// What requests from elsewhere than this machine must show. `None`: only this machine may.
    pub token: Option<Secret>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Between probes of a member while nothing needs them sooner.
    pub interval: Duration,
    /// Between probes while sessions wait for a replica to catch up, or the leader is changing.
    pub busy_interval: Duration,
    /// After which an unanswered probe counts as failed.
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_clients: usize,
    /// From accept to the end of authentication.
    pub login_timeout: Duration,
    /// Startup packets, at most; PostgreSQL's own limit is 10,000 bytes.
    pub max_startup_bytes: usize,
    /// A single message that the router must hold as a whole, at most (PostgreSQL's own limit for queries is 1 GiB - 1).
    pub max_message_bytes: usize,
    /// Named prepared statements for each client.
    pub max_prepared_per_client: usize,
    /// How long a shutdown waits for running transactions.
    pub drain_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A filter as `tracing_subscriber::EnvFilter` reads it, such as `info` or `switchyard=debug`.
    pub filter: String,
    pub format: LogFormat,
    /// Statements that took longer are logged. `None`: none.
    pub slow_query: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// A password. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}
