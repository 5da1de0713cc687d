//! Which of a database's objects reach something that can't run on a replica, through any number of others.
//!
//! A graph of functions, relations, operators and types, fed row by row with what the catalogs say; from the objects that are bad by
//! themselves, badness goes to all that reach them. Names in bodies stand for all objects of that name, as `search_path` isn't known.
//! Invariant: an object that was reached and never described is bad, unless it is a type.
//!
//! A second property goes the same ways, and more: what an object may leave behind in its session, or see of it ([`Suspicion`]). It is about all that
//! runs, where badness is about reads only: triggers, defaults, checks, both halves of policies, and bodies whatever their volatility.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::bodies::{self, Language, Node, Reached};
use super::catalog::{Facts, FunctionFact, KEY_WORD_OPERATORS, NameSuspicion, RelationFact, Suspicion};
use super::functions::{self, Call};
use super::unseen;
use super::verdict::Class;
use crate::marks::Touched;

/// OIDs from here on belong to objects that people made (`FirstNormalObjectId`, `src/include/access/transam.h`).
pub const FIRST_NORMAL_OID: u32 = 16384;

/// A function's body is read up to this size, in bytes; a longer one counts as a write.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Extensions whose functions in C do what their volatility says, and read nothing that differs between servers. Not those that run text
/// (tablefunc, xml2, pgrouting) or tell about the server (sslinfo, pgrowlocks, pg_buffercache).
const EXTENSIONS: [&str; 34] = [
    "bloom",
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "dict_xsyn",
    "earthdistance",
    "fuzzystrmatch",
    "h3",
    "hll",
    "hstore",
    "hypopg",
    "intagg",
    "intarray",
    "ip4r",
    "isn",
    "ltree",
    "pg_bigm",
    "pg_trgm",
    "pgcrypto",
    "postgis",
    "postgis_raster",
    "postgis_sfcgal",
    "prefix",
    "rum",
    "seg",
    "semver",
    "tsm_system_rows",
    "unaccent",
    "unit",
    "uuid-ossp",
    "vector",
    "zhparser",
];

/// Further extensions whose functions in C leave nothing behind in their session.
const TRACELESS_EXTENSIONS: [&str; 14] = [
    "autoinc",
    "insert_username",
    "lo",
    "moddatetime",
    "pageinspect",
    "pg_buffercache",
    "pg_freespacemap",
    "pg_prewarm",
    "pg_stat_statements",
    "pg_visibility",
    "pg_walinspect",
    "pgrowlocks",
    "pgstattuple",
    "sslinfo",
];

/// Custom settings of which the names are kept, and their bytes. Code that sets more of them sets unknown ones.
pub const CUSTOM_SETTINGS_MAX: usize = 64;
const CUSTOM_SETTING_BYTES_MAX: usize = 128;

/// An object of the database, by the catalog that holds it and its OID there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// `pg_proc`: functions, aggregates and window functions.
    Function(u32),
    /// `pg_class`
    Relation(u32),
    /// What a data change of a relation runs: triggers, rules, cascades, defaults, constraints, policies.
    Change(u32),
    /// The expressions of a relation's partition key (`pg_partitioned_table`), which a change of its partitions checks.
    Key(u32),
    /// `pg_opfamily`: what stands in for one another, and is called by indexes and sorts.
    Family(u32),
    /// What DDL runs: event triggers.
    Ddl,
    /// `pg_operator`
    Operator(u32),
    /// `pg_type`
    Type(u32),
    /// A value of a type (`pg_type`) at hand: what a statement may then use without naming it, as with [`Object::KeyWords`].
    Value(u32),
    /// The operators behind key words that are for such values.
    Operators(u32),
    /// What every statement may use without naming it: operators behind key words, implicit casts, comparisons for sorting.
    KeyWords,
}

/// `provolatile`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volatility {
    Immutable,
    Stable,
    Volatile,
}

/// A row of `pg_proc`.
#[derive(Clone, Copy, Debug)]
pub struct Function<'a> {
    pub oid: u32,
    pub schema: &'a str,
    pub name: &'a str,
    pub aggregate: bool,
    pub volatility: Volatility,
    /// `lanname`
    pub language: &'a str,
    /// The extension that it belongs to.
    pub extension: Option<&'a str>,
    /// `prosrc`, for functions in the language `internal`.
    pub internal: Option<&'a str>,
    /// See [`FunctionFact::hidden_by_builtin`].
    pub hidden_by_builtin: bool,
    pub one_argument: bool,
    /// Its own `search_path` looks elsewhere before `pg_catalog`, so that built-in names may mean something else in it.
    pub hides_builtins: bool,
    /// The parameters with a prefix that it sets for its own time (`proconfig`), of which the connection knows for ever
    /// after.
    pub sets_custom: &'a [&'a str],
}

/// A row of `pg_class`: what can stand in FROM.
#[derive(Clone, Copy, Debug)]
pub struct Relation<'a> {
    pub oid: u32,
    pub schema: &'a str,
    pub name: &'a str,
    /// `relkind`
    pub kind: u8,
    /// `relpersistence`
    pub persistence: u8,
}

/// Why an object is bad, as a stable word.
type Rule = &'static str;

