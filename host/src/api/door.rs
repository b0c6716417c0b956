//! What every request has to pass before it is looked at: no web page may send it, and its body must be bounded JSON.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::fields::{Fault, Section};

/// The largest body of a request.
const BODY_MAX_BYTES: usize = 64 * 1024;

/// A body that is not there by then is not waited for.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// By which names the host may be called.
#[derive(Clone, Copy, Debug)]
pub(super) enum Names {
    /// Addresses and `localhost`: a name that a stranger's DNS server points here is none of ours.
    Local,
    /// All: the operator knows who reaches the port.
    Any,
}

/// Turns away what a browser sends for a web page. The port has no authentication, and a page of a stranger must not
/// work on it from inside: every such request that changes something names its origin.
pub(super) async fn keep(State(names): State<Names>, request: Request, next: Next) -> Response {
    if request.headers().contains_key(ORIGIN) {
        let detail = "Requests of web pages (with an Origin header) are not taken.";
        return Problem::new(StatusCode::FORBIDDEN, "web-page", detail).into_response();
    }
    if matches!(names, Names::Local) && !is_called_locally(&request) {
        let detail = "The Host header must be an IP address or localhost, so that no web page can reach this port \
                      by a name of its own. (With insecure = true in [api], any name is taken.)";
        return Problem::new(StatusCode::MISDIRECTED_REQUEST, "host-name", detail).into_response();
    }
    next.run(request).await
}

fn is_called_locally(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let in_target = request.uri().authority().is_none_or(|authority| is_local(authority.host()));
    let in_header = host.to_str().ok().and_then(|host| host.parse::<Uri>().ok());
    in_target && in_header.is_some_and(|uri| uri.host().is_some_and(is_local))
}

fn is_local(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// Reads a JSON object, field by field; every fault in it is told.
pub(super) async fn read<T>(request: Request, read: impl FnOnce(&mut Section<'_>) -> Option<T>) -> Result<T, Problem> {
    let fields = object(request).await?;
    let mut faults = Vec::new();
    let mut section = Section::root(fields, &mut faults);
    let result = read(&mut section);
    section.finish();
    match result {
        Some(result) if faults.is_empty() => Ok(result),
        _ => Err(Problem::malformed(&faults)),
    }
}

async fn object(request: Request) -> Result<Map<String, Value>, Problem> {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let detail = "The body must be JSON, with the header content-type: application/json.";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", detail));
    }
    let declared = request.headers().get(axum::http::header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let too_large =
        || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body may have 64 KiB (65536 bytes).");
    if declared.is_some_and(|length| length > BODY_MAX_BYTES) {
        return Err(too_large());
    }
    let body = axum::body::to_bytes(request.into_body(), BODY_MAX_BYTES);
    let body = tokio::time::timeout(BODY_PATIENCE, body)
        .await
        .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "The body did not come in 10 seconds."))?
        .map_err(|_| too_large())?;
    serde_json::from_slice(&body)
        .map_err(|error| Problem::malformed(&[Fault { place: "body".into(), problem: error.to_string() }]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        let called = |target: &str, hosts: &[&str]| {
            let mut request = Request::builder().uri(target);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            is_called_locally(&request.body(axum::body::Body::empty()).unwrap())
        };
        for host in ["127.0.0.1", "127.0.0.1:7880", "[::1]:7880", "[::1]", "localhost:7880", "LOCALHOST", "10.1.2.3:80"]
        {
            assert!(called("/", &[host]), "{host}");
        }
        for host in ["", "evil.example", "evil.example:7880", "127.0.0.1.evil.example", "localhost.", "127.0.0.1@evil"]
        {
            assert!(!called("/", &[host]), "{host}");
        }
        assert!(!called("/", &[]));
        assert!(!called("/", &["127.0.0.1", "evil.example"]));
        assert!(!called("http://evil.example/", &["127.0.0.1"]));
        assert!(called("http://127.0.0.1:7880/", &["127.0.0.1:7880"]));
    }
}
