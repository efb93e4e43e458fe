//! A network of simulated hosts: each has a network namespace of its own with one device, and every
//! packet between two of them goes through a [`switch`] of ours, which loses, delays or drops what
//! the [`rules`] name. Whoever sends into a cut learns nothing of it, as with a pulled cable.
//!
//! Needs root, `ip` of iproute2 and `/dev/net/tun`; no kernel module and no packet filter. All of
//! it goes when the [`Network`] is dropped; what a killed process left behind is known by its name
//! and removed by [`sweep`].

mod rules;
mod switch;
mod tun;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use rules::{Effect, Rule, Way};
use switch::Switch;

use crate::process;
use crate::tools;

/// Every namespace of ours is named `pgherd-lab-PID-SERIAL-HOST`.
const PREFIX: &str = "pgherd-lab-";
/// Where `ip` keeps the names.
const NAMES: &str = "/run/netns";
/// The device of each host, in its own namespace.
const DEVICE: &str = "leg0";
/// As on an ordinary network.
const MTU: &str = "1500";
/// Hosts of one network.
const HOSTS_MAX: usize = 32;

/// The network cannot be had, or not be changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Only root may make namespaces.
    #[error("network namespaces need root: run this as root")]
    NotRoot,
    /// A program is missing, or failed.
    #[error("`ip {arguments}` failed: {said} (it is part of the package iproute2)")]
    Ip {
        /// What was asked for.
        arguments: String,
        /// What it said.
        said: String,
    },
    /// A namespace cannot be entered.
    #[error("cannot enter the network namespace {path}: {source}")]
    Enter {
        /// Where its name stands.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A device cannot be made.
    #[error("cannot make a TUN device for {host}: {source}")]
    Tun {
        /// Whose.
        host: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The switch cannot be started.
    #[error("cannot start the switch of the network: {0}")]
    Switch(#[source] io::Error),
    /// Too many hosts.
    #[error("a network has {HOSTS_MAX} hosts at most")]
    Crowded,
}

/// Hosts, each in a namespace of its own, and the switch between them. Everything is removed when
/// this is dropped.
pub struct Network {
    namespaces: Vec<Namespace>,
    // Dropped after the namespaces: their devices have descriptors there.
    switch: Switch,
}

/// One named namespace, removed when dropped.
struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: String) -> Result<Namespace, NetworkError> {
        ip(&["netns", "add", &name])?;
        let namespace = Namespace { name };
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Makes its device, with an address.
    fn device(&self, address: Ipv4Addr) -> Result<File, NetworkError> {
        let path = self.path();
        // A thread of its own: a device is made in the namespace of the thread that opens it.
        let made = std::thread::spawn(move || {
            move_into(&path)?;
            tun::open(DEVICE)
                .map_err(|source| NetworkError::Tun { host: path.display().to_string(), source })
        });
        let file = made.join().map_err(|_| NetworkError::Tun {
            host: self.name.clone(),
            source: io::Error::other("the thread panicked"),
        })??;
        let address = format!("{address}/24");
        ip(&["-n", &self.name, "addr", "add", &address, "dev", DEVICE])?;
        ip(&["-n", &self.name, "link", "set", DEVICE, "mtu", MTU, "up"])?;
        Ok(file)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            tracing::warn!(%error, "a network namespace stays");
        }
    }
}

impl Network {
    /// Makes one, whole, with a host of each name.
    ///
    /// # Errors
    /// Something that it needs is missing; nothing is left behind.
    pub fn new(hosts: &[&str]) -> Result<Network, NetworkError> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            return Err(NetworkError::NotRoot);
        }
        if hosts.len() > HOSTS_MAX {
            return Err(NetworkError::Crowded);
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let (mut namespaces, mut devices) = (Vec::new(), Vec::new());
        for (host, name) in hosts.iter().enumerate() {
            let name = format!("{PREFIX}{}-{serial}-{name}", std::process::id());
            let namespace = Namespace::new(name)?;
            let address = address(host);
            devices.push((address, namespace.device(address)?));
            namespaces.push(namespace);
        }
        let switch = Switch::start(devices).map_err(NetworkError::Switch)?;
        Ok(Network { namespaces, switch })
    }

    /// Breaks something, beside what is broken already.
    pub fn apply(&self, rules: impl IntoIterator<Item = Rule>) {
        self.switch.rules.lock().extend(rules);
    }

    /// Mends everything.
    pub fn heal(&self) {
        self.switch.rules.lock().clear();
    }

    /// The name of a host's namespace, which no other process uses.
    #[must_use]
    pub fn name(&self, host: usize) -> &str {
        &self.namespaces[host].name
    }

    /// How to run a program on a host: the program and the arguments to start instead.
    #[must_use]
    pub fn on_host(
        &self,
        host: usize,
        program: &Path,
        arguments: Vec<OsString>,
    ) -> (PathBuf, Vec<OsString>) {
        let mut net = OsString::from("--net=");
        net.push(self.namespaces[host].path());
        let all = [net, "--".into(), program.into()].into_iter().chain(arguments).collect();
        // It replaces itself by the program: the pid is the program's.
        ("nsenter".into(), all)
    }

    /// From now on this thread is on that host: the sockets that it makes, and the programs that it
    /// starts. Until what is returned is dropped, on this thread.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn enter(&self, host: usize) -> Result<Inside, NetworkError> {
        let own = PathBuf::from("/proc/thread-self/ns/net");
        let before =
            File::open(&own).map_err(|source| NetworkError::Enter { path: own, source })?;
        move_into(&self.namespaces[host].path())?;
        Ok(Inside { before, _not_send: std::marker::PhantomData })
    }
}

/// The calling thread is on a host of a network.
pub struct Inside {
    before: File,
    /// It is about this thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let kind = Some(LinkNameSpaceType::Network);
        if let Err(errno) = move_into_link_name_space(self.before.as_fd(), kind) {
            tracing::error!(%errno, "this thread stays on a host of the laboratory");
        }
    }
}

/// The address of a host, by its number.
#[must_use]
pub fn address(host: usize) -> Ipv4Addr {
    // `HOSTS_MAX` is far below.
    Ipv4Addr::new(10, 77, 0, u8::try_from(host + 1).unwrap_or(u8::MAX))
}

/// Removes the namespaces of processes that are gone.
pub fn sweep() {
    let entries = fs::read_dir(NAMES).into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        if owner(&name).is_some_and(|pid| !process::is_alive(pid)) {
            drop(Namespace { name });
        }
    }
}

/// The process that made the namespace or the cgroup of this name.
pub(crate) fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn move_into(path: &Path) -> Result<(), NetworkError> {
    let fail = |source| NetworkError::Enter { path: path.to_owned(), source };
    let file = File::open(path).map_err(fail)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| fail(errno.into()))
}

fn ip(arguments: &[&str]) -> Result<(), NetworkError> {
    let fail = |said: String| NetworkError::Ip { arguments: arguments.join(" "), said };
    let program = tools::for_administrators("ip").ok_or_else(|| fail("not found".to_owned()))?;
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let done = done.map_err(|error| fail(error.to_string()))?;
    if done.status.success() {
        return Ok(());
    }
    Err(fail(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests;
