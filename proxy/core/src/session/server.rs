//! What a session must know of a server connection that it holds. Plain data, owned by the connection.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use rustc_hash::FxHashMap;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::look::Row;
use super::settings::{Params, Settings};
use crate::route::ServerRole;
use crate::sql::{Effect, Unseen, Verdict};
use crate::topology::Epoch;
use crate::wire::reply::TxStatus;

/// State of one server connection, as far as its next session must know it.
#[derive(Debug)]
pub struct ServerState {
    pub node: Arc<str>,
    pub role: ServerRole,
    /// The epoch under which it was opened. A leader connection of an older epoch is never used again.
    pub epoch: Epoch,
    pub tx: TxStatus,
    /// What the server has reported.
    pub params: Params,
    /// What the server has been brought to.
    pub settings: Arc<Settings>,
    /// What it began with, and goes back to by RESET: nothing, or the startup settings of its session.
    pub(super) began: Arc<Settings>,
    /// What its role and database gave it of custom settings when it was opened.
    pub(super) given: Box<[Row]>,
    /// Nothing is owed: the last thing that came is a ReadyForQuery.
    pub ready: bool,
    /// State that no session may inherit: it is discarded before the next lease, or the connection is closed.
    pub tainted: bool,
    /// Nobody has used it before the session that holds it.
    pub fresh: bool,
    /// Something has run that isn't proven to leave nothing: it must be looked at before anybody else gets it.
    pub unsure: bool,
    /// Whose `currval` and `lastval` are in it, perhaps.
    pub(super) sequences: Option<SessionId>,
    /// Custom settings may have been set on it of which nobody knows the names, so that no look can tell: its session
    /// keeps it.
    pub sets_unknown: bool,
    /// Relations that the facts didn't have, and that its session has named since it was given back: see [`Verdict::unknown`].
    pub(super) unknown: Vec<Arc<str>>,
    /// The first facts by which such a statement was judged, or one that made something, perhaps temporary.
    pub(super) judged_by: Option<u64>,
    /// The custom settings (`prefix.name`) that were ever set on it: to whoever asks for one, '' is something else than none.
    pub custom: CustomNames,
    /// Of these, the ones from before the session that holds it.
    pub(super) custom_before: CustomNames,
    prepared: Prepared,
    /// It knows its session's statements by the client's own names, and has none of ours: see [`super::names`].
    pub(super) own_names: Option<OwnNames>,
    /// Parameters of extensions (`prefix.name`) that it has taken.
    accepted: Vec<Arc<str>>,
    /// Who logged in on it, as the server has reported.
    login: Option<Box<[u8]>>,
    /// The content of the server's unnamed statement, as it will be behind all that was sent.
    unnamed: Option<StatementId>,
    /// Changes of that.
    unnamed_changes: u64,
}

/// Reported by servers whenever it changes.
const SESSION_AUTHORIZATION: &str = "session_authorization";

/// Names of parameters that are kept for one connection.
const ACCEPTED_MAX: usize = 64;

/// Prefixes of the parameters of PostgreSQL's own libraries, and of others that are in wide use.
const LIBRARIES: &[&str] = &[
    "age",
    "anon",
    "auth_delay",
    "auto_explain",
    "basic_archive",
    "citus",
    "cron",
    "hll",
    "hnsw",
    "hypopg",
    "isn",
    "ivfflat",
    "orafce",
    "passwordcheck",
    "pg_bigm",
    "pg_hint_plan",
    "pg_ivm",
    "pg_partman_bgw",
    "pg_prewarm",
    "pg_qualstats",
    "pg_repack",
    "pg_squeeze",
    "pg_stat_kcache",
    "pg_stat_statements",
    "pg_tle",
    "pg_trgm",
    "pg_wait_sampling",
    "pgaudit",
    "pglogical",
    "pgroonga",
    "pgsodium",
    "pgtle",
    "pljava",
    "pllua",
    "plperl",
    "plpgsql",
    "plprofiler",
    "plpython",
    "plr",
    "plrust",
    "pltcl",
    "plv8",
    "postgis",
    "postgres_fdw",
    "powa",
    "rum",
    "sepgsql",
    "set_user",
    "supautils",
    "temporal_tables",
    "timescaledb",
    "vectors",
    "zhparser",
];

