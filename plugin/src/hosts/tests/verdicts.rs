//! What requests are told when their host declines them, or when they run out of time or of room.

use super::*;

const WAIT_OVER: Rejection = Rejection::WaitOver { retry_after: None };

/// Its host does not answer, and does not count as away yet.
#[test]
fn who_runs_out_of_patience_with_a_host_is_not_told_that_there_is_none() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(8, &ab, 60_000);
    bench.host("a").network = Network::Silent;
    // A try goes on to the next host, and a wait is over.
    bench.ask(1, &ab, 0);
    bench.ask(2, &ab, 200);
    bench.pass(Duration::from_millis(1_450));
    assert_eq!((bench.outcomes.len(), bench.at("b").len()), (0, 0));
    bench.pass(Duration::from_millis(200));
    assert_eq!(bench.at("b").len(), 1);
    bench.pass(Duration::from_millis(300));
    bench.is_rejected(2, WAIT_OVER);
    let id = bench.host("b").asked.iter().find(|(_, acquire)| acquire.wait_ms == 0).map(|(&id, _)| id);
    bench.grant("b", id.expect("the try"));
    bench.is_granted(1);
}

/// A host answers a try for a key that another one owns only after a second.
#[test]
fn every_host_has_time_to_answer_a_try() {
    let mut bench = Bench::new(&["a", "b", "c"]);
    bench.ask(1, &key(&["a", "b", "c"]), 0);
    for name in ["a", "b"] {
        bench.pass(Duration::from_secs(1));
        assert_eq!(bench.at(name), [1], "{:?}", bench.outcomes);
        bench.reject(name, 1, RejectReason::StoreUnavailable);
    }
    bench.pass(Duration::from_millis(1_300));
    assert_eq!(bench.at("c"), [1], "{:?}", bench.outcomes);
    bench.reject("c", 1, RejectReason::Conflict);
    bench.is_rejected(1, Rejection::Conflict);
}

#[test]
fn two_hosts_that_greet_nobody_do_not_hide_the_third() {
    for wait_ms in [0, 300] {
        let mut bench = Bench::new(&["a", "b", "c"]);
        bench.host("a").network = Network::Silent;
        bench.host("b").network = Network::Silent;
        bench.ask(1, &key(&["a", "b", "c"]), wait_ms);
        bench.pass(Duration::from_millis(1_500));
        assert_eq!(bench.at("c"), [1], "{:?}", bench.outcomes);
    }
}

/// The worker was frozen between a grant and its use, and the request has no wait left.
#[test]
fn a_grant_that_came_to_nothing_is_no_absence_of_a_host() {
    for wait_ms in [0, 1_000] {
        let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
        bench.ask(1, &ab, wait_ms);
        let keys = vec![v1::KeyGrant { token: 1, barrier: 1 }];
        let heartbeat_seq = bench.host("a").heartbeat_seq;
        let grant = v1::Grant { id: 1, keys, heartbeat_seq, valid_ms: 3_900, ..Default::default() };
        let message = v1::ServerMessage { items: vec![grant.into()] }.encode_to_vec();
        let stream = bench.host("a").stream.expect("it is up");
        bench.hosts.receive(bench.now, stream, &message);
        let Some((owner, Outcome::Granted(granted))) = bench.hosts.poll_outcome() else { panic!("no grant") };
        bench.now = bench.now + Duration::from_millis(3_950);
        assert!(!bench.hosts.believes(bench.now, owner, &granted.tokens));
        bench.pass(Duration::from_millis(100));
        if wait_ms == 0 {
            assert_eq!((bench.at("b").len(), bench.outcomes.len()), (1, 0), "a try asks the next host");
        } else {
            bench.is_rejected(1, WAIT_OVER);
        }
    }
}

#[test]
fn what_one_hosts_store_refuses_is_asked_of_each_later_host_once() {
    let mut bench = Bench::new(&["a", "b", "c"]);
    let abc = key(&["a", "b", "c"]);
    bench.ask(1, &abc, 60_000);
    for name in ["a", "b", "c"] {
        assert_eq!(bench.at(name), [1], "{name}");
        bench.reject(name, 1, RejectReason::StoreUnavailable);
        bench.pass(Duration::from_millis(200));
    }
    bench.is_rejected(1, Rejection::HostUnavailable);
    // Nor is anybody passed on whose wait was spent there: but there are hosts, so `allow` must not let it through.
    bench.ask(2, &abc, 1_000);
    bench.pass(Duration::from_secs(1));
    bench.reject("a", 2, RejectReason::StoreUnavailable);
    bench.is_rejected(2, WAIT_OVER);
}

