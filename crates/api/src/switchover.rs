//! `POST /switchover` and `POST /failover`: what is refused at once, and how long one waits
//! (as Patroni 4.1 has it). The checks are courtesy to the operator; the core checks again.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use types::{ClusterView, MemberName, Millis, Revision, UnixMillis};

use crate::Published;
use crate::cluster::is_voter;
use crate::restart;
use crate::snapshot::{Settings, Snapshot, Synchronous};

/// The least time that the result of a switchover is waited for; twice this, or twice `loop_wait`.
const RESULT_WAIT_MIN: Millis = Millis::from_secs(10);

/// What the operator asks for, before it was checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SwitchoverRequest {
    /// `POST /failover`, as opposed to `/switchover`.
    pub failover: bool,
    /// `leader`.
    pub leader: Option<MemberName>,
    /// `candidate`, or `member`.
    pub candidate: Option<MemberName>,
    /// `scheduled_at`.
    pub scheduled_at: Option<String>,
}

impl SwitchoverRequest {
    /// Reads the body's fields; empty texts and other types count as absent.
    #[must_use]
    pub fn from_json(failover: bool, body: &Value) -> SwitchoverRequest {
        let text = |key: &str| {
            let text = body.get(key).and_then(Value::as_str);
            text.filter(|t| !t.is_empty()).map(str::to_owned)
        };
        SwitchoverRequest {
            failover,
            leader: text("leader").map(MemberName),
            candidate: text("candidate").or_else(|| text("member")).map(MemberName),
            scheduled_at: text("scheduled_at"),
        }
    }
}

/// A request that the present view does not speak against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValidatedSwitchover {
    /// A planned change away from a leader that is there.
    Switchover {
        /// The present leader.
        leader: MemberName,
        /// Who shall lead; anybody suitable if `None`.
        candidate: Option<MemberName>,
        /// Not before; ISO 8601 with an offset. Whether it is possible is seen then.
        scheduled_at: Option<String>,
    },
    /// A change to this member, with or without a leader.
    Failover {
        /// Who shall lead.
        candidate: MemberName,
    },
}

impl ValidatedSwitchover {
    /// `Switch` or `Fail`: the answers' first syllable.
    const fn verb(&self) -> &'static str {
        match self {
            ValidatedSwitchover::Switchover { .. } => "Switch",
            ValidatedSwitchover::Failover { .. } => "Fail",
        }
    }

    /// Whether it is for later.
    pub(crate) const fn is_scheduled(&self) -> bool {
        matches!(self, ValidatedSwitchover::Switchover { scheduled_at: Some(_), .. })
    }

    /// Who shall lead, if that was said.
    #[must_use]
    pub const fn candidate(&self) -> Option<&MemberName> {
        match self {
            ValidatedSwitchover::Switchover { candidate, .. } => candidate.as_ref(),
            ValidatedSwitchover::Failover { candidate } => Some(candidate),
        }
    }
}

/// Checks a request in Patroni's order; the first check that fails answers with code and text.
///
/// # Errors
/// The HTTP status and the text of the answer.
pub fn validate_switchover(
    snapshot: &Snapshot,
    request: SwitchoverRequest,
    now: UnixMillis,
) -> Result<ValidatedSwitchover, (u16, String)> {
    let refuse = |status: u16, text: &str| Err((status, text.to_owned()));
    let SwitchoverRequest { failover, leader, candidate, scheduled_at } = request;
    if failover && candidate.is_none() {
        return refuse(400, "Failover could be performed only to a specific candidate");
    }
    if !failover && leader.is_none() {
        return refuse(400, "Switchover could be performed only from a specific leader");
    }
    let paused = snapshot.settings.paused;
    let scheduled_at = match scheduled_at {
        None => None,
        Some(_) if failover => return refuse(400, "Failover can't be scheduled"),
        Some(_) if paused => return refuse(400, "Can't schedule switchover in the paused state"),
        Some(at) => Some(restart::schedule(&Value::String(at), "switchover", now)?),
    };
    // From here on a failover that names the leader is a switchover.
    if paused && candidate.is_none() {
        let text = "Switchover is possible only to a specific candidate in a paused state";
        return refuse(400, text);
    }
    if leader.is_some() && leader == candidate {
        return refuse(400, "Switchover target and source are the same");
    }
    let Some(view) = snapshot.view.as_deref() else {
        return refuse(503, "the DCS has not been read yet");
    };
    if scheduled_at.is_none() {
        possible(view, leader.as_ref(), candidate.as_ref()).map_err(|text| (412, text))?;
    }
    match (leader, candidate) {
        (Some(leader), candidate) => {
            Ok(ValidatedSwitchover::Switchover { leader, candidate, scheduled_at })
        }
        (None, Some(candidate)) => Ok(ValidatedSwitchover::Failover { candidate }),
        (None, None) => refuse(400, "Failover could be performed only to a specific candidate"),
    }
}

