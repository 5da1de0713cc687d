use super::*;
use crate::sql::catalog::{FunctionFact, RelationFact};

const ROUTING: &str = include_str!("../../../corpus/routing.tsv");

fn function(schema: &str, class: Class) -> FunctionFact {
    let rule = if class == Class::Read { "stable" } else { "volatile" };
    FunctionFact { schema: schema.into(), class, rule, hidden_by_builtin: false, one_argument: true }
}

fn relation(class: Class, rule: &'static str) -> RelationFact {
    RelationFact { schema: "public".into(), class, rule }
}

/// What a loader would find in `corpus/schema.sql`.
fn schema() -> Facts {
    let mut facts = Facts::builder(1)
        .function("lower", FunctionFact { hidden_by_builtin: true, ..function("other", Class::Write) })
        .operator("~~~~", Class::Write, "volatile")
        .complete();
    for name in ["f_stable", "f_immutable", "f_default"] {
        facts = facts.function(name, function("public", Class::Read));
    }
    for name in ["f_volatile_reads", "f_writes", "f_stable_lies", "op_impl", "f_where", "f_unlogged"] {
        facts = facts.function(name, function("public", Class::Write));
    }
    for name in ["t", "audit", "v_plain", "mv", "parted", "parted_1"] {
        facts = facts.relation(name, relation(Class::Read, "table"));
    }
    for (name, rule) in [("s", "sequence"), ("u", "unlogged"), ("v_writes", "view"), ("v_over_v_writes", "view")] {
        facts = facts.relation(name, relation(Class::Write, rule));
    }
    facts.build()
}

fn judged(sql: &str) -> Verdict {
    classify(sql.as_bytes(), &schema(), Dialect::default())
}

fn holds(corpus: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for line in corpus.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let cells: Vec<&str> = line.splitn(3, '\t').collect();
        let [expected, _, sql] = cells[..] else { panic!("malformed row {line:?}") };
        let sql = sql.replace("\\n", "\n");
        let verdict = judged(&sql);
        let class = match verdict.class {
            Class::Local => "local",
            Class::Read => "replica",
            Class::Write => "leader",
        };
        if class != expected {
            wrong.push(format!("{sql}\n  expected {expected}, got {class} for {:?}", verdict.reasons));
        }
    }
    wrong
}

#[test]
fn every_row_of_the_corpus_holds() {
    let wrong = holds(ROUTING);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