struct NodeState {
    /// The relations that it reaches, itself among them.
    reads: Touched,
    bad: Option<Rule>,
    suspicion: Suspicion,
    described: bool,
    /// The rule it gets by reaching a bad one.
    inherits: Rule,
}

struct KnownFunction {
    node: u32,
    name: Box<str>,
    fact: FunctionFact,
}

/// The catalogs of one database, as far as they have been read.
#[derive(Default)]
pub struct Catalog {
    nodes: Vec<NodeState>,
    objects: FxHashMap<Object, u32>,
    /// What a name in a body may mean: one node for all objects of the name.
    called: FxHashMap<Box<str>, u32>,
    called_in_schema: FxHashMap<(Box<str>, Box<str>), u32>,
    attributes: FxHashMap<Box<str>, u32>,
    named: FxHashMap<Box<str>, u32>,
    symbols: FxHashMap<Box<str>, u32>,
    /// (reached, reaching)
    edges: Vec<(u32, u32)>,
    /// As `edges`, for suspicions alone.
    trace_edges: Vec<(u32, u32)>,
    /// As `called`, with what a built-in function hides unless `search_path` says otherwise.
    called_anyhow: FxHashMap<Box<str>, u32>,
    /// What a data change of a name in a body may change.
    changed: FxHashMap<Box<str>, u32>,
    /// Names of functions that come with PostgreSQL.
    builtin_names: FxHashSet<Box<str>>,
    /// Functions whose bodies tell what they leave, and that haven't been read.
    untraced: FxHashSet<u32>,
    /// In C or internal, immutable, and an extension's: trusted where it implements an operator or a cast.
    trusted: FxHashSet<u32>,
    /// In C and of an extension that is known: none of them writes a relation, volatile or not (`uuid_generate_v4`).
    quiet: FxHashSet<u32>,
    current_setting: FxHashSet<u32>,
    set_config: FxHashSet<u32>,
    settings: SettingNames,
    /// Functions whose bodies decide and haven't been read.
    unread: FxHashSet<u32>,
    functions: Vec<KnownFunction>,
    relations: Vec<(u32, u32, Box<str>, RelationFact)>,
    operators: Vec<(u32, Box<str>)>,
    types: Vec<(u32, Box<str>)>,
    outside: Vec<Box<str>>,
}

fn inherits(object: Object) -> Rule {
    match object {
        Object::Function(_) => "body",
        Object::Relation(_) => "view",
        Object::Change(_) | Object::Key(_) | Object::Ddl => "runs_code",
        Object::Operator(_) | Object::Family(_) => "operator",
        Object::Type(_) => "type",
        Object::Value(_) | Object::Operators(_) => "operator_of_type",
        Object::KeyWords => "key_word_operator",
    }
}

impl Catalog {
    pub fn new() -> Catalog {
        Catalog::default()
    }

    fn new_node(nodes: &mut Vec<NodeState>, described: bool, inherits: Rule) -> u32 {
        nodes.push(NodeState { reads: Touched::Nothing, bad: None, suspicion: Suspicion::NONE, described, inherits });
        u32::try_from(nodes.len() - 1).unwrap_or(u32::MAX)
    }

    fn node(&mut self, object: Object) -> u32 {
        let nodes = &mut self.nodes;
        let described = !matches!(object, Object::Function(_) | Object::Relation(_) | Object::Operator(_));
        *self.objects.entry(object).or_insert_with(|| Catalog::new_node(nodes, described, inherits(object)))
    }

    fn describe(&mut self, object: Object) -> u32 {
        let node = self.node(object);
        self.nodes[node as usize].described = true;
        node
    }

    /// The node of a name in one of the tables of names.
    fn name_node(nodes: &mut Vec<NodeState>, names: &mut FxHashMap<Box<str>, u32>, name: &str) -> u32 {
        match names.get(name) {
            Some(node) => *node,
            None => *names.entry(name.into()).or_insert(Catalog::new_node(nodes, true, "name")),
        }
    }

    fn bad_node(&mut self, node: u32, rule: Rule) {
        self.nodes[node as usize].bad.get_or_insert(rule);
    }

    /// An object that can't run on a replica.
    pub fn bad(&mut self, object: Object, rule: Rule) {
        let node = self.node(object);
        self.bad_node(node, rule);
    }

    /// One object reaches another.
    pub fn reaches(&mut self, from: Object, to: Object) {
        if let (Object::Relation(from), Object::Relation(to)) = (from, to) {
            // A change of a view is one of its tables, a change of a partitioned table one of its partitions.
            let (from, to) = (self.node(Object::Change(from)), self.node(Object::Change(to)));
            self.edges.push((to, from));
        }
        let (from, to) = (self.node(from), self.node(to));
        self.edges.push((to, from));
    }

    fn suspect(&mut self, node: u32, suspicion: Suspicion) {
        self.nodes[node as usize].suspicion.merge(suspicion);
    }

    /// An object of which nobody knows what it runs.
    pub fn untold(&mut self, object: Object, rule: Rule) {
        let node = self.node(object);
        self.suspect(node, Suspicion::anything(rule));
    }

