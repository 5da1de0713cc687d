//! Which relations a statement reads, and which it may write: what the level `global` is about.
//!
//! By names alone. Whatever a statement reads or writes stands in it as a name, or is reached from one by what the facts know of views,
//! policies, partitions, functions, operators and types; so every name in it that a relation has counts, a column's too. Invariant: more
//! may be told than is touched, never less; what isn't known counts as everything.

use super::catalog::Facts;
use super::classify::{Judge, Words};
use super::functions::{self, Call};
use super::lexer::TokenKind;
use super::query::qualified_name;
use super::verdict::{Class, Kind};
use crate::marks::Touched;

/// What made one statement a write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Causes {
    pub(super) class: Class,
    /// Code that may do anything.
    code: bool,
    ddl: bool,
    /// INSERT, UPDATE, DELETE or MERGE, wherever it stands.
    changes: bool,
}

impl Default for Causes {
    fn default() -> Causes {
        Causes { class: Class::Local, code: false, ddl: false, changes: false }
    }
}

impl Causes {
    pub(super) fn note(&mut self, rule: &str, piece: &str) {
        match rule {
            "ddl" | "select_into" => self.ddl = true,
            "data_change" | "truncate" => self.changes = true,
            _ => self.code |= !is_harmless(rule, piece),
        }
    }
}

/// Whether what a rule sends to the leader writes no relation.
fn is_harmless(rule: &str, piece: &str) -> bool {
    matches!(
        rule,
        "server_function"
            | "server_relation"
            | "sequence"
            | "unlogged"
            | "foreign"
            | "temporary"
            | "locking_clause"
            | "advisory_lock"
            | "large_object"
            | "session_state"
            | "set_config"
            | "set_transaction"
            | "set_constraints"
            | "serializable"
            | "read_write"
            | "snapshot"
            | "show"
            | "lock"
            | "listen"
            | "notify"
            | "cursor"
            | "checkpoint"
            | "sql_prepare"
    ) || piece == "pg_notify"
}

/// Notes what a statement touches in the verdict, behind its other judgement.
pub(super) fn note(judge: &mut Judge<'_>, words: Words<'_>, causes: Causes, described: (Kind, &'static str)) {
    match causes.class {
        Class::Local => {}
        Class::Read => {
            let read = reads(judge.facts, words);
            judge.verdict.reads.merge(&read);
        }
        Class::Write => {
            // It runs on the leader, unless somebody overrules that.
            judge.verdict.reads.merge(&Touched::Everything);
            let written = writes(judge.facts, words, causes, described);
            judge.verdict.writes.merge(&written);
        }
    }
}

fn are_known(facts: &Facts) -> bool {
    facts.is_complete() && !facts.is_in_doubt()
}

fn reads(facts: &Facts, words: Words<'_>) -> Touched {
    if !are_known(facts) {
        return Touched::Everything;
    }
    let mut touched = facts.key_word_reads().clone();
    for at in 0..words.len() {
        match words.kind(at) {
            Some(TokenKind::Word | TokenKind::QuotedName) => {
                let Some(name) = words.name(at) else { continue };
                let name = name.as_str();
                facts.relations(name).iter().for_each(|fact| _ = touched.merge(&fact.reads));
                facts.functions(name).iter().for_each(|fact| _ = touched.merge(&fact.reads));
                touched.merge(facts.type_reads(name));
            }
            Some(TokenKind::Operator) => {
                touched.merge(facts.operator_reads(symbol(words, at)));
            }
            _ => {}
        }
    }
    touched
}

fn writes(facts: &Facts, words: Words<'_>, causes: Causes, (kind, command): (Kind, &'static str)) -> Touched {
    if causes.ddl {
        return Touched::Cluster;
    }
    if causes.code || (command == "DECLARE CURSOR" && runs_code(facts, words)) {
        return Touched::Everything;
    }
    if !causes.changes {
        return Touched::Nothing;
    }
    let truncates = command == "TRUNCATE TABLE";
    if !are_known(facts) || runs_code(facts, words) || (truncates && has(words, "cascade")) {
        return Touched::Everything;
    }
    let plain = match kind {
        Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge => !has(words, "with"),
        Kind::Copy => command == "COPY FROM",
        Kind::Empty | Kind::Select | Kind::Transaction | Kind::Utility | Kind::Unknown => false,
    };
    if plain { target(facts, words) } else { all_targets(facts, words) }
}

