//! Shared and limited holds: who may stand beside whom, in which order, and what an unclean end leaves behind.

use turnstile_core::{Acquire, Ending, Mode, RejectReason};

use crate::bench::*;

const SHARED: Mode = Mode::Shared;

#[test]
fn shared_holds_stand_beside_each_other_and_no_other() {
    let mut bench = Bench::ready(4);
    assert_eq!(bench.acquire(1, wants_as(2, SHARED)), [grant_beside(1, 2, token(1, 1), token(1, 1))]);
    assert_eq!(bench.acquire(2, wants_as(1, SHARED)), [grant_beside(2, 1, token(1, 2), token(1, 1))]);
    assert_eq!(bench.acquire(3, wants_as(1, Mode::Exclusive)), []);
    assert_eq!(bench.acquire(4, wants_as(1, limit(9))), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), []);
    assert_eq!(bench.release(2, 1, Ending::Clean), [grant(3, 1, token(1, 3), 0, VALID)]);
    assert_eq!(bench.release(3, 1, Ending::Clean), [grant_beside(4, 1, token(1, 4), token(1, 4))]);
    assert_eq!(bench.acquire(1, wants_as(3, SHARED)), []);
    assert_eq!(bench.release(4, 1, Ending::Clean), [grant_beside(1, 3, token(1, 5), token(1, 5))]);
}

#[test]
fn a_reader_behind_a_waiting_writer_waits() {
    let mut bench = Bench::ready(4);
    bench.acquire(1, wants_as(2, SHARED));
    assert_eq!(bench.acquire(2, wants(1)), []);
    assert_eq!(bench.acquire(3, wants_as(1, SHARED)), []);
    assert_eq!(bench.acquire(4, wants_as(1, SHARED)), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), [grant(2, 1, token(1, 2), 0, VALID)]);
    // And then all readers at once.
    let readers = [grant_beside(3, 1, token(1, 3), token(1, 3)), grant_beside(4, 1, token(1, 4), token(1, 3))];
    assert_eq!(bench.release(2, 1, Ending::Clean), readers);
}

#[test]
fn a_reader_goes_on_when_the_writer_before_it_gives_up() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, wants_as(2, SHARED));
    assert_eq!(bench.acquire(2, Acquire { wait: ms(100), ..wants(1) }), []);
    assert_eq!(bench.acquire(3, wants_as(1, SHARED)), []);
    let commands = bench.until(100);
    let waited = grant_all(3, 1, &[(token(1, 2), token(1, 1))], 100);
    assert_eq!(commands, [reject_with(2, 1, RejectReason::WaitTimeout, Some(0), 1), waited]);
}

#[test]
fn at_most_so_many_at_once_and_the_smallest_limit_counts() {
    let mut bench = Bench::ready(5);
    assert_eq!(bench.acquire(1, wants_as(2, limit(3))), [grant_beside(1, 2, token(1, 1), token(1, 1))]);
    assert_eq!(bench.acquire(2, wants_as(1, limit(2))), [grant_beside(2, 1, token(1, 2), token(1, 1))]);
    // Two are enough for the second, whatever the third allows.
    assert_eq!(bench.acquire(3, wants_as(1, limit(3))), []);
    assert_eq!(bench.release(2, 1, Ending::Clean), [grant_beside(3, 1, token(1, 3), token(1, 1))]);
    assert_eq!(bench.acquire(4, wants_as(1, limit(3))), [grant_beside(4, 1, token(1, 4), token(1, 1))]);
    // Its own limit counts as well, and nobody passes it.
    assert_eq!(bench.acquire(5, wants_as(1, limit(1))), []);
    assert_eq!(bench.acquire(2, wants_as(2, limit(3))), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), []);
    assert_eq!(bench.release(3, 1, Ending::Clean), []);
    assert_eq!(bench.release(4, 1, Ending::Clean), [grant_beside(5, 1, token(1, 5), token(1, 5))]);
    assert_eq!(bench.release(5, 1, Ending::Clean), [grant_beside(2, 2, token(1, 6), token(1, 6))]);
}

