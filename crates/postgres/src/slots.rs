//! Replication slots: created, moved and dropped by SQL; logical ones are brought onto a standby by
//! the file that holds their state, as PostgreSQL writes and reads it (`slot.c`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::Path;
use std::sync::Arc;

use tokio_postgres::Client;
use types::{Lsn, Millis, SlotChange, Upstream};

use crate::config::{InstanceConfig, OsUser};
use crate::error::Error;
use crate::files::{self, blocking};
use crate::instance::LocalInstance;
use crate::lifecycle::{self, StartAs, StopMode};
use crate::segments::place_in_log;
use crate::sql::{self, literal};

/// The limit of one statement that decodes WAL or waits for transactions.
const DECODE_LIMIT: Millis = Millis(300_000);
/// The state of a slot is about 200 bytes; more than this is something else.
const STATE_BYTES_MAX: usize = 65_536;

pub(crate) async fn change(instance: &LocalInstance, changes: &[SlotChange]) -> Result<(), Error> {
    let mut first_error = None;
    for change in changes {
        // One bad slot must not keep the others from being cared for.
        if let Err(error) = change_one(instance, change).await {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

async fn change_one(instance: &LocalInstance, change: &SlotChange) -> Result<(), Error> {
    let statement = statement(change);
    match change {
        SlotChange::Drop { .. } | SlotChange::Create { .. } | SlotChange::Advance { .. } => {
            let client = instance.client().await?;
            sql::rows(&client, "change a slot", &statement).await?;
        }
        SlotChange::CreateLogical { database, .. } => {
            let client = connect_to(instance, database).await?;
            sql::rows(&client, "create a logical slot", &statement).await?;
        }
        SlotChange::AdvanceLogical { name, database, .. } => {
            let client = connect_to(instance, database).await?;
            let moved = sql::rows(&client, "move a logical slot", &statement).await;
            if moved.as_ref().is_err_and(wal_is_gone) {
                // It stays where it is for ever; the leader's has gone on, and can be copied.
                let drop = self::statement(&SlotChange::Drop { name: name.clone() });
                sql::rows(&client, "drop a slot whose WAL is gone", &drop).await?;
            }
            moved?;
        }
    }
    Ok(())
}

/// Whether a slot needs a segment that is not there any more.
fn wal_is_gone(error: &Error) -> bool {
    matches!(error, Error::Sql { message, .. } if message.contains("SQLSTATE 58P01"))
}

/// Slots are decoded in a session of their own database.
async fn connect_to(instance: &LocalInstance, database: &str) -> Result<Client, Error> {
    let mut config: InstanceConfig = (*instance.config()).clone();
    database.clone_into(&mut config.database);
    sql::connect_local(&config, "pgherd slots", DECODE_LIMIT).await
}

/// Each does nothing where it is done already, or where somebody uses the slot.
fn statement(change: &SlotChange) -> String {
    let name = literal(change.name());
    match change {
        SlotChange::Drop { .. } => format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = {name} AND NOT active"
        ),
        SlotChange::Create { .. } => format!(
            "SELECT pg_create_physical_replication_slot({name}, true) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {name})"
        ),
        SlotChange::CreateLogical { plugin, .. } => format!(
            "SELECT pg_create_logical_replication_slot({name}, {}) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {name})",
            literal(plugin)
        ),
        // Backwards is an error to PostgreSQL, and past what it has is cut.
        SlotChange::Advance { to, .. } => {
            let to = literal(&to.to_string());
            format!(
                "SELECT pg_replication_slot_advance(slot_name, {to}) FROM pg_replication_slots \
                 WHERE slot_name = {name} AND slot_type = 'physical' AND NOT active \
                 AND restart_lsn < {to}"
            )
        }
        SlotChange::AdvanceLogical { to, .. } => {
            let to = literal(&to.to_string());
            format!(
                "SELECT pg_replication_slot_advance(slot_name, {to}) FROM pg_replication_slots \
                 WHERE slot_name = {name} AND slot_type = 'logical' AND NOT active \
                 AND confirmed_flush_lsn < {to}"
            )
        }
    }
}

/// Reads the state of these slots from a primary and keeps it for `copy`.
pub(crate) async fn fetch(
    instance: &LocalInstance,
    upstream: &Upstream,
    names: &BTreeSet<String>,
    with_wal: bool,
) -> Result<(), Error> {
    let client = sql::connect_upstream(&instance.config(), upstream).await?;
    let list: Vec<String> = names.iter().map(|name| literal(name)).collect();
    // PostgreSQL carries slots with `failover` over by itself.
    let statement = format!(
        "SELECT slot_name, encode(pg_read_binary_file('pg_replslot/' || slot_name || '/state'), \
         'hex'), restart_lsn FROM pg_get_replication_slots() s WHERE slot_type = 'logical' \
         AND NOT pg_is_in_recovery() AND to_jsonb(s) ->> 'failover' IS DISTINCT FROM 'true' \
         AND slot_name IN ({})",
        list.join(", ")
    );
    let rows = sql::rows(&client, "read the state of slots", &statement).await?;
    let mut fetched = BTreeMap::new();
    for row in rows {
        let [Some(name), Some(hex), Some(restart)] = row.as_slice() else { continue };
        if with_wal && !has_wal_from(instance, restart).await? {
            let text = format!("the WAL that slot {name} needs, from {restart} on, is not here");
            return Err(Error::refused(text));
        }
        let state = from_hex(hex).filter(|state| state.len() <= STATE_BYTES_MAX);
        if let Some(state) = state.filter(|state| !state.is_empty()) {
            fetched.insert(name.clone(), Arc::<[u8]>::from(state));
        }
    }
    let missing: Vec<&str> =
        names.iter().filter(|n| !fetched.contains_key(*n)).map(String::as_str).collect();
    if !missing.is_empty() {
        let (name, missing) = (&upstream.name, missing.join(", "));
        return Err(Error::refused(format!("{name} has no logical slot {missing} to copy")));
    }
    instance.memory().fetched_slots = fetched;
    Ok(())
}

/// Whether this server has the segment of this position.
async fn has_wal_from(instance: &LocalInstance, position: &str) -> Result<bool, Error> {
    let client = instance.client().await?;
    let statement = "SELECT min(substr(name, 9)), \
        pg_size_bytes(current_setting('wal_segment_size')) \
        FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'";
    let row = sql::one_row(&client, "list the WAL", statement).await?;
    let [oldest, size] = row.as_slice() else { return Ok(false) };
    let size = size.parse::<u64>().unwrap_or_default();
    let needed = Lsn::parse(position).and_then(|lsn| place_in_log(lsn, size));
    Ok(!oldest.is_empty() && needed.is_some_and(|needed| needed >= *oldest))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(byte).collect()
}

/// Restarts a standby with what was fetched.
pub(crate) async fn copy(
    instance: &LocalInstance,
    names: &BTreeSet<String>,
    limit: Millis,
) -> Result<(), Error> {
    let mut states = instance.memory().fetched_slots.clone();
    states.retain(|name, _| names.contains(name));
    if states.len() < names.len() {
        return Err(Error::refused("the state of the slots was not fetched".to_owned()));
    }
    let client = instance.client().await?;
    let recovering = sql::one_row(&client, "look", "SELECT pg_is_in_recovery()").await?;
    if recovering.first().map(String::as_str) != Some("t") {
        return Err(Error::refused("only a standby is restarted to copy slots".to_owned()));
    }
    let upstream = instance.conf_state().await?.upstream;
    lifecycle::stop(instance, StopMode::Fast, limit).await?;
    let config = instance.config();
    let written = blocking(move || {
        let dir = config.data_dir.join("pg_replslot");
        let mode = files::mode_in(&config.data_dir);
        for (name, state) in &states {
            put(&dir, name, state, mode, config.os_user.as_ref())
                .map_err(Error::file("write a slot below", &dir))?;
        }
        File::open(&dir).and_then(|d| d.sync_all()).map_err(Error::file("sync", &dir))
    })
    .await;
    instance.memory().fetched_slots.clear();
    // Whatever became of the files, the standby comes back.
    lifecycle::start(instance, StartAs::Standby { upstream }, limit).await?;
    written
}

/// Puts one slot into place: whole or not at all, and never over one that is there.
fn put(dir: &Path, name: &str, state: &[u8], mode: u32, owner: Option<&OsUser>) -> io::Result<()> {
    let place = dir.join(name);
    if place.exists() {
        return Ok(());
    }
    // PostgreSQL itself removes what has this ending when it starts.
    let temporary = dir.join(format!("{name}.tmp"));
    match fs::remove_dir_all(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    fs::create_dir(&temporary)?;
    let file = temporary.join("state");
    let mut file = File::options().write(true).create_new(true).mode(mode).open(file)?;
    // At once: PostgreSQL could not remove what a full disk leaves of root's.
    if let Some(user) = owner {
        fchown(&file, Some(user.uid), Some(user.gid))?;
        chown(&temporary, Some(user.uid), Some(user.gid))?;
    }
    // As its files are read: 0750 where the group may read them.
    let dir_mode = if mode & 0o040 == 0 { 0o700 } else { 0o750 };
    fs::set_permissions(&temporary, fs::Permissions::from_mode(dir_mode))?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(state)?;
    file.sync_all()?;
    File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, &place)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn statements_pass_over_what_is_used_or_done() {
        let name = "a'b".to_owned();
        let dropped = statement(&SlotChange::Drop { name: name.clone() });
        assert!(dropped.contains("slot_name = E'a''b' AND NOT active"), "{dropped}");
        let to = Lsn(0x300);
        let moved = statement(&SlotChange::Advance { name: name.clone(), to });
        assert!(moved.contains("NOT active AND restart_lsn < E'0/300'"), "{moved}");
        let create = statement(&SlotChange::Create { name });
        assert!(create.contains("(E'a''b', true) WHERE NOT EXISTS"), "{create}");
    }

    #[test]
    fn a_state_is_put_into_place_whole_and_never_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("s.tmp");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("state"), "half").unwrap();
        put(dir.path(), "s", b"one", 0o600, None).unwrap();
        put(dir.path(), "s", b"two", 0o600, None).unwrap();
        assert_eq!(fs::read(dir.path().join("s/state")).unwrap(), b"one");
        assert!(!left.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn hex_that_is_none_is_refused() {
        assert_eq!(from_hex("00ff1a"), Some(vec![0, 0xff, 0x1a]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
