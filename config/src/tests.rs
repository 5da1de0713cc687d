use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// As `load`, from text, with the file's name `c.toml`.
fn from_text(text: &str, env: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let name: Arc<str> = "c.toml".into();
    resolve_all(Some((&name, text)), Some(Path::new("/nonexistent")), pairs(env))
}

fn pairs<'a>(env: &'a [(&str, &str)]) -> impl Iterator<Item = (String, String)> + 'a {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

const MINIMAL: &str = "cluster.scope = 'main'\netcd.endpoints = ['http://10.0.0.1:2379']\n";
const MINIMAL_ENV: &[(&str, &str)] = &[("SWITCHYARD_SCOPE", "main"), ("SWITCHYARD_ETCD_ENDPOINTS", "http://10.0.0.1:2379")];

fn good(text: &str) -> Config {
    match from_text(&format!("{MINIMAL}{text}"), &[]) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{text}\n{problems}"),
    }
}

/// The problems of a file that begins with [`MINIMAL`]'s two lines, as text.
fn problems(text: &str) -> String {
    match from_text(&format!("{MINIMAL}{text}"), &[]) {
        Ok(_) => String::new(),
        Err(problems) => problems.to_string(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    match from_text(&format!("{MINIMAL}{text}"), &[]) {
        Ok(loaded) => loaded.warnings.iter().map(ToString::to_string).collect(),
        Err(problems) => panic!("{text}\n{problems}"),
    }
}

#[test]
fn each_mistake_is_told_with_its_place() {
    const TIME: &str = "a time such as \"250ms\", \"5s\", \"10min\" or \"1h\" (a plain number counts milliseconds)";
    let table: &[(&str, &str)] = &[
        // Unknown keys
        ("[pool]\nmax_sise = 1", "c.toml:4:1: pool.max_sise: unknown key; did you mean \"max_size\"?"),
        ("[pool]\n max-size = 1", "c.toml:4:2: pool.max-size: unknown key; did you mean \"max_size\"?"),
        ("[pool]\nmax_lag_bytes = 1", "c.toml:4:1: pool.max_lag_bytes: unknown key here; did you mean routing.max_lag_bytes?"),
        ("[pool]\nqwertyuiop = 1", "c.toml:4:1: pool.qwertyuiop: unknown key"),
        ("[pol]\nmax_size = 1", "c.toml:3:2: pol: unknown key; did you mean \"pool\"?"),
        ("[pool]\n\"a\\nb\" = 1", "c.toml:4:1: pool.\"a\\nb\": unknown key"),
        ("[[auth]]\nmethod = 'trust'\naddress = 'local'\nuser = 'x'", "c.toml:6:1: auth[1].user: unknown key; did you mean \"users\"?"),
        // Kinds
        ("[pool]\nmax_size = \"5\"", "c.toml:4:12: pool.max_size: expected a whole number, found \"5\" (without quotes)"),
        ("[pool]\nmax_size = 5.5", "c.toml:4:12: pool.max_size: expected a whole number, found a float"),
        ("[pool]\nverify_returns = 1.5", "c.toml:4:18: pool.verify_returns: must be from 0.0 to 1.0, not 1.5"),
        ("[pool]\nverify_returns = nan", "c.toml:4:18: pool.verify_returns: must be from 0.0 to 1.0, not NaN"),
        ("[pool]\nverify_returns = 2", "c.toml:4:18: pool.verify_returns: expected a number such as 0.5, found the number 2"),
        (
            "[pool]\nverify_returns = '0.5'",
            "c.toml:4:18: pool.verify_returns: expected a number such as 0.5, found \"0.5\" (without quotes)",
        ),
        ("[pool]\nmax_size = -1", "c.toml:4:12: pool.max_size: expected a whole number, found the number -1"),
        ("pool = 5", "c.toml:3:8: pool: expected a table, found an integer"),
        ("auth = 5", "c.toml:3:1: auth: expected tables, each under [[auth]], found an integer"),
        ("[[pool]]", "c.toml:3:1: pool: expected a table, found an array"),
        (
            "[routing]\nhold_begin = 'yes'",
            "c.toml:4:14: routing.hold_begin: expected true or false, found \"yes\" (without quotes, as true or false)",
        ),
        ("[routing]\nzone = ''", "c.toml:4:8: routing.zone: expected a string that isn't empty, found \"\""),
        (
            "[pool]\nmode = 'transactoin'",
            "c.toml:4:8: pool.mode: expected \"transaction\" or \"session\", found \"transactoin\" (did you mean \"transaction\"?)",
        ),
        (
            "[routing]\nconsistency_read_write = 'causal'",
            "c.toml:4:26: routing.consistency_read_write: expected \"eventual\", \"session\", \"global\" or \"strong\", found \"causal\"",
        ),
        (
            "[pool]\nidle_timeout = '5m'",
            &format!("c.toml:4:16: pool.idle_timeout: expected {TIME}, found \"5m\" (minutes are \"min\", as in PostgreSQL)"),
        ),
        ("[pool]\nidle_timeout = '5'", &format!("c.toml:4:16: pool.idle_timeout: expected {TIME}, found \"5\" (its unit is missing)")),
        (
            "[limits]\nmax_message_bytes = '16mb'",
            "c.toml:4:21: limits.max_message_bytes: expected a size such as \"64kB\", \"16MB\" or \"1GB\" (a plain number counts bytes), \
             found \"16mb\" (units are B, kB, MB, GB and TB, in powers of 1024, as in PostgreSQL)",
        ),
        (
            "[listen]\nhttp = [':1', 'example.org:2']",
            "c.toml:4:15: listen.http: expected an address such as \":15000\", \"127.0.0.1:15000\" or \"[::1]:15000\", found \"example.org:2\" \
             (names aren't looked up here: give an IP address, an IPv6 one in brackets)",
        ),
        (
            "[[auth]]\nmethod = 'trust'\naddress = '10.0.0.1/8'",
            "c.toml:5:11: auth[1].address: expected \"all\", \"local\" (Unix sockets), or a network such as \"10.0.0.0/8\", \
             found \"10.0.0.1/8\" (bits to the right of the mask must be zero, as in \"10.0.0.0/8\")",
        ),
        // Passwords are never shown
        ("[postgres]\npassword = 12345", "c.toml:4:12: postgres.password: expected a string that isn't empty, found a number"),
        (
            "[postgres]\npassword = \"se\\u0000cret\"",
            "c.toml:4:12: postgres.password: expected a string that isn't empty, found a string that can't be used (it may not contain a zero byte)",
        ),
        // Limits
        ("workers = 0", "c.toml:3:11: workers: must be from 1 to 1024, not 0"),
        ("[limits]\nmax_startup_bytes = 10001", "c.toml:4:21: limits.max_startup_bytes: must be from 512 to 10000 bytes, not 10001"),
        ("[patroni]\nusername = 'x'", "c.toml:4:12: patroni.username: is given without patroni.password or patroni.password_file"),
        ("[control]\ntoken = 'short'", "c.toml:4:9: control.token: must have at least 16 visible ASCII characters, without spaces"),
        ("[failover]\nlease_margin = '11s'", "c.toml:4:16: failover.lease_margin: must be from 0 to 10s, not 11s"),
        ("[health]\ntimeout = 0", "c.toml:4:11: health.timeout: must be from 10ms to 1min, not 0"),
        // Contradictions
        ("[pool]\nmin_size = 30", "c.toml:4:12: pool.min_size: 30 is larger than pool.max_size (20)"),
        ("[pool]\nmax_size = 100", "c.toml:4:12: pool.max_size: 100 is larger than pool.max_per_node (80)"),
        ("[pool]\nmax_per_node = 10", "c.toml:4:16: pool.max_size: 20 is larger than pool.max_per_node (10)"),
        ("[health]\nbusy_interval = '1s'", "c.toml:4:17: health.busy_interval: 1s is longer than health.interval (500ms)"),
        ("[listen]\nread_only = ':15000'", "c.toml:4:13: listen.read_only: [::]:15000 is taken already, by listen.read_write"),
        ("[listen]\nhttp = ['127.0.0.1:1', '127.0.0.1:1']", "c.toml:4:24: listen.http: 127.0.0.1:1 is taken already, by listen.http"),
        (
            "[listen]\nhttp = '127.0.0.1:15000'",
            "c.toml:4:8: listen.http: 127.0.0.1:15000 clashes with [::]:15000, of listen.read_write, which means every address",
        ),
        (
            "[listen]\nread_write = []\nread_only = []",
            "c.toml: listen.read_write: is empty, and so is listen.read_only: clients have no port to come to",
        ),
        ("[listen]\nunix_socket_dir = 'x'", "c.toml:4:19: listen.unix_socket_dir: /nonexistent/x: No such file or directory (os error 2)"),
        ("[tls]\nrequire = true", "c.toml:3:2: tls: needs cert_file and key_file"),
        (
            "[tls]\ncert_file = 'a'",
            "c.toml:4:13: tls.cert_file: /nonexistent/a: can't be read: No such file or directory (os error 2)\n\
             c.toml:4:13: tls.cert_file: is given without its key: set tls.key_file too",
        ),
        (
            "[server_tls]\nmode = 'verify-full'",
            "c.toml:4:8: server_tls.mode: verifies the servers' certificates, which needs server_tls.ca_file",
        ),
        (
            "[[auth]]\naddress = 'all'",
            "c.toml:3:1: auth[1].method: is not set: expected \"scram-sha-256\", \"md5\", \"trust\", \"cert\" or \"reject\"",
        ),
        ("[[auth]]\nmethod = 'md5'\nusers = []", "c.toml:5:9: auth[1].users: is empty, so the rule matches nothing: name some, or \"all\""),
        (
            "[[auth]]\nmethod = 'md5'\ntls = true",
            "c.toml:5:7: auth[1].tls: is true, but there is no [tls] section, so no client can use TLS",
        ),
        (
            "[[auth]]\nmethod = 'cert'",
            "c.toml:4:10: auth[1].method: is \"cert\", which needs tls.client_ca_file to check certificates with",
        ),
        (
            "[[server_auth]]\nmethod = 'cert'",
            "c.toml:4:10: server_auth[1].method: is \"cert\", which needs server_tls.cert_file, server_tls.key_file and a server_tls.mode other than \"disable\"",
        ),
        (
            "[[rule]]\nusers = 'a'",
            "c.toml:3:1: rule[1].route: is not set: expected \"leader\", \"replica\" or \"reject\", or rule.consistency",
        ),
        (
            "[[rule]]\nroute = 'leader'\n[[rule]]\nroute = 'master'",
            "c.toml:6:9: rule[2].route: expected \"leader\", \"replica\" or \"reject\", found \"master\"",
        ),
        (
            "[[rule]]\nroute = 'reject'\npattern = 'a(b'",
            "c.toml:5:11: rule[1].pattern: expected a regular expression, found \"a(b\" (unclosed group)",
        ),
        (
            "[[rule]]\nroute = 'reject'\nfingerprints = ['12']",
            "c.toml:5:17: rule[1].fingerprints: expected a fingerprint of 32 hexadecimal digits, as EXPLAIN (ROUTE) shows it, found \"12\"",
        ),
        (
            "[[cluster.member]]\nhost = 'a'",
            "c.toml:2:18: etcd.endpoints: contradicts [[cluster.member]]: members come from etcd or are given by hand, not both",
        ),
        (
            "[postgres]\nauth_function = 'f(); DROP'",
            "c.toml:4:17: postgres.auth_function: expected a function's name such as \"switchyard.login_facts\", found \"f(); DROP\"",
        ),
        (
            "[postgres]\npassword_file = 'p'",
            "c.toml:4:17: postgres.password_file: /nonexistent/p: can't be read: No such file or directory (os error 2)",
        ),
        (
            "[log]\nfilter = 'switchyard=loud'",
            "c.toml:4:10: log.filter: expected a filter such as \"info\" or \"switchyard=debug\", found \"switchyard=loud\" (error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5)",
        ),
        ("etcd.username = 'u'", "c.toml:3:17: etcd.username: is given without etcd.password or etcd.password_file"),
        ("etcd.password = 'p'", "c.toml:3:17: etcd.password: is given without etcd.username"),
        // Syntax
        ("[pool]\nmax_size = 5\nmax_size = 6", "c.toml:5:1: duplicate key"),
    ];
    let wrong: Vec<String> = table
        .iter()
        .map(|(text, expected)| (text, problems(text), expected))
        .filter(|(_, found, expected)| found != *expected)
        .map(|(text, found, expected)| format!("{text}\n  found     {found}\n  expected  {expected}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn all_problems_come_at_once_and_in_order() {
    let text =
        "[cluster]\nscope = 'a/b'\n[pool]\nmax_sise = 1\nmode = 5\n[failover]\nlease_margin = '1h'\n[[auth]]\n[[auth]]\nmethod = 'md6'\n";
    let found = from_text(text, &[("SWITCHYARD_LOG_FORMAT", "xml")]).expect_err("the file is bad").to_string();
    let expected = "\
c.toml:2:9: cluster.scope: expected a name without slashes and spaces, as in patroni.yml, found \"a/b\"
c.toml:4:1: pool.max_sise: unknown key; did you mean \"max_size\"?
c.toml:5:8: pool.mode: expected \"transaction\" or \"session\", found the number 5
c.toml:7:16: failover.lease_margin: must be from 0 to 10s, not 1h
c.toml:8:1: auth[1].method: is not set: expected \"scram-sha-256\", \"md5\", \"trust\", \"cert\" or \"reject\"
c.toml:10:10: auth[2].method: expected \"scram-sha-256\", \"md5\", \"trust\", \"cert\" or \"reject\", found \"md6\" (did you mean \"md5\"?)
c.toml: etcd.endpoints: is not set: give etcd's addresses here or in SWITCHYARD_ETCD_ENDPOINTS (or members by hand, each under [[cluster.member]])
environment variable SWITCHYARD_LOG_FORMAT: log.format: expected \"text\" or \"json\", found \"xml\"";
    assert_eq!(found, expected);
}

#[test]
fn a_syntax_error_hides_no_other_mistake_and_invents_none() {
    let found = from_text("[pool\nmax_size = 5\n[failover]\nhold_maxx = 1\n", &[]).expect_err("the file is bad").to_string();
    assert!(found.starts_with("c.toml:1:"), "{found}");
    assert!(found.contains("c.toml:4:1: failover.hold_maxx: unknown key; did you mean \"hold_max\"?"), "{found}");
    // What seems to be missing may stand in what couldn't be read.
    assert!(!found.contains("is not set"), "{found}");
}

#[test]
fn etcd_endpoints_and_scope_are_enough() {
    let from_file = from_text(MINIMAL, &[]).expect("the minimal file is good");
    let from_env = load(None, pairs(MINIMAL_ENV)).expect("the minimal environment is good");
    assert_eq!(from_file.config, from_env.config);
    assert_eq!(from_file.warnings, []);
    let nothing = load(None, std::iter::empty()).expect_err("there is no cluster");
    assert_eq!(nothing.iter().map(|problem| problem.key.as_str()).collect::<Vec<_>>(), ["cluster.scope", "etcd.endpoints"]);
    assert!(nothing.iter().all(|problem| problem.place == Place::Nowhere));
}

#[test]
fn every_default() {
    let config = good("");
    let all = |port| vec![std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))];
    let rule = |address| AuthRule { address, databases: vec![], users: vec![], tls: None, method: AuthMethod::ScramSha256 };
    let expected = Config {
        cluster: Cluster { scope: "main".into(), namespace: "/service".into(), static_members: vec![] },
        etcd: Etcd {
            endpoints: vec!["http://10.0.0.1:2379".into()],
            username: None,
            password: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
        },
        listen: Listen { read_write: all(15000), read_only: all(15001), http: all(18080), unix_socket_dir: None, proxy_protocol: false },
        postgres: Postgres {
            user: "switchyard".into(),
            password: None,
            database: "postgres".into(),
            auth_function: None,
            connect_timeout: Duration::from_secs(5),
        },
        auth: vec![rule(AddressMatch::Local), rule(AddressMatch::All)],
        server_auth: vec![],
        tls: None,
        server_tls: ServerTls { mode: SslMode::Prefer, ca_file: None, cert_file: None, key_file: None },
        pool: Pool {
            mode: PoolMode::Transaction,
            max_size: 20,
            min_size: 0,
            max_per_node: 80,
            wait_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(600),
            max_lifetime: Duration::from_secs(3600),
            max_prepared: 500,
            verify_returns: if cfg!(debug_assertions) { 1.0 } else { 0.0 },
        },
        routing: Routing {
            max_lag_bytes: 16 << 20,
            max_lag: None,
            fallback_to_leader: true,
            readonly_transactions_on_replica: true,
            hold_begin: true,
            consistency_read_write: Consistency::Global,
            consistency_read_only: Consistency::Eventual,
            consistency_wait: Duration::from_millis(10),
            global_without_leader: Some(Duration::from_secs(2)),
            look_ahead_bytes: 64 << 10,
            verdict_cache_size: 16_384,
            zone: None,
        },
        rules: vec![],
        failover: Failover { hold_timeout: Duration::from_secs(30), hold_max: 10_000, lease_margin: Duration::from_secs(1) },
        patroni: Patroni { username: None, password: None },
        control: Control { token: None },
        health: Health { interval: Duration::from_millis(500), busy_interval: Duration::from_millis(5), timeout: Duration::from_secs(2) },
        limits: Limits {
            max_clients: 10_000,
            login_timeout: Duration::from_secs(60),
            max_startup_bytes: 10_000,
            max_message_bytes: (1 << 30) - 1,
            max_prepared_per_client: 10_000,
            drain_timeout: Duration::from_secs(25),
        },
        log: Log { filter: "info".into(), format: LogFormat::Text, slow_query: None },
        workers: std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)),
    };
    assert_eq!(config, expected);
}

