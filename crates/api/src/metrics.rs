//! `GET /metrics`: Patroni's gauges that a snapshot can answer, and our own beside them.

use types::{Lowered, MemberName, Millis, Standby, UnixMillis};

use crate::exposition::{Exposition, Histogram, label};
use crate::peers::{INTERVAL_BOUNDS_MS, PeerReport, Report};
use crate::snapshot::{FailoverTier, Snapshot, Synchronous};
use crate::status::{dcs_last_seen, pending_restart, unlocked};

/// Patroni's version with two digits a component (as Patroni 4.1 has it).
const PATRONI_VERSION_NUMBER: &str = "040104";

/// The states in the order of their numbers: names, and texts.
const STATES: [(&str, &str); 15] = [
    ("initdb", "initializing new cluster"),
    ("initdb_failed", "initdb failed"),
    ("custom_bootstrap", "running custom bootstrap script"),
    ("custom_bootstrap_failed", "custom bootstrap failed"),
    ("creating_replica", "creating replica"),
    ("running", "running"),
    ("starting", "starting"),
    ("bootstrap_starting", "starting after custom bootstrap"),
    ("start_failed", "start failed"),
    ("restarting", "restarting"),
    ("restart_failed", "restart failed"),
    ("stopping", "stopping"),
    ("stopped", "stopped"),
    ("stop_failed", "stop failed"),
    ("crashed", "crashed"),
];

/// Prometheus text, labels `scope` and `name` on each line.
#[must_use]
pub fn metrics_text(snapshot: &Snapshot, peers: &Report, now: Millis, unix_now: u64) -> String {
    let labels = [label("scope", &snapshot.scope), label("name", &snapshot.name.0)];
    let mut out = Exposition::new(labels.join(","));
    postgres_metrics(&mut out, snapshot, now);
    cluster_metrics(&mut out, snapshot, now, unix_now);
    own_metrics(&mut out, snapshot, now);
    peer_metrics(&mut out, peers, now);
    interval_metrics(&mut out, snapshot, peers);
    out.into_text()
}

/// The metrics of Patroni, in its order.
fn postgres_metrics(out: &mut Exposition, snapshot: &Snapshot, now: Millis) {
    let leads = snapshot.leads(now);
    let standby_leader = snapshot.role(now) == "standby_leader";
    let listed = snapshot.listed_in_sync() && snapshot.standby(now).is_some();
    let mode = snapshot.settings.synchronous;
    let primary = snapshot.primary(now);
    let standby = snapshot.standby(now);
    let server = snapshot.running(now).map(|(server, _)| server);
    out.gauge("patroni_version", "Patroni semver without periods.", PATRONI_VERSION_NUMBER);
    out.flag("patroni_postgres_running", "PostgreSQL runs.", snapshot.state(now) == "running");
    let started = server.map_or(0.0, |server| epoch_seconds(&server.started));
    out.gauge("patroni_postmaster_start_time", "Epoch seconds of PostgreSQL's start.", started);
    out.flag("patroni_primary", "This node is the leader.", leads && !standby_leader);
    let location = primary.map_or(0, |p| p.flush.0);
    out.counter("patroni_xlog_location", "Position of the primary's log.", location);
    out.flag("patroni_standby_leader", "This node leads a standby cluster.", standby_leader);
    let replica = snapshot.role(now) == "replica" && standby.is_some();
    out.flag("patroni_replica", "This node is a replica.", replica);
    let sync = listed && mode == Synchronous::On;
    out.flag("patroni_sync_standby", "This node is a sync standby.", sync);
    let quorum = listed && mode == Synchronous::Quorum;
    out.flag("patroni_quorum_standby", "This node is a quorum standby.", quorum);
    replay_metrics(out, standby);
    let state = snapshot.replication_state(now);
    out.flag("patroni_postgres_streaming", "The replica streams.", state == Some("streaming"));
    let archive = state == Some("in archive recovery");
    out.flag("patroni_postgres_in_archive_recovery", "It restores from an archive.", archive);
    let version = server.map_or(0, |server| server.version);
    out.gauge("patroni_postgres_server_version", "Version of PostgreSQL.", version);
}

