//! What must hold of any text that a client may send as a statement: shared by the fuzz target and by the test that runs over the kept corpus.

use std::collections::HashMap;

use switchyard_core::marks::Touched;
use switchyard_core::sql::catalog::{FunctionFact, RelationFact};
use switchyard_core::sql::fingerprint::{leading_hint, summarize};
use switchyard_core::sql::lexer::{Lexer, Token, TokenKind};
use switchyard_core::sql::verdict::{Effect, Kind, Unseen};
use switchyard_core::sql::{Class, Dialect, Facts, Fingerprint, Hint, Memo, Verdict, classify};

/// Fingerprints that are remembered at once.
const REMEMBERED: usize = 100_000;

/// Tokens of a statement that are left out or quoted in turn.
const NEAR_MISSES: usize = 12;

/// What counts of a verdict, beside the words for why.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    class: Class,
    effects: Vec<Effect>,
    statements: usize,
    kind: Kind,
    command: &'static str,
    hint: Option<Hint>,
    reads: Touched,
    writes: Touched,
    unseen: Unseen,
}

impl From<&Verdict> for Outcome {
    fn from(verdict: &Verdict) -> Outcome {
        let Verdict { class, effects, statements, kind, command, hint, reads, writes, unseen, .. } = verdict;
        let (reads, writes) = (reads.clone(), writes.clone());
        let (effects, unseen) = (effects.clone(), *unseen);
        Outcome { class: *class, effects, statements: *statements, kind: *kind, command, hint: *hint, reads, writes, unseen }
    }
}

/// The properties, with the fingerprints that were met.
pub struct Properties {
    facts: Facts,
    memo: Memo,
    met: HashMap<Fingerprint, (Outcome, Vec<u8>)>,
}

impl Properties {
    pub fn new() -> Properties {
        Properties { facts: facts(), memo: Memo::new(1024), met: HashMap::new() }
    }

    /// # Panics
    ///
    /// Where a property doesn't hold.
    pub fn hold(&mut self, sql: &[u8]) {
        for standard_conforming_strings in [true, false] {
            for client_encoding_is_ascii_safe in [true, false] {
                self.hold_under(sql, Dialect { standard_conforming_strings, client_encoding_is_ascii_safe });
            }
        }
        // Facts that know nothing take other ways.
        classify(sql, &Facts::empty(), Dialect::default());
    }

    fn hold_under(&mut self, sql: &[u8], dialect: Dialect) {
        let tokens: Vec<Token> = Lexer::new(sql, dialect.standard_conforming_strings).collect();
        tokens_are_in_order(sql, &tokens);
        let summary = summarize(sql, dialect);
        let outcome = Outcome::from(&classify(sql, &self.facts, dialect));
        // Asked twice: taken, and from the memo.
        for _ in 0..2 {
            assert_eq!(Outcome::from(&*self.memo.verdict(sql, &self.facts, dialect).0), outcome, "the memo on {}", shown(sql));
        }
        if !summary.cacheable {
            return;
        }
        self.meets(sql, summary.fingerprint, &outcome);
        for other in near_misses(sql, &tokens) {
            let summary = summarize(&other, dialect);
            if summary.cacheable {
                self.meets(&other, summary.fingerprint, &Outcome::from(&classify(&other, &self.facts, dialect)));
            }
        }

        let other = rewritten(sql, &tokens);
        let others: Vec<TokenKind> = Lexer::new(&other, dialect.standard_conforming_strings).map(|token| token.kind).collect();
        let same = others.iter().copied().eq(tokens.iter().map(|token| token.kind)) && leading_hint(&other) == leading_hint(sql);
        assert!(same, "{} was read otherwise than {}", shown(&other), shown(sql));
        let again = summarize(&other, dialect);
        assert_eq!((again.fingerprint, again.cacheable), (summary.fingerprint, true), "{} and {}", shown(sql), shown(&other));
        assert_eq!(Outcome::from(&classify(&other, &self.facts, dialect)), outcome, "{} and {}", shown(sql), shown(&other));
    }

    /// No two statements with different verdicts share a fingerprint.
    fn meets(&mut self, sql: &[u8], fingerprint: Fingerprint, outcome: &Outcome) {
        if self.met.len() >= REMEMBERED {
            self.met.clear();
        }
        let (known, text) = self.met.entry(fingerprint).or_insert_with(|| (outcome.clone(), sql.to_vec()));
        assert_eq!(known, outcome, "{} shares its fingerprint with {}", shown(sql), shown(text));
    }
}

/// Statements that are nearly the same: a token left out, or a name quoted, which then means another one.
fn near_misses(sql: &[u8], tokens: &[Token]) -> Vec<Vec<u8>> {
    let replaced = |token: &Token, by: &[u8]| [&sql[..token.start], by, &sql[token.end..]].concat();
    let near = |token: &Token| {
        let quoted = [b"\"", sql[token.start..token.end].to_ascii_uppercase().as_slice(), b"\""].concat();
        let word = (token.kind == TokenKind::Word).then(|| replaced(token, &quoted));
        [Some(replaced(token, b" ")), word].into_iter().flatten()
    };
    tokens.iter().take(NEAR_MISSES).flat_map(near).collect()
}

fn tokens_are_in_order(sql: &[u8], tokens: &[Token]) {
    let mut at = 0;
    for token in tokens {
        assert!(at <= token.start && token.start < token.end && token.end <= sql.len(), "{token:?} in {}", shown(sql));
        at = token.end;
    }
}

/// The same statement with other literals, white space and comments.
fn rewritten(sql: &[u8], tokens: &[Token]) -> Vec<u8> {
    let mut text = Vec::with_capacity(2 * sql.len());
    if let Some(hint) = leading_hint(sql) {
        text.extend_from_slice(if hint == Hint::Leader { b"/* switchyard: leader */" } else { b"/*switchyard: replica*/" });
    }
    let mut end = 0;
    for token in tokens {
        // What touches stays so: a word and a quote behind it are something else with a space between them.
        if token.start > end || end == 0 {
            text.extend_from_slice(b" /* else */ ");
        }
        end = token.end;
        match token.kind {
            TokenKind::Number => text.extend_from_slice(b" 4711 "),
            TokenKind::String => text.extend_from_slice(b" 'something else' /**/ "),
            TokenKind::BitString => text.extend_from_slice(b" B'1011' /**/ "),
            _ => text.extend_from_slice(&sql[token.start..token.end]),
        }
    }
    text
}

fn shown(sql: &[u8]) -> String {
    sql.escape_ascii().to_string()
}

/// Some of a database's own objects, good and bad.
fn facts() -> Facts {
    let function = |name: &str, class| FunctionFact {
        schema: "public".into(),
        class,
        rule: if class == Class::Write { "volatile" } else { "stable" },
        hidden_by_builtin: name == "lower",
        one_argument: true,
        reads: Touched::Nothing,
    };
    let relation = |name: &str, class| RelationFact {
        schema: "public".into(),
        class,
        rule: if class == Class::Write { "view" } else { "table" },
        reads: Touched::relation(name),
        writes: if class == Class::Write { Touched::Everything } else { Touched::relation(name) },
    };
    Facts::builder(1)
        .function("f_stable", function("f_stable", Class::Read))
        .function("f_immutable", function("f_immutable", Class::Read))
        .function("f", function("f", Class::Write))
        .function("lower", function("lower", Class::Write))
        .relation("t", relation("t", Class::Read))
        .relation("v", relation("v", Class::Write))
        .operator("~~~~", Class::Write, "operator")
        .bad_type("checked", "domain")
        .complete()
        .build()
}
