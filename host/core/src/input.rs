//! What the driver tells the engine.

use core::time::Duration;

use smallvec::{SmallVec, smallvec};

use crate::{ClaimId, Epoch, HeartbeatSeq, HolderSecret, Instant, LockKey, Mode, RequestId, SessionId, Token};

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

    /// An operator ends the holds of a key: all of them, or the one that was granted with `token`. Their clients are told
    /// `Lost`, and the holds live on until they confirm, or cannot believe any more.
    ForceRelease { key: LockKey, token: Option<Token>, delay: ForcedDelay },

    /// Stop granting, reject waiters, give up ownerships as holds and quarantines end.
    Drain,
}

/// A request for a lock.
#[derive(Clone, Debug)]
pub struct Acquire {
    /// Which request of the session.
    pub request: RequestId,
    /// What to lock, each key once, granted together or not at all. At most [`KEYS_MAX`](Self::KEYS_MAX).
    pub keys: SmallVec<[KeyRequest; 1]>,
    /// How long to wait; zero is "try".
    pub wait: Duration,
    /// The longest hold; `None` is the engine's own limit.
    pub hold: Option<Duration>,
    /// Quarantine of the keys if the hold ends uncleanly.
    pub lock_delay: Duration,
    /// Rejected at once if the turn is not to be expected within the wait.
    pub fail_fast: bool,
    /// Rejected at once if so many wait for one of the keys already; `None` is the engine's own limit.
    pub queue_max: Option<u32>,
    /// Whether the hold is, or joins, one that others may join.
    pub reentry: Reentry,
    /// For people who look at a stuck lock.
    pub who: Option<Box<Who>>,
}

/// One key of an [`Acquire`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRequest {
    /// What to lock.
    pub key: LockKey,
    /// How to hold it.
    pub mode: Mode,
}

/// Whether a hold may be joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reentry {
    /// It stands alone.
    #[default]
    None,
    /// Whoever brings this secret joins it.
    Offer(HolderSecret),
    /// It joins the live hold of this secret: keys which that hold has are held together with it, and freed by the last
    /// to release. Keys that it adds are waited for if they sort behind all that the hold has, and else only tried.
    Join(HolderSecret),
}

/// Who asks. The engine only keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // As in the session protocol.
pub struct Who {
    pub method: String,
    pub path: String,
    pub route: String,
    pub request_id: String,
    pub client: String,
}

impl Acquire {
    /// Keys of one request at most.
    pub const KEYS_MAX: usize = 16;

    /// A try for one key in exclusive mode, without a lock delay.
    pub fn of_key(request: RequestId, key: LockKey) -> Self {
        Self {
            request,
            keys: smallvec![KeyRequest { key, mode: Mode::Exclusive }],
            wait: Duration::ZERO,
            hold: None,
            lock_delay: Duration::ZERO,
            fail_fast: false,
            queue_max: None,
            reentry: Reentry::None,
            who: None,
        }
    }
}

/// What becomes of the quarantine that a forced release starts, and of one that the key has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForcedDelay {
    /// The upstream may still be working: the lock delay counts as after every unclean end.
    Keep,
    /// The operator knows that nothing works on it any more.
    Skip,
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
