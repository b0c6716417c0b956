//! Every rule of the engine, by the exact commands it gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A test fails by panicking.

mod bench;
mod bounds;
mod drain;
mod holding;
mod ownership;
mod resuming;
mod sessions;
mod tokens;
mod waiting;
