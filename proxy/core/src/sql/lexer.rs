//! PostgreSQL's lexical rules, in one pass over bytes and without allocation.
//!
//! Owns: where a token begins and ends, and of what kind it is. Invariant: every byte belongs to exactly one token, comment or run of
//! white space; the scan never looks at a byte more than twice, so that its time is linear.
//! Source: PostgreSQL `src/backend/parser/scan.l` (the numbers of 16 with their underscores and prefixes, which 15 reads as a number with an
//! alias or refuses).

use memchr::{memchr, memchr2, memmem};

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// An unquoted word: key word or name.
    Word,
    /// `"name"`.
    QuotedName,
    /// `U&"name"`.
    UnicodeName,
    /// `'...'`, `E'...'`, `N'...'`, `U&'...'` or `$tag$...$tag$`.
    String,
    /// `B'...'` or `X'...'`.
    BitString,
    Number,
    /// `$1`.
    Parameter,
    /// An operator of one or more of `+-*/<>=~!@#%^&|` and the back-tick and question mark.
    Operator,
    Comma,
    Semicolon,
    OpenParen,
    CloseParen,
    OpenBracket,
    CloseBracket,
    Dot,
    DotDot,
    Colon,
    /// `::`.
    Cast,
    /// `:=`.
    Assign,
    /// An unterminated string, name or comment, or a byte that no token can begin with.
    Invalid,
}

/// A token's kind and its bytes' place in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: TokenKind,
    pub start: usize,
    pub end: usize,
}

/// The tokens of a text, as an iterator.
#[derive(Clone, Debug)]
pub struct Lexer<'a> {
    sql: &'a [u8],
    at: usize,
    standard_strings: bool,
}

const SPACE: u8 = 1;
const NAME_START: u8 = 2;
const NAME: u8 = 4;
const OPERATOR: u8 = 8;
const DIGIT: u8 = 16;

/// What each byte can be.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < classes.len() {
        let byte = at as u8;
        classes[at] = match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'0'..=b'9' => NAME | DIGIT,
            b'$' => NAME,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => NAME_START | NAME,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' => {
                OPERATOR
            }
            _ => 0,
        };
        at += 1;
    }
    classes
};

