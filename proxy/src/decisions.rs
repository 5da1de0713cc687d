//! What was decided of late, by statement: how often, where to and why, and how long it took.
//!
//! A fixed table of small sets, as the verdict cache has: readers take no lock, and memory is bounded by the table. A statement costs two
//! relaxed additions on its own entry; only one that isn't here yet has its text copied, without literals. Counts begin anew when an entry
//! was pushed out by newer statements.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::Serialize;
use switchyard_core::route::Why;
use switchyard_core::sql::Fingerprint;

use crate::stats::Counter;

/// Statements remembered.
const STATEMENTS: usize = 1024;
/// Places in which a statement may stand.
const WAYS: usize = 8;
/// Of a statement's text, in bytes.
pub(crate) const TEXT_MAX: usize = 300;
/// Statements remembered that only a replica's refusal told to be the leader's.
const UNFORESEEN_MAX: usize = 50;

/// One statement, whatever its literals.
#[derive(Debug)]
pub struct Decided {
    fingerprint: Fingerprint,
    text: Box<str>,
    by_why: [Counter; Why::ALL.len()],
    timed: Counter,
    us_total: Counter,
    /// The table's clock when it was asked for last.
    used: AtomicU64,
}

impl Decided {
    /// Counts one decision.
    pub fn decided(&self, why: Why) {
        if let Some(counter) = self.by_why.get(why as usize) {
            counter.add(1);
        }
    }

    /// Counts the time from a lease to its return.
    pub fn took(&self, time: Duration) {
        self.timed.add(1);
        self.us_total.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// The fingerprint's low half, so that most slots are passed over without following the pointer.
    tag: AtomicU64,
    decided: ArcSwapOption<Decided>,
}

/// A statement that a replica refused, and the leader ran.
#[derive(Clone, Debug, Serialize)]
pub struct Unforeseen {
    pub fingerprint: String,
    /// Without literals.
    pub statement: String,
    /// What the replica said last.
    pub sqlstate: String,
    pub times: u64,
}

/// What is shown of a statement.
#[derive(Clone, Debug, Serialize)]
pub struct DecidedView {
    pub fingerprint: String,
    /// Without literals.
    pub statement: String,
    pub times: u64,
    /// Where to, by reason: see `switchyard_core::route::Why`.
    pub routes: BTreeMap<&'static str, u64>,
    pub leader: u64,
    pub replica: u64,
    /// From a lease to its return. `None`: none has come back yet.
    pub mean_seconds: Option<f64>,
}

/// The table.
#[derive(Debug)]
pub struct Decisions {
    slots: Box<[Slot]>,
    clock: AtomicU64,
    unforeseen: Mutex<BTreeMap<u128, Unforeseen>>,
    /// All of them, also those that are not remembered.
    pub unforeseen_total: Counter,
}

impl Default for Decisions {
    fn default() -> Decisions {
        Decisions {
            slots: (0..STATEMENTS).map(|_| Slot::default()).collect(),
            clock: AtomicU64::new(1),
            unforeseen: Mutex::default(),
            unforeseen_total: Counter::default(),
        }
    }
}

impl Decisions {
    /// The entry of a statement. `text` is asked for where it is new.
    pub fn of(&self, fingerprint: Fingerprint, text: impl FnOnce() -> String) -> Arc<Decided> {
        let tag = fingerprint.0 as u64;
        let set = (fingerprint.0 >> 64) as usize % (STATEMENTS / WAYS);
        let ways = &self.slots[set * WAYS..(set + 1) * WAYS];
        for slot in ways.iter().filter(|slot| slot.tag.load(Ordering::Relaxed) == tag) {
            if let Some(decided) = &*slot.decided.load()
                && decided.fingerprint == fingerprint
            {
                // The clock ticks with new statements only, so that this line stays shared among cores.
                let now = self.clock.load(Ordering::Relaxed);
                if decided.used.load(Ordering::Relaxed) != now {
                    decided.used.store(now, Ordering::Relaxed);
                }
                return decided.clone();
            }
        }
        let decided = Arc::new(Decided {
            fingerprint,
            text: text().into(),
            by_why: Default::default(),
            timed: Counter::default(),
            us_total: Counter::default(),
            used: AtomicU64::new(self.clock.fetch_add(1, Ordering::Relaxed) + 1),
        });
        // Two that come at once may take the same place: one of them is counted from its next time on.
        let oldest = ways.iter().min_by_key(|slot| slot.decided.load().as_ref().map_or(0, |decided| decided.used.load(Ordering::Relaxed)));
        if let Some(slot) = oldest {
            slot.decided.store(Some(decided.clone()));
            slot.tag.store(tag, Ordering::Relaxed);
        }
        decided
    }

