//! Who may use the endpoints that change something.

/// User and password of `restapi.authentication`.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `username`.
    pub username: String,
    /// `password`.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    /// Without the password (I6).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The rules for endpoints that change something; the others are open to all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// Basic authentication, if configured.
    pub authentication: Option<Credentials>,
    /// Refuse when `authentication` is missing: set when the listener is not on loopback and the
    /// file has a `pgherd:` section, that is, was not taken over from Patroni as it is.
    pub refuse_without_authentication: bool,
    /// Over TLS, refuse who has shown no certificate.
    pub client_certificate: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// 403.
    #[error("Access is denied: set restapi.authentication, or let restapi.listen be on loopback")]
    Denied,
    /// 403.
    #[error("client certificate required")]
    NoCertificate,
    /// 401.
    #[error("no auth header received")]
    NoHeader,
    /// 401.
    #[error("not authenticated")]
    WrongCredentials,
}

impl Refusal {
    pub(crate) const fn status(self) -> u16 {
        match self {
            Refusal::Denied | Refusal::NoCertificate => 403,
            Refusal::NoHeader | Refusal::WrongCredentials => 401,
        }
    }
}

impl Access {
    /// Checks the value of the `Authorization` header, and whether a certificate was shown (`None`
    /// without TLS), in Patroni's order.
    pub(crate) fn check(
        &self,
        header: Option<&[u8]>,
        certified: Option<bool>,
    ) -> Result<(), Refusal> {
        if self.client_certificate && certified == Some(false) {
            return Err(Refusal::NoCertificate);
        }
        let Some(expected) = &self.authentication else {
            return if self.refuse_without_authentication { Err(Refusal::Denied) } else { Ok(()) };
        };
        let header = header.ok_or(Refusal::NoHeader)?;
        let wanted = base64(format!("{}:{}", expected.username, expected.password).as_bytes());
        let (scheme, given) = header.split_at_checked(6).ok_or(Refusal::WrongCredentials)?;
        let fits = scheme.eq_ignore_ascii_case(b"basic ")
            && equal_in_constant_time(given.trim_ascii(), wanted.as_bytes());
        if fits { Ok(()) } else { Err(Refusal::WrongCredentials) }
    }
}

/// Base64 with padding (RFC 4648, 4). For credentials the expected value is encoded instead of
/// decoding the given one: no input is parsed.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for i in 0..4 {
            if i <= chunk.len() {
                let index = (bits >> (18 - 6 * i)) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// Looks at every byte, wherever the first difference is.
pub(crate) fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        for (plain, text) in [("", ""), ("a", "YQ=="), ("ab", "YWI="), ("abc", "YWJj")] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn credentials_are_checked() {
        let authentication = Some(Credentials { username: "ab".into(), password: "cd".into() });
        assert!(!format!("{authentication:?}").contains("cd"));
        let access = Access {
            authentication,
            refuse_without_authentication: true,
            client_certificate: true,
        };
        assert_eq!(access.check(None, Some(false)), Err(Refusal::NoCertificate));
        assert_eq!(access.check(None, Some(true)), Err(Refusal::NoHeader));
        assert_eq!(access.check(None, None), Err(Refusal::NoHeader));
        assert_eq!(access.check(Some(b"Basic YWI6Y2Q="), None), Ok(()));
        assert_eq!(access.check(Some(b"basic  YWI6Y2Q= "), None), Ok(()));
        for wrong in [&b""[..], b"Basic ", b"Basic YWI6Y2U=", b"Bearer YWI6Y2Q="] {
            assert_eq!(access.check(Some(wrong), None), Err(Refusal::WrongCredentials));
        }
        assert_eq!(Access::default().check(None, None), Ok(()));
        let closed = Access { refuse_without_authentication: true, ..Access::default() };
        assert_eq!(closed.check(None, None), Err(Refusal::Denied));
    }
}
