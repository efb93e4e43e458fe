//! What the leader does: promotion, the steps of the synchronous set, taking its key again. The
//! outline of `leader.rs` and `failsafe.rs` of `decide` around the production `sync_set`.

use std::collections::BTreeSet;

use config::SynchronousMode;
use decide::SyncRule;
use decide::sync_set::{STRICT_PLACEHOLDER, SyncPicture, SyncStep, next_step};
use types::{MemberName, SyncNames};

use super::Election;
use super::look::{name, set_of, small, sync_state};
use super::state::{
    Id, Lead, Member, Members, Place, Postgres, Primary, Request, Rev, Rule, Set, State, TermKey,
    Violation,
};
use super::story::letter;
use super::without::Without;
use crate::Mode;

impl Election {
    /// The holder of the leader key is in recovery.
    pub(super) fn promote(&self, state: &mut State, me: Id, (key, term): (Rev, u8), late: bool) {
        let record = state.store.term;
        let foreign = state.store.sync.leader != me && !self.lacks(Without::SyncWritten);
        let others = Members::all(self.setup.members).without(me);
        // A winner's `/sync` has voters only in strict mode, and then all are waited for.
        let awaited = state.store.sync.voters;
        let member = state.member_mut(me);
        let own = member.log.timeline();
        let held = record.position.is_some_and(|at| at.timeline == record.timeline);
        // On a timeline of this number a promotion was begun before, and ended with a crash.
        if record.timeline <= own || held || foreign || member.stopping.is_some() {
            if member.stopping.is_none() {
                self.release(state, me, key, late);
            }
            return;
        }
        if member.log.is_full() {
            return;
        }
        let begun = member.log.length();
        member.log.push(record.timeline, me);
        member.postgres = Postgres::Primary(Primary { term, timeline: record.timeline, begun });
        member.term = term;
        member.pledge = None;
        (member.conninfo, member.receiver) = (None, None);
        member.forget_sessions();
        member.next_rule = None;
        let number = self.setup.wanted.min(small(others.count()));
        member.rule = match awaited.count() {
            0 => Rule { number, names: others },
            voters => Rule { number: small(voters), names: awaited },
        };
        state.promoted(me, term, record.timeline);
        state.release(me);
    }

    /// One step of the synchronous set, from what the agent remembers of the store.
    pub(super) fn reconcile(&self, state: &mut State, me: Id, late: bool) {
        let member = state.member(me);
        let (Some(lead), Some(_)) = (member.lead, member.primary()) else { return };
        let setting = member.next_rule.is_some() && !self.lacks(Without::RuleTakenOver);
        if lead.writing || lead.releasing || setting {
            return;
        }
        if lead.unknown && !self.lacks(Without::UnknownWrittenAgain) {
            // A late write must find another revision than it compares with.
            self.write_sync(state, me, lead.sync, late);
            return;
        }
        let picture = self.picture(state, me, &lead);
        match next_step(&picture) {
            SyncStep::Settled | SyncStep::Wait => {}
            SyncStep::Write(sync) => {
                let wanted = small(picture.active.len()).min(self.setup.wanted);
                let names = state.streaming_from(me);
                let target = Rule { number: wanted, names };
                let changes = picture.sync.is_some() && state.member(me).rule != target;
                if changes && self.lacks(Without::SyncLoosenedFirst) {
                    self.set_rule(state, me, target);
                } else {
                    let sync = set_of(state, &sync);
                    self.write_sync(state, me, sync, late);
                }
            }
            SyncStep::Set(rule) => self.set_rule(state, me, rule_of(&rule)),
        }
    }

    fn picture(&self, state: &State, me: Id, lead: &Lead) -> SyncPicture {
        let member = state.member(me);
        let active = state.streaming_from(me);
        let rule = member.next_rule.unwrap_or(member.rule);
        let changed = member.changed_at.unwrap_or(u8::MAX);
        let confirmed: BTreeSet<MemberName> = active
            .iter()
            .filter(|id| rule.names.has(*id))
            .filter(|id| {
                member.heard[usize::from(*id)] >= changed || self.lacks(Without::VotersConfirmed)
            })
            .map(name)
            .collect();
        let mut sync = sync_state(lead.sync);
        if self.lacks(Without::SyncWritten) {
            sync.leader = Some(name(me));
        }
        SyncPicture {
            me: name(me),
            mode: match self.setup.mode {
                Mode::Off => SynchronousMode::Off,
                Mode::On => SynchronousMode::On,
                Mode::Quorum => SynchronousMode::Quorum,
            },
            strict: self.setup.strict,
            wanted: self.setup.wanted.into(),
            sync: Some(sync),
            names: names_of(rule),
            taken_over: member.changed_at.is_some(),
            active: active.iter().map(name).collect(),
            confirmed,
        }
    }

