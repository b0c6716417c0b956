//! Several sessions, a network and a small model of a host, in virtual time and under faults that a seed chooses.
//!
//! Checked after every step: no two live holders of a key (I1), outcomes come once and in order (I5). Checked at the
//! end, after healing: everything was answered, and nothing is left behind (I6).

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use prost::Message;
use turnstile_protocol::v1::{self, Ending, client_item};

use super::*;
use crate::backoff::Jitter;

const TTL: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(10);
const WORKERS: usize = 3;
const KEYS: u64 = 3;

/// What one request wants: one key or two.
type Keys = Vec<String>;
type Wire = VecDeque<(Instant, usize, u32, Vec<u8>)>;

#[derive(Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Acting { until: Instant },
}

struct Worker {
    session: Session,
    stream: u32,
    frozen_until: Instant,
    next_tick: Instant,
    closed: VecDeque<u32>,
    requests: BTreeMap<u32, (Keys, State)>,
    next_owner: u32,
}

#[derive(Default)]
struct HostSession {
    peer: Option<(usize, u32)>,
    heard: Instant,
    seq: u64,
    waiters: BTreeMap<u64, (Keys, Instant)>,
    holds: BTreeMap<u64, Keys>,
}

/// Grants in the order of arrival, and forgets everything when it restarts.
struct Host {
    incarnation: u32,
    frozen_until: Instant,
    /// A restarted host waits until every promise of its predecessor is over.
    grants_from: Instant,
    sessions: BTreeMap<u64, HostSession>,
    queue: VecDeque<(u64, u64)>,
    next_session: u64,
    grants: u64,
}

