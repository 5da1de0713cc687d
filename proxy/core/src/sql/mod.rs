//! Statement text to verdict: where it may run, why, and what it changes in the session.
//!
//! Two readers look at a query: a scan of PostgreSQL's own tokens, and sqlparser's tree. It is a read only if neither objects.

pub mod bodies;
mod builtins;
pub mod catalog;
pub mod classify;
mod control;
pub mod fingerprint;
mod functions;
mod inside;
mod keywords;
pub mod lexer;
pub mod memo;
mod query;
pub mod reach;
pub mod shown;
mod touch;
mod tree;
mod unseen;
pub mod verdict;

pub use catalog::{Facts, FactsBuilder};
pub use classify::{Dialect, Setting, classify, setting};
pub(crate) use control::own_parameter;
pub use fingerprint::Fingerprint;
pub use memo::Memo;
pub use verdict::*;
