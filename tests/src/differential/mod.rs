//! The judge of sessions that share server connections: random scripts, played by the router's client and by a direct
//! one in step.
//!
//! Each answer must be the same, and so must what the session says of itself, what is in the tables at the end, and
//! what a *second* client sees, before the first has gone and after it: nothing. What differs is shrunk to the
//! smallest script that does, and told as one that can be played again.
//!
//! [`script`] says what a script is, [`grammar`] draws one, [`objects`] makes what it meets in the database,
//! [`player`] plays it over [`wire`], [`compare`] says what is the same, and [`shrink`] makes it small.

mod compare;
mod encode;
mod grammar;
mod objects;
mod player;
mod script;
mod shrink;
mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

pub use player::{Difference, Kind};
pub use script::{End, Message, Script, Step};

use crate::cluster::{Cluster, Options};
use crate::leaks;
use crate::router::{Router, RouterOptions};
use grammar::Grammar;
use player::{Player, Ports};

const AGAIN: Duration = Duration::from_secs(30);
/// A line that is longer isn't shown whole.
const LONG: usize = 200;
const PROGRESS: Duration = Duration::from_secs(10);
/// A worker whose servers don't answer so often gives up.
const FAULTS_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    ReadWrite,
    ReadOnly,
}

/// What isn't looked at: for work on one kind while another, which comes everywhere, is known and not yet mended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Blind {
    /// A custom setting that is empty where it should be NULL.
    pub placeholders: bool,
    /// Messages with Terminate or the end of input behind them.
    pub ends: bool,
    /// `lastval()` of somebody else.
    pub numbers: bool,
    /// Names of prepared statements, in errors and in `pg_prepared_statements`.
    pub names: bool,
}

/// What is played.
#[derive(Clone, Debug)]
pub struct Plan {
    pub port: Port,
    /// Server connections for each (node, database, user). With one, a second client gets the first one's.
    pub pool: usize,
    /// The script of number `i` is drawn from `seed + i`.
    pub seed: u64,
    pub scripts: u64,
    /// Begins no script after this.
    pub time: Option<Duration>,
    pub workers: usize,
    /// Different findings after which it ends.
    pub findings: usize,
    pub blind: Blind,
    /// Leaves out what hasn't these words in one of its texts; in upper case.
    pub only: Option<String>,
    /// Plays on two direct connections: what differs then is the judge's own fault.
    pub twice_direct: bool,
}

/// What was found, the smallest script of each.
#[derive(Debug, Default)]
pub struct Report {
    pub played: u64,
    /// Scripts that the direct side couldn't play, with the reasons of some.
    pub unplayed: BTreeMap<String, u64>,
    /// Scripts with an answer that differs as docs/sessions.md says.
    pub excused: u64,
    pub findings: Vec<Finding>,
    /// When its progress was told last, since the beginning.
    told: Duration,
}

#[derive(Debug)]
pub struct Finding {
    pub script: Script,
    pub difference: Difference,
    pub seed: u64,
    /// Whether it fails alone, again.
    pub again: bool,
    /// Scripts that hold it.
    pub times: u64,
    /// Since the beginning of the run.
    pub after: Duration,
    outline: Vec<String>,
}

/// A cluster with what the scripts meet, and a router in front of it.
#[derive(Debug)]
pub struct Stage {
    cluster: Cluster,
    workers: Vec<objects::Databases>,
}

impl Stage {
    /// # Errors
    /// If the cluster doesn't start.
    pub async fn start(workers: usize) -> anyhow::Result<Stage> {
        let options = Options::new().members(2).hba("host all all 127.0.0.1/32 trust");
        // Scripts make and drop connections all the time.
        let cluster = Cluster::start(options.parameter("max_connections", 300).parameter("autovacuum_naptime", "5s")).await?;
        let leader = cluster.leader().await?;
        let address = leader.dsn();
        let address = address.strip_suffix("/postgres").context("an address")?;
        let workers = objects::prepare(&leader.connect().await?, address, workers).await?;
        cluster.settled().await?;
        Ok(Stage { cluster, workers })
    }

