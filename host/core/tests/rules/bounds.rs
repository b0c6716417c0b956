//! Bounds (I7): past them the answer is a rejection at once.

use turnstile_core::{
    Acquire, Command, EndReason, Ending, HeartbeatSeq, HolderSecret, Input, Mode, Reentry, RejectReason, SessionId,
};

use crate::bench::*;

#[test]
fn waiters_of_a_key() {
    let mut bench = Bench::ready_with(2, |config| config.waiters_per_key_max = 2);
    bench.acquire(1, wants(2));
    bench.acquire(1, wants(3));
    bench.acquire(2, wants(1));
    assert_eq!(bench.acquire(2, wants(2)), [reject_with(2, 2, RejectReason::QueueFull, Some(0), 2)]);
    bench.cancel(1, 3);
    assert_eq!(bench.acquire(2, wants(3)), []);
}

#[test]
fn waiters_of_a_session() {
    let mut bench = Bench::ready_with(2, |config| config.waiters_per_session_max = 1);
    bench.acquire(1, wants(2));
    assert_eq!(bench.acquire(1, wants(3)), []);
    assert_eq!(bench.acquire(1, wants(4)), [reject(1, 4, RejectReason::SessionFull)]);
    assert_eq!(bench.acquire(2, wants(1)), []);
}

#[test]
fn holds_of_a_session() {
    let mut bench = Bench::ready_with(2, |config| config.holds_per_session_max = 2);
    for request in 2..4 {
        assert!(matches!(bench.acquire(1, wants_as(request, Mode::Shared))[..], [Command::Grant { .. }]));
    }
    assert_eq!(bench.acquire(1, wants_as(4, Mode::Shared)), [reject(1, 4, RejectReason::SessionFull)]);
    assert!(matches!(bench.acquire(2, wants_as(1, Mode::Shared))[..], [Command::Grant { .. }]));
    bench.release(1, 2, Ending::Clean);
    assert!(matches!(bench.acquire(1, wants_as(5, Mode::Shared))[..], [Command::Grant { .. }]));
}

#[test]
fn joins_of_a_hold() {
    let mut bench = Bench::ready_with(2, |config| config.joins_per_hold_max = 2);
    let secret = HolderSecret([7; 16]);
    bench.acquire(1, Acquire { reentry: Reentry::Offer(secret), ..wants(2) });
    let joins = |request| Acquire { reentry: Reentry::Join(secret), ..wants(request) };
    for request in 1..3 {
        assert!(matches!(bench.acquire(2, joins(request))[..], [Command::Grant { .. }]));
    }
    assert_eq!(bench.acquire(2, joins(3)), [reject(2, 3, RejectReason::QueueFull)]);
    bench.release(2, 1, Ending::Clean);
    assert!(matches!(bench.acquire(2, joins(4))[..], [Command::Grant { .. }]));
}

#[test]
fn waiters_of_all_keys_and_sessions() {
    let mut bench = Bench::ready_with(2, |config| config.waiters_max = 2);
    bench.acquire(1, wants(2));
    assert_eq!(bench.acquire(1, wants(3)), []);
    assert_eq!(bench.acquire(2, Acquire { keys: only("other"), ..wants(1) }), [claim("other", 2)]);
    let third = Acquire { keys: only("third"), ..wants(2) };
    assert_eq!(bench.acquire(2, third.clone()), [reject(2, 2, RejectReason::QueueFull)]);
    // A hold is no waiter.
    bench.gain("other", 2, 1);
    assert_eq!(bench.acquire(2, Acquire { request: turnstile_core::RequestId(3), ..third }), [claim("third", 3)]);
}

#[test]
fn sessions() {
    let mut bench = Bench::new(|config| config.sessions_max = 1);
    bench.open(1);
    let open = Input::OpenSession { session: SessionId(2), seq: HeartbeatSeq(1) };
    assert_eq!(bench.give(open), [end(2, EndReason::TooMany)]);
    assert_eq!(bench.engine.session_count(), 1);
}

#[test]
fn keys_are_evicted_longest_idle_first_and_never_in_use() {
    let mut bench = Bench::new(|config| config.keys_max = 2);
    bench.open(1);
    let on = |request, name: &str| Acquire { keys: only(name), ..wants(request) };
    bench.acquire(1, on(1, "a"));
    bench.gain("a", 1, 1);
    bench.acquire(1, on(2, "b"));
    bench.gain("b", 2, 1);
    assert_eq!(bench.acquire(1, on(3, "c")), [reject(1, 3, RejectReason::KeysFull)]);
    bench.release(1, 2, turnstile_core::Ending::Clean);
    bench.release(1, 1, turnstile_core::Ending::Clean);
    assert_eq!(bench.acquire(1, on(4, "c")), [give_up("b"), claim("c", 3)]);
    assert_eq!(bench.engine.key_count(), 2);
    // A claim that is on its way is in use, and so is a quarantine.
    assert_eq!(bench.acquire(1, on(5, "d")), [give_up("a"), claim("d", 4)]);
    assert_eq!(bench.acquire(1, on(6, "e")), [reject(1, 6, RejectReason::KeysFull)]);
    bench.gain("c", 3, 1);
    bench.release(1, 4, turnstile_core::Ending::Unclean);
    assert_eq!(bench.acquire(1, on(7, "e")), [reject(1, 7, RejectReason::KeysFull)]);
}

#[test]
fn a_claim_that_nobody_waits_for_makes_room() {
    let mut bench = Bench::new(|config| config.keys_max = 1);
    bench.open(1);
    bench.acquire(1, wants(1));
    assert_eq!(bench.cancel(1, 1), []);
    assert_eq!(bench.acquire(1, Acquire { keys: only("other"), ..wants(2) }), [give_up("k"), claim("other", 2)]);
    assert_eq!(bench.engine.key_count(), 1);
}

#[test]
fn idle_ownership_is_given_up_in_time() {
    let mut bench = Bench::ready_with(1, |config| config.idle_ownership = ms(2_000));
    assert_eq!(bench.until(1_000), []);
    bench.acquire(1, wants(2));
    bench.release(1, 2, turnstile_core::Ending::Clean);
    assert_eq!(bench.until(2_999), []);
    assert_eq!(bench.until(3_000), [give_up("k")]);
    assert_eq!(bench.engine.key_count(), 0);
}
