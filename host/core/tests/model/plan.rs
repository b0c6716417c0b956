//! The small worlds that are explored: who is there, what they ask for, and how often something may go wrong.

use std::time::Duration;

use turnstile_core::{Config, HandoffBudget, LockKey, Mode, Mutation};

/// Time passes in whole ticks. Every duration of the model is a few of them, or [`FAR`].
pub(crate) const TICK: u64 = 1_000_000;

/// A wait or a hold that never ends by itself.
pub(crate) const FAR: u64 = 1_000 * TICK;

/// Without a heartbeat for so long, a session ends.
pub(crate) const SESSION_TTL: u64 = 2 * TICK;

/// Without a keepalive for so long, the store takes a host for dead. As long as a session's TTL, so that either may
/// bound a promise.
pub(crate) const LEASE_TTL: u64 = 2 * TICK;

/// Both keys there can be.
pub(crate) const KEYS: [&str; 2] = ["a", "b"];

/// One world.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) hosts: usize,
    pub(crate) clients: Vec<ClientPlan>,
    pub(crate) budget: Budget,
    /// What is added to the budget for each level that the exploration goes deeper.
    pub(crate) deeper: Budget,
    pub(crate) store: StoreLink,
    pub(crate) raise: Raise,
    pub(crate) idle_ownership: u64,
    pub(crate) handoff_grants: u32,
    pub(crate) mutation: Option<Mutation>,
}

/// What a client asks for: one of the alternatives, then one of the next, and so on.
#[derive(Clone, Debug)]
pub(crate) struct ClientPlan {
    pub(crate) host: usize,
    pub(crate) script: Vec<Vec<Ask>>,
    /// Requests at once.
    pub(crate) at_once: usize,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// By their numbers in [`KEYS`].
    pub(crate) keys: Vec<(usize, Mode)>,
    pub(crate) wait: u64,
    pub(crate) lock_delay: u64,
    pub(crate) hold: Option<u64>,
    pub(crate) kin: Kin,
}

/// Whether a hold may be joined, or joins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kin {
    None,
    Offers,
    /// What this client has offered with its request of this number.
    Joins(Family),
}

/// The client and the request that offered to be joined.
pub(crate) type Family = (usize, u64);

/// How host and store talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreLink {
    /// Operations and answers travel, and anything may happen meanwhile.
    Travels,
    /// The store answers before anything else happens, unless the host is slow.
    Immediate,
}

/// What the store does with the epoch when a claim raises the lock delay of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Raise {
    NewEpoch,
    /// The engine goes on under the old one; no store of ours does this.
    OldEpoch,
}

/// How often each thing may happen at most, in one history. All else may happen without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// A hold ends uncleanly by its client's doing.
    pub(crate) uncleans: u8,
    /// A waiter goes away.
    pub(crate) cancels: u8,
    /// An operator ends the holds of a key.
    pub(crate) forces: u8,
    /// A stream breaks.
    pub(crate) cuts: u8,
    /// A tick is over before a client and its stream have done all that there was to do.
    pub(crate) late_clients: u8,
    /// A tick is over before a host has: it is slow or frozen, or away from the store.
    pub(crate) late_hosts: u8,
    /// A host is killed and started again.
    pub(crate) kills: u8,
    /// The store's answer to a claim gets lost: it may have landed.
    pub(crate) losses: u8,
}

impl Plan {
    pub(crate) fn ask(&self, client: usize, request: u64, choice: usize) -> &Ask {
        &self.clients[client].script[request as usize - 1][choice]
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            session_ttl: Duration::from_micros(SESSION_TTL),
            wait_max: Duration::from_micros(FAR),
            hold_max: Duration::from_micros(FAR),
            lock_delay_max: Duration::from_micros(FAR),
            claim_patience: Duration::from_micros(TICK),
            handoff_budget: HandoffBudget { grants: self.handoff_grants, time: Duration::from_micros(TICK) },
            idle_ownership: Duration::from_micros(self.idle_ownership),
            ..Config::default()
        }
    }

    /// For people: its extent, and how often each trouble may come.
    pub(crate) fn describe(&self) -> String {
        let keys = self.clients.iter().flat_map(|client| client.script.iter().flatten()).flat_map(|ask| &ask.keys);
        let keys = keys.map(|(key, _)| key).max().map_or(0, |last| last + 1);
        let troubles = self.budget.named().into_iter().filter(|(_, count)| *count > 0);
        let troubles: Vec<String> = troubles.map(|(what, count)| format!("{what} {count}")).collect();
        let troubles = if troubles.is_empty() { "no trouble".to_owned() } else { troubles.join(", ") };
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let requests: usize = self.clients.iter().map(|client| client.script.len()).sum();
        let (hosts, clients) = (count(self.hosts, "host"), count(self.clients.len(), "client"));
        let (keys, requests) = (count(keys, "key"), count(requests, "request"));
        format!("{hosts}, {clients}, {keys}, {requests}; {troubles}")
    }

    /// The same world with more trouble.
    pub(crate) fn deeper(mut self, levels: u8) -> Self {
        self.budget = Budget {
            uncleans: self.budget.uncleans + levels * self.deeper.uncleans,
            cancels: self.budget.cancels + levels * self.deeper.cancels,
            forces: self.budget.forces + levels * self.deeper.forces,
            cuts: self.budget.cuts + levels * self.deeper.cuts,
            late_clients: self.budget.late_clients + levels * self.deeper.late_clients,
            late_hosts: self.budget.late_hosts + levels * self.deeper.late_hosts,
            kills: self.budget.kills + levels * self.deeper.kills,
            losses: self.budget.losses + levels * self.deeper.losses,
        };
        self
    }

    /// The same world with an engine that breaks one of its rules.
    pub(crate) fn broken_by(self, mutation: Mutation) -> Self {
        Self { mutation: Some(mutation), ..self }
    }
}

impl Budget {
    fn named(&self) -> [(&'static str, u8); 8] {
        [
            ("unclean ends", self.uncleans),
            ("cancels", self.cancels),
            ("forced releases", self.forces),
            ("broken streams", self.cuts),
            ("late ticks of clients", self.late_clients),
            ("late ticks of hosts", self.late_hosts),
            ("deaths", self.kills),
            ("lost answers", self.losses),
        ]
    }
}

pub(crate) fn key(number: usize) -> LockKey {
    LockKey::parse(KEYS[number]).expect("a key")
}

pub(crate) fn number_of(key: &LockKey) -> usize {
    KEYS.iter().position(|name| *name == key.as_str()).expect("one of the keys")
}
