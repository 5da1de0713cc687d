//! Whether a statement is proven to leave nothing in its session but what its effects tell.
//!
//! Whatever a statement runs stands in it as a name or an operator, or is reached from one by what the facts know of triggers, views, policies,
//! defaults, constraints, indexes, casts, types and bodies. Invariant: in doubt, it leaves something. Names are looked at wherever they stand and
//! whatever their schema: a column that is called as a suspect table or function costs its statement the proof, and nothing else.

use std::sync::Arc;

use super::catalog::{Facts, Suspicion};
use super::classify::{Judge, Words};
use super::functions;
use super::keywords::{Category, category};
use super::lexer::TokenKind;
use super::query::qualified_name;
use super::verdict::{Class, Effect, PinReason, Reason, SetTo};

/// What can't be ruled out about the functions and relations of `pg_catalog` that have a name. All others leave nothing: they keep no state, it
/// ends with the transaction, or it is a sequence's, of which the effects tell.
pub(super) fn of_builtin(name: &str) -> Suspicion {
    match name {
        "set_config" => Suspicion::leaves("set_config"),
        "setseed" => Suspicion::leaves("session_state"),
        "pg_advisory_lock" | "pg_advisory_lock_shared" | "pg_try_advisory_lock" | "pg_try_advisory_lock_shared" => {
            Suspicion::leaves("advisory_lock")
        }
        // They end what effects tell of.
        "pg_advisory_unlock" | "pg_advisory_unlock_shared" | "pg_advisory_unlock_all" => Suspicion::leaves("advisory_lock"),
        // Backups and temporary slots belong to a session.
        "pg_backup_start" | "pg_backup_stop" | "pg_start_backup" | "pg_stop_backup" => Suspicion::leaves("session_state"),
        // Decoding runs a plug-in.
        _ if name.starts_with("pg_logical_slot_") => Suspicion::anything("session_state"),
        _ if name.starts_with("pg_") && name.contains("_replication_slot") => Suspicion::anything("session_state"),
        _ if name.starts_with("pg_replication_origin_") || name.starts_with("binary_upgrade_") => {
            Suspicion::anything_but_settings("session_state")
        }
        _ if runs_text(name) => Suspicion::anything("runs_text"),
        // Types by their OIDs or by names in texts: a domain's CHECK calls what it likes.
        "domain_in"
        | "domain_recv"
        | "record_in"
        | "record_recv"
        | "array_in"
        | "array_recv"
        | "range_in"
        | "range_recv"
        | "multirange_in"
        | "multirange_recv"
        | "anyarray_in"
        | "anyrange_in"
        | "pg_input_is_valid"
        | "pg_input_error_info" => Suspicion::anything("type"),
        "current_setting" | "pg_settings" | "pg_settings_get_flags" | "pg_show_all_settings" => {
            Suspicion { sees_settings: true, ..Suspicion::NONE }
        }
        "pg_prepared_statements" | "pg_prepared_statement" => Suspicion { sees_statements: true, ..Suspicion::NONE },
        _ if functions::counts_own_statements(name) || functions::pinning_relation(None, name).is_some() => {
            Suspicion { sees_counters: true, ..Suspicion::NONE }
        }
        _ => Suspicion::NONE,
    }
}

/// As [`of_builtin`], about a data change of a relation of `pg_catalog`.
pub(super) fn change_of_builtin(name: &str) -> Suspicion {
    // Its rule calls `set_config`.
    if name == "pg_settings" { Suspicion::sets_unknown("set_config") } else { Suspicion::NONE }
}

