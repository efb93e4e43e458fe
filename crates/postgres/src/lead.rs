//! What a leader does: being promoted, its synchronous set, its confirmed write.

use std::path::{Path, PathBuf};

use tokio_postgres::Client;
use types::{HistoryLine, Lsn, MemberName, Millis, SyncNames, Timeline};

use crate::archive;
use crate::config::InstanceConfig;
use crate::error::Error;
use crate::files::{self, blocking};
use crate::identity::{self, Sender};
use crate::instance::{LocalInstance, history_path, timeline_at};
use crate::sql::{self, Row, literal, lsn, pause, within};
use crate::sync_rule::SyncRule;

/// Between looks at a server that is being promoted, in milliseconds.
const PROMOTE_POLL_MS: u64 = 3;
/// Between looks at a change of the synchronous set or at confirmations, in milliseconds.
const SYNC_POLL_MS: u64 = 5;
/// More reserved numbers than this are a mistake somewhere.
const RESERVED_NUMBERS_MAX: u32 = 10_000;
/// The first version that flushes a message without a transaction when asked to.
const FLUSHES_MESSAGES: u32 = 17;
/// The reason in the history file of a number that was skipped.
const NEVER_PROMOTED: &str = "pgherd: reserved number, never promoted";
/// The application name of sessions that wait for a confirmed write.
const CONFIRM: &str = "pgherd confirm";

/// How a standby becomes the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromotePlan {
    /// The timeline number that the term reserved.
    pub timeline: Timeline,
    /// The winner's synchronous set, in force before the first commit.
    pub sync: SyncRule,
}

pub(crate) async fn promote(
    instance: &LocalInstance,
    plan: PromotePlan,
    limit: Millis,
) -> Result<Timeline, Error> {
    within(limit, "the promotion", async {
        let client = instance.client().await?;
        let statement = "SELECT pg_is_in_recovery(), pg_last_wal_receive_lsn(), \
            pg_last_wal_replay_lsn()";
        let row = sql::one_row(&client, "read the position", statement).await?;
        if row.first().map(String::as_str) == Some("t") {
            let position = |index: usize| lsn(row.get(index).map(String::as_str));
            let skipped = reserve(instance, plan.timeline, position(1).max(position(2))).await?;
            take_over_rule(instance, &client, &plan.sync).await?;
            sql::rows(&client, "promote", "SELECT pg_promote(false)").await?;
            // Logging in takes about as long as the promotion, and the first write follows it.
            let this = instance.clone();
            tokio::spawn(async move {
                if let Ok(session) = first_writer(&this).await {
                    this.keep_first_writer(session);
                }
                archive::reserved_numbers(&this.config(), skipped).await;
            });
        }
        wait_for_promotion(&client).await
    })
    .await
}

async fn wait_for_promotion(client: &Client) -> Result<Timeline, Error> {
    let statement = "SELECT CASE WHEN NOT pg_is_in_recovery() \
        THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END";
    loop {
        let row = sql::one_row(client, "read the timeline", statement).await?;
        let digits = row.first().map_or("", String::as_str);
        if let Ok(timeline) = u32::from_str_radix(digits, 16) {
            return Ok(Timeline(timeline));
        }
        pause(PROMOTE_POLL_MS).await;
    }
}

/// The rule on disk, taken over by the postmaster (which has told the backend that shows it), and
/// the checkpointer told, which decides whether commits wait: before the first of the new timeline.
async fn take_over_rule(
    instance: &LocalInstance,
    client: &Client,
    rule: &SyncRule,
) -> Result<(), Error> {
    let wanted = rule.clone();
    instance.write_conf(move |state| state.sync = wanted).await?;
    instance.reload().await?;
    instance.reload_process(client, "checkpointer").await?;
    while shown_rule(client).await? != rule.to_setting() {
        pause(PROMOTE_POLL_MS).await;
    }
    Ok(())
}

async fn shown_rule(client: &Client) -> Result<String, Error> {
    let statement = "SELECT current_setting('synchronous_standby_names')";
    let row = sql::one_row(client, "read synchronous_standby_names", statement).await?;
    Ok(row.into_iter().next().unwrap_or_default())
}

/// The lines of the own history file of `timeline`, each with its reason.
pub(crate) async fn own_history(
    instance: &LocalInstance,
    timeline: Timeline,
) -> Result<Vec<(HistoryLine, String)>, Error> {
    let path = history_path(&instance.config().data_dir, timeline);
    blocking(move || {
        let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let lines = text.lines().filter_map(|line| {
            let parsed = *types::parse_history_file(line).first()?;
            let reason = line.trim().splitn(3, '\t').nth(2).unwrap_or_default();
            Some((parsed, reason.to_owned()))
        });
        Ok(lines.collect())
    })
    .await
}

