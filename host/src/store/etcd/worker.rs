//! The store's task: takes submitted operations, keeps a lease and a connection, and reports.
//!
//! All state is here; requests run beside it and come back as messages. A request that was given up may still land, so
//! everything that is written is guarded by what it was decided on.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use turnstile_core::{Instant, LockKey};

use super::Config;
use super::hosts::{Hosts, News};
use super::jobs::Jobs;
use super::layout::Layout;
use super::lease::Member;
use super::line::{Line, PAUSE_FIRST};
use super::link::{Established, Fault, Link, Meta, Witness, sight};
use super::reaper::{Reaped, Reaper};
use super::sweep::Sweep;
use super::table::Table;
use super::txn::{Call, Write};
use crate::clock;
use crate::store::pending::Pending;
use crate::store::{Event, Operation, StoreError};

/// Rounds, one a TTL, after which all queues are read.
const QUEUE_ROUNDS: u32 = 4;
/// Operations that are taken in between two looks at anything else.
const INTAKE: usize = 256;

/// What comes back from requests and streams.
pub(super) enum Message {
    /// An attempt to connect ended.
    Linked { generation: u64, established: Box<Result<Established, Fault>> },
    /// A transaction ended. `before` is what was known of the cluster when it was sent.
    Answered { name: String, generation: u64, before: Witness, what: What, response: Result<TxnResponse, Fault> },
    /// The lease was revoked, or not.
    Revoked { name: String, outcome: Result<(), Fault> },
    /// A round of the reaper ended.
    Reaped { name: String, reaped: Reaped },
    /// From the watch on hosts.
    Hosts { generation: u64, news: Vec<News> },
    /// From the watch on our wake key.
    Called { generation: u64, calls: Vec<Call> },
    /// Somebody waits for these keys; some of them may be ours.
    WaitedFor { generation: u64, keys: Result<Vec<LockKey>, Fault> },
    /// A connection is of no more use.
    Broken { generation: u64, reason: String },
}

/// What a transaction was for.
pub(super) enum What {
    Beat { anchor: Instant },
    Hosts,
    Sweep,
    Nudges,
    Reads(Vec<LockKey>),
    Writes(Vec<(LockKey, Write)>),
}

pub(super) struct Worker {
    pub(super) config: Config,
    pub(super) layout: Arc<Layout>,
    events: UnboundedSender<Event>,
    pub(super) messages: UnboundedSender<Message>,
    pub(super) phase: Phase,
    pub(super) line: Line,
    pub(super) pause: Duration,
    /// Which of the endpoints is next.
    pub(super) endpoint: usize,
    pub(super) generation: u64,
    pub(super) witness: Witness,
    /// The largest epoch that this process knows to have been possible: none may be given out at or below it after the
    /// cluster went back.
    pub(super) epoch_floor: u64,
    /// The last one known.
    pub(super) epoch_base: u64,
    pub(super) largest_lock_delay_ms: u64,
    /// Of hosts that we have forgotten.
    pub(super) longest_ttl: Duration,
    rounds: u32,
    pub(super) relisting: bool,
    pub(super) pending: Pending,
    pub(super) jobs: Jobs,
    pub(super) table: Table,
    pub(super) hosts: Hosts,
    pub(super) reaper: Reaper,
    pub(super) sweep: Sweep,
    pub(super) next_beat: Instant,
    next_round: Instant,
    health: Health,
}

/// Where an incarnation is in its life.
pub(super) enum Phase {
    /// Has no lease, and tries to get one from this instant on.
    Joining { from: Instant },
    /// Has a lease, as far as we know.
    Member(Member),
    /// Has ended its lease.
    Left,
}

enum Health {
    Working,
    /// With what was wrong last.
    Failing(String),
}

impl Worker {
    pub(super) fn new(config: Config, events: UnboundedSender<Event>) -> (Self, UnboundedReceiver<Message>) {
        let now = clock::now();
        let (messages, receiver) = unbounded_channel();
        let worker = Self {
            layout: Arc::new(Layout::new(&config.prefix)),
            config,
            events,
            messages,
            phase: Phase::Joining { from: now },
            line: Line::Down { from: now },
            pause: PAUSE_FIRST,
            endpoint: 0,
            generation: 0,
            witness: Witness::default(),
            epoch_floor: 0,
            largest_lock_delay_ms: 0,
            longest_ttl: Duration::ZERO,
            rounds: 0,
            relisting: false,
            epoch_base: 0,
            pending: Pending::default(),
            jobs: Jobs::default(),
            table: Table::default(),
            hosts: Hosts::default(),
            reaper: Reaper::default(),
            sweep: Sweep::default(),
            next_beat: now,
            next_round: now,
            health: Health::Working,
        };
        (worker, receiver)
    }

