//! How a connection to one endpoint is made, with or without TLS. tonic brings a TLS of its own,
//! which knows WebPKI's rules alone; ours makes the connection and hands it over.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tls::{Connector, Stream};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// One endpoint's address and settings.
pub(crate) struct Dial {
    pub(crate) endpoint: Endpoint,
    pub(crate) tls: Option<Connector>,
}

impl Dial {
    /// A channel that connects when it is first used, and again whenever it must.
    pub(crate) fn lazily(&self) -> Channel {
        match &self.tls {
            None => self.endpoint.connect_lazy(),
            Some(connector) => self.endpoint.connect_with_connector_lazy(Tls(connector.clone())),
        }
    }
}

/// What tonic calls to get a connection.
#[derive(Clone)]
struct Tls(Connector);

type Connecting =
    Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream<TcpStream>>>> + Send + 'static>>;

impl tower_service::Service<Uri> for Tls {
    type Response = TokioIo<Stream<TcpStream>>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let connector = self.0.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let port = uri.port_u16().ok_or(io::ErrorKind::InvalidInput)?;
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            // As tonic does it for its own connections: a host that is gone is noticed.
            sockopt::set_socket_keepalive(&stream, true)?;
            Ok(TokioIo::new(connector.connect(host, stream).await?))
        })
    }
}