    /// Code of an object sets a parameter; `None`: it can't be told which one.
    fn sets(&mut self, node: u32, name: Option<&str>) {
        if !name.is_some_and(|name| self.settings.set(name)) {
            self.suspect(node, Suspicion::sets_unknown("set_config"));
        }
    }

    /// One object may run another, which counts for what it leaves behind.
    pub fn runs(&mut self, from: Object, to: Object) {
        let (from, to) = (self.node(from), self.node(to));
        if from != to {
            self.trace_edges.push((to, from));
        }
    }

    /// An operator, a cast or the like is made of a function.
    pub fn made_of(&mut self, object: Object, function: u32) {
        self.runs(object, Object::Function(function));
        if self.set_config.contains(&function) {
            // An aggregate's state may be the name.
            let node = self.node(object);
            self.sets(node, None);
        }
        if self.trusted.contains(&function) {
            self.node(object);
        } else {
            self.reaches(object, Object::Function(function));
        }
    }

    /// A data change of a relation calls a function: by a default, a constraint, an index or a policy.
    pub fn change_calls(&mut self, relation: u32, function: u32) {
        self.runs(Object::Change(relation), Object::Function(function));
        if !self.quiet.contains(&function) {
            self.made_of(Object::Change(relation), function);
        }
    }

    /// A function that comes with PostgreSQL, judged by its name.
    pub fn builtin(&mut self, oid: u32, schema: &str, name: &str) {
        let node = self.describe(Object::Function(oid));
        if let Call::Write { rule, .. } = functions::call(Some(schema), name, &Facts::empty()) {
            self.bad_node(node, rule);
        }
        if schema == "pg_catalog" && name == "current_setting" {
            self.current_setting.insert(oid);
        }
        if schema == "pg_catalog" && name == "set_config" {
            self.set_config.insert(oid);
        }
        self.suspect(node, unseen::of_builtin(name));
        self.builtin_names.insert(name.into());
    }

