//! Locks of a session: grants, refusals, the ways a wait ends early, releases, losses.

use serde_json::{Value, json};

use crate::bench::{Ask, LONG, Running, lock, within};

#[tokio::test]
async fn a_lock_goes_from_one_session_to_the_next_with_a_larger_token() {
    let running = Running::start(LONG).await;
    let (first, second) = (running.session().await, running.session().await);
    let held = running.take(&first, lock("default/a", "10s")).await;
    let token = held["keys"][0]["token"].as_u64().unwrap();
    let key = json!({ "key": "default/a", "token": token, "barrier": token });
    assert_eq!((&held["id"], &held["keys"], &held["heartbeat_seq"]), (&json!(1), &json!([key]), &json!(0)));
    assert!(held["waited_ms"].is_u64() && held["holder_secret"].is_null(), "{held}");
    assert!((1..60_000).contains(&held["valid_ms"].as_u64().unwrap()), "{held}");

    running.post(&format!("{second}/heartbeats"), json!({ "seq": 5 })).await.expect(200);
    let waiting = running.ask_for(&second, lock("default/a", "60s"));
    running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    running.delete(&format!("{first}/locks/1")).await.expect(204);
    let next = within(waiting).await.unwrap().expect(200);
    assert!(next["keys"][0]["token"].as_u64().unwrap() > token, "{next}");
    assert_eq!(next["heartbeat_seq"], 5);
    let gone = running.delete(&format!("{first}/locks/1")).await.problem(404, "no-such-lock");
    assert!(gone["lost"].is_null(), "{gone}");
}

#[tokio::test]
async fn what_is_taken_is_refused_as_the_filter_would() {
    let running = Running::start(&format!("{LONG}[limits]\nwaiters_per_key = 1")).await;
    let (first, second) = (running.session().await, running.session().await);
    running.take(&first, lock("default/a", "0")).await;
    let locks = format!("{second}/locks");
    let problem = running.post(&locks, lock("default/a", "0")).await.problem(423, "locked");
    assert_eq!((&problem["id"], &problem["queue_length"]), (&json!(1), &json!(0)));
    running.post(&locks, lock("default/a", "50ms")).await.problem(503, "wait-over");
    let waiting = running.ask_for(&second, lock("default/a", "60s"));
    running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    let problem = running.post(&locks, lock("default/a", "60s")).await.problem(503, "queue-full");
    assert_eq!((&problem["id"], &problem["queue_length"]), (&json!(4), &json!(1)));
    // A try beside it is not granted either.
    running.post(&locks, lock("default/b", "0")).await.expect(200);
    waiting.abort();
}

#[tokio::test]
async fn ids_grow_and_may_be_chosen() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let with_id = |id: u64, key: &str| {
        let mut body = lock(key, "0");
        body["id"] = json!(id);
        body
    };
    assert_eq!(running.take(&session, with_id(7, "default/a")).await["id"], 7);
    assert_eq!(running.take(&session, lock("default/b", "0")).await["id"], 8);
    for id in [1, 8] {
        let stale = running.post(&format!("{session}/locks"), with_id(id, "default/c")).await;
        assert_eq!(stale.problem(409, "stale-id")["last_id"], 8);
    }
    running.take(&session, with_id(u64::MAX, "default/c")).await;
    running.post(&format!("{session}/locks"), lock("default/d", "0")).await.problem(409, "stale-id");
    running.delete(&format!("{session}/locks/{}", u64::MAX)).await.expect(204);
}

#[tokio::test]
async fn a_client_that_hangs_up_waits_no_more() {
    let running = Running::start(LONG).await;
    let (first, second) = (running.session().await, running.session().await);
    running.take(&first, lock("default/a", "0")).await;
    let gone = running.ask_for(&second, lock("default/a", "60s"));
    running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    gone.abort();
    running.until("default/a", "left", |key| key["waiter_count"] == 0).await;
    running.delete(&format!("{first}/locks/1")).await.expect(204);
    // Nobody holds it in the name of the one who left, and its session goes on.
    let held = running.take(&second, lock("default/a", "0")).await;
    assert_eq!(held["id"], 2);
    running.delete(&format!("{second}/locks/1")).await.problem(404, "no-such-lock");
}

