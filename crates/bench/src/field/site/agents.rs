//! Patroni's architecture and ours: an etcd and an agent on each host, and a proxy beside the
//! clients. Both agents read the same files, which is the point of them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use lab::etcd;
use lab::ground::Ground;
use lab::network;
use lab::service::{Service, Spec};
use lab::tools;
use serde_json::{Value, json};

use super::node::{HOSTS, Hands, Node, make_directory, write};
use super::{ENTRY_PORT, Programs, READ_PORT};
use crate::field::kinds::{Architecture, Crowd, Mode, Shape};

/// The cluster's name.
const SCOPE: &str = "field";
/// Client and peer port of etcd, on each host.
pub(super) const ETCD_PORTS: [u16; 2] = [2379, 2380];
/// The agents' REST port.
const REST_PORT: u16 = 8008;
/// As systemd's units of either have it, near enough.
const RESTART_AFTER: Duration = Duration::from_secs(3);
/// How long a command of an operator may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// What runs.
pub(super) struct Agents {
    etcd: Vec<Service>,
    agents: Vec<Service>,
    _proxy: Service,
    files: Vec<PathBuf>,
    /// The operator's command.
    control: PathBuf,
    ours: bool,
}

/// What to start, and where.
pub(super) struct Plan<'a> {
    pub(super) shape: Shape,
    pub(super) directory: &'a Path,
    pub(super) nodes: &'a [Node],
    pub(super) programs: &'a Programs,
    pub(super) hands: &'a Hands,
}

impl Agents {
    pub(super) fn start(ground: &Ground, plan: &Plan<'_>) -> anyhow::Result<Agents> {
        let members = etcd_members(plan)?;
        let program = tools::etcd()?;
        let etcd = (0..).zip(&members).map(|(host, member)| {
            ground.start(host, member.service(&members, &program, RESTART_AFTER))
        });
        let etcd = etcd.collect();
        let ours = plan.shape.architecture.is_ours();
        let (mut agents, mut files) = (Vec::new(), Vec::new());
        for node in plan.nodes {
            let file = plan.directory.join(format!("{}.yml", node.name));
            write(&file, &format!("{:#}\n", plan.agent(node)), plan.hands.owner)?;
            agents.push(ground.start(node.host, plan.agent_spec(node, &file)?));
            files.push(file);
        }
        let proxy = ground.start(plan.nodes.len(), plan.proxy_spec()?);
        let patroni = &plan.programs.patroni;
        let control = if ours { plan.programs.pgherd.clone() } else { patroni.join("patronictl") };
        Ok(Agents { etcd, agents, _proxy: proxy, files, control, ours })
    }

    /// Nothing of a host is started again before [`Agents::release`].
    pub(super) fn hold(&self, host: usize) {
        self.agents[host].hold();
        self.etcd[host].hold();
    }

    pub(super) fn release(&self, host: usize) {
        self.agents[host].release();
        self.etcd[host].release();
    }

    /// A planned switchover, as an operator asks for it on the clients' host.
    pub(super) async fn switch_over(
        &self,
        ground: &Ground,
        from: &Node,
        to: &Node,
    ) -> anyhow::Result<()> {
        let file = self.files.first().context("there are members")?;
        let mut arguments: Vec<OsString> = vec!["-c".into(), file.into()];
        // Ours takes the file behind the command's name.
        arguments.insert(if self.ours { 0 } else { 2 }, "switchover".into());
        let words = [SCOPE, "--leader", &from.name, "--candidate", &to.name, "--force"];
        arguments.extend(words.map(OsString::from));
        let client = self.agents.len();
        ground.run(client, None, &self.control, &arguments, COMMAND_LIMIT).await?;
        Ok(())
    }
}

fn etcd_members(plan: &Plan<'_>) -> anyhow::Result<Vec<etcd::Member>> {
    let member = |node: &Node| {
        let name = format!("etcd-{}", node.host + 1);
        let data_dir = plan.directory.join(&name);
        make_directory(&data_dir, None)?;
        let [client_port, peer_port] = ETCD_PORTS;
        Ok(etcd::Member { name, data_dir, address: node.address(), client_port, peer_port })
    };
    plan.nodes.iter().map(member).collect()
}

