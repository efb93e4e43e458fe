//! The configuration files as text: rendered from the wanted settings, and read back
//! (as Patroni 4.1 has it). Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pgproto::control::ControlFile;
use types::{MemberName, Upstream, slot_name};

use crate::conf_files::ConfFiles;
use crate::config::{Credentials, InstanceConfig, Secret};
use crate::conninfo::{self, pair};
use crate::error::Error;
use crate::replica::Source;
use crate::sync_rule::SyncRule;

/// The line that names the upstream member, which `primary_conninfo` cannot.
const UPSTREAM_MARK: &str = "# pgherd upstream: ";
/// The service that libpq finds a role's `sslpassword` under.
const SERVICE: &str = "pgherd";
/// libpq reads lines of 1023 bytes.
const SSLPASSWORD_BYTES_MAX: usize = 1000;
/// Seconds that a WAL receiver tries to connect.
const CONNECT_TIMEOUT_SECS: u32 = 5;
/// Milliseconds after which unacknowledged data ends a replication connection.
const TCP_USER_TIMEOUT_MS: u32 = 5000;

/// Parameters that a standby must agree on with its primary: default, and on the command line.
const CONTROLLED: [(&str, &str); 10] = [
    ("wal_level", "replica"),
    ("hot_standby", "on"),
    ("max_connections", "100"),
    ("max_wal_senders", "10"),
    ("max_prepared_transactions", "0"),
    ("max_locks_per_transaction", "64"),
    ("track_commit_timestamp", "off"),
    ("max_replication_slots", "10"),
    ("max_worker_processes", "8"),
    ("wal_log_hints", "on"),
];

/// Parameters that this crate alone sets, whatever the configuration says.
const OURS: [&str; 9] = [
    "listen_addresses",
    "port",
    "cluster_name",
    "unix_socket_directories",
    "synchronous_standby_names",
    "restart_after_crash",
    "data_directory",
    "config_file",
    "external_pid_file",
];

/// Parameters of the recovery block.
const RECOVERY: [&str; 16] = [
    "archive_cleanup_command",
    "pause_at_recovery_target",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

/// A file of the server's, and the setting that says where it is.
pub(crate) struct Place {
    pub(crate) setting: &'static str,
    pub(crate) path: PathBuf,
}

/// What changes while the instance lives, and must survive a restart of agent and PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ConfState {
    /// Whom to stream from; `None` clears `primary_conninfo` and `restore_command`.
    pub(crate) upstream: Option<Upstream>,
    /// `synchronous_standby_names`.
    pub(crate) sync: SyncRule,
}

impl ConfState {
    /// Reads back what `render` wrote; a foreign file gives what its settings say.
    pub(crate) fn read(text: &str) -> ConfState {
        let mut state = ConfState::default();
        let mut mark = None;
        for line in text.lines() {
            if let Some(json) = line.strip_prefix(UPSTREAM_MARK) {
                mark = serde_json::from_str::<Upstream>(json).ok();
            }
            match setting(line) {
                Some(("primary_conninfo", value)) => state.upstream = upstream_of(&value),
                Some(("synchronous_standby_names", value)) => {
                    state.sync = SyncRule::parse(&value).unwrap_or_default();
                }
                Some(_) | None => {}
            }
        }
        // The setting decides; the mark only adds the member's name, or says that an archive is
        // followed, for which there is no setting.
        match (&mut state.upstream, mark) {
            (Some(upstream), Some(mark))
                if (&upstream.host, upstream.port) == (&mark.host, mark.port) =>
            {
                upstream.name = mark.name;
            }
            (None, Some(mark)) if mark.is_archive() => state.upstream = Some(mark),
            (Some(_) | None, _) => {}
        }
        state
    }
}

fn upstream_of(conninfo: &str) -> Option<Upstream> {
    let values = conninfo::parse(conninfo);
    let host = values.get("host")?.clone();
    let port = values.get("port").map_or(Some(5432), |p| p.parse().ok())?;
    Some(Upstream { name: MemberName(String::new()), host, port })
}

