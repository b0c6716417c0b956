//! One step of the world: an action is carried out, and all that follows from it at once.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use turnstile_core::{Ending, Engine};

use crate::client::{Around, Client, Link, Stage};
use crate::host::{Host, Out, Stream};
use crate::judge::{HeldKey, Sight, Sights};
use crate::names::Names;
use crate::plan::{LEASE_TTL, Plan, StoreLink, TICK};
use crate::wire::{Event, Operation, ToClient, ToHost};
use crate::world::{Action, Node, World};

/// How long a host may rely on a keepalive: less than the store does, for clock rates.
pub(crate) const LEASE: u64 = LEASE_TTL * 98 / 100;

/// More than clients, hosts and store can have to say at one instant.
const TALK_MAX: usize = 300;

pub(crate) struct Step<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) sights: &'a Sights,
    pub(crate) world: &'a mut World,
}

impl Step<'_> {
    /// Leases and sessions, before anything happens.
    pub(crate) fn begin(&mut self) {
        for host in 0..self.world.hosts.len() {
            self.hear_store(host, Event::LeaseRenewed { sent: 0 });
        }
        for client in 0..self.world.clients.len() {
            self.reconnect(client);
            self.deliver_to_host(client);
            while !self.world.clients[client].to_client.is_empty() {
                self.deliver_to_client(client);
            }
            self.heartbeat(client, false);
        }
    }

    pub(crate) fn take(&mut self, action: Action) {
        match action {
            Action::Ask { client, choice } => {
                let message = self.world.clients[client].client.ask(self.world.now, self.plan, choice);
                self.send_to_host(client, message);
            }
            Action::Release { client, request, ending } => {
                self.world.budget.uncleans -= u8::from(ending == Ending::Unclean);
                let message = self.with_client(client, |client, around| client.release(request, ending, around));
                self.send_to_host(client, message);
            }
            Action::Cancel { client, request } => {
                self.world.budget.cancels -= 1;
                let message = self.world.clients[client].client.cancel(request);
                self.send_to_host(client, message);
            }
            Action::ToHost { client } => self.deliver_to_host(client),
            Action::ToClient { client } => self.deliver_to_client(client),
            Action::ToStore { host } => self.deliver_to_store(host),
            Action::FromStore { host } => self.deliver_from_store(host),
            Action::Deadlines { host } => self.with_host(host, |host, now, plan| host.act_on_deadlines(now, plan)),
            Action::Tick { late_client, late_host } => self.tick(late_client, late_host),
            Action::Cut { client } => {
                self.world.budget.cuts -= 1;
                self.cut(client);
            }
            Action::HostSeesEnd { client } => {
                let host = self.plan.clients[client].host;
                self.with_host(host, |host, now, plan| host.see_end(now, plan, client));
                let peer = &mut self.world.clients[client];
                if peer.client.link == Link::Cut && !self.world.hosts[host].host.has_broken_stream(client) {
                    peer.to_host.clear();
                }
            }
            Action::Reconnect { client } => self.reconnect(client),
            Action::Kill { host } => self.kill(host),
            Action::LoseAnswer { host } => self.lose_answer(host),
            Action::Force { host, key } => {
                self.world.budget.forces -= 1;
                self.with_host(host, |host, now, plan| host.force(now, plan, key));
            }
        }
        if self.plan.store == StoreLink::Immediate {
            self.settle();
        }
        for host in 0..self.world.hosts.len() {
            self.look_at_sessions(host);
        }
        let World { store, hosts, now, .. } = &mut *self.world;
        store.tidy(*now, |name| hosts.iter().any(|node| node.host.name == name));
    }

    // Time

    fn tick(&mut self, late_client: Option<usize>, late_host: Option<usize>) {
        self.world.budget.late_clients -= u8::from(late_client.is_some());
        self.world.budget.late_hosts -= u8::from(late_host.is_some());
        self.world.now += TICK;
        let now = self.world.now;
        for client in 0..self.world.clients.len() {
            for message in self.with_client(client, |client, around| client.expire(around)) {
                self.send_to_host(client, message);
            }
        }
        self.world.judge.forget_the_past(now);
        self.world.store.expire(now, self.sights);
        self.tell_store_events();
        for host in 0..self.world.hosts.len() {
            let late = late_host == Some(host);
            self.world.hosts[host].behind |= late;
            self.keep_alive(host, late);
        }
        for client in 0..self.world.clients.len() {
            let late = late_client == Some(client) || late_host == Some(self.plan.clients[client].host);
            self.heartbeat(client, late);
        }
    }

    /// A session's timer goes off even if the session was heard meanwhile, and is then set anew: nothing else changes,
    /// so it need not be told apart when.
    fn look_at_sessions(&mut self, host: usize) {
        let now = self.world.now;
        let before = &self.world.hosts[host].host;
        if !before.is_due(now) {
            return;
        }
        let mut after = Arc::clone(before);
        let out = Arc::make_mut(&mut after).act_on_deadlines(now, self.plan);
        let look = |host: &Host| {
            let mut hasher = DefaultHasher::new();
            host.feed(&Names { now, world: self.world, host }, &mut hasher);
            hasher.finish()
        };
        if out.is_empty() && look(before) == look(&after) {
            self.world.hosts[host].host = after;
        }
    }

    /// Sent at every tick; in time, it is there and back at once.
    fn keep_alive(&mut self, host: usize, late: bool) {
        let now = self.world.now;
        let node = &mut self.world.hosts[host];
        let on_its_way = node.host.to_store.iter().any(|(_, of)| matches!(of, Operation::KeepAlive { .. }))
            || node.host.from_store.iter().any(|of| matches!(of, Event::LeaseRenewed { .. } | Event::LeaseLost));
        if on_its_way {
            return;
        }
        let keeper = Arc::make_mut(&mut node.host);
        keeper.to_store.push_back((keeper.name, Operation::KeepAlive { sent: now }));
        if !late {
            while !self.world.hosts[host].host.to_store.is_empty() {
                self.deliver_to_store(host);
            }
            let event = Arc::make_mut(&mut self.world.hosts[host].host)
                .from_store
                .pop_back_if(|event| matches!(event, Event::LeaseRenewed { .. }));
            if let Some(event) = event {
                self.hear_store(host, event);
            }
        }
    }

    /// Sent at every tick; in time, it is there and its ack is back at once.
    fn heartbeat(&mut self, client: usize, late: bool) {
        let now = self.world.now;
        let peer = &mut self.world.clients[client];
        if peer.client.link != Link::Up || peer.client.unanswered {
            return;
        }
        let message = peer.client.beat(now);
        let in_time = !late && peer.to_host.is_empty() && peer.to_client.is_empty();
        peer.to_host.push_back(message);
        if in_time {
            self.deliver_to_host(client);
            if matches!(self.world.clients[client].to_client.front(), Some(ToClient::Ack { .. })) {
                self.deliver_to_client(client);
            }
        }
    }

    // Streams

    fn send_to_host(&mut self, client: usize, message: ToHost) {
        let peer = &mut self.world.clients[client];
        peer.to_host.extend(peer.client.say(message));
    }

    fn deliver_to_host(&mut self, client: usize) {
        let peer = &mut self.world.clients[client];
        let Some(message) = peer.to_host.pop_front() else { return };
        let stream = if peer.client.link == Link::Cut { Stream::Broken } else { Stream::Current };
        let host = self.plan.clients[client].host;
        self.with_host(host, |host, now, plan| host.hear(now, plan, client, stream, message));
    }

    fn deliver_to_client(&mut self, client: usize) {
        let Some(message) = self.world.clients[client].to_client.pop_front() else { return };
        let granted = matches!(message, ToClient::Grant { .. });
        for answer in self.with_client(client, |client, around| client.receive(message, around)) {
            self.send_to_host(client, answer);
        }
        if granted {
            let World { now, clients, judge, .. } = &mut *self.world;
            judge.judge_holds(*now, clients.iter().map(|peer| &peer.client), self.sights);
        }
    }

    /// Nobody has noticed yet. What had arrived may still be read.
    fn cut(&mut self, client: usize) {
        self.world.clients[client].client.link = Link::Cut;
        let host = self.plan.clients[client].host;
        Arc::make_mut(&mut self.world.hosts[host].host).break_stream(client);
    }

    fn reconnect(&mut self, client: usize) {
        let now = self.world.now;
        let peer = &mut self.world.clients[client];
        peer.to_host.clear();
        peer.to_client.clear();
        let hello = peer.client.connect(now);
        peer.to_host.push_back(hello);
    }

    // Hosts

    fn with_client<R>(&mut self, client: usize, act: impl FnOnce(&mut Client, &mut Around<'_>) -> R) -> R {
        let World { now, clients, judge, .. } = &mut *self.world;
        let mut around = Around { now: *now, plan: self.plan, judge, sights: self.sights };
        act(&mut clients[client].client, &mut around)
    }

    fn with_host(&mut self, host: usize, act: impl FnOnce(&mut Host, u64, &Plan) -> Vec<Out>) {
        let keeper = Arc::make_mut(&mut self.world.hosts[host].host);
        for out in act(keeper, self.world.now, self.plan) {
            self.carry_out(out);
        }
    }

    fn carry_out(&mut self, out: Out) {
        match out {
            Out::ToClient(client, message) => {
                if let ToClient::Welcome { resumed: true, .. } = message {
                    self.see_resume(client);
                }
                // Into a broken stream it may be written, but is never read.
                if self.world.clients[client].client.link != Link::Cut {
                    self.world.clients[client].to_client.push_back(message);
                }
            }
            Out::Close(client) => {
                self.world.clients[client].client.link = Link::Cut;
                self.world.clients[client].to_host.clear();
            }
            Out::Granted(fresh, keys) => self.granted(&fresh, keys),
            Out::ToldAgain => self.sights.see(Sight::GrantToldAgain),
            Out::SessionEnded => self.sights.see(Sight::SessionEnded),
            Out::Violation(what) => self.world.judge.violate(|| what),
        }
    }

    fn granted(&mut self, fresh: &[HeldKey], keys: usize) {
        if keys > 1 {
            let contended = fresh.iter().any(|held| self.world.store.is_contended(held.key));
            self.sights.see(if contended { Sight::GrantedSeveralContended } else { Sight::GrantedSeveral });
        }
        for held in fresh {
            self.world.judge.granted(held.key, held.token);
        }
    }

    fn see_resume(&self, client: usize) {
        let client = &self.world.clients[client].client;
        if client.count(Stage::Holding) > 0 {
            self.sights.see(Sight::ResumedWithHold);
        }
        if client.has_unacked_releases() {
            self.sights.see(Sight::ReleaseTold);
        }
    }

    /// The process dies and is started again; all it had to say to the store is lost.
    fn kill(&mut self, host: usize) {
        self.world.budget.kills -= 1;
        let now = self.world.now;
        for client in 0..self.world.clients.len() {
            if self.plan.clients[client].host == host {
                self.world.clients[client].client.link = Link::Cut;
                self.world.clients[client].to_host.clear();
            }
        }
        let name = self.world.store.register(now);
        let node = &mut self.world.hosts[host];
        let engine = Engine::with_mutation(self.plan.config(), self.plan.mutation);
        node.host = Arc::new(Host::new(engine, name, node.host.last_session));
        node.behind = false;
        self.hear_store(host, Event::LeaseRenewed { sent: now });
    }

    // The store

    fn deliver_to_store(&mut self, host: usize) {
        let operation = Arc::make_mut(&mut self.world.hosts[host].host).to_store.pop_front();
        if let Some((from, operation)) = operation {
            self.world.store.submit(self.world.now, from, operation, self.sights);
            self.tell_store_events();
        }
        self.catch_up(host);
    }

    fn tell_store_events(&mut self) {
        while let Some((to, event)) = self.world.store.events.pop_front() {
            // An incarnation that is no more hears nothing.
            if let Some(node) = self.world.hosts.iter_mut().find(|node| node.host.name == to) {
                Arc::make_mut(&mut node.host).from_store.push_back(event);
            }
        }
    }

    fn deliver_from_store(&mut self, host: usize) {
        if let Some(event) = Arc::make_mut(&mut self.world.hosts[host].host).from_store.pop_front() {
            self.hear_store(host, event);
        }
        self.catch_up(host);
    }

    fn hear_store(&mut self, host: usize, event: Event) {
        let lost = matches!(event, Event::LeaseLost);
        self.with_host(host, |host, now, plan| host.hear_store(now, plan, event, LEASE));
        if lost {
            // The store's client goes on by itself as a new incarnation.
            self.sights.see(Sight::LeaseLost);
            let now = self.world.now;
            let name = self.world.store.register(now);
            let keeper = Arc::make_mut(&mut self.world.hosts[host].host);
            keeper.rename(name);
            self.hear_store(host, Event::LeaseRenewed { sent: now });
        }
    }

    fn lose_answer(&mut self, host: usize) {
        self.world.budget.losses -= 1;
        self.sights.see(Sight::ClaimedAgain);
        let World { hosts, store, .. } = &mut *self.world;
        let keeper = Arc::make_mut(&mut hosts[host].host);
        if let Some(key) = keeper.lose_answer() {
            store.forget_answer(keeper.name, key);
        }
    }

    fn catch_up(&mut self, host: usize) {
        let node = &mut self.world.hosts[host];
        node.behind &= node.host.talks_to_store();
    }

    /// Hosts and store say all they have to say.
    fn settle(&mut self) {
        for _ in 0..TALK_MAX {
            let talks = |node: &Node| !node.behind && node.host.talks_to_store();
            let Some(host) = self.world.hosts.iter().position(talks) else { return };
            if self.world.hosts[host].host.to_store.is_empty() {
                self.deliver_from_store(host);
            } else {
                self.deliver_to_store(host);
            }
        }
        self.world.judge.violate(|| "I6: hosts and store talk without end".into());
    }

    /// Lets everybody do what there is to do, and nobody ask for more.
    pub(crate) fn calm_down(&mut self) {
        for _ in 0..TALK_MAX {
            let clients = 0..self.world.clients.len();
            let hosts = 0..self.world.hosts.len();
            let says = |client: &usize| !self.world.clients[*client].to_host.is_empty();
            let hears = |client: &usize| !self.world.clients[*client].to_client.is_empty();
            let due = |host: &usize| self.world.hosts[*host].host.is_due(self.world.now);
            let action = if let Some(client) = clients.clone().find(says) {
                Action::ToHost { client }
            } else if let Some(client) = clients.clone().find(hears) {
                Action::ToClient { client }
            } else if let Some(host) = hosts.clone().find(|host| !self.world.hosts[*host].host.to_store.is_empty()) {
                Action::ToStore { host }
            } else if let Some(host) = hosts.clone().find(|host| !self.world.hosts[*host].host.from_store.is_empty()) {
                Action::FromStore { host }
            } else if let Some(host) = hosts.clone().find(due) {
                Action::Deadlines { host }
            } else {
                return;
            };
            self.take(action);
        }
        self.world.judge.violate(|| "I6: somebody always has something to say".into());
    }
}
