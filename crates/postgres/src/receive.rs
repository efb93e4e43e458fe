//! Whom a standby streams from, and how it stops for good: the first half of an election.

use std::time::Instant;

use types::{ControlState, HistoryLine, Lsn, Millis, Timeline, Upstream, parse_history_file};

use crate::conf::ConfState;
use crate::error::Error;
use crate::files::blocking;
use crate::instance::{LocalInstance, timeline_at};
use crate::sql::{self, lsn, pause, within};
use crate::sync_rule::SyncRule;

/// Between looks at a standby that stops receiving, in milliseconds; it is on the failover path.
const POLL_MS: u64 = 2;
/// A WAL receiver that has not left by then (it may be stuck in a connection attempt) is
/// terminated, in milliseconds.
const RECEIVER_PATIENCE_MS: u128 = 200;
/// How long a standby must rest after one more reload before a partial record at the end of what
/// was received is taken as the end, in milliseconds.
const PARTIAL_RECORD_REST_MS: u128 = 50;
/// Within so long a standby that was told to has begun to ask its archive, in milliseconds.
const ARCHIVE_LOOK_MS: u128 = 300;
/// Positive looks in a row that are needed.
const LOOKS_MIN: u32 = 2;

/// The startup process waits for WAL from anywhere. It takes note of a changed configuration right
/// after this wait, before it would start a WAL receiver.
const RESTING: &str = "RecoveryRetrieveRetryInterval";

const LOOK: &str = "\
SELECT pg_is_in_recovery(),
  (SELECT count(*) FROM pg_stat_wal_receiver)
  + (SELECT count(*) FROM pg_stat_get_activity(NULL) WHERE backend_type = 'walreceiver'),
  (SELECT max(wait_event) FROM pg_stat_get_activity(NULL) WHERE backend_type = 'startup'),
  pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()";

const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_get_activity(NULL) \
  WHERE backend_type = 'walreceiver'";

pub(crate) async fn follow(
    instance: &LocalInstance,
    upstream: Option<Upstream>,
) -> Result<(), Error> {
    instance.write_conf(move |state| state.upstream = upstream).await?;
    instance.reload().await?;
    Ok(())
}

pub(crate) async fn stop_receiving(
    instance: &LocalInstance,
    rule: SyncRule,
    limit: Millis,
) -> Result<(Timeline, Lsn), Error> {
    let begun = Instant::now();
    // What a standby cluster's own source has archived last is part of what it holds.
    let upstream = instance.conf_state().await?.upstream;
    if upstream.is_some_and(|upstream| upstream.is_remote())
        && instance.postmaster().await?.is_some()
    {
        within(limit, "the end of the archive", end_of_archive(instance)).await?;
    }
    let spent = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let limit = Millis(limit.0.saturating_sub(spent));
    // On disk first: a restart must not bring the receiver back.
    let change = move |state: &mut ConfState| {
        state.upstream = None;
        state.sync = rule;
    };
    instance.write_conf(change).await?;
    if !instance.reload().await? {
        return stopped_at(instance).await;
    }
    let end = within(limit, "the end of receiving", rest(instance)).await?;
    let control = instance.control().await?;
    let dir = instance.config().data_dir.clone();
    let timeline = blocking(move || timeline_at(&dir, &control, end)).await;
    Ok((timeline, end))
}

/// Waits until a standby that streams from nobody has replayed all that its archive has: told to
/// look again it asks the archive at once, and rests when that has nothing more.
async fn end_of_archive(instance: &LocalInstance) -> Result<(), Error> {
    let client = instance.client().await?;
    let mut last = None;
    loop {
        let row = sql::one_row(&client, "look at the WAL receiver", LOOK).await?;
        let replayed = lsn(row.get(4).map(String::as_str));
        let recovers = row.first().map(String::as_str) == Some("t");
        let receives = row.get(1).map(String::as_str) != Some("0");
        if !recovers || receives || last.replace(replayed) == Some(replayed) {
            return Ok(());
        }
        instance.reload_process(&client, "startup").await?;
        let told = Instant::now();
        let mut looked = false;
        loop {
            let row = sql::one_row(&client, "look at the WAL receiver", LOOK).await?;
            let resting = row.get(2).map(String::as_str) == Some(RESTING);
            looked |= !resting;
            // A look at the archive that is too short to be seen has long ended by then.
            if resting && (looked || told.elapsed().as_millis() > ARCHIVE_LOOK_MS) {
                break;
            }
            pause(POLL_MS).await;
        }
    }
}

