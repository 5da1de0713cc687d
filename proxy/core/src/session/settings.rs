//! Settings that a session carries from server connection to server connection, and what servers report.
//!
//! Invariant: a setting is brought to a server as a value, bound to `set_config`, and never as text: a text would be read under other settings
//! than those under which its client wrote it.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::route::ServerRole;
use crate::wire::reply;

/// A setting that isn't the servers': name and value.
pub(super) type Taken = (Arc<str>, Box<[u8]>);

/// A setting's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// In the text form of a startup packet, ParameterStatus and `current_setting`, in the server's encoding.
    Known(Box<[u8]>),
    /// Only the server that was told it knows how it reads: it is asked before it goes back to its pool. The number is its own.
    Unread(u64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    name: Arc<str>,
    value: Value,
}

/// Settings that differ from the server's defaults, in the order in which they were made. Shared between a session and the servers
/// that have been brought to them, so that "nothing to do" is a comparison of pointers.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    entries: Vec<Setting>,
    hash: u64,
}

/// Parameters that don't change what a statement's text means, so that prepared statements can be shared across them.
pub(super) const NOT_READ_BY_ANALYSIS: &[&str] = &[
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

/// Parameters by which strings are read, and values out of them when a statement is prepared.
pub(super) const READ_OF_STRINGS: [&str; 8] = [
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "default_text_search_config",
    "intervalstyle",
    "standard_conforming_strings",
    "timezone",
    "xmloption",
];

/// Parameters by which a text is cut into tokens, or warned of, also in a transaction that has failed.
const READ_BY_LEXER: [&str; 4] = ["backslash_quote", "client_encoding", "escape_string_warning", "standard_conforming_strings"];

/// Parameters of which a server takes any value that another one of the cluster has taken: what is valid is in their code (`guc_tables.c`), not in
/// catalogs, files or libraries. The values of all others are waited for before a statement is sent that may depend on them.
const SURE: &[&str] = &[
    "application_name",
    "backslash_quote",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "constraint_exclusion",
    "datestyle",
    "deadlock_timeout",
    "default_statistics_target",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "effective_cache_size",
    "enable_hashjoin",
    "enable_indexscan",
    "enable_mergejoin",
    "enable_nestloop",
    "enable_seqscan",
    "escape_string_warning",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "intervalstyle",
    "jit",
    "lock_timeout",
    "maintenance_work_mem",
    "plan_cache_mode",
    "quote_all_identifiers",
    "random_page_cost",
    "row_security",
    "search_path",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronous_commit",
    "temp_buffers",
    "timezone",
    "transform_null_equals",
    "work_mem",
    "xmlbinary",
    "xmloption",
];

impl Settings {
    /// From a startup packet's parameters; names in any case. A parameter given twice counts by its last value, as in PostgreSQL.
    pub fn from_startup<'a>(parameters: impl Iterator<Item = (&'a str, &'a [u8])>) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in parameters {
            settings.set(&Arc::from(name.to_ascii_lowercase()), Value::Known(value.into()));
        }
        settings
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// As parameters of a startup packet; `None` where one isn't UTF-8, or isn't known.
    pub fn to_startup(&self) -> Option<Vec<(String, String)>> {
        let parameter = |entry: &Setting| match &entry.value {
            Value::Known(value) => Some((entry.name.to_string(), String::from_utf8(value.to_vec()).ok()?)),
            Value::Unread(_) => None,
        };
        self.entries.iter().map(parameter).collect()
    }

    /// Without those whose names are `taken`, and these with their values.
    pub(super) fn without(mut self, taken: impl Fn(&str) -> bool) -> (Settings, Vec<Taken>) {
        let mut out = Vec::new();
        self.entries.retain(|entry| match &entry.value {
            Value::Known(value) if taken(&entry.name) => {
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

    pub fn value(&self, name: &str) -> Option<&Value> {
        self.entries.iter().find(|entry| &*entry.name == name).map(|entry| &entry.value)
    }

    pub fn set(&mut self, name: &Arc<str>, value: Value) {
        match self.entries.iter_mut().find(|entry| entry.name == *name) {
            Some(entry) => entry.value = value,
            None => self.entries.push(Setting { name: name.clone(), value }),
        }
        self.rehash();
    }

    pub fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| &*entry.name != name);
        self.rehash();
    }

    /// All of them by name, in the order in which they were made.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Value)> {
        self.entries.iter().map(|entry| (&entry.name, &entry.value))
    }

    /// The parameters whose values only the server knows.
    pub(super) fn unread(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.iter().filter(|entry| matches!(entry.value, Value::Unread(_))).map(|entry| &entry.name)
    }

    /// A hash of what analysis may read: part of the names of prepared statements on servers.
    pub fn analysis_hash(&self) -> u64 {
        self.hash
    }

    /// Whether text means the same under these settings as under others: strings, and the values that they are read as.
    pub(super) fn reads_as(&self, others: &Settings) -> bool {
        self.hash == others.hash || READ_OF_STRINGS.iter().all(|name| self.value(name) == others.value(name))
    }

    /// As [`Settings::reads_as`], of tokens only.
    pub(super) fn lexes_as(&self, others: &Settings) -> bool {
        READ_BY_LEXER.iter().all(|name| self.value(name) == others.value(name))
    }

    fn rehash(&mut self) {
        let mut hasher = Xxh3::new();
        let mut read: Vec<&Setting> = self.entries.iter().filter(|entry| !NOT_READ_BY_ANALYSIS.contains(&&*entry.name)).collect();
        read.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        for entry in read {
            hasher.update(entry.name.as_bytes());
            match &entry.value {
                Value::Known(text) => {
                    hasher.update(b"\0v");
                    hasher.update(text);
                }
                Value::Unread(number) => {
                    hasher.update(b"\0u");
                    hasher.update(&number.to_ne_bytes());
                }
            }
            hasher.update(b"\0");
        }
        self.hash = hasher.digest();
    }

    /// What a server that was brought to `self` must be told to be at `wanted`: a name and its value, or none for the server's own.
    fn plan<'a>(&'a self, wanted: &'a Settings, role: ServerRole) -> impl Iterator<Item = (&'a Arc<str>, Option<&'a Value>)> {
        let gone = self.entries.iter().filter(|entry| wanted.value(&entry.name).is_none()).map(|entry| (&entry.name, None));
        let new = wanted.entries.iter().filter(|entry| self.value(&entry.name) != Some(&entry.value));
        gone.chain(new.map(|entry| (&entry.name, Some(&entry.value)))).filter(move |(name, _)| carried(name, role))
    }

    /// Whether a server that was brought to `self` must be told something to be at `wanted`.
    pub fn differs(&self, wanted: &Settings, role: ServerRole) -> bool {
        self.plan(wanted, role).next().is_some()
    }

    /// Whether a server may refuse what brings it from `self` to `wanted`. `accepted`: extensions' parameters (`prefix.name`) that it has taken; a
    /// server on which a library owns the prefix refuses what all others take (`MarkGUCPrefixReserved`).
    pub(super) fn may_be_refused(&self, wanted: &Settings, accepted: &[Arc<str>], role: ServerRole) -> bool {
        self.plan(wanted, role).any(|(name, _)| !is_sure(name, accepted))
    }

    /// Whether a server may refuse to take back what others have set: with rights that this session hasn't got.
    pub(super) fn may_not_go_back(&self, wanted: &Settings, accepted: &[Arc<str>], role: ServerRole) -> bool {
        self.plan(wanted, role).any(|(name, value)| value.is_none() && !is_sure(name, accepted))
    }

    /// The names of extensions' parameters.
    pub(super) fn dotted(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.iter().map(|entry| &entry.name).filter(|name| name.contains('.'))
    }

    /// The messages that bring a server from `self` to `wanted`, with a Sync of their own: all of it happens, or nothing.
    pub fn sync_messages(&self, wanted: &Settings, role: ServerRole, out: &mut Vec<u8>) {
        self.messages(wanted, role, false, out);
        reply::sync(out);
    }

    /// As [`Settings::sync_messages`], within a transaction, which may be about to be told its isolation level: no query may come before that. The
    /// client's unnamed statement and portal aren't touched.
    pub(super) fn sync_messages_within(&self, wanted: &Settings, role: ServerRole, out: &mut Vec<u8>) {
        self.messages(wanted, role, true, out);
        reply::sync(out);
    }

    /// As [`Settings::sync_messages_within`], in a segment, without a Sync. How many of the messages are Executes; where there are any, two Closes follow.
    pub(super) fn messages_in_segment(&self, wanted: &Settings, role: ServerRole, out: &mut Vec<u8>) -> usize {
        self.messages(wanted, role, true, out)
    }

    /// As [`Settings::sync_messages_within`], of those parameters only that have the server's own values by now.
    pub(super) fn sync_messages_where_reset(&self, wanted: &Settings, role: ServerRole, out: &mut Vec<u8>) {
        self.calls(wanted, role, [Until::SessionEnd, Until::SessionEndWhereReset], out);
        reply::sync(out);
    }

    /// The messages that give these parameters the values that they have here, up to the end of the transaction that is open, with a Sync of
    /// their own.
    pub(super) fn local_messages(&self, names: &[Arc<str>], out: &mut Vec<u8>) {
        let mut ours = Ours::named();
        for name in names {
            if let Some(Value::Known(value)) = self.value(name) {
                ours.set_config(out, Until::TransactionEnd, name, Some(value));
            }
        }
        ours.close(out);
        reply::sync(out);
    }

    /// The messages that bring a server from `self` to `wanted` up to the end of the transaction that is open, without a Sync, and how many of them are
    /// Executes. Where there are any, two Closes follow. What only the server knows is kept there, for the way back: `wanted` has no other such value.
    pub(super) fn local_changes(&self, wanted: &Settings, role: ServerRole, out: &mut Vec<u8>) -> usize {
        self.calls(wanted, role, [Until::TransactionEnd; 2], out)
    }

    /// The calls of `set_config` that bring a server from `self` to `wanted`: how those hold that go back to the server's own value, and the others.
    /// How many there are.
    fn calls(&self, wanted: &Settings, role: ServerRole, [back, set]: [Until; 2], out: &mut Vec<u8>) -> usize {
        let mut ours = Ours::named();
        let within = matches!(set, Until::TransactionEnd);
        for (name, value) in self.plan(wanted, role) {
            if within && matches!(self.value(name), Some(Value::Unread(_))) {
                ours.set_config(out, Until::Saved, name, None);
            }
            match value {
                None => ours.set_config(out, back, name, None),
                Some(Value::Known(value)) => ours.set_config(out, set, name, Some(value)),
                Some(Value::Unread(_)) if within => ours.set_config(out, Until::Restored, name, None),
                // It never leaves the server that knows it.
                Some(Value::Unread(_)) => {}
            }
        }
        let executed = ours.executed;
        ours.close(out);
        executed
    }

    fn messages(&self, wanted: &Settings, role: ServerRole, within: bool, out: &mut Vec<u8>) -> usize {
        let mut ours = if within { Ours::named() } else { Ours::unnamed() };
        for (name, value) in self.plan(wanted, role) {
            let value = match value {
                // NULL goes back to the server's own value, as RESET does (`set_config_by_name`).
                None => None,
                Some(Value::Known(value)) => Some(&**value),
                // It never leaves the server that knows it.
                Some(Value::Unread(_)) => continue,
            };
            let needs_no_quotes = within && needs_no_quotes(name, value);
            let mut set = |value| {
                if needs_no_quotes {
                    ours.set_by_statement(out, name, value);
                } else {
                    ours.set_config(out, Until::SessionEnd, name, value);
                }
            };
            if value.is_some_and(|value| is_partial(name, value)) && self.value(name).is_some() {
                set(None);
            }
            set(value);
        }
        let executed = ours.executed;
        ours.close(out);
        executed
    }
}