#[test]
fn values_arrive_where_they_belong() {
    let config = good(
        "workers = 3\n[cluster]\nnamespace = 'db//x/'\n[listen]\nread_write = ['127.0.0.1:1', 2]\nhttp = []\n\
         [routing]\nmax_lag = 'none'\nreadonly_transactions = 'leader'\nconsistency_read_only = 'session'\n[log]\nslow_query = '1.5s'\n"
            .replace("[cluster]\nnamespace", "cluster.namespace")
            .as_str(),
    );
    assert_eq!(config.workers, 3);
    assert_eq!(config.cluster.namespace, "/db/x");
    assert_eq!(config.listen.read_write.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:1", "[::]:2"]);
    assert!(config.listen.http.is_empty());
    assert_eq!(config.routing.max_lag, None);
    assert!(!config.routing.readonly_transactions_on_replica);
    assert_eq!(config.routing.consistency_read_only, Consistency::Session);
    assert_eq!(config.log.slow_query, Some(Duration::from_millis(1500)));
    assert_eq!(good("cluster.namespace = '/'").cluster.namespace, "");
}

#[test]
fn members_by_hand_replace_etcd() {
    let text = "[[cluster.member]]\nname = 'a'\nhost = 'db1'\n[[cluster.member]]\nhost = 'db2'\nport = 5433\n";
    let config = from_text(text, &[]).expect("members are enough").config;
    assert_eq!(config.cluster.scope, "static");
    let member = |name: &str, host: &str, port| StaticMember { name: name.into(), host: host.into(), port };
    assert_eq!(config.cluster.static_members, [member("a", "db1", 5432), member("db2:5433", "db2", 5433)]);
    let bad = "[[cluster.member]]\nname = 'a'\nhost = 'x'\n[[cluster.member]]\nname = 'a'\nhost = 'y'\n[[cluster.member]]\nhost = 'x'\n[[cluster.member]]\nport = 1\n";
    let found = from_text(bad, &[]).expect_err("names are not unique").to_string();
    let expected = "\
c.toml:5:8: cluster.member[2].name: \"a\" is the name of another member
c.toml:7:3: cluster.member[3]: x:5432 is the address of another member
c.toml:9:3: cluster.member[4].host: is not set";
    assert_eq!(found.lines().collect::<Vec<_>>().len(), 3, "{found}");
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found.split_once(' ').map(|(_, text)| text), expected.split_once(' ').map(|(_, text)| text));
    }
}

