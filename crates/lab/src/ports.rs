//! Loopback ports.

use std::net::{Ipv4Addr, TcpListener};

/// The highest port a block may end at.
const LAST_PORT: u16 = 65_535;

/// Blocks that [`free_block`] tries before it gives up.
const BLOCKS_TRIED_MAX: u16 = 200;

/// Whether somebody could listen on this loopback port now. Listening is what is tried, so a port
/// whose last user is still in TIME_WAIT counts as free, as it is for servers that set
/// `SO_REUSEADDR`.
#[must_use]
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The first port of `base..base + length` that is taken, if any.
#[must_use]
pub fn first_taken(base: u16, length: u16) -> Option<u16> {
    (0..length).map(|offset| base.checked_add(offset)).find_map(|port| match port {
        None => Some(LAST_PORT),
        Some(port) => (!is_free(port)).then_some(port),
    })
}

/// The first block of `length` free ports at `from`, `from + step`, `from + 2 * step`, ….
#[must_use]
pub fn free_block(from: u16, step: u16, length: u16) -> Option<u16> {
    (0..BLOCKS_TRIED_MAX)
        .map_while(|n| n.checked_mul(step).and_then(|offset| from.checked_add(offset)))
        .find(|base| first_taken(*base, length).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_and_its_block_is_skipped() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = holder.local_addr().expect("it is bound").port();
        assert!(!is_free(port));
        assert_eq!(first_taken(port, 1), Some(port));
        let base = free_block(port, 20, 3).expect("there is a free block");
        assert_ne!(base, port);
    }

    #[test]
    fn a_block_never_runs_past_the_last_port() {
        assert!(first_taken(LAST_PORT, 2).is_some());
        assert_eq!(free_block(LAST_PORT - 1, 1000, 5), None);
    }
}