fn is_of_a_library(name: &str) -> bool {
    name.split_once('.').is_some_and(|(prefix, _)| LIBRARIES.contains(&prefix.to_ascii_lowercase().as_str()))
}

/// Unknown relations that are kept for one connection.
const UNKNOWN_MAX: usize = 64;

/// A session, among all of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SessionId(u64);

impl SessionId {
    pub(super) fn next() -> SessionId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        SessionId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A statement's content: text, parameter types and the settings that analysis reads.
pub type StatementId = u128;

impl ServerState {
    pub fn new(node: Arc<str>, role: ServerRole, epoch: Epoch, params: Params, max_prepared: usize) -> ServerState {
        ServerState {
            node,
            role,
            epoch,
            tx: TxStatus::Idle,
            login: params.value(SESSION_AUTHORIZATION).map(Box::from),
            params,
            settings: Arc::default(),
            began: Arc::default(),
            ready: true,
            tainted: false,
            fresh: true,
            unsure: false,
            sequences: None,
            given: Box::default(),
            sets_unknown: false,
            unknown: Vec::new(),
            judged_by: None,
            custom: CustomNames::default(),
            custom_before: CustomNames::default(),
            prepared: Prepared { uses: FxHashMap::default(), clock: 0, max: max_prepared.max(1) },
            own_names: None,
            accepted: Vec::new(),
            unnamed: None,
            unnamed_changes: 0,
        }
    }

    /// It was opened with a session's startup settings. Only that session may get it.
    pub fn begins_with(&mut self, startup: &Arc<Settings>) {
        for name in startup.dotted() {
            self.sets(name);
            self.accepts(name);
        }
        self.began = startup.clone();
        self.settings = startup.clone();
    }

    /// A parameter has gone back to what it began with.
    pub(super) fn resets(&mut self, name: &Arc<str>) {
        let settings = Arc::make_mut(&mut self.settings);
        match self.began.value(name) {
            Some(value) => settings.set(name, value.clone()),
            None => settings.remove(name),
        }
    }

    pub(super) fn accepted(&self) -> &[Arc<str>] {
        &self.accepted
    }

    /// It has taken this parameter, and takes whatever value of it. Beyond the limit it is asked again each time, and of a library's parameters: a
    /// server that has loaded the library checks their values, and it may do so at any moment.
    pub(super) fn accepts(&mut self, name: &Arc<str>) {
        if name.contains('.') && !is_of_a_library(name) && self.accepted.len() < ACCEPTED_MAX && !self.accepted.contains(name) {
            self.accepted.push(name.clone());
        }
    }

    /// After a simple query of the owner's, such as a ROLLBACK: it has destroyed the unnamed statement, too.
    pub fn cleaned(&mut self, tx: TxStatus) {
        self.tx = tx;
        self.forget_unnamed();
    }

    /// After DISCARD ALL: defaults, no prepared statement but the unnamed one, no sequence's state.
    pub fn discarded(&mut self) {
        self.settings = self.began.clone();
        self.sequences = None;
        self.forget_prepared();
        self.own_names = None;
    }

    pub(super) fn forget_prepared(&mut self) {
        self.prepared.uses.clear();
    }

    pub(super) fn unnamed(&self) -> Option<StatementId> {
        self.unnamed
    }

    /// It is something else, or nothing.
    pub(super) fn forget_unnamed(&mut self) {
        self.unnamed = None;
        self.unnamed_changes += 1;
    }

