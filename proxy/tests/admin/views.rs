//! What `/metrics`, the CSV and the API say is what was counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard::admin::{Live, exposition};
use switchyard::stats::PoolName;
use switchyard_core::lsn::Lsn;
use switchyard_core::topology::Topology;
use switchyard_core::witness::Witnessed;

use crate::fixture;
use crate::http::Server;

/// Series by name and labels, as text; and families by name, with their types. Follows the OpenMetrics text format as far as it is used.
pub(crate) fn parse(text: &str) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
    let (mut series, mut families) = (BTreeMap::new(), BTreeMap::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').expect("a type");
            assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is there twice");
        } else if line == "# EOF" {
            assert!(lines.peek().is_none(), "text after the end");
            return (series, families);
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(series.insert(name.to_owned(), value).is_none(), "{name} is there twice");
        }
    }
    panic!("no end mark");
}

fn columns(csv: &str) -> Vec<BTreeMap<&str, &str>> {
    let mut lines = csv.lines();
    let header = lines.next().expect("a header").strip_prefix("# ").expect("HAProxy's mark");
    let names: Vec<&str> = header.split(',').collect();
    let row = |line| {
        let cells: Vec<&str> = str::split(line, ',').collect();
        assert_eq!(cells.len(), names.len(), "{line}");
        names.iter().copied().zip(cells).collect()
    };
    lines.map(row).collect()
}

#[tokio::test]
async fn metrics_hold_the_counters() {
    let server = Server::start(fixture::five()).await;
    fixture::count(&server.admin.stats);
    server.admin.stats.latency(Duration::from_micros(700));
    server.admin.stats.latency(Duration::from_micros(900));
    let (status, text) = server.get("/metrics").await;
    assert_eq!(status, 200);
    let (series, families) = parse(&text);
    for (name, value) in [
        ("switchyard_ready", 1.0),
        ("switchyard_cluster_state{state=\"stable\"}", 1.0),
        ("switchyard_cluster_state{state=\"leaderless\"}", 0.0),
        ("switchyard_clients{port=\"read_write\"}", 183.0),
        ("switchyard_queries_total{port=\"read_only\"}", 7_234_567.0),
        ("switchyard_reads_total{node=\"node2\"}", 9_345_678.0),
        ("switchyard_writes_total{node=\"node1\"}", 1_204_551.0),
        ("switchyard_member_up{node=\"node5\"}", 0.0),
        ("switchyard_member_leader{node=\"node1\"}", 1.0),
        ("switchyard_member_out{node=\"node4\",reason=\"lagging\"}", 1.0),
        ("switchyard_member_lag_bytes{node=\"node3\"}", 48_200.0),
        ("switchyard_member_replay_delay_seconds{node=\"node4\"}", 14.2),
        ("switchyard_pool_waiting{node=\"node3\",database=\"shop\",user=\"web\"}", 2.0),
        ("switchyard_leader_reads_total{reason=\"in a transaction\"}", 812_005.0),
        ("switchyard_reruns_total{sqlstate=\"40001\"}", 7.0),
        ("switchyard_refusals_total{sqlstate=\"57P03\"}", 3.0),
        ("switchyard_pinned_sessions", 2.0),
        ("switchyard_response_seconds_bucket{le=\"0.000512\"}", 0.0),
        ("switchyard_response_seconds_bucket{le=\"0.001024\"}", 2.0),
        ("switchyard_response_seconds_bucket{le=\"+Inf\"}", 2.0),
        ("switchyard_response_seconds_count", 2.0),
        ("switchyard_response_seconds_sum", 0.0016),
        ("switchyard_read_wait_seconds_count", 1.0),
        ("switchyard_read_wait_seconds_sum", 0.009),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name} in\n{text}");
    }
    assert!(families.keys().all(|name| name.starts_with("switchyard_")));
    assert_eq!(families["switchyard_reads"], "counter");
}

#[test]
fn series_are_bounded_and_sums_are_kept() {
    let admin = fixture::admin(fixture::five(), Live::default());
    for number in 0..5_000 {
        let node: Arc<str> = format!("node{}", number % 5 + 1).into();
        let name = PoolName { node, database: "shop".into(), user: format!("tenant\"\\\n{number:05}").into() };
        fixture::set(&admin.stats.pool(&name).idle, 1);
        admin.stats.node(&format!("old{number}").into()).reads.add(1);
    }
    for number in 0..10_000 {
        admin.stats.rerun(&format!("{number:05}"));
    }
    let text = exposition(&admin.snapshot());
    let (series, _) = parse(&text);
    assert!(series.len() < 4_000, "{} series", series.len());
    let idle: f64 = series.iter().filter(|(name, _)| name.starts_with("switchyard_pool_idle{")).map(|(_, value)| value).sum();
    assert_eq!(idle, 5_000.0);
    let reruns: f64 = series.iter().filter(|(name, _)| name.starts_with("switchyard_reruns_total{")).map(|(_, value)| value).sum();
    assert_eq!(reruns, 10_000.0);
    assert!(serde_json::to_string(&admin.snapshot()).expect("JSON").len() < 512 * 1024);
}

