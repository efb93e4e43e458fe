//! The proxy before a real PostgreSQL: authentication, COPY, cancel, load, and a change of term.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use config::{ProxyAuth, ProxySecurity};
use proxy::{PoolMode, Proxy, ProxyConfig};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use types::{ClusterView, KeyValue, Revision};

#[path = "postgres/split.rs"]
mod split;

/// What is awaited comes within this time, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(30);
const PASSWORD: &str = "a password with = and '";

/// Debian's place first, then the path.
fn program(name: &str) -> PathBuf {
    let versions = (14..=18).rev().map(|n| format!("/usr/lib/postgresql/{n}/bin"));
    let places = versions.map(|bin| Path::new(&bin).join(name));
    places.into_iter().find(|path| path.exists()).unwrap_or_else(|| PathBuf::from(name))
}

/// PostgreSQL refuses to run as root.
fn as_server_user(name: &str) -> Command {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        return Command::new(program(name));
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program(name)).current_dir("/");
    command
}

struct Postgres {
    directory: tempfile::TempDir,
    port: u16,
}

impl Postgres {
    fn start() -> Postgres {
        let directory = tempfile::tempdir().unwrap();
        let password_file = directory.path().join("password");
        std::fs::write(&password_file, PASSWORD).unwrap();
        if rustix::process::geteuid().is_root() {
            let mut chown = Command::new("chown");
            chown.args(["-R", "postgres"]).arg(directory.path());
            assert!(chown.status().unwrap().success());
        }
        let mut initdb = as_server_user("initdb");
        initdb.args(["--auth=scram-sha-256", "-U", "postgres", "--no-sync", "-D"]);
        initdb.arg(directory.path().join("data")).arg("--pwfile").arg(password_file);
        assert!(initdb.stdout(Stdio::null()).status().unwrap().success());
        let port = lab::ports::reserve().unwrap();
        let postgres = Postgres { directory, port };
        let options = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        );
        let mut start = as_server_user("pg_ctl");
        start.args(["start", "-w", "-s", "-o", &options, "-l"]);
        start.arg(postgres.directory.path().join("log")).arg("-D").arg(postgres.data());
        assert!(start.status().unwrap().success());
        postgres
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn view(&self, term: i64) -> Arc<ClusterView> {
        self.configured_view(term, "{}")
    }

