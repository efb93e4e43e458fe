//! The leader's claim on its lease, and the lanes in which actions run.

use std::collections::BTreeMap;

use types::Millis;

use crate::action::{Act, Action, ActionId, Lane, Outcome};
use crate::reason::Reason;

/// Until when we may act as the leader. Counted from before the renewal's first request went out,
/// never from its answer (I1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Claim {
    until: Option<Millis>,
    /// When the newest renewal that was answered was issued.
    sent: Option<Millis>,
}

impl Claim {
    /// A renewal issued at `sent` was answered: the claim runs until `sent + ttl`.
    pub(crate) fn extend(&mut self, sent: Millis, ttl: Millis) {
        self.sent = self.sent.max(Some(sent));
        self.keep(sent.plus(ttl));
    }

    /// It runs until then, by an earlier answer.
    pub(crate) fn keep(&mut self, until: Millis) {
        self.until = self.until.max(Some(until));
    }

    /// The leader key is not ours any more.
    pub(crate) fn clear(&mut self) {
        self.until = None;
        self.sent = None;
    }

    /// Whether somebody has confirmed at or after `at` that we lead.
    pub(crate) fn confirmed_since(self, at: Millis) -> bool {
        self.sent.is_some_and(|sent| sent >= at)
    }

    /// Whether nothing is promised for longer than a lease of `ttl` lasts from the newest renewal
    /// on: neither the claim nor what the guard was told.
    pub(crate) fn fits(self, ttl: Millis, guard: Option<Millis>) -> bool {
        self.sent.is_some_and(|sent| {
            let end = sent.plus(ttl);
            self.until.is_some_and(|until| until <= end) && guard.is_none_or(|kill| kill < end)
        })
    }

    /// When the claim ends.
    pub(crate) fn until(self) -> Option<Millis> {
        self.until
    }

    /// When PostgreSQL must be stopped if the claim does not move: two margins before its end,
    /// since the guard kills one margin before it.
    pub(crate) fn stop_at(self, margin: Millis) -> Option<Millis> {
        self.until.map(|until| Millis(until.0.saturating_sub(2 * margin.0)))
    }

    /// When the guard kills.
    pub(crate) fn kill_at(self, margin: Millis) -> Option<Millis> {
        self.until.map(|until| Millis(until.0.saturating_sub(margin.0)))
    }

    /// Whether we may act as the leader now.
    pub(crate) fn holds(self, now: Millis, margin: Millis) -> bool {
        self.stop_at(margin).is_some_and(|stop_at| now < stop_at)
    }
}

/// An action under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnderWay {
    pub(crate) id: ActionId,
    pub(crate) act: Act,
    pub(crate) issued: Millis,
}

/// First pause after a failure, doubled with each further one.
const RETRY_FIRST: Millis = Millis(50);
/// A lane that was free for longer than this before it failed again begins with the first pause.
const QUIET: Millis = Millis(1_000);

/// What runs where, and when a lane that failed may be tried again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lanes {
    last_id: u64,
    under_way: BTreeMap<Lane, UnderWay>,
    /// Actions of the data lane that were given up for a stop; their ends are still to come.
    given_up: BTreeMap<ActionId, Act>,
    failures: BTreeMap<Lane, u32>,
    retry_at: BTreeMap<Lane, Millis>,
}

impl Lanes {
    /// Whether nothing runs there and no pause is to be kept.
    pub(crate) fn free(&self, lane: Lane, now: Millis) -> bool {
        !self.under_way.contains_key(&lane) && self.retry_at.get(&lane).is_none_or(|at| *at <= now)
    }

    /// What runs there.
    pub(crate) fn running(&self, lane: Lane) -> Option<&Act> {
        self.under_way.get(&lane).map(|u| &u.act)
    }

    /// Starts an action.
    pub(crate) fn issue(&mut self, now: Millis, act: Act, why: Reason) -> Action {
        self.last_id += 1;
        let id = ActionId(self.last_id);
        let lane = act.lane();
        if let Some(old) =
            self.under_way.insert(lane, UnderWay { id, act: act.clone(), issued: now })
        {
            assert!(
                matches!(act, Act::Stop { .. }) && lane == Lane::Data,
                "{act:?} issued while {:?} runs",
                old.act
            );
            self.given_up.insert(old.id, old.act);
        }
        Action { id, act, why }
    }