    /// # Errors
    /// If the router doesn't start.
    pub async fn router(&self, pool: usize, settings: &[(String, toml::Value)]) -> anyhow::Result<Router> {
        let trust: toml::Table = "users = 'all'\nmethod = 'trust'".parse()?;
        let rules = vec![toml::Value::Table(trust)];
        let mut options = RouterOptions::new()
            .set("auth", rules.clone())
            .set("server_auth", rules)
            .set("log.filter", "info")
            .set("pool.max_size", pool as i64)
            .set("pool.max_per_node", 200)
            // A connection that ends by its age looks like one that somebody has closed.
            .set("pool.max_lifetime", "24h")
            // Shorter than the judge's patience, so that the router's own words are seen.
            .set("pool.wait_timeout", "4s");
        for (key, value) in settings {
            options = options.set(key, value.clone());
        }
        Router::start(&self.cluster, options).await
    }

    /// Plays, and tells on the way.
    ///
    /// # Errors
    /// If the servers don't answer.
    pub async fn play(&self, router: &Router, plan: &Plan) -> anyhow::Result<Report> {
        let mut ports = self.ports(router, plan.port).await?;
        if plan.twice_direct {
            ports.routed = ports.direct;
        }
        let log = router.log_file();
        let begin = Instant::now();
        let run = Run { plan, begin, next: AtomicU64::new(0), ended: AtomicBool::new(false), report: Mutex::default() };
        let players: anyhow::Result<Vec<Player>> =
            self.workers.iter().take(plan.workers).map(|databases| Player::new(ports, databases.clone(), log, plan.blind)).collect();
        let players = players?;
        let results: Vec<anyhow::Result<()>> = tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let workers: Vec<_> = players.into_iter().map(|player| scope.spawn(|| run.work(player))).collect();
                workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked"))).collect()
            })
        });
        let report = run.report.into_inner().unwrap_or_else(PoisonError::into_inner);
        println!("{}", report.summary(begin.elapsed()));
        results.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
        ensure!(router.ended()?.is_none(), "the router ended\n{}", router.log());
        // Each line was a script's. What came too late for that must not be missed either.
        let told = leaks::none_in(log);
        if report.findings.is_empty() {
            told?;
        }
        Ok(report)
    }

    /// Plays one script; `None` if the sides are the same.
    ///
    /// # Errors
    /// If the servers don't answer.
    pub async fn replay(&self, router: &Router, port: Port, script: &Script) -> anyhow::Result<Option<Difference>> {
        let ports = self.ports(router, port).await?;
        let log = router.log_file();
        // A server that has crashed over the script before needs a moment.
        let begin = async || Player::new(ports, self.workers[0].clone(), log, Blind::default()).map(Some);
        let mut player = crate::eventually(AGAIN, "a player", begin).await?;
        let played = tokio::task::block_in_place(|| player.play(script));
        // The player has told of it, unless it came too late for that.
        let told = leaks::none_in(log);
        if matches!(played, Ok(None)) {
            told?;
        }
        played
    }

    async fn ports(&self, router: &Router, side: Port) -> anyhow::Result<Ports> {
        let (leader, replicas) = (self.cluster.leader().await?.port(), self.cluster.replicas().await?);
        let replica = replicas.first().context("a replica")?.port();
        Ok(match side {
            Port::ReadWrite => Ports { side, direct: leader, routed: router.rw_port(), leader, replica },
            Port::ReadOnly => Ports { side, direct: replica, routed: router.ro_port(), leader, replica },
        })
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        self.cluster.logs()
    }
}

struct Run<'a> {
    plan: &'a Plan,
    begin: Instant,
    next: AtomicU64,
    ended: AtomicBool,
    report: Mutex<Report>,
}

