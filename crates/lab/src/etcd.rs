//! The members of an etcd, on loopback or each on a host of its own.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::service::Spec;

/// Members of the demo's etcd: one may be lost.
pub const MEMBERS: u16 = 3;
/// Between heartbeats of etcd's leader. etcd's own default.
const HEARTBEAT_MS: u32 = 100;
/// Without a heartbeat for once to twice this long, its members elect another leader. Half of
/// etcd's default: where its leader is lost with the primary, no failover begins before that.
const ELECTION_MS: u32 = 500;

/// One member.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name in its cluster.
    pub name: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its host's address.
    pub address: Ipv4Addr,
    /// Where clients reach it there.
    pub client_port: u16,
    /// Where the other members reach it there.
    pub peer_port: u16,
}

impl Member {
    /// The members of a cluster on loopback, in `directory`, with client ports from `client_base`
    /// and peer ports from `peer_base`.
    #[must_use]
    pub fn plan(directory: &Path, client_base: u16, peer_base: u16) -> Vec<Member> {
        (0..MEMBERS)
            .map(|n| Member {
                name: format!("etcd-{}", n + 1),
                data_dir: directory.join(format!("etcd-{}", n + 1)),
                address: Ipv4Addr::LOCALHOST,
                client_port: client_base + n,
                peer_port: peer_base + n,
            })
            .collect()
    }

    /// How clients name it.
    #[must_use]
    pub fn client_url(&self) -> String {
        format!("http://{}:{}", self.address, self.client_port)
    }

    /// The same as an address.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        (self.address, self.client_port).into()
    }

    fn peer_url(&self) -> String {
        format!("http://{}:{}", self.address, self.peer_port)
    }

    /// The service that runs this member of `cluster`. The same command starts it the first time
    /// and every later time: with a data directory, etcd ignores the initial settings.
    #[must_use]
    pub fn service(&self, cluster: &[Member], program: &Path, restart_after: Duration) -> Spec {
        let initial: Vec<String> =
            cluster.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect();
        let options: [(&str, OsString); 13] = [
            ("--name", self.name.clone().into()),
            ("--data-dir", self.data_dir.clone().into()),
            ("--listen-client-urls", self.client_url().into()),
            ("--advertise-client-urls", self.client_url().into()),
            ("--listen-peer-urls", self.peer_url().into()),
            ("--initial-advertise-peer-urls", self.peer_url().into()),
            ("--initial-cluster", initial.join(",").into()),
            ("--initial-cluster-token", "pgherd-demo".into()),
            ("--initial-cluster-state", "new".into()),
            ("--heartbeat-interval", HEARTBEAT_MS.to_string().into()),
            ("--election-timeout", ELECTION_MS.to_string().into()),
            ("--auto-compaction-retention", "1h".into()),
            ("--logger", "zap".into()),
        ];
        let options = options.into_iter().flat_map(|(key, value)| [key.into(), value]);
        // Or a member that was away makes the others elect again when it is back.
        let arguments = options.chain(["--pre-vote".into()]).collect();
        Spec {
            name: self.name.clone(),
            program: program.to_owned(),
            arguments,
            log: self.data_dir.with_extension("log"),
            restart_after,
            group: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_knows_all_members() {
        let members = Member::plan(Path::new("/d"), 100, 200);
        let spec = members[2].service(&members, Path::new("/usr/bin/etcd"), Duration::ZERO);
        let text: Vec<String> =
            spec.arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let at = text.iter().position(|a| a == "--initial-cluster").expect("it is set");
        assert_eq!(
            text[at + 1],
            "etcd-1=http://127.0.0.1:200,etcd-2=http://127.0.0.1:201,etcd-3=http://127.0.0.1:202"
        );
        assert_eq!(spec.log, Path::new("/d/etcd-3.log"));
        assert_eq!(members[2].client_url(), "http://127.0.0.1:102");
    }
}
