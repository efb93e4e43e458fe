//! Configuration files written for an operator to go on with (as Patroni 4.1 has it): a sample, or
//! what a running server says. Whoever looks at host and server hands in what it saw.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::problem::ConfigError;
use crate::sources::Sources;
use crate::text::{HostPort, Secret};

/// What stands where the operator has to fill something in.
pub const FIXME: &str = "#FIXME";

/// Sections before and after `bootstrap`, in the order in which they are written.
const BEFORE: [&str; 14] = [
    "scope",
    "namespace",
    "name",
    "log",
    "restapi",
    "ctl",
    "citus",
    "consul",
    "etcd",
    "etcd3",
    "exhibitor",
    "kubernetes",
    "raft",
    "zookeeper",
];
const AFTER: [&str; 3] = ["postgresql", "watchdog", "tags"];
/// What stands first in `bootstrap.dcs`.
const DCS_FIRST: [&str; 3] = ["loop_wait", "retry_timeout", "ttl"];

const ABOUT_BOOTSTRAP: &str = "
# The bootstrap configuration. Works only when the cluster is not yet initialized.
# If the cluster is already initialized, all changes in the `bootstrap` section are ignored!
bootstrap:
  # This section will be written into <dcs>:/<namespace>/<scope>/config after initializing
  # new cluster and all other cluster members will use it as a `global configuration`.
  # WARNING! If you want to change any of the parameters that were set up
  # via `bootstrap.dcs` section, please use `patronictl edit-config`!
  dcs:
";

/// Settings that stay in the node's own file: commands, which may hold what is nobody's business,
/// and files, which would be taken away otherwise.
const LOCAL: [&str; 8] = [
    "archive_command",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "ssl_passphrase_command",
    "hba_file",
    "ident_file",
    "config_file",
];

/// What the lines of pg_hba.conf begin with, and what they do besides from PostgreSQL 16 on.
const HBA_TYPES: [&str; 6] =
    ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
const HBA_TYPES_16: [&str; 3] = ["include", "include_if_exists", "include_dir"];

/// libpq's settings of a connection that older versions do not know, and since when they do.
const SINCE: [(&str, u32); 2] = [("sslcrldir", 14), ("sslnegotiation", 17)];

/// What has to be a mapping for the rest to find its place, outer ones first.
const MAPPINGS: [&[&str]; 5] = [
    &["bootstrap"],
    &["postgresql"],
    &["postgresql", "bin_name"],
    &["postgresql", "authentication"],
    &["postgresql", "authentication", "replication"],
];

/// The host that the file is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// An address of its name.
    pub address: Option<String>,
}

/// A server that runs, as it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its major version.
    pub major: u32,
    /// The port by which it was reached; `None`: the one that it says.
    pub port: Option<String>,
    /// The superuser, by whom it was asked.
    pub username: String,
    /// Its password.
    pub password: Secret,
    /// What libpq was told besides, by libpq's names.
    pub connection: BTreeMap<String, String>,
    /// Its settings that are set by anything but its defaults, and those that a node needs.
    pub settings: BTreeMap<String, String>,
    /// Where its programs are.
    pub bin_dir: String,
    /// The text of pg_hba.conf, if that stands in the data directory.
    pub hba: Option<String>,
    /// The text of pg_ident.conf, if that stands in the data directory.
    pub ident: Option<String>,
}

/// A configuration in the making; the environment's variables are in it.
#[derive(Clone)]
pub struct Template(Value);

impl Template {
    /// For this host, with what the environment says.
    ///
    /// # Errors
    /// A variable that is not what it should be.
    pub fn new(environment: &Sources, host: &Host) -> Result<Template, ConfigError> {
        let mut root = defaults(host);
        patch(&mut root, environment.to_json()?);
        for path in MAPPINGS {
            let place = path.iter().fold(&mut root, |value, key| &mut value[*key]);
            if !place.is_object() {
                *place = json!({});
            }
        }
        root["bootstrap"]["dcs"] = dynamic_defaults();
        Ok(Template(root))
    }

