//! TLS for our own connections to PostgreSQL, by libpq's settings of a role.
//!
//! What libpq has and this has not is in `docs/patroni.md`. The files are read for every
//! connection, so a renewed certificate counts without a reload.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use tls::{ClientSettings, Connector, Identity, Stream, TlsError, Verify};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{ChannelBinding as Binding, SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

use crate::config::Credentials;

/// What direct TLS has to name (PostgreSQL 17), and servers of before ignore.
const PROTOCOL: &str = "postgresql";

/// Why a role's settings give no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("{key} is {value:?}, which is none of libpq's words")]
    Word { key: &'static str, value: String },
    #[error("gssencmode=require is not supported for our own connections; use TLS")]
    Gss,
    #[error("sslmode={mode} needs sslrootcert")]
    NoRoot { mode: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// How a role's connections begin.
pub(crate) struct Security {
    mode: SslMode,
    /// Tried without TLS first, as `allow` has it.
    plain_first: bool,
    binding: Binding,
    negotiation: SslNegotiation,
    connector: Option<Connector>,
}

impl Security {
    /// Of a role's settings.
    pub(crate) fn of(role: &Credentials) -> Result<Security, Unusable> {
        let given = |key: &str| role.connection.get(key).map(String::as_str);
        let word = |key: &'static str, value: &str| Unusable::Word { key, value: value.to_owned() };
        if given("gssencmode") == Some("require") {
            return Err(Unusable::Gss);
        }
        let mode = given("sslmode").unwrap_or("prefer");
        let root = given("sslrootcert").filter(|path| !path.is_empty());
        let (verify, ssl_mode) = match mode {
            "disable" => (Verify::Nothing, SslMode::Disable),
            "allow" | "prefer" => (Verify::Nothing, SslMode::Prefer),
            // As libpq: where authorities are named they count.
            "require" if root.is_some() => (Verify::Authority, SslMode::Require),
            "require" => (Verify::Nothing, SslMode::Require),
            "verify-ca" => (Verify::Authority, SslMode::Require),
            "verify-full" => (Verify::AuthorityAndHost, SslMode::Require),
            other => return Err(word("sslmode", other)),
        };
        if verify != Verify::Nothing && root.is_none() {
            return Err(Unusable::NoRoot { mode: mode.to_owned() });
        }
        let binding = match given("channel_binding").unwrap_or("prefer") {
            "disable" => Binding::Disable,
            "prefer" => Binding::Prefer,
            "require" => Binding::Require,
            other => return Err(word("channel_binding", other)),
        };
        let negotiation = match given("sslnegotiation").unwrap_or("postgres") {
            "postgres" => SslNegotiation::Postgres,
            "direct" => SslNegotiation::Direct,
            other => return Err(word("sslnegotiation", other)),
        };
        let connector = match ssl_mode {
            SslMode::Disable => None,
            _ => Some(settings(role, root, verify).connector(Some(PROTOCOL))?),
        };
        Ok(Security {
            mode: ssl_mode,
            plain_first: mode == "allow",
            binding,
            negotiation,
            connector,
        })
    }

    /// Without TLS, as on unix sockets.
    pub(crate) fn none() -> Security {
        Security {
            mode: SslMode::Disable,
            plain_first: false,
            binding: Binding::Prefer,
            negotiation: SslNegotiation::Postgres,
            connector: None,
        }
    }

    /// The ways to connect, in order: the next one is tried where [`may_try_again`] says so.
    pub(crate) fn ways(&self) -> &'static [SslMode] {
        match (self.mode, self.plain_first) {
            (SslMode::Disable, _) => &[SslMode::Disable],
            (SslMode::Prefer, false) => &[SslMode::Prefer, SslMode::Disable],
            (SslMode::Prefer, true) => &[SslMode::Disable, SslMode::Require],
            _ => &[SslMode::Require],
        }
    }

    /// Sets what does not depend on the way.
    pub(crate) fn prepare(&self, config: &mut tokio_postgres::Config) {
        config.channel_binding(self.binding).ssl_negotiation(self.negotiation);
    }

    /// What shakes hands.
    pub(crate) fn maker(&self) -> Maker {
        Maker(self.connector.clone())
    }
}

/// Whether a connection that failed like this may be tried another way: the server did not get so
/// far as to say something, or has no line in pg_hba.conf for this way (libpq's `prefer`).
pub(crate) fn may_try_again(error: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::SqlState;
    error.code().is_none_or(|code| *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

fn settings(role: &Credentials, root: Option<&str>, verify: Verify) -> ClientSettings {
    let path = |key: &str| role.connection.get(key).filter(|p| !p.is_empty()).map(PathBuf::from);
    let identity = path("sslcert").map(|certificate| Identity {
        certificate,
        key: path("sslkey"),
        password: role.sslpassword.as_ref().map(|password| password.expose().to_owned()),
    });
    ClientSettings {
        authorities: root.filter(|root| *root != "system").map(PathBuf::from),
        revoked: ["sslcrl", "sslcrldir"].iter().filter_map(|key| path(key)).collect(),
        verify,
        identity,
    }
}

/// Makes handshakes for the client library.
#[derive(Clone)]
pub(crate) struct Maker(Option<Connector>);

impl<S> MakeTlsConnect<S> for Maker
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Secured<S>;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        Ok(Handshake { connector: self.0.clone(), host: host.to_owned() })
    }
}

/// One handshake to come.
pub(crate) struct Handshake {
    connector: Option<Connector>,
    host: String,
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Secured<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Secured<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let Some(connector) = self.connector else {
                return Err(io::Error::other("TLS is switched off by sslmode"));
            };
            Ok(Secured(connector.connect(&self.host, stream).await?))
        })
    }
}

/// A stream of ours, as the client library wants it.
pub(crate) struct Secured<S>(Stream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Secured<S> {
    fn channel_binding(&self) -> ChannelBinding {
        match self.0.server_end_point() {
            Some(hash) => ChannelBinding::tls_server_end_point(hash),
            None => ChannelBinding::none(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
