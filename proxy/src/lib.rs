//! Switchyard: a PostgreSQL wire-protocol router for Patroni clusters.

pub mod admin;
pub mod auth;
pub mod stats;
