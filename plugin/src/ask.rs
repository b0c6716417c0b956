//! From a rule and a request's keys to what the host is asked for.

use turnstile_protocol::v1;
use turnstile_rules::{LockKeys, Mode, Rule};

use crate::reentry::Reentry;
use crate::session::Ask;

/// What a request that `rule` guards asks for.
pub fn ask(rule: &Rule, keys: &LockKeys, reentry: Reentry, who: v1::Who) -> Ask {
    Ask {
        keys: keys.iter().map(key_request).collect(),
        wait: rule.wait(),
        queue_max: rule.queue().map_or(0, u32::from),
        fail_fast: rule.fail_fast(),
        hold: rule.hold(),
        lock_delay: rule.lock_delay(),
        reentry,
        who,
    }
}

fn key_request((key, mode): (&str, Mode)) -> v1::KeyRequest {
    let (mode, limit) = match mode {
        Mode::Exclusive => (v1::Mode::Exclusive, 0),
        Mode::Shared => (v1::Mode::Shared, 0),
        Mode::Limit(limit) => (v1::Mode::Limit, limit.get().into()),
    };
    v1::KeyRequest { key: key.to_owned(), mode: mode.into(), limit }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use turnstile_rules::{Decision, FilterConfig, HeaderValues, RequestView};

    use super::*;

    struct Get(&'static str);

    impl RequestView for Get {
        fn method(&self) -> Cow<'_, [u8]> {
            Cow::Borrowed(b"GET")
        }
        fn authority(&self) -> Cow<'_, [u8]> {
            Cow::Borrowed(b"")
        }
        fn path(&self) -> Cow<'_, [u8]> {
            Cow::Borrowed(self.0.as_bytes())
        }
        fn header(&self, _: &str) -> HeaderValues<'_> {
            HeaderValues::Absent
        }
    }

    fn acquire(line: &str, path: &'static str) -> v1::Acquire {
        let json = serde_json::json!({ "cluster": "host", "rules": [line] }).to_string();
        let config = FilterConfig::parse(json.as_bytes()).expect("a good rule");
        let Decision::Guarded { rule, keys } = config.rules.decide(&Get(path)) else { panic!("{path} is unguarded") };
        ask(rule, &keys, Reentry::Closed, v1::Who::default()).into()
    }

    fn key(key: &str, mode: v1::Mode, limit: u32) -> v1::KeyRequest {
        v1::KeyRequest { key: key.to_owned(), mode: mode.into(), limit }
    }

    #[test]
    fn keys_and_their_modes() {
        let keys = |line, path| acquire(line, path).keys;
        assert_eq!(keys("GET /a/{x} key=a:{x}", "/a/1"), [key("default/a:1", v1::Mode::Exclusive, 0)]);
        assert_eq!(
            keys("GET /a/{x}/{y} key=a:{x},a:{y},b mode=shared,limit:65535,exclusive", "/a/2/1"),
            [
                key("default/a:2", v1::Mode::Shared, 0),
                key("default/a:1", v1::Mode::Limit, 65_535),
                key("default/b", v1::Mode::Exclusive, 0),
            ]
        );
    }

    #[test]
    fn bounds() {
        let plain = acquire("GET /a key=a", "/a");
        assert_eq!((plain.queue_max, plain.fail_fast, plain.hold_ms, plain.lock_delay_ms), (0, false, 60_000, 15_000));
        assert!(!plain.reentrant && plain.reentry_secret.is_empty());
        let bounded = acquire("GET /a key=a queue=20 fail_fast=on", "/a");
        assert_eq!((bounded.queue_max, bounded.fail_fast), (20, true));
    }

    /// The rules know nothing of the protocol: nothing but this keeps their bounds equal.
    #[test]
    fn every_rule_can_be_asked_for() {
        assert_eq!(turnstile_rules::KEYS_MAX, turnstile_protocol::KEYS_PER_ACQUIRE_MAX);
        assert_eq!(turnstile_rules::KEY_MAX_BYTES, turnstile_protocol::KEY_MAX_BYTES);
        assert_eq!(u32::from(u16::MAX), turnstile_protocol::LIMIT_MAX, "of limit:N");
    }
}
