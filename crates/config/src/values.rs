//! Scalars as Patroni reads them, and durations as we do.

use types::Millis;

use crate::tree::{Kind, Node};

/// on/true/yes/1 and off/false/no/0, in any case.
pub(crate) fn boolean(node: &Node) -> Option<bool> {
    match &node.kind {
        Kind::Bool(value) => Some(*value),
        Kind::Number(number, _) => match number.as_u64() {
            Some(1) => Some(true),
            Some(0) => Some(false),
            Some(_) | None => None,
        },
        Kind::Text(text) => boolean_text(text),
        Kind::Null | Kind::Seq(_) | Kind::Map(_) => None,
    }
}

pub(crate) fn boolean_text(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Decimal, hex or octal; a fraction is rounded.
pub(crate) fn integer(node: &Node) -> Option<i64> {
    match &node.kind {
        Kind::Number(number, _) => number.as_i64().or_else(|| rounded(number.as_f64()?)),
        Kind::Text(text) => integer_text(text),
        Kind::Null | Kind::Bool(_) | Kind::Seq(_) | Kind::Map(_) => None,
    }
}

pub(crate) fn integer_text(text: &str) -> Option<i64> {
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0x") {
        return i64::from_str_radix(hex, 16).ok();
    }
    if lower.len() > 1
        && lower.starts_with('0')
        && let Ok(octal) = i64::from_str_radix(&lower, 8)
    {
        return Some(octal);
    }
    text.parse::<i64>().ok().or_else(|| rounded(text.parse::<f64>().ok()?))
}

/// Exact below 2^53, which is far above every setting that is read with it.
#[allow(clippy::cast_possible_truncation)]
fn rounded(value: f64) -> Option<i64> {
    (value.is_finite() && value.abs() < 9.0e15).then(|| value.round_ties_even() as i64)
}

/// Longest duration that is taken, 10 years: keeps every sum of durations far from overflow.
const DURATION_MAX_MS: f64 = 10.0 * 365.0 * 86_400_000.0;

/// A non-negative duration: bare seconds (fractions allowed) or with a unit (us, ms, s, min, h, d).
pub(crate) fn duration(node: &Node) -> Option<Millis> {
    match &node.kind {
        Kind::Number(number, _) => millis(number.as_f64()? * 1000.0),
        Kind::Text(text) => duration_text(text),
        Kind::Null | Kind::Bool(_) | Kind::Seq(_) | Kind::Map(_) => None,
    }
}

pub(crate) fn duration_text(text: &str) -> Option<Millis> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "us" => 0.001,
        "ms" => 1.0,
        "s" | "" => 1000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    millis(number.trim().parse::<f64>().ok()? * factor)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn millis(ms: f64) -> Option<Millis> {
    (0.0..=DURATION_MAX_MS).contains(&ms).then(|| Millis(ms.round() as u64))
}

/// A scalar as text, in the spelling of the file.
pub(crate) fn text(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Text(text) => Some(text.clone()),
        Kind::Number(_, spelled) => Some(spelled.clone()),
        Kind::Bool(value) => Some(value.to_string()),
        Kind::Null | Kind::Seq(_) | Kind::Map(_) => None,
    }
}

/// A server parameter's value: booleans become on and off.
pub(crate) fn parameter(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Bool(value) => Some(if *value { "on" } else { "off" }.to_owned()),
        Kind::Text(_) | Kind::Number(..) | Kind::Null | Kind::Seq(_) | Kind::Map(_) => text(node),
    }
}

/// A list of texts, or one text with commas.
pub(crate) fn comma_list(node: &Node) -> Option<Vec<String>> {
    match &node.kind {
        Kind::Seq(items) => items.iter().map(text).collect(),
        Kind::Text(list) => {
            let items = list.split(',').map(|t| t.trim().to_owned());
            Some(items.filter(|t| !t.is_empty()).collect())
        }
        Kind::Null | Kind::Bool(_) | Kind::Number(..) | Kind::Map(_) => None,
    }
}

/// A list of whole lines.
pub(crate) fn line_list(node: &Node) -> Option<Vec<String>> {
    match &node.kind {
        Kind::Seq(items) => items.iter().map(text).collect(),
        Kind::Null | Kind::Bool(_) | Kind::Number(..) | Kind::Text(_) | Kind::Map(_) => None,
    }
}

/// Options of a program: a list of names and of `name: value`, or one mapping. `true` is a bare
/// flag, `false` leaves the option out.
pub(crate) fn options(node: &Node) -> Option<Vec<(String, Option<String>)>> {
    let mut found = Vec::new();
    match &node.kind {
        Kind::Seq(items) => {
            for item in items {
                match &item.kind {
                    Kind::Map(_) => options_of_map(item, &mut found)?,
                    Kind::Text(name) => match name.split_once('=') {
                        Some((name, value)) => {
                            found.push((name.to_owned(), Some(value.to_owned())));
                        }
                        None => found.push((name.clone(), None)),
                    },
                    Kind::Null | Kind::Bool(_) | Kind::Number(..) | Kind::Seq(_) => return None,
                }
            }
        }
        Kind::Map(_) => options_of_map(node, &mut found)?,
        Kind::Null | Kind::Bool(_) | Kind::Number(..) | Kind::Text(_) => return None,
    }
    let bare =
        |(name, value): (String, Option<String>)| (name.trim_start_matches('-').to_owned(), value);
    Some(found.into_iter().map(bare).collect())
}

fn options_of_map(node: &Node, found: &mut Vec<(String, Option<String>)>) -> Option<()> {
    for entry in node.entries() {
        match &entry.node.kind {
            Kind::Bool(true) | Kind::Null => found.push((entry.key.clone(), None)),
            Kind::Bool(false) => {}
            Kind::Text(_) | Kind::Number(..) => {
                found.push((entry.key.clone(), text(&entry.node)));
            }
            Kind::Seq(_) | Kind::Map(_) => return None,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration_text("30"), Some(Millis(30_000)));
        assert_eq!(duration_text("0.25"), Some(Millis(250)));
        assert_eq!(duration_text("200ms"), Some(Millis(200)));
        assert_eq!(duration_text("30 min"), Some(Millis(1_800_000)));
        for bad in ["", "x", "-1", "5 weeks", "1e300", "NaN", "ms"] {
            assert_eq!(duration_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn integers_as_patroni_reads_them() {
        assert_eq!(integer_text("0x10"), Some(16));
        assert_eq!(integer_text("010"), Some(8));
        assert_eq!(integer_text("1.5"), Some(2));
        assert_eq!(integer_text("-7"), Some(-7));
        assert_eq!(integer_text("1MB"), None);
    }

    #[test]
    fn program_options() {
        let node = Node::from_yaml("- encoding: UTF8\n- data-checksums\n- --locale=C\n", 0);
        let found = options(&node.expect("valid")).expect("options");
        let expected = [
            ("encoding".to_owned(), Some("UTF8".to_owned())),
            ("data-checksums".to_owned(), None),
            ("locale".to_owned(), Some("C".to_owned())),
        ];
        assert_eq!(found, expected);
    }
}