/// Whether any session may set the parameter, and each server takes what another one has taken. `accepted`: as for [`Settings::may_be_refused`].
pub(super) fn is_sure(name: &str, accepted: &[Arc<str>]) -> bool {
    SURE.contains(&name) || (name.contains('.') && accepted.iter().any(|known| **known == *name))
}

/// Whether the server completes the value with what it has: a DateStyle of which only the style or only the order is given (`check_datestyle`). A
/// startup packet's is as its client wrote it, and what another session left must not complete it.
fn is_partial(name: &str, value: &[u8]) -> bool {
    name == "datestyle" && !value.contains(&b',')
}

/// What SET takes apart otherwise than `set_config` does (`GUC_LIST_QUOTE`).
const LISTS_OF_NAMES: [&str; 4] = ["search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"];

/// Whether name and value read the same under whatever settings a lexer has, and in SET as in `set_config`.
fn needs_no_quotes(name: &str, value: Option<&[u8]>) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-+.,:/ ".contains(byte);
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    name.bytes().all(is_name) && !LISTS_OF_NAMES.contains(&name) && value.is_none_or(|value| value.iter().all(is_plain))
}

/// Parse's body behind the name: two parameters of type text (OID 25). The third argument tells whether the value ends with its transaction. The value
/// isn't sent back: the client's encoding may not have its characters.
macro_rules! set_config {
    ($local:literal) => {
        set_config!($local, "")
    };
    ($local:literal, $where:literal) => {
        concat!("SELECT pg_catalog.set_config($1, $2, ", $local, ") IS NULL", $where, "\0\0\x02\0\0\0\x19\0\0\0\x19")
    };
}

