//! The session in trouble: broken streams, hosts that forget or go away, bounds that are reached.

use super::*;
use crate::reentry::{HolderSecret, Reentry};

#[test]
fn silence_closes_the_stream_and_the_hold_survives_a_resume() {
    let mut bench = Bench::live();
    let id = bench.hold(1);
    bench.acquire(2, 60_000);
    bench.pass(2_600);
    bench.drain();
    assert_eq!(bench.closed, [StreamToken(1)]);
    assert_eq!(bench.outcomes(), []);
    bench.pass_backoff();
    let hello = bench.open();
    let resume = hello.resume.expect("resumes");
    assert_eq!((hello.generation, resume.incarnation.as_str(), resume.session_id), (2, "host", 7));
    assert_eq!(resume.holds, [id]);
    assert_eq!(resume.waiters.iter().map(|waiter| waiter.id).collect::<Vec<_>>(), [id + 1]);
    assert!(resume.waiters[0].wait_ms < 60_000 - 2_000);
    bench.welcome(true);
    let beats = heartbeats(&bench.drain());
    bench.ack(beats[0]);
    bench.pass(3_000);
    assert_eq!(bench.outcomes(), []);
    assert!(bench.believes(1));
}

#[test]
fn a_thawed_worker_reads_its_answers_before_it_suspects_the_host() {
    let mut bench = Bench::live();
    bench.pass(1_000);
    bench.freeze(2_500);
    bench.session.tick(bench.now);
    let seq = bench.session.pulse.last_seq();
    bench.ack(seq);
    bench.pass(500);
    bench.drain();
    assert_eq!(bench.closed, []);
}

#[test]
fn what_was_said_on_a_broken_stream_is_said_again() {
    let mut bench = Bench::live();
    let told = bench.hold(1);
    let untold = bench.hold(2);
    let late = bench.hold(3);
    bench.acquire(4, 60_000);
    let cancelled = late + 1;
    bench.session.release(RequestRef(1), Ending::Clean);
    bench.drain();
    bench.break_stream();
    bench.session.release(RequestRef(2), Ending::Unclean);
    bench.session.cancel(RequestRef(4));
    bench.pass_backoff();
    let resume = bench.open().resume.expect("resumes");
    let releases: Vec<_> = resume.releases.iter().map(|release| (release.id, release.ending())).collect();
    // The cancel at the start of `live` was not acknowledged either.
    assert_eq!(
        releases,
        [(1, Ending::Unsent), (told, Ending::Clean), (untold, Ending::Unclean), (cancelled, Ending::Unsent)]
    );
    // After the Hello and before the Welcome.
    bench.session.release(RequestRef(3), Ending::Clean);
    assert_eq!(bench.drain(), []);
    bench.welcome(true);
    let items = bench.drain();
    assert!(items.contains(&release(late, Ending::Clean)), "{items:?}");
    // All are covered by the answer to a later heartbeat.
    bench.pass(1_000);
    let seq = bench.session.pulse.last_seq();
    bench.ack(seq);
    assert_eq!(bench.session.farewells.len(), 0);
}

#[test]
fn a_session_that_the_host_does_not_know_is_lost_and_waiters_ask_again() {
    let mut bench = Bench::live();
    bench.hold(1);
    bench.acquire(2, 10_000);
    bench.break_stream();
    bench.pass_backoff();
    assert!(bench.open().resume.is_some());
    bench.welcome(false);
    assert_eq!(bench.outcomes(), [(1, Outcome::Lost(Loss::ByHost))]);
    let items = bench.drain();
    assert_eq!(acquires(&items).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3]);
    // The new session knows nothing of the old hold.
    bench.session.release(RequestRef(1), Ending::Unclean);
    assert_eq!(bench.drain(), []);
    bench.grant(3, bench.session.pulse.last_seq());
    assert_eq!(bench.outcomes(), [(2, granted(103))]);
}

#[test]
fn messages_of_an_old_stream_are_dropped() {
    let mut bench = Bench::live();
    bench.acquire(1, 60_000);
    bench.break_stream();
    bench.pass_backoff();
    bench.open();
    bench.welcome(true);
    bench.drain();
    let keys = key_grants(&[5]);
    let stale = v1::Grant { id: 2, keys, heartbeat_seq: 1, valid_ms: VALID_MS, ..Default::default() };
    bench.say_on(1, [stale.into()]);
    assert_eq!((bench.drain(), bench.outcomes()), (vec![], vec![]));
    bench.session.stream_closed(bench.now, StreamToken(1));
    assert!(bench.session.link.is_live());
}

#[test]
fn a_hold_outlives_its_session_by_no_tick() {
    let mut bench = Bench::live();
    bench.hold(1);
    bench.acquire(2, 60_000);
    bench.break_stream();
    bench.pass(u64::from(TTL_MS));
    assert!(matches!(bench.outcomes()[..], [(1, Outcome::Lost(_))]));
    // It was in a queue before, and waits on; who comes now is answered at once, once a connection has failed.
    bench.acquire(3, 5_000);
    let hello = bench.open();
    let resume = hello.resume.expect("should the host have been frozen, it must not grant what was waited for");
    assert_eq!((resume.holds.len(), resume.waiters.len()), (0, 0));
    bench.break_stream();
    assert_eq!(bench.outcomes(), [(3, UNAVAILABLE)]);
    assert_eq!(bench.try_acquire(4, 5_000), Err(Rejection::HostUnavailable));
    bench.pass_backoff();
    bench.open();
    bench.welcome(false);
    assert_eq!(acquires(&bench.drain()).len(), 1);
}

