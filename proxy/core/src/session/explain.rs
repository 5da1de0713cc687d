//! What the router answers about itself: `EXPLAIN (ROUTE) statement`, and `SHOW` of its own parameters.
//!
//! A simple query to a session that owes nothing is answered here, also while there is no server at all. Everything else (the extended
//! protocol, pipelines, failed transactions) goes to a server as a SELECT of the answer's lines, so that it comes in its turn and fails where
//! PostgreSQL would. Invariant: explaining changes nothing; the choice is made by the very code that makes it for a statement.

use std::sync::Arc;

use super::batch::{End, Item};
use super::{Env, Phase, Segment, Session, Want, Work, own};
use crate::causal::{self, Bound, Level};
use crate::route::{ServerRole, Why};
use crate::sql::lexer::{Lexer, Token, TokenKind};
use crate::sql::{Class, Hint, RuledRoute, Ruling, Verdict};
use crate::topology::Member;
use crate::wire::reply::{self, TxStatus};
use crate::wire::view;

/// What becomes of a client's message.
pub(super) enum Answer {
    /// None of our business.
    Servers,
    Given,
    /// Goes on in the place of what came.
    Instead(Vec<u8>),
}

/// The OID of type `text` (`pg_type.dat`).
const TEXT_OID: u32 = 25;

/// Parameters of an explained statement that are declared, at most; PostgreSQL itself takes 65,535.
const PARAMETERS_MAX: u32 = 1000;

/// A question that the router answers.
enum Ask<'a> {
    Explain(&'a [u8]),
    Show(&'static str, &'static str),
}

impl Session {
    /// Answers what is for the router itself. `body`: of a Query or Parse; others are none of our business.
    pub(super) fn own_answer(&mut self, env: &Env<'_>, work: &mut Work, tag: u8, body: &[u8]) -> Answer {
        let (sql, parse) = match tag {
            b'Q' => match view::query(body) {
                Ok(sql) => (sql, None),
                Err(_) => return Answer::Servers,
            },
            b'P' => match view::parse(body) {
                Ok(parse) => (parse.text, Some(parse)),
                Err(_) => return Answer::Servers,
            },
            _ => return Answer::Servers,
        };
        let Some(ask) = self.ask(env, sql) else { return Answer::Servers };
        let (column, command, lines): (&str, &[u8], Vec<String>) = match ask {
            Ask::Explain(statement) => ("QUERY PLAN", b"EXPLAIN", self.explain(env, statement)),
            Ask::Show(name, value) => (name, b"SHOW", vec![value.to_owned()]),
        };
        let quiet = work.owed.is_empty() && work.batch.is_empty() && work.segment == Segment::Closed && self.lost.is_none();
        let Some(parse) = parse else {
            if quiet && self.status != TxStatus::Failed && !self.unsynced {
                self.unnamed = None;
                work.tally.queries += 1;
                result(&mut work.to_client, column, command, &lines);
                reply::ready_for_query(&mut work.to_client, self.status);
                return Answer::Given;
            }
            let mut message = Vec::new();
            reply::query(&mut message, &select(column, &lines, 0));
            return Answer::Instead(message);
        };
        let mut message = Vec::new();
        let mut tail = select(column, &lines, parameters(sql));
        tail.push(0);
        tail.extend_from_slice(parse.tail.get(parse.text.len() + 1..).unwrap_or(b"\0\0"));
        reply::parse(&mut message, parse.name, &tail);
        Answer::Instead(message)
    }

    fn ask<'a>(&self, env: &Env<'_>, sql: &'a [u8]) -> Option<Ask<'a>> {
        // Nearly every statement is told apart by its first two bytes.
        let text = sql.trim_ascii_start();
        match (text.first()?.to_ascii_lowercase(), text.get(1).map(u8::to_ascii_lowercase)) {
            (b'e', Some(b'x')) | (b's', Some(b'h')) | (b'/', Some(b'*')) | (b'-', Some(b'-')) => {}
            _ => return None,
        }
        if let Some(statement) = explained(sql) {
            return Some(Ask::Explain(statement));
        }
        let (name, value) = self.own.show(&own::shown(sql)?, env.policy.level)?;
        Some(Ask::Show(name, value))
    }

