//! The process's log: text or JSON lines on standard error, with a filter that a reload may change.

use std::io::IsTerminal;

use anyhow::Context;
use switchyard_config::{Log, LogFormat};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// A handle on the log. Dropping it ends nothing.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Logging {
    /// Installs the process's one log.
    ///
    /// # Errors
    /// The filter can't be read (a validated configuration's can), or a log is installed already.
    pub fn init(log: &Log) -> anyhow::Result<Logging> {
        let (filter, handle) = reload::Layer::new(parse(&log.filter)?);
        let writer = || fmt::layer().with_writer(std::io::stderr);
        let lines = match log.format {
            LogFormat::Text => writer().with_ansi(std::io::stderr().is_terminal()).boxed(),
            // One flat object a line: what log collectors index without a mapping.
            LogFormat::Json => writer().json().flatten_event(true).with_span_list(false).boxed(),
        };
        tracing_subscriber::registry().with(filter).with(lines).try_init().context("the log can't be installed")?;
        Ok(Logging { filter: handle })
    }

    /// Puts another filter in force, at once and for all threads.
    ///
    /// # Errors
    /// The filter can't be read; the one before stays.
    pub fn set_filter(&self, filter: &str) -> anyhow::Result<()> {
        self.filter.reload(parse(filter)?).context("the log's filter can't be changed")
    }
}

fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder().parse(filter).with_context(|| format!("log.filter {filter:?} can't be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_and_a_new_one_takes_effect() -> anyhow::Result<()> {
        let logging = Logging::init(&Log { filter: "warn".to_owned(), format: LogFormat::Json, slow_query: None })?;
        assert!(!tracing::enabled!(tracing::Level::INFO));
        assert!(logging.set_filter("=,=").is_err());
        assert!(!tracing::enabled!(tracing::Level::INFO));
        logging.set_filter("info")?;
        assert!(tracing::enabled!(tracing::Level::INFO));
        Ok(())
    }
}
