//! The election and fence machine: the one place where it is decided who leads next.
//!
//! A pure function of the DCS's records and of our own durable pledge; it holds no state and knows
//! no clock (that somebody waited long enough is an input). The protocol is told in
//! `ARCHITECTURE.md`.
//!
//! With synchronous replication each voter pledges: it stops receiving, then reports what it holds.
//! A pledged voter acknowledges nothing to the old leader, so pledges of any `quorum + 1` voters
//! meet every group that could have acknowledged a commit, and the newest position among them, by
//! timeline and then by length, holds every acknowledged commit (I2). That needs no clock, so an
//! election may begin while the leader key is still there, once enough voters suspect its holder:
//! whether it lives or not, it gets nothing acknowledged any more. The leader that the set
//! belongs to holds every commit that it acknowledged, so its own pledge is enough too; it has no
//! other privilege.

use std::collections::{BTreeMap, BTreeSet};

use types::{
    DurablePledge, Fence, MemberName, Pledge, Position, Revision, SyncState, Term, TermRecord,
    Timeline, Versioned,
};

use crate::action::Winner;
use crate::foreign::{self, Foreign};

/// A member that could take part, as far as the election needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// May it lead (tags)?
    pub may_lead: bool,
    /// Is it well? One in trouble leads only where nobody else can.
    pub fit: bool,
    /// Its weight among equal positions.
    pub priority: i64,
}

/// The leader key that an election would be against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Accused {
    /// Its modification revision.
    pub key: Revision,
    /// We suspect its holder.
    pub by_us: bool,
    /// So do `quorum + 1` voters of a set that is the holder's, in a term of its own.
    pub by_enough: bool,
}

/// Everything that the decision depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// Who decides.
    pub me: MemberName,
    /// The leader key, if there is one.
    pub leader: Option<Accused>,
    /// Members whose keys are alive and who pledge.
    pub alive: BTreeMap<MemberName, Candidate>,
    /// Members whose keys are alive and who do not pledge.
    pub foreign: BTreeMap<MemberName, Foreign>,
    /// `/sync` with its modification revision, if active.
    pub sync: Option<(SyncState, Revision)>,
    /// `/sync`'s modification revision, active or not; 0 if the key is absent.
    pub sync_revision: Revision,
    /// `pgherd/term` with its modification revision.
    pub term: Option<(TermRecord, Revision)>,
    /// The open fence.
    pub fence: Option<Versioned<Fence>>,
    /// Pledges with their modification revisions.
    pub pledges: BTreeMap<MemberName, (Pledge, Revision)>,
    /// Our own durable pledge.
    pub own: Option<DurablePledge>,
    /// The `id` that a fence opened by us would get.
    pub new_fence_id: String,
    /// The candidate that an operator named.
    pub preferred: Option<MemberName>,
    /// The leader that an operator asked to step down.
    pub stepping_down: Option<MemberName>,
    /// An operator's request is pending.
    pub request_pending: bool,
    /// It names a candidate and no leader: the operator was shown what may be lost, and takes it.
    pub forced: bool,
    /// Without synchronous replication: we lack more than `maximum_lag_on_failover`.
    pub too_far_behind: bool,
    /// We waited long enough for members that are not strictly needed.
    pub waited: bool,
    /// We waited long enough for whoever should have won.
    pub stuck: bool,
    /// Whether the next term shall start with an active `/sync`.
    pub synchronous: bool,
    /// In strict mode, with nobody else to be heard: the former leader, whom every commit of the
    /// next term waits for. It held all that was acknowledged before, so it votes from the start.
    pub awaited: Option<MemberName>,
    /// Whether the winner will be promoted; a standby cluster's is not.
    pub promotes: bool,
    /// The highest timeline number that anybody is known to have used.
    pub timeline_seen: Timeline,
}

