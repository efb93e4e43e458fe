//! A small HTTP client for the REST interfaces of other members: one request, one connection, one
//! limit around both. With TLS where the member's address says so.

use std::io;
use std::sync::{Arc, OnceLock};

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tls::{Connector, Stream, TlsError};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use types::RestAddress;

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
    #[error("cannot connect to {address}")]
    Connect {
        /// The other side.
        address: RestAddress,
        /// What came back; of TLS too.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or what came back is not HTTP.
    #[error("no valid answer from {address}")]
    Exchange {
        /// The other side.
        address: RestAddress,
        /// What came back.
        #[source]
        source: hyper::Error,
    },
    /// The answer's body broke off, or is too large.
    #[error("the answer of {address} broke off, or is larger than 4 MiB")]
    Body {
        /// The other side.
        address: RestAddress,
        /// What came back.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing within the limit.
    #[error("{address} did not answer within {} ms", limit.as_millis())]
    Limit {
        /// The other side.
        address: RestAddress,
        /// The limit.
        limit: Duration,
    },
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

/// How the REST interfaces of members are reached. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct RestClient(Arc<Tls>);

#[derive(Debug, Default)]
struct Tls {
    settings: tls::ClientSettings,
    /// Made when the first member needs it: without TLS no file has to be there.
    connector: OnceLock<Connector>,
}

impl RestClient {
    /// One with these settings of TLS.
    #[must_use]
    pub fn new(settings: tls::ClientSettings) -> RestClient {
        RestClient(Arc::new(Tls { settings, connector: OnceLock::new() }))
    }

    /// Reads the files of the settings now, so that what is wrong with them shows.
    ///
    /// # Errors
    /// A file cannot be read, or holds no such thing.
    pub fn prepare(&self) -> Result<(), TlsError> {
        self.connector().map(|_| ())
    }

    fn connector(&self) -> Result<Connector, TlsError> {
        if let Some(connector) = self.0.connector.get() {
            return Ok(connector.clone());
        }
        let made = self.0.settings.connector(None)?;
        Ok(self.0.connector.get_or_init(|| made).clone())
    }

    /// A connection, with TLS if the address has it. The caller bounds the time.
    ///
    /// # Errors
    /// The network's, the handshake's, or what is wrong with a file of the settings.
    pub(crate) async fn open(
        &self,
        address: &RestAddress,
        prepare: impl FnOnce(&TcpStream),
    ) -> io::Result<Stream<TcpStream>> {
        let connector = address.tls.then(|| self.connector()).transpose();
        let connector = connector.map_err(io::Error::other)?;
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        prepare(&stream);
        match connector {
            None => Ok(Stream::Plain(stream)),
            Some(connector) => connector.connect(&address.host, stream).await,
        }
    }

    /// Sends one request and reads the answer's status and body, all within `limit`. `auth` is user
    /// and password; a body is sent as JSON.
    ///
    /// Cancel safety: dropping it closes the connection; the other side may have carried it out.
    ///
    /// # Errors
    /// Whatever keeps the answer away; an answer with an error status is none.
    pub async fn request(
        &self,
        method: &str,
        address: &RestAddress,
        path: &str,
        body: Option<Vec<u8>>,
        auth: Option<(&str, &str)>,
        limit: Duration,
    ) -> Result<(u16, Vec<u8>), ClientError> {
        let answer = self.ask(method, address, path, body, auth, limit).await?;
        Ok((answer.status, answer.body))
    }

    /// As [`RestClient::request`], with the whole answer.
    ///
    /// Cancel safety: as there.
    ///
    /// # Errors
    /// As there.
    pub async fn ask(
        &self,
        method: &str,
        address: &RestAddress,
        path: &str,
        body: Option<Vec<u8>>,
        auth: Option<(&str, &str)>,
        limit: Duration,
    ) -> Result<Answer, ClientError> {
        let request = build(method, address, path, body, auth).map_err(|source| {
            ClientError::Request { method: method.to_owned(), path: path.to_owned(), source }
        })?;
        match tokio::time::timeout(limit, self.exchange(address, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Limit { address: address.clone(), limit }),
        }
    }

    async fn exchange(
        &self,
        address: &RestAddress,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<Answer, ClientError> {
        let address = || address.clone();
        let stream = self.open(&address(), |_| ()).await;
        let stream =
            stream.map_err(|source| ClientError::Connect { address: address(), source })?;
        let broken = |source| ClientError::Exchange { address: address(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // The set ends the connection's task when this function is left or dropped.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status().as_u16();
        let lsn = answer.headers().get("lsn").and_then(|lsn| lsn.to_str().ok()?.parse().ok());
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|source| ClientError::Body { address: address(), source })?;
        Ok(Answer { status, body: body.to_bytes().to_vec(), lsn })
    }
}

/// [`RestClient::request`] to an interface without TLS.
///
/// # Errors
/// As there.
pub async fn request(
    method: &str,
    host: &str,
    port: u16,
    path: &str,
    body: Option<Vec<u8>>,
    auth: Option<(&str, &str)>,
    limit: Duration,
) -> Result<(u16, Vec<u8>), ClientError> {
    let address = RestAddress::plain(host, port);
    RestClient::default().request(method, &address, path, body, auth, limit).await
}

fn build(
    method: &str,
    address: &RestAddress,
    path: &str,
    body: Option<Vec<u8>>,
    auth: Option<(&str, &str)>,
) -> Result<hyper::Request<Full<Bytes>>, hyper::http::Error> {
    let mut request =
        hyper::Request::builder().method(method).uri(path).header(HOST, address.to_string());
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    if let Some((user, password)) = auth {
        let credentials = base64(format!("{user}:{password}").as_bytes());
        request = request.header(AUTHORIZATION, format!("Basic {credentials}"));
    }
    request.body(Full::new(Bytes::from(body.unwrap_or_default())))
}
