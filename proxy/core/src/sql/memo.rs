//! Verdicts that were taken once, by fingerprint.
//!
//! A fixed table of small sets whose slots are atomic pointers: readers take no lock, and memory is bounded by the table. Invariant: an
//! entry counts only for the facts and the dialect under which it was taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use arc_swap::{ArcSwapOption, Guard};

use super::catalog::Facts;
use super::classify::{Dialect, classify};
use super::fingerprint::{Fingerprint, summarize};
use super::verdict::{Class, Effect, Reason, Verdict};
use crate::marks::Touched;

/// Slots in which a fingerprint may stand.
const WAYS: usize = 8;

/// A verdict with more effects, or more statements that have some, than this isn't kept: it is a script, and would make an entry's size depend on a client.
const EFFECTS_LIMIT: usize = 64;

struct Entry {
    fingerprint: Fingerprint,
    generation: u64,
    dialect: Dialect,
    verdict: Arc<Verdict>,
}

#[derive(Default)]
struct Slot {
    /// The fingerprint's low half, so that most slots are passed over without following the pointer.
    tag: AtomicU64,
    entry: ArcSwapOption<Entry>,
    /// Used since the hand passed.
    used: AtomicU8,
}

/// A verdict cache that sessions share.
pub struct Memo {
    slots: Box<[Slot]>,
    /// One hand per set.
    hands: Box<[AtomicU8]>,
}

impl Memo {
    /// A cache of at least `capacity` verdicts, rounded up to a power of two of sets.
    pub fn new(capacity: usize) -> Memo {
        let sets = capacity.div_ceil(WAYS).max(1).next_power_of_two();
        Memo { slots: (0..sets * WAYS).map(|_| Slot::default()).collect(), hands: (0..sets).map(|_| AtomicU8::new(0)).collect() }
    }

    /// How many verdicts are kept.
    pub fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.entry.load().is_some()).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many verdicts can be kept.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// The verdict on a query string, its fingerprint, and whether it was known.
    pub fn verdict(&self, sql: &[u8], facts: &Facts, dialect: Dialect) -> (Arc<Verdict>, Fingerprint, bool) {
        let summary = summarize(sql, dialect);
        let fingerprint = summary.fingerprint;
        if summary.cacheable
            && let Some(verdict) = self.find(fingerprint, facts.generation(), dialect)
        {
            return (verdict, fingerprint, true);
        }
        let mut verdict = classify(sql, facts, dialect);
        verdict.fingerprint = fingerprint;
        let verdict = Arc::new(verdict);
        // What DDL mentions stands in its literals.
        let cacheable = summary.cacheable && !verdict.effects.contains(&Effect::Ddl);
        if cacheable && verdict.effects.len().max(verdict.effect_ends.len()) <= EFFECTS_LIMIT {
            self.keep(Entry { fingerprint, generation: facts.generation(), dialect, verdict: Arc::clone(&verdict) });
        }
        (verdict, fingerprint, false)
    }

    /// Remembers that what was taken for a read isn't one: a standby refused it with `sqlstate`, and the leader ran it. Holds as long as the
    /// verdict would have: until the facts change. True where the verdict was still here.
    pub fn learn(&self, judged: &Verdict, sqlstate: &str) -> bool {
        let tag = judged.fingerprint.0 as u64;
        let mut found = false;
        for slot in self.ways(self.set_of(judged.fingerprint)) {
            let Some(entry) = slot.entry.load_full().filter(|_| slot.tag.load(Ordering::Relaxed) == tag) else { continue };
            if entry.fingerprint != judged.fingerprint || entry.verdict.class == Class::Write {
                continue;
            }
            let mut verdict = Verdict::clone(&entry.verdict);
            verdict.class = Class::Write;
            verdict.writes = Touched::Everything;
            verdict.reasons.push(Reason { rule: "refused_by_a_replica", piece: Arc::from(sqlstate) });
            let learnt =
                Entry { fingerprint: entry.fingerprint, generation: entry.generation, dialect: entry.dialect, verdict: Arc::new(verdict) };
            slot.entry.store(Some(Arc::new(learnt)));
            found = true;
        }
        found
    }

    fn set_of(&self, fingerprint: Fingerprint) -> usize {
        (fingerprint.0 >> 64) as usize & (self.hands.len() - 1)
    }

    fn ways(&self, set: usize) -> &[Slot] {
        &self.slots[set * WAYS..(set + 1) * WAYS]
    }

    fn find(&self, fingerprint: Fingerprint, generation: u64, dialect: Dialect) -> Option<Arc<Verdict>> {
        for slot in self.ways(self.set_of(fingerprint)) {
            if slot.tag.load(Ordering::Relaxed) != fingerprint.0 as u64 {
                continue;
            }
            let entry: Guard<Option<Arc<Entry>>> = slot.entry.load();
            if let Some(entry) = &*entry
                && entry.fingerprint == fingerprint
                && entry.generation == generation
                && entry.dialect == dialect
            {
                // Written only when it changes, so that a hot entry's line stays shared among cores.
                if slot.used.load(Ordering::Relaxed) == 0 {
                    slot.used.store(1, Ordering::Relaxed);
                }
                return Some(Arc::clone(&entry.verdict));
            }
        }
        None
    }

    fn keep(&self, entry: Entry) {
        let set = self.set_of(entry.fingerprint);
        let ways = self.ways(set);
        let tag = entry.fingerprint.0 as u64;
        // A stale entry of the same fingerprint goes first (of an older generation, or the other dialect).
        let same = ways.iter().find(|slot| slot.tag.load(Ordering::Relaxed) == tag && slot.entry.load().is_some());
        let slot = same.unwrap_or_else(|| self.victim(set, ways));
        slot.entry.store(Some(Arc::new(entry)));
        slot.tag.store(tag, Ordering::Relaxed);
        slot.used.store(0, Ordering::Relaxed);
    }

    /// The clock: the first slot from the hand on that wasn't used since the hand passed it.
    fn victim<'s>(&self, set: usize, ways: &'s [Slot]) -> &'s Slot {
        let hand = &self.hands[set];
        for _ in 0..2 * WAYS {
            let at = usize::from(hand.fetch_add(1, Ordering::Relaxed)) % WAYS;
            if ways[at].used.swap(0, Ordering::Relaxed) == 0 {
                return &ways[at];
            }
        }
        &ways[0]
    }
}

#[cfg(test)]
mod tests;
