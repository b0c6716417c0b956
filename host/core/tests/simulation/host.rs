//! A model of the host process around the engine: streams and store events in, commands out; failed claims are tried
//! again as the driver does. May freeze or die.

use std::collections::BTreeMap;
use std::time::Duration;

use turnstile_core::{
    Acquire, ClaimId, Command, Config, EndReason, Engine, Epoch, HeartbeatSeq, HolderSecret, Input, Instant, LockKey,
    Reentry, RequestId, SessionId,
};

use crate::clock::{Clock, MS, SECOND, micros};
use crate::history::History;
use crate::mutants::Sabotage;
use crate::plan::Plan;
use crate::random::{Part, Random};
use crate::store::{self, Event, Failure, Incarnation, Operation};
use crate::wire::{Run, SessionName, Stream, ToClient, ToHost};

/// What reaches the host.
#[derive(Clone, Debug)]
pub(crate) enum Arrival {
    Message(Stream, ToHost),
    StreamEnd(Stream),
    Store(Event),
    /// From the operator.
    Order(Input),
}

/// What the host does to the world.
pub(crate) enum Out {
    Send(Stream, ToClient),
    Close(Stream),
    Store(Operation),
    Ended(SessionName, EndReason),
    /// The lease has been ended: the process is done.
    Exit,
}

struct Connection {
    stream: Stream,
    connected: bool,
}

/// A claim that the store has not answered.
struct Pending {
    claim: ClaimId,
    operation: Operation,
    pause: u64,
    /// By the host's clock.
    retry_at: Option<u64>,
}

pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) clock: Clock,
    pub(crate) run: Run,
    /// Its name in the store; another one after a lost lease.
    pub(crate) in_store: Incarnation,
    pub(crate) inbox: Vec<Arrival>,
    pub(crate) out: Vec<Out>,
    /// Inputs and timeouts that the engine has taken.
    pub(crate) steps: u64,
    random: Random,
    sessions: BTreeMap<SessionId, Connection>,
    by_stream: BTreeMap<Stream, SessionId>,
    claims: BTreeMap<LockKey, Pending>,
    bounds: Config,
    lease_ttl: u64,
    sabotage: Sabotage,
}

impl Host {
    pub(crate) fn new(run: Run, seed: u64, plan: &Plan, sabotage: Sabotage) -> Self {
        Self {
            engine: Engine::with_mutation(plan.config.clone(), sabotage.engine()),
            clock: plan.hosts[run.host],
            run,
            in_store: Incarnation { of: run, life: 0 },
            inbox: Vec::new(),
            out: Vec::new(),
            steps: 0,
            random: Random::of(seed ^ u64::from(run.run) << 32, Part::Host(run.host)),
            sessions: BTreeMap::new(),
            by_stream: BTreeMap::new(),
            claims: BTreeMap::new(),
            bounds: plan.config.clone(),
            lease_ttl: plan.lease_ttl,
            sabotage,
        }
    }

    /// Takes what has arrived, and acts on deadlines before or after: a process that wakes up does either.
    pub(crate) fn turn(&mut self, now: u64, history: &mut History) {
        if self.random.chance(50) {
            self.act_on_deadlines(now, history);
        }
        for arrival in std::mem::take(&mut self.inbox) {
            self.take(now, arrival, history);
        }
        self.act_on_deadlines(now, history);
    }

    /// When it wants to act next, in true time; a little late now and then.
    pub(crate) fn next_deadline(&mut self) -> Option<u64> {
        let retry = self.claims.values().filter_map(|pending| pending.retry_at).min();
        let engine = self.engine.next_deadline().map(Instant::as_micros);
        let deadline = [engine, retry].into_iter().flatten().min()?;
        let late = if self.random.chance(80) { 0 } else { self.random.range(0, 5 * MS) };
        Some(self.clock.when(deadline) + late)
    }

    fn act_on_deadlines(&mut self, now: u64, history: &mut History) {
        let local = self.clock.shows(now);
        if self.engine.next_deadline().is_some_and(|deadline| deadline.as_micros() <= local) {
            history.ledgers[self.run.host].look(local);
            self.engine.handle_timeout(Instant::from_micros(local));
            self.carry_out(history);
        }
        for pending in self.claims.values_mut() {
            if pending.retry_at.is_some_and(|at| at <= local) {
                pending.retry_at = None;
                self.out.push(Out::Store(pending.operation.clone()));
            }
        }
    }

