//! Where things are in the cluster, and what they look like: key names, and the JSON behind them.
//!
//! | key | holds | lives as long as |
//! |---|---|---|
//! | `<prefix>meta` | schema, `epoch_base` | the cluster |
//! | `<prefix>pulse` | nothing of interest: every beat of every host writes it | the cluster |
//! | `<prefix>hosts/<incarnation>` | its TTL and its last beat | its lease |
//! | `<prefix>wake/<incarnation>` | lock keys that it shall look at | the lease of who wrote it last |
//! | `<prefix>keys/<lock key>` | the ownership record | until it is given up, or reaped |
//! | `<prefix>queue/<lock key> <incarnation>` | a place in the queue | the lease of who waits |
//!
//! A lock key has no spaces, so a space ends it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use turnstile_core::{Instant, LockKey};

/// What this version writes.
pub(super) const SCHEMA: u32 = 1;

/// Names of keys under one prefix.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    prefix: String,
}

impl Layout {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(super) fn meta(&self) -> String {
        format!("{}meta", self.prefix)
    }

    /// Its revision shows to whoever beat before whether the cluster has lost that beat.
    pub(super) fn pulse(&self) -> String {
        format!("{}pulse", self.prefix)
    }

    pub(super) fn hosts(&self) -> String {
        format!("{}hosts/", self.prefix)
    }

    pub(super) fn host(&self, name: &str) -> String {
        format!("{}hosts/{name}", self.prefix)
    }

    pub(super) fn wake(&self, name: &str) -> String {
        format!("{}wake/{name}", self.prefix)
    }

    pub(super) fn records(&self) -> String {
        format!("{}keys/", self.prefix)
    }

    pub(super) fn record(&self, key: &LockKey) -> String {
        format!("{}keys/{key}", self.prefix)
    }

    pub(super) fn queues(&self) -> String {
        format!("{}queue/", self.prefix)
    }

    /// All places of one key begin with this.
    pub(super) fn queue(&self, key: &LockKey) -> String {
        format!("{}queue/{key} ", self.prefix)
    }

    pub(super) fn place(&self, key: &LockKey, name: &str) -> String {
        format!("{}queue/{key} {name}", self.prefix)
    }

    pub(super) fn parse_host(&self, key: &[u8]) -> Option<String> {
        let name = std::str::from_utf8(key).ok()?.strip_prefix(&self.hosts())?;
        Some(name.to_owned())
    }

    pub(super) fn parse_record(&self, key: &[u8]) -> Option<LockKey> {
        LockKey::parse(std::str::from_utf8(key).ok()?.strip_prefix(&self.records())?).ok()
    }

    /// The key waited for, and who waits.
    pub(super) fn parse_place(&self, key: &[u8]) -> Option<(LockKey, String)> {
        let (key, name) = std::str::from_utf8(key).ok()?.strip_prefix(&self.queues())?.split_once(' ')?;
        Some((LockKey::parse(key).ok()?, name.to_owned()))
    }
}

/// Behind `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MetaValue {
    pub(super) schema: u32,
    /// Epochs are this plus a revision; all hosts must agree on it, or a later owner might have lower tokens.
    pub(super) epoch_base: u64,
}

/// Behind a host's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostValue {
    pub(super) ttl_ms: u64,
    /// Only so that there is something to see: what counts is that a beat is a write.
    pub(super) beat: u64,
}

/// An ownership record. Its mod revision is (the low part of) its epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordValue {
    /// The owner's incarnation.
    pub(super) host: String,
    /// The owner's TTL: how long it may believe in its lease without another beat.
    pub(super) ttl_ms: u64,
    /// The largest lock delay that was promised.
    pub(super) lock_delay_ms: u64,
    /// What had to be waited out when the record was taken over from a dead owner, as long as that may not be over.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) inherited_ms: u64,
    /// When it was gained, in Unix seconds of the owner's wall clock: for people only.
    pub(super) since_unix_s: u64,
}

impl RecordValue {
    /// Until when its quarantine lasts, if we knew nothing of that before `now`.
    pub(super) fn quarantine_from(&self, now: Instant) -> Instant {
        match self.inherited_ms {
            0 => Instant::default(),
            inherited_ms => now + Duration::from_millis(inherited_ms),
        }
    }
}

/// A place in a queue; its order is that of create revisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlaceValue {
    /// To be remembered by the record, should it be handed to this place.
    pub(super) lock_delay_ms: u64,
    pub(super) ttl_ms: u64,
}

/// JSON of values that cannot fail to become JSON.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_read_back() {
        let layout = Layout::new("a/b/");
        let key = LockKey::parse("t/account:1").unwrap();
        assert_eq!(layout.place(&key, "0af3"), "a/b/queue/t/account:1 0af3");
        assert_eq!(layout.parse_place(b"a/b/queue/t/account:1 0af3"), Some((key.clone(), "0af3".to_owned())));
        assert_eq!(layout.parse_record(layout.record(&key).as_bytes()), Some(key));
        assert_eq!(layout.parse_host(b"a/b/hosts/0af3").as_deref(), Some("0af3"));
        assert_eq!(layout.parse_host(b"a/hosts/0af3"), None);
    }

    #[test]
    fn no_queue_is_within_another() {
        let layout = Layout::new("t/");
        let (short, long) = (LockKey::parse("a").unwrap(), LockKey::parse("a/b").unwrap());
        assert!(!layout.place(&long, "x").starts_with(&layout.queue(&short)));
    }

    #[test]
    fn a_record_shows_only_what_it_has() {
        let record =
            RecordValue { host: "h".into(), ttl_ms: 5_000, lock_delay_ms: 15_000, inherited_ms: 0, since_unix_s: 7 };
        let text = String::from_utf8(json(&record)).unwrap();
        assert_eq!(text, r#"{"host":"h","ttl_ms":5000,"lock_delay_ms":15000,"since_unix_s":7}"#);
        assert_eq!(serde_json::from_str::<RecordValue>(&text).unwrap(), record);
    }
}
