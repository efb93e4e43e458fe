//! How the REST interface is entered, and what it shows of itself. Read anew with the file.

use crate::access::Access;

/// What holds for every connection that comes in from now on.
#[derive(Debug, Clone, Default)]
pub struct Door {
    /// Who may change things.
    pub access: Access,
    /// TLS, and whether clients show certificates; `None`: plain HTTP.
    pub tls: Option<tls::Acceptor>,
}
