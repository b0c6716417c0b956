//! The session with the host: clients that give up, streams that break, hosts that go away, freeze or forget.

use turnstile_protocol::v1::{Ending, client_item::Item};
use turnstile_tests::artifacts::plugin_wasm;
use turnstile_tests::proxy_wasm::{Outcome, Policy, Response, Setup, Worker};

use super::{MS, TRANSFER, configuration, held, transfer, worker};

#[test]
fn a_client_that_gives_up_waiting_is_taken_out_of_the_queue() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Lock);
    let first = held(&worker, transfer(1));
    let second = worker.request(transfer(1));
    let third = worker.request(transfer(1));
    let id = host.waiting()[0];
    second.client_gone();
    assert_eq!(host.cancels(), [id]);
    assert!(second.is_over());
    first.respond(Response::new(200, "done"));
    assert!(third.upstream().is_some(), "the next in line");
    assert_eq!(second.upstream(), None);
    third.respond(Response::new(200, "done"));
    assert_eq!(host.releases().len(), 2);
    worker.check();
}

#[test]
fn a_grant_that_crosses_a_cancel_is_ended_once() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Script);
    let request = worker.request(transfer(1));
    let id = host.waiting()[0];
    // The host does not read the cancel before it has sent the grant.
    host.freeze();
    request.client_gone();
    host.grant(id);
    host.thaw();
    assert_eq!(request.upstream(), None);
    assert_eq!((host.holding(), host.waiting()), (vec![], vec![]), "nothing is left behind");
    let ends = host.cancels().len() + host.releases().len();
    assert_eq!(ends, 1, "{:?} {:?}", host.cancels(), host.releases());
    assert!(host.releases().iter().all(|(_, ending)| *ending == Ending::Unsent));
    worker.check();
}

#[test]
fn a_session_resumes_over_a_broken_stream_and_nothing_is_lost() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Script);
    let requests: Vec<_> = (0..5).map(|account| worker.request(transfer(account))).collect();
    let ids = host.waiting();
    for id in &ids[..3] {
        host.grant(*id);
    }
    // 0 holds on; 1 ends and 3 gives up while the host reads nothing more; 2 ends after the break; 4 waits on.
    host.freeze();
    requests[1].respond(Response::new(200, "done"));
    requests[3].client_gone();
    host.break_stream();
    requests[2].reset_by_upstream();
    host.thaw();
    worker.advance(2_000 * MS);

    let hellos = host.hellos();
    let hello = hellos.last().expect("it came back");
    assert_eq!((hellos.len(), hello.generation), (2, 2));
    let resume = hello.resume.as_ref().expect("it resumes");
    assert_eq!(resume.holds, [ids[0]]);
    assert_eq!(resume.waiters.iter().map(|acquire| acquire.id).collect::<Vec<_>>(), [ids[4]]);
    let told: Vec<(u64, Ending)> =
        resume.releases.iter().map(|release| (release.id, release.ending())).chain(host.releases()).collect();
    for end in [(ids[1], Ending::Clean), (ids[2], Ending::Unclean), (ids[3], Ending::Unsent)] {
        assert!(told.contains(&end), "{end:?} is not in {told:?}");
    }
    assert_eq!(told.len(), 3);
    assert_eq!((host.holding(), host.waiting()), (vec![ids[0]], vec![ids[4]]));
    assert!(matches!(requests[0].outcome(), Outcome::Upstream { .. }));
    assert!(requests[4].is_paused());

    host.grant(ids[4]);
    assert!(requests[4].upstream().is_some());
    requests[4].respond(Response::new(200, "done"));
    requests[0].respond(Response::new(200, "done"));
    assert!(host.holding().is_empty());
    worker.check();
}

#[test]
fn a_waiter_that_was_granted_into_a_broken_stream_gets_its_grant_on_the_next() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Script);
    let request = worker.request(transfer(1));
    let id = host.waiting()[0];
    host.freeze();
    host.grant(id);
    host.break_stream();
    host.thaw();
    worker.advance(2_000 * MS);
    assert!(request.upstream().is_some(), "{:?}", request.outcome());
    request.respond(Response::new(200, "done"));
    assert_eq!(host.releases(), [(id, Ending::Clean)]);
    worker.check();
}

