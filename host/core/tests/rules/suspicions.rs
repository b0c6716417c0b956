//! Suspicions of a review: each test says what the design promises where the engine was doubted.

use turnstile_core::{
    Acquire, Command, Ending, ForcedDelay, HandoffBudget, HeartbeatSeq, HolderSecret, Input, LostReason, Mode, Reentry,
    RejectReason, RequestId, Resume, SessionId,
};

use crate::bench::*;

const SECRET: HolderSecret = HolderSecret([7; 16]);
const SHARED: Mode = Mode::Shared;

fn offers(request: u64) -> Acquire {
    Acquire { reentry: Reentry::Offer(SECRET), ..wants(request) }
}

/// Joins the family of the secret, and asks for these keys in exclusive mode.
fn joins(request: u64, names: &[&str]) -> Acquire {
    Acquire { reentry: Reentry::Join(SECRET), ..wants_all(request, names) }
}

fn joins_as(request: u64, wanted: &[(&str, Mode)]) -> Acquire {
    Acquire { reentry: Reentry::Join(SECRET), keys: keys(wanted), ..wants(request) }
}

/// Keys owned under epoch 1, by claims 2 and on, and held by the last session in exclusive mode as its requests 1 and
/// on; `k` is owned as well, and free.
fn held(sessions: u64, names: &[&str]) -> Bench {
    let mut bench = Bench::ready(sessions);
    for (number, name) in (1..).zip(names) {
        assert_eq!(bench.acquire(sessions, wants_all(number, &[*name])), [claim(name, number + 1)]);
        assert!(matches!(bench.gain(name, number + 1, 1)[..], [Command::Grant { .. }]));
    }
    bench
}

/// Who was granted, in order.
fn granted(commands: &[Command]) -> Vec<(u64, u64)> {
    let of = |command: &Command| match command {
        Command::Grant { session, request, .. } => Some((session.0, request.0)),
        _ => None,
    };
    commands.iter().filter_map(of).collect()
}

fn force(delay: ForcedDelay) -> Input {
    Input::ForceRelease { key: key("k"), token: None, delay }
}

// ---- Faults that a client can provoke ----

#[test]
fn a_session_may_end_with_a_hold_and_one_that_waits_to_join_it() {
    let mut bench = held(2, &["z"]);
    assert_eq!(granted(&bench.acquire(1, offers(2))), [(1, 2)]);
    assert_eq!(bench.acquire(1, joins(3, &["k", "z"])), []);
    // The founder's end turns the joiner away, which is of the same session.
    bench.until(5_000);
    assert_eq!(bench.engine.fault(), None);
}

#[test]
fn a_resume_may_list_neither_a_hold_nor_one_that_waits_to_join_it() {
    let mut bench = held(2, &["z"]);
    bench.acquire(1, offers(2));
    assert_eq!(bench.acquire(1, joins(3, &["k", "z"])), []);
    bench.suspend(1);
    bench.resume(1, 2, Resume::default());
    assert_eq!(bench.engine.fault(), None);
}

// ---- Families ----

/// Two joiners that add the same key while it is held by another, and are then let in beside each other.
fn two_bearers(first: Mode, second: Mode) -> Bench {
    let mut bench = held(4, &["z"]);
    assert_eq!(granted(&bench.acquire(1, offers(2))), [(1, 2)]);
    assert_eq!(bench.acquire(2, joins_as(1, &[("z", first)])), []);
    assert_eq!(bench.acquire(3, joins_as(1, &[("z", second)])), []);
    assert_eq!(granted(&bench.release(4, 1, Ending::Clean)), [(2, 1), (3, 1)]);
    bench
}