impl Run<'_> {
    fn work(&self, mut player: Player) -> anyhow::Result<()> {
        let plan = self.plan;
        let mut faults = 0;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let over = plan.time.is_some_and(|time| self.begin.elapsed() >= time);
            if number >= plan.scripts || over || self.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            let seed = plan.seed.wrapping_add(number);
            let mut script = Grammar::script(seed, plan.port, plan.pool);
            if plan.only.as_ref().is_some_and(|words| !script.texts().any(|text| text.to_ascii_uppercase().contains(words))) {
                continue;
            }
            if plan.blind.ends && matches!(script.end, End::Behind(_) | End::HalfClose(_)) {
                script.end = End::Terminate;
            }
            let played = player.play(&script);
            self.with(|report| {
                report.played += 1;
                report.excused += u64::from(player.excused());
            });
            match played {
                Ok(None) => faults = 0,
                Ok(Some(difference)) => {
                    self.found(&mut player, &script, difference, seed)?;
                    faults = 0;
                }
                Err(error) => {
                    self.with(|report| {
                        *report.unplayed.entry(format!("{error:#}")).or_insert_with(|| {
                            println!("seed {seed} couldn't be played: {error:#}\n{script}");
                            0
                        }) += 1
                    });
                    faults += 1;
                    ensure!(faults < FAULTS_MAX, "{FAULTS_MAX} scripts in a row couldn't be played: {error:#}");
                }
            }
            self.with(|report| report.tell(self.begin.elapsed()));
        }
    }

    fn found(&self, player: &mut Player, script: &Script, difference: Difference, seed: u64) -> anyhow::Result<()> {
        let outline = shrink::outline(script);
        let kind = difference.kind;
        if self.with(|report| report.know(&outline, kind)) {
            return Ok(());
        }
        let shrunk = shrink::shrink(player, script, difference)?;
        let outline = shrink::outline(&shrunk.script);
        self.with(|report| {
            if shrunk.again && (report.know(&outline, kind) || report.same(&outline, &shrunk.difference)) {
                return;
            }
            let finding = Finding {
                script: shrunk.script,
                difference: shrunk.difference,
                seed,
                again: shrunk.again,
                times: 1,
                after: self.begin.elapsed(),
                outline,
            };
            println!("--- finding {}\n{finding}", report.findings.len() + 1);
            report.findings.push(finding);
            if report.findings.len() >= self.plan.findings {
                self.ended.store(true, Ordering::Relaxed);
            }
        });
        Ok(())
    }

    fn with<T>(&self, change: impl FnOnce(&mut Report) -> T) -> T {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Report {
    /// Whether a script with that outline holds a finding that is known, which then counts it.
    fn know(&mut self, outline: &[String], kind: Kind) -> bool {
        let known =
            self.findings.iter_mut().find(|known| known.again && known.difference.kind == kind && shrink::within(&known.outline, outline));
        known.map(|known| known.times += 1).is_some()
    }

    /// Whether a finding as small as this one came apart in the same place by the same words.
    fn same(&mut self, outline: &[String], difference: &Difference) -> bool {
        let known = self.findings.iter_mut().find(|known| {
            known.again && known.outline.len() == outline.len() && shrink::signature(&known.difference) == shrink::signature(difference)
        });
        known.map(|known| known.times += 1).is_some()
    }

    /// Its progress, now and then.
    fn tell(&mut self, elapsed: Duration) {
        if elapsed >= self.told + PROGRESS {
            self.told = elapsed;
            println!("{}", self.progress(elapsed));
        }
    }

    fn progress(&self, elapsed: Duration) -> String {
        let rate = self.played as f64 / elapsed.as_secs_f64();
        let unplayed: u64 = self.unplayed.values().sum();
        format!(
            "{} scripts in {:.0} s, {rate:.0} a second, {} findings, {unplayed} not played, {} with an excused answer",
            self.played,
            elapsed.as_secs_f64(),
            self.findings.len(),
            self.excused
        )
    }

    fn summary(&self, elapsed: Duration) -> String {
        let mut text = self.progress(elapsed);
        for (index, finding) in self.findings.iter().enumerate() {
            let kind = finding.difference.kind;
            text += &format!(
                "\n  finding {}: {kind:?}, {} scripts, first after {:.0} s",
                index + 1,
                finding.times,
                finding.after.as_secs_f64()
            );
        }
        text
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let alone = if self.again { "" } else { " (not when it is played again)" };
        write!(f, "seed {}, after {:.0} s{alone}\n{}{}", self.seed, self.after.as_secs_f64(), self.script, self.difference)
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:?}, at {}", self.kind, self.place)?;
        for (side, lines, others) in [("direct", &self.direct, &self.routed), ("routed", &self.routed, &self.direct)] {
            for (index, line) in lines.iter().enumerate() {
                writeln!(f, "    {side}: {}", others.get(index).map_or_else(|| line.clone(), |other| told_apart(line, other)))?;
            }
        }
        Ok(())
    }
}

/// Of a long line, the words that its counterpart hasn't got.
fn told_apart(line: &str, other: &str) -> String {
    let (words, others): (Vec<&str>, Vec<&str>) = (line.split(' ').collect(), other.split(' ').collect());
    if line.len() < LONG || words.len() != others.len() {
        return line.to_owned();
    }
    let differ = words.iter().zip(&others).filter(|(word, other)| word != other);
    let differ: Vec<&str> = differ.map(|(word, _)| *word).collect();
    if differ.is_empty() { line.to_owned() } else { format!("... {} ...", differ.join(" ... ")) }
}
