//! What is known of a database's own functions, relations, operators and types.
//!
//! An immutable snapshot that sessions share; a new one has a higher generation. Names are kept as the catalog has them. Invariant: what
//! several objects of one name would give is the worst of them, since `search_path` and overloads aren't resolved here.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::verdict::Class;
use crate::marks::Touched;

/// What is known of one function, by its name in one schema (overloads with different answers are several).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionFact {
    pub schema: Box<str>,
    /// [`Class::Read`] or [`Class::Write`].
    pub class: Class,
    /// A stable word that says why, such as `volatile`, `body_writes`, `server_function`, `language`.
    pub rule: &'static str,
    /// `pg_catalog` has a function of this name and these argument types, which comes first unless `search_path` names `pg_catalog` later.
    pub hidden_by_builtin: bool,
    /// Can be called with one argument, and so as `(argument).name` too.
    pub one_argument: bool,
    /// The relations that its body reads, through any number of others.
    pub reads: Touched,
}

/// What is known of one relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationFact {
    pub schema: Box<str>,
    /// [`Class::Read`], or [`Class::Write`] for views that reach what is, unlogged, foreign and temporary tables, and sequences.
    pub class: Class,
    /// A stable word that says why, such as `view`, `unlogged`, `foreign`, `sequence`, `policy`.
    pub rule: &'static str,
    /// Itself and what is read with it: by a view, by policies, of its partitions and children.
    pub reads: Touched,
    /// What a data change of it may write: as `reads`, and everything where it runs code (triggers, rules, cascades, defaults, constraints).
    pub writes: Touched,
}

/// What can't be ruled out about an object, or about all objects of a name: what it may do or see of its session that no effect tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspicion {
    /// Why it may leave session state behind: a stable word, such as `set_config`, `language`, `body_runs_text`.
    pub leaves: Option<&'static str>,
    /// It may see whether a custom setting was ever set on the connection.
    pub sees_settings: bool,
    /// It may see which statements are prepared on the connection.
    pub sees_statements: bool,
    /// It may see the counters that the session's own statements raise.
    pub sees_counters: bool,
    /// It may set custom settings of which nobody knows the names. Only with `leaves`.
    pub sets_unknown: bool,
}

impl Suspicion {
    pub const NONE: Suspicion =
        Suspicion { leaves: None, sees_settings: false, sees_statements: false, sees_counters: false, sets_unknown: false };

    /// Leaves state, and looks at nothing.
    pub const fn leaves(rule: &'static str) -> Suspicion {
        Suspicion { leaves: Some(rule), ..Suspicion::NONE }
    }

    /// Code that nobody has read, or that runs text.
    pub const fn anything(rule: &'static str) -> Suspicion {
        Suspicion { sets_unknown: true, ..Suspicion::anything_but_settings(rule) }
    }

    /// As [`Suspicion::anything`], of what sets no custom setting whose name isn't known.
    pub const fn anything_but_settings(rule: &'static str) -> Suspicion {
        Suspicion { leaves: Some(rule), sees_settings: true, sees_statements: true, ..Suspicion::NONE }
    }

    /// Sets custom settings, and nobody knows which.
    pub const fn sets_unknown(rule: &'static str) -> Suspicion {
        Suspicion { sets_unknown: true, ..Suspicion::leaves(rule) }
    }

    pub fn is_none(self) -> bool {
        self == Suspicion::NONE
    }

    /// Adds another one's; the first reason stays. Whether anything was new.
    pub fn merge(&mut self, other: Suspicion) -> bool {
        let before = *self;
        self.leaves = self.leaves.or(other.leaves);
        self.sees_settings |= other.sees_settings;
        self.sees_statements |= other.sees_statements;
        self.sees_counters |= other.sees_counters;
        self.sets_unknown |= other.sets_unknown;
        *self != before
    }
}

/// The suspicions of a name: of reading, calling or casting to what it names, and of changing data of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameSuspicion {
    pub used: Suspicion,
    pub changed: Suspicion,
}

/// Catalog facts of one database. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    generation: u64,
    doubt: Doubt,
    known: Arc<Known>,
}

