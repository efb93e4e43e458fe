//! The REST interface over TLS, both ends, with one self-signed certificate that is its own
//! authority, and with another that is none.

use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;

use tls::{ClientCertificates, ClientSettings, Identity, ServerSettings, Verify};
use types::RestAddress;

use crate::client::ClientError;
use crate::peers::{Parties, PeerKey, dial};
use crate::server_tests::{HANG, Server, start_behind};
use crate::{Access, Door, RestClient, samples};

fn make(dir: &Path, name: &str) -> Identity {
    let (key, crt) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.crt")));
    let done = Process::new("openssl")
        .args(["req", "-x509", "-new", "-nodes", "-newkey", "ec", "-subj", "/CN=batman"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&crt)
        .output();
    assert!(done.expect("openssl is there").status.success());
    Identity { certificate: crt, key: Some(key), password: None }
}

async fn serve(is: &Identity, clients: ClientCertificates) -> Server {
    let authorities = Some(is.certificate.clone());
    let settings = ServerSettings { identity: is.clone(), authorities, clients };
    let access = Access { client_certificate: true, ..Access::default() };
    let tls = Some(settings.acceptor().expect("the files are right"));
    start_behind(samples::leader(), Door { access, tls, ..Door::default() }).await
}

fn client(believes: &Identity, shows: Option<&Identity>) -> RestClient {
    RestClient::new(ClientSettings {
        authorities: Some(believes.certificate.clone()),
        revoked: Vec::new(),
        verify: Verify::AuthorityAndHost,
        identity: shows.cloned(),
    })
}

fn address(server: &Server) -> RestAddress {
    RestAddress { tls: true, ..RestAddress::plain("127.0.0.1", server.port) }
}

async fn ask(
    client: &RestClient,
    server: &Server,
    method: &str,
    path: &str,
) -> Result<(u16, String), ClientError> {
    let (status, body) = client.request(method, &address(server), path, None, None, HANG).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::test]
async fn who_shows_no_certificate_that_counts_is_not_let_in() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (one, other) = (make(dir.path(), "one"), make(dir.path(), "other"));
    let server = serve(&one, ClientCertificates::Required).await;
    let (status, _) = ask(&client(&one, Some(&one)), &server, "GET", "/primary").await.expect("in");
    assert_eq!(status, 200);
    for shows in [None, Some(&other)] {
        assert!(ask(&client(&one, shows), &server, "GET", "/primary").await.is_err(), "{shows:?}");
    }
    let stranger = ask(&client(&other, Some(&one)), &server, "GET", "/primary").await;
    assert!(matches!(stranger, Err(ClientError::Connect { .. })), "{stranger:?}");
    let plain = RestAddress::plain("127.0.0.1", server.port);
    let plain = RestClient::default().request("GET", &plain, "/primary", None, None, HANG).await;
    assert!(plain.is_err(), "no TLS");
}

#[tokio::test]
async fn an_optional_certificate_is_needed_for_changes_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    let one = make(dir.path(), "one");
    let server = serve(&one, ClientCertificates::Optional).await;
    let (status, _) = ask(&client(&one, None), &server, "GET", "/primary").await.expect("in");
    assert_eq!(status, 200);
    let refused = ask(&client(&one, None), &server, "DELETE", "/switchover").await.expect("in");
    assert_eq!(refused, (403, "client certificate required".to_owned()));
    let (status, _) =
        ask(&client(&one, Some(&one)), &server, "DELETE", "/switchover").await.expect("in");
    assert_eq!(status, 404, "nothing is scheduled");
}

#[tokio::test]
async fn tls_is_switched_on_and_off_where_it_stands() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (one, other) = (make(dir.path(), "one"), make(dir.path(), "other"));
    let server = serve(&one, ClientCertificates::NotAsked).await;
    let plain = RestAddress::plain("127.0.0.1", server.port);
    let without = RestClient::default();
    let in_plain = async || {
        let asked = without.request("GET", &plain, "/primary", None, None, HANG);
        asked.await.is_ok()
    };
    assert!(ask(&client(&one, None), &server, "GET", "/primary").await.is_ok());
    assert!(!in_plain().await);
    server.door.send_replace(Arc::default());
    assert!(in_plain().await);
    assert!(ask(&client(&one, None), &server, "GET", "/primary").await.is_err());
    // A renewed certificate counts for the next connection.
    let clients = ClientCertificates::NotAsked;
    let settings = ServerSettings { identity: other.clone(), authorities: None, clients };
    let tls = Some(settings.acceptor().expect("the files are right"));
    server.door.send_replace(Arc::new(Door { tls, ..Door::default() }));
    assert!(ask(&client(&other, None), &server, "GET", "/primary").await.is_ok());
    assert!(ask(&client(&one, None), &server, "GET", "/primary").await.is_err());
}

#[tokio::test]
async fn heartbeats_take_the_same_way() {
    let dir = tempfile::tempdir().expect("temp dir");
    let one = make(dir.path(), "one");
    let server = serve(&one, ClientCertificates::Required).await;
    let key = PeerKey::from_secret(b"0123456789abcdef");
    server.members.key.send_replace(Some(key.clone()));
    let parties = Parties { scope: "demo".into(), from: "node-1".into(), to: "node-0".into() };
    let shown = client(&one, Some(&one));
    assert!(dial(&shown, &address(&server), &parties, &key, HANG).await.is_ok());
    let hidden = client(&one, None);
    assert!(dial(&hidden, &address(&server), &parties, &key, HANG).await.is_err());
}
