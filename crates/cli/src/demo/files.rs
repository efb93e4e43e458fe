//! The files of a demo: configurations, and `demo.json`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::layout::{Kept, Layout, NAMESPACE, NodePlan, OS_USER};
use super::yaml;

/// `demo.json`: what runs where, kept current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DemoFile {
    /// The demo itself, which is the service manager.
    pub pid: u32,
    /// The cluster's name.
    pub scope: String,
    /// etcd's endpoints.
    pub dcs: Vec<String>,
    /// The processes of the demo's own etcd.
    pub dcs_pids: Vec<Option<u32>>,
    /// The proxy.
    pub proxy_pid: Option<u32>,
    /// Where the proxy has its metrics and health checks.
    pub proxy_url: String,
    /// Connection string of the read-write port.
    pub read_write: String,
    /// Connection string of the read-only port.
    pub read_only: String,
    /// The nodes.
    pub nodes: Vec<NodeFile>,
}

/// One node in `demo.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeFile {
    /// The member's name.
    pub name: String,
    /// Its agent.
    pub agent_pid: Option<u32>,
    /// Its guard.
    pub guard_pid: Option<u32>,
    /// Its postmaster.
    pub postmaster_pid: Option<u32>,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its PostgreSQL's port.
    pub pg_port: u16,
    /// Its REST API.
    pub rest_url: String,
    /// Its configuration file.
    pub config: PathBuf,
}

/// Where `demo.json` is.
pub(super) fn demo_file(dir: &Path) -> PathBuf {
    dir.join("demo.json")
}

/// Writes a file that only its owner may read, whole or not at all.
pub(super) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the directories and writes the configurations.
pub(super) fn prepare(layout: &Layout) -> anyhow::Result<()> {
    directory(&layout.dir, 0o755, None)?;
    super::layout::write_kept(layout)?;
    for member in &layout.etcd {
        directory(&member.data_dir, 0o700, None)?;
    }
    for node in &layout.nodes {
        directory(&node.directory, 0o700, layout.owner)?;
        directory(&node.socket_dir(), 0o700, layout.owner)?;
        write_private(&node.config, &yaml::document(&node_config(layout, node)))?;
    }
    write_private(&layout.proxy_config(), &yaml::document(&proxy_config(layout)))
}

