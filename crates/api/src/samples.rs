//! The golden cluster, recorded from Patroni 4.1.4, for this crate's tests.

use std::sync::Arc;

use types::{
    ClusterView, DataDir, Durable, KeyValue, LocalPostgres, Lowered, Lsn, Millis, Primary, Process,
    Receiver, Revision, Role, Running, Server, Standby, Timeline,
};

use crate::snapshot::{Handover, Settings, Snapshot};

/// The instant at which the sample snapshots were published.
pub(crate) const PUBLISHED: Millis = Millis(1_000_000);

const KEYS: [(&str, &str); 8] = [
    ("initialize", "7711489607175335743"),
    ("leader", "node-0"),
    ("config", r#"{"ttl":20,"loop_wait":3,"synchronous_mode":false}"#),
    ("status", r#"{"optime":67416152,"retain_slots":["node_0","node_1"]}"#),
    ("sync", r#"{"leader":"node-0","quorum":1,"sync_standby":"node-1,node-2"}"#),
    (
        "members/node-0",
        r#"{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://10.0.0.1:8008/patroni",
        "state":"running","role":"primary","version":"4.1.4","tags":{"clonefrom":true,"custom":"x"},
        "pending_restart":true,"xlog_location":67416152,"timeline":3}"#,
    ),
    (
        "members/node-1",
        r#"{"conn_url":"postgres://10.0.0.2:5432/postgres","api_url":"http://10.0.0.2:8008/patroni",
        "state":"running","role":"replica","version":"4.1.4","pgherd":"0.1.0","term":7,
        "xlog_location":67416152,"replay_lsn":67416152,"receive_lsn":67416152,
        "replication_state":"streaming","timeline":3,"replay_lag_seconds":2}"#,
    ),
    (
        "members/node-2",
        r#"{"conn_url":"postgres://10.0.0.3:5432/postgres","api_url":"http://10.0.0.3:8008/patroni",
        "state":"running","role":"replica","version":"4.1.4","tags":{"failover_priority":1},
        "xlog_location":67416704,"replay_lsn":67416704,"receive_lsn":67416704,
        "replication_state":"streaming","timeline":3}"#,
    ),
];

/// The view of a healthy asynchronous cluster of three.
pub(crate) fn view() -> ClusterView {
    let mut view = ClusterView::default();
    for (key, value) in KEYS {
        put(&mut view, key, value);
    }
    view.revision = Revision(100);
    view
}

/// Overwrites one key of the view.
pub(crate) fn put(view: &mut ClusterView, key: &str, value: &str) {
    let kv = KeyValue {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        create_revision: Revision(50),
        mod_revision: Revision(60),
        lease: 7,
    };
    let one = ClusterView::from_keys(view.revision, [&kv]);
    view.members.extend(one.members);
    view.leader = one.leader.or(view.leader.take());
    view.initialize = one.initialize.or(view.initialize.take());
    view.config = one.config.or(view.config.take());
    view.status = one.status.or(view.status.take());
    view.history = one.history.or(view.history.take());
    view.failover = one.failover.or(view.failover.take());
    view.sync = one.sync.or(view.sync.take());
    view.term = one.term.or(view.term.take());
    view.failsafe = one.failsafe.or(view.failsafe.take());
}

/// What `name` of the sample publishes.
pub(crate) fn snapshot(name: &str, role: Role) -> Snapshot {
    let view = view();
    let member = view.member(&name.into()).cloned();
    Snapshot {
        scope: "demo".into(),
        name: name.into(),
        view_is_fresh: true,
        view_at: PUBLISHED,
        looped_at: PUBLISHED,
        settings: Settings::from_view(&view),
        local: Some(LocalPostgres {
            at: PUBLISHED,
            data_dir: DataDir::Empty,
            process: Process::Running(Running {
                server: Server {
                    version: 150_018,
                    started: "2026-11-23 21:58:25.661864+00:00".into(),
                    ..Server::default()
                },
                role,
            }),
            health: types::Health::default(),
            durable: Durable::default(),
            compared: None,
        }),
        handover: Handover::default(),
        longest_intervals: [("node-1".into(), Millis(450))].into(),
        claim_until: None,
        failsafe_until: None,
        tags: member.as_ref().map(|m| m.tags.clone()).unwrap_or_default(),
        member,
        system_identifier: view.system_identifier().map(str::to_owned),
        view: Some(Arc::new(view)),
    }
}

/// The leader, with a claim of 20 s.
pub(crate) fn leader() -> Snapshot {
    let primary = Primary {
        timeline: Timeline(3),
        flush: Lsn(67_416_152),
        checkpoint_done: true,
        ..Primary::default()
    };
    Snapshot {
        claim_until: Some(PUBLISHED.plus(Millis::from_secs(20))),
        ..snapshot("node-0", Role::Primary(primary))
    }
}

/// Lowers `synchronous_commit` for two roles and a database.
pub(crate) fn lower(snapshot: &mut Snapshot) {
    if let Some(LocalPostgres { process: Process::Running(running), .. }) = &mut snapshot.local {
        let names = ["app", "ALL"].map(|name| Lowered::Role(name.to_owned()));
        running.server.lowered.extend(names);
        running.server.lowered.insert(Lowered::Database("reports".to_owned()));
    }
}

/// A standby that streams.
pub(crate) fn replica(name: &str) -> Snapshot {
    let standby = Standby {
        timeline: Timeline(3),
        received: Lsn(67_416_152),
        replayed: Lsn(67_416_152),
        receiver: Some(Receiver { streaming: true, silent_for: None }),
        ..Standby::default()
    };
    snapshot(name, Role::Standby(standby))
}
