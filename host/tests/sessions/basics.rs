//! Sessions, streams, bounds and ends, with one exclusive key.

use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Endpoint;
use turnstile_host::service::Stopped;
use turnstile_protocol::v1::lock_service_client::LockServiceClient;
use turnstile_protocol::v1::server_item::Item;
use turnstile_protocol::v1::{
    Acquire, ClientItem, ClientMessage, Ending, Heartbeat, Hello, LostReason, RejectReason, Resume, Welcome,
};
use turnstile_protocol::{ITEMS_PER_MESSAGE_MAX, NAME_MAX_BYTES, VERSION};

use crate::client::*;

#[tokio::test]
async fn a_lock_goes_from_one_session_to_the_next_with_a_larger_token() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut first, welcome) = session(&running).await;
    let (mut second, other) = session(&running).await;
    assert_ne!(welcome.session_id, other.session_id);
    first.say(acquire(1, "default/a", 10_000));
    let held = first.grant().await;
    assert!(held.valid_ms > 0 && held.valid_ms < welcome.ttl_ms, "{held:?}");
    assert_eq!(held.heartbeat_seq, 1, "the Hello counts as a heartbeat");
    second.say(acquire(1, "default/a", 10_000));
    second.say(Heartbeat { seq: 2 });
    let Item::HeartbeatAck(ack) = second.hear().await.unwrap() else { panic!("granted while held") };
    assert_eq!(ack.seq, 2);
    first.say(release(1, Ending::Clean));
    let next = second.grant().await;
    assert!(next.keys[0].token > held.keys[0].token, "{held:?} then {next:?}");
    assert_eq!(next.heartbeat_seq, 2);
    second.say(release(1, Ending::Clean));
    assert_eq!(running.stop().await, Stopped::Drained);
}

#[tokio::test]
async fn a_try_is_answered_at_once() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut stream, _) = session(&running).await;
    stream.say(acquire(1, "default/a", 0));
    stream.grant().await;
    stream.say(acquire(2, "default/a", 0));
    assert_eq!(stream.rejection().await, (2, RejectReason::Conflict));
    stream.say(Acquire { keys: Vec::new(), ..acquire(3, "", 0) });
    assert_eq!(stream.rejection().await, (3, RejectReason::Invalid));
}

#[tokio::test]
async fn what_breaks_the_protocol_is_refused_and_the_host_goes_on() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let stream = Stream::open(&running).await;
    stream.say(Hello { protocol_version: VERSION + 7, ..hello() });
    assert_eq!(stream.refused().await, Code::FailedPrecondition);

    let stream = Stream::open(&running).await;
    stream.say(Heartbeat { seq: 1 });
    assert_eq!(stream.refused().await, Code::InvalidArgument);

    let (stream, _) = session(&running).await;
    stream.say(hello());
    assert_eq!(stream.refused().await, Code::InvalidArgument);

    let (stream, _) = session(&running).await;
    stream.say(ClientItem { item: None });
    assert_eq!(stream.refused().await, Code::InvalidArgument);

    let (stream, _) = session(&running).await;
    stream.say(acquire(1, &"x".repeat(2 << 20), 0));
    assert_eq!(stream.refused().await, Code::OutOfRange);

    let stream = Stream::open(&running).await;
    stream.say(Hello { node: "x".repeat(NAME_MAX_BYTES + 1), ..hello() });
    assert_eq!(stream.refused().await, Code::InvalidArgument);

    let (stream, _) = session(&running).await;
    let items = (0..=ITEMS_PER_MESSAGE_MAX as u64).map(|seq| Heartbeat { seq }.into()).collect();
    stream.send.send(ClientMessage { items }).unwrap();
    assert_eq!(stream.refused().await, Code::InvalidArgument);

    let (mut stream, _) = session(&running).await;
    stream.say(acquire(1, "default/a", 0));
    stream.grant().await;
}