fn replay_metrics(out: &mut Exposition, standby: Option<&Standby>) {
    let received = standby.map_or(0, |s| s.received.0);
    out.counter("patroni_xlog_received_location", "Position of the received log.", received);
    let replayed = standby.map_or(0, |s| s.replayed.0);
    out.counter("patroni_xlog_replayed_location", "Position of the replayed log.", replayed);
    let at = standby.and_then(|s| s.replayed_at.as_deref()).map_or(0.0, epoch_seconds);
    let help = "Epoch seconds of the last replayed commit, 0 if unknown.";
    out.gauge("patroni_xlog_replayed_timestamp", help, at);
    let paused = standby.is_some_and(|s| s.replay_paused);
    out.flag("patroni_xlog_paused", "Replay is paused.", paused);
}

fn cluster_metrics(out: &mut Exposition, snapshot: &Snapshot, now: Millis, unix_now: u64) {
    let view = snapshot.view.as_deref();
    out.flag("patroni_cluster_unlocked", "No leader is known.", unlocked(snapshot, now));
    let active = snapshot.failsafe_is_active(now);
    out.flag("patroni_failsafe_mode_is_active", "Failsafe mode is in force.", active);
    let enabled = snapshot.in_force().failsafe;
    out.flag("patroni_failsafe_mode_enabled", "Failsafe mode is enabled.", enabled);
    let map = view.and_then(|view| view.failsafe.as_ref());
    let member = map.is_some_and(|map| map.value.contains_key(&snapshot.name));
    out.flag("patroni_failsafe_member", "This node is asked in failsafe mode.", member);
    let timeline = snapshot.timeline(now).map_or(0, |t| t.0);
    out.gauge("patroni_postgres_timeline", "Timeline of this node.", timeline);
    let seen = dcs_last_seen(snapshot, now, unix_now);
    out.gauge("patroni_dcs_last_seen", "Epoch seconds of the last answer of the DCS.", seen);
    let pending = pending_restart(snapshot, now);
    out.flag("patroni_pending_restart", "A parameter waits for a restart.", pending);
    let paused = snapshot.settings.paused;
    out.flag("patroni_is_paused", "Cluster management is paused.", paused);
    let state = snapshot.state(now);
    let number = STATES.iter().position(|(_, s)| *s == state);
    let number = number.map_or_else(|| "-1".to_owned(), |n| n.to_string());
    let values = STATES.iter().enumerate().map(|(n, (name, _))| format!("{n}={name}"));
    let values: Vec<String> = values.collect();
    let help = format!("State of PostgreSQL, -1 if unknown.\n# Values: {}", values.join(", "));
    out.gauge("patroni_postgres_state", &help, number);
    let tags = &snapshot.tags;
    let priority = if tags.nofailover() { 0 } else { tags.priority() };
    out.gauge("patroni_failover_priority", "Priority in a failover.", priority);
}

/// Seconds since 1970 of a time as PostgreSQL prints it; 0 if it is none.
fn epoch_seconds(text: &str) -> f64 {
    UnixMillis::parse(text).map_or(0.0, |at| at.0 as f64 / 1000.0)
}

fn own_metrics(out: &mut Exposition, snapshot: &Snapshot, now: Millis) {
    let view = snapshot.view.as_deref();
    let term = view.and_then(types::ClusterView::leader_term).map_or(0, |t| t.0);
    out.gauge("pgherd_cluster_term", "Term of the leader; 0 if unknown.", term);
    let left = snapshot.claim_until.map_or(Millis::ZERO, |until| until.since(now));
    let left = left.as_duration().as_secs_f64();
    out.gauge("pgherd_leader_claim_seconds", "What is left of our leader claim.", left);
    let members = view.map_or(0, |v| v.members.len());
    out.gauge("pgherd_cluster_members", "Members known to the DCS.", members);
    let lag = snapshot.standby(now).and_then(|s| s.replay_lag);
    let lag = lag.unwrap_or_default().as_duration().as_secs_f64();
    out.gauge("pgherd_replay_lag_seconds", "Replay behind the primary's commits.", lag);
    let force = snapshot.in_force();
    let tier = match force.tier {
        FailoverTier::None => 0,
        FailoverTier::Lease => 1,
        FailoverTier::Fenced => 2,
    };
    let help = "Failover in force: 0 none, 1 by the lease, 2 by fencing the leader.";
    out.gauge("pgherd_failover_tier", help, tier);
    let candidates = force.candidates.len();
    out.gauge("pgherd_failover_candidates", "Members that could take over now.", candidates);
    let damping = force.min_interval.as_duration().as_secs_f64();
    out.gauge("pgherd_failover_min_interval_seconds", "Damping of failovers; 0 is off.", damping);
    lowered_metrics(out, snapshot, now);
    let handover = &snapshot.handover;
    let phases = [
        ("detect", handover.detect),
        ("end", handover.end),
        ("elect", handover.elect),
        ("promote", handover.promote),
        ("first_write", handover.first_write),
        ("publish", handover.publish),
    ];
    let phases = phases.into_iter().filter_map(|(phase, span)| {
        Some((format!("phase=\"{phase}\""), span?.as_duration().as_secs_f64()))
    });
    let help = "Phases of the last hand-over that this node had a part in.";
    out.family("pgherd_handover_phase_seconds", "gauge", help, phases);
}

