//! Harness of Turnstile's tests: real components started and watched, and load with a recorded history.

pub mod artifacts;
pub mod proxy_wasm;
