//! Clocks that run up to 1 % wrong. True time is that of the simulation, in microseconds.

use std::time::Duration;

use crate::random::Random;

pub(crate) const MS: u64 = 1_000;
pub(crate) const SECOND: u64 = 1_000_000;

/// One machine's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    offset: u64,
    /// What it shows after a million true microseconds.
    rate: u64,
}

impl Clock {
    /// The clock that shows true time.
    pub(crate) const TRUE: Self = Self { offset: 0, rate: 1_000_000 };

    pub(crate) fn random(random: &mut Random) -> Self {
        let rate = match random.range(0, 3) {
            0 => 990_000,
            1 => 1_010_000,
            _ => random.range(990_000, 1_010_000),
        };
        Self { offset: random.range(0, 1_000 * SECOND), rate }
    }

    /// What it shows at `true_time`.
    pub(crate) fn shows(&self, true_time: u64) -> u64 {
        self.offset + (u128::from(true_time) * u128::from(self.rate) / 1_000_000) as u64
    }

    /// The first true time at which it shows `shown` or more.
    pub(crate) fn when(&self, shown: u64) -> u64 {
        (u128::from(shown.saturating_sub(self.offset)) * 1_000_000).div_ceil(u128::from(self.rate)) as u64
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
