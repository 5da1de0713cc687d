//! A server connection was lost: what each client gets to hear of it.
//!
//! Nothing was shown of a read: it runs again elsewhere. So does a lone write whose server proves with its last words that it was rolled back, and
//! goes away. Something that may have taken effect: 08007. Surely rolled back: 40001. State that
//! can't be rebuilt: FATAL. An idle session: nothing.

use super::batch::{End, ends_transaction};
use super::look::Look;
use super::replies::{Owed, Prepares, Sync};
use super::{Access, CopyIn, Env, Lost, Phase, Segment, ServerState, Session, Want, Work};
use crate::refusal::Refusal;
use crate::route::ServerRole;
use crate::sql::{Effect, PinReason};
use crate::topology::Member;
use crate::wire::reply::{self, TxStatus};

/// SQLSTATE 57P01, admin_shutdown.
const ADMIN_SHUTDOWN: [u8; 5] = *b"57P01";
/// SQLSTATE 25P03, idle_in_transaction_session_timeout.
const IDLE_IN_TRANSACTION: [u8; 5] = *b"25P03";
/// Servers on which a read, or a write that is proven to be rolled back, may be lost before its client is told.
const LOSSES_MAX: u8 = 2;

/// Whether all that the client waits for is the end of its transaction by COMMIT.
fn awaits_commit(work: &Work) -> bool {
    let mut waits = work.owed.iter().filter(|owed| owed.is_clients());
    let (Some(Owed::Query(verdict, _)), None) = (waits.next(), waits.next()) else { return false };
    verdict.effects == [Effect::Commit { chain: false }]
}

/// Whether what only reads has been answered, or has failed, but for its ReadyForQuery.
fn only_ready_is_missing(work: &Work) -> bool {
    let mut waits = work.owed.iter().filter(|owed| owed.is_clients());
    let (Some(last), None) = (waits.next(), waits.next()) else { return false };
    !work.writing
        && work.attempt.is_none()
        && match last {
            Owed::Sync(Sync::Clients) => true,
            Owed::Query(verdict, _) => work.segment_failed || (work.completed > 0 && verdict.statements == 1),
            _ => false,
        }
}

