//! Logging in through the router's door and gate, against a real PostgreSQL: what a client gets is what PostgreSQL itself says.

mod postgres;
mod router;

use std::time::Duration;

use postgres::{Postgres, ROUTER_PASSWORD, psql, shared};
use router::{Options, TIMEOUT, postgres_config, start, topology};
use switchyard::auth::facts::Unreachable;
use switchyard::auth::{AuthError, ConnectError, Credential, Login, LoginFacts, Target, connect};
use switchyard::tls::{Acceptor, Connector};
use switchyard_config::{AddressMatch, AuthMethod, AuthRule, ClientTls, ServerAuthMethod, ServerAuthRule, SslMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

/// With `RUST_LOG` set, shows what the router logs.
fn trace() {
    let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_test_writer().try_init();
}

/// `Ok`: who the server says that we are. `Err`: SQLSTATE and text.
async fn log_in(port: u16, user: &str, password: &str, database: &str) -> Result<String, (String, String)> {
    trace();
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user(user).password(password).dbname(database).connect_timeout(TIMEOUT);
    let told = |error: tokio_postgres::Error| match error.as_db_error() {
        Some(db) => (db.code().code().to_owned(), format!("{} {} {:?}", db.severity(), db.message(), db.detail())),
        None => ("none".to_owned(), error.to_string()),
    };
    let (client, connection) = config.connect(NoTls).await.map_err(told)?;
    let connection = tokio::spawn(connection);
    let row = client.query_one("SELECT current_user::text || '@' || current_database()", &[]).await.map_err(told)?;
    drop(client);
    let _ = connection.await;
    Ok(row.get(0))
}

fn rule(method: AuthMethod) -> AuthRule {
    AuthRule { address: AddressMatch::All, databases: vec![], users: vec![], tls: None, method }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_postgresqls_own() {
    let postgres = shared();
    let router = start(&postgres, Options::default()).await;
    let unicode = "Ünïcode 'quoted\\\"";
    for (user, password, database, expected) in [
        ("ann", "pencil", "postgres", Ok("ann@postgres")),
        ("ann", "pencil", "latin", Ok("ann@latin")),
        ("future", "pencil", "postgres", Ok("future@postgres")),
        ("ann", "wrong", "postgres", Err("28P01")),
        ("ann", "wrong", "nosuch", Err("28P01")),
        ("nosuch", "pencil", "postgres", Err("28P01")),
        ("nopassword", "pencil", "postgres", Err("28P01")),
        ("expired", "pencil", "postgres", Err("28P01")),
        ("nologin", "pencil", "postgres", Err("28000")),
        ("nologin", "wrong", "postgres", Err("28P01")),
        ("ann", "pencil", "nosuch", Err("3D000")),
        ("ann", "pencil", "x'; DROP TABLE y; --", Err("3D000")),
        ("ann'; SELECT 1; --", "pencil", "postgres", Err("28P01")),
        ("ann", "pencil", "closed", Err("55000")),
        ("ann", "pencil", "private", Err("42501")),
        ("md5user", "pencil", "postgres", Ok("md5user@postgres")),
        ("md5user", "wrong", "postgres", Err("28P01")),
    ] {
        let direct = log_in(postgres.port, user, password, database).await;
        let routed = log_in(router.port, user, password, database).await;
        assert_eq!(routed, direct, "{user} to {database}");
        assert_eq!(routed.as_ref().map(String::as_str).map_err(|(code, _)| code.as_str()), expected, "{user} to {database}");
    }
    assert!(postgres.sql("SELECT rolname FROM pg_roles").contains(unicode), "made as meant");
    assert_eq!(log_in(router.port, unicode, "Ⅸ pass", "postgres").await, Ok(format!("{unicode}@postgres")));
    assert_eq!(log_in(router.port, unicode, "IX pass", "postgres").await, Ok(format!("{unicode}@postgres")), "SASLprep");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_counts_at_the_next_login() {
    let postgres = shared();
    let router = start(&postgres, Options::default()).await;
    for round in 0..5 {
        let (new, old) = (format!("word {round}"), format!("word {}", round - 1));
        postgres.sql(&format!("DROP ROLE IF EXISTS changing; CREATE ROLE changing LOGIN; ALTER ROLE changing PASSWORD '{new}'"));
        assert_eq!(log_in(router.port, "changing", &new, "postgres").await.as_deref(), Ok("changing@postgres"));
        let (code, _) = log_in(router.port, "changing", &old, "postgres").await.expect_err("the old password");
        assert_eq!(code, "28P01");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_log_in_at_once() {
    let postgres = shared();
    let router = start(&postgres, Options::default()).await;
    let port = router.port;
    let logins: Vec<_> = (0..60)
        .map(|index| {
            let (user, password) = [("ann", "pencil"), ("md5user", "pencil"), ("nosuch", "x"), ("ann", "wrong")][index % 4];
            tokio::spawn(async move { (index, log_in(port, user, password, "postgres").await) })
        })
        .collect();
    for login in logins {
        let (index, result) = login.await.expect("no panic");
        assert_eq!(result.is_ok(), index % 4 < 2, "{result:?}");
    }
}

/// psql through the router; its output, or its error.
async fn run_psql(conninfo: String, password: &str, sql: &str) -> Result<String, String> {
    let mut command = psql();
    command.env("PGPASSWORD", password).args(["-d", &conninfo, "-c", sql]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("psql");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_logs_in_over_tls_bound_to_the_channel() {
    let postgres = shared();
    for mode in [SslMode::Disable, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        let options = Options { tls: true, require_tls: true, server_tls: Some(mode), ..Options::default() };
        let router = start(&postgres, options).await;
        let base = format!("host=localhost hostaddr=127.0.0.1 port={} user=ann dbname=postgres", router.port);
        let bound = format!("{base} sslmode=verify-full sslrootcert={} channel_binding=require", postgres.ca.display());
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        // The server's view: whether the router's connection to it is encrypted.
        let encrypted = if mode == SslMode::Disable { "f" } else { "t" };
        assert_eq!(run_psql(bound.clone(), "pencil", sql).await.as_deref(), Ok(encrypted), "{mode:?}");
        let error = run_psql(bound, "wrong", sql).await.expect_err("a wrong password");
        assert!(error.contains("password authentication failed for user \"ann\""), "{error}");
        let error = run_psql(format!("{base} sslmode=disable"), "pencil", sql).await.expect_err("no TLS");
        assert!(error.contains("no encryption"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_gets_along_without_tls() {
    let postgres = shared();
    let router = start(&postgres, Options::default()).await;
    let base = format!("host=127.0.0.1 port={} user=ann dbname=postgres", router.port);
    assert_eq!(run_psql(format!("{base} sslmode=prefer"), "pencil", "SELECT 1").await.as_deref(), Ok("1"));
    let error = run_psql(format!("{base} sslmode=require"), "pencil", "SELECT 1").await.expect_err("no TLS");
    assert!(error.contains("server does not support SSL"), "{error}");
    // Options and settings reach the server, and errors in them are PostgreSQL's.
    let options = format!("{base} options='-c geqo=off --work-mem=123kB -c app.name=a\\\\ b' application_name=login");
    let sql = "SELECT concat_ws('|', current_setting('geqo'), current_setting('work_mem'), current_setting('app.name'),
                      current_setting('application_name'))";
    assert_eq!(run_psql(options, "pencil", sql).await.as_deref(), Ok("off|123kB|a b|login"));
    for options in ["-c geqo", "--geqo", "nonsense", "-Z", "-c nosuch=1", "-c work_mem=x"] {
        let told = async |port| {
            let conninfo = format!("host=127.0.0.1 port={port} user=ann dbname=postgres sslmode=disable options='{options}'");
            let error = run_psql(conninfo, "pencil", "SELECT 1").await.expect_err("bad options");
            error.rsplit_once("FATAL:").map(|(_, text)| text.to_owned()).unwrap_or(error)
        };
        assert_eq!(told(router.port).await, told(postgres.port).await, "{options}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_trust_log_in_by_server_rules() {
    let postgres = shared();
    let certificates = AuthRule { tls: Some(true), ..rule(AuthMethod::Cert) };
    let named = |user: &str, method| AuthRule { users: vec![user.to_owned()], ..rule(method) };
    let server_rules = ["certuser", "trusted"].map(|user| ServerAuthRule {
        databases: vec![],
        users: vec![user.to_owned()],
        method: ServerAuthMethod::Trust,
    });
    let rules = vec![
        certificates,
        named("trusted", AuthMethod::Trust),
        named("ann", AuthMethod::Trust),
        named("md5user", AuthMethod::Trust),
        named("nosuch", AuthMethod::Trust),
        named("expired", AuthMethod::Reject),
    ];
    let router = start(&postgres, Options { rules, server_rules: server_rules.into(), tls: true, ..Options::default() }).await;
    let tls = format!(
        "host=127.0.0.1 port={} dbname=postgres sslmode=require sslcert={} sslkey={}",
        router.port,
        postgres.client_cert.display(),
        postgres.client_key.display()
    );
    let who = "SELECT current_user";
    assert_eq!(run_psql(format!("{tls} user=certuser"), "", who).await.as_deref(), Ok("certuser"));
    let error = run_psql(format!("{tls} user=trusted"), "", who).await.expect_err("another's certificate");
    assert!(error.contains("certificate authentication failed for user \"trusted\""), "{error}");
    let without = format!("host=127.0.0.1 port={} dbname=postgres sslmode=require user=certuser sslcert=/nonexistent", router.port);
    let error = run_psql(without, "", who).await.expect_err("no certificate");
    assert!(error.contains("certificate authentication failed"), "{error}");
    assert_eq!(log_in(router.port, "trusted", "", "postgres").await.as_deref(), Ok("trusted@postgres"));
    assert_eq!(log_in(router.port, "md5user", "", "postgres").await.as_deref(), Ok("md5user@postgres"), "the stored hash is a key");
    let told = async |user| log_in(router.port, user, "", "postgres").await.expect_err(user);
    assert_eq!(told("ann").await.0, "28000", "no key to log in to the server with");
    let (code, text) = told("nosuch").await;
    assert!(code == "28000" && text.contains("role \"nosuch\" does not exist"), "{text}");
    assert!(told("expired").await.1.contains("no auth rule of the router"));
    assert_eq!(told("future").await.0, "28000", "no rule matches");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_reaches_its_query() {
    let postgres = shared();
    let router = start(&postgres, Options::default()).await;
    let conninfo = format!("host=127.0.0.1 port={} user=ann password=pencil dbname=postgres", router.port);
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("a login");
    let connection = tokio::spawn(connection);
    let token = client.cancel_token();
    let (result, ()) = tokio::join!(client.simple_query("SELECT pg_sleep(60)"), async {
        // The query must have begun, or there is nothing to cancel.
        while postgres
            .sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'ann' AND query LIKE 'SELECT pg_sleep%' AND state = 'active'")
            == "0"
        {
            tokio::task::yield_now().await;
        }
        token.cancel_query(NoTls).await.expect("a cancel request");
    });
    assert_eq!(result.expect_err("canceled").code().map(|code| code.code()), Some("57014"));
    drop(client);
    let _ = connection.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_key_is_told_from_a_dead_server() {
    let postgres = shared();
    let target = Target::new("127.0.0.1", postgres.port);
    let attempt = async |credential: &Credential, user, database| {
        let login = Login { user, database, credential, parameters: &[] };
        connect(&target, &login, &Connector::disabled(), TIMEOUT).await
    };
    assert!(matches!(attempt(&Credential::Trust, "ann", "postgres").await, Err(ConnectError::Auth(AuthError::NoAnswer("SCRAM")))));
    let connected = attempt(&Credential::Trust, "trusted", "postgres").await.expect("trust");
    assert!(connected.pid > 0 && connected.secret.len() == 4);
    assert!(connected.parameters.iter().any(|(name, value)| name == "server_encoding" && value == "UTF8"));
    let Err(ConnectError::Server { sqlstate, raw, .. }) = attempt(&Credential::Trust, "trusted", "nosuch").await else {
        panic!("a database that doesn't exist");
    };
    assert!(sqlstate == "3D000" && raw.starts_with(b"E") && raw.len() == 1 + u32::from_be_bytes([raw[1], raw[2], raw[3], raw[4]]) as usize);
    let facts = LoginFacts::start(postgres_config(ROUTER_PASSWORD), topology(&[postgres.port]), Connector::disabled());
    assert!(facts.ask("ann", "postgres").await.is_ok_and(|facts| facts.role.is_some()));
    let dead = Target::new("127.0.0.1", 1);
    let login = Login { user: "ann", database: "x", credential: &Credential::Trust, parameters: &[] };
    assert!(matches!(connect(&dead, &login, &Connector::disabled(), TIMEOUT).await, Err(ConnectError::Unreachable(_))));
    // A listener that never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent_target = Target::new("127.0.0.1", silent.local_addr().expect("an address").port());
    let limit = Duration::from_millis(100);
    assert!(matches!(connect(&silent_target, &login, &Connector::disabled(), limit).await, Err(ConnectError::Timeout(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_beyond_a_databases_encoding_fail_alone() {
    let postgres = shared();
    let config = switchyard_config::Postgres { database: "latin".into(), ..postgres_config(ROUTER_PASSWORD) };
    let facts = LoginFacts::start(config, topology(&[postgres.port]), Connector::disabled());
    let (unknown, known, database) = tokio::join!(facts.ask("漢", "postgres"), facts.ask("ann", "postgres"), facts.ask("ann", "漢"));
    assert!(unknown.is_ok_and(|facts| facts.role.is_none()));
    assert!(known.is_ok_and(|facts| facts.role.is_some() && facts.database.is_some()));
    assert!(database.is_ok_and(|facts| facts.database.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_function_answers_for_a_role_that_may_read_nothing() {
    let postgres = shared();
    postgres.sql("DROP ROLE IF EXISTS clerk; CREATE ROLE clerk LOGIN PASSWORD 'desk'");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/sql/auth_function.sql");
    let output = postgres.psql().args(["-v", "router_role=clerk", "-f", file]).output().expect("psql");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let clerk = |function: Option<&str>| switchyard_config::Postgres {
        user: "clerk".into(),
        auth_function: function.map(str::to_owned),
        ..postgres_config("desk")
    };
    let through = LoginFacts::start(clerk(Some("switchyard.login_facts")), topology(&[postgres.port]), Connector::disabled());
    let plain = LoginFacts::start(postgres_config(ROUTER_PASSWORD), topology(&[postgres.port]), Connector::disabled());
    for (user, database) in [("ann", "postgres"), ("ann", "private"), ("expired", "closed"), ("nosuch", "nosuch"), ("postgres", "private")]
    {
        let expected = plain.ask(user, database).await;
        assert!(expected.is_ok());
        assert_eq!(through.ask(user, database).await, expected, "{user} {database}");
    }
    // One of an earlier version, or of somebody's own, tells less and goes on working.
    let before = "CREATE FUNCTION switchyard.before(a text, b text) RETURNS TABLE (role_exists boolean, verifier text, can_login boolean, expired boolean,
            is_superuser boolean, connection_limit integer, database_exists boolean, accepts_connections boolean, may_connect boolean)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
        'SELECT role_exists, verifier, can_login, expired, is_superuser, connection_limit, database_exists, accepts_connections, may_connect
         FROM switchyard.login_facts(a, b)'";
    postgres.sql(before);
    let before = LoginFacts::start(clerk(Some("switchyard.before")), topology(&[postgres.port]), Connector::disabled());
    let (before, now) = (before.ask("ann", "private").await.expect("an answer"), plain.ask("ann", "private").await.expect("an answer"));
    assert_eq!((&before.role, &before.database), (&now.role, &now.database));
    assert!(before.standing.role == 0 && before.standing.settings == 0 && now.standing.role != 0);
    let without = LoginFacts::start(clerk(None), topology(&[postgres.port]), Connector::disabled());
    assert_eq!(without.ask("ann", "postgres").await, Err(Unreachable), "the clerk may not read pg_authid");
    let allowed = "SELECT has_function_privilege('ann', 'switchyard.login_facts(text, text)', 'EXECUTE')";
    assert_eq!(postgres.sql(allowed), "f");
    postgres.sql("DROP SCHEMA switchyard CASCADE; DROP ROLE clerk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standing_changes_with_all_that_a_server_process_takes_from_the_catalogs() {
    let postgres = Postgres::start();
    let facts = LoginFacts::start(postgres_config(ROUTER_PASSWORD), topology(&[postgres.port]), Connector::disabled());
    let standing = async || facts.ask("ann", "latin").await.expect("an answer").standing;
    let mut before = standing().await;
    assert_eq!(before, standing().await);
    for change in [
        "ALTER ROLE ann SET work_mem = '5MB'",
        "ALTER ROLE ann SET work_mem = '6MB'",
        "ALTER ROLE ann IN DATABASE latin SET work_mem = '5MB'",
        "ALTER DATABASE latin SET work_mem = '5MB'",
        "ALTER ROLE ALL SET work_mem = '5MB'",
        "ALTER ROLE ann RESET ALL",
        "ALTER ROLE ann SUPERUSER",
        "ALTER ROLE ann CONNECTION LIMIT 7",
        "ALTER DATABASE latin CONNECTION LIMIT 7",
        "ALTER ROLE ann RENAME TO other; ALTER ROLE expired RENAME TO ann",
        "ALTER DATABASE latin RENAME TO roman; ALTER DATABASE private RENAME TO latin",
    ] {
        change.split("; ").for_each(|statement| drop(postgres.sql(statement)));
        let after = standing().await;
        assert_ne!(after, before, "{change}");
        before = after;
    }
    for unrelated in ["ALTER ROLE ann PASSWORD 'x'", "ALTER ROLE future SET work_mem = '5MB'", "ALTER DATABASE closed SET work_mem = '5MB'"]
    {
        postgres.sql(unrelated);
        assert_eq!(standing().await, before, "{unrelated}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_answers_only_while_nobody_else_does() {
    let postgres = Postgres::start();
    let facts = LoginFacts::start(postgres_config(ROUTER_PASSWORD), topology(&[postgres.port]), Connector::disabled());
    let before = facts.ask("ann", "postgres").await;
    assert!(before.as_ref().is_ok_and(|facts| facts.role.is_some()));
    postgres.sql("ALTER ROLE ann PASSWORD 'other'");
    let after = facts.ask("ann", "postgres").await;
    assert_ne!(after, before, "the server's word, not the cache's");
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'switchyard logins'");
    assert_eq!(facts.ask("ann", "postgres").await, after, "over a new connection");
    postgres.stop();
    assert_eq!(facts.ask("ann", "postgres").await, after);
    assert_eq!(facts.ask("bob", "postgres").await, Err(Unreachable));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_good_files_and_leaves_bad_ones() {
    let postgres = shared();
    let dir = std::env::temp_dir().join(format!("switchyard-reload-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("a folder");
    let files = ClientTls { cert_file: dir.join("cert"), key_file: dir.join("key"), client_ca_file: None, require: false };
    assert!(Acceptor::new(files.clone()).is_err(), "no files yet");
    std::fs::copy(&postgres.cert, &files.cert_file).expect("a copy");
    std::fs::copy(&postgres.key, &files.key_file).expect("a copy");
    let acceptor = Acceptor::new(files.clone()).expect("good files");
    assert!(acceptor.reload().is_ok());
    std::fs::copy(&postgres.client_key, &files.key_file).expect("a copy");
    assert!(acceptor.reload().is_err(), "another certificate's key");
    std::fs::write(&files.cert_file, "nonsense").expect("a file");
    assert!(acceptor.reload().is_err());
    std::fs::remove_dir_all(&dir).expect("removed");
}

/// Sends raw bytes after a startup packet, and returns everything that came back until the end.
async fn raw(port: u16, minor: u16, after: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    let body = [&[0, 3][..], &minor.to_be_bytes(), b"user\0ann\0_pq_.thing\0on\0database\0postgres\0\0"].concat();
    stream.write_all(&(body.len() as u32 + 4).to_be_bytes()).await.expect("room");
    stream.write_all(&body).await.expect("room");
    stream.write_all(after).await.expect("room");
    stream.shutdown().await.expect("half a close");
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got).await;
    got
}

fn tags(mut bytes: &[u8]) -> String {
    let mut tags = String::new();
    while let [tag, a, b, c, d, ..] = *bytes {
        tags.push(char::from(tag));
        bytes = bytes.get(1 + u32::from_be_bytes([a, b, c, d]) as usize..).unwrap_or_default();
    }
    tags
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_messages_end_their_own_login_only() {
    let postgres = shared();
    let router = start(&postgres, Options::default()).await;
    let message = |tag: u8, length: u32, body: &[u8]| [&[tag][..], &length.to_be_bytes(), body].concat();
    let sasl = |mechanism: &[u8], length: i32, data: &[u8]| {
        let body = [mechanism, &[0], &length.to_be_bytes(), data].concat();
        message(b'p', body.len() as u32 + 4, &body)
    };
    let cases: &[(Vec<u8>, &str)] = &[
        (vec![], "vR"),
        (message(b'Q', 4, b""), "vRE"),
        (message(b'p', 0x7fff_ffff, b"x"), "vR"),
        (message(b'p', 0, b""), "vR"),
        (message(b'p', 400, b"short"), "vR"),
        (message(b'p', 4, b""), "vRE"),
        (sasl(b"SCRAM-SHA-256", -1, b""), "vRR"),
        (sasl(b"SCRAM-SHA-256", 0x7fff_ffff, b"n,,n=,r=x"), "vRE"),
        (sasl(b"SCRAM-SHA-256", i32::MIN, b"n,,n=,r=x"), "vRE"),
        (sasl(b"SCRAM-SHA-256", 3, b"n,,"), "vRE"),
        (sasl(b"SCRAM-SHA-256-PLUS", 9, b"n,,n=,r=x"), "vRE"),
        (sasl(b"SCRAM-SHA-1", 9, b"n,,n=,r=x"), "vRE"),
        (sasl(b"SCRAM-SHA-256", 9, b"n,,n=,r=x"), "vRR"),
        ([sasl(b"SCRAM-SHA-256", 9, b"n,,n=,r=x"), message(b'p', 5, b"x")].concat(), "vRRE"),
    ];
    for (bytes, expected) in cases {
        let got = raw(router.port, 9999, bytes).await;
        assert_eq!(tags(&got), *expected, "{bytes:?}");
        // NegotiateProtocolVersion: 3.2, and one option that isn't known.
        assert_eq!(got[..24], *b"v\0\0\0\x17\0\x03\0\x02\0\0\0\x01_pq_.thing\0", "{bytes:?}");
    }
    assert_eq!(log_in(router.port, "ann", "pencil", "postgres").await.as_deref(), Ok("ann@postgres"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_hangs_is_asked_last() {
    let postgres = shared();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let config = switchyard_config::Postgres { connect_timeout: Duration::from_millis(300), ..postgres_config(ROUTER_PASSWORD) };
    let facts = LoginFacts::start(config, topology(&[port, postgres.port]), Connector::disabled());
    for _ in 0..3 {
        assert!(facts.ask("ann", "postgres").await.is_ok_and(|facts| facts.role.is_some()));
    }
    let mut calls = 0;
    while tokio::time::timeout(Duration::from_millis(100), silent.accept()).await.is_ok() {
        calls += 1;
    }
    assert_eq!(calls, 1, "once, and then not again for a while");
}

#[tokio::test(flavor = "multi_thread")]
async fn walsenders_log_in_too() {
    let postgres = shared();
    let trusted = AuthRule { users: vec!["trusted".to_owned()], ..rule(AuthMethod::Trust) };
    let server_rule = ServerAuthRule { databases: vec![], users: vec!["trusted".to_owned()], method: ServerAuthMethod::Trust };
    let rules = vec![trusted, rule(AuthMethod::ScramSha256)];
    let router = start(&postgres, Options { rules, server_rules: vec![server_rule], ..Options::default() }).await;
    for replication in ["true", "database"] {
        let conninfo = format!("host=127.0.0.1 port={} user=walker dbname=postgres replication={replication}", router.port);
        let answer = run_psql(conninfo, "pencil", "IDENTIFY_SYSTEM").await.expect(replication);
        assert!(answer.contains("|1|0/"), "{answer}");
    }
    // PostgreSQL 15's words, and those of 16 and later.
    let refusals = ["must be superuser or replication role to start walsender", "permission denied to start WAL sender"];
    let told = async |port| {
        let conninfo = format!("host=127.0.0.1 port={port} user=ann dbname=postgres replication=true");
        let error = run_psql(conninfo, "pencil", "IDENTIFY_SYSTEM").await.expect_err("ann may not");
        error.rsplit_once("FATAL:").map(|(_, text)| text.trim().to_owned()).unwrap_or(error)
    };
    let (routed, direct) = (told(router.port).await, told(postgres.port).await);
    assert_eq!(routed, direct);
    assert!(refusals.iter().any(|text| routed.starts_with(text)), "{routed}");
    // psql doesn't show the SQLSTATE of a login's refusal.
    let target = Target::new("127.0.0.1", router.port);
    let parameters = [("replication".to_owned(), "database".to_owned())];
    let login = Login { user: "trusted", database: "postgres", credential: &Credential::Trust, parameters: &parameters };
    let Err(ConnectError::Server { sqlstate, message, .. }) = connect(&target, &login, &Connector::disabled(), TIMEOUT).await else {
        panic!("a walsender without the right to be one");
    };
    assert!(sqlstate == "42501" && refusals.iter().any(|text| message.starts_with(text)), "{sqlstate} {message}");
}

/// A client's TLS without SSLRequest, with or without ALPN; what the router answered to its startup packet.
async fn direct_tls(postgres: &Postgres, port: u16, alpn: bool) -> std::io::Result<u8> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(&postgres.ca).expect("PEM")).expect("an authority");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    if alpn {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await?;
    let body = [&[0, 3, 0, 0][..], b"user\0ann\0database\0postgres\0\0"].concat();
    stream.write_all(&[&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()).await?;
    stream.flush().await?;
    stream.read_u8().await
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_must_name_its_protocol() {
    let postgres = shared();
    let router = start(&postgres, Options { tls: true, ..Options::default() }).await;
    assert_eq!(direct_tls(&postgres, router.port, true).await.ok(), Some(b'R'));
    assert!(direct_tls(&postgres, router.port, false).await.is_err(), "closed without a word");
}
