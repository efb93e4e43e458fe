//! What cannot work is refused: one clear line, a non-zero exit status, nothing changed on disk and
//! nothing left running.
#![allow(clippy::unwrap_used)]

mod common;

use std::any::Any;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Etcd, directory, free_port, is_root, owner, pgherd, postgres_program};

/// The longest that a refusal may take: the DCS is tried for `retry_timeout`.
const LIMIT: Duration = Duration::from_secs(30);

/// The cluster that the DCS knows under the scope `other`.
const OTHER_CLUSTER: &str = "7000000000000000001";

/// A host on which something is wrong.
struct Site {
    root: tempfile::TempDir,
    /// The node's file, before anything is made wrong in it.
    yaml: String,
    rest: u16,
    pg: u16,
    proxy: u16,
    /// A data directory to copy.
    template: PathBuf,
}

/// What has to stay as it is while the case runs.
type Held = Option<Box<dyn Any>>;

struct Case {
    name: &'static str,
    /// Makes it wrong.
    spoil: fn(&mut Site) -> Held,
    /// What the line has to name; `{dir}`, `{rest}`, `{pg}` and `{proxy}` stand for the site's.
    says: &'static [&'static str],
}

impl Site {
    fn new(etcd: u16, template: &Path) -> Site {
        let root = directory();
        let dir = root.path().display();
        let (rest, pg, proxy) = (free_port(), free_port(), free_port());
        let bin_dir = postgres_program("");
        let bin_dir = bin_dir.display();
        let yaml = format!(
            "scope: bad\n\
             name: node1\n\
             etcd3:\n  hosts: 127.0.0.1:{etcd}\n\
             restapi:\n  listen: 127.0.0.1:{rest}\n\
             bootstrap:\n  dcs:\n    retry_timeout: 3\n    ttl: 10\n    loop_wait: 2\n\
             postgresql:\n  listen: 127.0.0.1:{pg}\n  data_dir: {dir}/data\n  \
             bin_dir: {bin_dir}\n  authentication:\n    replication:\n      \
             username: replicator\n      password: r\n\
             pgherd:\n  state_dir: {dir}/state\n  proxy:\n    \
             read_write: 127.0.0.1:{proxy}\n"
        );
        Site { root, yaml, rest, pg, proxy, template: template.to_owned() }
    }

    fn dir(&self) -> &Path {
        self.root.path()
    }

    fn replace(&mut self, from: &str, to: &str) {
        assert!(self.yaml.contains(from), "{from:?} is not in the file");
        self.yaml = self.yaml.replace(from, to);
    }

    /// Puts a data directory in place.
    fn copy_data(&self) -> PathBuf {
        let data = self.dir().join("data");
        let copied = Command::new("cp").arg("-a").arg(&self.template).arg(&data).status().unwrap();
        assert!(copied.success());
        data
    }

    fn fill_in(&self, text: &str) -> String {
        text.replace("{dir}", &self.dir().display().to_string())
            .replace("{rest}", &self.rest.to_string())
            .replace("{pg}", &self.pg.to_string())
            .replace("{proxy}", &self.proxy.to_string())
    }
}

/// A data directory of some cluster. The programs that make it are PostgreSQL's own.
fn template() -> tempfile::TempDir {
    let root = directory();
    let (uid, gid) = owner();
    chown(root.path(), Some(uid), Some(gid)).unwrap();
    let mut initdb = Command::new(postgres_program("initdb"));
    initdb.args(["-N", "-A", "trust", "-D"]).arg(root.path().join("data"));
    if is_root() {
        initdb.uid(uid).gid(gid);
    }
    initdb.current_dir(root.path());
    common::succeeded(common::run(initdb, Duration::from_secs(60)));
    root
}

/// Runs `arguments` and compares what it says and leaves.
fn refused(name: &str, site: &Site, arguments: &[&str], says: &[&str]) {
    let before = common::listing(site.dir());
    let mut command = Command::new(pgherd());
    // A developer's own wishes about logging would show up beside the line.
    command.args(arguments).env_remove("RUST_LOG").current_dir(site.dir());
    let output = common::run(command, LIMIT);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{name}: exit status {}", output.status);
    assert_eq!(stderr.lines().count(), 1, "{name}: not one line:\n{stderr}");
    assert!(stderr.starts_with("Error: "), "{name}: {stderr}");
    for word in says {
        let word = site.fill_in(word);
        assert!(stderr.contains(&word), "{name}: {word:?} is not in: {stderr}");
    }
    let after = common::listing(site.dir());
    assert_eq!(before, after, "{name}: something changed on disk");
    assert_eq!(common::processes_of(site.dir()), Vec::<String>::new(), "{name}: left running");
}

