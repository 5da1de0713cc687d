//! Where a complete batch goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::{End, Item};
use super::effects::{changes_session, is_role};
use super::server::is_server_name;
use super::{Access, Env, HeldBegin, Lost, Phase, Segment, ServerState, Session, Want, Work, own};
use crate::causal::{self, Bound, Level};
use crate::marks::Touched;
use crate::refusal::Refusal;
use crate::route::{self, Ask, Need, ServerRole, Why};
use crate::sql::lexer::{Lexer, TokenKind};
use crate::sql::{Class, Effect, Hint, RuledRoute, Ruling, SetTo, TransactionModes, Verdict};
use crate::topology::ClusterState;
use crate::wire::reply::{self, TxStatus};
use crate::wire::{frame, view};

impl Session {
    /// Chooses a node for the batch that waits (or for the session's start), and says so in `want`.
    pub(super) fn decide(&mut self, env: &Env<'_>, work: &mut Work) {
        self.phase = Phase::Idle;
        if let Some(Lost::Untold { reader }) = self.lost
            && self.tell_of_lost_transaction(work, reader)
        {
            return;
        }
        if self.starting.is_some() || self.lost.is_some() {
            return self.lease_any(env, work);
        }
        match env.policy.access {
            Access::ReadOnly => self.decide_read_only(env, work),
            Access::ReadWrite => self.decide_read_write(env, work),
        }
    }

    /// A server connection that will do for settings and for what ends a failed transaction: the leader's, else any.
    fn lease_any(&mut self, env: &Env<'_>, work: &mut Work) {
        if env.policy.access == Access::ReadWrite
            // What would be cut by a switchover in a moment needn't begin there.
            && env.topology.state != ClusterState::Switching
            && let Some((leader, member)) = env.topology.leader_at(env.now)
            && !work.excluded.contains(&member.name)
        {
            let need = Need { node: member.name.clone(), role: ServerRole::Leader, epoch: leader.epoch, why: Why::Local };
            return self.lease(need);
        }
        match self.replica(env, work, Level::Eventual) {
            Choice::Replica(need) => self.lease(Need { why: Why::Local, ..need }),
            Choice::Leader(_) | Choice::Ask if env.policy.access == Access::ReadOnly => self.fall_back(env, work),
            Choice::Leader(_) | Choice::Ask => self.hold(),
        }
    }

    fn decide_read_only(&mut self, env: &Env<'_>, work: &mut Work) {
        if (self.begin.is_some() || self.status == TxStatus::Idle) && self.hold_transaction_control(env, work) {
            return;
        }
        match self.replica(env, work, self.level(env, work)) {
            Choice::Replica(need) => self.lease(need),
            Choice::Leader(_) => self.fall_back(env, work),
            Choice::Ask => self.await_sample(),
        }
    }

    /// No replica is left for the read-only port: the leader serves it, enforced read-only, or nobody.
    fn fall_back(&mut self, env: &Env<'_>, work: &mut Work) {
        if !env.policy.fallback_to_leader {
            return self.denied(work, &Refusal::NoReplica);
        }
        let Some((leader, member)) = env.topology.leader_at(env.now) else { return self.hold() };
        if env.topology.state == ClusterState::Switching {
            return self.hold();
        }
        if work.excluded.contains(&member.name) {
            return self.denied(work, &Refusal::NoReplica);
        }
        if self.is_unsettled(env, work) {
            return self.wait_to_settle(env, work);
        }
        // Opened as a replica's, so that it is read-only by its startup, too.
        let need = Need { node: member.name.clone(), role: ServerRole::Replica, epoch: leader.epoch, why: Why::Fallback };
        self.lease(need);
    }

    /// Whether the leader serves the read-only port here.
    pub(super) fn serves_fallback(&self, env: &Env<'_>) -> bool {
        let Phase::Holding { member, role: ServerRole::Replica } = &self.phase else { return false };
        let leads = env.topology.leader.as_ref().and_then(|leader| env.topology.members.get(leader.member));
        leads.is_some_and(|leader| leader.name == member.name)
    }

