//! The dynamic configuration: the JSON object of the `config` key (as Patroni 4.1 has it).
//!
//! Garbage in a key of Patroni's behaves as there: a number falls back to its default, a boolean
//! is false, both with a warning; only ttl, loop_wait and retry_timeout refuse the whole document.
//! Below `pgherd` every mistake refuses it.

use std::collections::BTreeMap;

use serde_json::Value;
use types::Millis;

use crate::check::{Findings, check, word};
use crate::hooks::{Hooks, declared_methods};
use crate::keys::DYNAMIC;
use crate::problem::{Problem, Warning};
use crate::slots::{self, IgnoredSlot, PermanentSlot};
use crate::standby_cluster::StandbyCluster;
use crate::static_file::Static;
use crate::tree::{Kind, Node};
use crate::values;

/// Least values that we raise to. Patroni's 20, 1 and 3 s hold while a Patroni node is a member.
const TTL_MIN: Millis = Millis(5000);
const LOOP_WAIT_MIN: Millis = Millis(1000);
const RETRY_TIMEOUT_MIN: Millis = Millis(1000);

/// The shortest time between two heartbeats.
pub const HEARTBEAT_INTERVAL_MIN: Millis = Millis(50);
/// The longest.
pub const HEARTBEAT_INTERVAL_MAX: Millis = Millis(2_000);

// The smallest lease leaves room for the smallest loop and two attempts.
const _: () = assert!(LOOP_WAIT_MIN.0 + 2 * RETRY_TIMEOUT_MIN.0 <= TTL_MIN.0);

/// Whether commits wait for standbys, and how the set of them is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SynchronousMode {
    /// They do not wait.
    Off,
    /// They wait for every standby of the set.
    On,
    /// They wait for a quorum of the set.
    Quorum,
}

/// What may start an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailoverMode {
    /// Only the end of the leader's lease.
    Lease,
    /// Also the suspicion of a quorum.
    Fenced,
}

/// The dynamic configuration, complete: absent keys have their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dynamic {
    /// The leader's lease.
    pub ttl: Millis,
    /// Longest time between two evaluations.
    pub loop_wait: Millis,
    /// Limit of one operation on the DCS, attempts included.
    pub retry_timeout: Millis,
    /// Bytes that a candidate may lack.
    pub maximum_lag_on_failover: u64,
    /// Bytes by which a synchronous standby may lag before it is replaced; 0 or less: no limit.
    pub maximum_lag_on_syncnode: i64,
    /// Entries of `history` that are kept; 0: all.
    pub max_timelines_history: usize,
    /// How long a crashed primary may recover before the cluster fails over.
    pub primary_start_timeout: Millis,
    /// How long it may take to stop in synchronous mode; 0: no limit.
    pub primary_stop_timeout: Millis,
    /// How long nobody opens an election while the primary without a key still sends WAL; 0: not.
    pub primary_race_backoff: Millis,
    /// Whether a candidate must not be on an older timeline.
    pub check_timeline: bool,
    /// Whether the leader goes on without DCS while all members agree.
    pub failsafe_mode: bool,
    /// Whether automatic changes are suspended.
    pub pause: bool,
    /// Whether commits wait for standbys.
    pub synchronous_mode: SynchronousMode,
    /// Whether writes stop rather than go on without a standby.
    pub synchronous_mode_strict: bool,
    /// How many standbys a commit waits for, at most.
    pub synchronous_node_count: usize,
    /// How long the slot of an absent member is kept.
    pub member_slots_ttl: Millis,
    /// Whom the whole cluster follows, if it is a standby cluster.
    pub standby_cluster: Option<StandbyCluster>,
    /// Slots that every member keeps.
    pub slots: BTreeMap<String, PermanentSlot>,
    /// Slots that are left alone.
    pub ignore_slots: Vec<IgnoredSlot>,
    /// Settings of PostgreSQL that all members share.
    pub postgresql: DynamicPostgresql,
    /// Our own settings.
    pub pgherd: DynamicPgherd,
}

