//! The server's side.

use super::keys::{ClientKeys, KEY_BYTES, Key, Verifier};
use super::message::{attribute, decode, encode, is_nonce, text};
use super::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError};

/// The beginning: the client has been offered [`ServerExchange::mechanisms`].
#[derive(Debug)]
pub struct ServerExchange {
    verifier: Verifier,
    /// Whether there is such a user.
    known: bool,
    nonce: String,
    end_point: Option<Vec<u8>>,
}

/// The client owes its proof.
#[derive(Debug)]
pub struct AwaitingProof {
    verifier: Verifier,
    known: bool,
    /// The client's part and ours.
    nonce: String,
    /// What `c=` must say.
    binding: String,
    /// The first two messages as they are signed.
    signed: String,
}

/// The client has proven that it knows the password.
#[derive(Debug)]
pub struct Proven {
    /// What it is told last, so that it knows us.
    pub server_final: String,
    /// With these one can sign in wherever the same verifier is stored.
    pub keys: ClientKeys,
}

impl ServerExchange {
    /// Begins for a user with a verifier. `end_point` is the hash of our certificate, if the client
    /// came over TLS and channel binding is to be offered.
    #[must_use]
    pub fn new(verifier: Verifier, nonce: String, end_point: Option<Vec<u8>>) -> ServerExchange {
        ServerExchange { verifier, known: true, nonce, end_point }
    }

    /// Begins for a user who is not known, or has no verifier: it goes as any other, and fails at
    /// its end. `secret` must stay the same, or the user is known by a salt that changes.
    #[must_use]
    pub fn mock(
        user: &str,
        secret: &[u8],
        nonce: String,
        end_point: Option<Vec<u8>>,
    ) -> ServerExchange {
        ServerExchange { verifier: Verifier::mock(user, secret), known: false, nonce, end_point }
    }

    /// What to offer, the better first.
    #[must_use]
    pub fn mechanisms(&self) -> &'static [&'static str] {
        match self.end_point {
            Some(_) => &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256],
            None => &[SCRAM_SHA_256],
        }
    }

    /// Takes the mechanism that the client chose and its first message; gives the answer.
    ///
    /// # Errors
    /// The message is none, or what it says about channel binding does not fit.
    pub fn answer(
        self,
        mechanism: &str,
        client_first: &[u8],
    ) -> Result<(String, AwaitingProof), ScramError> {
        if !self.mechanisms().contains(&mechanism) {
            return Err(ScramError::Mechanism);
        }
        let plus = mechanism == SCRAM_SHA_256_PLUS;
        let first = text(client_first)?;
        let (flag, rest) = attribute(first, "", "it is empty")?;
        let bound = self.binding(flag, plus)?;
        let rest = rest.ok_or(ScramError::Malformed("it ends after its flag"))?;
        if rest.starts_with('a') {
            return Err(ScramError::Malformed("authorization identities are not supported"));
        }
        let bare =
            rest.strip_prefix(',').ok_or(ScramError::Malformed("its header is not closed"))?;
        // Who connects is said by the startup packet; this name is not looked at.
        let (_, rest) = attribute(bare, "n=", "a user name is expected")?;
        let rest = rest.ok_or(ScramError::Malformed("the nonce is missing"))?;
        let (client_nonce, _) = attribute(rest, "r=", "a nonce is expected")?;
        if !is_nonce(client_nonce) {
            return Err(ScramError::Malformed("characters that no nonce has"));
        }
        let nonce = format!("{client_nonce}{}", self.nonce);
        let salt = encode(&self.verifier.salt);
        let answer = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let mut header = format!("{flag},,").into_bytes();
        header.extend(bound.unwrap_or_default());
        let waiting = AwaitingProof {
            verifier: self.verifier,
            known: self.known,
            nonce,
            binding: encode(&header),
            signed: format!("{bare},{answer}"),
        };
        Ok((answer, waiting))
    }

    /// What follows the header in `c=`, by the client's flag; PostgreSQL's rules
    /// (`read_client_first_message` in `auth-scram.c`).
    fn binding(&self, flag: &str, plus: bool) -> Result<Option<Vec<u8>>, ScramError> {
        let wrong = |what| Err(ScramError::ChannelBinding(what));
        match flag {
            "n" | "y" if plus => wrong("the client chose it and then sends none"),
            "y" if self.end_point.is_some() => wrong(
                "the client supports it but thinks that the server does not; is there a relay?",
            ),
            "n" | "y" => Ok(None),
            "p=tls-server-end-point" if plus => Ok(self.end_point.clone()),
            "p=tls-server-end-point" => wrong("the client sends it and did not choose it"),
            _ if flag.starts_with("p=") => wrong("only tls-server-end-point is supported"),
            _ => Err(ScramError::Malformed("an unknown flag of channel binding")),
        }
    }
}

impl AwaitingProof {
    /// Takes the client's last message.
    ///
    /// # Errors
    /// [`ScramError::WrongProof`] for a wrong password or an unknown user, else what is wrong with
    /// the message.
    pub fn check(self, client_final: &[u8]) -> Result<Proven, ScramError> {
        let last = text(client_final)?;
        let (binding, rest) = attribute(last, "c=", "channel binding is expected")?;
        if binding != self.binding {
            return Err(ScramError::ChannelBinding("it is not of this connection"));
        }
        let rest = rest.ok_or(ScramError::Malformed("the nonce is missing"))?;
        let (nonce, _) = attribute(rest, "r=", "a nonce is expected")?;
        if nonce != self.nonce {
            return Err(ScramError::Malformed("the nonce is another one"));
        }
        let (unproven, proof) =
            last.rsplit_once(",p=").ok_or(ScramError::Malformed("the proof is missing"))?;
        let proof = decode(proof).and_then(|proof| <[u8; KEY_BYTES]>::try_from(proof).ok());
        let proof = Key::new(proof.ok_or(ScramError::Malformed("the proof is of another length"))?);
        let signed = format!("{},{unproven}", self.signed);
        let client_key = self.verifier.stored_key.signature(&signed).xor(proof.bytes());
        let fits = client_key.hashed() == self.verifier.stored_key;
        if !(fits && self.known) {
            return Err(ScramError::WrongProof);
        }
        let server_key = self.verifier.server_key.clone();
        let signature = server_key.signature(&signed);
        Ok(Proven {
            server_final: format!("v={}", encode(signature.bytes())),
            keys: ClientKeys { client_key, server_key },
        })
    }
}
