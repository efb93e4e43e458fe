//! Callbacks of the operator's: what is called about the local PostgreSQL, derived from what was
//! seen and done. Nothing waits for them.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::Duration;

use config::Callback;
use decide::{Act, Outcome, Reason, StartAs, StopMode};
use postgres::OsUser;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use types::{LocalPostgres, Process, Role};

use crate::context::Context;

/// Calls that wait for the executor; more are dropped, with a warning.
const CALLS_MAX: usize = 64;
/// How long the end of an agent waits until its last callback has been started.
const LAST_CALL: Duration = Duration::from_secs(1);

/// The role that a callback is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallRole {
    Primary,
    Replica,
    StandbyLeader,
    Demoted,
    Uninitialized,
}

impl CallRole {
    fn name(self) -> &'static str {
        match self {
            CallRole::Primary => "primary",
            CallRole::Replica => "replica",
            CallRole::StandbyLeader => "standby_leader",
            CallRole::Demoted => "demoted",
            CallRole::Uninitialized => "uninitialized",
        }
    }
}

/// What an action means for callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It stops PostgreSQL; `graceful`: for a successor.
    Stops { graceful: bool },
    /// It stops PostgreSQL to start it again, as an operator asked.
    Restarts,
    /// It starts PostgreSQL as a primary.
    StartsPrimary,
    /// It promotes.
    Promotes,
    /// It lets PostgreSQL read its configuration again, for another upstream.
    Follows,
    /// It gives the leader key away.
    Releases,
}

impl Meaning {
    /// That of an action.
    pub(crate) fn of(act: &Act, why: &Reason) -> Option<Meaning> {
        match act {
            Act::Stop { mode: StopMode::Fast } if *why == Reason::AskedByOperator => {
                Some(Meaning::Restarts)
            }
            Act::Stop { .. } => Some(Meaning::Stops { graceful: false }),
            Act::StopForHandOver { .. } => {
                Some(Meaning::Stops { graceful: *why != Reason::ShuttingDown })
            }
            Act::Start { start_as: StartAs::Primary, .. } => Some(Meaning::StartsPrimary),
            Act::Promote { .. } => Some(Meaning::Promotes),
            Act::Follow { upstream: Some(_), .. } => Some(Meaning::Follows),
            Act::ReleaseLeader { .. } => Some(Meaning::Releases),
            _ => None,
        }
    }
}

/// What is called next.
type Calls = Vec<(Callback, CallRole)>;

/// From what happened to what is called (the orders are those measured of Patroni).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tracker {
    role: CallRole,
    running: bool,
    stopping: bool,
    /// It was stopped to be started again.
    restarting: bool,
    /// A start as primary failed, and nothing has run since.
    start_failed: bool,
    /// Something was called before: the first call is a start.
    called: bool,
}

impl Default for Tracker {
    fn default() -> Tracker {
        Tracker {
            role: CallRole::Uninitialized,
            running: false,
            stopping: false,
            restarting: false,
            start_failed: false,
            called: false,
        }
    }
}

impl Tracker {
    /// An observation. `standby_leader`: we lead a standby cluster.
    pub(crate) fn seen(&mut self, local: &LocalPostgres, standby_leader: bool) -> Calls {
        match &local.process {
            Process::Running(running) => {
                let role = match running.role {
                    Role::Primary(_) => CallRole::Primary,
                    Role::Standby(_) if standby_leader => CallRole::StandbyLeader,
                    Role::Standby(_) => CallRole::Replica,
                };
                self.runs_as(role)
            }
            Process::Stopped | Process::Orphaned if !self.stopping => {
                self.running = false;
                Calls::new()
            }
            Process::Stopped
            | Process::Orphaned
            | Process::NotReady { .. }
            | Process::Silent { .. } => Calls::new(),
        }
    }

    fn runs_as(&mut self, role: CallRole) -> Calls {
        if !self.called && role == CallRole::StandbyLeader {
            // It comes up as a standby, and leads then.
            let mut calls = self.runs_as(CallRole::Replica);
            calls.extend(self.runs_as(role));
            return calls;
        }
        let former = std::mem::replace(&mut self.role, role);
        let started = !std::mem::replace(&mut self.running, true);
        self.start_failed = false;
        let restarted = std::mem::take(&mut self.restarting) && started;
        let standby = |role| matches!(role, CallRole::Replica | CallRole::StandbyLeader);
        let was_primary = matches!(former, CallRole::Primary | CallRole::Demoted);
        let event = if !self.called {
            Callback::OnStart
        } else if standby(role) && (was_primary || (standby(former) && former != role)) {
            Callback::OnRoleChange
        } else if restarted {
            Callback::OnRestart
        } else if started {
            Callback::OnStart
        } else if former != role {
            Callback::OnRoleChange
        } else {
            return Calls::new();
        };
        self.call(event)
    }

    /// An action has begun.
    pub(crate) fn begun(&mut self, meaning: Meaning) {
        if let Meaning::Stops { .. } | Meaning::Restarts = meaning {
            self.stopping = true;
        }
    }

