//! What a server says to a client that has a connection of its own, with the little that must not
//! pass as it is.

use pgproto::wire::{CancelKey, Cut, Cutter, FrameError, is_standby_not_awaited};

/// A notice, or a key, of ordinary size.
const WHOLE_BYTES_MAX: usize = 16 * 1024;
const HEADER: usize = 5;

/// The server's way down, as one session sees it.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    cutter: Cutter,
    /// The beginning of a message that is not there as a whole yet.
    held: Vec<u8>,
    /// The server's key, once it has named it.
    pub(crate) key: Option<CancelKey>,
}

/// Why a server's stream ends here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It makes no sense.
    Broken(FrameError),
    /// The wait for a synchronous standby was cancelled, by whomever.
    StandbyNotAwaited,
}

impl Answers {
    /// Takes bytes of the server; what is for the client goes to `out`, with our own key in the
    /// place of the server's.
    ///
    /// # Errors
    /// [`Stop`]; what `out` holds is for the client all the same.
    pub(crate) fn take(
        &mut self,
        bytes: &[u8],
        our_key: &CancelKey,
        out: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        let held = std::mem::take(&mut self.held);
        let all = if held.is_empty() { bytes } else { &[&held, bytes].concat() };
        let mut rest = all;
        while let Some(cut) = self.cutter.next(&mut rest, need).map_err(Stop::Broken)? {
            match cut {
                Cut::Begin { tag: b'K', bytes, rest: 0 } => {
                    self.key = CancelKey::parse(&bytes[HEADER..]);
                    out.extend(our_key.to_message());
                }
                Cut::Begin { tag: b'N', bytes, .. } if is_standby_not_awaited(&bytes[HEADER..]) => {
                    return Err(Stop::StandbyNotAwaited);
                }
                Cut::Begin { bytes, .. } | Cut::More { bytes, .. } => out.extend_from_slice(bytes),
            }
        }
        self.held = rest.to_vec();
        Ok(())
    }
}

fn need(tag: u8, _total: usize) -> usize {
    if matches!(tag, b'K' | b'N') { WHOLE_BYTES_MAX } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag], &length.to_be_bytes()[..], body].concat()
    }

    #[test]
    fn keys_are_exchanged_and_all_else_passes_in_any_split() {
        let (theirs, ours) = (
            CancelKey { process: 7, secret: vec![1; 4] },
            CancelKey { process: 9, secret: vec![2; 4] },
        );
        let (before, after) = (message(b'R', &[0; 4]), message(b'D', &[3; 300]));
        let notice = message(b'N', b"SNOTICE\0Rother\0\0");
        let stream = [&before[..], &theirs.to_message(), &notice, &after].concat();
        let wanted = [&before[..], &ours.to_message(), &notice, &after].concat();
        for piece_bytes in [1, 4, 11, stream.len()] {
            let (mut answers, mut out) = (Answers::default(), Vec::new());
            for piece in stream.chunks(piece_bytes) {
                answers.take(piece, &ours, &mut out).unwrap();
            }
            assert_eq!(out, wanted, "{piece_bytes}");
            assert_eq!(answers.key.as_ref(), Some(&theirs));
        }
    }

    #[test]
    fn a_cancelled_wait_for_a_standby_stops_everything_behind_it() {
        let key = CancelKey { process: 9, secret: vec![2; 4] };
        let warning = message(b'N', b"SWARNING\0C01000\0RSyncRepWaitForLSN\0\0");
        let (before, after) = (message(b'D', b"x"), message(b'C', b"COMMIT\0"));
        let (mut answers, mut out) = (Answers::default(), Vec::new());
        let stopped = answers.take(&[&before[..], &warning, &after].concat(), &key, &mut out);
        assert_eq!((stopped, out), (Err(Stop::StandbyNotAwaited), before));
    }
}
