//! The command line: what may be asked of the program. Does nothing itself.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "switchyard",
    version,
    about = "Routes PostgreSQL connections to the right member of a Patroni cluster.\n\
             Port 15000 splits reads from writes, 15001 is read-only, 18080 shows what is going on.",
    after_help = "\
Example:
  SWITCHYARD_SCOPE=main SWITCHYARD_ETCD_ENDPOINTS=http://10.0.0.1:2379 switchyard run
  psql -h localhost -p 15000 -U postgres

Signals: SIGHUP reads the configuration again, SIGTERM and SIGINT drain and stop.
Every key, with its default and the reason for it: docs/configuration.md; to start from: switchyard.example.toml.",
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the router in the foreground
    #[command(after_help = "\
Without a file, SWITCHYARD_SCOPE and SWITCHYARD_ETCD_ENDPOINTS are enough. SWITCHYARD_* variables win over the file.
Exit codes: 0 after a signal, 64 for a bad configuration, 1 for anything else.")]
    Run {
        /// The configuration file
        #[arg(long, short, value_name = "FILE", env = "SWITCHYARD_CONFIG")]
        config: Option<PathBuf>,
    },
    /// Check a configuration, show everything that is wrong with it, and change nothing
    #[command(after_help = "\
SWITCHYARD_* variables count as they would for run. Certificates, keys and password files are opened too.
Exit codes: 0 if the configuration is good, 64 if not.")]
    Check {
        /// The configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Say what the router would make of a statement, and why
    #[command(after_help = "\
Without --schema-from nothing is known of a database's own functions and views. Given a running router's port instead of a server's, it says what
EXPLAIN (ROUTE) says there: the candidates with their lag and cost, and the choice.
Exit codes: 0, or 1 if the schema can't be read.")]
    Explain {
        /// Read functions, views and policies from this database, or ask this router; without TLS, such as "host=10.0.0.1 dbname=app user=postgres"
        #[arg(long, value_name = "DSN")]
        schema_from: Option<String>,
        /// The statement
        #[arg(value_name = "STATEMENT")]
        statement: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
