//! Who is heard, and whether we hold the leader for lost.
//!
//! A sign of life is a heartbeat of its agent, or anything on its WAL stream; and since an idle
//! stream is silent for seconds, its PostgreSQL is knocked at before it is held for lost. So an
//! agent that restarts costs no hand-over (I7). How long nothing may come is told by what was seen
//! before: a member whose beats came late, because machine or network are slow, gets twice the
//! longest interval, within bounds (`docs/decisions/0008-suspicion.md`). Being wrong costs a
//! hand-over, never a commit: nothing here is part of the safety argument.

use std::collections::BTreeMap;

use config::FailoverMode;
use types::{
    ClusterView, Heartbeat, LocalPostgres, MemberName, Millis, Process, Revision, Role, Suspicion,
};

use crate::action::Act;
use crate::brain::{Brain, upstream_of};
use crate::claim::UnderWay;
use crate::election::Accused;
use crate::reason::Reason;

/// The longest interval between beats fades by this part of itself with each beat: at five beats a
/// second it is halved in about half a minute.
const FADING: u64 = 256;
/// Patience is at most so many times `failure_detection_timeout`.
const PATIENCE_MAX: u64 = 4;
/// Each fence of ours that was voided doubles our patience with this leader, up to so often.
const VOIDED_MAX: u32 = 5;
/// A knock gets at least this long for its answer.
const KNOCK_MIN: Millis = Millis(200);
/// A step that comes later than it was asked for by more than this is our own lateness.
const LATE: Millis = Millis(50);

/// What is known of one member's beats.
#[derive(Debug, Clone)]
struct Beats {
    heard: Millis,
    longest: Millis,
    said: Heartbeat,
}

/// The last question to a leader's PostgreSQL that has ended.
#[derive(Debug, Clone)]
struct Knock {
    leader: MemberName,
    issued: Millis,
    answered: bool,
}

/// Who was heard when, and what they said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peers {
    beats: BTreeMap<MemberName, Beats>,
    suspects: Option<Suspicion>,
    /// The leader has given no sign of life for a while.
    worried: bool,
    knock: Option<Knock>,
    /// The fence of ours that is open against this leader key.
    fence: Option<(Revision, Revision)>,
    /// The leader key against which fences of ours were voided, and how often.
    voided: Option<(Revision, u32)>,
}

impl Peers {
    /// Takes a beat in. True if it says something new. Whoever was away for longer than our
    /// patience with it was not slow but gone: nothing is learnt from that.
    fn hear(
        &mut self,
        now: Millis,
        (from, said): (MemberName, Heartbeat),
        timeout: Millis,
    ) -> bool {
        let Some(beats) = self.beats.get_mut(&from) else {
            self.beats.insert(from, Beats { heard: now, longest: Millis::ZERO, said });
            return true;
        };
        let interval = now.since(beats.heard);
        let faded = Millis(beats.longest.0 - beats.longest.0 / FADING);
        let patience = patience(beats.longest, timeout);
        beats.longest = if interval > patience { faded } else { faded.max(interval) };
        beats.heard = now;
        let new = beats.said != said;
        beats.said = said;
        new
    }

    /// A time in which we did not run is nobody's silence: what came meanwhile still waits to be
    /// taken in.
    fn forgive(&mut self, now: Millis, late: Millis) {
        for beats in self.beats.values_mut() {
            beats.heard = beats.heard.plus(late).min(now);
        }
    }

    /// How long this member may be silent.
    fn patience(&self, name: &MemberName, timeout: Millis) -> Option<Millis> {
        let beats = self.beats.get(name)?;
        Some(patience(beats.longest, timeout))
    }

    /// Whether this member was heard of late.
    pub(crate) fn hears(&self, now: Millis, name: &MemberName, timeout: Millis) -> bool {
        self.silent_since(name, timeout).is_some_and(|(_, until)| now < until)
    }

    /// When this member was last heard, and when its silence becomes suspicious.
    fn silent_since(&self, name: &MemberName, timeout: Millis) -> Option<(Millis, Millis)> {
        let heard = self.beats.get(name)?.heard;
        Some((heard, heard.plus(self.patience(name, timeout)?)))
    }