#[test]
fn two_of_a_family_may_hold_one_key_beside_each_other() {
    for (first, second) in [(SHARED, SHARED), (limit(2), limit(2)), (limit(3), limit(2)), (limit(2), limit(3))] {
        let mut bench = two_bearers(first, second);
        bench.release(2, 1, Ending::Clean);
        bench.release(3, 1, Ending::Clean);
        bench.release(1, 2, Ending::Clean);
        assert_eq!(granted(&bench.acquire(4, wants_all(2, &["z"]))), [(4, 2)], "{first:?} {second:?}");
    }
}

#[test]
fn a_joiner_does_not_wait_behind_one_that_waits_for_the_hold_and_came_before_it() {
    let mut bench = Bench::ready(3);
    // Comes before the founder, and is passed over while its stream is broken.
    bench.acquire(3, wants(1));
    bench.acquire(2, wants(1));
    bench.suspend(2);
    bench.release(3, 1, Ending::Clean);
    assert_eq!(granted(&bench.acquire(1, offers(2))), [(1, 2)]);
    bench.resume(2, 2, Resume { waiters: vec![wants(1)], ..Resume::default() });
    // What the founder calls must get in, or it waits for who waits for it.
    assert_eq!(granted(&bench.acquire(3, joins(2, &["k"]))), [(3, 2)]);
}

#[test]
fn a_joiner_does_not_wait_behind_an_older_request_that_comes_from_a_smaller_key() {
    let mut bench = held(3, &["a"]);
    assert_eq!(bench.acquire(2, wants_all(1, &["a", "k"])), []);
    assert_eq!(granted(&bench.acquire(1, offers(2))), [(1, 2)]);
    // Now the older one has `a`, and waits for the founder's `k`.
    assert_eq!(bench.release(3, 1, Ending::Clean), []);
    assert_eq!(granted(&bench.acquire(3, joins(2, &["k"]))), [(3, 2)]);
}

#[test]
fn a_joiner_does_not_wait_behind_another_joiner_that_waits_for_more() {
    let mut bench = held(4, &["z"]);
    bench.acquire(1, offers(2));
    assert_eq!(bench.acquire(2, joins(1, &["k", "z"])), []);
    assert_eq!(granted(&bench.acquire(3, joins(1, &["k"]))), [(3, 1)]);
}

#[test]
fn a_try_to_join_is_answered_at_once() {
    let mut bench = held(4, &["z"]);
    bench.acquire(1, offers(2));
    assert_eq!(bench.acquire(2, joins(1, &["k", "z"])), []);
    let joiner = Acquire { wait: ms(0), ..joins(1, &["k"]) };
    assert_eq!(granted(&bench.acquire(3, joiner)), [(3, 1)]);
}

#[test]
fn joiners_are_bounded_like_other_waiters_of_the_key() {
    let mut bench = Bench::ready_with(4, |config| config.waiters_per_key_max = 2);
    bench.acquire(4, wants_all(1, &["z"]));
    bench.gain("z", 2, 1);
    bench.acquire(1, offers(2));
    assert_eq!(bench.acquire(4, wants(2)), []);
    assert_eq!(bench.acquire(4, wants(3)), []);
    // The bench checks I7 here.
    bench.acquire(2, joins(1, &["k", "z"]));
}

#[test]
fn an_answer_is_given_once_also_to_a_joiner_whose_hold_ends_by_the_same_resume() {
    let mut bench = held(2, &["z"]);
    bench.acquire(1, offers(2));
    let joiner = joins(3, &["k", "z"]);
    assert_eq!(bench.acquire(1, joiner.clone()), []);
    bench.suspend(1);
    let releases = vec![(RequestId(2), Ending::Clean)];
    let commands = bench.resume(1, 2, Resume { waiters: vec![joiner], releases, ..Resume::default() });
    assert_eq!(commands, [reject(1, 3, RejectReason::NoSuchHold), ack(1, 2, VALID)]);
}

// ---- Forced release ----

