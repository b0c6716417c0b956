//! Hosts that die, freeze, drain, lose their lease or come and go.

use super::*;

const LEFT: Change = Change::Left(Absence::Unreachable);

fn told(name: &str, change: Change) -> (String, Change) {
    (name.to_owned(), change)
}

#[test]
fn a_dead_hosts_waiters_move_on_with_what_is_left_of_their_wait() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 10_000);
    assert_eq!(bench.at("a"), [1]);
    bench.pass(Duration::from_secs(4));
    bench.kill("a");
    bench.pass(Duration::from_millis(300));
    let asked: Vec<v1::Acquire> = bench.host("b").asked.values().cloned().collect();
    assert_eq!(asked.len(), 1);
    assert!((5_700..=6_000).contains(&asked[0].wait_ms), "{} ms", asked[0].wait_ms);
    assert_eq!(bench.changes(), [told("a", LEFT)]);
    // The next ones need not find out for themselves.
    bench.ask(2, &ab, 0);
    assert_eq!(bench.at("b"), [1, 2]);
    assert_eq!(bench.hosts.take_failovers(), 2);
    bench.grant("b", 1);
    bench.is_granted(1);
}

#[test]
fn who_finds_a_host_dead_is_not_rejected_while_another_one_is_there() {
    let mut bench = Bench::new(&["a", "b", "c"]);
    for dead in ["a", "b"] {
        bench.host(dead).network = Network::Refusing;
    }
    // Not even a try.
    bench.ask(1, &key(&["a", "b", "c"]), 0);
    bench.pass(Duration::from_millis(200));
    assert_eq!(bench.at("c"), [1]);
    bench.grant("c", 1);
    bench.is_granted(1);
    bench.ask(2, &key(&["a", "b", "c"]), 0);
    assert_eq!(bench.at("c"), [1, 2], "at once");
}

#[test]
fn when_all_are_away_requests_are_rejected_as_with_one_host() {
    let mut bench = Bench::new(&["a", "b"]);
    for name in ["a", "b"] {
        bench.host(name).network = Network::Refusing;
    }
    let ab = key(&["a", "b"]);
    bench.ask(1, &ab, 60_000);
    bench.pass(Duration::from_millis(200));
    bench.is_rejected(1, Rejection::HostUnavailable);
    assert_eq!(bench.try_ask(2, &ab, 60_000), Err(Rejection::HostUnavailable), "at once");
    // The first that answers is good enough.
    bench.revive("b");
    bench.pass(Duration::from_secs(3));
    bench.ask(3, &ab, 0);
    assert_eq!(bench.at("b").len(), 1);
}

/// They had a place in a queue: their wait goes on until a host is found, or it is over.
#[test]
fn who_has_waited_goes_on_waiting_when_all_are_away() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 20_000);
    bench.ask(2, &ab, 5_000);
    bench.host("b").network = Network::Refusing;
    bench.kill("a");
    bench.pass(Duration::from_secs(4));
    assert_eq!(bench.outcomes, []);
    bench.pass(Duration::from_secs(2));
    bench.is_rejected(2, Rejection::HostUnavailable);
    bench.revive("b");
    bench.pass(Duration::from_secs(3));
    assert_eq!(bench.at("b").len(), 1, "whichever comes back first");
    let id = bench.at("b")[0];
    bench.grant("b", id);
    bench.is_granted(1);
}

#[test]
fn a_silent_host_is_passed_over_before_anyone_runs_out_of_patience() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.host("a").network = Network::Silent;
    bench.ask(1, &ab, 0);
    bench.pass(Duration::from_millis(700));
    assert_eq!(bench.at("b"), [1]);
    bench.ask(2, &ab, 0);
    assert_eq!(bench.at("b"), [1, 2], "at once");

    // One that falls silent with requests in its queue.
    let mut bench = Bench::new(&["a", "b"]);
    bench.ask(1, &ab, 20_000);
    bench.host("a").network = Network::Silent;
    bench.pass(Duration::from_millis(3_500));
    assert_eq!(bench.at("b"), [1]);
}

/// The answers were here, and not read yet.
#[test]
fn a_worker_that_was_frozen_itself_does_not_suspect_its_host() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 20_000);
    bench.host("a").network = Network::Silent;
    bench.break_stream("a");
    while bench.host("a").stream.is_none() {
        bench.pass(TICK);
    }
    // Frozen for a while, it ticks before it reads.
    bench.now = bench.now + Duration::from_millis(1_000);
    bench.hosts.tick(bench.now);
    bench.turn();
    let greeting = v1::Welcome {
        incarnation: format!("{:016x}", 0x1000),
        session_id: 1,
        resumed: true,
        ttl_ms: 4_000,
        heartbeat_ms: 1_000,
        ..Default::default()
    };
    bench.say_as("a", greeting.into());
    bench.host("a").network = Network::Fine;
    bench.pass(Duration::from_secs(1));
    assert_eq!((bench.at("a"), bench.at("b"), bench.changes()), (vec![1], vec![], vec![]));
}

