//! What the agent publishes for its readers, and the facts that follow from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::in_force::{InForce, in_force};
use serde_json::Value;
use types::{
    ClusterView, DataDir, LocalPostgres, Lsn, Member, MemberName, Millis, Primary, Process, Role,
    Server, Standby, Tags, Timeline,
};

/// The Patroni version whose behaviour we follow; other Patroni nodes branch on it.
pub const PATRONI_VERSION: &str = "4.1.4";

/// Our own version.
pub const PGHERD_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The synchronous modes of the dynamic configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// Asynchronous replication.
    #[default]
    Off,
    /// A fixed set, every member of it has everything.
    On,
    /// Any so many of the set.
    Quorum,
}

/// The settings in force that answers depend on; a part of the dynamic configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long a leader claim and a cluster view stay good.
    pub ttl: Millis,
    /// Upper bound between two evaluations of the agent.
    pub loop_wait: Millis,
    /// How long PostgreSQL may take to come up before a leader fails over.
    pub primary_start_timeout: Millis,
    /// Bytes a candidate may be behind; the default `lag` of `/readiness`.
    pub maximum_lag_on_failover: u64,
    /// Cluster management is paused.
    pub paused: bool,
    /// Synchronous replication; off in a standby cluster, whatever was configured.
    pub synchronous: Synchronous,
    /// The cluster follows another one.
    pub standby_cluster: bool,
}

impl Default for Settings {
    /// Patroni's defaults (as Patroni 4.1 has it).
    fn default() -> Settings {
        Settings {
            ttl: Millis::from_secs(30),
            loop_wait: Millis::from_secs(10),
            primary_start_timeout: Millis::from_secs(300),
            maximum_lag_on_failover: 1_048_576,
            paused: false,
            synchronous: Synchronous::Off,
            standby_cluster: false,
        }
    }
}

impl Settings {
    /// Reads the `config` key as Patroni reads it: what is missing or garbage is the default.
    #[must_use]
    pub fn from_config(config: &Value) -> Settings {
        let default = Settings::default();
        let seconds = |key: &str, default: Millis| match config.get(key) {
            Some(Value::Number(n)) => n
                .as_u64()
                .map(Millis::from_secs)
                .or_else(|| n.as_f64().and_then(millis_of))
                .unwrap_or(default),
            Some(Value::String(text)) => text.trim().parse().map_or(default, Millis::from_secs),
            Some(_) | None => default,
        };
        let standby_cluster = config
            .get("standby_cluster")
            .and_then(Value::as_object)
            .is_some_and(|section| !section.is_empty());
        Settings {
            ttl: seconds("ttl", default.ttl),
            loop_wait: seconds("loop_wait", default.loop_wait),
            primary_start_timeout: seconds("primary_start_timeout", default.primary_start_timeout),
            maximum_lag_on_failover: config
                .get("maximum_lag_on_failover")
                .and_then(Value::as_u64)
                .unwrap_or(default.maximum_lag_on_failover),
            paused: config.get("pause").is_some_and(truthy),
            synchronous: match standby_cluster {
                true => Synchronous::Off,
                false => synchronous_of(config.get("synchronous_mode")),
            },
            standby_cluster,
        }
    }

    /// The settings that the view's `config` key asks for; the defaults without one.
    #[must_use]
    pub fn from_view(view: &ClusterView) -> Settings {
        let config = view.config.as_ref();
        config.map_or_else(Settings::default, |c| Settings::from_config(&c.value))
    }
}

impl From<&config::Dynamic> for Settings {
    /// The settings in force.
    fn from(dynamic: &config::Dynamic) -> Settings {
        Settings {
            ttl: dynamic.ttl,
            loop_wait: dynamic.loop_wait,
            primary_start_timeout: dynamic.primary_start_timeout,
            maximum_lag_on_failover: dynamic.maximum_lag_on_failover,
            paused: dynamic.pause,
            synchronous: match dynamic.synchronous_mode {
                _ if dynamic.standby_cluster.is_some() => Synchronous::Off,
                config::SynchronousMode::Off => Synchronous::Off,
                config::SynchronousMode::On => Synchronous::On,
                config::SynchronousMode::Quorum => Synchronous::Quorum,
            },
            standby_cluster: dynamic.standby_cluster.is_some(),
        }
    }
}

fn millis_of(seconds: f64) -> Option<Millis> {
    let span = std::time::Duration::try_from_secs_f64(seconds).ok()?;
    u64::try_from(span.as_millis()).ok().map(Millis)
}

fn synchronous_of(value: Option<&Value>) -> Synchronous {
    match value {
        Some(Value::String(text)) if text.eq_ignore_ascii_case("quorum") => Synchronous::Quorum,
        Some(other) if truthy(other) => Synchronous::On,
        Some(_) | None => Synchronous::Off,
    }
}

