//! Re-entry: a request that joins a hold must find the host that granted it, wherever its key would go.

use super::*;
use crate::reentry::Kin;

/// A hold that was granted by `name` to request 1, and its secret.
fn founded(bench: &mut Bench, name: &str, key: &str) -> HolderSecret {
    bench.try_join(1, key, 5_000, Reentry::Open).expect("taken on");
    let id = bench.at(name)[0];
    bench.grant(name, id);
    match bench.outcome() {
        (1, Outcome::Granted(Granted { kin: Kin::Founder(secret), .. })) => secret,
        other => panic!("{other:?}"),
    }
}

fn join(bench: &mut Bench, owner: u32, key: &str, secret: &HolderSecret) {
    bench.try_join(owner, key, 5_000, Reentry::Join(secret.clone())).expect("taken on");
}

#[test]
fn who_joins_goes_to_the_host_that_granted() {
    let mut bench = Bench::new(&["a", "b", "c"]);
    let secret = founded(&mut bench, "a", &key(&["a", "b", "c"]));
    // Its own key would go elsewhere.
    join(&mut bench, 2, &key(&["b", "c", "a"]), &secret);
    assert_eq!((bench.at("a").len(), bench.at("b").len()), (2, 0));
    bench.grant("a", 2);
    bench.is_granted(2);
    assert_eq!(bench.hosts.take_failovers(), 0, "it is where it belongs");
    assert_eq!((bench.host("b").hellos, bench.host("c").hellos), (0, 0), "nobody else is needed");
}

/// The hold was granted to another worker: this one has met no host, or not the right one.
#[test]
fn a_worker_that_does_not_know_the_host_looks_for_it() {
    let mut elsewhere = Bench::new(&["a", "b", "c"]);
    let secret = founded(&mut elsewhere, "c", &key(&["c", "a", "b"]));
    let mut bench = Bench::new(&["a", "b", "c"]);
    join(&mut bench, 1, &key(&["a", "b", "c"]), &secret);
    for name in ["a", "b"] {
        let id = bench.at(name)[0];
        bench.reject(name, id, RejectReason::NoSuchHold);
        bench.pass(Duration::from_millis(200));
        assert_eq!(bench.outcomes, []);
    }
    let id = bench.at("c")[0];
    bench.grant("c", id);
    bench.is_granted(1);
    // From now on it is known.
    join(&mut bench, 2, &key(&["a", "b", "c"]), &secret);
    assert_eq!(bench.at("c").len(), 2);
}

#[test]
fn a_hold_that_no_host_knows_is_refused() {
    let mut bench = Bench::new(&["a", "b"]);
    let ab = key(&["a", "b"]);
    let made_up = HolderSecret::from_wire(&[7; HOLDER_SECRET_BYTES]).expect("a secret by its form");
    join(&mut bench, 1, &ab, &made_up);
    for name in ["a", "b"] {
        let id = bench.at(name)[0];
        bench.reject(name, id, RejectReason::NoSuchHold);
        bench.pass(Duration::from_millis(200));
    }
    bench.is_rejected(1, Rejection::NoSuchHold);
    // Both are known by now: the first to be asked has the last word.
    join(&mut bench, 2, &ab, &made_up);
    let id = bench.at("a")[0];
    bench.reject("a", id, RejectReason::NoSuchHold);
    bench.is_rejected(2, Rejection::NoSuchHold);
    assert!(bench.at("b").is_empty());
}

#[test]
fn the_host_that_granted_has_the_last_word() {
    let mut bench = Bench::new(&["a", "b"]);
    let ab = key(&["a", "b"]);
    let secret = founded(&mut bench, "a", &ab);
    join(&mut bench, 2, &ab, &secret);
    let id = *bench.at("a").last().expect("it was asked");
    bench.reject("a", id, RejectReason::NoSuchHold);
    bench.is_rejected(2, Rejection::NoSuchHold);
    assert_eq!(bench.host("b").hellos, 0);
}

