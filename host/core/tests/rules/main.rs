//! Every rule of the engine, by the exact commands it gives.

mod bench;
mod bounds;
mod drain;
mod holding;
mod ownership;
mod resuming;
mod sessions;
mod tokens;
mod waiting;
