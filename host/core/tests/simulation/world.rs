//! The world of one run: true time, links that delay and break, and faults, all from one seed.

use std::collections::BTreeMap;

use turnstile_core::{Config, HandoffBudget, LockKey, Mutation};

use crate::client::{self, Client, Habits};
use crate::clock::{Clock, MS, SECOND, micros};
use crate::history::History;
use crate::host::{self, Arrival, Host, Stream};
use crate::phantom::Phantom;
use crate::random::Random;
use crate::store::{self, Incarnation, Operation, Store};
use crate::wire::{ToClient, ToHost};

/// What a run breaks on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sabotage {
    pub(crate) engine: Option<Mutation>,
    pub(crate) anchor_at_receipt: bool,
}

/// The times of one run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) config: Config,
    pub(crate) lock_delay_covers: bool,
    pub(crate) lock_delay_max: u64,
    pub(crate) wait_max: u64,
    /// Faults end here.
    pub(crate) calm: u64,
}

enum Event {
    ToHost(Stream, ToHost),
    ToClient(Stream, ToClient),
    HostSeesEnd(Stream),
    ClientSeesEnd(Stream),
    HostWake,
    ClientWake(usize),
    Worked { client: usize, request: u64 },
    AtStore(Incarnation, Operation),
    FromStore(Incarnation, store::Event),
    KeepAlive,
    StoreLooks,
    Phantom,
    Fault,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) history: History,
    pub(crate) plan: Plan,
    pub(crate) host: Host,
    pub(crate) store: Store,
    pub(crate) clients: Vec<Client>,
    pub(crate) random: Random,
    pub(crate) keys: Vec<LockKey>,
    sabotage: Sabotage,
    phantom: Phantom,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    /// When the last message of each direction arrives: streams do not overtake themselves.
    arrivals: BTreeMap<(Stream, bool), u64>,
    store_arrivals: [u64; 2],
    broken: BTreeMap<Stream, u64>,
    client_frozen: Vec<u64>,
    slow: BTreeMap<(usize, bool), u64>,
    store_out_until: u64,
    host_down_until: u64,
    /// The next time the host is woken for; there is one such event.
    host_wake: u64,
    pub(crate) steps: u64,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Sabotage, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::random(&mut random);
        let names = ["k/a", "k/b", "k/c"];
        let keys: Vec<LockKey> =
            names[..random.range(1, 3) as usize].iter().map(|name| LockKey::parse(name).expect("a key")).collect();
        let host = Host::new(1, Clock::random(&mut random), plan.config.clone(), sabotage.engine);
        let mut world = Self {
            now: SECOND,
            history: History::new(verbose),
            host,
            store: Store::default(),
            clients: Vec::new(),
            phantom: Phantom::default(),
            events: BTreeMap::new(),
            last_event: 0,
            arrivals: BTreeMap::new(),
            store_arrivals: [0; 2],
            broken: BTreeMap::new(),
            client_frozen: Vec::new(),
            slow: BTreeMap::new(),
            store_out_until: 0,
            host_down_until: 0,
            host_wake: u64::MAX,
            steps: 0,
            sabotage,
            plan,
            keys,
            random,
        };
        world.store.immortal(crate::phantom::INCARNATION);
        let habits = Habits {
            keys: world.keys.clone(),
            pause: world.random.pick(&[100 * MS, 400 * MS, SECOND]),
            wait_max: world.plan.wait_max,
            lock_delay_min: if world.plan.lock_delay_covers { 100 * MS } else { 0 },
            lock_delay_max: world.plan.lock_delay_max,
            lock_delay_covers: world.plan.lock_delay_covers,
            anchor_at_receipt: sabotage.anchor_at_receipt,
        };
        for number in 0..world.random.range(2, 4) as usize {
            let clock = Clock::random(&mut world.random);
            let client = Client::new(number, clock, habits.clone(), world.now, &mut world.random);
            world.clients.push(client);
            world.client_frozen.push(0);
            world.schedule(0, Event::ClientWake(number));
        }
        for event in [Event::KeepAlive, Event::StoreLooks, Event::Phantom, Event::Fault] {
            world.schedule(0, event);
        }
        world
    }

    /// Runs until `until`, or the first violation.
    pub(crate) fn run(&mut self, until: u64) {
        while self.history.violation().is_none() {
            let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= until) else { break };
            self.now = entry.key().0;
            let event = entry.remove();
            self.steps += 1;
            self.happen(event);
            self.carry_out_host();
            self.carry_out_clients();
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToHost(stream, message) => self.reach_host(Arrival::Message(stream, message)),
            Event::HostSeesEnd(stream) => self.reach_host(Arrival::StreamEnd(stream)),
            Event::HostWake => {
                if self.host_wake == self.now {
                    self.host_wake = u64::MAX;
                    self.wake_host();
                }
            }
            Event::ToClient((number, generation), message) => {
                if self.postpone_for_client(number, |at| (at, Event::ToClient((number, generation), message.clone()))) {
                    return;
                }
                let client = &mut self.clients[number];
                client.receive(self.now, generation, message, &mut self.history, &mut self.random);
            }
            Event::ClientSeesEnd((number, generation)) => {
                if !self.postpone_for_client(number, |at| (at, Event::ClientSeesEnd((number, generation)))) {
                    self.clients[number].disconnected(self.now, generation, &mut self.random);
                }
            }
            Event::ClientWake(number) => {
                if !self.postpone_for_client(number, |at| (at, Event::ClientWake(number))) {
                    self.clients[number].wake(self.now, &mut self.history, &mut self.random);
                    let next = self.clients[number].clock.when(self.clients[number].next_wake());
                    let late = self.random.range(0, 2 * MS);
                    let at = next.max(self.now).saturating_add(late).min(self.now + 50 * MS);
                    self.schedule_at(at.max(self.now + 1), Event::ClientWake(number));
                }
            }
            Event::Worked { client, request } => {
                if !self.postpone_for_client(client, |at| (at, Event::Worked { client, request })) {
                    self.clients[client].worked(self.now, request, &mut self.history, &mut self.random);
                }
            }
            Event::AtStore(from, operation) => {
                self.store.submit(self.now, from, operation);
                self.tell_store_events();
            }
            Event::FromStore(to, event) => {
                if to == self.host.in_store {
                    self.reach_host(Arrival::Store(event));
                }
            }
            Event::KeepAlive => {
                if self.host_runs() {
                    let sent = self.host.clock.shows(self.now);
                    self.reach_store(Operation::KeepAlive { sent });
                }
                self.schedule(SECOND, Event::KeepAlive);
            }
            Event::StoreLooks => {
                self.store.expire(self.now);
                self.tell_store_events();
                self.schedule(50 * MS, Event::StoreLooks);
            }
            Event::Phantom => {
                let calm = self.now >= self.plan.calm;
                self.phantom.act(self.now, calm, &self.keys, &mut self.store, &mut self.history, &mut self.random);
                self.tell_store_events();
                self.schedule(20 * MS, Event::Phantom);
            }
            Event::Fault => {
                if self.now < self.plan.calm {
                    self.fault();
                    let pause = self.random.range(50 * MS, 3 * SECOND);
                    self.schedule(pause, Event::Fault);
                }
            }
        }
    }

    fn fault(&mut self) {
        let number = self.random.range(0, self.clients.len() as u64 - 1) as usize;
        let duration = self.random.pick(&[50 * MS, 500 * MS, 2 * SECOND, 4 * SECOND, 7 * SECOND]);
        let duration = self.random.range(duration / 2, duration);
        let what = self.random.range(0, 99);
        self.history.note(self.now, || format!("fault {what}, client {number}, {duration} us"));
        match what {
            0..=29 => {
                let stream = (number, self.clients[number].generation);
                self.break_stream(stream, duration);
            }
            // One that is frozen already is not frozen for longer: what arrived must stay in order.
            30..=44 if self.client_frozen[number] <= self.now => self.client_frozen[number] = self.now + duration,
            30..=44 => {}
            45..=59 => {
                self.slow.insert((number, self.random.chance(50)), self.now + duration);
            }
            60..=71 => self.host.frozen_until = Some(self.now + duration),
            72..=79 => self.restart_host(duration),
            80..=89 => self.store_out_until = self.now + duration,
            90..=93 => {
                let key = self.keys[self.random.range(0, self.keys.len() as u64 - 1) as usize].clone();
                // Longer than any promise, and then the lock delay of the record.
                let promises = micros(self.plan.config.session_ttl) * 105 / 100 + SECOND + duration;
                self.store.tamper(self.now, &key, crate::phantom::INCARNATION, promises + self.plan.lock_delay_max);
                self.tell_store_events();
            }
            94..=95 => self.reach_host(Arrival::Drain),
            _ => self.store.refusals += 1,
        }
    }

    // The host

    fn host_runs(&self) -> bool {
        self.now >= self.host_down_until && self.host.frozen_until.is_none()
    }

    fn reach_host(&mut self, arrival: Arrival) {
        if self.now < self.host_down_until {
            if let Arrival::Message(stream, ToHost::Hello { .. }) = arrival {
                self.schedule(MS, Event::ClientSeesEnd(stream));
            }
            return;
        }
        self.host.inbox.push(arrival);
        self.wake_host();
    }

    fn wake_host(&mut self) {
        if self.now < self.host_down_until {
            return;
        }
        if let Some(until) = self.host.frozen_until {
            if self.now < until {
                self.wake_host_at(until);
                return;
            }
            self.host.frozen_until = None;
        }
        let deadlines_first = self.random.chance(50);
        self.host.turn(self.now, deadlines_first, &mut self.history, &mut self.random);
        if let Some(deadline) = self.host.next_deadline() {
            let late = if self.random.chance(80) { 0 } else { self.random.range(0, 5 * MS) };
            self.wake_host_at(deadline.max(self.now + 1) + late);
        }
    }

    fn wake_host_at(&mut self, at: u64) {
        if at < self.host_wake {
            self.host_wake = at;
            self.schedule_at(at, Event::HostWake);
        }
    }

    fn restart_host(&mut self, duration: u64) {
        self.history.note(self.now, || "the host is killed".into());
        self.history.count("hosts killed");
        self.history.queues_gone();
        for number in 0..self.clients.len() {
            let generation = self.clients[number].generation;
            self.break_stream((number, generation), 100 * MS);
        }
        let incarnation = self.host.incarnation + 1;
        let clock = self.host.clock;
        self.host = Host::new(incarnation, clock, self.plan.config.clone(), self.sabotage.engine);
        self.host_down_until = self.now + duration / 4;
    }

    fn carry_out_host(&mut self) {
        for out in std::mem::take(&mut self.host.out) {
            match out {
                host::Out::Send(stream, message) => {
                    if let Some(at) = self.arrival(stream, false) {
                        self.schedule_at(at, Event::ToClient(stream, message));
                    }
                }
                host::Out::Close(stream) => {
                    if let Some(at) = self.arrival(stream, false) {
                        self.schedule_at(at, Event::ClientSeesEnd(stream));
                    }
                }
                host::Out::Store(operation) => self.reach_store(operation),
                host::Out::Drained => {
                    self.reach_store(Operation::EndLease);
                    self.restart_host(SECOND);
                }
            }
        }
    }

    // The clients

    fn carry_out_clients(&mut self) {
        for number in 0..self.clients.len() {
            for out in std::mem::take(&mut self.clients[number].out) {
                self.carry_out_client(number, out);
            }
        }
    }

    fn carry_out_client(&mut self, number: usize, out: client::Out) {
        match out {
            client::Out::Connect { generation, hello } => self.client_sends((number, generation), hello),
            client::Out::Send { generation, message } => self.client_sends((number, generation), message),
            client::Out::Work { request, key, duration } => {
                let who = format!("the upstream, for client {number} request {request}");
                self.history.work(self.now, &key, who, self.now + duration);
                self.schedule(duration, Event::Worked { client: number, request });
            }
            client::Out::Promised { session, until } => self.judge_promise(number, session, until),
        }
    }

    fn client_sends(&mut self, stream: Stream, message: ToHost) {
        if let Some(at) = self.arrival(stream, true) {
            self.schedule_at(at, Event::ToHost(stream, message));
        }
    }

    /// I3: what a client believes ends before its session, and before the lease behind it.
    fn judge_promise(&mut self, number: usize, session: (u64, u64), until: u64) {
        let until = self.clients[number].clock.when(until);
        if session.0 != self.host.incarnation || until <= self.now {
            return;
        }
        if let Some(ended) = self.host.ended.get(&session).filter(|ended| until > **ended) {
            let what = format!("I3: client {number} believes until {until}, its session ended at {ended}");
            self.history.violate(self.now, what);
        }
        let lease = (self.host.incarnation * 1_000..=self.host.in_store).map(|name| self.store.lease_until(name)).max();
        if lease.is_some_and(|lease| until > lease) {
            let what = format!("I3: client {number} believes until {until}, the lease ends at {lease:?}");
            self.history.violate(self.now, what);
        }
    }

    /// A frozen process does nothing, and then everything at once.
    fn postpone_for_client(&mut self, number: usize, event: impl FnOnce(u64) -> (u64, Event)) -> bool {
        let until = self.client_frozen[number];
        if until <= self.now {
            return false;
        }
        let (at, event) = event(until);
        self.schedule_at(at, event);
        true
    }

    // The links

    /// When a message sent now arrives; never, on a stream that is broken by then.
    fn arrival(&mut self, stream: Stream, to_host: bool) -> Option<u64> {
        let mut delay = self.random.range(MS / 10, 5 * MS);
        if self.random.chance(5) {
            delay += self.random.range(0, 300 * MS);
        }
        let slow = self.slow.get(&(stream.0, to_host)).copied().unwrap_or(0);
        let last = self.arrivals.get(&(stream, to_host)).copied().unwrap_or(0);
        let at = (self.now + delay).max(slow).max(last + 1);
        if self.broken.get(&stream).is_some_and(|broken| at >= *broken) {
            return None;
        }
        self.arrivals.insert((stream, to_host), at);
        Some(at)
    }

    /// Cuts a stream: what has not arrived never will, and each side notices in its own time.
    fn break_stream(&mut self, stream: Stream, duration: u64) {
        let now = self.now;
        self.broken.entry(stream).or_insert(now);
        self.events.retain(|_, event| match event {
            Event::ToHost(of, _) | Event::ToClient(of, _) => *of != stream,
            _ => true,
        });
        let (host, client) = (self.random.range(0, duration), self.random.range(0, duration));
        self.schedule(host, Event::HostSeesEnd(stream));
        self.schedule(client, Event::ClientSeesEnd(stream));
    }

    fn reach_store(&mut self, operation: Operation) {
        let from = self.host.in_store;
        let at = self.store_arrival(0);
        self.schedule_at(at, Event::AtStore(from, operation));
    }

    fn tell_store_events(&mut self) {
        while let Some((to, event)) = self.store.events.pop_front() {
            if to == crate::phantom::INCARNATION {
                self.phantom.told(self.now, event);
            } else {
                let at = self.store_arrival(1);
                self.schedule_at(at, Event::FromStore(to, event));
            }
        }
    }

    fn store_arrival(&mut self, direction: usize) -> u64 {
        let delay = self.random.range(MS / 2, 10 * MS);
        let at = (self.now + delay).max(self.store_out_until).max(self.store_arrivals[direction] + 1);
        self.store_arrivals[direction] = at;
        at
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.schedule_at(self.now + after, event);
    }

    fn schedule_at(&mut self, at: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((at, self.last_event), event);
    }
}

impl Plan {
    fn random(random: &mut Random) -> Self {
        let lock_delay_max = random.pick(&[SECOND, 3 * SECOND, 6 * SECOND]);
        let config = Config {
            session_ttl: std::time::Duration::from_micros(random.pick(&[2 * SECOND, 4 * SECOND])),
            claim_patience: std::time::Duration::from_millis(random.range(50, 1_000)),
            handoff_budget: HandoffBudget {
                grants: random.range(0, 4) as u32,
                time: std::time::Duration::from_millis(random.range(0, 500)),
            },
            idle_ownership: std::time::Duration::from_millis(random.pick(&[0, 200, 5_000])),
            waiters_per_key_max: random.pick(&[3, 100]),
            waiters_per_session_max: random.pick(&[3, 100]),
            keys_max: random.pick(&[2, 100]),
            sessions_max: random.pick(&[5, 100]),
            lock_delay_max: std::time::Duration::from_micros(lock_delay_max),
            ..Config::default()
        };
        Self {
            config,
            lock_delay_covers: random.chance(80),
            lock_delay_max,
            wait_max: random.pick(&[SECOND, 8 * SECOND]),
            calm: random.range(10, 30) * SECOND,
        }
    }
}
