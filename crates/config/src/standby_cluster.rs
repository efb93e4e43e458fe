//! `standby_cluster` of the dynamic configuration: the whole cluster follows a remote node (as
//! Patroni 4.1 has it).

use types::Upstream;

use crate::tree::{Kind, Node};
use crate::values;

const PORT_DEFAULT: u16 = 5432;
const HOST_DEFAULT: &str = "localhost";

/// `standby_cluster`, if it names anything to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyCluster {
    /// The remote node, or only its archive.
    pub remote: Upstream,
    /// The slot that the standby leader uses at the remote node.
    pub primary_slot_name: Option<String>,
    /// How WAL is taken from an archive.
    pub restore_command: Option<String>,
    /// What clears that archive.
    pub archive_cleanup_command: Option<String>,
    /// How far the standby leader stays behind.
    pub recovery_min_apply_delay: Option<String>,
    /// How a first copy is made; empty for the node's own methods.
    pub create_replica_methods: Vec<String>,
}

impl StandbyCluster {
    /// Reads the section; `None` where neither host, port nor restore_command is given.
    pub(crate) fn read(tree: &Node) -> Option<StandbyCluster> {
        let node = |key: &str| tree.at(&format!("standby_cluster.{key}"));
        let text = |key: &str| node(key).and_then(values::text).filter(|text| !text.is_empty());
        let (host, port) = (text("host"), node("port").and_then(values::integer));
        let restore_command = text("restore_command");
        let streams = host.is_some() || port.is_some();
        if !streams && restore_command.is_none() {
            return None;
        }
        let remote = if streams {
            let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT_DEFAULT);
            Upstream::remote(host.as_deref().unwrap_or(HOST_DEFAULT), port)
        } else {
            Upstream::archive()
        };
        let methods = node("create_replica_methods").and_then(|node| match node.kind {
            Kind::Null => None,
            _ => values::comma_list(node),
        });
        Some(StandbyCluster {
            remote,
            primary_slot_name: text("primary_slot_name"),
            restore_command,
            archive_cleanup_command: text("archive_cleanup_command"),
            recovery_min_apply_delay: text("recovery_min_apply_delay"),
            create_replica_methods: methods.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(section: &serde_json::Value) -> Option<StandbyCluster> {
        StandbyCluster::read(&Node::from_json(&json!({ "standby_cluster": section })))
    }

    #[test]
    fn a_section_that_names_nothing_is_none() {
        for section in [json!(null), json!({}), json!({"host": "", "primary_slot_name": "x"})] {
            assert_eq!(read(&section), None, "{section}");
        }
    }

    #[test]
    fn a_remote_node_or_an_archive_is_followed() {
        let node = read(&json!({"host": "h", "port": "5433", "create_replica_methods": "a, b"}))
            .expect("a node");
        assert_eq!(node.remote, Upstream::remote("h", 5433));
        assert_eq!(node.create_replica_methods, ["a", "b"]);
        let port = read(&json!({"port": 6000})).expect("a node");
        assert_eq!((port.remote.host.as_str(), port.remote.port), ("localhost", 6000));
        let archive = read(&json!({"restore_command": "cp /a/%f %p"})).expect("an archive");
        assert!(archive.remote.is_archive());
    }
}