#[test]
fn etcd_addresses_take_their_scheme_from_what_is_given() {
    assert_eq!(good("").etcd.endpoints, ["http://10.0.0.1:2379"]);
    let plain = from_text("cluster.scope = 'm'\netcd.endpoints = ['a', 'b:1']\n", &[]).expect("no scheme is needed");
    assert_eq!(plain.config.etcd.endpoints, ["http://a:2379", "http://b:1"]);
    let twice = from_text("cluster.scope = 'm'\netcd.endpoints = ['a', 'http://a:2379/']\n", &[]).expect_err("one is there twice");
    assert_eq!(twice.to_string(), "c.toml:2:24: etcd.endpoints: http://a:2379 is given twice");
    let folder = Folder::new("etcd-scheme");
    folder.write("ca.pem", CERTIFICATE);
    let secure = folder.load("cluster.scope = 'm'\netcd.endpoints = 'a'\netcd.ca_file = 'ca.pem'\n").expect("the file is good");
    assert_eq!(secure.config.etcd.endpoints, ["https://a:2379"]);
    let torn = folder.load("cluster.scope = 'm'\netcd.endpoints = 'http://a'\netcd.ca_file = 'ca.pem'\n").expect_err("http has no TLS");
    assert!(torn.to_string().contains(":3:16: etcd.ca_file: contradicts the endpoint http://a:2379: TLS needs https"), "{torn}");
}

