//! A look at what a server connection holds of its session, before it is given back.
//!
//! No reading of a statement's text tells all that its triggers, views and functions do. Where something has run that isn't proven to leave nothing,
//! the server is asked, in one round trip. Settings become the session's own; other state pins it, with its reason. Invariant: a connection of
//! which a look has failed is not given back: its session keeps it.
//!
//! A look is one simple query. Between the messages of an extended one a standby would wait for the next of them with a transaction open, and end
//! the connection for a conflict with recovery where within a query it only cancels; what was left would be out of everybody's sight then.
//!
//! A look that a time limit may have cancelled is made again within a transaction that lifts the session's `statement_timeout`, which has to come in
//! a query before it: the limit runs from a query's beginning.

use std::sync::Arc;

use super::effects::{is_role, is_transactions};
use super::replies::Owed;
use super::server::server_name;
use super::settings::{Value, carried, hex};
use super::{Env, Farewell, ServerState, Session, Work};
use crate::sql::PinReason;
use crate::wire::reply;

/// What is looked at, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All that a session may leave: something ran that isn't proven to leave nothing.
    All,
    /// The values of parameters that only the server knows.
    Values,
    /// All, though nothing is expected: whether the ledger is right.
    Check,
}

/// What a look at what a session has left on its server connection has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookResult {
    /// Nothing was left that the books don't have.
    Clean,
    /// Settings were left: they are the session's own from then on.
    Settings,
    /// Other state was left: the session keeps the connection.
    Pinned,
    /// Nobody can say what was left: the connection is closed.
    Closed,
}

impl LookResult {
    pub const ALL: [LookResult; 4] = [LookResult::Clean, LookResult::Settings, LookResult::Pinned, LookResult::Closed];

    pub fn as_str(self) -> &'static str {
        match self {
            LookResult::Clean => "clean",
            LookResult::Settings => "settings",
            LookResult::Pinned => "pinned",
            LookResult::Closed => "closed",
        }
    }
}

/// How often a look that fails is made again at once.
const LOOKS_AT_ONCE: u8 = 3;
/// How often it is made again where what it failed of passes: by then, 20 s have been waited for that. A session that may write would have to stay
/// on a replica otherwise, and a lagging standby cancels whatever is in recovery's way until it has caught up.
const LOOKS_MAX: u8 = 30;
/// The first of the pauses between these, which double up to the longest.
const PAUSE_MIN_MS: u64 = 10;
const PAUSE_MAX_MS: u64 = 1000;

/// Rows of one look, at most, and their bytes. A session with more of anything keeps its connection.
const ROWS_MAX: usize = 4096;
const ROW_BYTES_MAX: usize = 1024 * 1024;

/// Kind, name and value.
pub(super) type Row = (u8, Box<[u8]>, Option<Box<[u8]>>);

/// What the server has said so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    rows: Vec<Row>,
    bytes: usize,
    /// It can't be told what is there. The first reason.
    failed: Option<Failure>,
    /// It is looked without the session's time limit.
    unlimited: bool,
}

/// Why a look has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// Somebody or something was in its way: it may be made again.
    Passing,
    /// As [`Failure::Passing`], and it may have been the session's time limit.
    Canceled,
    Lasting,
}

macro_rules! in_hex {
    ($($text:tt)+) => {
        concat!("pg_catalog.encode(pg_catalog.convert_to(", $($text)+, ", pg_catalog.getdatabaseencoding()), 'hex')")
    };
}

/// Of `pg_db_role_setting g`, what a session of this role in this database gets.
macro_rules! for_session {
    () => {
        "g.setrole OPERATOR(pg_catalog.=) ANY (ARRAY[0::pg_catalog.oid, \
         pg_catalog.to_regrole(pg_catalog.quote_ident(SESSION_USER::pg_catalog.text))::pg_catalog.oid]) \
         AND g.setdatabase OPERATOR(pg_catalog.=) ANY (ARRAY[0::pg_catalog.oid, (SELECT d.oid FROM pg_catalog.pg_database d \
         WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())])"
    };
}

