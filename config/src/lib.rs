//! Switchyard's configuration: one TOML file and a few environment variables become a validated [`Config`].
//!
//! `raw` mirrors the file (unknown keys refused), `resolve` fills in defaults and checks across keys, `reload` says what a reload may change.
//! This crate reads no network and no clock.

mod model;

pub use model::*;
