//! Every history of small worlds: hosts with real engines, clients and a store by the book, all that may happen between
//! them in any order, and a budget of what may go wrong. Time has no end: worlds that differ in their age alone are one.
//!
//! `TURNSTILE_MODEL_DEEPER=<levels>` lets more go wrong, `TURNSTILE_MODEL_SECONDS=<limit>` bounds each world,
//! `TURNSTILE_MODEL_WORLD=<name>` explores one alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A test fails by panicking.

mod alike;
mod client;
mod explore;
mod host;
mod judge;
mod names;
mod plan;
mod step;
mod store;
mod wire;
mod world;
mod worlds;

use std::io::Write;
use std::time::Duration;

use turnstile_core::Mutation;

use crate::explore::{Extent, Violation, explore, shorten};
use crate::judge::Sight;
use crate::plan::{Plan, Raise};

/// Worlds of each kind that are compared with those that look like them.
const COMPARED: usize = 20_000;

#[test]
fn small_worlds_keep_the_invariants() {
    let levels = number_from("TURNSTILE_MODEL_DEEPER").unwrap_or(0);
    let limit = number_from("TURNSTILE_MODEL_SECONDS").map(Duration::from_secs);
    let only = std::env::var("TURNSTILE_MODEL_WORLD").ok();
    let chosen = |name| only.as_ref().is_none_or(|only| only == name);
    let worlds: Vec<_> = worlds::all().into_iter().filter(|explored| chosen(explored.plan.name)).collect();
    assert!(!worlds.is_empty(), "there is no world {only:?}");
    for explored in worlds {
        let plan = explored.plan.deeper(u8::try_from(levels).expect("few levels"));
        let found = explore(&plan, limit);
        tell(&format!("{} ({})", found.summary, plan.describe()));
        if let Some(violation) = found.violation {
            panic!("{}", story(&plan, shorten(&plan, limit, violation)));
        }
        // Worlds in which nothing happens prove nothing.
        for sight in explored.sights.into_iter().chain([Sight::Granted, Sight::Standstill]) {
            let seen = found.sights.has(sight) || found.extent == Extent::Part;
            assert!(seen, "{}: {sight:?} is nowhere to be seen", plan.name);
        }
    }
}

/// By what clients believe and hosts answer, not by the engine's own check, which is off here.
#[test]
fn mutations_are_caught() {
    let same_epoch = |plan| Plan { raise: Raise::OldEpoch, ..plan };
    let mutants = [
        (worlds::modes().plan, Mutation::NoLockDelay, "I1"),
        (worlds::modes().plan, Mutation::LingeringForgotten, "I1"),
        (worlds::modes().plan, Mutation::LimitMiscounted, "I1"),
        (worlds::modes().plan, Mutation::PartGranted, "I1"),
        (worlds::turns().plan, Mutation::SharedBesideExclusive, "I1"),
        (worlds::families().plan, Mutation::JoinCountedTwice, "I1"),
        (worlds::families().plan, Mutation::UpgradeJoined, "I1"),
        (worlds::rivals().plan, Mutation::YieldInQuarantine, "I1"),
        (worlds::limits().plan, Mutation::EndBeforePromise, "I1"),
        (worlds::freezes().plan, Mutation::LeaseIgnored, "I1"),
        (worlds::raises().plan, Mutation::LockDelayNotRaised, "I1"),
        (worlds::deaths().plan, Mutation::PredecessorIgnored, "I1"),
        (same_epoch(worlds::limits().plan), Mutation::SequenceReset, "I2"),
        (worlds::limits().plan, Mutation::TimeoutNotTold, "I5"),
        (worlds::streams().plan, Mutation::ReleaseLostInResume, "I5"),
        (worlds::streams().plan, Mutation::PlacesForgotten, "I5"),
    ];
    for (plan, mutation, expected) in mutants {
        let plan = plan.broken_by(mutation);
        let found = explore(&plan, None);
        let Some(violation) = found.violation else { panic!("{mutation:?} was not caught: {}", found.summary) };
        tell(&format!("{}: {mutation:?}: {}", found.summary, violation.what));
        assert!(violation.what.contains(expected), "{mutation:?}: {}", story(&plan, violation));
    }
}

#[test]
fn worlds_that_look_alike_go_on_alike() {
    for explored in worlds::all() {
        if let Some(difference) = alike::first_difference(explored.plan, COMPARED) {
            panic!("{difference}");
        }
    }
}

fn story(plan: &Plan, violation: Violation) -> String {
    let steps: Vec<String> = violation.steps.iter().map(|step| format!("    {step:?}")).collect();
    format!("{}: {}, after\n{}", plan.name, violation.what, steps.join("\n"))
}

/// Says it even if the test passes: how much was explored is the result.
fn tell(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("standard output");
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}
