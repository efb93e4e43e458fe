//! Operators' requests, as the leader sees them (as Patroni 4.1 has it).

use std::collections::BTreeSet;

use types::{
    ClusterView, FailoverRequest, LocalPostgres, MemberName, Millis, Process, Revision, Role, Term,
};

use crate::action::Act;
use crate::brain::Brain;
use crate::errand::Due;
use crate::reason::Reason;
use crate::strangers::streaming_members;

/// How long a named candidate that is well may take to stream again.
const STREAM_PATIENCE: Millis = Millis(10_000);

impl Brain {
    /// Looks at the `failover` key. True if a hand-over goes on, and nothing else should.
    pub(crate) fn operator_request(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        key: Revision,
        term: Term,
    ) -> bool {
        let Some(asked) = &view.failover else {
            return false;
        };
        let Some(request) = asked.value.clone() else {
            return false;
        };
        let due = self.due_request(now, &request);
        let stale = matches!(due, Some(Err(_)));
        let accepted = match due {
            None => return false,
            Some(Err(because)) => Err(because),
            Some(Ok(())) => self.accept(view, local, &request),
        };
        match accepted {
            Ok(candidate) => {
                // A primary that is not published yet first proves that it holds a quorum.
                if self.leader.confirmed != Some(term) {
                    return false;
                }
                let candidate = Some(candidate);
                let why = Reason::Requested { candidate: candidate.clone() };
                self.hand_over_and_release(now, view, local, (key, term), candidate, why);
                true
            }
            Err(_) if !stale && self.waits_for_stream(now, view, &request, asked.mod_revision) => {
                false
            }
            Err(because) => {
                let act = Act::ClearFailover { expected: asked.mod_revision, request };
                self.issue(now, act, Reason::RequestRefused { because });
                false
            }
        }
    }

    /// Whether a candidate is well and only does not stream, as after a restart of this primary: it
    /// gets a while to come back.
    fn waits_for_stream(
        &mut self,
        now: Millis,
        view: &ClusterView,
        request: &FailoverRequest,
        asked: Revision,
    ) -> bool {
        let me = &self.node.name;
        let ours = request.leader.as_ref().is_none_or(|leader| leader == me);
        let Some(member) = request.member.as_ref().filter(|name| ours && *name != me) else {
            return false;
        };
        let well = view.member(member).is_some_and(|m| m.is_fit() && m.tags.may_lead());
        let since = match self.leader.asked_since {
            Some((known, since)) if known == asked => since,
            Some(_) | None => now,
        };
        self.leader.asked_since = Some((asked, since));
        let until = since.plus(STREAM_PATIENCE);
        self.wake_at(until);
        well && now < until
    }

    /// Whether a request is due: `None` while it is not, an error once its time has passed. In
    /// maintenance mode nothing scheduled is.
    pub(crate) fn due_request(
        &mut self,
        now: Millis,
        request: &FailoverRequest,
    ) -> Option<Result<(), String>> {
        let Some(schedule) = &request.scheduled_at else {
            return Some(Ok(()));
        };
        if self.dynamic.pause {
            return None;
        }
        match self.due_at(now, schedule) {
            Due::Unknown => None,
            Due::At(at) => {
                self.wake_at(at);
                None
            }
            Due::Now => Some(Ok(())),
            Due::Stale => Some(Err(format!("its time has passed: {schedule}"))),
        }
    }

    /// The request that an election is about: one that is scheduled for later is none.
    pub(crate) fn pending_request<'a>(
        &self,
        now: Millis,
        view: &'a ClusterView,
    ) -> Option<&'a FailoverRequest> {
        view.failover_request().filter(|request| match &request.scheduled_at {
            None => true,
            // The leader cleans up what is stale; until then it may be under way.
            Some(schedule) => matches!(self.due_at(now, schedule), Due::Now | Due::Stale),
        })
    }

    /// The candidate that the request leads to, or why it cannot be fulfilled.
    fn accept(
        &self,
        view: &ClusterView,
        local: &LocalPostgres,
        request: &FailoverRequest,
    ) -> Result<MemberName, String> {
        if self.dynamic.pause && request.member.is_none() {
            return Err("maintenance mode needs a named candidate".to_owned());
        }
        if let Some(leader) = &request.leader
            && *leader != self.node.name
        {
            return Err(format!("leader name does not match: {leader} != {}", self.node.name));
        }
        if request.member.as_ref() == Some(&self.node.name) {
            return Err("the candidate is the leader already".to_owned());
        }
        let good = self.candidates(view, local);
        match &request.member {
            Some(name) if good.contains(name) => Ok(name.clone()),
            Some(name) => {
                let good: Vec<&str> = good.iter().map(MemberName::as_str).collect();
                Err(format!("{name} is no healthy candidate; healthy: [{}]", good.join(", ")))
            }
            None => {
                self.best_candidate(view, local).ok_or_else(|| "no healthy candidate".to_owned())
            }
        }
    }

    /// Members that could take over now without loss.
    pub(crate) fn candidates(
        &self,
        view: &ClusterView,
        local: &LocalPostgres,
    ) -> BTreeSet<MemberName> {
        let mut good = BTreeSet::new();
        let Some(streaming) = streaming_from(local) else {
            return good;
        };
        for (name, member) in &view.members {
            let votes = view.active_sync().is_none_or(|s| s.value.voters.contains(name));
            if *name != self.node.name
                && member.value.tags.may_lead()
                && votes
                && member.value.state == "running"
                && member.value.trouble.is_none()
                && streaming.iter().any(|(n, _)| n == name)
            {
                good.insert(name.clone());
            }
        }
        good
    }

    /// The candidate with the newest position, then priority, then name.
    pub(crate) fn best_candidate(
        &self,
        view: &ClusterView,
        local: &LocalPostgres,
    ) -> Option<MemberName> {
        let good = self.candidates(view, local);
        let streaming = streaming_from(local)?;
        streaming
            .into_iter()
            .filter(|(name, _)| good.contains(name))
            .max_by_key(|(name, flush)| {
                let priority = view.member(name).map_or(0, |m| m.tags.priority());
                (*flush, priority, std::cmp::Reverse(name.clone()))
            })
            .map(|(name, _)| name)
    }
}

fn streaming_from(local: &LocalPostgres) -> Option<Vec<(MemberName, types::Lsn)>> {
    let Process::Running(running) = &local.process else {
        return None;
    };
    match &running.role {
        Role::Primary(primary) => Some(
            streaming_members(primary)
                .map(|r| (MemberName::from(r.name.as_str()), r.flush))
                .collect(),
        ),
        Role::Standby(_) => None,
    }
}
