//! Several keys in one acquire: granted together or not at all, claimed in order, pinned while others are waited for.

use turnstile_core::{Acquire, ClaimId, Ending, Input, LostReason, Mode, RejectReason, Resume, SessionId};

use crate::bench::*;

/// Keys `a`, `b` and `c` owned under epochs 11, 12 and 13, and free.
fn ready(sessions: u64) -> Bench {
    ready_with(sessions, |_| {})
}

fn ready_with(sessions: u64, change: impl FnOnce(&mut turnstile_core::Config)) -> Bench {
    let mut bench = Bench::new(change);
    bench.open(sessions);
    for (number, name) in (1..).zip(["a", "b", "c"]) {
        assert_eq!(bench.acquire(1, wants_all(number, &[name])), [claim(name, number)]);
        bench.gain(name, number, 10 + number);
        bench.release(1, number, Ending::Clean);
    }
    bench
}

/// A grant of exclusive keys with these tokens.
fn grants(session: u64, request: u64, tokens: &[turnstile_core::Token], waited_ms: u64) -> turnstile_core::Command {
    let alone: Vec<_> = tokens.iter().map(|token| (*token, *token)).collect();
    grant_all(session, request, &alone, waited_ms)
}

#[test]
fn all_keys_are_granted_at_once_in_the_order_asked() {
    let mut bench = ready(2);
    assert_eq!(
        bench.acquire(1, wants_all(9, &["c", "a", "b"])),
        [grants(1, 9, &[token(13, 1), token(11, 1), token(12, 1)], 0)]
    );
    for (request, name) in [(1, "a"), (2, "b"), (3, "c")] {
        assert_eq!(bench.acquire(2, wants_all(request, &[name])), []);
    }
    let singles = [("a", 11), ("b", 12), ("c", 13)].map(|(_, epoch)| token(epoch, 2));
    let expected: Vec<_> = (1..).zip(singles).map(|(request, token)| grant(2, request, token, 0, VALID)).collect();
    assert_eq!(bench.release(1, 9, Ending::Clean), expected);
}

#[test]
fn one_key_that_is_held_keeps_the_others_free_until_it_is_their_turn() {
    let mut bench = ready(3);
    bench.acquire(1, wants_all(9, &["a"]));
    assert_eq!(bench.acquire(2, wants_all(1, &["a", "b"])), []);
    // `b` is not taken yet, so whoever comes for it alone need not wait.
    assert_eq!(bench.acquire(3, wants_all(1, &["b"])), [grant(3, 1, token(12, 1), 0, VALID)]);
    assert_eq!(bench.release(1, 9, Ending::Clean), []);
    // Now `a` is kept for it, and whoever comes after it waits for both.
    assert_eq!(bench.acquire(1, wants_all(10, &["a"])), []);
    assert_eq!(bench.acquire(1, wants_all(11, &["b"])), []);
    assert_eq!(bench.release(3, 1, Ending::Clean), [grants(2, 1, &[token(11, 2), token(12, 2)], 0)]);
    let rest = [grant(1, 10, token(11, 3), 0, VALID), grant(1, 11, token(12, 3), 0, VALID)];
    assert_eq!(bench.release(2, 1, Ending::Clean), rest);
}

#[test]
fn who_came_first_goes_first_when_it_gets_to_a_key() {
    let mut bench = ready(4);
    bench.acquire(1, wants_all(9, &["a"]));
    bench.acquire(1, wants_all(10, &["b"]));
    assert_eq!(bench.acquire(2, wants_all(1, &["a", "b"])), []);
    assert_eq!(bench.acquire(3, wants_all(1, &["b"])), []);
    assert_eq!(bench.acquire(4, wants_all(1, &["b", "c"])), []);
    // Gets to `b` before it is free: it is older than the two that wait there.
    assert_eq!(bench.release(1, 9, Ending::Clean), []);
    assert_eq!(bench.release(1, 10, Ending::Clean), [grants(2, 1, &[token(11, 2), token(12, 2)], 0)]);
    assert_eq!(bench.release(2, 1, Ending::Clean), [grant(3, 1, token(12, 3), 0, VALID)]);
    assert_eq!(bench.release(3, 1, Ending::Clean), [grants(4, 1, &[token(12, 4), token(13, 1)], 0)]);
}

