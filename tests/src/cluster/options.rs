//! What a cluster shall be like.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

/// A cluster to start. The defaults: three members, asynchronous replication, a temporary folder, free ports.
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) members: usize,
    pub(super) scope: String,
    pub(super) tags: BTreeMap<String, Value>,
    pub(super) names: Vec<String>,
    pub(super) ports: Vec<u16>,
    pub(super) parameters: serde_json::Map<String, Value>,
    pub(super) disks: BTreeMap<String, u32>,
    pub(super) hba: Vec<String>,
    pub(super) synchronous: Synchronous,
    pub(super) folder: Option<PathBuf>,
    pub(super) superuser_password: String,
}

/// Patroni's `synchronous_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Synchronous {
    #[default]
    Off,
    /// One standby, as long as there is one.
    On,
    /// One standby, or no write at all.
    Strict,
    /// Every replica that is there.
    All,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            members: 3,
            scope: "yard".to_owned(),
            tags: BTreeMap::new(),
            names: Vec::new(),
            ports: Vec::new(),
            parameters: serde_json::Map::new(),
            disks: BTreeMap::new(),
            hba: Vec::new(),
            synchronous: Synchronous::Off,
            folder: None,
            superuser_password: "postgres".to_owned(),
        }
    }
}

impl Options {
    pub fn new() -> Options {
        Options::default()
    }

    /// How many members. The first, `node1`, becomes the leader.
    #[must_use]
    pub fn members(mut self, members: usize) -> Options {
        self.members = members;
        self
    }

    /// The members' names, in order, where they shall be others than `node1`, `node2`...
    #[must_use]
    pub fn names(mut self, names: &[&str]) -> Options {
        self.members = names.len();
        self.names = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// The PostgreSQL ports of the first members. One that is taken is replaced by a free one.
    #[must_use]
    pub fn ports(mut self, ports: &[u16]) -> Options {
        self.ports = ports.to_vec();
        self
    }

    #[must_use]
    pub fn scope(mut self, scope: &str) -> Options {
        self.scope = scope.to_owned();
        self
    }

    /// A tag of a member, such as `.tag("node3", "nofailover", true)`.
    #[must_use]
    pub fn tag(mut self, member: &str, tag: &str, value: impl Into<Value>) -> Options {
        self.tags.entry(member.to_owned()).or_insert_with(|| json!({}))[tag] = value.into();
        self
    }

    /// A PostgreSQL parameter of all members, beside those of `patroni/patroni.yml`.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: impl Into<Value>) -> Options {
        self.parameters.insert(name.to_owned(), value.into());
        self
    }

    /// A member's data is on a disk of its own, of so many MiB: what it holds ends with its processes. See
    /// [`limits_disks`](super::limits_disks).
    #[must_use]
    pub fn disk(mut self, member: &str, mebibytes: u32) -> Options {
        self.disks.insert(member.to_owned(), mebibytes);
        self
    }

    /// A line of pg_hba.conf, before all others.
    #[must_use]
    pub fn hba(mut self, line: &str) -> Options {
        self.hba.push(line.to_owned());
        self
    }

    #[must_use]
    pub fn synchronous(mut self, mode: Synchronous) -> Options {
        self.synchronous = mode;
        self
    }

    /// Where its files are, if they shall be there after its end. The folder is emptied first.
    #[must_use]
    pub fn folder(mut self, folder: PathBuf) -> Options {
        self.folder = Some(folder);
        self
    }

    #[must_use]
    pub fn superuser_password(mut self, password: &str) -> Options {
        self.superuser_password = password.to_owned();
        self
    }

    pub(super) fn name(&self, index: usize) -> String {
        self.names.get(index).cloned().unwrap_or_else(|| format!("node{}", index + 1))
    }
}
