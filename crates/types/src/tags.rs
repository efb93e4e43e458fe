//! Member tags, as Patroni 4.1 reads and publishes them: every value as it was configured.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::names::MemberName;

/// Tags that say nothing when they are false.
const SWITCHES: [&str; 5] = ["clonefrom", "nofailover", "noloadbalance", "nosync", "nostream"];
/// Each with the priority that means the same at 0 and below. The switch wins where both are given.
const PRIORITIES: [(&str, &str); 2] =
    [("nofailover", "failover_priority"), ("nosync", "sync_priority")];

/// The tags of a member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Value", into = "Value")]
pub struct Tags(Map<String, Value>);

impl From<Value> for Tags {
    /// Whatever is no mapping holds no tags. A switch that is off says something only beside its
    /// priority.
    fn from(value: Value) -> Tags {
        let Value::Object(mut all) = value else {
            return Tags::default();
        };
        let beside = |name: &str| {
            PRIORITIES
                .iter()
                .any(|(switch, priority)| *switch == name && all.contains_key(*priority))
        };
        let kept: Vec<&str> = SWITCHES.into_iter().filter(|name| beside(name)).collect();
        // The order stays as it was configured.
        all.retain(|name, value| {
            let name = name.as_str();
            !SWITCHES.contains(&name) || truth(value) || kept.contains(&name)
        });
        Tags(all)
    }
}

impl From<Tags> for Value {
    fn from(tags: Tags) -> Value {
        Value::Object(tags.0)
    }
}

impl Tags {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One tag as it was configured.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Whether the tag `site` names this one.
    #[must_use]
    pub fn is_at(&self, site: &str) -> bool {
        match self.get("site") {
            Some(Value::String(named)) => named == site,
            // Sites may have numbers.
            Some(Value::Number(named)) => named.to_string() == site,
            Some(_) | None => false,
        }
    }

    /// Never races and is never a candidate.
    #[must_use]
    pub fn nofailover(&self) -> bool {
        self.switch_or_priority("nofailover", "failover_priority")
    }

    /// Whether the member may lead.
    #[must_use]
    pub fn may_lead(&self) -> bool {
        !self.nofailover()
    }

    /// Its weight among equal positions; higher wins.
    #[must_use]
    pub fn priority(&self) -> i64 {
        self.weight("nofailover", "failover_priority")
    }

    /// Whether the member may be a synchronous standby.
    #[must_use]
    pub fn may_sync(&self) -> bool {
        !self.switch_or_priority("nosync", "sync_priority")
    }

    /// Its weight as a synchronous standby; higher is preferred.
    #[must_use]
    pub fn sync_priority(&self) -> i64 {
        self.weight("nosync", "sync_priority")
    }

    /// Leaves the read-only routes.
    #[must_use]
    pub fn noloadbalance(&self) -> bool {
        self.is_set("noloadbalance")
    }

    /// Preferred source for new replicas.
    #[must_use]
    pub fn clonefrom(&self) -> bool {
        self.is_set("clonefrom")
    }

    /// Does not stream at all.
    #[must_use]
    pub fn nostream(&self) -> bool {
        self.is_set("nostream")
    }

    /// Streams from this member instead of the leader.
    #[must_use]
    pub fn replicatefrom(&self) -> Option<MemberName> {
        match self.0.get("replicatefrom") {
            Some(Value::String(name)) if !name.is_empty() => Some(MemberName::from(name.as_str())),
            Some(_) | None => None,
        }
    }

    /// These, of a member that leaves the synchronous set.
    #[must_use]
    pub fn without_sync(&self) -> Tags {
        let mut all = self.0.clone();
        all.insert("nosync".to_owned(), Value::Bool(true));
        all.insert("sync_priority".to_owned(), Value::from(0));
        Tags(all)
    }

