//! What clients are told that are not served.

use types::Millis;

use super::Router;
use crate::event::{Action, ClientId, Port, Refusal, ServerId, Target};

/// Said where a view that is not current leaves clients waiting.
const STALE: &str = " Nobody tells the proxy of the cluster now, neither the DCS nor a member.";

const CANNOT_CONNECT_NOW: &str = "57P03";
pub(super) const TOO_MANY_CONNECTIONS: &str = "53300";

impl Router {
    pub(super) fn pool_is_full(&self) -> Refusal {
        Refusal {
            sqlstate: TOO_MANY_CONNECTIONS.to_owned(),
            message: "no server connection of the pool became free in time".to_owned(),
            hint: format!(
                "pool_timeout is {}: all of the pool's connections are in use, or the server takes \
                 none; raise pool_size (max_user_connections and max_db_connections hold, too), or \
                 look for long transactions.",
                self.config.pool_timeout
            ),
        }
    }

    pub(super) fn refuse_waiting(
        &mut self,
        client: ClientId,
        refusal: Refusal,
        actions: &mut Vec<Action>,
    ) {
        if self.pools.forget_wish(client) {
            actions.push(Action::Refuse { client, refusal });
        }
    }

    /// A server does not let a pool in.
    pub(super) fn open_refused(
        &mut self,
        now: Millis,
        server: ServerId,
        refusal: &Refusal,
        actions: &mut Vec<Action>,
    ) {
        for client in self.pools.refused(now, server) {
            self.refuse_waiting(client, refusal.clone(), actions);
        }
    }

    pub(super) fn refusal(&self, message: &str) -> Refusal {
        let sqlstate = CANNOT_CONNECT_NOW.to_owned();
        Refusal { sqlstate, message: message.to_owned(), hint: self.hint() }
    }

    fn hint(&self) -> String {
        let waited = self.config.hold_timeout;
        let stale = if self.fresh { "" } else { STALE };
        match &self.primary {
            Err(awaited) => format!("hold_timeout is {waited}: {awaited}.{stale}"),
            Ok(Target { member, host, port, .. }) => format!(
                "hold_timeout is {waited}: the primary {member} at {host}:{port} does not take \
                 connections.{stale}"
            ),
        }
    }
}

pub(super) fn nobody_reached(port: Port) -> &'static str {
    match port {
        Port::ReadWrite => "no primary could be reached in time",
        Port::ReadOnly => "no server for reads could be reached in time",
    }
}
