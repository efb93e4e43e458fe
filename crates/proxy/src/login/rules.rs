//! The file of rules, held against what the proxy is configured to know.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use config::{AuthMethod, ProxySecurity, RuleError, Rules};

/// Ten thousand rules fit in.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why a file of rules is refused.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It cannot be read.
    #[error("cannot read the rules file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is too long.
    #[error("the rules file {} is longer than {FILE_BYTES_MAX} bytes", path.display())]
    Length {
        /// The file.
        path: PathBuf,
    },
    /// A line is wrong.
    #[error("the rules file {}, {error}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which, and why.
        error: RuleError,
    },
    /// A rule that the proxy cannot follow.
    #[error("the rules file {}: {needs}", path.display())]
    Needs {
        /// The file.
        path: PathBuf,
        /// What is missing.
        needs: &'static str,
    },
}

/// Reads the rules of a file. Whoever reloads its configuration calls it again.
///
/// # Errors
/// [`RulesError`], naming file and line.
pub fn read(path: &Path, security: &ProxySecurity) -> Result<Rules, RulesError> {
    let failed = |source| RulesError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        return Err(RulesError::Length { path: path.to_owned() });
    }
    let rules =
        Rules::parse(&text).map_err(|error| RulesError::Line { path: path.to_owned(), error })?;
    let methods = rules.methods();
    let by_password = [AuthMethod::Password, AuthMethod::Md5, AuthMethod::Scram];
    let needs = if rules.need_roles() && security.auth_query.is_none() {
        Some("membership in roles (+role) is asked of the server: set auth_user")
    } else if by_password.iter().any(|m| methods.contains(m)) && !security.has_stored_passwords() {
        Some("a rule needs stored passwords: set users_file or auth_user")
    } else if methods.contains(&AuthMethod::Cert) && security.tls.ca.is_none() {
        Some("the method cert needs tls.ca")
    } else {
        None
    };
    needs.map_or(Ok(rules), |needs| Err(RulesError::Needs { path: path.to_owned(), needs }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_the_proxy_cannot_follow_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rules");
        let mut security = ProxySecurity::default();
        let written = |text: &str, security: &ProxySecurity| {
            std::fs::write(&path, text).unwrap();
            read(&path, security).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(written("host all all all trust", &security), Ok(()));
        for (text, says) in [
            ("host all +herd all trust", "set auth_user"),
            ("host all all all md5", "set users_file"),
            ("hostssl all all all cert", "tls.ca"),
            ("local all all trust", "rules, line 1: local"),
        ] {
            let error = written(text, &security).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        security.users_file = Some("users".into());
        assert_eq!(written("host all all all md5", &security), Ok(()));
        let missing = read(&directory.path().join("none"), &security).unwrap_err();
        assert!(matches!(missing, RulesError::Read { .. }));
    }
}
