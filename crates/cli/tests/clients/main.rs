//! Real clients with their habits, through the proxy, in each pooling mode: psql, pgbench, psycopg
//! 3, asyncpg, node-postgres, the JDBC driver and tokio-postgres. tools/install-test.sh installs
//! them; one that is missing fails the test.
//!
//! Every client goes through the same steps, as far as it can; each program says what it passed.
//! All clients of a mode run at the same time, so that pooled servers go from one to the other.
//!
//! From the share of clients: a quarter of a minute for each mode.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod lab_of_clients;
mod programs;
mod psql;
mod tokio_steps;

use std::collections::BTreeSet;
use std::path::Path;

use lab_of_clients::{Lab, Place};
use serde_json::{Value, json};

/// What there is to go through:
///
/// | | |
/// |---|---|
/// | `startup` | parameters at the start: application name, options |
/// | `settings` | SET, RESET, what is reported of it, beside another client |
/// | `prepared` | named statements, also after errors; two clients with the same names |
/// | `binary` | values of many types in the binary format |
/// | `pipeline` | requests sent without waiting, one of them failing |
/// | `errors` | outside a transaction; notices |
/// | `transactions` | errors in them, savepoints, SET LOCAL |
/// | `cancel` | a running statement |
/// | `copy` | both ways, refused, given up |
/// | `big_values` | 4 MiB there and back |
/// | `large_objects` | by SQL, or by the protocol's function calls |
/// | `listen` | notifications from another client |
/// | `state` | temporary tables, advisory locks, what else stays in a session |
/// | `cursor` | results in parts |
/// | `many` | more clients than servers, each with its settings and statements |
const STEPS: [&str; 15] = [
    "startup",
    "settings",
    "prepared",
    "binary",
    "pipeline",
    "errors",
    "transactions",
    "cancel",
    "copy",
    "big_values",
    "large_objects",
    "listen",
    "state",
    "cursor",
    "many",
];

/// A pooling mode.
struct Mode {
    name: &'static str,
    /// What it cannot serve, by its nature.
    without: &'static [&'static str],
}

const MODES: [Mode; 3] = [
    Mode { name: "session", without: &[] },
    Mode { name: "transaction", without: &[] },
    // Several statements are no transaction there, and nothing stays for the next one.
    Mode {
        name: "statement",
        without: &["transactions", "large_objects", "listen", "state", "cursor"],
    },
];

/// The modes to go through, separated by commas.
const MODES_VARIABLE: &str = "PGHERD_TEST_MODES";
/// Without it: what the proxy serves.
const MODES_SERVED: &str = "session,transaction,statement";

/// Servers of a pool: enough for every client of `state` and `listen` to keep one to itself.
const POOL_SIZE: u32 = 20;

/// A client.
struct Client {
    name: &'static str,
    /// Steps that it has no way to go.
    without: &'static [&'static str],
    /// Goes through the steps; what it printed, with a line `passed STEP` for each.
    run: fn(&Lab, &Place, &[&str]) -> String,
}

const CLIENTS: [Client; 7] = [
    Client { name: "psql", without: &["prepared", "binary", "many"], run: psql::psql },
    Client {
        name: "pgbench",
        without: &[
            "startup",
            "settings",
            "binary",
            "errors",
            "cancel",
            "copy",
            "big_values",
            "large_objects",
            "listen",
            "state",
            "cursor",
        ],
        run: psql::pgbench,
    },
    Client { name: "psycopg", without: &[], run: programs::psycopg },
    Client { name: "asyncpg", without: &[], run: programs::asyncpg },
    Client { name: "node-postgres", without: &[], run: programs::node_postgres },
    Client { name: "JDBC", without: &[], run: programs::jdbc },
    Client { name: "tokio-postgres", without: &[], run: tokio_postgres },
];

/// The proxy's section for a mode: in session mode nothing. A pool has fewer servers than `many`
/// and the other clients want together.
fn section(mode: &Mode, users_file: &Path) -> Value {
    if mode.name == "session" {
        return json!({});
    }
    json!({
        "pool_mode": mode.name, "pool_size": POOL_SIZE, "session_state": "pin",
        "auth": "scram-sha-256", "users_file": users_file,
    })
}

fn tokio_postgres(_lab: &Lab, place: &Place, steps: &[&str]) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut said = String::new();
    for step in steps {
        let (name, config) = ((*step).to_owned(), place.config());
        let task = async move { tokio_steps::step(&name, config).await };
        // A step that panics has failed; the panic's message is on the standard error.
        let verdict = match runtime.block_on(runtime.spawn(task)) {
            Ok(()) => "passed",
            Err(_) => "failed",
        };
        said.push_str(&format!("{verdict} {step}\n"));
    }
    said
}

/// What went wrong with a client, if anything did.
fn verdict(lab: &Lab, place: &Place, mode: &Mode, client: &Client) -> Option<String> {
    let not_for = |step: &str| mode.without.contains(&step) || client.without.contains(&step);
    let steps: Vec<&str> = STEPS.into_iter().filter(|step| !not_for(step)).collect();
    let begun = std::time::Instant::now();
    let said = (client.run)(lab, place, &steps);
    let passed = said.lines().filter_map(|line| line.strip_prefix("passed "));
    let passed: BTreeSet<&str> = passed.collect();
    let left: Vec<&str> = steps.iter().copied().filter(|step| !passed.contains(step)).collect();
    let took = begun.elapsed().as_secs_f64();
    let (name, mode) = (client.name, mode.name);
    eprintln!("{mode}, {name}: {} of {} steps, {took:.1} s", passed.len(), steps.len());
    (!left.is_empty()).then(|| format!("{mode}, {name}: not passed: {left:?}\n{said}"))
}

#[test]
fn real_clients_do_not_notice_the_proxy() {
    let lab = Lab::start();
    let mut wrong = Vec::new();
    let wanted = std::env::var(MODES_VARIABLE).unwrap_or_else(|_| MODES_SERVED.to_owned());
    for name in wanted.split(',') {
        let mode = MODES.iter().find(|mode| mode.name == name).expect("a pooling mode");
        let (_proxy, place) = lab.proxy(&section(mode, &lab.users_file()));
        let found: Vec<Option<String>> = std::thread::scope(|scope| {
            let (lab, place) = (&lab, &place);
            let spawn = |client| scope.spawn(move || verdict(lab, place, mode, client));
            let threads: Vec<_> = CLIENTS.iter().map(spawn).collect();
            // A thread that panicked has told why.
            let ended = threads.into_iter().map(|thread| thread.join());
            ended.map(|found| found.unwrap_or_else(|_| Some("it panicked".to_owned()))).collect()
        });
        wrong.extend(found.into_iter().flatten());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