struct World {
    now: Instant,
    rng: Jitter,
    host: Host,
    workers: Vec<Worker>,
    to_host: Wire,
    to_worker: Wire,
    seed: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::from_micros(1_000_000_000);
        let worker = |number: u64| Worker {
            session: Session::new(Names::default(), Backoff::new(Jitter::new(seed ^ number)), now),
            stream: 0,
            frozen_until: now,
            next_tick: now,
            closed: VecDeque::new(),
            requests: BTreeMap::new(),
            next_owner: 0,
        };
        let host = Host {
            incarnation: 1,
            frozen_until: now,
            grants_from: now,
            sessions: BTreeMap::new(),
            queue: VecDeque::new(),
            next_session: 1,
            grants: 0,
        };
        let workers = (0..WORKERS as u64).map(worker).collect();
        Self { now, rng: Jitter::new(seed), host, workers, to_host: Wire::new(), to_worker: Wire::new(), seed }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.rng.below(one_in) == 0
    }

    fn arrival(&mut self, wire: fn(&mut Self) -> &mut Wire) -> Instant {
        let arrival = self.now + Duration::from_micros(self.rng.below(30_000));
        // Nothing overtakes.
        wire(self).back().map_or(arrival, |last| last.0.max(arrival))
    }

    fn step(&mut self, faults: bool) {
        self.now = self.now + STEP;
        if faults {
            self.inject();
        }
        self.run_host();
        for worker in 0..WORKERS {
            if self.workers[worker].frozen_until <= self.now {
                self.run_worker(worker, faults);
            }
        }
        self.check();
    }

    fn inject(&mut self) {
        let pause = Duration::from_millis(self.rng.below(5_000));
        let worker = self.rng.below(WORKERS as u64) as usize;
        if self.chance(400) {
            self.workers[worker].frozen_until = self.now + pause;
        }
        if self.chance(600) {
            self.host.frozen_until = self.now + pause;
        }
        if self.chance(300) {
            self.break_stream(worker);
        }
        if self.chance(2_000) {
            for worker in 0..WORKERS {
                self.break_stream(worker);
            }
            self.host.sessions.clear();
            self.host.queue.clear();
            self.host.incarnation += 1;
            self.host.grants_from = self.now + TTL + TTL;
        }
    }

    fn break_stream(&mut self, worker: usize) {
        let stream = self.workers[worker].stream;
        self.to_host.retain(|message| (message.1, message.2) != (worker, stream));
        self.to_worker.retain(|message| (message.1, message.2) != (worker, stream));
        for session in self.host.sessions.values_mut().filter(|session| session.peer == Some((worker, stream))) {
            session.peer = None;
        }
        self.workers[worker].closed.push_back(stream);
    }

    fn check(&self) {
        for key in 0..KEYS {
            let key = format!("default/{key}");
            let acting = |worker: &&Worker| worker.frozen_until <= self.now;
            let holders = self
                .workers
                .iter()
                .filter(acting)
                .flat_map(|worker| worker.requests.values())
                .filter(|(held, state)| held.contains(&key) && matches!(state, State::Acting { .. }))
                .count();
            assert!(
                holders <= 1,
                "{holders} requests hold {key} at {:?}; replay with TURNSTILE_SEED={}",
                self.now,
                self.seed
            );
        }
    }

    // The workers.

    fn run_worker(&mut self, index: usize, busy: bool) {
        let now = self.now;
        while let Some(stream) = self.workers[index].closed.pop_front() {
            self.workers[index].session.stream_closed(now, StreamToken(stream));
        }
        // A thawed worker may read before it ticks, or the other way round.
        let tick_first = self.chance(2);
        if tick_first {
            self.tick(index);
        }
        for (_, _, stream, bytes) in take_due(&mut self.to_worker, |message| message.0 <= now && message.1 == index) {
            self.workers[index].session.receive(now, StreamToken(stream), &bytes);
        }
        self.tick(index);
        let worker = &mut self.workers[index];
        if worker.session.wants_stream(now) {
            worker.stream += 1;
            worker.session.stream_opened(now, StreamToken(worker.stream));
        }
        self.take_outcomes(index);
        if busy {
            self.act(index);
        }
        self.end_requests(index);
        while let Some(output) = self.workers[index].session.poll_output() {
            match output {
                Output::Send(StreamToken(stream), bytes) => {
                    let arrival = self.arrival(|world| &mut world.to_host);
                    self.to_host.push_back((arrival, index, stream, bytes));
                }
                Output::Close(_) => {
                    self.break_stream(index);
                    self.workers[index].closed.clear();
                }
            }
        }
    }

    fn tick(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.next_tick <= self.now {
            worker.next_tick = self.now + TICK;
            worker.session.tick(self.now);
        }
    }

    fn take_outcomes(&mut self, index: usize) {
        let (now, seed) = (self.now, self.seed);
        let work = Duration::from_millis(self.rng.below(800));
        let worker = &mut self.workers[index];
        while let Some((owner, outcome)) = worker.session.poll_outcome() {
            let state = worker.requests.get_mut(&owner.0);
            match (outcome, state) {
                (Outcome::Granted(granted), Some((_, state @ State::Waiting))) => {
                    if worker.session.believes(now, owner, &granted.tokens) {
                        *state = State::Acting { until: now + work };
                    }
                }
                (Outcome::Rejected(_), Some((_, State::Waiting))) => {
                    worker.requests.remove(&owner.0);
                }
                (Outcome::Lost(_), Some((_, State::Acting { .. }))) => {
                    worker.requests.remove(&owner.0);
                    worker.session.release(owner, Ending::Unclean);
                }
                // It was cancelled or released, with the outcome under way.
                (_, None) => {}
                (outcome, state) => panic!("{outcome:?} for {state:?}; replay with TURNSTILE_SEED={seed}"),
            }
        }
    }

    fn act(&mut self, index: usize) {
        if self.chance(15) {
            let first = self.rng.below(KEYS);
            let others = self.rng.below(2);
            let keys: Keys = (first..=first + others).map(|key| format!("default/{}", key % KEYS)).collect();
            let wait = Duration::from_millis(self.rng.below(6_000));
            let worker = &mut self.workers[index];
            worker.next_owner += 1;
            let request = |key: &String| v1::KeyRequest { key: key.clone(), ..Default::default() };
            let wanted = keys.iter().map(request).collect();
            let ask = Ask { keys: wanted, wait, hold: Duration::from_secs(60), ..Default::default() };
            if worker.session.acquire(self.now, RequestRef(worker.next_owner), ask).is_ok() {
                worker.requests.insert(worker.next_owner, (keys, State::Waiting));
            }
        }
        if self.chance(60) {
            let worker = &mut self.workers[index];
            let waiting = worker.requests.iter().find(|(_, (_, state))| *state == State::Waiting);
            if let Some(owner) = waiting.map(|(&owner, _)| owner) {
                worker.requests.remove(&owner);
                worker.session.cancel(RequestRef(owner));
            }
        }
    }

    fn end_requests(&mut self, index: usize) {
        let now = self.now;
        let worker = &mut self.workers[index];
        let session = &mut worker.session;
        worker.requests.retain(|&owner, (_, state)| match state {
            State::Acting { until } if *until <= now => {
                session.release(RequestRef(owner), Ending::Clean);
                false
            }
            _ => true,
        });
    }

    // The host.

    fn run_host(&mut self) {
        let now = self.now;
        if self.host.frozen_until > now {
            return;
        }
        for (_, worker, stream, bytes) in take_due(&mut self.to_host, |message| message.0 <= now) {
            let message = v1::ClientMessage::decode(bytes.as_slice()).expect("a message");
            for item in message.items.into_iter().filter_map(|item| item.item) {
                self.host_item(worker, stream, item);
            }
        }
        self.host.sessions.retain(|_, session| session.heard + TTL > now);
        self.host_waits();
        self.host_grants();
    }

    fn host_item(&mut self, worker: usize, stream: u32, item: client_item::Item) {
        if let client_item::Item::Hello(hello) = item {
            return self.host_hello(worker, stream, hello);
        }
        let now = self.now;
        let Some((&id, session)) =
            self.host.sessions.iter_mut().find(|(_, session)| session.peer == Some((worker, stream)))
        else {
            return;
        };
        match item {
            client_item::Item::Acquire(acquire) => {
                let until = now + Duration::from_millis(acquire.wait_ms.into());
                session.waiters.insert(acquire.id, (names(acquire.keys), until));
                self.host.queue.push_back((id, acquire.id));
            }
            client_item::Item::Cancel(v1::Cancel { id }) | client_item::Item::Release(v1::Release { id, .. }) => {
                session.waiters.remove(&id);
                session.holds.remove(&id);
            }
            client_item::Item::Heartbeat(heartbeat) => {
                session.heard = now;
                session.seq = heartbeat.seq;
                self.reply(worker, stream, v1::HeartbeatAck { seq: heartbeat.seq, valid_ms: valid_ms() }.into());
            }
            client_item::Item::Hello(_) => {}
        }
    }

    fn host_hello(&mut self, worker: usize, stream: u32, hello: v1::Hello) {
        let incarnation = self.host.incarnation.to_string();
        let known = hello
            .resume
            .filter(|resume| resume.incarnation == incarnation && self.host.sessions.contains_key(&resume.session_id));
        let resumed = known.is_some();
        let session_id = known.as_ref().map_or(self.host.next_session, |resume| resume.session_id);
        self.host.next_session += 1;
        let session = self.host.sessions.entry(session_id).or_default();
        session.peer = Some((worker, stream));
        session.heard = self.now;
        session.seq = hello.heartbeat_seq;
        let mut answers = vec![
            v1::Welcome {
                protocol_version: 1,
                incarnation,
                session_id,
                resumed,
                ttl_ms: TTL.as_millis() as u32,
                heartbeat_ms: TTL.as_millis() as u32 / 4,
                limits: None,
            }
            .into(),
        ];
        if let Some(resume) = known {
            for release in resume.releases {
                session.waiters.remove(&release.id);
                session.holds.remove(&release.id);
            }
            for &id in resume.holds.iter().filter(|id| !session.holds.contains_key(id)) {
                answers.push(v1::Lost { id, reason: v1::LostReason::Unknown.into() }.into());
            }
            let waiting: Vec<u64> = resume.waiters.iter().map(|waiter| waiter.id).collect();
            session.waiters.retain(|id, _| waiting.contains(id));
            // Granted, but the grant was lost on the way, or else never acted on.
            for (&id, keys) in session.holds.iter().filter(|(id, _)| waiting.contains(id)) {
                answers.push(grant(id, keys, hello.heartbeat_seq));
            }
            session.holds.retain(|id, _| waiting.contains(id) || resume.holds.contains(id));
            for waiter in resume.waiters {
                if !session.holds.contains_key(&waiter.id) && !session.waiters.contains_key(&waiter.id) {
                    let until = self.now + Duration::from_millis(waiter.wait_ms.into());
                    session.waiters.insert(waiter.id, (names(waiter.keys), until));
                    self.host.queue.push_back((session_id, waiter.id));
                }
            }
        }
        for answer in answers {
            self.reply(worker, stream, answer);
        }
    }

    fn host_waits(&mut self) {
        let mut over = Vec::new();
        for session in self.host.sessions.values_mut() {
            let Some(peer) = session.peer else { continue };
            session.waiters.retain(|&id, (_, until)| {
                let keep = *until > self.now;
                if !keep {
                    over.push((peer, id));
                }
                keep
            });
        }
        for ((worker, stream), id) in over {
            let reason = v1::RejectReason::WaitTimeout.into();
            self.reply(worker, stream, v1::Reject { id, reason, ..Default::default() }.into());
        }
    }

    fn host_grants(&mut self) {
        if self.now < self.host.grants_from {
            return;
        }
        let queue = core::mem::take(&mut self.host.queue);
        for (session_id, id) in queue {
            let Some(session) = self.host.sessions.get(&session_id) else { continue };
            let Some((keys, _)) = session.waiters.get(&id).cloned() else { continue };
            let mut held = self.host.sessions.values().flat_map(|other| other.holds.values().flatten());
            let taken = held.any(|held| keys.contains(held));
            let Some(((worker, stream), false)) = session.peer.map(|peer| (peer, taken)) else {
                self.host.queue.push_back((session_id, id));
                continue;
            };
            let item = grant(id, &keys, session.seq);
            if let Some(session) = self.host.sessions.get_mut(&session_id) {
                session.waiters.remove(&id);
                session.holds.insert(id, keys);
            }
            self.host.grants += 1;
            self.reply(worker, stream, item);
        }
    }

    fn reply(&mut self, worker: usize, stream: u32, item: v1::ServerItem) {
        let arrival = self.arrival(|world| &mut world.to_worker);
        let bytes = v1::ServerMessage { items: vec![item] }.encode_to_vec();
        self.to_worker.push_back((arrival, worker, stream, bytes));
    }
}

