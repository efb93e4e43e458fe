//! Settings of PostgreSQL that hold in one role alone: `parameters_<role>`, `pg_hba_<role>` and
//! `pg_ident_<role>` (as Patroni 4.1 has it).

use std::collections::BTreeMap;

use crate::dynamic::{DynamicPostgresql, parameters};
use crate::parameters::is_reserved;
use crate::tree::Node;
use crate::values;

/// The roles that settings may be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeRole {
    /// It accepts writes.
    Primary,
    /// It follows a member.
    Replica,
    /// It leads a standby cluster.
    StandbyLeader,
}

impl NodeRole {
    /// All of them.
    pub const ALL: [NodeRole; 3] = [NodeRole::Primary, NodeRole::Replica, NodeRole::StandbyLeader];

    /// What a key ends with.
    const fn suffix(self) -> &'static str {
        match self {
            NodeRole::Primary => "primary",
            NodeRole::Replica => "replica",
            NodeRole::StandbyLeader => "standby_leader",
        }
    }
}

/// What holds in one role; `None` where a document says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoleSettings {
    /// Laid over the parameters of all roles.
    pub parameters: Option<BTreeMap<String, String>>,
    /// Instead of the lines of all roles.
    pub pg_hba: Option<Vec<String>>,
    /// Instead of the lines of all roles.
    pub pg_ident: Option<Vec<String>>,
}

/// The settings of each role that has any.
pub type ByRole = BTreeMap<NodeRole, RoleSettings>;

/// Reads them of a document.
pub(crate) fn read(tree: &Node) -> ByRole {
    let settings = |role: NodeRole| {
        let key = |name: &str| format!("postgresql.{name}_{}", role.suffix());
        let lines = |name: &str| tree.at(&key(name)).and_then(values::line_list);
        let path = key("parameters");
        RoleSettings {
            parameters: tree.at(&path).map(|_| parameters(tree, &path)),
            pg_hba: lines("pg_hba"),
            pg_ident: lines("pg_ident"),
        }
    };
    let all = NodeRole::ALL.into_iter().map(|role| (role, settings(role)));
    all.filter(|(_, settings)| *settings != RoleSettings::default()).collect()
}

/// A node's own settings over those of the dynamic configuration, key by key.
pub(crate) fn over(own: &ByRole, shared: &ByRole) -> ByRole {
    let mut merged = shared.clone();
    for (role, own) in own {
        let place = merged.entry(*role).or_default();
        let RoleSettings { parameters, pg_hba, pg_ident } = own.clone();
        place.parameters = parameters.or_else(|| place.parameters.take());
        place.pg_hba = pg_hba.or_else(|| place.pg_hba.take());
        place.pg_ident = pg_ident.or_else(|| place.pg_ident.take());
    }
    merged
}

impl DynamicPostgresql {
    /// These settings, merged before, as they are in a role; `None`: as long as it is not known.
    /// What every member must agree on stays as it is.
    #[must_use]
    pub fn in_role(&self, role: Option<NodeRole>) -> DynamicPostgresql {
        let mut all = self.clone();
        let Some(settings) = role.and_then(|role| self.hooks.by_role.get(&role)) else {
            return all;
        };
        let own = settings.parameters.iter().flatten();
        for (name, value) in own.filter(|(name, _)| !is_reserved(name)) {
            all.parameters.insert(name.clone(), value.clone());
        }
        all.pg_hba = settings.pg_hba.clone().or(all.pg_hba);
        all.pg_ident = settings.pg_ident.clone().or(all.pg_ident);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        Node::from_yaml(text, 0).expect("valid YAML")
    }

    fn both(own: &str, shared: &str) -> DynamicPostgresql {
        let mut all = DynamicPostgresql::default();
        all.parameters.insert("work_mem".to_owned(), "4MB".to_owned());
        all.pg_hba = Some(vec!["all".to_owned()]);
        all.hooks.by_role = over(&read(&tree(own)), &read(&tree(shared)));
        all
    }

    #[test]
    fn a_roles_settings_go_before_those_of_all() {
        let all = both(
            "postgresql:\n  pg_hba_replica: [mine]\n",
            "postgresql:\n  parameters_primary: {work_mem: 8MB, max_connections: 9, jit: off}\n  \
             pg_hba_replica: [theirs]\n  parameters_replica: {work_mem: 1MB}\n",
        );
        let primary = all.in_role(Some(NodeRole::Primary));
        assert_eq!(primary.parameters["work_mem"], "8MB");
        assert_eq!(primary.parameters["jit"], "off");
        assert!(!primary.parameters.contains_key("max_connections"), "all must agree on it");
        assert_eq!(primary.pg_hba, Some(vec!["all".to_owned()]));
        let replica = all.in_role(Some(NodeRole::Replica));
        assert_eq!(replica.parameters["work_mem"], "1MB");
        assert_eq!(replica.pg_hba, Some(vec!["mine".to_owned()]));
        for unsaid in [Some(NodeRole::StandbyLeader), None] {
            assert_eq!(all.in_role(unsaid), all);
        }
    }

    #[test]
    fn a_nodes_own_parameters_replace_those_of_the_dynamic_configuration() {
        let all = both(
            "postgresql:\n  parameters_standby_leader: {jit: on}\n",
            "postgresql:\n  parameters_standby_leader: {work_mem: 8MB}\n",
        );
        let leader = all.in_role(Some(NodeRole::StandbyLeader));
        assert_eq!(
            (leader.parameters["work_mem"].as_str(), leader.parameters["jit"].as_str()),
            ("4MB", "on")
        );
    }
}
