//! Holds a tree against the table of keys.

use crate::keys::{Key, Support, Type, type_name};
use crate::problem::Problem;
use crate::text::HostPort;
use crate::tree::{Entry, Kind, Node};
use crate::values;

/// Everything found; the caller decides what is an error.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Known keys with values of another type.
    pub(crate) ill_typed: Vec<Problem>,
    /// Keys that are not in the table.
    pub(crate) unknown: Vec<Problem>,
    /// Keys that we refuse.
    pub(crate) refused: Vec<Problem>,
}

/// Checks every key of `tree`. `also_known` are dotted keys that the document itself declares.
pub(crate) fn check(tree: &Node, table: &[Key], also_known: &[String]) -> Findings {
    let mut found = Findings::default();
    if matches!(tree.kind, Kind::Map(_) | Kind::Null) {
        walk(tree, "", &Scope { table, also_known }, &mut found);
    } else {
        let text = "the document must be a mapping of keys to values";
        found.ill_typed.push(Problem::new(tree.at, "", text));
    }
    found
}

struct Scope<'a> {
    table: &'a [Key],
    also_known: &'a [String],
}

fn walk(node: &Node, prefix: &str, scope: &Scope<'_>, found: &mut Findings) {
    for entry in node.entries() {
        let path = format!("{prefix}{}", entry.key);
        if scope.also_known.contains(&path) {
            continue;
        }
        let below = format!("{path}.");
        if let Some(key) = scope.table.iter().find(|key| key.path == path) {
            leaf(entry, key, found);
        } else if scope.table.iter().any(|key| key.path.starts_with(&below)) {
            match entry.node.kind {
                Kind::Map(_) | Kind::Null => walk(&entry.node, &below, scope, found),
                Kind::Bool(_) | Kind::Number(..) | Kind::Text(_) | Kind::Seq(_) => {
                    let problem = Problem::new(entry.at, path, "must be a mapping of keys");
                    found.ill_typed.push(problem);
                }
            }
        } else {
            let hint = hint(&entry.key, prefix, scope.table);
            found.unknown.push(Problem::new(entry.at, path, format!("unknown key; {hint}")));
        }
    }
}

fn leaf(entry: &Entry, key: &Key, found: &mut Findings) {
    if entry.node.kind == Kind::Null {
        return;
    }
    if let Support::Refused(why) = key.support {
        found.refused.push(Problem::new(entry.at, key.path, why));
        return;
    }
    if key.holds == Type::Scalars {
        scalars(entry, key.path, found);
    } else if !fits(&entry.node, key.holds) {
        let secret = key.holds == Type::Secret;
        let found_text = if secret { String::new() } else { shown(&entry.node) };
        let text = format!("must be {}{found_text}", type_name(key.holds));
        found.ill_typed.push(Problem::new(entry.at, key.path, text));
    }
}

fn scalars(entry: &Entry, path: &str, found: &mut Findings) {
    if !matches!(entry.node.kind, Kind::Map(_)) {
        let text = format!("must be {}", type_name(Type::Scalars));
        found.ill_typed.push(Problem::new(entry.at, path, text));
    }
    for item in entry.node.entries() {
        if item.node.kind != Kind::Null && values::parameter(&item.node).is_none() {
            let path = format!("{path}.{}", item.key);
            found.ill_typed.push(Problem::new(item.at, path, "must be a text or number"));
        }
    }
}

fn fits(node: &Node, holds: Type) -> bool {
    let address = |port| values::text(node).is_some_and(|t| HostPort::parse(&t, port).is_some());
    match holds {
        Type::Text | Type::Secret => values::text(node).is_some(),
        Type::Bool => values::boolean(node).is_some(),
        Type::Integer => values::integer(node).is_some(),
        Type::Duration => values::duration(node).is_some(),
        Type::Address => address(None),
        Type::AddressAnyPort => address(Some(1)),
        Type::List => values::comma_list(node).is_some(),
        Type::Lines => values::line_list(node).is_some(),
        Type::Options => values::options(node).is_some(),
        Type::Scalars => matches!(node.kind, Kind::Map(_)),
        Type::Any => true,
        Type::OneOf(words) => word(node, words).is_some(),
    }
}

/// The word of a closed set that a value stands for, in lower case.
pub(crate) fn word(node: &Node, words: &[&'static str]) -> Option<&'static str> {
    let text = values::text(node)?.to_ascii_lowercase();
    let direct = words.iter().find(|word| **word == text);
    let as_boolean = || {
        let name = if values::boolean(node)? { "on" } else { "off" };
        words.iter().find(|word| **word == name)
    };
    direct.or_else(as_boolean).copied()
}

fn shown(node: &Node) -> String {
    const SHOWN_CHARS: usize = 40;
    match &node.kind {
        Kind::Seq(_) => ", found a list".to_owned(),
        Kind::Map(_) => ", found a mapping".to_owned(),
        Kind::Null | Kind::Bool(_) | Kind::Number(..) | Kind::Text(_) => {
            let text: String =
                values::text(node).unwrap_or_default().chars().take(SHOWN_CHARS).collect();
            format!(", found {text:?}")
        }
    }
}

/// The nearest key, first among its siblings, then anywhere by its last part; else all siblings.
fn hint(key: &str, prefix: &str, table: &[Key]) -> String {
    let mut siblings: Vec<&str> = Vec::new();
    for known in table {
        if let Some(rest) = known.path.strip_prefix(prefix) {
            let name = rest.split('.').next().unwrap_or(rest);
            if !siblings.contains(&name) {
                siblings.push(name);
            }
        }
    }
    if let Some(name) = nearest(key, siblings.iter().copied()) {
        return format!("did you mean {name}?");
    }
    let last = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
    if let Some(elsewhere) = table.iter().find(|known| last(known.path) == key) {
        return format!("did you mean {}?", elsewhere.path);
    }
    format!("known here: {}", siblings.join(", "))
}

fn nearest<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (key.chars().count() / 3).max(1);
    names
        .map(|name| (distance(key, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edit distance: insertions, deletions, substitutions, each one.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("stat_dir", "state_dir"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
