//! A model of the host process around a real engine: streams and store events in, commands out.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use turnstile_core::{
    Acquire, ClaimId, Command, Engine, Epoch, ForcedDelay, HeartbeatSeq, HolderSecret, Input, Instant, KeyRequest,
    Reentry, RequestId, Resume, SessionId, View,
};

use crate::judge::HeldKey;
use crate::names::Names;
use crate::plan::{Family, KEYS, Kin, Plan, key, number_of};
use crate::store::Incarnation;
use crate::wire::{Beliefs, Claim, Event, Operation, ToClient, ToHost, Wanted};

#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) engine: Engine,
    /// Its name in the store; another one after a lost lease.
    pub(crate) name: Incarnation,
    pub(crate) connections: Vec<Connection>,
    pub(crate) last_session: u64,
    /// Open requests: which alternative they are, and what they were told.
    answers: BTreeMap<(SessionId, u64), (usize, Answer)>,
    /// The driver's claims that the store has not answered.
    claims: [Option<Claim>; KEYS.len()],
    pub(crate) to_store: VecDeque<(Incarnation, Operation)>,
    pub(crate) from_store: VecDeque<Event>,
}

/// A session, and the stream that it came by.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Connection {
    pub(crate) session: SessionId,
    pub(crate) client: usize,
    pub(crate) stream: Stream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stream {
    /// What its client knows as its stream.
    Current,
    /// Broken, and the host has not noticed.
    Broken,
    None,
}

/// What a request was told last, for I5.
#[derive(Clone, Debug)]
enum Answer {
    None,
    Granted(Vec<HeldKey>),
    Lost,
}

impl Answer {
    fn held(&self) -> &[HeldKey] {
        if let Self::Granted(held) = self { held } else { &[] }
    }
}

/// What a host does to the world.
pub(crate) enum Out {
    ToClient(usize, ToClient),
    Close(usize),
    /// A grant of so many keys; these of them were not joined.
    Granted(Vec<HeldKey>, usize),
    ToldAgain,
    SessionEnded,
    Violation(String),
}

impl Host {
    pub(crate) fn new(engine: Engine, name: Incarnation, last_session: u64) -> Self {
        Self {
            engine,
            name,
            connections: Vec::new(),
            last_session,
            answers: BTreeMap::new(),
            claims: Default::default(),
            to_store: VecDeque::new(),
            from_store: VecDeque::new(),
        }
    }

    pub(crate) fn is_due(&self, now: u64) -> bool {
        self.engine.next_deadline().is_some_and(|deadline| deadline.as_micros() <= now)
    }

    pub(crate) fn talks_to_store(&self) -> bool {
        !self.to_store.is_empty() || !self.from_store.is_empty()
    }

    pub(crate) fn act_on_deadlines(&mut self, now: u64, plan: &Plan) -> Vec<Out> {
        self.engine.handle_timeout(Instant::from_micros(now));
        self.carry_out(plan)
    }

    /// A message of the client's stream, which is `stream` now.
    pub(crate) fn hear(&mut self, now: u64, plan: &Plan, client: usize, stream: Stream, message: ToHost) -> Vec<Out> {
        if let ToHost::Hello { seq, resume } = message {
            return self.hello(now, plan, client, stream, seq, resume);
        }
        let bound = |connection: &&Connection| connection.client == client && connection.stream == stream;
        let Some(session) = self.connections.iter().rev().find(bound).map(|connection| connection.session) else {
            return Vec::new();
        };
        let input = match message {
            ToHost::Hello { .. } => return Vec::new(),
            ToHost::Heartbeat { seq } => Input::Heartbeat { session, seq: HeartbeatSeq(seq) },
            ToHost::Acquire(wanted) => {
                self.answers.entry((session, wanted.request)).or_insert((wanted.choice, Answer::None));
                Input::Acquire { session, acquire: acquire(plan, client, wanted) }
            }
            ToHost::Cancel(request) => {
                self.answers.remove(&(session, request));
                Input::Cancel { session, request: RequestId(request) }
            }
            ToHost::Release(request, ending) => {
                self.answers.remove(&(session, request));
                Input::Release { session, request: RequestId(request), ending }
            }
        };
        self.take(now, plan, input)
    }