/// The next move of this member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// We take no part.
    Abstain(Abstention),
    /// Open a fence.
    Open(Fence),
    /// The open fence is stale or stuck: delete it with its pledges.
    Void {
        /// Whether it was stuck (else it is stale).
        stuck: bool,
        /// Who was waited for.
        waiting_for: Option<MemberName>,
    },
    /// Stop receiving and make a durable pledge for this fence.
    StopReceiving,
    /// Publish the durable pledge.
    WritePledge(Pledge),
    /// Take the leadership.
    Take(Box<WinnerPlan>),
    /// Wait for others.
    Wait(Waiting),
}

/// Why a member takes no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Abstention {
    /// Synchronous replication is on, and we are neither a voter nor the leader of the set.
    NotAVoter,
    /// Tags forbid it, and nobody needs our pledge.
    MayNotLead,
    /// We lack more than `maximum_lag_on_failover` of what the last leader had.
    TooFarBehind,
    /// We are in trouble, and others are not.
    Unfit,
    /// There is a leader, and it is not suspected, or by too few.
    LedWell,
}

/// For what a member waits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Waiting {
    /// Not enough pledges yet.
    Pledges {
        /// How many voters are counted.
        counted: usize,
        /// How many are needed.
        needed: usize,
    },
    /// This member should win.
    Winner(MemberName),
    /// The newest position belongs to members that may not lead.
    NobodyMayLead,
}

/// What a winner writes, and what it rests on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WinnerPlan {
    /// The transaction.
    pub winner: Winner,
    /// Our position.
    pub position: Position,
}

/// The next move.
#[must_use]
pub fn next_move(ballot: &Ballot) -> Move {
    if let Some(why) = abstention(ballot) {
        return Move::Abstain(why);
    }
    let Some(fence) = &ballot.fence else {
        if ballot.leader.is_some_and(|leader| !leader.by_us || !leader.by_enough) {
            return Move::Abstain(Abstention::LedWell);
        }
        return Move::Open(Fence {
            id: ballot.new_fence_id.clone(),
            leader_revision: ballot.leader.map_or(Revision(0), |leader| leader.key),
            sync_revision: ballot.sync_revision,
            candidate: ballot.me.clone(),
        });
    };
    if is_stale(ballot, &fence.value) {
        return Move::Void { stuck: false, waiting_for: None };
    }
    let pledged = ballot.own.as_ref().is_some_and(|own| own.fence == fence.value.id);
    if ballot.leader.is_some_and(|leader| !leader.by_us) && !pledged {
        // It streams to us: our pledge would hold up what it acknowledges rightly.
        return Move::Abstain(Abstention::LedWell);
    }
    if let Some(step) = own_pledge_step(ballot, &fence.value) {
        return step;
    }
    let counted = counted_pledges(ballot, &fence.value);
    let newest = counted.values().map(|(position, _)| *position).max();
    match foreign::waited_for(ballot, newest) {
        // It is asked again under another fence.
        Some(Waiting::Winner(name)) if ballot.stuck => {
            return Move::Void { stuck: true, waiting_for: Some(name) };
        }
        Some(waiting) => return Move::Wait(waiting),
        None => {}
    }
    match choose(ballot, &counted) {
        Ok(winner) if winner == ballot.me => {
            Move::Take(Box::new(winner_plan(ballot, fence.mod_revision, &counted)))
        }
        Ok(winner) if ballot.stuck => Move::Void { stuck: true, waiting_for: Some(winner) },
        Ok(winner) => Move::Wait(Waiting::Winner(winner)),
        Err(waiting) => Move::Wait(waiting),
    }
}

/// Whether a durable pledge keeps its member from the leader of this term: the fence it was made
/// for is open, or it is from a later term. Deleted with its fence, a pledge is withdrawn: it can
/// never be counted again.
#[must_use]
pub fn binds(pledge: &DurablePledge, leader: Term, fence: Option<&Fence>) -> bool {
    // A Patroni leader has no term; then nobody pledged.
    if leader.0 == 0 || pledge.position.term < leader {
        return false;
    }
    let open = fence.is_some_and(|fence| fence.id == pledge.fence);
    open || pledge.position.term > leader
}

