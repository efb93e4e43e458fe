//! Making a data directory as a copy of another member, or bringing it back by pg_rewind.
//!
//! A new copy is made beside the data directory (`<data_dir>.new`) and put in place by a rename
//! when it is complete; the copy that stood there before is set aside then, not earlier (I3).

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use types::{ControlState, Millis, Timeline, Upstream};

use crate::command::run_tool;
use crate::conf;
use crate::conf_files::{self, ConfFiles, write_files};
use crate::config::{Credentials, InstanceConfig, ProgramOption};
use crate::error::Error;
use crate::files::{self, blocking};
use crate::instance::{LocalInstance, read_control};
use crate::lifecycle::{kill_in, write_signal};
use crate::processes::DirId;
use crate::replica::Source;
use crate::segments::segment_name;
use crate::sql::{self, within};
use crate::sync_rule::SyncRule;

/// The limit for what an earlier try left running to end.
const LEFT_LIMIT: Millis = Millis(60_000);
/// Options of pg_basebackup that are ours.
const BASEBACKUP_REFUSED: [&str; 12] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "password",
    "progress",
];
/// Options of pg_rewind that are ours.
const REWIND_REFUSED: [&str; 12] = [
    "target-pgdata",
    "D",
    "source-pgdata",
    "source-server",
    "write-recovery-conf",
    "R",
    "dry-run",
    "n",
    "restore-target-wal",
    "config-file",
    "no-ensure-shutdown",
    "version",
];

/// How far a copy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyProgress {
    /// Bytes copied.
    pub done: u64,
    /// Bytes in all, as the source estimates them.
    pub total: u64,
}

pub(crate) fn options(given: &[ProgramOption], refused: &[&str], program: &str) -> Vec<OsString> {
    let mut arguments = Vec::new();
    for (name, value) in given {
        let name = name.trim_start_matches('-');
        if refused.contains(&name) || name == "data-checksums" {
            if name != "data-checksums" {
                tracing::warn!(program, option = name, "this option is not for the configuration");
            }
            continue;
        }
        let dashes = if name.len() == 1 { "-" } else { "--" };
        arguments.push(match value {
            Some(value) if name.len() == 1 => format!("{dashes}{name}{value}").into(),
            Some(value) => format!("{dashes}{name}={value}").into(),
            None => format!("{dashes}{name}").into(),
        });
    }
    arguments
}

/// Refuses where a rename cannot put a new directory in place.
pub(crate) fn require_place(config: &InstanceConfig, empty: bool) -> Result<(), Error> {
    let dir = &config.data_dir;
    if empty && !files::is_empty(dir).map_err(Error::file("read", dir))? {
        let shown = dir.display();
        return Err(Error::refused(format!(
            "{shown} is not empty: will not create a cluster in it"
        )));
    }
    let Some(parent) = dir.parent() else {
        return Err(Error::refused("the root directory cannot be the data directory"));
    };
    files::make_dir(parent, 0o755, config.os_user.as_ref())?;
    let device = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).ok().map(|meta| meta.dev())
    };
    if device(dir).is_some_and(|own| Some(own) != device(parent)) {
        return Err(Error::refused(format!(
            "{} is a mount point, which a rename cannot replace: use a directory below it",
            dir.display()
        )));
    }
    Ok(())
}

/// An empty `<data_dir>.new`; what an earlier try left there is ended and removed.
pub(crate) async fn fresh_directory(instance: &LocalInstance) -> Result<PathBuf, Error> {
    let config = instance.config();
    let new = config.beside(".new");
    if let Some(id) = DirId::of(&new) {
        within(LEFT_LIMIT, "the end of an earlier try", kill_in(id)).await?;
    }
    let path = new.clone();
    blocking(move || {
        files::remove_tree(&path)?;
        files::make_dir(&path, 0o700, config.os_user.as_ref())
    })
    .await?;
    Ok(new)
}

/// Whether a new copy takes the place of anything.
pub(crate) async fn replaces(instance: &LocalInstance) -> Result<bool, Error> {
    let dir = instance.config().data_dir.clone();
    let path = dir.clone();
    let empty = blocking(move || files::is_empty(&path)).await;
    empty.map(|empty| !empty).map_err(Error::file("list", &dir))
}

