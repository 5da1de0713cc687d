//! Switchyard: a PostgreSQL wire-protocol router for Patroni clusters.

pub mod admin;
pub mod auth;
pub mod door;
pub mod stats;
pub mod stream;
pub mod tls;
