//! A model of one proxy worker, by the book: promises anchored at its own sends, expired grants returned unsent,
//! holds aborted when their promise ends, beliefs told on resuming.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use turnstile_core::{Acquire, Ending, HolderSecret, KeyGrant, LockKey, Reentry, RequestId, Resume, SmallVec};

use crate::clock::{Clock, MS, SECOND};
use crate::history::History;
use crate::history::possessions::PossessionId;
use crate::mutants::Sabotage;
use crate::random::{Part, Random};
use crate::script::{Ask, Script};
use crate::wire::{SessionName, ToClient, ToHost};

pub(crate) const HEARTBEAT: u64 = SECOND;

pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) clock: Clock,
    pub(crate) session: Option<SessionName>,
    pub(crate) generation: u64,
    /// By its own clock.
    pub(crate) promise: u64,
    /// What reached it while it was frozen.
    pub(crate) inbox: Vec<Arrival>,
    pub(crate) out: Vec<Out>,
    script: Rc<Script>,
    random: Random,
    link: Link,
    seq: u64,
    sent: BTreeMap<u64, u64>,
    requests: BTreeMap<u64, Request>,
    /// Requests to make as soon as there is a session.
    due: VecDeque<(usize, Ask, Option<HolderSecret>)>,
    /// Releases that no ack has covered; the number is of the heartbeat whose ack does.
    unacked: Vec<(u64, Ending, u64)>,
    last_request: u64,
    next_heartbeat: u64,
    sabotage: Sabotage,
}

/// What reaches a client.
#[derive(Clone, Debug)]
pub(crate) enum Arrival {
    Message(u64, ToClient),
    StreamEnd(u64),
    /// A request is to be made.
    Ask(usize, Option<HolderSecret>),
    /// The upstream has answered.
    Worked(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down { retry: u64 },
    Connecting,
    Up,
}

struct Request {
    ask: usize,
    acquire: Acquire,
    until: u64,
    work: u64,
    ending: Ending,
    abandons: Option<u64>,
    state: State,
}

enum State {
    Waiting {
        /// When its user leaves.
        leave: Option<u64>,
    },
    Holding {
        possessions: Vec<(LockKey, PossessionId)>,
        leave: Option<u64>,
    },
}

/// What a client does to the world.
pub(crate) enum Out {
    Send {
        generation: u64,
        message: ToHost,
    },
    /// The request is with its upstream, which may make further ones if it got a secret.
    Work {
        request: u64,
        ask: usize,
        duration: u64,
        secret: Option<HolderSecret>,
    },
    /// Its belief now ends there; the world knows what that must not outlive.
    Promised {
        session: SessionName,
        until: u64,
    },
}

impl Client {
    pub(crate) fn new(number: usize, seed: u64, script: Rc<Script>, now: u64, sabotage: Sabotage) -> Self {
        let clock = script.plan.clients[number].1;
        let local = clock.shows(now);
        Self {
            number,
            clock,
            session: None,
            generation: 0,
            promise: 0,
            inbox: Vec::new(),
            out: Vec::new(),
            script,
            random: Random::of(seed, Part::Client(number)),
            link: Link::Down { retry: local },
            seq: 0,
            sent: BTreeMap::new(),
            requests: BTreeMap::new(),
            due: VecDeque::new(),
            unacked: Vec::new(),
            last_request: 0,
            next_heartbeat: local,
            sabotage,
        }
    }

