//! Ownership: claims, the store's answers, other hosts, and losing it.

use turnstile_core::{
    Acquire, ClaimId, Command, Ending, HandoffBudget, Input, LostReason, Mode, RejectReason, SessionId,
};

use crate::bench::*;

fn queued(claim: u64) -> Input {
    Input::OwnershipQueued { key: key("k"), claim: ClaimId(claim) }
}

fn refused(claim: u64) -> Input {
    Input::OwnershipRefused { key: key("k"), claim: ClaimId(claim) }
}

#[test]
fn one_claim_serves_all_waiters_and_remembers_the_largest_lock_delay() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    assert_eq!(bench.acquire(1, wants(1)), [claim("k", 1)]);
    assert_eq!(bench.acquire(1, Acquire { lock_delay: DELAY * 3, ..wants(2) }), []);
    assert_eq!(bench.acquire(1, Acquire { lock_delay: DELAY * 2, ..wants(3) }), []);
    // The first may go; the record is raised for the second meanwhile, for all who wait.
    assert_eq!(bench.gain("k", 1, 1), [claim_with("k", 2, DELAY * 3, false), grant(1, 1, token(1, 0), 0, VALID)]);
    assert_eq!(bench.release(1, 1, Ending::Clean), []);
    assert_eq!(bench.gain_with("k", 2, 1, DELAY * 3, 0), [grant(1, 2, token(1, 1), 0, VALID)]);
    assert_eq!(bench.release(1, 2, Ending::Clean), [grant(1, 3, token(1, 2), 0, VALID)]);
}

#[test]
fn a_dead_predecessors_quarantine_is_waited_out() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    bench.acquire(1, wants(1));
    assert_eq!(bench.gain_with("k", 1, 1, DELAY, 2_000), []);
    assert_eq!(bench.until(1_999), []);
    assert_eq!(bench.until(2_000), [grant(1, 1, token(1, 0), 2_000, VALID)]);
}

#[test]
fn a_claim_that_nobody_waits_for_lands_and_is_kept_idle() {
    let mut bench = Bench::new(|config| config.claim_patience = ms(10));
    bench.open(1);
    bench.acquire(1, Acquire { wait: ms(2), ..wants(1) });
    assert_eq!(bench.until(10), [reject(1, 1, RejectReason::StoreUnavailable)]);
    assert_eq!(bench.gain("k", 1, 1), []);
    assert_eq!(bench.engine.owned_key_count(), 1);
    assert_eq!(bench.acquire(1, Acquire { wait: ms(2), ..wants(2) }), [grant(1, 2, token(1, 0), 0, VALID)]);
}

#[test]
fn a_claim_that_nobody_waits_for_is_withdrawn_when_it_stands_behind_another_host() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    // It is answered first, or left first.
    bench.acquire(1, wants(1));
    assert_eq!(bench.give(queued(1)), []);
    assert_eq!(bench.cancel(1, 1), [give_up("k")]);
    bench.acquire(1, wants(2));
    assert_eq!(bench.cancel(1, 2), []);
    assert_eq!(bench.give(queued(2)), [give_up("k")]);
    assert_eq!(bench.engine.key_count(), 0);
    // What answers nobody's claim is given up again.
    assert_eq!(bench.give(queued(2)), [give_up("k")]);
}

#[test]
fn a_claim_that_nobody_waits_for_is_withdrawn_at_a_drain() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    bench.acquire(1, wants(1));
    assert_eq!(bench.cancel(1, 1), []);
    assert_eq!(bench.give(Input::Drain), [give_up("k"), Command::Drained]);
}

#[test]
fn a_place_in_the_queue_for_an_owned_key_means_that_its_record_is_lost() {
    let mut bench = Bench::new(|_| {});
    bench.open(2);
    bench.acquire(1, Acquire { lock_delay: ms(0), ..wants(1) });
    assert_eq!(bench.gain_with("k", 1, 1, ms(0), 0), [grant(1, 1, token(1, 0), 0, VALID)]);
    assert_eq!(bench.acquire(2, wants(1)), [claim("k", 2)]);
    // An older claim's answer says nothing.
    assert_eq!(bench.give(queued(1)), []);
    assert_eq!(bench.give(queued(2)), [lost(1, 1, LostReason::Lease)]);
    assert_eq!(bench.engine.owned_key_count(), 0);
    assert_eq!(bench.release(1, 1, Ending::Clean), []);
    // Only the store's word lets it be granted again; the claim stands in its queue.
    assert_eq!(bench.until(1_000), []);
    assert_eq!(bench.gain("k", 2, 7), [grant(2, 1, token(7, 0), 1_000, VALID)]);

    // Free, and wanted by nobody.
    let mut bench = Bench::ready(1);
    assert_eq!(bench.acquire(1, Acquire { lock_delay: DELAY * 2, ..wants(2) }), [claim_with("k", 2, DELAY * 2, false)]);
    assert_eq!(bench.cancel(1, 2), []);
    assert_eq!(bench.give(queued(2)), [give_up("k")]);
    assert_eq!(bench.engine.key_count(), 0);
}

