//! Names of WAL files.

use types::{Lsn, Timeline};

/// The name of the segment that holds a position, without its timeline: the last 16 digits. `None`
/// where the size is none.
pub(crate) fn place_in_log(at: Lsn, segment_size: u64) -> Option<String> {
    let number = at.0.checked_div(segment_size)?;
    let in_log = (1_u64 << 32).checked_div(segment_size).filter(|each| *each > 0)?;
    Some(format!("{:08X}{:08X}", number / in_log, number % in_log))
}

/// The whole name.
pub(crate) fn segment_name(timeline: Timeline, at: Lsn, segment_size: u32) -> Option<String> {
    Some(format!("{:08X}{}", timeline.0, place_in_log(at, segment_size.into())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_named_as_postgresql_names_them() {
        let name = |at, size| segment_name(Timeline(10), Lsn(at), size);
        let mb = 1 << 20;
        assert_eq!(name(0x1_6000_0028, 16 * mb).as_deref(), Some("0000000A0000000100000060"));
        assert_eq!(name(0x1_6000_0028, mb).as_deref(), Some("0000000A0000000100000600"));
        assert_eq!(name(0xffff_ffff, 1 << 30).as_deref(), Some("0000000A0000000000000003"));
        assert_eq!(name(5, 0), None);
    }
}
