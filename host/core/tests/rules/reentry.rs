//! Re-entrancy: joining a hold by its secret, and the last to release frees what they share.

use turnstile_core::{
    Acquire, Command, EndReason, Ending, ForcedDelay, HolderSecret, Input, LostReason, Mode, Reentry, RejectReason,
    RequestId, Resume, Token,
};

use crate::bench::*;

const SECRET: HolderSecret = HolderSecret([7; 16]);

fn offers(request: u64) -> Acquire {
    Acquire { reentry: Reentry::Offer(SECRET), ..wants(request) }
}

fn joins(request: u64) -> Acquire {
    Acquire { reentry: Reentry::Join(SECRET), ..wants(request) }
}

/// A grant to the family of the secret.
fn granted(session: u64, request: u64, tokens: &[Token]) -> Command {
    let alone: Vec<_> = tokens.iter().map(|token| (*token, *token)).collect();
    match grant_all(session, request, &alone, 0) {
        Command::Grant { session, request, keys, waited, seq, valid, .. } => {
            Command::Grant { session, request, keys, waited, seq, valid, secret: Some(SECRET) }
        }
        other => other,
    }
}

/// Sessions 1 to `sessions`; the first holds `k` and lets others join.
fn held(sessions: u64) -> Bench {
    let mut bench = Bench::ready(sessions);
    assert_eq!(bench.acquire(1, offers(2)), [granted(1, 2, &[token(1, 1)])]);
    bench
}

#[test]
fn who_brings_the_secret_joins_the_hold() {
    let mut bench = held(3);
    assert_eq!(bench.acquire(3, wants(1)), []);
    assert_eq!(bench.acquire(2, joins(1)), [granted(2, 1, &[token(1, 1)])]);
    // And so do those that it calls.
    assert_eq!(bench.acquire(3, joins(2)), [granted(3, 2, &[token(1, 1)])]);
    assert_eq!(bench.release(3, 2, Ending::Clean), []);
    assert_eq!(bench.release(2, 1, Ending::Clean), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), [grant(3, 1, token(1, 2), 0, VALID)]);
    assert_eq!(bench.release(3, 1, Ending::Clean), []);
    assert_eq!(bench.acquire(2, joins(3)), [reject(2, 3, RejectReason::NoSuchHold)]);
}

#[test]
fn the_last_to_release_frees_the_key_whoever_it_is() {
    let mut bench = held(3);
    bench.acquire(3, wants(1));
    bench.acquire(2, joins(1));
    assert_eq!(bench.release(1, 2, Ending::Clean), []);
    // The hold goes on, and may be joined.
    assert_eq!(bench.acquire(2, joins(2)), [granted(2, 2, &[token(1, 1)])]);
    assert_eq!(bench.release(2, 1, Ending::Clean), []);
    assert_eq!(bench.release(2, 2, Ending::Clean), [grant(3, 1, token(1, 2), 0, VALID)]);
}

#[test]
fn one_unclean_end_is_enough() {
    for unclean in [1, 2] {
        let mut bench = held(3);
        bench.acquire(3, wants(1));
        bench.acquire(2, Acquire { lock_delay: ms(700), ..joins(1) });
        let ending = |session| if session == unclean { Ending::Unclean } else { Ending::Clean };
        assert_eq!(bench.release(2, 1, ending(2)), []);
        assert_eq!(bench.release(1, 2, ending(1)), []);
        let delay = if unclean == 1 { 15_000 } else { 700 };
        assert_eq!(bench.beat(delay - 1, 3), []);
        assert!(matches!(bench.until(delay)[..], [Command::Grant { .. }]), "{unclean}");
    }
}

#[test]
fn a_joiner_with_a_larger_lock_delay_waits_until_the_store_remembers_it() {
    let mut bench = held(2);
    let raise = claim_with("k", 2, DELAY * 2, false);
    assert_eq!(bench.acquire(2, Acquire { lock_delay: DELAY * 2, ..joins(1) }), [raise]);
    assert_eq!(bench.gain_with("k", 2, 1, DELAY * 2, 0), [granted(2, 1, &[token(1, 1)])]);
}

#[test]
fn an_unknown_secret_opens_nothing() {
    let mut bench = held(2);
    let guess = Acquire { reentry: Reentry::Join(HolderSecret([8; 16])), ..wants(1) };
    assert_eq!(bench.acquire(2, guess), [reject(2, 1, RejectReason::NoSuchHold)]);
    // A hold without an offer has none.
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    assert_eq!(bench.acquire(2, joins(1)), [reject(2, 1, RejectReason::NoSuchHold)]);
}

#[test]
fn a_hold_that_was_told_lost_takes_nobody_in() {
    let mut bench = held(3);
    bench.acquire(2, joins(1));
    let force = Input::ForceRelease { key: key("k"), token: None, delay: ForcedDelay::Skip };
    assert_eq!(bench.give(force), [lost(1, 2, LostReason::Forced), lost(2, 1, LostReason::Forced)]);
    assert_eq!(bench.acquire(3, joins(1)), [reject(3, 1, RejectReason::NoSuchHold)]);
    assert_eq!(bench.acquire(3, wants(2)), []);
    assert_eq!(bench.release(1, 2, Ending::Unclean), []);
    assert_eq!(bench.release(2, 1, Ending::Unclean), [grant(3, 2, token(1, 2), 0, VALID)]);
}