/// `postgresql` of the dynamic configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicPostgresql {
    /// Slots for members.
    pub use_slots: bool,
    /// pg_rewind instead of copying anew.
    pub use_pg_rewind: bool,
    /// Copy anew when pg_rewind fails.
    pub remove_data_directory_on_rewind_failure: bool,
    /// Copy anew when timelines diverged and pg_rewind cannot be used.
    pub remove_data_directory_on_diverged_timelines: bool,
    /// Server parameters.
    pub parameters: BTreeMap<String, String>,
    /// Lines of pg_hba.conf.
    pub pg_hba: Option<Vec<String>>,
    /// Lines of pg_ident.conf.
    pub pg_ident: Option<Vec<String>>,
    /// Commands, and what else stands in the node's file too.
    pub hooks: Hooks,
}

/// `pgherd` of the dynamic configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicPgherd {
    /// What may start an election.
    pub failover_mode: FailoverMode,
    /// Silence after which the leader is suspected.
    pub failure_detection_timeout: Millis,
    /// Time between two heartbeats.
    pub heartbeat_interval: Millis,
    /// Least time between two failovers.
    pub failover_min_interval: Millis,
    /// How long a proxy lets a client wait.
    pub hold_timeout: Millis,
    /// Replicas behind by more bytes leave the read-only route.
    pub maximum_lag: Option<u64>,
    /// How long a switchover waits for transactions of the proxies' clients.
    pub switchover_grace: Millis,
    /// PostgreSQL is dead this long before the lease ends; the agent stops it twice as early (I1).
    pub stop_margin: Millis,
    /// Whether proxies refuse to set `synchronous_commit` below `on` (I1).
    pub refuse_lowered_commit: bool,
}

impl Default for Dynamic {
    fn default() -> Dynamic {
        Dynamic {
            ttl: Millis(30_000),
            loop_wait: Millis(10_000),
            retry_timeout: Millis(10_000),
            maximum_lag_on_failover: 1_048_576,
            maximum_lag_on_syncnode: -1,
            max_timelines_history: 0,
            primary_start_timeout: Millis(300_000),
            primary_stop_timeout: Millis::ZERO,
            primary_race_backoff: Millis::ZERO,
            check_timeline: false,
            failsafe_mode: false,
            pause: false,
            synchronous_mode: SynchronousMode::Off,
            synchronous_mode_strict: false,
            synchronous_node_count: 1,
            member_slots_ttl: Millis(1_800_000),
            standby_cluster: None,
            slots: BTreeMap::new(),
            ignore_slots: Vec::new(),
            postgresql: DynamicPostgresql::default(),
            pgherd: DynamicPgherd::default(),
        }
    }
}

impl Default for DynamicPostgresql {
    fn default() -> DynamicPostgresql {
        DynamicPostgresql {
            use_slots: true,
            use_pg_rewind: false,
            remove_data_directory_on_rewind_failure: false,
            remove_data_directory_on_diverged_timelines: false,
            parameters: BTreeMap::new(),
            pg_hba: None,
            pg_ident: None,
            hooks: Hooks::default(),
        }
    }
}

impl Default for DynamicPgherd {
    fn default() -> DynamicPgherd {
        DynamicPgherd {
            failover_mode: FailoverMode::Lease,
            failure_detection_timeout: Millis(1000),
            heartbeat_interval: Millis(200),
            failover_min_interval: Millis::ZERO,
            hold_timeout: Millis(10_000),
            maximum_lag: None,
            switchover_grace: Millis(3000),
            stop_margin: Millis(1000),
            refuse_lowered_commit: false,
        }
    }
}

impl Dynamic {
    /// Reads the `config` key's document.
    ///
    /// # Errors
    /// Every reason why the document cannot be used, one line each; the old one stays in force.
    pub fn from_json(document: &Value) -> Result<(Dynamic, Vec<Warning>), Vec<String>> {
        Dynamic::from_tree(&Node::from_json(document))
            .map_err(|problems| problems.iter().map(Problem::to_string).collect())
    }

    pub(crate) fn from_tree(tree: &Node) -> Result<(Dynamic, Vec<Warning>), Vec<Problem>> {
        let (errors, mut warnings) = sort(check(tree, DYNAMIC, &declared_methods(tree)));
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut dynamic = read(tree);
        dynamic.postgresql.hooks = Hooks::read(tree, &mut warnings);
        dynamic.slots = slots::permanent(tree, &mut warnings);
        adjust(&mut dynamic, &mut warnings);
        let errors = inconsistent(tree, &dynamic.pgherd);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok((dynamic, warnings))
    }

