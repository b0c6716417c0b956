//! What goes wrong, as problem details (RFC 9457); the filter answers its clients with the same types and statuses.

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use turnstile_protocol::v1::{self, RejectReason};

use crate::fields::Fault;

/// The header speaks in whole seconds.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// Faults of one request that are told; the first ones say enough.
const FAULTS_TOLD_MAX: usize = 32;

/// An answer other than the one hoped for.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    name: &'static str,
    detail: String,
    retry_after: Option<Duration>,
    more: Map<String, Value>,
}

impl Problem {
    /// One of `SERVICE_UNAVAILABLE` says to try again in a second.
    pub(super) fn new(status: StatusCode, name: &'static str, detail: impl Into<String>) -> Self {
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER_MIN);
        Self { status, name, detail: detail.into(), retry_after, more: Map::new() }
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// Adds a member beside the standard ones.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.into(), value.into());
        self
    }

    /// A request that is not understood, with everything that is wrong with it.
    pub(super) fn malformed(faults: &[Fault]) -> Self {
        let told = faults.iter().take(FAULTS_TOLD_MAX);
        let list: Vec<Value> = told.map(|fault| json!({ "at": fault.place, "problem": fault.problem })).collect();
        let first = faults.first().map(ToString::to_string).unwrap_or_default();
        let detail = match faults.len() {
            0 | 1 => first,
            count => format!("{first} (and {} more, see `faults`)", count - 1),
        };
        Self::new(StatusCode::BAD_REQUEST, "malformed-request", detail).with("faults", list)
    }

    /// There is no such session.
    pub(super) fn no_such_session() -> Self {
        let detail = "There is no such session: it was not heard of for its TTL, was ended, or never was. What it \
                      held is released as unclean.";
        Self::new(StatusCode::NOT_FOUND, "no-such-session", detail)
    }

    /// As many wait as may.
    pub(super) fn busy(detail: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "queue-full", detail)
    }

    /// The host cannot grant locks now.
    pub(super) fn unavailable(detail: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "host-unavailable", detail)
    }

    /// The driver has ended, or is about to.
    pub(super) fn going_away() -> Self {
        Self::unavailable("This host is going away: ask another one, or its successor.")
    }

    /// What should not be possible.
    pub(super) fn internal(detail: &'static str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "misunderstanding", detail)
    }

    /// An Acquire that is not granted.
    pub(super) fn rejected(reject: &v1::Reject) -> Self {
        let problem = match reject.reason() {
            RejectReason::Conflict => {
                Self::new(StatusCode::LOCKED, "locked", "Somebody else holds a lock that this request needs.")
            }
            RejectReason::WaitTimeout => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "wait-over",
                "Others held a lock that this request needs for as long as it could wait.",
            ),
            RejectReason::WaitHopeless => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "wait-hopeless",
                "The turn of this request is not to be expected within its wait.",
            ),
            RejectReason::QueueFull => Self::busy("No more requests may wait for a lock that this request needs."),
            RejectReason::SessionFull => Self::busy("No more requests of this session may wait."),
            RejectReason::KeysFull => Self::busy("This host tracks as many keys as it may."),
            RejectReason::StoreUnavailable => Self::unavailable("The host's store does not answer."),
            RejectReason::TokensExhausted => Self::unavailable("The fencing tokens of a key are used up."),
            RejectReason::Draining => Self::going_away(),
            RejectReason::NoSuchHold => Self::new(
                StatusCode::CONFLICT,
                "no-such-hold",
                "The re-entry secret names no live hold of this host (any more).",
            ),
            RejectReason::Upgrade => Self::new(
                StatusCode::CONFLICT,
                "upgrade",
                "The hold to join has a key in a weaker mode: waiting for more would be waiting for itself.",
            ),
            RejectReason::Invalid => {
                Self::new(StatusCode::BAD_REQUEST, "malformed-request", "The lock engine does not take this request.")
            }
            RejectReason::Unsupported | RejectReason::Unspecified => Self::new(
                StatusCode::NOT_IMPLEMENTED,
                "unsupported",
                "This host does not know what the request asks for.",
            ),
        };
        let hint = Duration::from_millis(reject.retry_after_ms.into());
        let retry_after = problem.retry_after.map(|least| least.max(hint));
        let problem = Self { retry_after, ..problem };
        problem.with("id", reject.id).with("queue_length", reject.queue_length)
    }

    fn title(&self) -> &'static str {
        match self.name {
            "locked" => "Locked",
            "wait-over" => "Waited too long for a lock",
            "wait-hopeless" => "The wait for a lock would be in vain",
            "queue-full" => "Too many requests wait for locks",
            "host-unavailable" => "The lock service is not available",
            _ => self.status.canonical_reason().unwrap_or("Refused"),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": format!("urn:turnstile:problem:{}", self.name),
            "title": self.title(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(members) = body.as_object_mut() {
            members.extend(self.more);
        }
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(after) = self.retry_after {
            let seconds = u64::try_from(after.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX);
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rejection_has_its_status() {
        for (reason, status, retries) in [
            (RejectReason::Unspecified, 501, false),
            (RejectReason::Conflict, 423, false),
            (RejectReason::WaitTimeout, 503, true),
            (RejectReason::QueueFull, 503, true),
            (RejectReason::SessionFull, 503, true),
            (RejectReason::KeysFull, 503, true),
            (RejectReason::StoreUnavailable, 503, true),
            (RejectReason::Draining, 503, true),
            (RejectReason::Invalid, 400, false),
            (RejectReason::Unsupported, 501, false),
            (RejectReason::TokensExhausted, 503, true),
            (RejectReason::WaitHopeless, 503, true),
            (RejectReason::NoSuchHold, 409, false),
            (RejectReason::Upgrade, 409, false),
        ] {
            let reject = v1::Reject { id: 1, reason: reason.into(), ..v1::Reject::default() };
            let response = Problem::rejected(&reject).into_response();
            assert_eq!(response.status().as_u16(), status, "{reason:?}");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), retries, "{reason:?}");
        }
    }

    #[test]
    fn a_hint_is_rounded_up_to_seconds() {
        for (retry_after_ms, header) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2")] {
            let reason = RejectReason::QueueFull.into();
            let reject = v1::Reject { retry_after_ms, reason, ..v1::Reject::default() };
            assert_eq!(Problem::rejected(&reject).into_response().headers()[RETRY_AFTER], header);
        }
    }
}
