//! The agent: the shell around the brain. It observes, asks [`decide::Brain`] what to do, does it,
//! and tells how that ended. It decides nothing.
//!
//! One task owns the brain ([`shell`](self)); actions run in tasks of their own and report back
//! over one bounded channel, so that nothing long blocks the loop.
#![forbid(unsafe_code)]

mod callbacks;
mod clock;
mod context;
mod error;
mod execute;
mod failsafe;
mod guarding;
mod heartbeat;
mod hooks;
mod journal;
mod kept;
mod on_dcs;
mod peer;
mod phases;
mod preflight;
mod recorded;
mod requests;
mod role;
mod said;
mod secure;
pub mod service_manager;
mod setup;
mod shell;
mod signals;
mod sources;
mod state;
mod watchdog;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use postgres::{Instance, InstanceConfig, LocalInstance, Pretended, SetupError};

pub use error::AgentError;
pub use heartbeat::SecretError;
pub use secure::{etcd_client, rest_client};
pub use setup::{AgentOptions, validate};
pub use sources::{environment, gather};
pub use state::StateError;

use shell::{End, Shell};

/// The target of the log's last line: why the agent ends.
pub const FATAL: &str = "fatal";

/// Runs an agent until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting; nothing was changed then.
pub async fn run(options: AgentOptions) -> Result<ExitCode, AgentError> {
    run_with(options, LocalInstance::new).await
}

/// The same on a PostgreSQL that is not there: what agents cost can be counted then where there is
/// no room for as many servers.
///
/// # Errors
/// As [`run`], and for a cluster whose name does not say that it is pretended.
pub async fn run_pretending(options: AgentOptions) -> Result<ExitCode, AgentError> {
    tracing::warn!("there is no PostgreSQL here: this agent only pretends that there is one");
    run_with(options, |config| Pretended::new(&config)).await
}

async fn run_with<I: Instance>(
    options: AgentOptions,
    instance: impl FnOnce(InstanceConfig) -> Result<I, SetupError>,
) -> Result<ExitCode, AgentError> {
    abort_on_panic();
    let exe = options.exe.clone();
    let parts = setup::start(options, instance).await?;
    match Shell::run(parts).await {
        End::Exit(code) | End::GiveUp(code) => Ok(ExitCode::from(code)),
        End::Reexecute => {
            // PostgreSQL, guard and lease go on; only this program is replaced, under the same pid.
            let error = Command::new(&exe).args(std::env::args_os().skip(1)).exec();
            tracing::error!(%error, exe = %exe.display(), "cannot re-execute");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A panic anywhere in the agent ends the process: lease and guard make that safe, half a loop
/// would not be.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}
