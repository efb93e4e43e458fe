//! JSON as Patroni prints it (`, ` and `: ` between items), and RFC 7396's merge patch.

use std::io;

use serde::Serialize;
use serde_json::Value;

/// One line of JSON with a blank after each comma and colon.
#[must_use]
pub fn spaced(value: &Value) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Spaced);
    value
        .serialize(&mut serializer)
        .expect("a JSON value has string keys, and a Vec takes every write");
    String::from_utf8(out).expect("serde_json writes UTF-8")
}

struct Spaced;

impl Spaced {
    fn separate<W: ?Sized + io::Write>(writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
}

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        Spaced::separate(writer, first)
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        Spaced::separate(writer, first)
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        writer.write_all(b": ")
    }
}

/// Applies a merge patch to the dynamic configuration as Patroni does: `null` deletes, an object
/// merges into an object and else takes its place as it is, nulls included, the rest replaces. So a
/// permanent slot can be named by `null` where there were none. `None` means that nothing changed;
/// scalars of equal text (100 and `"100"`) count as unchanged, so that a repeated PATCH writes
/// nothing. The depth is bounded by the parser's limit.
#[must_use]
pub fn merge_patch(config: &Value, patch: &Value) -> Option<Value> {
    let mut merged = config.clone();
    merge_into(&mut merged, patch).then_some(merged)
}

fn merge_into(target: &mut Value, patch: &Value) -> bool {
    let (Value::Object(target), Value::Object(patch)) = (&mut *target, patch) else {
        if same_text(target, patch) {
            return false;
        }
        *target = patch.clone();
        return true;
    };
    let mut changed = false;
    for (key, value) in patch {
        changed |= match (target.get_mut(key), value) {
            (Some(_), Value::Null) => target.shift_remove(key).is_some(),
            (None, Value::Null) => false,
            (Some(old), new) => merge_into(old, new),
            (None, new) => {
                target.insert(key.clone(), new.clone());
                true
            }
        };
    }
    changed
}

fn same_text(a: &Value, b: &Value) -> bool {
    let text = |v: &Value| match v {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    a == b || text(a).is_some_and(|a| Some(a) == text(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_is_spaced_like_pythons() {
        let value = json!({"a": [1, "x, y: z"], "b": {"c": null, "d": true}, "e": {}});
        assert_eq!(
            spaced(&value),
            r#"{"a": [1, "x, y: z"], "b": {"c": null, "d": true}, "e": {}}"#
        );
    }

    #[test]
    fn patches_merge() {
        let config = json!({"ttl": 20, "postgresql": {"parameters": {"work_mem": "8MB"}}});
        let cases = [
            (json!({"ttl": "20"}), None),
            (json!({"nothing": null}), None),
            (json!({"postgresql": {"parameters": {}}}), None),
            (
                json!({"pause": true}),
                Some(json!({"ttl": 20, "postgresql": {"parameters": {"work_mem": "8MB"}},
                    "pause": true})),
            ),
            (
                json!({"ttl": null, "postgresql": {"parameters": {"work_mem": null, "a": 1}}}),
                Some(json!({"postgresql": {"parameters": {"a": 1}}})),
            ),
            (
                json!({"postgresql": [1], "ttl": {"x": null, "y": 2}}),
                Some(json!({"ttl": {"x": null, "y": 2}, "postgresql": [1]})),
            ),
            (
                json!({"slots": {"a": null}, "postgresql": null}),
                Some(json!({"ttl": 20, "slots": {"a": null}})),
            ),
        ];
        for (patch, expected) in cases {
            assert_eq!(merge_patch(&config, &patch), expected, "{patch}");
        }
    }
}
