//! A model of one proxy worker, by the book: promises anchored at its own sends, expired grants returned unsent, holds
//! aborted when their promise ends, beliefs told on resuming.

use std::hash::{Hash, Hasher};

use turnstile_core::{Ending, SessionId, View};

use crate::judge::{HeldKey, Judge, Lingering, Sight, Sights};
use crate::names::{Names, until};
use crate::plan::Plan;
use crate::wire::{Beliefs, ToClient, ToHost, Wanted};

#[derive(Clone, Debug)]
pub(crate) struct Client {
    number: usize,
    pub(crate) host: usize,
    pub(crate) link: Link,
    pub(crate) session: Option<SessionId>,
    /// Its latest heartbeat or Hello.
    pub(crate) seq: u64,
    /// When it sent those that the host has not surely surpassed.
    sent: Vec<(u64, u64)>,
    /// The host has not answered the latest one.
    pub(crate) unanswered: bool,
    promise: u64,
    pub(crate) requests: Vec<Request>,
    /// Releases that no ack has covered; the number is of the heartbeat whose ack does.
    unacked: Vec<(u64, Ending, u64)>,
    /// What it says as soon as the host has answered its Hello.
    unsaid: Vec<ToHost>,
    /// How far its script has come, which also numbers its requests.
    pub(crate) asked: u64,
}

/// What it knows of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Link {
    /// A Hello is on its way.
    Connecting,
    Up,
    /// The stream is broken, and the client has not noticed: it reads what had arrived, and writes into the void.
    Cut,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) number: u64,
    pub(crate) choice: usize,
    until: u64,
    pub(crate) stage: Stage,
    held: Vec<HeldKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Waiting,
    Holding,
}

/// What surrounds a step of a client.
pub(crate) struct Around<'a> {
    pub(crate) now: u64,
    pub(crate) plan: &'a Plan,
    pub(crate) judge: &'a mut Judge,
    pub(crate) sights: &'a Sights,
}

impl Client {
    pub(crate) fn new(number: usize, host: usize) -> Self {
        Self {
            number,
            host,
            link: Link::Cut,
            session: None,
            seq: 0,
            sent: Vec::new(),
            unanswered: false,
            promise: 0,
            requests: Vec::new(),
            unacked: Vec::new(),
            unsaid: Vec::new(),
            asked: 0,
        }
    }

    /// The keys that it holds, as it believes.
    pub(crate) fn believes(&self, now: u64) -> impl Iterator<Item = HeldKey> {
        let holds = self.requests.iter().filter(move |request| request.stage == Stage::Holding && self.promise > now);
        holds.flat_map(|request| request.held.iter().copied())
    }

    pub(crate) fn count(&self, stage: Stage) -> usize {
        self.requests.iter().filter(|request| request.stage == stage).count()
    }

    pub(crate) fn has_unacked_releases(&self) -> bool {
        !self.unacked.is_empty()
    }

    pub(crate) fn ask(&mut self, now: u64, plan: &Plan, choice: usize) -> ToHost {
        self.asked += 1;
        let number = self.asked;
        let wait = plan.ask(self.number, number, choice).wait;
        self.requests.push(Request { number, choice, until: now + wait, stage: Stage::Waiting, held: Vec::new() });
        ToHost::Acquire(Wanted { request: number, choice, wait })
    }

    /// The upstream has answered, or its user has left.
    pub(crate) fn release(&mut self, number: u64, ending: Ending, around: &mut Around<'_>) -> ToHost {
        self.end_hold(number, ending, around.now, around);
        self.give_back(number, ending)
    }

    pub(crate) fn cancel(&mut self, number: u64) -> ToHost {
        self.requests.retain(|request| request.number != number);
        self.unacked.push((number, Ending::Unsent, self.seq + 1));
        ToHost::Cancel(number)
    }

    /// Its clock comes first: all holds end with the promise.
    pub(crate) fn expire(&mut self, around: &mut Around<'_>) -> Vec<ToHost> {
        if around.now < self.promise {
            return Vec::new();
        }
        let mut out = Vec::new();
        for number in self.numbers(Stage::Holding) {
            around.sights.see(Sight::PromiseEnded);
            self.end_hold(number, Ending::Unclean, self.promise, around);
            out.push(self.give_back(number, Ending::Unclean));
        }
        out
    }

    /// A heartbeat, anchored now.
    pub(crate) fn beat(&mut self, now: u64) -> ToHost {
        ToHost::Heartbeat { seq: self.anchor(now) }
    }

    /// What it wants to say goes out now, later, or nowhere.
    pub(crate) fn say(&mut self, message: ToHost) -> Option<ToHost> {
        match self.link {
            Link::Up => return Some(message),
            Link::Connecting => self.unsaid.push(message),
            Link::Cut => {}
        }
        None
    }

    /// The old stream is given up.
    pub(crate) fn connect(&mut self, now: u64) -> ToHost {
        self.link = Link::Connecting;
        self.unsaid.clear();
        let seq = self.anchor(now);
        // The Hello's ack covers what it lists.
        for (.., covered) in &mut self.unacked {
            *covered = seq;
        }
        ToHost::Hello { seq, resume: self.session.map(|session| (session, self.beliefs(now))) }
    }

