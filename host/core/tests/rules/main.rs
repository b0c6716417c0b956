//! Every rule of the engine, by the exact commands it gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A test fails by panicking.

mod bench;
mod bounds;
mod drain;
mod forced;
mod holding;
mod modes;
mod ownership;
mod reentry;
mod resuming;
mod sessions;
mod several;
mod suspicions;
mod tokens;
mod waiting;
