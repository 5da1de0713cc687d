//! The router's own parameters, `switchyard.*`: what they are set to in this session.
//!
//! A SET of one goes on to a server, which takes it for a placeholder of some extension's and answers in PostgreSQL's words; what counts is
//! what is noted here once it has succeeded. Invariant: values follow PostgreSQL's stack (`guc.c`, AtEOXact_GUC): SET LOCAL ends with its
//! transaction, ROLLBACK and ROLLBACK TO bring back what was there before.

use std::sync::Arc;

use crate::causal::Level;
use crate::refusal::Refusal;
use crate::sql::lexer::{Lexer, Token, TokenKind};
use crate::sql::{Dialect, Effect, Hint, Setting, Verdict, setting};

/// A parameter: its name, the words that it may be set to, and how it is when nobody has set it (an index into the words, or [`UNSET`]).
struct Parameter {
    name: &'static str,
    values: &'static [&'static str],
    default: u8,
}

/// All of them. [`Which`] gives the places.
const PARAMETERS: [Parameter; 2] = [
    Parameter { name: "switchyard.route", values: &["auto", "leader", "replica"], default: 0 },
    Parameter { name: "switchyard.consistency", values: &Level::WORDS, default: UNSET },
];

/// The place of a value that nobody has set: the configuration has the word.
const UNSET: u8 = u8::MAX;

/// A place in [`PARAMETERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum Which {
    Route = 0,
    Consistency = 1,
}

const PREFIX: &str = "switchyard.";

/// Savepoints remembered, at most. One that was forgotten brings back what was there at the transaction's begin.
const SAVEPOINTS_MAX: usize = 1000;

pub(super) fn is_own(name: &str) -> bool {
    name.len() > PREFIX.len() && name.as_bytes()[..PREFIX.len()].eq_ignore_ascii_case(PREFIX.as_bytes())
}

/// Values at one time: of the session, and until the transaction's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Values {
    session: [u8; PARAMETERS.len()],
    local: [Option<u8>; PARAMETERS.len()],
}

#[derive(Debug)]
pub(super) struct Own {
    /// Of the startup packet: what RESET goes back to.
    startup: [u8; PARAMETERS.len()],
    now: Values,
    /// As they were before the first change in this transaction.
    before: Option<Box<Before>>,
}

#[derive(Debug)]
struct Before {
    values: Values,
    /// The savepoints made since, with the values then.
    savepoints: Vec<(Box<[u8]>, Values)>,
}

/// What one statement does to the parameters.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// `None`: to what it was at the session's start.
    Set {
        which: usize,
        value: Option<u8>,
        local: bool,
    },
    ResetAll,
    Savepoint(Box<[u8]>),
    Release(Box<[u8]>),
    RollbackTo(Box<[u8]>),
    Commit,
    Rollback,
}

impl Default for Own {
    fn default() -> Own {
        let session = PARAMETERS.map(|parameter| parameter.default);
        Own { startup: session, now: Values { session, local: [None; PARAMETERS.len()] }, before: None }
    }
}

