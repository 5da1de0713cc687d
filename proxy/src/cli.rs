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
    /// Read and write known values through the router, and report every read that is stale or goes back
    #[command(after_help = "\
Makes a table of its own, switchyard_consistency_<number>, in the database of the DSN, and drops it at the end. Connects without TLS.
At the levels global and strong the sessions tell each other what was acknowledged, as applications do; a second router is given by --other.
What is checked follows from the level: that of --level, which every session sets, or else the one that the port has.
Exit codes: 0 if every read was right, 1 if one wasn't or the check couldn't be made.")]
    CheckConsistency {
        /// The router's port, such as "host=127.0.0.1 port=15000 dbname=app user=app password=..."
        #[arg(value_name = "DSN")]
        dsn: String,
        /// Every other session uses this one, such as another router's port
        #[arg(long, value_name = "DSN")]
        other: Option<String>,
        /// Sessions at the same time
        #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
        sessions: u16,
        /// Reads by all of them together
        #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
        reads: u64,
        /// What reads must show: eventual, session, global or strong
        #[arg(long, value_name = "LEVEL", value_parser = ["eventual", "session", "global", "strong"])]
        level: Option<String>,
    },
    /// Say what the router would make of a statement, and why
    #[command(after_help = "\
Without --schema-from nothing is known of a database's own functions and views. For the candidates and the choice as a running router sees
them, ask it: psql -p 15000 -c 'EXPLAIN (ROUTE) SELECT ...'.
Exit codes: 0, or 1 if the schema can't be read.")]
    Explain {
        /// Read functions, views and policies from this database, without TLS, such as "host=10.0.0.1 dbname=app user=postgres"
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