/// Makes a directory unless it is there.
fn directory(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> anyhow::Result<()> {
    let make = || -> std::io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        match owner {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    };
    make().with_context(|| format!("cannot make the directory {}", path.display()))
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn node_config(layout: &Layout, node: &NodePlan) -> Value {
    let mut config = json!({
        "scope": layout.kept.scope,
        "namespace": NAMESPACE,
        "name": node.name,
        // Its own way to etcd, which the drill can cut.
        "etcd3": {
            "hosts": node.etcd_relay_ports.iter().map(|port| local(*port)).collect::<Vec<_>>(),
        },
        // Several nodes share this machine, and a killed agent must not reset it.
        "watchdog": {"mode": "off"},
        "restapi": {
            "listen": local(node.rest_port),
            "connect_address": local(node.rest_relay_port),
        },
        "bootstrap": {
            "dcs": layout.dynamic,
            "initdb": lab::cluster::initdb(),
        },
        "postgresql": postgresql(layout, node),
        "pgherd": { "state_dir": node.state_dir() },
    });
    if layout.owner.is_some() {
        config["pgherd"]["os_user"] = json!(OS_USER);
    }
    if node.dr {
        config["tags"] = json!({"nofailover": true, "nosync": true, "noloadbalance": true});
    }
    config
}

fn postgresql(layout: &Layout, node: &NodePlan) -> Value {
    let Kept { superuser_password, replication_password, rewind_password, .. } = &layout.kept;
    json!({
        "listen": local(node.pg_port),
        "connect_address": local(node.pg_relay_port),
        "data_dir": node.data_dir(),
        "bin_dir": layout.bin_dir,
        "pgpass": node.directory.join("pgpass"),
        "use_unix_socket": true,
        "authentication": {
            "superuser": {"username": "postgres", "password": superuser_password},
            "replication": {"username": "replicator", "password": replication_password},
            "rewind": {"username": "rewinder", "password": rewind_password},
        },
        "parameters": {"unix_socket_directories": node.socket_dir()},
        "pg_hba": [
            "local all all scram-sha-256",
            "host replication replicator 127.0.0.1/32 scram-sha-256",
            "host all all 127.0.0.1/32 scram-sha-256",
        ],
    })
}

fn proxy_config(layout: &Layout) -> Value {
    json!({
        "scope": layout.kept.scope,
        "namespace": NAMESPACE,
        "etcd3": {"hosts": layout.endpoints},
        "pgherd": {
            "proxy": {
                "name": "proxy1",
                "read_write": local(layout.read_write_port()),
                "read_only": local(layout.read_only_port()),
                "http": local(layout.proxy_http_port()),
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use config::Sources;

    use super::*;

    fn layout() -> Layout {
        let node = |name: &str, dr| NodePlan {
            name: name.to_owned(),
            dr,
            directory: PathBuf::from("/d").join(name),
            volume: false,
            pg_port: 1,
            rest_port: 2,
            pg_relay_port: 3,
            rest_relay_port: 4,
            etcd_relay_ports: vec![5, 6, 7],
            config: PathBuf::from("/d").join(format!("{name}.yml")),
        };
        Layout {
            dir: "/d".into(),
            temporary: false,
            reused: false,
            no_volumes: None,
            dynamic: lab::cluster::dynamic(10, None),
            kept: Kept {
                scope: "demo".into(),
                base_port: 100,
                dcs: vec![],
                volumes: false,
                superuser_password: "0123".into(),
                replication_password: "4567".into(),
                rewind_password: "89ab".into(),
            },
            etcd: vec![],
            endpoints: vec![local(8)],
            nodes: vec![node("node1", false), node("dr1", true)],
            owner: Some((101, 102)),
            bin_dir: "/b".into(),
            etcd_program: None,
            own_program: "/p".into(),
        }
    }

    #[test]
    fn a_node_reaches_etcd_and_is_reached_through_its_relays() {
        let layout = layout();
        let text = yaml::document(&node_config(&layout, &layout.nodes[0]));
        for line in [
            "  hosts:\n    - \"127.0.0.1:5\"\n",
            "  listen: \"127.0.0.1:1\"\n  connect_address: \"127.0.0.1:3\"\n",
            "  listen: \"127.0.0.1:2\"\n  connect_address: \"127.0.0.1:4\"\n",
            "  os_user: \"postgres\"\n",
            "      password: \"0123\"\n",
            "    synchronous_mode: \"quorum\"\n",
            "      remove_data_directory_on_rewind_failure: true\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("tags"));
        let dr = yaml::document(&node_config(&layout, &layout.nodes[1]));
        assert!(dr.contains("tags:\n  nofailover: true\n  nosync: true\n  noloadbalance: true\n"));
    }

    #[test]
    fn what_is_written_is_what_the_programs_read() {
        let layout = layout();
        for node in &layout.nodes {
            let text = yaml::document(&node_config(&layout, node));
            let (_, warnings) =
                config::Static::read(&Sources::default().with_file("node.yml", text))
                    .expect("it is valid");
            assert!(warnings.is_empty(), "{warnings:?}");
        }
        let text = yaml::document(&proxy_config(&layout));
        let (_, warnings) =
            config::Static::read_proxy(&Sources::default().with_file("proxy.yml", text))
                .expect("it is valid");
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn the_proxy_goes_to_etcd_itself() {
        let text = yaml::document(&proxy_config(&layout()));
        assert!(text.contains("    - \"127.0.0.1:8\"\n"), "{text}");
        assert!(text.contains("    read_write: \"127.0.0.1:100\"\n"), "{text}");
        assert!(text.contains("    read_only: \"127.0.0.1:101\"\n"), "{text}");
        assert!(text.contains("    http: \"127.0.0.1:108\"\n"), "{text}");
    }

    #[test]
    fn private_files_are_private_and_replaced_whole() {
        let path = std::env::temp_dir().join(format!("pgherd-files-{}.json", std::process::id()));
        write_private(&path, "one").expect("it is ours");
        write_private(&path, "two").expect("it is ours");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "two");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(&path).expect("it is ours");
    }
}
