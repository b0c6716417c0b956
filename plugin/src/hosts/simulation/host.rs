//! Hosts of the simulation, and the store that they share: ownership of keys, and who is alive.

use prost::Message as _;
use turnstile_protocol::v1::{self, RejectReason, client_item::Item};

use super::*;

/// Who owns which key: a host by its number, in one of its lives.
#[derive(Default)]
pub(super) struct Store {
    owners: BTreeMap<String, (usize, u32)>,
    /// Until when the promises of a life that has ended may be believed in.
    dead_until: BTreeMap<(usize, u32), Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// Since when.
    Well(Instant),
    Draining,
    Down {
        until: Instant,
    },
}

#[derive(Default)]
struct Session {
    peer: Option<(usize, u32)>,
    heard: Instant,
    seq: u64,
    waiters: BTreeMap<u64, (Keys, Instant)>,
    holds: BTreeMap<u64, Keys>,
    /// No number is taken twice.
    last_id: u64,
}

/// Grants in the order of arrival what it owns in the store, and forgets everything when it restarts.
pub(super) struct Host {
    number: usize,
    life: u32,
    pub(super) health: Health,
    frozen_until: Instant,
    /// Renewed for as long as it runs and reaches the store.
    lease_until: Instant,
    /// Until then it does not reach the store.
    cut_off_until: Instant,
    /// Streams that lead here.
    streams: Vec<(usize, u32)>,
    sessions: BTreeMap<u64, Session>,
    queue: VecDeque<(u64, u64)>,
    next_session: u64,
    pub(super) grants: u64,
}

impl Host {
    pub(super) fn new(number: usize, now: Instant) -> Self {
        Self {
            number,
            life: 1,
            health: Health::Well(now),
            frozen_until: now,
            lease_until: now + LEASE,
            cut_off_until: now,
            streams: Vec::new(),
            sessions: BTreeMap::new(),
            queue: VecDeque::new(),
            next_session: 1,
            grants: 0,
        }
    }

    /// Since when it has been there and undisturbed.
    pub(super) fn well_since(&self) -> Option<Instant> {
        match self.health {
            Health::Well(since) => Some(since.max(self.frozen_until).max(self.cut_off_until)),
            Health::Draining | Health::Down { .. } => None,
        }
    }

    pub(super) fn freeze(&mut self, now: Instant, pause: Duration) {
        self.frozen_until = now + pause;
    }

    pub(super) fn cut_off(&mut self, now: Instant, pause: Duration) {
        self.cut_off_until = now + pause;
    }

    fn is_cut_off(&self, now: Instant) -> bool {
        now < self.cut_off_until
    }

    /// How long its word is good. The TTL counts from when it processes a heartbeat, which is later than its send.
    fn valid_ms(&self, now: Instant) -> u32 {
        TTL.min(self.lease_until.saturating_since(now)).as_millis() as u32
    }

    pub(super) fn expect_stream(&mut self, worker: usize, stream: u32) {
        self.streams.push((worker, stream));
    }

    pub(super) fn forget_stream(&mut self, worker: usize, stream: u32) {
        self.streams.retain(|known| *known != (worker, stream));
        for session in self.sessions.values_mut().filter(|session| session.peer == Some((worker, stream))) {
            session.peer = None;
        }
    }

    pub(super) fn holds(&self) -> usize {
        self.sessions.values().map(|session| session.holds.len()).sum()
    }

    fn has_holder(&self, key: &String) -> bool {
        self.sessions.values().any(|session| session.holds.values().any(|keys| keys.contains(key)))
    }
}

impl World {
    pub(super) fn run_host(&mut self, index: usize) {
        let now = self.now;
        if let Health::Down { until } = self.hosts[index].health {
            if until > now {
                return;
            }
            self.hosts[index].health = Health::Well(now);
        }
        if self.hosts[index].frozen_until > now {
            return;
        }
        if !self.hosts[index].is_cut_off(now) {
            if self.hosts[index].lease_until <= now {
                // It was frozen or cut off for longer than its lease: another life, and new sessions.
                self.kill(index, Duration::ZERO);
            }
            self.hosts[index].lease_until = now + LEASE;
        }
        let streams = self.hosts[index].streams.clone();
        let is_ours = |message: &Message| message.arrival <= now && streams.contains(&(message.worker, message.stream));
        for message in take_due(&mut self.to_hosts, is_ours) {
            let items = v1::ClientMessage::decode(message.bytes.as_slice()).expect("a message").items;
            for item in items.into_iter().filter_map(|item| item.item) {
                self.host_item(index, (message.worker, message.stream), item);
            }
        }
        self.hosts[index].sessions.retain(|_, session| session.heard + TTL > now);
        self.host_grants(index);
        self.host_waits(index);
        if self.hosts[index].health == Health::Draining && self.hosts[index].holds() == 0 {
            // Its end is in order: nobody has to wait for its promises, if it can say so.
            let (life, is_told) = ((index, self.hosts[index].life), !self.hosts[index].is_cut_off(now));
            let pause = self.pause();
            self.kill(index, pause);
            if is_told {
                self.store.dead_until.insert(life, now);
            }
        }
    }