fn is(byte: u8, class: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

fn is_space(byte: u8) -> bool {
    is(byte, SPACE)
}

fn is_newline(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn begins_name(byte: u8) -> bool {
    is(byte, NAME_START)
}

fn continues_name(byte: u8) -> bool {
    is(byte, NAME)
}

fn is_operator(byte: u8) -> bool {
    is(byte, OPERATOR)
}

impl<'a> Lexer<'a> {
    /// Reads `sql` under the given `standard_conforming_strings`.
    pub fn new(sql: &'a [u8], standard_conforming_strings: bool) -> Lexer<'a> {
        Lexer { sql, at: 0, standard_strings: standard_conforming_strings }
    }

    #[inline]
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.sql.get(self.at + ahead).copied()
    }

    /// Skips white space and comments. `false`: a comment has no end (it then took the rest).
    #[inline]
    fn skip_blank(&mut self) -> bool {
        while let Some(byte) = self.peek(0) {
            if is_space(byte) {
                self.at += 1;
            } else if byte == b'-' && self.peek(1) == Some(b'-') {
                self.skip_line();
            } else if byte == b'/' && self.peek(1) == Some(b'*') {
                if !self.skip_comment() {
                    return false;
                }
            } else {
                break;
            }
        }
        true
    }

    fn skip_line(&mut self) {
        self.at = memchr2(b'\n', b'\r', &self.sql[self.at..]).map_or(self.sql.len(), |offset| self.at + offset);
    }

    /// Skips a block comment with those nested in it.
    fn skip_comment(&mut self) -> bool {
        let mut depth = 1usize;
        self.at += 2;
        while let Some(offset) = memchr2(b'*', b'/', &self.sql[self.at..]) {
            self.at += offset;
            match (self.sql[self.at], self.peek(1)) {
                (b'/', Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return true;
                    }
                }
                _ => self.at += 1,
            }
        }
        self.at = self.sql.len();
        false
    }

    /// From behind an opening quote to behind the closing one; `''` stands for a quote, and `\'` too with `escapes`.
    fn quoted(&mut self, escapes: bool) -> bool {
        loop {
            let rest = &self.sql[self.at..];
            let found = if escapes { memchr2(b'\'', b'\\', rest) } else { memchr(b'\'', rest) };
            let Some(offset) = found else {
                self.at = self.sql.len();
                return false;
            };
            self.at += offset;
            if self.sql[self.at] == b'\\' {
                self.at = (self.at + 2).min(self.sql.len());
            } else if self.peek(1) == Some(b'\'') {
                self.at += 2;
            } else {
                self.at += 1;
                if !self.continued() {
                    return true;
                }
            }
        }
    }

    /// Whether the string goes on behind white space with a line break (`quotecontinue`); if so, moves behind its quote.
    fn continued(&mut self) -> bool {
        let start = self.at;
        let mut line_broken = false;
        while let Some(byte) = self.peek(0) {
            if is_space(byte) {
                line_broken |= is_newline(byte);
                self.at += 1;
            } else if byte == b'-' && self.peek(1) == Some(b'-') {
                self.skip_line();
            } else {
                break;
            }
        }
        if line_broken && self.peek(0) == Some(b'\'') {
            self.at += 1;
            return true;
        }
        self.at = start;
        false
    }

    fn string(&mut self, prefix: usize, escapes: bool, kind: TokenKind) -> TokenKind {
        self.at += prefix + 1;
        if self.quoted(escapes) { kind } else { TokenKind::Invalid }
    }

    fn quoted_name(&mut self, prefix: usize, kind: TokenKind) -> TokenKind {
        self.at += prefix + 1;
        let start = self.at;
        while let Some(offset) = memchr(b'"', &self.sql[self.at..]) {
            self.at += offset + 1;
            if self.peek(0) != Some(b'"') {
                return if self.at == start + 1 { TokenKind::Invalid } else { kind };
            }
            self.at += 1;
        }
        self.at = self.sql.len();
        TokenKind::Invalid
    }

    #[inline]
    fn word(&mut self, first: u8) -> TokenKind {
        match (first, self.peek(1), self.peek(2)) {
            (b'e' | b'E', Some(b'\''), _) => return self.string(1, true, TokenKind::String),
            // As `nchar` and a plain string.
            (b'n' | b'N', Some(b'\''), _) => return self.string(1, !self.standard_strings, TokenKind::String),
            (b'b' | b'B' | b'x' | b'X', Some(b'\''), _) => return self.string(1, false, TokenKind::BitString),
            (b'u' | b'U', Some(b'&'), Some(b'\'')) => return self.string(2, !self.standard_strings, TokenKind::String),
            (b'u' | b'U', Some(b'&'), Some(b'"')) => return self.quoted_name(2, TokenKind::UnicodeName),
            _ => {}
        }
        self.skip_while(continues_name);
        TokenKind::Word
    }

    #[inline]
    fn skip_while(&mut self, accept: impl Fn(u8) -> bool) {
        let rest = &self.sql[self.at..];
        self.at += rest.iter().position(|byte| !accept(*byte)).unwrap_or(rest.len());
    }

    /// `[0-9](_?[0-9])*` or the like with other digits.
    fn digits(&mut self, accept: impl Fn(u8) -> bool) {
        self.skip_while(&accept);
        while self.peek(0) == Some(b'_') && self.peek(1).is_some_and(&accept) {
            self.at += 1;
            self.skip_while(&accept);
        }
    }

    #[inline]
    fn number(&mut self) -> TokenKind {
        let radix: Option<fn(u8) -> bool> = match (self.peek(0), self.peek(1)) {
            (Some(b'0'), Some(b'x' | b'X')) => Some(|byte| byte.is_ascii_hexdigit()),
            (Some(b'0'), Some(b'o' | b'O')) => Some(|byte| matches!(byte, b'0'..=b'7')),
            (Some(b'0'), Some(b'b' | b'B')) => Some(|byte| matches!(byte, b'0' | b'1')),
            _ => None,
        };
        if let Some(accept) = radix {
            let underscore = usize::from(self.peek(2) == Some(b'_'));
            if self.peek(2 + underscore).is_some_and(accept) {
                self.at += 2 + underscore;
                self.digits(accept);
                return TokenKind::Number;
            }
        }
        let decimal = |byte: u8| is(byte, DIGIT);
        self.digits(decimal);
        // `1..2` is a number and two dots.
        if self.peek(0) == Some(b'.') && self.peek(1) != Some(b'.') {
            self.at += 1;
            self.digits(decimal);
        }
        if matches!(self.peek(0), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(self.peek(1), Some(b'+' | b'-')));
            if self.peek(1 + sign).is_some_and(decimal) {
                self.at += 1 + sign;
                self.digits(decimal);
            }
        }
        TokenKind::Number
    }

    /// A parameter, a dollar-quoted string, or a stray dollar sign. Where a tag ends that isn't ASCII, nobody knows: see [`is_wide_dollar_quote`].
    fn dollar(&mut self) -> TokenKind {
        let start = self.at;
        self.at += 1;
        match self.peek(0) {
            Some(byte) if byte.is_ascii_digit() => {
                self.skip_while(|byte| byte.is_ascii_digit());
                return TokenKind::Parameter;
            }
            Some(byte) if begins_name(byte) => self.skip_while(|byte| continues_name(byte) && byte != b'$'),
            _ => {}
        }
        if self.peek(0) != Some(b'$') {
            self.at = start + 1;
            return TokenKind::Invalid;
        }
        self.at += 1;
        let delimiter = &self.sql[start..self.at];
        if !delimiter.is_ascii() {
            return TokenKind::Invalid;
        }
        match memmem::find(&self.sql[self.at..], delimiter) {
            Some(offset) => {
                self.at += offset + delimiter.len();
                TokenKind::String
            }
            None => {
                self.at = self.sql.len();
                TokenKind::Invalid
            }
        }
    }

    #[inline]
    fn operator(&mut self) -> TokenKind {
        let start = self.at;
        let mut end = start;
        while end < self.sql.len() && is_operator(self.sql[end]) {
            let comment = matches!((self.sql[end], self.sql.get(end + 1)), (b'-', Some(b'-')) | (b'/', Some(b'*')));
            if comment {
                break;
            }
            end += 1;
        }
        // A + or - may end an operator only if it has one of these characters (so that `1=-1` is three tokens).
        let special = |byte: &u8| matches!(byte, b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'%');
        if !self.sql[start..end].iter().any(special) {
            while end > start + 1 && matches!(self.sql[end - 1], b'+' | b'-') {
                end -= 1;
            }
        }
        self.at = end;
        TokenKind::Operator
    }

    fn one(&mut self, kind: TokenKind) -> TokenKind {
        self.at += 1;
        kind
    }

    fn two(&mut self, kind: TokenKind) -> TokenKind {
        self.at += 2;
        kind
    }
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    #[inline]
    fn next(&mut self) -> Option<Token> {
        let before = self.at;
        if !self.skip_blank() {
            return Some(Token { kind: TokenKind::Invalid, start: before, end: self.at });
        }
        let start = self.at;
        let first = self.peek(0)?;
        let second = self.peek(1);
        let kind = match first {
            b'\'' => self.string(0, !self.standard_strings, TokenKind::String),
            b'"' => self.quoted_name(0, TokenKind::QuotedName),
            b'$' => self.dollar(),
            b'0'..=b'9' => self.number(),
            b'.' if second.is_some_and(|byte| byte.is_ascii_digit()) => self.number(),
            b'.' if second == Some(b'.') => self.two(TokenKind::DotDot),
            b'.' => self.one(TokenKind::Dot),
            b':' if second == Some(b':') => self.two(TokenKind::Cast),
            b':' if second == Some(b'=') => self.two(TokenKind::Assign),
            b':' => self.one(TokenKind::Colon),
            b',' => self.one(TokenKind::Comma),
            b';' => self.one(TokenKind::Semicolon),
            b'(' => self.one(TokenKind::OpenParen),
            b')' => self.one(TokenKind::CloseParen),
            b'[' => self.one(TokenKind::OpenBracket),
            b']' => self.one(TokenKind::CloseBracket),
            byte if begins_name(byte) => self.word(byte),
            byte if is_operator(byte) => self.operator(),
            _ => self.one(TokenKind::Invalid),
        };
        Some(Token { kind, start, end: self.at })
    }
}

