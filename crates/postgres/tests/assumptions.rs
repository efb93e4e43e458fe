//! What the simulator and the agent believe of PostgreSQL, proved on real ones.
//!
//! `A…` are the assumptions of the simulated PostgreSQL (`crates/sim/src/postgres.rs`), `B…` those
//! on which the agent's own steps stand. One test each, named as its assumption, run with every
//! version of `common::bin_dirs`. A15 is of the guard, which no PostgreSQL takes part in: it is not
//! here.
//!
//! Processes are frozen (SIGSTOP) to hold PostgreSQL in the moment that an assumption is about.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{
    LIMIT, Node, any, bin_dirs, cluster, control, freeze, os_user, own_slot, pause, primary,
    running, signal, standby, streaming, thaw, until,
};
use postgres::{Error, Instance, PromotePlan, StartAs, Started, StopMode, SyncRule};
use rustix::process::Signal;
use types::{ControlState, Lsn, MemberName, Millis, Process, SlotChange, SyncNames, Timeline};

/// How long nothing is seen to happen before it is believed that it does not: several times the
/// interval after which a standby tries to connect again.
const REST_MS: u64 = 700;
/// Tries to meet a moment that lasts milliseconds.
const TRIES_MAX: u32 = 100;
/// Where a primary's log ends.
const FLUSHED: &str = "select pg_current_wal_flush_lsn()";
/// Whether a session of a client waits for standbys.
const WAITING: &str = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";

/// A rule that nobody fulfils.
fn nobody() -> SyncRule {
    let names = [MemberName("nobody".to_owned())].into();
    SyncRule::Any(SyncNames { number: 1, names })
}

fn follows(upstream: &Node) -> StartAs {
    StartAs::Standby { upstream: Some(upstream.upstream()) }
}

const ALONE: StartAs = StartAs::Standby { upstream: None };

async fn stop(node: &Node, mode: StopMode) {
    node.instance.stop(mode, LIMIT).await.unwrap();
}

/// A position that a statement gives.
async fn lsn(node: &Node, statement: &str) -> Lsn {
    Lsn::parse(&node.value(statement).await).unwrap()
}

async fn exists(node: &Node, table: &str) -> bool {
    node.value(&format!("select to_regclass('{table}') is not null")).await == "t"
}

/// Waits until a standby has replayed all that its primary has written.
async fn caught_up(node: &Node, of: &Node) {
    let end = lsn(of, FLUSHED).await;
    until("it catches up", async || standby(node).await.replayed >= end).await;
}

async fn waiting(node: &Node, number: usize) {
    until("sessions wait", async || node.value(WAITING).await == number.to_string()).await;
}

/// A stream of WAL on a primary that no session waits for; less than `wal_keep_size`.
fn load(node: &Node) -> tokio::task::JoinHandle<bool> {
    node.begin(
        "select pg_logical_emit_message(false, 'load', repeat('x', 60000)) \
         from generate_series(1, 500)",
    )
}

/// A1.
#[tokio::test]
async fn flushed_before_sent() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        a.sql("create table t (x int)").await;
        caught_up(&b, &a).await;
        for writer in ["walwriter", "background writer", "checkpointer"] {
            freeze(a.process(writer)).await;
        }
        a.sql("set synchronous_commit = off; insert into t values (1)").await;
        let look = "select (select max(sent_lsn) from pg_stat_replication) \
            <= pg_current_wal_flush_lsn() \
            and pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()";
        for _ in 0..10 {
            assert_eq!(a.value(look).await, "t", "written, not flushed, not sent");
            pause(20).await;
        }
        let count = "select count(*) from t";
        assert_eq!((a.value(count).await, b.value(count).await), ("1".into(), "0".into()));
        stop(&a, StopMode::Kill).await;
        a.start(StartAs::Primary).await;
        a.sql("create table later ()").await;
        streaming(&b).await;
        caught_up(&b, &a).await;
        assert_eq!((a.value(count).await, b.value(count).await), ("0".into(), "0".into()));
    }
}

