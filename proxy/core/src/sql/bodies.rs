//! What a function's body and a stored expression can reach.
//!
//! Two forms: the text of SQL and PL/pgSQL functions, read by PostgreSQL's own tokens, and `pg_node_tree`, which names objects by OID (views,
//! policies, constraints, defaults of arguments, SQL-standard bodies). Invariant: whatever can be reached is told; more than that may be, as
//! a name in a text is told wherever it stands. Time is linear.
//! Source: PostgreSQL `src/pl/plpgsql/src/pl_gram.y`, `src/backend/nodes/outfuncs.c`.

use super::catalog::Suspicion;
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
        /// It may as well be a relation's or an alias's name before its columns.
        columns: bool,
    },
    /// A name that can be a relation's or a type's.
    Name(&'a str),
    /// A name behind a dot, which can call a function of one argument.
    Attribute(&'a str),
    Operator(&'a str),
    /// What can't run on a replica by itself, with a stable word that says why.
    Bad(&'static str),
    /// INSERT, UPDATE, DELETE, MERGE or TRUNCATE.
    Changes,
    /// The relation that such a one changes.
    Target(&'a str),
    /// DDL, by which event triggers run.
    Ddl,
    /// A call of `set_config`, or SET or RESET, with the parameter's name where the text tells it.
    Sets(Option<&'a str>),
    /// A string literal, with its quotes and escapes.
    Literal(&'a str),
    /// What may leave session state behind by itself, or look at it.
    Traces(Suspicion),
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

/// Statements of SQL that change something and are undone with their transaction, or leave nothing.
const HARMLESS_STATEMENTS: [&str; 3] = ["lock", "notify", "truncate"];

/// Statements that run code which their own text doesn't show.
const CALLING_STATEMENTS: [&str; 4] = ["call", "copy", "do", "load"];

/// Further statements of functions in SQL that set nothing but what their text tells.
const TELLING_STATEMENTS: [&str; 8] = ["begin", "close", "declare", "end", "explain", "fetch", "move", "show"];

/// Statements that event triggers may run with.
const DDL_STATEMENTS: [&str; 12] =
    ["alter", "cluster", "comment", "create", "drop", "grant", "import", "reassign", "refresh", "reindex", "revoke", "security"];

/// How a statement of a function in SQL may begin that leaves nothing by itself.
const SQL_STATEMENTS: [&str; 11] =
    ["select", "values", "table", "with", "insert", "update", "delete", "merge", "truncate", "lock", "notify"];

/// Reads the text of a function's body, as a session reads it that has left `standard_conforming_strings` on, or has not.
pub(super) fn read_text(language: Language, text: &str, standard_strings: bool, reach: &mut dyn FnMut(Reached<'_>)) {
    let sql = text.as_bytes();
    let tokens: Vec<Token> = Lexer::new(sql, standard_strings).collect();
    let reader = TextReader { language, sql, tokens: &tokens, standard_strings };
    let mut at = 0;
    while at < tokens.len() {
        at = reader.step(at, reach);
    }
}

struct TextReader<'a> {
    language: Language,
    sql: &'a [u8],
    tokens: &'a [Token],
    standard_strings: bool,
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
            Some(TokenKind::String) => reach(Reached::Literal(self.text(at))),
            Some(TokenKind::Invalid) => {
                reach(Reached::Bad("unparsed"));
                // In a reading that a session must have asked for it's an error.
                if self.standard_strings {
                    reach(Reached::Traces(Suspicion::anything("unparsed")));
                }
            }
            Some(TokenKind::UnicodeName) => {
                reach(Reached::Bad("unicode_name"));
                reach(Reached::Traces(Suspicion::anything("unicode_name")));
            }
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
        if word {
            self.traces(at, reach);
        }
        let calls = self.kind(end) == Some(TokenKind::OpenParen);
        for part in (at..end).step_by(2) {
            let Some(name) = self.name(part) else { continue };
            if part == last && calls {
                let schema = if last > at { self.name(last - 2) } else { None };
                if name.as_str() == "set_config" && schema.as_ref().is_none_or(|schema| schema.as_str() == "pg_catalog") {
                    reach(Reached::Sets(self.first_argument(end).as_deref()));
                }
                let syntax = word && matches!(category(name.as_str()), Category::Reserved | Category::ColumnName);
                if !syntax && !self.reads_own_setting(last) {
                    let columns = self.may_have_columns(at, name.as_str());
                    reach(Reached::Call { schema: schema.as_ref().map(Name::as_str), name: name.as_str(), columns });
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

    /// What a lone unquoted word may leave behind.
    fn traces(&self, at: usize, reach: &mut dyn FnMut(Reached<'_>)) {
        let name = self.name(at);
        let name = name.as_ref().map_or("", Name::as_str);
        let is_behind = |words: &[&str]| at > 0 && self.is_word(at - 1, words);
        let target = match name {
            "insert" | "merge" => {
                reach(Reached::Changes);
                self.is_word(at + 1, &["into"]).then_some(at + 2)
            }
            "update" if !is_behind(&["for", "key"]) => {
                reach(Reached::Changes);
                (!is_behind(&["do", "then", "on"])).then_some(at + 1)
            }
            "delete" => {
                reach(Reached::Changes);
                self.is_word(at + 1, &["from"]).then_some(at + 2)
            }
            "truncate" => {
                reach(Reached::Changes);
                if (at..self.tokens.len()).any(|at| self.is_word(at, &["cascade"])) {
                    reach(Reached::Traces(Suspicion::leaves("cascade")));
                }
                None
            }
            "execute" => return reach(Reached::Traces(Suspicion::anything("body_runs_text"))),
            "into" if self.language == Language::Sql && !is_behind(&["insert", "merge"]) => {
                reach(Reached::Ddl);
                return reach(Reached::Traces(Suspicion::leaves("select_into")));
            }
            _ => None,
        };
        if let Some(target) = target {
            self.target(target, reach);
        }
        match self.language {
            Language::Sql => {
                if (at == 0 || self.kind(at - 1) == Some(TokenKind::Semicolon)) && !SQL_STATEMENTS.contains(&name) {
                    self.statement(at, name, reach);
                }
            }
            Language::PlPgSql => {
                let begins = self.begins_statement(at) && !self.is_assigned(at);
                if begins && STATEMENTS.contains(&name) && !HARMLESS_STATEMENTS.contains(&name) {
                    self.statement(at, name, reach);
                }
                if begins && name == "show" {
                    reach(Reached::Traces(Suspicion { sees_settings: true, ..Suspicion::NONE }));
                }
            }
        }
    }

    /// A statement that isn't a query or a data change, by its first word.
    fn statement(&self, at: usize, name: &str, reach: &mut dyn FnMut(Reached<'_>)) {
        let known = STATEMENTS.contains(&name) || TELLING_STATEMENTS.contains(&name);
        reach(Reached::Traces(if known && !CALLING_STATEMENTS.contains(&name) {
            Suspicion::anything_but_settings("body_statement")
        } else {
            Suspicion::anything("body_statement")
        }));
        if DDL_STATEMENTS.contains(&name) {
            reach(Reached::Ddl);
        }
        match name {
            "set" | "reset" => {
                let scoped = name == "set" && self.is_word(at + 1, &["local", "session"]);
                reach(Reached::Sets(Some(&self.dotted_name(at + 1 + usize::from(scoped)))));
            }
            "refresh" => reach(Reached::Changes),
            _ => {}
        }
    }

    /// The name that begins at a place, as `SET` spells its parameter's.
    fn dotted_name(&self, at: usize) -> String {
        let mut whole = String::new();
        for part in (at..self.tokens.len()).step_by(2) {
            let Some(name) = self.name(part) else { break };
            whole.push_str(name.as_str());
            if self.kind(part + 1) != Some(TokenKind::Dot) {
                break;
            }
            whole.push('.');
        }
        whole
    }

    /// A call's first argument, where that is one plain literal. `open`: the parenthesis before it.
    fn first_argument(&self, open: usize) -> Option<String> {
        let alone = matches!(self.kind(open + 2), Some(TokenKind::Comma | TokenKind::Cast));
        if self.kind(open + 1) == Some(TokenKind::String) && alone { plain_literal(self.text(open + 1)) } else { None }
    }

    /// The relation whose name begins at a place, behind ONLY.
    fn target(&self, at: usize, reach: &mut dyn FnMut(Reached<'_>)) {
        let at = at + usize::from(self.is_word(at, &["only"]));
        let mut last = at + usize::from(self.kind(at) == Some(TokenKind::OpenParen));
        while self.kind(last + 1) == Some(TokenKind::Dot) && self.name(last + 2).is_some() {
            last += 2;
        }
        match self.name(last) {
            Some(name) => reach(Reached::Target(name.as_str())),
            None => reach(Reached::Traces(Suspicion::anything_but_settings("unparsed"))),
        }
    }

    /// Whether a name before a parenthesis may have its columns in it, or is a word of the grammar.
    fn may_have_columns(&self, at: usize, name: &str) -> bool {
        const WORDS: [&str; 8] = ["if", "elsif", "elseif", "while", "return", "perform", "assert", "foreach"];
        let Some(previous) = at.checked_sub(1) else { return false };
        self.kind(previous) == Some(TokenKind::CloseParen)
            || self.is_word(previous, &["into", "as", "with", "recursive", "ordinality"])
            || category(name) != Category::Name
            || WORDS.contains(&name)
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

/// What a literal stands for, where no escape in it asks for more than its text.
fn plain_literal(literal: &str) -> Option<String> {
    if let Some(behind) = literal.strip_prefix('$') {
        let tag = behind.find('$')? + 2;
        return literal.get(tag..literal.len() - tag).map(str::to_owned);
    }
    if literal.contains('\\') {
        return None;
    }
    let (_, quoted) = literal.split_once('\'')?;
    let text = quoted.strip_suffix('\'')?.replace("''", "\0");
    // One that goes on in another line has quotes within.
    (!text.contains('\'')).then(|| text.replace('\0', "'"))
}

/// One thing that a `pg_node_tree` names, by OID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node<'a> {
    Function {
        oid: u32,
        /// The bytes of its first argument, where that is a constant: see [`constant_text`].
        first: Option<&'a str>,
    },
    /// A constant's bytes, of any type.
    Constant(&'a str),
    Relation(u32),
    Operator(u32),
    Type(u32),
    /// A type of which there is a value: its constraints and casts may be called without an expression that says so.
    Value(u32),
    Bad(&'static str),
    /// INSERT, UPDATE, DELETE or MERGE: in rules and in standard SQL bodies.
    Changes,
    /// Another statement, such as NOTIFY.
    Utility,
}

/// Fields that hold the type of a value, but [`Node::Type`]'s.
const VALUES: [&str; 20] = [
    ":aggtype",
    ":array_typeid",
    ":arraytype",
    ":casetype",
    ":coalescetype",
    ":consttype",
    ":element_typeid",
    ":funcresulttype",
    ":minmaxtype",
    ":multidims_typeid",
    ":opresulttype",
    ":paramtype",
    ":refelemtype",
    ":refrestype",
    ":restype",
    ":row_typeid",
    ":typeId",
    ":typid",
    ":vartype",
    ":wintype",
];

/// Reads a `pg_node_tree` as text. Names that people gave stand in it with blanks and parentheses escaped, so that they can't look like a field
/// with its value.
pub(super) fn read_tree<'a>(tree: &'a str, reach: &mut dyn FnMut(Node<'a>)) {
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
                Node::Function { oid, first: if field == ":funcid" { first_constant(rest) } else { None } }
            }
            (":opno" | ":eqop" | ":sortop", Some(oid)) => Node::Operator(oid),
            (":relid", Some(oid)) => Node::Relation(oid),
            (":resulttype", Some(oid)) => Node::Type(oid),
            (":seqid", Some(_)) => Node::Bad("sequence"),
            (":constvalue", _) => match bytes(rest) {
                Some(bytes) => Node::Constant(bytes),
                None => continue,
            },
            // CMD_SELECT is 1 (`nodes.h`).
            (":commandType", _) if number != Some(1) => {
                reach(Node::Changes);
                Node::Bad("body_writes")
            }
            (field, Some(oid)) if VALUES.contains(&field) => Node::Value(oid),
            (":coltypes" | ":funccoltypes" | ":colltypes", _) => {
                // `(o 23 16500)`
                for oid in rest.split(' ').skip(1).map_while(|oid| oid.trim_end_matches(')').parse().ok()) {
                    reach(Node::Value(oid));
                }
                continue;
            }
            (":utilityStmt", _) if *value != "<>" => {
                reach(Node::Utility);
                Node::Bad("body_writes")
            }
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

/// `... :args ({CONST ... :constvalue 14 [ 56 0 0 0 97 46 ... ]`: the bytes of a function's first argument.
fn first_constant(function: &str) -> Option<&str> {
    // Its own arguments come before any node ends.
    let (own, _) = function.split_once('}')?;
    let (_, arguments) = own.split_once(":args (")?;
    bytes(arguments.strip_prefix("{CONST ")?)
}

/// The next list of bytes in brackets, before its node ends.
fn bytes(node: &str) -> Option<&str> {
    let (node, _) = node.split_once('}').unwrap_or((node, ""));
    let (_, list) = node.split_once("[ ")?;
    list.split_once(" ]").map(|(bytes, _)| bytes)
}

/// What the bytes of a constant of type text spell, behind their length word; `None` where that isn't UTF-8.
pub(super) fn constant_text(bytes: &str) -> Option<String> {
    const LENGTH_WORD: usize = 4;
    String::from_utf8(numbers(bytes).skip(LENGTH_WORD).collect()).ok()
}

/// As [`constant_text`], of any type: what in it is text stands in it as such, between other bytes.
pub(super) fn constant_bytes(bytes: &str) -> String {
    String::from_utf8_lossy(&numbers(bytes).collect::<Vec<u8>>()).into_owned()
}

/// Above 127 they are written with a sign.
fn numbers(bytes: &str) -> impl Iterator<Item = u8> {
    bytes.split(' ').filter_map(|byte| byte.parse::<i16>().ok()).map(|byte| byte.to_le_bytes()[0])
}

#[cfg(test)]
mod tests;