/// See [`Until::SessionEndWhereReset`].
const SET_WHERE_RESET: &str = set_config!(
    "false",
    " WHERE CASE WHEN pg_catalog.strpos($1, '.') OPERATOR(pg_catalog.>) 0 \
     THEN coalesce(pg_catalog.current_setting($1, true), '') OPERATOR(pg_catalog.=) '' \
     ELSE NOT EXISTS (SELECT FROM pg_catalog.pg_settings AS s \
     WHERE pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) $1 AND s.source OPERATOR(pg_catalog.=) 'session') END"
);

/// As [`set_config!`], for names and values with other characters than ASCII's: as the hexadecimal digits of their bytes in the server's encoding,
/// they mean the same whatever encoding the client has set.
macro_rules! set_config_encoded {
    ($local:literal) => {
        concat!(
            "SELECT pg_catalog.set_config(",
            "pg_catalog.convert_from(pg_catalog.decode($1, 'hex'), pg_catalog.getdatabaseencoding()), ",
            "pg_catalog.convert_from(pg_catalog.decode($2, 'hex'), pg_catalog.getdatabaseencoding()), ",
            $local,
            ") IS NULL\0\0\x02\0\0\0\x19\0\0\0\x19"
        )
    };
}

/// Keeps a value that only the server knows in a parameter of ours, up to the end of the transaction.
const SAVE: &str = concat!(
    "SELECT pg_catalog.set_config(pg_catalog.concat('switchyard.saved.', $1), pg_catalog.current_setting($1), true) IS NULL",
    "\0\0\x02\0\0\0\x19\0\0\0\x19"
);
/// The way back.
const RESTORE: &str = concat!(
    "SELECT pg_catalog.set_config($1, pg_catalog.current_setting(pg_catalog.concat('switchyard.saved.', $1)), true) IS NULL",
    "\0\0\x02\0\0\0\x19\0\0\0\x19"
);

