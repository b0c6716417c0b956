//! A world for stateright to explore, and the report of what it found.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::client::Stage;
use crate::judge::{Sight, Sights};
use crate::plan::Plan;
use crate::step::Step;
use crate::world::{Action, World};

const SAFE: &str = "I1, I2, I5";

#[derive(Clone)]
pub(crate) struct Exploration {
    pub(crate) plan: Plan,
    pub(crate) sights: Arc<Sights>,
}

impl Model for Exploration {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.plan, &self.sights)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.judge.violation.is_none() {
            world.actions(&self.plan, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let taken = catch_unwind(AssertUnwindSafe(|| {
            Step { plan: &self.plan, sights: &self.sights, world: &mut next }.take(action);
        }));
        if let Err(panic) = taken {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            next.judge.violate(|| format!("check: {}", text.unwrap_or_default()));
        }
        if matches!(action, Action::Tick { late_client: None, late_host: None }) && next.is_calm() {
            self.judge_calm(world, &mut next);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(SAFE, |_, world: &World| world.judge.violation.is_none())]
    }
}

impl Exploration {
    /// I5, and what of I6 can be seen at one instant. Judged in calm: everybody is connected and heard in time.
    fn judge_calm(&self, before: &World, world: &mut World) {
        let count = |stage| world.clients.iter().map(|peer| peer.client.count(stage)).sum::<usize>();
        let (waiting, holding) = (count(Stage::Waiting), count(Stage::Holding));
        if waiting > 0 && holding == 0 {
            self.wait_out(world);
        }
        // Time alone changes nothing any more: the hosts have what the clients have.
        if before.fingerprint() == world.fingerprint() {
            self.sights.see(Sight::Standstill);
            let engines = || world.hosts.iter().map(|node| &node.host.engine);
            let waiters: usize = engines().map(|engine| engine.waiter_count()).sum();
            let holds: usize = engines().map(|engine| engine.hold_count()).sum();
            if (waiters, holds) != (waiting, holding) {
                let what = format!("I5: {waiting} wait and {holding} hold; at the hosts, {waiters} and {holds}");
                world.judge.violate(|| what);
            }
        }
    }

    /// Nobody waits for long while nobody holds.
    fn wait_out(&self, world: &mut World) {
        let mut later = world.clone();
        for _ in 0..PATIENCE_TICKS {
            let mut step = Step { plan: &self.plan, sights: &self.sights, world: &mut later };
            step.calm_down();
            let stages = || later.clients.iter().flat_map(|peer| &peer.client.requests).map(|request| request.stage);
            if stages().any(|stage| stage == Stage::Holding) || stages().next().is_none() {
                self.sights.see(Sight::WaitedOut);
                break;
            }
            if later.judge.violation.is_some() {
                break;
            }
            let mut step = Step { plan: &self.plan, sights: &self.sights, world: &mut later };
            step.take(Action::Tick { late_client: None, late_host: None });
        }
        let holds = later.clients.iter().any(|peer| peer.client.count(Stage::Holding) > 0);
        let waits = later.clients.iter().any(|peer| peer.client.count(Stage::Waiting) > 0);
        if let Some(violation) = later.judge.violation {
            world.judge.violate(|| format!("{violation} (when all wait)"));
        } else if waits && !holds {
            world.judge.violate(|| "I5: somebody waits for what nobody holds".into());
        }
    }
}

/// Longer than a session, a lease and a lock delay.
const PATIENCE_TICKS: usize = 12;

/// What an exploration came to.
pub(crate) struct Found {
    pub(crate) violation: Option<String>,
    pub(crate) states: usize,
    pub(crate) sights: Arc<Sights>,
}

/// Visits all there is, or stops at the first violation.
pub(crate) fn explore(plan: Plan) -> Found {
    let sights = Arc::new(Sights::default());
    let name = plan.name;
    let started = Instant::now();
    let exploration = Exploration { plan, sights: Arc::clone(&sights) };
    let builder = exploration.checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
    let builder = builder.timeout(std::time::Duration::from_secs(std::env::var("T").map_or(60, |t| t.parse().unwrap())));
    let checker = builder.spawn_dfs().join();
    let violation = checker.discovery(SAFE).map(|path| {
        let what = path.last_state().judge.violation.clone().unwrap_or_default();
        let steps: Vec<String> = path.into_actions().iter().map(|action| format!("  {action:?}")).collect();
        format!("{what}\n{}", steps.join("\n"))
    });
    println!(
        "{name}: {} states, {} different, {} deep, {:.1} s, {}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64(),
        if violation.is_some() { "a violation" } else { "exhaustive" },
    );
    Found { violation, states: checker.unique_state_count(), sights }
}
