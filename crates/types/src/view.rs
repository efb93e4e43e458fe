//! The whole of what the DCS says about one cluster, at one revision.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::keys;
use crate::names::MemberName;
use crate::records::{
    FailoverRequest, Fence, HistoryEntry, HoldRecord, LeaderKey, Member, Pledge, ProxyRecord,
    Revision, Status, SyncState, Term, TermRecord,
};

/// One key as the store holds it. `key` is below the cluster's prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, below the prefix.
    pub key: String,
    /// The raw value.
    pub value: Vec<u8>,
    /// When the key was created.
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
}

/// A decoded value with the revisions that compare-and-set needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Versioned<T> {
    /// The decoded value.
    pub value: T,
    /// When the key was created.
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
    /// The lease it hangs on; 0 for none.
    pub lease: i64,
}

/// A consistent view of the cluster's keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterView {
    /// The store that the revisions are of, by etcd's cluster id; 0 if unknown. Those of another
    /// store cannot be compared with them.
    pub store: u64,
    /// The store's revision at which the view is exact.
    pub revision: Revision,
    /// `leader`.
    pub leader: Option<Versioned<LeaderKey>>,
    /// `members/…`.
    pub members: BTreeMap<MemberName, Versioned<Member>>,
    /// `initialize`: empty while somebody bootstraps, then the system identifier.
    pub initialize: Option<Versioned<String>>,
    /// `config`, if it is a JSON object.
    pub config: Option<Versioned<Value>>,
    /// `status`.
    pub status: Option<Versioned<Status>>,
    /// `history`.
    pub history: Option<Versioned<Vec<HistoryEntry>>>,
    /// `failover`; `None` inside for an idle `{}`.
    pub failover: Option<Versioned<Option<FailoverRequest>>>,
    /// `sync`.
    pub sync: Option<Versioned<SyncState>>,
    /// `failsafe`: who must agree before a leader goes on without the DCS, with REST addresses.
    pub failsafe: Option<Versioned<BTreeMap<MemberName, String>>>,
    /// `pgherd/term`.
    pub term: Option<Versioned<TermRecord>>,
    /// `pgherd/fence`.
    pub fence: Option<Versioned<Fence>>,
    /// `pgherd/pledges/…`.
    pub pledges: BTreeMap<MemberName, Versioned<Pledge>>,
    /// `pgherd/hold`, whoever wrote it; [`ClusterView::active_hold`] is the one that counts.
    pub hold: Option<Versioned<HoldRecord>>,
    /// `pgherd/proxies/…`, by the proxies' ids.
    pub proxies: BTreeMap<String, Versioned<ProxyRecord>>,
}

