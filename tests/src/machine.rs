//! What this machine offers: where the programs are, and as whom they run.
//!
//! PostgreSQL refuses to run as root. Root's clusters run as user `postgres` instead, through `setpriv`; anybody else's run as themselves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, bail};

/// Read when the machine is looked at, in this order of precedence: each overrules a place that is otherwise found.
const POSTGRES_BIN: &str = "SWITCHYARD_PG_BIN";
const PATRONI_VENV: &str = "SWITCHYARD_VENV";
const ROUTER: &str = "SWITCHYARD_BIN";

/// Debian's place for PostgreSQL's programs, a folder for each major version.
const DEBIAN_POSTGRES: &str = "/usr/lib/postgresql";
/// Where `scripts/install.sh` puts Patroni for root.
const ROOT_VENV: &str = "/var/lib/switchyard/venv";

#[derive(Clone, Debug)]
pub struct Machine {
    /// `initdb`, `postgres`, `pgbench` and the like.
    pub postgres_bin: PathBuf,
    pub patroni: PathBuf,
    pub etcd: PathBuf,
    pub account: Account,
}

/// As whom the servers run.
#[derive(Clone, Debug)]
pub struct Account {
    /// `None`: as whoever runs this program.
    user: Option<User>,
}

#[derive(Clone, Debug)]
struct User {
    name: &'static str,
    uid: u32,
    gid: u32,
}

impl Machine {
    /// Looks once for each process. Names everything that is missing.
    pub fn look() -> anyhow::Result<&'static Machine> {
        static MACHINE: OnceLock<Result<Machine, String>> = OnceLock::new();
        MACHINE.get_or_init(|| Machine::find().map_err(|error| format!("{error:#}"))).as_ref().map_err(|text| anyhow::anyhow!(text.clone()))
    }

    fn find() -> anyhow::Result<Machine> {
        let account = Account::find()?;
        let mut missing = Vec::new();
        let mut found = |what: &str, place: Option<PathBuf>| {
            place.unwrap_or_else(|| {
                missing.push(what.to_owned());
                PathBuf::new()
            })
        };
        let machine = Machine {
            postgres_bin: found("PostgreSQL", postgres_bin()),
            patroni: found("Patroni", patroni(account.user.is_some())),
            etcd: found("etcd", on_path("etcd")),
            account,
        };
        if !missing.is_empty() {
            bail!("not found: {}; scripts/install.sh installs what is missing", missing.join(", "));
        }
        Ok(machine)
    }

    pub fn postgres_program(&self, name: &str) -> PathBuf {
        self.postgres_bin.join(name)
    }
}

impl Account {
    fn find() -> anyhow::Result<Account> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Account { user: None });
        }
        let id = |flag: &str| -> anyhow::Result<u32> {
            let output = Command::new("id").args([flag, "postgres"]).output().context("id")?;
            let text = String::from_utf8_lossy(&output.stdout);
            text.trim().parse().context("there is no user postgres: scripts/install.sh installs PostgreSQL")
        };
        Ok(Account { user: Some(User { name: "postgres", uid: id("-u")?, gid: id("-g")? }) })
    }

    /// The words to put before a command so that it runs as this account; none if it does anyway.
    pub fn prefix(&self) -> Vec<&str> {
        match &self.user {
            None => Vec::new(),
            Some(user) => vec!["setpriv", "--reuid", user.name, "--regid", user.name, "--init-groups"],
        }
    }

    /// A command that runs `program` as this account, in a session of its own: without a terminal, and out of reach of its Ctrl-C.
    /// Neither `setsid` nor `setpriv` forks here, so the child's process id is the program's.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setsid");
        command.args(self.prefix()).arg(program);
        command
    }

    /// Gives `path` to the account.
    pub fn own(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).with_context(|| format!("chown {}", path.display()))?;
        }
        Ok(())
    }

    /// Whom a file system belongs to, as an option of mount.
    pub(crate) fn owner(&self) -> String {
        self.user.as_ref().map_or_else(String::new, |user| format!("uid={},gid={}", user.uid, user.gid))
    }

    /// Whether this program runs as root, and the servers as somebody else.
    pub fn is_other(&self) -> bool {
        self.user.is_some()
    }
}

/// The checkout that this crate was built in.
pub fn checkout() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// The router: `SWITCHYARD_BIN`, or what cargo built beside the running test (`target/<profile>/deps/..`) or program.
pub fn router() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(ROUTER) {
        return Ok(path.into());
    }
    let here = std::env::current_exe().context("the path of this program")?;
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("switchyard"))
        .find(|path| path.is_file())
        .with_context(|| format!("no router beside {}: build it first, with `cargo build`, or set {ROUTER}", here.display()))
}

fn postgres_bin() -> Option<PathBuf> {
    let complete = |folder: &PathBuf| ["initdb", "postgres", "pg_rewind"].iter().all(|program| folder.join(program).is_file());
    if let Some(folder) = std::env::var_os(POSTGRES_BIN) {
        return Some(PathBuf::from(folder)).filter(complete);
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(DEBIAN_POSTGRES)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| complete(folder))
        .collect();
    versions.sort();
    versions.pop().map(|(_, folder)| folder).or_else(|| on_path("initdb")?.parent().map(Path::to_owned).filter(complete))
}

fn patroni(root: bool) -> Option<PathBuf> {
    let venv = match std::env::var_os(PATRONI_VENV) {
        Some(folder) => PathBuf::from(folder),
        None if root => PathBuf::from(ROOT_VENV),
        None => checkout().join(".venv"),
    };
    Some(venv.join("bin/patroni")).filter(|path| path.is_file())
}

/// A program of the user's PATH, or of `/usr/sbin`, where Debian has servers.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).map(|folder| folder.join(program)).find(|path| path.is_file())
}
