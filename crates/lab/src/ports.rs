//! Loopback ports.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

/// The highest port a block may end at.
const LAST_PORT: u16 = 65_535;

/// Blocks that [`free_block`] tries before it gives up.
const BLOCKS_TRIED_MAX: u16 = 200;

/// Where reserved ports are: below those that the kernel gives to whoever connects (32768 and
/// above), and below those that a demo takes by itself.
const RESERVED: std::ops::Range<u16> = 10_000..15_000;

/// What holds this process' reserved ports.
static HELD: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

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

/// The first of `length` loopback ports that nobody else who asks here is given as long as this
/// process lives, however late their servers start and however often they start again.
///
/// A port that was merely free a moment ago may be given to the next who asks for any, and to
/// whoever connects to somewhere. So each is held by a UDP socket of the same number, which is in
/// no TCP server's way. `None`: there are no such ports left.
#[must_use]
pub fn reserve_block(length: u16) -> Option<u16> {
    // Processes start at different places, so that they seldom try what another one holds.
    let first = std::process::id() as usize % RESERVED.len();
    let bases = RESERVED.cycle().skip(first).take(RESERVED.len());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    for base in bases.filter(|base| base.checked_add(length).is_some_and(|e| e <= RESERVED.end)) {
        if first_taken(base, length).is_some() {
            continue;
        }
        let sockets =
            (base..base + length).map(|port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)));
        if let Ok(sockets) = sockets.collect::<Result<Vec<_>, _>>() {
            held.extend(sockets);
            return Some(base);
        }
    }
    None
}

/// One port, as [`reserve_block`] gives them.
#[must_use]
pub fn reserve() -> Option<u16> {
    reserve_block(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_nobody_elses_and_can_be_listened_on() {
        let block = reserve_block(5).expect("there is a free block");
        let others: Vec<u16> = (0..50).map_while(|_| reserve()).collect();
        assert_eq!(others.len(), 50);
        assert!(others.iter().all(|port| !(block..block + 5).contains(port) && is_free(*port)));
        let different: std::collections::BTreeSet<&u16> = others.iter().collect();
        assert_eq!(different.len(), 50);
        assert_eq!(reserve_block(RESERVED.end - RESERVED.start), None, "some are taken");
    }

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
