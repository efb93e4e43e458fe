//! The messages of a login, both ways (PostgreSQL's protocol, "Start-up" and "Message Formats").

use super::startup::zero_terminated;

/// The longest message of a server that is read before a session is ready, in bytes of its body:
/// errors and parameters are far shorter.
pub const LOGIN_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The longest password, in bytes with its end. Tokens that stand in for passwords fit in.
pub const PASSWORD_BYTES_MAX: usize = 8 * 1024;
/// The longest SASL message of a client, in bytes (PostgreSQL's `PG_MAX_SASL_MESSAGE_LENGTH`).
pub const SASL_BYTES_MAX: usize = 1024;

/// More mechanisms are offered by nobody.
const MECHANISMS_MAX: usize = 16;
/// The suffix of mechanisms with channel binding (RFC 5802, section 4).
const PLUS: &str = "-PLUS";
const WORD: usize = 4;

/// What a server says about authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// It is done.
    Ok,
    /// The password as it is.
    CleartextPassword,
    /// The password hashed with this salt.
    Md5Password {
        /// The salt.
        salt: [u8; 4],
    },
    /// One of these SASL mechanisms.
    Sasl {
        /// Their names.
        mechanisms: Vec<&'a str>,
    },
    /// A SASL message, and another one is awaited.
    SaslContinue(&'a [u8]),
    /// The last SASL message.
    SaslFinal(&'a [u8]),
    /// A method that is not known here (Kerberos, GSSAPI, SSPI).
    Other(u32),
}

/// A message of a login that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a malformed {0} message")]
pub struct LoginMessageError(pub &'static str);

impl<'a> Authentication<'a> {
    /// Reads the body of a message of type `R`.
    ///
    /// # Errors
    /// It is malformed.
    pub fn parse(body: &'a [u8]) -> Result<Authentication<'a>, LoginMessageError> {
        let malformed = LoginMessageError("Authentication");
        let (code, rest) = body.split_first_chunk::<WORD>().ok_or(malformed)?;
        let alone = |message| if rest.is_empty() { Ok(message) } else { Err(malformed) };
        match u32::from_be_bytes(*code) {
            0 => alone(Authentication::Ok),
            3 => alone(Authentication::CleartextPassword),
            5 => {
                let salt = rest.try_into().map_err(|_| malformed)?;
                Ok(Authentication::Md5Password { salt })
            }
            10 => Ok(Authentication::Sasl { mechanisms: mechanisms(rest).ok_or(malformed)? }),
            11 => Ok(Authentication::SaslContinue(rest)),
            12 => Ok(Authentication::SaslFinal(rest)),
            other => Ok(Authentication::Other(other)),
        }
    }

    /// The whole message.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let code = |code: u32, rest: &[u8]| message(b'R', &[&code.to_be_bytes(), rest]);
        match self {
            Authentication::Ok => code(0, b""),
            Authentication::CleartextPassword => code(3, b""),
            Authentication::Md5Password { salt } => code(5, salt),
            Authentication::Sasl { mechanisms } => {
                let names: Vec<&[u8]> =
                    mechanisms.iter().flat_map(|name| [name.as_bytes(), b"\0"]).collect();
                code(10, &[&names.concat()[..], b"\0"].concat())
            }
            Authentication::SaslContinue(data) => code(11, data),
            Authentication::SaslFinal(data) => code(12, data),
            Authentication::Other(other) => code(*other, b""),
        }
    }
}

fn mechanisms(mut rest: &[u8]) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    loop {
        let (name, after) = zero_terminated(rest)?;
        if name.is_empty() {
            return after.is_empty().then_some(names);
        }
        if names.len() == MECHANISMS_MAX {
            return None;
        }
        names.push(std::str::from_utf8(name).ok()?);
        rest = after;
    }
}

/// A server's offer of SASL mechanisms (the body of a message of type `R`) without those that bind
/// to the channel, as a whole message; `None` if it is no such offer. A relay that ends TLS on one
/// of its two sides hands this on: the client cannot bind to a channel that is not its own, and
/// libpq ends a login without TLS that offers it.
#[must_use]
pub fn without_plus(body: &[u8]) -> Option<Vec<u8>> {
    let Ok(Authentication::Sasl { mechanisms }) = Authentication::parse(body) else {
        return None;
    };
    let mechanisms = mechanisms.into_iter().filter(|name| !name.ends_with(PLUS)).collect();
    Some(Authentication::Sasl { mechanisms }.to_bytes())
}

/// What a client sends first of a SASL exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslInitial<'a> {
    /// The mechanism that it chose.
    pub mechanism: &'a str,
    /// Its first message, if it has one.
    pub response: Option<&'a [u8]>,
}

