//! Hot restart of a proxy, as its operator and the service manager see it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use agent::service_manager;
use anyhow::{Context, bail};
use proxy::{Proxy, Stage};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How long the new process may take until it serves.
const SERVES_LIMIT: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Has the service manager told who serves. What is returned is cancelled once that is another
/// process.
pub(crate) fn tell(proxy: &mut Proxy) -> CancellationToken {
    let handed_over = CancellationToken::new();
    let now = handed_over.clone();
    proxy.on_stage(move |stage| match stage {
        Stage::Serving => service_manager::ready(),
        Stage::HandedOver { successor } => {
            now.cancel();
            if let Some(successor) = successor {
                service_manager::handed_over(successor);
            }
        }
    });
    handed_over
}

/// `pgherd proxy --detach`: starts the same without that option and returns when it serves.
///
/// # Errors
/// It does not; what served before serves on then.
pub(crate) fn detach(control_socket: Option<&Path>) -> anyhow::Result<ExitCode> {
    let Some(control_socket) = control_socket else {
        bail!("--detach needs pgherd.proxy.control_socket: it shows which process serves");
    };
    let program = std::env::current_exe().context("cannot find our own binary")?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut command = Command::new(&program);
    // A group of its own: what ends this process from the terminal does not end that one.
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    let started = command.spawn();
    let mut child = started.with_context(|| format!("cannot start {}", program.display()))?;
    let serves = crate::serve::runtime()?.block_on(until_it_serves(&mut child, control_socket));
    if serves.is_err() {
        // It may have ended by itself.
        drop(child.kill().and_then(|()| child.wait()));
    }
    serves.map(|()| ExitCode::SUCCESS)
}

async fn until_it_serves(child: &mut Child, control_socket: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < SERVES_LIMIT {
        if let Some(status) = child.try_wait().context("cannot look at the new process")? {
            bail!(
                "the new proxy has ended ({status}), its log says why; one that served serves on"
            );
        }
        // One that is busy with the take-over may not answer yet.
        if matches!(proxy::in_charge(control_socket).await, Ok(Some(pid)) if pid == child.id()) {
            return Ok(());
        }
        sleep(LOOK_INTERVAL).await;
    }
    bail!("the new proxy does not serve after {SERVES_LIMIT:?} and is killed; look at its log")
}
