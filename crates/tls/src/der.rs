//! The things of a certificate that the library does not tell: when it is valid, which hash its
//! signature is made with, and whom it is of. Nothing is trusted because of what is read here:
//! validity only narrows what was pinned, the hash only names what both sides compute, and names
//! are read of a certificate that is believed already.

use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SET: u8 = 0x31;
const OCTET_STRING: u8 = 0x04;
const EXTENSIONS: u8 = 0xa3;
/// UTF8String, PrintableString, IA5String: of the kinds of text in names, those that are UTF-8.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// `rfc822Name` and `dNSName` of a GeneralName.
const ALTERNATIVE_NAMES: [u8; 2] = [0x81, 0x82];
/// `id-at-commonName` and `id-ce-subjectAltName` (RFC 5280, 4.1.2.4 and 4.2.1.6).
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 17];

/// From when to when a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Validity {
    /// `None` if it is no X.509 certificate.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Validity> {
        let mut fields = from_validity(certificate)?;
        let mut validity = Reader(fields.take(SEQUENCE)?);
        Some(Validity { from: validity.time()?, to: validity.time()? })
    }

    pub(crate) fn has_begun(self, now: UnixTime) -> bool {
        self.from <= now.as_secs()
    }

    pub(crate) fn has_ended(self, now: UnixTime) -> bool {
        self.to < now.as_secs()
    }
}

/// The fields of a certificate from its validity on.
fn from_validity<'a>(certificate: &'a CertificateDer<'_>) -> Option<Reader<'a>> {
    let mut signed = Reader(Reader(certificate).take(SEQUENCE)?);
    let mut fields = Reader(signed.take(SEQUENCE)?);
    if fields.0.first() == Some(&VERSION) {
        fields.take(VERSION)?;
    }
    // Serial number, algorithm of the signature, issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        fields.take(tag)?;
    }
    Some(fields)
}

/// Whom a certificate is of: its common names, and only if it has none, the host names and mail
/// addresses among its alternative names. PostgreSQL knows common names alone. Names that are no
/// plain text are left out, and one that hides a zero byte is such a name.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let read = || {
        let mut fields = from_validity(certificate)?;
        fields.take(SEQUENCE)?;
        let subject = common_names(fields.take(SEQUENCE)?)?;
        fields.take(SEQUENCE)?;
        if subject.is_empty() { alternative_names(fields) } else { Some(subject) }
    };
    read().unwrap_or_default()
}

fn common_names(subject: &[u8]) -> Option<Vec<String>> {
    let (mut subject, mut names) = (Reader(subject), Vec::new());
    while !subject.0.is_empty() {
        let mut set = Reader(subject.take(SET)?);
        while !set.0.is_empty() {
            let mut attribute = Reader(set.take(SEQUENCE)?);
            let kind = attribute.take(OBJECT_IDENTIFIER)?;
            let (tag, value) = attribute.any()?;
            if kind == COMMON_NAME && TEXTS.contains(&tag) {
                names.extend(plain(value));
            }
        }
    }
    Some(names)
}

/// `rest`: the fields behind the public key.
fn alternative_names(mut rest: Reader<'_>) -> Option<Vec<String>> {
    let mut names = Vec::new();
    while let Some((tag, content)) = rest.any() {
        if tag != EXTENSIONS {
            continue;
        }
        let mut extensions = Reader(Reader(content).take(SEQUENCE)?);
        while !extensions.0.is_empty() {
            let mut extension = Reader(extensions.take(SEQUENCE)?);
            let kind = extension.take(OBJECT_IDENTIFIER)?;
            // Whether it is critical stands between the two, or not.
            let (mut tag, mut value) = extension.any()?;
            if tag != OCTET_STRING {
                (tag, value) = extension.any()?;
            }
            if kind != SUBJECT_ALTERNATIVE_NAME || tag != OCTET_STRING {
                continue;
            }
            let mut list = Reader(Reader(value).take(SEQUENCE)?);
            while let Some((tag, name)) = list.any() {
                names.extend(plain(name).filter(|_| ALTERNATIVE_NAMES.contains(&tag)));
            }
        }
    }
    Some(names)
}

