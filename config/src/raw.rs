//! A mirror of the file: every key that it may have, each with its kind, and nothing decided yet.
//!
//! Invariant: reading never stops at the first mistake, and a key that isn't declared here is reported. The walk is ours rather than a
//! derived `Deserialize`, because that one stops at the first error and knows no second.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::model::{AddressMatch, AuthMethod, Consistency, LogFormat, Pattern, PoolMode, RuleRoute, Secret, ServerAuthMethod, SslMode};
use crate::problem::{Place, Problem, nearest};
use crate::value::{Address, Endpoint, FingerprintText, Given, Kind, ReadonlyTransactions, Share, Size, Text, TimeOrNone};

/// A value, and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// A list; a single value stands for a list of one.
#[derive(Clone, Debug)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<At<T>>,
    pub(crate) place: Place,
}

/// `[[tables]]`.
#[derive(Debug)]
pub(crate) struct Tables<T>(pub(crate) Vec<T>);

/// Anything that a key may stand for.
pub(crate) trait Node: Sized {
    /// `key` is the full path, `key_span` where the key itself is written.
    fn read(reader: &mut Reader<'_>, key: &str, key_span: Range<usize>, value: &Spanned<DeValue<'_>>) -> Option<Self>;

    /// The paths of the values below `key`.
    fn keys(key: &str, out: &mut Vec<String>) {
        out.push(key.to_owned());
    }
}

impl<T: Kind> Node for At<T> {
    fn read(reader: &mut Reader<'_>, key: &str, _: Range<usize>, value: &Spanned<DeValue<'_>>) -> Option<At<T>> {
        reader.scalar(key, value)
    }
}

impl<T: Kind> Node for List<T> {
    fn read(reader: &mut Reader<'_>, key: &str, _: Range<usize>, value: &Spanned<DeValue<'_>>) -> Option<List<T>> {
        let place = reader.place(value.span());
        let items = match value.get_ref().as_array() {
            Some(array) => array.iter().filter_map(|item| reader.scalar(key, item)).collect(),
            None => vec![reader.scalar(key, value)?],
        };
        Some(List { items, place })
    }
}

impl<T: Node> Node for Tables<T> {
    fn read(reader: &mut Reader<'_>, key: &str, key_span: Range<usize>, value: &Spanned<DeValue<'_>>) -> Option<Tables<T>> {
        match value.get_ref().as_array() {
            Some(array) => Some(Tables(
                array
                    .iter()
                    .enumerate()
                    .filter_map(|(index, item)| T::read(reader, &format!("{key}[{}]", index + 1), item.span(), item))
                    .collect(),
            )),
            None => {
                let found = value.get_ref().type_str();
                let text = format!("expected tables, each under [[{key}]], found {} {found}", article(found));
                reader.report(key_span, key, text);
                None
            }
        }
    }

    fn keys(key: &str, out: &mut Vec<String>) {
        T::keys(key, out);
    }
}

/// Declares a table and its keys.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub(crate) struct $name {
            $(pub(crate) $field: Option<$kind>,)*
            /// Where the table begins. `None`: it isn't in the file.
            pub(crate) place: Option<Place>,
        }

        impl $name {
            fn read_table(reader: &mut Reader<'_>, path: &str, table: &DeTable<'_>) -> $name {
                let mut section = $name::default();
                for (key, value) in table {
                    let full = join(path, key.get_ref());
                    match key.get_ref().as_ref() {
                        $(stringify!($field) => section.$field = Node::read(reader, &full, key.span(), value),)*
                        _ => reader.unknown(key.span(), path, key.get_ref(), &[$(stringify!($field)),*]),
                    }
                }
                section
            }
        }

        impl Node for $name {
            fn read(reader: &mut Reader<'_>, key: &str, key_span: Range<usize>, value: &Spanned<DeValue<'_>>) -> Option<$name> {
                match value.get_ref().as_table() {
                    Some(table) => {
                        let mut section = $name::read_table(reader, key, table);
                        section.place = Some(reader.place(key_span));
                        Some(section)
                    }
                    None => {
                        let found = value.get_ref().type_str();
                        reader.report(value.span(), key, format!("expected a table, found {} {found}", article(found)));
                        None
                    }
                }
            }

            fn keys(key: &str, out: &mut Vec<String>) {
                $(<$kind as Node>::keys(&join(key, stringify!($field)), out);)*
            }
        }
    };
}

