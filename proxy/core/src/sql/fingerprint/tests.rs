use super::*;

fn print(sql: &str) -> Fingerprint {
    summarize(sql.as_bytes(), Dialect::default()).fingerprint
}

#[test]
fn literals_space_and_case_dont_count() {
    let same = [
        "SELECT v FROM t WHERE id = 1 AND v = 'a'",
        "select V from T where ID=42 and v = $$b$$ -- x",
        "/* app: x */ SELECT v\nFROM t /* y */ WHERE id = 0x1F AND v = E'\\''",
    ];
    assert!(same.iter().all(|sql| print(sql) == print(same[0])));
}

#[test]
fn whatever_can_change_a_verdict_counts() {
    let different = [
        "SELECT f(1)",
        "SELECT F 1",
        "SELECT \"f\"(1)",
        "SELECT \"F\"(1)",
        "SELECT U&\"f\"(1)",
        "SELECT f($1)",
        "SELECT f($2)",
        "SELECT f('1')",
        "SELECT f(-1)",
        "SELECT f(B'1')",
        "SELECT f.f(1)",
        "SELECT f(1, 1)",
        "SELECT f(1);",
        "SELECT f(1); SELECT 1",
        "SELECT f[1]",
        "SELECT f ~~~~ 1",
        "SELECT f ~~~ 1",
        "SELECT ff(1)",
        "SELECT f f(1)",
        "/* switchyard: leader */ SELECT f(1)",
        "/* switchyard: replica */ SELECT f(1)",
    ];
    for (at, left) in different.iter().enumerate() {
        for right in &different[at + 1..] {
            assert_ne!(print(left), print(right), "{left} and {right}");
        }
    }
    let other = Dialect { standard_conforming_strings: false, ..Dialect::default() };
    assert_ne!(summarize(b"SELECT 1", other).fingerprint, print("SELECT 1"));
}

#[test]
fn hints_lead() {
    let hint = |sql: &str| leading_hint(sql.as_bytes());
    assert_eq!(hint("/* switchyard: leader */ SELECT 1"), Some(Hint::Leader));
    assert_eq!(hint("-- a\n /* b */ /*switchyard:replica*/SELECT 1"), Some(Hint::Replica));
    assert_eq!(hint("SELECT 1 /* switchyard: leader */"), None);
    assert_eq!(hint("/* switchyard: elsewhere */ SELECT 1"), None);
    assert_eq!(hint("/* /* switchyard: leader */ */ SELECT 1"), None);
    assert_eq!(hint("/*/ SELECT 1"), None);
}

#[test]
fn long_statements_are_hashed_in_pieces() {
    let long = |name: &str, literal: &str| format!("SELECT {} FROM t WHERE id = {literal}", vec![name; 400].join(", "));
    assert_eq!(print(&long("a", "1")), print(&long("A", "2")));
    assert_ne!(print(&long("a", "1")), print(&long("b", "1")));
    let name = "n".repeat(2000);
    assert_eq!(print(&long(&name, "1")), print(&long(&name.to_uppercase(), "2")));
}
