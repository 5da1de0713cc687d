//! Catalog facts: what each database's own functions, views, operators and types can reach, read from the leader
//! (from a replica while no leader answers).
//!
//! One task per database that has clients ([`Databases`]) keeps one connection as the router's own role, and closes it when nobody asked for a
//! verdict for a while. Invariant: facts are replaced as a whole, and without any, a user-defined function is a write.

mod load;
mod rights;
mod watch;

pub use load::{CatalogFingerprint, LoadError, fingerprint, load, load_with_fingerprint};
pub(crate) use watch::{Database, Databases, Quiet, Source};
