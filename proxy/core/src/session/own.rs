//! The router's own parameters, `switchyard.*`: what they are set to in this session.
//!
//! A SET of one goes on to a server, which takes it for a placeholder of some extension's and answers in PostgreSQL's words; what counts is
//! what is noted here once it has succeeded. SET LOCAL ends with its transaction; what a rollback brings back is the journal's business.

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

pub(super) use crate::sql::own_parameter as is_own;

/// Values at one time: of the session, and until the transaction's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Values {
    session: [u8; PARAMETERS.len()],
    local: [Option<u8>; PARAMETERS.len()],
}

#[derive(Debug)]
pub(super) struct Own {
    /// Of the startup packet: what RESET goes back to.
    startup: [u8; PARAMETERS.len()],
    now: Values,
}

/// What is wrong with a SET or RESET, or nothing.
type Checked = Result<(), Refusal>;

impl Default for Own {
    fn default() -> Own {
        let session = PARAMETERS.map(|parameter| parameter.default);
        Own { startup: session, now: Values { session, local: [None; PARAMETERS.len()] } }
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
        Ok(Own { startup: session, now: Values { session, local: [None; PARAMETERS.len()] } })
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

    /// A SET or RESET has succeeded. `value`: `None` for what it was at the session's start.
    pub(super) fn set(&mut self, name: &str, value: Option<&str>, local: bool) {
        let Ok(which) = which(name) else { return };
        let value = value.and_then(|value| value_of(which, value).ok()).unwrap_or(self.startup[which]);
        if local {
            self.now.local[which] = Some(value);
        } else {
            (self.now.session[which], self.now.local[which]) = (value, None);
        }
    }

    pub(super) fn reset_all(&mut self) {
        self.now = Values { session: self.startup, local: [None; PARAMETERS.len()] };
    }

    /// The transaction, or the statement outside one, has ended.
    pub(super) fn end_locals(&mut self) {
        self.now.local = [None; PARAMETERS.len()];
    }

    pub(super) fn values(&self) -> Values {
        self.now
    }

    pub(super) fn restore(&mut self, values: Values) {
        self.now = values;
    }
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
    checks(sql, dialect).into_iter().find_map(Result::err)
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

/// What is wrong with each SET and RESET of ours in a string of statements.
fn checks(sql: &[u8], dialect: Dialect) -> Vec<Checked> {
    let mut checks = Vec::new();
    let mut tokens = Vec::new();
    for token in Lexer::new(sql, dialect.standard_conforming_strings) {
        if token.kind == TokenKind::Semicolon {
            checks.extend(check(sql, &tokens, dialect));
            tokens.clear();
        } else if tokens.len() < STEP_TOKENS {
            tokens.push(token);
        }
    }
    checks.extend(check(sql, &tokens, dialect));
    checks
}

/// More tokens than a statement has that concerns a parameter.
const STEP_TOKENS: usize = 20;

fn check(sql: &[u8], tokens: &[Token], dialect: Dialect) -> Option<Checked> {
    let text = |at: usize| tokens.get(at).map_or(&b""[..], |token: &Token| &sql[token.start..token.end]);
    let is = |at: usize, word: &str| text(at).eq_ignore_ascii_case(word.as_bytes());
    let last = tokens.len().checked_sub(1)?;
    if is(0, "set") {
        let at = if is(1, "local") || is(1, "session") { 2 } else { 1 };
        let named = dotted(sql, tokens, at).filter(|named| is_own(named))?;
        let whole = &sql[tokens[0].start..tokens[last].end];
        let which = match which(&named) {
            Ok(which) => which,
            Err(refusal) => return Some(Err(refusal)),
        };
        let Some(Setting { value, .. }) = setting(whole, dialect) else {
            let given = tokens.get(at + 4).map_or_else(String::new, |token| String::from_utf8_lossy(&sql[token.start..]).into_owned());
            return Some(value_of(which, &given).map(|_| ()));
        };
        return Some(if value == "default" { Ok(()) } else { value_of(which, &value).map(|_| ()) });
    }
    if is(0, "reset") && !is(1, "all") {
        let named = dotted(sql, tokens, 1).filter(|named| is_own(named))?;
        return Some(which(&named).map(|_| ()));
    }
    None
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

    fn shown_of(own: &Own) -> &'static str {
        own.show("switchyard.route", Level::Session).map_or("", |(_, value)| value)
    }

    #[test]
    fn a_local_value_ends_with_its_transaction() {
        let mut own = Own::default();
        own.set("switchyard.route", Some("leader"), false);
        own.set("Switchyard.Route", Some("REPLICA"), true);
        assert_eq!(shown_of(&own), "replica");
        own.end_locals();
        assert_eq!(own.route(), Some(Hint::Leader));
        own.set("switchyard.route", None, false);
        assert_eq!(own.route(), None);
    }

    #[test]
    fn a_level_that_nobody_set_is_the_listeners() {
        let mut own = Own::default();
        let shown = |own: &Own| own.show("switchyard.consistency", Level::Global).map_or("", |(_, value)| value);
        assert_eq!((own.level(), shown(&own)), (None, "global"));
        own.set("switchyard.consistency", Some("Strong"), false);
        assert_eq!((own.level(), shown(&own)), (Some(Level::Strong), "strong"));
        own.set("switchyard.consistency", Some("eventual"), true);
        assert_eq!(own.level(), Some(Level::Eventual));
        own.set("switchyard.consistency", None, false);
        assert_eq!((own.level(), shown(&own)), (None, "global"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |sql: &str| {
            let found = checks(sql.as_bytes(), Dialect::default()).into_iter().find_map(Result::err);
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
        own.set("switchyard.route", Some("auto"), false);
        assert_eq!(shown_of(&own), "auto");
        own.reset_all();
        assert_eq!(shown_of(&own), "leader");
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
