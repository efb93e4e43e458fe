//! The end of a proxy whose sockets a successor has: what [`route::Drain`] says is done here.

use std::sync::Arc;

use route::{Drain, DrainStep};
use tokio::time::Instant;
use types::Millis;

use crate::front::Front;

/// A drain that goes on.
pub(crate) struct Draining {
    front: Arc<Front>,
    begun: Instant,
    drain: Drain,
}

impl Draining {
    /// Clients that are here may stay for a while; no others come.
    pub(crate) fn begin(front: Arc<Front>) -> Draining {
        let timeout = front.config.drain_timeout;
        let (clients, seconds) = (front.count(), timeout.as_secs_f64());
        tracing::info!(clients, seconds, "a successor serves; clients that are here may stay");
        front.drain();
        let timeout = Millis(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        Draining { front, begun: Instant::now(), drain: Drain::new(Millis::ZERO, timeout) }
    }

    /// Does what is due; `true` if nobody is left, or waited for.
    pub(crate) fn is_over(&mut self) -> bool {
        let clients = self.front.count();
        let since = self.begun.elapsed().as_millis();
        let now = Millis(u64::try_from(since).unwrap_or(u64::MAX));
        match self.drain.step(now, clients) {
            DrainStep::GoOn => false,
            DrainStep::Tell => {
                tracing::info!(clients, "clients are left");
                false
            }
            DrainStep::EndResting => {
                tracing::info!(clients, "drain_timeout is over: sessions end between transactions");
                self.front.close();
                false
            }
            DrainStep::Over => {
                tracing::info!(clients, "the drain is over");
                true
            }
        }
    }
}
