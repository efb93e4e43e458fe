//! YAML or JSON as a tree that remembers lines and the spelling of scalars.
//!
//! The spelling matters: a password `0123` or `1e5` is meant as it stands, although YAML reads a
//! number there.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use crate::problem::Problem;

/// Where something stands: in which source, and on which line there (0 without one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Place {
    pub(crate) source: usize,
    pub(crate) line: u64,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: Place,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    /// A number, and how it was written.
    Number(Number, String),
    Text(String),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) at: Place,
    pub(crate) node: Node,
}

impl Node {
    /// Parses one YAML document. Aliases, merges and depth are bounded by the parser's budget.
    pub(crate) fn from_yaml(text: &str, source: usize) -> Result<Node, Problem> {
        let options = serde_saphyr::options! {
            with_snippet: false,
            leading_zero_numbers_as_strings: true,
            underscored_numbers_as_strings: true,
        };
        serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options)
            .map(|raw| Node::from_raw(raw, text, source))
            .map_err(|error| {
                let line = error.location().map_or(0, |l| l.line());
                Problem::new(
                    Place { source, line },
                    "",
                    format!("not valid YAML: {}", error.without_snippet()),
                )
            })
    }

    fn from_raw(raw: Spanned<Raw>, text: &str, source: usize) -> Node {
        let at = Place { source, line: raw.referenced.line() };
        let spelled = || {
            let span = raw.defined.span();
            let (from, len) = (span.byte_offset()?, span.byte_len()?);
            let from = usize::try_from(from).ok()?;
            let end = from.checked_add(usize::try_from(len).ok()?)?;
            text.get(from..end).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
        };
        let kind = match raw.value {
            Raw::Null => Kind::Null,
            // YAML 1.1 has `y` and `n` too, but nobody means a boolean by them.
            Raw::Bool(value) => match spelled() {
                Some(text) if text.len() == 1 => Kind::Text(text),
                Some(_) | None => Kind::Bool(value),
            },
            Raw::Number(number) => {
                let text = spelled().unwrap_or_else(|| number.to_string());
                Kind::Number(number, text)
            }
            Raw::Text(text) => Kind::Text(text),
            Raw::Seq(items) => {
                Kind::Seq(items.into_iter().map(|n| Node::from_raw(n, text, source)).collect())
            }
            Raw::Map(entries) => {
                let entry = |(key, value): (Spanned<String>, Spanned<Raw>)| Entry {
                    key: key.value,
                    at: Place { source, line: key.referenced.line() },
                    node: Node::from_raw(value, text, source),
                };
                Kind::Map(entries.into_iter().map(entry).collect())
            }
        };
        Node { at, kind }
    }

    /// A tree without lines.
    pub(crate) fn from_json(value: &Value) -> Node {
        let kind = match value {
            Value::Null => Kind::Null,
            Value::Bool(b) => Kind::Bool(*b),
            Value::Number(n) => Kind::Number(n.clone(), n.to_string()),
            Value::String(s) => Kind::Text(s.clone()),
            Value::Array(items) => Kind::Seq(items.iter().map(Node::from_json).collect()),
            Value::Object(map) => {
                let entry = |(key, value): (&String, &Value)| Entry {
                    key: key.clone(),
                    at: Place::default(),
                    node: Node::from_json(value),
                };
                Kind::Map(map.iter().map(entry).collect())
            }
        };
        Node { at: Place::default(), kind }
    }

    /// The tree as JSON in which numbers are texts, spelled as they stand.
    pub(crate) fn to_spelled_json(&self) -> Value {
        match &self.kind {
            Kind::Number(_, text) => Value::String(text.clone()),
            Kind::Seq(items) => Value::Array(items.iter().map(Node::to_spelled_json).collect()),
            Kind::Map(entries) => {
                let pairs = entries.iter().map(|e| (e.key.clone(), e.node.to_spelled_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
            Kind::Null | Kind::Bool(_) | Kind::Text(_) => self.to_json(),
        }
    }

    /// The tree as JSON.
    pub(crate) fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(b) => Value::Bool(*b),
            Kind::Number(n, _) => Value::Number(n.clone()),
            Kind::Text(s) => Value::String(s.clone()),
            Kind::Seq(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Kind::Map(entries) => {
                let pairs = entries.iter().map(|e| (e.key.clone(), e.node.to_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// The node at a dotted path; an explicit null counts as absent.
    pub(crate) fn at(&self, path: &str) -> Option<&Node> {
        let mut node = self;
        for part in path.split('.') {
            node = &node.entries().iter().find(|e| e.key == part)?.node;
        }
        (node.kind != Kind::Null).then_some(node)
    }

    /// Where a dotted path stands, or its nearest ancestor that is there.
    pub(crate) fn place_of(&self, path: &str) -> Place {
        let (mut node, mut at) = (self, self.at);
        for part in path.split('.') {
            let Some(entry) = node.entries().iter().find(|e| e.key == part) else { break };
            (node, at) = (&entry.node, entry.at);
        }
        at
    }

    /// Lays another tree over this one: mappings merge, a null takes its key away, anything else
    /// replaces.
    pub(crate) fn merge(&mut self, over: Node) {
        let (Kind::Map(own), Kind::Map(_)) = (&mut self.kind, &over.kind) else {
            *self = over;
            return;
        };
        let Kind::Map(entries) = over.kind else { return };
        for entry in entries {
            let known = own.iter().position(|e| e.key == entry.key);
            match known.and_then(|at| own.get_mut(at).map(|own| (at, own))) {
                Some((at, _)) if entry.node.kind == Kind::Null => {
                    own.remove(at);
                }
                Some((_, mine)) => {
                    mine.at = entry.at;
                    mine.node.merge(entry.node);
                }
                None => own.push(entry),
            }
        }
    }

    /// Puts a value at a dotted path; what stands in its way is replaced.
    pub(crate) fn set(&mut self, path: &str, value: Node) {
        let at = value.at;
        if !matches!(self.kind, Kind::Map(_)) {
            *self = Node { at, kind: Kind::Map(Vec::new()) };
        }
        let Kind::Map(entries) = &mut self.kind else { return };
        let (key, below) = path.split_once('.').map_or((path, None), |(k, rest)| (k, Some(rest)));
        let index = entries.iter().position(|e| e.key == key).unwrap_or(entries.len());
        if index == entries.len() {
            entries.push(Entry { key: key.to_owned(), at, node: Node { at, kind: Kind::Null } });
        }
        match below {
            Some(below) => entries[index].node.set(below, value),
            None => entries[index] = Entry { key: key.to_owned(), at, node: value },
        }
    }

    /// The entries of a mapping; none for anything else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Map(entries) => entries,
            Kind::Null | Kind::Bool(_) | Kind::Number(..) | Kind::Text(_) | Kind::Seq(_) => &[],
        }
    }
}

/// What serde hands over, before lines are folded in.
enum Raw {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    Seq(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Raw, E> {
        let number = Number::from_f64(value);
        number.map(Raw::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries: Vec<(Spanned<String>, Spanned<Raw>)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Spanned<Raw>>()? {
            if entries.iter().any(|(known, _)| known.value == key.value) {
                return Err(A::Error::custom(format!("key {} stands twice", key.value)));
            }
            entries.push((key, value));
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_spelling_are_kept() {
        let text = "a:\n  b: 010\n  c: yes\n  d: 1e5\n  e: y\nlist:\n- x\n- k: ~\n";
        let tree = Node::from_yaml(text, 0).expect("valid");
        assert_eq!(tree.place_of("a.c").line, 3);
        assert_eq!(tree.at("a.b").map(|n| &n.kind), Some(&Kind::Text("010".to_owned())));
        assert_eq!(tree.at("a.c").map(|n| &n.kind), Some(&Kind::Bool(true)));
        assert!(matches!(&tree.at("a.d").expect("there").kind, Kind::Number(_, t) if t == "1e5"));
        assert_eq!(tree.at("a.e").map(|n| &n.kind), Some(&Kind::Text("y".to_owned())));
        assert_eq!(tree.at("list").expect("there").to_json().to_string(), r#"["x",{"k":null}]"#);
    }

    #[test]
    fn broken_yaml_names_its_line() {
        let error = Node::from_yaml("a: 1\nb: [\n", 0).expect_err("broken");
        assert!(error.at.line >= 2, "{error:?}");
        let error = Node::from_yaml("a: 1\na: 2\n", 0).expect_err("twice");
        assert_eq!(error.at.line, 2, "{error:?}");
    }
}
