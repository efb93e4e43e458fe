//! TLS on both sides of the proxy: which certificate a client is shown, how a server is reached.

use std::io;
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use ::tls::{
    Acceptor, ClientCertificates, ClientSettings, Connector, Identity, ServerSettings, TlsError,
    Verify,
};
use config::{CertificateFiles, ClientTlsMode, ServerTlsMode};
use pgproto::wire::{
    ACCEPTED_ENCRYPTION, CancelKey, FirstPacket, REFUSED_ENCRYPTION, REQUEST_TLS, Startup,
    StartupError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::login::Channel;
use crate::sockets;
use crate::startup::{Unwelcome, read_packet};

/// A connection with or without TLS.
pub type Stream = ::tls::Stream<TcpStream>;

/// What is spoken above TLS, by its name in ALPN.
const PROTOCOL: &str = "postgresql";
/// TLS and GSSAPI, each asked for once.
const ENCRYPTION_REQUESTS_MAX: usize = 2;
/// The first byte of a TLS handshake; no startup packet is long enough to begin with it.
const TLS_HANDSHAKE: u8 = 0x16;

pub(crate) fn identity(files: &CertificateFiles) -> Identity {
    Identity {
        certificate: files.certfile.clone(),
        key: files.keyfile.clone(),
        password: files.keyfile_password.as_ref().map(|secret| secret.expose().to_owned()),
    }
}

/// Something made of files, which is replaced when they are read again.
#[derive(Debug)]
struct Reloaded<T>(RwLock<Option<T>>);

impl<T: Clone> Reloaded<T> {
    fn get(&self) -> Option<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, value: Option<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }
}

/// The proxy as clients meet it.
#[derive(Debug)]
pub struct ClientSide {
    mode: ClientTlsMode,
    /// Who connects is another proxy, so where it stands says nothing of the client.
    behind_proxy: bool,
    settings: Option<ServerSettings>,
    acceptor: Reloaded<Acceptor>,
}

/// What a client wants, on which connection.
#[derive(Debug)]
pub struct Welcomed {
    /// The connection.
    pub stream: Stream,
    /// What a login has to know of it.
    pub channel: Channel,
    /// What it wants.
    pub wish: Wish,
    /// What it sent behind that, and was read already.
    pub unread: Vec<u8>,
}

/// What a client wants.
#[derive(Debug)]
pub enum Wish {
    /// A session; the startup packet, and as it came.
    Session(Startup, Vec<u8>),
    /// A statement of another session cancelled; the packet as it came.
    Cancel(CancelKey, Vec<u8>),
}

/// Why a client is not served.
#[derive(Debug, thiserror::Error)]
pub enum NotWelcome {
    /// It left or said nothing, so there is nobody to tell.
    #[error("the client closed or was silent")]
    Silent,
    /// The handshake failed, and TLS has told it.
    #[error("no TLS with the client")]
    Handshake(#[source] io::Error),
    /// It began with TLS and did not name what it speaks, so it may be led astray.
    #[error("a client that begins with TLS has to name postgresql by ALPN")]
    Protocol,
    /// Its packet makes no sense.
    #[error(transparent)]
    Packet(StartupError),
    /// It asks for encryption again and again.
    #[error("encryption was refused and asked for again")]
    Insists,
    /// It comes without TLS, which is required.
    #[error("the proxy takes connections over TLS only: use sslmode=require or higher")]
    NeedsTls,
}

impl NotWelcome {
    /// The SQLSTATE to tell it with; `None` if there is nobody to tell.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&'static str> {
        match self {
            NotWelcome::Silent | NotWelcome::Handshake(_) | NotWelcome::Protocol => None,
            NotWelcome::Packet(_) | NotWelcome::Insists => Some("08P01"),
            NotWelcome::NeedsTls => Some("28000"),
        }
    }
}

impl From<Unwelcome> for NotWelcome {
    fn from(unwelcome: Unwelcome) -> NotWelcome {
        match unwelcome {
            Unwelcome::Silent => NotWelcome::Silent,
            Unwelcome::Packet(error) => NotWelcome::Packet(error),
        }
    }
}

