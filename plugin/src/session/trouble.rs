//! Whether a host can use its store, as far as its answers tell: its heartbeats may go well, and its claims not.

use core::time::Duration;

use crate::clock::Instant;

/// After so many refusals without a grant between them the host counts as unable. One key alone may be at fault, so that
/// its refusals count once.
const REFUSALS_MAX: u32 = 5;
/// When the last refusal is so long ago, it may be well again: whoever asks then will see.
const REST: Duration = Duration::from_secs(2);

/// What the host has said of its store lately.
#[derive(Debug, Default)]
pub(super) struct StoreTrouble {
    /// Keys refused since the last grant, one after the other.
    refusals: u32,
    /// Of the last one: all who wait for a key are refused together.
    key: String,
    last: Instant,
}

impl StoreTrouble {
    /// A request was refused since the store does not answer.
    pub(super) fn refused(&mut self, now: Instant, key: &str) {
        if now >= self.last + REST {
            *self = Self::default();
        }
        if self.key != key {
            self.refusals = self.refusals.saturating_add(1);
            key.clone_into(&mut self.key);
        }
        self.last = now;
    }

    /// It granted: all is well. Or it is another run of the host.
    pub(super) fn over(&mut self) {
        self.refusals = 0;
        self.key.clear();
    }

    /// Whether it is of no use at present.
    pub(super) fn is_on(&self, now: Instant) -> bool {
        self.refusals >= REFUSALS_MAX && now < self.last + REST
    }
}
