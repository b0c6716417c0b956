//! The shape of one world: how many hosts and clients, their clocks and bounds, and what is asked for.

use std::num::NonZeroU32;
use std::time::Duration;

use turnstile_core::{Config, HandoffBudget, LockKey, Mode};

use crate::case::Weather;
use crate::clock::{Clock, MS, SECOND, micros};
use crate::random::Random;

/// What one seed means before anything has happened.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) config: Config,
    /// One host a clock.
    pub(crate) hosts: Vec<Clock>,
    /// The host of each client, and the client's clock.
    pub(crate) clients: Vec<(usize, Clock)>,
    pub(crate) keys: Vec<LockKey>,
    /// No upstream works for longer than the lock delay that its request names.
    pub(crate) lock_delay_covers: bool,
    pub(crate) lock_delay_max: u64,
    pub(crate) lease_ttl: u64,
    pub(crate) wait_max: u64,
    pub(crate) work_max: u64,
    /// Mean pause between the requests of a client.
    pub(crate) pause: u64,
    pub(crate) mix: Mix,
    /// Faults and requests end here.
    pub(crate) calm: u64,
}

/// What requests are like, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    pub(crate) modes: Modes,
    pub(crate) several: u64,
    pub(crate) offers: u64,
    pub(crate) bounds: u64,
    /// Unclean endings of those that were answered.
    pub(crate) unclean: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Modes {
    Exclusive,
    /// So many percent write.
    ReadersAndWriters(u64),
    /// Mostly up to so many at once.
    Limited(u64),
    Any,
}

impl Plan {
    pub(crate) fn random(random: &mut Random, weather: Weather) -> Self {
        // Work that outlasts a lease shows what becomes of the lock delays of the dead.
        let (work_max, lock_delay_max) = random.pick(&[
            (100 * MS, 300 * MS),
            (500 * MS, SECOND),
            (3 * SECOND, 4 * SECOND),
            (10 * SECOND, 12 * SECOND),
        ]);
        let hosts: Vec<Clock> = (0..random.pick(&[1, 2, 2, 2, 3])).map(|_| Clock::random(random)).collect();
        let clients = (0..hosts.len()).flat_map(|host| vec![host; random.range(1, 3) as usize]).collect::<Vec<_>>();
        let clients = clients.into_iter().map(|host| (host, Clock::random(random))).collect();
        let names = ["k/a", "k/b", "k/c", "k/d"];
        let keys = names[..random.pick(&[1, 1, 2, 2, 3, 4])].iter().map(|name| LockKey::parse(name).expect("a key"));
        let mut plan = Self {
            config: config(random, lock_delay_max),
            hosts,
            clients,
            keys: keys.collect(),
            lock_delay_covers: random.chance(80),
            lock_delay_max,
            lease_ttl: random.pick(&[3 * SECOND / 2, 5 * SECOND]),
            wait_max: random.pick(&[SECOND, 6 * SECOND]),
            work_max,
            pause: random.pick(&[150 * MS, 400 * MS, SECOND]),
            mix: Mix::random(random),
            calm: random.range(6, 20) * SECOND,
        };
        if weather == Weather::Fair {
            plan.hosts.fill(Clock::TRUE);
            plan.clients.iter_mut().for_each(|(_, clock)| *clock = Clock::TRUE);
        }
        plan
    }

    /// The clients of a host.
    pub(crate) fn clients_of(&self, host: usize) -> Vec<usize> {
        (0..self.clients.len()).filter(|client| self.clients[*client].0 == host).collect()
    }

    /// How long a key may be out of reach, and a wait may last, once all is calm: the session TTL, the store's bound,
    /// the lock delay, and what was begun before.
    pub(crate) fn settling(&self) -> u64 {
        let bounds = micros(self.config.session_ttl) + self.lease_ttl + self.lock_delay_max;
        16 * SECOND + bounds + self.wait_max + self.work_max.max(2 * SECOND)
    }
}

impl Mix {
    fn random(random: &mut Random) -> Self {
        Self {
            modes: match random.range(0, 5) {
                0 | 1 => Modes::Exclusive,
                2 => Modes::ReadersAndWriters(random.pick(&[5, 30])),
                3 => Modes::Limited(random.range(1, 4)),
                _ => Modes::Any,
            },
            several: random.pick(&[0, 20, 60]),
            offers: random.pick(&[0, 0, 40]),
            bounds: random.pick(&[0, 20]),
            unclean: random.pick(&[2, 10, 40]),
        }
    }
}

impl Modes {
    pub(crate) fn draw(self, random: &mut Random) -> Mode {
        match self {
            Self::Exclusive => Mode::Exclusive,
            Self::ReadersAndWriters(writers) if random.chance(writers) => Mode::Exclusive,
            Self::ReadersAndWriters(_) => Mode::Shared,
            Self::Limited(_) if random.chance(5) => Mode::Exclusive,
            Self::Limited(most) if random.chance(80) => limit(most),
            Self::Limited(_) => limit(random.range(1, 5)),
            Self::Any => match random.range(0, 2) {
                0 => Mode::Exclusive,
                1 => Mode::Shared,
                _ => limit(random.range(1, 3)),
            },
        }
    }
}

fn limit(most: u64) -> Mode {
    Mode::Limit(NonZeroU32::new(most as u32).expect("a limit"))
}

fn config(random: &mut Random, lock_delay_max: u64) -> Config {
    Config {
        session_ttl: Duration::from_micros(random.pick(&[2 * SECOND, 4 * SECOND])),
        claim_patience: Duration::from_millis(random.range(50, 1_000)),
        handoff_budget: HandoffBudget {
            grants: random.range(0, 4) as u32,
            time: Duration::from_millis(random.range(0, 500)),
        },
        idle_ownership: Duration::from_millis(random.pick(&[0, 200, 5_000])),
        waiters_per_key_max: random.pick(&[3, 100, 100, 100]),
        waiters_per_session_max: random.pick(&[3, 100, 100, 100]),
        holds_per_session_max: random.pick(&[2, 100, 100, 100]),
        joins_per_hold_max: random.pick(&[1, 100, 100, 100]),
        keys_max: random.pick(&[2, 100, 100, 100]),
        sessions_max: random.pick(&[5, 100]),
        lock_delay_max: Duration::from_micros(lock_delay_max),
        ..Config::default()
    }
}
