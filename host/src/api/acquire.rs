//! An acquire as JSON, read into the session protocol's own message: all its features are there by construction.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;
use turnstile_core::LockKey;
use turnstile_protocol::v1::{Acquire, KeyRequest, Mode, Who};
use turnstile_protocol::{HOLDER_SECRET_BYTES, KEYS_PER_ACQUIRE_MAX, LIMIT_MAX};

use super::hex::from_hex;
use crate::fields::Section;
use crate::wire::to_millis;

/// The longest text about who asks, in bytes.
const WHO_MAX_BYTES: usize = 512;

/// What a rule that does not say otherwise asks for.
const WAIT: Duration = Duration::from_secs(10);
const HOLD: Duration = Duration::from_secs(60);
const LOCK_DELAY: Duration = Duration::from_secs(15);

/// What the host's configuration allows. The engine would cut what is longer; here it is refused, since nobody should
/// believe in a lock delay that is not kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Longest {
    pub(super) wait: Duration,
    pub(super) hold: Duration,
    pub(super) lock_delay: Duration,
}

/// An acquire whose number may not be given out yet.
#[derive(Debug)]
pub(super) struct Asked {
    /// Chosen by the client, if it likes to.
    pub(super) id: Option<u64>,
    /// With `id` 0.
    pub(super) acquire: Acquire,
}

impl Asked {
    pub(super) fn read(section: &mut Section<'_>, longest: Longest) -> Option<Self> {
        let id = section.read("id", "a whole number above 0", |value| value.as_u64().filter(|id| *id > 0));
        let keys = read_keys(section);
        let wait = section.duration("wait", WAIT.min(longest.wait), Duration::ZERO..=longest.wait);
        let hold = section.duration("hold", HOLD.min(longest.hold), Duration::from_millis(1)..=longest.hold);
        let delays = Duration::ZERO..=longest.lock_delay;
        let lock_delay = section.duration("lock_delay", LOCK_DELAY.min(longest.lock_delay), delays);
        let expected = format!("the {} hexadecimal digits of a holder_secret", 2 * HOLDER_SECRET_BYTES);
        let secret = section.read("reentry_secret", &expected, |value| secret(value.as_str()?));
        let queue_max = section.read("queue_max", "a whole number above 0", |value| {
            u32::try_from(value.as_u64()?).ok().filter(|count| *count > 0)
        });
        let acquire = Acquire {
            id: 0,
            keys,
            wait_ms: to_millis(wait),
            hold_ms: to_millis(hold),
            lock_delay_ms: to_millis(lock_delay),
            reentry_secret: secret.unwrap_or_default(),
            who: section.section_if_any("who", read_who),
            reentrant: section.flag("reentrant", false),
            fail_fast: section.flag("fail_fast", false),
            queue_max: queue_max.unwrap_or(0),
        };
        Some(Self { id, acquire })
    }
}

fn read_keys(section: &mut Section<'_>) -> Vec<KeyRequest> {
    let keys: Vec<KeyRequest> = section.list("keys", read_key);
    let distinct: HashSet<&str> = keys.iter().map(|key| key.key.as_str()).collect();
    if keys.is_empty() || keys.len() > KEYS_PER_ACQUIRE_MAX {
        section.fault("keys", &format!("expected 1 to {KEYS_PER_ACQUIRE_MAX} keys, found {}", keys.len()));
    } else if distinct.len() < keys.len() {
        section.fault("keys", "expected each key once");
    }
    keys
}

fn read_key(section: &mut Section<'_>) -> KeyRequest {
    let expected = "a key such as \"default/report\", of 1 to 512 bytes of visible ASCII, with its namespace \
                    (rules without one use default/)";
    let key = section.required("key", expected, |value| {
        let key = value.as_str()?;
        // A key without a namespace would be none that a proxy ever asks for.
        let (namespace, name) = key.split_once('/')?;
        let valid = !namespace.is_empty() && !name.is_empty() && LockKey::parse(key).is_ok();
        valid.then(|| key.to_owned())
    });
    let mode = section.read("mode", "\"exclusive\", \"shared\" or \"limit\"", |value| match value.as_str()? {
        "exclusive" => Some(Mode::Exclusive),
        "shared" => Some(Mode::Shared),
        "limit" => Some(Mode::Limit),
        _ => None,
    });
    let mode = mode.unwrap_or(Mode::Exclusive);
    let read_limit = |value: &Value| {
        let limit = u32::try_from(value.as_u64()?).ok();
        limit.filter(|limit| (1..=LIMIT_MAX).contains(limit))
    };
    let expected = format!("a whole number from 1 to {LIMIT_MAX}");
    let limit = match mode {
        Mode::Limit => section.required("limit", &expected, read_limit),
        _ => section.read("limit", "no limit, which goes with \"mode\": \"limit\"", |_| None),
    };
    KeyRequest { key: key.unwrap_or_default(), mode: mode.into(), limit: limit.unwrap_or(0) }
}

