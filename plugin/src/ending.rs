//! How a hold ended, by what the proxy says about the response.
//!
//! *Clean* needs proof that the upstream is done, and *unsent* needs proof that it never began; all else is unclean.
//! The texts are Envoy's response-code details.

use turnstile_protocol::v1::Ending;

/// The details of a response upon which the proxy follows a redirect by itself.
const REDIRECTED: &[u8] = b"internal_redirect";

/// What the proxy says about a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts<'f> {
    /// Who made the response, and why (`response.code_details`).
    pub details: &'f [u8],
    /// How often the request was sent to an upstream (`upstream.request_attempt_count`); zero if it never came so far,
    /// `None` if the proxy does not say.
    pub attempts: Option<u64>,
    /// The response's status, if there is a response. Only needed for one that did not come to its end.
    pub status: Option<u64>,
}

impl Facts<'_> {
    /// Whether the proxy follows a redirect by itself: the request comes again.
    pub fn is_redirect(&self) -> bool {
        self.details == REDIRECTED
    }
}

/// The ending of a hold whose request was answered by a response that came to its end.
pub fn of_complete_response(facts: Facts<'_>) -> Ending {
    match (facts.details, facts.attempts) {
        (b"via_upstream", Some(1)) => Ending::Clean,
        // After a retry, the upstream may still be busy with an earlier attempt.
        (b"via_upstream", _) => Ending::Unclean,
        _ => of_local_reply(facts),
    }
}

/// The ending of a hold whose request was over before any response came to its end.
pub fn of_incomplete_response(facts: Facts<'_>) -> Ending {
    match (facts.details, facts.attempts, facts.status) {
        // The upstream's answer was complete; the redirected request gets a hold of its own.
        (REDIRECTED, Some(1), _) => Ending::Clean,
        // A WebSocket has no end of stream. The upstream's side closes last in a regular close.
        (b"upstream_reset_after_response_started{connection_termination}", Some(1), Some(101)) => Ending::Clean,
        (b"via_upstream" | REDIRECTED, _, _) => Ending::Unclean,
        _ => of_local_reply(facts),
    }
}

/// For responses that the proxy made, and for no response at all.
fn of_local_reply(facts: Facts<'_>) -> Ending {
    /// One attempt, and no connection to make it on.
    const NO_CONNECTION: [&[u8]; 5] = [
        b"no_healthy_upstream",
        b"upstream_reset_before_response_started{remote_connection_failure",
        b"upstream_reset_before_response_started{local_connection_failure",
        b"upstream_reset_before_response_started{connection_timeout",
        b"upstream_reset_before_response_started{overflow",
    ];
    match facts.attempts {
        // The router never got to an upstream: a direct response, a redirect, a fault filter, a client long gone.
        Some(0) => Ending::Unsent,
        Some(1) if NO_CONNECTION.iter().any(|details| facts.details.starts_with(details)) => Ending::Unsent,
        // An Envoy that does not count attempts (before 1.33) proves nothing.
        Some(_) | None => Ending::Unclean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(details: &str, attempts: u64, status: Option<u64>) -> Facts<'_> {
        Facts { details: details.as_bytes(), attempts: Some(attempts), status }
    }

    /// As measured on Envoy 1.40: every way in which a response comes to its end.
    #[test]
    fn complete_responses() {
        for (details, attempts, ending) in [
            ("via_upstream", 1, Ending::Clean),
            ("via_upstream", 2, Ending::Unclean),
            ("via_upstream", 0, Ending::Unclean),
            ("direct_response", 0, Ending::Unsent),
            ("fault_filter_abort", 0, Ending::Unsent),
            ("cluster_not_found", 0, Ending::Unsent),
            ("route_not_found", 0, Ending::Unsent),
            ("no_healthy_upstream", 1, Ending::Unsent),
            ("no_healthy_upstream", 2, Ending::Unclean),
            (
                "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
                1,
                Ending::Unsent,
            ),
            ("upstream_reset_before_response_started{remote_connection_failure}", 2, Ending::Unclean),
            ("upstream_reset_before_response_started{connection_timeout}", 1, Ending::Unsent),
            ("upstream_reset_before_response_started{overflow}", 1, Ending::Unsent),
            ("upstream_reset_before_response_started{connection_termination}", 1, Ending::Unclean),
            ("upstream_reset_before_response_started{protocol_error}", 1, Ending::Unclean),
            ("upstream_reset_before_response_started{remote_reset}", 1, Ending::Unclean),
            ("response_timeout", 1, Ending::Unclean),
            ("stream_idle_timeout", 1, Ending::Unclean),
            ("max_duration_timeout", 1, Ending::Unclean),
            ("something_new", 1, Ending::Unclean),
            ("", 1, Ending::Unclean),
        ] {
            assert_eq!(of_complete_response(facts(details, attempts, None)), ending, "{details}, attempt {attempts}");
        }
    }

    #[test]
    fn an_envoy_that_does_not_count_attempts_proves_nothing() {
        for details in ["via_upstream", "response_timeout", "downstream_remote_disconnect", "direct_response"] {
            let facts = Facts { details: details.as_bytes(), attempts: None, status: None };
            assert_eq!(of_complete_response(facts), Ending::Unclean, "{details}");
            assert_eq!(of_incomplete_response(facts), Ending::Unclean, "{details}");
        }
    }

    /// As measured on Envoy 1.40: every way in which a request is over without an end of its response.
    #[test]
    fn incomplete_responses() {
        for (details, attempts, status, ending) in [
            ("downstream_remote_disconnect", 1, None, Ending::Unclean),
            ("downstream_remote_disconnect", 1, Some(200), Ending::Unclean),
            ("downstream_remote_disconnect", 1, Some(101), Ending::Unclean),
            ("downstream_remote_disconnect", 0, None, Ending::Unsent),
            ("upstream_reset_after_response_started{connection_termination}", 1, Some(101), Ending::Clean),
            ("upstream_reset_after_response_started{connection_termination}", 1, Some(200), Ending::Unclean),
            ("upstream_reset_after_response_started{connection_termination}", 2, Some(101), Ending::Unclean),
            ("upstream_reset_after_response_started{protocol_error}", 1, Some(200), Ending::Unclean),
            ("internal_redirect", 1, Some(302), Ending::Clean),
            ("internal_redirect", 2, Some(302), Ending::Unclean),
            ("response_timeout", 1, Some(200), Ending::Unclean),
            ("via_upstream", 1, Some(200), Ending::Unclean),
            ("", 1, None, Ending::Unclean),
        ] {
            assert_eq!(of_incomplete_response(facts(details, attempts, status)), ending, "{details} {status:?}");
        }
    }
}
