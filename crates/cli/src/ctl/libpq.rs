//! What libpq takes from the environment and from its password file, for connections that an
//! operator asks for (PostgreSQL's documentation, "Environment Variables", "The Password File").

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Variables that stand in for what is said of a connection, by libpq's names.
const VARIABLES: [(&str, &str); 9] = [
    ("PGSSLMODE", "sslmode"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
];

/// A password file is refused beyond this.
const PASSWORD_FILE_MAX: u64 = 1 << 20;

/// A variable of the environment that is set.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Who logs in: as named, by `PGUSER`, or the user of the system.
///
/// # Errors
/// None of them is known.
pub(super) fn user(named: Option<&str>) -> anyhow::Result<String> {
    let of_system = || {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let users = std::fs::read_to_string("/etc/passwd").ok()?;
        let line = users.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
        line.split(':').next().map(str::to_owned)
    };
    let found = named.map(str::to_owned).or_else(|| variable("PGUSER")).or_else(of_system);
    found.ok_or_else(|| anyhow::anyhow!("no database user is known; give -U/--username"))
}

/// What the environment says of connections.
pub(super) fn connection() -> impl Iterator<Item = (&'static str, String)> {
    VARIABLES.into_iter().filter_map(|(name, key)| Some((key, variable(name)?)))
}

/// `PGPASSWORD`, or what the password file has for this connection.
pub(super) fn password(host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    if let Some(password) = variable("PGPASSWORD") {
        return Some(password);
    }
    let at_home = || Some(PathBuf::from(variable("HOME")?).join(".pgpass"));
    let path = variable("PGPASSFILE").map(PathBuf::from).or_else(at_home)?;
    let text = password_file(&path)?;
    password_in(&text, [host, &port.to_string(), database, user])
}

/// The file's text, if it is a file that nobody else may read.
fn password_file(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    if !meta.is_file() || meta.len() > PASSWORD_FILE_MAX {
        return None;
    }
    if meta.mode() & 0o077 != 0 {
        let path = path.display();
        eprintln!("WARNING: password file \"{path}\" has group or world access; it is not read");
        return None;
    }
    std::fs::read_to_string(path).ok()
}

/// The password of the first line that fits.
fn password_in(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let (keys, password) = fields.split_at_checked(wanted.len())?;
        let fits = keys.iter().zip(wanted).all(|(key, wanted)| key == "*" || key == wanted);
        password.first().filter(|_| fits).cloned()
    })
}

/// The fields of a line, between colons; a backslash takes the next sign as it is.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut signs = line.chars();
    while let Some(sign) = signs.next() {
        match (sign, fields.last_mut()) {
            (':', _) => fields.push(String::new()),
            ('\\', Some(field)) => field.extend(signs.next()),
            (plain, Some(field)) => field.push(plain),
            (_, None) => {}
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_counts() {
        let text = "# db1:5432:a:u:no\ndb1:5432:b:u:one\nshort:5432\n*:5433:*:u:t\\:w\\\\o\n\
                    fd00\\:\\:1:*:*:*:six\n*:*:*:u:last\n";
        for (wanted, password) in [
            (["db1", "5432", "b", "u"], Some("one")),
            (["db1", "5432", "a", "u"], Some("last")),
            (["x", "5433", "a", "u"], Some("t:w\\o")),
            (["fd00::1", "1", "a", "z"], Some("six")),
            (["x", "5432", "a", "z"], None),
        ] {
            assert_eq!(password_in(text, wanted).as_deref(), password, "{wanted:?}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_none() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("pgpass");
        std::fs::write(&path, "x").expect("written");
        for (mode, read) in [(0o600, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("set");
            assert_eq!(password_file(&path).is_some(), read, "{mode:o}");
        }
        assert_eq!(password_file(dir.path()), None);
    }
}