impl Own {
    /// From what the client's startup packet sets.
    ///
    /// # Errors
    /// An unknown name or value.
    pub(super) fn new<'a>(startup: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Own, Refusal> {
        let mut session = PARAMETERS.map(|parameter| parameter.default);
        for (name, value) in startup {
            let which = which(name)?;
            session[which] = value_of(which, &String::from_utf8_lossy(value))?;
        }
        Ok(Own { startup: session, now: Values { session, local: [None; PARAMETERS.len()] }, before: None })
    }

    fn index(&self, which: usize) -> u8 {
        self.now.local[which].unwrap_or(self.now.session[which])
    }

    /// `switchyard.route`; `None` for `auto`.
    pub(super) fn route(&self) -> Option<Hint> {
        match self.index(Which::Route as usize) {
            1 => Some(Hint::Leader),
            2 => Some(Hint::Replica),
            _ => None,
        }
    }

    /// `switchyard.consistency`; `None` where the session hasn't set it.
    pub(super) fn level(&self) -> Option<Level> {
        Level::ALL.get(usize::from(self.index(Which::Consistency as usize))).copied()
    }

    /// The value of a parameter by its name, as SHOW tells it. `listener`: the level where the session hasn't set one.
    pub(super) fn show(&self, name: &str, listener: Level) -> Option<(&'static str, &'static str)> {
        let which = which(name).ok()?;
        let value = PARAMETERS[which].values.get(usize::from(self.index(which))).copied();
        Some((PARAMETERS[which].name, value.unwrap_or(listener.as_str())))
    }

    /// Statements that have succeeded.
    pub(super) fn note(&mut self, sql: &[u8], dialect: Dialect) {
        for step in steps(sql, dialect).into_iter().flatten() {
            self.step(step);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Set { which, value, local } => {
                self.changing();
                let value = value.unwrap_or(self.startup[which]);
                if local {
                    self.now.local[which] = Some(value);
                } else {
                    (self.now.session[which], self.now.local[which]) = (value, None);
                }
            }
            Step::ResetAll => {
                self.changing();
                self.now = Values { session: self.startup, local: [None; PARAMETERS.len()] };
            }
            // Savepoints from before the first change are no others than the transaction's begin.
            Step::Savepoint(name) => {
                if let Some(before) = &mut self.before
                    && before.savepoints.len() < SAVEPOINTS_MAX
                {
                    before.savepoints.push((name, self.now));
                }
            }
            Step::Release(name) => {
                if let Some(before) = &mut self.before
                    && let Some(at) = before.savepoints.iter().rposition(|(known, _)| *known == name)
                {
                    before.savepoints.truncate(at);
                }
            }
            Step::RollbackTo(name) => {
                if let Some(before) = &mut self.before {
                    match before.savepoints.iter().rposition(|(known, _)| *known == name) {
                        Some(at) => {
                            self.now = before.savepoints[at].1;
                            before.savepoints.truncate(at + 1);
                        }
                        None => {
                            self.now = before.values;
                            before.savepoints.clear();
                        }
                    }
                }
            }
            Step::Commit => self.transaction_over(true),
            Step::Rollback => self.transaction_over(false),
        }
    }

    fn changing(&mut self) {
        if self.before.is_none() {
            self.before = Some(Box::new(Before { values: self.now, savepoints: Vec::new() }));
        }
    }

    /// The transaction, or the statement outside one, has ended.
    pub(super) fn transaction_over(&mut self, committed: bool) {
        let Some(before) = self.before.take() else { return };
        if !committed {
            self.now = before.values;
        }
        self.now.local = [None; PARAMETERS.len()];
    }

    /// DISCARD ALL, which can't run in a transaction.
    pub(super) fn discard(&mut self) {
        self.step(Step::ResetAll);
    }
}

/// Whether [`Own::note`] has to read the statement's text once it has succeeded.
pub(super) fn concerns(verdict: &Verdict) -> bool {
    verdict.effects.iter().any(|effect| match effect {
        Effect::Set { name, .. } | Effect::Reset { name } => is_own(name),
        Effect::ResetAll | Effect::Savepoint | Effect::RollbackTo | Effect::Release => true,
        // A lone one's outcome is told by its tag.
        Effect::Commit { .. } | Effect::Rollback { .. } => verdict.statements > 1,
        _ => false,
    })
}

/// Whether the statement may change `switchyard.consistency`.
pub(super) fn sets_level(verdict: &Arc<Verdict>) -> bool {
    let name = PARAMETERS[Which::Consistency as usize].name;
    verdict.effects.iter().any(|effect| match effect {
        Effect::Set { name: set, .. } | Effect::Reset { name: set } => set.eq_ignore_ascii_case(name),
        Effect::ResetAll => true,
        _ => false,
    })
}

/// What is wrong with the first SET or RESET of a parameter of ours that can't be, in a text that has some.
pub(super) fn refused(verdict: &Verdict, sql: &[u8], dialect: Dialect) -> Option<Refusal> {
    let names_own =
        verdict.effects.iter().any(|effect| matches!(effect, Effect::Set { name, .. } | Effect::Reset { name } if is_own(name)));
    if !names_own {
        return None;
    }
    steps(sql, dialect).into_iter().find_map(Result::err)
}

fn which(name: &str) -> Result<usize, Refusal> {
    let known = PARAMETERS.iter().position(|parameter| parameter.name.eq_ignore_ascii_case(name));
    known.ok_or_else(|| Refusal::UnknownParameter { name: name.to_owned() })
}

fn value_of(which: usize, text: &str) -> Result<u8, Refusal> {
    let Parameter { name, values, .. } = &PARAMETERS[which];
    let at = values.iter().position(|value| value.eq_ignore_ascii_case(text));
    at.and_then(|at| u8::try_from(at).ok()).ok_or_else(|| Refusal::BadParameter {
        name,
        value: text.chars().take(VALUE_SHOWN).collect(),
        allowed: values,
    })
}

/// Of a refused value, in characters.
const VALUE_SHOWN: usize = 64;

