//! That worlds which look alike go on alike: or else an exploration would leave out what only one of them leads to.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use stateright::Model;

use crate::explore::Exploration;
use crate::judge::Sights;
use crate::plan::Plan;
use crate::world::{Action, World};

/// What may happen next, and to what it leads.
type Ways = Vec<(Action, u64)>;

/// Looks at `count` worlds, those soonest to come and those farthest away by turns, and says which two of them look alike
/// and do not go on alike.
pub(crate) fn first_difference(plan: Plan, count: usize) -> Option<String> {
    let exploration = Exploration { plan, sights: Arc::new(Sights::default()) };
    let mut known: HashMap<u64, (Ways, Vec<Action>)> = HashMap::new();
    let mut open: VecDeque<(World, Vec<Action>)> =
        exploration.init_states().into_iter().map(|world| (world, Vec::new())).collect();
    for turn in 0..count {
        let (world, path) = if turn % 2 == 0 { open.pop_front() } else { open.pop_back() }?;
        let nexts = next_worlds(&exploration, &world);
        let ways: Ways = nexts.iter().map(|(action, next)| (*action, next.fingerprint())).collect();
        match known.get(&world.fingerprint()) {
            Some((before, _)) if *before == ways => {}
            Some((before, other)) => {
                let differing: Vec<_> = before.iter().zip(&ways).filter(|(one, two)| one != two).collect();
                return Some(format!(
                    "{}: after\n{other:?}\nand after\n{path:?}\nthe world looks the same, and goes on differently: \
                     {differing:?}",
                    exploration.plan.name
                ));
            }
            None => {
                known.insert(world.fingerprint(), (ways, path.clone()));
                for (action, next) in nexts {
                    open.push_back((next, [path.as_slice(), &[action]].concat()));
                }
            }
        }
    }
    None
}

fn next_worlds(exploration: &Exploration, world: &World) -> Vec<(Action, World)> {
    let mut actions = Vec::new();
    exploration.actions(world, &mut actions);
    let next = |action| exploration.next_state(world, action).map(|next| (action, next));
    actions.into_iter().filter_map(next).collect()
}