/// A2.
#[tokio::test]
async fn backends_outlive_the_postmaster() {
    for dir in bin_dirs() {
        let [a] = cluster(&dir, ["a"], &[]).await;
        a.sql("create table t (x int)").await;
        // Between its commits it computes: only who waits for something notices the death.
        let writer = "do $$ begin for i in 1..1000000 loop insert into t values (i); commit; \
            raise notice '%', i; perform count(*) from generate_series(1, 20000); end loop; end $$";
        let (client, mut connection) = a.connection().connect(tokio_postgres::NoTls).await.unwrap();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let told = acknowledged.clone();
        tokio::spawn(async move {
            let mut next = async || std::future::poll_fn(|c| connection.poll_message(c)).await;
            while let Some(Ok(message)) = next().await {
                if let tokio_postgres::AsyncMessage::Notice(notice) = message {
                    told.store(notice.message().parse().unwrap(), Ordering::Relaxed);
                }
            }
        });
        let session = tokio::spawn(async move { client.simple_query(writer).await.is_ok() });
        let seen = || acknowledged.load(Ordering::Relaxed);
        until("it writes", async || seen() > 0).await;
        let exit = a.instance.postmaster_exit();
        signal(a.postmaster_pid(), Signal::KILL);
        exit.await;
        let before = seen();
        until("it goes on", async || seen() > before + 20).await;
        assert_eq!(a.instance.observe().await.process, Process::Orphaned);
        a.instance.end_orphans().await.unwrap();
        assert!(!session.await.unwrap());
        a.start(StartAs::Primary).await;
        let count: u64 = a.value("select count(*) from t").await.parse().unwrap();
        assert!(count >= seen(), "acknowledged by a backend without postmaster, and there");
    }
}

/// Freezes a standby's receiver while it holds something written and not flushed; what it has.
async fn freeze_before_flush(b: &Node, a: &Node) -> Lsn {
    let look = "select written_lsn from pg_stat_wal_receiver where written_lsn > flushed_lsn";
    let mut writer = load(a);
    for _ in 0..TRIES_MAX {
        if writer.is_finished() {
            writer = load(a);
        }
        pause(7).await;
        let receiver = b.process("walreceiver");
        freeze(receiver).await;
        if let [written] = b.sql(look).await.as_slice() {
            writer.abort();
            return Lsn::parse(written).unwrap();
        }
        thaw(receiver);
    }
    panic!("the receiver was never met with something unflushed");
}

/// A3.
#[tokio::test]
async fn a_receiver_flushes_before_it_exits() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[("fsync", "on")]).await;
        let written = freeze_before_flush(&b, &a).await;
        assert!(standby(&b).await.received < written);
        let receiver = b.process("walreceiver");
        let thawing = async {
            // Until then it has been told to go.
            pause(100).await;
            thaw(receiver);
        };
        let (stopped, ()) = tokio::join!(b.instance.stop_receiving(&SyncRule::Off, LIMIT), thawing);
        let (_, end) = stopped.unwrap();
        assert!(end >= written, "{end} {written}");
    }
}

/// A4.
#[tokio::test]
async fn a_restart_ends_a_synchronous_wait() {
    for dir in bin_dirs() {
        let [a] = cluster(&dir, ["a"], &[]).await;
        a.sql("create table t (x int)").await;
        a.instance.set_sync(&nobody(), LIMIT).await.unwrap();
        for (x, mode) in [(1, StopMode::Fast), (2, StopMode::Immediate), (3, StopMode::Kill)] {
            let commit = a.begin(&format!("insert into t values ({x})"));
            waiting(&a, 1).await;
            let visible = format!("select count(*) from t where x = {x}");
            assert_eq!(a.value(&visible).await, "0", "{mode:?}");
            stop(&a, mode).await;
            assert!(!commit.await.unwrap(), "acknowledged, {mode:?}");
            a.start(StartAs::Primary).await;
            assert_eq!(a.value(&visible).await, "1", "{mode:?}");
            assert_eq!(primary(&a).await.sync, nobody().names());
        }
    }
}