/// The steps of a string of statements, in order.
fn steps(sql: &[u8], dialect: Dialect) -> Vec<Result<Step, Refusal>> {
    let mut steps = Vec::new();
    let mut tokens = Vec::new();
    for token in Lexer::new(sql, dialect.standard_conforming_strings) {
        if token.kind == TokenKind::Semicolon {
            steps.extend(step_of(sql, &tokens, dialect));
            tokens.clear();
        } else if tokens.len() < STEP_TOKENS {
            tokens.push(token);
        }
    }
    steps.extend(step_of(sql, &tokens, dialect));
    steps
}

/// More tokens than a statement has that concerns a parameter.
const STEP_TOKENS: usize = 20;

fn step_of(sql: &[u8], tokens: &[Token], dialect: Dialect) -> Option<Result<Step, Refusal>> {
    let text = |at: usize| tokens.get(at).map_or(&b""[..], |token: &Token| &sql[token.start..token.end]);
    let is = |at: usize, word: &str| text(at).eq_ignore_ascii_case(word.as_bytes());
    // A name as PostgreSQL folds it.
    let name = |at: usize| -> Box<[u8]> {
        match text(at) {
            [b'"', inner @ .., b'"'] => inner.into(),
            plain => plain.to_ascii_lowercase().into(),
        }
    };
    let last = tokens.len().checked_sub(1)?;
    let step = match text(0).to_ascii_lowercase().as_slice() {
        b"set" => {
            let at = if is(1, "local") || is(1, "session") { 2 } else { 1 };
            let named = dotted(sql, tokens, at).filter(|named| is_own(named))?;
            let whole = &sql[tokens[0].start..tokens[last].end];
            let local = is(1, "local");
            let which = match which(&named) {
                Ok(which) => which,
                Err(refusal) => return Some(Err(refusal)),
            };
            let Some(Setting { value, .. }) = setting(whole, dialect) else {
                let given = tokens.get(at + 4).map_or_else(String::new, |token| String::from_utf8_lossy(&sql[token.start..]).into_owned());
                return Some(value_of(which, &given).map(|value| Step::Set { which, value: Some(value), local }));
            };
            if value == "default" {
                Ok(Step::Set { which, value: None, local })
            } else {
                value_of(which, &value).map(|value| Step::Set { which, value: Some(value), local })
            }
        }
        b"reset" if is(1, "all") => Ok(Step::ResetAll),
        b"reset" => {
            let named = dotted(sql, tokens, 1).filter(|named| is_own(named))?;
            which(&named).map(|which| Step::Set { which, value: None, local: false })
        }
        b"savepoint" => Ok(Step::Savepoint(name(1))),
        b"release" => Ok(Step::Release(name(last))),
        b"rollback" | b"abort" if is(1, "prepared") => return None,
        b"rollback" if (1..=2).any(|at| is(at, "to")) => Ok(Step::RollbackTo(name(last))),
        b"rollback" | b"abort" => Ok(Step::Rollback),
        b"commit" if is(1, "prepared") => return None,
        b"commit" | b"end" => Ok(Step::Commit),
        _ => return None,
    };
    Some(step)
}

/// The dotted name that begins at a token, in lower case.
fn dotted(sql: &[u8], tokens: &[Token], at: usize) -> Option<String> {
    let mut name = String::new();
    for token in tokens.get(at..)? {
        match token.kind {
            TokenKind::Word | TokenKind::QuotedName if name.is_empty() || name.ends_with('.') => {
                let text = String::from_utf8_lossy(&sql[token.start..token.end]);
                name.push_str(&text.trim_matches('"').to_ascii_lowercase());
            }
            TokenKind::Dot if !name.is_empty() => name.push('.'),
            _ => break,
        }
    }
    (!name.is_empty()).then_some(name)
}

