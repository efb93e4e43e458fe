//! The dialing side of a connection between members.

use std::io;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderMap, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tls::Stream;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use types::RestAddress;

use super::accept::{FROM, NONCE, PROOF, SCOPE};
use super::frame::{Opener, Sealer};
use super::link::Link;
use super::proof::{FrameKeys, Nonce, Nonces, Parties, PeerKey, answer_proof, request_proof};
use super::{PROTOCOL, hasten};
use crate::access::equal_in_constant_time;
use crate::client::RestClient;

/// A connection that we dialled.
pub type Dialled = Link<Stream<TcpStream>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The kernel gives no random bytes.
    #[error("no random bytes from the kernel: {detail}")]
    Random {
        /// What came back.
        detail: String,
    },
    /// Scope, name or host cannot stand in an HTTP request.
    #[error("scope, name or host cannot stand in an HTTP request")]
    Request {
        /// What is wrong.
        #[source]
        source: hyper::http::Error,
    },
    /// No connection.
    #[error("cannot connect")]
    Connect {
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or what came back is not HTTP.
    #[error("no valid answer")]
    Exchange {
        /// What came back.
        #[source]
        source: hyper::Error,
    },
    /// It does not speak with us.
    #[error(
        "refused with status {status}: it has another secret or name, belongs to another cluster, \
         or knows no heartbeats"
    )]
    Refused {
        /// The status of its answer.
        status: u16,
    },
    /// It speaks with us, and does not prove who it is.
    #[error("the answer does not prove that it has the members' secret")]
    Unproven,
    /// Nothing within the limit.
    #[error("no answer within {} ms", limit.as_millis())]
    Limit {
        /// The limit.
        limit: Duration,
    },
}

/// Dials the member `parties.to`, which listens at `address`, and proves both to each other, all
/// within `limit`. Over TLS the proofs are the same: they, and no certificate, say who it is.
///
/// Cancel safety: dropping it closes the connection.
///
/// # Errors
/// Whatever keeps the connection from being one.
pub async fn dial(
    client: &RestClient,
    address: &RestAddress,
    parties: &Parties,
    key: &PeerKey,
    limit: Duration,
) -> Result<Dialled, DialError> {
    let nonce = Nonce::draw().map_err(|error| DialError::Random { detail: error.to_string() })?;
    let request = request(address, parties, key, &nonce)?;
    let exchange = async {
        let stream = client.open(address, hasten).await;
        let stream = stream.map_err(|source| DialError::Connect { source })?;
        ask(stream, request, |answer| believe(answer, parties, key, nonce)).await
    };
    tokio::time::timeout(limit, exchange).await.unwrap_or(Err(DialError::Limit { limit }))
}

fn request(
    address: &RestAddress,
    parties: &Parties,
    key: &PeerKey,
    nonce: &Nonce,
) -> Result<Request<Empty<Bytes>>, DialError> {
    let Parties { scope, from, .. } = parties;
    Request::get("/peers")
        .header(HOST, address.to_string())
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, PROTOCOL)
        // As bytes: names need not be ASCII.
        .header(SCOPE, scope.as_bytes())
        .header(FROM, from.as_str().as_bytes())
        .header(NONCE, nonce.as_str())
        .header(PROOF, request_proof(key, parties, nonce))
        .body(Empty::new())
        .map_err(|source| DialError::Request { source })
}

/// Sends the request, lets `believe` make the frames' keys of the answer, and takes the connection
/// over from HTTP.
async fn ask(
    stream: Stream<TcpStream>,
    request: Request<Empty<Bytes>>,
    believe: impl FnOnce(&HeaderMap) -> Option<FrameKeys>,
) -> Result<Dialled, DialError> {
    let broken = |source| DialError::Exchange { source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The set ends the connection's task when this function is left or dropped.
    let mut driver = JoinSet::new();
    driver.spawn(connection.with_upgrades());
    let answer: Response<Incoming> = sender.send_request(request).await.map_err(broken)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(DialError::Refused { status: answer.status().as_u16() });
    }
    let keys = believe(answer.headers()).ok_or(DialError::Unproven)?;
    let upgraded = hyper::upgrade::on(answer).await.map_err(broken)?;
    let parts = upgraded.downcast::<TokioIo<Stream<TcpStream>>>();
    let parts = parts.expect("it was made of this stream above");
    let (sealer, opener) = (Sealer::new(keys.from_dialer), Opener::new(keys.from_acceptor));
    Ok(Link::new(parts.io.into_inner(), parts.read_buf.to_vec(), sealer, opener))
}

/// The frames' keys, if the answer proves that the other side has the key too.
fn believe(
    answer: &HeaderMap,
    parties: &Parties,
    key: &PeerKey,
    dialer: Nonce,
) -> Option<FrameKeys> {
    let acceptor = Nonce::given(answer.get(NONCE)?.to_str().ok()?)?;
    let nonces = Nonces { dialer, acceptor };
    let expected = answer_proof(key, parties, &nonces);
    let proven = equal_in_constant_time(answer.get(PROOF)?.as_bytes(), expected.as_bytes());
    proven.then(|| FrameKeys::of(key, parties, &nonces))
}