    /// The lines of EXPLAIN (ROUTE).
    pub(super) fn explain(&mut self, env: &Env<'_>, statement: &[u8]) -> Vec<String> {
        let verdict = self.verdict(env, statement);
        let mut lines = describe(&verdict);
        lines.extend(env.judge.grounds());
        lines.push(format!("Overruled by: {}", self.overruled_by(&verdict)));
        let (level, whose) = self.level_of(env, &verdict);
        lines.push(format!("Level: {}, by {whose}", level.as_str()));
        if level == Level::Global {
            let what = if verdict.class == Class::Write { "Writes" } else { "Reads" };
            let touched = if verdict.class == Class::Write { &verdict.writes } else { &verdict.reads };
            lines.push(format!("{what}: {}", touched.describe()));
        }
        if verdict.class == Class::Read && env.topology.leader_at(env.now).is_none() {
            lines.extend(without_a_leader(env, level).map(|held| format!("Without a leader: {held}")));
        }
        let choice = self.would_choose(env, statement, &verdict);
        lines.push(format!("Choice: {}", choice.text));
        lines.push("Candidates:".to_owned());
        let bound = match level {
            Level::Eventual | Level::Session | Level::Strong => Bound::Nothing,
            Level::Global => Bound::since(env.marks.since(&verdict.reads), env.topology),
        };
        let seen = self.watermark.bound(env.topology, env.now);
        lines.extend(env.topology.members.iter().map(|member| self.candidate(env, level, member, (seen, bound), choice.node.as_deref())));
        if env.topology.members.is_empty() {
            lines.push("  none is known".to_owned());
        }
        lines
    }

    /// What the statement's reads must show, and who says so.
    fn level_of(&self, env: &Env<'_>, verdict: &Verdict) -> (Level, String) {
        let ruled = || verdict.ruling.as_ref().and_then(|ruling| Some((ruling.level?, ruling.rule.to_string())));
        let set = self.own.level().map(|level| (level, "switchyard.consistency".to_owned()));
        set.or_else(ruled).unwrap_or_else(|| (env.policy.level, "the listener".to_owned()))
    }

    fn overruled_by(&self, verdict: &Verdict) -> String {
        let to = |hint: Hint| if hint == Hint::Leader { "leader" } else { "replica" };
        match (verdict.hint, self.own.route(), &verdict.ruling) {
            (_, _, Some(ruling)) if ruling.route == Some(RuledRoute::Reject) => format!("{}, which rejects it", ruling.rule),
            (Some(hint), _, _) => format!("a comment, to {}", to(hint)),
            (None, Some(hint), _) if verdict.class != Class::Local => format!("switchyard.route, to {}", to(hint)),
            (None, None, Some(Ruling { rule, route: Some(RuledRoute::To(hint)), .. })) if verdict.class != Class::Local => {
                format!("{rule}, to {}", to(*hint))
            }
            _ => "nothing".to_owned(),
        }
    }

