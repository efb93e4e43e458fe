//! The proxy's own login at a server.

use std::collections::BTreeMap;
use std::time::Duration;

use pgproto::md5::Md5Hash;
use pgproto::scram::{
    ClientBinding, ClientExchange, ClientSecret, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError,
};
use pgproto::wire::{
    Authentication, CancelKey, LOGIN_MESSAGE_BYTES_MAX, SaslInitial, field_of, parameter_status,
    password_message, sasl_response, sqlstate_of, startup_packet,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::client::nonce;
use super::messages::{Message, MessageError, Messages};
use super::secret::{Channel, Credentials, Secret};

/// Protocol 3.2 brings cancel keys that nobody guesses; a server that knows only 3.0 says so, and
/// goes on with that.
const PROTOCOL_MINOR: u16 = 2;
/// More parameters are reported by no server.
const PARAMETERS_MAX: usize = 1_000;

/// A session that is ready for its first statement.
#[derive(Debug)]
pub struct SignedIn {
    /// What the server reported of its parameters.
    pub parameters: BTreeMap<String, String>,
    /// What cancels the session's statements, if the server has that.
    pub key: Option<CancelKey>,
    /// What came behind ReadyForQuery; mostly nothing.
    pub unread: Vec<u8>,
}

/// A server's ErrorResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRefusal {
    /// Its SQLSTATE.
    pub sqlstate: String,
    /// Its text.
    pub message: String,
    /// Its body as it came, to be handed on.
    pub body: Vec<u8>,
}

impl ServerRefusal {
    pub(super) fn new(body: &[u8]) -> ServerRefusal {
        let message = field_of(body, b'M').unwrap_or_default();
        ServerRefusal {
            sqlstate: sqlstate_of(body).unwrap_or_default().to_owned(),
            message: String::from_utf8_lossy(message).into_owned(),
            body: body.to_vec(),
        }
    }
}

impl std::fmt::Display for ServerRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)
    }
}

/// What to make of a failed login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The server cannot now; later, or another one, may.
    TryAgain,
    /// The credentials are wrong, or not enough.
    Credentials,
    /// The server does not want this session, such as for a database that is not there.
    Final,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// Parameters that cannot be said.
    #[error("the startup parameters are too long, or have a zero byte in them")]
    Startup,
    /// The connection, or a message that cannot be.
    #[error("the login of {user} failed")]
    Message {
        /// Who was signing in.
        user: String,
        /// What happened.
        #[source]
        source: MessageError,
    },
    /// It took too long.
    #[error("the server did not let {user} in within {limit:?}")]
    Timeout {
        /// Who was signing in.
        user: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The server said no.
    #[error("the server refused {user}: {refusal}")]
    Refused {
        /// Who was signing in.
        user: String,
        /// What it said.
        refusal: ServerRefusal,
    },
    /// What is known of the user is not what the server asks for.
    #[error(
        "the server asks {user} for {asked}, and {known} is known: let it store what the proxy's \
         users file or auth_query has, or give the proxy the password"
    )]
    Unusable {
        /// Who was signing in.
        user: String,
        /// What the server wants.
        asked: &'static str,
        /// What there is.
        known: &'static str,
    },
    /// A password in clear text is not sent over a network without TLS.
    #[error("the server asks {user} for the password in clear text: use TLS or scram-sha-256")]
    ClearText {
        /// Who was signing in.
        user: String,
    },
    /// SCRAM failed.
    #[error("SCRAM with the server failed for {user}")]
    Scram {
        /// Who was signing in.
        user: String,
        /// Why.
        #[source]
        source: ScramError,
    },
    /// A message that has no place here.
    #[error("the server sent a message of type {tag:#04x} out of its turn while {user} signed in")]
    Unexpected {
        /// Who was signing in.
        user: String,
        /// Its type.
        tag: u8,
    },
}

