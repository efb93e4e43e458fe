//! Opening a connection for a pool.

use std::sync::Arc;

use route::link::ServerSide;
use route::{Event, Refusal, ServerId, Target};

use crate::dial;
use crate::hub::{Hub, Pool};
use crate::server::ServerConnection;
use crate::sign_in::{self, SignInError};

/// Opens the connection and tells the hub how that ended.
pub(crate) async fn run(hub: Arc<Hub>, server: ServerId, pool: Arc<Pool>, target: Target) {
    let config = &hub.config;
    let opened = async {
        let mut stream =
            dial::connect(&target, config.connect_timeout, config.tcp_user_timeout).await?;
        let address = stream.peer_addr().map_err(dial::OpenError::Closed)?;
        let signed = sign_in::run(&mut stream, &pool.key).await?;
        Ok::<_, SignInError>((stream, address, signed))
    };
    match opened.await {
        Ok((stream, address, signed)) => {
            let reported = pool.share_reported(Arc::new(signed.reported));
            pool.welcomed(&reported);
            let side = ServerSide::new(reported, hub.config.prepared_statements_max);
            let connection = ServerConnection::new(server, stream, side, signed.key, address);
            hub.opened(Box::new(connection));
        }
        Err(error) => {
            let member = &target.member;
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::debug!(%server, %member, %error, cause, "cannot open a connection of a pool");
            let event = match error.refusal() {
                Some((sqlstate, message)) => Event::OpenRefused {
                    server,
                    refusal: Refusal {
                        sqlstate,
                        message,
                        hint: format!("The server {member} said so to the proxy."),
                    },
                },
                None => Event::OpenFailed { server },
            };
            hub.not_opened(server, event);
        }
    }
}
