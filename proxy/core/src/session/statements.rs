//! What the client has prepared: its names, and what they mean.
//!
//! Invariant: a Parse or Close counts from the moment it is taken, so that what follows it in the batch finds it, and is undone where the
//! server skips it.

use std::sync::Arc;

use super::batch::{Item, Statement, ends_or_goes_back, runs_when_failed};
use super::names::is_answered;
use super::replies::Owed;
use super::server::{StatementId, find_server_name, keyed, server_name};
use super::{Env, Read, Session, Work};
use crate::refusal::Refusal;
use crate::sql::reach::FIRST_NORMAL_OID;
use crate::sql::{Class, Dialect, Effect, PinReason, Reason, Verdict};
use crate::wire::reply::TxStatus;
use crate::wire::{frame, reply, view};

impl Session {
    pub(super) fn verdict(&self, env: &Env<'_>, sql: &[u8]) -> Arc<Verdict> {
        self.verdict_by(env, sql, self.reads())
    }

    fn reads(&self) -> Read {
        Read { dialect: self.dialect(), doubt: self.dialect_doubt }
    }

    fn verdict_by(&self, env: &Env<'_>, sql: &[u8], Read { dialect, doubt }: Read) -> Arc<Verdict> {
        let judged = |dialect: Dialect| env.judge.verdict(sql, dialect.standard_conforming_strings, dialect.client_encoding_is_ascii_safe);
        let verdict = judged(dialect);
        if !doubt.any() {
            return verdict;
        }
        // Where strings end is another matter only where there are backslashes, and the encoding where there are characters that may hide one.
        let hides = |pair: &[u8]| !pair[0].is_ascii() && pair[1] == b'\\';
        let another = Dialect { standard_conforming_strings: !dialect.standard_conforming_strings, ..dialect };
        let unreadable = (doubt.encoding && !sql.is_ascii())
            || (sql.contains(&b'\\') && (sql.windows(2).any(hides) || !verdict.says_as(&judged(another))));
        if unreadable { Arc::new(Verdict::clone(&verdict).unreadable("strings that may be read otherwise by now")) } else { verdict }
    }

    /// The verdict on a prepared statement by the facts of now, its text read as at its Parse.
    pub(super) fn verdict_again(&self, env: &Env<'_>, statement: &Statement) -> Arc<Verdict> {
        self.verdict_by(env, statement.text(), statement.read)
    }

    /// Something is about to run behind which texts may be read otherwise, of which servers tell no earlier than at ReadyForQuery.
    pub(super) fn note_dialect(&mut self, item: &Item) {
        let verdict = match item {
            Item::Query(verdict) => verdict,
            Item::Execute(Some(statement)) => &statement.verdict,
            Item::Execute(None) | Item::FunctionCall { large_object: false } => {
                self.dialect_doubt.strings = true;
                return;
            }
            _ => return,
        };
        let doubt = &mut self.dialect_doubt;
        doubt.strings |= verdict.unseen.leaves;
        for effect in &verdict.effects {
            let (strings, encoding) = match effect {
                Effect::Set { name, .. } | Effect::Reset { name } => {
                    (&**name == "standard_conforming_strings", &**name == "client_encoding")
                }
                Effect::ResetAll | Effect::DiscardAll | Effect::SetUnknown => (true, true),
                // It may go back to what it was before.
                effect if ends_or_goes_back(effect) => (doubt.changed, doubt.changed),
                _ => continue,
            };
            doubt.strings |= strings;
            doubt.encoding |= encoding;
        }
    }

    fn verdict_of(&self, env: &Env<'_>, parse: &view::Parse<'_>, read: Read) -> Arc<Verdict> {
        let mut verdict = self.verdict_by(env, parse.text, read);
        if !parse.parameter_types().any(|oid| oid >= FIRST_NORMAL_OID) {
            return verdict;
        }
        // By its OID, a type may be any that people made.
        let because = |rule| Reason { rule, piece: "a parameter's type".into() };
        if verdict.class < Class::Write
            && let Some(rule) = env.judge.bad_value()
        {
            let verdict = Arc::make_mut(&mut verdict);
            verdict.class = Class::Write;
            verdict.reasons.push(because(rule));
        }
        let suspicion = env.judge.value_suspicion();
        if let Some(rule) = suspicion.leaves
            && (!verdict.unseen.leaves || (suspicion.sets_unknown && !verdict.unseen.sets_unknown))
        {
            let verdict = Arc::make_mut(&mut verdict);
            verdict.unseen.leaves = true;
            verdict.unseen.sets_unknown |= suspicion.sets_unknown;
            verdict.unproven.get_or_insert_with(|| because(rule));
        }
        verdict
    }

    pub(super) fn statement(&self, name: &[u8]) -> Option<Arc<Statement>> {
        if name.is_empty() { self.unnamed.clone() } else { self.statements.get(name).cloned() }
    }

