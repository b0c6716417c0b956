//! All there is at one instant, what may happen next, and which worlds are the same.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use turnstile_core::{Ending, Engine, Mode};

use crate::client::{Client, Link, Stage};
use crate::host::{Host, Stream};
use crate::judge::{Judge, Lingering, Sights};
use crate::names::{Names, until};
use crate::plan::{Budget, KEYS, Plan, key};
use crate::step::Step;
use crate::store::Store;
use crate::wire::{ToClient, ToHost};

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) hosts: Vec<Node>,
    pub(crate) clients: Vec<Peer>,
    pub(crate) store: Store,
    pub(crate) judge: Judge,
    /// What may still go wrong.
    pub(crate) budget: Budget,
}

#[derive(Clone)]
pub(crate) struct Node {
    /// Shared between worlds that differ elsewhere.
    pub(crate) host: Arc<Host>,
    /// Where the store answers immediately: it was late, and so are its operations and answers.
    pub(crate) behind: bool,
}

/// A client and its stream.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) client: Client,
    pub(crate) to_host: VecDeque<ToHost>,
    pub(crate) to_client: VecDeque<ToClient>,
}

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Ask {
        client: usize,
        choice: usize,
    },
    Release {
        client: usize,
        request: u64,
        ending: Ending,
    },
    Cancel {
        client: usize,
        request: u64,
    },
    /// The next message of a client's stream arrives.
    ToHost {
        client: usize,
    },
    ToClient {
        client: usize,
    },
    ToStore {
        host: usize,
    },
    FromStore {
        host: usize,
    },
    /// The host acts on its deadlines.
    Deadlines {
        host: usize,
    },
    /// Time passes. Whoever is not late has done all there was to do.
    Tick {
        late_client: Option<usize>,
        late_host: Option<usize>,
    },
    Cut {
        client: usize,
    },
    HostSeesEnd {
        client: usize,
    },
    Reconnect {
        client: usize,
    },
    Kill {
        host: usize,
    },
    LoseAnswer {
        host: usize,
    },
    Force {
        host: usize,
        key: usize,
    },
}

impl World {
    /// Hosts with their leases, and clients with their sessions.
    pub(crate) fn new(plan: &Plan, sights: &Sights) -> Self {
        let mut store = Store::new(plan.raise);
        let hosts = (0..plan.hosts).map(|_| {
            let host = Host::new(Engine::with_mutation(plan.config(), plan.mutation), store.register(0), 0);
            Node { host: Arc::new(host), behind: false }
        });
        let hosts = hosts.collect();
        let clients = (0..plan.clients.len()).map(|number| Peer {
            client: Client::new(number, plan.clients[number].host),
            to_host: VecDeque::new(),
            to_client: VecDeque::new(),
        });
        let clients = clients.collect();
        let mut world = Self { now: 0, hosts, clients, store, judge: Judge::default(), budget: plan.budget };
        Step { plan, sights, world: &mut world }.begin();
        world
    }

    pub(crate) fn actions(&self, plan: &Plan, actions: &mut Vec<Action>) {
        for (client, peer) in self.clients.iter().enumerate() {
            self.actions_of_client(plan, client, peer, actions);
        }
        for (host, node) in self.hosts.iter().enumerate() {
            self.actions_of_host(host, node, actions);
        }
        let late_clients = (self.budget.late_clients > 0).then_some(0..self.clients.len());
        let late_hosts = (self.budget.late_hosts > 0).then_some(0..self.hosts.len());
        for late_client in [None].into_iter().chain(late_clients.into_iter().flatten().map(Some)) {
            for late_host in [None].into_iter().chain(late_hosts.clone().into_iter().flatten().map(Some)) {
                if self.may_tick(plan, late_client, late_host) {
                    actions.push(Action::Tick { late_client, late_host });
                }
            }
        }
    }

    fn actions_of_client(&self, plan: &Plan, number: usize, peer: &Peer, actions: &mut Vec<Action>) {
        let Peer { client, to_host, to_client } = peer;
        let of_plan = &plan.clients[number];
        if !to_host.is_empty() {
            actions.push(Action::ToHost { client: number });
        }
        if !to_client.is_empty() {
            actions.push(Action::ToClient { client: number });
        }
        if client.requests.len() < of_plan.at_once
            && let Some(choices) = of_plan.script.get(client.asked as usize)
        {
            actions.extend((0..choices.len()).map(|choice| Action::Ask { client: number, choice }));
        }
        for request in &client.requests {
            let (client, request, waits) = (number, request.number, request.stage == Stage::Waiting);
            if waits && self.budget.cancels > 0 {
                actions.push(Action::Cancel { client, request });
            }
            if !waits {
                actions.push(Action::Release { client, request, ending: Ending::Clean });
                if self.budget.uncleans > 0 {
                    actions.push(Action::Release { client, request, ending: Ending::Unclean });
                }
            }
        }
        if client.link == Link::Cut {
            actions.push(Action::Reconnect { client: number });
        } else if self.budget.cuts > 0 {
            actions.push(Action::Cut { client: number });
        }
        if self.hosts[of_plan.host].host.has_broken_stream(number) {
            actions.push(Action::HostSeesEnd { client: number });
        }
    }

