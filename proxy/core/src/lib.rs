//! Switchyard's decisions, without sockets, locks or clocks.
//!
//! Time and bytes come in as arguments; what must be done comes out as values. Everything here can be tested on a
//! virtual clock and fuzzed.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read the clock that they hand in"))]

pub mod balance;
pub mod causal;
#[cfg(test)]
mod causal_model;
pub mod lsn;
pub mod marks;
pub mod refusal;
pub mod route;
pub mod session;
pub mod sql;
pub mod topology;
pub mod wire;
pub mod witness;
