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
                return reach(Reached::Traces(Suspicion::leaves("select_into")));
            }
            _ => None,
        };
        if let Some(target) = target {
            self.target(target, reach);
        }
        let statement = Reached::Traces(Suspicion::anything("body_statement"));
        match self.language {
            Language::Sql => {
                if (at == 0 || self.kind(at - 1) == Some(TokenKind::Semicolon)) && !SQL_STATEMENTS.contains(&name) {
                    reach(statement);
                }
            }
            Language::PlPgSql => {
                let begins = self.begins_statement(at) && !self.is_assigned(at);
                if begins && STATEMENTS.contains(&name) && !HARMLESS_STATEMENTS.contains(&name) {
                    reach(statement);
                }
                if begins && name == "show" {
                    reach(Reached::Traces(Suspicion { sees_settings: true, ..Suspicion::NONE }));
                }
            }
        }
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
            None => reach(Reached::Traces(Suspicion::anything("unparsed"))),
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
