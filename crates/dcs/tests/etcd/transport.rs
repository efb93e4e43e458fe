//! etcd over TLS: who is believed, who is let in, and that everything else works as without.

use std::path::{Path, PathBuf};
use std::process::Command;

use dcs::{Client, ClientConfig, ClusterStore, Error};
use tls::{ClientSettings, Identity};
use types::Millis;

use crate::support::{Etcd, Secure};

const RETRY_TIMEOUT: Millis = Millis(3000);

/// Certificates in a directory.
struct Shelf(tempfile::TempDir);

impl Shelf {
    fn new() -> Shelf {
        Shelf(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A certificate for this name on loopback: by `by`, or by itself.
    fn make(&self, name: &str, by: Option<&str>) {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-new", "-nodes", "-newkey", "rsa:2048"]);
        command.args(["-subj", &format!("/CN={name}"), "-addext", "subjectAltName=IP:127.0.0.1"]);
        command.arg("-keyout").arg(self.path(&format!("{name}.key")));
        command.arg("-out").arg(self.path(&format!("{name}.crt")));
        if let Some(by) = by {
            command.arg("-CA").arg(self.path(&format!("{by}.crt")));
            command.arg("-CAkey").arg(self.path(&format!("{by}.key")));
            command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        }
        let done = command.output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    fn identity(&self, name: &str) -> Identity {
        Identity {
            certificate: self.path(&format!("{name}.crt")),
            key: Some(self.path(&format!("{name}.key"))),
            password: None,
        }
    }

    /// A client that believes `authority`, and shows a certificate.
    fn client(&self, authority: &str, shows: Option<&str>) -> ClientSettings {
        ClientSettings {
            authorities: Some(self.path(&format!("{authority}.crt"))),
            identity: shows.map(|name| self.identity(name)),
            ..ClientSettings::default()
        }
    }

    async fn etcd(&self, server: &str, clients: Option<&str>, known: ClientSettings) -> Etcd {
        let authorities = clients.map(|name| self.path(&format!("{name}.crt")));
        let clients = authorities.as_deref();
        let secure = Secure { server: self.identity(server), clients, known };
        Etcd::start_with(1, Some(&secure)).await
    }
}

fn connect(url: &str, tls: Option<ClientSettings>, user: Option<(&str, &str)>) -> Client {
    let mut config = ClientConfig::new(vec![url.to_owned()], RETRY_TIMEOUT);
    config.tls = tls;
    config.username = user.map(|(name, _)| name.to_owned());
    config.password = user.map(|(_, password)| password.to_owned());
    Client::connect(config).unwrap()
}

/// Each kind of call: unary, paged, leases, streams.
async fn works(client: &Client) {
    client.put("/x/a", b"1".to_vec(), 0).await.unwrap();
    let (keys, _) = client.range_prefix("/x/").await.unwrap();
    assert_eq!(keys.len(), 1);
    let lease = client.lease_grant(Millis(10_000)).await.unwrap().lease;
    client.lease_keep_alive_once(lease).await.unwrap();
    let store = ClusterStore::new(client.clone(), "/x/");
    let _follower = store.follow();
    store.subscribe().wait_for(|seen| seen.fresh).await.unwrap();
    let header = client.put("/x/a", b"2".to_vec(), lease).await.unwrap();
    store.wait_revision(header.revision, RETRY_TIMEOUT).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
}

/// Nobody takes a write of this client's; the message.
async fn is_refused(client: &Client) -> String {
    let error = client.put("/x/stranger", Vec::new(), 0).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. } | Error::Ambiguous(_)), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_server_is_believed_by_its_authority_and_host() {
    let shelf = Shelf::new();
    for (name, by) in [("ca", None), ("server", Some("ca")), ("other", None)] {
        shelf.make(name, by);
    }
    let etcd = shelf.etcd("server", None, shelf.client("ca", None)).await;
    works(&connect(&etcd.url(), Some(shelf.client("ca", None)), None)).await;
    let stranger = connect(&etcd.url(), Some(shelf.client("other", None)), None);
    let said = is_refused(&stranger).await;
    assert!(said.contains("certificate"), "{said}");
    // Its certificate is for the address, not for the name.
    let named = etcd.url().replace("127.0.0.1", "localhost");
    let said = is_refused(&connect(&named, Some(shelf.client("ca", None)), None)).await;
    assert!(said.contains("certificate"), "{said}");
    let (keys, _) = etcd.client(3000).range_prefix("/x/stranger").await.unwrap();
    assert_eq!(keys.len(), 0);
}

#[tokio::test]
async fn a_server_that_wants_certificates_gets_them() {
    let shelf = Shelf::new();
    let signed = ["server", "client"].map(|name| (name, Some("ca")));
    for (name, by) in [("ca", None), ("other", None)].into_iter().chain(signed) {
        shelf.make(name, by);
    }
    let known = shelf.client("ca", Some("client"));
    let etcd = shelf.etcd("server", Some("ca"), known.clone()).await;
    works(&connect(&etcd.url(), Some(known), None)).await;
    for shows in [None, Some("other")] {
        let stranger = connect(&etcd.url(), Some(shelf.client("ca", shows)), None);
        // To the client the handshake is over when the server looks at its certificate (TLS 1.3),
        // so what it hears of the refusal may be no more than the end of the connection.
        is_refused(&stranger).await;
    }
    let (keys, _) = etcd.client(3000).range_prefix("/x/stranger").await.unwrap();
    assert_eq!(keys.len(), 0);
}

#[tokio::test]
async fn one_certificate_may_be_authority_server_and_client() {
    let shelf = Shelf::new();
    shelf.make("one", None);
    let known = shelf.client("one", Some("one"));
    let etcd = shelf.etcd("one", Some("one"), known.clone()).await;
    works(&connect(&etcd.url(), Some(known), None)).await;
}

fn etcdctl(shelf: &Path, url: &str, arguments: &[&str]) {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").args(["--endpoints", url]);
    command.arg("--cacert").arg(shelf.join("ca.crt"));
    command.arg("--cert").arg(shelf.join("root.crt")).arg("--key").arg(shelf.join("root.key"));
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[tokio::test]
async fn a_user_logs_in_by_password_or_by_certificate() {
    let shelf = Shelf::new();
    shelf.make("ca", None);
    for name in ["server", "root", "nobody"] {
        shelf.make(name, Some("ca"));
    }
    let root = shelf.client("ca", Some("root"));
    let etcd = shelf.etcd("server", Some("ca"), root.clone()).await;
    for arguments in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        etcdctl(shelf.0.path(), &etcd.url(), arguments);
    }
    works(&connect(&etcd.url(), Some(root), None)).await;
    let nobody = shelf.client("ca", Some("nobody"));
    works(&connect(&etcd.url(), Some(nobody.clone()), Some(("root", "secret")))).await;
    for user in [None, Some(("root", "wrong"))] {
        let client = connect(&etcd.url(), Some(nobody.clone()), user);
        let error = client.put("/x/stranger", Vec::new(), 0).await.unwrap_err();
        assert!(error.refusal().is_some(), "{error}");
    }
}