/// A5.
#[tokio::test]
async fn equal_timelines_hide_divergence() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        stop(&b, StopMode::Fast).await;
        b.start(StartAs::Primary).await;
        b.sql("create table only_b ()").await;
        stop(&b, StopMode::Fast).await;
        a.sql("create table only_a ()").await;
        load(&a).await.unwrap();
        // pg_rewind sees nothing to do.
        b.instance.rewind_from(&a.upstream()).await.unwrap();
        // And the stream is not refused: the copy confirms what it cannot replay. (When it comes
        // to replay it may notice a broken record; so that is held back, from before the stream
        // begins.)
        freeze(a.postmaster_pid()).await;
        b.start(follows(&a)).await;
        until("it connects", async || b.find_process("walreceiver").is_some()).await;
        freeze(b.process("startup")).await;
        thaw(a.postmaster_pid());
        a.instance.set_sync(&any(1, &[&b]), LIMIT).await.unwrap();
        assert!(a.begin("create table confirmed ()").await.unwrap());
        assert!(exists(&b, "only_b").await && !exists(&b, "only_a").await);
        assert!(!exists(&a, "only_b").await && !exists(&b, "confirmed").await);
        assert_eq!(primary(&a).await.timeline, Timeline(1));
        assert_eq!(standby(&b).await.timeline, Timeline(1));
    }
}

/// A6.
#[tokio::test]
async fn a_clean_stop_waits_for_standbys() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        let begin_stop = || {
            let instance = a.instance.clone();
            tokio::spawn(async move { instance.stop(StopMode::Fast, LIMIT).await })
        };
        let receiver = b.process("walreceiver");
        freeze(receiver).await;
        let stopping = begin_stop();
        let shut_down = async || control(&a).await.state == ControlState::ShutDown;
        until("the shutdown checkpoint", shut_down).await;
        pause(REST_MS).await;
        assert!(!stopping.is_finished() && a.find_process("walsender").is_some());
        thaw(receiver);
        stopping.await.unwrap().unwrap();
        let end = control(&a).await.end;
        until("it has all", async || standby(&b).await.received >= end).await;

        let mut config = (*a.instance.config()).clone();
        config.parameters.insert("wal_sender_timeout".into(), "1s".into());
        a.instance.apply(config).await.unwrap();
        a.start(StartAs::Primary).await;
        streaming(&b).await;
        freeze(b.process("walreceiver")).await;
        begin_stop().await.unwrap().unwrap();
        assert_eq!(control(&a).await.state, ControlState::ShutDown);
        assert!(standby(&b).await.received < control(&a).await.end, "it was dropped");
    }
}

/// A7.
#[tokio::test]
async fn who_releases_a_wait() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        a.sql("create table t (x int)").await;
        a.instance.set_sync(&nobody(), LIMIT).await.unwrap();
        let first = a.begin("insert into t values (1)");
        waiting(&a, 1).await;
        // One walsender alone reads the new rule: it releases, while everybody else has the old.
        let conf = a.instance.config().data_dir.join("postgresql.conf");
        let text = std::fs::read_to_string(&conf).unwrap();
        let (old, new) = (nobody().to_setting(), any(1, &[&b]).to_setting());
        assert!(text.contains(&old));
        std::fs::write(&conf, text.replace(&old, &new)).unwrap();
        signal(a.process("walsender"), Signal::HUP);
        assert!(first.await.unwrap());
        assert_eq!(a.value("show synchronous_standby_names").await, old);
        // The other way round: everybody but the one that decides has the new rule.
        a.instance.set_sync(&nobody(), LIMIT).await.unwrap();
        let walsender = a.process("walsender");
        freeze(walsender).await;
        let error = a.instance.set_sync(&any(1, &[&b]), Millis(REST_MS)).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        assert_eq!(a.value("show synchronous_standby_names").await, new);
        thaw(walsender);
        a.instance.set_sync(&any(1, &[&b]), LIMIT).await.unwrap();
        assert!(a.begin("insert into t values (2)").await.unwrap());
        // Whether anybody waits at all is the checkpointer's word.
        a.instance.set_sync(&nobody(), LIMIT).await.unwrap();
        let waits = [3, 4].map(|x| a.begin(&format!("insert into t values ({x})")));
        waiting(&a, 2).await;
        let checkpointer = a.process("checkpointer");
        freeze(checkpointer).await;
        a.instance.set_sync(&SyncRule::Off, LIMIT).await.unwrap();
        pause(REST_MS).await;
        assert!(!waits.iter().any(tokio::task::JoinHandle::is_finished));
        thaw(checkpointer);
        for wait in waits {
            assert!(wait.await.unwrap());
        }
    }
}

