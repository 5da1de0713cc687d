//! Real clients have the same conversation directly with the leader and by the read/write port, and nobody can tell which was which.
//!
//! Each client runs one script (`tests/clients/`) twice, each time in a new database of the same name, and everything that it prints is
//! compared: rows, errors, notices, parameter reports, tags. What a script prints depends on nothing else, no clock, pid or OID among it.

mod pgbench;
mod programs;
mod rust;
mod tools;
mod twice;

use std::time::Duration;

use anyhow::ensure;
use switchyard_tests::{Cluster, Options, Result, Router, RouterOptions, Stories, within};

use programs::Programs;

/// A story that takes longer hangs.
const STORY: Duration = Duration::from_secs(120);

struct Yard {
    cluster: Cluster,
    router: Router,
    programs: Programs,
}

#[tokio::test(flavor = "multi_thread")]
async fn clients() -> Result {
    let programs = Programs::look()?;
    // Logical decoding for pg_recvlogical.
    let cluster = Cluster::start(Options::new().members(2).parameter("wal_level", "logical")).await?;
    // A small pool: what a session leaves behind meets the next one.
    let router = Router::start(&cluster, RouterOptions::new().set("pool.max_size", 4)).await?;
    let yard = Yard { cluster, router, programs };
    let mut stories = Stories::new();
    stories.tell("psql", timely(twice::psql(&yard))).await;
    stories.tell("pgbench", timely(pgbench::pgbench(&yard))).await;
    stories.tell("psycopg", timely(twice::python(&yard, "psycopg"))).await;
    stories.tell("asyncpg", timely(twice::python(&yard, "asyncpg"))).await;
    stories.tell("SQLAlchemy", timely(twice::python(&yard, "sqlalchemy"))).await;
    stories.tell("node-postgres", timely(twice::node(&yard))).await;
    stories.tell("pgjdbc", timely(twice::java(&yard))).await;
    stories.tell("tokio-postgres", timely(rust::rust(&yard))).await;
    stories.tell("pg_dump and pg_restore", timely(tools::dump_and_restore(&yard))).await;
    stories.tell("maintenance programs", timely(tools::maintenance(&yard))).await;
    stories.tell("pg_basebackup", timely(tools::base_backup(&yard))).await;
    stories.tell("pg_receivewal", timely(tools::receive_wal(&yard))).await;
    stories.tell("pg_recvlogical", timely(tools::receive_logical(&yard))).await;
    stories.tell("replicas took part", replicas_took_part(&yard)).await;
    stories.end(|| {
        let log = yard.router.log();
        log.get(log.len().saturating_sub(20_000)..).unwrap_or(&log).to_owned()
    })
}

async fn timely(story: impl Future<Output = Result>) -> Result {
    within(STORY, "the story", story).await
}

/// The outputs would be the same as well if all of it had gone to the leader.
async fn replicas_took_part(yard: &Yard) -> Result {
    let metrics = yard.router.get("/metrics").await?.body;
    for member in yard.cluster.replicas().await? {
        let ours = format!("node=\"{}\"", member.name());
        let served = metrics.lines().filter(|line| line.starts_with("switchyard_reads_total") && line.contains(&ours));
        let served: f64 = served.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        println!("{} served {served} statements", member.name());
        // How many it is depends on how soon the machine lets it show what the same clients have just written.
        ensure!(served > 10.0, "{} served {served} statements only\n{metrics}", member.name());
    }
    Ok(())
}