    /// As [`Session::statement`], judged by the facts of now: since its Parse, a view may read other tables, and a table have a trigger.
    pub(super) fn statement_now(&mut self, env: &Env<'_>, name: &[u8]) -> Option<Arc<Statement>> {
        let known = self.statement(name)?;
        if known.verdict.generation == env.judge.generation() {
            return Some(known);
        }
        // As its Parse was, without the name: its parameters' types count, too.
        let mut body = vec![0];
        body.extend_from_slice(&known.tail);
        let mut verdict = match view::parse(&body) {
            Ok(parse) => self.verdict_of(env, &parse, known.read),
            Err(_) => self.verdict_by(env, known.text(), known.read),
        };
        if verdict.ruling != known.verdict.ruling {
            // Rules are those of its Parse.
            Arc::make_mut(&mut verdict).ruling.clone_from(&known.verdict.ruling);
        }
        let judged = known.judged(verdict);
        if name.is_empty() {
            self.unnamed = Some(judged.clone());
        } else {
            self.statements.insert(name.into(), judged.clone());
        }
        Some(judged)
    }

    pub(super) fn forget_statement(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        if name.is_empty() { self.unnamed.take() } else { self.statements.remove(name) }
    }

    /// A Parse of a name that seemed to be taken, and wasn't: code out of sight had closed what it meant, or no server could prepare that any more.
    pub(super) fn renamed(&mut self, name: Box<[u8]>, statement: Arc<Statement>) {
        if let Ok(name) = std::str::from_utf8(&name)
            && self.sql_prepared.remove(name)
        {
            self.pins.remove(PinReason::SqlPrepare);
        }
        self.statements.insert(name, statement);
    }

    /// A Parse that failed or was skipped. `previous`: what the unnamed statement was before, if it is to be that again.
    pub(super) fn unprepare(&mut self, name: &[u8], statement: &Arc<Statement>, previous: Option<Arc<Statement>>) {
        if name.is_empty() {
            if self.unnamed.as_ref().is_some_and(|known| known.is(statement)) {
                self.unnamed = previous;
            }
        } else if self.statements.get(name).is_some_and(|known| known.is(statement)) {
            self.statements.remove(name);
        }
    }

    /// A Close that was skipped.
    pub(super) fn reinstate(&mut self, name: Box<[u8]>, closed: Option<Arc<Statement>>) {
        let Some(closed) = closed else { return };
        if name.is_empty() {
            self.unnamed.get_or_insert(closed);
        } else {
            self.statements.entry(name).or_insert(closed);
        }
    }

    /// The number of this Bind.
    pub(super) fn note_portal(&mut self, env: &Env<'_>, portal: &[u8], statement: Option<&Arc<Statement>>) -> u32 {
        self.binds = self.binds.wrapping_add(1);
        match statement {
            // Beyond the limit a portal's statement is unknown, which means the leader.
            Some(statement) if self.portals.len() < env.policy.max_statements || self.portals.contains_key(portal) => {
                self.portals.insert(portal.into(), (statement.clone(), self.binds));
            }
            _ => self.forget_portal(portal),
        }
        self.binds
    }

    /// This Bind of it has failed, or was skipped.
    pub(super) fn unbind(&mut self, portal: &[u8], number: u32) {
        if self.portals.get(portal).is_none_or(|(_, last)| *last == number) {
            self.forget_portal(portal);
        }
    }

    /// What is bound to it by now, only the server knows.
    pub(super) fn forget_portal(&mut self, portal: &[u8]) {
        self.portals.remove(portal);
        self.portals_in_doubt |= !portal.is_empty();
    }

    /// Of all portals, as above: a transaction's or savepoint's end takes some, and SQL may use their names for cursors of its own.
    pub(super) fn forget_portals(&mut self) {
        self.portals_in_doubt |= self.portals.keys().any(|name| !name.is_empty());
        self.portals.clear();
    }

    /// There is none.
    pub(super) fn close_portals(&mut self) {
        self.portals.clear();
        self.portals_in_doubt = false;
    }

    /// Something is about to run behind which portals may be gone, and their names be used for others.
    pub(super) fn note_portals(&mut self, item: &Item) {
        let Some(verdict) = item.runs().filter(|_| !self.portals.is_empty()) else { return };
        for effect in &verdict.effects {
            match effect {
                Effect::CloseCursor { name: Some(name) } if self.portals.contains_key(name.as_bytes()) => {
                    self.forget_portal(name.as_bytes())
                }
                Effect::CloseCursor { name: Some(name) } if !name.is_empty() => {}
                Effect::CloseCursor { .. } | Effect::DiscardAll => self.forget_portals(),
                effect if ends_or_goes_back(effect) => self.forget_portals(),
                _ => {}
            }
        }
    }