/// Freezes a session that commits, after its commit record was flushed by somebody else and before
/// it would wait for standbys. Its pid and its outcome to come.
async fn freeze_before_wait(a: &Node) -> (i32, tokio::task::JoinHandle<bool>) {
    let flushing = "select pid from pg_stat_activity where application_name = 'late' \
        and wait_event = 'WALWrite'";
    for x in 0..TRIES_MAX {
        // The first holds the lock of the log for `commit_delay`; the second waits for it.
        let leader = a.begin(&format!("insert into t values ({x})"));
        pause(30).await;
        let late = format!("set application_name = late; insert into t values (-{x})");
        let late = a.begin(&late);
        while !leader.is_finished() {
            if let [pid] = a.sql(flushing).await.as_slice() {
                let pid = pid.parse().unwrap();
                freeze(pid).await;
                assert!(leader.await.unwrap());
                if !late.is_finished() {
                    return (pid, late);
                }
                thaw(pid);
                break;
            }
        }
        assert!(late.await.unwrap());
    }
    panic!("no session was met while it waited for the log");
}

/// A8.
#[tokio::test]
async fn released_positions_stay_released() {
    for dir in bin_dirs() {
        let settings = [("fsync", "on"), ("commit_delay", "100000"), ("commit_siblings", "0")];
        let [a, b] = cluster(&dir, ["a", "b"], &settings).await;
        a.sql("create table t (x int)").await;
        a.instance.set_sync(&any(1, &[&b]), LIMIT).await.unwrap();
        let (pid, late) = freeze_before_wait(&a).await;
        // What the other session's commit released covers this one; a later rule changes nothing.
        caught_up(&b, &a).await;
        assert!(a.begin("insert into t values (0)").await.unwrap());
        stop(&b, StopMode::Fast).await;
        a.instance.set_sync(&nobody(), LIMIT).await.unwrap();
        let new = a.begin("insert into t values (0)");
        waiting(&a, 1).await;
        thaw(pid);
        assert!(late.await.unwrap(), "released long ago");
        waiting(&a, 1).await;
        assert!(!new.is_finished());
    }
}

/// A9.
#[tokio::test]
async fn promotion_replays_first() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        let startup = b.process("startup");
        freeze(startup).await;
        a.sql("create table t as select 1 as x").await;
        let end = lsn(&a, FLUSHED).await;
        until("it is received", async || standby(&b).await.received >= end).await;
        assert!(standby(&b).await.replayed < end);
        b.sql("select pg_promote(false)").await;
        thaw(startup);
        let recovers = "select pg_is_in_recovery()";
        until("the promotion", async || b.value(recovers).await == "f").await;
        assert_eq!(b.sql("select x from t").await, ["1"]);
        assert_eq!(b.find_process("walreceiver"), None);
        let seen = primary(&b).await;
        assert!(seen.timeline == Timeline(2) && seen.promoted_at >= end, "{seen:?}");
    }
}

/// A10.
#[tokio::test]
async fn the_received_position_is_not_known_at_first() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        a.sql("create table t ()").await;
        caught_up(&b, &a).await;
        assert_ne!(b.value("select pg_last_wal_receive_lsn()").await, "");
        stop(&b, StopMode::Fast).await;
        b.start(ALONE).await;
        assert_eq!(b.value("select pg_last_wal_receive_lsn()").await, "");
        let seen = standby(&b).await;
        assert!(seen.received == seen.replayed && seen.replayed > Lsn(0));
    }
}

/// A11.
#[tokio::test]
async fn pg_control_of_a_standby_lags() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        a.sql("create table t as select generate_series(1, 100) as x").await;
        caught_up(&b, &a).await;
        assert!(control(&b).await.end < standby(&b).await.replayed);
        b.sql("select pg_wal_replay_pause()").await;
        let state = "select pg_get_wal_replay_pause_state()";
        until("the pause", async || b.value(state).await == "paused").await;
        a.sql("insert into t values (0)").await;
        let end = lsn(&a, FLUSHED).await;
        until("it is received", async || standby(&b).await.received >= end).await;
        let seen = standby(&b).await;
        assert!(seen.replayed < end);
        stop(&b, StopMode::Fast).await;
        let control = control(&b).await;
        assert_eq!(control.state, ControlState::ShutDownInRecovery);
        assert_eq!(control.end, seen.replayed);
    }
}

