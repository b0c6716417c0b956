//! Monotonic time. Envoy's other clock, the wall clock, jumps.

use core::ops::{Add, Sub};
use core::time::Duration;

/// An instant on the monotonic clock, in microseconds since an arbitrary origin. It means nothing outside this VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// The instant `micros` microseconds after the clock's origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the clock's origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The time from `earlier` until this instant; zero if `earlier` is later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What Envoy offers beside the proxy-wasm calls: two functions of WASI preview 1.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
mod wasi {
    use super::Instant;

    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn clock_time_get(clock: u32, precision_ns: u64, time_ns: *mut u64) -> u32;
        fn random_get(buffer: *mut u8, length: usize) -> u32;
    }

    const MONOTONIC: u32 = 1;

    /// The current instant.
    pub fn now() -> Instant {
        let mut time_ns = 0;
        // SAFETY: the host writes eight bytes at the pointer, or nothing.
        let status = unsafe { clock_time_get(MONOTONIC, 1_000, &raw mut time_ns) };
        // Without a clock nothing can be believed: at the end of time every promise is over.
        if status == 0 { Instant::from_micros(time_ns / 1_000) } else { Instant::from_micros(u64::MAX) }
    }

    /// A random number, to name this VM by and to seed jitter with.
    pub fn random() -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: the host writes as many bytes at the pointer as it is told, or nothing.
        let _ = unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) };
        u64::from_le_bytes(bytes) ^ now().as_micros()
    }
}

#[cfg(target_arch = "wasm32")]
pub use wasi::{now, random};
