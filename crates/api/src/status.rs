//! The node's status as `GET /patroni` and every health check print it.

use serde_json::{Map, Value, json};
use types::{Millis, RestartRequest, Role};

use crate::snapshot::{PATRONI_VERSION, PGHERD_VERSION, Snapshot, Synchronous};

/// The status JSON (as Patroni 4.1 has it). `unix_now` is the wall clock in milliseconds, for
/// `dcs_last_seen` alone. `pgherd` and what stands below it are ours.
#[must_use]
pub fn status_json(snapshot: &Snapshot, now: Millis, unix_now: u64) -> Value {
    let mut body = Map::new();
    body.insert("state".into(), json!(snapshot.state(now)));
    let running = snapshot.running(now);
    if let Some((server, _)) = running {
        body.insert("postmaster_start_time".into(), json!(with_whole_offset(&server.started)));
    }
    body.insert("role".into(), json!(snapshot.role(now)));
    if let Some((server, role)) = running {
        body.insert("server_version".into(), json!(server.version));
        body.insert("xlog".into(), xlog_json(role));
    }
    if snapshot.listed_in_sync() && snapshot.primary(now).is_none() {
        match snapshot.settings.synchronous {
            Synchronous::On => body.insert("sync_standby".into(), Value::Bool(true)),
            Synchronous::Quorum => body.insert("quorum_standby".into(), Value::Bool(true)),
            Synchronous::Off => None,
        };
    }
    if running.is_some() {
        body.insert("timeline".into(), json!(snapshot.timeline(now)));
    }
    if let Some(state) = snapshot.replication_state(now) {
        body.insert("replication_state".into(), json!(state));
    }
    if let Some((server, _)) = running.filter(|(server, _)| !server.walsenders.is_empty()) {
        body.insert("replication".into(), json!(server.walsenders));
    }
    insert_cluster_facts(&mut body, snapshot, now, unix_now);
    body.insert(
        "patroni".into(),
        json!({"version": PATRONI_VERSION, "scope": snapshot.scope, "name": snapshot.name}),
    );
    let scheduled = snapshot.member.as_ref().and_then(|m| m.scheduled_restart.as_ref());
    if let Some(restart) = scheduled {
        // Without what is only for the agent that does it.
        let shown = RestartRequest { postmaster_start_time: None, ..restart.clone() };
        body.insert("scheduled_restart".into(), json!(shown));
    }
    if snapshot.local.as_ref().is_some_and(|local| local.health.watchdog.is_some()) {
        body.insert("watchdog_failed".into(), Value::Bool(true));
    }
    body.insert("pgherd".into(), pgherd_json(snapshot, now));
    Value::Object(body)
}

/// A time as PostgreSQL prints it, with minutes in its offset as Patroni prints it.
fn with_whole_offset(time: &str) -> String {
    let whole = time.rfind(['+', '-']).is_some_and(|at| time.len() - at == 3);
    format!("{time}{}", if whole { ":00" } else { "" })
}

fn xlog_json(role: &Role) -> Value {
    match role {
        Role::Primary(primary) => json!({"location": primary.flush}),
        Role::Standby(standby) => json!({
            "received_location": standby.received,
            "replayed_location": standby.replayed,
            "replayed_timestamp": standby.replayed_at.as_deref().map(with_whole_offset),
            "paused": standby.replay_paused,
        }),
    }
}

fn insert_cluster_facts(
    body: &mut Map<String, Value>,
    snapshot: &Snapshot,
    now: Millis,
    unix_now: u64,
) {
    if snapshot.settings.paused {
        body.insert("pause".into(), Value::Bool(true));
    }
    if unlocked(snapshot, now) {
        body.insert("cluster_unlocked".into(), Value::Bool(true));
    }
    if snapshot.failsafe_is_active(now) {
        body.insert("failsafe_mode_is_active".into(), Value::Bool(true));
    }
    body.insert("dcs_last_seen".into(), json!(dcs_last_seen(snapshot, now, unix_now)));
    if snapshot.tags != types::Tags::default() {
        body.insert("tags".into(), json!(snapshot.tags));
    }
    if let Some(id) = snapshot.database_system_identifier() {
        body.insert("database_system_identifier".into(), json!(id));
    }
    if let Some((server, _)) = snapshot.running(now).filter(|_| pending_restart(snapshot, now)) {
        body.insert("pending_restart".into(), Value::Bool(true));
        body.insert("pending_restart_reason".into(), json!(server.pending_restart));
    }
}

fn pgherd_json(snapshot: &Snapshot, now: Millis) -> Value {
    let view = snapshot.view.as_deref();
    let member = snapshot.member.as_ref();
    json!({
        "version": PGHERD_VERSION,
        "term": member.and_then(|m| m.term),
        "cluster_term": view.and_then(types::ClusterView::leader_term),
        "leader": view.and_then(|v| v.leader_name()),
        "failover_tier": snapshot.in_force().tier.as_str(),
        "lowered_synchronous_commit": lowered(snapshot, now),
    })
}