#[test]
fn the_environment_wins_over_the_file() {
    let file = "cluster.scope = 'file'\ncluster.namespace = '/file'\netcd.endpoints = 'file'\npostgres.user = 'file'\npostgres.password = 'file'\n\
                listen.read_write = ':1'\nlisten.read_only = ':2'\nlisten.http = ':3'\nlog.filter = 'error'\nlog.format = 'text'\nrouting.zone = 'file'\n";
    let env = [
        ("SWITCHYARD_SCOPE", "env"),
        ("SWITCHYARD_NAMESPACE", "env"),
        ("SWITCHYARD_ETCD_ENDPOINTS", "http://env:1, env2"),
        ("SWITCHYARD_POSTGRES_USER", "env"),
        ("SWITCHYARD_POSTGRES_PASSWORD", "env"),
        ("SWITCHYARD_LISTEN_READ_WRITE", "127.0.0.1:4,[::1]:4"),
        ("SWITCHYARD_LISTEN_READ_ONLY", "5"),
        ("SWITCHYARD_LISTEN_HTTP", ":6"),
        ("SWITCHYARD_LOG", "debug"),
        ("SWITCHYARD_LOG_FORMAT", "json"),
        ("SWITCHYARD_ZONE", "env"),
        ("SWITCHYARD_CONFIG", "read elsewhere"),
        ("PATH", "nobody's business"),
    ];
    let loaded = from_text(file, &env).expect("both are good");
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    assert_eq!((config.cluster.scope.as_str(), config.cluster.namespace.as_str()), ("env", "/env"));
    assert_eq!(config.etcd.endpoints, ["http://env:1", "http://env2:2379"]);
    assert_eq!(config.postgres.user, "env");
    assert_eq!(config.postgres.password.as_ref().map(Secret::expose), Some("env"));
    assert_eq!(config.listen.read_write.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:4", "[::1]:4"]);
    assert_eq!(config.listen.read_only[0].to_string(), "[::]:5");
    assert_eq!(config.listen.http[0].to_string(), "[::]:6");
    assert_eq!((config.log.filter.as_str(), config.log.format), ("debug", LogFormat::Json));
    assert_eq!(config.routing.zone.as_deref(), Some("env"));
    // Empty means not set.
    let config = from_text(file, &[("SWITCHYARD_SCOPE", ""), ("SWITCHYARD_ZONE", "")]).expect("the file is good").config;
    assert_eq!((config.cluster.scope.as_str(), config.routing.zone.as_deref()), ("file", Some("file")));
}

#[test]
fn unknown_variables_are_doubted_but_not_refused() {
    let env = [("SWITCHYARD_SCOP", "x"), ("SWITCHYARD_PORT_15000_TCP", "tcp://10.0.0.1:15000"), ("SWITCHYARD_SERVICE_HOST", "10.0.0.1")];
    let loaded = from_text(MINIMAL, &env).expect("the file is good");
    let found: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["environment variable SWITCHYARD_SCOP: unknown variable, not used; did you mean SWITCHYARD_SCOPE?"]);
}

