//! Permanent and ignored replication slots, as the dynamic configuration names them (as Patroni 4.1
//! has it).

use std::collections::BTreeMap;

use types::Slot;

use crate::problem::{Problem, Warning};
use crate::tree::{Entry, Kind, Node};
use crate::values;

/// Where permanent slots stand; the first that names any wins.
const PERMANENT: [&str; 3] = ["permanent_replication_slots", "permanent_slots", "slots"];
/// The longest name of a slot, in bytes.
const NAME_MAX: usize = 63;

/// A slot that every member keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PermanentSlot {
    /// Database and output plugin of a logical slot; `None` for a physical one.
    pub logical: Option<(String, String)>,
    /// `cluster_type`: only in a cluster of this kind; `None` in both.
    pub only_in: Option<ClusterType>,
}

/// What a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterType {
    /// It has a primary.
    Primary,
    /// It follows another cluster.
    Standby,
}

/// Which slots are left alone: every attribute that is given must be the slot's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IgnoredSlot {
    /// Its name.
    pub name: Option<String>,
    /// `physical` or `logical`.
    pub kind: Option<String>,
    /// The database of a logical slot.
    pub database: Option<String>,
    /// The output plugin of a logical slot.
    pub plugin: Option<String>,
}

impl IgnoredSlot {
    /// Whether a slot is meant.
    #[must_use]
    pub fn matches(&self, slot: &Slot) -> bool {
        let fits = |wanted: &Option<String>, is: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| is == Some(wanted))
        };
        let logical = slot.logical.as_ref();
        let kind = if logical.is_some() { "logical" } else { "physical" };
        fits(&self.name, Some(&slot.name))
            && fits(&self.kind, Some(kind))
            && fits(&self.database, logical.map(|l| l.database.as_str()))
            && fits(&self.plugin, logical.map(|l| l.plugin.as_str()))
    }
}

/// The permanent slots of the first section that names any.
pub(crate) fn permanent(
    tree: &Node,
    warnings: &mut Vec<Warning>,
) -> BTreeMap<String, PermanentSlot> {
    let sections = PERMANENT.iter().filter_map(|key| Some((*key, tree.at(key)?)));
    let named = sections.map(|(key, node)| (key, node.entries()));
    let Some((key, entries)) = named.into_iter().find(|(_, entries)| !entries.is_empty()) else {
        return BTreeMap::new();
    };
    let mut slots = BTreeMap::new();
    for entry in entries {
        match slot(entry) {
            Ok(slot) => _ = slots.insert(entry.key.clone(), slot),
            Err(why) => {
                let path = format!("{key}.{}", entry.key);
                warnings.push(Problem::new(entry.at, path, format!("{why}; it is not created")));
            }
        }
    }
    slots
}

fn slot(entry: &Entry) -> Result<PermanentSlot, &'static str> {
    let name = &entry.key;
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(legal) {
        return Err("a slot's name has 1 to 63 lower case letters, digits and underscores");
    }
    match &entry.node.kind {
        Kind::Map(entries) if !entries.is_empty() => {}
        Kind::Null | Kind::Bool(false) | Kind::Map(_) => return Ok(PermanentSlot::default()),
        Kind::Number(number, _) if number.as_f64() == Some(0.0) => {
            return Ok(PermanentSlot::default());
        }
        Kind::Text(text) if text.is_empty() => return Ok(PermanentSlot::default()),
        Kind::Bool(_) | Kind::Number(..) | Kind::Text(_) | Kind::Seq(_) => {
            return Err("must be null or a mapping of type, database and plugin");
        }
    }
    let word = |key: &str| entry.node.at(key).and_then(values::text).filter(|t| !t.is_empty());
    let logical = word("database").zip(word("plugin"));
    let only_in = match word("cluster_type").as_deref() {
        Some("primary") => Some(ClusterType::Primary),
        Some("standby") => Some(ClusterType::Standby),
        Some(_) | None => None,
    };
    match (word("type").as_deref(), logical) {
        (Some("logical") | None, Some(logical)) => {
            Ok(PermanentSlot { logical: Some(logical), only_in })
        }
        (Some("physical") | None, _) => Ok(PermanentSlot { logical: None, only_in }),
        (Some("logical"), None) => Err("a logical slot needs database and plugin"),
        (Some(_), _) => Err("type is physical or logical"),
    }
}

