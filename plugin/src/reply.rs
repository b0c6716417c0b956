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
    Aborted = 10,
    Internal = 13,
    Unavailable = 14,
}

impl Reply {
    /// For a request that does not get the lock `key`.
    pub fn rejected(rejection: Rejection, key: &str, jitter: &mut Jitter) -> Self {
        let key = Some(key.to_owned());
        match rejection {
            Rejection::Conflict => Self {
                status: 423,
                grpc_status: GrpcStatus::Aborted,
                retry_after_s: None,
                problem: "locked",
                title: "Locked",
                detail: "Another request holds the lock that this request needs.".to_owned(),
                key,
            },
            Rejection::WaitOver { retry_after } => Self {
                status: 503,
                grpc_status: GrpcStatus::Unavailable,
                retry_after_s: Some(jittered_s(retry_after, jitter)),
                problem: "wait-over",
                title: "Waited too long for a lock",
                detail: "Other requests held the lock that this request needs for as long as it could wait.".to_owned(),
                key,
            },
            Rejection::Busy { retry_after } => Self {
                status: 503,
                grpc_status: GrpcStatus::Unavailable,
                retry_after_s: Some(jittered_s(retry_after, jitter)),
                problem: "queue-full",
                title: "Too many requests wait for locks",
                detail: "No more requests may wait at this time.".to_owned(),
                key,
            },
            Rejection::HostUnavailable => Self {
                status: 503,
                grpc_status: GrpcStatus::Unavailable,
                retry_after_s: Some(jittered_s(None, jitter)),
                problem: "host-unavailable",
                title: "The lock service is not available",
                detail: "This request needs a lock, and no lock service answers.".to_owned(),
                key,
            },
            Rejection::Invalid => Self {
                status: 500,
                grpc_status: GrpcStatus::Internal,
                retry_after_s: None,
                problem: "misunderstanding",
                title: "The lock service does not understand this proxy",
                detail: "The lock service calls the proxy's question malformed.".to_owned(),
                key,
            },
        }
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

/// At least a second, and up to twice as long as asked for, so that those turned away together do not come back so.
fn jittered_s(retry_after: Option<Duration>, jitter: &mut Jitter) -> u64 {
    let base_ms = retry_after.map_or(1_000, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)).max(1);
    let base_s = base_ms.div_ceil(1_000);
    base_s.saturating_add(jitter.below(base_s.saturating_add(1)))
}
