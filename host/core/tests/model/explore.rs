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
struct Exploration {
    plan: Plan,
    sights: Arc<Sights>,
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
        if matches!(action, Action::Tick { late_client: None, late_host: None }) {
            self.judge_standstill(world, &mut next);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(SAFE, |_, world: &World| world.judge.violation.is_none())]
    }
}

impl Exploration {
    /// I5: when all work and time alone changes nothing any more, whoever still waits or holds at a host is a client's
    /// request, and nobody waits unless somebody holds.
    fn judge_standstill(&self, before: &World, world: &mut World) {
        if !before.is_calm() || before.fingerprint() != world.fingerprint() {
            return;
        }
        self.sights.see(Sight::Standstill);
        let count = |stage| world.clients.iter().map(|peer| peer.client.count(stage)).sum::<usize>();
        let (waiting, holding) = (count(Stage::Waiting), count(Stage::Holding));
        let engines = || world.hosts.iter().map(|node| &node.host.engine);
        let waiters: usize = engines().map(|engine| engine.waiter_count()).sum();
        let holds: usize = engines().map(|engine| engine.hold_count()).sum();
        if (waiters, holds) != (waiting, holding) || (holding == 0 && waiting > 0) {
            let what = format!("I5: {waiting} wait and {holding} hold, at the hosts {waiters} and {holds}, for ever");
            world.judge.violate(|| what);
        }
    }
}

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
