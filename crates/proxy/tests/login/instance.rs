//! A PostgreSQL with TLS, users of each kind, and rules for them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The release that `make test` installs beside the distribution's.
const INSTALLED: &str = "target/tools/postgresql-18/bin";

/// Who may sign in how. `ann` has a verifier of SCRAM, `old` an MD5 hash.
const RULES: &str = "\
    host all postgres all trust\n\
    host all old all md5\n\
    host all clear all password\n\
    host all ann,asker all scram-sha-256\n";
const RULES_OF_TLS: &str = "hostssl all secure all scram-sha-256\n";

const USERS: &str = "\
    SET client_min_messages = 'error'; SET password_encryption = 'md5'; \
    CREATE ROLE old LOGIN PASSWORD 'hush'; \
    SET password_encryption = 'scram-sha-256'; \
    CREATE ROLE ann LOGIN PASSWORD 'h\u{fc}sh\u{ad} it'; CREATE ROLE clear LOGIN PASSWORD 'hush'; \
    CREATE ROLE secure LOGIN PASSWORD 'hush'; CREATE ROLE late LOGIN PASSWORD 'hush' \
    VALID UNTIL '2001-01-01'; CREATE ROLE asker LOGIN SUPERUSER PASSWORD 'ask'; \
    CREATE ROLE herd; CREATE ROLE traders; GRANT traders TO herd; GRANT herd TO ann;";

/// The distribution's programs, and those of PostgreSQL 18 where they are installed.
pub(crate) fn bin_dirs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let versions = (14..=17).rev().map(|n| PathBuf::from(format!("/usr/lib/postgresql/{n}/bin")));
    let distribution = versions.into_iter().find(|bin| bin.join("initdb").exists());
    let installed = Some(root.join(INSTALLED)).filter(|bin| bin.join("initdb").exists());
    let found: Vec<PathBuf> = distribution.into_iter().chain(installed).collect();
    assert!(!found.is_empty(), "no PostgreSQL to test with: make tools");
    found
}

pub(crate) struct Postgres {
    directory: tempfile::TempDir,
    pub(crate) bin: PathBuf,
    pub(crate) port: u16,
    /// Whether it was built with TLS. What `make test` installs beside the distribution's was not.
    pub(crate) tls: bool,
}

impl Postgres {
    pub(crate) fn start(bin: &Path) -> Postgres {
        let directory = tempfile::tempdir().unwrap();
        let configured = Command::new(bin.join("pg_config")).arg("--configure").output();
        let tls = configured.is_ok_and(|configured| {
            let text = String::from_utf8_lossy(&configured.stdout);
            text.contains("--with-ssl") || text.contains("--with-openssl")
        });
        let mut postgres = Postgres { directory, bin: bin.to_owned(), port: 0, tls };
        for name in ["server", "other"] {
            postgres.certify(name, "/CN=localhost", "DNS:localhost,IP:127.0.0.1");
        }
        postgres.certify("ann", "/CN=ann", "DNS:whoever");
        postgres.own(postgres.directory.path());
        postgres.run("initdb", |initdb| {
            initdb.args(["--auth=trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D"]);
            initdb.arg(postgres.path("data"));
        });
        let rules = postgres.path("rules");
        std::fs::write(&rules, format!("{RULES}{}", if tls { RULES_OF_TLS } else { "" })).unwrap();
        let port = lab::ports::reserve().unwrap();
        postgres.port = port;
        let mut settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n\
             fsync = off\nhba_file = '{}'\n",
            rules.display(),
        );
        if tls {
            settings.push_str(&format!(
                "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n",
                postgres.path("server.crt").display(),
                postgres.path("server.key").display(),
            ));
        }
        std::fs::write(postgres.path("data/postgresql.auto.conf"), settings).unwrap();
        postgres.own(postgres.directory.path());
        postgres.run("pg_ctl", |start| {
            start.args(["start", "-w", "-s", "-l"]).arg(postgres.path("log"));
            start.arg("-D").arg(postgres.path("data"));
        });
        postgres.run("psql", |psql| {
            psql.args(["-XAtq", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres"]);
            psql.args(["-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", USERS]);
        });
        postgres
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn certify(&self, name: &str, subject: &str, alternative: &str) {
        certify(self.directory.path(), name, subject, alternative);
    }

    /// PostgreSQL refuses to run as root.
    fn own(&self, path: &Path) {
        if rustix::process::geteuid().is_root() {
            let mut chown = Command::new("chown");
            assert!(chown.args(["-R", "postgres"]).arg(path).status().unwrap().success());
        }
    }

    fn run(&self, program: &str, arguments: impl FnOnce(&mut Command)) {
        let mut command = Command::new(self.bin.join(program));
        if rustix::process::geteuid().is_root() {
            command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(self.bin.join(program)).current_dir("/");
        }
        arguments(&mut command);
        let status = command.stdout(Stdio::null()).stdin(Stdio::null()).status();
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        assert!(status.unwrap().success(), "{program}: {log}");
    }
}

/// Makes `name.crt` and `name.key`: a certificate that is its own authority.
pub(crate) fn certify(directory: &Path, name: &str, subject: &str, alternative: &str) {
    let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-new", "-nodes", "-newkey", "ec", "-subj", subject]);
    openssl.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", &key]);
    openssl.args(["-addext", &format!("subjectAltName={alternative}")]);
    openssl.args(["-out", &certificate]).current_dir(directory);
    let done = openssl.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(directory.join(&key), mode).unwrap();
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = Command::new(self.bin.join("pg_ctl"));
        if rustix::process::geteuid().is_root() {
            stop = Command::new("runuser");
            stop.args(["-u", "postgres", "--"]).arg(self.bin.join("pg_ctl")).current_dir("/");
        }
        stop.args(["stop", "-m", "immediate", "-s", "-D"]).arg(self.path("data"));
        // Nothing better can be done about a server that does not stop.
        stop.status().map(drop).unwrap_or_default();
    }
}
