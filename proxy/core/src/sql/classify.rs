//! A query string to its verdict.
//!
//! Splits the string into statements by PostgreSQL's tokens, and hands each to the reader for its kind: session and transaction statements
//! to `control`, what can be a read to `query` (and, as a second opinion, `tree`). Invariant: a statement is a write unless a rule says
//! otherwise, and a string is as bad as its worst statement.

use std::sync::Arc;

use super::catalog::Facts;
use super::fingerprint::{Fingerprint, leading_hint};
use super::lexer::{Lexer, Name, Token, TokenKind, is_wide_dollar_quote};
use super::reach::{CUSTOM_SETTINGS_MAX, mentioned_settings};
use super::touch::Causes;
use super::verdict::{Class, Effect, Kind, PinReason, REASONS_LIMIT, Reason, Unseen, Verdict};
use super::{control, inside, query, touch, tree, unseen};
use crate::marks::Touched;

/// What decides how a session's text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dialect {
    pub standard_conforming_strings: bool,
    /// `false` for SJIS, BIG5, GBK, UHC, GB18030 and JOHAB, in which the second byte of a character may be a backslash or a letter.
    pub client_encoding_is_ascii_safe: bool,
}

impl Default for Dialect {
    fn default() -> Dialect {
        Dialect { standard_conforming_strings: true, client_encoding_is_ascii_safe: true }
    }
}

impl Dialect {
    /// Whether the lexer can be sure of what it sees.
    pub(super) fn can_lex(self, sql: &[u8]) -> bool {
        self.client_encoding_is_ascii_safe || sql.is_ascii()
    }
}

/// Judges a simple query string (one statement or several) or the text of a Parse.
pub fn classify(sql: &[u8], facts: &Facts, dialect: Dialect) -> Verdict {
    let mut judge = Judge::new(sql, facts, dialect);
    if dialect.can_lex(sql) {
        judge.all_statements();
    } else {
        judge.verdict = judge.verdict.unreadable("non-ASCII text in an encoding that can hide a backslash");
    }
    judge.verdict
}

/// A parameter and its value, as a SET statement names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// In lower case.
    pub name: Arc<str>,
    pub local: bool,
    /// Without quotes; `default` for DEFAULT.
    pub value: String,
}

/// What a string sets that is one `SET [SESSION|LOCAL] name = value` alone, where the value is one plain literal or word.
pub fn setting(sql: &[u8], dialect: Dialect) -> Option<Setting> {
    let mut lexer = Lexer::new(sql, dialect.standard_conforming_strings);
    let tokens: Vec<Token> = lexer.by_ref().take(SETTING_TOKENS).take_while(|token| token.kind != TokenKind::Semicolon).collect();
    (dialect.can_lex(sql) && lexer.next().is_none()).then(|| control::setting(Words { sql, tokens: &tokens })).flatten()
}

/// Unknown relations of one string that are told, so that verdicts stay small.
const UNKNOWN_MAX: usize = 16;

/// More tokens than any setting's name and value have.
const SETTING_TOKENS: usize = 16;

/// The verdict in the making.
pub(super) struct Judge<'a> {
    pub(super) sql: &'a [u8],
    pub(super) facts: &'a Facts,
    pub(super) dialect: Dialect,
    pub(super) verdict: Verdict,
    /// Of the statement that is being read.
    causes: Causes,
    /// Effects that each statement tells once; a handful at most.
    once: Vec<Effect>,
    /// Something in the statement may do more than its transaction undoes.
    pub(super) outside: bool,
    /// Why the statement that is being read may leave session state behind, where a reader has found something.
    pub(super) doubt: Option<Reason>,
    /// The first relation in it that the facts don't have.
    pub(super) unknown: Option<Reason>,
    /// Tokens that the second reader may still be given, whose time is many times the first one's.
    pub(super) budget: usize,
}

