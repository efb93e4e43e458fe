//! The agent's end of the helper process: asks it with a limit, and gives it up when it hangs.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout};

use crate::command::spawn_helper;
use crate::config::InstanceConfig;
use crate::disk_helper::Request;

/// A helper that owes an answer for so long is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(5);
/// So many of those may be left, in a sleep that no signal ends.
const GIVEN_UP_MAX: usize = 2;
/// While one is left, the next helper is started so long after the last.
const START_PAUSE: Duration = Duration::from_secs(5);
/// So many helpers are asked in a row if they end instead of answering.
const TRIES_MAX: u32 = 2;
/// How long the end of killed helpers is waited for.
const END_LIMIT: Duration = Duration::from_millis(200);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum NoAnswer {
    /// None came in time.
    Hangs,
    /// The helper could not be started, or ended.
    Failed(std::io::Error),
}

/// One helper, and those that were given up. Calls are served one after the other.
#[derive(Default)]
pub(crate) struct Helper {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    asked: Option<Asked>,
    given_up: Vec<Child>,
    started: Option<Instant>,
    last_id: u64,
    closed: bool,
}

/// A helper that runs.
struct Asked {
    child: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// The request that is not answered yet.
    owes: Option<Debt>,
}

#[derive(Clone, Copy)]
struct Debt {
    id: u64,
    request: Request,
    since: Instant,
}

impl Helper {
    /// Asks, and waits for the answer at most twice the limit (once for other callers).
    ///
    /// Cancel safety: safe; the answer to what was asked is passed over later.
    pub(crate) async fn ask(
        &self,
        config: &InstanceConfig,
        request: Request,
        limit: Duration,
    ) -> Result<String, NoAnswer> {
        let Ok(mut state) = timeout(limit, self.state.lock()).await else {
            return Err(NoAnswer::Hangs);
        };
        let mut tries = 0;
        loop {
            tries += 1;
            state.start(config)?;
            match timeout(limit, state.exchange(request)).await {
                Ok(Ok(answer)) => return Ok(answer),
                // Killed by somebody, or out of memory: another one answers.
                Ok(Err(error)) => {
                    state.bury().await;
                    if tries == TRIES_MAX {
                        return Err(NoAnswer::Failed(error));
                    }
                }
                Err(_) => {
                    let owes = state.asked.as_ref().and_then(|asked| asked.owes);
                    if owes.is_some_and(|debt| debt.since.elapsed() >= GIVE_UP_AFTER) {
                        state.give_up();
                    }
                    return Err(NoAnswer::Hangs);
                }
            }
        }
    }

    /// Ends the helper and starts none any more.
    pub(crate) async fn close(&self) {
        let Ok(mut state) = timeout(END_LIMIT, self.state.lock()).await else {
            return;
        };
        state.closed = true;
        state.give_up();
        let end = timeout(END_LIMIT, end_all(state)).await;
        if end.is_err() {
            tracing::warn!("a helper does not end: the disk hangs");
        }
    }
}

async fn end_all(mut state: MutexGuard<'_, State>) {
    for child in &mut state.given_up {
        // Whoever cannot be waited for is gone.
        child.wait().await.ok();
    }
    state.given_up.clear();
}

impl State {
    /// Sees to it that a helper runs.
    fn start(&mut self, config: &InstanceConfig) -> Result<(), NoAnswer> {
        self.given_up.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if self.asked.is_some() {
            return Ok(());
        }
        let rested = self.started.is_none_or(|at| at.elapsed() >= START_PAUSE);
        let may = self.given_up.is_empty() || (rested && self.given_up.len() < GIVEN_UP_MAX);
        if self.closed || !may {
            return Err(NoAnswer::Hangs);
        }
        let mut child = spawn_helper(config).map_err(NoAnswer::Failed)?;
        let requests = child.stdin.take().expect("it was asked for");
        let answers = child.stdout.take().expect("it was asked for");
        let answers = BufReader::new(answers).lines();
        self.started = Some(Instant::now());
        self.asked = Some(Asked { child, requests, answers, owes: None });
        Ok(())
    }

    /// A helper that answers no more, since it has ended or is about to.
    async fn bury(&mut self) {
        self.give_up();
        if let Some(mut child) = self.given_up.pop()
            && timeout(END_LIMIT, child.wait()).await.is_err()
        {
            self.given_up.push(child);
        }
    }

    /// Kills the helper without waiting: in its sleep it does not hear.
    fn give_up(&mut self) {
        if let Some(mut asked) = self.asked.take() {
            // It has ended already.
            asked.child.start_kill().ok();
            self.given_up.push(asked.child);
        }
    }

    async fn exchange(&mut self, request: Request) -> std::io::Result<String> {
        let asked = self.asked.as_mut().expect("`start` has seen to it");
        if let Some(debt) = asked.owes {
            let answer = asked.answer(debt.id).await?;
            // A write that was begun before and is done now says what is asked. What was read
            // before may be out of date.
            if debt.request == request && request == Request::Write {
                return Ok(answer);
            }
        }
        self.last_id += 1;
        let id = self.last_id;
        asked.owes = Some(Debt { id, request, since: Instant::now() });
        asked.requests.write_all(format!("{id} {}\n", request.line()).as_bytes()).await?;
        asked.answer(id).await
    }
}

impl Asked {
    async fn answer(&mut self, id: u64) -> std::io::Result<String> {
        while let Some(line) = self.answers.next_line().await? {
            let (of, answer) = line.split_once(' ').unwrap_or((&line, ""));
            if of.parse() == Ok(id) {
                self.owes = None;
                return Ok(answer.to_owned());
            }
        }
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}