/// The contents of postgresql.conf.
pub(crate) fn render(config: &InstanceConfig, places: &[Place], state: &ConfState) -> String {
    let mut text = render_settings(config, places, state);
    text.push_str("\n# recovery.conf\n");
    if let Some(upstream) = &state.upstream {
        let json = serde_json::to_string(upstream).expect("an upstream is plain data");
        text.push_str(&format!("{UPSTREAM_MARK}{json}\n"));
    }
    for (name, value) in recovery_settings(config, state) {
        line(&mut text, name, &value);
    }
    text
}

/// That of a private server that recovers with these settings alone.
pub(crate) fn render_bootstrap(
    config: &InstanceConfig,
    recovery: Option<&BTreeMap<String, String>>,
) -> String {
    let mut text = render_settings(config, &[], &ConfState::default());
    text.push_str("\n# recovery.conf\n");
    for (name, value) in recovery.into_iter().flatten() {
        line(&mut text, name, value);
    }
    text
}

fn render_settings(config: &InstanceConfig, places: &[Place], state: &ConfState) -> String {
    let base = PathBuf::from(format!("{}.base.conf", config.config_base_name));
    let base = config.custom_conf.as_ref().unwrap_or(&base);
    let base = base.to_string_lossy().replace('\'', "''");
    let mut text = format!("{}include '{base}'\n\n", header(config));
    for (name, value) in settings(config, state) {
        line(&mut text, &name, &value);
    }
    for place in places.iter().filter(|place| !config.parameters.contains_key(place.setting)) {
        line(&mut text, place.setting, &place.path.to_string_lossy());
    }
    text
}

fn header(config: &InstanceConfig) -> String {
    let by = config.written_by;
    format!("# Do not edit this file manually!\n# It will be overwritten by {by}!\n")
}

fn settings(config: &InstanceConfig, state: &ConfState) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = CONTROLLED
        .iter()
        .chain(&[("wal_keep_size", "128MB")])
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    for (name, value) in &config.parameters {
        let name = name.to_ascii_lowercase();
        if OURS.contains(&name.as_str()) || RECOVERY.contains(&name.as_str()) {
            continue;
        }
        let value = match name.as_str() {
            // PostgreSQL would look for them in the data directory.
            "hba_file" | "ident_file" => ConfFiles::in_place(config).path(value),
            _ => value.clone(),
        };
        all.insert(name, value);
    }
    if let Some(directories) = &config.socket_directories {
        all.insert("unix_socket_directories".to_owned(), directories.clone());
    }
    for (name, value) in [
        ("cluster_name", config.scope.clone()),
        ("listen_addresses", config.listen.join(",")),
        ("port", config.port.to_string()),
        ("restart_after_crash", "off".to_owned()),
        ("synchronous_standby_names", state.sync.to_setting()),
    ] {
        all.insert(name.to_owned(), value);
    }
    if config.force_feedback {
        // Without it the primary removes catalog rows that this standby's logical slots need.
        all.insert("hot_standby_feedback".to_owned(), "on".to_owned());
    }
    all
}

fn recovery_settings(config: &InstanceConfig, state: &ConfState) -> BTreeMap<&'static str, String> {
    let mut all = BTreeMap::new();
    for name in RECOVERY {
        let ours = name.starts_with("recovery_target") || name.starts_with("primary_");
        let given = config.recovery_conf.get(name).or_else(|| config.parameters.get(name));
        if let Some(value) = given
            && !ours
        {
            all.insert(name, value.clone());
        }
    }
    for target in ["", "_lsn", "_name", "_time", "_xid"] {
        let name = RECOVERY.iter().find(|n| n.strip_prefix("recovery_target") == Some(target));
        all.insert(name.expect("they stand in the list"), String::new());
    }
    all.insert("recovery_target_timeline", "latest".to_owned());
    let (mut conninfo, mut slot) = (String::new(), String::new());
    match &state.upstream {
        Some(upstream) => {
            let remote = config.remote.clone().unwrap_or_default();
            all.extend(remote.recovery);
            if !upstream.is_archive() {
                conninfo = primary_conninfo(config, upstream);
                slot = slot_at(config, upstream);
            }
            if upstream.is_remote() {
                all.extend(remote.apply_delay.map(|d| ("recovery_min_apply_delay", d)));
            }
        }
        // An archive can feed WAL of a fenced primary as well as a stream can.
        None => _ = all.insert("restore_command", String::new()),
    }
    all.insert("primary_conninfo", conninfo);
    all.insert("primary_slot_name", slot);
    all
}

