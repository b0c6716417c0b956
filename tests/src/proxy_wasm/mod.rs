//! A small proxy-wasm host on wasmtime: the plugin's real wasm file in a model of one Envoy worker.
//!
//! Tests drive a [`Worker`] (requests, endings, virtual time) and its [`ModelHost`] (the other end of the session
//! protocol), and judge by what upstream, client and host get to see, never by which hostcalls were made. Where the
//! order of things matters it is Envoy's: hostcalls take effect when the callback has returned ([`Vm`]), a context is
//! gone once deleted, request headers can be changed until the request goes on.

mod abi;
pub mod endings;
mod exchange;
mod guest;
mod hostcalls;
mod model_host;
mod peer;
mod session;
mod state;
mod traffic;
mod vm;
mod wasi;
mod worker;

pub use abi::{Headers, LogLevel};
pub use exchange::{End, Ending, Maker, Outcome, Reply, Request, Response};
pub use model_host::ModelHost;
pub use peer::{Policy, Received};
pub use state::{LogLine, Metric, MetricKind};
pub use vm::{Plugin, Vm, VmError};
pub use worker::{InFlight, Setup, Worker};