    /// A function that people made. `true`: its body decides, and must be given to [`Catalog::body`] or [`Catalog::sql_body`]; without, the
    /// function is a write. Of every function in SQL or PL/pgSQL the body tells what it leaves behind.
    pub fn function(&mut self, function: Function<'_>) -> bool {
        let Function { oid, schema, name, .. } = function;
        let node = self.describe(Object::Function(oid));
        let immutable = function.volatility == Volatility::Immutable;
        let mut reads_body = false;
        let rule = match (function.volatility, function.language) {
            // What an aggregate does, its functions do.
            _ if function.aggregate => None,
            (Volatility::Volatile, _) => Some("volatile"),
            _ if function.hides_builtins => Some("search_path"),
            (_, "sql" | "plpgsql") => {
                reads_body = true;
                None
            }
            (_, "c" | "internal") if function.extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) => None,
            // Made with each range type.
            (_, "internal") if function.internal.is_some_and(harmless_internal) => None,
            _ => Some("language"),
        };
        if function.language == "c" && function.extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) {
            self.quiet.insert(oid);
        }
        if immutable && matches!(function.language, "c" | "internal") && function.extension.is_some() {
            self.trusted.insert(oid);
        }
        let pure = function.aggregate
            || reads_body
            || (immutable && matches!(function.language, "c" | "internal"))
            || function.internal.is_some_and(harmless_internal);
        if !pure {
            // Code that nobody has read.
            self.nodes[node as usize].reads = Touched::Everything;
        }
        if let Some(rule) = rule {
            self.bad_node(node, rule);
        }
        if reads_body {
            self.unread.insert(node);
        }
        match function.traces() {
            Traces::Body => _ = self.untraced.insert(node),
            Traces::Nothing => {}
            Traces::Unknown => self.suspect(node, Suspicion::anything("language")),
            Traces::State => self.suspect(node, Suspicion::leaves("session_state")),
        }
        for name in function.sets_custom {
            self.suspect(node, Suspicion::leaves("set_config"));
            self.sets(node, Some(name));
        }
        let called_anyhow = Catalog::name_node(&mut self.nodes, &mut self.called_anyhow, name);
        self.trace_edges.push((node, called_anyhow));
        if !function.hidden_by_builtin || functions::builtin(name).is_none() {
            let called = Catalog::name_node(&mut self.nodes, &mut self.called, name);
            self.edges.push((node, called));
        }
        let key = (schema.into(), name.into());
        let nodes = &mut self.nodes;
        let qualified = *self.called_in_schema.entry(key).or_insert_with(|| Catalog::new_node(nodes, true, "name"));
        self.edges.push((node, qualified));
        if function.one_argument {
            let attribute = Catalog::name_node(&mut self.nodes, &mut self.attributes, name);
            self.edges.push((node, attribute));
        }
        let fact = FunctionFact {
            schema: schema.into(),
            class: Class::Read,
            rule: function.language_rule(),
            hidden_by_builtin: function.hidden_by_builtin,
            one_argument: function.one_argument,
            reads: Touched::Nothing,
        };
        self.functions.push(KnownFunction { node, name: name.into(), fact });
        reads_body
    }

    /// A relation. Those of the system are judged by their names.
    pub fn relation(&mut self, relation: Relation<'_>) {
        let Relation { oid, schema, name, .. } = relation;
        let node = self.describe(Object::Relation(oid));
        if oid < FIRST_NORMAL_OID {
            if let Some(rule) = functions::relation(Some(schema), name, &Facts::empty(), true) {
                self.bad_node(node, rule);
            }
            self.suspect(node, unseen::of_builtin(name));
            let change = self.node(Object::Change(oid));
            self.suspect(change, unseen::change_of_builtin(name));
            return;
        }
        let (kind, rule) = match (relation.kind, relation.persistence) {
            (b'S', _) => ("sequence", Some("sequence")),
            (b'f', _) => ("foreign", Some("foreign")),
            (_, b'u') => ("unlogged", Some("unlogged")),
            (_, b't') => ("temporary", Some("temporary")),
            (b'v', _) => ("view", None),
            (b'r' | b'p' | b'm', _) => ("table", None),
            _ => ("relation_kind", Some("relation_kind")),
        };
        if let Some(rule) = rule {
            self.bad_node(node, rule);
        }
        let named = Catalog::name_node(&mut self.nodes, &mut self.named, name);
        self.edges.push((node, named));
        self.nodes[node as usize].reads = Touched::relation(name);
        let change = self.node(Object::Change(oid));
        if relation.kind == b'f' {
            // A foreign-data wrapper keeps connections, and runs what the other side likes. Of those that nobody knows
            // `untold` tells more.
            self.suspect(node, Suspicion::anything_but_settings("foreign"));
        }
        let changed = Catalog::name_node(&mut self.nodes, &mut self.changed, name);
        let key = self.node(Object::Key(oid));
        self.trace_edges.extend([(change, changed), (node, change), (key, change)]);
        let fact =
            RelationFact { schema: schema.into(), class: Class::Read, rule: kind, reads: Touched::Nothing, writes: Touched::Nothing };
        self.relations.push((node, change, name.into(), fact));
    }

    /// An operator by its symbol. Those of PostgreSQL itself are given too: expressions name them by OID. `of`: a type of which a value must be
    /// at hand for this operator to be meant by its symbol, if it is one that key words stand for.
    pub fn operator(&mut self, oid: u32, symbol: &str, function: u32, of: Option<u32>) {
        let node = self.describe(Object::Operator(oid));
        self.made_of(Object::Operator(oid), function);
        if oid < FIRST_NORMAL_OID {
            return;
        }
        if let Some(of) = of.filter(|_| KEY_WORD_OPERATORS.contains(&symbol)) {
            self.reaches(Object::Value(of), Object::Operators(of));
            self.reaches(Object::Operators(of), Object::Operator(oid));
            return self.reaches(Object::Operator(oid), Object::Value(of));
        }
        let of_symbol = Catalog::name_node(&mut self.nodes, &mut self.symbols, symbol);
        self.edges.push((node, of_symbol));
        if KEY_WORD_OPERATORS.contains(&symbol) {
            let key_words = self.node(Object::KeyWords);
            self.edges.push((node, key_words));
        }
        self.operators.push((node, symbol.into()));
    }

    /// A cast that PostgreSQL uses unasked. `source` and `target`: types that people made of which no value comes about otherwise; `function`: 0 if
    /// none is called. From a built-in type it is used where something is there that wants the target: a function's parameter, which counts as
    /// having such values, or an operator behind a key word.
    pub fn implicit_cast(&mut self, source: Option<u32>, target: Option<u32>, function: u32) {
        let caller = match (source, target) {
            (Some(of), _) | (None, Some(of)) => Object::Value(of),
            (None, None) => Object::KeyWords,
        };
        if function >= FIRST_NORMAL_OID {
            self.made_of(caller, function);
        }
        match (source, target) {
            (Some(source), Some(target)) => self.reaches(Object::Value(source), Object::Value(target)),
            (None, Some(target)) => self.reaches(Object::KeyWords, Object::Operators(target)),
            (_, None) => {}
        }
    }

    /// A type by its name; what it is made of is told with [`Catalog::reaches`].
    pub fn type_name(&mut self, oid: u32, name: &str) {
        let node = self.node(Object::Type(oid));
        self.reaches(Object::Type(oid), Object::Value(oid));
        for name in std::iter::once(name).chain(spellings(name).iter().copied()) {
            let named = Catalog::name_node(&mut self.nodes, &mut self.named, name);
            self.edges.push((node, named));
            self.types.push((node, name.into()));
        }
    }

    /// The text of a function's body. All functions, relations, operators and types must have been given before.
    pub fn body(&mut self, oid: u32, language: Language, text: &str) {
        let node = self.node(Object::Function(oid));
        self.unread.remove(&node);
        if text.len() > BODY_BYTES_MAX {
            // `untraced` still has it.
            return self.bad_node(node, "body_too_long");
        }
        let key_words = self.node(Object::KeyWords);
        let mut bad = None;
        let mut reached = Vec::new();
        self.traces_of_body(node, language, text);
        bodies::read_text(language, text, true, &mut |thing| match thing {
            Reached::Changes | Reached::Target(_) | Reached::Traces(_) | Reached::Ddl | Reached::Sets(_) | Reached::Literal(_) => {}
            Reached::Bad(rule) => bad = bad.or(Some(rule)),
            Reached::Call { schema: None, name, .. } => {
                if let Some(Call::Write { rule, .. }) = functions::builtin(name) {
                    bad = bad.or(Some(rule));
                }
                reached.extend(self.called.get(name));
            }
            Reached::Call { schema: Some("pg_catalog"), name, .. } => {
                if let Some(Call::Write { rule, .. }) = functions::builtin(name) {
                    bad = bad.or(Some(rule));
                }
                reached.extend(self.called_in_schema.get(&("pg_catalog".into(), name.into()) as &(Box<str>, Box<str>)));
            }
            Reached::Call { schema: Some(schema), name, .. } => {
                reached.extend(self.called_in_schema.get(&(schema.into(), name.into()) as &(Box<str>, Box<str>)));
            }
            Reached::Attribute(name) => {
                if let Some(Call::Write { rule, .. }) = functions::attribute(name, &Facts::empty()) {
                    bad = bad.or(Some(rule));
                }
                reached.extend(self.attributes.get(name));
            }
            Reached::Name(name) => {
                // Whatever its schema: a name that the system gave means the system's, or is avoided.
                bad = bad.or(functions::relation(None, name, &Facts::empty(), true));
                reached.extend(self.named.get(name));
            }
            Reached::Operator(symbol) => reached.extend(self.symbols.get(symbol)),
        });
        reached.push(key_words);
        reached.sort_unstable();
        reached.dedup();
        self.edges.extend(reached.into_iter().map(|to| (to, node)));
        if let Some(rule) = bad {
            self.bad_node(node, rule);
        }
    }

    /// What a body may leave behind. A text with backslashes is read both ways that a session can choose.
    fn traces_of_body(&mut self, node: u32, language: Language, text: &str) {
        self.untraced.remove(&node);
        let readings: &[bool] = if text.contains('\\') { &[true, false] } else { &[true] };
        let mut suspicion = Suspicion::NONE;
        let mut reached = Vec::new();
        let (mut changes, mut ddl, mut names) = (false, false, Vec::new());
        let mut sets: Vec<Option<String>> = Vec::new();
        let mut settings = std::mem::take(&mut self.settings);
        for standard_strings in readings {
            bodies::read_text(language, text, *standard_strings, &mut |thing| match thing {
                Reached::Bad(_) => {}
                Reached::Traces(traces) => _ = suspicion.merge(traces),
                Reached::Changes => changes = true,
                Reached::Ddl => ddl = true,
                Reached::Sets(name) => sets.push(name.map(str::to_owned)),
                Reached::Literal(text) => settings.mention(text),
                Reached::Target(name) => {
                    if !self.changed.contains_key(name) && unseen::change_of_builtin(name).is_none() {
                        suspicion.merge(Suspicion::leaves("unknown_relation"));
                    }
                }
                Reached::Call { schema, name, columns } => {
                    if matches!(schema, None | Some("pg_catalog")) {
                        suspicion.merge(unseen::of_builtin(name));
                    }
                    let known = match schema {
                        None => self.called_anyhow.get(name),
                        Some(schema) => self.called_in_schema.get(&(schema.into(), name.into()) as &(Box<str>, Box<str>)),
                    };
                    let built_in = || functions::builtin(name).is_some() || self.builtin_names.contains(name);
                    if known.is_none() && !columns && !built_in() && !self.named.contains_key(name) {
                        // It isn't there: a call is an error, unless the facts are old.
                        suspicion.merge(Suspicion::anything_but_settings("unknown_function"));
                    }
                    reached.extend(known);
                }
                Reached::Attribute(name) => {
                    suspicion.merge(unseen::of_builtin(name));
                    reached.extend(self.attributes.get(name));
                }
                Reached::Name(name) => {
                    suspicion.merge(of_builtin_relation(name));
                    reached.extend(self.named.get(name));
                    names.push(Box::<str>::from(name));
                }
                Reached::Operator(symbol) => reached.extend(self.symbols.get(symbol)),
            });
        }
        // What it makes may run what a change of its models does (LIKE, INHERITS).
        if changes || ddl {
            for name in &names {
                suspicion.merge(unseen::change_of_builtin(name));
                reached.extend(self.changed.get(name));
            }
        }
        reached.push(self.node(Object::KeyWords));
        if ddl {
            reached.push(self.node(Object::Ddl));
        }
        reached.sort_unstable();
        reached.dedup();
        self.trace_edges.extend(reached.into_iter().map(|to| (to, node)));
        self.suspect(node, suspicion);
        self.settings = settings;
        for name in sets {
            self.sets(node, name.as_deref());
        }
    }

    /// A body in standard SQL (`prosqlbody`).
    pub fn sql_body(&mut self, oid: u32, tree: &str) {
        let node = self.node(Object::Function(oid));
        self.unread.remove(&node);
        self.untraced.remove(&node);
        self.tree(Object::Function(oid), tree);
    }

    /// A `pg_node_tree` that belongs to an object. Built-in functions must have been given before.
    pub fn tree(&mut self, of: Object, tree: &str) {
        let from = self.node(of);
        self.traces_of_tree(of, tree);
        let mut bad = None;
        let mut reached = Vec::new();
        bodies::read_tree(tree, &mut |node| match node {
            Node::Value(_) | Node::Changes | Node::Utility | Node::Constant(_) => {}
            Node::Bad(rule) => bad = bad.or(Some(rule)),
            Node::Function { oid, first: Some(bytes) } if self.current_setting.contains(&oid) && is_dotted(bytes) => {}
            Node::Function { oid, .. } => reached.push(Object::Function(oid)),
            Node::Relation(oid) => reached.push(Object::Relation(oid)),
            Node::Operator(oid) => reached.push(Object::Operator(oid)),
            Node::Type(oid) => reached.push(Object::Type(oid)),
        });
        for object in reached {
            let to = self.node(object);
            if to != from {
                self.reaches(of, object);
            }
        }
        if let Some(rule) = bad {
            self.bad_node(from, rule);
        }
    }

    /// As [`Catalog::tree`], for a tree that counts for what it leaves behind alone: of defaults, checks, indexes, rules, conditions of triggers.
    pub fn traces_of_tree(&mut self, of: Object, tree: &str) {
        let mut suspicion = Suspicion::NONE;
        let (mut changes, mut reached) = (false, Vec::new());
        let mut sets: Vec<Option<String>> = Vec::new();
        let mut settings = std::mem::take(&mut self.settings);
        bodies::read_tree(tree, &mut |node| match node {
            Node::Changes => changes = true,
            // NOTIFY alone: all others are refused there.
            Node::Utility => _ = suspicion.merge(Suspicion::anything_but_settings("body_statement")),
            Node::Bad(_) => {}
            Node::Constant(bytes) => settings.mention(&bodies::constant_bytes(bytes)),
            Node::Function { oid, first } => {
                if self.set_config.contains(&oid) {
                    sets.push(first.and_then(bodies::constant_text));
                }
                reached.push(Object::Function(oid));
            }
            Node::Relation(oid) => reached.push(Object::Relation(oid)),
            Node::Operator(oid) => reached.push(Object::Operator(oid)),
            Node::Type(oid) | Node::Value(oid) => reached.push(Object::Type(oid)),
        });
        reached.sort_unstable_by_key(|object| object.key());
        reached.dedup();
        for object in reached {
            match object {
                // Nothing is known of PostgreSQL's own types but the casts that people made to them.
                Object::Type(oid) if oid < FIRST_NORMAL_OID && !self.objects.contains_key(&object) => continue,
                Object::Relation(oid) if changes => self.runs(of, Object::Change(oid)),
                _ => {}
            }
            self.runs(of, object);
        }
        let node = self.node(of);
        self.suspect(node, suspicion);
        self.settings = settings;
        for name in sets {
            self.sets(node, name.as_deref());
        }
    }

    /// A relation on which a write may do more than its transaction undoes.
    pub fn acts_outside(&mut self, name: &str) {
        self.outside.push(name.into());
    }

    /// Gives badness and relations to all that reach them, and makes facts of what is known.
    pub fn finish(mut self, generation: u64) -> Facts {
        self.spread();
        self.spread_reads();
        self.spread_suspicions();
        let bad = |node: u32| self.nodes[node as usize].bad;
        let reads = |node: u32| &self.nodes[node as usize].reads;
        let suspicion = |node: u32| self.nodes[node as usize].suspicion;
        let used = |node: u32| NameSuspicion { used: suspicion(node), changed: Suspicion::NONE };
        let mut facts = Facts::builder(generation);
        self.functions.sort_by(|left, right| (&left.name, &left.fact.schema).cmp(&(&right.name, &right.fact.schema)));
        for mut function in self.functions {
            if let Some(rule) = bad(function.node) {
                (function.fact.class, function.fact.rule) = (Class::Write, rule);
            }
            function.fact.reads = reads(function.node).clone();
            facts = facts.suspicion(&function.name, used(function.node));
            facts = facts.function(&function.name, function.fact);
        }
        for (node, change, name, mut fact) in self.relations {
            fact.reads = reads(node).clone();
            // A view or policy that reaches bad code is met by a data change, too; what is bad by its kind alone isn't code.
            // What a foreign table stands for may be a table here.
            let runs_code = bad(change).is_some() || matches!(bad(node), Some("view" | "relation_kind" | "foreign"));
            fact.writes = if runs_code { Touched::Everything } else { fact.reads.clone() };
            if let Some(rule) = bad(node) {
                // A table that reaches something does so by its policies, its children or its columns' types.
                let rule = if rule == "view" && fact.rule != "view" { "policy_child_or_type" } else { rule };
                (fact.class, fact.rule) = (Class::Write, rule);
            }
            facts = facts.relation(&name, fact);
            facts = facts.suspicion(&name, NameSuspicion { used: suspicion(node), changed: suspicion(change) });
        }
        for (node, symbol) in self.operators {
            facts = match bad(node) {
                Some(rule) => facts.operator(&symbol, Class::Write, rule),
                None => facts.operator(&symbol, Class::Read, "operator"),
            };
            facts = facts.operator_reads(&symbol, reads(node)).operator_suspicion(&symbol, suspicion(node));
        }
        for (node, name) in self.types {
            if let Some(rule) = bad(node) {
                facts = facts.bad_type(&name, rule);
            }
            facts = facts.type_reads(&name, reads(node)).suspicion(&name, used(node));
        }
        // A parameter's type is told by its OID: a value of any type may be one.
        let unnamed = self.objects.iter().filter(|(object, _)| matches!(object, Object::KeyWords | Object::Value(_)));
        let mut unnamed_reads = Touched::Nothing;
        for (_, node) in unnamed {
            unnamed_reads.merge(reads(*node));
        }
        facts = facts.key_word_reads(&unnamed_reads);
        let values = self.objects.iter().filter(|(object, _)| matches!(object, Object::Value(_)));
        if let Some(rule) = values.filter_map(|(_, node)| bad(*node)).min() {
            facts = facts.bad_value(rule);
        }
        if let Some(rule) = self.objects.get(&Object::KeyWords).and_then(|node| bad(*node)) {
            facts = facts.bad_key_word_operator(rule);
        }
        for (object, node) in &self.objects {
            match object {
                Object::Value(_) | Object::Type(_) => facts = facts.value_suspicion(suspicion(*node)),
                Object::KeyWords => facts = facts.key_word_suspicion(suspicion(*node)),
                Object::Ddl => facts = facts.ddl_suspicion(suspicion(*node)),
                _ => {}
            }
        }
        facts = facts.custom_settings(self.settings.all());
        for name in &self.outside {
            facts = facts.acts_outside(name);
        }
        facts.complete().build()
    }

    fn spread(&mut self) {
        for node in std::mem::take(&mut self.unread) {
            self.bad_node(node, "body_unread");
        }
        for node in &mut self.nodes {
            if !node.described {
                node.bad.get_or_insert("unknown_object");
            }
        }
        self.edges.sort_unstable();
        self.edges.dedup();
        let mut waiting: Vec<u32> = (0..self.nodes.len() as u32).filter(|node| self.nodes[*node as usize].bad.is_some()).collect();
        while let Some(reached) = waiting.pop() {
            let first = self.edges.partition_point(|(to, _)| *to < reached);
            for (_, from) in self.edges[first..].iter().take_while(|(to, _)| *to == reached) {
                let state = &mut self.nodes[*from as usize];
                if state.bad.is_none() {
                    state.bad = Some(state.inherits);
                    waiting.push(*from);
                }
            }
        }
    }
}