/// It was away when the request came, and so was not asked.
#[test]
fn a_host_that_came_back_is_asked_for_what_the_next_one_declines() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.host("a").network = Network::Refusing;
    bench.ask(1, &ab, 60_000);
    bench.pass(Duration::from_millis(200));
    bench.revive("a");
    bench.pass(Duration::from_secs(3));
    assert_eq!((bench.at("a").len(), bench.at("b")), (0, vec![1]));
    bench.reject("b", 1, RejectReason::StoreUnavailable);
    assert_eq!(bench.at("a").len(), 1, "{:?}", bench.outcomes);
    let id = bench.at("a")[0];
    bench.reject("a", id, RejectReason::StoreUnavailable);
    bench.is_rejected(1, Rejection::HostUnavailable);
}

/// Its store was away when the request came, long ago.
#[test]
fn who_was_declined_waits_there_rather_than_nowhere() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 60_000);
    bench.reject("a", 1, RejectReason::StoreUnavailable);
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.at("b"), [1]);
    bench.kill("b");
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.at("a").len(), 1, "{:?}", bench.outcomes);
}

#[test]
fn a_full_session_takes_no_more() {
    let mut bench = Bench::new(&["a", "b"]);
    let (ab, ba) = (key(&["a", "b"]), key(&["b", "a"]));
    let full = u32::try_from(crate::session::WAITERS_MAX).expect("a small number");
    (0..full - 10).for_each(|owner| bench.ask(owner, &ba, 60_000));
    (full..full + 30).for_each(|owner| bench.ask(owner, &ab, 60_000));
    bench.kill("a");
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.at("b").len(), crate::session::WAITERS_MAX);
    assert_eq!(bench.outcomes, [], "the others wait for room");
    (0..20).for_each(|owner| bench.hosts.cancel(RequestRef(owner)));
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.at("b").len(), crate::session::WAITERS_MAX);
    assert_eq!(bench.outcomes, []);
}

/// Too many requests are not the same as no host: `allow` must not let them through.
#[test]
fn who_finds_no_room_has_waited_in_vain() {
    let mut bench = Bench::new(&["a", "b"]);
    let ba = key(&["b", "a"]);
    bench.ask(9_999, &key(&["a", "b"]), 3_000);
    (0..crate::session::WAITERS_MAX as u32).for_each(|owner| bench.ask(owner, &ba, 60_000));
    bench.kill("a");
    bench.pass(Duration::from_millis(3_100));
    bench.is_rejected(9_999, WAIT_OVER);
}

#[test]
fn who_comes_to_a_full_session_from_a_dead_host_goes_to_a_third() {
    let mut bench = Bench::new(&["a", "b", "c"]);
    let bca = key(&["b", "c", "a"]);
    (0..crate::session::WAITERS_MAX as u32).for_each(|owner| bench.ask(owner, &bca, 60_000));
    bench.host("a").network = Network::Refusing;
    bench.ask(9_999, &key(&["a", "b", "c"]), 60_000);
    bench.pass(Duration::from_millis(200));
    assert_eq!(bench.at("c"), [1], "{:?}", bench.outcomes);
}

/// What is left of its wait when it is asked again is nothing, which makes it a try.
#[test]
fn who_was_asked_when_its_time_was_up_has_waited_in_vain() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.host("a").network = Network::Silent;
    bench.ask(1, &ab, 300);
    bench.pass(Duration::from_millis(800));
    assert_eq!(bench.host("b").asked[&1].wait_ms, 0);
    bench.reject("b", 1, RejectReason::Conflict);
    bench.is_rejected(1, WAIT_OVER);
}

#[test]
fn who_comes_to_a_full_session_from_a_dead_host_is_told_that_all_are_busy() {
    let mut bench = Bench::new(&["a", "b"]);
    let ba = key(&["b", "a"]);
    (0..crate::session::WAITERS_MAX as u32).for_each(|owner| bench.ask(owner, &ba, 60_000));
    bench.host("a").network = Network::Refusing;
    bench.ask(9_999, &key(&["a", "b"]), 60_000);
    bench.pass(Duration::from_millis(200));
    bench.is_rejected(9_999, Rejection::Busy { retry_after: None });
}

/// What a host said at the beginning of a long wait says nothing at its end.
#[test]
fn who_was_declined_long_ago_is_asked_again() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 60_000);
    let id = bench.at("a")[0];
    bench.reject("a", id, RejectReason::StoreUnavailable);
    bench.pass(Duration::from_millis(200));
    assert_eq!((bench.at("a").len(), bench.at("b").len()), (0, 1));
    bench.pass(Duration::from_secs(30));
    let id = bench.at("b")[0];
    bench.reject("b", id, RejectReason::StoreUnavailable);
    bench.pass(Duration::from_millis(200));
    assert_eq!((bench.at("a").len(), bench.at("b").len()), (1, 0));
    assert_eq!(bench.outcomes, []);
}
