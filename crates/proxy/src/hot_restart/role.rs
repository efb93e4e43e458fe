//! Which side of a take-over this proxy is on, from its start to its end.

use std::fmt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use tokio::time::timeout;

use super::giving::{Drains, Giving, Tell};
use super::path::{Found, find};
use super::taking::{Released, Taken, Takeover};
use super::{Naming, Stage, TakeoverError, VIEW_LIMIT};
use crate::front::Front;
use crate::listening::{Listeners, Listening};
use crate::{ViewSource, Views};

/// How far it is.
enum Role {
    /// There is no control socket.
    Alone,
    /// Nobody was there before.
    InCharge(UnixListener),
    /// It has the sockets of the one in charge.
    Successor(Takeover),
    /// It has its name, too.
    Named(Released),
}

/// A proxy's part in hot restarts, before it serves.
pub(crate) struct HotRestart {
    role: Role,
    /// A copy of each listening socket.
    sockets: Vec<Listening>,
    naming: Naming,
    tell: Tell,
}

impl fmt::Debug for HotRestart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HotRestart").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

/// The same while it serves.
pub(crate) struct Serving {
    role: Role,
    giving: Giving,
}

impl HotRestart {
    /// Looks who is in charge behind the control socket, and takes what it has.
    ///
    /// # Errors
    /// [`TakeoverError`].
    pub(crate) async fn begin(
        control_socket: Option<&Path>,
    ) -> Result<(HotRestart, Listeners), TakeoverError> {
        let found = match control_socket {
            Some(path) => Some(find(path).await?),
            None => None,
        };
        let (role, inherited) = match found {
            None => (Role::Alone, Vec::new()),
            Some(Found::Nobody(listener)) => (Role::InCharge(listener), Vec::new()),
            Some(Found::Proxy(stream)) => {
                let (takeover, inherited) = Takeover::begin(stream).await?;
                tracing::info!(sockets = inherited.len(), "taking over from the proxy in charge");
                (Role::Successor(takeover), inherited)
            }
        };
        let (sockets, naming, tell) = (Vec::new(), Naming::default(), Box::new(|_| ()));
        Ok((HotRestart { role, sockets, naming, tell }, Listeners::inheriting(inherited)))
    }

    /// All that is listened on is there.
    pub(crate) fn holds(&mut self, sockets: Listeners) {
        self.sockets = sockets.complete();
    }

    pub(crate) fn on_stage(&mut self, tell: Tell) {
        self.tell = tell;
    }

    pub(crate) fn naming(&self) -> Naming {
        self.naming.clone()
    }

    /// Waits a moment for the views, and has the one in charge leave its name.
    ///
    /// # Errors
    /// [`TakeoverError`]; it serves on.
    pub(crate) async fn take_name<V: ViewSource>(
        &mut self,
        views: Views<V>,
    ) -> Result<(), TakeoverError> {
        self.role = match std::mem::replace(&mut self.role, Role::Alone) {
            Role::Successor(takeover) => {
                // Without one clients wait, as they do whenever the DCS is away.
                timeout(VIEW_LIMIT, all_seen(views)).await.unwrap_or_default();
                Role::Named(takeover.ready().await?)
            }
            role @ (Role::Alone | Role::InCharge(_) | Role::Named(_)) => role,
        };
        Ok(())
    }

    /// Goes on for a proxy that is about to serve.
    pub(crate) fn of(self, front: Arc<Front>, drains: Drains) -> Serving {
        if matches!(self.role, Role::Successor(_) | Role::Named(_)) {
            front.cancel_keys.predecessors.are_coming();
        }
        let HotRestart { role, sockets, naming, tell } = self;
        Serving { role, giving: Giving { sockets, front, naming, drains, tell } }
    }
}

impl Serving {
    /// Clients are accepted: takes the place of the one in charge, and answers to a successor from
    /// then on, to the end.
    ///
    /// # Errors
    /// [`TakeoverError`]: somebody else is in charge, and this proxy must end.
    pub(crate) async fn run(self) -> Result<(), TakeoverError> {
        let Serving { role, giving } = self;
        let control = match role {
            Role::Alone => {
                (giving.tell)(Stage::Serving);
                return Ok(());
            }
            Role::InCharge(control) => control,
            Role::Successor(takeover) => take(takeover.ready().await?, &giving.front).await?,
            Role::Named(released) => take(released, &giving.front).await?,
        };
        (giving.tell)(Stage::Serving);
        giving.answer(control).await;
        Ok(())
    }
}

async fn take(released: Released, front: &Front) -> Result<UnixListener, TakeoverError> {
    let Taken { control, predecessors } = released.serving().await?;
    front.cancel_keys.predecessors.are(predecessors);
    Ok(control)
}

async fn all_seen<V: ViewSource>(views: Views<V>) {
    let Views { own, others } = views;
    for mut views in [own].into_iter().chain(others.into_values()) {
        // The error is that of a source that has ended, which shows nothing any more.
        drop(views.wait_for(|view| view.fresh() && view.view().is_some()).await);
    }
}
