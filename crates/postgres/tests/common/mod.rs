//! Instances in temporary directories, killed when the test ends.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use postgres::{Credentials, InstanceConfig, LocalInstance, OsUser, Secret};
use types::{MemberName, Upstream};

/// The directories with PostgreSQL's programs to test with.
pub fn bin_dirs() -> Vec<PathBuf> {
    if let Ok(list) = std::env::var("PGHERD_TEST_BINDIRS") {
        return list.split(':').map(PathBuf::from).collect();
    }
    let entries = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let dirs = entries.flatten().map(|e| e.path().join("bin"));
    dirs.filter(|dir| dir.join("initdb").is_file()).collect()
}

/// The user that PostgreSQL runs as: `postgres` if the test is root.
fn os_user() -> Option<OsUser> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|l| l.starts_with("postgres:"));
    let fields: Vec<&str> = line.expect("the user postgres").split(':').collect();
    Some(OsUser {
        name: "postgres".to_owned(),
        uid: fields[2].parse().unwrap(),
        gid: fields[3].parse().unwrap(),
    })
}

pub struct Node {
    pub instance: LocalInstance,
    base: tempfile::TempDir,
}

impl Node {
    pub fn new(name: &str, bin_dir: &Path) -> Node {
        let base = tempfile::Builder::new().prefix("pgh").tempdir().unwrap();
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let user = os_user();
        if let Some(user) = &user {
            chown(base.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = config(name, bin_dir, base.path(), port, user);
        let instance = LocalInstance::new(config).unwrap();
        Node { instance, base }
    }

    pub fn upstream(&self) -> Upstream {
        let config = self.instance.config();
        Upstream { name: config.member.clone(), host: "127.0.0.1".to_owned(), port: config.port }
    }

    pub fn name(&self) -> MemberName {
        self.instance.config().member.clone()
    }

    pub fn postmaster_pid(&self) -> i32 {
        let path = self.instance.config().data_dir.join("postmaster.pid");
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// Runs statements with psql's library twin: a plain connection as superuser.
    pub async fn sql(&self, statement: &str) -> Vec<String> {
        let config = self.instance.config();
        let mut pg = tokio_postgres::Config::new();
        pg.host_path(&config.socket_dir).port(config.port);
        pg.user("postgres").password("super ' secret");
        pg.dbname("postgres");
        let (client, connection) = pg.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let messages = client.simple_query(statement).await.unwrap();
        let mut values = Vec::new();
        for message in messages {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                values.push(row.get(0).unwrap_or_default().to_owned());
            }
        }
        values
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for _ in 0..100 {
            let pids = self.instance.processes().unwrap_or_default();
            if pids.is_empty() {
                return;
            }
            for pid in pids.into_iter().filter_map(rustix::process::Pid::from_raw) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn config(
    name: &str,
    bin_dir: &Path,
    base: &Path,
    port: u16,
    os_user: Option<OsUser>,
) -> InstanceConfig {
    let role = |name: &str, password: &str| Credentials {
        username: name.to_owned(),
        password: Some(Secret::new(password)),
    };
    let parameters = [
        ("wal_retrieve_retry_interval", "200ms"),
        ("shared_buffers", "16MB"),
        ("max_connections", "30"),
        ("fsync", "off"),
        ("log_min_messages", "log"),
        ("wal_keep_size", "64MB"),
    ];
    let parameters = parameters.map(|(n, v)| (n.to_owned(), v.to_owned()));
    let pg_hba = [
        "local all all scram-sha-256",
        "host all all 127.0.0.1/32 scram-sha-256",
        "host replication all 127.0.0.1/32 scram-sha-256",
    ];
    InstanceConfig {
        member: name.into(),
        scope: "test".to_owned(),
        data_dir: base.join("data"),
        bin_dir: Some(bin_dir.to_owned()),
        listen: vec!["127.0.0.1".to_owned()],
        port,
        socket_dir: base.join("s"),
        os_user,
        superuser: role("postgres", "super ' secret"),
        replication: role("replicator", "rep:\\pass"),
        rewind: role("rewind_user", "rewind pass"),
        database: "postgres".to_owned(),
        pgpass: base.join("pgpass"),
        state_dir: base.join("state"),
        parameters: BTreeMap::from(parameters),
        pg_hba: pg_hba.map(str::to_owned).to_vec(),
        pg_ident: Vec::new(),
        initdb: Vec::new(),
        basebackup: Vec::new(),
        use_unix_socket: true,
    }
}
