//! A model of the host process around the engine: streams and store events in, commands out. May freeze or die.

use std::collections::BTreeMap;
use std::time::Duration;

use turnstile_core::{
    Command, Config, Engine, Epoch, HeartbeatSeq, Input, Instant, LockKey, Mutation, RequestId, SessionId,
};

use crate::clock::{Clock, micros};
use crate::history::{History, Liveness};
use crate::random::Random;
use crate::store::{self, Event, Incarnation, Operation};
use crate::wire::{ToClient, ToHost};

/// A client's stream: the client, and which of its streams.
pub(crate) type Stream = (usize, u64);

/// What reaches the host.
#[derive(Clone, Debug)]
pub(crate) enum Arrival {
    Message(Stream, ToHost),
    StreamEnd(Stream),
    Store(Event),
    Drain,
}

/// What the host does to the world.
pub(crate) enum Out {
    Send(Stream, ToClient),
    Close(Stream),
    Store(Operation),
    Drained,
}

struct Connection {
    stream: Stream,
    connected: bool,
    heard: u64,
}

pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) clock: Clock,
    /// One run of the process.
    pub(crate) incarnation: u64,
    /// Its name in the store; another one after a lost lease.
    pub(crate) in_store: Incarnation,
    pub(crate) frozen_until: Option<u64>,
    pub(crate) inbox: Vec<Arrival>,
    pub(crate) out: Vec<Out>,
    sessions: BTreeMap<SessionId, Connection>,
    by_stream: BTreeMap<Stream, SessionId>,
    /// Keys of requests, to name them in the history.
    keys: BTreeMap<(SessionId, RequestId), (LockKey, Option<u64>)>,
    bounds: Config,
    /// The engine must find no fault with itself; one that is made to err is judged by its deeds alone.
    checks: bool,
    /// When sessions ended, in true time, for I3.
    pub(crate) ended: BTreeMap<(u64, u64), u64>,
}

impl Host {
    pub(crate) fn new(incarnation: u64, clock: Clock, config: Config, mutation: Option<Mutation>) -> Self {
        Self {
            engine: Engine::with_mutation(config.clone(), mutation),
            bounds: config,
            clock,
            incarnation,
            in_store: incarnation * 1_000,
            frozen_until: None,
            inbox: Vec::new(),
            out: Vec::new(),
            sessions: BTreeMap::new(),
            by_stream: BTreeMap::new(),
            keys: BTreeMap::new(),
            checks: mutation.is_none(),
            ended: BTreeMap::new(),
        }
    }

    /// Takes what has arrived, and acts on deadlines before or after: a process that wakes up does either.
    pub(crate) fn turn(&mut self, now: u64, deadlines_first: bool, history: &mut History, random: &mut Random) {
        if deadlines_first {
            self.act_on_deadlines(now, history);
        }
        for arrival in std::mem::take(&mut self.inbox) {
            self.take(now, arrival, history, random);
        }
        self.act_on_deadlines(now, history);
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.engine.next_deadline().map(|deadline| self.clock.when(deadline.as_micros()))
    }

    fn act_on_deadlines(&mut self, now: u64, history: &mut History) {
        if self.engine.next_deadline().is_some_and(|deadline| deadline <= self.clock.instant(now)) {
            self.engine.handle_timeout(self.clock.instant(now));
            self.carry_out(now, history);
        }
    }

    fn take(&mut self, now: u64, arrival: Arrival, history: &mut History, random: &mut Random) {
        match arrival {
            Arrival::Message(stream, ToHost::Hello { seq, resume }) => {
                self.hello(now, stream, seq, resume, history, random);
            }
            Arrival::Message(stream, message) => self.message(now, stream, message, history),
            Arrival::StreamEnd(stream) => {
                let Some(session) = self.by_stream.remove(&stream) else { return };
                if let Some(connection) = self.sessions.get_mut(&session) {
                    connection.connected = false;
                }
                self.feed(now, Input::SuspendSession { session }, history);
            }
            Arrival::Store(event) => self.store_event(now, event, history),
            Arrival::Drain => self.feed(now, Input::Drain, history),
        }
    }