fn plain(name: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(name).ok()?;
    (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
}

/// The certificate's hash by the algorithm of its signature, MD5 and SHA-1 replaced by SHA-256
/// (RFC 5929, 4.1). `None` for algorithms that have no hash of their own, or are not known here.
pub(crate) fn end_point_hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let mut signed = Reader(Reader(certificate).take(SEQUENCE)?);
    signed.take(SEQUENCE)?;
    let algorithm = Reader(signed.take(SEQUENCE)?).take(OBJECT_IDENTIFIER)?;
    Some(match algorithm {
        // PKCS #1: MD5, SHA-1, SHA-256, SHA-384, SHA-512 with RSA; ECDSA with SHA-1 and SHA-256.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4 | 5 | 11]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => Sha256::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => Sha384::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

/// Reads elements one after the other; `None` at whatever is not well-formed.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The content of the next element, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }

    /// Tag and content of the next element.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (first, rest) = self.0.split_first()?;
        let (short, rest) = rest.split_first()?;
        let (length, rest) = match *short {
            length @ 0..=0x7f => (usize::from(length), rest),
            long @ 0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(long & 3))?;
                (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*first, content))
    }

    /// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280, 4.1.2.5).
    fn time(&mut self) -> Option<u64> {
        let tag = *self.0.first()?;
        let text = std::str::from_utf8(self.take(tag)?).ok()?.strip_suffix('Z')?;
        let (year, rest) = match tag {
            UTC_TIME => {
                let (year, rest) = text.split_at_checked(2)?;
                let year: u64 = year.parse().ok()?;
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => {
                let (year, rest) = text.split_at_checked(4)?;
                (year.parse().ok()?, rest)
            }
            _ => return None,
        };
        if rest.len() != 10 || !rest.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let two = |at: usize| rest.get(at..at + 2)?.parse::<u64>().ok();
        let days = days_since_1970(year, two(0)?, two(2)?)?;
        Some(days * 86_400 + two(4)? * 3600 + two(6)? * 60 + two(8)?)
    }
}

/// Days from 1970-01-01, in the Gregorian calendar.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let before = BEFORE.get(usize::try_from(month.checked_sub(1)?).ok()?)?;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let years = year.checked_sub(1970)?;
    // Leap days of the years before this one, counted from the year 1.
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let leap_days = leaps(year - 1) - leaps(1969);
    Some(years * 365 + leap_days + before + u64::from(leap && month > 2) + day.checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(tag: u8, text: &str) -> Option<u64> {
        let mut bytes = vec![tag, u8::try_from(text.len()).expect("short")];
        bytes.extend(text.as_bytes());
        Reader(&bytes).time()
    }

    #[test]
    fn times_are_read() {
        assert_eq!(time(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(time(UTC_TIME, "261127021407Z"), Some(1_795_745_647));
        assert_eq!(time(UTC_TIME, "000301000000Z"), Some(951_868_800));
        assert_eq!(time(GENERALIZED_TIME, "21000301000000Z"), Some(4_107_542_400));
        for wrong in ["", "Z", "261327021407Z", "260027021407Z", "26112702140Z", "x61127021407Z"] {
            assert_eq!(time(UTC_TIME, wrong), None, "{wrong}");
        }
        assert_eq!(time(SEQUENCE, "700101000000Z"), None);
    }

    #[test]
    fn what_is_no_certificate_has_no_validity() {
        for bytes in [&b""[..], &[0x30], &[0x30, 0x84, 1, 1, 1, 1], &[0x30, 2, 0x30, 9]] {
            assert_eq!(Validity::of(&CertificateDer::from(bytes)), None);
            assert_eq!(end_point_hash(&CertificateDer::from(bytes)), None);
            assert_eq!(names(&CertificateDer::from(bytes)), Vec::<String>::new());
        }
    }
}