/// A12. From PostgreSQL 16 on pg_rewind is not misled any more; `pg_control` still is behind.
#[tokio::test]
async fn a_promotion_is_in_pg_control_after_its_checkpoint() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        a.sql("create table only_a ()").await;
        stop(&a, StopMode::Fast).await;
        let checkpointer = b.process("checkpointer");
        freeze(checkpointer).await;
        b.sql("select pg_promote(false)").await;
        let recovers = "select pg_is_in_recovery()";
        until("the promotion", async || b.value(recovers).await == "f").await;
        let seen = primary(&b).await;
        assert_eq!((seen.timeline, seen.checkpoint_done), (Timeline(2), false));
        assert_eq!(control(&b).await.timeline, Timeline(1));
        let slots = [SlotChange::Create { name: "a".to_owned() }];
        b.instance.change_slots(&slots).await.unwrap();
        a.instance.rewind_from(&b.upstream()).await.unwrap();
        let misled = a.instance.programs().major < 16;
        a.start(if misled { ALONE } else { follows(&b) }).await;
        assert_eq!(exists(&a, "only_a").await, misled);
        stop(&a, StopMode::Fast).await;
        thaw(checkpointer);
        b.instance.checkpoint().await.unwrap();
        assert!(primary(&b).await.checkpoint_done);
        assert_eq!(control(&b).await.timeline, Timeline(2));
        if misled {
            a.instance.rewind_from(&b.upstream()).await.unwrap();
            a.start(follows(&b)).await;
            assert!(!exists(&a, "only_a").await);
        }
    }
}

/// A13.
#[tokio::test]
async fn standby_signal_wins() {
    for dir in bin_dirs() {
        let [a] = cluster(&dir, ["a"], &[]).await;
        a.sql("create table t as select 1 as x").await;
        let end = lsn(&a, FLUSHED).await;
        stop(&a, StopMode::Kill).await;
        assert_eq!(control(&a).await.state, ControlState::InProduction);
        a.start(ALONE).await;
        let seen = standby(&a).await;
        assert!(seen.replayed >= end && seen.timeline == Timeline(1), "{seen:?}");
        assert_eq!(a.sql("select x from t").await, ["1"]);
    }
}

/// A14: what a slot holds is kept; the simulator assumes that slots are there.
#[tokio::test]
async fn no_record_is_recycled() {
    for dir in bin_dirs() {
        let settings = [("wal_keep_size", "0"), ("max_wal_size", "2MB"), ("min_wal_size", "2MB")];
        let [a, b] = cluster(&dir, ["a", "b"], &settings).await;
        caught_up(&b, &a).await;
        stop(&b, StopMode::Fast).await;
        for _ in 0..2 {
            load(&a).await.unwrap();
            a.instance.checkpoint().await.unwrap();
        }
        a.sql("create table t ()").await;
        b.start(follows(&a)).await;
        streaming(&b).await;
        caught_up(&b, &a).await;
        assert!(exists(&b, "t").await);
        // The twin: without the slot it is recycled.
        stop(&b, StopMode::Fast).await;
        a.sql("select pg_drop_replication_slot('b')").await;
        load(&a).await.unwrap();
        a.instance.checkpoint().await.unwrap();
        a.sql("select pg_create_physical_replication_slot('b')").await;
        b.start(follows(&a)).await;
        until("it is refused", async || b.log().contains("has already been removed")).await;
    }
}

/// A16. The half second is asked of the quickest of three: the machine may be busy.
#[tokio::test]
async fn a_standbys_process_group_ends_with_its_postmaster() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        let mut quickest = Duration::MAX;
        for _ in 0..3 {
            // It has something to replay.
            let writer = load(&a);
            pause(50).await;
            let exit = b.instance.postmaster_exit();
            signal(b.postmaster_pid(), Signal::KILL);
            exit.await;
            let begun = Instant::now();
            let gone = ["startup", "walreceiver"];
            until("they go", async || !gone.iter().any(|p| b.find_process(p).is_some())).await;
            quickest = quickest.min(begun.elapsed());
            b.instance.end_orphans().await.unwrap();
            writer.await.unwrap();
            b.start(follows(&a)).await;
            streaming(&b).await;
        }
        eprintln!("startup process and receiver were gone after {quickest:?}");
        assert!(quickest < Duration::from_millis(500), "{quickest:?}");
    }
}

