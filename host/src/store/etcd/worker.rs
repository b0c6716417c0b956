//! The store's task: takes submitted operations, keeps a lease and a connection, and reports.
//!
//! All state is here; requests run beside it and come back as messages. A request that was given up may still land, so
//! everything that is written is guarded by what it was decided on.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use turnstile_core::{Instant, LockKey, Token};

use super::Config;
use super::decide::{Want, millis_up};
use super::hosts::{Hosts, News};
use super::jobs::Jobs;
use super::layout::{HostValue, Layout, json};
use super::link::{Errand, Established, Fault, Link, Meta, Who, Witness, establish, sight};
use super::reaper::{Reaped, Reaper};
use super::table::Table;
use super::txn::{Me, Write};
use crate::clock;
use crate::store::pending::Pending;
use crate::store::{Event, Operation, StoreError};

/// Beats per TTL: four may fail in a row.
const BEATS_PER_TTL: u32 = 5;
/// Pauses between attempts to connect.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Operations that are taken in between two looks at anything else.
const INTAKE: usize = 256;

/// What comes back from requests and streams.
pub(super) enum Message {
    /// An attempt to connect ended.
    Linked(Box<Result<Established, Fault>>),
    /// A transaction ended. `before` is what was known of the cluster when it was sent.
    Answered { name: String, generation: u64, before: Witness, what: What, response: Result<TxnResponse, Fault> },
    /// The lease was revoked, or not.
    Revoked { name: String, outcome: Result<(), Fault> },
    /// A round of the reaper ended.
    Reaped { name: String, reaped: Reaped },
    /// From the watch on hosts.
    Hosts { generation: u64, news: Vec<News> },
    /// Somebody wants us to look at these keys.
    Woken { generation: u64, keys: Vec<LockKey> },
    /// A connection is of no more use.
    Broken { generation: u64, reason: String },
}

/// What a transaction was for.
pub(super) enum What {
    Beat { anchor: Instant },
    Hosts,
    Reads(Vec<LockKey>),
    Writes(Vec<(LockKey, Write)>),
}

pub(super) struct Worker {
    pub(super) config: Config,
    pub(super) layout: Arc<Layout>,
    events: UnboundedSender<Event>,
    pub(super) messages: UnboundedSender<Message>,
    phase: Phase,
    line: Line,
    pause: Duration,
    /// Which of the endpoints is next.
    endpoint: usize,
    generation: u64,
    pub(super) witness: Witness,
    /// The largest epoch that this process knows to have been possible: none may be given out at or below it after the
    /// cluster went back.
    epoch_floor: u64,
    largest_lock_delay_ms: u64,
    pub(super) pending: Pending,
    pub(super) jobs: Jobs,
    pub(super) table: Table,
    pub(super) hosts: Hosts,
    pub(super) reaper: Reaper,
    next_beat: Instant,
    next_round: Instant,
    health: Health,
}

/// Where an incarnation is in its life.
enum Phase {
    /// Has no lease, and tries to get one from this instant on.
    Joining { from: Instant },
    /// Has a lease, as far as we know.
    Member(Member),
    /// Has ended its lease.
    Left,
}

/// A registered incarnation.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) me: Me,
    pub(super) meta: Meta,
    /// Believes in its lease until then.
    pub(super) leased_until: Instant,
    beats: u64,
    beating: bool,
    revoking: bool,
}

