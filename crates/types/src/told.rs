//! What an agent tells of its cluster to proxies: the answer of `GET /pgherd/view`.
//!
//! What a proxy needs of a [`ClusterView`] and no more: no lease, no history, no voters, and of the
//! dynamic configuration what stands below `pgherd`, which holds no secret. Fields may be added to
//! a version; readers ignore what they do not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::names::MemberName;
use crate::position::Lsn;
use crate::records::{
    HoldRecord, LeaderKey, Member, ProxyRecord, RestAddress, Revision, Status, Term, TermRecord,
};
use crate::view::{ClusterView, Versioned};

/// The version of this form.
pub const TOLD_VERSION: u32 = 1;

/// A cluster as one of its agents sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldView {
    /// The form, [`TOLD_VERSION`]. Another one cannot be understood.
    pub version: u32,
    /// The cluster's name.
    pub scope: String,
    /// [`ClusterView::store`] as etcd writes it: in hexadecimal digits.
    pub store: String,
    /// The store's revision at which the rest is exact.
    pub revision: Revision,
    /// Whether the agent follows the DCS closely now.
    pub fresh: bool,
    /// Who tells it, and how it is.
    pub told_by: Teller,
    /// The leader key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<ToldLeader>,
    /// The term record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Revised<TermRecord>>,
    /// The members, without what only operators and other members look at.
    #[serde(default)]
    pub members: BTreeMap<MemberName, Member>,
    /// The leader's last position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optime: Option<Lsn>,
    /// The hold that is to be followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Revised<HoldRecord>>,
    /// Of the dynamic configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Revised<ToldConfig>>,
    /// Who has to agree before a leader goes on without the DCS, with REST addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failsafe: Option<BTreeMap<MemberName, String>>,
    /// The addresses of registered proxies: whoever gave a client its key is told of its cancel
    /// request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proxies: BTreeMap<String, String>,
}

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teller {
    /// Its name.
    pub name: MemberName,
    /// Its role, as its own PostgreSQL shows it.
    pub role: String,
    /// The state of its PostgreSQL.
    pub state: String,
    /// The term in which it has that role, as it published it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// Whether its claim to lead holds now.
    pub holds_claim: bool,
}

/// `leader`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldLeader {
    /// The leader.
    pub name: MemberName,
    /// When the key was last written.
    pub revision: Revision,
}

/// A key's value and when it was last written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revised<T> {
    /// When.
    pub revision: Revision,
    /// The value.
    #[serde(flatten)]
    pub value: T,
}

/// What is told of the key `config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldConfig {
    /// `null` if there is no such section.
    #[serde(default)]
    pub pgherd: Value,
}

/// Why an answer tells nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotTold {
    /// The form is of another version.
    Version(u32),
    /// The agent is of another cluster.
    Scope(String),
    /// The store's id is no number.
    Store(String),
}

impl std::fmt::Display for NotTold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotTold::Version(version) => {
                write!(f, "it tells its view in form {version}, and {TOLD_VERSION} is understood")
            }
            NotTold::Scope(scope) => write!(f, "it is of the cluster {scope:?}"),
            NotTold::Store(store) => write!(f, "{store:?} is no id of a store"),
        }
    }
}

impl std::error::Error for NotTold {}

impl ToldView {
    /// What `told_by` tells about its view.
    #[must_use]
    pub fn new(scope: &str, view: &ClusterView, fresh: bool, told_by: Teller) -> ToldView {
        let members = view.members.iter();
        let failsafe = view.failsafe.as_ref();
        let proxies = view.proxies.iter();
        ToldView {
            version: TOLD_VERSION,
            scope: scope.to_owned(),
            store: format!("{:x}", view.store),
            revision: view.revision,
            fresh,
            told_by,
            leader: view.leader.as_ref().map(|leader| ToldLeader {
                name: leader.value.name.clone(),
                revision: leader.mod_revision,
            }),
            term: view.term.as_ref().map(revised),
            members: members.map(|(name, m)| (name.clone(), for_proxies(&m.value))).collect(),
            optime: view.status.as_ref().map(|status| status.value.optime),
            hold: view.active_hold().map(revised),
            config: view.config.as_ref().map(|config| Revised {
                revision: config.mod_revision,
                value: ToldConfig { pgherd: config.value["pgherd"].clone() },
            }),
            failsafe: failsafe.map(|failsafe| failsafe.value.clone()),
            proxies: proxies.map(|(id, p)| (id.clone(), p.value.address.clone())).collect(),
        }
    }

