//! Holds: how they end, and what their end leaves behind.

use turnstile_core::{Acquire, Command, Ending, HeartbeatSeq, Input, LostReason, SessionId};

use crate::bench::*;

#[test]
fn an_unclean_end_quarantines_the_key_for_the_holds_lock_delay() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, Acquire { lock_delay: ms(3_000), ..wants(2) });
    bench.acquire(2, wants(1));
    assert_eq!(bench.until(100), []);
    assert_eq!(bench.release(1, 2, Ending::Unclean), []);
    assert_eq!(bench.beat(3_099, 2), []);
    let [Command::Grant { session: SessionId(2), waited, .. }] = bench.until(3_100)[..] else { panic!("no grant") };
    assert_eq!(waited, ms(3_100));
}

#[test]
fn a_lock_delay_is_cut_to_the_limit() {
    let mut bench = Bench::ready_with(2, |config| config.lock_delay_max = DELAY);
    assert_eq!(bench.acquire(1, Acquire { lock_delay: DELAY * 9, ..wants(2) }), [grant(1, 2, token(1, 1), 0, VALID)]);
    bench.release(1, 2, Ending::Unclean);
    assert_eq!(bench.beat(14_999, 2), []);
    bench.until(15_000);
    assert!(matches!(bench.acquire(1, tries(3))[..], [Command::Grant { .. }]));
}

#[test]
fn a_hold_past_its_limit_is_lost_and_lives_until_its_promise_has_passed() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, Acquire { hold: Some(ms(2_000)), lock_delay: ms(1_000), ..wants(2) });
    bench.acquire(2, wants(1));
    bench.until(1_500);
    // The promise now runs to 1.5 s + TTL; the second session stays alive.
    assert_eq!(bench.give(Input::Heartbeat { session: SessionId(1), seq: HeartbeatSeq(2) }), [ack(1, 2, VALID)]);
    assert_eq!(bench.until(1_999), []);
    assert_eq!(bench.until(2_000), [lost(1, 2, LostReason::HoldLimit)]);
    // Later heartbeats do not renew the promise of what was lost.
    assert_eq!(bench.beat(5_499, 2), []);
    assert_eq!(bench.engine.hold_count(), 1);
    assert_eq!(bench.until(5_500), []);
    assert_eq!(bench.engine.hold_count(), 0);
    assert_eq!(bench.until(6_499), []);
    assert!(matches!(bench.until(6_500)[..], [Command::Grant { session: SessionId(2), .. }]));
}

#[test]
fn a_confirmed_loss_frees_the_key_at_once() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, Acquire { hold: Some(ms(500)), ..wants(2) });
    bench.acquire(2, wants(1));
    assert_eq!(bench.until(500), [lost(1, 2, LostReason::HoldLimit)]);
    bench.freeze(700);
    assert_eq!(bench.release(1, 2, Ending::Clean), [grant(2, 1, token(1, 2), 700, VALID)]);
}

#[test]
fn a_hold_is_cut_to_the_limit() {
    let mut bench = Bench::ready_with(1, |config| config.hold_max = ms(300));
    bench.acquire(1, Acquire { hold: Some(ms(2_000)), ..wants(2) });
    assert_eq!(bench.until(300), [lost(1, 2, LostReason::HoldLimit)]);
    bench.release(1, 2, Ending::Clean);
    bench.acquire(1, wants(3));
    assert_eq!(bench.until(600), [lost(1, 3, LostReason::HoldLimit)]);
}

#[test]
fn validity_is_cut_to_the_lease_and_measured_from_the_heartbeat() {
    let mut bench = Bench::without_lease(|_| {});
    bench.open(1);
    assert_eq!(bench.acquire(1, wants(1)), [claim("k", 1)]);
    // No lease, no grant.
    assert_eq!(bench.gain("k", 1, 1), []);
    assert_eq!(bench.until(1_000), []);
    // 3 s from the Hello at 0 until the end of the lease, less 2 %.
    assert_eq!(bench.give(Input::LeaseRenewed { until: at(3_000) }), [grant(1, 1, token(1, 0), 1_000, ms(2_940))]);
    bench.freeze(2_000);
    let heartbeat = |seq| Input::Heartbeat { session: SessionId(1), seq: HeartbeatSeq(seq) };
    assert_eq!(bench.give(heartbeat(2)), [ack(1, 2, ms(980))]);
    bench.freeze(3_000);
    assert_eq!(bench.give(heartbeat(3)), [ack(1, 3, ms(0))]);
    assert_eq!(bench.give(Input::LeaseRenewed { until: at(9_000) }), []);
    assert_eq!(bench.give(heartbeat(4)), [ack(1, 4, VALID)]);
}

#[test]
fn nothing_is_granted_under_a_lease_that_has_lapsed_or_soon_will() {
    let mut bench = Bench::without_lease(|_| {});
    let renewed = |until| Input::LeaseRenewed { until: at(until) };
    bench.open(2);
    bench.give(renewed(1_000));
    bench.acquire(1, wants(1));
    bench.acquire(2, wants(1));
    // 250 ms are the least that is worth a grant, and up to 80 ms go to the allowance for clock rates.
    bench.freeze(731);
    assert_eq!(bench.gain("k", 1, 1), []);
    assert_eq!(bench.give(renewed(1_060)), []);
    assert_eq!(bench.give(renewed(1_061)), [grant(1, 1, token(1, 0), 731, ms(1_039))]);
    bench.freeze(2_000);
    assert_eq!(bench.release(1, 1, Ending::Clean), []);
    assert_eq!(bench.give(renewed(6_000)), [grant(2, 1, token(1, 1), 2_000, VALID)]);
}
