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
}

/// Those that hold again.
pub const REGRESSIONS: &[Regression] = &[];
