//! The host's clock: monotonic, and counting the time during which the machine was suspended.

use rustix::time::{ClockId, clock_gettime};
use turnstile_core::Instant;

/// The instant now on CLOCK_BOOTTIME. CLOCK_MONOTONIC stands still during a suspend, so a lease that ran out in the
/// meantime would look alive.
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    // Both parts are non-negative on this clock.
    let micros = time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000;
    Instant::from_micros(micros)
}
