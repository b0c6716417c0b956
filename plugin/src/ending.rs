//! How a hold ended, by what the proxy says about the response.
//!
//! *Clean* needs proof that the upstream is done, *unsent* needs proof that it never began; all else is unclean.

use turnstile_protocol::v1::Ending;

/// What the proxy says about a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts<'f> {
    /// Who made the response, and why (`response.code_details`).
    pub details: &'f [u8],
    /// How often the request was sent to an upstream (`upstream.request_attempt_count`), if the proxy came that far.
    pub attempts: Option<u64>,
}

/// The ending of a hold whose request was answered by a response that came to its end.
pub fn of_complete_response(facts: Facts<'_>) -> Ending {
    match facts.details {
        b"via_upstream" if facts.attempts.unwrap_or(1) <= 1 => Ending::Clean,
        _ => of_local_reply(facts),
    }
}

/// The ending of a hold whose request was over before any response came to its end.
pub fn of_incomplete_response(facts: Facts<'_>) -> Ending {
    of_local_reply(facts)
}

fn of_local_reply(facts: Facts<'_>) -> Ending {
    match facts.attempts {
        _ => Ending::Unclean,
    }
}