fn names(keys: Vec<v1::KeyRequest>) -> Keys {
    keys.into_iter().map(|key| key.key).collect()
}

fn grant(id: u64, keys: &Keys, heartbeat_seq: u64) -> v1::ServerItem {
    let keys = vec![v1::KeyGrant { token: id, barrier: id }; keys.len()];
    v1::Grant { id, keys, heartbeat_seq, valid_ms: valid_ms(), ..Default::default() }.into()
}

/// The host counts the TTL from when it processes a heartbeat, which is later than its send.
fn valid_ms() -> u32 {
    TTL.as_millis() as u32
}

fn take_due(
    wire: &mut Wire,
    due: impl Fn(&(Instant, usize, u32, Vec<u8>)) -> bool,
) -> Vec<(Instant, usize, u32, Vec<u8>)> {
    let (taken, left) = core::mem::take(wire).into_iter().partition(due);
    *wire = left;
    Vec::from_iter::<VecDeque<_>>(taken)
}

/// `TURNSTILE_SEED=7 cargo test -p turnstile-plugin simulation` replays one seed; `TURNSTILE_SEEDS=500` tries many.
fn seeds() -> core::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("TURNSTILE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TURNSTILE_SEEDS").unwrap_or(12),
    }
}

#[test]
fn holds_exclude_each_other_whatever_fails() {
    let mut grants = 0;
    for seed in seeds() {
        let mut world = World::new(seed);
        for _ in 0..6_000 {
            world.step(true);
        }
        for _ in 0..3_000 {
            world.step(false);
        }
        for worker in &world.workers {
            assert!(
                worker.requests.is_empty(),
                "never answered: {:?}; replay with TURNSTILE_SEED={seed}",
                worker.requests
            );
            assert!(worker.session.is_unused(), "left over: {:?}; replay with TURNSTILE_SEED={seed}", worker.session);
        }
        let held: usize = world.host.sessions.values().map(|session| session.holds.len()).sum();
        assert_eq!(held, 0, "the host still counts holds; replay with TURNSTILE_SEED={seed}");
        grants += world.host.grants;
    }
    assert!(grants > 50, "the simulation hardly does anything: {grants} grants");
}