/// How long a value holds, and which it is.
#[derive(Clone, Copy)]
enum Until {
    SessionEnd,
    /// As `SessionEnd`, where the session hasn't set it, if name and value are in ASCII. (No view shows custom ones: `''` is what RESET leaves of
    /// them.)
    SessionEndWhereReset,
    TransactionEnd,
    /// What it has is kept ([`SAVE`]).
    Saved,
    /// As `TransactionEnd`, of the value that was saved.
    Restored,
}

/// The statement by which parameters are set within a transaction, and its portal.
const WITHIN: &[u8] = b"switchyard_settings";

/// Closes that statement where it may have been left, as what it was to set was refused.
pub(super) fn close_ours(out: &mut Vec<u8>) {
    reply::close_statement(out, WITHIN);
}

/// The statement and portal by which parameters are set.
struct Ours {
    /// Empty: the unnamed ones.
    name: &'static [u8],
    /// What stands there by now.
    parsed: Option<&'static str>,
    executed: usize,
}

impl Ours {
    fn unnamed() -> Ours {
        Ours { name: b"", parsed: None, executed: 0 }
    }

    /// A client may have an unnamed portal open.
    fn named() -> Ours {
        Ours { name: WITHIN, parsed: None, executed: 0 }
    }

    /// Sets one parameter.
    fn set_config(&mut self, out: &mut Vec<u8>, until: Until, name: &str, value: Option<&[u8]>) {
        let ascii = name.is_ascii() && value.is_none_or(<[u8]>::is_ascii);
        let text = match (until, ascii) {
            (Until::SessionEnd, true) => set_config!("false"),
            (Until::SessionEndWhereReset, true) => SET_WHERE_RESET,
            (Until::SessionEnd | Until::SessionEndWhereReset, false) => set_config_encoded!("false"),
            (Until::TransactionEnd, true) => set_config!("true"),
            (Until::TransactionEnd, false) => set_config_encoded!("true"),
            (Until::Saved, _) => SAVE,
            (Until::Restored, _) => RESTORE,
        };
        if self.parsed != Some(text) {
            self.parse(out, text.as_bytes());
            self.parsed = Some(text);
        }
        if ascii {
            self.run(out, &two_values(name.as_bytes(), value));
        } else {
            self.run(out, &two_values(&hex(name.as_bytes()), value.map(hex).as_deref()));
        }
    }