/// What a `SHOW switchyard.name` asks for.
pub(super) fn shown(sql: &[u8]) -> Option<String> {
    let tokens: Vec<Token> = Lexer::new(sql, true).take(STEP_TOKENS).collect();
    let tokens = match tokens.as_slice() {
        [rest @ .., last] if last.kind == TokenKind::Semicolon => rest,
        all => all,
    };
    let show = tokens.first().filter(|token| sql[token.start..token.end].eq_ignore_ascii_case(b"show"));
    show?;
    // SHOW, and three tokens of a name.
    dotted(sql, tokens, 1).filter(|name| is_own(name) && (tokens.len() == 4 || tokens.len() == 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own {
        Own::new(std::iter::empty()).expect("nothing is set")
    }

    fn after(own: &mut Own, sql: &str) -> &'static str {
        own.note(sql.as_bytes(), Dialect::default());
        own.show("switchyard.route", Level::Session).map_or("", |(_, value)| value)
    }

    #[test]
    fn a_setting_follows_its_transaction() {
        let mut own = own();
        assert_eq!(after(&mut own, "SET switchyard.route = 'leader'"), "leader");
        own.transaction_over(true);
        assert_eq!(after(&mut own, "set local Switchyard.Route to REPLICA"), "replica");
        own.transaction_over(true);
        assert_eq!(own.show("switchyard.route", Level::Session), Some(("switchyard.route", "leader")));
        assert_eq!(after(&mut own, "SET switchyard.route = auto"), "auto");
        own.transaction_over(false);
        assert_eq!(own.route(), Some(Hint::Leader));
        assert_eq!(after(&mut own, "RESET switchyard.route"), "auto");
        own.transaction_over(true);
        assert_eq!(own.route(), None);
    }

    #[test]
    fn savepoints_bring_values_back() {
        let mut own = own();
        assert_eq!(after(&mut own, "SAVEPOINT a; SET LOCAL switchyard.route = leader; savepoint \"B\""), "leader");
        assert_eq!(after(&mut own, "SET switchyard.route = replica; SAVEPOINT c; RELEASE SAVEPOINT c"), "replica");
        assert_eq!(after(&mut own, "ROLLBACK TO SAVEPOINT \"B\""), "leader");
        assert_eq!(after(&mut own, "SET switchyard.route = replica; ROLLBACK WORK TO \"B\""), "leader");
        assert_eq!(after(&mut own, "ROLLBACK TO a"), "auto");
        assert_eq!(after(&mut own, "SET switchyard.route = replica; COMMIT"), "replica");
        assert_eq!(after(&mut own, "SET switchyard.route = leader; ROLLBACK"), "replica");
    }

    #[test]
    fn set_local_over_set_leaves_what_was_set() {
        let mut own = own();
        assert_eq!(after(&mut own, "SET switchyard.route = replica; SET LOCAL switchyard.route = leader"), "leader");
        assert_eq!(after(&mut own, "COMMIT"), "replica");
        assert_eq!(after(&mut own, "RESET ALL; COMMIT"), "auto");
    }

    #[test]
    fn a_level_that_nobody_set_is_the_listeners() {
        let mut own = own();
        let shown = |own: &Own| own.show("switchyard.consistency", Level::Global).map_or("", |(_, value)| value);
        assert_eq!((own.level(), shown(&own)), (None, "global"));
        after(&mut own, "SET switchyard.consistency = 'Strong'");
        assert_eq!((own.level(), shown(&own)), (Some(Level::Strong), "strong"));
        after(&mut own, "COMMIT; SET LOCAL switchyard.consistency TO eventual");
        assert_eq!(own.level(), Some(Level::Eventual));
        after(&mut own, "COMMIT; SAVEPOINT s");
        assert_eq!(own.level(), Some(Level::Strong));
        after(&mut own, "SET switchyard.consistency = DEFAULT");
        assert_eq!((own.level(), shown(&own)), (None, "global"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |sql: &str| {
            let found = steps(sql.as_bytes(), Dialect::default()).into_iter().find_map(Result::err);
            found.map(|refusal| refusal.wording().sqlstate)
        };
        assert_eq!(refused("SET switchyard.route = 'nowhere'"), Some("22023"));
        assert_eq!(refused("SELECT 1; SET LOCAL switchyard.route TO a, b"), Some("22023"));
        assert_eq!(refused("SET switchyard.nosuch = 1"), Some("42704"));
        assert_eq!(refused("RESET switchyard.nosuch"), Some("42704"));
        assert_eq!(refused("SET other.route = 'x'; SET work_mem = '1MB'"), None);
        assert_eq!(refused("SET \"switchyard\".route TO DEFAULT"), None);
        assert!(Own::new([("switchyard.route", &b"x"[..])].into_iter()).is_err());
    }

    #[test]
    fn the_startup_packet_gives_what_reset_goes_back_to() {
        let mut own = Own::new([("switchyard.route", &b"Leader"[..])].into_iter()).expect("a good value");
        assert_eq!(after(&mut own, "SET switchyard.route = auto; COMMIT"), "auto");
        assert_eq!(after(&mut own, "RESET switchyard.route; COMMIT"), "leader");
    }

    #[test]
    fn shows_its_own_only() {
        assert_eq!(shown(b"show Switchyard.route;").as_deref(), Some("switchyard.route"));
        assert_eq!(shown(b"SHOW \"switchyard.route\"").as_deref(), Some("switchyard.route"));
        for other in ["SHOW work_mem", "SHOW switchyard.route; SELECT 1", "SELECT switchyard.route", "SHOW ALL"] {
            assert_eq!(shown(other.as_bytes()), None, "{other}");
        }
    }
}
