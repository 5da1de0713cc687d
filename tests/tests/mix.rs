//! Many clients on few server connections: the short form of `make mix`.

use std::time::Duration;

use anyhow::ensure;
use switchyard_tests::mix::Plan;
use switchyard_tests::{Cluster, Options, Result};

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_on_eight_connections() -> Result {
    let cluster = Cluster::start(Options::new().members(3)).await?;
    let plan = Plan { clients: 200, time: Duration::from_secs(25), pool_size: 8 };
    let router = plan.router(&cluster).await?;
    let report = plan.run(&cluster, &router).await.map_err(|error| error.context(cluster.logs()))?;
    let few: Vec<_> = report.acts.iter().filter(|(_, count)| **count < 5).collect();
    ensure!(few.is_empty() && report.acts.len() > 20, "hardly ever done: {few:?} of {:?}", report.acts);
    Ok(())
}