    /// Where a switch and its priority contradict each other, what Patroni says about it.
    #[must_use]
    pub fn conflicts(&self) -> Vec<String> {
        let conflict = |(switch, priority): &(&str, &str)| {
            let on = self.0.get(*switch).map(truth)?;
            let weight = self.0.get(*priority).and_then(integer)?;
            let shown = if on { "True" } else { "False" };
            (on == (weight > 0)).then(|| {
                format!(
                    "Conflicting configuration between {switch}: {shown} and {priority}: {weight}. \
                     Defaulting to {switch}: {shown}"
                )
            })
        };
        PRIORITIES.iter().filter_map(conflict).collect()
    }

    fn is_set(&self, switch: &str) -> bool {
        self.0.get(switch).is_some_and(truth)
    }

    fn switch_or_priority(&self, switch: &str, priority: &str) -> bool {
        match self.0.get(switch) {
            Some(value) if !value.is_null() => truth(value),
            Some(_) | None => self.0.get(priority).and_then(integer).is_some_and(|n| n <= 0),
        }
    }

    fn weight(&self, switch: &str, priority: &str) -> i64 {
        let given = self.0.get(priority).and_then(integer).unwrap_or(1);
        if self.is_set(switch) { 0 } else { given }
    }
}

/// Whether a value switches something on. Texts mean what they say, where Patroni takes any for
/// true.
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => {
            !matches!(text.trim().to_ascii_lowercase().as_str(), "" | "off" | "false" | "no" | "0")
        }
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn switches_that_are_off_are_published_only_beside_their_priority() {
        let published = |tags: Value| Value::from(Tags::from(tags));
        let idle = json!({"clonefrom": false, "nofailover": false, "nostream": null, "nosync": 0});
        assert_eq!(published(idle), json!({}));
        for kept in [
            json!({"nofailover": false, "failover_priority": "0"}),
            json!({"nosync": false, "sync_priority": 0}),
            json!({"noloadbalance": true, "dc": "west", "odd": [1, null], "off": false}),
        ] {
            assert_eq!(published(kept.clone()), kept);
        }
        let ordered = json!({"clonefrom": false, "b": 1, "nofailover": true, "a": 2});
        assert_eq!(published(ordered).to_string(), r#"{"b":1,"nofailover":true,"a":2}"#);
        assert_eq!(published(json!("nonsense")), json!({}));
    }

    #[test]
    fn the_switch_wins_over_the_priority() {
        let tags = |value: Value| Tags::from(value);
        assert!(tags(json!({})).may_lead() && tags(json!({})).priority() == 1);
        assert!(!tags(json!({"failover_priority": "0"})).may_lead());
        assert!(tags(json!({"failover_priority": 0, "nofailover": false})).may_lead());
        let both = tags(json!({"failover_priority": 2, "nofailover": true}));
        assert_eq!((both.may_lead(), both.priority()), (false, 0));
        assert!(!tags(json!({"sync_priority": -1})).may_sync());
        assert_eq!(tags(json!({"sync_priority": "7"})).sync_priority(), 7);
        assert_eq!(tags(json!({"sync_priority": "many"})).sync_priority(), 1);
    }

    #[test]
    fn contradictions_are_told_in_patronis_words() {
        let conflicts = |value: Value| Tags::from(value).conflicts();
        assert_eq!(
            conflicts(json!({"nofailover": true, "failover_priority": "1"})),
            ["Conflicting configuration between nofailover: True and failover_priority: 1. \
              Defaulting to nofailover: True"]
        );
        assert_eq!(
            conflicts(json!({"nosync": false, "sync_priority": 0})),
            ["Conflicting configuration between nosync: False and sync_priority: 0. \
              Defaulting to nosync: False"]
        );
        assert!(conflicts(json!({"nofailover": true, "failover_priority": 0})).is_empty());
        assert!(conflicts(json!({"nosync": false, "sync_priority": 1})).is_empty());
        assert!(conflicts(json!({"sync_priority": 0})).is_empty());
    }
}
