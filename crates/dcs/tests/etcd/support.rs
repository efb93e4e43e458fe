//! A real etcd cluster on loopback, for one test.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dcs::{Client, ClientConfig};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use types::Millis;

/// Longest wait for a new cluster to answer.
const READY_MAX: Duration = Duration::from_secs(20);

/// The members; they are killed and their directories removed on drop.
pub(crate) struct Etcd {
    members: Vec<Member>,
    /// How its readiness is looked at.
    tls: Option<tls::ClientSettings>,
    _dir: TempDir,
}

/// TLS of a member's clients.
pub(crate) struct Secure<'a> {
    /// Its certificate and key.
    pub(crate) server: tls::Identity,
    /// Who stands behind clients' certificates; `None`: they show none.
    pub(crate) clients: Option<&'a Path>,
    /// A client that is let in.
    pub(crate) known: tls::ClientSettings,
}

impl Secure<'_> {
    fn arguments(&self) -> Vec<String> {
        let key = self.server.key.as_ref().expect("a file of its own");
        let mut arguments = vec![
            format!("--cert-file={}", self.server.certificate.display()),
            format!("--key-file={}", key.display()),
        ];
        if let Some(authorities) = self.clients {
            arguments.push("--client-cert-auth".to_owned());
            arguments.push(format!("--trusted-ca-file={}", authorities.display()));
        }
        arguments
    }
}

struct Member {
    url: String,
    command: Vec<String>,
    child: Child,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have been killed by the test already.
            drop(member.child.kill());
            drop(member.child.wait());
        }
    }
}

impl Etcd {
    /// Starts `n` members and waits until they serve.
    pub(crate) async fn start(n: usize) -> Etcd {
        Etcd::start_with(n, None).await
    }

    /// The same, with TLS.
    pub(crate) async fn start_with(n: usize, secure: Option<&Secure<'_>>) -> Etcd {
        let scheme = if secure.is_some() { "https" } else { "http" };
        let dir = TempDir::new().expect("a temporary directory");
        let ports: Vec<u16> = (0..2 * n).map(|_| lab::ports::reserve().expect("a port")).collect();
        let peer = |i: usize| format!("http://127.0.0.1:{}", ports[2 * i + 1]);
        let all: Vec<String> = (0..n).map(|i| format!("m{i}={}", peer(i))).collect();
        let members = (0..n)
            .map(|i| {
                let url = format!("{scheme}://127.0.0.1:{}", ports[2 * i]);
                let data = dir.path().join(format!("m{i}"));
                let mut command = [
                    "--name".to_owned(),
                    format!("m{i}"),
                    "--data-dir".to_owned(),
                    data.display().to_string(),
                    "--listen-client-urls".to_owned(),
                    url.clone(),
                    "--advertise-client-urls".to_owned(),
                    url.clone(),
                    "--listen-peer-urls".to_owned(),
                    peer(i),
                    "--initial-advertise-peer-urls".to_owned(),
                    peer(i),
                    "--initial-cluster".to_owned(),
                    all.join(","),
                    "--initial-cluster-token".to_owned(),
                    dir.path().display().to_string(),
                    "--heartbeat-interval=50".to_owned(),
                    "--election-timeout=500".to_owned(),
                    "--unsafe-no-fsync".to_owned(),
                    "--logger=zap".to_owned(),
                    "--log-level=error".to_owned(),
                ]
                .to_vec();
                command.extend(secure.map(Secure::arguments).unwrap_or_default());
                let child = spawn(&command);
                Member { url, command, child }
            })
            .collect();
        let tls = secure.map(|secure| secure.known.clone());
        let etcd = Etcd { members, tls, _dir: dir };
        etcd.wait_ready().await;
        etcd
    }

    async fn wait_ready(&self) {
        for i in 0..self.members.len() {
            self.wait_ready_for(&self.client_of(&[i], 2000)).await;
        }
    }

    /// Waits until `client` gets answers.
    pub(crate) async fn wait_ready_for(&self, client: &Client) {
        let ready = tokio::time::timeout(READY_MAX, async {
            while let Err(error) = client.get("ready?").await {
                assert!(error.is_outage(), "{error}");
            }
        });
        ready.await.expect("etcd did not become ready in time");
    }

    /// A client of all members, starting with any.
    pub(crate) fn client(&self, retry_timeout: u64) -> Client {
        let all: Vec<usize> = (0..self.members.len()).collect();
        self.client_of(&all, retry_timeout)
    }

    /// A client of some members.
    pub(crate) fn client_of(&self, members: &[usize], retry_timeout: u64) -> Client {
        let urls = members.iter().map(|&i| self.members[i].url.clone());
        let mut config = ClientConfig::new(urls.collect(), Millis(retry_timeout));
        config.tls = self.tls.clone();
        Client::connect(config).expect("valid settings")
    }

    /// The first member's URL.
    pub(crate) fn url(&self) -> String {
        self.members[0].url.clone()
    }

    /// The member with this URL.
    pub(crate) fn member(&self, url: &str) -> usize {
        let found = self.members.iter().position(|m| m.url == url);
        found.expect("an endpoint of this cluster")
    }

    /// Stops a member; returns when each of its threads has stopped.
    pub(crate) fn freeze(&self, member: usize) {
        self.signal(member, Signal::STOP);
        let tasks = format!("/proc/{}/task", self.members[member].child.id());
        let stopped = || {
            let tasks = std::fs::read_dir(&tasks).expect("a running member");
            tasks.flatten().all(|task| {
                // A thread that has ended meanwhile does not run either.
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['T', 't']))
            })
        };
        while !stopped() {
            std::thread::yield_now();
        }
    }

    pub(crate) fn thaw(&self, member: usize) {
        self.signal(member, Signal::CONT);
    }

    pub(crate) fn kill(&mut self, member: usize) {
        let child = &mut self.members[member].child;
        child.kill().expect("a running member");
        child.wait().expect("our child");
    }

    pub(crate) fn restart(&mut self, member: usize) {
        self.members[member].child = spawn(&self.members[member].command);
    }

    fn signal(&self, member: usize, signal: Signal) {
        let pid = Pid::from_child(&self.members[member].child);
        kill_process(pid, signal).expect("a running member");
    }
}

fn spawn(arguments: &[String]) -> Child {
    let child = Command::new("etcd")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.unwrap_or_else(|e| panic!("cannot start etcd ({e}): `make tools` installs it"))
}
