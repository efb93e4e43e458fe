//! Who may know whom: the one place where the allowed edges between crates stand.
//!
//! Normal and build dependencies are checked as written here. A dev-dependency may add `lab` (real
//! clusters for tests) and any crate from outside.

use anyhow::Context;
use serde_json::Value;

/// One crate of the workspace.
struct Crate {
    name: &'static str,
    /// Pure: no tokio, no I/O, no clock, no randomness, no logging.
    pure: bool,
    /// Crates of the workspace that it may depend on.
    may: &'static [&'static str],
}

const fn pure_crate(name: &'static str, may: &'static [&'static str]) -> Crate {
    Crate { name, pure: true, may }
}

const fn shell(name: &'static str, may: &'static [&'static str]) -> Crate {
    Crate { name, pure: false, may }
}

/// The table. A new crate gets a line here first.
const CRATES: [Crate; 20] = [
    pure_crate("types", &[]),
    pure_crate("config", &["types"]),
    pure_crate("decide", &["types", "config"]),
    pure_crate("kv", &["types"]),
    pure_crate("pgproto", &["types"]),
    pure_crate("route", &["types", "pgproto"]),
    shell("tls", &[]),
    shell("etcd-proto", &[]),
    shell("dcs", &["types", "etcd-proto", "tls"]),
    shell("consensus", &["kv", "etcd-proto", "api"]),
    shell("postgres", &["types", "pgproto", "tls"]),
    shell("guard", &[]),
    shell("agent", &["types", "decide", "config", "dcs", "postgres", "api", "guard", "tls"]),
    shell("proxy", &["types", "route", "pgproto", "dcs", "config", "api", "tls"]),
    shell("api", &["types", "config", "tls"]),
    shell(
        "cli",
        &[
            "types",
            "config",
            "decide",
            "kv",
            "pgproto",
            "route",
            "etcd-proto",
            "dcs",
            "consensus",
            "postgres",
            "guard",
            "agent",
            "proxy",
            "api",
            "tls",
            "lab",
        ],
    ),
    shell("sim", &["types", "config", "decide", "kv", "pgproto", "route"]),
    shell("lab", &["types", "config"]),
    shell("bench", &["lab", "types"]),
    shell("xtask", &[]),
];

/// What a pure crate may use from outside: data and arithmetic. A crate that does I/O, reads a
/// clock or draws random numbers never comes onto this list.
const PURE_OUTSIDE: [&str; 14] = [
    "base64",
    "bytes",
    "hmac",
    "md-5",
    "memchr",
    "serde",
    "serde-saphyr",
    "serde_json",
    "sha2",
    "shlex",
    "stringprep",
    "subtle",
    "thiserror",
    "zeroize",
];

/// Crates from outside that only the named crates may use, so that a swap stays local.
const RESERVED: [(&str, &[&str]); 8] = [
    ("tonic", &["etcd-proto", "dcs", "consensus"]),
    ("tonic-prost", &["etcd-proto", "consensus"]),
    ("rustls", &["tls"]),
    ("tokio-rustls", &["tls"]),
    ("openraft", &["consensus"]),
    ("redb", &["consensus"]),
    ("tokio-postgres", &["postgres", "lab", "bench"]),
    ("stateright", &["sim"]),
];

/// The pure crates' names.
pub(super) fn pure() -> impl Iterator<Item = &'static str> {
    CRATES.iter().filter(|krate| krate.pure).map(|krate| krate.name)
}

/// Findings in the output of `cargo metadata`.
///
/// # Errors
/// If it does not look like cargo's.
pub(super) fn check(metadata: &Value) -> anyhow::Result<Vec<String>> {
    let mut findings = Vec::new();
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        let Some(krate) = CRATES.iter().find(|krate| krate.name == name) else {
            findings.push(format!(
                "crates/{name}: not in the table of crates; decide who may know whom first"
            ));
            continue;
        };
        let dependencies = package["dependencies"].as_array().context("no dependencies")?;
        for dependency in dependencies {
            let other = dependency["name"].as_str().context("a dependency without a name")?;
            let is_ours = dependency["path"].is_string();
            let is_dev = dependency["kind"].as_str() == Some("dev");
            findings.extend(check_edge(krate, other, is_ours, is_dev));
        }
    }
    Ok(findings)
}

fn check_edge(krate: &Crate, other: &str, is_ours: bool, is_dev: bool) -> Option<String> {
    let name = krate.name;
    if is_ours {
        let allowed = krate.may.contains(&other) || (is_dev && other == "lab");
        return (!allowed).then(|| {
            format!(
                "crates/{name}/Cargo.toml: `{name}` may not depend on `{other}`, only on: {}",
                if krate.may.is_empty() { "none".to_owned() } else { krate.may.join(", ") }
            )
        });
    }
    if is_dev {
        return None;
    }
    if krate.pure && !PURE_OUTSIDE.contains(&other) {
        return Some(format!(
            "crates/{name}/Cargo.toml: `{name}` is pure and may not use `{other}`"
        ));
    }
    let reserved = RESERVED.iter().find(|(reserved, _)| *reserved == other)?;
    let (_, users) = reserved;
    (!users.contains(&name))
        .then(|| format!("crates/{name}/Cargo.toml: only {} may use `{other}`", users.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(package: &str, dependency: &str, path: bool, kind: Option<&str>) -> usize {
        let path = path.then(|| format!("crates/{dependency}"));
        let metadata = serde_json::json!({"packages": [{"name": package, "dependencies": [
            {"name": dependency, "kind": kind, "path": path}
        ]}]});
        check(&metadata).expect("well-formed").len()
    }

    #[test]
    fn edges_outside_the_table_are_found() {
        assert_eq!(findings("decide", "types", true, None), 0);
        assert_eq!(findings("decide", "dcs", true, None), 1);
        assert_eq!(findings("types", "decide", true, None), 1);
        assert_eq!(findings("unknown", "types", true, None), 1);
    }

    #[test]
    fn dev_dependencies_may_add_the_lab() {
        assert_eq!(findings("agent", "lab", true, Some("dev")), 0);
        assert_eq!(findings("agent", "lab", true, None), 1);
        assert_eq!(findings("decide", "tempfile", false, Some("dev")), 0);
        assert_eq!(findings("decide", "sim", true, Some("dev")), 1);
    }

    #[test]
    fn pure_crates_take_only_data_and_arithmetic_from_outside() {
        assert_eq!(findings("decide", "serde", false, None), 0);
        assert_eq!(findings("decide", "tokio", false, None), 1);
        assert_eq!(findings("agent", "tokio", false, None), 0);
    }

    #[test]
    fn reserved_crates_stay_where_they_are() {
        assert_eq!(findings("dcs", "tonic", false, None), 0);
        assert_eq!(findings("agent", "tonic", false, None), 1);
    }

    #[test]
    fn the_table_names_only_crates_of_the_table_and_has_no_cycle() {
        // Each crate's edges lead to crates that are done when those before them are: repeat until
        // nothing is left, at most once a crate.
        let mut done: Vec<&str> = Vec::new();
        for _ in 0..CRATES.len() {
            for krate in &CRATES {
                let ready = krate.may.iter().all(|other| done.contains(other));
                if ready && !done.contains(&krate.name) {
                    done.push(krate.name);
                }
            }
        }
        assert_eq!(done.len(), CRATES.len(), "unknown name or cycle; fine: {done:?}");
        for krate in CRATES.iter().filter(|krate| krate.pure) {
            assert!(krate.may.iter().all(|other| pure().any(|name| name == *other)));
        }
    }
}
