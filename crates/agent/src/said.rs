//! What the log says of what the agent does: the lines that Patroni writes there, since scripts
//! read them. The journal has everything, with reasons.

use config::Dynamic;
use decide::{Act, Reason, StartAs, StopMode, SyncRule};
use types::{
    ClusterView, DataDir, LocalPostgres, MemberName, Millis, Position, Process, Role, Tags,
};

/// The name in `synchronous_standby_names` that no member has.
const PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// In strict mode, without a standby.
const NOBODY_STREAMS: &str = "No active replication connections from Patroni members and \
     synchronous_mode_strict is requested. Commits wait until there is one";

/// A line, and whether it is a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) warning: bool,
    pub(crate) text: String,
}

fn info(text: impl Into<String>) -> Option<Said> {
    Some(Said { warning: false, text: text.into() })
}

fn warning(text: impl Into<String>) -> Option<Said> {
    Some(Said { warning: true, text: text.into() })
}

/// What is said when an action begins, if Patroni has a line for it.
pub(crate) fn beginning(act: &Act, why: &Reason, view: Option<&ClusterView>) -> Option<Said> {
    match act {
        Act::TakeInitialize => info("trying to bootstrap a new cluster"),
        Act::Clone { source, .. } => {
            let leader = view.and_then(ClusterView::leader_name) == Some(&source.name);
            let role = if leader { "leader" } else { "replica" };
            info(format!("trying to bootstrap from {role} '{}'", source.name))
        }
        Act::Rewind { source, .. } => info(format!("running pg_rewind from {}", source.name)),
        Act::Start { start_as: StartAs::Primary, .. } => match why {
            Reason::NoCandidate | Reason::Damped => info("starting primary after failure"),
            _ => None,
        },
        Act::Start { start_as: StartAs::Standby(_), .. } => info("starting as a secondary"),
        Act::Stop { mode } => stopping(*mode, why),
        Act::StopForHandOver { .. } => info("Demoting self (graceful)"),
        Act::SetSync { sync: SyncRule::First(names) | SyncRule::Any(names) }
            if names.names.contains(&MemberName::from(PLACEHOLDER)) =>
        {
            warning(NOBODY_STREAMS)
        }
        // A winner's `/sync` has voters only where its commits wait for one who is not there.
        Act::Promote { .. }
            if view
                .and_then(ClusterView::active_sync)
                .is_some_and(|s| !s.value.voters.is_empty()) =>
        {
            warning(NOBODY_STREAMS)
        }
        _ => None,
    }
}

fn stopping(mode: StopMode, why: &Reason) -> Option<Said> {
    match (mode, why) {
        (_, Reason::LeaseRunsOut { .. }) => warning("Demoting self (offline)"),
        (_, Reason::PrimaryWithoutLeaderKey | Reason::NewerTerm { .. } | Reason::Fenced { .. }) => {
            warning("Demoting self (immediate-nolock)")
        }
        (_, Reason::Unwell { .. } | Reason::NoGuard) => warning("Demoting self (immediate)"),
        (_, Reason::StartTimedOut) => warning("stopped PostgreSQL because of startup timeout"),
        (StopMode::Fast | StopMode::Immediate, _) => None,
    }
}

/// What is said when an action has taken effect, if Patroni has a line for it.
pub(crate) fn done(act: &Act) -> Option<Said> {
    match act {
        Act::FinishBootstrap { .. } => info("initialized a new cluster"),
        Act::TakeLeadership(winner) if winner.clear_failover => {
            info("Cleaning up failover key after acquiring leader lock...")
        }
        Act::TakeLeadership(_) => info("acquired session lock as a leader"),
        Act::Promote { .. } => info("promoted self to leader by acquiring session lock"),
        Act::RetakeLeadership(_) => info("acquired session lock as a leader"),
        Act::ReleaseLeader { .. } => info("Leader key released"),
        Act::Rewind { .. } => info("pg_rewind exit code=0"),
        Act::Stop { .. } => None,
        _ => None,
    }
}

