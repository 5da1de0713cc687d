//! Figures in words and in rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use switchyard_tests::watch::{Fault, What};

use crate::mishap::Mishap;
use crate::stage::{Front, Measured};

pub(crate) const HEAD: &str = "\
| what happens | through | writers' errors | readers' errors | longest write gap | Patroni's own part of it | longest read gap | connections made again | acknowledged writes lost | written twice | two leaders |
|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|";

pub(crate) fn row(mishap: Mishap, front: Front, measured: &Measured) -> String {
    let figures = &measured.figures;
    format!(
        "| {} | {} | {} | {} | {:.2} s | {} | {:.2} s | {} | {} | {} | {} |",
        mishap.name(),
        front.name(),
        errors(&figures.write_faults),
        errors(&figures.read_faults),
        figures.write_gap.0.as_secs_f64(),
        patroni(measured).map_or_else(String::new, |own| format!("{:.2} s", own.as_secs_f64())),
        figures.read_gap.0.as_secs_f64(),
        figures.reconnects,
        figures.lost,
        figures.duplicates,
        figures.two_leaders.len()
    )
}

/// From the request for a switchover to a new leader that takes writes.
fn patroni(measured: &Measured) -> Option<Duration> {
    let steps = &measured.steps;
    Some(steps.out_of_recovery?.saturating_duration_since(steps.asked?))
}

pub(crate) fn tell(measured: &Measured) -> String {
    let (steps, figures) = (&measured.steps, &measured.figures);
    let mut text = figures.to_string();
    let first = steps.taken.and_then(|taken| {
        let old = figures.events.iter().filter(|event| event.at < taken).filter_map(wrote).map(|(_, timeline)| timeline).max();
        figures.events.iter().filter(|event| wrote(event).map(|(_, timeline)| timeline) > old).map(|event| event.at).min()
    });
    let mut last = None;
    for (what, at) in [
        ("asked", steps.asked),
        ("leader key gone", steps.given_up),
        ("leader key taken", steps.taken),
        ("out of recovery", steps.out_of_recovery),
        ("first direct commit", steps.committed),
        ("first client's write", first),
    ] {
        if let Some(at) = at {
            let since =
                last.map_or(String::new(), |last| format!(" (+{:.0} ms)", 1000.0 * at.saturating_duration_since(last).as_secs_f64()));
            let _ = write!(text, "\n  {what:22} {:8.3} s{since}", at.saturating_duration_since(figures.began).as_secs_f64());
            last = Some(at);
        }
    }
    if let Some(own) = patroni(measured) {
        let beyond = figures.write_gap.0.as_secs_f64() - own.as_secs_f64();
        let _ = write!(text, "\n  write gap beyond Patroni's own time {:.0} ms", 1000.0 * beyond);
    }
    text
}

fn wrote(event: &switchyard_tests::watch::Event) -> Option<(&str, u32)> {
    match &event.what {
        What::Wrote { server, timeline, .. } => Some((server, *timeline)),
        _ => None,
    }
}

/// How many, and of which SQLSTATEs; a connection that ended or couldn't be made has none.
fn errors(faults: &BTreeMap<String, Fault>) -> String {
    let all: usize = faults.values().map(|fault| fault.count).sum();
    if all == 0 {
        return "**0**".to_owned();
    }
    let mut text = format!("{all} (");
    for (index, (sqlstate, fault)) in faults.iter().enumerate() {
        let name = if sqlstate == "-" { "connection" } else { sqlstate };
        let _ = write!(text, "{}{} {name}", if index == 0 { "" } else { ", " }, fault.count);
    }
    text + ")"
}
