//! `[[auth]]`, `[[server_auth]]`, `[tls]` and `[server_tls]`: who may come in, and how the router proves itself.

use super::{Resolver, or, place_of};
use crate::files::Pem;
use crate::model::{AddressMatch, AuthMethod, AuthRule, ClientTls, ServerAuthMethod, ServerAuthRule, ServerTls, SslMode};
use crate::problem::Place;
use crate::raw::{At, List, RawAuth, RawServerAuth, RawServerTls, RawTls, Tables};
use crate::value::Text;

/// More rules than people keep in their head; each is looked at for each login.
pub(super) const RULES_MAX: usize = 1000;

impl Resolver {
    pub(super) fn auth(&mut self, raw: Option<Tables<RawAuth>>, tls: Option<&ClientTls>) -> Vec<AuthRule> {
        let Some(Tables(raw)) = raw.filter(|tables| !tables.0.is_empty()) else {
            // Whoever can log in to PostgreSQL with a password can log in here.
            let rule = |address| AuthRule { address, databases: Vec::new(), users: Vec::new(), tls: None, method: AuthMethod::ScramSha256 };
            return vec![rule(AddressMatch::Local), rule(AddressMatch::All)];
        };
        if raw.len() > RULES_MAX {
            self.problem(self.nowhere(), "auth", format!("at most {RULES_MAX} rules, not {}", raw.len()));
        }
        let mut rules: Vec<AuthRule> = Vec::new();
        for (index, raw) in raw.into_iter().take(RULES_MAX).enumerate() {
            let key = format!("auth[{}]", index + 1);
            let place = self.first([raw.place.clone()]);
            let method = match &raw.method {
                Some(method) => method.value,
                None => {
                    self.not_set(&key, "method", &place, "\"scram-sha-256\", \"md5\", \"trust\", \"cert\" or \"reject\"");
                    AuthMethod::Reject
                }
            };
            let method_place = self.first([place_of(&raw.method), Some(place.clone())]);
            let tls_place = self.first([place_of(&raw.tls), Some(place.clone())]);
            let rule = AuthRule {
                address: raw.address.map_or(AddressMatch::All, |address| address.value),
                databases: self.names(&format!("{key}.databases"), raw.databases),
                users: self.names(&format!("{key}.users"), raw.users),
                tls: raw.tls.map(|tls| tls.value),
                method,
            };
            if rule.tls == Some(true) && tls.is_none() {
                self.problem(tls_place.clone(), &format!("{key}.tls"), "is true, but there is no [tls] section, so no client can use TLS");
            }
            if rule.tls == Some(true) && rule.address == AddressMatch::Local {
                self.problem(tls_place, &format!("{key}.tls"), "is true, but Unix sockets (address = \"local\") have no TLS");
            }
            if method == AuthMethod::Cert {
                self.check_cert_rule(&key, &rule, tls, method_place);
            } else if method == AuthMethod::Trust && trusts_everyone(&rule) {
                let text = "is \"trust\" for every address: whoever reaches the port is whoever they say they are";
                self.warning(method_place, &format!("{key}.method"), text);
            }
            if rules.iter().any(|earlier| covers(earlier, &rule)) {
                self.warning(place, &key, "is never reached: an earlier rule matches all that it does");
            }
            rules.push(rule);
        }
        rules
    }

    fn check_cert_rule(&mut self, key: &str, rule: &AuthRule, tls: Option<&ClientTls>, place: Place) {
        let key = format!("{key}.method");
        if rule.address == AddressMatch::Local {
            self.problem(place, &key, "is \"cert\", but Unix sockets (address = \"local\") have no certificates");
        } else if rule.tls == Some(false) {
            self.problem(place, &key, "is \"cert\", but tls = false excludes certificates");
        } else if tls.is_none_or(|tls| tls.client_ca_file.is_none()) {
            self.problem(place, &key, "is \"cert\", which needs tls.client_ca_file to check certificates with");
        }
    }

    pub(super) fn server_auth(&mut self, raw: Option<Tables<RawServerAuth>>, tls: &ServerTls) -> Vec<ServerAuthRule> {
        let raw = raw.map(|tables| tables.0).unwrap_or_default();
        if raw.len() > RULES_MAX {
            self.problem(self.nowhere(), "server_auth", format!("at most {RULES_MAX} rules, not {}", raw.len()));
        }
        let mut rules = Vec::new();
        for (index, raw) in raw.into_iter().take(RULES_MAX).enumerate() {
            let key = format!("server_auth[{}]", index + 1);
            let place = self.first([raw.place.clone()]);
            let method = match &raw.method {
                Some(method) => method.value,
                None => {
                    self.not_set(&key, "method", &place, "\"trust\" or \"cert\"");
                    ServerAuthMethod::Trust
                }
            };
            if method == ServerAuthMethod::Cert && (tls.cert_file.is_none() || tls.mode == SslMode::Disable) {
                let place = self.first([place_of(&raw.method)]);
                let text =
                    "is \"cert\", which needs server_tls.cert_file, server_tls.key_file and a server_tls.mode other than \"disable\"";
                self.problem(place, &format!("{key}.method"), text);
            }
            rules.push(ServerAuthRule {
                databases: self.names(&format!("{key}.databases"), raw.databases),
                users: self.names(&format!("{key}.users"), raw.users),
                method,
            });
        }
        rules
    }

