//! TLS for every connection that an agent or a command has: the REST interface in both directions,
//! etcd, PostgreSQL. One provider (aws-lc-rs), and one rule of what a certificate is worth
//! ([`verify`]).
//!
//! Settings name files; they are read when a [`Connector`] or an [`Acceptor`] is made of them, and
//! again by whoever reloads its configuration. What is deliberately absent: ciphers and protocol
//! versions to choose. The library's are taken, TLS 1.2 and 1.3.

mod der;
mod files;
mod stream;
#[cfg(test)]
mod tests;
mod verify;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub use files::TlsError;
pub use stream::{Handshake, Stream};

use verify::{OfClients, OfServers, Trusted};

/// Our certificate and its key.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The certificate, with those between it and the authority behind it, as PEM.
    pub certificate: PathBuf,
    /// Its key as PEM; `None`: in the certificate's file.
    pub key: Option<PathBuf>,
    /// What the key is encrypted with.
    pub password: Option<String>,
}

impl std::fmt::Debug for Identity {
    /// Without the password (I6).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Identity");
        shown.field("certificate", &self.certificate).field("key", &self.key);
        shown.finish_non_exhaustive()
    }
}

/// What of a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Only that the server has its key.
    Nothing,
    /// Also that an authority of ours stands behind it (libpq's `verify-ca`).
    Authority,
    /// Also that it is for the host that was dialled (`verify-full`).
    #[default]
    AuthorityAndHost,
}

/// The client's side of connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientSettings {
    /// The authorities' certificates as PEM; `None`: those of the system.
    pub authorities: Option<PathBuf>,
    /// Revocation lists as PEM: files, and directories of files.
    pub revoked: Vec<PathBuf>,
    /// What is checked.
    pub verify: Verify,
    /// What we show to a server that asks.
    pub identity: Option<Identity>,
}

/// Whether clients have to show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCertificates {
    /// They are not asked.
    #[default]
    NotAsked,
    /// One that is shown has to be right.
    Optional,
    /// Who has none is not let in.
    Required,
}

/// The server's side of connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerSettings {
    /// What we are.
    pub identity: Identity,
    /// Who stands behind clients' certificates; `None`: the system's authorities.
    pub authorities: Option<PathBuf>,
    /// Whether clients show one.
    pub clients: ClientCertificates,
}

/// Makes TLS connections of streams, as client. Cheap to clone.
#[derive(Clone)]
pub struct Connector(Arc<ClientConfig>);

/// Makes TLS connections of streams, as server. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    end_point: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}

impl ClientSettings {
    /// Reads the files. `protocol` is what is spoken above TLS where the server wants to know (such
    /// as `h2`).
    ///
    /// # Errors
    /// A file cannot be read, or holds no such thing.
    pub fn connector(&self, protocol: Option<&str>) -> Result<Connector, TlsError> {
        let trusted = match self.verify {
            Verify::Nothing => None,
            Verify::Authority | Verify::AuthorityAndHost => {
                Some(Trusted::read(self.authorities.as_deref(), &self.revoked)?)
            }
        };
        let verifier = OfServers::new(trusted, self.verify)?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::setup)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = files::identity(identity)?;
                let config = config.with_client_auth_cert(chain, key);
                config.map_err(|source| TlsError::identity(identity, source))?
            }
        };
        config.alpn_protocols.extend(protocol.map(|name| name.as_bytes().to_vec()));
        Ok(Connector(Arc::new(config)))
    }
}

impl Connector {
    /// Shakes hands with `host` over this stream. The caller bounds the time.
    ///
    /// # Errors
    /// The stream's, or what is wrong with the server's certificate or with ours.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<Stream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let stream = TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

impl ServerSettings {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, or holds no such thing.
    pub fn acceptor(&self) -> Result<Acceptor, TlsError> {
        self.acceptor_speaking(None)
    }

    /// Reads the files. `protocol` is what is spoken above TLS: a client that names others and not
    /// this one is refused, one that names none is not.
    ///
    /// # Errors
    /// A file cannot be read, or holds no such thing.
    pub fn acceptor_speaking(&self, protocol: Option<&str>) -> Result<Acceptor, TlsError> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::setup)?;
        let config = match self.clients {
            ClientCertificates::NotAsked => config.with_no_client_auth(),
            ClientCertificates::Optional | ClientCertificates::Required => {
                let trusted = Trusted::read(self.authorities.as_deref(), &[])?;
                let must = self.clients == ClientCertificates::Required;
                config.with_client_cert_verifier(Arc::new(OfClients::new(trusted, must)?))
            }
        };
        let (chain, key) = files::identity(&self.identity)?;
        let end_point = chain.first().and_then(der::end_point_hash).map(Arc::from);
        let config = config.with_single_cert(chain, key);
        let mut config = config.map_err(|source| TlsError::identity(&self.identity, source))?;
        config.alpn_protocols.extend(protocol.map(|name| name.as_bytes().to_vec()));
        Ok(Acceptor { config: Arc::new(config), end_point })
    }
}

impl Acceptor {
    /// The hash of our certificate that channel binding takes (RFC 5929, `tls-server-end-point`);
    /// `None` if its signature's algorithm is not known here.
    #[must_use]
    pub fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    /// Begins to shake hands; nothing happens before the result is polled.
    pub fn accept<S>(&self, stream: S) -> Handshake<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        Handshake::new(TlsAcceptor::from(Arc::clone(&self.config)).accept(stream))
    }
}
