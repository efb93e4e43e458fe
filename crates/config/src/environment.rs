//! Patroni's environment variables: which there are, and the keys that they stand for.

use crate::problem::Problem;
use crate::tree::{Kind, Node, Place};

/// Variables whose names continue a prefix as their keys continue a path, in lower case.
struct Section {
    prefix: &'static str,
    path: &'static str,
    names: &'static [&'static str],
}

const fn section(
    prefix: &'static str,
    path: &'static str,
    names: &'static [&'static str],
) -> Section {
    Section { prefix, path, names }
}

const ETCD: &[&str] = &[
    "HOST",
    "HOSTS",
    "PORT",
    "URL",
    "PROXY",
    "SRV",
    "SRV_SUFFIX",
    "PROTOCOL",
    "USE_PROXIES",
    "USERNAME",
    "PASSWORD",
    "CACERT",
    "CERT",
    "KEY",
];

const ROLE: &[&str] = &[
    "USERNAME",
    "PASSWORD",
    "SSLMODE",
    "SSLCERT",
    "SSLKEY",
    "SSLPASSWORD",
    "SSLROOTCERT",
    "SSLCRL",
    "SSLCRLDIR",
    "GSSENCMODE",
    "CHANNEL_BINDING",
    "SSLNEGOTIATION",
];

const SECTIONS: &[Section] = &[
    section(
        "PATRONI_",
        "",
        &["NAME", "NAMESPACE", "SCOPE", "THREAD_POOL_SIZE", "THREAD_STACK_SIZE"],
    ),
    section(
        "PATRONI_LOG_",
        "log.",
        &[
            "TYPE",
            "LEVEL",
            "TRACEBACK_LEVEL",
            "FORMAT",
            "DATEFORMAT",
            "STATIC_FIELDS",
            "MAX_QUEUE_SIZE",
            "DIR",
            "MODE",
            "FILE_SIZE",
            "FILE_NUM",
            "LOGGERS",
            "DEDUPLICATE_HEARTBEAT_LOGS",
        ],
    ),
    section("PATRONI_ETCD_", "etcd.", ETCD),
    section("PATRONI_ETCD3_", "etcd3.", ETCD),
    section("PATRONI_RESTAPI_", "restapi.authentication.", &["USERNAME", "PASSWORD"]),
    section(
        "PATRONI_RESTAPI_",
        "restapi.",
        &[
            "LISTEN",
            "CONNECT_ADDRESS",
            "CERTFILE",
            "KEYFILE",
            "KEYFILE_PASSWORD",
            "CAFILE",
            "CIPHERS",
            "VERIFY_CLIENT",
            "ALLOWLIST",
            "ALLOWLIST_INCLUDE_MEMBERS",
            "HTTP_EXTRA_HEADERS",
            "HTTPS_EXTRA_HEADERS",
            "REQUEST_QUEUE_SIZE",
            "SERVER_TOKENS",
        ],
    ),
    section("PATRONI_CTL_", "ctl.authentication.", &["USERNAME", "PASSWORD"]),
    section(
        "PATRONI_CTL_",
        "ctl.",
        &["INSECURE", "CACERT", "CERTFILE", "KEYFILE", "KEYFILE_PASSWORD"],
    ),
    section(
        "PATRONI_POSTGRESQL_",
        "postgresql.",
        &[
            "LISTEN",
            "CONNECT_ADDRESS",
            "PROXY_ADDRESS",
            "DATA_DIR",
            "CONFIG_DIR",
            "BIN_DIR",
            "PGPASS",
        ],
    ),
    section(
        "PATRONI_POSTGRESQL_BIN_",
        "postgresql.bin_name.",
        &[
            "PG_CTL",
            "INITDB",
            "PG_CONTROLDATA",
            "PG_BASEBACKUP",
            "POSTGRES",
            "PG_ISREADY",
            "PG_REWIND",
        ],
    ),
    section("PATRONI_SUPERUSER_", "postgresql.authentication.superuser.", ROLE),
    section("PATRONI_REPLICATION_", "postgresql.authentication.replication.", ROLE),
    section("PATRONI_REWIND_", "postgresql.authentication.rewind.", ROLE),
    section("PATRONI_CITUS_", "citus.", &["GROUP", "DATABASE"]),
];

/// Older names, which fill in where the present one is not set.
const OLD_NAMES: &[(&str, &str)] = &[
    ("PATRONI_LOGLEVEL", "log.level"),
    ("PATRONI_LOGFORMAT", "log.format"),
    ("PATRONI_LOG_DATEFMT", "log.dateformat"),
];

/// Keys whose variable holds a YAML mapping or list, the outer braces of a mapping optional.
const STRUCTURED: &[(&str, bool)] = &[
    ("log.static_fields", true),
    ("log.loggers", true),
    ("restapi.http_extra_headers", true),
    ("restapi.https_extra_headers", true),
    ("log.format", false),
];

