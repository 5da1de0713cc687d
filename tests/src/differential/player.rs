//! Plays a script on both sides in step, and says what differs. One for each worker: it owns a database on each side,
//! a second client on the router's, and superusers that look at what was written.
//!
//! A player begins each script with a pool in which nobody has left anything: after a difference, [`Player::clean`]
//! has its server connections ended.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::compare::{
    is_only_gone, is_only_of_another_path, is_only_of_modes, is_only_pinned_to_replica, is_only_unprepared, is_only_without_numbers,
    is_only_without_portal, lines,
};
use super::encode::{self, Write};
use super::objects::{ALONE, BYSTANDER, Databases, HERE};
use super::script::{End, Message, Script, Step};
use super::wire::{Answer, Stop, Until, Wire, query};
use super::{Blind, Port};
use crate::leaks::Log;

/// For what ends a moment behind its answer: a server process whose session has gone, a row that a replica is yet to
/// show.
const MOMENT: Duration = Duration::from_secs(2);
/// Uses of several connections that change nothing, until they are taken to rest.
const AT_REST: u32 = 30;
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Scripts that one second client sees before another takes its place.
const LOOKS_MAX: usize = 12;
const SUPERUSER: &str = "postgres";
/// The custom settings of scripts.
const CUSTOM: [&str; 6] = ["my.x", "app.tenant", "names.x", "role.x", "transaction.x", "constraints.x"];

/// Who somebody is, and settings of which some script changes each. Nothing in it pins.
const SEEN: &str = "SELECT concat_ws(' ', current_user, session_user, 'tenant=' || coalesce(quote_literal(current_setting('app.tenant', true)), 'NULL'), \
    'x=' || coalesce(quote_literal(current_setting('my.x', true)), 'NULL'), 'role=' || current_setting('role'), \
    'super=' || current_setting('is_superuser'), 'mem=' || current_setting('work_mem'), 'style=' || current_setting('DateStyle'), \
    'zone=' || current_setting('TimeZone'), 'interval=' || current_setting('IntervalStyle'), \
    'path=' || current_setting('search_path'), 'application=' || current_setting('application_name'), \
    'strings=' || current_setting('standard_conforming_strings'), 'quote=' || current_setting('backslash_quote'), \
    'encoding=' || current_setting('client_encoding'), 'words=' || current_setting('default_text_search_config'), \
    'timeout=' || current_setting('statement_timeout'), 'lock=' || current_setting('lock_timeout'), \
    'digits=' || current_setting('extra_float_digits'), 'messages=' || current_setting('client_min_messages'), \
    'bytea=' || current_setting('bytea_output'), 'seqscan=' || current_setting('enable_seqscan'), \
    'warning=' || current_setting('escape_string_warning'), 'isolation=' || current_setting('default_transaction_isolation'), \
    'now=' || current_setting('transaction_isolation'), 'triggers=' || current_setting('session_replication_role'), \
    'deferrable=' || current_setting('default_transaction_deferrable'), \
    'read_only=' || CASE WHEN pg_is_in_recovery() THEN 'a standby' ELSE current_setting('default_transaction_read_only') END, \
    'words=' || coalesce(current_setting('names.x', true), current_setting('role.x', true), current_setting('transaction.x', true), \
    current_setting('constraints.x', true), 'NULL')) AS seen";
/// In it, on a standby.
const ON_STANDBY: &str = " read_only=a standby";
/// What lives in the session: temporary objects, channels, cursors. (Functions and types by their names in the
/// grammar: looking for all takes longer than a script.)
const HELD: &str = "SELECT (SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class \
        WHERE relnamespace = pg_my_temp_schema() AND relkind <> 'i') AS temporary, \
    to_regprocedure('pg_temp.f()')::text AS function, to_regtype('pg_temp.ty')::text AS type, \
    (SELECT string_agg(channel, ' ' ORDER BY channel) FROM pg_listening_channels() channel) AS channels, \
    (SELECT string_agg(name, ' ' ORDER BY name) FROM pg_cursors WHERE name <> '') AS cursors";
/// What only the session itself is asked for: it pins.
const OWN: [&str; 2] = [
    "SELECT count(*) AS locks FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "SELECT name, from_sql FROM pg_prepared_statements WHERE name <> '' ORDER BY name",
];
/// And what may end a transaction in an error, at the end.
const LAST: [&str; 3] = ["FETCH ALL FROM k1", "SELECT lastval()", "SELECT currval('seq')"];
/// What advances a sequence without saying so, and isn't seen by whoever has drawn others.
const DRAWS: &str = "SELECT drawn FROM others";
/// The session's numbers, which a session has none of that has drawn none.
const NUMBERS: &str = "SELECT lastval()";

