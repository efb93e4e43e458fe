//! The archive, where PostgreSQL itself does not write it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;
use types::ControlState;

use crate::command::run_tool;
use crate::config::InstanceConfig;
use crate::error::Error;
use crate::instance::LocalInstance;
use crate::segments::segment_name;

/// How long `archive_command` may take for one small file.
const ONE_FILE: Duration = Duration::from_secs(60);

/// Archives the segment with the shutdown checkpoint of a stopped primary. Before that record an
/// archiving server switches to a new segment, which holds nothing else and stays unarchived.
pub(crate) async fn shutdown_checkpoint(instance: &LocalInstance) -> Result<(), Error> {
    let config = instance.config();
    let Some(command) = archive_command(&config) else {
        return Ok(());
    };
    let control = instance.control().await?;
    if control.state != ControlState::ShutDown {
        return Err(Error::refused("PostgreSQL did not stop in order: nothing ends its log"));
    }
    let (timeline, at) = (control.timeline, control.checkpoint);
    let name = segment_name(timeline, at, control.wal_segment_size)
        .ok_or_else(|| Error::refused("pg_control tells no size of WAL segments"))?;
    let path = config.data_dir.join("pg_wal").join(&name);
    let line = OsString::from(filled_in(command, &name, &path));
    run_tool(&config, Path::new("/bin/sh"), &["-c".into(), line], |_| {}).await
}

/// Archives the history files of numbers that were reserved and never used. PostgreSQL does not, as
/// it did not write them; who restores from the archive takes the first number without such a file
/// for the end of all timelines. An archive that does not take one is said, and holds nothing up.
pub(crate) async fn reserved_numbers(config: &InstanceConfig, files: Vec<PathBuf>) {
    let Some(command) = archive_command(config) else {
        return;
    };
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let line = OsString::from(filled_in(command, &name, &path));
        let arguments = ["-c".into(), line];
        let run = run_tool(config, Path::new("/bin/sh"), &arguments, |_| {});
        let failed = match timeout(ONE_FILE, run).await {
            Ok(done) => done.err().map(|error| error.to_string()),
            Err(_) => Some(format!("not done within {} s", ONE_FILE.as_secs())),
        };
        if let Some(error) = failed {
            tracing::warn!(
                file = %name,
                error,
                "archive_command did not take the history of a timeline number that was skipped: \
                 whoever restores from the archive has to name recovery_target_timeline"
            );
        }
    }
}

fn archive_command(config: &InstanceConfig) -> Option<&str> {
    let on = |mode: &String| matches!(mode.to_ascii_lowercase().as_str(), "on" | "always");
    config.parameters.get("archive_mode").filter(|mode| on(mode))?;
    let command = config.parameters.get("archive_command")?.trim();
    (!command.is_empty()).then_some(command)
}

/// `%p`, `%f` and `%%` as PostgreSQL fills them in. The path is absolute: the command does not run
/// in the data directory, or it would count as one of the instance's processes.
fn filled_in(command: &str, name: &str, path: &Path) -> String {
    let mut line = String::new();
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            line.push(c);
            continue;
        }
        match chars.next() {
            Some('p') => line.push_str(&path.to_string_lossy()),
            Some('f') => line.push_str(name),
            Some('%') | None => line.push('%'),
            Some(other) => line.extend(['%', other]),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_filled_in() {
        let line = filled_in("cp %p '/a/%f' 100%% %x", "N", Path::new("/d/pg_wal/N"));
        assert_eq!(line, "cp /d/pg_wal/N '/a/N' 100% %x");
    }
}