    fn hello(
        &mut self,
        now: u64,
        plan: &Plan,
        client: usize,
        stream: Stream,
        seq: u64,
        resume: Option<(SessionId, Beliefs)>,
    ) -> Vec<Out> {
        let seq = HeartbeatSeq(seq);
        if let Some((session, beliefs)) = resume
            && let Some(connection) = self.connections.iter_mut().find(|known| known.session == session)
        {
            connection.stream = stream;
            let mut out = vec![Out::ToClient(client, ToClient::Welcome { session, resumed: true })];
            self.answers.retain(|(of, request), (_, answer)| {
                let waits = beliefs.waiters.iter().any(|wanted| wanted.request == *request);
                let holds = beliefs.holds.contains(request) && !matches!(answer, Answer::None);
                *of != session || waits || holds
            });
            for Wanted { request, choice, .. } in &beliefs.waiters {
                let (_, answer) = self.answers.entry((session, *request)).or_insert((*choice, Answer::None));
                if matches!(answer, Answer::Lost) {
                    *answer = Answer::None;
                }
            }
            let resume = Resume {
                waiters: beliefs.waiters.iter().map(|wanted| acquire(plan, client, *wanted)).collect(),
                holds: beliefs.holds.iter().map(|request| RequestId(*request)).collect(),
                releases: beliefs.releases.iter().map(|(request, ending)| (RequestId(*request), *ending)).collect(),
            };
            out.extend(self.take(now, plan, Input::ResumeSession { session, seq, resume }));
            return out;
        }
        self.last_session += 1;
        let session = SessionId(self.last_session);
        self.connections.push(Connection { session, client, stream });
        let mut out = vec![Out::ToClient(client, ToClient::Welcome { session, resumed: false })];
        out.extend(self.take(now, plan, Input::OpenSession { session, seq }));
        out
    }

    /// It notices that a stream of this client is broken.
    pub(crate) fn see_end(&mut self, now: u64, plan: &Plan, client: usize) -> Vec<Out> {
        let broken = |known: &&mut Connection| known.client == client && known.stream == Stream::Broken;
        let Some(connection) = self.connections.iter_mut().find(broken) else { return Vec::new() };
        connection.stream = Stream::None;
        let session = connection.session;
        self.take(now, plan, Input::SuspendSession { session })
    }

    /// An operator ends all holds of the key.
    pub(crate) fn force(&mut self, now: u64, plan: &Plan, number: usize) -> Vec<Out> {
        let delay = ForcedDelay::Keep;
        self.take(now, plan, Input::ForceRelease { key: key(number), token: None, delay })
    }

    /// An event of the store for the incarnation that we are.
    pub(crate) fn hear_store(&mut self, now: u64, plan: &Plan, event: Event, lease: u64) -> Vec<Out> {
        let input = match event {
            Event::Gained { key: number, claim, epoch, lock_delay, quarantine_left } => {
                self.answered(number, claim);
                Input::OwnershipGained {
                    key: key(number),
                    claim,
                    epoch: Epoch(epoch),
                    lock_delay: Duration::from_micros(lock_delay),
                    quarantined_until: Instant::from_micros(now + quarantine_left),
                }
            }
            Event::Queued { key: number, claim } => {
                self.answered(number, claim);
                Input::OwnershipQueued { key: key(number), claim }
            }
            Event::Contended { key: number } => Input::OwnershipContended { key: key(number) },
            Event::LeaseRenewed { sent } => Input::LeaseRenewed { until: Instant::from_micros(sent + lease) },
            Event::LeaseLost => {
                self.claims = Default::default();
                self.to_store.clear();
                self.from_store.clear();
                Input::LeaseLost
            }
        };
        self.take(now, plan, input)
    }

    /// The key whose claim is answered next, if that answer can get lost: what the store tells later by itself cannot.
    pub(crate) fn next_answer(&self) -> Option<usize> {
        match self.from_store.front() {
            Some(Event::Gained { key, claim, .. } | Event::Queued { key, claim }) => {
                self.claims[*key].filter(|pending| pending.claim == *claim).map(|_| *key)
            }
            _ => None,
        }
    }