/// The custom settings that `ALTER ROLE` and `ALTER DATABASE` give to sessions.
macro_rules! given {
    () => {
        concat!(
            "SELECT 'd', ",
            in_hex!("pg_catalog.split_part(c, '=', 1)"),
            ", ",
            in_hex!("pg_catalog.substr(c, pg_catalog.strpos(c, '=') OPERATOR(pg_catalog.+) 1)"),
            " FROM pg_catalog.pg_db_role_setting g, pg_catalog.unnest(g.setconfig) c",
            " WHERE pg_catalog.strpos(pg_catalog.split_part(c, '=', 1), '.') OPERATOR(pg_catalog.>) 0"
        )
    };
}

/// What is given to a session of this role in this database, as it begins; by the time of a look it may be something else. No more of it than a
/// connection is worth.
pub const GIVEN: &str = concat!(given!(), " AND pg_catalog.length(c) OPERATOR(pg_catalog.<) 1024", " AND ", for_session!(), " LIMIT 64");

macro_rules! values {
    () => {
        concat!(
            "SELECT 'v', n, ",
            in_hex!(
                "pg_catalog.current_setting(pg_catalog.convert_from(pg_catalog.decode(n, 'hex'), pg_catalog.getdatabaseencoding()), true)"
            ),
            " FROM pg_catalog.unnest($1::pg_catalog.text[]) n"
        )
    };
}

/// Where the names of parameters stand in a look's text: an array of hexadecimal digits, which mean the same under any setting.
const NAMES: &str = "$1";

/// The values of parameters, by their names.
const VALUES: &str = values!();

const STATEMENT_TIMEOUT: &str = "statement_timeout";

/// Before a look without a time limit. The limit of 1 ms leaves time enough for it. (A standby refuses SERIALIZABLE, which may be the default.)
const LIFT: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = 0";
/// Behind it: the limit is the session's again.
const RESTORE: &str = "COMMIT";

macro_rules! set_by_session {
    ($which:literal) => {
        concat!(
            "SELECT CASE WHEN s.source OPERATOR(pg_catalog.<>) 'session' THEN 'k' ",
            "WHEN s.setting OPERATOR(pg_catalog.=) s.reset_val THEN 'e' ",
            "WHEN s.context OPERATOR(pg_catalog.=) 'superuser' AND pg_catalog.current_setting('is_superuser') OPERATOR(pg_catalog.=) 'off' ",
            "THEN 'x' ELSE 's' END, ",
            in_hex!("s.name"),
            ", ",
            in_hex!("pg_catalog.current_setting(s.name, true)"),
            " FROM pg_catalog.pg_show_all_settings() s WHERE (s.source OPERATOR(pg_catalog.=) 'session'",
            " OR pg_catalog.strpos(s.name, '.') OPERATOR(pg_catalog.>) 0)",
            $which
        )
    };
}

/// The limit itself, where the session has set it.
const LIMIT: &str = set_by_session!(" AND s.name OPERATOR(pg_catalog.=) 'statement_timeout'");

macro_rules! all {
    ($which:literal) => {
        concat!(
            set_by_session!($which),
            " UNION ALL ",
            values!(),
            " UNION ALL SELECT 'l', ",
            in_hex!("c"),
            ", '' FROM pg_catalog.pg_listening_channels() c",
            " UNION ALL SELECT 'a', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_lock_status() l",
            " WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())",
            " UNION ALL SELECT 'h', ",
            in_hex!("h.name"),
            ", '' FROM pg_catalog.pg_cursor() h WHERE h.name OPERATOR(pg_catalog.<>) ''",
            " UNION ALL SELECT 'p', ",
            in_hex!("p.name"),
            ", '' FROM pg_catalog.pg_prepared_statement() p",
            "; SET LOCAL jit = off; SELECT 'r', ",
            in_hex!(
                "COALESCE((SELECT pg_catalog.substr(c, 6) FROM pg_catalog.pg_db_role_setting g, pg_catalog.unnest(g.setconfig) c \
                 WHERE pg_catalog.starts_with(c, 'role=') AND ",
                for_session!(),
                " ORDER BY g.setrole OPERATOR(pg_catalog.<>) 0::pg_catalog.oid DESC, \
                 g.setdatabase OPERATOR(pg_catalog.<>) 0::pg_catalog.oid DESC LIMIT 1), 'none')"
            ),
            ", ",
            in_hex!("pg_catalog.current_setting('role')"),
            " UNION ALL ",
            given!(),
            " UNION ALL SELECT 't', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_depend d",
            " WHERE d.refclassid OPERATOR(pg_catalog.=) 2615::pg_catalog.oid AND d.refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())"
        )
    };
}

