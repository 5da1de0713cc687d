use super::*;

fn dialect() -> Dialect {
    Dialect::default()
}

#[test]
fn a_million_literals_are_one_entry() {
    let memo = Memo::new(1024);
    let facts = Facts::empty();
    for number in 0..1_000_000 {
        let (verdict, _, hit) = memo.verdict(format!("SELECT v FROM t WHERE id = {number}").as_bytes(), &facts, dialect());
        assert_eq!((verdict.class, hit), (crate::sql::Class::Read, number > 0));
    }
    assert_eq!(memo.len(), 1);
}

#[test]
fn a_new_generation_of_facts_takes_the_verdict_again() {
    let memo = Memo::new(64);
    let sql = b"SELECT f(1)";
    assert_eq!(memo.verdict(sql, &Facts::empty(), dialect()).0.class, crate::sql::Class::Write);
    let fact = crate::sql::catalog::FunctionFact {
        schema: "public".into(),
        class: crate::sql::Class::Read,
        rule: "immutable",
        hidden_by_builtin: false,
        one_argument: true,
        reads: crate::marks::Touched::Nothing,
    };
    let facts = Facts::builder(1).function("f", fact).build();
    let (verdict, _, hit) = memo.verdict(sql, &facts, dialect());
    assert_eq!((verdict.class, hit), (crate::sql::Class::Read, false));
    assert!(memo.verdict(sql, &facts, dialect()).2);
}

#[test]
fn entries_are_bounded_and_hot_ones_stay() {
    let memo = Memo::new(256);
    let facts = Facts::empty();
    let hot = b"SELECT hot FROM t";
    memo.verdict(hot, &facts, dialect());
    let mut hits = 0;
    for number in 0..20_000 {
        memo.verdict(format!("SELECT c{number} FROM t").as_bytes(), &facts, dialect());
        hits += usize::from(memo.verdict(hot, &facts, dialect()).2);
    }
    assert!(memo.len() <= memo.capacity());
    assert!(hits > 19_000, "{hits}");
}

#[test]
fn what_depends_on_a_literal_isnt_kept() {
    let memo = Memo::new(64);
    for sql in ["SET x = 'a'", "SELECT set_config('a', 'b', true)", "SELECT 'open"] {
        for _ in 0..2 {
            assert!(!memo.verdict(sql.as_bytes(), &Facts::empty(), dialect()).2, "{sql}");
        }
    }
    assert!(memo.is_empty());
}
