//! The members of a cluster as `/cluster` and `list` show them.

use serde_json::{Map, Value, json};
use types::{ClusterView, Lsn, Member, MemberName, SyncState};

use crate::snapshot::{FailoverTier, Settings, Synchronous};

/// A member's part in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterRole {
    /// It holds the leader key.
    Leader,
    /// It holds the leader key of a standby cluster.
    StandbyLeader,
    /// It is in the synchronous set.
    SyncStandby,
    /// It is a voter of the quorum.
    QuorumStandby,
    /// Anything else.
    Replica,
}

impl ClusterRole {
    /// The word in `/cluster`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ClusterRole::Leader => "leader",
            ClusterRole::StandbyLeader => "standby_leader",
            ClusterRole::SyncStandby => "sync_standby",
            ClusterRole::QuorumStandby => "quorum_standby",
            ClusterRole::Replica => "replica",
        }
    }

    /// The words in tables.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            ClusterRole::Leader => "Leader",
            ClusterRole::StandbyLeader => "Standby Leader",
            ClusterRole::SyncStandby => "Sync Standby",
            ClusterRole::QuorumStandby => "Quorum Standby",
            ClusterRole::Replica => "Replica",
        }
    }
}

/// A position of a member and how far it is behind the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The position, if the member published it.
    pub lsn: Option<Lsn>,
    /// Bytes behind `status.optime`, if both are known.
    pub lag: Option<u64>,
}

/// One member, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo<'a> {
    /// Its name.
    pub name: &'a MemberName,
    /// Its part in the cluster.
    pub role: ClusterRole,
    /// Its replication state if it follows and has one, else its state.
    pub state: &'a str,
    /// Host and port of its PostgreSQL.
    pub address: Option<(String, u16)>,
    /// Received positions; `None` for the leader.
    pub receive: Option<Progress>,
    /// Replayed positions; `None` for the leader.
    pub replay: Option<Progress>,
    /// The newer of both; `None` for the leader.
    pub newest: Option<Progress>,
    /// All that it published.
    pub member: &'a Member,
}

/// Whether `name` is in the set; Patroni compares without regard to case.
#[must_use]
pub fn is_voter(sync: &SyncState, name: &MemberName) -> bool {
    let mut voters = sync.voters.iter();
    voters.any(|voter| voter.0.eq_ignore_ascii_case(&name.0))
}

/// Every member, by name.
#[must_use]
pub fn members(view: &ClusterView) -> Vec<MemberInfo<'_>> {
    let settings = Settings::from_view(view);
    let optime = view.status.as_ref().map_or(Lsn(0), |s| s.value.optime);
    let progress = |lsn: Option<Lsn>| Progress {
        lsn,
        lag: lsn.filter(|_| optime.0 != 0).map(|l| optime.bytes_since(l)),
    };
    let mut infos = Vec::with_capacity(view.members.len());
    for (name, versioned) in &view.members {
        let member = &versioned.value;
        let role = role_of(view, &settings, name);
        let leads = view.leader_name() == Some(name);
        let follows = |lsn| (!leads).then(|| progress(lsn));
        let replication_state = member.replication_state.as_deref();
        infos.push(MemberInfo {
            name,
            role,
            state: replication_state
                .filter(|s| role != ClusterRole::Leader && !s.is_empty())
                .unwrap_or(&member.state),
            address: member.postgres_address(),
            receive: follows(member.receive_lsn),
            replay: follows(member.replay_lsn),
            newest: follows(member.xlog_location),
            member,
        });
    }
    infos
}

fn role_of(view: &ClusterView, settings: &Settings, name: &MemberName) -> ClusterRole {
    if view.leader_name() == Some(name) {
        return if settings.standby_cluster {
            ClusterRole::StandbyLeader
        } else {
            ClusterRole::Leader
        };
    }
    let listed = view.active_sync().is_some_and(|s| is_voter(&s.value, name));
    match settings.synchronous {
        Synchronous::On if listed => ClusterRole::SyncStandby,
        Synchronous::Quorum if listed => ClusterRole::QuorumStandby,
        Synchronous::On | Synchronous::Quorum | Synchronous::Off => ClusterRole::Replica,
    }
}

