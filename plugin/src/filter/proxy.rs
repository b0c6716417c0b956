//! What the filter asks of the proxy about one request, and does to it.

use core::cell::OnceCell;
use std::borrow::Cow;

use proxy_wasm::hostcalls;
use proxy_wasm::types::{Action, GrpcStatusCode, MapType, Status};
use turnstile_protocol::headers;
use turnstile_rules::{HeaderValues, RequestView};

use crate::reply::{GrpcStatus, MEDIA_TYPE, Reply};
use crate::session::{Granted, RequestRef};

/// Headers that upstreams trust, and that only the filter may set.
pub(super) const OURS: [&str; 3] = [headers::TOKEN, headers::KEY, headers::HOLDER];
/// As much of a path goes into [`Who`].
const WHO_PATH_BYTES: usize = 256;

/// What to do to a request that is not the one whose callback this is.
pub(super) enum Deed {
    /// `keys`: all of them, joined by commas.
    Admit {
        granted: Granted,
        keys: String,
    },
    Bypass,
    Reply(Reply, Dialect),
    Reset,
}

/// What a client understands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Http,
    Grpc,
}

impl Deed {
    pub(super) fn carry_out(self, request: RequestRef) {
        if hostcalls::set_effective_context(request.0).is_err() {
            return;
        }
        let done = match self {
            Self::Admit { granted, keys } => admit(&granted, &keys),
            Self::Bypass => {
                strip(&OURS);
                hostcalls::resume_http_request()
            }
            Self::Reply(reply, dialect) => send(&reply, dialect),
            Self::Reset => hostcalls::reset_http_request(),
        };
        if let Err(status) = done {
            log::error!("the proxy refused to go on with a request: {status:?}");
        }
    }
}

/// Lets the request of the effective context through. Without its headers it stays where it is.
fn admit(granted: &Granted, keys: &str) -> Result<(), Status> {
    set_header(headers::TOKEN, granted.tokens.text().as_bytes())?;
    set_header(headers::KEY, keys.as_bytes())?;
    if let Some(secret) = granted.kin.secret() {
        set_header(headers::HOLDER, secret.to_string().as_bytes())?;
    }
    hostcalls::resume_http_request()
}

/// The request of this callback, as the rules see it. What is read once is kept.
#[derive(Default)]
pub(super) struct View {
    method: OnceCell<Vec<u8>>,
    path: OnceCell<Vec<u8>>,
}

impl RequestView for View {
    fn method(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.method.get_or_init(|| header(":method").unwrap_or_default()))
    }

    fn authority(&self) -> Cow<'_, [u8]> {
        Cow::Owned(header(":authority").unwrap_or_default())
    }

    fn path(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.path.get_or_init(|| header(":path").unwrap_or_default()))
    }

    fn header(&self, name: &str) -> HeaderValues<'_> {
        all_values(name).map_or(HeaderValues::Absent, |value| HeaderValues::One(Cow::Owned(value)))
    }
}

impl View {
    /// To be asked before the request is let through: the proxy forgets its headers then.
    pub(super) fn dialect(&self) -> Dialect {
        // gRPC is always POST; every look at a header costs.
        if *self.method() == *b"POST" && is_grpc(&header("content-type").unwrap_or_default()) {
            Dialect::Grpc
        } else {
            Dialect::Http
        }
    }

    /// What the client sent for a holder secret, if anything. An empty header has no values to tell.
    pub(super) fn holder(&self) -> Option<Vec<u8>> {
        header(headers::HOLDER).map(|_| all_values(headers::HOLDER).unwrap_or_default())
    }

    /// The path without its query, which is nobody's business.
    pub(super) fn bare_path(&self) -> String {
        let path = self.path();
        text(path.split(|&byte| byte == b'?').next().unwrap_or_default(), WHO_PATH_BYTES)
    }
}

/// Takes away headers that only the filter may set. Looks first: a change makes the proxy route the request again.
pub(super) fn strip(names: &[&str]) {
    for name in names {
        if header(name).is_some() {
            let _ = hostcalls::remove_map_value(MapType::HttpRequestHeaders, name);
        }
    }
}

/// Overwrites whatever the client sent.
fn set_header(name: &str, value: &[u8]) -> Result<(), Status> {
    hostcalls::set_map_value_bytes(MapType::HttpRequestHeaders, name, Some(value))
}

pub(super) fn text(bytes: &[u8], max: usize) -> String {
    String::from_utf8_lossy(bytes.get(..max).unwrap_or(bytes)).into_owned()
}

fn header(name: &str) -> Option<Vec<u8>> {
    hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, name).ok().flatten()
}

/// The values of a header, joined by commas. The call for one header tells the first of several only.
fn all_values(name: &str) -> Option<Vec<u8>> {
    property(&["request", "headers", name])
}

pub(super) fn property(path: &[&str]) -> Option<Vec<u8>> {
    hostcalls::get_property(path.to_vec()).ok().flatten()
}

pub(super) fn number(path: &[&str]) -> Option<u64> {
    property(path).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
}

/// Answers the request of this callback.
pub(super) fn answer(reply: &Reply, dialect: Dialect) -> Action {
    if let Err(status) = send(reply, dialect) {
        log::error!("the proxy refused a reply: {status:?}");
    }
    Action::Pause
}

/// Answers the request of the effective context.
fn send(reply: &Reply, dialect: Dialect) -> Result<(), Status> {
    let retry_after = reply.retry_after_s.map(|seconds| seconds.to_string());
    if dialect == Dialect::Grpc {
        let metadata = retry_after.iter().map(|value| ("retry-after", value.as_bytes())).collect();
        let status = match reply.grpc_status {
            GrpcStatus::InvalidArgument => GrpcStatusCode::InvalidArgument,
            GrpcStatus::FailedPrecondition => GrpcStatusCode::FailedPrecondition,
            GrpcStatus::Aborted => GrpcStatusCode::Aborted,
            GrpcStatus::Internal => GrpcStatusCode::Internal,
            GrpcStatus::Unavailable => GrpcStatusCode::Unavailable,
        };
        return hostcalls::send_grpc_response(status, Some(reply.detail()), metadata);
    }
    let mut headers = vec![("content-type", MEDIA_TYPE)];
    headers.extend(retry_after.as_deref().map(|value| ("retry-after", value)));
    hostcalls::send_http_response(reply.status, headers, Some(&reply.body()))
}

/// As the proxy sees it: to `application/grpc-web` and the like it would say 200, and leave the gRPC status out.
fn is_grpc(content_type: &[u8]) -> bool {
    content_type.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}
