//! The host as its clients see it: real gRPC streams to a real host on a real SQLite file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod basics;
mod client;
mod features;