/// Settings whose source is the session, with those apart that are what they would be anyway, and those that it may not set itself; the parameters of
/// loaded libraries that nobody has set; values of custom ones, of which no view tells; channels,
/// session-level advisory locks, cursors that are held, and prepared statements: functions only. Then, of the catalogs, the role; what roles and databases have set of custom settings; objects in the
/// temporary schema (2615 is `pg_namespace`). All of it qualified: the session's `search_path` may hold operators and functions of anybody's.
///
/// The catalogs are read without JIT: a session that has turned off `enable_seqscan` or `enable_nestloop` gives their plans costs for which PostgreSQL
/// would compile them for seconds. What the session has of `jit` itself has been told by then, and is back with the look's end.
const ALL: &str = all!("");
/// As [`ALL`], without what [`LIMIT`] tells.
const ALL_BUT_LIMIT: &str = all!(" AND s.name OPERATOR(pg_catalog.<>) 'statement_timeout'");

/// Behind [`ALL`]: whether there is a relation of one of these names that isn't temporary, and so is younger than the facts.
const YOUNGER: &str = concat!(
    " UNION ALL SELECT 'u', '', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_class c",
    " WHERE c.relpersistence OPERATOR(pg_catalog.<>) 't' AND c.relname OPERATOR(pg_catalog.=) ANY (ARRAY(",
    "SELECT pg_catalog.convert_from(pg_catalog.decode(n, 'hex'), pg_catalog.getdatabaseencoding())::pg_catalog.name ",
    "FROM pg_catalog.unnest($1::pg_catalog.text[]) n)))"
);

impl Session {
    /// Sends the look that the connection needs before it is given back, or keeps it where no look could tell what is
    /// left. False where it needs neither.
    pub(super) fn look(&mut self, env: &Env<'_>, work: &mut Work, server: &mut ServerState) -> bool {
        // What is temporary runs what was named when it was made, as long as that hasn't changed.
        let changed = !server.unknown.is_empty() && server.judged_by != Some(env.judge.generation());
        if server.sets_unknown || changed {
            self.pins.add(PinReason::UserCode);
            return true;
        }
        let look = if server.unsure {
            Look::All
        } else if self.settings.unread().next().is_some() || self.unresolved().next().is_some() {
            Look::Values
        } else if !server.tainted && is_drawn(env) {
            Look::Check
        } else {
            return false;
        };
        let mut names: Vec<Arc<str>> = self.settings.unread().chain(self.unresolved()).cloned().collect();
        if look != Look::Values {
            names.extend(env.judge.custom_settings().iter().cloned());
            names.extend(server.custom.iter().cloned());
            names.extend(self.settings.dotted().cloned());
        }
        names.sort_unstable();
        names.dedup();
        let unlimited = work.seen.as_ref().is_some_and(|before| before.unlimited || before.failed == Some(Failure::Canceled));
        send(work, look, &Asked { names: &names, unknown: &server.unknown, unlimited });
        server.forget_unnamed();
        server.ready = false;
        // What comes next may depend on what is seen.
        work.alone = true;
        work.seen = Some(Box::new(Seen { unlimited, ..Seen::default() }));
        true
    }

    /// Where a look has failed, whether another one was sent.
    pub(super) fn looks_again(&mut self, env: &Env<'_>, look: Look, work: &mut Work, server: &mut ServerState) -> bool {
        let Some(seen) = &work.seen else { return false };
        let Some(failure) = seen.failed else { return false };
        let unlimited = seen.unlimited || failure == Failure::Canceled;
        let max = match failure {
            // Nobody waits for a client that has left, nor for what is only a check.
            Failure::Passing | Failure::Canceled if self.farewell == Farewell::None && look != Look::Check => LOOKS_MAX,
            Failure::Passing | Failure::Canceled | Failure::Lasting => LOOKS_AT_ONCE,
        };
        if work.failed_looks >= max {
            return false;
        }
        work.failed_looks += 1;
        work.segment_failed = false;
        if let Some(doublings) = work.failed_looks.checked_sub(LOOKS_AT_ONCE + 1) {
            pause(work, doublings, unlimited);
        }
        self.look(env, work, server)
    }