impl Catalog {
    /// Each object reads what the objects that it reaches read. Behind [`Catalog::spread`], which has sorted the edges.
    fn spread_reads(&mut self) {
        let mut waiting: Vec<u32> = (0..self.nodes.len() as u32).filter(|node| !self.nodes[*node as usize].reads.is_nothing()).collect();
        // Sets only grow, up to a limit: it ends.
        while let Some(reached) = waiting.pop() {
            let reads = self.nodes[reached as usize].reads.clone();
            let first = self.edges.partition_point(|(to, _)| *to < reached);
            for (_, from) in self.edges[first..].iter().take_while(|(to, _)| *to == reached) {
                if self.nodes[*from as usize].reads.merge(&reads) {
                    waiting.push(*from);
                }
            }
        }
    }
}

impl Catalog {
    /// What an object may leave or see, all that reach it may. Behind [`Catalog::spread`].
    fn spread_suspicions(&mut self) {
        for node in std::mem::take(&mut self.untraced) {
            self.suspect(node, Suspicion::anything("body_unread"));
        }
        for node in &mut self.nodes {
            if !node.described {
                node.suspicion.merge(Suspicion::anything("unknown_object"));
            }
        }
        let mut edges = std::mem::take(&mut self.trace_edges);
        edges.extend_from_slice(&self.edges);
        edges.sort_unstable();
        edges.dedup();
        let mut waiting: Vec<u32> = (0..self.nodes.len() as u32).filter(|node| !self.nodes[*node as usize].suspicion.is_none()).collect();
        // Each node is told four new things at most: it ends.
        while let Some(reached) = waiting.pop() {
            let suspicion = self.nodes[reached as usize].suspicion;
            let first = edges.partition_point(|(to, _)| *to < reached);
            for (_, from) in edges[first..].iter().take_while(|(to, _)| *to == reached) {
                if self.nodes[*from as usize].suspicion.merge(suspicion) {
                    waiting.push(*from);
                }
            }
        }
    }
}