fn refuse_all(part: &str, cases: &[Case]) {
    let etcd = Etcd::start();
    etcd.put("/service/other/initialize", OTHER_CLUSTER).unwrap();
    let template = template();
    for case in cases {
        let mut site = Site::new(etcd.port, &template.path().join("data"));
        let held = (case.spoil)(&mut site);
        let file = site.dir().join("node.yml");
        fs::write(&file, &site.yaml).unwrap();
        refused(case.name, &site, &[part, "-c", &file.display().to_string()], case.says);
        drop(held);
    }
}

fn hold_port(port: u16) -> Held {
    Some(Box::new(TcpListener::bind(("127.0.0.1", port)).unwrap()))
}

#[test]
fn an_agent_refuses_a_wrong_file() {
    refuse_all(
        "agent",
        &[
            Case {
                name: "unknown key of ours",
                spoil: |site| {
                    site.replace("  state_dir:", "  state_dri:");
                    None
                },
                says: &["{dir}/node.yml:21:", "pgherd.state_dri", "did you mean state_dir"],
            },
            Case {
                name: "ill-typed value",
                spoil: |site| {
                    site.replace("ttl: 10", "ttl: soon");
                    None
                },
                says: &["{dir}/node.yml:10:", "bootstrap.dcs.ttl", "soon"],
            },
            Case {
                name: "TLS to etcd",
                spoil: |site| {
                    site.replace("  hosts: ", "  protocol: https\n  cacert: /no/ca\n  hosts: ");
                    None
                },
                says: &["TLS to etcd", "cannot read /no/ca"],
            },
            Case {
                name: "not YAML",
                spoil: |site| {
                    site.replace("scope: bad", "scope: [bad");
                    None
                },
                says: &["{dir}/node.yml:"],
            },
            Case {
                name: "no data directory named",
                spoil: |site| {
                    site.replace("  data_dir:", "  #data_dir:");
                    None
                },
                says: &["{dir}/node.yml", "postgresql.data_dir", "required"],
            },
        ],
    );
}

#[test]
fn an_agent_refuses_a_host_without_what_it_needs() {
    refuse_all(
        "agent",
        &[
            Case {
                name: "REST port in use",
                spoil: |site| hold_port(site.rest),
                says: &["127.0.0.1:{rest}", "restapi.listen", "in use"],
            },
            Case {
                name: "PostgreSQL port in use",
                spoil: |site| hold_port(site.pg),
                says: &["127.0.0.1:{pg}", "postgresql.listen", "in use", "choose another"],
            },
            Case {
                name: "no programs",
                spoil: |site| {
                    let bin_dir = format!("bin_dir: {}", postgres_program("").display());
                    let wrong = format!("bin_dir: {}/nothing", site.dir().display());
                    site.replace(&bin_dir, &wrong);
                    None
                },
                says: &["{dir}/nothing", "postgres", "bin_dir"],
            },
            Case {
                name: "too old",
                spoil: |site| {
                    let bin = site.dir().join("bin");
                    fs::create_dir(&bin).unwrap();
                    for program in ["postgres", "initdb", "pg_basebackup", "pg_rewind"] {
                        let path = bin.join(program);
                        fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 13.14'\n")
                            .unwrap();
                        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
                    }
                    let bin_dir = format!("bin_dir: {}", postgres_program("").display());
                    site.replace(&bin_dir, &format!("bin_dir: {}", bin.display()));
                    None
                },
                says: &["{dir}/bin", "PostgreSQL 13", "oldest supported is 14"],
            },
        ],
    );
}

