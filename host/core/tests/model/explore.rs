//! A world for stateright to explore, and the report of what it found.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    pub(crate) violation: Option<Violation>,
    pub(crate) sights: Arc<Sights>,
    pub(crate) extent: Extent,
    /// For people.
    pub(crate) summary: String,
}

/// How much of a world was visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    All,
    /// Its time was up, or a violation was found.
    Part,
}

/// What was violated, and by which steps.
pub(crate) struct Violation {
    pub(crate) what: String,
    pub(crate) steps: Vec<Action>,
}

/// Visits all there is, or stops at the first violation, or after `limit`.
pub(crate) fn explore(plan: &Plan, limit: Option<Duration>) -> Found {
    search(plan, limit, None)
}

/// Looks for fewer steps that come to a violation.
pub(crate) fn shorten(plan: &Plan, limit: Option<Duration>, mut violation: Violation) -> Violation {
    while let Some(shorter) = search(plan, limit, Some(violation.steps.len() - 1)).violation {
        violation = shorter;
    }
    violation
}

fn search(plan: &Plan, limit: Option<Duration>, steps_max: Option<usize>) -> Found {
    let sights = Arc::new(Sights::default());
    let started = Instant::now();
    let exploration = Exploration { plan: plan.clone(), sights: Arc::clone(&sights) };
    // Stateright looks at the time only when it shares work.
    let threads = std::thread::available_parallelism().map_or(2, NonZeroUsize::get).max(2);
    let mut builder = exploration.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures);
    if let Some(limit) = limit {
        builder = builder.timeout(limit);
    }
    if let Some(steps_max) = steps_max {
        // Stateright counts worlds, and does not look at the last.
        builder = builder.target_max_depth(steps_max + 2);
    }
    // Breadth first, all worlds of one depth would be in memory at once.
    let checker = builder.spawn_dfs().join();
    let violation = checker.discovery(SAFE).map(|path| Violation {
        what: path.last_state().judge.violation.clone().unwrap_or_default(),
        steps: path.into_actions(),
    });
    let took = started.elapsed();
    let (extent, comment) = match (&violation, limit) {
        (Some(_), _) => (Extent::Part, "a violation"),
        (None, Some(limit)) if took >= limit => (Extent::Part, "out of time, not exhaustive"),
        (None, _) => (Extent::All, "exhaustive"),
    };
    let summary = format!(
        "{:<8} {:>9} steps to {:>8} states, {:>3} deep, {:>5.1} s, {comment}",
        plan.name,
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        took.as_secs_f64(),
    );
    Found { violation, sights, extent, summary }
}
