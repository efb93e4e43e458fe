//! A PostgreSQL on a host of its own, and what an operator does to it by hand.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use lab::ground::Ground;
use lab::network;
use lab::tools;
use lab::volume::Volume;
use lab::workload::{self, Target};

/// The port of the first server. Each has another one: the ledger knows a server by its port.
const FIRST_PORT: u16 = 5433;
/// How long one program of PostgreSQL may take.
const PROGRAM_LIMIT: Duration = Duration::from_secs(120);

/// Where a server is.
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: String,
    /// Its host's number in the network.
    pub(crate) host: usize,
    /// Its port.
    pub(crate) port: u16,
    /// What is its own.
    pub(super) directory: PathBuf,
    /// The file system of its data.
    pub(crate) volume: Volume,
}

impl Node {
    /// Makes its directories in `parent`, and its volume.
    pub(super) fn make(parent: &Path, host: usize, owner: Owner) -> anyhow::Result<Node> {
        let name = format!("node{}", host + 1);
        let directory = parent.join(&name);
        make_directory(&directory, owner)?;
        let mount_point = directory.join("volume");
        Volume::mount(&directory.join("volume.img"), &mount_point, owner)?;
        let volume = Volume::at(&mount_point);
        let node = Node {
            name,
            host,
            port: FIRST_PORT + u16::try_from(host).context("few hosts")?,
            directory,
            volume,
        };
        make_directory(&node.socket_dir(), owner)?;
        Ok(node)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.join("volume/data")
    }

    pub(super) fn socket_dir(&self) -> PathBuf {
        self.directory.join("socket")
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        network::address(self.host)
    }

    /// How somebody on its host reaches it, whatever the network does.
    pub(crate) fn on_its_host(&self, application_name: &str) -> Target {
        let socket_dir = self.socket_dir();
        let host = socket_dir.to_string_lossy();
        workload::target_at(&host, self.port, "postgres", "none", application_name)
    }
}

/// Whom PostgreSQL runs as.
pub(super) type Owner = Option<(u32, u32)>;

/// Makes a directory of that owner's, unless it is there.
pub(super) fn make_directory(path: &Path, owner: Owner) -> anyhow::Result<()> {
    let make = || -> io::Result<()> {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        owner.map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid)))
    };
    make().with_context(|| format!("cannot make {}", path.display()))
}

/// Writes a file that belongs to that owner.
pub(super) fn write(path: &Path, text: &str, owner: Owner) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        fs::write(path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        owner.map_or(Ok(()), |(uid, gid)| chown(path, Some(uid), Some(gid)))
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// An operator's hands: PostgreSQL's programs, run on its host as its user.
pub(super) struct Hands {
    pub(super) bin_dir: PathBuf,
    pub(super) owner: Owner,
}

impl Hands {
    pub(super) fn new() -> anyhow::Result<Hands> {
        Ok(Hands { bin_dir: super::postgres_bin_dir()?, owner: tools::postgres_owner()? })
    }

    /// Runs a program of PostgreSQL's, or another one by its whole path.
    pub(super) async fn run(
        &self,
        ground: &Ground,
        node: &Node,
        program: &str,
        arguments: &[&str],
    ) -> anyhow::Result<String> {
        let program = self.bin_dir.join(program);
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let run = ground.run(node.host, self.owner, &program, &arguments, PROGRAM_LIMIT);
        Ok(run.await?)
    }

    /// A new, empty cluster of databases.
    pub(super) async fn initdb(&self, ground: &Ground, node: &Node) -> anyhow::Result<()> {
        let data_dir = node.data_dir();
        let arguments = ["-U", "postgres", "-A", "trust", "--data-checksums", "-E", "UTF8", "-D"];
        let data_dir_text = data_dir.to_string_lossy();
        self.run(ground, node, "initdb", &[&arguments[..], &[&data_dir_text]].concat()).await?;
        let rules = format!("local all all trust\nhost all all {HOSTS} trust\n{REPLICATION}");
        write(&data_dir.join("pg_hba.conf"), &rules, self.owner)
    }

    /// A copy of a server that runs, which is to follow it.
    pub(super) async fn copy(
        &self,
        ground: &Ground,
        node: &Node,
        from: &Node,
    ) -> anyhow::Result<()> {
        let data_dir = node.data_dir();
        let source = conninfo(from, node);
        let arguments = ["-c", "fast", "-X", "stream", "-D", &data_dir.to_string_lossy(), "-d"];
        self.run(ground, node, "pg_basebackup", &[&arguments[..], &[&source]].concat()).await?;
        write(&data_dir.join("standby.signal"), "", self.owner)
    }

    /// Starts it; it accepts connections then, or not within a minute.
    pub(super) async fn start(&self, ground: &Ground, node: &Node) -> anyhow::Result<()> {
        let script = self.start_command(node).join(" ");
        let program = Path::new("/bin/sh");
        let arguments = ["-c".into(), script.into()];
        ground.run(node.host, self.owner, program, &arguments, PROGRAM_LIMIT).await?;
        Ok(())
    }

    /// What starts it, for a shell. What differs from server to server is said here: a copy and a
    /// rewind bring the files of another one.
    pub(super) fn start_command(&self, node: &Node) -> Vec<String> {
        let own = format!(
            "\"-c port={} -c listen_addresses={},127.0.0.1 -c unix_socket_directories={}\"",
            node.port,
            node.address(),
            node.socket_dir().display()
        );
        let path = |path: PathBuf| path.display().to_string();
        let log = path(node.directory.join("postgres.log"));
        let pg_ctl = path(self.bin_dir.join("pg_ctl"));
        let data_dir = path(node.data_dir());
        let words = ["start", "-w", "-s", "-D", &data_dir, "-l", &log, "-o", &own];
        [pg_ctl].into_iter().chain(words.map(str::to_owned)).collect()
    }

    /// Stops it in order.
    pub(super) async fn stop(&self, ground: &Ground, node: &Node) -> anyhow::Result<()> {
        let data_dir = node.data_dir();
        let arguments = ["stop", "-w", "-s", "-m", "fast", "-D", &data_dir.to_string_lossy()];
        self.run(ground, node, "pg_ctl", &arguments).await.map(drop)
    }

    /// Takes a stopped former primary back to where its log is the new primary's, as its standby.
    pub(super) async fn rewind(
        &self,
        ground: &Ground,
        node: &Node,
        source: &Node,
    ) -> anyhow::Result<()> {
        let data_dir = node.data_dir();
        let from = format!("{} dbname=postgres", conninfo(source, node));
        let arguments = ["-D", &data_dir.to_string_lossy(), "--source-server", &from];
        self.run(ground, node, "pg_rewind", &arguments).await?;
        write(&data_dir.join("standby.signal"), "", self.owner)
    }
}

/// The network that every host is on.
pub(super) const HOSTS: &str = "10.77.0.0/24";
const REPLICATION: &str = "local replication all trust\nhost replication all 10.77.0.0/24 trust\n";

/// How `node` reaches `upstream`.
pub(super) fn conninfo(upstream: &Node, node: &Node) -> String {
    let (host, port, name) = (upstream.address(), upstream.port, &node.name);
    format!("host={host} port={port} user=postgres application_name={name} connect_timeout=5")
}