#[test]
fn an_agent_refuses_directories_that_are_not_its_own() {
    refuse_all(
        "agent",
        &[
            Case {
                name: "data of another cluster",
                spoil: |site| {
                    site.copy_data();
                    site.replace("scope: bad", "scope: other");
                    None
                },
                says: &["{dir}/data", OTHER_CLUSTER, "other", "system identifier"],
            },
            Case {
                name: "data that all may read",
                spoil: |site| {
                    let data = site.copy_data();
                    fs::set_permissions(data, PermissionsExt::from_mode(0o755)).unwrap();
                    None
                },
                says: &["{dir}/data", "mode 755", "chmod"],
            },
            Case {
                name: "no data directory at all",
                spoil: |site| {
                    let data = site.dir().join("data");
                    fs::create_dir(&data).unwrap();
                    fs::write(data.join("thesis.txt"), "").unwrap();
                    fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).unwrap();
                    let (uid, gid) = owner();
                    chown(&data, Some(uid), Some(gid)).unwrap();
                    None
                },
                says: &["{dir}/data", "not a PostgreSQL data directory"],
            },
            Case {
                name: "state of another member",
                spoil: |site| {
                    write_state(site, 0o700, "node2", "");
                    None
                },
                says: &["{dir}/state/state.json", "node2", "node1", "state_dir"],
            },
            Case {
                name: "state of another cluster",
                spoil: |site| {
                    site.copy_data();
                    write_state(site, 0o700, "node1", OTHER_CLUSTER);
                    None
                },
                says: &["{dir}/state/state.json", OTHER_CLUSTER],
            },
            Case {
                name: "state that all may read",
                spoil: |site| {
                    write_state(site, 0o755, "node1", "");
                    None
                },
                says: &["{dir}/state", "mode 755", "700", "chmod"],
            },
            Case {
                name: "damaged state",
                spoil: |site| {
                    write_state(site, 0o700, "node1", "");
                    fs::write(site.dir().join("state/state.json"), "{").unwrap();
                    None
                },
                says: &["{dir}/state/state.json", "damaged"],
            },
            Case {
                name: "state of a running agent",
                spoil: |site| {
                    write_state(site, 0o700, "node1", "");
                    let lock = fs::File::create(site.dir().join("state/agent.lock")).unwrap();
                    lock.lock().unwrap();
                    Some(Box::new(lock))
                },
                says: &["another agent", "{dir}/state", "stop it"],
            },
        ],
    );
}

fn write_state(site: &Site, mode: u32, member: &str, system_identifier: &str) {
    let dir = site.dir().join("state");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).unwrap();
    let mut state = serde_json::to_value(types::Durable::default()).unwrap();
    state["version"] = 1.into();
    state["member"] = member.into();
    state["system_identifier"] = system_identifier.into();
    fs::write(dir.join("state.json"), state.to_string()).unwrap();
}

#[test]
fn an_agent_refuses_data_of_another_user() {
    let Some((uid, gid)) = common::user("nobody").filter(|_| is_root()) else {
        eprintln!("skipped: only root can give a directory away");
        return;
    };
    let (etcd, template) = (Etcd::start(), template());
    let site = Site::new(etcd.port, &template.path().join("data"));
    chown(site.copy_data(), Some(uid), Some(gid)).unwrap();
    let file = site.dir().join("node.yml");
    fs::write(&file, &site.yaml).unwrap();
    let (theirs, ours) = (format!("uid {uid}"), format!("uid {}", owner().0));
    let arguments = ["agent", "-c", &file.display().to_string()];
    refused("other owner", &site, &arguments, &["{dir}/data", &theirs, &ours, "chown"]);
}

#[test]
fn a_proxy_refuses_what_it_cannot_serve() {
    refuse_all(
        "proxy",
        &[
            Case {
                name: "port in use",
                spoil: |site| hold_port(site.proxy),
                says: &["127.0.0.1:{proxy}", "in use"],
            },
            Case {
                name: "unknown key of ours",
                spoil: |site| {
                    site.replace("    read_write:", "    hold_timout: 3\n    read_write:");
                    None
                },
                says: &[
                    "{dir}/node.yml:23:",
                    "pgherd.proxy.hold_timout",
                    "did you mean hold_timeout",
                ],
            },
            Case {
                name: "TLS to etcd",
                spoil: |site| {
                    site.replace("  hosts: ", "  key: /no/key\n  hosts: ");
                    None
                },
                says: &["{dir}/node.yml:4:", "etcd3.key", "without etcd3.cert"],
            },
        ],
    );
}

#[test]
fn a_full_disk_is_refused() {
    let (etcd, template) = (Etcd::start(), template());
    let mut site = Site::new(etcd.port, &template.path().join("data"));
    let Some(_disk) = FullDisk::mount(&site.dir().join("full")) else { return };
    let dir = site.dir().display().to_string();
    let demo = format!("{dir}/full/demo");
    refused("demo", &site, &["demo", "--dir", &demo], &["{dir}/full/demo", "is full", "--dir"]);
    site.replace(&format!("{dir}/data"), &format!("{dir}/full/data"));
    let file = site.dir().join("node.yml");
    fs::write(&file, &site.yaml).unwrap();
    let arguments = ["agent", "-c", &file.display().to_string()];
    refused("new data", &site, &arguments, &["{dir}/full/data", "is full", "free space"]);
}

