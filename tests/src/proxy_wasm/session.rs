//! One session at the model host: what was asked, granted and ended in it, and whether the plugin keeps the protocol.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use turnstile_protocol::v1::{
    Acquire, Ending, Grant, HeartbeatAck, Hello, KeyGrant, Reject, RejectReason, Release, ServerItem,
};

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    Waiting,
    Granted(Vec<KeyGrant>),
    Over,
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
    generation: u64,
    heartbeat_seq: u64,
    last_id: u64,
    /// When each heartbeat was sent: the plugin's promise counts from there.
    sent_at: BTreeMap<u64, Duration>,
}

impl Session {
    pub(super) fn new() -> Self {
        Self {
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
        if acquire.keys.is_empty() {
            self.fault(format!("request {id} wants no key"));
        }
        self.last_id = self.last_id.max(id);
        self.wanted.insert(id, Wanted { acquire, since: now, place, fate: Fate::Waiting });
    }

    /// Grants a request; one that was granted before is granted again, as it was.
    pub(super) fn grant(&mut self, now: Duration, id: u64, valid: Duration, tokens: &mut u64) {
        let Some(wanted) = self.wanted.get_mut(&id) else { return };
        let keys = match &wanted.fate {
            Fate::Over => return,
            Fate::Granted(keys) => keys.clone(),
            Fate::Waiting => {
                let next = |_| {
                    *tokens += 1;
                    KeyGrant { token: *tokens, barrier: *tokens }
                };
                wanted.acquire.keys.iter().map(next).collect()
            }
        };
        wanted.fate = Fate::Granted(keys.clone());
        let waited_ms = now.saturating_sub(wanted.since).as_millis() as u32;
        let (heartbeat_seq, valid_ms) = (self.heartbeat_seq, valid.as_millis() as u32);
        self.renew(valid);
        self.outbox.push_back(Grant { id, keys, holder_secret: Vec::new(), waited_ms, heartbeat_seq, valid_ms }.into());
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
