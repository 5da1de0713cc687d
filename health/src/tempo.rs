//! How fast members are probed.
//!
//! Invariant: never more often than every [`MIN_GAP`], whatever is asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use switchyard_config::Health;
use tokio::sync::watch;
use tokio::time;

use crate::judge::Pace;

/// At most 200 probes a second for each member.
const MIN_GAP: Duration = Duration::from_millis(5);
/// How long one call for samples keeps the probes fast.
const DEMAND_HOLDS: Duration = Duration::from_secs(1);

/// What sessions ask of the probes. Shared by all of them; no locks on the sessions' side but for the first of a burst.
#[derive(Debug)]
pub(crate) struct Tempo {
    started_at: Instant,
    /// Milliseconds since `started_at`.
    wanted_until: AtomicU64,
    poke: watch::Sender<u64>,
}

impl Tempo {
    pub(crate) fn new() -> Tempo {
        Tempo { started_at: Instant::now(), wanted_until: AtomicU64::new(0), poke: watch::Sender::new(0) }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Keeps probes at the busy pace for about a second. An idle prober is woken.
    pub(crate) fn demand(&self) {
        let now = self.millis();
        let until = now + DEMAND_HOLDS.as_millis() as u64;
        // Not stored again within the same tenth: many sessions call, and a shared cache line is dear.
        let before = self.wanted_until.load(Ordering::Relaxed);
        if before + 100 > until {
            return;
        }
        if self.wanted_until.swap(until, Ordering::Relaxed) <= now {
            self.poke();
        }
    }

    /// Probes now.
    pub(crate) fn poke(&self) {
        self.poke.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn wanted(&self) -> bool {
        self.millis() < self.wanted_until.load(Ordering::Relaxed)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.poke.subscribe()
    }

    pub(crate) fn gap(&self, pace: Pace, config: &Health) -> Duration {
        match pace {
            Pace::Urgent => MIN_GAP,
            Pace::Busy => config.busy_interval.max(MIN_GAP),
            Pace::Idle if self.wanted() => config.busy_interval.max(MIN_GAP),
            Pace::Idle => config.interval.max(MIN_GAP),
        }
    }
}

/// One prober's sense of time.
pub(crate) struct Beat {
    pub(crate) poked: watch::Receiver<u64>,
    pub(crate) pace: watch::Receiver<Pace>,
}

impl Beat {
    /// Waits until `since` + `gap`, or until something asks for a probe sooner. Cancel-safe.
    pub(crate) async fn rest(&mut self, since: Instant, gap: impl Fn(Pace) -> Duration) {
        let earliest = since + MIN_GAP;
        loop {
            let pace = *self.pace.borrow_and_update();
            tokio::select! {
                () = time::sleep_until((since + gap(pace)).max(earliest).into()) => return,
                poked = self.poked.changed() => {
                    time::sleep_until(earliest.into()).await;
                    if poked.is_ok() {
                        return;
                    }
                    // Nobody is left to poke: the router is stopping, and this task with it.
                    std::future::pending::<()>().await;
                }
                paced = self.pace.changed() => if paced.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_member_is_never_probed_more_than_two_hundred_times_a_second() {
        let tempo = Tempo::new();
        let (_pacer, pace) = watch::channel(Pace::Urgent);
        let mut beat = Beat { poked: tempo.subscribe(), pace };
        let begin = Instant::now();
        let mut probes = 0;
        while begin.elapsed() < Duration::from_millis(200) {
            // Sessions ask for samples all the time, and the pace knows no gap at all.
            tempo.demand();
            tempo.poke();
            beat.rest(Instant::now(), |_| Duration::ZERO).await;
            probes += 1;
        }
        assert!((1..=41).contains(&probes), "{probes} probes in 200 ms");
    }

    #[tokio::test]
    async fn all_who_wait_share_one_probe() {
        let tempo = Tempo::new();
        let (_pacer, pace) = watch::channel(Pace::Idle);
        let mut beat = Beat { poked: tempo.subscribe(), pace };
        let hour = |_| Duration::from_secs(3600);
        // A hundred ask while one probe is under way: one more answers them all.
        let asked_at = Instant::now();
        (0..100).for_each(|_| tempo.poke());
        beat.rest(asked_at, hour).await;
        assert!(asked_at.elapsed() >= MIN_GAP);
        let rested = time::timeout(10 * MIN_GAP, beat.rest(Instant::now(), hour)).await;
        assert!(rested.is_err(), "a second probe for the same askers");
    }
}