    /// This configuration with what a node's own file overrides: settings of `postgresql` (its
    /// parameters are the effective ones afterwards), and stop_margin.
    #[must_use]
    pub fn merged(&self, local: &Static) -> Dynamic {
        let mut merged = self.clone();
        let (ours, theirs) = (&mut merged.postgresql, &local.postgresql);
        ours.use_pg_rewind = theirs.use_pg_rewind.unwrap_or(ours.use_pg_rewind);
        ours.remove_data_directory_on_rewind_failure = theirs
            .remove_data_directory_on_rewind_failure
            .unwrap_or(ours.remove_data_directory_on_rewind_failure);
        ours.remove_data_directory_on_diverged_timelines = theirs
            .remove_data_directory_on_diverged_timelines
            .unwrap_or(ours.remove_data_directory_on_diverged_timelines);
        if theirs.pg_hba.is_some() {
            ours.pg_hba.clone_from(&theirs.pg_hba);
        }
        if theirs.pg_ident.is_some() {
            ours.pg_ident.clone_from(&theirs.pg_ident);
        }
        ours.hooks = theirs.hooks.over(&ours.hooks);
        ours.parameters = crate::effective_parameters(self, &theirs.parameters).0;
        if let Some(margin) = local.pgherd.stop_margin {
            merged.pgherd.stop_margin = margin.min(longest_margin(self));
        }
        merged
    }
}

/// Values below `pgherd` that have the right type and still cannot be used.
fn inconsistent(tree: &Node, ours: &DynamicPgherd) -> Vec<Problem> {
    let mut errors = Vec::new();
    let mut error = |key: &str, text: String| {
        errors.push(Problem::new(tree.place_of(key), key, text));
    };
    let (silence, heartbeat) = (ours.failure_detection_timeout, ours.heartbeat_interval);
    if !(HEARTBEAT_INTERVAL_MIN..=HEARTBEAT_INTERVAL_MAX).contains(&heartbeat) {
        let (least, most) = (HEARTBEAT_INTERVAL_MIN, HEARTBEAT_INTERVAL_MAX);
        error("pgherd.heartbeat_interval", format!("must be {least} to {most}"));
    } else if heartbeat.0.saturating_mul(2) > silence.0 {
        let text = format!(
            "must be at most half of failure_detection_timeout ({silence}), or one late heartbeat \
             makes the leader suspect"
        );
        error("pgherd.heartbeat_interval", text);
    }
    if tree.at("pgherd.maximum_lag").is_some() && ours.maximum_lag.is_none() {
        error("pgherd.maximum_lag", "must not be negative".to_owned());
    }
    if ours.stop_margin == Millis::ZERO {
        error("pgherd.stop_margin", "must be above 0: killing takes time (I1)".to_owned());
    }
    errors
}

/// Sorts findings into errors and warnings.
fn sort(found: Findings) -> (Vec<Problem>, Vec<Warning>) {
    let (mut errors, mut warnings) = (found.refused, Vec::new());
    for problem in found.ill_typed {
        let strict = ["", "pgherd", "ttl", "loop_wait", "retry_timeout"];
        if strict.contains(&problem.key.as_str()) || is_ours(&problem.key) {
            errors.push(problem);
        } else {
            let text = format!("{}; its default holds", problem.text);
            warnings.push(Problem { text, ..problem });
        }
    }
    for problem in found.unknown {
        if is_ours(&problem.key) { errors.push(problem) } else { warnings.push(problem) }
    }
    (errors, warnings)
}

pub(crate) fn is_ours(key: &str) -> bool {
    key == "pgherd" || key.starts_with("pgherd.")
}