#[tokio::test]
async fn another_request_can_take_a_wait_back() {
    let running = Running::start(LONG).await;
    let (first, second) = (running.session().await, running.session().await);
    running.take(&first, lock("default/a", "0")).await;
    let waiting = running.ask_for(&second, lock("default/a", "60s"));
    running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    running.delete(&format!("{second}/locks/1?ending=unclean")).await.expect(204);
    within(waiting).await.unwrap().problem(409, "withdrawn");
    let seen = running.get("/v1/locks/default/a").await.expect(200);
    assert!(seen["waiter_count"] == 0 && seen["holder_count"] == 1 && seen["quarantined_for_ms"].is_null(), "{seen}");
}

#[tokio::test]
async fn a_release_says_how_it_ended() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    for (id, (ending, quarantine)) in
        (1..).zip([("", false), ("?ending=clean", false), ("?ending=unsent", false), ("?ending=unclean", true)])
    {
        running.take(&session, lock("default/a", "0")).await;
        running.delete(&format!("{session}/locks/{id}{ending}")).await.expect(204);
        let seen = running.get("/v1/locks/default/a").await.expect(200);
        assert_eq!(seen["quarantined_for_ms"].is_u64(), quarantine, "{ending}: {seen}");
    }
    for wrong in ["1?ending=maybe", "1?ending=clean&ending=unclean", "1?how=clean"] {
        running.delete(&format!("{session}/locks/{wrong}")).await.problem(400, "malformed-request");
    }
    for unknown in ["0", "-1", "x", "99", "18446744073709551616"] {
        running.delete(&format!("{session}/locks/{unknown}")).await.problem(404, "no-such-lock");
    }
}

#[tokio::test]
async fn a_lost_lock_is_told_with_every_heartbeat_until_it_is_let_go() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let mut body = lock("default/a", "0");
    body["hold"] = json!("100ms");
    running.take(&session, body).await;
    let lost = json!([{ "id": 1, "reason": "hold-limit" }]);
    let mut seq = 0;
    let mut beat = async || {
        seq += 1;
        running.post(&format!("{session}/heartbeats"), json!({ "seq": seq })).await.expect(200)["lost"].clone()
    };
    let mut seen = beat().await;
    while seen == json!([]) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        seen = beat().await;
    }
    assert_eq!(seen, lost);
    assert_eq!(beat().await, lost, "the answer may not have arrived");
    let key = running.get("/v1/locks/default/a").await.expect(200);
    assert_eq!(key["holders"][0]["ending"]["reason"], "hold-limit", "{key}");
    let told = running.delete(&format!("{session}/locks/1")).await.problem(404, "no-such-lock");
    assert_eq!(told["lost"], "hold-limit");
    assert_eq!(beat().await, json!([]));
    // The host was told that it ended, and that it ended clean.
    let key = running.get("/v1/locks/default/a").await.expect(200);
    assert!(key["holder_count"] == 0 && key["quarantined_for_ms"].is_null(), "{key}");
}

#[tokio::test]
async fn what_is_malformed_is_refused_with_every_fault() {
    let running = Running::start(&format!("{LONG}[limits]\nlock_delay = \"10s\"")).await;
    let session = running.session().await;
    let body = json!({ "keys": [{ "key": "no namespace", "mode": "write" }], "wait": 5, "colour": "red" });
    let problem = running.post(&format!("{session}/locks"), body).await.problem(400, "malformed-request");
    let places: Vec<&Value> = problem["faults"].as_array().unwrap().iter().map(|fault| &fault["at"]).collect();
    assert_eq!(places, ["keys[0].key", "keys[0].mode", "wait", "colour"], "{problem}");
    // A lock delay that the host would cut is not promised.
    let problem = running.post(&format!("{session}/locks"), lock("default/a", "0")).await;
    assert_eq!(problem.problem(400, "malformed-request")["faults"][0]["at"], "lock_delay");
    running.take(&session, json!({ "keys": [{ "key": "default/a" }] })).await;
    // Many faults are told shortly.
    let many: serde_json::Map<String, Value> = (0..5_000).map(|number| (format!("f{number}"), json!(1))).collect();
    let answer = running.post(&format!("{session}/locks"), Value::Object(many)).await;
    assert!(answer.body.len() < 16_384, "{} bytes", answer.body.len());
    answer.problem(400, "malformed-request");
    for text in ["", "[]", "{", "{\"keys\": 1}", "\u{0}"] {
        let ask = Ask::new("POST", &format!("{session}/locks")).header("content-type", "application/json").body(text);
        ask.send(running.api).await.problem(400, "malformed-request");
    }
}
