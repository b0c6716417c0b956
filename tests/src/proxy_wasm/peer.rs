//! The session protocol from the host's side, as a model in virtual time: it speaks, records and checks; tests script it.

use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use prost::Message;
use turnstile_protocol::v1::{
    Acquire, ClientMessage, GoAway, Grant, Hello, KeyGrant, Limits, Lost, LostReason, RejectReason, Resume, ServerItem,
    ServerMessage, Welcome, client_item::Item,
};

use super::abi::Headers;
use super::session::{Fate, Locks, Session, Wanted, next};
use super::state::LocalEnd;
use super::vm::{Vm, VmError};

/// What the host does with an Acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Grants it at once, held or not.
    Grant,
    /// Leaves it to the test.
    Script,
    /// Keeps one lock per key, first come, first served; a try that finds it held is a conflict.
    Lock,
}

/// Whether the host can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// Connections are refused.
    Down,
    /// Connections stand, and the host neither reads nor writes.
    Frozen,
}

/// An item that the host took from a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// When, on the virtual clock.
    pub at: Duration,
    /// The stream it came on.
    pub stream: u32,
    /// What.
    pub item: Item,
}

/// The state of one model host.
pub(super) struct Peer {
    cluster: String,
    pub(super) link: Link,
    pub(super) policy: Policy,
    pub(super) ttl: Duration,
    pub(super) heartbeat: Duration,
    pub(super) valid: Duration,
    pub(super) refuse_resume: bool,
    pub(super) received: Vec<Received>,
    faults: Vec<String>,
    /// Streams that were accepted, and the sessions that they are of once a Hello came.
    streams: BTreeMap<u32, Option<u64>>,
    sessions: BTreeMap<u64, Session>,
    sessions_opened: u64,
    incarnation: u64,
    places: u64,
    tokens: u64,
}

impl Peer {
    pub(super) fn new(cluster: &str, up: bool) -> Self {
        Self {
            cluster: cluster.to_owned(),
            link: if up { Link::Up } else { Link::Down },
            policy: Policy::Grant,
            ttl: Duration::from_secs(4),
            heartbeat: Duration::from_secs(1),
            valid: Duration::from_millis(3_500),
            refuse_resume: false,
            received: Vec::new(),
            faults: Vec::new(),
            streams: BTreeMap::new(),
            sessions: BTreeMap::new(),
            sessions_opened: 0,
            incarnation: first_incarnation(cluster),
            places: 0,
            tokens: 7 << 20,
        }
    }

    /// Does one thing that is to be done now; `false` if there is none.
    pub(super) fn step(&mut self, vm: &mut Vm) -> Result<bool, VmError> {
        if self.link == Link::Frozen {
            return Ok(false);
        }
        if self.accept(vm)? || self.hang_up(vm)? || self.read(vm) || self.expire(vm)? {
            return Ok(true);
        }
        self.decide(vm.state().now);
        self.write(vm)
    }

    /// When something falls due without anything arriving.
    pub(super) fn next_due(&self) -> Option<Duration> {
        if self.policy != Policy::Lock || self.link != Link::Up {
            return None;
        }
        let connected = self.sessions.values().filter(|session| session.stream.is_some());
        let wanted = connected.flat_map(|session| session.wanted.values());
        let waits = wanted.filter(|wanted| wanted.fate == Fate::Waiting).map(Wanted::wait_end);
        waits.chain(self.sessions.values().map(|session| session.heard + self.ttl)).min()
    }

    pub(super) fn faults(&self) -> Vec<String> {
        let faults = self.faults.iter().chain(self.sessions.values().flat_map(|session| &session.faults));
        faults.map(|fault| format!("{}: {fault}", self.cluster)).collect()
    }

    /// Until when the plugin may believe in holds of its latest session.
    pub(super) fn promise(&self) -> Option<Duration> {
        self.sessions.values().next_back().and_then(|session| session.promise)
    }

