//! Certificates and keys out of files.

use std::path::{Path, PathBuf};

use pkcs8::der::SecretDocument;
use pkcs8::{EncryptedPrivateKeyInfo, PrivateKeyInfo};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};

use crate::Identity;

/// Where systems keep the authorities that they trust.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

const ENCRYPTED: (&str, &str) =
    ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----END ENCRYPTED PRIVATE KEY-----");

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What came back.
        #[source]
        source: std::io::Error,
    },
    /// A file holds no certificate, key or list.
    #[error("{} holds no {what} in PEM form: {detail}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The key is encrypted, and cannot be had.
    #[error("the key in {} is encrypted: {detail}", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Certificate and key do not go together, or are of a kind that is not supported.
    #[error("the certificate in {} and its key cannot be used", path.display())]
    Identity {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// The library refuses the settings.
    #[error("TLS cannot be set up")]
    Setup {
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No authorities were named, and the system has none.
    #[error("no certificates of authorities are configured, and the system has none")]
    NoAuthorities,
}

impl TlsError {
    pub(crate) fn setup(source: impl std::error::Error + Send + Sync + 'static) -> TlsError {
        TlsError::Setup { source: Box::new(source) }
    }

    pub(crate) fn identity(identity: &Identity, source: rustls::Error) -> TlsError {
        TlsError::Identity { path: identity.certificate.clone(), source }
    }
}

/// The certificates of a file; the system's authorities without one.
pub(crate) fn authorities(path: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let system = || SYSTEM.iter().map(Path::new).find(|path| path.exists());
    certificates(path.or_else(system).ok_or(TlsError::NoAuthorities)?)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(content(path, "certificate", &pem::Error::NoItemsFound)),
        Err(error) => Err(content(path, "certificate", &error)),
    }
}

/// The revocation lists of files, and of the files of directories.
pub(crate) fn revoked(
    paths: &[PathBuf],
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let mut lists = Vec::new();
    for path in paths {
        let failed = |source| TlsError::Read { path: path.clone(), source };
        let mut files = vec![path.clone()];
        if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(failed)?;
            files =
                entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(failed)?;
        }
        for file in files {
            let text = read(&file)?;
            let found: Result<Vec<_>, _> =
                CertificateRevocationListDer::pem_slice_iter(&text).collect();
            lists.extend(found.map_err(|error| content(&file, "revocation list", &error))?);
        }
    }
    Ok(lists)
}

/// A certificate with those behind it, and its key.
pub(crate) fn identity(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(&identity.certificate)?;
    let path = identity.key.as_ref().unwrap_or(&identity.certificate);
    let text = read(path)?;
    let key = match between(&text, ENCRYPTED) {
        Some(pem) => decrypted(path, pem, identity.password.as_deref())?,
        None if find(&text, "Proc-Type: 4,ENCRYPTED").is_some() => {
            let detail = "in a form of old that is not supported; write it anew with \
                          `openssl pkcs8 -topk8`"
                .to_owned();
            return Err(TlsError::Encrypted { path: path.clone(), detail });
        }
        None => PrivateKeyDer::from_pem_slice(&text).map_err(|e| content(path, "key", &e))?,
    };
    Ok((chain, key))
}

fn decrypted(
    path: &Path,
    pem: &str,
    password: Option<&str>,
) -> Result<PrivateKeyDer<'static>, TlsError> {
    let failed = |detail: String| TlsError::Encrypted { path: path.to_owned(), detail };
    let password = password.ok_or_else(|| failed("no password for it is configured".into()))?;
    let (_, document) = SecretDocument::from_pem(pem).map_err(|e| failed(e.to_string()))?;
    let sealed = EncryptedPrivateKeyInfo::try_from(document.as_bytes());
    let opened = sealed.map_err(|e| failed(e.to_string()))?.decrypt(password);
    let opened = opened.map_err(|e| failed(e.to_string()))?;
    // A wrong password may give any bytes.
    PrivateKeyInfo::try_from(opened.as_bytes())
        .map_err(|_| failed("the password does not open it".into()))?;
    Ok(PrivatePkcs8KeyDer::from(opened.as_bytes().to_vec()).into())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn content(path: &Path, what: &'static str, error: &pem::Error) -> TlsError {
    TlsError::Content { path: path.to_owned(), what, detail: error.to_string() }
}

fn find(text: &[u8], words: &str) -> Option<usize> {
    text.windows(words.len()).position(|window| window == words.as_bytes())
}

/// From the first to the last of these two lines.
fn between<'a>(text: &'a [u8], (first, last): (&str, &str)) -> Option<&'a str> {
    let from = find(text, first)?;
    let to = find(text, last)? + last.len();
    std::str::from_utf8(text.get(from..to)?).ok()
}
