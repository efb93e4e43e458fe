//! Trials that go on beside the observations: is a new client served, do the volumes take a small
//! write to its end? A running session answers long after either has stopped.
//!
//! Observations read the results and never wait for a trial. The tasks belong to the instance: they
//! end with it, or when it is closed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use types::{Fault, Health, Millis, Trouble};

use crate::disk::{Helper, NoAnswer};
use crate::disk_helper::{Request, Written};
use crate::error::Error;
use crate::instance::LocalInstance;
use crate::observe::now;
use crate::sql;

/// A trial that is not done by then has not succeeded.
const TRIAL_LIMIT: Duration = Duration::from_secs(1);
/// Between two trials after one that did not succeed.
const SOON: Duration = Duration::from_millis(300);
/// `application_name` of a trial's connection.
const APPLICATION: &str = "pgherd trial";

/// Sessions that take a slot, as PostgreSQL counts them (the agent's kept one too: an ordinary
/// client finds it taken), and how many slots ordinary clients can have.
const SLOTS: &str = "\
SELECT count(*), current_setting('max_connections')::int
  - current_setting('superuser_reserved_connections')::int
  - coalesce(current_setting('reserved_connections', true), '0')::int
FROM pg_stat_get_activity(NULL)
WHERE backend_type = 'client backend' AND application_name <> 'pgherd trial'";

/// The trials of one instance, and what they showed.
#[derive(Default)]
pub(crate) struct Trials {
    writer: Helper,
    shared: Arc<Shared>,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Shared {
    results: Mutex<Results>,
    /// The server has come up: try it.
    came_up: Notify,
}

#[derive(Default)]
struct Results {
    health: Health,
    /// A server is expected to answer.
    serves: bool,
}

#[derive(Default)]
enum Tasks {
    #[default]
    NotStarted,
    Run([JoinHandle<()>; 2]),
    Closed,
}

/// What a trial of the connection showed.
#[derive(Debug, PartialEq, Eq)]
enum Served {
    Yes,
    /// The server starts or stops, and says so.
    NotNow,
    No(Fault),
}

impl Trials {
    /// What the trials showed last.
    pub(crate) fn health(&self) -> Health {
        self.shared.results().health.clone()
    }

    /// Says whether a server is there that is expected to answer: one that starts or stops is not
    /// in trouble.
    pub(crate) fn expect(&self, serves: bool) {
        let mut results = self.shared.results();
        if serves && !results.serves {
            self.shared.came_up.notify_one();
        }
        results.serves = serves;
        if !serves {
            results.health.connection = None;
        }
    }

    /// Starts the tasks if they do not run yet. `instance` gives it as long as it lives.
    pub(crate) fn start(
        &self,
        instance: impl Fn() -> Option<LocalInstance> + Clone + Send + 'static,
    ) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*tasks, Tasks::NotStarted) {
            *tasks = Tasks::Run([
                tokio::spawn(try_connections(self.shared.clone(), instance.clone())),
                tokio::spawn(try_writes(instance)),
            ]);
        }
    }

    /// Ends the tasks and the helper.
    pub(crate) async fn close(&self) {
        self.end_tasks();
        self.writer.close().await;
    }

    fn end_tasks(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Tasks::Run(running) = std::mem::replace(&mut *tasks, Tasks::Closed) {
            running.iter().for_each(JoinHandle::abort);
        }
    }
}

impl Shared {
    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records a trial that began at `began`. Trouble goes back to the first one that did not succeed.
fn record(of: &mut Option<Trouble>, began: Millis, fault: Option<Fault>) {
    *of = fault.map(|fault| {
        let since = of.as_ref().map_or(began, |trouble| trouble.since);
        Trouble { since, fault }
    });
}

async fn try_connections(shared: Arc<Shared>, instance: impl Fn() -> Option<LocalInstance>) {
    while let Some(instance) = instance() {
        if shared.results().serves {
            let began = now();
            let served = connect_once(&instance).await;
            let mut results = shared.results();
            // It may have begun to stop meanwhile.
            if results.serves {
                let fault = match served {
                    Served::Yes | Served::NotNow => None,
                    Served::No(fault) => Some(fault),
                };
                record(&mut results.health.connection, began, fault);
            }
        }
        let healthy = shared.results().health.connection.is_none();
        let pause = pause_after(&instance, healthy);
        drop(instance);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.came_up.notified() => {}
        }
    }
}