impl ClientSide {
    /// Reads the files of `pgherd.proxy.tls`. `behind_proxy`: every connection comes with a header
    /// of the PROXY protocol.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn new(config: &config::ClientTls, behind_proxy: bool) -> Result<ClientSide, TlsError> {
        let settings =
            config.certificate.as_ref().filter(|_| config.mode != ClientTlsMode::Disable);
        let settings = settings.map(|files| ServerSettings {
            identity: identity(files),
            authorities: config.ca.clone(),
            // Who has to show one is decided when its name is known.
            clients: match &config.ca {
                Some(_) => ClientCertificates::Optional,
                None => ClientCertificates::NotAsked,
            },
        });
        let acceptor = Reloaded(RwLock::new(None));
        let side = ClientSide { mode: config.mode, behind_proxy, settings, acceptor };
        side.reload()?;
        Ok(side)
    }

    /// Reads the files again. Connections that are there stay as they are.
    ///
    /// # Errors
    /// [`TlsError`]; what was read before goes on being used.
    pub fn reload(&self) -> Result<(), TlsError> {
        let read = |settings: &ServerSettings| settings.acceptor_speaking(Some(PROTOCOL));
        self.acceptor.set(self.settings.as_ref().map(read).transpose()?);
        Ok(())
    }

    /// Listens to what a client wants that has connected from `peer`, over TLS if it asks for that
    /// and there is any: by its request, or at once as clients of PostgreSQL 17 can. Where TLS may
    /// follow, nothing is read beyond the packet.
    ///
    /// Cancel safety: none, the connection is of no use afterwards.
    ///
    /// # Errors
    /// [`NotWelcome`], and where the client can still be told of it, the connection for that.
    pub async fn welcome(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        limit: Duration,
    ) -> Result<Welcomed, (NotWelcome, Option<Stream>)> {
        timeout(limit, self.listen(socket, peer)).await.unwrap_or(Err((NotWelcome::Silent, None)))
    }

    async fn listen(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
    ) -> Result<Welcomed, (NotWelcome, Option<Stream>)> {
        let acceptor = self.acceptor.get();
        let first = if acceptor.is_some() { peeked(&socket).await } else { None };
        let mut stream = Stream::Plain(socket);
        let mut unread = Vec::new();
        if let Some(acceptor) = acceptor.as_ref().filter(|_| first == Some(TLS_HANDSHAKE)) {
            stream = secured(acceptor, stream).await?;
            if stream.protocol() != Some(PROTOCOL.as_bytes()) {
                return Err((NotWelcome::Protocol, None));
            }
        }
        for _ in 0..=ENCRYPTION_REQUESTS_MAX {
            let exactly = acceptor.is_some() && !stream.is_tls();
            let (packet, bytes) = match read_packet(&mut stream, &mut unread, exactly).await {
                Ok(read) => read,
                Err(unwelcome) => return Err((unwelcome.into(), Some(stream))),
            };
            let wish = match packet {
                FirstPacket::Startup(_)
                    if self.mode == ClientTlsMode::Require && !stream.is_tls() =>
                {
                    return Err((NotWelcome::NeedsTls, Some(stream)));
                }
                FirstPacket::Startup(startup) => Wish::Session(startup, bytes),
                // Also without TLS: clients before PostgreSQL 17 know it no other way.
                FirstPacket::Cancel(key) => Wish::Cancel(key, bytes),
                FirstPacket::EncryptTls | FirstPacket::EncryptGss => {
                    let tls = packet == FirstPacket::EncryptTls && !stream.is_tls();
                    let acceptor = acceptor.as_ref().filter(|_| tls);
                    let answer = acceptor.map_or(REFUSED_ENCRYPTION, |_| ACCEPTED_ENCRYPTION);
                    let sent = async {
                        stream.write_all(answer).await?;
                        stream.flush().await
                    };
                    if sent.await.is_err() {
                        return Err((NotWelcome::Silent, None));
                    }
                    if let Some(acceptor) = acceptor {
                        stream = secured(acceptor, stream).await?;
                    }
                    continue;
                }
            };
            let end_point = acceptor.as_ref().and_then(Acceptor::end_point).map(<[u8]>::to_vec);
            let channel = Channel {
                confidential: stream.is_tls() || !self.behind_proxy && is_local(peer),
                end_point: end_point.filter(|_| stream.is_tls()),
                certified: stream.certified_names(),
            };
            return Ok(Welcomed { stream, channel, wish, unread });
        }
        Err((NotWelcome::Insists, Some(stream)))
    }
}

/// The first byte that a client sends, which stays to be read.
async fn peeked(socket: &TcpStream) -> Option<u8> {
    let mut first = [0];
    matches!(socket.peek(&mut first).await, Ok(1)).then_some(first[0])
}

/// The handshake with a client that has none yet.
async fn secured(
    acceptor: &Acceptor,
    stream: Stream,
) -> Result<Stream, (NotWelcome, Option<Stream>)> {
    match stream {
        Stream::Plain(socket) => {
            acceptor.accept(socket).await.map_err(|error| (NotWelcome::Handshake(error), None))
        }
        Stream::Tls(_) => Ok(stream),
    }
}

