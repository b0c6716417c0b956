//! A model of one proxy worker, by the book: promises anchored at its own sends, expired grants returned unsent,
//! holds aborted when their promise ends, beliefs told on resuming.

use std::collections::BTreeMap;
use std::time::Duration;

use turnstile_core::{Acquire, Ending, LockKey, RequestId, Resume};

use crate::clock::{Clock, MS, SECOND};
use crate::history::{History, SpanId};
use crate::random::Random;
use crate::wire::{ToClient, ToHost};

pub(crate) const HEARTBEAT: u64 = SECOND;

/// How clients behave in one run.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    pub(crate) keys: Vec<LockKey>,
    /// Mean pause between requests.
    pub(crate) pause: u64,
    pub(crate) wait_max: u64,
    pub(crate) lock_delay_min: u64,
    pub(crate) lock_delay_max: u64,
    /// No upstream works for longer than the lock delay that its request names.
    pub(crate) lock_delay_covers: bool,
    /// Promises are counted from the receipt: a fault of the client.
    pub(crate) anchor_at_receipt: bool,
}

pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) clock: Clock,
    habits: Habits,
    /// The host's incarnation and the session.
    pub(crate) session: Option<(u64, u64)>,
    pub(crate) generation: u64,
    link: Link,
    seq: u64,
    sent: BTreeMap<u64, u64>,
    /// By its own clock.
    pub(crate) promise: u64,
    requests: BTreeMap<u64, Request>,
    /// Releases that no ack has covered; the number is of the heartbeat whose ack does.
    unacked: Vec<(u64, Ending, u64)>,
    last_request: u64,
    next_heartbeat: u64,
    next_request: Option<u64>,
    pub(crate) out: Vec<Out>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down { retry: u64 },
    Connecting,
    Up,
}

struct Request {
    acquire: Acquire,
    until: u64,
    /// How long the upstream works, in true time.
    work: u64,
    /// When the client's own user leaves, if it does.
    patience: Option<u64>,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Waiting,
    Holding { belief: SpanId, leave: Option<u64> },
}

/// What a client does to the world.
pub(crate) enum Out {
    Connect {
        generation: u64,
        hello: ToHost,
    },
    Send {
        generation: u64,
        message: ToHost,
    },
    Work {
        request: u64,
        key: LockKey,
        duration: u64,
    },
    /// Its belief now ends there; the world knows what that must not outlive.
    Promised {
        session: (u64, u64),
        until: u64,
    },
}

impl Client {
    pub(crate) fn new(number: usize, clock: Clock, habits: Habits, now: u64, random: &mut Random) -> Self {
        let local = clock.shows(now);
        Self {
            number,
            clock,
            habits,
            session: None,
            generation: 0,
            link: Link::Down { retry: local },
            seq: 0,
            sent: BTreeMap::new(),
            promise: 0,
            requests: BTreeMap::new(),
            unacked: Vec::new(),
            last_request: 0,
            next_heartbeat: local,
            next_request: Some(local + random.range(0, SECOND)),
            out: Vec::new(),
        }
    }

    /// When it next has something to do, by its own clock.
    pub(crate) fn next_wake(&self) -> u64 {
        let mut next = match self.link {
            Link::Down { retry } => retry,
            Link::Connecting => u64::MAX,
            Link::Up => self.next_heartbeat.min(self.next_request.unwrap_or(u64::MAX)),
        };
        for request in self.requests.values() {
            next = next.min(match request.state {
                State::Waiting => request.patience.unwrap_or(u64::MAX),
                State::Holding { leave, .. } => self.promise.min(leave.unwrap_or(u64::MAX)),
            });
        }
        next
    }

    /// Makes no more requests of its own.
    pub(crate) fn rest(&mut self) {
        self.next_request = None;
    }

    pub(crate) fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    /// Acts on what is due. Everything else comes after this: the clock is read first.
    pub(crate) fn wake(&mut self, now: u64, history: &mut History, random: &mut Random) {
        let local = self.clock.shows(now);
        self.expire(now, local, history);
        let leaving: Vec<u64> =
            self.requests.iter().filter(|(_, request)| request.leaves(local)).map(|(id, _)| *id).collect();
        for id in leaving {
            self.leave(now, id, history);
        }
        match self.link {
            Link::Down { retry } if retry <= local => self.connect(local),
            Link::Up => {
                if self.next_request.is_some_and(|at| at <= local) {
                    self.next_request = Some(local + random.range(self.habits.pause / 4, self.habits.pause * 2));
                    self.ask_at_random(now, history, random);
                }
                if self.next_heartbeat <= local {
                    self.next_heartbeat = local + HEARTBEAT;
                    let seq = self.beat(local);
                    self.send(ToHost::Heartbeat { seq });
                }
            }
            _ => {}
        }
    }