/// The longest name that PostgreSQL keeps, in bytes (`NAMEDATALEN` - 1).
const NAME_BYTES: usize = 63;

/// A word or quoted name as PostgreSQL keeps it: in lower case where unquoted, with doubled quotes undone, cut to 63 bytes.
#[derive(Clone, Copy)]
pub(super) struct Name {
    bytes: [u8; NAME_BYTES + 1],
    length: usize,
}

impl Name {
    /// No name.
    pub(super) fn empty() -> Name {
        Name { bytes: [0; NAME_BYTES + 1], length: 0 }
    }

    /// The name that a token of kind `Word` or `QuotedName` spells.
    pub(super) fn of(token: Token, sql: &[u8]) -> Name {
        let mut name = Name { bytes: [0; NAME_BYTES + 1], length: 0 };
        match token.kind {
            TokenKind::QuotedName => {
                let mut previous_was_quote = false;
                for byte in &sql[token.start + 1..token.end - 1] {
                    previous_was_quote = *byte == b'"' && !previous_was_quote;
                    if !previous_was_quote {
                        name.push(*byte);
                    }
                }
            }
            _ => {
                let text = &sql[token.start..token.end];
                name.length = text.len().min(NAME_BYTES + 1);
                name.bytes[..name.length].copy_from_slice(&text[..name.length]);
                name.bytes[..name.length].make_ascii_lowercase();
            }
        }
        if name.length > NAME_BYTES {
            // The cut never halves a character (`pg_mbcliplen`).
            let mut cut = NAME_BYTES;
            while cut > 0 && name.bytes[cut] & 0xc0 == 0x80 {
                cut -= 1;
            }
            name.length = cut;
        }
        name
    }

    fn push(&mut self, byte: u8) {
        if self.length < self.bytes.len() {
            self.bytes[self.length] = byte;
            self.length += 1;
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The name as text; empty where it isn't UTF-8, so that it matches nothing.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or("")
    }
}

/// Whether a token begins a dollar quote whose tag isn't ASCII. The server compares tags in its own encoding, in which two sequences of bytes of the
/// client's may be one character (EUC_JP, EUC_TW).
pub(super) fn is_wide_dollar_quote(token: Token, sql: &[u8]) -> bool {
    let text = &sql[token.start..token.end];
    token.kind == TokenKind::Invalid && text.starts_with(b"$") && !text.is_ascii()
}

#[cfg(test)]
mod tests;
