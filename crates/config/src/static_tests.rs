use types::{Millis, RestAddress};

use super::*;
use crate::proxy_section::PoolMode;

const GOOD: &str = r#"
scope: demo
name: node-1
etcd3:
  hosts: 10.0.0.1:2379, 10.0.0.2
restapi:
  listen: 0.0.0.0:8008
  connect_address: 10.0.0.5:8008
  authentication: {username: admin, password: 0123}
bootstrap:
  dcs:
    ttl: 10
    loop_wait: 2
    retry_timeout: 3
    synchronous_mode: quorum
    postgresql:
      parameters: {max_connections: 50, jit: off}
  initdb:
  - encoding: UTF8
  - data-checksums
  pg_hba:
  - host all all 0.0.0.0/0 scram-sha-256
postgresql:
  listen: 10.0.0.5,127.0.0.1:5432
  data_dir: /data/pg
  bin_dir: /usr/lib/postgresql/15/bin
  authentication:
    superuser: {username: postgres, password: s3cret}
    replication: {username: replicator, password: 1e5}
  parameters: {work_mem: 8MB, max_connections: 7}
  use_pg_rewind: true
tags:
  nofailover: "true"
  failover_priority: 0
  dc: west
pgherd:
  stop_margin: 500ms
"#;

fn node(text: &str) -> Result<(Static, Vec<Warning>), ConfigError> {
    Static::read(&Sources::default().with_file("node.yml", text))
}

fn proxy(text: &str, name: &str) -> Result<(ProxyFile, Vec<Warning>), ConfigError> {
    Static::read_proxy(&Sources::default().with_file(name, text))
}

fn errors(text: &str) -> Vec<String> {
    let error = node(text).expect_err("refused");
    error.to_string().lines().map(str::to_owned).collect()
}