impl<'a> Judge<'a> {
    fn new(sql: &'a [u8], facts: &'a Facts, dialect: Dialect) -> Judge<'a> {
        let verdict = Verdict {
            class: Class::Local,
            reasons: Vec::new(),
            effects: Vec::new(),
            effect_ends: Vec::new(),
            unseen: Unseen::default(),
            unproven: None,
            unknown: Vec::new(),
            mentions: Vec::new(),
            statements: 0,
            kind: Kind::Empty,
            command: "",
            hint: leading_hint(sql),
            ruling: None,
            acts_inside: false,
            fingerprint: Fingerprint::default(),
            reads: Touched::Nothing,
            writes: Touched::Nothing,
            generation: facts.generation(),
        };
        let (causes, once) = (Causes::default(), Vec::new());
        Judge { sql, facts, dialect, verdict, causes, once, outside: false, doubt: None, unknown: None, budget: tree::BUDGET }
    }

    fn all_statements(&mut self) {
        let mut statement = Vec::new();
        let mut splitter = Splitter::default();
        for token in Lexer::new(self.sql, self.dialect.standard_conforming_strings) {
            if is_wide_dollar_quote(token, self.sql) {
                self.verdict = self.verdict.clone().unreadable("a dollar quote whose tag isn't ASCII");
                return;
            }
            if token.kind == TokenKind::Semicolon && splitter.ends_statement() {
                self.statement(&statement);
                statement.clear();
                splitter = Splitter::default();
            } else {
                splitter.see(token, self.sql);
                statement.push(token);
            }
        }
        self.statement(&statement);
        if self.verdict.statements <= 1 || self.verdict.effects.is_empty() {
            self.verdict.effect_ends = Vec::new();
        }
    }

    fn statement(&mut self, tokens: &[Token]) {
        let Some(last) = tokens.last() else { return };
        self.verdict.statements += 1;
        let words = Words { sql: self.sql, tokens };
        self.causes = Causes::default();
        self.once.clear();
        self.doubt = None;
        self.unknown = None;
        let first_effect = self.verdict.effects.len();
        let described = if last.kind == TokenKind::Invalid || tokens.iter().any(|token| token.kind == TokenKind::Invalid) {
            // PostgreSQL's own scanner refuses it, or would read it otherwise than we do.
            self.write("unparsed", "text that can't be scanned");
            (Kind::Unknown, "")
        } else {
            self.dispatch(words)
        };
        if self.verdict.statements == 1 {
            (self.verdict.kind, self.verdict.command) = described;
        }
        if self.verdict.effects[first_effect..].contains(&Effect::Ddl) {
            let text = &self.sql[tokens[0].start..last.end];
            self.verdict.mentions.extend(mentioned_settings(&String::from_utf8_lossy(text)));
            self.verdict.mentions.truncate(CUSTOM_SETTINGS_MAX);
        }
        touch::note(self, words, self.causes, described);
        unseen::note(self, words, self.causes.class, first_effect);
        self.verdict.effect_ends.push(u32::try_from(self.verdict.effects.len()).unwrap_or(u32::MAX));
        self.verdict.acts_inside = self.verdict.statements == 1 && inside::is_inside(self, words);
    }

    fn dispatch(&mut self, words: Words<'_>) -> (Kind, &'static str) {
        let first = words.tokens.iter().position(|token| token.kind != TokenKind::OpenParen).unwrap_or(0);
        match words.word(first).as_str() {
            "select" | "values" | "table" | "with" => query::judge(self, words),
            _ if first > 0 => {
                self.write("unparsed", &words.text(first));
                (Kind::Unknown, "")
            }
            _ => control::judge(self, words),
        }
    }

    /// Raises the class, with no reason to show.
    pub(super) fn at_least(&mut self, class: Class) {
        self.verdict.class = self.verdict.class.max(class);
        self.causes.class = self.causes.class.max(class);
    }

    /// A reason for the leader.
    pub(super) fn write(&mut self, rule: &'static str, piece: &str) {
        self.at_least(Class::Write);
        self.causes.note(rule, piece);
        let reasons = &mut self.verdict.reasons;
        if reasons.len() < REASONS_LIMIT && !reasons.iter().any(|reason| reason.rule == rule && &*reason.piece == piece) {
            reasons.push(Reason { rule, piece: Arc::from(piece) });
        }
    }

    /// Something in the statement may leave session state behind.
    pub(super) fn doubt(&mut self, rule: &'static str, piece: &str) {
        self.doubt.get_or_insert_with(|| Reason { rule, piece: Arc::from(piece) });
    }

    /// The statement names a relation that the facts don't have.
    ///
    /// A temporary one runs what was named when it was made, by the session that has it. A younger one may run whatever there is: whether there is
    /// one of that name, the server tells behind the statement.
    pub(super) fn unknown_relation(&mut self, name: &str) {
        self.unknown.get_or_insert_with(|| Reason { rule: "unknown_relation", piece: Arc::from(name) });
        if !self.facts.code_sets_unknown() || self.verdict.unknown.iter().any(|known| **known == *name) {
            return;
        }
        if name.is_ascii() && self.verdict.unknown.len() < UNKNOWN_MAX {
            self.verdict.unknown.push(Arc::from(name));
        } else {
            self.verdict.unseen.sets_unknown = true;
        }
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        // These say nothing new when they come again, wherever they stand among the others.
        if matches!(effect, Effect::Pin(_) | Effect::UsesClock | Effect::SetUnknown | Effect::Ddl | Effect::MayCommit) {
            if self.once.contains(&effect) {
                return;
            }
            self.once.push(effect.clone());
        }
        self.verdict.effects.push(effect);
    }

    /// Whether a query within the statement tells nothing that it would do to its session when it runs.
    pub(super) fn has_no_effects(&self, query: Words<'_>) -> bool {
        let mut apart = Judge::new(self.sql, self.facts, self.dialect);
        query::effects(&mut apart, query);
        apart.verdict.has_no_effects()
    }

    pub(super) fn pin(&mut self, reason: PinReason) {
        self.effect(Effect::Pin(reason));
    }
}

