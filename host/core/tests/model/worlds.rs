//! The worlds that are explored.

use std::num::NonZeroU32;

use turnstile_core::Mode;

use crate::judge::Sight;
use crate::plan::{Ask, Budget, ClientPlan, FAR, Kin, Plan, StoreLink, TICK};

const A: usize = 0;
const B: usize = 1;
const LIMIT_2: Mode = Mode::Limit(NonZeroU32::MIN.saturating_add(1));

/// A world, and what must be come across in it.
pub(crate) struct Explored {
    pub(crate) plan: Plan,
    pub(crate) sights: Vec<Sight>,
}

/// Modes and several keys at one host.
pub(crate) fn modes() -> Explored {
    let any = || {
        vec![
            ask(&[(A, Mode::Exclusive)]),
            ask(&[(A, Mode::Shared)]),
            ask(&[(A, LIMIT_2)]),
            ask(&[(B, Mode::Exclusive), (A, Mode::Shared)]),
            ask(&[(A, LIMIT_2), (B, Mode::Shared)]),
        ]
    };
    Explored {
        plan: Plan {
            clients: vec![client(0, vec![any()]), client(0, vec![any()]), client(0, vec![any()])],
            budget: Budget { uncleans: 1, cancels: 1, ..Budget::default() },
            ..plan("modes", 1)
        },
        sights: vec![Sight::SharedHolds, Sight::LimitedHolds, Sight::GrantedSeveral, Sight::GrantAfterCancel],
    }
}

/// Turns of readers and writers for one key.
pub(crate) fn turns() -> Explored {
    let any =
        || vec![ask(&[(A, Mode::Exclusive)]), ask(&[(A, Mode::Shared)]), ask(&[(A, LIMIT_2)])];
    Explored {
        plan: Plan {
            clients: vec![client(0, vec![any(), any()]), client(0, vec![any(), any()]), client(0, vec![any()])],
            ..plan("turns", 1)
        },
        sights: vec![Sight::SharedHolds, Sight::LimitedHolds],
    }
}

/// Streams that break and lag.
pub(crate) fn streams() -> Explored {
    let twice = || vec![vec![ask(&[(A, Mode::Exclusive)])], vec![ask(&[(A, Mode::Exclusive)])]];
    Explored {
        plan: Plan {
            clients: vec![client(0, twice()), client(0, twice())],
            budget: Budget { cuts: 1, late_clients: 2, uncleans: 1, ..Budget::default() },
            ..plan("streams", 1)
        },
        sights: vec![
            Sight::ResumedWithHold,
            Sight::ReleaseTold,
            Sight::GrantToldAgain,
            Sight::GrantTooLate,
            Sight::PromiseEnded,
            Sight::SessionEnded,
        ],
    }
}

/// Waits and holds that end by themselves or are ended, and lock delays that the store does not know yet.
pub(crate) fn limits() -> Explored {
    let alone = ask(&[(A, Mode::Exclusive)]);
    let tries = Ask { wait: 0, ..alone.clone() };
    let short = Ask { wait: TICK, hold: Some(TICK), ..alone.clone() };
    let long_delay = Ask { lock_delay: 2 * TICK, ..alone.clone() };
    let any = || vec![tries.clone(), short.clone(), long_delay.clone()];
    Explored {
        plan: Plan {
            clients: vec![client(0, vec![any(), any()]), client(0, vec![any()])],
            budget: Budget { uncleans: 1, cancels: 1, forces: 1, late_clients: 1, ..Budget::default() },
            store: StoreLink::Travels,
            idle_ownership: TICK,
            ..plan("limits", 1)
        },
        sights: vec![Sight::Rejected, Sight::LostTold],
    }
}