    /// What would become of the statement now.
    fn would_choose(&mut self, env: &Env<'_>, statement: &[u8], verdict: &Arc<Verdict>) -> Choice {
        if verdict.ruling.as_ref().is_some_and(|ruling| ruling.route == Some(RuledRoute::Reject)) {
            return Choice { text: "none: it is rejected".to_owned(), node: None };
        }
        if let Phase::Holding { member, .. } = &self.phase {
            let why = if self.pins.is_empty() { "the transaction runs there" } else { "the session is pinned to it" };
            return Choice { text: format!("{} ({why})", member.name), node: Some(member.name.clone()) };
        }
        if self.lost.is_some() || self.starting.is_some() || !matches!(self.phase, Phase::Idle) || self.want.is_some() {
            return Choice { text: "what the session waits for comes first".to_owned(), node: None };
        }
        if verdict.class == Class::Local {
            return Choice { text: "any node: no data is read (session or transaction control)".to_owned(), node: None };
        }
        let mut message = Vec::new();
        reply::query(&mut message, statement);
        let mut scratch = Work::default();
        scratch.batch.push(Item::Query(verdict.clone()), &message);
        scratch.batch.end = End::Ready;
        self.decide(env, &mut scratch);
        let want = self.want.take();
        self.phase = Phase::Idle;
        match want {
            Some(Want::Lease(need)) => {
                let role = match (need.why, need.role) {
                    (Why::Fallback, _) => "leader, read-only",
                    (_, ServerRole::Leader) => "leader",
                    (_, ServerRole::Replica) => "replica",
                };
                Choice { text: format!("{} ({role}): {}, {}", need.node, need.why.as_str(), in_words(need.why)), node: Some(need.node) }
            }
            Some(Want::Sample) if env.topology.leader_at(env.now).is_some() => {
                Choice { text: "a replica that shows what the leader, asked first, says that it has written".to_owned(), node: None }
            }
            Some(Want::Sample | Want::Hold) => {
                Choice { text: what_it_waits_for(env, self.level_of(env, verdict).0, verdict).to_owned(), node: None }
            }
            Some(Want::Return | Want::Close | Want::Leave | Want::Departure(_)) | None => {
                Choice { text: "none: no node can serve it now".to_owned(), node: None }
            }
        }
    }

    fn candidate(&self, env: &Env<'_>, level: Level, member: &Member, (seen, bound): (Bound, Bound), chosen: Option<&str>) -> String {
        let leads = env.topology.leader_at(env.now).is_some_and(|(_, leader)| leader.name == member.name);
        let lag = match (member.lag_bytes, member.lag) {
            _ if leads => String::new(),
            (None, _) => ", lag unknown".to_owned(),
            (Some(bytes), None) => format!(", lag {bytes} bytes"),
            (Some(bytes), Some(lag)) => format!(", lag {bytes} bytes, {:.3} s", lag.as_secs_f64()),
        };
        let formerly = env.topology.leader.as_ref().and_then(|leader| env.topology.members.get(leader.member));
        let formerly = formerly.is_some_and(|leader| leader.name == member.name);
        let state = match member.out {
            _ if leads => "in force",
            Some(out) => out.as_str(),
            None if formerly => "its lead is in doubt",
            None if level == Level::Eventual => "in rotation",
            None if level == Level::Strong => "in rotation, and as fresh as the leader is asked to tell",
            None if !causal::shows(member, seen) && !self.watermark.stays_on(member) => match seen {
                Bound::Unknown => "not known to show what this session has seen",
                Bound::Nothing | Bound::At(_) => "behind what this session has seen",
            },
            None if causal::shows(member, bound) => "fresh enough",
            None if bound == Bound::Unknown => "not known to show what others have written",
            None => "behind what others have written",
        };
        let mark = if chosen == Some(&*member.name) { ", chosen" } else { "" };
        let role = if leads { "leader" } else { "replica" };
        format!("  {}: {role}, {state}{lag}, cost {:.0}{mark}", member.name, env.loads.cost(member))
    }
}

struct Choice {
    text: String,
    node: Option<Arc<str>>,
}