/// The names of custom settings that code names, in lower case.
#[derive(Default)]
struct SettingNames {
    set: BTreeSet<Arc<str>>,
    /// In other places, where a name may as well be something else's.
    mentioned: BTreeSet<Arc<str>>,
}

impl SettingNames {
    /// Something is known to set it. Whether its name is kept, or need not be.
    fn set(&mut self, name: &str) -> bool {
        if !name.contains('.') {
            // A parameter of PostgreSQL's own: looks see whatever was set.
            return true;
        }
        if name.len() > CUSTOM_SETTING_BYTES_MAX || name.contains(char::REPLACEMENT_CHARACTER) {
            return false;
        }
        let name = name.to_ascii_lowercase();
        let known = self.set.contains(&*name);
        if !known && self.set.len() < CUSTOM_SETTINGS_MAX {
            self.set.insert(name.into());
            return true;
        }
        known
    }

    /// Whatever in a text looks like the name of a custom setting (`valid_custom_variable_name`).
    fn mention(&mut self, text: &str) {
        let within = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '$' | '.') || !letter.is_ascii();
        for piece in text.split(|letter: char| !within(letter)) {
            let name =
                piece.trim_start_matches(|letter: char| letter.is_ascii_digit() || matches!(letter, '$' | '.')).trim_end_matches('.');
            let begins = |part: &str| part.chars().next().is_some_and(|first| !first.is_ascii_digit() && first != '$');
            let named = name.contains('.') && name.len() <= CUSTOM_SETTING_BYTES_MAX && name.split('.').all(begins);
            if named && self.mentioned.len() < CUSTOM_SETTINGS_MAX && !name.contains(char::REPLACEMENT_CHARACTER) {
                self.mentioned.insert(name.to_ascii_lowercase().into());
            }
        }
    }

    /// Those that are set, and of the others as many as there is room for.
    fn all(&self) -> Vec<Arc<str>> {
        let others = self.mentioned.difference(&self.set);
        self.set.iter().chain(others).take(CUSTOM_SETTINGS_MAX).cloned().collect()
    }
}