    /// Custom settings that the session has touched, and that have no value among its settings: what is left of them, only the server knows.
    fn unresolved(&self) -> impl Iterator<Item = &Arc<str>> {
        self.touched.iter().filter(|name| self.settings.value(name).is_none() && !self.plain.contains(name))
    }

    /// The server's answer is complete. What the session has now, and whether its connection can be given back.
    pub(super) fn looked(&mut self, look: Look, work: &mut Work, server: &mut ServerState) {
        work.alone = false;
        work.segment_failed = false;
        let seen = work.seen.take().map_or_else(Seen::failed, |seen| *seen);
        if seen.failed.is_some() {
            // Only its session knows what is there.
            if look == Look::Check {
                server.tainted = true;
            } else {
                self.pins.add(PinReason::SettingOutOfSight);
            }
            work.tally.looks.push(LookResult::Closed);
            return;
        }
        let (settings, pins) = (self.settings.clone(), self.pins);
        let differences = self.take_over(&seen, look, server);
        if look == Look::Check && (!differences.is_empty() || !Arc::ptr_eq(&settings, &self.settings) || pins != self.pins) {
            server.tainted = true;
            work.tally.looks.push(LookResult::Closed);
            work.tally.differences.push(self.tell_difference(differences, &settings, pins, &seen));
            // Whatever it is, it is the session's: it must not be missed, and nobody else gets it.
            self.pins.add(PinReason::SettingOutOfSight);
            return;
        }
        server.unsure = false;
        server.unknown.clear();
        server.judged_by = None;
        work.tally.looks.push(match () {
            () if !self.pins.is_empty() => LookResult::Pinned,
            () if look == Look::All && !Arc::ptr_eq(&settings, &self.settings) => LookResult::Settings,
            () => LookResult::Clean,
        });
    }