/// Reads a checked tree; what does not fit has its default.
fn read(tree: &Node) -> Dynamic {
    let default = Dynamic::default();
    let get = Getter { tree };
    let start = get.duration("master_start_timeout", default.primary_start_timeout);
    let stop = get.duration("master_stop_timeout", default.primary_stop_timeout);
    let strict = get.boolean("synchronous_mode_strict", false);
    // A set that must not be empty has at least one member.
    let count_min = usize::from(strict);
    Dynamic {
        ttl: get.duration("ttl", default.ttl),
        loop_wait: get.duration("loop_wait", default.loop_wait),
        retry_timeout: get.duration("retry_timeout", default.retry_timeout),
        maximum_lag_on_failover: get
            .unsigned("maximum_lag_on_failover", default.maximum_lag_on_failover),
        maximum_lag_on_syncnode: get
            .integer("maximum_lag_on_syncnode")
            .unwrap_or(default.maximum_lag_on_syncnode),
        max_timelines_history: get.count("max_timelines_history", default.max_timelines_history),
        primary_start_timeout: get.duration("primary_start_timeout", start),
        primary_stop_timeout: get.duration("primary_stop_timeout", stop),
        primary_race_backoff: get.duration("primary_race_backoff", default.primary_race_backoff),
        check_timeline: get.boolean("check_timeline", false),
        failsafe_mode: get.boolean("failsafe_mode", false),
        pause: get.boolean("pause", false),
        synchronous_mode: synchronous_mode(tree),
        synchronous_mode_strict: strict,
        synchronous_node_count: get
            .count("synchronous_node_count", default.synchronous_node_count)
            .max(count_min),
        member_slots_ttl: get.duration("member_slots_ttl", default.member_slots_ttl),
        standby_cluster: StandbyCluster::read(tree),
        slots: BTreeMap::new(),
        ignore_slots: slots::ignored(tree),
        postgresql: read_postgresql(&get),
        pgherd: read_pgherd(&get),
    }
}

fn read_postgresql(get: &Getter<'_>) -> DynamicPostgresql {
    let rewind_failure = "postgresql.remove_data_directory_on_rewind_failure";
    let diverged = "postgresql.remove_data_directory_on_diverged_timelines";
    DynamicPostgresql {
        use_slots: get.boolean("postgresql.use_slots", true),
        use_pg_rewind: get.boolean("postgresql.use_pg_rewind", false),
        remove_data_directory_on_rewind_failure: get.boolean(rewind_failure, false),
        remove_data_directory_on_diverged_timelines: get.boolean(diverged, false),
        parameters: parameters(get.tree, "postgresql.parameters"),
        pg_hba: get.tree.at("postgresql.pg_hba").and_then(values::line_list),
        pg_ident: get.tree.at("postgresql.pg_ident").and_then(values::line_list),
        hooks: Hooks::default(),
    }
}

fn read_pgherd(get: &Getter<'_>) -> DynamicPgherd {
    let default = DynamicPgherd::default();
    let mode = get.tree.at("pgherd.failover_mode").and_then(values::text).unwrap_or_default();
    DynamicPgherd {
        failover_mode: if mode.eq_ignore_ascii_case("fenced") {
            FailoverMode::Fenced
        } else {
            FailoverMode::Lease
        },
        failure_detection_timeout: get
            .duration("pgherd.failure_detection_timeout", default.failure_detection_timeout),
        heartbeat_interval: get.duration("pgherd.heartbeat_interval", default.heartbeat_interval),
        failover_min_interval: get
            .duration("pgherd.failover_min_interval", default.failover_min_interval),
        hold_timeout: get.duration("pgherd.hold_timeout", default.hold_timeout),
        maximum_lag: get.integer("pgherd.maximum_lag").and_then(|n| u64::try_from(n).ok()),
        switchover_grace: get.duration("pgherd.switchover_grace", default.switchover_grace),
        stop_margin: get.duration("pgherd.stop_margin", default.stop_margin),
        refuse_lowered_commit: get
            .boolean("pgherd.refuse_lowered_commit", default.refuse_lowered_commit),
    }
}

fn synchronous_mode(tree: &Node) -> SynchronousMode {
    let node = tree.at("synchronous_mode");
    match node.and_then(|node| word(node, &["off", "on", "quorum"])) {
        Some("quorum") => SynchronousMode::Quorum,
        Some("on") => SynchronousMode::On,
        Some(_) | None => SynchronousMode::Off,
    }
}

