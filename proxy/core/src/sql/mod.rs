//! Statement text to verdict: where it may run, why, and what it changes in the session.

pub mod verdict;

pub use verdict::*;
