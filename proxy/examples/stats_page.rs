//! The stats page with made-up input, to work on its looks: `cargo run --example stats_page -- [ADDRESS] [well|trouble|leaderless|starting|long]`.

#[path = "../tests/admin/fixture.rs"]
#[allow(dead_code)]
mod fixture;

use std::sync::Arc;
use std::time::Duration;

use switchyard::admin::{Live, serve};
use switchyard_core::topology::Topology;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    let scenario = arguments.next().unwrap_or_else(|| "trouble".into());
    let topology = match scenario.as_str() {
        "well" => fixture::all_well(),
        "leaderless" => fixture::leaderless(),
        "starting" => Topology::default(),
        _ => fixture::five(),
    };
    let admin = fixture::admin(topology, Live { draining: false, verdicts_cached: 812 });
    if scenario != "starting" {
        fixture::count(&admin.stats);
    }
    if scenario == "leaderless" {
        fixture::set(&admin.stats.held, 12);
    }
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("http://{}/stats", listener.local_addr()?);
    let work = admin.clone();
    let quiet = scenario == "leaderless" || scenario == "starting";
    tokio::spawn(async move {
        let nodes = ["node1", "node2", "node3"].map(|name| work.stats.node(&name.into()));
        for tick in 0u64.. {
            let swing = 100 + (tick / 7 % 40) * 2 + tick % 9 * 3;
            nodes[1].reads.add(swing);
            nodes[2].reads.add(swing + tick % 5);
            if !quiet {
                nodes[0].reads.add(11);
                nodes[0].writes.add(34 + tick % 8);
            }
            work.stats.read_write.queries.add(2 * swing + 45);
            work.stats.latency(Duration::from_micros(180 + tick % 50 * 31));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    serve(listener, Arc::clone(&admin), tokio::signal::ctrl_c()).await;
    Ok(())
}
