//! A PostgreSQL that runs already, as an operator reaches it: asked for what a configuration for it
//! has to say. Nothing is changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::conf::CONNECTION;
use crate::config::{Credentials, Secret};
use crate::conninfo;
use crate::error::Error;
use crate::files::blocking;
use crate::sql::{self, REMOTE_LIMIT, Server};

/// libpq's settings, and the variables that stand in for them.
const VARIABLES: [(&str, &str); 15] = [
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("sslmode", "PGSSLMODE"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("gssencmode", "PGGSSENCMODE"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
];

/// What a connection string says where it says nothing (as Patroni 4.1 has it).
const DEFAULTS: [(&str, &str); 4] = [
    ("sslmode", "prefer"),
    ("gssencmode", "prefer"),
    ("channel_binding", "prefer"),
    ("sslnegotiation", "postgres"),
];

/// Where the socket is when nobody says: the distributions', then PostgreSQL's own place.
const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// What was set by a file, on the command line or by the environment, and what is always needed.
const SETTINGS: &str = "SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings \
     WHERE context <> 'internal' \
     AND source IN ('configuration file', 'command line', 'environment variable') \
     AND category <> 'Write-Ahead Log / Recovery Target' AND setting <> '(disabled)' \
     OR name IN ('hba_file', 'ident_file', 'config_file', 'data_directory', 'listen_addresses', \
     'port', 'cluster_name', 'wal_level', 'hot_standby', 'max_connections', 'max_wal_senders', \
     'wal_keep_size', 'max_prepared_transactions', 'max_locks_per_transaction', \
     'track_commit_timestamp', 'max_replication_slots', 'max_worker_processes', 'wal_log_hints')";

/// How a server that runs is reached.
#[derive(Clone)]
pub struct Reach(BTreeMap<String, String>);

impl Reach {
    /// By a connection string, and by libpq's variables in what that leaves open; `None` if the
    /// string is none.
    #[must_use]
    pub fn new(
        connection: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Option<Reach> {
        let mut values = connection.map_or(Some(BTreeMap::new()), conninfo::parse_any)?;
        for (name, from) in VARIABLES {
            if let Some(value) = variable(from).filter(|value| !value.is_empty()) {
                values.entry(name.to_owned()).or_insert(value);
            }
        }
        for (name, value) in DEFAULTS.iter().filter(|_| connection.is_some()) {
            values.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
        }
        Some(Reach(values))
    }

    /// A setting, by libpq's name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// What is said of TLS and its like, by libpq's names.
    #[must_use]
    pub fn connection(&self) -> BTreeMap<&'static str, String> {
        let given = |name: &&'static str| Some((*name, self.0.get(*name)?.clone()));
        CONNECTION.iter().filter_map(given).collect()
    }

    /// The client's settings, what they are called in messages, and whether it is a socket.
    fn target(&self) -> (tokio_postgres::Config, String, bool) {
        let mut client = tokio_postgres::Config::new();
        let found = |dir: &&str| Path::new(dir).is_dir();
        let default = SOCKET_DIRS.iter().find(|dir| found(dir)).unwrap_or(&"localhost");
        let hosts = self.get("hostaddr").or(self.get("host")).unwrap_or(default);
        for host in hosts.split(',') {
            client.host(host);
        }
        let ports = self.get("port").unwrap_or("5432");
        for port in ports.split(',').filter_map(|port| port.parse().ok()) {
            client.port(port);
        }
        client.connect_timeout(REMOTE_LIMIT.as_duration());
        (client, format!("{hosts}:{ports}"), hosts.starts_with('/'))
    }
}

/// What such a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its major version.
    pub major: u32,
    /// Its settings.
    pub settings: BTreeMap<String, String>,
    /// Where its programs are.
    pub bin_dir: PathBuf,
    /// The text of pg_hba.conf, if it stands in the data directory.
    pub hba: Option<String>,
    /// The text of pg_ident.conf, if it stands in the data directory.
    pub ident: Option<String>,
}

/// Asks it, as this superuser.
///
/// # Errors
/// It does not answer, the role is no superuser, or its files cannot be read: it must run here.
pub async fn describe(
    reach: &Reach,
    username: &str,
    password: &Secret,
) -> Result<Described, Error> {
    let role = Credentials {
        username: username.to_owned(),
        password: Some(password.clone()),
        connection: reach.connection(),
        sslpassword: reach.get("sslpassword").map(Secret::new),
    };
    let (client, address, socket) = reach.target();
    let server = Server { address, secured: Some(&role).filter(|_| !socket), limit: REMOTE_LIMIT };
    let database = reach.get("dbname").unwrap_or(username);
    let client = sql::connect(client, database, &role, "pgherd", server).await?;
    let asked = "SELECT current_setting('is_superuser'), current_setting('server_version_num')";
    let row = sql::one_row(&client, "ask for the version", asked).await?;
    let [superuser, version] = row.as_slice() else {
        return Err(Error::refused("the server's answer does not decode"));
    };
    if superuser != "on" {
        return Err(Error::refused("The provided user does not have superuser privilege"));
    }
    let major = version.parse::<u32>().unwrap_or(0) / 10_000;
    let rows = sql::rows(&client, "read the settings", SETTINGS).await?;
    let settings = rows.into_iter().filter_map(|row| {
        let mut fields = row.into_iter();
        Some((fields.next()??, fields.next()??))
    });
    let settings = settings.collect();
    blocking(move || look(major, settings)).await
}

/// What is not asked for by SQL.
fn look(major: u32, settings: BTreeMap<String, String>) -> Result<Described, Error> {
    let setting = |name: &str| settings.get(name).map_or("", String::as_str);
    let dir = PathBuf::from(setting("data_directory"));
    let text = |name: &str, file: &str| {
        let path = dir.join(file);
        if Path::new(setting(name)) != path {
            return Ok(None);
        }
        fs::read_to_string(&path).map(Some).map_err(Error::file("read", &path))
    };
    let (hba, ident) = (text("hba_file", "pg_hba.conf")?, text("ident_file", "pg_ident.conf")?);
    let bin_dir = bin_dir(&dir)?;
    Ok(Described { major, settings, bin_dir, hba, ident })
}

/// Where the program of the running postmaster is.
fn bin_dir(dir: &Path) -> Result<PathBuf, Error> {
    let path = dir.join("postmaster.pid");
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let pid = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok());
    let Some(pid) = pid else {
        return Err(Error::refused(format!("{} names no process", path.display())));
    };
    let link = PathBuf::from(format!("/proc/{pid}/exe"));
    let program = fs::read_link(&link).map_err(Error::file("read", &link))?;
    Ok(program.parent().map(Path::to_path_buf).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_fill_in_what_the_connection_string_leaves_open() {
        let variable = |name: &str| match name {
            "PGUSER" => Some("env".to_owned()),
            "PGPORT" => Some("6000".to_owned()),
            "PGSSLMODE" => Some("disable".to_owned()),
            _ => None,
        };
        let reach = Reach::new(Some("host=h user=given"), variable).expect("a connection string");
        assert_eq!((reach.get("user"), reach.get("port")), (Some("given"), Some("6000")));
        assert_eq!(reach.connection()["sslmode"], "disable");
        assert_eq!(reach.connection()["gssencmode"], "prefer");
        assert_eq!(reach.target().1, "h:6000");
        let bare = Reach::new(None, |_| None).expect("nothing is needed");
        assert!(bare.connection().is_empty());
        assert!(Reach::new(Some("nothing"), |_| None).is_none());
    }
}
