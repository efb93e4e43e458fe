//! By which name a proxy is known in the DCS: two that serve beside each other need two.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// A proxy's name in the DCS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// The one that the configuration gives it.
    Own,
    /// One that it has while its successor bears that name.
    Draining,
}

impl Name {
    /// The key's last part, for a proxy with this id.
    pub(crate) fn of(self, id: &str) -> String {
        match self {
            Name::Own => id.to_owned(),
            Name::Draining => format!("{id}/draining-{}", std::process::id()),
        }
    }
}

/// Which name a proxy is to bear, and which it bears in each store that it is registered in.
#[derive(Debug, Clone)]
pub struct Naming(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    wanted: watch::Sender<Name>,
    /// One of each registration: the name that is known to be written.
    written: Mutex<Vec<watch::Receiver<Option<Name>>>>,
}

/// The side of what writes it.
#[derive(Debug)]
pub struct Registrant {
    /// The name that is to be written.
    pub wanted: watch::Receiver<Name>,
    /// The name that is known to be written.
    pub written: watch::Sender<Option<Name>>,
}

impl Default for Naming {
    fn default() -> Naming {
        let wanted = watch::Sender::new(Name::Own);
        Naming(Arc::new(Shared { wanted, written: Mutex::default() }))
    }
}

impl Naming {
    /// A registration more, which is waited for from now on.
    #[must_use]
    pub fn join(&self) -> Registrant {
        let written = watch::Sender::new(None);
        self.registrations().push(written.subscribe());
        Registrant { wanted: self.0.wanted.subscribe(), written }
    }

    /// Has the proxy bear this name.
    pub(crate) fn want(&self, name: Name) {
        self.0.wanted.send_replace(name);
    }

    /// Completes when the name is written everywhere, with `true`, or when the time is up. A
    /// registration that has ended is not waited for.
    ///
    /// Cancel safety: safe.
    pub async fn until_written(&self, name: Name, limit: Duration) -> bool {
        let registrations = self.registrations().clone();
        let all = async {
            for mut written in registrations {
                // The error is that of an ended registration.
                written.wait_for(|written| *written == Some(name)).await.map(drop).unwrap_or(());
            }
        };
        timeout(limit, all).await.is_ok()
    }

    fn registrations(&self) -> MutexGuard<'_, Vec<watch::Receiver<Option<Name>>>> {
        // Every change is one call, so a panic elsewhere leaves it whole.
        self.0.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn a_name_counts_when_it_is_written_everywhere() {
        let naming = Naming::default();
        assert!(naming.until_written(Name::Own, LONG).await, "nothing is registered");
        let (one, other) = (naming.join(), naming.join());
        naming.want(Name::Draining);
        assert!(one.wanted.has_changed().unwrap());
        one.written.send_replace(Some(Name::Draining));
        assert!(!naming.until_written(Name::Draining, SHORT).await);
        other.written.send_replace(Some(Name::Own));
        assert!(!naming.until_written(Name::Draining, SHORT).await);
        drop(other);
        assert!(naming.until_written(Name::Draining, LONG).await);
    }
}
