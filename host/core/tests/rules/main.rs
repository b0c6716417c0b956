//! Every rule of the engine, by the exact commands it gives.

mod bench;
mod waiting;