/// What stands for the leader's position while there is none, for a read at a level.
fn without_a_leader(env: &Env<'_>, level: Level) -> Option<&'static str> {
    let exact = env.topology.witnessed.as_ref().map(|witnessed| witnessed.exact);
    match (level, exact) {
        (Level::Eventual, _) => None,
        (Level::Strong, _) => Some("reads at this level wait for the next one"),
        (_, Some(true)) => {
            Some("held to what the last one still tells, or synchronous standbys have received: that is all that was acknowledged")
        }
        (Level::Global, Some(false)) => {
            Some("held to what any replica has received, which may be less than was acknowledged (routing.global_without_leader)")
        }
        (Level::Session, Some(false)) | (_, None) => Some("held to the last one's last word; what was written or seen after it waits"),
    }
}

fn what_it_waits_for(env: &Env<'_>, level: Level, verdict: &Verdict) -> &'static str {
    let read = verdict.class == Class::Read && level != Level::Strong;
    match read && env.topology.replicas().next().is_some() {
        true => "none: it waits in line until a replica is known to show what it must, or a leader is in force",
        false => "none: it waits in line until a leader is in force",
    }
}

fn in_words(why: Why) -> &'static str {
    match why {
        Why::Write => "the statement isn't known to only read",
        Why::FreshReplica => "a read, and the replica shows what it must",
        Why::AnyReplica => "a read that any replica in rotation may serve",
        Why::NotCaughtUp => "a read, but no replica is known to show what it must",
        Why::NoReplica => "a read, but no replica is in rotation",
        Why::Rerun => "a replica could not answer",
        Why::Hint => "it was overruled",
        Why::Transaction => "a transaction that isn't READ ONLY, or isn't a read at its beginning",
        Why::LookAhead => "the batch is too long to look through",
        Why::Local => "session or transaction control",
        Why::Fallback => "no replica is left",
        Why::InDoubt => "a read of what DDL may just have changed",
    }
}

/// What a verdict says, in lines.
pub fn describe(verdict: &Verdict) -> Vec<String> {
    let class = match verdict.class {
        Class::Local => "local",
        Class::Read => "read",
        Class::Write => "write",
    };
    let mut lines = vec![format!("Verdict: {class}")];
    if verdict.reasons.is_empty() {
        let reason = match verdict.class {
            Class::Local => "no data is read or changed",
            Class::Read => "nothing in it writes, locks, or tells of the server itself",
            Class::Write => "it isn't known to only read",
        };
        lines.push(format!("  {reason}"));
    }
    lines.extend(verdict.reasons.iter().map(|reason| format!("  {}: {}", reason.rule, reason.piece)));
    if verdict.fingerprint != crate::sql::Fingerprint::default() {
        lines.push(format!("Fingerprint: {}", verdict.fingerprint));
    }
    if !verdict.effects.is_empty() {
        let effects: Vec<String> = verdict.effects.iter().take(EFFECTS_SHOWN).map(|effect| format!("{effect:?}")).collect();
        lines.push(format!("Effects: {}", effects.join(", ")));
    }
    lines.push(match &verdict.unproven {
        Some(reason) if verdict.unseen.leaves => format!("Leaves: unknown ({}: {})", reason.rule, reason.piece),
        _ if verdict.unseen.leaves => "Leaves: unknown".to_owned(),
        _ if verdict.effects.is_empty() => "Leaves: nothing (proven)".to_owned(),
        _ => "Leaves: what its effects tell (proven)".to_owned(),
    });
    for (sees, what) in [(verdict.unseen.sees_settings, "custom settings"), (verdict.unseen.sees_statements, "prepared statements")] {
        if sees {
            lines.push(format!("May see: its connection's {what}"));
        }
    }
    if verdict.unseen.sets_unknown {
        lines.push("May set: custom settings whose names aren't known, so that its session keeps its connection".to_owned());
    }
    if !verdict.unknown.is_empty() {
        lines.push(format!("May set the same, if it is younger than what the router knows: {}", verdict.unknown.join(", ")));
    }
    if verdict.class == Class::Write && verdict.acts_inside {
        lines.push("If its server goes away: runs again, once its rollback is proven".to_owned());
    }
    lines
}

const EFFECTS_SHOWN: usize = 16;

/// The statement behind `EXPLAIN (ROUTE)`.
pub(super) fn explained(sql: &[u8]) -> Option<&[u8]> {
    let tokens: Vec<Token> = Lexer::new(sql, true).take(5).collect();
    let [explain, open, route, close, first, ..] = tokens.as_slice() else { return None };
    let is = |token: &Token, word: &str| sql[token.start..token.end].eq_ignore_ascii_case(word.as_bytes());
    let asked = is(explain, "explain") && open.kind == TokenKind::OpenParen && is(route, "route") && close.kind == TokenKind::CloseParen;
    // Comments before the statement are its own: a hint may be among them.
    (asked && first.kind != TokenKind::Semicolon).then(|| sql[close.end..].trim_ascii_start())
}

/// The highest `$n` in a text.
fn parameters(sql: &[u8]) -> u32 {
    let numbers = Lexer::new(sql, true).filter(|token| token.kind == TokenKind::Parameter);
    let numbers = numbers.filter_map(|token| std::str::from_utf8(&sql[token.start + 1..token.end]).ok()?.parse().ok());
    numbers.max().unwrap_or(0).min(PARAMETERS_MAX)
}

/// A query whose rows are the lines, for a server. `parameters`: how many the client will bind, and mean nothing.
fn select(column: &str, lines: &[String], parameters: u32) -> Vec<u8> {
    let mut text = b"SELECT pg_catalog.unnest(ARRAY[".to_vec();
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        reply::literal(&mut text, line.replace('\0', "").as_bytes());
    }
    text.extend_from_slice(b"]::pg_catalog.text[]) AS \"");
    text.extend_from_slice(column.as_bytes());
    text.push(b'"');
    for number in 1..=parameters {
        let word = if number == 1 { "WHERE" } else { "AND" };
        text.extend_from_slice(format!(" {word} (${number}::pg_catalog.text IS NULL OR true)").as_bytes());
    }
    text
}

