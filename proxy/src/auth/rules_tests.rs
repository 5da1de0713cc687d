use std::net::IpAddr;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

fn rule(address: &str, databases: &[&str], users: &[&str], tls: Option<bool>, method: AuthMethod) -> AuthRule {
    let address = match address {
        "all" => AddressMatch::All,
        "local" => AddressMatch::Local,
        cidr => match cidr.split_once('/') {
            Some((address, bits)) => AddressMatch::Cidr { address: ip(address), bits: bits.parse().unwrap_or_default() },
            None => panic!("{cidr}"),
        },
    };
    let strings = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    AuthRule { address, databases: strings(databases), users: strings(users), tls, method }
}

fn applicant<'a>(user: &'a str, database: &'a str, address: Option<&str>) -> Applicant<'a> {
    Applicant { user, database, replication: Replication::No, address: address.map(ip), tls: false }
}

#[test]
fn without_rules_everybody_comes_with_scram() {
    assert_eq!(method(&[], &applicant("u", "d", None)), Some(AuthMethod::ScramSha256));
}

#[test]
fn the_first_match_decides_and_no_match_is_none() {
    let rules = [
        rule("10.0.0.0/8", &[], &["app"], None, AuthMethod::Md5),
        rule("local", &[], &[], None, AuthMethod::Trust),
        rule("::1/128", &["shop"], &["all"], None, AuthMethod::ScramSha256),
        rule("all", &["sameuser"], &[], Some(true), AuthMethod::Cert),
    ];
    let of = |user, database, address| method(&rules, &applicant(user, database, address));
    assert_eq!(of("app", "x", Some("10.1.2.3")), Some(AuthMethod::Md5));
    assert_eq!(of("app", "x", Some("::ffff:10.1.2.3")), Some(AuthMethod::Md5), "a dual-stack listener's IPv4");
    assert_eq!(of("other", "x", Some("10.1.2.3")), None);
    assert_eq!(of("app", "x", Some("11.1.2.3")), None);
    assert_eq!(of("anyone", "x", None), Some(AuthMethod::Trust));
    assert_eq!(of("anyone", "shop", Some("::1")), Some(AuthMethod::ScramSha256));
    assert_eq!(of("anyone", "shop", Some("::2")), None);
    assert_eq!(of("ann", "ann", Some("::2")), None, "without TLS");
    assert_eq!(method(&rules, &Applicant { tls: true, ..applicant("ann", "ann", Some("::2")) }), Some(AuthMethod::Cert));
}

#[test]
fn prefixes_are_exact() {
    for (address, network, bits, inside) in [
        ("192.168.1.129", "192.168.1.128", 25, true),
        ("192.168.1.127", "192.168.1.128", 25, false),
        ("1.2.3.4", "0.0.0.0", 0, true),
        ("1.2.3.4", "1.2.3.4", 32, true),
        ("1.2.3.5", "1.2.3.4", 32, false),
        ("1.2.3.4", "::", 0, false),
        ("1.2.3.4", "::ffff:1.2.3.0", 120, true),
        ("1.2.4.4", "::ffff:1.2.3.0", 120, false),
        ("2001:db8::1", "2001:db8::", 32, true),
        ("2001:db9::1", "2001:db8::", 32, false),
    ] {
        assert_eq!(in_network(ip(address), ip(network), bits), inside, "{address} in {network}/{bits}");
    }
}

#[test]
fn a_physical_walsender_needs_the_word_replication() {
    let walsender = Applicant { replication: Replication::Physical, ..applicant("rep", "", Some("::1")) };
    let all = [rule("all", &["all"], &[], None, AuthMethod::Trust)];
    assert_eq!(method(&all, &walsender), None);
    let word = [rule("all", &["replication"], &[], None, AuthMethod::ScramSha256)];
    assert_eq!(method(&word, &walsender), Some(AuthMethod::ScramSha256));
}