fn abstention(ballot: &Ballot) -> Option<Abstention> {
    if !takes_part(ballot, &ballot.me) {
        return Some(Abstention::NotAVoter);
    }
    if ballot.sync.is_some() || is_forced(ballot, &ballot.me) {
        return None;
    }
    let me = ballot.alive.get(&ballot.me);
    let others_fit = ballot.alive.iter().any(|(name, c)| *name != ballot.me && c.may_lead && c.fit);
    if !me.is_some_and(|me| me.may_lead) {
        Some(Abstention::MayNotLead)
    } else if !me.is_some_and(|me| me.fit) && others_fit {
        Some(Abstention::Unfit)
    } else if ballot.too_far_behind {
        Some(Abstention::TooFarBehind)
    } else {
        None
    }
}

/// Voters, the leader that the set belongs to, and whom an operator's word puts in their place.
/// Without synchronous replication everybody takes part.
fn takes_part(ballot: &Ballot, name: &MemberName) -> bool {
    let Some((sync, _)) = &ballot.sync else {
        return true;
    };
    sync.voters.contains(name) || sync.leader.as_ref() == Some(name) || is_forced(ballot, name)
}

/// Whether an operator's word makes this member the leader, whatever it lacks.
fn is_forced(ballot: &Ballot, name: &MemberName) -> bool {
    ballot.forced && ballot.preferred.as_ref() == Some(name)
}

/// A fence is against the leader key that it names, there or gone, or against none: another key is
/// of a later leader. One opened under another `/sync` would count the wrong voters.
fn is_stale(ballot: &Ballot, fence: &Fence) -> bool {
    let later = ballot.leader.is_some_and(|leader| leader.key != fence.leader_revision);
    later || fence.sync_revision != ballot.sync_revision
}

/// A pledge counts only when it is durable here and published under this very fence.
fn own_pledge_step(ballot: &Ballot, fence: &Fence) -> Option<Move> {
    let own = ballot.own.as_ref().filter(|own| own.fence == fence.id);
    let Some(own) = own else {
        return Some(Move::StopReceiving);
    };
    let pledge = Pledge { fence: own.fence.clone(), position: own.position };
    let published = ballot.pledges.get(&ballot.me).is_some_and(|(p, _)| *p == pledge);
    (!published).then_some(Move::WritePledge(pledge))
}

/// Pledges under this fence of members that are alive and take part.
fn counted_pledges(ballot: &Ballot, fence: &Fence) -> BTreeMap<MemberName, (Position, Revision)> {
    let mut counted = BTreeMap::new();
    for (name, (pledge, revision)) in &ballot.pledges {
        let part = takes_part(ballot, name) && ballot.alive.contains_key(name);
        if pledge.fence == fence.id && part {
            counted.insert(name.clone(), (pledge.position, *revision));
        }
    }
    counted
}

/// Who must win among the counted pledges, or what is still missing.
fn choose(
    ballot: &Ballot,
    counted: &BTreeMap<MemberName, (Position, Revision)>,
) -> Result<MemberName, Waiting> {
    if let Err(missing) = enough(ballot, counted) {
        // First everybody gets the chance to be heard; then the operator's word counts.
        return match &ballot.preferred {
            Some(name) if ballot.forced && ballot.waited && counted.contains_key(name) => {
                Ok(name.clone())
            }
            Some(_) | None => Err(missing),
        };
    }
    let newest = counted.values().map(|(position, _)| *position).max();
    let contenders: BTreeSet<&MemberName> = counted
        .iter()
        .filter(|(_, (position, _))| Some(*position) == newest)
        .map(|(name, _)| name)
        .filter(|name| ballot.alive.get(*name).is_some_and(|c| c.may_lead))
        .collect();
    let is_fit = |name: &&MemberName| ballot.alive.get(*name).is_some_and(|c| c.fit);
    let fit: BTreeSet<&MemberName> = contenders.iter().copied().filter(is_fit).collect();
    if fit.is_empty() && !contenders.is_empty() && !ballot.waited {
        // Another voter may hold as much, and be well.
        return Err(Waiting::Pledges { counted: counted.len(), needed: counted.len() + 1 });
    }
    let contenders = if fit.is_empty() { contenders } else { fit };
    let others = contenders.iter().any(|name| Some(*name) != ballot.stepping_down.as_ref());
    if !contenders.is_empty() && !others && !ballot.waited {
        // Whoever steps down leads again only when nobody else could be found.
        return Err(Waiting::Pledges { counted: counted.len(), needed: counted.len() + 1 });
    }
    let best = contenders
        .into_iter()
        .filter(|name| !others || Some(*name) != ballot.stepping_down.as_ref())
        .max_by_key(|name| {
            let priority = ballot.alive.get(*name).map_or(0, |c| c.priority);
            let preferred = ballot.preferred.as_ref() == Some(*name);
            (preferred, priority, std::cmp::Reverse((*name).clone()))
        });
    best.cloned().ok_or(Waiting::NobodyMayLead)
}