impl<'a> SaslInitial<'a> {
    /// Reads the body of a message of type `p`, of which only the caller knows that it is one.
    ///
    /// # Errors
    /// It is malformed.
    pub fn parse(body: &'a [u8]) -> Result<SaslInitial<'a>, LoginMessageError> {
        let malformed = LoginMessageError("SASLInitialResponse");
        let (mechanism, rest) = zero_terminated(body).ok_or(malformed)?;
        let (length, rest) = rest.split_first_chunk::<WORD>().ok_or(malformed)?;
        let response = match i32::from_be_bytes(*length) {
            -1 if rest.is_empty() => None,
            length if usize::try_from(length) == Ok(rest.len()) => Some(rest),
            _ => return Err(malformed),
        };
        let mechanism = std::str::from_utf8(mechanism).map_err(|_| malformed)?;
        Ok(SaslInitial { mechanism, response })
    }

    /// The whole message.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let response = self.response.unwrap_or_default();
        let length = self.response.map_or(-1, |r| i32::try_from(r.len()).unwrap_or(i32::MAX));
        message(b'p', &[self.mechanism.as_bytes(), b"\0", &length.to_be_bytes(), response])
    }
}

/// A SASLResponse, whole.
#[must_use]
pub fn sasl_response(data: &[u8]) -> Vec<u8> {
    message(b'p', &[data])
}

/// A PasswordMessage, whole.
#[must_use]
pub fn password_message(password: &[u8]) -> Vec<u8> {
    message(b'p', &[password, b"\0"])
}

/// The password in the body of a PasswordMessage.
///
/// # Errors
/// It does not end where its text ends.
pub fn password(body: &[u8]) -> Result<&[u8], LoginMessageError> {
    match zero_terminated(body) {
        Some((password, [])) => Ok(password),
        Some(_) | None => Err(LoginMessageError("Password")),
    }
}

/// Name and value in the body of a ParameterStatus.
///
/// # Errors
/// It is not two texts.
pub fn parameter_status(body: &[u8]) -> Result<(String, String), LoginMessageError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let parsed = zero_terminated(body).and_then(|(name, rest)| match zero_terminated(rest)? {
        (value, []) => Some((text(name), text(value))),
        _ => None,
    });
    parsed.ok_or(LoginMessageError("ParameterStatus"))
}

fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![tag, 0, 0, 0, 0];
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    let length = u32::try_from(bytes.len() - 1).unwrap_or(u32::MAX);
    bytes[1..=WORD].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: usize = 5;

    #[test]
    fn what_a_server_says_is_read_as_it_is_built() {
        for said in [
            Authentication::Ok,
            Authentication::CleartextPassword,
            Authentication::Md5Password { salt: *b"salt" },
            Authentication::Sasl { mechanisms: vec!["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"] },
            Authentication::SaslContinue(b"r=x"),
            Authentication::SaslFinal(b""),
            Authentication::Other(7),
        ] {
            let bytes = said.to_bytes();
            assert_eq!(usize::from(bytes[4]), bytes.len() - 1);
            assert_eq!(Authentication::parse(&bytes[HEADER..]), Ok(said));
        }
        assert_eq!(Authentication::Ok.to_bytes(), b"R\0\0\0\x08\0\0\0\0");
        let sasl = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
        let offer = Authentication::Sasl { mechanisms: vec!["SCRAM-SHA-256"] };
        assert_eq!(offer.to_bytes(), sasl);
        let many = b"x\0".repeat(MECHANISMS_MAX + 1);
        for wrong in [
            &b""[..],
            b"\0\0\0",
            b"\0\0\0\0x",
            b"\0\0\0\x05abc",
            b"\0\0\0\x0ax",
            b"\0\0\0\x0ax\0",
            b"\0\0\0\x0ax\0\0y",
            &[b"\0\0\0\x0a", &many[..], b"\0"].concat(),
        ] {
            assert!(Authentication::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_a_client_says_is_read_as_it_is_built() {
        for response in [None, Some(&b""[..]), Some(b"n,,n=,r=x")] {
            let first = SaslInitial { mechanism: "SCRAM-SHA-256", response };
            let bytes = first.to_bytes();
            assert_eq!(SaslInitial::parse(&bytes[HEADER..]), Ok(first));
        }
        for wrong in [&b""[..], b"x", b"x\0\0\0\0", b"x\0\0\0\0\x02a", b"x\0\xff\xff\xff\xffa"] {
            assert!(SaslInitial::parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(sasl_response(b"c=biws"), b"p\0\0\0\x0ac=biws");
        assert_eq!(password_message(b"hush"), b"p\0\0\0\x09hush\0");
        assert_eq!(password(b"hush\0"), Ok(&b"hush"[..]));
        assert!(password(b"hush").is_err() && password(b"hu\0sh\0").is_err());
        let parameter = ("TimeZone".to_owned(), "UTC".to_owned());
        assert_eq!(parameter_status(b"TimeZone\0UTC\0"), Ok(parameter));
        assert!(parameter_status(b"TimeZone\0UTC").is_err());
    }

    #[test]
    fn an_offer_loses_what_binds_to_the_channel() {
        let mechanisms = vec!["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"];
        let offer = Authentication::Sasl { mechanisms }.to_bytes();
        let plain = Authentication::Sasl { mechanisms: vec!["SCRAM-SHA-256"] }.to_bytes();
        assert_eq!(without_plus(&offer[HEADER..]), Some(plain));
        assert_eq!(without_plus(&Authentication::Ok.to_bytes()[HEADER..]), None);
    }
}
