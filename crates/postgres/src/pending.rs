//! Which parameters differ between the running server and the configuration.

use std::collections::BTreeMap;

use types::PendingChange;

use crate::conf;
use crate::config::InstanceConfig;
use crate::error::Error;
use crate::instance::LocalInstance;
use crate::sql::{self, Row, literal};

/// What waits for a restart; asked only when the configuration was loaded anew, since it computes
/// every parameter.
const PENDING: &str = "SELECT name, setting, current_setting(name), pending_restart \
  FROM pg_settings WHERE pending_restart OR context = 'postmaster'";

/// The parameters that wait for a restart: those that PostgreSQL knows of, and those that stand on
/// the command line, of which PostgreSQL does not say it.
pub(crate) async fn pending_restart(
    instance: &LocalInstance,
    loaded: String,
) -> Result<BTreeMap<String, PendingChange>, Error> {
    if let Some((at, pending)) = &instance.memory().pending
        && *at == loaded
    {
        return Ok(pending.clone());
    }
    let client = instance.client().await?;
    let rows = sql::rows(&client, "read the parameters", PENDING).await?;
    let config = instance.config();
    let controlled: BTreeMap<&str, String> = conf::controlled(&config).into_iter().collect();
    let pending: BTreeMap<String, PendingChange> =
        rows.iter().filter_map(|row| change(row, &controlled, &config)).collect();
    instance.memory().pending = Some((loaded, pending.clone()));
    Ok(pending)
}

fn change(
    row: &Row,
    controlled: &BTreeMap<&str, String>,
    config: &InstanceConfig,
) -> Option<(String, PendingChange)> {
    let field = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
    let name = field(0);
    // A standby is always a hot one, and says so by itself.
    if name == "hot_standby" {
        return None;
    }
    let wanted = controlled.get(name);
    let differs = wanted.is_some_and(|wanted| !same_value(wanted, field(1)));
    if field(3) != "t" && !differs {
        return None;
    }
    let new = wanted.or_else(|| config.parameters.get(name));
    let new_value = new.map_or_else(|| "?".to_owned(), Clone::clone);
    Some((name.to_owned(), PendingChange { old_value: field(2).to_owned(), new_value }))
}

/// Compares a wanted value with what pg_settings shows: `on` is `true` is `1`.
fn same_value(wanted: &str, shown: &str) -> bool {
    let normal = |text: &str| match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" | "on" => "on".to_owned(),
        "false" | "no" | "0" | "off" => "off".to_owned(),
        // An old name of `replica` that PostgreSQL still takes.
        "hot_standby" | "archive" => "replica".to_owned(),
        other => other.to_owned(),
    };
    normal(wanted) == normal(shown)
}

/// Says what a new configuration changes on the running server, in the words that scripts look for.
pub(crate) async fn tell_changes(
    instance: &LocalInstance,
    old: &InstanceConfig,
    new: &InstanceConfig,
) -> Result<(), Error> {
    let names: Vec<String> = old
        .parameters
        .keys()
        .chain(new.parameters.keys())
        .filter(|name| old.parameters.get(*name) != new.parameters.get(*name))
        .map(|name| literal(&name.to_ascii_lowercase()))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let client = instance.client().await?;
    let statement = format!(
        "SELECT name, CASE WHEN source <> 'client' THEN current_setting(name) END, context, boot_val
           FROM pg_settings WHERE lower(name) IN ({})",
        names.join(", ")
    );
    for row in sql::rows(&client, "read the parameters", &statement).await? {
        let field = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
        // What this very session has set for itself says nothing of the server.
        let before = || old.parameters.get(field(0)).map_or(field(3), String::as_str);
        let shown = row.get(1).and_then(Option::as_deref).unwrap_or_else(before);
        let wanted = new.parameters.get(field(0)).map_or("None", String::as_str);
        let restart = match field(2) {
            "postmaster" => " (restart might be required)",
            _ => "",
        };
        // A command may hold what is nobody's business (I6).
        let (old, new) =
            if field(0).ends_with("_command") { ("…", "…") } else { (shown, wanted) };
        tracing::info!("Changed {} from '{old}' to '{new}'{restart}", field(0));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_as_postgresql_means_them() {
        assert!(same_value("true", "on"));
        assert!(same_value("hot_standby", "replica"));
        assert!(same_value("100", "100"));
        assert!(!same_value("100", "101"));
    }

    #[test]
    fn old_and_new_values_are_told() {
        let config = conf::tests_support::sample();
        let row = |fields: [&str; 4]| fields.iter().map(|f| Some((*f).to_owned())).collect();
        let controlled = BTreeMap::from([("max_connections", "101".to_owned())]);
        let told = |fields: [&str; 4]| change(&row(fields), &controlled, &config);
        assert_eq!(told(["max_connections", "101", "101", "f"]), None);
        let (name, values) = told(["max_connections", "100", "100", "f"]).expect("it differs");
        assert_eq!((name.as_str(), values.new_value.as_str()), ("max_connections", "101"));
        let (_, values) = told(["shared_buffers", "512", "4MB", "t"]).expect("PostgreSQL says so");
        assert_eq!((values.old_value.as_str(), values.new_value.as_str()), ("4MB", "?"));
    }
}