#[test]
fn every_variable_sets_its_key() {
    for (name, key) in VARIABLES {
        assert!(keys().iter().any(|known| known == key), "{name} sets {key}, which isn't a key");
        // A zero byte is refused by every kind of value, with the key that the variable stands for.
        let problems = load(None, pairs(MINIMAL_ENV).chain(pairs(&[(name, "\0")]))).expect_err(name);
        assert!(problems.iter().any(|problem| problem.key == *key), "{name}: {problems}");
    }
}

#[test]
fn a_password_comes_from_one_place() {
    let folder = Folder::new("password");
    folder.write("good", "geheim\n");
    folder.write("two", "a\nb\n");
    folder.write("empty", "\n");
    let password = |loaded: &Loaded| loaded.config.postgres.password.as_ref().map(|secret| secret.expose().to_owned());
    let loaded = folder.load(&format!("{MINIMAL}postgres.password_file = 'good'\n")).expect("the file is good");
    assert_eq!(password(&loaded).as_deref(), Some("geheim"));
    for (name, reason) in [("two", "must hold one line"), ("empty", "is empty"), ("absent", "can't be read"), (".", "it is a directory")] {
        let problems = folder.load(&format!("{MINIMAL}postgres.password_file = '{name}'\n")).expect_err(name).to_string();
        assert!(problems.contains(":3:26: postgres.password_file: ") && problems.contains(reason), "{problems}");
    }
    let both = folder.load(&format!("{MINIMAL}postgres.password = 'x'\npostgres.password_file = 'good'\n")).expect_err("both are given");
    assert!(both.to_string().ends_with(":4:26: postgres.password_file: contradicts postgres.password: give one of them"), "{both}");
    // The environment's replaces the file's, in whichever form.
    let loaded = from_text(&format!("{MINIMAL}postgres.password_file = 'absent'\n"), &[("SWITCHYARD_POSTGRES_PASSWORD", "env")]);
    assert_eq!(password(&loaded.expect("the absent file isn't asked for")).as_deref(), Some("env"));
    assert!(!format!("{:?}", good("postgres.password = 'geheim'")).contains("geheim"));
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";

#[test]
fn certificates_and_keys_are_opened() {
    let folder = Folder::new("tls");
    folder.write("cert", CERTIFICATE);
    folder.write("key", KEY);
    folder.write("locked", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let tls = "[tls]\ncert_file = 'cert'\nkey_file = 'key'\nclient_ca_file = 'cert'\n[[auth]]\nmethod = 'cert'\ntls = true\n";
    let loaded = folder.load(&format!("{MINIMAL}{tls}")).expect("the files are good");
    assert_eq!(loaded.config.tls.map(|tls| (tls.cert_file, tls.require)), Some((folder.0.join("cert"), false)));
    let swapped =
        folder.load(&format!("{MINIMAL}[tls]\ncert_file = 'key'\nkey_file = 'cert'\n")).expect_err("they are swapped").to_string();
    assert!(swapped.contains("holds no PEM certificate") && swapped.contains("holds no PEM private key"), "{swapped}");
    let locked = folder.load(&format!("{MINIMAL}[tls]\ncert_file = 'cert'\nkey_file = 'locked'\n")).expect_err("it is locked").to_string();
    assert!(locked.contains("holds an encrypted key"), "{locked}");
    let server = "[server_tls]\nmode = 'disable'\ncert_file = 'cert'\nkey_file = 'key'\n";
    let off = folder.load(&format!("{MINIMAL}{server}")).expect_err("TLS is off").to_string();
    assert!(off.ends_with(":5:13: server_tls.cert_file: contradicts server_tls.mode = \"disable\""), "{off}");
}

#[test]
fn doubts_are_warnings() {
    assert_eq!(
        warnings("[[auth]]\nmethod = 'trust'\n[[auth]]\nmethod = 'reject'\nusers = 'x'\n"),
        [
            "c.toml:4:10: auth[1].method: is \"trust\" for every address: whoever reaches the port is whoever they say they are",
            "c.toml:5:1: auth[2]: is never reached: an earlier rule matches all that it does",
        ]
    );
    assert_eq!(warnings("[[auth]]\nmethod = 'trust'\naddress = '127.0.0.1'\n[[auth]]\nmethod = 'reject'\n"), [] as [&str; 0]);
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let folder = Folder::new("files");
    std::fs::write(folder.0.join("latin1.toml"), b"a = 1\nb = \"\xe9\"\n").expect("the folder can be written");
    let refused = |path: &Path| load(Some(path), std::iter::empty()).expect_err("it is no configuration").to_string();
    assert!(refused(&folder.0.join("latin1.toml")).ends_with("it isn't UTF-8 (line 2, byte 11 of the file)"));
    assert!(refused(&folder.0).ends_with("it is a directory"));
    assert!(refused(Path::new("/dev/zero")).ends_with("it is larger than 1048576 bytes"));
    assert!(refused(Path::new("/nonexistent")).starts_with("/nonexistent: can't be read: "));
}

#[test]
fn a_reload_changes_what_it_can_and_names_the_rest() {
    let old = good("");
    let (same, kept) = reload(&old, old.clone());
    assert_eq!((same, kept), (old.clone(), vec![]));

    let new = good(
        "workers = 7\ncluster.namespace = '/x'\npostgres.user = 'x'\npostgres.password = 'x'\netcd.request_timeout = '1s'\nlisten.http = []\n\
         [pool]\nmode = 'session'\nmax_size = 7\n[routing]\nverdict_cache_size = 77\nmax_lag_bytes = 7\n[failover]\nhold_max = 7\n\
         [health]\ninterval = '7s'\n[limits]\nmax_clients = 7\n[log]\nfilter = 'debug'\nformat = 'json'\n[[auth]]\nmethod = 'reject'\n",
    );
    let (now, kept) = reload(&old, new.clone());
    let keys: Vec<&str> = kept.iter().map(|kept| kept.key).collect();
    assert_eq!(
        keys,
        [
            "workers",
            "cluster.namespace",
            "etcd.request_timeout",
            "listen.http",
            "postgres.user",
            "postgres.password",
            "pool.mode",
            "routing.verdict_cache_size",
            "log.format"
        ]
    );
    assert_eq!(kept[3].to_string(), "listen.http was kept until a restart: sockets are bound at the start");
    let expected = Config {
        auth: new.auth,
        pool: Pool { mode: PoolMode::Transaction, ..new.pool },
        routing: Routing { verdict_cache_size: old.routing.verdict_cache_size, ..new.routing },
        failover: new.failover,
        health: new.health,
        limits: new.limits,
        log: Log { format: LogFormat::Text, ..new.log },
        ..old
    };
    assert_eq!(now, expected);
}

/// Lines of the tables in docs/configuration.md: key, default, whether a reload changes it.
fn documented() -> Vec<(String, String, bool)> {
    let text = include_str!("../../docs/configuration.md");
    text.lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| {
            let cells: Vec<&str> = line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
            let [key, _kind, default, reload, _why] = cells[..] else {
                return None;
            };
            Some((key.trim_matches('`').to_owned(), default.to_owned(), reload == "yes"))
        })
        .collect()
}

#[test]
fn every_key_is_documented_and_no_other() {
    let documented: Vec<String> = documented().into_iter().map(|(key, ..)| key).collect();
    let missing: Vec<String> = keys().into_iter().filter(|key| !documented.contains(key)).collect();
    assert_eq!(missing, [] as [&str; 0], "missing in docs/configuration.md");
    let unknown: Vec<&String> = documented.iter().filter(|key| !keys().contains(key)).collect();
    assert_eq!(unknown, [] as [&str; 0], "docs/configuration.md has keys that don't exist");
    let text = include_str!("../../docs/configuration.md");
    for (name, key) in VARIABLES {
        assert!(text.contains(&format!("| `{name}` | `{key}` |")), "{name} is missing in docs/configuration.md");
    }
}

#[test]
fn documented_defaults_are_the_defaults() {
    let defaults = good("");
    let mut checked = 0;
    for (key, default, _) in documented() {
        // A default is a TOML value in backticks; other cells say in words what happens.
        let Some(value) = default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) else {
            continue;
        };
        if key.starts_with("auth.") || key.starts_with("server_auth.") || key.starts_with("rule.") || key.starts_with("cluster.member.") {
            continue;
        }
        assert_eq!(good(&format!("{key} = {value}")), defaults, "{key} = {value}");
        checked += 1;
    }
    assert!(checked >= 35, "only {checked} defaults were found in docs/configuration.md");
}

