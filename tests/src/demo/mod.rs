//! The demo: a legacy service that loses updates under concurrency, the same burst past a plain Envoy and past
//! Turnstile, and what became of it.

pub mod bank;
pub mod journal;
pub mod ledger;
pub mod options;
pub mod processes;
pub mod report;
pub mod show;
pub mod stop;