/// A copy by pg_basebackup.
pub(crate) async fn basebackup(
    instance: &LocalInstance,
    source: Source<'_>,
    progress: &(impl Fn(CopyProgress) + Send + Sync),
) -> Result<(), Error> {
    let config = instance.config();
    require_place(&config, false)?;
    source.require_leader(&config).await?;
    let new = fresh_directory(instance).await?;
    let replaced = replaces(instance).await?;
    write_secrets(instance, source.upstream, &config.replication).await?;
    let mut arguments = vec![
        OsString::from("--pgdata"),
        new.clone().into(),
        "--wal-method=stream".into(),
        "--progress".into(),
        "--no-password".into(),
        "--dbname".into(),
        conf::copy_conninfo(&config, &source, replaced).into(),
    ];
    arguments.extend(basebackup_options(&config, instance.programs().major));
    let program = instance.programs().path("pg_basebackup");
    let line = |line: &str| {
        if let Some(seen) = parse_progress(line) {
            progress(seen);
        }
    };
    run_tool(&config, &program, &arguments, line).await?;
    source.require_leader(&config).await?;
    instance.require_stopped("replace the data directory").await?;
    let upstream = source.upstream.clone();
    blocking(move || {
        complete(&config, &new, Some(upstream))?;
        put_in_place(&config, &new)
    })
    .await
}

/// The operator's options; a copy does not wait for the next checkpoint unless they say so.
fn basebackup_options(config: &InstanceConfig, major: u32) -> Vec<OsString> {
    let named = |(name, _): &ProgramOption, wanted: &str| name.trim_start_matches('-') == wanted;
    let mut given = config.basebackup.clone();
    if !given.iter().any(|option| named(option, "checkpoint")) {
        given.push(("checkpoint".to_owned(), Some("fast".to_owned())));
    }
    // What the client compresses is no data directory.
    given.retain(|option| {
        let by_server = option.1.as_ref().is_some_and(|value| value.starts_with("server"));
        let kept = !named(option, "compress") || (major >= 15 && by_server);
        if !kept {
            tracing::warn!("pg_basebackup's option compress must begin with server-; left out");
        }
        kept
    });
    options(&given, &BASEBACKUP_REFUSED, "pg_basebackup")
}

/// `  23456/23456 kB (100%), 1/1 tablespace`.
fn parse_progress(line: &str) -> Option<CopyProgress> {
    let (numbers, _) = line.split_once(" kB")?;
    let (done, total) = numbers.trim().split_once('/')?;
    let bytes = |text: &str| text.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some(CopyProgress { done: bytes(done)?, total: bytes(total)? })
}

/// Makes a copied or rewound directory a standby of `upstream` with our configuration; the files
/// that came along are the source's.
pub(crate) fn complete(
    config: &InstanceConfig,
    dir: &Path,
    upstream: Option<Upstream>,
) -> Result<(), Error> {
    write_signal(config, &dir.join("standby.signal"))?;
    files::remove_if_present(&dir.join("recovery.signal"))?;
    conf_files::restore_missing(config, dir)?;
    write_files(config, dir, |state| {
        state.upstream = upstream;
        state.sync = SyncRule::Off;
    })?;
    Ok(())
}

pub(crate) async fn write_secrets(
    instance: &LocalInstance,
    upstream: &Upstream,
    role: &Credentials,
) -> Result<(), Error> {
    let (config, upstream, role) = (instance.config(), upstream.clone(), role.clone());
    blocking(move || conf_files::write_secrets(&config, &upstream, &role)).await
}