impl Session {
    /// The server connection that was held is gone, and with it whatever it owed. `torn`: a message was forwarded in part.
    pub fn server_lost(&mut self, env: &Env<'_>, work: &mut Work, server: &ServerState, torn: bool) {
        let node = server.node.to_string();
        self.phase = Phase::Idle;
        // What became of it, nobody knows.
        let written = std::mem::take(&mut self.written);
        env.marks.ends(&mut self.sending);
        if work.owed.iter().any(Owed::is_clients) {
            env.marks.wrote(&written, env.now);
        }
        let answered = only_ready_is_missing(work);
        let completed = std::mem::take(&mut work.completed);
        let torn = torn || (work.server_passing > 0 && !work.server_swallowing);
        work.server_passing = 0;
        work.server_in.clear();
        work.to_server.clear();
        work.copy_in = CopyIn::None;
        // The rest of a COPY message is nobody's.
        work.client_passing_on = false;
        work.alone = false;
        work.prepares = false;
        work.begin_failed = false;
        work.recovered = false;
        work.stand_ins.clear();
        let segment = std::mem::take(&mut work.segment);
        let waiting = std::mem::take(&mut work.after_bring) | std::mem::take(&mut work.elsewhere);
        work.checked = false;
        work.misshapen.clear();
        work.prelude_failed = None;
        work.segment_failed = false;
        let last_words = work.last_words.take();
        // A FATAL of this code is sent before anything of a statement is committed, or after its answer (DESIGN, section 4).
        let terminated = last_words.as_ref().is_some_and(|(sqlstate, _)| *sqlstate == ADMIN_SHUTDOWN);
        let timed_out = last_words.as_ref().is_some_and(|(sqlstate, _)| *sqlstate == IDLE_IN_TRANSACTION);
        // What isn't committed is gone with it.
        self.roll_back_changes(None);
        self.unproven = false;
        work.seen = None;
        let unseen = work.owed.iter().any(|owed| matches!(owed, Owed::Look(Look::All)));
        if unseen || self.settings.unread().next().is_some() {
            // What was left there, nobody will know.
            self.pins.add(PinReason::SettingOutOfSight);
        }
        if self.want == Some(Want::Return) && !torn {
            // It was about to be given back, and nothing on it was anybody's any more.
            work.owed.clear();
            return;
        }
        if torn {
            // Half a row went out: no error can be put behind it.
            self.want = Some(Want::Close);
            return;
        }
        if self.starting.is_some() {
            work.owed.clear();
            return self.unreachable(
                env,
                work,
                &server.node,
                &Refusal::ServerUnreachable { node, detail: "the connection was lost".into() },
            );
        }
        if let Some(status) = work.ready_after_bring.take() {
            // The statement itself was answered: only its ReadyForQuery is missing.
            work.owed.clear();
            reply::ready_for_query(&mut work.to_client, status);
        }
        if work.attempt.is_some() {
            work.losses += 1;
        }
        if let Some(attempt) = work.attempt.take_if(|_| work.losses <= LOSSES_MAX) {
            work.owed.clear();
            work.kept_back.clear();
            work.excluded.push(server.node.clone());
            self.put_begin_back(attempt);
            if terminated {
                // An administrator's pg_terminate_backend isn't undone.
                work.last_words = last_words;
                return self.ask_for_departure(server);
            }
            return self.decide(env, work);
        }
        if work.attempt.take().is_some() {
            // A statement under which servers die isn't tried on all of them. Of its answer, what was kept back is gone, too.
            let end = match work.batch.end {
                End::Ready => Owed::Sync(Sync::Clients),
                End::Open | End::Flush | End::Overflow => Owed::Bind(None, Default::default()),
            };
            self.abandon_batch(work);
            work.owed.clear();
            work.owed.push_back(end);
        }
        if !work.sent.is_empty() {
            if terminated && self.may_repeat_write(env, work) {
                // What of the answer is kept back is void with the transaction.
                work.owed.clear();
                work.kept_back.clear();
                work.losses += 1;
                std::mem::swap(&mut work.batch, &mut work.sent);
                work.sent.clear();
                work.last_words = last_words;
                return self.ask_for_departure(server);
            }
            self.deliver(env, work);
        }
        if waiting {
            // The batch was still waiting: never sent.
            self.lose_what_came_before(env, work, server);
            if self.pins.is_empty() {
                work.excluded.push(server.node.clone());
                if self.status == TxStatus::InTransaction && self.begin.is_none() && self.lost.is_none() {
                    // It belongs to a transaction.
                    self.lose_transaction(server.role, timed_out);
                    self.movable = None;
                }
                return self.decide(env, work);
            }
        }
        let in_flight = work.owed.iter().any(Owed::is_clients);
        if in_flight {
            self.watermark.saw_unknown(env.now);
        }
        if !self.pins.is_empty() {
            let reasons: Vec<_> = self.pins.iter().map(|reason| reason.as_str()).collect();
            let refusal = if in_flight && work.writing {
                Refusal::PinnedLostInFlight { node }
            } else {
                Refusal::PinnedLost { node, reasons: reasons.join(", ") }
            };
            return self.refuse_fatal(work, &refusal);
        }
        if !in_flight && segment != Segment::Closed {
            work.owed.clear();
            self.abandon_batch(work);
            // After an error the client knows all; otherwise what it was told of is rolled back.
            self.skipping = segment == Segment::Skipped;
            self.segment_lost = segment == Segment::Open;
            if self.status != TxStatus::Idle {
                self.status = TxStatus::Failed;
                self.lost = Some(Lost::Told);
            }
            self.close_portals();
            self.movable = None;
            return work.forget_attempts();
        }
        match self.status {
            TxStatus::Idle if in_flight && answered => {
                work.owed.clear();
                reply::ready_for_query(&mut work.to_client, self.status);
            }
            TxStatus::Idle if in_flight => {
                let refusal = if work.writing { Refusal::OutcomeUnknown { node } } else { Refusal::ReadCut { node } };
                self.answer_owed(work, &refusal);
            }
            TxStatus::Idle => work.owed.clear(),
            TxStatus::InTransaction | TxStatus::Failed if !in_flight => {
                work.owed.clear();
                self.lose_transaction(server.role, timed_out);
            }
            TxStatus::InTransaction if server.role == ServerRole::Replica && awaits_commit(work) => {
                // What it has read was read in one transaction, and there was nothing else to commit.
                work.owed.clear();
                self.end_reader(work);
            }
            TxStatus::InTransaction | TxStatus::Failed if self.rolls_back(work) => {
                // What the client asks for has happened.
                work.owed.clear();
                self.status = TxStatus::Idle;
                self.lost = None;
                reply::command_complete(&mut work.to_client, b"ROLLBACK");
                reply::ready_for_query(&mut work.to_client, self.status);
            }
            TxStatus::InTransaction | TxStatus::Failed => {
                let may_have_ended = work.owed.iter().any(|owed| match owed {
                    Owed::Query(verdict, _) => verdict.effects.iter().any(ends_transaction),
                    Owed::Execute(Some(statement)) => statement.verdict.effects.iter().any(ends_transaction),
                    Owed::Execute(None) => true,
                    _ => false,
                });
                if may_have_ended && self.status == TxStatus::InTransaction {
                    self.status = TxStatus::Idle;
                    // What stood in for a transaction that was lost has nothing to commit.
                    let gone = self.lost.take().is_some() || (terminated && completed == 0);
                    let refusal = if gone { Refusal::TransactionLost { node } } else { Refusal::OutcomeUnknown { node } };
                    self.answer_owed(work, &refusal);
                } else {
                    self.status = TxStatus::Failed;
                    self.lost = Some(Lost::Told);
                    self.answer_owed(work, &Refusal::TransactionLost { node });
                }
            }
        }
        if work.batch.is_empty() {
            // Otherwise some of them may be of what the client has sent since. One too many does no harm.
            self.close_portals();
        }
        self.movable = None;
        work.forget_attempts();
    }