/// Patroni's reading of a boolean: `true`, `on`, `yes`, `1` in any case.
pub(crate) fn truthy(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_i64() == Some(1),
        Value::String(text) => {
            let text = text.trim().to_ascii_lowercase();
            matches!(text.as_str(), "true" | "on" | "yes" | "1")
        }
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Which kind of failover the cluster is ready for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailoverTier {
    /// Enough voters can fence a silent leader: nobody waits for its lease.
    Fenced,
    /// The lease's end starts an election.
    Lease,
    /// Nobody could take over.
    #[default]
    None,
}

impl FailoverTier {
    /// The word in `/cluster` and the metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            FailoverTier::Fenced => "fenced",
            FailoverTier::Lease => "lease",
            FailoverTier::None => "none",
        }
    }
}

/// How long the phases of the last hand-over took that this agent had a part in; `None` for those
/// that it had none in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Handover {
    /// From the former leader's last sign of life in the DCS to its key seen gone.
    pub detect: Option<Millis>,
    /// From PostgreSQL's death (or the order to stop) to the end of its last process.
    pub end: Option<Millis>,
    /// From the leader key seen gone to the winner's transaction.
    pub elect: Option<Millis>,
    /// From there to the end of the promotion.
    pub promote: Option<Millis>,
    /// From there to the first acknowledged write.
    pub first_write: Option<Millis>,
    /// From there to the member key that opens the proxies' route.
    pub publish: Option<Millis>,
}

/// All that the REST interface knows; complete in itself, published by the agent after each step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The cluster's name.
    pub scope: String,
    /// Our name.
    pub name: MemberName,
    /// The last view of the DCS; `None` before the first.
    pub view: Option<Arc<ClusterView>>,
    /// Whether the watch on the DCS is open, so that `view` follows it closely.
    pub view_is_fresh: bool,
    /// When the DCS last confirmed `view` (boot-time clock).
    pub view_at: Millis,
    /// When the agent's loop last came round (boot-time clock).
    pub looped_at: Millis,
    /// The settings in force.
    pub settings: Settings,
    /// The last observation of our PostgreSQL.
    pub local: Option<LocalPostgres>,
    /// The end of our leader claim; we have the lock before it, and only before it.
    pub claim_until: Option<Millis>,
    /// Until when failsafe mode is in force: as a leader that every member agreed to, or as a
    /// member that agreed.
    pub failsafe_until: Option<Millis>,
    /// What we publish about ourselves.
    pub member: Option<Member>,
    /// Our effective tags.
    pub tags: Tags,
    /// The cluster's system identifier, once known.
    pub system_identifier: Option<String>,
    /// The last hand-over.
    pub handover: Handover,
    /// The longest interval between the heartbeats of each other member, as it has faded: what the
    /// patience with it is made of.
    pub longest_intervals: BTreeMap<MemberName, Millis>,
}

impl Snapshot {
    /// What is known before the first observation: nothing.
    #[must_use]
    pub fn new(scope: &str, name: MemberName, now: Millis) -> Snapshot {
        Snapshot {
            scope: scope.to_owned(),
            name,
            view: None,
            view_is_fresh: false,
            view_at: Millis::ZERO,
            looped_at: now,
            settings: Settings::default(),
            local: None,
            claim_until: None,
            failsafe_until: None,
            member: None,
            tags: Tags::default(),
            system_identifier: None,
            handover: Handover::default(),
            longest_intervals: BTreeMap::new(),
        }
    }

    /// Whether our leader claim still holds.
    #[must_use]
    pub fn has_lock(&self, now: Millis) -> bool {
        self.claim_until.is_some_and(|until| now < until)
    }