#[test]
fn a_forced_release_takes_all_who_join_the_hold() {
    let mut bench = held(6, &["m", "z"]);
    // The place that is free last is taken first: the founder is looked at before the other members.
    bench.release(6, 2, Ending::Clean);
    bench.release(6, 1, Ending::Clean);
    // The founder has `k` and `m`; one member has `k` alone. A stranger reads `z`.
    bench.acquire(1, Acquire { reentry: Reentry::Offer(SECRET), ..wants_all(2, &["k", "m"]) });
    assert_eq!(granted(&bench.acquire(2, joins(1, &["k"]))), [(2, 1)]);
    assert_eq!(granted(&bench.acquire(5, Acquire { keys: keys(&[("z", SHARED)]), ..wants(1) })), [(5, 1)]);
    // One joiner wants to write `z`, another waits behind it to read.
    assert_eq!(bench.acquire(3, joins(1, &["m", "z"])), []);
    assert_eq!(bench.acquire(4, joins_as(1, &[("k", Mode::Exclusive), ("z", SHARED)])), []);
    // With the founder's loss the writer is turned away: the reader must not slip in before the member's loss.
    let commands = bench.give(force(ForcedDelay::Keep));
    assert_eq!(granted(&commands), []);
    assert_eq!(bench.engine.hold_count(), 3, "the founder, the member and the stranger");
}

#[test]
fn a_skipped_lock_delay_is_skipped_also_for_members_that_went_before() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, offers(2));
    assert_eq!(granted(&bench.acquire(2, joins(1, &["k"]))), [(2, 1)]);
    assert_eq!(bench.release(2, 1, Ending::Unclean), []);
    assert_eq!(bench.acquire(3, wants(1)), []);
    assert_eq!(bench.give(force(ForcedDelay::Skip)), [lost(1, 2, LostReason::Forced)]);
    assert_eq!(granted(&bench.release(1, 2, Ending::Unclean)), [(3, 1)]);
}

// ---- Several keys ----

#[test]
fn who_has_all_its_keys_again_after_one_settling_is_served() {
    let mut bench = Bench::new(|_| {});
    bench.open(5);
    // The places of the keys in the table are not in the order of their names.
    for (number, name) in (1..).zip(["d", "b", "a", "c"]) {
        bench.acquire(5, wants_all(number, &[name]));
        bench.gain(name, number, 1);
    }
    bench.release(5, 1, Ending::Clean);
    bench.release(5, 4, Ending::Clean);
    // `a` and `b` are held; the two oldest wait for them.
    assert_eq!(bench.acquire(1, wants_all(1, &["a", "b"])), []);
    assert_eq!(bench.acquire(1, wants_all(2, &["b", "c"])), []);
    bench.suspend(1);
    bench.release(5, 2, Ending::Clean);
    bench.release(5, 3, Ending::Clean);
    // `d` is read; one who has `a` wants to write it, and one who has `c` to read it behind that one.
    assert_eq!(granted(&bench.acquire(4, Acquire { keys: keys(&[("d", SHARED)]), ..wants(1) })), [(4, 1)]);
    assert_eq!(bench.acquire(2, wants_all(1, &["a", "d"])), []);
    assert_eq!(bench.acquire(3, Acquire { keys: keys(&[("c", Mode::Exclusive), ("d", SHARED)]), ..wants(1) }), []);
    // The oldest come back. `b` is stepped first: its waiter gets in front of the reader at `c`. Then `a` is taken from
    // the writer, which leaves `d` to the reader, who has not `c` at this moment; and only then `b` from its waiter, who
    // leaves `c` to the reader again.
    let waiters = vec![wants_all(1, &["a", "b"]), wants_all(2, &["b", "c"])];
    let commands = bench.resume(1, 2, Resume { waiters, ..Resume::default() });
    assert_eq!(granted(&commands), [(1, 1), (3, 1)]);
}