/// A17.
#[tokio::test]
async fn a_slot_admits_one_walsender() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        let walsender = a.process("walsender");
        freeze(walsender).await;
        stop(&b, StopMode::Kill).await;
        b.start(follows(&a)).await;
        until("it is refused", async || b.log().contains("is active for PID")).await;
        // One that is refused is there for a moment, and streams nothing.
        let mut senders = primary(&a).await.replicas;
        senders.retain(|sender| sender.streaming);
        assert!(senders.len() == 1 && senders[0].name == "b", "{senders:?}");
        thaw(walsender);
        streaming(&b).await;
        assert_eq!(primary(&a).await.replicas.len(), 1);
        assert_ne!(a.process("walsender"), walsender);
        // Without its slot it does not stream.
        stop(&b, StopMode::Fast).await;
        let inactive = "select count(*) from pg_replication_slots where not active";
        until("the slot is free", async || a.value(inactive).await == "1").await;
        a.sql("select pg_drop_replication_slot('b')").await;
        b.start(follows(&a)).await;
        until("it is refused", async || b.log().contains("does not exist")).await;
        assert!(!primary(&a).await.replicas.iter().any(|sender| sender.streaming));
    }
}

/// Starts the server as it stands on disk, without a word of the agent.
fn start_by_hand(node: &Node, bin_dir: &Path) {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(bin_dir.join("postgres"));
    command.arg("-D").arg(&node.instance.config().data_dir).current_dir("/");
    if let Some(user) = os_user() {
        command.uid(user.uid).gid(user.gid);
    }
    let null = std::process::Stdio::null;
    command.stdin(null()).stdout(null()).stderr(null());
    // The node ends it.
    drop(command.spawn().unwrap());
}

/// B1: a member that pledged acknowledges nothing to the old leader any more, over a restart too.
#[tokio::test]
async fn a_pledged_standby_does_not_reconnect_after_its_restart() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        let (_, end) = b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        stop(&b, StopMode::Kill).await;
        std::fs::remove_file(b.instance.config().data_dir.join("postmaster.pid")).unwrap();
        start_by_hand(&b, &dir);
        running(&b).await;
        a.sql("create table later ()").await;
        pause(REST_MS).await;
        let seen = standby(&b).await;
        assert_eq!((seen.received, seen.receiver, seen.upstream), (end, None, None));
        assert!(primary(&a).await.replicas.is_empty());
    }
}

/// B2: PostgreSQL takes the number after the last history file that follows without a gap. So does
/// whoever restores from the archive, which therefore gets all of them.
#[tokio::test]
async fn a_promotion_takes_the_reserved_timeline() {
    let keep = "cp %p \"$(dirname %p)/../archived-%f\"";
    let archive = [("archive_mode", "on"), ("archive_command", keep)];
    for dir in bin_dirs() {
        let [a, b, c] = cluster(&dir, ["a", "b", "c"], &archive).await;
        a.sql("create table t ()").await;
        caught_up(&b, &a).await;
        for node in [&b, &c] {
            node.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        }
        let plan = PromotePlan { timeline: Timeline(5), sync: SyncRule::Off };
        assert_eq!(b.instance.promote(plan, LIMIT).await.unwrap(), Timeline(5));
        let archived =
            |n| b.instance.config().data_dir.join(format!("archived-0000000{n}.history")).exists();
        until("the archive", async || (2..=5).all(archived)).await;
        let slots = [SlotChange::Create { name: "c".to_owned() }];
        b.instance.change_slots(&slots).await.unwrap();
        c.instance.follow(Some(&b.upstream())).await.unwrap();
        let seen = streaming(&c).await;
        b.sql("create table of_5 ()").await;
        caught_up(&c, &b).await;
        assert!(exists(&c, "of_5").await && seen.upstream == Some(b.upstream()));
        assert_eq!(standby(&c).await.timeline, Timeline(5));
        // The twin: a number behind a gap is not seen.
        c.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        let wal = c.instance.config().data_dir.join("pg_wal");
        std::fs::copy(wal.join("00000005.history"), wal.join("00000008.history")).unwrap();
        c.sql("select pg_promote(false)").await;
        let recovers = "select pg_is_in_recovery()";
        until("the promotion", async || c.value(recovers).await == "f").await;
        assert_eq!(primary(&c).await.timeline, Timeline(6));
    }
}

