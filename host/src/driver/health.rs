//! What the probes may know: plain numbers that the driver leaves behind on every turn.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use turnstile_core::Instant;

/// A driver that has not turned for this long is stuck: it turns at least once a second.
const STUCK: Duration = Duration::from_secs(10);

/// The state of the host as seen from outside. Each number stands alone, so no ordering between them is needed.
#[derive(Debug)]
pub struct Health {
    turned_at_micros: AtomicU64,
    leased_until_micros: AtomicU64,
    draining: AtomicBool,
}

impl Health {
    /// Of a host that starts now: live, and not ready before its first lease.
    pub fn new(now: Instant) -> Self {
        Self {
            turned_at_micros: AtomicU64::new(now.as_micros()),
            leased_until_micros: AtomicU64::new(0),
            draining: AtomicBool::new(false),
        }
    }

    /// Whether the driver is running at all.
    pub fn is_live(&self, now: Instant) -> bool {
        let turned_at = Instant::from_micros(self.turned_at_micros.load(Ordering::Relaxed));
        now.saturating_since(turned_at) < STUCK
    }

    /// Why no lock would be granted now; `None` if it would.
    pub fn unready(&self, now: Instant) -> Option<&'static str> {
        if !self.is_live(now) {
            Some("the driver is stuck")
        } else if self.draining.load(Ordering::Relaxed) {
            Some("draining")
        } else if self.leased_until_micros.load(Ordering::Relaxed) <= now.as_micros() {
            Some("no lease in the store")
        } else {
            None
        }
    }

    pub(super) fn turned(&self, now: Instant) {
        self.turned_at_micros.store(now.as_micros(), Ordering::Relaxed);
    }

    pub(super) fn leased_until(&self, until: Instant) {
        self.leased_until_micros.store(until.as_micros(), Ordering::Relaxed);
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}
