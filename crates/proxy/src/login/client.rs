//! A client's login at the proxy.

use std::io;
use std::time::Duration;

use config::AuthMethod;
use pgproto::md5::Md5Hash;
use pgproto::scram::{NONCE_BYTES, ScramError, ServerExchange, Verifier, nonce_text, salt_of};
use pgproto::wire::{
    Authentication, ErrorResponse, PASSWORD_BYTES_MAX, SASL_BYTES_MAX, SaslInitial, Severity,
    password,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::messages::{MessageError, Messages};
use super::secret::{Channel, Credentials, Password, Secret, StoredSecret};

/// Who wants in, and how.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// Whom the client says it is.
    pub user: &'a str,
    /// How it has to show that.
    pub method: AuthMethod,
    /// What is stored of its password; `None`: nobody knows such a user.
    pub stored: Option<&'a StoredSecret>,
    /// What is known of the connection.
    pub channel: &'a Channel,
    /// From this come the salts of users without a verifier. It is secret, and the same at every
    /// login, or one could tell who is not known.
    pub salt_secret: &'a [u8],
    /// How long the whole login takes at most.
    pub limit: Duration,
}

/// Why a client is not let in. The words for the client are PostgreSQL's.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// A wrong password, or no such user.
    #[error("password authentication failed for user \"{user}\"")]
    Password {
        /// The user.
        user: String,
    },
    /// No certificate, or another one's.
    #[error("certificate authentication failed for user \"{user}\"")]
    Certificate {
        /// The user.
        user: String,
    },
    /// A password in clear text would go over the network.
    #[error("a password in clear text is taken over TLS only, from user \"{user}\"")]
    ClearText {
        /// The user.
        user: String,
    },
    /// The client does not keep to the protocol of SCRAM, or was led to a false server.
    #[error(transparent)]
    Scram(ScramError),
    /// The client does not keep to the protocol.
    #[error("expected a password response, got a message of type {tag:#04x}")]
    Unexpected {
        /// The message's type.
        tag: u8,
    },
    /// The connection, or a message that cannot be.
    #[error("the login broke off")]
    Message(#[from] MessageError),
    /// It took too long.
    #[error("canceling authentication due to timeout")]
    Timeout,
}

impl Rejected {
    /// Whether another secret than the stored one was shown: it may have been changed since.
    #[must_use]
    pub fn doubts_stored(&self) -> bool {
        matches!(self, Rejected::Password { .. })
    }

    /// The SQLSTATE for the client, as PostgreSQL has it.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Rejected::Password { .. } => "28P01",
            Rejected::Certificate { .. }
            | Rejected::ClearText { .. }
            | Rejected::Scram(ScramError::ChannelBinding(_)) => "28000",
            Rejected::Scram(_) | Rejected::Unexpected { .. } | Rejected::Message(_) => "08P01",
            Rejected::Timeout => "57014",
        }
    }

    /// The last message to the client; `None` if it is gone.
    #[must_use]
    pub fn last_word(&self) -> Option<Vec<u8>> {
        let mut message = self.to_string();
        if let Rejected::Message(error) = self {
            match error {
                MessageError::Broken(_) | MessageError::Closed => return None,
                MessageError::Length { .. } | MessageError::Content(_) => {
                    message = error.to_string();
                }
            }
        }
        let (sqlstate, severity) = (self.sqlstate(), Severity::Fatal);
        Some(ErrorResponse { severity, sqlstate, message: &message, hint: None }.to_bytes())
    }
}

/// A client that has shown who it is.
#[derive(Debug)]
pub struct Shown {
    /// What the proxy may sign in with at a server.
    pub credentials: Credentials,
    /// The end of the login, AuthenticationOk with it: the client gets it together with what
    /// follows, which saves it a wake-up.
    pub last: Vec<u8>,
}

/// Has a client show who it is, up to AuthenticationOk, which is the caller's to send. `unread` is
/// what was read of the connection and is not yet taken, before and after.
///
/// Cancel safety: none, the connection is of no use afterwards.
///
/// # Errors
/// [`Rejected`]; the caller says its last word and closes.
pub async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    unread: &mut Vec<u8>,
    login: Login<'_>,
) -> Result<Shown, Rejected> {
    let messages = Messages::new(stream, unread);
    let exchange = Exchange { messages, login };
    timeout(login.limit, exchange.run()).await.unwrap_or(Err(Rejected::Timeout))
}

