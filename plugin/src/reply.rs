//! What a client is told when its request does not get through: problem details (RFC 9457), or a gRPC status.

use core::time::Duration;

use serde_json::json;
use turnstile_rules::RequestFault;

use crate::backoff::Jitter;
use crate::session::Rejection;

/// The media type of a problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A reply that takes the upstream's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u32,
    /// For gRPC requests.
    pub grpc_status: GrpcStatus,
    /// When to try again, in whole seconds.
    pub retry_after_s: Option<u64>,
    problem: &'static str,
    title: &'static str,
    detail: String,
    key: Option<String>,
}

/// The gRPC statuses in use, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum GrpcStatus {
    InvalidArgument = 3,
    FailedPrecondition = 9,
    Aborted = 10,
    Internal = 13,
    Unavailable = 14,
}

impl Reply {
    /// For a request that does not get its locks; `key` is all of them, joined by commas.
    pub fn rejected(rejection: Rejection, key: &str, jitter: &mut Jitter) -> Self {
        let (status, grpc_status) = match rejection {
            Rejection::Conflict => (423, GrpcStatus::Aborted),
            Rejection::NoSuchHold | Rejection::Upgrade => (409, GrpcStatus::FailedPrecondition),
            Rejection::WaitOver { .. }
            | Rejection::Hopeless { .. }
            | Rejection::Busy { .. }
            | Rejection::HostUnavailable => (503, GrpcStatus::Unavailable),
            Rejection::Invalid => (500, GrpcStatus::Internal),
        };
        let retry_after_s = match rejection {
            Rejection::WaitOver { retry_after }
            | Rejection::Hopeless { retry_after }
            | Rejection::Busy { retry_after } => Some(jittered_s(retry_after, jitter)),
            Rejection::HostUnavailable => Some(jittered_s(None, jitter)),
            Rejection::Conflict | Rejection::NoSuchHold | Rejection::Upgrade | Rejection::Invalid => None,
        };
        let [problem, title, detail] = words(rejection);
        let (detail, key) = (detail.to_owned(), Some(key.to_owned()));
        Self { status, grpc_status, retry_after_s, problem, title, detail, key }
    }

    /// For a request whose lock was lost while the upstream worked.
    pub fn lost(key: &str) -> Self {
        Self {
            status: 503,
            grpc_status: GrpcStatus::Aborted,
            retry_after_s: None,
            problem: "lock-lost",
            title: "The lock was lost",
            detail: "This request was ended because it lost its lock; the upstream may have carried it out.".to_owned(),
            key: Some(key.to_owned()),
        }
    }

    /// For a request whose lock key is not beyond doubt.
    pub fn refused(fault: &RequestFault) -> Self {
        Self {
            status: 400,
            grpc_status: GrpcStatus::InvalidArgument,
            retry_after_s: None,
            problem: "ambiguous-request",
            title: "The lock of this request cannot be told",
            detail: fault.to_string(),
            key: None,
        }
    }

    /// What went wrong, for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The problem as JSON.
    pub fn body(&self) -> Vec<u8> {
        let mut problem = json!({
            "type": format!("urn:turnstile:problem:{}", self.problem),
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        });
        if let (Some(key), Some(members)) = (&self.key, problem.as_object_mut()) {
            members.insert("key".to_owned(), key.as_str().into());
        }
        problem.to_string().into_bytes()
    }
}

