//! Message boundaries of a stream of typed messages, either direction.

use thiserror::Error;

/// The longest message, in bytes with its length word. PostgreSQL cannot build a longer one
/// (`MaxAllocSize`, one gigabyte less one byte).
pub const MESSAGE_BYTES_MAX: u32 = 0x3FFF_FFFF;

const HEADER: usize = 5;
pub(super) const LENGTH_WORD: u32 = 4;

/// A stream that is not one of messages.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "a message of type {tag:#04x} announces {length} bytes, allowed are 4 to {MESSAGE_BYTES_MAX}; \
     the stream is broken"
)]
pub struct FrameError {
    /// The type byte.
    pub tag: u8,
    /// The length word.
    pub length: u32,
}

/// What [`FrameScanner::advance`] came upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// The header of a message is complete; its body has that many bytes.
    Begun {
        /// The type byte.
        tag: u8,
        /// Bytes of the body.
        body_bytes: u32,
    },
    /// A piece of the present message's body, never empty.
    Body(&'a [u8]),
    /// The last byte of the message has been seen.
    Ended {
        /// The type byte.
        tag: u8,
    },
    /// All input is used.
    NeedMore,
}

/// Finds the messages in a stream that arrives in any split. It holds no payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrameScanner {
    header: [u8; HEADER],
    header_bytes: usize,
    /// What is missing of the body, once the header is complete.
    body: Option<u32>,
}

impl FrameScanner {
    /// Whether the stream stands between two messages.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.header_bytes == 0
    }

    /// Goes on to the next step and takes what it used off `input`. Call it until it answers
    /// [`Step::NeedMore`].
    ///
    /// # Errors
    /// [`FrameError`] for an impossible length; the scanner is of no use from then on.
    pub fn advance<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, FrameError> {
        let tag = self.header[0];
        match self.body {
            Some(0) => {
                self.body = None;
                self.header_bytes = 0;
                Ok(Step::Ended { tag })
            }
            Some(_) if input.is_empty() => Ok(Step::NeedMore),
            Some(missing) => {
                let wanted = usize::try_from(missing).unwrap_or(usize::MAX).min(input.len());
                let (piece, rest) = input.split_at(wanted);
                *input = rest;
                // The piece is no longer than `missing`, which is a u32.
                self.body = Some(missing - u32::try_from(wanted).unwrap_or(missing));
                Ok(Step::Body(piece))
            }
            None => self.take_header(input),
        }
    }

    fn take_header<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, FrameError> {
        let wanted = (HEADER - self.header_bytes).min(input.len());
        let (piece, rest) = input.split_at(wanted);
        *input = rest;
        self.header[self.header_bytes..self.header_bytes + wanted].copy_from_slice(piece);
        self.header_bytes += wanted;
        if self.header_bytes < HEADER {
            return Ok(Step::NeedMore);
        }
        let [tag, length @ ..] = self.header;
        let length = u32::from_be_bytes(length);
        if !(LENGTH_WORD..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(FrameError { tag, length });
        }
        let body_bytes = length - LENGTH_WORD;
        self.body = Some(body_bytes);
        Ok(Step::Begun { tag, body_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(scanner: &mut FrameScanner, mut input: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut ended, mut bodies) = (Vec::new(), Vec::new());
        loop {
            match scanner.advance(&mut input).expect("valid frames") {
                Step::Begun { .. } => {}
                Step::Body(piece) => bodies.extend_from_slice(piece),
                Step::Ended { tag } => ended.push(tag),
                Step::NeedMore => return (ended, bodies),
            }
        }
    }

    #[test]
    fn any_split_finds_the_same_messages() {
        let stream = b"A\0\0\0\x04B\0\0\0\x07xyzC\0\0\0\x05!";
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut scanner = FrameScanner::default();
                let (mut ended, mut bodies) = (Vec::new(), Vec::new());
                for part in [&stream[..first], &stream[first..second], &stream[second..]] {
                    let (tags, pieces) = all(&mut scanner, part);
                    ended.extend(tags);
                    bodies.extend(pieces);
                }
                assert_eq!(ended, b"ABC", "split at {first}, {second}");
                assert_eq!(bodies, b"xyz!");
                assert!(scanner.at_boundary());
            }
        }
    }

    #[test]
    fn the_boundary_is_exact() {
        let mut scanner = FrameScanner::default();
        for (byte, boundary) in b"D\0\0\0\x06ab".iter().zip([0, 0, 0, 0, 0, 0, 1]) {
            all(&mut scanner, &[*byte]);
            assert_eq!(scanner.at_boundary(), boundary == 1);
        }
    }

    #[test]
    fn impossible_lengths_are_errors() {
        for length in [0u32, 3, MESSAGE_BYTES_MAX + 1, u32::MAX] {
            let bytes = [&b"Q"[..], &length.to_be_bytes()].concat();
            let answer = FrameScanner::default().advance(&mut bytes.as_slice());
            assert_eq!(answer, Err(FrameError { tag: b'Q', length }));
        }
    }
}
