//! One world: hosts, their clients and the store in virtual true time, with all that passes between them.

use std::collections::BTreeMap;
use std::rc::Rc;

use turnstile_core::{EndReason, HolderSecret, LockKey};

use crate::case::{Case, Kept, Weather};
use crate::client::{self, Client};
use crate::clock::{MS, SECOND};
use crate::history::History;
use crate::history::ledger::Ledger;
use crate::host::{self, Host};
use crate::links::Links;
use crate::mutants::Sabotage;
use crate::script::{Begin, Death, Script};
use crate::store::{Event as StoreEvent, Incarnation, Operation, Store};
use crate::wire::{Run, SessionName, Stream, ToClient, ToHost};

enum Event {
    ToHost(Stream, ToHost),
    ToClient(Stream, ToClient),
    HostSeesEnd(Stream),
    ClientSeesEnd(Stream),
    HostWake(usize),
    ClientWake(usize),
    Ask(usize, Option<HolderSecret>),
    Worked { client: usize, request: u64 },
    AtStore(Incarnation, Operation),
    FromStore(Incarnation, StoreEvent),
    KeepAlive(Run),
    Dies(Run, Death),
    StoreLooks,
    Fault(usize),
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) seed: u64,
    pub(crate) script: Rc<Script>,
    pub(crate) history: History,
    pub(crate) hosts: Vec<HostPlace>,
    pub(crate) clients: Vec<ClientPlace>,
    pub(crate) store: Store,
    pub(crate) links: Links,
    pub(crate) sabotage: Sabotage,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    /// Requests to make right after others were granted.
    nested: BTreeMap<usize, Vec<usize>>,
    /// When sessions ended by the host's decision.
    ended: BTreeMap<SessionName, u64>,
    /// Steps of engines that are gone.
    steps_before: u64,
}

/// A machine that runs a host.
pub(crate) struct HostPlace {
    pub(crate) process: Host,
    pub(crate) down_until: u64,
    pub(crate) frozen_until: u64,
    /// Claims fail until then, and so many percent of them land all the same; so many are refused.
    pub(crate) claims_fail: (u64, u64),
    pub(crate) refusals: u32,
    /// It dies so long after its next grant.
    pub(crate) doomed: Option<Death>,
    wake: u64,
}

/// A machine that runs a client.
pub(crate) struct ClientPlace {
    pub(crate) process: Client,
    pub(crate) frozen_until: u64,
    wake: u64,
}

impl World {
    pub(crate) fn new(case: &Case, sabotage: Sabotage, verbose: bool) -> Self {
        let script = Rc::new(Script::of(case));
        let config = &script.plan.config;
        let now = SECOND;
        let place = |host: usize| HostPlace {
            process: Host::new(Run { host, run: 1 }, case.seed, &script.plan, sabotage),
            down_until: 0,
            frozen_until: 0,
            claims_fail: (0, 0),
            refusals: 0,
            doomed: None,
            wake: u64::MAX,
        };
        let hosts: Vec<HostPlace> = (0..script.plan.hosts.len()).map(place).collect();
        let ledgers = hosts.iter().map(|host| Ledger::new(host.process.run, config.clone())).collect();
        let clients = (0..script.plan.clients.len()).map(|number| ClientPlace {
            process: Client::new(number, case.seed, Rc::clone(&script), now, sabotage),
            frozen_until: 0,
            wake: u64::MAX,
        });
        let mut world = Self {
            now,
            seed: case.seed,
            history: History::new(ledgers, verbose),
            hosts,
            clients: clients.collect(),
            store: Store::new(script.plan.lease_ttl, sabotage),
            links: Links::new(case.seed, case.weather),
            sabotage,
            events: BTreeMap::new(),
            last_event: 0,
            nested: BTreeMap::new(),
            ended: BTreeMap::new(),
            steps_before: 0,
            script,
        };
        world.stage(case);
        world
    }

