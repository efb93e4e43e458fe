//! Which standbys PostgreSQL waits for, and which may take part in an election.
//!
//! Two things must move together: `/sync` (voters `V`, `quorum` `q`: an election needs pledges of
//! `q + 1` voters) and `synchronous_standby_names` (names `N`, number `n`: a commit needs `n` of
//! them). What must hold in every intermediate state: any `q + 1` voters meet any `n` names, that
//! is
//! `|V ∪ N| <= q + n` whenever there are voters. With no voters only the leader itself may lead
//! again, which is safe with any names.
//!
//! A change takes three steps, each safe alone and taken up again from wherever it stopped:
//! 1. `/sync` to a state that is safe for the old names and for the new ones,
//! 2. `synchronous_standby_names` to the new names, seen taken over by all sessions,
//! 3. when every new name has confirmed a position at or past that change: `/sync` to its target.
//!
//! `docs/decisions/0003-sync-set-steps.md` compares this with Patroni's resolver.

use std::collections::BTreeSet;

use config::SynchronousMode;
use types::{MemberName, SyncNames, SyncState};

use crate::action::SyncRule;

/// What the next step is computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncPicture {
    /// The leader: us.
    pub me: MemberName,
    /// `on` or `quorum`.
    pub mode: SynchronousMode,
    /// Whether commits wait rather than go on with nobody to confirm.
    pub strict: bool,
    /// `synchronous_node_count`.
    pub wanted: usize,
    /// `/sync` as it stands, if the key exists.
    pub sync: Option<SyncState>,
    /// `synchronous_standby_names` as it stands.
    pub names: SyncNames,
    /// Whether PostgreSQL was seen to have taken `names` over, all sessions.
    pub taken_over: bool,
    /// Standbys that stream from us and may be synchronous, best first; among equals those that are
    /// in `names` come first.
    pub active: Vec<MemberName>,
    /// Those that confirmed a position at or past the last change of `names`.
    pub confirmed: BTreeSet<MemberName>,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncStep {
    /// Everything is as it should be.
    Settled,
    /// Wait until the names have confirmed.
    Wait,
    /// Write `/sync`.
    Write(SyncState),
    /// Set `synchronous_standby_names`.
    Set(SyncRule),
}

/// The name that nobody has: with strict mode and no standby, commits wait for it.
pub const STRICT_PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// The next step towards what streams.
#[must_use]
pub fn next_step(picture: &SyncPicture) -> SyncStep {
    let Some(sync) = picture.sync.as_ref().filter(|s| s.leader.as_ref() == Some(&picture.me))
    else {
        return SyncStep::Write(state(picture, 0, BTreeSet::new()));
    };
    let target = target(picture);
    if picture.names.names.iter().any(is_everybody) {
        // Somebody else's rule, under which anybody's word counts: back at once to the one that
        // `/sync` was made for, without a step between.
        let names = sync.voters.clone();
        let number = names.len().saturating_sub(sync.quorum);
        let back = SyncNames { number, names };
        return SyncStep::Set(rule(picture.mode, if number == 0 { target } else { back }));
    }
    if picture.names != target || !picture.taken_over {
        let (quorum, voters) = transition(picture, sync, &target);
        if (sync.quorum, &sync.voters) != (quorum, &voters) {
            return SyncStep::Write(state(picture, quorum, voters));
        }
        return SyncStep::Set(rule(picture.mode, target));
    }
    let voters: BTreeSet<MemberName> =
        target.names.iter().filter(|n| n.0 != STRICT_PLACEHOLDER).cloned().collect();
    let quorum = voters.len().saturating_sub(target.number);
    if (sync.quorum, &sync.voters) == (quorum, &voters) {
        SyncStep::Settled
    } else if voters.is_subset(&picture.confirmed) {
        SyncStep::Write(state(picture, quorum, voters))
    } else {
        SyncStep::Wait
    }
}

/// `*` stands for every standby there is, whoever that may be.
fn is_everybody(name: &MemberName) -> bool {
    name.as_str() == "*"
}

/// The rule as PostgreSQL's text will say it. It never says `*`.
#[must_use]
pub fn rule(mode: SynchronousMode, mut names: SyncNames) -> SyncRule {
    names.names.retain(|name| !is_everybody(name));
    names.number = names.number.min(names.names.len());
    if names.names.is_empty() {
        return SyncRule::Off;
    }
    match mode {
        SynchronousMode::Off => SyncRule::Off,
        SynchronousMode::On => SyncRule::First(names),
        SynchronousMode::Quorum => SyncRule::Any(names),
    }
}

/// The rule that a `/sync` with voters was written for: any `quorum` + 1 of them meet every group
/// that it lets acknowledge.
#[must_use]
pub fn rule_of(mode: SynchronousMode, sync: &SyncState) -> SyncRule {
    let number = sync.voters.len().saturating_sub(sync.quorum);
    rule(mode, SyncNames { number, names: sync.voters.clone() })
}

fn state(picture: &SyncPicture, quorum: usize, voters: BTreeSet<MemberName>) -> SyncState {
    SyncState { leader: Some(picture.me.clone()), quorum, voters }
}

/// What `synchronous_standby_names` shall become.
fn target(picture: &SyncPicture) -> SyncNames {
    let wanted = picture.wanted.max(1);
    let names: BTreeSet<MemberName> = match picture.mode {
        SynchronousMode::Off => BTreeSet::new(),
        SynchronousMode::Quorum => picture.active.iter().cloned().collect(),
        SynchronousMode::On => picture.active.iter().take(wanted).cloned().collect(),
    };
    if names.is_empty() && picture.strict {
        if picture.names.names.iter().all(is_everybody) {
            let placeholder = BTreeSet::from([MemberName::from(STRICT_PLACEHOLDER)]);
            return SyncNames { number: 1, names: placeholder };
        }
        return picture.names.clone();
    }
    let number = match picture.mode {
        SynchronousMode::Off => 0,
        SynchronousMode::On => names.len(),
        SynchronousMode::Quorum => wanted.min(names.len()),
    };
    SyncNames { number, names }
}

/// A `/sync` that is safe for the present names and for the target.
fn transition(
    picture: &SyncPicture,
    sync: &SyncState,
    target: &SyncNames,
) -> (usize, BTreeSet<MemberName>) {
    // What `/sync` was made safe for: fewer than the names' number while a change before this one
    // is not yet confirmed. Commits from before that change still count on it.
    let promised = sync.voters.len().saturating_sub(sync.quorum);
    let number = promised.min(picture.names.number).min(target.number);
    if sync.voters.is_empty() || number == 0 {
        return (0, BTreeSet::new());
    }
    match picture.mode {
        // Coming from mode `quorum`: one voter alone may lack what another confirmed.
        SynchronousMode::On
            if sync.quorum > 0 || picture.names.number < picture.names.names.len() =>
        {
            (0, BTreeSet::new())
        }
        // Every name confirms every commit, so one voter of both sets is enough.
        SynchronousMode::On => {
            let stay = sync.voters.intersection(&picture.names.names).cloned();
            let stay: BTreeSet<MemberName> =
                stay.filter(|name| target.names.contains(name)).collect();
            (0, stay)
        }
        SynchronousMode::Off | SynchronousMode::Quorum => {
            let mut voters = sync.voters.clone();
            voters.extend(picture.names.names.iter().cloned());
            voters.extend(target.names.iter().cloned());
            voters.remove(&MemberName::from(STRICT_PLACEHOLDER));
            let quorum = voters.len().saturating_sub(number);
            (quorum, voters)
        }
    }
}

#[cfg(test)]
#[path = "sync_set_tests.rs"]
mod tests;