    /// Makes what was seen the session's own. What the server connection itself was wrong about, in words.
    fn take_over(&mut self, seen: &Seen, look: Look, server: &mut ServerState) -> Vec<String> {
        let mut differences = Vec::new();
        let mut set_there: Vec<String> = Vec::new();
        let mut prepared = Vec::new();
        for (kind, name, value) in &seen.rows {
            let text = std::str::from_utf8(name).ok();
            // Parameters' names mean the same in any case.
            let parameter =
                text.filter(|_| matches!(kind, b's' | b'e' | b'x' | b'v' | b'd')).map(str::to_ascii_lowercase).unwrap_or_default();
            match (kind, text, value) {
                // The transaction's own, and a replica connection's protection.
                (b's' | b'e' | b'x', Some(_), _) if is_transactions(&parameter) || !carried(&parameter, server.role) => {}
                // RESET and SET LOCAL of the same one within a transaction leave its source behind, and nothing else.
                (b'e', Some(_), _) if server.settings.value(&parameter).is_none() => {}
                (b's' | b'e' | b'x', Some(_), Some(value)) => {
                    if *kind == b'x' {
                        // On another connection it couldn't be set.
                        self.pins.add(PinReason::SettingOutOfSight);
                    }
                    // Of a startup packet's value its server hasn't told how it reads.
                    let begun = self.startup.value(&parameter).filter(|_| look == Look::Check);
                    if begun.is_none() || server.settings.value(&parameter) != begun {
                        self.take_setting(&parameter, value, server);
                    }
                    set_there.push(parameter);
                }
                // It is what ALTER ROLE or ALTER DATABASE ... SET says.
                (b'v', Some(_), Some(value))
                    if is_default(seen, server, &parameter, value) && server.settings.value(&parameter).is_none() =>
                {
                    self.plain.add(&Arc::from(parameter));
                }
                // A library has been loaded that has it: it is that one's own value.
                (b'v', Some(_), Some(_)) if is_a_librarys(seen, &parameter) && server.settings.value(&parameter).is_none() => {
                    self.plain.add(&Arc::from(parameter));
                }
                (b'v', Some(_), Some(value)) => self.take_value(&parameter, value, look, server),
                // It was never set.
                (b'v', Some(_), None) => self.forget_setting(&parameter, server),
                // The role with which it began, and the one that it has.
                (b'r', _, Some(role)) => {
                    let began = match self.settings.value("role") {
                        Some(Value::Known(role)) => role,
                        _ => name,
                    };
                    if role != began {
                        self.pins.add(PinReason::SetRole);
                    }
                }
                (b'u', ..) => self.pins.add(PinReason::UserCode),
                (b't', ..) => {
                    self.held.temp_tables.add_unknown();
                    self.pins.add(PinReason::TempTable);
                }
                (b'l', Some(channel), _) => {
                    self.held.channels.add(&Arc::from(channel));
                    self.pins.add(PinReason::Listen);
                }
                (b'a', ..) => self.pins.add(PinReason::AdvisoryLock),
                (b'h', Some(cursor), _) => {
                    self.held.cursors.add(&Arc::from(cursor));
                    self.pins.add(PinReason::WithHoldCursor);
                }
                (b'p', Some(statement), _) => prepared.push(statement),
                (b'd' | b'k', ..) => {}
                // A name that isn't UTF-8: it can't be carried.
                _ => self.pins.add(PinReason::SettingOutOfSight),
            }
        }
        if look == Look::Values {
            return differences;
        }
        if server.is_somebody_else() {
            self.pins.add(PinReason::SetRole);
        }
        // What somebody has reset out of sight. (No view shows who the session is.)
        let gone: Vec<Arc<str>> = server
            .settings
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !name.contains('.') && !is_role(name) && carried(name, server.role))
            // No view shows these: the transaction's own, and the seed (`GUC_NO_SHOW_ALL`).
            .filter(|name| !is_transactions(name) && &***name != "seed")
            .filter(|name| !set_there.iter().any(|known| **known == ***name))
            // Its source is the startup packet.
            .filter(|name| server.began.value(name).is_none_or(|began| server.settings.value(name) != Some(began)))
            .cloned()
            .collect();
        for name in gone {
            self.forget_setting(&name, server);
        }
        self.compare_prepared(&prepared, &mut differences, server);
        differences
    }

    fn take_setting(&mut self, name: &str, value: &[u8], server: &mut ServerState) {
        if server.settings.value(name).is_some_and(|known| same_value(known, value)) {
            return;
        }
        let (name, value) = (Arc::from(name), Value::Known(value.into()));
        Arc::make_mut(&mut self.settings).set(&name, value.clone());
        Arc::make_mut(&mut server.settings).set(&name, value);
        self.share_settings(server);
    }

    /// The value of a parameter whose source isn't told: of a custom one, or of one that was set by a statement that tells its name.
    fn take_value(&mut self, name: &str, value: &[u8], look: Look, server: &mut ServerState) {
        let set_here = server.settings.value(name).is_some();
        let own = name.contains('.');
        let name: Arc<str> = Arc::from(name);
        if value.is_empty() && !set_here && server.custom_before.contains(&name) && !self.touched.contains(&name) {
            // Another session's, of which nothing is left but that.
            return;
        }
        if set_here || (own && look != Look::Values) || (own && value.is_empty()) {
            if own {
                server.sets(&name);
                self.touched.add(&name);
            }
            return self.take_setting(&name, value, server);
        }
        // A library's parameter, or one that the server's configuration sets: it has gone back to its own value.
        self.plain.add(&name);
    }

    fn forget_setting(&mut self, name: &str, server: &mut ServerState) {
        if self.settings.value(name).is_none() && server.settings.value(name).is_none() {
            return;
        }
        server.resets(&Arc::from(name));
        match self.startup.value(name).cloned() {
            // RESET goes back to the session's start.
            Some(value) => Arc::make_mut(&mut self.settings).set(&Arc::from(name), value),
            None => Arc::make_mut(&mut self.settings).remove(name),
        }
        self.share_settings(server);
    }

    /// The statements that the server has, against those that it is known to have.
    fn compare_prepared(&mut self, there: &[&str], differences: &mut Vec<String>, server: &mut ServerState) {
        let known: Vec<_> = server.prepared_ids();
        for id in known {
            let name = server_name(id);
            if !there.iter().any(|known| known.as_bytes() == name) {
                differences.push("a prepared statement of ours is gone".to_owned());
                server.forget_statement(id);
            }
        }
        let ours = |name: &str| server.prepared_ids().into_iter().any(|id| server_name(id) == *name.as_bytes());
        if let Some(own) = &server.own_names {
            // What code has closed.
            self.statements.retain(|name, _| own.missing.contains_key(name) || there.iter().any(|there| there.as_bytes() == &**name));
        }
        let is_own = |name: &str| server.own_names.is_some() && self.statements.contains_key(name.as_bytes());
        let others: Vec<&str> = there.iter().copied().filter(|name| !ours(name) && !is_own(name)).collect();
        for name in others {
            if !self.sql_prepared.contains(name.as_bytes()) {
                self.sql_prepared.insert(&Arc::from(name), None);
            }
            self.pins.add(PinReason::SqlPrepare);
        }
    }

    fn tell_difference(&self, mut differences: Vec<String>, before: &super::Settings, pins: super::Pins, seen: &Seen) -> String {
        let names = |settings: &super::Settings| {
            settings.iter().map(|(name, value)| format!("{name}={}", shown(value))).collect::<Vec<_>>().join(", ")
        };
        differences.push(format!("settings known: [{}]; there: [{}]", names(before), names(&self.settings)));
        let reasons = |pins: super::Pins| pins.iter().map(PinReason::as_str).collect::<Vec<_>>().join(", ");
        differences.push(format!("pins known: [{}]; seen: [{}]", reasons(pins), reasons(self.pins)));
        let rows = seen.rows.iter().filter(|(kind, ..)| !matches!(kind, b'v' | b'd' | b'k'));
        differences.extend(rows.map(|(kind, name, _)| format!("{}:{}", char::from(*kind), String::from_utf8_lossy(name))));
        differences.join("; ")
    }
}

