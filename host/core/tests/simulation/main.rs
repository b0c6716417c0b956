//! Seeded random histories of several hosts, their clients and a store, in virtual time and under faults.
//!
//! **The world** (`world`, `links`, `faults`) runs real engines, each in a model of its process (`host`: streams,
//! the driver's claims and retries), with 1 to 3 clients each (`client`: a proxy worker by the book) and one store
//! (`store`: the contract of `host/src/store`). Every machine has its own clock, up to 1 % wrong. Streams delay, stall
//! and break, with what was under way lost on either side and stale messages arriving late; processes freeze (hosts
//! also past their lease), die (also right after a grant) and restart; hosts drain; claims fail, landed or not; records
//! are deleted by hand; operators force holds to end. Each run leaves out about half of these.
//!
//! **A case** (`case`) names one history: a seed, and what is left out of its `script` (the requests and faults, drawn
//! in advance) and of its weather. Each part of the world has its own randomness, so that leaving out one thing changes
//! nothing else; that is how a failure is shrunk (`shrink`, `report`).
//!
//! **The verdict** (`run`): after every step of an engine its own `check()`, and at all times the `history`, which
//! knows nothing of any engine's state. It judges
//! - what clients believed and upstreams worked on, over all hosts: I1 for holds and orphans in their modes and in
//!   families of joined holds, beliefs below a barrier (`possessions`); I3 (`world`); I5 by the client;
//! - the tokens, over all hosts: I2 (`tokens`);
//! - what each host was told and said: I4 (nobody overtaken; pinned keys kept; the handoff budget), I5 (honest rejects,
//!   what is joined to what, hold limits), I7 (`ledger`, `verdicts`, `families`, `ownership`);
//! - and in the end I6: every key can be had at every host, and all keys by all hosts at once.
//!
//! **The proof that it bites** (`mutants`): some thirty things done wrong on purpose, in the engine, the driver, the
//! client and the store, each caught by the history alone.
//!
//! How several keys queue (I4): a request stands in the queue of its smallest key from the start, and in that of each
//! further key while it is first in line for all smaller ones and those would admit it. So one that came later may be
//! served before it on a key that it does not queue for yet, and never on one that it queues for. The ledger takes it
//! to queue for a further key only when the smaller ones surely admit it: they are ours, nobody holds them or came
//! before, nothing lingers, and a step has passed since.
//!
//! | variable | meaning |
//! |---|---|
//! | `TURNSTILE_SIM_RUNS` | so many seeds instead of the usual number |
//! | `TURNSTILE_SIM_FIRST` | the first seed |
//! | `TURNSTILE_SIM_CASE` | this case alone, with its trace; a failure prints it |
//! | `TURNSTILE_SIM_SABOTAGE` | with something done wrong, such as `Engine(NoLockDelay)` |
// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod case;
mod client;
mod clock;
mod explore;
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

use case::Case;
use mutants::Sabotage;
use run::run;

/// More than a million steps of the engines.
const RUNS: u64 = 2_500;

/// Histories in which nothing happens prove nothing: each of these comes at least once in twenty runs.
const HAPPENS: [&str; 20] = [
    "grants",
    "rejected",
    "cancelled",
    "granted too late",
    "grants told again",
    "promise ended",
    "holds lost",
    "forced",
    "resumed",
    "sessions ended",
    "hosts killed",
    "hosts drained",
    "leases lost",
    "yields",
    "claims failed",
    "claims unanswered",
    "several keys granted",
    "joined",
    "reject: upgrade",
    "reject: wait hopeless",
];

#[test]
fn histories_keep_the_invariants() {
    let sabotage = match std::env::var("TURNSTILE_SIM_SABOTAGE") {
        Ok(name) => Sabotage::named(&name).unwrap_or_else(|| panic!("TURNSTILE_SIM_SABOTAGE: no such thing is done")),
        Err(_) => Sabotage::Nothing,
    };
    if let Ok(text) = std::env::var(report::CASE) {
        return replay(&text, sabotage);
    }
    let first = number_from("TURNSTILE_SIM_FIRST").unwrap_or(0);
    let runs = number_from("TURNSTILE_SIM_RUNS").unwrap_or(RUNS);
    let started = std::time::Instant::now();
    let summary = explore::explore(first..first + runs, sabotage);
    if let Some((seed, violation)) = summary.failure {
        panic!("{}", report::failure(&Case::whole(seed), &violation, sabotage));
    }
    println!("{} runs, {} steps in {:?}: {:?}", summary.runs, summary.steps, started.elapsed(), summary.counts);
    if runs < RUNS {
        return;
    }
    assert!(summary.steps >= 1_000_000, "too few steps");
    for what in HAPPENS {
        assert!(summary.counts.get(what).is_some_and(|count| *count >= runs / 20), "{what}: {:?}", summary.counts);
    }
}

fn replay(text: &str, sabotage: Sabotage) {
    let case: Case = text.parse().unwrap_or_else(|what| panic!("{}: {what}", report::CASE));
    let verdict = run(&case, sabotage, true);
    for line in &verdict.lines {
        println!("{}", line.text);
    }
    if let Some(violation) = verdict.violation {
        panic!("{violation}");
    }
}

/// No hash map's order, and no clock, gets into what happens.
#[test]
fn a_case_means_one_history() {
    for seed in 0..30 {
        let case = Case::whole(seed);
        let (first, second) = (run(&case, Sabotage::Nothing, true), run(&case, Sabotage::Nothing, true));
        assert!(first.lines.len() > 100, "seed {seed} tells nothing");
        assert_eq!(first.lines, second.lines, "seed {seed}");
    }
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}
