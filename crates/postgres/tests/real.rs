//! The life of a small cluster on a real PostgreSQL.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{
    LIMIT, Node, any, bin_dirs, control, freeze, new_primary, new_standby, own_slot, primary,
    running, standby, streaming, until,
};
use postgres::{HandOver, Instance, PromotePlan, StartAs, StopMode, SyncRule};
use types::{ControlState, DataDir, Lsn, Millis, PendingChange, Process, Timeline, Upstream};

#[tokio::test]
async fn a_failover_and_the_return_of_the_old_primary() {
    for bin_dir in bin_dirs() {
        let (a, b) = (Node::new("node-a", &bin_dir), Node::new("B.2", &bin_dir));
        let seen = a.instance.observe().await;
        assert_eq!((seen.data_dir, seen.process), (DataDir::Empty, Process::Stopped));
        new_primary(&a).await;
        files_and_roles(&a).await;
        compare_with_pg_controldata(&a, &bin_dir).await;
        new_standby(&b, &a).await;
        synchronous_commits(&a, &b).await;
        fence_and_promote(&a, &b).await;
        crash_and_return(&a, &b).await;
        other_operations(&a, &b).await;
    }
}

async fn files_and_roles(a: &Node) {
    let config = a.instance.config();
    let text = std::fs::read_to_string(config.data_dir.join("postgresql.conf")).unwrap();
    assert!(text.contains("include 'postgresql.base.conf'"));
    let kept = std::fs::read_to_string(config.data_dir.join(postgres::DYNAMIC_FILE)).unwrap();
    assert_eq!(kept, config.dynamic);
    assert!(!config.beside(".new").exists() && !config.socket_dir.join("pgherd-init").exists());
    assert_eq!(a.sql("show data_checksums").await, ["on"]);
    assert_eq!(a.sql("show restart_after_crash").await, ["off"]);
    let roles = a.sql("select rolname from pg_authid where rolpassword like 'SCRAM%' order by 1");
    assert_eq!(roles.await, ["postgres", "replicator", "rewind_user"]);
    let log = std::fs::read_to_string(config.state_dir.join("postgres.log")).unwrap();
    assert!(!log.contains("rep:") && !log.contains("rewind pass"), "I6: {log}");
    let error = a.instance.bootstrap(false).await.unwrap_err();
    assert!(error.to_string().contains("stop it first"), "{error}");
    let seen = running(a).await;
    assert!(seen.server.pending_restart.is_empty() && seen.server.version >= 140_000);
}

async fn compare_with_pg_controldata(a: &Node, bin_dir: &std::path::Path) {
    let dir = a.instance.config().data_dir.clone();
    let output = std::process::Command::new(bin_dir.join("pg_controldata"))
        .arg("-D")
        .arg(&dir)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let shown = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name));
        line.expect(name).split_once(':').unwrap().1.trim().to_owned()
    };
    let bytes = std::fs::read(dir.join("global/pg_control")).unwrap();
    let read = pgproto::control::ControlFile::parse(&bytes).unwrap();
    let pairs = [
        ("pg_control version number", read.pg_control_version.to_string()),
        ("Catalog version number", read.catalog_version.to_string()),
        ("Database system identifier", read.system_identifier.to_string()),
        ("Latest checkpoint location", read.checkpoint.to_string()),
        ("Latest checkpoint's REDO location", read.redo.to_string()),
        ("Latest checkpoint's TimeLineID", read.timeline.to_string()),
        ("Latest checkpoint's PrevTimeLineID", read.previous_timeline.to_string()),
        ("Minimum recovery ending location", read.min_recovery.to_string()),
        ("Min recovery ending loc's timeline", read.min_recovery_timeline.to_string()),
        ("max_connections setting", read.max_connections.to_string()),
        ("max_worker_processes setting", read.max_worker_processes.to_string()),
        ("max_wal_senders setting", read.max_wal_senders.to_string()),
        ("max_prepared_xacts setting", read.max_prepared_xacts.to_string()),
        ("max_locks_per_xact setting", read.max_locks_per_xact.to_string()),
        ("WAL block size", read.wal_block_size.to_string()),
        ("Bytes per WAL segment", read.wal_segment_size.to_string()),
        ("Data page checksum version", read.data_checksum_version.to_string()),
    ];
    for (name, value) in pairs {
        assert_eq!(shown(name), value, "{name}");
    }
    assert_eq!(shown("wal_log_hints setting"), "on");
    assert!(read.wal_log_hints && read.max_connections == 30);
}

