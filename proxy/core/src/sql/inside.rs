//! Whether all that a statement does is undone with its transaction, so that it may run again once its rollback is proven.
//!
//! Invariant: in doubt, no. Names are looked at wherever they stand and whatever their schema: a column that is called as a suspect table or
//! function costs its statement the right to run again, and nothing else.

use super::classify::{Judge, Words};
use super::lexer::TokenKind;
use super::query::qualified_name;
use super::verdict::{Class, Kind};

/// About the statement that `judge` has judged last.
pub(super) fn is_inside(judge: &Judge<'_>, words: Words<'_>) -> bool {
    let facts = judge.facts;
    if judge.outside || !facts.is_complete() || facts.is_in_doubt() {
        return false;
    }
    // Behind WITH the first data change isn't the only one.
    let target = match (judge.verdict.kind, words.word(0).as_str()) {
        (Kind::Select, "select") => None,
        (Kind::Insert, "insert") | (Kind::Merge, "merge") | (Kind::Delete, "delete") => Some(2),
        (Kind::Update, "update") => Some(1),
        _ => return false,
    };
    if let Some(at) = target {
        let at = at + usize::from(words.is(at, "only"));
        let (schema, Some(name), _) = qualified_name(words, at) else { return false };
        let mut known = facts.relations(name.as_str()).iter();
        // One that is younger than the facts may have anything.
        if !known.any(|fact| schema.as_ref().is_none_or(|schema| schema.as_str() == &*fact.schema)) {
            return false;
        }
    }
    if judge.verdict.kind == Kind::Update && (0..words.len()).any(|at| words.is(at, "default")) {
        // Of a sequence, perhaps.
        return false;
    }
    (0..words.len()).all(|at| match words.kind(at) {
        Some(TokenKind::Word | TokenKind::QuotedName) => words.name(at).is_some_and(|name| {
            let name = name.as_str();
            !name.is_empty()
                && !facts.may_act_outside(name)
                && facts.bad_type(name).is_none()
                && facts.functions(name).iter().all(|fact| fact.class == Class::Read)
                && facts.relations(name).iter().all(|fact| fact.class == Class::Read)
        }),
        Some(TokenKind::UnicodeName | TokenKind::Invalid) | None => false,
        Some(_) => true,
    })
}
