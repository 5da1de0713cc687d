//! The second reader of a query: sqlparser's tree.
//!
//! It can only object: what it doesn't parse is left to the first reader. Invariant: a tree is never deeper than a thread's stack holds, so
//! long statements aren't given to it.

use std::ops::ControlFlow;

use sqlparser::ast::{Expr, ObjectName, ObjectNamePart, Query, Select, SetExpr, Statement, TableFactor, Visit, Visitor};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::classify::{Judge, Words};
use super::functions::{self, Call, CallEffect};
use super::keywords::{Category, category};
use super::lexer::TokenKind;
use super::verdict::{Effect, PinReason};

/// Tokens that a tree may be made of: a chain of operators nests one deep for every two.
const TOKENS_LIMIT: usize = 1000;

/// Bytes of text given to sqlparser.
const BYTES_LIMIT: usize = 64 * 1024;

/// Tokens of all statements of one query string that are given to sqlparser.
pub(super) const BUDGET: usize = 16 * TOKENS_LIMIT;

/// Parses a statement that the first reader holds for a read, and objects if its tree shows otherwise.
pub(super) fn second_opinion(judge: &mut Judge<'_>, words: Words<'_>) {
    if words.len() > TOKENS_LIMIT.min(judge.budget) {
        return;
    }
    judge.budget -= words.len();
    let text = rewritten(words);
    if text.len() > BYTES_LIMIT {
        return;
    }
    let Ok(statements) = Parser::parse_sql(&PostgreSqlDialect {}, &text) else {
        return;
    };
    let mut walk = Walk { judge };
    for statement in &statements {
        let _: ControlFlow<()> = statement.visit(&mut walk);
    }
}

/// The statement's tokens with a literal of each kind in place of all: the tree must depend on nothing that the fingerprint leaves out, be it a
/// literal that sqlparser can't read, or white space that it reads otherwise than PostgreSQL.
fn rewritten(words: Words<'_>) -> String {
    let mut text = String::with_capacity(256);
    let mut joined = true;
    for token in words.tokens {
        let joins = matches!(token.kind, TokenKind::Dot | TokenKind::OpenBracket);
        if !joined && !joins {
            text.push(' ');
        }
        joined = token.kind == TokenKind::Dot;
        match token.kind {
            TokenKind::String => text.push_str("'x'"),
            TokenKind::BitString => text.push_str("B'1'"),
            TokenKind::Number => text.push('1'),
            // Encodings in which a byte of a character may be ASCII aren't lexed at all.
            _ => text.push_str(&String::from_utf8_lossy(&words.sql[token.start..token.end])),
        }
    }
    text
}

struct Walk<'j, 'a> {
    judge: &'j mut Judge<'a>,
}

/// The last two parts of a name, folded as PostgreSQL folds them.
fn parts(name: &ObjectName) -> (Option<String>, String) {
    let mut folded = name.0.iter().filter_map(|part| match part {
        ObjectNamePart::Identifier(ident) if ident.quote_style.is_none() => Some(ident.value.to_ascii_lowercase()),
        ObjectNamePart::Identifier(ident) => Some(ident.value.clone()),
        ObjectNamePart::Function(_) => None,
    });
    let mut name = folded.next().unwrap_or_default();
    let mut schema = None;
    for part in folded {
        schema = Some(std::mem::replace(&mut name, part));
    }
    (schema, name)
}

impl Walk<'_, '_> {
    fn call(&mut self, name: &ObjectName) {
        let (schema, name) = parts(name);
        // Syntax that the tree shows as a call. Whether CUBE and ROLLUP stand in GROUP BY was judged by the first reader.
        let syntax = matches!(category(&name), Category::Reserved | Category::ColumnName) || matches!(&*name, "cube" | "rollup");
        if schema.is_none() && syntax {
            return;
        }
        match functions::call(schema.as_deref(), &name, self.judge.facts) {
            Call::Read => {}
            Call::Clock => self.judge.effect(Effect::UsesClock),
            Call::Write { rule, effect, .. } => {
                self.judge.write(rule, &name);
                if effect == CallEffect::Pin(PinReason::UserCode) {
                    self.judge.doubt(rule, &name);
                }
                if let Some(effect) = effect.effect() {
                    self.judge.effect(effect);
                }
            }
        }
    }

    fn relation(&mut self, name: &ObjectName) {
        let (schema, name) = parts(name);
        // Whether a name is unknown was judged by the first reader, which knows what WITH binds.
        if let Some(rule) = functions::relation(schema.as_deref(), &name, self.judge.facts, true) {
            self.judge.write(rule, &name);
        }
    }
}

impl Visitor for Walk<'_, '_> {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        if !matches!(statement, Statement::Query(_)) {
            self.judge.write("statement", "not a query");
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if !query.locks.is_empty() || query.for_clause.is_some() {
            self.judge.write("locking_clause", "FOR");
        }
        match &*query.body {
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => self.judge.write("data_change", "WITH"),
            SetExpr::Table(table) => {
                let (schema, name) = (table.schema_name.as_deref(), table.table_name.as_deref().unwrap_or_default());
                let fold = |name: &str| name.to_ascii_lowercase();
                if let Some(rule) = functions::relation(schema.map(fold).as_deref(), &fold(name), self.judge.facts, true) {
                    self.judge.write(rule, name);
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        if select.into.is_some() {
            self.judge.write("select_into", "INTO");
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } => self.call(name),
            TableFactor::Table { name, args: None, .. } => self.relation(name),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr {
            self.call(&function.name);
        }
        ControlFlow::Continue(())
    }
}
