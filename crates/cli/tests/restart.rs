//! A change of the configuration that needs a restart, under clients of a proxy in transaction
//! mode: none of them gets an error, and everything acknowledged is there once.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Demo, Killed, directory, free_port, pgherd, psql, succeeded, wait_for};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_postgres::{Config, NoTls};

const CLIENTS: usize = 16;
/// Fewer server connections than clients.
const POOL_SIZE: usize = 6;
const SETTLED: Duration = Duration::from_secs(60);

/// What one client saw.
#[derive(Debug, Default)]
struct Seen {
    commits: usize,
    longest: Duration,
    error: Option<tokio_postgres::Error>,
}

/// Transactions of some round trips each, up to the stop or the first error.
async fn client(config: Config, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let outcome = async {
        let (mut client, connection) = config.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let transaction = client.transaction().await?;
            transaction.execute("INSERT INTO t SELECT $1::int", &[&1_i32]).await?;
            transaction.query_one("SELECT count(*) FROM pg_class", &[]).await?;
            transaction.commit().await?;
            seen.commits += 1;
            seen.longest = seen.longest.max(begun.elapsed());
        }
        connection.abort();
        Ok(())
    };
    let outcome: Result<(), tokio_postgres::Error> = outcome.await;
    seen.error = outcome.err();
    seen
}

/// Clients that work until they are told to stop.
struct Clients {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Seen>>,
}

impl Clients {
    fn start(config: &Config) -> Clients {
        let (runtime, stop) = (Runtime::new().unwrap(), Arc::new(AtomicBool::new(false)));
        let spawn = |_| runtime.spawn(client(config.clone(), stop.clone()));
        let tasks = (0..CLIENTS).map(spawn).collect();
        Clients { runtime, stop, tasks }
    }

    /// How many transactions they committed; none of them may have got an error.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.tasks.into_iter().map(|task| self.runtime.block_on(task).unwrap());
        let all: Vec<Seen> = ended.collect();
        let errors: Vec<&tokio_postgres::Error> =
            all.iter().filter_map(|seen| seen.error.as_ref()).collect();
        assert!(errors.is_empty(), "{} clients got errors: {errors:?}", errors.len());
        let longest = all.iter().map(|seen| seen.longest).max().unwrap();
        let commits = all.iter().map(|seen| seen.commits).sum();
        eprintln!("{commits} commits, the longest transaction took {longest:?}");
        commits
    }
}

/// The proxy that they connect to, and where it is.
fn proxy(demo: &Demo, dir: &Path) -> (Killed, Config) {
    let file = demo.file();
    let demos: Config = file["read_write"].as_str().unwrap().parse().unwrap();
    let password = String::from_utf8(demos.get_password().unwrap().to_vec()).unwrap();
    let users = dir.join("users.txt");
    fs::write(&users, format!("\"postgres\" \"{password}\"\n")).unwrap();
    fs::set_permissions(&users, PermissionsExt::from_mode(0o600)).unwrap();
    let port = free_port();
    let text = json!({
        "scope": file["scope"], "namespace": "/service/", "etcd3": {"hosts": file["dcs"]},
        "pgherd": {"proxy": {
            "name": "shared", "read_write": format!("127.0.0.1:{port}"),
            "pool_mode": "transaction", "pool_size": POOL_SIZE,
            "auth": "scram-sha-256", "users_file": users,
        }},
    });
    fs::write(dir.join("proxy.yml"), text.to_string()).unwrap();
    let log = fs::File::create(dir.join("proxy.log")).unwrap();
    let mut command = Command::new(pgherd());
    command.args(["proxy", "-c"]).arg(dir.join("proxy.yml")).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let child = Killed(command.spawn().unwrap());
    let endpoints: Vec<String> = serde_json::from_value(file["dcs"].clone()).unwrap();
    let scope = file["scope"].as_str().unwrap();
    let prefix = types::keys::prefix("/service/", scope);
    let key = format!("{prefix}{}", types::keys::proxy(&format!("shared:{port}")));
    wait_for("the proxy is registered", SETTLED, || {
        let runtime = Runtime::new().unwrap();
        runtime.block_on(async {
            let config = dcs::ClientConfig::new(endpoints.clone(), types::Millis(2_000));
            dcs::Client::connect(config).unwrap().get(&key).await.ok()?.0
        })
    });
    let mut through = Config::new();
    through.host("127.0.0.1").port(port).user("postgres").password(password).dbname("postgres");
    (child, through)
}

fn waits_for_restart(demo: &Demo) -> usize {
    let rows: Value = serde_json::from_str(&demo.ctl(&["list", "-f", "json"])).unwrap();
    rows.as_array().unwrap().iter().filter(|row| row["Pending restart"] == "*").count()
}

fn configure(demo: &Demo, parameters: &[&str]) {
    let mut command = vec!["edit-config", "--force"];
    command.extend(parameters.iter().flat_map(|parameter| ["-p", *parameter]));
    demo.ctl(&command);
    wait_for("all wait for a restart", SETTLED, || (waits_for_restart(demo) == 3).then_some(()));
}

fn show(demo: &Demo, parameter: &str) -> String {
    let file = demo.file();
    let url = file["read_write"].as_str().unwrap();
    succeeded(psql(url, &format!("SHOW {parameter}"))).trim().to_owned()
}

#[test]
fn a_restart_of_the_primary_is_no_error_for_anybody() {
    let root = directory();
    let demo = Demo::new(&root.path().join("d"));
    demo.start(&[]);
    let url = demo.file()["read_write"].as_str().unwrap().to_owned();
    succeeded(psql(&url, "CREATE TABLE t (v int)"));
    let (_proxy, through) = proxy(&demo, root.path());
    let leader = demo.settled(2);
    let scope = demo.file()["scope"].as_str().unwrap().to_owned();
    let clients = Clients::start(&through);

    // In place, its standbys first: they must have as many connections as it has.
    configure(&demo, &["max_connections=151", "shared_buffers=48MB"]);
    let said = demo.ctl(&["restart", &scope, "--force"]);
    assert_eq!(said.matches("Success: restart on member").count(), 3, "{said}");
    assert!(said.trim_end().ends_with(&format!("member {leader}")), "the leader is last: {said}");
    assert_eq!(
        (show(&demo, "max_connections"), show(&demo, "shared_buffers")),
        ("151".into(), "48MB".into())
    );
    assert_eq!(demo.settled(2), leader, "nobody else took over");
    assert_eq!(waits_for_restart(&demo), 0);

    // While a standby leads.
    configure(&demo, &["max_connections=152"]);
    let said = demo.ctl(&["restart", &scope, "--by-switchover", "--force"]);
    assert!(said.contains(&format!("Success: restart on member {leader}")), "{said}");
    assert_eq!(show(&demo, "max_connections"), "152");
    assert_eq!((demo.settled(2), waits_for_restart(&demo)), (leader, 0));

    let commits = clients.end();
    let rows = succeeded(psql(&url, "SELECT count(*) FROM t"));
    assert_eq!(rows.trim(), commits.to_string());
    demo.stop();
}
