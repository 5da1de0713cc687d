//! One value for all statements that differ only in literals, white space and comments.
//!
//! Invariant: statements with different verdicts have different fingerprints, except where [`Summary::cacheable`] is `false`. So a
//! token counts with its kind and length: quoted and unquoted names differ, parameters keep their numbers, a leading hint counts, and so does
//! how strings are read.

use std::fmt;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::classify::Dialect;
use super::lexer::{Lexer, Token, TokenKind};
use super::verdict::Hint;

/// A 128-bit hash of a statement's tokens without literals. Not a defence against somebody who makes collisions on purpose: a wrong verdict
/// costs its author an error of PostgreSQL's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u128);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What one pass over a statement's tokens tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub fingerprint: Fingerprint,
    /// `false`: verdict or effects may depend on a literal, or on bytes that the lexer can't be sure of.
    pub cacheable: bool,
}

/// Bytes that are hashed in one go; statements whose tokens need more are hashed in pieces of it.
const CHUNK_BYTES: usize = 512;

/// Bytes of a name that are copied at once.
const BLOCK_BYTES: usize = 16;

/// Collects bytes and hashes them, without allocation.
struct Sink {
    chunk: [u8; CHUNK_BYTES],
    used: usize,
    spilled: Option<Xxh3>,
}

impl Sink {
    fn new() -> Sink {
        Sink { chunk: [0; CHUNK_BYTES], used: 0, spilled: None }
    }

    fn spill(&mut self) {
        self.spilled.get_or_insert_with(Xxh3::new).update(&self.chunk[..self.used]);
        self.used = 0;
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        if self.used == CHUNK_BYTES {
            self.spill();
        }
        self.chunk[self.used] = byte;
        self.used += 1;
    }

    /// A kind and a token's bytes in lower case (or as they are), with their length so that no two sequences run together.
    #[inline]
    fn text(&mut self, tag: u8, sql: &[u8], token: Token, fold: bool) {
        let length = token.end - token.start;
        // Nearly every name is short: a whole block is copied then, of which what is too much is overwritten or left out.
        if length <= BLOCK_BYTES
            && let Some(block) = sql.get(token.start..).and_then(<[u8]>::first_chunk::<BLOCK_BYTES>)
            && let Some(place) = self.chunk.get_mut(self.used..self.used + 2 + BLOCK_BYTES)
        {
            let mut block = *block;
            if fold {
                block.make_ascii_lowercase();
            }
            place[0] = tag;
            place[1] = length as u8;
            place[2..].copy_from_slice(&block);
            self.used += 2 + length;
        } else {
            self.long_text(tag, &sql[token.start..token.end], fold);
        }
    }

    #[cold]
    fn long_text(&mut self, tag: u8, text: &[u8], fold: bool) {
        self.push(tag);
        match u8::try_from(text.len()) {
            Ok(length) if length < u8::MAX => self.push(length),
            _ => {
                self.push(u8::MAX);
                (text.len() as u64).to_le_bytes().iter().for_each(|byte| self.push(*byte));
            }
        }
        text.iter().for_each(|byte| self.push(if fold { byte.to_ascii_lowercase() } else { *byte }));
    }

    fn finish(mut self) -> u128 {
        if self.spilled.is_some() {
            self.spill();
        }
        match self.spilled {
            Some(hasher) => hasher.digest128(),
            None => xxh3_128(&self.chunk[..self.used]),
        }
    }
}

/// Fingerprints a query string under a dialect, in one pass and without allocation.
pub fn summarize(sql: &[u8], dialect: Dialect) -> Summary {
    let mut sink = Sink::new();
    let mut cacheable = dialect.can_lex(sql);
    sink.push(u8::from(dialect.standard_conforming_strings));
    sink.push(match leading_hint(sql) {
        None => 0,
        Some(Hint::Leader) => 1,
        Some(Hint::Replica) => 2,
    });
    let mut begins_statement = true;
    for token in Lexer::new(sql, dialect.standard_conforming_strings) {
        let sets = (begins_statement && is_set(token, sql)) || names_set_config(token, sql);
        cacheable &= !sets && token.kind != TokenKind::Invalid;
        begins_statement = token.kind == TokenKind::Semicolon;
        match token.kind {
            TokenKind::Word => sink.text(b'w', sql, token, true),
            TokenKind::QuotedName => sink.text(b'q', sql, token, false),
            TokenKind::UnicodeName => sink.text(b'u', sql, token, false),
            TokenKind::Parameter => sink.text(b'p', sql, token, false),
            TokenKind::Operator => sink.text(b'o', sql, token, false),
            TokenKind::Invalid => sink.text(b'!', sql, token, false),
            TokenKind::String => sink.push(b'S'),
            TokenKind::BitString => sink.push(b'B'),
            TokenKind::Number => sink.push(b'N'),
            TokenKind::Comma => sink.push(b','),
            TokenKind::Semicolon => sink.push(b';'),
            TokenKind::OpenParen => sink.push(b'('),
            TokenKind::CloseParen => sink.push(b')'),
            TokenKind::OpenBracket => sink.push(b'['),
            TokenKind::CloseBracket => sink.push(b']'),
            TokenKind::Dot => sink.push(b'.'),
            TokenKind::DotDot => sink.push(b'd'),
            TokenKind::Colon => sink.push(b':'),
            TokenKind::Cast => sink.push(b'c'),
            TokenKind::Assign => sink.push(b'a'),
        }
    }
    Summary { fingerprint: Fingerprint(sink.finish()), cacheable }
}

fn is_set(token: Token, sql: &[u8]) -> bool {
    sql[token.start..token.end].eq_ignore_ascii_case(b"set")
}

/// `set_config` names its parameter in a literal.
#[inline]
fn names_set_config(token: Token, sql: &[u8]) -> bool {
    match (token.kind, token.end - token.start) {
        (TokenKind::Word, 10) => sql[token.start..token.end].eq_ignore_ascii_case(b"set_config"),
        (TokenKind::QuotedName, 12) => &sql[token.start..token.end] == b"\"set_config\"",
        _ => false,
    }
}

/// The first `/* switchyard: leader */` or `/* switchyard: replica */` among the comments before the first token.
pub fn leading_hint(sql: &[u8]) -> Option<Hint> {
    let mut rest = sql;
    loop {
        rest = rest.trim_ascii_start();
        if rest.starts_with(b"--") {
            let end = memchr::memchr2(b'\n', b'\r', rest)?;
            rest = &rest[end..];
        } else if rest.starts_with(b"/*") {
            let end = comment_end(rest)?;
            if let Some(hint) = hint_in(&rest[2..end - 2]) {
                return Some(hint);
            }
            rest = &rest[end..];
        } else {
            return None;
        }
    }
}

fn hint_in(comment: &[u8]) -> Option<Hint> {
    let words = comment.trim_ascii();
    let value = words.get(..11).filter(|key| key.eq_ignore_ascii_case(b"switchyard:")).map(|_| words[11..].trim_ascii())?;
    if value.eq_ignore_ascii_case(b"leader") {
        Some(Hint::Leader)
    } else if value.eq_ignore_ascii_case(b"replica") {
        Some(Hint::Replica)
    } else {
        None
    }
}

/// Where the comment that `text` begins with ends, nested ones included.
fn comment_end(text: &[u8]) -> Option<usize> {
    let mut depth = 1usize;
    let mut at = 2;
    loop {
        at += memchr::memchr2(b'*', b'/', text.get(at..)?)?;
        match (text[at], text.get(at + 1)) {
            (b'/', Some(b'*')) => {
                depth += 1;
                at += 2;
            }
            (b'*', Some(b'/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests;