#[test]
fn a_try_is_refused_by_what_its_mode_does_not_stand_beside() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants_as(2, SHARED));
    let tries_as = |request, mode| Acquire { wait: ms(0), ..wants_as(request, mode) };
    assert_eq!(bench.acquire(2, tries_as(1, SHARED)), [grant_beside(2, 1, token(1, 2), token(1, 1))]);
    for (request, mode) in [(2, Mode::Exclusive), (3, limit(5))] {
        let conflict = reject_with(2, request, RejectReason::Conflict, Some(0), 0);
        assert_eq!(bench.acquire(2, tries_as(request, mode)), [conflict]);
    }
    // Nor does it go before a writer that waits.
    bench.acquire(1, wants(3));
    assert_eq!(bench.acquire(2, tries_as(4, SHARED)), [reject_with(2, 4, RejectReason::Conflict, Some(0), 1)]);
}

#[test]
fn an_unclean_shared_end_keeps_out_writers_but_no_readers() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, Acquire { lock_delay: ms(2_000), ..wants_as(2, SHARED) });
    bench.acquire(2, Acquire { lock_delay: ms(1_000), ..wants_as(1, SHARED) });
    assert_eq!(bench.release(1, 2, Ending::Unclean), []);
    assert_eq!(bench.release(2, 1, Ending::Unclean), []);
    assert_eq!(bench.acquire(3, wants_as(1, SHARED)), [grant_beside(3, 1, token(1, 3), token(1, 3))]);
    assert_eq!(bench.release(3, 1, Ending::Clean), []);
    assert_eq!(bench.acquire(1, wants(3)), []);
    assert_eq!(bench.beat(1_999, 3), []);
    assert!(matches!(bench.until(2_000)[..], [turnstile_core::Command::Grant { .. }]));
}

#[test]
fn an_unclean_limited_end_keeps_its_one_place() {
    let mut bench = Bench::ready(4);
    bench.acquire(1, Acquire { lock_delay: ms(2_000), ..wants_as(2, limit(2)) });
    bench.acquire(2, wants_as(1, limit(2)));
    assert_eq!(bench.release(1, 2, Ending::Unclean), []);
    assert_eq!(bench.acquire(3, wants_as(1, limit(2))), []);
    assert_eq!(bench.release(2, 1, Ending::Clean), [grant_beside(3, 1, token(1, 3), token(1, 3))]);
    assert_eq!(bench.acquire(4, wants_as(1, limit(2))), []);
    assert_eq!(bench.beat(1_999, 4), []);
    assert!(matches!(bench.until(2_000)[..], [turnstile_core::Command::Grant { .. }]));
    assert_eq!(bench.engine.hold_count(), 2);
}

#[test]
fn what_lingers_keeps_the_key_here() {
    let mut bench = Bench::ready_with(1, |config| config.idle_ownership = ms(100));
    bench.acquire(1, Acquire { lock_delay: ms(2_000), ..wants_as(2, SHARED) });
    bench.release(1, 2, Ending::Unclean);
    assert_eq!(bench.contend("k"), []);
    assert_eq!(bench.beat(1_999, 1), []);
    assert_eq!(bench.until(2_000), [give_up("k")]);
    assert_eq!(bench.engine.key_count(), 0);
}

#[test]
fn a_lost_key_ends_all_its_holds() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, wants_as(2, SHARED));
    bench.acquire(2, wants_as(1, SHARED));
    let gone = turnstile_core::Input::OwnershipLost { key: key("k") };
    let lease = turnstile_core::LostReason::Lease;
    assert_eq!(bench.give(gone), [lost(1, 2, lease), lost(2, 1, lease)]);
    assert_eq!(bench.acquire(3, wants_as(1, SHARED)), [claim("k", 2)]);
    // A dead owner's delay keeps out everybody, whatever the mode.
    assert_eq!(bench.gain_with("k", 2, 2, DELAY, 500), []);
    bench.release(1, 2, Ending::Clean);
    assert_eq!(bench.release(2, 1, Ending::Clean), []);
    assert!(matches!(bench.until(500)[..], [turnstile_core::Command::Grant { .. }]));
}

#[test]
fn readers_between_two_writers_count_as_one_turn() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, wants(2));
    bench.freeze(1_000);
    bench.release(1, 2, Ending::Clean);
    // A hold takes an eighth of a second now, by the average.
    bench.acquire(1, wants_as(3, SHARED));
    bench.acquire(2, wants(1));
    for request in 2..6 {
        bench.acquire(2, wants_as(request, SHARED));
    }
    let [turnstile_core::Command::Reject { retry_after: Some(hint), queue_length: 5, .. }] =
        bench.acquire(3, Acquire { wait: ms(0), ..wants_as(1, SHARED) })[..]
    else {
        panic!("a try is rejected at once");
    };
    // The one that holds, and the writer; the readers have their turn together.
    assert_eq!(hint, ms(125) * 2);
}
