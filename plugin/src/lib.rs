//! Turnstile's Envoy filter: pauses guarded requests until a host grants their lock, and releases it afterwards.
//!
//! Everything but `filter` is plain Rust without I/O and tested natively. `filter` is the one module that calls the
//! proxy; it exists in the wasm file only.

pub mod ask;
pub mod backoff;
pub mod clock;
pub mod ending;
#[cfg(target_arch = "wasm32")]
mod filter;
pub mod flow;
pub mod hosts;
pub mod reentry;
pub mod reply;
pub mod session;
pub mod sessions;
pub mod stats;