    /// What the router refuses while the leader serves the read-only port: `default_transaction_read_only` alone stops neither
    /// VACUUM nor NOTIFY, and `set_config` turns it off. Only what is judged a read runs, or would be but for a question about the server.
    /// And what rules of the configuration reject, and parameters of ours that can't be set so.
    pub(super) fn refused(&self, env: &Env<'_>, item: &Item, message: &[u8]) -> Option<Refusal> {
        let overruled = match item {
            Item::Query(verdict) => self.overruled_refusal(verdict, message.get(frame::HEADER..message.len() - 1).unwrap_or_default()),
            Item::Execute(Some(statement)) => self.overruled_refusal(&statement.verdict, statement.text()),
            _ => None,
        };
        if overruled.is_some() {
            return overruled;
        }
        if let Some(name) = self.names_another_clients(item, message) {
            return Some(Refusal::NoSuchStatement { name });
        }
        if self.lost == Some(Lost::StoodIn)
            && let Item::Query(verdict) = item
            && verdict.effects.iter().any(|effect| matches!(effect, Effect::RollbackTo { .. }))
        {
            // The savepoint was lost with the transaction; the one that stands in for it never had it.
            return Some(Refusal::InFailedTransaction);
        }
        if !self.serves_fallback(env) {
            return None;
        }
        let refused = |command: &'static str| Some(Refusal::ReadOnly { command: command.into() });
        let verdict = match item {
            Item::FunctionCall { .. } => return refused("fastpath function call"),
            Item::Query(verdict) => verdict,
            // It may have been prepared before the relations in it were known.
            Item::Execute(Some(statement)) if statement.verdict.class > Class::Read => &self.verdict_again(env, statement),
            Item::Execute(Some(statement)) => &statement.verdict,
            Item::Execute(None) => return refused("EXECUTE"),
            _ => return None,
        };
        let controls = verdict.effects.iter().any(|effect| {
            matches!(effect, Effect::Begin(_) | Effect::Commit { .. } | Effect::Rollback { .. } | Effect::SetTransaction { .. })
        });
        if (verdict.class > Class::Read && !verdict.only_asks_the_server()) || (controls && verdict.statements > 1) {
            return refused(verdict.command);
        }
        // Session state that would make a write possible later.
        let allows_writes = verdict.effects.iter().any(|effect| {
            matches!(effect, Effect::Set { name, .. } if matches!(&**name, "transaction_read_only" | "default_transaction_read_only"))
                || matches!(effect, Effect::SetTransaction { modes, .. } | Effect::Begin(modes) if modes.read_only == Some(false))
        });
        if allows_writes { refused(verdict.command) } else { None }
    }

    /// A statement's name on servers that the client hasn't given to one of its own: whatever it finds there is somebody else's.
    fn names_another_clients(&self, item: &Item, message: &[u8]) -> Option<String> {
        let foreign = |name: &[u8]| is_server_name(name) && !self.statements.contains_key(name) && !self.sql_prepared.contains(name);
        let by_sql = |verdict: &Verdict| {
            verdict.effects.iter().find_map(|effect| match effect {
                Effect::Deallocate { name } | Effect::Execute { name } if foreign(name.as_bytes()) => Some(name.to_string()),
                _ => None,
            })
        };
        let body = message.get(frame::HEADER..)?;
        let shown = |name: &[u8]| foreign(name).then(|| String::from_utf8_lossy(name).into_owned());
        match item {
            Item::Query(verdict) => by_sql(verdict),
            Item::Execute(Some(statement)) => by_sql(&statement.verdict),
            Item::Bind { statement: None, unnamed: false, .. } => view::bind(body).ok().and_then(|bind| shown(bind.statement)),
            Item::DescribeStatement { statement: None, unnamed: false } => view::target(body).ok().and_then(|(_, name)| shown(name)),
            _ => None,
        }
    }

