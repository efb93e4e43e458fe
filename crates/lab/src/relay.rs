//! A TCP relay on loopback that can be cut: the network between two parts of a cluster, without
//! root.
//!
//! A cut relay is a black hole, not a closed door: connections stay open, new ones are accepted,
//! and nothing gets through. That is what a lost network looks like to a program, and it is harder
//! to notice than a refused connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Connections of one relay at a time; further ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 512;
/// Bytes under way in one direction of one connection.
const BUFFER_BYTES: usize = 64 * 1024;
/// Pause after an accept that failed (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Which way bytes are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connected to the target.
    ClientToServer,
    /// From the target to whoever connected.
    ServerToClient,
    /// Both ways.
    Both,
}

/// Tells from a client's loopback port whether its connection is hit by a cut of sources.
pub type Sources = Arc<dyn Fn(u16) -> bool + Send + Sync>;

#[derive(Clone, Default)]
struct State {
    cut: Option<Direction>,
    /// Connections from these are cut both ways.
    sources: Option<Sources>,
    /// Counts the healings; a connection from before one is stale and gets closed.
    healed: u64,
}

impl State {
    fn loses(&self, way: Direction, client: u16) -> bool {
        let by_direction = match self.cut {
            None => false,
            Some(Direction::Both) => true,
            Some(cut) => cut == way,
        };
        by_direction || self.sources.as_ref().is_some_and(|sources| sources(client))
    }

    fn cuts(&self) -> bool {
        self.cut.is_some() || self.sources.is_some()
    }
}

/// A relay from one loopback port to another. It ends when dropped.
pub struct Relay {
    /// Where it listens.
    pub port: u16,
    /// Where it forwards to.
    pub target: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

/// The relay's port is taken.
#[derive(Debug, thiserror::Error)]
#[error("a relay cannot listen on 127.0.0.1:{port}: {source}")]
pub struct PortTaken {
    /// The port.
    pub port: u16,
    /// What the kernel said.
    source: io::Error,
}

impl Relay {
    /// Listens on loopback port `port` (0: any free one) and forwards to `target`.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(port: u16, target: SocketAddr) -> Result<Relay, PortTaken> {
        let taken = |source| PortTaken { port, source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(taken)?;
        let port = listener.local_addr().map_err(taken)?.port();
        let (state, watching) = watch::channel(State::default());
        let task = tokio::spawn(accept(listener, target, watching));
        Ok(Relay { port, target, state, task })
    }

    /// From now on nothing gets through in this direction, on old and new connections.
    pub fn cut(&self, direction: Direction) {
        self.state.send_modify(|state| state.cut = Some(direction));
    }

    /// From now on nothing gets through, either way, on connections whose client port `sources`
    /// says yes to. It is asked again for every piece of data, so it has to be quick.
    pub fn cut_sources(&self, sources: Sources) {
        self.state.send_modify(|state| state.sources = Some(sources));
    }

    /// Lets new connections through again. Those of the time of the cut are closed: their ends have
    /// long given them up, or should.
    pub fn heal(&self) {
        self.state.send_if_modified(|state| {
            let cut = state.cuts();
            if cut {
                *state = State { healed: state.healed + 1, ..State::default() };
            }
            cut
        });
    }

