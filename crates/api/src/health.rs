//! The health endpoints (as Patroni 4.1 has it), as pure functions of a snapshot.

use std::collections::BTreeSet;

use serde_json::Value;
use types::{Lsn, Millis};

use crate::snapshot::Snapshot;

/// The query parameters of a health check; the first of equal names counts, and an empty value is
/// none (as Patroni 4.1 has it).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters {
    /// `lag`: bytes of replay a replica may be behind; garbage is ignored, as Patroni does.
    pub lag: Option<u64>,
    /// `replication_state`: must be equal.
    pub replication_state: Option<String>,
    /// `tag_<key>=<value>`: each must be equal.
    pub tags: Vec<(String, String)>,
    /// `mode=write`: `/readiness` measures what was received, not what was replayed.
    pub received: bool,
}

impl Filters {
    /// Picks the known parameters from decoded pairs; unknown ones are ignored.
    #[must_use]
    pub fn from_pairs(pairs: Vec<(String, String)>) -> Filters {
        let mut filters = Filters::default();
        let mut seen = BTreeSet::new();
        for (key, value) in pairs {
            if value.is_empty() || !seen.insert(key.clone()) {
                continue;
            }
            match key.as_str() {
                "lag" => filters.lag = parse_bytes(&value),
                "replication_state" => filters.replication_state = Some(value),
                "mode" => filters.received = value == "write",
                other => {
                    if let Some(tag) = other.strip_prefix("tag_") {
                        filters.tags.push((tag.to_owned(), value));
                    }
                }
            }
        }
        filters
    }
}

/// `1048576`, `16MB`, `1 GB`.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1 << 10,
        "mb" => 1 << 20,
        "gb" => 1 << 30,
        "tb" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Whether the health check at `path` (without its query) passes. A path that nobody knows never
/// does; monitoring uses odd ones such as `/master/foo`, so the words are searched, not compared.
#[must_use]
pub fn passes(snapshot: &Snapshot, now: Millis, path: &str, filters: &Filters) -> bool {
    let has = |word: &str| path.contains(word);
    let leads = snapshot.leads(now);
    let standby_cluster = snapshot.settings.standby_cluster;
    if has("standby_leader") || has("standby-leader") {
        return standby_leads(snapshot, now);
    }
    if has("leader") {
        return leads;
    }
    if path == "/" || has("primary") || has("master") || has("read-write") {
        return leads && !standby_cluster;
    }
    let (ok, needs_view) = if has("replica") {
        (replica_passes(snapshot, now, filters), false)
    } else if has("read-only") && !has("sync") && !has("quorum") {
        (leads || replica_passes(snapshot, now, filters), false)
    } else if has("health") {
        (snapshot.state(now) == "running", false)
    } else {
        (synchronous_passes(snapshot, now, path, filters), true)
    };
    ok && tags_match(snapshot, filters) && (!needs_view || snapshot.fresh_view(now).is_some())
}

fn standby_leads(snapshot: &Snapshot, now: Millis) -> bool {
    snapshot.settings.standby_cluster
        && snapshot.has_lock(now)
        && matches!(snapshot.role(now), "replica" | "standby_leader")
}

fn replica_passes(snapshot: &Snapshot, now: Millis, filters: &Filters) -> bool {
    let Some(standby) = snapshot.standby(now) else {
        return false;
    };
    let near = filters.lag.is_none_or(|lag| {
        snapshot.leader_position().max(standby.received).0 <= standby.replayed.0.saturating_add(lag)
    });
    let wanted = filters.replication_state.as_deref();
    let state_fits = wanted.is_none_or(|w| snapshot.replication_state(now) == Some(w));
    snapshot.role(now) == "replica" && !snapshot.tags.noloadbalance() && near && state_fits
}

/// The exact paths that need to know the synchronous set.
fn synchronous_passes(snapshot: &Snapshot, now: Millis, path: &str, filters: &Filters) -> bool {
    use crate::snapshot::Synchronous;
    let replica = replica_passes(snapshot, now, filters);
    let listed = snapshot.listed_in_sync();
    let mode = snapshot.settings.synchronous;
    let sync = listed && mode == Synchronous::On;
    let quorum = listed && mode == Synchronous::Quorum;
    match path {
        "/sync" | "/synchronous" => sync && replica,
        "/quorum" => quorum && replica,
        "/async" | "/asynchronous" => !sync && !quorum && replica,
        "/read-only-sync" | "/read-only-synchronous" => snapshot.leads(now) || (sync && replica),
        "/read-only-quorum" => snapshot.leads(now) || (quorum && replica),
        _ => false,
    }
}

fn tags_match(snapshot: &Snapshot, filters: &Filters) -> bool {
    if filters.tags.is_empty() {
        return true;
    }
    // Tags are plain data with string keys, so this cannot fail; an absent tag fails the check.
    let tags = serde_json::to_value(&snapshot.tags).unwrap_or_default();
    filters.tags.iter().all(|(key, wanted)| {
        let text = tags.get(key).map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string().to_lowercase(),
        });
        text.is_some_and(|text| text == *wanted)
    })
}

