//! The command line: what may be asked of the program. Does nothing itself.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

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
    /// Change the leader with no client error: hold writes, let what runs end, ask Patroni, release
    #[command(after_help = SWITCHOVER_HELP)]
    Switchover {
        /// The member that is to lead; without it Patroni chooses
        #[arg(long, value_name = "MEMBER")]
        to: Option<String>,
        /// After the time is up, go on though something still runs on the leader
        #[arg(long)]
        force: bool,
        /// How long what runs on the leader may take to end: a number of seconds, or 500ms, 5s, 1min [default: a third of failover.hold_timeout, at most 10s]
        #[arg(long, value_name = "TIME", value_parser = time)]
        timeout: Option<Duration>,
        #[command(flatten)]
        router: Running,
    },
    /// Take a replica out of rotation: no new reads, idle connections closed, running ones end
    #[command(after_help = DRAIN_HELP)]
    Drain {
        /// The member's name in Patroni
        #[arg(value_name = "MEMBER")]
        member: String,
        /// How long to wait for what runs there [default: 30s]
        #[arg(long, value_name = "TIME", value_parser = time)]
        timeout: Option<Duration>,
        #[command(flatten)]
        router: Running,
    },
    /// Put a drained member back into rotation
    #[command(after_help = "\
It gets reads as soon as it is fit: streaming, and not lagging.
Exit codes: 0 when it is not drained (any more), 1 if the router can't be asked, 64 for bad arguments.")]
    Resume {
        /// The member's name in Patroni
        #[arg(value_name = "MEMBER")]
        member: String,
        #[command(flatten)]
        router: Running,
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

/// Which running router is meant.
#[derive(Debug, Args)]
pub(crate) struct Running {
    /// The running router's HTTP port
    #[arg(long = "router", value_name = "URL", default_value = "http://127.0.0.1:18080")]
    pub(crate) url: String,
    /// A file with that router's control.token, for a router on another machine
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

const SWITCHOVER_HELP: &str = "\
What happens, and is printed line by line:
  1. New writes and transactions wait; open transactions and running statements may end, for --timeout at most.
  2. When nothing runs on the leader any more, Patroni is asked for the switchover.
  3. When the new leader is in force, what waited runs there.
If anything fails before Patroni is asked, or Patroni refuses, writes go on at once and the reason is printed.

Without --force it is given up if something still runs after --timeout: an open transaction, or a session that keeps its connection for
state such as a temporary table or LISTEN. With --force PostgreSQL ends those with its shutdown: transactions get 40001, such sessions a
FATAL 57P01, lone writes run again where their rollback is proven.

This is about the clients of one router. Clients of other routers are warned by Patroni's own key, a quarter of a second before the leader
goes: for them it is a switchover by patronictl. Replication connections (pg_basebackup, logical decoding) are not waited for.

Exit codes: 0 when the new leader is in force, 1 if not, 64 for bad arguments.";

const DRAIN_HELP: &str = "\
The state is this router's own: Patroni and other routers don't know of it, and a restart forgets it. The page shows it, and so do
/api/v1/cluster and the metric switchyard_member_out{reason=\"drained\"}. The leader can't be drained; a drained member that becomes the leader
serves writes all the same. Reads find other replicas, or the leader where none is left.

Exit codes: 0 when nothing of this router's runs there any more, 1 if something still does (it stays drained) or the member can't be
drained, 64 for bad arguments.";

/// A time as the configuration writes it; a plain number counts seconds here, as people expect on a command line.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a time such as 10, 500ms, 5s or 1min, found {text:?}");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::CommandFactory;

    use super::{Cli, time};

    #[test]
    fn times_are_seconds_unless_they_say_otherwise() {
        for (text, ms) in [("10", 10_000), ("500ms", 500), ("1.5s", 1_500), ("2min", 120_000), ("1h", 3_600_000), ("0", 0)] {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1", "5 years", "1e400", "99999999999999999999999h", "1..2"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
