//! Modes, several keys, re-entrancy and the rest of what an Acquire may ask for, over the wire; on one host and on two.

use tempfile::TempDir;
use turnstile_host::service::Stopped;
use turnstile_protocol::v1::server_item::Item;
use turnstile_protocol::v1::{Acquire, Ending, Heartbeat, KeyRequest, Mode, Reject, RejectReason, Resume};

use crate::client::*;

fn wants(id: u64, keys: &[(&str, Mode, u32)]) -> Acquire {
    let of =
        |(key, mode, limit): &(&str, Mode, u32)| KeyRequest { key: (*key).into(), mode: (*mode).into(), limit: *limit };
    Acquire { keys: keys.iter().map(of).collect(), ..acquire(id, "", 10_000) }
}

fn exclusive(id: u64, keys: &[&str]) -> Acquire {
    let keys: Vec<_> = keys.iter().map(|key| (*key, Mode::Exclusive, 0)).collect();
    wants(id, &keys)
}

/// Asserts that nothing but the answer to heartbeat `seq` comes.
async fn hears_nothing(stream: &mut Stream, seq: u64) {
    stream.say(Heartbeat { seq });
    loop {
        match stream.hear().await.unwrap() {
            Item::HeartbeatAck(ack) if ack.seq < seq => {}
            Item::HeartbeatAck(ack) => return assert_eq!(ack.seq, seq),
            other => panic!("expected nothing, got {other:?}"),
        }
    }
}

async fn rejected(stream: &mut Stream) -> Reject {
    match stream.hear().await.unwrap() {
        Item::Reject(reject) => reject,
        other => panic!("expected a Reject, got {other:?}"),
    }
}

#[tokio::test]
async fn readers_share_and_a_writer_waits_for_all_of_them() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut first, _) = session(&running).await;
    let (mut second, _) = session(&running).await;
    let (mut writer, _) = session(&running).await;
    first.say(wants(1, &[("ns/a", Mode::Shared, 0)]));
    let low = first.grant().await.keys[0];
    second.say(wants(1, &[("ns/a", Mode::Shared, 0)]));
    let high = second.grant().await.keys[0];
    assert!(high.token > low.token);
    assert_eq!((low.barrier, high.barrier), (low.token, low.token), "the first is still live");
    writer.say(exclusive(1, &["ns/a"]));
    hears_nothing(&mut writer, 2).await;
    first.say(release(1, Ending::Clean));
    hears_nothing(&mut writer, 3).await;
    second.say(release(1, Ending::Clean));
    let own = writer.grant().await.keys[0];
    assert!(own.token > high.token);
    assert_eq!(own.barrier, own.token);
}

#[tokio::test]
async fn a_limit_lets_in_so_many() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut stream, _) = session(&running).await;
    for id in 1..=3 {
        stream.say(wants(id, &[("ns/a", Mode::Limit, 2)]));
    }
    stream.grant().await;
    stream.grant().await;
    hears_nothing(&mut stream, 2).await;
    stream.say(release(2, Ending::Clean));
    assert_eq!(stream.grant().await.id, 3);
}

#[tokio::test]
async fn several_keys_come_together_with_a_token_each() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut first, _) = session(&running).await;
    let (mut second, _) = session(&running).await;
    second.say(exclusive(1, &["ns/a"]));
    let earlier = second.grant().await.keys[0].token;
    first.say(exclusive(1, &["ns/b", "ns/a"]));
    hears_nothing(&mut first, 2).await;
    second.say(release(1, Ending::Clean));
    let granted = first.grant().await;
    assert_eq!(granted.keys.len(), 2);
    assert!(granted.keys[1].token > earlier, "in the order asked: {granted:?}");
    second.say(exclusive(2, &["ns/b"]));
    hears_nothing(&mut second, 2).await;
    first.say(release(1, Ending::Clean));
    assert!(second.grant().await.keys[0].token > granted.keys[0].token);
    first.say(exclusive(2, &["ns/b", "ns/b"]));
    assert_eq!(first.rejection().await, (2, RejectReason::Invalid));
}

#[tokio::test]
async fn two_hosts_that_want_the_same_keys_take_turns_and_never_wait_in_a_circle() {
    const ROUNDS: u64 = 40;
    let directory = TempDir::new().unwrap();
    let hosts = [start(&directory, "").await, start(&directory, "").await];
    let mut last = std::collections::BTreeMap::new();
    let mut streams = Vec::new();
    for host in &hosts {
        streams.push(session(host).await.0);
        streams.push(session(host).await.0);
    }
    let orders =
        [["ns/a", "ns/b", "ns/c"], ["ns/c", "ns/a", "ns/b"], ["ns/b", "ns/c", "ns/a"], ["ns/c", "ns/b", "ns/a"]];
    let mut tasks = Vec::new();
    for (mut stream, order) in streams.into_iter().zip(orders) {
        tasks.push(tokio::spawn(async move {
            let (mut grants, mut seq) = (Vec::new(), 1);
            for id in 1..=ROUNDS {
                stream.say(Acquire { wait_ms: 60_000, ..exclusive(id, &order) });
                let granted = stream.grant_while_beating(&mut seq).await;
                stream.say(release(id, Ending::Clean));
                grants.push((granted.keys.iter().map(|key| key.token).collect::<Vec<_>>(), order));
            }
            // The last release must have been heard before the stream goes.
            hears_nothing(&mut stream, seq + 1).await;
            grants
        }));
    }
    for task in tasks {
        let grants = within(task).await.unwrap();
        assert_eq!(grants.len() as u64, ROUNDS);
        for (tokens, order) in grants {
            for (key, token) in order.iter().zip(tokens) {
                last.entry(*key).or_insert_with(Vec::new).push(token);
            }
        }
    }
    for (key, mut tokens) in last {
        let all = tokens.len();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!((tokens.len(), all as u64), (all, ROUNDS * 4), "{key}: a token came twice");
    }
    for host in hosts {
        assert_eq!(host.stop().await, Stopped::Drained);
    }
}