/// B3: once `set_sync` has said that all sessions took the rule over, a commit waits for whom it
/// names and for nobody else.
#[tokio::test]
async fn a_synchronous_wait_honours_the_rule_that_was_taken_over() {
    for dir in bin_dirs() {
        let [a, b, c] = cluster(&dir, ["a", "b", "c"], &[]).await;
        a.sql("create table t (x int)").await;
        for (needed, other) in [(&b, &c), (&c, &b), (&b, &c)] {
            a.instance.set_sync(&any(1, &[needed]), LIMIT).await.unwrap();
            let receiver = needed.process("walreceiver");
            freeze(receiver).await;
            let commit = a.begin("insert into t values (1)");
            waiting(&a, 1).await;
            caught_up(other, &a).await;
            pause(REST_MS / 3).await;
            assert!(!commit.is_finished(), "{} alone has it", other.name());
            thaw(receiver);
            assert!(commit.await.unwrap());
            freeze(other.process("walreceiver")).await;
            assert!(a.begin("insert into t values (2)").await.unwrap());
            thaw(other.process("walreceiver"));
        }
    }
}

/// B4: where a standby ends when its receiver is gone is where it stays.
#[tokio::test]
async fn a_flush_position_is_final_once_the_receiver_is_gone() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        let writer = load(&a);
        pause(100).await;
        let (timeline, end) = b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        assert_eq!(timeline, Timeline(1));
        let at_rest = standby(&b).await;
        assert_eq!(at_rest.received, end);
        writer.await.unwrap();
        pause(REST_MS).await;
        assert_eq!(standby(&b).await, at_rest);
        assert!(primary(&a).await.flush > end, "there was more to receive");
        stop(&b, StopMode::Kill).await;
        b.start(ALONE).await;
        // It answers once it is consistent, and replays what lies beyond that afterwards.
        let back = async || standby(&b).await.replayed >= at_rest.replayed;
        until("it replays what it had", back).await;
        pause(REST_MS).await;
        assert_eq!(standby(&b).await.replayed, at_rest.replayed);
    }
}

/// B5.
#[tokio::test]
async fn pg_rewind_brings_a_diverged_copy_back() {
    for dir in bin_dirs() {
        let [a, b] = cluster(&dir, ["a", "b"], &[]).await;
        a.sql("create table t as select generate_series(1, 1000) as x").await;
        caught_up(&b, &a).await;
        b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        a.sql("create table only_a (); update t set x = -x").await;
        stop(&a, StopMode::Kill).await;
        let plan = PromotePlan { timeline: Timeline(2), sync: SyncRule::Off };
        b.instance.promote(plan, LIMIT).await.unwrap();
        b.sql("create table only_b (); update t set x = x + 1").await;
        b.instance.checkpoint().await.unwrap();
        let slots = [SlotChange::Create { name: "a".to_owned() }];
        b.instance.change_slots(&slots).await.unwrap();
        a.instance.rewind_from(&b.upstream()).await.unwrap();
        a.start(follows(&b)).await;
        streaming(&a).await;
        caught_up(&a, &b).await;
        assert!(exists(&a, "only_b").await && !exists(&a, "only_a").await);
        let sum = "select sum(x) from t";
        assert_eq!((a.value(sum).await, b.value(sum).await), ("501500".into(), "501500".into()));
    }
}

/// B6: `restart_after_crash = off`.
#[tokio::test]
async fn a_killed_backend_ends_the_postmaster() {
    for dir in bin_dirs() {
        let [a] = cluster(&dir, ["a"], &[]).await;
        let session = a.begin("select pg_sleep(60)");
        let sleeping = "select pid from pg_stat_activity where wait_event = 'PgSleep'";
        until("it sleeps", async || !a.sql(sleeping).await.is_empty()).await;
        let exit = a.instance.postmaster_exit();
        signal(a.value(sleeping).await.parse().unwrap(), Signal::KILL);
        exit.await;
        until("all are gone", async || a.instance.processes().unwrap().is_empty()).await;
        assert!(!session.await.unwrap());
        pause(REST_MS).await;
        assert_eq!(a.instance.observe().await.process, Process::Stopped);
        assert_eq!(control(&a).await.state, ControlState::InProduction);
    }
}