    pub(crate) fn receive(
        &mut self,
        now: u64,
        generation: u64,
        message: ToClient,
        history: &mut History,
        random: &mut Random,
    ) {
        self.wake(now, history, random);
        // The clock may have made it give the stream up.
        if generation != self.generation || matches!(self.link, Link::Down { .. }) {
            return;
        }
        match message {
            ToClient::Welcome { incarnation, session, resumed } => {
                self.welcomed(now, (incarnation, session), resumed, history)
            }
            ToClient::Grant { request, token, seq, valid } => self.granted(now, request, token, (seq, valid), history),
            ToClient::Reject { request, .. } => {
                if self.requests.get(&request).is_some_and(|known| matches!(known.state, State::Waiting)) {
                    self.requests.remove(&request);
                    history.ended(now, self.number, request, "rejected");
                }
            }
            ToClient::Lost { request, .. } => match self.requests.get(&request).map(|known| known.state) {
                Some(State::Holding { .. }) => {
                    self.stop(now, request, now, history);
                    self.give_back(request, Ending::Unclean);
                }
                Some(State::Waiting) => {
                    self.requests.remove(&request);
                    history.ended(now, self.number, request, "lost while waiting");
                }
                None => {}
            },
            ToClient::Ack { seq, valid } => {
                self.promised(now, seq, valid);
                self.unacked.retain(|(_, _, covered)| *covered > seq);
            }
        }
    }

    /// The stream of this generation is gone.
    pub(crate) fn disconnected(&mut self, now: u64, generation: u64, random: &mut Random) {
        if generation == self.generation && !matches!(self.link, Link::Down { .. }) {
            self.link = Link::Down { retry: self.clock.shows(now) + random.range(MS, 400 * MS) };
        }
    }

    /// The upstream has answered.
    pub(crate) fn worked(&mut self, now: u64, request: u64, history: &mut History, random: &mut Random) {
        self.wake(now, history, random);
        if self.requests.get(&request).is_some_and(|known| matches!(known.state, State::Holding { .. })) {
            self.stop(now, request, now, history);
            self.give_back(request, if random.chance(90) { Ending::Clean } else { Ending::Unclean });
        }
    }

    /// Asks for `key`; returns the request's number.
    pub(crate) fn ask(
        &mut self,
        now: u64,
        key: LockKey,
        wait: u64,
        lock_delay: u64,
        work: u64,
        history: &mut History,
    ) -> u64 {
        self.last_request += 1;
        let id = self.last_request;
        let acquire = Acquire {
            wait: Duration::from_micros(wait),
            lock_delay: Duration::from_micros(lock_delay),
            ..Acquire::of_key(RequestId(id), key)
        };
        let until = self.clock.shows(now) + wait;
        history.asked(self.number, id);
        self.send(ToHost::Acquire(acquire.clone()));
        self.requests.insert(id, Request { acquire, until, work, patience: None, state: State::Waiting });
        id
    }

    fn ask_at_random(&mut self, now: u64, history: &mut History, random: &mut Random) {
        let index = random.range(0, self.habits.keys.len() as u64 - 1) as usize;
        let key = self.habits.keys[index].clone();
        let wait = match random.range(0, 99) {
            0..15 => 0,
            // Shorter than the store's answer takes.
            15..25 => random.range(MS, 50 * MS),
            _ => random.range(50 * MS, self.habits.wait_max),
        };
        // Often small, so that the store's record has to be raised for the others.
        let least = self.habits.lock_delay_min;
        let lock_delay = if random.chance(50) { least } else { random.range(least, self.habits.lock_delay_max) };
        let work_max = if self.habits.lock_delay_covers { lock_delay * 97 / 100 } else { 2 * SECOND };
        let work = if random.chance(50) { random.range(0, work_max / 10) } else { random.range(0, work_max) };
        let id = self.ask(now, key, wait, lock_delay, work, history);
        let local = self.clock.shows(now);
        let Some(request) = self.requests.get_mut(&id) else { return };
        if random.chance(10) {
            request.acquire.hold = Some(Duration::from_micros(work / 2 + 1));
            // The host must hear the same.
            if let Some(Out::Send { message: ToHost::Acquire(acquire), .. }) = self.out.last_mut() {
                acquire.hold = request.acquire.hold;
            }
        }
        if random.chance(15) {
            request.patience = Some(local + random.range(0, SECOND));
        }
    }

    fn connect(&mut self, local: u64) {
        self.generation += 1;
        self.link = Link::Connecting;
        let seq = self.beat(local);
        let resume = self.session.map(|(incarnation, session)| (incarnation, session, self.beliefs(local)));
        // The Hello's ack covers what it lists.
        for (_, _, covered) in &mut self.unacked {
            *covered = seq;
        }
        let hello = ToHost::Hello { seq, resume };
        self.out.push(Out::Connect { generation: self.generation, hello });
    }

