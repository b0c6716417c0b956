//! What clients may send to break the filter or to get around its locks, and how much of anything it bears.

use turnstile_protocol::v1::Ending;
use turnstile_tests::proxy_wasm::{Outcome, Policy, Request, Response, endings};

use super::{MS, TRANSFER, held, transfer, worker};

#[test]
fn bytes_that_are_no_text_do_no_harm() {
    let rules = ["POST /accounts/{id}/transfer key=account:{id}", "GET /files key=file:{query.name}:{header.x-tenant}"];
    let bytes: &[&[u8]] = &[b"\xff\xfe", b"\xc3\x28", b"a\xf0\x28\x8c\x28", b"\x80"];
    for bad in bytes {
        let worker = worker(&rules);
        let with = |name: &str, value: Vec<u8>| Request::new("POST", "/accounts/1/transfer").with(name, value);
        let requests = [
            with("cookie", bad.to_vec()),
            with("content-type", bad.to_vec()),
            with("x-turnstile-token", bad.to_vec()),
            with("x-request-id", bad.to_vec()),
            with(":authority", bad.to_vec()),
            with(":method", bad.to_vec()),
            with(":path", [b"/accounts/", *bad, b"/transfer"].concat()),
            Request::new("GET", "/files?name=1").header("x-tenant", bad.to_vec()),
            Request::new("GET", "/files").with(":path", [b"/files?name=", *bad].concat()).header("x-tenant", "a"),
        ];
        for request in requests {
            let sent = request.clone();
            let request = worker.request(request);
            if request.upstream().is_some() {
                request.respond(Response::new(200, "done"));
            }
            assert!(request.is_over(), "{:?} of {sent:?}", request.outcome());
        }
        held(&worker, Request::new("POST", "/accounts/1/transfer")).respond(Response::new(200, "done"));
        worker.check();
    }
}

#[test]
fn absurd_requests_do_no_harm() {
    let worker = worker(&[TRANSFER, "GET /files/{name} key=file:{name}"]);
    let long = format!("/files/{}", "x".repeat(60_000));
    let deep = "/a".repeat(30_000);
    let requests = [
        Request::default(),
        Request::new("POST", "/accounts/1/transfer").without(":path"),
        Request::new("POST", "/accounts/1/transfer").without(":authority"),
        Request::new("POST", "/accounts/1/transfer").without(":method"),
        Request::new("", "/accounts/1/transfer"),
        Request::new("CONNECT", "").without(":path"),
        Request::new("OPTIONS", "*"),
        Request::new("POST", "?"),
        Request::new("POST", "/"),
        Request::new("POST", "//"),
        Request::new("GET", &long),
        Request::new("GET", &deep),
        Request::new("GET", &format!("/files/{}", "%41".repeat(20_000))),
        Request::new("GET", "/files/%"),
        Request::new("GET", "/files/%2"),
        Request::new("GET", "/files/%zz"),
        Request::new(&"M".repeat(60_000), "/files/a"),
        Request::new("POST", "/accounts/1/transfer").body(vec![0; 1 << 20]),
    ];
    for request in requests {
        let text = format!("{:.200?}", request.headers);
        let request = worker.request(request);
        if request.upstream().is_some() {
            request.respond(Response::new(200, "done"));
        }
        assert!(request.is_over(), "{text}: {:?}", request.outcome());
    }
    held(&worker, transfer(1)).respond(Response::new(200, "done"));
    assert!(worker.host().holding().is_empty());
    worker.check();
}

#[test]
fn no_spelling_of_a_path_gets_around_its_lock() {
    let spellings = [
        "/accounts/42/transfer",
        "/accounts/42/transfer?amount=1",
        "/accounts/%34%32/transfer",
        "/accounts/4%32/transfer",
        "/%61ccounts/42/transfer",
        "/accounts/42/transfe%72",
        "//accounts/42/transfer",
        "/accounts//42/transfer",
        "/accounts/42/transfer/",
        "/accounts/42/./transfer",
        "/accounts/42/x/../transfer",
        "/accounts/42%2Ftransfer",
        "/accounts/42%2ftransfer",
        "/accounts/42/%2e/transfer",
        "/accounts/42/transfer;x=1",
        "/accounts/42;x=1/transfer",
        "/accounts\\42\\transfer",
        "/accounts/42/transfer#x",
        "http://shop.example.com/accounts/42/transfer",
    ];
    for spelling in spellings {
        let worker = worker(&[TRANSFER]);
        let host = worker.host();
        host.policy(Policy::Script);
        let request = worker.request(Request::new("POST", spelling));
        assert_eq!(request.upstream(), None, "{spelling} went around the lock");
        match request.outcome() {
            Outcome::Paused => {
                let key = host.acquires().last().expect("it asked").keys[0].key.clone();
                let own = key == "default/account:42" || spelling.contains(";x=1/");
                assert!(own, "{spelling} asks for {key}");
            }
            Outcome::LocalReply(reply) => assert_eq!(reply.status(), 400, "{spelling}"),
            other => panic!("{spelling}: {other:?}"),
        }
        worker.check();
    }
}

