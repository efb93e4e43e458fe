//! A small HTTP client for the members' REST API and etcd's JSON gateway: one request, one
//! connection, one deadline.

use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Sends one request; the status code and the body of the answer. A body is sent as JSON. `auth` is
/// user and password for basic authentication.
///
/// # Errors
/// Nobody listens, the connection broke, the answer is no HTTP or too long, or all of it took
/// longer than `limit`. A status code of 400 and above is an answer, not an error.
pub(crate) async fn request(
    method: &str,
    host: &str,
    port: u16,
    path: &str,
    body: Option<Vec<u8>>,
    auth: Option<(&str, &str)>,
    limit: Duration,
) -> anyhow::Result<(u16, Vec<u8>)> {
    let what = || format!("{method} http://{host}:{port}{path}");
    let mut request = Request::builder().method(method).uri(path).header(HOST, host);
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    if let Some((user, password)) = auth {
        let credentials = base64(format!("{user}:{password}").as_bytes());
        request = request.header(AUTHORIZATION, format!("Basic {credentials}"));
    }
    let request = request
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .with_context(|| format!("{}: not a valid request", what()))?;
    match tokio::time::timeout(limit, exchange(host, port, request)).await {
        Ok(answer) => answer.with_context(what),
        Err(_) => Err(anyhow!("{}: no answer within {limit:?}", what())),
    }
}

async fn exchange(
    host: &str,
    port: u16,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<(u16, Vec<u8>)> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow!("the answer cannot be read: {error}"))?;
        Ok((status, body.to_bytes().to_vec()))
    };
    tokio::pin!(answer);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut answer => answer,
        // The server may close right after its answer, which is then still to be taken.
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.into()),
        },
    }
}

/// Base64 with padding (RFC 4648, 4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |n: usize| u32::from(group.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let index = (bits >> (18 - 6 * n)) & 63;
            let used = n <= group.len();
            text.push(if used { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn base64_is_that_of_the_rfc() {
        let pairs =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (plain, coded) in pairs {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    /// A server that takes one request and gives `answer`; its port, and the request.
    async fn server(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("somebody connects");
            let mut buffer = vec![0; 4096];
            let length = stream.read(&mut buffer).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("it is open");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        (port, task)
    }

    #[tokio::test]
    async fn a_request_carries_body_and_credentials_and_gets_the_answer() {
        let (port, task) = server("HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nsoon").await;
        let body = Some(b"{}".to_vec());
        let answer = request("POST", "127.0.0.1", port, "/x", body, Some(("u", "p")), LIMIT).await;
        assert_eq!(answer.expect("an answer"), (503, b"soon".to_vec()));
        let seen = task.await.expect("no panic");
        assert!(seen.starts_with("POST /x HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("authorization: Basic dTpw\r\n"), "{seen}");
        assert!(seen.ends_with("\r\n\r\n{}"), "{seen}");
    }

    #[tokio::test]
    async fn an_answer_that_ends_with_the_connection_is_whole() {
        let (port, _) = server("HTTP/1.1 200 OK\r\n\r\nall of it").await;
        let answer = request("GET", "127.0.0.1", port, "/", None, None, LIMIT).await;
        assert_eq!(answer.expect("an answer"), (200, b"all of it".to_vec()));
    }

    #[tokio::test]
    async fn silence_is_an_error_that_names_the_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let limit = Duration::from_millis(100);
        let error = request("GET", "127.0.0.1", port, "/quiet", None, None, limit).await;
        let text = format!("{:#}", error.expect_err("nobody answers"));
        assert!(text.contains("/quiet") && text.contains("no answer within 100ms"), "{text}");
    }
}