impl ClusterView {
    /// Builds a view from every key below the prefix. Keys that nobody knows are ignored; values
    /// that do not decode count as absent, so that one bad key cannot stop the cluster.
    #[must_use]
    pub fn from_keys<'a>(
        revision: Revision,
        keys: impl IntoIterator<Item = &'a KeyValue>,
    ) -> ClusterView {
        let mut view = ClusterView { revision, ..ClusterView::default() };
        for key in keys {
            view.insert(key);
        }
        view
    }

    fn insert(&mut self, kv: &KeyValue) {
        let Ok(text) = std::str::from_utf8(&kv.value) else {
            return;
        };
        match kv.key.as_str() {
            keys::LEADER => {
                let name = MemberName::from(text);
                self.leader = Some(versioned(kv, LeaderKey { name, lease: kv.lease }));
            }
            keys::INITIALIZE => self.initialize = Some(versioned(kv, text.trim().to_owned())),
            keys::CONFIG => {
                let value = serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
                self.config = value.map(|v| versioned(kv, v));
            }
            keys::STATUS => self.status = Some(versioned(kv, Status::parse(text))),
            keys::HISTORY => {
                self.history = serde_json::from_str(text).ok().map(|v| versioned(kv, v));
            }
            keys::FAILOVER => self.failover = Some(versioned(kv, FailoverRequest::parse(text))),
            keys::SYNC => self.sync = Some(versioned(kv, SyncState::parse(text))),
            keys::FAILSAFE => {
                self.failsafe = serde_json::from_str(text).ok().map(|v| versioned(kv, v));
            }
            keys::TERM => self.term = serde_json::from_str(text).ok().map(|v| versioned(kv, v)),
            keys::FENCE => self.fence = serde_json::from_str(text).ok().map(|v| versioned(kv, v)),
            keys::HOLD => self.hold = serde_json::from_str(text).ok().map(|v| versioned(kv, v)),
            other => self.insert_named(other, kv, text),
        }
    }

    fn insert_named(&mut self, key: &str, kv: &KeyValue, text: &str) {
        if let Some(name) = key.strip_prefix(keys::MEMBERS) {
            let member = versioned(kv, Member::parse(text));
            self.members.insert(MemberName::from(name), member);
        } else if let Some(name) = key.strip_prefix(keys::PLEDGES)
            && let Ok(pledge) = serde_json::from_str::<Pledge>(text)
        {
            self.pledges.insert(MemberName::from(name), versioned(kv, pledge));
        } else if let Some(id) = key.strip_prefix(keys::PROXIES)
            && let Ok(proxy) = serde_json::from_str::<ProxyRecord>(text)
        {
            self.proxies.insert(id.to_owned(), versioned(kv, proxy));
        }
    }

    /// The leader's name, if there is a leader key.
    #[must_use]
    pub fn leader_name(&self) -> Option<&MemberName> {
        self.leader.as_ref().map(|l| &l.value.name)
    }

    /// The newest term that the view speaks of. The term record outlives the leader key.
    #[must_use]
    pub fn newest_term(&self) -> Term {
        let recorded = self.term.as_ref().map_or(Term(0), |record| record.value.term);
        recorded.max(self.leader_term().unwrap_or(Term(0)))
    }

    /// The term of the present leader key: `None` without one, `Term(0)` if a Patroni node holds it
    /// (the term record was not written by the transaction that wrote the key).
    #[must_use]
    pub fn leader_term(&self) -> Option<Term> {
        let leader = self.leader.as_ref()?;
        let known = self.term.as_ref().filter(|t| t.mod_revision == leader.mod_revision);
        Some(known.map_or(Term(0), |t| t.value.term))
    }

    /// The hold that proxies follow: one that the present leader has written since it leads. What
    /// a former leader left under a lease that still lives is none.
    #[must_use]
    pub fn active_hold(&self) -> Option<&Versioned<HoldRecord>> {
        let leader = self.leader.as_ref()?;
        let by_leader = |hold: &&Versioned<HoldRecord>| {
            hold.lease == leader.lease && hold.mod_revision > leader.mod_revision
        };
        self.hold.as_ref().filter(by_leader)
    }

    /// The synchronous state, if it is active (names a leader).
    #[must_use]
    pub fn active_sync(&self) -> Option<&Versioned<SyncState>> {
        self.sync.as_ref().filter(|s| s.value.leader.is_some())
    }

    /// Who could take over from `leader` now without loss: with synchronous replication the voters
    /// that are fit and may lead, if enough of them are fit for an election; else every other
    /// member that is.
    #[must_use]
    pub fn successors(&self, leader: &MemberName) -> BTreeSet<MemberName> {
        let fit = self.members.iter().filter(|(name, m)| *name != leader && m.value.is_fit());
        let may_lead = |name: &&MemberName| self.member(name).is_some_and(|m| m.tags.may_lead());
        let Some(sync) = self.active_sync() else {
            return fit.map(|(name, _)| name).filter(may_lead).cloned().collect();
        };
        let voters = fit.map(|(name, _)| name).filter(|name| sync.value.voters.contains(*name));
        let voters: Vec<&MemberName> = voters.collect();
        if voters.len() <= sync.value.quorum {
            return BTreeSet::new();
        }
        voters.into_iter().filter(may_lead).cloned().collect()
    }

    /// The pending request of an operator, if any.
    #[must_use]
    pub fn failover_request(&self) -> Option<&FailoverRequest> {
        self.failover.as_ref()?.value.as_ref()
    }

    /// The cluster's system identifier, once a bootstrap has finished.
    #[must_use]
    pub fn system_identifier(&self) -> Option<&str> {
        let text = self.initialize.as_ref()?.value.as_str();
        let valid = text.len() >= 10 && text.bytes().all(|b| b.is_ascii_digit());
        valid.then_some(text)
    }

    /// The member of that name.
    #[must_use]
    pub fn member(&self, name: &MemberName) -> Option<&Member> {
        self.members.get(name).map(|m| &m.value)
    }

    /// Since when the key of that member has been there with just this value, under this lease.
    /// `None` if it has to be written.
    #[must_use]
    pub fn shows_member(&self, name: &MemberName, member: &Member, lease: i64) -> Option<Revision> {
        let there = self.members.get(name).filter(|m| m.lease == lease && m.value == *member);
        there.map(|m| m.mod_revision)
    }
}

