//! Settings that a session carries from server connection to server connection, and what servers report.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::route::ServerRole;
use crate::wire::reply;

/// A setting that isn't the servers': name and value.
pub(super) type Taken = (Arc<str>, Box<[u8]>);

/// How a setting is brought to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// By `set_config`, whose text form is that of a startup packet and of ParameterStatus.
    Value(Box<[u8]>),
    /// By the client's own SET, for parameters whose value no server reports.
    Statement(Box<[u8]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    name: Arc<str>,
    how: How,
}

/// Settings that differ from the server's defaults, in the order in which they were made. Shared between a session and the servers
/// that have been brought to them, so that "nothing to do" is a comparison of pointers.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    entries: Vec<Setting>,
    hash: u64,
}

/// Parameters that don't change what a statement's text means, so that prepared statements can be shared across them.
const NOT_READ_BY_ANALYSIS: &[&str] = &[
    "application_name",
    "client_min_messages",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "work_mem",
    "extra_float_digits",
    "default_transaction_read_only",
    "default_transaction_isolation",
    "synchronous_commit",
];

impl Settings {
    /// From a startup packet's parameters; names in any case. A parameter given twice counts by its last value, as in PostgreSQL.
    pub fn from_startup<'a>(parameters: impl Iterator<Item = (&'a str, &'a [u8])>) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in parameters {
            settings.set(&Arc::from(name.to_ascii_lowercase()), How::Value(value.into()));
        }
        settings
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Without those whose names are `taken`, and these with their values.
    pub(super) fn without(mut self, taken: impl Fn(&str) -> bool) -> (Settings, Vec<Taken>) {
        let mut out = Vec::new();
        self.entries.retain(|entry| match &entry.how {
            How::Value(value) | How::Statement(value) if taken(&entry.name) => {
                out.push((entry.name.clone(), value.clone()));
                false
            }
            _ => true,
        });
        if !out.is_empty() {
            self.rehash();
        }
        (self, out)
    }

    pub fn value(&self, name: &str) -> Option<&How> {
        self.entries.iter().find(|entry| &*entry.name == name).map(|entry| &entry.how)
    }

    pub fn set(&mut self, name: &Arc<str>, how: How) {
        // A later SET may depend on an earlier one (client_encoding): the order is that of the last SET of each.
        self.entries.retain(|entry| entry.name != *name);
        self.entries.push(Setting { name: name.clone(), how });
        self.rehash();
    }

    pub fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| &*entry.name != name);
        self.rehash();
    }

    /// A hash of what analysis may read: part of the names of prepared statements on servers.
    pub fn analysis_hash(&self) -> u64 {
        self.hash
    }

    fn rehash(&mut self) {
        let mut hasher = Xxh3::new();
        for entry in self.entries.iter().filter(|entry| !NOT_READ_BY_ANALYSIS.contains(&&*entry.name)) {
            hasher.update(entry.name.as_bytes());
            let (kind, text) = match &entry.how {
                How::Value(text) => (b"\0v", text),
                How::Statement(text) => (b"\0s", text),
            };
            hasher.update(kind);
            hasher.update(text);
            hasher.update(b"\0");
        }
        self.hash = hasher.digest();
    }

    /// Whether a server that was brought to `self` must be told something to be at `wanted`.
    pub fn differs(&self, wanted: &Settings, role: ServerRole) -> bool {
        let carried = |entry: &&Setting| carried(&entry.name, role);
        !self.entries.iter().filter(carried).eq(wanted.entries.iter().filter(carried))
    }

    /// Whether bringing a server from `self` to `wanted` sets a parameter of an extension (`prefix.name`) that isn't among `accepted`: a server
    /// on which a library owns the prefix refuses what all others take (`MarkGUCPrefixReserved`).
    pub(super) fn may_be_refused(&self, wanted: &Settings, accepted: &[Arc<str>], role: ServerRole) -> bool {
        let new = |entry: &&Setting| self.value(&entry.name) != Some(&entry.how) && carried(&entry.name, role);
        wanted.entries.iter().filter(|entry| entry.name.contains('.') && !accepted.contains(&entry.name)).any(|entry| new(&entry))
    }

    /// The names of extensions' parameters.
    pub(super) fn dotted(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.iter().map(|entry| &entry.name).filter(|name| name.contains('.'))
    }

    /// The statements that bring a server from `self` to `wanted`, as one query text.
    pub fn bring(&self, wanted: &Settings, role: ServerRole, out: &mut Vec<u8>) {
        let mut text = Vec::new();
        for entry in self.entries.iter().filter(|entry| carried(&entry.name, role)) {
            if wanted.value(&entry.name).is_none() {
                text.extend_from_slice(b"RESET ");
                quote_name(&mut text, &entry.name);
                text.push(b';');
            }
        }
        for entry in wanted.entries.iter().filter(|entry| carried(&entry.name, role)) {
            if self.value(&entry.name) == Some(&entry.how) {
                continue;
            }
            match &entry.how {
                How::Value(value) => {
                    text.extend_from_slice(b"SELECT pg_catalog.set_config(");
                    reply::literal(&mut text, entry.name.as_bytes());
                    text.push(b',');
                    reply::literal(&mut text, value);
                    text.extend_from_slice(b",false);");
                }
                How::Statement(statement) => {
                    text.extend_from_slice(statement);
                    // The statement may end in a line comment.
                    text.extend_from_slice(b"\n;");
                }
            }
        }
        if text.is_empty() {
            // Only the order differs.
            text.push(b';');
        }
        reply::query(out, &text);
    }
}

