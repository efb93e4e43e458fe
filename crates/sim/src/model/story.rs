//! A path through the model in words.

use std::fmt::Write;

use super::state::{Id, Members, Postgres, Request, Set, State};
use super::step::Step;

/// Members are called a, b, c, d.
pub(super) fn letter(id: Id) -> &'static str {
    ["a", "b", "c", "d"].get(usize::from(id)).copied().unwrap_or("?")
}

fn letters(members: Members) -> String {
    members.iter().map(letter).collect()
}

/// What happened, as one line.
pub(super) fn step(state: &State, step: Step) -> String {
    let of = |id: Id| letter(id);
    match step {
        Step::Look { member, mood } => {
            let suspects = if mood.suspects { ", suspects the leader with others" } else { "" };
            let impatient = if mood.impatient { ", has waited long enough" } else { "" };
            let late = if mood.late { "; its request comes late" } else { "" };
            format!("{} looks{suspects}{impatient}{late}", of(member))
        }
        Step::ActOnMemory { member, late } => {
            let late = if late { "; its request comes late" } else { "" };
            format!("{} acts on its last picture{late}", of(member))
        }
        Step::Deliver { index } => format!("arrives: {}", request(&state.requests[index])),
        Step::TimeOut { member } => {
            format!("{} waits no longer for the answer about /sync", of(member))
        }
        Step::PledgeMade { member } => format!("{} has made its pledge durable", of(member)),
        Step::RuleTakenOver { member } => format!("{}'s sessions take its rule over", of(member)),
        Step::Connect { member } => format!("{} begins to stream", of(member)),
        Step::CutStream { member } => format!("{}'s stream is cut", of(member)),
        Step::Receive { member, late } => {
            let late = if late { "; its report comes late" } else { "" };
            format!("{} receives and flushes a record{late}", of(member))
        }
        Step::Hear { leader, standby } => {
            format!("{} hears what {} has flushed", of(leader), of(standby))
        }
        Step::Write { member } => format!("a client commits on {}", of(member)),
        Step::CrashHost { member } => format!("{}'s host crashes", of(member)),
        Step::CrashPostgres { member } => format!("{}'s PostgreSQL crashes", of(member)),
        Step::RestartAgent { member } => format!("{}'s agent is started anew", of(member)),
        Step::Start { member } => format!("{} starts in recovery", of(member)),
        Step::StartInPlace { member } => format!("{} starts as primary in place", of(member)),
        Step::LeaseEnds => "the leader's lease ends".to_owned(),
    }
}

fn request(request: &Request) -> String {
    match request {
        Request::Open { fence } => format!("{} opens a fence", letter(fence.candidate)),
        Request::Pledge { by, pledge, .. } => {
            let place = pledge.place;
            format!("{}'s pledge: timeline {} length {}", letter(*by), place.timeline, place.length)
        }
        Request::Void { .. } => "the fence is voided".to_owned(),
        Request::Take { by, take } => {
            let counted = (0..).zip(&take.pledges).filter(|(_, rev)| **rev != 0);
            let counted: Members = counted.map(|(id, _)| id).collect();
            let (term, timeline) = (take.term.term, take.term.timeline);
            let counted = letters(counted);
            format!("{} takes term {term} on timeline {timeline} by {counted}", letter(*by))
        }
        Request::WriteSync { by, sync, .. } => {
            format!("{} writes /sync: {}", letter(*by), set(sync))
        }
        Request::Release { by, .. } => format!("{} gives the leader key away", letter(*by)),
        Request::Retake { by, term, .. } => {
            format!("{} takes its key again in term {}", letter(*by), term.term)
        }
    }
}

fn set(set: &Set) -> String {
    format!("leader {} quorum {} of [{}]", letter(set.leader), set.quorum, letters(set.voters))
}

/// What is so afterwards, one line for the store and one for each member.
pub(super) fn state(state: &State) -> String {
    let mut text = String::new();
    let store = &state.store;
    let leader = store.leader.map_or("nobody", |key| letter(key.holder));
    let fence = store.fence.map(|fence| format!(", fence of {}", letter(fence.candidate)));
    let fence = fence.unwrap_or_default();
    let pledges = (0..).zip(&store.pledges).filter(|(_, pledge)| pledge.is_some());
    let pledged = letters(pledges.map(|(id, _)| id).collect());
    // Writing to a String cannot fail.
    let mut line = |args: std::fmt::Arguments<'_>| text.write_fmt(args).unwrap_or(());
    line(format_args!(
        "    store: {leader} leads, term {} of {} on timeline {}, /sync {}{fence}, pledged [{}]\n",
        store.term.term,
        letter(store.term.leader),
        store.term.timeline,
        set(&store.sync),
        pledged
    ));
    for id in state.ids() {
        let member = state.member(id);
        let does = match member.postgres {
            Postgres::Down { .. } => "down".to_owned(),
            Postgres::Standby => {
                let from = |from: Option<Id>| from.map_or("nobody", letter);
                let pledge = member.pledge.map_or("", |_| ", pledged");
                let stopping = member.stopping.map_or("", |_| ", stops receiving");
                format!(
                    "standby, term {}, streams from {}, settings name {}{pledge}{stopping}",
                    member.term,
                    from(member.receiver),
                    from(member.conninfo)
                )
            }
            Postgres::Primary(primary) => {
                let rule = member.rule;
                let next = member.next_rule.map_or(String::new(), |rule| {
                    format!(" (some sessions: {} of [{}])", rule.number, letters(rule.names))
                });
                format!(
                    "primary, term {}, waits for {} of [{}]{next}, released {}",
                    primary.term,
                    rule.number,
                    letters(rule.names),
                    member.released
                )
            }
        };
        line(format_args!("    {}: {}{does}\n", letter(id), member.log));
    }
    line(format_args!("    acknowledged: {}\n", state.audit.acknowledged));
    text
}