/// Whether both ends are on this machine, so that nobody in between reads along.
fn is_local(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// How servers are reached.
#[derive(Debug)]
pub struct ServerSide {
    mode: ServerTlsMode,
    settings: Option<ClientSettings>,
    connector: Reloaded<Connector>,
}

/// Bounds of a connection to a server.
#[derive(Debug, Clone, Copy)]
pub struct DialLimits {
    /// How long a TCP connection takes at most.
    pub connect: Duration,
    /// How long TLS takes at most.
    pub handshake: Duration,
    /// TCP_USER_TIMEOUT; `None` leaves the system's.
    pub user_timeout: Option<Duration>,
}

/// Why a server is not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No TCP connection.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// No TCP connection in time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The connection broke while TLS was asked for.
    #[error("the server closed when it was asked for TLS")]
    Closed(#[source] io::Error),
    /// The server has no TLS.
    #[error("the server has no TLS, which server_tls.mode demands")]
    NoTls,
    /// It answered something else.
    #[error("the server answered {0:#04x} when it was asked for TLS")]
    Answer(u8),
    /// No TLS in time.
    #[error("no TLS handshake within {0:?}")]
    HandshakeTimeout(Duration),
    /// The handshake failed: a certificate is not believed, or there is nothing in common.
    #[error("no TLS with the server")]
    Handshake(#[source] io::Error),
}

impl ServerSide {
    /// Reads the files of `pgherd.proxy.server_tls`.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn new(config: &config::ServerTls) -> Result<ServerSide, TlsError> {
        let verify = match config.mode {
            ServerTlsMode::Disable | ServerTlsMode::Prefer => Verify::Nothing,
            // libpq: "if a root CA file is present, verify the certificate as for verify-ca".
            ServerTlsMode::Require if config.ca.is_some() => Verify::Authority,
            ServerTlsMode::Require => Verify::Nothing,
            ServerTlsMode::VerifyCa => Verify::Authority,
            ServerTlsMode::VerifyFull => Verify::AuthorityAndHost,
        };
        let settings = (config.mode != ServerTlsMode::Disable).then(|| ClientSettings {
            authorities: config.ca.clone(),
            revoked: config.crl.iter().cloned().collect(),
            verify,
            identity: config.certificate.as_ref().map(identity),
        });
        let connector = Reloaded(RwLock::new(None));
        let side = ServerSide { mode: config.mode, settings, connector };
        side.reload()?;
        Ok(side)
    }

    /// Reads the files again. Connections that are there stay as they are.
    ///
    /// # Errors
    /// [`TlsError`]; what was read before goes on being used.
    pub fn reload(&self) -> Result<(), TlsError> {
        let read = |settings: &ClientSettings| settings.connector(Some(PROTOCOL));
        self.connector.set(self.settings.as_ref().map(read).transpose()?);
        Ok(())
    }

    /// Connects to a server, with TLS as the mode says. `preface` is sent first: the header of the
    /// PROXY protocol, or nothing.
    ///
    /// Cancel safety: dropped half-way it closes the connection.
    ///
    /// # Errors
    /// [`DialError`]
    pub async fn dial(
        &self,
        host: &str,
        port: u16,
        preface: &[u8],
        limits: DialLimits,
    ) -> Result<(Stream, Channel), DialError> {
        let socket = connect(host, port, preface, limits).await?;
        let stream = match self.connector.get() {
            None => Stream::Plain(socket),
            Some(connector) => {
                let shaken = shake(&connector, host, socket, limits.handshake).await;
                match (shaken, self.mode == ServerTlsMode::Prefer) {
                    (Ok(Shaken::Tls(stream)), _) => stream,
                    (Ok(Shaken::Refused(socket)), true) => Stream::Plain(socket),
                    (Ok(Shaken::Refused(_)), false) => return Err(DialError::NoTls),
                    // As libpq does: what cannot have TLS is tried once more without.
                    (Err(DialError::Handshake(_) | DialError::Answer(_)), true) => {
                        Stream::Plain(connect(host, port, preface, limits).await?)
                    }
                    (Err(error), _) => return Err(error),
                }
            }
        };
        let channel = Channel {
            confidential: stream.is_tls() || stream.socket().peer_addr().is_ok_and(is_local),
            end_point: stream.server_end_point(),
            certified: Vec::new(),
        };
        Ok((stream, channel))
    }
}

async fn connect(
    host: &str,
    port: u16,
    preface: &[u8],
    limits: DialLimits,
) -> Result<TcpStream, DialError> {
    let connected = timeout(limits.connect, TcpStream::connect((host, port))).await;
    let mut socket = match connected {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return Err(DialError::Connect(error)),
        Err(_) => return Err(DialError::Timeout(limits.connect)),
    };
    sockets::prepare(&socket, limits.user_timeout);
    if !preface.is_empty() {
        socket.write_all(preface).await.map_err(DialError::Connect)?;
    }
    Ok(socket)
}

enum Shaken {
    Tls(Stream),
    /// The server has none, and the connection goes on without.
    Refused(TcpStream),
}

/// Asks for TLS. Exactly one byte is read of the answer, so that nothing which was slipped in
/// before the handshake is taken for the server's (CVE-2021-23222).
async fn shake(
    connector: &Connector,
    host: &str,
    mut socket: TcpStream,
    limit: Duration,
) -> Result<Shaken, DialError> {
    let asked = async {
        socket.write_all(REQUEST_TLS).await.map_err(DialError::Closed)?;
        match socket.read_u8().await.map_err(DialError::Closed)? {
            b'S' => {
                let stream = connector.connect(host, socket).await;
                stream.map(Shaken::Tls).map_err(DialError::Handshake)
            }
            b'N' => Ok(Shaken::Refused(socket)),
            other => Err(DialError::Answer(other)),
        }
    };
    timeout(limit, asked).await.unwrap_or(Err(DialError::HandshakeTimeout(limit)))
}