    /// Ends an action. `None` for an id that is not known (or was given up).
    pub(crate) fn finish(
        &mut self,
        now: Millis,
        id: ActionId,
        outcome: Outcome,
        pause_limit: Millis,
    ) -> Option<UnderWay> {
        if self.given_up.remove(&id).is_some() {
            return None;
        }
        let lane = *self.under_way.iter().find(|(_, u)| u.id == id)?.0;
        let ended = self.under_way.remove(&lane)?;
        match outcome {
            Outcome::Done => {
                self.failures.remove(&lane);
                self.retry_at.remove(&lane);
            }
            Outcome::Failed | Outcome::Unknown => {
                let failures = self.failures.entry(lane).or_insert(0);
                // A failure of long ago, of something else, slows nothing down now.
                if self.retry_at.get(&lane).is_some_and(|at| ended.issued.since(*at) > QUIET) {
                    *failures = 0;
                }
                let pause = match (&ended.act, *failures) {
                    // A race on the DCS was lost; the new view says what is next.
                    (_, 0) if lane == Lane::Dcs => Millis::ZERO,
                    // Each try copies the whole cluster.
                    (Act::Clone { .. } | Act::Restore | Act::Rewind { .. } | Act::Initdb, _) => {
                        pause_limit
                    }
                    (_, n) => Millis(RETRY_FIRST.0 << n.min(10)).min(pause_limit),
                };
                *failures = failures.saturating_add(1);
                self.retry_at.insert(lane, now.plus(pause));
            }
        }
        Some(ended)
    }

    /// The next instant at which a paused lane opens.
    pub(crate) fn next_retry(&self, now: Millis) -> Option<Millis> {
        self.retry_at.values().filter(|at| **at > now).min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::StopMode;

    #[test]
    fn a_claim_counts_from_before_the_request_and_never_shrinks() {
        let mut claim = Claim::default();
        claim.extend(Millis(1_000), Millis(10_000));
        claim.extend(Millis(500), Millis(10_000));
        assert_eq!(claim.until(), Some(Millis(11_000)));
        let margin = Millis(1_000);
        assert!(claim.holds(Millis(8_999), margin));
        assert!(!claim.holds(Millis(9_000), margin));
        assert_eq!(claim.kill_at(margin), Some(Millis(10_000)));
        assert!(claim.confirmed_since(Millis(1_000)) && !claim.confirmed_since(Millis(1_001)));
        assert!(claim.fits(Millis(10_000), None) && !claim.fits(Millis(9_999), None));
        claim.keep(Millis(20_000));
        assert_eq!(claim.until(), Some(Millis(20_000)));
        assert!(!claim.fits(Millis(10_000), None) && !claim.confirmed_since(Millis(1_001)));
    }

    #[test]
    fn a_failed_lane_pauses_longer_each_time_up_to_the_limit() {
        let mut lanes = Lanes::default();
        let limit = Millis(300);
        let mut pauses = Vec::new();
        let mut now = Millis(0);
        for _ in 0..5 {
            let action = lanes.issue(now, Act::Checkpoint, Reason::FirstWrite);
            lanes.finish(now, action.id, Outcome::Failed, limit);
            let next = lanes.next_retry(now).expect("a pause");
            pauses.push(next.since(now).0);
            now = next;
        }
        assert_eq!(pauses, [50, 100, 200, 300, 300]);
    }

    #[test]
    fn failures_of_long_ago_do_not_count() {
        let mut lanes = Lanes::default();
        let limit = Millis(300);
        let pauses = [0, 100, 1_300].map(|at| {
            let now = Millis(at);
            let action = lanes.issue(now, Act::Checkpoint, Reason::FirstWrite);
            lanes.finish(now, action.id, Outcome::Failed, limit);
            lanes.next_retry(now).expect("a pause").since(now).0
        });
        assert_eq!(pauses, [50, 100, 50]);
    }

    #[test]
    fn a_stop_takes_the_data_lane_over_and_the_old_end_is_ignored() {
        let mut lanes = Lanes::default();
        let now = Millis(0);
        let first = lanes.issue(now, Act::Initdb, Reason::NoCluster);
        let stop = Act::Stop { mode: StopMode::Immediate };
        let stop = lanes.issue(now, stop, Reason::PrimaryWithoutLeaderKey);
        assert!(lanes.finish(now, first.id, Outcome::Failed, now).is_none());
        assert!(lanes.finish(now, stop.id, Outcome::Done, now).is_some());
        assert!(lanes.free(Lane::Data, now));
    }
}
