//! What the engine tells the driver to do.

use core::time::Duration;

use smallvec::SmallVec;

use crate::{ClaimId, HeartbeatSeq, HolderSecret, LockKey, RequestId, SessionId, Token};

/// One effect. Commands of one session, and commands about one key, must be carried out in the order they come.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields' names and types say it all.
pub enum Command {
    /// The waiter is now a holder. It may believe so until the instant it sent heartbeat `seq`, plus `valid`.
    Grant {
        session: SessionId,
        request: RequestId,
        /// One a key, in the order of the acquire.
        keys: SmallVec<[KeyGrant; 1]>,
        /// Of a hold that others may join.
        secret: Option<HolderSecret>,
        waited: Duration,
        seq: HeartbeatSeq,
        valid: Duration,
    },
    /// The waiter is none any more.
    Reject {
        session: SessionId,
        request: RequestId,
        reason: RejectReason,
        retry_after: Option<Duration>,
        queue_length: usize,
    },
    /// The hold is being ended by us (or, for an unknown one after a resume, is none): the client must stop believing.
    Lost { session: SessionId, request: RequestId, reason: LostReason },
    /// The session was heard; its holds that were not told `Lost` may be believed in until the instant it sent
    /// heartbeat `seq`, plus `valid`.
    AckHeartbeat { session: SessionId, seq: HeartbeatSeq, valid: Duration },
    /// The session is over (expired, refused, or unknown to us): close its stream and forget it.
    EndSession { session: SessionId, reason: EndReason },

    /// Claim the key in the store; the record must remember at least `lock_delay`. Also sent for a key that is owned
    /// already, to raise that lock delay or (with `new_epoch`) to get fresh tokens.
    ClaimOwnership { key: LockKey, claim: ClaimId, lock_delay: Duration, new_epoch: bool },
    /// Give up the key's record, or withdraw the claim for it.
    YieldOwnership { key: LockKey },

    /// After [`Input::Drain`](crate::Input::Drain): no hold, quarantine or ownership is left; the lease may be ended.
    Drained,
}

/// One key of a [`Command::Grant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyGrant {
    /// The fencing token.
    pub token: Token,
    /// The lowest token still believed in when this one was granted: in exclusive mode, itself.
    pub barrier: Token,
}

/// Why a request was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// A try found the key held or quarantined.
    Conflict,
    /// The wait is over.
    WaitTimeout,
    /// The key, or the host as a whole, has as many waiters as it may have.
    QueueFull,
    /// The session has as many waiters as it may have.
    SessionFull,
    /// As many keys are tracked as may be.
    KeysFull,
    /// The store did not give us the key within the wait.
    StoreUnavailable,
    /// The host is going away.
    Draining,
    /// The request broke the protocol (an id used twice).
    Invalid,
    /// The key's tokens are used up.
    TokensExhausted,
    /// The wait would end before the turn comes, and the request asked not to wait then.
    WaitHopeless,
    /// The hold to join is over, or was never here.
    NoSuchHold,
    /// The hold to join has a key in a mode that does not cover what was asked for.
    Upgrade,
}

/// Why a hold was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostReason {
    /// It was held for longer than allowed.
    HoldLimit,
    /// An operator ended it.
    Forced,
    /// The host's lease in the store is gone, or the key's record.
    Lease,
    /// There is no such hold.
    Unknown,
}

/// Why a session was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// No heartbeat for the session TTL.
    Expired,
    /// There are as many sessions as there may be.
    TooMany,
    /// An input named a session that does not exist (any more).
    Unknown,
}
