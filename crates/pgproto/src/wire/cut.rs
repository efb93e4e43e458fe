//! Messages cut out of a stream, as whole as the reader needs them.

use super::frame::{FrameError, LENGTH_WORD, MESSAGE_BYTES_MAX};

/// Type byte and length word.
const HEADER: usize = 5;

/// A piece of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut<'a> {
    /// A message begins: its header and at least as much of it as was asked for.
    Begin {
        /// The type byte.
        tag: u8,
        /// The bytes that are there, header included.
        bytes: &'a [u8],
        /// How many more follow as [`Cut::More`]; 0 if the message is whole.
        rest: usize,
    },
    /// More of a message that has begun, never empty.
    More {
        /// The type byte of that message.
        tag: u8,
        /// The bytes.
        bytes: &'a [u8],
        /// How many more follow.
        rest: usize,
    },
}

/// Cuts a stream into messages. It holds no bytes: what is not used yet stays with the caller, who
/// puts new bytes behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cutter {
    tag: u8,
    missing: usize,
}

impl Cutter {
    /// Whether the stream, up to what was cut, stands between two messages.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.missing == 0
    }

    /// The next piece, taken off `input`, or `None` if more bytes are needed first. `need` says, by
    /// type byte and length with the header, how many bytes of a message must be there before it
    /// begins; more than its length means all of it. So `input` never keeps more than `need` says,
    /// and a header.
    ///
    /// # Errors
    /// [`FrameError`] for an impossible length; the stream is of no use from then on.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        need: impl Fn(u8, usize) -> usize,
    ) -> Result<Option<Cut<'a>>, FrameError> {
        if self.missing > 0 {
            if input.is_empty() {
                return Ok(None);
            }
            let bytes = take(input, self.missing);
            self.missing -= bytes.len();
            return Ok(Some(Cut::More { tag: self.tag, bytes, rest: self.missing }));
        }
        let Some(([tag, length @ ..], _)) = input.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (tag, length) = (*tag, u32::from_be_bytes(*length));
        if !(LENGTH_WORD..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(FrameError { tag, length });
        }
        // At most 1 GiB, which any usize of ours holds.
        let total = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1);
        if input.len() < need(tag, total).clamp(HEADER, total) {
            return Ok(None);
        }
        let bytes = take(input, total);
        (self.tag, self.missing) = (tag, total - bytes.len());
        Ok(Some(Cut::Begin { tag, bytes, rest: self.missing }))
    }
}

fn take<'a>(input: &mut &'a [u8], wanted: usize) -> &'a [u8] {
    let (bytes, rest) = input.split_at(wanted.min(input.len()));
    *input = rest;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body_bytes: usize) -> Vec<u8> {
        let length = u32::try_from(body_bytes + 4).unwrap();
        let body = vec![tag.to_ascii_lowercase(); body_bytes];
        [&[tag], &length.to_be_bytes()[..], &body].concat()
    }

    /// The stream in pieces of `piece_bytes`: what was cut, and the most that was kept meanwhile.
    fn cut(stream: &[u8], piece_bytes: usize, need: usize) -> (Vec<(u8, Vec<u8>)>, usize) {
        let mut cutter = Cutter::default();
        let (mut kept, mut messages, mut kept_max) = (Vec::new(), Vec::new(), 0);
        for piece in stream.chunks(piece_bytes) {
            kept.extend_from_slice(piece);
            let mut input = kept.as_slice();
            while let Some(cut) = cutter.next(&mut input, |_, _| need).unwrap() {
                match cut {
                    Cut::Begin { tag, bytes, rest } => {
                        assert!(bytes.len() >= need || rest == 0, "{bytes:?}");
                        messages.push((tag, bytes.to_vec()));
                    }
                    Cut::More { tag, bytes, .. } => {
                        let last: &mut (u8, Vec<u8>) = messages.last_mut().unwrap();
                        assert_eq!(last.0, tag);
                        last.1.extend_from_slice(bytes);
                    }
                }
            }
            kept = input.to_vec();
            kept_max = kept_max.max(kept.len());
        }
        assert!(kept.is_empty() && cutter.at_boundary());
        (messages, kept_max)
    }

    #[test]
    fn any_split_and_any_need_give_the_same_messages() {
        let parts = [message(b'A', 0), message(b'B', 7), message(b'C', 300), message(b'D', 1)];
        let wanted: Vec<_> = parts.iter().map(|part| (part[0], part.clone())).collect();
        for piece_bytes in [1, 2, 5, 6, 11, 1000] {
            for need in [0, 5, 9, 100, usize::MAX] {
                let (messages, kept_max) = cut(&parts.concat(), piece_bytes, need);
                assert_eq!(messages, wanted, "{piece_bytes}, {need}");
                assert!(kept_max <= need.max(HEADER) || need == usize::MAX, "{kept_max}");
            }
        }
    }

    #[test]
    fn impossible_lengths_are_errors() {
        for length in [0_u32, 3, MESSAGE_BYTES_MAX + 1, u32::MAX] {
            let bytes = [&b"Q"[..], &length.to_be_bytes()].concat();
            let answer = Cutter::default().next(&mut bytes.as_slice(), |_, _| 0);
            assert_eq!(answer, Err(FrameError { tag: b'Q', length }));
        }
    }
}