/// Where `synchronous_commit` is set below `on` here, in words; nothing on a standby.
fn lowered(snapshot: &Snapshot, now: Millis) -> Vec<String> {
    let server = snapshot.running(now).map(|(server, _)| server);
    let places = server.into_iter().flat_map(|server| &server.lowered);
    places.map(ToString::to_string).collect()
}

/// No leader, or nobody knows.
pub(crate) fn unlocked(snapshot: &Snapshot, now: Millis) -> bool {
    let view = snapshot.fresh_view(now);
    view.is_none_or(|v| v.leader.is_none())
}

pub(crate) fn pending_restart(snapshot: &Snapshot, now: Millis) -> bool {
    snapshot.running(now).is_some_and(|(server, _)| !server.pending_restart.is_empty())
}

/// Seconds since the epoch; 0 before the DCS was first seen.
pub(crate) fn dcs_last_seen(snapshot: &Snapshot, now: Millis, unix_now: u64) -> u64 {
    if snapshot.view.is_none() {
        return 0;
    }
    unix_now.saturating_sub(now.since(snapshot.view_at).0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::spaced;
    use crate::samples::{self, PUBLISHED};
    use types::Walsender;

    /// Golden text without what is ours.
    fn patronis_part(mut body: Value) -> String {
        if let Value::Object(map) = &mut body {
            map.shift_remove("pgherd");
        }
        spaced(&body)
    }

    #[test]
    fn a_standby_looks_like_patronis() {
        let body = status_json(&samples::replica("node-2"), PUBLISHED, 1_795_471_258_700);
        assert_eq!(
            patronis_part(body),
            concat!(
                r#"{"state": "running", "postmaster_start_time": "#,
                r#""2026-11-23 21:58:25.661864+00:00", "role": "replica", "#,
                r#""server_version": 150018, "xlog": {"received_location": 67416152, "#,
                r#""replayed_location": 67416152, "replayed_timestamp": null, "paused": false}, "#,
                r#""timeline": 3, "replication_state": "streaming", "#,
                r#""dcs_last_seen": 1795471258, "tags": {"failover_priority": 1}, "#,
                r#""database_system_identifier": "7711489607175335743", "#,
                r#""patroni": {"version": "4.1.4", "scope": "demo", "name": "node-2"}}"#
            )
        );
    }

    #[test]
    fn a_primary_looks_like_patronis() {
        let mut leader = samples::leader();
        if let Some(local) = &mut leader.local
            && let types::Process::Running(running) = &mut local.process
        {
            running.server.walsenders.push(Walsender {
                usename: Some("replicator".into()),
                application_name: "node-1".into(),
                client_addr: Some("10.0.0.2".into()),
                state: Some("streaming".into()),
                sync_state: Some("async".into()),
                sync_priority: Some(0),
            });
        }
        let body = status_json(&leader, PUBLISHED, 1_795_471_258_700);
        assert!(patronis_part(body.clone()).starts_with(concat!(
            r#"{"state": "running", "postmaster_start_time": "2026-11-23 21:58:25.661864+00:00", "#,
            r#""role": "primary", "server_version": 150018, "xlog": {"location": 67416152}, "#,
            r#""timeline": 3, "replication": [{"usename": "replicator", "#,
            r#""application_name": "node-1", "client_addr": "10.0.0.2", "state": "streaming", "#,
            r#""sync_state": "async", "sync_priority": 0}], "dcs_last_seen""#
        )));
        assert_eq!(body["pgherd"]["failover_tier"], "none");
        assert_eq!(body["pgherd"]["leader"], "node-0");
    }

    #[test]
    fn a_watchdog_that_cannot_be_used_is_told() {
        let mut leader = samples::leader();
        assert_eq!(status_json(&leader, PUBLISHED, 0).get("watchdog_failed"), None);
        if let Some(local) = &mut leader.local {
            let fault = types::Fault::NoWatchdog;
            local.health.watchdog = Some(types::Trouble { since: PUBLISHED, fault });
        }
        assert_eq!(status_json(&leader, PUBLISHED, 0)["watchdog_failed"], true);
    }

    #[test]
    fn lowered_guarantees_are_shown() {
        let mut leader = samples::leader();
        samples::lower(&mut leader);
        let body = status_json(&leader, PUBLISHED, 0);
        let shown = &body["pgherd"]["lowered_synchronous_commit"];
        assert_eq!(*shown, json!(["database reports", "role ALL", "role app"]));
    }

    #[test]
    fn offsets_are_printed_as_python_does() {
        assert_eq!(with_whole_offset("2026-11-23 21:58:25.6+00"), "2026-11-23 21:58:25.6+00:00");
        assert_eq!(with_whole_offset("2026-11-23 21:58:25+05:30"), "2026-11-23 21:58:25+05:30");
    }

    #[test]
    fn what_is_old_is_unknown() {
        let later = PUBLISHED.plus(Millis::from_secs(21));
        let body = status_json(&samples::replica("node-1"), later, 1_795_471_258_000);
        assert_eq!(body["state"], "unknown");
        assert_eq!(body["role"], "replica");
        assert_eq!(body["cluster_unlocked"], true);
        assert_eq!(body["dcs_last_seen"], 1_795_471_237);
        assert_eq!(body.get("xlog"), None);
    }
}
