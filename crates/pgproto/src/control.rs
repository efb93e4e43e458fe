//! `global/pg_control`: the control file of a data directory, PostgreSQL 14 to 18.
//!
//! The layout is that of `ControlFileData` in PostgreSQL's `catalog/pg_control.h` on a 64-bit
//! little-endian machine (x86-64, arm64); a file of the other byte order shows as an unknown
//! version.

use thiserror::Error;
use types::{ControlState, Lsn, Timeline};

/// The shortest prefix of the file that holds every field of every known layout, in bytes.
pub const CONTROL_BYTES_MIN: usize = 296;

/// Bytes of a shutdown checkpoint record: header 24, data header 2, `CheckPoint` 88 (14 to 18).
const CHECKPOINT_RECORD_BYTES: u64 = 24 + 2 + 88;
/// Header of a WAL page, in bytes.
const SHORT_PAGE_HEADER_BYTES: u64 = 24;
/// Header of the first page of a WAL segment, in bytes.
const LONG_PAGE_HEADER_BYTES: u64 = 40;
/// Records are aligned to this many bytes.
const RECORD_ALIGNMENT: u64 = 8;

/// Why a control file could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ControlError {
    /// Fewer bytes than the layout needs.
    #[error("pg_control has {bytes} bytes, at least {CONTROL_BYTES_MIN} are needed")]
    Short {
        /// What the file has.
        bytes: usize,
    },
    /// A `pg_control_version` that this build does not know.
    #[error(
        "pg_control has version {version}; known are 1300, 1700 and 1800 (PostgreSQL 14 to 18)"
    )]
    UnknownVersion {
        /// What the file says.
        version: u32,
    },
    /// The checksum does not match the contents: a torn read, or a damaged file.
    #[error("pg_control's checksum is wrong: stored {stored:08x}, computed {computed:08x}")]
    BadChecksum {
        /// What the file says.
        stored: u32,
        /// What its contents give.
        computed: u32,
    },
    /// A field has a value that PostgreSQL never writes.
    #[error("pg_control's field {field} has the impossible value {value}")]
    BadField {
        /// Its name.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// The fields of a control file that are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// Identifies the cluster; shown in decimal.
    pub system_identifier: u64,
    /// The layout: 1300 (14 to 16), 1700 (17), 1800 (18).
    pub pg_control_version: u32,
    /// The catalogue's version.
    pub catalog_version: u32,
    /// The cluster's state.
    pub state: ControlState,
    /// Position of the latest checkpoint record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint would begin.
    pub redo: Lsn,
    /// The checkpoint's timeline.
    pub timeline: Timeline,
    /// The timeline before it, if the checkpoint ended a recovery; else the same.
    pub previous_timeline: Timeline,
    /// Replay must reach this position before the copy is consistent; 0 on a primary.
    pub min_recovery: Lsn,
    /// The timeline of `min_recovery`; 0 on a primary.
    pub min_recovery_timeline: Timeline,
    /// Where a backup taken from a standby, or a rewind, ends: set until replay has come there.
    pub backup_end: Lsn,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// 0 without data checksums.
    pub data_checksum_version: u32,
    /// `max_connections`; the floor for a standby, as are the next four.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_xacts: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_xact: i32,
    /// Size of a WAL page, in bytes.
    pub wal_block_size: u32,
    /// Size of a WAL segment, in bytes.
    pub wal_segment_size: u32,
}

impl ControlFile {
    /// Reads the bytes of `global/pg_control`.
    ///
    /// # Errors
    /// A short file, an unknown version, a wrong checksum (try again: PostgreSQL may have been
    /// writing), or an impossible field.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlError> {
        if bytes.len() < CONTROL_BYTES_MIN {
            return Err(ControlError::Short { bytes: bytes.len() });
        }
        let f = Fields(bytes);
        let version = f.u32(8);
        // 18 put `default_char_signedness` before the nonce, which moved the checksum.
        let crc_at = match version {
            1300 | 1700 => 288,
            1800 => 292,
            version => return Err(ControlError::UnknownVersion { version }),
        };
        let (stored, computed) = (f.u32(crc_at), crc32c(&bytes[..crc_at]));
        if stored != computed {
            return Err(ControlError::BadChecksum { stored, computed });
        }
        let control = ControlFile {
            system_identifier: f.u64(0),
            pg_control_version: version,
            catalog_version: f.u32(12),
            state: state(f.u32(16))?,
            checkpoint: Lsn(f.u64(32)),
            redo: Lsn(f.u64(40)),
            timeline: Timeline(f.u32(48)),
            previous_timeline: Timeline(f.u32(52)),
            min_recovery: Lsn(f.u64(136)),
            min_recovery_timeline: Timeline(f.u32(144)),
            backup_end: Lsn(f.u64(160)),
            wal_log_hints: bytes[176] != 0,
            max_connections: f.i32(180),
            max_worker_processes: f.i32(184),
            max_wal_senders: f.i32(188),
            max_prepared_xacts: f.i32(192),
            max_locks_per_xact: f.i32(196),
            wal_block_size: power_of_two("xlog_blcksz", f.u32(224))?,
            wal_segment_size: power_of_two("xlog_seg_size", f.u32(228))?,
            data_checksum_version: f.u32(252),
        };
        Ok(control)
    }

    /// The end of the latest checkpoint record, which after a clean stop is the end of the log.
    #[must_use]
    pub fn checkpoint_end(&self) -> Lsn {
        let (page, segment) = (u64::from(self.wal_block_size), u64::from(self.wal_segment_size));
        let mut at = self.checkpoint.0;
        let mut left = CHECKPOINT_RECORD_BYTES.next_multiple_of(RECORD_ALIGNMENT);
        loop {
            let room = page - at % page;
            if left <= room {
                return Lsn(at + left);
            }
            left -= room;
            at += room;
            at += if at.is_multiple_of(segment) {
                LONG_PAGE_HEADER_BYTES
            } else {
                SHORT_PAGE_HEADER_BYTES
            };
        }
    }

    /// Whether pg_rewind can work on the copy.
    #[must_use]
    pub const fn can_rewind(&self) -> bool {
        self.data_checksum_version != 0 || self.wal_log_hints
    }
}