/// The slot by which this member streams; empty for none.
fn slot_at(config: &InstanceConfig, upstream: &Upstream) -> String {
    if upstream.is_remote() {
        config.remote.as_ref().and_then(|remote| remote.slot.clone()).unwrap_or_default()
    } else if config.use_slots {
        slot_name(&config.member)
    } else {
        String::new()
    }
}

/// What stands in every connection string besides where to and who, if the role has it.
pub(crate) const CONNECTION: &[&str] = &[
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];

/// The connection string of the WAL receiver; the password is in the password file.
pub(crate) fn primary_conninfo(config: &InstanceConfig, upstream: &Upstream) -> String {
    let role = &config.replication;
    let besides = Besides {
        // Only superusers see it, as of the file itself; libpq takes it from nowhere else.
        sslpassword: role.sslpassword.as_ref().map(Secret::expose),
        application_name: Some(config.member.as_str()),
        target_session_attrs: upstream.host.contains(',').then_some("read-write"),
    };
    let mut text = remote_conninfo(config, upstream, role, &besides);
    for (name, value) in [
        ("connect_timeout", CONNECT_TIMEOUT_SECS),
        ("keepalives", 1),
        ("keepalives_idle", 5),
        ("keepalives_interval", 2),
        ("keepalives_count", 3),
        ("tcp_user_timeout", TCP_USER_TIMEOUT_MS),
    ] {
        pair(&mut text, name, &value.to_string());
    }
    text
}

/// The connection string for pg_rewind, which leads to a primary only: the leader was one when this
/// was decided, but a disk that hung in between may have let a failover pass (I3).
pub(crate) fn rewind_conninfo(config: &InstanceConfig, leader: &Upstream) -> String {
    program_conninfo(config, leader, config.rewind_role(), be_a(config, "primary"))
}

/// The connection string for copies. Where `replaced` says that something here is, it leads to what
/// the source was when the copy was decided, and to nothing else (I3).
pub(crate) fn copy_conninfo(
    config: &InstanceConfig,
    source: &Source<'_>,
    replaced: bool,
) -> String {
    let role = if source.standby_of.is_some() { "standby" } else { "primary" };
    let wanted = be_a(config, role).filter(|_| replaced);
    program_conninfo(config, source.upstream, &config.replication, wanted)
}

/// The leader of a standby cluster is in recovery itself.
fn be_a(config: &InstanceConfig, role: &'static str) -> Option<&'static str> {
    config.remote.is_none().then_some(role)
}

/// That of a program, which finds in the service file what must stand in no argument.
fn program_conninfo(
    config: &InstanceConfig,
    upstream: &Upstream,
    role: &Credentials,
    target_session_attrs: Option<&str>,
) -> String {
    let besides = Besides { target_session_attrs, ..Besides::default() };
    let mut text = remote_conninfo(config, upstream, role, &besides);
    if role.sslpassword.is_some() {
        pair(&mut text, "service", SERVICE);
    }
    text
}

/// libpq's service file for a role: what must stand in no argument, and has no file of its own
/// (I6). Each line is taken as it stands, less white space at its end.
pub(crate) fn service_file(role: &Credentials) -> Result<Option<String>, Error> {
    let Some(password) = role.sslpassword.as_ref().map(Secret::expose) else {
        return Ok(None);
    };
    let passable = password.trim_end() == password && !password.contains(['\n', '\r']);
    if !passable || password.len() > SSLPASSWORD_BYTES_MAX {
        return Err(Error::refused(format!(
            "the sslpassword of {} ends with white space, holds a line break or is longer than \
             {SSLPASSWORD_BYTES_MAX} bytes, so PostgreSQL's programs cannot be told; change it",
            role.username
        )));
    }
    Ok(Some(format!("[{SERVICE}]\nsslpassword={password}\n")))
}

/// What only some connection strings say.
#[derive(Default)]
struct Besides<'a> {
    sslpassword: Option<&'a str>,
    application_name: Option<&'a str>,
    target_session_attrs: Option<&'a str>,
}

