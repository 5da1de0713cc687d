//! A real PostgreSQL in a temporary folder, shared by the tests that run at the same time.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// The superuser's password over TCP.
pub(crate) const ROUTER_PASSWORD: &str = "router's own";

/// Stopped and removed on drop.
pub(crate) struct Postgres {
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    /// PEM files: the authority's certificate, the server's certificate and key, a client's certificate and key (CN=certuser).
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_cert: PathBuf,
    pub(crate) client_key: PathBuf,
}

/// The server of the tests that don't break it.
pub(crate) fn shared() -> Arc<Postgres> {
    static RUNNING: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    running.upgrade().unwrap_or_else(|| {
        let started = Arc::new(Postgres::start());
        *running = Arc::downgrade(&started);
        started
    })
}

impl Postgres {
    pub(crate) fn start() -> Postgres {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("switchyard-login-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        let port = free_port();
        std::fs::create_dir(&dir).expect("a folder");
        let file = |name: &str| dir.join(name);
        let postgres = Postgres {
            port,
            ca: file("ca.pem"),
            cert: file("server.pem"),
            key: file("server.key"),
            client_cert: file("client.pem"),
            client_key: file("client.key"),
            dir: dir.clone(),
        };
        postgres.make_certificates();
        if is_root() {
            run(Command::new("chown").arg("-R").arg("postgres:").arg(&dir));
        }
        let data = dir.join("data");
        run(postgres
            .command("initdb")
            .args(["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale", "C", "-D"])
            .arg(&data));
        let hba = "local all postgres trust\n\
                   host all trusted 127.0.0.1/32 trust\n\
                   host all certuser 127.0.0.1/32 trust\n\
                   host all md5user 127.0.0.1/32 md5\n\
                   host all all 127.0.0.1/32 scram-sha-256\n\
                   host replication all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), hba).expect("pg_hba.conf");
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{0}'\nfsync = off\nssl = on\n\
             ssl_cert_file = '{0}/server.pem'\nssl_key_file = '{0}/server.key'\nlogging_collector = off\n",
            dir.display()
        );
        let conf = data.join("postgresql.conf");
        let before = std::fs::read_to_string(&conf).expect("postgresql.conf");
        std::fs::write(&conf, before + &settings).expect("postgresql.conf");
        run(postgres.command("pg_ctl").args(["-w", "-s", "start", "-l"]).arg(dir.join("log")).arg("-D").arg(&data));
        postgres.sql(&format!("ALTER ROLE postgres PASSWORD '{}'", ROUTER_PASSWORD.replace('\'', "''")));
        postgres.sql(
            "CREATE ROLE ann LOGIN PASSWORD 'pencil'; CREATE ROLE nologin NOLOGIN PASSWORD 'pencil';
             CREATE ROLE expired LOGIN PASSWORD 'pencil' VALID UNTIL '2020-01-01'; CREATE ROLE nopassword LOGIN; CREATE ROLE walker LOGIN REPLICATION PASSWORD 'pencil';
             CREATE ROLE future LOGIN PASSWORD 'pencil' VALID UNTIL 'infinity'; CREATE ROLE trusted LOGIN; CREATE ROLE certuser LOGIN;
             CREATE ROLE \"Ünïcode 'quoted\\\"\"\" LOGIN PASSWORD 'Ⅸ pass';
             SET password_encryption = md5; CREATE ROLE md5user LOGIN PASSWORD 'pencil'",
        );
        postgres.sql("CREATE DATABASE closed ALLOW_CONNECTIONS false");
        postgres.sql("CREATE DATABASE private");
        postgres.sql("REVOKE CONNECT ON DATABASE private FROM PUBLIC");
        postgres.sql("CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1");
        postgres
    }

    pub(crate) fn stop(&self) {
        let _ = self.command("pg_ctl").args(["-w", "-s", "-m", "immediate", "stop", "-D"]).arg(self.dir.join("data")).output();
    }

    /// Runs SQL as superuser over the Unix socket, and returns its unaligned output.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let output = self.psql().args(["-c", sql]).output().expect("psql");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) fn psql(&self) -> Command {
        let mut psql = psql();
        psql.arg("-h").arg(&self.dir).args(["-p", &self.port.to_string(), "-U", "postgres", "-d", "postgres", "-v", "ON_ERROR_STOP=1"]);
        psql
    }

    /// One of PostgreSQL's programs, as an ordinary user: it refuses to run as root.
    fn command(&self, program: &str) -> Command {
        let path = bin_dir().join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]).arg(path);
            command
        } else {
            Command::new(path)
        };
        command.current_dir(&self.dir);
        command
    }

    fn make_certificates(&self) {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
        let name = |params: &mut CertificateParams, name: &str| params.distinguished_name.push(DnType::CommonName, name);
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        name(&mut params, "login test authority");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        std::fs::write(&self.ca, ca.pem()).expect("ca.pem");
        for (common_name, names, cert, key) in [
            ("switchyard", vec!["localhost".to_owned(), "127.0.0.1".to_owned()], &self.cert, &self.key),
            ("certuser", vec![], &self.client_cert, &self.client_key),
        ] {
            let mut params = CertificateParams::new(names).expect("parameters");
            name(&mut params, common_name);
            let pair = KeyPair::generate().expect("a key");
            let signed = params.signed_by(&pair, &ca).expect("a certificate");
            std::fs::write(cert, signed.pem()).expect("certificate");
            write_secret(key, &pair.serialize_pem());
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("key");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

pub(crate) fn psql() -> Command {
    let mut psql = Command::new(bin_dir().join("psql"));
    psql.args(["-X", "-A", "-t", "-q"]).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8").env("PGCONNECT_TIMEOUT", "20");
    psql
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// The newest PostgreSQL of Debian's folders, else whatever `pg_config` names.
fn bin_dir() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    if let Some(version) = newest {
        return format!("/usr/lib/postgresql/{version}/bin").into();
    }
    let output = run(Command::new("pg_config").arg("--bindir"));
    String::from_utf8_lossy(&output.stdout).trim().into()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}
