//! The first reader of a query: PostgreSQL's own tokens.
//!
//! Looks at every name, call and operator, wherever it stands, so that no place in the grammar can be forgotten. Invariant: a word before a
//! parenthesis is a call unless its surroundings prove otherwise, and a name is a relation wherever FROM's list can hold one; so a statement
//! that sqlparser can't parse is judged all the same. Time is linear in the number of tokens.

use super::classify::{Judge, Words};
use super::functions::{self, Call};
use super::keywords::{Category, category};
use super::lexer::{Name, TokenKind};
use super::tree;
use super::verdict::{Class, Effect, Kind, PinReason, SetTo};

/// Judges a query: SELECT, VALUES, TABLE or WITH, in parentheses or not.
pub(super) fn judge(judge: &mut Judge<'_>, words: Words<'_>) -> (Kind, &'static str) {
    judge.at_least(Class::Read);
    let before = judge.verdict.class;
    let mut reader = Reader::new(judge, words, Purpose::Verdict);
    reader.read();
    let described = reader.described();
    if before == Class::Read && judge.verdict.class == Class::Read {
        tree::second_opinion(judge, words);
    }
    described
}

/// Collects the effects of calls in a statement that is a write already.
pub(super) fn effects(judge: &mut Judge<'_>, words: Words<'_>) {
    Reader::new(judge, words, Purpose::Effects).read();
}

/// A relation that a statement reads. `bound_here`: the statement's own WITH binds the name.
pub(super) fn relation(judge: &mut Judge<'_>, schema: Option<&str>, name: &str, bound_here: bool) {
    if let Some(reason) = functions::pinning_relation(schema, name) {
        judge.effect(Effect::Pin(reason));
    }
    if !bound_here && functions::is_unknown_relation(schema, name, judge.facts) {
        judge.unknown_relation(name);
    }
    if let Some(rule) = functions::relation(schema, name, judge.facts, bound_here) {
        judge.write(rule, name);
    }
}

/// A name with up to two qualifiers from `at` on: its schema, itself, and the place behind it.
pub(super) fn qualified_name(words: Words<'_>, at: usize) -> (Option<Name>, Option<Name>, usize) {
    let mut schema = None;
    let Some(mut name) = words.name(at) else { return (None, None, at) };
    let mut end = at + 1;
    while words.kind(end) == Some(TokenKind::Dot) {
        let Some(next) = words.name(end + 1) else { break };
        schema = Some(name);
        name = next;
        end += 2;
    }
    (schema, Some(name), end)
}

/// Tokens of a `set_config` call that are looked at for its last argument.
const SET_CONFIG_TOKENS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Verdict,
    Effects,
}

/// What the reader knows inside one pair of parentheses or brackets.
#[derive(Clone, Copy, Default)]
struct Level {
    /// In FROM's list, where names are relations and calls may be table functions.
    from: bool,
    /// In a join's condition, within FROM's list.
    condition: bool,
    /// In GROUP BY, where CUBE and ROLLUP are syntax.
    grouping: bool,
    /// A SELECT began at this level, so that its FROM is the clause (and not EXTRACT's or TRIM's).
    selects: bool,
    /// The parenthesis stands behind ON.
    behind_on: bool,
}

struct Reader<'j, 'a, 'w> {
    judge: &'j mut Judge<'a>,
    words: Words<'w>,
    purpose: Purpose,
    level: Level,
    outer: Vec<Level>,
    /// The parenthesis that was closed last stood behind ON.
    closed_behind_on: bool,
    /// Names that WITH binds somewhere in the statement. Scopes aren't told apart: a bound name only escapes being unknown.
    bound: Vec<Name>,
    kind: Kind,
    command: &'static str,
}

