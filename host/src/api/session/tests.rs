//! A session of the API against a driver that the test plays.

use std::time::Duration;

use turnstile_core::{Ending, Input, RequestId, SessionId};

use super::*;
use crate::driver::Outbound;
use crate::wire::Parsed;

/// The driver's end of one session.
struct Driver {
    events: mpsc::Receiver<Event>,
    outbound: Outbound,
    _alive: oneshot::Sender<()>,
}

async fn open() -> (Arc<Session>, Driver) {
    let (sender, mut events) = mpsc::channel(8);
    let backlog = Backlog::default();
    let opening = tokio::spawn(async move { Session::open(v1::Hello::default(), sender, &backlog).await });
    let Some(Event::Open(Open { outbound, alive, reply, .. })) = events.recv().await else { panic!("a Hello") };
    reply.send(Ok(Opened { session: SessionId(1), generation: 1 })).unwrap();
    outbound.send(vec![v1::Welcome::default().into()]);
    let (session, _, inbound) = opening.await.unwrap().unwrap();
    let running = Arc::clone(&session);
    tokio::spawn(async move { running.run(inbound).await });
    (session, Driver { events, outbound, _alive: alive })
}

impl Driver {
    async fn input(&mut self) -> Input {
        let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await.unwrap();
        let Some(Event::Items { mut items, .. }) = event else { panic!("an item, not {event:?}") };
        assert_eq!(items.len(), 1);
        let Some(Parsed::Input(input)) = items.pop() else { panic!("an input") };
        input
    }

    async fn asked(&mut self) -> RequestId {
        let input = self.input().await;
        let Input::Acquire { acquire, .. } = input else { panic!("an acquire, not {input:?}") };
        acquire.request
    }

    async fn withdrawn(&mut self) -> RequestId {
        let input = self.input().await;
        let Input::Cancel { request, .. } = input else { panic!("a cancel, not {input:?}") };
        request
    }
}

fn asked() -> Asked {
    let key = v1::KeyRequest { key: "default/a".into(), mode: v1::Mode::Exclusive.into(), limit: 0 };
    Asked { id: None, acquire: v1::Acquire { keys: vec![key], ..v1::Acquire::default() } }
}

#[tokio::test]
async fn a_grant_whose_request_went_away_goes_back() {
    let (session, mut driver) = open().await;
    let waiter = session.acquire(asked()).await.unwrap();
    assert_eq!(driver.asked().await, RequestId(1));
    // On its way when the client hangs up.
    driver.outbound.send(vec![v1::Grant { id: 1, ..v1::Grant::default() }.into()]);
    drop(waiter);
    assert_eq!(driver.withdrawn().await, RequestId(1));
    assert_eq!(session.release(1, v1::Ending::Clean).await.unwrap(), Released::Unknown);

    // Told already, and not looked at.
    let waiter = session.acquire(asked()).await.unwrap();
    assert_eq!(driver.asked().await, RequestId(2));
    session.hear(v1::Grant { id: 2, ..v1::Grant::default() }.into());
    drop(waiter);
    assert_eq!(driver.withdrawn().await, RequestId(2));
}

#[tokio::test]
async fn a_wait_that_was_answered_is_not_taken_back() {
    let (session, mut driver) = open().await;
    let (granted, rejected) = (session.acquire(asked()).await.unwrap(), session.acquire(asked()).await.unwrap());
    assert_eq!((driver.asked().await, driver.asked().await), (RequestId(1), RequestId(2)));
    driver.outbound.send(vec![
        v1::Grant { id: 1, ..v1::Grant::default() }.into(),
        v1::Reject { id: 2, ..v1::Reject::default() }.into(),
    ]);
    assert!(matches!(granted.outcome().await, Outcome::Granted(grant) if grant.id == 1));
    assert!(matches!(rejected.outcome().await, Outcome::Rejected(reject) if reject.id == 2));
    assert_eq!(session.release(2, v1::Ending::Clean).await.unwrap(), Released::Unknown);
    assert_eq!(session.release(1, v1::Ending::Unsent).await.unwrap(), Released::Now);
    let released = driver.input().await;
    assert!(matches!(released, Input::Release { request: RequestId(1), ending: Ending::Unsent, .. }));
}

#[tokio::test]
async fn numbers_reach_the_driver_in_their_order() {
    let (session, mut driver) = open().await;
    // More than the driver's mailbox takes: they wait for room, and for each other.
    let all: Vec<_> = (0..50)
        .map(|_| {
            let session = Arc::clone(&session);
            tokio::spawn(async move { session.acquire(asked()).await.unwrap().outcome().await })
        })
        .collect();
    for id in 1..=50 {
        assert_eq!(driver.asked().await, RequestId(id));
    }
    // The stream ends: everybody is told.
    driver.outbound.fail(tonic::Status::deadline_exceeded("no heartbeat"));
    for waiting in all {
        assert!(matches!(waiting.await.unwrap(), Outcome::Over));
    }
    let event = driver.events.recv().await;
    assert!(matches!(event, Some(Event::Closed(opened)) if opened.session == SessionId(1)), "{event:?}");
    assert_eq!(session.heartbeat(1).await.unwrap_err().status(), StatusCode::NOT_FOUND);
    driver.events.close();
    assert_eq!(session.heartbeat(1).await.unwrap_err().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn an_ack_answers_all_heartbeats_up_to_it_with_what_was_lost_before() {
    let (session, mut driver) = open().await;
    let waiter = session.acquire(asked()).await.unwrap();
    driver.asked().await;
    driver.outbound.send(vec![v1::Grant { id: 1, ..v1::Grant::default() }.into()]);
    waiter.outcome().await;
    let beat = |seq| {
        let session = Arc::clone(&session);
        tokio::spawn(async move { session.heartbeat(seq).await })
    };
    let (first, second) = (beat(1), beat(2));
    for _ in 0..2 {
        assert!(matches!(driver.input().await, Input::Heartbeat { .. }));
    }
    driver.outbound.send(vec![
        v1::Lost { id: 1, reason: v1::LostReason::Forced.into() }.into(),
        v1::Lost { id: 7, reason: v1::LostReason::Unknown.into() }.into(),
        v1::HeartbeatAck { seq: 2, valid_ms: 5 }.into(),
    ]);
    for answered in [first, second] {
        let beat = answered.await.unwrap().unwrap();
        assert_eq!((beat.ack.seq, beat.lost), (2, vec![(1, v1::LostReason::Forced)]));
    }
}