/// It was frozen, has its lease yet, and reads a Hello of before: then our waiters would be granted, with nobody to act
/// on it, and their keys be shut.
#[test]
fn a_session_that_is_given_up_is_ended_should_its_host_still_know_it() {
    let mut bench = Bench::live();
    bench.hold(1);
    bench.acquire(2, 60_000);
    bench.acquire(3, 60_000);
    bench.session.cancel(RequestRef(3));
    bench.break_stream();
    bench.pass(u64::from(TTL_MS) + 100);
    assert!(matches!(bench.outcomes()[..], [(1, Outcome::Lost(_))]));
    bench.session.cancel(RequestRef(1));
    bench.pass_backoff();
    // Told until it is heard.
    for _ in 0..2 {
        let resume = bench.open().resume.expect("the session is named");
        let mut ended: Vec<(u64, i32)> = resume.releases.iter().map(|release| (release.id, release.ending)).collect();
        ended.sort_unstable();
        let unsent = i32::from(Ending::Unsent);
        assert_eq!(
            (ended, resume.holds, resume.waiters),
            (vec![(1, unsent), (3, unsent), (4, unsent)], vec![], vec![])
        );
        bench.break_stream();
        bench.pass_backoff();
    }
    bench.open();
    bench.welcome(true);
    // Under a new number: the host has seen the old one.
    let asked = acquires(&bench.drain());
    assert!(matches!(asked[..], [(5.., _)]), "{asked:?}");
    bench.grant(asked[0].0, bench.session.pulse.last_seq());
    assert_eq!(bench.outcomes(), [(2, granted(100 + asked[0].0))]);
    assert!(bench.believes(2));
    // It is a session like any other.
    bench.break_stream();
    bench.pass_backoff();
    assert_eq!(bench.open().resume.expect("it is resumed").holds, [asked[0].0]);
}

#[test]
fn waits_end_without_a_host() {
    let mut bench = Bench::live();
    bench.acquire(1, 3_000);
    bench.break_stream();
    bench.acquire(2, 0);
    bench.pass(1_050);
    assert_eq!(bench.outcomes(), [(2, UNAVAILABLE)]);
    bench.pass(2_000);
    assert_eq!(bench.outcomes(), [(1, UNAVAILABLE)]);
    assert!(bench.session.ids.is_empty());
}

#[test]
fn a_wait_that_the_host_forgets_is_ended_and_cancelled() {
    let mut bench = Bench::live();
    bench.acquire(1, 300);
    for beat in 2..5 {
        bench.pass(1_000);
        bench.ack(beat);
    }
    assert_eq!(bench.outcomes(), [(1, UNAVAILABLE)]);
    assert!(bench.drain().contains(&client_item::Item::Cancel(v1::Cancel { id: 2 })));
}

#[test]
fn the_hold_limit_is_kept_here_too() {
    let mut bench = Bench::live();
    bench.hold(1);
    let id = bench.session.next_id;
    let ask = Ask { wait: Duration::from_secs(5), hold: Duration::from_millis(700), ..ask(2) };
    bench.session.acquire(bench.now, RequestRef(2), ask).expect("taken on");
    bench.grant(id, 2);
    assert_eq!(bench.outcomes().len(), 1);
    assert!(bench.believes(2));
    bench.pass(650);
    assert_eq!(bench.outcomes(), []);
    bench.pass(50);
    assert_eq!(bench.outcomes(), [(2, Outcome::Lost(Loss::HoldLimit))]);
    bench.pass(500);
    assert_eq!(bench.outcomes(), [], "lost once");
    bench.drain();
    bench.session.release(RequestRef(2), Ending::Unclean);
    assert_eq!(bench.drain(), [release(id, Ending::Unclean)]);
}

#[test]
fn lost_by_the_host_is_reported_once_and_confirmed() {
    let mut bench = Bench::live();
    let id = bench.hold(1);
    for _ in 0..2 {
        bench.say([v1::Lost { id, reason: v1::LostReason::Forced.into() }.into()]);
    }
    assert_eq!(bench.outcomes(), [(1, Outcome::Lost(Loss::ByHost))]);
    bench.pass(1_000);
    bench.ack(2);
    assert!(!bench.believes(1), "an ack revived it");
    bench.drain();
    bench.session.release(RequestRef(1), Ending::Unclean);
    assert_eq!(bench.drain(), [release(id, Ending::Unclean)]);
}

