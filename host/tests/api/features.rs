//! Everything the engine can do is there by HTTP: modes, several keys, re-entrancy, bounds on waiting, who asks.

use serde_json::{Value, json};

use crate::bench::{LONG, Running, lock, within};

fn keys(keys: &[(&str, &str)]) -> Value {
    let keys: Vec<Value> = keys.iter().map(|(key, mode)| json!({ "key": key, "mode": mode })).collect();
    json!({ "keys": keys, "wait": "0", "lock_delay": "60s" })
}

#[tokio::test]
async fn shared_holders_stand_beside_each_other_with_one_barrier() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let locks = format!("{session}/locks");
    let first = running.take(&session, keys(&[("default/a", "shared")])).await;
    let second = running.take(&session, keys(&[("default/a", "shared")])).await;
    let (first, second) = (&first["keys"][0], &second["keys"][0]);
    assert!(second["token"].as_u64() > first["token"].as_u64(), "{second}");
    assert_eq!((&first["barrier"], &second["barrier"]), (&first["token"], &first["token"]));
    running.post(&locks, keys(&[("default/a", "exclusive")])).await.problem(423, "locked");
    let seen = running.get("/v1/locks/default/a").await.expect(200);
    assert_eq!((&seen["holder_count"], &seen["holders"][1]["mode"]), (&json!(2), &json!("shared")));
    assert_eq!(seen["holders"][0]["token"], first["token"], "oldest first");
}

#[tokio::test]
async fn a_limit_counts_holders() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let limited = || json!({ "keys": [{ "key": "default/a", "mode": "limit", "limit": 2 }], "wait": "0" });
    running.take(&session, limited()).await;
    running.take(&session, limited()).await;
    running.post(&format!("{session}/locks"), limited()).await.problem(423, "locked");
    let seen = running.get("/v1/locks/default/a").await.expect(200);
    assert_eq!((&seen["holders"][0]["mode"], &seen["holders"][0]["limit"]), (&json!("limit"), &json!(2)));
    running.delete(&format!("{session}/locks/1")).await.expect(204);
    running.take(&session, limited()).await;
}

#[tokio::test]
async fn several_keys_are_granted_together_and_answered_in_their_order() {
    let running = Running::start(LONG).await;
    let (session, other) = (running.session().await, running.session().await);
    running.take(&other, lock("default/b", "0")).await;
    let mut both = keys(&[("default/c", "exclusive"), ("default/b", "shared"), ("default/a", "exclusive")]);
    running.post(&format!("{session}/locks"), both.clone()).await.problem(423, "locked");
    both["wait"] = json!("60s");
    let waiting = running.ask_for(&session, both);
    running.until("default/b", "waited for", |key| key["waiter_count"] == 1).await;
    running.take(&other, lock("default/c", "0")).await;
    running.delete(&format!("{other}/locks/1")).await.expect(204);
    assert!(!waiting.is_finished(), "one key is still held");
    running.delete(&format!("{other}/locks/2")).await.expect(204);
    let granted = within(waiting).await.unwrap().expect(200);
    let order: Vec<&Value> = granted["keys"].as_array().unwrap().iter().map(|key| &key["key"]).collect();
    assert_eq!(order, ["default/c", "default/b", "default/a"]);
    running.delete(&format!("{session}/locks/{}", granted["id"])).await.expect(204);
    running.take(&other, keys(&[("default/a", "exclusive"), ("default/b", "exclusive")])).await;
}

#[tokio::test]
async fn whoever_has_the_secret_joins_the_hold() {
    let running = Running::start(LONG).await;
    let (outer, inner) = (running.session().await, running.session().await);
    let mut offer = keys(&[("default/a", "exclusive")]);
    offer["reentrant"] = json!(true);
    let held = running.take(&outer, offer).await;
    let secret = held["holder_secret"].as_str().unwrap();
    assert_eq!(secret.len(), 48, "{held}");
    let join = |key: &str, mode: &str, secret: &str| {
        let mut body = keys(&[(key, mode)]);
        body["reentry_secret"] = json!(secret);
        body
    };
    let joined = running.take(&inner, join("default/a", "exclusive", secret)).await;
    assert_eq!((&joined["keys"], &joined["holder_secret"]), (&held["keys"], &held["holder_secret"]));
    let locks = format!("{inner}/locks");
    running.post(&locks, join("default/a", "exclusive", &"0".repeat(48))).await.problem(409, "no-such-hold");
    running.post(&locks, join("default/a", "exclusive", "abc")).await.problem(400, "malformed-request");
    // It is held until everybody has let go.
    running.delete(&format!("{outer}/locks/1")).await.expect(204);
    running.post(&locks, lock("default/a", "0")).await.problem(423, "locked");
    running.delete(&format!("{inner}/locks/1")).await.expect(204);
    running.post(&locks, join("default/a", "exclusive", secret)).await.problem(409, "no-such-hold");

    let mut reader = keys(&[("default/b", "shared")]);
    reader["reentrant"] = json!(true);
    let reader = running.take(&outer, reader).await;
    let upgrade = join("default/b", "exclusive", reader["holder_secret"].as_str().unwrap());
    running.post(&locks, upgrade).await.problem(409, "upgrade");
}

#[tokio::test]
async fn a_wait_in_vain_is_refused_at_once_if_asked_for() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    running.take(&session, lock("default/a", "0")).await;
    running.delete(&format!("{session}/locks/1?ending=unclean")).await.expect(204);
    let mut body = lock("default/a", "5s");
    body["fail_fast"] = json!(true);
    let answer = running.post(&format!("{session}/locks"), body).await;
    answer.problem(503, "wait-hopeless");
    // The quarantine has a minute, of which the hint tells.
    assert!((30..=60).contains(&answer.header("retry-after").parse::<u64>().unwrap()), "{answer:?}");
}

#[tokio::test]
async fn a_request_may_bound_the_queue_itself() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    running.take(&session, lock("default/a", "0")).await;
    let waiting = running.ask_for(&session, lock("default/a", "60s"));
    running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    let mut body = lock("default/a", "60s");
    body["queue_max"] = json!(1);
    running.post(&format!("{session}/locks"), body).await.problem(503, "queue-full");
    waiting.abort();
}

#[tokio::test]
async fn who_asks_is_shown() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let who = json!({ "method": "POST", "path": "/reports", "client": "nightly" });
    let mut body = lock("default/a", "0");
    body["who"] = who.clone();
    running.take(&session, body.clone()).await;
    body["wait"] = json!("60s");
    let waiting = running.ask_for(&session, body);
    let seen = running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    assert_eq!((&seen["holders"][0]["who"], &seen["waiters"][0]["who"]), (&who, &who));
    waiting.abort();
}
