//! The ways a request can end in Envoy, and what a filter is told of each: callbacks, response flags, code details.
//!
//! Flags are the bits of Envoy's `StreamInfo::CoreResponseFlag`, details its `ResponseCodeDetails`.

use super::abi::Headers;
use super::exchange::{End, Ending, Maker, Response};

const UPSTREAM_REQUEST_TIMEOUT: u64 = 1 << 2;
const UPSTREAM_REMOTE_RESET: u64 = 1 << 4;
const UPSTREAM_CONNECTION_FAILURE: u64 = 1 << 5;
const UPSTREAM_CONNECTION_TERMINATION: u64 = 1 << 6;
const FAULT_INJECTED: u64 = 1 << 10;
const DOWNSTREAM_CONNECTION_TERMINATION: u64 = 1 << 14;
const UPSTREAM_RETRY_LIMIT_EXCEEDED: u64 = 1 << 15;
const STREAM_IDLE_TIMEOUT: u64 = 1 << 16;
const DURATION_TIMEOUT: u64 = 1 << 22;
const UPSTREAM_PROTOCOL_ERROR: u64 = 1 << 23;
const NO_CLUSTER_FOUND: u64 = 1 << 24;

/// The upstream answers completely, on the first attempt.
pub fn answered(response: Response) -> Ending {
    retried(response, 1)
}

/// The upstream answers completely, on attempt number `attempts`.
pub fn retried(response: Response, attempts: u64) -> Ending {
    let response = Some(response);
    Ending {
        response,
        made_by: Maker::Upstream,
        details: "via_upstream",
        flags: 0,
        attempts: Some(attempts),
        over: true,
    }
}

/// The upstream answers, and trailers end the answer.
pub fn answered_with_trailers() -> Ending {
    let trailers: Headers = [("grpc-status", "0")].into_iter().collect();
    answered(Response::new(200, "message").end(End::Trailers(trailers)))
}

/// A response begins and does not end: its headers, and one piece of body.
pub fn begun(status: u16) -> Ending {
    Ending { over: false, ..answered(Response::new(status, "the first piece").end(End::Never)) }
}

/// Every retry failed too, and Envoy passes on the last answer of the upstream.
pub fn retries_exhausted() -> Ending {
    Ending { flags: UPSTREAM_RETRY_LIMIT_EXCEEDED, ..retried(Response::new(503, "busy"), 3) }
}

/// No connection to the upstream.
pub fn connect_failure() -> Ending {
    let details = "upstream_reset_before_response_started{connection_failure|delayed_connect_error:_111}";
    by_envoy(503, details, UPSTREAM_CONNECTION_FAILURE, 1)
}

/// The upstream closes the connection, or resets the stream, before it answers.
pub fn reset_before_headers() -> Ending {
    let details = "upstream_reset_before_response_started{connection_termination}";
    by_envoy(503, details, UPSTREAM_CONNECTION_TERMINATION, 1)
}

/// The upstream resets the HTTP/2 stream before it answers.
pub fn remote_reset_before_headers() -> Ending {
    by_envoy(503, "upstream_reset_before_response_started{remote_reset}", UPSTREAM_REMOTE_RESET, 1)
}

/// The upstream's answer is no HTTP.
pub fn garbage() -> Ending {
    by_envoy(502, "upstream_reset_before_response_started{protocol_error}", UPSTREAM_PROTOCOL_ERROR, 1)
}

/// The route names a cluster that does not exist.
pub fn unknown_cluster() -> Ending {
    no_body(503, "cluster_not_found", NO_CLUSTER_FOUND)
}

/// The route is a redirect.
pub fn redirect_route() -> Ending {
    no_body(301, "direct_response", 0)
}

/// The route is a direct response.
pub fn direct_response() -> Ending {
    by_envoy(200, "direct_response", 0, 0)
}

/// Fault injection aborts the request.
pub fn fault_abort() -> Ending {
    by_envoy(503, "fault_filter_abort", FAULT_INJECTED, 0)
}

/// The route's timeout passes before the upstream answers.
pub fn route_timeout() -> Ending {
    by_envoy(504, "response_timeout", UPSTREAM_REQUEST_TIMEOUT, 1)
}

/// The stream's idle timeout passes before the upstream answers.
pub fn stream_idle_timeout() -> Ending {
    by_envoy(504, "stream_idle_timeout", STREAM_IDLE_TIMEOUT, 1)
}

/// The stream's longest duration passes before the upstream answers.
pub fn max_stream_duration() -> Ending {
    by_envoy(504, "max_duration_timeout", DURATION_TIMEOUT, 1)
}

/// The upstream breaks off a response that has begun.
pub fn reset_mid_response() -> Ending {
    cut("upstream_reset_after_response_started{connection_termination}", UPSTREAM_CONNECTION_TERMINATION, 1)
}

/// The route's timeout passes while a response is on its way.
pub fn timeout_mid_response() -> Ending {
    cut("response_timeout", UPSTREAM_REQUEST_TIMEOUT, 1)
}

/// The client is gone (also: an HTTP/1 half-close). `attempts` is 0 if no upstream was tried yet.
pub fn client_gone(attempts: u64) -> Ending {
    cut("downstream_remote_disconnect", DOWNSTREAM_CONNECTION_TERMINATION, attempts)
}

/// Envoy's drain ends and cuts what is left.
pub fn drained() -> Ending {
    cut("downstream_local_disconnect{}", DOWNSTREAM_CONNECTION_TERMINATION, 1)
}

/// Envoy follows a redirect of the upstream by itself: this context ends, another one begins.
pub fn internal_redirect() -> Ending {
    cut("internal_redirect", 0, 1)
}

fn by_envoy(status: u16, details: &'static str, flags: u64, attempts: u64) -> Ending {
    let response = Some(Response::new(status, "made by Envoy"));
    Ending { response, made_by: Maker::Envoy, details, flags, attempts: Some(attempts), over: true }
}

fn no_body(status: u16, details: &'static str, flags: u64) -> Ending {
    Ending { response: Some(Response::headers_only(status)), ..by_envoy(status, details, flags, 0) }
}

fn cut(details: &'static str, flags: u64, attempts: u64) -> Ending {
    Ending { response: None, made_by: Maker::Envoy, details, flags, attempts: Some(attempts), over: true }
}