/// Whether somebody could take over, as far as the view tells.
fn possible(
    view: &ClusterView,
    leader: Option<&MemberName>,
    candidate: Option<&MemberName>,
) -> Result<(), String> {
    if leader.is_some() && view.leader_name() != leader {
        return Err("leader name does not match".into());
    }
    let action = if leader.is_some() { "switchover" } else { "failover" };
    let fixed_set = Settings::from_view(view).synchronous == Synchronous::On;
    let listed = |name: &MemberName| view.active_sync().is_some_and(|s| is_voter(&s.value, name));
    let names: Vec<&MemberName> = if let Some(candidate) = candidate {
        if leader.is_some() && fixed_set && !listed(candidate) {
            return Err("candidate name does not match with sync_standby".into());
        }
        if !view.members.contains_key(candidate) {
            return Err("candidate does not exists".into());
        }
        vec![candidate]
    } else {
        let others = view.members.keys().filter(|name| Some(*name) != leader);
        let names: Vec<_> = others.filter(|name| !fixed_set || listed(name)).collect();
        if names.is_empty() && fixed_set {
            return Err(format!("{action} is not possible: can not find sync_standby"));
        }
        if names.is_empty() {
            let why = "cluster does not have members except leader";
            return Err(format!("{action} is not possible: {why}"));
        }
        names
    };
    let good = |name: &MemberName| {
        view.member(name).is_some_and(|m| m.state == "running" && m.tags.may_lead())
    };
    if names.into_iter().any(good) {
        return Ok(());
    }
    Err(format!("{action} is not possible: no good candidates have been found"))
}

/// Waits until another leader is seen or the request was cleared without one. `written` is the
/// revision at which the agent wrote the request: views before it do not count.
///
/// Cancel safety: nothing is lost when dropped; the request stays in the DCS.
pub(crate) async fn result(
    snapshots: &mut watch::Receiver<Published>,
    request: &ValidatedSwitchover,
    old_leader: Option<&MemberName>,
    written: Option<Revision>,
) -> (u16, String) {
    let wait = result_wait(&snapshots.borrow().settings);
    let seconds = wait.as_secs();
    let deadline = Instant::now() + wait;
    loop {
        // Cloned, so that the agent's next publication never waits for this reader.
        let snapshot = snapshots.borrow_and_update().clone();
        if let Some(answer) = outcome(&snapshot, request, old_leader, written) {
            return answer;
        }
        if !matches!(tokio::time::timeout_at(deadline, snapshots.changed()).await, Ok(Ok(()))) {
            let what = format!("{}over status unknown after {seconds} seconds", request.verb());
            return (503, format!("{what}; operation may still be in progress"));
        }
    }
}

/// `2 * max(10 s, loop_wait)`.
pub(crate) fn result_wait(settings: &Settings) -> Duration {
    settings.loop_wait.max(RESULT_WAIT_MIN).as_duration() * 2
}

