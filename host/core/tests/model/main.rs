//! Every history of small worlds: hosts with real engines, clients, a store, and what can go wrong between them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A test fails by panicking.

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

use turnstile_core::Mode;

use crate::explore::explore;
use crate::plan::*;

fn x(key: usize) -> Ask {
    Ask { keys: vec![(key, Mode::Exclusive)], wait: FAR, lock_delay: TICK, hold: None }
}


fn e(name: &str) -> u8 {
    std::env::var(name).map_or(0, |text| text.parse().unwrap())
}

#[test]
fn one_host() {
    let client = |script: Vec<Vec<Ask>>| ClientPlan { host: 0, script, at_once: 1 };
    let script = || (0..e("ASKS")).map(|_| vec![x(0)]).collect::<Vec<_>>();
    let mut clients: Vec<_> = (0..e("CLIENTS")).map(|_| client(script())).collect();
    if e("HOSTS") > 1 { clients[0].host = 1; }
    let plan = Plan {
        name: "streams",
        hosts: e("HOSTS") as usize,
        clients,
        budget: Budget { uncleans: e("UNCLEANS"), cancels: e("CANCELS"), cuts: e("CUTS"), late_clients: e("LC"), late_hosts: e("LH"), kills: e("KILLS"), losses: e("LOSSES") },
        store: if e("TRAVELS") > 0 { StoreLink::Travels } else { StoreLink::Immediate },
        idle_ownership: FAR,
        handoff_grants: 1,
        mutation: None,
    };
    let found = explore(plan);
    if let Some(violation) = found.violation {
        panic!("{violation}");
    }
}

#[test]
fn ticks() {
    use crate::world::*; use crate::step::Step; use crate::judge::Sights;
    let client = |script: Vec<Vec<Ask>>| ClientPlan { host: 0, script, at_once: 1 };
    let plan = Plan { name: "t", hosts: 1, clients: vec![client(vec![vec![x(0)]])], budget: Budget::default(), store: StoreLink::Immediate, idle_ownership: FAR, handoff_grants: 1, mutation: None };
    let sights = Sights::default();
    let mut world = World::new(&plan, &sights);
    for _ in 0..30 {
        let mut actions = vec![];
        world.actions(&plan, &mut actions);
        println!("{:x} {actions:?}", world.fingerprint());
        println!("{:?}", world.clients[0].client);
        let action = actions.into_iter().rev().next().unwrap();
        Step { plan: &plan, sights: &sights, world: &mut world }.take(action);
    }
}