/// Stores that we do not support: any variable of theirs configures them, and is refused.
const OTHER_STORES: &[(&str, &str)] = &[
    ("PATRONI_CONSUL_", "consul"),
    ("PATRONI_ZOOKEEPER_", "zookeeper"),
    ("PATRONI_EXHIBITOR_", "exhibitor"),
    ("PATRONI_KUBERNETES_", "kubernetes"),
    ("PATRONI_RAFT_", "raft"),
];

/// The variable that holds a whole file, where there is none.
pub(crate) const WHOLE: &str = "PATRONI_CONFIGURATION";

/// The key that a variable stands for, and whether this is an older name of it.
fn key_of(variable: &str) -> Option<(String, bool)> {
    for section in SECTIONS {
        let name = variable.strip_prefix(section.prefix).filter(|n| section.names.contains(n));
        if let Some(name) = name {
            return Some((format!("{}{}", section.path, name.to_ascii_lowercase()), false));
        }
    }
    if let Some((_, key)) = OLD_NAMES.iter().find(|(old, _)| *old == variable) {
        return Some(((*key).to_owned(), true));
    }
    let store = OTHER_STORES.iter().find(|(prefix, _)| variable.starts_with(prefix));
    store.map(|(_, section)| ((*section).to_owned(), false))
}

/// Whether the variable is one of the configuration's and has a value.
pub(crate) fn is_known(variable: &str, value: &str) -> bool {
    !value.is_empty() && (variable == WHOLE || key_of(variable).is_some())
}

/// A variable that has a value, ready to be laid over the files.
pub(crate) struct Setting {
    /// The variable's name.
    pub(crate) variable: String,
    /// The key, dotted.
    pub(crate) key: String,
    /// Its value.
    pub(crate) node: Node,
}

/// The settings of an environment, older names first, each with a source of its own from `first`
/// on. Empty variables count as unset.
pub(crate) fn settings(
    environment: &[(String, String)],
    first: usize,
) -> Result<Vec<Setting>, Problem> {
    let known = environment.iter().filter(|(_, value)| !value.is_empty());
    let mut found: Vec<(bool, String, &str, &str)> = known
        .filter_map(|(name, value)| {
            let (key, old) = key_of(name)?;
            Some((!old, key, name.as_str(), value.as_str()))
        })
        .collect();
    found.sort();
    let mut settings = Vec::new();
    for (_, key, variable, value) in found {
        let at = Place { source: first + settings.len(), line: 0 };
        let node = node_of(&key, value, at).map_err(|problem| {
            Problem::unplaced(key.clone(), format!("{variable}: {}", problem.text))
        })?;
        settings.push(Setting { variable: variable.to_owned(), key, node });
    }
    Ok(settings)
}

fn node_of(key: &str, value: &str, at: Place) -> Result<Node, Problem> {
    let Some((_, mapping)) = STRUCTURED.iter().find(|(known, _)| *known == key) else {
        return Ok(Node { at, kind: Kind::Text(value.to_owned()) });
    };
    let bare = *mapping && !value.trim_start().starts_with('{');
    // A format is a list of fields only where it looks like one.
    if !*mapping && !value.trim_start().starts_with('[') {
        return Ok(Node { at, kind: Kind::Text(value.to_owned()) });
    }
    let text = if bare { format!("{{{value}}}") } else { value.to_owned() };
    Node::from_yaml(&text, at.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_keys() {
        for (variable, key) in [
            ("PATRONI_SCOPE", "scope"),
            ("PATRONI_ETCD3_HOSTS", "etcd3.hosts"),
            ("PATRONI_RESTAPI_PASSWORD", "restapi.authentication.password"),
            ("PATRONI_RESTAPI_KEYFILE_PASSWORD", "restapi.keyfile_password"),
            ("PATRONI_POSTGRESQL_BIN_DIR", "postgresql.bin_dir"),
            ("PATRONI_POSTGRESQL_BIN_PG_CTL", "postgresql.bin_name.pg_ctl"),
            ("PATRONI_REWIND_SSLMODE", "postgresql.authentication.rewind.sslmode"),
            ("PATRONI_LOGLEVEL", "log.level"),
            ("PATRONI_KUBERNETES_LABELS", "kubernetes"),
        ] {
            assert_eq!(key_of(variable).map(|(key, _)| key).as_deref(), Some(key), "{variable}");
        }
        for foreign in ["PATRONI_TAGS", "PATRONI_", "PATH", "PATRONI_ETCD3_NONE"] {
            assert_eq!(key_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn every_variable_names_a_key_that_is_known() {
        for section in SECTIONS {
            for name in section.names {
                let path = format!("{}{}", section.path, name.to_ascii_lowercase());
                let known = |key: &crate::keys::Key| {
                    path == key.path || path.starts_with(&format!("{}.", key.path))
                };
                assert!(crate::keys::STATIC.iter().any(known), "{path}");
            }
        }
    }
}
