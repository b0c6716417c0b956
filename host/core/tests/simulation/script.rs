//! What is to happen in one world: the requests and the faults, drawn in advance, so that some can be left out.

use turnstile_core::{Ending, ForcedDelay, KeyRequest, Mode};

use crate::case::Case;
use crate::clock::{MS, SECOND};
use crate::plan::Plan;
use crate::random::{Part, Random};

/// All of it, by number.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) plan: Plan,
    pub(crate) asks: Vec<Ask>,
    pub(crate) faults: Vec<Fault>,
}

/// One request, and how its client will behave.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) client: usize,
    pub(crate) begin: Begin,
    pub(crate) keys: Vec<KeyRequest>,
    pub(crate) wait: u64,
    pub(crate) hold: Option<u64>,
    pub(crate) lock_delay: u64,
    pub(crate) fail_fast: bool,
    pub(crate) queue_max: Option<u32>,
    /// Others may join its hold.
    pub(crate) offers: bool,
    /// How long the upstream works.
    pub(crate) work: u64,
    /// Its user leaves so long after asking, if it still waits.
    pub(crate) patience: Option<u64>,
    /// Its user leaves so long after the grant.
    pub(crate) abandons: Option<u64>,
    /// How the hold ends when the upstream has answered.
    pub(crate) ending: Ending,
}

/// When a request is made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin {
    At(u64),
    /// The upstream of another request makes it, which knows that one's secret.
    Nested {
        of: usize,
        after: u64,
    },
}

/// Something goes wrong, or somebody does something.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) at: u64,
    pub(crate) what: Mishap,
}

#[derive(Clone, Debug)]
pub(crate) enum Mishap {
    /// What is under way on the current stream of the client is lost from some instant on, and each side notices in its
    /// own time.
    StreamBreaks {
        client: usize,
        lost_to_host: u64,
        lost_to_client: u64,
        host_sees: u64,
        client_sees: u64,
    },
    ClientFreezes {
        client: usize,
        duration: u64,
    },
    /// One direction of the client's streams delivers nothing for a while.
    LinkStalls {
        client: usize,
        to_host: bool,
        duration: u64,
    },
    HostFreezes {
        host: usize,
        duration: u64,
    },
    HostDies {
        host: usize,
        death: Death,
    },
    HostDiesAfterGrant {
        host: usize,
        death: Death,
    },
    HostDrains {
        host: usize,
    },
    /// Nothing passes between a host and the store; or any host.
    StoreAway {
        host: Option<usize>,
        duration: u64,
    },
    /// For a while, claims of the host fail: unwritten, or written and unanswered.
    ClaimsFail {
        host: usize,
        duration: u64,
        landed: u64,
    },
    ClaimsRefused {
        host: usize,
        count: u32,
    },
    /// Somebody deletes the record of a key.
    RecordGone {
        key: usize,
    },
    /// An operator ends one hold of a key, or all of them.
    Forced {
        host: usize,
        key: usize,
        all: bool,
        delay: ForcedDelay,
    },
}

/// How a host dies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    pub(crate) after_grant: u64,
    pub(crate) away: u64,
    /// What it has not got through to the store so long after is lost.
    pub(crate) lost_to_store: u64,
}

impl Script {
    pub(crate) fn of(case: &Case) -> Self {
        let mut random = Random::of(case.seed, Part::Script);
        let plan = Plan::random(&mut random, case.weather);
        let faults = faults(&plan, &mut random);
        let mut asks = Vec::new();
        for client in 0..plan.clients.len() {
            let mut at = SECOND + random.range(0, SECOND);
            while at < plan.calm {
                ask(&plan, client, Begin::At(at), &mut random, &mut asks);
                at += random.range(plan.pause / 4, plan.pause * 2);
            }
        }
        Self { plan, asks, faults }
    }
}

fn ask(plan: &Plan, client: usize, begin: Begin, random: &mut Random, asks: &mut Vec<Ask>) {
    let mut keys =
        vec![KeyRequest { key: plan.keys[random.index(plan.keys.len())].clone(), mode: plan.mix.modes.draw(random) }];
    while random.chance(plan.mix.several) {
        add_key(plan, &mut keys, random);
    }
    let offers = random.chance(plan.mix.offers);
    let mut parent = drawn(plan, client, begin, keys, random);
    if offers {
        // Long enough for the calls that its upstream makes.
        parent.offers = true;
        parent.work = (parent.work + random.range(0, 300 * MS)).min(plan.lock_delay_max * 97 / 100);
        parent.lock_delay = parent.lock_delay.max(parent.work * 100 / 97 + 1);
    }
    let number = asks.len();
    let of_parent = parent.keys.clone();
    let work = parent.work;
    asks.push(parent);
    if !offers {
        return;
    }
    for _ in 0..random.range(1, 3) {
        let host = plan.clients[client].0;
        let siblings = plan.clients_of(host);
        let other =
            if random.chance(90) { siblings[random.index(siblings.len())] } else { random.index(plan.clients.len()) };
        let begin = Begin::Nested { of: number, after: random.range(0, work) };
        let keys = keys_of_joiner(plan, &of_parent, random);
        asks.push(drawn(plan, other, begin, keys, random));
    }
}

fn keys_of_joiner(plan: &Plan, of_parent: &[KeyRequest], random: &mut Random) -> Vec<KeyRequest> {
    let mut keys: Vec<KeyRequest> = of_parent.iter().filter(|_| random.chance(80)).cloned().collect();
    for KeyRequest { mode, .. } in &mut keys {
        match random.range(0, 19) {
            0 => *mode = plan.mix.modes.draw(random),
            1 if *mode == Mode::Exclusive => *mode = Mode::Shared,
            _ => {}
        }
    }
    if keys.is_empty() || random.chance(30) {
        add_key(plan, &mut keys, random);
    }
    keys
}

