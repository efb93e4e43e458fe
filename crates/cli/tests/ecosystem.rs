//! The distribution's HAProxy and Prometheus beside a cluster: what they are told is what they
//! understand. tools/install-test.sh installs both.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Demo, Killed, directory, free_port, psql, wait_for};

/// HAProxy has asked everybody, and a busy machine has answered.
const SETTLED: Duration = Duration::from_secs(60);

/// How installations in the field ask, and whom they mean: the backend's lines, and whether it
/// leads to the primary.
const FORMS: &[(&str, bool)] = &[
    ("option httpchk\n    http-check expect status 200", true),
    ("option httpchk OPTIONS /master\n    http-check expect status 200", true),
    ("option httpchk GET /primary", true),
    ("option httpchk HEAD /read-write HTTP/1.0\n    http-check expect status 200", true),
    (
        "option httpchk\n    http-check send meth OPTIONS uri /leader ver HTTP/1.1 hdr Host x\n    \
         http-check expect status 200",
        true,
    ),
    ("option httpchk GET /replica\n    http-check expect status 200", false),
    ("option httpchk OPTIONS /quorum\n    http-check expect status 200", false),
    ("option httpchk GET /replica?lag=100MB\n    http-check expect string streaming", false),
];

fn haproxy() -> PathBuf {
    lab::tools::for_administrators("haproxy").expect("haproxy: run tools/install-test.sh")
}

fn promtool() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/prometheus");
    let unpacked = Some(root.join("promtool")).filter(|file| file.is_file());
    let installed = || lab::tools::for_administrators("promtool");
    unpacked.or_else(installed).expect("promtool: run tools/install-test.sh")
}

/// HAProxy with the file that `haproxy-config` prints, and a further port for each form.
struct Balancer {
    process: Killed,
    read_write: u16,
    read_only: u16,
    forms: Vec<u16>,
}

impl Balancer {
    fn start(demo: &Demo, dir: &Path) -> Balancer {
        let (read_write, read_only) = (free_port(), free_port());
        let ports = [read_write.to_string(), read_only.to_string()];
        let printed = demo.ctl(&[
            "haproxy-config",
            "--bind",
            "127.0.0.1",
            "--primary-port",
            &ports[0],
            "--replica-port",
            &ports[1],
        ]);
        let (_, last) = printed.rsplit_once("\nlisten ").expect("a part for replicas");
        let servers = last.lines().filter(|line| line.starts_with("    server "));
        let servers: Vec<&str> = servers.collect();
        let mut text = printed.clone();
        let mut forms = Vec::new();
        for (index, (form, _)) in FORMS.iter().enumerate() {
            let port = free_port();
            text.push_str(&format!(
                "\nlisten form_{index}\n    bind 127.0.0.1:{port}\n    {form}\n    \
                 default-server inter 1s fall 2 rise 1\n{}\n",
                servers.join("\n")
            ));
            forms.push(port);
        }
        let file = dir.join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let mut check = Command::new(haproxy());
        check.args(["-c", "-f"]).arg(&file);
        common::succeeded(common::run(check, SETTLED));
        let process = Killed(spawn(&file));
        Balancer { process, read_write, read_only, forms }
    }
}

fn spawn(file: &Path) -> Child {
    let mut command = Command::new(haproxy());
    command.args(["-db", "-f"]).arg(file).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The demo's connection string with another port.
fn url(demo: &Demo, port: u16) -> String {
    let url = demo.file()["read_write"].as_str().unwrap().to_owned();
    let (before, after) = url.rsplit_once(':').expect("a port");
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}:{port}{rest}")
}

fn pg_port(demo: &Demo, member: &str) -> String {
    let file = demo.file();
    let nodes = file["nodes"].as_array().unwrap().iter();
    let node = nodes.into_iter().find(|node| node["name"] == member).expect("a member");
    node["pg_port"].to_string()
}

/// Waits until a port leads to where `SELECT` says what is expected.
fn leads_to(demo: &Demo, port: u16, select: &str, expected: &str) {
    let (url, sql) = (url(demo, port), format!("SELECT {select}"));
    wait_for(&format!("port {port}: {select} is {expected}"), SETTLED, || {
        let output = psql(&url, &sql);
        let said = String::from_utf8_lossy(&output.stdout);
        (output.status.success() && said.trim() == expected).then_some(())
    });
}

fn check_metrics(demo: &Demo) {
    let file = demo.file();
    let nodes = file["nodes"].as_array().unwrap().iter();
    let agents = nodes.map(|node| (node["rest_url"].as_str().unwrap(), "patroni_primary"));
    let proxy = (file["proxy_url"].as_str().unwrap(), "pgherd_proxy_route_open");
    for (url, metric) in agents.chain([proxy]) {
        let port = url.rsplit_once(':').unwrap().1.trim_end_matches('/').parse().unwrap();
        let (status, text) = get(port, "/metrics");
        assert_eq!(status, 200, "{url}");
        let mut command = Command::new(promtool());
        command.args(["check", "metrics"]).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // Patroni's names, which others have in their rules.
        let wrong = said.lines().filter(|line| {
            !(line.starts_with("patroni_xlog_") && line.contains("\"_total\" suffix"))
        });
        assert_eq!(wrong.collect::<Vec<_>>(), Vec::<&str>::new(), "{url}\n{text}");
        assert!(text.contains(&format!("\n{metric}{{")), "{text}");
    }
}

fn get(port: u16, path: &str) -> (u16, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = api::client::request("GET", "127.0.0.1", port, path, None, None, SETTLED);
    let (status, body) = runtime.block_on(ask).unwrap();
    (status, String::from_utf8(body).unwrap())
}

#[test]
fn haproxy_follows_a_switchover_and_prometheus_finds_nothing_wrong() {
    let root = directory();
    let demo = Demo::new(&root.path().join("d"));
    demo.start(&[]);
    let first = demo.settled(2);
    let mut balancer = Balancer::start(&demo, root.path());
    let everywhere = |leader: &str| {
        let port = pg_port(&demo, leader);
        leads_to(&demo, balancer.read_write, "inet_server_port()", &port);
        leads_to(&demo, balancer.read_only, "pg_is_in_recovery()", "t");
        for ((_, primary), at) in FORMS.iter().zip(&balancer.forms) {
            if *primary {
                leads_to(&demo, *at, "inet_server_port()", &port);
            } else {
                leads_to(&demo, *at, "pg_is_in_recovery()", "t");
            }
        }
    };
    everywhere(&first);
    // Until HAProxy has asked the old primary twice, it may still lead there, where nothing is
    // written.
    let write = |sql: &str| {
        wait_for(sql, SETTLED, || {
            let output = psql(&url(&demo, balancer.read_write), sql);
            let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success().then_some(said)
        })
    };
    write("CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
    check_metrics(&demo);

    demo.ctl(&["switchover", "--force"]);
    let second = demo.settled(2);
    assert_ne!(second, first);
    everywhere(&second);
    write("INSERT INTO t VALUES (2)");
    assert_eq!(write("SELECT string_agg(id::text, ' ' ORDER BY id) FROM t"), "1 2");
    check_metrics(&demo);
    assert!(balancer.process.0.try_wait().unwrap().is_none(), "HAProxy has gone on");
    demo.stop();
}
