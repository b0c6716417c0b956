//! The worlds that are explored, each about one kind of trouble.

use std::num::NonZeroU32;

use turnstile_core::Mode;

use crate::judge::Sight;
use crate::plan::{Ask, Budget, ClientPlan, FAR, Kin, Plan, Raise, StoreLink, TICK};

const A: usize = 0;
const B: usize = 1;
const LIMIT_2: Mode = Mode::Limit(NonZeroU32::MIN.saturating_add(1));

const NOTHING: Budget =
    Budget { uncleans: 0, cancels: 0, forces: 0, cuts: 0, late_clients: 0, late_hosts: 0, kills: 0, losses: 0 };

/// A world, and what must be come across in it.
pub(crate) struct Explored {
    pub(crate) plan: Plan,
    pub(crate) sights: Vec<Sight>,
}

pub(crate) fn all() -> Vec<Explored> {
    vec![
        modes(),
        turns(),
        families(),
        nested(),
        limits(),
        streams(),
        lags(),
        rivals(),
        deaths(),
        freezes(),
        heirs(),
        raises(),
    ]
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
            budget: Budget { uncleans: 1, cancels: 1, ..NOTHING },
            deeper: Budget { uncleans: 1, cancels: 1, ..NOTHING },
            ..plan("modes", 1)
        },
        sights: vec![Sight::SharedHolds, Sight::LimitedHolds, Sight::GrantedSeveral, Sight::GrantAfterCancel],
    }
}

/// Turns of readers, writers and limited holders for one key.
pub(crate) fn turns() -> Explored {
    let any = || vec![ask(&[(A, Mode::Exclusive)]), ask(&[(A, Mode::Shared)]), ask(&[(A, LIMIT_2)])];
    Explored {
        plan: Plan {
            clients: vec![client(0, vec![any(), any()]), client(0, vec![any(), any()]), client(0, vec![any()])],
            deeper: Budget { uncleans: 1, ..NOTHING },
            ..plan("turns", 1)
        },
        sights: vec![Sight::SharedHolds, Sight::LimitedHolds],
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
                client(
                    0,
                    vec![vec![joins(&[(A, Mode::Shared)]), joins(&[(A, Mode::Exclusive), (B, Mode::Exclusive)])]],
                ),
                client(0, vec![vec![joins(&[(B, Mode::Exclusive)]), ask(&[(A, Mode::Shared)])]]),
            ],
            budget: Budget { uncleans: 1, cancels: 1, forces: 1, ..NOTHING },
            deeper: Budget { cuts: 1, ..NOTHING },
            ..plan("families", 1)
        },
        sights: vec![Sight::Joined, Sight::LostTold],
    }
}

/// A client that joins its own hold, over streams that break.
pub(crate) fn nested() -> Explored {
    let exclusive = || ask(&[(A, Mode::Exclusive)]);
    let offers = || Ask { kin: Kin::Offers, ..exclusive() };
    let joins = |keys: &[(usize, Mode)]| Ask { kin: Kin::Joins((0, 1)), ..ask(keys) };
    let nested = vec![joins(&[(A, Mode::Exclusive)]), joins(&[(A, Mode::Shared), (B, Mode::Exclusive)])];
    Explored {
        plan: Plan {
            clients: vec![
                ClientPlan { at_once: 2, ..client(0, vec![vec![offers()], nested]) },
                client(0, vec![vec![ask(&[(B, Mode::Exclusive)])]]),
            ],
            budget: Budget { cuts: 1, cancels: 1, ..NOTHING },
            deeper: Budget { uncleans: 1, ..NOTHING },
            ..plan("nested", 1)
        },
        sights: vec![Sight::Joined, Sight::ResumedWithHold],
    }
}

/// Waits and holds that end by themselves or are ended, idle keys, and lock delays that the store does not know yet.
pub(crate) fn limits() -> Explored {
    let alone = ask(&[(A, Mode::Exclusive)]);
    let tries = Ask { wait: 0, ..alone.clone() };
    let short = Ask { wait: TICK, hold: Some(TICK), ..alone.clone() };
    let long_delay = Ask { lock_delay: 2 * TICK, ..alone.clone() };
    let any = || vec![tries.clone(), short.clone(), long_delay.clone()];
    Explored {
        plan: Plan {
            clients: vec![client(0, vec![any(), any()]), client(0, vec![any()])],
            budget: Budget { uncleans: 1, forces: 1, late_clients: 1, ..NOTHING },
            deeper: Budget { cancels: 1, ..NOTHING },
            store: StoreLink::Travels,
            idle_ownership: TICK,
            ..plan("limits", 1)
        },
        sights: vec![Sight::Rejected, Sight::LostTold, Sight::WaitedOut],
    }
}

/// Streams that break.
pub(crate) fn streams() -> Explored {
    Explored {
        plan: Plan {
            clients: two_for_one_key(),
            budget: Budget { cuts: 2, ..NOTHING },
            deeper: Budget { uncleans: 1, ..NOTHING },
            ..plan("streams", 1)
        },
        sights: vec![Sight::ResumedWithHold, Sight::ReleaseTold, Sight::GrantToldAgain, Sight::SessionEnded],
    }
}

