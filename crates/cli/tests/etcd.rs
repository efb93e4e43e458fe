//! An agent and an etcd that is not there yet, or wants a password.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{
    Etcd, directory, free_port, kill_all, owner, pgherd, postgres_program, run, wait_for,
};

const LIMIT: Duration = Duration::from_secs(90);

struct Site {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Site {
    /// A member whose file has these keys in its section `etcd3`.
    fn new(etcd: &str) -> Site {
        let dir = directory();
        let (uid, gid) = owner();
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
        // Whom PostgreSQL runs as may not reach where this was built.
        fs::copy(pgherd(), dir.path().join("patroni")).unwrap();
        let (postgres, rest) = (free_port(), free_port());
        let (base, bin_dir) = (dir.path().display(), postgres_program(""));
        let text = format!(
            "scope: late
name: a
etcd3: {{{etcd}}}
restapi: {{listen: '127.0.0.1:{rest}'}}
bootstrap: {{dcs: {{ttl: 20, loop_wait: 2, retry_timeout: 3}}}}
postgresql:
  listen: 127.0.0.1:{postgres}
  data_dir: {base}/d
  bin_dir: {}
  authentication:
    superuser: {{username: postgres, password: super}}
    replication: {{username: replicator, password: rep}}
",
            bin_dir.display()
        );
        fs::write(dir.path().join("a.yml"), text).unwrap();
        Site { dir, daemon: None }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.dir.path().join("patroni"));
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(self.dir.path());
        if common::is_root() {
            let (uid, gid) = owner();
            command.uid(uid).gid(gid);
        }
        command.arg(self.dir.path().join("a.yml"));
        command
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn start(&mut self) {
        let log = fs::File::create(self.log()).unwrap();
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
    }

    /// Waits until the log has so many lines with these words.
    fn says(&self, words: &str, times: usize) {
        wait_for(words, LIMIT, || {
            let text = fs::read_to_string(self.log()).unwrap();
            (text.matches(words).count() >= times).then_some(())
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.kill().ok();
            daemon.wait().ok();
        }
        kill_all(self.dir.path());
    }
}

#[test]
fn an_etcd_that_comes_late_is_waited_for() {
    let port = free_port();
    let mut site = Site::new(&format!("host: '127.0.0.1:{port}'"));
    site.start();
    site.says("waiting on etcd", 2);
    assert!(!site.dir.path().join("d").exists(), "nothing was changed");
    let etcd = Etcd::start_on(port);
    let leads = || etcd.get("/service/late/leader").unwrap().filter(|leader| leader == "a");
    wait_for("it leads", LIMIT, leads);
    assert_eq!(site.daemon.as_mut().unwrap().try_wait().unwrap(), None);
}

fn etcdctl(port: u16, arguments: &[&str]) {
    let mut command = Command::new(lab::tools::etcd().unwrap().with_file_name("etcdctl"));
    command.env("ETCDCTL_API", "3").args(["--endpoints", &format!("127.0.0.1:{port}")]);
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[test]
fn wrong_credentials_are_fatal_and_right_ones_are_enough() {
    let etcd = Etcd::start();
    let port = etcd.port;
    etcdctl(port, &["user", "add", "root:s3cret"]);
    etcdctl(port, &["user", "grant-role", "root", "root"]);
    etcdctl(port, &["auth", "enable"]);
    for who in ["username: root, password: wr0ng", "url: 'http://root:wr0ng@127.0.0.1'"] {
        let site = Site::new(&format!("host: '127.0.0.1:{port}', port: {port}, {who}"));
        let output = run(site.command(), LIMIT);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("CRITICAL: Etcd3 authentication failed: "), "{said}");
        assert!(!said.contains("wr0ng"), "{said}");
        assert!(!site.dir.path().join("d").exists(), "nothing was changed");
    }
    let mut site = Site::new(&format!("url: 'http://root:s3cret@127.0.0.1:{port}'"));
    site.start();
    site.says("the leader with the lock", 1);
}
