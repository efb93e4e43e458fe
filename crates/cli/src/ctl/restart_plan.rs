//! In which order members are restarted, and whether a primary can be restarted by way of a
//! switchover. Pure functions of a view.

use api::{Settings, Synchronous};
use types::{ClusterView, Member, MemberName};

/// Of these a standby must have at least as much as its primary; with less it stops replaying, and
/// does not start.
const AT_LEAST_THE_PRIMARYS: [&str; 5] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
];

/// Standbys come first: what does not start does not start there first, and what is raised they
/// must have before the primary does. What is lowered the primary must have first.
pub(super) fn in_order(view: &ClusterView, mut names: Vec<MemberName>) -> Vec<MemberName> {
    let Some(leader) = view.leader_name() else {
        return names;
    };
    let changed = Changed::of(view.member(leader));
    let leader_first = !changed.lowered.is_empty() && !changed.raises;
    names.sort_by_key(|name| (name == leader) != leader_first);
    names
}

/// What waits for a restart of the primary, of the parameters that its standbys must have, too.
struct Changed {
    lowered: Vec<String>,
    raises: bool,
}

impl Changed {
    fn of(primary: Option<&Member>) -> Changed {
        let mut changed = Changed { lowered: Vec::new(), raises: false };
        let pending = primary.into_iter().flat_map(|member| &member.pending_restart_reason);
        for (name, change) in pending.filter(|(n, _)| AT_LEAST_THE_PRIMARYS.contains(&n.as_str())) {
            let number = |text: &str| text.parse::<i64>().ok();
            match (number(&change.old_value), number(&change.new_value)) {
                (Some(old), Some(new)) if new < old => changed.lowered.push(name.clone()),
                (Some(old), Some(new)) if new > old => changed.raises = true,
                _ => {}
            }
        }
        changed
    }
}

/// A restart of the primary by way of a switchover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detour {
    /// Who leads before and after.
    pub(super) leader: MemberName,
    /// Who leads meanwhile.
    pub(super) candidate: MemberName,
    /// Who waits for a restart besides the leader; the candidate first.
    pub(super) standbys: Vec<MemberName>,
}

impl Detour {
    /// The way, or why there is none.
    pub(super) fn of(view: &ClusterView) -> Result<Detour, String> {
        let settings = Settings::from_view(view);
        let leader = view.leader_name().ok_or("the cluster has no leader")?;
        if settings.paused {
            return Err("the cluster is in maintenance mode".to_owned());
        }
        if settings.standby_cluster {
            return Err("the cluster is a standby of another one; nobody writes to it".to_owned());
        }
        let lowered = Changed::of(view.member(leader)).lowered;
        if !lowered.is_empty() {
            return Err(format!(
                "{} is lowered: a standby keeps as much as its primary has, so that has to be \
                 restarted in place",
                lowered.join(", ")
            ));
        }
        let candidate = candidate(view).ok_or(
            "no synchronous standby is fit to lead (pgherd list shows who is, and why not)",
        )?;
        if settings.synchronous == Synchronous::On && some_are_left_out(view, leader) {
            return Err(format!(
                "synchronous_mode is on, and more standbys stream than are synchronous: {leader} \
                 could not come back as one; raise synchronous_node_count, or take mode quorum"
            ));
        }
        let waits = |name: &&MemberName| view.member(name).is_some_and(|m| m.pending_restart);
        let mut standbys: Vec<MemberName> =
            view.members.keys().filter(|name| *name != leader).filter(waits).cloned().collect();
        standbys.sort_by_key(|name| *name != candidate);
        Ok(Detour { leader: leader.clone(), candidate, standbys })
    }
}

/// Whether the set of synchronous standbys has no place for all of them: who is in stays in.
fn some_are_left_out(view: &ClusterView, leader: &MemberName) -> bool {
    let voters = view.active_sync().map_or(0, |sync| sync.value.voters.len());
    let may = view.members.iter().filter(|(name, m)| *name != leader && m.value.tags.may_sync());
    may.count() > voters
}

fn candidate(view: &ClusterView) -> Option<MemberName> {
    let fit = view.members.iter().filter(|(name, _)| is_ready(view, name));
    let best = fit.max_by_key(|(name, m)| (m.value.tags.priority(), std::cmp::Reverse(*name)));
    best.map(|(name, _)| name.clone())
}

