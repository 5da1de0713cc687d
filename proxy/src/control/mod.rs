//! What operators tell a running router to do: a switchover, and taking members out of rotation and back.
//!
//! Owns the order of the steps. Invariant: whatever goes wrong, held writes are released: the hold is a value, and gone with its holder.
//! Decides nothing about who leads (that is health's judge), and moves no client (sessions see the topology and act).

pub mod ask;
mod guard;
mod http;
mod switchover;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use switchyard_core::topology::{Out, Topology};
use tokio::sync::{Mutex, mpsc};

use crate::context::Context;

pub(crate) use http::{answer, is_control};

/// Lines under way to whoever asked.
const LINES_MAX: usize = 64;
/// For the health task to publish what it was told: it takes a moment.
const PUBLISHED: Duration = Duration::from_secs(2);
/// Between two looks at what is still in use.
const LOOK: Duration = Duration::from_millis(5);
/// Between two lines that say so.
const REPORT: Duration = Duration::from_secs(1);
/// How long `drain` waits for what runs, unless it is told otherwise.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// No wait is longer: a shift's length.
const TIMEOUT_MAX: Duration = Duration::from_secs(8 * 3600);

/// What may be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    Switchover {
        /// `None`: Patroni chooses.
        to: Option<String>,
        /// Go on after `timeout_ms` though something still runs on the leader.
        force: bool,
        /// For what runs on the leader to end. `None`: a third of `failover.hold_timeout`, at most 10 seconds.
        timeout_ms: Option<u64>,
    },
    Drain {
        member: String,
        /// For what runs there to end.
        timeout_ms: Option<u64>,
    },
    Resume {
        member: String,
    },
}

/// One line of a job's progress. The last one has `ok`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Since the job began.
    pub seconds: f64,
    pub text: String,
    /// Whether the job is done, or has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ok: Option<bool>,
}

/// Does jobs.
pub(crate) struct Control {
    context: Arc<Context>,
    /// One switchover at a time.
    switching: Mutex<()>,
}

/// Where a job's progress goes: to whoever asked, and to the log.
struct Say {
    began: Instant,
    lines: mpsc::Sender<Line>,
}

impl Say {
    /// A reader that is stopped misses lines: it must not keep held writes waiting.
    fn line(&self, text: impl Into<String>) {
        let _ = self.lines.try_send(self.note(text.into(), None));
    }

    async fn end(&self, text: String, ok: bool) {
        let _ = self.lines.send(self.note(text, Some(ok))).await;
    }

    fn note(&self, text: String, ok: Option<bool>) -> Line {
        tracing::info!("{text}");
        Line { seconds: self.began.elapsed().as_secs_f64(), text, ok }
    }

    /// Whoever asked has gone.
    fn is_alone(&self) -> bool {
        self.lines.is_closed()
    }
}

impl Control {
    pub(crate) fn new(context: Arc<Context>) -> Control {
        Control { context, switching: Mutex::new(()) }
    }

    /// Starts a job; its lines come from the receiver. It goes on without one, up to the point from which it can be given up for nothing.
    pub(crate) fn start(self: &Arc<Control>, job: Job) -> mpsc::Receiver<Line> {
        let (sender, lines) = mpsc::channel(LINES_MAX);
        let control = self.clone();
        tokio::spawn(async move {
            let say = Say { began: Instant::now(), lines: sender };
            let outcome = control.work(job, &say).await;
            let ok = outcome.is_ok();
            let text = outcome.unwrap_or_else(|error| error);
            control.context.stats.event(text.clone());
            say.end(text, ok).await;
        });
        lines
    }

    /// What was done, or why not.
    async fn work(&self, job: Job, say: &Say) -> Result<String, String> {
        match job {
            Job::Switchover { to, force, timeout_ms } => {
                let _turn = self.switching.try_lock().map_err(|_| "not begun: another switchover is under way".to_owned())?;
                self.switchover(to, force, timeout_ms.map(Duration::from_millis), say).await
            }
            Job::Drain { member, timeout_ms } => self.drain(&member, timeout_ms.map_or(DRAIN_TIMEOUT, Duration::from_millis), say).await,
            Job::Resume { member } => self.resume(&member).await,
        }
    }