/// What a member sees of itself and the cluster.
pub(crate) struct Scene<'a> {
    pub(crate) me: &'a MemberName,
    pub(crate) tags: &'a Tags,
    pub(crate) dynamic: &'a Dynamic,
    pub(crate) view: &'a ClusterView,
    pub(crate) local: &'a LocalPostgres,
    /// How long a primary without its key is waited for.
    pub(crate) race_waits: Option<Millis>,
}

impl Scene<'_> {
    /// The lines of one round of the loop.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(result) = self.result() else {
            return lines;
        };
        if !result.starts_with("no action. ") {
            let owner = self.view.leader_name().map_or("None", MemberName::as_str);
            lines.push(format!("Lock owner: {owner}; I am {}", self.me));
        }
        if self.view.leader.is_none() {
            lines.extend(self.better());
        }
        let prefix = if self.dynamic.pause { "PAUSE: " } else { "" };
        lines.push(format!("{prefix}{result}"));
        lines
    }

    /// The result line.
    fn result(&self) -> Option<String> {
        let me = self.me;
        let standby = if self.dynamic.standby_cluster.is_some() { "standby " } else { "" };
        let running = match &self.local.process {
            Process::Running(running) => Some(&running.role),
            _ => None,
        };
        match (self.view.leader_name(), running) {
            (Some(leader), Some(Role::Primary(_))) if leader == me => {
                Some(format!("no action. I am ({me}), the leader with the lock"))
            }
            (Some(leader), Some(Role::Standby(_))) if leader != me => Some(format!(
                "no action. I am ({me}), a secondary, and following a {standby}leader ({leader})"
            )),
            (Some(_), Some(Role::Standby(_))) if !standby.is_empty() => {
                Some(format!("no action. I am ({me}), the standby leader with the lock"))
            }
            (Some(leader), Some(Role::Primary(_))) => Some(if self.dynamic.pause {
                "continue to run as primary without lock".to_owned()
            } else {
                format!("demoting self because I do not have the lock and {leader} leads")
            }),
            (Some(_), Some(Role::Standby(_))) => None,
            (Some(_), None) if self.dynamic.pause => Some("postgres is not running".to_owned()),
            (Some(_), None) => None,
            (None, Some(Role::Standby(_))) if self.dynamic.pause => {
                Some(format!("no action. I am ({me})"))
            }
            (None, Some(Role::Standby(_))) if !self.tags.may_lead() => {
                Some("following a different leader because I am not allowed to promote".to_owned())
            }
            (None, Some(Role::Standby(_))) if self.race_waits.is_some() => {
                self.race_waits.map(|left| {
                    let left = left.0.div_ceil(1_000);
                    format!(
                        "My ({me}) wal position moved since last heart beat loop, {left} seconds \
                         until leader race"
                    )
                })
            }
            (None, Some(Role::Standby(_))) => self.better().map(|_| {
                "following a different leader because i am not the healthiest node".to_owned()
            }),
            (None, Some(Role::Primary(_))) => None,
            (None, None) => (self.local.data_dir == DataDir::Empty)
                .then(|| "waiting for leader to bootstrap".to_owned()),
        }
    }

    /// Who is to lead rather than this member, and why.
    fn better(&self) -> Option<String> {
        let fence = &self.view.fence.as_ref()?.value.id;
        let pledges =
            || self.view.pledges.iter().filter(|(_, pledge)| pledge.value.fence == *fence);
        let place = |position: Position| (position.timeline, position.lsn);
        let (_, own) = pledges().find(|(name, _)| *name == self.me)?;
        let own = place(own.value.position);
        let rank = self.tags.priority();
        pledges().filter(|(name, _)| *name != self.me).find_map(|(name, pledge)| {
            let theirs = place(pledge.value.position);
            let priority = self.view.member(name).map_or(1, |member| member.tags.priority());
            if theirs > own {
                Some(format!("Wal position of {name} is ahead of my wal position"))
            } else if theirs == own && priority > rank {
                Some(format!(
                    "{name} has equally tolerable WAL position and priority {priority}, while this \
                     node has priority {rank}"
                ))
            } else {
                None
            }
        })
    }
}

/// Says the lines of a round when they are new, and each `loop_wait`.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    last: Option<(Vec<String>, Millis)>,
}

