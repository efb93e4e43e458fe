//! A demo's cluster, proxies of its own before it, and clients of theirs.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::host::Host;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::{Config, Error, NoTls, SimpleQueryMessage};

use crate::common::{Demo, Killed, directory, free_port, pgherd, succeeded, wait_for};

/// Only a test that hangs waits so long.
pub const LIMIT: Duration = Duration::from_secs(120);
/// The demo's members, and where it puts their REST interfaces: from its first port on.
const REST_PORTS: [u16; 3] = [11, 21, 31];

/// Everything ends when it is dropped.
pub struct Lab {
    pub demo: Demo,
    root: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Lab {
        let root = directory();
        Lab { demo: Demo::new(&root.path().join("d")), root }
    }

    /// The members' REST interfaces, also before there are any.
    pub fn members(&self) -> Vec<String> {
        let port = |offset| self.demo.base_port() + offset;
        REST_PORTS.map(|offset| format!("http://127.0.0.1:{}", port(offset))).to_vec()
    }

    /// Its etcd's endpoints.
    pub fn etcd(&self) -> Vec<SocketAddr> {
        let file = self.demo.file();
        let urls = file["dcs"].as_array().unwrap().iter().map(|url| url.as_str().unwrap());
        urls.map(|url| url.strip_prefix("http://").unwrap().parse().unwrap()).collect()
    }

    fn node(&self, name: &str) -> Value {
        let file = self.demo.file();
        let nodes = file["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["name"] == *name).expect("a node of this name").clone()
    }

    /// The port of a member's PostgreSQL, by which clients are told it.
    pub fn postgres_port(&self, name: &str) -> u16 {
        u16::try_from(self.node(name)["pg_port"].as_u64().unwrap()).unwrap()
    }

    pub fn pid(&self, name: &str, of: &str) -> u32 {
        u32::try_from(self.node(name)[of].as_u64().expect("it runs")).unwrap()
    }

    /// All of a member's processes.
    pub fn host(&self, name: &str) -> Host {
        let data_dir: PathBuf = self.node(name)["data_dir"].as_str().unwrap().into();
        let state_dir = data_dir.with_file_name("state");
        Host { name: name.to_owned(), data_dir, state_dir, group: None }
    }

    /// A planned switchover; the new leader.
    pub fn switch_over(&self) -> String {
        let said = self.demo.ctl(&["switchover", "--force"]);
        assert!(said.contains("Successfully switched over"), "{said}");
        self.demo.settled(2)
    }

    /// Waits until another than `old` leads, as `pgherd list` shows it.
    pub fn deposed(&self, old: &str) -> String {
        wait_for("another leader", LIMIT, || {
            let roles = self.demo.roles();
            let mut leaders = roles.iter().filter(|(_, role)| *role == "Leader");
            leaders.next().map(|(name, _)| name.clone()).filter(|name| name != old)
        })
    }

    /// A proxy with these sources.
    pub fn proxy(&self, name: &str, sources: &Value, section: &Value) -> Proxy {
        let port = free_port();
        let mut config = json!({"scope": "demo", "namespace": "/service/"});
        let mut ours = json!({"name": name, "read_write": format!("127.0.0.1:{port}")});
        merge(&mut config, sources);
        merge(&mut ours, section);
        merge(&mut config, &json!({"pgherd": {"proxy": ours}}));
        let file = self.private(&format!("{name}.yml"), &config.to_string());
        let log = self.root.path().join(format!("{name}.log"));
        let output = File::create(&log).unwrap();
        let mut command = Command::new(pgherd());
        command.args(["proxy", "-c"]).arg(file).stdin(Stdio::null());
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let proxy = Proxy { process: Killed(command.spawn().unwrap()), port, log };
        wait_for("a proxy that listens", LIMIT, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok().map(drop)
        });
        proxy
    }

    /// The settings of pooling, by a file of users.
    pub fn pooling(&self, password: &str) -> Value {
        let users = self.private("users.txt", &format!("\"postgres\" \"{password}\"\n"));
        json!({"pool_mode": "transaction", "auth": "scram-sha-256", "users_file": users})
    }

    fn private(&self, name: &str, text: &str) -> PathBuf {
        let path = self.root.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }
}

/// The superuser's password, as soon as the demo in this directory has made it up.
pub fn password(dir: &Path) -> String {
    wait_for("the demo's passwords", LIMIT, || {
        let text = fs::read(dir.join("herd.json")).ok()?;
        let kept: Value = serde_json::from_slice(&text).ok()?;
        Some(kept["superuser_password"].as_str()?.to_owned())
    })
}

fn merge(into: &mut Value, from: &Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else {
        return;
    };
    for (key, value) in from {
        match into.get_mut(key) {
            Some(there) => merge(there, value),
            None => drop(into.insert(key.clone(), value.clone())),
        }
    }
}

/// A proxy that runs; killed when it is dropped.
pub struct Proxy {
    pub process: Killed,
    pub port: u16,
    log: PathBuf,
}

impl Proxy {
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Waits until its log has these words so often.
    pub fn says(&self, words: &str, times: usize) {
        wait_for(words, LIMIT, || (said(&self.log, words) >= times).then_some(()));
    }

    /// Whether the DCS is lost to it, as its log has it.
    pub fn asks_members(&self) -> bool {
        let (lost, back) = ("the DCS is lost", "the DCS is followed, members are not asked");
        said(&self.log, lost) > said(&self.log, back)
    }
}

fn said(log: &Path, words: &str) -> usize {
    fs::read_to_string(log).unwrap().matches(words).count()
}

/// A client's session.
pub struct Session {
    client: tokio_postgres::Client,
    connection: JoinHandle<Result<(), Error>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    pub async fn open(port: u16, password: &str) -> Result<Session, Error> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user("postgres").dbname("postgres").password(password);
        let (client, connection) = config.connect(NoTls).await?;
        Ok(Session { client, connection: tokio::spawn(connection) })
    }

    /// Runs statements; the first column of the rows.
    pub async fn run(&self, sql: &str) -> Result<Vec<String>, Error> {
        let run = tokio::time::timeout(LIMIT, self.client.simple_query(sql)).await;
        let messages = run.expect("an answer")?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The port of the server that answers, and that this is a primary.
    pub async fn primary(&self) -> u16 {
        let sql = "SELECT inet_server_port() WHERE NOT pg_is_in_recovery()";
        let rows = self.run(sql).await.expect("it is served");
        rows.first().expect("by a primary").parse().unwrap()
    }

    /// How the session was ended.
    pub async fn end(mut self) -> Option<Error> {
        let ended = tokio::time::timeout(LIMIT, &mut self.connection).await;
        ended.expect("it ends").unwrap().err()
    }
}

/// Writes this many rows, each in a session and a transaction of its own; which servers took them.
pub async fn write(port: u16, password: &str, rows: std::ops::Range<i32>) -> BTreeSet<u16> {
    let mut servers = BTreeSet::new();
    for id in rows {
        let session = Session::open(port, password).await.expect("a session");
        let insert = format!("INSERT INTO t VALUES ({id}) RETURNING inet_server_port()");
        let written = session.run(&insert).await.expect("it is written");
        servers.insert(written[0].parse().unwrap());
    }
    servers
}

/// Runs SQL with psql, at whichever of these ports answers.
pub fn psql_at(ports: &[u16], password: &str, sql: &str) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("postgresql://postgres:{password}@{}/postgres", hosts.join(","));
    succeeded(crate::common::psql(&url, sql)).trim().to_owned()
}