    /// The next answer gets lost, and the driver claims again. Says which key it was about.
    pub(crate) fn lose_answer(&mut self) -> Option<usize> {
        let key = self.next_answer()?;
        self.from_store.pop_front();
        self.to_store.push_back((self.name, Operation::Claim(self.claims[key]?)));
        Some(key)
    }

    /// It goes on under another name in the store.
    pub(crate) fn rename(&mut self, name: Incarnation) {
        self.name = name;
        for (of, _) in &mut self.to_store {
            *of = name;
        }
    }

    pub(crate) fn has_broken_stream(&self, client: usize) -> bool {
        self.connections.iter().any(|known| known.client == client && known.stream == Stream::Broken)
    }

    pub(crate) fn break_stream(&mut self, client: usize) {
        let current = |known: &&mut Connection| known.client == client && known.stream == Stream::Current;
        if let Some(connection) = self.connections.iter_mut().find(current) {
            connection.stream = Stream::Broken;
        }
    }

    fn answered(&mut self, key: usize, claim: ClaimId) {
        self.claims[key].take_if(|pending| pending.claim == claim);
    }

    fn take(&mut self, now: u64, plan: &Plan, input: Input) -> Vec<Out> {
        self.engine.handle(Instant::from_micros(now), input);
        self.carry_out(plan)
    }

    fn carry_out(&mut self, plan: &Plan) -> Vec<Out> {
        let mut out = Vec::new();
        // An engine that is made to err is judged by its deeds alone.
        if plan.mutation.is_none() {
            self.engine.check();
        }
        if let Some(fault) = self.engine.fault() {
            out.push(Out::Violation(format!("fault: {fault}")));
        }
        while let Some(command) = self.engine.poll_command() {
            self.carry_out_one(plan, command, &mut out);
        }
        out
    }

    fn carry_out_one(&mut self, plan: &Plan, command: Command, out: &mut Vec<Out>) {
        match command {
            Command::Grant { session, request, keys, seq, valid, .. } => {
                let tokens: Vec<u64> = keys.iter().map(|key| key.token.as_u64()).collect();
                let held = self.granted(plan, session, request.0, &tokens, out);
                let (request, seq, valid) = (request.0, seq.0, valid.as_micros() as u64);
                self.send(session, ToClient::Grant { request, held, seq, valid }, out);
            }
            Command::Reject { session, request, .. } => {
                if !matches!(self.answers.remove(&(session, request.0)), Some((_, Answer::None))) {
                    out.push(Out::Violation(format!("I5: {request:?} was rejected although it did not wait")));
                }
                self.send(session, ToClient::Reject { request: request.0 }, out);
            }
            Command::Lost { session, request, .. } => {
                if let Some((_, answer)) = self.answers.get_mut(&(session, request.0)) {
                    *answer = Answer::Lost;
                }
                self.send(session, ToClient::Lost { request: request.0 }, out);
            }
            Command::AckHeartbeat { session, seq, valid } => {
                self.send(session, ToClient::Ack { seq: seq.0, valid: valid.as_micros() as u64 }, out);
            }
            Command::EndSession { session, .. } => {
                out.push(Out::SessionEnded);
                self.answers.retain(|(of, _), _| *of != session);
                if let Some(place) = self.connections.iter().position(|known| known.session == session) {
                    let connection = self.connections.remove(place);
                    if connection.stream == Stream::Current {
                        out.push(Out::Close(connection.client));
                    }
                }
            }
            Command::ClaimOwnership { key, claim, lock_delay, new_epoch } => {
                let key = number_of(&key);
                let lock_delay = lock_delay.as_micros() as u64;
                let claim = Claim { key, claim, lock_delay, new_epoch };
                self.claims[key] = Some(claim);
                self.to_store.push_back((self.name, Operation::Claim(claim)));
            }
            Command::YieldOwnership { key } => {
                let key = number_of(&key);
                self.claims[key] = None;
                self.to_store.push_back((self.name, Operation::Yield { key }));
            }
            Command::Drained => {}
        }
    }

