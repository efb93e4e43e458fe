//! The server parameters that an instance runs with (as Patroni 4.1 has it).

use std::collections::BTreeMap;

use crate::dynamic::{Dynamic, SynchronousMode};
use crate::problem::{Problem, Warning};
use crate::values;

/// A parameter that must be the same on every member, so only the dynamic configuration may set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Controlled {
    name: &'static str,
    default: &'static str,
    rule: Rule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    AtLeast(i64),
    AtLeastMegabytes(i64),
    Bool,
    MustBeOn,
    WalLevel,
}

const fn controlled(name: &'static str, default: &'static str, rule: Rule) -> Controlled {
    Controlled { name, default, rule }
}

const TABLE: [Controlled; 11] = [
    controlled("wal_level", "replica", Rule::WalLevel),
    controlled("hot_standby", "on", Rule::MustBeOn),
    controlled("max_connections", "100", Rule::AtLeast(25)),
    controlled("max_wal_senders", "10", Rule::AtLeast(3)),
    controlled("wal_keep_size", "128MB", Rule::AtLeastMegabytes(16)),
    controlled("max_prepared_transactions", "0", Rule::AtLeast(0)),
    controlled("max_locks_per_transaction", "64", Rule::AtLeast(32)),
    controlled("track_commit_timestamp", "off", Rule::Bool),
    controlled("max_replication_slots", "10", Rule::AtLeast(4)),
    controlled("max_worker_processes", "8", Rule::AtLeast(2)),
    controlled("wal_log_hints", "on", Rule::Bool),
];

/// Names of the parameters that only the dynamic configuration may set.
pub const CONTROLLED: [&str; 11] = {
    let mut names = [""; 11];
    let mut index = 0;
    while index < TABLE.len() {
        names[index] = TABLE[index].name;
        index += 1;
    }
    names
};

/// Parameters that nobody may set: they come from other keys, or belong to the agent. A user's
/// primary_conninfo or recovery target would undo a pledge or a rejoin; PostgreSQL restarting
/// itself after a crash would take the decision from the agent.
const OURS: [&str; 13] = [
    "listen_addresses",
    "port",
    "cluster_name",
    "data_directory",
    "config_file",
    "restart_after_crash",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target_timeline",
    "standby_mode",
    "trigger_file",
    "promote_trigger_file",
    "wal_keep_segments",
];

/// The parameters to run with: the dynamic ones, over them the local ones, but controlled ones only
/// from the dynamic configuration. listen_addresses, port and cluster_name are not in it.
#[must_use]
pub fn effective_parameters(
    dynamic: &Dynamic,
    local: &BTreeMap<String, String>,
) -> (BTreeMap<String, String>, Vec<Warning>) {
    let mut merged = BTreeMap::new();
    let mut warnings = Vec::new();
    let shared = &dynamic.postgresql.parameters;
    for (name, value) in shared.iter().chain(local) {
        if is_controlled(name) {
            continue;
        }
        if OURS.contains(&name.as_str()) {
            if name != "wal_keep_segments" {
                let text = "belongs to the agent or to another key; ignored";
                warnings.push(Problem::unplaced(format!("postgresql.parameters.{name}"), text));
            }
            continue;
        }
        merged.insert(name.clone(), value.clone());
    }
    for parameter in TABLE {
        let (value, warning) = controlled_value(&parameter, shared);
        merged.insert(parameter.name.to_owned(), value);
        warnings.extend(warning);
    }
    // A crash ends the postmaster, and the agent decides what then.
    merged.insert("restart_after_crash".to_owned(), "off".to_owned());
    if dynamic.synchronous_mode != SynchronousMode::Off
        && merged.remove("synchronous_standby_names").is_some()
    {
        let text = "belongs to the agent in synchronous mode; ignored";
        let key = "postgresql.parameters.synchronous_standby_names";
        warnings.push(Problem::unplaced(key, text));
    }
    (merged, warnings)
}

fn is_controlled(name: &str) -> bool {
    CONTROLLED.contains(&name)
}

/// Whether it is not for one member, or one role, to set.
pub(crate) fn is_reserved(name: &str) -> bool {
    is_controlled(name) || OURS.contains(&name)
}