    /// The view, for a proxy of the cluster `scope`. What was not told is absent in it.
    ///
    /// # Errors
    /// It is about another cluster, or in another form.
    pub fn view(&self, scope: &str) -> Result<ClusterView, NotTold> {
        if self.version != TOLD_VERSION {
            return Err(NotTold::Version(self.version));
        }
        if self.scope != scope {
            return Err(NotTold::Scope(self.scope.clone()));
        }
        let store = u64::from_str_radix(&self.store, 16);
        let store = store.map_err(|_| NotTold::Store(self.store.clone()))?;
        let failsafe = self.failsafe.clone();
        let addresses = self.proxies.iter().map(|(id, address)| {
            let address = address.clone();
            (id.clone(), at(self.revision, ProxyRecord { address, ..ProxyRecord::default() }))
        });
        let members = self.members.iter();
        let optime = self.optime.map(|optime| Status { optime, ..Status::default() });
        Ok(ClusterView {
            store,
            revision: self.revision,
            // The lease, which is not told, is the same for leader and hold: the hold that is told
            // is the leader's.
            leader: self.leader.as_ref().map(|leader| {
                at(leader.revision, LeaderKey { name: leader.name.clone(), lease: 0 })
            }),
            members: members.map(|(n, m)| (n.clone(), at(self.revision, m.clone()))).collect(),
            config: self.config.as_ref().map(|config| at(config.revision, document(&config.value))),
            status: optime.map(|status| at(self.revision, status)),
            failsafe: failsafe.map(|failsafe| at(self.revision, failsafe)),
            term: self.term.as_ref().map(|term| at(term.revision, term.value.clone())),
            hold: self.hold.as_ref().map(|hold| at(hold.revision, hold.value.clone())),
            proxies: addresses.collect(),
            ..ClusterView::default()
        })
    }

    /// Whether the agent that tells it leads by its own view, and its claim to that holds.
    #[must_use]
    pub fn is_leaders(&self) -> bool {
        let leads = |leader: &ToldLeader| leader.name == self.told_by.name;
        self.told_by.holds_claim && self.leader.as_ref().is_some_and(leads)
    }
}

impl ClusterView {
    /// Where the members' REST interfaces are: as their keys say, and as whom a leader asks without
    /// the DCS, which outlives those keys.
    #[must_use]
    pub fn rest_addresses(&self) -> std::collections::BTreeSet<RestAddress> {
        let members = self.members.values().filter_map(|member| member.value.api_address());
        let failsafe = self.failsafe.iter().flat_map(|failsafe| failsafe.value.values());
        members.chain(failsafe.filter_map(|url| RestAddress::of_url(url))).collect()
    }
}

fn document(told: &ToldConfig) -> Value {
    if told.pgherd.is_null() { json!({}) } else { json!({ "pgherd": told.pgherd }) }
}

fn revised<T: Clone>(versioned: &Versioned<T>) -> Revised<T> {
    Revised { revision: versioned.mod_revision, value: versioned.value.clone() }
}

fn at<T>(revision: Revision, value: T) -> Versioned<T> {
    Versioned { value, create_revision: revision, mod_revision: revision, lease: 0 }
}