    /// Answers what is owed to the client of segments before the batch that waits.
    fn lose_what_came_before(&mut self, env: &Env<'_>, work: &mut Work, server: &ServerState) {
        let node = server.node.to_string();
        if work.owed.iter().any(Owed::is_clients) {
            self.watermark.saw_unknown(env.now);
            let refusal = match self.status {
                TxStatus::Idle if work.writing => Refusal::OutcomeUnknown { node },
                TxStatus::Idle => Refusal::ReadCut { node },
                TxStatus::InTransaction | TxStatus::Failed => Refusal::TransactionLost { node },
            };
            if self.status != TxStatus::Idle {
                self.status = TxStatus::Failed;
                self.lost = Some(Lost::Told);
            }
            self.answer_owed(work, &refusal);
        }
        work.owed.clear();
    }

    /// A transaction of which nothing was under way: its next statement begins it anew elsewhere where it can move, and else is told of its loss.
    fn lose_transaction(&mut self, role: ServerRole, timed_out: bool) {
        if !timed_out && self.can_move(role) {
            return self.resume();
        }
        let reader = role == ServerRole::Replica;
        self.lost = Some(if self.status == TxStatus::Failed { Lost::Told } else { Lost::Untold { reader } });
    }

    /// Whether the loss of the server `node`, at this moment, would cost the client nothing: all that it waits for would be asked of another one
    /// that serves.
    pub fn would_run_again(&self, env: &Env<'_>, work: &Work, node: &str) -> bool {
        let torn = work.server_passing > 0 && !work.server_swallowing;
        let unsent = (work.after_bring || work.elsewhere)
            && !work.owed.iter().any(Owed::is_clients)
            && self.pins.is_empty()
            && (self.status == TxStatus::Idle || self.begin.is_some());
        if self.want.is_some() || torn || work.losses >= LOSSES_MAX || !(work.attempt.is_some() || unsent) {
            return false;
        }
        let free = |member: &Member| *member.name != *node && !work.excluded.contains(&member.name);
        let led = (env.policy.access == Access::ReadWrite || env.policy.fallback_to_leader)
            && env.topology.leader_at(env.now).is_some_and(|(_, member)| free(member));
        led || env.topology.replicas().any(|(_, member)| free(member))
    }

    /// Whether the lone write that was sent, and is proven to be rolled back, can run again without doing anything twice.
    fn may_repeat_write(&self, env: &Env<'_>, work: &Work) -> bool {
        if work.losses >= LOSSES_MAX || !self.pins.is_empty() || self.status != TxStatus::Idle || !work.batch.is_empty() {
            return false;
        }
        let Some((verdict, text)) = work.sent.lone_change() else { return false };
        // Prepared before the database's own objects were known, perhaps.
        verdict.acts_inside || (!text.contains(&b'\\') && self.verdict(env, text).acts_inside)
    }

