use std::time::Instant;
use switchyard_tests::{Cluster, Options};

#[tokio::test(flavor = "multi_thread")]
async fn first() -> anyhow::Result<()> {
    let begin = Instant::now();
    let cluster = Cluster::start(Options::new()).await?;
    println!("{:?}", begin.elapsed());
    println!("{:?}", cluster.leader().await?.name());
    for m in cluster.members() { println!("{} {:?} {}", m.name(), m.processes()?.len(), m.dsn()); }
    Ok(())
}
