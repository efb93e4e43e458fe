//! Opening a connection for a pool.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use route::link::{Reported, ServerSide};
use route::{Event, Refusal, ServerId, Target};
use tokio::time::{Instant, timeout};

use crate::hub::{Hub, Pool};
use crate::login::{SignInError, SignedIn, Verdict, auth_query, sign_in};
use crate::question;
use crate::secure::{DialError, DialLimits, Stream};
use crate::server::ServerConnection;
use crate::words;

/// A server lets the proxy in within this time.
const SIGN_IN_LIMIT: Duration = Duration::from_secs(10);
/// Whoever cancels waits so long for what a server says of the session.
const ASK_LIMIT: Duration = Duration::from_secs(2);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot reach the server")]
    Dial(#[from] DialError),
    #[error("cannot sign in")]
    SignIn(#[from] SignInError),
    #[error("synchronous_commit is below on for this role or database")]
    Lowered,
    #[error("the server names no cancel key, or says what nobody asked")]
    Odd,
}

/// The limits of a connection to a server.
pub(crate) fn limits(hub: &Hub) -> DialLimits {
    DialLimits {
        connect: hub.config.connect_timeout,
        handshake: HANDSHAKE_LIMIT,
        user_timeout: hub.config.tcp_user_timeout,
    }
}

/// Opens the connection and tells the hub how that ended.
pub(crate) async fn run(hub: Arc<Hub>, server: ServerId, pool: Arc<Pool>, target: Target) {
    let begun = Instant::now();
    match open(&hub, server, &pool, &target).await {
        Ok(connection) => {
            hub.tally.opened.observe(begun.elapsed());
            hub.opened(connection);
        }
        Err(error) => {
            hub.tally.not_opened.fetch_add(1, Ordering::Relaxed);
            let member = &target.member;
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::debug!(%server, %member, %error, cause, "cannot open a connection of a pool");
            let event = match refusal(&hub, &pool, &error) {
                Some(refusal) => Event::OpenRefused { server, refusal },
                None => Event::OpenFailed { server },
            };
            hub.not_opened(server, event);
        }
    }
}

async fn open(
    hub: &Hub,
    server: ServerId,
    pool: &Arc<Pool>,
    target: &Target,
) -> Result<Box<ServerConnection>, OpenError> {
    let (mut stream, signed_in) = signed_in(hub, pool, target).await?;
    if hub.lowering.refuses() {
        let value = question::synchronous_commit(&mut stream).await.map_err(|_| OpenError::Odd)?;
        if hub.lowering.refuses_pool(&pool.key, &value) {
            return Err(OpenError::Lowered);
        }
    }
    let address = stream.socket().peer_addr().map_err(|_| OpenError::Odd)?;
    let reported = pool.share_reported(Arc::new(Reported(signed_in.parameters)));
    pool.welcomed(&reported, target.term.is_some());
    let mut side = ServerSide::new(reported, hub.config.prepared_statements_max);
    let key = signed_in.key.filter(|_| side.said_unasked(&signed_in.unread));
    let key = key.ok_or(OpenError::Odd)?;
    let place = (address, target.clone());
    Ok(Box::new(ServerConnection::new((server, pool.clone()), stream, side, key, place)))
}

/// A session of the pool's user.
pub(crate) async fn signed_in(
    hub: &Hub,
    pool: &Pool,
    target: &Target,
) -> Result<(Stream, SignedIn), OpenError> {
    let dialled = hub.door.servers.dial(&target.host, target.port, &[], limits(hub));
    let (mut stream, channel) = dialled.await?;
    let credentials = hub.known.credentials(&pool.key.user);
    let parameters = [("database", pool.dbname.as_str())];
    let signed_in =
        sign_in(&mut stream, &parameters, &credentials, &channel, SIGN_IN_LIMIT).await?;
    Ok((stream, signed_in))
}

/// Whether the session with this process number, of the pool's user, waits for a synchronous
/// standby. What cannot be learnt counts as no: the server's warning of a cancelled wait is not
/// passed over in any case.
pub(crate) async fn waits_for_standby(
    hub: &Hub,
    pool: &Pool,
    target: &Target,
    process: u32,
) -> bool {
    let asked = async {
        let (mut stream, SignedIn { mut unread, .. }) = signed_in(hub, pool, target).await.ok()?;
        let asked = auth_query::waits_for_standby(&mut stream, &mut unread, process, ASK_LIMIT);
        asked.await.ok()
    };
    timeout(ASK_LIMIT, asked).await.ok().flatten().unwrap_or(false)
}

/// What the pool's clients are told, if another attempt is of no use to them.
fn refusal(hub: &Hub, pool: &Pool, error: &OpenError) -> Option<Refusal> {
    let error = match error {
        OpenError::SignIn(error) => error,
        OpenError::Lowered => return Some(words::lowered_pool()),
        OpenError::Dial(_) | OpenError::Odd => return None,
    };
    match error.verdict() {
        Verdict::TryAgain => return None,
        Verdict::Credentials => hub.known.forget(&pool.key.user),
        Verdict::Final => {}
    }
    let said = match error {
        SignInError::Refused { refusal, .. } => Some(refusal),
        _ => None,
    };
    Some(Refusal {
        sqlstate: said.map_or("08004", |said| said.sqlstate.as_str()).to_owned(),
        message: said.map_or_else(|| error.to_string(), |said| said.message.clone()),
        hint: "The server said so to the proxy, which signed in for this user.".to_owned(),
    })
}
