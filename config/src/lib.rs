//! Switchyard's configuration: one TOML file and a few environment variables become a validated [`Config`].
//!
//! `raw` mirrors the file (unknown keys refused), `environment` lays the variables over it, `resolve` fills in defaults and checks across
//! keys, `reload` says what a reload may change. This crate reads no network and no clock; of the disk it reads the configuration, the
//! files that it names, and nothing else.

mod environment;
mod files;
mod model;
mod problem;
mod raw;
mod reload;
mod resolve;
mod value;

use std::path::Path;
use std::sync::Arc;

pub use environment::VARIABLES;
pub use model::*;
pub use problem::{Place, Problem, Problems};
pub use raw::keys;
pub use reload::{Unchangeable, reload};

/// A configuration that can be used, and what is doubtful about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// In the order of the file.
    pub warnings: Vec<Problem>,
}

/// A configuration file is read as a whole; one of this size is a mistake (a data file, a device).
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Reads the file, if there is one, and the `SWITCHYARD_*` variables among `env`, which win over it.
///
/// Files that the configuration names (passwords, certificates, keys) are opened too, so that what can't be read is known now. Paths in
/// the file are relative to its folder, paths in variables to the working directory.
///
/// # Errors
/// All problems at once.
pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Loaded, Problems> {
    match file {
        None => resolve_all(None, None, env),
        Some(path) => {
            let name: Arc<str> = path.to_string_lossy().into();
            match files::read_text(path, FILE_MAX_BYTES) {
                Ok(text) => resolve_all(Some((&name, &text)), path.parent(), env),
                Err(text) => Err(Problems::new(vec![Problem { place: Place::WholeFile { file: name }, key: String::new(), text }])),
            }
        }
    }
}

/// As [`load`], with the file's name and text given. `folder` is what paths in it are relative to.
fn resolve_all(
    file: Option<(&Arc<str>, &str)>,
    folder: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, Problems> {
    let parsed = file.map(|(name, text)| raw::parse(name, text));
    let (mut raw, mut problems, complete) = match parsed {
        Some(parsed) => (parsed.raw, parsed.problems, parsed.complete),
        None => (raw::Raw::default(), Vec::new(), true),
    };
    let mut warnings = Vec::new();
    environment::apply(&mut raw, env, &mut problems, &mut warnings);
    if !complete {
        return Err(Problems::new(problems));
    }
    let mut resolver = resolve::Resolver::new(file.map(|(name, _)| name.clone()), folder, problems, warnings);
    let config = resolver.config(raw);
    let (problems, mut warnings) = resolver.finish();
    if problems.is_empty() {
        warnings.sort();
        Ok(Loaded { config, warnings })
    } else {
        Err(Problems::new(problems))
    }
}

#[cfg(test)]
mod tests;
