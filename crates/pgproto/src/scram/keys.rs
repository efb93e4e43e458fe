//! Passwords, keys, verifiers (RFC 5802, section 3).

use std::borrow::Cow;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::message;

/// Bytes of a key: those of the hash.
pub(super) const KEY_BYTES: usize = 32;
/// Bytes of a salt as PostgreSQL draws it (`SCRAM_DEFAULT_SALT_LEN`).
pub const SALT_BYTES: usize = 16;
/// Rounds of a verifier that nobody stored (PostgreSQL's default for `scram_iterations`).
const ITERATIONS_DEFAULT: i32 = 4096;
/// Longer salts are nobody's.
const SALT_BYTES_MAX: usize = 1024;

/// A key. It is not shown (I6), compared in constant time, and wiped when it is dropped.
#[derive(Clone)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// Wraps a key's bytes.
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Key {
        Key(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// H(key): what a server stores of the client's.
    pub(super) fn hashed(&self) -> Key {
        Key(Sha256::digest(self.0).into())
    }

    /// HMAC(key, text).
    pub(super) fn signature(&self, text: &str) -> Key {
        hmac(&self.0, &[text.as_bytes()])
    }

    /// key XOR other.
    pub(super) fn xor(&self, other: &[u8; KEY_BYTES]) -> Key {
        let mut mixed = self.clone();
        mixed.0.iter_mut().zip(other).for_each(|(byte, mask)| *byte ^= mask);
        mixed
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Key {}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What a client needs of its password for one verifier: enough to sign in wherever that verifier
/// is stored, and to know the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientKeys {
    /// Proves the client. A server never has it, but can learn it from a proof.
    pub client_key: Key,
    /// Proves the server.
    pub server_key: Key,
}

impl ClientKeys {
    /// Derives the keys of a password, which costs `iterations` rounds.
    pub(super) fn derive(password: &[u8], salt: &[u8], iterations: u32) -> ClientKeys {
        let salted = salted(&normalised(password), salt, iterations);
        let key = |name: &str| salted.signature(name);
        ClientKeys { client_key: key("Client Key"), server_key: key("Server Key") }
    }
}

/// What a server stores of a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    pub(super) salt: Vec<u8>,
    /// At least one.
    pub(super) iterations: u32,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, as it stands in
    /// `pg_authid.rolpassword`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Verifier> {
        let rest = text.strip_prefix("SCRAM-SHA-256$")?;
        let (parameters, keys) = rest.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations: i32 = iterations.parse().ok()?;
        let key = |text: &str| Some(Key(message::decode(text)?.try_into().ok()?));
        let salt = message::decode(salt).filter(|salt| salt.len() <= SALT_BYTES_MAX)?;
        Some(Verifier {
            salt,
            iterations: u32::try_from(iterations).ok().filter(|count| *count > 0)?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }

    /// The verifier of a password with PostgreSQL's default number of rounds, for a server that
    /// knows the password itself.
    #[must_use]
    pub fn of_password(password: &[u8], salt: [u8; SALT_BYTES]) -> Verifier {
        let iterations = ITERATIONS_DEFAULT.unsigned_abs();
        let keys = ClientKeys::derive(password, &salt, iterations);
        Verifier {
            salt: salt.to_vec(),
            iterations,
            stored_key: keys.client_key.hashed(),
            server_key: keys.server_key,
        }
    }

    /// Of a user whom nobody knows: looks like one, and always the same for the same user, and no
    /// proof fits it (PostgreSQL's `scram_mock_salt`).
    pub(super) fn mock(user: &str, secret: &[u8]) -> Verifier {
        Verifier {
            salt: salt_of(user, secret).to_vec(),
            iterations: ITERATIONS_DEFAULT.unsigned_abs(),
            stored_key: hmac(secret, &[b"stored key", user.as_bytes()]),
            server_key: hmac(secret, &[b"server key", user.as_bytes()]),
        }
    }

    /// Whether the verifier is of this password; costs the verifier's rounds.
    #[must_use]
    pub fn is_of(&self, password: &[u8]) -> bool {
        let keys = ClientKeys::derive(password, &self.salt, self.iterations);
        keys.client_key.hashed() == self.stored_key
    }
}

/// A salt that is always the same for a user, and that nobody foretells who does not know `secret`.
/// Whoever has no verifier gets this one, so that known users cannot be told from others by it.
#[must_use]
pub fn salt_of(user: &str, secret: &[u8]) -> [u8; SALT_BYTES] {
    let mut salt = [0; SALT_BYTES];
    salt.copy_from_slice(&hmac(secret, &[b"salt", user.as_bytes()]).bytes()[..SALT_BYTES]);
    salt
}

/// The password by SASLprep (RFC 4013). One that SASLprep refuses is taken as it is, as PostgreSQL
/// does (`pg_saslprep` and its callers).
fn normalised(password: &[u8]) -> Cow<'_, [u8]> {
    let prepared = std::str::from_utf8(password).ok().and_then(|p| stringprep::saslprep(p).ok());
    match prepared {
        Some(Cow::Owned(text)) if !text.is_empty() => Cow::Owned(text.into_bytes()),
        Some(_) | None => Cow::Borrowed(password),
    }
}

/// Hi(password, salt, iterations): PBKDF2 of one block.
fn salted(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let keyed = keyed(password);
    let round = |parts: &[&[u8]]| {
        let mut mac = keyed.clone();
        parts.iter().for_each(|part| mac.update(part));
        Key(mac.finalize().into_bytes().into())
    };
    let mut last = round(&[salt, &1u32.to_be_bytes()]);
    let mut sum = last.clone();
    for _ in 1..iterations {
        last = round(&[last.bytes()]);
        sum = sum.xor(last.bytes());
    }
    sum
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = keyed(key);
    parts.iter().for_each(|part| mac.update(part));
    Key(mac.finalize().into_bytes().into())
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}
