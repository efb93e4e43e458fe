//! A small HTTP client for the REST interfaces of other members: one request, one connection, one
//! limit around both.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::access::base64;

/// The largest answer that is read, in bytes.
const ANSWER_MAX: usize = 4 << 20;

/// Why there is no answer. Whether the request was carried out is unknown unless it is `Connect` or
/// `Request`.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The request cannot be written in HTTP.
    #[error("{method} {path} is no valid request")]
    Request {
        /// The method.
        method: String,
        /// The path.
        path: String,
        /// What is wrong.
        #[source]
        source: hyper::http::Error,
    },
    /// No connection.
    #[error("cannot connect to {host}:{port}")]
    Connect {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What came back.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke, or what came back is not HTTP.
    #[error("no valid answer from {host}:{port}")]
    Exchange {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What came back.
        #[source]
        source: hyper::Error,
    },
    /// The answer's body broke off, or is too large.
    #[error("the answer of {host}:{port} broke off, or is larger than 4 MiB")]
    Body {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// What came back.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing within the limit.
    #[error("{host}:{port} did not answer within {} ms", limit.as_millis())]
    Limit {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// The limit.
        limit: Duration,
    },
}

/// Sends one request and reads the answer's status and body, all within `limit`. `auth` is user and
/// password; a body is sent as JSON.
///
/// Cancel safety: dropping it closes the connection; the other side may have carried it out.
///
/// # Errors
/// Whatever keeps the answer away; an answer with an error status is none.
pub async fn request(
    method: &str,
    host: &str,
    port: u16,
    path: &str,
    body: Option<Vec<u8>>,
    auth: Option<(&str, &str)>,
    limit: Duration,
) -> Result<(u16, Vec<u8>), ClientError> {
    let answer = ask(method, host, port, path, body, auth, limit).await?;
    Ok((answer.status, answer.body))
}

/// An answer with what some answers carry besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// The header `lsn`: what a standby holds.
    pub lsn: Option<u64>,
}

/// As [`request`], with the whole answer.
///
/// Cancel safety: as there.
///
/// # Errors
/// As there.
pub async fn ask(
    method: &str,
    host: &str,
    port: u16,
    path: &str,
    body: Option<Vec<u8>>,
    auth: Option<(&str, &str)>,
    limit: Duration,
) -> Result<Answer, ClientError> {
    let request = build(method, host, port, path, body, auth).map_err(|source| {
        ClientError::Request { method: method.to_owned(), path: path.to_owned(), source }
    })?;
    match tokio::time::timeout(limit, exchange(host, port, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(ClientError::Limit { host: host.to_owned(), port, limit }),
    }
}

fn build(
    method: &str,
    host: &str,
    port: u16,
    path: &str,
    body: Option<Vec<u8>>,
    auth: Option<(&str, &str)>,
) -> Result<hyper::Request<Full<Bytes>>, hyper::http::Error> {
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, format!("{bracketed}:{port}"));
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    if let Some((user, password)) = auth {
        let credentials = base64(format!("{user}:{password}").as_bytes());
        request = request.header(AUTHORIZATION, format!("Basic {credentials}"));
    }
    request.body(Full::new(Bytes::from(body.unwrap_or_default())))
}

async fn exchange(
    host: &str,
    port: u16,
    request: hyper::Request<Full<Bytes>>,
) -> Result<Answer, ClientError> {
    let host = || host.to_owned();
    let stream = TcpStream::connect((host(), port))
        .await
        .map_err(|source| ClientError::Connect { host: host(), port, source })?;
    let broken = |source| ClientError::Exchange { host: host(), port, source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The set ends the connection's task when this function is left or dropped.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status().as_u16();
    let lsn = answer.headers().get("lsn").and_then(|lsn| lsn.to_str().ok()?.parse().ok());
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|source| ClientError::Body { host: host(), port, source })?;
    Ok(Answer { status, body: body.to_bytes().to_vec(), lsn })
}
