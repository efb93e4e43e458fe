//! The settings that a client's sessions have, and the values that a server reports.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// Parameters by name in lower case; the value is SQL that may follow `SET name TO`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Settings(pub BTreeMap<String, String>);

/// What the server reports by ParameterStatus: value by name, as it spells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Reported(pub BTreeMap<String, String>);

/// Parameters that a session can set, among those that PostgreSQL reports.
const SETTABLE: [&str; 8] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "default_transaction_read_only",
    "search_path",
    "standard_conforming_strings",
];

impl Settings {
    /// The settings of a startup packet's parameters, `options` included. What names the session
    /// (user, database, replication) and protocol extensions are none.
    #[must_use]
    pub fn of_startup(parameters: &[(String, String)]) -> Settings {
        let mut settings = BTreeMap::new();
        // The server takes the options first, then the parameters, and the last value counts.
        let options = parameters.iter().filter(|(name, _)| name == "options");
        let in_options = options
            .flat_map(|(_, value)| pgproto::lowered::option_settings(value))
            .collect::<Vec<_>>();
        let rest = parameters.iter().filter(|(name, _)| {
            !matches!(name.as_str(), "user" | "database" | "replication" | "options")
                && !name.starts_with("_pq_.")
        });
        // What is said to the proxy is no setting either.
        let for_server = |(name, _): &(&String, &String)| !name.starts_with("pgherd.");
        let all = in_options.iter().chain(rest).map(|(name, value)| (name, value));
        for (name, value) in all.filter(for_server) {
            settings.insert(name.to_ascii_lowercase(), literal(&name.to_ascii_lowercase(), value));
        }
        Settings(settings)
    }

    /// The SQL that makes a session with `self` one with `wanted`; empty if they are the same.
    #[must_use]
    pub(crate) fn change_to(&self, wanted: &Settings) -> String {
        let mut sql = String::new();
        for name in self.0.keys().filter(|name| !wanted.0.contains_key(*name)) {
            // Writing to a string cannot fail.
            write!(sql, "RESET {};", identifier(name)).unwrap_or_default();
        }
        for (name, value) in
            wanted.0.iter().filter(|(name, value)| self.0.get(*name) != Some(value))
        {
            write!(sql, "SET {} TO {value};", identifier(name)).unwrap_or_default();
        }
        sql
    }
}

impl Reported {
    /// What a client that was told `self` must be told to know `now`.
    pub(crate) fn news<'a>(
        &'a self,
        now: &'a Reported,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let changed = now.0.iter().filter(|(name, value)| self.0.get(*name) != Some(value));
        changed.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// These, with what a client of these settings finds changed; the server's own word follows
    /// when it has one. Nothing is copied if there is no difference.
    #[must_use]
    pub fn with(self: Arc<Reported>, settings: &Settings) -> Arc<Reported> {
        let mut with = self;
        let plain = |value: &str| value.strip_prefix('\'')?.strip_suffix('\'').map(str::to_owned);
        let spelled: Vec<String> = with.0.keys().cloned().collect();
        for name in spelled {
            let wanted = settings.0.get(&name.to_ascii_lowercase()).and_then(|v| plain(v));
            if let Some(value) = wanted.filter(|value| !value.contains('\'')) {
                Reported::note(&mut with, &name, &value);
            }
        }
        with
    }

    /// Whether a parameter that sessions can set has another value in `now`.
    pub(crate) fn differs(&self, now: &Reported) -> bool {
        SETTABLE.iter().any(|name| self.0.get(*name) != now.0.get(*name))
    }

    /// Notes one value; nothing is copied if it is known.
    pub(crate) fn note(this: &mut Arc<Reported>, name: &str, value: &str) {
        if this.0.get(name).is_none_or(|known| known != value) {
            Arc::make_mut(this).0.insert(name.to_owned(), value.to_owned());
        }
    }
}

/// A name as an identifier, by its parts: parameters of extensions have two.
pub(super) fn identifier(name: &str) -> String {
    let part = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// A startup parameter's value as SQL. The list-valued ones come as lists, which a quoted string
/// would make one element of.
fn literal(name: &str, value: &str) -> String {
    const LISTS: [&str; 6] = [
        "search_path",
        "datestyle",
        "temp_tablespaces",
        "local_preload_libraries",
        "session_preload_libraries",
        "log_destination",
    ];
    if LISTS.contains(&name) {
        let elements =
            value.split(',').map(|element| {
                let element = element.trim();
                let bare = element.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                quoted(&bare.map_or_else(
                    || element.to_ascii_lowercase(),
                    |bare| bare.replace("\"\"", "\""),
                ))
            });
        return elements.collect::<Vec<_>>().join(", ");
    }
    quoted(value)
}

/// A string constant that means the same whatever `standard_conforming_strings` says.
fn quoted(value: &str) -> String {
    let value = value.replace('\'', "''");
    if value.contains('\\') {
        format!("E'{}'", value.replace('\\', "\\\\"))
    } else {
        format!("'{value}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup(parameters: &[(&str, &str)]) -> Settings {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Settings::of_startup(&parameters.iter().map(owned).collect::<Vec<_>>())
    }

    #[test]
    fn startup_parameters_become_settings() {
        let wanted = startup(&[
            ("user", "u"),
            ("database", "d"),
            ("application_name", r"it's a \ name"),
            ("DateStyle", "ISO, DMY"),
            ("pgherd.route", "read-only"),
            ("options", r#"-c search_path=a,\ \"B\" -c geqo=off --work-mem=1MB"#),
        ]);
        let sql = Settings::default().change_to(&wanted);
        for part in [
            r#"SET "application_name" TO E'it''s a \\ name';"#,
            r#"SET "datestyle" TO 'iso', 'dmy';"#,
            r#"SET "work_mem" TO '1MB';"#,
        ] {
            assert!(sql.contains(part), "{part} in {sql}");
        }
        assert!(
            !sql.contains("route") && !sql.contains("\"user\"") && !sql.contains("\"database\""),
            "{sql}"
        );
    }

    #[test]
    fn only_what_differs_is_set_and_what_is_not_wanted_is_reset() {
        let (a, b) = (startup(&[("a", "1"), ("b", "2")]), startup(&[("b", "2"), ("x.y", "3")]));
        assert_eq!(a.change_to(&b), r#"RESET "a";SET "x"."y" TO '3';"#);
        assert_eq!(a.change_to(&a), "");
    }
}
