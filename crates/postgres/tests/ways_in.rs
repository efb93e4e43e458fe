//! How roles log in as it is found in the field: passwords kept as MD5, no passwords, and by who
//! the operating system says they are.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{LIMIT, Node, bin_dirs, new_primary, new_standby, own_slot, primary, streaming};
use postgres::{Instance, InstanceConfig, PromotePlan, StartAs, StopMode, SyncRule};
use types::Timeline;

/// Two members with this change to their configuration. The second takes over, and the first comes
/// back by pg_rewind: each kind of connection is made.
async fn a_life(bin_dir: &Path, prepare: &str, change: impl Fn(&mut InstanceConfig)) {
    let a = Node::changed("node-a", bin_dir, &change);
    let b = Node::changed("node-b", bin_dir, &change);
    new_primary(&a).await;
    a.sql(prepare).await;
    new_standby(&b, &a).await;
    a.instance.leader_history(&b.upstream()).await.expect_err("a standby is no leader");
    b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
    a.sql("CREATE TABLE lost (x int)").await;
    a.instance.stop(StopMode::Immediate, LIMIT).await.unwrap();
    let plan = PromotePlan { timeline: Timeline(2), sync: SyncRule::Off };
    b.instance.promote(plan, LIMIT).await.unwrap();
    b.instance.checkpoint().await.unwrap();
    b.instance.change_slots(&[own_slot(&a)]).await.unwrap();
    let (timeline, _) = a.instance.leader_history(&b.upstream()).await.unwrap();
    assert_eq!(timeline, Timeline(2));
    a.instance.rewind_from(&b.upstream()).await.unwrap();
    a.start(StartAs::Standby { upstream: Some(b.upstream()) }).await;
    assert_eq!(streaming(&a).await.timeline, Timeline(2));
    assert_eq!(primary(&b).await.replicas.len(), 1);
}

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[tokio::test]
async fn passwords_kept_as_md5() {
    let prepare = "SET password_encryption = 'md5'; \
        ALTER ROLE postgres PASSWORD 'super '' secret'; \
        ALTER ROLE replicator PASSWORD E'rep:\\\\pass'; \
        ALTER ROLE rewind_user PASSWORD 'rewind pass'; \
        DO $$ BEGIN ASSERT (SELECT count(*) FROM pg_authid WHERE rolpassword LIKE 'md5%') = 3; \
        END $$";
    for bin_dir in bin_dirs() {
        a_life(&bin_dir, prepare, |config| {
            config.pg_hba = lines(&[
                "local all all md5",
                "host all all 127.0.0.1/32 md5",
                "host replication all 127.0.0.1/32 md5",
            ]);
        })
        .await;
    }
}

#[tokio::test]
async fn no_passwords_at_all() {
    for bin_dir in bin_dirs() {
        a_life(&bin_dir, "SELECT 1", |config| {
            for role in [&mut config.superuser, &mut config.replication, &mut config.rewind] {
                role.password = None;
            }
            config.use_unix_socket = false;
            config.pg_hba = lines(&[
                "local all all trust",
                "host all all 127.0.0.1/32 trust",
                "host replication all 127.0.0.1/32 trust",
            ]);
        })
        .await;
    }
}

/// Who the server says that the other end of a socket is.
fn own_name() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let own = users.find(|fields| fields.get(2) == Some(&uid.as_str())).unwrap();
    own[0].to_owned()
}

#[tokio::test]
async fn the_superuser_is_who_the_operating_system_says() {
    let own = own_name();
    for bin_dir in bin_dirs() {
        a_life(&bin_dir, "SELECT 1", |config| {
            config.superuser.password = None;
            config.pg_hba = lines(&[
                "local all postgres peer map=agents",
                "host all rewind_user 127.0.0.1/32 scram-sha-256",
                "host replication replicator 127.0.0.1/32 scram-sha-256",
            ]);
            config.pg_ident = vec![format!("agents {own} postgres")];
        })
        .await;
    }
}