/// How many places of each kind; their names are in `/patroni` and in `list`.
fn lowered_metrics(out: &mut Exposition, snapshot: &Snapshot, now: Millis) {
    let kind = |place: &Lowered| match place {
        Lowered::Server => "server",
        Lowered::Database(_) => "database",
        Lowered::Role(_) => "role",
        Lowered::RoleInDatabase(..) => "role_in_database",
        Lowered::Function(_) => "function",
    };
    let kinds = ["server", "database", "role", "role_in_database", "function"];
    let server = snapshot.running(now).map(|(server, _)| server);
    let counts = kinds.map(|name| {
        let places = server.into_iter().flat_map(|server| &server.lowered);
        (format!("kind=\"{name}\""), places.filter(|place| kind(place) == name).count())
    });
    let help = "Places that set synchronous_commit below on, on the primary.";
    out.family("pgherd_lowered_synchronous_commit", "gauge", help, counts);
}

/// Heartbeats.
fn peer_metrics(out: &mut Exposition, report: &Report, now: Millis) {
    type Value = fn(&PeerReport, Millis) -> Option<f64>;
    let families: [(&str, &str, &str, Value); 6] = [
        ("connected", "gauge", "Our connection to the member is up.", |peer, _| {
            Some(f64::from(u8::from(peer.connected)))
        }),
        ("round_trip_seconds", "gauge", "From a heartbeat to its echo, last.", |peer, _| {
            peer.round_trip.map(|span| span.as_secs_f64())
        }),
        ("round_trip_smoothed_seconds", "gauge", "The same, smoothed.", |peer, _| {
            peer.smoothed.map(|span| span.as_secs_f64())
        }),
        ("beats_sent_total", "counter", "Heartbeats sent to the member.", |peer, _| {
            Some(peer.sent as f64)
        }),
        ("echoes_missed_total", "counter", "Heartbeats that it did not echo.", |peer, _| {
            Some(peer.missed as f64)
        }),
        ("last_heard_seconds", "gauge", "Since the member's last heartbeat.", |peer, now| {
            Some(now.since(peer.heard?).as_duration().as_secs_f64())
        }),
    ];
    for (name, kind, help, value) in families {
        let lines = report
            .peers
            .iter()
            .filter_map(|(peer, known)| Some((label("peer", &peer.0), value(known, now)?)));
        out.family(&format!("pgherd_peer_{name}"), kind, help, lines);
    }
    let help = "Attempts to speak as a member, and frames, without the right proof.";
    out.counter("pgherd_peer_refused_total", help, report.refused);
    let help = "Heartbeats that came while too many waited for the agent.";
    out.counter("pgherd_peer_beats_dropped_total", help, report.dropped);
}

