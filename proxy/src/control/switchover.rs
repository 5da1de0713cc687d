//! A planned switchover: hold new writes, let what runs on the leader end, ask Patroni, wait for the new leader, release.

use std::time::{Duration, Instant};

use switchyard_core::topology::{ClusterState, Epoch};
use switchyard_health::patroni;

use super::{Control, Say, TIMEOUT_MAX, known};

/// For what runs on the leader, unless told otherwise; at most a third of what held writes bear.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request on. Patroni answers after `loop_wait` and a few seconds at the latest; a shutdown with a long checkpoint takes longer.
const PATRONI_TIMEOUT: Duration = Duration::from_secs(60);
/// After Patroni has said that it is done, for the new leader to be in force here.
const IN_FORCE: Duration = Duration::from_secs(15);

/// How the leadership stands beside the one that the switchover began in.
enum Stand {
    /// It is still in force.
    Same,
    Nobody,
    Another {
        name: String,
        timeline: u32,
    },
}

impl Control {
    pub(super) async fn switchover(&self, to: Option<String>, force: bool, timeout: Option<Duration>, say: &Say) -> Result<String, String> {
        let config = self.context.config.load_full();
        let hold_timeout = config.failover.hold_timeout;
        let timeout = timeout.unwrap_or(DRAIN_TIMEOUT.min(hold_timeout / 3)).min(TIMEOUT_MAX);
        if timeout >= hold_timeout {
            return Err(format!(
                "not begun: writes wait for {hold_timeout:?} at most (failover.hold_timeout), and the time given is {timeout:?}"
            ));
        }
        let (old, epoch, api_url) = {
            let topology = self.context.health.topology.load();
            let (leader, member) = topology.leader_at(Instant::now()).ok_or("not begun: no leader is in force")?;
            if let Some(to) = &to {
                known(&topology, to).map_err(|error| format!("not begun: {error}"))?;
                if **to == *member.name {
                    return Err(format!("not begun: {to} leads already"));
                }
            }
            let api_url = member.api_url.clone().ok_or_else(|| format!("not begun: {} announces no REST API of Patroni", member.name))?;
            (member.name.clone(), leader.epoch, api_url)
        };
        say.line(format!("{old} leads; the next one is {}", to.as_deref().unwrap_or("for Patroni to choose")));

        let held_at = Instant::now();
        // Released when this function ends, however it does.
        let _hold = self.context.health.hold_writes(held_at + timeout + PATRONI_TIMEOUT + IN_FORCE);
        self.published(|topology| topology.state == ClusterState::Switching || topology.epoch != epoch)
            .await
            .map_err(|()| "not begun: the router does not hold writes".to_owned())?;
        say.line("new writes wait");
        let still = || match (self.stand(epoch), say.is_alone()) {
            (Stand::Same, false) => Ok(()),
            (Stand::Same, true) => Err("given up: whoever asked has gone; writes go on".to_owned()),
            _ => Err(format!("given up: {old} doesn't lead any more")),
        };
        let left = self.wait_idle(&old, timeout, say, still).await?;
        still()?;
        match left {
            0 => say.line(format!("nothing of this router's runs on {old} any more")),
            left if force => {
                say.line(format!("going on all the same: {}; it ends with the leadership", self.in_use(&old, left)));
            }
            left => {
                return Err(format!(
                    "given up after {timeout:?}, writes go on: {} (--force goes on, --timeout waits longer)",
                    self.in_use(&old, left)
                ));
            }
        }

        say.line(format!("asking Patroni of {old}"));
        let asked = Instant::now();
        let request = patroni::switchover(&config, &api_url, &old, to.as_deref(), PATRONI_TIMEOUT);
        let mut request = std::pin::pin!(request);
        let mut answered = false;
        let mut changed = self.context.health.changed();
        let mut deadline = asked + PATRONI_TIMEOUT + IN_FORCE;
        let mut gone = false;
        loop {
            changed.mark_unchanged();
            match self.stand(epoch) {
                Stand::Another { name, timeline } if name == *old => {
                    return Err(format!("failed: {name} leads again, on timeline {timeline}; writes go on"));
                }
                Stand::Another { name, timeline } => {
                    let held = held_at.elapsed().as_secs_f64();
                    if to.as_ref().is_some_and(|to| *to != name) {
                        return Err(format!("{name} leads, not the member that was asked for; writes go on"));
                    }
                    return Ok(format!("{name} leads, on timeline {timeline}; writes waited for {held:.2} s"));
                }
                Stand::Nobody if !gone => {
                    gone = true;
                    say.line(format!("{old} doesn't lead any more"));
                }
                Stand::Nobody | Stand::Same => {}
            }
            tokio::select! {
                answer = &mut request, if !answered => {
                    answered = true;
                    let same = matches!(self.stand(epoch), Stand::Same);
                    match answer {
                        Ok(answer) if (200..300).contains(&answer.status) => {
                            say.line(format!("Patroni: {}", answer.text));
                            deadline = Instant::now() + IN_FORCE;
                        }
                        Ok(answer) if answer.status < 500 || same => {
                            let verb = if answer.status < 500 { "refuses" } else { "fails" };
                            return Err(format!("Patroni {verb}, writes go on: {} ({})", answer.text, answer.status));
                        }
                        Ok(answer) => say.line(format!("Patroni: {} ({})", answer.text, answer.status)),
                        Err(error) if same => return Err(format!("Patroni of {old} doesn't answer, writes go on: {error}")),
                        Err(error) => say.line(format!("Patroni of {old}: {error}")),
                    }
                }
                _ = changed.changed() => {}
                () = tokio::time::sleep_until(deadline.into()) => {
                    return Err(format!("no new leader within {:?}; writes wait as they do without one", asked.elapsed()));
                }
            }
        }
    }

    fn stand(&self, epoch: Epoch) -> Stand {
        let topology = self.context.health.topology.load();
        match topology.leader_at(Instant::now()) {
            Some((leader, _)) if leader.epoch == epoch => Stand::Same,
            Some((leader, member)) => Stand::Another { name: member.name.to_string(), timeline: leader.timeline.0 },
            None => Stand::Nobody,
        }
    }
}
