//! What people see of the locks.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::bench::{LONG, Running, lock};

#[tokio::test]
async fn a_key_shows_its_holder_and_who_waits() {
    let running = Running::start(LONG).await;
    let (first, second) = (running.session().await, running.session().await);
    running.get("/v1/locks/default/a").await.problem(404, "no-such-lock");
    let mut body = lock("default/a", "0");
    body["hold"] = json!("30s");
    let held = running.take(&first, body).await;
    let waiting = running.ask_for(&second, lock("default/a", "40s"));
    let seen = running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    assert_eq!((&seen["key"], &seen["ownership"]), (&json!("default/a"), &json!("owned")));
    assert_eq!((&seen["holder_count"], &seen["last_token"]), (&json!(1), &held["keys"][0]["token"]));
    let holder = &seen["holders"][0];
    assert_eq!((&holder["node"], &holder["id"], &holder["mode"]), (&json!("test"), &json!(1), &json!("exclusive")));
    assert_eq!(holder["token"], held["keys"][0]["token"]);
    assert!(holder["worker"].as_str().unwrap().starts_with("api from 127.0.0.1:"), "{holder}");
    assert!(holder["hold_left_ms"].as_u64().unwrap() <= 30_000 && holder["held_ms"].is_u64(), "{holder}");
    assert!(holder["session"].as_str().unwrap().parse::<u64>().is_ok(), "{holder}");
    assert!(!first.ends_with(holder["session"].as_str().unwrap()), "what is shown does not name the session in URLs");
    let waiter = &seen["waiters"][0];
    assert_eq!((&waiter["id"], &waiter["live"], &waiter["mode"]), (&json!(1), &json!(true), &json!("exclusive")));
    assert!(waiter["wait_left_ms"].as_u64().unwrap() <= 40_000 && waiter["waited_ms"].is_u64(), "{waiter}");
    waiting.abort();
}

#[tokio::test]
async fn a_key_is_named_by_the_rest_of_the_path() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    for (key, paths) in [
        ("default/a/b:c", ["default/a/b:c", "default%2fa%2Fb%3ac"]),
        ("default//a?%+", ["default//a%3F%25+", "default//a%3f%25%2B"]),
    ] {
        running.take(&session, lock(key, "0")).await;
        for path in paths {
            assert_eq!(running.get(&format!("/v1/locks/{path}")).await.expect(200)["key"], key, "{path}");
        }
    }
    for path in ["a%20b", "caf%C3%A9", &"x".repeat(513)] {
        running.get(&format!("/v1/locks/{path}")).await.problem(404, "no-such-lock");
    }
    running.get("/v1/locks/%ff").await.problem(404, "path");
}

#[tokio::test]
async fn a_listing_goes_through_all_keys_once() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let mut ids = BTreeMap::new();
    for number in 0..25 {
        let key = format!("default/{}:{number}", if number % 5 == 0 { "x" } else { "y" });
        ids.insert(key.clone(), running.take(&session, lock(&key, "0")).await["id"].clone());
    }
    let listed = async |query: &str| {
        let mut keys = Vec::new();
        let mut cursor = json!("0");
        while let Value::String(from) = cursor {
            let page = running.get(&format!("/v1/locks?cursor={from}{query}")).await.expect(200);
            let locks = page["locks"].as_array().unwrap();
            assert!(!query.contains("limit=10") || locks.len() <= 10, "{page}");
            keys.extend(locks.iter().map(|lock| lock["key"].as_str().unwrap().to_owned()));
            cursor = page["next"].clone();
        }
        keys.sort();
        keys
    };
    let all: Vec<String> = ids.keys().cloned().collect();
    let x: Vec<String> = all.iter().filter(|key| key.contains("/x:")).cloned().collect();
    assert_eq!(listed("").await, all);
    assert_eq!(listed("&limit=10").await, all);
    assert_eq!(listed("&limit=1&prefix=default%2Fx:").await, x);
    assert_eq!(listed("&prefix=other").await, [""; 0]);
    // What nobody holds any more is still owned, and shown only if asked for.
    for key in &x {
        running.delete(&format!("{session}/locks/{}", ids[key])).await.expect(204);
    }
    let rest: Vec<String> = all.iter().filter(|key| !x.contains(key)).cloned().collect();
    assert_eq!(listed("&limit=10").await, rest);
    assert_eq!(listed("&limit=10&idle=true").await, all);
}

#[tokio::test]
async fn a_listing_shows_only_the_first_of_many() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    running.take(&session, lock("default/a", "0")).await;
    let waits: Vec<_> = (0..7).map(|_| running.ask_for(&session, lock("default/a", "60s"))).collect();
    let one = running.until("default/a", "waited for", |key| key["waiter_count"] == 7).await;
    assert_eq!(one["waiters"].as_array().unwrap().len(), 7);
    let page = running.get("/v1/locks").await.expect(200);
    let listed = &page["locks"][0];
    assert_eq!((&listed["waiter_count"], listed["waiters"].as_array().unwrap().len()), (&json!(7), 4));
    assert!(page["next"].is_null() || page["next"].is_string(), "{page}");
    waits.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_malformed_listing_is_refused() {
    let running = Running::start("").await;
    for query in
        ["limit=0", "limit=1001", "limit=x", "cursor=-1", "cursor=x", "idle=maybe", "size=1", "limit=1&limit=2"]
    {
        running.get(&format!("/v1/locks?{query}")).await.problem(400, "malformed-request");
    }
    let page = running.get("/v1/locks?cursor=4294967295&limit=1000").await.expect(200);
    assert_eq!(page, json!({ "locks": [] }));
}