/// What a text that makes code may have that code set: all that looks like the name of a custom setting, if anything is set there.
pub(super) fn mentioned_settings(text: &str) -> Vec<Arc<str>> {
    let mut names = SettingNames::default();
    if text.as_bytes().windows(3).any(|letters| letters.eq_ignore_ascii_case(b"set")) {
        names.mention(text);
    }
    names.all()
}

/// Whether a constant of type text has a dot in it.
fn is_dotted(bytes: &str) -> bool {
    bodies::constant_text(bytes).is_some_and(|text| text.contains('.'))
}

/// How what a function leaves behind is known.
enum Traces {
    Body,
    /// It leaves nothing by itself; an aggregate's functions are told apart from it.
    Nothing,
    Unknown,
    /// It is known to keep something in its server process.
    State,
}

impl Object {
    fn key(self) -> (u8, u32) {
        match self {
            Object::Function(oid) => (0, oid),
            Object::Relation(oid) => (1, oid),
            Object::Change(oid) => (2, oid),
            Object::Key(oid) => (3, oid),
            Object::Family(oid) => (4, oid),
            Object::Operator(oid) => (5, oid),
            Object::Type(oid) => (6, oid),
            Object::Value(oid) => (7, oid),
            Object::Operators(oid) => (8, oid),
            Object::KeyWords => (9, 0),
            Object::Ddl => (10, 0),
        }
    }
}

