use types::Lsn;

use super::*;

fn at(term: u64, timeline: u32, lsn: u64) -> Position {
    Position { term: Term(term), timeline: Timeline(timeline), lsn: Lsn(lsn) }
}

/// `a` led with voters `b` and `c`, quorum 1; `me` looks at fence `f` with these pledges.
fn ballot(me: &str, pledges: &[(&str, Position)]) -> Ballot {
    let sync = SyncState {
        leader: Some("a".into()),
        quorum: 1,
        voters: BTreeSet::from(["b".into(), "c".into()]),
    };
    let fence = Fence {
        id: "f".to_owned(),
        leader_revision: Revision(0),
        sync_revision: Revision(7),
        candidate: "b".into(),
    };
    let pledge = |position: &Position| Pledge { fence: "f".to_owned(), position: *position };
    let own = pledges.iter().find(|(name, _)| *name == me);
    Ballot {
        me: me.into(),
        leader: None,
        foreign: BTreeMap::new(),
        alive: ["a", "b", "c", "d"]
            .into_iter()
            .map(|n| (n.into(), Candidate { may_lead: true, fit: true, priority: 1 }))
            .collect(),
        sync: Some((sync, Revision(7))),
        sync_revision: Revision(7),
        term: Some((
            TermRecord { term: Term(4), leader: "a".into(), timeline: Timeline(3), position: None },
            Revision(5),
        )),
        fence: Some(Versioned {
            value: fence,
            create_revision: Revision(9),
            mod_revision: Revision(9),
            lease: 0,
        }),
        pledges: pledges
            .iter()
            .map(|(name, position)| ((*name).into(), (pledge(position), Revision(11))))
            .collect(),
        own: own.map(|(_, p)| DurablePledge { fence: "f".to_owned(), position: *p }),
        new_fence_id: "new".to_owned(),
        preferred: None,
        stepping_down: None,
        request_pending: false,
        forced: false,
        too_far_behind: false,
        waited: false,
        stuck: false,
        synchronous: true,
        awaited: None,
        promotes: true,
        timeline_seen: Timeline(3),
    }
}

fn takes(ballot: &Ballot) -> Option<Box<WinnerPlan>> {
    match next_move(ballot) {
        Move::Take(plan) => Some(plan),
        _ => None,
    }
}

#[test]
fn the_first_move_opens_a_fence_under_the_present_sync_key() {
    let mut b = ballot("b", &[]);
    b.fence = None;
    let Move::Open(fence) = next_move(&b) else { panic!("{:?}", next_move(&b)) };
    assert_eq!(fence.sync_revision, Revision(7));
}

#[test]
fn quorum_plus_one_pledges_elect_the_newest() {
    let pledges = [("b", at(4, 3, 100)), ("c", at(4, 3, 120))];
    assert!(takes(&ballot("b", &pledges)).is_none());
    let plan = takes(&ballot("c", &pledges)).expect("c holds more");
    assert_eq!(plan.winner.term.term, Term(5));
    assert_eq!(plan.winner.term.timeline, Timeline(4));
    assert_eq!(plan.winner.pledges.len(), 2);
    assert!(plan.winner.sync.expect("synchronous").voters.is_empty());
}

#[test]
fn one_voter_alone_does_not_elect() {
    let b = ballot("b", &[("b", at(4, 3, 100))]);
    assert_eq!(next_move(&b), Move::Wait(Waiting::Pledges { counted: 1, needed: 2 }));
}

#[test]
fn the_leader_of_the_set_elects_alone_but_has_no_privilege() {
    let alone = ballot("a", &[("a", at(4, 3, 90))]);
    assert!(takes(&alone).is_some(), "it holds whatever it acknowledged");
    let pledges = [("a", at(4, 3, 90)), ("b", at(4, 3, 100)), ("c", at(4, 3, 80))];
    assert!(takes(&ballot("a", &pledges)).is_none());
    assert!(takes(&ballot("b", &pledges)).is_some());
}

#[test]
fn a_longer_log_of_an_older_term_never_outranks() {
    let pledges = [("b", at(3, 2, 900)), ("c", at(4, 3, 100))];
    assert!(takes(&ballot("b", &pledges)).is_none());
    assert!(takes(&ballot("c", &pledges)).is_some());
}