/// Where the log of a stopped copy ends, which pg_control knows only after a clean stop. It will be
/// started in recovery, with nobody to stream from.
async fn stopped_at(instance: &LocalInstance) -> Result<(Timeline, Lsn), Error> {
    instance.require_stopped("read the end of a stopped copy").await?;
    let control = instance.control().await?;
    if control.state != ControlState::ShutDown {
        return Err(Error::refused(format!(
            "PostgreSQL was not stopped cleanly ({:?}), so its position is not certain",
            control.state
        )));
    }
    Ok((control.timeline, control.checkpoint_end()))
}

/// Waits until nothing is received and all that was received is replayed; returns the end of it.
async fn rest(instance: &LocalInstance) -> Result<Lsn, Error> {
    let client = instance.client().await?;
    // The files are cleared already. The startup process is told before the first look, so that
    // each look at it that shows it resting is of one that starts no receiver any more.
    instance.reload_process(&client, "startup").await?;
    let begun = Instant::now();
    let (mut terminated, mut kicked) = (None::<Instant>, None::<Instant>);
    let (mut looks, mut last) = (0, (Lsn(0), Lsn(0)));
    loop {
        let row = sql::one_row(&client, "look at the WAL receiver", LOOK).await?;
        let text = |index: usize| row.get(index).map(String::as_str);
        if text(0) == Some("f") {
            return Err(Error::refused("this is a primary, it does not receive"));
        }
        let gone = text(1) == Some("0");
        let (received, replayed) = (lsn(text(3)), lsn(text(4)));
        if !gone {
            let since = terminated.unwrap_or(begun).elapsed().as_millis();
            if since > RECEIVER_PATIENCE_MS {
                sql::rows(&client, "end the WAL receiver", TERMINATE).await?;
                terminated = Some(Instant::now());
            }
        }
        let resting = gone && text(2) == Some(RESTING);
        // The last record may have come in part; then replay stays below what was received, and
        // only rest after another round through all sources shows the end.
        if resting && replayed < received && kicked.is_none() {
            instance.reload().await?;
            kicked = Some(Instant::now());
        }
        let at_end = replayed >= received
            || kicked.is_some_and(|at| at.elapsed().as_millis() > PARTIAL_RECORD_REST_MS);
        if resting && at_end {
            looks = if last == (received, replayed) { looks + 1 } else { 1 };
            last = (received, replayed);
            if looks >= LOOKS_MIN {
                return Ok(received.max(replayed));
            }
        } else {
            looks = 0;
        }
        pause(POLL_MS).await;
    }
}

/// Whether a server is in recovery, and the timeline that a primary writes on, in hexadecimal.
const OF_A_PRIMARY: &str = "SELECT pg_is_in_recovery(), CASE WHEN NOT pg_is_in_recovery() \
    THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END";
/// A server in recovery does not say which timeline it is on, but its log is named for it. The
/// function is one that the role for pg_rewind may use.
const OF_A_STANDBY: &str = "SELECT max(substr(name, 1, 8)) \
    FROM pg_ls_dir('pg_wal', true, false) AS name WHERE name ~ '^[0-9A-F]{24}$'";

pub(crate) async fn leader_history(
    instance: &LocalInstance,
    upstream: &Upstream,
) -> Result<(Timeline, Vec<HistoryLine>), Error> {
    let config = instance.config();
    let client = sql::connect_upstream(&config, upstream).await?;
    let what = "read the leader's timeline";
    let mut row = sql::one_row(&client, what, OF_A_PRIMARY).await?;
    if row.first().map(String::as_str) != Some("f") {
        // Only the leader of a standby cluster is in recovery.
        if config.remote.is_none() {
            return Err(Error::refused(format!(
                "{} is in recovery: it is no leader to compare with",
                upstream.name
            )));
        }
        row = sql::one_row(&client, what, OF_A_STANDBY).await?;
    }
    let digits = row.last().map_or("", String::as_str);
    let Ok(timeline) = u32::from_str_radix(digits, 16) else {
        return Err(Error::Sql { what, message: format!("{digits:?} came back") });
    };
    if timeline <= 1 {
        return Ok((Timeline(timeline), Vec::new()));
    }
    let statement = format!(
        "SELECT convert_from(pg_read_binary_file('pg_wal/{timeline:08X}.history'), 'SQL_ASCII')"
    );
    let row = sql::one_row(&client, "read the leader's history", &statement).await?;
    let text = row.first().map_or("", String::as_str);
    Ok((Timeline(timeline), parse_history_file(text)))
}