#[test]
fn a_key_that_is_asked_for_is_not_evicted_for_another_key_of_the_same_request() {
    let mut bench = Bench::new(|config| config.keys_max = 2);
    bench.open(1);
    for (number, name) in (1..).zip(["a", "b"]) {
        bench.acquire(1, wants_all(number, &[name]));
        bench.gain(name, number, 1);
    }
    bench.release(1, 1, Ending::Clean);
    bench.release(1, 2, Ending::Clean);
    // `a` has been idle longest, and is wanted now: `b` makes room.
    assert_eq!(bench.acquire(1, wants_all(3, &["a", "c"])), [give_up("b"), claim("c", 3)]);
}

// ---- Ownership ----

#[test]
fn readers_do_not_keep_a_key_from_another_host_for_ever() {
    let mut bench =
        Bench::ready_with(2, |config| config.handoff_budget = HandoffBudget { grants: 2, time: ms(60_000) });
    bench.acquire(1, wants_as(2, SHARED));
    assert_eq!(bench.contend("k"), []);
    let mut grants = 0;
    // Always one reader at least.
    for request in 3..100 {
        grants += granted(&bench.acquire(1, wants_as(request, SHARED))).len();
        bench.release(1, request - 1, Ending::Clean);
    }
    assert!(grants <= 2, "{grants} grants after another host wanted the key");
}

#[test]
fn limited_holders_do_not_keep_a_key_from_another_host_for_ever() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants_as(2, limit(2)));
    assert_eq!(bench.contend("k"), []);
    bench.until(100);
    // The budget's time is over.
    assert_eq!(granted(&bench.acquire(1, wants_as(3, limit(2)))), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), [give_up("k"), claim("k", 2)]);
}

#[test]
fn a_heartbeat_makes_no_promise_worth_making_that_the_lease_does_not_cover() {
    let mut bench = Bench::without_lease(|_| {});
    bench.give(Input::LeaseRenewed { until: at(4_000) });
    bench.open(1);
    bench.acquire(1, wants(1));
    bench.until(1_000);
    bench.give(Input::Heartbeat { session: SessionId(1), seq: HeartbeatSeq(2) });
    bench.until(3_700);
    assert_eq!(bench.gain("k", 1, 1), []);
    let commands = bench.give(Input::Heartbeat { session: SessionId(1), seq: HeartbeatSeq(3) });
    assert_eq!(granted(&commands), []);
    assert_eq!(granted(&bench.give(Input::LeaseRenewed { until: at(9_000) })), [(1, 1)]);
}

#[test]
fn a_pinned_key_goes_to_another_host_when_its_pinner_falls_silent() {
    let mut bench = held(3, &["z"]);
    assert_eq!(bench.acquire(1, wants_all(2, &["k", "z"])), []);
    assert_eq!(bench.contend("k"), []);
    assert_eq!(bench.until(200), []);
    assert_eq!(bench.suspend(1), [give_up("k"), claim("k", 3)]);
}

// ---- Waits and estimates ----

#[test]
fn a_place_that_is_free_soon_is_not_hopeless() {
    let mut bench = Bench::ready(3);
    for (session, delay) in [(1, 1_000), (2, 60_000)] {
        bench.acquire(session, Acquire { lock_delay: ms(delay), ..wants_as(2, limit(2)) });
    }
    // The second one's delay is more than the record remembers.
    bench.gain_with("k", 2, 2, ms(60_000), 0);
    bench.release(1, 2, Ending::Unclean);
    bench.release(2, 2, Ending::Unclean);
    // One of the two places is free in a second.
    let fast = Acquire { wait: ms(10_000), fail_fast: true, ..wants_as(1, limit(2)) };
    assert_eq!(bench.acquire(3, fast), []);
    assert_eq!(granted(&bench.beat(1_000, 3)), [(3, 1)]);
}

#[test]
fn readers_that_go_in_together_count_as_one_turn() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, wants(2));
    bench.freeze(1_000);
    bench.release(1, 2, Ending::Clean);
    // A hold takes 125 ms now, by the average: so long does the writer's turn take, and then all readers have theirs.
    bench.acquire(1, wants(3));
    assert_eq!(bench.acquire(2, wants_as(1, SHARED)), []);
    let fast = Acquire { wait: ms(200), fail_fast: true, ..wants_as(1, SHARED) };
    assert_eq!(bench.acquire(3, fast), []);
}

