//! What is known of a user's password, and of the connection that it goes over.

use pgproto::md5::Md5Hash;
use pgproto::scram::{ClientKeys, Verifier};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A password. It is not shown (I6), compared in constant time, and wiped when it is dropped.
#[derive(Clone)]
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// Wraps a password. PostgreSQL does not ask in which encoding it is.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Password {
        Password(Zeroizing::new(bytes.to_vec()))
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Password) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Password {}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What a server keeps of a password, or the password itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredSecret {
    /// The password.
    Password(Password),
    /// Its hash by MD5.
    Md5Hash(Md5Hash),
    /// Its verifier for SCRAM-SHA-256.
    Verifier(Verifier),
}

/// A stored secret that begins as a verifier or hash does, and is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored password that begins with SCRAM-SHA-256$ is no verifier of it")]
pub struct UnknownSecret;

impl StoredSecret {
    /// Tells by its form what it is, as PostgreSQL does (`get_password_type`).
    ///
    /// # Errors
    /// It begins as a verifier does and is none. Taken as a password it would let in who reads it.
    pub fn parse(text: &str) -> Result<StoredSecret, UnknownSecret> {
        if let Some(verifier) = Verifier::parse(text) {
            return Ok(StoredSecret::Verifier(verifier));
        }
        if text.starts_with("SCRAM-SHA-256$") {
            return Err(UnknownSecret);
        }
        let password = || StoredSecret::Password(Password::new(text.as_bytes()));
        Ok(Md5Hash::parse(text).map_or_else(password, StoredSecret::Md5Hash))
    }

    /// What one can sign in at a server with who knows only this. A verifier proves nothing.
    #[must_use]
    pub fn as_secret(&self) -> Secret {
        match self {
            StoredSecret::Password(password) => Secret::Password(password.clone()),
            StoredSecret::Md5Hash(hash) => Secret::Md5Hash(hash.clone()),
            StoredSecret::Verifier(_) => Secret::None,
        }
    }
}

/// What proves to a server who one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// Nothing: the server has to let the user in without.
    None,
    /// The password.
    Password(Password),
    /// The keys for the verifier that the server stores.
    ScramKeys(ClientKeys),
    /// The hash that the server stores.
    Md5Hash(Md5Hash),
}

impl Secret {
    /// What it is, for errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Secret::None => "nothing",
            Secret::Password(_) => "the password",
            Secret::ScramKeys(_) => "keys of SCRAM",
            Secret::Md5Hash(_) => "an MD5 hash",
        }
    }
}

/// A user and its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// What proves it.
    pub secret: Secret,
}

/// What a login has to know of its connection.
#[derive(Debug, Clone, Default)]
pub struct Channel {
    /// Nobody in between reads along: TLS, or both ends are on this machine.
    pub confidential: bool,
    /// The hash of the server's certificate (`tls-server-end-point`), on either side; `None`
    /// without TLS, or if there is no such hash.
    pub end_point: Option<Vec<u8>>,
    /// Whom the client's certificate is of, which was believed.
    pub certified: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_secrets_are_told_apart_and_not_shown() {
        let verifier = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                        wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        let parse = |text: &str| StoredSecret::parse(text).expect("one of three");
        assert!(matches!(parse(verifier), StoredSecret::Verifier(_)));
        assert!(matches!(parse("md53175bce1d3201d16594cebf9d7eb3f9d"), StoredSecret::Md5Hash(_)));
        assert!(matches!(parse("md5 is old"), StoredSecret::Password(_)));
        assert_eq!(StoredSecret::parse(&verifier[..60]), Err(UnknownSecret));
        let shown = format!("{:?} {:?}", parse("hunter2"), parse("hunter2").as_secret());
        assert!(!shown.contains("hunter2") && !shown.contains("104"), "{shown}");
        assert_eq!(parse(verifier).as_secret(), Secret::None);
    }
}
