//! Hosts to put programs on: each has a namespace in a [`Network`] and a cgroup of its own, and the
//! last one is the clients'. The thread that makes a [`Ground`] is on the clients' host as long as
//! the ground is there.
//!
//! Every process on it is killed, and every volume in its directory unmounted, when it is dropped,
//! after a panic too.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::cgroup::Group;
use crate::network::{self, Inside, Network, NetworkError};
use crate::process;
use crate::service::{Service, Spec};
use crate::volume;

/// How long processes may take to be gone after SIGKILL.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// How much of what a failed program said is told, in bytes from its end.
const SAID_BYTES_MAX: usize = 2000;

/// Hosts cannot be had, or a program on one failed.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    /// No network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// No cgroups.
    #[error("cannot make the cgroup {name}: the hosts of a cluster need root and cgroup v2")]
    NoGroup {
        /// Its name.
        name: String,
    },
    /// A host's processes cannot be killed, frozen or thawed.
    #[error("cannot {what} {host}: {source}")]
    Host {
        /// What was to be done.
        what: &'static str,
        /// The host.
        host: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program cannot be started.
    #[error("cannot run {program}: {source}")]
    Run {
        /// Which.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program said no.
    #[error("{program} {arguments:?} failed: {said}")]
    Failed {
        /// Which.
        program: PathBuf,
        /// With what.
        arguments: Vec<OsString>,
        /// Its last words.
        said: String,
    },
    /// A program took too long.
    #[error("{program} {arguments:?} did not end within {limit:?}")]
    Late {
        /// Which.
        program: PathBuf,
        /// With what.
        arguments: Vec<OsString>,
        /// How long it had.
        limit: Duration,
    },
}

/// Hosts with nothing on them yet.
pub struct Ground {
    // What follows goes in this order: processes, file systems, and the thread leaves before the
    // network ends.
    groups: Groups,
    _mounts: Mounts,
    _inside: Inside,
    /// Its network.
    pub network: Network,
}

impl Ground {
    /// Makes a host of each name; volumes in `directory` are unmounted at the end.
    ///
    /// # Errors
    /// What is missing; nothing is left behind.
    pub fn new(directory: &Path, hosts: &[impl AsRef<str>]) -> Result<Ground, GroundError> {
        let mounts = Mounts(directory.to_owned());
        let names: Vec<&str> = hosts.iter().map(AsRef::as_ref).collect();
        let network = Network::new(&names)?;
        let mut groups = Groups(Vec::new());
        for host in 0..hosts.len() {
            let name = network.name(host);
            let group = Group::create(name);
            groups.0.push(group.ok_or_else(|| GroundError::NoGroup { name: name.to_owned() })?);
        }
        let inside = network.enter(hosts.len().saturating_sub(1))?;
        Ok(Ground { groups, _mounts: mounts, _inside: inside, network })
    }

    /// A host's cgroup.
    #[must_use]
    pub fn group(&self, host: usize) -> &Group {
        &self.groups.0[host]
    }

    /// Starts a program on a host, and keeps it running there.
    #[must_use]
    pub fn start(&self, host: usize, spec: Spec) -> Service {
        let (program, arguments) = self.network.on_host(host, &spec.program, spec.arguments);
        let group = Some(self.group(host).clone());
        Service::start(Spec { program, arguments, group, ..spec })
    }

    /// Runs a program on a host to its end, as that user if there is one; what it said on its
    /// standard output. What it leaves running belongs to the host.
    ///
    /// # Errors
    /// It cannot be started, fails, or takes longer than `limit`.
    pub async fn run(
        &self,
        host: usize,
        user: Option<(u32, u32)>,
        program: &Path,
        arguments: &[OsString],
        limit: Duration,
    ) -> Result<String, GroundError> {
        let (program, arguments) = (program.to_owned(), arguments.to_vec());
        let mut command = self.command(host, user, &program, &arguments);
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        let output = match tokio::time::timeout(limit, output).await {
            Ok(Ok(output)) => output,
            Ok(Err(source)) => return Err(GroundError::Run { program, source }),
            Err(_) => return Err(GroundError::Late { program, arguments, limit }),
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = [output.stdout, output.stderr].concat();
        let last = said.len().saturating_sub(SAID_BYTES_MAX);
        let said = String::from_utf8_lossy(&said[last..]).trim().to_owned();
        Err(GroundError::Failed { program, arguments, said })
    }

    fn command(
        &self,
        host: usize,
        user: Option<(u32, u32)>,
        program: &Path,
        arguments: &[OsString],
    ) -> Command {
        // It joins its host's group before it is the program, so that nothing of it can escape.
        let mut inner: Vec<OsString> =
            ["-c", "echo $$ > \"$0\" && exec \"$@\""].map(OsString::from).into();
        inner.push(self.group(host).processes().into());
        if let Some((uid, gid)) = user {
            inner.push("setpriv".into());
            inner.extend([format!("--reuid={uid}"), format!("--regid={gid}")].map(Into::into));
            inner.extend(["--clear-groups".into(), "--".into()]);
        }
        inner.push(program.into());
        inner.extend(arguments.iter().cloned());
        let (nsenter, all) = self.network.on_host(host, Path::new("/bin/sh"), inner);
        let mut command = Command::new(nsenter);
        command.args(all).stdin(Stdio::null()).kill_on_drop(true).process_group(0);
        command
    }

    /// Kills every process of a host at one instant.
    ///
    /// # Errors
    /// The kernel refused, or a process survived.
    pub async fn kill(&self, host: usize) -> Result<(), GroundError> {
        let group = self.group(host);
        let pids = group.pids();
        group.kill().map_err(|source| self.failed("kill", host, source))?;
        let left = process::wait_gone(pids, GONE_LIMIT).await;
        if left.is_empty() {
            return Ok(());
        }
        let source = io::Error::other(format!("{left:?} are still there after {GONE_LIMIT:?}"));
        Err(self.failed("kill", host, source))
    }

    /// Freezes every process of a host until [`Ground::thaw`].
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn freeze(&self, host: usize) -> Result<(), GroundError> {
        let frozen = self.group(host).freeze().await;
        frozen.map_err(|source| self.failed("freeze", host, source))
    }

    /// Lets a host go on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn thaw(&self, host: usize) -> Result<(), GroundError> {
        self.group(host).thaw().map_err(|source| self.failed("thaw", host, source))
    }

    fn failed(&self, what: &'static str, host: usize, source: io::Error) -> GroundError {
        GroundError::Host { what, host: self.network.name(host).to_owned(), source }
    }
}

/// The file systems mounted below a directory, unmounted when dropped.
struct Mounts(PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        if let Err(error) = volume::release_below(&self.0) {
            tracing::warn!(%error, "a volume stays mounted");
        }
    }
}

