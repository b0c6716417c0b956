//! Sessions and heartbeats: how they begin, what they are told, and every way in which they end.

use std::collections::VecDeque;

use serde_json::json;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;
use turnstile_host::service::Stopped;
use turnstile_protocol::VERSION;
use turnstile_protocol::v1::lock_service_client::LockServiceClient;
use turnstile_protocol::v1::server_item::Item;
use turnstile_protocol::v1::{Acquire, ClientItem, ClientMessage, Hello, KeyRequest, Mode, RejectReason};

use crate::bench::{Ask, LONG, Running, lock, within};

#[tokio::test]
async fn a_session_says_how_to_keep_it_alive() {
    let running = Running::start("").await;
    let answer = running.post("/v1/sessions", json!({})).await;
    let body = answer.expect(201);
    let name = body["session"].as_str().unwrap();
    assert!(name.len() == 32 && name.bytes().all(|digit| digit.is_ascii_hexdigit()), "{body}");
    assert_eq!(answer.header("location"), format!("/v1/sessions/{name}"));
    assert_eq!(
        (&body["ttl_ms"], &body["heartbeat_ms"], &body["heartbeat_seq"]),
        (&json!(4_000), &json!(1_000), &json!(0))
    );
    assert_eq!(body["incarnation"].as_str().unwrap().len(), 16, "{body}");
    let other = running.post("/v1/sessions", json!({ "node": "n".repeat(256) })).await.expect(201);
    assert_ne!(other["session"], body["session"]);
    for node in [json!(""), json!("n".repeat(257)), json!(7)] {
        running.post("/v1/sessions", json!({ "node": node })).await.problem(400, "malformed-request");
    }
}

#[tokio::test]
async fn heartbeats_are_acknowledged_and_their_numbers_grow() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let heartbeats = format!("{session}/heartbeats");
    for seq in [1, 2, 70] {
        let beat = running.post(&heartbeats, json!({ "seq": seq })).await.expect(200);
        assert_eq!((&beat["seq"], &beat["lost"], &beat["draining"]), (&json!(seq), &json!([]), &json!(false)));
        let valid = beat["valid_ms"].as_u64().unwrap();
        assert!(valid < 60_000, "{beat}");
    }
    for seq in [70, 3] {
        let problem = running.post(&heartbeats, json!({ "seq": seq })).await.problem(409, "stale-heartbeat");
        assert_eq!(problem["last_seq"], 70);
    }
    for body in [json!({}), json!({ "seq": 0 }), json!({ "seq": "71" }), json!({ "seq": 71, "more": 1 })] {
        running.post(&heartbeats, body).await.problem(400, "malformed-request");
    }
    running.post(&heartbeats, json!({ "seq": u64::MAX })).await.expect(200);
}

#[tokio::test]
async fn what_is_no_session_is_not_found() {
    let running = Running::start("").await;
    let session = running.session().await;
    running.delete(&session).await.expect(204);
    for session in
        [session.as_str(), "/v1/sessions/0123456789abcdef0123456789abcdef", "/v1/sessions/x", "/v1/sessions/%C3%A9"]
    {
        running.delete(session).await.problem(404, "no-such-session");
        running.delete(&format!("{session}/locks/1")).await.problem(404, "no-such-session");
        running.post(&format!("{session}/heartbeats"), json!({ "seq": 1 })).await.problem(404, "no-such-session");
        running.post(&format!("{session}/locks"), lock("default/a", "0")).await.problem(404, "no-such-session");
    }
    running.delete("/v1/sessions/%ff").await.problem(404, "path");
}

#[tokio::test]
async fn a_session_without_heartbeats_expires_and_what_it_held_is_unclean() {
    let running = Running::start("").await;
    let silent = running.session().await;
    running.take(&silent, lock("default/a", "0")).await;
    let waiting = running.ask_for(&silent, lock("default/a", "60s"));
    within(waiting).await.unwrap().problem(404, "no-such-session");
    running.post(&format!("{silent}/heartbeats"), json!({ "seq": 1 })).await.problem(404, "no-such-session");
    let other = running.session().await;
    running.post(&format!("{other}/locks"), lock("default/a", "0")).await.problem(423, "locked");
    let seen = running.get("/v1/locks/default/a").await.expect(200);
    assert_eq!(seen["holder_count"], 0, "{seen}");
    assert!(seen["quarantined_for_ms"].as_u64().unwrap() > 0, "{seen}");
}