    /// It is about to be prepared. What it was before, for [`ServerState::restore_unnamed`].
    pub(super) fn prepare_unnamed(&mut self, id: StatementId) -> Unnamed {
        self.unnamed_changes += 1;
        Unnamed { was: self.unnamed.replace(id), change: self.unnamed_changes }
    }

    /// It is about to be closed. What it was before, as for [`ServerState::prepare_unnamed`].
    pub(super) fn close_unnamed(&mut self) -> Unnamed {
        self.unnamed_changes += 1;
        Unnamed { was: self.unnamed.take(), change: self.unnamed_changes }
    }

    /// That was skipped, and so is all behind it that has changed the unnamed statement.
    pub(super) fn restore_unnamed(&mut self, before: Unnamed) {
        if self.unnamed_changes == before.change {
            self.unnamed = before.was;
            self.unnamed_changes -= 1;
        } else {
            self.forget_unnamed();
        }
    }

    pub(super) fn prepared(&mut self) -> &mut Prepared {
        &mut self.prepared
    }

    pub(super) fn has_prepared(&self, id: StatementId) -> bool {
        self.prepared.uses.contains_key(&id)
    }

    /// Whether its session is another user's than of who logged in: SET SESSION AUTHORIZATION.
    pub(super) fn is_somebody_else(&self) -> bool {
        self.params.value(SESSION_AUTHORIZATION) != self.login.as_deref()
    }

    pub(super) fn forget_statement(&mut self, id: StatementId) {
        self.prepared.remove(id);
    }

    pub(super) fn prepared_ids(&self) -> Vec<StatementId> {
        self.prepared.uses.keys().copied().collect()
    }

    /// Something has been sent that may leave this.
    pub(super) fn may_keep(&mut self, unseen: Unseen) {
        self.unsure |= unseen.leaves;
        self.sets_unknown |= unseen.sets_unknown;
    }

    /// What its session names that the facts don't have, and by which facts that, and what it makes, was judged.
    pub(super) fn names_unknown(&mut self, verdict: &Verdict) {
        if !verdict.unknown.is_empty() || verdict.effects.contains(&Effect::Ddl) {
            self.judged_by.get_or_insert(verdict.generation);
        }
        for name in &verdict.unknown {
            if self.unknown.contains(name) {
                continue;
            }
            if self.unknown.len() < UNKNOWN_MAX {
                self.unknown.push(name.clone());
            } else {
                self.sets_unknown = true;
            }
        }
    }

    /// A custom setting is about to be set: from then on it is there, whatever becomes of the transaction.
    pub(super) fn sets(&mut self, name: &Arc<str>) {
        if name.contains('.') && !self.custom.add(name) {
            // What isn't known can't be told to the next session.
            self.tainted = true;
        }
    }
}

/// What a server's unnamed statement was before a Parse, or a Close.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unnamed {
    was: Option<StatementId>,
    change: u64,
}

/// Of a server connection that knows statements by its client's own names.
#[derive(Debug, Default)]
pub(super) struct OwnNames {
    /// What the session has prepared, and this server wouldn't prepare any more, with its ErrorResponse.
    pub(super) missing: FxHashMap<Box<[u8]>, Box<[u8]>>,
}

/// Names of custom settings that are kept for one session or one server connection.
const CUSTOM_NAMES_MAX: usize = 64;

/// Names of custom settings. Cheap to clone: sessions that set the same ones share them with their connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomNames(Option<Arc<Vec<Arc<str>>>>);