#[tokio::test]
async fn a_message_may_have_as_many_items_as_are_allowed() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut stream, _) = session(&running).await;
    let last = ITEMS_PER_MESSAGE_MAX as u64;
    let mut items: Vec<ClientItem> = (1..last).map(|_| Heartbeat { seq: 1 }.into()).collect();
    items.push(Heartbeat { seq: 2 }.into());
    stream.send.send(ClientMessage { items }).unwrap();
    assert!(matches!(stream.hear().await.unwrap(), Item::HeartbeatAck(ack) if ack.seq == 2));
}

#[tokio::test]
async fn a_wait_shorter_than_the_stores_answer_is_granted() {
    let directory = TempDir::new().unwrap();
    // The store commits to a disk, and the machine may be loaded: more than a millisecond each.
    let running = start(&directory, "[ownership]\nclaim_patience = \"20s\"").await;
    let (mut stream, _) = session(&running).await;
    for id in 1..=20 {
        stream.say(acquire(id, &format!("default/{id}"), 1));
        assert_eq!(stream.grant().await.id, id);
    }
}

#[tokio::test]
async fn connections_and_their_streams_are_bounded() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "[limits]\nconnections = 1").await;
    let channel = connect(&running).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = Stream::open_on(channel.clone()).await;
        stream.say(hello());
        stream.welcome().await;
        streams.push(stream);
    }
    let one_more = tokio::spawn(Stream::open_on(channel.clone()));
    streams[0].say(Heartbeat { seq: 2 });
    assert!(matches!(streams[0].hear().await.unwrap(), Item::HeartbeatAck(_)));
    assert!(!one_more.is_finished(), "a 65th stream on one connection");
    streams.pop();
    let mut one_more = within(one_more).await.unwrap();
    one_more.say(hello());
    one_more.welcome().await;

    let address = running.address.strip_prefix("http://").unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    let read = within(second.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "a second connection is served");
    drop((streams, one_more, channel));
    // The host needs a moment to see that the first is gone.
    within(async {
        loop {
            let endpoint = Endpoint::from_shared(running.address.clone()).unwrap();
            if let Ok(channel) = endpoint.connect().await
                && LockServiceClient::new(channel).session(tokio_stream::empty()).await.is_ok()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_resume_beyond_all_bounds_is_refused_and_the_session_goes_on() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut stream, welcome) = session(&running).await;
    stream.say(acquire(1, "default/a", 0));
    stream.grant().await;
    let flood = Stream::open(&running).await;
    flood.say(resume(&welcome, 2, 2, Resume { holds: (0..70_000).collect(), ..Resume::default() }));
    assert_eq!(flood.refused().await, Code::InvalidArgument);
    stream.say(Heartbeat { seq: 2 });
    assert!(matches!(stream.hear().await.unwrap(), Item::HeartbeatAck(_)));
}

#[tokio::test]
async fn a_broken_stream_loses_nothing_if_the_session_resumes() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut stream, welcome) = session(&running).await;
    stream.say(acquire(1, "default/a", 10_000));
    stream.say(acquire(2, "default/b", 10_000));
    let held = stream.grant().await;
    stream.grant().await;
    stream.say(acquire(3, "default/a", 10_000));
    stream.say(Heartbeat { seq: 2 });
    assert!(matches!(stream.hear().await.unwrap(), Item::HeartbeatAck(_)));
    drop(stream);

    // Hold 1 is kept, hold 2 was released by a message that may be lost, 3 still waits, 4 was never heard of.
    let mut stream = Stream::open(&running).await;
    let beliefs = Resume {
        waiters: vec![acquire(3, "default/a", 9_000), acquire(4, "default/c", 9_000)],
        holds: vec![1, 99],
        releases: vec![release(2, Ending::Clean)],
        ..Resume::default()
    };
    stream.say(resume(&welcome, 2, 3, beliefs));
    assert!(stream.welcome().await.resumed);
    let Item::Lost(lost) = stream.hear().await.unwrap() else { panic!("hold 99 is none") };
    assert_eq!((lost.id, lost.reason()), (99, LostReason::Unknown));
    let Item::HeartbeatAck(ack) = stream.hear().await.unwrap() else { panic!("the Hello renews the holds") };
    assert_eq!(ack.seq, 3);
    assert_eq!(stream.grant().await.id, 4);
    let (mut other, _) = session(&running).await;
    other.say(acquire(1, "default/b", 0));
    other.grant().await;
    stream.say(release(1, Ending::Clean));
    let next = stream.grant().await;
    assert_eq!(next.id, 3);
    assert!(next.keys[0].token > held.keys[0].token);
}

