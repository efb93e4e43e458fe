//! One proxy for three clusters, one of which has an etcd that does not answer: it hinders nobody.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Etcd, Killed, directory, free_port, pgherd, signal, wait_for};
use pgproto::wire::{
    ErrorResponse, FirstPacket, Severity, field_of, parse_first_packet, startup_packet,
};
use rustix::process::Signal;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);

/// A server that tells every client who it is and which database was asked for, and closes.
fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let mut packet = vec![0; 4096];
            // A proxy that gives an attempt up says nothing.
            let Ok(length) = socket.read(&mut packet) else { continue };
            let Ok(Some((FirstPacket::Startup(asked), _))) = parse_first_packet(&packet[..length])
            else {
                continue;
            };
            let database = asked.parameter("database").unwrap_or_default();
            let message = format!("{name} {database}");
            let error = ErrorResponse {
                severity: Severity::Fatal,
                sqlstate: "3D000",
                message: &message,
                hint: None,
            };
            socket.write_all(&error.to_bytes()).unwrap();
        }
    });
    address
}

/// What an agent would write.
fn show(etcd: &Etcd, scope: &str, primary: SocketAddr) {
    let member = json!({
        "conn_url": format!("postgres://{primary}/postgres"),
        "role": "primary", "state": "running", "term": 1, "timeline": 1,
    });
    let term = json!({"term": 1, "leader": "n1", "timeline": 1});
    etcd.put(&format!("/service/{scope}/leader"), "n1").unwrap();
    etcd.put(&format!("/service/{scope}/members/n1"), &member.to_string()).unwrap();
    etcd.put(&format!("/service/{scope}/pgherd/term"), &term.to_string()).unwrap();
}

/// What a client of this database is told at the end.
fn told(port: u16, database: &str) -> Option<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let packet = startup_packet(0, &[("user", "app"), ("database", database)]).unwrap();
    socket.write_all(&packet).ok()?;
    let mut said = Vec::new();
    socket.read_to_end(&mut said).ok()?;
    let message = field_of(said.get(5..)?, b'M')?;
    Some(String::from_utf8_lossy(message).into_owned())
}

#[test]
fn each_cluster_is_followed_and_told_of_and_a_dead_etcd_hinders_nobody() {
    let (etcd, dir, port, dead) = (Etcd::start(), directory(), free_port(), free_port());
    show(&etcd, "demo", server("demo"));
    show(&etcd, "bills", server("billing"));
    let config = json!({
        "scope": "demo", "etcd3": {"hosts": [format!("127.0.0.1:{}", etcd.port)]},
        "pgherd": {"proxy": {
            "name": "p", "read_write": format!("127.0.0.1:{port}"), "hold_timeout": "300ms",
            "clusters": {
                "billing": {"scope": "bills"},
                "gone": {"scope": "gone", "etcd3": {"hosts": [format!("127.0.0.1:{dead}")]}},
            },
            "databases": {
                "invoices": {"cluster": "billing", "dbname": "till"},
                "lost": {"cluster": "gone"},
            },
        }},
    });
    let file = dir.path().join("proxy.yml");
    fs::write(&file, config.to_string()).unwrap();
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let mut command = Command::new(pgherd());
    command.args(["proxy", "-c"]).arg(&file).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let mut proxy = Killed(command.spawn().unwrap());

    let serves = || {
        for (database, says) in [("shop", "demo shop"), ("invoices", "billing till")] {
            let right = || told(port, database).filter(|told| told == says);
            wait_for(says, LIMIT, right);
        }
    };
    serves();
    let lost = told(port, "lost").unwrap();
    assert!(lost.contains("no primary"), "{lost}");
    let key = |scope: &str| format!("/service/{scope}/pgherd/proxies/p:{port}");
    for scope in ["demo", "bills"] {
        wait_for(scope, LIMIT, || etcd.get(&key(scope)).unwrap());
    }
    signal(proxy.0.id(), Signal::HUP);
    let text = || fs::read_to_string(dir.path().join("log")).unwrap();
    wait_for("it reads again", LIMIT, || text().contains("rules again").then_some(()));
    serves();
    signal(proxy.0.id(), Signal::TERM);
    let status = wait_for("it ends", LIMIT, || proxy.0.try_wait().unwrap());
    assert!(status.success(), "{status}: {}", text());
    for scope in ["demo", "bills"] {
        assert_eq!(etcd.get(&key(scope)).unwrap(), None, "{scope}: no leader waits for it");
    }
}