#[tokio::test]
async fn csv_is_haproxys() {
    let server = Server::start(fixture::five()).await;
    fixture::count(&server.admin.stats);
    let (_, csv) = server.get("/stats;csv").await;
    let rows = columns(&csv);
    let names: Vec<_> = rows.iter().map(|row| (row["pxname"], row["svname"], row["status"])).collect();
    let expected = [
        ("read_write", "FRONTEND", "OPEN"),
        ("read_only", "FRONTEND", "OPEN"),
        ("members", "node1", "UP"),
        ("members", "node2", "UP"),
        ("members", "node3", "UP"),
        ("members", "node4", "NOLB"),
        ("members", "node5", "DOWN"),
        ("members", "BACKEND", "UP"),
    ];
    assert_eq!(names, expected);
    for (row, column, value) in [
        (0, "scur", "183"),
        (0, "stot", "5120"),
        (0, "bin", "2500000000"),
        (0, "type", "0"),
        (3, "scur", "20"),
        (3, "bout", "13083949200"),
        (3, "check_status", "L7OK"),
        (3, "type", "2"),
        (4, "qcur", "2"),
        (6, "last_chk", "error connecting to server: Connection refused (os error 111)"),
        (6, "econ", "61"),
        (7, "scur", "70"),
        (7, "type", "1"),
        (7, "act", "3"),
    ] {
        assert_eq!(rows[row][column], value, "row {row}, {column}");
    }
}

#[tokio::test]
async fn csv_quotes_what_would_break_a_row() {
    let mut topology = fixture::five();
    Arc::make_mut(&mut topology.members[4]).probe_error = Some("FATAL: no \"x\", y\nz".into());
    let server = Server::start(topology).await;
    let (_, csv) = server.get("/stats;csv").await;
    assert_eq!(csv.lines().count(), 9);
    assert!(csv.contains(",\"FATAL: no \"\"x\"\", y z\","), "{csv}");
}

#[tokio::test]
async fn the_api_tells_members_counters_and_changes() {
    let server = Server::start(fixture::five()).await;
    fixture::count(&server.admin.stats);
    let json = server.json().await;
    assert_eq!(json["cluster"]["state"], "stable");
    assert_eq!(json["cluster"]["leader"], "node1");
    assert_eq!(json["cluster"]["level"], "warn");
    assert_eq!(json["members"][3]["status"], "out");
    assert_eq!(json["members"][3]["out"], "lagging");
    assert_eq!(json["members"][3]["lag_bytes"], 73_400_320);
    assert_eq!(json["members"][0]["lsn"], "3/17000148");
    assert_eq!(json["members"][4]["check"]["ok"], false);
    assert_eq!(json["members"][1]["reads"], 9_345_678);
    assert_eq!(json["pinned"][0]["reasons"][1], "advisory lock");
    assert_eq!(json["changes"].as_array().map(Vec::len), Some(3));
    assert_eq!(json["events"][0]["text"], "node5 is unreachable: Connection refused");
}

#[tokio::test]
async fn summaries_say_what_the_cluster_does() {
    let mut expired = fixture::all_well();
    expired.leader = Some(fixture::leader(Duration::ZERO));
    let mut drained = fixture::all_well();
    Arc::make_mut(&mut drained.members[4]).out = Some(switchyard_core::topology::Out::Drained);
    let witnessed = |exact: bool| {
        let witnessed = Witnessed { sent_at: Instant::now(), lsn: Lsn(1), exact };
        Topology { witnessed: Some(witnessed), ..fixture::leaderless() }
    };
    for (topology, level, start, end) in [
        (fixture::all_well(), "ok", "Stable: node1 leads (timeline 3), ", "4 of 4 replicas serve reads"),
        (drained, "ok", "Stable: node1 leads (timeline 3), ", "3 of 3 replicas serve reads"),
        (fixture::five(), "warn", "Stable: node1 leads (timeline 3), ", "2 of 4 replicas serve reads"),
        (
            fixture::leaderless(),
            "bad",
            "No leader for 3.",
            " s: 12 writes wait, 2 of 4 replicas serve reads; those of what was written last wait",
        ),
        (witnessed(true), "bad", "No leader for 3.", "2 of 4 replicas serve reads; it is known what was written last"),
        (
            witnessed(false),
            "bad",
            "No leader for 3.",
            "2 of 4 replicas serve reads; at global they show what replicas have received, and what none has may be lost",
        ),
        // Nobody published a new snapshot, and still the leader isn't in force any more.
        (expired, "bad", "No leader for 0.0 s: 12 writes wait, ", "4 of 4 replicas serve reads; those of what was written last wait"),
        (Default::default(), "bad", "Starting", "not known yet"),
    ] {
        let admin = fixture::admin(topology, Live::default());
        fixture::set(&admin.stats.held, 12);
        let cluster = admin.snapshot().cluster;
        assert!(cluster.summary.starts_with(start) && cluster.summary.ends_with(end), "{}", cluster.summary);
        assert_eq!(cluster.level, level, "{}", cluster.summary);
    }
}
