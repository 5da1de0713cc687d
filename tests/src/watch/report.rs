//! Events → figures.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use super::{Event, What};

/// After these, PostgreSQL and the router say, nothing of the statement or transaction has taken effect.
const SURELY_NOT_WRITTEN: [&str; 6] = ["40001", "40P01", "25P02", "57P03", "25006", "53300"];

/// Of signs of two leaders, in words.
const TOLD: usize = 5;

/// Errors of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub count: usize,
    /// The first of them.
    pub text: String,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Figures {
    pub writers: usize,
    pub began: Instant,
    pub ended: Instant,
    pub events: Vec<Event>,
    pub writes: usize,
    pub reads: usize,
    pub reconnects: usize,
    /// By SQLSTATE; `-` is a connection that ended, or couldn't be made, without one.
    pub write_faults: BTreeMap<String, Fault>,
    pub read_faults: BTreeMap<String, Fault>,
    /// The longest time in which no write, or no read, was answered, and when it began.
    pub write_gap: (Duration, Instant),
    pub read_gap: (Duration, Instant),
    /// Acknowledged, and not there.
    pub lost: usize,
    /// There more than once.
    pub duplicates: usize,
    /// There, though the error said that nothing was written.
    pub contradicted: usize,
    /// There, though the error left it open.
    pub unknown_written: usize,
    /// What can't be with one leader at a time, in words: two servers wrote on one timeline, or a write was sent to a timeline after a newer
    /// one had acknowledged another.
    pub two_leaders: Vec<String>,
}

impl Figures {
    /// `leaders`: the timelines that rows in the table were written on, and by whom.
    pub(super) fn new(
        writers: usize,
        began: Instant,
        ended: Instant,
        events: Vec<Event>,
        there: &HashMap<(i32, i64), i64>,
        leaders: BTreeSet<(u32, String)>,
    ) -> Figures {
        let is_there = |client: usize, number: i64| i32::try_from(client).is_ok_and(|client| there.contains_key(&(client, number)));
        let mut figures = Figures {
            writers,
            began,
            ended,
            writes: 0,
            reads: 0,
            reconnects: 0,
            write_faults: BTreeMap::new(),
            read_faults: BTreeMap::new(),
            write_gap: gap(began, ended, events.iter().filter(|event| matches!(event.what, What::Wrote { .. }))),
            read_gap: gap(began, ended, events.iter().filter(|event| matches!(event.what, What::Read { .. }))),
            lost: 0,
            duplicates: there.values().filter(|count| **count > 1).count(),
            contradicted: 0,
            unknown_written: 0,
            two_leaders: two_leaders(&events, leaders),
            events: Vec::new(),
        };
        for event in &events {
            match &event.what {
                What::Wrote { number, .. } => {
                    figures.writes += 1;
                    figures.lost += usize::from(!is_there(event.client, *number));
                }
                What::Read { .. } => figures.reads += 1,
                What::Reconnected => figures.reconnects += 1,
                What::Failed { number, sqlstate, text } => {
                    if number.is_some_and(|number| is_there(event.client, number)) {
                        let surely_not = sqlstate.as_deref().is_some_and(|sqlstate| SURELY_NOT_WRITTEN.contains(&sqlstate));
                        *(if surely_not { &mut figures.contradicted } else { &mut figures.unknown_written }) += 1;
                    }
                    let faults = if event.client < writers { &mut figures.write_faults } else { &mut figures.read_faults };
                    let key = sqlstate.clone().unwrap_or_else(|| "-".to_owned());
                    faults.entry(key).or_insert_with(|| Fault { count: 0, text: text.clone() }).count += 1;
                }
            }
        }
        figures.events = events;
        figures
    }

    /// No error, nothing lost, nothing twice.
    pub fn flawless(&self) -> bool {
        self.write_faults.is_empty()
            && self.read_faults.is_empty()
            && self.lost + self.duplicates + self.contradicted + self.two_leaders.len() == 0
    }
}