struct Exchange<'a, S> {
    messages: Messages<'a, S>,
    login: Login<'a>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Exchange<'_, S> {
    async fn run(mut self) -> Result<Shown, Rejected> {
        let Login { user, method, stored, channel, .. } = self.login;
        let kept = || stored.map_or(Secret::None, StoredSecret::as_secret);
        let mut last = Vec::new();
        let secret = match method {
            AuthMethod::Trust => kept(),
            AuthMethod::Cert => {
                if !channel.certified.iter().any(|name| name == user) {
                    return Err(Rejected::Certificate { user: user.to_owned() });
                }
                kept()
            }
            AuthMethod::Password => self.clear_text().await?,
            // As PostgreSQL does: a verifier of SCRAM cannot be asked for by MD5.
            AuthMethod::Md5 => match stored {
                Some(StoredSecret::Password(password)) => {
                    self.md5(&Md5Hash::of(user, password.expose())).await?;
                    kept()
                }
                Some(StoredSecret::Md5Hash(hash)) => {
                    self.md5(hash).await?;
                    kept()
                }
                Some(StoredSecret::Verifier(_)) | None => self.scram(&mut last).await?,
            },
            AuthMethod::Scram => self.scram(&mut last).await?,
        };
        last.extend(Authentication::Ok.to_bytes());
        Ok(Shown { credentials: Credentials { user: user.to_owned(), secret }, last })
    }

    async fn clear_text(&mut self) -> Result<Secret, Rejected> {
        let Login { user, stored, channel, .. } = self.login;
        if !channel.confidential {
            return Err(Rejected::ClearText { user: user.to_owned() });
        }
        self.messages.send(&Authentication::CleartextPassword.to_bytes()).await?;
        let body = self.answer(PASSWORD_BYTES_MAX).await?;
        let given = Password::new(password(&body).map_err(MessageError::from)?);
        let fits = match stored {
            Some(StoredSecret::Password(password)) => *password == given,
            Some(StoredSecret::Md5Hash(hash)) => *hash == Md5Hash::of(user, given.expose()),
            Some(StoredSecret::Verifier(verifier)) => verifier.is_of(given.expose()),
            None => false,
        };
        // PostgreSQL lets nobody in by an empty password, whatever is stored.
        if !fits || given.expose().is_empty() {
            return Err(self.wrong_password());
        }
        Ok(Secret::Password(given))
    }

    async fn md5(&mut self, hash: &Md5Hash) -> Result<(), Rejected> {
        let mut salt = [0; 4];
        draw(&mut salt)?;
        self.messages.send(&Authentication::Md5Password { salt }.to_bytes()).await?;
        let body = self.answer(PASSWORD_BYTES_MAX).await?;
        let answer = password(&body).map_err(MessageError::from)?;
        if hash.is_answer(salt, answer) { Ok(()) } else { Err(self.wrong_password()) }
    }

    /// `last` takes the server's last message of SCRAM, which goes with AuthenticationOk.
    async fn scram(&mut self, last: &mut Vec<u8>) -> Result<Secret, Rejected> {
        let Login { user, stored, channel, salt_secret, .. } = self.login;
        let (nonce, end_point) = (nonce()?, channel.end_point.clone());
        let exchange = match stored {
            Some(StoredSecret::Verifier(verifier)) => {
                ServerExchange::new(verifier.clone(), nonce, end_point)
            }
            Some(StoredSecret::Password(password)) => {
                let salt = salt_of(user, salt_secret);
                let verifier = Verifier::of_password(password.expose(), salt);
                ServerExchange::new(verifier, nonce, end_point)
            }
            Some(StoredSecret::Md5Hash(_)) | None => {
                ServerExchange::mock(user, salt_secret, nonce, end_point)
            }
        };
        let mechanisms = exchange.mechanisms().to_vec();
        self.messages.send(&Authentication::Sasl { mechanisms }.to_bytes()).await?;
        let body = self.answer(SASL_BYTES_MAX).await?;
        let initial = SaslInitial::parse(&body).map_err(MessageError::from)?;
        let first = initial.response.unwrap_or_default();
        let (answer, waiting) =
            exchange.answer(initial.mechanism, first).map_err(Rejected::Scram)?;
        self.messages.send(&Authentication::SaslContinue(answer.as_bytes()).to_bytes()).await?;
        let body = self.answer(SASL_BYTES_MAX).await?;
        let proven = waiting.check(&body).map_err(|error| match error {
            ScramError::WrongProof => self.wrong_password(),
            other => Rejected::Scram(other),
        })?;
        last.extend(Authentication::SaslFinal(proven.server_final.as_bytes()).to_bytes());
        Ok(match stored {
            // The keys are of a salt of our own; the password fits every server's.
            Some(StoredSecret::Password(password)) => Secret::Password(password.clone()),
            Some(StoredSecret::Verifier(_) | StoredSecret::Md5Hash(_)) | None => {
                Secret::ScramKeys(proven.keys)
            }
        })
    }

    /// The client's answer, whatever is asked: a message of type `p`.
    async fn answer(&mut self, limit: usize) -> Result<Zeroizing<Vec<u8>>, Rejected> {
        let message = self.messages.next(limit).await?;
        match message.tag {
            b'p' => Ok(message.body),
            // It says goodbye, such as psql before it asks for the password.
            b'X' => Err(Rejected::Message(MessageError::Closed)),
            tag => Err(Rejected::Unexpected { tag }),
        }
    }

    fn wrong_password(&self) -> Rejected {
        Rejected::Password { user: self.login.user.to_owned() }
    }
}

/// A nonce of SCRAM.
pub(super) fn nonce() -> Result<String, MessageError> {
    let mut random = [0; NONCE_BYTES];
    draw(&mut random)?;
    Ok(nonce_text(&random))
}

/// Fills it from the system's generator, which does not fail on a system that works.
fn draw(bytes: &mut [u8]) -> Result<(), MessageError> {
    getrandom::fill(bytes)
        .map_err(|error| MessageError::Broken(io::Error::other(error.to_string())))
}