/// Puts a history file for every number below the reserved one, so that PostgreSQL, which takes the
/// number after the last history file without a gap, takes the reserved one.
///
/// Returns those files.
async fn reserve(
    instance: &LocalInstance,
    reserved: Timeline,
    end: Lsn,
) -> Result<Vec<PathBuf>, Error> {
    let control = instance.control().await?;
    let config = instance.config();
    blocking(move || {
        let current = timeline_at(&config.data_dir, &control, end);
        write_stubs(&config, current, reserved, end)
    })
    .await
}

fn write_stubs(
    config: &InstanceConfig,
    current: Timeline,
    reserved: Timeline,
    end: Lsn,
) -> Result<Vec<PathBuf>, Error> {
    if reserved <= current || reserved.0 - current.0 > RESERVED_NUMBERS_MAX {
        return Err(Error::refused(format!(
            "cannot promote to timeline {reserved}: this copy is on timeline {current}"
        )));
    }
    let dir: &Path = &config.data_dir;
    let own = std::fs::read_to_string(history_path(dir, current)).unwrap_or_default();
    let stub = format!("{own}{current}\t{end}\t{NEVER_PROMOTED}\n");
    let mut files = Vec::new();
    for number in current.0 + 1..reserved.0 {
        let path = history_path(dir, Timeline(number));
        if !path.exists() {
            files::write_durably(&path, &stub, files::mode_in(dir), config.os_user.as_ref())?;
        }
        // One from a promotion that was tried before is as unknown to the archive.
        if std::fs::read_to_string(&path).is_ok_and(|text| text.contains(NEVER_PROMOTED)) {
            files.push(path);
        }
    }
    Ok(files)
}

/// One look at a change of the synchronous set.
const SYNC_LOOK: &str = "\
SELECT current_setting('synchronous_standby_names'),
  (SELECT max(wait_event) FROM pg_stat_get_activity(NULL) WHERE backend_type = 'checkpointer');
SELECT application_name, sync_priority FROM pg_stat_replication
  WHERE state IN ('streaming', 'catchup')";

pub(crate) async fn set_sync(
    instance: &LocalInstance,
    rule: &SyncRule,
    limit: Millis,
) -> Result<(), Error> {
    let wanted = rule.clone();
    instance.write_conf(move |state| state.sync = wanted).await?;
    if !instance.reload().await? {
        return Ok(());
    }
    let what = "the take-over of synchronous_standby_names";
    within(limit, what, async {
        // A new backend is forked after the postmaster took the rule over and told everybody.
        let client = loop {
            let client = instance.fresh_client().await?;
            if shown_rule(&client).await? == rule.to_setting() {
                break client;
            }
            pause(SYNC_POLL_MS).await;
        };
        let mut looks = 0;
        while looks < 2 {
            looks = if taken_over(&client, rule).await? { looks + 1 } else { 0 };
            pause(SYNC_POLL_MS).await;
        }
        Ok(())
    })
    .await
}

async fn taken_over(client: &Client, rule: &SyncRule) -> Result<bool, Error> {
    let sets = sql::row_sets(client, "look at the synchronous set", SYNC_LOOK).await?;
    let [shown, senders] = sets.as_slice() else {
        return Ok(false);
    };
    let shown = shown.first().map(Vec::as_slice).unwrap_or_default();
    let text = |row: &[Option<String>], index: usize| row.get(index).cloned().flatten();
    if text(shown, 0).unwrap_or_default() != rule.to_setting() {
        return Ok(false);
    }
    // Whether commits wait at all is a flag that the checkpointer sets; one that sleeps here has
    // handled its signals.
    let checkpointer = text(shown, 1).unwrap_or_default();
    if rule.waits() && !["CheckpointerMain", "CheckpointWriteDelay"].contains(&&*checkpointer) {
        return Ok(false);
    }
    let names = rule.names();
    Ok(senders.iter().all(|row| {
        let name = text(row, 0).unwrap_or_default();
        let listed = text(row, 1).is_some_and(|priority| priority != "0");
        listed == is_member(&names, &name)
    }))
}

/// PostgreSQL compares the names without regard to case.
fn is_member(names: &SyncNames, name: &str) -> bool {
    let same = |n: &MemberName| n.as_str().eq_ignore_ascii_case(name) || n.as_str() == "*";
    names.names.iter().any(same)
}