impl CustomNames {
    /// False where there are too many.
    pub fn add(&mut self, name: &Arc<str>) -> bool {
        let known = self.0.get_or_insert_default();
        let Err(at) = known.binary_search(name) else { return true };
        if known.len() >= CUSTOM_NAMES_MAX {
            return false;
        }
        Arc::make_mut(known).insert(at, name.clone());
        true
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().flat_map(|known| known.iter())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn contains(&self, name: &Arc<str>) -> bool {
        self.0.as_ref().is_some_and(|known| known.binary_search(name).is_ok())
    }

    /// Whether all of these are among others.
    pub fn are_among(&self, others: &CustomNames) -> bool {
        match (&self.0, &others.0) {
            (None, _) => true,
            (Some(these), Some(others)) => Arc::ptr_eq(these, others) || these.iter().all(|name| others.binary_search(name).is_ok()),
            (Some(_), None) => false,
        }
    }
}

/// The statements that a server connection has prepared, by content.
#[derive(Debug)]
pub(super) struct Prepared {
    uses: FxHashMap<StatementId, u64>,
    clock: u64,
    max: usize,
}

impl Prepared {
    /// Whether the statement is there; counts as a use.
    pub(super) fn has(&mut self, id: StatementId) -> bool {
        self.clock += 1;
        match self.uses.get_mut(&id) {
            Some(used) => {
                *used = self.clock;
                true
            }
            None => false,
        }
    }

    /// Notes a statement that is being prepared, and names one to close where there are too many.
    pub(super) fn add(&mut self, id: StatementId) -> Option<StatementId> {
        self.clock += 1;
        let evicted = if self.uses.len() >= self.max {
            let oldest = self.uses.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id);
            oldest.inspect(|oldest| {
                self.uses.remove(oldest);
            })
        } else {
            None
        };
        self.uses.insert(id, self.clock);
        evicted
    }

    /// Notes a statement whose Close the server has skipped.
    pub(super) fn restore(&mut self, id: StatementId) {
        self.clock += 1;
        self.uses.insert(id, self.clock);
    }

    /// All of them, which are to be closed.
    pub(super) fn take(&mut self) -> Vec<StatementId> {
        self.uses.drain().map(|(id, _)| id).collect()
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> impl Iterator<Item = StatementId> {
        self.uses.keys().copied()
    }

    pub(super) fn remove(&mut self, id: StatementId) {
        self.uses.remove(&id);
    }
}

/// What is before the hexadecimal digits in the names of statements on servers.
const NAME_PREFIX: &[u8] = b"sy_";

/// A statement's name on servers. It derives from a hash with a secret of this process: see [`keyed`].
pub(super) fn server_name(id: StatementId) -> [u8; 35] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut name = *b"sy_00000000000000000000000000000000";
    for (index, byte) in name[NAME_PREFIX.len()..].iter_mut().enumerate() {
        *byte = HEX[((id >> (4 * (31 - index))) & 15) as usize];
    }
    name
}

/// Whether a client's name looks like one of ours. A client may call its own statements so; what it hasn't prepared itself isn't there for it.
pub(super) fn is_server_name(name: &[u8]) -> bool {
    let digits = |digits: &[u8]| digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    name.len() == 35 && name.strip_prefix(NAME_PREFIX).is_some_and(digits)
}

/// Where one of our names stands in a text, and whose it is.
pub(super) fn find_server_name(text: &[u8]) -> Option<(usize, StatementId)> {
    memchr::memmem::find_iter(text, NAME_PREFIX).find_map(|at| {
        let name = text.get(at..at + 35).filter(|name| is_server_name(name))?;
        let digits = std::str::from_utf8(&name[NAME_PREFIX.len()..]).ok()?;
        Some((at, StatementId::from_str_radix(digits, 16).ok()?))
    })
}

/// A hash of a statement's content that nobody outside of this process can compute: names of statements on servers can be seen by whoever runs text
/// there, and must not be guessed. Never 0, which is kept for statements that are never shared.
pub(super) fn keyed(content: &[u8], seed: u64) -> StatementId {
    static SECRET: LazyLock<[u64; 2]> = LazyLock::new(|| [0u8, 1].map(|part| RandomState::new().hash_one(part)));
    let mut hasher = SipHasher13::new_with_keys(SECRET[0], SECRET[1]);
    hasher.write_u64(seed);
    hasher.write(content);
    hasher.finish128().as_u128().max(1)
}