#[test]
fn a_short_break_costs_nobody_a_place() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 20_000);
    bench.break_stream("a");
    bench.ask(2, &ab, 20_000);
    bench.pass(Duration::from_secs(5));
    assert_eq!((bench.at("a"), bench.at("b")), (vec![1, 2], vec![]));
    assert_eq!((bench.changes(), bench.hosts.take_failovers()), (vec![], 0));
}

#[test]
fn a_draining_hosts_waiters_move_at_once_and_its_holds_stay() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    // There is a session with the next host already.
    bench.ask(9, &key(&["b", "a"]), 60_000);
    bench.ask(1, &ab, 20_000);
    bench.ask(2, &ab, 20_000);
    bench.grant("a", 1);
    bench.is_granted(1);
    bench.drain("a");
    assert_eq!((bench.at("a"), bench.at("b")), (vec![1], vec![1, 2]));
    assert_eq!(bench.host("a").cancelled, [2], "so that it is not granted twice");
    assert_eq!(bench.changes(), [told("a", Change::Left(Absence::Leaving))]);
    bench.ask(3, &ab, 0);
    assert_eq!(bench.at("b"), [1, 2, 3]);
    bench.hosts.release(RequestRef(1), Ending::Clean);
    bench.turn();
    assert_eq!(bench.host("a").released, [(1, Ending::Clean)]);
}

/// The grant was on its way when its waiter moved.
#[test]
fn a_late_grant_of_the_old_host_is_not_acted_on() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 20_000);
    bench.ask(2, &ab, 20_000);
    bench.grant("a", 1);
    bench.is_granted(1);
    // The old session goes on, since there is a hold in it.
    let stream = bench.host("a").stream.expect("it is up");
    bench.drain("a");
    bench.pass(Duration::from_millis(100));
    let keys = vec![v1::KeyGrant { token: 7, barrier: 7 }];
    let grant = v1::Grant { id: 2, keys, heartbeat_seq: 1, valid_ms: 3_900, ..Default::default() };
    bench.say(stream, vec![grant.into()]);
    bench.turn();
    assert_eq!(bench.outcomes, []);
    // It was withdrawn, which ends the hold unsent.
    assert_eq!(bench.host("a").cancelled, [2]);
    let id = bench.at("b")[0];
    bench.grant("b", id);
    bench.is_granted(2);
}

#[test]
fn a_host_that_comes_back_gets_its_keys_when_it_has_been_steady() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.host("a").network = Network::Refusing;
    bench.ask(1, &ab, 60_000);
    bench.pass(Duration::from_millis(200));
    bench.revive("a");
    bench.pass(Duration::from_millis(1_500));
    bench.ask(2, &ab, 60_000);
    assert_eq!((bench.at("a").len(), bench.at("b").len()), (0, 2), "not yet");
    assert_eq!(bench.changes(), [told("a", LEFT)]);
    bench.pass(Duration::from_secs(5));
    bench.ask(3, &ab, 60_000);
    assert_eq!((bench.at("a").len(), bench.at("b").len()), (1, 2), "who waits elsewhere stays there");
    assert_eq!(bench.changes(), [told("a", Change::Returned)]);
}

#[test]
fn a_host_that_comes_and_goes_moves_fewer_and_fewer_requests() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 600_000);
    let mut returns = 0;
    for round in 0..30 {
        bench.kill("a");
        bench.pass(Duration::from_secs(1));
        bench.revive("a");
        bench.pass(Duration::from_secs(9));
        // Demand keeps it being tried.
        bench.ask(100 + round, &ab, 600_000);
        returns += bench.changes().iter().filter(|(_, change)| *change == Change::Returned).count();
    }
    assert!((2..=4).contains(&returns), "it was given its keys {returns} times in five minutes");
    assert!(bench.outcomes.is_empty(), "{:?}", bench.outcomes);
    bench.pass(Duration::from_secs(70));
    bench.ask(2, &ab, 0);
    assert_eq!(bench.changes(), [told("a", Change::Returned)], "it is not given up for good");
}

#[test]
fn a_host_without_a_lease_is_passed_over() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 60_000);
    bench.host("a").able = false;
    bench.pass(HEARTBEAT * 2);
    assert_eq!((bench.at("a"), bench.at("b")), (vec![], vec![1]));
    assert_eq!(bench.changes(), [told("a", Change::Left(Absence::Unable))]);
    // If no host has one, it is the store that is away, and there is no better place.
    bench.host("b").able = false;
    bench.pass(HEARTBEAT * 2);
    bench.ask(2, &ab, 60_000);
    bench.pass(Duration::from_secs(20));
    assert_eq!((bench.at("a").len(), bench.at("b").len()), (1, 1));
    bench.revive("b");
    bench.pass(HEARTBEAT * 2);
    assert_eq!((bench.at("a").len(), bench.at("b").len()), (0, 2));
}

