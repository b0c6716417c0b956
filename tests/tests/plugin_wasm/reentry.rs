//! Re-entry: who is let into a hold by its secret, and who is not.

use turnstile_protocol::v1::{Ending, Grant, RejectReason};
use turnstile_tests::artifacts::plugin_wasm;
use turnstile_tests::proxy_wasm::{InFlight, Policy, Request, Response, Setup, Worker, endings};

use super::{MS, TRANSFER, configuration, held, problem, problem_type, transfer, worker};

const HOLDER: &str = "x-turnstile-holder";
const REENTRANT: &str = "POST /accounts/{id}/transfer key=account:{id} wait=5s reentrant=on";
/// Of the form of a secret.
const MADE_UP: &str = "000102030405060708090a0b0c0d0e0f1011121314151617";

fn secret(request: &InFlight) -> String {
    request.upstream().and_then(|headers| headers.text(HOLDER)).expect("the upstream was told the secret")
}

fn token(request: &InFlight) -> String {
    request.upstream().and_then(|headers| headers.text("x-turnstile-token")).expect("the upstream was told a token")
}

/// The answer to a request that names a hold that is none.
fn not_joined(request: &InFlight) {
    let reply = problem(request.local_reply());
    assert_eq!((reply.status(), problem_type(&reply).as_str()), (409, "no-such-hold"));
    assert_eq!(reply.headers.get("retry-after"), None, "it does not get better by waiting");
    assert_eq!(request.upstream(), None);
    assert!(request.is_over());
}

#[test]
fn the_upstream_of_a_reentrant_rule_is_told_the_secret_and_no_other() {
    let worker = worker(&[REENTRANT, "POST /plain/{id} key=account:{id}"]);
    let host = worker.host();
    let outer = held(&worker, transfer(1));
    let acquire = host.acquires().pop().expect("it asked");
    assert!(acquire.reentrant && acquire.reentry_secret.is_empty());
    let text = secret(&outer);
    assert_eq!(text.len(), 48);
    assert!(text.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit)), "{text}");

    let plain = held(&worker, Request::new("POST", "/plain/2"));
    let acquire = host.acquires().pop().expect("it asked");
    assert!(!acquire.reentrant && acquire.reentry_secret.is_empty());
    assert_eq!(plain.upstream().expect("held").get(HOLDER), None);
    worker.check();
}

#[test]
fn who_brings_the_secret_joins_the_hold() {
    let worker = worker(&[REENTRANT]);
    let host = worker.host();
    host.policy(Policy::Lock);
    let outer = held(&worker, transfer(1));
    let stranger = worker.request(transfer(1));
    let text = secret(&outer);
    for spelling in [text.clone(), text.to_uppercase()] {
        let inner = held(&worker, transfer(1).header(HOLDER, spelling));
        let acquire = host.acquires().pop().expect("it asked");
        assert_eq!((acquire.reentry_secret.len(), acquire.reentrant), (24, false));
        let digits: String = acquire.reentry_secret.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digits, text);
        assert_eq!((token(&inner), secret(&inner)), (token(&outer), text.clone()), "it is the same hold");
        assert!(stranger.is_paused());
        inner.respond(Response::new(200, "done"));
        assert_eq!(host.releases().pop(), Some((acquire.id, Ending::Clean)));
    }
    assert!(stranger.is_paused(), "the outer request holds on");
    outer.respond(Response::new(200, "done"));
    assert!(stranger.upstream().is_some());
    assert_ne!(secret(&stranger), text, "another hold, another secret");
    worker.check();
}

/// Answered here: the host is not even asked.
#[test]
fn what_is_no_secret_names_no_hold() {
    let worker =
        worker(&[REENTRANT, &format!("{} on_host_unavailable=allow", REENTRANT.replace("/accounts", "/allow"))]);
    let both = || transfer(1).header(HOLDER, MADE_UP).header(HOLDER, MADE_UP);
    let requests = [
        transfer(1).header(HOLDER, ""),
        transfer(1).header(HOLDER, "0"),
        transfer(1).header(HOLDER, &MADE_UP[1..]),
        transfer(1).header(HOLDER, format!("{MADE_UP}0")),
        transfer(1).header(HOLDER, format!("{MADE_UP}00")),
        transfer(1).header(HOLDER, format!("0x{}", &MADE_UP[2..])),
        transfer(1).header(HOLDER, "g".repeat(48)),
        transfer(1).header(HOLDER, b"\xff".repeat(48)),
        transfer(1).header(HOLDER, format!("{MADE_UP},{MADE_UP}")),
        transfer(1).header(HOLDER, "").header(HOLDER, MADE_UP),
        both(),
        Request::new("POST", "/allow/1/transfer").header(HOLDER, "0"),
    ];
    for request in requests {
        not_joined(&worker.request(request));
    }
    let grpc = worker.request(both().header("content-type", "application/grpc").body("x"));
    let reply = grpc.local_reply();
    assert_eq!((reply.status(), reply.headers.text("grpc-status").as_deref()), (200, Some("9")));
    assert_eq!(worker.host().acquires(), []);
    // Refused for its spelling, with or without a secret.
    let doubtful = worker.request(Request::new("POST", "/accounts/1;v/transfer").header(HOLDER, MADE_UP));
    assert_eq!(problem(doubtful.local_reply()).status(), 400);
    worker.check();
    worker.advance(1_000 * MS);
    let metrics = worker.metrics();
    let counted = metrics.iter().find(|metric| metric.name == "turnstile.not_joined").map(|metric| metric.value);
    assert_eq!(counted, Some(13));
}