/// B7: a copy is replaced by one of a primary only, or of a standby while its leader is a primary.
/// What was the leader when an agent decided may be a standby once a disk that hung lets the
/// programs begin (simulator, seed 9104, fences alone).
#[tokio::test]
async fn nothing_is_copied_from_what_is_something_else_by_then() {
    for dir in bin_dirs() {
        let [a, b, c] = cluster(&dir, ["a", "b", "c"], &[]).await;
        a.sql("create table t ()").await;
        caught_up(&b, &a).await;
        stop(&c, StopMode::Kill).await;
        let ends = async || {
            let control = control(&c).await;
            (control.timeline, control.checkpoint, control.end)
        };
        let before = ends().await;
        let refusals = [
            c.instance.rewind_from(&b.upstream()).await.unwrap_err().to_string(),
            c.instance.clone_from(Some(&b.upstream()), None, |_| {}).await.unwrap_err().to_string(),
        ];
        for refusal in refusals {
            assert!(refusal.contains("server is in hot standby mode"), "{refusal}");
        }
        assert_eq!(ends().await, before, "the copy is as it was");
        // Nor from a primary that is taken for a standby, or for a leader that is none.
        let (of_a, of_b) = (a.upstream(), b.upstream());
        for (from, leader, words) in [
            (&of_a, &of_a, "server is not in hot standby mode"),
            (&of_b, &of_b, "is no primary any more"),
        ] {
            let copied = c.instance.clone_from(Some(from), Some(leader), |_| {}).await;
            let refusal = copied.unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal}");
        }
        assert_eq!(ends().await, before, "the copy is as it was");
        c.instance.clone_from(Some(&of_b), Some(&of_a), |_| {}).await.unwrap();
        c.instance.clone_from(Some(&of_a), None, |_| {}).await.unwrap();
    }
}

/// A19: pg_rewind notes the source's insert position as what the copy must replay, but copies only
/// what was written. The copy is consistent once it has the rest, from whoever leads by then.
#[tokio::test]
async fn a_rewound_copy_becomes_consistent_under_the_next_leader() {
    for dir in bin_dirs() {
        let [a, b, c] = cluster(&dir, ["a", "b", "c"], &[]).await;
        let slots = [&a, &c].map(own_slot);
        c.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        let lead = async |node: &Node, timeline| {
            node.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
            let plan = PromotePlan { timeline, sync: SyncRule::Off };
            node.instance.promote(plan, LIMIT).await.unwrap();
            node.instance.checkpoint().await.unwrap();
            node.instance.change_slots(&slots).await.unwrap();
        };
        b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        a.sql("create table only_a ()").await;
        stop(&a, StopMode::Kill).await;
        lead(&b, Timeline(2)).await;
        c.instance.follow(Some(&b.upstream())).await.unwrap();
        streaming(&c).await;

        let writer = b.process("walwriter");
        freeze(writer).await;
        b.sql("set synchronous_commit = off; create table only_b ()").await;
        a.instance.rewind_from(&b.upstream()).await.unwrap();
        thaw(writer);
        assert_eq!(a.instance.log_ends_at_control().await, Some(true));
        let started = a.instance.start(ALONE, LIMIT).await.unwrap();
        assert_eq!(started, Started::Recovering, "{}", a.log());
        stop(&a, StopMode::Kill).await;
        assert!(control(&a).await.unfinished_rewind);
        assert_eq!(a.instance.log_ends_at_control().await, Some(true));

        b.sql("create table b_wrote_it ()").await;
        caught_up(&c, &b).await;
        stop(&b, StopMode::Kill).await;
        lead(&c, Timeline(3)).await;
        a.start(follows(&c)).await;
        assert_eq!(streaming(&a).await.timeline, Timeline(3));
        caught_up(&a, &c).await;
        assert!(!control(&a).await.unfinished_rewind);
        assert_eq!(a.instance.log_ends_at_control().await, None);
        // A restart point after more was replayed puts the minimum recovery end past a checkpoint.
        c.instance.checkpoint().await.unwrap();
        c.sql("create table more ()").await;
        caught_up(&a, &c).await;
        a.sql("checkpoint").await;
        c.sql("create table yet_more ()").await;
        caught_up(&a, &c).await;
        stop(&a, StopMode::Kill).await;
        let seen = control(&a).await;
        assert!(seen.end > seen.checkpoint, "{seen:?}");
        assert_eq!(a.instance.log_ends_at_control().await, Some(false), "it received more since");
        a.start(follows(&c)).await;
        assert!(exists(&a, "only_b").await && !exists(&a, "only_a").await);
    }
}
