//! JSON values as YAML that one can read: blocks for mappings and lists, and every text in double
//! quotes, so that no text is taken for a number or a date.

use serde_json::Value;

/// The value as a YAML document.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(&mut text, value, 0);
    text
}

fn block(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                text.push_str(&format!("{indent}{key}:"));
                nested(text, value, depth + 1);
            }
        }
        Value::Array(items) => {
            for item in items {
                text.push_str(&format!("{indent}-"));
                nested(text, item, depth + 1);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&format!("{indent}{value}\n"));
        }
    }
}

fn nested(text: &mut String, value: &Value, depth: usize) {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    if is_block {
        text.push('\n');
        block(text, value, depth);
    } else {
        // JSON's own notation of a scalar, `{}` or `[]` is YAML as well.
        text.push_str(&format!(" {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_values_become_blocks() {
        let value =
            json!({"a": 1, "b": {"c": "x: y", "d": {}}, "e": ["- z", {"f": true}], "g": []});
        assert_eq!(
            document(&value),
            "a: 1\nb:\n  c: \"x: y\"\n  d: {}\ne:\n  - \"- z\"\n  -\n    f: true\ng: []\n"
        );
    }
}
