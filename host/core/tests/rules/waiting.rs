//! Queues: order, tries, waits that end.

use turnstile_core::{Acquire, Ending, RejectReason};

use crate::bench::*;

#[test]
fn first_come_first_served() {
    let mut bench = Bench::ready(3);
    assert_eq!(bench.acquire(1, wants(2)), [grant(1, 2, token(1, 1), 0, VALID)]);
    assert_eq!(bench.acquire(3, wants(1)), []);
    bench.freeze(10);
    assert_eq!(bench.acquire(2, wants(1)), []);
    assert_eq!(bench.acquire(1, wants(3)), []);
    bench.freeze(30);
    assert_eq!(bench.release(1, 2, Ending::Clean), [grant(3, 1, token(1, 2), 30, VALID)]);
    assert_eq!(bench.release(3, 1, Ending::Unsent), [grant(2, 1, token(1, 3), 20, VALID)]);
    assert_eq!(bench.release(2, 1, Ending::Clean), [grant(1, 3, token(1, 4), 20, VALID)]);
}

#[test]
fn a_try_does_not_wait_for_a_holder_or_a_waiter() {
    let mut bench = Bench::ready(2);
    assert_eq!(bench.acquire(1, tries(2)), [grant(1, 2, token(1, 1), 0, VALID)]);
    bench.freeze(8);
    assert_eq!(bench.acquire(2, tries(1)), [reject_with(2, 1, RejectReason::Conflict, Some(0), 0)]);
    assert_eq!(bench.release(1, 2, Ending::Clean), []);
    // Waits for the store to remember its lock delay: others wait ahead of the try.
    assert_eq!(bench.acquire(1, Acquire { lock_delay: DELAY * 2, ..wants(3) }), [claim_with("k", 2, DELAY * 2, false)]);
    assert_eq!(bench.acquire(2, tries(2)), [reject_with(2, 2, RejectReason::Conflict, Some(1), 1)]);
}

#[test]
fn a_try_does_not_wait_for_a_quarantine() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    assert_eq!(bench.release(1, 2, Ending::Unclean), []);
    assert_eq!(bench.acquire(2, tries(1)), [reject_with(2, 1, RejectReason::Conflict, Some(15_000), 0)]);
}

#[test]
fn a_try_waits_for_the_store_for_a_while() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    assert_eq!(bench.acquire(1, tries(1)), [claim("k", 1)]);
    assert_eq!(bench.until(999), []);
    assert_eq!(bench.until(1_000), [reject(1, 1, RejectReason::StoreUnavailable)]);
    // The claim is still on its way.
    assert_eq!(bench.acquire(1, tries(2)), []);
    assert_eq!(bench.gain_with("k", 1, 5, DELAY, 2_000), [reject_with(1, 2, RejectReason::Conflict, Some(1_000), 0)]);
    assert_eq!(bench.until(2_000), []);
    assert_eq!(bench.engine.owned_key_count(), 1);
    assert_eq!(bench.acquire(1, tries(3)), [grant(1, 3, token(5, 0), 0, VALID)]);
}

#[test]
fn a_wait_ends_at_its_deadline_and_says_why() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    assert_eq!(bench.acquire(2, Acquire { wait: ms(500), ..wants(1) }), []);
    assert_eq!(bench.until(499), []);
    assert_eq!(bench.until(500), [reject_with(2, 1, RejectReason::WaitTimeout, Some(0), 0)]);
    // Never owned nor queued: the store is to blame.
    let other = Acquire { keys: only("other"), wait: ms(1_500), ..wants(2) };
    assert_eq!(bench.acquire(2, other), [claim("other", 2)]);
    assert_eq!(bench.until(1_999), []);
    assert_eq!(bench.until(2_000), [reject(2, 2, RejectReason::StoreUnavailable)]);
}

#[test]
fn a_wait_shorter_than_the_stores_answer_is_granted() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    assert_eq!(bench.acquire(1, Acquire { wait: ms(2), ..wants(1) }), [claim("k", 1)]);
    // Somebody is before this one: it is not stretched.
    assert_eq!(bench.acquire(1, Acquire { wait: ms(2), ..wants(2) }), []);
    assert_eq!(bench.until(5), [reject_with(1, 2, RejectReason::StoreUnavailable, None, 1)]);
    assert_eq!(bench.gain("k", 1, 1), [grant(1, 1, token(1, 0), 5, VALID)]);
    // Owned now: nothing but its own wait counts.
    assert_eq!(bench.acquire(1, Acquire { wait: ms(2), ..wants(3) }), []);
    assert_eq!(bench.until(7), [reject(1, 3, RejectReason::WaitTimeout)]);
}