fn outcome(
    snapshot: &Snapshot,
    request: &ValidatedSwitchover,
    old_leader: Option<&MemberName>,
    written: Option<Revision>,
) -> Option<(u16, String)> {
    let view = snapshot.view.as_deref()?;
    if written.is_some_and(|written| view.revision < written) {
        return None;
    }
    let verb = request.verb();
    let new_leader = view.leader_name().filter(|name| Some(*name) != old_leader);
    if let Some(leader) = new_leader {
        let wanted = request.candidate().filter(|candidate| *candidate != leader);
        let text = match wanted {
            None => format!("Successfully {}ed over to \"{leader}\"", verb.to_lowercase()),
            Some(wanted) => format!("{verb}ed over to \"{leader}\" instead of \"{wanted}\""),
        };
        return Some((200, text));
    }
    if view.failover_request().is_none() {
        return Some((503, format!("{verb}over failed")));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::samples;
    use serde_json::json;

    fn with(keys: &[(&str, &str)]) -> Snapshot {
        let mut view = samples::view();
        for (key, value) in keys {
            samples::put(&mut view, key, value);
        }
        let mut snapshot = samples::leader();
        snapshot.settings = Settings::from_view(&view);
        snapshot.view = Some(Arc::new(view));
        snapshot
    }

    fn alone() -> Snapshot {
        let mut view = samples::view();
        view.members.retain(|name, _| name.as_str() == "node-0");
        Snapshot { view: Some(Arc::new(view)), ..samples::leader() }
    }

    fn refused(snapshot: &Snapshot, failover: bool, body: Value) -> (u16, String) {
        let request = SwitchoverRequest::from_json(failover, &body);
        validate_switchover(snapshot, request, NOW).expect_err("should be refused")
    }

    const NOW: UnixMillis = UnixMillis(1_795_471_262_000);
    const ON: (&str, &str) = ("config", r#"{"synchronous_mode":true}"#);
    const PAUSED: (&str, &str) = ("config", r#"{"pause":true}"#);
    const NOFAILOVER: &str = r#"{"state":"running","tags":{"nofailover":true}}"#;
    const SYNC_1: (&str, &str) = ("sync", r#"{"leader":"node-0","sync_standby":"node-1"}"#);
    const SYNC_0: (&str, &str) = ("sync", r#"{"leader":"node-0","sync_standby":null}"#);

    #[test]
    fn refusals_in_patronis_order() {
        let from = |leader: &str| json!({"leader": leader});
        let plain = with(&[]);
        let paused = with(&[PAUSED]);
        let bad = with(&[("members/node-1", NOFAILOVER), ("members/node-2", NOFAILOVER)]);
        let scheduled = json!({"leader": "node-0", "scheduled_at": "x"});
        let at = |at: &str| json!({"leader": "node-0", "scheduled_at": at});
        let (past, zoneless) = (at("2026-11-23T22:00Z"), at("2026-11-23T22:02"));
        let to_itself = json!({"leader": "node-0", "candidate": "node-0",
            "scheduled_at": "2026-11-23T22:02Z"});
        let scheduled_failover = json!({"candidate": "node-1", "scheduled_at": "x"});
        let cases = [
            (&plain, true, json!({}), 400, "Failover could be performed only to a specific"),
            (&plain, false, json!({"candidate": "a"}), 400, "Switchover could be performed only"),
            (&plain, true, scheduled_failover, 400, "Failover can't be scheduled"),
            (&paused, false, scheduled.clone(), 400, "Can't schedule switchover in the paused"),
            (&plain, false, scheduled, 422, "Unable to parse scheduled timestamp"),
            (&plain, false, past, 422, "Cannot schedule switchover in the past"),
            (&plain, false, zoneless, 400, "Timezone information is mandatory"),
            (&plain, false, to_itself, 400, "Switchover target and source are the same"),
            (&paused, false, from("node-0"), 400, "Switchover is possible only to a specific"),
            (
                &plain,
                false,
                json!({"leader": "node-0", "member": "node-0"}),
                400,
                "Switchover target and source are the same",
            ),
            (&plain, true, from("node-1"), 400, "Failover could be performed only to a specific"),
            (
                &plain,
                true,
                json!({"leader": "node-0", "candidate": "node-1", "scheduled_at": "x"}),
                400,
                "Failover can't be scheduled",
            ),
            (
                &plain,
                true,
                json!({"leader": "node-1", "candidate": "node-2"}),
                412,
                "leader name does not match",
            ),
            (
                &with(&[ON, SYNC_1]),
                false,
                json!({"leader": "node-0", "candidate": "node-2"}),
                412,
                "candidate name does not match with sync_standby",
            ),
            (&plain, true, json!({"candidate": "node-9"}), 412, "candidate does not exists"),
            (
                &with(&[ON, SYNC_0]),
                false,
                from("node-0"),
                412,
                "switchover is not possible: can not find sync_standby",
            ),
            (
                &alone(),
                false,
                from("node-0"),
                412,
                "switchover is not possible: cluster does not have members except leader",
            ),
            (
                &bad,
                false,
                from("node-0"),
                412,
                "switchover is not possible: no good candidates have been found",
            ),
            (
                &bad,
                true,
                json!({"candidate": "node-1"}),
                412,
                "failover is not possible: no good candidates have been found",
            ),
        ];
        for (snapshot, failover, body, status, text) in cases {
            let (got_status, got_text) = refused(snapshot, failover, body.clone());
            assert_eq!(got_status, status, "{body}: {got_text}");
            assert!(got_text.starts_with(text), "{body}: {got_text}");
        }
    }

    #[test]
    fn good_requests_pass() {
        let check = |failover, body| {
            let request = SwitchoverRequest::from_json(failover, &body);
            validate_switchover(&with(&[]), request, NOW)
        };
        let leader = MemberName::from("node-0");
        assert_eq!(
            check(false, json!({"leader": "node-0", "candidate": ""})),
            Ok(ValidatedSwitchover::Switchover { leader, candidate: None, scheduled_at: None })
        );
        assert_eq!(
            check(true, json!({"candidate": "node-2"})),
            Ok(ValidatedSwitchover::Failover { candidate: "node-2".into() })
        );
        // Who leads then is seen then.
        let later = json!({"leader": "node-9", "scheduled_at": "2026-11-23 23:02+01:00"});
        let leader = MemberName::from("node-9");
        let scheduled_at = Some("2026-11-23T23:02+01:00".to_owned());
        assert_eq!(
            check(false, later),
            Ok(ValidatedSwitchover::Switchover { leader, candidate: None, scheduled_at })
        );
    }

    #[test]
    fn outcomes_have_patronis_texts() {
        let old = MemberName::from("node-0");
        let to = |candidate: Option<&str>| ValidatedSwitchover::Switchover {
            leader: old.clone(),
            candidate: candidate.map(MemberName::from),
            scheduled_at: None,
        };
        let pending = ("failover", r#"{"leader":"node-0"}"#);
        let check = |keys: &[(&str, &str)], request: &ValidatedSwitchover, written| {
            outcome(&with(keys), request, Some(&old), written)
        };
        assert_eq!(check(&[pending], &to(None), None), None);
        let moved = [pending, ("leader", "node-1")];
        assert_eq!(
            check(&moved, &to(None), None),
            Some((200, "Successfully switched over to \"node-1\"".into()))
        );
        assert_eq!(
            check(&moved, &to(Some("node-2")), None),
            Some((200, "Switched over to \"node-1\" instead of \"node-2\"".into()))
        );
        let failover = ValidatedSwitchover::Failover { candidate: "node-1".into() };
        assert_eq!(
            check(&moved, &failover, None),
            Some((200, "Successfully failed over to \"node-1\"".into()))
        );
        let cleared = [("failover", "{}")];
        assert_eq!(
            check(&cleared, &to(None), Some(Revision(100))),
            Some((503, "Switchover failed".into()))
        );
        let old_view = check(&cleared, &to(None), Some(Revision(101)));
        assert_eq!(old_view, None, "the view is older than the request");
    }
}