    fn times_voided(&self, key: Revision) -> u32 {
        self.voided.filter(|(of, _)| *of == key).map_or(0, |(_, times)| times)
    }

    /// Notes what became of a fence that we opened against a leader key.
    fn note_fence(&mut self, view: &ClusterView, me: &MemberName) {
        let key = view.leader.as_ref().map(|l| l.mod_revision);
        let open = view.fence.as_ref();
        if let Some((fence, against)) = self.fence
            && key == Some(against)
            && open.is_none_or(|f| f.mod_revision != fence)
        {
            let times = self.times_voided(against).saturating_add(1).min(VOIDED_MAX);
            self.voided = Some((against, times));
        }
        self.fence = open
            .filter(|f| f.value.candidate == *me)
            .and_then(|f| Some((f.mod_revision, f.value.leader()?)));
    }
}

impl Brain {
    /// What our heartbeats say now. The term is the one that we read ourselves: what others told
    /// would go round for ever, also when the DCS has begun anew.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        let term = self.view.as_ref().and_then(|v| v.term.as_ref()).map(|t| t.value.term);
        Heartbeat { term: term.unwrap_or_default(), suspects: self.peers.suspects.clone() }
    }

    /// Whether the leader gives no sign of life, so that the local instance should be looked at
    /// often: a suspicion needs a recent picture of the WAL stream.
    #[must_use]
    pub fn is_worried(&self) -> bool {
        self.peers.worried
    }

    /// The longest interval between the beats of each member that was heard, as it has faded; for
    /// metrics.
    #[must_use]
    pub fn longest_intervals(&self) -> BTreeMap<MemberName, Millis> {
        let beats = self.peers.beats.iter();
        beats.map(|(name, beats)| (name.clone(), beats.longest)).collect()
    }

    /// Failover does not wait for the lease, as far as the settings go.
    pub(crate) fn is_fencing(&self) -> bool {
        self.dynamic.pgherd.failover_mode == FailoverMode::Fenced
    }

    /// Takes a beat in. True if it says something new.
    pub(crate) fn hear(&mut self, now: Millis, from: MemberName, said: Heartbeat) -> bool {
        if from == self.node.name {
            return false;
        }
        self.note_term(said.term);
        self.peers.hear(now, (from, said), self.dynamic.pgherd.failure_detection_timeout)
    }

    /// Before each step: whether it comes later than we asked for.
    pub(crate) fn note_lateness(&mut self, now: Millis, due: Option<Millis>) {
        let late = due.map_or(Millis::ZERO, |due| now.since(due));
        if late > LATE {
            self.peers.forgive(now, late);
        }
    }

    /// A fence of ours that is open is remembered, to know of its end.
    pub(crate) fn note_own_fence(&mut self, view: &ClusterView) {
        self.peers.note_fence(view, &self.node.name);
    }

    /// Whether we can hear this member.
    pub(crate) fn hears(&self, now: Millis, name: &MemberName) -> bool {
        self.peers.hears(now, name, self.dynamic.pgherd.failure_detection_timeout)
    }

    /// Whether this member's heartbeats came, and come no longer.
    pub(crate) fn is_silent(&self, now: Millis, name: &MemberName) -> bool {
        self.is_fencing() && self.peers.beats.contains_key(name) && !self.hears(now, name)
    }

    /// A knock at the leader's PostgreSQL has ended.
    pub(crate) fn note_knock(&mut self, ended: &UnderWay, answered: bool) {
        if let Act::Knock { leader, .. } = &ended.act {
            let (leader, issued) = (leader.name.clone(), ended.issued);
            self.peers.knock = Some(Knock { leader, issued, answered });
        }
    }

    /// Holds the leader for lost, or does not any more.
    pub(crate) fn suspect(&mut self, now: Millis, view: &ClusterView, local: &LocalPostgres) {
        self.peers.worried = false;
        self.peers.suspects = self.lost_leader(now, view, local);
    }

    fn lost_leader(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
    ) -> Option<Suspicion> {
        let leader = view.leader.as_ref()?;
        let name = &leader.value.name;
        let waits = self.dynamic.pause || !self.is_fencing() || view.unfenced().is_some();
        if waits || *name == self.node.name {
            return None;
        }
        let timeout = self.dynamic.pgherd.failure_detection_timeout;
        // Who was never heard sends no heartbeats (yet), and is not missed (I4).
        let (heard, until) = self.peers.silent_since(name, timeout)?;
        let patience = until.since(heard);
        let knock = self.peers.knock.clone().filter(|knock| knock.leader == *name);
        let answered = knock.as_ref().filter(|knock| knock.answered).map(|knock| knock.issued);
        let alive = heard.max(stream_spoke(local)?).max(answered.unwrap_or(Millis::ZERO));
        let worried = alive.plus(worry(timeout));
        if now < worried {
            self.wake_at(worried);
            return None;
        }
        self.peers.worried = true;
        let lost = alive.plus(Millis(patience.0 << self.peers.times_voided(leader.mod_revision)));
        if now < lost {
            self.wake_at(lost);
        }
        // A picture from before the worry does not tell whether the stream has been silent since.
        if local.at < worried {
            return None;
        }
        let unanswered = knock.is_some_and(|knock| knock.issued >= worried && !knock.answered);
        if !unanswered {
            self.knock(now, view, name, lost.since(now));
        }
        (now >= lost && unanswered)
            .then(|| Suspicion { leader: name.clone(), key: leader.mod_revision })
    }

    /// The answer may take until the leader would be lost without it.
    fn knock(&mut self, now: Millis, view: &ClusterView, name: &MemberName, left: Millis) {
        let Some(leader) = upstream_of(view, name) else { return };
        let limit = left.max(KNOCK_MIN);
        let why = Reason::LeaderIsSilent { leader: name.clone() };
        self.issue(now, Act::Knock { leader, limit }, why);
    }

    /// The present leader as an election would see it.
    pub(crate) fn accused(&self, now: Millis, view: &ClusterView) -> Option<Accused> {
        let key = view.leader.as_ref()?.mod_revision;
        let voters = view.active_sync().map(|s| (&s.value.voters, s.value.quorum + 1));
        let timeout = self.dynamic.pgherd.failure_detection_timeout;
        let suspects = |name: &MemberName| {
            if *name == self.node.name {
                return self.peers.suspects.as_ref().is_some_and(|s| s.key == key);
            }
            let said = self.peers.beats.get(name).and_then(|b| b.said.suspects.as_ref());
            said.is_some_and(|s| s.key == key) && self.peers.hears(now, name, timeout)
        };
        let by_enough = view.unfenced().is_none()
            && voters.is_some_and(|(voters, needed)| {
                voters.iter().filter(|name| suspects(name)).count() >= needed
            });
        Some(Accused { key, by_us: suspects(&self.node.name), by_enough })
    }
}

/// How long a member may be silent whose beats came at intervals up to this one.
fn patience(longest: Millis, timeout: Millis) -> Millis {
    let most = Millis(timeout.0.saturating_mul(PATIENCE_MAX));
    Millis(longest.0.saturating_mul(2)).clamp(timeout, most)
}

/// When silence calls for a closer look.
fn worry(timeout: Millis) -> Millis {
    Millis(timeout.0 / 2)
}

/// When something last came on the WAL stream, 0 if there is no stream any more; `None` where no
/// standby runs that could tell, or nothing has come yet.
fn stream_spoke(local: &LocalPostgres) -> Option<Millis> {
    let Process::Running(running) = &local.process else {
        return None;
    };
    let Role::Standby(standby) = &running.role else {
        return None;
    };
    let Some(receiver) = standby.receiver.as_ref().filter(|r| r.streaming) else {
        return Some(Millis::ZERO);
    };
    Some(local.at.since(receiver.silent_for?))
}

#[cfg(test)]
#[path = "suspicion_tests.rs"]
mod tests;
