//! What a client has sent and no server has got yet: the messages up to a Query, FunctionCall, Flush or Sync.
//!
//! The bytes are kept until rows of the answer have been forwarded, so that the batch can run again elsewhere.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::Read;
use super::server::StatementId;
use super::settings::Settings;
use crate::causal::Level;
use crate::refusal::Refusal;
use crate::sql::{Class, Effect, Hint, Kind, RuledRoute, Verdict};
use crate::wire::{frame, view};

/// A statement that a client has prepared.
#[derive(Debug)]
pub(super) struct Statement {
    /// By which the client has prepared it; empty for the unnamed one.
    pub(super) name: Box<[u8]>,
    pub(super) id: StatementId,
    /// Of the settings under which the client prepared it.
    pub(super) seed: u64,
    pub(super) settings: Arc<Settings>,
    /// Parse's body behind the name.
    pub(super) tail: Box<[u8]>,
    pub(super) verdict: Arc<Verdict>,
    /// How its text was read at the client's Parse, as far as that was known.
    pub(super) read: Read,
    /// [`Judge::shape`](super::Judge::shape) at the client's Parse.
    pub(super) shape: u64,
    /// What the client was told that it gives, as a hash; unset where it hasn't asked. Shared by what one Parse has made, also where it was judged
    /// anew.
    pub(super) described: Arc<OnceLock<u64>>,
}

impl Statement {
    /// Of the same Parse.
    pub(super) fn is(&self, other: &Statement) -> bool {
        Arc::ptr_eq(&self.described, &other.described)
    }

    /// The same one, with another verdict.
    pub(super) fn judged(&self, verdict: Arc<Verdict>) -> Arc<Statement> {
        let Statement { ref name, id, seed, ref settings, ref tail, read, shape, ref described, .. } = *self;
        let (name, settings, tail, described) = (name.clone(), settings.clone(), tail.clone(), described.clone());
        Arc::new(Statement { name, id, seed, settings, tail, verdict, read, shape, described })
    }

    /// The text without its terminator.
    pub(super) fn text(&self) -> &[u8] {
        self.tail.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// One message of a batch.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Query(Arc<Verdict>),
    /// `previous`: what the unnamed statement was before; `duplicate`: the name means another statement already, or so it seems.
    Parse {
        name: Box<[u8]>,
        statement: Arc<Statement>,
        previous: Option<Arc<Statement>>,
        duplicate: bool,
    },
    /// `statement`: `None` for a name that this session hasn't prepared; `number`: which Bind of the session it is.
    Bind {
        statement: Option<Arc<Statement>>,
        unnamed: bool,
        number: u32,
    },
    DescribeStatement {
        statement: Option<Arc<Statement>>,
        unnamed: bool,
    },
    /// The statement that is bound to the portal.
    DescribePortal(Option<Arc<Statement>>),
    /// The statement that is bound to the portal.
    Execute(Option<Arc<Statement>>),
    /// `closed`: what the name meant.
    CloseStatement {
        name: Box<[u8]>,
        closed: Option<Arc<Statement>>,
    },
    ClosePortal,
    /// `large_object`: it is one of libpq's for large objects, which leave nothing.
    FunctionCall {
        large_object: bool,
    },
    /// The router's error takes the place of its answer.
    Refused(Box<Refusal>),
    Flush,
    Sync,
}

impl Item {
    /// The verdict on what it runs, where that is known.
    pub(super) fn runs(&self) -> Option<&Arc<Verdict>> {
        match self {
            Item::Query(verdict) => Some(verdict),
            Item::Execute(statement) => statement.as_ref().map(|statement| &statement.verdict),
            _ => None,
        }
    }
}

/// How a batch ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    #[default]
    Open,
    /// A Query, a FunctionCall or a Sync: ReadyForQuery follows.
    Ready,
    Flush,
    /// Longer than the look-ahead limit.
    Overflow,
}

#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) items: Vec<(Item, Range<usize>)>,
    pub(super) end: End,
}