/// Whether what is known may have been changed since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doubt {
    #[default]
    None,
    /// Nobody has looked for a while.
    Unwatched,
    /// DDL has passed.
    Ddl,
}

#[derive(Clone, Debug, Default)]
struct Known {
    complete: bool,
    functions: FxHashMap<Box<str>, Vec<FunctionFact>>,
    relations: FxHashMap<Box<str>, Vec<RelationFact>>,
    operators: FxHashMap<Box<str>, (Class, &'static str)>,
    bad_key_word_operator: Option<&'static str>,
    types: FxHashMap<Box<str>, &'static str>,
    /// What types and operators read by the functions behind them, where that is anything.
    type_reads: FxHashMap<Box<str>, Touched>,
    operator_reads: FxHashMap<Box<str>, Touched>,
    /// What every statement may read without naming it.
    key_word_reads: Touched,
    bad_value: Option<&'static str>,
    outside: FxHashSet<Box<str>>,
    /// Only names that have any.
    suspicions: FxHashMap<Box<str>, NameSuspicion>,
    operator_suspicions: FxHashMap<Box<str>, Suspicion>,
    /// Of what every statement may use without naming it.
    key_word_suspicion: Suspicion,
    /// Of the event triggers.
    ddl_suspicion: Suspicion,
    value_suspicion: Suspicion,
    /// A change of some relation may set custom settings of unknown names.
    changes_set_unknown: bool,
    /// Some code may, however it is reached.
    code_sets_unknown: bool,
    custom_settings: Arc<[Arc<str>]>,
}

/// Operators that the grammar puts for key words (`gram.y`: LIKE, ILIKE, SIMILAR TO, BETWEEN, IN, CASE, NULLIF, IS DISTINCT FROM, USING).
pub(super) const KEY_WORD_OPERATORS: [&str; 11] = ["=", "<>", "<", "<=", ">", ">=", "~", "~~", "~~*", "!~~", "!~~*"];

impl Facts {
    /// Nothing known: a function that isn't built in is a write, a relation a read.
    pub fn empty() -> Facts {
        Facts::default()
    }

    /// Begins a snapshot. `generation` must differ from that of every other snapshot that shares a [`super::Memo`] with it (so each
    /// database's are numbered from one counter).
    pub fn builder(generation: u64) -> FactsBuilder {
        FactsBuilder { generation, known: Known::default() }
    }

    /// The same facts while they are in doubt, as DDL may have changed what functions, operators and views are: none of them is read from a
    /// replica until there are newer ones. `generation` as in [`Facts::builder`].
    #[must_use]
    pub fn in_doubt(&self, generation: u64) -> Facts {
        Facts { generation, doubt: Doubt::Ddl, known: Arc::clone(&self.known) }
    }

    /// As [`Facts::in_doubt`], where no DDL is known of, and nobody has looked for it.
    #[must_use]
    pub fn unwatched(&self, generation: u64) -> Facts {
        Facts { generation, doubt: Doubt::Unwatched, known: Arc::clone(&self.known) }
    }

    /// Whether DDL may have changed what is known.
    pub fn is_in_doubt(&self) -> bool {
        self.doubt != Doubt::None
    }

    /// Whether DDL has passed of which these facts don't know yet.
    pub fn has_ddl_passed(&self) -> bool {
        self.doubt == Doubt::Ddl
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether every relation of the database is here, so that an unknown one must be younger.
    pub fn is_complete(&self) -> bool {
        self.known.complete
    }

    /// All functions of a name, in every schema but `pg_catalog`.
    pub fn functions(&self, name: &str) -> &[FunctionFact] {
        self.known.functions.get(name).map_or(&[], Vec::as_slice)
    }

    /// All relations of a name, in every schema.
    pub fn relations(&self, name: &str) -> &[RelationFact] {
        self.known.relations.get(name).map_or(&[], Vec::as_slice)
    }

    /// The worst user-defined operator of a symbol.
    pub fn operator(&self, symbol: &str) -> Option<(Class, &'static str)> {
        self.known.operators.get(symbol).copied()
    }

    /// Why an operator that a key word stands for (LIKE, IN, BETWEEN, CASE, USING, DISTINCT...) can't run on a replica. Those that need a value of
    /// some own type at hand count with what has such values; one of any other kind makes every query suspect.
    pub fn bad_key_word_operator(&self) -> Option<&'static str> {
        self.known.bad_key_word_operator
    }