#[test]
fn a_key_part_that_is_missing_or_comes_twice_is_refused() {
    let rules = ["GET /files key=file:{query.name}", "GET /jobs key=job:{header.x-job}"];
    let refused = [
        Request::new("GET", "/files"),
        Request::new("GET", "/files?name="),
        Request::new("GET", "/files?name=a&name=b"),
        Request::new("GET", "/files?name=a&%6eame=b"),
        Request::new("GET", "/jobs"),
        Request::new("GET", "/jobs").header("x-job", "a").header("x-job", "b"),
        Request::new("GET", "/jobs").header("x-job", "a,b"),
    ];
    for request in refused {
        let worker = worker(&rules);
        let sent = request.clone();
        let request = worker.request(request);
        assert_eq!(request.upstream(), None, "{sent:?}");
        assert_eq!(request.local_reply().status(), 400, "{sent:?}");
        assert!(worker.host().acquires().is_empty());
        worker.check();
    }
}

#[test]
fn a_thousand_requests_that_one_message_lets_through_do_not_nest() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Script);
    let requests: Vec<_> =
        (0..1_000).map(|account| worker.request(transfer(account).ends_at_once(endings::direct_response()))).collect();
    assert_eq!(host.waiting().len(), 1_000);
    host.grant_all();
    worker.advance(1_000 * MS);
    for (account, request) in requests.iter().enumerate() {
        assert!(request.upstream().is_some() && request.is_over(), "{account}: {:?}", request.outcome());
    }
    assert!(worker.nesting_max() <= 16, "resumes nest {} deep", worker.nesting_max());
    assert_eq!(host.releases().len(), 1_000);
    worker.check();
}

#[test]
fn a_thousand_requests_that_one_lock_hands_on_do_not_nest() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Lock);
    let first = held(&worker, transfer(1));
    let requests: Vec<_> =
        (0..1_000).map(|_| worker.request(transfer(1).ends_at_once(endings::direct_response()))).collect();
    first.respond(Response::new(200, "done"));
    worker.advance(1_000 * MS);
    assert!(requests.iter().all(|request| request.upstream().is_some() && request.is_over()));
    assert!(worker.nesting_max() <= 16, "resumes nest {} deep", worker.nesting_max());
    worker.check();
}

#[test]
fn a_thousand_requests_that_lose_their_host_at_once_do_not_nest() {
    let worker = worker(&[&format!("{TRANSFER} on_host_unavailable=allow")]);
    let host = worker.host();
    host.policy(Policy::Script);
    held_back(&worker, &host);
    let requests: Vec<_> =
        (0..1_000).map(|account| worker.request(transfer(account).ends_at_once(endings::direct_response()))).collect();
    host.go_down();
    worker.advance(30_000 * MS);
    assert!(requests.iter().all(|request| request.upstream().is_some() && request.is_over()));
    assert!(worker.nesting_max() <= 16, "resumes nest {} deep", worker.nesting_max());
    worker.check();
}

/// Has the session opened, and nothing waiting.
fn held_back(worker: &turnstile_tests::proxy_wasm::Worker, host: &turnstile_tests::proxy_wasm::ModelHost) {
    let request = worker.request(transfer(0));
    host.grant_all();
    request.respond(Response::new(200, "done"));
}

#[test]
fn memory_does_not_grow_with_the_number_of_requests() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    let mut account = 0;
    let mut run = |requests: u32| {
        for _ in 0..requests {
            account += 1;
            let request = held(&worker, transfer(account).body("amount=1"));
            match account % 10 {
                0 => request.client_gone(),
                1 => request.reset_by_upstream(),
                _ => request.respond(Response::new(200, "done")),
            }
            if account % 50 == 0 {
                worker.advance(100 * MS);
                host.clear();
            }
        }
        worker.memory_bytes()
    };
    let warm = run(3_000);
    let after = run(20_000);
    assert_eq!(after, warm, "the plugin's memory grew by {} pages", (after - warm) / 65_536);
    assert!(host.holding().is_empty());
    worker.check();
}

#[test]
fn waiters_that_come_and_go_leave_nothing_behind() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Script);
    for round in 0..3 {
        let requests: Vec<_> = (0..500).map(|account| worker.request(transfer(account))).collect();
        let waiting = host.waiting();
        assert_eq!(waiting.len(), 500, "round {round}");
        for (index, request) in requests.iter().enumerate() {
            if index % 2 == 0 {
                request.client_gone();
            }
        }
        host.grant_all();
        for request in &requests {
            request.respond(Response::new(200, "done"));
        }
        worker.advance(2_000 * MS);
        assert_eq!((host.holding(), host.waiting()), (vec![], vec![]));
        assert_eq!(host.cancels().len() + host.releases().len(), 500);
        assert!(host.releases().iter().all(|(_, ending)| *ending == Ending::Clean));
        host.clear();
    }
    worker.check();
}
