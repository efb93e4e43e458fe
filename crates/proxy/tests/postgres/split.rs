//! Reads on the primary's port before a real primary and a standby that streams from it.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use super::*;

/// A read comes from the standby within some tenths of a second; this only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A standby of a running server.
struct Standby {
    data: PathBuf,
    port: u16,
}

impl Standby {
    fn start(primary: &Postgres) -> Standby {
        let data = primary.directory.path().join("standby");
        let mut copy = as_server_user("pg_basebackup");
        copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-h", "127.0.0.1"]);
        copy.args(["-U", "postgres", "-p", &primary.port.to_string(), "-D"]).arg(&data);
        assert!(copy.env("PGPASSWORD", PASSWORD).status().unwrap().success());
        let port = lab::ports::reserve().unwrap();
        let standby = Standby { data, port };
        let options = format!(
            "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        );
        let mut start = as_server_user("pg_ctl");
        start.args(["start", "-w", "-s", "-o", &options, "-l"]);
        start.arg(primary.directory.path().join("standby.log")).arg("-D").arg(&standby.data);
        assert!(start.status().unwrap().success());
        standby
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let mut stop = as_server_user("pg_ctl");
        stop.args(["stop", "-m", "immediate", "-s", "-D"]).arg(&self.data);
        // Nothing better can be done about a server that does not stop.
        stop.status().map(drop).unwrap_or_default();
    }
}

fn view(primary: &Postgres, standby: &Standby) -> Arc<ClusterView> {
    let kv = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        create_revision: Revision(1),
        mod_revision: Revision(1),
        lease: 1,
    };
    let member = |port: u16, more: &str| {
        let url = format!("postgres://127.0.0.1:{port}/x");
        format!(r#"{{"conn_url":"{url}","state":"running","timeline":1,{more}}}"#)
    };
    let a = member(primary.port, r#""role":"primary","term":1"#);
    let b = member(standby.port, r#""role":"replica","replication_state":"streaming""#);
    let record = r#"{"term":1,"leader":"a","timeline":1}"#;
    let keys =
        [kv("leader", "a"), kv("members/a", &a), kv("members/b", &b), kv("pgherd/term", record)];
    Arc::new(ClusterView::from_keys(Revision(1), &keys))
}

/// One psql that stays.
struct Psql {
    _child: Child,
    sends: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Psql {
    fn start(port: u16) -> Psql {
        let mut psql = tokio::process::Command::new(program("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p"]);
        psql.args([&port.to_string(), "-U", "postgres", "postgres"]).env("PGPASSWORD", PASSWORD);
        psql.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = psql.spawn().unwrap();
        let (sends, says) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Psql { _child: child, sends, says: BufReader::new(says) }
    }

    /// What it prints for a statement; an error is its end.
    async fn ask(&mut self, sql: &str) -> String {
        self.sends.write_all(format!("{sql};\n\\echo .\n").as_bytes()).await.unwrap();
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.says.read_line(&mut line)).await;
            assert!(read.unwrap().unwrap() > 0, "psql ended at {sql}");
            if line == ".\n" {
                return printed.trim_end().to_owned();
            }
            printed.push_str(&line);
        }
    }

    async fn until_at_standby(&mut self) {
        let asked = async { while self.ask("select * from place").await != "standby" {} };
        timeout(PATIENCE, asked).await.expect("the standby answers");
    }
}

const SCHEMA: &str = "create table t (x int); \
    create unlogged table u (x int); \
    create view place as \
    select case when pg_is_in_recovery() then 'standby' else 'primary' end as name; \
    create function adds() returns int language sql as 'insert into t values (2) returning x'; \
    create function names() returns text language sql as \
    \\$\\$ select set_config('application_name', 'named', false) \\$\\$;";

/// Five seconds.
#[tokio::test]
async fn reads_go_to_the_standby_if_it_has_what_their_client_wrote() {
    let postgres = Postgres::start();
    let psql = |sql: &str| format!("psql -XAtq -v ON_ERROR_STOP=1 -c \"{sql}\"");
    let made = run(postgres.port, PASSWORD, &psql(SCHEMA)).await;
    assert_eq!(made, (true, String::new()));
    assert!(run(postgres.port, PASSWORD, "pgbench -iq -s 1").await.0);
    let standby = Standby::start(&postgres);
    let mut config = ProxyConfig::new("test", vec!["127.0.0.1:0".parse().unwrap()], vec![]);
    (config.pool_mode, config.read_write_split) = (PoolMode::Transaction, true);
    let users = postgres.directory.path().join("users");
    std::fs::write(&users, format!("\"postgres\" \"{PASSWORD}\"\n")).unwrap();
    std::fs::set_permissions(&users, Permissions::from_mode(0o600)).unwrap();
    config.security = ProxySecurity {
        auth: ProxyAuth::Scram,
        users_file: Some(users),
        ..ProxySecurity::default()
    };
    let proxy = Proxy::bind(config).await.unwrap();
    let port = proxy.addresses()[0].1.port();
    let status = proxy.status();
    let views = watch::Sender::new((Some(view(&postgres, &standby)), true));
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(proxy.run(views.subscribe(), shutdown.clone()));

    let (mut writer, mut reader) = (Psql::start(port), Psql::start(port));
    writer.until_at_standby().await;
    reader.until_at_standby().await;
    // The standby replays nothing.
    assert!(run(standby.port, PASSWORD, &psql("select pg_wal_replay_pause()")).await.0);
    let paused = psql("select pg_get_wal_replay_pause_state()");
    let until_paused =
        async { while run(standby.port, PASSWORD, &paused).await.1 != "paused\n" {} };
    timeout(PATIENCE, until_paused).await.expect("the standby pauses its replay");
    assert_eq!(writer.ask("insert into t values (1)").await, "");
    const READ: &str = "select count(*), name from t, place group by 2";
    for _ in 0..20 {
        assert_eq!(writer.ask(READ).await, "1|primary");
        assert_eq!(reader.ask("select count(*) from t").await, "0");
        assert_eq!(reader.ask("select * from place").await, "standby");
    }
    assert!(run(standby.port, PASSWORD, &psql("select pg_wal_replay_resume()")).await.0);
    writer.until_at_standby().await;
    assert_eq!(writer.ask("select count(*) from t").await, "1");
    // What the standby cannot do is the primary's, and the client does not notice.
    assert_eq!(reader.ask("select adds()").await, "2");
    assert_eq!(reader.ask("select count(*) from t").await, "2", "it reads what it wrote");
    reader.until_at_standby().await;
    assert_eq!(reader.ask("select count(*) from u").await, "0");
    reader.until_at_standby().await;
    assert_eq!(reader.ask("select names()").await, "named");
    assert_eq!(reader.ask("show application_name").await, "named");
    assert_eq!(reader.ask("select * from place").await, "primary", "it keeps its connection");
    let settings = "set default_transaction_isolation = serializable";
    assert_eq!(writer.ask(settings).await, "");
    assert_eq!(writer.ask("select * from place").await, "primary");

    // Prepared statements, from clients that read at the standby and write.
    for script in ["-S", "-N"] {
        let load = format!("pgbench -n {script} -M prepared -c 4 -T 1 2>&1");
        let (served, text) = run(port, PASSWORD, &load).await;
        assert!(served && text.contains("number of failed transactions: 0 "), "{text}");
    }
    let seen = "select count(*) > 0 from pg_stat_activity where query like 'SELECT abalance%'";
    let seen = run(standby.port, PASSWORD, &psql(seen)).await;
    assert_eq!(seen, (true, "t\n".to_owned()), "the standby was read from");
    assert_eq!(status.borrow().panics, 0);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
