//! The values of the DCS keys: Patroni's and ours.
//!
//! Readers accept what Patroni's readers accept: unknown fields, missing fields, any spacing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::local::PendingChange;
use crate::names::MemberName;
use crate::position::{Lsn, Position, Timeline};
use crate::requests::RestartRequest;
use crate::tags::Tags;
use crate::time::Millis;

/// An etcd revision (create or modification).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub i64);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A leadership term. It rises by one with each transaction that creates the leader key; 0 stands
/// for "a leader of unknown term" (a Patroni node), which never outranks anything.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// The term after this one.
    #[must_use]
    pub const fn next(self) -> Term {
        Term(self.0 + 1)
    }
}

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// `leader`: who leads, and under which lease.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaderKey {
    /// The leader's name, the key's whole value.
    pub name: MemberName,
    /// The etcd lease that the key hangs on.
    pub lease: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's skip_serializing_if hands a reference
fn is_false(value: &bool) -> bool {
    !*value
}

/// `members/<name>` (as Patroni 4.1 has it).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Member {
    /// `postgres://host:port/database`, without user or password.
    #[serde(default)]
    pub conn_url: String,
    /// `http://host:port/patroni`.
    #[serde(default)]
    pub api_url: String,
    /// One of the state texts of Patroni.
    #[serde(default = "unknown")]
    pub state: String,
    /// `primary`, `replica`, `promoted`, `demoted`, `uninitialized`, ….
    #[serde(default)]
    pub role: String,
    /// The Patroni version that we emulate (other Patroni nodes branch on it).
    #[serde(default)]
    pub version: String,
    /// `postgres://host:port/database` of a pooler beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// Our own version; its presence says that the member pledges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgherd: Option<String>,
    /// The term in which the member holds `role`; absent on Patroni members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// `Some(false)` on a leader whose post-promotion checkpoint is not done. Never `true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_after_promote: Option<bool>,
    /// Tags, after filtering.
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// Some parameter waits for a restart.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pending_restart: bool,
    /// Which.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pending_restart_reason: BTreeMap<String, PendingChange>,
    /// Primary: flush position; standby: the newer of received and replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xlog_location: Option<Lsn>,
    /// Standby: replayed position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lsn: Option<Lsn>,
    /// Standby: received position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_lsn: Option<Lsn>,
    /// Standby: `streaming` or `in archive recovery`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_state: Option<String>,
    /// Its timeline, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// A restart that an operator has scheduled; others' values of it are only shown.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "readable")]
    pub scheduled_restart: Option<RestartRequest>,
    /// The member has seen pause.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pause: bool,
    /// Seconds by which replay is behind the primary's commits, when known (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lag_seconds: Option<u64>,
    /// Why the member is no candidate now: no answer, disk full, … (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The WAL segment that recovery works on while PostgreSQL comes up (ours).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
    /// Where `synchronous_commit` is set below `on`, on the primary (ours).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lowered: Vec<String>,
    /// Anybody who reaches the member's REST interface may change the cluster (ours).
    #[serde(default, skip_serializing_if = "is_false")]
    pub open_rest: bool,
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// What does not decode counts as absent, and leaves the rest of the member's key readable.
fn readable<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).ok())
}

impl Member {
    /// Reads a member's value; what does not decode is an empty member, as Patroni reads it.
    #[must_use]
    pub fn parse(text: &str) -> Member {
        serde_json::from_str(text)
            .unwrap_or_else(|_| Member { state: unknown(), ..Member::default() })
    }

    /// Whether the member may be counted on to take over: it pledges, runs, and is well.
    #[must_use]
    pub fn is_fit(&self) -> bool {
        self.pgherd.is_some() && self.state == "running" && self.trouble.is_none()
    }

    /// Host and port of `conn_url`; 5432 stands in for a missing port.
    #[must_use]
    pub fn postgres_address(&self) -> Option<(String, u16)> {
        address_of(&self.conn_url, 5432)
    }

    /// Where `api_url` leads; 8008 stands in for a missing port.
    #[must_use]
    pub fn api_address(&self) -> Option<RestAddress> {
        RestAddress::of_url(&self.api_url)
    }
}

/// Where a REST interface is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RestAddress {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// A name, or an IP address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl RestAddress {
    /// Where a URL leads; 8008 stands in for a missing port.
    #[must_use]
    pub fn of_url(url: &str) -> Option<RestAddress> {
        let (host, port) = address_of(url, 8008)?;
        Some(RestAddress { tls: url.starts_with("https:"), host, port })
    }

    /// One that speaks no TLS.
    #[must_use]
    pub fn plain(host: &str, port: u16) -> RestAddress {
        RestAddress { tls: false, host: host.to_owned(), port }
    }
}

impl std::fmt::Display for RestAddress {
    /// `host:port`, with brackets around an IPv6 address.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RestAddress { host, port, .. } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Host and port of a URL's authority, without brackets around an IPv6 host.
fn address_of(url: &str, default_port: u16) -> Option<(String, u16)> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, tail) = v6.split_once(']')?;
            (host, tail.strip_prefix(':'))
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return None;
    }
    let port = match port {
        Some(text) => text.parse().ok()?,
        None => default_port,
    };
    Some((host.to_owned(), port))
}