/// Whether the counted pledges meet every group that could have acknowledged a commit; and whether
/// it is worth waiting a little for a named candidate.
fn enough(
    ballot: &Ballot,
    counted: &BTreeMap<MemberName, (Position, Revision)>,
) -> Result<(), Waiting> {
    let missing = match &ballot.sync {
        Some((sync, _)) => {
            let voters = counted.keys().filter(|name| sync.voters.contains(name)).count()
                + foreign::voters(ballot);
            let needed = sync.quorum + 1;
            let leader = sync.leader.as_ref().is_some_and(|name| counted.contains_key(name));
            if voters < needed && !leader {
                return Err(Waiting::Pledges { counted: voters, needed });
            }
            preferred_is_missing(ballot, counted)
        }
        // Without synchronous replication nobody can know what was acknowledged: everyone who is
        // alive and may lead is heard, for a while.
        None => {
            let all = ballot.alive.iter().filter(|(_, c)| c.may_lead && c.fit);
            all.clone().any(|(name, _)| !counted.contains_key(name))
        }
    };
    if missing && !ballot.waited {
        return Err(Waiting::Pledges { counted: counted.len(), needed: ballot.alive.len() });
    }
    Ok(())
}

fn preferred_is_missing(
    ballot: &Ballot,
    counted: &BTreeMap<MemberName, (Position, Revision)>,
) -> bool {
    let Some(preferred) = &ballot.preferred else {
        return false;
    };
    takes_part(ballot, preferred)
        && ballot.alive.contains_key(preferred)
        && !counted.contains_key(preferred)
}

fn winner_plan(
    ballot: &Ballot,
    fence: Revision,
    counted: &BTreeMap<MemberName, (Position, Revision)>,
) -> WinnerPlan {
    let position = counted.get(&ballot.me).map_or_else(Position::default, |(p, _)| *p);
    let last = ballot.term.as_ref().map(|(record, _)| record);
    let term = last.map_or(Term(0), |record| record.term).next();
    // A reserved number is never used again, even if its promotion never happened.
    let reserved = last.map_or(Timeline(0), |record| record.timeline);
    let newest = reserved.max(position.timeline).max(ballot.timeline_seen);
    // PostgreSQL restores from an archive up to the first number that it finds no history of: none
    // is left out that will not be used.
    let timeline = if ballot.promotes { Timeline(newest.0 + 1) } else { newest };
    let sync = (ballot.synchronous || ballot.sync.is_some()).then(|| SyncState {
        leader: Some(ballot.me.clone()),
        quorum: 0,
        voters: ballot.awaited.iter().cloned().collect(),
    });
    let winner = Winner {
        leader: ballot.leader.map(|leader| leader.key),
        fence,
        sync_revision: (ballot.sync_revision != Revision(0)).then_some(ballot.sync_revision),
        term_revision: ballot.term.as_ref().map(|(_, revision)| *revision),
        pledges: counted.iter().map(|(name, (_, revision))| (name.clone(), *revision)).collect(),
        term: TermRecord { term, leader: ballot.me.clone(), timeline, position: Some(position) },
        sync,
        clear_failover: ballot.request_pending,
    };
    WinnerPlan { winner, position }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
