//! Which `[[rule]]` of the configuration a session's statements match.
//!
//! Users and databases are sorted out once per session and reload, so that a session that no rule concerns pays a comparison of pointers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use switchyard_config::{RoutingRule, RuleRoute};
use switchyard_core::causal::Level;
use switchyard_core::sql::{Hint, RuledRoute, Ruling, Verdict};

use crate::listener::level_of;

/// The rules in force; replaced by a reload.
pub(crate) type Rules = ArcSwap<Vec<RoutingRule>>;

/// Of a statement's text, patterns see this much, in bytes.
const SEEN_MAX: usize = 64 * 1024;

/// The rules that concern one session.
#[derive(Default)]
pub(crate) struct SessionRules {
    /// Of which those are.
    all: Option<Arc<Vec<RoutingRule>>>,
    mine: Vec<(RoutingRule, Ruling)>,
    by_application: bool,
}

impl SessionRules {
    /// Sees that they are of the rules in force.
    pub(crate) fn refresh(&mut self, rules: &Rules, user: &str, database: &str) {
        let now = rules.load();
        if self.all.as_ref().is_some_and(|all| Arc::ptr_eq(all, &now)) {
            return;
        }
        let concerned = |names: &[String], name: &str| names.is_empty() || names.iter().any(|known| known == name);
        let mine = now.iter().filter(|rule| concerned(&rule.users, user) && concerned(&rule.databases, database));
        self.mine = mine.map(|rule| (rule.clone(), ruling(rule))).collect();
        self.by_application = self.mine.iter().any(|(rule, _)| !rule.application_names.is_empty());
        self.all = Some(Arc::clone(&now));
    }

    /// Whether the session's `application_name` is needed for [`SessionRules::apply`].
    pub(crate) fn ask_for_application(&self) -> bool {
        self.by_application
    }

    /// The highest level that one of them asks for.
    pub(crate) fn highest_level(&self) -> Level {
        self.mine.iter().filter_map(|(_, ruling)| ruling.level).max().unwrap_or(Level::Eventual)
    }

    /// The verdict with the first rule that matches.
    pub(crate) fn apply(&self, verdict: Arc<Verdict>, sql: &[u8], application: Option<&[u8]>) -> Arc<Verdict> {
        if self.mine.is_empty() || verdict.statements == 0 {
            return verdict;
        }
        let matches = |rule: &RoutingRule| {
            let application = application.unwrap_or_default();
            (rule.application_names.is_empty() || rule.application_names.iter().any(|name| names(name.as_bytes(), application)))
                && (rule.fingerprints.is_empty() || rule.fingerprints.contains(&verdict.fingerprint.0))
                && rule.pattern.as_ref().is_none_or(|pattern| pattern.0.is_match(&sql[..sql.len().min(SEEN_MAX)]))
        };
        match self.mine.iter().find(|(rule, _)| matches(rule)) {
            Some((_, ruling)) => Arc::new(Verdict { ruling: Some(ruling.clone()), ..Verdict::clone(&verdict) }),
            None => verdict,
        }
    }
}

/// Whether it is this one, or begins as `pattern` does before its last character, a `*`.
fn names(pattern: &[u8], application: &[u8]) -> bool {
    match pattern.strip_suffix(b"*") {
        Some(beginning) => application.starts_with(beginning),
        None => application == pattern,
    }
}

fn ruling(rule: &RoutingRule) -> Ruling {
    let route = rule.route.map(|route| match route {
        RuleRoute::Leader => RuledRoute::To(Hint::Leader),
        RuleRoute::Replica => RuledRoute::To(Hint::Replica),
        RuleRoute::Reject => RuledRoute::Reject,
    });
    Ruling { rule: format!("rule[{}]", rule.number).into(), route, level: rule.consistency.map(level_of) }
}

#[cfg(test)]
mod tests {
    use switchyard_config::Pattern;
    use switchyard_core::sql::{Dialect, Facts, classify};

    use super::*;

    fn rule(number: usize, route: RuleRoute) -> RoutingRule {
        RoutingRule {
            number,
            users: vec![],
            databases: vec![],
            application_names: vec![],
            fingerprints: vec![],
            pattern: None,
            route: Some(route),
            consistency: None,
        }
    }

    fn ruled(rules: &[RoutingRule], user: &str, application: Option<&[u8]>, sql: &str) -> Option<String> {
        let mut session = SessionRules::default();
        session.refresh(&ArcSwap::from_pointee(rules.to_vec()), user, "db");
        let verdict = Arc::new(classify(sql.as_bytes(), &Facts::empty(), Dialect::default()));
        session.apply(verdict, sql.as_bytes(), application).ruling.as_ref().map(|ruling| ruling.rule.to_string())
    }

    #[test]
    fn the_first_that_matches_all_it_names_decides() {
        let pattern = regex::bytes::Regex::new("(?i)^truncate").map(Pattern).ok();
        let rules = [
            RoutingRule { users: vec!["bi".into()], application_names: vec!["night".into()], ..rule(1, RuleRoute::Replica) },
            RoutingRule { databases: vec!["other".into()], ..rule(2, RuleRoute::Reject) },
            RoutingRule { pattern, ..rule(3, RuleRoute::Reject) },
        ];
        assert_eq!(ruled(&rules, "bi", Some(b"night"), "TRUNCATE t").as_deref(), Some("rule[1]"));
        assert_eq!(ruled(&rules, "bi", Some(b"day"), "SELECT 1"), None);
        assert_eq!(ruled(&rules, "app", Some(b"night"), "Truncate t").as_deref(), Some("rule[3]"));
        assert_eq!(ruled(&rules, "app", None, "SELECT 'truncate'"), None);
    }

    #[test]
    fn a_star_stands_for_any_end_of_an_application_name() {
        let rules = [RoutingRule { application_names: vec!["isolation/*".into()], ..rule(1, RuleRoute::Leader) }];
        assert_eq!(ruled(&rules, "app", Some(b"isolation/s1"), "SELECT 1").as_deref(), Some("rule[1]"));
        assert_eq!(ruled(&rules, "app", Some(b"isolation"), "SELECT 1"), None);
        assert_eq!(ruled(&rules, "app", None, "SELECT 1"), None);
    }
}
