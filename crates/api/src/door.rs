//! How the REST interface is entered, and what it shows of itself. Read anew with the file.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use config::{HostPort, RestapiExtras, ServerTokens};

use crate::access::Access;
use crate::allowlist::Allowlist;
use crate::snapshot::{PATRONI_VERSION, PGHERD_VERSION};

/// What holds for every connection that comes in from now on.
#[derive(Debug, Clone, Default)]
pub struct Door {
    /// Where it is; `None`: where it was opened.
    pub at: Option<Place>,
    /// From where things may be changed.
    pub allowlist: Allowlist,
    /// Who may change things.
    pub access: Access,
    /// TLS, and whether clients show certificates; `None`: plain HTTP.
    pub tls: Option<tls::Acceptor>,
    /// Headers of each answer.
    pub headers: HeaderMap,
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// One host, or `*`, and a port.
    pub listen: HostPort,
    /// How many connections may wait to be taken in; `None`: as many as the system likes.
    pub backlog: Option<u32>,
}

/// The headers of each answer: `Server`, and those that are configured.
#[must_use]
pub fn headers(extras: &RestapiExtras) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let server = match extras.server_tokens {
        ServerTokens::Original => format!("pgherd/{PGHERD_VERSION}"),
        ServerTokens::Minimal => format!("Patroni/{PATRONI_VERSION}"),
        ServerTokens::ProductOnly => "Patroni".to_owned(),
    };
    let server = HeaderValue::try_from(server).ok().map(|server| (header::SERVER, server));
    headers.extend(server);
    for (name, value) in &extras.headers {
        // The configuration was checked for what is no header.
        let name = HeaderName::try_from(name);
        let value = HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_the_file() {
        let pairs = [("X-One", "a"), ("x-one", "b"), ("X-Two", "ü")];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (server_tokens, server) in [
            (ServerTokens::Original, concat!("pgherd/", env!("CARGO_PKG_VERSION"))),
            (ServerTokens::Minimal, "Patroni/4.1.4"),
            (ServerTokens::ProductOnly, "Patroni"),
        ] {
            let headers = pairs.to_vec();
            let extras = RestapiExtras { server_tokens, headers, ..RestapiExtras::default() };
            let headers = super::headers(&extras);
            assert_eq!(headers["server"], server);
            assert_eq!(headers.get_all("x-one").iter().collect::<Vec<_>>(), ["a", "b"]);
            assert_eq!(headers["x-two"].as_bytes(), "ü".as_bytes());
        }
    }
}
