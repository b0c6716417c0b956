//! Ownership of lock keys in a real system: what every store offers, and nothing of any one of them.
//!
//! A store keeps two kinds of record: one *liveness* per incarnation (its lease), which the store keeps alive by
//! itself and reports as [`Event::LeaseRenewed`], and one *ownership record* per key, which outlives its host and says
//! {incarnation, epoch, largest lock delay promised}. Only the configuration names concrete stores.
//!
//! A store does not talk to the lock engine, nor decide when to retry: the driver does both, by a `match` on
//! [`StoreError`].

pub mod etcd;
mod pending;
pub mod sqlite;

use std::time::Duration;

use turnstile_core::{ClaimId, Epoch, Instant, LockKey};

/// A connection of one incarnation to a store. Events go into the channel that the concrete store was opened with.
pub trait Store: Send + Sync {
    /// Queues an operation and returns at once. Operations on one key are carried out in the order of submission.
    fn submit(&self, operation: Operation);
}

/// What the driver asks of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Claim the key. Answered by [`Event::Gained`], by [`Event::Queued`] and a later `Gained`, or by
    /// [`Event::Failed`]; not at all, if a `Yield` of the key was submitted before it was carried out. For a key that
    /// this incarnation already has a record of: make sure that the record remembers at least `lock_delay`, and raise
    /// its epoch, since the store cannot know whether who claims remembers what was granted under the old one. Only a
    /// claim that was answered with the key already, and comes again, may keep the epoch (without `new_epoch`).
    Claim {
        /// The key to own.
        key: LockKey,
        /// Comes back in the answers.
        claim: ClaimId,
        /// The record remembers the largest of these; it only ever grows while it is ours.
        lock_delay: Duration,
        /// Raise the epoch of a record that is ours, whatever is known of it.
        new_epoch: bool,
    },
    /// Give up the key's record, or the place in its queue; nothing is answered. The store sees to it that this gets
    /// through at last, whatever fails meanwhile.
    Yield {
        /// The key to give up.
        key: LockKey,
    },
    /// Give up all records that are still ours, and the lease; answered by [`Event::LeaseEnded`]. No hold and no
    /// quarantine remains.
    EndLease,
}

/// What a store reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The lease is good until `until`: its TTL, less the allowance for clock rates, counted from an instant *before*
    /// the keepalive was sent.
    LeaseRenewed {
        /// On this host's clock.
        until: Instant,
    },
    /// The lease, and every record under it, is gone for good. The store goes on by itself as a new incarnation, and
    /// reports the new lease with `LeaseRenewed`. What was claimed before must be claimed anew.
    LeaseLost,
    /// Answer to [`Operation::EndLease`].
    LeaseEnded,
    /// The key is ours.
    Gained {
        /// Which key.
        key: LockKey,
        /// From the claim.
        claim: ClaimId,
        /// Larger than every epoch of this key before, for ever.
        epoch: Epoch,
        /// The largest lock delay that the record remembers.
        lock_delay: Duration,
        /// When the dead predecessor's promises and lock delays have passed; in the past if there was none.
        quarantined_until: Instant,
    },
    /// Another live host owns the key; it has been told that we want it, and our turn will come.
    Queued {
        /// Which key.
        key: LockKey,
        /// From the claim.
        claim: ClaimId,
    },
    /// Another host wants a key that is ours. Reported once per ownership, and once after each further `Gained` while
    /// others wait.
    Contended {
        /// Which key.
        key: LockKey,
    },
    /// The record of a key that was ours is not ours any more, although the lease lives (somebody changed it). It comes
    /// before any answer to a claim that found that out.
    Lost {
        /// Which key.
        key: LockKey,
    },
    /// A claim could not be carried out.
    Failed {
        /// Which key.
        key: LockKey,
        /// From the claim.
        claim: ClaimId,
        /// Why, and so whether to try again.
        error: StoreError,
    },
}

/// Why a claim failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was written: try again after a pause.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The write may have landed: claim again, which finds out.
    #[error("the store did not say whether the write landed: {0}")]
    Ambiguous(String),
    /// The store will not have this: do not try again.
    #[error("the store refused: {0}")]
    Rejected(String),
}
