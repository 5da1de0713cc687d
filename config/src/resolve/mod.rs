//! From what was written to what holds: defaults with their reasons, limits, and checks across keys.
//!
//! Invariant: no check ends the reading; every problem found is reported, and a section with a problem still yields a value, so that the
//! checks behind it run.

mod access;
mod cluster;
mod control;
mod listen;
mod numbers;
mod rules;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::files::{self, Pem};
use crate::model::{Config, Secret};
use crate::problem::{Place, Problem};
use crate::raw::{At, Raw};
use crate::value::{Size, Text, TimeOrNone};

/// No time in a configuration is longer: a year is as good as for ever, and adding it to any clock can't overflow.
const LONGEST: Duration = Duration::from_secs(365 * 86400);

/// Collects problems while it turns raw sections into valid ones.
pub(crate) struct Resolver {
    file: Option<Arc<str>>,
    folder: Option<PathBuf>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Resolver {
    pub(crate) fn new(file: Option<Arc<str>>, folder: Option<&Path>, problems: Vec<Problem>, warnings: Vec<Problem>) -> Resolver {
        Resolver { file, folder: folder.map(Path::to_owned), problems, warnings }
    }

    /// Problems and warnings. With any problem, the configuration that was made must not be used.
    pub(crate) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        (self.problems, self.warnings)
    }

    pub(crate) fn config(&mut self, raw: Raw) -> Config {
        let server_tls = self.server_tls(raw.server_tls.unwrap_or_default());
        let tls = self.tls(raw.tls);
        Config {
            workers: self.workers(raw.workers),
            cluster: self.cluster(raw.cluster.unwrap_or_default(), raw.etcd.as_ref()),
            etcd: self.etcd(raw.etcd.unwrap_or_default()),
            listen: self.listen(raw.listen.unwrap_or_default()),
            postgres: self.postgres(raw.postgres.unwrap_or_default()),
            auth: self.auth(raw.auth, tls.as_ref()),
            server_auth: self.server_auth(raw.server_auth, &server_tls),
            tls,
            server_tls,
            pool: self.pool(raw.pool.unwrap_or_default()),
            routing: self.routing(raw.routing.unwrap_or_default()),
            rules: self.rules(raw.rule),
            failover: self.failover(raw.failover.unwrap_or_default()),
            patroni: self.patroni(raw.patroni.unwrap_or_default()),
            control: self.control(raw.control.unwrap_or_default()),
            health: self.health(raw.health.unwrap_or_default()),
            limits: self.limits(raw.limits.unwrap_or_default()),
            log: self.log(raw.log.unwrap_or_default()),
        }
    }

    fn problem(&mut self, place: Place, key: &str, text: impl Into<String>) {
        self.problems.push(Problem { place, key: key.to_owned(), text: text.into() });
    }

    fn warning(&mut self, place: Place, key: &str, text: impl Into<String>) {
        self.warnings.push(Problem { place, key: key.to_owned(), text: text.into() });
    }

    /// The place of something that isn't there.
    fn nowhere(&self) -> Place {
        match &self.file {
            Some(file) => Place::WholeFile { file: file.clone() },
            None => Place::Nowhere,
        }
    }

    /// The first of the places that is known: of two values that contradict one another, at least one was written.
    fn first<const N: usize>(&self, places: [Option<Place>; N]) -> Place {
        places.into_iter().flatten().next().unwrap_or_else(|| self.nowhere())
    }

    fn number(&mut self, key: &str, given: &Option<At<usize>>, default: usize, range: RangeInclusive<usize>) -> usize {
        let Some(At { value, place }) = given else {
            return default;
        };
        if !range.contains(value) {
            let text = format!("must be from {} to {}, not {value}", range.start(), range.end());
            self.problem(place.clone(), key, text);
            return default;
        }
        *value
    }

    fn size(&mut self, key: &str, given: &Option<At<Size>>, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(At { value: Size(bytes), place }) = given else {
            return default;
        };
        if !range.contains(bytes) {
            let text = format!("must be from {} to {} bytes, not {bytes}", range.start(), range.end());
            self.problem(place.clone(), key, text);
            return default;
        }
        *bytes
    }