section! {
    /// The whole file.
    Raw {
        workers: At<usize>,
        cluster: RawCluster,
        etcd: RawEtcd,
        listen: RawListen,
        postgres: RawPostgres,
        auth: Tables<RawAuth>,
        server_auth: Tables<RawServerAuth>,
        tls: RawTls,
        server_tls: RawServerTls,
        pool: RawPool,
        routing: RawRouting,
        rule: Tables<RawRule>,
        failover: RawFailover,
        patroni: RawPatroni,
        control: RawControl,
        health: RawHealth,
        limits: RawLimits,
        log: RawLog,
    }
}

section! {
    RawCluster {
        scope: At<Text>,
        namespace: At<Text>,
        member: Tables<RawMember>,
    }
}

section! {
    RawMember {
        name: At<Text>,
        host: At<Text>,
        port: At<u16>,
    }
}

section! {
    RawEtcd {
        endpoints: List<Endpoint>,
        username: At<Text>,
        password: At<Secret>,
        password_file: At<PathBuf>,
        ca_file: At<PathBuf>,
        cert_file: At<PathBuf>,
        key_file: At<PathBuf>,
        connect_timeout: At<Duration>,
        request_timeout: At<Duration>,
    }
}

section! {
    RawListen {
        read_write: List<Address>,
        read_only: List<Address>,
        http: List<Address>,
        unix_socket_dir: At<PathBuf>,
        proxy_protocol: At<bool>,
    }
}

section! {
    RawPostgres {
        user: At<Text>,
        password: At<Secret>,
        password_file: At<PathBuf>,
        database: At<Text>,
        auth_function: At<Text>,
        connect_timeout: At<Duration>,
    }
}

section! {
    RawAuth {
        address: At<AddressMatch>,
        databases: List<Text>,
        users: List<Text>,
        tls: At<bool>,
        method: At<AuthMethod>,
    }
}

section! {
    RawServerAuth {
        databases: List<Text>,
        users: List<Text>,
        method: At<ServerAuthMethod>,
    }
}

section! {
    RawTls {
        cert_file: At<PathBuf>,
        key_file: At<PathBuf>,
        client_ca_file: At<PathBuf>,
        require: At<bool>,
    }
}

section! {
    RawServerTls {
        mode: At<SslMode>,
        ca_file: At<PathBuf>,
        cert_file: At<PathBuf>,
        key_file: At<PathBuf>,
    }
}

section! {
    RawPool {
        mode: At<PoolMode>,
        max_size: At<usize>,
        min_size: At<usize>,
        max_per_node: At<usize>,
        wait_timeout: At<Duration>,
        idle_timeout: At<Duration>,
        max_lifetime: At<Duration>,
        max_prepared: At<usize>,
        verify_returns: At<Share>,
    }
}

section! {
    RawRouting {
        max_lag_bytes: At<Size>,
        max_lag: At<TimeOrNone>,
        fallback_to_leader: At<bool>,
        readonly_transactions: At<ReadonlyTransactions>,
        hold_begin: At<bool>,
        consistency_read_write: At<Consistency>,
        consistency_read_only: At<Consistency>,
        consistency_wait: At<Duration>,
        global_without_leader: At<TimeOrNone>,
        look_ahead_bytes: At<Size>,
        verdict_cache_size: At<usize>,
        zone: At<Text>,
    }
}

section! {
    RawRule {
        users: List<Text>,
        databases: List<Text>,
        application_names: List<Text>,
        fingerprints: List<FingerprintText>,
        pattern: At<Pattern>,
        route: At<RuleRoute>,
        consistency: At<Consistency>,
    }
}

section! {
    RawFailover {
        hold_timeout: At<Duration>,
        hold_max: At<usize>,
        lease_margin: At<Duration>,
    }
}

section! {
    RawPatroni {
        username: At<Text>,
        password: At<Secret>,
        password_file: At<PathBuf>,
    }
}

section! {
    RawControl {
        token: At<Secret>,
        token_file: At<PathBuf>,
    }
}

section! {
    RawHealth {
        interval: At<Duration>,
        busy_interval: At<Duration>,
        timeout: At<Duration>,
    }
}

section! {
    RawLimits {
        max_clients: At<usize>,
        login_timeout: At<Duration>,
        max_startup_bytes: At<Size>,
        max_message_bytes: At<Size>,
        max_prepared_per_client: At<usize>,
        drain_timeout: At<Duration>,
    }
}

section! {
    RawLog {
        filter: At<Text>,
        format: At<LogFormat>,
        slow_query: At<TimeOrNone>,
    }
}

/// Every key, as its full path, in the file's order. Keys of `[[tables]]` have no index: `auth.method`.
pub fn keys() -> Vec<String> {
    let mut keys = Vec::new();
    Raw::keys("", &mut keys);
    keys
}

