//! What clients and hosts say to each other, and how it is addressed.

use turnstile_core::{Acquire, Ending, HolderSecret, KeyGrant, Resume, SmallVec};

/// A client's stream: the client, and which of its streams.
pub(crate) type Stream = (usize, u64);

/// From a client.
#[derive(Clone, Debug)]
pub(crate) enum ToHost {
    Hello {
        seq: u64,
        /// What it believes about a session that it wants to go on with.
        resume: Option<(SessionName, Resume)>,
    },
    Heartbeat {
        seq: u64,
    },
    /// A secret that is offered is not the client's to choose: the host puts one in its place.
    Acquire(Acquire),
    Cancel(u64),
    Release(u64, Ending),
}

/// From a host.
#[derive(Clone, Debug)]
pub(crate) enum ToClient {
    Welcome { session: SessionName, resumed: bool },
    Grant { request: u64, keys: SmallVec<[KeyGrant; 1]>, secret: Option<HolderSecret>, seq: u64, valid: u64 },
    Reject { request: u64 },
    Lost { request: u64 },
    Ack { seq: u64, valid: u64 },
}

/// A session, and the run of the host process that knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionName {
    pub(crate) run: Run,
    pub(crate) number: u64,
}

/// One run of a host's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    pub(crate) host: usize,
    pub(crate) run: u32,
}