    fn take(&mut self, now: u64, arrival: Arrival, history: &mut History) {
        match arrival {
            Arrival::Message(stream, ToHost::Hello { seq, resume }) => self.hello(now, stream, seq, resume, history),
            Arrival::Message(stream, message) => self.message(now, stream, message, history),
            Arrival::StreamEnd(stream) => {
                let Some(session) = self.by_stream.remove(&stream) else { return };
                if let Some(connection) = self.sessions.get_mut(&session) {
                    connection.connected = false;
                }
                self.feed(now, Input::SuspendSession { session }, history);
            }
            Arrival::Store(event) => self.store_event(now, event, history),
            Arrival::Order(input) => self.feed(now, input, history),
        }
    }

    fn hello(
        &mut self,
        now: u64,
        stream: Stream,
        seq: u64,
        resume: Option<(SessionName, turnstile_core::Resume)>,
        history: &mut History,
    ) {
        let seq = HeartbeatSeq(seq);
        if let Some((name, mut resume)) = resume
            && name.run == self.run
            && let Some(connection) = self.sessions.get_mut(&SessionId(name.number))
        {
            // What arrives late of an older stream.
            if stream.1 <= connection.stream.1 {
                return;
            }
            self.by_stream.remove(&connection.stream);
            *connection = Connection { stream, connected: true };
            let session = SessionId(name.number);
            self.by_stream.insert(stream, session);
            self.out.push(Out::Send(stream, ToClient::Welcome { session: name, resumed: true }));
            history.log.count("resumed");
            for acquire in &mut resume.waiters {
                self.choose_secret(acquire);
            }
            self.feed(now, Input::ResumeSession { session, seq, resume }, history);
            return;
        }
        let session = SessionId(self.random.next());
        let name = SessionName { run: self.run, number: session.0 };
        self.sessions.insert(session, Connection { stream, connected: true });
        self.by_stream.insert(stream, session);
        self.out.push(Out::Send(stream, ToClient::Welcome { session: name, resumed: false }));
        self.feed(now, Input::OpenSession { session, seq }, history);
    }

    fn choose_secret(&mut self, acquire: &mut Acquire) {
        if let Reentry::Offer(secret) = &mut acquire.reentry {
            let numbers = [self.random.next(), self.random.next()];
            *secret = HolderSecret(((u128::from(numbers[0]) << 64) | u128::from(numbers[1])).to_be_bytes());
        }
    }

    fn message(&mut self, now: u64, stream: Stream, message: ToHost, history: &mut History) {
        let Some(session) = self.by_stream.get(&stream).copied() else { return };
        let input = match message {
            ToHost::Hello { .. } => return,
            ToHost::Heartbeat { seq } => Input::Heartbeat { session, seq: HeartbeatSeq(seq) },
            ToHost::Acquire(mut acquire) => {
                self.choose_secret(&mut acquire);
                Input::Acquire { session, acquire }
            }
            ToHost::Cancel(request) => Input::Cancel { session, request: RequestId(request) },
            ToHost::Release(request, ending) => Input::Release { session, request: RequestId(request), ending },
        };
        self.feed(now, input, history);
    }

    fn store_event(&mut self, now: u64, event: Event, history: &mut History) {
        let local = self.clock.shows(now);
        let input = match event {
            Event::Gained { key, claim, epoch, lock_delay, quarantine_left } => {
                self.answered(&key, claim);
                let quarantined_until = Instant::from_micros(local + store::kept_off(quarantine_left));
                let (epoch, lock_delay) = (Epoch(epoch), Duration::from_micros(lock_delay));
                Input::OwnershipGained { key, claim, epoch, lock_delay, quarantined_until }
            }
            Event::Queued { key, claim } => {
                self.answered(&key, claim);
                Input::OwnershipQueued { key, claim }
            }
            Event::Failed { key, claim, why } => {
                if !self.gives_up(local, &key, claim, why) {
                    return;
                }
                Input::OwnershipRefused { key, claim }
            }
            Event::Contended { key } => Input::OwnershipContended { key },
            Event::Lost { key } => {
                if self.engine.owns(&key) {
                    self.claims.remove(&key);
                }
                Input::OwnershipLost { key }
            }
            Event::LeaseRenewed { sent } => {
                let anchor = if self.sabotage == Sabotage::LeaseAnchoredAtReceipt { local } else { sent };
                // Less the allowance for clock rates.
                Input::LeaseRenewed { until: Instant::from_micros(anchor + self.lease_ttl * 98 / 100) }
            }
            Event::LeaseLost => {
                self.in_store.life += 1;
                self.claims.clear();
                history.log.count("leases lost");
                Input::LeaseLost
            }
            Event::LeaseEnded => return self.out.push(Out::Exit),
        };
        self.feed(now, input, history);
    }

    fn answered(&mut self, key: &LockKey, claim: ClaimId) {
        if self.claims.get(key).is_some_and(|pending| pending.claim == claim) {
            self.claims.remove(key);
        }
    }