/// A connection string for PostgreSQL's programs, without a password, in Patroni's order.
fn remote_conninfo(
    config: &InstanceConfig,
    upstream: &Upstream,
    role: &Credentials,
    besides: &Besides<'_>,
) -> String {
    let given = |name: &str| role.connection.get(name).map(String::as_str);
    let (pgpass, port) = (config.pgpass.to_string_lossy(), upstream.port.to_string());
    let mut text = String::new();
    for (name, value) in [
        ("dbname", Some(config.database.as_str())),
        ("user", Some(role.username.as_str())),
        ("passfile", Some(&pgpass)),
        ("host", Some(upstream.host.as_str())),
        ("port", Some(&port)),
        ("sslmode", given("sslmode").or(Some("prefer"))),
        ("sslcert", given("sslcert")),
        ("sslkey", given("sslkey")),
        ("sslpassword", besides.sslpassword),
        ("sslrootcert", given("sslrootcert")),
        ("sslcrl", given("sslcrl")),
        ("sslcrldir", given("sslcrldir")),
        ("application_name", besides.application_name),
        ("krbsrvname", config.krbsrvname.as_deref()),
        ("gssencmode", given("gssencmode").or(Some("prefer"))),
        ("channel_binding", given("channel_binding").or(Some("prefer"))),
        ("target_session_attrs", besides.target_session_attrs),
        // The default need not be written, and versions before 17 do not know the key.
        ("sslnegotiation", given("sslnegotiation").filter(|value| *value != "postgres")),
    ] {
        if let Some(value) = value {
            pair(&mut text, name, value);
        }
    }
    text
}

/// The password file's lines for one upstream.
pub(crate) fn pgpass(config: &InstanceConfig, upstream: &Upstream) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    let mut text = String::new();
    for role in [&config.replication, config.rewind_role(), &config.superuser] {
        let Some(password) = &role.password else {
            continue;
        };
        let (host, user) = (escape(&upstream.host), escape(&role.username));
        let entry = format!("{host}:{}:*:{user}:{}\n", upstream.port, escape(password.expose()));
        if !text.contains(&entry) {
            text.push_str(&entry);
        }
    }
    text
}

/// The password file's lines for this instance itself.
pub(crate) fn local_pgpass(config: &InstanceConfig) -> String {
    let upstream = |host: &str| {
        let name = config.member.clone();
        Upstream { name, host: host.to_owned(), port: config.port }
    };
    ["localhost", &config.local_host()].map(|host| pgpass(config, &upstream(host))).concat()
}

/// The connection string to a server on a private socket.
pub(crate) fn private_conninfo(config: &InstanceConfig, socket_dir: &Path) -> String {
    let mut text = String::new();
    pair(&mut text, "dbname", "postgres");
    pair(&mut text, "user", &config.superuser.username);
    pair(&mut text, "host", &socket_dir.to_string_lossy());
    pair(&mut text, "port", &config.port.to_string());
    text
}

