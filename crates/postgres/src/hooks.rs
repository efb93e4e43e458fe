//! Commands of the operator's that are run about this instance.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::Stdio;

use crate::command::{Tie, prepare};
use crate::config::OsUser;
use crate::error::Error;

/// A cluster that a command makes instead of initdb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomBootstrap {
    /// The method's name, for messages.
    pub method: String,
    /// The command and its arguments; not empty.
    pub command: Vec<String>,
    /// `--scope` and `--datadir` are not added.
    pub no_params: bool,
    /// Recovery settings and signal files that the command left are used.
    pub keep_existing_recovery_conf: bool,
    /// Recovery runs with these settings, up to its end.
    pub recovery_conf: Option<BTreeMap<String, String>>,
    /// Further arguments, `--name=value`.
    pub arguments: Vec<(String, String)>,
}

/// How a copy of another member is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// pg_basebackup.
    Basebackup,
    /// A command.
    Custom(CustomMethod),
}

/// A command that makes a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomMethod {
    /// The method's name, for messages.
    pub name: String,
    /// The command and its arguments; not empty.
    pub command: Vec<String>,
    /// What stands in the data directory is left to it.
    pub keep_data: bool,
    /// It needs no running leader.
    pub no_leader: bool,
    /// Nothing is added to its arguments.
    pub no_params: bool,
    /// Further arguments, `--name=value`.
    pub arguments: Vec<(String, String)>,
}

/// What is run when a data directory is made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// What makes a new cluster; `None`: initdb.
    pub bootstrap: Option<CustomBootstrap>,
    /// Called with a connection string when a new cluster accepts connections; may be empty.
    pub post_bootstrap: Vec<String>,
    /// Lines that are added to a new cluster's pg_hba.conf where that is not ours.
    pub pg_hba: Vec<String>,
    /// How a copy is made, in this order; empty: pg_basebackup.
    pub replica_methods: Vec<ReplicaMethod>,
    /// The same of a node outside of the cluster; empty: as any other.
    pub remote_methods: Vec<ReplicaMethod>,
}

/// A command of the operator's: in the agent's working directory and with its environment, less
/// what is the agent's own; its output is the agent's.
fn command(
    os_user: Option<&OsUser>,
    words: &[String],
    arguments: &[OsString],
    tie: Tie,
) -> tokio::process::Command {
    let program = words.first().map_or("", String::as_str);
    let mut command = std::process::Command::new(program);
    command.args(words.iter().skip(1)).args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["PATRONI_", "PGHERD_", "KUBERNETES_", "NOTIFY_SOCKET", "WATCHDOG_"];
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    prepare(&mut command, os_user, tie);
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(tie == Tie::DiesWithUs);
    command
}

/// A callback: as other commands, but with a session of its own, in which it outlives the agent.
#[must_use]
pub fn callback_command(os_user: Option<&OsUser>, words: &[String]) -> tokio::process::Command {
    command(os_user, words, &[], Tie::Survives)
}

/// Runs a command of the operator's to its end.
///
/// Cancel safety: dropping the future kills the command.
///
/// # Errors
/// It cannot be run, or its exit status is not 0.
pub async fn run_hook(
    os_user: Option<&OsUser>,
    what: &str,
    words: &[String],
    arguments: &[OsString],
    variables: &[(&str, OsString)],
) -> Result<(), Error> {
    // The arguments may hold what is nobody's business (I6).
    let program = words.first().cloned().unwrap_or_default();
    tracing::info!(program, "running {what}");
    let mut command = command(os_user, words, arguments, Tie::DiesWithUs);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let status = command.status().await.map_err(|source| Error::Hook {
        what: format!("{what} ({program})"),
        outcome: format!("it cannot be run: {source}"),
    })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Hook { what: format!("{what} ({program})"), outcome: status.to_string() })
}

/// `--name=value`.
pub(crate) fn long_options<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<OsString> {
    pairs.into_iter().map(|(name, value)| format!("--{name}={value}").into()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_failure_is_told_without_the_arguments() {
        let words = ["sh", "-c", "exit $CODE", "password"].map(str::to_owned);
        let run = async |code: &str| {
            let variables = [("CODE", OsString::from(code))];
            run_hook(None, "the test", &words, &[], &variables).await
        };
        run("0").await.unwrap();
        let error = run("3").await.unwrap_err().to_string();
        assert_eq!(error, "the test (sh) failed: exit status: 3");
        let missing = ["/nonexistent/x".to_owned()];
        let error = run_hook(None, "the test", &missing, &[], &[]).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x) failed: it cannot be run"), "{error}");
    }
}
