//! Two replicas behind pools, one half as fast, simulated to the microsecond: what share it gets, and what that does to the slowest answers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::causal::Bound;
use crate::route::{Ask, Loads, replica};
use crate::topology::{Member, Role, Topology};

const MS: f64 = 1_000.0;
/// Expected service times, microseconds.
const MEANS_US: [f64; 2] = [8.0 * MS, 4.0 * MS];
const SLOW: usize = 0;
const FAST: usize = 1;
/// Connections of each pool.
const POOL: usize = 8;
const ANSWERS: usize = 40_000;
/// Not counted: until lines and averages are what they tend to.
const FIRST: usize = 4_000;

#[derive(Clone, Copy)]
enum Arrivals {
    /// So many clients, each of which asks again at once.
    Clients(usize),
    /// At random, so many a second.
    PerSecond(f64),
}

#[derive(Default)]
struct Server {
    running: usize,
    /// When those who wait for a connection came.
    line: VecDeque<u64>,
    average_us: u64,
}

struct Servers {
    servers: [Server; 2],
    /// As if whoever waits for a connection weren't there yet.
    blind: bool,
}

impl Loads for Servers {
    fn cost(&self, member: &Member) -> f64 {
        let server = &self.servers[usize::from(&*member.name == "fast")];
        let waiting = if self.blind { 0 } else { server.line.len() };
        let statements = (server.running + waiting) as u64;
        let expected_us = expected_us(server.average_us, Duration::ZERO);
        Load { expected_us, statements, weight: member.weight, up: Duration::from_secs(3_600) }.cost()
    }

    fn is_busy(&self, _: &Member) -> bool {
        false
    }
}

#[derive(Debug)]
struct Outcome {
    /// Of the statements, at the slow one.
    share: f64,
    p99_us: u64,
    per_second: f64,
}

/// By what is compared in the heap: the time, then a number.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Answer { server: usize, came: u64, took: u64 },
}

struct Simulation {
    servers: Servers,
    topology: Topology,
    at: Instant,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    random: u64,
    sent: [usize; 2],
}

impl Simulation {
    fn new(nodes: &[&str], blind: bool) -> Simulation {
        let at = Instant::now();
        let member = |name: &&str| Arc::new(Member { name: (*name).into(), role: Role::Replica, weight: 100, since: at, ..member(at) });
        let topology = Topology { members: nodes.iter().map(member).collect(), ..Topology::default() };
        let servers = Servers { servers: [Server::default(), Server::default()], blind };
        Simulation { servers, topology, at, now: 0, events: BinaryHeap::new(), count: 0, random: 0x9e37_79b9_7f4a_7c15, sent: [0; 2] }
    }

    /// xorshift64* (Vigna, 2016).
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// As times between things that don't know of one another are.
    fn exponential(&mut self, mean_us: f64) -> u64 {
        let part = (self.random() >> 11) as f64 / (1_u64 << 53) as f64;
        (-(1.0 - part).ln() * mean_us) as u64 + 1
    }

    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time, self.count, event)));
    }

    fn begin(&mut self, server: usize, came: u64) {
        let took = self.exponential(MEANS_US[server]);
        self.servers.servers[server].running += 1;
        self.at(self.now + took, Event::Answer { server, came, took });
    }

    fn arrive(&mut self) {
        let random = self.random();
        let ask = Ask { watermark: None, bound: Bound::Nothing, excluded: &Vec::new(), zone: None, random };
        let chosen = replica(ask, &self.topology, &self.servers, self.at).expect("a replica");
        let server = if &*chosen.name == "fast" { FAST } else { SLOW };
        self.sent[server] += 1;
        match self.servers.servers[server].running < POOL {
            true => self.begin(server, self.now),
            false => self.servers.servers[server].line.push_back(self.now),
        }
    }

    fn run(mut self, arrivals: Arrivals) -> Outcome {
        match arrivals {
            Arrivals::Clients(clients) => (0..clients).for_each(|_| self.arrive()),
            Arrivals::PerSecond(_) => self.at(0, Event::Arrival),
        }
        let (mut answers, mut since) = (Vec::new(), 0);
        while answers.len() < ANSWERS {
            let Reverse((time, _, event)) = self.events.pop().expect("somebody is always there");
            self.now = time;
            match (event, arrivals) {
                (Event::Arrival, Arrivals::PerSecond(rate)) => {
                    self.arrive();
                    let next = time + self.exponential(1_000.0 * MS / rate);
                    self.at(next, Event::Arrival);
                }
                (Event::Arrival, Arrivals::Clients(_)) => unreachable!("nobody else comes"),
                (Event::Answer { server, came, took }, _) => {
                    let of = &mut self.servers.servers[server];
                    of.running -= 1;
                    of.average_us = averaged(of.average_us, Duration::from_micros(took));
                    if let Some(came) = of.line.pop_front() {
                        self.begin(server, came);
                    }
                    answers.push(time - came);
                    if answers.len() == FIRST {
                        (since, self.sent) = (time, [0; 2]);
                    }
                    if let Arrivals::Clients(_) = arrivals {
                        self.arrive();
                    }
                }
            }
        }
        let counted = &mut answers[FIRST..];
        let per_second = counted.len() as f64 / (self.now - since) as f64 * 1e6;
        let (_, p99_us, _) = counted.select_nth_unstable(counted.len() * 99 / 100);
        let p99_us = *p99_us;
        Outcome { share: self.sent[SLOW] as f64 / (self.sent[SLOW] + self.sent[FAST]) as f64, p99_us, per_second }
    }
}