/// `/liveness`: whether the agent's loop still comes round.
#[must_use]
pub fn alive(snapshot: &Snapshot, now: Millis) -> bool {
    let settings = &snapshot.settings;
    let patience = if snapshot.primary(now).is_some() {
        settings.ttl
    } else {
        settings.ttl.plus(settings.ttl)
    };
    let next = snapshot.looped_at.plus(settings.loop_wait);
    settings.paused || now < next.plus(patience)
}

/// `/readiness`: whether this member serves, as leader or as a replica that is near enough.
#[must_use]
pub fn ready(snapshot: &Snapshot, now: Millis, filters: &Filters) -> bool {
    if snapshot.leads(now) {
        return true;
    }
    let Some(standby) = snapshot.standby(now) else {
        return false;
    };
    if snapshot.replication_state(now) != Some("streaming") {
        return false;
    }
    // Without a fresh view only who sends to us knows how far we are behind (I4).
    let heard = standby.receiver.as_ref().is_some_and(|receiver| receiver.silent_for.is_some());
    if snapshot.fresh_view(now).is_none() && !heard {
        return snapshot.failsafe_is_active(now);
    }
    let settings = &snapshot.settings;
    let limit = filters.lag.unwrap_or(settings.maximum_lag_on_failover);
    let have: Lsn = if filters.received { standby.received } else { standby.replayed };
    snapshot.leader_position().max(standby.received).bytes_since(have) <= limit
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::samples::{self, PUBLISHED};
    use crate::snapshot::Settings;
    use types::{Process, Receiver, Standby};

    fn in_mode(mut snapshot: Snapshot, config: &str) -> Snapshot {
        let mut view = samples::view();
        samples::put(&mut view, "config", config);
        snapshot.settings = Settings::from_view(&view);
        snapshot.view = Some(Arc::new(view));
        snapshot
    }

    fn unseen(mut snapshot: Snapshot) -> Snapshot {
        snapshot.view_at.0 -= 21_000;
        snapshot
    }

    fn lagging() -> Snapshot {
        let mut snapshot = samples::replica("node-1");
        change_standby(&mut snapshot, |standby| standby.replayed.0 -= 2 << 20);
        snapshot
    }

    fn change_standby(snapshot: &mut Snapshot, change: impl FnOnce(&mut Standby)) {
        if let Some(local) = &mut snapshot.local
            && let Process::Running(running) = &mut local.process
            && let types::Role::Standby(standby) = &mut running.role
        {
            change(standby);
        }
    }

    fn silent() -> Snapshot {
        let mut snapshot = samples::replica("node-1");
        if let Some(local) = &mut snapshot.local {
            local.process = Process::Silent { since: PUBLISHED };
        }
        snapshot
    }

    fn promoting() -> Snapshot {
        let mut snapshot = samples::leader();
        if let Some(member) = &mut snapshot.member {
            member.role = "promoted".into();
        }
        snapshot
    }

    fn no_balance() -> Snapshot {
        let mut snapshot = samples::replica("node-1");
        snapshot.tags = serde_json::json!({ "noloadbalance": true }).into();
        snapshot
    }

    /// Name, snapshot, seconds after it was published, paths that pass, paths that do not.
    type Case = (&'static str, Snapshot, u64, &'static str, &'static str);

    fn leader_cases() -> Vec<Case> {
        let paused = in_mode(samples::leader(), r#"{"ttl":20,"pause":true}"#);
        let paused = Snapshot { claim_until: None, ..unseen(paused) };
        let standby = r#"{"ttl":20,"standby_cluster":{"host":"x"}}"#;
        let standby = Snapshot {
            claim_until: samples::leader().claim_until,
            ..in_mode(samples::replica("node-1"), standby)
        };
        vec![
            (
                "leader",
                samples::leader(),
                0,
                "/ /primary /master/foo /read-write /leader /read-only /health /read-only-sync \
                 /read-only-quorum /primary?tag_x=y",
                "/replica /standby-leader /sync /async /foo /readonly",
            ),
            (
                "leader whose claim is over",
                samples::leader(),
                20,
                "/health",
                "/ /primary /leader /read-only /replica",
            ),
            (
                "leader that has not opened",
                promoting(),
                0,
                "/health",
                "/ /primary /leader /read-only",
            ),
            ("paused leader without DCS", paused, 0, "/ /primary /health", "/replica"),
            (
                "leader without DCS whose claim holds",
                unseen(samples::leader()),
                0,
                "/ /primary /health",
                "/replica /read-only-sync",
            ),
            (
                "standby cluster's leader",
                standby,
                0,
                "/standby-leader /standby_leader",
                "/primary /replica /",
            ),
        ]
    }

    fn replica_cases() -> Vec<Case> {
        let replica = || samples::replica("node-1");
        let quorum = in_mode(replica(), r#"{"ttl":20,"synchronous_mode":"quorum"}"#);
        let on = in_mode(replica(), r#"{"ttl":20,"synchronous_mode":"on"}"#);
        vec![
            (
                "replica",
                replica(),
                0,
                "/replica /replica-eu /read-only /async /asynchronous /health /replica?lag=0 \
                 /replica?lag=junk /replica?replication_state=streaming",
                "/ /leader /sync /quorum /read-only-sync /standby_leader \
                 /replica?replication_state=x /replica?tag_a=b",
            ),
            (
                "tagged replica",
                samples::replica("node-2"),
                0,
                "/replica?tag_failover_priority=1",
                "/replica?tag_failover_priority=2 /health?tag_zone=a",
            ),
            (
                "replica behind",
                lagging(),
                0,
                "/replica /replica?lag=2MB /replica?lag=2097152 /replica?lag=2MB&lag=1MB \
                 /replica?lag=",
                "/replica?lag=1MB /read-only?lag=1024kB /replica?lag=1MB&lag=2MB",
            ),
            (
                "replica with an old view",
                unseen(replica()),
                0,
                "/replica /read-only /health",
                "/async /read-only-sync",
            ),
            ("agent that publishes nothing any more", replica(), 21, "", "/replica /async /health"),
            ("silent PostgreSQL", silent(), 0, "", "/replica /health /read-only /"),
            ("noloadbalance", no_balance(), 0, "/health", "/replica /read-only /async"),
            (
                "voter",
                quorum,
                0,
                "/replica /quorum /read-only-quorum",
                "/sync /async /read-only-sync",
            ),
            (
                "sync standby",
                on,
                0,
                "/sync /synchronous /read-only-synchronous",
                "/quorum /async /sync/",
            ),
        ]
    }

    fn check(snapshot: &Snapshot, now: Millis, target: &str) -> bool {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        passes(snapshot, now, path, &Filters::from_pairs(pairs))
    }

    #[test]
    fn health_paths_answer_as_patronis_do() {
        let cases = leader_cases().into_iter().chain(replica_cases());
        for (name, snapshot, seconds, passing, failing) in cases {
            let now = PUBLISHED.plus(Millis::from_secs(seconds));
            for target in passing.split_whitespace() {
                assert!(check(&snapshot, now, target), "{name}: {target} should pass");
            }
            for target in failing.split_whitespace() {
                assert!(!check(&snapshot, now, target), "{name}: {target} should not pass");
            }
        }
    }

    #[test]
    fn liveness_follows_the_loop() {
        let at = |s| PUBLISHED.plus(Millis::from_secs(s));
        let (leader, replica) = (samples::leader(), samples::replica("node-1"));
        assert!(alive(&leader, at(19)));
        // The observation is as old as the loop, so nobody knows that it still is a primary.
        assert!(alive(&replica, at(42)) && !alive(&replica, at(43)));
        let paused = in_mode(samples::replica("node-1"), r#"{"pause":true}"#);
        assert!(alive(&paused, at(1_000_000)));
    }

    #[test]
    fn readiness_measures_lag() {
        let now = PUBLISHED;
        let default = Filters::default();
        assert!(ready(&samples::leader(), now, &default));
        assert!(ready(&samples::replica("node-1"), now, &default));
        assert!(!ready(&lagging(), now, &default));
        let write = Filters { received: true, ..Filters::default() };
        assert!(ready(&lagging(), now, &write));
        assert!(!ready(&silent(), now, &default));
        for (lag, expected) in [("3MB", true), ("1MB", false), ("junk", false)] {
            let filters = Filters::from_pairs(vec![("lag".into(), lag.into())]);
            assert_eq!(ready(&lagging(), now, &filters), expected, "{lag}");
        }
        // Without the DCS: who streams is told how far it is; else failsafe mode must be in force.
        let unseen = || unseen(samples::replica("node-1"));
        assert!(!ready(&unseen(), now, &default));
        let failsafe = Snapshot { failsafe_until: Some(now.plus(Millis(1))), ..unseen() };
        assert!(ready(&failsafe, now, &default));
        let mut heard = unseen();
        change_standby(&mut heard, |standby| {
            standby.receiver = Some(Receiver { streaming: true, silent_for: Some(Millis(1)) });
        });
        assert!(ready(&heard, now, &default));
        change_standby(&mut heard, |standby| standby.replayed.0 -= 2 << 20);
        assert!(!ready(&heard, now, &default));
        let later = PUBLISHED.plus(Millis::from_secs(21));
        assert!(!ready(&samples::replica("node-1"), later, &default));
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("16MB"), Some(16 << 20));
        assert_eq!(parse_bytes("7"), Some(7));
        assert_eq!(parse_bytes("1 kB"), Some(1024));
        assert_eq!(parse_bytes("-1"), None);
        assert_eq!(parse_bytes("é"), None);
        assert_eq!(parse_bytes("99999999999TB"), None);
    }
}
