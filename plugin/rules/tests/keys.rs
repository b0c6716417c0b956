//! Rules with several keys, and with modes: which locks a request needs.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are tests")]

mod common;

use common::{Request, outcome, rules};
use serde_json::{Value, json};
use turnstile_rules::{Decision, FilterConfig, KEYS_MAX, RequestFault, filter_config_json};

fn check(line: &str, requests: &[(&str, &str)]) {
    let rules = rules(&[line]);
    for (request, expected) in requests {
        assert_eq!(outcome(&rules, &Request::new(request)), *expected, "{request} with {line}");
    }
}

#[test]
fn several_keys_in_the_order_of_the_rule() {
    check(
        "POST /transfer/{from} key=account:{from},account:{query.to},bank",
        &[
            ("POST /transfer/9?to=1", "account:9,account:1,bank"),
            ("POST /transfer/1?to=9", "account:1,account:9,bank"),
            ("POST //transfer/%39/?to=%31", "account:9,account:1,bank"),
            // A comma in a value is none between keys.
            ("POST /transfer/1,2?to=3,4", "account:1%2C2,account:3%2C4,bank"),
            // No key is left out: what would be half of the locks is none.
            ("POST /transfer/1", "! this request needs the query parameter 'to', which is missing or empty"),
            (
                "POST /transfer/1?to=2&to=3",
                "! this request has the query parameter 'to' more than once, but it must occur exactly once",
            ),
            (
                "POST /transfer/1;v?to=2",
                "! the path of this request can be read in more than one way: it contains a path parameter (';')",
            ),
        ],
    );
    // Within braces, a comma belongs to the name of a parameter.
    check("POST /a key={query.a,b},{{,{query.c}", &[("POST /a?a,b=1&c=2", "1,{,2")]);
}

#[test]
fn modes() {
    let requests = |expected| [("POST /a?x=1&y=2", expected)];
    for (modes, expected) in [
        ("", "x:1,y:2"),
        (" mode=exclusive", "x:1,y:2"),
        (" mode=shared", "x:1 shared,y:2 shared"),
        (" mode=limit:1", "x:1 limit:1,y:2 limit:1"),
        (" mode=shared,exclusive", "x:1 shared,y:2"),
        (" mode=limit:4,limit:65535", "x:1 limit:4,y:2 limit:65535"),
    ] {
        check(&format!("POST /a key=x:{{query.x}},y:{{query.y}}{modes}"), &requests(expected));
    }
}

/// A transfer from an account to itself needs that account once.
#[test]
fn equal_keys_are_one_in_the_stronger_mode() {
    let keys = "key={query.a},{query.b},{query.c}";
    for (modes, query, expected) in [
        ("shared", "a=1&b=1&c=1", "1 shared"),
        ("shared", "a=1&b=2&c=1", "1 shared,2 shared"),
        ("shared", "a=1&b=2&c=2", "1 shared,2 shared"),
        ("shared,exclusive,shared", "a=1&b=2&c=1", "1 shared,2"),
        ("shared,exclusive,shared", "a=1&b=1&c=2", "1,2 shared"),
        ("shared,exclusive,shared", "a=1&b=2&c=2", "1 shared,2"),
        ("shared,limit:2,shared", "a=1&b=2&c=2", "1 shared,2"),
        // Once exclusive, always exclusive.
        ("shared,limit:2,exclusive", "a=1&b=1&c=1", "1"),
        ("shared,exclusive,exclusive", "a=1&b=1&c=1", "1"),
        ("limit:2,limit:3,limit:2", "a=1&b=2&c=1", "1 limit:2,2 limit:3"),
        ("limit:2,limit:3,limit:2", "a=1&b=1&c=2", "1,2 limit:2"),
        ("exclusive", "a=1&b=%31&c=2", "1,2"),
        // A key is not taken for the end or the beginning of another.
        ("shared", "a=11&b=1&c=111", "11 shared,1 shared,111 shared"),
    ] {
        check(&format!("POST /a {keys} mode={modes}"), &[(&format!("POST /a?{query}"), expected)]);
    }
}

#[test]
fn as_many_keys_as_one_request_may_ask_for() {
    let template = |index: usize| format!("{{query.k{index}}}");
    let line = |keys: usize| format!("POST /a key={}", (0..keys).map(template).collect::<Vec<_>>().join(","));
    let query: Vec<String> = (0..KEYS_MAX).map(|index| format!("k{index}={index}")).collect();
    let keys: Vec<String> = (0..KEYS_MAX).map(|index| index.to_string()).collect();
    check(&line(KEYS_MAX), &[(&format!("POST /a?{}", query.join("&")), &keys.join(","))]);
    let faults = filter_config_json("host", "default", &[json!(line(KEYS_MAX + 1))]).expect_err("too many");
    assert!(faults.to_string().contains("a rule has at most 16 keys"), "{faults}");
}

#[test]
fn every_key_is_bounded_by_itself() {
    let rules = rules(&["POST /a key=a:{query.x},b:{query.y}"]);
    let longest = turnstile_rules::KEY_MAX_BYTES - "default/a:".len();
    for (x, y, fits) in [(longest, longest, true), (longest + 1, 1, false), (1, longest + 1, false)] {
        let request = Request::raw("POST", "", format!("/a?x={}&y={}", "x".repeat(x), "y".repeat(y)));
        match rules.decide(&request) {
            Decision::Guarded { keys, .. } => {
                assert!(fits, "{x} {y}");
                let lengths: Vec<usize> = keys.iter().map(|(key, _)| key.len()).collect();
                assert_eq!(lengths, [turnstile_rules::KEY_MAX_BYTES; 2]);
            }
            Decision::Refused { fault, .. } => assert_eq!((fault, fits), (RequestFault::KeyTooLong, false), "{x} {y}"),
            Decision::Unguarded => panic!("slipped past"),
        }
    }
}

#[test]
fn objects_say_the_same_as_lines() {
    let object = |more: Value| {
        let mut rule = json!({ "name": "n", "match": { "methods": ["POST"], "path": "/a/{id}" } });
        rule.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        rule
    };
    let parsed = |rule: &Value| {
        let json = filter_config_json("host", "default", std::slice::from_ref(rule))
            .unwrap_or_else(|faults| panic!("{rule}\n{faults}"));
        format!("{:?}", FilterConfig::parse(json.as_bytes()).expect("just checked").rules)
    };
    for (line, more) in [
        ("key=a:{id}", json!({ "key": "a:{id}" })),
        ("key=a:{id}", json!({ "keys": ["a:{id}"] })),
        ("key=a:{id} mode=shared", json!({ "key": "a:{id}", "mode": "shared" })),
        ("key=a:{id} mode=limit:3", json!({ "key": "a:{id}", "mode": ["limit:3"] })),
        ("key=a:{id},b", json!({ "keys": ["a:{id}", "b"] })),
        ("key=a:{id},b mode=limit:7", json!({ "keys": ["a:{id}", "b"], "mode": "limit:7" })),
        ("key=a:{id},b mode=limit:7,shared", json!({ "keys": ["a:{id}", "b"], "mode": ["limit:7", "shared"] })),
        (
            "key=a queue=20 fail_fast=on reentrant=on",
            json!({ "key": "a", "queue": "20", "fail_fast": "on", "reentrant": "on" }),
        ),
        ("key=a", json!({ "key": "a", "fail_fast": "off", "reentrant": "off", "mode": "exclusive" })),
    ] {
        assert_eq!(parsed(&json!(format!("POST /a/{{id}} {line} name=n"))), parsed(&object(more)), "{line}");
    }
}