/// Holds that others join.
pub(crate) fn families() -> Explored {
    let founder = (0, 1);
    let offers = |keys: &[(usize, Mode)]| Ask { kin: Kin::Offers, ..ask(keys) };
    let joins = |keys: &[(usize, Mode)]| Ask { kin: Kin::Joins(founder), ..ask(keys) };
    Explored {
        plan: Plan {
            clients: vec![
                client(0, vec![vec![offers(&[(A, Mode::Exclusive)]), offers(&[(A, Mode::Shared)])]]),
                client(0, vec![vec![joins(&[(A, Mode::Shared)]), joins(&[(A, Mode::Exclusive), (B, Mode::Exclusive)])]]),
                client(0, vec![vec![joins(&[(B, Mode::Exclusive)]), ask(&[(A, Mode::Shared), (B, Mode::Shared)])]]),
            ],
            budget: Budget { uncleans: 1, cancels: 1, forces: 1, cuts: 1, ..Budget::default() },
            ..plan("families", 1)
        },
        sights: vec![Sight::Joined, Sight::LostTold],
    }
}

/// Two hosts that want the same two keys.
pub(crate) fn rivals() -> Explored {
    let both = || ask(&[(A, Mode::Exclusive), (B, Mode::Exclusive)]);
    let one = |key| ask(&[(key, Mode::Exclusive)]);
    Explored {
        plan: Plan {
            clients: vec![
                client(0, vec![vec![both()], vec![one(B)]]),
                client(1, vec![vec![both(), one(B)]]),
                client(1, vec![vec![one(A), ask(&[(B, Mode::Shared), (A, Mode::Shared)])]]),
            ],
            budget: Budget { losses: 1, uncleans: 1, ..Budget::default() },
            store: StoreLink::Travels,
            ..plan("rivals", 2)
        },
        sights: vec![Sight::GrantedSeveral, Sight::GrantedSeveralContended, Sight::HandedOver, Sight::ClaimedAgain],
    }
}

/// Hosts that die, freeze, or lose the store.
pub(crate) fn deaths() -> Explored {
    let once = || vec![vec![ask(&[(A, Mode::Exclusive)])]];
    Explored {
        plan: Plan {
            clients: vec![client(0, once()), client(1, once())],
            budget: Budget { kills: 1, late_hosts: 3, uncleans: 1, ..Budget::default() },
            store: StoreLink::Travels,
            ..plan("deaths", 2)
        },
        sights: vec![Sight::TakenOver, Sight::QuarantineInherited, Sight::LeaseLost],
    }
}

/// Two hosts, three clients, two keys, and a host that dies.
pub(crate) fn heirs() -> Explored {
    let both = || ask(&[(A, Mode::Exclusive), (B, Mode::Shared)]);
    let one = |key, mode| ask(&[(key, mode)]);
    Explored {
        plan: Plan {
            clients: vec![
                client(0, vec![vec![both()]]),
                client(1, vec![vec![both()]]),
                client(1, vec![vec![one(A, Mode::Exclusive), one(B, Mode::Shared)]]),
            ],
            budget: Budget { kills: 1, ..Budget::default() },
            ..plan("heirs", 2)
        },
        sights: vec![Sight::TakenOver, Sight::QuarantineInherited, Sight::GrantedSeveralContended],
    }
}

pub(crate) fn all() -> Vec<Explored> {
    vec![modes(), turns(), streams(), limits(), families(), rivals(), deaths(), heirs()]
}

fn plan(name: &'static str, hosts: usize) -> Plan {
    Plan {
        name,
        hosts,
        clients: Vec::new(),
        budget: Budget::default(),
        store: StoreLink::Immediate,
        idle_ownership: FAR,
        handoff_grants: 1,
        mutation: None,
    }
}

fn client(host: usize, script: Vec<Vec<Ask>>) -> ClientPlan {
    ClientPlan { host, script, at_once: 1 }
}

fn ask(keys: &[(usize, Mode)]) -> Ask {
    Ask { keys: keys.to_vec(), wait: FAR, lock_delay: TICK, hold: None, kin: Kin::None }
}