fn runs_text(name: &str) -> bool {
    const PREFIXES: [&str; 5] = ["query_to_xml", "cursor_to_xml", "table_to_xml", "schema_to_xml", "database_to_xml"];
    matches!(name, "ts_stat" | "ts_rewrite") || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Functions of extensions that are known otherwise to leave nothing, which keep state in the server process.
pub(super) fn keeps_state(name: &str) -> bool {
    matches!(name, "set_limit" | "isn_weak") || name.starts_with("hypopg") || name.starts_with("hll_set_")
}

/// Judges the statement that `judge` has judged last. `first_effect`: where its effects begin.
pub(super) fn note(judge: &mut Judge<'_>, words: Words<'_>, class: Class, first_effect: usize) {
    let because = judge.doubt.take();
    // What nobody knows may reach whatever there is.
    let suspicion = Suspicion { sets_unknown: because.is_some() && judge.facts.code_sets_unknown(), ..Suspicion::NONE };
    let because = because.or_else(|| judge.unknown.take());
    let mut doubts = Doubts { suspicion, because, unknown: Vec::new(), in_doubt: false };
    let effects = &judge.verdict.effects[first_effect..];
    if effects.iter().any(|effect| matches!(effect, Effect::Execute { .. })) {
        // What it sets, its session knows, as long as the facts are those of the PREPARE.
        let known = judge.facts.is_complete() && !judge.facts.is_in_doubt();
        let suspicion = if known { Suspicion::anything_but_settings("execute") } else { Suspicion::anything("execute") };
        doubts.add(suspicion, "EXECUTE");
    }
    if effects.contains(&Effect::Ddl) {
        // Event triggers, rewrites of tables, queries that fill them.
        doubts.add(Suspicion::leaves("ddl"), "DDL");
        doubts.add(judge.facts.ddl_suspicion(), "event triggers");
    }
    let told = effects.iter().any(|effect| matches!(effect, Effect::Set { .. } | Effect::SetUnknown)) && !effects.contains(&Effect::Ddl);
    doubts.suspicion.sees_settings |= effects.iter().any(|effect| matches!(effect, Effect::Set { to: SetTo::Current, .. }));
    let scan = Scan { facts: judge.facts, words, settings_told: told };
    match if class == Class::Local { Runs::Nothing } else { scan.runs() } {
        Runs::Nothing => {}
        Runs::Settings => doubts.suspicion.sees_settings = true,
        Runs::Names => scan.names(&mut doubts),
        Runs::Anything(rule) => doubts.add(Suspicion::anything(rule), &words.text(0)),
        // As far as it is known, no server runs it.
        Runs::Unparsed => doubts.add(Suspicion::anything_but_settings("unparsed"), &words.text(0)),
        Runs::Indexes => doubts.add(scan.unknown("maintenance"), &words.text(0)),
    }
    for name in std::mem::take(&mut doubts.unknown) {
        judge.unknown_relation(&name);
    }
    if doubts.suspicion.sees_counters {
        judge.effect(Effect::Pin(PinReason::Statistics));
    }
    let unseen = &mut judge.verdict.unseen;
    unseen.leaves |= doubts.because.is_some();
    unseen.sees_settings |= doubts.suspicion.sees_settings;
    unseen.sees_statements |= doubts.suspicion.sees_statements;
    unseen.sets_unknown |= doubts.suspicion.sets_unknown;
    unseen.in_doubt |= doubts.in_doubt;
    if judge.verdict.unproven.is_none() {
        judge.verdict.unproven = doubts.because;
    }
}

/// What has been found in one statement.
struct Doubts {
    suspicion: Suspicion,
    because: Option<Reason>,
    /// Relations that the facts don't have, beyond those that the reader of queries has found.
    unknown: Vec<String>,
    /// See [`Unseen::in_doubt`](super::verdict::Unseen::in_doubt).
    in_doubt: bool,
}

impl Doubts {
    fn add(&mut self, suspicion: Suspicion, piece: &str) {
        self.suspicion.merge(suspicion);
        if let (Some(rule), None) = (suspicion.leaves, &self.because) {
            self.because = Some(Reason { rule, piece: Arc::from(piece) });
        }
    }

    fn unknown_relation(&mut self, name: &str) {
        self.add(Suspicion::leaves("unknown_relation"), name);
        self.unknown.push(name.to_owned());
    }
}

/// What a statement runs.
enum Runs {
    /// Nothing, or only what its effects tell.
    Nothing,
    /// It shows a setting whose name has a prefix, or all.
    Settings,
    /// What it names.
    Names,
    /// What its text doesn't tell.
    Anything(&'static str),
    /// Nothing that PostgreSQL is known to understand.
    Unparsed,
    /// Functions in indexes.
    Indexes,
}

struct Scan<'a, 'w> {
    facts: &'a Facts,
    words: Words<'w>,
    /// The statement's effects tell what its own calls of `set_config` set.
    settings_told: bool,
}

impl Scan<'_, '_> {
    fn runs(&self) -> Runs {
        let words = self.words;
        if words.tokens.iter().any(|token| token.kind == TokenKind::Invalid) {
            return Runs::Unparsed;
        }
        let first = words.tokens.iter().position(|token| token.kind != TokenKind::OpenParen).unwrap_or(0);
        match words.word(first).as_str() {
            "select" | "values" | "table" | "with" => Runs::Names,
            _ if first > 0 => Runs::Unparsed,
            // PREPARE reads the constants, and EXECUTE computes what it is given.
            "insert" | "update" | "delete" | "merge" | "truncate" | "copy" | "explain" | "declare" | "prepare" | "execute"
                if !words.is(1, "transaction") =>
            {
                Runs::Names
            }
            // Of the cursors' queries DECLARE tells.
            "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" | "set" | "reset" | "discard"
            | "prepare" | "deallocate" | "listen" | "unlisten" | "notify" | "fetch" | "move" | "close" | "load" | "lock" | "checkpoint" => {
                Runs::Nothing
            }
            "show" => {
                let plain = words.len() == 2 && !words.is(1, "all") && words.kind(1) == Some(TokenKind::Word);
                if plain { Runs::Nothing } else { Runs::Settings }
            }
            "create" | "alter" | "drop" | "comment" | "grant" | "revoke" | "refresh" | "reassign" | "security" | "import" => Runs::Names,
            "vacuum" | "analyze" | "analyse" | "reindex" | "cluster" | "repack" => Runs::Indexes,
            "call" | "do" => Runs::Anything("code"),
            _ => Runs::Unparsed,
        }
    }

    fn names(&self, doubts: &mut Doubts) {
        let words = self.words;
        doubts.add(self.facts.key_word_suspicion(), "operators behind key words");
        // A table takes over what its parents and models run when they are changed (INHERITS, LIKE).
        let changes = self.changes_data() || self.defines();
        let known = self.facts.is_complete() && !self.facts.is_in_doubt();
        for at in 0..words.len() {
            match words.kind(at) {
                Some(TokenKind::Word | TokenKind::QuotedName) => {
                    let name = words.name(at);
                    let name = name.as_ref().map_or("", |name| name.as_str());
                    let suspicion = self.facts.suspicion(name);
                    doubts.add(of_builtin(name), name);
                    if name == "set_config" && !self.settings_told {
                        doubts.add(Suspicion::sets_unknown("set_config"), name);
                    }
                    doubts.add(suspicion.used, name);
                    if changes {
                        doubts.add(change_of_builtin(name), name);
                        doubts.add(suspicion.changed, name);
                    }
                    if name.is_empty() {
                        doubts.add(Suspicion::leaves("encoding"), "a name that isn't UTF-8");
                    } else if !known && !self.is_built_in(at, name) {
                        let rule = if self.facts.is_complete() { "facts_in_doubt" } else { "no_facts" };
                        doubts.add(Suspicion::leaves(rule), name);
                        doubts.in_doubt |= self.facts.has_ddl_passed();
                    }
                    self.targets(at, name, doubts);
                }
                Some(TokenKind::Operator) => {
                    let token = words.tokens[at];
                    let symbol = std::str::from_utf8(&words.sql[token.start..token.end]).unwrap_or("");
                    let suspicion = self.facts.operator_suspicion(symbol);
                    if !suspicion.is_none() {
                        doubts.add(suspicion, &words.text(at));
                    }
                    if !functions::is_known_operator(symbol, self.facts) {
                        doubts.add(Suspicion::leaves("unknown_operator"), &words.text(at));
                    }
                }
                Some(TokenKind::UnicodeName) => doubts.add(Suspicion::anything("unicode_name"), "U&"),
                Some(TokenKind::Invalid) => doubts.add(Suspicion::leaves("unparsed"), "text that can't be scanned"),
                _ => {}
            }
        }
        if words.is(0, "copy") {
            self.copy(doubts);
        }
    }

    /// Whether a word is PostgreSQL's own without doubt, also where nothing is known of the database.
    fn is_built_in(&self, at: usize, name: &str) -> bool {
        let words = self.words;
        if words.kind(at) != Some(TokenKind::Word) {
            return false;
        }
        let calls = words.kind(at + 1) == Some(TokenKind::OpenParen);
        let cast = at > 0 && words.kind(at - 1) == Some(TokenKind::Cast);
        match category(name) {
            Category::Reserved => true,
            Category::TypeOrFunction => !calls || functions::builtin(name).is_some(),
            Category::ColumnName => calls || cast,
            Category::Unreserved | Category::Name => {
                at == 0
                    || ((calls || cast) && functions::builtin(name).is_some())
                    || (name == "pg_catalog" && words.kind(at + 1) == Some(TokenKind::Dot))
            }
        }
    }

    /// INSERT, UPDATE, DELETE, MERGE, TRUNCATE and COPY FROM, wherever they stand, and REFRESH.
    fn changes_data(&self) -> bool {
        let words = self.words;
        let copies = words.is(0, "copy") && words.kind(1) != Some(TokenKind::OpenParen);
        (0..words.len()).any(|at| match words.word(at).as_str() {
            "insert" | "delete" | "merge" | "truncate" => true,
            "update" => !self.is_behind(at, &["for", "key"]),
            "from" => copies,
            "refresh" => at == 0,
            _ => false,
        })
    }

    fn defines(&self) -> bool {
        self.words.is(0, "create") || self.words.is(0, "alter")
    }

    fn is_behind(&self, at: usize, before: &[&str]) -> bool {
        at > 0 && before.iter().any(|word| self.words.is(at - 1, word))
    }

    /// What a data change names as its target or source, where FROM's list isn't: it must be known.
    fn targets(&self, at: usize, word: &str, doubts: &mut Doubts) {
        let words = self.words;
        if words.kind(at) != Some(TokenKind::Word) {
            return;
        }
        let mut behind = at + 1;
        match word {
            "into" if self.is_behind(at, &["insert", "merge"]) => {}
            "update" if !self.is_behind(at, &["for", "key", "do", "then", "on"]) => {}
            "from" if self.is_behind(at, &["delete"]) => {}
            "truncate" if at == 0 => {
                behind += usize::from(words.is(behind, "table"));
                if (behind..words.len()).any(|at| words.is(at, "cascade")) {
                    let sets_unknown = self.facts.changes_set_unknown();
                    doubts.add(Suspicion { sets_unknown, ..Suspicion::leaves("cascade") }, "TRUNCATE");
                }
            }
            // DELETE's and MERGE's; a join's has a parenthesis behind it, a sort's an operator.
            "using" if words.name(behind).is_some() => {}
            _ => return,
        }
        loop {
            behind += usize::from(words.is(behind, "only"));
            behind += usize::from(words.kind(behind) == Some(TokenKind::OpenParen));
            let (schema, name, end) = qualified_name(words, behind);
            let Some(name) = name else {
                return if word != "using" {
                    doubts.add(Suspicion::leaves("unparsed"), word)
                };
            };
            let function = words.kind(end) == Some(TokenKind::OpenParen) && word == "using";
            let bound = word == "using" && schema.is_none() && self.is_bound(name.as_bytes());
            if !function
                && !bound
                && functions::is_unknown_relation(schema.as_ref().map(|schema| schema.as_str()), name.as_str(), self.facts)
            {
                doubts.unknown_relation(name.as_str());
            }
            if !matches!(word, "using" | "truncate") {
                return;
            }
            // The next of the list, if there is one; behind an alias, too.
            let ends = |at: usize| {
                words.kind(at) == Some(TokenKind::OpenParen) || ["where", "on", "returning", "when"].iter().any(|word| words.is(at, word))
            };
            let comma = (end..words.len()).take_while(|at| !ends(*at)).find(|at| words.kind(*at) == Some(TokenKind::Comma));
            let Some(comma) = comma else { return };
            behind = comma + 1;
        }
    }

    /// Of functions that the facts don't have, or nobody names: they may reach whatever there is.
    fn unknown(&self, rule: &'static str) -> Suspicion {
        Suspicion { sets_unknown: self.facts.code_sets_unknown(), ..Suspicion::leaves(rule) }
    }

    /// Whether WITH binds the name, somewhere in the statement.
    fn is_bound(&self, name: &[u8]) -> bool {
        let words = self.words;
        (1..words.len()).any(|at| {
            let behind = self.is_behind(at, &["with", "recursive"]) || words.kind(at - 1) == Some(TokenKind::Comma);
            let binds = words.is(at + 1, "as") || words.kind(at + 1) == Some(TokenKind::OpenParen);
            behind && binds && words.name(at).is_some_and(|bound| bound.as_bytes() == name)
        })
    }

    /// `COPY name ...`: its relation, and its condition, which the reader of queries doesn't see.
    fn copy(&self, doubts: &mut Doubts) {
        let words = self.words;
        if words.kind(1) == Some(TokenKind::OpenParen) {
            return;
        }
        let (schema, name, end) = qualified_name(words, if words.is(1, "binary") { 2 } else { 1 });
        let Some(name) = name else { return doubts.add(Suspicion::leaves("unparsed"), "COPY") };
        if functions::is_unknown_relation(schema.as_ref().map(|schema| schema.as_str()), name.as_str(), self.facts) {
            doubts.unknown_relation(name.as_str());
        }
        let Some(condition) = (end..words.len()).find(|at| words.is(*at, "where")) else { return };
        for at in condition..words.len() {
            let Some(name) = words.name(at).filter(|_| words.kind(at + 1) == Some(TokenKind::OpenParen)) else { continue };
            let syntax = words.kind(at) == Some(TokenKind::Word) && category(name.as_str()) != Category::Name;
            let known = functions::builtin(name.as_str()).is_some() || !self.facts.functions(name.as_str()).is_empty();
            if !syntax && !known {
                doubts.add(self.unknown("unknown_function"), name.as_str());
            }
        }
    }
}

#[cfg(test)]
mod tests;
