//! Which clients may come in, and how: the configuration's `auth` and `server_auth` rules.
//!
//! As in pg_hba.conf, the first rule that matches decides, and no match means no. Without any rule everybody comes in with
//! SCRAM-SHA-256. Source: PostgreSQL `src/backend/libpq/hba.c` (`check_hba`, `check_db`, `check_role`).

use std::net::IpAddr;

use switchyard_config::{AddressMatch, AuthMethod, AuthRule, ServerAuthMethod, ServerAuthRule};
use switchyard_core::wire::startup::Replication;

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Applicant<'a> {
    pub user: &'a str,
    pub database: &'a str,
    pub replication: Replication,
    /// `None`: a Unix socket.
    pub address: Option<IpAddr>,
    pub tls: bool,
}

/// The method of the first rule that matches. `None`: no rule does.
pub fn method(rules: &[AuthRule], applicant: &Applicant<'_>) -> Option<AuthMethod> {
    if rules.is_empty() {
        return Some(AuthMethod::ScramSha256);
    }
    rules.iter().find(|rule| matches(rule, applicant)).map(|rule| rule.method)
}

/// How to log in to servers as somebody who gave no key.
pub fn server_method(rules: &[ServerAuthRule], user: &str, database: &str) -> Option<ServerAuthMethod> {
    let fits = |rule: &&ServerAuthRule| {
        names(&rule.users, |name| name == user) && names(&rule.databases, |name| name == database || name == "sameuser" && database == user)
    };
    rules.iter().find(fits).map(|rule| rule.method)
}

fn matches(rule: &AuthRule, applicant: &Applicant<'_>) -> bool {
    let address = match rule.address {
        AddressMatch::All => true,
        AddressMatch::Local => applicant.address.is_none(),
        AddressMatch::Cidr { address, bits } => applicant.address.is_some_and(|theirs| in_network(theirs, address, bits)),
    };
    address
        && rule.tls.is_none_or(|tls| tls == applicant.tls)
        && database(&rule.databases, applicant)
        && names(&rule.users, |name| name == applicant.user)
}

fn names(list: &[String], is: impl Fn(&str) -> bool) -> bool {
    list.is_empty() || list.iter().any(|name| name == "all" || is(name))
}

/// A physical walsender is in no database: only the word `replication` matches it (`check_db`).
fn database(list: &[String], applicant: &Applicant<'_>) -> bool {
    if applicant.replication == Replication::Physical {
        return list.is_empty() || list.iter().any(|name| name == "replication");
    }
    names(list, |name| name == applicant.database || name == "sameuser" && applicant.database == applicant.user)
}

/// IPv4 written as IPv6 (`::ffff:10.0.0.1`, what a dual-stack listener sees) is IPv4.
fn in_network(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (address.to_canonical(), network.to_canonical()) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            // More than 32 bits: the network was written in its IPv6 form.
            let bits = if bits > 32 { bits - 96.min(bits) } else { bits };
            same_prefix(u128::from(address.to_bits()) << 96, u128::from(network.to_bits()) << 96, bits)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => same_prefix(address.to_bits(), network.to_bits(), bits),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

fn same_prefix(one: u128, other: u128, bits: u8) -> bool {
    let differing = one ^ other;
    bits == 0 || differing.leading_zeros() >= u32::from(bits.min(128))
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