    async fn drain(&self, name: &str, timeout: Duration, say: &Say) -> Result<String, String> {
        let timeout = timeout.min(TIMEOUT_MAX);
        {
            let topology = self.context.health.topology.load();
            known(&topology, name)?;
            if topology.leader_at(Instant::now()).is_some_and(|(_, leader)| *leader.name == *name) {
                return Err(format!("not drained: {name} leads; use `switchyard switchover` first"));
            }
        }
        self.context.health.drain(name);
        self.published(|topology| topology.member(name).is_none_or(|member| member.out.is_some_and(|out| out != Out::Lagging)))
            .await
            .map_err(|()| {
                // It has become the leader in this very moment.
                self.context.health.resume(name);
                format!("not drained: {name} leads now")
            })?;
        say.line(format!("{name} gets no new reads"));
        let left = self.wait_idle(name, timeout, say, || Ok(())).await?;
        self.context.pools.close_idle(name);
        match left {
            0 => Ok(format!("{name} is drained: nothing of this router's runs there")),
            left => Err(format!("{name} gets no new reads, but {} after {timeout:?}", self.in_use(name, left))),
        }
    }

    async fn resume(&self, name: &str) -> Result<String, String> {
        if !self.context.health.resume(name) {
            known(&self.context.health.topology.load(), name)?;
            return Ok(format!("{name} was not drained"));
        }
        let _ = self.published(|topology| topology.member(name).is_none_or(|member| member.out != Some(Out::Drained))).await;
        match self.context.health.topology.load().member(name).and_then(|member| member.out) {
            Some(out) => Ok(format!("{name} is no longer drained, and gets no reads: {}", out.as_str())),
            None => Ok(format!("{name} gets reads again")),
        }
    }

    /// Waits until the topology says so, a moment at most.
    async fn published(&self, shows: impl Fn(&Topology) -> bool) -> Result<(), ()> {
        let mut changed = self.context.health.changed();
        let wait = async {
            loop {
                changed.mark_unchanged();
                if shows(&self.context.health.topology.load()) {
                    return Ok(());
                }
                changed.changed().await.map_err(drop)?;
            }
        };
        tokio::time::timeout(PUBLISHED, wait).await.unwrap_or(Err(()))
    }

    /// Waits until no session uses a connection to `node`, or the time is up: how many still do. `go_on` may end it.
    async fn wait_idle(&self, node: &str, timeout: Duration, say: &Say, go_on: impl Fn() -> Result<(), String>) -> Result<usize, String> {
        let began = Instant::now();
        let mut reported = began;
        loop {
            let left = self.context.pools.busy(node);
            if left == 0 || began.elapsed() >= timeout {
                return Ok(left);
            }
            go_on()?;
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                say.line(format!("waiting: {}", self.in_use(node, left)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What still runs on a member, in words.
    fn in_use(&self, node: &str, count: usize) -> String {
        let pinned = self.context.stats.pinned.lock();
        let reasons: Vec<&str> =
            pinned.values().filter(|pinned| *pinned.node == *node).flat_map(|pinned| pinned.reasons.iter().copied()).collect();
        let sessions = pinned.values().filter(|pinned| *pinned.node == *node).count();
        drop(pinned);
        let connections = if count == 1 { "1 connection to it is in use" } else { &format!("{count} connections to it are in use") };
        if sessions == 0 {
            return connections.to_owned();
        }
        let mut words: Vec<&str> = reasons;
        words.sort_unstable();
        words.dedup();
        format!("{connections}, {sessions} of them kept by sessions for their state ({})", words.join(", "))
    }
}

fn known(topology: &Topology, name: &str) -> Result<(), String> {
    if topology.member(name).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = topology.members.iter().map(|member| &*member.name).collect();
    Err(format!("no member is called {name:?}; there are {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") }))
}