    fn time(&mut self, key: &str, given: &Option<At<Duration>>, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        let Some(At { value, place }) = given else {
            return default;
        };
        if !range.contains(value) {
            let text = format!("must be from {} to {}, not {}", show(*range.start()), show(*range.end()), show(*value));
            self.problem(place.clone(), key, text);
            return default;
        }
        *value
    }

    fn time_or_none(&mut self, key: &str, given: Option<At<TimeOrNone>>, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.time_or(key, given, None, range)
    }

    fn time_or(
        &mut self,
        key: &str,
        given: Option<At<TimeOrNone>>,
        default: Option<Duration>,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let Some(At { value: TimeOrNone(time), place }) = given else { return default };
        Some(self.time(key, &Some(At { value: time?, place }), *range.start(), range))
    }

    /// A path from the file is relative to the file's folder, one from a variable to the working directory.
    fn path(&self, given: &At<PathBuf>) -> PathBuf {
        match (&given.place, &self.folder) {
            (Place::File { .. }, Some(folder)) => folder.join(&given.value),
            _ => given.value.clone(),
        }
    }

    /// A certificate or key file, which must be there now: found missing at the first handshake, it would be too late.
    fn pem(&mut self, key: &str, given: Option<At<PathBuf>>, kind: Pem) -> Option<PathBuf> {
        let given = given?;
        let path = self.path(&given);
        if let Err(error) = files::check_pem(&path, kind) {
            self.problem(given.place, key, format!("{}: {error}", path.display()));
        }
        Some(path)
    }

    /// A certificate and its key are of use only together.
    fn certificate_and_key(
        &mut self,
        section: &str,
        cert: Option<At<PathBuf>>,
        key: Option<At<PathBuf>>,
    ) -> (Option<PathBuf>, Option<PathBuf>) {
        match (&cert, &key) {
            (Some(cert), None) => {
                let text = format!("is given without its key: set {section}.key_file too");
                self.problem(cert.place.clone(), &format!("{section}.cert_file"), text);
            }
            (None, Some(key)) => {
                let text = format!("is given without its certificate: set {section}.cert_file too");
                self.problem(key.place.clone(), &format!("{section}.key_file"), text);
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        let cert = self.pem(&format!("{section}.cert_file"), cert, Pem::Certificate);
        let key = self.pem(&format!("{section}.key_file"), key, Pem::PrivateKey);
        (cert, key)
    }

    fn password(&mut self, section: &str, given: Option<At<Secret>>, file: Option<At<PathBuf>>) -> Option<Secret> {
        self.secret(&format!("{section}.password"), given, file)
    }

    /// A secret is given itself or as a file, not as both.
    fn secret(&mut self, given_key: &str, given: Option<At<Secret>>, file: Option<At<PathBuf>>) -> Option<Secret> {
        let key = format!("{given_key}_file");
        if let (Some(_), Some(file)) = (&given, &file) {
            self.problem(file.place.clone(), &key, format!("contradicts {given_key}: give one of them"));
        }
        let from_file = file.and_then(|file| {
            let path = self.path(&file);
            match files::read_password(&path) {
                Ok(password) => Some(Secret::new(password)),
                Err(error) => {
                    self.problem(file.place, &key, format!("{}: {error}", path.display()));
                    None
                }
            }
        });
        given.map(|given| given.value).or(from_file)
    }
}

/// A time as this crate would read it.
fn show(time: Duration) -> String {
    const UNITS: [(u128, &str); 6] =
        [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1_000, "ms"), (1, "us")];
    let us = time.as_micros();
    match UNITS.iter().find(|(unit, _)| us >= *unit && us.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", us / unit),
        None => "0".to_owned(),
    }
}

fn place_of<T>(given: &Option<At<T>>) -> Option<Place> {
    given.as_ref().map(|given| given.place.clone())
}

fn text(given: Option<At<Text>>) -> Option<String> {
    given.map(|given| given.value.0)
}

fn text_or(given: Option<At<Text>>, default: &str) -> String {
    text(given).unwrap_or_else(|| default.to_owned())
}

fn or<T>(given: Option<At<T>>, default: T) -> T {
    given.map_or(default, |given| given.value)
}
