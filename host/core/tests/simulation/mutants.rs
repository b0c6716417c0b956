//! What a run breaks on purpose. Each must be noticed by the history alone, or the checker would miss the real thing.

use turnstile_core::Mutation;

/// One thing that is done wrong: in the engine, in the driver or client around it, or in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sabotage {
    #[default]
    Nothing,
    Engine(Mutation),
    /// Clients count promises from the receipt, not from the heartbeat that they rest on.
    AnchoredAtReceipt,
    /// Clients go on when their promise has ended.
    ExpiryIgnored,
    /// Hosts count their lease from the store's answer, not from the sending of the keepalive.
    LeaseAnchoredAtReceipt,
    /// The driver takes a claim that may have landed for one that did not.
    AmbiguousTakenForFailed,
    /// The store hands a dead host's keys on before its lock delays are over.
    DelayOfTheDeadForgotten,
    /// The store takes the record of a restarted host's former life for that of a live owner.
    OldSelfTakenForLive,
    /// The store gives a dead host's keys out under the same epoch.
    EpochOfTheDeadKept,
    /// The store forgets the place of a claim now and then.
    PlaceForgotten,
}

impl Sabotage {
    pub(crate) fn engine(self) -> Option<Mutation> {
        match self {
            Self::Engine(mutation) => Some(mutation),
            _ => None,
        }
    }
}
