//! The session protocol from the host's side, as a model in virtual time: it speaks, records and checks; tests script it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use prost::Message;
use turnstile_protocol::v1::{
    Acquire, ClientMessage, Ending, GoAway, Grant, HeartbeatAck, Hello, KeyGrant, Limits, Lost,
    LostReason, Reject, RejectReason, Release, Resume, ServerItem, ServerMessage, Welcome,
    client_item::Item,
};

use super::abi::Headers;
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
    /// Which stream, counted from 1 over all streams to this host.
    pub stream: u32,
    /// What.
    pub item: Item,
}

/// What the host knows of a request.
#[derive(Clone, Debug, PartialEq)]
enum Fate {
    Waiting,
    Granted(Vec<KeyGrant>),
    Over,
}

#[derive(Debug)]
struct Wanted {
    acquire: Acquire,
    since: Duration,
    fate: Fate,
}

struct Connection {
    token: u32,
    number: u32,
    greeted: bool,
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
    connection: Option<Connection>,
    streams: u32,
    session: u64,
    generation: u64,
    heartbeat_seq: u64,
    last_id: u64,
    wanted: BTreeMap<u64, Wanted>,
    queues: BTreeMap<String, VecDeque<u64>>,
    tokens: u64,
    outbox: VecDeque<ServerItem>,
    /// When each heartbeat was sent: the plugin's promise counts from there.
    sent_at: BTreeMap<u64, Duration>,
    promise: Option<Duration>,
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
            connection: None,
            streams: 0,
            session: 0,
            generation: 0,
            heartbeat_seq: 0,
            last_id: 0,
            wanted: BTreeMap::new(),
            queues: BTreeMap::new(),
            tokens: 7 << 20,
            outbox: VecDeque::new(),
            sent_at: BTreeMap::new(),
            promise: None,
        }
    }

    /// Does one thing that is to be done now; `false` if there is none.
    pub(super) fn step(&mut self, vm: &mut Vm) -> Result<bool, VmError> {
        if self.link == Link::Frozen {
            return Ok(false);
        }
        if self.accept(vm)? || self.hang_up(vm)? {
            return Ok(true);
        }
        let Some(token) = self.connection.as_ref().map(|connection| connection.token) else {
            return Ok(false);
        };
        let now = vm.state().now;
        let message = vm
            .state_mut()
            .streams
            .get_mut(&token)
            .and_then(|stream| stream.outbox.pop_front());
        if let Some(message) = message {
            match ClientMessage::decode(message.as_slice()) {
                Ok(message) => message
                    .items
                    .into_iter()
                    .for_each(|item| self.take(now, item.item)),
                Err(error) => self.fault(format!("no ClientMessage: {error}")),
            }
            return Ok(true);
        }
        self.time_out(now);
        self.send(vm, token)
    }

    /// When something falls due without anything arriving.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let locks =
            self.policy == Policy::Lock && self.link == Link::Up && self.connection.is_some();
        let due = self
            .wanted
            .values()
            .filter(|wanted| wanted.fate == Fate::Waiting)
            .map(wait_end);
        due.min().filter(|_| locks)
    }

    pub(super) fn faults(&self) -> Vec<String> {
        self.faults
            .iter()
            .map(|fault| format!("{}: {fault}", self.cluster))
            .collect()
    }

    /// Until when the plugin may believe in holds of this session.
    pub(super) fn promise(&self) -> Option<Duration> {
        self.promise
    }

    pub(super) fn waiting(&self) -> Vec<u64> {
        self.wanted
            .iter()
            .filter(|(_, wanted)| wanted.fate == Fate::Waiting)
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn holding(&self) -> Vec<u64> {
        self.wanted
            .iter()
            .filter(|(_, wanted)| matches!(wanted.fate, Fate::Granted(_)))
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn grant(&mut self, now: Duration, id: u64) {
        let Some(wanted) = self.wanted.get_mut(&id) else {
            return;
        };
        let grants = match &wanted.fate {
            Fate::Over => return,
            Fate::Granted(grants) => grants.clone(),
            Fate::Waiting => {
                let mut token = || {
                    self.tokens += 1;
                    KeyGrant {
                        token: self.tokens,
                        barrier: self.tokens,
                    }
                };
                wanted.acquire.keys.iter().map(|_| token()).collect()
            }
        };
        wanted.fate = Fate::Granted(grants.clone());
        let grant = Grant {
            id,
            keys: grants,
            holder_secret: Vec::new(),
            waited_ms: now.saturating_sub(wanted.since).as_millis() as u32,
            heartbeat_seq: self.heartbeat_seq,
            valid_ms: self.valid.as_millis() as u32,
        };
        self.renew(self.heartbeat_seq);
        self.outbox.push_back(grant.into());
    }

    pub(super) fn reject(&mut self, id: u64, reason: RejectReason) {
        self.finish(id);
        let reject = Reject {
            id,
            reason: reason.into(),
            retry_after_ms: 0,
            queue_length: 3,
        };
        self.outbox.push_back(reject.into());
    }

    pub(super) fn lose(&mut self, id: u64, reason: LostReason) {
        self.outbox.push_back(
            Lost {
                id,
                reason: reason.into(),
            }
            .into(),
        );
    }

    pub(super) fn go_away(&mut self) {
        self.outbox.push_back(
            GoAway {
                reason: "draining".to_owned(),
            }
            .into(),
        );
    }

    /// Ends the stream; what is on it in either direction is lost.
    pub(super) fn break_stream(&mut self, vm: &mut Vm, status: u32) -> Result<(), VmError> {
        self.outbox.clear();
        match self.connection.take() {
            Some(connection) => vm.grpc_close(connection.token, status, "the stream broke"),
            None => Ok(()),
        }
    }

    /// Forgets everything, as a host that was started anew has.
    pub(super) fn restart(&mut self) {
        self.wanted.clear();
        self.queues.clear();
        self.outbox.clear();
        self.session += 1_000;
        self.refuse_resume = true;
    }

    /// A stream that the plugin opened and we have not seen yet.
    fn accept(&mut self, vm: &mut Vm) -> Result<bool, VmError> {
        let known = self.connection.as_ref().map(|connection| connection.token);
        let state = vm.state_mut();
        let new = state
            .streams
            .iter_mut()
            .find(|(_, stream)| stream.cluster == self.cluster && !stream.answered);
        let Some((token, stream)) = new else {
            return Ok(false);
        };
        stream.answered = true;
        let (token, method) = (*token, stream.method.clone());
        if self.link == Link::Down {
            vm.grpc_close(token, 14, "upstream connect error")?;
            return Ok(true);
        }
        let expected = format!(
            "/{}/{}",
            turnstile_protocol::SERVICE,
            turnstile_protocol::METHOD
        );
        if method != expected {
            self.fault(format!("a stream for {method} instead of {expected}"));
        }
        if let Some(known) = known {
            // One stream per worker: the older one is of a generation that is over.
            vm.state_mut().streams.remove(&known);
        }
        self.streams += 1;
        self.connection = Some(Connection {
            token,
            number: self.streams,
            greeted: false,
        });
        self.outbox.clear();
        let headers: Headers = [(":status", "200"), ("content-type", "application/grpc")]
            .into_iter()
            .collect();
        vm.grpc_headers(token, headers)?;
        Ok(true)
    }

    /// The plugin ended the stream, or the host is not there any more.
    fn hang_up(&mut self, vm: &mut Vm) -> Result<bool, VmError> {
        let Some(token) = self.connection.as_ref().map(|connection| connection.token) else {
            return Ok(false);
        };
        let Some((local, pending)) = vm
            .state()
            .streams
            .get(&token)
            .map(|stream| (stream.local, !stream.outbox.is_empty()))
        else {
            self.connection = None;
            return Ok(true);
        };
        match (self.link, local) {
            (Link::Down, _) => self.break_stream(vm, 13)?,
            (_, LocalEnd::Cancelled) => {
                vm.state_mut().streams.remove(&token);
                self.connection = None;
            }
            (_, LocalEnd::Closed) if !pending => {
                self.connection = None;
                vm.grpc_close(token, 0, "")?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn send(&mut self, vm: &mut Vm, token: u32) -> Result<bool, VmError> {
        if self.outbox.is_empty() {
            return Ok(false);
        }
        let message = ServerMessage {
            items: self.outbox.drain(..).collect(),
        };
        vm.grpc_message(token, message.encode_to_vec())?;
        Ok(true)
    }

    fn take(&mut self, now: Duration, item: Option<Item>) {
        let Some(item) = item else {
            return self.fault("an item of an unknown kind".to_owned());
        };
        let Some(connection) = &mut self.connection else {
            return;
        };
        let (stream, first) = (
            connection.number,
            !std::mem::replace(&mut connection.greeted, true),
        );
        if first != matches!(item, Item::Hello(_)) {
            self.fault(format!("item out of place: {item:?}"));
        }
        self.received.push(Received {
            at: now,
            stream,
            item: item.clone(),
        });
        match item {
            Item::Hello(hello) => self.hello(now, hello),
            Item::Acquire(acquire) => self.acquire(now, acquire),
            Item::Cancel(cancel) => self.cancel(now, cancel.id),
            Item::Release(release) => self.release(now, &release, false),
            Item::Heartbeat(heartbeat) => {
                self.note_heartbeat(now, heartbeat.seq);
                self.renew(heartbeat.seq);
                let valid_ms = self.valid.as_millis() as u32;
                self.outbox.push_back(
                    HeartbeatAck {
                        seq: heartbeat.seq,
                        valid_ms,
                    }
                    .into(),
                );
            }
        }
    }

    fn note_heartbeat(&mut self, now: Duration, seq: u64) {
        if seq <= self.heartbeat_seq {
            self.fault(format!("heartbeat {seq} after {}", self.heartbeat_seq));
        }
        self.heartbeat_seq = seq;
        self.sent_at.insert(seq, now);
    }

    fn renew(&mut self, seq: u64) {
        let until = self.sent_at.get(&seq).map(|sent| *sent + self.valid);
        self.promise = self.promise.max(until);
    }

    fn hello(&mut self, now: Duration, hello: Hello) {
        if hello.protocol_version != turnstile_protocol::VERSION {
            self.fault(format!("protocol version {}", hello.protocol_version));
        }
        if hello.worker.is_empty() {
            self.fault("a Hello without a worker".to_owned());
        }
        let resumed = match &hello.resume {
            None => false,
            Some(resume) => {
                let known =
                    resume.session_id == self.session && resume.incarnation == self.incarnation();
                known && !self.refuse_resume
            }
        };
        if resumed {
            if hello.generation <= self.generation {
                self.fault(format!(
                    "generation {} after {}",
                    hello.generation, self.generation
                ));
            }
        } else {
            self.session += 1;
            self.wanted.clear();
            self.queues.clear();
            self.sent_at.clear();
            (self.heartbeat_seq, self.last_id, self.promise) = (0, 0, None);
            self.refuse_resume = false;
        }
        self.generation = hello.generation;
        self.note_heartbeat(now, hello.heartbeat_seq);
        self.outbox.push_back(self.welcome(resumed).into());
        if let Some(resume) = hello.resume.filter(|_| resumed) {
            self.resume(now, resume);
        }
    }

    fn incarnation(&self) -> String {
        format!("{}-incarnation", self.cluster)
    }

    fn welcome(&self, resumed: bool) -> Welcome {
        Welcome {
            protocol_version: turnstile_protocol::VERSION,
            incarnation: self.incarnation(),
            session_id: self.session,
            resumed,
            ttl_ms: self.ttl.as_millis() as u32,
            heartbeat_ms: self.heartbeat.as_millis() as u32,
            limits: Some(Limits {
                key_max_bytes: turnstile_protocol::KEY_MAX_BYTES as u32,
                keys_per_acquire_max: 8,
                waiters_per_session_max: 10_000,
                message_max_bytes: turnstile_protocol::MESSAGE_MAX_BYTES as u32,
            }),
        }
    }

    fn resume(&mut self, now: Duration, resume: Resume) {
        for release in &resume.releases {
            self.release(now, release, true);
        }
        let listed: Vec<u64> = resume
            .holds
            .iter()
            .copied()
            .chain(resume.waiters.iter().map(|acquire| acquire.id))
            .collect();
        for id in resume.holds {
            if !self
                .wanted
                .get(&id)
                .is_some_and(|wanted| matches!(wanted.fate, Fate::Granted(_)))
            {
                self.lose(id, LostReason::Unknown);
            }
        }
        for acquire in resume.waiters {
            match self
                .wanted
                .get(&acquire.id)
                .map(|wanted| wanted.fate.clone())
            {
                None => self.admit(now, acquire),
                Some(Fate::Granted(_)) => self.grant(now, acquire.id),
                Some(Fate::Waiting) => {}
                Some(Fate::Over) => {
                    self.fault(format!("request {} waits, and is over", acquire.id))
                }
            }
        }
        // What the plugin does not list was never acted on.
        let unlisted: Vec<u64> = self
            .wanted
            .iter()
            .filter(|(id, w)| w.fate != Fate::Over && !listed.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in unlisted {
            self.finish(id);
            self.hand_on(now);
        }
    }

    fn acquire(&mut self, now: Duration, acquire: Acquire) {
        if acquire.id <= self.last_id {
            self.fault(format!("request {} after {}", acquire.id, self.last_id));
        }
        if acquire.keys.is_empty() {
            self.fault(format!("request {} wants no key", acquire.id));
        }
        self.admit(now, acquire);
    }

    fn admit(&mut self, now: Duration, acquire: Acquire) {
        let id = acquire.id;
        self.last_id = self.last_id.max(id);
        let keys: Vec<String> = acquire.keys.iter().map(|key| key.key.clone()).collect();
        let patient = acquire.wait_ms > 0;
        self.wanted.insert(
            id,
            Wanted {
                acquire,
                since: now,
                fate: Fate::Waiting,
            },
        );
        match self.policy {
            Policy::Grant => self.grant(now, id),
            Policy::Script => {}
            Policy::Lock => {
                let free = keys
                    .iter()
                    .all(|key| self.queues.get(key).is_none_or(VecDeque::is_empty));
                if !free && !patient {
                    return self.reject(id, RejectReason::Conflict);
                }
                for key in keys {
                    self.queues.entry(key).or_default().push_back(id);
                }
                self.hand_on(now);
            }
        }
    }

    /// Grants whoever has come to the head of all its queues.
    fn hand_on(&mut self, now: Duration) {
        let at_head = |id: &u64, wanted: &Wanted| {
            let first = |key: &str| self.queues.get(key).and_then(VecDeque::front) == Some(id);
            wanted.fate == Fate::Waiting && wanted.acquire.keys.iter().all(|key| first(&key.key))
        };
        if self.policy != Policy::Lock {
            return;
        }
        let next: Vec<u64> = self
            .wanted
            .iter()
            .filter(|(id, wanted)| at_head(id, wanted))
            .map(|(id, _)| *id)
            .collect();
        next.into_iter().for_each(|id| self.grant(now, id));
    }

    fn time_out(&mut self, now: Duration) {
        if self.policy == Policy::Lock {
            let over = |wanted: &&Wanted| wanted.fate == Fate::Waiting && wait_end(wanted) <= now;
            let late: Vec<u64> = self
                .wanted
                .values()
                .filter(over)
                .map(|wanted| wanted.acquire.id)
                .collect();
            late.into_iter()
                .for_each(|id| self.reject(id, RejectReason::WaitTimeout));
            self.hand_on(now);
        }
    }

    fn cancel(&mut self, now: Duration, id: u64) {
        match self.wanted.get(&id).map(|wanted| &wanted.fate) {
            Some(Fate::Waiting | Fate::Granted(_)) => self.finish(id),
            // It crossed our rejection, or the plugin cancels twice.
            Some(Fate::Over) => {}
            None => self.fault(format!("a cancel of the unknown request {id}")),
        }
        self.hand_on(now);
    }

    fn release(&mut self, now: Duration, release: &Release, again: bool) {
        if release.ending() == Ending::Unspecified {
            self.fault(format!(
                "request {} was released without an ending",
                release.id
            ));
        }
        match self.wanted.get(&release.id).map(|wanted| &wanted.fate) {
            Some(Fate::Granted(_)) => self.finish(release.id),
            _ if again => self.finish(release.id),
            other => {
                let fault = format!("a release of request {}, which is {other:?}", release.id);
                self.fault(fault);
            }
        }
        self.hand_on(now);
    }

    fn finish(&mut self, id: u64) {
        if let Some(wanted) = self.wanted.get_mut(&id) {
            wanted.fate = Fate::Over;
        }
        self.queues.retain(|_, queue| {
            queue.retain(|waiting| *waiting != id);
            !queue.is_empty()
        });
    }

    fn fault(&mut self, what: String) {
        self.faults.push(what);
    }
}

fn wait_end(wanted: &Wanted) -> Duration {
    wanted.since + Duration::from_millis(wanted.acquire.wait_ms.into())
}
