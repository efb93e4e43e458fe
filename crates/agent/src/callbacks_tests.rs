//! The orders that were measured of Patroni, from what an agent sees and does.

use types::{DataDir, Durable, Health, Millis, Primary, Running, Server, Standby};

use super::*;

fn local(process: Process) -> LocalPostgres {
    LocalPostgres {
        at: Millis::ZERO,
        data_dir: DataDir::Empty,
        process,
        health: Health::default(),
        durable: Durable::default(),
        compared: None,
    }
}

fn primary() -> LocalPostgres {
    let role = Role::Primary(Primary::default());
    local(Process::Running(Running { server: Server::default(), role }))
}

fn standby() -> LocalPostgres {
    let role = Role::Standby(Standby::default());
    local(Process::Running(Running { server: Server::default(), role }))
}

fn stopped() -> LocalPostgres {
    local(Process::Stopped)
}

/// A tracker, and what it called.
#[derive(Default)]
struct Told {
    tracker: Tracker,
    calls: Vec<String>,
}

impl Told {
    fn note(&mut self, calls: Calls) {
        let told =
            calls.into_iter().map(|(event, role)| format!("{} {}", event.name(), role.name()));
        self.calls.extend(told);
    }

    fn see(&mut self, local: &LocalPostgres) -> &mut Told {
        let calls = self.tracker.seen(local, false);
        self.note(calls);
        self
    }

    fn see_leading_standby(&mut self) -> &mut Told {
        let calls = self.tracker.seen(&standby(), true);
        self.note(calls);
        self
    }

    fn act(&mut self, meaning: Meaning, outcome: Outcome) -> &mut Told {
        let calls = self.tracker.ended(meaning, outcome);
        self.note(calls);
        self
    }

    /// A stop, which the observer sees before its end is told.
    fn stop(&mut self, graceful: bool) -> &mut Told {
        let meaning = Meaning::Stops { graceful };
        self.tracker.begun(meaning);
        self.see(&stopped()).act(meaning, Outcome::Done).see(&stopped())
    }

    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.calls)
    }
}

#[test]
fn a_switchover() {
    let mut old = Told::default();
    old.see(&stopped()).see(&primary()).see(&primary());
    assert_eq!(old.take(), ["on_start primary"]);
    old.stop(true).see(&standby()).see(&standby());
    assert_eq!(old.take(), ["on_stop demoted", "on_role_change replica"]);

    let mut new = Told::default();
    new.see(&standby());
    assert_eq!(new.take(), ["on_start replica"]);
    new.act(Meaning::Promotes, Outcome::Done).see(&primary());
    assert_eq!(new.take(), ["on_role_change primary"]);

    let mut third = Told::default();
    third.see(&standby()).take();
    third.act(Meaning::Follows, Outcome::Done).see(&standby());
    assert_eq!(third.take(), ["on_reload replica"]);
}

#[test]
fn a_crash_that_is_cured_in_place_is_a_start() {
    let mut told = Told::default();
    told.see(&primary()).take();
    told.see(&stopped()).act(Meaning::StartsPrimary, Outcome::Done).see(&primary());
    assert_eq!(told.take(), ["on_start primary"]);
}

#[test]
fn a_restart_is_no_stop_and_start() {
    let mut told = Told::default();
    told.see(&primary()).take();
    told.tracker.begun(Meaning::Restarts);
    told.see(&stopped()).act(Meaning::Restarts, Outcome::Done).see(&stopped()).see(&primary());
    assert_eq!(told.take(), ["on_restart primary"]);
    told.see(&stopped()).see(&primary());
    assert_eq!(told.take(), ["on_start primary"]);
}

#[test]
fn a_lost_lease_and_a_rewind() {
    let mut told = Told::default();
    told.see(&primary()).take();
    told.stop(false).see(&standby());
    assert_eq!(told.take(), ["on_stop primary", "on_role_change replica"]);
    told.stop(false).see(&standby());
    assert_eq!(told.take(), ["on_stop replica", "on_start replica"]);
}

#[test]
fn a_leader_that_cannot_be_started_is_demoted() {
    let mut told = Told::default();
    told.see(&primary()).take();
    told.see(&stopped()).act(Meaning::StartsPrimary, Outcome::Failed);
    told.act(Meaning::Releases, Outcome::Done);
    assert_eq!(told.take(), ["on_role_change demoted"]);
    told.act(Meaning::Releases, Outcome::Done).see(&standby());
    assert_eq!(told.take(), ["on_role_change replica"]);
}

#[test]
fn standby_leaders() {
    let mut told = Told::default();
    told.see(&standby()).see_leading_standby().see_leading_standby();
    assert_eq!(told.take(), ["on_start replica", "on_role_change standby_leader"]);
    told.act(Meaning::Promotes, Outcome::Done).see(&primary());
    assert_eq!(told.take(), ["on_role_change primary"]);
    let mut first = Told::default();
    first.see_leading_standby().see_leading_standby();
    assert_eq!(first.take(), ["on_start replica", "on_role_change standby_leader"]);
}

#[test]
fn a_stop_that_fails_and_a_reload_of_nothing_call_nothing() {
    let mut told = Told::default();
    told.see(&primary()).take();
    let stops = Meaning::Stops { graceful: false };
    told.tracker.begun(stops);
    told.act(stops, Outcome::Failed);
    assert!(told.take().is_empty());
    let calls = told.tracker.reloaded();
    told.note(calls);
    assert_eq!(told.take(), ["on_reload primary"]);
    told.stop(false).take();
    assert!(told.tracker.reloaded().is_empty());
    // Nothing ran: another stop is none.
    assert!(told.stop(false).take().is_empty());
}

#[tokio::test]
async fn a_newer_callback_ends_an_older_one_with_its_children() {
    let dir = tempfile::tempdir().expect("temp dir");
    let shown = |name: &str| dir.path().join(name).display().to_string();
    let script = |body: &str| {
        let words = ["sh", "-c", body, "sh"];
        words.map(str::to_owned).to_vec()
    };
    let mut callbacks = Callbacks::new("batman", None, &config::Hooks::default());
    let slow = format!("sleep 100 & echo $! > {0}.new; mv {0}.new {0}; wait", shown("child"));
    callbacks.commands.insert(Callback::OnStart, script(&slow));
    let quick = format!("echo \"$*\" > {0}.new; mv {0}.new {0}", shown("quick"));
    callbacks.commands.insert(Callback::OnStop, script(&quick));
    assert_eq!(
        callbacks.call(vec![(Callback::OnStart, CallRole::Replica)]),
        [("on_start", "replica")]
    );
    let child = wait_for(&shown("child")).await;
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    assert!(alive());
    callbacks.call(vec![(Callback::OnStop, CallRole::Demoted)]);
    assert_eq!(wait_for(&shown("quick")).await, "on_stop demoted batman\n");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while alive() {
        assert!(std::time::Instant::now() < deadline, "the older one's child lives");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    callbacks.finish().await;
}

async fn wait_for(path: &str) -> String {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        assert!(std::time::Instant::now() < deadline, "{path} is not written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
