//! PostgreSQL's programs as children: under the right user, with a clean environment, and with
//! output that is bounded and never holds a password (none is passed).

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Signal, set_parent_process_death_signal, setsid};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::conf_files::ConfFiles;
use crate::config::{InstanceConfig, OsUser};
use crate::error::Error;

/// How much of the end of a program's output is kept for the error, in bytes.
const OUTPUT_BYTES_MAX: usize = 4096;

/// What ties a child to the agent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tie {
    /// It dies with the agent: a tool whose work is begun anew.
    DiesWithUs,
    /// It has a session of its own and survives the agent (I7).
    Survives,
}

/// Runs a tool to its end; `line` gets each line of its output (`\r` ends a line too).
///
/// Cancel safety: dropping the future kills the tool.
pub(crate) async fn run_tool(
    config: &InstanceConfig,
    program: &Path,
    arguments: &[OsString],
    mut line: impl FnMut(&str) + Send,
) -> Result<(), Error> {
    let mut command = std::process::Command::new(program);
    command.args(arguments).env_clear();
    // Messages in English, since they are searched and shown.
    for (name, value) in [("LANG", "C"), ("LC_ALL", "C"), ("PGCONNECT_TIMEOUT", "10")] {
        command.env(name, value);
    }
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("PGPASSFILE", &config.pgpass);
    command.env("PGSERVICEFILE", config.service_file());
    if let Some(name) = &config.krbsrvname {
        command.env("PGKRBSRVNAME", name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::piped()).current_dir("/");
    prepare(&mut command, config.os_user.as_ref(), Tie::DiesWithUs);
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().map_err(|source| {
        let program = program.display().to_string();
        Error::Spawn { program, source }
    })?;
    let stderr = child.stderr.take().expect("it was asked for");
    let output = read_lines(stderr, &mut line).await;
    let status = child.wait().await.map_err(Error::file("wait for", program))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program { program: name.into_owned(), status: status.to_string(), output })
}

/// Hands out lines and returns the end of the output.
async fn read_lines(mut from: impl AsyncRead + Unpin, line: &mut impl FnMut(&str)) -> String {
    let (mut kept, mut partial) = (Vec::new(), Vec::new());
    let mut buffer = [0_u8; 1024];
    while let Ok(count) = from.read(&mut buffer).await
        && count > 0
    {
        for byte in &buffer[..count] {
            if matches!(byte, b'\n' | b'\r') {
                line(&String::from_utf8_lossy(&partial));
                partial.clear();
            } else if partial.len() < OUTPUT_BYTES_MAX {
                partial.push(*byte);
            }
        }
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(OUTPUT_BYTES_MAX);
        kept.drain(..excess);
    }
    let text = String::from_utf8_lossy(&kept);
    let lines: Vec<&str> = text.split(['\n', '\r']).filter(|l| !l.is_empty()).collect();
    lines.join(" | ")
}

/// Starts the server, detached. Its environment is ours without what is not for it: archive
/// commands need theirs, so it is not empty.
pub(crate) fn spawn_server(
    config: &InstanceConfig,
    program: &Path,
    arguments: &[String],
    log: std::fs::File,
) -> Result<i32, Error> {
    let stdout = log.try_clone().map_err(Error::file("open", program))?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).current_dir("/");
    for (name, _) in std::env::vars_os() {
        if !for_the_server(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null()).stdout(stdout).stderr(log);
    prepare(&mut command, config.os_user.as_ref(), Tie::Survives);
    let child = command.spawn().map_err(|source| {
        let program = program.display().to_string();
        Error::Spawn { program, source }
    })?;
    // It is watched by pidfd and buried there; dropping the handle neither kills nor waits.
    Ok(i32::try_from(child.id()).expect("pids are below 2^22"))
}

/// Starts the helper process, which gets nothing but the data directory's path.
pub(crate) fn spawn_helper(config: &InstanceConfig) -> std::io::Result<tokio::process::Child> {
    let mut command = std::process::Command::new(&config.helper);
    command.arg0("pgherd").arg("probe").arg("--data-dir").arg(&config.data_dir);
    command.arg("--config-file").arg(ConfFiles::in_place(config).main());
    // Its working directory must not make it one of the instance's processes.
    command.env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    prepare(&mut command, config.os_user.as_ref(), Tie::DiesWithUs);
    tokio::process::Command::from(command).kill_on_drop(true).spawn()
}

fn for_the_server(name: &str) -> bool {
    let foreign = ["PATRONI_", "PGHERD_", "KUBERNETES_", "LISTEN_", "CARGO", "RUST"];
    let exact = [
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "PGPASSWORD",
        "PGPASSFILE",
        "PGDATA",
        "PGOPTIONS",
        "PGSERVICE",
        "PGHOST",
        "PGPORT",
        "PGUSER",
        "PGDATABASE",
    ];
    !foreign.iter().any(|prefix| name.starts_with(prefix)) && !exact.contains(&name)
}

/// User and ties of a child.
#[allow(unsafe_code)] // `pre_exec` has no safe twin; `setsid` in std is not stable
pub(crate) fn prepare(command: &mut std::process::Command, user: Option<&OsUser>, tie: Tie) {
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
        if let Some(home) = std::env::var_os("HOME").filter(|_| user.uid == 0) {
            command.env("HOME", home);
        } else {
            command.env_remove("HOME");
        }
        command.env("USER", &user.name).env("LOGNAME", &user.name);
    }
    // SAFETY: the closure makes one system call, which is async-signal-safe, and touches no memory
    // that another thread could hold locked.
    unsafe {
        command.pre_exec(move || {
            match tie {
                Tie::DiesWithUs => set_parent_process_death_signal(Some(Signal::KILL))?,
                Tie::Survives => _ = setsid()?,
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_split_and_bounded() {
        let mut text = b"a\rb\n\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', 3 * OUTPUT_BYTES_MAX));
        let mut lines = Vec::new();
        let end = read_lines(text.as_slice(), &mut |l: &str| lines.push(l.to_owned())).await;
        assert_eq!(lines, ["a", "b", ""]);
        assert_eq!(end.len(), OUTPUT_BYTES_MAX);
    }

    #[test]
    fn the_agents_own_variables_do_not_reach_the_server() {
        assert!(!for_the_server("PATRONI_SUPERUSER_PASSWORD"));
        assert!(!for_the_server("PGPASSWORD"));
        assert!(for_the_server("PGBACKREST_REPO1_PATH"));
        assert!(for_the_server("PATH"));
    }
}
