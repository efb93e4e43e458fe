//! Making the first data directory of a cluster: by initdb beside its place, or by a command of the
//! operator's in its place. Then, on a private server, recovery runs to its end, the roles get the
//! passwords of the configuration, and the operator's script is called.
//!
//! It is complete or not there: what a failure leaves is renamed to `<data_dir>.failed`. While it
//! goes on, observations show nothing of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tokio_postgres::Client;
use types::{ControlState, Millis};

use crate::command::{self, run_tool};
use crate::conf;
use crate::conf_files::{self, ConfFiles, write_bootstrap_files, write_files};
use crate::config::{Credentials, InstanceConfig, ProgramOption};
use crate::copy::{complete, fresh_directory, options, require_place};
use crate::error::Error;
use crate::files::{self, blocking};
use crate::hooks::{CustomBootstrap, long_options, run_hook};
use crate::instance::{LocalInstance, read_control};
use crate::lifecycle::{kill_in, log_tail, open_log, write_signal};
use crate::processes::{DirId, Watched};
use crate::sql::{self, identifier, literal, pause, within};

/// The limit for the private server to stop; its archiver may have something left to do.
const PRIVATE_LIMIT: Millis = Millis(60_000);
/// Between looks at the private server, in milliseconds.
const PRIVATE_POLL_MS: u64 = 15;
/// Between looks at its recovery, in milliseconds.
const RECOVERY_POLL_MS: u64 = 100;
/// How long a copy that was made without a leader may replay from the archive.
const ARCHIVE_LIMIT: Millis = Millis(60_000);
/// Options of initdb that are ours.
const INITDB_REFUSED: [&str; 7] =
    ["pgdata", "nosync", "no-sync", "pwfile", "sync-only", "version", "username"];
/// What pg_rewind's role must be allowed to run (PostgreSQL's documentation of pg_rewind, "Notes").
const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];
/// Passwords stay out of the server's log (I6), and nobody is waited for.
const QUIETLY: &str = "SET log_statement = 'none'; SET log_min_duration_statement = -1; \
     SET log_min_error_statement = 'panic'; SET password_encryption = 'scram-sha-256'; \
     SET synchronous_commit = 'local';";

/// `unfinished`: what stands in the data directory was left by an earlier bootstrap that an agent
/// did not live to finish.
pub(crate) async fn bootstrap(instance: &LocalInstance, unfinished: bool) -> Result<(), Error> {
    let config = instance.config();
    instance.require_stopped("create a cluster").await?;
    let _hidden = instance.hide();
    if unfinished {
        put_aside_failed(instance, config.data_dir.clone()).await?;
    }
    match &config.hooks.bootstrap {
        Some(_) => require_nothing(&config)?,
        None => require_place(&config, true)?,
    }
    // The socket and the password stand where only PostgreSQL's user may look.
    let private = config.private_dir();
    let prepared = (config.clone(), private.clone());
    blocking(move || prepare_private(&prepared.0, &prepared.1)).await?;
    let dir = match &config.hooks.bootstrap {
        Some(_) => config.data_dir.clone(),
        None => fresh_directory(instance).await?,
    };
    let made = make_cluster(instance, &dir, &private).await;
    let left = private.clone();
    blocking(move || files::remove_tree(&left)).await?;
    if let Err(error) = made {
        put_aside_failed(instance, dir).await?;
        return Err(error);
    }
    if dir == config.data_dir {
        return Ok(());
    }
    blocking(move || {
        let placed = fs::rename(&dir, &config.data_dir);
        let placed = placed.and_then(|()| files::sync_parent(&config.data_dir));
        placed.map_err(Error::file("rename the new cluster to", &config.data_dir))
    })
    .await
}

/// A command may insist on making the directory itself.
fn require_nothing(config: &InstanceConfig) -> Result<(), Error> {
    let dir = &config.data_dir;
    match fs::remove_dir(dir) {
        Ok(()) => Ok(()),
        // A mount point stays, empty.
        Err(_) if files::is_empty(dir).map_err(Error::file("read", dir))? => Ok(()),
        Err(_) => Err(Error::refused(format!(
            "{} is not empty: will not create a cluster in it",
            dir.display()
        ))),
    }
}

/// Renames what a failed bootstrap left; one such directory is kept.
async fn put_aside_failed(instance: &LocalInstance, dir: PathBuf) -> Result<(), Error> {
    if let Some(id) = DirId::of(&dir) {
        within(PRIVATE_LIMIT, "the end of the failed cluster's processes", kill_in(id)).await?;
    }
    let failed = instance.config().beside(".failed");
    blocking(move || {
        if files::is_empty(&dir).map_err(Error::file("read", &dir))? {
            return Ok(());
        }
        files::remove_tree(&failed)?;
        tracing::warn!(to = %failed.display(), "what the failed bootstrap left is renamed");
        let renamed = fs::rename(&dir, &failed).and_then(|()| files::sync_parent(&failed));
        renamed.map_err(Error::file("rename", &dir))
    })
    .await
}