    pub(super) fn waiting(&self) -> Vec<u64> {
        self.ids(|fate| *fate == Fate::Waiting)
    }

    pub(super) fn holding(&self) -> Vec<u64> {
        self.ids(|fate| matches!(fate, Fate::Granted(_)))
    }

    pub(super) fn grant(&mut self, now: Duration, id: u64) {
        let (valid, mut tokens) = (self.valid, self.tokens);
        self.with_session_of(id, |session| session.grant(now, id, valid, &mut tokens));
        self.tokens = tokens;
    }

    pub(super) fn grant_spoilt(&mut self, now: Duration, id: u64, spoil: impl FnOnce(&mut Grant)) {
        self.grant(now, id);
        self.with_session_of(id, |session| session.spoil(spoil));
    }

    pub(super) fn reject(&mut self, id: u64, reason: RejectReason) {
        self.with_session_of(id, |session| session.reject(id, reason));
    }

    pub(super) fn lose(&mut self, id: u64, reason: LostReason) {
        self.with_session_of(id, |session| session.outbox.push_back(Lost { id, reason: reason.into() }.into()));
    }

    pub(super) fn go_away(&mut self) {
        for session in self.sessions.values_mut().filter(|session| session.stream.is_some()) {
            session.outbox.push_back(GoAway { reason: "draining".to_owned() }.into());
        }
    }

    /// Ends all streams; what is on them in either direction is lost.
    pub(super) fn break_streams(&mut self, vm: &mut Vm, status: u32) -> Result<(), VmError> {
        for token in std::mem::take(&mut self.streams).into_keys() {
            self.suspend(token);
            vm.grpc_close(token, status, "the stream broke")?;
        }
        Ok(())
    }

    /// Becomes another run, which knows nothing.
    pub(super) fn restart(&mut self, vm: &mut Vm) -> Result<(), VmError> {
        self.break_streams(vm, 13)?;
        self.incarnation += 1;
        self.link = Link::Up;
        for session in self.sessions.values_mut() {
            session.wanted.clear();
        }
        Ok(())
    }

    /// A stream that the plugin opened and we have not seen yet.
    fn accept(&mut self, vm: &mut Vm) -> Result<bool, VmError> {
        let state = vm.state_mut();
        let new = state.streams.iter_mut().find(|(_, stream)| stream.cluster == self.cluster && !stream.answered);
        let Some((token, stream)) = new else { return Ok(false) };
        stream.answered = true;
        let (token, method) = (*token, stream.method.clone());
        if self.link == Link::Down {
            vm.grpc_close(token, 14, "upstream connect error")?;
            return Ok(true);
        }
        let expected = format!("/{}/{}", turnstile_protocol::SERVICE, turnstile_protocol::METHOD);
        if method != expected {
            self.faults.push(format!("a stream for {method} instead of {expected}"));
        }
        self.streams.insert(token, None);
        let headers: Headers = [(":status", "200"), ("content-type", "application/grpc")].into_iter().collect();
        vm.grpc_headers(token, headers)?;
        Ok(true)
    }

    /// The plugin ended a stream, or the host is not there any more.
    fn hang_up(&mut self, vm: &mut Vm) -> Result<bool, VmError> {
        if self.link == Link::Down && !self.streams.is_empty() {
            self.break_streams(vm, 13)?;
            return Ok(true);
        }
        for token in self.streams.keys().copied().collect::<Vec<_>>() {
            let end = vm.state().streams.get(&token).map(|stream| (stream.local, stream.outbox.is_empty()));
            match end {
                Some((LocalEnd::Closed, true)) => vm.grpc_close(token, 0, "")?,
                Some((LocalEnd::Cancelled, _)) => drop(vm.state_mut().streams.remove(&token)),
                None => {}
                Some(_) => continue,
            }
            self.streams.remove(&token);
            self.suspend(token);
            return Ok(true);
        }
        Ok(false)
    }