    fn overruled_refusal(&self, verdict: &Verdict, text: &[u8]) -> Option<Refusal> {
        if let Some(Ruling { rule, route: Some(RuledRoute::Reject), .. }) = &verdict.ruling {
            return Some(Refusal::RejectedByRoutingRule { rule: rule.to_string() });
        }
        if verdict.effects.is_empty() || self.status == TxStatus::Failed {
            return None;
        }
        own::refused(verdict, text, self.dialect())
    }

    /// Where the client or the configuration want the batch to go: by a comment, by `switchyard.route`, by a rule, in this order.
    /// Statements without data go by comments alone.
    fn overruling(&self, work: &Work, class: Class) -> Option<Hint> {
        let comment = work.batch.hint();
        if class == Class::Local { comment } else { comment.or_else(|| self.own.route()).or_else(|| work.batch.ruled()) }
    }

    /// The leader, for a batch; a read of a session that a replica has shown more waits for the leader to show that, too.
    fn lead(&mut self, env: &Env<'_>, work: &mut Work, why: Why) {
        if self.is_unsettled(env, work) { self.wait_to_settle(env, work) } else { self.lease_leader(env, why) }
    }

    fn is_unsettled(&self, env: &Env<'_>, work: &Work) -> bool {
        work.batch.class() == Class::Read
            && env.topology.leader_at(env.now).is_some()
            && self.level(env, work) >= Level::Session
            && (self.watermark.is_ahead_of_leader(env.topology) || self.is_ahead_of_writes(env, work))
    }

    /// Whether a replica may have shown the session what somebody is still waiting for, so that the leader may show it later. That takes a moment.
    fn is_ahead_of_writes(&self, env: &Env<'_>, work: &Work) -> bool {
        let Some(shown_at) = self.watermark.on_replica() else { return false };
        let waited = work.unsettled.map_or(Duration::ZERO, |since| env.now - since);
        let generation = env.judge.generation();
        let behind = |verdict: &Verdict| env.marks.are_behind(reads_of(verdict, generation), shown_at, env.now);
        waited < env.policy.settle_wait && work.batch.verdicts().any(|verdict| behind(verdict))
    }

    /// A synchronous standby that is gone may never answer; Patroni has taken it out by the time that this gives up.
    fn wait_to_settle(&mut self, env: &Env<'_>, work: &mut Work) {
        let waited = env.now - *work.unsettled.get_or_insert(env.now);
        if waited < env.policy.settle_wait {
            return self.await_sample();
        }
        self.denied(work, &Refusal::Unsettled { waited });
    }

    fn decide_read_write(&mut self, env: &Env<'_>, work: &mut Work) {
        if work.rerun_on_leader {
            return self.lead(env, work, Why::Rerun);
        }
        if (self.begin.is_some() || self.status == TxStatus::Idle) && self.hold_transaction_control(env, work) {
            return;
        }
        if work.batch.end == End::Overflow || (work.batch.end == End::Flush && work.batch.executes()) {
            return self.lead(env, work, Why::LookAhead);
        }
        let class = work.batch.class();
        if self.stays_where_it_runs(work, class) {
            return self.lead(env, work, Why::Write);
        }
        let overruling = self.overruling(work, class);
        if class == Class::Read && overruling != Some(Hint::Replica) && self.is_in_doubt(env, work) {
            return self.lead(env, work, Why::InDoubt);
        }
        if let Some(begin) = self.begin.as_ref().map(|begin| begin.modes).or_else(|| begins(work)) {
            let read_only = begin.read_only.unwrap_or(self.default_read_only());
            let serializable = begin.serializable.unwrap_or(self.reading_allowed_on_leader_only());
            let on_replica = env.policy.readonly_on_replica && read_only && overruling != Some(Hint::Leader);
            // Whoever wants a replica for all of a transaction gets one, and its refusal of whatever writes.
            let wanted = overruling == Some(Hint::Replica);
            let level = self.level(env, work);
            // Each later statement takes a snapshot of its own: that of a held BEGIN can move then, unless it had to wait for the leader's
            // position each time.
            let one_snapshot = begin.repeatable_read.unwrap_or_else(|| self.default_isolation_is("repeatable"));
            let beyond = match level {
                Level::Eventual | Level::Session => false,
                Level::Global => self.begin.is_none(),
                Level::Strong => self.begin.is_none() || !one_snapshot,
            };
            if !((on_replica || wanted) && !serializable && class == Class::Read) || beyond {
                return self.lead(env, work, Why::Transaction);
            }
        }
        match (class, overruling) {
            (Class::Local | Class::Read, Some(Hint::Leader)) => self.lead(env, work, Why::Hint),
            (_, Some(Hint::Replica)) | (Class::Read, None) => {
                if self.reading_allowed_on_leader_only() {
                    return self.lead(env, work, Why::Write);
                }
                match self.replica(env, work, self.level(env, work)) {
                    Choice::Replica(need) => self.lease(need),
                    Choice::Leader(Why::NotCaughtUp) if self.waits_for_word(env, work) => self.await_sample(),
                    Choice::Leader(why) => self.lead(env, work, why),
                    Choice::Ask => self.await_sample(),
                }
            }
            (Class::Local, None) => self.lease_any(env, work),
            (Class::Write, _) => self.lead(env, work, Why::Write),
        }
    }

