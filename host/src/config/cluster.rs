//! `[store]` of kind "etcd".

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::SECOND;
use crate::fields::Section;
use crate::store::etcd;

/// Reads what only etcd has; faults of fields that do not fit together are named by the field to change.
pub(super) fn read(section: &mut Section<'_>, lease_ttl: Duration, epoch_base: u64) -> etcd::Config {
    if lease_ttl.subsec_nanos() != 0 {
        section.fault("lease_ttl", "must be whole seconds: etcd counts its leases in them");
    }
    let expected = "a list of URLs such as [\"http://10.0.0.1:2379\", \"http://10.0.0.2:2379\"], all http or all https";
    let endpoints = section.required("endpoints", expected, parse_endpoints).unwrap_or_default();
    let prefix = section.text("prefix", "turnstile/");
    if !prefix.ends_with('/') || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        section.fault("prefix", "must be visible ASCII and end in \"/\", such as \"turnstile/\"");
    }
    let request_timeout = section.duration("request_timeout", SECOND, SECOND / 20..=60 * SECOND);
    if request_timeout > lease_ttl / 2 {
        section.fault("request_timeout", "must be at most half of `lease_ttl`, so that one slow member costs no lease");
    }
    let user =
        section.read("user", "a user's name", |value| value.as_str().filter(|user| !user.is_empty()).map(Into::into));
    let user = with_file(section, ("user", user), "password_file");
    let ca_file = section.file("ca_file");
    let cert_file = section.file("cert_file");
    let identity = with_file(section, ("cert_file", cert_file), "key_file");
    let secure = endpoints.iter().any(|endpoint: &String| endpoint.starts_with("https://"));
    let tls = match (secure, ca_file) {
        (true, Some(ca_file)) => Some(etcd::Tls { ca_file, identity }),
        (true, None) => {
            section.fault(
                "ca_file",
                "is missing: the endpoints are https, and this file says whose certificates to believe",
            );
            None
        }
        (false, ca_file) => {
            if ca_file.is_some() || identity.is_some() {
                section
                    .fault("endpoints", "are http, so certificates are not used: write https, or leave the files out");
            }
            None
        }
    };
    etcd::Config { endpoints, prefix, lease_ttl, request_timeout, user, tls, epoch_base }
}

/// Two fields of which neither makes sense alone: the first has been read, the second is a file.
fn with_file<T>(
    section: &mut Section<'_>,
    (first, value): (&'static str, Option<T>),
    second: &'static str,
) -> Option<(T, PathBuf)> {
    match (value, section.file(second)) {
        (Some(value), Some(file)) => Some((value, file)),
        (Some(_), None) => {
            section.fault(second, &format!("is missing: `{first}` needs it"));
            None
        }
        (None, Some(_)) => {
            section.fault(first, &format!("is missing: `{second}` needs it"));
            None
        }
        (None, None) => None,
    }
}

fn parse_endpoints(value: &Value) -> Option<Vec<String>> {
    let urls: Vec<String> = value.as_array()?.iter().map(|url| url.as_str().map(Into::into)).collect::<Option<_>>()?;
    let all = |scheme: &str| urls.iter().all(|url| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    (!urls.is_empty() && (all("http://") || all("https://"))).then_some(urls)
}
