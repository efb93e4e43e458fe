//! The common key, and what is computed from it.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use types::MemberName;

use super::PROTOCOL;

/// HMAC with SHA-256.
pub(super) type HmacSha256 = Hmac<Sha256>;

/// Bytes of a key, of a nonce and of an HMAC.
pub(super) const KEY_BYTES: usize = 32;

/// Rounds that make a password expensive to guess from what is seen on the network: as many as
/// PostgreSQL's SCRAM verifiers have, so that heartbeats expose the replication password no more
/// than its logins do.
const PASSWORD_ROUNDS: u32 = 4096;

/// The key that all members of a cluster share.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerKey([u8; KEY_BYTES]);

impl std::fmt::Debug for PeerKey {
    /// Without the key (I6).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerKey(***)")
    }
}

impl PeerKey {
    /// The key from a secret that nobody can guess.
    #[must_use]
    pub fn from_secret(secret: &[u8]) -> PeerKey {
        PeerKey(hmac(secret, &[PROTOCOL.as_bytes(), b"key from a secret"]))
    }

    /// The key from a password and the system identifier of the cluster that it is for: PBKDF2 with
    /// HMAC-SHA256, one block.
    #[must_use]
    pub fn from_password(password: &[u8], system_identifier: &str) -> PeerKey {
        let salt = [PROTOCOL.as_bytes(), b"key from a password", system_identifier.as_bytes()];
        let keyed = keyed(password);
        let mut round = hmac(password, &salt);
        let mut sum = round;
        for _ in 1..PASSWORD_ROUNDS {
            round = keyed.clone().chain_update(round).finalize().into_bytes().into();
            for (sum, byte) in sum.iter_mut().zip(round) {
                *sum ^= byte;
            }
        }
        PeerKey(sum)
    }
}

/// Who speaks to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parties {
    /// The cluster's name.
    pub scope: String,
    /// Who dials.
    pub from: MemberName,
    /// Who is dialled.
    pub to: MemberName,
}

/// 32 bytes of chance in hex; only ever compared and hashed as this text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nonce(String);

impl Nonce {
    /// A fresh one.
    pub(super) fn draw() -> Result<Nonce, getrandom::Error> {
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Nonce(hex(&bytes)))
    }

    /// The other side's, if it looks like one.
    pub(super) fn given(text: &str) -> Option<Nonce> {
        let fits = text.len() == 2 * KEY_BYTES
            && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fits.then(|| Nonce(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The dialer's proof, in hex.
pub(super) fn request_proof(key: &PeerKey, parties: &Parties, dialer: &Nonce) -> String {
    hex(&derive(key, "request", parties, &[dialer]))
}

/// Both nonces of one connection.
pub(super) struct Nonces {
    pub(super) dialer: Nonce,
    pub(super) acceptor: Nonce,
}

/// The accepting side's proof, in hex.
pub(super) fn answer_proof(key: &PeerKey, parties: &Parties, nonces: &Nonces) -> String {
    hex(&derive(key, "answer", parties, &[&nonces.dialer, &nonces.acceptor]))
}

/// The keys of one connection's frames.
pub(super) struct FrameKeys {
    pub(super) from_dialer: HmacSha256,
    pub(super) from_acceptor: HmacSha256,
}

impl FrameKeys {
    pub(super) fn of(key: &PeerKey, parties: &Parties, nonces: &Nonces) -> FrameKeys {
        let one =
            |label: &str| keyed(&derive(key, label, parties, &[&nonces.dialer, &nonces.acceptor]));
        FrameKeys { from_dialer: one("dialer's frames"), from_acceptor: one("acceptor's frames") }
    }
}

fn derive(key: &PeerKey, label: &str, parties: &Parties, nonces: &[&Nonce]) -> [u8; KEY_BYTES] {
    let Parties { scope, from, to } = parties;
    let mut fields: Vec<&[u8]> = vec![PROTOCOL.as_bytes(), label.as_bytes()];
    fields.extend([scope.as_bytes(), from.0.as_bytes(), to.0.as_bytes()]);
    fields.extend(nonces.iter().map(|nonce| nonce.0.as_bytes()));
    hmac(&key.0, &fields)
}

fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC takes keys of every length")
}

/// Each field is preceded by its length, so that no two lists of fields look the same.
fn hmac(key: &[u8], fields: &[&[u8]]) -> [u8; KEY_BYTES] {
    let mut mac = keyed(key);
    for field in fields {
        mac.update(&(field.len() as u64).to_be_bytes());
        mac.update(field);
    }
    mac.finalize().into_bytes().into()
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|b| [b >> 4, b & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(digit: &str) -> Nonce {
        Nonce::given(&digit.repeat(2 * KEY_BYTES)).expect("a nonce")
    }

    fn parties(scope: &str, from: &str, to: &str) -> Parties {
        Parties { scope: scope.to_owned(), from: from.into(), to: to.into() }
    }

    #[test]
    fn a_proof_is_for_one_key_and_one_pair_of_members_alone() {
        let key = PeerKey::from_secret(b"0123456789abcdef");
        let proof = |key: &PeerKey, p: &Parties| request_proof(key, p, &nonce("0"));
        let right = proof(&key, &parties("s", "a", "b"));
        assert_eq!(right, proof(&key, &parties("s", "a", "b")));
        for other in [parties("s", "b", "a"), parties("sa", "", "b"), parties("s", "ab", "")] {
            assert_ne!(right, proof(&key, &other), "{other:?}");
        }
        let p = parties("s", "a", "b");
        assert_ne!(right, proof(&PeerKey::from_secret(b"0123456789abcdeg"), &p));
        assert_ne!(right, request_proof(&key, &p, &nonce("1")));
        let nonces = Nonces { dialer: nonce("0"), acceptor: nonce("1") };
        let answer = answer_proof(&key, &p, &nonces);
        assert_ne!(right, answer);
        let swapped = Nonces { dialer: nonce("1"), acceptor: nonce("0") };
        assert_ne!(answer, answer_proof(&key, &p, &swapped));
    }

    #[test]
    fn the_derived_key_belongs_to_password_and_cluster() {
        let key = PeerKey::from_password(b"secret", "7711489607175335743");
        assert_eq!(key, PeerKey::from_password(b"secret", "7711489607175335743"));
        assert_ne!(key, PeerKey::from_password(b"secret", "7711489607175335744"));
        assert_ne!(key, PeerKey::from_password(b"Secret", "7711489607175335743"));
        assert_eq!(format!("{key:?}"), "PeerKey(***)");
    }

    #[test]
    fn nonces_are_fresh_and_of_one_form() {
        let (one, other) = (Nonce::draw().expect("chance"), Nonce::draw().expect("chance"));
        assert_ne!(one, other);
        assert_eq!(Nonce::given(one.as_str()), Some(one));
        for wrong in ["", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"A".repeat(64)] {
            assert_eq!(Nonce::given(wrong), None, "{wrong}");
        }
    }
}