    fn write_sync(&self, state: &mut State, me: Id, sync: Set, late: bool) {
        let Some(lead) = &mut state.member_mut(me).lead else { return };
        lead.writing = true;
        let (key, expected) = (lead.key, lead.sync_rev);
        let request = Request::WriteSync { by: me, key, expected, sync, awaited: true };
        let sent = self.send(state, request, late);
        if let Some(lead) = state.member_mut(me).lead.as_mut().filter(|_| !sent) {
            lead.writing = false;
        }
    }

    fn set_rule(&self, state: &mut State, me: Id, rule: Rule) {
        let member = state.member_mut(me);
        member.next_rule = Some(rule);
        member.changed_at = None;
        if let Some(lead) = &mut member.lead {
            lead.setting = true;
        }
        if self.lacks(Without::RuleTakenOver) {
            // The agent goes on at once; the sessions go on under the former rule for a while.
            member.changed_at = Some(member.log.length());
        }
        // Whoever has read the new rule already goes by it.
        state.release(me);
    }

    /// A primary without a leader key takes it again. False if it may not.
    pub(super) fn retake(&self, state: &mut State, me: Id, late: bool) -> bool {
        let record = state.store.term;
        let member = state.member(me);
        let (Some(primary), Some(lead)) = (member.primary(), member.lead) else { return false };
        let same_term = record.term == primary.term
            && record.rev == lead.key
            && record.leader == me
            && record.timeline == primary.timeline;
        let confirmed = member.released > primary.begun || self.lacks(Without::RetakeConfirmed);
        let rightful = same_term && confirmed && member.pledge.is_none() && !lead.releasing;
        if !rightful || state.store.sync.leader != me || record.term >= self.setup.terms {
            return false;
        }
        let term = TermKey {
            term: primary.term + 1,
            leader: me,
            timeline: primary.timeline,
            position: Some(Place {
                timeline: primary.timeline,
                length: member.log.length(),
                term: primary.term,
            }),
            rev: 0,
        };
        let request = Request::Retake {
            by: me,
            fence: state.store.fence.map_or(0, |fence| fence.rev),
            expected: state.store.sync_rev,
            term_rev: record.rev,
            term,
            sync: state.store.sync,
        };
        self.send(state, request, late);
        true
    }
}

/// Every session has taken the rule over.
pub(super) fn rule_taken_over(member: &mut Member) {
    let Some(rule) = member.next_rule.take() else { return };
    member.rule = rule;
    if let Some(lead) = member.lead.as_mut().filter(|lead| lead.setting) {
        lead.setting = false;
        member.changed_at = Some(member.log.length());
    }
}

fn names_of(rule: Rule) -> SyncNames {
    let named = |id: Id| if id == Members::NOBODY { STRICT_PLACEHOLDER } else { letter(id) };
    SyncNames {
        number: rule.number.into(),
        names: rule.names.iter().map(|id| MemberName::from(named(id))).collect(),
    }
}

fn rule_of(rule: &SyncRule) -> Rule {
    match rule {
        SyncRule::Off => Rule::default(),
        SyncRule::First(names) | SyncRule::Any(names) => {
            let id = |of: &MemberName| {
                let known = (0..Members::NOBODY).find(|id| letter(*id) == of.as_str());
                known.unwrap_or(Members::NOBODY)
            };
            Rule { number: small(names.number), names: names.names.iter().map(id).collect() }
        }
    }
}

impl State {
    /// Notes a promotion.
    fn promoted(&mut self, me: Id, term: u8, timeline: u8) {
        let bit = 1 << timeline;
        if self.audit.timelines & bit != 0 {
            self.audit.violation.get_or_insert(Violation::TimelineTwice);
        }
        self.audit.timelines |= bit;
        self.promoted_again(me, term);
    }

    /// Notes that a member leads in this term.
    pub(super) fn promoted_again(&mut self, me: Id, term: u8) {
        if term < self.audit.newest.1 {
            return;
        }
        self.audit.newest = (me, term);
        if !self.member(me).log.holds(&self.audit.acknowledged) {
            self.audit.violation.get_or_insert(Violation::Lost);
        }
    }
}
