//! Where `scripts/install.sh` puts the clients that Debian has no package of, or too old ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use switchyard_tests::Result;
use switchyard_tests::machine::{Machine, checkout, on_path};

/// Set, it is the folder with `venv` and `node_modules`.
const CLIENTS: &str = "SWITCHYARD_CLIENTS";
/// Root's.
const ROOT_CLIENTS: &str = "/var/lib/switchyard/clients";
/// Of Debian's libpostgresql-jdbc-java.
const JDBC: &str = "/usr/share/java/postgresql.jar";

#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) python: PathBuf,
    pub(crate) node: PathBuf,
    pub(crate) node_modules: PathBuf,
    pub(crate) java: PathBuf,
    pub(crate) jdbc: PathBuf,
}

impl Programs {
    /// Names everything that is missing.
    pub(crate) fn look() -> Result<Programs> {
        let folder = match std::env::var_os(CLIENTS) {
            Some(folder) => PathBuf::from(folder),
            None if Machine::look()?.account.is_other() => PathBuf::from(ROOT_CLIENTS),
            None => checkout().join(".clients"),
        };
        let programs = Programs {
            python: folder.join("venv/bin/python"),
            node: on_path("node").unwrap_or_else(|| PathBuf::from("node")),
            node_modules: folder.join("node_modules"),
            java: on_path("java").unwrap_or_else(|| PathBuf::from("java")),
            jdbc: PathBuf::from(JDBC),
        };
        let needed = [&programs.python, &programs.node, &programs.node_modules, &programs.java, &programs.jdbc];
        let missing: Vec<_> = needed.into_iter().filter(|path| !path.exists()).map(|path| path.display().to_string()).collect();
        if !missing.is_empty() {
            bail!("not found: {}; scripts/install.sh test installs what is missing", missing.join(", "));
        }
        Ok(programs)
    }
}

/// A client's script.
pub(crate) fn script(name: &str) -> Result<PathBuf> {
    let path = checkout().join("tests/clients").join(name);
    Path::new(&path).canonicalize().with_context(|| format!("{}", path.display()))
}