/// `status` (as Patroni 4.1 has it).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The leader's last position.
    pub optime: Lsn,
    /// Position of each slot that is carried over a failover.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<String, Lsn>,
    /// Slots of members seen within `member_slots_ttl`, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retain_slots: Vec<String>,
}

impl Status {
    /// Reads a `status` value: an object, or a bare integer (legacy). Garbage is an empty status.
    #[must_use]
    pub fn parse(text: &str) -> Status {
        if let Ok(optime) = text.trim().parse::<u64>() {
            return Status { optime: Lsn(optime), ..Status::default() };
        }
        serde_json::from_str(text).unwrap_or_default()
    }
}

/// `sync` (as Patroni 4.1 has it).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(from = "SyncWire", into = "SyncWire")]
pub struct SyncState {
    /// The leader that the set belongs to; `None` is an inactive state.
    pub leader: Option<MemberName>,
    /// A candidate needs pledges of `quorum + 1` voters. 0 in mode `on`.
    pub quorum: usize,
    /// The voters, sorted.
    pub voters: std::collections::BTreeSet<MemberName>,
}

#[derive(Clone, Serialize, Deserialize)]
struct SyncWire {
    leader: Option<MemberName>,
    #[serde(default)]
    quorum: usize,
    #[serde(default)]
    sync_standby: Option<String>,
}

impl From<SyncWire> for SyncState {
    fn from(wire: SyncWire) -> SyncState {
        let names = wire.sync_standby.unwrap_or_default();
        let voters = names.split(',').map(str::trim).filter(|n| !n.is_empty());
        SyncState {
            leader: wire.leader,
            quorum: wire.quorum,
            voters: voters.map(MemberName::from).collect(),
        }
    }
}

impl From<SyncState> for SyncWire {
    fn from(sync: SyncState) -> SyncWire {
        let names: Vec<&str> = sync.voters.iter().map(MemberName::as_str).collect();
        let sync_standby = if names.is_empty() { None } else { Some(names.join(",")) };
        SyncWire { leader: sync.leader, quorum: sync.quorum, sync_standby }
    }
}

impl SyncState {
    /// Reads a `sync` value; garbage and an empty value are an inactive state.
    #[must_use]
    pub fn parse(text: &str) -> SyncState {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The value as Patroni writes it.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// One entry of `history` (as Patroni 4.1 has it).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "HistoryWire", into = "HistoryWire")]
pub struct HistoryEntry {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where it ended.
    pub switch: Lsn,
    /// The text of the history file.
    pub reason: String,
    /// ISO-8601 with offset, when known.
    pub timestamp: Option<String>,
    /// The leader that took over, when known.
    pub new_leader: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum HistoryWire {
    Five(u32, u64, String, String, String),
    Four(u32, u64, String, String),
    Three(u32, u64, String),
}

impl From<HistoryWire> for HistoryEntry {
    fn from(wire: HistoryWire) -> HistoryEntry {
        let (timeline, switch, reason, timestamp, new_leader) = match wire {
            HistoryWire::Five(t, l, r, at, who) => (t, l, r, Some(at), Some(who)),
            HistoryWire::Four(t, l, r, at) => (t, l, r, Some(at), None),
            HistoryWire::Three(t, l, r) => (t, l, r, None, None),
        };
        HistoryEntry {
            timeline: Timeline(timeline),
            switch: Lsn(switch),
            reason,
            timestamp,
            new_leader,
        }
    }
}

impl From<HistoryEntry> for HistoryWire {
    fn from(e: HistoryEntry) -> HistoryWire {
        match (e.timestamp, e.new_leader) {
            (Some(at), Some(who)) => HistoryWire::Five(e.timeline.0, e.switch.0, e.reason, at, who),
            (Some(at), None) => HistoryWire::Four(e.timeline.0, e.switch.0, e.reason, at),
            (None, _) => HistoryWire::Three(e.timeline.0, e.switch.0, e.reason),
        }
    }
}

/// `failover` (as Patroni 4.1 has it). With `leader` it is a switchover.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct FailoverRequest {
    /// The leader that shall step down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<MemberName>,
    /// The candidate that shall lead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberName>,
    /// ISO-8601 with offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<String>,
}

impl FailoverRequest {
    /// Reads a `failover` value; `{}` and garbage are "no request".
    #[must_use]
    pub fn parse(text: &str) -> Option<FailoverRequest> {
        let request = match serde_json::from_str::<FailoverRequest>(text) {
            Ok(request) => request,
            Err(_) => legacy_failover(text)?,
        };
        (request.leader.is_some() || request.member.is_some()).then_some(request)
    }
}

/// The legacy text form `leader:candidate`.
fn legacy_failover(text: &str) -> Option<FailoverRequest> {
    let (leader, member) = text.trim().split_once(':')?;
    let plain = |name: &str| !name.contains(['{', '"', ' ']);
    if !plain(leader) || !plain(member) {
        return None;
    }
    let name = |text: &str| (!text.is_empty()).then(|| MemberName::from(text));
    Some(FailoverRequest { leader: name(leader), member: name(member), scheduled_at: None })
}

/// `pgherd/term`. It belongs to the leader key whose modification revision equals this key's
/// revision, since both are written by one transaction; any other leader key is a Patroni node's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TermRecord {
    /// The term.
    pub term: Term,
    /// Who won it.
    pub leader: MemberName,
    /// The timeline number reserved for it; no other promotion ever gets this number.
    pub timeline: Timeline,
    /// What the winner held when it won: a copy on the same timeline that holds no more is a prefix
    /// of the new leader's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

/// `pgherd/fence`: an election is open. Its identity is the key's modification revision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// Distinguishes fences of one opener; the opener's name and a number.
    pub id: String,
    /// The leader key that is fenced, by its modification revision; 0 if there was none.
    pub leader_revision: Revision,
    /// `/sync`'s modification revision when the fence was opened; 0 if the key was absent.
    pub sync_revision: Revision,
    /// Who opened it.
    pub candidate: MemberName,
}

impl Fence {
    /// The leader key that it is against; `None` if there was none.
    #[must_use]
    pub fn leader(&self) -> Option<Revision> {
        (self.leader_revision != Revision(0)).then_some(self.leader_revision)
    }
}

/// `pgherd/pledges/<name>`: its writer acknowledges nothing to the old leader any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pledge {
    /// The fence's `id`.
    pub fence: String,
    /// What the pledged copy holds.
    #[serde(flatten)]
    pub position: Position,
}