    /// Ends a session that was not heard of for its TTL. (The model has no lock delay: it grants on at once.)
    fn expire(&mut self, vm: &mut Vm) -> Result<bool, VmError> {
        let now = vm.state().now;
        let Some(number) =
            self.sessions.iter().find(|(_, session)| session.heard + self.ttl <= now).map(|(number, _)| *number)
        else {
            return Ok(false);
        };
        if let Some(session) = self.sessions.remove(&number) {
            self.faults.extend(session.faults);
            if let Some(token) = session.stream {
                self.streams.remove(&token);
                vm.grpc_close(token, 0, "the session has expired")?;
            }
        }
        Ok(true)
    }

    fn suspend(&mut self, token: u32) {
        for session in self.sessions.values_mut().filter(|session| session.stream == Some(token)) {
            session.stream = None;
            session.outbox.clear();
        }
    }

    fn read(&mut self, vm: &mut Vm) -> bool {
        let now = vm.state().now;
        for token in self.streams.keys().copied().collect::<Vec<_>>() {
            let stream = vm.state_mut().streams.get_mut(&token);
            let Some(message) = stream.and_then(|stream| stream.outbox.pop_front()) else { continue };
            if message.len() > turnstile_protocol::MESSAGE_MAX_BYTES {
                self.faults.push(format!("a message of {} bytes", message.len()));
            }
            match ClientMessage::decode(message.as_slice()) {
                Ok(message) => message.items.into_iter().for_each(|item| self.take(now, token, item.item)),
                Err(error) => self.faults.push(format!("no ClientMessage: {error}")),
            }
            return true;
        }
        false
    }

    fn write(&mut self, vm: &mut Vm) -> Result<bool, VmError> {
        for session in self.sessions.values_mut() {
            let Some(token) = session.stream.filter(|_| !session.outbox.is_empty()) else { continue };
            let message = ServerMessage { items: session.outbox.drain(..).collect() };
            vm.grpc_message(token, message.encode_to_vec())?;
            return Ok(true);
        }
        Ok(false)
    }

    fn take(&mut self, now: Duration, stream: u32, item: Option<Item>) {
        let Some(item) = item else { return self.faults.push("an item of an unknown kind".to_owned()) };
        self.received.push(Received { at: now, stream, item: item.clone() });
        let greeted = self.streams.get(&stream).copied().flatten();
        let (item, number) = match (item, greeted) {
            (Item::Hello(hello), None) => return self.hello(now, stream, hello),
            (item, Some(number)) => (item, number),
            (item, None) => return self.faults.push(format!("before a Hello: {item:?}")),
        };
        let (valid, place) = (self.valid, self.next_place());
        // A stream that another one of its session has overtaken is not heard any more.
        let session = self.sessions.get_mut(&number).filter(|session| session.stream == Some(stream));
        let Some(session) = session else { return };
        match item {
            Item::Hello(_) => session.fault("a second Hello".to_owned()),
            Item::Acquire(acquire) => {
                let (id, patient) = (acquire.id, acquire.wait_ms > 0);
                session.acquire(now, place, acquire);
                self.admit(now, number, id, patient);
            }
            Item::Cancel(cancel) => session.cancel(cancel.id),
            Item::Release(release) => session.release(&release, false),
            Item::Heartbeat(heartbeat) => session.heartbeat(now, heartbeat.seq, valid),
        }
    }

