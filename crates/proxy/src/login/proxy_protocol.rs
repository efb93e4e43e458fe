//! HAProxy's PROXY protocol, versions 1 and 2 (its `doc/proxy-protocol.txt`): the header with which
//! a connection begins whose client is behind another proxy.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use config::ProxyProtocol;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest header of version 1 with its end of line.
const V1_BYTES_MAX: usize = 107;
/// The longest body of version 2 that is taken: addresses, and what may be said besides.
const V2_BODY_BYTES_MAX: usize = 4 * 1024;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length of the body.
const V2_HEADER_BYTES: usize = 16;
/// How a header of version 1 begins; no other one has 12 bytes in common with version 2.
const V1_BEGINNING: &[u8] = b"PROXY ";

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From this client, which connected to this address.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// Whom it wanted.
        destination: SocketAddr,
    },
    /// From the other proxy itself, such as to see whether we live; or it does not say.
    Unknown,
}

/// Why a connection has no header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The connection broke or closed.
    #[error("the connection ended within the header of the PROXY protocol")]
    Broken(#[source] io::Error),
    /// It did not come in time.
    #[error("no header of the PROXY protocol within {0:?}")]
    Timeout(Duration),
    /// What came is none.
    #[error("no header of the PROXY protocol: {0}; is proxy_protocol.in meant for this port?")]
    Malformed(&'static str),
}

/// Reads the header, and nothing behind it.
///
/// Cancel safety: none, the connection is of no use afterwards.
///
/// # Errors
/// [`HeaderError`]; there is nobody to tell.
pub async fn receive(socket: &mut TcpStream, limit: Duration) -> Result<Origin, HeaderError> {
    timeout(limit, read(socket)).await.unwrap_or(Err(HeaderError::Timeout(limit)))
}

async fn read(socket: &mut TcpStream) -> Result<Origin, HeaderError> {
    let mut bytes = vec![0; SIGNATURE.len()];
    socket.read_exact(&mut bytes).await.map_err(HeaderError::Broken)?;
    if bytes == SIGNATURE {
        bytes.resize(V2_HEADER_BYTES, 0);
        let rest = &mut bytes[SIGNATURE.len()..];
        socket.read_exact(rest).await.map_err(HeaderError::Broken)?;
        let body_bytes = v2_body_bytes(&bytes)?;
        bytes.resize(V2_HEADER_BYTES + body_bytes, 0);
        let body = &mut bytes[V2_HEADER_BYTES..];
        socket.read_exact(body).await.map_err(HeaderError::Broken)?;
        return parse_v2(&bytes);
    }
    if !bytes.starts_with(V1_BEGINNING) {
        return Err(HeaderError::Malformed("it begins as none does"));
    }
    read_line(socket, &mut bytes).await?;
    parse_v1(&bytes)
}

/// Reads up to the end of the line: what is behind it is looked at and left where it is.
async fn read_line(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<(), HeaderError> {
    while bytes.last() != Some(&b'\n') {
        let room = V1_BYTES_MAX - bytes.len();
        if room == 0 {
            return Err(HeaderError::Malformed("its line has no end"));
        }
        let mut seen = [0; V1_BYTES_MAX];
        let count = socket.peek(&mut seen[..room]).await.map_err(HeaderError::Broken)?;
        if count == 0 {
            return Err(HeaderError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let end = seen[..count].iter().position(|byte| *byte == b'\n');
        let taken = &mut seen[..end.map_or(count, |end| end + 1)];
        socket.read_exact(taken).await.map_err(HeaderError::Broken)?;
        bytes.extend_from_slice(taken);
    }
    Ok(())
}

/// The whole line of version 1.
fn parse_v1(line: &[u8]) -> Result<Origin, HeaderError> {
    let malformed = |what| HeaderError::Malformed(what);
    let line = line.strip_suffix(b"\r\n").ok_or(malformed("its line does not end as it should"))?;
    let text = std::str::from_utf8(line).map_err(|_| malformed("it is not text"))?;
    let words: Vec<&str> = text.split(' ').collect();
    let (family, addresses) = match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => return Ok(Origin::Unknown),
        ["PROXY", family @ ("TCP4" | "TCP6"), addresses @ ..] => (*family, addresses),
        _ => return Err(malformed("neither TCP4, TCP6 nor UNKNOWN")),
    };
    let [source, destination, source_port, destination_port] = addresses else {
        return Err(malformed("it needs two addresses and two ports"));
    };
    let address = |text: &str, port: &str| {
        let address: IpAddr =
            text.parse().ok().filter(|a: &IpAddr| a.is_ipv4() == (family == "TCP4"))?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        Some(SocketAddr::new(address, port.parse().ok().filter(|_| digits)?))
    };
    let source = address(source, source_port);
    let destination = address(destination, destination_port);
    match (source, destination) {
        (Some(source), Some(destination)) => Ok(Origin::Proxied { source, destination }),
        _ => Err(malformed("an address or port that is none")),
    }
}

fn v2_body_bytes(header: &[u8]) -> Result<usize, HeaderError> {
    let length = header.get(14..V2_HEADER_BYTES).and_then(|bytes| bytes.first_chunk::<2>());
    let length = length.map(|bytes| usize::from(u16::from_be_bytes(*bytes)));
    length
        .filter(|length| *length <= V2_BODY_BYTES_MAX)
        .ok_or(HeaderError::Malformed("its body is too long"))
}

/// The whole header of version 2. What follows the addresses (TLVs) is passed over.
fn parse_v2(bytes: &[u8]) -> Result<Origin, HeaderError> {
    let malformed = |what| HeaderError::Malformed(what);
    let (header, body) =
        bytes.split_first_chunk::<V2_HEADER_BYTES>().ok_or(malformed("it is too short"))?;
    let (command, family) = (header[12], header[13]);
    let too_short = malformed("its body is too short for its addresses");
    match (command, family) {
        // LOCAL: whatever stands behind it does not count.
        (0x20, _) => Ok(Origin::Unknown),
        // TCP over IPv4.
        (0x21, 0x11) => {
            let (addresses, _) = body.split_first_chunk::<12>().ok_or(too_short)?;
            let address = |at: usize| {
                let ip = [addresses[at], addresses[at + 1], addresses[at + 2], addresses[at + 3]];
                IpAddr::from(Ipv4Addr::from(ip))
            };
            let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
            Ok(Origin::Proxied {
                source: SocketAddr::new(address(0), port(8)),
                destination: SocketAddr::new(address(4), port(10)),
            })
        }
        // TCP over IPv6.
        (0x21, 0x21) => {
            let (addresses, _) = body.split_first_chunk::<36>().ok_or(too_short)?;
            let address = |at: usize| {
                let mut ip = [0; 16];
                ip.copy_from_slice(&addresses[at..at + 16]);
                IpAddr::from(Ipv6Addr::from(ip))
            };
            let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
            Ok(Origin::Proxied {
                source: SocketAddr::new(address(0), port(32)),
                destination: SocketAddr::new(address(16), port(34)),
            })
        }
        // Unspecified, datagrams, unix sockets: connections of the other proxy that we cannot name.
        (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Ok(Origin::Unknown),
        (0x21, _) => Err(malformed("an unknown family of addresses")),
        _ => Err(malformed("an unknown version or command")),
    }
}

/// The header that tells a server where a client comes from. Addresses of two families are told as
/// IPv6 ones.
#[must_use]
pub fn header(version: ProxyProtocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (source_ip, destination_ip) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V6(destination)) => {
            (source.to_ipv6_mapped().into(), destination.into())
        }
        (IpAddr::V6(source), IpAddr::V4(destination)) => {
            (source.into(), destination.to_ipv6_mapped().into())
        }
        same => same,
    };
    let ports = [source.port(), destination.port()];
    match version {
        ProxyProtocol::V1 => {
            let family = if source_ip.is_ipv4() { "TCP4" } else { "TCP6" };
            let [from, to] = ports;
            format!("PROXY {family} {source_ip} {destination_ip} {from} {to}\r\n").into_bytes()
        }
        ProxyProtocol::V2 => {
            let mut bytes = SIGNATURE.to_vec();
            let (family, length) = if source_ip.is_ipv4() { (0x11, 12u16) } else { (0x21, 36) };
            bytes.extend([0x21, family]);
            bytes.extend(length.to_be_bytes());
            for ip in [source_ip, destination_ip] {
                match ip {
                    IpAddr::V4(ip) => bytes.extend(ip.octets()),
                    IpAddr::V6(ip) => bytes.extend(ip.octets()),
                }
            }
            bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What is made of bytes that come in these pieces, and what is left of them.
    async fn received(pieces: &[&[u8]]) -> Result<(Origin, Vec<u8>), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        sender.set_nodelay(true).unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        let send = async {
            for piece in pieces {
                sender.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            sender.shutdown().await.unwrap();
        };
        let limit = Duration::from_secs(10);
        let (origin, ()) = tokio::join!(receive(&mut socket, limit), send);
        let origin = origin.map_err(|error| error.to_string())?;
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        Ok((origin, rest))
    }

    fn proxied(source: &str, destination: &str) -> Origin {
        let address = |text: &str| text.parse().expect("an address");
        Origin::Proxied { source: address(source), destination: address(destination) }
    }

    #[tokio::test]
    async fn headers_are_read_as_they_are_built_and_no_further() {
        for (source, destination) in [
            ("10.0.0.1:40000", "10.0.0.2:5000"),
            ("[fd00::1]:40000", "[fd00::2]:5000"),
            ("[::ffff:10.0.0.1]:1", "[fd00::2]:65535"),
        ] {
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let told = proxied(source, destination);
                let built = header(version, source.parse().unwrap(), destination.parse().unwrap());
                let all = [&built[..], b"\0\0\0\x08rest\n"].concat();
                let expected = Ok((told, b"\0\0\0\x08rest\n".to_vec()));
                assert_eq!(received(&[&all]).await, expected, "{source} {version:?}");
                let bytes: Vec<&[u8]> = all.chunks(1).collect();
                assert_eq!(received(&bytes).await, expected, "byte by byte");
            }
        }
        let mixed = header(
            ProxyProtocol::V1,
            "10.0.0.1:1".parse().unwrap(),
            "[fd00::2]:2".parse().unwrap(),
        );
        assert_eq!(mixed, b"PROXY TCP6 ::ffff:10.0.0.1 fd00::2 1 2\r\n");
    }

    #[tokio::test]
    async fn who_does_not_say_is_unknown() {
        let unknown = Ok((Origin::Unknown, b"x".to_vec()));
        assert_eq!(received(&[b"PROXY UNKNOWN\r\nx"]).await, unknown);
        assert_eq!(received(&[b"PROXY UNKNOWN a b c\r\nx"]).await, unknown);
        let v2 = |rest: &[u8]| [&SIGNATURE[..], rest].concat();
        assert_eq!(received(&[&v2(b"\x20\x00\0\x02abx")]).await, unknown, "LOCAL");
        assert_eq!(received(&[&v2(b"\x21\x31\0\x02abx")]).await, unknown, "a unix socket");
        // What stands behind the addresses is passed over.
        let more = v2(b"\x21\x11\0\x10\x0a\0\0\x01\x0a\0\0\x02\0\x01\0\x02\x04\0\x01\0x");
        let told = proxied("10.0.0.1:1", "10.0.0.2:2");
        assert_eq!(received(&[&more]).await, Ok((told, b"x".to_vec())));
    }

    #[tokio::test]
    async fn what_is_none_is_refused() {
        let v2 = |rest: &[u8]| [&SIGNATURE[..], rest].concat();
        let long = [b"PROXY TCP4 ", &[b'1'; 200][..]].concat();
        for (bytes, says) in [
            (&b"\0\0\0\x08\x04\xd2\x16\x2f1234"[..], "begins as none"),
            (b"PROXY TCP4 10.0.0.1\r\n", "two addresses"),
            (b"PROXY TCP4 fd00::1 fd00::2 1 2\r\n", "is none"),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 +1 2\r\n", "is none"),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 65536\r\n", "is none"),
            (b"PROXY UDP4 10.0.0.1 10.0.0.2 1 2\r\n", "neither"),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\n", "does not end"),
            (&long, "no end"),
            (b"PROXY TCP4 10", "ended within"),
            (&v2(b"\x21\x11\0\x04abcd"), "too short"),
            (&v2(b"\x21\x11\x20\0"), "too long"),
            (&v2(b"\x11\x11\0\0"), "unknown version"),
            (&v2(b"\x21\x44\0\0"), "unknown family"),
            (&v2(b"\x21\x11\0\x0cabcd"), "ended within"),
        ] {
            let error = received(&[bytes]).await.unwrap_err();
            assert!(error.contains(says), "{bytes:?}: {error}");
        }
    }
}
