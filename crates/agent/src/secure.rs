//! From the file's sections to what TLS is set up with.

use std::sync::Arc;

use api::{Allowlist, Door, Place, RestClient};
use config::{CertificateFiles, Etcd, Restapi, Static, VerifyClient};
use tls::{Acceptor, ClientCertificates, ClientSettings, Identity, ServerSettings, Verify};

use crate::error::AgentError;
use crate::heartbeat::PeerSecret;
use crate::setup::access;

fn identity(files: &CertificateFiles) -> Identity {
    Identity {
        certificate: files.certfile.clone(),
        key: files.keyfile.clone(),
        password: files.keyfile_password.as_ref().map(|password| password.expose().to_owned()),
    }
}

/// How commands reach the members' REST (`insecure`: the host is not checked, and without a
/// certificate of our own nothing is), as Patroni has it. Agents among each other are insecure
/// always: who answers proves itself by other means, or says nothing that is believed.
#[must_use]
pub fn rest_client(of: &config::RestClient, insecure: bool) -> ClientSettings {
    let identity = of.certificate.as_ref().map(identity);
    let verify = match (insecure, &identity) {
        (false, _) => Verify::AuthorityAndHost,
        (true, Some(_)) => Verify::Authority,
        (true, None) => Verify::Nothing,
    };
    ClientSettings { authorities: of.cacert.clone(), revoked: Vec::new(), verify, identity }
}

/// How agents reach each other's REST.
fn among_agents(settings: &Static) -> Result<RestClient, AgentError> {
    let client = RestClient::new(rest_client(&settings.rest_client, true));
    // Where nobody speaks TLS, what it would need is not asked for.
    if settings.restapi.certificate.is_some() {
        client.prepare().map_err(|source| AgentError::Tls { section: "ctl", source })?;
    }
    Ok(client)
}

/// How etcd is reached; `None`: without TLS.
#[must_use]
pub fn etcd_client(etcd: &Etcd) -> Option<ClientSettings> {
    etcd.tls.then(|| ClientSettings {
        authorities: etcd.cacert.clone(),
        revoked: Vec::new(),
        verify: Verify::AuthorityAndHost,
        identity: etcd.certificate.as_ref().map(identity),
    })
}

/// How members reach each other over REST, and who is let in.
pub(crate) struct Ways {
    pub(crate) peer_secret: PeerSecret,
    pub(crate) rest: RestClient,
    pub(crate) door: Arc<Door>,
}

impl Ways {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub(crate) fn read(settings: &Static) -> Result<Ways, AgentError> {
        let extras = &settings.restapi.extras;
        let members = extras.allowlist_include_members;
        let door = Door {
            at: Some(place(&settings.restapi)),
            allowlist: Allowlist::new(&extras.allowlist, members),
            access: access(settings),
            tls: acceptor(&settings.restapi)?,
            headers: api::headers(extras),
        };
        Ok(Ways {
            peer_secret: PeerSecret::read(settings)?,
            rest: among_agents(settings)?,
            door: Arc::new(door),
        })
    }
}

/// Where the REST interface is.
pub(crate) fn place(section: &Restapi) -> Place {
    Place { listen: section.listen.clone(), backlog: section.extras.backlog }
}

fn acceptor(section: &Restapi) -> Result<Option<Acceptor>, AgentError> {
    let Some(files) = &section.certificate else { return Ok(None) };
    let clients = match section.verify_client {
        VerifyClient::None => ClientCertificates::NotAsked,
        VerifyClient::Optional => ClientCertificates::Optional,
        VerifyClient::Required => ClientCertificates::Required,
    };
    let authorities = section.cafile.clone();
    let settings = ServerSettings { identity: identity(files), authorities, clients };
    let acceptor = settings.acceptor();
    acceptor.map(Some).map_err(|source| AgentError::Tls { section: "restapi", source })
}