    fn hello(&mut self, now: Duration, stream: u32, hello: Hello) {
        if hello.protocol_version != turnstile_protocol::VERSION {
            self.faults.push(format!("protocol version {}", hello.protocol_version));
        }
        if hello.worker.is_empty() || hello.node.is_empty() {
            self.faults.push("a Hello without a node or a worker".to_owned());
        }
        let refuse = hello.resume.is_some() && std::mem::take(&mut self.refuse_resume);
        let resume = hello.resume.as_ref().filter(|resume| {
            !refuse && resume.incarnation == self.incarnation() && self.sessions.contains_key(&resume.session_id)
        });
        let number = match resume {
            Some(resume) => resume.session_id,
            None => self.new_session(),
        };
        let welcome: ServerItem = self.welcome(number, resume.is_some()).into();
        let resume = resume.cloned();
        self.streams.insert(stream, Some(number));
        if let Some(session) = self.sessions.get_mut(&number) {
            session.greet(now, stream, &hello);
            session.outbox.push_back(welcome);
        }
        if let Some(resume) = resume {
            self.resume(now, number, resume);
        }
    }

    fn new_session(&mut self) -> u64 {
        self.sessions_opened += 1;
        self.sessions.insert(self.sessions_opened, Session::new(self.incarnation));
        self.sessions_opened
    }

    fn incarnation(&self) -> String {
        format!("{:016x}", self.incarnation)
    }

    fn welcome(&self, session_id: u64, resumed: bool) -> Welcome {
        Welcome {
            protocol_version: turnstile_protocol::VERSION,
            incarnation: self.incarnation(),
            session_id,
            resumed,
            ttl_ms: self.ttl.as_millis() as u32,
            heartbeat_ms: self.heartbeat.as_millis() as u32,
            limits: Some(Limits {
                key_max_bytes: turnstile_protocol::KEY_MAX_BYTES as u32,
                keys_per_acquire_max: turnstile_protocol::KEYS_PER_ACQUIRE_MAX as u32,
                waiters_per_session_max: 10_000,
                message_max_bytes: turnstile_protocol::MESSAGE_MAX_BYTES as u32,
            }),
        }
    }

