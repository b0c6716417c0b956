//! What the driver tells the engine.

use core::time::Duration;

use crate::{ClaimId, Epoch, HeartbeatSeq, Instant, LockKey, Mode, RequestId, SessionId};

/// One fact from outside: from a session, from the store, or from the operator.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // The fields' names and types say it all.
pub enum Input {
    /// A client said Hello, which counts as heartbeat `seq`. Refused with
    /// [`Command::EndSession`](crate::Command::EndSession) when there are too many sessions.
    OpenSession { session: SessionId, seq: HeartbeatSeq },
    /// A heartbeat of a connected session was received.
    Heartbeat { session: SessionId, seq: HeartbeatSeq },
    /// The session's stream broke: its waiters keep their place and get no grant until it resumes.
    SuspendSession { session: SessionId },
    /// The session is back on a new stream; the Hello counts as heartbeat `seq`.
    ResumeSession { session: SessionId, seq: HeartbeatSeq, resume: Resume },
    /// A request wants a lock.
    Acquire { session: SessionId, acquire: Acquire },
    /// A request is no longer wanted and never reached the upstream; if it was granted meanwhile, the hold ends unsent.
    Cancel { session: SessionId, request: RequestId },
    /// A hold ended.
    Release { session: SessionId, request: RequestId, ending: Ending },

    /// The store gave us the key (or, to a later claim of an owned key, a new epoch or a larger lock delay).
    OwnershipGained {
        key: LockKey,
        claim: ClaimId,
        epoch: Epoch,
        /// The largest lock delay that the store's record now remembers for this key.
        lock_delay: Duration,
        /// Nothing may be granted before this instant: a dead predecessor's lock delays run until then.
        quarantined_until: Instant,
    },
    /// The store queued our claim behind another live host.
    OwnershipQueued { key: LockKey, claim: ClaimId },
    /// The store will not give us the key (refused, or given up on): its waiters are rejected.
    OwnershipRefused { key: LockKey, claim: ClaimId },
    /// Another host wants a key that we own.
    OwnershipContended { key: LockKey },
    /// The record of the key is no longer ours although our lease may live (tampering, restore).
    OwnershipLost { key: LockKey },
    /// Our lease in the store is good until `until` (anchored before the keepalive was sent).
    LeaseRenewed { until: Instant },
    /// Our lease is gone for good, and every ownership with it.
    LeaseLost,

    /// Stop granting, reject waiters, give up ownerships as holds and quarantines end.
    Drain,
}

/// A request for a lock.
#[derive(Clone, Debug)]
pub struct Acquire {
    /// Which request of the session.
    pub request: RequestId,
    /// What to lock.
    pub key: LockKey,
    /// How to hold it.
    pub mode: Mode,
    /// How long to wait; zero is "try".
    pub wait: Duration,
    /// The longest hold; `None` is the engine's own limit.
    pub hold: Option<Duration>,
    /// Quarantine of the key if the hold ends uncleanly.
    pub lock_delay: Duration,
}

/// How a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The upstream answered completely.
    Clean,
    /// The upstream may still be working.
    Unclean,
    /// The upstream never saw the request.
    Unsent,
}

/// What a resuming client believes.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// Requests that wait, with the wait that is left to them.
    pub waiters: Vec<Acquire>,
    /// Holds that it believes in.
    pub holds: Vec<RequestId>,
    /// Releases, and cancels as [`Ending::Unsent`], that may not have reached us.
    pub releases: Vec<(RequestId, Ending)>,
}