/// The good file with one line replaced.
fn changed(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn a_good_file() {
    let (file, warnings) = node(GOOD).expect("good");
    assert_eq!(warnings, []);
    assert_eq!((file.scope.as_str(), file.namespace.as_str()), ("demo", "/service/"));
    let endpoints: Vec<String> = file.etcd3.endpoints.iter().map(HostPort::to_string).collect();
    assert_eq!(endpoints, ["10.0.0.1:2379", "10.0.0.2:2379"]);
    let user = file.restapi.authentication.as_ref().expect("given");
    assert_eq!(user.password.expose(), "0123");
    let postgresql = &file.postgresql;
    assert_eq!(postgresql.listen.hosts(), ["10.0.0.5", "127.0.0.1"]);
    assert_eq!(postgresql.connect_address.to_string(), "10.0.0.5:5432");
    let replication = postgresql.authentication.replication.password.as_ref().expect("given");
    assert_eq!(replication.expose(), "1e5");
    assert_eq!(file.pgherd.state_dir, PathBuf::from("/data/pg.pgherd"));
    assert!(file.tags.nofailover() && file.pgherd.declared);
    assert_eq!(file.tags.get("failover_priority"), Some(&0.into()));
    assert_eq!(file.tags.get("dc"), Some(&"west".into()));
    assert_eq!(file.bootstrap.initdb.len(), 2);
    let (dynamic, _) = Dynamic::from_json(&file.bootstrap.dcs).expect("checked already");
    let merged = dynamic.merged(&file);
    assert_eq!(merged.pgherd.stop_margin, Millis(500));
    assert!(merged.postgresql.use_pg_rewind);
    assert_eq!(merged.postgresql.parameters["max_connections"], "50");
    assert_eq!(merged.postgresql.parameters["work_mem"], "8MB");
    assert_eq!(merged.postgresql.parameters["jit"], "off");
    let shown = format!("{file:?}");
    assert!(!shown.contains("s3cret") && !shown.contains("1e5"), "{shown}");
}

#[test]
fn unknown_keys_below_pgherd_are_errors_with_line_and_suggestion() {
    let text = changed("  stop_margin: 500ms", "  stat_dir: /x\n  stop_margin: soon");
    let lines = errors(&text);
    assert_eq!(lines[0], "node.yml:37: pgherd.stat_dir: unknown key; did you mean state_dir?");
    assert!(lines[1].starts_with("node.yml:38: pgherd.stop_margin: must be seconds"), "{lines:?}");
    assert_eq!(lines.len(), 2);
}

#[test]
fn other_unknown_keys_are_warnings() {
    let text = changed("  data_dir:", "  datadir2: x\n  data_dir:");
    let (_, warnings) = node(&text).expect("usable");
    let line = "node.yml:25: postgresql.datadir2: unknown key; did you mean data_dir?";
    assert_eq!(warnings.iter().map(Problem::to_string).collect::<Vec<_>>(), [line]);
    let text = changed("name: node-1", "name: node-1\nttl: 5");
    let (_, warnings) = node(&text).expect("usable");
    assert_eq!(warnings.len(), 1);
}

#[test]
fn all_problems_are_reported_at_once() {
    let lines = errors("scope: x\nrestapi: 5\npostgresql:\n  listen: nowhere\n");
    let keys: Vec<&str> = lines.iter().filter_map(|l| l.split(": ").nth(1)).collect();
    for key in [
        "name",
        "etcd3",
        "restapi",
        "postgresql.listen",
        "postgresql.data_dir",
        "postgresql.authentication.replication.username",
    ] {
        assert!(keys.contains(&key), "{key} is not in {lines:#?}");
    }
}

#[test]
fn other_stores_and_tls_are_refused_with_the_way_over() {
    for (from, to, expected) in [
        ("etcd3:", "etcd:", "etcd: etcd's v2 API is not supported; rename the section to etcd3"),
        ("etcd3:", "consul: {host: x}\netcd3:", "consul: this store is not supported; run etcd"),
        ("etcd3:", "etcd3:\n  key: /x", "etcd3.key: is of no use without etcd3.cert"),
        ("name: node-1", "name: __patroni_strict_sync_replica_placeholder__", "name: is reserved"),
        (
            "  initdb:",
            "  method: w\n  w: {command: a 'b}\n  initdb:",
            "bootstrap.w.command: \"a 'b\" has a quote",
        ),
        ("    ttl: 10", "    ttl: ten", "bootstrap.dcs.ttl: must be seconds"),
        ("  stop_margin: 500ms", "  state_dir: /data/pg/x", "pgherd.state_dir: must not be inside"),
        ("  connect_address: 10.0.0.5:8008", "", "restapi.connect_address: is required"),
    ] {
        let lines = errors(&changed(from, to));
        assert!(lines.iter().any(|l| l.contains(expected)), "{expected} is not in {lines:#?}");
    }
}

#[test]
fn the_watchdog_is_patronis() {
    let read = |section: &str| {
        let text = changed("tags:\n", &format!("{section}\ntags:\n"));
        let (file, warnings) = node(&text).expect("usable");
        (file.watchdog, warnings.iter().map(Problem::to_string).collect::<Vec<_>>())
    };
    for (section, mode) in [
        ("", WatchdogMode::Automatic),
        ("watchdog:", WatchdogMode::Automatic),
        ("watchdog: {mode: auto}", WatchdogMode::Automatic),
        ("watchdog: {mode: Automatic}", WatchdogMode::Automatic),
        ("watchdog: {mode: required}", WatchdogMode::Required),
        ("watchdog: {mode: require}", WatchdogMode::Required),
        ("watchdog: {mode: off}", WatchdogMode::Off),
        ("watchdog: {mode: false}", WatchdogMode::Off),
        ("watchdog: {mode: 'off'}", WatchdogMode::Off),
        ("watchdog: {mode: disabled}", WatchdogMode::Off),
    ] {
        let (watchdog, warnings) = read(section);
        assert_eq!((watchdog.mode, warnings), (mode, Vec::new()), "{section}");
        assert_eq!(watchdog.device, PathBuf::from("/dev/watchdog"));
        assert_eq!((watchdog.safety_margin, watchdog.driver), (5, WatchdogDriver::Default));
    }
    // A test of Patroni's plays the machine; with a section of ours, as here, the guard stays.
    let played = |section: &str, ours: bool| {
        let text = changed("tags:\n", &format!("{section}\ntags:\n"));
        let plain = text.split("pgherd:").next().expect("the sections before ours").to_owned();
        node(if ours { &text } else { &plain }).expect("usable").0.watchdog.played
    };
    assert!(played("watchdog: {driver: testing}", false));
    assert!(!played("watchdog: {driver: testing}", true));
    assert!(!played("watchdog: {driver: testing, mode: off}", false));
    let (watchdog, warnings) = read("watchdog: {mode: requird}");
    assert_eq!(watchdog.mode, WatchdogMode::Off);
    assert!(warnings[0].starts_with("node.yml:32: watchdog.mode: is one of off"), "{warnings:?}");
    let (watchdog, _) = read("watchdog: {device: /dev/w1, driver: testing, safety_margin: -1}");
    assert_eq!(watchdog.device, PathBuf::from("/dev/w1"));
    assert_eq!((watchdog.safety_margin, watchdog.driver), (-1, WatchdogDriver::Testing));
    for (section, expected) in [
        ("watchdog: {mode: [off]}", "watchdog.mode: must be a text"),
        ("watchdog: {safety_margin: -2}", "watchdog.safety_margin: must be seconds, or -1"),
        ("watchdog: {safety_margin: soon}", "watchdog.safety_margin: must be a whole number"),
        ("watchdog: {driver: softdog}", "watchdog.driver: must be default or testing"),
    ] {
        let lines = errors(&changed("tags:\n", &format!("{section}\ntags:\n")));
        assert!(lines.iter().any(|l| l.contains(expected)), "{expected} is not in {lines:#?}");
    }
}

#[test]
fn a_watchdog_fires_before_the_lease_ends_and_after_a_round_of_the_loop() {
    let timeout = |safety_margin, ttl_s: u64, loop_wait_s: u64| {
        let (device, driver) = (PathBuf::new(), WatchdogDriver::Default);
        let watchdog = Watchdog {
            mode: WatchdogMode::Automatic,
            device,
            safety_margin,
            driver,
            played: false,
        };
        watchdog.timeout_secs(Millis(ttl_s * 1000), Millis(loop_wait_s * 1000))
    };
    assert_eq!(timeout(5, 30, 10), Some(25));
    assert_eq!(timeout(-1, 31, 10), Some(15));
    assert_eq!(timeout(5, 10, 5), Some(5));
    assert_eq!(timeout(5, 10, 6), None);
    assert_eq!(timeout(5, 5, 0), None);
    assert_eq!(timeout(i64::MAX, 5, 1), None);
}

#[test]
fn secrets_stay_out_of_errors() {
    let lines = errors(&changed("password: s3cret", "password: [s3cret]"));
    assert!(!lines.join("\n").contains("s3cret"), "{lines:?}");
    let text = "scope: x\npassword: \"s3cret\n";
    assert!(!errors(text).join("\n").contains("s3cret"));
}

#[test]
fn limits_of_a_proxy() {
    let read = |limits: &str| {
        let text = format!(
            "scope: demo\netcd3: {{host: 'localhost:2379'}}\npgherd:\n  proxy:\n    \
             read_write: 127.0.0.1:5000\n    {limits}\n"
        );
        proxy(&text, "proxy.yml").map(|(file, _)| file.proxy.limits)
    };
    assert_eq!(read("").expect("good"), crate::ProxyLimits::default());
    let set = "server_idle_timeout: 0\n    server_lifetime: 1h\n    client_idle_timeout: 2min\n    \
               idle_transaction_timeout: 3\n    query_timeout: 250ms\n    \
               client_login_timeout: 5\n    max_user_connections: 6\n    \
               max_db_connections: 7\n    client_limit_per_user: 8";
    let limits = crate::ProxyLimits {
        server_idle_timeout: Millis::ZERO,
        server_lifetime: Millis(3_600_000),
        client_idle_timeout: Millis(120_000),
        idle_transaction_timeout: Millis(3000),
        query_timeout: Millis(250),
        client_login_timeout: Millis(5000),
        max_user_connections: 6,
        max_db_connections: 7,
        client_limit_per_user: 8,
    };
    assert_eq!(read(set).expect("good"), limits);
    for bad in ["client_login_timeout: 0", "max_db_connections: -1", "query_timeout: soon"] {
        let error = read(bad).unwrap_err().to_string();
        let key = bad.split(':').next().expect("a key");
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn reads_are_split_where_connections_are_shared() {
    let read = |more: &str| {
        let text = format!(
            "scope: demo\netcd3: {{host: 'localhost:2379'}}\npgherd:\n  proxy:\n    \
             read_write: 0.0.0.0:5000\n    {more}\n"
        );
        proxy(&text, "proxy.yml").map(|(file, _)| (file.proxy.read_write_split, file.proxy.site))
    };
    assert_eq!(read("site: ''").expect("good"), (false, None));
    let split = "read_write_split: on\n    site: 7\n    auth: trust\n    pool_mode:";
    let site = Some("7".to_owned());
    assert_eq!(read(&format!("{split} transaction")).expect("good"), (true, site.clone()));
    assert_eq!(read(&format!("{split} statement")).expect("good"), (true, site));
    for more in [
        format!("{split} session"),
        "read_write_split: true".to_owned(),
        "read_write_split: true\n    pool_mode: transaction".to_owned(),
    ] {
        let error = read(&more).expect_err("refused").to_string();
        assert!(error.contains("pgherd.proxy.read_write_split: needs"), "{error}");
    }
}

#[test]
fn connections_are_shared_where_clients_sign_in_at_the_proxy() {
    let read = |more: &str| {
        let text = format!(
            "scope: demo\netcd3: {{host: 'localhost:2379'}}\npgherd:\n  proxy:\n    \
             read_write: 0.0.0.0:5000\n    pool_mode: {more}\n"
        );
        proxy(&text, "proxy.yml").map(|(file, _)| file.proxy.pool_mode)
    };
    assert_eq!(read("session").expect("good"), PoolMode::Session);
    assert_eq!(read("transaction\n    auth: trust").expect("good"), PoolMode::Transaction);
    for more in ["transaction", "statement\n    auth: pass_through"] {
        let error = read(more).expect_err("refused").to_string();
        assert!(error.contains("pgherd.proxy.pool_mode: needs a proxy that"), "{error}");
    }
}

#[test]
fn the_hot_restart_of_a_proxy() {
    let read = |keys: &str| {
        let text = format!(
            "scope: demo\netcd3: {{host: 'localhost:2379'}}\npgherd:\n  proxy:\n    \
             read_write: 127.0.0.1:5000\n    {keys}\n"
        );
        proxy(&text, "proxy.yml")
            .map(|(file, _)| (file.proxy.control_socket, file.proxy.drain_timeout))
    };
    assert_eq!(read("").expect("good"), (None, Millis(60_000)));
    let (socket, timeout) =
        read("control_socket: /run/pgherd/proxy.sock\n    drain_timeout: 5min").expect("good");
    assert_eq!(socket.expect("set").to_str(), Some("/run/pgherd/proxy.sock"));
    assert_eq!(timeout, Millis(300_000));
    let error = read("control_socket: proxy.sock").unwrap_err().to_string();
    assert!(error.contains("control_socket: must be an absolute path"), "{error}");
    let error = read(&format!("control_socket: /{}", "x".repeat(90))).unwrap_err().to_string();
    assert!(error.contains("is too long for a Unix socket: 91 bytes"), "{error}");
}

#[test]
fn a_proxy_file() {
    let text = "scope: demo\netcd3: {host: 'localhost:2379'}\npgherd:\n  proxy:\n    \
                name: p1\n    read_write: '*:5000'\n    read_only: '*:5001'\n    \
                hold_timeout: 15\n";
    let (file, warnings) = proxy(text, "proxy.yml").expect("good");
    assert_eq!(warnings, []);
    assert_eq!(file.proxy.read_write.as_ref().map(|a| a.port), Some(5000));
    assert_eq!(file.proxy.hold_timeout, Some(Millis(15_000)));
    assert_eq!(file.proxy.security, crate::ProxySecurity::default());
    let security = "auth: md5\n    users_file: /u\n    auth_user: a\n    auth_database: d\n    \
                    auth_query: select $1, 'x'\n    auth_password_file: /p\n    \
                    tls: {mode: allow, cert: /c, key: /k, key_password: 0123, ca: /a}\n    \
                    server_tls: {mode: verify-ca, ca: /a, crl: /r, cert: /c, key: /k, \
                    key_password: hush}\n    proxy_protocol: {in: require, out: v1}\n";
    let (file, warnings) = proxy(&format!("{text}    {security}"), "proxy.yml").expect("good");
    assert_eq!(warnings, []);
    let security = &file.proxy.security;
    assert!(security.proxy_protocol_in && !format!("{security:?}").contains("0123"));
    let users = format!(
        "{text}    auth: trust\n    admin_users: 'ann, bob'\n    \
                         stats_users: [eye]\n"
    );
    let (file, _) = proxy(&users, "proxy.yml").expect("good");
    assert_eq!(
        (file.proxy.admin_users, file.proxy.stats_users.len()),
        (vec!["ann".to_owned(), "bob".to_owned()], 1)
    );
    let unseen = proxy(&users.replace("trust", "pass_through"), "proxy.yml").expect_err("refused");
    assert!(
        unseen.to_string().contains("pgherd.proxy.admin_users: is for a proxy that"),
        "{unseen}"
    );
    let wrong = format!("{text}    auth: rules\n");
    let error = proxy(&wrong, "proxy.yml").expect_err("refused").to_string();
    assert!(error.contains("pgherd.proxy.rules_file: is required by auth: rules"), "{error}");
    let error = proxy("scope: a\netcd3: {host: h}\n", "p.yml").expect_err("refused");
    assert!(error.to_string().starts_with("p.yml:"), "{error}");
}

#[test]
fn a_proxy_has_the_dcs_or_members_to_tell_it_of_the_cluster() {
    let read = |top: &str, members: &str| {
        let text = format!(
            "scope: demo\n{top}\npgherd:\n  proxy:\n    read_write: 127.0.0.1:5000\n    \
             {members}\n"
        );
        proxy(&text, "proxy.yml").map(|(file, _)| file)
    };
    let members = "members: ['http://10.0.0.1:8008', 'https://[::1]/', 'http://10.0.0.1']";
    let file = read("", members).expect("good");
    let tls = RestAddress { tls: true, ..RestAddress::plain("::1", 8008) };
    assert_eq!(file.proxy.members, [RestAddress::plain("10.0.0.1", 8008), tls]);
    assert_eq!(file.etcd3, None);
    let file = read("etcd3: {host: h}", members).expect("good");
    assert!(file.etcd3.is_some() && file.proxy.members.len() == 2);
    let tls = "ctl: {cacert: /ca, certfile: /c, keyfile: /k, insecure: on}";
    let file = read(tls, members).expect("good");
    assert!(file.rest_client.insecure && file.rest_client.certificate.is_some());
    for (top, members, problem) in [
        ("", "", "etcd3: is required: the etcd members under etcd3.hosts; or pgherd.proxy.members"),
        ("", "members: []", "etcd3: is required"),
        ("etcd3: {}", members, "etcd3: is required: the etcd members under etcd3.hosts"),
        ("", "members: ['10.0.0.1:8008']", "\"10.0.0.1:8008\" is not http://host:port"),
        ("", "members: ['ftp://h']", "\"ftp://h\" is not http://host:port"),
        ("", "members: 7", "pgherd.proxy.members: must be"),
    ] {
        let error = read(top, members).expect_err(problem).to_string();
        assert!(error.contains(problem), "{error}");
    }
}

fn variables(list: &[(&str, &str)]) -> Sources {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Sources::environment(list.iter().map(owned))
}

#[test]
fn the_environment_beats_the_file_and_names_itself() {
    let environment = [
        ("PATRONI_NAME", "node-7"),
        ("PATRONI_ETCD3_HOSTS", "e1:1,e2:2"),
        ("PATRONI_SUPERUSER_PASSWORD", "0123"),
        ("PATRONI_RESTAPI_CONNECT_ADDRESS", ""),
        ("PATRONI_LOGLEVEL", "DEBUG"),
        ("PATH", "/bin"),
    ];
    let read = Static::read(&variables(&environment).with_file("node.yml", GOOD));
    let (file, _) = read.expect("good");
    assert_eq!(file.name.0, "node-7");
    let endpoints: Vec<String> = file.etcd3.endpoints.iter().map(HostPort::to_string).collect();
    assert_eq!(endpoints, ["e1:1", "e2:2"]);
    let superuser = file.postgresql.authentication.superuser;
    assert_eq!(superuser.password.expect("given").expose(), "0123");
    assert_eq!(file.restapi.connect_address.to_string(), "10.0.0.5:8008", "empty is unset");
    assert_eq!(file.log.level, crate::log::LogLevel::Debug);

    let wrong = variables(&[("PATRONI_POSTGRESQL_LISTEN", "nowhere")]);
    let error = Static::read(&wrong.with_file("node.yml", GOOD)).expect_err("refused");
    let shown = error.to_string();
    let expected = "PATRONI_POSTGRESQL_LISTEN: postgresql.listen: must be";
    assert!(shown.starts_with(expected), "{shown}");
    let wrong = variables(&[("PATRONI_CONSUL_HOST", "x")]).with_file("node.yml", GOOD);
    let shown = Static::read(&wrong).expect_err("refused").to_string();
    assert!(shown.starts_with("PATRONI_CONSUL_HOST: consul: this store is not supp"), "{shown}");
}

#[test]
fn the_environment_is_enough() {
    let environment = [
        ("PATRONI_SCOPE", "demo"),
        ("PATRONI_NAME", "a"),
        ("PATRONI_ETCD3_HOST", "e1"),
        ("PATRONI_RESTAPI_LISTEN", "10.0.0.1:8008"),
        ("PATRONI_POSTGRESQL_LISTEN", "10.0.0.1:5432"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "/data"),
        ("PATRONI_REPLICATION_USERNAME", "rep"),
    ];
    let (file, warnings) = Static::read(&variables(&environment)).expect("good");
    assert_eq!((file.scope.as_str(), warnings.len()), ("demo", 0));
    assert!(!file.pgherd.declared, "a file for Patroni alone");
    let error = Static::read(&variables(&environment[1..])).expect_err("refused");
    assert_eq!(error.to_string(), "scope: is required");
    let whole = variables(&[("PATRONI_CONFIGURATION", GOOD), ("PATRONI_NAME", "b")]);
    assert_eq!(Static::read(&whole).expect("good").0.name.0, "b");
    let unread = whole.with_file("node.yml", "scope: x\n");
    assert!(Static::read(&unread).is_err(), "with a file the variable does not count");
    assert!(variables(&[("PATRONI_TAGS", "x"), ("HOME", "/")]).is_empty());
}

#[test]
fn programs_and_files_may_have_other_names_and_places() {
    let over = "postgresql:\n  proxy_address: pool.example:6432\n  config_dir: /etc/pg\n  \
                config_base_name: main\n  bin_name: {postgres: pg15, pg_ctl: ctl}\n  \
                use_unix_socket: on\n  pg_ctl_timeout: 2min\n  krbsrvname: pg\n  \
                rewind: [debug, {sync-method: syncfs}]\n";
    let read = |over: &str| {
        Static::read(&Sources::default().with_file("10.yml", GOOD).with_file("20.yml", over))
    };
    let (file, warnings) = read(over).expect("good");
    assert_eq!(warnings, []);
    let section = file.postgresql;
    assert_eq!(section.proxy_address.expect("given").to_string(), "pool.example:6432");
    assert_eq!(section.config_dir, Some(PathBuf::from("/etc/pg")));
    assert_eq!(section.config_base_name, "main");
    assert_eq!(section.bin_name, BTreeMap::from([("postgres", "pg15".to_owned())]));
    let hooks = section.hooks;
    assert_eq!((hooks.use_unix_socket, hooks.pg_ctl_timeout), (Some(true), Some(Millis(120_000))));
    assert_eq!(hooks.krbsrvname.as_deref(), Some("pg"));
    let rewind = [("debug", None), ("sync-method", Some("syncfs"))];
    let rewind = rewind.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
    assert_eq!(hooks.rewind, Some(rewind.to_vec()));
    let wrong = "postgresql:\n  config_dir: etc\n  config_base_name: a/b\n  \
                 bin_name: {initdb: /bin/initdb}\n";
    let shown = read(wrong).expect_err("refused").to_string();
    for key in ["config_dir: must be an abs", "config_base_name: must be", "initdb: must be a name"]
    {
        assert!(shown.contains(key), "{key}: {shown}");
    }
}

#[test]
fn a_url_of_etcd_may_hold_everything() {
    let read = |etcd: &str| {
        let over = format!("etcd3: {{hosts: null, {etcd}}}\n");
        Static::read(&Sources::default().with_file("10.yml", GOOD).with_file("20.yml", over))
    };
    for (etcd, endpoint, tls, user, password) in [
        ("url: 'https://me:p:w@e1:23/v3'", "e1:23", true, Some("me"), Some("p:w")),
        ("url: 'http://e1', username: u, password: k", "e1:2379", false, Some("u"), Some("k")),
        (
            "url: 'http://e1', proxy: 'https://[::1]:1/', protocol: http",
            "[::1]:1",
            true,
            None,
            None,
        ),
        ("host: e3, use_proxies: on, protocol: https", "e3:2379", true, None, None),
    ] {
        let (file, warnings) = read(etcd).unwrap_or_else(|e| panic!("{etcd}: {e}"));
        assert_eq!(warnings, []);
        let found = &file.etcd3;
        assert_eq!(found.endpoints.iter().map(HostPort::to_string).collect::<Vec<_>>(), [endpoint]);
        assert_eq!((found.tls, found.username.as_deref()), (tls, user), "{etcd}");
        assert_eq!(found.password.as_ref().map(Secret::expose), password, "{etcd}");
    }
    for (etcd, says) in [
        ("url: 'http://me:hush@e 1'", "etcd3.url: \"e 1\" is not host:port"),
        ("proxy: 'http://me@e1'", "username and password must be given together"),
        ("srv: example.org", "etcd3.srv: not supported; list the members under etcd3.hosts"),
    ] {
        let shown = read(etcd).expect_err("refused").to_string();
        assert!(shown.contains(says) && !shown.contains("hush"), "{shown}");
    }
}

#[test]
fn what_both_may_say_is_the_nodes_own() {
    let document = serde_json::json!({ "postgresql": {
        "use_unix_socket": true, "pg_ctl_timeout": 90, "krbsrvname": "a", "rewind": ["debug"]
    }});
    let (dynamic, warnings) = Dynamic::from_json(&document).expect("good");
    assert_eq!(warnings, []);
    let over = "postgresql: {pg_ctl_timeout: 30}\n";
    let own = Sources::default().with_file("10.yml", GOOD).with_file("20.yml", over);
    let (own, _) = Static::read(&own).expect("good");
    let hooks = dynamic.merged(&own).postgresql.hooks;
    assert_eq!((hooks.use_unix_socket, hooks.pg_ctl_timeout), (Some(true), Some(Millis(30_000))));
    assert_eq!(hooks.krbsrvname.as_deref(), Some("a"));
    assert_eq!(hooks.rewind, Some(vec![("debug".to_owned(), None)]));
}

#[test]
fn files_merge_in_their_order() {
    let over = "name: node-2\netcd3: {hosts: [e9:9]}\ntags: {nofailover: null, dc: east}\n\
                postgresql:\n  parameters: {work_mem: 1MB}\n  stat: 1\n";
    let sources = Sources::default().with_file("10.yml", GOOD).with_file("20.yml", over);
    let (file, warnings) = Static::read(&sources).expect("good");
    assert_eq!(file.name.0, "node-2");
    assert_eq!(file.tags.get("nofailover"), None, "a null takes the key away");
    assert_eq!(file.tags.get("dc"), Some(&"east".into()));
    assert_eq!(file.postgresql.parameters["work_mem"], "1MB");
    assert_eq!(file.postgresql.parameters["max_connections"], "7");
    assert_eq!(file.etcd3.endpoints.len(), 1);
    let shown: Vec<String> = warnings.iter().map(Problem::to_string).collect();
    assert!(shown[0].starts_with("20.yml:6: postgresql.stat: unknown key"), "{shown:?}");
    let json = sources.to_spelled_json().expect("good");
    assert_eq!(json.pointer("/restapi/authentication/password"), Some(&Value::from("0123")));
    assert_eq!(json.pointer("/bootstrap/dcs/ttl"), Some(&Value::from("10")));
    assert!(Sources::default().with_file("x", "- a\n").to_json().is_err());
}
