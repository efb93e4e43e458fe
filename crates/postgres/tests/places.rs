//! Configuration files outside of the data directory, programs with other names, further options
//! of pg_rewind, and what a file of Patroni's leaves to PostgreSQL.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{
    LIMIT, Node, bin_dirs, control, new_primary, new_standby, os_user, own_slot, standby, streaming,
};
use postgres::{Instance, InstanceConfig, PromotePlan, StartAs, StopMode, SyncRule};
use types::Timeline;

/// A directory that PostgreSQL's user may work in.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("pgh").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    if let Some(user) = os_user() {
        std::os::unix::fs::chown(dir.path(), Some(user.uid), Some(user.gid)).unwrap();
    }
    dir
}

/// The programs of `bin_dir`, and `postgres` by another name too.
fn programs(of: &Path) -> tempfile::TempDir {
    let dir = directory();
    let names =
        ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_waldump", "pg_controldata"];
    for name in names {
        std::os::unix::fs::symlink(of.join(name), dir.path().join(name)).unwrap();
    }
    std::os::unix::fs::symlink(of.join("postgres"), dir.path().join("postgres-mine")).unwrap();
    dir
}

fn node(name: &str, bin: &Path, etc: &Path, change: impl FnOnce(&mut InstanceConfig)) -> Node {
    Node::changed(name, bin, |config| {
        config.config_dir = Some(etc.to_owned());
        config.config_base_name = "main".to_owned();
        config.bin_name.insert("postgres", "postgres-mine".to_owned());
        change(config);
    })
}

#[tokio::test]
async fn a_members_life_with_files_elsewhere() {
    for bin_dir in bin_dirs() {
        let (bin, etc_a, etc_b) = (programs(&bin_dir), directory(), directory());
        let options = [("debug".to_owned(), None), ("dry-run".to_owned(), None)];
        let a = node("a", bin.path(), etc_a.path(), |c| c.rewind_options = options.to_vec());
        let b = node("b", bin.path(), etc_b.path(), |_| {});
        new_primary(&a).await;
        assert_eq!(
            PathBuf::from(a.value("SHOW config_file").await),
            etc_a.path().join("main.conf")
        );
        assert_eq!(PathBuf::from(a.value("SHOW hba_file").await), etc_a.path().join("pg_hba.conf"));
        let data_dir = a.instance.config().data_dir.clone();
        for name in ["main.conf", "main.base.conf", "pg_hba.conf"] {
            let copy = std::fs::read(data_dir.join(format!("{name}.backup"))).unwrap();
            assert_eq!(copy, std::fs::read(etc_a.path().join(name)).unwrap(), "{name}");
        }
        new_standby(&b, &a).await;
        let base = |etc: &Path| std::fs::read(etc.join("main.base.conf")).unwrap();
        assert_eq!(base(etc_b.path()), base(etc_a.path()), "it came with the copy");
        assert_eq!(standby(&b).await.upstream, Some(a.upstream()), "read from where it stands");

        // The former primary ends in disorder with a write of its own, and is rewound.
        b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        a.sql("CREATE TABLE lost (x int)").await;
        a.instance.stop(StopMode::Immediate, LIMIT).await.unwrap();
        let plan = PromotePlan { timeline: Timeline(2), sync: SyncRule::Off };
        b.instance.promote(plan, LIMIT).await.unwrap();
        b.sql("CREATE TABLE kept (x int)").await;
        b.instance.checkpoint().await.unwrap();
        b.instance.change_slots(&[own_slot(&a)]).await.unwrap();
        a.instance.rewind_from(&b.upstream()).await.unwrap();
        assert!(control(&a).await.standby_signal);
        a.start(StartAs::Standby { upstream: Some(b.upstream()) }).await;
        streaming(&a).await;
        let tables = "SELECT relname FROM pg_class WHERE relname IN ('lost', 'kept')";
        common::until("the new leader's table", async || a.sql(tables).await == ["kept"]).await;
    }
}

#[tokio::test]
async fn a_missing_file_comes_back_from_its_copy() {
    let bin_dir = bin_dirs().remove(0);
    let (etc_a, etc_b, bin) = (directory(), directory(), programs(&bin_dir));
    let open = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n\
                host replication all 127.0.0.1/32 scram-sha-256\n";
    let unmanaged = |config: &mut InstanceConfig| config.pg_hba.clear();
    let a = node("a", bin.path(), etc_a.path(), unmanaged);
    std::fs::write(etc_a.path().join("pg_hba.conf"), open).unwrap();
    new_primary(&a).await;
    let b = node("b", bin.path(), etc_b.path(), unmanaged);
    new_standby(&b, &a).await;
    assert_eq!(std::fs::read_to_string(etc_b.path().join("pg_hba.conf")).unwrap(), open);
}

#[tokio::test]
async fn a_plain_file_of_patronis_leaves_sockets_and_words_as_they_were() {
    let bin_dir = bin_dirs().remove(0);
    let sockets = directory();
    let base = format!("unix_socket_directories = '{}'\n", sockets.path().display());
    let node = Node::changed("plain", &bin_dir, |config| {
        config.socket_directories = None;
        config.written_by = "Patroni";
        config.use_unix_socket = false;
    });
    new_primary(&node).await;
    let data_dir = node.instance.config().data_dir.clone();
    let text = std::fs::read_to_string(data_dir.join("postgresql.conf")).unwrap();
    let header = "# Do not edit this file manually!\n# It will be overwritten by Patroni!\n\
                  include 'postgresql.base.conf'\n\n";
    assert!(text.starts_with(header), "{text}");
    let hba = std::fs::read_to_string(data_dir.join("pg_hba.conf")).unwrap();
    assert!(hba.starts_with(&header[..header.find("include").unwrap()]), "{hba}");
    assert!(!text.contains("unix_socket_directories"), "{text}");
    // What the included file says about sockets holds.
    let path = data_dir.join("postgresql.base.conf");
    let included = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, included + &base).unwrap();
    node.instance.stop(StopMode::Fast, LIMIT).await.unwrap();
    node.start(StartAs::Primary).await;
    let socket = sockets.path().join(format!(".s.PGSQL.{}", node.instance.config().port));
    assert!(socket.exists());
}