    /// Whether the batch may leave state that keeps its session on the server where it has run: that is the leader then, as the session may want to
    /// write.
    fn stays_where_it_runs(&self, work: &Work, class: Class) -> bool {
        let leaves = |effect: &Effect| match effect {
            // Carried from server to server, wherever they were made.
            Effect::Set { name, .. } | Effect::Reset { name } if class == Class::Local => is_role(name),
            Effect::ResetAll | Effect::SetTransaction { .. } if class == Class::Local => false,
            // Behind others in a string. By itself it goes wherever its session has advanced some.
            Effect::DiscardSequences => class != Class::Local,
            // What servers report is known without a question.
            Effect::Set { name, .. } if &**name != "default_transaction_read_only" && !is_role(name) && self.told.value(name).is_some() => {
                false
            }
            effect => changes_session(effect),
        };
        work.batch.executed().any(|verdict| verdict.effects.iter().any(leaves))
    }

    /// Whether the batch reads what DDL may just have changed, and a leader is there. What that leaves must be asked of its server. On a standby that
    /// question may be canceled, or its connection ended for a conflict with recovery: the session would have to stay there, though it may want
    /// to write, or to end.
    ///
    /// Other reads that aren't proven to leave nothing (through functions in other languages, or while nobody knows any facts) leave nothing mostly,
    /// and may be all that a database has: they run on replicas as ever, and a look that fails is made again there.
    fn is_in_doubt(&self, env: &Env<'_>, work: &Work) -> bool {
        env.topology.state != ClusterState::Switching
            && env.topology.leader_at(env.now).is_some_and(|(_, leader)| !work.excluded.contains(&leader.name))
            && work.batch.executed().any(|verdict| verdict.unseen.in_doubt)
    }

    /// What the batch's reads must show: what the session has set, else what a rule says, else the listener's level.
    pub(super) fn level(&self, env: &Env<'_>, work: &Work) -> Level {
        let level = self.own.level().unwrap_or_else(|| work.batch.level(env.policy.level));
        // A Parse or Describe shows no data; in a transaction it may fix the snapshot of what does.
        let begins = self.begin.is_some() || self.status != TxStatus::Idle;
        if self.begin.as_ref().is_some_and(|begin| begin.resumed) {
            return level.max(Level::Session);
        }
        if begins || work.batch.executes() { level } else { level.min(Level::Session) }
    }

    /// Whether reads may be sent to the replica that is held while others are under way there: each is as good as the first.
    pub(super) fn pipelines_reads(&self, env: &Env<'_>) -> bool {
        let level = self.own.level().unwrap_or_else(|| env.policy.level.max(env.judge.highest_ruled()));
        env.policy.access == Access::ReadOnly && level <= Level::Session
    }