/// A replica connection is read-only by its own startup, whatever its session asks for: it may be promoted under us.
fn carried(name: &str, role: ServerRole) -> bool {
    role == ServerRole::Leader || name != "default_transaction_read_only"
}

fn quote_name(out: &mut Vec<u8>, name: &str) {
    for (index, part) in name.split('.').enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        out.push(b'"');
        out.extend(part.bytes().flat_map(|byte| std::iter::repeat_n(byte, if byte == b'"' { 2 } else { 1 })));
        out.push(b'"');
    }
}

/// A reported parameter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reported {
    pub(super) name: Box<[u8]>,
    pub(super) value: Box<[u8]>,
}

/// What a server reports of its parameters (ParameterStatus), or what a client was told. Cheap to share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(Arc<Vec<Arc<Reported>>>);

impl Params {
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|known| known.name.eq_ignore_ascii_case(name.as_bytes())).map(|known| &*known.value)
    }

    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        if self.0.iter().any(|known| *known.name == *name && *known.value == *value) {
            return;
        }
        self.adopt(Arc::new(Reported { name: name.into(), value: value.into() }));
    }

    /// Takes over what another reports, without a copy: a thousand clients are told the same.
    pub(super) fn adopt(&mut self, reported: Arc<Reported>) {
        let all = Arc::make_mut(&mut self.0);
        match all.iter_mut().find(|known| known.name == reported.name) {
            Some(known) => *known = reported,
            None => all.push(reported),
        }
    }

    pub(super) fn reported(&self) -> &[Arc<Reported>] {
        &self.0
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|known| (&*known.name, &*known.value))
    }

    pub fn same(&self, other: &Params) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes the other's storage where the content is the same, so that the next comparison is one of pointers.
    pub fn share(&mut self, other: &Params) {
        if self.0 == other.0 {
            self.0 = other.0.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(from: &Settings, to: &Settings, role: ServerRole) -> String {
        let mut out = Vec::new();
        from.bring(to, role, &mut out);
        String::from_utf8_lossy(&out[5..out.len() - 1]).into_owned()
    }

    #[test]
    fn a_server_is_brought_from_one_session_to_the_next() {
        let a = Settings::from_startup([("DateStyle", &b"ISO, DMY"[..]), ("app.Tenant", b"it's\\")].into_iter());
        let mut b = Settings::from_startup([("datestyle", &b"ISO, DMY"[..])].into_iter());
        b.set(&Arc::from("work_mem"), How::Statement((*b"SET work_mem = '1MB' -- x").into()));
        assert!(a.differs(&b, ServerRole::Leader));
        assert_eq!(text(&a, &b, ServerRole::Leader), "RESET \"app\".\"tenant\";SET work_mem = '1MB' -- x\n;");
        assert_eq!(text(&Settings::default(), &a, ServerRole::Leader).matches("set_config").count(), 2);
        assert!(text(&b, &a, ServerRole::Leader).contains("set_config('app.tenant', E'it''s\\\\',false)"));
        assert!(!a.differs(&a.clone(), ServerRole::Leader));
    }

    #[test]
    fn a_replica_connection_stays_read_only() {
        let writable = Settings::from_startup([("default_transaction_read_only", &b"off"[..])].into_iter());
        assert!(!Settings::default().differs(&writable, ServerRole::Replica));
        assert!(Settings::default().differs(&writable, ServerRole::Leader));
    }

    #[test]
    fn only_what_analysis_reads_parts_prepared_statements() {
        let mut a = Settings::default();
        a.set(&Arc::from("application_name"), How::Value((*b"x").into()));
        assert_eq!(a.analysis_hash(), {
            let mut b = Settings::default();
            b.set(&Arc::from("work_mem"), How::Value((*b"1").into()));
            b.analysis_hash()
        });
        a.set(&Arc::from("datestyle"), How::Value((*b"ISO").into()));
        assert_ne!(a.analysis_hash(), Settings::default().analysis_hash());
    }
}
