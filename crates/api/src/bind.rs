//! Opening the REST interface's port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket};

use crate::door::Place;

/// Connections that wait to be taken in, where the file does not say how many.
const BACKLOG_DEFAULT: u32 = 1024;

/// A host that has not been looked up by then cannot be listened on.
const LOOKUP_MAX: Duration = Duration::from_secs(5);

/// Listens at the place; `*` is every address, of IPv4 and IPv6 where the system has both.
///
/// # Errors
/// The host is unknown, or none of its addresses can be listened on.
pub async fn bind(place: &Place) -> io::Result<TcpListener> {
    let backlog = place.backlog.unwrap_or(BACKLOG_DEFAULT);
    let (host, port) = (place.listen.host.as_str(), place.listen.port);
    if host == "*" {
        let every = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        return match open(every, backlog, true) {
            // A taken port is taken for IPv4, too.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                open((Ipv4Addr::UNSPECIFIED, port).into(), backlog, false)
            }
            opened => opened,
        };
    }
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses(place).await? {
        match open(address, backlog, false) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The addresses that [`bind`] would take one of.
///
/// # Errors
/// The host is unknown.
pub async fn addresses(place: &Place) -> io::Result<Vec<SocketAddr>> {
    let (host, port) = (place.listen.host.as_str(), place.listen.port);
    if host == "*" {
        return Ok(vec![
            (Ipv6Addr::UNSPECIFIED, port).into(),
            (Ipv4Addr::UNSPECIFIED, port).into(),
        ]);
    }
    let found = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host((host, port)));
    Ok(found.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??.collect())
}

/// `both`: an address of IPv6 that takes clients of IPv4, too, whatever the system's default is.
fn open(address: SocketAddr, backlog: u32, both: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if both {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::HostPort;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn every_address_is_every_address() {
        let port = lab::ports::reserve().expect("a free port");
        let holder = TcpListener::bind(("127.0.0.1", port)).await.expect("our own");
        let place = |host: &str| Place {
            listen: HostPort { host: host.to_owned(), port },
            backlog: Some(5),
        };
        for host in ["*", "127.0.0.1"] {
            let taken = bind(&place(host)).await.expect_err("the port is taken");
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse, "{host}");
        }
        drop(holder);
        let listener = bind(&place("*")).await.expect("free now");
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_ok());
        if listener.local_addr().expect("bound").is_ipv6() {
            assert!(TcpStream::connect(("::1", port)).await.is_ok());
        }
        let nowhere = bind(&place("192.0.2.1")).await.expect_err("not ours");
        assert_eq!(nowhere.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