/// What `ignore_slots` names.
pub(crate) fn ignored(tree: &Node) -> Vec<IgnoredSlot> {
    let Some(Node { kind: Kind::Seq(items), .. }) = tree.at("ignore_slots") else {
        return Vec::new();
    };
    let matchers = items.iter().filter(|item| matches!(item.kind, Kind::Map(_)));
    let matcher = |item: &Node| {
        let word = |key: &str| item.at(key).and_then(values::text).filter(|t| !t.is_empty());
        IgnoredSlot {
            name: word("name"),
            kind: word("type"),
            database: word("database"),
            plugin: word("plugin"),
        }
    };
    matchers.map(matcher).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use types::LogicalSlot;

    use super::*;

    #[test]
    fn the_first_section_that_names_any_wins() {
        let tree = Node::from_json(&json!({
            "permanent_replication_slots": {},
            "permanent_slots": {
                "p": null, "zero": 0, "q": {"type": "physical", "cluster_type": "standby"},
                "l": {"type": "logical", "database": "db", "plugin": "pgoutput"},
                "l2": {"database": "db", "plugin": "pgoutput"},
                "No": null, "half": {"type": "logical", "database": "db"}, "odd": "yes",
                "kind": {"type": "round"},
            },
            "slots": {"other": null},
        }));
        let mut warnings = Vec::new();
        let slots = permanent(&tree, &mut warnings);
        let physical = PermanentSlot::default();
        let logical = Some(("db".to_owned(), "pgoutput".to_owned()));
        let logical = PermanentSlot { logical, only_in: None };
        let standby = PermanentSlot { logical: None, only_in: Some(ClusterType::Standby) };
        let expected = [
            ("l", logical.clone()),
            ("l2", logical),
            ("p", physical.clone()),
            ("q", standby),
            ("zero", physical),
        ];
        assert_eq!(slots, expected.map(|(n, s)| (n.to_owned(), s)).into());
        let keys: Vec<&str> = warnings.iter().map(|w| w.key.as_str()).collect();
        let wrong = ["No", "half", "kind", "odd"].map(|n| format!("permanent_slots.{n}"));
        assert_eq!(keys.len(), 4);
        assert!(wrong.iter().all(|key| keys.contains(&key.as_str())), "{keys:?}");
    }

    #[test]
    fn every_attribute_that_is_given_must_fit() {
        let tree = Node::from_json(&json!({"ignore_slots": [
            {"name": "a", "type": "logical", "database": "db", "plugin": "x"},
            {"database": "other"}, "nonsense", {"type": "physical", "name": "b"},
        ]}));
        let ignored = ignored(&tree);
        let logical = |name: &str, database: &str, plugin: &str| Slot {
            name: name.to_owned(),
            logical: Some(LogicalSlot {
                database: database.to_owned(),
                plugin: plugin.to_owned(),
                ..LogicalSlot::default()
            }),
            ..Slot::default()
        };
        let is_ignored = |slot: &Slot| ignored.iter().any(|matcher| matcher.matches(slot));
        assert!(is_ignored(&logical("a", "db", "x")));
        assert!(is_ignored(&logical("c", "other", "y")));
        assert!(is_ignored(&Slot { name: "b".to_owned(), ..Slot::default() }));
        assert!(!is_ignored(&logical("a", "db", "y")));
        assert!(!is_ignored(&logical("b", "db", "x")));
        assert!(!is_ignored(&Slot { name: "a".to_owned(), ..Slot::default() }));
    }
}