#[test]
fn the_document_says_rightly_what_a_reload_changes() {
    let old = good("");
    // Another value than the default, for every key that needs no other key beside it.
    let other = |key: &str| -> Option<&str> {
        Some(match key {
            "cluster.scope" | "cluster.namespace" | "etcd.endpoints" | "postgres.user" | "postgres.password" | "postgres.database" => {
                "'other'"
            }
            "postgres.auth_function" => "'a.b'",
            "listen.read_write" | "listen.read_only" | "listen.http" => "':7'",
            "listen.proxy_protocol" => "true",
            "server_tls.mode" => "'require'",
            "pool.mode" => "'session'",
            "pool.verify_returns" => "0.5",
            "pool.max_size" | "pool.min_size" => "7",
            "workers" | "pool.max_per_node" | "pool.max_prepared" | "routing.verdict_cache_size" => "77",
            "failover.hold_max" | "limits.max_clients" | "limits.max_prepared_per_client" => "77",
            "routing.fallback_to_leader" | "routing.hold_begin" => "false",
            "routing.readonly_transactions" => "'leader'",
            "routing.consistency_read_write" => "'eventual'",
            "routing.consistency_read_only" => "'session'",
            "routing.consistency_wait" => "'7ms'",
            "routing.zone" => "'other'",
            "routing.max_lag" | "routing.global_without_leader" | "failover.lease_margin" | "log.slow_query" => "'7s'",
            "health.interval" | "health.busy_interval" => "'77ms'",
            "limits.max_startup_bytes" => "7777",
            "control.token" => "'0123456789abcdef'",
            "log.filter" => "'trace'",
            "log.format" => "'json'",
            _ if key.ends_with("_bytes") => "77777",
            _ if key.ends_with("timeout") || key.ends_with("lifetime") => "'7s'",
            _ => return None,
        })
    };
    let mut checked = 0;
    for (key, _, changes) in documented() {
        let Some(value) = other(&key) else { continue };
        let rest: String = MINIMAL.lines().filter(|line| !line.starts_with(&key)).map(|line| format!("{line}\n")).collect();
        let new = from_text(&format!("{rest}{key} = {value}\n"), &[]).unwrap_or_else(|problems| panic!("{problems}")).config;
        assert_ne!(new, old, "{key} = {value} is the default");
        let (_, kept) = reload(&old, new);
        assert_eq!(kept.is_empty(), changes, "{key}: docs/configuration.md and reload() disagree");
        checked += 1;
    }
    assert!(checked >= 40, "only {checked} keys were checked");
}

