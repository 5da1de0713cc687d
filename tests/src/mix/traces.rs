//! What may not be left when all clients have gone.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;

use super::USER;
use super::unseen::{Kept, SETTINGS};
use crate::cluster::Cluster;
use crate::router::Router;
use crate::wait::eventually;

/// For servers to see that their clients have gone.
const GONE: Duration = Duration::from_secs(30);
/// What a session changes of its server process, as the process itself sees it. All of it must be none.
const LEFT: &str = "SELECT (SELECT count(*) FROM pg_settings WHERE source = 'session' AND setting IS DISTINCT FROM reset_val), \
    (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_cursors WHERE is_holdable), \
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()), \
    (SELECT count(*) FROM pg_settings WHERE name IN ('TimeZone', 'DateStyle', 'application_name') AND setting IS DISTINCT FROM reset_val)";

/// The number of the user's connections to each member.
pub(super) async fn connections(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for member in cluster.members() {
        let count = member.ask(&format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{USER}'")).await?;
        counts.insert(member.name().to_owned(), count.parse()?);
    }
    Ok(counts)
}

/// What was acknowledged is there, once; what was never committed isn't.
pub(super) async fn rows(cluster: &Cluster, acknowledged: &BTreeMap<i32, i64>) -> anyhow::Result<()> {
    let leader = cluster.leader().await?.connect().await?;
    let rows = leader.query("SELECT client, count(*), count(*) FILTER (WHERE said <> 'kept') FROM mix GROUP BY client", &[]).await?;
    let found: BTreeMap<i32, (i64, i64)> = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    for (client, wanted) in acknowledged {
        let (count, never) = found.get(client).copied().unwrap_or_default();
        ensure!(
            count == *wanted && never == 0,
            "client {client} has {count} rows, {never} of them never committed; {wanted} were acknowledged"
        );
    }
    Ok(())
}

/// Every act leaves its session as it found it, or ends it: none of those that rest keeps a server connection.
pub(super) async fn unpinned(router: &Router) -> anyhow::Result<()> {
    eventually(GONE, "no session that rests is pinned", || async {
        let metrics = router.get("/metrics").await?.body;
        let pinned: Vec<&str> = samples(&metrics, "switchyard_pinned_sessions").filter(|line| !is_zero(line)).collect();
        ensure!(pinned.is_empty(), "{}", pinned.join("; "));
        Ok(Some(()))
    })
    .await
}

/// No setting, no lock, no cursor, no channel, no table, no connection.
pub(super) async fn none(cluster: &Cluster, router: &Router, pool_size: usize, before: BTreeMap<String, usize>) -> anyhow::Result<()> {
    eventually(GONE, "the router has no client, no session holds a connection", || async {
        let metrics = router.get("/metrics").await?.body;
        let busy = |name: &str| samples(&metrics, name).any(|line| !is_zero(line));
        Ok((!busy("switchyard_clients{") && !busy("switchyard_pool_in_use") && !busy("switchyard_pool_waiting")).then_some(()))
    })
    .await?;
    // As many at once as there are connections, so that each is looked at. Who hasn't set the custom settings that were set on a connection doesn't
    // get that one.
    let sessions = try_join_all((0..pool_size).map(|_| router.rw(USER))).await?;
    for name in SETTINGS.iter().chain(&["app.client"]) {
        let set = format!("SET {name} = ''");
        try_join_all(sessions.iter().map(|session| session.batch_execute(&set))).await?;
    }
    try_join_all(sessions.iter().map(|session| session.batch_execute("BEGIN; LOCK TABLE mix IN ACCESS SHARE MODE"))).await?;
    for session in &sessions {
        let row = session.query_one(LEFT, &[]).await.context("look for what was left")?;
        let left: [i64; 6] = std::array::from_fn(|column| row.get(column));
        ensure!(left == [0; 6], "settings, channels, held cursors, locks, temporary tables, known settings: {left:?}");
    }
    try_join_all(sessions.iter().map(|session| session.batch_execute("ROLLBACK"))).await?;
    drop(sessions);
    let sessions = try_join_all((0..pool_size).map(|_| router.rw(USER))).await?;
    for session in &sessions {
        Kept::default().check(session).await.context("at the end")?;
        let row = session.query_one("SELECT current_setting('app.client', true)", &[]).await?;
        ensure!(row.get::<_, Option<&str>>(0).is_none(), "app.client is still that of client {:?}", row.get::<_, Option<&str>>(0));
    }
    drop(sessions);
    let leader = cluster.leader().await?;
    for (what, query) in [
        ("advisory locks", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
        ("transactions", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state LIKE 'idle in transaction%'"),
        ("temporary tables", "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"),
    ] {
        eventually(GONE, &format!("no {what} are left"), || async { Ok((leader.ask(query).await? == "0").then_some(())) }).await?;
    }
    eventually(GONE, "the servers have the pools' connections, and no others", || async {
        let metrics = router.get("/metrics").await?.body;
        for (node, count) in connections(cluster).await? {
            let idle = metric(&metrics, "switchyard_pool_idle", &node);
            let added = count - before.get(&node).copied().unwrap_or_default().min(count);
            ensure!(idle == added && idle <= 2 * pool_size, "{node}: {idle} idle in the pools, {added} at the server");
        }
        Ok(Some(()))
    })
    .await
}

fn samples<'a>(metrics: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    metrics.lines().filter(move |line| line.starts_with(name))
}

fn is_zero(sample: &str) -> bool {
    sample.ends_with(" 0.0") || sample.ends_with(" 0")
}

fn metric(metrics: &str, name: &str, node: &str) -> usize {
    let label = format!("node=\"{node}\"");
    let samples = samples(metrics, name).filter(|line| line.contains(&label));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as usize
}