pub(crate) async fn confirm_write(instance: &LocalInstance, limit: Millis) -> Result<(), Error> {
    let confirmed = within(limit, "a confirmed write", write_and_look(instance)).await;
    if confirmed.is_err() {
        // The session may still wait for standbys, which closing its socket does not end. Ending
        // it is good manners; if it fails, the next confirmed write does it.
        let ending = async {
            let client = instance.client().await?;
            end_waiting(&client).await
        };
        within(sql::PROBE_LIMIT, "the end of a waiting session", ending).await.ok();
    }
    confirmed
}

async fn end_waiting(client: &Client) -> Result<(), Error> {
    let statement = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = {} AND pid <> pg_backend_pid()",
        literal(CONFIRM)
    );
    sql::rows(client, "end waiting sessions", &statement).await?;
    Ok(())
}

/// A session without a statement time-out: a cancelled wait for standbys counts as a commit in
/// PostgreSQL.
async fn first_writer(instance: &LocalInstance) -> Result<Client, Error> {
    sql::connect_local(&instance.config(), CONFIRM, Millis::ZERO).await
}

async fn write_and_look(instance: &LocalInstance) -> Result<(), Error> {
    let client = match instance.take_first_writer() {
        Some(client) => client,
        None => first_writer(instance).await?,
    };
    end_waiting(&client).await?;
    let waits = !instance.conf_state().await?.sync.names().names.is_empty();
    // A commit waits for standbys only if it has a transaction id. Where nobody is waited for, it
    // has none: a slot that the server itself keeps on standbys (PostgreSQL 17) is in step there
    // when it has decoded all transactions before, and each of ours would put that off.
    let write = match !waits && instance.programs().major >= FLUSHES_MESSAGES {
        true => "SELECT pg_logical_emit_message(false, 'pgherd', '', true)",
        false => "SELECT pg_logical_emit_message(true, 'pgherd', '')",
    };
    sql::rows(&client, "write", write).await?;
    let row = sql::one_row(&client, "read the position", "SELECT pg_current_wal_flush_lsn()");
    let end = row.await?.into_iter().next().unwrap_or_default();
    // The wait may have been ended by somebody, or skipped by a server that has not yet taken the
    // rule over; what the standbys have confirmed is what counts.
    let needed = instance.conf_state().await?.sync.names();
    if needed.names.is_empty() {
        return Ok(());
    }
    // Slots after walsenders: see `identity::known`.
    let statement = format!(
        "SELECT application_name, pid, usename, \
           coalesce(state = 'streaming' AND flush_lsn >= {}, false) FROM pg_stat_replication; \
         SELECT slot_name, active_pid FROM pg_replication_slots WHERE active_pid IS NOT NULL",
        literal(&end)
    );
    loop {
        let sets = sql::row_sets(&client, "read confirmations", &statement).await?;
        if let [senders, slots] = sets.as_slice()
            && confirmations(&instance.config(), &needed, senders, slots) >= needed.number
        {
            return Ok(());
        }
        pause(SYNC_POLL_MS).await;
    }
}

/// How many members of the set have confirmed, by rows of: name, pid, user, confirmed.
fn confirmations(
    config: &InstanceConfig,
    needed: &SyncNames,
    senders: &[Row],
    slots: &[Row],
) -> usize {
    let peers: Vec<Sender> = senders.iter().map(|row| Sender::of(row, [0, 1, 2])).collect();
    let known = identity::known(config, &peers, &identity::slots_in_use(slots, [0, 1]));
    let confirmed = |(row, peer): (&Row, &Sender)| {
        row.get(3).cloned().flatten().is_some_and(|t| t == "t") && is_member(needed, &peer.name)
    };
    let confirmed = senders.iter().zip(&peers).map(confirmed);
    confirmed.zip(known).filter(|(confirmed, known)| *confirmed && *known).count()
}

pub(crate) async fn checkpoint(instance: &LocalInstance) -> Result<(), Error> {
    let config = instance.config();
    let client = sql::connect_local(&config, "pgherd checkpoint", Millis::ZERO).await?;
    sql::rows(&client, "checkpoint", "CHECKPOINT").await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_ahead_is_refused() {
        let config = crate::conf::tests_support::sample();
        let result = write_stubs(&config, Timeline(5), Timeline(5), Lsn(1));
        assert!(matches!(result, Err(Error::Refused { .. })));
    }
}
