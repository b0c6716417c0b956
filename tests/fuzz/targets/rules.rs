//! The rule language: any text into rules, and any request against them.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use turnstile_core::LockKey;
use turnstile_fuzz::request::{self, Request};
use turnstile_fuzz::seeds;
use turnstile_rules::{Decision, FilterConfig, KEYS_MAX, RuleSet, filter_config_json, parse_rules_file};

fuzz_target!(
    init: seeds::write(&seeds::rules()),
    |bytes: &[u8]| {
        let (rules, request) = request::split(bytes);
        match FilterConfig::parse(rules) {
            Ok(config) => decide(&config.rules, &config.namespace, &request),
            Err(faults) => assert!(!faults.to_string().is_empty()),
        }
        let Ok(text) = std::str::from_utf8(rules) else { return };
        match parse_rules_file(text) {
            Ok(rules) => {
                let json = filter_config_json("turnstile_host", "ns", &rules).expect("a rules file makes a configuration");
                let config = FilterConfig::parse(json.as_bytes()).expect("just made");
                assert_eq!(config.rules.rules().len(), rules.len());
                decide(&config.rules, "ns", &request);
            }
            Err(faults) => assert!(!faults.to_string().is_empty()),
        }
    }
);

fn decide(rules: &RuleSet, namespace: &str, request: &Request) {
    match rules.decide(request) {
        Decision::Unguarded => {}
        Decision::Guarded { keys, .. } => {
            let mut distinct = BTreeSet::new();
            for (key, _) in keys.iter() {
                LockKey::parse(key).expect("a key that the host takes");
                assert!(key.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/')), "{key}");
                assert!(distinct.insert(key), "{key} is there twice");
            }
            assert!((1..=KEYS_MAX).contains(&distinct.len()), "{distinct:?}");
            let again = rules.decide(request);
            assert!(matches!(again, Decision::Guarded { keys: again, .. } if again == keys));
        }
        Decision::Refused { fault, .. } => {
            // Goes into a response: nothing that a client sent may be in it.
            assert!(fault.to_string().bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{fault}");
        }
    }
}