/// Where the sides came apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An answer differs.
    Answer,
    /// No answer came, or the router broke the connection off.
    Hang,
    /// What the session says of itself differs.
    State,
    /// A second client sees what it shouldn't.
    Leak,
    /// What is in the tables differs, or locks are left.
    Effects,
    /// The router itself has found a connection that was given back to be otherwise than its ledger says. It keeps
    /// that from all others, so that nothing else may differ.
    Detected,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub kind: Kind,
    pub place: String,
    pub direct: Vec<String>,
    pub routed: Vec<String>,
}

/// The ports of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) side: Port,
    /// Of the server that the direct side talks to.
    pub(super) direct: u16,
    pub(super) routed: u16,
    pub(super) leader: u16,
    pub(super) replica: u16,
}

pub(super) struct Player {
    ports: Ports,
    databases: Databases,
    /// What a fresh direct session sees, by user.
    fresh: HashMap<String, Vec<String>>,
    /// What a fresh direct session says of its numbers.
    no_numbers: Option<Answer>,
    /// The second client, its user, and how often it has looked.
    second: Option<(Wire, String, usize)>,
    /// Superusers on the leader, one in each database, and on the replica in the router's.
    judges: [Wire; 3],
    /// What the tables hold at the beginning.
    base: String,
    /// Whether the script under way has changed that.
    changed: bool,
    /// In the script under way, the session may have been given another connection: another client has used the router, or see [`Player::play`].
    shared: bool,
    /// It has Flush messages.
    flushes: bool,
    /// It may make state that keeps it on a replica, in a READ ONLY transaction of one snapshot.
    one_snapshot: bool,
    /// It has READ ONLY transactions on the read/write port.
    read_only: bool,
    /// It sets `search_path` more than once.
    paths: bool,
    /// Its session has an encoding in which the router reads ASCII only.
    unreadable: bool,
    /// From there on its sides can't be compared: see [`is_only_without_numbers`].
    excused: Cell<bool>,
    /// The step begins in a transaction that has failed.
    failed: bool,
    blind: Blind,
    /// Where the router tells what it has found itself.
    log: Log,
    /// In it, what is of this worker's database.
    of_ours: String,
}

/// What a script has under way.
struct Game {
    direct: Wire,
    routed: Wire,
    holders: Vec<Wire>,
}

impl Player {
    /// # Errors
    /// If a server doesn't answer.
    pub(super) fn new(ports: Ports, databases: Databases, log: &Path, blind: Blind) -> anyhow::Result<Player> {
        let of_ours = format!("database={:?}", databases.routed);
        let log = Log::from_now_on(log);
        let mut judges = judges(ports, &databases)?;
        let base = judges[0].value("SELECT contents || ' / 0 locks' FROM judge_base")?;
        Ok(Player {
            ports,
            databases,
            fresh: HashMap::new(),
            no_numbers: None,
            second: None,
            judges,
            base,
            changed: true,
            shared: false,
            flushes: false,
            one_snapshot: false,
            read_only: false,
            paths: false,
            unreadable: false,
            excused: Cell::new(false),
            failed: false,
            blind,
            log,
            of_ours,
        })
    }

    /// Plays a script; `None` if both sides are the same.
    ///
    /// # Errors
    /// If the direct side can't play it: then nothing is said of the router.
    pub(super) fn play(&mut self, script: &Script) -> anyhow::Result<Option<Difference>> {
        // Until the tables were looked at, nothing is known of them.
        self.changed = true;
        let named = script.renamed(|text| self.databases.named(text));
        let script = &named;
        // Behind a custom setting that it has failed to set, a session gets a connection on which nobody has tried to; and one that began like itself
        // where it goes back to its beginning.
        let parted = !script.options.is_empty() || script.texts().any(|text| CUSTOM.iter().any(|name| text.contains(name)));
        (self.shared, self.excused) = (parted, Cell::new(false));
        self.flushes = script.flushes();
        let has = |words: &str| script.texts().any(|text| text.to_ascii_uppercase().contains(words));
        self.unreadable = script.options.iter().any(|(_, value)| value.contains("SJIS"));
        let stays = self.unreadable || has("ROLE") || has("SESSION AUTHORIZATION") || has("PREPARE");
        self.read_only = self.ports.side == Port::ReadWrite && has("READ ONLY");
        self.one_snapshot = self.read_only && stays && has("REPEATABLE READ");
        self.paths = script.texts().filter(|text| text.to_ascii_lowercase().contains("search_path")).count() > 1;
        let mut difference = self.played(script);
        // A leak by the detector's own word says more than an answer does.
        let says_less = match &difference {
            Ok(Some(difference)) => matches!(difference.kind, Kind::Answer | Kind::State),
            Ok(None) | Err(_) => true,
        };
        if let Some(detected) = self.detected().filter(|_| says_less) {
            difference = Ok(Some(detected));
        }
        let clean = matches!(difference, Ok(None)) && !script.alters() && !self.excused.get();
        if clean && self.changed && self.ports.side == Port::ReadWrite {
            // What the script wrote was compared; the next one finds the tables as they were.
            self.reset()?;
        }
        // What isn't looked for would be found by the next script.
        let clean = clean && !self.blind.placeholders && !self.blind.numbers;
        if script.alters() {
            // Before others log in anew.
            let undo = self.databases.undo_database_alters();
            for text in undo {
                self.judges[0].ask(&text)?;
            }
        }
        if !clean && self.clean().is_err() {
            // The server may have crashed over the script: it is back in a while.
            self.eventually(|player| {
                player.judges = judges(player.ports, &player.databases)?;
                Ok(true)
            })?;
            self.clean()?;
        }
        if script.alters() {
            let undo = self.databases.undo_role_alters();
            // What the role owned goes with its sessions, a moment later.
            self.eventually(|player| Ok(player.judges[0].ask(&undo)?.told.iter().all(|told| told.tag != b'E')))?;
            self.replayed()?;
        }
        difference
    }

