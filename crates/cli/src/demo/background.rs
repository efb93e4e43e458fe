//! `--detach` and `--stop`: a demo without a terminal.
//!
//! The background part is this program once more, in a session of its own; it tells its parent
//! through a pipe, in the lines of `--json`, how far it is.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use lab::cgroup::Group;
use lab::process;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::DemoArgs;
use super::files::{self, DemoFile};
use super::herd;
use super::screen::Screen;

/// How long a demo may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// Leaves the session of the terminal that the demo was started from.
///
/// # Errors
/// The kernel refused.
pub(super) fn leave_terminal() -> anyhow::Result<()> {
    rustix::process::setsid().context("cannot leave the terminal's session")?;
    Ok(())
}

/// Where the background part prints when nobody listens any more.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn log(dir: &Path) -> anyhow::Result<Box<dyn Write>> {
    let path = dir.join("demo.log");
    let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    Ok(Box::new(file.with_context(|| format!("cannot write {}", path.display()))?))
}

/// Removes a temporary directory.
///
/// # Errors
/// It cannot be removed.
pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Starts a demo in the background and returns when it is healthy.
///
/// # Errors
/// It does not get healthy; nothing of it is left then.
pub(super) async fn detach(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    // Found here already, for a line on the terminal and so that both parts mean one directory.
    let layout = super::layout::Layout::plan(args)?;
    let mut command = Command::new(&layout.own_program);
    command.args(["demo", "--json", "--background", "--dir"]).arg(&layout.dir);
    command.args(["--nodes", &args.nodes.to_string(), "--ttl", &args.ttl.to_string()]);
    if let Some(mode) = args.failover_mode {
        command.args(["--failover-mode", mode.word()]);
    }
    if let Some(port) = args.base_port {
        command.args(["--base-port", &port.to_string()]);
    }
    if !args.dcs.is_empty() {
        command.args(["--dcs", &args.dcs.join(",")]);
    }
    for (wanted, option) in [(args.dr, "--dr"), (layout.temporary, "--temporary")] {
        if wanted {
            command.arg(option);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start the background part")?;
    let output = child.stdout.take().context("the background part has no output")?;
    let mut screen = Screen::new(args.json);
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        let event: Value = serde_json::from_str(&line)
            .with_context(|| format!("the background part said {line:?}"))?;
        if let Some(end) = relay(&mut screen, &event) {
            return end;
        }
    }
    let status = child.wait().await?;
    bail!("the background part ended before the cluster was healthy ({status})")
}

/// Passes an event on; the result, when this one is the last.
fn relay(screen: &mut Screen, event: &Value) -> Option<anyhow::Result<ExitCode>> {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    match text("event").as_str() {
        "starting" => {
            let elapsed = event["elapsed_seconds"].as_f64().unwrap_or_default();
            screen.progress(&text("waiting_for"), Duration::from_secs_f64(elapsed.max(0.0)));
            None
        }
        "healthy" => {
            screen.object(event);
            screen.text(&format!(
                "healthy after {} s\nread-write  psql '{}'\nread-only   psql '{}'\n\
                 stop it with: pgherd demo --stop --dir {}",
                event["seconds"],
                text("read_write"),
                text("read_only"),
                text("dir")
            ));
            Some(Ok(ExitCode::SUCCESS))
        }
        "failed" => Some(Err(anyhow!("{}", text("error")))),
        _ => None,
    }
}

/// Ends the demo that runs in a directory, and returns when none of its processes is left.
///
/// # Errors
/// There is no demo, or it does not end.
pub(super) async fn stop(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let dir = args.dir.as_deref().context("--stop needs --dir")?;
    let path = files::demo_file(dir);
    let own = super::own_program()?;
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let left = process::of_cluster_in(dir, file_name(&own));
            if left.is_empty() {
                bail!("no demo runs in {}", dir.display());
            }
            herd::sweep_directory(dir, &own).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let file: DemoFile =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    if is_demo(file.pid) {
        process::signal(file.pid, Signal::TERM)
            .with_context(|| format!("cannot end the demo, process {}", file.pid))?;
        let left = process::wait_gone([file.pid], STOP_LIMIT).await;
        if !left.is_empty() {
            bail!("the demo, process {}, did not end within {STOP_LIMIT:?}", file.pid);
        }
    }
    // It stops its processes itself; one that was killed could not.
    herd::sweep_directory(dir, &own).await?;
    for node in &file.nodes {
        if let Some(group) = Group::create(&herd::group_name(file.pid, &node.name)) {
            group.remove();
        }
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}

fn file_name(program: &Path) -> &str {
    program.file_name().and_then(|name| name.to_str()).unwrap_or("pgherd")
}

/// Whether this process is a demo: the pid in the file may belong to somebody else by now.
fn is_demo(pid: u32) -> bool {
    process::is_alive(pid)
        && process::arguments(pid).iter().any(|argument| argument == Path::new("demo"))
}
