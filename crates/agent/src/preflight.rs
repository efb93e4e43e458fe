//! What is looked at before an agent takes its place, beyond the file and PostgreSQL's programs.
//! Nothing is changed here, on disk or elsewhere.
//!
//! A PostgreSQL that runs is never a reason to refuse: an agent that comes back has to look after
//! it (I7), and what is wrong with it is the brain's to judge.

use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::path::Path;

use config::{Dynamic, HostPort, Static};
use postgres::Instance;
use types::{ClusterView, DataDir, Process, keys};

use crate::error::AgentError;
use crate::state::StateDir;

/// State and journal need so much at least.
const STATE_BYTES_MIN: u64 = 1 << 20;
/// A new data directory needs so much at least: initdb writes 40 MiB, then comes the log.
const DATA_BYTES_MIN: u64 = 64 << 20;

/// What was found on this host.
pub(crate) struct Host {
    data_dir: DataDir,
    stopped: bool,
}

/// What does not depend on the DCS: state directory, data directory, port (if asked for), space.
///
/// # Errors
/// The first thing that keeps this agent from running its PostgreSQL.
pub(crate) async fn check_host<I: Instance>(
    settings: &Static,
    instance: &I,
    port: bool,
) -> Result<Host, AgentError> {
    let section = &settings.postgresql;
    let observed = instance.observe().await;
    let identifier = identifier(&observed.data_dir);
    let state_dir = &settings.pgherd.state_dir;
    let cluster = keys::prefix(&settings.namespace, &settings.scope);
    let durable = StateDir::check(state_dir, (&settings.name, &cluster), identifier)?;
    let stopped = observed.process == Process::Stopped;
    if !stopped {
        return Ok(Host { data_dir: observed.data_dir, stopped });
    }
    if port {
        check_port(&section.listen)?;
    }
    let needed = match &observed.data_dir {
        DataDir::Empty => DATA_BYTES_MIN,
        DataDir::Present(_) => STATE_BYTES_MIN,
        // A rewind or a copy that was interrupted is finished or made anew.
        DataDir::Unusable { .. } if durable.is_some_and(|d| d.in_progress.is_some()) => 0,
        DataDir::Unusable { why } => {
            return Err(AgentError::DataDir {
                path: section.data_dir.clone(),
                detail: why.clone(),
            });
        }
    };
    check_space(&section.data_dir, needed)?;
    check_space(state_dir, STATE_BYTES_MIN)?;
    Ok(Host { data_dir: observed.data_dir, stopped })
}

/// Refuses a stopped data directory that is not of the cluster in the DCS.
///
/// # Errors
/// The two system identifiers differ.
pub(crate) fn check_cluster(
    settings: &Static,
    host: &Host,
    view: &ClusterView,
    dynamic: &Dynamic,
) -> Result<(), AgentError> {
    let (Some(cluster), Some(ours)) = (view.system_identifier(), identifier(&host.data_dir)) else {
        return Ok(());
    };
    if !host.stopped || dynamic.pause || cluster == ours {
        return Ok(());
    }
    Err(AgentError::OtherCluster {
        path: settings.postgresql.data_dir.clone(),
        found: ours.to_owned(),
        scope: settings.scope.clone(),
        cluster: cluster.to_owned(),
    })
}

fn identifier(data_dir: &DataDir) -> Option<&str> {
    match data_dir {
        DataDir::Present(control) => Some(&control.system_identifier),
        DataDir::Empty | DataDir::Unusable { .. } => None,
    }
}

/// Whether PostgreSQL could listen. It goes on when one of several addresses is not there (a
/// virtual one, say), so only a taken port is refused, and that none of the addresses can be had.
fn check_port(listen: &HostPort) -> Result<(), AgentError> {
    let mut failed = None;
    let mut usable = false;
    for host in listen.hosts() {
        let host = if host == "*" { "0.0.0.0" } else { host };
        match try_listen(host, listen.port) {
            Ok(()) => usable = true,
            Err(source) => {
                let taken = source.kind() == io::ErrorKind::AddrInUse;
                let address = format!("{host}:{}", listen.port);
                let error = AgentError::PostgresPort { address, source };
                if taken {
                    return Err(error);
                }
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if !usable => Err(error),
        Some(_) | None => Ok(()),
    }
}

fn try_listen(host: &str, port: u16) -> io::Result<()> {
    for address in (host, port).to_socket_addrs()? {
        // Closed at once; nobody can have connected that would wait for an answer.
        drop(TcpListener::bind(address)?);
    }
    Ok(())
}

/// Whether the file system that `path` is, or would be, on has so many bytes left.
fn check_space(path: &Path, needed: u64) -> Result<(), AgentError> {
    let Some(there) = path.ancestors().find(|p| p.exists()) else {
        return Ok(());
    };
    // What cannot be asked is not refused: the first write will tell.
    let Ok(found) = rustix::fs::statvfs(there) else {
        return Ok(());
    };
    let available = found.f_bavail.saturating_mul(found.f_frsize);
    // Some file systems keep no account at all.
    if found.f_blocks == 0 || available >= needed {
        return Ok(());
    }
    Err(AgentError::DiskFull {
        path: path.to_owned(),
        available_kib: available >> 10,
        needed_kib: needed >> 10,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> HostPort {
        HostPort::parse(text, None).expect("host and port")
    }

    #[test]
    fn a_taken_port_is_refused_and_a_missing_address_is_not() {
        let port = lab::ports::reserve().expect("a free port");
        let holder = TcpListener::bind(("127.0.0.1", port)).expect("our own");
        let taken = check_port(&listen(&format!("127.0.0.1:{port}"))).expect_err("taken");
        assert!(taken.to_string().contains(&format!("127.0.0.1:{port}")), "{taken}");
        drop(holder);
        // TEST-NET-1 is nobody's.
        assert!(check_port(&listen(&format!("127.0.0.1,192.0.2.1:{port}"))).is_ok());
        assert!(check_port(&listen(&format!("192.0.2.1:{port}"))).is_err());
    }

    #[test]
    fn space_is_asked_where_the_path_will_be() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("not/there/yet");
        assert!(check_space(&path, 0).is_ok());
        let full = check_space(&path, u64::MAX).expect_err("nobody has that");
        assert!(full.to_string().contains("not/there/yet"), "{full}");
    }
}
