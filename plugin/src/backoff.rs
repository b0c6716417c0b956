//! When to try again: exponential back-off, and jitter, so that a thousand workers do not come at once.

use core::time::Duration;

/// A small random sequence (splitmix64). Good for jitter, not for secrets.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// The sequence that `seed` starts.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound` (zero if `bound` is).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).checked_rem(bound).unwrap_or(0)
    }
}

/// Pauses that double from 50 ms to 2 s, each shortened at random by up to a half.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    jitter: Jitter,
}

impl Backoff {
    /// The first pause is about this long.
    pub const FIRST: Duration = Duration::from_millis(50);
    /// No pause is longer.
    pub const LAST: Duration = Duration::from_secs(2);

    /// Starts with the shortest pause.
    pub const fn new(jitter: Jitter) -> Self {
        Self { next: Self::FIRST, jitter }
    }

    /// How long to pause now.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(Self::LAST);
        self.shortened(pause)
    }

    /// How long to pause if there is a new reason to try at once. Later pauses are as long as before.
    pub fn first_pause(&mut self) -> Duration {
        self.shortened(Self::FIRST)
    }

    fn shortened(&mut self, pause: Duration) -> Duration {
        let half_us = u64::try_from(pause.as_micros() / 2).unwrap_or(0);
        pause.saturating_sub(Duration::from_micros(self.jitter.below(half_us)))
    }

    /// All is well: the next pause is the shortest again.
    pub fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}
