//! Switchyard: a PostgreSQL wire-protocol router for Patroni clusters.

pub mod admin;
pub mod app;
pub mod auth;
mod client;
mod clients;
pub mod consistency;
mod context;
pub mod control;
pub mod decisions;
mod departures;
pub mod door;
pub mod facts;
mod listener;
pub mod logging;
mod pool;
mod raw;
mod rules;
mod server;
pub mod stats;
pub mod stream;
pub mod tls;