#[test]
fn a_stretched_wait_is_cut_when_the_store_says_that_another_has_the_key() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    assert_eq!(bench.acquire(1, Acquire { wait: ms(20), ..wants(1) }), [claim("k", 1)]);
    assert_eq!(bench.until(5), []);
    let queued = turnstile_core::Input::OwnershipQueued { key: key("k"), claim: turnstile_core::ClaimId(1) };
    assert_eq!(bench.give(queued), []);
    assert_eq!(bench.until(19), []);
    assert_eq!(bench.until(20), [reject(1, 1, RejectReason::WaitTimeout), give_up("k")]);

    // Or a dead host's quarantine.
    assert_eq!(bench.acquire(1, Acquire { wait: ms(20), ..wants(2) }), [claim("k", 2)]);
    bench.freeze(60);
    assert_eq!(bench.gain_with("k", 2, 1, DELAY, 5_000), []);
    assert_eq!(bench.until(60), [reject_with(1, 2, RejectReason::WaitTimeout, Some(4_940), 0)]);
}

#[test]
fn a_place_in_the_stores_queue_is_an_answer_of_the_store() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    assert_eq!(bench.acquire(1, Acquire { wait: ms(500), ..wants(1) }), [claim("k", 1)]);
    let queued = turnstile_core::Input::OwnershipQueued { key: key("k"), claim: turnstile_core::ClaimId(1) };
    assert_eq!(bench.give(queued), []);
    assert_eq!(bench.until(500), [reject(1, 1, RejectReason::WaitTimeout), give_up("k")]);
}

#[test]
fn a_wait_is_cut_to_the_limit() {
    let mut bench = Bench::ready_with(2, |config| config.wait_max = ms(700));
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    assert_eq!(bench.until(699), []);
    assert_eq!(bench.until(700), [reject_with(2, 1, RejectReason::WaitTimeout, Some(0), 0)]);
}

#[test]
fn a_frozen_host_grants_nothing_to_a_waiter_whose_time_is_over() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, wants(2));
    bench.acquire(2, Acquire { wait: ms(500), ..wants(1) });
    bench.acquire(3, wants(1));
    bench.freeze(600);
    let commands = bench.release(1, 2, Ending::Clean);
    assert_eq!(
        commands,
        [reject_with(2, 1, RejectReason::WaitTimeout, Some(75), 1), grant(3, 1, token(1, 2), 600, VALID),]
    );
}

#[test]
fn a_cancel_takes_a_waiter_out_and_ends_a_hold_unsent() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    bench.acquire(3, wants(1));
    assert_eq!(bench.cancel(2, 1), []);
    assert_eq!(bench.cancel(2, 1), []);
    assert_eq!(bench.cancel(1, 2), [grant(3, 1, token(1, 2), 0, VALID)]);
    // A release of a waiter is a cancel, one of nothing is nothing.
    bench.acquire(1, wants(3));
    assert_eq!(bench.release(1, 3, Ending::Unclean), []);
    assert_eq!(bench.release(1, 3, Ending::Unclean), []);
    assert_eq!(bench.engine.waiter_count(), 0);
}

#[test]
fn an_id_is_used_once() {
    let mut bench = Bench::ready(1);
    assert_eq!(bench.acquire(1, wants(1)), [reject(1, 1, RejectReason::Invalid)]);
    assert_eq!(bench.acquire(1, wants(5)), [grant(1, 5, token(1, 1), 0, VALID)]);
    assert_eq!(bench.acquire(1, wants(5)), []);
    assert_eq!(bench.acquire(1, wants(6)), []);
    assert_eq!(bench.acquire(1, wants(6)), []);
    assert_eq!(bench.acquire(1, wants(4)), [reject(1, 4, RejectReason::Invalid)]);
    assert_eq!((bench.engine.hold_count(), bench.engine.waiter_count()), (1, 1));
}

#[test]
fn the_hint_when_to_try_again_follows_the_holds() {
    let mut bench = Bench::ready(2);
    for request in 2..40 {
        bench.acquire(1, wants(request));
        bench.freeze(100 * (request - 1));
        bench.beat(100 * (request - 1), 0);
        bench.release(1, request, Ending::Clean);
        bench.give(turnstile_core::Input::Heartbeat {
            session: turnstile_core::SessionId(1),
            seq: turnstile_core::HeartbeatSeq(request),
        });
    }
    bench.acquire(1, wants(100));
    let [turnstile_core::Command::Reject { retry_after: Some(one), .. }] = bench.acquire(1, tries(101))[..] else {
        panic!("a try is rejected at once");
    };
    assert!((ms(80)..ms(110)).contains(&one), "{one:?}");
}
