//! Users and their stored passwords in a file of PgBouncer's format (`userlist.txt`), and files
//! with one password.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::secret::{Password, StoredSecret};

/// About a hundred thousand users with verifiers.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Permissions of others: none.
const OTHERS: u32 = 0o007;

/// Why a file of passwords is refused.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Others than owner and group may read or change it.
    #[error("others may read or change {}, which has passwords in it: chmod o= it", path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
    },
    /// It is too long.
    #[error("{} is longer than {FILE_BYTES_MAX} bytes", path.display())]
    Length {
        /// The file.
        path: PathBuf,
    },
    /// A line is wrong. What stands there is not shown (I6).
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Users and what is stored of their passwords.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Users(BTreeMap<String, StoredSecret>);

impl Users {
    /// What is stored of a user's password.
    #[must_use]
    pub fn get(&self, user: &str) -> Option<&StoredSecret> {
        self.0.get(user)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads `"user" "secret"` lines; what follows on a line is for others. A user without a secret
    /// is one whom nobody can sign in as. The first line of a user counts.
    fn parse(text: &str) -> Result<Users, (usize, &'static str)> {
        let mut users = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            let at = |reason| (index + 1, reason);
            let expected = || at("it must be \"user\" \"password\", quotes doubled inside");
            let (user, rest) = quoted(line).ok_or_else(expected)?;
            let (secret, _) = quoted(rest.trim_start()).ok_or_else(expected)?;
            if user.is_empty() {
                return Err(at("the user has no name"));
            }
            if !secret.is_empty() {
                let bad = |_| at("the password begins as a verifier of SCRAM does, and is none");
                let secret = StoredSecret::parse(&secret).map_err(bad)?;
                users.entry(user.to_string()).or_insert(secret);
            }
        }
        Ok(Users(users))
    }
}

/// A text in quotes at the beginning, and what follows it.
fn quoted(text: &str) -> Option<(Zeroizing<String>, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut inner = Zeroizing::new(String::new());
    loop {
        let (piece, after) = rest.split_once('"')?;
        inner.push_str(piece);
        match after.strip_prefix('"') {
            Some(more) => {
                inner.push('"');
                rest = more;
            }
            None => return Some((inner, after)),
        }
    }
}

/// By what a changed file is known.
type Stamp = (u64, u64, u64, i64, i64);

/// A file of users, read again when it has changed.
#[derive(Debug)]
pub struct UsersFile {
    path: PathBuf,
    stamp: Stamp,
    users: Arc<Users>,
}

impl UsersFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`UsersError`], naming file and line.
    pub fn open(path: impl Into<PathBuf>) -> Result<UsersFile, UsersError> {
        let path = path.into();
        let (stamp, users) = read(&path, None)?.unwrap_or_default();
        Ok(UsersFile { path, stamp, users: Arc::new(users) })
    }

    /// The users as last read.
    #[must_use]
    pub fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users)
    }

    /// Reads the file again if it has changed; whether it had.
    ///
    /// # Errors
    /// [`UsersError`]; the users stay as they were, and the next call tries again.
    pub fn refresh(&mut self) -> Result<bool, UsersError> {
        let Some((stamp, users)) = read(&self.path, Some(self.stamp))? else {
            return Ok(false);
        };
        self.stamp = stamp;
        self.users = Arc::new(users);
        Ok(true)
    }
}

/// Reads a file with one password; an end of line behind it is not part of it.
///
/// # Errors
/// [`UsersError`], naming the file.
pub fn read_password(path: &Path) -> Result<Password, UsersError> {
    let text = read_text(path, None)?.map(|(_, text)| text).unwrap_or_default();
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.contains('\n') {
        let reason = "the file must hold one password and nothing else";
        return Err(UsersError::Line { path: path.to_owned(), line: 1, reason });
    }
    Ok(Password::new(password.as_bytes()))
}

/// The users of a file and its stamp; `None` if it has this stamp.
fn read(path: &Path, known: Option<Stamp>) -> Result<Option<(Stamp, Users)>, UsersError> {
    let Some((stamp, text)) = read_text(path, known)? else {
        return Ok(None);
    };
    let users = Users::parse(&text).map_err(|(line, reason)| UsersError::Line {
        path: path.to_owned(),
        line,
        reason,
    })?;
    Ok(Some((stamp, users)))
}

/// A file's content and stamp; `None` if it has this stamp.
fn read_text(
    path: &Path,
    known: Option<Stamp>,
) -> Result<Option<(Stamp, Zeroizing<String>)>, UsersError> {
    let failed = |source| UsersError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.mode() & OTHERS != 0 {
        return Err(UsersError::Permissions { path: path.to_owned() });
    }
    let stamp = (about.dev(), about.ino(), about.size(), about.mtime(), about.mtime_nsec());
    if known == Some(stamp) {
        return Ok(None);
    }
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(UsersError::Length { path: path.to_owned() });
    }
    Ok(Some((stamp, text)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn password(text: &str) -> StoredSecret {
        StoredSecret::Password(Password::new(text.as_bytes()))
    }

    #[test]
    fn the_format_is_pgbouncers() {
        let text = "; a comment\n\n\"batman\" \"hush\"\r\n  \"a \"\"b\"\" c\" \"x\"\"y\" whatever\n\
                    \"old\" \"md53175bce1d3201d16594cebf9d7eb3f9d\"\n\"locked\" \"\"\n\
                    \"batman\" \"second\"\n";
        let users = Users::parse(text).expect("good");
        assert_eq!(users.len(), 3);
        assert_eq!(users.get("batman"), Some(&password("hush")));
        assert_eq!(users.get("a \"b\" c"), Some(&password("x\"y")));
        assert!(matches!(users.get("old"), Some(StoredSecret::Md5Hash(_))));
        assert_eq!(users.get("locked"), None);
        assert!(Users::parse("").expect("good").is_empty());
        for wrong in [
            "batman hush",
            "\"batman\"",
            "\"batman\" hush",
            "\"a\" \"b",
            "\"\" \"x\"",
            "\"a\" \"SCRAM-SHA-256$x\"",
        ] {
            let (line, reason) = Users::parse(&format!("\n{wrong}")).expect_err(wrong);
            assert!(line == 2 && !reason.contains("hush"), "{wrong}: {reason}");
        }
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed_and_kept_when_it_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("a b\r\n", 0o600);
        assert_eq!(StoredSecret::Password(read_password(&path).unwrap()), password("a b"));
        for wrong in ["", "\n", "a\nb"] {
            write(wrong, 0o600);
            assert!(matches!(read_password(&path), Err(UsersError::Line { .. })), "{wrong:?}");
        }
        std::fs::remove_file(&path).unwrap();
        let missing = UsersFile::open(&path).unwrap_err();
        assert!(missing.to_string().contains("cannot read"), "{missing}");
        for mode in [0o604, 0o602] {
            write("\"a\" \"1\"", mode);
            let open = UsersFile::open(&path).unwrap_err();
            assert!(matches!(open, UsersError::Permissions { .. }), "{mode:o}");
        }
        write("\"a\" \"1\"", 0o640);
        let mut file = UsersFile::open(&path).unwrap();
        assert!(!file.refresh().unwrap());
        write("\"a\" \"12\"", 0o600);
        assert!(file.refresh().unwrap());
        assert_eq!(file.users().get("a"), Some(&password("12")));
        write("\"a\" hunter2", 0o600);
        let wrong = file.refresh().unwrap_err().to_string();
        assert!(wrong.contains("line 1") && !wrong.contains("hunter2"), "{wrong}");
        assert_eq!(file.users().get("a"), Some(&password("12")));
    }
}
