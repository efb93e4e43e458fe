//! User, password and token.

use std::process::Command;

use dcs::{Client, ClientConfig, ClusterStore, Refusal};
use types::Millis;

use crate::support::Etcd;

fn etcdctl(url: &str, arguments: &[&str]) {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", url])
        .args(arguments)
        .output();
    let output = output.expect("etcdctl: `tools/install-test.sh` installs it");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn client(url: &str, password: Option<&str>) -> Client {
    let mut config = ClientConfig::new(vec![url.to_owned()], Millis(3000));
    config.username = password.map(|_| "root".to_owned());
    config.password = password.map(str::to_owned);
    Client::connect(config).unwrap()
}

#[tokio::test]
async fn a_token_is_got_used_and_renewed() {
    let mut etcd = Etcd::start(1).await;
    let url = etcd.client(3000).preferred_endpoint();
    let known = client(&url, Some("secret"));
    // Credentials do no harm while authentication is off.
    known.put("/x", b"1".to_vec(), 0).await.unwrap();
    etcdctl(&url, &["user", "add", "root:secret"]);
    etcdctl(&url, &["user", "grant-role", "root", "root"]);
    etcdctl(&url, &["auth", "enable"]);

    for stranger in [None, Some("wrong")] {
        let error = client(&url, stranger).put("/x", Vec::new(), 0).await.unwrap_err();
        assert_eq!(error.refusal(), Some(Refusal::Authentication), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    known.put("/x", b"2".to_vec(), 0).await.unwrap();
    let store = ClusterStore::new(known.clone(), "/");
    let _follower = store.follow();
    store.subscribe().wait_for(|s| s.fresh).await.unwrap();
    let lease = known.lease_grant(Millis(10_000)).await.unwrap().lease;
    known.lease_keep_alive_once(lease).await.unwrap();

    // A restarted member has forgotten the tokens it gave out.
    etcd.kill(0);
    etcd.restart(0);
    etcd.wait_ready_for(&client(&url, Some("secret"))).await;
    let header = known.put("/x", b"3".to_vec(), 0).await.unwrap();
    store.wait_revision(header.revision, Millis(3000)).await.unwrap();
    store.subscribe().wait_for(|s| s.fresh).await.unwrap();
}
