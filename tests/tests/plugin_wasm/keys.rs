//! Rules with several keys, with modes and with bounds: what the host is asked for, and what the upstream is told.

use turnstile_protocol::v1::{Ending, Grant, LostReason, Mode, RejectReason};
use turnstile_tests::proxy_wasm::{Headers, Policy, Request, Response};

use super::{MS, held, member, problem, problem_type, worker};

const MOVE: &str = "POST /move/{from} key=account:{from},account:{query.to} wait=5s";

fn transfer(from: &str, to: &str) -> Request {
    Request::new("POST", &format!("/move/{from}?to={to}"))
}

fn values(headers: &Headers, name: &str) -> Vec<String> {
    headers.all(name).map(|value| String::from_utf8_lossy(value).into_owned()).collect()
}

#[test]
fn the_upstream_is_told_every_key_and_its_token_in_the_order_of_the_rule() {
    let worker = worker(&[MOVE]);
    let host = worker.host();
    host.policy(Policy::Script);
    let forged = transfer("9", "1")
        .header("x-turnstile-key", "default/account:9")
        .header("x-turnstile-token", "7,8")
        .header("x-turnstile-token", "9")
        .header("x-turnstile-holder", "a".repeat(48));
    let request = worker.request(forged);
    let acquires = host.acquires();
    let [acquire] = acquires.as_slice() else { panic!("{acquires:?}") };
    let keys: Vec<_> = acquire.keys.iter().map(|key| (key.key.as_str(), key.mode(), key.limit)).collect();
    assert_eq!(keys, [("default/account:9", Mode::Exclusive, 0), ("default/account:1", Mode::Exclusive, 0)]);
    assert_eq!((acquire.reentrant, acquire.reentry_secret.len()), (false, 0));
    assert!(request.is_paused());

    host.grant(acquire.id);
    let headers = request.upstream().expect("it has its locks");
    assert_eq!(values(&headers, "x-turnstile-key"), ["default/account:9,default/account:1"]);
    let first = (7 << 20) + 1;
    assert_eq!(values(&headers, "x-turnstile-token"), [format!("{},{}", first, first + 1)]);
    assert_eq!(values(&headers, "x-turnstile-holder"), [""; 0]);
    request.respond(Response::new(200, "done"));
    assert_eq!(host.releases(), [(acquire.id, Ending::Clean)], "one hold");
    worker.check();
}

#[test]
fn a_transfer_from_an_account_to_itself_needs_one_lock() {
    let worker = worker(&[&format!("{MOVE} mode=shared,exclusive")]);
    let host = worker.host();
    for target in ["/move/42?to=42", "//move/./%34%32/?to=4%32"] {
        let request = held(&worker, Request::new("POST", target));
        let acquire = host.acquires().pop().expect("it asked");
        let keys: Vec<_> = acquire.keys.iter().map(|key| (key.key.as_str(), key.mode())).collect();
        assert_eq!(keys, [("default/account:42", Mode::Exclusive)], "{target}");
        assert_eq!(values(&request.upstream().expect("held"), "x-turnstile-key"), ["default/account:42"]);
        request.respond(Response::new(200, "done"));
    }
    worker.check();
}

/// Half of the locks would be none: a key that is in doubt refuses the request.
#[test]
fn a_key_in_doubt_refuses_the_request_whatever_the_others_are() {
    let worker = worker(&[MOVE]);
    for target in
        ["/move/1", "/move/1?to=", "/move/1?to=2&to=3", "/move/1?to=2&TO=2", "/move/1%2F2?to=3", "/move/1;v?to=2"]
    {
        let request = worker.request(Request::new("POST", target));
        assert_eq!(problem(request.local_reply()).status(), 400, "{target}");
        assert_eq!(request.upstream(), None);
    }
    assert_eq!(worker.host().acquires(), []);
    worker.check();
}

#[test]
fn transfers_that_cross_pass_one_at_a_time() {
    let worker = worker(&[MOVE]);
    worker.host().policy(Policy::Lock);
    let one = held(&worker, transfer("1", "2"));
    let back = worker.request(transfer("2", "1"));
    let overlapping = worker.request(transfer("2", "3"));
    let other = held(&worker, transfer("4", "5"));
    assert!(back.is_paused() && overlapping.is_paused());
    one.respond(Response::new(200, "done"));
    assert!(back.upstream().is_some() && overlapping.is_paused());
    back.respond(Response::new(200, "done"));
    assert!(overlapping.upstream().is_some());
    overlapping.respond(Response::new(200, "done"));
    other.respond(Response::new(200, "done"));
    assert!(worker.host().holding().is_empty());
    worker.check();
}