/// Puts `new` in place of the data directory and keeps what stood there as the one set-aside copy.
fn put_in_place(config: &InstanceConfig, new: &Path) -> Result<(), Error> {
    let dir = &config.data_dir;
    let renamed = |result: std::io::Result<()>| result.map_err(Error::file("rename", dir));
    if files::is_empty(dir).map_err(Error::file("read", dir))? {
        return renamed(fs::rename(new, dir).and_then(|()| files::sync_parent(dir)));
    }
    let older = set_aside(config)?;
    let number = older.last().map_or(0, |(number, _)| *number) + 1;
    let aside = config.beside(&format!(".old-{number}"));
    // Exchanged in one step, so that a crash leaves one complete copy in place.
    match renameat_with(CWD, new, CWD, dir, RenameFlags::EXCHANGE) {
        Ok(()) => renamed(fs::rename(new, &aside))?,
        Err(_) => renamed(fs::rename(dir, &aside).and_then(|()| fs::rename(new, dir)))?,
    }
    renamed(files::sync_parent(dir))?;
    for (_, path) in older {
        files::remove_tree(&path)?;
    }
    Ok(())
}

/// The copies that were set aside, oldest first.
pub(crate) fn set_aside(config: &InstanceConfig) -> Result<Vec<(u64, PathBuf)>, Error> {
    let prefix = config.beside(".old-");
    let prefix = prefix.file_name().unwrap_or_default().to_string_lossy();
    let parent = config.data_dir.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(parent) else {
        return Ok(found);
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix(prefix.as_ref()));
        if let Some(number) = number.and_then(|n| n.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) async fn rewind_from(
    instance: &LocalInstance,
    upstream: &Upstream,
) -> Result<(), Error> {
    let config = instance.config();
    instance.require_stopped("rewind").await?;
    let _mark = instance.tool_mark();
    write_secrets(instance, upstream, config.rewind_role()).await?;
    let (prepared, source) = (config.clone(), upstream.clone());
    let unseen = blocking(move || prepare_rewind(&prepared, source)).await?;
    let arguments = rewind_arguments(&config, upstream, instance.programs().major);
    let program = instance.programs().path("pg_rewind");
    let mut done_nothing = false;
    let look = |line: &str| done_nothing |= line.contains(NO_REWIND);
    run_tool(&config, &program, &arguments, look).await?;
    if let Some(timeline) = unseen.filter(|_| done_nothing) {
        return Err(Error::refused(format!(
            "pg_rewind sees no difference, since it compares the timelines of checkpoints, but \
             this copy has log of timeline {timeline} beyond its checkpoint; it needs a new copy"
        )));
    }
    let (prepared, source) = (config.clone(), upstream.clone());
    blocking(move || complete(&prepared, &prepared.data_dir.clone(), Some(source))).await?;
    instance.memory().forget_copy();
    if let Err(error) = write_on(&config, upstream).await {
        tracing::debug!(%error, "the source was not asked to write on");
    }
    Ok(())
}

/// Lets the source of a rewind write something. The copy is consistent when it has replayed up to
/// where the source would insert next, and there an idle server's log does not reach: it may be
/// past the header of a segment that nothing stands in. By itself it writes within half a minute.
async fn write_on(config: &InstanceConfig, source: &Upstream) -> Result<(), Error> {
    let client = sql::connect_upstream(config, source).await?;
    let statement = "SELECT pg_logical_emit_message(false, 'pgherd', '')";
    sql::rows(&client, "write on the source of a rewind", statement).await?;
    Ok(())
}

fn rewind_arguments(config: &InstanceConfig, upstream: &Upstream, major: u32) -> Vec<OsString> {
    let source = conf::rewind_conninfo(config, upstream);
    let mut arguments = vec![
        OsString::from("--target-pgdata"),
        config.data_dir.clone().into(),
        "--source-server".into(),
        source.into(),
    ];
    // Before, it looks into the data directory only.
    if major >= 15 && ConfFiles::in_place(config).main() != config.data_dir.join("postgresql.conf")
    {
        let main = ConfFiles::in_place(config).main();
        arguments.extend(["--config-file".into(), main.into()]);
    }
    arguments.extend(options(&config.rewind_options, &REWIND_REFUSED, "pg_rewind"));
    arguments
}

/// A record there would be log beyond what replay must reach; its checksum tells it from what a
/// file held before it was used again.
pub(crate) async fn log_ends_at_control(instance: &LocalInstance) -> Result<bool, Error> {
    let config = instance.config();
    let dir = config.data_dir.join("pg_wal");
    let control = instance.control().await?;
    let (end, timeline) = (control.min_recovery, control.min_recovery_timeline);
    if control.state != ControlState::InArchiveRecovery || end <= control.checkpoint {
        return Ok(false);
    }
    let listed = dir.clone();
    if blocking(move || newest_timeline_in(&listed)).await? > timeline {
        return Ok(false);
    }
    // pg_waldump waits five seconds for a file that is not there.
    let segment = segment_name(timeline, end, control.wal_segment_size);
    let segment = segment.map(|name| dir.join(name));
    if !blocking(move || Ok(segment.is_some_and(|path| path.exists()))).await? {
        return Ok(true);
    }
    let arguments = [
        OsString::from("--path"),
        dir.into(),
        format!("--timeline={}", timeline.0).into(),
        format!("--start={end}").into(),
        "--limit=1".into(),
    ];
    let program = instance.programs().path("pg_waldump");
    match run_tool(&config, &program, &arguments, |_| {}).await {
        Err(Error::Program { output, .. }) => Ok(NO_RECORD.iter().any(|no| output.contains(no))),
        Ok(()) | Err(_) => Ok(false),
    }
}

/// What pg_waldump says where no record begins at the position asked for, or later.
const NO_RECORD: [&str; 2] = ["could not find a valid record after", "could not find file"];

/// The newest timeline of which there is log.
fn newest_timeline_in(dir: &Path) -> Result<Timeline, Error> {
    let mut newest = Timeline(0);
    for entry in fs::read_dir(dir).map_err(Error::file("list", dir))? {
        let entry = entry.map_err(Error::file("list", dir))?;
        let name = entry.file_name();
        let segment = name.to_str().filter(|n| n.len() == 24);
        let timeline = segment.and_then(|n| u32::from_str_radix(n.get(..8)?, 16).ok());
        newest = newest.max(Timeline(timeline.unwrap_or(0)));
    }
    Ok(newest)
}

/// What pg_rewind says when it leaves the copy as it is.
const NO_REWIND: &str = "no rewind required";

/// Makes the copy ready for pg_rewind. Returns the timeline that it cannot see, if there is one:
/// before PostgreSQL 16 it goes by the last checkpoint alone, and a copy that was promoted and fell
/// back into recovery before its next checkpoint has log of a later timeline.
fn prepare_rewind(config: &InstanceConfig, upstream: Upstream) -> Result<Option<Timeline>, Error> {
    let dir = &config.data_dir;
    // An earlier pg_rewind may have left the source's files; ours must be loadable for the
    // single-user server by which pg_rewind recovers a crashed copy.
    write_files(config, dir, |state| state.upstream = Some(upstream))?;
    files::remove_if_present(&dir.join("postmaster.pid"))?;
    let control = read_control(dir)?;
    match control.state {
        ControlState::ShutDown | ControlState::ShutDownInRecovery => {}
        ControlState::StartingUp
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InArchiveRecovery
        | ControlState::InProduction => {
            // That server refuses to start in standby mode.
            files::remove_if_present(&dir.join("standby.signal"))?;
        }
    }
    let reached = control.min_recovery_timeline;
    Ok((reached > control.timeline).then_some(reached))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn progress_is_read() {
        let seen = parse_progress(" 2/10 kB (20%), 0/1 tablespace (x)").unwrap();
        assert_eq!(seen, CopyProgress { done: 2048, total: 10240 });
        assert_eq!(parse_progress("waiting for checkpoint"), None);
    }

    #[test]
    fn one_copy_is_set_aside_and_the_older_one_goes() {
        let base = tempfile::tempdir().unwrap();
        let mut config = conf::tests_support::sample();
        config.data_dir = base.path().join("data");
        for content in ["a", "b", "c"] {
            let new = config.beside(".new");
            fs::create_dir(&new).unwrap();
            fs::write(new.join("x"), content).unwrap();
            put_in_place(&config, &new).unwrap();
            assert!(!new.exists());
        }
        let read = |dir: &Path| fs::read_to_string(dir.join("x")).unwrap();
        assert_eq!(read(&config.data_dir), "c");
        let aside = set_aside(&config).unwrap();
        assert_eq!(aside.len(), 1);
        assert_eq!(read(&aside[0].1), "b");
    }
}