/// `pgherd/hold`: the leader asks the proxies to begin no transaction on it any more, because its
/// primary is about to be stopped, for a hand-over or a restart. It hangs on the leader's lease,
/// and counts only while its writer leads: [`crate::ClusterView::active_hold`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HoldRecord {
    /// Distinguishes the holds of one cluster; a proxy names it in its own key.
    pub id: u64,
    /// How long a proxy follows it at most, in milliseconds from when it first sees this id: hosts'
    /// clocks need not agree.
    pub until: Millis,
    /// For logs and refused clients: what it is for, `switchover` or `restart`.
    #[serde(default)]
    pub why: String,
}

/// `pgherd/proxies/<id>`: a proxy that serves this cluster's clients, under a lease of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ProxyRecord {
    /// `host:port` of its read-write port.
    pub address: String,
    /// The hold that it follows: it has begun no transaction on the leader since. Written again
    /// whenever `busy` changes while it follows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<u64>,
    /// How many of its clients are in a transaction, or await an answer, on the leader. It counts
    /// only together with `hold`; without one it need not be kept current.
    #[serde(default)]
    pub busy: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_is_written_as_patroni_writes_it() {
        let text = r#"{"leader":"node-0","quorum":1,"sync_standby":"node-1,node-2"}"#;
        let sync = SyncState::parse(text);
        assert_eq!(sync.voters.len(), 2);
        assert_eq!(sync.to_json(), text);
        assert_eq!(
            SyncState::default().to_json(),
            r#"{"leader":null,"quorum":0,"sync_standby":null}"#
        );
        assert_eq!(SyncState::parse("garbage"), SyncState::default());
    }

    #[test]
    fn history_entries_of_three_to_five_items_are_read() {
        let text = r#"[[1,67417056,"no recovery target specified","2026-11-23T22:01:02+00:00","n"],[2,5,"x"]]"#;
        let entries: Vec<HistoryEntry> = serde_json::from_str(text).expect("valid");
        assert_eq!(entries[0].new_leader.as_deref(), Some("n"));
        assert_eq!(entries[1].timestamp, None);
        assert_eq!(serde_json::to_string(&entries).expect("plain data"), text);
    }

    #[test]
    fn failover_requests_in_both_forms() {
        assert_eq!(FailoverRequest::parse("{}"), None);
        let legacy = FailoverRequest::parse("a:b").expect("legacy");
        assert_eq!(legacy.leader, Some("a".into()));
        let json = FailoverRequest::parse(r#"{"member": "b"}"#).expect("json");
        assert_eq!((json.leader, json.member), (None, Some("b".into())));
    }

    #[test]
    fn addresses_come_out_of_urls() {
        let member = Member::parse(
            r#"{"conn_url":"postgres://[::1]:5433/postgres","api_url":"http://h/patroni"}"#,
        );
        assert_eq!(member.postgres_address(), Some(("::1".to_owned(), 5433)));
        assert_eq!(member.api_address(), Some(RestAddress::plain("h", 8008)));
        assert_eq!(Member::parse("nonsense").postgres_address(), None);
    }

    #[test]
    fn a_status_may_be_a_bare_number() {
        assert_eq!(Status::parse("123").optime, Lsn(123));
        assert_eq!(Status::parse("{\"optime\":7}").optime, Lsn(7));
        assert_eq!(Status::parse("x").optime, Lsn(0));
    }
}