    pub(crate) fn receive(&mut self, message: ToClient, around: &mut Around<'_>) -> Vec<ToHost> {
        match message {
            ToClient::Welcome { session, resumed } => self.welcomed(session, resumed, around),
            ToClient::Grant { request, held, seq, valid } => {
                self.promised(seq, valid);
                self.granted(request, held, around).into_iter().collect()
            }
            ToClient::Reject { request } => {
                match self.stage(request) {
                    Some(Stage::Holding) => around.judge.violate(|| format!("I5: {request} was granted and rejected")),
                    Some(Stage::Waiting) => around.sights.see(Sight::Rejected),
                    None => {}
                }
                self.requests.retain(|known| known.number != request);
                Vec::new()
            }
            ToClient::Lost { request } => match self.stage(request) {
                Some(Stage::Holding) => {
                    around.sights.see(Sight::LostTold);
                    vec![self.release(request, Ending::Unclean, around)]
                }
                Some(Stage::Waiting) => {
                    around.judge.violate(|| format!("I5: {request} was lost while it waited"));
                    Vec::new()
                }
                None => Vec::new(),
            },
            ToClient::Ack { seq, valid } => {
                self.promised(seq, valid);
                self.unacked.retain(|(.., covered)| *covered > seq);
                Vec::new()
            }
        }
    }

    fn welcomed(&mut self, session: SessionId, resumed: bool, around: &mut Around<'_>) -> Vec<ToHost> {
        if self.link == Link::Connecting {
            self.link = Link::Up;
        }
        let unsaid = core::mem::take(&mut self.unsaid);
        if resumed {
            return unsaid;
        }
        self.session = Some(session);
        // A Hello that opens a session gets no ack.
        self.unanswered = false;
        self.unacked.clear();
        for number in self.numbers(Stage::Holding) {
            self.end_hold(number, Ending::Unclean, around.now, around);
        }
        self.promise = 0;
        let waiters = self.requests.iter();
        waiters.map(|request| ToHost::Acquire(request.wanted(around.now))).collect()
    }

    fn granted(&mut self, number: u64, held: Vec<HeldKey>, around: &mut Around<'_>) -> Option<ToHost> {
        let promise = self.promise;
        match self.requests.iter_mut().find(|request| request.number == number) {
            None => {
                around.sights.see(Sight::GrantAfterCancel);
                Some(self.give_back(number, Ending::Unsent))
            }
            Some(request) if request.stage == Stage::Holding => {
                around.judge.violate(|| format!("I5: {number} was granted twice"));
                None
            }
            Some(_) if promise <= around.now => {
                around.sights.see(Sight::GrantTooLate);
                self.requests.retain(|request| request.number != number);
                Some(self.give_back(number, Ending::Unsent))
            }
            Some(request) => {
                request.stage = Stage::Holding;
                request.held = held;
                around.sights.see(Sight::Granted);
                None
            }
        }
    }

    fn promised(&mut self, seq: u64, valid: u64) {
        let Some((_, anchor)) = self.sent.iter().find(|(sent, _)| *sent == seq) else { return };
        self.promise = self.promise.max(anchor + valid);
        self.sent.retain(|(sent, _)| *sent >= seq);
        self.unanswered &= seq != self.seq;
    }

    fn anchor(&mut self, now: u64) -> u64 {
        self.seq += 1;
        self.sent.push((self.seq, now));
        self.unanswered = true;
        self.seq
    }

    fn beliefs(&self, now: u64) -> Beliefs {
        let waiters = self.requests.iter().filter(|request| request.stage == Stage::Waiting);
        Beliefs {
            waiters: waiters.map(|request| request.wanted(now)).collect(),
            holds: self.numbers(Stage::Holding),
            releases: self.unacked.iter().map(|(number, ending, _)| (*number, *ending)).collect(),
        }
    }

    /// Unclean: its work may go on for the lock delay.
    fn end_hold(&mut self, number: u64, ending: Ending, ended: u64, around: &mut Around<'_>) {
        let Some(place) = self.requests.iter().position(|request| request.number == number) else { return };
        let request = self.requests.remove(place);
        if ending == Ending::Unclean {
            let until = ended + around.plan.ask(self.number, number, request.choice).lock_delay;
            if until > around.now {
                around.judge.lingering.extend(request.held.iter().map(|hold| Lingering { until, hold: *hold }));
            }
        }
    }

    fn give_back(&mut self, number: u64, ending: Ending) -> ToHost {
        self.unacked.push((number, ending, self.seq + 1));
        ToHost::Release(number, ending)
    }

    fn stage(&self, number: u64) -> Option<Stage> {
        self.requests.iter().find(|request| request.number == number).map(|request| request.stage)
    }

    fn numbers(&self, stage: Stage) -> Vec<u64> {
        let of_stage = self.requests.iter().filter(|request| request.stage == stage);
        of_stage.map(|request| request.number).collect()
    }

    pub(crate) fn feed(&self, names: &Names<'_>, hasher: &mut impl Hasher) {
        let now = names.now;
        (self.link, self.unanswered, self.session.map(|session| names.session(session))).hash(hasher);
        // The lengths tell where one list ends and the next begins.
        (self.sent.len(), self.requests.len(), self.unacked.len(), self.unsaid.len()).hash(hasher);
        for (seq, at) in &self.sent {
            (self.seq - seq, until(now, *at)).hash(hasher);
        }
        (until(now, self.promise).max(0), self.asked).hash(hasher);
        for request in &self.requests {
            (request.number, request.choice, request.stage).hash(hasher);
            match request.stage {
                Stage::Waiting => until(now, request.until).hash(hasher),
                Stage::Holding => request.held.iter().for_each(|held| held.feed(names, hasher)),
            }
        }
        for (number, ending, covered) in &self.unacked {
            (number, ending, covered.wrapping_sub(self.seq)).hash(hasher);
        }
        for message in &self.unsaid {
            message.feed(self.number, names, hasher);
        }
    }
}

impl Request {
    fn wanted(&self, now: u64) -> Wanted {
        Wanted { request: self.number, choice: self.choice, wait: self.until.saturating_sub(now) }
    }
}
