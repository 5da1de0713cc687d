use super::*;

fn tokens(sql: &str, standard: bool) -> Vec<(TokenKind, &str)> {
    Lexer::new(sql.as_bytes(), standard).map(|token| (token.kind, &sql[token.start..token.end])).collect()
}

fn kinds(sql: &str) -> Vec<TokenKind> {
    tokens(sql, true).into_iter().map(|(kind, _)| kind).collect()
}

#[test]
fn comments_nest_and_vanish() {
    assert_eq!(kinds("/* a /* b */ ' */ x -- 'y\n/**/z"), [TokenKind::Word, TokenKind::Word]);
    assert_eq!(kinds("a/* /* */"), [TokenKind::Word, TokenKind::Invalid]);
}

#[test]
fn strings_of_every_kind_are_one_token() {
    for sql in
        ["'a''b'", "E'a\\'b'", "e'\\\\'", "N'x'", "U&'\\0041'", "$$a'b$$", "$x$ $$ $y$ $x$", "'a'\n  'b'", "'a' -- c\n 'b'", "E'a'\n'\\''"]
    {
        assert_eq!(tokens(sql, true), [(TokenKind::String, sql)], "{sql}");
    }
    for sql in ["B'01'", "x'1f'"] {
        assert_eq!(tokens(sql, true), [(TokenKind::BitString, sql)], "{sql}");
    }
    assert_eq!(kinds("'a' 'b'"), [TokenKind::String, TokenKind::String]);
    assert_eq!(tokens("'a\\' y '", true), [(TokenKind::String, "'a\\'"), (TokenKind::Word, "y"), (TokenKind::Invalid, "'")]);
    assert_eq!(tokens("'a\\' y '", false), [(TokenKind::String, "'a\\' y '")]);
    for sql in ["'a", "\"a", "\"\"", "$a$b", "E'\\'", "\u{1}"] {
        assert_eq!(kinds(sql).last(), Some(&TokenKind::Invalid), "{sql}");
    }
}

#[test]
fn operators_end_where_postgres_ends_them() {
    let texts = |sql| tokens(sql, true).into_iter().map(|(_, text)| text.to_owned()).collect::<Vec<_>>();
    assert_eq!(texts("1=-1"), ["1", "=", "-", "1"]);
    assert_eq!(texts("a@-b"), ["a", "@-", "b"]);
    assert_eq!(texts("a+/*x*/b"), ["a", "+", "b"]);
    assert_eq!(texts("a---b\nc"), ["a", "c"]);
    assert_eq!(texts("a->>'b'::text"), ["a", "->>", "'b'", "::", "text"]);
    assert_eq!(texts("f(a=>1,b:=2)"), ["f", "(", "a", "=>", "1", ",", "b", ":=", "2", ")"]);
}

#[test]
fn numbers_and_parameters() {
    for sql in ["1", "1.5", ".5", "1.", "1e10", "1.5E-3", "0x1F", "0o17", "0b1_0", "1_000.000_1", "0x_1f"] {
        assert_eq!(tokens(sql, true), [(TokenKind::Number, sql)], "{sql}");
    }
    assert_eq!(kinds("1..2"), [TokenKind::Number, TokenKind::DotDot, TokenKind::Number]);
    assert_eq!(kinds("1FROM t"), [TokenKind::Number, TokenKind::Word, TokenKind::Word]);
    assert_eq!(kinds("$1.a"), [TokenKind::Parameter, TokenKind::Dot, TokenKind::Word]);
    assert_eq!(kinds("a$1"), [TokenKind::Word]);
}

#[test]
fn names_fold_and_are_cut() {
    let name = |sql: &str| Name::of(Lexer::new(sql.as_bytes(), true).next().expect("one token"), sql.as_bytes()).as_str().to_owned();
    assert_eq!(name("ÄbC"), "Äbc");
    assert_eq!(name("\"A\"\"b\""), "A\"b");
    assert_eq!(name(&"x".repeat(70)), "x".repeat(63));
    assert_eq!(name(&format!("{}é", "x".repeat(62))), "x".repeat(62));
    assert_eq!(name(&format!("\"{}\"\"y\"", "x".repeat(62))), format!("{}\"", "x".repeat(62)));
}

proptest::proptest! {
    #[test]
    fn tokens_never_overlap_and_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), standard: bool) {
        let mut end = 0;
        for token in Lexer::new(&bytes, standard) {
            proptest::prop_assert!(token.start >= end && token.end > token.start && token.end <= bytes.len());
            end = token.end;
        }
    }
}
