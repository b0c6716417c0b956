//! Deliberate faults. The simulation turns one on and must notice: a checker that misses it would miss the real thing.

/// One rule of the engine to break. Without the feature `mutations` nothing can turn one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutations"), allow(unreachable_pub))]
pub enum Mutation {
    /// An unclean end starts no quarantine.
    NoLockDelay,
    /// A hold told `Lost` ends at once, although its client may still believe in it.
    EndBeforePromise,
    /// Validities are not cut to the lease.
    LeaseIgnored,
    /// The store is not asked to remember a larger lock delay, and no grant waits for that.
    LockDelayNotRaised,
    /// Every answer of the store starts the token sequence anew, and nobody looks.
    SequenceReset,
    /// A broken stream does not take the session's waiters out of turn.
    SuspendedGranted,
    /// A resume forgets the releases it brings, and keeps the holds.
    ReleaseLostInResume,
    /// A session is over after half its time.
    SessionCutShort,
    /// The last to come is the first served.
    LastComeFirstServed,
    /// A wait that is over is not answered.
    TimeoutNotTold,
    /// The dead predecessor's lock delays are not waited for.
    PredecessorIgnored,
    /// A key is given up although it is in quarantine, or a hold of it lingers.
    YieldInQuarantine,
    /// A key in quarantine makes room for another one.
    EvictInQuarantine,
    /// A resumed session's waiters get their turn back, but not their places.
    PlacesForgotten,
    /// Limited holds are not counted.
    LimitMiscounted,
    /// Readers are let in beside whoever holds the key.
    SharedBesideExclusive,
    /// A shared or limited hold that ended uncleanly counts no longer.
    LingeringForgotten,
    /// Several keys are granted as soon as they are ours and one of them is free.
    PartGranted,
    /// A key that a waiter has and keeps for the sake of its further keys is given up.
    PinnedYielded,
    /// Whoever joined a hold ends it for all.
    JoinCountedTwice,
    /// A hold may be joined in any mode.
    UpgradeJoined,
    /// Another host waits as long as there are waiters here.
    BudgetIgnored,
    /// The barrier is the hold's own token, whoever else holds the key.
    BarrierTooHigh,
}
