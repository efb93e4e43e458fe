//! What the service manager is told, as a unit of Type=notify has it (systemd's sd_notify). Without
//! one that listens nothing is said.

use sd_notify::NotifyState;

/// The agent is at work; PostgreSQL need not be.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] follows.
pub(crate) fn reloading() {
    // The instant is needed for this state to count.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The agent is going to end.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager was not told ($NOTIFY_SOCKET)");
    }
}
