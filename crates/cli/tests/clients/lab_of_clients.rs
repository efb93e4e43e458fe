//! A PostgreSQL, an etcd that shows it as a cluster's primary, and proxies.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{
    Etcd, Killed, directory, free_port, is_root, owner, pgherd, postgres_program, run, succeeded,
    wait_for,
};

/// Digits, letters, and what some client could take for something else.
const PASSWORD: &str = "a password with = and '";
/// Below which the cluster's keys stand.
pub const PREFIX: &str = "/service/clients/";
/// How long a program may take to start.
const STARTED: Duration = Duration::from_secs(60);

/// What clients of every mode share. Everything ends when it is dropped.
pub struct Lab {
    pub directory: tempfile::TempDir,
    pub etcd: Etcd,
    postgres: u16,
}

/// Where clients connect to.
pub struct Place {
    pub port: u16,
}

impl Place {
    /// The connection in libpq's variables.
    pub fn tell(&self, command: &mut Command) {
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command.env("PGPASSWORD", PASSWORD).env("PGCONNECT_TIMEOUT", "20");
    }

    /// The same for tokio-postgres.
    pub fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        config.password(PASSWORD);
        config
    }
}

impl Lab {
    pub fn start() -> Lab {
        let lab = Lab { directory: directory(), etcd: Etcd::start(), postgres: free_port() };
        let (uid, gid) = owner();
        chown(lab.directory.path(), Some(uid), Some(gid)).unwrap();
        let password_file = lab.file("password", PASSWORD);
        let mut initdb = lab.as_owner("initdb");
        initdb.args(["--auth=scram-sha-256", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D"]);
        initdb.arg(lab.data()).arg("--pwfile").arg(password_file);
        succeeded(run(initdb, STARTED));
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off \
             -c max_connections=200",
            lab.postgres
        );
        let mut start = lab.as_owner("pg_ctl");
        start.args(["start", "-w", "-s", "-o", &options, "-l"]);
        start.arg(lab.directory.path().join("log")).arg("-D").arg(lab.data());
        // It leaves a server behind that would keep pipes open.
        start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(start.status().unwrap().success(), "see the log");
        lab.show();
        let mut tables = Command::new(postgres_program("pgbench"));
        Place { port: lab.postgres }.tell(&mut tables);
        tables.args(["-i", "-q"]);
        succeeded(run(tables, STARTED));
        lab
    }

    /// Writes what an agent would.
    fn show(&self) {
        self.lead("n1", 1);
    }

    /// Writes what the agent of a primary would.
    pub fn lead(&self, name: &str, term: u32) {
        let member = json!({
            "conn_url": format!("postgres://127.0.0.1:{}/postgres", self.postgres),
            "role": "primary", "state": "running", "term": term, "timeline": term,
        });
        let term = json!({"term": term, "leader": name, "timeline": term});
        self.etcd.put(&format!("{PREFIX}members/{name}"), &member.to_string()).unwrap();
        let put = |key: &str, value: &str| dcs::Op::put(format!("{PREFIX}{key}"), value);
        // The term counts as the leader's when both are written at once.
        let then = vec![put("leader", name), put("pgherd/term", &term.to_string())];
        self.etcd.write(dcs::Txn { then, ..dcs::Txn::default() }).unwrap();
    }

    /// Users as PgBouncer's file has them.
    pub fn users_file(&self) -> PathBuf {
        self.file("users.txt", &format!("\"postgres\" \"{PASSWORD}\"\n"))
    }

    /// The file of a proxy at this place.
    pub fn proxy_file(&self, section: &Value, place: &Place) -> PathBuf {
        let mut section = section.clone();
        section["name"] = json!("clients");
        section["read_write"] = json!(format!("127.0.0.1:{}", place.port));
        let config = json!({
            "scope": "clients", "namespace": "/service/",
            "etcd3": {"hosts": [format!("127.0.0.1:{}", self.etcd.port)]},
            "pgherd": {"proxy": section},
        });
        self.file(&format!("proxy-{}.yml", place.port), &config.to_string())
    }

    /// A proxy that serves.
    pub fn proxy(&self, section: &Value) -> (Killed, Place) {
        let place = Place { port: free_port() };
        let file = self.proxy_file(section, &place);
        let log = self.directory.path().join(format!("proxy-{}.log", place.port));
        let output = File::create(&log).unwrap();
        let mut command = Command::new(pgherd());
        command.args(["proxy", "-c"]).arg(file).stdin(Stdio::null());
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let mut proxy = Killed(command.spawn().unwrap());
        wait_for("a proxy that serves", STARTED, || {
            let said = || fs::read_to_string(&log).unwrap();
            assert!(proxy.0.try_wait().unwrap().is_none(), "it ended: {}", said());
            let mut psql = Command::new(postgres_program("psql"));
            place.tell(&mut psql);
            psql.args(["-XAtq", "-c", "SELECT 1"]);
            run(psql, STARTED).status.success().then_some(())
        });
        (proxy, place)
    }

    /// A file of its own in the directory, which only those may read who own it.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let (uid, gid) = owner();
        chown(&path, Some(uid), Some(gid)).unwrap();
        path
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn as_owner(&self, name: &str) -> Command {
        let mut command = Command::new(postgres_program(name));
        command.current_dir(self.directory.path());
        if is_root() {
            let (uid, gid) = owner();
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut stop = self.as_owner("pg_ctl");
        stop.args(["stop", "-m", "immediate", "-s", "-D"]).arg(self.data());
        // Nothing better can be done about a server that does not stop.
        stop.status().map(drop).unwrap_or_default();
    }
}

/// Where this crate's tests and the tools are.
pub fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

pub fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools")
}