#[test]
fn an_older_one_takes_back_what_a_younger_one_kept() {
    let mut bench = ready(4);
    bench.acquire(1, wants_all(9, &["a"]));
    bench.acquire(1, wants_all(10, &["c"]));
    assert_eq!(bench.acquire(2, wants_all(1, &["a", "b"])), []);
    // The younger one has `b`, and waits for `c`.
    assert_eq!(bench.acquire(3, wants_all(1, &["b", "c"])), []);
    assert_eq!(bench.release(1, 9, Ending::Clean), [grants(2, 1, &[token(11, 2), token(12, 1)], 0)]);
    // It is not in the way at `c`, which it does not wait for any more.
    assert_eq!(bench.acquire(4, wants_all(1, &["c"])), []);
    assert_eq!(bench.release(1, 10, Ending::Clean), [grant(4, 1, token(13, 2), 0, VALID)]);
    assert_eq!(bench.release(4, 1, Ending::Clean), []);
    assert_eq!(bench.release(2, 1, Ending::Clean), [grants(3, 1, &[token(12, 2), token(13, 3)], 0)]);
}

#[test]
fn keys_are_claimed_in_order_and_pinned() {
    let mut bench = Bench::new(|config| config.handoff_budget.grants = 0);
    bench.open(2);
    assert_eq!(bench.acquire(1, wants_all(1, &["b", "a"])), [claim("a", 1)]);
    assert_eq!(bench.gain("a", 1, 1), [claim("b", 2)]);
    // Another host wants `a`: not before the grant.
    assert_eq!(bench.contend("a"), []);
    assert_eq!(bench.until(1_000), []);
    assert_eq!(bench.give(Input::OwnershipQueued { key: key("b"), claim: ClaimId(2) }), []);
    assert_eq!(bench.until(2_000), []);
    assert_eq!(bench.beat(3_000, 2), []);
    let granted = bench.gain("b", 2, 7);
    let [turnstile_core::Command::Grant { keys, .. }] = &granted[..] else { panic!("{granted:?}") };
    assert_eq!(keys[..], [alone(token(7, 0))[0], alone(token(1, 0))[0]]);
    assert_eq!(bench.release(1, 1, Ending::Clean), [give_up("a")]);
}

#[test]
fn a_key_is_pinned_no_longer_than_the_wait() {
    let mut bench = Bench::new(|config| config.handoff_budget.grants = 0);
    bench.open(1);
    bench.acquire(1, Acquire { wait: ms(3_000), ..wants_all(1, &["a", "b"]) });
    bench.gain("a", 1, 1);
    bench.give(Input::OwnershipQueued { key: key("b"), claim: ClaimId(2) });
    assert_eq!(bench.contend("a"), []);
    assert_eq!(bench.beat(2_999, 1), []);
    assert_eq!(bench.until(3_000), [reject_with(1, 1, RejectReason::WaitTimeout, None, 0), give_up("a"), give_up("b")]);
    assert_eq!(bench.engine.key_count(), 0);
}

#[test]
fn a_session_that_goes_quiet_pins_nothing() {
    let mut bench = Bench::new(|config| config.handoff_budget.grants = 0);
    bench.open(1);
    bench.acquire(1, wants_all(1, &["a", "b"]));
    bench.gain("a", 1, 1);
    bench.contend("a");
    // It is still wanted, but behind the other host now; and the claim for `b` has nobody.
    assert_eq!(bench.suspend(1), [give_up("a"), claim("a", 3)]);
    assert_eq!(bench.gain("b", 2, 1), []);
    let resume = Resume { waiters: vec![wants_all(1, &["a", "b"])], ..Resume::default() };
    assert_eq!(bench.resume(1, 2, resume), [ack(1, 2, VALID)]);
    let granted = bench.gain("a", 3, 2);
    assert!(matches!(granted[..], [turnstile_core::Command::Grant { .. }]), "{granted:?}");
}