    /// The replica for a batch at a level.
    fn replica(&mut self, env: &Env<'_>, work: &mut Work, level: Level) -> Choice {
        let bound = match level {
            Level::Eventual | Level::Session => Bound::Nothing,
            Level::Global => {
                let since = match work.since {
                    Some(since) => since,
                    None => *work.since.insert(self.written_until(env, work)),
                };
                Bound::since(since, env.topology)
            }
            Level::Strong => match strong_bound(env, work) {
                Ok(bound) => bound,
                Err(otherwise) => return otherwise,
            },
        };
        work.unproven = false;
        // What was asked of the leader after the read came is more than all that the session has seen.
        let causal = matches!(level, Level::Session | Level::Global);
        let any = bound == Bound::Nothing && (!causal || self.watermark.bound(env.topology, env.now) == Bound::Nothing);
        let ask = Ask {
            watermark: causal.then_some(&mut self.watermark),
            bound,
            excluded: &work.excluded,
            zone: env.policy.zone.as_deref(),
            random: env.random,
        };
        match route::replica(ask, env.topology, env.loads, env.now) {
            Ok(member) => {
                work.unproven = level == Level::Eventual && !self.watermark.proves(member);
                let why = if any { Why::AnyReplica } else { Why::FreshReplica };
                Choice::Replica(Need { node: member.name.clone(), role: ServerRole::Replica, epoch: env.topology.epoch, why })
            }
            Err(Why::NotCaughtUp) if self.waits_for_a_replica(env, work) => Choice::Ask,
            Err(why) => Choice::Leader(why),
        }
    }

    /// Whether a read that no replica is proven fresh enough for waits for one: not while few sessions use the leader, as it is nearer then, nor for
    /// replicas that are known to be later than that.
    fn waits_for_a_replica(&self, env: &Env<'_>, work: &mut Work) -> bool {
        let patience = env.policy.consistency_wait;
        let leader = env.topology.leader_at(env.now);
        (env.policy.access == Access::ReadOnly || leader.is_none_or(|(_, leader)| env.loads.is_busy(leader)))
            && env.now < *work.waits.get_or_insert(env.now) + patience
            && env.topology.replicas().any(|(_, member)| member.lag.is_none_or(|lag| lag <= patience))
    }

    /// Whether a read is about to be told what it is held to, now that the leader is gone or takes nothing new: it needn't take a place in the line of
    /// those who wait for the next one.
    fn waits_for_word(&self, env: &Env<'_>, work: &mut Work) -> bool {
        self.level(env, work) < Level::Strong
            && (env.topology.leader_at(env.now).is_none() || env.topology.state == ClusterState::Switching)
            && env.now < *work.waits.get_or_insert(env.now) + WORD_PATIENCE
    }

    /// When this router acknowledged something last of what the batch reads.
    fn written_until(&self, env: &Env<'_>, work: &Work) -> Instant {
        let begin = self.begin.as_ref().map(|begin| begin.modes).or_else(|| begins(work));
        // One snapshot for all that the transaction will read; on the read-only port nobody looks again within one.
        let for_all = begin.is_some_and(|modes| {
            env.policy.access == Access::ReadOnly || modes.repeatable_read.unwrap_or_else(|| self.default_isolation_is("repeatable"))
        });
        let generation = env.judge.generation();
        let reads = |verdict: &Verdict| match for_all {
            true => env.marks.since(&Touched::Everything),
            false => env.marks.since(reads_of(verdict, generation)),
        };
        let since = work.batch.verdicts().map(|verdict| reads(verdict)).max();
        since.unwrap_or_else(|| env.marks.since(&Touched::Everything))
    }

    fn await_sample(&mut self) {
        self.phase = Phase::Waiting;
        self.want = Some(Want::Sample);
    }

