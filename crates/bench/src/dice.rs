//! Random numbers that a seed has again: SplitMix64.

/// Random numbers.
pub(crate) struct Dice(u64);

impl Dice {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Those of one of several series of a seed, by its number.
    pub(crate) fn new(seed: u64, number: u32) -> Dice {
        let mut dice = Dice(seed);
        // Rounds of neighbouring seeds are not each other's neighbours.
        let start = dice.next() ^ u64::from(number).wrapping_mul(0xd6e8_feb8_6659_fd93);
        Dice(start)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Dice::STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `least..=most`.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    /// One of `0..limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        // Both are small numbers.
        usize::try_from(self.next() % (limit as u64)).unwrap_or(0)
    }

    /// True so many times of a hundred.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}