#[test]
fn with_the_host_that_granted_the_hold_is_gone() {
    let mut bench = Bench::new(&["a", "b"]);
    let ab = key(&["a", "b"]);
    let secret = founded(&mut bench, "a", &ab);
    bench.kill("a");
    bench.try_join(2, &ab, 30_000, Reentry::Join(secret)).expect("the session may be resumed yet");
    bench.pass(Duration::from_millis(500));
    assert!(bench.at("b").is_empty(), "another host would not know the hold");
    bench.pass(TTL);
    assert!(matches!(bench.outcomes.remove(0), (1, Outcome::Lost(_))));
    let id = bench.at("b")[0];
    bench.reject("b", id, RejectReason::NoSuchHold);
    bench.is_rejected(2, Rejection::NoSuchHold);
}

#[test]
fn when_no_host_is_there_joiners_are_told_so() {
    let mut bench = Bench::new(&["a", "b"]);
    for name in ["a", "b"] {
        bench.host(name).network = Network::Refusing;
    }
    let made_up = HolderSecret::from_wire(&[7; HOLDER_SECRET_BYTES]).expect("a secret by its form");
    join(&mut bench, 1, &key(&["a", "b"]), &made_up);
    bench.pass(Duration::from_millis(300));
    bench.is_rejected(1, Rejection::HostUnavailable);
}

/// There is nowhere better to go: nobody else knows the hold.
#[test]
fn a_joiner_whose_host_cannot_claim_its_key_is_not_sent_to_and_fro() {
    let mut bench = Bench::new(&["a", "b"]);
    let ab = key(&["a", "b"]);
    bench.ask(8, &key(&["b", "a"]), 60_000);
    let secret = founded(&mut bench, "a", &ab);
    join(&mut bench, 2, &ab, &secret);
    let id = *bench.at("a").last().expect("it was asked");
    bench.reject("a", id, RejectReason::StoreUnavailable);
    assert_eq!((bench.at("a").len(), bench.at("b").len()), (1, 1));
    assert_eq!(bench.outcomes.len(), 1, "it is over");
}

#[test]
fn a_joiner_is_asked_once_of_each_host() {
    let mut elsewhere = Bench::new(&["a", "b", "c"]);
    let secret = founded(&mut elsewhere, "c", &key(&["c", "a", "b"]));
    let mut bench = Bench::new(&["a", "b", "c"]);
    bench.host("c").network = Network::Refusing;
    join(&mut bench, 1, &key(&["a", "b", "c"]), &secret);
    let mut answers = [RejectReason::NoSuchHold, RejectReason::StoreUnavailable].into_iter().cycle();
    for _ in 0..35 {
        for name in ["a", "b"] {
            if let [id] = bench.at(name)[..] {
                bench.reject(name, id, answers.next().expect("without end"));
            }
        }
        bench.pass(Duration::from_millis(200));
    }
    assert_eq!((bench.host("a").asked_for, bench.host("b").asked_for), (1, 1));
    assert_eq!(bench.outcomes.len(), 1, "it is over");
}

/// It takes nothing on any more, and waits for the hold to end, which may wait for the joiner.
#[test]
fn a_hold_of_a_host_that_drains_cannot_be_joined_any_more() {
    for names in [&["a"][..], &["a", "b"]] {
        let mut bench = Bench::new(names);
        let key = key(names);
        let secret = founded(&mut bench, "a", &key);
        join(&mut bench, 2, &key, &secret);
        bench.drain("a");
        bench.is_rejected(2, Rejection::NoSuchHold);
        assert_eq!(bench.host("a").cancelled, [2]);
        let wait_ms = 60_000;
        let joined = bench.try_join(3, &key, wait_ms, Reentry::Join(secret.clone()));
        assert_eq!(joined, Err(Rejection::NoSuchHold), "at once");
        // Also when its next life is there.
        bench.pass(Duration::from_secs(1));
        let joined = bench.try_join(4, &key, wait_ms, Reentry::Join(secret));
        assert_eq!(joined, Err(Rejection::NoSuchHold));
        assert_eq!(bench.at("a"), [1], "the hold stays");
    }
}

/// The hold was granted to another worker, and this one meets its host while that drains.
#[test]
fn who_meets_the_host_while_it_drains_cannot_join_either() {
    let mut elsewhere = Bench::new(&["a", "b"]);
    let ab = key(&["a", "b"]);
    let secret = founded(&mut elsewhere, "a", &ab);
    let mut bench = Bench::new(&["a", "b"]);
    bench.host("a").draining = true;
    join(&mut bench, 1, &ab, &secret);
    bench.pass(Duration::from_millis(200));
    bench.is_rejected(1, Rejection::NoSuchHold);
}