/// What routes are made of.
fn for_proxies(member: &Member) -> Member {
    let member = member.clone();
    Member {
        conn_url: member.conn_url,
        api_url: member.api_url,
        state: member.state,
        role: member.role,
        version: member.version,
        pgherd: member.pgherd,
        term: member.term,
        tags: member.tags,
        xlog_location: member.xlog_location,
        replay_lsn: member.replay_lsn,
        receive_lsn: member.receive_lsn,
        replication_state: member.replication_state,
        timeline: member.timeline,
        replay_lag_seconds: member.replay_lag_seconds,
        ..Member::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::KeyValue;

    const MEMBER: &str = r#"{"conn_url":"postgres://h:1/x","api_url":"https://h:2/patroni",
        "state":"running","role":"primary","term":4,"xlog_location":7,"timeline":2,
        "tags":{"noloadbalance":true},"pending_restart":true,"lowered":["app"],"trouble":"none"}"#;

    fn view(keys: &[(&str, &str, i64)]) -> ClusterView {
        let keys: Vec<KeyValue> = keys
            .iter()
            .map(|(key, value, revision)| KeyValue {
                key: (*key).to_owned(),
                value: value.as_bytes().to_vec(),
                create_revision: Revision(*revision),
                mod_revision: Revision(*revision),
                lease: 77,
            })
            .collect();
        ClusterView { store: 0xcdf8, ..ClusterView::from_keys(Revision(30), &keys) }
    }

    fn whole() -> ClusterView {
        view(&[
            ("leader", "a", 10),
            ("pgherd/term", r#"{"term":4,"leader":"a","timeline":2}"#, 10),
            ("pgherd/hold", r#"{"id":9,"until":4000,"why":"switchover"}"#, 11),
            ("members/a", MEMBER, 12),
            ("status", r#"{"optime":8,"slots":{"s":1}}"#, 13),
            (
                "config",
                r#"{"ttl":9,"pgherd":{"hold_timeout":3},
                "postgresql":{"parameters":{"archive_command":"with a password"}}}"#,
                14,
            ),
            ("failsafe", r#"{"a":"https://h:2/patroni","b":"http://i:3/patroni"}"#, 15),
            ("pgherd/proxies/p:1", r#"{"address":"h:5000","hold":9,"busy":3}"#, 16),
            ("pgherd/pledges/a", r#"{"fence":"f","term":1,"timeline":1,"lsn":1}"#, 17),
        ])
    }

    fn teller(name: &str, holds_claim: bool) -> Teller {
        let (role, state) = ("primary".to_owned(), "running".to_owned());
        Teller { name: name.into(), role, state, term: Some(Term(4)), holds_claim }
    }

    #[test]
    fn what_is_told_is_what_routes_are_made_of() {
        let whole = whole();
        let told = ToldView::new("demo", &whole, true, teller("a", true));
        let text = serde_json::to_string(&told).expect("plain data");
        for kept_back in ["password", "ttl", "lease", "77", "pledge", "lowered", "busy", "slots"] {
            assert!(!text.contains(kept_back), "{kept_back}: {text}");
        }
        let read: ToldView = serde_json::from_str(&text).expect("as written");
        assert_eq!(read, told);
        let view = read.view("demo").expect("understood");
        assert_eq!((view.store, view.revision), (whole.store, whole.revision));
        assert_eq!(view.leader_term(), Some(Term(4)));
        assert_eq!(view.active_hold().map(|hold| hold.value.id), Some(9));
        assert_eq!(view.status.map(|status| status.value.optime), Some(Lsn(8)));
        let config = view.config.expect("told");
        assert_eq!(config.value, json!({"pgherd": {"hold_timeout": 3}}));
        assert_eq!(config.mod_revision, Revision(14));
        let a = &view.members[&"a".into()].value;
        assert_eq!((a.term, a.tags.noloadbalance()), (Some(Term(4)), true));
        assert_eq!(view.proxies["p:1"].value.address, "h:5000");
    }

    #[test]
    fn a_hold_that_does_not_count_is_not_told() {
        let hold = r#"{"id":9,"until":4000}"#;
        let left = view(&[("leader", "a", 10), ("pgherd/hold", hold, 9)]);
        assert_eq!(ToldView::new("demo", &left, true, teller("a", true)).hold, None);
    }

    #[test]
    fn other_forms_and_other_clusters_are_not_understood() {
        let told = ToldView::new("demo", &whole(), false, teller("b", true));
        assert_eq!(told.view("other"), Err(NotTold::Scope("demo".to_owned())));
        let newer = ToldView { version: 2, ..told.clone() };
        assert_eq!(newer.view("demo"), Err(NotTold::Version(2)));
        let odd = ToldView { store: "x".to_owned(), ..told };
        assert_eq!(odd.view("demo"), Err(NotTold::Store("x".to_owned())));
        // What members of Patroni's answer to paths that they do not know.
        let status = r#"{"state":"running","role":"replica","patroni":{"version":"4.1.4"}}"#;
        assert!(serde_json::from_str::<ToldView>(status).is_err());
        let least = r#"{"version":1,"scope":"s","store":"0","revision":1,"fresh":true,"later":1,
            "told_by":{"name":"a","role":"","state":"","holds_claim":false}}"#;
        let least: ToldView = serde_json::from_str(least).expect("the rest may be absent");
        assert_eq!(least.view("s").map(|view| view.leader_term()), Ok(None));
    }

    #[test]
    fn a_claim_counts_from_the_leader_that_the_view_names() {
        let told = |name, claim| ToldView::new("demo", &whole(), false, teller(name, claim));
        assert!(told("a", true).is_leaders());
        assert!(!told("a", false).is_leaders() && !told("b", true).is_leaders());
    }

    #[test]
    fn addresses_come_from_keys_and_from_failsafe() {
        let tls = RestAddress { tls: true, ..RestAddress::plain("h", 2) };
        let expected = [RestAddress::plain("i", 3), tls];
        assert_eq!(whole().rest_addresses(), expected.into());
    }
}