#[test]
fn modes_and_bounds_reach_the_host() {
    let worker = worker(&[
        "GET /plain key=a",
        "GET /shared key=a mode=shared queue=7",
        "GET /limited key=a mode=limit:65535 fail_fast=on",
        "GET /mixed key=a,b,c mode=limit:4,exclusive,shared queue=1000000 fail_fast=on",
    ]);
    let host = worker.host();
    let (exclusive, shared) = ((Mode::Exclusive, 0), (Mode::Shared, 0));
    for (path, modes, queue_max, fail_fast) in [
        ("/plain", vec![exclusive], 0, false),
        ("/shared", vec![shared], 7, false),
        ("/limited", vec![(Mode::Limit, 65_535)], 0, true),
        ("/mixed", vec![(Mode::Limit, 4), exclusive, shared], 1_000_000, true),
    ] {
        held(&worker, Request::new("GET", path)).respond(Response::new(200, "fine"));
        let acquire = host.acquires().pop().expect("it asked");
        assert_eq!(acquire.keys.iter().map(|key| (key.mode(), key.limit)).collect::<Vec<_>>(), modes, "{path}");
        assert_eq!((acquire.queue_max, acquire.fail_fast), (queue_max, fail_fast), "{path}");
    }
    worker.check();
}

#[test]
fn problems_name_all_keys() {
    let worker = worker(&[MOVE]);
    let host = worker.host();
    host.policy(Policy::Script);
    let rejected = worker.request(transfer("1", "2"));
    host.reject(host.waiting()[0], RejectReason::WaitHopeless);
    let reply = problem(rejected.local_reply());
    assert_eq!((reply.status(), problem_type(&reply).as_str()), (503, "wait-hopeless"));
    assert_eq!(member(&reply, "key"), "default/account:1,default/account:2");

    let lost = worker.request(transfer("3", "4"));
    let id = host.waiting()[0];
    host.grant(id);
    assert!(lost.upstream().is_some());
    // An operator has ended it: the host said so, and that is all there is to know.
    host.lose(id, LostReason::Forced);
    let reply = problem(lost.local_reply());
    assert_eq!((reply.status(), problem_type(&reply).as_str()), (503, "lock-lost"));
    assert_eq!(member(&reply, "key"), "default/account:3,default/account:4");
    assert_eq!(host.releases(), [(id, Ending::Unclean)]);
    worker.check();
}

/// A host that grants something else than was asked for: no request goes on under that, whatever its rule allows.
#[test]
fn a_grant_that_does_not_answer_the_question_goes_back_unsent() {
    type Spoil = fn(&mut Grant);
    let spoilings: [(&str, Spoil); 4] = [
        ("no token", |grant| grant.keys.clear()),
        ("a token too few", |grant| {
            grant.keys.pop();
        }),
        ("a token too many", |grant| grant.keys.extend_from_within(..1)),
        ("expired besides", |grant| {
            grant.keys.pop();
            grant.valid_ms = 0;
        }),
    ];
    for rule in [MOVE, &format!("{MOVE} on_host_unavailable=allow"), "POST /move/{from} key=account:{from}"] {
        let worker = worker(&[rule]);
        let host = worker.host();
        host.policy(Policy::Script);
        for (what, spoil) in spoilings {
            let request = worker.request(transfer("1", "2"));
            let id = host.waiting()[0];
            host.grant_spoilt(id, spoil);
            assert_eq!(request.upstream(), None, "{what} under {rule}");
            let reply = problem(request.local_reply());
            assert_eq!(
                (reply.status(), problem_type(&reply).as_str()),
                (500, "misunderstanding"),
                "{what} under {rule}"
            );
            assert_eq!(host.releases().last(), Some(&(id, Ending::Unsent)), "{what} under {rule}");
        }
        worker.advance(5_000 * MS);
        assert_eq!((host.holding(), host.waiting()), (vec![], vec![]));
        worker.check();
    }
}
