//! The memory of a pooler whose clients are logged in, have asked once, and do nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::backend::Backend;
use super::peers::{self, Peer, Who};
use crate::say;

/// Clients that log in at the same time.
const AT_ONCE: usize = 100;
/// Clients of one source address, which has some 28,000 ports by default.
const CLIENTS_PER_ADDRESS: u32 = 10_000;
/// How long one may take to log in, and to have its answer.
const LOGIN_LIMIT: Duration = Duration::from_secs(30);
/// How long they do nothing before the memory is read.
const SETTLE: Duration = Duration::from_secs(3);
/// The longest message that is waited for.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Protocol 3.0 (PostgreSQL's documentation, "Message Formats", StartupMessage).
const PROTOCOL: u32 = 196_608;

/// What was measured, in MiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Idle {
    pub(super) clients: u32,
    pub(super) pgherd: Memory,
    pub(super) pgbouncer: Memory,
}

/// Of one of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Before the first client, beyond the one that saw it start.
    pub(super) empty_mib: f64,
    /// With all of them.
    pub(super) pss_mib: f64,
}

/// Either pooler, one after the other.
pub(super) async fn measure(
    lab: &Backend,
    pgherd: &Path,
    directory: &Path,
    clients: u32,
) -> anyhow::Result<Idle> {
    let mut found = Vec::new();
    for who in [Who::PgBouncer, Who::Pgherd] {
        let peer = peers::for_idle_clients(lab, pgherd, directory, who).await?;
        let memory = memory(&peer, clients).await.with_context(|| format!("{who:?}"))?;
        let name = who.name();
        say(&format!("{clients} idle clients of {name}: {:.1} MiB", memory.pss_mib));
        found.push(memory);
    }
    let [pgbouncer, pgherd] = found[..] else { bail!("there are two poolers") };
    Ok(Idle { clients, pgherd, pgbouncer })
}

async fn memory(peer: &Peer, clients: u32) -> anyhow::Result<Memory> {
    let empty_mib = peer.pss_mib()?;
    let mut logins = JoinSet::new();
    let mut connected: Vec<TcpStream> = Vec::new();
    for number in 0..clients {
        if logins.len() == AT_ONCE {
            let login = logins.join_next().await.context("there are some")?;
            connected.push(login??);
        }
        let port = peer.port;
        logins.spawn(async move {
            let login = tokio::time::timeout(LOGIN_LIMIT, login(number, port)).await;
            login.with_context(|| format!("client {number} got no answer"))?
        });
    }
    while let Some(login) = logins.join_next().await {
        connected.push(login??);
    }
    ensure!(connected.len() == usize::try_from(clients)?, "clients are missing");
    tokio::time::sleep(SETTLE).await;
    let pss_mib = peer.pss_mib()?;
    for socket in &connected {
        let mut byte = [0; 1];
        let nothing = matches!(socket.try_read(&mut byte), Err(error)
            if error.kind() == std::io::ErrorKind::WouldBlock);
        ensure!(nothing, "a client was closed or told something while it did nothing");
    }
    Ok(Memory { empty_mib, pss_mib })
}

/// Connects from an address of its own range, logs in and asks once.
async fn login(number: u32, port: u16) -> anyhow::Result<TcpStream> {
    let source = u32::from(Ipv4Addr::new(127, 0, 0, 2)) + number / CLIENTS_PER_ADDRESS;
    let socket = TcpSocket::new_v4().context("a socket for a client")?;
    socket.bind(SocketAddr::from((Ipv4Addr::from(source), 0)))?;
    let mut stream = socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    stream.write_all(&startup()).await?;
    until_ready(&mut stream).await?;
    stream.write_all(b"Q\0\0\0\x0dSELECT 1\0").await?;
    until_ready(&mut stream).await?;
    Ok(stream)
}

fn startup() -> Vec<u8> {
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let length = u32::try_from(parameters.len() + 8).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), &PROTOCOL.to_be_bytes(), &parameters[..]].concat()
}

/// Reads until the server waits for a statement.
async fn until_ready(stream: &mut TcpStream) -> anyhow::Result<()> {
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).await.context("the connection was closed")?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let length = usize::try_from(length)?.checked_sub(4).context("a length below 4")?;
        ensure!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes");
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        match head[0] {
            b'Z' => return Ok(()),
            b'E' => bail!("refused: {}", String::from_utf8_lossy(&body).replace('\0', " ")),
            b'R' => ensure!(body == [0; 4], "a password is wanted, where all are trusted"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_packet_has_its_own_length() {
        let packet = startup();
        assert_eq!(packet[..4], u32::try_from(packet.len()).expect("it is short").to_be_bytes());
        assert!(packet.ends_with(b"postgres\0\0"));
    }
}