#[test]
fn a_lost_key_is_claimed_again_before_the_others_are_had() {
    let mut bench = ready(3);
    bench.acquire(1, wants_all(9, &["b"]));
    assert_eq!(bench.acquire(2, wants_all(1, &["a", "b"])), []);
    assert_eq!(bench.give(Input::OwnershipLost { key: key("a") }), [claim("a", 4)]);
    // Others get `b` meanwhile: it cannot have it without `a`.
    assert_eq!(bench.acquire(3, wants_all(1, &["b"])), []);
    assert_eq!(bench.release(1, 9, Ending::Clean), [grant(3, 1, token(12, 2), 0, VALID)]);
    assert_eq!(bench.gain("a", 4, 40), []);
    assert_eq!(bench.release(3, 1, Ending::Clean), [grants(2, 1, &[token(40, 0), token(12, 3)], 0)]);
}

#[test]
fn losing_one_key_loses_the_hold() {
    let mut bench = ready(2);
    bench.acquire(1, wants_all(9, &["a", "b"]));
    assert_eq!(bench.give(Input::OwnershipLost { key: key("b") }), [lost(1, 9, LostReason::Lease)]);
    assert_eq!(bench.acquire(2, wants_all(1, &["a"])), []);
    assert_eq!(bench.release(1, 9, Ending::Clean), [grant(2, 1, token(11, 2), 0, VALID)]);
}

#[test]
fn an_unclean_end_keeps_every_key() {
    let mut bench = ready(2);
    bench.acquire(1, Acquire { lock_delay: ms(500), ..wants_all(9, &["a", "b"]) });
    bench.acquire(2, wants_all(1, &["a"]));
    bench.acquire(2, wants_all(2, &["b"]));
    assert_eq!(bench.release(1, 9, Ending::Unclean), []);
    assert_eq!(bench.until(499), []);
    assert_eq!(bench.until(500), [grant(2, 1, token(11, 2), 500, VALID), grant(2, 2, token(12, 2), 500, VALID)]);
}

#[test]
fn a_try_needs_all_keys_at_once() {
    let mut bench = ready(2);
    bench.acquire(1, wants_all(9, &["b"]));
    let tries = |request, names: &[&str]| Acquire { wait: ms(0), ..wants_all(request, names) };
    assert_eq!(bench.acquire(2, tries(1, &["a", "b"])), [reject_with(2, 1, RejectReason::Conflict, Some(0), 0)]);
    assert_eq!(bench.acquire(2, tries(2, &["a", "c"])), [grants(2, 2, &[token(11, 1), token(13, 1)], 0)]);
    // One that must ask the store for its last key waits for that alone.
    assert_eq!(bench.release(2, 2, Ending::Clean), []);
    assert_eq!(bench.acquire(2, tries(3, &["a", "d"])), [claim("d", 4)]);
    assert_eq!(bench.gain("d", 4, 1), [grants(2, 3, &[token(11, 2), token(1, 0)], 0)]);
}

#[test]
fn modes_go_by_key() {
    let mut bench = ready(3);
    let reads_a =
        |request, name| Acquire { keys: keys(&[("a", Mode::Shared), (name, Mode::Exclusive)]), ..wants(request) };
    assert_eq!(bench.acquire(1, reads_a(9, "b")), [grants(1, 9, &[token(11, 1), token(12, 1)], 0)]);
    let beside = grant_all(2, 1, &[(token(11, 2), token(11, 1)), (token(13, 1), token(13, 1))], 0);
    assert_eq!(bench.acquire(2, reads_a(1, "c")), [beside]);
    assert_eq!(bench.acquire(3, reads_a(1, "c")), []);
    let next = grant_all(3, 1, &[(token(11, 3), token(11, 1)), (token(13, 2), token(13, 2))], 0);
    assert_eq!(bench.release(2, 1, Ending::Clean), [next]);
}