    /// Its process ends; it comes back later, and knows nothing.
    pub(super) fn kill(&mut self, index: usize, down: Duration) {
        let now = self.now;
        let host = &mut self.hosts[index];
        self.store.dead_until.insert((index, host.life), host.lease_until.max(now));
        host.life += 1;
        host.health = Health::Down { until: now + down };
        host.frozen_until = now;
        host.lease_until = now + LEASE;
        host.cut_off_until = now;
        host.sessions.clear();
        host.queue.clear();
        for (worker, stream) in core::mem::take(&mut host.streams) {
            self.cut(worker, stream);
            self.workers[worker].closed.push_back(stream);
        }
        if down.is_zero() {
            self.hosts[index].health = Health::Well(now);
        }
    }

    pub(super) fn drain(&mut self, index: usize) {
        if !matches!(self.hosts[index].health, Health::Well(_)) {
            return;
        }
        self.hosts[index].health = Health::Draining;
        let mut told = Vec::new();
        for session in self.hosts[index].sessions.values_mut() {
            let waiters = core::mem::take(&mut session.waiters).into_keys();
            let Some(peer) = session.peer else { continue };
            told.push((peer, v1::GoAway::default().into()));
            told.extend(waiters.map(|id| (peer, reject(id, RejectReason::Draining))));
        }
        told.into_iter().for_each(|(peer, item)| self.reply(peer, item));
    }

    fn host_item(&mut self, index: usize, peer: (usize, u32), item: Item) {
        if let Item::Hello(hello) = item {
            return self.host_hello(index, peer, hello);
        }
        let now = self.now;
        let host = &mut self.hosts[index];
        let Some((&id, session)) = host.sessions.iter_mut().find(|(_, session)| session.peer == Some(peer)) else {
            return;
        };
        match item {
            Item::Acquire(acquire) if host.health == Health::Draining => {
                self.reply(peer, reject(acquire.id, RejectReason::Draining));
            }
            Item::Acquire(acquire) => {
                assert!(acquire.id > session.last_id, "{} again after {}", acquire.id, session.last_id);
                session.last_id = acquire.id;
                let until = now + Duration::from_millis(acquire.wait_ms.into());
                session.waiters.insert(acquire.id, (names(acquire.keys), until));
                host.queue.push_back((id, acquire.id));
            }
            Item::Cancel(v1::Cancel { id }) | Item::Release(v1::Release { id, .. }) => {
                session.waiters.remove(&id);
                session.holds.remove(&id);
            }
            Item::Heartbeat(heartbeat) => {
                session.heard = now;
                session.seq = heartbeat.seq;
                let valid_ms = host.valid_ms(now);
                self.reply(peer, v1::HeartbeatAck { seq: heartbeat.seq, valid_ms }.into());
            }
            Item::Hello(_) => {}
        }
    }

    fn host_hello(&mut self, index: usize, peer: (usize, u32), hello: v1::Hello) {
        let host = &mut self.hosts[index];
        let incarnation = format!("{:08x}{:08x}", host.number, host.life);
        let known = hello
            .resume
            .filter(|resume| resume.incarnation == incarnation && host.sessions.contains_key(&resume.session_id));
        let session_id = known.as_ref().map_or(host.next_session, |resume| resume.session_id);
        host.next_session += 1;
        let session = host.sessions.entry(session_id).or_default();
        session.peer = Some(peer);
        session.heard = self.now;
        session.seq = hello.heartbeat_seq;
        let welcome = v1::Welcome {
            protocol_version: 1,
            incarnation,
            session_id,
            resumed: known.is_some(),
            ttl_ms: TTL.as_millis() as u32,
            heartbeat_ms: TTL.as_millis() as u32 / 4,
            limits: None,
        };
        let mut answers = vec![welcome.into()];
        if host.health == Health::Draining {
            answers.push(v1::GoAway::default().into());
        }
        if let Some(resume) = known {
            answers.extend(self.host_resume(index, session_id, resume, hello.heartbeat_seq));
        }
        answers.into_iter().for_each(|answer| self.reply(peer, answer));
    }