    /// Sets one parameter by a statement that takes no snapshot, where [`needs_no_quotes`].
    fn set_by_statement(&mut self, out: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
        let text = match value {
            Some(value) => [b"SET ", name.as_bytes(), b" = '", value, b"'\0\0\0"].concat(),
            None => [b"RESET ", name.as_bytes(), b"\0\0\0"].concat(),
        };
        self.parse(out, &text);
        self.parsed = None;
        self.run(out, &[0; 6]);
    }

    fn parse(&mut self, out: &mut Vec<u8>, tail: &[u8]) {
        if !self.name.is_empty() {
            // One that has failed may have left it.
            reply::close_statement(out, self.name);
        }
        reply::parse(out, self.name, tail);
    }

    /// Binds what stands behind the names of portal and statement, and executes it.
    fn run(&mut self, out: &mut Vec<u8>, values: &[u8]) {
        self.close_portal(out);
        reply::message(out, b'B', &[self.name, b"\0", self.name, b"\0", values]);
        reply::message(out, b'E', &[self.name, &[0; 5]]);
        self.executed += 1;
    }

    fn close_portal(&self, out: &mut Vec<u8>) {
        if self.executed > 0 && !self.name.is_empty() {
            reply::message(out, b'C', &[b"P", self.name, b"\0"]);
        }
    }

    /// Leaves nothing by that name.
    fn close(self, out: &mut Vec<u8>) {
        self.close_portal(out);
        if self.executed > 0 && !self.name.is_empty() {
            reply::close_statement(out, self.name);
        }
    }
}

/// Two values in text form, as Bind has them behind its names.
fn two_values(first: &[u8], second: Option<&[u8]>) -> Vec<u8> {
    let length = |value: &[u8]| i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes();
    let (second_length, second) = second.map_or(((-1i32).to_be_bytes(), &b""[..]), |value| (length(value), value));
    [b"\0\0\0\x02", &length(first)[..], first, &second_length, second, b"\0\0"].concat()
}

