//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides (RFC 5802, RFC 7677, RFC 5929), as PostgreSQL
//! speaks them ("SASL Authentication" of its protocol; `src/common/scram-common.c`).
//!
//! - [`Verifier`]: what a server stores of a password;
//! - [`ServerExchange`]: the server's side, which learns [`ClientKeys`] from a right proof;
//! - [`ClientExchange`]: the client's side, from a password or from such keys.
//!
//! Nonces come from the caller, who draws them from the system's generator. A step takes its state
//! by value, so none can be taken twice or out of order. Channel binding is `tls-server-end-point`
//! alone. Not here: authorization identities and mandatory extensions, which PostgreSQL refuses.

mod client;
mod keys;
mod message;
mod server;
#[cfg(test)]
mod tests;

pub use client::{AwaitingSignature, ClientBinding, ClientExchange, ClientSecret};
pub use keys::{ClientKeys, Key, SALT_BYTES, Verifier, salt_of};
pub use server::{AwaitingProof, Proven, ServerExchange};

/// The mechanism's name without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism's name with channel binding.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Random bytes of a nonce (PostgreSQL's `SCRAM_RAW_NONCE_LEN`).
pub const NONCE_BYTES: usize = 18;

/// More rounds of hashing are not done for a server that asks for them: about a fifth of a second.
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// Why an exchange ends without success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The other side does not speak SCRAM.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// What the other side says about channel binding does not fit.
    #[error("SCRAM channel binding: {0}")]
    ChannelBinding(&'static str),
    /// The client chose what was not offered.
    #[error("the client selected an authentication mechanism that was not offered")]
    Mechanism,
    /// The client does not know the password, or there is no such user.
    #[error("the client's proof is wrong")]
    WrongProof,
    /// The server does not know the password: it is not the one that it says it is.
    #[error("the server's signature is wrong: it does not know the password's verifier")]
    WrongSignature,
    /// The server gave the exchange up.
    #[error("the server ended the SCRAM exchange: {0}")]
    Refused(String),
    /// The server wants more rounds than are done here.
    #[error("the server asks for {0} iterations, allowed are 1 to {ITERATIONS_MAX}")]
    Iterations(u32),
}

/// The printable form of a nonce's random bytes.
#[must_use]
pub fn nonce_text(random: &[u8; NONCE_BYTES]) -> String {
    message::encode(random)
}