impl Rounds {
    /// What is to be said now.
    pub(crate) fn due(
        &mut self,
        now: Millis,
        lines: Vec<String>,
        loop_wait: Millis,
    ) -> Vec<String> {
        let silent =
            self.last.as_ref().is_some_and(|(last, at)| *last == lines && now < at.plus(loop_wait));
        if silent || lines.is_empty() {
            return Vec::new();
        }
        self.last = Some((lines.clone(), now));
        lines
    }
}

#[cfg(test)]
mod tests {
    use types::{KeyValue, Revision};

    use super::*;

    fn lines(keys: &[(&str, &str)], dynamic: &Dynamic, tags: &Tags) -> Vec<String> {
        let keys: Vec<KeyValue> = keys
            .iter()
            .map(|(key, value)| KeyValue {
                key: (*key).to_owned(),
                value: value.as_bytes().to_vec(),
                create_revision: Revision(1),
                mod_revision: Revision(1),
                lease: 1,
            })
            .collect();
        let view = ClusterView::from_keys(Revision(2), &keys);
        let standby = types::Standby {
            timeline: types::Timeline(1),
            received: types::Lsn(5),
            replayed: types::Lsn(5),
            receiver: None,
            upstream: None,
            replay_lag: None,
            replayed_at: None,
            replay_paused: false,
            restores: false,
        };
        let server = types::Server { version: 15, ..types::Server::default() };
        let role = Role::Standby(standby);
        let process = Process::Running(types::Running { server, role });
        let local = LocalPostgres {
            at: Millis(1),
            data_dir: DataDir::Empty,
            process,
            health: types::Health::default(),
            durable: types::Durable::default(),
            compared: None,
        };
        let me = MemberName::from("a");
        Scene { me: &me, tags, dynamic, view: &view, local: &local, race_waits: None }.lines()
    }

    const FENCE: (&str, &str) =
        ("pgherd/fence", r#"{"id":"f","leader_revision":0,"sync_revision":0,"candidate":"a"}"#);
    const OWN: (&str, &str) =
        ("pgherd/pledges/a", r#"{"fence":"f","timeline":1,"lsn":5,"term":1}"#);

    #[test]
    fn a_standby_says_whom_it_follows() {
        let dynamic = Dynamic::default();
        let said = lines(&[("leader", "b")], &dynamic, &Tags::default());
        assert_eq!(said, ["no action. I am (a), a secondary, and following a leader (b)"]);
        let paused = Dynamic { pause: true, ..dynamic };
        let said = lines(&[("leader", "b")], &paused, &Tags::default());
        assert_eq!(said, ["PAUSE: no action. I am (a), a secondary, and following a leader (b)"]);
    }

    #[test]
    fn who_stands_back_says_for_whom() {
        let other = r#"{"fence":"f","timeline":1,"lsn":5,"term":1}"#;
        let member = r#"{"tags":{"failover_priority":2}}"#;
        let keys = [FENCE, OWN, ("pgherd/pledges/b", other), ("members/b", member)];
        let said = lines(&keys, &Dynamic::default(), &Tags::default());
        assert!(
            said[1].starts_with("b has equally tolerable WAL position and priority 2, while"),
            "{said:?}"
        );
        let newer = r#"{"fence":"f","timeline":1,"lsn":6,"term":1}"#;
        let keys = [FENCE, OWN, ("pgherd/pledges/b", newer)];
        let said = lines(&keys, &Dynamic::default(), &Tags::default());
        assert_eq!(said[1], "Wal position of b is ahead of my wal position");
        let stands_back = Tags::from(serde_json::json!({ "nofailover": true }));
        let said = lines(&[], &Dynamic::default(), &stands_back);
        assert_eq!(said[1], "following a different leader because I am not allowed to promote");
    }

    #[test]
    fn a_round_is_said_when_it_is_new_and_each_loop_wait() {
        let mut rounds = Rounds::default();
        let one = || vec!["one".to_owned()];
        assert_eq!(rounds.due(Millis(0), one(), Millis(10)), one());
        assert!(rounds.due(Millis(9), one(), Millis(10)).is_empty());
        assert_eq!(rounds.due(Millis(10), one(), Millis(10)), one());
        assert_eq!(rounds.due(Millis(11), vec!["two".to_owned()], Millis(10)), ["two"]);
    }
}