    /// A BEGIN is answered and held back until the transaction's first statement, so that an empty transaction costs nothing
    /// and `BEGIN; SET TRANSACTION READ ONLY` is seen. True where the batch has been answered.
    fn hold_transaction_control(&mut self, env: &Env<'_>, work: &mut Work) -> bool {
        if !env.policy.hold_begin || self.pinned(env) {
            return false;
        }
        let dialect = self.dialect();
        let Some((verdict, text)) = work.batch.lone_query() else { return false };
        let [effect] = verdict.effects.as_slice() else { return false };
        if let (Effect::Set { name, local, to }, Some(begin)) = (effect, &mut self.begin)
            && own::is_own(name)
            && text.len() <= HELD_BYTES_MAX
            && begin.texts.len() < HELD_BYTES_MAX
            && own::refused(verdict, text, dialect).is_none()
        {
            // `BEGIN; SET LOCAL switchyard.route = ...` decides where the transaction runs.
            let value = if let SetTo::Plain(value) = to { Some(value.clone()) } else { None };
            begin.texts.append(&mut terminated(text));
            begin.own.push((name.clone(), value.clone(), *local));
            self.changing(None);
            self.own.set(name, value.as_deref(), *local);
            self.touched.add(name);
            return self.answer_held(work, b"SET", TxStatus::InTransaction);
        }
        // What a server might refuse is for a server to refuse.
        if text.len() > HELD_BYTES_MAX || !is_plain_transaction_control(text) {
            return false;
        }
        let (tag, status): (&[u8], _) = match (effect, &mut self.begin) {
            // A standby refuses these at once.
            (Effect::Begin(modes), None) if env.policy.access == Access::ReadOnly && wants_the_leader(*modes) => return false,
            (Effect::SetTransaction { modes, .. }, Some(_)) if env.policy.access == Access::ReadOnly && wants_the_leader(*modes) => {
                return false;
            }
            (Effect::Begin(modes), None) => {
                self.begin = Some(HeldBegin { texts: terminated(text), modes: *modes, own: Vec::new(), resumed: false, queried: false });
                // The tag tells BEGIN from START TRANSACTION.
                let tag: &[u8] = if verdict.command.starts_with("START") { b"START TRANSACTION" } else { b"BEGIN" };
                (tag, TxStatus::InTransaction)
            }
            (Effect::SetTransaction { modes, session: false }, Some(begin)) if begin.texts.len() < HELD_BYTES_MAX => {
                begin.texts.append(&mut terminated(text));
                begin.modes = merged(begin.modes, *modes);
                (b"SET", TxStatus::InTransaction)
            }
            (Effect::Commit { chain: false }, Some(_)) => {
                self.begin = None;
                self.commit_changes();
                (b"COMMIT", TxStatus::Idle)
            }
            (Effect::Rollback { chain: false }, Some(_)) => {
                self.begin = None;
                self.roll_back_changes(None);
                (b"ROLLBACK", TxStatus::Idle)
            }
            _ => return false,
        };
        self.answer_held(work, tag, status)
    }

    fn answer_held(&mut self, work: &mut Work, tag: &[u8], status: TxStatus) -> bool {
        reply::command_complete(&mut work.to_client, tag);
        self.status = status;
        reply::ready_for_query(&mut work.to_client, status);
        work.tally.queries += 1;
        work.batch.clear();
        true
    }

    /// Whether the transaction can be taken to another server: it keeps nothing on its own, no portal either.
    pub(super) fn can_move(&self, role: ServerRole) -> bool {
        self.movable.is_some()
            && role == ServerRole::Replica
            && self.status == TxStatus::InTransaction
            && self.pins.is_empty()
            && self.portals.keys().all(|name| name.is_empty())
    }

    /// The transaction begins anew elsewhere, with its next statement.
    pub(super) fn resume(&mut self) {
        self.begin = self.movable.take().map(|begin| HeldBegin { resumed: true, ..begin });
    }