    /// The failover that is in force, by the last view.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        self.view.as_deref().map_or_else(|| in_force(&ClusterView::default()), in_force)
    }

    /// Whether failsafe mode is in force now.
    #[must_use]
    pub fn failsafe_is_active(&self, now: Millis) -> bool {
        self.failsafe_until.is_some_and(|until| now < until)
    }

    /// The view, unless it is older than `ttl` (I4).
    #[must_use]
    pub fn fresh_view(&self, now: Millis) -> Option<&ClusterView> {
        let view = self.view.as_deref()?;
        (now.since(self.view_at) <= self.settings.ttl).then_some(view)
    }

    /// What our running PostgreSQL said, unless that is older than `ttl` (I4).
    #[must_use]
    pub fn running(&self, now: Millis) -> Option<(&Server, &Role)> {
        let local = self.local.as_ref()?;
        if now.since(local.at) > self.settings.ttl {
            return None;
        }
        match &local.process {
            Process::Running(running) => Some((&running.server, &running.role)),
            Process::Stopped
            | Process::Orphaned
            | Process::NotReady { .. }
            | Process::Silent { .. } => None,
        }
    }

    /// Our PostgreSQL as a running primary.
    #[must_use]
    pub fn primary(&self, now: Millis) -> Option<&Primary> {
        match self.running(now)?.1 {
            Role::Primary(primary) => Some(primary),
            Role::Standby(_) => None,
        }
    }

    /// Our PostgreSQL as a running standby.
    #[must_use]
    pub fn standby(&self, now: Millis) -> Option<&Standby> {
        match self.running(now)?.1 {
            Role::Standby(standby) => Some(standby),
            Role::Primary(_) => None,
        }
    }

    /// Whether we lead and clients may come. The claim alone is not enough: between taking the
    /// leader key and the first acknowledged write our published role is not `primary`, and what
    /// clients could read then may yet be lost.
    #[must_use]
    pub fn leads(&self, now: Millis) -> bool {
        if self.settings.paused && self.fresh_view(now).is_none() {
            return self.primary(now).is_some();
        }
        let open = |m: &Member| matches!(m.role.as_str(), "primary" | "master" | "standby_leader");
        self.has_lock(now) && self.member.as_ref().is_some_and(open)
    }

    /// One of the state texts of Patroni, or `unknown`.
    #[must_use]
    pub fn state(&self, now: Millis) -> &str {
        let published = self.member.as_ref().map_or("unknown", |m| m.state.as_str());
        if self.running(now).is_some() {
            // A copy that is to be replaced may run on for a while.
            let replaced = published == "creating replica";
            return if replaced { published } else { "running" };
        }
        // `running` in the member key is a promise that the probe no longer confirms.
        if published == "running" { "unknown" } else { published }
    }

    /// `primary`, `replica`, `standby_leader`, or what we published last.
    #[must_use]
    pub fn role(&self, now: Millis) -> &str {
        match self.running(now) {
            Some((_, Role::Primary(_))) => "primary",
            Some((_, Role::Standby(_))) if self.settings.standby_cluster && self.has_lock(now) => {
                "standby_leader"
            }
            Some((_, Role::Standby(_))) => "replica",
            None => self.member.as_ref().map_or("uninitialized", |m| m.role.as_str()),
        }
    }

    /// `streaming` while a standby's receiver streams.
    #[must_use]
    pub fn replication_state(&self, now: Millis) -> Option<&str> {
        let standby = self.standby(now)?;
        if standby.receiver.as_ref().is_some_and(|r| r.streaming) {
            return Some("streaming");
        }
        self.member
            .as_ref()
            .and_then(|m| m.replication_state.as_deref())
            .filter(|state| *state != "streaming")
    }

    /// The timeline of our copy.
    #[must_use]
    pub fn timeline(&self, now: Millis) -> Option<Timeline> {
        let timeline = match self.running(now) {
            Some((_, Role::Primary(primary))) => primary.timeline,
            Some((_, Role::Standby(standby))) => standby.timeline,
            None => self.member.as_ref().and_then(|m| m.timeline)?,
        };
        (timeline.0 != 0).then_some(timeline)
    }

    /// Whether `/sync` lists us as voter.
    #[must_use]
    pub fn listed_in_sync(&self) -> bool {
        let view = self.view.as_deref();
        let sync = view.and_then(ClusterView::active_sync);
        sync.is_some_and(|s| crate::cluster::is_voter(&s.value, &self.name))
    }

    /// The system identifier of the cluster, else of the local copy.
    #[must_use]
    pub fn database_system_identifier(&self) -> Option<&str> {
        let local = self.local.as_ref().and_then(|l| match &l.data_dir {
            DataDir::Present(control) => Some(control.system_identifier.as_str()),
            DataDir::Empty | DataDir::Unusable { .. } => None,
        });
        self.system_identifier.as_deref().or(local)
    }

    /// The leader's last known position; 0 if unknown.
    #[must_use]
    pub fn leader_position(&self) -> Lsn {
        let status = self.view.as_deref().and_then(|v| v.status.as_ref());
        status.map_or(Lsn(0), |s| s.value.optime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_are_read_as_patroni_reads_them() {
        let settings = Settings::from_config(&json!({
            "ttl": 20, "loop_wait": "3", "pause": "on", "synchronous_mode": "Quorum",
            "maximum_lag_on_failover": "x", "standby_cluster": {}
        }));
        assert_eq!(settings.ttl, Millis::from_secs(20));
        assert_eq!(settings.loop_wait, Millis::from_secs(3));
        assert!(settings.paused && !settings.standby_cluster);
        assert_eq!(settings.synchronous, Synchronous::Quorum);
        let follows = json!({"synchronous_mode": true, "standby_cluster": {"host": "h"}});
        assert_eq!(Settings::from_config(&follows).synchronous, Synchronous::Off);
        assert_eq!(settings.maximum_lag_on_failover, 1_048_576);
        let dynamic = config::Dynamic::default();
        assert_eq!(Settings::from(&dynamic), Settings::default(), "both are Patroni's");
        let on = Settings::from_config(&json!({"synchronous_mode": true, "ttl": 0.5}));
        assert_eq!((on.synchronous, on.ttl), (Synchronous::On, Millis(500)));
    }
}