    fn resume(&mut self, now: Duration, number: u64, resume: Resume) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        for release in &resume.releases {
            session.release(release, true);
        }
        let waiters = resume.waiters.iter().map(|acquire| acquire.id);
        let listed: HashSet<u64> = resume.holds.iter().copied().chain(waiters).collect();
        for &id in &resume.holds {
            if !session.wanted.get(&id).is_some_and(|wanted| matches!(wanted.fate, Fate::Granted(_))) {
                session.outbox.push_back(Lost { id, reason: LostReason::Unknown.into() }.into());
            }
        }
        // What the plugin does not list was never acted on.
        session.wanted.iter_mut().filter(|(id, _)| !listed.contains(id)).for_each(|(_, w)| w.fate = Fate::Over);
        for acquire in resume.waiters {
            self.resume_waiter(now, number, acquire);
        }
    }

    fn resume_waiter(&mut self, now: Duration, number: u64, acquire: Acquire) {
        let (id, patient) = (acquire.id, acquire.wait_ms > 0);
        let (valid, place) = (self.valid, self.next_place());
        let Some(session) = self.sessions.get_mut(&number) else { return };
        match session.wanted.get(&id).map(|wanted| wanted.fate.clone()) {
            Some(Fate::Waiting) => {}
            Some(Fate::Granted(_)) => session.grant(now, id, valid, &mut self.tokens),
            Some(Fate::Over) => session.fault(format!("request {id} waits, and is over")),
            None => {
                session.acquire(now, place, acquire);
                self.admit(now, number, id, patient);
            }
        }
    }

    fn admit(&mut self, now: Duration, number: u64, id: u64, patient: bool) {
        if self.policy != Policy::Script && self.join(now, number, id) {
            return;
        }
        match self.policy {
            Policy::Script => {}
            Policy::Grant => {
                let (valid, Some(session)) = (self.valid, self.sessions.get_mut(&number)) else { return };
                session.grant(now, id, valid, &mut self.tokens);
            }
            Policy::Lock => {
                self.decide(now);
                let waits = |session: &&mut Session| session.wanted.get(&id).is_some_and(|w| w.fate == Fate::Waiting);
                if let Some(session) = self.sessions.get_mut(&number).filter(waits)
                    && !patient
                {
                    session.reject(id, RejectReason::Conflict);
                }
            }
        }
    }

    /// Lets a request that brings a secret into the hold that has it, with that hold's tokens; further keys cost nothing
    /// here. `false` if it brings none.
    fn join(&mut self, now: Duration, number: u64, id: u64) -> bool {
        let wanted = self.sessions.get(&number).and_then(|session| session.wanted.get(&id));
        let secret = wanted.map(|wanted| wanted.acquire.reentry_secret.clone()).unwrap_or_default();
        if secret.is_empty() {
            return false;
        }
        let mut tokens = self.tokens;
        let joined = self.live().find_map(|hold| match &hold.fate {
            Fate::Granted(locks) if locks.secret == secret => {
                let held: BTreeMap<&str, KeyGrant> = hold.keys().zip(locks.tokens.iter().copied()).collect();
                Some(wanted?.keys().map(|key| held.get(key).copied().unwrap_or_else(|| next(&mut tokens))).collect())
            }
            _ => None,
        });
        self.tokens = tokens;
        let (valid, Some(session)) = (self.valid, self.sessions.get_mut(&number)) else { return true };
        match joined {
            Some(tokens) => session.grant_locks(now, id, valid, Locks { tokens, secret }),
            None => session.reject(id, RejectReason::NoSuchHold),
        }
        true
    }

    /// Ends waits that are over, and grants whoever stands at the head of all its queues.
    fn decide(&mut self, now: Duration) {
        if self.policy != Policy::Lock {
            return;
        }
        let mut all: Vec<(u64, u64, u64)> = Vec::new();
        for (number, session) in &self.sessions {
            let live = session.wanted.iter().filter(|(_, wanted)| wanted.fate != Fate::Over);
            all.extend(live.map(|(id, wanted)| (wanted.place, *number, *id)));
        }
        all.sort_unstable();
        let held = self.live().filter(|wanted| matches!(wanted.fate, Fate::Granted(_)));
        let mut taken: HashSet<String> = held.flat_map(Wanted::keys).map(str::to_owned).collect();
        for (_, number, id) in all {
            let Some(session) = self.sessions.get_mut(&number) else { continue };
            let Some(wanted) = session.wanted.get(&id) else { continue };
            let keys: Vec<String> = wanted.keys().map(str::to_owned).collect();
            // A suspended session keeps its places, and gets no answers.
            let waits = wanted.fate == Fate::Waiting && session.stream.is_some();
            let late = wanted.wait_end() <= now;
            if waits && keys.iter().all(|key| !taken.contains(key)) {
                session.grant(now, id, self.valid, &mut self.tokens);
            } else if waits && late && wanted.acquire.wait_ms > 0 {
                session.reject(id, RejectReason::WaitTimeout);
                continue;
            }
            taken.extend(keys);
        }
    }

    fn next_place(&mut self) -> u64 {
        self.places += 1;
        self.places
    }

    fn live(&self) -> impl Iterator<Item = &Wanted> {
        self.sessions.values().flat_map(|session| session.wanted.values()).filter(|wanted| wanted.fate != Fate::Over)
    }

    fn ids(&self, pick: impl Fn(&Fate) -> bool) -> Vec<u64> {
        self.live().filter(|wanted| pick(&wanted.fate)).map(|wanted| wanted.acquire.id).collect()
    }

    /// Acts in the latest session that knows the request as one that is not over.
    fn with_session_of(&mut self, id: u64, act: impl FnOnce(&mut Session)) {
        let knows = |session: &&mut Session| session.wanted.get(&id).is_some_and(|wanted| wanted.fate != Fate::Over);
        match self.sessions.values_mut().rev().find(knows) {
            Some(session) => act(session),
            None => panic!("the test acts on request {id}, which is none or over"),
        }
    }
}

/// No two hosts have the same, however often they restart.
fn first_incarnation(cluster: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    cluster.hash(&mut hasher);
    hasher.finish() << 16
}
