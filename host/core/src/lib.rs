//! The lock engine of Turnstile: a deterministic state machine without I/O, clock, randomness or threads.
//!
//! The driver feeds [`Input`]s with the current [`Instant`] to [`Engine::handle`], takes [`Command`]s out with
//! [`Engine::poll_command`], and calls [`Engine::handle_timeout`] when [`Engine::next_deadline`] has come. The engine
//! knows nothing of sockets or stores: ownership of keys and the host's lease reach it as inputs, claims and grants
//! leave it as commands. Invariants are numbered as in ARCHITECTURE.md; [`Engine::check`] asserts them.

mod admission;
#[cfg(any(test, debug_assertions, feature = "mutations"))]
mod check;
mod command;
mod config;
mod describe;
mod engine;
mod estimate;
mod families;
mod fault;
#[cfg(feature = "model")]
mod fingerprint;
mod holders;
mod holds;
mod input;
mod keys;
mod mutation;
mod names;
mod ownership;
mod promise;
mod pump;
mod queue;
mod requests;
mod sessions;
mod time;
mod timers;
mod waiting;

pub use command::{Command, EndReason, KeyGrant, LostReason, RejectReason};
pub use config::{Config, HandoffBudget};
pub use describe::{HolderDescription, KeyDescription, KeyPage, OwnershipDescription, WaiterDescription};
pub use engine::Engine;
pub use fault::Fault;
#[cfg(feature = "model")]
#[doc(hidden)]
pub use fingerprint::View;
pub use input::{Acquire, Ending, ForcedDelay, Input, KeyRequest, Reentry, Resume, Who};
#[cfg(feature = "mutations")]
#[doc(hidden)]
pub use mutation::Mutation;
pub use names::{
    ClaimId, Epoch, HeartbeatSeq, HolderId, HolderSecret, InvalidLockKey, LockKey, Mode, RequestId, SessionId, Token,
};
pub use smallvec::{SmallVec, smallvec};
pub use time::Instant;