/// Whether this member is a synchronous standby that could lead now.
pub(super) fn is_ready(view: &ClusterView, name: &MemberName) -> bool {
    let listed = view.active_sync().is_some_and(|sync| sync.value.voters.contains(name));
    let may_lead = view.member(name).is_some_and(|member| member.tags.may_lead());
    listed && may_lead && streams(view, name)
}

/// Whether this member is a standby that runs and streams.
pub(super) fn streams(view: &ClusterView, name: &MemberName) -> bool {
    let streams = |member: &Member| {
        member.is_fit() && member.replication_state.as_deref() == Some("streaming")
    };
    view.leader_name() != Some(name) && view.member(name).is_some_and(streams)
}

#[cfg(test)]
mod tests {
    use super::super::test_view;
    use super::*;

    const STREAMS: &str =
        r#"{"pgherd":"1","state":"running","role":"replica","replication_state":"streaming"}"#;

    fn pending(parameter: &str, old: &str, new: &str) -> String {
        let change = format!(r#"{{"old_value":"{old}","new_value":"{new}"}}"#);
        format!(
            r#"{{"pgherd":"1","state":"running","role":"primary","pending_restart":true,
                "pending_restart_reason":{{"{parameter}":{change}}}}}"#
        )
    }

    fn cluster(config: &str, b: &str, c: &str) -> ClusterView {
        test_view::view(&[
            ("leader", "b"),
            ("config", config),
            ("sync", r#"{"leader":"b","quorum":1,"sync_standby":"a,c"}"#),
            ("members/a", STREAMS),
            ("members/b", b),
            ("members/c", c),
        ])
    }

    fn order(b: &str) -> String {
        let view = cluster("{}", b, STREAMS);
        let names = in_order(&view, ["a", "b", "c"].map(MemberName::from).to_vec());
        names.iter().map(MemberName::as_str).collect::<Vec<_>>().join("")
    }

    #[test]
    fn standbys_come_first_unless_they_must_have_as_much_as_the_primary() {
        assert_eq!(order(STREAMS), "acb");
        assert_eq!(order(&pending("shared_buffers", "128MB", "64MB")), "acb");
        assert_eq!(order(&pending("max_connections", "100", "200")), "acb");
        assert_eq!(order(&pending("max_connections", "100", "50")), "bac");
        let both = pending(
            "max_connections",
            "100",
            r#"50"},"max_wal_senders":{"old_value":"10","new_value":"20"#,
        );
        assert_eq!(order(&both), "acb", "what is raised stops a standby, what is lowered waits");
    }

    #[test]
    fn a_way_by_switchover_needs_a_synchronous_standby() {
        let raised = pending("max_connections", "100", "200");
        let waits = STREAMS.replace('{', r#"{"pending_restart":true,"#);
        let detour = |b: &str, c: &str| Detour::of(&cluster("{}", b, c));
        let way = detour(&raised, &waits).expect("there is one");
        assert_eq!((way.leader.as_str(), way.candidate.as_str()), ("b", "a"));
        assert_eq!(way.standbys, [MemberName::from("c")]);
        let refused = |view: ClusterView| Detour::of(&view).expect_err("there is none");
        let lowered = refused(cluster("{}", &pending("max_wal_senders", "10", "5"), STREAMS));
        assert!(lowered.starts_with("max_wal_senders is lowered"), "{lowered}");
        let paused = refused(cluster(r#"{"pause":true}"#, &raised, STREAMS));
        assert!(paused.contains("maintenance mode"), "{paused}");
        let one = r#"{"leader":"b","sync_standby":"a"}"#;
        let mode_on = test_view::view(&[
            ("leader", "b"),
            ("config", r#"{"synchronous_mode":true}"#),
            ("sync", one),
            ("members/a", STREAMS),
            ("members/b", &raised),
            ("members/c", STREAMS),
        ]);
        assert!(refused(mode_on).contains("synchronous_node_count"));
        let mut alone = cluster("{}", &raised, STREAMS);
        alone.sync = None;
        assert!(refused(alone).starts_with("no synchronous standby"));
    }

    #[test]
    fn who_does_not_stream_is_not_ready() {
        let view = cluster("{}", STREAMS, r#"{"pgherd":"1","state":"running","role":"replica"}"#);
        let ready = |name: &str| is_ready(&view, &MemberName::from(name));
        assert_eq!(["a", "b", "c"].map(ready), [true, false, false]);
    }
}
