//! What an operator may do, and what a request may ask not to wait for.

use turnstile_core::{Acquire, Ending, ForcedDelay, Input, LostReason, Mode, RejectReason, Token};

use crate::bench::*;

fn force(token: Option<Token>, delay: ForcedDelay) -> Input {
    Input::ForceRelease { key: key("k"), token, delay }
}

#[test]
fn a_forced_release_waits_until_the_client_lets_go() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    assert_eq!(bench.give(force(None, ForcedDelay::Keep)), [lost(1, 2, LostReason::Forced)]);
    assert_eq!(bench.give(force(None, ForcedDelay::Keep)), []);
    assert_eq!(bench.until(1_000), []);
    // Confirmed; and the upstream may still be working.
    assert_eq!(bench.release(1, 2, Ending::Unclean), []);
    assert_eq!(bench.beat(15_999, 2), []);
    assert!(matches!(bench.until(16_000)[..], [turnstile_core::Command::Grant { .. }]));
}

#[test]
fn a_forced_release_of_a_silent_client_waits_for_its_promise() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, wants(2));
    bench.give(force(None, ForcedDelay::Skip));
    assert_eq!(bench.until(3_999), []);
    assert_eq!((bench.engine.hold_count(), bench.engine.session_count()), (1, 1));
    bench.until(4_000);
    assert_eq!(bench.engine.hold_count(), 0);
}

#[test]
fn an_operator_may_skip_the_lock_delay() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    bench.give(force(None, ForcedDelay::Skip));
    assert_eq!(bench.release(1, 2, Ending::Unclean), [grant(2, 1, token(1, 2), 0, VALID)]);
    // And lift a quarantine that is there already.
    assert_eq!(bench.release(2, 1, Ending::Unclean), []);
    assert_eq!(bench.acquire(1, wants(3)), []);
    assert_eq!(bench.give(force(None, ForcedDelay::Keep)), []);
    assert_eq!(bench.give(force(None, ForcedDelay::Skip)), [grant(1, 3, token(1, 3), 0, VALID)]);
}

#[test]
fn what_was_forced_before_may_be_skipped_later() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    bench.give(force(None, ForcedDelay::Keep));
    assert_eq!(bench.give(force(None, ForcedDelay::Skip)), []);
    assert_eq!(bench.release(1, 2, Ending::Unclean), [grant(2, 1, token(1, 2), 0, VALID)]);
}

#[test]
fn nobody_lifts_the_quarantine_of_a_dead_owner() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    bench.acquire(1, wants(1));
    assert_eq!(bench.gain_with("k", 1, 1, DELAY, 900), []);
    assert_eq!(bench.give(force(None, ForcedDelay::Skip)), []);
    assert_eq!(bench.until(899), []);
    assert_eq!(bench.until(900), [grant(1, 1, token(1, 0), 900, VALID)]);
}

#[test]
fn one_hold_of_several_is_forced_by_its_token() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, wants_as(2, Mode::Shared));
    bench.acquire(2, wants_as(1, Mode::Shared));
    assert_eq!(bench.give(force(Some(token(1, 9)), ForcedDelay::Keep)), []);
    assert_eq!(bench.give(force(Some(token(1, 2)), ForcedDelay::Skip)), [lost(2, 1, LostReason::Forced)]);
    assert_eq!(bench.release(2, 1, Ending::Unclean), []);
    assert_eq!(bench.acquire(3, wants(1)), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), [grant(3, 1, token(1, 3), 0, VALID)]);
    // What lingers is lifted as well.
    bench.release(3, 1, Ending::Clean);
    bench.acquire(1, wants_as(3, Mode::Shared));
    bench.release(1, 3, Ending::Unclean);
    assert_eq!(bench.acquire(3, wants(2)), []);
    assert_eq!(bench.give(force(None, ForcedDelay::Skip)), [grant(3, 2, token(1, 5), 0, VALID)]);
}

#[test]
fn an_unknown_key_is_nobodys() {
    let mut bench = Bench::ready(1);
    let unknown = Input::ForceRelease { key: key("other"), token: None, delay: ForcedDelay::Skip };
    assert_eq!(bench.give(unknown), []);
    assert_eq!(bench.give(force(None, ForcedDelay::Skip)), []);
    assert_eq!(bench.engine.key_count(), 1);
}

#[test]
fn a_hopeless_wait_is_refused_at_once_if_asked_for() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.freeze(800);
    bench.release(1, 2, Ending::Clean);
    // A hold takes 100 ms now, by the average.
    let fast = |request, wait| Acquire { wait: ms(wait), fail_fast: true, ..wants(request) };
    assert_eq!(bench.acquire(1, fast(3, 1)), [grant(1, 3, token(1, 2), 0, VALID)]);
    assert_eq!(bench.acquire(2, fast(1, 99)), [reject_with(2, 1, RejectReason::WaitHopeless, Some(100), 0)]);
    assert_eq!(bench.acquire(2, fast(2, 100)), []);
    assert_eq!(bench.acquire(2, fast(3, 199)), [reject_with(2, 3, RejectReason::WaitHopeless, Some(200), 1)]);
    // Who does not ask for it waits.
    assert_eq!(bench.acquire(2, Acquire { wait: ms(1), ..wants(4) }), []);
}

#[test]
fn a_quarantine_that_outlasts_the_wait_is_hopeless() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.release(1, 2, Ending::Unclean);
    let fast = Acquire { wait: ms(14_999), fail_fast: true, ..wants(1) };
    assert_eq!(bench.acquire(2, fast), [reject_with(2, 1, RejectReason::WaitHopeless, Some(15_000), 0)]);
    // Also what lingers in one mode.
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants_as(2, Mode::Shared));
    bench.release(1, 2, Ending::Unclean);
    let fast = Acquire { wait: ms(9_999), fail_fast: true, ..wants(1) };
    assert_eq!(bench.acquire(2, fast.clone()), [reject_with(2, 1, RejectReason::WaitHopeless, Some(15_000), 0)]);
    let reader = Acquire { fail_fast: true, ..wants_as(2, Mode::Shared) };
    assert_eq!(bench.acquire(2, reader), [grant_beside(2, 2, token(1, 2), token(1, 2))]);
}

#[test]
fn a_request_may_bound_the_queue_itself() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    let bounded = |request, queue_max| Acquire { queue_max: Some(queue_max), ..wants(request) };
    assert_eq!(bench.acquire(2, bounded(1, 1)), []);
    assert_eq!(bench.acquire(2, bounded(2, 1)), [reject_with(2, 2, RejectReason::QueueFull, Some(0), 1)]);
    assert_eq!(bench.acquire(2, bounded(3, 2)), []);
    assert_eq!(bench.acquire(2, wants(4)), []);
}
