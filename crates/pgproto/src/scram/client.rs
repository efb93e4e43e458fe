//! The client's side.

use super::keys::{ClientKeys, KEY_BYTES, Key};
use super::message::{attribute, decode, encode, is_nonce, text};
use super::{ITERATIONS_MAX, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError};

/// What a reason of the server's is cut to.
const REASON_CHARS_MAX: usize = 200;

/// What the client says about channel binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientBinding {
    /// It has none: there is no TLS, or the certificate's hash is not known.
    Unsupported,
    /// It could, but the server does not offer it.
    NotOffered,
    /// It binds to the server's certificate: its hash (`tls-server-end-point`).
    EndPoint(Vec<u8>),
}

/// What the client knows.
#[derive(Clone, Copy)]
pub enum ClientSecret<'a> {
    /// The password.
    Password(&'a [u8]),
    /// The keys for this server's verifier.
    Keys(&'a ClientKeys),
}

impl std::fmt::Debug for ClientSecret<'_> {
    /// Without the secret (I6).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ClientSecret::Password(_) => "Password(***)",
            ClientSecret::Keys(_) => "Keys(***)",
        })
    }
}

/// The beginning.
#[derive(Debug)]
pub struct ClientExchange {
    nonce: String,
    binding: ClientBinding,
}

/// The server owes its signature.
#[derive(Debug)]
pub struct AwaitingSignature {
    signature: Key,
}

impl ClientExchange {
    /// Begins.
    #[must_use]
    pub fn new(nonce: String, binding: ClientBinding) -> ClientExchange {
        ClientExchange { nonce, binding }
    }

    /// The mechanism to choose.
    #[must_use]
    pub fn mechanism(&self) -> &'static str {
        match self.binding {
            ClientBinding::EndPoint(_) => SCRAM_SHA_256_PLUS,
            ClientBinding::Unsupported | ClientBinding::NotOffered => SCRAM_SHA_256,
        }
    }

    /// The first message.
    #[must_use]
    pub fn first(&self) -> String {
        format!("{}{}", self.header(), self.bare())
    }

    /// Answers the server's first message with the proof.
    ///
    /// # Errors
    /// The message is none, or asks for too many rounds.
    pub fn prove(
        self,
        server_first: &[u8],
        secret: ClientSecret<'_>,
    ) -> Result<(String, AwaitingSignature), ScramError> {
        let first = text(server_first)?;
        let (nonce, rest) = attribute(first, "r=", "a nonce is expected")?;
        let longer = nonce.strip_prefix(&self.nonce).is_some_and(is_nonce);
        if !longer {
            return Err(ScramError::Malformed("the nonce does not begin with ours"));
        }
        let rest = rest.ok_or(ScramError::Malformed("the salt is missing"))?;
        let (salt, rest) = attribute(rest, "s=", "a salt is expected")?;
        let salt = decode(salt).ok_or(ScramError::Malformed("the salt is not base64"))?;
        let rest = rest.ok_or(ScramError::Malformed("the iterations are missing"))?;
        let (iterations, _) = attribute(rest, "i=", "iterations are expected")?;
        let iterations = iterations.parse().map_err(|_| ScramError::Malformed("no number"))?;
        if !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(ScramError::Iterations(iterations));
        }
        let derived;
        let keys = match secret {
            ClientSecret::Keys(keys) => keys,
            ClientSecret::Password(password) => {
                derived = ClientKeys::derive(password, &salt, iterations);
                &derived
            }
        };
        let mut bound = self.header().as_bytes().to_vec();
        if let ClientBinding::EndPoint(hash) = &self.binding {
            bound.extend(hash);
        }
        let unproven = format!("c={},r={nonce}", encode(&bound));
        let signed = format!("{},{first},{unproven}", self.bare());
        let signature = keys.client_key.hashed().signature(&signed);
        let proof = keys.client_key.xor(signature.bytes());
        let answer = format!("{unproven},p={}", encode(proof.bytes()));
        Ok((answer, AwaitingSignature { signature: keys.server_key.signature(&signed) }))
    }

    fn header(&self) -> &'static str {
        match self.binding {
            ClientBinding::Unsupported => "n,,",
            ClientBinding::NotOffered => "y,,",
            ClientBinding::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    /// PostgreSQL takes the user from the startup packet, so its name is left out, as libpq does.
    fn bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }
}

impl AwaitingSignature {
    /// Takes the server's last message.
    ///
    /// # Errors
    /// The server gave up, or does not know the verifier.
    pub fn check(self, server_final: &[u8]) -> Result<(), ScramError> {
        let last = text(server_final)?;
        if let Some(reason) = last.strip_prefix("e=") {
            let reason = reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX);
            return Err(ScramError::Refused(reason.collect()));
        }
        let (signature, _) = attribute(last, "v=", "a signature is expected")?;
        let signature = decode(signature).and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes).ok());
        let signature =
            signature.ok_or(ScramError::Malformed("the signature's length is wrong"))?;
        if Key::new(signature) == self.signature { Ok(()) } else { Err(ScramError::WrongSignature) }
    }
}