#[test]
fn spoofed_and_stale_secrets_are_worth_nothing() {
    let worker = worker(&[REENTRANT]);
    let host = worker.host();
    host.policy(Policy::Lock);
    let outer = held(&worker, transfer(1));
    not_joined(&worker.request(transfer(1).header(HOLDER, MADE_UP)));
    let text = secret(&outer);
    outer.respond(Response::new(200, "done"));
    not_joined(&worker.request(transfer(1).header(HOLDER, text.clone())));
    // Nor does it open the next hold of that key.
    let next = held(&worker, transfer(1));
    not_joined(&worker.request(transfer(1).header(HOLDER, text)));
    assert!(next.upstream().is_some() && host.holding().len() == 1);
    worker.check();
}

#[test]
fn elsewhere_the_header_is_nothing_but_taken_away() {
    let rules = [TRANSFER, "POST /open/{id} key=account:{id} on_host_unavailable=allow reentrant=on"];
    let worker = worker(&rules);
    let host = worker.host();
    let guarded = held(&worker, transfer(1).header(HOLDER, MADE_UP));
    assert!(host.acquires().pop().expect("it asked").reentry_secret.is_empty());
    let unguarded = worker.request(Request::new("GET", "/other").header(HOLDER, MADE_UP).header(HOLDER, "more"));
    for request in [guarded, unguarded] {
        assert_eq!(request.upstream().expect("it is let through").get(HOLDER), None);
    }
    worker.check();

    let down = Worker::start(&plugin_wasm(), &Setup::new(configuration(&rules)).hosts_down());
    for _ in 0..3 {
        // Without a host it goes on without a lock, and without the word of one.
        let bypassed = down.request(Request::new("POST", "/open/1").header(HOLDER, MADE_UP));
        down.advance(2_000 * MS);
        assert_eq!(bypassed.upstream().expect("it is let through").get(HOLDER), None);
        bypassed.respond(Response::new(200, "done"));
    }
    down.check();
}

#[test]
fn a_host_that_keeps_the_secret_to_itself_lets_nobody_through() {
    let spoilings: [fn(&mut Grant); 3] = [
        |grant| grant.holder_secret.clear(),
        |grant| grant.holder_secret.truncate(23),
        |grant| grant.holder_secret.push(0),
    ];
    let worker = worker(&[REENTRANT]);
    let host = worker.host();
    host.policy(Policy::Script);
    for request in [transfer(1), transfer(1).header(HOLDER, MADE_UP)] {
        for spoil in spoilings {
            let request = worker.request(request.clone());
            let id = host.waiting()[0];
            host.grant_spoilt(id, spoil);
            assert_eq!(request.upstream(), None);
            let reply = problem(request.local_reply());
            assert_eq!((reply.status(), problem_type(&reply).as_str()), (500, "misunderstanding"));
            assert_eq!(host.releases().last(), Some(&(id, Ending::Unsent)));
        }
    }
    assert!(host.holding().is_empty());
    worker.check();
}

/// A secret is good at one run of one host. Who waits by it asks the next one by it too, and is told that there is no
/// such hold; without it, it might wait for the very request that it belongs to.
#[test]
fn a_secret_does_not_outlive_its_host() {
    let worker = worker(&[REENTRANT]);
    let host = worker.host();
    let outer = held(&worker, transfer(1));
    host.policy(Policy::Script);
    let inner = worker.request(transfer(1).header(HOLDER, secret(&outer)));
    let before = host.acquires().pop().expect("it asked");
    host.clear();
    host.policy(Policy::Lock);
    host.restart();
    worker.advance(2_000 * MS);
    assert_eq!(problem(outer.local_reply()).status(), 503, "its lock is lost with the host");
    let again = host.acquires().pop().expect("it asked again");
    assert_eq!((again.reentry_secret, again.reentrant), (before.reentry_secret, false));
    not_joined(&inner);
    worker.check();
}

#[test]
fn a_hold_that_is_too_weak_is_not_joined() {
    let worker = worker(&[REENTRANT]);
    let host = worker.host();
    host.policy(Policy::Script);
    let request = worker.request(transfer(1).header(HOLDER, MADE_UP));
    host.reject(host.waiting()[0], RejectReason::Upgrade);
    let reply = problem(request.local_reply());
    assert_eq!((reply.status(), problem_type(&reply).as_str()), (409, "upgrade"));
    assert_eq!(reply.headers.get("retry-after"), None);
    worker.check();
}

/// The next context of an internal redirect has the headers that the upstream was sent by the one before.
#[test]
fn an_internal_redirect_brings_no_secret_of_its_own() {
    let worker = worker(&[REENTRANT, TRANSFER.replace("/transfer", "/other").as_str()]);
    let host = worker.host();
    host.policy(Policy::Lock);
    let again = |request: &InFlight| {
        let headers = request.upstream().expect("held");
        request.end(endings::internal_redirect());
        held(&worker, Request { headers, ..Request::default() })
    };
    let first = held(&worker, transfer(1));
    let second = again(&first);
    assert!(host.acquires().pop().expect("it asked").reentrant);
    assert_ne!(secret(&second), secret(&first));
    // One that had joined joins again.
    let inner = held(&worker, transfer(1).header(HOLDER, secret(&second)));
    let inner_again = again(&inner);
    assert_eq!((secret(&inner_again), token(&inner_again)), (secret(&second), token(&second)));
    // But nobody else gets in by what a redirected request left behind.
    let unused = secret(&second);
    inner_again.respond(Response::new(200, "done"));
    second.end(endings::internal_redirect());
    held(&worker, Request::new("POST", "/accounts/1/other")).respond(Response::new(200, "done"));
    let late = held(&worker, transfer(1).header(HOLDER, unused.clone()));
    assert_ne!(secret(&late), unused, "a lock of its own");
    not_joined(&worker.request(transfer(1).header(HOLDER, unused)));
    worker.check();
}