#[test]
fn pledges_of_strangers_dead_members_and_other_fences_do_not_count() {
    let mut b = ballot("b", &[("b", at(4, 3, 100)), ("d", at(4, 3, 500))]);
    assert!(matches!(next_move(&b), Move::Wait(_)), "d is no voter");
    b = ballot("b", &[("b", at(4, 3, 100)), ("c", at(4, 3, 90))]);
    b.alive.remove(&MemberName::from("c"));
    assert!(matches!(next_move(&b), Move::Wait(_)), "c is dead");
    b = ballot("b", &[("b", at(4, 3, 100)), ("c", at(4, 3, 90))]);
    let c = b.pledges.get_mut(&MemberName::from("c")).expect("there");
    c.0.fence = "older".to_owned();
    assert!(matches!(next_move(&b), Move::Wait(_)), "c pledged to another fence");
}

#[test]
fn a_member_outside_the_set_abstains() {
    let b = ballot("d", &[]);
    assert_eq!(next_move(&b), Move::Abstain(Abstention::NotAVoter));
}

#[test]
fn a_fence_from_another_set_is_voided() {
    let mut b = ballot("b", &[]);
    b.sync_revision = Revision(8);
    assert!(matches!(next_move(&b), Move::Void { stuck: false, .. }));
}

#[test]
fn a_pledge_is_durable_before_it_is_published() {
    let mut b = ballot("b", &[]);
    assert_eq!(next_move(&b), Move::StopReceiving);
    b.own = Some(DurablePledge { fence: "older".to_owned(), position: at(4, 3, 1) });
    assert_eq!(next_move(&b), Move::StopReceiving, "a pledge to another fence does not count");
    b.own = Some(DurablePledge { fence: "f".to_owned(), position: at(4, 3, 100) });
    assert!(matches!(next_move(&b), Move::WritePledge(_)));
}

#[test]
fn a_named_candidate_wins_a_tie_and_is_waited_for() {
    let pledges = [("b", at(4, 3, 100)), ("c", at(4, 3, 100))];
    assert!(takes(&ballot("b", &pledges)).is_some(), "by name");
    let mut b = ballot("b", &pledges);
    b.preferred = Some("c".into());
    b.request_pending = true;
    assert_eq!(next_move(&b), Move::Wait(Waiting::Winner("c".into())));
    let mut waiting = ballot("a", &[("a", at(4, 3, 100))]);
    waiting.preferred = Some("c".into());
    assert!(matches!(next_move(&waiting), Move::Wait(Waiting::Pledges { .. })));
    waiting.waited = true;
    assert!(takes(&waiting).is_some());
}

#[test]
fn whoever_stepped_down_leads_again_only_if_nobody_else_can() {
    let pledges = [("a", at(4, 3, 100)), ("b", at(4, 3, 100)), ("c", at(4, 3, 90))];
    let mut a = ballot("a", &pledges);
    a.stepping_down = Some("a".into());
    assert_eq!(next_move(&a), Move::Wait(Waiting::Winner("b".into())));
    let mut alone = ballot("a", &[("a", at(4, 3, 100))]);
    alone.stepping_down = Some("a".into());
    assert!(takes(&alone).is_none(), "others may still come");
    alone.waited = true;
    assert!(takes(&alone).is_some());
    // With one voter frozen, the pledge of whoever steps down makes the other one's enough.
    let pledges = [("a", at(4, 3, 100)), ("b", at(4, 3, 100))];
    let mut b = ballot("b", &pledges);
    b.stepping_down = Some("a".into());
    assert!(takes(&b).is_some());
}

#[test]
fn an_operators_word_elects_without_enough_pledges_but_only_after_a_wait() {
    let mut b = ballot("b", &[("b", at(4, 3, 100))]);
    b.preferred = Some("b".into());
    b.request_pending = true;
    b.waited = true;
    assert!(takes(&b).is_none(), "a switchover forces nothing");
    b.forced = true;
    b.waited = false;
    assert!(takes(&b).is_none());
    b.waited = true;
    assert!(takes(&b).is_some());
    let mut outsider = ballot("d", &[("d", at(4, 3, 50))]);
    outsider.preferred = Some("d".into());
    outsider.forced = true;
    outsider.waited = true;
    assert!(takes(&outsider).is_some(), "named by the operator, though no voter");
}

#[test]
fn a_copy_too_far_behind_does_not_lead_an_asynchronous_cluster() {
    let mut b = ballot("b", &[("b", at(4, 3, 100))]);
    b.sync = None;
    b.sync_revision = Revision(0);
    b.fence.as_mut().expect("open").value.sync_revision = Revision(0);
    b.waited = true;
    assert!(takes(&b).is_some());
    b.too_far_behind = true;
    assert_eq!(next_move(&b), Move::Abstain(Abstention::TooFarBehind));
}