async fn try_writes(instance: impl Fn() -> Option<LocalInstance>) {
    while let Some(instance) = instance() {
        let trials = instance.trials();
        // pg_rewind stumbles over files that go while it works.
        if !instance.tool_runs() {
            let began = now();
            let config = instance.config();
            let answer = trials.writer.ask(&config, Request::Write, TRIAL_LIMIT).await;
            let mut results = trials.shared.results();
            match written(answer) {
                Ok(fault) => record(&mut results.health.write, began, fault),
                Err(error) => tracing::warn!(%error, "no write could be tried"),
            }
        }
        let pause = pause_after(&instance, trials.health().write.is_none());
        drop(instance);
        tokio::time::sleep(pause).await;
    }
}

fn pause_after(instance: &LocalInstance, healthy: bool) -> Duration {
    if healthy { instance.config().trial_interval.as_duration() } else { SOON }
}

/// What a trial's answer says of the volumes; an error says nothing of them.
fn written(answer: Result<String, NoAnswer>) -> std::io::Result<Option<Fault>> {
    let line = match answer {
        Ok(line) => line,
        Err(NoAnswer::Hangs) => return Ok(Some(Fault::DiskHangs)),
        Err(NoAnswer::Failed(error)) => return Err(error),
    };
    match Written::parse(&line) {
        Some(Written::Done | Written::Nothing) => Ok(None),
        Some(Written::Full) => Ok(Some(Fault::DiskFull)),
        Some(Written::Failed(what)) => Ok(Some(Fault::DiskFails(what))),
        None => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// Connects anew and asks what an ordinary client would find.
async fn connect_once(instance: &LocalInstance) -> Served {
    let config = instance.config();
    let slots = async {
        let client = sql::connect_local(&config, APPLICATION, sql::PROBE_LIMIT).await?;
        sql::one_row(&client, "count connections", SLOTS).await
    };
    let error = match timeout(TRIAL_LIMIT, slots).await {
        Ok(Ok(row)) => {
            let number = |index: usize| row.get(index).and_then(|n| n.parse::<i64>().ok());
            let taken = number(0).zip(number(1)).is_some_and(|(used, slots)| used >= slots);
            return if taken { Served::No(Fault::NoConnectionLeft) } else { Served::Yes };
        }
        Ok(Err(error)) => error,
        Err(_) => Error::timed_out("a new connection", sql::PROBE_LIMIT),
    };
    tracing::debug!(%error, "a new client is not served");
    // Nobody expects an answer of a server that has just ended.
    if instance.known_postmaster().is_none() {
        return Served::NotNow;
    }
    served(&error)
}

/// What an error says of the server.
fn served(error: &Error) -> Served {
    let text = match error {
        Error::Connect { message, .. } | Error::Sql { message, .. } => message,
        _ => return Served::No(Fault::NoAnswer),
    };
    let code = text.split_once("(SQLSTATE ").map_or("", |(_, rest)| rest.trim_end_matches(')'));
    match code {
        "53300" => Served::No(Fault::NoConnectionLeft),
        // Starting, or stopping by whatever means.
        "57P01" | "57P02" | "57P03" => Served::NotNow,
        // It answers; that it does not let the agent in is another matter.
        "3D000" | "42501" => Served::Yes,
        refused if refused.starts_with("28") => Served::Yes,
        _ => Served::No(Fault::NoAnswer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_lasts_from_the_first_trial_until_one_succeeds() {
        let mut of = None;
        record(&mut of, Millis(1), None);
        assert_eq!(of, None);
        record(&mut of, Millis(2), Some(Fault::DiskHangs));
        record(&mut of, Millis(3), Some(Fault::DiskFull));
        assert_eq!(of, Some(Trouble { since: Millis(2), fault: Fault::DiskFull }));
        record(&mut of, Millis(4), None);
        assert_eq!(of, None);
        record(&mut of, Millis(5), Some(Fault::DiskHangs));
        assert_eq!(of, Some(Trouble { since: Millis(5), fault: Fault::DiskHangs }));
    }

    #[test]
    fn an_error_of_the_server_is_told_from_its_silence() {
        let connect = |message: &str| {
            let (address, message) = ("x".to_owned(), message.to_owned());
            served(&Error::Connect { address, message, starting: false })
        };
        let none_left = Served::No(Fault::NoConnectionLeft);
        assert_eq!(connect("sorry, too many clients already (SQLSTATE 53300)"), none_left);
        assert_eq!(
            connect("the database system is shutting down (SQLSTATE 57P03)"),
            Served::NotNow
        );
        assert_eq!(connect("password authentication failed (SQLSTATE 28P01)"), Served::Yes);
        assert_eq!(connect("out of memory (SQLSTATE 53200)"), Served::No(Fault::NoAnswer));
        assert_eq!(connect("Connection refused (os error 111)"), Served::No(Fault::NoAnswer));
        let late = Error::timed_out("x", Millis(1));
        assert_eq!(served(&late), Served::No(Fault::NoAnswer));
    }
}
