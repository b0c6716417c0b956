//! The one task that owns the lock engine: session and store events go in, commands come out and are carried out.
//!
//! Data flows one way: stream -> event -> input -> engine -> command -> stream or store.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use turnstile_core::{Command, Engine, Input, Instant};
use turnstile_protocol::v1;

use crate::clock;
use crate::store::{self, Operation, Store};
use crate::wire;

mod claims;
mod connections;
mod freeze;
mod health;
mod intake;
mod questions;

use claims::Claims;
use connections::Connections;
pub use connections::{Open, Opened, Outbound, OutboundStream, Refusal, outbound};
use freeze::Freezes;
pub use health::Health;
pub use intake::{Backlog, EVENT_ITEMS_MAX, Event, Room, Share};
use intake::{TURN_EVENTS_MAX, take_turn};
pub use questions::{Answer, Client, DETAILS_MAX, ForceRelease, Forced, LOOKS_MAX, Listing, Question, Target};

/// How the driver ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is held, all ownerships and the lease were given up.
    Drained,
    /// The engine found one of its own invariants broken; nothing can be trusted any more.
    Fault(String),
    /// Everything that could send events is gone.
    Abandoned,
}

/// Owns the engine and everything that its commands act on.
pub struct Driver {
    engine: Engine,
    store: Box<dyn Store>,
    store_events: mpsc::UnboundedReceiver<store::Event>,
    events: mpsc::Receiver<Event>,
    connections: Connections,
    claims: Claims,
    health: Arc<Health>,
    drained: Option<Ended>,
    freezes: Freezes,
    /// As holder secrets name it.
    incarnation: [u8; 8],
}

impl Driver {
    /// A driver of `engine` on `store`; `welcome` is what every new session is told.
    pub fn new(
        engine: Engine,
        store: Box<dyn Store>,
        store_events: mpsc::UnboundedReceiver<store::Event>,
        events: mpsc::Receiver<Event>,
        welcome: v1::Welcome,
        health: Arc<Health>,
    ) -> Self {
        Self {
            incarnation: u64::from_str_radix(&welcome.incarnation, 16).unwrap_or_default().to_be_bytes(),
            engine,
            store,
            store_events,
            events,
            connections: Connections::new(welcome),
            claims: Claims::default(),
            health,
            drained: None,
            freezes: Freezes::new(clock::now()),
        }
    }

