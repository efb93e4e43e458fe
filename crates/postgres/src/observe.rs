//! What is seen of the instance: pg_control, its processes, and one SQL round trip.

use std::collections::BTreeSet;

use pgproto::control::ControlFile;
use types::{
    Control, ControlState, DataDir, Health, LogicalSlot, Lsn, Millis, Primary, Process, Receiver,
    Replica, Role, Running, Server, Slot, Standby, SyncNames, Timeline, Walsender,
};

use crate::disk_helper::{Found, Look, Request};
use crate::error::Error;
use crate::identity::{self, Sender};
use crate::instance::LocalInstance;
use crate::lowered;
use crate::pending::pending_restart;
use crate::processes::of_directory;
use crate::sql::{self, PROBE_LIMIT, Row, lsn};
use crate::sync_rule::SyncRule;

/// One observation of the local instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// What stands in the data directory.
    pub data_dir: DataDir,
    /// What runs.
    pub process: Process,
    /// What trial runs show.
    pub health: Health,
}

/// Milliseconds on the boot-time clock, which every `Millis` instant of this crate is of.
#[must_use]
pub fn now() -> Millis {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let millis = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
    Millis(u64::try_from(millis).unwrap_or_default())
}

/// One round trip: the server's facts, its walsenders, its slots, its WAL receiver.
const PROBE: &str = "\
SELECT pg_is_in_recovery(), current_setting('server_version_num'), pg_postmaster_start_time(),
  pg_conf_load_time(), current_setting('synchronous_standby_names'),
  CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END,
  CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END,
  pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(),
  CASE WHEN pg_is_in_recovery() AND pg_last_wal_replay_lsn() < pg_last_wal_receive_lsn() THEN
    greatest(0, extract(epoch FROM now() - pg_last_xact_replay_timestamp()) * 1000)::bigint END,
  pg_last_xact_replay_timestamp(),
  CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END,
  current_setting('restore_command') <> '';
SELECT application_name, state, flush_lsn, replay_lsn, sync_priority, pid, usename, client_addr,
  sync_state FROM pg_stat_replication;
SELECT slot_name, restart_lsn, active, active_pid, slot_type, xmin IS NOT NULL, wal_status,
  database, plugin, confirmed_flush_lsn, to_jsonb(s) ->> 'failover', to_jsonb(s) ->> 'synced'
  FROM pg_replication_slots s WHERE NOT temporary ORDER BY slot_name;
SELECT status, received_tli, latest_end_lsn,
  greatest(0, extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000)::bigint
  FROM pg_stat_wal_receiver;
SELECT 1 FROM pg_stat_get_activity(NULL) WHERE backend_type = 'walreceiver'";

/// Observes the instance. Nothing is read of the data directory here: the helper is asked, so that
/// a disk that hangs costs time and nothing else. What does not answer is shown as it was last.
pub(crate) async fn observe(instance: &LocalInstance) -> Observation {
    if instance.is_hidden() {
        let (data_dir, process) = (DataDir::Empty, Process::Stopped);
        return Observation { data_dir, process, health: Health::default() };
    }
    let looked = instance.look().await;
    let (look, unread) = {
        let memory = instance.memory();
        (memory.look.clone(), memory.unread.clone())
    };
    let look = match (looked, look) {
        (Ok(look), _) => Ok(look),
        (Err(error), Some(known)) => {
            tracing::debug!(%error, "the data directory is shown as it was");
            Ok(known)
        }
        (Err(error), None) => Err(error),
    };
    let (data_dir, control) = match &look {
        Ok(look) => data_dir(look),
        Err(error) => (DataDir::Unusable { why: error.to_string() }, None),
    };
    let process = match &look {
        Ok(look) => process(instance, look, control.as_ref()).await,
        Err(error) => {
            tracing::warn!(%error, "it is not known whether PostgreSQL runs");
            unanswered(instance, true)
        }
    };
    let serves = matches!(process, Process::Running(_) | Process::Silent { .. });
    instance.trials().expect(serves);
    let mut health = instance.trials().health();
    // The trials may not have come to a result yet.
    health.write = health.write.or(unread);
    Observation { data_dir, process, health }
}