/// Its first answer to a heartbeat tells, and that is asked for at once.
#[test]
fn a_host_without_a_lease_is_found_out_when_it_is_met() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.host("a").able = false;
    bench.ask(1, &ab, 60_000);
    bench.pass(Duration::from_millis(100));
    assert_eq!((bench.at("a"), bench.at("b")), (vec![], vec![1]));
}

/// Nobody has tried them for a long time: they may well be there.
#[test]
fn hosts_that_were_away_and_not_needed_are_tried_anew() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    for name in ["a", "b"] {
        bench.host(name).network = Network::Refusing;
    }
    bench.ask(1, &ab, 60_000);
    bench.pass(Duration::from_secs(1));
    bench.is_rejected(1, Rejection::HostUnavailable);
    bench.pass(crate::session::IDLE_MAX + Duration::from_secs(5));
    bench.revive("b");
    bench.ask(2, &ab, 60_000);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.at("b").len(), 1, "{:?}", bench.outcomes);
}

#[test]
fn when_the_last_host_leaves_the_others_are_tried_at_once() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(1, &ab, 60_000);
    bench.kill("a");
    // By now its back-off is at its longest.
    bench.pass(Duration::from_secs(30));
    bench.revive("a");
    bench.drain("b");
    bench.pass(TICK * 2);
    assert_eq!(bench.at("a").len(), 1, "it did not wait for the next try");
}

/// It was away, and since then the other host has been enough.
#[test]
fn when_the_last_host_leaves_one_that_nobody_has_needed_is_tried() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.host("a").network = Network::Refusing;
    bench.ask(1, &ab, 600_000);
    bench.pass(crate::session::IDLE_MAX + Duration::from_secs(10));
    bench.revive("a");
    bench.pass(Duration::from_secs(10));
    assert!(bench.at("a").is_empty(), "nobody needs it");
    bench.kill("b");
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.at("a").len(), 1, "{:?}", bench.outcomes);
}

/// More of its sessions end than are kept beside the one in use, which then stays, and says so itself.
#[test]
fn a_draining_host_does_not_count_as_one_that_comes_back() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.host("b").network = Network::Refusing;
    bench.ask(1, &ab, 60_000);
    bench.grant("a", 1);
    bench.is_granted(1);
    // It is asked in each session, and withdrawn, so that none is over at once.
    bench.ask(2, &ab, 60_000);
    bench.drain("a");
    for _ in 0..400 {
        bench.pass(TICK);
        assert!(bench.hosts.clusters[0].fitness() >= Fitness::Doubtful, "at {:?}", bench.now);
    }
}

/// All who wait for a key are refused together.
#[test]
fn one_bad_key_takes_no_host_away_from_the_others() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    bench.ask(100, &keys(&["a", "b"]).nth(1).expect("there are many"), 600_000);
    for owner in 1..=20 {
        bench.ask(owner, &ab, 60_000);
        let id = *bench.at("a").last().expect("it was asked");
        bench.reject("a", id, RejectReason::StoreUnavailable);
    }
    bench.pass(TICK * 2);
    assert_eq!((bench.changes(), bench.at("a").len(), bench.at("b").len()), (vec![], 1, 20));
}

/// Its heartbeats go well, and its claims do not.
#[test]
fn a_host_that_can_claim_nothing_is_passed_over() {
    let (mut bench, ab) = (Bench::new(&["a", "b"]), key(&["a", "b"]));
    let refuse = |bench: &mut Bench, owners: std::ops::RangeInclusive<u32>| {
        for (owner, key) in owners.zip(keys(&["a", "b"])) {
            assert_eq!((bench.changes(), bench.at("a").len()), (vec![], 1), "refusal {owner}");
            bench.ask(owner, &key, 60_000);
            let id = *bench.at("a").last().expect("it was asked");
            bench.reject("a", id, RejectReason::StoreUnavailable);
        }
    };
    bench.ask(100, &ab, 600_000);
    refuse(&mut bench, 1..=5);
    bench.pass(TICK * 2);
    assert_eq!(bench.changes(), [told("a", Change::Left(Absence::Unable))]);
    assert_eq!((bench.at("a").len(), bench.at("b").len()), (0, 6), "who waits there goes too");
    bench.ask(6, &ab, 0);
    assert_eq!(bench.at("b").len(), 7, "at once");
    // In time it is tried again.
    bench.pass(Duration::from_secs(6));
    assert_eq!(bench.changes(), [told("a", Change::Returned)]);
    bench.outcomes.clear();
    bench.ask(8, &ab, 60_000);
    let id = bench.at("a")[0];
    bench.grant("a", id);
    bench.is_granted(8);
    bench.ask(9, &ab, 60_000);
    let id = *bench.at("a").last().expect("it was asked");
    bench.reject("a", id, RejectReason::StoreUnavailable);
    assert_eq!(bench.changes(), []);
}
