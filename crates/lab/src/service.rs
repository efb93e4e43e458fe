//! A small service manager: keeps one program running.
//!
//! A program that ends is started again after a delay, unless it is held back. Deaths are learnt
//! from the kernel (it is our child), never by looking.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cgroup::Group;
use crate::process;

/// How long a killed program may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// For messages.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments: no secrets, everybody can read them.
    pub arguments: Vec<OsString>,
    /// Where its output goes, appended. Mode 0600.
    pub log: PathBuf,
    /// How long after a death it is started again.
    pub restart_after: Duration,
    /// Its host's group.
    pub group: Option<Group>,
}

/// What is known about the program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// How often it was started.
    pub starts: u32,
    /// How it ended last time, or why it could not be started.
    pub last_end: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Hold,
    Stop { limit: Duration },
}

/// A program that is kept running. Dropping this lets the program run on, unsupervised.
pub struct Service {
    /// What it runs.
    pub spec: Spec,
    state: watch::Receiver<State>,
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Service {
    /// Starts the program and keeps it running.
    #[must_use]
    pub fn start(spec: Spec) -> Service {
        let (state_out, state) = watch::channel(State::default());
        let (wish, wish_in) = watch::channel(Wish::Run);
        let keeper = Keeper { spec: spec.clone(), state: state_out, wish: wish_in };
        Service { spec, state, wish, task: tokio::spawn(keeper.keep()) }
    }

    /// What is known now.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.state.borrow().pid
    }

    /// From now on it is not started again when it ends; one that runs goes on.
    pub fn hold(&self) {
        self.wish_for(Wish::Hold);
    }

    /// It may be started again: at once if its delay is over.
    pub fn release(&self) {
        self.wish_for(Wish::Run);
    }

    fn wish_for(&self, wish: Wish) {
        self.wish.send_if_modified(|current| {
            let stopping = matches!(current, Wish::Stop { .. });
            if !stopping {
                *current = wish;
            }
            !stopping
        });
    }

    /// Waits until a process other than `old` runs, at most `limit`; its pid.
    pub async fn wait_started(&self, old: Option<u32>, limit: Duration) -> Option<u32> {
        let mut state = self.state.clone();
        let running = state.wait_for(|state| state.pid.is_some() && state.pid != old);
        match tokio::time::timeout(limit, running).await {
            Ok(Ok(state)) => state.pid,
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Waits until the process `pid` is no longer the running one, at most `limit`.
    pub async fn wait_ended(&self, pid: u32, limit: Duration) {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| state.pid != Some(pid));
        drop(tokio::time::timeout(limit, ended).await);
    }

    /// Ends it for good: SIGTERM, and SIGKILL after `limit`. Returns when it is gone.
    pub async fn stop(&mut self, limit: Duration) {
        self.wish.send_replace(Wish::Stop { limit });
        // An error would be a panic of the keeper, which the runtime has reported.
        drop((&mut self.task).await);
    }
}

struct Keeper {
    spec: Spec,
    state: watch::Sender<State>,
    wish: watch::Receiver<Wish>,
}

/// The program is to end, or its owner is gone.
struct Over;

impl Keeper {
    async fn keep(mut self) {
        loop {
            if self.may_run().await.is_err() {
                return;
            }
            let ended = match self.spawn() {
                Ok(mut child) => match self.watch(&mut child).await {
                    Ok(ended) => ended,
                    Err(Over) => return,
                },
                Err(error) => format!("cannot be started: {error}"),
            };
            tracing::info!(service = %self.spec.name, how = %ended, "ended");
            self.state.send_modify(|state| {
                state.pid = None;
                state.last_end = Some(ended);
            });
            if self.pause().await.is_err() {
                return;
            }
        }
    }

    /// Waits until nothing holds it back.
    async fn may_run(&mut self) -> Result<(), Over> {
        match self.wish.wait_for(|wish| *wish != Wish::Hold).await.map(|wish| *wish) {
            Ok(Wish::Run | Wish::Hold) => Ok(()),
            Ok(Wish::Stop { .. }) | Err(_) => Err(Over),
        }
    }