    /// Empty stands for all, and is written `"all"`: a list that is empty by mistake must not open a door.
    pub(super) fn names(&mut self, key: &str, given: Option<List<Text>>) -> Vec<String> {
        let Some(List { items, place }) = given else {
            return Vec::new();
        };
        if items.is_empty() && !self.problems.iter().any(|problem| problem.key == key) {
            self.problem(place, key, "is empty, so the rule matches nothing: name some, or \"all\"");
        }
        let names: Vec<String> = items.into_iter().map(|At { value: Text(name), .. }| name).collect();
        if names.iter().any(|name| name == "all") { Vec::new() } else { names }
    }

    /// Reports a key that a table must have, unless it is there and was refused already.
    pub(super) fn not_set(&mut self, table: &str, key: &str, place: &Place, expected: &str) {
        let key = format!("{table}.{key}");
        if !self.problems.iter().any(|problem| problem.key == key) {
            self.problem(place.clone(), &key, format!("is not set: expected {expected}"));
        }
    }

    pub(super) fn tls(&mut self, raw: Option<RawTls>) -> Option<ClientTls> {
        let raw = raw?;
        if raw.cert_file.is_none() && raw.key_file.is_none() {
            let broken = |problem: &crate::Problem| problem.key == "tls.cert_file" || problem.key == "tls.key_file";
            if !self.problems.iter().any(broken) {
                let place = self.first([raw.place.clone()]);
                self.problem(place, "tls", "needs cert_file and key_file");
            }
        }
        let (cert_file, key_file) = self.certificate_and_key("tls", raw.cert_file, raw.key_file);
        Some(ClientTls {
            cert_file: cert_file.unwrap_or_default(),
            key_file: key_file.unwrap_or_default(),
            client_ca_file: self.pem("tls.client_ca_file", raw.client_ca_file, Pem::Certificate),
            // Clients decide by their sslmode, as with PostgreSQL; a `tls = true` rule or this makes it a must.
            require: or(raw.require, false),
        })
    }

    pub(super) fn server_tls(&mut self, raw: RawServerTls) -> ServerTls {
        // libpq's default.
        let mode = raw.mode.as_ref().map_or(SslMode::Prefer, |mode| mode.value);
        let verifies = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
        if verifies && raw.ca_file.is_none() && !self.problems.iter().any(|problem| problem.key == "server_tls.ca_file") {
            let place = self.first([place_of(&raw.mode)]);
            self.problem(place, "server_tls.mode", "verifies the servers' certificates, which needs server_tls.ca_file");
        }
        if let (Some(ca), false) = (&raw.ca_file, verifies) {
            let text = "is not used: server_tls.mode verifies nothing unless it is \"verify-ca\" or \"verify-full\"";
            self.warning(ca.place.clone(), "server_tls.ca_file", text);
        }
        if let (Some(cert), SslMode::Disable) = (&raw.cert_file, mode) {
            self.problem(cert.place.clone(), "server_tls.cert_file", "contradicts server_tls.mode = \"disable\"");
        }
        let ca_file = self.pem("server_tls.ca_file", raw.ca_file, Pem::Certificate);
        let (cert_file, key_file) = self.certificate_and_key("server_tls", raw.cert_file, raw.key_file);
        ServerTls { mode, ca_file, cert_file, key_file }
    }
}

fn trusts_everyone(rule: &AuthRule) -> bool {
    match rule.address {
        AddressMatch::All | AddressMatch::Cidr { bits: 0, .. } => true,
        AddressMatch::Local | AddressMatch::Cidr { .. } => false,
    }
}

/// Whether the earlier rule surely matches whatever the later one does.
fn covers(earlier: &AuthRule, later: &AuthRule) -> bool {
    let names =
        |earlier: &[String], later: &[String]| earlier.is_empty() || (!later.is_empty() && later.iter().all(|name| earlier.contains(name)));
    let address =
        earlier.address == later.address || matches!((&earlier.address, &later.address), (AddressMatch::All, AddressMatch::Cidr { .. }));
    let tls = earlier.tls.is_none() || earlier.tls == later.tls;
    address && tls && names(&earlier.databases, &later.databases) && names(&earlier.users, &later.users)
}
