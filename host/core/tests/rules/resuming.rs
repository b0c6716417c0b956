//! Resuming: what the client believes, compared with what the engine knows.

use turnstile_core::{
    Acquire, Command, Ending, HeartbeatSeq, Input, LostReason, RejectReason, RequestId, Resume, SessionId, Token,
};

use crate::bench::*;

/// A grant that answers the resuming Hello, number 2.
fn granted(session: u64, request: u64, token: Token, waited_ms: u64) -> Command {
    Command::Grant {
        session: SessionId(session),
        request: RequestId(request),
        keys: alone(token),
        secret: None,
        waited: ms(waited_ms),
        seq: HeartbeatSeq(2),
        valid: VALID,
    }
}

#[test]
fn a_hold_that_both_know_is_kept() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, wants(2));
    bench.suspend(1);
    bench.until(1_000);
    let resume = Resume { holds: vec![RequestId(2)], ..Resume::default() };
    assert_eq!(bench.resume(1, 2, resume), [ack(1, 2, VALID)]);
    assert_eq!(bench.engine.hold_count(), 1);
}

#[test]
fn a_grant_that_was_lost_on_the_way_is_told_again_with_the_same_token() {
    let mut bench = Bench::ready(1);
    assert_eq!(bench.acquire(1, wants(2)), [grant(1, 2, token(1, 1), 0, VALID)]);
    bench.suspend(1);
    bench.until(1_000);
    let resume = Resume { waiters: vec![wants(2)], ..Resume::default() };
    assert_eq!(bench.resume(1, 2, resume), [granted(1, 2, token(1, 1), 0), ack(1, 2, VALID)]);
}

#[test]
fn releases_come_first() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    bench.acquire(1, wants(3));
    bench.suspend(1);
    let resume = Resume {
        waiters: vec![wants(4)],
        releases: vec![(RequestId(2), Ending::Clean), (RequestId(3), Ending::Unsent)],
        holds: vec![],
    };
    // The waiter of the other session first, the new request behind it.
    assert_eq!(bench.resume(1, 2, resume), [grant(2, 1, token(1, 2), 0, VALID), ack(1, 2, VALID)]);
    assert_eq!(bench.release(2, 1, Ending::Clean), [granted(1, 4, token(1, 3), 0)]);
}

#[test]
fn its_own_release_does_not_grant_before_beliefs_are_compared() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, wants(2));
    bench.acquire(1, wants(3));
    bench.acquire(1, wants(4));
    bench.suspend(1);
    // Request 3 was cancelled while the stream was broken.
    let resume = Resume { waiters: vec![wants(4)], releases: vec![(RequestId(2), Ending::Clean)], ..Resume::default() };
    assert_eq!(bench.resume(1, 2, resume), [granted(1, 4, token(1, 2), 0), ack(1, 2, VALID)]);
}

#[test]
fn unknown_and_lost_holds_are_lost_again_before_the_ack() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, Acquire { hold: Some(ms(100)), ..wants(2) });
    bench.suspend(1);
    assert_eq!(bench.until(100), [lost(1, 2, LostReason::HoldLimit)]);
    let resume = Resume { holds: vec![RequestId(2), RequestId(77)], ..Resume::default() };
    assert_eq!(
        bench.resume(1, 2, resume),
        [lost(1, 2, LostReason::HoldLimit), lost(1, 77, LostReason::Unknown), ack(1, 2, VALID)]
    );
    // Still held: the client has not confirmed.
    assert_eq!(bench.engine.hold_count(), 1);
}

#[test]
fn a_hold_listed_nowhere_ends_uncleanly_and_a_waiter_listed_nowhere_leaves() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.acquire(1, wants(3));
    bench.acquire(2, wants(1));
    bench.suspend(1);
    assert_eq!(bench.resume(1, 2, Resume::default()), [ack(1, 2, VALID)]);
    assert_eq!((bench.engine.hold_count(), bench.engine.waiter_count()), (0, 1));
    assert_eq!(bench.beat(14_999, 2), []);
    assert!(matches!(bench.until(15_000)[..], [Command::Grant { session: SessionId(2), .. }]));
}

#[test]
fn a_lost_hold_that_the_client_never_had_becomes_a_request_again() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, Acquire { hold: Some(ms(100)), ..wants(2) });
    bench.acquire(2, wants(1));
    bench.suspend(1);
    assert_eq!(bench.until(100), [lost(1, 2, LostReason::HoldLimit)]);
    let resume = Resume { waiters: vec![wants(2)], ..Resume::default() };
    // It was never used, so it ends unsent; the request queues at the tail.
    assert_eq!(bench.resume(1, 2, resume), [grant(2, 1, token(1, 2), 100, VALID), ack(1, 2, VALID)]);
    assert_eq!(bench.release(2, 1, Ending::Clean), [granted(1, 2, token(1, 3), 0)]);
}

#[test]
fn a_known_waiter_keeps_its_place_and_the_earlier_deadline() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    bench.suspend(2);
    let resume = Resume { waiters: vec![Acquire { wait: ms(300), ..wants(1) }], ..Resume::default() };
    assert_eq!(bench.resume(2, 2, resume), [ack(2, 2, VALID)]);
    let commands = bench.until(300);
    assert!(matches!(commands[..], [Command::Reject { request: RequestId(1), .. }]), "{commands:?}");
}

#[test]
fn an_old_id_may_come_back_in_a_resume() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, wants(9));
    bench.release(1, 9, Ending::Clean);
    bench.suspend(1);
    let resume = Resume { waiters: vec![wants(5)], ..Resume::default() };
    assert_eq!(bench.resume(1, 2, resume), [granted(1, 5, token(1, 2), 0), ack(1, 2, VALID)]);
}

#[test]
fn a_resume_may_come_before_the_break_was_noticed() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, wants(2));
    let resume = Resume { holds: vec![RequestId(2)], ..Resume::default() };
    assert_eq!(bench.resume(1, 2, resume), [ack(1, 2, VALID)]);
    assert_eq!(bench.give(Input::Heartbeat { session: SessionId(1), seq: HeartbeatSeq(3) }), [ack(1, 3, VALID)]);
}

#[test]
fn a_waiter_that_is_listed_twice_is_one_request() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, wants(2));
    bench.suspend(1);
    let waiters = vec![Acquire { keys: only("k"), ..tries(3) }, Acquire { keys: only("other"), ..wants(3) }];
    let resume = Resume { waiters, holds: vec![RequestId(2)], ..Resume::default() };
    let conflict = reject_with(1, 3, RejectReason::Conflict, Some(0), 0);
    assert_eq!(bench.resume(1, 2, resume), [conflict, ack(1, 2, VALID)]);
    assert_eq!(bench.engine.waiter_count(), 0);
}
