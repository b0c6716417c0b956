//! Seeded random histories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A test fails by panicking.

mod case;
mod client;
mod clock;
mod faults;
mod history;
mod host;
mod links;
mod log;
mod mutants;
mod plan;
mod random;
mod report;
mod run;
mod script;
mod shrink;
mod store;
mod wire;
mod world;

use std::collections::BTreeMap;

use case::Case;
use mutants::Sabotage;
use run::run;

const RUNS: u64 = 1_000;

#[test]
fn histories_keep_the_invariants() {
    if let Ok(text) = std::env::var(report::CASE) {
        let case: Case = text.parse().unwrap();
        let verdict = run(&case, Sabotage::Nothing, true);
        for line in &verdict.lines {
            println!("{}", line.text);
        }
        assert_eq!(verdict.violation, None);
        return;
    }
    let sabotage =
        std::env::var("TURNSTILE_SIM_SABOTAGE").ok().map(|name| Sabotage::named(&name).unwrap()).unwrap_or_default();
    let runs = number_from("TURNSTILE_SIM_RUNS").unwrap_or(RUNS);
    let first = number_from("TURNSTILE_SIM_FIRST").unwrap_or(0);
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut kinds: BTreeMap<String, (u64, u64, String)> = BTreeMap::new();
    let mut steps = 0;
    let started = std::time::Instant::now();
    for seed in first..first + runs {
        let verdict = run(&Case::whole(seed), sabotage, false);
        steps += verdict.steps;
        for (what, count) in verdict.counts {
            *counts.entry(what).or_insert(0) += count;
        }
        if let Some(violation) = verdict.violation {
            if runs == 1 {
                panic!("{}", report::failure(&Case::whole(seed), &violation, sabotage));
            }
            kinds.entry(violation.kind.clone()).or_insert((0, seed, violation.to_string())).0 += 1;
        }
    }
    println!("{runs} runs, {steps} steps in {:?}: {counts:?}", started.elapsed());
    for (kind, (count, seed, first)) in &kinds {
        println!("KIND {kind} x{count}: {seed} {first}");
    }
    assert!(kinds.is_empty());
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}