    /// Notes a statement that was taken for a read until a replica refused it and the leader ran it.
    pub fn unforeseen(&self, decided: &Decided, sqlstate: &str) {
        self.unforeseen_total.add(1);
        let mut known = self.unforeseen.lock();
        if known.len() >= UNFORESEEN_MAX && !known.contains_key(&decided.fingerprint.0) {
            return;
        }
        let entry = known.entry(decided.fingerprint.0).or_insert_with(|| Unforeseen {
            fingerprint: decided.fingerprint.to_string(),
            statement: decided.text.to_string(),
            sqlstate: String::new(),
            times: 0,
        });
        entry.times += 1;
        sqlstate.clone_into(&mut entry.sqlstate);
    }

    /// Those seen most often first.
    pub fn unforeseen_now(&self) -> Vec<Unforeseen> {
        let mut all: Vec<Unforeseen> = self.unforeseen.lock().values().cloned().collect();
        all.sort_by(|a, b| b.times.cmp(&a.times).then_with(|| a.fingerprint.cmp(&b.fingerprint)));
        all
    }

    /// Those that came most often first.
    pub fn now(&self) -> Vec<DecidedView> {
        let mut all: Vec<DecidedView> =
            self.slots.iter().filter_map(|slot| slot.decided.load_full()).map(|decided| view(&decided)).collect();
        all.sort_by(|a, b| b.times.cmp(&a.times).then_with(|| a.fingerprint.cmp(&b.fingerprint)));
        all
    }
}

fn view(decided: &Decided) -> DecidedView {
    let counts = || Why::ALL.iter().map(|why| (*why, decided.by_why[*why as usize].value())).filter(|(_, times)| *times > 0);
    let times = counts().map(|(_, times)| times).sum();
    let replica = counts().filter(|(why, _)| matches!(why, Why::FreshReplica | Why::AnyReplica)).map(|(_, times)| times).sum();
    let timed = decided.timed.value();
    DecidedView {
        fingerprint: decided.fingerprint.to_string(),
        statement: decided.text.to_string(),
        times,
        routes: counts().map(|(why, times)| (why.as_str(), times)).collect(),
        leader: times - replica,
        replica,
        mean_seconds: (timed > 0).then(|| decided.us_total.value() as f64 / 1e6 / timed as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_statement_and_stays_bounded() {
        let decisions = Decisions::default();
        let one = Fingerprint(7);
        for _ in 0..3 {
            let decided = decisions.of(one, || "select ?".to_owned());
            decided.decided(Why::FreshReplica);
            decided.took(Duration::from_millis(2));
        }
        decisions.of(one, || unreachable!("it is known")).decided(Why::Write);
        let [only] = decisions.now().try_into().expect("one statement");
        assert_eq!((only.times, only.leader, only.replica, only.mean_seconds), (4, 1, 3, Some(0.002)));
        for number in 0..100_000u128 {
            decisions.of(Fingerprint(number << 60 | number), String::new).decided(Why::Write);
        }
        assert!(decisions.now().len() <= STATEMENTS);
    }

    #[test]
    fn the_statement_asked_for_last_stays() {
        let decisions = Decisions::default();
        for number in 1..100u128 {
            decisions.of(Fingerprint(number), String::new).decided(Why::Write);
            decisions.of(Fingerprint(1), String::new).decided(Why::Write);
        }
        assert_eq!(decisions.now()[0].times, 100);
    }

    #[test]
    fn unforeseen_statements_are_bounded_and_all_counted() {
        let decisions = Decisions::default();
        for number in 0..200u128 {
            let decided = decisions.of(Fingerprint(number << 64), || "select f(?)".to_owned());
            decisions.unforeseen(&decided, "25006");
        }
        assert_eq!((decisions.unforeseen_now().len(), decisions.unforeseen_total.value()), (UNFORESEEN_MAX, 200));
    }
}
