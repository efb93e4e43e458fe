//! The durable state as the rest of the agent sees it: read from memory, written on a thread of its
//! own, so that a disk that hangs keeps an action waiting and nothing else.
//!
//! What is shown is what is on disk: a change shows only when it is durable.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use types::{DataDir, Durable, InProgress};

use crate::state::{StateDir, StateError};

/// How long somebody waits for a write that goes on without him.
const PATIENCE: Duration = Duration::from_secs(1);

/// The durable state. Clones share it.
#[derive(Clone)]
pub(crate) struct Recorded {
    /// Whoever writes holds it to the end of the write; the others queue without a thread.
    writer: Arc<tokio::sync::Mutex<StateDir>>,
    /// What is on disk. Held only for a moment.
    shown: Arc<Mutex<Shown>>,
}

#[derive(Clone)]
struct Shown {
    durable: Durable,
    lease: i64,
    system_identifier: String,
}

impl Shown {
    fn of(state: &StateDir) -> Shown {
        Shown {
            durable: state.durable().clone(),
            lease: state.lease(),
            system_identifier: state.system_identifier().to_owned(),
        }
    }
}

impl Recorded {
    pub(crate) fn new(state: StateDir) -> Recorded {
        let shown = Arc::new(Mutex::new(Shown::of(&state)));
        Recorded { writer: Arc::new(tokio::sync::Mutex::new(state)), shown }
    }

    fn shown(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the recorded state; when this returns, it is on disk.
    ///
    /// Cancel safety: a write that has begun goes on to its end.
    pub(crate) async fn update(
        &self,
        change: impl FnOnce(&mut Durable) + Send + 'static,
    ) -> Result<(), StateError> {
        self.write(|state| state.update(change)).await
    }

    /// What was begun and not finished.
    pub(crate) fn in_progress(&self) -> Option<InProgress> {
        self.shown().durable.in_progress
    }

    /// From now on a data directory that is found for the first time is our own initdb's.
    pub(crate) async fn expect_own(&self) -> Result<(), StateError> {
        self.write(StateDir::expect_own).await
    }

    /// Records the lease that our keys hang on. It is for a restarted agent, so nobody waits long.
    pub(crate) async fn record_lease(&self, lease: i64) -> Result<(), StateError> {
        if self.shown().lease == lease {
            return Ok(());
        }
        let recorded = self.clone();
        let write = async move { recorded.write(move |state| state.record_lease(lease)).await };
        match timeout(PATIENCE, tokio::spawn(write)).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) | Err(_) => Err(StateError::Slow),
        }
    }

    /// What is recorded, for an observation of that data directory. The first one that is seen says
    /// to which cluster the record belongs; until that is on disk, the copy may be anything (I4).
    pub(crate) async fn of(&self, data_dir: &DataDir) -> Durable {
        let shown = self.shown();
        let DataDir::Present(control) = data_dir else {
            return shown.durable;
        };
        // What a bootstrap has not finished is no copy of any cluster.
        let unfinished = shown.durable.in_progress == Some(InProgress::Bootstrap);
        if !shown.system_identifier.is_empty() || unfinished {
            return shown.durable;
        }
        let identifier = control.system_identifier.clone();
        let bound = timeout(PATIENCE, self.write(move |state| state.bind(&identifier))).await;
        let error = match bound {
            Ok(Ok(())) => return self.shown().durable,
            Ok(Err(error)) => error,
            Err(_) => StateError::Slow,
        };
        tracing::error!(%error, "the cluster of this copy was not recorded");
        Durable { fresh_copy: true, ..shown.durable }
    }

    /// Refuses a data directory of another cluster than what is recorded belongs to.
    pub(crate) fn check(&self, system_identifier: &str) -> Result<(), StateError> {
        let recorded = self.shown().system_identifier;
        if recorded.is_empty() || recorded == system_identifier {
            return Ok(());
        }
        Err(StateError::OtherCluster { recorded, found: system_identifier.to_owned() })
    }

    async fn write(
        &self,
        change: impl FnOnce(&mut StateDir) -> Result<(), StateError> + Send + 'static,
    ) -> Result<(), StateError> {
        let mut state = Arc::clone(&self.writer).lock_owned().await;
        let shown = Arc::clone(&self.shown);
        let written = tokio::task::spawn_blocking(move || {
            let written = change(&mut state);
            *shown.lock().unwrap_or_else(PoisonError::into_inner) = Shown::of(&state);
            written
        });
        match written.await {
            Ok(written) => written,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Control, ControlState, Lsn, Term, Timeline};

    fn present() -> DataDir {
        DataDir::Present(Control {
            system_identifier: "7000000000000000001".to_owned(),
            state: ControlState::ShutDown,
            timeline: Timeline(1),
            checkpoint: Lsn(1),
            end: Lsn(1),
            end_timeline: Timeline(1),
            can_rewind: true,
            standby_signal: false,
            unfinished_rewind: false,
        })
    }

    fn recorded(dir: &std::path::Path) -> Recorded {
        Recorded::new(StateDir::open(&dir.join("s"), &"a".into(), "/s/c/").expect("fresh"))
    }

    /// A disk that hangs: whoever writes does not come to its end until this is dropped.
    async fn hang(recorded: &Recorded) -> tokio::sync::OwnedMutexGuard<StateDir> {
        Arc::clone(&recorded.writer).lock_owned().await
    }

    #[tokio::test]
    async fn a_change_shows_when_it_is_durable_and_not_before() {
        let dir = tempfile::tempdir().expect("temp dir");
        let recorded = recorded(dir.path());
        let disk = hang(&recorded).await;
        let writer = recorded.clone();
        let update = tokio::spawn(async move { writer.update(|d| d.term = Term(3)).await });
        tokio::task::yield_now().await;
        let seen = recorded.of(&DataDir::Empty).await;
        assert_eq!(seen.term, Term(0), "an observation does not wait");
        drop(disk);
        update.await.expect("no panic").expect("written");
        assert_eq!(recorded.of(&DataDir::Empty).await.term, Term(3));
        // What cannot be written does not show.
        std::fs::create_dir(dir.path().join("s/state.new")).expect("in the way");
        assert!(recorded.update(|d| d.term = Term(4)).await.is_err());
        assert!(recorded.expect_own().await.is_err());
        assert_eq!(recorded.of(&DataDir::Empty).await.term, Term(3));
    }

    #[tokio::test]
    async fn a_copy_counts_as_fresh_until_its_cluster_is_recorded() {
        let dir = tempfile::tempdir().expect("temp dir");
        let recorded = recorded(dir.path());
        recorded.expect_own().await.expect("written");
        let disk = hang(&recorded).await;
        assert!(recorded.of(&present()).await.fresh_copy, "nothing is known of it");
        assert!(recorded.check("7000000000000000002").is_ok(), "nothing is recorded");
        assert!(matches!(recorded.record_lease(7).await, Err(StateError::Slow)));
        drop(disk);
        assert!(!recorded.of(&present()).await.fresh_copy, "our own initdb's");
        assert!(recorded.check("7000000000000000001").is_ok());
        let other = recorded.check("7000000000000000002");
        assert!(matches!(other, Err(StateError::OtherCluster { .. })), "{other:?}");
    }
}
