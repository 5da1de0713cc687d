//! What this router has acknowledged to anybody: the watermark of the level `global`.
//!
//! Of each relation, the instant at which a write to it was acknowledged last; as with [`crate::causal`], the earliest sample of the
//! leader that was sent after that instant bounds what a replica has to show. Relations are told apart by a hash of their names without
//! schema, as `search_path` isn't known here: what two relations share costs a read on a replica, never a stale one. So the table has a
//! fixed size, and neither a read nor a write takes a lock.
//!
//! And of each write that has been sent and isn't answered, since when: replicas may show it before the leader does. The leader's process has
//! flushed its commit record by then, but ends its transaction (`ProcArrayEndTransaction`) only when it gets a processor again.
//!
//! Invariants: a mark is set before the bytes that acknowledge leave for the client, and never goes back. What may have written more than
//! it names marks everything. An instant bounds what survives across a change of leader, too: nothing here knows of epochs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A relation's place in the table: its name's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationMark(u16);

impl RelationMark {
    /// Of a name as the catalog has it, without its schema.
    pub fn of(name: &str) -> RelationMark {
        RelationMark((xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % SLOTS as u64) as u16)
    }
}

/// Relations that are told apart, per database: 16 KiB.
const SLOTS: usize = 2048;

/// Relations that one statement or transaction is remembered by; with more, it counts as touching everything.
const TOUCHED_MAX: usize = 64;

/// What a statement reads, or what a statement or transaction writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Touched {
    /// No relation that people made.
    #[default]
    Nothing,
    /// Sorted, without doubles.
    Relations(Arc<[RelationMark]>),
    /// Any relation of the database.
    Everything,
    /// DDL: any relation, and what all databases share (roles, the list of databases).
    Cluster,
}

impl Touched {
    /// One relation.
    pub fn relation(name: &str) -> Touched {
        Touched::Relations([RelationMark::of(name)].into())
    }

    pub fn is_nothing(&self) -> bool {
        *self == Touched::Nothing
    }

    /// Both. Whether that is more than it was.
    pub fn merge(&mut self, other: &Touched) -> bool {
        let merged = match (&*self, other) {
            (_, Touched::Nothing) | (Touched::Cluster, _) | (Touched::Everything, Touched::Relations(_) | Touched::Everything) => {
                return false;
            }
            (Touched::Nothing, _) | (_, Touched::Cluster | Touched::Everything) => other.clone(),
            (Touched::Relations(mine), Touched::Relations(others)) => {
                if Arc::ptr_eq(mine, others) || others.iter().all(|other| mine.binary_search(other).is_ok()) {
                    return false;
                }
                let mut all: Vec<RelationMark> = mine.iter().chain(others.iter()).copied().collect();
                all.sort_unstable();
                all.dedup();
                if all.len() > TOUCHED_MAX { Touched::Everything } else { Touched::Relations(all.into()) }
            }
        };
        *self = merged;
        true
    }

    /// For people: `nothing`, `everything` or how many relations.
    pub fn describe(&self) -> String {
        match self {
            Touched::Nothing => "nothing".to_owned(),
            Touched::Relations(relations) if relations.len() == 1 => "1 relation".to_owned(),
            Touched::Relations(relations) => format!("{} relations", relations.len()),
            Touched::Everything | Touched::Cluster => "everything".to_owned(),
        }
    }
}

/// Writes under way that are told apart, per database: 4 KiB.
const UNDER_WAY_MAX: usize = 256;

/// A commit takes no longer from its record's flush to its transaction's end: what has been under way for longer is a statement that runs, or
/// waits for a lock.
const COMMIT_MAX: Duration = Duration::from_secs(1);

/// Which relations a write under way is about, one bit for each hash: all of them where that isn't known.
fn bits(touched: &Touched) -> u64 {
    match touched {
        Touched::Nothing => 0,
        Touched::Relations(relations) => relations.iter().fold(0, |bits, relation| bits | 1 << (relation.0 % 64)),
        Touched::Everything | Touched::Cluster => u64::MAX,
    }
}

/// A write that has been sent.
#[derive(Debug, Default)]
struct UnderWay {
    /// 0: nobody's.
    sent_at: AtomicU64,
    relations: AtomicU64,
}

/// What a session has sent to the leader, and no answer has ended yet.
#[derive(Debug, Default)]
pub struct Sending {
    /// Which one of its database's, and its instant. What was left behind is taken over by others in time.
    place: Option<(usize, u64)>,
}

/// A mark that all databases share: DDL may be about roles, databases or tablespaces.
#[derive(Debug)]
pub struct ClusterMark {
    /// What instants are counted from. 0 stands for never.
    base: Instant,
    ddl: AtomicU64,
}