/// Server parameters as texts; null removes one.
pub(crate) fn parameters(tree: &Node, path: &str) -> BTreeMap<String, String> {
    let entries = tree.at(path).map(Node::entries).unwrap_or_default();
    let present = entries.iter().filter(|e| e.node.kind != Kind::Null);
    present.filter_map(|e| Some((e.key.clone(), values::parameter(&e.node)?))).collect()
}

struct Getter<'a> {
    tree: &'a Node,
}

impl Getter<'_> {
    fn duration(&self, key: &str, default: Millis) -> Millis {
        self.tree.at(key).and_then(values::duration).unwrap_or(default)
    }

    fn integer(&self, key: &str) -> Option<i64> {
        self.tree.at(key).and_then(values::integer)
    }

    fn unsigned(&self, key: &str, default: u64) -> u64 {
        self.integer(key).map_or(default, |n| u64::try_from(n).unwrap_or(0))
    }

    fn count(&self, key: &str, default: usize) -> usize {
        self.integer(key).map_or(default, |n| usize::try_from(n).unwrap_or(0))
    }

    /// Garbage is false, absence the default.
    fn boolean(&self, key: &str, default: bool) -> bool {
        self.tree.at(key).map_or(default, |node| values::boolean(node).unwrap_or(false))
    }
}

/// Makes the times fit each other as Patroni does (2.3), and the margin with them.
fn adjust(dynamic: &mut Dynamic, warnings: &mut Vec<Warning>) {
    let mut raise = |key: &str, value: &mut Millis, least: Millis| {
        if *value < least {
            let text = format!("{value} is below the least value, {least} is used");
            warnings.push(Problem::unplaced(key, text));
            *value = least;
        }
    };
    raise("ttl", &mut dynamic.ttl, TTL_MIN);
    raise("loop_wait", &mut dynamic.loop_wait, LOOP_WAIT_MIN);
    raise("retry_timeout", &mut dynamic.retry_timeout, RETRY_TIMEOUT_MIN);
    let (ttl, twice) = (dynamic.ttl, dynamic.retry_timeout.0.saturating_mul(2));
    if dynamic.loop_wait.0.saturating_add(twice) > ttl.0 {
        if twice.saturating_add(LOOP_WAIT_MIN.0) > ttl.0 {
            dynamic.loop_wait = LOOP_WAIT_MIN;
            // Patroni divides whole seconds.
            dynamic.retry_timeout = Millis((ttl.0 - LOOP_WAIT_MIN.0) / 2000 * 1000);
        } else {
            dynamic.loop_wait = Millis(ttl.0 - twice);
        }
        let text = format!(
            "loop_wait + 2 * retry_timeout must not exceed ttl ({ttl}): loop_wait {} and \
             retry_timeout {} are used",
            dynamic.loop_wait, dynamic.retry_timeout
        );
        warnings.push(Problem::unplaced("retry_timeout", text));
    }
    let longest = longest_margin(dynamic);
    let margin = &mut dynamic.pgherd.stop_margin;
    if *margin > longest {
        let text = format!(
            "{margin} leaves no time for a renewal (loop_wait + retry_timeout + 2 * stop_margin \
             must not exceed ttl); {longest} is used"
        );
        warnings.push(Problem::unplaced("pgherd.stop_margin", text));
        *margin = longest;
    }
}

