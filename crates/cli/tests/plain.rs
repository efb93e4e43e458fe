//! Members with a plain file of Patroni's, started by that program's name.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{
    Etcd, directory, free_port, kill_all, owner, pgherd, postgres_program, run, succeeded, wait_for,
};
use serde_json::Value;

const SETTLED: Duration = Duration::from_secs(90);
const COMMAND: Duration = Duration::from_secs(60);

struct Members {
    etcd: Etcd,
    dir: tempfile::TempDir,
    daemons: Vec<Child>,
    postgres: [u16; 2],
    rest: [u16; 2],
}

impl Members {
    /// Two members; the first leads.
    fn start() -> Members {
        let (etcd, dir) = (Etcd::start(), directory());
        let (uid, gid) = owner();
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
        // Whom PostgreSQL runs as may not reach where this was built.
        fs::copy(pgherd(), dir.path().join("patroni")).unwrap();
        let (postgres, rest) = ([free_port(), free_port()], [free_port(), free_port()]);
        let mut members = Members { etcd, dir, daemons: Vec::new(), postgres, rest };
        for index in 0..2 {
            let text = members.text(index);
            fs::write(members.file(index), text).unwrap();
            let log = fs::File::create(members.dir.path().join(format!("n{index}.log"))).unwrap();
            let mut command = members.command();
            command.arg(members.file(index)).stdin(Stdio::null());
            command.stdout(log.try_clone().unwrap()).stderr(log);
            members.daemons.push(command.spawn().unwrap());
            members.settled(index + 1);
        }
        members
    }

    fn text(&self, index: usize) -> String {
        let (dir, etcd) = (self.dir.path().display(), self.etcd.port);
        let (postgres, rest) = (self.postgres[index], self.rest[index]);
        let bin_dir = postgres_program("");
        let bin_dir = bin_dir.display();
        format!(
            "scope: plain
name: n{index}
etcd3: {{host: '127.0.0.1:{etcd}'}}
restapi: {{listen: '127.0.0.1:{rest}', connect_address: '127.0.0.1:{rest}'}}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 2
    retry_timeout: 5
    postgresql:
      parameters: {{work_mem: 4MB}}
      parameters_primary: {{work_mem: 5MB}}
      parameters_replica: {{work_mem: 6MB, max_connections: 7}}
      pg_hba_replica: [local all all trust, host all all 127.0.0.1/32 md5]
  initdb: [{{encoding: UTF8}}]
postgresql:
  listen: 127.0.0.1:{postgres}
  connect_address: 127.0.0.1:{postgres}
  proxy_address: pool.example:6432
  data_dir: {dir}/d{index}
  bin_dir: {bin_dir}
  pgpass: {dir}/pgpass{index}
  authentication:
    superuser: {{username: postgres, password: super}}
    replication: {{username: replicator, password: rep}}
  pg_hba:
  - local all all trust
  - host replication replicator 127.0.0.1/32 md5
  - host all all 127.0.0.1/32 md5
  parameters: {{unix_socket_directories: '{dir}'}}
"
        )
    }

    fn file(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("n{index}.yml"))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.dir.path().join("patroni"));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.dir.path());
        command.current_dir(self.dir.path());
        if common::is_root() {
            let (uid, gid) = owner();
            command.uid(uid).gid(gid);
        }
        command
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.command();
        command.arg0("patronictl").arg("-c").arg(self.file(0)).args(arguments);
        succeeded(run(command, COMMAND))
    }

    /// Waits until one leads and the others stream.
    fn settled(&self, members: usize) {
        wait_for("one leader, and the others stream", SETTLED, || {
            let rows: Value = serde_json::from_str(&self.ctl(&["list", "-f", "json"])).unwrap();
            let rows = rows.as_array()?;
            let states = |state| rows.iter().filter(|row| row["State"] == state).count();
            let leads = rows.iter().any(|row| row["Role"] == "Leader");
            (leads && states("running") == 1 && states("streaming") + 1 == members).then_some(())
        });
    }

    fn sql(&self, index: usize, sql: &str) -> String {
        let port = self.postgres[index];
        let url = format!("postgres://postgres:super@127.0.0.1:{port}/postgres");
        succeeded(common::psql(&url, sql)).trim().to_owned()
    }

    /// Waits until a member's `work_mem` is this.
    fn has_work_mem(&self, index: usize, value: &str) {
        wait_for("the parameters of its role", SETTLED, || {
            (self.sql(index, "SHOW work_mem") == value).then_some(())
        });
    }

    fn data_file(&self, index: usize, name: &str) -> String {
        read(&self.dir.path().join(format!("d{index}")).join(name))
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Drop for Members {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            daemon.kill().ok();
            daemon.wait().ok();
        }
        kill_all(self.dir.path());
        if std::thread::panicking() {
            for index in 0..2 {
                let log = self.dir.path().join(format!("n{index}.log"));
                let text = fs::read_to_string(&log).unwrap_or_default();
                let from = text.len().saturating_sub(3_000);
                eprintln!("---- the end of n{index}.log\n{}", text.get(from..).unwrap_or(&text));
            }
        }
    }
}

#[test]
fn settings_follow_the_role_and_files_are_patronis() {
    let members = Members::start();
    members.has_work_mem(0, "5MB");
    members.has_work_mem(1, "6MB");
    assert_eq!(members.sql(1, "SHOW max_connections"), "100", "all must agree on it");
    assert!(members.data_file(0, "pg_hba.conf").contains("host replication replicator"));
    assert!(!members.data_file(1, "pg_hba.conf").contains("host replication replicator"));

    let said = members.ctl(&["switchover", "plain", "--candidate", "n1", "--force"]);
    assert!(said.contains("Successfully switched over"), "{said}");
    members.settled(2);
    members.has_work_mem(0, "6MB");
    members.has_work_mem(1, "5MB");
    assert!(members.data_file(1, "pg_hba.conf").contains("host replication replicator"));

    let standby = members.data_file(0, "postgresql.conf");
    let header = "# Do not edit this file manually!\n# It will be overwritten by Patroni!\n\
                  include 'postgresql.base.conf'\n\ncluster_name = 'plain'\n";
    assert!(standby.starts_with(header), "{standby}");
    assert!(members.data_file(0, "postgresql.conf.backup").starts_with(header));
    assert!(standby.contains("\nident_file = '"), "{standby}");
    let keys = members.etcd.get("/service/plain/members/n1").unwrap().unwrap();
    let key: Value = serde_json::from_str(&keys).unwrap();
    assert_eq!(key["proxy_url"], "postgres://pool.example:6432/postgres");
    assert_eq!(key["role"], "primary");
}
