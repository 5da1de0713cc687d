//! What a user of the router sees, told by real clients: one cluster of three members, and the router in front of it.
//!
//! Each test is a short story. They take turns with the cluster, so none may leave anything behind that another one would stumble on:
//! tables have names of their own, roles and databases too.

mod yard;

mod balance;
mod causal;
mod config;
mod databases;
mod goodbye;
mod left_behind;
mod load;
mod login;
mod overruling;
mod page;
mod protocol;
mod routing;
mod seed;
mod sharing;
mod standing;
mod streams;
mod transactions;
mod unasked;
