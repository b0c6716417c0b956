//! One history from its beginning to its verdict: faults and load, then calm, then a probe of every key at every host.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::case::Case;
use crate::client::plain_ask;
use crate::clock::SECOND;
use crate::log::{Line, Violation};
use crate::mutants::Sabotage;
use crate::world::World;

/// What one history came to.
pub(crate) struct Verdict {
    pub(crate) violation: Option<Violation>,
    pub(crate) lines: Vec<Line>,
    /// Steps of the engines.
    pub(crate) steps: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

/// Numbers of requests that are in no script.
const PROBES: usize = 1_000_000;

/// Runs the case; quickly, or with all its lines.
pub(crate) fn run(case: &Case, sabotage: Sabotage, verbose: bool) -> Verdict {
    let mut world = World::new(case, sabotage, verbose);
    let outcome = quietly(|| live(&mut world));
    let steps = world.steps();
    let mut log = world.history.log;
    if let Err(text) = outcome {
        let kind = text.split([':', '{']).next().unwrap_or_default();
        log.violate(&format!("check {kind}"), text.clone());
    }
    Verdict { violation: log.violation, lines: log.lines, steps, counts: log.counts }
}

fn live(world: &mut World) {
    let plan = &world.script.plan;
    let (calm, settling, covered) = (plan.calm, plan.settling(), plan.lock_delay_covers);
    world.run(calm);
    world.calm_down();
    world.run(calm + settling);
    world.history.judge(covered);
    probe_each(world);
    probe_together(world);
    let end = world.now + 3 * SECOND;
    world.run(end);
    world.history.judge(covered);
    for place in &world.hosts {
        let (waiters, holds) = (place.process.engine.waiter_count(), place.process.engine.hold_count());
        if waiters + holds > 0 {
            world.history.log.violate("I6 leak", format!("{waiters} waiters and {holds} holds are left"));
        }
    }
}

/// I6: every key can be had again, at every host.
fn probe_each(world: &mut World) {
    let mut name = PROBES;
    for host in 0..world.hosts.len() {
        for key in world.keys() {
            name += 1;
            if !ask(world, host, name, vec![key.clone()]) {
                return;
            }
            let before = granted(world);
            world.run_while(world.now + 6 * SECOND, |world| world.history.ending_count(name) == 0);
            if granted(world) != before + 1 {
                world.history.log.violate("I6 key", format!("{key} cannot be had at host {host}"));
            }
        }
    }
}

/// I6: hosts that want all keys at once do not block each other.
fn probe_together(world: &mut World) {
    let keys: Vec<_> = world.keys().into_iter().take(world.script.plan.config.keys_max).collect();
    let names = PROBES / 2..PROBES / 2 + world.hosts.len();
    // Lets go of what the other probe has left.
    world.run(world.now + SECOND);
    let before = granted(world);
    for (host, name) in names.clone().enumerate() {
        if !ask(world, host, name, keys.clone()) {
            return;
        }
    }
    let count = names.len() as u64;
    world.run_while(world.now + 20 * SECOND, |world| names.clone().any(|name| world.history.ending_count(name) == 0));
    if granted(world) != before + count {
        world.history.log.violate("I6 keys together", format!("{keys:?} cannot be had by all hosts in turn"));
    }
}

fn ask(world: &mut World, host: usize, name: usize, keys: Vec<turnstile_core::LockKey>) -> bool {
    let Some(client) = world.script.plan.clients_of(host).first().copied() else { return false };
    let process = &mut world.clients[client].process;
    if !world.history.is_sound() {
        return false;
    }
    if !process.is_up() {
        world.history.log.violate("I6 session", format!("client {client} has none, long after all faults"));
        return false;
    }
    process.ask_besides(world.now, name, plain_ask(client, keys, 10 * SECOND), &mut world.history);
    world.settle();
    true
}

fn granted(world: &World) -> u64 {
    world.history.log.counts.get("granted").copied().unwrap_or(0)
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs it; a panic becomes its text, and is not printed.
fn quietly(work: impl FnOnce()) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })
}