    /// Whether the server goes away decides: then the batch runs again.
    fn ask_for_departure(&mut self, server: &ServerState) {
        self.phase = Phase::Waiting;
        self.want = Some(Want::Departure(server.node.clone()));
    }

    /// The answer to [`Want::Departure`]. `leaves`: the server takes no new connections, or leads no more. Otherwise somebody has ended this one
    /// connection on purpose: what the server said goes to the client, whose session ends as it would have there.
    pub fn departure(&mut self, env: &Env<'_>, work: &mut Work, leaves: bool) {
        let last_words = work.last_words.take();
        if leaves {
            return self.decide(env, work);
        }
        self.phase = Phase::Idle;
        work.batch.clear();
        work.tally.errors += 1;
        if let Some((_, message)) = last_words {
            work.to_client.extend_from_slice(&message);
        }
        self.want = Some(Want::Close);
    }

    /// Whether all that the client waits for is the end of a transaction that can only be rolled back.
    fn rolls_back(&self, work: &Work) -> bool {
        let mut waits = work.owed.iter().filter(|owed| owed.is_clients());
        let (Some(Owed::Query(verdict, _)), None) = (waits.next(), waits.next()) else { return false };
        match verdict.effects.as_slice() {
            [Effect::Rollback { chain: false }] => true,
            [Effect::Commit { chain: false }] => self.status == TxStatus::Failed,
            _ => false,
        }
    }

    /// Answers the COMMIT of a transaction that has only read.
    fn end_reader(&mut self, work: &mut Work) {
        self.status = TxStatus::Idle;
        self.lost = None;
        self.commit_changes();
        work.tally.queries += 1;
        reply::command_complete(&mut work.to_client, b"COMMIT");
        reply::ready_for_query(&mut work.to_client, self.status);
    }

    /// Puts `refusal` in the place of every answer that is owed to the client.
    fn answer_owed(&mut self, work: &mut Work, refusal: &Refusal) {
        let owed = std::mem::take(&mut work.owed);
        let mut open = false;
        let mut refusal = refusal;
        for owed in &owed {
            match owed {
                Owed::Query(..) | Owed::FunctionCall | Owed::Sync(Sync::Clients) => {
                    work.tally.refusals.push(refusal.wording().sqlstate);
                    refusal.encode(&mut work.to_client);
                    reply::ready_for_query(&mut work.to_client, self.status);
                    open = false;
                    if self.status == TxStatus::Failed {
                        refusal = &Refusal::InFailedTransaction;
                    }
                }
                owed => open |= owed.is_clients(),
            }
        }
        // What it would have prepared isn't, what it would have closed is still there; the newest first.
        for owed in owed.into_iter().rev() {
            match owed {
                Owed::Parse { prepares: Some(Prepares { name, statement, previous, .. }), .. } => {
                    self.unprepare(&name, &statement, previous)
                }
                Owed::Close { closed: Some((name, statement)), .. } => self.reinstate(name, Some(statement)),
                _ => {}
            }
        }
        if open {
            work.tally.refusals.push(refusal.wording().sqlstate);
            refusal.encode(&mut work.to_client);
            self.skipping = true;
            self.abandon_batch(work);
        }
    }

    /// The transaction's server was lost while the client was idle; now the client has sent something.
    /// True where the batch has been answered.
    pub(super) fn tell_of_lost_transaction(&mut self, work: &mut Work, reader: bool) -> bool {
        if reader && work.batch.lone_query().is_some_and(|(verdict, _)| verdict.effects == [Effect::Commit { chain: false }]) {
            work.batch.clear();
            self.end_reader(work);
            return true;
        }
        let rolls_back = work.batch.executed().any(|verdict| matches!(verdict.effects.as_slice(), [Effect::Rollback { chain: false }]));
        let commits = work.batch.executed().any(|verdict| verdict.effects.iter().any(ends_transaction));
        if rolls_back {
            // What the client asks for has happened: a failed transaction says so in PostgreSQL's words.
            self.lost = Some(Lost::Told);
            return false;
        }
        let refusal = Refusal::TransactionLost { node: if reader { "the replica" } else { "the leader" }.into() };
        if commits {
            self.lost = None;
            self.status = TxStatus::Idle;
        } else {
            self.lost = Some(Lost::Told);
        }
        self.refuse_batch(work, &refusal);
        true
    }
}
