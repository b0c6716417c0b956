//! What a run breaks on purpose. Each must be noticed by the history alone (the engine's own check is off then), or the
//! checker would miss the real thing.

use turnstile_core::Mutation;

use crate::case::Case;
use crate::report;
use crate::run::run;

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

/// What is done wrong, and the kind of violation that tells.
const MUTANTS: &[(Sabotage, &str)] = &[
    (Sabotage::Engine(Mutation::NoLockDelay), "I1 orphan overlap"),
    (Sabotage::Engine(Mutation::EndBeforePromise), "I1 hold overlap"),
    (Sabotage::Engine(Mutation::LeaseIgnored), "I3 lease"),
    (Sabotage::Engine(Mutation::LockDelayNotRaised), "I1 orphan overlap"),
    (Sabotage::Engine(Mutation::SequenceReset), "I2 token"),
    (Sabotage::Engine(Mutation::SuspendedGranted), "I4 grant without a stream"),
    (Sabotage::Engine(Mutation::ReleaseLostInResume), "I6 key"),
    (Sabotage::Engine(Mutation::SessionCutShort), "I3 session"),
    (Sabotage::Engine(Mutation::LastComeFirstServed), "I4 overtaken"),
    (Sabotage::Engine(Mutation::TimeoutNotTold), "I5 never answered"),
    (Sabotage::Engine(Mutation::PredecessorIgnored), "I1 orphan overlap"),
    (Sabotage::Engine(Mutation::YieldInQuarantine), "I1 orphan overlap"),
    (Sabotage::Engine(Mutation::EvictInQuarantine), "I1 orphan overlap"),
    (Sabotage::Engine(Mutation::PlacesForgotten), "I4 overtaken"),
    (Sabotage::Engine(Mutation::LimitMiscounted), "I1 hold overlap"),
    (Sabotage::Engine(Mutation::SharedBesideExclusive), "I1 hold overlap"),
    (Sabotage::Engine(Mutation::LingeringForgotten), "I1 orphan overlap"),
    (Sabotage::Engine(Mutation::PartGranted), "I1 hold overlap"),
    (Sabotage::Engine(Mutation::PinnedYielded), "I4 pinned key yielded"),
    (Sabotage::Engine(Mutation::JoinCountedTwice), "I1 hold overlap"),
    (Sabotage::Engine(Mutation::UpgradeJoined), "I1 joined beyond its mode"),
    (Sabotage::Engine(Mutation::BudgetIgnored), "I4 budget"),
    (Sabotage::Engine(Mutation::BarrierTooHigh), "I1 below the barrier"),
    (Sabotage::AnchoredAtReceipt, "I3"),
    (Sabotage::ExpiryIgnored, "I1 hold overlap"),
    (Sabotage::LeaseAnchoredAtReceipt, "I3 lease"),
    (Sabotage::AmbiguousTakenForFailed, "I6 key"),
    (Sabotage::DelayOfTheDeadForgotten, "I1 orphan overlap"),
    (Sabotage::OldSelfTakenForLive, "I1"),
    (Sabotage::EpochOfTheDeadKept, "I2 token"),
    (Sabotage::PlaceForgotten, "I6 key"),
];

/// Each must be caught within so many runs.
const RUNS: u64 = 4_000;

impl Sabotage {
    /// As in the list, such as `Engine(NoLockDelay)`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        MUTANTS.iter().map(|(sabotage, _)| *sabotage).find(|sabotage| format!("{sabotage:?}") == name)
    }

    pub(crate) fn engine(self) -> Option<Mutation> {
        match self {
            Self::Engine(mutation) => Some(mutation),
            _ => None,
        }
    }
}

#[test]
fn every_mutation_is_caught() {
    let mut missed = Vec::new();
    for (sabotage, expected) in MUTANTS {
        let found = (0..RUNS).find_map(|seed| {
            let case = Case::whole(seed);
            let violation = run(&case, *sabotage, false).violation?;
            violation.kind.starts_with(expected).then_some((case, violation))
        });
        match found {
            Some((case, violation)) => println!("{sabotage:?}: caught by seed {}: {violation}", case.seed),
            None => missed.push(format!("{sabotage:?} was not caught as {expected} in {RUNS} runs")),
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// A shrunk case is small, and means the same when its name is read again.
#[test]
fn what_fails_is_shrunk() {
    let sabotage = Sabotage::Engine(Mutation::NoLockDelay);
    let found = (0..RUNS).find_map(|seed| {
        let case = Case::whole(seed);
        run(&case, sabotage, false).violation.map(|violation| (case, violation))
    });
    let (case, violation) = found.expect("a mutant that is caught");
    let small = report::shrunk(&case, &violation, sabotage);
    assert_eq!(small.violation.kind, violation.kind);
    assert!(small.trace.lines().count() < 40, "{}", small.trace);
    let read_again: Case = small.case.to_string().parse().unwrap();
    assert_eq!(run(&read_again, sabotage, false).violation, Some(small.violation));
}