#[test]
fn without_synchronous_replication_everybody_alive_is_heard() {
    let pledges = [("b", at(4, 3, 100)), ("c", at(4, 3, 120))];
    let mut c = ballot("c", &pledges);
    c.sync = None;
    c.sync_revision = Revision(0);
    c.fence.as_mut().expect("open").value.sync_revision = Revision(0);
    c.synchronous = false;
    assert!(matches!(next_move(&c), Move::Wait(Waiting::Pledges { .. })), "a and d are missing");
    c.waited = true;
    assert_eq!(takes(&c).expect("c holds most").winner.sync, None);
}

#[test]
fn a_winner_that_does_not_act_is_given_up() {
    let pledges = [("b", at(4, 3, 100)), ("c", at(4, 3, 120))];
    let mut b = ballot("b", &pledges);
    b.stuck = true;
    let waiting_for = Some("c".into());
    assert_eq!(next_move(&b), Move::Void { stuck: true, waiting_for });
}

#[test]
fn a_tag_keeps_the_newest_from_leading_and_nobody_overtakes_it() {
    let pledges = [("b", at(4, 3, 100)), ("c", at(4, 3, 120))];
    let mut b = ballot("b", &pledges);
    b.alive.insert("c".into(), Candidate { may_lead: false, fit: true, priority: 1 });
    assert_eq!(next_move(&b), Move::Wait(Waiting::NobodyMayLead));
}

#[test]
fn one_in_trouble_leads_only_where_nobody_well_holds_as_much() {
    let ill = Candidate { may_lead: true, fit: false, priority: 9 };
    let mut b = ballot("b", &[("b", at(4, 3, 120)), ("c", at(4, 3, 120))]);
    b.alive.insert("c".into(), ill.clone());
    assert!(takes(&b).is_some(), "b is well and holds as much");
    let mut b = ballot("c", &[("b", at(4, 3, 100)), ("c", at(4, 3, 120))]);
    b.alive.insert("c".into(), ill);
    assert!(matches!(next_move(&b), Move::Wait(Waiting::Pledges { .. })));
    b.waited = true;
    assert!(takes(&b).is_some(), "nobody else holds what c holds");
}

/// The same ballot with the leader key of revision 5 still there.
fn led(mut ballot: Ballot, by_us: bool, by_enough: bool) -> Ballot {
    ballot.leader = Some(Accused { key: Revision(5), by_us, by_enough });
    if let Some(fence) = &mut ballot.fence {
        fence.value.leader_revision = Revision(5);
    }
    ballot
}

#[test]
fn a_leader_that_too_few_suspect_is_left_alone() {
    for (by_us, by_enough) in [(false, false), (true, false), (false, true)] {
        let mut b = led(ballot("b", &[]), by_us, by_enough);
        b.fence = None;
        assert_eq!(next_move(&b), Move::Abstain(Abstention::LedWell));
    }
    let mut b = led(ballot("b", &[]), true, true);
    b.fence = None;
    let Move::Open(fence) = next_move(&b) else { panic!("{:?}", next_move(&b)) };
    assert_eq!(fence.leader(), Some(Revision(5)));
}

#[test]
fn only_who_suspects_the_leader_pledges_against_it_and_who_has_pledged_goes_on() {
    let hears = led(ballot("b", &[]), false, false);
    assert_eq!(next_move(&hears), Move::Abstain(Abstention::LedWell));
    let suspects = led(ballot("b", &[]), true, false);
    assert_eq!(next_move(&suspects), Move::StopReceiving);
    let pledges = [("b", at(4, 3, 100)), ("c", at(4, 3, 90))];
    let hears_again = led(ballot("b", &pledges), false, false);
    assert!(takes(&hears_again).is_some());
}

#[test]
fn a_winner_compares_the_leader_key_as_the_fence_named_it_or_gone() {
    let pledges = [("b", at(4, 3, 100)), ("c", at(4, 3, 90))];
    let deposes = takes(&led(ballot("b", &pledges), true, true)).expect("b holds more");
    assert_eq!(deposes.winner.leader, Some(Revision(5)));
    let mut gone = led(ballot("b", &pledges), true, true);
    gone.leader = None;
    assert_eq!(takes(&gone).expect("the key has ended").winner.leader, None);
}

#[test]
fn a_fence_against_another_leader_key_is_stale() {
    let pledges = [("b", at(4, 3, 100)), ("c", at(4, 3, 90))];
    let mut later = led(ballot("b", &pledges), true, true);
    later.leader = Some(Accused { key: Revision(8), by_us: true, by_enough: true });
    assert!(matches!(next_move(&later), Move::Void { stuck: false, .. }));
    let mut against_nobody = ballot("b", &pledges);
    against_nobody.leader = Some(Accused { key: Revision(5), by_us: true, by_enough: true });
    assert!(matches!(next_move(&against_nobody), Move::Void { stuck: false, .. }));
}
