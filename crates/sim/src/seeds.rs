//! Seeds that failed once. Each is a test for ever.

use crate::Mode;

/// A seed with what it showed.
#[derive(Debug, Clone, Copy)]
pub struct Regression {
    /// What went wrong, in words.
    pub name: &'static str,
    /// The seed.
    pub seed: u64,
    /// Number of members.
    pub members: usize,
    /// `synchronous_mode`.
    pub mode: Mode,
    /// Drawn from the faults that take the leader key away ([`crate::Setup::fence_only`]).
    pub fence_only: bool,
    /// Drawn from what leaves PostgreSQL alive and of no use ([`crate::Setup::ailing`]).
    pub ailing: bool,
    /// Failsafe mode is on.
    pub failsafe: bool,
    /// `failover_mode: fenced`.
    pub fenced: bool,
    /// Operators change `ttl`.
    pub new_ttls: bool,
    /// There are proxies.
    pub proxies: bool,
    /// `synchronous_mode_strict`.
    pub strict: bool,
}

/// None of what may be added to a setup.
const PLAIN: Regression = Regression {
    name: "",
    seed: 0,
    members: 3,
    mode: Mode::Off,
    fence_only: false,
    ailing: false,
    failsafe: false,
    fenced: false,
    new_ttls: false,
    proxies: false,
    strict: false,
};

/// Those that hold again.
pub const REGRESSIONS: &[Regression] = &[
    Regression {
        name: "a standby streams from a leader elected again while its own agent is cut off, \
               acknowledges in the new term, and pledges under the old one",
        seed: 443,
        members: 3,
        mode: Mode::Quorum,
        fence_only: true,
        ..PLAIN
    },
    Regression {
        name: "a rewind begins against a leader that is not promoted in its new term yet",
        seed: 590,
        members: 3,
        mode: Mode::Quorum,
        fence_only: true,
        ..PLAIN
    },
    Regression {
        name: "an interrupted bootstrap leaves a data directory that nobody finishes",
        seed: 746,
        members: 1,
        mode: Mode::Off,
        ..PLAIN
    },
    Regression {
        name: "a standby's files name its leader, but the server was never told to read them",
        seed: 1134,
        members: 5,
        mode: Mode::Off,
        ailing: true,
        ..PLAIN
    },
    Regression {
        name: "a disk hangs until the source of a rewind is a standby of a later leader",
        seed: 9104,
        members: 3,
        mode: Mode::Quorum,
        fence_only: true,
        ailing: true,
        failsafe: true,
        ..PLAIN
    },
    Regression {
        name: "a rewound copy that misses its end is started without an upstream",
        seed: 1405,
        members: 3,
        mode: Mode::On,
        fenced: true,
        ..PLAIN
    },
    Regression {
        name: "a bootstrap whose member key is not seen for a moment leaves a leader in recovery",
        seed: 4204,
        members: 1,
        mode: Mode::Quorum,
        ailing: true,
        fenced: true,
        ..PLAIN
    },
    Regression {
        name: "a rewound copy was compared with its next leader while it was being started",
        seed: 14_116,
        members: 3,
        mode: Mode::Quorum,
        fence_only: true,
        ..PLAIN
    },
    Regression {
        name: "a primary whose host froze in its restart comes up after it was deposed: the check \
               took it for a new one",
        seed: 54_710,
        members: 3,
        mode: Mode::Quorum,
        fenced: true,
        ..PLAIN
    },
    Regression {
        name: "a former primary in recovery, found by a new agent that still had the leader key, \
               was waited for as for a promotion, for five minutes",
        seed: 648,
        members: 3,
        mode: Mode::Quorum,
        failsafe: true,
        ..PLAIN
    },
    Regression {
        name: "a leader key was given away while it moved to another lease: the release was \
               refused, and its leader, in recovery by then, waited for a promotion of before",
        seed: 3839,
        members: 3,
        mode: Mode::Off,
        ailing: true,
        new_ttls: true,
        ..PLAIN
    },
    Regression {
        name: "a leader named a further member in its failsafe map while its claim rested, for \
               longer than its lease, on the word of those it had named before",
        seed: 8422,
        members: 2,
        mode: Mode::Off,
        ailing: true,
        failsafe: true,
        new_ttls: true,
        proxies: true,
        ..PLAIN
    },
    Regression {
        name: "the same by a leader that had taken its key again: its claim seemed to come from a \
               renewal in the future",
        seed: 6151,
        members: 2,
        mode: Mode::Off,
        failsafe: true,
        new_ttls: true,
        ..PLAIN
    },
    Regression {
        name: "so a leader that had taken its key again moved it to a shorter lease than it had \
               told its guard",
        seed: 19_518,
        members: 3,
        mode: Mode::Off,
        ailing: true,
        failsafe: true,
        fenced: true,
        new_ttls: true,
        proxies: true,
        ..PLAIN
    },
    Regression {
        name: "a postmaster was killed while it stopped, and what outlived it was waited for",
        seed: 895,
        members: 3,
        mode: Mode::Quorum,
        fence_only: true,
        ailing: true,
        proxies: true,
        strict: true,
        ..PLAIN
    },
    Regression {
        name: "a member lost its disk with its promise to wait; its new copy counted again and \
               won, before that promise would have ended",
        seed: 544,
        members: 5,
        mode: Mode::On,
        failsafe: true,
        ..PLAIN
    },
];