/// Whether a custom setting has a value that a role or a database gives it, or gave it when the connection was opened.
fn is_default(seen: &Seen, server: &ServerState, name: &str, value: &[u8]) -> bool {
    let said =
        |(kind, known, default): &Row| *kind == b'd' && known.eq_ignore_ascii_case(name.as_bytes()) && default.as_deref() == Some(value);
    seen.rows.iter().chain(&server.given).any(said)
}

/// Whether a loaded library has defined the parameter, and nobody has set it.
fn is_a_librarys(seen: &Seen, name: &str) -> bool {
    seen.rows.iter().any(|(kind, known, _)| *kind == b'k' && known.eq_ignore_ascii_case(name.as_bytes()))
}

fn same_value(known: &Value, value: &[u8]) -> bool {
    matches!(known, Value::Known(known) if **known == *value)
}

/// Enough of a value to tell it from another.
fn shown(value: &Value) -> String {
    const SHOWN: usize = 60;
    match value {
        Value::Known(value) => String::from_utf8_lossy(&value[..value.len().min(SHOWN)]).into_owned(),
        Value::Unread(_) => "?".to_owned(),
    }
}

/// What a look asks for besides what all do.
struct Asked<'a> {
    /// Parameters, for their values.
    names: &'a [Arc<str>],
    /// Relations.
    unknown: &'a [Arc<str>],
    unlimited: bool,
}

