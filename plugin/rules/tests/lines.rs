//! What lines and objects mean.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are tests")]

mod common;

use std::time::Duration;

use serde_json::{Value, json};
use turnstile_rules::{FilterConfig, OnHostUnavailable, OnLost, Rule};

const MS: Duration = Duration::from_millis(1);

fn parse(rule: &Value) -> FilterConfig {
    let config = json!({ "cluster": "turnstile_host", "rules": [rule] });
    FilterConfig::parse(config.to_string().as_bytes()).unwrap_or_else(|faults| panic!("{faults}"))
}

type Settings = (String, Duration, Duration, Duration, OnLost, OnHostUnavailable);

fn settings(rule: &Rule) -> Settings {
    let name = rule.name().to_owned();
    (name, rule.wait(), rule.hold(), rule.lock_delay(), rule.on_lost(), rule.on_host_unavailable())
}

fn check(rule: Value, expected: Settings) {
    assert_eq!(settings(&parse(&rule).rules.rules()[0]), expected, "{rule}");
}

fn defaults(name: &str) -> Settings {
    (name.to_owned(), 10_000 * MS, 60_000 * MS, 15_000 * MS, OnLost::Abort, OnHostUnavailable::Deny)
}

#[test]
fn defaults_and_options() {
    check(json!("POST /accounts/{id}/transfer key=account:{id}"), defaults("POST /accounts/{id}/transfer"));
    check(json!("  POST,PUT\tpay.example.com/é   key=a "), defaults("POST,PUT pay.example.com/\\u{e9}"));
    check(json!({ "match": { "methods": ["*"], "path": "/" }, "key": "root" }), defaults("* /"));

    let all = ("n".to_owned(), 250 * MS, 120_000 * MS, Duration::ZERO, OnLost::Continue, OnHostUnavailable::Allow);
    let line = "POST a.b/c key=k wait=250ms hold=2m lock_delay=0 on_lost=continue on_host_unavailable=allow name=n";
    check(json!(line), all.clone());
    let reordered =
        "POST a.b/c name=n on_host_unavailable=allow on_lost=continue lock_delay=0s hold=120s wait=250ms key=k";
    check(json!(reordered), all.clone());
    let object = json!({
        "name": "n",
        "match": { "host": "a.b", "methods": ["POST"], "path": "/c" },
        "key": "k",
        "wait": "250ms",
        "hold": "2m",
        "lock_delay": "0ms",
        "on_lost": "continue",
        "on_host_unavailable": "allow",
    });
    check(object, all);

    let (_, _, _, _, lost, unavailable) = defaults("");
    let longest = ("n".to_owned(), 600_000 * MS, 3_600_000 * MS, 3_600_000 * MS, lost, unavailable);
    check(
        json!("POST /c key=k name=n wait=10m hold=1h lock_delay=60m on_lost=abort on_host_unavailable=deny"),
        longest,
    );
    let shortest = ("n".to_owned(), Duration::ZERO, MS, Duration::ZERO, lost, unavailable);
    check(json!("POST /c key=k name=n wait=0 hold=1ms lock_delay=0h"), shortest);
    let spaced = json!({ "name": "pay out", "match": { "methods": ["POST"], "path": "/c" }, "key": "k" });
    check(spaced, defaults("pay out"));
}

#[test]
fn bounds_and_re_entrancy() {
    let check = |options: &str, expected: (Option<u32>, bool, bool)| {
        let config = parse(&json!(format!("POST /a key=a {options}")));
        let rule = &config.rules.rules()[0];
        let queue = rule.queue().map(std::num::NonZeroU32::get);
        assert_eq!((queue, rule.fail_fast(), rule.reentrant()), expected, "{options}");
    };
    check("", (None, false, false));
    check("queue=1 fail_fast=on reentrant=on", (Some(1), true, true));
    check("reentrant=off fail_fast=off queue=1000000", (Some(1_000_000), false, false));
    check("reentrant=on", (None, false, true));
}

#[test]
fn the_document_around_the_rules() {
    let config = parse(&json!("POST /a key=a"));
    assert_eq!((config.clusters[0].as_str(), config.namespace.as_str()), ("turnstile_host", "default"));
    let json = turnstile_rules::filter_config_json("other", "ns-1", &[json!("POST /a key=a")]).expect("good rules");
    let config = FilterConfig::parse(json.as_bytes()).expect("good rules");
    assert_eq!((config.clusters[0].as_str(), config.namespace.as_str()), ("other", "ns-1"));
    let request = common::Request::new("POST /a");
    match config.rules.decide(&request) {
        turnstile_rules::Decision::Guarded { rule, keys } => {
            assert_eq!((rule.name(), keys.text()), ("POST /a", "ns-1/a"))
        }
        other => panic!("{other:?}"),
    }
}

/// The examples of the reference are rules that can be used, and together.
#[test]
fn the_reference_is_right() {
    let docs: String = include_str!("../src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .fold(String::new(), |docs, line| docs + line.strip_prefix(' ').unwrap_or(line) + "\n");
    let block =
        |language: &str| docs.split(&format!("```{language}\n")).nth(1).and_then(|rest| rest.split("```").next());
    let (form, lines) = block("text").and_then(|text| text.split_once("\n\n")).expect("a block of lines");
    assert_eq!(form, "METHOD[,METHOD...] [HOST]/PATH key=TEMPLATE[,TEMPLATE...] [OPTION=VALUE...]");
    let rules = turnstile_rules::parse_rules_file(lines).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(rules.len(), 6);
    let object: Value = serde_json::from_str(block("json").expect("a block of JSON")).expect("JSON");
    check(
        object,
        ("transfer".to_owned(), 5_000 * MS, 60_000 * MS, 15_000 * MS, OnLost::Abort, OnHostUnavailable::Deny),
    );
}