    fn beliefs(&self, local: u64) -> Resume {
        let mut resume = Resume::default();
        for (id, request) in &self.requests {
            match request.state {
                State::Waiting => {
                    let wait = Duration::from_micros(request.until.saturating_sub(local));
                    resume.waiters.push(Acquire { wait, ..request.acquire.clone() });
                }
                State::Holding { .. } => resume.holds.push(RequestId(*id)),
            }
        }
        resume.releases = self.unacked.iter().map(|(id, ending, _)| (RequestId(*id), *ending)).collect();
        resume
    }

    fn welcomed(&mut self, now: u64, session: (u64, u64), resumed: bool, history: &mut History) {
        self.link = Link::Up;
        let local = self.clock.shows(now);
        self.next_heartbeat = local;
        if resumed {
            return;
        }
        self.session = Some(session);
        self.promise = 0;
        self.unacked.clear();
        let ids: Vec<u64> = self.requests.keys().copied().collect();
        for id in ids {
            match self.requests[&id].state {
                State::Holding { .. } => self.stop(now, id, now, history),
                State::Waiting => {
                    let request = &self.requests[&id];
                    let wait = Duration::from_micros(request.until.saturating_sub(local));
                    let acquire = Acquire { wait, ..request.acquire.clone() };
                    self.send(ToHost::Acquire(acquire));
                }
            }
        }
    }

    fn granted(&mut self, now: u64, id: u64, token: u64, (seq, valid): (u64, u64), history: &mut History) {
        self.promised(now, seq, valid);
        let (number, promise, local) = (self.number, self.promise, self.clock.shows(now));
        let Some(request) = self.requests.get_mut(&id) else {
            self.give_back(id, Ending::Unsent);
            return;
        };
        if let State::Holding { .. } = request.state {
            history.violate(now, format!("I5: client {number} was granted {id} twice"));
            return;
        }
        if promise <= local {
            self.requests.remove(&id);
            history.ended(now, number, id, "granted too late");
            self.give_back(id, Ending::Unsent);
            return;
        }
        let who = format!("client {number} request {id} token {token}");
        let belief = history.believe(now, &request.acquire.keys[0].key, who);
        request.state = State::Holding { belief, leave: request.patience.map(|at| local + at % (300 * MS)) };
        let work = Out::Work { request: id, key: request.acquire.keys[0].key.clone(), duration: request.work };
        self.out.push(work);
        history.ended(now, number, id, "granted");
    }

    fn promised(&mut self, now: u64, seq: u64, valid: u64) {
        let Some(anchor) = self.sent.get(&seq).copied() else { return };
        let anchor = if self.habits.anchor_at_receipt { self.clock.shows(now) } else { anchor };
        self.promise = self.promise.max(anchor + valid);
        self.sent = self.sent.split_off(&seq);
        if let Some(session) = self.session {
            self.out.push(Out::Promised { session, until: self.promise });
        }
    }

    /// The promise has ended: all holds have.
    fn expire(&mut self, now: u64, local: u64, history: &mut History) {
        if local < self.promise {
            return;
        }
        let ended = self.clock.when(self.promise).min(now);
        let holds = self.requests.iter().filter(|(_, request)| matches!(request.state, State::Holding { .. }));
        for id in holds.map(|(id, _)| *id).collect::<Vec<_>>() {
            history.count("promise ended");
            self.stop(now, id, ended, history);
            self.give_back(id, Ending::Unclean);
        }
    }

    /// Its user goes away.
    fn leave(&mut self, now: u64, id: u64, history: &mut History) {
        match self.requests[&id].state {
            State::Waiting => {
                self.requests.remove(&id);
                history.ended(now, self.number, id, "cancelled");
                self.unacked.push((id, Ending::Unsent, self.seq + 1));
                self.send(ToHost::Cancel(id));
            }
            State::Holding { .. } => {
                self.stop(now, id, now, history);
                self.give_back(id, Ending::Unclean);
            }
        }
    }

    fn stop(&mut self, now: u64, id: u64, ended: u64, history: &mut History) {
        let Some(request) = self.requests.remove(&id) else { return };
        if let State::Holding { belief, .. } = request.state {
            history.note(now, || format!("client {} stops holding by request {id}", self.number));
            history.stop_believing(&request.acquire.keys[0].key, belief, ended);
        }
    }

    fn give_back(&mut self, id: u64, ending: Ending) {
        self.unacked.push((id, ending, self.seq + 1));
        self.send(ToHost::Release(id, ending));
    }

    fn beat(&mut self, local: u64) -> u64 {
        self.seq += 1;
        self.sent.insert(self.seq, local);
        self.seq
    }

    fn send(&mut self, message: ToHost) {
        if !matches!(self.link, Link::Down { .. }) {
            self.out.push(Out::Send { generation: self.generation, message });
        }
    }
}

impl Request {
    fn leaves(&self, local: u64) -> bool {
        let at = match self.state {
            State::Waiting => self.patience,
            State::Holding { leave, .. } => leave,
        };
        at.is_some_and(|at| at <= local)
    }
}
