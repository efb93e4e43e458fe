//! A server that wants TLS and a client's certificate, with one self-signed certificate for all:
//! our own connections, the copy and the stream to a standby.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Node, bin_dirs, new_primary, new_standby, os_user};
use postgres::{Instance, InstanceConfig};

/// Certificates that PostgreSQL's user may read.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn make() -> Certificates {
        let made = Certificates(tempfile::tempdir_in("/tmp").unwrap());
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(made.0.path(), all).unwrap();
        for name in ["one", "other"] {
            let done = Command::new("openssl")
                .args(["req", "-x509", "-new", "-nodes", "-newkey", "rsa:2048"])
                .args(["-subj", "/CN=batman", "-addext", "subjectAltName=IP:127.0.0.1"])
                .arg("-keyout")
                .arg(made.path(&format!("{name}.key")))
                .arg("-out")
                .arg(made.path(&format!("{name}.crt")))
                .output();
            assert!(done.unwrap().status.success());
            let key = made.path(&format!("{name}.key"));
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
            if let Some(user) = os_user() {
                std::os::unix::fs::chown(&key, Some(user.uid), Some(user.gid)).unwrap();
            }
        }
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A server that takes nothing but TLS, and roles that show a certificate.
    fn node(&self, name: &str, bin_dir: &Path, shows: &str, believes: &str) -> Node {
        let text = |file: &str| self.path(file).display().to_string();
        Node::changed(name, bin_dir, |config: &mut InstanceConfig| {
            config.use_unix_socket = false;
            for (name, value) in [
                ("ssl", "on".to_owned()),
                ("ssl_cert_file", text("one.crt")),
                ("ssl_key_file", text("one.key")),
                ("ssl_ca_file", text("one.crt")),
            ] {
                config.parameters.insert(name.to_owned(), value);
            }
            config.pg_hba = ["all", "replication"]
                .map(|what| {
                    format!("hostssl {what} all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca")
                })
                .to_vec();
            for role in [&mut config.superuser, &mut config.replication, &mut config.rewind] {
                role.connection.extend([
                    ("sslmode", "verify-full".to_owned()),
                    ("sslrootcert", text(&format!("{believes}.crt"))),
                    ("sslcert", text(&format!("{shows}.crt"))),
                    ("sslkey", text(&format!("{shows}.key"))),
                    ("channel_binding", "require".to_owned()),
                ]);
            }
        })
    }
}

/// Not every build does.
fn knows_tls(bin_dir: &Path) -> bool {
    let built = Command::new(bin_dir.join("pg_config")).arg("--configure").output().unwrap();
    let built = String::from_utf8_lossy(&built.stdout).into_owned();
    built.contains("with-openssl") || built.contains("with-ssl")
}

#[tokio::test]
async fn one_certificate_is_enough_and_another_is_not() {
    let certificates = Certificates::make();
    let able: Vec<PathBuf> = bin_dirs().into_iter().filter(|dir| knows_tls(dir)).collect();
    assert!(!able.is_empty(), "one PostgreSQL at least is built with TLS");
    for bin_dir in able {
        let a = certificates.node("node-a", &bin_dir, "one", "one");
        let b = certificates.node("node-b", &bin_dir, "one", "one");
        new_primary(&a).await;
        new_standby(&b, &a).await;
        for (shows, believes) in [("other", "one"), ("one", "other")] {
            let stranger = certificates.node("node-c", &bin_dir, shows, believes);
            let slots = BTreeSet::from(["node_b".to_owned()]);
            let refused = stranger.instance.fetch_slots(&a.upstream(), &slots, false).await;
            let refused = format!("{refused:?}");
            assert!(refused.contains("Connect {"), "{shows} {believes}: {refused}");
            let by_tls = ["fatal alert", "invalid peer certificate"];
            assert!(by_tls.iter().any(|word| refused.contains(word)), "{refused}");
        }
    }
}