    /// Puts what the case keeps of the script on the agenda.
    fn stage(&mut self, case: &Case) {
        let script = Rc::clone(&self.script);
        let asks = case.asks.of(script.asks.len());
        for number in asks.iter().copied() {
            match script.asks[number].begin {
                Begin::At(at) => self.schedule_at(at, Event::Ask(number, None)),
                Begin::Nested { of, .. } => self.nested.entry(of).or_default().push(number),
            }
        }
        for number in case.faults.of(script.faults.len()) {
            self.schedule_at(script.faults[number].at, Event::Fault(number));
        }
        for host in 0..self.hosts.len() {
            self.schedule(0, Event::KeepAlive(self.hosts[host].process.run));
        }
        for client in 0..self.clients.len() {
            // In a case that was shrunk, clients without requests only serve the probe.
            let speaks = case.asks == Kept::All || asks.iter().any(|number| script.asks[*number].client == client);
            self.wake_client_at(client, if speaks { self.now } else { script.plan.calm });
        }
        if case.weather == Weather::Fair {
            self.history.log.note(|| "fair weather".into());
        }
    }

    /// Inputs and timeouts of all engines so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps_before + self.hosts.iter().map(|host| host.process.steps).sum::<u64>()
    }

    /// Runs until `until`, or the first violation.
    pub(crate) fn run(&mut self, until: u64) {
        self.run_while(until, |_| true);
    }

    /// Runs until `until`, or the first violation, or `going` is false.
    pub(crate) fn run_while(&mut self, until: u64, going: impl Fn(&Self) -> bool) {
        while self.history.is_sound() && going(self) {
            let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= until) else {
                self.now = self.now.max(until);
                break;
            };
            self.now = entry.key().0;
            self.history.log.now = self.now;
            let event = entry.remove();
            self.happen(event);
            self.settle();
        }
    }

    /// Carries out what hosts, clients and the store have said.
    pub(crate) fn settle(&mut self) {
        for host in 0..self.hosts.len() {
            for out in std::mem::take(&mut self.hosts[host].process.out) {
                self.carry_out_host(host, out);
            }
        }
        for client in 0..self.clients.len() {
            for out in std::mem::take(&mut self.clients[client].process.out) {
                self.carry_out_client(client, out);
            }
        }
        while let Some((to, event)) = self.store.events.pop_front() {
            let at = self.links.event(self.now, to.of.host);
            self.schedule_at(at, Event::FromStore(to, event));
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::ToHost(stream, message) => {
                if !self.links.is_cut(now, stream, true) {
                    self.reach_host(self.host_of(stream), host::Arrival::Message(stream, message));
                }
            }
            Event::ToClient(stream, message) => {
                if !self.links.is_cut(now, stream, false) {
                    self.reach_client(stream.0, client::Arrival::Message(stream.1, message));
                }
            }
            Event::HostSeesEnd(stream) => self.reach_host(self.host_of(stream), host::Arrival::StreamEnd(stream)),
            Event::ClientSeesEnd((client, generation)) => {
                self.reach_client(client, client::Arrival::StreamEnd(generation));
            }
            Event::HostWake(host) => {
                if self.hosts[host].wake == now {
                    self.hosts[host].wake = u64::MAX;
                    self.turn_host(host);
                }
            }
            Event::ClientWake(client) => {
                if self.clients[client].wake == now {
                    self.clients[client].wake = u64::MAX;
                    self.turn_client(client, None);
                }
            }
            Event::Ask(ask, secret) => {
                let client = self.script.asks[ask].client;
                if now < self.script.plan.calm {
                    self.reach_client(client, client::Arrival::Ask(ask, secret));
                }
            }
            Event::Worked { client, request } => self.reach_client(client, client::Arrival::Worked(request)),
            Event::AtStore(from, operation) => self.reach_store(from, operation),
            Event::FromStore(to, event) => {
                let process = &self.hosts[to.of.host].process;
                if to == process.in_store || (matches!(event, StoreEvent::LeaseEnded) && to.of == process.run) {
                    self.reach_host(to.of.host, host::Arrival::Store(event));
                }
            }
            Event::KeepAlive(run) => {
                if self.hosts[run.host].process.run == run {
                    self.keep_alive(run.host);
                    self.schedule(self.script.plan.lease_ttl / 5, Event::KeepAlive(run));
                }
            }
            Event::Dies(run, death) => {
                if self.hosts[run.host].process.run == run {
                    self.kill_host(run.host, death);
                }
            }
            Event::StoreLooks => self.store.expire(now),
            Event::Fault(number) => self.fault(number),
        }
    }

    // Hosts

    pub(crate) fn host_of(&self, stream: Stream) -> usize {
        self.script.plan.clients[stream.0].0
    }

    pub(crate) fn reach_host(&mut self, host: usize, arrival: host::Arrival) {
        if self.now < self.hosts[host].down_until {
            if let host::Arrival::Message(stream, ToHost::Hello { .. }) = arrival {
                self.schedule(MS, Event::ClientSeesEnd(stream));
            }
            return;
        }
        self.hosts[host].process.inbox.push(arrival);
        self.turn_host(host);
    }

    fn turn_host(&mut self, host: usize) {
        let place = &mut self.hosts[host];
        let away_until = place.down_until.max(place.frozen_until);
        if self.now < away_until {
            return self.wake_host_at(host, away_until);
        }
        place.process.turn(self.now, &mut self.history);
        if let Some(deadline) = place.process.next_deadline() {
            self.wake_host_at(host, deadline.max(self.now + 1));
        }
    }

    pub(crate) fn wake_host_at(&mut self, host: usize, at: u64) {
        if at < self.hosts[host].wake {
            self.hosts[host].wake = at;
            self.schedule_at(at, Event::HostWake(host));
        }
    }

    fn keep_alive(&mut self, host: usize) {
        let place = &self.hosts[host];
        if self.now >= place.down_until.max(place.frozen_until) {
            let sent = place.process.clock.shows(self.now);
            self.send_to_store(host, Operation::KeepAlive { sent });
        }
    }

    pub(crate) fn kill_host(&mut self, host: usize, death: Death) {
        self.history.log.note(|| format!("host {host} dies"));
        self.history.log.count("hosts killed");
        self.links.cut_store(self.hosts[host].process.run, self.now + death.lost_to_store);
        self.restart_host(host, death.away);
    }

    /// The process is gone, and another one will run in its place.
    pub(crate) fn restart_host(&mut self, host: usize, away: u64) {
        for client in self.script.plan.clients_of(host) {
            let stream = (client, self.clients[client].process.generation);
            self.links.cut(stream, self.now, self.now);
            self.schedule(away.min(100 * MS), Event::ClientSeesEnd(stream));
        }
        let place = &mut self.hosts[host];
        let run = Run { host, run: place.process.run.run + 1 };
        let config = &self.script.plan.config;
        self.steps_before += place.process.steps;
        place.process = Host::new(run, self.seed, &self.script.plan, self.sabotage);
        place.down_until = self.now + away;
        place.frozen_until = 0;
        self.history.ledgers[host] = Ledger::new(run, config.clone());
        self.schedule(away, Event::KeepAlive(run));
    }

    fn carry_out_host(&mut self, host: usize, out: host::Out) {
        match out {
            host::Out::Send(stream, message) => {
                if matches!(message, ToClient::Grant { .. })
                    && let Some(death) = self.hosts[host].doomed.take()
                {
                    let run = self.hosts[host].process.run;
                    self.schedule(death.after_grant, Event::Dies(run, death));
                }
                let at = self.links.message(self.now, stream, false);
                self.schedule_at(at, Event::ToClient(stream, message));
            }
            host::Out::Close(stream) => {
                let at = self.links.message(self.now, stream, false);
                self.schedule_at(at, Event::ClientSeesEnd(stream));
            }
            host::Out::Store(operation) => self.send_to_store(host, operation),
            host::Out::Ended(session, reason) => self.judge_session_end(session, reason),
            host::Out::Exit => {
                self.history.log.note(|| format!("host {host} ends"));
                self.history.log.count("hosts drained");
                self.restart_host(host, SECOND);
            }
        }
    }

    // The store

    fn send_to_store(&mut self, host: usize, operation: Operation) {
        let from = self.hosts[host].process.in_store;
        let key = match &operation {
            Operation::Claim { key, .. } | Operation::Yield { key } => Some(key),
            Operation::KeepAlive { .. } | Operation::EndLease => None,
        };
        let at = match operation {
            Operation::EndLease => self.links.operation_behind_all(self.now, from),
            _ => self.links.operation(self.now, from, key),
        };
        self.schedule_at(at, Event::AtStore(from, operation));
    }

    fn reach_store(&mut self, from: Incarnation, operation: Operation) {
        if self.links.is_cut_from_store(self.now, from.of) {
            return;
        }
        let place = &mut self.hosts[from.of.host];
        let (fail_until, landed) = place.claims_fail;
        let is_claim = matches!(operation, Operation::Claim { .. });
        if is_claim && place.refusals > 0 {
            place.refusals -= 1;
            self.store.refuse(from, &operation);
        } else if is_claim && self.now < fail_until {
            // As good as any other number: it differs from claim to claim.
            let landed = self.now % 100 < landed;
            self.history.log.count(if landed { "claims unanswered" } else { "claims failed" });
            self.history.log.note(|| format!("{operation:?} fails, landed: {landed}"));
            self.store.submit_unanswered(self.now, from, operation, landed);
        } else {
            self.store.submit(self.now, from, operation);
        }
        if let Some(death) = self.store.next_death() {
            self.schedule_at(death, Event::StoreLooks);
        }
    }

    // Clients

    pub(crate) fn reach_client(&mut self, client: usize, arrival: client::Arrival) {
        self.turn_client(client, Some(arrival));
    }

    /// A frozen process does nothing, and then everything at once.
    fn turn_client(&mut self, client: usize, arrival: Option<client::Arrival>) {
        let place = &mut self.clients[client];
        place.process.inbox.extend(arrival);
        if self.now < place.frozen_until {
            let until = place.frozen_until;
            return self.wake_client_at(client, until);
        }
        for arrival in std::mem::take(&mut place.process.inbox) {
            place.process.receive(self.now, arrival, &mut self.history);
        }
        place.process.wake(self.now, &mut self.history);
        let next = place.process.next_wake().max(self.now + 1);
        self.wake_client_at(client, next);
    }

    pub(crate) fn wake_client_at(&mut self, client: usize, at: u64) {
        if at < self.clients[client].wake {
            self.clients[client].wake = at;
            self.schedule_at(at, Event::ClientWake(client));
        }
    }

    fn carry_out_client(&mut self, client: usize, out: client::Out) {
        match out {
            client::Out::Send { generation, message } => {
                let at = self.links.message(self.now, (client, generation), true);
                self.schedule_at(at, Event::ToHost((client, generation), message));
            }
            client::Out::Work { request, ask, duration, secret } => {
                self.schedule(duration, Event::Worked { client, request });
                for child in self.nested.remove(&ask).unwrap_or_default() {
                    if let Begin::Nested { after, .. } = self.script.asks[child].begin
                        && secret.is_some()
                    {
                        self.schedule(after, Event::Ask(child, secret));
                    }
                }
            }
            client::Out::Promised { session, until } => self.judge_promise(client, session, until),
        }
    }

    /// I3: what a client believes ends before its session, and before the lease behind it.
    fn judge_promise(&mut self, client: usize, session: SessionName, until: u64) {
        let until = self.clients[client].process.clock.when(until);
        if until <= self.now || !self.clients[client].process.holds() {
            return;
        }
        let what = format!("client {client} believes until {until}");
        if let Some(ended) = self.ended.get(&session) {
            self.history.log.violate("I3 session", format!("{what}, its session ended at {ended}"));
        }
        let lease = self.store.lease_until(session.run);
        if until > lease {
            self.history.log.violate("I3 lease", format!("{what}, the lease ends at {lease}"));
        }
    }

    fn judge_session_end(&mut self, session: SessionName, reason: EndReason) {
        if reason != EndReason::Expired {
            return;
        }
        self.ended.insert(session, self.now);
        let of = self.clients.iter().map(|place| &place.process).find(|client| client.session == Some(session));
        let Some(client) = of else { return };
        let until = client.clock.when(client.promise);
        if until > self.now && client.holds() {
            let what = format!("client {} believes until {until}, its session ends now", client.number);
            self.history.log.violate("I3 session", what);
        }
    }

    // Time

    pub(crate) fn stream_breaks(&mut self, stream: Stream, host_sees: u64, client_sees: u64) {
        self.schedule(host_sees, Event::HostSeesEnd(stream));
        self.schedule(client_sees, Event::ClientSeesEnd(stream));
    }

    pub(crate) fn keys(&self) -> Vec<LockKey> {
        self.script.plan.keys.clone()
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.schedule_at(self.now + after, event);
    }

    fn schedule_at(&mut self, at: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((at.max(self.now), self.last_event), event);
    }
}
