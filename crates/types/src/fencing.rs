//! Whether the voters could fence the present leader without waiting for its lease.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::names::MemberName;
use crate::records::Term;
use crate::view::ClusterView;

/// Why a failover of the present leader waits for its lease, whatever the settings wish.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unfenced {
    /// There is no leader key.
    NoLeader,
    /// A member of Patroni leads, which does not learn of a fence.
    PatroniLeads,
    /// Without synchronous replication commits need no standby, so no standby can hold them up.
    NotSynchronous,
    /// The synchronous set is not the leader's (yet).
    SetOfAnother,
    /// This voter is a member of Patroni and does not pledge.
    PatroniVotes(MemberName),
    /// Fewer voters are there than an election needs.
    TooFewVoters {
        /// How many are there.
        present: usize,
        /// How many are needed.
        needed: usize,
    },
}

impl std::fmt::Display for Unfenced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unfenced::NoLeader => f.write_str("there is no leader"),
            Unfenced::PatroniLeads => f.write_str("the leader is a member of Patroni"),
            Unfenced::NotSynchronous => f.write_str("replication is not synchronous"),
            Unfenced::SetOfAnother => f.write_str("the synchronous set is not the leader's yet"),
            Unfenced::PatroniVotes(name) => {
                write!(f, "{name} is a member of Patroni and does not pledge")
            }
            Unfenced::TooFewVoters { present, needed } => {
                write!(f, "{needed} synchronous standbys are needed, {present} present")
            }
        }
    }
}

impl ClusterView {
    /// What keeps the voters from fencing the present leader; `None` if enough of them could.
    #[must_use]
    pub fn unfenced(&self) -> Option<Unfenced> {
        let Some(leader) = self.leader_name() else {
            return Some(Unfenced::NoLeader);
        };
        if self.leader_term().unwrap_or_default() == Term(0) {
            return Some(Unfenced::PatroniLeads);
        }
        let Some(sync) = self.active_sync().map(|s| &s.value) else {
            return Some(Unfenced::NotSynchronous);
        };
        if sync.leader.as_ref() != Some(leader) {
            return Some(Unfenced::SetOfAnother);
        }
        let present: BTreeSet<&MemberName> =
            sync.voters.iter().filter(|name| self.members.contains_key(*name)).collect();
        let patroni = |name: &&&MemberName| self.member(name).is_some_and(|m| m.pgherd.is_none());
        if let Some(name) = present.iter().find(patroni) {
            return Some(Unfenced::PatroniVotes((*name).clone()));
        }
        let needed = sync.quorum + 1;
        (present.len() < needed)
            .then_some(Unfenced::TooFewVoters { present: present.len(), needed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Revision;
    use crate::view::KeyValue;

    const OURS: &str = r#"{"state":"running","role":"replica","pgherd":"1"}"#;
    const PATRONI: &str = r#"{"state":"running","role":"replica"}"#;

    fn unfenced(term_at: i64, keys: &[(&str, &str)]) -> Option<Unfenced> {
        let term = r#"{"term":4,"leader":"a","timeline":2}"#;
        let all = keys.iter().copied().chain([("pgherd/term", term)]);
        let keys: Vec<KeyValue> = all
            .map(|(key, value)| KeyValue {
                key: key.to_owned(),
                value: value.as_bytes().to_vec(),
                create_revision: Revision(1),
                mod_revision: Revision(if key == "pgherd/term" { term_at } else { 10 }),
                lease: 1,
            })
            .collect();
        ClusterView::from_keys(Revision(20), &keys).unfenced()
    }

    #[test]
    fn enough_voters_of_ours_can_fence_a_leader_of_ours() {
        let leader = ("leader", "a");
        let sync = ("sync", r#"{"leader":"a","quorum":1,"sync_standby":"b,c"}"#);
        let (b, c) = (("members/b", OURS), ("members/c", OURS));
        assert_eq!(unfenced(10, &[leader, sync, b, c]), None);
        assert_eq!(unfenced(10, &[sync, b, c]), Some(Unfenced::NoLeader));
        assert_eq!(unfenced(9, &[leader, sync, b, c]), Some(Unfenced::PatroniLeads));
        assert_eq!(unfenced(10, &[leader, b, c]), Some(Unfenced::NotSynchronous));
        let other = ("sync", r#"{"leader":"b","quorum":1,"sync_standby":"b,c"}"#);
        assert_eq!(unfenced(10, &[leader, other, b, c]), Some(Unfenced::SetOfAnother));
        let patroni = ("members/c", PATRONI);
        let votes = Some(Unfenced::PatroniVotes("c".into()));
        assert_eq!(unfenced(10, &[leader, sync, b, patroni]), votes);
        let few = Some(Unfenced::TooFewVoters { present: 1, needed: 2 });
        assert_eq!(unfenced(10, &[leader, sync, b]), few);
    }
}
