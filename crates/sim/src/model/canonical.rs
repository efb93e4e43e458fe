//! One name for what is the same: revisions and fence ids are only ever compared for equality, so
//! states that differ in the numbers alone are one state.
//!
//! A number is alive while a key in the store has it. A reference to one that is not alive can
//! never again be equal to anything, whatever it was.

use super::state::{Request, Rev, State};

/// A number that nothing has yet; for fences, too.
pub(super) const FRESH: Rev = 250;
/// A reference to what is gone.
const GONE: Rev = 255;

/// Renumbers everything, and sorts what has no order.
pub(super) fn canonical(state: &mut State) {
    let revisions = revisions(state);
    each_revision(state, |rev| *rev = revisions.name(*rev, GONE));
    let fences = fences(state);
    each_fence(state, |id| *id = fences.name(*id, 0));
    state.requests.sort_unstable();
}

/// Numbers in the order of their first appearance, which become 1, 2, ….
#[derive(Default)]
struct Names {
    seen: [u8; 16],
    count: usize,
}

impl Names {
    fn see(&mut self, number: u8) {
        if number != 0 && !self.seen[..self.count].contains(&number) {
            self.seen[self.count] = number;
            self.count += 1;
        }
    }

    fn name(&self, number: u8, gone: u8) -> u8 {
        if number == 0 {
            return 0;
        }
        let found = (1..).zip(&self.seen[..self.count]).find(|(_, seen)| **seen == number);
        found.map_or(gone, |(name, _)| name)
    }
}

fn revisions(state: &State) -> Names {
    let mut names = Names::default();
    let store = &state.store;
    names.see(store.leader.map_or(0, |key| key.rev));
    names.see(store.term.rev);
    names.see(store.sync_rev);
    names.see(store.fence.map_or(0, |fence| fence.rev));
    for (_, rev) in store.pledges.iter().flatten() {
        names.see(*rev);
    }
    names
}

fn fences(state: &State) -> Names {
    let mut names = Names::default();
    names.see(state.store.fence.map_or(0, |fence| fence.id));
    for (pledge, _) in state.store.pledges.iter().flatten() {
        names.see(pledge.fence);
    }
    for request in &state.requests {
        match request {
            Request::Open { fence } => names.see(fence.id),
            Request::Pledge { pledge, .. } => names.see(pledge.fence),
            Request::Void { .. }
            | Request::Take { .. }
            | Request::WriteSync { .. }
            | Request::Release { .. }
            | Request::Retake { .. } => {}
        }
    }
    names
}

fn each_revision(state: &mut State, mut with: impl FnMut(&mut Rev)) {
    let store = &mut state.store;
    if let Some(key) = &mut store.leader {
        with(&mut key.rev);
    }
    with(&mut store.sync_rev);
    with(&mut store.term.rev);
    if let Some(fence) = &mut store.fence {
        with(&mut fence.rev);
        with(&mut fence.leader_rev);
        with(&mut fence.sync_rev);
    }
    for (_, rev) in store.pledges.iter_mut().flatten() {
        with(rev);
    }
    for lead in state.members.iter_mut().filter_map(|member| member.lead.as_mut()) {
        with(&mut lead.key);
        with(&mut lead.sync_rev);
    }
    for request in &mut state.requests {
        each_revision_of(request, &mut with);
    }
}

fn each_revision_of(request: &mut Request, mut with: impl FnMut(&mut Rev)) {
    match request {
        Request::Open { fence } => {
            with(&mut fence.leader_rev);
            with(&mut fence.sync_rev);
        }
        Request::Pledge { fence, .. } | Request::Void { fence } => with(fence),
        Request::Take { take, .. } => {
            with(&mut take.leader);
            with(&mut take.fence);
            with(&mut take.expected);
            with(&mut take.term_rev);
            take.pledges.iter_mut().for_each(with);
        }
        Request::WriteSync { key, expected, .. } => {
            with(key);
            with(expected);
        }
        Request::Release { key, .. } => with(key),
        Request::Retake { fence, expected, term_rev, .. } => {
            with(fence);
            with(expected);
            with(term_rev);
        }
    }
}

fn each_fence(state: &mut State, mut with: impl FnMut(&mut u8)) {
    if let Some(fence) = &mut state.store.fence {
        with(&mut fence.id);
    }
    for (pledge, _) in state.store.pledges.iter_mut().flatten() {
        with(&mut pledge.fence);
    }
    for request in &mut state.requests {
        match request {
            Request::Open { fence } => with(&mut fence.id),
            Request::Pledge { pledge, .. } => with(&mut pledge.fence),
            Request::Void { .. }
            | Request::Take { .. }
            | Request::WriteSync { .. }
            | Request::Release { .. }
            | Request::Retake { .. } => {}
        }
    }
    for member in &mut state.members {
        if let Some(pledge) = &mut member.pledge {
            with(&mut pledge.fence);
        }
        if let Some((fence, _, _)) = &mut member.stopping {
            with(fence);
        }
    }
}