impl Batch {
    pub(super) fn push(&mut self, item: Item, message: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(message);
        self.items.push((item, start..self.bytes.len()));
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.items.clear();
        self.end = End::Open;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Verdicts of all that would run or be analysed.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = &Arc<Verdict>> {
        self.items.iter().filter_map(|(item, _)| match item {
            Item::Query(verdict) => Some(verdict),
            Item::Parse { statement, .. } => Some(&statement.verdict),
            Item::Bind { statement, .. } | Item::DescribeStatement { statement, .. } | Item::Execute(statement) => {
                statement.as_ref().map(|statement| &statement.verdict)
            }
            Item::DescribePortal(_)
            | Item::CloseStatement { .. }
            | Item::ClosePortal
            | Item::FunctionCall { .. }
            | Item::Refused(_)
            | Item::Flush
            | Item::Sync => None,
        })
    }

    /// Verdicts of what runs.
    pub(super) fn executed(&self) -> impl Iterator<Item = &Arc<Verdict>> {
        self.items.iter().filter_map(|(item, _)| item.runs())
    }

    /// Whether SQL executes by its name what the batch closes: it may be there still where it is executed.
    pub(super) fn executes_closed(&self, verdict: &Verdict) -> bool {
        let closes = |executed: &str| {
            let is_it =
                |(item, _): &(Item, _)| matches!(item, Item::CloseStatement { name, closed: Some(_) } if **name == *executed.as_bytes());
            self.items.iter().any(is_it)
        };
        verdict.effects.iter().any(|effect| matches!(effect, Effect::Execute { name } if closes(name)))
    }

    /// The verdict on the statement that runs first, if nothing comes before it but what it is prepared and bound with.
    pub(super) fn first_to_run(&self) -> Option<&Arc<Verdict>> {
        let mut first = None;
        for (item, _) in &self.items {
            let (verdict, runs) = match item {
                Item::Query(verdict) => (verdict, true),
                Item::Execute(Some(statement)) => (&statement.verdict, true),
                Item::Parse { statement, .. }
                | Item::Bind { statement: Some(statement), .. }
                | Item::DescribeStatement { statement: Some(statement), .. }
                | Item::DescribePortal(Some(statement)) => (&statement.verdict, false),
                _ => return None,
            };
            if !Arc::ptr_eq(first.get_or_insert(verdict), verdict) {
                return None;
            }
            if runs {
                return first;
            }
        }
        None
    }

    /// The batch's class: the highest of its parts'.
    pub(super) fn class(&self) -> Class {
        let mut class = Class::Local;
        for (item, _) in &self.items {
            let part = match item {
                Item::FunctionCall { .. } => Class::Write,
                // A portal or statement that this session doesn't know: the server says what it is.
                Item::Execute(None) => Class::Write,
                Item::Bind { statement: None, .. } | Item::DescribeStatement { statement: None, .. } => Class::Write,
                _ => Class::Local,
            };
            class = class.max(part);
        }
        self.verdicts().fold(class, |class, verdict| class.max(verdict.class))
    }

    pub(super) fn hint(&self) -> Option<Hint> {
        self.verdicts().find_map(|verdict| verdict.hint)
    }

    /// Where a rule of the configuration sends it.
    pub(super) fn ruled(&self) -> Option<Hint> {
        self.verdicts().find_map(|verdict| match verdict.ruling.as_ref()?.route? {
            RuledRoute::To(hint) => Some(hint),
            RuledRoute::Reject => None,
        })
    }

    /// What its reads must show: of each statement what a rule of the configuration says, else `otherwise`, and the highest of all.
    pub(super) fn level(&self, otherwise: Level) -> Level {
        let of = |verdict: &Arc<Verdict>| verdict.ruling.as_ref().and_then(|ruling| ruling.level).unwrap_or(otherwise);
        self.executed().map(of).max().unwrap_or(otherwise)
    }

    /// Whether something in it must be answered before what comes behind it can be read.
    pub(super) fn needs_answer(&self) -> bool {
        self.end == End::Open && self.executed().any(|verdict| must_be_answered_first(verdict))
    }

    /// Whether what it has executed last, so far, ends a transaction.
    pub(super) fn ends_transaction_last(&self) -> bool {
        let last = self.items.last().and_then(|(item, _)| item.runs());
        last.is_some_and(|verdict| verdict.effects.iter().any(ends_transaction))
    }

    pub(super) fn executes(&self) -> bool {
        self.items.iter().any(|(item, _)| matches!(item, Item::Query(_) | Item::Execute(_) | Item::Bind { .. } | Item::FunctionCall { .. }))
    }

    /// The only statement of a batch that is one simple query with one statement.
    pub(super) fn lone_query(&self) -> Option<(&Arc<Verdict>, &[u8])> {
        match self.items.as_slice() {
            [(Item::Query(verdict), range)] if verdict.statements == 1 => {
                // Between header and terminator.
                Some((verdict, &self.bytes[range.start + 5..range.end - 1]))
            }
            _ => None,
        }
    }

    /// The statement of a batch that runs one INSERT, UPDATE, DELETE, MERGE or SELECT and ends in ReadyForQuery.
    pub(super) fn lone_change(&self) -> Option<(&Arc<Verdict>, &[u8])> {
        let mut lone = None;
        for (item, range) in &self.items {
            let runs = match item {
                Item::Query(verdict) => Some((verdict, &self.bytes[range.start + 5..range.end - 1])),
                Item::Execute(Some(statement)) => Some((&statement.verdict, statement.text())),
                Item::Parse { .. } | Item::Bind { .. } | Item::DescribeStatement { .. } | Item::DescribePortal(_) | Item::Sync => None,
                Item::Execute(None)
                | Item::CloseStatement { .. }
                | Item::ClosePortal
                | Item::FunctionCall { .. }
                | Item::Refused(_)
                | Item::Flush => return None,
            };
            if runs.is_some() && std::mem::replace(&mut lone, runs).is_some() {
                return None;
            }
        }
        let changes = |kind| matches!(kind, Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge | Kind::Select);
        lone.filter(|(verdict, _)| self.end == End::Ready && verdict.statements == 1 && changes(verdict.kind) && verdict.ruling.is_none())
    }

    /// A Sync alone, or an empty query: nothing that is worth being run again.
    pub(super) fn is_trivial(&self) -> bool {
        self.items.iter().all(|(item, _)| matches!(item, Item::Sync | Item::Flush))
    }

    /// Whether something in it begins, ends or may end a transaction.
    pub(super) fn may_end_transaction(&self) -> bool {
        self.items.iter().any(|(item, _)| matches!(item, Item::Execute(None)))
            || self.executed().any(|verdict| verdict.effects.iter().any(ends_transaction))
    }

    /// Whether it goes on with a portal that an earlier batch has opened. That is on the server which ran it, and nowhere else.
    pub(super) fn goes_on_with_portal(&self) -> bool {
        let body = |range: &Range<usize>| &self.bytes[range.clone()][frame::HEADER..];
        let opens = |(item, range): &(Item, Range<usize>), portal: &[u8]| {
            matches!(item, Item::Bind { .. }) && view::bind(body(range)).is_ok_and(|bind| bind.portal == portal)
        };
        self.items.iter().enumerate().any(|(at, (item, range))| {
            let portal = match item {
                Item::Execute(_) => view::execute(body(range)),
                Item::DescribePortal(_) => view::target(body(range)).map(|(_, name)| name),
                _ => return false,
            };
            portal.is_ok_and(|portal| !self.items[..at].iter().rev().any(|earlier| opens(earlier, portal)))
        })
    }

    /// What only reads, and may therefore be run twice; also the end of a transaction where there is none.
    pub(super) fn repeatable(&self) -> bool {
        let ends = |verdict: &Verdict| {
            verdict.effects.iter().all(|effect| matches!(effect, Effect::Commit { chain: false } | Effect::Rollback { chain: false }))
        };
        self.class() <= Class::Read
            && !self.goes_on_with_portal()
            && self.executed().all(|verdict| match verdict.kind {
                Kind::Select | Kind::Copy | Kind::Empty | Kind::Utility => true,
                Kind::Transaction => ends(verdict),
                Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge | Kind::Unknown => false,
            })
    }
}

/// Whether what follows depends on the outcome of what this verdict is about: a COPY takes the messages that follow it, names mean something else
/// behind a DEALLOCATE, and settings decide how what follows is read, and what it is shared with.
pub(super) fn must_be_answered_first(verdict: &Verdict) -> bool {
    let decides = |effect: &Effect| {
        matches!(
            effect,
            Effect::CopyIn
                | Effect::Set { .. }
                | Effect::SetUnknown
                | Effect::Reset { .. }
                | Effect::ResetAll
                | Effect::DiscardAll
                | Effect::Prepare { .. }
                | Effect::Deallocate { .. }
                | Effect::DeallocateAll
                | Effect::SetTransaction { session: true, .. }
        )
    };
    verdict.effects.iter().any(decides) || verdict.kind == Kind::Unknown
}

/// Whether it ends a transaction, or goes back within it.
pub(super) fn ends_or_goes_back(effect: &Effect) -> bool {
    ends_transaction(effect) || matches!(effect, Effect::RollbackTo { .. })
}

/// Whether it runs in a transaction that has failed, too.
pub(super) fn runs_when_failed(effect: &Effect) -> bool {
    ends_or_goes_back(effect) && *effect != Effect::MayCommit
}

pub(super) fn ends_transaction(effect: &Effect) -> bool {
    matches!(effect, Effect::Commit { .. } | Effect::Rollback { .. } | Effect::PrepareTransaction | Effect::MayCommit)
}