/// The contents of pg_hba.conf or pg_ident.conf.
pub(crate) fn render_lines(config: &InstanceConfig, lines: &[String]) -> String {
    let mut text = header(config);
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// postgresql.auto.conf without the settings that would override ours; `None` if it has none.
pub(crate) fn clean_auto_conf(text: &str) -> Option<String> {
    let ours = |line: &&str| {
        setting(line).is_some_and(|(name, _)| RECOVERY.contains(&name) || OURS.contains(&name))
    };
    if !text.lines().any(|line| ours(&line)) {
        return None;
    }
    let kept: Vec<&str> = text.lines().filter(|line| !ours(line)).collect();
    Some(kept.join("\n") + "\n")
}

/// The server's arguments. A standby must not have less than `floor` of what its primary's WAL
/// assumes, or it refuses to start.
pub(crate) fn server_arguments(
    config: &InstanceConfig,
    floor: Option<&ControlFile>,
) -> Vec<String> {
    let dir = config.data_dir.to_string_lossy();
    let mut arguments = vec![
        "-D".to_owned(),
        dir.clone().into_owned(),
        format!("--config-file={}", ConfFiles::in_place(config).main().display()),
        format!("--listen_addresses={}", config.listen.join(",")),
        format!("--port={}", config.port),
        format!("--cluster_name={}", config.scope),
        "--restart_after_crash=off".to_owned(),
    ];
    for (name, value) in controlled(config) {
        let least = floor.and_then(|control| floor_of(name, control));
        let value = match (least, value.parse::<i32>()) {
            (Some(least), Ok(wanted)) => wanted.max(least).to_string(),
            (Some(_), Err(_)) | (None, _) => value,
        };
        arguments.push(format!("--{name}={value}"));
    }
    arguments
}

/// The parameters that stand on the command line, with the wanted values.
pub(crate) fn controlled(config: &InstanceConfig) -> Vec<(&'static str, String)> {
    let wanted = |(name, default): &(&'static str, &str)| {
        let value = config.parameters.get(*name);
        (*name, value.map_or((*default).to_owned(), String::clone))
    };
    CONTROLLED.iter().map(wanted).collect()
}

fn floor_of(name: &str, control: &ControlFile) -> Option<i32> {
    match name {
        "max_connections" => Some(control.max_connections),
        "max_wal_senders" => Some(control.max_wal_senders),
        "max_prepared_transactions" => Some(control.max_prepared_xacts),
        "max_locks_per_transaction" => Some(control.max_locks_per_xact),
        "max_worker_processes" => Some(control.max_worker_processes),
        _ => None,
    }
}

pub(crate) fn line(text: &mut String, name: &str, value: &str) {
    let value = value.replace('\\', "\\\\").replace('\'', "''");
    writeln!(text, "{name} = '{value}'").expect("a String takes everything");
}

/// The name and value of a configuration line.
fn setting(line: &str) -> Option<(&str, String)> {
    let line = line.trim();
    let end = line.find(|c: char| c.is_whitespace() || c == '=')?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with('#') {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let Some(rest) = rest.strip_prefix('\'') else {
        let value = rest.split(['#', ' ', '\t']).next().unwrap_or_default();
        return Some((name, value.to_owned()));
    };
    let mut value = String::new();
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => value.extend(chars.next()),
            '\'' if chars.next_if_eq(&'\'').is_some() => value.push('\''),
            '\'' => break,
            c => value.push(c),
        }
    }
    Some((name, value))
}

#[cfg(test)]
#[path = "conf_tests.rs"]
mod tests;

#[cfg(test)]
pub(crate) mod tests_support {
    use super::*;

    pub(crate) fn sample() -> InstanceConfig {
        let role = |name: &str, password: &str| Credentials {
            username: name.to_owned(),
            password: Some(Secret::new(password)),
            ..Credentials::default()
        };
        InstanceConfig {
            member: "node-1".into(),
            scope: "demo".to_owned(),
            data_dir: "/d/data".into(),
            bin_dir: None,
            listen: vec!["10.0.0.2".to_owned()],
            port: 5432,
            socket_dir: "/run/pg".into(),
            socket_directories: Some("/run/pg".to_owned()),
            config_dir: None,
            config_base_name: "postgresql".to_owned(),
            written_by: "pgherd",
            bin_name: BTreeMap::new(),
            rewind_options: Vec::new(),
            krbsrvname: None,
            os_user: None,
            superuser: role("postgres", "s:1"),
            replication: role("replicator", "it's"),
            rewind: role("rewinder", "r\\1"),
            database: "postgres".to_owned(),
            pgpass: "/s/pg pass".into(),
            state_dir: "/s".into(),
            parameters: BTreeMap::from([
                ("work_mem".to_owned(), "8MB".to_owned()),
                ("max_connections".to_owned(), "50".to_owned()),
                ("search_path".to_owned(), "a'b\\c".to_owned()),
                ("restore_command".to_owned(), "cp '/a/%f' \"%p\"".to_owned()),
                ("synchronous_standby_names".to_owned(), "*".to_owned()),
            ]),
            pg_hba: vec!["local all all trust".to_owned()],
            pg_ident: Vec::new(),
            initdb: Vec::new(),
            basebackup: Vec::new(),
            hooks: crate::hooks::Hooks::default(),
            recovery_conf: BTreeMap::new(),
            custom_conf: None,
            dynamic: String::new(),
            use_unix_socket: true,
            use_slots: true,
            remote: None,
            force_feedback: false,
            helper: "/nonexistent/helper".into(),
            trial_interval: types::Millis(1000),
        }
    }
}
