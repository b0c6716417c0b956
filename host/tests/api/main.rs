//! The API as its users see it: real HTTP to a real host on a real SQLite file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod bench;
mod bounds;
mod door;
mod features;
mod inspect;
mod locks;
mod operators;
mod readme;
mod sessions;
