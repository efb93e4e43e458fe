//! A crowd of clients that takes every connection a server has, and keeps them.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::SqlState;

use crate::workload::{Session, Target};

/// More connections than this are not opened, whatever the server allows.
const CONNECTIONS_MAX: usize = 1000;
/// How long one of them may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// From a refusal to the next attempt: what others give back is taken soon.
const PAUSE: Duration = Duration::from_millis(20);

/// The clients. They leave when this is dropped.
pub struct Crowd {
    refused: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Crowd {
    /// Sends a crowd to `target`. As a superuser it takes the reserved connections as well.
    #[must_use]
    pub fn start(target: Target) -> Crowd {
        let (tell, refused) = watch::channel(false);
        Crowd { refused, task: tokio::spawn(take_all(target, tell)) }
    }

    /// Waits until the server has refused one because there are too many; `false` if it did not
    /// within `limit`.
    pub async fn wait_refused(&self, limit: Duration) -> bool {
        let mut refused = self.refused.clone();
        let until = Instant::now() + limit;
        matches!(timeout_at(until, refused.wait_for(|refused| *refused)).await, Ok(Ok(_)))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take_all(target: Target, tell: watch::Sender<bool>) {
    let mut sessions = Vec::new();
    loop {
        let opened = match timeout(CONNECT_LIMIT, Session::open(&target)).await {
            Ok(Ok(session)) if sessions.len() < CONNECTIONS_MAX => {
                sessions.push(session);
                true
            }
            Ok(Err(error)) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
                tell.send_replace(true);
                false
            }
            Ok(_) | Err(_) => false,
        };
        if !opened {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