    /// The driver's policy for failed claims; false if it is tried again, or nobody's any more.
    fn gives_up(&mut self, local: u64, key: &LockKey, claim: ClaimId, why: Failure) -> bool {
        let Some(pending) = self.claims.get_mut(key).filter(|pending| pending.claim == claim) else { return false };
        let wanted = self.engine.owns(key) || self.engine.queue_length(key) > 0;
        let why = match why {
            Failure::Ambiguous if self.sabotage == Sabotage::AmbiguousTakenForFailed => Failure::Rejected,
            why => why,
        };
        if why == Failure::Rejected || (why == Failure::Unavailable && !wanted) {
            self.claims.remove(key);
            return true;
        }
        pending.retry_at = Some(local + pending.pause);
        pending.pause = (pending.pause * 2).min(2 * SECOND);
        false
    }

    fn feed(&mut self, now: u64, input: Input, history: &mut History) {
        let local = self.clock.shows(now);
        let host = self.run.host;
        match input {
            Input::Heartbeat { .. } | Input::LeaseRenewed { .. } => {
                history.log.note_routine(|| format!("host {host} <- {input:?}"));
            }
            _ => history.log.note(|| format!("host {host} <- {input:?}")),
        }
        if let Input::ForceRelease { key, token, delay: turnstile_core::ForcedDelay::Skip } = &input {
            let token = token.map(|token| token.as_u64());
            history.possessions.vouch(now, key, token, self.run, &history.tokens);
        }
        history.ledgers[host].hear(local, &input);
        self.engine.handle(Instant::from_micros(local), input);
        self.carry_out(history);
    }

    /// After each step of the engine: it must find no fault with itself (one that is made to err is judged by its deeds
    /// alone), and do what it was allowed to.
    fn carry_out(&mut self, history: &mut History) {
        self.steps += 1;
        if self.sabotage == Sabotage::Nothing {
            self.engine.check();
        }
        if let Some(fault) = self.engine.fault() {
            history.log.violate("fault", fault.to_string());
        }
        let (engine, bounds) = (&self.engine, &self.bounds);
        if engine.session_count() > bounds.sessions_max || engine.key_count() > bounds.keys_max {
            history.log.violate("I7 too many sessions or keys", format!("host {}", self.run.host));
        }
        let host = self.run.host;
        while let Some(command) = self.engine.poll_command() {
            match command {
                Command::AckHeartbeat { .. } => history.log.note_routine(|| format!("host {host} -> {command:?}")),
                _ => history.log.note(|| format!("host {host} -> {command:?}")),
            }
            history.ledgers[host].say(&command, &mut history.tokens, &mut history.log);
            self.carry_out_one(command, history);
        }
        history.ledgers[host].rest(&mut history.log);
    }

    fn carry_out_one(&mut self, command: Command, history: &mut History) {
        match command {
            Command::Grant { session, request, keys, secret, seq, valid, .. } => {
                let (request, seq, valid) = (request.0, seq.0, micros(valid));
                self.send(session, ToClient::Grant { request, keys, secret, seq, valid });
            }
            Command::Reject { session, request, .. } => {
                self.send(session, ToClient::Reject { request: request.0 });
            }
            Command::Lost { session, request, .. } => {
                history.log.count("holds lost");
                self.send(session, ToClient::Lost { request: request.0 });
            }
            Command::AckHeartbeat { session, seq, valid } => {
                self.send(session, ToClient::Ack { seq: seq.0, valid: micros(valid) });
            }
            Command::EndSession { session, reason } => {
                history.log.count("sessions ended");
                self.out.push(Out::Ended(SessionName { run: self.run, number: session.0 }, reason));
                if let Some(connection) = self.sessions.remove(&session) {
                    self.by_stream.remove(&connection.stream);
                    self.out.push(Out::Close(connection.stream));
                }
            }
            Command::ClaimOwnership { key, claim, lock_delay, new_epoch } => {
                history.log.count("claims");
                let lock_delay = micros(lock_delay);
                let operation = Operation::Claim { key: key.clone(), claim, lock_delay, new_epoch };
                let (again, pause) = (operation.clone(), 50 * MS);
                self.claims.insert(key, Pending { claim, operation: again, pause, retry_at: None });
                self.out.push(Out::Store(operation));
            }
            Command::YieldOwnership { key } => {
                self.claims.remove(&key);
                self.out.push(Out::Store(Operation::Yield { key }));
            }
            Command::Drained => self.out.push(Out::Store(Operation::EndLease)),
        }
    }

    fn send(&mut self, session: SessionId, message: ToClient) {
        if let Some(connection) = self.sessions.get(&session)
            && connection.connected
        {
            self.out.push(Out::Send(connection.stream, message));
        }
    }
}