fn data_dir(look: &Look) -> (DataDir, Option<ControlFile>) {
    match &look.found {
        Found::Empty => (DataDir::Empty, None),
        Found::Unusable(why) => (DataDir::Unusable { why: why.clone() }, None),
        Found::Present { control: bytes, standby_signal } => match ControlFile::parse(bytes) {
            Ok(file) => (DataDir::Present(control(&file, *standby_signal)), Some(file)),
            Err(error) => (DataDir::Unusable { why: error.to_string() }, None),
        },
    }
}

fn control(file: &ControlFile, standby_signal: bool) -> Control {
    let recovering = (file.min_recovery, file.min_recovery_timeline);
    let latest = (file.checkpoint, file.timeline);
    let (end, end_timeline) = match file.state {
        ControlState::ShutDown => (file.checkpoint_end(), file.timeline),
        ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => {
            if file.min_recovery > file.checkpoint { recovering } else { latest }
        }
        ControlState::StartingUp
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction => latest,
    };
    Control {
        system_identifier: file.system_identifier.to_string(),
        state: file.state,
        timeline: file.timeline,
        checkpoint: file.checkpoint,
        end,
        end_timeline,
        can_rewind: file.can_rewind(),
        standby_signal,
        unfinished_rewind: file.backup_end != Lsn(0),
    }
}

async fn process(instance: &LocalInstance, look: &Look, control: Option<&ControlFile>) -> Process {
    // While pg_rewind or its single-user server works there, PostgreSQL is stopped.
    if instance.tool_runs() {
        return Process::Stopped;
    }
    let postmaster = match instance.postmaster_in(look) {
        Ok(Some(postmaster)) => postmaster,
        Ok(None) => {
            instance.memory().since = None;
            return match look.dir.map_or(Ok(Vec::new()), of_directory) {
                Ok(pids) if pids.is_empty() => Process::Stopped,
                // What cannot be seen may still write (I4).
                Ok(_) | Err(_) => Process::Orphaned,
            };
        }
        Err(error) => {
            tracing::warn!(%error, "the postmaster cannot be looked for");
            return unanswered(instance, true);
        }
    };
    // An old backend would still answer while the postmaster takes no new client.
    if postmaster.is_frozen() {
        return unanswered(instance, true);
    }
    let probed = probe(instance, look, control);
    match tokio::time::timeout(PROBE_LIMIT.as_duration(), probed).await {
        Ok(Ok(running)) => {
            instance.memory().since = None;
            Process::Running(running)
        }
        Ok(Err(error)) => {
            instance.forget_client().await;
            tracing::debug!(%error, "PostgreSQL does not answer");
            match unanswered(instance, !not_ready(&error)) {
                Process::NotReady { since, recovery: _ } => {
                    let segment = instance.ask_more(Request::Recovery).await.unwrap_or_default();
                    let recovery = Some(segment).filter(|segment| !segment.is_empty());
                    Process::NotReady { since, recovery }
                }
                other => other,
            }
        }
        Err(_) => {
            instance.forget_client().await;
            unanswered(instance, true)
        }
    }
}

/// Whether an error says that the server does not take connections yet, or no more.
fn not_ready(error: &Error) -> bool {
    match error {
        Error::Connect { starting, message, .. } => {
            // No socket, or nobody listens on it: the postmaster has not come that far.
            *starting || message.contains("(os error 2)") || message.contains("(os error 111)")
        }
        // The connection that was kept has just been closed by a shutdown.
        Error::Sql { message, .. } => message.contains("57P0"),
        _ => false,
    }
}

fn unanswered(instance: &LocalInstance, silent: bool) -> Process {
    let mut memory = instance.memory();
    let since = match memory.since {
        Some((kind, since)) if kind == silent => since,
        Some(_) | None => now(),
    };
    memory.since = Some((silent, since));
    if silent { Process::Silent { since } } else { Process::NotReady { since, recovery: None } }
}