    /// Where PostgreSQL's programs are, and what `postgres` is called, if the environment says.
    #[must_use]
    pub fn postgres_program(&self) -> (Option<&str>, Option<&str>) {
        let section = &self.0["postgresql"];
        let given = |value: &'_ Value| value.as_str().is_some_and(|text| !text.is_empty());
        let dir = Some(&section["bin_dir"]).filter(|v| given(v)).and_then(Value::as_str);
        let name = Some(&section["bin_name"]["postgres"]).filter(|v| given(v));
        (dir, name.and_then(Value::as_str))
    }

    /// Without the mapping that nobody filled.
    fn trimmed(mut self) -> Template {
        if let Some(section) = self.0["postgresql"].as_object_mut()
            && section["bin_name"].as_object().is_some_and(Map::is_empty)
        {
            section.shift_remove("bin_name");
        }
        self
    }

    /// The text of a sample for this major version of PostgreSQL.
    #[must_use]
    pub fn sample(self, major: u32) -> String {
        let Template(mut root) = self.trimmed();
        let method = if major >= 10 { "scram-sha-256" } else { "md5" };
        let section = &mut root["postgresql"];
        let replication = &section["authentication"]["replication"]["username"];
        let replication = replication.as_str().unwrap_or_default().to_owned();
        section["parameters"] = json!({ "password_encryption": method });
        section["pg_hba"] = json!([
            format!("host all all all {method}"),
            format!("host replication {replication} all {method}"),
        ]);
        let mut rewind = json!({ "username": "rewind_user", "password": FIXME });
        patch(&mut rewind, section["authentication"]["rewind"].take());
        section["authentication"]["rewind"] = rewind;
        let shared = &mut root["bootstrap"]["dcs"]["postgresql"];
        shared["parameters"]["wal_keep_size"] = json!("128MB");
        shared["parameters"]["wal_level"] = json!("replica");
        shared["use_pg_rewind"] = json!(true);
        text(&root)
    }

    /// The text of a configuration for a server that runs.
    #[must_use]
    pub fn of(self, server: &Running) -> String {
        let Template(mut root) = self.trimmed();
        let (mut local, mut shared) = (Map::new(), Map::new());
        for (name, value) in &server.settings {
            match name.as_str() {
                "data_directory" => root["postgresql"]["data_dir"] = json!(value),
                "cluster_name" if !value.is_empty() => root["scope"] = json!(value),
                "port" | "listen_addresses" => {}
                name if LOCAL.contains(&name) => _ = local.insert(name.to_owned(), json!(value)),
                name => _ = shared.insert(name.to_owned(), json!(value)),
            }
        }
        let setting = |name: &str| server.settings.get(name).map_or("", String::as_str);
        let port = server.port.as_deref().unwrap_or_else(|| setting("port"));
        let section = &mut root["postgresql"];
        let address = section["connect_address"].as_str().unwrap_or_default();
        let host = match HostPort::parse(address, Some(1)) {
            Some(HostPort { host, .. }) if host.contains(':') => format!("[{host}]"),
            Some(HostPort { host, .. }) => host,
            None => FIXME.to_owned(),
        };
        section["connect_address"] = json!(format!("{host}:{port}"));
        section["listen"] = json!(format!("{}:{}", setting("listen_addresses"), setting("port")));
        section["bin_dir"] = json!(server.bin_dir);
        section["authentication"] = authentication(server);
        patch(&mut section["parameters"], Value::Object(local));
        if let Some(hba) = &server.hba {
            section["pg_hba"] = json!(hba_lines(hba, server.major));
        }
        let ident = server.ident.as_deref().map(lines).unwrap_or_default();
        let ident: Vec<&str> = ident.into_iter().filter(|line| !line.starts_with('#')).collect();
        if !ident.is_empty() {
            section["pg_ident"] = json!(ident);
        }
        let parameters = &mut root["bootstrap"]["dcs"]["postgresql"]["parameters"];
        patch(parameters, Value::Object(shared));
        text(&root)
    }
}