async fn synchronous_commits(a: &Node, b: &Node) {
    a.instance.set_sync(&any(1, &[b]), LIMIT).await.unwrap();
    let seen = primary(a).await;
    assert_eq!(seen.sync, any(1, &[b]).names());
    assert_eq!(seen.timeline, Timeline(1));
    assert!(seen.checkpoint_done && seen.promoted_at == Lsn(0));
    let replica = seen.replicas.iter().find(|r| r.name == "B.2").unwrap();
    assert!(replica.streaming && replica.listed);
    let server = running(a).await.server;
    let sender = server.walsenders.iter().find(|sender| sender.application_name == "B.2").unwrap();
    let shown = [&sender.client_addr, &sender.state, &sender.sync_state];
    assert_eq!(shown.map(Option::as_deref), [Some("127.0.0.1"), Some("streaming"), Some("quorum")]);
    assert!(sender.usename.is_some() && sender.sync_priority == Some(1));
    a.instance.confirm_write(LIMIT).await.unwrap();
    a.sql("create table t as select 1 as x").await;
    let slot = running(a).await.server.slots.remove(0);
    assert_eq!((slot.name.as_str(), slot.active), ("b_2", true));
}

async fn fence_and_promote(a: &Node, b: &Node) {
    let begun = Instant::now();
    let (timeline, end) = b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
    eprintln!("stop_receiving took {:?}", begun.elapsed());
    let seen = standby(b).await;
    assert_eq!((timeline, end), (Timeline(1), seen.received));
    assert_eq!((seen.receiver, seen.upstream), (None, None));
    let error = a.instance.confirm_write(Millis(300)).await.unwrap_err();
    assert!(matches!(error, postgres::Error::TimedOut { .. }), "{error}");
    let waiting = "select count(*) from pg_stat_activity where application_name = 'pgherd confirm'";
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(a.sql(waiting).await, ["0"], "no session is left waiting");
    assert_eq!(standby(b).await.received, end, "nothing came after the pledge");
    let plan = PromotePlan { timeline: Timeline(5), sync: any(1, &[a]) };
    let begun = Instant::now();
    let taken = b.instance.promote(plan.clone(), LIMIT).await.unwrap();
    eprintln!("promote took {:?}", begun.elapsed());
    assert_eq!(taken, Timeline(5));
    assert_eq!(b.instance.promote(plan, LIMIT).await.unwrap(), Timeline(5));
    let seen = primary(b).await;
    assert_eq!((seen.timeline, seen.promoted_at), (Timeline(5), end));
    assert_eq!(seen.sync, any(1, &[a]).names());
    b.instance.confirm_write(Millis(200)).await.unwrap_err();
}

