//! What a reload (SIGHUP) may change.
//!
//! Invariant: every field of [`Config`] is either taken from the new one, or kept and named. The `let` patterns below have no `..`, so a
//! new field doesn't compile until it is decided.

use crate::model::{Cluster, Config, Etcd, Listen, Log, Pool, Postgres, Routing};

/// A key that differs in the new configuration and was kept as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unchangeable {
    /// Full path, such as `listen.read_write`.
    pub key: &'static str,
    /// Completes "was kept, because ...".
    pub why: &'static str,
}

impl std::fmt::Display for Unchangeable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was kept until a restart: {}", self.key, self.why)
    }
}

const THREADS: &str = "worker threads are started once";
const WHICH_CLUSTER: &str = "another cluster means other data under open sessions";
const ETCD: &str = "the watch on etcd is opened once";
const SOCKETS: &str = "sockets are bound at the start";
const PROBES: &str = "the connections that probe the members are open with it";
const MODE: &str = "open sessions hold server connections by the old mode's rules";
const CACHE: &str = "the cache is made at the start";
const SUBSCRIBER: &str = "the log's writer is made at the start";

/// The configuration to go on with after a reload: `new`, but with what can't change taken from `old`; and what that was.
pub fn reload(old: &Config, new: Config) -> (Config, Vec<Unchangeable>) {
    let mut kept = Vec::new();
    let Config {
        cluster,
        etcd,
        listen,
        postgres,
        auth,
        server_auth,
        tls,
        server_tls,
        pool,
        routing,
        rules,
        failover,
        patroni,
        control,
        health,
        limits,
        log,
        workers,
    } = new;
    keep_if_other(&old.workers, &workers, "workers", THREADS, &mut kept);
    {
        let Cluster { scope, namespace, static_members } = &cluster;
        keep_if_other(&old.cluster.scope, scope, "cluster.scope", WHICH_CLUSTER, &mut kept);
        keep_if_other(&old.cluster.namespace, namespace, "cluster.namespace", WHICH_CLUSTER, &mut kept);
        keep_if_other(&old.cluster.static_members, static_members, "cluster.member", WHICH_CLUSTER, &mut kept);
    }
    {
        let Etcd { endpoints, username, password, ca_file, cert_file, key_file, connect_timeout, request_timeout } = &etcd;
        keep_if_other(&old.etcd.endpoints, endpoints, "etcd.endpoints", ETCD, &mut kept);
        keep_if_other(&old.etcd.username, username, "etcd.username", ETCD, &mut kept);
        keep_if_other(&old.etcd.password, password, "etcd.password", ETCD, &mut kept);
        keep_if_other(&old.etcd.ca_file, ca_file, "etcd.ca_file", ETCD, &mut kept);
        keep_if_other(&old.etcd.cert_file, cert_file, "etcd.cert_file", ETCD, &mut kept);
        keep_if_other(&old.etcd.key_file, key_file, "etcd.key_file", ETCD, &mut kept);
        keep_if_other(&old.etcd.connect_timeout, connect_timeout, "etcd.connect_timeout", ETCD, &mut kept);
        keep_if_other(&old.etcd.request_timeout, request_timeout, "etcd.request_timeout", ETCD, &mut kept);
    }
    {
        let Listen { read_write, read_only, http, unix_socket_dir, proxy_protocol } = &listen;
        keep_if_other(&old.listen.read_write, read_write, "listen.read_write", SOCKETS, &mut kept);
        keep_if_other(&old.listen.read_only, read_only, "listen.read_only", SOCKETS, &mut kept);
        keep_if_other(&old.listen.http, http, "listen.http", SOCKETS, &mut kept);
        keep_if_other(&old.listen.unix_socket_dir, unix_socket_dir, "listen.unix_socket_dir", SOCKETS, &mut kept);
        keep_if_other(&old.listen.proxy_protocol, proxy_protocol, "listen.proxy_protocol", SOCKETS, &mut kept);
    }
    {
        let Postgres { user, password, database, auth_function, connect_timeout } = &postgres;
        keep_if_other(&old.postgres.user, user, "postgres.user", PROBES, &mut kept);
        keep_if_other(&old.postgres.password, password, "postgres.password", PROBES, &mut kept);
        keep_if_other(&old.postgres.database, database, "postgres.database", PROBES, &mut kept);
        keep_if_other(&old.postgres.auth_function, auth_function, "postgres.auth_function", PROBES, &mut kept);
        keep_if_other(&old.postgres.connect_timeout, connect_timeout, "postgres.connect_timeout", PROBES, &mut kept);
    }
    keep_if_other(&old.pool.mode, &pool.mode, "pool.mode", MODE, &mut kept);
    keep_if_other(&old.routing.verdict_cache_size, &routing.verdict_cache_size, "routing.verdict_cache_size", CACHE, &mut kept);
    keep_if_other(&old.log.format, &log.format, "log.format", SUBSCRIBER, &mut kept);

    let config = Config {
        workers: old.workers,
        cluster: old.cluster.clone(),
        etcd: old.etcd.clone(),
        listen: old.listen.clone(),
        postgres: old.postgres.clone(),
        auth,
        server_auth,
        tls,
        server_tls,
        pool: Pool { mode: old.pool.mode, ..pool },
        routing: Routing { verdict_cache_size: old.routing.verdict_cache_size, ..routing },
        rules,
        failover,
        patroni,
        control,
        health,
        limits,
        log: Log { format: old.log.format, ..log },
    };
    (config, kept)
}

fn keep_if_other<T: PartialEq>(old: &T, new: &T, key: &'static str, why: &'static str, kept: &mut Vec<Unchangeable>) {
    if old != new {
        kept.push(Unchangeable { key, why });
    }
}