    /// The verdict on a text of which FETCH or MOVE runs what the protocol has bound to a portal: anything may happen.
    pub(super) fn verdict_of_portals(&self, work: &Work, verdict: Arc<Verdict>) -> Arc<Verdict> {
        let runs = |effect: &Effect| match effect {
            Effect::Fetch { name } => name.is_empty() || self.portals_in_doubt || self.portals.contains_key(name.as_bytes()),
            _ => false,
        };
        // In a transaction that has failed, nothing runs before its end.
        let fails = self.status == TxStatus::Failed && work.batch.is_empty() && is_answered(work) && !work.recovered;
        let any = self.portals_in_doubt || !self.portals.is_empty();
        if any && verdict.effects.iter().any(runs) && (!fails || verdict.effects.iter().any(runs_when_failed)) {
            return Arc::new(Verdict::clone(&verdict).unreadable("a portal of the protocol's, by FETCH or MOVE"));
        }
        verdict
    }

    /// As [`Session::verdict_of_portals`], of what is about to be executed.
    pub(super) fn running_portals(&self, work: &Work, statement: &Arc<Statement>) -> Arc<Statement> {
        let verdict = self.verdict_of_portals(work, statement.verdict.clone());
        if Arc::ptr_eq(&verdict, &statement.verdict) { statement.clone() } else { statement.judged(verdict) }
    }

    /// A client's Parse.
    pub(super) fn prepare(&mut self, env: &Env<'_>, work: &Work, body: &[u8]) -> Result<Item, view::Malformed> {
        let parse = view::parse(body)?;
        let mut seed = self.seed();
        let verdict = self.verdict_of(env, &parse, self.reads());
        // What FETCH gives is what its cursor gave when it was prepared (`UtilityTupleDescriptor`).
        let describes_cursor = verdict.command == "FETCH";
        if self.unproven
            || self.dialect_doubt.any()
            || describes_cursor
            || work
                .batch
                .executed()
                .flat_map(|verdict| &verdict.effects)
                .any(|effect| matches!(effect, Effect::Set { .. } | Effect::SetUnknown))
        {
            // Analysed under settings that aren't known yet: shared with nobody.
            seed ^= env.random | 1;
        }
        let id = current_id(env, keyed(parse.tail, seed));
        if parse.name.is_empty() {
            // Drivers prepare the same unnamed statement over and over.
            let statement = match &self.unnamed {
                // (Where nothing is open: each of several may fail by itself.)
                Some(last) if last.id == id && *last.tail == *parse.tail && work.owed.is_empty() && work.batch.is_empty() => last.clone(),
                _ => self.new_statement(env, id, seed, &parse, verdict),
            };
            let previous = self.unnamed.replace(statement.clone());
            return Ok(Item::Parse { name: Box::default(), statement, previous, duplicate: false });
        }
        let duplicate = self.statements.contains_key(parse.name) || self.sql_prepared.contains(parse.name);
        if self.statements.len() >= env.policy.max_statements && !duplicate {
            return Ok(Item::Refused(Box::new(Refusal::TooManyStatements { limit: env.policy.max_statements })));
        }
        let statement = self.new_statement(env, id, seed, &parse, verdict);
        if !duplicate {
            self.statements.insert(parse.name.into(), statement.clone());
        }
        // The server that gets a duplicate says so; see `send_parse`.
        Ok(Item::Parse { name: parse.name.into(), statement, previous: None, duplicate })
    }

    fn new_statement(&self, env: &Env<'_>, id: StatementId, seed: u64, parse: &view::Parse<'_>, verdict: Arc<Verdict>) -> Arc<Statement> {
        let shape = env.judge.shape();
        let settings = self.settings.clone();
        let (name, tail) = (parse.name.into(), parse.tail.into());
        let read = self.reads();
        Arc::new(Statement { name, id, seed, settings, tail, verdict, read, shape, described: Arc::default() })
    }

    /// Of what analysis reads of the settings.
    fn seed(&self) -> u64 {
        self.settings.analysis_hash() ^ self.local_hash
    }

    /// An error of the server's, with the client's names in the place of ours.
    pub(super) fn in_clients_names(work: &Work, message: &[u8]) -> Option<Vec<u8>> {
        let (at, id) = find_server_name(message)?;
        let name = match work.owed.front() {
            Some(Owed::Bind(Some((_, statement)), _) | Owed::Describe { statement: Some(statement), .. }) => &*statement.name,
            _ => b"",
        };
        let body = [&message[frame::HEADER..at], name, &message[at + server_name(id).len()..]];
        let mut renamed = Vec::with_capacity(message.len());
        reply::message(&mut renamed, message[0], &body);
        Some(renamed)
    }

    /// What the statement is on a server: where it would be analysed under other settings than those of its Parse, it isn't the one
    /// that other sessions mean.
    pub(super) fn id_there(&self, statement: &Statement) -> StatementId {
        let seed = self.seed();
        if seed == statement.seed { statement.id } else { keyed(&statement.id.to_be_bytes(), seed) }
    }
}

/// What is prepared from now on under this content, which may have meant something else before DDL. Ends, as a hash that has been outdated
/// leads to another one.
fn current_id(env: &Env<'_>, content: StatementId) -> StatementId {
    let mut id = match env.judge.shape() {
        0 => content,
        shape => keyed(&content.to_be_bytes(), shape),
    };
    while env.judge.is_outdated(id) {
        id = keyed(&id.to_be_bytes(), 0);
    }
    id
}