    /// Waits the restart delay.
    async fn pause(&mut self) -> Result<(), Over> {
        let until = Instant::now() + self.spec.restart_after;
        tokio::select! {
            () = tokio::time::sleep_until(until) => Ok(()),
            _ = self.wish.wait_for(|wish| matches!(wish, Wish::Stop { .. })) => Err(Over),
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = open_log(&self.spec)?;
        let mut command = Command::new(&self.spec.program);
        // Its file says everything; variables of our own environment would win over it.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PATRONI_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(&self.spec.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C goes to the terminal's whole group: the programs are stopped in order, by us.
            .process_group(0)
            .spawn()?;
        if let (Some(group), Some(pid)) = (&self.spec.group, child.id())
            && let Err(error) = group.add(pid)
        {
            tracing::debug!(service = %self.spec.name, %error, "not in its host's group");
        }
        self.state.send_modify(|state| {
            state.pid = child.id();
            state.starts += 1;
        });
        Ok(child)
    }

    /// Watches a running program: how it ended, or `Over` after it was stopped as wished.
    async fn watch(&mut self, child: &mut Child) -> Result<String, Over> {
        let limit = tokio::select! {
            status = child.wait() => {
                return Ok(status.map_or_else(|e| e.to_string(), |status| status.to_string()));
            }
            wish = self.wish.wait_for(|wish| matches!(wish, Wish::Stop { .. })) => match wish {
                Ok(wish) => match *wish {
                    Wish::Stop { limit } => limit,
                    Wish::Run | Wish::Hold => Duration::ZERO,
                },
                // The owner forgot the service: the program runs on.
                Err(_) => return Err(Over),
            },
        };
        self.end(child, limit).await;
        self.state.send_modify(|state| state.pid = None);
        Err(Over)
    }

    async fn end(&self, child: &mut Child, limit: Duration) {
        let Some(pid) = child.id() else { return };
        // A stopped or frozen program cannot take SIGTERM: wake it as well.
        for signal in [Signal::TERM, Signal::CONT] {
            if let Err(error) = process::signal(pid, signal) {
                tracing::warn!(service = %self.spec.name, pid, %error, "cannot be signalled");
            }
        }
        if tokio::time::timeout(limit, child.wait()).await.is_ok() {
            return;
        }
        tracing::info!(service = %self.spec.name, pid, "did not stop in time, killed");
        let killed = tokio::time::timeout(KILL_LIMIT, child.kill()).await;
        if !matches!(killed, Ok(Ok(()))) {
            tracing::warn!(service = %self.spec.name, pid, "cannot be killed");
        }
    }
}

fn open_log(spec: &Spec) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(&spec.log)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn spec(name: &str, script: &str) -> Spec {
        let log = std::env::temp_dir().join(format!("lab-service-{name}-{}", std::process::id()));
        Spec {
            name: name.to_owned(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            log,
            restart_after: Duration::from_millis(50),
            group: None,
        }
    }

    fn service(name: &str, script: &str) -> Service {
        Service::start(spec(name, script))
    }

    fn forget(service: &Service) {
        std::fs::remove_file(&service.spec.log).expect("it has a log");
    }

    #[tokio::test]
    async fn a_program_that_dies_is_started_again_unless_held() {
        let mut service = service("restart", "exec sleep 60");
        let first = service.wait_started(None, SOON).await.expect("it starts");
        process::signal(first, Signal::KILL).expect("it is ours");
        let second = service.wait_started(Some(first), SOON).await.expect("it starts again");
        assert_ne!(first, second);
        assert_eq!(service.state().starts, 2);
        assert!(service.state().last_end.is_some_and(|end| end.contains("signal: 9")));
        service.hold();
        process::signal(second, Signal::KILL).expect("it is ours");
        let held = service.wait_started(Some(second), Duration::from_millis(300)).await;
        assert_eq!(held, None);
        service.release();
        let third = service.wait_started(Some(second), SOON).await.expect("it may again");
        service.stop(SOON).await;
        assert!(!process::is_alive(third));
        forget(&service);
    }

    #[tokio::test]
    async fn a_program_that_ignores_sigterm_is_killed() {
        let mut service = service("stubborn", "trap '' TERM; while :; do sleep 0.05; done");
        let pid = service.wait_started(None, SOON).await.expect("it starts");
        tokio::time::sleep(Duration::from_millis(100)).await;
        service.stop(Duration::from_millis(200)).await;
        assert!(!process::is_alive(pid));
        forget(&service);
    }

    #[tokio::test]
    async fn a_missing_program_is_said_to_be_missing() {
        let mut missing = spec("missing", "");
        missing.program = "/nonexistent/program".into();
        let mut service = Service::start(missing);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let end = service.state().last_end.expect("it could not start");
        assert!(end.contains("cannot be started"), "{end}");
        service.stop(SOON).await;
        forget(&service);
    }
}
