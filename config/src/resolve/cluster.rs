//! `[cluster]`, `[etcd]` and `[postgres]`: where the truth about the cluster comes from.

use std::time::Duration;

use super::{Resolver, place_of, text, text_or};
use crate::files::Pem;
use crate::model::{Cluster, Etcd, Postgres, StaticMember};
use crate::raw::{At, RawCluster, RawEtcd, RawMember, RawPostgres};
use crate::value::Text;

/// Patroni's default.
const NAMESPACE: &str = "/service";
/// The cluster's name on pages and in metrics where its members are given by hand and no scope is.
const STATIC_SCOPE: &str = "static";
/// PostgreSQL's port.
const MEMBER_PORT: u16 = 5432;
/// A Patroni cluster has a handful of members; each costs a probe.
const MEMBERS_MAX: usize = 100;

/// A local network answers in a millisecond; what takes longer than this is down, and another endpoint is tried.
const ETCD_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// etcd's own election takes 1 to 2 seconds, within which requests wait; half of Patroni's `retry_timeout` (10 s).
const ETCD_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer would outlast the lease whose end the router must notice.
const ETCD_TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// A role of the router's own: its privileges are then visible in one place.
const USER: &str = "switchyard";
/// Exists in every cluster unless somebody dropped it.
const DATABASE: &str = "postgres";
/// A SYN that is lost is sent again after 1 and 3 seconds: this allows for both.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Resolver {
    pub(super) fn cluster(&mut self, raw: RawCluster, etcd: Option<&RawEtcd>) -> Cluster {
        let endpoints = etcd.and_then(|etcd| etcd.endpoints.as_ref());
        let has_endpoints = endpoints.is_some_and(|list| !list.items.is_empty());
        let has_members = raw.member.as_ref().is_some_and(|members| !members.0.is_empty());
        match (endpoints, has_members) {
            (Some(list), true) if has_endpoints => {
                let text = "contradicts [[cluster.member]]: members come from etcd or are given by hand, not both";
                self.problem(list.place.clone(), "etcd.endpoints", text);
            }
            // Endpoints that are there but can't be read have been reported already.
            (None, false) if !self.problems.iter().any(|problem| problem.key == "etcd.endpoints") => self.no_members(),
            (Some(list), false) if list.items.is_empty() && !self.problems.iter().any(|problem| problem.key == "etcd.endpoints") => {
                self.problem(list.place.clone(), "etcd.endpoints", "is empty, and no [[cluster.member]] is given either");
            }
            _ => {}
        }
        let scope = match &raw.scope {
            Some(At { value: Text(scope), place }) => {
                if scope.contains('/') || scope.chars().any(char::is_whitespace) {
                    let text = format!("expected a name without slashes and spaces, as in patroni.yml, found {scope:?}");
                    self.problem(place.clone(), "cluster.scope", text);
                }
                scope.clone()
            }
            None if has_members => STATIC_SCOPE.to_owned(),
            None => {
                if !self.problems.iter().any(|problem| problem.key == "cluster.scope") {
                    let text = "is not set: give the cluster's name (scope in patroni.yml) here or in SWITCHYARD_SCOPE";
                    self.problem(self.nowhere(), "cluster.scope", text);
                }
                String::new()
            }
        };
        let members = raw.member.map(|members| members.0).unwrap_or_default();
        Cluster { scope, namespace: namespace(raw.namespace), static_members: self.static_members(members) }
    }

    fn no_members(&mut self) {
        let text =
            "is not set: give etcd's addresses here or in SWITCHYARD_ETCD_ENDPOINTS (or members by hand, each under [[cluster.member]])";
        self.problem(self.nowhere(), "etcd.endpoints", text);
    }

    fn static_members(&mut self, raw: Vec<RawMember>) -> Vec<StaticMember> {
        if raw.len() > MEMBERS_MAX {
            self.problem(self.nowhere(), "cluster.member", format!("at most {MEMBERS_MAX} members, not {}", raw.len()));
        }
        let mut members: Vec<StaticMember> = Vec::new();
        for (index, member) in raw.into_iter().take(MEMBERS_MAX).enumerate() {
            let key = format!("cluster.member[{}]", index + 1);
            let place = self.first([member.place.clone()]);
            let host = match &member.host {
                Some(At { value: Text(host), .. }) => host.clone(),
                None => {
                    if !self.problems.iter().any(|problem| problem.key == format!("{key}.host")) {
                        self.problem(place.clone(), &format!("{key}.host"), "is not set");
                    }
                    continue;
                }
            };
            let port = member.port.as_ref().map_or(MEMBER_PORT, |port| port.value);
            let name_place = self.first([place_of(&member.name), Some(place.clone())]);
            let name = text(member.name).unwrap_or_else(|| format!("{host}:{port}"));
            if members.iter().any(|other| other.name == name) {
                self.problem(name_place, &format!("{key}.name"), format!("{name:?} is the name of another member"));
            } else if members.iter().any(|other| other.host == host && other.port == port) {
                self.problem(place, &key, format!("{host}:{port} is the address of another member"));
            }
            members.push(StaticMember { name, host, port });
        }
        members
    }

    pub(super) fn etcd(&mut self, raw: RawEtcd) -> Etcd {
        let wants_tls = raw.ca_file.is_some() || raw.cert_file.is_some();
        let tls_key = if raw.ca_file.is_some() { "etcd.ca_file" } else { "etcd.cert_file" };
        let tls_place = self.first([place_of(&raw.ca_file), place_of(&raw.cert_file)]);
        let mut endpoints = Vec::new();
        for At { value: endpoint, place } in raw.endpoints.map(|list| list.items).unwrap_or_default() {
            let tls = endpoint.tls.unwrap_or(wants_tls);
            let url = format!("{}://{}", if tls { "https" } else { "http" }, endpoint.authority);
            if wants_tls && !tls {
                self.problem(tls_place.clone(), tls_key, format!("contradicts the endpoint {url}: TLS needs https"));
            }
            if endpoints.contains(&url) {
                self.problem(place, "etcd.endpoints", format!("{url} is given twice"));
            } else {
                endpoints.push(url);
            }
        }
        let username_place = place_of(&raw.username);
        let password_place = place_of(&raw.password).or(place_of(&raw.password_file));
        match (username_place, password_place) {
            (Some(place), None) => self.problem(place, "etcd.username", "is given without etcd.password or etcd.password_file"),
            (None, Some(place)) => self.problem(place, "etcd.password", "is given without etcd.username"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        let password = self.password("etcd", raw.password, raw.password_file);
        let ca_file = self.pem("etcd.ca_file", raw.ca_file, Pem::Certificate);
        let (cert_file, key_file) = self.certificate_and_key("etcd", raw.cert_file, raw.key_file);
        let timeouts = Duration::from_millis(10)..=ETCD_TIMEOUT_MAX;
        Etcd {
            endpoints,
            username: text(raw.username),
            password,
            ca_file,
            cert_file,
            key_file,
            connect_timeout: self.time("etcd.connect_timeout", &raw.connect_timeout, ETCD_CONNECT_TIMEOUT, timeouts.clone()),
            request_timeout: self.time("etcd.request_timeout", &raw.request_timeout, ETCD_REQUEST_TIMEOUT, timeouts),
        }
    }

    pub(super) fn postgres(&mut self, raw: RawPostgres) -> Postgres {
        if let Some(At { value: Text(function), place }) = &raw.auth_function
            && !is_function_name(function)
        {
            let text = format!("expected a function's name such as \"switchyard.login_facts\", found {function:?}");
            self.problem(place.clone(), "postgres.auth_function", text);
        }
        let timeouts = Duration::from_millis(10)..=Duration::from_secs(60);
        Postgres {
            user: text_or(raw.user, USER),
            password: self.password("postgres", raw.password, raw.password_file),
            database: text_or(raw.database, DATABASE),
            auth_function: text(raw.auth_function),
            connect_timeout: self.time("postgres.connect_timeout", &raw.connect_timeout, CONNECT_TIMEOUT, timeouts),
        }
    }
}

/// As Patroni reads it: with one leading slash, none at the end, and no doubled ones. The root is empty.
fn namespace(given: Option<At<Text>>) -> String {
    let given = text_or(given, NAMESPACE);
    given.split('/').filter(|part| !part.is_empty()).fold(String::new(), |namespace, part| namespace + "/" + part)
}

/// The name becomes part of a query's text, so only what needs no quotes is allowed: `name` or `schema.name`.
fn is_function_name(text: &str) -> bool {
    let identifier = |part: &str| {
        part.len() < 64
            && part.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.split('.').count() <= 2 && text.split('.').all(identifier)
}
