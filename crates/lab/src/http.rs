//! One GET over HTTP/1.0, which is all that the laboratory asks of agents and etcd.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The largest answer that is read, in bytes.
const ANSWER_MAX: u64 = 1 << 20;

/// Asks for `path`: the status and the body, within `limit`. The server closes after its answer, as
/// this version of HTTP has it.
///
/// # Errors
/// Nobody answers there in time, or not in HTTP.
pub async fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<(u16, Vec<u8>)> {
    let all = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
        parse(&answer).ok_or_else(|| io::Error::other("the answer is no HTTP"))
    };
    match timeout(limit, all).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
    }
}

/// The status and the body of an answer.
fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    const END: &[u8] = b"\r\n\r\n";
    let end = answer.windows(END.len()).position(|window| window == END)?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut words = head.lines().next()?.split(' ');
    let version = words.next()?;
    let status = words.next()?.parse().ok()?;
    version.starts_with("HTTP/1.").then(|| (status, answer[end + END.len()..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_told_apart() {
        let answer = b"HTTP/1.0 503 Service Unavailable\r\na: b\r\n\r\n{}\r\n\r\n";
        assert_eq!(parse(answer), Some((503, b"{}\r\n\r\n".to_vec())));
        for wrong in [&b""[..], b"HTTP/1.0 200 OK\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.0 x\r\n\r\n"] {
            assert_eq!(parse(wrong), None);
        }
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let error = get(address, "/", Duration::from_millis(100)).await.expect_err("no answer");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
