//! What bounds the acknowledged writes while no leader is in force: what the last one still says, or else what standbys have received.
//!
//! Three rules; the first that can be applied counts:
//!
//! - **The last leader**, as long as it answers (its key can't be read, or it was demoted): its position is as good as it was before. Exact.
//! - **With synchronous standbys** a commit is acknowledged, and shown by the leader, only after enough of them have flushed it. Patroni
//!   takes a name out of its `sync` key before it takes it out of `synchronous_standby_names`, and puts it into the key only when that standby has everything: so
//!   whoever stands in the key has by then flushed what was acknowledged by then. What was acknowledged until an instant is below the
//!   highest position that those tell who stood in a read of the key *sent* after the instant, in probes sent after that was heard. Exact.
//!   Enough of them must tell one: so many that every set which may have confirmed a commit has one among them, which is one where each of them
//!   confirms each commit, and one more than the key's `quorum`.
//!   It is no bound on what *replicas* have shown, as they may be ahead of a synchronous one: the highest position that any of them has received is
//!   one, for what was shown before they were asked ([`by_replicas`]).
//!   Not covered: commits at `synchronous_commit` below `on`, waits for a standby that somebody has cut short, and sequences.
//! - **Without** them, what no standby has received comes back only with the old leader, if at all. Once that has kept silent for some time,
//!   the highest position that any standby has received is all that can be asked for. That isn't exact, and isn't taken for what a
//!   session itself has written or seen.
//!
//! What a standby tells of its position counts only if it hasn't restarted since it was streaming: one that was killed opens at its minimum
//! recovery point, behind what it had received and confirmed.

use std::time::Instant;

use crate::lsn::Lsn;

/// What is known of what was written, while there is no leader in force to tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witnessed {
    /// Counts for what was acknowledged before this instant.
    pub sent_at: Instant,
    pub lsn: Lsn,
    /// Nothing that the last leader has acknowledged or shown lies behind it.
    pub exact: bool,
}

/// What bounds all that replicas have shown, to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Counts for what was shown before this instant.
    pub sent_at: Instant,
    pub lsn: Lsn,
}

/// A standby, as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Standby {
    /// `None`: it doesn't answer.
    pub testimony: Option<Testimony>,
    /// Since when that is so; of one that answers, when its run was seen first.
    pub since: Instant,
}

/// A member's newest answer.
#[derive(Clone, Copy, Debug)]
pub struct Testimony {
    /// When the question was sent.
    pub sent_at: Instant,
    /// A standby's `pg_last_wal_receive_lsn()`, or what it has replayed if that is further; a leader's insert position.
    pub received: Lsn,
}

/// By the last leader itself, on the timeline that it led.
pub fn by_leader(testimony: Testimony) -> Witnessed {
    Witnessed { sent_at: testimony.sent_at, lsn: testimony.received, exact: true }
}

/// When the `sync` key was read.
#[derive(Clone, Copy, Debug)]
pub struct KeyRead {
    pub sent_at: Instant,
    pub heard_at: Instant,
}

/// By the synchronous standbys that stood in the key when it was `read`, of which `enough` are needed.
pub fn by_synchronous(named: impl Iterator<Item = Testimony>, enough: usize, read: KeyRead) -> Option<Witnessed> {
    let after: Vec<Testimony> = named.filter(|testimony| testimony.sent_at >= read.heard_at).collect();
    let lsn = highest(&after).filter(|_| after.len() >= enough)?;
    Some(Witnessed { sent_at: read.sent_at, lsn, exact: true })
}

/// By all standbys that answer, each asked after `silent_until`, when the leader had been silent for long enough.
pub fn by_any(testimonies: impl Iterator<Item = Testimony>, silent_until: Instant) -> Option<Witnessed> {
    let all: Vec<Testimony> = testimonies.collect();
    let sent_at = all.iter().map(|testimony| testimony.sent_at).min()?;
    Some(Witnessed { sent_at, lsn: highest(&all)?, exact: false }).filter(|_| sent_at > silent_until)
}