async fn probe(
    instance: &LocalInstance,
    look: &Look,
    control: Option<&ControlFile>,
) -> Result<Running, Error> {
    let sets = match sql::row_sets(&*instance.client().await?, "observe", PROBE).await {
        Ok(sets) => sets,
        // The kept connection may have been closed since; a new one decides.
        Err(_) => {
            instance.forget_client().await;
            sql::row_sets(&*instance.client().await?, "observe", PROBE).await?
        }
    };
    let [facts, senders, slots, receivers, backends] = sets.as_slice() else {
        let message = format!("{} result sets came back", sets.len());
        let what = "observe";
        return Err(Error::Sql { what, message });
    };
    let facts = facts.first().map(Vec::as_slice).unwrap_or_default();
    let loaded = field(facts, 3).unwrap_or_default().to_owned();
    let writable = field(facts, 0) == Some("f");
    let started = field(facts, 2).unwrap_or_default().to_owned();
    let lowered = if writable {
        lowered::seen(instance, &format!("{started} {loaded}"))
    } else {
        lowered::forget(instance);
        BTreeSet::new()
    };
    let server = Server {
        version: number(field(facts, 1)).unwrap_or_default(),
        started,
        pending_restart: pending_restart(instance, loaded).await?,
        slots: slots.iter().map(|row| slot(row)).collect(),
        lowered,
        walsenders: senders.iter().map(|row| walsender(row)).collect(),
    };
    let role = if writable {
        learn_promoted_at(instance, facts).await;
        Role::Primary(primary(instance, control, facts, (senders, slots)))
    } else {
        let receiver = receivers.first().map(Vec::as_slice);
        let lives = receiver.is_some() || !backends.is_empty();
        let mut standby = standby(facts, receiver.unwrap_or_default(), lives);
        if standby.timeline == Timeline(0) {
            standby.timeline = replayed_timeline(instance, control, standby.received).await;
        }
        standby.upstream = look.upstream.clone();
        Role::Standby(standby)
    };
    Ok(Running { server, role })
}

fn field(row: &[Option<String>], index: usize) -> Option<&str> {
    row.get(index)?.as_deref()
}

fn number<T: std::str::FromStr>(text: Option<&str>) -> Option<T> {
    text?.parse().ok()
}

fn walsender(row: &[Option<String>]) -> Walsender {
    let text = |index: usize| field(row, index).map(str::to_owned);
    Walsender {
        usename: text(6),
        application_name: text(0).unwrap_or_default(),
        client_addr: text(7),
        state: text(1),
        sync_state: text(8),
        sync_priority: number(field(row, 4)),
    }
}

fn slot(row: &[Option<String>]) -> Slot {
    let text = |index: usize| field(row, index).unwrap_or_default().to_owned();
    let logical = LogicalSlot {
        database: text(7),
        plugin: text(8),
        confirmed: field(row, 9).and_then(Lsn::parse),
        failover: field(row, 10) == Some("true"),
        synced: field(row, 11) == Some("true"),
    };
    Slot {
        name: text(0),
        restart: field(row, 1).and_then(Lsn::parse),
        active: field(row, 2) == Some("t"),
        holds_rows: field(row, 5) == Some("t"),
        lost: field(row, 6) == Some("lost"),
        logical: (field(row, 4) == Some("logical")).then_some(logical),
    }
}

