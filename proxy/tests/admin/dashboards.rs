//! Every metric that the dashboard, the alerts and the documentation name is one that `/metrics` prints, and the other way round.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use switchyard::admin::{Live, exposition};

use crate::fixture;
use crate::views::parse;

/// Names of samples that `/metrics` prints when everything has happened at least once.
fn printed() -> BTreeSet<String> {
    let admin = fixture::admin(fixture::five(), Live::default());
    fixture::count(&admin.stats);
    admin.stats.latency(Duration::from_micros(700));
    let (series, _) = parse(&exposition(&admin.snapshot()));
    series.keys().map(|name| name.split('{').next().unwrap_or(name).to_owned()).collect()
}

fn file(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Words that start with `switchyard_`.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c)).filter(|name| name.starts_with("switchyard_") && !name.ends_with('_')).map(str::to_owned).collect()
}

#[test]
fn dashboards_and_alerts_name_what_exists() {
    let printed = printed();
    for path in ["dashboards/switchyard-grafana.json", "dashboards/switchyard-alerts.yml"] {
        let named = named(&file(path));
        assert!(named.len() >= 8, "{path}: {named:?}");
        let missing: Vec<_> = named.difference(&printed).collect();
        assert!(missing.is_empty(), "{path} names what isn't printed: {missing:?}");
    }
}

#[test]
fn the_dashboard_is_json_with_a_query_in_every_panel() {
    let dashboard: serde_json::Value = serde_json::from_str(&file("dashboards/switchyard-grafana.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() > 20);
    for panel in panels {
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{}", panel["title"]);
        for target in targets {
            assert!(target["expr"].as_str().is_some_and(|expr| !named(expr).is_empty()), "{}", panel["title"]);
        }
    }
}

#[test]
fn the_documentation_lists_exactly_what_is_printed() {
    // A histogram is documented by its name.
    let base = |name: &String| {
        let histogram = ["switchyard_response_seconds", "switchyard_read_wait_seconds"].into_iter().find(|base| name.starts_with(base));
        histogram.map_or_else(|| name.clone(), str::to_owned)
    };
    let printed: BTreeSet<String> = printed().iter().map(base).collect();
    let documented: BTreeSet<String> = named(&file("docs/metrics.md")).iter().map(base).collect();
    assert_eq!(printed, documented);
}
