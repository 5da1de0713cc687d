//! The composition root: builds everything from a configuration, and runs until a signal.

use std::path::PathBuf;

use switchyard_config::{Config, Loaded, Problems};

use crate::logging::Logging;

/// Where the configuration came from, for reading it again at SIGHUP.
#[derive(Clone, Debug)]
pub struct ConfigSource {
    file: Option<PathBuf>,
}

impl ConfigSource {
    /// `None`: the environment alone.
    pub fn new(file: Option<PathBuf>) -> ConfigSource {
        ConfigSource { file }
    }

    /// Reads file and environment, now.
    ///
    /// # Errors
    /// All problems at once.
    pub fn load(&self) -> Result<Loaded, Problems> {
        // Variables that aren't ours may hold any bytes, and are nobody's business here.
        let env = std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
        switchyard_config::load(self.file.as_deref(), env)
    }
}

/// Runs the router until it is told to stop and has drained.
///
/// # Errors
/// Something that it can't do without can't be had, such as an address to listen on.
pub fn run(config: Config, source: ConfigSource, logging: Logging) -> anyhow::Result<()> {
    let _ = (config, source, logging);
    anyhow::bail!("this build has no data path")
}