    /// Works until the handle is dropped.
    pub(super) async fn run(
        mut self,
        mut inbox: UnboundedReceiver<Operation>,
        mut messages: UnboundedReceiver<Message>,
    ) {
        loop {
            self.step();
            let idle = self.idle_time();
            tokio::select! {
                operation = inbox.recv() => {
                    let Some(operation) = operation else { return };
                    self.pending.push(operation);
                    for _ in 0..INTAKE {
                        let Ok(operation) = inbox.try_recv() else { break };
                        self.pending.push(operation);
                    }
                }
                message = messages.recv() => {
                    if let Some(message) = message {
                        self.receive(message);
                    }
                    while let Ok(message) = messages.try_recv() {
                        self.receive(message);
                    }
                }
                () = tokio::time::sleep(idle) => {}
            }
        }
    }

    /// One round of everything that is due.
    fn step(&mut self) {
        let now = clock::now();
        if let Line::Down { from } = self.line
            && now >= from
        {
            self.connect(now);
        }
        match &self.phase {
            Phase::Joining { .. } => {
                let mut reason = "this host has no lease at the moment".to_owned();
                if let Health::Failing(why) = &self.health {
                    reason = format!("{reason}: {why}");
                }
                self.answer_all(&reason, StoreError::Unavailable);
            }
            Phase::Left => self.answer_all("this host has ended its lease", StoreError::Rejected),
            Phase::Member(_) => {
                if now >= self.next_beat {
                    self.beat(now);
                }
                if now >= self.next_round {
                    self.next_round = now + self.config.lease_ttl;
                    self.relist();
                    self.look_at_some_queued();
                    self.give_back_unsure();
                    self.rounds = self.rounds.wrapping_add(1);
                    // etcd may leave out what a slow watch has not heard, and does not say so.
                    if self.rounds.is_multiple_of(QUEUE_ROUNDS) && self.hosts.has_company() {
                        self.ask_who_waits();
                    }
                }
                self.give_up_due(now);
                self.pump(now);
                self.reap(now);
                self.leave_if_done(now);
                self.leave_if_forgotten(now);
            }
        }
    }

    /// How long there is nothing to do, unless something comes.
    fn idle_time(&self) -> Duration {
        let now = clock::now();
        let line = match self.line {
            Line::Down { from } if !matches!(self.phase, Phase::Left) => Some(from),
            _ => None,
        };
        let up = matches!(self.line, Line::Up(_));
        let member = match &self.phase {
            Phase::Member(_) => [
                Some(self.next_beat),
                Some(self.next_round),
                self.table.next_given_up(),
                self.jobs.retry_at().filter(|_| up),
                self.reaper.due().filter(|_| up),
            ],
            Phase::Joining { .. } | Phase::Left => [None; 5],
        };
        let next = member.into_iter().chain([line]).flatten().min();
        next.map_or(Duration::from_secs(1), |next| next.saturating_since(now)).min(Duration::from_secs(1))
    }

    pub(super) fn link(&self) -> Option<&Link> {
        match &self.line {
            Line::Up(link) => Some(link),
            Line::Down { .. } | Line::Connecting => None,
        }
    }

    pub(super) fn member(&self) -> Option<&Member> {
        match &self.phase {
            Phase::Member(member) => Some(member),
            Phase::Joining { .. } | Phase::Left => None,
        }
    }

    pub(super) fn member_mut(&mut self) -> Option<&mut Member> {
        match &mut self.phase {
            Phase::Member(member) => Some(member),
            Phase::Joining { .. } | Phase::Left => None,
        }
    }

    // Messages.

    fn receive(&mut self, message: Message) {
        let now = clock::now();
        match message {
            Message::Linked { generation, established } => {
                if generation == self.generation && matches!(self.line, Line::Connecting) {
                    self.linked(*established);
                }
            }
            Message::Answered { name, generation, before, what, response } => {
                if self.is(&name)
                    && let Err(fault) = self.answered(&before, what, response, now)
                {
                    // A connection that is no more is not given up again.
                    let old = generation != self.generation;
                    if !(old && matches!(fault, Fault::Unavailable(_) | Fault::Ambiguous(_))) {
                        self.handle(&fault);
                    }
                }
            }
            Message::Revoked { name, outcome } => {
                if self.is(&name) {
                    self.revoked(outcome);
                }
            }
            Message::Reaped { name, reaped } => {
                if self.is(&name) {
                    self.reaper.ended(reaped, now);
                }
            }
            Message::Hosts { generation, news } if generation == self.generation => self.heard_of_hosts(news, now),
            Message::Called { generation, calls } if generation == self.generation => self.called(calls),
            Message::WaitedFor { generation, keys } if generation == self.generation => match keys {
                Ok(keys) => self.waited_for(keys),
                Err(fault) => {
                    tracing::debug!(store = "etcd", %fault, "cannot ask who waits; soon again");
                    self.rounds = QUEUE_ROUNDS - 1;
                    self.next_round = self.next_round.min(now + self.beat_interval());
                }
            },
            Message::Broken { generation, reason } if generation == self.generation => {
                if matches!(self.line, Line::Up(_)) {
                    self.disconnect(&reason);
                }
            }
            Message::Hosts { .. } | Message::Called { .. } | Message::WaitedFor { .. } | Message::Broken { .. } => {}
        }
    }