/// Sends the queries of a look.
fn send(work: &mut Work, look: Look, asked: &Asked<'_>) {
    let array = |names: &mut dyn Iterator<Item = &Arc<str>>| {
        let digits: Vec<String> = names.map(|name| String::from_utf8_lossy(&hex(name.as_bytes())).into_owned()).collect();
        format!("'{{{}}}'", digits.join(","))
    };
    let values = |text: &str, names: &mut dyn Iterator<Item = &Arc<str>>| {
        let mut text = text.replacen(NAMES, &array(names), 1);
        if look == Look::All && !asked.unknown.is_empty() {
            text.push_str(&YOUNGER.replacen(NAMES, &array(&mut asked.unknown.iter()), 1));
        }
        text
    };
    if !asked.unlimited {
        let text = if look == Look::Values { VALUES } else { ALL };
        return ask(work, &values(text, &mut asked.names.iter()), Owed::Look(look));
    }
    let (limit, others): (Vec<_>, Vec<_>) = asked.names.iter().partition(|name| ***name == *STATEMENT_TIMEOUT);
    let text = if look == Look::Values { VALUES } else { ALL_BUT_LIMIT };
    ask(work, LIFT, Owed::LookBegins);
    ask(work, &values(text, &mut others.into_iter()), Owed::LookBegins);
    let mut end = vec![RESTORE.to_owned()];
    if look != Look::Values {
        end.push(LIMIT.to_owned());
    }
    if !limit.is_empty() {
        end.push(VALUES.replacen(NAMES, &array(&mut limit.into_iter()), 1));
    }
    ask(work, &end.join("; "), Owed::Look(look));
}

fn ask(work: &mut Work, text: &str, owed: Owed) {
    reply::query(&mut work.to_server, text.as_bytes());
    work.owed.push_back(owed);
}

/// Has the server wait before the look that follows. A query of its own: what cancels it doesn't cancel the look.
fn pause(work: &mut Work, doublings: u8, unlimited: bool) {
    let pause_ms = (PAUSE_MIN_MS << doublings.min(16)).min(PAUSE_MAX_MS);
    let text = format!("SELECT pg_catalog.pg_sleep({pause_ms}e-3)");
    let queries: &[&str] = if unlimited { &[LIFT, &text, RESTORE] } else { &[&text] };
    for query in queries {
        ask(work, query, Owed::Prelude);
    }
}

/// Whether this return is one of those that are looked at though nothing is expected.
fn is_drawn(env: &Env<'_>) -> bool {
    let share = env.policy.verify_returns;
    share >= 1.0 || (share > 0.0 && (env.random as f64) < share * (u64::MAX as f64))
}

impl Seen {
    fn failed() -> Seen {
        Seen { failed: Some(Failure::Lasting), ..Seen::default() }
    }

    /// The server has answered with this error.
    pub(super) fn fail(&mut self, sqlstate: &[u8; 5]) {
        let failure = match sqlstate {
            // query_canceled: a time limit, or a cancel that came late.
            b"57014" => Failure::Canceled,
            // serialization_failure, deadlock_detected, lock_not_available: a conflict with recovery, a lock.
            b"40001" | b"40P01" | b"55P03" => Failure::Passing,
            _ => Failure::Lasting,
        };
        self.failed.get_or_insert(failure);
    }

    /// A DataRow's body; `None` where it isn't here as a whole.
    pub(super) fn row(&mut self, body: Option<&[u8]>) {
        let Some((kind, name, value)) = body.and_then(columns).filter(|_| self.rows.len() < ROWS_MAX && self.bytes < ROW_BYTES_MAX) else {
            self.failed = Some(Failure::Lasting);
            return;
        };
        self.bytes += name.len() + value.as_ref().map_or(0, |value| value.len());
        self.rows.push((kind, name, value));
    }
}

impl ServerState {
    /// Rows of [`GIVEN`].
    pub fn was_given<'a>(&mut self, rows: impl Iterator<Item = &'a [u8]>) {
        self.given = rows.filter_map(columns).collect();
    }
}

/// Kind, name and value of a row. A value that isn't in hexadecimal digits is none of ours.
fn columns(body: &[u8]) -> Option<Row> {
    let mut rest = body.strip_prefix(&[0, 3])?;
    let mut column = || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        let Ok(length) = usize::try_from(length) else {
            rest = behind;
            return Some(None);
        };
        let (value, behind) = behind.split_at_checked(length)?;
        rest = behind;
        Some(Some(value))
    };
    let kind = *column()??.first()?;
    let name = unhex(column()??)?;
    let value = match column()? {
        Some(value) => Some(unhex(value)?),
        None => None,
    };
    Some((kind, name, value))
}

fn unhex(digits: &[u8]) -> Option<Box<[u8]>> {
    let (pairs, rest) = digits.as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}