fn add_key(plan: &Plan, keys: &mut Vec<KeyRequest>, random: &mut Random) {
    let key = plan.keys[random.index(plan.keys.len())].clone();
    let mode = plan.mix.modes.draw(random);
    if !keys.iter().any(|wanted| wanted.key == key) {
        keys.push(KeyRequest { key, mode });
    }
}

fn drawn(plan: &Plan, client: usize, begin: Begin, keys: Vec<KeyRequest>, random: &mut Random) -> Ask {
    let wait = match random.range(0, 99) {
        0..8 => 0,
        // Shorter than the store's answer takes.
        8..14 => random.range(MS, 50 * MS),
        _ => random.range(50 * MS, plan.wait_max),
    };
    // Often small, so that the store's record has to be raised for the others.
    let least = if plan.lock_delay_covers { 100 * MS } else { 0 };
    let lock_delay = if random.chance(50) { least } else { random.range(least, plan.lock_delay_max) };
    let work_max = if plan.lock_delay_covers { plan.work_max.min(lock_delay * 97 / 100) } else { plan.work_max };
    let work = if random.chance(60) { random.range(0, work_max / 10) } else { random.range(0, work_max) };
    Ask {
        client,
        begin,
        keys,
        wait,
        hold: random.chance(10).then_some(work / 2 + 1),
        lock_delay,
        fail_fast: random.chance(plan.mix.bounds),
        queue_max: random.chance(plan.mix.bounds).then_some(random.range(1, 3) as u32),
        offers: false,
        work,
        patience: random.chance(10).then_some(random.range(0, SECOND)),
        abandons: random.chance(5).then_some(random.range(0, work)),
        ending: if random.chance(plan.mix.unclean) { Ending::Unclean } else { Ending::Clean },
    }
}

fn faults(plan: &Plan, random: &mut Random) -> Vec<Fault> {
    let pause_max = random.pick(&[400 * MS, 2 * SECOND, 5 * SECOND]);
    // Each run leaves out about half of the kinds: some only show what they can do when others are not in their way.
    let weights = WEIGHTS.map(|(kind, weight)| (kind, if random.chance(50) { weight } else { 0 }));
    let sum: u64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut faults = Vec::new();
    let mut at = SECOND;
    loop {
        at += random.range(20 * MS, pause_max);
        if at >= plan.calm || sum == 0 {
            return faults;
        }
        let mut left = random.range(0, sum - 1);
        let kind = weights.iter().find(|(_, weight)| {
            let found = left < *weight;
            left = left.saturating_sub(*weight);
            found
        });
        if let Some((kind, _)) = kind {
            faults.push(Fault { at, what: mishap(plan, *kind, random) });
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    StreamBreaks,
    ClientFreezes,
    LinkStalls,
    HostFreezes,
    HostDies,
    HostDrains,
    StoreAway,
    ClaimsFail,
    ClaimsRefused,
    RecordGone,
    Forced,
}

const WEIGHTS: [(Kind, u64); 11] = [
    (Kind::StreamBreaks, 25),
    (Kind::ClientFreezes, 12),
    (Kind::LinkStalls, 12),
    (Kind::HostFreezes, 12),
    (Kind::HostDies, 7),
    (Kind::HostDrains, 3),
    (Kind::StoreAway, 8),
    (Kind::ClaimsFail, 7),
    (Kind::ClaimsRefused, 2),
    (Kind::RecordGone, 3),
    (Kind::Forced, 9),
];

fn mishap(plan: &Plan, kind: Kind, random: &mut Random) -> Mishap {
    let client = random.index(plan.clients.len());
    let host = random.index(plan.hosts.len());
    let key = random.index(plan.keys.len());
    let most = random.pick(&[50 * MS, 500 * MS, 2 * SECOND, 4 * SECOND, 7 * SECOND]);
    let duration = random.range(most / 2, most);
    match kind {
        Kind::StreamBreaks => Mishap::StreamBreaks {
            client,
            lost_to_host: random.range(0, 200 * MS),
            lost_to_client: random.range(0, 200 * MS),
            host_sees: random.range(0, duration),
            client_sees: random.range(0, duration),
        },
        Kind::ClientFreezes => Mishap::ClientFreezes { client, duration },
        Kind::LinkStalls => Mishap::LinkStalls { client, to_host: random.chance(50), duration },
        Kind::HostFreezes => Mishap::HostFreezes { host, duration },
        Kind::HostDies => {
            let (after_grant, lost_to_store) = (random.range(MS, 100 * MS), random.range(0, 10 * MS));
            let death = Death { after_grant, away: duration / 4, lost_to_store };
            if random.chance(50) {
                Mishap::HostDies { host, death }
            } else {
                Mishap::HostDiesAfterGrant { host, death }
            }
        }
        Kind::HostDrains => Mishap::HostDrains { host },
        Kind::StoreAway => {
            // Often longer than a lease.
            let most = random.pick(&[500 * MS, 4 * SECOND, 9 * SECOND]);
            Mishap::StoreAway { host: random.chance(70).then_some(host), duration: random.range(most / 2, most) }
        }
        Kind::ClaimsFail => Mishap::ClaimsFail { host, duration, landed: random.pick(&[0, 50, 100]) },
        Kind::ClaimsRefused => Mishap::ClaimsRefused { host, count: random.range(1, 3) as u32 },
        Kind::RecordGone => Mishap::RecordGone { key },
        Kind::Forced => Mishap::Forced {
            host,
            key,
            all: random.chance(50),
            delay: if random.chance(50) { ForcedDelay::Keep } else { ForcedDelay::Skip },
        },
    }
}
