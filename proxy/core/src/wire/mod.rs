//! The wire format.

pub mod startup;
