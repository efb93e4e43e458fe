//! The sockets that the proxy listens on: taken over from the proxy before it, or new.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

/// A listening socket, with what is served there.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) name: String,
    pub(crate) socket: TcpListener,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    /// Those of the proxy before that nobody has asked for yet.
    inherited: Vec<Listening>,
    /// A copy of each that is listened on, for a successor.
    held: Vec<Listening>,
}

impl Listeners {
    /// With the sockets of the proxy before.
    pub(crate) fn inheriting(inherited: Vec<Listening>) -> Listeners {
        Listeners { inherited, held: Vec::new() }
    }

    /// The socket of this address: the one that is there, or a new one. What it is called may have
    /// changed.
    pub(crate) async fn listen(
        &mut self,
        name: &str,
        address: SocketAddr,
    ) -> io::Result<TcpListener> {
        let socket = match self.inherited(&[address]) {
            Some(socket) => socket,
            None => tokio::net::TcpListener::bind(address).await?.into_std()?,
        };
        self.hold(name, &socket)?;
        Ok(socket)
    }

    /// The socket that is there at one of these addresses.
    pub(crate) fn inherited(&mut self, addresses: &[SocketAddr]) -> Option<TcpListener> {
        let is_there = |known: &Listening| {
            known.socket.local_addr().is_ok_and(|address| addresses.contains(&address))
        };
        let found = self.inherited.iter().position(is_there)?;
        Some(self.inherited.swap_remove(found).socket)
    }

    /// Keeps a copy for a successor.
    pub(crate) fn hold(&mut self, name: &str, socket: &impl AsFd) -> io::Result<()> {
        let copy = TcpListener::from(socket.as_fd().try_clone_to_owned()?);
        self.held.push(Listening { name: name.to_owned(), socket: copy });
        Ok(())
    }

    /// Closes what the configuration does not name any more; the copies, for a successor.
    pub(crate) fn complete(self) -> Vec<Listening> {
        for Listening { name, socket } in self.inherited {
            let address = socket.local_addr().ok();
            tracing::info!(name, ?address, "nobody listens here any more");
        }
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_inherited_by_its_address_or_closed() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut before = Listeners::default();
        let kept = before.listen("read_write", any).await.unwrap().local_addr().unwrap();
        let closed = before.listen("read_only", any).await.unwrap().local_addr().unwrap();
        assert_ne!(kept, closed);
        let mut after = Listeners::inheriting(before.complete());
        let socket = after.listen("read_only", kept).await.unwrap();
        assert_eq!(socket.local_addr().unwrap(), kept);
        let held = after.complete();
        let named = held.iter().map(|one| (one.name.as_str(), one.socket.local_addr().unwrap()));
        assert_eq!(named.collect::<Vec<_>>(), [("read_only", kept)]);
        assert!(TcpListener::bind(closed).is_ok());
    }
}