/// A result set of one column of text, without ReadyForQuery (protocol, "Message Formats").
fn result(out: &mut Vec<u8>, column: &str, command: &[u8], lines: &[String]) {
    let mut description = 1u16.to_be_bytes().to_vec();
    description.extend_from_slice(column.as_bytes());
    description.push(0);
    // No table, no column of one.
    description.extend_from_slice(&[0; 6]);
    description.extend_from_slice(&TEXT_OID.to_be_bytes());
    // Of variable length, without modifier, in text format.
    description.extend_from_slice(&(-1i16).to_be_bytes());
    description.extend_from_slice(&(-1i32).to_be_bytes());
    description.extend_from_slice(&0u16.to_be_bytes());
    reply::message(out, b'T', &[&description]);
    for line in lines {
        let length = u32::try_from(line.len()).unwrap_or(0);
        reply::message(out, b'D', &[&1u16.to_be_bytes(), &length.to_be_bytes(), line.as_bytes()]);
    }
    reply::command_complete(out, command);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_to_be_explained() {
        assert_eq!(explained(b" explain (ROUTE)\n select 1"), Some(&b"select 1"[..]));
        assert_eq!(explained(b"EXPLAIN (route) /* switchyard: leader */ SELECT 1"), Some(&b"/* switchyard: leader */ SELECT 1"[..]));
        for other in ["EXPLAIN SELECT 1", "EXPLAIN (ROUTE, VERBOSE) SELECT 1", "EXPLAIN (ROUTE)", "EXPLAIN (ROUTE);", "SELECT route"] {
            assert_eq!(explained(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn what_a_server_is_asked_instead_takes_the_parameters() {
        let text = select("QUERY PLAN", &["it's".to_owned(), "a\\b".to_owned()], parameters(b"select $2, '$9', $1"));
        assert_eq!(
            String::from_utf8_lossy(&text),
            "SELECT pg_catalog.unnest(ARRAY['it''s', E'a\\\\b']::pg_catalog.text[]) AS \"QUERY PLAN\" \
             WHERE ($1::pg_catalog.text IS NULL OR true) AND ($2::pg_catalog.text IS NULL OR true)"
        );
    }
}