#[test]
fn a_stronger_mode_is_refused_and_a_weaker_one_is_covered() {
    for (held, wanted, covered) in [
        (Mode::Exclusive, Mode::Shared, true),
        (Mode::Exclusive, limit(3), true),
        (Mode::Shared, Mode::Shared, true),
        (Mode::Shared, Mode::Exclusive, false),
        (Mode::Shared, limit(3), false),
        (limit(3), limit(3), true),
        (limit(3), limit(4), true),
        (limit(3), limit(2), false),
        (limit(3), Mode::Shared, false),
        (limit(1), Mode::Exclusive, false),
    ] {
        let mut bench = Bench::ready(2);
        bench.acquire(1, Acquire { reentry: Reentry::Offer(SECRET), ..wants_as(2, held) });
        let commands = bench.acquire(2, Acquire { reentry: Reentry::Join(SECRET), ..wants_as(1, wanted) });
        let expected = if covered { granted(2, 1, &[token(1, 1)]) } else { reject(2, 1, RejectReason::Upgrade) };
        assert_eq!(commands, [expected], "{held:?} {wanted:?}");
    }
}

#[test]
fn what_joined_keeps_the_mode_of_the_hold() {
    let mut bench = held(3);
    bench.acquire(2, Acquire { reentry: Reentry::Join(SECRET), ..wants_as(1, Mode::Shared) });
    bench.release(1, 2, Ending::Clean);
    // The key is held exclusively as before.
    assert_eq!(bench.acquire(3, wants_as(1, Mode::Shared)), []);
    assert!(matches!(bench.release(2, 1, Ending::Clean)[..], [Command::Grant { .. }]));
}

#[test]
fn a_joiner_passes_those_that_wait_for_the_hold_it_joins() {
    let mut bench = Bench::ready(4);
    bench.acquire(1, Acquire { reentry: Reentry::Offer(SECRET), ..wants_as(2, Mode::Shared) });
    bench.acquire(2, wants(1));
    bench.acquire(3, wants_as(1, Mode::Shared));
    assert_eq!(
        bench.acquire(4, Acquire { reentry: Reentry::Join(SECRET), ..wants_as(1, Mode::Shared) }),
        [granted(4, 1, &[token(1, 1)])]
    );
    assert_eq!(bench.release(1, 2, Ending::Clean), []);
    assert_eq!(bench.release(4, 1, Ending::Clean), [grant(2, 1, token(1, 2), 0, VALID)]);
}

#[test]
fn a_larger_key_is_waited_for_and_a_smaller_one_only_tried() {
    let mut bench = held(3);
    for (request, name) in [(1, "a"), (2, "z")] {
        bench.acquire(3, wants_all(request, &[name]));
        bench.gain(name, request + 1, 1);
    }
    let adds = |request, name| Acquire { reentry: Reentry::Join(SECRET), ..wants_all(request, &["k", name]) };
    assert_eq!(bench.acquire(2, adds(1, "a")), [reject(2, 1, RejectReason::Conflict)]);
    assert_eq!(bench.acquire(2, adds(2, "z")), []);
    assert_eq!(bench.release(3, 2, Ending::Clean), [granted(2, 2, &[token(1, 1), token(1, 1)])]);
    // `z` is of the family now, and sorts behind `k`.
    bench.release(3, 1, Ending::Clean);
    assert_eq!(bench.acquire(1, adds(3, "a")), [granted(1, 3, &[token(1, 1), token(1, 1)])]);
    let both = Acquire { reentry: Reentry::Join(SECRET), ..wants_all(3, &["z", "a"]) };
    assert_eq!(bench.acquire(3, both), [granted(3, 3, &[token(1, 1), token(1, 1)])]);
    // What only one has used is free when that one goes.
    bench.acquire(3, wants_all(4, &["z"]));
    assert_eq!(bench.release(3, 3, Ending::Clean), []);
    assert_eq!(bench.release(2, 2, Ending::Clean), [grant(3, 4, token(1, 2), 0, VALID)]);
    assert_eq!(bench.release(1, 2, Ending::Clean), []);
    assert_eq!(bench.release(1, 3, Ending::Clean), []);
    assert_eq!(bench.engine.hold_count(), 1);
}

#[test]
fn a_joiner_that_waits_is_turned_away_when_the_hold_ends() {
    let mut bench = held(3);
    bench.acquire(3, wants_all(1, &["z"]));
    bench.gain("z", 2, 1);
    let adds = Acquire { reentry: Reentry::Join(SECRET), ..wants_all(1, &["k", "z"]) };
    assert_eq!(bench.acquire(2, adds.clone()), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), [reject(2, 1, RejectReason::NoSuchHold)]);
    // Or when it is lost.
    let mut bench = held(3);
    bench.acquire(3, wants_all(1, &["z"]));
    bench.gain("z", 2, 1);
    bench.acquire(2, adds);
    let commands = bench.give(Input::OwnershipLost { key: key("k") });
    assert_eq!(commands, [lost(1, 2, LostReason::Lease), reject(2, 1, RejectReason::NoSuchHold)]);
}