#[test]
fn after_a_refused_resume_holds_are_lost_and_waiters_ask_anew() {
    for restart in [false, true] {
        let worker = worker(&[TRANSFER]);
        let host = worker.host();
        let holder = held(&worker, transfer(1));
        host.policy(Policy::Script);
        let waiter = worker.request(transfer(2));
        host.clear();
        if restart {
            host.restart();
        } else {
            host.refuse_resume();
            host.break_stream();
        }
        worker.advance(2_000 * MS);
        assert_eq!(holder.local_reply().status(), 503, "its lock is gone");
        assert!(holder.is_over());
        assert!(waiter.is_paused());
        let acquires = host.acquires();
        let [acquire] = acquires.as_slice() else { panic!("{acquires:?}") };
        assert_eq!(acquire.keys[0].key, "default/account:2");
        assert!((2_500..4_999).contains(&acquire.wait_ms), "what is left of 5 s: {} ms", acquire.wait_ms);
        host.grant(acquire.id);
        waiter.respond(Response::new(200, "done"));
        assert!(matches!(waiter.outcome(), Outcome::Answered(_)));
        worker.check();
    }
}

#[test]
fn a_host_that_goes_away_keeps_its_holds_and_its_waiters_ask_again() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    let holder = held(&worker, transfer(1));
    let hold = host.holding()[0];
    host.policy(Policy::Script);
    let waiter = worker.request(transfer(2));
    host.go_away();
    worker.advance(1_500 * MS);
    assert!(matches!(holder.outcome(), Outcome::Upstream { .. }), "holds run out");
    assert!(waiter.is_paused());
    let fresh = host.hellos().last().cloned().expect("another session");
    assert_eq!((host.hellos().len(), fresh.resume), (2, None));
    // The hold is renewed in the old session for as long as it takes.
    worker.advance(20_000 * MS);
    assert!(!holder.is_over());
    holder.respond(Response::new(200, "done"));
    assert_eq!(host.releases(), [(hold, Ending::Clean)]);
    let late = worker.request(transfer(3));
    host.grant_all();
    assert!(late.upstream().is_some());
    worker.check();
}

#[test]
fn a_frozen_host_is_given_up_and_found_again() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    held(&worker, transfer(1)).respond(Response::new(200, "done"));
    host.freeze();
    worker.advance(10_000 * MS);
    host.thaw();
    worker.advance(5_000 * MS);
    held(&worker, transfer(2)).respond(Response::new(200, "done"));
    assert!(host.holding().is_empty());
    worker.check();
}

#[test]
fn a_host_that_is_killed_and_comes_back_within_the_ttl_is_resumed() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    let holder = held(&worker, transfer(1));
    worker.advance(500 * MS);
    host.go_down();
    worker.advance(1_000 * MS);
    assert!(!holder.is_over());
    host.come_up();
    worker.advance(10_000 * MS);
    assert!(!holder.is_over(), "resumed and renewed: {:#?}", worker.log());
    holder.respond(Response::new(200, "done"));
    assert!(host.holding().is_empty());
    worker.check();
}

#[test]
fn a_host_that_is_down_is_tried_again_at_a_bearable_rate() {
    let worker = Worker::start(&plugin_wasm(), &Setup::new(configuration(&[TRANSFER])).hosts_down());
    let _request = worker.request(transfer(1));
    worker.advance(60_000 * MS);
    let opened = worker.metrics().into_iter().find(|metric| metric.name.contains("streams_opened"));
    let opened = opened.expect("streams are counted").value;
    assert!((10..=300).contains(&opened), "{opened} connections in a minute");
    worker.check();
}

#[test]
fn a_session_that_nobody_needs_says_nothing_that_could_be_taken_for_life() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    worker.advance(30_000 * MS);
    held(&worker, transfer(1)).respond(Response::new(200, "done"));
    worker.advance(600_000 * MS);
    // Heartbeats have numbers that only grow, and the host knows no request.
    let last = host.received().last().cloned().expect("it said something");
    assert!(!matches!(last.item, Item::Acquire(_)));
    assert_eq!((host.holding(), host.waiting()), (vec![], vec![]));
    held(&worker, transfer(2)).respond(Response::new(200, "done"));
    worker.check();
}

#[test]
fn an_old_configuration_finishes_what_it_began_beside_the_new_one() {
    let mut worker = worker(&[TRANSFER]);
    let host = worker.host();
    let old = held(&worker, transfer(1));
    host.policy(Policy::Script);
    let waiting = worker.request(transfer(2));
    worker.reconfigure(configuration(&["POST /accounts/{id}/transfer key=konto:{id}"]).as_bytes());
    let new = worker.request(transfer(3));
    host.grant_all();
    assert_eq!(
        [&waiting, &new].map(|request| request.upstream().and_then(|headers| headers.text("x-turnstile-key"))),
        [Some("default/account:2".to_owned()), Some("default/konto:3".to_owned())]
    );
    worker.advance(10_000 * MS);
    for request in [old, waiting, new] {
        request.respond(Response::new(200, "done"));
        assert!(matches!(request.outcome(), Outcome::Answered(_)), "{:?}", request.outcome());
    }
    assert!(host.holding().is_empty());
    worker.check();
}