    /// Whether the last script had an answer that is known to differ (docs/sessions.md).
    pub(super) fn excused(&self) -> bool {
        self.excused.get()
    }

    /// Without a difference that comes from what [`goes_back`].
    fn beyond(&self, script: &Script, messages: &[Message], difference: Option<Difference>) -> Option<Difference> {
        if difference.as_ref().is_some_and(|difference| difference.kind == Kind::Answer && goes_back(script, messages)) {
            // What comes behind it may differ, too.
            self.excused.set(true);
            return None;
        }
        difference
    }

    /// What the router has told of connections to this worker's database since the last time.
    fn detected(&mut self) -> Option<Difference> {
        let told: Vec<String> = self.log.news().into_iter().filter(|line| line.contains(&self.of_ours)).collect();
        let routed: Vec<String> =
            told.iter().map(|line| line.split_once("difference=").map_or(&**line, |(_, words)| words).to_owned()).collect();
        let place = "the return of a connection".to_owned();
        (!routed.is_empty()).then_some(Difference { kind: Kind::Detected, place, direct: Vec::new(), routed })
    }

    fn played(&mut self, script: &Script) -> anyhow::Result<Option<Difference>> {
        let copies_by_parse = script.texts().any(|text| text.contains("FROM STDIN"))
            && script.steps.iter().any(|step| {
                matches!(step, Step::Write { messages, .. }
                    if messages.iter().any(|message| matches!(message, Message::Parse { text, .. } if text.contains("FROM STDIN"))))
            });
        let alone = script.texts().any(|text| text.contains(ALONE));
        let others = self.databases.named(ALONE);
        let bystanders = if alone { self.bystanders_at_rest(&others)? } else { String::new() };
        let (mut game, login) = match self.begin(script)? {
            Ok(begun) => begun,
            Err(difference) => return Ok(difference),
        };
        if let Some(difference) = login {
            return Ok(Some(difference));
        }
        let (mut altered, mut modes_in_doubt) = (false, false);
        for (index, step) in script.steps.iter().enumerate() {
            let place = format!("step {}", index + 1);
            let difference = match step {
                Step::Write { messages, split } => {
                    self.failed = game.direct.status == b'E';
                    let difference = self.write(&mut game, &encode::writes(messages, copies_by_parse), *split, &place)?;
                    self.failed = false;
                    // Modes of the transaction that it is in may be the server's own defaults.
                    modes_in_doubt = game.direct.status != b'I' && (modes_in_doubt || goes_back(script, messages));
                    self.beyond(script, messages, difference)
                }
                Step::Cancel => self.cancel(&mut game, &place)?,
                Step::Alter(text) => {
                    altered = true;
                    self.alter(text)?;
                    // An open transaction keeps the pool's one connection.
                    if game.direct.status == b'I' { self.log_in_anew(script, &place)? } else { None }
                }
                Step::Look if altered && game.direct.status == b'I' => self.log_in_anew(script, &place)?,
                Step::Look if game.direct.status == b'I' => self.look(&script.user, &place)?,
                Step::Hold if game.direct.status == b'I' && game.holders.is_empty() => {
                    self.hold(&mut game, &script.user)?;
                    None
                }
                Step::Look | Step::Hold => None,
            };
            if difference.is_some() {
                return Ok(difference);
            }
            self.shared |= matches!(step, Step::Look | Step::Hold);
            if self.excused.get() {
                break;
            }
        }
        game.holders.clear();
        if script.state
            && !self.excused.get()
            && !modes_in_doubt
            && let Some(difference) = self.state(&mut game)?
        {
            return Ok(Some(difference));
        }
        if self.excused.get() {
            drop(game);
            return self.look(&script.user, "after the first client has gone");
        }
        let difference = self.end(game, &script.end)?;
        let difference = self.beyond(script, script.end.messages(), difference);
        if difference.is_some() {
            return Ok(difference);
        }
        if !self.excused.get()
            && let Some(difference) = self.effects()?
        {
            return Ok(Some(difference));
        }
        let draws = |text: &str| ["INTO ser", "UPDATE ser", "audited", "numbers", "seq", "commits"].iter().any(|word| text.contains(word));
        // Behind a change of who may log in, that was compared already.
        let numbers = !self.blind.numbers && !altered && script.texts().any(draws);
        // Whoever looks hides something from who looks next: at all else, or at the numbers.
        let first = numbers && script.steps.len() % 2 == 1;
        if first && let Some(difference) = self.look_at_numbers(&script.user)? {
            return Ok(Some(difference));
        }
        let gone = "after the first client has gone";
        let seen = if altered { self.log_in_anew(script, gone)? } else { self.look(&script.user, gone)? };
        if seen.is_some() {
            return Ok(seen);
        }
        if alone {
            let left = self.bystanders(&others)?;
            // One that was too many may have ended since.
            if left == "none" || left.split(' ').any(|left| !bystanders.split(' ').any(|known| known == left)) {
                let place = "somebody's connections to another database".to_owned();
                return Ok(Some(Difference { kind: Kind::Effects, place, direct: vec![bystanders], routed: vec![left] }));
            }
        }
        if numbers && !first { self.look_at_numbers(&script.user) } else { Ok(None) }
    }