#[test]
fn a_draining_host_keeps_its_holds_and_loses_its_waiters_to_a_successor() {
    let mut bench = Bench::live();
    bench.hold(1);
    bench.acquire(2, 10_000);
    bench.acquire(3, 10_000);
    bench.reject(3, v1::RejectReason::Draining);
    bench.say([v1::GoAway { reason: "drain".to_owned() }.into()]);
    assert!(bench.session.is_draining());
    let names = Names::default();
    let successor = bench.session.successor(names, bench.now);
    assert_eq!(bench.drain(), [client_item::Item::Cancel(v1::Cancel { id: 4 })]);
    assert!(!bench.session.is_unused());
    bench.session.release(RequestRef(1), Ending::Clean);
    assert!(!bench.session.is_unused(), "the host has not acknowledged the release");

    bench.now = bench.now + Duration::from_secs(1);
    assert!(successor.wants_stream(bench.now));
    bench.session = successor;
    bench.sent.clear();
    bench.open();
    bench.welcome(false);
    assert_eq!(acquires(&bench.drain()), [(1, 9_000), (2, 9_000)]);
    assert_eq!(bench.outcomes(), []);
}

#[test]
fn everything_is_bounded() {
    let mut bench = Bench::live();
    for owner in 1..=WAITERS_MAX as u32 {
        bench.acquire(owner, 60_000);
    }
    assert_eq!(bench.try_acquire(1_000_000, 60_000), Err(Rejection::Busy { retry_after: None }));
    // A Hello that resumes all of them still fits into a message.
    bench.break_stream();
    bench.pass_backoff();
    let hello = bench.open();
    assert!(hello.encoded_len() < turnstile_protocol::MESSAGE_MAX_BYTES);
    bench.welcome(true);
    for owner in 1..=WAITERS_MAX as u32 {
        bench.session.cancel(RequestRef(owner));
    }
    let mut owner = 10_000_000;
    while bench.session.farewells.len() < FAREWELLS_MAX {
        owner += 1;
        bench.acquire(owner, 60_000);
        bench.session.cancel(RequestRef(owner));
    }
    assert_eq!(bench.try_acquire(1, 0), Err(Rejection::Busy { retry_after: None }));
}

/// However many keys its waiters have: those that do not fit ask anew.
#[test]
fn a_hello_is_bounded_by_all_keys_of_its_waiters() {
    let mut bench = Bench::live();
    let waiters = 200;
    for owner in 1..=waiters {
        let names: Vec<String> = (0..16).map(|key| format!("default/{owner}:{key}:{}", "x".repeat(480))).collect();
        let keys = keys(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let reentry = Reentry::Join(HolderSecret::from_wire(&[7; 24]).expect("a secret"));
        let ask = Ask { keys, reentry, wait: Duration::from_secs(60), ..Default::default() };
        bench.session.acquire(bench.now, RequestRef(owner), ask).expect("taken on");
    }
    bench.drain();
    bench.break_stream();
    bench.pass_backoff();
    let hello = bench.open();
    let bytes = hello.encoded_len();
    assert!(bytes < turnstile_protocol::MESSAGE_MAX_BYTES / 2 + 1_000, "{bytes} bytes");
    let resumed = hello.resume.expect("resumes");
    assert!((50..100).contains(&resumed.waiters.len()), "{} fit", resumed.waiters.len());
    assert!(resumed.waiters.iter().all(|waiter| waiter.keys.len() == 16 && waiter.reentry_secret == [7; 24]));
    bench.welcome(true);
    let anew = acquires(&bench.drain()).len();
    assert_eq!(resumed.waiters.len() + anew, waiters as usize);
    assert_eq!(resumed.releases.len(), 1 + anew, "those that ask anew are cancelled");
}

#[test]
fn many_releases_call_for_a_heartbeat_out_of_turn() {
    let mut bench = Bench::live();
    bench.ack(2);
    for owner in 1..=(FAREWELLS_MAX / 4) as u32 {
        bench.acquire(owner, 60_000);
        bench.session.cancel(RequestRef(owner));
    }
    bench.drain();
    bench.ack(2);
    bench.ack(2);
    assert_eq!(heartbeats(&bench.drain()), [3], "one, and no second before it is answered");
}

#[test]
fn an_idle_session_is_closed_and_opened_anew() {
    let mut bench = Bench::live();
    for beat in 3..71 {
        bench.pass(1_000);
        bench.ack(beat);
        if !bench.session.is_busy() {
            break;
        }
    }
    bench.drain();
    assert!(!bench.session.is_busy());
    assert_eq!(bench.closed, [StreamToken(1)]);
    bench.acquire(1, 5_000);
    let hello = bench.open();
    assert_eq!((hello.generation, hello.resume), (1, None));
}

#[test]
fn garbage_is_ignored() {
    let mut bench = Bench::live();
    bench.session.receive(bench.now, StreamToken(1), &[0xff; 9]);
    bench.say([v1::ServerItem { item: None }, v1::Grant::default().into(), v1::HeartbeatAck::default().into()]);
    bench.say([server_item::Item::Lost(v1::Lost::default())].map(|item| v1::ServerItem { item: Some(item) }));
    assert_eq!(bench.outcomes(), []);
    assert!(bench.session.link.is_live());
}