/// The longest margin that leaves room for one renewal.
fn longest_margin(dynamic: &Dynamic) -> Millis {
    let needed = dynamic.loop_wait.plus(dynamic.retry_timeout);
    Millis(dynamic.ttl.since(needed).0 / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn times(document: Value) -> (u64, u64, u64, usize) {
        let (d, warnings) = Dynamic::from_json(&document).expect("valid");
        (d.ttl.0, d.loop_wait.0, d.retry_timeout.0, warnings.len())
    }

    #[test]
    fn times_are_adjusted_as_patroni_does() {
        assert_eq!(times(json!({})), (30_000, 10_000, 10_000, 0));
        assert_eq!(times(json!({"ttl": 20})), (20_000, 1000, 9000, 1));
        assert_eq!(times(json!({"ttl": 25})), (25_000, 5000, 10_000, 1));
        let small = json!({"ttl": 1, "loop_wait": 0, "retry_timeout": 0.5});
        assert_eq!(times(small), (5000, 1000, 1000, 3));
        let units = json!({"ttl": "10s", "loop_wait": "1500ms", "retry_timeout": 3});
        assert_eq!(times(units), (10_000, 1500, 3000, 0));
    }

    #[test]
    fn the_margin_leaves_time_for_a_renewal() {
        let document = json!({"ttl": 5, "loop_wait": 1, "retry_timeout": 2,
                              "pgherd": {"stop_margin": 2}});
        let (dynamic, warnings) = Dynamic::from_json(&document).expect("valid");
        assert_eq!(dynamic.pgherd.stop_margin, Millis(1000));
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn what_we_recommend_needs_no_adjustment() {
        let (dynamic, warnings) = Dynamic::from_json(&crate::recommended_dynamic()).expect("valid");
        assert_eq!(warnings, []);
        assert_eq!(dynamic.synchronous_mode, SynchronousMode::Quorum);
        assert_eq!(dynamic.postgresql.parameters["wal_sender_timeout"], "5s");
    }

    #[test]
    fn garbage_in_patronis_keys_is_its_default() {
        let document = json!({
            "maximum_lag_on_failover": "1MB", "primary_start_timeout": "soon",
            "check_timeline": "perhaps", "synchronous_mode": "fast", "ttll": 5,
            "postgresql": {"use_slots": "perhaps"}
        });
        let (dynamic, warnings) = Dynamic::from_json(&document).expect("usable");
        assert_eq!(warnings.len(), 6, "{warnings:?}");
        assert!(warnings.iter().any(|w| w.to_string().contains("did you mean ttl?")));
        let mut expected = Dynamic::default();
        expected.postgresql.use_slots = false;
        assert_eq!(dynamic, expected);
    }

    #[test]
    fn garbage_in_times_or_below_pgherd_refuses_the_document() {
        for (document, key) in [
            (json!({"ttl": "abc"}), "ttl: "),
            (
                json!({"pgherd": {"hold_timeot": 1}}),
                "pgherd.hold_timeot: unknown key; did you mean hold_timeout?",
            ),
            (json!({"pgherd": {"failover_mode": "x"}}), "pgherd.failover_mode: "),
            (json!({"pgherd": 5}), "pgherd: "),
            (json!({"pgherd": {"heartbeat_interval": 1}}), "pgherd.heartbeat_interval: must be at"),
            (
                json!({"pgherd": {"heartbeat_interval": "49ms"}}),
                "pgherd.heartbeat_interval: must be 0.050 s to 2.000 s",
            ),
            (
                json!({"pgherd": {"heartbeat_interval": 2.1, "failure_detection_timeout": 9}}),
                "pgherd.heartbeat_interval: must be 0.050 s",
            ),
            (json!([]), "the document"),
        ] {
            let errors = Dynamic::from_json(&document).expect_err("refused");
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].starts_with(key), "{errors:?}");
        }
    }

    #[test]
    fn lowered_commits_are_refused_where_it_is_said() {
        let read = |document: Value| Dynamic::from_json(&document);
        let (dynamic, warnings) = read(json!({"pgherd": {"refuse_lowered_commit": true}})).unwrap();
        assert!(dynamic.pgherd.refuse_lowered_commit && warnings.is_empty());
        assert!(!read(json!({})).unwrap().0.pgherd.refuse_lowered_commit);
        assert!(read(json!({"pgherd": {"refuse_lowered_commit": "maybe"}})).is_err());
    }

    #[test]
    fn old_names_and_modes() {
        let document = json!({"master_start_timeout": 5, "synchronous_mode": true,
            "synchronous_mode_strict": "on", "synchronous_node_count": 0,
            "postgresql": {"parameters": {"jit": false, "x.y": 1.5, "gone": null}}});
        let (dynamic, warnings) = Dynamic::from_json(&document).expect("valid");
        assert_eq!(warnings, []);
        assert_eq!(dynamic.primary_start_timeout, Millis(5000));
        assert_eq!(dynamic.synchronous_mode, SynchronousMode::On);
        assert_eq!(dynamic.synchronous_node_count, 1);
        let parameters = &dynamic.postgresql.parameters;
        assert_eq!(parameters["jit"], "off");
        assert_eq!(parameters["x.y"], "1.5");
        assert_eq!(parameters.len(), 2);
    }
}
