//! Seeded random histories of one host, its clients, and a store under faults, judged by what was believed and done.
//!
//! `TURNSTILE_SIM_SEED=<seed>` replays one history and prints it; `TURNSTILE_SIM_RUNS=<count>` looks further.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A test fails by panicking.

mod client;
mod clock;
mod history;
mod host;
mod phantom;
mod random;
mod store;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use turnstile_core::Mutation;

use crate::clock::{MS, SECOND, micros};
use crate::world::{Sabotage, World};

const RUNS: u64 = 2_000;

/// A mutation must be caught within this many runs.
const MUTANT_RUNS: u64 = 6_000;

/// What one history came to.
struct Verdict {
    violation: Option<String>,
    log: Vec<String>,
    steps: u64,
    counts: BTreeMap<&'static str, u64>,
}

#[test]
fn histories_keep_the_invariants() {
    if let Some(seed) = number_from("TURNSTILE_SIM_SEED") {
        let verdict = history(seed, Sabotage::default(), true);
        for line in &verdict.log {
            println!("{line}");
        }
        assert_eq!(verdict.violation, None, "seed {seed}");
        return;
    }
    let runs = number_from("TURNSTILE_SIM_RUNS").unwrap_or(RUNS);
    let mut counts = BTreeMap::new();
    let mut steps = 0;
    let started = std::time::Instant::now();
    for seed in 0..runs {
        let verdict = history(seed, Sabotage::default(), false);
        if let Some(violation) = verdict.violation {
            panic!(
                "seed {seed}: {violation}\nreplay: TURNSTILE_SIM_SEED={seed} \
                 cargo test -p turnstile-core --test simulation histories -- --nocapture"
            );
        }
        steps += verdict.steps;
        for (what, count) in verdict.counts {
            *counts.entry(what).or_insert(0) += count;
        }
    }
    println!("{runs} runs, {steps} steps in {:?}: {counts:?}", started.elapsed());
    // Histories in which nothing happens prove nothing.
    for what in ["grants", "rejected", "cancelled", "granted too late", "promise ended", "holds lost", "resumed"] {
        assert!(counts.get(what).is_some_and(|count| *count >= runs / 20), "{what}: {counts:?}");
    }
    for what in ["grants told again", "leases lost", "hosts killed", "sessions ended", "yields"] {
        assert!(counts.get(what).is_some_and(|count| *count >= runs / 20), "{what}: {counts:?}");
    }
}

/// One history: faults and load, then calm, then a probe of every key.
fn history(seed: u64, sabotage: Sabotage, verbose: bool) -> Verdict {
    let mut world = World::new(seed, sabotage, verbose);
    let outcome = catch_unwind(AssertUnwindSafe(|| live(&mut world)));
    let mut violation = world.history.violation().map(str::to_owned);
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        violation = Some(format!("check: {}", text.unwrap_or_default()));
    }
    Verdict {
        violation,
        log: world.history.log().to_vec(),
        steps: world.steps,
        counts: std::mem::take(&mut world.history.counts),
    }
}

fn live(world: &mut World) {
    let covered = world.plan.lock_delay_covers;
    world.run(world.plan.calm);
    world.store.refusals = 0;
    for client in &mut world.clients {
        client.rest();
    }
    // I6: session TTL, the store's bound, the lock delay; and I5: all waits.
    let ttl = micros(world.plan.config.session_ttl);
    let bound = 8 * SECOND + ttl + store::LEASE_TTL + world.plan.lock_delay_max + world.plan.wait_max + 2 * SECOND;
    world.run(world.plan.calm + bound);
    world.history.judge_overlaps(world.now, covered);
    world.history.judge_endings(world.now);
    probe(world);
}

/// I6: every key can be had again.
fn probe(world: &mut World) {
    if world.history.violation().is_some() {
        return;
    }
    for key in world.keys.clone() {
        let client = &mut world.clients[0];
        if !client.is_up() {
            world.history.violate(world.now, "I6: a client has no session long after all faults".into());
            return;
        }
        let before = world.history.counts.get("granted").copied().unwrap_or(0);
        client.ask(world.now, key.clone(), SECOND, 0, MS, &mut world.history);
        world.run(world.now + 2 * SECOND);
        if world.history.counts.get("granted").copied().unwrap_or(0) != before + 1 {
            world.history.violate(world.now, format!("I6: {key} cannot be had"));
        }
    }
    world.history.judge_endings(world.now);
    world.history.judge_overlaps(world.now, world.plan.lock_delay_covers);
}

/// No hash map's order, and no clock, gets into what the engine does.
#[test]
fn a_seed_means_one_history() {
    for seed in 0..30 {
        let (first, second) = (history(seed, Sabotage::default(), true), history(seed, Sabotage::default(), true));
        assert!(first.log.len() > 100, "seed {seed} tells nothing");
        assert_eq!(first.log, second.log, "seed {seed}");
    }
}

/// By the history, not by the engine's own check, which is off here.
#[test]
fn every_mutation_is_caught() {
    let engine = |mutation| Sabotage { engine: Some(mutation), anchor_at_receipt: false };
    let mutants = [
        (engine(Mutation::NoLockDelay), "I1: orphan"),
        (engine(Mutation::EndBeforePromise), "I1: "),
        (engine(Mutation::LeaseIgnored), "I3"),
        (engine(Mutation::LockDelayNotRaised), "I1: orphan"),
        (engine(Mutation::SequenceReset), "I2"),
        (engine(Mutation::SuspendedGranted), "I4"),
        (engine(Mutation::ReleaseLostInResume), "I6"),
        (engine(Mutation::SessionCutShort), "I3"),
        (engine(Mutation::LastComeFirstServed), "I4"),
        (engine(Mutation::TimeoutNotTold), "I5"),
        (engine(Mutation::PredecessorIgnored), "I1"),
        (Sabotage { engine: None, anchor_at_receipt: true }, "I3"),
    ];
    for (sabotage, expected) in mutants {
        let caught = (0..MUTANT_RUNS).find_map(|seed| {
            let violation = history(seed, sabotage, false).violation?;
            violation.contains(expected).then_some((seed, violation))
        });
        match caught {
            Some((seed, violation)) => println!("{sabotage:?}: caught by seed {seed}: {violation}"),
            None => panic!("{sabotage:?} was not caught as {expected} in {MUTANT_RUNS} runs"),
        }
    }
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}
