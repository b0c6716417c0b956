//! Belief ends before its basis: late grants, promises that run out, holds that end too late or are taken away.

use turnstile_protocol::v1::{Ending, LostReason};
use turnstile_tests::proxy_wasm::{Outcome, Policy, Response, Worker, endings};

use super::{MS, TRANSFER, held, transfer, worker};

#[test]
fn a_grant_that_expired_on_its_way_never_lets_a_request_through() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Script);
    let request = worker.request(transfer(1));
    let id = host.waiting()[0];
    // The worker is frozen for longer than the validity, which counts from the Hello; then the grant is read.
    worker.freeze(3_600 * MS);
    host.grant(id);
    assert_eq!(request.upstream(), None, "{:?}", request.outcome());
    assert_eq!(host.releases(), [(id, Ending::Unsent)]);
    worker.check();
    // It is still wanted: the next grant is good.
    worker.advance(1_000 * MS);
    let again = host.waiting();
    assert_eq!(again.len(), 1, "it asks again: {:#?}", worker.log());
    host.grant(again[0]);
    assert!(request.upstream().is_some());
    request.respond(Response::new(200, "done"));
    worker.check();
}

#[test]
fn a_grant_that_is_about_to_expire_is_not_stretched() {
    // However long the freeze, whoever is let through is let through within the promise.
    for freeze in (3_000..3_700).step_by(20) {
        let worker = worker(&[TRANSFER]);
        let host = worker.host();
        host.policy(Policy::Script);
        let request = worker.request(transfer(1));
        let id = host.waiting()[0];
        worker.freeze(freeze * MS);
        host.grant(id);
        if request.upstream().is_some() {
            assert!(worker.now() < host.promise().expect("granted"), "after {freeze} ms");
        } else {
            assert!(host.releases().contains(&(id, Ending::Unsent)), "after {freeze} ms");
        }
        worker.check();
    }
}

/// The host stops answering; the request must be over, for client and upstream, before the promise is.
fn abort_before_promise(worker: &Worker, response_begun: bool) {
    let host = worker.host();
    let request = held(worker, transfer(1));
    worker.advance(2_345 * MS);
    if response_begun {
        request.end(endings::begun(200));
    }
    host.freeze();
    let promise = host.promise().expect("granted");
    while !request.is_over() && worker.now() < promise {
        worker.advance(10 * MS);
    }
    let ended = request.ended_at().expect("it was aborted before the promise ended");
    assert!(promise - ended < 500 * MS, "aborted {:?} before the promise ended", promise - ended);
    if response_begun {
        assert_eq!(request.outcome(), Outcome::Cut);
    } else {
        assert_eq!(request.local_reply().status(), 503);
    }
    // The host is back before the session's TTL has passed, and hears of it.
    host.thaw();
    worker.advance(3_000 * MS);
    let ended_unclean = host.received().iter().any(|received| {
        use turnstile_protocol::v1::client_item::Item;
        match &received.item {
            Item::Release(release) => release.ending() == Ending::Unclean,
            Item::Hello(hello) => hello
                .resume
                .iter()
                .flat_map(|resume| &resume.releases)
                .any(|release| release.ending() == Ending::Unclean),
            _ => false,
        }
    });
    assert!(ended_unclean, "the hold ended uncleanly: {:#?}", host.received());
    assert!(host.releases().iter().all(|(_, ending)| *ending == Ending::Unclean));
    worker.check();
}

#[test]
fn a_request_is_aborted_before_its_promise_ends() {
    abort_before_promise(&worker(&[TRANSFER]), false);
}

#[test]
fn a_response_is_cut_before_the_promise_ends() {
    abort_before_promise(&worker(&[TRANSFER]), true);
}

#[test]
fn heartbeats_renew_a_promise_for_as_long_as_they_are_answered() {
    let worker = worker(&[&TRANSFER.replace("hold=60s", "hold=10m")]);
    let host = worker.host();
    let request = held(&worker, transfer(1));
    for second in 0..120 {
        worker.advance(1_000 * MS);
        assert!(!request.is_over(), "after {second} s");
        assert!(host.promise().expect("granted") > worker.now());
    }
    let heartbeats = host.heartbeats();
    assert!((110..=130).contains(&heartbeats), "{heartbeats} heartbeats in 120 s, one a second");
    request.respond(Response::new(200, "done"));
    worker.check();
}

#[test]
fn a_hold_that_the_host_takes_away_is_aborted_and_confirmed() {
    for reason in [LostReason::HoldLimit, LostReason::Forced, LostReason::Lease, LostReason::Unknown] {
        let worker = worker(&[TRANSFER]);
        let host = worker.host();
        let (first, other) = (held(&worker, transfer(1)), held(&worker, transfer(2)));
        let id = host.holding()[0];
        host.lose(id, reason);
        assert_eq!(first.local_reply().status(), 503, "{reason:?}");
        assert!(first.is_over());
        assert_eq!(host.releases(), [(id, Ending::Unclean)], "{reason:?}");
        assert!(matches!(other.outcome(), Outcome::Upstream { .. }), "the other one is as it was");
        other.respond(Response::new(200, "done"));
        worker.check();
    }
}

#[test]
fn with_on_lost_continue_the_request_goes_on_without_its_lock() {
    let worker = worker(&[&format!("{TRANSFER} on_lost=continue")]);
    let host = worker.host();
    let request = held(&worker, transfer(1));
    let id = host.holding()[0];
    host.lose(id, LostReason::Forced);
    assert_eq!(host.releases(), [(id, Ending::Unclean)]);
    assert!(matches!(request.outcome(), Outcome::Upstream { .. }));
    request.respond(Response::new(200, "done"));
    let Outcome::Answered(reply) = request.outcome() else { panic!("{:?}", request.outcome()) };
    assert_eq!((reply.status(), reply.body.as_slice()), (200, &b"done"[..]));
    assert_eq!(host.releases().len(), 1, "once");
    worker.check();
}

#[test]
fn the_filter_enforces_the_hold_limit_by_itself() {
    let worker = worker(&[&TRANSFER.replace("hold=60s", "hold=10s")]);
    let host = worker.host();
    let request = held(&worker, transfer(1));
    let (id, granted) = (host.holding()[0], worker.now());
    worker.advance(9_800 * MS);
    assert!(!request.is_over());
    worker.advance(400 * MS);
    assert_eq!(request.local_reply().status(), 503);
    let held_for = request.ended_at().expect("over") - granted;
    assert!((9_800 * MS..=10_100 * MS).contains(&held_for), "{held_for:?}");
    assert_eq!(host.releases(), [(id, Ending::Unclean)]);
    worker.check();
}

#[test]
fn a_lost_hold_is_not_renewed_by_a_later_ack_nor_granted_twice() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    let request = held(&worker, transfer(1));
    let id = host.holding()[0];
    host.lose(id, LostReason::Forced);
    worker.advance(5_000 * MS);
    assert!(request.is_over());
    assert_eq!(host.releases(), [(id, Ending::Unclean)]);
    worker.check();
}
