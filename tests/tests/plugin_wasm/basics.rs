//! What becomes of a request when everything works, or the host is away.

use turnstile_protocol::v1::{Ending, RejectReason};
use turnstile_tests::artifacts::plugin_wasm;
use turnstile_tests::proxy_wasm::{LogLevel, Outcome, Policy, Request, Response, Setup, Worker};

use super::{MS, TRANSFER, configuration, held, problem, problem_type, transfer, worker};

#[test]
fn a_bad_configuration_is_refused_and_the_log_says_where_and_why() {
    let cases: &[(&str, &[&str])] = &[
        ("", &["JSON"]),
        ("{", &["JSON"]),
        (r#"{ "rules": [] }"#, &["cluster", "expected"]),
        (r#"{ "cluster": "turnstile_host" }"#, &["rules", "expected"]),
        (r#"{ "cluster": "turnstile_host", "rules": [], "colour": 1 }"#, &["colour"]),
        (r#"{ "cluster": "turnstile_host", "rules": ["POST /a/{id} key=a:{nobody}"] }"#, &["rules[0]", "nobody"]),
        (
            r#"{ "cluster": "turnstile_host", "rules": ["POST /a key=a", "POST /b key=b wait=soon"] }"#,
            &["rules[1]", "soon", "5s"],
        ),
        (r#"{ "cluster": "turnstile_host", "rules": [{ "match": { "path": "/a" } }] }"#, &["rules[0]", "key"]),
    ];
    for (configuration, expected) in cases {
        let Err(log) = Worker::try_start(&plugin_wasm(), &Setup::new(*configuration)) else {
            panic!("taken: {configuration}");
        };
        let errors: String =
            log.iter().filter(|line| line.level >= LogLevel::Error).map(|line| line.text.as_str()).collect();
        for word in *expected {
            assert!(errors.contains(word), "{word:?} is not in the log of {configuration}: {errors}");
        }
    }
}

#[test]
fn an_unguarded_request_passes_untouched_but_for_the_headers_that_only_the_filter_may_set() {
    let worker = worker(&[TRANSFER]);
    let plain = Request::new("GET", "/accounts/42?a=b").header("cookie", "a=1").header("cookie", "b=2");
    let forged = plain
        .clone()
        .header("x-turnstile-token", "1")
        .header("X-Turnstile-Token", "2")
        .header("x-turnstile-key", "default/account:42")
        .header("x-turnstile-holder", "secret");
    for request in [plain.clone(), forged] {
        let passed = worker.request(request);
        assert_eq!(passed.outcome(), Outcome::Upstream { headers: plain.headers.clone() });
        passed.respond(Response::new(200, "fine").header("server", "shop"));
        let Outcome::Answered(reply) = passed.outcome() else { panic!("{:?}", passed.outcome()) };
        assert_eq!((reply.status(), reply.headers.text("server").as_deref()), (200, Some("shop")));
        assert!(passed.is_over());
    }
    assert_eq!(worker.host().acquires(), [], "nothing was asked for");
    worker.check();
}

#[test]
fn a_guarded_request_waits_for_its_grant_and_tells_the_upstream_token_and_key() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Script);
    let request = worker
        .request(transfer(42).header("x-turnstile-token", "999").header("x-turnstile-key", "forged").body("amount=1"));
    assert!(request.is_paused());
    assert_eq!(request.upstream(), None);

    let hello = &host.hellos()[0];
    assert_eq!((hello.node.as_str(), hello.generation, hello.resume.is_none()), ("node-1", 1, true));
    let acquires = host.acquires();
    let [acquire] = acquires.as_slice() else { panic!("{acquires:?}") };
    let keys: Vec<&str> = acquire.keys.iter().map(|key| key.key.as_str()).collect();
    assert_eq!(keys, ["default/account:42"]);
    assert_eq!((acquire.wait_ms, acquire.hold_ms, acquire.lock_delay_ms), (5_000, 60_000, 15_000));
    let who = acquire.who.clone().unwrap_or_default();
    assert_eq!((who.method.as_str(), who.path.as_str()), ("POST", "/accounts/42/transfer"));

    worker.advance(700 * MS);
    assert!(request.is_paused());
    host.grant(acquire.id);
    let Outcome::Upstream { headers } = request.outcome() else { panic!("{:?}", request.outcome()) };
    let tokens: Vec<&[u8]> = headers.all("x-turnstile-token").collect();
    assert_eq!(tokens, [format!("{}", (7 << 20) + 1).as_bytes()]);
    assert_eq!(headers.all("x-turnstile-key").collect::<Vec<_>>(), [b"default/account:42"]);

    request.respond(Response::new(200, "done"));
    assert_eq!(host.releases(), [(acquire.id, Ending::Clean)]);
    assert!(host.holding().is_empty());
    worker.check();
}

#[test]
fn waiters_of_one_key_are_served_in_the_order_they_came() {
    let worker = worker(&[TRANSFER]);
    worker.host().policy(Policy::Lock);
    let requests: Vec<_> = (0..8).map(|_| worker.request(transfer(7))).collect();
    let other = worker.request(transfer(8));
    assert!(other.upstream().is_some(), "another key is another lock");
    for (index, request) in requests.iter().enumerate() {
        let through = requests.iter().filter(|request| request.upstream().is_some()).count();
        assert_eq!(through, index + 1, "one at a time");
        assert!(request.upstream().is_some(), "number {index} is next");
        request.respond(Response::new(200, "done"));
    }
    let tokens: Vec<_> = requests.iter().map(|request| token(request.upstream())).collect();
    assert!(tokens.is_sorted(), "{tokens:?}");
    worker.check();
}

#[test]
fn a_try_that_finds_the_lock_taken_is_told_423() {
    let worker = worker(&["POST /accounts/{id}/transfer key=account:{id} wait=0s"]);
    worker.host().policy(Policy::Lock);
    let first = held(&worker, transfer(1));
    let second = worker.request(transfer(1));
    let reply = problem(second.local_reply());
    assert_eq!(reply.status(), 423);
    assert!(second.is_over());
    assert_eq!(second.upstream(), None);
    first.respond(Response::new(200, "done"));
    held(&worker, transfer(1));
    worker.check();
}

#[test]
fn rejections_become_problems_that_say_when_to_come_back() {
    let cases = [
        (RejectReason::Conflict, 423, false),
        (RejectReason::WaitTimeout, 503, true),
        (RejectReason::WaitHopeless, 503, true),
        (RejectReason::QueueFull, 503, true),
        (RejectReason::SessionFull, 503, true),
        (RejectReason::KeysFull, 503, true),
        (RejectReason::StoreUnavailable, 503, true),
        (RejectReason::TokensExhausted, 503, true),
        (RejectReason::NoSuchHold, 409, false),
        (RejectReason::Upgrade, 409, false),
        (RejectReason::Invalid, 500, false),
        (RejectReason::Unsupported, 500, false),
    ];
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Script);
    let mut types = std::collections::BTreeSet::new();
    for (index, (reason, status, retry)) in cases.into_iter().enumerate() {
        let request = worker.request(transfer(index as u32));
        host.reject(host.waiting()[0], reason);
        let reply = problem(request.local_reply());
        assert_eq!(reply.status(), status, "{reason:?}");
        let retry_after = reply.headers.text("retry-after").map(|value| value.parse::<u32>().expect("whole seconds"));
        assert_eq!(
            retry_after.is_some_and(|seconds| (1..=60).contains(&seconds)),
            retry,
            "{reason:?}: {retry_after:?}"
        );
        types.insert(problem_type(&reply));
        assert!(request.is_over());
    }
    assert_eq!(host.releases(), [], "what was rejected is not released");
    let expected = [
        "host-unavailable",
        "locked",
        "misunderstanding",
        "no-such-hold",
        "queue-full",
        "upgrade",
        "wait-hopeless",
        "wait-over",
    ];
    assert_eq!(types.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    worker.check();
}

#[test]
fn a_wait_that_is_over_is_told_503_in_time() {
    let worker = worker(&[TRANSFER]);
    worker.host().policy(Policy::Lock);
    let _first = held(&worker, transfer(1));
    let second = worker.request(transfer(1));
    let came = worker.now();
    worker.advance(4_900 * MS);
    assert!(second.is_paused());
    worker.advance(200 * MS);
    let reply = problem(second.local_reply());
    assert_eq!(reply.status(), 503);
    assert!(reply.headers.get("retry-after").is_some());
    let waited = second.ended_at().expect("it is over") - came;
    assert!((5_000 * MS..5_100 * MS).contains(&waited), "{waited:?}");
    worker.check();
}

#[test]
fn a_host_that_never_answers_does_not_keep_a_request_for_ever() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Script);
    let request = worker.request(transfer(1));
    worker.advance(7_000 * MS);
    assert_eq!(problem(request.local_reply()).status(), 503);
    assert_eq!((host.waiting(), host.holding()), (vec![], vec![]), "the host was told");
    worker.check();
}

#[test]
fn grpc_requests_are_answered_in_grpc() {
    for (content_type, is_grpc) in
        [("application/grpc", true), ("application/grpc+proto", true), ("application/json", false)]
    {
        for (reason, status) in [
            (RejectReason::Conflict, 10),
            (RejectReason::WaitTimeout, 14),
            (RejectReason::WaitHopeless, 14),
            (RejectReason::NoSuchHold, 9),
            (RejectReason::Upgrade, 9),
        ] {
            let worker = worker(&[TRANSFER]);
            let host = worker.host();
            host.policy(Policy::Script);
            let request = worker.request(transfer(1).header("content-type", content_type).body("x"));
            host.reject(host.waiting()[0], reason);
            let reply = request.local_reply();
            let number = reply.headers.text("grpc-status");
            if is_grpc {
                assert_eq!((reply.status(), number), (200, Some(format!("{status}"))), "{content_type} {reason:?}");
                assert!(reply.headers.get("grpc-message").is_some());
                assert_eq!(reply.headers.text("content-type").as_deref(), Some("application/grpc"));
                assert_eq!(reply.body, b"");
            } else {
                assert_eq!(number, None);
                problem(reply);
            }
            worker.check();
        }
    }
}

#[test]
fn with_the_host_down_deny_denies_and_allow_allows() {
    let cases = [("deny", false), ("allow", true)];
    for (policy, passes) in cases {
        let rule = format!("{TRANSFER} on_host_unavailable={policy}");
        let worker = Worker::start(&plugin_wasm(), &Setup::new(configuration(&[&rule])).hosts_down());
        for attempt in 0..5 {
            let request = worker.request(transfer(1));
            worker.advance(2_000 * MS);
            if passes {
                let headers = request.upstream().expect("it is let through");
                assert_eq!(headers.get("x-turnstile-token"), None, "without a lock there is no token");
                request.respond(Response::new(200, "done"));
            } else {
                let reply = problem(request.local_reply());
                assert_eq!((reply.status(), request.upstream()), (503, None), "attempt {attempt}");
                assert!(reply.headers.get("retry-after").is_some());
            }
            assert!(request.is_over());
        }
        // It comes back, and so do locks.
        worker.host().come_up();
        worker.advance(5_000 * MS);
        let request = worker.request(transfer(1));
        worker.advance(3_000 * MS);
        assert!(token(request.upstream()).is_some(), "{policy}: {:?}", request.outcome());
        worker.check();
    }
}

#[test]
fn an_unknown_cluster_is_like_a_host_that_is_down() {
    let rule = TRANSFER.to_owned();
    let mut setup = Setup::new(configuration(&[&rule]));
    setup.clusters = vec!["another_cluster".to_owned()];
    let worker = Worker::start(&plugin_wasm(), &setup);
    let request = worker.request(transfer(1));
    worker.advance(6_000 * MS);
    assert_eq!(problem(request.local_reply()).status(), 503);
    worker.check();
}

fn token(headers: Option<turnstile_tests::proxy_wasm::Headers>) -> Option<u64> {
    headers?.text("x-turnstile-token")?.parse().ok()
}