#[tokio::test]
async fn a_newer_stream_of_a_session_puts_an_end_to_the_older_one() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut old, welcome) = session(&running).await;
    old.say(acquire(1, "default/a", 0));
    old.grant().await;
    let mut new = Stream::open(&running).await;
    new.say(resume(&welcome, 2, 2, Resume { holds: vec![1], ..Resume::default() }));
    assert!(new.welcome().await.resumed);
    // What still arrives on the old stream is nobody's word any more.
    let _ = old.send.send(ClientMessage { items: vec![release(1, Ending::Clean).into()] });
    assert_eq!(old.refused().await, Code::Ok);
    let stale = Stream::open(&running).await;
    stale.say(resume(&welcome, 2, 3, Resume::default()));
    assert_eq!(stale.refused().await, Code::Aborted);
    let (mut other, _) = session(&running).await;
    other.say(acquire(1, "default/a", 0));
    assert_eq!(other.rejection().await, (1, RejectReason::Conflict));
}

#[tokio::test]
async fn a_session_of_another_incarnation_cannot_be_resumed() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (stream, welcome) = session(&running).await;
    drop(stream);
    let elsewhere = Welcome { incarnation: "another".into(), ..welcome };
    let mut stream = Stream::open(&running).await;
    stream.say(resume(&elsewhere, 2, 2, Resume::default()));
    let fresh = stream.welcome().await;
    assert!(!fresh.resumed);
    assert_ne!(fresh.session_id, elsewhere.session_id);
}

#[tokio::test]
async fn a_drain_says_go_away_rejects_waiters_and_waits_for_holds() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut stream, _) = session(&running).await;
    stream.say(acquire(1, "default/a", 0));
    stream.grant().await;
    stream.say(acquire(2, "default/a", 60_000));
    stream.say(Heartbeat { seq: 2 });
    assert!(matches!(stream.hear().await.unwrap(), Item::HeartbeatAck(_)));
    running.stop.send(()).unwrap();
    assert!(matches!(stream.hear().await.unwrap(), Item::GoAway(_)));
    assert_eq!(stream.rejection().await, (2, RejectReason::Draining));
    stream.say(acquire(3, "default/b", 0));
    assert_eq!(stream.rejection().await, (3, RejectReason::Draining));
    assert!(!running.stopped.is_finished(), "a hold is left");
    stream.say(release(1, Ending::Clean));
    assert_eq!(within(running.stopped).await.unwrap(), Stopped::Drained);

    // Everything was given up, so a successor grants at once, above the old tokens.
    let successor = start(&directory, "").await;
    let (mut stream, _) = session(&successor).await;
    stream.say(acquire(1, "default/a", 0));
    stream.grant().await;
}

#[tokio::test]
async fn a_drain_does_not_wait_longer_than_its_grace() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "[drain]\ngrace = \"200ms\"").await;
    let (mut stream, _) = session(&running).await;
    stream.say(acquire(1, "default/a", 0));
    stream.grant().await;
    assert_eq!(running.stop().await, Stopped::GraceOver);
}

#[tokio::test]
async fn sessions_are_bounded() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "[limits]\nsessions = 1").await;
    let (_first, _) = session(&running).await;
    let second = Stream::open(&running).await;
    second.say(hello());
    assert_eq!(second.refused().await, Code::ResourceExhausted);
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_cut_off_and_harms_nobody() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (slow, _) = session(&running).await;
    // Each is answered by a rejection, since a key is missing.
    for batch in 0..100 {
        let items = (0..2_000).map(|id| Acquire { id: batch * 2_000 + id + 1, ..Acquire::default() }.into()).collect();
        slow.send.send(ClientMessage { items }).unwrap();
    }
    within(async {
        while !slow.send.is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let (mut other, _) = session(&running).await;
    other.say(acquire(1, "default/a", 0));
    other.grant().await;
}