fn primary(
    instance: &LocalInstance,
    control: Option<&ControlFile>,
    facts: &[Option<String>],
    (senders, slots): (&[Row], &[Row]),
) -> Primary {
    let timeline = wal_timeline(facts);
    let rule = field(facts, 4).and_then(SyncRule::parse);
    let sync = rule.map_or_else(SyncNames::default, |rule| rule.names());
    let peers: Vec<Sender> = senders.iter().map(|row| Sender::of(row, [0, 5, 6])).collect();
    let physical: Vec<Row> =
        slots.iter().filter(|row| field(row, 4) == Some("physical")).cloned().collect();
    let in_use = identity::slots_in_use(&physical, [0, 3]);
    let known = identity::known(&instance.config(), &peers, &in_use);
    let replica = |(row, known): (&Row, bool)| Replica {
        name: field(row, 0).unwrap_or_default().to_owned(),
        streaming: field(row, 1) == Some("streaming"),
        flush: lsn(field(row, 2)),
        replay: lsn(field(row, 3)),
        listed: number(field(row, 4)).is_some_and(|priority: i32| priority > 0),
        known,
    };
    Primary {
        timeline,
        flush: lsn(field(facts, 6)),
        promoted_at: promoted_at(instance, timeline),
        checkpoint_done: control.is_some_and(|c| c.timeline == timeline),
        sync,
        replicas: senders.iter().zip(known).map(replica).collect(),
    }
}

/// Asks once for each timeline where it began.
async fn learn_promoted_at(instance: &LocalInstance, facts: &[Option<String>]) {
    let timeline = wal_timeline(facts);
    let known = instance.memory().began.is_some_and(|(of, _)| of == timeline);
    if known || timeline <= Timeline(1) {
        return;
    }
    let answer = instance.ask_more(Request::Began(timeline)).await;
    let at = answer.and_then(|line| line.parse().ok()).map(Lsn);
    instance.memory().began = at.map(|at| (timeline, at));
}

/// The timeline that a primary writes on.
fn wal_timeline(facts: &[Option<String>]) -> Timeline {
    let timeline = field(facts, 5).and_then(|t| u32::from_str_radix(t, 16).ok());
    Timeline(timeline.unwrap_or_default())
}

fn promoted_at(instance: &LocalInstance, timeline: Timeline) -> Lsn {
    match instance.memory().began {
        _ if timeline <= Timeline(1) => Lsn(0),
        Some((of, at)) if of == timeline => at,
        // Without the file, past everything: nobody's confirmation counts (I4).
        Some(_) | None => Lsn(u64::MAX),
    }
}

/// What the server says of a standby; timeline 0 if it has received nothing.
fn standby(facts: &[Option<String>], receiver: &[Option<String>], receiver_lives: bool) -> Standby {
    let replayed = lsn(field(facts, 8));
    // `received_tli` is right once something was received.
    let streamed = field(receiver, 2).and_then(|_| number(field(receiver, 1)));
    Standby {
        timeline: Timeline(streamed.unwrap_or_default()),
        received: lsn(field(facts, 7)).max(replayed),
        replayed,
        receiver: receiver_lives.then(|| Receiver {
            streaming: field(receiver, 0) == Some("streaming"),
            silent_for: number(field(receiver, 3)).map(Millis),
        }),
        upstream: None,
        replay_lag: number(field(facts, 9)).map(Millis),
        replayed_at: field(facts, 10).map(str::to_owned),
        replay_paused: field(facts, 11) == Some("t"),
        restores: field(facts, 12) == Some("t"),
    }
}

/// The timeline of what a standby replayed last, from its WAL segments; while the disk hangs, the
/// one that was known before.
async fn replayed_timeline(
    instance: &LocalInstance,
    control: Option<&ControlFile>,
    end: Lsn,
) -> Timeline {
    let answer = instance.ask_more(Request::Timeline(end)).await;
    let mut memory = instance.memory();
    match answer.and_then(|line| line.parse().ok()) {
        Some(timeline) => memory.standby_timeline = Timeline(timeline),
        None => {
            let least = control.map_or(Timeline(0), |c| c.timeline.max(c.min_recovery_timeline));
            memory.standby_timeline = memory.standby_timeline.max(least);
        }
    }
    memory.standby_timeline
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_means_not_ready_and_a_wrong_password_means_silent() {
        let error = |message: &str, starting| Error::Connect {
            address: "x".to_owned(),
            message: message.to_owned(),
            starting,
        };
        assert!(not_ready(&error("x", true)));
        assert!(not_ready(&error("error connecting: No such file (os error 2)", false)));
        assert!(!not_ready(&error("password authentication failed", false)));
    }
}
