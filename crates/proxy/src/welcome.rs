//! Signing a client of a pool in.

use std::sync::Arc;

use pgproto::wire::Startup;
use route::Port;
use route::link::{ClientSide, PoolMode, Reported, Settings, parameter_status, ready_for_query};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::client::Command;
use crate::hub::{Entered, Pool, PoolKey};
use crate::lowering::Judge;
use crate::pooled::Pooled;
use crate::sockets;
use crate::words;

/// AuthenticationOk.
const AUTHENTICATED: &[u8] = b"R\0\0\0\x08\0\0\0\0";

/// Signs the client in and serves it to its end.
pub(crate) async fn run(
    place: &Entered,
    port: Port,
    mut socket: TcpStream,
    startup: &Startup,
    judge: Judge,
    mode: PoolMode,
) {
    let pool = place.hub.pool(PoolKey::clone(judge.who()));
    let settings = pool.share_settings(Arc::new(Settings::of_startup(&startup.parameters)));
    let welcomed = Box::pin(welcome(place, port, &pool, &mut socket, &settings)).await;
    let told = match welcomed {
        Ok(told) => told,
        Err(None) => return,
        Err(Some(word)) => return Box::pin(sockets::say_goodbye(socket, &word)).await,
    };
    let mut random = [0; 8];
    if let Err(error) = getrandom::fill(&mut random) {
        tracing::error!(%error, "no random bytes for a cancel key");
        return;
    }
    let key = place.hub.cancel_keys.create(place.id, random);
    let mut hello = AUTHENTICATED.to_vec();
    for (name, value) in &told.0 {
        parameter_status(&mut hello, name, value);
    }
    hello.extend(key.key().to_message());
    ready_for_query(&mut hello, b'I');
    if socket.write_all(&hello).await.is_err() {
        return;
    }
    drop(hello);
    let side = ClientSide::new(mode, place.hub.config.session_state, settings, told);
    Pooled::new(place, (pool, port), judge, socket, side).serve().await;
}

/// What the client is told of its server's parameters: what a server of its pool reported last; if
/// there was none yet, one is asked for.
async fn welcome(
    place: &Entered,
    port: Port,
    pool: &Arc<Pool>,
    socket: &mut TcpStream,
    settings: &Settings,
) -> Result<Arc<Reported>, Option<Vec<u8>>> {
    let reported = match pool.welcome() {
        Some(reported) => reported,
        None => first(place, port, pool, socket).await?,
    };
    Ok(pool.share_reported(reported.with(settings)))
}

/// Waits for a server of the pool and gives it back.
async fn first(
    place: &Entered,
    port: Port,
    pool: &Arc<Pool>,
    socket: &mut TcpStream,
) -> Result<Arc<Reported>, Option<Vec<u8>>> {
    let hub = &place.hub;
    let mut lent = hub.want(place.id, port, pool.id);
    loop {
        if let Some(connection) = lent.take() {
            let reported = connection.side.reported().clone();
            hub.give_back(connection);
            return Ok(reported);
        }
        let command = tokio::select! {
            command = place.mailbox.next() => command,
            () = sockets::closed_by_peer(socket) => return Err(None),
        };
        match command {
            Command::Have(connection) => lent = Some(connection),
            Command::Again => lent = hub.want(place.id, port, pool.id),
            Command::Refuse(refusal) => return Err(Some(words::refusal(&refusal))),
            Command::End(ending) => return Err(Some(words::ending(ending, false))),
            Command::Lose { .. } | Command::Wait | Command::Connect { .. } => {}
        }
    }
}