/// Kills the postmaster beside a backend that is busy and does not notice. It gives true when that
/// one has been ended.
async fn lose_postmaster(a: &Node) -> tokio::task::JoinHandle<bool> {
    let busy = "do $$ begin loop perform 1; end loop; end $$";
    let config = a.instance.config();
    let mut pg = tokio_postgres::Config::new();
    pg.host_path(&config.socket_dir).port(config.port).user("postgres");
    pg.password("super ' secret").dbname("postgres");
    let (client, connection) = pg.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let busy = tokio::spawn(async move { client.simple_query(busy).await.is_err() });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let exit = a.instance.postmaster_exit();
    let pid = rustix::process::Pid::from_raw(a.postmaster_pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    exit.await;
    assert_eq!(a.instance.observe().await.process, Process::Orphaned);
    busy
}

async fn crash_and_return(a: &Node, b: &Node) {
    let busy = lose_postmaster(a).await;
    a.instance.stop(StopMode::Fast, LIMIT).await.expect("there is no postmaster to wait for");
    assert_eq!(a.instance.observe().await.process, Process::Stopped);
    assert!(busy.await.unwrap());
    a.instance.start(StartAs::Primary, LIMIT).await.unwrap();
    let busy = lose_postmaster(a).await;
    let error = a.instance.start(StartAs::Primary, LIMIT).await.unwrap_err();
    assert!(error.to_string().contains("stop it first"), "{error}");
    a.instance.end_orphans().await.unwrap();
    assert_eq!(a.instance.observe().await.process, Process::Stopped);
    assert!(busy.await.unwrap());
    assert_eq!(control(a).await.state, ControlState::InProduction);

    b.instance.checkpoint().await.unwrap();
    assert!(primary(b).await.checkpoint_done);
    let (timeline, history) = a.instance.leader_history(&b.upstream()).await.unwrap();
    assert_eq!(timeline, Timeline(5));
    assert_eq!(history.first().unwrap().timeline, Timeline(1));
    b.instance.change_slots(&[own_slot(a)]).await.unwrap();
    // At the beginning of a segment an idle server's log ends before what it would insert next, and
    // a rewound copy waits for just that.
    b.sql("select pg_switch_wal()").await;
    let insert = b.value("select pg_current_wal_insert_lsn()").await;
    a.instance.rewind_from(&b.upstream()).await.unwrap();
    let written = format!("select pg_current_wal_insert_lsn() > '{insert}'");
    assert_eq!(b.value(&written).await, "t");
    assert!(control(a).await.standby_signal);
    let upstream = Some(b.upstream());
    a.instance.start(StartAs::Standby { upstream }, LIMIT).await.unwrap();
    let seen = streaming(a).await;
    assert_eq!(seen.timeline, Timeline(5));
    b.instance.confirm_write(LIMIT).await.unwrap();
    assert_eq!(a.sql("select x from t").await, ["1"]);
    let replica = &primary(b).await.replicas[0];
    assert!(replica.listed && replica.name == "node-a");
}

async fn other_operations(a: &Node, b: &Node) {
    // Let go, and taken up again without a restart.
    let started = running(a).await.server.started;
    a.instance.follow(None).await.unwrap();
    a.instance.follow(Some(&b.upstream())).await.unwrap();
    streaming(a).await;
    assert_eq!(running(a).await.server.started, started);
    // A second agent adopts the server: nothing is its child, nothing is restarted.
    let second = postgres::LocalInstance::new((*a.instance.config()).clone()).unwrap();
    assert!(matches!(second.observe().await.process, Process::Running(_)));
    assert!(second.reloaded_nothing().await);
    let mut config = (*second.config()).clone();
    config.parameters.insert("work_mem".into(), "7MB".into());
    config.parameters.insert("max_connections".into(), "31".into());
    assert!(second.apply(config.clone()).await.unwrap());
    let begun = Instant::now();
    while a.sql("show work_mem").await != ["7MB"] {
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let Process::Running(seen) = second.observe().await.process else {
        panic!("it runs");
    };
    // It stands on the command line, so PostgreSQL does not say it.
    let change = PendingChange { old_value: "30".into(), new_value: "31".into() };
    let pending = BTreeMap::from([("max_connections".to_owned(), change)]);
    assert_eq!(seen.server.pending_restart, pending);
    // What PostgreSQL would not start with does not reach its files.
    for (name, value) in [("foo", "1"), ("work_mem", "5kB"), ("timezone", "Mars"), ("x.y", "z")] {
        config.parameters.insert(name.into(), value.into());
    }
    assert!(second.apply(config).await.unwrap());
    let taken = second.config().parameters.clone();
    assert_eq!((taken.get("foo"), taken.get("timezone")), (None, None));
    // PostgreSQL 15 tells the range without its unit, which is that of a bare number.
    assert_eq!(taken["work_mem"].trim_end_matches("kB"), "64");
    assert_eq!(taken["x.y"], "z");
    // A frozen postmaster answers nobody, whatever an old backend would say.
    let pid = rustix::process::Pid::from_raw(a.postmaster_pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(matches!(a.instance.observe().await.process, Process::Silent { .. }));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let exit = second.postmaster_exit();
    a.instance.stop(StopMode::Fast, LIMIT).await.unwrap();
    exit.await;
    let seen = control(a).await;
    assert_eq!(seen.state, ControlState::ShutDownInRecovery);
    assert_eq!(a.instance.observe().await.process, Process::Stopped);
    a.instance.clone_from(Some(&b.upstream()), None, |_| {}).await.unwrap();
    assert_eq!(a.instance.set_aside().len(), 1);
    b.instance.stop(StopMode::Immediate, LIMIT).await.unwrap();
    assert_eq!(b.instance.observe().await.process, Process::Stopped);
}

trait ReloadedNothing {
    async fn reloaded_nothing(&self) -> bool;
}

impl ReloadedNothing for postgres::LocalInstance {
    async fn reloaded_nothing(&self) -> bool {
        let config = (*self.config()).clone();
        !self.apply(config).await.unwrap()
    }
}

/// The copy that becomes a cluster of its own has what its source archived last, though PostgreSQL
/// asks an archive only every few seconds.
#[tokio::test]
async fn a_position_is_told_when_the_archive_has_nothing_more() {
    for bin_dir in bin_dirs() {
        let keep = "cp %p \"$(dirname %p)/../archived-%f\"";
        let a = Node::with("a", &bin_dir, &[("archive_mode", "on"), ("archive_command", keep)]);
        let restore = format!("cp {}/archived-%f %p", a.instance.config().data_dir.display());
        let b = Node::with("b", &bin_dir, &[("restore_command", restore.as_str())]);
        new_primary(&a).await;
        new_standby(&b, &a).await;
        b.instance.follow(Some(&Upstream::archive())).await.unwrap();
        let rests = "select count(*) from pg_stat_get_activity(null) \
            where wait_event = 'RecoveryRetrieveRetryInterval'";
        until("the archive", async || b.value(rests).await == "1").await;
        let mut written = String::new();
        for _ in 0..2 {
            a.sql("create table if not exists t (); select pg_switch_wal()").await;
            written = a.value("select pg_current_wal_lsn()").await;
        }
        let archived = "select last_archived_wal is not null and pg_walfile_name($1) <= \
            last_archived_wal from pg_stat_archiver";
        let archived = archived.replace("$1", &format!("'{written}'::pg_lsn - 1"));
        until("the last segment", async || a.value(&archived).await == "t").await;
        let (_, end) = b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        assert!(end >= Lsn::parse(&written).unwrap(), "{end} of {written}");
    }
}

#[tokio::test]
async fn a_hand_over_does_not_wait_for_a_frozen_standby() {
    for bin_dir in bin_dirs() {
        let (a, b) = (Node::new("a", &bin_dir), Node::new("b", &bin_dir));
        new_primary(&a).await;
        new_standby(&b, &a).await;
        let pids = b.instance.processes().unwrap();
        let signal = |signal| {
            for pid in pids.iter().filter_map(|p| rustix::process::Pid::from_raw(*p)) {
                rustix::process::kill_process(pid, signal).unwrap();
            }
        };
        // First whoever would confirm the shutdown checkpoint, seen to stand still: with its answer
        // the stop ends at once, and nothing is shown.
        freeze(b.process("walreceiver")).await;
        signal(rustix::process::Signal::STOP);
        let begun = Instant::now();
        let asked = |_| async { begun.elapsed() > Duration::from_millis(300) };
        let outcome = a.instance.stop_for_hand_over(asked, LIMIT).await.unwrap();
        eprintln!("hand-over took {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(20), "it did not wait for the time-out");
        let seen = control(&a).await;
        assert_eq!(seen.state, ControlState::ShutDown);
        let expected = HandOver { timeline: Timeline(1), end: seen.end, received: true };
        assert_eq!(outcome, expected);
        assert_eq!(a.instance.observe().await.process, Process::Stopped);
        signal(rustix::process::Signal::CONT);
        // The end that pg_control gives is where the log goes on.
        a.instance.start(StartAs::Primary, LIMIT).await.unwrap();
        assert!(primary(&a).await.flush >= outcome.end);
        // A stopped copy tells its end after a clean stop, and after no other.
        a.instance.stop(StopMode::Fast, LIMIT).await.unwrap();
        let (timeline, end) = a.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        assert_eq!((timeline, end), (Timeline(1), control(&a).await.end));
        a.instance.start(StartAs::Standby { upstream: None }, LIMIT).await.unwrap();
        let (_, started) = a.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        assert_eq!(started, end, "recovery finds the same end");
        a.instance.stop(StopMode::Kill, LIMIT).await.unwrap();
        let refused = a.instance.stop_receiving(&SyncRule::Off, LIMIT).await;
        assert!(refused.is_err(), "{refused:?}");
    }
}
