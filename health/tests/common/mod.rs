//! A configuration for tests: everything short, nothing listening.

use std::time::Duration;

use switchyard_config::*;

pub(crate) fn config() -> Config {
    let ms = Duration::from_millis;
    Config {
        rules: Default::default(),
        cluster: Cluster { scope: "main".into(), namespace: "/service".into(), static_members: Vec::new() },
        etcd: Etcd {
            endpoints: vec!["http://127.0.0.1:1".into()],
            username: None,
            password: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            connect_timeout: ms(500),
            request_timeout: ms(1000),
        },
        listen: Listen { read_write: vec![], read_only: vec![], http: vec![], unix_socket_dir: None, proxy_protocol: false },
        postgres: Postgres {
            user: "postgres".into(),
            password: None,
            database: "postgres".into(),
            auth_function: None,
            connect_timeout: ms(2000),
        },
        auth: vec![],
        server_auth: vec![],
        tls: None,
        server_tls: ServerTls { mode: SslMode::Disable, ca_file: None, cert_file: None, key_file: None },
        pool: Pool {
            mode: PoolMode::Transaction,
            max_size: 1,
            min_size: 0,
            max_per_node: 1,
            wait_timeout: ms(1000),
            idle_timeout: ms(1000),
            max_lifetime: ms(1000),
            max_prepared: 1,
            verify_returns: 0.0,
        },
        routing: Routing {
            max_lag_bytes: 16 << 20,
            max_lag: Some(ms(10_000)),
            fallback_to_leader: true,
            readonly_transactions_on_replica: true,
            hold_begin: true,
            consistency_read_write: Consistency::Session,
            consistency_read_only: Consistency::Eventual,
            consistency_wait: Duration::ZERO,
            global_without_leader: Some(ms(2000)),
            look_ahead_bytes: 1 << 16,
            verdict_cache_size: 1,
            zone: None,
        },
        failover: Failover { hold_timeout: ms(1000), hold_max: 1, lease_margin: ms(1000) },
        patroni: Patroni { username: None, password: None },
        control: Control { token: None },
        health: Health { interval: ms(200), busy_interval: ms(10), timeout: ms(1000) },
        limits: Limits {
            max_clients: 1,
            login_timeout: ms(1000),
            max_startup_bytes: 10_000,
            max_message_bytes: 1 << 20,
            max_prepared_per_client: 1,
            drain_timeout: ms(1000),
        },
        log: Log { filter: "info".into(), format: LogFormat::Text, slow_query: None },
        workers: 1,
    }
}