impl<'j, 'a, 'w> Reader<'j, 'a, 'w> {
    fn new(judge: &'j mut Judge<'a>, words: Words<'w>, purpose: Purpose) -> Reader<'j, 'a, 'w> {
        Reader {
            judge,
            words,
            purpose,
            level: Level::default(),
            outer: Vec::new(),
            closed_behind_on: false,
            bound: Vec::new(),
            kind: Kind::Select,
            command: "SELECT",
        }
    }

    fn described(&self) -> (Kind, &'static str) {
        (self.kind, self.command)
    }

    fn read(&mut self) {
        if let Some(rule) = self.judge.facts.bad_key_word_operator() {
            self.judge.outside = true;
            if self.purpose == Purpose::Verdict {
                self.judge.write(rule, "operators behind key words");
            }
        }
        if self.judge.facts.is_complete() {
            self.collect_bound();
        }
        let mut at = 0;
        while let Some(kind) = self.words.kind(at) {
            at = match kind {
                TokenKind::OpenParen | TokenKind::OpenBracket => self.open(at),
                TokenKind::CloseParen | TokenKind::CloseBracket => self.close(at),
                TokenKind::Comma => {
                    self.level.condition = false;
                    at + 1
                }
                TokenKind::Operator => {
                    self.operator(at);
                    at + 1
                }
                TokenKind::UnicodeName => {
                    self.write("unicode_name", at);
                    at + 1
                }
                TokenKind::Word | TokenKind::QuotedName => self.chain(at),
                TokenKind::String
                | TokenKind::BitString
                | TokenKind::Number
                | TokenKind::Parameter
                | TokenKind::Semicolon
                | TokenKind::Dot
                | TokenKind::DotDot
                | TokenKind::Colon
                | TokenKind::Cast
                | TokenKind::Assign
                | TokenKind::Invalid => at + 1,
            };
        }
    }

    /// `name AS (`, `name AS [NOT] MATERIALIZED (` and `name (columns) AS ...`, behind WITH, RECURSIVE or a comma.
    fn collect_bound(&mut self) {
        for at in 1..self.words.len() {
            let behind = self.words.is(at - 1, "with") || self.words.is(at - 1, "recursive") || self.is_kind(at - 1, TokenKind::Comma);
            let binds = self.words.is(at + 1, "as") || self.is_kind(at + 1, TokenKind::OpenParen);
            if behind && binds {
                self.bound.extend(self.words.name(at));
            }
        }
        self.bound.sort_unstable_by(|left, right| left.as_bytes().cmp(right.as_bytes()));
    }

    fn is_bound(&self, name: &str) -> bool {
        self.bound.binary_search_by(|bound| bound.as_bytes().cmp(name.as_bytes())).is_ok()
    }

    fn is_kind(&self, at: usize, kind: TokenKind) -> bool {
        self.words.kind(at) == Some(kind)
    }

    fn before(&self, at: usize, word: &str) -> bool {
        at > 0 && self.words.is(at - 1, word)
    }

    fn write(&mut self, rule: &'static str, at: usize) {
        self.judge.outside = true;
        if self.purpose == Purpose::Verdict {
            let piece = self.words.text(at);
            self.judge.write(rule, &piece);
        }
    }

    fn open(&mut self, at: usize) -> usize {
        let list_item = at > 0
            && (self.is_kind(at - 1, TokenKind::Comma)
                || self.is_kind(at - 1, TokenKind::OpenParen)
                || ["from", "join", "only", "lateral"].iter().any(|word| self.words.is(at - 1, word)));
        let grouping = self.level.grouping && ["sets", "cube", "rollup"].iter().any(|word| self.before(at, word));
        self.outer.push(self.level);
        self.level = Level {
            from: (self.level.from && !self.level.condition && list_item) || self.before(at, "only"),
            grouping,
            behind_on: self.before(at, "on"),
            ..Level::default()
        };
        at + 1
    }

    fn close(&mut self, at: usize) -> usize {
        self.closed_behind_on = self.level.behind_on;
        self.level = self.outer.pop().unwrap_or_default();
        at + 1
    }

    fn operator(&mut self, at: usize) {
        let token = self.words.tokens[at];
        let symbol = std::str::from_utf8(&self.words.sql[token.start..token.end]).unwrap_or("");
        if let Some(rule) = functions::operator(symbol, self.judge.facts) {
            self.write(rule, at);
        }
    }

    /// A word or name with what is joined to it by dots.
    fn chain(&mut self, at: usize) -> usize {
        let continues = at > 0 && self.is_kind(at - 1, TokenKind::Dot);
        let (schema, name, end) = qualified_name(self.words, at);
        let Some(name) = name else { return at + 1 };
        let single = schema.is_none() && !continues;
        let word = single && self.is_kind(at, TokenKind::Word);
        let category = if word { category(name.as_str()) } else { Category::Name };
        if self.judge.facts.bad_type(name.as_str()).is_some() {
            self.write("type", end - 1);
        }
        if !name.as_bytes().is_ascii() && name.as_str().is_empty() {
            self.write("encoding", end - 1);
        }
        if self.is_kind(end, TokenKind::OpenParen) && self.is_call(at, end, name.as_str(), category) {
            self.call(schema.as_ref().map(Name::as_str), name.as_str(), end - 1);
        } else if word && category != Category::Name && !self.before(at, "as") {
            self.keyword(at, name.as_str());
        } else if single || !continues {
            self.plain_name(at, schema.as_ref(), &name);
        }
        if !single || continues {
            self.attributes(at, end, continues);
        }
        end
    }

    /// A name that is neither a call nor a key word: a relation where one can stand. Unreserved key words can be relations too.
    fn plain_name(&mut self, at: usize, schema: Option<&Name>, name: &Name) {
        if !self.is_relation_place(at) {
            return;
        }
        let (schema_name, relation_name) = (schema.map(Name::as_str), name.as_str());
        let bound = schema.is_none() && self.is_bound(relation_name);
        if let Some(reason) = functions::pinning_relation(schema_name, relation_name)
            && !bound
        {
            self.judge.effect(Effect::Pin(reason));
        }
        if !bound && functions::is_unknown_relation(schema_name, relation_name, self.judge.facts) {
            self.judge.unknown_relation(relation_name);
        }
        if let Some(rule) = functions::relation(schema_name, relation_name, self.judge.facts, bound)
            && self.purpose == Purpose::Verdict
        {
            self.judge.write(rule, relation_name);
        }
    }

    fn is_relation_place(&self, at: usize) -> bool {
        if at == 0 {
            return false;
        }
        let previous = at - 1;
        if self.words.is(previous, "table") || self.words.is(previous, "only") {
            return true;
        }
        if !self.level.from || self.level.condition {
            return false;
        }
        matches!(self.words.kind(previous), Some(TokenKind::Comma | TokenKind::OpenParen))
            || ["from", "join", "lateral"].iter().any(|word| self.words.is(previous, word))
    }

    /// `value.name` may call a function of one argument.
    fn attributes(&mut self, at: usize, end: usize, continues: bool) {
        if self.is_relation_place(at) && !continues {
            return;
        }
        let mut part = if continues { at } else { at + 2 };
        while part < end {
            let called = part + 1 == end && self.is_kind(end, TokenKind::OpenParen);
            if !called
                && let Some(name) = self.words.name(part)
                && let Some(call) = functions::attribute(name.as_str(), self.judge.facts)
            {
                self.apply(call, name.as_str());
            }
            part += 2;
        }
    }

    fn call(&mut self, schema: Option<&str>, name: &str, at: usize) {
        if self.before(at, "tablesample") && schema.is_none() && matches!(name, "system" | "bernoulli") {
            return;
        }
        if self.before(at, "tablesample") {
            self.judge.doubt("unknown_function", name);
            return self.write("unknown_function", at);
        }
        let call = functions::call(schema, name, self.judge.facts);
        if name == "set_config" {
            self.set_config(at);
        }
        self.apply(call, name);
    }

    fn apply(&mut self, call: Call, name: &str) {
        match call {
            Call::Read => {}
            Call::Clock => self.judge.effect(Effect::UsesClock),
            Call::Write { rule, command, effect } => {
                if effect == functions::CallEffect::Pin(PinReason::UserCode) {
                    self.judge.doubt(rule, name);
                }
                // A value that a sequence gave is lost, as ever after a rollback.
                self.judge.outside |= name != "nextval";
                if let Some(effect) = effect.effect().filter(|_| effect != functions::CallEffect::SetConfig) {
                    self.judge.effect(effect);
                }
                if self.purpose == Purpose::Verdict {
                    self.judge.write(rule, name);
                    if let Some(command) = command.filter(|_| self.command == "SELECT") {
                        self.command = command;
                    }
                }
            }
        }
    }

    /// `set_config('name', value, true|false)` with both told by the text sets that parameter, anything else one that can't be told.
    fn set_config(&mut self, at: usize) {
        let told = self.is_kind(at + 2, TokenKind::String) && self.is_kind(at + 3, TokenKind::Comma);
        let mut depth = 0usize;
        let close = (at + 1..self.words.len().min(at + SET_CONFIG_TOKENS)).find(|at| {
            match self.words.kind(*at) {
                Some(TokenKind::OpenParen) => depth += 1,
                Some(TokenKind::CloseParen) => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0
        });
        let local = close.and_then(|close| {
            let last = close - 1;
            let alone = self.is_kind(last.wrapping_sub(1), TokenKind::Comma);
            match (alone, self.words.is(last, "true"), self.words.is(last, "false")) {
                (true, true, _) => Some(true),
                (true, _, true) => Some(false),
                _ => None,
            }
        });
        let name = plain_string(self.words, at + 2).filter(|_| told);
        // NULL goes back to the session's start.
        let null = self.words.is(at + 4, "null") && self.is_kind(at + 5, TokenKind::Comma);
        let to = if null { SetTo::Default } else { SetTo::Other };
        self.judge.effect(match (name, local) {
            (Some(name), Some(local)) => Effect::Set { name: name.into(), local, to },
            _ => Effect::SetUnknown,
        });
    }

    fn keyword(&mut self, at: usize, word: &str) {
        match word {
            "select" => {
                self.level = Level { selects: true, behind_on: self.level.behind_on, ..Level::default() };
            }
            "from" if self.level.selects => {
                let compares =
                    |at: usize| (self.words.is(at, "is") || self.words.is(at, "not")) && !self.is_kind(at.wrapping_sub(1), TokenKind::Dot);
                let distinct_from = at > 1 && self.words.is(at - 1, "distinct") && compares(at - 2);
                if !distinct_from {
                    (self.level.from, self.level.condition) = (true, false);
                }
            }
            "values" if self.is_kind(at + 1, TokenKind::OpenParen) => self.level.from = false,
            "join" => self.level.condition = false,
            "on" | "using" => self.level.condition = true,
            "group" if self.words.is(at + 1, "by") => (self.level.from, self.level.grouping) = (false, true),
            "where" | "having" | "order" | "limit" | "offset" | "fetch" | "window" | "union" | "intersect" | "except" | "returning" => {
                (self.level.from, self.level.grouping) = (false, false);
            }
            "for" => self.for_clause(at),
            "into" => self.into(at),
            "insert" | "update" | "delete" | "merge" => self.data_change(at, word),
            "current_timestamp" | "current_date" | "current_time" | "localtime" | "localtimestamp" => self.judge.effect(Effect::UsesClock),
            "tablesample" => {}
            // ROWS FROM (function, ...)
            "rows" if self.words.is(at + 1, "from") => {}
            _ => {
                // Most key words can name relations as well.
                let names =
                    matches!(category(word), Category::Unreserved | Category::ColumnName) && !self.is_kind(at + 1, TokenKind::OpenParen);
                if let Some(name) = self.words.name(at).filter(|_| names) {
                    self.plain_name(at, None, &name);
                }
            }
        }
    }

    fn for_clause(&mut self, at: usize) {
        let strength = match (self.words.word(at + 1).as_str(), self.words.word(at + 2).as_str()) {
            ("update", _) => "SELECT FOR UPDATE",
            ("no", _) => "SELECT FOR NO KEY UPDATE",
            ("share", _) => "SELECT FOR SHARE",
            ("key", "share") => "SELECT FOR KEY SHARE",
            _ => return,
        };
        self.level.from = false;
        if self.purpose == Purpose::Verdict {
            self.judge.write("locking_clause", &strength["SELECT ".len()..]);
            self.command = strength;
        }
    }

    fn into(&mut self, at: usize) {
        // INSERT INTO and MERGE INTO, in WITH or as the statement itself, name no new table.
        if self.purpose != Purpose::Verdict || self.before(at, "insert") || self.before(at, "merge") {
            return;
        }
        let target = &self.words.from(at + 1);
        if (0..3).any(|at| target.is(at, "temp") || target.is(at, "temporary") || target.is(at, "pg_temp")) {
            self.judge.pin(PinReason::TempTable);
        }
        self.judge.write("select_into", "INTO");
        self.judge.effect(Effect::Ddl);
        self.command = "SELECT INTO";
    }

    /// A data-modifying statement in WITH or behind it. UPDATE of a locking clause is told by that clause.
    fn data_change(&mut self, at: usize, word: &str) {
        let locks = word == "update" && (self.before(at, "for") || (self.before(at, "key") && at > 1 && self.words.is(at - 2, "no")));
        if locks {
            return;
        }
        let (kind, command) = match word {
            "insert" => (Kind::Insert, "INSERT"),
            "update" => (Kind::Update, "UPDATE"),
            "delete" => (Kind::Delete, "DELETE"),
            _ => (Kind::Merge, "MERGE"),
        };
        self.level = Level { selects: true, ..Level::default() };
        if self.purpose == Purpose::Verdict {
            self.judge.write("data_change", command);
            // The first at the top is the statement; others are MERGE's actions and ON CONFLICT's.
            if self.outer.is_empty() && self.kind == Kind::Select {
                (self.kind, self.command) = (kind, command);
            }
        }
    }

    /// Whether a name before a parenthesis (at `end`) is called. `category` is that of a lone unquoted word, [`Category::Name`] for others.
    fn is_call(&self, at: usize, end: usize, name: &str, category: Category) -> bool {
        match category {
            // Syntax, all of it harmless: COALESCE(, VALUES (, IN (, EXTRACT(, numeric(10, 2), ...
            Category::Reserved | Category::ColumnName => return false,
            // JOIN (, LIKE (, and otherwise left(, right(, overlaps(, ...
            Category::TypeOrFunction => {
                return !matches!(name, "join" | "like" | "ilike") || !self.judge.facts.functions(name).is_empty();
            }
            Category::Unreserved if self.is_syntax(at, name) => return false,
            Category::Unreserved | Category::Name => {}
        }
        let Some(previous) = at.checked_sub(1) else { return true };
        if self.purpose == Purpose::Effects || self.judge.verdict.class == Class::Write {
            // A data change, whose verdict is clear: INSERT INTO t (columns), MERGE ... s(columns), and key words of their own.
            let columns = self.words.is(previous, "into") || self.is_kind(previous, TokenKind::CloseParen);
            let clause = (name == "conflict" && self.words.is(previous, "on"))
                || (name == "insert" && self.words.is(previous, "then"))
                || (name == "set" && category == Category::Unreserved);
            if columns || clause {
                return false;
            }
        }
        match self.words.kind(previous) {
            // A type with modifiers.
            Some(TokenKind::Cast) => false,
            // An alias with columns, or a type in CAST(value AS type(n)).
            Some(TokenKind::Word) if self.words.is(previous, "as") => false,
            Some(TokenKind::Word) if self.words.is(previous, "with") || self.words.is(previous, "recursive") => !self.binds_query(end),
            Some(TokenKind::Comma) => !self.binds_query(end),
            // An alias with columns and without AS, behind a relation, a call or a subquery in FROM.
            Some(TokenKind::QuotedName) => !self.in_list(),
            Some(TokenKind::Word) => {
                let name = self.words.word(previous);
                let key_word = super::keywords::category(name.as_str()) != Category::Name;
                key_word || !self.in_list()
            }
            Some(TokenKind::CloseParen) => self.closed_behind_on || !self.in_list(),
            _ => true,
        }
    }

    fn in_list(&self) -> bool {
        self.level.from && !self.level.condition
    }

    /// Unreserved words that can stand before a parenthesis without being called, each with what must stand before it then.
    fn is_syntax(&self, at: usize, word: &str) -> bool {
        let Some(previous) = at.checked_sub(1) else { return false };
        let behind_paren = self.is_kind(previous, TokenKind::CloseParen) && !self.closed_behind_on;
        let behind = |words: &[&str]| words.iter().any(|word| self.words.is(previous, word));
        match word {
            "over" | "filter" | "repeatable" => behind_paren,
            "by" => behind(&["group", "order", "partition"]),
            "sets" => behind(&["grouping"]),
            "cube" | "rollup" => {
                let item = matches!(self.words.kind(previous), Some(TokenKind::Comma | TokenKind::OpenParen));
                self.level.grouping && (item || behind(&["by", "distinct", "all"]))
            }
            "materialized" => behind(&["as", "not"]),
            "first" | "next" => behind(&["fetch"]),
            "varying" => behind(&["character", "char", "bit", "nchar"]),
            "second" => self.is_kind(previous, TokenKind::String) || self.is_kind(previous, TokenKind::Cast) || behind(&["to", "interval"]),
            "zone" => behind(&["time"]),
            "columns" | "passing" => behind_paren || self.is_kind(previous, TokenKind::String),
            "operator" => self.is_qualified_operator(at + 1),
            _ => false,
        }
    }

    /// `OPERATOR(schema.symbol)`, from its parenthesis on. The symbol is judged as any operator.
    fn is_qualified_operator(&self, open: usize) -> bool {
        let mut at = open + 1;
        while self.words.name(at).is_some() && self.is_kind(at + 1, TokenKind::Dot) {
            at += 2;
        }
        self.is_kind(at, TokenKind::Operator) && self.is_kind(at + 1, TokenKind::CloseParen)
    }

    /// `(columns) AS [NOT] [MATERIALIZED] (query`, from its parenthesis on: a query that WITH binds, and no table function with a column
    /// definition list.
    fn binds_query(&self, open: usize) -> bool {
        let mut at = open + 1;
        while self.words.name(at).is_some() && self.is_kind(at + 1, TokenKind::Comma) {
            at += 2;
        }
        if self.words.name(at).is_none() || !self.is_kind(at + 1, TokenKind::CloseParen) || !self.words.is(at + 2, "as") {
            return false;
        }
        at += 3;
        at += usize::from(self.words.is(at, "not"));
        at += usize::from(self.words.is(at, "materialized"));
        if !self.is_kind(at, TokenKind::OpenParen) {
            return false;
        }
        let values = self.words.is(at + 1, "values") && self.is_kind(at + 2, TokenKind::OpenParen);
        values || self.is_kind(at + 1, TokenKind::OpenParen) || ["select", "with", "table"].iter().any(|word| self.words.is(at + 1, word))
    }
}

/// The text of a string without escapes; `None` for other forms.
fn plain_string(words: Words<'_>, at: usize) -> Option<String> {
    let token = words.tokens.get(at)?;
    let text = std::str::from_utf8(&words.sql[token.start..token.end]).ok()?;
    let inner = text.strip_prefix('\'')?.strip_suffix('\'')?;
    (!inner.is_empty() && !inner.contains(['\'', '\\'])).then(|| inner.to_ascii_lowercase())
}
