//! What a function's body and a stored expression can reach.
//!
//! Two forms: the text of SQL and PL/pgSQL functions, read by PostgreSQL's own tokens, and `pg_node_tree`, which names objects by OID (views,
//! policies, constraints, defaults of arguments, SQL-standard bodies). Invariant: whatever can be reached is told; more than that may be, as
//! a name in a text is told wherever it stands. Time is linear.
//! Source: PostgreSQL `src/pl/plpgsql/src/pl_gram.y`, `src/backend/nodes/outfuncs.c`.

use super::keywords::{Category, category};
use super::lexer::{Lexer, Name, Token, TokenKind};

/// The languages whose bodies are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Sql,
    PlPgSql,
}

/// One thing that a text names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached<'a> {
    /// A name before a parenthesis: a call, unless no function has that name.
    Call {
        schema: Option<&'a str>,
        name: &'a str,
    },
    /// A name that can be a relation's or a type's.
    Name(&'a str),
    /// A name behind a dot, which can call a function of one argument.
    Attribute(&'a str),
    Operator(&'a str),
    /// What can't run on a replica by itself, with a stable word that says why.
    Bad(&'static str),
}

/// Statements of SQL that change something, or that need not be understood. Only at a statement's beginning: all of them are column names too.
const STATEMENTS: [&str; 36] = [
    "abort",
    "alter",
    "analyse",
    "analyze",
    "call",
    "checkpoint",
    "cluster",
    "comment",
    "commit",
    "copy",
    "create",
    "deallocate",
    "discard",
    "do",
    "drop",
    "grant",
    "import",
    "listen",
    "load",
    "lock",
    "notify",
    "prepare",
    "reassign",
    "refresh",
    "reindex",
    "release",
    "reset",
    "revoke",
    "rollback",
    "savepoint",
    "security",
    "set",
    "start",
    "truncate",
    "unlisten",
    "vacuum",
];

/// Reads the text of a function's body.
pub(super) fn read_text(language: Language, text: &str, reach: &mut dyn FnMut(Reached<'_>)) {
    let sql = text.as_bytes();
    let tokens: Vec<Token> = Lexer::new(sql, true).collect();
    let reader = TextReader { language, sql, tokens: &tokens };
    let mut at = 0;
    while at < tokens.len() {
        at = reader.step(at, reach);
    }
}

struct TextReader<'a> {
    language: Language,
    sql: &'a [u8],
    tokens: &'a [Token],
}

impl TextReader<'_> {
    fn kind(&self, at: usize) -> Option<TokenKind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    fn name(&self, at: usize) -> Option<Name> {
        let token = self.tokens.get(at)?;
        matches!(token.kind, TokenKind::Word | TokenKind::QuotedName).then(|| Name::of(*token, self.sql))
    }

    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).and_then(|token| std::str::from_utf8(&self.sql[token.start..token.end]).ok()).unwrap_or("")
    }

    fn is_word(&self, at: usize, words: &[&str]) -> bool {
        self.kind(at) == Some(TokenKind::Word) && words.iter().any(|word| self.text(at).eq_ignore_ascii_case(word))
    }

    /// Reads what begins at a token, and gives the place behind it.
    fn step(&self, at: usize, reach: &mut dyn FnMut(Reached<'_>)) -> usize {
        match self.kind(at) {
            Some(TokenKind::Word | TokenKind::QuotedName) => return self.chain(at, reach),
            Some(TokenKind::Operator) => reach(Reached::Operator(self.text(at))),
            Some(TokenKind::Invalid) => reach(Reached::Bad("unparsed")),
            Some(TokenKind::UnicodeName) => reach(Reached::Bad("unicode_name")),
            _ => {}
        }
        at + 1
    }

    /// A word or name with what is joined to it by dots.
    fn chain(&self, at: usize, reach: &mut dyn FnMut(Reached<'_>)) -> usize {
        let continues = at > 0 && self.kind(at - 1) == Some(TokenKind::Dot);
        let mut end = at + 1;
        while self.kind(end) == Some(TokenKind::Dot) && self.name(end + 1).is_some() {
            end += 2;
        }
        let last = end - 1;
        let single = last == at && !continues;
        let word = single && self.kind(at) == Some(TokenKind::Word);
        if word && let Some(rule) = self.key_word(at) {
            reach(Reached::Bad(rule));
        }
        let calls = self.kind(end) == Some(TokenKind::OpenParen);
        for part in (at..end).step_by(2) {
            let Some(name) = self.name(part) else { continue };
            if part == last && calls {
                let schema = if last > at { self.name(last - 2) } else { None };
                let syntax = word && matches!(category(name.as_str()), Category::Reserved | Category::ColumnName);
                if !syntax && !self.reads_own_setting(last) {
                    reach(Reached::Call { schema: schema.as_ref().map(Name::as_str), name: name.as_str() });
                }
            } else if part > at || continues {
                reach(Reached::Attribute(name.as_str()));
            }
            reach(Reached::Name(name.as_str()));
        }
        end
    }

    /// Why a lone unquoted word makes the body one for the leader.
    fn key_word(&self, at: usize) -> Option<&'static str> {
        if self.is_word(at, &["insert", "update", "delete", "merge"]) {
            return Some("body_writes");
        }
        if self.is_word(at, &["execute"]) {
            return Some("body_runs_text");
        }
        if self.is_word(at, &["for"]) && self.is_word(at + 1, &["share", "key", "no"]) {
            return Some("locking_clause");
        }
        if self.language == Language::Sql && self.is_word(at, &["into"]) {
            return Some("select_into");
        }
        (self.begins_statement(at) && self.is_word(at, &STATEMENTS) && !self.is_assigned(at)).then_some("body_writes")
    }

    fn begins_statement(&self, at: usize) -> bool {
        let Some(previous) = at.checked_sub(1) else { return true };
        match self.kind(previous) {
            Some(TokenKind::Semicolon) => true,
            // A label.
            Some(TokenKind::Operator) => self.text(previous).ends_with(">>"),
            _ => self.is_word(previous, &["begin", "then", "else", "loop"]),
        }
    }

    /// A PL/pgSQL variable that has a statement's name.
    fn is_assigned(&self, at: usize) -> bool {
        match self.kind(at + 1) {
            Some(TokenKind::Assign | TokenKind::OpenBracket) => self.language == Language::PlPgSql,
            Some(TokenKind::Operator) => self.language == Language::PlPgSql && self.text(at + 1) == "=",
            _ => false,
        }
    }

    /// `current_setting('a.b' ...)`: a parameter with a qualified name is the session's own, and the same on every server that serves it.
    fn reads_own_setting(&self, at: usize) -> bool {
        let argument = self.text(at + 2);
        self.name(at).is_some_and(|name| name.as_str() == "current_setting")
            && self.kind(at + 2) == Some(TokenKind::String)
            && matches!(self.kind(at + 3), Some(TokenKind::Comma | TokenKind::CloseParen))
            && argument.starts_with('\'')
            && argument.contains('.')
            && !argument.contains('\\')
    }
}

/// One thing that a `pg_node_tree` names, by OID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Function {
        oid: u32,
        /// Its first argument is a constant with a dot in it, as `current_setting('a.b')` has.
        dotted: bool,
    },
    Relation(u32),
    Operator(u32),
    Type(u32),
    Bad(&'static str),
}