impl ClusterMark {
    /// `now`: nothing is remembered of what came before it.
    pub fn new(now: Instant) -> Arc<ClusterMark> {
        Arc::new(ClusterMark { base: now, ddl: AtomicU64::new(0) })
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

/// The marks of one database.
#[derive(Debug)]
pub struct Marks {
    cluster: Arc<ClusterMark>,
    /// Nanoseconds since the base.
    relations: Box<[AtomicU64]>,
    /// What may have been a write to any relation.
    everything: AtomicU64,
    /// The latest of all.
    newest: AtomicU64,
    under_way: Box<[UnderWay]>,
    /// When there were more of them at a time than can be told apart.
    crowded: AtomicU64,
}

impl Marks {
    /// `now`: what was acknowledged before isn't known, so everything counts as written now.
    pub fn new(cluster: Arc<ClusterMark>, now: Instant) -> Marks {
        let now = cluster.nanos(now);
        Marks {
            cluster,
            relations: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            everything: AtomicU64::new(now),
            newest: AtomicU64::new(now),
            under_way: (0..UNDER_WAY_MAX).map(|_| UnderWay::default()).collect(),
            crowded: AtomicU64::new(0),
        }
    }

    /// What may commit a write to `touched` is about to be sent. Where something of this session is under way already, it is one with that.
    pub fn sends(&self, sending: &mut Sending, touched: &Touched, now: Instant) {
        let relations = bits(touched);
        let now = self.cluster.nanos(now);
        if let Some((index, sent_at)) = sending.place
            && self.under_way[index].sent_at.load(Ordering::Acquire) == sent_at
        {
            self.under_way[index].relations.fetch_or(relations, Ordering::AcqRel);
            return;
        }
        // Sessions begin their search at different places.
        let first = now as usize % UNDER_WAY_MAX;
        for index in (first..UNDER_WAY_MAX).chain(0..first) {
            let place = &self.under_way[index];
            let before = place.sent_at.load(Ordering::Relaxed);
            let free = before == 0 || before + (COMMIT_MAX.as_nanos() as u64) < now;
            if free && place.sent_at.compare_exchange(before, now, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                // In between it may count for what was there before, which is more than it need be or nothing that has been sent.
                place.relations.store(relations, Ordering::Release);
                sending.place = Some((index, now));
                return;
            }
        }
        self.crowded.fetch_max(now, Ordering::AcqRel);
    }

    /// Nothing of this session is under way any more.
    pub fn ends(&self, sending: &mut Sending) {
        if let Some((index, sent_at)) = sending.place.take() {
            // Unless somebody has taken it over.
            let _taken = self.under_way[index].sent_at.compare_exchange(sent_at, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Whether something that was sent before `shown_at` isn't answered yet, so that a replica can have shown of `reads` by then what the leader
    /// doesn't show at `now`.
    pub fn are_behind(&self, reads: &Touched, shown_at: Instant, now: Instant) -> bool {
        let (relations, shown_at, now) = (bits(reads), self.cluster.nanos(shown_at), self.cluster.nanos(now));
        // DDL concerns every read.
        let meets = |written: u64| written & relations != 0 || written == u64::MAX;
        let counts = |sent_at: u64| sent_at != 0 && sent_at <= shown_at && now <= sent_at + COMMIT_MAX.as_nanos() as u64;
        counts(self.crowded.load(Ordering::Acquire))
            || self
                .under_way
                .iter()
                .any(|write| counts(write.sent_at.load(Ordering::Acquire)) && meets(write.relations.load(Ordering::Acquire)))
    }

    /// A write is about to be acknowledged.
    pub fn wrote(&self, touched: &Touched, now: Instant) {
        let now = self.cluster.nanos(now);
        let raise = |mark: &AtomicU64| {
            mark.fetch_max(now, Ordering::AcqRel);
        };
        match touched {
            Touched::Nothing => return,
            Touched::Relations(relations) => relations.iter().for_each(|relation| raise(&self.relations[usize::from(relation.0)])),
            Touched::Everything => raise(&self.everything),
            Touched::Cluster => {
                raise(&self.everything);
                raise(&self.cluster.ddl);
            }
        }
        raise(&self.newest);
    }

    /// When something was acknowledged last that a read of `touched` must show.
    pub fn since(&self, touched: &Touched) -> Instant {
        let at = |mark: &AtomicU64| mark.load(Ordering::Acquire);
        // DDL concerns every read: also one that names no relation may look into the catalogs.
        let shared = at(&self.everything).max(at(&self.cluster.ddl));
        let nanos = match touched {
            Touched::Nothing => shared,
            Touched::Relations(relations) => {
                relations.iter().map(|relation| at(&self.relations[usize::from(relation.0)])).fold(shared, u64::max)
            }
            Touched::Everything | Touched::Cluster => shared.max(at(&self.newest)),
        };
        self.cluster.base + Duration::from_nanos(nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an instant can't be made from nothing")]
    fn marks() -> (Marks, Instant) {
        let zero = Instant::now();
        (Marks::new(ClusterMark::new(zero), zero), zero + Duration::from_nanos(1))
    }

    #[test]
    fn a_read_meets_the_writes_to_what_it_reads() {
        let (marks, zero) = marks();
        let at = |seconds| zero + Duration::from_secs(seconds);
        let (a, b) = (Touched::relation("a"), Touched::relation("b"));
        marks.wrote(&a, at(1));
        assert_eq!((marks.since(&a), marks.since(&b), marks.since(&Touched::Nothing)), (at(1), zero, zero));
        assert_eq!(marks.since(&Touched::Everything), at(1));
        let mut both = b.clone();
        assert!(both.merge(&a) && !both.merge(&a) && !both.merge(&b));
        assert_eq!(marks.since(&both), at(1));
        marks.wrote(&Touched::Everything, at(2));
        assert_eq!((marks.since(&a), marks.since(&b), marks.since(&Touched::Nothing)), (at(2), at(2), at(2)));
        // Never back.
        marks.wrote(&b, at(1));
        assert_eq!(marks.since(&b), at(2));
        marks.wrote(&both, at(3));
        assert_eq!((marks.since(&a), marks.since(&b), marks.since(&Touched::Nothing)), (at(3), at(3), at(2)));
    }

    #[test]
    fn ddl_is_met_in_all_databases() {
        let (marks, zero) = marks();
        let other = Marks::new(marks.cluster.clone(), zero);
        let at = zero + Duration::from_secs(1);
        marks.wrote(&Touched::Everything, at);
        assert_eq!(other.since(&Touched::Everything), zero);
        marks.wrote(&Touched::Cluster, at);
        assert_eq!(other.since(&Touched::Nothing), at);
    }

    #[test]
    fn a_write_is_behind_what_replicas_show_until_it_is_answered() {
        let (marks, zero) = marks();
        let at = |ms| zero + Duration::from_millis(ms);
        let (a, b) = (Touched::relation("a"), Touched::relation("b"));
        let mut sending = Sending::default();
        marks.sends(&mut sending, &a, at(10));
        assert!(marks.are_behind(&a, at(10), at(20)) && marks.are_behind(&Touched::Everything, at(11), at(20)));
        // What was shown before it was sent can't be of it, and other relations aren't its own.
        assert!(!marks.are_behind(&a, at(9), at(20)) && !marks.are_behind(&b, at(11), at(20)));
        // A pipeline goes on, and counts from its beginning.
        marks.sends(&mut sending, &b, at(15));
        assert!(marks.are_behind(&b, at(11), at(20)));
        // What takes longer is no commit.
        assert!(!marks.are_behind(&a, at(11), at(1_011)));
        marks.ends(&mut sending);
        assert!(!marks.are_behind(&a, at(11), at(20)) && !marks.are_behind(&b, at(11), at(20)));
        marks.sends(&mut sending, &Touched::Cluster, at(10));
        assert!(marks.are_behind(&Touched::Nothing, at(11), at(20)));
    }

    #[test]
    fn more_writes_than_can_be_told_apart_are_behind_too() {
        let (marks, zero) = marks();
        let at = |ms| zero + Duration::from_millis(ms);
        let (a, b) = (Touched::relation("a"), Touched::relation("b"));
        let mut all: Vec<Sending> = Vec::new();
        for _ in 0..=UNDER_WAY_MAX {
            let mut sending = Sending::default();
            marks.sends(&mut sending, &a, at(10));
            all.push(sending);
        }
        assert!(marks.are_behind(&b, at(10), at(20)));
        // Whoever has left it behind doesn't keep its place, nor takes it from those who came later.
        let mut late = Sending::default();
        marks.sends(&mut late, &b, at(2_000));
        assert!(marks.are_behind(&b, at(2_000), at(2_001)) && !marks.are_behind(&a, at(2_000), at(2_001)));
        all.iter_mut().for_each(|sending| marks.ends(sending));
        assert!(marks.are_behind(&b, at(2_000), at(2_001)));
        marks.ends(&mut late);
        assert!(!marks.are_behind(&b, at(2_000), at(2_001)));
    }

    #[test]
    fn too_many_relations_are_everything() {
        let mut touched = Touched::Nothing;
        for number in 0..1000 {
            touched.merge(&Touched::relation(&format!("t{number}")));
        }
        assert_eq!(touched, Touched::Everything);
        assert!(touched.merge(&Touched::Cluster) && !touched.merge(&Touched::Everything));
    }
}