fn member(at: Instant) -> Member {
    Member {
        name: "".into(),
        host: "127.0.0.1".into(),
        port: 5432,
        api_url: None,
        role: Role::Replica,
        patroni_state: "streaming".into(),
        weight: 100,
        zone: None,
        probed: None,
        probe_error: None,
        since: at,
        lag_bytes: Some(0),
        lag: None,
        out: None,
        fork: None,
    }
}

fn both(arrivals: Arrivals) -> Outcome {
    Simulation::new(&["slow", "fast"], false).run(arrivals)
}

fn alone(arrivals: Arrivals) -> Outcome {
    Simulation::new(&["fast"], false).run(arrivals)
}

#[test]
fn a_replica_that_is_half_as_fast_gets_about_a_third_and_the_slowest_answers_stay_what_they_are() {
    // The fast one alone can answer 2,000 a second.
    for arrivals in [Arrivals::Clients(32), Arrivals::Clients(64), Arrivals::PerSecond(1_800.0), Arrivals::PerSecond(1_900.0)] {
        let (both, alone) = (both(arrivals), alone(arrivals));
        assert!((0.28..=0.38).contains(&both.share), "{both:?}");
        let ratio = both.p99_us as f64 / alone.p99_us as f64;
        assert!(ratio <= 1.25, "p99 {ratio:.2} times that of the fast one alone: {both:?}, {alone:?}");
    }
}

#[test]
fn nothing_of_the_slow_one_is_left_idle_while_others_wait_for_the_fast_one() {
    for clients in [32, 64] {
        let (sees, blind) = (both(Arrivals::Clients(clients)), Simulation::new(&["slow", "fast"], true).run(Arrivals::Clients(clients)));
        // 8 connections, 8 ms or 4 ms each.
        assert!(sees.per_second > 2_950.0, "{sees:?}");
        assert!(blind.per_second < 2_850.0 && blind.share < 0.30, "without the lines, the fast one alone has one: {blind:?}");
    }
}

#[test]
fn a_response_time_counts_by_an_eighth_up_to_eight_times_and_fades() {
    let ms = Duration::from_millis;
    assert_eq!(averaged(0, ms(4)), 4_000);
    assert_eq!(averaged(4_000, ms(12)), 5_000);
    assert_eq!(averaged(4_000, ms(60_000)), averaged(4_000, ms(32)));
    assert_eq!(averaged(1, Duration::ZERO), 1);
    assert_eq!(expected_us(8_000, Duration::ZERO), 8_000.0);
    assert_eq!(expected_us(8_000, Duration::from_secs(5)), 4_000.0);
    assert_eq!(expected_us(0, Duration::ZERO), RESPONSE_MIN_US);
}

#[test]
fn weight_and_warmth_are_shares() {
    let load = Load { expected_us: 10_000.0, statements: 3, weight: 100, up: Duration::from_secs(60) };
    let times = |other: Load| other.cost() / load.cost();
    assert_eq!(times(Load { weight: 50, ..load }), 2.0);
    assert_eq!(times(Load { weight: 0, ..load }), 100.0);
    assert_eq!(times(Load { up: Duration::from_secs(5), ..load }), 2.0);
    assert_eq!(times(Load { up: Duration::ZERO, ..load }), 10.0);
    assert_eq!(times(Load { statements: 7, ..load }), 2.0);
    assert_eq!(times(Load { expected_us: 40_000.0, ..load }), 2.0);
}
