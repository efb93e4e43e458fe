//! A server that wants TLS and a client's certificate, with one self-signed certificate for all:
//! our own connections, the copy and the stream to a standby.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{LIMIT, Node, bin_dirs, new_primary, new_standby, os_user, own_slot, streaming};
use postgres::{Instance, InstanceConfig, PromotePlan, Secret, StartAs, StopMode, SyncRule};
use types::Timeline;

/// What keys are encrypted with.
const KEY_PASSWORD: &str = "it's a key = password";

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
        made.encrypt("one");
        made
    }

    /// The same key, with a password.
    fn encrypt(&self, name: &str) {
        let encrypted = self.path(&format!("{name}-locked.key"));
        let done = Command::new("openssl")
            .args(["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout"])
            .arg(format!("pass:{KEY_PASSWORD}"))
            .arg("-in")
            .arg(self.path(&format!("{name}.key")))
            .arg("-out")
            .arg(&encrypted)
            .output();
        assert!(done.unwrap().status.success());
        std::fs::copy(self.path(&format!("{name}.crt")), self.path(&format!("{name}-locked.crt")))
            .unwrap();
        std::fs::set_permissions(&encrypted, std::fs::Permissions::from_mode(0o600)).unwrap();
        if let Some(user) = os_user() {
            std::os::unix::fs::chown(&encrypted, Some(user.uid), Some(user.gid)).unwrap();
        }
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
                role.sslpassword = shows.ends_with("-locked").then(|| Secret::new(KEY_PASSWORD));
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

/// A key with a password: for our own connections, pg_basebackup, the stream and pg_rewind.
#[tokio::test]
async fn a_locked_key_opens_every_connection_and_its_password_is_in_no_argument() {
    let certificates = Certificates::make();
    for bin_dir in bin_dirs().into_iter().filter(|dir| knows_tls(dir)) {
        let a = certificates.node("node-a", &bin_dir, "one-locked", "one");
        let b = certificates.node("node-b", &bin_dir, "one-locked", "one");
        new_primary(&a).await;
        new_standby(&b, &a).await;
        b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        a.instance.stop(StopMode::Fast, LIMIT).await.unwrap();
        let plan = PromotePlan { timeline: Timeline(2), sync: SyncRule::Off };
        b.instance.promote(plan, LIMIT).await.unwrap();
        b.instance.checkpoint().await.unwrap();
        b.instance.change_slots(&[own_slot(&a)]).await.unwrap();
        a.instance.rewind_from(&b.upstream()).await.unwrap();
        let config = a.instance.config();
        let service = config.pgpass.with_file_name("pgpass.service");
        let mode = std::fs::metadata(&service).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        a.start(StartAs::Standby { upstream: Some(b.upstream()) }).await;
        streaming(&a).await;

        // Without the password the key does not open.
        let stranger = certificates.node("node-c", &bin_dir, "one-locked", "one");
        let mut changed = (*stranger.instance.config()).clone();
        changed.replication.sslpassword = Some(Secret::new("wr0ng"));
        stranger.instance.apply(changed).await.unwrap();
        let refused = stranger.instance.clone_from(Some(&b.upstream()), None, |_| {}).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("key file") && !refused.contains("wr0ng"), "{refused}");
    }
}