/// The connection.
enum Line {
    Down { from: Instant },
    Connecting,
    Up(Link),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Working,
    Failing,
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
            pending: Pending::default(),
            jobs: Jobs::default(),
            table: Table::default(),
            hosts: Hosts::default(),
            reaper: Reaper::default(),
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
                self.answer_all("this host has no lease at the moment", StoreError::Unavailable);
            }
            Phase::Left => self.answer_all("this host has ended its lease", StoreError::Rejected),
            Phase::Member(_) => {
                if now >= self.next_beat {
                    self.beat(now);
                }
                if now >= self.next_round {
                    self.next_round = now + self.config.lease_ttl;
                    self.look_at_some_queued();
                }
                self.give_up_due(now);
                self.pump(now);
                self.reap(now);
                self.leave_if_done(now);
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

    // The connection.

    fn connect(&mut self, now: Instant) {
        let who = match &self.phase {
            Phase::Left => return,
            Phase::Joining { from } if now < *from => {
                self.line = Line::Down { from: *from };
                return;
            }
            Phase::Joining { .. } => match random_name() {
                Ok(name) => Who::New(name),
                Err(error) => {
                    self.failing(&format!("no randomness: {error}"));
                    self.line = Line::Down { from: now + PAUSE_MAX };
                    return;
                }
            },
            Phase::Member(member) => Who::Member(member.me.clone()),
        };
        let Some(endpoint) = self.config.endpoints.get(self.endpoint % self.config.endpoints.len().max(1)) else {
            return;
        };
        self.generation += 1;
        let errand = Errand {
            config: self.config.clone(),
            layout: (*self.layout).clone(),
            endpoint: endpoint.clone(),
            generation: self.generation,
            who,
            witness: self.witness,
            messages: self.messages.clone(),
        };
        self.line = Line::Connecting;
        let messages = self.messages.clone();
        tokio::spawn(async move {
            let _ = messages.send(Message::Linked(Box::new(establish(errand).await)));
        });
    }

    /// Tries the next endpoint after a pause.
    pub(super) fn disconnect(&mut self, reason: &str) {
        if matches!(self.line, Line::Down { .. }) {
            return;
        }
        self.failing(reason);
        self.endpoint = self.endpoint.wrapping_add(1);
        // Not all hosts at once.
        let jitter = self.pause.mul_f64(0.5 + f64::from(random_byte()) / 512.0);
        self.line = Line::Down { from: clock::now() + jitter };
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn linked(&mut self, established: Result<Established, Fault>) {
        let now = clock::now();
        let established = match established {
            Ok(established) => established,
            Err(fault) => return self.not_linked(&fault),
        };
        let Established { link, me, meta, hosts, listed, anchor, waited_for, witness } = established;
        match &mut self.phase {
            // It ended while we connected: the lease that was made runs out.
            Phase::Left => return,
            Phase::Joining { .. } => {
                let Some(anchor) = anchor else { return self.disconnect("the incarnation has changed") };
                if let Err(reason) = self.above_floor(meta, witness.revision) {
                    self.disconnect(&reason);
                    self.line = Line::Down { from: now + PAUSE_MAX };
                    return;
                }
                tracing::info!(
                    store = "etcd",
                    incarnation = me.name,
                    epoch_base = meta.epoch_base,
                    "joined as a new incarnation"
                );
                let leased_until = anchor + believed(self.config.lease_ttl);
                self.phase =
                    Phase::Member(Member { me, meta, leased_until, beats: 0, beating: false, revoking: false });
                self.next_beat = now + self.beat_interval();
                self.report(Event::LeaseRenewed { until: leased_until });
            }
            Phase::Member(member) => {
                if member.me.name != me.name {
                    return self.disconnect("the incarnation has changed");
                }
                member.meta = meta;
                // Most of the TTL may be gone in connecting.
                self.next_beat = now;
            }
        }
        self.witness = witness;
        self.line = Line::Up(link);
        self.pause = PAUSE_FIRST;
        self.working();
        self.hosts.list(hosts, listed, now);
        self.reaper.somebody_died(now);
        self.jobs.retry_now();
        self.look_at_all_queued();
        self.wake(waited_for);
    }

    fn not_linked(&mut self, fault: &Fault) {
        match fault {
            Fault::Unavailable(reason) | Fault::Ambiguous(reason) => {
                self.disconnect(reason);
                // Whoever waits for an answer has waited for an attempt.
                self.fail_claims(reason);
            }
            Fault::LeaseGone | Fault::WentBack(_) => self.handle(fault),
        }
    }

    /// After the cluster went back, epochs must not repeat.
    fn above_floor(&self, meta: Meta, revision: i64) -> Result<(), String> {
        let next = meta.epoch_base.saturating_add(revision.unsigned_abs());
        if next > self.epoch_floor {
            return Ok(());
        }
        let floor = self.epoch_floor;
        Err(format!(
            "the cluster went back to epoch {next}, and epochs up to {floor} were possible: nothing is granted; stop \
             every host, set store.epoch_base to {} or more on all of them, and start them again",
            floor.saturating_mul(2).min(Token::EPOCH_MAX.0 / 2)
        ))
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
            Message::Linked(established) => {
                if matches!(self.line, Line::Connecting) {
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
            Message::Woken { generation, keys } if generation == self.generation => self.wake(keys),
            Message::Broken { generation, reason } if generation == self.generation => {
                if matches!(self.line, Line::Up(_)) {
                    self.disconnect(&reason);
                }
            }
            Message::Hosts { .. } | Message::Woken { .. } | Message::Broken { .. } => {}
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

    /// Acts on a fault of a request.
    pub(super) fn handle(&mut self, fault: &Fault) {
        match fault {
            Fault::Unavailable(reason) | Fault::Ambiguous(reason) => self.disconnect(reason),
            Fault::LeaseGone => {
                if let Phase::Member(member) = std::mem::replace(&mut self.phase, Phase::Joining { from: clock::now() })
                {
                    if member.revoking {
                        // It is what we asked for.
                        self.phase = Phase::Member(member);
                        return self.left();
                    }
                    tracing::error!(
                        store = "etcd",
                        incarnation = member.me.name,
                        "the lease is lost: no keepalive reached the cluster for its TTL, or somebody revoked it"
                    );
                    self.forget();
                }
                self.disconnect("the lease is gone");
                self.line = Line::Down { from: clock::now() };
            }
            Fault::WentBack(reason) => self.went_back(reason),
        }
    }

    /// All that anybody granted in the lost time, and what it remembered of lock delays, must have passed before we
    /// grant anything from what is there now.
    fn went_back(&mut self, reason: &str) {
        let base = self.member().map_or(0, |member| member.meta.epoch_base);
        self.epoch_floor = self.epoch_floor.max(base.saturating_add(self.witness.revision.unsigned_abs()));
        let wait = self.config.lease_ttl + Duration::from_millis(self.largest_lock_delay_ms);
        tracing::error!(
            store = "etcd",
            reason,
            wait_ms = wait.as_millis(),
            known_epoch = self.epoch_floor,
            "the cluster was restored or replaced: nothing is granted until the wait is over"
        );
        let from = clock::now() + wait;
        let was_member = matches!(std::mem::replace(&mut self.phase, Phase::Joining { from }), Phase::Member(_));
        self.witness = Witness::default();
        self.line = Line::Down { from };
        if was_member {
            self.forget();
        }
    }

    /// What we had under the lost lease is nothing to us any more.
    fn forget(&mut self) {
        self.table = Table::default();
        self.hosts = Hosts::default();
        self.reaper = Reaper::default();
        let jobs = std::mem::take(&mut self.jobs);
        self.report(Event::LeaseLost);
        for (key, claim) in jobs.claims() {
            self.report(Event::Failed { key, claim, error: StoreError::Unavailable("the lease was lost".into()) });
        }
        self.answer_all("the lease was lost", StoreError::Unavailable);
    }

    /// Answers what waits without carrying it out: a yield has no object any more, nor has the end of a lease.
    fn answer_all(&mut self, reason: &str, error: fn(String) -> StoreError) {
        for operation in self.pending.take_all() {
            match operation {
                Operation::Claim { key, claim, .. } => {
                    self.report(Event::Failed { key, claim, error: error(reason.to_owned()) });
                }
                Operation::Yield { .. } => {}
                Operation::EndLease => {
                    self.phase = Phase::Left;
                    self.report(Event::LeaseEnded);
                }
            }
        }
    }

    // The lease.

    /// A write through the cluster's consensus, guarded by our key's being there. Keepalives of the lease in the cluster
    /// are the connection's own business; nothing that we believe rests on them.
    fn beat(&mut self, now: Instant) {
        self.next_beat = now + self.beat_interval();
        let ttl_ms = millis_up(self.config.lease_ttl);
        let (Line::Up(_), Phase::Member(member)) = (&self.line, &mut self.phase) else { return };
        if member.beating {
            return;
        }
        member.beating = true;
        member.beats += 1;
        let (key, lease) = (self.layout.host(&member.me.name), member.me.lease);
        let value = HostValue { ttl_ms, beat: member.beats };
        let txn = Txn::new()
            .when([Compare::create_revision(key.clone(), CompareOp::Equal, member.me.created)])
            .and_then([TxnOp::put(key, json(&value), Some(PutOptions::new().with_lease(lease)))]);
        self.send(txn, What::Beat { anchor: clock::now() });
    }

    fn beaten(&mut self, anchor: Instant, response: Result<TxnResponse, Fault>) -> Result<(), Fault> {
        let until = anchor + believed(self.config.lease_ttl);
        let Some(member) = self.member_mut() else { return Ok(()) };
        member.beating = false;
        if !response?.succeeded() {
            return Err(Fault::LeaseGone);
        }
        // A late answer is older news.
        if until > member.leased_until {
            member.leased_until = until;
            self.report(Event::LeaseRenewed { until });
        }
        Ok(())
    }

    fn beat_interval(&self) -> Duration {
        self.config.lease_ttl / BEATS_PER_TTL
    }

    /// Sends a transaction; what comes of it is a message.
    pub(super) fn send(&mut self, txn: Txn, what: What) {
        let Line::Up(link) = &self.line else { return };
        let Phase::Member(member) = &self.phase else { return };
        let (mut client, name) = (link.client.clone(), member.me.name.clone());
        let (messages, before, timeout) = (self.messages.clone(), self.witness, self.config.request_timeout);
        let generation = self.generation;
        tokio::spawn(async move {
            let late = || Fault::Ambiguous(format!("no answer within {timeout:?}"));
            let work = async { client.txn(txn).await.map_err(|error| Fault::of_write(&error)) };
            let response = tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(late()));
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
            self.witness.check(before, response.header())?;
            Ok(response)
        });
        if response.is_ok() {
            self.working();
        }
        match what {
            What::Beat { anchor } => self.beaten(anchor, response),
            What::Hosts => self.relisted(response, now),
            What::Reads(keys) => self.read_answered(keys, response, now),
            What::Writes(writes) => self.write_answered(writes, response, now),
        }
    }

    /// Reads all hosts anew: what the watch told does not fit what the cluster does.
    pub(super) fn relist(&mut self) {
        let all = TxnOp::get(self.layout.hosts(), Some(GetOptions::new().with_prefix()));
        self.send(Txn::new().and_then([all]), What::Hosts);
    }

    fn relisted(&mut self, response: Result<TxnResponse, Fault>, now: Instant) -> Result<(), Fault> {
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

    /// Ends the lease when everything is given up that was to be.
    fn leave_if_done(&mut self, now: Instant) {
        if !self.pending.only_the_end() || !self.jobs.is_empty() {
            return;
        }
        let keys = self.table.to_leave(INTAKE, now);
        if !keys.is_empty() {
            for key in keys {
                self.start(key, Want::Yield);
            }
            return self.pump(now);
        }
        let (Line::Up(link), Phase::Member(member)) = (&self.line, &mut self.phase) else { return };
        if member.revoking {
            return;
        }
        member.revoking = true;
        let (mut client, name, lease) = (link.client.clone(), member.me.name.clone(), member.me.lease);
        let (messages, timeout) = (self.messages.clone(), self.config.request_timeout);
        tokio::spawn(async move {
            let late = || Fault::Ambiguous(format!("no answer within {timeout:?}"));
            let work = async { client.lease_revoke(lease).await.map_err(|error| Fault::of_write(&error)) };
            let outcome = tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(late())).map(|_| ());
            let _ = messages.send(Message::Revoked { name, outcome });
        });
    }

    fn revoked(&mut self, outcome: Result<(), Fault>) {
        match outcome {
            Ok(()) => self.left(),
            Err(fault) => {
                if let Some(member) = self.member_mut() {
                    member.revoking = false;
                }
                self.handle(&fault);
            }
        }
    }

    fn left(&mut self) {
        if let Some(member) = self.member() {
            tracing::info!(store = "etcd", incarnation = member.me.name, "ended the lease");
        }
        self.phase = Phase::Left;
        self.line = Line::Down { from: clock::now() };
        self.table = Table::default();
        self.pending.ended();
        self.report(Event::LeaseEnded);
    }

    // Small things.

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

    fn working(&mut self) {
        if self.health == Health::Failing {
            tracing::info!(store = "etcd", "the store works again");
            self.health = Health::Working;
        }
    }

    fn failing(&mut self, reason: &str) {
        if self.health == Health::Working {
            tracing::warn!(store = "etcd", reason, "the store does not work; trying again");
            self.health = Health::Failing;
        }
    }
}

/// How long a lease is believed in: 2 % less than the TTL, for the 1 % by which either clock may be off.
fn believed(ttl: Duration) -> Duration {
    ttl * 98 / 100
}

/// Nobody guesses it, and it never comes again.
fn random_name() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

fn random_byte() -> u8 {
    let mut byte = [0];
    // Without randomness there is no jitter.
    let _ = getrandom::fill(&mut byte);
    u8::from_be_bytes(byte)
}

/// For people only.
pub(super) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
