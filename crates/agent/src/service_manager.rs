//! What the service manager is told, as a unit of Type=notify has it (systemd's sd_notify). Without
//! one that listens nothing is said.

use sd_notify::NotifyState;

/// The process is at work; PostgreSQL need not be.
pub fn ready() {
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

/// Another process does the service's work from now on. This one may end when it likes, and has
/// nothing more to say.
pub fn handed_over(successor: u32) {
    tell(&[NotifyState::MainPid(successor)]);
}

/// The process is going to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager was not told ($NOTIFY_SOCKET)");
    }
}