impl Function<'_> {
    fn traces(&self) -> Traces {
        let known = |extension: &str| EXTENSIONS.contains(&extension) || TRACELESS_EXTENSIONS.contains(&extension);
        match self.language {
            _ if self.aggregate => Traces::Nothing,
            "sql" | "plpgsql" => Traces::Body,
            "c" | "internal" if self.extension.is_some_and(known) => {
                if unseen::keeps_state(self.name) {
                    Traces::State
                } else {
                    Traces::Nothing
                }
            }
            "internal" if self.internal.is_some_and(|source| harmless_internal(source) && unseen::of_builtin(source).is_none()) => {
                Traces::Nothing
            }
            _ => Traces::Unknown,
        }
    }

    fn language_rule(&self) -> Rule {
        match (self.aggregate, self.volatility) {
            (true, _) => "aggregate",
            (false, Volatility::Immutable) => "immutable",
            (false, Volatility::Stable) => "stable",
            (false, Volatility::Volatile) => "volatile",
        }
    }
}

/// What a relation of the system shows, by its name; a function's name that isn't called means nothing.
fn of_builtin_relation(name: &str) -> Suspicion {
    let shows = matches!(name, "pg_settings" | "pg_prepared_statements") || functions::pinning_relation(None, name).is_some();
    if shows { unseen::of_builtin(name) } else { Suspicion::NONE }
}

/// A function of the language `internal` is a built-in one by another name. `source` is the name of PostgreSQL's C function, which is mostly that
/// of the SQL function too.
fn harmless_internal(source: &str) -> bool {
    source.starts_with("range_constructor")
        || source.starts_with("multirange_constructor")
        || matches!(functions::builtin(source), Some(Call::Read | Call::Clock))
}

/// How SQL spells types whose names in `pg_type` are others (`gram.y`, `SimpleTypename`), by their first words.
fn spellings(name: &str) -> &'static [&'static str] {
    match name {
        "int2" => &["smallint"],
        "int4" => &["int", "integer"],
        "int8" => &["bigint"],
        "float4" => &["real", "float"],
        "float8" => &["double", "float"],
        "numeric" => &["decimal", "dec"],
        "bool" => &["boolean"],
        "bpchar" => &["character", "char", "nchar", "national"],
        "varchar" => &["character", "char", "nchar", "national"],
        "varbit" => &["bit"],
        "timestamptz" => &["timestamp"],
        "timetz" => &["time"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests;
