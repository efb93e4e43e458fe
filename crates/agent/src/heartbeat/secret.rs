//! Where the members' common key comes from.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use api::peers::PeerKey;
use config::Static;

/// A shorter secret could be guessed from what is seen on the network.
const SECRET_BYTES_MIN: usize = 16;
/// More than this is no secret but the wrong file.
const SECRET_BYTES_MAX: usize = 4096;
/// Modes that let others than owner and group read, or others than the owner write.
const EXPOSED: u32 = 0o027;

/// Why the secret's file is refused.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It cannot be read.
    #[error("cannot read {path} (pgherd.peers.secret_file)")]
    Read {
        /// The file.
        path: PathBuf,
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// Others could read or change it.
    #[error(
        "{path} (pgherd.peers.secret_file) has mode {mode:o}: others can read or change it; \
         chmod it to 600, or 640 with a group of the agent's user alone"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Too little to be a secret, or too much.
    #[error(
        "{path} (pgherd.peers.secret_file) holds {bytes} bytes without the white space around \
         them; {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} are needed, `openssl rand -hex 32` makes \
         good ones"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length, up to one more than is taken.
        bytes: usize,
    },
}

/// What the key is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PeerSecret {
    /// The content of `pgherd.peers.secret_file`, already a key.
    File(PeerKey),
    /// The replication user's password; the cluster's system identifier is needed too.
    Password(config::Secret),
    /// There is nothing that the members share.
    None,
}

impl PeerSecret {
    /// What the node's file asks for.
    ///
    /// # Errors
    /// The secret's file cannot be used.
    pub(crate) fn read(settings: &Static) -> Result<PeerSecret, SecretError> {
        if let Some(path) = &settings.pgherd.peers_secret_file {
            return Ok(PeerSecret::File(PeerKey::from_secret(&read_secret(path)?)));
        }
        let password = settings.postgresql.authentication.replication.password.clone();
        let password = password.filter(|password| !password.expose().is_empty());
        Ok(password.map_or(PeerSecret::None, PeerSecret::Password))
    }

    /// The key, if it can be made yet.
    pub(crate) fn key(&self, system_identifier: Option<&str>) -> Option<PeerKey> {
        match self {
            PeerSecret::File(key) => Some(key.clone()),
            PeerSecret::Password(password) => {
                Some(PeerKey::from_password(password.expose().as_bytes(), system_identifier?))
            }
            PeerSecret::None => None,
        }
    }
}

/// The content without white space around it, which editors add.
fn read_secret(path: &Path) -> Result<Vec<u8>, SecretError> {
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // Of the file that is open: the name could lead to another one by now.
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & EXPOSED != 0 {
        return Err(SecretError::Exposed { path: path.to_owned(), mode });
    }
    let mut secret = Vec::new();
    let limit = SECRET_BYTES_MAX as u64 + 1;
    file.take(limit).read_to_end(&mut secret).map_err(failed)?;
    let bytes = if secret.len() > SECRET_BYTES_MAX {
        secret.len()
    } else {
        secret = secret.trim_ascii().to_vec();
        secret.len()
    };
    if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes) {
        return Err(SecretError::Length { path: path.to_owned(), bytes });
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    fn write(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("secret");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
        (dir, path)
    }

    #[test]
    fn a_good_secret_is_read_without_what_an_editor_adds() {
        for mode in [0o600, 0o400, 0o640] {
            let (_dir, path) = write(b"0123456789abcdef\n", mode);
            assert_eq!(read_secret(&path).expect("good"), b"0123456789abcdef");
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_shown() {
        for content in [&b""[..], b"  \n", b"short\n", b"123456789abcdef   \n", &[b'x'; 5000]] {
            let (_dir, path) = write(content, 0o600);
            let refused = read_secret(&path).expect_err("refused");
            assert!(matches!(refused, SecretError::Length { .. }), "{refused:?}");
            assert!(!format!("{refused} {refused:?}").contains("short"));
        }
        for mode in [0o604, 0o644, 0o660, 0o602] {
            let (_dir, path) = write(b"0123456789abcdef", mode);
            let refused = read_secret(&path).expect_err("refused");
            assert!(refused.to_string().contains(&format!("{mode:o}")), "{refused}");
        }
        let missing = read_secret(Path::new("/nowhere/secret")).expect_err("refused");
        assert!(missing.to_string().contains("/nowhere/secret"), "{missing}");
    }

    #[test]
    fn a_password_makes_a_key_once_the_cluster_is_known() {
        let secret = PeerSecret::Password(config::Secret::new("pass"));
        assert_eq!(secret.key(None), None);
        assert!(secret.key(Some("7711489607175335743")).is_some());
        assert_eq!(PeerSecret::None.key(Some("7711489607175335743")), None);
        assert!(!format!("{secret:?}").contains("pass\""));
    }
}