    /// I5, and what I2 is judged by. Says what its client then holds.
    fn granted(
        &mut self,
        plan: &Plan,
        session: SessionId,
        request: u64,
        tokens: &[u64],
        out: &mut Vec<Out>,
    ) -> Vec<HeldKey> {
        let held_before: Vec<HeldKey> = self.answers.values().flat_map(|(_, answer)| answer.held()).copied().collect();
        let client = self.connections.iter().find(|known| known.session == session).map(|known| known.client);
        let answer = client.and_then(|client| Some((client, self.answers.get_mut(&(session, request))?)));
        match answer {
            Some((client, (choice, answer @ Answer::None))) => {
                let ask = plan.ask(client, request, *choice);
                let keys = ask.keys.iter().zip(tokens);
                let held: Vec<HeldKey> =
                    keys.map(|((key, mode), token)| HeldKey { key: *key, token: *token, mode: *mode }).collect();
                if ask.keys.len() != tokens.len() {
                    out.push(Out::Violation(format!("I5: {request} of {session:?} was granted in part: {tokens:?}")));
                }
                let joins = |held: &HeldKey| {
                    let same = |before: &HeldKey| (before.key, before.token) == (held.key, held.token);
                    matches!(ask.kin, Kin::Joins(_)) && held_before.iter().any(same)
                };
                out.push(Out::Granted(held.iter().filter(|held| !joins(held)).copied().collect(), held.len()));
                *answer = Answer::Granted(held.clone());
                held
            }
            Some((_, (_, Answer::Granted(held)))) if held.iter().map(|held| held.token).eq(tokens.iter().copied()) => {
                out.push(Out::ToldAgain);
                held.clone()
            }
            answer => {
                let before = answer.map(|(_, (_, answer))| format!("{answer:?}"));
                out.push(Out::Violation(format!(
                    "I5: {request} of {session:?} was granted {tokens:?} after {before:?}"
                )));
                Vec::new()
            }
        }
    }

    fn send(&self, session: SessionId, message: ToClient, out: &mut Vec<Out>) {
        if let Some(connection) = self.connections.iter().find(|known| known.session == session)
            && connection.stream == Stream::Current
        {
            out.push(Out::ToClient(connection.client, message));
        }
    }

    pub(crate) fn feed(&self, names: &Names<'_>, hasher: &mut impl Hasher) {
        self.engine.fingerprint(names, hasher);
        (self.connections.len(), self.answers.len(), self.to_store.len(), self.from_store.len()).hash(hasher);
        for connection in &self.connections {
            (connection.client, connection.stream).hash(hasher);
        }
        for ((session, request), (_, answer)) in &self.answers {
            (names.session(*session), request).hash(hasher);
            match answer {
                Answer::None => 0_u8.hash(hasher),
                // Which tokens, the engine's own state tells.
                Answer::Granted(_) => 1_u8.hash(hasher),
                Answer::Lost => 2_u8.hash(hasher),
            }
        }
        for claim in &self.claims {
            claim.map(|pending| names.claims_since(pending.claim)).hash(hasher);
        }
        for (_, operation) in &self.to_store {
            operation.feed(names, hasher);
        }
        for event in &self.from_store {
            event.feed(names, hasher);
        }
    }
}

fn acquire(plan: &Plan, client: usize, Wanted { request, choice, wait }: Wanted) -> Acquire {
    let ask = plan.ask(client, request, choice);
    let keys = ask.keys.iter().map(|(number, mode)| KeyRequest { key: key(*number), mode: *mode });
    Acquire {
        keys: keys.collect(),
        wait: Duration::from_micros(wait),
        hold: ask.hold.map(Duration::from_micros),
        lock_delay: Duration::from_micros(ask.lock_delay),
        reentry: match ask.kin {
            Kin::None => Reentry::None,
            Kin::Offers => Reentry::Offer(secret((client, request))),
            Kin::Joins(family) => Reentry::Join(secret(family)),
        },
        ..Acquire::of_key(RequestId(request), key(0))
    }
}

fn secret((client, request): Family) -> HolderSecret {
    HolderSecret([[client as u8; 8], [request as u8; 8]].concat().try_into().expect("16 bytes"))
}