/// How long other members let us wait for their heartbeats.
fn interval_metrics(out: &mut Exposition, snapshot: &Snapshot, report: &Report) {
    let label = |peer: &MemberName| label("peer", &peer.0);
    let seconds = |span: Millis| span.as_duration().as_secs_f64();
    let longest = &snapshot.longest_intervals;
    let lines = longest.iter().map(|(peer, longest)| (label(peer), seconds(*longest)));
    let help = "Longest interval between the member's heartbeats, fading; twice that is waited.";
    out.family("pgherd_peer_longest_interval_seconds", "gauge", help, lines);
    let bounds = INTERVAL_BOUNDS_MS.map(|bound| seconds(Millis(bound)).to_string());
    let bounds: Vec<String> = bounds.into_iter().chain(["+Inf".to_owned()]).collect();
    let histograms = report.peers.iter().map(|(peer, known)| {
        let counts = known.intervals.counts.iter().scan(0, |below, count| {
            *below += count;
            Some(*below)
        });
        let counts = bounds.iter().cloned().zip(counts).collect();
        Histogram { label: label(peer), counts, sum: seconds(known.intervals.sum) }
    });
    let help = "Intervals between the member's heartbeats, as they came.";
    out.histograms("pgherd_peer_interval_seconds", help, histograms);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{self, PUBLISHED};

    #[test]
    fn metrics_of_a_leader() {
        let text =
            metrics_text(&samples::leader(), &Report::default(), PUBLISHED, 1_795_471_258_000);
        for line in [
            r#"patroni_version{scope="demo",name="node-0"} 040104"#,
            r#"patroni_primary{scope="demo",name="node-0"} 1"#,
            r#"patroni_xlog_location{scope="demo",name="node-0"} 67416152"#,
            r#"patroni_postgres_state{scope="demo",name="node-0"} 5"#,
            r#"patroni_dcs_last_seen{scope="demo",name="node-0"} 1795471258"#,
            r#"pgherd_leader_claim_seconds{scope="demo",name="node-0"} 20"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("# TYPE patroni_xlog_location counter\n"));
        let values = "# Values: 0=initdb, 1=initdb_failed, 2=custom_bootstrap, ";
        assert!(text.lines().any(|l| l.starts_with(values)), "{text}");
    }

    #[test]
    fn patronis_metrics_come_in_its_order() {
        let text = metrics_text(&samples::replica("node-2"), &Report::default(), PUBLISHED, 0);
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE patroni_"));
        let names: Vec<&str> = names.filter_map(|line| line.split(' ').next()).collect();
        let expected = "version postgres_running postmaster_start_time primary xlog_location \
            standby_leader replica sync_standby quorum_standby xlog_received_location \
            xlog_replayed_location xlog_replayed_timestamp xlog_paused postgres_streaming \
            postgres_in_archive_recovery postgres_server_version cluster_unlocked \
            failsafe_mode_is_active failsafe_mode_enabled failsafe_member postgres_timeline \
            dcs_last_seen pending_restart is_paused postgres_state failover_priority";
        assert_eq!(names.join(" "), expected);
        let started = r#"patroni_postmaster_start_time{scope="demo",name="node-2"} 1795471105.661"#;
        assert!(text.lines().any(|line| line == started), "{text}");
    }

    #[test]
    fn lowered_guarantees_are_counted() {
        let mut leader = samples::leader();
        samples::lower(&mut leader);
        let text = metrics_text(&leader, &Report::default(), PUBLISHED, 0);
        for (kind, count) in [("role", 2), ("database", 1), ("server", 0)] {
            let labels = format!(r#"{{scope="demo",name="node-0",kind="{kind}"}}"#);
            let line = format!("pgherd_lowered_synchronous_commit{labels} {count}");
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
    #[test]
    fn heartbeats_are_counted_for_each_peer() {
        let mut near = PeerReport { connected: true, sent: 7, missed: 1, ..Default::default() };
        near.echoed(std::time::Duration::from_millis(2));
        for before in [2_350, 2_150, 150] {
            near.hear(Millis(PUBLISHED.0 - before));
        }
        let peers = [("node-1".into(), near), ("node-2".into(), PeerReport::default())];
        let report = Report { peers: peers.into(), refused: 3, dropped: 0 };
        let text = metrics_text(&samples::leader(), &report, PUBLISHED, 0);
        for (metric, peer, value) in [
            ("connected", "node-1", "1"),
            ("round_trip_seconds", "node-1", "0.002"),
            ("round_trip_smoothed_seconds", "node-1", "0.002"),
            ("beats_sent_total", "node-1", "7"),
            ("echoes_missed_total", "node-1", "1"),
            ("last_heard_seconds", "node-1", "0.15"),
            ("longest_interval_seconds", "node-1", "0.45"),
            ("interval_seconds_sum", "node-1", "2.2"),
            ("interval_seconds_count", "node-1", "2"),
            ("connected", "node-2", "0"),
            ("beats_sent_total", "node-2", "0"),
        ] {
            let labels = format!(r#"{{scope="demo",name="node-0",peer="{peer}"}}"#);
            let line = format!("pgherd_peer_{metric}{labels} {value}");
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        for (bound, count) in [("0.25", 1), ("1.5", 1), ("2", 2), ("4", 2), ("+Inf", 2)] {
            let labels = format!(r#"scope="demo",name="node-0",peer="node-1",le="{bound}""#);
            let line = format!("pgherd_peer_interval_seconds_bucket{{{labels}}} {count}");
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("pgherd_peer_refused_total{scope=\"demo\",name=\"node-0\"} 3\n"));
        let never_heard =
            r#"pgherd_peer_last_heard_seconds{scope="demo",name="node-0",peer="node-2""#;
        assert!(!text.contains(never_heard), "{text}");
    }
}