#[test]
fn a_place_in_the_queue_is_given_up_by_a_key_that_wants_none() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, wants(2));
    assert_eq!(bench.give(Input::LeaseLost), [lost(1, 2, LostReason::Lease)]);
    assert_eq!(bench.give(queued(1)), [give_up("k")]);
}

#[test]
fn a_claim_that_the_store_does_not_answer_is_idle_and_leaves_no_ghost() {
    let mut bench = Bench::new(|config| config.idle_ownership = ms(2_000));
    bench.open(1);
    bench.acquire(1, wants(1));
    assert_eq!(bench.cancel(1, 1), []);
    assert_eq!(bench.until(1_999), []);
    assert_eq!(bench.until(2_000), [give_up("k")]);
    assert_eq!(bench.engine.key_count(), 0);
    assert_eq!(bench.gain("k", 1, 1), [give_up("k")]);
    // A newer claim is on its way: the store carries out one after the other, so the older answer means nothing.
    assert_eq!(bench.acquire(1, wants(2)), [claim("k", 2)]);
    assert_eq!(bench.gain("k", 1, 1), []);
    assert_eq!(bench.gain("k", 2, 2), [grant(1, 2, token(2, 0), 0, VALID)]);
    assert_eq!(bench.gain("k", 1, 1), []);
}

#[test]
fn a_refused_claim_rejects_its_waiters() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    bench.acquire(1, wants(1));
    bench.acquire(1, wants(2));
    assert_eq!(bench.give(refused(7)), []);
    assert_eq!(
        bench.give(refused(1)),
        [reject_with(1, 1, RejectReason::StoreUnavailable, None, 1), reject(1, 2, RejectReason::StoreUnavailable),]
    );
    assert_eq!(bench.engine.key_count(), 0);
}

#[test]
fn a_record_that_cannot_be_raised_is_given_up_when_free() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    assert_eq!(bench.acquire(2, Acquire { lock_delay: DELAY * 2, ..wants(1) }), [claim_with("k", 2, DELAY * 2, false)]);
    assert_eq!(bench.give(refused(2)), [reject(2, 1, RejectReason::StoreUnavailable)]);
    assert_eq!(bench.release(1, 2, Ending::Clean), [give_up("k")]);
}

#[test]
fn a_contended_key_is_yielded_when_free_and_nobody_waits() {
    let mut bench = Bench::ready(1);
    assert_eq!(bench.contend("k"), [give_up("k")]);

    let mut bench = Bench::ready(1);
    bench.acquire(1, Acquire { lock_delay: ms(500), ..wants(2) });
    assert_eq!(bench.contend("k"), []);
    assert_eq!(bench.release(1, 2, Ending::Unclean), []);
    assert_eq!(bench.until(499), []);
    assert_eq!(bench.until(500), [give_up("k")]);
    assert_eq!(bench.engine.key_count(), 0);
}

#[test]
fn another_host_waits_for_no_more_than_the_budgets_grants() {
    let mut bench =
        Bench::ready_with(1, |config| config.handoff_budget = HandoffBudget { grants: 2, time: ms(60_000) });
    for request in 2..=6 {
        bench.acquire(1, wants(request));
    }
    assert_eq!(bench.contend("k"), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), [grant(1, 3, token(1, 2), 0, VALID)]);
    assert_eq!(bench.contend("k"), []);
    assert_eq!(bench.release(1, 3, Ending::Clean), [grant(1, 4, token(1, 3), 0, VALID)]);
    // The rest queue behind the other host.
    assert_eq!(bench.release(1, 4, Ending::Clean), [give_up("k"), claim("k", 2)]);
    assert_eq!(bench.gain("k", 2, 9), [grant(1, 5, token(9, 0), 0, VALID)]);
    // The budget starts anew with the ownership.
    assert_eq!(bench.release(1, 5, Ending::Clean), [grant(1, 6, token(9, 1), 0, VALID)]);
}