    /// Whether the READ ONLY transaction has to leave the replica on which it runs, and can: for the leader, or (`false`) for whoever shows
    /// what the batch reads.
    pub(super) fn must_move(&mut self, env: &Env<'_>, work: &Work) -> Option<bool> {
        let can = env.policy.access == Access::ReadWrite
            && self.movable.is_some()
            && work.owed.is_empty()
            && work.segment != Segment::Skipped
            && self.status == TxStatus::InTransaction
            && !work.batch.may_end_transaction()
            && !work.batch.goes_on_with_portal();
        if !can {
            return None;
        }
        // Behind a query, modes can't be set any more: a server that it began anew on wouldn't know of that.
        let queried = self.movable.as_ref().is_some_and(|begin| begin.queried);
        if queried && work.batch.executed().all(|verdict| !verdict.effects.is_empty() && verdict.effects.iter().all(is_of_modes)) {
            return None;
        }
        if work.batch.class() == Class::Write {
            return Some(true);
        }
        let leaves_state = |verdict: &Arc<Verdict>| !verdict.has_no_effects();
        if self.level(env, work) > Level::Session && work.batch.executed().any(leaves_state) || work.batch.executed().any(own::sets_level) {
            // With state of its own it couldn't leave later, when it had to.
            return Some(true);
        }
        (self.level(env, work) == Level::Global && !self.shows_still(env, work)).then_some(false)
    }

    /// Whether the batch ends a transaction that has failed on a replica, and chains another one to it: that has the session's own modes, as those of
    /// the one that failed have gone back with it (`AbortTransaction`, then `SaveTransactionCharacteristics`), and may want to write. Where there
    /// were savepoints, PostgreSQL keeps the modes.
    pub(super) fn chains_on_leader(&self, env: &Env<'_>, work: &Work, server: &ServerState) -> bool {
        let chains = |verdict: &Arc<Verdict>| {
            matches!(verdict.effects.as_slice(), [Effect::Commit { chain: true } | Effect::Rollback { chain: true }])
                && verdict.statements == 1
        };
        env.policy.access == Access::ReadWrite
            && server.role == ServerRole::Replica
            && (self.status, server.tx) == (TxStatus::Failed, TxStatus::Failed)
            && self.lost.is_none()
            && self.pins.is_empty()
            && !self.journal.may_have_savepoints()
            && work.owed.is_empty()
            && work.segment == Segment::Closed
            && work.batch.end == End::Ready
            && work.batch.executed().count() == 1
            && work.batch.executed().all(chains)
            && env.topology.state == ClusterState::Stable
            && env.topology.leader_at(env.now).is_some()
    }

    /// Whether the replica that is held shows what was acknowledged of what the batch reads.
    fn shows_still(&self, env: &Env<'_>, work: &Work) -> bool {
        let Phase::Holding { member, .. } = &self.phase else { return true };
        // As it is known now, unless it has been restarted: then its connection is about to end.
        let bound = Bound::since(self.written_until(env, work), env.topology);
        env.topology.member(&member.name).is_some_and(|member| causal::shows(member, bound))
    }
}

/// What it reads: by facts that have changed since, that may be more by now.
fn reads_of(verdict: &Verdict, generation: u64) -> &Touched {
    if verdict.generation == generation { &verdict.reads } else { &Touched::Everything }
}

/// What sets a transaction's modes, where there is one.
pub(super) fn is_of_modes(effect: &Effect) -> bool {
    matches!(effect, Effect::Begin(_) | Effect::SetTransaction { session: false, .. })
}

/// What came of the search for a replica.
enum Choice {
    Replica(Need),
    Leader(Why),
    /// The leader is to be asked for its position first.
    Ask,
}

/// What bounds all that anybody had acknowledged when the batch came: the leader's position, asked for since. `Err` where there is none yet.
///
/// A sample counts if the leadership is in force when it is here, in the epoch of the question: the leader's key has been its own all the
/// time, so nobody else can have acknowledged anything when it answered.
fn strong_bound(env: &Env<'_>, work: &mut Work) -> Result<Bound, Choice> {
    if env.topology.leader_at(env.now).is_none() {
        work.asked = None;
        return Err(Choice::Leader(Why::NotCaughtUp));
    }
    let (since, epoch) = *work.asked.get_or_insert((env.now, env.topology.epoch));
    if epoch != env.topology.epoch {
        work.asked = Some((env.now, env.topology.epoch));
        return Err(Choice::Ask);
    }
    match env.topology.sample_after(since) {
        Some(sample) => Ok(Bound::At(sample.insert_lsn)),
        None if env.now >= since + SAMPLE_PATIENCE => Err(Choice::Leader(Why::NotCaughtUp)),
        None => Err(Choice::Ask),
    }
}