    /// Whether anything is cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.state.borrow().cuts()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // A JoinSet, so that the connections end with the relay.
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, address)) => {
                let watching = state.clone();
                connections.spawn(async move {
                    relay(client, address.port(), target, watching).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// One connection, until an end closes it, it breaks, or it is stale.
async fn relay(
    client: TcpStream,
    client_port: u16,
    target: SocketAddr,
    mut state: watch::Receiver<State>,
) {
    let born = state.borrow_and_update().healed;
    let stale = healed_since(state.clone(), born);
    let work = async {
        open(&mut state, Direction::ClientToServer, client_port).await;
        // Delay matters more than packets: what a PostgreSQL client sees is measured here.
        let Ok(server) = TcpStream::connect(target).await else { return };
        if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
            return;
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let there = Pump { way: Direction::ClientToServer, client_port, state: state.clone() };
        let back = Pump { way: Direction::ServerToClient, client_port, state: state.clone() };
        // One broken way ends both; a clean end of file of one leaves the other going.
        let ended =
            tokio::try_join!(there.run(from_client, to_server), back.run(from_server, to_client));
        drop(ended);
    };
    tokio::select! {
        // First, so that a healing closes a connection before it lets anything old through.
        biased;
        () = stale => {}
        () = work => {}
    }
}

/// Ready when the relay was healed after `born`.
async fn healed_since(mut state: watch::Receiver<State>, born: u64) {
    // An error means that the relay itself is gone, and this connection with it.
    drop(state.wait_for(|state| state.healed != born).await);
}

/// Waits until this way is open. Cancel safety: yes.
async fn open(state: &mut watch::Receiver<State>, way: Direction, client_port: u16) {
    // An error means that the relay itself is gone, and this connection with it.
    drop(state.wait_for(|state| !state.loses(way, client_port)).await);
}

/// One way of one connection.
struct Pump {
    way: Direction,
    client_port: u16,
    state: watch::Receiver<State>,
}

impl Pump {
    async fn run(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let mut buffer = vec![0_u8; BUFFER_BYTES];
        loop {
            open(&mut self.state, self.way, self.client_port).await;
            let length = from.read(&mut buffer).await?;
            // The cut may have come while we waited for these bytes: they are lost on the way,
            // and so is the news that the other end has closed.
            open(&mut self.state, self.way, self.client_port).await;
            if length == 0 {
                return to.shutdown().await;
            }
            to.write_all(&buffer[..length]).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    /// An echo server; its port.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.ok()
                });
            }
        });
        address
    }

    async fn connect(relay: &Relay) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port)).await.expect("the relay listens")
    }

    async fn ask(stream: &mut TcpStream, text: &[u8]) -> Option<Vec<u8>> {
        stream.write_all(text).await.ok()?;
        let mut answer = vec![0; text.len()];
        let read = timeout(Duration::from_millis(300), stream.read_exact(&mut answer));
        read.await.ok()?.ok()?;
        Some(answer)
    }

    async fn is_closed(stream: &mut TcpStream) -> bool {
        let mut byte = [0];
        let read = timeout(Duration::from_secs(5), stream.read(&mut byte)).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    #[tokio::test]
    async fn bytes_and_the_end_of_file_get_through() {
        let relay = Relay::start(0, echo().await).await.expect("a free port");
        let mut stream = connect(&relay).await;
        assert_eq!(ask(&mut stream, b"hello").await.as_deref(), Some(&b"hello"[..]));
        stream.shutdown().await.expect("it is open");
        assert!(is_closed(&mut stream).await);
    }

    #[tokio::test]
    async fn a_cut_relay_is_silent_and_a_healed_one_drops_the_stale_connections() {
        for direction in [Direction::ClientToServer, Direction::ServerToClient, Direction::Both] {
            let relay = Relay::start(0, echo().await).await.expect("a free port");
            let mut old = connect(&relay).await;
            assert!(ask(&mut old, b"before").await.is_some());
            relay.cut(direction);
            assert!(relay.is_cut());
            let mut new = connect(&relay).await;
            assert_eq!(ask(&mut old, b"during").await, None, "{direction:?}");
            assert_eq!(ask(&mut new, b"during").await, None, "{direction:?}");
            relay.heal();
            assert!(is_closed(&mut old).await && is_closed(&mut new).await);
            let mut after = connect(&relay).await;
            assert!(ask(&mut after, b"after").await.is_some());
        }
    }

    #[tokio::test]
    async fn sources_can_be_cut_alone() {
        let relay = Relay::start(0, echo().await).await.expect("a free port");
        let (mut lost, mut kept) = (connect(&relay).await, connect(&relay).await);
        let port = lost.local_addr().expect("it is connected").port();
        relay.cut_sources(Arc::new(move |client| client == port));
        assert_eq!(ask(&mut lost, b"x").await, None);
        assert!(ask(&mut kept, b"x").await.is_some());
    }

    #[tokio::test]
    async fn healing_what_is_whole_closes_nothing() {
        let relay = Relay::start(0, echo().await).await.expect("a free port");
        let mut stream = connect(&relay).await;
        assert!(ask(&mut stream, b"x").await.is_some());
        relay.heal();
        assert!(ask(&mut stream, b"y").await.is_some());
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let relay = Relay::start(0, echo().await).await.expect("a free port");
        let again = Relay::start(relay.port, relay.target).await.err().expect("it is taken");
        assert!(again.to_string().contains(&relay.port.to_string()));
    }
}