/// The type of the problem, its title, and what to tell people.
fn words(rejection: Rejection) -> [&'static str; 3] {
    match rejection {
        Rejection::Conflict => ["locked", "Locked", "Another request holds the lock that this request needs."],
        Rejection::WaitOver { .. } => [
            "wait-over",
            "Waited too long for a lock",
            "Other requests held the lock that this request needs for as long as it could wait.",
        ],
        Rejection::Hopeless { .. } => [
            "wait-hopeless",
            "The wait for a lock would be in vain",
            "The lock that this request needs is not expected to be free before its wait is over.",
        ],
        Rejection::Busy { .. } => {
            ["queue-full", "Too many requests wait for locks", "No more requests may wait at this time."]
        }
        Rejection::NoSuchHold => [
            "no-such-hold",
            "There is no such lock to join",
            "This request names the holder of a lock that is not held any more, or never was.",
        ],
        Rejection::Upgrade => [
            "upgrade",
            "The lock to join is held in a weaker mode",
            "This request needs more of a lock than the request that it belongs to holds.",
        ],
        Rejection::HostUnavailable => [
            "host-unavailable",
            "The lock service is not available",
            "This request needs a lock, and no lock service answers.",
        ],
        Rejection::Invalid => [
            "misunderstanding",
            "The lock service and this proxy misunderstand each other",
            "One of the two calls the other's message malformed.",
        ],
    }
}

/// At least a second, and up to twice as long as asked for, so that those turned away together do not come back so.
fn jittered_s(retry_after: Option<Duration>, jitter: &mut Jitter) -> u64 {
    let base_ms = retry_after.map_or(1_000, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)).max(1);
    let base_s = base_ms.div_ceil(1_000);
    base_s.saturating_add(jitter.below(base_s.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REJECTIONS: [(Rejection, u32, &str); 8] = [
        (Rejection::Conflict, 423, "urn:turnstile:problem:locked"),
        (Rejection::WaitOver { retry_after: None }, 503, "urn:turnstile:problem:wait-over"),
        (Rejection::Hopeless { retry_after: None }, 503, "urn:turnstile:problem:wait-hopeless"),
        (Rejection::Busy { retry_after: None }, 503, "urn:turnstile:problem:queue-full"),
        (Rejection::NoSuchHold, 409, "urn:turnstile:problem:no-such-hold"),
        (Rejection::Upgrade, 409, "urn:turnstile:problem:upgrade"),
        (Rejection::HostUnavailable, 503, "urn:turnstile:problem:host-unavailable"),
        (Rejection::Invalid, 500, "urn:turnstile:problem:misunderstanding"),
    ];

    #[test]
    fn rejections_are_problem_details() {
        for (rejection, status, problem) in REJECTIONS {
            let reply = Reply::rejected(rejection, r#"default/a:"\"#, &mut Jitter::new(1));
            let body: serde_json::Value = serde_json::from_slice(&reply.body()).expect("JSON");
            assert_eq!(reply.status, status);
            assert_eq!(body["status"], status, "{rejection:?}");
            assert_eq!(body["type"], problem, "{rejection:?}");
            assert_eq!(body["key"], r#"default/a:"\"#);
            assert_eq!(body["detail"], reply.detail());
            assert!(body["title"].is_string());
            assert_eq!(reply.retry_after_s.is_some(), status == 503, "{rejection:?}");
        }
    }

    #[test]
    fn retry_after_is_jittered_whole_seconds() {
        let mut jitter = Jitter::new(7);
        for (asked, least, most) in [(None, 1, 2), (Some(1), 1, 2), (Some(2_500), 3, 6), (Some(u64::MAX), 1, u64::MAX)]
        {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..100 {
                let seconds = jittered_s(asked.map(Duration::from_millis), &mut jitter);
                assert!((least..=most).contains(&seconds), "{asked:?} gave {seconds}");
                seen.insert(seconds);
            }
            assert!(seen.len() > 1, "no jitter for {asked:?}");
        }
    }

    #[test]
    fn a_refusal_repeats_nothing_of_the_request() {
        let reply = Reply::refused(&RequestFault::KeyTooLong);
        let body: serde_json::Value = serde_json::from_slice(&reply.body()).expect("JSON");
        assert_eq!((reply.status, reply.grpc_status, reply.retry_after_s), (400, GrpcStatus::InvalidArgument, None));
        assert_eq!(body["type"], "urn:turnstile:problem:ambiguous-request");
        assert!(body.get("key").is_none());
    }
}