    fn actions_of_host(&self, host: usize, node: &Node, actions: &mut Vec<Action>) {
        if !node.host.to_store.is_empty() {
            actions.push(Action::ToStore { host });
        }
        if !node.host.from_store.is_empty() {
            actions.push(Action::FromStore { host });
            if self.budget.losses > 0 && node.host.next_answer().is_some() {
                actions.push(Action::LoseAnswer { host });
            }
        }
        if node.host.is_due(self.now) {
            actions.push(Action::Deadlines { host });
        }
        if self.budget.kills > 0 {
            actions.push(Action::Kill { host });
        }
        if self.budget.forces > 0 && node.host.engine.hold_count() > 0 {
            let owned = (0..KEYS.len()).filter(|number| node.host.engine.owns(&key(*number)));
            actions.extend(owned.map(|key| Action::Force { host, key }));
        }
    }

    fn may_tick(&self, plan: &Plan, late_client: Option<usize>, late_host: Option<usize>) -> bool {
        let clients_done = self.clients.iter().enumerate().all(|(number, peer)| {
            let sent = peer.to_host.is_empty() || late_host == Some(plan.clients[number].host);
            late_client == Some(number) || peer.client.link == Link::Cut || (sent && peer.to_client.is_empty())
        });
        let hosts_done = self.hosts.iter().enumerate().all(|(number, Node { host, .. })| {
            let done = host.to_store.is_empty() && host.from_store.is_empty() && !host.is_due(self.now);
            late_host == Some(number) || done
        });
        clients_done && hosts_done
    }

    /// Nobody has anything to do but what clients may choose to, and all are connected.
    pub(crate) fn is_calm(&self) -> bool {
        let streams = self.hosts.iter().flat_map(|node| &node.host.connections).map(|connection| connection.stream);
        self.clients.iter().all(|peer| peer.client.link == Link::Up)
            && streams.into_iter().all(|stream| stream == Stream::Current)
            && self.hosts.iter().all(|node| !node.behind)
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// What decides how the world goes on, whenever it is.
impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let now = self.now;
        (self.budget, &self.judge.violation).hash(hasher);
        let mode = |mode| match mode {
            Mode::Exclusive => 0,
            Mode::Shared => u32::MAX,
            Mode::Limit(most) => most.get(),
        };
        let shown = |Lingering { until: at, hold }: &Lingering| {
            (until(now, *at), hold.key, mode(hold.mode), self.store.age_of_token(hold.key, hold.token))
        };
        let mut lingering: Vec<_> = self.judge.lingering.iter().map(shown).collect();
        lingering.sort_unstable();
        lingering.hash(hasher);
        for (number, node) in self.hosts.iter().enumerate() {
            let names = Names { now, world: self, host: &node.host };
            (node.behind, node.host.is_due(now)).hash(hasher);
            node.host.feed(&names, hasher);
            for (client, peer) in self.clients.iter().enumerate() {
                if peer.client.host == number {
                    peer.feed(client, &names, hasher);
                }
            }
        }
        for (key, last) in self.judge.last_tokens.iter().enumerate() {
            last.map(|token| self.store.age_of_token(key, token)).hash(hasher);
        }
        let claims_since = |name, claim: Option<_>| {
            let host = self.hosts.iter().position(|node| node.host.name == name);
            let since = |host: usize| claim.map_or(0, |claim| self.hosts[host].host.engine.claims_since(claim));
            (host, host.map_or(0, since))
        };
        self.store.feed(now, claims_since, hasher);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint() == other.fingerprint()
    }
}

impl Peer {
    fn feed(&self, number: usize, names: &Names<'_>, hasher: &mut impl Hasher) {
        self.client.feed(names, hasher);
        self.to_host.len().hash(hasher);
        for message in &self.to_host {
            message.feed(number, names, hasher);
        }
        self.to_client.len().hash(hasher);
        for message in &self.to_client {
            message.feed(number, names, hasher);
        }
    }
}
