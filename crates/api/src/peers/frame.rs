//! What stands on a connection: frames, each with a proof of who wrote it and where it belongs.
//!
//! A frame is two bytes of length (big-endian, of the content), the content as JSON, and an HMAC
//! over the frame's number in its direction and the content. The number itself is not sent: both
//! sides count.

use hmac::Mac;
use serde::{Deserialize, Serialize};
use types::Heartbeat;

use super::proof::{HmacSha256, KEY_BYTES};

/// The longest content of a frame in bytes; a longer one ends the connection.
pub const FRAME_MAX: usize = 4096;

const LENGTH_BYTES: usize = 2;

// Every permitted length can be written.
const _: () = assert!(FRAME_MAX <= u16::MAX as usize);

/// One message. Unknown fields are ignored, so that later versions can say more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Frame {
    /// A heartbeat of the dialer.
    Beat {
        /// Its number on this connection.
        seq: u64,
        /// What it says.
        said: Heartbeat,
    },
    /// The answer to the beat of that number.
    Echo {
        /// The beat's number.
        seq: u64,
    },
    /// Something of a later version; skipped.
    #[serde(other)]
    Unknown,
}

/// Why a frame cannot be written or read. After it nothing on the connection can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It is longer than [`FRAME_MAX`].
    #[error("a frame of {length} bytes is longer than {FRAME_MAX}")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// Not written by whom it should be, or not the next one.
    #[error("a frame was changed, replayed, reordered or forged on the way")]
    Forged,
    /// Proven, and still not readable.
    #[error("a frame does not read as one of {}", super::PROTOCOL)]
    Malformed {
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// Writes the frames of one direction.
pub(super) struct Sealer {
    key: HmacSha256,
    number: u64,
}

impl Sealer {
    pub(super) fn new(key: HmacSha256) -> Sealer {
        Sealer { key, number: 0 }
    }

    /// The bytes of the next frame.
    pub(super) fn seal(&mut self, frame: &Frame) -> Result<Vec<u8>, FrameError> {
        let content =
            serde_json::to_vec(frame).map_err(|source| FrameError::Malformed { source })?;
        let length = u16::try_from(content.len()).ok().filter(|l| usize::from(*l) <= FRAME_MAX);
        let length = length.ok_or(FrameError::TooLong { length: content.len() })?;
        let proof = mac(&self.key, self.number, &content).finalize().into_bytes();
        self.number += 1;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&content);
        bytes.extend_from_slice(&proof);
        Ok(bytes)
    }
}

/// Reads the frames of one direction.
pub(super) struct Opener {
    key: HmacSha256,
    number: u64,
}

impl Opener {
    pub(super) fn new(key: HmacSha256) -> Opener {
        Opener { key, number: 0 }
    }

    /// Takes the next frame from the front of `buffer`, if it is all there.
    pub(super) fn open(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Frame>, FrameError> {
        let Some((length, rest)) = buffer.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > FRAME_MAX {
            return Err(FrameError::TooLong { length });
        }
        let Some((content, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let Some((proof, _)) = rest.split_at_checked(KEY_BYTES) else { return Ok(None) };
        // In constant time.
        let proven = mac(&self.key, self.number, content).verify_slice(proof);
        proven.map_err(|_| FrameError::Forged)?;
        self.number += 1;
        let frame = serde_json::from_slice(content);
        let frame = frame.map_err(|source| FrameError::Malformed { source })?;
        buffer.drain(..LENGTH_BYTES + length + KEY_BYTES);
        Ok(Some(frame))
    }
}

fn mac(key: &HmacSha256, number: u64, content: &[u8]) -> HmacSha256 {
    key.clone().chain_update(number.to_be_bytes()).chain_update(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmac::KeyInit;
    use types::Term;

    fn pair() -> (Sealer, Opener) {
        let key = HmacSha256::new_from_slice(b"k").expect("any length");
        (Sealer::new(key.clone()), Opener::new(key))
    }

    fn beat(seq: u64) -> Frame {
        Frame::Beat { seq, said: Heartbeat { term: Term(7), suspects: None } }
    }

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        let (mut sealer, mut opener) = pair();
        let frames = [beat(1), Frame::Echo { seq: 9 }, beat(2)];
        let bytes: Vec<u8> = frames.iter().flat_map(|f| sealer.seal(f).expect("short")).collect();
        let (mut buffer, mut got) = (Vec::new(), Vec::new());
        for byte in bytes {
            buffer.push(byte);
            got.extend(opener.open(&mut buffer).expect("genuine"));
        }
        assert_eq!((got.as_slice(), buffer.len()), (frames.as_slice(), 0));
    }

    #[test]
    fn a_frame_that_was_changed_anywhere_is_refused() {
        let (mut sealer, _) = pair();
        let genuine = sealer.seal(&beat(1)).expect("short");
        // Past the length, whose change makes another frame of it, or one that never ends.
        for position in LENGTH_BYTES..genuine.len() {
            let (_, mut opener) = pair();
            let mut changed = genuine.clone();
            changed[position] ^= 1;
            let refused = opener.open(&mut changed);
            assert!(matches!(refused, Err(FrameError::Forged)), "{position}: {refused:?}");
        }
        let (_, mut opener) = pair();
        let mut shorter = genuine.clone();
        shorter[1] -= 1;
        assert!(matches!(opener.open(&mut shorter), Err(FrameError::Forged)));
    }

    #[test]
    fn a_frame_that_was_replayed_reordered_or_left_out_is_refused() {
        let (mut sealer, _) = pair();
        let frames = [beat(1), beat(2), beat(3)].map(|f| sealer.seal(&f).expect("short"));
        for order in [[0, 0], [1, 0], [0, 2]] {
            let (_, mut opener) = pair();
            let mut buffer: Vec<u8> = order.iter().flat_map(|i| frames[*i].clone()).collect();
            let first = opener.open(&mut buffer);
            let refused = if order[0] == 0 {
                assert!(matches!(first, Ok(Some(Frame::Beat { seq: 1, .. }))), "{first:?}");
                opener.open(&mut buffer)
            } else {
                first
            };
            assert!(matches!(refused, Err(FrameError::Forged)), "{order:?}: {refused:?}");
        }
    }

    #[test]
    fn length_is_bounded_both_ways() {
        let (mut sealer, mut opener) = pair();
        let leader = "x".repeat(FRAME_MAX).as_str().into();
        let suspects = Some(types::Suspicion { leader, key: types::Revision(1) });
        let long = Frame::Beat { seq: 1, said: Heartbeat { term: Term(1), suspects } };
        assert!(matches!(sealer.seal(&long), Err(FrameError::TooLong { .. })));
        // Refused by its length alone, before anything of it is kept.
        let mut buffer = 4097_u16.to_be_bytes().to_vec();
        assert!(matches!(opener.open(&mut buffer), Err(FrameError::TooLong { length: 4097 })));
    }

    #[test]
    fn a_later_versions_words_are_skipped() {
        let read = |text: &str| serde_json::from_str::<Frame>(text).expect("readable");
        let said = r#"{"kind":"beat","seq":1,"said":{"term":7,"mood":"good"},"extra":[1]}"#;
        assert_eq!(read(said), beat(1));
        assert_eq!(read(r#"{"kind":"shout","loud":true}"#), Frame::Unknown);
    }
}