#[test]
fn the_example_loads_and_shows_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../switchyard.example.toml");
    let loaded = load(Some(&path), std::iter::empty()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.config.cluster.scope, "main");
    // Uncommented, each commented-out value of the numeric sections is good, too, and is the default.
    let text = include_str!("../../switchyard.example.toml");
    let mut section = "";
    for line in text.lines() {
        if let Some(name) = line.trim_start_matches("# ").strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if let Some((key, value)) = line.strip_prefix("# ").and_then(|line| line.split_once(" = "))
            && ["pool", "routing", "failover", "health", "limits", "log", "listen"].contains(&section)
            && keys().contains(&format!("{section}.{key}"))
            && !value.contains("example")
        {
            assert_eq!(good(&format!("{section}.{key} = {value}")), good(""), "{section}.{key} = {value}");
        }
    }
}

#[test]
fn hostile_files_end_soon() {
    let deep = ["[".repeat(50_000), format!("a = {}", "[".repeat(50_000)), format!("{}a = 1", "a.".repeat(50_000)), "a={".repeat(50_000)];
    for text in deep {
        from_text(&text, &[]).expect_err("it is no configuration");
    }
    let long = from_text(&"not a line of TOML\n".repeat(10_000), &[]).expect_err("it is no configuration");
    assert_eq!(long.count(), 10_000);
    assert!(long.to_string().ends_with("\n... and 9900 more"));
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*", name in "SWITCHYARD_[A-Z_]{0,12}", value in "\\PC*") {
        let _ = from_text(&text, &[(&name, &value)]).map_err(|problems| problems.to_string());
    }

    #[test]
    fn arbitrary_values_never_panic(
        lines in proptest::collection::vec((0usize..200, prop_oneof![
            Just("''"), Just("[]"), Just("{}"), Just("[[]]"), Just("-1"), Just("0"), Just("nan"), Just("1979-05-27"), Just("true"),
            Just("99999999999999999999999"), Just("'99999999999999d'"), Just("'1e400TB'"), Just("':0'"), Just("'[::]:70000'"),
            Just("'::/0'"), Just("'/'"), Just("0x7fffffffffffffff"), Just("[1, 'a', {}]"), Just("{ a = 1 }"), Just("'http://[::1]'"),
        ]), 0..8),
    ) {
        let known = keys();
        let text: String = lines.iter().map(|(index, value)| format!("{} = {value}\n", known[index % known.len()])).collect();
        let _ = from_text(&text, &[]).map_err(|problems| problems.to_string());
    }

    #[test]
    fn arbitrary_variables_never_panic(index in 0..VARIABLES.len(), value in "\\PC*") {
        let _ = load(None, pairs(&[(VARIABLES[index].0, &value)])).map_err(|problems| problems.to_string());
    }
}

