//! One session at the model host: what was asked, granted and ended in it, and whether the plugin keeps the protocol.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use turnstile_protocol::v1::{
    Acquire, Ending, Grant, HeartbeatAck, Hello, KeyGrant, Reject, RejectReason, Release, ServerItem, server_item::Item,
};
use turnstile_protocol::{HOLDER_SECRET_BYTES, KEYS_PER_ACQUIRE_MAX};

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    Waiting,
    Granted(Locks),
    Over,
}

/// What a hold has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Locks {
    pub(super) tokens: Vec<KeyGrant>,
    /// By which others join it.
    pub(super) secret: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) acquire: Acquire,
    pub(super) since: Duration,
    /// Its place among all requests at the host.
    pub(super) place: u64,
    pub(super) fate: Fate,
}

impl Wanted {
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.acquire.keys.iter().map(|key| key.key.as_str())
    }

    pub(super) fn wait_end(&self) -> Duration {
        self.since + Duration::from_millis(self.acquire.wait_ms.into())
    }
}

pub(super) struct Session {
    /// The stream that it is connected by.
    pub(super) stream: Option<u32>,
    pub(super) wanted: BTreeMap<u64, Wanted>,
    pub(super) outbox: VecDeque<ServerItem>,
    pub(super) faults: Vec<String>,
    pub(super) promise: Option<Duration>,
    /// When its last heartbeat was processed: it ends a TTL later.
    pub(super) heard: Duration,
    /// Of the host, which goes into holder secrets.
    incarnation: u64,
    generation: u64,
    heartbeat_seq: u64,
    last_id: u64,
    /// When each heartbeat was sent: the plugin's promise counts from there.
    sent_at: BTreeMap<u64, Duration>,
}

impl Session {
    pub(super) fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            stream: None,
            wanted: BTreeMap::new(),
            outbox: VecDeque::new(),
            faults: Vec::new(),
            promise: None,
            heard: Duration::ZERO,
            generation: 0,
            heartbeat_seq: 0,
            last_id: 0,
            sent_at: BTreeMap::new(),
        }
    }

    /// A stream brought this Hello, and is the session's from now on.
    pub(super) fn greet(&mut self, now: Duration, stream: u32, hello: &Hello) {
        if hello.generation <= self.generation {
            self.fault(format!("generation {} after {}", hello.generation, self.generation));
        }
        self.generation = hello.generation;
        self.stream = Some(stream);
        self.outbox.clear();
        self.note_heartbeat(now, hello.heartbeat_seq);
    }

    pub(super) fn heartbeat(&mut self, now: Duration, seq: u64, valid: Duration) {
        self.note_heartbeat(now, seq);
        self.renew(valid);
        self.outbox.push_back(HeartbeatAck { seq, valid_ms: valid.as_millis() as u32 }.into());
    }

    pub(super) fn acquire(&mut self, now: Duration, place: u64, acquire: Acquire) {
        let id = acquire.id;
        if id <= self.last_id {
            return self.fault(format!("request {id} after {}", self.last_id));
        }
        let distinct: HashSet<&str> = acquire.keys.iter().map(|key| key.key.as_str()).collect();
        if !(1..=KEYS_PER_ACQUIRE_MAX).contains(&acquire.keys.len()) || distinct.len() < acquire.keys.len() {
            self.fault(format!("request {id} wants the keys {distinct:?}, some twice"));
        }
        self.last_id = self.last_id.max(id);
        self.wanted.insert(id, Wanted { acquire, since: now, place, fate: Fate::Waiting });
    }

    /// Grants a request; one that was granted before is granted again, as it was.
    pub(super) fn grant(&mut self, now: Duration, id: u64, valid: Duration, tokens: &mut u64) {
        let Some(wanted) = self.wanted.get_mut(&id) else { return };
        let locks = match &wanted.fate {
            Fate::Over => return,
            Fate::Granted(locks) => locks.clone(),
            Fate::Waiting => {
                let granted = wanted.keys().map(|_| next(tokens)).collect();
                Locks { tokens: granted, secret: secret(&wanted.acquire, self.incarnation, *tokens) }
            }
        };
        self.grant_locks(now, id, valid, locks);
    }

    pub(super) fn grant_locks(&mut self, now: Duration, id: u64, valid: Duration, locks: Locks) {
        let Some(wanted) = self.wanted.get_mut(&id) else { return };
        wanted.fate = Fate::Granted(locks.clone());
        let Locks { tokens: keys, secret: holder_secret } = locks;
        let waited_ms = now.saturating_sub(wanted.since).as_millis() as u32;
        let (heartbeat_seq, valid_ms) = (self.heartbeat_seq, valid.as_millis() as u32);
        self.renew(valid);
        self.outbox.push_back(Grant { id, keys, holder_secret, waited_ms, heartbeat_seq, valid_ms }.into());
    }

    /// Changes the grant that goes out next, as a faulty host would.
    pub(super) fn spoil(&mut self, spoil: impl FnOnce(&mut Grant)) {
        if let Some(ServerItem { item: Some(Item::Grant(grant)) }) = self.outbox.back_mut() {
            spoil(grant);
        }
    }

    pub(super) fn reject(&mut self, id: u64, reason: RejectReason) {
        self.finish(id);
        self.outbox.push_back(Reject { id, reason: reason.into(), retry_after_ms: 0, queue_length: 3 }.into());
    }

    pub(super) fn cancel(&mut self, id: u64) {
        // One that is over already crossed our rejection on the way.
        if self.wanted.contains_key(&id) {
            self.finish(id);
        } else {
            self.fault(format!("a cancel of the unknown request {id}"));
        }
    }

    /// `again`: it is told in a Resume, and may have been told before.
    pub(super) fn release(&mut self, release: &Release, again: bool) {
        let id = release.id;
        if release.ending() == Ending::Unspecified {
            self.fault(format!("request {id} was released without an ending"));
        }
        let fate = self.wanted.get(&id).map(|wanted| wanted.fate.clone());
        if !again && !matches!(fate, Some(Fate::Granted(_))) {
            self.fault(format!("a release of request {id}, which is {fate:?}"));
        }
        self.finish(id);
    }

    pub(super) fn finish(&mut self, id: u64) {
        if let Some(wanted) = self.wanted.get_mut(&id) {
            wanted.fate = Fate::Over;
        }
    }

    pub(super) fn fault(&mut self, what: String) {
        self.faults.push(what);
    }

    fn note_heartbeat(&mut self, now: Duration, seq: u64) {
        if seq <= self.heartbeat_seq {
            self.fault(format!("heartbeat {seq} after {}", self.heartbeat_seq));
        }
        self.heartbeat_seq = seq;
        self.heard = now;
        self.sent_at.insert(seq, now);
    }

    fn renew(&mut self, valid: Duration) {
        let until = self.sent_at.get(&self.heartbeat_seq).map(|sent| *sent + valid);
        self.promise = self.promise.max(until);
    }
}

/// The token after `last`.
pub(super) fn next(last: &mut u64) -> KeyGrant {
    *last += 1;
    KeyGrant { token: *last, barrier: *last }
}

/// That of the hold that is joined, a new one, or none, as was asked for.
fn secret(acquire: &Acquire, incarnation: u64, number: u64) -> Vec<u8> {
    if !acquire.reentrant {
        return acquire.reentry_secret.clone();
    }
    let mut secret = [incarnation.to_be_bytes(), number.to_be_bytes()].concat();
    secret.resize(HOLDER_SECRET_BYTES, 0xa5);
    secret
}