impl Plan<'_> {
    fn agent_spec(&self, node: &Node, file: &Path) -> anyhow::Result<Spec> {
        let (program, arguments): (PathBuf, Vec<OsString>) = if self.shape.architecture.is_ours() {
            (self.programs.pgherd.clone(), vec!["agent".into(), "-c".into(), file.into()])
        } else {
            // It refuses to run as root.
            let (uid, gid) = self.hands.owner.context("the hosts of the laboratory need root")?;
            let patroni = self.programs.patroni.join("patroni");
            let arguments = [format!("--reuid={uid}"), format!("--regid={gid}")].map(Into::into);
            let rest = ["--clear-groups".into(), "--".into(), patroni.into(), file.into()];
            ("setpriv".into(), arguments.into_iter().chain(rest).collect())
        };
        Ok(self.spec(&node.name, program, arguments))
    }

    fn proxy_spec(&self) -> anyhow::Result<Spec> {
        if self.shape.architecture.is_ours() {
            let file = self.directory.join("proxy.yml");
            write(&file, &format!("{:#}\n", self.proxy()), None)?;
            let arguments = vec!["proxy".into(), "-c".into(), file.into()];
            return Ok(self.spec("proxy", self.programs.pgherd.clone(), arguments));
        }
        let file = self.directory.join("haproxy.cfg");
        write(&file, &self.haproxy(), None)?;
        let program = tools::for_administrators("haproxy").context("haproxy is not installed")?;
        Ok(self.spec("haproxy", program, vec!["-db".into(), "-f".into(), file.into()]))
    }

    fn spec(&self, name: &str, program: PathBuf, arguments: Vec<OsString>) -> Spec {
        Spec {
            name: name.to_owned(),
            program,
            arguments,
            log: self.directory.join(format!("{name}.log")),
            restart_after: RESTART_AFTER,
            group: None,
        }
    }

    fn etcd_hosts(&self) -> Vec<String> {
        let host = |node: &Node| format!("{}:{}", node.address(), ETCD_PORTS[0]);
        self.nodes.iter().map(host).collect()
    }

    /// One member's file.
    fn agent(&self, node: &Node) -> Value {
        let rest = format!("{}:{REST_PORT}", node.address());
        let address = format!("{}:{}", node.address(), node.port);
        let initdb = match self.shape.architecture.is_ours() {
            true => lab::cluster::initdb(),
            false => json!(["data-checksums", {"encoding": "UTF8"}]),
        };
        let mut file = json!({
            "scope": SCOPE,
            "name": node.name,
            "etcd3": {"hosts": self.etcd_hosts()},
            "watchdog": {"mode": "off"},
            "restapi": {
                "listen": rest,
                "connect_address": rest,
                // Ours takes no orders from another host without.
                "authentication": {"username": "operator", "password": "none"},
            },
            "bootstrap": {"dcs": self.dynamic(), "initdb": initdb},
            "postgresql": {
                "listen": address,
                "connect_address": address,
                "data_dir": node.data_dir(),
                "bin_dir": self.hands.bin_dir,
                "pgpass": node.directory.join("pgpass"),
                "use_unix_socket": true,
                "authentication": {
                    "superuser": {"username": "postgres", "password": "none"},
                    "replication": {"username": "replicator", "password": "none"},
                    "rewind": {"username": "rewinder", "password": "none"},
                },
                "parameters": {"unix_socket_directories": node.socket_dir()},
                "pg_hba": [
                    "local all all trust",
                    format!("host replication all {HOSTS} trust"),
                    format!("host all all {HOSTS} trust"),
                ],
            },
        });
        if self.shape.remote && node.host + 1 == self.nodes.len() {
            file["tags"] = json!({"nofailover": true, "nosync": true});
        }
        if self.shape.architecture.is_ours() {
            let state = node.directory.join("state");
            file["pgherd"] = json!({"state_dir": state, "os_user": tools::OS_USER});
        }
        file
    }

    /// What is the same for all members.
    fn dynamic(&self) -> Value {
        let mut dynamic = match self.shape.architecture {
            Architecture::PgherdLease => {
                lab::cluster::dynamic(10, Some(lab::cluster::FailoverMode::Lease))
            }
            Architecture::PgherdFenced => {
                lab::cluster::dynamic(10, Some(lab::cluster::FailoverMode::Fenced))
            }
            Architecture::PatroniTight => json!({
                "ttl": 20, "loop_wait": 1, "retry_timeout": 3, "primary_start_timeout": 0,
            }),
            _ => json!({"ttl": 30, "loop_wait": 10, "retry_timeout": 10}),
        };
        dynamic["postgresql"]["use_pg_rewind"] = json!(true);
        // Copies that nobody will miss.
        dynamic["postgresql"]["remove_data_directory_on_rewind_failure"] = json!(true);
        dynamic["postgresql"]["remove_data_directory_on_diverged_timelines"] = json!(true);
        dynamic["postgresql"]["parameters"]["max_connections"] = json!(self.shape.connections());
        dynamic["synchronous_mode"] = match self.shape.mode {
            Mode::Async => json!(false),
            Mode::On | Mode::Strict => json!(true),
            Mode::Quorum => json!("quorum"),
        };
        dynamic["synchronous_mode_strict"] = json!(self.shape.mode == Mode::Strict);
        dynamic
    }

    fn proxy(&self) -> Value {
        let mut proxy = json!({
            "name": "proxy1",
            "read_write": format!("127.0.0.1:{ENTRY_PORT}"),
            "read_only": format!("127.0.0.1:{READ_PORT}"),
        });
        if self.shape.crowd == Crowd::Pooled {
            proxy["pool_mode"] = json!("transaction");
            // Servers let everybody in here.
            proxy["auth"] = json!("trust");
        }
        json!({
            "scope": SCOPE,
            "etcd3": {"hosts": self.etcd_hosts()},
            "pgherd": {"proxy": proxy},
        })
    }

    /// Patroni's own example, with the times of the architecture.
    fn haproxy(&self) -> String {
        let check = match self.shape.architecture {
            Architecture::PatroniTight => "inter 1s fall 1 rise 1",
            _ => "inter 3s fall 3 rise 2",
        };
        let mut text = "global\n    maxconn 5000\n\
            defaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    \
            timeout connect 4s\n    timeout server 30m\n    timeout check 5s\n"
            .to_owned();
        for (name, port) in [("primary", ENTRY_PORT), ("replica", READ_PORT)] {
            text.push_str(&format!(
                "listen {name}\n    bind 127.0.0.1:{port}\n    option httpchk OPTIONS /{name}\n    \
                 http-check expect status 200\n    \
                 default-server {check} on-marked-down shutdown-sessions\n"
            ));
            for node in self.nodes {
                let (name, address, port) = (&node.name, network::address(node.host), node.port);
                text.push_str(&format!(
                    "    server {name} {address}:{port} maxconn 1000 check port {REST_PORT}\n"
                ));
            }
        }
        text
    }
}