/// See [`Figures::two_leaders`].
fn two_leaders(events: &[Event], mut leaders: BTreeSet<(u32, String)>) -> Vec<String> {
    let acknowledged: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.what {
            What::Wrote { number, server, timeline } if *timeline > 0 => Some((event, *number, server, *timeline)),
            _ => None,
        })
        .collect();
    // Acknowledgements come in their order: the newest timeline up to each.
    let mut newest: Vec<(Instant, u32)> = Vec::new();
    for (event, _, server, timeline) in &acknowledged {
        leaders.insert((*timeline, (*server).clone()));
        if newest.last().is_none_or(|(_, last)| last < timeline) {
            newest.push((event.at, *timeline));
        }
    }
    leaders.retain(|(timeline, _)| *timeline > 0);
    let mut signs = Vec::new();
    for (one, other) in leaders.iter().zip(leaders.iter().skip(1)).filter(|(one, other)| one.0 == other.0) {
        signs.push(format!("on timeline {} wrote {} and {}", one.0, one.1, other.1));
    }
    for (event, number, server, timeline) in acknowledged {
        let sent = event.at - event.took;
        let before = newest.iter().take_while(|(at, _)| *at < sent).last();
        if let Some((_, newer)) = before.filter(|(_, newer)| *newer > timeline) {
            signs.push(format!("{server} wrote number {number} of client {} on timeline {timeline}, after {newer}", event.client));
        }
    }
    signs
}

/// The longest time between two of them, the begin and the end counted as one each.
fn gap<'a>(began: Instant, ended: Instant, events: impl Iterator<Item = &'a Event>) -> (Duration, Instant) {
    let mut longest = (Duration::ZERO, began);
    let mut last = began;
    for at in events.map(|event| event.at).filter(|at| *at <= ended).chain([ended]) {
        let gap = at.saturating_duration_since(last);
        if gap > longest.0 {
            longest = (gap, last);
        }
        last = at;
    }
    longest
}

impl fmt::Display for Figures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.ended.saturating_duration_since(self.began).as_secs_f64();
        let at = |instant: Instant| instant.saturating_duration_since(self.began).as_secs_f64();
        writeln!(out, "{seconds:.1} s: {} writes and {} reads were answered", self.writes, self.reads)?;
        for (what, gap) in [("write", self.write_gap), ("read", self.read_gap)] {
            writeln!(out, "  longest time without a {what}   {:.0} ms, from second {:.1}", gap.0.as_secs_f64() * 1_000.0, at(gap.1))?;
        }
        for (who, faults) in [("writers", &self.write_faults), ("readers", &self.read_faults)] {
            let all: usize = faults.values().map(|fault| fault.count).sum();
            writeln!(out, "  {who}' errors   {all}")?;
            for (sqlstate, fault) in faults {
                writeln!(out, "    {sqlstate:5} {:6} x  {}", fault.count, fault.text)?;
            }
        }
        writeln!(out, "  connections made again   {}", self.reconnects)?;
        writeln!(out, "  acknowledged writes lost   {}", self.lost)?;
        writeln!(out, "  writes that are there twice   {}", self.duplicates)?;
        writeln!(out, "  writes that are there though the error said that they aren't   {}", self.contradicted)?;
        writeln!(out, "  writes of unknown outcome that are there   {}", self.unknown_written)?;
        write!(out, "  signs of two leaders at a time   {}", self.two_leaders.len())?;
        self.two_leaders.iter().take(TOLD).try_for_each(|sign| write!(out, "\n    {sign}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrote(began: Instant, sent_ms: u64, took_ms: u64, server: &str, timeline: u32) -> Event {
        let (at, took) = (began + Duration::from_millis(sent_ms + took_ms), Duration::from_millis(took_ms));
        Event { at, took, client: 0, what: What::Wrote { number: 1, server: server.to_owned(), timeline } }
    }

    #[test]
    fn a_late_answer_is_no_second_leader_but_a_late_question_is() {
        let began = Instant::now();
        let table = || BTreeSet::from([(2, "b".to_owned())]);
        // Sent before the new leader had said anything, answered after.
        let fine = [wrote(began, 0, 5, "a", 1), wrote(began, 10, 5, "b", 2), wrote(began, 12, 9, "a", 1)];
        assert_eq!(two_leaders(&fine, table()), Vec::<String>::new());
        let zombie = [wrote(began, 0, 5, "a", 1), wrote(began, 10, 5, "b", 2), wrote(began, 16, 5, "a", 1)];
        assert_eq!(two_leaders(&zombie, table()), ["a wrote number 1 of client 0 on timeline 1, after 2"]);
        // Nobody was told of c's write, but it is there.
        let split = [wrote(began, 0, 5, "a", 1), wrote(began, 10, 5, "b", 2)];
        assert_eq!(two_leaders(&split, BTreeSet::from([(2, "c".to_owned())])), ["on timeline 2 wrote b and c"]);
    }
}