    fn heard_of_hosts(&mut self, news: Vec<News>, now: Instant) {
        let mut deaths = false;
        for news in news {
            if let News::Gone { name, .. } = &news
                && self.member().is_some_and(|member| member.me.name == *name)
            {
                return self.handle(&Fault::LeaseGone);
            }
            deaths |= self.hosts.hear(news, now);
        }
        if deaths {
            self.reaper.somebody_died(now);
            self.look_at_all_queued();
        }
    }

    /// Sends a transaction; what comes of it is a message.
    pub(super) fn send(&mut self, txn: Txn, what: What) {
        let Line::Up(link) = &self.line else { return };
        let Phase::Member(member) = &self.phase else { return };
        let (mut client, name) = (link.client.clone(), member.me.name.clone());
        let (messages, before, timeout) = (self.messages.clone(), self.witness, self.config.request_timeout);
        let generation = self.generation;
        let given_up = link.given_up();
        tokio::spawn(async move {
            let response = tokio::select! {
                response = client.txn(txn) => response.map_err(|error| Fault::of_write(&error)),
                () = tokio::time::sleep(timeout) => Err(Fault::Ambiguous(format!("no answer within {timeout:?}"))),
                () = given_up => Err(Fault::Ambiguous("the connection was given up".into())),
            };
            let _ = messages.send(Message::Answered { name, generation, before, what, response });
        });
    }

    fn answered(
        &mut self,
        before: &Witness,
        what: What,
        response: Result<TxnResponse, Fault>,
        now: Instant,
    ) -> Result<(), Fault> {
        let response = response.and_then(|response| {
            // The sweep reads one member's own copy, which may be behind.
            if !matches!(what, What::Sweep) {
                self.witness.check(before, response.header())?;
            }
            Ok(response)
        });
        let unanswered = matches!(response, Err(Fault::Unavailable(_) | Fault::Ambiguous(_)));
        match what {
            // These come again in the next round; beats show whether the connection is of any use.
            What::Sweep if unanswered => self.sweep.give_up(),
            What::Hosts if unanswered => self.relisting = false,
            What::Nudges if unanswered => {}
            what => return self.taken_in(what, response, now),
        }
        Ok(())
    }

    fn taken_in(&mut self, what: What, response: Result<TxnResponse, Fault>, now: Instant) -> Result<(), Fault> {
        match what {
            What::Beat { anchor } => self.beaten(anchor, response),
            What::Hosts => self.relisted(response, now),
            What::Sweep => self.swept(response),
            // Only hints.
            What::Nudges => response.map(|_| ()),
            What::Reads(keys) => self.read_answered(keys, response, now),
            What::Writes(writes) => self.write_answered(writes, response, now),
        }
    }

    /// Reads all hosts anew: what the watch told does not fit what the cluster does, or it was long ago.
    pub(super) fn relist(&mut self) {
        if self.relisting || self.link().is_none() || self.member().is_none() {
            return;
        }
        self.relisting = true;
        let all = TxnOp::get(self.layout.hosts(), Some(GetOptions::new().with_prefix()));
        self.send(Txn::new().and_then([all]), What::Hosts);
    }

    fn relisted(&mut self, response: Result<TxnResponse, Fault>, now: Instant) -> Result<(), Fault> {
        self.relisting = false;
        let response = response?;
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        let Some(TxnOpResponse::Get(get)) = response.op_responses().into_iter().next() else { return Ok(()) };
        let sights = get.kvs().iter().filter_map(|kv| sight(&self.layout, kv)).collect();
        if self.hosts.list(sights, revision, now) {
            self.reaper.somebody_died(now);
            self.look_at_all_queued();
        }
        Ok(())
    }

    // Small things.

    /// Takes in another `meta`, unless it is an older one.
    pub(super) fn learn(&mut self, meta: Meta) {
        let Some(member) = self.member_mut().filter(|member| member.meta.revision < meta.revision) else { return };
        member.meta = meta;
        self.epoch_base = meta.epoch_base;
        tracing::info!(store = "etcd", epoch_base = meta.epoch_base, "the epoch base was raised");
    }

    fn is(&self, name: &str) -> bool {
        self.member().is_some_and(|member| member.me.name == name)
    }

    pub(super) fn report(&self, event: Event) {
        // The driver is gone: so are we, soon.
        let _ = self.events.send(event);
    }

    pub(super) fn promised(&mut self, lock_delay_ms: u64) {
        self.largest_lock_delay_ms = self.largest_lock_delay_ms.max(lock_delay_ms);
    }

    pub(super) fn working(&mut self) {
        if matches!(self.health, Health::Failing(_)) {
            tracing::info!(store = "etcd", "the store works again");
            self.health = Health::Working;
        }
    }

    pub(super) fn failing(&mut self, reason: &str) {
        if matches!(self.health, Health::Working) {
            let endpoint = self.config.endpoints.get(self.endpoint % self.config.endpoints.len().max(1));
            tracing::warn!(store = "etcd", endpoint, reason, "the store does not work; trying again");
        }
        self.health = Health::Failing(reason.to_owned());
    }
}

/// For people only.
pub(super) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