fn prepare_private(config: &InstanceConfig, private: &Path) -> Result<(), Error> {
    let owner = config.os_user.as_ref();
    files::make_dir(&config.socket_dir, 0o755, owner)?;
    files::make_dir(&config.state_dir, 0o700, None)?;
    files::remove_tree(private)?;
    files::make_dir(private, 0o700, owner)?;
    // Whoever may enter the directory is PostgreSQL's user.
    let hba = "local all all trust\n";
    files::write_durably(&private.join("hba.conf"), hba, 0o600, owner)?;
    if let Some(password) = &config.superuser.password {
        let text = format!("{}\n", password.expose());
        files::write_durably(&private.join("password"), &text, 0o600, owner)?;
    }
    Ok(())
}

async fn make_cluster(instance: &LocalInstance, dir: &Path, private: &Path) -> Result<(), Error> {
    let config = instance.config();
    match &config.hooks.bootstrap {
        Some(custom) => run_custom(&config, custom).await?,
        None => {
            let arguments = initdb_arguments(&config, dir, private);
            run_tool(&config, &instance.programs().path("initdb"), &arguments, |_| {}).await?;
        }
    }
    let (prepared, target) = (config.clone(), dir.to_owned());
    blocking(move || prepare_files(&prepared, &target)).await?;
    let server = PrivateServer::start(instance, dir, private).await?;
    let prepared = with_server(&config, &server, private).await;
    let stopped = server.stop(dir).await;
    prepared?;
    stopped?;
    let (prepared, target) = (config, dir.to_owned());
    blocking(move || finish_files(&prepared, &target)).await
}

async fn run_custom(config: &InstanceConfig, custom: &CustomBootstrap) -> Result<(), Error> {
    let data_dir = config.data_dir.to_string_lossy();
    let ours = [("scope", config.scope.as_str()), ("datadir", &data_dir)];
    let ours = ours.into_iter().filter(|_| !custom.no_params);
    let theirs = custom.arguments.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let arguments = long_options(ours.chain(theirs));
    let what = format!("the bootstrap method {}", custom.method);
    run_hook(config.os_user.as_ref(), &what, &custom.command, &arguments, &[]).await
}

/// Settings and signal files for the private server.
fn prepare_files(config: &InstanceConfig, dir: &Path) -> Result<(), Error> {
    // Whatever the command made has to be a data directory.
    read_control(dir)?;
    let custom = config.hooks.bootstrap.as_ref();
    if custom.is_some() {
        conf_files::restore_missing(config, dir)?;
    }
    let keep = custom.is_some_and(|c| c.recovery_conf.is_none() && c.keep_existing_recovery_conf);
    let recovery = custom.and_then(|c| c.recovery_conf.as_ref());
    if !keep {
        files::remove_if_present(&dir.join("standby.signal"))?;
        files::remove_if_present(&dir.join("recovery.signal"))?;
    }
    if recovery.is_some() {
        write_signal(config, &dir.join("recovery.signal"))?;
    }
    files::remove_if_present(&dir.join("postmaster.pid"))?;
    write_bootstrap_files(config, dir, recovery, keep)
}

/// A stopped cluster with the settings that it will run with.
fn finish_files(config: &InstanceConfig, dir: &Path) -> Result<(), Error> {
    let control = read_control(dir)?;
    if control.state != ControlState::ShutDown {
        return Err(Error::refused(format!(
            "the new cluster was not stopped cleanly: {:?}",
            control.state
        )));
    }
    files::remove_if_present(&dir.join("recovery.signal"))?;
    files::remove_if_present(&dir.join("standby.signal"))?;
    append_hba(config, dir)?;
    write_files(config, dir, |state| *state = conf::ConfState::default())?;
    Ok(())
}

/// `bootstrap.pg_hba` goes behind what stands in the file, where the file is not ours.
fn append_hba(config: &InstanceConfig, dir: &Path) -> Result<(), Error> {
    let ours = !config.pg_hba.is_empty() || config.parameters.contains_key("hba_file");
    if ours || config.hooks.pg_hba.is_empty() {
        return Ok(());
    }
    let path = ConfFiles::of(config, dir).hba();
    let mut text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&(config.hooks.pg_hba.join("\n") + "\n"));
    files::write_durably(&path, &text, files::mode_in(dir), config.os_user.as_ref())?;
    Ok(())
}

/// A server that only we reach, and the operator's script.
struct PrivateServer {
    watched: Watched,
    program: PathBuf,
    log: PathBuf,
    offset: u64,
}