/// What a data change without WITH writes: its one target.
fn target(facts: &Facts, words: Words<'_>) -> Touched {
    // INSERT INTO, MERGE INTO, DELETE FROM; UPDATE; COPY [BINARY].
    let behind = if words.is(1, "into") || words.is(1, "from") || words.is(1, "binary") { 2 } else { 1 };
    written(facts, words, behind)
}

/// The relation whose name begins at a place, behind ONLY.
fn written(facts: &Facts, words: Words<'_>, at: usize) -> Touched {
    let at = if words.is(at, "only") { at + 1 } else { at };
    // ONLY takes its name in parentheses, too.
    let at = if words.kind(at) == Some(TokenKind::OpenParen) { at + 1 } else { at };
    let (schema, name, _) = qualified_name(words, at);
    let Some(name) = name else { return Touched::Everything };
    if schema.is_some_and(|schema| schema.as_str().starts_with("pg_temp")) {
        return Touched::Nothing;
    }
    let known = facts.relations(name.as_str());
    if known.is_empty() {
        // Younger than the facts, or temporary: what it runs isn't known.
        return Touched::Everything;
    }
    let mut touched = Touched::Nothing;
    known.iter().for_each(|fact| _ = touched.merge(&fact.writes));
    touched
}

/// Data changes anywhere in a statement, and TRUNCATE: every relation that it names.
fn all_targets(facts: &Facts, words: Words<'_>) -> Touched {
    let mut touched = Touched::Nothing;
    for at in 0..words.len() {
        let Some(name) = words.name(at) else { continue };
        facts.relations(name.as_str()).iter().for_each(|fact| _ = touched.merge(&fact.writes));
        let aims = words.is(at, "into") || (words.is(at, "update") && !locks_or_sets(words, at)) || words.is(at, "truncate");
        let deletes = words.is(at, "from") && at > 0 && words.is(at - 1, "delete");
        if aims || deletes {
            let behind = if words.is(at, "truncate") && words.is(at + 1, "table") { at + 2 } else { at + 1 };
            touched.merge(&written(facts, words, behind));
        }
    }
    touched
}

/// UPDATE of `FOR [NO KEY] UPDATE`, `DO UPDATE SET`, `THEN UPDATE SET` and `ON UPDATE`, which names no relation.
fn locks_or_sets(words: Words<'_>, at: usize) -> bool {
    at > 0 && ["for", "key", "do", "then", "on"].iter().any(|word| words.is(at - 1, word))
}

/// Whether a data change calls something that may write more than it names. What is known to only read can't.
fn runs_code(facts: &Facts, words: Words<'_>) -> bool {
    facts.bad_key_word_operator().is_some()
        || (0..words.len()).any(|at| match words.kind(at) {
            Some(TokenKind::Word | TokenKind::QuotedName) => words.name(at).is_none_or(|name| {
                let calls = words.kind(at + 1) == Some(TokenKind::OpenParen);
                names_code(facts, name.as_str(), calls)
            }),
            Some(TokenKind::Operator) => facts.operator(symbol(words, at)).is_some_and(|(class, _)| class == Class::Write),
            Some(TokenKind::UnicodeName | TokenKind::Invalid) => true,
            _ => false,
        })
}

fn names_code(facts: &Facts, name: &str, calls: bool) -> bool {
    let built_in = || match functions::builtin(name) {
        Some(Call::Write { rule, .. }) => !is_harmless(rule, name),
        Some(Call::Read | Call::Clock) | None => false,
    };
    // A name that isn't UTF-8 is nobody's.
    name.is_empty()
        || facts.functions(name).iter().any(|fact| fact.class == Class::Write)
        || facts.relations(name).iter().any(|fact| fact.class == Class::Write && !is_harmless(fact.rule, ""))
        || facts.bad_type(name).is_some()
        || (calls && built_in())
}

fn has(words: Words<'_>, word: &str) -> bool {
    (0..words.len()).any(|at| words.is(at, word))
}

fn symbol(words: Words<'_>, at: usize) -> &str {
    words.tokens.get(at).and_then(|token| std::str::from_utf8(&words.sql[token.start..token.end]).ok()).unwrap_or("")
}

#[cfg(test)]
mod tests;