#[test]
fn a_name_given_twice_or_too_many_or_none_is_invalid() {
    let mut bench = ready(1);
    let many: Vec<String> = (0..17).map(|number| format!("k{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (request, names) in [(10, &["a", "b", "a"][..]), (11, &[]), (12, &many)] {
        assert_eq!(bench.acquire(1, wants_all(request, names)), [reject(1, request, RejectReason::Invalid)]);
    }
    assert_eq!(bench.engine.key_count(), 3);
}

#[test]
fn keys_that_cannot_all_be_tracked_are_not_tracked_at_all() {
    let mut bench = Bench::new(|config| config.keys_max = 2);
    bench.open(1);
    assert_eq!(bench.acquire(1, wants_all(1, &["a", "b", "c"])), [reject(1, 1, RejectReason::KeysFull)]);
    assert_eq!(bench.engine.key_count(), 0);
    // One that is idle makes room for others, but is not given up for its own request.
    bench.acquire(1, wants_all(2, &["a"]));
    bench.gain("a", 1, 1);
    bench.release(1, 2, Ending::Clean);
    assert_eq!(bench.acquire(1, wants_all(3, &["a", "b", "c"])), [reject(1, 3, RejectReason::KeysFull)]);
    assert_eq!((bench.engine.key_count(), bench.engine.owned_key_count()), (1, 1));
}

#[test]
fn queues_are_bounded_for_every_key_of_a_request() {
    let mut bench = ready_with(2, |config| config.waiters_per_key_max = 1);
    bench.acquire(1, wants_all(9, &["a"]));
    assert_eq!(bench.acquire(1, wants_all(10, &["a", "b"])), []);
    // It does not stand in the queue of `b` yet, and has its place there.
    bench.acquire(1, wants_all(11, &["b"]));
    assert_eq!(bench.acquire(2, wants_all(1, &["b"])), [reject_with(2, 1, RejectReason::QueueFull, Some(0), 0)]);
}

#[test]
fn a_cancelled_wait_leaves_every_queue() {
    let mut bench = ready(3);
    bench.acquire(1, wants_all(9, &["b"]));
    bench.acquire(2, wants_all(1, &["a", "b"]));
    assert_eq!(bench.acquire(3, wants_all(1, &["a"])), []);
    assert_eq!(bench.cancel(2, 1), [grant(3, 1, token(11, 1), 0, VALID)]);
    assert_eq!(bench.release(1, 9, Ending::Clean), []);
    assert_eq!(bench.engine.waiter_count(), 0);
}

#[test]
fn a_grant_lost_on_its_way_is_told_again_whole() {
    let mut bench = ready(1);
    bench.acquire(1, wants_all(9, &["b", "a"]));
    bench.give(Input::SuspendSession { session: SessionId(1) });
    let resume = Resume { waiters: vec![wants_all(9, &["b", "a"])], ..Resume::default() };
    let commands = bench.resume(1, 2, resume);
    let [turnstile_core::Command::Grant { keys, .. }, _] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(keys[..], [alone(token(12, 1))[0], alone(token(11, 1))[0]]);
}

#[test]
fn room_for_one_key_is_not_made_by_giving_up_another_of_the_same_request() {
    let mut bench = ready_with(1, |config| config.keys_max = 3);
    // `a` has been idle longest, and is wanted.
    assert_eq!(bench.acquire(1, wants_all(9, &["a", "d"])), [give_up("b"), claim("d", 4)]);
    assert_eq!(bench.gain("d", 4, 14), [grants(1, 9, &[token(11, 1), token(14, 0)], 0)]);
}