    /// A superuser changes what a role or a database is.
    fn alter(&mut self, text: &str) -> anyhow::Result<()> {
        let (direct, routed) = (self.databases.direct.clone(), self.databases.routed.clone());
        let texts =
            if text.contains(HERE) { vec![text.replace(HERE, &direct), text.replace(HERE, &routed)] } else { vec![text.to_owned()] };
        for text in texts {
            self.judges[0].ask(&text)?;
        }
        self.replayed()
    }

    /// The replica shows all that the leader has committed.
    fn replayed(&mut self) -> anyhow::Result<()> {
        let written = self.judges[1].value("SELECT pg_current_wal_lsn()")?;
        self.eventually(|player| Ok(player.judges[2].value(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'"))? == "t"))
    }

    /// What a new login of the script's user is told and sees, on both sides. (Sessions that were there go on with the
    /// connections of their own login, which may be others than a direct session has.)
    fn log_in_anew(&mut self, script: &Script, place: &str) -> anyhow::Result<Option<Difference>> {
        let bytes = self.look_bytes();
        let until = Until::Counted { readies: self.looks() * LOOK_QUERIES, completed: 0 };
        let user = script.user.as_str();
        let (mut direct, mut expected) = Wire::log_in(self.ports.direct, &[("user", user), ("database", &self.databases.direct)])?;
        let (mut routed, mut got) = Wire::log_in(self.ports.routed, &[("user", user), ("database", &self.databases.routed)])?;
        for (wire, answer) in [(&mut direct, &mut expected), (&mut routed, &mut got)] {
            if answer.told.last().is_some_and(|told| told.tag == b'Z') && wire.send(&bytes).is_ok() {
                append(answer, wire.read(until));
            }
        }
        ensure!(expected.stop != Stop::Hung, "a fresh direct session doesn't answer");
        // One of its looks is for the replica.
        let difference = self.compared_with(true, &format!("a new login, {place}"), &expected, &got);
        Ok(difference
            .map(|difference| Difference { kind: if difference.kind == Kind::Hang { Kind::Hang } else { Kind::Leak }, ..difference }))
    }

    /// As [`Player::bystanders`], once that a use changes nothing. In the first seconds of a run, a second connection
    /// took the place of the first now and then, without any statement of a script.
    fn bystanders_at_rest(&mut self, database: &str) -> anyhow::Result<String> {
        let mut before = self.bystanders(database)?;
        let mut same = 0;
        self.eventually(|player| {
            let now = player.bystanders(database)?;
            same = if now == before { same + 1 } else { 0 };
            let one = !now.contains(' ') && now != "none";
            before = now;
            // One that ends takes a moment for it; a larger pool may keep both.
            Ok(same > if one { 0 } else { AT_REST })
        })?;
        Ok(before)
    }

    /// The server processes of somebody with a database, who uses it once more. What rests of him is nobody else's to
    /// close.
    fn bystanders(&mut self, database: &str) -> anyhow::Result<String> {
        if self.ports.routed == self.ports.direct {
            // Both sides are direct: nothing rests.
            return Ok("0".to_owned());
        }
        let side = if self.ports.side == Port::ReadWrite { "/* switchyard: leader */ SELECT 1" } else { "SELECT 1" };
        Wire::log_in(self.ports.routed, &[("user", BYSTANDER), ("database", database)])?.0.value(side)?;
        let judge = if self.ports.side == Port::ReadWrite { 1 } else { 2 };
        self.judges[judge].value(&format!(
            "SELECT coalesce(string_agg(pid::text, ' ' ORDER BY pid), 'none') FROM pg_stat_activity \
             WHERE datname = '{database}' AND usename = '{BYSTANDER}'"
        ))
    }

    /// Asked by itself, and the client that asks is given up: it is pinned then.
    fn look_at_numbers(&mut self, user: &str) -> anyhow::Result<Option<Difference>> {
        let asked = |port: u16, database: &str| -> anyhow::Result<Answer> {
            let (mut wire, _) = Wire::log_in(port, &[("user", user), ("database", database)])?;
            Ok(wire.ask(NUMBERS)?)
        };
        if self.no_numbers.is_none() {
            self.no_numbers = Some(asked(self.ports.direct, &self.databases.direct)?);
        }
        let got = asked(self.ports.routed, &self.databases.routed)?;
        let place = "a second client, after the first has gone, of its numbers";
        let difference = self.no_numbers.as_ref().and_then(|expected| self.compared(place, expected, &got));
        Ok(difference.map(|difference| Difference { kind: Kind::Leak, ..difference }))
    }

    /// Both logins. The inner error ends the script: the logins were refused, with a difference or the same.
    #[expect(clippy::type_complexity, reason = "said in its place")]
    fn begin(&mut self, script: &Script) -> anyhow::Result<Result<(Game, Option<Difference>), Option<Difference>>> {
        let parameters = |database: &str| -> Vec<(String, String)> {
            let own = [("user", script.user.as_str()), ("database", database)];
            let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
            own.into_iter().chain(script.options.iter().cloned()).collect()
        };
        // By the read-only port, nothing but this keeps a replication connection from writing after a promotion: it is
        // told so, unlike other sessions.
        let kept = script.replicates() && self.ports.side == Port::ReadOnly;
        let log_in = |port: u16, database: &str| {
            let mut parameters = parameters(database);
            if kept && port == self.ports.direct {
                parameters.push(("default_transaction_read_only".to_owned(), "on".to_owned()));
            }
            let borrowed: Vec<_> = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            Wire::log_in(port, &borrowed)
        };
        let (direct, expected) = log_in(self.ports.direct, &self.databases.direct)?;
        ensure!(expected.stop != Stop::Hung, "the server doesn't answer a login");
        let (routed, got) = log_in(self.ports.routed, &self.databases.routed)?;
        let refused = expected.told.last().is_none_or(|told| told.tag != b'Z');
        let difference = self.compared("the login", &expected, &got);
        if refused {
            return Ok(Err(difference));
        }
        Ok(Ok((Game { direct, routed, holders: Vec::new() }, difference)))
    }

    fn write(&mut self, game: &mut Game, writes: &[Write], split: bool, place: &str) -> anyhow::Result<Option<Difference>> {
        let (mut expected, mut got) = (empty(), empty());
        for Write { bytes, until } in writes {
            // Behind an error, a server skips what comes up to the Sync: no answer will tell that it has come to a
            // Flush.
            let skips = expected.told.iter().rev().take_while(|told| told.tag != b'Z').any(|told| told.tag == b'E');
            let until = match until {
                Until::Counted { readies: 0, .. } if skips => &Until::Counted { readies: 0, completed: 0 },
                until => until,
            };
            let sent = if split { send_in_pieces(&mut game.routed, bytes) } else { game.routed.send(bytes) };
            game.direct.send(bytes).context("the direct connection is gone")?;
            append(&mut expected, game.direct.read(*until));
            ensure!(expected.stop != Stop::Hung, "{place}: the server itself doesn't answer");
            // PostgreSQL 15 ends a session that runs some transaction control by EXECUTE of a statement of the
            // protocol's.
            ensure!(expected.stop != Stop::Closed, "{place}: the server itself closed the connection");
            // What a router says before it goes away is read, too.
            let read = game.routed.read(*until);
            append(&mut got, read);
            if sent.is_err() || got.stop != Stop::Whole {
                break;
            }
        }
        Ok(self.compared(place, &expected, &got))
    }

    fn cancel(&mut self, game: &mut Game, place: &str) -> anyhow::Result<Option<Difference>> {
        if game.direct.status == b'E' {
            return Ok(None);
        }
        let bytes = query("SELECT pg_sleep(5)");
        game.direct.send(&bytes)?;
        if game.routed.send(&bytes).is_err() {
            return Ok(None);
        }
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE datname IN (current_database(), \
            replace(current_database(), 'diff_r', 'diff_d')) AND wait_event = 'PgSleep' AND query = 'SELECT pg_sleep(5)'";
        self.eventually(|player| {
            let on_leader: usize = player.judges[1].value(sleeps)?.parse()?;
            let on_replica: usize = player.judges[2].value(sleeps)?.parse()?;
            Ok(on_leader + on_replica >= 2)
        })?;
        game.direct.cancel()?;
        game.routed.cancel()?;
        let until = Until::Counted { readies: 1, completed: 0 };
        let (expected, got) = (game.direct.read(until), game.routed.read(until));
        Ok(self.compared(place, &expected, &got))
    }

    /// Another client's transaction takes the connection that the session has used, so that it gets another one.
    fn hold(&mut self, game: &mut Game, user: &str) -> anyhow::Result<()> {
        let (mut holder, _) = Wire::log_in(self.ports.routed, &[("user", user), ("database", &self.databases.routed)])?;
        holder.ask("BEGIN; SELECT count(*) FROM t")?;
        game.holders.push(holder);
        Ok(())
    }

    /// What a second client sees, against what a fresh direct session sees.
    fn look(&mut self, user: &str, place: &str) -> anyhow::Result<Option<Difference>> {
        let bytes = self.look_bytes();
        let draws = usize::from(self.ports.side == Port::ReadWrite);
        let until = Until::Counted { readies: self.looks() * LOOK_QUERIES + draws, completed: 0 };
        if !self.fresh.contains_key(user) {
            let (mut wire, _) = Wire::log_in(self.ports.direct, &[("user", user), ("database", &self.databases.direct)])?;
            wire.send(&bytes)?;
            let answer = wire.read(until);
            ensure!(answer.stop == Stop::Whole, "a fresh direct session doesn't answer");
            let mut seen = lines(&answer);
            self.look_away(&mut seen);
            self.fresh.insert(user.to_owned(), seen);
        }
        let (mut wire, looks) = match self.second.take() {
            Some((wire, of, looks)) if of == user && looks < LOOKS_MAX => (wire, looks),
            _ => (Wire::log_in(self.ports.routed, &[("user", user), ("database", &self.databases.routed)])?.0, 0),
        };
        let answer = if wire.send(&bytes).is_ok() { wire.read(until) } else { Answer { told: Vec::new(), stop: Stop::Closed } };
        let (mut expected, mut got) = (self.fresh[user].clone(), lines(&answer));
        self.look_away(&mut got);
        for (direct, routed) in expected.iter_mut().zip(&mut got).filter(|(_, routed)| routed.contains(ON_STANDBY)) {
            leave_read_only_out(direct);
            leave_read_only_out(routed);
        }
        if expected == got {
            self.second = Some((wire, user.to_owned(), looks + 1));
            return Ok(None);
        }
        let kind = if answer.stop == Stop::Whole { Kind::Leak } else { Kind::Hang };
        let (direct, routed) = apart(&expected, &got);
        Ok(Some(Difference { kind, place: format!("a second client, {place}"), direct, routed }))
    }

    /// On the read/write port, a look goes to the leader and to the replica.
    fn looks(&self) -> usize {
        if self.ports.side == Port::ReadWrite { 2 } else { 1 }
    }

    fn look_bytes(&self) -> Vec<u8> {
        let hints: &[&str] =
            if self.ports.side == Port::ReadWrite { &["/* switchyard: leader */ ", "/* switchyard: replica */ "] } else { &[""] };
        let asked = |hint: &&str| {
            let mut bytes = query(&format!("{hint}{SEEN}"));
            bytes.extend(query(&format!("{hint}{HELD}")));
            for statement in ["a", "w"] {
                bytes.extend(query(&format!("{hint}EXECUTE {statement}")));
            }
            bytes
        };
        let mut bytes: Vec<u8> = hints.iter().flat_map(asked).collect();
        if self.ports.side == Port::ReadWrite {
            bytes.extend(query(DRAWS));
        }
        bytes
    }

    fn state(&mut self, game: &mut Game) -> anyhow::Result<Option<Difference>> {
        let rollback: &[&str] = if game.direct.status == b'E' { &["ROLLBACK"] } else { &[] };
        let asked = |texts: &[&str]| -> Vec<Message> { texts.iter().map(|text| Message::Query(vec![(*text).to_owned()])).collect() };
        let own = if self.blind.names { &OWN[..1] } else { &OWN };
        let mut messages = [asked(rollback), asked(&[SEEN, HELD]), asked(own)].concat();
        for name in ["a", "w", ""] {
            messages.extend([Message::DescribeStatement(name.to_owned()), Message::Sync]);
        }
        messages.extend(asked(if self.blind.numbers { &LAST[..1] } else { &LAST }));
        let difference = self.write(game, &encode::writes(&messages, false), false, "the session's own state")?;
        Ok(difference.map(|difference| Difference {
            kind: if difference.kind == Kind::Answer { Kind::State } else { difference.kind },
            ..difference
        }))
    }

    fn end(&mut self, game: Game, end: &End) -> anyhow::Result<Option<Difference>> {
        let Game { mut direct, mut routed, .. } = game;
        if *end == End::Reset {
            routed.reset();
            direct.reset();
            return Ok(None);
        }
        let (messages, terminate) = (end.messages(), !matches!(end, End::HalfClose(_)));
        let mut bytes = encode::all(messages);
        if terminate {
            bytes.extend(super::wire::message(b'X', b""));
        }
        for wire in [&mut direct, &mut routed] {
            let _ = wire.send(&bytes);
            if !terminate {
                wire.end_input();
            }
        }
        let (expected, got) = (direct.read(Until::Closed), routed.read(Until::Closed));
        ensure!(expected.stop == Stop::Whole, "the server itself doesn't end");
        // See `write`: an EXECUTE of what ends transactions.
        ensure!(!lines(&expected).iter().any(|line| line.starts_with("E V:FATAL C:XX000 ")), "the server itself ended the session");
        // A server keeps to itself what it has said last, if no Sync asks for it before Terminate: nobody misses that.
        let unasked = terminate && !matches!(messages.last(), Some(Message::Sync | Message::Query(_) | Message::Call { .. }) | None);
        if unasked && got.stop == expected.stop && lines(&got).starts_with(&lines(&expected)) {
            return Ok(None);
        }
        Ok(self.compared("the end", &expected, &got))
    }

    /// The tables of both databases, and the advisory locks that are held in the router's.
    fn effects(&mut self) -> anyhow::Result<Option<Difference>> {
        let asked = "SELECT judge_contents() || ' / ' || (SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
            WHERE d.datname = current_database() AND l.locktype = 'advisory') || ' locks'";
        let locks = "SELECT (SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
            WHERE d.datname = current_database() AND l.locktype = 'advisory') || ' locks'";
        let deadline = Instant::now() + MOMENT;
        loop {
            let writes = self.ports.side == Port::ReadWrite;
            let expected = if writes { self.judges[0].value(asked)? } else { "0 locks".to_owned() };
            let got = if writes { self.judges[1].value(asked)? } else { self.judges[2].value(locks)? };
            if expected == got {
                self.changed = writes && expected != self.base;
                return Ok(None);
            }
            if Instant::now() > deadline {
                let (direct, routed) = (vec![expected], vec![got]);
                return Ok(Some(Difference { kind: Kind::Effects, place: "what is left in the database".to_owned(), direct, routed }));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Ends every server connection that a script may have left something on, and brings the tables back.
    fn clean(&mut self) -> anyhow::Result<()> {
        self.second = None;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname IN (current_database(), \
            replace(current_database(), 'diff_r', 'diff_d')) AND backend_type IN ('client backend', 'walsender') \
            AND (usename IS NULL OR usename LIKE 'diff\\_%')";
        self.eventually(|player| {
            let ended = [player.judges[1].value(end)?, player.judges[2].value(end)?];
            Ok(ended.iter().all(|count| count == "0"))
        })?;
        self.reset()?;
        // The router has noticed when a new session gets a new connection, on each node.
        let user = super::objects::USERS[0];
        let database = self.databases.routed.clone();
        let side = if self.ports.side == Port::ReadWrite { "/* switchyard: leader */ SELECT 1" } else { "SELECT 1" };
        let port = self.ports.routed;
        self.eventually(|_| {
            let (mut wire, _) = Wire::log_in(port, &[("user", user), ("database", &database)])?;
            let answers = [wire.value(side), wire.value("/* switchyard: replica */ SELECT 1")];
            Ok(answers.iter().all(Result::is_ok))
        })
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        for judge in &mut self.judges[..2] {
            judge.ask("SELECT judge_reset()")?;
        }
        // The router doesn't know of this write: without a wait, the next script could read a replica that is yet to
        // replay it.
        self.replayed()
    }

    fn compared(&self, place: &str, expected: &Answer, got: &Answer) -> Option<Difference> {
        // A READ ONLY transaction may run on a replica, whose connections are read-only by themselves.
        self.compared_with(self.read_only, place, expected, got)
    }

    /// `on_replica`: some of it may have run there.
    fn compared_with(&self, on_replica: bool, place: &str, expected: &Answer, got: &Answer) -> Option<Difference> {
        let (mut direct, mut routed) = (lines(expected), lines(got));
        let standby = on_replica && routed.iter().any(|line| line.contains(ON_STANDBY));
        for lines in [&mut direct, &mut routed] {
            self.look_away(lines);
            if standby {
                lines.iter_mut().for_each(leave_read_only_out);
            }
        }
        if direct == routed {
            return None;
        }
        let kind = if got.stop == expected.stop { Kind::Answer } else { Kind::Hang };
        let excused = (self.shared && is_only_without_numbers(&direct, &routed))
            || is_only_of_modes(&direct, &routed, self.flushes)
            || (self.read_only && is_only_pinned_to_replica(&direct, &routed, self.one_snapshot))
            || (self.paths && is_only_of_another_path(&direct, &routed));
        // Behind an error, the rest of a segment is skipped, and what has no Sync isn't answered.
        let skips = got.stop == Stop::Hung && routed.iter().rev().nth(1).is_some_and(|line| line.starts_with("E "));
        let fails_otherwise = is_only_unprepared(&direct, &routed)
            || is_only_gone(&direct, &routed)
            || (self.failed && is_only_without_portal(&direct, &routed));
        if fails_otherwise || (excused && (kind == Kind::Answer || skips)) {
            self.excused.set(true);
            return None;
        }
        let (direct, routed) = apart(&direct, &routed);
        Some(Difference { kind, place: place.to_owned(), direct, routed })
    }

    fn look_away(&self, lines: &mut [String]) {
        for line in lines {
            if self.blind.placeholders {
                *line = line.replace("tenant=\\'\\'", "tenant=NULL").replace(" x=\\'\\'", " x=NULL");
            }
            if self.blind.names
                && let Some((before, behind)) = line.split_once("prepared statement \\\"")
            {
                let behind = behind.split_once('"').map_or("", |(_, behind)| behind);
                *line = format!("{before}prepared statement *{behind}");
            }
        }
    }

    fn eventually(&mut self, mut look: impl FnMut(&mut Player) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + 10 * MOMENT;
        loop {
            let looked = look(self);
            if matches!(looked, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                looked?;
                anyhow::bail!("what was waited for didn't come");
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// On a standby, a connection is read-only by itself.
fn leave_read_only_out(line: &mut String) {
    *line = line.replace(ON_STANDBY, "").replace(" read_only=off", "").replace(" read_only=on", "");
}

fn judges(ports: Ports, databases: &Databases) -> anyhow::Result<[Wire; 3]> {
    let judge = |port: u16, database: &str| -> anyhow::Result<Wire> {
        let (mut wire, _) = Wire::log_in(port, &[("user", SUPERUSER), ("database", database)])?;
        // Shorter than the patience for an answer.
        wire.ask("SET lock_timeout = '4s'")?;
        wire.value("SELECT 1")?;
        Ok(wire)
    };
    Ok([judge(ports.leader, &databases.direct)?, judge(ports.leader, &databases.routed)?, judge(ports.replica, &databases.routed)?])
}

/// Queries of a look in each place.
const LOOK_QUERIES: usize = 4;

/// Whether a session may go back to its startup settings in this step, and run more behind that: on a connection that it keeps, the rest of its string or
/// segment meets the server's own first (docs/sessions.md).
fn goes_back(script: &Script, messages: &[Message]) -> bool {
    let runs = |message: &Message| match message {
        Message::Query(texts) => texts.len(),
        Message::Execute { .. } => 1,
        _ => 0,
    };
    !script.options.is_empty()
        && (messages.iter().map(runs).sum::<usize>() > 1 || script.texts().any(|text| text.contains("NULL")))
        && script.texts().any(|text| ["RESET", "DEFAULT", "DISCARD ALL", "NULL"].iter().any(|back| text.contains(back)))
}

fn empty() -> Answer {
    Answer { told: Vec::new(), stop: Stop::Whole }
}

fn append(to: &mut Answer, more: Answer) {
    to.told.extend(more.told);
    to.stop = more.stop;
}

/// Each piece in a packet of its own, as far as the kernel lets it.
fn send_in_pieces(wire: &mut Wire, bytes: &[u8]) -> std::io::Result<()> {
    let mut dice = crate::unruly::Dice(bytes.len() as u64);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at((1 + dice.below(9)).min(rest.len()));
        wire.send(piece)?;
        rest = behind;
    }
    Ok(())
}

/// The lines that one side has and the other hasn't, behind the last that both have before the first of these.
fn apart(direct: &[String], routed: &[String]) -> (Vec<String>, Vec<String>) {
    let same = direct.iter().zip(routed).take_while(|(one, other)| one == other).count();
    let begin = same.saturating_sub(1);
    let tail = direct[same..].iter().rev().zip(routed[same..].iter().rev()).take_while(|(one, other)| one == other).count();
    let (mut direct, mut routed) = (direct[begin..direct.len() - tail].to_vec(), routed[begin..routed.len() - tail].to_vec());
    if direct.len() == routed.len() {
        let differ: Vec<bool> = direct.iter().zip(&routed).map(|(one, other)| one != other).collect();
        for lines in [&mut direct, &mut routed] {
            let mut differ = differ.iter();
            lines.retain(|_| differ.next().is_some_and(|differs| *differs));
        }
    }
    (direct, routed)
}
