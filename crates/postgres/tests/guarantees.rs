//! Who may acknowledge a commit, and where commits are acknowledged too early, on real PostgreSQL.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{LIMIT, Node, any, bin_dirs, cluster, primary, running, until};
use postgres::{Error, Instance, SyncRule};
use types::{Lowered, MemberName, Millis, Replica};

/// A pg_receivewal that flushes at once, and calls itself so. It ends with its walsender.
struct Stranger {
    receiver: tokio::process::Child,
    _wal: tempfile::TempDir,
}

impl Stranger {
    fn start(bin_dir: &Path, of: &Node, name: &str) -> Stranger {
        let config = of.instance.config();
        let wal = tempfile::tempdir().unwrap();
        let conninfo = format!(
            "host=127.0.0.1 port={} user=replicator dbname=postgres application_name={name}",
            config.port
        );
        let mut command = tokio::process::Command::new(bin_dir.join("pg_receivewal"));
        command.args(["--synchronous", "--no-loop", "--no-password", "-d", &conninfo, "-D"]);
        command.arg(wal.path()).env("PGPASSWORD", "rep:\\pass").kill_on_drop(true);
        command.stderr(std::process::Stdio::null());
        Stranger { receiver: command.spawn().unwrap(), _wal: wal }
    }

    async fn ends(&mut self) {
        tokio::time::timeout(LIMIT.as_duration(), self.receiver.wait()).await.unwrap().unwrap();
    }
}

fn name(name: &str) -> BTreeSet<MemberName> {
    BTreeSet::from([name.into()])
}

/// The walsenders that PostgreSQL counts.
async fn counted(node: &Node) -> Vec<Replica> {
    let replicas = primary(node).await.replicas;
    replicas.into_iter().filter(|r| r.listed && r.streaming && r.flush.0 > 0).collect()
}

async fn counted_as(node: &Node, known: &[bool]) {
    until("the walsenders are there", async || {
        let mut seen: Vec<bool> = counted(node).await.iter().map(|r| r.known).collect();
        seen.sort_unstable();
        seen == known
    })
    .await;
}

const WALSENDER: &str = "select active_pid from pg_replication_slots where slot_name = 'b'";

#[tokio::test]
async fn a_stranger_with_the_name_of_a_member_is_not_counted_and_is_ended() {
    for bin_dir in bin_dirs() {
        let [a, b] = cluster(&bin_dir, ["a", "b"], &[]).await;
        a.instance.set_sync(&any(1, &[&b]), LIMIT).await.unwrap();
        counted_as(&a, &[true]).await;

        // Beside the member: only the stranger goes.
        let mut stranger = Stranger::start(&bin_dir, &a, "B");
        counted_as(&a, &[false, true]).await;
        let walsender = a.value(WALSENDER).await;
        a.instance.end_strangers(&name("B")).await.unwrap();
        stranger.ends().await;
        a.instance.end_strangers(&name("b")).await.unwrap();
        counted_as(&a, &[true]).await;
        assert_eq!(a.value(WALSENDER).await, walsender, "the member streams on");

        // In the member's place: PostgreSQL acknowledges by its word, and nothing of ours does.
        b.instance.follow(None).await.unwrap();
        until("the member is gone", async || counted(&a).await.is_empty()).await;
        let mut stranger = Stranger::start(&bin_dir, &a, "b");
        counted_as(&a, &[false]).await;
        assert!(a.begin("create table acknowledged_by_a_stranger ()").await.unwrap());
        let unconfirmed = a.instance.confirm_write(Millis(500)).await.unwrap_err();
        assert!(matches!(unconfirmed, Error::TimedOut { .. }), "{unconfirmed}");
        a.instance.end_strangers(&name("someone")).await.unwrap();
        counted_as(&a, &[false]).await;
        a.instance.end_strangers(&name("b")).await.unwrap();
        stranger.ends().await;
        b.instance.follow(Some(&a.upstream())).await.unwrap();
        counted_as(&a, &[true]).await;
        a.instance.confirm_write(LIMIT).await.unwrap();

        // Whoever is not counted is left alone.
        a.instance.set_sync(&SyncRule::Off, LIMIT).await.unwrap();
        let stranger = Stranger::start(&bin_dir, &a, "b");
        until("both stream", async || primary(&a).await.replicas.len() == 2).await;
        a.instance.end_strangers(&name("b")).await.unwrap();
        assert_eq!(primary(&a).await.replicas.len(), 2);
        drop(stranger);
    }
}

#[tokio::test]
async fn without_slots_a_name_that_two_carry_is_nobodys() {
    for bin_dir in bin_dirs() {
        let [a, b] = cluster(&bin_dir, ["a", "b"], &[]).await;
        for node in [&a, &b] {
            let mut config = (*node.instance.config()).clone();
            config.use_slots = false;
            node.instance.apply(config).await.unwrap();
        }
        a.instance.set_sync(&any(1, &[&b]), LIMIT).await.unwrap();
        until("the slot is not used", async || a.value(WALSENDER).await.is_empty()).await;
        counted_as(&a, &[true]).await;
        let mut stranger = Stranger::start(&bin_dir, &a, "b");
        counted_as(&a, &[false, false]).await;
        a.instance.end_strangers(&name("b")).await.unwrap();
        stranger.ends().await;
        counted_as(&a, &[true]).await;
    }
}

const LOWER: &str = "\
    create role app; create role \"Fine\"; create database reports; \
    create function hasty() returns void language sql set synchronous_commit = off as ''; \
    alter role app set synchronous_commit = off; \
    alter role \"Fine\" set synchronous_commit = remote_apply; \
    alter database reports set synchronous_commit = 'Local'; \
    alter role \"Fine\" in database reports set synchronous_commit to remote_write; \
    alter role all set synchronous_commit = false";

#[tokio::test]
async fn places_that_lower_synchronous_commit_are_found() {
    for bin_dir in bin_dirs() {
        let [a, b] = cluster(&bin_dir, ["a", "b"], &[]).await;
        assert_eq!(running(&a).await.server.lowered, BTreeSet::new());
        for statement in LOWER.split("; ") {
            a.sql(statement).await;
        }
        let text = str::to_owned;
        let mut wanted = BTreeSet::from([
            Lowered::Role(text("app")),
            Lowered::Role(text("ALL")),
            Lowered::Database(text("reports")),
            Lowered::RoleInDatabase(text("Fine"), text("reports")),
            Lowered::Function(text("public.hasty()")),
            Lowered::Server,
        ]);
        // A reload is a reason to look at once.
        for value in ["off", "on"] {
            let mut config = (*a.instance.config()).clone();
            config.parameters.insert(text("synchronous_commit"), text(value));
            assert!(a.instance.apply(config).await.unwrap());
            until("they are found", async || running(&a).await.server.lowered == wanted).await;
            wanted.remove(&Lowered::Server);
        }
        assert_eq!(running(&b).await.server.lowered, BTreeSet::new(), "a standby commits nothing");
    }
}