    fn hello(
        &mut self,
        now: u64,
        stream: Stream,
        seq: u64,
        resume: Option<(u64, u64, turnstile_core::Resume)>,
        history: &mut History,
        random: &mut Random,
    ) {
        let incarnation = self.incarnation;
        if let Some((of, id, resume)) = resume
            && of == incarnation
            && let Some(connection) = self.sessions.get_mut(&SessionId(id))
        {
            if stream.1 <= connection.stream.1 {
                return;
            }
            self.by_stream.remove(&connection.stream);
            *connection = Connection { stream, connected: true, heard: now };
            let session = SessionId(id);
            self.by_stream.insert(stream, session);
            self.out.push(Out::Send(stream, ToClient::Welcome { incarnation, session: id, resumed: true }));
            history.count("resumed");
            let mut listed: Vec<u64> = resume.waiters.iter().map(|acquire| acquire.request.0).collect();
            listed.retain(|id| !resume.releases.iter().any(|(released, _)| released.0 == *id));
            history.left(|of, request| of == id && !listed.contains(&request));
            for acquire in &resume.waiters {
                let known = self.keys.entry((session, acquire.request)).or_insert((acquire.keys[0].key.clone(), None));
                if known.1.is_none() {
                    history.queued(&acquire.keys[0].key, id, acquire.request.0);
                }
            }
            self.feed(now, Input::ResumeSession { session, seq: HeartbeatSeq(seq), resume }, history);
            return;
        }
        let session = SessionId(random.next());
        self.sessions.insert(session, Connection { stream, connected: true, heard: now });
        self.by_stream.insert(stream, session);
        self.out.push(Out::Send(stream, ToClient::Welcome { incarnation, session: session.0, resumed: false }));
        self.feed(now, Input::OpenSession { session, seq: HeartbeatSeq(seq) }, history);
    }

    fn message(&mut self, now: u64, stream: Stream, message: ToHost, history: &mut History) {
        let Some(session) = self.by_stream.get(&stream).copied() else { return };
        let input = match message {
            ToHost::Hello { .. } => return,
            ToHost::Heartbeat { seq } => {
                if let Some(connection) = self.sessions.get_mut(&session) {
                    connection.heard = now;
                }
                Input::Heartbeat { session, seq: HeartbeatSeq(seq) }
            }
            ToHost::Acquire(acquire) => {
                self.keys.insert((session, acquire.request), (acquire.keys[0].key.clone(), None));
                history.queued(&acquire.keys[0].key, session.0, acquire.request.0);
                Input::Acquire { session, acquire }
            }
            ToHost::Cancel(request) => {
                history.left(|of, id| (of, id) == (session.0, request));
                Input::Cancel { session, request: RequestId(request) }
            }
            ToHost::Release(request, ending) => {
                history.left(|of, id| (of, id) == (session.0, request));
                Input::Release { session, request: RequestId(request), ending }
            }
        };
        self.feed(now, input, history);
    }

    fn store_event(&mut self, now: u64, event: Event, history: &mut History) {
        let local = self.clock.shows(now);
        let input = match event {
            Event::Gained { key, claim, epoch, lock_delay, quarantine_left } => Input::OwnershipGained {
                key,
                claim,
                epoch: Epoch(epoch),
                lock_delay: Duration::from_micros(lock_delay),
                quarantined_until: Instant::from_micros(local + store::kept_off(quarantine_left)),
            },
            Event::Queued { key, claim } => Input::OwnershipQueued { key, claim },
            Event::Refused { key, claim } => Input::OwnershipRefused { key, claim },
            Event::Contended { key } => Input::OwnershipContended { key },
            Event::Lost { key } => Input::OwnershipLost { key },
            Event::LeaseRenewed { sent } => {
                Input::LeaseRenewed { until: Instant::from_micros(store::lease_until(sent)) }
            }
            Event::LeaseLost => {
                self.in_store += 1;
                history.count("leases lost");
                Input::LeaseLost
            }
        };
        self.feed(now, input, history);
    }

