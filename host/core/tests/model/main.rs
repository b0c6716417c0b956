//! Every history of small worlds: hosts with real engines, clients, a store, and what can go wrong between them.
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

use crate::explore::explore;

#[test]
fn small() {
    for explored in worlds::all() {
        if std::env::var("ONLY").is_ok_and(|only| only != explored.plan.name) { continue; }
        let found = explore(explored.plan);
        if let Some(violation) = found.violation { println!("{violation}"); continue; }
        for sight in explored.sights {
            if !found.sights.has(sight) { println!("   not seen: {sight:?}"); }
        }
    }
}

#[test]
fn alike() {
    for explored in worlds::all() {
        if std::env::var("ONLY").is_ok_and(|only| only != explored.plan.name) { continue; }
        if let Some(difference) = alike::first_difference(explored.plan, 100_000) { println!("{difference}"); }
    }
}