impl SignInError {
    /// What to make of it.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            SignInError::Message { source, .. } => match source {
                MessageError::Broken(_) | MessageError::Closed => Verdict::TryAgain,
                MessageError::Length { .. } | MessageError::Content(_) => Verdict::Final,
            },
            SignInError::Timeout { .. } => Verdict::TryAgain,
            SignInError::Refused { refusal, .. } => match refusal.sqlstate.as_str() {
                // Starting or stopping, no slot left, told to end.
                "57P03" | "53300" | "57P01" | "57P02" => Verdict::TryAgain,
                state if state.starts_with("28") => Verdict::Credentials,
                _ => Verdict::Final,
            },
            SignInError::Unusable { .. }
            | SignInError::ClearText { .. }
            | SignInError::Scram { .. } => Verdict::Credentials,
            SignInError::Startup | SignInError::Unexpected { .. } => Verdict::Final,
        }
    }
}

/// Opens a session on a connection: from the startup packet to ReadyForQuery. `parameters` has no
/// `user`, which the credentials name. Bounded by `limit`.
///
/// Cancel safety: none, the connection is of no use afterwards; nor is it after an error.
///
/// # Errors
/// [`SignInError`]; its verdict says what to make of it.
pub async fn sign_in<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    parameters: &[(&str, &str)],
    credentials: &Credentials,
    channel: &Channel,
    limit: Duration,
) -> Result<SignedIn, SignInError> {
    let user = &credentials.user;
    let all: Vec<_> = [("user", user.as_str())].iter().chain(parameters).copied().collect();
    let startup = startup_packet(PROTOCOL_MINOR, &all).ok_or(SignInError::Startup)?;
    let mut unread = Vec::new();
    let messages = Messages::new(stream, &mut unread);
    let login = Session { messages, credentials, channel };
    let signed_in = timeout(limit, login.run(&startup)).await;
    let timed_out = SignInError::Timeout { user: user.clone(), limit };
    let (parameters, key) = signed_in.unwrap_or(Err(timed_out))?;
    Ok(SignedIn { parameters, key, unread })
}

