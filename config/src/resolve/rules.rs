//! `[[rule]]`: statements that people send elsewhere than their verdict would.

use super::Resolver;
use super::access::RULES_MAX;
use crate::model::{RoutingRule, RuleRoute};
use crate::raw::{At, List, RawRule, Tables};
use crate::value::FingerprintText;

impl Resolver {
    pub(super) fn rules(&mut self, raw: Option<Tables<RawRule>>) -> Vec<RoutingRule> {
        let raw = raw.map(|tables| tables.0).unwrap_or_default();
        if raw.len() > RULES_MAX {
            self.problem(self.nowhere(), "rule", format!("at most {RULES_MAX} rules, not {}", raw.len()));
        }
        let mut rules: Vec<RoutingRule> = Vec::new();
        for (index, raw) in raw.into_iter().take(RULES_MAX).enumerate() {
            let number = index + 1;
            let key = format!("rule[{number}]");
            let place = self.first([raw.place.clone()]);
            let (route, consistency) = (raw.route.map(|route| route.value), raw.consistency.map(|level| level.value));
            if route.is_none() && consistency.is_none() {
                self.not_set(&key, "route", &place, "\"leader\", \"replica\" or \"reject\", or rule.consistency");
            }
            let rule = RoutingRule {
                number,
                users: self.names(&format!("{key}.users"), raw.users),
                databases: self.names(&format!("{key}.databases"), raw.databases),
                application_names: self.names(&format!("{key}.application_names"), raw.application_names),
                fingerprints: self.fingerprints(&format!("{key}.fingerprints"), raw.fingerprints),
                pattern: raw.pattern.map(|pattern| pattern.value),
                route,
                consistency,
            };
            if rules.iter().any(|earlier| covers(earlier, &rule)) {
                self.warning(place, &key, "is never reached: an earlier rule matches all that it does");
            } else if route == Some(RuleRoute::Reject) && matches_all(&rule) {
                self.warning(place, &key, "rejects every statement");
            }
            rules.push(rule);
        }
        rules
    }

    fn fingerprints(&mut self, key: &str, given: Option<List<FingerprintText>>) -> Vec<u128> {
        let Some(List { items, place }) = given else {
            return Vec::new();
        };
        if items.is_empty() && !self.problems.iter().any(|problem| problem.key == key) {
            self.problem(place, key, "is empty, so the rule matches nothing: name some, or leave the key out");
        }
        items.into_iter().map(|At { value: FingerprintText(fingerprint), .. }| fingerprint).collect()
    }
}

fn matches_all(rule: &RoutingRule) -> bool {
    rule.users.is_empty()
        && rule.databases.is_empty()
        && rule.application_names.is_empty()
        && rule.fingerprints.is_empty()
        && rule.pattern.is_none()
}

/// Whether the first rule matches whatever the second does.
fn covers(first: &RoutingRule, second: &RoutingRule) -> bool {
    fn names<T: PartialEq>(first: &[T], second: &[T]) -> bool {
        first.is_empty() || (!second.is_empty() && second.iter().all(|name| first.contains(name)))
    }
    names(&first.users, &second.users)
        && names(&first.databases, &second.databases)
        && names(&first.application_names, &second.application_names)
        && names(&first.fingerprints, &second.fingerprints)
        && (first.pattern.is_none() || first.pattern == second.pattern)
}