/// The hosts' cgroups, destroyed when dropped.
struct Groups(Vec<Group>);

impl Drop for Groups {
    fn drop(&mut self) {
        // All at the same time, so that nobody starts an election about the others' going.
        for group in &self.0 {
            drop(group.thaw().and_then(|()| group.kill()));
        }
        for group in &self.0 {
            if let Err(error) = group.destroy(GONE_LIMIT) {
                tracing::warn!(%error, "a host of the laboratory stays");
            }
        }
    }
}

/// Ends what processes left behind that were killed: the hosts of their clusters with everything
/// that runs there, and their networks.
pub fn sweep() {
    let is_left = |name: &str| network::owner(name).is_some_and(|pid| !process::is_alive(pid));
    drop(Groups(Group::find(is_left)));
    network::sweep();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_runs_on_its_host_and_what_it_leaves_ends_with_it() {
        let directory = std::env::temp_dir().join(format!("lab-ground-{}", std::process::id()));
        let Ok(ground) = Ground::new(&directory, &["one", "client"]) else { return };
        let limit = Duration::from_secs(20);
        let sh = |script: &str| vec![OsString::from("-c"), script.into()];
        let run = async |script: &str, user| {
            ground.run(0, user, Path::new("/bin/sh"), &sh(script), limit).await
        };
        let address = run("hostname -I || ip addr show leg0", None).await.expect("it runs");
        assert!(address.contains("10.77.0.1"), "{address}");
        assert_eq!(run("id -u", Some((65_534, 65_534))).await.expect("it runs"), "65534\n");
        let error = run("echo why >&2; exit 3", None).await.expect_err("it fails");
        assert!(error.to_string().ends_with("failed: why"), "{error}");
        run("sleep 600 > /dev/null 2>&1 &", None).await.expect("it runs");
        let left = ground.group(0).pids();
        assert_eq!(left.len(), 1);
        ground.freeze(0).await.expect("it can be frozen");
        ground.thaw(0).expect("it can be thawed");
        ground.kill(0).await.expect("it can be killed");
        assert!(!process::is_alive(left[0]));
        drop(ground);
    }
}