/// The caller has checked the length against `CONTROL_BYTES_MIN`, and all offsets are below it.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        let bytes = self.0[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes)
    }

    fn i32(&self, at: usize) -> i32 {
        self.u32(at).cast_signed()
    }

    fn u64(&self, at: usize) -> u64 {
        let bytes = self.0[at..at + 8].try_into().expect("eight bytes");
        u64::from_le_bytes(bytes)
    }
}

fn state(value: u32) -> Result<ControlState, ControlError> {
    Ok(match value {
        0 => ControlState::StartingUp,
        1 => ControlState::ShutDown,
        2 => ControlState::ShutDownInRecovery,
        3 => ControlState::ShuttingDown,
        4 => ControlState::InCrashRecovery,
        5 => ControlState::InArchiveRecovery,
        6 => ControlState::InProduction,
        other => {
            return Err(ControlError::BadField { field: "state", value: u64::from(other) });
        }
    })
}

fn power_of_two(field: &'static str, value: u32) -> Result<u32, ControlError> {
    if value.is_power_of_two() && value >= 1024 {
        return Ok(value);
    }
    Err(ControlError::BadField { field, value: u64::from(value) })
}

/// CRC-32C (Castagnoli), reflected, as PostgreSQL's `COMP_CRC32C`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        let index = (crc ^ u32::from(*byte)) & 0xFF;
        crc = TABLE[index as usize] ^ (crc >> 8);
    }
    !crc
}

static TABLE: [u32; 256] = table();

#[allow(clippy::cast_possible_truncation)] // the index is below 256
const fn table() -> [u32; 256] {
    let mut table = [0_u32; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with the fields that `parse` checks, for each layout.
    fn file(version: u32) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        let crc_at = if version == 1800 { 292 } else { 288 };
        bytes[0..8].copy_from_slice(&7_711_489_607_175_335_743_u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[16..20].copy_from_slice(&1_u32.to_le_bytes());
        bytes[32..40].copy_from_slice(&0x0300_0028_u64.to_le_bytes());
        bytes[48..52].copy_from_slice(&4_u32.to_le_bytes());
        bytes[224..228].copy_from_slice(&8192_u32.to_le_bytes());
        bytes[228..232].copy_from_slice(&0x0100_0000_u32.to_le_bytes());
        bytes[252..256].copy_from_slice(&1_u32.to_le_bytes());
        let crc = crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn every_known_layout_is_read() {
        for version in [1300, 1700, 1800] {
            let control = ControlFile::parse(&file(version)).expect("well formed");
            assert_eq!(control.system_identifier, 7_711_489_607_175_335_743);
            assert_eq!(control.state, ControlState::ShutDown);
            assert_eq!(control.timeline, Timeline(4));
            assert!(control.can_rewind());
            assert_eq!(control.checkpoint_end(), Lsn(0x0300_00A0));
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let good = file(1300);
        assert_eq!(ControlFile::parse(&good[..100]), Err(ControlError::Short { bytes: 100 }));
        for at in 0..288 {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            assert!(ControlFile::parse(&bytes).is_err(), "byte {at}");
        }
        let mut newer = good;
        newer[8..12].copy_from_slice(&1903_u32.to_le_bytes());
        assert_eq!(ControlFile::parse(&newer), Err(ControlError::UnknownVersion { version: 1903 }));
    }

    #[test]
    fn the_end_of_a_checkpoint_skips_page_headers() {
        let mut control = ControlFile::parse(&file(1300)).expect("well formed");
        control.checkpoint = Lsn(0x0300_2000 - 120);
        assert_eq!(control.checkpoint_end(), Lsn(0x0300_2000));
        control.checkpoint = Lsn(0x0300_2000 - 40);
        assert_eq!(control.checkpoint_end(), Lsn(0x0300_2000 + 24 + 80));
        control.checkpoint = Lsn(0x0400_0000 - 40);
        assert_eq!(control.checkpoint_end(), Lsn(0x0400_0000 + 40 + 80));
    }
}
