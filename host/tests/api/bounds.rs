//! Floods: what is bounded is refused at once, and harms nobody else.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bench::{LONG, Running, lock, within};

#[tokio::test]
async fn sessions_are_bounded() {
    let running = Running::start("[limits]\nsessions = 1").await;
    let _first = running.session().await;
    running.post("/v1/sessions", json!({})).await.problem(503, "queue-full");
}

#[tokio::test]
async fn waiters_of_a_session_are_bounded() {
    let running = Running::start(&format!("{LONG}[limits]\nwaiters_per_session = 1")).await;
    let session = running.session().await;
    running.take(&session, lock("default/a", "0")).await;
    let waiting = running.ask_for(&session, lock("default/a", "60s"));
    running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;
    running.post(&format!("{session}/locks"), lock("default/b", "1s")).await.problem(503, "queue-full");
    waiting.abort();
}

#[tokio::test]
async fn locks_of_a_session_are_bounded_lost_ones_included() {
    let running = Running::start(&format!("{LONG}[limits]\nhold = \"1s\"")).await;
    let session = running.session().await;
    let one = |number: usize| json!({ "keys": [{ "key": format!("default/{number}") }], "lock_delay": "0s" });
    for number in 1..=1_024 {
        running.take(&session, one(number)).await;
    }
    running.post(&format!("{session}/locks"), one(0)).await.problem(503, "queue-full");
    running.delete(&format!("{session}/locks/7")).await;
    running.take(&session, one(0)).await;
    running.post(&format!("{session}/locks"), one(7)).await.problem(503, "queue-full");
    // All in one event.
    running.delete(&session).await.expect(204);
}

#[tokio::test]
async fn connections_are_bounded_and_waits_leave_room_for_heartbeats() {
    let running = Running::start(&format!("{LONG}[api]\nconnections = 4")).await;
    let session = running.session().await;
    running.take(&session, lock("default/a", "0")).await;
    let mut waiting = Vec::new();
    for count in 1..=2 {
        waiting.push(running.ask_for(&session, lock("default/a", "60s")));
        running.until("default/a", "waited for", |key| key["waiter_count"] == count).await;
    }
    running.post(&format!("{session}/locks"), lock("default/b", "60s")).await.problem(503, "queue-full");
    running.post(&format!("{session}/heartbeats"), json!({ "seq": 1 })).await.expect(200);
    // What is open and idle takes a place; one that was closed may take it for a moment longer.
    let mut idle = Vec::new();
    within(async {
        while idle.len() < 2 {
            idle.extend(served(&running).await);
        }
    })
    .await;
    assert!(within(served(&running)).await.is_none(), "a fifth connection is served");
    idle.pop();
    within(async { while served(&running).await.is_none() {} }).await;
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A connection that was answered, and is still open.
async fn served(running: &Running) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(running.api).await.unwrap();
    let ask = b"GET /v1/audit HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n";
    let mut answer = [0; 12];
    let answered = stream.write_all(ask).await.is_ok() && stream.read_exact(&mut answer).await.is_ok();
    answered.then(|| assert_eq!(&answer, b"HTTP/1.1 200")).map(|()| stream)
}

#[tokio::test]
async fn a_flood_of_waits_that_hang_up_leaves_nothing_behind() {
    let running = Running::start(LONG).await;
    let (holder, flood) = (running.session().await, running.session().await);
    running.take(&holder, lock("default/a", "0")).await;
    for _ in 0..20 {
        let waits: Vec<_> = (0..50).map(|_| running.ask_for(&flood, lock("default/a", "60s"))).collect();
        running.until("default/a", "waited for", |key| key["waiter_count"].as_u64() > Some(0)).await;
        waits.iter().for_each(tokio::task::JoinHandle::abort);
    }
    running.until("default/a", "left", |key| key["waiter_count"] == 0).await;
    running.delete(&format!("{holder}/locks/1")).await.expect(204);
    running.take(&flood, lock("default/a", "20s")).await;
}