    fn configured_view(&self, term: i64, config: &str) -> Arc<ClusterView> {
        let kv = |key: &str, value: &str| KeyValue {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision: Revision(term),
            mod_revision: Revision(term),
            lease: 1,
        };
        let member = format!(
            r#"{{"conn_url":"postgres://127.0.0.1:{}/x","role":"primary","term":{term}}}"#,
            self.port
        );
        let record = format!(r#"{{"term":{term},"leader":"a","timeline":1}}"#);
        let mut keys = vec![kv("leader", "a"), kv("members/a", &member)];
        keys.extend([kv("pgherd/term", &record), kv("config", config)]);
        Arc::new(ClusterView::from_keys(Revision(term), &keys))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = as_server_user("pg_ctl");
        stop.args(["stop", "-m", "immediate", "-s", "-D"]).arg(self.data());
        // Nothing better can be done about a server that does not stop.
        stop.status().map(drop).unwrap_or_default();
    }
}

/// Runs a client of the proxy and gives what it printed, both streams together.
async fn run(port: u16, password: &str, command: &str) -> (bool, String) {
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", command]).kill_on_drop(true).stdin(Stdio::null());
    shell.env("PGHOST", "127.0.0.1").env("PGPORT", port.to_string());
    shell.env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("PGPASSWORD", password);
    let Output { status, stdout, stderr } = shell.output().await.unwrap();
    let text = [stdout, stderr].concat();
    (status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn real_clients_do_not_notice_the_proxy_until_the_term_changes() {
    let postgres = Postgres::start();
    let config = ProxyConfig::new("test", vec!["127.0.0.1:0".parse().unwrap()], vec![]);
    let proxy = Proxy::bind(config).await.unwrap();
    let port = proxy.addresses()[0].1.port();
    let status = proxy.status();
    let views = watch::Sender::new((Some(postgres.view(1)), true));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(proxy.run(views.subscribe(), shutdown.clone()));
    let psql = |sql: &str| format!("psql -XAtq -v ON_ERROR_STOP=1 {sql}");

    let one = run(port, PASSWORD, &psql("-c 'select 40 + 2'")).await;
    assert_eq!(one, (true, "42\n".to_owned()));
    let (served, text) = run(port, "wrong", &psql("-c 'select 1'")).await;
    assert!(!served && text.contains("password authentication failed"), "{text}");
    assert!(!text.contains("terminating"), "{text}");

    let copy = [
        psql("-c 'create table t (x text)'"),
        format!("seq 100000 | {}", psql("-c '\\copy t from stdin'")),
        format!("{} | tail -n 1", psql("-c '\\copy t to stdout'")),
    ];
    assert_eq!(run(port, PASSWORD, &copy.join(" && ")).await, (true, "100000\n".to_owned()));

    let cancel = format!("timeout -s INT 1 {}", psql("-c 'select pg_sleep(60)'"));
    let (_, text) = run(port, PASSWORD, &cancel).await;
    assert!(text.contains("canceling statement due to user request"), "{text}");

    let load = "pgbench -iq -s 1 2>&1 && pgbench -n -c 8 -t 100 -M prepared 2>&1";
    let (served, text) = run(port, PASSWORD, load).await;
    assert!(served && text.contains("800/800"), "{text}");

    let before = status.borrow().routes.metrics.read_write.connected;
    let sleep = psql("-c 'select pg_sleep(60)'");
    let sleeping = tokio::spawn(async move { run(port, PASSWORD, &sleep).await });
    let mut watched = status.clone();
    watched.wait_for(|s| s.routes.metrics.read_write.connected > before).await.unwrap();
    let asleep = "-c \"select count(*) from pg_stat_activity where wait_event = 'PgSleep'\"";
    while run(postgres.port, PASSWORD, &psql(asleep)).await.1 != "1\n" {}
    views.send_replace((Some(postgres.view(2)), true));
    let (_, text) = sleeping.await.unwrap();
    assert!(text.contains("the outcome of the last statement is unknown"), "{text}");
    let cut = watched.wait_for(|s| s.routes.metrics.read_write.cut_unplanned == 1);
    assert_eq!(cut.await.unwrap().panics, 0);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn lowered_commits_are_counted_and_refused_where_configured() {
    let postgres = Postgres::start();
    let config = ProxyConfig::new("test", vec!["127.0.0.1:0".parse().unwrap()], vec![]);
    let proxy = Proxy::bind(config).await.unwrap();
    let port = proxy.addresses()[0].1.port();
    let mut status = proxy.status();
    let views = watch::Sender::new((Some(postgres.view(1)), true));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(proxy.run(views.subscribe(), shutdown.clone()));
    let psql = |sql: &str| format!("psql -XAtq -v ON_ERROR_STOP=1 {sql}");
    // The same statement by the extended protocol, alone and with a parameter.
    let script = postgres.directory.path().join("script");
    let bench = |mode: &str| format!("pgbench -n -t 1 -M {mode} -f {} 2>&1", script.display());
    let by_statement = psql("-c 'set synchronous_commit = off' -c 'show synchronous_commit'");
    let at_start = format!("PGOPTIONS='-c synchronous_commit=local' {}", psql("-c 'select 1'"));

    let lowered = (true, "off\n".to_owned());
    assert_eq!(run(port, PASSWORD, &by_statement).await, lowered);
    assert_eq!(run(port, PASSWORD, &at_start).await, (true, "1\n".to_owned()));
    let counted = status.wait_for(|s| s.lowered.sessions == 2).await.unwrap().lowered;
    assert_eq!(counted.refused, 0);

    let refuse = r#"{"pgherd":{"refuse_lowered_commit":true}}"#;
    views.send_replace((Some(postgres.configured_view(2, refuse)), true));
    let (served, text) = run(port, PASSWORD, &by_statement).await;
    assert!(!served && text.contains("ERROR:  synchronous_commit below on is refused"), "{text}");
    assert!(text.contains("HINT:  ") && text.contains("pgherd.refuse_lowered_commit"), "{text}");
    let (served, text) = run(port, PASSWORD, &at_start).await;
    assert!(!served && text.contains("FATAL:  synchronous_commit below on is refused"), "{text}");

    // The session goes on, and the transaction has failed as any other does.
    let sql = "begin; create table t (); \\n set local synchronous_commit = off; \\n commit; \\n \
               select to_regclass('t') is null, current_setting('synchronous_commit')";
    let (served, text) = run(port, PASSWORD, &format!("printf \"{sql}\" | psql -XAtq")).await;
    assert!(served && text.starts_with("t|on\n") && text.contains("ERROR"), "{text}");

    for statement in [
        "set synchronous_commit = off;",
        "\\set value 1\nselect set_config('synchronous_commit', :value::text, false);",
    ] {
        std::fs::write(&script, statement).unwrap();
        for mode in ["simple", "extended", "prepared"] {
            let (served, text) = run(port, PASSWORD, &bench(mode)).await;
            assert!(!served && text.contains("below on is refused"), "{mode} {statement}: {text}");
        }
    }
    let counted = status.wait_for(|s| s.lowered.refused == 9).await.unwrap().lowered;
    assert_eq!(counted.sessions, 11);

    // What role, database and server say is known once the server is asked.
    let lower = "-c 'alter role postgres set synchronous_commit = local'";
    assert!(run(postgres.port, PASSWORD, &psql(lower)).await.0);
    let (served, text) = run(port, PASSWORD, &psql("-c 'select 1'")).await;
    assert!(!served && text.contains("FATAL:  synchronous_commit is below on for"), "{text}");
    let raised = format!("PGOPTIONS='-c synchronous_commit=on' {}", psql("-c 'select 1'"));
    assert_eq!(run(port, PASSWORD, &raised).await, (true, "1\n".to_owned()));
    views.send_replace((Some(postgres.configured_view(3, "{}")), true));
    let permitted = run(port, PASSWORD, &psql("-c 'show synchronous_commit'")).await;
    assert_eq!(permitted, (true, "local\n".to_owned()));
    let counted = status.wait_for(|s| s.lowered.refused == 10).await.unwrap();
    assert_eq!(counted.panics, 0);
    drop(counted);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

/// From the clients' share.
#[tokio::test]
async fn a_commit_that_waits_for_its_standby_is_not_cancelled_and_never_called_done() {
    let postgres = Postgres::start();
    let psql = |sql: &str| format!("psql -XAtq -v ON_ERROR_STOP=1 {sql}");
    let setup = "-c 'create table t (x int)' \
                 -c \"alter system set synchronous_standby_names = 'nobody'\" \
                 -c 'select pg_reload_conf()'";
    assert!(run(postgres.port, PASSWORD, &psql(setup)).await.0);
    let users = postgres.directory.path().join("users");
    std::fs::write(&users, format!("\"postgres\" \"{PASSWORD}\"\n")).unwrap();
    std::fs::set_permissions(&users, Permissions::from_mode(0o600)).unwrap();
    let security = ProxySecurity {
        auth: ProxyAuth::Scram,
        users_file: Some(users),
        ..ProxySecurity::default()
    };
    for (security, is_asked) in [(security, true), (ProxySecurity::default(), false)] {
        let mut config = ProxyConfig::new("test", vec!["127.0.0.1:0".parse().unwrap()], vec![]);
        (config.security, config.pool_mode) = (security, PoolMode::Transaction);
        let proxy = Proxy::bind(config).await.unwrap();
        let port = proxy.addresses()[0].1.port();
        let views = watch::Sender::new((Some(postgres.view(1)), true));
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(proxy.run(views.subscribe(), shutdown.clone()));
        let pid = postgres.directory.path().join("pid");
        let pid = pid.display();
        // A client that is interrupted cancels, and leaves only when it is answered.
        let insert = format!("echo $$ >{pid}; exec {}", psql("-c 'insert into t values (1)'"));
        let inserting = tokio::spawn(async move { run(port, PASSWORD, &insert).await });
        let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        let waiting = psql(&format!("-c \"{waits}\""));
        let until_it_waits =
            async { while run(postgres.port, PASSWORD, &waiting).await.1 != "1\n" {} };
        timeout(LIMIT, until_it_waits).await.expect("the commit waits for its standby");
        assert!(run(port, PASSWORD, &format!("kill -INT $(cat {pid})")).await.0);
        if is_asked {
            // Long after that it still waits. Then somebody else cancels.
            let cancel = "select pg_sleep(1.5), pg_cancel_backend(pid) from pg_stat_activity \
                          where wait_event = 'SyncRep'";
            let cancelled = run(postgres.port, PASSWORD, &psql(&format!("-c \"{cancel}\""))).await;
            assert_eq!(cancelled, (true, "|t\n".to_owned()));
        }
        let (served, text) = inserting.await.unwrap();
        assert!(!served && text.contains("may be lost in a failover"), "{is_asked}: {text}");
        assert!(!text.contains("INSERT"), "{text}");
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }
    let count = run(postgres.port, PASSWORD, &psql("-c 'select count(*) from t'")).await;
    assert_eq!(count, (true, "2\n".to_owned()), "committed, and nobody was told so");
}

/// From the clients' share.
#[tokio::test]
async fn of_two_proxies_in_a_connection_string_one_may_go_and_one_may_come_before_its_cluster() {
    let postgres = Postgres::start();
    let mut ports = Vec::new();
    let mut proxies = Vec::new();
    for view in [Some(postgres.view(1)), None] {
        let config = ProxyConfig::new("test", vec!["127.0.0.1:0".parse().unwrap()], vec![]);
        let proxy = Proxy::bind(config).await.unwrap();
        ports.push(proxy.addresses()[0].1.port().to_string());
        let (views, shutdown) = (watch::Sender::new((view, true)), CancellationToken::new());
        let status = proxy.status();
        let running = tokio::spawn(proxy.run(views.subscribe(), shutdown.clone()));
        proxies.push((views, shutdown, status, running));
    }
    let both = format!("host=127.0.0.1,127.0.0.1 port={}", ports.join(","));
    let ask = format!("psql -XAtq \"{both}\" -c 'select 1'");
    assert_eq!(run(1, PASSWORD, &ask).await, (true, "1\n".to_owned()));
    let (_, shutdown, _, running) = proxies.remove(0);
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let asking = tokio::spawn(async move { run(1, PASSWORD, &ask).await });
    let (views, shutdown, mut status, running) = proxies.remove(0);
    status.wait_for(|status| status.routes.waiting == 1).await.unwrap();
    views.send_replace((Some(postgres.view(1)), true));
    assert_eq!(asking.await.unwrap(), (true, "1\n".to_owned()));
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

/// From the share of real clients: two seconds.
#[tokio::test]
async fn psql_shows_the_pools_of_real_clients() {
    let postgres = Postgres::start();
    let users_file = postgres.directory.path().join("users");
    std::fs::write(&users_file, format!("\"postgres\" \"{PASSWORD}\"\n\"boss\" \"hush\"\n"))
        .unwrap();
    std::fs::set_permissions(&users_file, Permissions::from_mode(0o600)).unwrap();
    let mut config = ProxyConfig::new("test", vec!["127.0.0.1:0".parse().unwrap()], vec![]);
    config.pool_mode = PoolMode::Transaction;
    config.admin_users = ["boss".to_owned()].into();
    config.security = ProxySecurity {
        auth: ProxyAuth::Scram,
        users_file: Some(users_file),
        ..ProxySecurity::default()
    };
    let proxy = Proxy::bind(config).await.unwrap();
    let port = proxy.addresses()[0].1.port();
    let views = watch::Sender::new((Some(postgres.view(1)), true));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(proxy.run(views.subscribe(), shutdown.clone()));
    let psql = |sql: &str| format!("psql -XAtq -v ON_ERROR_STOP=1 {sql}");
    let boss = |sql: &str| psql(&format!("-U boss -d pgbouncer -c '{sql}'"));

    let load = "pgbench -iq -s 1 2>&1 && pgbench -n -c 4 -t 50 -M prepared -S 2>&1";
    let (served, text) = run(port, PASSWORD, load).await;
    assert!(served && text.contains("200/200"), "{text}");
    let (shown, pools) = run(port, "hush", &boss("SHOW POOLS")).await;
    assert!(shown && pools.starts_with("postgres|postgres|"), "{pools}");
    assert!(pools.ends_with("|transaction\n") && pools.lines().count() == 1, "{pools}");
    let (shown, stats) = run(port, "hush", &boss("SHOW STATS")).await;
    let count = |column: usize| stats.split('|').nth(column).unwrap().parse::<u64>().unwrap();
    assert!(shown && count(1) >= 200 && count(2) >= count(1), "{stats}");
    let (_, version) = run(port, "hush", &boss("SHOW VERSION;")).await;
    assert!(version.starts_with("pgherd "), "{version}");
    let (shown, text) = run(port, "wrong", &boss("SHOW POOLS")).await;
    assert!(!shown && text.contains("password authentication failed"), "{text}");
    let as_client = psql("-d pgbouncer -c 'SHOW POOLS'");
    let (shown, text) = run(port, PASSWORD, &as_client).await;
    assert!(!shown && text.contains("may not look at the proxy"), "{text}");
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

/// From the clients' share: three seconds.
#[tokio::test]
async fn settings_go_back_to_what_a_client_began_with_in_every_mode() {
    let postgres = Postgres::start();
    let users_file = postgres.directory.path().join("users");
    std::fs::write(&users_file, format!("\"postgres\" \"{PASSWORD}\"\n")).unwrap();
    std::fs::set_permissions(&users_file, Permissions::from_mode(0o600)).unwrap();
    for mode in [PoolMode::Session, PoolMode::Transaction, PoolMode::Statement] {
        let mut config = ProxyConfig::new("test", vec!["127.0.0.1:0".parse().unwrap()], vec![]);
        (config.pool_mode, config.pool_size) = (mode, 1);
        config.security = ProxySecurity {
            auth: ProxyAuth::Scram,
            users_file: Some(users_file.clone()),
            ..ProxySecurity::default()
        };
        let proxy = Proxy::bind(config).await.unwrap();
        let port = proxy.addresses()[0].1.port();
        let views = watch::Sender::new((Some(postgres.view(1)), true));
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(proxy.run(views.subscribe(), shutdown.clone()));
        let show = "-c 'show work_mem'";
        let words = ["set work_mem = '2MB'", "reset work_mem", "reset all", "discard all"];
        let steps = words.map(|word| format!("-c \"{word}\" {show}")).join(" ");
        let psql = format!("PGOPTIONS='-c work_mem=1MB' psql -XAtq {steps}");
        // The next client of the one connection began otherwise.
        let both = format!("{psql} && psql -XAtq {show}");
        let wanted = (true, "2MB\n1MB\n1MB\n1MB\n4MB\n".to_owned());
        assert_eq!(run(port, PASSWORD, &both).await, wanted, "{mode:?}");
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }
}