/// A file system of one mebibyte.
struct FullDisk(PathBuf);

impl FullDisk {
    /// Mounts it; `None` where that is not allowed.
    fn mount(path: &Path) -> Option<FullDisk> {
        fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1M,mode=755", "tmpfs"]).arg(path);
        let mounted = is_root() && mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("skipped: only root can mount a small file system");
            return None;
        }
        Some(FullDisk(path.to_owned()))
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        // Lazily: nobody works there any more, and a leftover would keep the directory.
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

#[test]
fn a_demo_refuses_what_cannot_work() {
    let etcd = Etcd::start();
    etcd.put("/service/demo/initialize", OTHER_CLUSTER).unwrap();
    let site = Site::new(etcd.port, Path::new("/nowhere"));
    let new = site.dir().join("new").display().to_string();
    let foreign = site.dir().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "").unwrap();
    let foreign = foreign.display().to_string();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let (base, port) = ((port - 7).to_string(), "is in use");
    let used = format!("http://127.0.0.1:{}", etcd.port);
    let cases: [(&[&str], &[&str]); 7] = [
        (&["--dir", &foreign], &["{dir}/foreign", "not empty", "choose another --dir"]),
        (&["--dir", &new, "--base-port", &base], &["port ", port, "another --base-port"]),
        (&["--dir", &new, "--dcs", "https://127.0.0.1:9"], &["https", "use http"]),
        (&["--dir", &new, "--dcs", "http://127.0.0.1:9"], &["--dcs", "127.0.0.1:9", "refused"]),
        (&["--dir", &new, "--dcs", &used], &["already holds a cluster", "/service/demo/"]),
        (&["--dir", &new, "--stop"], &["no demo runs in", "{dir}/new"]),
        (&["--dir", &new, "--drill", "--nodes", "2"], &["--drill needs three nodes"]),
    ];
    for (arguments, says) in cases {
        refused(&arguments.join(" "), &site, &[&["demo"], arguments].concat(), says);
    }
}

#[test]
fn a_command_says_what_it_cannot_reach() {
    let site = Site::new(9, Path::new("/nowhere"));
    let file = site.dir().join("node.yml");
    fs::write(&file, &site.yaml).unwrap();
    let (file, missing) = (file.display().to_string(), format!("{}/no.yml", site.dir().display()));
    refused("no etcd", &site, &["-c", &file, "list"], &["127.0.0.1:9", "could be reached"]);
    refused("no file", &site, &["-c", &missing, "agent"], &["{dir}/no.yml", "No such file"]);
}

#[test]
fn a_configuration_is_looked_at_without_running_it() {
    let (etcd, template) = (Etcd::start(), template());
    let site = Site::new(etcd.port, &template.path().join("data"));
    let file = site.dir().join("node.yml");
    fs::write(&file, &site.yaml).unwrap();
    let file = file.display().to_string();
    // Called as Patroni's program it has that one's command line.
    let patroni = site.dir().join("patroni");
    std::os::unix::fs::symlink(pgherd(), &patroni).unwrap();
    let before = common::listing(site.dir());
    let said = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).env_remove("RUST_LOG").current_dir(site.dir());
        let output = common::run(command, LIMIT);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let nothing = (true, String::new(), String::new());
    assert_eq!(said(pgherd(), &["agent", "-c", &file, "--validate-config"]), nothing);
    assert_eq!(said(&patroni, &["--validate-config", &file]), nothing);
    let held = [hold_port(site.rest), hold_port(site.pg)];
    let (ok, _, error) = said(&patroni, &["--validate-config", &file]);
    assert!(!ok && error.starts_with("Error: ") && error.contains("in use"), "{error}");
    let (ok, printed, error) = said(&patroni, &["--validate-config", "-i", "-p", &file]);
    assert!(ok && error.is_empty() && printed.contains("\nname: node1\n"), "{printed}{error}");
    drop(held);
    let (_, version, _) = said(&patroni, &["--version"]);
    assert!(version.starts_with("patroni 4."), "{version}");
    assert_eq!(before, common::listing(site.dir()), "something changed on disk");
    assert_eq!(common::processes_of(site.dir()), Vec::<String>::new(), "left running");
}