    /// Runs until drained, or until a fault.
    pub async fn run(mut self) -> Ended {
        let mut events = Vec::with_capacity(TURN_EVENTS_MAX);
        let mut store_events = Vec::with_capacity(TURN_EVENTS_MAX);
        loop {
            let sleep = self.sleep_duration(clock::now());
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => events.push(event),
                    None => return Ended::Abandoned,
                },
                event = self.store_events.recv() => match event {
                    Some(event) => store_events.push(event),
                    None => return Ended::Fault("the store's own thread has ended".into()),
                },
                () = tokio::time::sleep(sleep) => {}
            }
            // Whatever woke us: what is here already goes before deadlines.
            take_turn(&mut self.events, &mut events);
            while store_events.len() < TURN_EVENTS_MAX
                && let Ok(event) = self.store_events.try_recv()
            {
                store_events.push(event);
            }
            // Read after the events were received: what a validity is anchored at must not be later than its receipt.
            let now = clock::now();
            let turn = self.freezes.turn(now);
            if let Some(gap) = turn.frozen_for {
                tracing::warn!(gap_ms = gap.as_millis(), "the host did not run for a while");
            }
            for event in store_events.drain(..) {
                self.handle_store_event(now, event);
            }
            for event in events.drain(..) {
                self.handle_event(now, event);
            }
            if turn.deadlines {
                self.act_on_deadlines(now);
            }
            self.connections.flush();
            self.health.turned(now);
            if let Some(fault) = self.engine.fault() {
                return Ended::Fault(fault.to_string());
            }
            if let Some(ended) = self.drained.take() {
                return ended;
            }
        }
    }

    fn sleep_duration(&self, now: Instant) -> Duration {
        let deadline = [self.engine.next_deadline(), self.claims.next_retry()].into_iter().flatten().min();
        self.freezes.sleep(now, deadline)
    }

    fn act_on_deadlines(&mut self, now: Instant) {
        if self.engine.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.engine.handle_timeout(now);
            self.carry_out();
        }
        for operation in self.claims.due(now) {
            self.store.submit(operation);
        }
    }

    fn handle_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Open(open) => {
                if let Some(input) = self.connections.open(open) {
                    self.feed(now, input);
                }
            }
            Event::Items { opened, items, room: _room } => {
                if self.connections.is_current(opened) {
                    for item in items {
                        self.handle_item(now, opened, item);
                    }
                }
            }
            Event::Closed(opened) => {
                if self.connections.close(opened) {
                    self.feed(now, Input::SuspendSession { session: opened.session });
                }
            }
            Event::Ask(question) => self.answer(now, question),
            Event::Drain => {
                self.health.drain();
                self.connections.go_away("the host is going away");
                self.feed(now, Input::Drain);
            }
        }
    }

    fn handle_item(&mut self, now: Instant, opened: Opened, item: wire::Parsed) {
        match item {
            wire::Parsed::Input(input) => self.feed(now, input),
            wire::Parsed::Refused { request, reason } => {
                self.connections.send(opened.session, wire::reject(request, reason, None, 0));
            }
        }
    }

    fn handle_store_event(&mut self, now: Instant, event: store::Event) {
        match event {
            store::Event::LeaseRenewed { until } => {
                self.health.leased_until(until);
                self.feed(now, Input::LeaseRenewed { until });
            }
            store::Event::LeaseLost => {
                tracing::error!("the lease in the store is lost: every hold is ended, every key is claimed anew");
                self.health.leased_until(Instant::default());
                self.claims.forget_all();
                self.feed(now, Input::LeaseLost);
            }
            store::Event::LeaseEnded => self.drained = Some(Ended::Drained),
            store::Event::Gained { key, claim, epoch, lock_delay, quarantined_until } => {
                self.claims.answered(&key, claim);
                self.feed(now, Input::OwnershipGained { key, claim, epoch, lock_delay, quarantined_until });
            }
            store::Event::Queued { key, claim } => {
                self.claims.answered(&key, claim);
                self.feed(now, Input::OwnershipQueued { key, claim });
            }
            store::Event::Contended { key } => self.feed(now, Input::OwnershipContended { key }),
            store::Event::Lost { key } => {
                tracing::error!(%key, "the ownership record was taken from us");
                if self.engine.owns(&key) {
                    // To raise a record that is no more; a claim to own the key anew goes on.
                    self.claims.forget(&key);
                }
                self.feed(now, Input::OwnershipLost { key });
            }
            store::Event::Failed { key, claim, error } => {
                let wanted = self.engine.owns(&key) || self.engine.queue_length(&key) > 0;
                if self.claims.failed(now, &key, claim, &error, wanted) == claims::Verdict::GiveUp {
                    self.feed(now, Input::OwnershipRefused { key, claim });
                }
            }
        }
    }

    fn feed(&mut self, now: Instant, input: Input) {
        self.engine.handle(now, input);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(command) = self.engine.poll_command() {
            self.carry_out_one(command);
        }
    }

    fn carry_out_one(&mut self, command: Command) {
        match command {
            Command::Grant { session, request, keys, secret, waited, seq, valid } => {
                tracing::debug!(
                    session = session.0,
                    holder = request.0,
                    token = keys.first().map(|key| key.token.as_u64()),
                    wait_ms = waited.as_millis(),
                    "granted"
                );
                let granted = wire::Granted { request, keys, secret, waited, seq, valid };
                self.connections.send(session, wire::grant(granted, self.incarnation));
            }
            Command::Reject { session, request, reason, retry_after, queue_length } => {
                tracing::debug!(session = session.0, holder = request.0, ?reason, "rejected");
                let reason = wire::reject_reason(reason);
                self.connections.send(session, wire::reject(request, reason, retry_after, queue_length));
            }
            Command::Lost { session, request, reason } => {
                tracing::warn!(session = session.0, holder = request.0, ?reason, "hold lost");
                self.connections.send(session, wire::lost(request, reason));
            }
            Command::AckHeartbeat { session, seq, valid } => {
                let ack = v1::HeartbeatAck { seq: seq.0, valid_ms: wire::to_millis(valid) };
                self.connections.send(session, ack);
            }
            Command::EndSession { session, reason } => self.connections.end(session, reason),
            Command::ClaimOwnership { key, claim, lock_delay, new_epoch } => {
                let operation = Operation::Claim { key: key.clone(), claim, lock_delay, new_epoch };
                self.claims.submitted(key, claim, operation.clone());
                self.store.submit(operation);
            }
            Command::YieldOwnership { key } => {
                self.claims.forget(&key);
                self.store.submit(Operation::Yield { key });
            }
            Command::Drained => self.store.submit(Operation::EndLease),
        }
    }
}