fn versioned<T>(kv: &KeyValue, value: T) -> Versioned<T> {
    Versioned {
        value,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        lease: kv.lease,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, value: &str, create: i64, modified: i64) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision: Revision(create),
            mod_revision: Revision(modified),
            lease: 7,
        }
    }

    #[test]
    fn a_leader_key_without_its_term_record_is_a_patroni_nodes() {
        let term = r#"{"term":4,"leader":"a","timeline":2}"#;
        let keys = [kv("leader", "a", 5, 10), kv("pgherd/term", term, 3, 10)];
        let view = ClusterView::from_keys(Revision(12), &keys);
        assert_eq!(view.leader_term(), Some(Term(4)));
        let keys = [kv("leader", "p", 5, 12), kv("pgherd/term", term, 3, 10)];
        let view = ClusterView::from_keys(Revision(12), &keys);
        assert_eq!(view.leader_term(), Some(Term(0)));
    }

    #[test]
    fn a_hold_counts_only_from_the_present_leader() {
        let hold = r#"{"id":9,"until":4000,"why":"switchover"}"#;
        let active = |leader: &KeyValue, hold: &KeyValue| {
            let view = ClusterView::from_keys(Revision(20), [leader, hold]);
            view.active_hold().map(|hold| hold.value.id)
        };
        let leader = kv("leader", "a", 5, 10);
        assert_eq!(active(&leader, &kv("pgherd/hold", hold, 11, 11)), Some(9));
        assert_eq!(active(&leader, &kv("pgherd/hold", hold, 8, 8)), None, "from before it led");
        let of_another = KeyValue { lease: 8, ..kv("pgherd/hold", hold, 11, 11) };
        assert_eq!(active(&leader, &of_another), None, "under another lease");
    }

    #[test]
    fn proxies_are_read_and_a_broken_one_is_none() {
        let keys = [
            kv("pgherd/proxies/p1", r#"{"address":"h:5000","hold":9,"busy":2}"#, 1, 1),
            kv("pgherd/proxies/p2", r#"{"address":"h:5001","other":1}"#, 1, 1),
            kv("pgherd/proxies/p3", "{}", 1, 1),
        ];
        let view = ClusterView::from_keys(Revision(1), &keys);
        let seen = view.proxies.iter().map(|(id, p)| (id.as_str(), p.value.hold, p.value.busy));
        assert_eq!(seen.collect::<Vec<_>>(), [("p1", Some(9), 2), ("p2", None, 0)]);
    }

    #[test]
    fn broken_values_count_as_absent() {
        let keys = [
            kv("config", "[1]", 1, 1),
            kv("pgherd/fence", "{", 1, 1),
            kv("failsafe", r#"{"a":1}"#, 1, 1),
            kv("x/y", "z", 1, 1),
        ];
        let view = ClusterView::from_keys(Revision(1), &keys);
        assert_eq!(view, ClusterView { revision: Revision(1), ..ClusterView::default() });
    }
}