impl PrivateServer {
    async fn start(
        instance: &LocalInstance,
        dir: &Path,
        private: &Path,
    ) -> Result<PrivateServer, Error> {
        let mut config = (*instance.config()).clone();
        dir.clone_into(&mut config.data_dir);
        let log = config.state_dir.join("postgres.log");
        let (file, offset) = open_log(&log)?;
        // Recovery refuses to begin with less than the log's primary had.
        let floor = read_control(dir)?;
        let mut arguments = conf::server_arguments(&config, Some(&floor));
        let private = private.to_string_lossy();
        arguments.extend([
            // A session of somebody else's would end with this server.
            "--listen_addresses=".to_owned(),
            format!("--unix_socket_directories={private}"),
            format!("--hba_file={private}/hba.conf"),
            "--logging_collector=off".to_owned(),
        ]);
        let program = instance.programs().path("postgres");
        let pid = command::spawn_server(&config, &program, &arguments, file)?;
        let watched = Watched::open(pid).map_err(Error::file("watch", &program))?;
        let watched = watched.expect("our own child cannot be gone unburied");
        Ok(PrivateServer { watched, program, log, offset })
    }

    /// A connection, when recovery is over: it takes as long as there is log to replay, so what
    /// bounds it is the server's life, and an operator's stop.
    async fn recovered(&self, config: &InstanceConfig, private: &Path) -> Result<Client, Error> {
        let mut known: Option<Client> = None;
        loop {
            if self.watched.is_dead() {
                return Err(Error::EndedWhileStarting { log: log_tail(&self.log, self.offset) });
            }
            let client = match known.take().filter(|client| !client.is_closed()) {
                Some(client) => Ok(client),
                None => sql::connect_private(config, private).await,
            };
            let Ok(client) = client else {
                pause(PRIVATE_POLL_MS).await;
                continue;
            };
            let row = sql::one_row(&client, "look at recovery", "SELECT pg_is_in_recovery()");
            if row.await.is_ok_and(|row| row.first().is_some_and(|field| field == "f")) {
                return Ok(client);
            }
            known = Some(client);
            pause(RECOVERY_POLL_MS).await;
        }
    }

    async fn stop(self, dir: &Path) -> Result<(), Error> {
        let stopped = async {
            self.watched.signal(Signal::INT).map_err(Error::file("stop", &self.program))?;
            self.watched.exited().await;
            Ok(())
        };
        let stopped = within(PRIVATE_LIMIT, "the stop of the new cluster", stopped).await;
        if let Some(id) = DirId::of(dir) {
            within(PRIVATE_LIMIT, "the end of the new cluster's processes", kill_in(id)).await?;
        }
        stopped
    }
}

/// A copy that was made while nobody leads is brought to where it can be read, with what the
/// archive has; as a standby that follows nobody it gets nothing, since its `restore_command` is
/// cleared. One that does not come so far waits for a leader.
pub(crate) async fn replay_archive(instance: &LocalInstance) -> Result<(), Error> {
    let config = instance.config();
    let Some(command) = config.parameters.get("restore_command").cloned() else {
        return Ok(());
    };
    let (dir, private) = (config.data_dir.clone(), config.private_dir());
    let (prepared, path) = (config.clone(), private.clone());
    blocking(move || {
        prepare_private(&prepared, &path)?;
        let settings = BTreeMap::from([("restore_command".to_owned(), command)]);
        write_bootstrap_files(&prepared, &prepared.data_dir, Some(&settings), false)
    })
    .await?;
    let server = PrivateServer::start(instance, &dir, &private).await?;
    let readable = async {
        while let Err(error) = sql::connect_private(&config, &private).await {
            if server.watched.is_dead() {
                return Err(error);
            }
            pause(RECOVERY_POLL_MS).await;
        }
        Ok(())
    };
    let readable = within(ARCHIVE_LIMIT, "the replay of the archive", readable).await;
    let stopped = server.stop(&dir).await;
    if let Err(error) = readable.and(stopped) {
        tracing::warn!(%error, "the new copy waits for a leader");
    }
    blocking(move || {
        files::remove_tree(&private)?;
        complete(&config, &config.data_dir, None)
    })
    .await
}

/// The superuser first, since the script logs in as it, then the script, which may make the other
/// roles its own way, then these (as Patroni has it).
async fn with_server(
    config: &InstanceConfig,
    server: &PrivateServer,
    private: &Path,
) -> Result<(), Error> {
    let client = server.recovered(config, private).await?;
    let superuser = superuser_statements(config);
    sql::row_sets(&client, "set the superuser's password", &superuser).await?;
    post_bootstrap(config, private).await?;
    let roles = role_statements(config);
    sql::row_sets(&client, "create the roles", &roles).await?;
    Ok(())
}

