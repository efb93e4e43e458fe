//! Rows as patronictl prints them, in each of its formats.

use api::json::spaced;
use serde_json::{Map, Value};

use super::table::{Format, Table};

/// What a command prints: the titles of its columns, whether each is aligned to the right, and rows
/// of as many values.
pub(super) struct Output {
    /// Titles.
    pub(super) columns: Vec<(&'static str, bool)>,
    /// Values; a missing one is null.
    pub(super) rows: Vec<Vec<Value>>,
}

impl Output {
    /// The text, with a line feed at the end.
    pub(super) fn text(self, format: Format) -> String {
        let objects = || {
            let object = |row: &Vec<Value>| {
                let names = self.columns.iter().map(|(name, _)| (*name).to_owned());
                Value::Object(names.zip(row.iter().cloned()).collect::<Map<_, _>>())
            };
            Value::Array(self.rows.iter().map(object).collect())
        };
        match format {
            Format::Json => spaced(&objects()) + "\n",
            Format::Yaml => yaml(&objects()),
            Format::Tsv => {
                let header: Vec<String> = self.columns.iter().map(|(n, _)| (*n).into()).collect();
                let rows = self.rows.iter().map(|row| row.iter().map(plain).collect());
                let lines = std::iter::once(header).chain(rows);
                lines.map(|cells: Vec<String>| cells.join("\t") + "\n").collect()
            }
            Format::Pretty => {
                let rows = self.rows.iter().map(|row| row.iter().map(plain).collect()).collect();
                let columns =
                    self.columns.into_iter().map(|(name, right)| (name.to_owned(), right));
                Table { title: String::new(), columns: columns.collect(), rows }.render()
            }
        }
    }
}

/// A value as YAML in blocks, the keys of mappings sorted, with a line feed at the end.
pub(super) fn yaml(value: &Value) -> String {
    let mut sorted = value.clone();
    sorted.sort_all_objects();
    // JSON is YAML: what a library that writes every value might refuse, is still shown.
    let text = serde_saphyr::to_string(&sorted).unwrap_or_else(|_| sorted.to_string());
    text.trim_end_matches('\n').to_owned() + "\n"
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
