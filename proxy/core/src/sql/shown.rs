//! A statement's text for people, without what is nobody's business: its literals.

use super::lexer::{Lexer, TokenKind};

/// The text without literals and comments, white space as single spaces, cut off at `max_bytes`.
pub fn without_literals(sql: &[u8], standard_conforming_strings: bool, max_bytes: usize) -> String {
    let mut shown = String::new();
    let mut end = 0;
    for token in Lexer::new(sql, standard_conforming_strings) {
        if token.start > end && !shown.is_empty() {
            shown.push(' ');
        }
        end = token.end;
        match token.kind {
            // What can't be scanned may be a literal that doesn't end.
            TokenKind::String | TokenKind::BitString | TokenKind::Number | TokenKind::Invalid => shown.push('?'),
            _ => shown.push_str(&String::from_utf8_lossy(&sql[token.start..token.end.min(token.start + max_bytes + 4)])),
        }
        if shown.len() > max_bytes {
            let cut = (0..=max_bytes).rev().find(|at| shown.is_char_boundary(*at)).unwrap_or(0);
            shown.truncate(cut);
            shown.push_str("...");
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::without_literals;

    #[test]
    fn shows_no_literal() {
        let shown = |sql: &str| without_literals(sql.as_bytes(), true, 60);
        assert_eq!(
            shown("select *\n from t -- secret\n where a='secret'and b = $$x$$ or c=12"),
            "select * from t where a=?and b = ? or c=?"
        );
        assert_eq!(shown("select 'secret"), "select ?");
        assert_eq!(shown(&"é".repeat(100)), format!("{}...", "é".repeat(30)));
    }
}
