//! The archive, where PostgreSQL itself does not write it.

use std::ffi::OsString;
use std::path::Path;

use types::{ControlState, Lsn, Timeline};

use crate::command::run_tool;
use crate::config::InstanceConfig;
use crate::error::Error;
use crate::instance::LocalInstance;

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
    let name = segment_name(control.timeline, control.checkpoint, control.wal_segment_size);
    let path = config.data_dir.join("pg_wal").join(&name);
    let line = OsString::from(filled_in(command, &name, &path));
    run_tool(&config, Path::new("/bin/sh"), &["-c".into(), line], |_| {}).await
}

fn archive_command(config: &InstanceConfig) -> Option<&str> {
    let on = |mode: &String| matches!(mode.to_ascii_lowercase().as_str(), "on" | "always");
    config.parameters.get("archive_mode").filter(|mode| on(mode))?;
    let command = config.parameters.get("archive_command")?.trim();
    (!command.is_empty()).then_some(command)
}

/// The name of the file that holds a position.
fn segment_name(timeline: Timeline, at: Lsn, segment_size: u32) -> String {
    let number = at.0 / u64::from(segment_size);
    let in_log = 0x1_0000_0000 / u64::from(segment_size);
    format!("{:08X}{:08X}{:08X}", timeline.0, number / in_log, number % in_log)
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
    fn segments_are_named_as_postgresql_names_them() {
        let mib16 = 16 << 20;
        let name = |at| segment_name(Timeline(2), Lsn(at), mib16);
        assert_eq!(name(0x0100_0028), "000000020000000000000001");
        assert_eq!(name(0xA_FF00_0000), "000000020000000A000000FF");
    }

    #[test]
    fn commands_are_filled_in() {
        let line = filled_in("cp %p '/a/%f' 100%% %x", "N", Path::new("/d/pg_wal/N"));
        assert_eq!(line, "cp /d/pg_wal/N '/a/N' 100% %x");
    }
}