#[test]
fn no_member_outlasts_the_limit_of_the_hold() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, Acquire { hold: Some(ms(2_000)), lock_delay: ms(0), ..offers(2) });
    bench.beat(1_000, 3);
    let commands = bench.acquire(2, Acquire { hold: Some(ms(60_000)), lock_delay: ms(0), ..joins(1) });
    assert!(matches!(commands[..], [Command::Grant { .. }]));
    bench.release(1, 2, Ending::Clean);
    assert_eq!(bench.beat(2_000, 3), [lost(2, 1, LostReason::HoldLimit)]);
    bench.acquire(3, wants(1));
    assert!(matches!(bench.release(2, 1, Ending::Unclean)[..], [Command::Grant { .. }]));
}

#[test]
fn a_member_whose_session_is_over_leaves_the_hold_to_the_others() {
    let mut bench = held(3);
    bench.acquire(2, joins(1));
    bench.acquire(3, wants(1));
    bench.suspend(1);
    // The founder is gone; the one that joined believes on.
    for millis in [1_000, 2_000, 3_000, 4_000] {
        bench.until(millis);
        for session in [2, 3] {
            let seq = turnstile_core::HeartbeatSeq(millis);
            bench.give(Input::Heartbeat { session: turnstile_core::SessionId(session), seq });
        }
    }
    assert_eq!((bench.engine.session_count(), bench.engine.hold_count()), (2, 1));
    assert_eq!(bench.release(2, 1, Ending::Clean), []);
    // The founder's end was unclean.
    assert_eq!(bench.engine.describe(&key("k"), 0).unwrap().quarantined_until, Some(at(19_000)));
}

#[test]
fn a_secret_that_is_taken_lets_nobody_join_twice() {
    let mut bench = held(2);
    // Not random: the same secret again, for another key.
    bench.acquire(2, Acquire { reentry: Reentry::Offer(SECRET), ..wants_all(1, &["z"]) });
    let commands = bench.gain("z", 2, 1);
    assert_eq!(commands, [grant(2, 1, token(1, 0), 0, VALID)]);
    assert_eq!(bench.acquire(2, joins(2)), [granted(2, 2, &[token(1, 1)])]);
}

/// Session 1 holds `k`, and a request of its own waits to join it and for `z`, which session 2 holds.
fn waits_to_join() -> Bench {
    let mut bench = held(2);
    bench.acquire(2, wants_all(1, &["z"]));
    bench.gain("z", 2, 1);
    assert_eq!(bench.acquire(1, join_with_z()), []);
    bench
}

fn join_with_z() -> Acquire {
    Acquire { reentry: Reentry::Join(SECRET), ..wants_all(3, &["k", "z"]) }
}

#[test]
fn a_session_ends_with_its_hold_and_with_who_waits_to_join_it() {
    let mut bench = waits_to_join();
    assert_eq!(bench.until(4_000), [end(1, EndReason::Expired), end(2, EndReason::Expired)]);
    assert_eq!((bench.engine.waiter_count(), bench.engine.hold_count()), (0, 0));
}

#[test]
fn who_is_turned_away_during_a_resume_is_told_so_once() {
    let mut bench = waits_to_join();
    bench.suspend(1);
    let releases = vec![(RequestId(2), Ending::Clean)];
    let resume = Resume { waiters: vec![join_with_z()], releases, ..Resume::default() };
    assert_eq!(bench.resume(1, 2, resume), [reject_with(1, 3, RejectReason::NoSuchHold, None, 0), ack(1, 2, VALID)]);
}

#[test]
fn who_is_no_waiter_any_more_is_not_turned_away_during_a_resume() {
    // It was cancelled; or the client has never heard of it since.
    for cancelled in [vec![(RequestId(3), Ending::Unsent)], vec![]] {
        let mut bench = waits_to_join();
        bench.suspend(1);
        let releases = [vec![(RequestId(2), Ending::Clean)], cancelled].concat();
        assert_eq!(bench.resume(1, 2, Resume { releases, ..Resume::default() }), [ack(1, 2, VALID)]);
        assert_eq!((bench.engine.waiter_count(), bench.engine.hold_count()), (0, 1));
    }
}

#[test]
fn a_description_names_those_who_joined() {
    let mut bench = held(3);
    bench.acquire(2, joins(1));
    bench.acquire(3, joins(1));
    let described = bench.engine.describe(&key("k"), 9).unwrap();
    let [holder] = &described.holders[..] else { panic!("one hold of the key: {described:?}") };
    let joined: Vec<(u64, u64)> = holder.joined.iter().map(|joined| (joined.session.0, joined.request.0)).collect();
    assert_eq!((holder.holder.session.0, joined), (1, vec![(2, 1), (3, 1)]));
    assert_eq!(described.holder_count, 1);
}