#[test]
fn a_wait_that_is_cut_is_hopeless_by_what_is_left_of_it() {
    let mut bench = Bench::ready_with(2, |config| config.wait_max = ms(5_000));
    bench.acquire(1, wants(2));
    bench.release(1, 2, Ending::Unclean);
    let fast = Acquire { wait: ms(20_000), fail_fast: true, ..wants(1) };
    assert_eq!(bench.acquire(2, fast), [reject_with(2, 1, RejectReason::WaitHopeless, Some(15_000), 0)]);
}

#[test]
fn a_wait_that_was_stretched_for_one_key_is_its_own_again_at_the_next() {
    let mut bench = held(2, &["z"]);
    assert_eq!(bench.acquire(1, Acquire { wait: ms(20), ..wants_all(2, &["y", "z"]) }), [claim("y", 3)]);
    bench.until(5);
    assert_eq!(bench.gain("y", 3, 1), []);
    // The store has answered; the holder of `z` is in the way.
    assert_eq!(bench.until(20), [reject_with(1, 2, RejectReason::WaitTimeout, None, 0)]);
}

#[test]
fn a_try_waits_for_another_host_that_may_have_no_use_for_the_key() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    assert_eq!(bench.acquire(1, tries(1)), [claim("k", 1)]);
    // It owns the key, which does not mean that anybody holds it.
    let queued = Input::OwnershipQueued { key: key("k"), claim: turnstile_core::ClaimId(1) };
    assert_eq!(bench.give(queued), []);
    assert_eq!(bench.until(999), []);
    assert_eq!(bench.until(1_000), [reject(1, 1, RejectReason::Conflict), give_up("k")]);
}

#[test]
fn a_wait_that_the_store_used_up_is_granted_if_the_next_key_is_free() {
    let mut bench = Bench::ready(1);
    assert_eq!(bench.acquire(1, Acquire { wait: ms(2), ..wants_all(2, &["a", "k"]) }), [claim("a", 2)]);
    assert_eq!(bench.until(5), []);
    assert_eq!(granted(&bench.gain("a", 2, 1)), [(1, 2)]);
}

#[test]
fn who_waits_to_join_the_hold_takes_no_turn() {
    let mut bench = held(6, &["z"]);
    bench.acquire(1, offers(2));
    bench.freeze(800);
    for session in 1..=6 {
        bench.give(Input::Heartbeat { session: SessionId(session), seq: HeartbeatSeq(2) });
    }
    bench.release(1, 2, Ending::Clean);
    // A hold takes 100 ms now, by the average.
    bench.acquire(1, offers(3));
    for session in 2..=5 {
        assert_eq!(bench.acquire(session, joins(1, &["k", "z"])), []);
    }
    let fast = Acquire { wait: ms(200), fail_fast: true, ..wants(3) };
    assert_eq!(bench.acquire(6, fast), []);
}

#[test]
fn the_store_is_to_blame_if_only_the_record_of_a_shared_key_lags_behind() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants_as(2, SHARED));
    let raises = Acquire { lock_delay: DELAY * 2, wait: ms(500), ..wants_as(1, SHARED) };
    assert_eq!(bench.acquire(2, raises), [claim_with("k", 2, DELAY * 2, false)]);
    assert_eq!(bench.until(500), [reject(2, 1, RejectReason::StoreUnavailable)]);
}

#[test]
fn a_key_that_is_claimed_again_covers_the_holds_from_before() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    let gone = Input::OwnershipLost { key: key("k") };
    bench.acquire(2, Acquire { lock_delay: ms(1), ..wants(1) });
    assert_eq!(bench.give(gone), [lost(1, 2, turnstile_core::LostReason::Lease), claim_with("k", 2, DELAY, false)]);
}