    /// An action has ended.
    pub(crate) fn ended(&mut self, meaning: Meaning, outcome: Outcome) -> Calls {
        let done = outcome == Outcome::Done;
        match meaning {
            Meaning::Stops { graceful } => {
                self.stopping = false;
                if !done || !std::mem::replace(&mut self.running, false) {
                    return Calls::new();
                }
                if graceful {
                    self.role = CallRole::Demoted;
                }
                self.call(Callback::OnStop)
            }
            Meaning::Restarts => {
                self.stopping = false;
                if done {
                    self.restarting = std::mem::replace(&mut self.running, false);
                }
                Calls::new()
            }
            Meaning::StartsPrimary => {
                self.start_failed = outcome == Outcome::Failed;
                Calls::new()
            }
            Meaning::Promotes if done && self.role != CallRole::Primary => {
                self.role = CallRole::Primary;
                self.call(Callback::OnRoleChange)
            }
            Meaning::Follows if done && self.running => self.call(Callback::OnReload),
            Meaning::Releases if done && std::mem::take(&mut self.start_failed) => {
                let leading = matches!(self.role, CallRole::Primary | CallRole::StandbyLeader);
                if !leading {
                    return Calls::new();
                }
                self.role = CallRole::Demoted;
                self.call(Callback::OnRoleChange)
            }
            Meaning::Promotes | Meaning::Follows | Meaning::Releases => Calls::new(),
        }
    }

    /// PostgreSQL was told to read its configuration again.
    pub(crate) fn reloaded(&mut self) -> Calls {
        if self.running { self.call(Callback::OnReload) } else { Calls::new() }
    }

    fn call(&mut self, event: Callback) -> Calls {
        self.called |= event != Callback::OnReload;
        vec![(event, self.role)]
    }
}

/// What is to be run.
struct Call {
    event: Callback,
    words: Vec<String>,
    os_user: Option<OsUser>,
}

/// The configured commands, and whoever runs them.
pub(crate) struct Callbacks {
    pub(crate) tracker: Tracker,
    scope: String,
    os_user: Option<OsUser>,
    commands: BTreeMap<Callback, Vec<String>>,
    calls: mpsc::Sender<Call>,
    executor: JoinHandle<()>,
}

impl Callbacks {
    /// Those of an agent.
    pub(crate) fn of<I: postgres::Instance>(scope: &str, context: &Context<I>) -> Callbacks {
        Callbacks::new(scope, context.os_user.clone(), &context.hooks())
    }

    /// Starts the executor.
    fn new(scope: &str, os_user: Option<OsUser>, hooks: &config::Hooks) -> Callbacks {
        let (calls, incoming) = mpsc::channel(CALLS_MAX);
        let mut callbacks = Callbacks {
            tracker: Tracker::default(),
            scope: scope.to_owned(),
            os_user,
            commands: BTreeMap::new(),
            calls,
            executor: tokio::spawn(run(incoming)),
        };
        callbacks.configure(hooks);
        callbacks
    }

    /// Takes over the configured commands.
    pub(crate) fn configure(&mut self, hooks: &config::Hooks) {
        let commands = hooks.callbacks.iter().flatten();
        self.commands =
            commands.map(|(event, command)| (*event, command.words().to_vec())).collect();
    }

    /// Hands the calls to the executor. Returns what is called, for the journal.
    pub(crate) fn call(&self, calls: Calls) -> Vec<(&'static str, &'static str)> {
        let mut called = Vec::new();
        for (event, role) in calls {
            let Some(command) = self.commands.get(&event) else {
                continue;
            };
            let mut words = command.clone();
            words.extend([event.name().to_owned(), role.name().to_owned(), self.scope.clone()]);
            let call = Call { event, words, os_user: self.os_user.clone() };
            match self.calls.try_send(call) {
                Ok(()) => called.push((event.name(), role.name())),
                Err(_) => tracing::warn!(event = event.name(), "a callback was not called"),
            }
        }
        called
    }

    /// Lets the executor start what was called last; what runs then runs on.
    pub(crate) async fn finish(self) {
        drop(self.calls);
        if tokio::time::timeout(LAST_CALL, self.executor).await.is_err() {
            tracing::warn!("the last callback was not seen to start");
        }
    }
}

/// One command at a time: a newer one ends an older one with its children. Reloads are apart.
async fn run(mut calls: mpsc::Receiver<Call>) {
    let (mut main, mut reload) = (None, None);
    loop {
        let call = tokio::select! {
            call = calls.recv() => call,
            status = ended(&mut main) => {
                tracing::debug!(?status, "a callback ended");
                main = None;
                continue;
            }
            status = ended(&mut reload) => {
                tracing::debug!(?status, "on_reload ended");
                reload = None;
                continue;
            }
        };
        let Some(call) = call else {
            return;
        };
        let slot = if call.event == Callback::OnReload { &mut reload } else { &mut main };
        if let Some(older) = slot.take() {
            end(older).await;
        }
        *slot = start(&call);
    }
}

/// Resolves when the child has ended; never without one.
async fn ended(slot: &mut Option<Child>) -> Option<ExitStatus> {
    match slot {
        Some(child) => child.wait().await.ok(),
        None => std::future::pending().await,
    }
}

/// Ends a callback with all that it started.
async fn end(mut child: Child) {
    let group = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    if let Some(group) = group {
        // It leads a group of its own, which is gone at the latest when it is buried.
        kill_process_group(group, Signal::KILL).ok();
    }
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "an older callback was not seen to end");
    }
}

fn start(call: &Call) -> Option<Child> {
    let program = call.words.first().cloned().unwrap_or_default();
    let event = call.event.name();
    match postgres::callback_command(call.os_user.as_ref(), &call.words).spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            tracing::error!(%error, event, program, "the callback cannot be run");
            None
        }
    }
}

#[cfg(test)]
#[path = "callbacks_tests.rs"]
mod tests;