pub(super) fn hex(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

/// A replica connection is read-only by its own startup, whatever its session asks for: it may be promoted under us.
pub(super) fn carried(name: &str, role: ServerRole) -> bool {
    role == ServerRole::Leader || name != "default_transaction_read_only"
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
    use crate::session::tests::text;

    fn known(value: &[u8]) -> Value {
        Value::Known(value.into())
    }

    fn messages(from: &Settings, to: &Settings, role: ServerRole) -> Vec<String> {
        let mut out = Vec::new();
        from.sync_messages(to, role, &mut out);
        text::to_server(&out)
    }

    #[test]
    fn a_server_is_brought_from_one_session_to_the_next() {
        let a = Settings::from_startup([("DateStyle", &b"ISO, DMY"[..]), ("app.Tenant", b"it's\\")].into_iter());
        let mut b = Settings::from_startup([("datestyle", &b"ISO, DMY"[..])].into_iter());
        b.set(&Arc::from("work_mem"), known(b"1MB"));
        assert!(a.differs(&b, ServerRole::Leader));
        assert_eq!(messages(&a, &b, ServerRole::Leader), ["set app.tenant = null", "set work_mem = 1MB", "S"]);
        assert_eq!(messages(&b, &a, ServerRole::Leader), ["set work_mem = null", "set app.tenant = it's\\", "S"]);
        assert!(!a.differs(&a.clone(), ServerRole::Leader));
    }

    #[test]
    fn within_a_transaction_no_query_runs_where_none_is_needed() {
        let to =
            Settings::from_startup([("DateStyle", &b"ISO, DMY"[..]), ("search_path", b"a"), ("application_name", b"a\\b")].into_iter());
        let mut out = Vec::new();
        Settings::from_startup([("work_mem", &b"1MB"[..])].into_iter()).sync_messages_within(&to, ServerRole::Leader, &mut out);
        let statements = ["own RESET work_mem", "own SET datestyle = 'ISO, DMY'"];
        let calls = ["set search_path = a", "set application_name = a\\b", "S"];
        assert_eq!(text::to_server(&out), [&statements[..], &calls].concat());
    }

    #[test]
    fn half_a_date_style_is_not_completed_by_another_sessions() {
        let style = |value: &str| Settings::from_startup([("DateStyle", value.as_bytes())].into_iter());
        let (iso, sql) = (style("ISO"), style("SQL, DMY"));
        assert_eq!(messages(&sql, &iso, ServerRole::Leader), ["set datestyle = null", "set datestyle = ISO", "S"]);
        assert_eq!(messages(&Settings::default(), &iso, ServerRole::Leader), ["set datestyle = ISO", "S"]);
        assert_eq!(messages(&iso, &sql, ServerRole::Leader), ["set datestyle = SQL, DMY", "S"]);
    }

    #[test]
    fn what_is_not_ascii_is_sent_in_the_servers_encoding() {
        let a = Settings::from_startup([("app.x", "\u{e9}".as_bytes())].into_iter());
        let mut out = Vec::new();
        Settings::default().sync_messages(&a, ServerRole::Leader, &mut out);
        assert!(out.is_ascii() || !out.windows(2).any(|pair| pair == "\u{e9}".as_bytes()));
        assert!(out.windows(4).any(|digits| digits == b"c3a9"));
    }

    #[test]
    fn what_only_a_server_knows_is_its_own() {
        let (mut a, mut b) = (Settings::default(), Settings::default());
        a.set(&Arc::from("search_path"), Value::Unread(1));
        b.set(&Arc::from("search_path"), Value::Unread(2));
        assert_ne!(a.analysis_hash(), b.analysis_hash());
        assert_eq!(a.unread().count(), 1);
    }

    #[test]
    fn what_may_be_refused_is_waited_for() {
        let refused = |name: &str, accepted: &[Arc<str>]| {
            let wanted = Settings::from_startup([(name, &b"x"[..])].into_iter());
            Settings::default().may_be_refused(&wanted, accepted, ServerRole::Leader)
        };
        assert!(!refused("DateStyle", &[]) && !refused("work_mem", &[]));
        assert!(refused("default_text_search_config", &[]) && refused("role", &[]) && refused("app.x", &[]));
        assert!(!refused("app.x", &["app.x".into()]));
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
        a.set(&Arc::from("application_name"), known(b"x"));
        assert_eq!(a.analysis_hash(), {
            let mut b = Settings::default();
            b.set(&Arc::from("work_mem"), known(b"1"));
            b.analysis_hash()
        });
        a.set(&Arc::from("datestyle"), known(b"ISO"));
        assert_ne!(a.analysis_hash(), Settings::default().analysis_hash());
    }
}