async fn post_bootstrap(config: &InstanceConfig, private: &Path) -> Result<(), Error> {
    let words = &config.hooks.post_bootstrap;
    if words.is_empty() {
        return Ok(());
    }
    let prepared = config.clone();
    blocking(move || {
        let owner = prepared.os_user.as_ref();
        let text = conf::local_pgpass(&prepared);
        files::write_durably(&prepared.pgpass, &text, 0o600, owner)
    })
    .await?;
    let connection = conf::private_conninfo(config, private);
    let variables = [
        ("PGPASSFILE", config.pgpass.clone().into_os_string()),
        // For those that do not look at what they are given.
        ("PGHOST", private.into()),
        ("PGPORT", config.port.to_string().into()),
        ("PGUSER", config.superuser.username.clone().into()),
        ("PGDATABASE", config.database.clone().into()),
        ("PGOPTIONS", "-c synchronous_commit=local -c statement_timeout=0".into()),
    ];
    run_hook(
        config.os_user.as_ref(),
        "bootstrap.post_bootstrap",
        words,
        &[connection.into()],
        &variables,
    )
    .await
}

fn initdb_arguments(config: &InstanceConfig, new: &Path, private: &Path) -> Vec<OsString> {
    let given = |name: &str| config.initdb.iter().any(|(n, _)| n.trim_start_matches('-') == name);
    let mut arguments = vec![
        OsString::from("--pgdata"),
        new.into(),
        format!("--username={}", config.superuser.username).into(),
        "--data-checksums".into(),
    ];
    if config.superuser.password.is_some() {
        arguments.push("--pwfile".into());
        arguments.push(private.join("password").into());
        if !given("auth") && !given("auth-local") {
            arguments.push("--auth-local=scram-sha-256".into());
        }
    } else if !given("auth") && !given("auth-local") {
        arguments.push("--auth-local=trust".into());
    }
    if !given("auth") && !given("auth-host") {
        arguments.push("--auth-host=scram-sha-256".into());
    }
    if !given("encoding") && !given("E") {
        arguments.push("--encoding=UTF8".into());
    }
    let locale = |(name, _): &ProgramOption| {
        let name = name.trim_start_matches('-');
        name == "no-locale" || name.starts_with("locale") || name.starts_with("lc-")
    };
    if !config.initdb.iter().any(locale) {
        arguments.push("--locale=C.UTF-8".into());
    }
    arguments.extend(options(&config.initdb, &INITDB_REFUSED, "initdb"));
    arguments
}

/// A role is created, or altered where a restored cluster has it.
fn role(role: &Credentials, rights: &str) -> String {
    let (name, text) = (identifier(&role.username), literal(&role.username));
    let password = match &role.password {
        Some(password) => format!(" PASSWORD {}", literal(password.expose())),
        None => String::new(),
    };
    let wanted = format!("ROLE {name} WITH {rights}{password}");
    let body = format!(
        "BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {text}) \
         THEN ALTER {wanted}; ELSE CREATE {wanted}; END IF; END"
    );
    format!("DO {};", literal(&body))
}

fn superuser_statements(config: &InstanceConfig) -> String {
    if config.superuser.password.is_none() {
        return String::new();
    }
    QUIETLY.to_owned() + &role(&config.superuser, "SUPERUSER LOGIN")
}

fn role_statements(config: &InstanceConfig) -> String {
    let (superuser, replication) = (&config.superuser.username, &config.replication);
    let mut text = QUIETLY.to_owned();
    if replication.username != *superuser {
        text += &role(replication, "REPLICATION LOGIN");
    }
    let rewind = config.rewind_role();
    if rewind.username != *superuser {
        if rewind.username != replication.username {
            text += &role(rewind, "LOGIN");
        }
        let name = identifier(&rewind.username);
        for function in REWIND_FUNCTIONS {
            text += &format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {name};");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_of_ours_are_refused() {
        let given = [
            ("pgdata".to_owned(), Some("/x".to_owned())),
            ("locale".to_owned(), Some("C".to_owned())),
            ("no-instructions".to_owned(), None),
        ];
        let taken = options(&given, &INITDB_REFUSED, "initdb");
        assert_eq!(taken, ["--locale=C", "--no-instructions"]);
    }

    #[test]
    fn lines_go_behind_a_file_that_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pg_hba.conf");
        fs::write(&path, "local all all trust").unwrap();
        let mut config = conf::tests_support::sample();
        config.hooks.pg_hba = vec!["host all all all md5".to_owned()];
        append_hba(&config, dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "local all all trust");
        config.pg_hba.clear();
        append_hba(&config, dir.path()).unwrap();
        let expected = "local all all trust\nhost all all all md5\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }
}