#[tokio::test]
async fn heartbeats_keep_a_session_for_longer_than_its_ttl() {
    let running = Running::start("[sessions]\nttl = \"2s\"").await;
    let session = running.session().await;
    let held = running.take(&session, lock("default/a", "5s")).await;
    assert_eq!(held["heartbeat_seq"], 0, "the session's own request counts as heartbeat 0");
    assert!((1..2_000).contains(&held["valid_ms"].as_u64().unwrap()), "{held}");
    let beating = running.beat(&session);
    let silent = running.session().await;
    running.take(&silent, lock("default/b", "5s")).await;
    // One that says nothing expires meanwhile.
    running.until("default/b", "in quarantine", |key| key["quarantined_for_ms"].is_u64()).await;
    running.delete(&format!("{session}/locks/1")).await.expect(204);
    assert!(!beating.is_finished());
    beating.abort();
}

#[tokio::test]
async fn the_end_of_a_session_takes_back_its_waits_and_releases_its_holds_as_unclean() {
    let running = Running::start(LONG).await;
    let (ending, other) = (running.session().await, running.session().await);
    running.take(&ending, lock("default/held", "0")).await;
    running.take(&other, lock("default/waited", "0")).await;
    let waiting = running.ask_for(&ending, lock("default/waited", "60s"));
    running.until("default/waited", "waited for", |key| key["waiter_count"] == 1).await;
    running.delete(&ending).await.expect(204);
    within(waiting).await.unwrap().problem(404, "no-such-session");
    let seen = running.get("/v1/locks/default/held").await.expect(200);
    assert!(seen["holder_count"] == 0 && seen["quarantined_for_ms"].is_u64(), "{seen}");
    let seen = running.get("/v1/locks/default/waited").await.expect(200);
    assert!(seen["holder_count"] == 1 && seen["waiter_count"] == 0, "{seen}");
    running.delete(&ending).await.problem(404, "no-such-session");
}

#[tokio::test]
async fn a_drain_is_told_and_lets_holds_end() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    running.take(&session, lock("default/a", "0")).await;
    let waiting = running.ask_for(&session, lock("default/a", "60s"));
    running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    let Running { api, stop, stopped, .. } = running;
    stop.send(()).unwrap();
    within(waiting).await.unwrap().problem(503, "host-unavailable");
    let beat = Ask::post(&format!("{session}/heartbeats"), json!({ "seq": 1 })).send(api).await.expect(200);
    assert_eq!(beat["draining"], true);
    let late = Ask::post(&format!("{session}/locks"), lock("default/b", "0")).send(api).await;
    late.problem(503, "host-unavailable");
    Ask::post("/v1/sessions", json!({})).send(api).await.expect(201);
    Ask::new("DELETE", &format!("{session}/locks/1")).send(api).await.expect(204);
    assert_eq!(within(stopped).await.unwrap(), Stopped::Drained);
}

#[tokio::test]
async fn locks_of_the_api_and_of_proxies_are_the_same() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let held = running.take(&session, lock("default/a", "0")).await;
    let channel = Endpoint::from_shared(format!("http://{}", running.sessions)).unwrap().connect().await.unwrap();
    let mut client = LockServiceClient::new(channel);
    let (say, said) = tokio::sync::mpsc::unbounded_channel();
    let mut stream = client.session(UnboundedReceiverStream::new(said)).await.unwrap().into_inner();
    let say = |item: ClientItem| say.send(ClientMessage { items: vec![item] }).unwrap();
    let mut heard = VecDeque::new();
    let mut hear = async || loop {
        match heard.pop_front() {
            Some(item) => return item,
            None => heard.extend(
                within(stream.message()).await.unwrap().unwrap().items.into_iter().filter_map(|item| item.item),
            ),
        }
    };
    say(Hello { protocol_version: VERSION, node: "proxy".into(), generation: 1, heartbeat_seq: 1, ..Hello::default() }
        .into());
    assert!(matches!(hear().await, Item::Welcome(_)));
    let acquire = |id, wait_ms| {
        let keys = vec![KeyRequest { key: "default/a".into(), mode: Mode::Exclusive.into(), limit: 0 }];
        Acquire { id, keys, wait_ms, ..Acquire::default() }
    };
    say(acquire(1, 0).into());
    assert!(matches!(hear().await, Item::Reject(reject) if reject.reason() == RejectReason::Conflict));
    say(acquire(2, 60_000).into());
    let seen = running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    assert_eq!((&seen["holders"][0]["node"], &seen["waiters"][0]["node"]), (&json!("test"), &json!("proxy")));
    running.delete(&format!("{session}/locks/{}", held["id"])).await.expect(204);
    let Item::Grant(grant) = hear().await else { panic!("the lock is free") };
    assert!(grant.keys[0].token > held["keys"][0]["token"].as_u64().unwrap());
}
