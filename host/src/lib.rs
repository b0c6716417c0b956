//! Turnstile's host service: holds the locks in a store and serves sessions to proxies.

pub mod clock;
pub mod config;
pub mod store;
