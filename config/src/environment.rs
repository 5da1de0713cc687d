//! The few values that containers set by environment variables. They win over the file.

use std::path::PathBuf;

use crate::model::Secret;
use crate::problem::{Place, Problem, nearest};
use crate::raw::{At, List, Raw, read};
use crate::value::{Given, Kind};

/// What our variables begin with.
const PREFIX: &str = "SWITCHYARD_";

/// Every variable that is read, the key that it sets, and what it is.
pub const VARIABLES: &[(&str, &str)] = &[
    ("SWITCHYARD_SCOPE", "cluster.scope"),
    ("SWITCHYARD_NAMESPACE", "cluster.namespace"),
    ("SWITCHYARD_ETCD_ENDPOINTS", "etcd.endpoints"),
    ("SWITCHYARD_POSTGRES_USER", "postgres.user"),
    ("SWITCHYARD_POSTGRES_PASSWORD", "postgres.password"),
    ("SWITCHYARD_POSTGRES_PASSWORD_FILE", "postgres.password_file"),
    ("SWITCHYARD_LISTEN_READ_WRITE", "listen.read_write"),
    ("SWITCHYARD_LISTEN_READ_ONLY", "listen.read_only"),
    ("SWITCHYARD_LISTEN_HTTP", "listen.http"),
    ("SWITCHYARD_LOG", "log.filter"),
    ("SWITCHYARD_LOG_FORMAT", "log.format"),
    ("SWITCHYARD_ZONE", "routing.zone"),
];

/// Read by the command line, not here.
const CONFIG_FILE: &str = "SWITCHYARD_CONFIG";

/// Kubernetes sets these in every pod beside a Service that is called `switchyard`; they mean nothing to us.
const KUBERNETES: [&str; 2] = ["SWITCHYARD_SERVICE_", "SWITCHYARD_PORT"];

/// Lays the variables over what the file says.
pub(crate) fn apply(raw: &mut Raw, env: impl Iterator<Item = (String, String)>, problems: &mut Vec<Problem>, warnings: &mut Vec<Problem>) {
    let mut passwords = (None, None);
    for (name, text) in env.filter(|(name, _)| name.starts_with(PREFIX)) {
        // Compose files write `${ZONE:-}`: empty means not set.
        if text.is_empty() || name == CONFIG_FILE {
            continue;
        }
        let Some((_, key)) = VARIABLES.iter().find(|(known, _)| *known == name) else {
            if !KUBERNETES.iter().any(|prefix| name.starts_with(prefix)) {
                warnings.push(unknown(name));
            }
            continue;
        };
        let mut one = One { key, text: &text, place: Place::Variable { name: name.clone() }, problems };
        match *key {
            "cluster.scope" => one.set(&mut raw.cluster.get_or_insert_default().scope),
            "cluster.namespace" => one.set(&mut raw.cluster.get_or_insert_default().namespace),
            "etcd.endpoints" => one.set_list(&mut raw.etcd.get_or_insert_default().endpoints),
            "postgres.user" => one.set(&mut raw.postgres.get_or_insert_default().user),
            "postgres.password" => one.set(&mut passwords.0),
            "postgres.password_file" => one.set(&mut passwords.1),
            "listen.read_write" => one.set_list(&mut raw.listen.get_or_insert_default().read_write),
            "listen.read_only" => one.set_list(&mut raw.listen.get_or_insert_default().read_only),
            "listen.http" => one.set_list(&mut raw.listen.get_or_insert_default().http),
            "log.filter" => one.set(&mut raw.log.get_or_insert_default().filter),
            "log.format" => one.set(&mut raw.log.get_or_insert_default().format),
            "routing.zone" => one.set(&mut raw.routing.get_or_insert_default().zone),
            other => unreachable!("{other} is in VARIABLES, but nothing sets it"),
        }
    }
    set_passwords(raw, passwords);
}

/// A password from the environment, in either form, replaces the file's, in either form.
fn set_passwords(raw: &mut Raw, (password, password_file): (Option<At<Secret>>, Option<At<PathBuf>>)) {
    if password.is_some() || password_file.is_some() {
        let postgres = raw.postgres.get_or_insert_default();
        postgres.password = password;
        postgres.password_file = password_file;
    }
}

fn unknown(name: String) -> Problem {
    let text = match nearest(&name, VARIABLES.iter().map(|(known, _)| *known).chain([CONFIG_FILE])) {
        Some(near) => format!("unknown variable, not used; did you mean {near}?"),
        None => "unknown variable, not used".to_owned(),
    };
    Problem { place: Place::Variable { name }, key: String::new(), text }
}

/// One variable on its way to its key.
struct One<'a> {
    key: &'a str,
    text: &'a str,
    place: Place,
    problems: &'a mut Vec<Problem>,
}

impl One<'_> {
    fn set<T: Kind>(&mut self, target: &mut Option<At<T>>) {
        match read(self.key, Given::Text(self.text), self.place.clone()) {
            Ok(value) => *target = Some(value),
            Err(problem) => self.problems.push(problem),
        }
    }

    /// Comma separated.
    fn set_list<T: Kind>(&mut self, target: &mut Option<List<T>>) {
        let mut items = Vec::new();
        for part in self.text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            // `15000` is a port in the file too, without quotes.
            let given = part.parse().map_or(Given::Text(part), Given::Integer);
            match read(self.key, given, self.place.clone()) {
                Ok(value) => items.push(value),
                Err(problem) => self.problems.push(problem),
            }
        }
        *target = Some(List { items, place: self.place.clone() });
    }
}