/// How long a read waits for what standbys tell before it waits in line: etcd's `sync` key is read each second, and they are asked after that; one that was cut
/// off within a record takes `wal_retrieve_retry_interval` and a second to tell.
const WORD_PATIENCE: Duration = Duration::from_secs(10);

/// How long a read waits for the leader's position before the leader serves it.
const SAMPLE_PATIENCE: Duration = Duration::from_secs(1);

/// Text of a held BEGIN and of each SET TRANSACTION behind it, at most, in bytes.
const HELD_BYTES_MAX: usize = 1024;

/// The text with its terminator.
fn terminated(text: &[u8]) -> Vec<u8> {
    let mut texts = text.to_vec();
    texts.push(0);
    texts
}

/// Whether PostgreSQL's grammar surely accepts this BEGIN, COMMIT, ROLLBACK or SET TRANSACTION.
pub(super) fn is_plain_transaction_control(text: &[u8]) -> bool {
    let mut words = Vec::with_capacity(8);
    let mut ended = false;
    for token in Lexer::new(text, true) {
        match token.kind {
            TokenKind::Semicolon => ended = true,
            TokenKind::Word if !ended => words.push(text[token.start..token.end].to_ascii_lowercase()),
            TokenKind::Comma if !ended => words.push(b",".to_vec()),
            _ => return false,
        }
    }
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    match words.as_slice() {
        [b"begin", rest @ ..] => are_modes(after_noise(rest), true),
        [b"start", b"transaction", rest @ ..] => are_modes(rest, true),
        [b"set", b"transaction", rest @ ..] => are_modes(rest, false),
        [b"commit" | b"end" | b"rollback" | b"abort", rest @ ..] => matches!(after_noise(rest), [] | [b"and", b"no", b"chain"]),
        _ => false,
    }
}

/// Without the WORK or TRANSACTION that means nothing.
fn after_noise<'a, 'b>(words: &'a [&'b [u8]]) -> &'a [&'b [u8]] {
    match words {
        [b"work" | b"transaction", rest @ ..] => rest,
        _ => words,
    }
}

/// `transaction_mode_list_or_empty` of PostgreSQL's grammar.
fn are_modes(mut words: &[&[u8]], or_empty: bool) -> bool {
    if words.is_empty() {
        return or_empty;
    }
    loop {
        words = match words {
            [b"isolation", b"level", b"serializable", rest @ ..]
            | [b"isolation", b"level", b"repeatable", b"read", rest @ ..]
            | [b"isolation", b"level", b"read", b"committed" | b"uncommitted", rest @ ..]
            | [b"read", b"only" | b"write", rest @ ..]
            | [b"not", b"deferrable", rest @ ..]
            | [b"deferrable", rest @ ..] => rest,
            _ => return false,
        };
        words = match words {
            [] => return true,
            [b",", rest @ ..] => rest,
            rest => rest,
        };
    }
}

fn begins(work: &Work) -> Option<TransactionModes> {
    work.batch.executed().flat_map(|verdict| &verdict.effects).find_map(|effect| match effect {
        Effect::Begin(modes) => Some(*modes),
        _ => None,
    })
}

/// Whether only a leader has transactions like this.
fn wants_the_leader(modes: TransactionModes) -> bool {
    modes.read_only == Some(false) || modes.serializable == Some(true)
}

fn merged(first: TransactionModes, then: TransactionModes) -> TransactionModes {
    TransactionModes {
        read_only: then.read_only.or(first.read_only),
        serializable: then.serializable.or(first.serializable),
        repeatable_read: then.repeatable_read.or(first.repeatable_read),
        deferrable: then.deferrable.or(first.deferrable),
    }
}