/// PostgreSQL's operators have at most 63 bytes, and few have more than these.
const OPERATOR_SHOWN_BYTES: usize = 32;

/// Tells which semicolons end a statement: not those in parentheses (CREATE RULE) or in a BEGIN ATOMIC body. Such a body's END comes right behind a
/// semicolon, or behind ATOMIC (`routine_body_stmt_list`): an END anywhere else is a CASE's, or a label.
#[derive(Default)]
struct Splitter {
    parens: usize,
    tokens: usize,
    creates: bool,
    routine: bool,
    begin: bool,
    /// Behind BEGIN ATOMIC, before its END.
    body: bool,
    /// The last token was a semicolon in a body, or its ATOMIC.
    may_end: bool,
}

impl Splitter {
    fn see(&mut self, token: Token, sql: &[u8]) {
        self.tokens += 1;
        let may_end = std::mem::take(&mut self.may_end);
        let begin = std::mem::take(&mut self.begin);
        match token.kind {
            TokenKind::OpenParen => self.parens += 1,
            TokenKind::CloseParen => self.parens = self.parens.saturating_sub(1),
            TokenKind::Semicolon => self.may_end = self.parens == 0,
            TokenKind::Word if self.parens == 0 => match Name::of(token, sql).as_str() {
                "begin" => self.begin = true,
                "create" if self.tokens == 1 => self.creates = true,
                "function" | "procedure" if self.creates && self.tokens <= 4 => self.routine = true,
                // One in the body is a column and its label.
                "atomic" if self.routine && begin && !self.body => {
                    self.body = true;
                    self.may_end = true;
                }
                "end" if may_end => {
                    self.body = false;
                    self.routine = false;
                }
                _ => {}
            },
            _ => {}
        }
    }

    fn ends_statement(&self) -> bool {
        self.parens == 0 && !self.body
    }
}

/// The tokens of one statement.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) sql: &'a [u8],
    pub(super) tokens: &'a [Token],
}

impl<'a> Words<'a> {
    pub(super) fn kind(self, at: usize) -> Option<TokenKind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    /// The unquoted word at a place, in lower case; an empty name for anything else.
    pub(super) fn word(self, at: usize) -> Name {
        match self.tokens.get(at) {
            Some(token) if token.kind == TokenKind::Word => Name::of(*token, self.sql),
            _ => Name::empty(),
        }
    }

    /// Whether the unquoted word at a place is this one.
    pub(super) fn is(self, at: usize, word: &str) -> bool {
        self.tokens
            .get(at)
            .is_some_and(|token| token.kind == TokenKind::Word && self.sql[token.start..token.end].eq_ignore_ascii_case(word.as_bytes()))
    }

    /// The name at a place, quoted or not.
    pub(super) fn name(self, at: usize) -> Option<Name> {
        self.tokens
            .get(at)
            .filter(|token| matches!(token.kind, TokenKind::Word | TokenKind::QuotedName))
            .map(|token| Name::of(*token, self.sql))
    }

    /// What to show of one token as a reason: a name or an operator, never a literal (verdicts are kept by fingerprint, and logs are read).
    pub(super) fn text(self, at: usize) -> String {
        let Some(token) = self.tokens.get(at) else {
            return "the end".to_owned();
        };
        match token.kind {
            TokenKind::Word | TokenKind::QuotedName => Name::of(*token, self.sql).as_str().to_owned(),
            TokenKind::Operator => {
                let end = token.end.min(token.start + OPERATOR_SHOWN_BYTES);
                String::from_utf8_lossy(&self.sql[token.start..end]).into_owned()
            }
            TokenKind::UnicodeName => "U&".to_owned(),
            TokenKind::String | TokenKind::BitString | TokenKind::Number | TokenKind::Parameter => "a value".to_owned(),
            _ => "punctuation".to_owned(),
        }
    }

    pub(super) fn from(self, at: usize) -> Words<'a> {
        Words { sql: self.sql, tokens: self.tokens.get(at..).unwrap_or(&[]) }
    }

    pub(super) fn len(self) -> usize {
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests;