    fn host_resume(&mut self, index: usize, session_id: u64, resume: v1::Resume, seq: u64) -> Vec<v1::ServerItem> {
        let now = self.now;
        let host = &mut self.hosts[index];
        let valid_ms = host.valid_ms(now);
        let Some(session) = host.sessions.get_mut(&session_id) else { return Vec::new() };
        let listed = resume.waiters.iter().map(|waiter| waiter.id).max();
        session.last_id = session.last_id.max(listed.unwrap_or_default());
        for release in resume.releases {
            session.waiters.remove(&release.id);
            session.holds.remove(&release.id);
        }
        let mut answers = Vec::new();
        for &id in resume.holds.iter().filter(|id| !session.holds.contains_key(id)) {
            answers.push(v1::Lost { id, reason: v1::LostReason::Unknown.into() }.into());
        }
        let waiting: Vec<u64> = resume.waiters.iter().map(|waiter| waiter.id).collect();
        session.waiters.retain(|id, _| waiting.contains(id));
        // Granted, but the grant was lost on the way, or else never acted on.
        for (&id, keys) in session.holds.iter().filter(|(id, _)| waiting.contains(id)) {
            answers.push(grant(id, keys, seq, valid_ms));
        }
        session.holds.retain(|id, _| waiting.contains(id) || resume.holds.contains(id));
        for waiter in resume.waiters {
            if session.holds.contains_key(&waiter.id) || session.waiters.contains_key(&waiter.id) {
                continue;
            }
            if host.health == Health::Draining {
                answers.push(reject(waiter.id, RejectReason::Draining));
                continue;
            }
            let until = now + Duration::from_millis(waiter.wait_ms.into());
            session.waiters.insert(waiter.id, (names(waiter.keys), until));
            host.queue.push_back((session_id, waiter.id));
        }
        answers
    }

    fn host_waits(&mut self, index: usize) {
        let mut over = Vec::new();
        for session in self.hosts[index].sessions.values_mut() {
            let Some(peer) = session.peer else { continue };
            session.waiters.retain(|&id, (_, until)| {
                let keep = *until > self.now;
                if !keep {
                    over.push((peer, id));
                }
                keep
            });
        }
        over.into_iter().for_each(|(peer, id)| self.reply(peer, reject(id, RejectReason::WaitTimeout)));
    }

    fn host_grants(&mut self, index: usize) {
        if self.hosts[index].health == Health::Draining {
            return;
        }
        for (session_id, id) in core::mem::take(&mut self.hosts[index].queue) {
            let Some(session) = self.hosts[index].sessions.get(&session_id) else { continue };
            let Some((keys, _)) = session.waiters.get(&id).cloned() else { continue };
            let (peer, seq) = (session.peer, session.seq);
            let may = peer.filter(|_| keys.iter().all(|key| self.may_own(index, key)));
            if let Some(peer) = peer.filter(|_| may.is_none()) {
                // What it cannot claim it keeps for a while, as one that waits for its store would.
                let is_refused = self.hosts[index].is_cut_off(self.now) && self.chance(30);
                if is_refused && let Some(session) = self.hosts[index].sessions.get_mut(&session_id) {
                    session.waiters.remove(&id);
                    self.reply(peer, reject(id, RejectReason::StoreUnavailable));
                    continue;
                }
            }
            let host = &mut self.hosts[index];
            let valid_ms = host.valid_ms(self.now);
            let Some(peer) = may.filter(|_| !keys.iter().any(|key| host.has_holder(key))) else {
                host.queue.push_back((session_id, id));
                continue;
            };
            for key in &keys {
                self.store.owners.insert(key.clone(), (index, host.life));
            }
            let item = grant(id, &keys, seq, valid_ms);
            if let Some(session) = host.sessions.get_mut(&session_id) {
                session.waiters.remove(&id);
                session.holds.insert(id, keys);
            }
            host.grants += 1;
            self.reply(peer, item);
        }
    }

    /// Whether the host has the key in the store, or can have it now: from a host that has no holder and yields it, or
    /// from a life that nobody believes in any more.
    fn may_own(&self, index: usize, key: &String) -> bool {
        let (now, host) = (self.now, &self.hosts[index]);
        let owner = self.store.owners.get(key);
        if host.is_cut_off(now) {
            return owner == Some(&(index, host.life)) && now < host.lease_until;
        }
        let Some(&(owner, life)) = owner else { return true };
        if let Some(until) = self.store.dead_until.get(&(owner, life)) {
            return *until <= now;
        }
        let other = &self.hosts[owner];
        let yields = other.frozen_until <= now && !other.is_cut_off(now) && !other.has_holder(key);
        owner == index || yields || other.lease_until <= now
    }

    fn reply(&mut self, (worker, stream): (usize, u32), item: v1::ServerItem) {
        let arrival = self.arrival(|world| &mut world.to_workers);
        let bytes = v1::ServerMessage { items: vec![item] }.encode_to_vec();
        self.to_workers.push_back(Message { arrival, worker, stream, bytes });
    }
}

fn names(keys: Vec<v1::KeyRequest>) -> Keys {
    keys.into_iter().map(|key| key.key).collect()
}

fn reject(id: u64, reason: RejectReason) -> v1::ServerItem {
    v1::Reject { id, reason: reason.into(), ..Default::default() }.into()
}

fn grant(id: u64, keys: &Keys, heartbeat_seq: u64, valid_ms: u32) -> v1::ServerItem {
    let keys = vec![v1::KeyGrant { token: id, barrier: id }; keys.len()];
    v1::Grant { id, keys, heartbeat_seq, valid_ms, ..Default::default() }.into()
}
