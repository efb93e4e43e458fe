//! Real handshakes over a pipe in memory, with certificates that openssl makes.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Certificates by name: `one` and `other` are self-signed and their own authority, `ca` signed
/// `leaf`, which is for the host `leaf.test`.
struct Shop(tempfile::TempDir);

impl Shop {
    fn open() -> Shop {
        let shop = Shop(tempfile::tempdir().unwrap());
        shop.sign_itself("one", &["-addext", "subjectAltName=IP:127.0.0.1"]);
        shop.sign_itself("other", &["-addext", "subjectAltName=IP:127.0.0.1"]);
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let done = Command::new("openssl").args(arguments).current_dir(self.0.path()).output();
        let done = done.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn sign_itself(&self, name: &str, more: &[&str]) {
        self.sign_itself_as(name, "/CN=batman", more);
    }

    fn sign_itself_as(&self, name: &str, subject: &str, more: &[&str]) {
        let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
        let mut arguments = vec!["req", "-x509", "-new", "-nodes", "-newkey", "ec"];
        arguments.extend(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", subject]);
        arguments.extend(["-keyout", &key, "-out", &crt]);
        arguments.extend(more);
        self.openssl(&arguments);
    }

    /// One that was over years ago.
    fn sign_itself_in_the_past(&self, name: &str) {
        let config = "[ca]\ndefault_ca=it\n[it]\ndatabase=index\nnew_certs_dir=.\n\
            serial=serial\npolicy=any\nx509_extensions=host\n[any]\ncommonName=supplied\n\
            [host]\nsubjectAltName=IP:127.0.0.1\n";
        for (file, text) in [("ca.cnf", config), ("index", ""), ("serial", "01\n")] {
            std::fs::write(self.path(file), text).unwrap();
        }
        let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
        let mut arguments = vec!["req", "-new", "-nodes", "-newkey", "ec", "-subj", "/CN=batman"];
        arguments.extend(["-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        arguments.extend(["-keyout", &key, "-out", "old.csr"]);
        self.openssl(&arguments);
        let mut arguments = vec!["ca", "-batch", "-selfsign", "-config", "ca.cnf", "-md", "sha256"];
        arguments.extend(["-startdate", "20200101000000Z", "-enddate", "20210101000000Z"]);
        arguments.extend(["-keyfile", &key, "-in", "old.csr", "-out", &crt, "-notext"]);
        self.openssl(&arguments);
    }

    /// `leaf`, signed by `ca`.
    fn issue(&self) {
        self.sign_itself("ca", &[]);
        let mut arguments = vec!["req", "-new", "-nodes", "-newkey", "ec", "-subj", "/CN=leaf"];
        arguments.extend(["-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        arguments.extend(["-keyout", "leaf.key", "-out", "leaf.csr"]);
        self.openssl(&arguments);
        std::fs::write(self.path("leaf.ext"), "subjectAltName=DNS:leaf.test\n").unwrap();
        let mut arguments = vec!["x509", "-req", "-in", "leaf.csr", "-CA", "ca.crt"];
        arguments.extend(["-CAkey", "ca.key", "-CAcreateserial", "-extfile", "leaf.ext"]);
        arguments.extend(["-out", "leaf.crt"]);
        self.openssl(&arguments);
    }

    fn identity(&self, name: &str) -> Identity {
        Identity {
            certificate: self.path(&format!("{name}.crt")),
            key: Some(self.path(&format!("{name}.key"))),
            password: None,
        }
    }

    fn client(&self, believes: &str, shows: Option<&str>, verify: Verify) -> ClientSettings {
        ClientSettings {
            authorities: Some(self.path(&format!("{believes}.crt"))),
            revoked: Vec::new(),
            verify,
            identity: shows.map(|name| self.identity(name)),
        }
    }

    fn server(&self, is: &str, clients: ClientCertificates) -> ServerSettings {
        let authorities = Some(self.path("one.crt"));
        ServerSettings { identity: self.identity(is), authorities, clients }
    }
}

/// A handshake in which the client shows its certificate, and names this protocol.
async fn shake(
    client: &ClientSettings,
    server: &ServerSettings,
    protocol: Option<&str>,
) -> io::Result<(Stream<tokio::io::DuplexStream>, Option<Vec<u8>>)> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (connector, acceptor) = (
        client.connector(protocol).unwrap(),
        server.acceptor_speaking(Some("postgresql")).unwrap(),
    );
    let (served, called) = tokio::join!(acceptor.accept(far), connector.connect("127.0.0.1", near));
    let (served, called) = (served?, called?);
    assert_eq!(called.server_end_point().as_deref(), acceptor.end_point());
    assert_eq!(called.protocol(), served.protocol());
    let protocol = served.protocol().map(<[u8]>::to_vec);
    Ok((served, protocol))
}

#[tokio::test]
async fn a_client_is_whom_its_certificate_names() {
    let shop = Shop::open();
    let alternative = "subjectAltName=DNS:carol,email:carol@test,IP:127.0.0.1";
    shop.sign_itself_as("carol", "/O=herd", &["-addext", alternative]);
    shop.sign_itself_as("dave", "/O=herd/CN=dave", &["-addext", alternative]);
    for (name, found) in [
        ("one", &["batman"][..]),
        ("carol", &["carol", "carol@test"]),
        // Who has a common name is not another one besides.
        ("dave", &["dave"]),
    ] {
        let server = ServerSettings {
            authorities: Some(shop.path(&format!("{name}.crt"))),
            ..shop.server("one", ClientCertificates::Required)
        };
        let client = shop.client("one", Some(name), Verify::AuthorityAndHost);
        let (served, _) = shake(&client, &server, None).await.unwrap();
        assert_eq!(served.certified_names(), found);
    }
}

#[tokio::test]
async fn what_is_spoken_above_is_agreed_upon() {
    let shop = Shop::open();
    let client = shop.client("one", None, Verify::Authority);
    let server = shop.server("one", ClientCertificates::NotAsked);
    let agreed = async |protocol| shake(&client, &server, protocol).await.map(|(_, agreed)| agreed);
    assert_eq!(agreed(Some("postgresql")).await.unwrap(), Some(b"postgresql".to_vec()));
    assert_eq!(agreed(None).await.unwrap(), None);
    assert!(agreed(Some("http/1.1")).await.is_err());
}

/// One byte there and back. Whether the server saw a certificate, or what either side says.
async fn talk(
    client: &ClientSettings,
    server: &ServerSettings,
    host: &str,
) -> Result<bool, String> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (connector, acceptor) = (client.connector(None).unwrap(), server.acceptor().unwrap());
    let serve = async {
        let mut stream = acceptor.accept(far).await?;
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await?;
        io::Result::Ok(stream.is_certified())
    };
    let call = async {
        let mut stream = connector.connect(host, near).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        assert_eq!(stream.read_u8().await?, 7);
        assert_eq!(stream.server_end_point().map(|hash| hash.len()), Some(32));
        io::Result::Ok(())
    };
    let (served, called) = tokio::join!(serve, call);
    match (served, called) {
        (Ok(certified), Ok(())) => Ok(certified),
        (served, called) => Err(format!("{served:?} {called:?}")),
    }
}

#[tokio::test]
async fn one_self_signed_certificate_is_authority_server_and_client_at_once() {
    use ClientCertificates::{NotAsked, Optional, Required};
    use Verify::{Authority, AuthorityAndHost, Nothing};
    let shop = Shop::open();
    let check = async |believes, shows, verify, is, clients| {
        talk(&shop.client(believes, shows, verify), &shop.server(is, clients), "127.0.0.1").await
    };
    for verify in [Nothing, Authority, AuthorityAndHost] {
        assert_eq!(check("one", Some("one"), verify, "one", Required).await, Ok(true));
        assert_eq!(check("one", Some("one"), verify, "one", NotAsked).await, Ok(false));
        assert_eq!(check("one", None, verify, "one", Optional).await, Ok(false));
        assert!(check("one", None, verify, "one", Required).await.is_err(), "none shown");
        // A certificate of the same names, and another key.
        for clients in [Optional, Required] {
            assert!(check("one", Some("other"), verify, "one", clients).await.is_err());
        }
    }
    assert_eq!(check("one", None, Nothing, "other", NotAsked).await, Ok(false));
    for verify in [Authority, AuthorityAndHost] {
        assert!(check("one", None, verify, "other", NotAsked).await.is_err(), "{verify:?}");
    }
    let (client, server) =
        (shop.client("one", None, AuthorityAndHost), shop.server("one", NotAsked));
    let wrong_host = talk(&client, &server, "127.0.0.2").await.unwrap_err();
    assert!(wrong_host.contains("NotValidForName"), "{wrong_host}");
    let client = shop.client("one", None, Authority);
    assert_eq!(talk(&client, &server, "127.0.0.2").await, Ok(false));
}

#[tokio::test]
async fn an_authoritys_word_counts_and_a_name_only_where_it_is_asked_for() {
    use ClientCertificates::NotAsked;
    use Verify::{Authority, AuthorityAndHost};
    let shop = Shop::open();
    shop.issue();
    let server = shop.server("leaf", NotAsked);
    let check = async |believes: &str, verify, host: &str| {
        talk(&shop.client(believes, None, verify), &server, host).await
    };
    assert_eq!(check("ca", AuthorityAndHost, "leaf.test").await, Ok(false));
    assert!(check("ca", AuthorityAndHost, "other.test").await.is_err());
    assert_eq!(check("ca", Authority, "other.test").await, Ok(false));
    // That no name is asked for does not make up for the authority.
    let refused = check("one", Authority, "other.test").await.unwrap_err();
    assert!(refused.contains("BadSignature"), "{refused}");
}

#[tokio::test]
async fn a_pinned_certificate_ends_with_its_time() {
    let shop = Shop::open();
    shop.sign_itself_in_the_past("old");
    let server = shop.server("old", ClientCertificates::NotAsked);
    let refused = talk(&shop.client("old", None, Verify::Authority), &server, "127.0.0.1").await;
    let refused = refused.unwrap_err();
    assert!(refused.contains("xpired"), "{refused}");
}

#[test]
fn encrypted_keys_are_opened_by_their_password_alone() {
    let shop = Shop::open();
    let mut arguments = vec!["pkcs8", "-topk8", "-in", "one.key", "-passout", "pass:hush"];
    arguments.extend(["-out", "sealed.key"]);
    shop.openssl(&arguments);
    let with = |password: Option<&str>| {
        let identity = Identity {
            key: Some(shop.path("sealed.key")),
            password: password.map(str::to_owned),
            ..shop.identity("one")
        };
        assert!(!format!("{identity:?}").contains("hush"));
        ServerSettings { identity, ..ServerSettings::default() }.acceptor().map(|_| ())
    };
    assert!(with(Some("hush")).is_ok());
    for wrong in [None, Some("wrong")] {
        let error = with(wrong).unwrap_err().to_string();
        assert!(error.contains("sealed.key") && error.contains("encrypted"), "{error}");
    }
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let shop = Shop::open();
    let error = |settings: &ServerSettings| settings.acceptor().unwrap_err().to_string();
    let mut settings = shop.server("one", ClientCertificates::Required);
    settings.identity.key = Some(shop.path("other.key"));
    assert!(error(&settings).contains("one.crt"), "another key: {}", error(&settings));
    settings.identity.key = Some(shop.path("one.crt"));
    assert!(error(&settings).contains("no key"), "{}", error(&settings));
    settings.authorities = Some(shop.path("one.key"));
    assert!(error(&settings).contains("no certificate"), "{}", error(&settings));
    settings.authorities = Some(Path::new("/nowhere").into());
    assert!(error(&settings).contains("cannot read /nowhere"), "{}", error(&settings));
}