/// The body of `GET /cluster`; `term`, `failover_tier` and a member's `term` and
/// `replay_lag_seconds` are ours.
#[must_use]
pub fn cluster_json(view: &ClusterView, scope: &str, tier: FailoverTier) -> Value {
    let members: Vec<Value> = members(view).iter().map(member_json).collect();
    let mut body = Map::new();
    body.insert("members".into(), Value::Array(members));
    if Settings::from_view(view).paused {
        body.insert("pause".into(), Value::Bool(true));
    }
    if let Some(request) = view.failover_request()
        && let Some(at) = &request.scheduled_at
    {
        let mut scheduled = Map::new();
        scheduled.insert("at".into(), json!(at));
        if let Some(leader) = &request.leader {
            scheduled.insert("from".into(), json!(leader));
        }
        if let Some(member) = &request.member {
            scheduled.insert("to".into(), json!(member));
        }
        body.insert("scheduled_switchover".into(), Value::Object(scheduled));
    }
    body.insert("scope".into(), json!(scope));
    if let Some(term) = view.leader_term() {
        body.insert("term".into(), json!(term));
    }
    body.insert("failover_tier".into(), json!(tier.as_str()));
    Value::Object(body)
}

fn member_json(info: &MemberInfo<'_>) -> Value {
    let member = info.member;
    let mut body = Map::new();
    body.insert("name".into(), json!(info.name));
    body.insert("role".into(), json!(info.role.as_str()));
    body.insert("state".into(), json!(info.state));
    body.insert("api_url".into(), json!(member.api_url));
    if let Some((host, port)) = &info.address {
        body.insert("host".into(), json!(host));
        body.insert("port".into(), json!(port));
    }
    if let Some(timeline) = member.timeline {
        body.insert("timeline".into(), json!(timeline));
    }
    if member.pending_restart {
        body.insert("pending_restart".into(), Value::Bool(true));
    }
    if let Some(restart) = &member.scheduled_restart {
        body.insert("scheduled_restart".into(), json!(restart));
    }
    if !member.pending_restart_reason.is_empty() {
        body.insert("pending_restart_reason".into(), json!(member.pending_restart_reason));
    }
    if member.tags != types::Tags::default() {
        body.insert("tags".into(), json!(member.tags));
    }
    let positions = [
        ("receive_lsn", "receive_lag", info.receive),
        ("replay_lsn", "replay_lag", info.replay),
        ("lsn", "lag", info.newest),
    ];
    for (lsn_key, lag_key, progress) in positions {
        let Some(progress) = progress else { continue };
        let lsn = progress.lsn.map(|l| l.to_string());
        body.insert(lsn_key.into(), lsn.map_or(json!("unknown"), Value::String));
        body.insert(lag_key.into(), progress.lag.map_or(json!("unknown"), |lag| json!(lag)));
    }
    if let Some(seconds) = member.replay_lag_seconds {
        body.insert("replay_lag_seconds".into(), json!(seconds));
    }
    if let Some(term) = member.term {
        body.insert("term".into(), json!(term));
    }
    Value::Object(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn cluster_has_patronis_fields_and_ours() {
        let mut view = samples::view();
        samples::put(&mut view, "config", r#"{"synchronous_mode":"quorum","pause":true}"#);
        samples::put(&mut view, "failover", r#"{"leader":"node-0","scheduled_at":"T"}"#);
        samples::put(&mut view, "members/node-3", "garbage");
        let body = cluster_json(&view, "demo", FailoverTier::Lease);
        let expected = json!({
            "members": [
                {"name": "node-0", "role": "leader", "state": "running",
                 "api_url": "http://10.0.0.1:8008/patroni", "host": "10.0.0.1", "port": 5432,
                 "timeline": 3, "pending_restart": true,
                 "tags": {"clonefrom": true, "custom": "x"}},
                {"name": "node-1", "role": "quorum_standby", "state": "streaming",
                 "api_url": "http://10.0.0.2:8008/patroni", "host": "10.0.0.2", "port": 5432,
                 "timeline": 3,
                 "receive_lsn": "0/404B058", "receive_lag": 0,
                 "replay_lsn": "0/404B058", "replay_lag": 0,
                 "lsn": "0/404B058", "lag": 0, "replay_lag_seconds": 2, "term": 7},
                {"name": "node-2", "role": "quorum_standby", "state": "streaming",
                 "api_url": "http://10.0.0.3:8008/patroni", "host": "10.0.0.3", "port": 5432,
                 "timeline": 3, "tags": {"failover_priority": 1},
                 "receive_lsn": "0/404B280", "receive_lag": 0,
                 "replay_lsn": "0/404B280", "replay_lag": 0,
                 "lsn": "0/404B280", "lag": 0},
                {"name": "node-3", "role": "replica", "state": "unknown", "api_url": "",
                 "receive_lsn": "unknown", "receive_lag": "unknown",
                 "replay_lsn": "unknown", "replay_lag": "unknown",
                 "lsn": "unknown", "lag": "unknown"},
            ],
            "pause": true,
            "scheduled_switchover": {"at": "T", "from": "node-0"},
            "scope": "demo", "term": 0, "failover_tier": "lease"
        });
        assert_eq!(body, expected);
    }
}
