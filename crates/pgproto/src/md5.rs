//! Passwords hashed with MD5, as old servers store and ask for them (PostgreSQL's protocol,
//! "AuthenticationMD5Password").

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Hexadecimal digits of a hash.
const DIGITS: usize = 32;

/// `md5(password user)`. Who has it can sign in, so it is not shown (I6), is compared in constant
/// time, and wiped when it is dropped.
#[derive(Clone)]
pub struct Md5Hash([u8; DIGITS]);

impl Md5Hash {
    /// The hash of a user's password.
    #[must_use]
    pub fn of(user: &str, password: &[u8]) -> Md5Hash {
        Md5Hash(digits(&[password, user.as_bytes()]))
    }

    /// Reads `md5` and 32 hexadecimal digits, as it stands in `pg_authid.rolpassword`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Md5Hash> {
        let digits: [u8; DIGITS] = text.strip_prefix("md5")?.as_bytes().try_into().ok()?;
        digits
            .iter()
            .all(u8::is_ascii_hexdigit)
            .then(|| Md5Hash(digits.map(|d| d.to_ascii_lowercase())))
    }

    /// What a client sends to a server that gave it this salt.
    #[must_use]
    pub fn answer(&self, salt: [u8; 4]) -> Vec<u8> {
        [b"md5", &digits(&[&self.0, &salt])[..]].concat()
    }

    /// Whether a client that was given this salt answered with this hash.
    #[must_use]
    pub fn is_answer(&self, salt: [u8; 4], answer: &[u8]) -> bool {
        self.answer(salt).ct_eq(answer).into()
    }
}

impl Drop for Md5Hash {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PartialEq for Md5Hash {
    fn eq(&self, other: &Md5Hash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Md5Hash {}

impl std::fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

fn digits(parts: &[&[u8]]) -> [u8; DIGITS] {
    let mut hash = Md5::new();
    parts.iter().for_each(|part| hash.update(part));
    let mut text = [0; DIGITS];
    for (pair, byte) in text.chunks_exact_mut(2).zip(hash.finalize()) {
        let digit = |value: u8| b"0123456789abcdef"[usize::from(value & 15)];
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte)]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_postgresqls() {
        // `SELECT 'md5' || md5('postgres' || 'postgres')`.
        let stored = "md53175bce1d3201d16594cebf9d7eb3f9d";
        let hash = Md5Hash::of("postgres", b"postgres");
        assert_eq!(Md5Hash::parse(stored), Some(hash.clone()));
        assert_eq!(
            Md5Hash::parse(&stored.to_uppercase().replace("MD5", "md5")),
            Some(hash.clone())
        );
        assert_ne!(hash, Md5Hash::of("postgres", b"postgre"));
        assert!(!format!("{hash:?}").contains("3175"));
        for wrong in [
            "",
            "md5",
            "3175bce1d3201d16594cebf9d7eb3f9d",
            &stored[..34],
            "md5g175bce1d3201d16594cebf9d7eb3f9d",
        ] {
            assert_eq!(Md5Hash::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn answers_hang_on_the_salt() {
        // `SELECT 'md5' || md5('3175bce1d3201d16594cebf9d7eb3f9d' || 'salt')`.
        let hash = Md5Hash::of("postgres", b"postgres");
        let answer = hash.answer(*b"salt");
        assert_eq!(answer, b"md55ad56066def4e77288484a32b24de5d8");
        assert!(hash.is_answer(*b"salt", &answer) && !hash.is_answer(*b"tlas", &answer));
        assert!(!hash.is_answer(*b"salt", b""));
    }
}
