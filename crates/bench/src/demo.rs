//! `pgherd demo` as a subprocess, and what it says.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// How long the demo may say nothing: the longest step of a drill takes less.
const SILENCE_LIMIT: Duration = Duration::from_secs(600);
/// How long it may take to end.
const END_LIMIT: Duration = Duration::from_secs(120);

/// One fault of a drill, as its event tells it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Step {
    /// What was done.
    pub(crate) fault: String,
    /// Why it was not.
    pub(crate) skipped: Option<String>,
    /// The primary at that time.
    pub(crate) node: Option<String>,
    /// When it struck, in milliseconds since the machine was booted.
    pub(crate) at_boot_ms: Option<i64>,
    /// When an insert was first acknowledged on the next timeline.
    pub(crate) handed_over_at_boot_ms: Option<i64>,
    /// The longest time without an acknowledged insert.
    pub(crate) longest_gap_seconds: f64,
    /// Acknowledged inserts that are not there.
    pub(crate) missing: Option<usize>,
    /// Acknowledgements that must not be.
    pub(crate) interleaved: usize,
    /// Whether the primary's host had the leader of etcd, where etcd stands on the same hosts.
    pub(crate) etcd_leader_there: Option<bool>,
    /// What did not go as it should.
    pub(crate) note: Option<String>,
}

impl Step {
    /// The outage, if the fault was tried.
    pub(crate) fn gap(&self) -> Option<f64> {
        self.skipped.is_none().then_some(self.longest_gap_seconds)
    }
}

/// A demo that runs. It is told to end when this is dropped.
pub(crate) struct Demo {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Demo {
    /// Starts `pgherd demo --json` with `options` in `directory`.
    pub(crate) fn start(
        program: &Path,
        directory: &Path,
        options: &[&str],
    ) -> anyhow::Result<Demo> {
        let mut child = Command::new(program)
            .args(["demo", "--json", "--dir"])
            .arg(directory)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C reaches it through us, so that it is told once.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let output = child.stdout.take().context("the demo has no output")?;
        Ok(Demo { child, lines: BufReader::new(output).lines() })
    }

    /// The next thing it says, which must come soon; nothing when it has ended.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        tokio::time::timeout(SILENCE_LIMIT, self.said()).await.context("the demo is silent")?
    }

    /// The next thing it says, whenever that is. Cancel safety: yes.
    pub(crate) async fn said(&mut self) -> anyhow::Result<Option<Value>> {
        let Some(line) = self.lines.next_line().await? else { return Ok(None) };
        let event: Value =
            serde_json::from_str(&line).with_context(|| format!("the demo said {line:?}"))?;
        if event["event"] == "failed" {
            bail!("the demo failed: {}", event["error"].as_str().unwrap_or_default());
        }
        Ok(Some(event))
    }

    /// Waits until the cluster is healthy; what it says about itself then.
    pub(crate) async fn healthy(&mut self) -> anyhow::Result<Value> {
        while let Some(event) = self.next().await? {
            if event["event"] == "healthy" {
                return Ok(event);
            }
        }
        bail!("the demo ended before it was healthy")
    }

    /// Ends it, and returns when it is gone.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        self.terminate();
        tokio::time::timeout(END_LIMIT, self.child.wait())
            .await
            .context("the demo does not end")??;
        Ok(())
    }

    fn terminate(&self) {
        if let Some(pid) = self.child.id() {
            // It may be gone, which is what we want.
            drop(lab::process::signal(pid, Signal::TERM));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.terminate();
        // It unmounts and removes what it made; whoever comes next may need its ports.
        let until = std::time::Instant::now() + END_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The program beside this one, unless another one is wanted.
pub(crate) fn program(wanted: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(program) = wanted {
        return Ok(program.clone());
    }
    let own = std::env::current_exe().context("cannot find the path of this program")?;
    let beside = own.with_file_name("pgherd");
    anyhow::ensure!(beside.is_file(), "{} is not there: build it, or name it", beside.display());
    Ok(beside)
}