/// Clients and streams that lag, and break.
pub(crate) fn lags() -> Explored {
    Explored {
        plan: Plan {
            clients: two_for_one_key(),
            budget: Budget { cuts: 1, late_clients: 1, uncleans: 1, ..NOTHING },
            deeper: Budget { late_clients: 1, ..NOTHING },
            ..plan("lags", 1)
        },
        sights: vec![Sight::GrantTooLate, Sight::PromiseEnded, Sight::SessionEnded, Sight::ResumedWithHold],
    }
}

/// Two hosts whose three clients want the same two keys, and answers of the store that get lost.
pub(crate) fn rivals() -> Explored {
    let both = || ask(&[(A, Mode::Exclusive), (B, Mode::Exclusive)]);
    let readers = || ask(&[(B, Mode::Shared), (A, Mode::Shared)]);
    let one = |key| ask(&[(key, Mode::Exclusive)]);
    Explored {
        plan: Plan {
            clients: vec![
                client(0, vec![vec![both()], vec![one(B)]]),
                client(1, vec![vec![both(), one(B)]]),
                client(1, vec![vec![one(A), readers()]]),
            ],
            budget: Budget { losses: 1, uncleans: 1, ..NOTHING },
            deeper: Budget { losses: 1, cancels: 1, ..NOTHING },
            store: StoreLink::Travels,
            ..plan("rivals", 2)
        },
        sights: vec![Sight::GrantedSeveral, Sight::GrantedSeveralContended, Sight::HandedOver, Sight::ClaimedAgain],
    }
}

/// Hosts that die, and are slow besides.
pub(crate) fn deaths() -> Explored {
    Explored {
        plan: Plan {
            clients: one_each(),
            budget: Budget { kills: 1, late_hosts: 1, uncleans: 1, ..NOTHING },
            deeper: Budget { kills: 1, ..NOTHING },
            store: StoreLink::Travels,
            ..plan("deaths", 2)
        },
        sights: vec![Sight::TakenOver, Sight::QuarantineInherited],
    }
}

/// Hosts that are frozen, or away from the store, for longer than their lease.
pub(crate) fn freezes() -> Explored {
    Explored {
        plan: Plan {
            clients: one_each(),
            budget: Budget { late_hosts: 3, ..NOTHING },
            deeper: Budget { late_hosts: 1, uncleans: 1, ..NOTHING },
            ..plan("freezes", 2)
        },
        sights: vec![Sight::TakenOver, Sight::LeaseLost, Sight::PromiseEnded, Sight::GrantTooLate],
    }
}

/// Two hosts whose three clients want the same two keys, and a host that dies.
pub(crate) fn heirs() -> Explored {
    let both = || ask(&[(A, Mode::Exclusive), (B, Mode::Shared)]);
    Explored {
        plan: Plan {
            clients: vec![
                client(0, vec![vec![both()]]),
                client(1, vec![vec![both()]]),
                client(1, vec![vec![ask(&[(A, Mode::Exclusive)]), ask(&[(B, Mode::Shared)])]]),
            ],
            budget: Budget { kills: 1, uncleans: 1, ..NOTHING },
            deeper: Budget { late_hosts: 1, ..NOTHING },
            ..plan("heirs", 2)
        },
        sights: vec![Sight::TakenOver, Sight::QuarantineInherited, Sight::GrantedSeveralContended],
    }
}

/// A host that dies after it had the store remember a longer lock delay than before.
pub(crate) fn raises() -> Explored {
    let exclusive = || ask(&[(A, Mode::Exclusive)]);
    let long_delay = || Ask { lock_delay: 4 * TICK, ..exclusive() };
    Explored {
        plan: Plan {
            clients: vec![client(0, vec![vec![exclusive()], vec![long_delay()]]), client(1, vec![vec![exclusive()]])],
            budget: Budget { kills: 1, ..NOTHING },
            deeper: Budget { losses: 1, ..NOTHING },
            store: StoreLink::Travels,
            ..plan("raises", 2)
        },
        sights: vec![Sight::TakenOver, Sight::QuarantineInherited],
    }
}

/// Two clients of one host that want the same key, one of them twice.
fn two_for_one_key() -> Vec<ClientPlan> {
    let once = || vec![ask(&[(A, Mode::Exclusive)])];
    vec![client(0, vec![once(), once()]), client(0, vec![once()])]
}

/// Two clients of two hosts that want the same key.
fn one_each() -> Vec<ClientPlan> {
    let once = || vec![vec![ask(&[(A, Mode::Exclusive)])]];
    vec![client(0, once()), client(1, once())]
}

fn plan(name: &'static str, hosts: usize) -> Plan {
    Plan {
        name,
        hosts,
        clients: Vec::new(),
        budget: NOTHING,
        deeper: NOTHING,
        store: StoreLink::Immediate,
        raise: Raise::NewEpoch,
        idle_ownership: FAR,
        handoff_grants: 1,
        mutation: None,
    }
}

/// One request at a time.
fn client(host: usize, script: Vec<Vec<Ask>>) -> ClientPlan {
    ClientPlan { host, script, at_once: 1 }
}

fn ask(keys: &[(usize, Mode)]) -> Ask {
    Ask { keys: keys.to_vec(), wait: FAR, lock_delay: TICK, hold: None, kin: Kin::None }
}
