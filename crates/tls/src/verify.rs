//! What a certificate is worth.
//!
//! A certificate is believed when an authority of ours stands behind it (WebPKI's rules), or when
//! it is byte for byte one of those in our file of authorities. The second rule is for what is
//! found in the field: one self-signed certificate that is its own authority, and server and client
//! at once. WebPKI refuses it as an authority in a server's place; OpenSSL takes it. Nothing is
//! given away: who has the key of a certificate in that file could sign any other with it, or is
//! named there on purpose. In both cases the time of validity counts, and the handshake shows that
//! the other side has the key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

use crate::der::Validity;
use crate::files::{self, TlsError};
use crate::{Verify, provider};

/// The certificates of the file of authorities.
#[derive(Debug)]
pub(crate) struct Trusted {
    pinned: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
}

impl Trusted {
    pub(crate) fn read(path: Option<&Path>, revoked: &[PathBuf]) -> Result<Trusted, TlsError> {
        let pinned = files::authorities(path)?;
        let mut roots = RootCertStore::empty();
        // One that is no authority in WebPKI's eyes may still be pinned.
        roots.add_parsable_certificates(pinned.iter().cloned());
        if roots.is_empty() {
            return Err(TlsError::NoAuthorities);
        }
        Ok(Trusted { pinned, roots: Arc::new(roots), revoked: files::revoked(revoked)? })
    }

    /// Whether it is one of ours.
    fn is_pinned(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<bool, Error> {
        if !self.pinned.iter().any(|pinned| pinned.as_ref() == certificate.as_ref()) {
            return Ok(false);
        }
        let validity = Validity::of(certificate).ok_or(CertificateError::BadEncoding)?;
        if !validity.has_begun(now) {
            return Err(CertificateError::NotValidYet.into());
        }
        if validity.has_ended(now) {
            return Err(CertificateError::Expired.into());
        }
        Ok(true)
    }
}

/// What a client makes of a server's certificate.
#[derive(Debug)]
pub(crate) struct OfServers {
    /// `None`: nothing is checked.
    trusted: Option<(Trusted, Arc<WebPkiServerVerifier>)>,
    verify: Verify,
}

impl OfServers {
    pub(crate) fn new(trusted: Option<Trusted>, verify: Verify) -> Result<OfServers, TlsError> {
        let with_rules = |trusted: Trusted| {
            let roots = Arc::clone(&trusted.roots);
            let rules = WebPkiServerVerifier::builder_with_provider(roots, provider())
                .with_crls(trusted.revoked.iter().cloned())
                .build();
            Ok((trusted, rules.map_err(TlsError::setup)?))
        };
        Ok(OfServers { trusted: trusted.map(with_rules).transpose()?, verify })
    }
}

impl ServerCertVerifier for OfServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some((trusted, rules)) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        if trusted.is_pinned(end_entity, now)? {
            if self.verify == Verify::AuthorityAndHost {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let verified =
            rules.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at after the chain and its revocation (rustls 0.23), which a test
            // of ours holds it to.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.verify == Verify::Authority => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a server makes of a client's certificate.
#[derive(Debug)]
pub(crate) struct OfClients {
    trusted: Trusted,
    rules: Arc<dyn ClientCertVerifier>,
}

impl OfClients {
    /// `must`: whoever shows none is not let in.
    pub(crate) fn new(trusted: Trusted, must: bool) -> Result<OfClients, TlsError> {
        let roots = Arc::clone(&trusted.roots);
        let rules = WebPkiClientVerifier::builder_with_provider(roots, provider());
        let rules = if must { rules } else { rules.allow_unauthenticated() };
        Ok(OfClients { trusted, rules: rules.build().map_err(TlsError::setup)? })
    }
}

impl ClientCertVerifier for OfClients {
    fn client_auth_mandatory(&self) -> bool {
        self.rules.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.rules.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.trusted.is_pinned(end_entity, now)? {
            return Ok(ClientCertVerified::assertion());
        }
        self.rules.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.rules.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.rules.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.supported_verify_schemes()
    }
}
