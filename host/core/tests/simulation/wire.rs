//! What clients and host say to each other.

use turnstile_core::{Acquire, Ending, LostReason, RejectReason, Resume};

/// From a client.
#[derive(Clone, Debug)]
pub(crate) enum ToHost {
    Hello {
        seq: u64,
        /// The host's incarnation and the session, of which the client believes this.
        resume: Option<(u64, u64, Resume)>,
    },
    Heartbeat {
        seq: u64,
    },
    Acquire(Acquire),
    Cancel(u64),
    Release(u64, Ending),
}

/// From the host.
#[derive(Clone, Debug)]
#[allow(dead_code)] // Reasons are printed.
pub(crate) enum ToClient {
    Welcome { incarnation: u64, session: u64, resumed: bool },
    Grant { request: u64, token: u64, seq: u64, valid: u64 },
    Reject { request: u64, reason: RejectReason },
    Lost { request: u64, reason: LostReason },
    Ack { seq: u64, valid: u64 },
}
