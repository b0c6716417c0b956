//! The table of endings: each one is told to the host exactly once, as what it is, and as early as it is known.

use turnstile_protocol::v1::Ending;
use turnstile_tests::proxy_wasm::{End, Ending as Way, Headers, Policy, Response, endings};

use super::{MS, TRANSFER, held, transfer, worker};

/// Ways in which a response comes to its end, and how the hold ends by them.
fn complete() -> Vec<(&'static str, Way, Ending)> {
    let pieces = Response { body: vec![vec![1; 9], vec![], vec![2; 9]], ..Response::new(200, "") };
    vec![
        ("a response", endings::answered(Response::new(200, "done")), Ending::Clean),
        ("a response in pieces", endings::answered(pieces), Ending::Clean),
        ("an empty body", endings::answered(Response::new(200, "")), Ending::Clean),
        ("an error of the upstream", endings::answered(Response::new(500, "oops")), Ending::Clean),
        ("a 504 of the upstream itself", endings::answered(Response::new(504, "oops")), Ending::Clean),
        ("trailers", endings::answered_with_trailers(), Ending::Clean),
        ("204", endings::answered(Response::headers_only(204)), Ending::Clean),
        ("304", endings::answered(Response::headers_only(304)), Ending::Clean),
        ("the second attempt", endings::retried(Response::new(200, "done"), 2), Ending::Unclean),
        ("204 on the second attempt", endings::retried(Response::headers_only(204), 2), Ending::Unclean),
        ("no attempt left", endings::retries_exhausted(), Ending::Unclean),
        ("no connection", endings::connect_failure(), Ending::Unsent),
        (
            "no connection for the second attempt",
            Way { attempts: Some(2), ..endings::connect_failure() },
            Ending::Unclean,
        ),
        ("reset before the headers", endings::reset_before_headers(), Ending::Unclean),
        ("remote reset before the headers", endings::remote_reset_before_headers(), Ending::Unclean),
        ("garbage", endings::garbage(), Ending::Unclean),
        ("unknown cluster", endings::unknown_cluster(), Ending::Unsent),
        ("redirect route", endings::redirect_route(), Ending::Unsent),
        ("direct response", endings::direct_response(), Ending::Unsent),
        ("fault abort", endings::fault_abort(), Ending::Unsent),
        ("route timeout", endings::route_timeout(), Ending::Unclean),
        ("stream idle timeout", endings::stream_idle_timeout(), Ending::Unclean),
        ("max stream duration", endings::max_stream_duration(), Ending::Unclean),
    ]
}

/// Ways in which no response comes to its end: what comes of a response, then how it is cut.
fn cut() -> Vec<(&'static str, Option<Way>, Way, Ending)> {
    let begun = || Some(endings::begun(200));
    vec![
        ("reset mid-response", begun(), endings::reset_mid_response(), Ending::Unclean),
        ("route timeout mid-response", begun(), endings::timeout_mid_response(), Ending::Unclean),
        ("client gone, the upstream works", None, endings::client_gone(1), Ending::Unclean),
        ("client gone mid-response", begun(), endings::client_gone(1), Ending::Unclean),
        ("drain deadline", None, endings::drained(), Ending::Unclean),
        ("drain deadline mid-response", begun(), endings::drained(), Ending::Unclean),
        ("internal redirect", None, endings::internal_redirect(), Ending::Clean),
        (
            "internal redirect after a retry",
            None,
            Way { attempts: Some(2), ..endings::internal_redirect() },
            Ending::Unclean,
        ),
    ]
}

#[test]
fn a_complete_response_releases_the_lock_at_its_end() {
    for (name, way, expected) in complete() {
        let worker = worker(&[TRANSFER]);
        let host = worker.host();
        let request = held(&worker, transfer(1));
        let id = host.holding()[0];
        // The response passes by, and its end has not been logged yet.
        request.end(Way { over: false, ..way.clone() });
        assert_eq!(host.releases(), [(id, expected)], "{name}: at the end of the response");
        request.end(Way { response: None, ..way });
        assert!(request.is_over(), "{name}");
        worker.advance(3_000 * MS);
        assert_eq!(host.releases(), [(id, expected)], "{name}: once");
        worker.check();
    }
}

#[test]
fn an_exchange_that_is_cut_releases_the_lock_when_it_is_logged() {
    for (name, begun, way, expected) in cut() {
        let worker = worker(&[TRANSFER]);
        let host = worker.host();
        let request = held(&worker, transfer(1));
        let id = host.holding()[0];
        if let Some(begun) = begun {
            request.end(begun);
            assert_eq!(host.releases(), [], "{name}: it has only begun");
        }
        request.end(way);
        assert!(request.is_over(), "{name}");
        assert_eq!(host.releases(), [(id, expected)], "{name}");
        worker.advance(3_000 * MS);
        assert_eq!(host.releases().len(), 1, "{name}: once");
        worker.check();
    }
}

#[test]
fn what_is_let_through_and_ends_within_the_same_callback_is_released_too() {
    for (name, way, expected) in complete() {
        let worker = worker(&[TRANSFER]);
        let host = worker.host();
        let request = worker.request(transfer(1).ends_at_once(way));
        assert!(request.is_over(), "{name}");
        assert_eq!(host.releases().iter().map(|(_, ending)| *ending).collect::<Vec<_>>(), [expected], "{name}");
        worker.check();
    }
}

#[test]
fn a_grpc_stream_is_released_by_its_trailers_and_not_before() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    let request = held(&worker, transfer(1).header("content-type", "application/grpc"));
    request.end(endings::begun(200));
    request.respond_more(b"second", End::Never);
    worker.advance(30_000 * MS);
    assert!(host.releases().is_empty());
    assert_eq!(host.holding().len(), 1);
    request.respond_more(b"", End::Trailers([("grpc-status", "0")].into_iter().collect::<Headers>()));
    assert_eq!(host.releases().iter().map(|(_, ending)| *ending).collect::<Vec<_>>(), [Ending::Clean]);
    worker.check();
}

#[test]
fn the_next_context_of_an_internal_redirect_asks_again() {
    let worker = worker(&[TRANSFER]);
    let host = worker.host();
    host.policy(Policy::Lock);
    let first = held(&worker, transfer(1));
    first.end(endings::internal_redirect());
    let second = held(&worker, transfer(1));
    assert_eq!(host.acquires().len(), 2);
    second.respond(Response::new(200, "done"));
    assert!(host.holding().is_empty());
    worker.check();
}

#[test]
fn timeouts_of_envoy_while_a_request_waits_cancel_it() {
    for way in [endings::stream_idle_timeout(), endings::max_stream_duration()] {
        let worker = worker(&[TRANSFER]);
        let host = worker.host();
        host.policy(Policy::Script);
        let request = worker.request(transfer(1));
        let id = host.waiting()[0];
        request.end(Way { attempts: Some(0), ..way });
        assert!(request.is_over());
        assert_eq!((host.cancels(), host.releases()), (vec![id], vec![]));
        assert_eq!(request.upstream(), None);
        worker.check();
    }
}

#[test]
fn a_request_that_envoy_refuses_before_the_filter_is_nobodys() {
    let worker = worker(&[TRANSFER]);
    for _ in 0..3 {
        assert!(worker.refused_request().is_over());
    }
    held(&worker, transfer(1)).respond(Response::new(200, "done"));
    assert_eq!(worker.host().acquires().len(), 1);
    worker.check();
}
