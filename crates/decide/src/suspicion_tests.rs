use types::Term;

use super::*;

const TIMEOUT: Millis = Millis(1_000);

fn says(term: u64) -> Heartbeat {
    Heartbeat { term: Term(term), suspects: None }
}

/// `a` heard every `interval` milliseconds, `times` times.
fn heard(interval: u64, times: u64) -> (Peers, Millis) {
    let mut peers = Peers::default();
    let mut now = Millis(5_000);
    for _ in 0..times {
        now = now.plus(Millis(interval));
        peers.hear(now, ("a".into(), says(1)), TIMEOUT);
    }
    (peers, now)
}

#[test]
fn a_beat_is_new_when_it_says_something_new() {
    let mut peers = Peers::default();
    assert!(peers.hear(Millis(1), ("a".into(), says(1)), TIMEOUT));
    assert!(!peers.hear(Millis(2), ("a".into(), says(1)), TIMEOUT));
    assert!(peers.hear(Millis(3), ("a".into(), says(2)), TIMEOUT));
}

#[test]
fn patience_is_the_time_out_for_beats_in_time_and_twice_the_longest_interval_for_slow_ones() {
    let patience = |interval| heard(interval, 50).0.patience(&"a".into(), TIMEOUT);
    assert_eq!(patience(200), Some(TIMEOUT));
    assert_eq!(patience(800), Some(Millis(1_600)));
    assert_eq!(patience(1_100), Some(TIMEOUT), "that is no interval, but an outage");
    let (mut slower, mut now) = heard(200, 5);
    for interval in [900, 1_700, 3_000, 3_900] {
        now = now.plus(Millis(interval));
        slower.hear(now, ("a".into(), says(1)), TIMEOUT);
    }
    assert_eq!(slower.patience(&"a".into(), TIMEOUT), Some(Millis(4_000)), "it has a bound");
    assert_eq!(Peers::default().patience(&"a".into(), TIMEOUT), None, "never heard, not missed");
}

#[test]
fn one_long_interval_is_forgotten_within_a_minute() {
    let (mut peers, mut now) = heard(200, 50);
    now = now.plus(Millis(900));
    let mut patience = Vec::new();
    for _ in 0..300 {
        peers.hear(now, ("a".into(), says(1)), TIMEOUT);
        patience.push(peers.patience(&"a".into(), TIMEOUT).expect("heard"));
        now = now.plus(Millis(200));
    }
    assert_eq!(patience[0], Millis(1_800));
    assert!(patience[100] > Millis(1_200) && patience[100] < Millis(1_800), "{:?}", patience[100]);
    assert_eq!(patience[299], TIMEOUT);
}

#[test]
fn a_time_in_which_we_did_not_run_is_nobodys_silence() {
    let (mut peers, now) = heard(200, 5);
    let name = MemberName::from("a");
    let late = now.plus(Millis(3_000));
    assert!(!peers.hears(late, &name, TIMEOUT));
    peers.forgive(late, Millis(2_500));
    assert!(peers.hears(late, &name, TIMEOUT));
    peers.forgive(late, Millis(60_000));
    let (heard, _) = peers.silent_since(&name, TIMEOUT).expect("heard");
    assert_eq!(heard, late, "nobody was heard in the future");
}
