//! Switchyard: a PostgreSQL wire-protocol router for Patroni clusters.

pub mod admin;
pub mod app;
pub mod auth;
pub mod door;
pub mod logging;
pub mod stats;
pub mod stream;
pub mod tls;