    /// What the use of a type reads.
    pub fn type_reads(&self, name: &str) -> &Touched {
        self.known.type_reads.get(name).unwrap_or(&Touched::Nothing)
    }

    /// What the user-defined operators of a symbol read.
    pub fn operator_reads(&self, symbol: &str) -> &Touched {
        self.known.operator_reads.get(symbol).unwrap_or(&Touched::Nothing)
    }

    /// What operators behind key words and implicit casts read.
    pub fn key_word_reads(&self) -> &Touched {
        &self.known.key_word_reads
    }

    /// Why values of some own type may bring what can't run on a replica: where a parameter's type is told by its OID, it may be that one.
    pub fn bad_value(&self) -> Option<&'static str> {
        self.known.bad_value
    }

    /// Whether a write to a relation of this name may do something that a rollback doesn't undo: by triggers, rules, foreign tables, or functions
    /// that people made in its defaults, constraints, indexes, policies and types.
    pub fn may_act_outside(&self, relation: &str) -> bool {
        self.known.outside.contains(relation)
    }

    /// What can't be ruled out about the functions, relations and types of a name, in any schema: the worst of them.
    pub fn suspicion(&self, name: &str) -> NameSuspicion {
        self.known.suspicions.get(name).copied().unwrap_or_default()
    }

    /// As [`Facts::suspicion`], about the user-defined operators of a symbol.
    pub fn operator_suspicion(&self, symbol: &str) -> Suspicion {
        self.known.operator_suspicions.get(symbol).copied().unwrap_or_default()
    }

    /// As [`Facts::suspicion`], about operators behind key words, implicit casts and comparisons for sorting.
    pub fn key_word_suspicion(&self) -> Suspicion {
        self.known.key_word_suspicion
    }

    /// As [`Facts::suspicion`], about what DDL runs: event triggers.
    pub fn ddl_suspicion(&self) -> Suspicion {
        self.known.ddl_suspicion
    }

    /// As [`Facts::suspicion`], about values of the types that people made: where a parameter's type is told by its OID, it may be any of them.
    pub fn value_suspicion(&self) -> Suspicion {
        self.known.value_suspicion
    }

    /// Whether a change of some relation may set custom settings of which nobody knows the names.
    pub(super) fn changes_set_unknown(&self) -> bool {
        self.known.changes_set_unknown
    }

    /// Whether some code of the database's own may set custom settings of which nobody knows the names: what isn't known may reach it.
    pub(super) fn code_sets_unknown(&self) -> bool {
        self.known.code_sets_unknown
    }

    /// The custom settings (`prefix.name`) that code of the database's own names, in lower case. What may set others is
    /// told by [`Suspicion::sets_unknown`].
    pub fn custom_settings(&self) -> Arc<[Arc<str>]> {
        Arc::clone(&self.known.custom_settings)
    }

    /// Why a type's casts or constraints can't run on a replica.
    pub fn bad_type(&self, name: &str) -> Option<&'static str> {
        self.known.types.get(name).copied()
    }
}

/// Collects facts, row by row.
#[derive(Clone, Debug)]
pub struct FactsBuilder {
    generation: u64,
    known: Known,
}

impl FactsBuilder {
    /// Adds a function.
    pub fn function(mut self, name: &str, fact: FunctionFact) -> FactsBuilder {
        let known = self.known.functions.entry(name.into()).or_default();
        // Overloads come one after the other, and say mostly the same.
        if known.last() != Some(&fact) {
            known.push(fact);
        }
        self
    }

    /// Adds a relation.
    pub fn relation(mut self, name: &str, fact: RelationFact) -> FactsBuilder {
        self.known.relations.entry(name.into()).or_default().push(fact);
        self
    }

    /// Adds a user-defined operator by its symbol; the worst of several stays.
    pub fn operator(mut self, symbol: &str, class: Class, rule: &'static str) -> FactsBuilder {
        let known = self.known.operators.entry(symbol.into()).or_insert((class, rule));
        if class > known.0 {
            *known = (class, rule);
        }
        if class != Class::Read && KEY_WORD_OPERATORS.contains(&symbol) {
            self.known.bad_key_word_operator = Some(rule);
        }
        self
    }