fn read_who(section: &mut Section<'_>) -> Who {
    let mut text = |name| {
        let expected = format!("a text of at most {WHO_MAX_BYTES} bytes");
        let text = section
            .read(name, &expected, |value| value.as_str().filter(|text| text.len() <= WHO_MAX_BYTES).map(Into::into));
        text.unwrap_or_default()
    };
    Who {
        method: text("method"),
        path: text("path"),
        route: text("route"),
        request_id: text("request_id"),
        client: text("client"),
    }
}

fn secret(text: &str) -> Option<Vec<u8>> {
    let bytes = from_hex(text)?;
    (bytes.len() == HOLDER_SECRET_BYTES).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fields::Fault;

    const LONGEST: Longest = Longest {
        wait: Duration::from_secs(600),
        hold: Duration::from_secs(3_600),
        lock_delay: Duration::from_secs(3_600),
    };

    fn parse(body: Value) -> Result<Asked, Vec<String>> {
        let Value::Object(fields) = body else { panic!("an object") };
        let mut faults = Vec::new();
        let mut section = Section::root(fields, &mut faults);
        let asked = Asked::read(&mut section, LONGEST);
        section.finish();
        if faults.is_empty() { Ok(asked.unwrap()) } else { Err(faults.iter().map(Fault::to_string).collect()) }
    }

    #[test]
    fn what_is_not_said_is_as_in_rules() {
        let asked = parse(json!({ "keys": [{ "key": "default/a" }] })).unwrap();
        let key = KeyRequest { key: "default/a".into(), mode: Mode::Exclusive.into(), limit: 0 };
        let acquire =
            Acquire { keys: vec![key], wait_ms: 10_000, hold_ms: 60_000, lock_delay_ms: 15_000, ..Acquire::default() };
        assert_eq!((asked.id, asked.acquire), (None, acquire));
    }

    #[test]
    fn everything_of_the_protocol_can_be_said() {
        let secret = "0123456789abcdef".repeat(3);
        let asked = parse(json!({
            "id": 7,
            "keys": [{ "key": "default/a", "mode": "limit", "limit": 3 }, { "key": "default/b", "mode": "shared" }],
            "wait": "0", "hold": "1m 30s", "lock_delay": "250ms", "reentry_secret": secret, "reentrant": true,
            "fail_fast": true, "queue_max": 9,
            "who": { "method": "POST", "path": "/p", "route": "r", "request_id": "i", "client": "c" },
        }))
        .unwrap();
        let key = |key: &str, mode: Mode, limit| KeyRequest { key: key.into(), mode: mode.into(), limit };
        let acquire = Acquire {
            id: 0,
            keys: vec![key("default/a", Mode::Limit, 3), key("default/b", Mode::Shared, 0)],
            wait_ms: 0,
            hold_ms: 90_000,
            lock_delay_ms: 250,
            reentry_secret: [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].repeat(3),
            who: Some(Who {
                method: "POST".into(),
                path: "/p".into(),
                route: "r".into(),
                request_id: "i".into(),
                client: "c".into(),
            }),
            reentrant: true,
            fail_fast: true,
            queue_max: 9,
        };
        assert_eq!((asked.id, asked.acquire), (Some(7), acquire));
    }

    #[test]
    fn every_fault_is_told_with_its_place() {
        let faults = parse(json!({
            "id": 0, "wait": "11m", "hold": "0s", "lock_delay": 15, "reentry_secret": "ab", "queue_max": -1,
            "reentrant": "yes", "fail_fast": null, "weight": 1, "who": { "name": "x", "path": "y".repeat(513) },
            "keys": [{ "key": "account:42" }, { "mode": "limit" }, { "key": "default/a", "limit": 1 }, 7,
                     { "key": "default/a", "mode": "limit", "limit": 65_536 }, { "key": "default/b", "mode": "write" }],
        }))
        .unwrap_err();
        for place in [
            "id:",
            "wait:",
            "hold:",
            "lock_delay:",
            "reentry_secret:",
            "queue_max:",
            "reentrant:",
            "fail_fast:",
            "weight: unknown",
            "who.name: unknown",
            "who.path:",
            "keys[0].key:",
            "keys[1].key: is missing",
            "keys[1].limit: is missing",
            "keys[2].limit:",
            "keys[3]:",
            "keys[4].limit:",
            "keys[5].mode:",
            "keys: expected each key once",
        ] {
            assert!(faults.iter().any(|fault| fault.starts_with(place)), "{place} is missing in {faults:#?}");
        }
        assert_eq!(faults.len(), 20, "{faults:#?}");
    }

    #[test]
    fn keys_are_one_to_sixteen() {
        assert_eq!(parse(json!({})).unwrap_err().len(), 1);
        let keys = |count| (0..count).map(|key| json!({ "key": format!("default/{key}") })).collect::<Vec<_>>();
        assert_eq!(parse(json!({ "keys": keys(16) })).unwrap().acquire.keys.len(), 16);
        assert!(parse(json!({ "keys": keys(17) })).is_err());
    }
}