    /// When it next has something to do, in true time; a little late.
    pub(crate) fn next_wake(&mut self) -> u64 {
        let mut next = match self.link {
            Link::Down { retry } => retry,
            Link::Connecting => u64::MAX,
            Link::Up => self.next_heartbeat,
        };
        for request in self.requests.values() {
            next = next.min(match request.state {
                State::Waiting { leave } => leave.unwrap_or(u64::MAX),
                State::Holding { leave, .. } => self.promise.min(leave.unwrap_or(u64::MAX)),
            });
        }
        let late = self.random.range(0, 2 * MS);
        if next == u64::MAX { u64::MAX } else { self.clock.when(next) + late }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    /// Whether it believes in any hold, as far as its promise goes.
    pub(crate) fn holds(&self) -> bool {
        self.requests.values().any(|request| matches!(request.state, State::Holding { .. }))
    }

    /// Makes no more of its requests.
    pub(crate) fn rest(&mut self) {
        self.due.clear();
    }

    /// A request that is in no script; `name` is its number in the history.
    pub(crate) fn ask_besides(&mut self, now: u64, name: usize, ask: Ask, history: &mut History) {
        self.due.push_back((name, ask, None));
        self.wake(now, history);
    }

    /// Acts on what is due. Everything else comes after this: the clock is read first.
    pub(crate) fn wake(&mut self, now: u64, history: &mut History) {
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
                while let Some((name, ask, secret)) = self.due.pop_front() {
                    self.ask(local, name, &ask, secret, history);
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

    pub(crate) fn receive(&mut self, now: u64, arrival: Arrival, history: &mut History) {
        self.wake(now, history);
        match arrival {
            // The clock may have made it give the stream up.
            Arrival::Message(generation, message) => {
                if generation == self.generation && !matches!(self.link, Link::Down { .. }) {
                    self.hear(now, message, history);
                }
            }
            Arrival::StreamEnd(generation) => {
                if generation == self.generation && !matches!(self.link, Link::Down { .. }) {
                    self.link = Link::Down { retry: self.clock.shows(now) + self.random.range(MS, 400 * MS) };
                }
            }
            Arrival::Ask(ask, secret) => {
                let script = Rc::clone(&self.script);
                self.due.push_back((ask, script.asks[ask].clone(), secret));
                self.wake(now, history);
            }
            Arrival::Worked(request) => {
                if let Some(Request { state: State::Holding { .. }, ending, .. }) = self.requests.get(&request) {
                    let ending = *ending;
                    self.stop(now, request, history);
                    self.give_back(request, ending);
                }
            }
        }
    }

    fn hear(&mut self, now: u64, message: ToClient, history: &mut History) {
        match message {
            ToClient::Welcome { session, resumed } => self.welcomed(now, session, resumed, history),
            ToClient::Grant { request, keys, secret, seq, valid } => {
                self.promised(now, seq, valid);
                self.granted(now, request, &keys, secret, history);
            }
            ToClient::Reject { request } => {
                if self.requests.get(&request).is_some_and(|known| matches!(known.state, State::Waiting { .. })) {
                    self.end_waiting(request, "rejected", history);
                }
            }
            ToClient::Lost { request } => match self.requests.get(&request).map(|known| &known.state) {
                Some(State::Holding { .. }) => {
                    self.stop(now, request, history);
                    self.give_back(request, Ending::Unclean);
                }
                Some(State::Waiting { .. }) => self.end_waiting(request, "lost while waiting", history),
                None => {}
            },
            ToClient::Ack { seq, valid } => {
                self.promised(now, seq, valid);
                self.unacked.retain(|(_, _, covered)| *covered > seq);
            }
        }
    }

    fn ask(&mut self, local: u64, name: usize, ask: &Ask, secret: Option<HolderSecret>, history: &mut History) {
        self.last_request += 1;
        let id = self.last_request;
        let acquire = Acquire {
            request: RequestId(id),
            keys: ask.keys.iter().cloned().collect(),
            wait: Duration::from_micros(ask.wait),
            hold: ask.hold.map(Duration::from_micros),
            lock_delay: Duration::from_micros(ask.lock_delay),
            fail_fast: ask.fail_fast,
            queue_max: ask.queue_max,
            reentry: match secret {
                Some(secret) => Reentry::Join(secret),
                None if ask.offers => Reentry::Offer(HolderSecret([0; 16])),
                None => Reentry::None,
            },
            who: None,
        };
        let number = self.number;
        history.log.note(|| format!("request {name}: asked by client {number} as {id}"));
        history.asked(name);
        self.send(ToHost::Acquire(acquire.clone()));
        let state = State::Waiting { leave: ask.patience.map(|patience| local + patience) };
        let (work, ending, abandons) = (ask.work, ask.ending, ask.abandons);
        let request = Request { ask: name, acquire, until: local + ask.wait, work, ending, abandons, state };
        self.requests.insert(id, request);
    }

    fn connect(&mut self, local: u64) {
        self.generation += 1;
        self.link = Link::Connecting;
        let seq = self.beat(local);
        let resume = self.session.map(|session| (session, self.beliefs(local)));
        // The Hello's ack covers what it lists.
        for (_, _, covered) in &mut self.unacked {
            *covered = seq;
        }
        self.out.push(Out::Send { generation: self.generation, message: ToHost::Hello { seq, resume } });
    }

    fn beliefs(&self, local: u64) -> Resume {
        let mut resume = Resume::default();
        for (id, request) in &self.requests {
            match request.state {
                State::Waiting { .. } => resume.waiters.push(request.asked_again(local)),
                State::Holding { .. } => resume.holds.push(RequestId(*id)),
            }
        }
        resume.releases = self.unacked.iter().map(|(id, ending, _)| (RequestId(*id), *ending)).collect();
        resume
    }

    fn welcomed(&mut self, now: u64, session: SessionName, resumed: bool, history: &mut History) {
        self.link = Link::Up;
        let local = self.clock.shows(now);
        self.next_heartbeat = local;
        if !resumed {
            self.session = Some(session);
            self.promise = 0;
            self.unacked.clear();
            let ids: Vec<u64> = self.requests.keys().copied().collect();
            for id in ids {
                match self.requests[&id].state {
                    State::Holding { .. } => self.stop(now, id, history),
                    State::Waiting { .. } => self.send(ToHost::Acquire(self.requests[&id].asked_again(local))),
                }
            }
        }
        self.wake(now, history);
    }

    fn granted(
        &mut self,
        now: u64,
        id: u64,
        keys: &SmallVec<[KeyGrant; 1]>,
        secret: Option<HolderSecret>,
        history: &mut History,
    ) {
        let (promise, local) = (self.promise, self.clock.shows(now));
        let Some(request) = self.requests.get_mut(&id) else {
            self.give_back(id, Ending::Unsent);
            return;
        };
        let ask = request.ask;
        if let State::Holding { .. } = request.state {
            return history.log.violate("I5 granted twice", format!("request {ask}"));
        }
        if promise <= local {
            self.end_waiting(id, "granted too late", history);
            self.give_back(id, Ending::Unsent);
            return;
        }
        let mut possessions = Vec::new();
        for (wanted, granted) in request.acquire.keys.iter().zip(keys) {
            let token = granted.token.as_u64();
            history.log.note(|| format!("request {ask}: holds {} by token {token}", wanted.key));
            let id = history.possessions.begin(now, &wanted.key, token, ask, request.work);
            possessions.push((wanted.key.clone(), id));
        }
        let leave = request.abandons.map(|after| local + after);
        request.state = State::Holding { possessions, leave };
        self.out.push(Out::Work { request: id, ask, duration: request.work, secret });
        history.ended(ask, "granted");
    }

    fn promised(&mut self, now: u64, seq: u64, valid: u64) {
        let Some(anchor) = self.sent.get(&seq).copied() else { return };
        let anchor = if self.sabotage == Sabotage::AnchoredAtReceipt { self.clock.shows(now) } else { anchor };
        self.promise = self.promise.max(anchor + valid);
        self.sent = self.sent.split_off(&seq);
        if let Some(session) = self.session {
            self.out.push(Out::Promised { session, until: self.promise });
        }
    }

    /// The promise has ended: all holds have.
    fn expire(&mut self, now: u64, local: u64, history: &mut History) {
        if local < self.promise || self.sabotage == Sabotage::ExpiryIgnored {
            return;
        }
        let ended = self.clock.when(self.promise).min(now);
        let holds = self.requests.iter().filter(|(_, request)| matches!(request.state, State::Holding { .. }));
        for id in holds.map(|(id, _)| *id).collect::<Vec<_>>() {
            history.log.count("promise ended");
            self.stop(ended, id, history);
            self.give_back(id, Ending::Unclean);
        }
    }

    /// Its user goes away.
    fn leave(&mut self, now: u64, id: u64, history: &mut History) {
        match self.requests[&id].state {
            State::Waiting { .. } => {
                self.end_waiting(id, "cancelled", history);
                self.unacked.push((id, Ending::Unsent, self.seq + 1));
                self.send(ToHost::Cancel(id));
            }
            State::Holding { .. } => {
                self.stop(now, id, history);
                self.give_back(id, Ending::Unclean);
            }
        }
    }

    fn end_waiting(&mut self, id: u64, how: &'static str, history: &mut History) {
        if let Some(request) = self.requests.remove(&id) {
            history.ended(request.ask, how);
        }
    }

    /// It believes in the hold until `ended`.
    fn stop(&mut self, ended: u64, id: u64, history: &mut History) {
        let Some(request) = self.requests.remove(&id) else { return };
        if let State::Holding { possessions, .. } = request.state {
            history.log.note(|| format!("request {}: holds no more", request.ask));
            for (key, possession) in possessions {
                history.possessions.end(&key, possession, ended);
            }
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
        let (State::Waiting { leave } | State::Holding { leave, .. }) = self.state;
        leave.is_some_and(|at| at <= local)
    }

    /// With the wait that is left.
    fn asked_again(&self, local: u64) -> Acquire {
        let wait = Duration::from_micros(self.until.saturating_sub(local));
        Acquire { wait, ..self.acquire.clone() }
    }
}

/// For one key, exclusively, with nothing besides.
pub(crate) fn plain_ask(client: usize, keys: Vec<LockKey>, wait: u64) -> Ask {
    let key_request = |key| turnstile_core::KeyRequest { key, mode: turnstile_core::Mode::Exclusive };
    Ask {
        client,
        begin: crate::script::Begin::At(0),
        keys: keys.into_iter().map(key_request).collect(),
        wait,
        hold: None,
        lock_delay: 0,
        fail_fast: false,
        queue_max: None,
        offers: false,
        work: MS,
        patience: None,
        abandons: None,
        ending: Ending::Clean,
    }
}