    /// Values of some own type may bring what can't run on a replica.
    pub fn bad_value(mut self, rule: &'static str) -> FactsBuilder {
        self.known.bad_value = Some(rule);
        self
    }

    /// Adds a type (a domain, or one with a cast) whose use can't run on a replica.
    pub fn bad_type(mut self, name: &str, rule: &'static str) -> FactsBuilder {
        self.known.types.insert(name.into(), rule);
        self
    }

    /// Says that a write to the relation may do more than its transaction undoes.
    pub fn acts_outside(mut self, relation: &str) -> FactsBuilder {
        self.known.outside.insert(relation.into());
        self
    }

    /// Says that what every statement may use without naming it can't run on a replica: an implicit cast, a comparison for sorting.
    pub fn bad_key_word_operator(mut self, rule: &'static str) -> FactsBuilder {
        self.known.bad_key_word_operator = Some(rule);
        self
    }

    /// Says what the use of a type reads, if that is anything.
    pub fn type_reads(mut self, name: &str, reads: &Touched) -> FactsBuilder {
        if !reads.is_nothing() {
            self.known.type_reads.entry(name.into()).or_default().merge(reads);
        }
        self
    }

    /// Says what a user-defined operator reads, if that is anything.
    pub fn operator_reads(mut self, symbol: &str, reads: &Touched) -> FactsBuilder {
        if !reads.is_nothing() {
            self.known.operator_reads.entry(symbol.into()).or_default().merge(reads);
        }
        self
    }

    /// Says what every statement may read without naming it.
    pub fn key_word_reads(mut self, reads: &Touched) -> FactsBuilder {
        self.known.key_word_reads.merge(reads);
        self
    }

    /// Adds what can't be ruled out about one more object of a name.
    pub fn suspicion(mut self, name: &str, suspicion: NameSuspicion) -> FactsBuilder {
        if suspicion != NameSuspicion::default() {
            self.known.changes_set_unknown |= suspicion.changed.sets_unknown;
            self.known.code_sets_unknown |= suspicion.changed.sets_unknown || suspicion.used.sets_unknown;
            let known = self.known.suspicions.entry(name.into()).or_default();
            known.used.merge(suspicion.used);
            known.changed.merge(suspicion.changed);
        }
        self
    }

    /// Adds what can't be ruled out about one more operator of a symbol.
    pub fn operator_suspicion(mut self, symbol: &str, suspicion: Suspicion) -> FactsBuilder {
        self.known.code_sets_unknown |= suspicion.sets_unknown;
        if !suspicion.is_none() {
            self.known.operator_suspicions.entry(symbol.into()).or_default().merge(suspicion);
        }
        self
    }

    /// Adds what can't be ruled out about what every statement may use without naming it.
    pub fn key_word_suspicion(mut self, suspicion: Suspicion) -> FactsBuilder {
        self.known.key_word_suspicion.merge(suspicion);
        self
    }

    /// Adds what can't be ruled out about event triggers.
    pub fn ddl_suspicion(mut self, suspicion: Suspicion) -> FactsBuilder {
        self.known.ddl_suspicion.merge(suspicion);
        self
    }

    /// Adds what can't be ruled out about values of one more type.
    pub fn value_suspicion(mut self, suspicion: Suspicion) -> FactsBuilder {
        self.known.code_sets_unknown |= suspicion.sets_unknown;
        self.known.value_suspicion.merge(suspicion);
        self
    }

    /// Adds the custom settings that code of the database's own names.
    pub fn custom_settings(mut self, names: impl IntoIterator<Item = Arc<str>>) -> FactsBuilder {
        self.known.custom_settings = names.into_iter().collect();
        self
    }

    /// Says that every relation of the database has been added.
    pub fn complete(mut self) -> FactsBuilder {
        self.known.complete = true;
        self
    }

    pub fn build(self) -> Facts {
        Facts { generation: self.generation, doubt: Doubt::None, known: Arc::new(self.known) }
    }
}