/// A folder of its own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("switchyard-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory can be written");
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("the folder can be written");
    }

    fn load(&self, text: &str) -> Result<Loaded, Problems> {
        self.write("switchyard.toml", text);
        load(Some(&self.0.join("switchyard.toml")), std::iter::empty())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn rules_keep_their_order_and_a_reload_takes_them() {
    let config = good(
        "[[rule]]\nusers = ['report', 'bi']\nroute = 'replica'\n\
         [[rule]]\nfingerprints = '000102030405060708090a0b0c0d0e0f'\npattern = '(?i)^\\s*truncate'\nroute = 'reject'\n\
         [[rule]]\nusers = 'web'\nconsistency = 'strong'\n",
    );
    let [first, second, third] = config.rules.as_slice() else { panic!("{:?}", config.rules) };
    assert_eq!((first.number, first.users.len(), first.route), (1, 2, Some(RuleRoute::Replica)));
    assert_eq!((third.route, third.consistency), (None, Some(Consistency::Strong)));
    assert_eq!((second.number, second.fingerprints.as_slice()), (2, &[0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f][..]));
    assert!(second.pattern.as_ref().is_some_and(|pattern| pattern.0.is_match(b" TRUNCATE t")));
    let (reloaded, kept) = reload(&good(""), config.clone());
    assert_eq!((reloaded.rules, kept.len()), (config.rules, 0));
}