struct Session<'a, S> {
    messages: Messages<'a, S>,
    credentials: &'a Credentials,
    channel: &'a Channel,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<'_, S> {
    async fn run(
        mut self,
        startup: &[u8],
    ) -> Result<(BTreeMap<String, String>, Option<CancelKey>), SignInError> {
        self.send(startup).await?;
        let first = self.next().await?;
        if self.authentication(&first)? != Authentication::Ok {
            self.prove(&first).await?;
            let last = self.next().await?;
            if self.authentication(&last)? != Authentication::Ok {
                return Err(self.unexpected(&last));
            }
        }
        let (mut parameters, mut key) = (BTreeMap::new(), None);
        loop {
            let message = self.next().await?;
            match message.tag {
                b'S' if parameters.len() < PARAMETERS_MAX => {
                    let parameter = parameter_status(&message.body);
                    let (name, value) = parameter.map_err(|error| self.failed(error.into()))?;
                    parameters.insert(name, value);
                }
                b'K' => key = CancelKey::parse(&message.body),
                b'Z' => return Ok((parameters, key)),
                _ => return Err(self.unexpected(&message)),
            }
        }
    }

    /// Gives the proof that the server asks for.
    async fn prove(&mut self, asked: &Message) -> Result<(), SignInError> {
        let user = &self.credentials.user;
        let secret = &self.credentials.secret;
        match self.authentication(asked)? {
            Authentication::CleartextPassword => {
                let Secret::Password(password) = secret else {
                    return Err(self.unusable("the password"));
                };
                if !self.channel.confidential {
                    return Err(SignInError::ClearText { user: user.clone() });
                }
                let answer = Zeroizing::new(password_message(password.expose()));
                self.send(&answer).await
            }
            Authentication::Md5Password { salt } => {
                let hash = match secret {
                    Secret::Password(password) => &Md5Hash::of(user, password.expose()),
                    Secret::Md5Hash(hash) => hash,
                    Secret::None | Secret::ScramKeys(_) => {
                        return Err(self.unusable("the password hashed with MD5"));
                    }
                };
                self.send(&password_message(&hash.answer(salt))).await
            }
            Authentication::Sasl { mechanisms } => self.scram(&mechanisms).await,
            Authentication::Other(_) => Err(self.unusable("a method that is not supported")),
            Authentication::Ok | Authentication::SaslContinue(_) | Authentication::SaslFinal(_) => {
                Err(self.unexpected(asked))
            }
        }
    }

    async fn scram(&mut self, offered: &[&str]) -> Result<(), SignInError> {
        let plus = offered.contains(&SCRAM_SHA_256_PLUS);
        if !plus && !offered.contains(&SCRAM_SHA_256) {
            return Err(self.unusable("a SASL mechanism that is not supported"));
        }
        let secret = match &self.credentials.secret {
            Secret::Password(password) => ClientSecret::Password(password.expose()),
            Secret::ScramKeys(keys) => ClientSecret::Keys(keys),
            Secret::None | Secret::Md5Hash(_) => return Err(self.unusable("a proof by SCRAM")),
        };
        let binding = match &self.channel.end_point {
            Some(hash) if plus => ClientBinding::EndPoint(hash.clone()),
            Some(_) => ClientBinding::NotOffered,
            None => ClientBinding::Unsupported,
        };
        let exchange = ClientExchange::new(nonce().map_err(|e| self.failed(e))?, binding);
        let first = exchange.first();
        let initial =
            SaslInitial { mechanism: exchange.mechanism(), response: Some(first.as_bytes()) };
        self.send(&initial.to_bytes()).await?;

        let message = self.next().await?;
        let Authentication::SaslContinue(server_first) = self.authentication(&message)? else {
            return Err(self.unexpected(&message));
        };
        let (proof, waiting) =
            exchange.prove(server_first, secret).map_err(|source| self.scram_failed(source))?;
        self.send(&sasl_response(proof.as_bytes())).await?;

        let message = self.next().await?;
        let Authentication::SaslFinal(server_final) = self.authentication(&message)? else {
            return Err(self.unexpected(&message));
        };
        waiting.check(server_final).map_err(|source| self.scram_failed(source))
    }

    /// The next message that counts here: an error ends the login; notices, and that the server
    /// speaks an older minor version, are passed over.
    async fn next(&mut self) -> Result<Message, SignInError> {
        loop {
            let message = self.messages.next(LOGIN_MESSAGE_BYTES_MAX).await;
            let message = message.map_err(|source| self.failed(source))?;
            match message.tag {
                b'N' | b'v' => {}
                b'E' => {
                    let refusal = ServerRefusal::new(&message.body);
                    let user = self.credentials.user.clone();
                    return Err(SignInError::Refused { user, refusal });
                }
                _ => return Ok(message),
            }
        }
    }

    fn authentication<'m>(&self, message: &'m Message) -> Result<Authentication<'m>, SignInError> {
        if message.tag != b'R' {
            return Err(self.unexpected(message));
        }
        Authentication::parse(&message.body).map_err(|error| self.failed(error.into()))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), SignInError> {
        let sent = self.messages.send(bytes).await;
        sent.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: MessageError) -> SignInError {
        SignInError::Message { user: self.credentials.user.clone(), source }
    }

    fn scram_failed(&self, source: ScramError) -> SignInError {
        SignInError::Scram { user: self.credentials.user.clone(), source }
    }

    fn unusable(&self, asked: &'static str) -> SignInError {
        let known = self.credentials.secret.kind();
        SignInError::Unusable { user: self.credentials.user.clone(), asked, known }
    }

    fn unexpected(&self, message: &Message) -> SignInError {
        SignInError::Unexpected { user: self.credentials.user.clone(), tag: message.tag }
    }
}
