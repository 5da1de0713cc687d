//! What this router has acknowledged to anybody: the watermark of the level `global`.
//!
//! Of each relation, the instant at which a write to it was acknowledged last; as with [`crate::causal`], the earliest sample of the
//! leader that was sent after that instant bounds what a replica has to show. Relations are told apart by a hash of their names without
//! schema, as `search_path` isn't known here: what two relations share costs a read on a replica, never a stale one. So the table has a
//! fixed size, and neither a read nor a write takes a lock.
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
        }
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
    fn too_many_relations_are_everything() {
        let mut touched = Touched::Nothing;
        for number in 0..1000 {
            touched.merge(&Touched::relation(&format!("t{number}")));
        }
        assert_eq!(touched, Touched::Everything);
        assert!(touched.merge(&Touched::Cluster) && !touched.merge(&Touched::Everything));
    }
}