/// By all standbys: none shows what it hasn't received. What one has shown in runs before, or before it was lost, is bounded by what the leader said
/// later, if it did. `sampled`: its first insert position that was asked for after an instant.
pub fn by_replicas(standbys: impl Iterator<Item = Standby>, sampled: impl Fn(Instant) -> Option<Lsn>) -> Option<Received> {
    let mut bound: Option<Received> = None;
    let mut highest = Lsn::INVALID;
    for standby in standbys {
        highest = highest.max(sampled(standby.since)?);
        let Some(testimony) = standby.testimony else { continue };
        highest = highest.max(testimony.received);
        let sent_at = bound.map_or(testimony.sent_at, |bound| bound.sent_at.min(testimony.sent_at));
        bound = Some(Received { sent_at, lsn: highest });
    }
    bound.map(|bound| Received { lsn: highest, ..bound })
}

fn highest(testimonies: &[Testimony]) -> Option<Lsn> {
    testimonies.iter().map(|testimony| testimony.received).max()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn told(at: Instant, all: &[(u64, u64)]) -> impl Iterator<Item = Testimony> {
        all.iter().map(move |(ms, lsn)| Testimony { sent_at: at + Duration::from_millis(*ms), received: Lsn(*lsn) })
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an instant can't be made from nothing")]
    fn enough_must_have_been_asked() {
        let zero = Instant::now();
        let ms = |n| zero + Duration::from_millis(n);
        let two = [(5, 700), (9, 500)];
        let read = |sent, heard| KeyRead { sent_at: ms(sent), heard_at: ms(heard) };
        let told_at_three = |lsn| Some(Witnessed { sent_at: ms(3), lsn: Lsn(lsn), exact: true });
        // Each has everything; the higher one is a bound, too.
        assert_eq!(by_synchronous(told(zero, &two), 1, read(3, 4)), told_at_three(700));
        assert_eq!(by_synchronous(told(zero, &two), 2, read(3, 5)), told_at_three(700));
        assert_eq!(by_synchronous(told(zero, &two), 3, read(3, 4)), None);
        assert_eq!(by_synchronous(told(zero, &[]), 1, read(3, 4)), None);
        // Asked before it was known to be synchronous, it may not have been.
        assert_eq!(by_synchronous(told(zero, &two), 1, read(3, 6)), told_at_three(500));
        assert_eq!(by_synchronous(told(zero, &two), 2, read(3, 6)), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an instant can't be made from nothing")]
    fn all_must_have_been_asked_after_the_silence() {
        let zero = Instant::now();
        let ms = |n| zero + Duration::from_millis(n);
        let two = [(5, 700), (9, 500)];
        assert_eq!(by_any(told(zero, &two), ms(4)), Some(Witnessed { sent_at: ms(5), lsn: Lsn(700), exact: false }));
        assert_eq!(by_any(told(zero, &two), ms(5)), None);
        assert_eq!(by_any(told(zero, &[]), ms(5)), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an instant can't be made from nothing")]
    fn replicas_show_no_more_than_they_have_received_and_had_before() {
        let zero = Instant::now();
        let ms = |n| zero + Duration::from_millis(n);
        let standby = |told: Option<(u64, u64)>, since| Standby {
            testimony: told.map(|(at, lsn)| Testimony { sent_at: ms(at), received: Lsn(lsn) }),
            since: ms(since),
        };
        // The leader was asked last at 8 ms.
        let sampled = |at| (at < ms(8)).then_some(Lsn(400));
        let bound = |standbys: &[Standby]| by_replicas(standbys.iter().copied(), sampled);
        let two = [standby(Some((9, 500)), 1), standby(Some((10, 300)), 2)];
        assert_eq!(bound(&two), Some(Received { sent_at: ms(9), lsn: Lsn(500) }));
        assert_eq!(bound(&two[1..]), Some(Received { sent_at: ms(10), lsn: Lsn(400) }));
        // Lost while the leader was still there to tell; or after that.
        assert_eq!(bound(&[two[0], standby(None, 7)]), Some(Received { sent_at: ms(9), lsn: Lsn(500) }));
        assert_eq!(bound(&[two[0], standby(None, 8)]), None);
        // Restarted after the leader's last word.
        assert_eq!(bound(&[two[0], standby(Some((12, 300)), 11)]), None);
        assert_eq!(bound(&[]), None);
    }
}