/// Reads a `pg_node_tree` as text. Names that people gave stand in it with blanks and parentheses escaped, so that they can't look like a field
/// with its value.
pub(super) fn read_tree(tree: &str, reach: &mut dyn FnMut(Node)) {
    let mut fields = tree.split(' ').peekable();
    let mut rest = tree;
    while let Some(field) = fields.next() {
        // Where this field ends in the text, for the look at a function's arguments.
        rest = rest.get(field.len() + 1..).unwrap_or("");
        let Some(value) = fields.peek() else { return };
        // The last field of a node is closed with it.
        let number = value.trim_end_matches(['}', ')']).parse::<u32>().ok();
        let object = number.filter(|oid| *oid != 0);
        let node = match (field, object) {
            (":funcid" | ":aggfnoid" | ":winfnoid" | ":tsmhandler" | ":startInRangeFunc" | ":endInRangeFunc", Some(oid)) => {
                Node::Function { oid, dotted: field == ":funcid" && first_argument_is_dotted(rest) }
            }
            (":opno" | ":eqop" | ":sortop", Some(oid)) => Node::Operator(oid),
            (":relid", Some(oid)) => Node::Relation(oid),
            (":resulttype", Some(oid)) => Node::Type(oid),
            (":seqid", Some(_)) => Node::Bad("sequence"),
            // CMD_SELECT is 1 (`nodes.h`).
            (":commandType", _) if number != Some(1) => Node::Bad("body_writes"),
            (":utilityStmt", _) if *value != "<>" => Node::Bad("body_writes"),
            (":rowMarks", _) if *value != "<>" => Node::Bad("locking_clause"),
            (":opnos", _) => {
                // `(o 97 98)`
                for operator in rest.split(' ').skip(1).map_while(|oid| oid.trim_end_matches(')').parse().ok()) {
                    reach(Node::Operator(operator));
                }
                continue;
            }
            _ => continue,
        };
        reach(node);
    }
}

/// `... :args ({CONST ... :constvalue 14 [ 56 0 0 0 97 46 ... ]`: a function's first argument, a text with a dot, behind its length word.
fn first_argument_is_dotted(function: &str) -> bool {
    let Some(arguments) = function.find(":args (").map(|at| &function[at + ":args (".len()..]) else { return false };
    if !arguments.starts_with("{CONST ") {
        return false;
    }
    let node = &arguments[..arguments.find('}').unwrap_or(0)];
    let Some(bytes) = node.find(" [ ").map(|at| &node[at + 3..]) else { return false };
    bytes.split(' ').skip(4).any(|byte| byte == "46")
}

#[cfg(test)]
mod tests;