#[test]
fn another_host_does_not_wait_for_readers_that_overlap_for_ever() {
    let mut bench =
        Bench::ready_with(1, |config| config.handoff_budget = HandoffBudget { grants: 1, time: ms(60_000) });
    assert_eq!(bench.acquire(1, wants_as(2, Mode::Shared)), [grant(1, 2, token(1, 1), 0, VALID)]);
    assert_eq!(bench.contend("k"), []);
    assert_eq!(bench.acquire(1, wants_as(3, Mode::Shared)), [grant_beside(1, 3, token(1, 2), token(1, 1))]);
    // The key is not free, but the budget is spent: the next reader queues behind the other host.
    assert_eq!(bench.acquire(1, wants_as(4, Mode::Shared)), []);
    let refused = bench.acquire(1, Acquire { wait: ms(0), ..wants_as(5, Mode::Shared) });
    assert!(matches!(refused[..], [Command::Reject { reason: RejectReason::Conflict, .. }]), "{refused:?}");
    assert_eq!(bench.release(1, 2, Ending::Clean), []);
    assert_eq!(bench.release(1, 3, Ending::Clean), [give_up("k"), claim("k", 2)]);
    assert_eq!(bench.gain("k", 2, 9), [grant(1, 4, token(9, 0), 0, VALID)]);
}

#[test]
fn another_host_waits_for_no_longer_than_the_budgets_time() {
    let mut bench = Bench::ready(1);
    for request in 2..=4 {
        bench.acquire(1, wants(request));
    }
    assert_eq!(bench.contend("k"), []);
    assert_eq!(bench.until(99), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), [grant(1, 3, token(1, 2), 99, VALID)]);
    assert_eq!(bench.until(100), []);
    assert_eq!(bench.release(1, 3, Ending::Clean), [give_up("k"), claim("k", 2)]);

    // Free, and blocked on the store: time alone ends the budget.
    let mut bench = Bench::ready(1);
    bench.acquire(1, Acquire { lock_delay: DELAY * 2, ..wants(2) });
    assert_eq!(bench.contend("k"), []);
    assert_eq!(bench.until(100), [give_up("k"), claim_with("k", 3, DELAY * 2, false)]);
}

#[test]
fn a_lost_record_ends_its_hold_and_blocks_the_key_until_then() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, Acquire { lock_delay: ms(1_000), ..wants(2) });
    bench.acquire(2, wants(1));
    let lost_record = Input::OwnershipLost { key: key("k") };
    assert_eq!(bench.give(lost_record), [lost(1, 2, LostReason::Lease), claim("k", 2)]);
    assert_eq!(bench.gain("k", 2, 2), []);
    bench.until(500);
    assert_eq!(bench.release(1, 2, Ending::Unclean), []);
    assert_eq!(bench.until(1_499), []);
    assert_eq!(bench.until(1_500), [grant(2, 1, token(2, 0), 1_500, VALID)]);
}

#[test]
fn with_the_lease_goes_everything_and_what_is_wanted_is_claimed_anew() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    let idle = Acquire { keys: only("idle"), ..wants(2) };
    assert_eq!(bench.acquire(2, idle), [claim("idle", 2)]);
    assert_eq!(bench.gain("idle", 2, 1), [grant(2, 2, token(1, 0), 0, VALID)]);
    bench.release(2, 2, Ending::Clean);
    assert_eq!(bench.engine.owned_key_count(), 2);
    assert_eq!(bench.give(Input::LeaseLost), [lost(1, 2, LostReason::Lease), claim("k", 3)]);
    assert_eq!((bench.engine.owned_key_count(), bench.engine.key_count()), (0, 1));
    assert_eq!(bench.release(1, 2, Ending::Clean), []);
    assert_eq!(bench.gain("k", 3, 2), []);
    let renewed = Input::LeaseRenewed { until: at(FAR) };
    assert_eq!(bench.give(renewed), [grant(2, 1, token(2, 0), 0, VALID)]);
}

#[test]
fn a_lost_record_without_waiters_is_forgotten_after_the_quarantine() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, Acquire { lock_delay: ms(1_000), ..wants(2) });
    assert_eq!(bench.give(Input::LeaseLost), [lost(1, 2, LostReason::Lease)]);
    bench.release(1, 2, Ending::Unclean);
    assert_eq!(bench.engine.key_count(), 1);
    // What still arrives of the old lease leaves no ghost.
    assert_eq!(bench.gain("k", 1, 1), [give_up("k")]);
    assert_eq!(bench.until(1_000), []);
    assert_eq!(bench.engine.key_count(), 0);
}

#[test]
fn waiting_for_the_record_at_a_free_key_is_the_stores_fault() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, Acquire { lock_delay: DELAY * 2, wait: ms(300), ..wants(2) });
    let commands = bench.until(300);
    assert_eq!(commands, [reject(1, 2, RejectReason::StoreUnavailable)]);
    assert!(!commands.iter().any(|command| matches!(command, Command::Grant { session: SessionId(1), .. })));
}