fn controlled_value(
    parameter: &Controlled,
    shared: &BTreeMap<String, String>,
) -> (String, Option<Warning>) {
    let given = shared.get(parameter.name).cloned().or_else(|| {
        let segments = (parameter.name == "wal_keep_size")
            .then(|| shared.get("wal_keep_segments"))
            .flatten()?;
        let megabytes = values::integer_text(segments)?.checked_mul(16)?;
        Some(format!("{megabytes}MB"))
    });
    let Some(given) = given else { return (parameter.default.to_owned(), None) };
    match accepted(parameter.rule, &given) {
        Some(value) => (value, None),
        None => {
            let (name, default) = (parameter.name, parameter.default);
            let text = format!("{given:?} failed validation, defaulting to {default}");
            let warning = Problem::unplaced(format!("postgresql.parameters.{name}"), text);
            (default.to_owned(), Some(warning))
        }
    }
}

/// The value as it is written, or `None` if the rule forbids it.
fn accepted(rule: Rule, value: &str) -> Option<String> {
    let valid = match rule {
        Rule::AtLeast(least) => values::integer_text(value)? >= least,
        Rule::AtLeastMegabytes(least) => kilobytes(value)? >= least.checked_mul(1024)?,
        Rule::Bool => values::boolean_text(value).is_some(),
        Rule::MustBeOn => values::boolean_text(value)?,
        Rule::WalLevel => match value.to_ascii_lowercase().as_str() {
            // The name that PostgreSQL gave it before 9.6.
            "hot_standby" | "replica" => return Some("replica".to_owned()),
            "logical" => true,
            _ => false,
        },
    };
    valid.then(|| value.to_owned())
}

/// A memory parameter whose bare unit is MB.
fn kilobytes(value: &str) -> Option<i64> {
    let value = value.trim();
    let split = value.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(value.len());
    let (number, unit) = value.split_at(split);
    let number = values::integer_text(number.trim())?;
    match unit {
        "B" => Some(number / 1024),
        "kB" => Some(number),
        "MB" | "" => number.checked_mul(1024),
        "GB" => number.checked_mul(1024 * 1024),
        "TB" => number.checked_mul(1024 * 1024 * 1024),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn merged(dynamic: serde_json::Value, local: &[(&str, &str)]) -> BTreeMap<String, String> {
        let dynamic = json!({ "postgresql": { "parameters": dynamic } });
        let (dynamic, _) = Dynamic::from_json(&dynamic).expect("valid");
        effective_parameters(&dynamic, &map(local)).0
    }

    #[test]
    fn controlled_parameters_come_only_from_the_dynamic_configuration() {
        let all = merged(
            json!({"max_connections": 200, "work_mem": "4MB", "wal_level": "hot_standby"}),
            &[("max_connections", "50"), ("work_mem", "8MB"), ("port", "1"), ("jit", "off")],
        );
        assert_eq!(all["max_connections"], "200");
        assert_eq!(all["work_mem"], "8MB");
        assert_eq!(all["wal_level"], "replica");
        assert_eq!(all["jit"], "off");
        assert_eq!(all["wal_keep_size"], "128MB");
        assert_eq!(all["restart_after_crash"], "off");
        assert!(!all.contains_key("port"));
    }

    #[test]
    fn refused_values_fall_back_to_the_default() {
        let dynamic = json!({"max_connections": 5, "hot_standby": false, "wal_keep_segments": 10});
        let all = merged(dynamic, &[]);
        assert_eq!(all["max_connections"], "100");
        assert_eq!(all["hot_standby"], "on");
        assert_eq!(all["wal_keep_size"], "160MB");
        assert!(!all.contains_key("wal_keep_segments"));
        assert_eq!(merged(json!({"wal_keep_size": "1GB"}), &[])["wal_keep_size"], "1GB");
        assert_eq!(merged(json!({"wal_keep_size": "8MB"}), &[])["wal_keep_size"], "128MB");
    }

    #[test]
    fn synchronous_standby_names_is_the_agents_in_synchronous_mode() {
        let names = map(&[("synchronous_standby_names", "*")]);
        let (on, warnings) = effective_parameters(
            &Dynamic { synchronous_mode: SynchronousMode::On, ..Dynamic::default() },
            &names,
        );
        assert!(!on.contains_key("synchronous_standby_names"));
        assert_eq!(warnings.len(), 1);
        let (off, _) = effective_parameters(&Dynamic::default(), &names);
        assert_eq!(off["synchronous_standby_names"], "*");
    }
}