/// What a file's text says, and what is wrong with it. With a syntax error the rest is still read, for its mistakes.
pub(crate) struct Parsed {
    pub(crate) raw: Raw,
    pub(crate) problems: Vec<Problem>,
    /// False after a syntax error: what seems to be missing may be there.
    pub(crate) complete: bool,
}

pub(crate) fn parse(file: &Arc<str>, text: &str) -> Parsed {
    let mut reader = Reader { file, text, line_starts: line_starts(text), problems: Vec::new() };
    let (table, errors) = DeTable::parse_recoverable(text);
    let complete = errors.is_empty();
    for error in errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        reader.report(span, "", error.message().replace('\n', ", "));
    }
    let broken: HashSet<usize> = reader.problems.iter().filter_map(|problem| line_of(&problem.place)).collect();
    let syntax_errors = reader.problems.len();
    let raw = Raw::read_table(&mut reader, "", table.get_ref());
    // What the parser guessed on a line that it couldn't read is no news.
    let mut problems = reader.problems;
    let more = problems.split_off(syntax_errors);
    problems.extend(more.into_iter().filter(|problem| line_of(&problem.place).is_none_or(|line| !broken.contains(&line))));
    Parsed { raw, problems, complete }
}

fn line_of(place: &Place) -> Option<usize> {
    match place {
        Place::File { line, .. } => Some(*line),
        Place::WholeFile { .. } | Place::Variable { .. } | Place::Nowhere => None,
    }
}

/// Walks the file's tables and collects what is wrong.
pub(crate) struct Reader<'a> {
    file: &'a Arc<str>,
    text: &'a str,
    /// Byte offsets at which lines begin.
    line_starts: Vec<usize>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn place(&self, span: Range<usize>) -> Place {
        let offset = span.start.min(self.text.len());
        let line = self.line_starts.partition_point(|start| *start <= offset).max(1);
        let before = self.text.get(self.line_starts[line - 1]..offset).unwrap_or("");
        Place::File { file: self.file.clone(), line, column: before.chars().count() + 1 }
    }

    fn report(&mut self, span: Range<usize>, key: &str, text: String) {
        let place = self.place(span);
        self.problems.push(Problem { place, key: key.to_owned(), text });
    }

    fn unknown(&mut self, span: Range<usize>, path: &str, key: &str, known: &[&str]) {
        let elsewhere = || keys().into_iter().find(|full| full.rsplit('.').next() == Some(key));
        let text = match nearest(key, known.iter().copied()) {
            Some(near) => format!("unknown key; did you mean {near:?}?"),
            None => match elsewhere() {
                Some(full) => format!("unknown key here; did you mean {full}?"),
                None => "unknown key".to_owned(),
            },
        };
        // A quoted key may hold anything, line breaks included.
        let bare = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') && !key.is_empty();
        let full = if bare { join(path, key) } else { join(path, &format!("{key:?}")) };
        self.report(span, &full, text);
    }

    fn scalar<T: Kind>(&mut self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<At<T>> {
        let place = self.place(value.span());
        let given = match value.get_ref() {
            DeValue::String(text) => Given::Text(text),
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Given::Integer(number),
                Err(_) => {
                    self.problems.push(Problem {
                        place,
                        key: key.to_owned(),
                        text: format!("expected {}, found a number out of all range", T::EXPECTED),
                    });
                    return None;
                }
            },
            DeValue::Float(number) => Given::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(value) => Given::Boolean(*value),
            other @ (DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_)) => {
                let found = other.type_str();
                let text = format!("expected {}, found {} {found}", T::EXPECTED, article(found));
                self.problems.push(Problem { place, key: key.to_owned(), text });
                return None;
            }
        };
        match read(key, given, place) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.problems.push(problem);
                None
            }
        }
    }
}

/// Reads one value of the file or the environment.
pub(crate) fn read<T: Kind>(key: &str, given: Given<'_>, place: Place) -> Result<At<T>, Problem> {
    match T::read(given) {
        Ok(value) => Ok(At { value, place }),
        Err(refused) => {
            let found = match (T::SHOWN, given) {
                (true, given) => given.describe(),
                (false, Given::Text(_)) => "a string that can't be used".to_owned(),
                (false, Given::Integer(_) | Given::Float(_)) => "a number".to_owned(),
                (false, Given::Boolean(_)) => "a boolean".to_owned(),
            };
            let hint = refused.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            Err(Problem { place, key: key.to_owned(), text: format!("expected {}, found {found}{hint}", T::EXPECTED) })
        }
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(index, _)| index + 1)).collect()
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'i']) { "an" } else { "a" }
}