fn defaults(host: &Host) -> Value {
    let name = host.name.as_deref().unwrap_or(FIXME);
    let address = match host.address.as_deref() {
        Some(address) if address.contains(':') => format!("[{address}]"),
        Some(address) => address.to_owned(),
        None => FIXME.to_owned(),
    };
    let (rest, postgres) = (format!("{address}:8008"), format!("{address}:5432"));
    json!({
        "scope": FIXME,
        "name": name,
        "restapi": { "connect_address": rest, "listen": rest },
        "log": {
            "type": "plain",
            "level": "INFO",
            "traceback_level": "ERROR",
            "format": "%(asctime)s %(levelname)s: %(message)s",
            "max_queue_size": 1000,
        },
        "bootstrap": {},
        "postgresql": {
            "data_dir": FIXME,
            "connect_address": postgres,
            "listen": postgres,
            "bin_dir": "",
            "authentication": {
                "superuser": { "username": "postgres", "password": FIXME },
                "replication": { "username": "replicator", "password": FIXME },
            },
        },
        "tags": {
            "failover_priority": 1,
            "sync_priority": 1,
            "noloadbalance": false,
            "clonefrom": true,
            "nosync": false,
            "nostream": false,
        },
    })
}

fn dynamic_defaults() -> Value {
    json!({
        "ttl": 30,
        "loop_wait": 10,
        "retry_timeout": 10,
        "postgresql": {
            "use_slots": true,
            "parameters": {
                "wal_level": "hot_standby",
                "hot_standby": "on",
                "max_connections": 100,
                "max_wal_senders": 10,
                "max_prepared_transactions": 0,
                "max_locks_per_transaction": 64,
                "track_commit_timestamp": "off",
                "max_replication_slots": 10,
                "max_worker_processes": 8,
                "wal_log_hints": "on",
            },
        },
    })
}

fn authentication(server: &Running) -> Value {
    let known = |name: &str| {
        let since = SINCE.iter().find(|(since, _)| *since == name);
        since.is_none_or(|(_, major)| server.major >= *major)
    };
    let given = server.connection.iter().filter(|(name, _)| known(name));
    let mut superuser: Map<String, Value> =
        given.map(|(name, value)| (name.clone(), json!(value))).collect();
    superuser.insert("username".to_owned(), json!(server.username));
    superuser.insert("password".to_owned(), json!(server.password.expose()));
    json!({
        "superuser": superuser,
        "replication": { "username": FIXME, "password": FIXME },
    })
}

fn hba_lines(text: &str, major: u32) -> Vec<&str> {
    let begins = |line: &&str| {
        let first = line.split_whitespace().next().unwrap_or_default();
        HBA_TYPES.contains(&first) || (major >= 16 && HBA_TYPES_16.contains(&first))
    };
    lines(text).into_iter().filter(begins).collect()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// Mappings merge, a null takes its key away, anything else replaces; nothing changes nothing.
fn patch(value: &mut Value, with: Value) {
    let Value::Object(with) = with else { return };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Some(map) = value.as_object_mut() else { return };
    for (key, new) in with {
        match new {
            Value::Null => _ = map.shift_remove(&key),
            Value::Object(_) if map.get(&key).is_some_and(Value::is_object) => {
                patch(&mut map[&key], new);
            }
            new => _ = map.insert(key, new),
        }
    }
}

/// The document, section by section.
fn text(root: &Value) -> String {
    let mut text = String::new();
    let section = |text: &mut String, name: &str| {
        if let Some(value) = root.get(name) {
            if value.is_object() {
                text.push('\n');
            }
            block(text, name, value, "");
        }
    };
    for name in BEFORE {
        section(&mut text, name);
    }
    text.push_str(ABOUT_BOOTSTRAP);
    let dcs = root["bootstrap"]["dcs"].as_object().into_iter().flatten();
    let (first, others): (Vec<_>, Vec<_>) =
        dcs.partition(|(name, _)| DCS_FIRST.contains(&name.as_str()));
    let ordered = DCS_FIRST.iter().filter_map(|name| first.iter().find(|(key, _)| key == name));
    for (name, value) in ordered.chain(&others) {
        block(&mut text, name, value, "    ");
    }
    for name in AFTER {
        section(&mut text, name);
    }
    text
}

/// One key with its value, the keys below it sorted.
fn block(text: &mut String, name: &str, value: &Value, indent: &str) {
    let mut one = json!({ name: value });
    one.sort_all_objects();
    // JSON is YAML: what a library that writes every value might refuse, is still written.
    let yaml = serde_saphyr::to_string(&one).unwrap_or_else(|_| one.to_string());
    for line in yaml.trim_end_matches('\n').lines() {
        writeln!(text, "{indent}{line}").expect("a String takes everything");
    }
}

#[cfg(test)]
#[path = "generate_tests.rs"]
mod tests;
