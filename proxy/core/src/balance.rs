//! What one more statement would cost at a node: the number that the choice between two replicas goes by.
//!
//! Invariant: everything that a node has yet to do counts once, from the moment it was sent there, whether it runs or waits for a connection. With
//! those that run alone, a node whose connections are all in use would look no worse for each more that waits: the line at the fast one would grow
//! while the slow one has connections idle.

use std::time::Duration;

/// In which a response time that nothing confirms counts half: whoever was slow once is tried again.
const FORGOTTEN: Duration = Duration::from_secs(5);
/// Response times below this aren't told apart.
const RESPONSE_MIN_US: f64 = 50.0;
/// One response counts as so many times the average at most: a long statement is no sign of a slow node.
const OUTLIER: u64 = 8;
/// The weight of one response in the average is one part in so many.
const PART: u64 = 8;

/// How long a member whose probes have begun to succeed gets less than its share: its caches are cold.
const SLOW_START: Duration = Duration::from_secs(10);
/// Its share in the beginning.
const COLD: f64 = 0.1;

/// A node's average response time with one more response taken into it, in microseconds. An average of 0 is none yet.
pub fn averaged(average_us: u64, took: Duration) -> u64 {
    let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    match average_us {
        0 => us,
        old => (old - old / PART + us.min(old.saturating_mul(OUTLIER)) / PART).max(1),
    }
}

/// What a statement is expected to take, in microseconds, by an average that was last confirmed so long ago.
pub fn expected_us(average_us: u64, age: Duration) -> f64 {
    let fades = 0.5_f64.powf(age.as_secs_f64() / FORGOTTEN.as_secs_f64());
    (average_us as f64 * fades).max(RESPONSE_MIN_US)
}

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// From the grant of a connection to the answer's end.
    pub expected_us: f64,
    /// That use a connection there, or wait for one.
    pub statements: u64,
    pub weight: u32,
    /// For which the node has answered its probes.
    pub up: Duration,
}

impl Load {
    /// Only comparisons mean anything; the lowest is the best. By the statements already there, by the expected time, by what share the node is to have.
    ///
    /// The square root of the time: in proportion to it, one that is twice as slow would get a fifth of the statements while nobody waits, or none
    /// while there are few. Without it, as many would be at the slow one as at the fast one, and each would be there for twice as long. Where lines form
    /// a third goes there by any of the three, as both work all the time.
    pub fn cost(&self) -> f64 {
        let warm = (self.up.as_secs_f64() / SLOW_START.as_secs_f64()).clamp(COLD, 1.0);
        self.expected_us.sqrt() * (self.statements + 1) as f64 / (f64::from(self.weight.max(1)) * warm)
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