    fn feed(&mut self, now: u64, input: Input, history: &mut History) {
        history.note(now, || format!("host <- {input:?}"));
        self.engine.handle(self.clock.instant(now), input);
        self.carry_out(now, history);
    }

    fn carry_out(&mut self, now: u64, history: &mut History) {
        if self.checks {
            self.engine.check();
        }
        if let Some(fault) = self.engine.fault() {
            history.violate(now, format!("fault: {fault}"));
        }
        let (engine, bounds) = (&self.engine, &self.bounds);
        if engine.session_count() > bounds.sessions_max || engine.key_count() > bounds.keys_max {
            history.violate(now, "I7: too many sessions or keys".into());
        }
        while let Some(command) = self.engine.poll_command() {
            history.note(now, || format!("host -> {command:?}"));
            history.count("commands");
            self.carry_out_one(now, command, history);
        }
    }

    fn carry_out_one(&mut self, now: u64, command: Command, history: &mut History) {
        match command {
            Command::Grant { session, request, keys, seq, valid, .. } => {
                let token = keys[0].token;
                self.judge_grant(now, session, request, token.as_u64(), history);
                let grant =
                    ToClient::Grant { request: request.0, token: token.as_u64(), seq: seq.0, valid: micros(valid) };
                self.send(session, grant);
            }
            Command::Reject { session, request, reason, .. } => {
                history.left(|of, id| (of, id) == (session.0, request.0));
                self.send(session, ToClient::Reject { request: request.0, reason });
            }
            Command::Lost { session, request, reason } => {
                history.count("holds lost");
                // What was lost before its grant was heard of may be asked for again.
                self.keys.remove(&(session, request));
                self.send(session, ToClient::Lost { request: request.0, reason });
            }
            Command::AckHeartbeat { session, seq, valid } => {
                self.send(session, ToClient::Ack { seq: seq.0, valid: micros(valid) });
            }
            Command::EndSession { session, .. } => {
                history.count("sessions ended");
                history.left(|of, _| of == session.0);
                self.ended.insert((self.incarnation, session.0), now);
                if let Some(connection) = self.sessions.remove(&session) {
                    self.by_stream.remove(&connection.stream);
                    self.out.push(Out::Close(connection.stream));
                }
            }
            Command::ClaimOwnership { key, claim, lock_delay, new_epoch } => {
                history.count("claims");
                let lock_delay = micros(lock_delay);
                self.out.push(Out::Store(Operation::Claim { key, claim, lock_delay, new_epoch }));
            }
            Command::YieldOwnership { key } => {
                history.count("yields");
                self.out.push(Out::Store(Operation::Yield { key }));
            }
            Command::Drained => self.out.push(Out::Drained),
        }
    }

    fn judge_grant(&mut self, now: u64, session: SessionId, request: RequestId, token: u64, history: &mut History) {
        let connection = self.sessions.get(&session);
        if !connection.is_some_and(|connection| connection.connected) {
            history.violate(now, format!("I4: a grant to {session:?}, which has no stream"));
        }
        let Some((key, before)) = self.keys.get_mut(&(session, request)) else {
            history.violate(now, format!("I5: a grant to {request:?}, which did not ask"));
            return;
        };
        if *before == Some(token) {
            history.count("grants told again");
            return;
        }
        *before = Some(token);
        history.granted(now, key, token);
        let (sessions, ttl) = (&self.sessions, micros(self.bounds.session_ttl));
        history.served(now, session.0, request.0, |of| match sessions.get(&SessionId(of)) {
            Some(ahead) if ahead.connected && now - ahead.heard < ttl / 2 => Liveness::Live,
            _ => Liveness::Passable,
        });
    }

    fn send(&mut self, session: SessionId, message: ToClient) {
        if let Some(connection) = self.sessions.get(&session)
            && connection.connected
        {
            self.out.push(Out::Send(connection.stream, message));
        }
    }
}