#[tokio::test]
async fn whoever_brings_the_holder_secret_joins_the_hold() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut outer, welcome) = session(&running).await;
    let (mut inner, _) = session(&running).await;
    let (mut other, _) = session(&running).await;
    outer.say(Acquire { reentrant: true, ..exclusive(1, &["ns/a"]) });
    let granted = outer.grant().await;
    assert_eq!(granted.holder_secret.len(), turnstile_protocol::HOLDER_SECRET_BYTES);
    let incarnation = u64::from_str_radix(&welcome.incarnation, 16).unwrap().to_be_bytes();
    assert!(granted.holder_secret.starts_with(&incarnation), "it names the host's incarnation");
    other.say(exclusive(1, &["ns/a"]));
    let joins = |id| Acquire { reentry_secret: granted.holder_secret.clone(), ..exclusive(id, &["ns/a"]) };
    inner.say(joins(1));
    let joined = inner.grant().await;
    assert_eq!((joined.keys, joined.holder_secret), (granted.keys.clone(), granted.holder_secret.clone()));
    outer.say(release(1, Ending::Clean));
    hears_nothing(&mut other, 2).await;
    inner.say(release(1, Ending::Clean));
    assert!(other.grant().await.keys[0].token > granted.keys[0].token);
    inner.say(joins(2));
    assert_eq!(inner.rejection().await, (2, RejectReason::NoSuchHold));
    // A plain hold has no secret.
    other.say(release(1, Ending::Clean));
    other.say(exclusive(2, &["ns/b"]));
    assert!(other.grant().await.holder_secret.is_empty());
}

#[tokio::test]
async fn a_secret_is_worth_nothing_elsewhere_nor_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let (here, there) = (start(&directory, "").await, start(&directory, "").await);
    let (mut outer, _) = session(&here).await;
    outer.say(Acquire { reentrant: true, ..exclusive(1, &["ns/a"]) });
    let secret = outer.grant().await.holder_secret;
    let joins = |id| Acquire { reentry_secret: secret.clone(), ..exclusive(id, &["ns/a"]) };
    let (mut elsewhere, _) = session(&there).await;
    elsewhere.say(joins(1));
    assert_eq!(elsewhere.rejection().await, (1, RejectReason::NoSuchHold));
    for bad in [vec![0], vec![7; 24], secret[..23].to_vec()] {
        let (mut stream, _) = session(&here).await;
        stream.say(Acquire { reentry_secret: bad, ..exclusive(1, &["ns/a"]) });
        assert_eq!(stream.rejection().await, (1, RejectReason::NoSuchHold));
    }
    outer.say(release(1, Ending::Clean));
    assert_eq!(here.stop().await, Stopped::Drained);
    let again = start(&directory, "").await;
    let (mut stream, _) = session(&again).await;
    stream.say(joins(1));
    assert_eq!(stream.rejection().await, (1, RejectReason::NoSuchHold));
}

#[tokio::test]
async fn a_hold_that_others_joined_survives_a_broken_stream() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut outer, welcome) = session(&running).await;
    let (mut inner, _) = session(&running).await;
    outer.say(Acquire { reentrant: true, ..exclusive(1, &["ns/a"]) });
    let granted = outer.grant().await;
    drop(outer);
    let mut outer = Stream::open(&running).await;
    outer.say(resume(&welcome, 2, 2, Resume { holds: vec![1], ..Resume::default() }));
    assert!(outer.welcome().await.resumed);
    inner.say(Acquire { reentry_secret: granted.holder_secret.clone(), ..exclusive(1, &["ns/a"]) });
    assert_eq!(inner.grant().await.keys, granted.keys);
    // One whose Grant was lost on the way is told it again, secret and all.
    drop(outer);
    let mut outer = Stream::open(&running).await;
    let waiters = vec![Acquire { reentrant: true, ..exclusive(1, &["ns/a"]) }];
    outer.say(resume(&welcome, 3, 3, Resume { waiters, ..Resume::default() }));
    assert!(outer.welcome().await.resumed);
    let again = outer.grant().await;
    assert_eq!((again.keys, again.holder_secret), (granted.keys, granted.holder_secret));
}

#[tokio::test]
async fn what_is_hopeless_or_too_long_a_queue_is_refused_at_once_if_asked_for() {
    let directory = TempDir::new().unwrap();
    let running = start(&directory, "").await;
    let (mut stream, _) = session(&running).await;
    stream.say(Acquire { lock_delay_ms: 60_000, ..exclusive(1, &["ns/a"]) });
    stream.grant().await;
    stream.say(release(1, Ending::Unclean));
    stream.say(Acquire { fail_fast: true, ..exclusive(2, &["ns/a"]) });
    let reject = rejected(&mut stream).await;
    assert_eq!((reject.id, reject.reason()), (2, RejectReason::WaitHopeless));
    assert!((50_000..=61_000).contains(&reject.retry_after_ms), "{reject:?}");
    stream.say(exclusive(3, &["ns/a"]));
    stream.say(Acquire { queue_max: 1, ..exclusive(4, &["ns/a"]) });
    let reject = rejected(&mut stream).await;
    assert_eq!((reject.id, reject.reason(), reject.queue_length), (4, RejectReason::QueueFull, 1));
}
